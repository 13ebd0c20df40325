"""The gradient of an activation, by hand."""

from __future__ import annotations

import math

from tgx.puzzles.base import Given, Puzzle, Wrong, filled, get, near
from tgx.puzzles.drawing import Drawing


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def slope(x: float) -> float:
    s = 1 / (1 + math.exp(-x))
    return s + x * s * (1 - s)


def check(given: Given) -> str:
    from tinygrad import Tensor

    mine = get(given, "silu_slope")
    points = [-4.0, -1.278, -0.5, 0.0, 0.3, 1.0, 2.5, 6.0]
    for x in points:
        found = filled(mine(x), f"silu_slope({x:g})")
        if not near(found, slope(x)):
            rise = (silu(x + 1e-4) - silu(x - 1e-4)) / 2e-4
            raise Wrong(
                f"silu_slope({x:g}) is {found:.6g}. But from {x:g} - 0.0001 to {x:g} + 0.0001 silu"
                f" rises by {rise * 2e-4:.6g}, which is a slope of {rise:.6g}."
            )
    t = Tensor(points)
    theirs = t.silu().sum().gradient(t)[0].tolist()
    assert all(near(a, slope(x)) for a, x in zip(theirs, points, strict=True))
    return f"tinygrad's autograd says the same at {len(points)} points; at 0 the slope is 1/2."


def picture(d: Drawing) -> None:
    left, low, unit = 120, 200, 40

    def at(x: float, y: float) -> tuple[float, float]:
        return left + unit * (x + 2), low - unit * y

    d.arrow(30, low, 620, low)
    d.arrow(at(0, 0)[0], 240, at(0, 0)[0], 50)
    d.curve([at(x / 10, silu(x / 10)) for x in range(-42, 38)])
    for x in (-2.5, 0.0, 2.0):
        (x1, y1), (x2, y2) = (at(x + h, silu(x) + h * slope(x)) for h in (-0.8, 0.8))
        d.curve([(x1, y1), (x2, y2)], "asked")
    d.words(at(3.9, 0)[0], at(0, 3.4)[1], "silu(x) = x · sigmoid(x)", "code")
    d.words(at(3.9, 0)[0], at(0, 1.7)[1], "how steep is it, at any x?", "quiet")
    d.words(at(3.9, 0)[0], at(0, 1.2)[1], "(the dashed lines)", "quiet")


PUZZLE = Puzzle(
    title="Derive a gradient",
    teaches="the product rule and the chain rule, once by hand",
    task="""
silu(x) = x · sigmoid(x), with sigmoid(x) = 1 / (1 + e^-x), stands in
EfficientNet and in many language models. What is its slope at x?
""",
    start="""
import math

def sigmoid(x):
    return 1 / (1 + math.exp(-x))

def silu_slope(x):
    return ...
""",
    hint="(f·g)' = f'·g + f·g', and sigmoid' = sigmoid · (1 - sigmoid).",
    solution="""
import math

def sigmoid(x):
    return 1 / (1 + math.exp(-x))

def silu_slope(x):
    s = sigmoid(x)
    return s + x * s * (1 - s)
""",
    check=check,
    picture=picture,
)
