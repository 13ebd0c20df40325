"""Every parser of tgx that reads what somebody else wrote, as one table, and how it is attacked.

`FORMATS` has a row for each: real files to begin from, the function, and the errors it may raise.
`mutated` changes a file by a list of edits (that Hypothesis or a random generator chose), `attempt`
parses the result under guard: an audit hook that reports anything a parser has no business with
(running code, files opened for writing, processes, sockets, modules that were not there before), a
limit on CPU time, and the list of errors allowed. `BOMBS` are files made to exhaust time or memory;
they are tried in a child process with limits (`explode`).
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for folder in ("examples", "tests"):
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))

os.environ.setdefault("DEV", "TGX")

SECONDS = 4.0  # of CPU that one small file may take, everything that is made of it included
MEMORY = 3 << 30  # bytes of address space a child has, Python, NumPy and their libraries included

# **** the guard ****

FORBIDDEN = (
    "exec", "compile", "import", "marshal.loads", "pickle.find_class", "subprocess.Popen",
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.startfile", "pty.spawn",
    "ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "code.__new__", "builtins.input",
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod",
    "os.chown", "os.truncate", "os.putenv", "os.kill", "shutil.rmtree", "shutil.move",
    "shutil.copyfile", "urllib.Request", "http.client.connect", "webbrowser.open", "open",
    "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "signal.pthread_kill",
)  # fmt: skip


class Forbidden(BaseException):
    """A parser did what no parser should. Not an Exception: nobody may catch it by mistake."""


class TooSlow(BaseException):
    """A small file took more CPU than `SECONDS`."""


@dataclass
class _Guard:
    on: bool = False
    allowed: frozenset[str] = frozenset()
    seen: list[str] = field(default_factory=list)
    installed: bool = False
    thread: int = 0


_guard = _Guard()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guard.on or event not in FORBIDDEN or event in _guard.allowed:
        return
    if threading.get_ident() != _guard.thread:
        return
    if event == "open":  # for reading is what parsers do
        mode, flags = arguments[1], arguments[2] if len(arguments) > 2 else 0
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if not writes and not (isinstance(flags, int) and flags & 3):
            return
    if event == "import" and (arguments[0] in sys.modules
                              or str(arguments[0]).startswith("encodings.")):  # Python's own
        return
    _guard.on = False  # what follows is ours
    _guard.seen.append(f"{event} {arguments!r:.200}")
    raise Forbidden(_guard.seen[-1])


@contextmanager
def guarded(allowed: Sequence[str] = ()) -> Iterator[None]:
    """Within this, anything FORBIDDEN raises at once, and is remembered."""
    if not _guard.installed:
        sys.addaudithook(_audit)
        _guard.installed = True
    _guard.allowed, _guard.thread = frozenset(allowed), threading.get_ident()
    _guard.seen.clear()
    _guard.on = True
    try:
        yield
    finally:
        _guard.on = False


# **** the table ****


@dataclass(frozen=True)
class Format:
    """A parser. `parse` also makes what tgx makes of the file: tables, pages, models."""

    name: str
    parse: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    errors: Callable[[], tuple[type[BaseException], ...]]
    allowed: tuple[str, ...] = ()  # audit events that are the parser's business
    pure: bool = True  # needs no tinygrad


def _tgx() -> tuple[type[BaseException], ...]:
    from tgx.errors import TgxError

    return (TgxError,)


def _data() -> tuple[type[BaseException], ...]:
    from guide_data import DataError

    return (DataError,)


FORMATS: dict[str, Format] = {}


def _row(
    seeds: Callable[[], Sequence[bytes]],
    errors: Callable[[], tuple[type[BaseException], ...]] = _tgx,
    **more: Any,
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    def add(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = parse.__name__
        FORMATS[name] = Format(name, parse, seeds, errors, **more)
        return parse

    return add


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# **** traces ****


@cache
def _traces() -> tuple[bytes, ...]:
    import poison

    import traces
    from tgx import codec
    from tgx.model import RECORDS

    def plain(trace: Any) -> bytes:  # a record a line: a bundle would hide them from the mutations
        out = io.StringIO()
        writer = codec.Writer(out)
        writer.write("environment", trace.environment)
        for table in RECORDS:
            for record in getattr(trace, table):
                writer.write(table, record)
        writer.close()
        return out.getvalue().encode()

    whole = poison.everything()
    return (plain(whole), plain(traces.backward_walk()), codec.dumps(traces.mlp_step()).encode(),
            plain(traces.hostile()))


@_row(_traces)
def trace(data: bytes) -> object:
    """A trace, and every view of it but graphviz's own work."""
    from tgx import codec

    found = codec.loads(text(data).encode("utf-8", "replace").decode())
    show(found)
    return found


def show(found: Any) -> None:
    """Every view of a trace; what is JSON is read back, and nothing steers a terminal."""
    import json

    from tgx import codec, safe
    from tgx.errors import TgxError
    from tgx.views import VIEWS, backward, backward_picture, compare, dot, html, picture

    unseen = re.compile(f"[{safe.UNSEEN}]")

    def strict(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    def look(make: Callable[[], str], is_json: bool = False) -> None:
        try:
            told = make()
        except TgxError:
            return
        assert not unseen.search(told), f"not clean: {unseen.search(told)!r}"
        assert len(told) < 64 << 20, f"a view of {len(told):,} characters"
        if is_json:
            json.loads(told, parse_constant=strict)

    assert codec.loads(codec.dumps(found)) == found or "nan" in repr(found)
    for name in ("text", "markdown"):
        look(lambda name=name: VIEWS[name].render(found))  # type: ignore[misc]
    for name in ("json", "perfetto"):
        look(lambda name=name: VIEWS[name].render(found), True)  # type: ignore[misc]
    for k in found.kernels[:3]:
        look(lambda k=k: VIEWS["text"].render(found, kernel=k.id))  # type: ignore[misc]
    for what in picture.PICTURES:
        look(lambda what=what: dot.render(found, what))  # type: ignore[misc]
    for form in ("text", "markdown"):
        look(lambda form=form: backward.render(found, form))  # type: ignore[misc]
    look(lambda: backward.render(found, "json"), True)
    look(lambda: dot.to_dot(backward_picture.picture(found)))
    for form in ("text", "markdown"):
        look(lambda form=form: compare.render([found, found], form=form))  # type: ignore[misc]
    for chunk in html.pack(found).values():
        look(lambda chunk=chunk: zlib.decompress(base64.b64decode(chunk)).decode(),  # type: ignore[misc]
             True)


@cache
def _logs() -> tuple[bytes, ...]:
    from test_debuglog import CUDA

    return (CUDA.encode(), CLANG.encode())


CLANG = """\
scheduled     1 kernels in     0.50 ms | cache hit  ba0d3aea |      23 uops in cache | train.py:14
buffer: allocate 4096 bytes on CPU
void r_4(float* restrict data0_4, float* restrict data1_16) {
  for (int i = 0; i < 4; i++) { *(data0_4+i) = 0.0f; }
}

0000000000000000 <r_4>:
   0:\tc5 f8 57 c0\tvxorps %xmm0,%xmm0,%xmm0
*** CPU        1 r_4        arg  2 mem   0.01 GB tm     10.00us/     0.09ms (    2 GFLOPS   5|6 GB/s)
buffer: deallocate 4096 bytes on CPU
define void @E_4(ptr %data0) {
  ret void
}
*** TGX        2 E_4        arg  1 mem   0.01 GB tm      1.00s / 1000.09ms (    0 GFLOPS   0|0 TB/s)
"""  # noqa: E501


@_row(_logs)
def debug_log(data: bytes) -> object:
    """A DEBUG log, the trace made of it, and its views."""
    from tgx.adapter import debuglog

    found = debuglog.parse(text(data).encode("utf-8", "replace").decode())
    show(found)
    return found


# **** boards ****


@cache
def _profiles() -> tuple[bytes, ...]:
    return tuple(p.read_bytes() for p in sorted((ROOT / "devices").glob("*.toml")))[:6]


@_row(_profiles)
def profile(data: bytes) -> object:
    """A board's profile, its tables, and what is predicted with it."""
    from tgx import safe
    from tgx.errors import BadInput
    from tgx.hardware import picture, profiles, report
    from tgx.hardware.kernel import Chain, Copy, GpuKernel, Work

    found = profiles.read_text(data, "stranger", "stranger.toml")
    again = profiles.parse(profiles.to_toml(found), "stranger")
    assert again == found
    json.dumps(profiles.to_json(found), allow_nan=False)
    profiles.fact_rows(found), profiles.list_rows([found])
    kernels = [
        Copy("copy", 100_000),
        GpuKernel("k", "sm_87", (16, 1, 1), (8, 4, 1), Work(423_936, 0, 700_000, 808_000),
                  Chain(alu=400, memory=98), registers=128, shared=512, lines=("m.py:45",)),
    ]  # fmt: skip
    for mode in ("", *(m.name for m in found.modes)):
        try:
            machine = profiles.machine(found, mode)
            step = report.step("s", 1, kernels, machine, found.kind == "jetson")
        except BadInput:
            continue
        told = report.Report(found, machine, "NVRTC", (step,))
        json.dumps(report.to_json(told), allow_nan=False)
        assert not re.search(f"[{safe.UNSEEN}]", picture.html(told))
        picture.text(machine, step)
    return found


@cache
def _cubins() -> tuple[bytes, ...]:
    return tuple(p.read_bytes() for p in sorted((ROOT / "tests/recorded/cubins").glob("*.cubin")))


@_row(_cubins)
def cubin(data: bytes) -> object:
    """Machine code of NVIDIA's compilers."""
    from tgx.hardware import cubin

    return cubin.read(data)


def _recorded(*names: str) -> Callable[[], Sequence[bytes]]:
    return cache(lambda: tuple((ROOT / "tests/recorded" / name).read_bytes() for name in names))


@_row(_recorded("tegrastats.txt"), lambda: ())
def tegrastats(data: bytes) -> object:
    """A log of tegrastats, summed up: never an error."""
    from tgx.hardware import tegra

    told = tegra.summarise(tegra.parse_log(text(data)))
    tegra.energy_mj(told, 1.0, 3)
    tegra.low_clock(tegra.parse_log(text(data)), 600.0)
    return told


@_row(_recorded("nvpmodel.txt", "jetson_clocks.txt"), lambda: ())
def nvpmodel(data: bytes) -> object:
    """What nvpmodel, jetson_clocks and the release file say: never an error."""
    from tgx.hardware import tegra

    words = text(data)
    release = tegra.parse_release(words)
    tegra.checks(words, (3, 11), True, True)
    return (tegra.parse_nvpmodel_query(words), tegra.parse_nvpmodel_conf(words),
            tegra.parse_jetson_clocks(words), release and tegra.jetpack_of(release[0]))


# **** data sets and weights ****


def _idx(shape: tuple[int, ...], fill: bytes | None = None) -> bytes:
    count = 1
    for n in shape:
        count *= n
    content = fill or bytes(i % 10 for i in range(count))
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


@cache
def _idxs() -> tuple[bytes, ...]:
    images, labels = _idx((3, 28, 28)), _idx((3,))
    return (images, labels, gzip.compress(images, mtime=0), lzma.compress(images),
            gzip.compress(labels, mtime=0), lzma.compress(labels))


@_row(_idxs, _data)
def idx(data: bytes) -> object:
    """MNIST's files: plain, gzip or xz."""
    import guide_data

    with on_disk(data, "file") as path:
        raw = guide_data.unpack(path)
        arrays = []
        for sizes in ((28, 28), ()):
            try:
                arrays.append(guide_data.parse_idx(raw, Path("x"), sizes))
            except guide_data.DataError:
                continue
        return arrays


@contextmanager
def on_disk(data: bytes, name: str) -> Iterator[Path]:
    """A file of that name in a folder of its own; to make it is not the parser's doing."""
    was, _guard.on = _guard.on, False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        _guard.on = was
        try:
            yield path
        finally:
            _guard.on = False
    _guard.on = was


@_row(lambda: ((ROOT / "examples/data/iris/iris.csv").read_bytes(),), _data)
def iris(data: bytes) -> object:
    """A table of numbers and a word."""
    import guide_data
    import numpy as np

    with on_disk(data, "iris.csv") as path:
        table = guide_data.iris(path.parent)
    assert np.isfinite(table.features).all() and len(table.features) == len(table.labels)
    return table


@cache
def _cifars() -> tuple[bytes, ...]:
    import numpy as np

    pixels = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    batch = {b"data": pixels, b"labels": [0, 1, 2, 9], b"batch_label": b"x", b"filenames": [b"a"]}
    records = b"".join(bytes([i]) + bytes(row) for i, row in enumerate(pixels))
    return (records, *(pickle.dumps(batch, protocol) for protocol in (2, 3, 4)),
            gzip.compress(records, mtime=0))


@_row(_cifars, _data)
def cifar(data: bytes) -> object:
    """CIFAR-10's batches, in both formats."""
    import guide_data

    out = []
    for read in (guide_data.cifar_records, guide_data.cifar_pickle):
        try:
            out.append(read(data, Path("x")))
        except guide_data.DataError:
            continue
    return out


@cache
def _tars() -> tuple[bytes, ...]:
    made = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, content in (("cifar/data_batch_1.bin", b"\1" * 3073), ("a" * 150, b"x")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("cifar/test_batch.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        made += [out.getvalue(), gzip.compress(out.getvalue(), mtime=0)]
    return tuple(made)


@_row(_tars, _data)
def archive(data: bytes) -> object:
    """CIFAR-10's archive."""
    import guide_data

    packed = data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1)
    with on_disk(packed, "x.tar.gz") as path:
        return guide_data.untar(path, {"data_batch_1.bin", "test_batch.bin"})


@cache
def _weights() -> tuple[bytes, ...]:
    import numpy as np
    from guide_report import npz_bytes, safetensors_bytes

    rng = np.random.default_rng(0)
    arrays = {"layer1.weight": rng.random((4, 3), np.float32),
              "layer1.bias": rng.random(4).astype(np.float32),
              "layer1.scale": np.float32(0.5).reshape(()),
              "q": np.arange(-3, 3, dtype=np.int8)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    plain = io.BytesIO()
    np.save(plain, arrays["layer1.weight"])
    objects = io.BytesIO()
    np.save(objects, np.array([{}, print], dtype=object), allow_pickle=True)
    return (safetensors_bytes(arrays), npz_bytes(arrays), packed.getvalue(), plain.getvalue(),
            objects.getvalue())


@_row(_weights, _data, pure=False, allowed=("compile",))  # NumPy reads a header as literals
def weights(data: bytes) -> object:
    """Weights, as .safetensors and as .npz."""
    import guide_quantize as q

    out = []
    for suffix in (".safetensors", ".npz"):
        with on_disk(data, f"weights{suffix}") as path:
            try:
                found = q.read_weights(path)
            except _data():
                continue
            for array in found.values():
                assert array.dtype.kind in "fiu" and array.nbytes <= q.LIMIT
            out.append(found)
    return out


# **** JSON ****


@cache
def _reports() -> tuple[bytes, ...]:
    return ((ROOT / "tests/recorded/bench.json").read_bytes(),)


@_row(_reports)
def bench_report(data: bytes) -> object:
    """What `tgx bench --show` prints again."""
    import argparse
    from contextlib import redirect_stdout

    from tgx import safe
    from tgx.commands import bench

    report = bench.read(data, "report.json")
    for choice in ({}, {"markdown": True}, {"json": True}):
        out = io.StringIO()
        options = argparse.Namespace(**{"json": False, "markdown": False, **choice})
        with redirect_stdout(out):
            bench.show(options, report)
        assert not re.search(f"[{safe.UNSEEN}]", out.getvalue())
    return report


# **** what looks like Python ****


EXPRESSIONS = (
    b"(x*x + x).sum()\nx=2.0", b"tanh(w @ x.T + b).relu().mean()\nw=[[1.0,2.0]]\nx=rand(3, 2)\n"
    b"b=0.5", b"x[0, 1:2].softmax(axis=-1).log().sum()\nx=[[1.0, 2.0], [3.0, 4.0]]",
    b"x.reshape(2, 2).pad(((1, 1), (0, 0))).max()\nx=ones(4)", b"-x ** 2 / 3 < 1\nx=1e3",
    b"x.cast('half').sum()\nx=2",
)  # fmt: skip


@_row(lambda: EXPRESSIONS, pure=False, allowed=(
    "exec", "compile", "code.__new__", "import", "open", "os.rename", "os.remove", "os.mkdir",
    "ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function",
    "pickle.find_class"))  # of tinygrad's own cache
def expression(data: bytes) -> object:
    """`tgx backward`'s expression. Its values become tensors, for which the device compiles kernels
    and keeps them; that the text itself is never run: `test_an_expression_runs_no_code`."""
    from tgx.adapter.expression import Expression

    first, *bindings = text(data).replace("\0", "").split("\n")
    made = Expression(first, bindings[:4])
    made.parameters()
    return made.compute()


@cache
def _kernels() -> tuple[bytes, ...]:
    from tinygrad import Tensor
    from tinygrad.uop.ops import Ops

    from tgx.adapter.extract import text_of

    x, w = Tensor.empty(4, 8), Tensor.empty(8, 3)
    code = []
    for t in ((x @ w).relu(), x.exp().sum(axis=1), x.cast("half").max()):
        for call in t.schedule_linear().src:
            if call.src[0].op is Ops.SINK:
                code.append(text_of(call.src[0]).encode())
    return tuple(code)


@_row(_kernels, pure=False, allowed=("compile",))  # to a tree; to run one is not allowed
def kernel_code(data: bytes) -> object:
    """A kernel's code out of a trace, which `tgx extract` writes into a script."""
    from tgx.adapter.extract import checked

    return checked(text(data), "kernel 0")


# **** edits ****

TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e308", b"-1", b"0", b"1", b"2",
    b"3", b"-0.0", b"7", b"255", b"65536", b"2147483648", b"9223372036854775807",
    b"-9223372036854775808", b"18446744073709551616", b"1" + b"0" * 400, b"9" * 5_000, b"null",
    b"true", b'""', b"''", b"[]", b"{}", b"[[]]", b"[-1]", b"[0]", b"[0,0]", b"[[0]]", b'["a"]',
    b'{"words":["a"],"at":[9]}', b'{"delta":[0,0,0,-1]}', b'{"back":[[1]]}', b"[" * 400,
    b"(" * 400, b'{"a":' * 300, b'"\\ud800"', b'"\\u0000\\u001b[2J\\u202e"', b"\x00", b"\xff\xfe",
    b"\x1b[31m", b"\r", b"\n", b"\t", b" " * 2_000, b"a" * 70_000, b'"' + b"x" * 70_000 + b'"',
    b"../../x", b"__import__('os').system('x')", b"{0.__class__}", b"1_000", b"0x10", b"\xc2\x85",
    b"\xe2\x80\xae", b"1.2.3", b"(cos\nsystem\n(S'x'\ntR.", b"<script>", b"${x}", b"%s%n", b"**",
    b"*** CUDA 1 r arg 1 mem 0 GB tm 1us/ 1ms (1 GFLOPS 1|1 GB/s)", b"inf", b"nan", b"2024-01-01",
)  # fmt: skip
"""Words that confuse parsers; an edit puts one in a word's place."""

EDITS = ("token", "number", "text", "insert", "flip", "byte", "cut", "delete", "repeat", "splice",
         "swap", "word", "much")  # fmt: skip
Edit = tuple[str, int, int]
_NUMBER = re.compile(rb"(?<=[:,\[ =])-?\d+(?:\.\d+)?(?=[,\]} \n])")
_TEXT = re.compile(rb'(?<=[:,\[= ])"(?:[^"\\\n]|\\.)*"')
_WORD = re.compile(rb"-?\d+(?:\.\d+)?|\"(?:[^\"\\\n]|\\.)*\"|[A-Za-z_]\w*|[\[\]{}():,=]")


@cache
def _texts() -> tuple[bytes, ...]:
    import poison

    words = ("", "CONST", "BUFFER", "ADD", "backward", "forward", "optimizer", "lazy", "graph",
             "copy", "input", "expression", "×", "LOG2", "W", "unknown", "∂w: x", "float16", "nan")
    return tuple(json.dumps(word).encode() for word in (*words, *poison.EVIL.values()))


def mutated(seeds: Sequence[bytes], which: int, edits: Sequence[Edit]) -> bytes:
    """A seed, edited: `(kind, where, what)`, the numbers of any size."""
    data = seeds[which % len(seeds)]
    for kind, where, what in edits:
        at = where % (len(data) + 1)
        if kind in ("token", "word"):
            start = max(0, at - 50_000)  # words near by: those of a long file take long to find
            words = [m.span() for m in _WORD.finditer(data, start, at + 200)][-40:]
            a, b = words[what % len(words)] if words else (at, at)
            token = TOKENS[what // 40 % len(TOKENS)]
            if kind == "word":  # another word of the same file
                c, d = words[where % len(words)] if words else (0, 0)
                token = data[c:d]
            data = data[:a] + token + data[b:]
        elif kind in ("number", "text"):  # of the same type: what is wrong then is what it means
            form = _NUMBER if kind == "number" else _TEXT
            start = max(0, at - 2_000)
            found = [m.span() for m in form.finditer(data, start, at + 2_000)]
            if found:
                a, b = found[what % len(found)]
                put = (b"%d" % (what // 64 % 14 - 2) if kind == "number"
                       else _texts()[what // 64 % len(_texts())])
                data = data[:a] + put + data[b:]
        elif kind == "insert":
            data = data[:at] + TOKENS[what % len(TOKENS)] + data[at:]
        elif kind in ("flip", "byte"):
            if at < len(data):
                byte = data[at] ^ 1 << what % 8 if kind == "flip" else what % 256
                data = data[:at] + bytes([byte]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "delete":
            data = data[:at] + data[at + what % 64 + 1 :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + what % 256] * 3 + data[at + what % 256 :]
        elif kind == "splice":
            other = seeds[what % len(seeds)]
            data = data[:at] + other[where * 7919 % (len(other) + 1) :]
        elif kind == "swap":
            n = what % 64 + 1
            data = data[:at] + data[at + n : at + 2 * n] + data[at : at + n] + data[at + 2 * n :]
        elif kind == "much":
            data = data[:at] + data[at : at + what % 12] * 3_000 + data[at:]
        data = data[: 1 << 20]
    return data


# **** one attempt ****


@dataclass(frozen=True)
class Outcome:
    """`bug` says what a file did that it should not; "" if nothing."""

    bug: str
    seconds: float
    refused: bool


def warm(form: Format) -> None:
    """Parse the seeds once, unguarded: modules that are loaded when first needed are there then."""
    for name in ("utf-16-be", "utf-32-be", "utf-16-le", "utf-32-le", "raw_unicode_escape",
                 "unicode_escape", "utf-8-sig", "idna"):
        "x".encode(name)
    for seed in form.seeds():
        try:
            form.parse(seed)
        except form.errors():
            pass


def attempt(form: Format, data: bytes, seconds: float = SECONDS) -> Outcome:
    """Parse under guard. Every error that is not the format's own is a bug."""
    import traceback

    def late(*_: object) -> None:
        raise TooSlow

    main = threading.current_thread() is threading.main_thread()
    began = time.process_time()
    bug, refused = "", False
    if main:
        before = signal.signal(signal.SIGPROF, late)
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        try:
            with guarded(form.allowed):
                form.parse(data)
        finally:
            if main:
                signal.setitimer(signal.ITIMER_PROF, 0)
    except TooSlow:
        bug = f"took more than {seconds:g} s of CPU"
    except Forbidden as error:
        bug = f"did {error}"
    except form.errors() as error:
        refused = True
        if len(str(error)) > 20_000:
            bug = f"an error of {len(str(error)):,} characters"
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
        place = ours[-1] if ours else where
        bug = (f"{type(error).__name__}: {str(error)[:200]} at "
               f"{Path(place.filename).name}:{place.lineno} {place.line}")  # fmt: skip
    finally:
        if main:
            signal.signal(signal.SIGPROF, before)
    if not bug and _guard.seen:
        bug = f"did {_guard.seen[0]}, and hid it"
    return Outcome(bug, time.process_time() - began, refused)


# **** bombs: tried in a child, with limits ****


def _bomb_trace(record: str) -> bytes:
    return b'{"record":"tgx-trace","schema":1}\n' + record.encode() + b"\n"


def _bundle(raw: bytes) -> bytes:
    packed = base64.b64encode(zlib.compress(raw, 9)).decode()
    return _bomb_trace(json.dumps({"record": "bundle", "size": len(raw), "data": packed}))


def _graph(columns: str) -> bytes:
    return b'{"record":"graphs","id":0,"kind":"lazy",' + columns.encode() + b"}"


def _sections(count: int, name: bytes, symbols: int = 0) -> bytes:
    """An ELF of many sections that share one long name."""
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<H", head, 18, 190)
    table = struct.pack("<24s", b"\0\0\0\0") * symbols
    names = b"\0" + b".text." + name + b"\0"
    at = 64 + len(names) + len(table)
    struct.pack_into("<Q", head, 40, at)
    struct.pack_into("<HHH", head, 58, 64, count, 0)
    row = struct.pack("<IIQQQQIIQQ", 1, 1, 4, 0, 64, len(names), 0, 0, 0, 0)
    first = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(names), 0, 0, 0, 0)
    rows = [first, *[row] * (count - 1)]
    if symbols:
        table = struct.pack("<I20s", 1, b"") * symbols
        rows[1] = struct.pack("<IIQQQQIIQQ", 1, 2, 0, 0, 64 + len(names), len(table), 1, 0, 0, 24)
        rows[1] = struct.pack("<IIQQQQIIQQ", 1, 2, 0, 0, 64 + len(names), len(table), 2, 0, 0, 24)
        rows[2] = first
    return bytes(head) + names + table + b"".join(rows)


def _npz(size: int, shape: str = "") -> bytes:
    out = io.BytesIO()
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape or size},), }}"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made, \
            made.open("layer1.weight.npy", "w") as file:
        file.write(head)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return out.getvalue()


def _safetensors(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def _gz(size: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0) as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return out.getvalue()


def _pax_bomb() -> bytes:
    """A tar whose first header says that the next 300 megabytes are its comment."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 300 * MB
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(info.tobuf())]
    parts += [packer.compress(bytes(MB)) for _ in range(300)]
    return b"".join([*parts, packer.flush()])


MB = 1 << 20
DEEP = 1_000_000
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    # name -> (format, file); what a file is, never more than about ten megabytes
    "trace: nested a million deep": ("trace", lambda: _bomb_trace("[" * DEEP)),
    "trace: a million open objects": ("trace", lambda: _bomb_trace('{"a":' * DEEP)),
    "trace: ten megabytes in a name": ("trace", lambda: _bomb_trace(json.dumps(
        {"record": "kernels", "id": 0, "name": "W" * 10 * MB}))),
    "trace: megabytes of hidden marks": ("trace", lambda: _bomb_trace(json.dumps(
        {"record": "kernels", "id": 0, "name": "\u202e" * MB}, ensure_ascii=False))),
    "trace: sixty megabytes of brackets in a bundle": ("trace", lambda: _bundle(
        _graph('"ops":["A"],"srcs":[' + "[]," * (20 * MB) + "[]]"))),
    "trace: half a gigabyte of brackets in a bundle": ("trace", lambda: _bundle(
        _graph('"ops":["A"],"srcs":[' + "[]," * (150 * MB) + "[]]"))),
    "trace: half a gigabyte of zeros in a bundle": ("trace", lambda: _bundle(bytes(500 * MB))),
    "trace: half a gigabyte of line ends in a bundle": ("trace", lambda: _bundle(
        b"\n" * (500 * MB))),
    "trace: one long word a million times": ("trace", lambda: _bundle(_graph(
        '"ops":{"words":["' + "W" * MB + '"],"at":[' + "0," * MB + "0]}"))),
    "trace: a million loops inside each other": ("trace", lambda: _bundle(
        b'{"record":"programs","id":0,"name":"p","loops":['
        + b'{"name":"i","size":"2","kind":"loop"},' * 300_000
        + b'{"name":"i","size":"2","kind":"loop"}]}\n{"record":"kernels","id":0,"name":"k",'
        b'"program":0}')),
    "trace: a number of a million digits": ("trace", lambda: _bomb_trace(
        '{"record":"files","id":' + "9" * DEEP + ',"path":"x"}')),
    "trace: a chain of a hundred thousand gradients": ("trace", lambda: _bundle(b"\n".join(
        b'{"record":"origins","id":%d,"op":"x","phase":"backward","forward":%d}' % (i, i + 1)
        for i in range(100_000)) + b'\n{"record":"origins","id":100000,"op":"x"}')),
    "log: ten megabytes of escapes": ("debug_log", lambda: b"\x1b[" * (5 * MB)),
    "log: a launch of blanks": ("debug_log", lambda: b"*** CUDA 1 r" + b" " * (10 * MB)),
    "log: launches of blanks": ("debug_log", lambda: (
        b"*** CUDA 1 r" + b" " * 60_000 + b"\n") * 160),
    "log: attributes of a kernel": ("debug_log", lambda: (
        b"*** C 1 k arg 1 mem 0.1 GB\nvoid " + b"__attribute__((a)) " * 60 + b"!\n")),
    "log: many attributes": ("debug_log", lambda: (
        b"void " + b"__attribute__((a)) " * 3_000 + b"!\n") * 150),
    "log: options that do not end": ("debug_log", lambda: (
        b"r opts: (" + b"Opt(op=OptOps.A, axis=1, arg=" * 2_000 + b")\n") * 150),
    "log: ten megabytes of line ends": ("debug_log", lambda: b"\n" * (10 * MB)),
    "log: ten megabytes of code": ("debug_log", lambda: b"typedef x;\n" * MB),
    "log: twenty thousand kernels": ("debug_log", lambda: b"".join(
        b"*** CUDA %d r_%d arg 1 mem 0.1 GB tm 1.0us/ 1.0ms ( 1 GFLOPS 1|1 GB/s)\n" % (i, i)
        for i in range(20_000))),
    "profile: nested a hundred thousand deep": ("profile", lambda: b"a = " + b"[" * 100_000),
    "profile: inline tables inside each other": ("profile", lambda: b"a = " + b"{a=" * 100_000),
    "profile: a key of a million parts": ("profile", lambda: b"a." * DEEP + b"a = 1"),
    "profile: a million tables": ("profile", lambda: b"".join(
        b"[a%d]\n" % i for i in range(500_000))),
    "profile: a number of a million digits": ("profile", lambda: b"schema = " + b"9" * DEEP),
    "cubin: every section has the longest name": ("cubin", lambda: _sections(65_535, b"k" * 4_000)),
    "cubin: four hundred thousand symbols": ("cubin", lambda: _sections(3, b"k" * 4_000, 400_000)),
    "tegrastats: a line of ten megabytes": ("tegrastats", lambda: b"RAM 1" + b"2" * (10 * MB)),
    "tegrastats: words": ("tegrastats", lambda: b"GR3D_FREQ " * MB),
    "tegrastats: blanks": ("tegrastats", lambda: b"GR3D_FREQ" + b" " * (10 * MB) + b"x"),
    "nvpmodel: blanks behind a mode": ("nvpmodel", lambda: (
        b"NV Power Mode: a" + b" " * (10 * MB) + b"b")),
    "nvpmodel: a mode of words": ("nvpmodel", lambda: b"NV Power Mode: " + b"a " * (5 * MB)),
    "idx: a gigabyte in a megabyte of gzip": ("idx", lambda: _gz(1 << 30)),
    "idx: more than is allowed, in gzip": ("idx", lambda: _gz(300 * MB)),
    "idx: a gigabyte in xz": ("idx", lambda: lzma.compress(bytes(1 << 30), preset=0)),
    "idx: four billion images": ("idx", lambda: struct.pack(
        ">4B3I", 0, 0, 8, 3, 2**32 - 1, 28, 28)),
    "idx: four billion labels": ("idx", lambda: struct.pack(">4BI", 0, 0, 8, 1, 2**32 - 1)),
    "iris: a cell of ten megabytes": ("iris", lambda: b"a,b,c,d,e\n" + b"1" * (10 * MB)),
    "iris: a million columns": ("iris", lambda: b"1," * (5 * MB)),
    "iris: five million rows": ("iris", lambda: b"a,b,c,d,e\n" + b"1,\n" * (3 * MB)),
    "cifar: a memo of four billion": ("cifar", lambda: b"\x80\x02]r\xff\xff\xff\x7f."),
    "cifar: ten million marks": ("cifar", lambda: b"\x80\x02" + b"(" * (10 * MB) + b"."),
    "cifar: lists inside lists": ("cifar", lambda: (
        b"\x80\x02" + b"]" * MB + b"a" * (MB - 1) + b".")),
    "cifar: a string of two gigabytes": ("cifar", lambda: b"\x80\x02X\xff\xff\xff\x7fx."),
    "cifar: a number of ten megabytes": ("cifar", lambda: (
        b"\x80\x02\x8b" + struct.pack("<I", 9 * MB) + b"\x01" * (9 * MB) + b".")),
    "cifar: a number in a million digits": ("cifar", lambda: b"L" + b"9" * DEEP + b"L\n."),
    "archive: 300 megabytes of header": ("archive", _pax_bomb),
    "archive: a gigabyte": ("archive", lambda: _gz(1 << 30)),
    "weights: two gigabytes in an npz": ("weights", lambda: _npz(1_900 * MB)),
    "weights: a shape of 10^18": ("weights", lambda: _npz(1 << 20, "1" + "0" * 18)),
    "weights: a header of two to the sixty": ("weights", lambda: (
        struct.pack("<Q", 1 << 60) + b"{}")),
    "weights: a header nested a million deep": ("weights", lambda: _safetensors(
        b'{"a":' * DEEP)),
    "weights: a hundred thousand tensors, all of the file": ("weights", lambda: _safetensors(
        b"{" + b",".join(b'"t%d":{"dtype":"U8","shape":[4194304],"data_offsets":[0,4194304]}' % i
                         for i in range(60_000)) + b"}", bytes(4 * MB))),
    "bench: nested a million deep": ("bench_report", lambda: b"[" * DEEP),
    "bench: ten megabytes of numbers": ("bench_report", lambda: b"[" + b"1," * (5 * MB) + b"1]"),
    "expression: minus ten thousand times": ("expression", lambda: b"-" * 9_990 + b"x\nx=1.0"),
    "expression: parentheses": ("expression", lambda: (
        b"(" * 4_000 + b"x" + b")" * 4_000 + b"\nx=1.0")),
    "expression: a list of a billion": ("expression", lambda: b"x[[0]*1000000000]\nx=[1.0]"),
    "expression: a string of a billion": ("expression", lambda: (
        b"x.cast('half'*1000000000)\nx=1.0")),
    "expression: a tensor of 10^12": ("expression", lambda: b"x.sum()\nx=zeros(1000000, 1000000)"),
    "expression: 10^12 by broadcasting": ("expression", lambda: (
        b"x.expand(1000000, 1000000).contiguous().sum()\nx=1.0")),
    "expression: powers of powers": ("expression", lambda: b"x ** 9999999999\nx=1.5"),
    "expression: numbers that grow": ("expression", lambda: (
        b"x * " + b"*".join([b"9" * 400] * 20) + b"\nx=1.0")),
    "expression: split into a million": ("expression", lambda: (
        b"x.split(1)[0].sum()\nx=zeros(3000000)")),
    "kernel: parentheses": ("kernel_code", lambda: b"ast = " + b"(" * 50_000),
    "kernel: a megabyte of minus": ("kernel_code", lambda: b"ast = " + b"-" * (MB - 10) + b"1"),
    "kernel: attributes": ("kernel_code", lambda: b"ast = UOp" + b".sum" * 200_000),
}  # fmt: skip


def explode(name: str, seconds: float = 60.0, memory: int = MEMORY) -> tuple[str, float, int]:
    """Try one of BOMBS in a child. (What went wrong or "", its seconds of CPU, its peak in MB.)"""
    form, make = BOMBS[name]
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(make())
    try:
        done = subprocess.run(
            [sys.executable, __file__, form, file.name, str(memory), str(int(seconds) + 1)],
            capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    finally:
        Path(file.name).unlink()
    if done.returncode or not done.stdout.startswith("{"):
        return (f"ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}", -1.0, -1)
    told = json.loads(done.stdout)
    return told["bug"], told["seconds"], told["megabytes"]


def _child(form: str, path: str, memory: str, seconds: str) -> None:
    warm(FORMATS[form])
    data = Path(path).read_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(seconds), used + int(seconds) + 2))
    found = attempt(FORMATS[form], data, float(seconds))
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's, from the fork
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10  # type: ignore[index]
    print(json.dumps({"bug": found.bug, "seconds": found.seconds, "megabytes": peak}))


if __name__ == "__main__":
    _child(*sys.argv[1:])
