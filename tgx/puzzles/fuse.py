"""Two kernels into one, by better algebra."""

from __future__ import annotations

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get
from tgx.puzzles.counting import kernels, numbers
from tgx.puzzles.drawing import Drawing


def check(given: Given) -> str:
    variance = get(given, "variance")
    x = numbers(48, 64)
    count, _, found = kernels(lambda: filled(variance(x), "variance(x)"))
    rows = x.tolist()
    for i, row in enumerate(rows):
        mean = sum(row) / len(row)
        right = sum((v - mean) ** 2 for v in row) / len(row)
        if found.shape != (48,) or abs(found[i] - right) > 1e-5:
            got = f"{found[i]:.6f}" if found.shape == (48,) else f"of shape {found.shape}"
            raise Wrong(f"the variance of row {i} is {got}, expected {right:.6f}")
    if count != 1:
        raise Wrong(
            f"the numbers are right, and it took {count} kernel{'s' * (count != 1)}. What waits"
            " for a finished mean here? Can you do without it until the end?"
        )
    return (
        "One pass over x instead of two. The price: E[x²] - E[x]² subtracts numbers that are nearly"
        " equal where the mean is large against the spread, and loses digits. Batch norms that"
        " care use Welford's sums, or two passes."
    )


def picture(d: Drawing) -> None:
    d.box(30, 60, 90, 50, "x")
    d.box(180, 60, 110, 50, "kernel 1\nmean", "blue")
    d.box(350, 60, 150, 50, "kernel 2\nmean of (x - mean)²", "blue")
    d.box(570, 60, 110, 50, "variance")
    d.arrow(120, 85, 180, 85)
    d.arrow(290, 85, 350, 85)
    d.arrow(500, 85, 570, 85)
    d.curve([(75, 110), (75, 130), (425, 130), (425, 116)], "")
    d.words(200, 150, "x is read a second time", "quiet")
    d.box(30, 180, 90, 50, "x")
    d.box(250, 180, 180, 50, "kernel 1\n?", "orange")
    d.box(570, 180, 110, 50, "variance")
    d.arrow(120, 205, 250, 205, "asked")
    d.arrow(430, 205, 570, 205, "asked")


PUZZLE = Puzzle(
    title="Fuse two",
    teaches="a reduction that waits for another one costs a kernel, and a pass over memory",
    task="""
The variance of every row, as it is usually written: the mean first, then the mean
of the squared distances to it. That is two kernels, and x is read twice.
Make it one kernel, with the same numbers.
""",
    start="""
def variance(x):
    mean = x.mean(1, keepdim=True)
    return (x - mean).square().mean(1)
""",
    hint="Multiply (x - mean)² out, and take the mean of each part: which sums are left?",
    solution="""
def variance(x):
    return x.square().mean(1) - x.mean(1).square()
""",
    check=check,
    picture=picture,
)
