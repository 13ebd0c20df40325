"""Runs hand-written kernels between pages that may not be touched: `python tests/guarded.py`.

A program of its own, because a kernel that reads or writes past a buffer ends it, on the spot. For
every kernel it prints a line before (so the guilty one is the last) and one after, with the error
against the reference and whether running the chunks backwards gave the same bits.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
from array import array
from importlib import import_module
from types import SimpleNamespace

import numpy as np

from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.kernels import lesson as lessons

LESSONS = ("gemm", "conv", "softmax", "layernorm", "adam")
# odd ones, with edges in every direction; and what is too large for one chunk or one block
SHAPES = {
    "gemm": [(13, 21, 37), (1, 1, 1), (133, 260, 70)],
    "conv": [(2, 3, 11, 5, 7), (1, 1, 1, 1, 1), (3, 4, 17, 14, 14)],
    "softmax": [(5, 77), (3, 1), (40, 1000)],
    "layernorm": [(5, 77), (3, 1), (40, 1000)],
    "adam": [(1003,), (1,), (12345,)],
}
libc = ctypes.CDLL(None, use_errno=True)
_kept: list[mmap.mmap] = []


def guarded(x: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of x that ends, or begins, right at a page that may not be touched."""
    page, size = mmap.PAGESIZE, x.nbytes
    body = -(-size // page) * page
    memory = mmap.mmap(-1, body + 2 * page)
    _kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + page + body):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (body - size if at_end else 0)
    copy = np.frombuffer(memory, x.dtype, x.size, offset).reshape(x.shape)
    copy[...] = x
    return copy


def run(kernel: lessons.Kernel, buffers: list[np.ndarray], chunks: list[int]) -> None:
    loaded = Loaded(lessons.compiler().compile(kernel.text), (kernel.name,))
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(loaded.address[kernel.name])
    words = array("q", [b.ctypes.data for b in buffers])
    for chunk in chunks:
        call(words.buffer_info()[0], chunk)


def check(name: str, version: str, shape: tuple[int, ...]) -> dict[str, object]:
    lesson = import_module(f"tgx.kernels.{name}").LESSON
    kernel = lesson.build(shape, version)
    wanted = lesson.reference(*[b.copy() for b in lesson.make(shape)])
    results = []
    for at_end in (True, False):
        buffers = [guarded(b, at_end) for b in lesson.make(shape)]
        inputs = [b.copy() for b in buffers[lesson.outputs :]]
        order = list(range(kernel.chunks))
        run(kernel, buffers, order if at_end else order[::-1])
        assert all(
            np.array_equal(a, b) for a, b in zip(inputs, buffers[lesson.outputs :], strict=True)
        )
        results.append([b.copy() for b in buffers[: lesson.outputs]])
    size = [max(1.0, float(np.abs(w).max())) for w in wanted]
    error = max(
        float(np.abs(x - w).max()) / s for x, w, s in zip(results[0], wanted, size, strict=True)
    )
    same = all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    return {"error": error, "same": same, "chunks": kernel.chunks}


def narrower(vector_bytes: int) -> None:
    """From here on, kernels for vectors of that many bytes; they run here all the same."""
    host = TGXCompiler()
    stand_in = SimpleNamespace(
        vector_bytes=vector_bytes, architecture=host.architecture, compile=host.compile
    )
    lessons.compiler = lambda: stand_in  # type: ignore[assignment]
    lessons._written.clear()


def main() -> None:
    todo = [
        (name, version.name, shape)
        for name in LESSONS
        for version in import_module(f"tgx.kernels.{name}").LESSON.versions
        for shape in SHAPES[name]
        # the naive versions have no edges to get wrong, and the large shapes are for the last
        if shape == SHAPES[name][0] or version is import_module(f"tgx.kernels.{name}").LESSON.best
    ]
    for width in (0, 32, 16):
        if width:
            narrower(width)
            todo = [t for t in todo if t[2] == SHAPES[t[0]][0] and t[1] == "threaded"]
        for name, version, shape in todo:
            case = {"lesson": name, "version": version, "shape": shape, "width": width}
            print(json.dumps(case), flush=True)
            print(json.dumps({**case, **check(name, version, shape)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
