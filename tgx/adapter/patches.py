"""The few places where tinygrad itself is adjusted, each with its reason.

Every function here is a row of `hook.PATCHES`: it is called once, with a module of tinygrad's that
was just executed and that fits `compat.NEEDS`. Nothing changes for a program that does not use TGX,
except that a missing clang is explained.

Why the CPU device is avoided: tinygrad moves data through it in three places of its own accord.
Opening it takes clang, whatever renderer is asked for; a machine without a compiler, for which TGX
is made, could not print `Tensor.arange(3).tolist()`. Where the user names CPU himself, he gets it,
or the error that says what it needs.
"""

from __future__ import annotations

import functools
import shutil
import struct
import sys
import zipfile
import zlib
from typing import Any

from tgx.errors import MissingTool


def add_tgx(device: Any) -> None:
    """Let TGX be a candidate for the default device, after all that tinygrad knows itself."""
    device.ALL_DEVICES.append("TGX")
    device.Device._devices.append("TGX")

    read_directly(device.Buffer)


def read_directly(Buffer: Any) -> None:
    """Read a TGX buffer with one copy of its bytes.

    tinygrad makes a buffer on its PYTHON device and a graph that copies into it: 0.25 ms for each
    `.item()`, of a training step that takes one.
    """
    stock = Buffer.as_memoryview

    @functools.wraps(stock)
    def as_memoryview(
        self: Any,
        allow_zero_copy: bool = False,
        force_zero_copy: bool = False,
        no_sync: bool = False,
    ) -> memoryview:
        if allow_zero_copy or force_zero_copy or not self.device.startswith("TGX"):
            view: memoryview = stock(self, allow_zero_copy, force_zero_copy, no_sync)
            return view
        # tinygrad's own words; a view outlives its buffer, whose memory may be another's by now
        assert self.is_initialized(), "copy requires allocated buffers"
        return memoryview(self.allocator.copy_of(self._buf))

    Buffer.as_memoryview = as_memoryview


def keep_programs(realize: Any) -> None:
    """Finished TGX kernels come from, and go to, a cache on disk (`tgx.devices.cache`)."""
    stock = realize.lower_and_compile

    @functools.wraps(stock)
    def lower_and_compile(linear: Any) -> Any:
        devices = (call.src[1].device for call in linear.src if len(call.src) > 1)
        if any("TGX" in str(device) for device in devices):
            from tgx.devices import cache

            return cache.lower_and_compile(linear, stock)
        return stock(linear)

    realize.lower_and_compile = lower_and_compile


def on_tgx() -> bool:
    """Whether this program's default device is TGX."""
    from tinygrad import Device

    return Device.DEFAULT.split(":")[0] == "TGX"


def read_back_without_cpu(tensor: Any) -> None:
    """Tensors of no device (constants, `arange`) or of several are read through the default device.

    tinygrad reads both through CPU, and turns a list into a CPU tensor to store it in a file.
    """
    from tinygrad.engine.realize import capturing
    from tinygrad.uop.ops import Ops

    Tensor = tensor.Tensor
    stock_buffer, stock_assign = Tensor._buffer, Tensor.assign

    @functools.wraps(stock_buffer)
    def _buffer(self: Any) -> Any:
        uop = self.uop
        while uop.op is Ops.RESHAPE:
            uop = uop.src[0]
        # a whole buffer that is there: tinygrad builds, and finds realized, three graphs (15 us)
        if uop.op is Ops.BUFFER and str(uop.device).startswith("TGX") and not capturing:
            if (there := uop.realized) is not None:
                return there
        if isinstance(self.device, tuple) and self.device[0].startswith("TGX"):
            self = self.contiguous().clone(self.device[0])
        elif self.uop.device is None and on_tgx():
            self = self.contiguous().clone(default_device())
        return stock_buffer(self)

    @functools.wraps(stock_assign)
    def assign(self: Any, x: Any) -> Any:
        in_file = isinstance(self.device, str) and self.device.startswith(("DISK", "TINYFS"))
        if in_file and not isinstance(x, Tensor) and on_tgx():
            x = Tensor(x, device=default_device(), dtype=self.dtype)
        return stock_assign(self, x)

    Tensor._buffer, Tensor.assign = _buffer, assign


def default_device() -> str:
    from tinygrad import Device

    return Device.DEFAULT


def unzip_without_cpu(state: Any) -> None:
    """Zip archives, and so torch's weight files, are opened without CPU.

    The same function as tinygrad's, but for the four bytes of each member's own header (the lengths
    of its name and its extra field), which are read from the file and not sent to CPU first.
    """
    stock = state.zip_extract

    @functools.wraps(stock)
    def zip_extract(fn: Any) -> dict[str, Any]:
        return extract(fn) if on_tgx() else stock(fn)

    @state.accept_filename
    def extract(archive: Any) -> dict[str, Any]:
        files = {}
        with zipfile.ZipFile(state.TensorIO(archive)) as members:
            for member in members.filelist:
                lengths = archive[member.header_offset + 26 : member.header_offset + 30].data()
                start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
                data = archive[start : start + member.compress_size]
                if member.compress_type == zipfile.ZIP_DEFLATED:
                    data = state.Tensor(zlib.decompress(data.data(), -15))
                elif member.compress_type != zipfile.ZIP_STORED:
                    raise NotImplementedError(f"compression {member.compress_type} not supported")
                files[member.filename] = data
        return files

    state.zip_extract = zip_extract


def open_cpu_only_with_clang(ops_cpu: Any) -> None:
    """Say at once which program CPU is missing, and how to get it.

    Left alone, Python says "No such file" from deep inside; and with what a clang that is gone once
    compiled still in tinygrad's cache, CPU opens, becomes the default device, and fails later.
    """
    device = ops_cpu.CPUDevice
    stock_init = device.__init__

    @functools.wraps(stock_init)
    def __init__(self: Any, device: str = "") -> None:
        from tinygrad.helpers import getenv

        compiler = getenv("CC", "clang")  # what tinygrad itself would call
        if shutil.which(compiler) is None:
            raise missing_clang(compiler)
        stock_init(self, device)

    device.__init__ = __init__


def missing_clang(program: str) -> MissingTool:
    return MissingTool(
        f"tinygrad's CPU device compiles with {program!r}, which is not on PATH",
        "a C compiler for CPU, whatever renderer it is asked for; TGX needs none (DEVICE=TGX)",
        install_clang(),
    )


def install_clang() -> str:
    """The command that installs clang here."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    return "apt-get install clang    (Debian, Ubuntu; elsewhere: your system's clang package)"
