"""The guide's card of equations, each as a function that is its own test; and the mathematics

    python examples/guide_card.py [--quick] [--out DIR]

Guide, section 16: "Quick Reference: Key Equations" and "Math Prerequisites". Every `>>>` below is
run (python -m doctest examples/guide_card.py -v shows them all). Where the card is wrong, ⚠.
"""

import doctest
import math
import sys

import numpy as np
from guide_lesson import Chart, Lesson, Picture, words

# ---- the card ------------------------------------------------------------------------------------

def neuron(w: np.ndarray, x: np.ndarray, b: float) -> float:
    """z = w·x + b, a = f(z); f is ReLU here.

    >>> neuron(np.array([0.8, 0.3]), np.array([3.5, 45.0]), -2.0)
    14.3
    >>> neuron(np.array([0.8, 0.3]), np.array([0.0, 0.0]), -2.0)
    0.0
    """
    return float(round(max(w @ x + b, 0.0), 12))


def mean_squared_error(y: np.ndarray, guess: np.ndarray) -> float:
    """L = (1/N) Σ (y - ŷ)²

    >>> mean_squared_error(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0]))
    3.0
    """
    return float(((y - guess) ** 2).mean())


def cross_entropy(y: np.ndarray, p: np.ndarray) -> float:
    """L = -(1/N) Σₙ Σₖ yₙₖ·log(pₙₖ). ⚠ The card leaves the sum over the classes k out.

    >>> round(cross_entropy(np.eye(10), np.full((10, 10), 0.1)), 6) == round(math.log(10), 6)
    True
    """
    return float(-(y * np.log(p)).sum(1).mean())


def gradient_descent(w: float, slope: float, rate: float) -> float:
    """W ← W - α·∂L/∂W

    >>> w = 1.0
    >>> for _ in range(3):
    ...     w = gradient_descent(w, 2 * w, 0.25)  # of L = w²
    >>> w
    0.125
    """
    return w - rate * slope


def adam(w: float, g: float, m: float, v: float, t: int, rate: float = 1e-3, b1: float = 0.9,
         b2: float = 0.999, eps: float = 1e-8) -> tuple[float, float, float]:
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², W ← W - α·m̂/(√v̂ + ε), with m̂ = m/(1-β₁ᵗ) and
    v̂ = v/(1-β₂ᵗ). ⚠ The card has ε inside the root: a small gradient would then hardly move W.

    >>> round(adam(0.0, 5.0, 0.0, 0.0, 1)[0], 9)
    -0.001
    >>> round(adam(0.0, 1e-8, 0.0, 0.0, 1)[0], 9)
    -0.0005
    """
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return w - rate * step, m, v


def momentum(v: float, g: float, beta: float = 0.9) -> float:
    """v ← βv + g. (⚠ The guide, section 10: βv + (1-β)g, a tenth of what libraries do.)

    >>> v = 0.0
    >>> for _ in range(3):
    ...     v = momentum(v, 1.0)
    >>> round(v, 9)
    2.71
    """
    return beta * v + g


def convolution_size(size: int, p: int, k: int, s: int) -> int:
    """out = floor((in + 2p - k) / s) + 1

    >>> [convolution_size(*a) for a in ((5, 0, 3, 1), (28, 1, 3, 1), (224, 3, 7, 2))]
    [3, 28, 112]
    """
    return (size + 2 * p - k) // s + 1


CARD = (neuron, mean_squared_error, cross_entropy, gradient_descent, adam, momentum,
        convolution_size)


# ---- the mathematics before it -------------------------------------------------------------------

def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A matrix is what it does to the plane: its columns are where (1, 0) and (0, 1) go.

    >>> turn = np.array([[0.0, -1.0], [1.0, 0.0]])     # a quarter turn to the left
    >>> transform(turn, np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])).tolist()
    [[0.0, 1.0], [-1.0, 0.0], [-1.0, 2.0]]

    One after the other is one matrix: their product. And the determinant says how areas grow.

    >>> stretch = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> p = np.array([[0.5, -3.0]])
    >>> bool((transform(turn, transform(stretch, p)) == transform(turn @ stretch, p)).all())
    True
    >>> float(np.linalg.det(turn @ stretch))
    2.0
    """
    return points @ matrix.T


def partial(f, at: tuple[float, ...], which: int, h: float = 1e-6) -> float:
    """∂f/∂x: how f moves if one of its arguments moves, and the others do not.

    >>> f = lambda x, y: x * x * y
    >>> round(partial(f, (3.0, 2.0), 0), 6), round(partial(f, (3.0, 2.0), 1), 6)    # 2xy, x²
    (12.0, 9.0)
    """
    up, down = ([v + d * (i == which) for i, v in enumerate(at)] for d in (h, -h))
    return (f(*up) - f(*down)) / (2 * h)


def bayes(prior: float, hit: float, false_alarm: float) -> float:
    """How likely it is, after a test said yes: P(A|yes) = P(yes|A)·P(A) / P(yes).

    One in a hundred has it, the test finds 90 of 100 and errs for 9 of 100: still only one in 11.

    >>> round(bayes(0.01, 0.90, 0.09), 3)
    0.092
    """
    return hit * prior / (hit * prior + false_alarm * (1 - prior))


def expected(values: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """Mean Σ p·x and variance Σ p·(x - mean)², of a die for example.

    >>> mean, variance = expected(np.arange(1, 7), np.full(6, 1 / 6))
    >>> round(mean, 3), round(variance, 3)
    (3.5, 2.917)
    """
    mean = float((values * probabilities).sum())
    return mean, float((probabilities * (values - mean) ** 2).sum())


MATHEMATICS = (transform, partial, bayes, expected)


def draw() -> str:
    page = Picture("The mathematics before it", 1080, 320,
                   "a matrix moves the plane, a partial derivative, a test and its meaning")
    matrix = np.array([[1.0, 0.6], [0.3, 1.2]])
    chart = Chart(page, (50, 86, 250, 190), (-2, 2), (-1.52, 1.52), "a matrix moves the plane",
                  xticks=(-2, 0, 2), yticks=(-1, 0, 1))
    for k in np.linspace(-2, 2, 9):
        for line in (np.array([[k, -2], [k, 2]]), np.array([[-2, k], [2, k]])):
            chart.line(*transform(matrix, line).T, "grey thin")
    for unit, css in ((np.array([1.0, 0.0]), "blue"), (np.array([0.0, 1.0]), "orange")):
        to = transform(matrix, unit)
        chart.line((0, to[0]), (0, to[1]), css)
        chart.dots(to[:1], to[1:], css)
    page.add(words(50, 312, "blue, orange: where (1, 0) and (0, 1) go: its columns", "quiet"))
    chart = Chart(page, (400, 86, 250, 190), (0, 4), (0, 20), "f(x, y) = x²y, at (2, 2)", "x or y")
    t = np.linspace(0, 4, 80)
    chart.line(t, t * t * 2, "blue")
    chart.line(t, 4 * t, "orange")
    chart.dots([2], [8], "grey", 5)
    chart.note(2.75, 17, "x moves: 2xy = 8", "ink blue", anchor="end")
    chart.note(2.7, 8.6, "y moves: x² = 4", "ink orange")
    page.add(words(750, 76, "1,000 people, a test says yes", "head"))
    yes, no = 9, 89  # who has it and is found; who does not, and is alarmed
    for i in range(yes + no):
        page.add(f'<circle class="dot {"orange" if i < yes else "blue"}" cx="{758 + 19 * (i % 14)}"'
                 f' cy="{98 + 19 * (i // 14)}" r="7"/>')
    page.add(words(750, 262, f"{yes} have it, {no} do not: {yes / (yes + no):.0%}", "quiet"))
    return str(page)


def main() -> None:
    lesson = Lesson("guide_card", __doc__)
    for title, functions in (("The card", CARD), ("The mathematics before it", MATHEMATICS)):
        lesson.part(title)
        for f in functions:
            lesson.say(f"{f.__name__:20} {(f.__doc__ or '').strip().splitlines()[0]}")
    found = doctest.testmod(sys.modules[__name__])
    lesson.say("", f"{found.attempted} examples run, {found.failed} failed")
    lesson.picture(draw())


if __name__ == "__main__":
    main()
