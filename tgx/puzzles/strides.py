"""Views: another way to count through the same memory, and nothing is copied."""

from __future__ import annotations

from collections.abc import Callable

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get
from tgx.puzzles.drawing import Drawing

ROWS, COLUMNS = 3, 4
# name: (the view's shape, the place in memory it should give)
VIEWS: dict[str, tuple[tuple[int, int], Callable[[int, int], int]]] = {
    "plain": ((ROWS, COLUMNS), lambda i, j: 4 * i + j),
    "transposed": ((COLUMNS, ROWS), lambda i, j: 4 * j + i),
    "flipped": ((ROWS, COLUMNS), lambda i, j: 4 * i + 3 - j),
    "every_second": ((ROWS, COLUMNS // 2), lambda i, j: 4 * i + 2 * j),
    "repeated": ((5, COLUMNS), lambda i, j: j),
}


def check(given: Given) -> str:
    for name, ((rows, columns), right) in VIEWS.items():
        view = get(given, name)
        for i in range(rows):
            for j in range(columns):
                found = filled(view(i, j), f"{name}({i}, {j})")
                if found != right(i, j):
                    raise Wrong(
                        f"{name}({i}, {j}) is {found}, expected {right(i, j)}: row {i}, column {j}"
                        f" of that view is the number {right(i, j)} of the picture"
                    )
    return (
        "Five views of one memory, and no kernel ran: x.permute, x.flip, x[:, ::2] and x.expand"
        " are these functions, and end up in the index of whatever kernel reads them."
    )


def picture(d: Drawing) -> None:
    d.words(20, 62, "x, as you see it", "quiet")
    for i in range(3):
        d.cells(20, 74 + 34 * i, range(4 * i, 4 * i + 4), css="blue" if i == 1 else "box")
    d.words(20, 228, "as memory has it", "quiet")
    d.cells(160, 206, range(4), 30)
    d.cells(280, 206, range(4, 8), 30, "blue")
    d.cells(400, 206, range(8, 12), 30)
    d.words(240, 62, "transposed", "quiet")
    for i in range(4):
        d.cells(240, 74 + 28 * i, (i, 4 + i, 8 + i), 28)
    d.words(380, 62, "flipped", "quiet")
    for i in range(3):
        d.cells(380, 74 + 28 * i, range(4 * i + 3, 4 * i - 1, -1), 28)
    d.words(540, 62, "every second", "quiet")
    for i in range(3):
        d.cells(540, 74 + 28 * i, (4 * i, 4 * i + 2), 28)


PUZZLE = Puzzle(
    title="Strides",
    teaches="movement costs nothing: it is arithmetic on indices",
    task="""
The 3 x 4 tensor x lies in memory row by row: 0 1 2 3, then 4 5 6 7, then
8 9 10 11. `plain(i, j)` says at which place row i, column j is. Say it for four
views of the same memory:

    transposed     4 x 3, x.permute(1, 0)
    flipped        3 x 4, x.flip(1): each row from its end
    every_second   3 x 2, x[:, ::2]
    repeated       5 x 4, x[:1].expand(5, 4): the first row, five times
""",
    start="""
def plain(i, j):
    return 4 * i + 1 * j      # a step down is 4 places, a step right is 1

def transposed(i, j):
    return ...

def flipped(i, j):
    return ...

def every_second(i, j):
    return ...

def repeated(i, j):
    return ...
""",
    hint="A stride may be 4, 1, 2, -1 or 0. With a negative one, start at the other end.",
    solution="""
def plain(i, j):
    return 4 * i + 1 * j

def transposed(i, j):
    return 1 * i + 4 * j

def flipped(i, j):
    return 4 * i + 3 - j

def every_second(i, j):
    return 4 * i + 2 * j

def repeated(i, j):
    return 0 * i + j
""",
    check=check,
    picture=picture,
)
