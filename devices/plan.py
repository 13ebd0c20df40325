"""The plan: how to run a nest on this machine. Data in, data out, and it prints.

A register-tiled kernel (Goto and van de Geijn 2008; BLIS, Van Zee 2015) is a few decisions:

* **lanes**: which axis fills a vector register. A contiguous output axis (every lane another
  output), or a contiguous summed axis (every lane a partial sum, added up at the end);
* **tile**: how many outputs along which other axes are kept in registers at once, so that every
  loaded vector and every broadcast scalar is used several times;
* **loops**: the order of what remains, so that what is reused stays in the caches;
* **chunks**: the outer loops cut into pieces for threads, by shape alone: the same on every run.

`plan(nest, machine)` tries all combinations of a small menu on a cost model: multiply-adds, loads,
and lines that miss the caches. Nothing is measured while compiling, so the choice is repeatable.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.uop.ops import Ops

from tgx.devices.nest import Access, Affine, Axis, Mask, Miss, Nest, Node

MAX_CHUNKS = 16
CHUNK_CYCLES = 24_000  # do not wake a thread for less
MASK_BYTES = 1 << 18  # largest table of lane masks
PACK_BYTES = 272 << 10  # largest packed operand: it lives on a thread's stack
BIG = 1 << 26  # points from which cache blocking may pay


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
    """A copy of the part of an operand that is used again and again, rows close together.

    Rows that lie a multiple of 2 KB apart fall into the same few sets of a cache and push each
    other out, and every row needs a TLB entry of its own (GotoBLAS packs for this)."""
    access: Access
    level: int  # output loops outside the copy
    extents: tuple[tuple[str, int], ...]  # axis, points held; outermost first
    strides: tuple[tuple[str, int], ...]
    size: int

    def __str__(self) -> str:
        return f"p{self.access.slot}[{' '.join(f'{a}:{n}' for a, n in self.extents)}]"


@dataclass(frozen=True)
class Plan:
    """Everything the emitter needs to know. `str(plan)` is what DEBUG=3 shows."""
    nest: Nest
    lane: tuple[str, ...]  # one axis, or two (outer, inner) that fill a vector together
    width: int  # lanes in a vector
    vectors: int  # vectors along the lane axis in one tile
    tile: tuple[tuple[str, int], ...]  # other axes of the register tile
    loops: tuple[str, ...]  # output loops, outermost first; tile axes and lanes step by their tile
    sums: tuple[str, ...]  # reduction loops, outermost first
    unroll: tuple[str, ...]  # reduction loops written out
    split: int  # how many of the outermost loops are cut into chunks
    chunks: int
    cycles: float = 0.0  # what the model expects
    packs: tuple[Pack, ...] = ()

    @property
    def lanes_out(self) -> bool:
        return all(a.out for a in self.nest.axes if a.name in self.lane)

    @property
    def lane_size(self) -> int:
        return math.prod(self.nest.size(a) for a in self.lane)

    def step(self, axis: str) -> int:
        if axis == self.lane[0]:
            return self.width * self.vectors
        return dict(self.tile).get(axis, 1)

    def blocks(self, axis: str) -> int:
        size = self.lane_size if axis == self.lane[0] else self.nest.size(axis)
        return -(-size // self.step(axis))

    @property
    def shape(self) -> str:
        """`16o1 x 1*16[o2]`: the tile in one word."""
        rows = " x ".join(f"{n}{a}" for a, n in self.tile)
        return f"{rows + ' x ' if rows else ''}{self.vectors}*{self.width}[{'.'.join(self.lane)}]"

    def __str__(self) -> str:
        sums = " ".join(f"{a}{'!' if a in self.unroll else ''}" for a in self.sums)
        return (f"tile {self.shape}; loops {' '.join(self.loops) or '-'}"
                f"{'; sum ' + sums if sums else ''}"
                f"{'; packed ' + ', '.join(map(str, self.packs)) if self.packs else ''}"
                f"; {self.chunks} chunks")


# ***************************** merging axes *****************************

def accesses(nest: Nest) -> list[Access]:
    return [nest.store] + [n.arg for n in nest.value.walk() if n.op == "load"]


def merge(nest: Nest, hi: str, lo: str) -> Nest | None:
    """One axis for two, hi*size+lo, if every index agrees: (h, w) of an image is just its plane."""
    n, axes = nest.size(lo), {a.name: a for a in nest.axes}
    if axes[hi].out != axes[lo].out:
        return None
    indices = [a.index for a in accesses(nest)] + [v.arg for v in nest.value.walk() if v.op == "index"]
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
            return tuple(m for m in ms if m not in mine) + ((join(mine, hi, lo, nest),) if mine else ())

        def access(a: Access) -> Access:
            coefs = {k: v for k, v in a.index.terms if k != hi}
            return replace(a, index=Affine.of(a.index.const, coefs), masks=masks(a.masks))

        done: dict[Node, Node] = {}
        for v in nest.value.walk():
            arg = v.arg
            if v.op == "load":
                arg = access(arg)
            elif v.op == "index":
                arg = Affine.of(arg.const, {k: c for k, c in arg.terms if k != hi})
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
    if not is_contraction(nest) or math.prod(a.size for a in nest.axes) < BIG or nest.domain or nest.parts:
        return out
    for axis in nest.axes:
        for n in (64, 128):
            if axis.out and axis.size % n == 0 and axis.size >= 4 * n:
                out.append(cut(nest, axis, n))
    return out


def cut(nest: Nest, axis: Axis, n: int) -> Nest:
    """axis becomes n*hi + axis."""
    hi = Axis(axis.name + "b", axis.size // n, axis.out)

    def index(i: Affine) -> Affine:
        return Affine.of(i.const, {**i.coefs, hi.name: n * i[axis.name]})
    done: dict[Node, Node] = {}
    for v in nest.value.walk():
        arg = replace(v.arg, index=index(v.arg.index)) if v.op == "load" else (
            index(v.arg) if v.op == "index" else v.arg)
        if v.op in ("load", "mask") and any(axis.name in m.axes for m in (arg.masks if v.op == "load" else arg)):
            return nest
        done[v] = Node(v.op, v.dtype, tuple(done[s] for s in v.src), arg)
    axes = [x for a in nest.axes for x in ((hi, replace(a, size=n)) if a is axis else (a,))]
    return Nest(tuple(axes), replace(nest.store, index=index(nest.store.index)), done[nest.value], nest.domain)


def merged(nest: Nest) -> Nest:
    """Merge what can be merged."""
    while True:
        for hi, lo in itertools.permutations([a.name for a in nest.axes], 2):
            if (found := merge(nest, hi, lo)) is not None:
                nest = found
                break
        else:
            return nest


# ***************************** the cost model *****************************

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


@dataclass(frozen=True)
class Operand:
    """A load of the body, as the model sees it."""
    access: Access
    axes: frozenset[str]
    vector: bool
    cost: float  # cycles of the load ports for one copy


class Model:
    """Costs of one nest on one machine."""

    def __init__(self, nest: Nest, machine: Machine) -> None:
        self.nest, self.machine = nest, machine
        self.body, self.deps = body_of(nest), dependence(nest)
        self.red = nest.reduction
        sizes = [n.dtype.itemsize for n in nest.value.walk()
                 if n.dtype is not dtypes.bool and n.op != "index" and n.op != "const"]
        self.width = machine.vector // max([*sizes, nest.store.dtype.itemsize, 2])
        self.outs = [a for a in nest.axes if a.out]
        self.sums = [a for a in nest.axes if not a.out]
        # parts cost like so many more steps of the nest's own sum
        trips = [math.prod(a.size for a in n.axes if not a.out) for n in (nest, *nest.parts)]
        self.more = sum(trips) / trips[0]

    def lanes(self) -> list[tuple[str, ...]]:
        """Axes, or pairs of axes, that may fill a vector."""
        options: list[tuple[str, ...]] = [(a.name,) for a in self.nest.axes]
        for lo in self.outs:
            if lo.size < self.width and self.width % lo.size == 0:
                options += [(hi.name, lo.name) for hi in self.outs if hi is not lo
                            and self.nest.store.index[hi.name] == lo.size * self.nest.store.index[lo.name]]
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

    def operands(self, lane: tuple[str, ...]) -> list[Operand]:
        out = []
        for n in self.body.walk():
            if n.op == "load":
                vector = any(a in self.deps[n] for a in lane)
                cost = 1 / self.machine.scalar
                if vector:
                    offsets = strides(n.arg.index, lane, self.nest, self.width)
                    cost = vector_cost(offsets) / self.machine.load
                    if any(c % self.width for a, c in n.arg.index.terms if a not in lane):
                        cost *= 1.7  # not aligned: half of the loads or more cross a cache line
                    if any(a in m.axes for m in n.arg.masks for a in lane):
                        cost += 0.3
                out.append(Operand(n.arg, self.deps[n], vector, cost))
        return out

    def tile_axes(self, lane: tuple[str, ...]) -> list[Axis]:
        """Output axes that may be held in registers: not those that a loop bound depends on."""
        bound = bounds(self.nest, lane)
        return [a for a in self.outs if a.name not in lane and a.name not in bound and a.size > 1]

    def inner(self, lane: tuple[str, ...], vectors: int, tile: dict[str, int],
              operands: list[Operand]) -> tuple[float, float]:
        """(cycles of one step of the innermost body, registers)."""
        lanes_out = any(a.name in lane for a in self.outs)
        accs = math.prod(tile.values()) * vectors
        loads = vec_copies = 0.0
        for o in operands:
            copies = math.prod(n for a, n in tile.items() if a in o.axes) * (vectors if o.vector else 1)
            loads += copies * o.cost
            rows = math.prod(n for a, n in tile.items() if o.access.index[a])
            steps = [abs(o.access.index[a.name]) for a in self.sums if o.access.index[a.name] and a.name not in lane]
            if steps and min(steps) * o.access.dtype.itemsize >= 1024:
                loads += 1.5 * rows  # every step of the sum is a new page, or nearly
            if o.vector:
                vec_copies += copies
        work = 0.0
        for n in self.body.walk():
            if n.op not in ("load", "const", "index", "mask", "mul", "cast"):
                d = self.deps[n]
                copies = math.prod(c for a, c in tile.items() if a in d)
                work += copies * (vectors if any(a in d for a in lane) else 1) * 0.5
        if lanes_out:
            scalars = [o for o in operands if not o.vector]
            need = accs + vec_copies + (2 if scalars and vectors > 1 else 1)
        else:
            sides = sorted(math.prod(n for a, n in tile.items() if a in o.axes) * vectors
                           for o in operands if o.vector)
            need = accs + sum(sides[:-1]) + 1
        return max(accs / self.machine.fma, loads) + work + 1.0 / max(1, accs / 8), need

    def order(self, lane: tuple[str, ...], vectors: int, tile: dict[str, int],
              operands: list[Operand], sums: tuple[str, ...],
              ) -> tuple[float, tuple[str, ...], tuple[Pack, ...]]:
        """The best order of the output loops, and its cost in cycles of waiting for the caches."""
        size = {a.name: a.size for a in self.nest.axes}
        lane_size = math.prod(size[a] for a in lane)
        step = {**tile, lane[0]: self.width * vectors}
        full = {**size, lane[0]: lane_size}
        outs = [a.name for a in self.outs if a.name not in lane[1:]]
        trips = {a: -(-full[a] // step.get(a, 1)) for a in [*outs, *sums]}
        loops = [a for a in outs if trips[a] > 1]
        fixed = [a for a in outs if trips[a] == 1]
        best: tuple[float, tuple[str, ...], tuple[Pack, ...]] = (math.inf, tuple(outs), ())
        held = {**step, **{s: size[s] for s in sums}}
        tight = [o for o in operands if crowded(o.access, held)]
        known: dict[frozenset[str], list[float]] = {}

        def lines(inside: frozenset[str]) -> list[float]:
            if inside not in known:
                extent = {a: min(full[a], step.get(a, 1) * (trips.get(a, 1) if a in inside else 1))
                          for a in full}
                known[inside] = [footprint(o.access, extent, lane, self.nest, o in tight) for o in operands]
            return known[inside]
        options = itertools.permutations(loops) if len(loops) <= 5 else [tuple(loops)]
        for perm in options:
            order = [*perm, *[s for s in sums if trips[s] > 1]]
            cost = 0.0
            for cache, price in ((self.machine.l1 * 0.8, 1.2), (self.machine.l2 * 0.8, 5.0)):
                cost += misses(order, trips, operands, lines, cache) * price
            packs = []
            for o in tight:
                pack, price = packed(o.access, perm, trips, step, full, lane)
                cost += price
                packs += [pack] if pack else []
            # the innermost output loop should walk the store forward
            stride = abs(self.nest.store.index[perm[-1]]) if perm else 0
            cost *= 1 + 1e-3 * min(stride, 100) / 100
            if cost < best[0]:
                best = cost, (*perm, *fixed), tuple(packs)
        return best


def misses(order: list[str], trips: dict[str, int], operands: list[Operand],
           lines: Callable[[frozenset[str]], list[float]], cache: float) -> float:
    """Cache lines brought in over the whole nest, for one cache size."""
    level = len(order)
    while level > 0 and 64 * sum(lines(frozenset(order[level - 1:]))) <= cache:
        level -= 1
    total = 0.0
    for o, mine in zip(operands, lines(frozenset(order[level:])), strict=True):
        outside = order[:level]
        while outside and outside[-1] not in o.axes and 64 * mine <= cache / 2:
            outside = outside[:-1]
        total += mine * math.prod(trips[a] for a in outside)
    return total


def crowded(access: Access, held: dict[str, int]) -> bool:
    """Do the rows that one tile runs through share a few sets of the cache?"""
    return any(abs(c) * access.dtype.itemsize % 2048 == 0 and held.get(a, 1) > 8 for a, c in access.index.terms)


def packed(access: Access, perm: tuple[str, ...], trips: dict[str, int], step: dict[str, int],
           full: dict[str, int], lane: tuple[str, ...]) -> tuple[Pack | None, float]:
    """The outermost place where a copy of what the inner loops use fits, and what copying costs."""
    terms = sorted(access.index.terms, key=lambda t: -abs(t[1]))
    every = math.prod(trips.values())
    failed = None, 8.0 * every
    if access.masks or len(lane) > 1 or not terms or terms[-1][1] != 1 or any(c < 0 for _, c in terms):
        return failed
    for level in range(1, len(perm) + 1):
        outside = perm[:level]
        extent = {a: min(full[a], step.get(a, 1)) if a in outside else full[a] for a, _ in terms}
        if any(terms[i][1] < terms[i + 1][1] * extent[terms[i + 1][0]] for i in range(len(terms) - 1)):
            return failed  # rows overlap
        strides: dict[str, int] = {}
        size = 1
        for a, _ in reversed(terms):
            strides[a] = size
            size *= extent[a] if size > 1 else -(-extent[a] // 16) * 16
            if size * access.dtype.itemsize % 2048 == 0 and a != terms[0][0]:
                size += 16
        reuse = math.prod(trips[a] for a in perm[level:] if not access.index[a])
        if size * access.dtype.itemsize <= PACK_BYTES and reuse >= 4:
            copies = math.prod(trips[a] for a in outside)
            pack = Pack(access, level, tuple((a, extent[a]) for a, _ in terms), tuple(strides.items()), size)
            return pack, copies * size / 16 * 8.0
    return failed


def footprint(access: Access, extent: dict[str, int], lane: tuple[str, ...], nest: Nest,
              dense: bool = False) -> float:
    """Lines of 64 bytes that an access touches over `extent` points of each axis."""
    per_line = max(1, 64 // access.dtype.itemsize)
    if dense:
        return max(1.0, math.prod(extent[a] for a, _ in access.index.terms if a in extent) / per_line)
    coefs = dict(access.index.terms)
    if len(lane) == 2 and lane[0] in extent:
        coefs[lane[0]] = max(1, coefs.get(lane[0], 0) // max(1, nest.size(lane[1])))
    used = sorted((abs(c), extent[a]) for a, c in coefs.items() if a in extent and extent[a] > 1)
    points, span, lines = 1, 0, 1.0
    for c, n in used:
        if c * points <= 2 * span + 2 and points > 1 or c <= 1:  # runs that touch or overlap
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


# ***************************** the search *****************************

def menu(size: int, most: int) -> list[int]:
    """Tile heights worth trying for an axis: divisors, and some that leave a small rest."""
    some = {n for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24) if n <= min(size, most)}
    return sorted(n for n in some if size % n == 0 or (size / n) / -(-size // n) > 0.8)


def plan(nest: Nest, machine: Machine) -> Plan:
    """The cheapest plan the model can find, or a Miss.

    Computing is estimated first, for all candidates; waiting for the caches only for those that
    can still win."""
    flat = merged(nest)
    candidates: list[Candidate] = []
    variants = [flat, nest] if flat.axes != nest.axes else [nest]
    for variant in variants + blocked(flat):
        model = Model(variant, machine)
        for lane in model.lanes():
            if model.allowed(lane):
                candidates += search(model, lane)
    candidates.sort(key=lambda c: c.cost)
    best: Plan | None = None
    for c in candidates[:24]:
        if best is not None and c.cost >= best.cycles:
            break
        wait, loops, packs = c.model.order(c.lane, c.vectors, c.tile, c.operands, c.sums)
        if best is None or c.cost + wait < best.cycles:
            best = Plan(c.model.nest, c.lane, c.model.width, c.vectors, tuple(c.tile.items()), loops,
                        c.sums, (), 0, 1, c.cost + wait, packs)
    if best is None:
        raise Miss("no plan")
    return chunked(replace(best, unroll=unrolled(best)))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A register tile, and the cycles it would take if the caches were perfect."""
    model: Model
    lane: tuple[str, ...]
    vectors: int
    tile: dict[str, int]
    operands: list[Operand]
    sums: tuple[str, ...]
    cost: float


def search(model: Model, lane: tuple[str, ...]) -> Iterator[Candidate]:
    """All tiles of the menu that fit the registers, for one choice of lanes."""
    nest, machine, w = model.nest, model.machine, model.width
    lanes_out = any(a.name in lane for a in model.outs)
    contracts = model.red is not None
    if not contracts and not lanes_out:
        return
    operands = model.operands(lane)
    lane_size = math.prod(nest.size(a) for a in lane)
    bound = bounds(nest, lane)
    sums = tuple(a.name for a in sorted(  # bounded loops outside, then the long strides
        model.sums, key=lambda a: (a.name == lane[0], a.name not in bound,
                                   -min([abs(o.access.index[a.name]) for o in operands
                                         if o.access.index[a.name]] or [0]))))
    useful = [a for a in model.tile_axes(lane) if any(a.name not in o.axes for o in operands)]
    combos = [c for k in range(1, 3 if lanes_out else 4) for c in itertools.combinations(useful, k)]
    offsets = strides(nest.store.index, lane, nest, w) if lanes_out else []
    store = 8.0 if not lanes_out else 1.5 * w if vector_cost(offsets) > 1 else 2.0 if contracts else 1.0
    for vectors in (1, 2, 3, 4):
        if (vectors - 1) * w >= lane_size:
            return
        for combo in [(), *(combos if contracts else [])]:
            for counts in itertools.product(*[menu(a.size, machine.registers) for a in combo]):
                accs = math.prod(counts) * vectors
                if (combo and 1 in counts) or accs > machine.registers:
                    continue
                tile = {a.name: n for a, n in zip(combo, counts, strict=True)}
                cycles, registers = model.inner(lane, vectors, tile, operands)
                if registers > machine.registers:
                    continue
                tiles = math.prod(-(-a.size // tile.get(a.name, 1)) for a in model.outs if a.name not in lane)
                # a last tile with fewer vectors costs less than a full one
                part = -(-lane_size // w) / vectors
                steps = tiles * part * math.prod(a.size for a in model.sums if a.name not in lane)
                cost = model.more * steps * max(cycles, 4.0 if contracts else 0.0)
                cost += tiles * (part if lanes_out else 1.0) * (accs * store + (6.0 if contracts else 0.0))
                order = tile if lanes_out else held(tile, operands)
                yield Candidate(model, lane, vectors, order, operands, sums, cost)


def held(tile: dict[str, int], operands: list[Operand]) -> dict[str, int]:
    """The axes of the operand with most copies first: it is streamed, the other one stays."""
    def copies(axis: str) -> int:
        return max([math.prod(n for a, n in tile.items() if a in o.axes)
                    for o in operands if axis in o.axes] or [0])
    return dict(sorted(tile.items(), key=lambda t: -copies(t[0])))


def unrolled(plan: Plan) -> tuple[str, ...]:
    """Innermost reduction loops short enough to write out: taps of a small filter or pool."""
    size = math.prod(n for _, n in plan.tile) * plan.vectors
    size *= max(1, sum(1 for n in body_of(plan.nest).walk() if n.op not in ("load", "const")))
    out: list[str] = []
    bound = bounds(plan.nest, plan.lane)
    for s in reversed(plan.sums):
        n = plan.nest.size(s)
        if s in plan.lane or s in bound or size * n > 100:
            break
        out.append(s)
        size *= n
    return tuple(out)


def chunked(plan: Plan) -> Plan:
    """Cut the outermost loops into pieces, if there is enough work to share."""
    want = min(MAX_CHUNKS, int(plan.cycles / CHUNK_CYCLES))
    tasks, split = 1, 0
    deepest = min([p.level for p in plan.packs] or [len(plan.loops)])
    while split < deepest and tasks < 4 * want:
        tasks *= plan.blocks(plan.loops[split])
        split += 1
    return replace(plan, split=split, chunks=max(1, min(want, tasks)))


def is_contraction(nest: Nest) -> bool:
    red = nest.reduction
    return red is not None and red.arg is Ops.ADD and red.src[0].op == "mul"
