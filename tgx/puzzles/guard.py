"""More threads than numbers: the kernel that must not touch what is not its own."""

from __future__ import annotations

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get
from tgx.puzzles.drawing import Drawing


class Memory(list[float]):
    """A buffer that complains, where a GPU would quietly read a neighbour's."""

    def __init__(self, name: str, values: list[float]) -> None:
        super().__init__(values)
        self.name = name

    def place(self, i: int, thread: int, does: str) -> int:
        if not 0 <= i < len(self):
            raise Wrong(
                f"thread {thread} {does} {self.name}[{i}], but {self.name} has {len(self)} numbers"
                f" (0 to {len(self) - 1}). On a GPU that is somebody else's memory."
            )
        return i


class View:
    """A buffer as one thread sees it."""

    def __init__(self, memory: Memory, thread: int) -> None:
        self.memory, self.thread = memory, thread

    def __getitem__(self, i: int) -> float:
        return self.memory[self.memory.place(i, self.thread, "reads")]

    def __setitem__(self, i: int, value: float) -> None:
        self.memory[self.memory.place(i, self.thread, "writes")] = filled(value, f"out[{i}]")


def check(given: Given) -> str:
    kernel = get(given, "kernel")
    for size in (5, 8, 1):
        a, out = Memory("a", [1.5 * i for i in range(size)]), Memory("out", [0.0] * size)
        for thread in range(8):
            kernel(thread, View(out, thread), View(a, thread), size)
        for i in range(size):
            if out[i] != a[i] + 10:
                raise Wrong(f"with {size} numbers: out[{i}] is {out[i]:g}, expected {a[i] + 10:g}")
    return (
        "8 threads, 5 numbers: three threads had nothing to do, and did nothing. tinygrad writes"
        " the same guard where a loop does not divide evenly."
    )


def picture(d: Drawing) -> None:
    d.words(20, 66, "8 threads", "quiet")
    for i in range(8):
        css = "blue" if i < 5 else "orange"
        d.box(120 + 60 * i, 50, 40, 30, str(i), css)
        d.arrow(140 + 60 * i, 80, 140 + 60 * i, 126, "" if i < 5 else "asked")
    d.words(20, 150, "a", "code")
    for i in range(8):
        d.box(120 + 60 * i, 130, 40, 34, str(i + 1) if i < 5 else "?", "box" if i < 5 else "none")
    d.words(20, 214, "out", "code")
    for i in range(5):
        d.arrow(140 + 60 * i, 164, 140 + 60 * i, 192)
        d.box(120 + 60 * i, 195, 40, 34, str(i + 11))
    d.words(430, 216, "not ours: do not touch", "quiet")


PUZZLE = Puzzle(
    title="Guard",
    teaches="a kernel is one function, run once for every thread",
    task="""
A kernel is a function that many threads run at once, each with its own number.
This one adds 10 to every number of `a`. It is started with 8 threads, but `a`
and `out` have only `size` numbers, 5 for example. A thread without a number of
its own must not touch anything.
""",
    start="""
def kernel(thread, out, a, size):
    ...
""",
    hint="`if` is all it takes: which threads have a number of their own?",
    solution="""
def kernel(thread, out, a, size):
    if thread < size:
        out[thread] = a[thread] + 10
""",
    check=check,
    picture=picture,
)
