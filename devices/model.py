"""The cost model: what a tile, an order of loops and a copy would cost on a machine.

Cycles of the arithmetic, of the load ports, of lines that miss a cache. It need not be right, only
right about which of two plans is faster; nothing is measured while compiling.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tinygrad.dtype import dtypes

from tgx.devices.merge import MASK_BYTES, accesses
from tgx.devices.nest import Access, Affine, Axis, Mask, Nest, Node

PACK_BYTES = 272 << 10  # largest packed operand: it lives on a thread's stack
MAX_CHUNKS = 16
CHUNK_CYCLES = 24_000  # do not wake a thread for less


@dataclass(frozen=True)
class Machine:
    """What the model knows about a CPU. Sizes in bytes, throughputs per cycle."""

    vector: int = 64
    registers: int = 32
    l1: int = 32 << 10
    l2: int = 1 << 20
    fma: float = 1.0  # vector multiply-adds
    load: float = 1.0  # vector loads
    scalar: float = 2.0  # scalar loads, broadcasts included

    @staticmethod
    def of(vector_bytes: int, architecture: str) -> Machine:
        """From what the compiler knows of its target."""
        if vector_bytes == 64:
            return Machine()
        return Machine(vector_bytes, 16 if architecture == "x86_64" else 32, fma=2.0, load=2.0)


@dataclass(frozen=True)
class Pack:
    """A copy of what is used again and again of one factor, its prologue applied.

    Rows that lie a multiple of 2 KB apart fall into the same few sets of a cache and push each
    other out, and every row needs a TLB entry of its own (GotoBLAS packs for this). A copy is also
    where a transposition costs little: it may read along one axis and lie along another."""

    node: Node  # the factor: a load, or an expression of loads
    level: int  # loops outside the copy
    extents: tuple[tuple[str, int], ...]  # axis, points held; as the copy lies, outermost first
    strides: tuple[tuple[str, int], ...]
    size: int
    along: str  # the axis it is read along, in whole vectors

    def __str__(self) -> str:
        slots = "*".join(f"p{n.arg.slot}" for n in self.node.walk() if n.op == "load")
        return f"{slots}[{' '.join(f'{a}:{n}' for a, n in self.extents)}]"


def dependence(nest: Nest) -> dict[Node, frozenset[str]]:
    """The axes each node's value varies over."""
    out: dict[Node, frozenset[str]] = {}
    sums = {a.name for a in nest.axes if not a.out}
    for n in nest.value.walk():
        mine = {a for s in n.src for a in out[s]}
        if n.op == "load":
            mine |= {a for a, _ in n.arg.index.terms} | {a for m in n.arg.masks for a in m.axes}
        elif n.op == "index":
            mine |= {a for a, _ in n.arg.terms}
        elif n.op == "mask":
            mine |= {a for m in n.arg for a in m.axes}
        elif n.op == "sum":
            mine |= {a for m in nest.domain for a in m.axes}
            mine -= sums
        elif n.op == "part":
            mine |= {a.name for a in nest.axes if a.out}
        out[n] = frozenset(mine)
    return out


def bounds(nest: Nest, lane: tuple[str, ...]) -> set[str]:
    """Axes whose loops have bounds that depend on other loops."""
    out: set[str] = {a for p in nest.parts for a in bounds(p, lane)}
    for m in nest.domain:
        drop = tuple(i for i, a in enumerate(m.axes) if a in lane)
        if not (m.table.any(drop) if drop else m.table).all():
            out |= set(m.axes) - set(lane)
    return out


def projected(m: Mask, lane: tuple[str, ...]) -> Mask | None:
    """The mask without its lane axes: where some lane is valid. None if that is everywhere."""
    drop = tuple(i for i, a in enumerate(m.axes) if a in lane)
    if not drop:
        return m
    table = m.table.any(drop)
    if table.all():
        return None
    return Mask.of([a for a in m.axes if a not in lane], np.ascontiguousarray(table))


def edges(nest: Nest, lane: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """Output axes that a tile can hold whole although a few taps fall over their edge: with those
    sums written out, which products exist is known while compiling. axis -> its sums."""
    masks = [p for m in nest.domain if (p := projected(m, lane)) is not None]
    sums = {a.name for a in nest.axes if not a.out and a.size <= 8} - {*lane}
    found: dict[str, frozenset[str]] = {}
    for axis in nest.axes:
        if not axis.out or axis.name in lane or axis.size > 24 or nest.parts:
            continue
        taps = {a for m in masks if axis.name in m.axes for a in m.axes} - {axis.name}
        pairs = [set(m.axes) for m in masks if taps & set(m.axes) or axis.name in m.axes]
        if taps and taps <= sums and all(p <= {axis.name, *taps} for p in pairs):
            found[axis.name] = frozenset(taps)
    return found


def settled(nest: Nest, lane: tuple[str, ...], tile: dict[str, int]) -> frozenset[str]:
    """The axes of `edges` that this tile holds, and their sums."""
    held = {a: taps for a, taps in edges(nest, lane).items() if tile.get(a) == nest.size(a)}
    return frozenset(held).union(*held.values())


def body_of(nest: Nest) -> Node:
    red = nest.reduction
    return red.src[0] if red is not None else nest.value


def strides(index: Affine, lane: tuple[str, ...], nest: Nest, width: int) -> list[int]:
    """Offset of every lane from the first, for a vector that starts at a multiple of the width."""
    if len(lane) == 1:
        return [index[lane[0]] * i for i in range(width)]
    n = nest.size(lane[1])
    return [index[lane[0]] * (i // n) + index[lane[1]] * (i % n) for i in range(width)]


def vector_cost(offsets: list[int]) -> float:
    """Loads (of one vector) that bring in these offsets."""
    span = max(offsets) - min(offsets) + 1
    if span == len(offsets) or span == 1:
        return 1.0
    return 2.5 if span <= 2 * len(offsets) else 1.5 * len(offsets)


@dataclass(frozen=True, eq=False)
class Operand:
    """A load of the body, or a copy of a factor, as the model sees it."""

    access: Access
    axes: frozenset[str]
    vector: bool
    cost: float  # cycles of the load ports for one copy
    node: Node  # what would be copied: the factor it is in
    packed: bool = False  # it is such a copy


@functools.cache
def readable_along(node: Node) -> str | None:
    """The axis to copy a factor along: every load lies along it, or does not move with it."""
    loads = [n.arg for n in node.walk() if n.op == "load"]
    if node.dtype is dtypes.bool or any(n.op in ("index", "mask", "part") for n in node.walk()):
        return None
    if any(x.masks or any(c < 0 for _, c in x.index.terms) for x in loads):
        return None
    found = [a for x in loads for a, c in x.index.terms if c == 1]
    found = [a for a in found if all(x.index[a] in (0, 1) for x in loads)]
    return max(found, key=found.count, default=None)


class Model:
    """Costs of one nest on one machine."""

    def __init__(self, nest: Nest, machine: Machine, hoisted: str = "") -> None:
        self.nest, self.machine, self.hoisted = nest, machine, hoisted
        self.body, self.deps = body_of(nest), dependence(nest)
        self.red = nest.reduction
        sizes = [
            n.dtype.itemsize
            for n in nest.value.walk()
            if n.dtype is not dtypes.bool and n.op != "index" and n.op != "const"
        ]
        self.width = machine.vector // max([*sizes, nest.store.dtype.itemsize, 2])
        self.outs = [a for a in nest.axes if a.out]
        self.written = {a.name for a in self.outs}
        self.found_edges: dict[tuple[str, ...], dict[str, frozenset[str]]] = {}
        self.sums = [a for a in nest.axes if not a.out]
        # parts cost like so many more steps of the nest's own sum
        trips = [math.prod(a.size for a in n.axes if not a.out) for n in (nest, *nest.parts)]
        self.more = sum(trips) / trips[0]

    def lanes(self) -> list[tuple[str, ...]]:
        """Axes, or pairs of axes, that may fill a vector."""
        options: list[tuple[str, ...]] = [(a.name,) for a in self.nest.axes]
        for lo in self.outs:
            if lo.size < self.width and self.width % lo.size == 0:
                options += [
                    (hi.name, lo.name)
                    for hi in self.outs
                    if hi is not lo
                    and self.nest.store.index[hi.name] == lo.size * self.nest.store.index[lo.name]
                ]
        return options

    def allowed(self, lane: tuple[str, ...]) -> bool:
        """Masks with lanes need tables; a two-axis lane has none."""
        masks = [m for a in accesses(self.nest) for m in a.masks] + list(self.nest.domain)
        masks += [m for n in self.nest.value.walk() if n.op == "mask" for m in n.arg]
        if self.nest.parts and not (len(lane) == 1 and any(a.name in lane for a in self.outs)):
            return False  # parts are summed in the lanes of the outputs
        if len(lane) == 2:
            return not any(a in m.axes for m in masks for a in lane)
        return all(m.table.size <= MASK_BYTES * 8 for m in masks if lane[0] in m.axes)

    def factors(self) -> tuple[Node, ...]:
        """What may be copied: the factors of a product that is summed."""
        return self.body.src if self.red is not None and self.body.op == "mul" else ()

    def choices(self, lane: tuple[str, ...]) -> list[frozenset[Node]]:
        """Which factors to copy, from the start: none, or those that a copy makes much cheaper:
        what lies across the lanes, and what is computed anew for every tile."""
        worth = set()
        for f in self.factors():
            if len(lane) > 1 or readable_along(f) is None:
                continue
            loads = [n.arg for n in f.walk() if n.op == "load"]
            turned = any(abs(x.index[lane[0]]) > 2 for x in loads) and lane[0] in self.written
            if turned or any(n.op not in ("load", "const", "cast") for n in f.walk()):
                worth.add(f)
        return [frozenset(), frozenset(worth)] if worth else [frozenset()]

    def operands(
        self, lane: tuple[str, ...], packed: frozenset[Node] = frozenset()
    ) -> list[Operand]:
        out = []
        for f in self.factors() or (self.body,):
            along = any(a in self.deps[f] for a in lane)
            if f in packed:
                index = Affine.of(0, dict.fromkeys(self.deps[f], 1))
                size = math.prod(a.size for a in self.nest.axes if a.name in self.deps[f])
                cost = 1 / (self.machine.load if along else self.machine.scalar)
                dense = Access(-1, f.dtype, size, index)
                out.append(Operand(dense, self.deps[f], along, cost, f, True))
                continue
            for n in f.walk():
                if n.op == "load":
                    out.append(self.operand(n, f if f is not self.body else n, lane))
        return out

    def operand(self, n: Node, factor: Node, lane: tuple[str, ...]) -> Operand:
        vector = any(a in self.deps[n] for a in lane)
        cost = 1 / self.machine.scalar
        if vector:
            offsets = strides(n.arg.index, lane, self.nest, self.width)
            cost = vector_cost(offsets) / self.machine.load
            if any(c % self.width for a, c in n.arg.index.terms if a not in lane):
                cost *= 1.7  # not aligned: half of the loads or more cross a cache line
            if any(a in m.axes for m in n.arg.masks for a in lane):
                cost += 0.3
        return Operand(n.arg, self.deps[n], vector, cost, factor)

    def tile_axes(self, lane: tuple[str, ...]) -> list[Axis]:
        """Output axes that may be held in registers: not those that a loop bound depends on."""
        bound = bounds(self.nest, lane) - set(self.edges(lane))
        return [a for a in self.outs if a.name not in lane and a.name not in bound and a.size > 1]

    def edges(self, lane: tuple[str, ...]) -> dict[str, frozenset[str]]:
        """See `edges`; lanes that are summed leave no room for taps inside them."""
        if lane not in self.found_edges:
            self.found_edges[lane] = edges(self.nest, lane) if lane[0] in self.written else {}
        return self.found_edges[lane]

    def arithmetic(self, operands: list[Operand]) -> list[frozenset[str]]:
        """What is computed in the innermost body: for each operation, the axes it varies over."""
        copied = {n for o in operands if o.packed for n in o.node.walk()}
        free = ("load", "const", "index", "mask", "mul", "cast")
        return [self.deps[n] for n in self.body.walk() if n.op not in free and n not in copied]

    def inner(
        self,
        lane: tuple[str, ...],
        vectors: int,
        tile: dict[str, int],
        operands: list[Operand],
        arithmetic: list[frozenset[str]],
    ) -> tuple[float, float]:
        """(cycles of one step of the innermost body, registers)."""
        lanes_out = any(a.name in lane for a in self.outs)
        accs = math.prod(tile.values()) * vectors
        loads = vec_copies = late = 0.0
        for o in operands:
            copies = math.prod(n for a, n in tile.items() if a in o.axes) * (
                vectors if o.vector else 1
            )
            loads += copies * o.cost
            rows = math.prod(n for a, n in tile.items() if o.access.index[a])
            steps = [
                abs(o.access.index[a.name])
                for a in self.sums
                if o.access.index[a.name] and a.name not in lane
            ]
            long = math.prod(a.size for a in self.sums if o.access.index[a.name])
            if rows > 16 and rows * long * o.access.dtype.itemsize > self.machine.l1:
                late += 0.5 * (rows - 16)  # more streams than a CPU fetches ahead
            if steps and min(steps) * o.access.dtype.itemsize >= 1024:
                loads += 1.5 * rows  # every step of the sum is a new page, or nearly
            if o.vector:
                vec_copies += copies
        work, edge = 0.0, self.edges(lane)
        for axes in arithmetic:
            copies = math.prod(c for a, c in tile.items() if a in axes)
            shared = any(a in tile and a in axes and taps & axes for a, taps in edge.items())
            work += copies * (vectors if any(a in axes for a in lane) else 1) * 0.5 / (1 + shared)
        if lanes_out:
            scalars = [o for o in operands if not o.vector]
            need = accs + vec_copies + (2 if scalars and vectors > 1 else 1)
            for axis, taps in edge.items():
                if axis in tile:  # a number that several taps share waits in a register
                    shared = [o for o in scalars if axis in o.axes and taps & o.axes]
                    held = [math.prod(n for a, n in tile.items() if a in o.axes) for o in shared]
                    need += 0.8 * sum(held)
        else:
            sides = sorted(
                math.prod(n for a, n in tile.items() if a in o.axes) * vectors
                for o in operands
                if o.vector
            )
            need = accs + sum(sides[:-1]) + 1
        return max(accs / self.machine.fma, loads) + work + late + 1.0 / max(1, accs / 8), need

    def order(
        self,
        lane: tuple[str, ...],
        vectors: int,
        tile: dict[str, int],
        operands: list[Operand],
        sums: tuple[str, ...],
        busy: float,
    ) -> tuple[float, tuple[str, ...], tuple[Pack, ...]]:
        """The best order of the output loops, and its cost in cycles of waiting: for the caches,
        for copies, for the last thread. `busy` is what the computing costs."""
        size = {a.name: a.size for a in self.nest.axes}
        lane_size = math.prod(size[a] for a in lane)
        step = {**tile, lane[0]: self.width * vectors}
        full = {**size, lane[0]: lane_size}
        outs = [a.name for a in self.outs if a.name not in lane[1:]]
        trips = {a: -(-full[a] // step.get(a, 1)) for a in [*outs, *sums]}
        hoisted = [s for s in sums if s == self.hoisted]
        sums = tuple(s for s in sums if s not in hoisted)
        loops = [a for a in [*outs, *hoisted] if trips[a] > 1]
        fixed = [a for a in outs if trips[a] == 1]
        best: tuple[float, tuple[str, ...], tuple[Pack, ...]] = (math.inf, tuple(outs), ())
        held = {**step, **{s: size[s] for s in sums}}
        tight = [o for o in operands if o.packed or crowded(o.access, held)]
        known: dict[frozenset[str], list[float]] = {}
        room: dict[tuple[Node, frozenset[str]], tuple[Pack | None, float]] = {}

        def lines(inside: frozenset[str]) -> list[float]:
            if inside not in known:
                extent = {
                    a: min(full[a], step.get(a, 1) * (trips.get(a, 1) if a in inside else 1))
                    for a in full
                }
                known[inside] = [
                    footprint(o.access, extent, lane, self.nest, o in tight) for o in operands
                ]
            return known[inside]

        again = 0.0  # partial sums go to memory and come back
        if hoisted:
            near = all(c == 1 for a, c in self.nest.store.index.terms if a in lane)
            again = math.prod(trips[a] for a in loops) * math.prod(tile.values()) * vectors
            again *= 4.0 if near else 3.0 * self.width
        if any(
            o.packed and self.pack(o, tuple(loops), room, trips, step, full, lane)[0] is None
            for o in operands
        ):
            return best  # not even in the innermost loop
        options = itertools.permutations(loops) if len(loops) <= 5 else [tuple(loops)]
        for perm in options:
            order = [*perm, *[s for s in sums if trips[s] > 1]]
            cost = again
            for cache, price in ((self.machine.l1 * 0.8, 1.2), (self.machine.l2 * 0.8, 5.0)):
                cost += misses(order, trips, operands, lines, cache, tight) * price
            if cost >= best[0]:
                continue
            packs: dict[Node, Pack] = {}
            for o in tight:
                if o.node not in packs:
                    pack, price = self.pack(o, perm, room, trips, step, full, lane)
                    cost += price
                    if pack is not None:
                        packs[o.node] = pack
            ends = [len(perm), *[p.level for p in packs.values()], *map(perm.index, hoisted)]
            if busy >= 2 * CHUNK_CYCLES:  # at the end, threads wait for each other's last chunk
                tasks = math.prod(trips[a] for a in perm[: min(ends)])
                cost += busy / min(tasks, MAX_CHUNKS)
            # the innermost output loop should walk the store forward
            stride = abs(self.nest.store.index[perm[-1]]) if perm else 0
            cost *= 1 + 1e-3 * min(stride, 100) / 100
            if cost < best[0]:
                best = cost, (*perm, *fixed), tuple(packs.values())
        return best

    def pack(
        self,
        operand: Operand,
        perm: tuple[str, ...],
        known: dict[tuple[Node, frozenset[str]], tuple[Pack | None, float]],
        trips: dict[str, int],
        step: dict[str, int],
        full: dict[str, int],
        lane: tuple[str, ...],
    ) -> tuple[Pack | None, float]:
        """The outermost place where a copy of what the inner loops use fits, and its cost."""
        for level in range(1, len(perm) + 1):
            key = operand.node, frozenset(perm[:level])
            if key not in known:
                known[key] = self.pack_in(operand, key[1], trips, step, full, lane)
            if known[key][0] is not None:
                return known[key]
        # without a copy, every step waits for a line that was pushed out
        return None, math.inf if operand.packed else 40.0 * math.prod(trips.values())

    def pack_in(
        self,
        operand: Operand,
        outside: frozenset[str],
        trips: dict[str, int],
        step: dict[str, int],
        full: dict[str, int],
        lane: tuple[str, ...],
    ) -> tuple[Pack | None, float]:
        """A copy made inside the loops `outside`, if it fits and is worth it, and its cost."""
        node, axes = operand.node, self.deps[operand.node]
        along = readable_along(node)
        if along is None or len(lane) > 1:
            return None, 0.0
        loads = [n.arg for n in node.walk() if n.op == "load"]
        extent = {a: min(full[a], step.get(a, 1)) if a in outside else full[a] for a in axes}
        for x in loads:
            terms = sorted(x.index.terms, key=lambda t: -t[1])
            if any(c < d * extent[a] for (_, c), (a, d) in itertools.pairwise(terms)):
                return None, 0.0  # rows overlap
        rank = {a: max(x.index[a] for x in loads) for a in axes}
        order = sorted(axes, key=lambda a: (a in lane, -rank[a], a))
        strides: dict[str, int] = {}
        size = 1
        for a in reversed(order):
            strides[a] = size
            size *= extent[a] if size > 1 else -(-extent[a] // self.width) * self.width
            if size * node.dtype.itemsize % 2048 == 0 and a != order[0]:
                size += self.width
        reuse = math.prod(n for a, n in trips.items() if a in self.written - axes - outside)
        if size * node.dtype.itemsize > PACK_BYTES or (reuse < 4 and not operand.packed):
            return None, 0.0
        extents = tuple((a, extent[a]) for a in order)
        pack = Pack(node, len(outside), extents, tuple(strides.items()), size, along)
        work = sum(n.op not in ("load", "const", "cast") for n in node.walk())
        each = 8.0 + work + (13.0 if order[-1] != along else 0.0)
        return pack, math.prod(trips[a] for a in outside) * size / self.width * each


def misses(
    order: list[str],
    trips: dict[str, int],
    operands: list[Operand],
    lines: Callable[[frozenset[str]], list[float]],
    cache: float,
    copies: list[Operand],
) -> float:
    """Cache lines brought in over the whole nest, for one cache size. Those of a copy count half:
    it lies in the order it is read in, and the CPU fetches ahead."""
    level = len(order)
    while level > 0 and 64 * sum(lines(frozenset(order[level - 1 :]))) <= cache:
        level -= 1
    total = 0.0
    for o, mine in zip(operands, lines(frozenset(order[level:])), strict=True):
        outside = order[:level]
        while outside and outside[-1] not in o.axes and 64 * mine <= cache / 2:
            outside = outside[:-1]
        total += mine * math.prod(trips[a] for a in outside) * (0.5 if o in copies else 1.0)
    return total


def crowded(access: Access, held: dict[str, int]) -> bool:
    """Do the rows that a tile runs through crowd a few sets of the cache, or too many pages?"""
    rows = [(abs(c) * access.dtype.itemsize, held.get(a, 1)) for a, c in access.index.terms]
    together = math.prod(n for stride, n in rows if stride % 2048 == 0)
    return together > 8 or any(stride >= 2048 and n > 256 for stride, n in rows)


def footprint(
    access: Access, extent: dict[str, int], lane: tuple[str, ...], nest: Nest, dense: bool = False
) -> float:
    """Lines of 64 bytes that an access touches over `extent` points of each axis."""
    per_line = max(1, 64 // access.dtype.itemsize)
    if dense:
        return max(
            1.0, math.prod(extent[a] for a, _ in access.index.terms if a in extent) / per_line
        )
    coefs = dict(access.index.terms)
    if len(lane) == 2 and lane[0] in extent:
        coefs[lane[0]] = max(1, coefs.get(lane[0], 0) // max(1, nest.size(lane[1])))
    used = sorted((abs(c), extent[a]) for a, c in coefs.items() if a in extent and extent[a] > 1)
    points, span, lines = 1, 0, 1.0
    for c, n in used:
        if (c * points <= 2 * span + 2 and points > 1) or c <= 1:  # runs that touch or overlap
            span += c * (n - 1)
            points = min(points * n, span + 1)
            lines = max(1.0, (span + 1) / per_line)
        elif c < per_line:
            span += c * (n - 1)
            points *= n
            lines = max(lines, (span + 1) / per_line)
        else:
            span += c * (n - 1)
            points *= n
            lines *= n
    return min(lines, access.size / per_line + 1)
