"""One file a framework. A side is a class with the operations that models.py uses, and:

    train(model, parameters, batches)   a step: step(i) learns from batch i, gives its loss
    infer(model, parameters, batches)   a step: step(i) gives the scores of batch i
    matmul(a, b, form)                  a step, and a function that gives the product
    epoch(model, parameters, folder)    a function: one pass over the digits in `folder`, its losses
    memory()                            bytes the framework says it holds, or 0

Each is written the way that framework's own users write it, and as fast as that allows. A training
step reads its loss back, an inference its scores.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tgx.errors import BadInput, missing_extra

SIDES = {"tinygrad": "tinygrad", "torch": "torch", "jax": "jax"}  # name -> the package it needs

# Adam's constants, and the step size: what all contenders train with.
LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
EPOCH_BATCH = 64


def side(name: str) -> Any:
    """The side of this name, with its framework loaded."""
    if name not in SIDES:
        raise BadInput(f"side {name!r}", f"one of {', '.join(SIDES)}")
    try:
        import_module(SIDES[name])
    except ModuleNotFoundError:
        raise missing_extra(SIDES[name], "peers") from None
    return import_module(f"tgx.bench.sides.{name}_side").Side()
