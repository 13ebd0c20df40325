"""Index expressions, point by point: evaluate them everywhere, fit what they are.

An index or a gate is an expression over a few RANGEs. Ranges that meet in one expression are *tied*
and share a Group, which knows all of their points. `fit_affine` finds the exact affine function
through the valid ones, in rationals, and checks it on every point.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.uop.ops import AxisType, Ops, UOp

from tgx.devices.nest import Miss

POINTS = 1 << 19  # most points one group of tied ranges may have


class Stride(Miss):
    """An index moves by a fraction for each step of an axis: split the axis, and it is whole."""

    def __init__(self, axis: UOp, denominator: int) -> None:
        super().__init__("an index is affine only with fractions")
        self.axis, self.denominator = axis, denominator


# ***************************** values of index expressions *****************************

_EVAL: dict[Ops, Any] = {
    Ops.ADD: lambda a, b: a + b,
    Ops.MUL: lambda a, b: a * b,
    Ops.SUB: lambda a, b: a - b,
    Ops.FLOORDIV: lambda a, b: a // b,
    Ops.FLOORMOD: lambda a, b: a % b,
    Ops.CMPLT: lambda a, b: a < b,
    Ops.CMPNE: lambda a, b: a != b,
    Ops.CMPEQ: lambda a, b: a == b,
    Ops.AND: lambda a, b: a & b,
    Ops.OR: lambda a, b: a | b,
    Ops.XOR: lambda a, b: a ^ b,
    Ops.MAX: np.maximum,
    Ops.NEG: lambda a: -a,
    Ops.WHERE: np.where,
    Ops.CAST: lambda a: a,
}


def evaluate(u: UOp, env: dict[UOp, np.ndarray]) -> Any:
    """The value of an index or gate expression at every point of `env` (range -> coordinates)."""
    done: dict[UOp, Any] = {}
    for x in u.toposort():
        if x.op is Ops.CONST:
            done[x] = x.val
        elif x.op is Ops.RANGE:
            done[x] = env[x]
        elif x.op in _EVAL and not (
            x.op is Ops.CAST and not dtypes.is_int(x.dtype) and x.dtype is not dtypes.bool
        ):
            done[x] = _EVAL[x.op](*[done[s] for s in x.src])
        elif x.op not in (Ops.RANGE,):
            raise Miss(f"index uses {x.op.name}")
    return done[u]


def ranges(*us: UOp) -> list[UOp]:
    """The loops an expression depends on, each once, in a stable order."""
    return list(dict.fromkeys(x for u in us for x in u.toposort() if x.op is Ops.RANGE))


@functools.cache
def is_index(u: UOp) -> bool:
    """Made of ranges, variables and constants only: known before the kernel runs."""
    return not any(
        x.op in (Ops.INDEX, Ops.PARAM, Ops.BUFFER, Ops.REDUCE, Ops.LOAD, Ops.SPECIAL)
        and not is_variable(x)
        for x in u.toposort()
    )


def is_variable(u: UOp) -> bool:
    """A number that comes with each call: which row of a data set, how long a sequence."""
    return u.op is Ops.PARAM and u.addrspace is AddrSpace.ALU


def split_terms(u: UOp) -> tuple[int, dict[UOp, int], list[UOp]]:
    """An index as constant + coefficients of plain ranges and variables + what is neither."""
    const, coefs, rest = 0, {}, []  # type: ignore[var-annotated]
    todo = [(u, 1)]
    while todo:
        x, scale = todo.pop()
        if x.op is Ops.ADD:
            todo += [(s, scale) for s in x.src]
        elif x.op is Ops.CONST:
            if x.is_invalid:
                raise Miss("an index has no value behind its own gate")
            const += scale * int(x.val)
        elif x.op is Ops.RANGE or is_variable(x):
            coefs[x] = coefs.get(x, 0) + scale
        elif x.op is Ops.MUL and x.src[1].op is Ops.CONST:
            todo.append((x.src[0], scale * int(x.src[1].val)))
        elif x.op is Ops.MUL and x.src[0].op is Ops.CONST:
            todo.append((x.src[1], scale * int(x.src[0].val)))
        elif not ranges(x):
            const += scale * int(evaluate(x, {}))
        else:
            rest.append(x if scale == 1 else x * scale)
    return const, coefs, rest


def conjuncts(u: UOp) -> list[UOp]:
    """The parts of a & b & c, without constants that are true."""
    parts = [p for p in u.split_uop(Ops.AND) if ranges(p) or not evaluate(p, {})]
    return list(dict.fromkeys(parts))


# ***************************** groups of tied ranges *****************************


class Group:
    """Ranges tied by a gate, a // or a %: all their points, and which are in the sum."""

    def __init__(self, axes: list[UOp]) -> None:
        self.axes = axes
        self.shape = tuple(int(r.vmax) + 1 for r in axes)
        if (size := int(np.prod(self.shape))) > POINTS:
            raise Miss(f"{size} points to enumerate for one index, the limit is {POINTS}")
        grid = np.indices(self.shape).reshape(len(axes), -1)
        self.env = dict(zip(axes, grid, strict=True))
        self.valid = np.ones(grid.shape[1], bool)

    def table(self, gates: list[UOp]) -> np.ndarray:
        out = np.ones(self.valid.shape, bool)
        for g in gates:
            out &= np.broadcast_to(np.asarray(evaluate(g, self.env), bool), out.shape)
        return out

    def fit(self, terms: list[UOp], points: np.ndarray) -> tuple[int, dict[UOp, int]]:
        """The affine function that equals the sum of `terms` on all `points`, or a Miss."""
        values = sum(np.broadcast_to(evaluate(t, self.env), points.shape) for t in terms)
        return fit_affine(
            self.axes,
            np.stack([self.env[a][points] for a in self.axes], 1),
            np.asarray(values)[points],
        )


def fit_affine(
    axes: list[UOp], where: np.ndarray, values: np.ndarray
) -> tuple[int, dict[UOp, int]]:
    """Exact fit: pick independent points, solve in rationals, then check every point."""
    first, rows = where[0], where - where[0]
    rhs = values - values[0]
    basis: list[tuple[int, list[Fraction], Fraction]] = []  # pivot column, row, right-hand side
    left = rows.astype(float)
    while (spots := np.flatnonzero(np.abs(left).max(1, initial=0) > 1e-6)).size:
        row, value = [Fraction(int(x)) for x in rows[spots[0]]], Fraction(int(rhs[spots[0]]))
        for pivot, brow, bval in basis:
            scale = row[pivot]
            row, value = (
                [a - scale * b for a, b in zip(row, brow, strict=True)],
                value - scale * bval,
            )
        pivot = next(i for i, x in enumerate(row) if x)
        scale = row[pivot]
        row, value = [x / scale for x in row], value / scale
        basis = [
            (p, [a - r[pivot] * b for a, b in zip(r, row, strict=True)], v - r[pivot] * value)
            for p, r, v in basis
        ] + [(pivot, row, value)]
        left = left - np.outer(left[:, pivot], np.array([float(x) for x in row]))
    coefs = {axes[p]: v for p, _, v in basis}
    for axis, v in coefs.items():
        if v.denominator != 1:
            raise Stride(axis, v.denominator)
    whole = {a: int(v) for a, v in coefs.items()}
    const = int(values[0]) - sum(int(first[i]) * whole.get(a, 0) for i, a in enumerate(axes))
    fitted = const + sum(where[:, i] * whole.get(a, 0) for i, a in enumerate(axes))
    if not np.array_equal(fitted, values):
        raise Miss("an index is not affine on its valid points")
    return const, whole


def tie(bundles: Iterable[list[UOp]]) -> list[Group]:
    """Union-find: ranges that meet in one expression share a group."""
    groups: list[list[UOp]] = []
    for bundle in bundles:
        touching = [g for g in groups if any(r in g for r in bundle)]
        merged = list(dict.fromkeys([r for g in touching for r in g] + bundle))
        groups = [g for g in groups if g not in touching] + [merged]
    return [
        Group(sorted(g, key=lambda r: (r.arg[-1] is not AxisType.REDUCE, r.arg[:-1])))
        for g in groups
        if g
    ]
