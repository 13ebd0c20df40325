"""Gradients checked by finite differences, in float64.

Two checks, of two claims. A *contribution* is what one rule makes of one upstream gradient: so the
operation alone is computed again, one element of one input moved by ±h, and the difference weighed
with the upstream gradient. A parameter's *gradient* is the slope of the loss: so the whole forward
graph from that parameter on is computed again.

The difference is (f(x+h) - f(x-h)) / 2h at h and at h/2, and what the two say of h = 0
(Richardson): its error falls with h⁴. Where the slopes on the left and on the right differ, there
is a kink, and no derivative to agree with.
"""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tinygrad.uop.ops import GroupOp, Ops

from tgx.adapter.reference import ARITHMETIC, REDUCTIONS
from tgx.adapter.values import (
    Array,
    Deferred,
    Row,
    Rows,
    Values,
    apply,
    broadcast,
    sampled,
    whole,
)
from tgx.model import Check

PLACES = 2  # elements of a tensor that are looked at
STEP = 1e-4
SECONDS = 6.0  # for the checks of all parameters of one walk
MANY = 1 << 24  # elements of a forward graph, from which on one element of each is checked
MOST_FORWARD = 1 << 27  # elements of a forward graph that is computed in float64

# near 0 these change quickly: the step is a part of the input, however small that is
STEEP = {Ops.LOG2, Ops.RECIPROCAL, Ops.SQRT, Ops.POW, Ops.FDIV}

Block = tuple[slice, ...]


def places(array: Any, count: int = PLACES) -> list[tuple[int, ...]]:
    """Where to look: at the largest element, and at one in the middle."""
    if array is None or not array.size:
        return []
    if isinstance(array, Deferred):
        array = sampled(array)
    with np.errstate(all="ignore"):
        size = np.abs(np.nan_to_num(np.asarray(array, np.float64), posinf=0, neginf=0))
    flat = [int(np.argmax(size)), array.size // 2][:count]
    return [tuple(int(i) for i in np.unravel_index(f, array.shape)) for f in dict.fromkeys(flat)]


def slope(f: Callable[[float], float], x: float, steep: bool = False) -> tuple[float, bool]:
    """(df/dx at x, whether there is a kink there).

    A smooth function's slopes left and right come together as h shrinks; at a kink they do not.
    """
    h = STEP * (abs(x) if steep and x else max(1.0, abs(x)))
    here, far = f(x), (f(x - h), f(x + h))
    low, high = f(x - h / 2), f(x + h / 2)
    wide, near = (far[1] - far[0]) / (2 * h), (high - low) / h
    if not (math.isfinite(wide) and math.isfinite(near)):
        return math.nan, False
    # of float64, in a slope; what cancelled on the way to f may have been as large as x
    noise = 1e-14 * max(abs(here), abs(low), abs(high), abs(x), 1e-2) / h
    gap = abs(high - 2 * here + low) / (h / 2)  # between the slopes right and left
    apart = 1e-4 * abs(near) + noise
    if gap <= apart and abs(wide - near) <= apart:
        return (4 * near - wide) / 3, False
    h /= 100
    low, high = f(x - h), f(x + h)
    if abs(high - 2 * here + low) / h > 0.5 * gap > 50 * noise:
        return (high - low) / (2 * h), True
    if abs(wide - near) <= apart:
        return (4 * near - wide) / 3, False
    return (high - low) / (2 * h), False  # a kink lies near, but not here


def compared(found: Sequence[tuple[int, float, float, bool]], typical: float) -> Check:
    """(place, gradient, difference, kink) rows as a Check. The error is relative to the larger of
    the two, or to what is typical where that is larger still."""
    rows = [r for r in found if math.isfinite(r[1]) and math.isfinite(r[2])]
    if not rows:
        return Check(why="not finite")
    error = max(abs(g - d) / max(abs(g), abs(d), typical, 1e-30) for _, g, d, _ in rows)
    return Check(
        tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(r[2] for r in rows),
        error, any(r[3] for r in rows),
    )  # fmt: skip


def typical(array: Any) -> float:
    """The root mean square of a tensor's elements."""
    with np.errstate(all="ignore"):
        flat = np.asarray(sampled(array), np.float64)
        flat = flat[np.isfinite(flat)]
        return float(np.sqrt(np.mean(flat * flat))) if flat.size else 0.0


# **** one contribution ****


def contribution(graph: Rows, row: Row, slot: int, inputs: Sequence[Array], upstream: Array,
                 given: Array) -> tuple[Check, float]:
    """A rule's contribution to one input, against the operation's own difference; and how large
    the terms are that it sums."""
    if row.op in (Ops.AFTER, Ops.STORE) and inputs[0] is None:
        inputs = [given if a is None else a for a in inputs]  # never set: only overwritten
    if any(a is None for a in (*inputs, upstream, given)) and row.op is not Ops.CALL:
        return Check(why="a value is not known"), 0.0
    if row.op is Ops.TUPLE and isinstance(upstream, tuple):
        upstream = upstream[slot]
    if row.op in (Ops.FUNCTION, Ops.CALL):
        return _through_body(graph, row, slot, inputs, upstream, given), 0.0
    if row.op is Ops.UNSHARD and isinstance(inputs[0], list) and isinstance(given, list):
        return _of_pieces(row, inputs[0], whole(upstream), given), 0.0
    lists = [a for a in (*inputs, upstream, given) if isinstance(a, (list, tuple))]
    if lists:
        return Check(why="spread over several devices"), 0.0
    array = inputs[slot]
    found = []
    usual = typical(given)
    with np.errstate(all="ignore"):
        for at in places(given):
            try:
                difference, kink, terms = _one(graph, row, slot, inputs, upstream, at)
            except NotImplementedError:
                return Check(why=f"{row.op.name} has no check"), 0.0
            flat = int(np.ravel_multi_index(at, array.shape)) if array.shape else 0
            found.append((flat, float(given[at]), difference, kink))
            # what is summed may cancel: float32's rounding is as large as the terms make it
            usual = max(usual, terms if math.isfinite(terms) else 0.0)
    return compared(found, usual), usual


def _one(graph: Rows, row: Row, slot: int, inputs: Sequence[Array], upstream: Array,
         at: tuple[int, ...]) -> tuple[float, bool, float]:
    """(difference of Σ upstream·f(inputs) by one element of one input, kink, the size of the terms
    that are summed)."""
    array = inputs[slot]
    x = float(array[at])
    op = row.op
    if op is Ops.REDUCE:
        count = row.arg[1]
        line = tuple(slice(None) for _ in range(count)) + at[count:]
        values = np.asarray(array[line], np.float64)
        g = float(upstream[at[count:]])
        reducer = REDUCTIONS[row.arg[0]]

        def reduced(value: float) -> float:
            moved = values.copy()
            moved[at[:count]] = value
            return float(reducer(moved)) * g

        return *slope(reduced, x), 0.0
    if op in ARITHMETIC or op in (Ops.CAST, Ops.BITCAST):
        out = np.broadcast_shapes(*(a.shape for a in inputs))
        block = _affected(at, array.shape, out)
        parts = [_part(a, block, out) for a in inputs]
        weight = np.asarray(broadcast(upstream, out)[block], np.float64)
        kinds = [graph.rows[s].dtype for s in row.src]

        def computed(value: float) -> Any:
            held = [np.full(p.shape, value) if i == slot else p for i, p in enumerate(parts)]
            return np.asarray(apply(row, held, True, kinds), np.float64) * weight

        def total(value: float) -> float:
            return float(np.sum(computed(value)))

        h = STEP * (abs(x) if op in STEEP and x else max(1.0, abs(x)))
        terms = float(np.sum(np.abs(computed(x + h) - computed(x - h)))) / (2 * h)
        return *slope(total, x, op in STEEP), terms
    block = _moved(row, slot, at, array.shape, upstream.shape)
    reached = np.asarray(upstream[block], np.float64) if block is not None else np.zeros(())
    g, terms = float(np.sum(reached)), float(np.sum(np.abs(reached)))
    return *slope(lambda value: value * g, x), terms


def _affected(at: tuple[int, ...], shape: tuple[int, ...], out: tuple[int, ...]) -> Block:
    """The elements of a broadcast result that one element of an input reaches."""
    extra = len(out) - len(shape)
    return tuple(
        slice(None) if a < extra or (shape[a - extra] == 1 and out[a] != 1)
        else slice(at[a - extra], at[a - extra] + 1)
        for a in range(len(out))
    )


def _part(array: Any, block: Block, out: tuple[int, ...]) -> Any:
    """What an input brings to a block of the result."""
    extra = len(out) - len(array.shape)
    own = tuple(slice(None) if array.shape[b] == 1 else block[b + extra]
                for b in range(len(array.shape)))
    part = np.asarray(array[own])
    return part.astype(np.float64) if part.dtype.kind == "f" else part


def _moved(row: Row, slot: int, at: tuple[int, ...], shape: tuple[int, ...],
           out: tuple[int, ...]) -> Any:
    """Where one element of an input is found in the result; None where it is left out."""
    op, arg = row.op, row.arg
    if op is Ops.RESHAPE:
        flat = int(np.ravel_multi_index(at, shape)) if shape else 0
        return tuple(int(i) for i in np.unravel_index(flat, out)) if out else ()
    if op is Ops.EXPAND:
        return (*(slice(None) for _ in range(len(out) - len(shape))), *at)
    if op is Ops.PERMUTE:
        return tuple(at[a] for a in arg)
    if op is Ops.FLIP:
        return tuple(n - 1 - i if f else i for i, n, f in zip(at, shape, arg, strict=True))
    if isinstance(arg, list):
        raise NotImplementedError
    if op is Ops.PAD:
        return tuple(i + o for i, (o, _) in zip(at, arg, strict=True))
    if op is Ops.SHRINK:
        inside = all(o <= i < o + s for i, (o, s) in zip(at, arg, strict=True))
        return tuple(i - o for i, (o, _) in zip(at, arg, strict=True)) if inside else None
    if op is Ops.STACK:
        return (slot, *at)
    if op is Ops.TUPLE:
        return at
    if op in GroupOp.Movement or shape != out:
        raise NotImplementedError
    return at  # the value is passed on as it is


def _of_pieces(row: Row, pieces: Sequence[Any], upstream: Any, given: Sequence[Any]) -> Check:
    """Pieces on several devices, put together along an axis: each element is passed on."""
    found, start = [], 0
    for piece, gradient in zip(map(whole, pieces), map(whole, given), strict=True):
        for at in places(gradient, 1):
            in_all = tuple(i + (start if a == row.arg else 0) for a, i in enumerate(at))
            g = float(upstream[in_all])
            difference, kink = slope(functools.partial(operator.mul, g), float(piece[at]))
            flat = int(np.ravel_multi_index(in_all, upstream.shape))
            found.append((flat, float(gradient[at]), difference, kink))
        start += piece.shape[row.arg]
    return compared(found, 0.0)


def _through_body(graph: Rows, row: Row, slot: int, inputs: Sequence[Array], upstream: Array,
                  given: Array) -> Check:
    """A function's, or a kernel's written by hand: its whole body is computed again."""
    grads = upstream if isinstance(upstream, tuple) else (upstream,)
    body = Values(graph, double=True)
    body_of = body.function if row.op is Ops.FUNCTION else body.kernel
    array = np.asarray(whole(inputs[slot]), np.float64)
    found = []
    with np.errstate(all="ignore"):
        for at in places(given):

            def computed(value: float, at: tuple[int, ...] = at) -> float:
                moved = array.copy()
                moved[at] = value
                all_inputs = [moved if i == slot else a for i, a in enumerate(inputs)]
                results = body_of(row, all_inputs)
                return float(sum(np.sum(np.asarray(whole(r), np.float64) * whole(g))
                                 for r, g in zip(results, grads, strict=False)
                                 if r is not None and g is not None))

            difference, kink = slope(computed, float(array[at]))
            flat = int(np.ravel_multi_index(at, array.shape)) if array.shape else 0
            found.append((flat, float(given[at]), difference, kink))
    return compared(found, typical(given))


# **** a parameter's gradient ****


class Slopes:
    """The loss's own slopes: the forward graph in float64, computed again from one row on."""

    def __init__(self, graph: Rows, forward: int, root: int, weight: Array) -> None:
        self.root, self.why = root, ""
        self.began = time.process_time()
        rows = graph.rows[:forward]
        size = sum(math.prod(r.shape or ()) for r in rows)
        if size > 4 * MOST_FORWARD:
            self.why = f"left out: the forward graph has {size:,} elements"
            return
        self.count = 1 if size > MANY else PLACES
        self.rows = Rows(rows, graph.buffers)
        self.values = Values(self.rows, double=True, keep=True)
        try:
            self.values.run()
        except MemoryError:
            self.why = "left out: not enough memory"
            return
        self.weight = np.asarray(whole(weight), np.float64) if weight is not None else np.ones(())
        if self.values.held.get(root) is None:
            self.why = self.values.why.get(root, "the loss is not known")

    def below(self, node: int) -> list[int]:
        """The rows whose values depend on a node's. Nothing passes a detach()."""
        reached = {node}
        for i, row in enumerate(self.rows.rows):
            if i > node and row.op is not Ops.DETACH and reached.intersection(row.src):
                reached.add(i)
        return sorted(reached - {node})

    def check(self, node: int, gradient: Array, terms: float = 0.0) -> Check:
        """A gradient of the loss by a node of the forward graph, whose last sum had such terms."""
        if self.why:
            return Check(why=self.why)
        if time.process_time() - self.began > SECONDS:
            return Check(why=f"left out: checking took longer than {SECONDS:g} s")
        array = self.values.held.get(node)
        if gradient is None or array is None:
            return Check(why="a value is not known")
        if isinstance(array, (list, tuple)) or isinstance(gradient, (list, tuple)):
            return Check(why="spread over several devices")
        gradient, array = whole(gradient), np.asarray(whole(array), np.float64)
        rows = self.below(node)
        found = []
        for at in places(gradient, self.count):

            def loss(value: float, at: tuple[int, ...] = at) -> float:
                moved = array.copy()
                moved[at] = value
                result = self.values.again({node: moved}, rows, self.root)
                if result is None or isinstance(result, (list, tuple)):
                    return math.nan
                return float(np.sum(whole(result) * self.weight))

            difference, kink = slope(loss, float(array[at]))
            flat = int(np.ravel_multi_index(at, array.shape)) if array.shape else 0
            found.append((flat, float(gradient[at]), difference, kink))
        return compared(found, max(typical(gradient), terms))
