"""Nests with other axes: two loops as one, or one as two. The computation stays the same."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from tinygrad.uop.ops import Ops

from tgx.devices.nest import Access, Affine, Axis, Mask, Nest, Node

MASK_BYTES = 1 << 18  # largest table of lane masks
BIG = 1 << 26  # points from which cache blocking may pay
SUM_BLOCK = 2048  # points of a long sum that are summed at a time, about


def accesses(nest: Nest) -> list[Access]:
    return [nest.store] + [n.arg for n in nest.value.walk() if n.op == "load"]


def merge(nest: Nest, hi: str, lo: str) -> Nest | None:
    """One axis for two, hi*size+lo, if every index agrees: (h, w) of an image is just its plane."""
    n, axes = nest.size(lo), {a.name: a for a in nest.axes}
    if axes[hi].out != axes[lo].out:
        return None
    indices = [a.index for a in accesses(nest)] + [
        v.arg for v in nest.value.walk() if v.op == "index"
    ]
    if any(i[hi] != n * i[lo] for i in indices):
        return None
    parts = nest.parts
    if axes[lo].out:  # the same for all sums, or not at all
        parts = tuple(m for p in nest.parts if (m := merge(p, hi, lo)) is not None)
        if len(parts) != len(nest.parts):
            return None
    try:
        both = Axis(lo, axes[hi].size * n, axes[lo].out)

        def masks(ms: tuple[Mask, ...]) -> tuple[Mask, ...]:
            mine = [m for m in ms if hi in m.axes or lo in m.axes]
            return tuple(m for m in ms if m not in mine) + (
                (join(mine, hi, lo, nest),) if mine else ()
            )

        def access(a: Access) -> Access:
            coefs = {k: v for k, v in a.index.terms if k != hi}
            return replace(a, index=a.index.over(coefs), masks=masks(a.masks))

        done: dict[Node, Node] = {}
        for v in nest.value.walk():
            arg = v.arg
            if v.op == "load":
                arg = access(arg)
            elif v.op == "index":
                arg = arg.over({k: c for k, c in arg.terms if k != hi})
            elif v.op == "mask":
                arg = masks(arg)
            done[v] = Node(v.op, v.dtype, tuple(done[s] for s in v.src), arg)
        rest = tuple(both if a.name == lo else a for a in nest.axes if a.name != hi)
        return Nest(rest, access(nest.store), done[nest.value], masks(nest.domain), parts)
    except OverflowError:
        return None


def join(masks: list[Mask], hi: str, lo: str, nest: Nest) -> Mask:
    """The masks that mention hi or lo as one mask over the merged axis (named lo, put last)."""
    others = sorted({a for m in masks for a in m.axes} - {hi, lo})
    axes = [*others, hi, lo]
    shape = [nest.size(a) for a in axes]
    if math.prod(shape) > MASK_BYTES * 8:
        raise OverflowError
    table = np.ones(shape, bool)
    for m in masks:
        order = [a for a in axes if a in m.axes]
        grid = m.table.transpose([m.axes.index(a) for a in order])
        table &= grid.reshape([nest.size(a) if a in order else 1 for a in axes])
    flat = table.reshape(*shape[:-2], -1)
    return Mask.of([*others, lo], np.ascontiguousarray(flat), all(m.implied for m in masks))


def blocked(nest: Nest) -> list[Nest]:
    """The nest with one long output axis cut in two: what the inner part uses may fit a cache."""
    out: list[Nest] = []
    if (
        not is_contraction(nest)
        or math.prod(a.size for a in nest.axes) < BIG
        or nest.domain
        or nest.parts
    ):
        return out
    for axis in nest.axes:
        for n in (64, 128):
            if axis.out and axis.size % n == 0 and axis.size >= 4 * n:
                out.append(cut(nest, axis, n))
    return out


def summed_in_blocks(nest: Nest) -> list[tuple[Nest, str]]:
    """The nest with a long sum cut in two, and the outer part's name: partial sums in memory, so
    that a copy of what the inner part reads fits a cache."""
    long = math.prod(a.size for a in nest.axes if not a.out)
    whole = is_contraction(nest) and nest.value is nest.reduction and not nest.parts
    if not whole or long < 2 * SUM_BLOCK:
        return []
    for axis in nest.axes:
        if axis.out or any(axis.name in m.axes for m in nest.domain):
            continue
        sizes = [n for n in range(1, axis.size) if axis.size % n == 0]
        sizes = [n for n in sizes if SUM_BLOCK <= 8 * long // axis.size * n <= 16 * SUM_BLOCK]
        small = [n for n in sizes if long // axis.size * n <= SUM_BLOCK]
        if sizes and (found := cut(nest, axis, small[-1] if small else sizes[0])) is not nest:
            return [(found, axis.name + "b")]
    return []


def cut(nest: Nest, axis: Axis, n: int) -> Nest:
    """axis becomes n*hi + axis."""
    hi = Axis(axis.name + "b", axis.size // n, axis.out)

    def index(i: Affine) -> Affine:
        return i.over({**i.coefs, hi.name: n * i[axis.name]})

    done: dict[Node, Node] = {}
    for v in nest.value.walk():
        arg = (
            replace(v.arg, index=index(v.arg.index))
            if v.op == "load"
            else (index(v.arg) if v.op == "index" else v.arg)
        )
        if v.op in ("load", "mask") and any(
            axis.name in m.axes for m in (arg.masks if v.op == "load" else arg)
        ):
            return nest
        done[v] = Node(v.op, v.dtype, tuple(done[s] for s in v.src), arg)
    axes = [x for a in nest.axes for x in ((hi, replace(a, size=n)) if a is axis else (a,))]
    return Nest(
        tuple(axes),
        replace(nest.store, index=index(nest.store.index)),
        done[nest.value],
        nest.domain,
    )


def merged(nest: Nest) -> Nest:
    """Merge what can be merged."""
    while True:
        for hi, lo in itertools.permutations([a.name for a in nest.axes], 2):
            if (found := merge(nest, hi, lo)) is not None:
                nest = found
                break
        else:
            return nest


def is_contraction(nest: Nest) -> bool:
    red = nest.reduction
    return red is not None and red.arg is Ops.ADD and red.src[0].op == "mul"
