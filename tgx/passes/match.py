"""Which kernels of two traces are the same, and what happened to the others.

Kernels are matched by what they compute (their names made from provenance, and the shapes they
write) in execution order, then by how much of their work they share. So traces of two devices, two
tinygrad versions, or before and after an edit can be laid side by side; tinygrad's own names, which
change with every optimisation, do not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from math import prod

from tgx.model import Kernel, Trace
from tgx.passes import costs
from tgx.passes.cluster import SORTS

SLOWER = 1.25
"""Times closer than this ratio are called equal: kernels of microseconds vary that much."""
LEAST_US = 2.0
"""…and so are times that differ by less."""
ALIKE = 0.5
"""Kernels that share at least this part of their work are the same kernel, changed."""

STORES = {"contiguous", "contiguous_backward", "realize", "detach", "clone"}
"""Operations that say where to store, not what to compute: kernels are not told apart by them."""

Place = tuple[str, int]
Atom = tuple[str, str, tuple[str, ...], Place]
"""A piece of work: phase, operation, the methods it went through, and its line."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A kernel of A and its fellow in B. ``how`` is "same" or "changed" (it computes more, less or
    otherwise); ``ratio`` is B's time by A's (-1: not measured on both sides)."""

    a: int
    b: int
    how: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Operation:
    """A Tensor operation that only one of the traces has, and where."""

    op: str
    phase: str
    line: str


@dataclass(frozen=True, slots=True)
class Match:
    """How A's kernels became B's. ``split`` has (one of A, several of B), ``merged`` (several of A,
    one of B); ``added`` and ``removed`` are kernels with no fellow at all. ``slower`` and
    ``faster`` are pairs. ``operations_added`` and ``_removed`` are what differs in the program
    itself, ``boundaries_added`` and ``_removed`` ids of boundaries by B's and A's numbers."""

    pairs: tuple[Pair, ...]
    added: tuple[int, ...]
    removed: tuple[int, ...]
    split: tuple[tuple[int, tuple[int, ...]], ...]
    merged: tuple[tuple[tuple[int, ...], int], ...]
    slower: tuple[Pair, ...]
    faster: tuple[Pair, ...]
    operations_added: tuple[Operation, ...]
    operations_removed: tuple[Operation, ...]
    boundaries_added: tuple[int, ...]
    boundaries_removed: tuple[int, ...]

    @property
    def alike(self) -> bool:
        """Whether both traces run the same kernels, whatever they take."""
        changed = any(p.how == "changed" for p in self.pairs)
        return not (changed or self.added or self.removed or self.split or self.merged)


def compared(trace: Trace, whole: bool = False) -> tuple[Kernel, ...]:
    """The kernels of a trace that are compared: the steady schedules', or all."""
    ids = tuple(s.id for s in trace.schedules) if whole else trace.steady()
    found = tuple(trace.kernel(k) for s in ids for k in trace.schedule(s).kernels)
    return found or trace.kernels


def match(a: Trace, b: Trace, whole: bool = False) -> Match:
    """Match the kernels of two traces."""
    a, b = costs.attach(a), costs.attach(b)
    moved = same_lines(a, b)
    left = _Side(a, compared(a, whole), moved)
    right = _Side(b, compared(b, whole))
    blind = not (a.origins and b.origins)  # a DEBUG log knows no operations
    if blind:
        left.signatures, right.signatures = sizes(left.kernels), sizes(right.kernels)
    pairs: dict[int, tuple[int, str]] = {}
    blocks = SequenceMatcher(None, left.signatures, right.signatures, autojunk=False)
    rest_a: list[int] = []
    rest_b: list[int] = []
    for tag, i, j, m, n in blocks.get_opcodes():
        if tag == "equal":
            pairs.update((i + d, (m + d, "same")) for d in range(j - i))
        else:
            rest_a += range(i, j)
            rest_b += range(m, n)
    _equal_out_of_order(left, right, pairs, rest_a, rest_b)
    split, merged = _splits(left, right, rest_a, rest_b) if not blind else ([], [])
    _alike(left, right, pairs, rest_a, rest_b)
    more_split, more_merged = _parts(left, right, pairs, rest_a, rest_b)
    all_pairs = tuple(_pair(left, right, i, *pairs[i]) for i in sorted(pairs))
    split, merged = [*split, *more_split], [*merged, *more_merged]
    added, removed = _different_operations(a, b, left, right) if not blind else ((), ())
    groups = [([i], [j]) for i, (j, _) in pairs.items()]
    groups += [([i], js) for i, js in split] + [(js, [j]) for js, j in merged]
    groups += [([i], []) for i in rest_a] + [([], [j]) for j in rest_b]
    stays = _more_boundaries(right, left, [(js, ks) for ks, js in groups]) if not blind else ()
    goes = _more_boundaries(left, right, groups) if not blind else ()
    return Match(
        all_pairs,
        tuple(right.kernels[i].id for i in rest_b),
        tuple(left.kernels[i].id for i in rest_a),
        tuple((left.kernels[i].id, tuple(right.kernels[j].id for j in js)) for i, js in split),
        tuple((tuple(left.kernels[i].id for i in js), right.kernels[j].id) for js, j in merged),
        tuple(p for p in all_pairs if _slower(left, right, p)),
        tuple(p for p in all_pairs if p.ratio > 0 and _slower(right, left, _turned(p))),
        added,
        removed,
        stays,
        goes,
    )


def same_lines(a: Trace, b: Trace) -> dict[Place, Place]:
    """Where each line of A's user files stands in B's: an edit above moves the lines below it.

    A line that was edited in place is the same line still.
    """
    out: dict[Place, Place] = {}
    theirs = {f.path: f for f in b.files if f.user}
    mine = [f for f in a.files if f.user]
    for f in mine:
        other = theirs.get(f.path)
        if other is None:  # the edited program may be another file: the only one by this name
            ends = [g for g in theirs.values() if g.path.split("/")[-1] == f.path.split("/")[-1]]
            alone = list(theirs.values()) if len(theirs) == len(mine) == 1 else []
            other = next(iter(ends or alone), None)
        if other is None:
            continue
        before, after = [t for _, t in f.lines], [t for _, t in other.lines]
        blocks = SequenceMatcher(None, before, after, autojunk=False)
        for tag, i, j, m, n in blocks.get_opcodes():
            if tag == "equal" or (tag == "replace" and j - i == n - m):
                for d in range(j - i):
                    out[f.path, f.lines[i + d][0]] = (other.path, other.lines[m + d][0])
    return out


def sizes(kernels: Sequence[Kernel]) -> list[tuple[object, ...]]:
    """What tinygrad's own name says whatever the device: r(educe) or E(lementwise), and how often
    the innermost line runs. Optimisations cut the loops otherwise (r_32_10_128, r_32_10_32_4), and
    leave the product as it is."""
    return [
        (k.kind, k.tinygrad_name[:1], str(prod(map(int, re.findall(r"_(\d+)", k.tinygrad_name)))))
        if k.tinygrad_name
        else (k.kind, k.name)
        for k in kernels
    ]


class _Side:
    """One trace's kernels with what they are matched by."""

    def __init__(
        self, trace: Trace, kernels: Sequence[Kernel], moved: Mapping[Place, Place] | None = None
    ) -> None:
        self.trace, self.kernels = trace, tuple(kernels)
        moved = moved or {}
        shapes = {b.id: b.shape for b in trace.buffers}
        self.signatures: list[tuple[object, ...]] = [
            (k.phase, k.kind, k.name, tuple(shapes.get(w, "") for w in k.writes))
            for k in self.kernels
        ]

        @cache
        def place(origin: int) -> Place:
            o = trace.origin(origin)
            o = trace.origin(o.forward) if o.forward != -1 else o
            if o.frame == -1:
                return ("", 0)
            f = trace.frame(o.frame)
            here = (trace.file(f.file).path, f.line)
            return moved.get(here, here)

        @cache
        def atom(origin: int) -> Atom | None:
            o = trace.origin(origin)
            idle = o.op in STORES or o.via[-1:] == ("movement",)  # a view computes nothing
            return None if idle else (o.phase, o.op, o.via, place(origin))

        def work(k: Kernel) -> Counter[Atom]:
            known = Counter(x for o in dict.fromkeys(k.origins) if (x := atom(o)))
            return known or Counter((k.phase, op, (), ("", 0)) for op in (k.ops or (k.name,)))

        self.place = place
        self.atoms = [work(k) for k in self.kernels]


def _equal_out_of_order(
    left: _Side, right: _Side, pairs: dict[int, tuple[int, str]],
    rest_a: list[int], rest_b: list[int],
) -> None:
    """The same kernel at another place in the order."""
    places: dict[object, list[int]] = {}
    for j in rest_b:
        places.setdefault(right.signatures[j], []).append(j)
    for i in list(rest_a):
        if found := places.get(left.signatures[i]):
            j = found.pop(0)
            pairs[i] = (j, "same")
            rest_a.remove(i)
            rest_b.remove(j)


def _overlap(x: Counter[Atom], y: Counter[Atom]) -> float:
    both, all_of = (x & y).total(), (x | y).total()
    return both / all_of if all_of else 0.0


def _splits(
    left: _Side, right: _Side, rest_a: list[int], rest_b: list[int]
) -> tuple[list[tuple[int, list[int]]], list[tuple[list[int], int]]]:
    """One kernel whose work several of the other side do together."""
    split: list[tuple[int, list[int]]] = []
    merged: list[tuple[list[int], int]] = []
    for i in list(rest_a):
        parts = _cover(left.atoms[i], right, rest_b)
        if len(parts) > 1:
            split.append((i, parts))
            rest_a.remove(i)
            rest_b[:] = [j for j in rest_b if j not in parts]
    for j in list(rest_b):
        parts = _cover(right.atoms[j], left, rest_a)
        if len(parts) > 1:
            merged.append((parts, j))
            rest_b.remove(j)
            rest_a[:] = [i for i in rest_a if i not in parts]
    return split, merged


def _cover(whole: Counter[Atom], side: _Side, rest: Sequence[int]) -> list[int]:
    """Kernels of `rest` whose work is mostly part of `whole`, if together they make it up."""
    left, parts = Counter(whole), []
    for i in rest:
        atoms = side.atoms[i]
        mostly = 2 * (atoms & whole).total() > atoms.total()
        if mostly and (atoms & left):
            parts.append(i)
            left -= atoms
    return parts if not left else []


def _alike(
    left: _Side, right: _Side, pairs: dict[int, tuple[int, str]],
    rest_a: list[int], rest_b: list[int],
) -> None:
    """The most alike first, each kernel once; ties go to the nearest in order."""
    found = sorted(
        (-score, abs(i - j), i, j)
        for i in rest_a
        for j in rest_b
        if left.kernels[i].phase == right.kernels[j].phase
        and (score := _overlap(left.atoms[i], right.atoms[j])) >= ALIKE
    )
    for _, _, i, j in found:
        if i in rest_a and j in rest_b:
            pairs[i] = (j, "changed")
            rest_a.remove(i)
            rest_b.remove(j)


def _parts(
    left: _Side, right: _Side, pairs: dict[int, tuple[int, str]],
    rest_a: list[int], rest_b: list[int],
) -> tuple[list[tuple[int, list[int]]], list[tuple[list[int], int]]]:
    """A leftover kernel that holds what its neighbour's changed pair lost: the pair was split."""
    split: list[tuple[int, list[int]]] = []
    merged: list[tuple[list[int], int]] = []
    for i, (j, how) in sorted(pairs.items()):
        if how != "changed":
            continue
        lost = left.atoms[i] - right.atoms[j]
        if lost and (parts := _cover(lost, right, rest_b)):
            split.append((i, sorted([j, *parts])))
            rest_b[:] = [x for x in rest_b if x not in parts]
        gained = right.atoms[j] - left.atoms[i]
        if gained and (parts := _cover(gained, left, rest_a)):
            merged.append((sorted([i, *parts]), j))
            rest_a[:] = [x for x in rest_a if x not in parts]
    for i, _ in split:
        pairs.pop(i, None)
    for whole, j in merged:
        for i in whole:
            if pairs.get(i, (-1, ""))[0] == j:
                pairs.pop(i)
    return split, merged


def _pair(left: _Side, right: _Side, i: int, j: int, how: str) -> Pair:
    a, b = left.kernels[i].id, right.kernels[j].id
    before, after = fastest(left.trace, a), fastest(right.trace, b)
    return Pair(a, b, how, after / before if before > 0 and after > 0 else -1.0)


def fastest(trace: Trace, kernel: int) -> float:
    """A kernel's fastest launch, which other work on the machine disturbs least; -1.0 unknown."""
    timing = trace.timing(kernel)
    return timing.min_us if timing else -1.0


def _turned(p: Pair) -> Pair:
    return Pair(p.b, p.a, p.how, 1 / p.ratio)


def _slower(left: _Side, right: _Side, p: Pair) -> bool:
    more = fastest(right.trace, p.b) - fastest(left.trace, p.a)
    return p.ratio >= SLOWER and more >= LEAST_US


def _different_operations(
    a: Trace, b: Trace, left: _Side, right: _Side
) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Forward operations of the program that the other one has not, each call counted once."""

    def calls(trace: Trace, side: _Side) -> dict[tuple[str, Place], list[Operation]]:
        schedules = {k.schedule for k in side.kernels}
        seen: dict[tuple[str, tuple[int, ...], int], int] = {}
        for s in trace.schedules:
            if s.id not in schedules or s.lazy == -1:
                continue
            graph = trace.graph(s.lazy)
            for op, row in zip(graph.ops, graph.origins, strict=False):
                if SORTS.get(op) == "constant" or op in GIVEN or not row:
                    continue
                o = trace.origin(row[0])
                if o.phase == "forward":
                    seen.setdefault((o.op, o.stack, o.frame), row[0])
        out: dict[tuple[str, Place], list[Operation]] = {}
        for (op, _, frame), origin in seen.items():
            found = Operation(op, "forward", trace.place(frame))
            out.setdefault((op, side.place(origin)), []).append(found)
        return out

    x, y = calls(a, left), calls(b, right)
    return _surplus(y, x), _surplus(x, y)


GIVEN = {"PARAM", "BUFFER", "STACK", "BUFFER_VIEW"}
"""Nodes that hold what was there before: their origins are not this program's operations."""


def _surplus(
    more: Mapping[tuple[str, Place], Sequence[Operation]],
    less: Mapping[tuple[str, Place], Sequence[Operation]],
) -> tuple[Operation, ...]:
    """As many calls of each operation at each line as one side has more."""
    return tuple(
        call for key, calls in more.items() for call in calls[len(less.get(key, ())):]
    )


def _more_boundaries(
    mine: _Side, other: _Side, groups: Sequence[tuple[list[int], list[int]]]
) -> tuple[int, ...]:
    """Boundaries of one side whose reason its kernels' fellows do not have."""

    def reasons(side: _Side) -> dict[int, list[tuple[str, int]]]:
        place = {k.id: i for i, k in enumerate(side.kernels)}
        out: dict[int, list[tuple[str, int]]] = {}
        for b in side.trace.boundaries:
            if b.source in place:
                out.setdefault(place[b.source], []).append((b.reason, b.id))
        return out

    own, theirs = reasons(mine), reasons(other)
    out = []
    for members, fellows in groups:
        known = Counter(r for j in fellows for r, _ in theirs.get(j, ()))
        for i in members:
            for reason, id in own.get(i, ()):
                if known[reason]:
                    known[reason] -= 1
                else:
                    out.append(id)
    return tuple(sorted(out))
