"""NVIDIA's run-time compiler, found among pip packages and called for an architecture that may not
be in this machine: CUDA C++ in, machine code (a cubin) and PTX out. No GPU, no driver.

tinygrad has a wrapper of its own, which loads one library per process and takes it from the system.
Here several may be loaded side by side, since no single one compiles for every Jetson; the options
given to the compiler are tinygrad's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tinygrad.helpers import getenv

from tgx.errors import CompileFailure, MissingExtra
from tgx.hardware import toolchains


@dataclass(frozen=True)
class Nvrtc:
    """One NVRTC library, loaded."""

    path: Path

    @cached_property
    def library(self) -> Any:
        return ctypes.CDLL(str(self.path))

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    @cached_property
    def archs(self) -> tuple[int, ...]:
        """The architectures it compiles for: (50, ..., 90); empty where it is too old to say."""
        if not hasattr(self.library, "nvrtcGetSupportedArchs"):  # before CUDA 11.2
            return ()
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        archs = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", archs)
        return tuple(archs)

    @cached_property
    def include(self) -> Path | None:
        """The folder with cuda_fp16.h, which kernels with `half` numbers include."""
        folder = self.path.parent
        beside = (
            folder.parent / "include",  # nvidia/cu13/lib and nvidia/cu13/include; /usr/local/cuda
            folder.parents[1] / "cuda_runtime" / "include",  # the -cu11 and -cu12 packages
            folder.parents[2] / "include",  # /usr/local/cuda/targets/aarch64-linux/lib
        )
        return next((path for path in beside if (path / "cuda_fp16.h").is_file()), None)

    def call(self, name: str, *arguments: Any, program: Any = None) -> None:
        """Call one function of the library; its log, if it has one, goes into the error."""
        status = getattr(self.library, name)(*arguments)
        if status == 0:
            return
        describe = self.library.nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        log = self._get("ProgramLog", program).decode(errors="replace") if program else ""
        raise CompileFailure(
            f"NVRTC {self.path.name}: {name} says {describe(status).decode()}\n{log}".rstrip(),
            "CUDA C++ that compiles",
            "TGX_TRACEBACK=1 shows where it was called from",
        )

    def _get(self, what: str, program: Any) -> bytes:
        """nvrtcGet<What>Size, then nvrtcGet<What>."""
        size = ctypes.c_size_t()
        if getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)):
            return b""
        data = ctypes.create_string_buffer(size.value)
        if getattr(self.library, f"nvrtcGet{what}")(program, data):
            return b""
        return data.raw

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        """The cubin and the PTX of CUDA C++ source, by tinygrad's own options."""
        options = [f"--gpu-architecture={arch}"]
        if self.include is not None:
            options.append(f"-I{self.include}")
        elif "#include <cuda_" in source:
            wheel = (toolchains.wheels_for(arch) or toolchains.WHEELS)[0]
            raise MissingExtra(
                f"a kernel uses half-precision numbers, and {self.path} has no cuda_fp16.h beside",
                "NVIDIA's headers",
                f"python -m pip install '{wheel.headers}'",
            )
        if self.version >= (12, 4):
            options.append("--minimal")
        program = ctypes.c_void_p()
        text = source.encode()
        self.call("nvrtcCreateProgram", ctypes.byref(program), text, b"<null>", 0, None, None)
        try:
            words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            self.call("nvrtcCompileProgram", program, len(options), words, program=program)
            cubin = self._get("CUBIN", program)
            ptx = self._get("PTX", program).rstrip(b"\0").decode(errors="replace")
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin, ptx


def compiler_for(arch: str) -> Nvrtc:
    """An NVRTC found here that compiles for `arch`, or an error with the command that gets one."""
    wanted = toolchains.number(arch)
    found = installed()
    for nvrtc in found:
        if not nvrtc.archs or wanted in nvrtc.archs:
            return nvrtc
    if not found:
        given = f"no NVRTC was found, and {arch} needs one"
        if sys.platform == "darwin":
            given += " (NVIDIA makes none for macOS: use Linux, or a container)"
        raise MissingExtra(
            given,
            "NVIDIA's compiler as pip packages; no GPU and no driver",
            "python -m pip install 'tinygrad-tgx[cuda]'",
        )
    has = "; ".join(
        f"NVRTC {n.version[0]}.{n.version[1]} compiles for sm_{n.archs[0]} to sm_{n.archs[-1]}"
        for n in found
    )
    raise MissingExtra(
        f"no NVRTC found here compiles for {arch}: {has}",
        f"one that knows {arch}: NVIDIA drops old architectures as it adds new ones",
        toolchains.install(arch),
    )


@cache
def installed() -> tuple[Nvrtc, ...]:
    """Every NVRTC that can be loaded: NVRTC_PATH's first, then from old to new."""
    found: dict[Path, Nvrtc] = {}
    for path in _candidates():
        try:
            if path.resolve() not in found and (nvrtc := Nvrtc(path)).version:
                found[path.resolve()] = nvrtc
        except (OSError, AttributeError, CompileFailure):  # another platform's, or a broken one
            continue
    chosen = Path(getenv("NVRTC_PATH", "")).resolve()
    return tuple(sorted(found.values(), key=lambda n: (n.path.resolve() != chosen, n.version)))


def _candidates() -> Iterator[Path]:
    if path := getenv("NVRTC_PATH", ""):  # tinygrad's own variable for the same
        yield Path(path)
    for folder in map(Path, sys.path):
        packages = folder / "nvidia"
        # .alt is the same compiler built against an older C library
        libraries = (*packages.glob("*/lib/libnvrtc.so.*"), *packages.glob("*/bin/nvrtc64_*.dll"))
        yield from sorted(path for path in libraries if ".alt" not in path.name)
    for pattern in ("cuda*/lib64/libnvrtc.so", "cuda*/targets/*/lib/libnvrtc.so"):
        yield from sorted(Path("/usr/local").glob(pattern))
