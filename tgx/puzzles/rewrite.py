"""A rule of a rewriting compiler."""

from __future__ import annotations

from typing import Any

from tgx.puzzles.base import Given, Puzzle, Wrong, get
from tgx.puzzles.drawing import Drawing


def check(given: Given) -> str:
    from tinygrad.uop.ops import PatternMatcher, UOp, graph_rewrite

    rules = get(given, "rules")
    if not isinstance(rules, PatternMatcher):
        raise Wrong(f"rules is {type(rules).__name__}; expected a PatternMatcher")
    x, y = UOp.variable("x", 0, 100), UOp.variable("y", 0, 100)
    graphs: list[tuple[Any, str]] = [
        ((x + 3) + 4, "(x+7)"),
        (((x + 1) + 2) + 3, "(x+6)"),
        (((x + 3) + 4) * ((y + 1) + 2), "((x+7)*(y+3))"),
        ((x + 5) + y, "(x+5+y)"),  # y is not a constant: nothing to do
        ((x * 2) + 9, "(x*2+9)"),
    ]
    for graph, right in graphs:
        found = shown(graph_rewrite(graph, rules))
        if found != right:
            raise Wrong(f"{shown(graph)} became {found}, expected {right}")
    return (
        "The rule ran until nothing changed any more, wherever it fitted. tinygrad's compiler"
        " is long lists of such rules: this one stands in tinygrad/uop/symbolic.py."
    )


def shown(graph: Any) -> str:
    return str(graph.render(simplify=False))


def picture(d: Drawing) -> None:
    def tree(left: float, top: str, first: str, second: str, css: str = "box") -> None:
        d.box(left + 60, 60, 50, 34, top, css)
        d.box(left, 130, 60, 34, first, css)
        d.box(left + 110, 130, 60, 34, second, css)
        d.arrow(left + 30, 130, left + 75, 94)
        d.arrow(left + 140, 130, left + 95, 94)

    tree(40, "+", "+", "b", "blue")
    d.box(0 + 20, 200, 50, 34, "x")
    d.box(100, 200, 50, 34, "a", "blue")
    d.arrow(45, 200, 65, 164)
    d.arrow(125, 200, 85, 164)
    d.arrow(270, 120, 400, 120, "asked")
    d.words(290, 108, "your rule", "quiet")
    tree(440, "+", "x", "a + b", "orange")
    d.words(440, 200, "a and b are constants:", "quiet")
    d.words(440, 220, "their sum is known while compiling", "quiet")


PUZZLE = Puzzle(
    title="Write a rewrite rule",
    teaches="tinygrad's compiler is patterns and what to put in their place",
    task="""
Index arithmetic is full of (x + 3) + 4. Write the rule that makes (x + a) + b
into x + (a + b), where a and b are constants and x is anything.

A rule is a pattern and a function. In the pattern, UPat.var("x") fits anything and
calls it x; UPat.cvar("a") fits a constant. The function gets what was found, by
name, and gives what should stand there. A constant's number is a.val; adding a
plain number to a UOp makes the constant for you.
""",
    start="""
from tinygrad.uop.ops import PatternMatcher, UPat

rules = PatternMatcher([
    (UPat.var("x") * 1, lambda x: x),        # an example: x * 1 is x
    (..., lambda x, a, b: ...),
])
""",
    hint='The pattern is written like the expression: (UPat.var("x") + UPat.cvar("a")) + ...',
    solution="""
from tinygrad.uop.ops import PatternMatcher, UPat

rules = PatternMatcher([
    (UPat.var("x") * 1, lambda x: x),
    ((UPat.var("x") + UPat.cvar("a")) + UPat.cvar("b"), lambda x, a, b: x + (a.val + b.val)),
])
""",
    check=check,
    picture=picture,
)
