"""How many kernels will it be?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tgx.puzzles.base import Given, Puzzle, Wrong, get
from tgx.puzzles.counting import kernels, numbers
from tgx.puzzles.drawing import Drawing

# name: the program, its work, and the thought that leads to the number
PROGRAMS: dict[str, tuple[str, Callable[[Any, Any], Any], str]] = {
    "A": (
        "(x * 2 + 1).relu()",
        lambda x, w: (x * 2 + 1).relu(),
        "each number of the result needs one number of x: a single loop does it all",
    ),
    "B": (
        "(x @ w).relu()",
        lambda x, w: (x @ w).relu(),
        "ReLU works on a sum that has just been finished, and is still in a register",
    ),
    "C": (
        "x.permute(1, 0) + w.flip(0)",
        lambda x, w: x.permute(1, 0) + w.flip(0),
        "turning and flipping are only other indices (puzzle 2)",
    ),
    "D": (
        "x - x.sum(1, keepdim=True)",
        lambda x, w: x - x.sum(1, keepdim=True),
        "every number of a row needs the sum of that row: the sums have to be finished first,"
        " and are kept in memory",
    ),
    "E": (
        "(x @ w) @ w",
        lambda x, w: (x @ w) @ w,
        "the second product reads each number of the first many times: computing it anew each time"
        " would cost more than keeping it",
    ),
    "F": (
        "x.softmax()",
        lambda x, w: x.softmax(),
        "the largest of a row, then the sum of e^(x - largest), then the quotients: two of these"
        " wait for a finished reduction, as in D",
    ),
}


def check(given: Given) -> str:
    said = get(given, "KERNELS")
    x, w = numbers(32, 32), numbers(32, 32, seed=1)
    wrong = []
    for name, (program, work, thought) in PROGRAMS.items():
        if name not in said:
            raise Wrong(f"KERNELS has no row for {name}")
        if said[name] is ...:
            raise Wrong(f"{name} is still ...: how many kernels is {program}?")
        if said[name] != kernels(partial(work, x, w))[0]:
            wrong.append(f"{name}: {program} is not {said[name]}. Think: {thought}.")
    if wrong:
        right = len(PROGRAMS) - len(wrong)
        raise Wrong(f"{right} of {len(PROGRAMS)} are right.\n" + "\n".join(wrong))
    return (
        "All six ran, and were counted. A reduction that others wait for ends a kernel; nothing"
        " else here does. `tgx trace` says for each kernel why it ends where it does."
    )


def picture(d: Drawing) -> None:
    for i, (name, (program, _, _)) in enumerate(PROGRAMS.items()):
        y = 50 + 34 * i
        d.words(30, y + 20, name, "title")
        d.box(60, y, 300, 28)
        d.words(74, y + 19, program, "code")
        d.arrow(360, y + 14, 420, y + 14)
        for k in range(3):
            d.box(430 + 62 * k, y, 54, 28, "?", "blue" if k == 0 else "none")
        d.words(632, y + 19, "kernels", "quiet")


PUZZLE = Puzzle(
    title="Predict the kernels",
    teaches="what ends a kernel, and what does not",
    task="""
x and w are 32 x 32, and in memory already. How many kernels does each line become?

    A   (x * 2 + 1).relu()
    B   (x @ w).relu()
    C   x.permute(1, 0) + w.flip(0)
    D   x - x.sum(1, keepdim=True)
    E   (x @ w) @ w
    F   x.softmax()
""",
    start="""
KERNELS = {"A": ..., "B": ..., "C": ..., "D": ..., "E": ..., "F": ...}
""",
    hint="Ask of every arrow in the graph: does the next step need one number of it, or a finished"
    " row of it?",
    solution="""
KERNELS = {"A": 1, "B": 1, "C": 1, "D": 2, "E": 2, "F": 3}
""",
    check=check,
    picture=picture,
)
