"""An autograd engine's table, filled in."""

from __future__ import annotations

from collections.abc import Callable

from tgx.puzzles.base import Given, Puzzle, Wrong, get, near
from tgx.puzzles.drawing import Drawing

# what each operation computes, and where its rule is tried
VALUES: dict[str, tuple[Callable[..., float], tuple[tuple[float, ...], ...]]] = {
    "ADD": (lambda a, b: a + b, ((2.0, -3.0), (0.5, 0.5))),
    "MUL": (lambda a, b: a * b, ((2.0, -3.0), (0.5, 4.0))),
    "EXP2": (lambda a: 2.0**a, ((0.0,), (1.5,), (-2.0,))),
    "RECIPROCAL": (lambda a: 1 / a, ((2.0,), (-0.5,))),
    "MAX": (max, ((2.0, -3.0), (-1.0, 4.0))),
}


def check(given: Given) -> str:
    rules = get(given, "RULES")
    for name, (value, points) in VALUES.items():
        if name not in rules:
            raise Wrong(f"RULES has no row for {name}")
        for at in points:
            for blame in (1.0, 2.5):
                shown = f"{name}{at if len(at) > 1 else f'({at[0]:g})'}"
                found = rules[name](blame, value(*at), *at)
                if found is ... or ... in (found if isinstance(found, tuple) else ()):
                    raise Wrong(f"the row {name} is still ...: nothing is filled in there yet")
                if not isinstance(found, tuple) or len(found) != len(at):
                    raise Wrong(
                        f"the row {name} should give a tuple of {len(at)}, one for each operand;"
                        f" it gives {found!r}"
                    )
                for i, slope in enumerate(found):
                    up, down = (
                        value(*(x + h * (i == j) for j, x in enumerate(at))) for h in (1e-6, -1e-6)
                    )
                    right = blame * (up - down) / 2e-6
                    if not near(slope, right):
                        raise Wrong(
                            f"{shown}, with ctx = {blame:g}: operand {'ab'[i]} gets {slope:g},"
                            f" expected {right:g}. Move {'ab'[i]} a little: the result moves"
                            f" {right / blame:g} times as far, and ctx says how much that matters."
                        )
    return (
        "Five rows, tried against finite differences. tinygrad's table has the same form:"
        " tinygrad/mixin/gradient.py, pm_gradient."
    )


def picture(d: Drawing) -> None:
    d.box(40, 60, 70, 40, "a", "blue")
    d.box(40, 170, 70, 40, "b", "blue")
    d.box(240, 115, 90, 40, "MUL")
    d.box(470, 115, 130, 40, "... the loss")
    d.arrow(110, 80, 240, 125)
    d.arrow(110, 190, 240, 145)
    d.arrow(330, 130, 470, 130)
    d.arrow(470, 148, 334, 148, "asked")
    d.words(360, 175, "ctx: how much this", "quiet")
    d.words(360, 193, "value moves the loss", "quiet")
    d.arrow(236, 112, 116, 70, "asked")
    d.arrow(236, 158, 116, 202, "asked")
    d.words(150, 62, "?", "title")
    d.words(150, 218, "?", "title")


PUZZLE = Puzzle(
    title="Fill in the rules",
    teaches="an autograd engine is a table with a row for each operation",
    task="""
Going backwards, each operation is told `ctx`: how much its result moves the loss.
It says how much each of its operands does. `out` is its result, a and b are what
it was given. EXP2 is 2 to the power a; RECIPROCAL is 1/a; MAX is the larger one.
""",
    start="""
import math

RULES = {
    "ADD":        lambda ctx, out, a, b: (ctx, ctx),
    "MUL":        lambda ctx, out, a, b: (..., ...),
    "EXP2":       lambda ctx, out, a: (...,),
    "RECIPROCAL": lambda ctx, out, a: (...,),
    "MAX":        lambda ctx, out, a, b: (..., ...),
}
""",
    hint="2^a = e^(a ln 2), so its slope is out · ln 2. The slope of 1/a is -1/a² = -out·out.",
    solution="""
import math

RULES = {
    "ADD":        lambda ctx, out, a, b: (ctx, ctx),
    "MUL":        lambda ctx, out, a, b: (ctx * b, ctx * a),
    "EXP2":       lambda ctx, out, a: (ctx * out * math.log(2),),
    "RECIPROCAL": lambda ctx, out, a: (-ctx * out * out,),
    "MAX":        lambda ctx, out, a, b: (ctx * (a > b), ctx * (b > a)),
}
""",
    check=check,
    picture=picture,
)
