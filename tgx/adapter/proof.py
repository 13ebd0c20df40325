"""Proof of a boundary: the schedule again, with that one decision reversed and all others as they
were.

If the reason is true, the result has exactly one kernel fewer. What is computed then may be wrong
(a store hazard reversed overwrites what it still reads) or slow; it is never run, only counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tinygrad.schedule as tg_schedule
from tinygrad.schedule import rangeify
from tinygrad.uop.ops import Ops, PatternMatcher, UOp, graph_rewrite

from tgx.adapter import boundaries
from tgx.adapter.boundaries import Decision, Decisions
from tgx.adapter.provenance import Follow, Tokens, current, following

if TYPE_CHECKING:
    from tgx.adapter.capture import Session
    from tgx.adapter.templates import Template


@dataclass(frozen=True)
class Proof:
    """Kernels of a schedule as it is, and without one boundary."""

    boundary: int
    reason: str
    kernels: int
    without: int

    @property
    def holds(self) -> bool:
        return self.without == self.kernels - 1


Identity = tuple[Tokens, str, int]


def identities(decisions: list[Decision]) -> dict[int, Identity]:
    """Each decision's name, the same in every replay: what is stored, by which line, and which of
    several."""
    count: dict[tuple[Tokens, str], int] = {}
    out = {}
    for d in decisions:
        key = d.value, d.rule
        out[id(d)] = (*key, count.get(key, 0))
        count[key] = count.get(key, 0) + 1
    return out


def prove(session: Session) -> Iterator[Proof]:
    """A proof of every boundary of a recording that has one."""
    recorder = session.recorder
    counts: dict[int, int] = {}
    for boundary, (template, kind, which) in recorder.proofs.items():
        if id(template) not in counts:
            counts[id(template)] = kernels_of(template)
        target: Any = template.decisions[which] if kind == "stage" else which
        yield Proof(boundary, kind, counts[id(template)], kernels_of(template, target))


def kernels_of(template: Template, without: Decision | int | None = None) -> int:
    """How many kernels a graph becomes with its decisions frozen, except ``without``: a decision,
    or a place in the graph of a STORE that fills an output (it is then not stored, but used where
    it is read)."""
    from tgx.adapter.templates import rebuild_graph

    nodes = rebuild_graph(template.structure)
    follow = Follow()
    follow.layers[0] = {n: (i,) for i, n in enumerate(nodes)}
    names = identities(template.decisions)
    stored = {which for node, which in template.stage_of.items() if node.op is Ops.BUFFER}
    kept = {names[id(template.decisions[i])] for i in stored}
    dropped = names[id(without)] if isinstance(without, Decision) else None
    root = nodes[-1]
    if isinstance(without, int):
        with following(follow):
            root = _not_stored(root, nodes[without])
    replayed: dict[int, Identity] = {}

    def fate(decision: Decision) -> str:
        if id(decision) not in replayed:
            replayed.update(identities(decisions.found))
        name = replayed[id(decision)]
        if name == dropped:
            return "drop"
        return "keep" if name in kept else "drop"

    decisions = Decisions(follow, fate)
    if isinstance(without, int):
        decisions.always = [
            template.decisions[i]
            for i in sorted(stored)
            if template.decisions[i].reason not in boundaries.OPAQUE
        ]
    if dropped is not None and "_limit_bufs" in dropped[1]:
        # made by the last pass that makes any: taken out right after it
        follow.after["limit buffers"] = lambda sink: graph_rewrite(
            sink, boundaries.pm_reverse, name="reverse a decision"
        )
    with following(follow), boundaries.deciding(decisions), _lenient(decisions):
        linear = tg_schedule.create_schedule(rangeify.get_kernel_graph(root))
    return len(linear.src)


def _not_stored(root: UOp, store: UOp) -> UOp:
    """A graph whose readers use a value directly instead of through the output it is stored in.

    Later stores into the same buffer still find the buffer there, with its earlier contents.
    """
    after = next(n for n in root.toposort() if n.op is Ops.AFTER and store in n.src[1:])
    value = store.src[1]
    if value._shape != after._shape and after._shape is not None:
        value = value.reshape(after.shape)
    before = after.src[0]
    new: dict[UOp, UOp] = {}  # every node without the store; ``place`` the same as a place to write
    place: dict[UOp, UOp] = {after: before}
    for n in root.toposort():
        if n is after:
            new[n] = value
            continue
        sources = [new[s] for s in n.src]
        if n.op in (Ops.STORE, Ops.AFTER) or (n.src and n.src[0] in place):
            target = place.get(n.src[0], new[n.src[0]]) if n.src else None
            written = n.replace(src=(target, *sources[1:])) if target is not None else n
            if n.op in (Ops.STORE, Ops.AFTER):
                new[n] = place[n] = _same(n, written)
                continue
            place[n] = _same(n, written)
        new[n] = _same(n, n.replace(src=tuple(sources)) if tuple(sources) != n.src else n)
    kept = [new[s] for s in root.src if s is not after]
    if before.op is Ops.AFTER and after in root.src:
        kept.append(before)
    return root.replace(src=tuple(dict.fromkeys(kept)))


def _same(old: UOp, new: UOp) -> UOp:
    """``new`` stands where ``old`` did: it keeps its note."""
    follow = current()
    if new is not old and follow is not None:
        follow.rebuilt(old, new)
    return new


@contextmanager
def _lenient(decisions: Decisions) -> Iterator[None]:
    """A replay may read what it overwrites; and `Decisions` has to see the graph it decides on."""
    before = rangeify.to_define_global, rangeify.run_rangeify
    rangeify.to_define_global = PatternMatcher(
        [(p, f) for p, f in before[0].patterns if f is not rangeify.find_bufs]
    )

    def run_rangeify(sink: UOp, debug: bool = False) -> UOp:
        decisions.root = sink
        return before[1](sink, debug)

    rangeify.run_rangeify = run_rangeify
    try:
        yield
    finally:
        rangeify.to_define_global, rangeify.run_rangeify = before
