"""softmax: each row of a matrix becomes exp(x - max) / sum. Reads and writes 8 bytes an element.

    python -m tgx.kernels.softmax

The row's maximum is subtracted so that exp never overflows. Three passes over a row (maximum, sum,
result) look unavoidable, but a row lies in the first-level cache after the first of them: what
costs is exp, and the chain of additions.
"""

from __future__ import annotations

import math

import numpy as np
from tinygrad import Tensor

from tgx.kernels.ir import Buffer, Code, Value, Variable, pieces
from tgx.kernels.lesson import Lesson, Shape, Version, call, main

AT_ONCE = 4  # vectors in flight: an addition takes four cycles, so four chains fill them


def library_exp(k: Code, x: Value) -> Value:
    """The C library's expf, one number at a time."""
    k.declare("float @expf(float)")
    return Value(k, k.let(f"call float @expf({x})"), x.type)


# exp on [-ln2/2, ln2/2]: minimax coefficients of degree 6, relative error 2e-8
COEFFICIENTS = (
    1.0,
    1.0,
    0.5,
    0.16666667163372040,
    0.04166646674275398,
    0.008333359844982624,
    0.0013981999503448606,
)
LN2_HIGH, LN2_LOW = (
    0.693359375,
    -2.12194440e-4,
)  # their sum is ln 2; high times a small int is exact


def polynomial_exp(k: Code, x: Value) -> Value:
    """e**x = 2**n · e**r with n = round(x / ln 2): n goes into the exponent bits, r into a
    polynomial. No call, no branch: it works on as many lanes as x has."""
    given, x = x, k.call("maximum", x, k.splat(-87.0, x.lanes))
    n = k.call("rint", x * (1 / math.log(2)))
    r = k.fma(n, k.splat(-LN2_HIGH, x.lanes), x)
    r = k.fma(n, k.splat(-LN2_LOW, x.lanes), r)
    y = k.splat(COEFFICIENTS[-1], x.lanes)
    for coefficient in COEFFICIENTS[-2::-1]:
        y = k.fma(y, r, k.splat(coefficient, x.lanes))
    # below -87 the result is nearly 0, and no normal number: make it 0
    return k.below(given, -87.0, 0, y * k.power_of_two(n))


def naive(k: Code, shape: Shape) -> int:
    rows, n = shape
    y, x = k.buffers
    with k.loop(0, rows) as i:
        top, total = Variable(k, k.splat(-math.inf, 1)), Variable(k, k.splat(0, 1))
        with k.loop(0, n) as j:
            top.set(k.call("maximum", top.get(), x.load(i * n + j)))
        with k.loop(0, n) as j:
            total.set(total.get() + library_exp(k, x.load(i * n + j) - top.get()))
        with k.loop(0, n) as j:
            y.store(i * n + j, library_exp(k, x.load(i * n + j) - top.get()) / total.get())
    return 1


def once(k: Code, shape: Shape, exp=library_exp) -> int:
    rows, n = shape
    y, x = k.buffers
    with k.loop(0, rows) as i:
        top, total = Variable(k, k.splat(-math.inf, 1)), Variable(k, k.splat(0, 1))
        with k.loop(0, n) as j:
            top.set(k.call("maximum", top.get(), x.load(i * n + j)))
        with k.loop(0, n) as j:
            e = exp(k, x.load(i * n + j) - top.get())
            y.store(i * n + j, e)
            total.set(total.get() + e)
        scale = k.splat(1, 1) / total.get()
        with k.loop(0, n) as j:
            y.store(i * n + j, y.load(i * n + j) * scale)
    return 1


def polynomial(k: Code, shape: Shape) -> int:
    return once(k, shape, polynomial_exp)


def row(k: Code, y: Buffer, x: Buffer, at: Value, n: int, at_once: int) -> None:
    """One row, `at_once` vectors at a time, each with its own maximum and sum."""
    w = k.lanes
    runs = pieces(n, w, at_once)
    tops = [Variable(k, k.splat(-math.inf, w)) for _ in range(at_once)]
    totals = [Variable(k, k.splat(0, w)) for _ in range(at_once)]
    for run in runs:
        with k.loop(run.start, run.stop, run.step) as j:
            for v, (offset, mask) in enumerate(run.vectors(k)):
                z = k.keep(mask, x.load(at + j + offset, w, mask), -math.inf)
                tops[v].set(k.call("maximum", tops[v].get(), z))
    top = tops[0].get()
    for other in tops[1:]:
        top = k.call("maximum", top, other.get())
    top = k.splat(k.total(top, "max"), w)
    for run in runs:
        with k.loop(run.start, run.stop, run.step) as j:
            for v, (offset, mask) in enumerate(run.vectors(k)):
                e = polynomial_exp(k, x.load(at + j + offset, w, mask) - top)
                y.store(at + j + offset, e, mask)
                totals[v].set(totals[v].get() + k.keep(mask, e, 0))
    total = totals[0].get()
    for other in totals[1:]:
        total = total + other.get()
    scale = k.splat(k.splat(1, 1) / k.total(total), w)
    for run in runs:
        with k.loop(run.start, run.stop, run.step) as j:
            for offset, mask in run.vectors(k):
                y.store(at + j + offset, y.load(at + j + offset, w, mask) * scale, mask)


def lanes(k: Code, shape: Shape) -> int:
    y, x = k.buffers
    with k.loop(0, shape[0]) as i:
        row(k, y, x, i * shape[1], shape[1], 1)
    return 1


def chains(k: Code, shape: Shape) -> int:
    y, x = k.buffers
    with k.loop(0, shape[0]) as i:
        row(k, y, x, i * shape[1], shape[1], AT_ONCE)
    return 1


def threaded(k: Code, shape: Shape) -> int:
    rows, n = shape
    y, x = k.buffers
    with k.share(rows, cost=n) as (first, last), k.loop(first, last) as i:
        row(k, y, x, i * n, n, AT_ONCE)
    return k.chunks


def make(shape: Shape) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [np.zeros(shape, np.float32), 4 * random.standard_normal(shape, np.float32)]


def by_numpy(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray]:
    return (by_numpy(x.astype(np.float64)).astype(np.float32),)


LESSON = Lesson(
    name="softmax",
    buffers="y x",
    outputs=1,
    make=make,
    reference=reference,
    generated=lambda x: (x.softmax(),),
    numpy=by_numpy,
    work=lambda s: 8.0 * s[0] * s[1],
    unit="GB/s",
    shapes=((64, 10), (512, 1024), (2048, 4096)),
    versions=(
        Version(
            "naive",
            "three passes, as the formula says; exp is computed twice, and every "
            "element is divided",
            naive,
        ),
        Version(
            "once",
            "exp is kept from the second pass, and the third multiplies by 1/sum: half "
            "the calls, no division",
            once,
        ),
        Version(
            "polynomial",
            "exp written out: one at a time hardly faster than a good library, but "
            "without a call or a branch, which the next step needs",
            polynomial,
        ),
        Version(
            "lanes",
            "a register full of elements an instruction: a call could not do that, "
            "a polynomial can",
            lanes,
        ),
        Version(
            "chains",
            "four maxima and four sums instead of one: the next addition no longer "
            "waits for the last",
            chains,
        ),
        Version(
            "threaded", "rows are independent: every thread takes a few, cut by shape", threaded
        ),
    ),
)


def softmax(x: Tensor, version: str = "") -> Tensor:
    """The softmax of the last axis, for float32 tensors on TGX."""
    n = int(x.shape[-1])
    flat = x.reshape(-1, n).contiguous()
    shape = (int(flat.shape[0]), n)
    out = Tensor.empty(*shape, device=x.device, dtype="float32")
    return call(LESSON, shape, out, flat, version=version)[0].reshape(x.shape)


if __name__ == "__main__":
    main(LESSON)
