"""One kernel into two: where fusing computes the same thing again and again."""

from __future__ import annotations

import math

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get
from tgx.puzzles.counting import kernels, numbers
from tgx.puzzles.drawing import Drawing


def check(given: Given) -> str:
    weighted = get(given, "weighted")
    w, v = numbers(96, 128), numbers(128, seed=1)
    count, flops, found = kernels(lambda: filled(weighted(w, v), "weighted(w, v)"))
    once, again, _ = kernels(lambda: (w * v.sin()).sum(1))
    sines = [math.sin(x) for x in v.tolist()]
    for i, row in enumerate(w.tolist()):
        right = sum(a * s for a, s in zip(row, sines, strict=True))
        if found.shape != (96,) or abs(found[i] - right) > 1e-4:
            got = f"{found[i]:.5f}" if found.shape == (96,) else f"of shape {found.shape}"
            raise Wrong(f"number {i} of the result is {got}, expected {right:.5f}")
    if count == once:
        raise Wrong(
            f"the numbers are right, in {count} kernel still: {flops:,} operations, most of them"
            " for sines that other rows have computed already. Say where a result should be kept."
        )
    if count != 2 or flops > again / 3:
        raise Wrong(
            f"the numbers are right, in {count} kernels and {flops:,} operations; two kernels do it"
            f" in a small part of the {again:,} that one took. What is worth keeping: the sines?"
        )
    return (
        f"Two kernels, {flops:,} operations, where one kernel did {again:,}: a sine is dozens"
        " of them, and each was computed for all 96 rows. Fusing saves memory; sometimes memory is"
        " the cheaper of the two."
    )


def picture(d: Drawing) -> None:
    d.words(30, 66, "one kernel: each row computes all sines", "quiet")
    for i in range(4):
        d.cells(30, 80 + 30 * i, ["sin"] * 8, 30, "orange")
    d.words(280, 148, "x 96 rows", "quiet")
    d.words(410, 66, "two kernels", "quiet")
    d.cells(410, 80, ["sin"] * 8, 30, "blue")
    d.words(660, 100, "once")
    d.arrow(530, 112, 530, 140)
    d.box(410, 142, 240, 30, "kept in memory", "none")
    d.arrow(530, 172, 530, 198)
    d.box(410, 200, 240, 34, "96 rows read it")
    d.words(30, 226, "(w * v.sin()).sum(1)", "code")


PUZZLE = Puzzle(
    title="Break a fusion",
    teaches="fusing may compute a thing many times over; keeping it costs a kernel, and may pay",
    task="""
Every row of w, times the sines of v, summed. tinygrad makes one kernel of it: in
each of the 96 rows it computes the same 128 sines again. Make it two kernels: the
sines once, into memory; then the rows.
""",
    start="""
def weighted(w, v):
    return (w * v.sin()).sum(1)
""",
    hint="x.contiguous() says: from here on, have it in memory.",
    solution="""
def weighted(w, v):
    return (w * v.sin().contiguous()).sum(1)
""",
    check=check,
    picture=picture,
)
