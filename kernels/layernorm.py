"""Layer normalisation: each row minus its mean, over its standard deviation, times w plus b.

    python -m tgx.kernels.layernorm

Five operations an element: memory decides, 8 bytes an element (w and b stay in the cache). The
lesson is about sums: a single chain of additions takes four cycles an element, whatever the
memory could do; and the mean must be known before the variance, or must it?
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor

from tgx.kernels.ir import Buffer, Code, Value, Variable, pieces
from tgx.kernels.lesson import Lesson, Shape, Version, call, main

EPSILON = 1e-5
AT_ONCE = 4


def naive(k: Code, shape: Shape) -> int:
    rows, n = shape
    y, x, w, b = k.buffers
    with k.loop(0, rows) as i:
        total, squares = Variable(k, k.splat(0, 1)), Variable(k, k.splat(0, 1))
        with k.loop(0, n) as j:
            total.set(total.get() + x.load(i * n + j))
        mean = total.get() / n
        with k.loop(0, n) as j:
            d = x.load(i * n + j) - mean
            squares.set(squares.get() + d * d)
        deviation = k.call("sqrt", squares.get() / n + EPSILON)
        with k.loop(0, n) as j:
            y.store(i * n + j, (x.load(i * n + j) - mean) / deviation * w.load(j) + b.load(j))
    return 1


def row(k: Code, buffers: list[Buffer], at: Value, n: int, at_once: int) -> None:
    """One row in three passes, `at_once` vectors at a time."""
    _y, x, _w, _b = buffers
    runs = pieces(n, k.lanes, at_once)

    def summed(term) -> Value:
        totals = [Variable(k, k.splat(0, k.lanes)) for _ in range(at_once)]
        for run in runs:
            with k.loop(run.start, run.stop, run.step) as j:
                for v, (offset, mask) in enumerate(run.vectors(k)):
                    old = totals[v].get()
                    new = term(x.load(at + j + offset, k.lanes, mask), old)
                    totals[v].set(k.keep(mask, new, old))
        total = totals[0].get()
        for other in totals[1:]:
            total = total + other.get()
        return k.total(total)

    mean = k.splat(summed(lambda z, total: total + z) * (1 / n), k.lanes)

    def square(z: Value, total: Value) -> Value:
        d = z - mean
        return k.fma(d, d, total)

    normalize(k, buffers, at, runs, mean, summed(square) * (1 / n))


def normalize(
    k: Code, buffers: list[Buffer], at: Value, runs: list, mean: Value, variance: Value
) -> None:
    """The last pass: one multiply-add with a row's scale, one with w and b."""
    y, x, w, b = buffers
    scale = k.splat(k.splat(1, 1) / k.call("sqrt", variance + EPSILON), k.lanes)
    for run in runs:
        with k.loop(run.start, run.stop, run.step) as j:
            for offset, mask in run.vectors(k):
                place = j + offset
                z = (x.load(at + place, k.lanes, mask) - mean) * scale
                z = k.fma(z, w.load(place, k.lanes, mask), b.load(place, k.lanes, mask))
                y.store(at + place, z, mask)


def one_pass(k: Code, buffers: list[Buffer], at: Value, n: int) -> None:
    """Mean and variance from one pass: sums of d and d², d being the distance to the row's first
    element. Without that shift, E[x²] - E[x]² loses every digit of a row far from 0."""
    _y, x, _w, _b = buffers
    runs = pieces(n, k.lanes, AT_ONCE)
    origin = x.load(at)
    shift = k.splat(origin, k.lanes)
    sums = [
        (Variable(k, k.splat(0, k.lanes)), Variable(k, k.splat(0, k.lanes))) for _ in range(AT_ONCE)
    ]
    for run in runs:
        with k.loop(run.start, run.stop, run.step) as j:
            # the last step may have fewer vectors than there are sums
            for (total, squares), (offset, mask) in zip(sums, run.vectors(k), strict=False):
                d = k.keep(mask, x.load(at + j + offset, k.lanes, mask) - shift, 0)
                total.set(total.get() + d)
                squares.set(k.fma(d, d, squares.get()))
    total, squares = sums[0][0].get(), sums[0][1].get()
    for more, more_squares in sums[1:]:
        total, squares = total + more.get(), squares + more_squares.get()
    distance = k.total(total) * (1 / n)
    variance = k.total(squares) * (1 / n) - distance * distance
    variance = k.call("maximum", variance, k.splat(0, 1))
    normalize(k, buffers, at, runs, k.splat(origin + distance, k.lanes), variance)


def lanes(k: Code, shape: Shape) -> int:
    with k.loop(0, shape[0]) as i:
        row(k, k.buffers, i * shape[1], shape[1], 1)
    return 1


def chains(k: Code, shape: Shape) -> int:
    with k.loop(0, shape[0]) as i:
        row(k, k.buffers, i * shape[1], shape[1], AT_ONCE)
    return 1


def shifted(k: Code, shape: Shape) -> int:
    with k.loop(0, shape[0]) as i:
        one_pass(k, k.buffers, i * shape[1], shape[1])
    return 1


def threaded(k: Code, shape: Shape) -> int:
    rows, n = shape
    with k.share(rows, cost=n) as (first, last), k.loop(first, last) as i:
        one_pass(k, k.buffers, i * n, n)
    return k.chunks


def make(shape: Shape) -> list[np.ndarray]:
    random, n = np.random.default_rng(0), shape[1]
    return [
        np.zeros(shape, np.float32),
        3 + random.standard_normal(shape, np.float32),
        random.standard_normal(n, np.float32),
        random.standard_normal(n, np.float32),
    ]


def by_numpy(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * w + b


def reference(y: np.ndarray, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
    return (by_numpy(x.astype(np.float64), w, b).astype(np.float32),)


LESSON = Lesson(
    name="layernorm",
    buffers="y x w b",
    outputs=1,
    make=make,
    reference=reference,
    generated=lambda x, w, b: (x.layernorm(eps=EPSILON) * w + b,),
    numpy=by_numpy,
    work=lambda s: 8.0 * s[0] * s[1],
    unit="GB/s",
    shapes=((64, 256), (512, 768), (2048, 4096)),
    versions=(
        Version(
            "naive",
            "mean, variance, result: three passes, one element at a time, each sum a chain",
            naive,
        ),
        Version(
            "lanes",
            "a register full an instruction, and 1/deviation once a row instead of "
            "a division an element",
            lanes,
        ),
        Version("chains", "four partial sums: additions overlap", chains),
        Version(
            "shifted",
            "mean and variance in one pass, safely: a row is read twice, not three times",
            shifted,
        ),
        Version(
            "threaded", "rows are independent: every thread takes a few, cut by shape", threaded
        ),
    ),
)


def layernorm(x: Tensor, w: Tensor, b: Tensor, version: str = "") -> Tensor:
    """Normalises the last axis, for float32 tensors on TGX; w and b have that axis's size."""
    n = int(x.shape[-1])
    flat = x.reshape(-1, n).contiguous()
    shape = (int(flat.shape[0]), n)
    out = Tensor.empty(*shape, device=x.device, dtype="float32")
    return call(LESSON, shape, out, flat, w.contiguous(), b.contiguous(), version=version)[
        0
    ].reshape(x.shape)


if __name__ == "__main__":
    main(LESSON)
