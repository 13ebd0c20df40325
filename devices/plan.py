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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tgx.devices.merge import blocked, merged, summed_in_blocks
from tgx.devices.model import (
    CHUNK_CYCLES,
    MAX_CHUNKS,
    Machine,
    Model,
    Operand,
    Pack,
    body_of,
    bounds,
    projected,
    settled,
    strides,
    vector_cost,
)
from tgx.devices.nest import Axis, Miss, Nest


@dataclass(frozen=True)
class Plan:
    """Everything the emitter needs to know. `str(plan)` is what DEBUG=3 shows."""

    nest: Nest
    lane: tuple[str, ...]  # one axis, or two (outer, inner) that fill a vector together
    width: int  # lanes in a vector
    vectors: int  # vectors along the lane axis in one tile
    tile: tuple[tuple[str, int], ...]  # other axes of the register tile
    loops: tuple[str, ...]  # output loops, outermost first; tile axes and lanes step by their tile
    sums: tuple[str, ...]  # reduction loops, outermost first, but for one among the output loops
    unroll: tuple[str, ...]  # reduction loops written out
    split: int  # how many of the outermost loops are cut into chunks
    chunks: int
    cycles: float = 0.0  # what the model expects
    packs: tuple[Pack, ...] = ()

    @property
    def hoisted(self) -> str | None:
        """The reduction loop among the output loops: its partial sums wait in the output."""
        sums = {a.name for a in self.nest.axes if not a.out}
        return next((a for a in self.loops if a in sums), None)

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
        return (
            f"tile {self.shape}; loops {' '.join(self.loops) or '-'}"
            f"{'; sum ' + sums if sums else ''}"
            f"{'; packed ' + ', '.join(map(str, self.packs)) if self.packs else ''}"
            f"; {self.chunks} chunks"
        )


# ***************************** the search *****************************


def menu(size: int, most: int) -> list[int]:
    """Tile heights worth trying for an axis: divisors, and some that leave a small rest."""
    some = {n for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24) if n <= min(size, most)}
    return sorted(n for n in some if size % n == 0 or (size / n) / -(-size // n) > 0.8)


def plan(nest: Nest, machine: Machine) -> Plan:
    """The cheapest plan the model can find, or a Miss.

    Computing is estimated first, for all candidates; waiting for the caches only for those that
    can still win."""
    best: Plan | None = None
    tried: Counter[bool] = Counter()
    for c in sorted(candidates(nest, machine), key=lambda c: c.cost):
        copies = any(o.packed for o in c.operands)
        if best is not None and (tried[copies] >= 24 or c.cost >= best.cycles):
            continue
        if (found := finished(c)) is not None:
            tried[copies] += 1
            if best is None or found.cycles < best.cycles:
                best = found
    if best is None:
        raise Miss("no plan")
    return chunked(replace(best, unroll=unrolled(best)))


def candidates(nest: Nest, machine: Machine) -> Iterator[Candidate]:
    """All tiles for all choices of axes, lanes and copies."""
    flat = merged(nest)
    variants = [flat, nest] if flat.axes != nest.axes else [nest]
    models = [Model(variant, machine) for variant in variants + blocked(flat)]
    for variant in variants:
        models += [Model(n, machine, outer) for n, outer in summed_in_blocks(variant)]
    for model in models:
        for lane in model.lanes():
            if model.allowed(lane):
                yield from search(model, lane)


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


def finished(c: Candidate) -> Plan | None:
    """A candidate with the best order of its loops; None if a copy it wants fits nowhere."""
    wait, loops, packs = c.model.order(c.lane, c.vectors, c.tile, c.operands, c.sums, c.cost)
    if not math.isfinite(wait):
        return None
    sums, tile = tuple(s for s in c.sums if s not in loops), tuple(c.tile.items())
    nest, width, cycles = c.model.nest, c.model.width, c.cost + wait
    return Plan(nest, c.lane, width, c.vectors, tile, loops, sums, (), 0, 1, cycles, packs)


def search(model: Model, lane: tuple[str, ...]) -> Iterator[Candidate]:
    """All tiles of the menu that fit the registers, for one choice of lanes."""
    lanes_out = any(a.name in lane for a in model.outs)
    contracts = model.red is not None
    if not lanes_out and (model.hoisted or not contracts):
        return
    for packed in model.choices(lane):
        yield from tiles(model, lane, model.operands(lane, packed))


def tiles(model: Model, lane: tuple[str, ...], operands: list[Operand]) -> Iterator[Candidate]:
    """All tiles of the menu, for one choice of lanes and copies."""
    nest, machine, w = model.nest, model.machine, model.width
    lanes_out = any(a.name in lane for a in model.outs)
    contracts = model.red is not None
    arithmetic = model.arithmetic(operands)
    lane_size = math.prod(nest.size(a) for a in lane)
    bound, edge = bounds(nest, lane), model.edges(lane)

    def order_of_sums(inside: frozenset[str]) -> tuple[str, ...]:
        """Bounded loops outside, then the long strides; what has to be written out, inside."""

        def key(a: Axis) -> tuple[bool, bool, bool, int]:
            strides = [abs(o.access.index[a.name]) for o in operands if o.access.index[a.name]]
            bounded = a.name in bound
            return a.name == lane[0], a.name in inside, not bounded, -min(strides or [0])

        return tuple(a.name for a in sorted(model.sums, key=key))

    masks = [p for m in nest.domain if (p := projected(m, lane)) is not None]
    valid = math.prod(float(p.table.mean()) for p in masks)  # of all points: loops skip the others
    sums = order_of_sums(frozenset())
    useful = [a for a in model.tile_axes(lane) if any(a.name not in o.axes for o in operands)]
    combos = [c for k in range(1, 3 if lanes_out else 4) for c in itertools.combinations(useful, k)]
    offsets = strides(nest.store.index, lane, nest, w) if lanes_out else []
    store = (
        8.0 if not lanes_out else 1.5 * w if vector_cost(offsets) > 1 else 2.0 if contracts else 1.0
    )
    for vectors in (1, 2, 3, 4):
        if (vectors - 1) * w >= lane_size:
            return
        for combo in [(), *(combos if contracts else [])]:
            sizes = [[a.size] if a.name in edge else menu(a.size, machine.registers) for a in combo]
            for counts in itertools.product(*sizes):
                accs = math.prod(counts) * vectors
                if (combo and 1 in counts) or accs > machine.registers:
                    continue
                tile = {a.name: n for a, n in zip(combo, counts, strict=True)}
                cycles, registers = model.inner(lane, vectors, tile, operands, arithmetic)
                if registers > machine.registers:
                    continue
                tiles = math.prod(
                    -(-a.size // tile.get(a.name, 1)) for a in model.outs if a.name not in lane
                )
                # a last tile with fewer vectors costs less than a full one
                part = -(-lane_size // w) / vectors
                steps = tiles * part * math.prod(a.size for a in model.sums if a.name not in lane)
                cost = model.more * valid * steps * max(cycles, 4.0 if contracts else 0.0)
                rows = [tile[a] for a in tile if nest.store.index[a] == 1]
                put = min(store, 96 / min(rows[0], w)) if lanes_out and rows else store
                cost += (
                    tiles
                    * (part if lanes_out else 1.0)
                    * (accs * put + (6.0 if contracts else 0.0))
                )
                order = tile if lanes_out else held(tile, operands)
                taps = settled(nest, lane, tile) & set(sums) if edge else frozenset()
                turns = order_of_sums(frozenset(taps)) if taps else sums
                yield Candidate(model, lane, vectors, order, operands, turns, cost)


def held(tile: dict[str, int], operands: list[Operand]) -> dict[str, int]:
    """The axes of the operand with most copies first: it is streamed, the other one stays."""

    def copies(axis: str) -> int:
        return max(
            [
                math.prod(n for a, n in tile.items() if a in o.axes)
                for o in operands
                if axis in o.axes
            ]
            or [0]
        )

    return dict(sorted(tile.items(), key=lambda t: -copies(t[0])))


def unrolled(plan: Plan) -> tuple[str, ...]:
    """Innermost reduction loops short enough to write out: taps of a small filter or pool."""
    size = math.prod(n for _, n in plan.tile) * plan.vectors
    size *= max(1, sum(1 for n in body_of(plan.nest).walk() if n.op not in ("load", "const")))
    out: list[str] = []
    inside = settled(plan.nest, plan.lane, dict(plan.tile))
    bound = bounds(plan.nest, plan.lane) - inside
    for s in reversed(plan.sums):
        n = plan.nest.size(s)
        if s in plan.lane or s in bound or (size * n > 100 and s not in inside):
            break
        out.append(s)
        size *= n
    return tuple(out)


def chunked(plan: Plan) -> Plan:
    """Cut the outermost loops into pieces, if there is enough work to share."""
    want = min(MAX_CHUNKS, int(plan.cycles / CHUNK_CYCLES))
    tasks, split = 1, 0
    deepest = min([p.level for p in plan.packs] + [len(plan.loops)])
    if plan.hoisted is not None:
        deepest = min(deepest, plan.loops.index(plan.hoisted))
    while split < deepest and tasks < 4 * want:
        tasks *= plan.blocks(plan.loops[split])
        split += 1
    return replace(plan, split=split, chunks=max(1, min(want, tasks)))
