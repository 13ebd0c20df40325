"""Every textbook gradient against central differences of the operation itself, in float64: the
formulas that the backward walk holds tinygrad to are themselves held to something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tgx.adapter.textbook import TEXTBOOK

rng = np.random.default_rng(3)
KEPT = rng.random((3, 4)) > 0.3
Case = tuple[Callable[..., Any], tuple[Any, ...]]


def some(*shape: int) -> Any:
    """Numbers that are away from 0, where relu has its kink and log its end."""
    return rng.choice([-1, 1], shape) * rng.uniform(0.3, 1.5, shape)


def conv2d(x: Any, w: Any, b: Any) -> Any:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::2, ::2], w) + b.reshape(1, -1, 1, 1)


def batchnorm(x: Any, gamma: Any, beta: Any) -> Any:
    mean, variance = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma[:, None] + beta[:, None]


def softmax(x: Any) -> Any:
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


CASES: dict[str, Case] = {
    "matmul": (lambda x, w: x @ w, (some(2, 3, 4), some(4, 2))),
    "dot": (lambda x, w: x @ w, (some(3, 4), some(4, 2))),
    "linear": (lambda x, w, b: x @ w.T + b, (some(3, 4), some(2, 4), some(2))),
    "conv2d": (conv2d, (some(2, 2, 5, 5), some(3, 2, 3, 3), some(3))),
    "batchnorm": (batchnorm, (some(3, 2, 4), some(2), some(2))),
    "max_pool2d": (lambda x: x.reshape(1, 2, 2, 2, 2, 2).max((3, 5)), (some(1, 2, 4, 4),)),
    "dropout": (lambda x: np.where(KEPT, x / 0.7, 0), (some(3, 4),)),
    "softmax": (softmax, (some(3, 5),)),
    "log_softmax": (lambda x: np.log(softmax(x)), (some(3, 5),)),
    "sum": (lambda x: x.sum(1), (some(3, 5),)),
    "mean": (lambda x: x.mean(0), (some(3, 5),)),
    "relu": (lambda x: np.maximum(x, 0), (some(3, 4),)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), (some(3, 4),)),
    "tanh": (np.tanh, (some(3, 4),)),
    "exp": (np.exp, (some(3, 4),)),
    "log": (np.log, (abs(some(3, 4)),)),
    "sqrt": (np.sqrt, (abs(some(3, 4)),)),
    "square": (np.square, (some(3, 4),)),
    "neg": (np.negative, (some(3, 4),)),
    "add": (np.add, (some(3, 4), some(4))),
    "sub": (np.subtract, (some(3, 4), some(4))),
    "mul": (np.multiply, (some(3, 1), some(3, 4))),
    "div": (np.divide, (some(3, 4), some(4))),
}


def test_every_form_has_a_case() -> None:
    assert set(CASES) == set(TEXTBOOK)


@pytest.mark.parametrize("op", CASES)
def test_a_textbook_form_is_the_slope(op: str) -> None:
    f, inputs = CASES[op]
    z = np.asarray(f(*inputs))
    dz, h = some(*z.shape), 1e-5
    recipe = next(TEXTBOOK[op](inputs, z, dz))
    assert len(recipe.rows) == len(inputs)
    for i, (role, formula, gradient) in enumerate(recipe.rows):
        slope = np.zeros(inputs[i].shape)
        for place in np.ndindex(*slope.shape):
            ends = []
            for step in (h, -h):
                moved = inputs[i].copy()
                moved[place] += step
                ends.append((f(*inputs[:i], moved, *inputs[i + 1 :]) * dz).sum())
            slope[place] = (ends[0] - ends[1]) / (2 * h)
        made = np.asarray(gradient).reshape(slope.shape)
        np.testing.assert_allclose(made, slope, rtol=1e-6, atol=1e-8, err_msg=f"{role}: {formula}")
