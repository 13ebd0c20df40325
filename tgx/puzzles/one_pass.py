"""Softmax's sum in one pass: the idea that made attention fast."""

from __future__ import annotations

import math

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get, near
from tgx.puzzles.drawing import Drawing

STREAMS = {
    "rising": [0.5, 1.0, 2.0, 3.0],
    "falling": [3.0, 2.0, 1.0, 0.5],
    "far apart": [-400.0, 0.0, 800.0, 799.0],
    "one": [5.0],
    "all equal": [1.0] * 7,
}


def check(given: Given) -> str:
    step = get(given, "step")
    for name, stream in STREAMS.items():
        largest, total = -math.inf, 0.0
        for i, x in enumerate(stream):
            try:
                pair = filled(step(largest, total, x), "step")
            except OverflowError:
                raise Wrong(f"{name}: e to a power that large is no number any more") from None
            if not isinstance(pair, tuple) or len(pair) != 2 or ... in pair:
                raise Wrong(f"step should give (largest, total); it gives {pair!r}")
            largest, total = pair
            seen = stream[: i + 1]
            right = sum(math.exp(v - max(seen)) for v in seen)
            if largest != max(seen) or not near(total, right):
                raise Wrong(
                    f"{name}: after {', '.join(f'{v:g}' for v in seen)} step gives largest"
                    f" {largest:g}, total {total:.6g}; expected {max(seen):g}, {right:.6g}."
                    " What does the total so far become when the largest changes?"
                )
    return (
        "One pass, nothing overflows, and no second look at the data. With this, attention never"
        " has to write its table of scores to memory (Milakov and Gimelshein 2018; FlashAttention)."
    )


def picture(d: Drawing) -> None:
    d.words(20, 66, "the numbers come one by one", "quiet")
    for i, value in enumerate((0.5, 1.0, 3.0, 2.0)):
        d.box(40 + 90 * i, 80, 56, 36, f"{value:g}", "blue" if i == 2 else "box")
        d.arrow(68 + 90 * i, 116, 68 + 90 * i, 150, "asked" if i == 2 else "")
    for i, (largest, total) in enumerate((("0.5", "1"), ("1", "1.61"), ("3", "?"), ("3", "?"))):
        d.box(30 + 90 * i, 152, 78, 52, f"max {largest}\nsum {total}", "orange" if i > 1 else "box")
        if i:
            d.arrow(18 + 90 * i, 178, 30 + 90 * i, 178)
    d.words(420, 100, "sum = Σ e^(x - max), of all so far")
    d.words(420, 150, "the largest has changed from 1 to 3:", "quiet")
    d.words(420, 170, "1.61 was measured against 1 ...", "quiet")


PUZZLE = Puzzle(
    title="Softmax in one pass",
    teaches="a reduction that corrects what it has, so nobody waits for the maximum",
    task="""
Softmax needs the sum of e^(x - largest), and subtracting the largest is what keeps
e^x from overflowing. But then the sum has to wait for the largest: two passes.

Do it in one. `largest` and `total` are right for the numbers so far (before the
first: -infinity and 0). Here comes x: what are they now? Never compute e to a large
power, and do not look at the earlier numbers again: you do not have them.
""",
    start="""
import math

def step(largest, total, x):
    return ..., ...
""",
    hint="e^(v - new) = e^(v - old) · e^(old - new): the whole total can be corrected at once.",
    solution="""
import math

def step(largest, total, x):
    new = max(largest, x)
    return new, total * math.exp(largest - new) + math.exp(x - new)
""",
    check=check,
    picture=picture,
)
