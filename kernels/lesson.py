"""What the kernels of this room share: a version, a lesson, running one, timing all.

A lesson is one problem, a NumPy reference and a list of versions, each a small step beyond the one
before, with a sentence on what the step should gain. `main` prints what it did gain, here and now,
beside NumPy and beside the kernel that the device generates by itself.
"""

from __future__ import annotations

import functools
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import dtypes
from tinygrad.engine.realize import compile_linear
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import KernelInfo, Ops, UOp

from tgx.devices import threads
from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.devices.graph import TGXGraph
from tgx.devices.record import PathRecord
from tgx.kernels.ir import Code

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """Finished IR, and into how many chunks its work is cut: by shape alone, never by threads."""

    name: str
    text: str
    chunks: int = 1


@dataclass(frozen=True)
class Version:
    """One step of a lesson: `write(code, shape)` writes the kernel and gives its chunk count."""

    name: str
    why: str
    write: Callable[[Code, Shape], int]


@dataclass(frozen=True)
class Lesson:
    """A problem and its solutions."""

    name: str
    buffers: str  # in call order; those written first
    outputs: int
    versions: tuple[Version, ...]
    make: Callable[[Shape], list[np.ndarray]]  # the buffers before a call, from a fixed seed
    reference: Callable[..., tuple[np.ndarray, ...]]  # buffers -> what the outputs should be
    generated: Callable[..., tuple[Tensor, ...]]  # the same in tinygrad, as the device compiles it
    numpy: Callable[..., object]  # the same, the way one would write it in NumPy
    work: Callable[[Shape], float]  # operations, or bytes moved
    unit: str  # GFLOP/s or GB/s
    shapes: tuple[Shape, ...]  # to measure
    in_place: bool = False  # the outputs are inputs too

    @property
    def best(self) -> Version:
        return self.versions[-1]

    def build(self, shape: Shape, version: str = "") -> Kernel:
        """The kernel of one version, the last if none is named, for one shape."""
        found = next((v for v in self.versions if v.name == version), None)
        if version and found is None:
            raise KeyError(
                f"{self.name} has no version {version!r}; it has "
                f"{', '.join(v.name for v in self.versions)}"
            )
        return written(self, found or self.best, shape)


@functools.cache
def compiler() -> TGXCompiler:
    return TGXCompiler()


def registers() -> int:
    """Vector registers: what a tile of accumulators has to fit in."""
    return 32 if compiler().vector_bytes == 64 or compiler().architecture == "arm64" else 16


_written: dict[tuple, Kernel] = {}


def written(lesson: Lesson, version: Version, shape: Shape) -> Kernel:
    key = (lesson.name, version.name, shape)
    if key not in _written:
        name = "_".join([lesson.name, version.name, *map(str, shape)])
        code = Code(name, lesson.buffers, compiler().vector_bytes // 4)
        chunks = version.write(code, shape)
        _written[key] = Kernel(name, code.text(), chunks)
    return _written[key]


# ***************************** running one by itself *****************************


class Runner:
    """A compiled kernel and its arguments, ready to be called again and again."""

    def __init__(self, kernel: Kernel, buffers: Sequence[np.ndarray]) -> None:
        self.kernel, self.buffers = kernel, buffers
        self.loaded = Loaded(compiler().compile(kernel.text), (kernel.name,))
        self.words = array("q", [b.ctypes.data for b in buffers])
        self.job = array(
            "q", [self.loaded.address[kernel.name], self.words.buffer_info()[0], kernel.chunks]
        )

    def __call__(self) -> None:
        threads.run(self.job.buffer_info()[0], 1, shared=self.kernel.chunks > 1)


# ***************************** calling one from tinygrad *****************************


def call(
    lesson: Lesson,
    shape: Shape,
    *tensors: Tensor,
    version: str = "",
    gradient: Callable[..., tuple] | None = None,
) -> list[Tensor]:
    """Runs a kernel on tensors of the device TGX, through `Tensor.custom_kernel`.

    tinygrad is handed a kernel of a few UOps: each input read at 0, each output written at 0, and
    between them a CUSTOM node with the finished IR. From that it knows who depends on whom; the
    renderer takes the text as it stands. The contraction compiler hands in its kernels likewise.
    """
    for t in tensors:
        if str(t.device).split(":")[0] != "TGX" or t.dtype is not dtypes.float32:
            raise ValueError(
                f"tgx.kernels work on float32 tensors of the device TGX, this one is "
                f"{t.dtype} on {t.device}: use .to('TGX') or .cast('float32')"
            )
    kernel = lesson.build(shape, version)
    record = PathRecord("hand", tile=f"{lesson.name}: {version or lesson.best.name}")

    def sink(*params: UOp) -> UOp:
        zero = UOp.const(0, dtypes.weakint)
        places = [p.flatten().index(zero) for p in params]
        chunk = (
            ()
            if kernel.chunks == 1
            else (UOp.variable("core_id", 0, kernel.chunks - 1, dtypes.int, param=True),)
        )
        code = UOp(
            Ops.CUSTOM,
            dtypes.float32,
            tuple(p.load() for p in places) + chunk,
            record.line() + "\n" + kernel.text,
        )
        work = lesson.work(shape)
        moved = 4 * sum(p.numel() for p in params)
        info = KernelInfo(
            name=kernel.name,
            opts_to_apply=(),
            estimates=Estimates(
                ops=int(work) if lesson.unit == "GFLOP/s" else moved // 4, lds=moved, mem=moved
            ),
        )
        sunk = UOp.sink(*[p.store(code) for p in places[: lesson.outputs]], arg=info)
        return sunk.rtag(1)  # nothing to optimize, and the estimates stay

    return tensors[0].custom_kernel(*tensors[1:], fxn=sink, grad_fxn=gradient)


# ***************************** the benchmark *****************************


def best_time(action: Callable[[], object], seconds: float = 0.25) -> float:
    """The shortest of many runs: what the code takes when nobody else is on the machine."""
    action()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def measure(lesson: Lesson, shape: Shape, seconds: float = 0.25) -> dict[str, float]:
    """Seconds for each version, for NumPy, and for the device's generated kernel."""
    buffers = lesson.make(shape)
    inputs = buffers[0 if lesson.in_place else lesson.outputs :]
    actions: dict[str, Callable[[], object]] = {
        v.name: Runner(lesson.build(shape, v.name), lesson.make(shape)) for v in lesson.versions
    }
    actions |= {
        "NumPy": lambda: lesson.numpy(*inputs),
        "generated": generated(lesson, [Tensor(b, device="TGX").realize() for b in inputs]),
    }
    return {
        name: min(best_time(action, seconds / 2) for _ in range(2))
        for name, action in actions.items()
    }


def generated(lesson: Lesson, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """What the device makes of the same problem by itself, without tinygrad's own time per call:
    the finished kernels as one list of jobs."""
    linear = compile_linear(Tensor.schedule_linear(*lesson.generated(*tensors)))
    graph = TGXGraph(UOp(Ops.CUSTOM_FUNCTION, src=(linear,), arg="graph"))
    return functools.partial(graph, (), {})


def main(lesson: Lesson, seconds: float = 0.25) -> None:
    """`python -m tgx.kernels.NAME`: every step, what it should gain, and what it gains here."""
    for shape in lesson.shapes:
        times, before = measure(lesson, shape, seconds), None
        print(
            f"\n{lesson.name} {' × '.join(map(str, shape))}: {lesson.unit}, best of many runs, "
            f"{threads.worker_count() + 1} threads for the last step"
        )
        for version in lesson.versions:
            rate, time_ = lesson.work(shape) / times[version.name] / 1e9, times[version.name]
            step = f"×{before / time_:.1f}" if before else ""
            print(f"{rate:9.2f}  {step:>6}  {version.name}: {version.why}")
            before = time_
        for name in ("NumPy", "generated"):
            print(f"{lesson.work(shape) / times[name] / 1e9:9.2f}  {'':>6}  {name}")
