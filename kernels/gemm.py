"""C = A B, rows × summed × columns: 2·m·k·n operations on m·k + k·n + m·n numbers.

    python -m tgx.kernels.gemm

Each number takes part in many operations, so a good program is bounded by arithmetic: a core with
AVX-512 does 32 multiply-adds a cycle, and gets there only if loading and storing stay out of the
way. Everything below is about touching memory less often per operation.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from tinygrad import Tensor
from tinygrad.uop.ops import UOp

from tgx.kernels.ir import Buffer, Code, Value, Variable
from tgx.kernels.lesson import Lesson, Shape, Version, call, main, registers

PANEL_VECTORS = 2  # vectors in a row of the register tile
DEPTH = 256  # of a packed panel: 256 rows of 2 vectors are 32 KiB, the first-level cache
ROWS = 252  # of A that are copied at once: 252 × 256 numbers are 258 KB, in the second-level cache
CHUNKS = 16  # at most; many, so that a thread that is late leaves work to the others
FEW_ROWS = 128  # below it a panel of B is used too seldom to be worth a copy


def naive(k: Code, shape: Shape) -> int:
    m, depth, n = shape
    c, a, b = k.buffers
    with k.loop(0, m) as i, k.loop(0, n) as j:
        total = Variable(k, k.splat(0, 1))
        with k.loop(0, depth) as s:
            total.set(total.get() + a.load(i * depth + s) * b.load(s * n + j))
        c.store(i * n + j, total.get())
    return 1


def order(k: Code, shape: Shape) -> int:
    m, depth, n = shape
    c, a, b = k.buffers
    with k.loop(0, m) as i:
        with k.loop(0, n) as j:
            c.store(i * n + j, k.splat(0, 1))
        with k.loop(0, depth) as s:
            left = a.load(i * depth + s)
            with k.loop(0, n) as j:
                c.store(i * n + j, k.fma(left, b.load(s * n + j), c.load(i * n + j)))
    return 1


def columns(n: int, width: int) -> list[tuple[int, int]]:
    """Starts and widths of the pieces of a row; the last may be narrower."""
    return [(start, min(width, n - start)) for start in range(0, n, width)]


def lanes(k: Code, shape: Shape) -> int:
    m, depth, n = shape
    c, a, b = k.buffers
    whole = n // k.lanes * k.lanes
    with k.loop(0, m) as i:
        for start, stop in ((0, whole), (whole, n)):
            mask = k.first(stop - start, k.lanes) if start else k.first(n, k.lanes)
            if start == stop:
                continue
            with k.loop(start, stop, k.lanes) as j:
                total = Variable(k, k.splat(0, k.lanes))
                with k.loop(0, depth) as s:
                    left = k.splat(a.load(i * depth + s), k.lanes)
                    total.set(k.fma(left, b.load(s * n + j, k.lanes, mask), total.get()))
                c.store(i * n + j, total.get(), mask)
    return 1


def tile(
    k: Code,
    a: Buffer,
    b: Buffer,
    c: Buffer,
    *,
    rows: int,
    width: int,
    depth: int,
    a_at: Value | int,
    a_pitch: int,
    b_at: Value | int,
    b_pitch: int,
    c_at: Value,
    c_pitch: int,
    more: bool = False,
    packed: bool = False,
) -> None:
    """The heart: a block of C, `rows` × `width`, stays in registers while `depth` products are
    added to every element. One step loads `rows` numbers of A and a short row of B, and does
    rows × width multiply-adds with them. With `more`, C already holds a part of the sum."""
    parts = [
        (start, None if packed else k.first(count, k.lanes))
        for start, count in columns(width, k.lanes)
    ]
    edges = [k.first(count, k.lanes) for _, count in columns(width, k.lanes)]
    totals = []
    for r in range(rows):
        for (start, _), edge in zip(parts, edges, strict=True):
            old = (
                c.load(c_at + (r * c_pitch + start), k.lanes, edge) if more else k.splat(0, k.lanes)
            )
            totals.append(Variable(k, old))
    with k.loop(0, depth) as s:
        row = s * b_pitch + b_at
        right = [b.load(row + start, k.lanes, mask) for start, mask in parts]
        for r in range(rows):
            left = k.splat(a.load(s + a_at + r * a_pitch), k.lanes)
            for v, x in enumerate(right):
                total = totals[r * len(right) + v]
                total.set(k.fma(left, x, total.get()))
    for r in range(rows):
        for v, ((start, _), edge) in enumerate(zip(parts, edges, strict=True)):
            c.store(c_at + (r * c_pitch + start), totals[r * len(parts) + v].get(), edge)


def tile_rows() -> int:
    """Rows of the tile: rows × 2 accumulators, and a few registers for what is being loaded."""
    return 12 if registers() == 32 else 6


def tiled(k: Code, shape: Shape) -> int:
    m, depth, n = shape
    c, a, b = k.buffers
    rows, width = tile_rows(), PANEL_VECTORS * k.lanes
    for first_row, last_row, height in blocks(m, rows):
        for first, last, wide in blocks(n, width):
            with k.loop(first_row, last_row, rows) as i, k.loop(first, last, width) as j:
                tile(
                    k,
                    a,
                    b,
                    c,
                    rows=height,
                    width=wide,
                    depth=depth,
                    a_at=i * depth,
                    a_pitch=depth,
                    b_at=j,
                    b_pitch=n,
                    c_at=i * n + j,
                    c_pitch=n,
                )
    return 1


def blocks(size: int, step: int) -> list[tuple[int, int, int]]:
    """A range in whole steps, and what is left over: (from, to, size of a step)."""
    whole = size // step * step
    return [
        piece for piece in ((0, whole, step), (whole, size, size - whole)) if piece[0] < piece[1]
    ]


def copy_panel(
    k: Code,
    b: Buffer,
    panel: Buffer,
    row: int,
    deep: int,
    j: Value,
    n: int,
    pieces: list[tuple[int, int]],
) -> None:
    """`deep` rows of a narrow strip of B, one behind the other."""
    with k.loop(0, deep) as s:
        for at, count in pieces:
            line = b.load((s + row) * n + j + at, k.lanes, k.first(count, k.lanes))
            panel.store(s * (len(pieces) * k.lanes) + at, line)


def copy_rows(
    k: Code,
    a: Buffer,
    block: Buffer,
    first: Value | int,
    count: Value | int,
    start: int,
    deep: int,
    depth: int,
    pitch: int,
) -> None:
    """Rows of A, `deep` numbers of each, at a pitch that spreads them over the cache."""
    with k.loop(0, count) as r:
        for begin, end, wide in blocks(deep, k.lanes):
            with k.loop(begin, end, k.lanes) as s:
                line = a.load((r + first) * depth + s + start, k.lanes, k.first(wide, k.lanes))
                block.store(r * pitch + s, line)


def region(
    k: Code, shape: Shape, first_row: Value | int, height: int, columns_: tuple, *, copy_a: bool
) -> None:
    """C's rows from `first_row` on, and columns [first, last) in panels `wide` apart, with B, and A
    if so wished, copied piece by piece to where they are read from the caches in order."""
    _, depth, n = shape
    c, a, b = k.buffers
    first, last, wide = columns_
    pieces, rows, step = columns(wide, k.lanes), tile_rows(), PANEL_VECTORS * k.lanes
    panel = k.scratch(DEPTH * step)
    pitch = DEPTH + k.lanes
    block = k.scratch(height * pitch) if copy_a else a
    for start, deep in columns(depth, DEPTH):
        if copy_a:
            copy_rows(k, a, block, first_row, height, start, deep, depth, pitch)
        with k.loop(first, last, step) as j:
            copy_panel(k, b, panel, start, deep, j, n, pieces)
            for top, bottom, tall in blocks(height, rows):
                with k.loop(top, bottom, rows) as r:
                    i = r + first_row
                    tile(
                        k,
                        block,
                        panel,
                        c,
                        rows=tall,
                        width=wide,
                        depth=deep,
                        a_at=r * pitch if copy_a else i * depth + start,
                        a_pitch=pitch if copy_a else depth,
                        b_at=0,
                        b_pitch=len(pieces) * k.lanes,
                        c_at=i * n + j,
                        c_pitch=n,
                        more=start > 0,
                        packed=True,
                    )


def packed(k: Code, shape: Shape) -> int:
    for strip in blocks(shape[2], PANEL_VECTORS * k.lanes):
        region(k, shape, 0, shape[0], strip, copy_a=False)
    return 1


def blocked(k: Code, shape: Shape) -> int:
    for strip in blocks(shape[2], PANEL_VECTORS * k.lanes):
        for top, bottom, height in blocks(shape[0], ROWS):
            with k.loop(top, bottom, ROWS) as i:
                region(k, shape, i, height, strip, copy_a=True)
    return 1


def cut(size: int, parts: int) -> list[tuple[int, int]]:
    """A range in almost equal parts: (from, to)."""
    edges = [size * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def collides(pitch: int) -> bool:
    """Do a dozen rows of this pitch fall into few sets of the first-level cache?"""
    return math.gcd(4 * pitch, 4096) >= 1024


def threaded(k: Code, shape: Shape) -> int:
    """A grid of pieces of C. Each is one chunk, with its own code for its own edges where it has
    any; pieces that look alike share theirs."""
    m, depth, n = shape
    rows, step = tile_rows(), PANEL_VECTORS * k.lanes
    down = -(-m // ROWS)
    tiles, strips = -(-m // rows), -(-n // step)
    across = max(1, min(strips, CHUNKS // down))
    across = min(across, max(1, round(m * depth * n / 500_000)))  # not for less than ~15 µs
    alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for top, bottom in cut(tiles, down):
        for left, right in cut(strips, across):
            y, x = top * rows, left * step
            size = min(m, bottom * rows) - y, min(n, right * step) - x
            alike.setdefault(size, []).append((y, x))
    number = 0
    for (height, width), places in alike.items():
        with k.when("sge", k.chunk, number), k.when("slt", k.chunk, number + len(places)):
            y, x = (k.pick([place[axis] for place in places], k.chunk - number) for axis in (0, 1))
            for first, last, wide in blocks(width, step):
                if m < FEW_ROWS:
                    direct(k, shape, y, height, (x + first, x + last, wide))
                else:
                    region(k, shape, y, height, (x + first, x + last, wide), copy_a=collides(depth))
        number += len(places)
    return number


def direct(k: Code, shape: Shape, first_row: Value, height: int, columns_: tuple) -> None:
    """Like `region`, with nothing copied."""
    _, depth, n = shape
    c, a, b = k.buffers
    first, last, wide = columns_
    rows = tile_rows()
    for top, bottom, tall in blocks(height, rows):
        with k.loop(top, bottom, rows) as r, k.loop(first, last, PANEL_VECTORS * k.lanes) as j:
            i = r + first_row
            tile(
                k,
                a,
                b,
                c,
                rows=tall,
                width=wide,
                depth=depth,
                a_at=i * depth,
                a_pitch=depth,
                b_at=j,
                b_pitch=n,
                c_at=i * n + j,
                c_pitch=n,
            )


def make(shape: Shape) -> list[np.ndarray]:
    m, depth, n = shape
    random = np.random.default_rng(0)
    return [
        np.zeros((m, n), np.float32),
        random.standard_normal((m, depth), np.float32),
        random.standard_normal((depth, n), np.float32),
    ]


def reference(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
    return ((a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32),)


LESSON = Lesson(
    name="gemm",
    buffers="c a b",
    outputs=1,
    make=make,
    reference=reference,
    generated=lambda a, b: (a @ b,),
    numpy=lambda a, b: a @ b,
    work=lambda shape: 2.0 * math.prod(shape),
    unit="GFLOP/s",
    shapes=((64, 784, 256), (512, 512, 512), (1024, 1024, 1024)),
    versions=(
        Version(
            "naive",
            "row times column. One addition waits for the last, and B is read down a "
            "column: a new cache line for every number",
            naive,
        ),
        Version(
            "order",
            "the two inner loops change places: B and C are now read along rows, and "
            "additions are independent; but C is loaded and stored for each product",
            order,
        ),
        Version(
            "lanes",
            "a vector of C stays in a register while the whole sum is made: no store, "
            "and as many products an instruction as there are lanes",
            lanes,
        ),
        Version(
            "tiled",
            "a block of C in registers: a number of A serves two vectors, a vector "
            "of B serves every row; loads per product fall by the tile's size",
            tiled,
        ),
        Version(
            "packed",
            "B in panels that fit the first cache and lie in order: no misses, no "
            "TLB misses, for a copy that costs 1/m of the work",
            packed,
        ),
        Version(
            "blocked",
            "A too is copied, in blocks the second cache holds: rows 4096 bytes apart "
            "would all compete for the same eight lines of the first",
            blocked,
        ),
        Version(
            "threaded",
            "a grid of pieces for the threads, cut by shape; and no copy where a "
            "matrix is too small to repay it",
            threaded,
        ),
    ),
)


def matmul(a: Tensor, b: Tensor, version: str = "") -> Tensor:
    """a @ b for float32 matrices on TGX, with gradients."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"matmul takes (m, k) and (k, n), not {a.shape} and {b.shape}")
    m, depth, n = int(a.shape[0]), int(a.shape[1]), int(b.shape[1])
    out = Tensor.empty(m, n, device=a.device, dtype="float32")

    def gradient(up: UOp, node: UOp) -> tuple[UOp | None, ...]:
        g, x, y = Tensor(up).contiguous(), Tensor(node.src[2]), Tensor(node.src[3])
        return (None, matmul(g, y.T.contiguous()).uop, matmul(x.T.contiguous(), g).uop)

    return call(
        LESSON,
        (m, depth, n),
        out,
        a.contiguous(),
        b.contiguous(),
        version=version,
        gradient=gradient,
    )[0]


if __name__ == "__main__":
    main(LESSON)
