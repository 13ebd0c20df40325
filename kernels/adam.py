"""One step of Adam: averages of the gradient and of its square, and the parameters moved by them.

    m = β1·m + (1-β1)·g        v = β2·v + (1-β2)·g²
    p = p - lr · (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + ε)

    python -m tgx.kernels.adam

Ten operations on four numbers, three of which are written back: 28 bytes an element. Memory decides
once the arrays outgrow the caches; before that, the division and the square root do.

How many steps were made changes every time, so what depends on it comes in a small buffer:
`rates` = (lr / (1-β1^t), 1 / sqrt(1-β2^t)).
"""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor

from tgx.kernels.ir import Buffer, Code, Value, pieces
from tgx.kernels.lesson import Lesson, Shape, Version, call, main

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
AT_ONCE = 2


def naive(k: Code, shape: Shape) -> int:
    (n,) = shape
    p, m, v, g, rates = k.buffers
    with k.loop(0, n) as i:
        m.store(i, m.load(i) * BETA1)
    with k.loop(0, n) as i:
        m.store(i, m.load(i) + g.load(i) * (1 - BETA1))
    with k.loop(0, n) as i:
        v.store(i, v.load(i) * BETA2)
    with k.loop(0, n) as i:
        v.store(i, v.load(i) + g.load(i) * g.load(i) * (1 - BETA2))
    with k.loop(0, n) as i:
        root = k.call("sqrt", v.load(i)) * rates.load(1) + EPSILON
        p.store(i, p.load(i) - m.load(i) * rates.load(0) / root)
    return 1


def update(
    k: Code,
    buffers: list[Buffer],
    i: Value,
    width: int,
    mask: Value | None,
    rate: Value,
    correction: Value,
) -> None:
    """`width` elements: everything that is read is read once, and written once."""
    p, m, v, g, _ = buffers
    x = g.load(i, width, mask)
    first = k.fma(x, k.splat(1 - BETA1, width), m.load(i, width, mask) * BETA1)
    second = k.fma(x * x, k.splat(1 - BETA2, width), v.load(i, width, mask) * BETA2)
    m.store(i, first, mask)
    v.store(i, second, mask)
    root = k.fma(k.call("sqrt", second), correction, k.splat(EPSILON, width))
    p.store(i, p.load(i, width, mask) - first * rate / root, mask)


def fused(k: Code, shape: Shape) -> int:
    rates = k.buffers[4]
    rate, correction = rates.load(0), rates.load(1)
    with k.loop(0, shape[0]) as i:
        update(k, k.buffers, i, 1, None, rate, correction)
    return 1


def run(k: Code, first: Value | int, n: int, at_once: int) -> None:
    """`n` elements from `first` on, in vectors."""
    rates = k.buffers[4]
    rate, correction = (k.splat(rates.load(i), k.lanes) for i in (0, 1))
    for piece in pieces(n, k.lanes, at_once):
        with k.loop(piece.start, piece.stop, piece.step) as i:
            for offset, mask in piece.vectors(k):
                update(k, k.buffers, i + first + offset, k.lanes, mask, rate, correction)


def lanes(k: Code, shape: Shape) -> int:
    run(k, 0, shape[0], 1)
    return 1


def threaded(k: Code, shape: Shape) -> int:
    (n,) = shape
    block = AT_ONCE * k.lanes
    with k.share(n // block, cost=3 * block) as (first, last), k.loop(first, last) as i:
        run(k, i * block, block, AT_ONCE)
    if n % block:
        with k.when("eq", k.chunk, k.chunks - 1):
            run(k, n // block * block, n % block, 1)
    return k.chunks


def make(shape: Shape) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    p, m, g = (random.standard_normal(shape, np.float32) for _ in range(3))
    v = random.random(shape, np.float32)
    return [p, m, v, g, np.array(rates(1e-3, 3), np.float32)]


def rates(lr: float, steps: int) -> tuple[float, float]:
    """What depends on how many steps were made, this one included."""
    return lr / (1 - BETA1**steps), float((1 - BETA2**steps) ** -0.5)


def by_numpy(
    p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = BETA1 * m + (1 - BETA1) * g
    second = BETA2 * v + (1 - BETA2) * g * g
    return p - rates[0] * first / (np.sqrt(second) * rates[1] + EPSILON), first, second


def reference(*buffers: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x.astype(np.float32) for x in by_numpy(*(b.astype(np.float64) for b in buffers)))


def by_tinygrad(p: Tensor, m: Tensor, v: Tensor, g: Tensor, rates: Tensor) -> tuple[Tensor, ...]:
    first = BETA1 * m + (1 - BETA1) * g
    second = BETA2 * v + (1 - BETA2) * g * g
    new = p - rates[0] * first / (second.sqrt() * rates[1] + EPSILON)
    return new, first, second


LESSON = Lesson(
    name="adam",
    buffers="p m v g rates",
    outputs=3,
    make=make,
    reference=reference,
    generated=by_tinygrad,
    numpy=by_numpy,
    work=lambda s: 28.0 * s[0],
    unit="GB/s",
    in_place=True,
    shapes=((235_146,), (4_000_000,)),
    versions=(
        Version(
            "naive",
            "an operation after the other, each over the whole arrays: 17 numbers "
            "travel for each parameter",
            naive,
        ),
        Version("fused", "one loop: 7 numbers travel, the least there is", fused),
        Version("lanes", "a register full of square roots and divisions an instruction", lanes),
        Version(
            "threaded",
            "elements are independent; and two vectors at a time, so that the "
            "second does not wait for the division of the first",
            threaded,
        ),
    ),
)


def step(
    p: Tensor, m: Tensor, v: Tensor, g: Tensor, lr: float, steps: int, version: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """One step on TGX; p, m and v (float32, realized) are changed in place, and returned."""
    fresh = Tensor(list(rates(lr, steps)), device=p.device, dtype="float32")
    shape = (int(p.numel()),)
    new = call(LESSON, shape, p, m, v, g.contiguous(), fresh.contiguous(), version=version)
    return new[0], new[1], new[2]


if __name__ == "__main__":
    main(LESSON)
