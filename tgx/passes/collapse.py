"""Draw many kernels as few: groups of kernels become one kernel of kind "graph"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from tgx.model import Kernel, Timing, Trace
from tgx.passes.cluster import LIMIT, Group, kernel_levels
from tgx.passes.select import select


def collapse(trace: Trace, groups: Sequence[Group]) -> Trace:
    """Every group of two or more kernels becomes one, which reads and writes what crosses its edge.

    Buffers and boundaries inside a group disappear, times and work are added up. The new kernel has
    the group's label as its name, the id of its first member, and kind "graph".
    """
    member_of: dict[int, int] = {}
    for group in groups:
        for m in group.members:
            member_of[m] = group.members[0]
    by_first = {g.members[0]: g for g in groups}
    readers: dict[int, set[int]] = {}
    writers: dict[int, set[int]] = {}
    for k in trace.kernels:
        for table, buffers in ((readers, k.reads), (writers, k.writes)):
            for b in buffers:
                table.setdefault(b, set()).add(member_of.get(k.id, k.id))
    kinds = {b.id: b.kind for b in trace.buffers}

    def inside(buffer: int) -> bool:
        """Written and read by one group alone: not an edge of the collapsed picture."""
        both = readers.get(buffer, set()) | writers.get(buffer, set())
        return (
            len(both) == 1
            and bool(readers.get(buffer)) and bool(writers.get(buffer))
            and kinds[buffer] not in ("input", "output")
        )

    kernels: list[Kernel] = []
    for k in trace.kernels:
        first = member_of.get(k.id, k.id)
        if first != k.id:
            continue
        whole = by_first.get(k.id)
        if whole is None or len(whole.members) == 1:
            kernels.append(k)
        else:
            kernels.append(_merge([trace.kernel(m) for m in whole.members], whole.label, inside))
    gone = {b.id for b in trace.buffers if inside(b.id) and _grouped(b.id, writers, by_first)}
    boundaries = []
    for boundary in trace.boundaries:
        if boundary.buffer in gone:
            continue
        source = member_of.get(boundary.source, boundary.source)
        to = tuple(dict.fromkeys(member_of.get(r, r) for r in boundary.readers))
        boundaries.append(replace(boundary, source=source, readers=to))
    alone = {k.id for k in kernels if k.kind != "graph"}
    times: dict[int, list[Timing]] = {}
    for t in trace.timings:
        times.setdefault(member_of.get(t.kernel, t.kernel), []).append(t)
    return replace(
        trace,
        kernels=tuple(kernels),
        schedules=tuple(
            replace(s, kernels=tuple(dict.fromkeys(member_of.get(k, k) for k in s.kernels)))
            for s in trace.schedules
        ),
        buffers=tuple(
            replace(b, base=-1 if b.base in gone else b.base)
            for b in trace.buffers
            if b.id not in gone
        ),
        boundaries=tuple(boundaries),
        runs=tuple(replace(r, kernel=member_of.get(r.kernel, r.kernel)) for r in trace.runs),
        timings=tuple(_sum(k, all_of) for k, all_of in times.items()),
        counts=tuple(c for c in trace.counts if c.kernel in alone),
        traffic=tuple(t for t in trace.traffic if t.kernel in alone),
        memory=tuple(
            replace(
                m,
                kernel=member_of.get(m.kernel, m.kernel),
                buffer=-1 if m.buffer in gone else m.buffer,
            )
            for m in trace.memory
        ),
        gradients=tuple(
            replace(g, kernels=tuple(dict.fromkeys(member_of.get(k, k) for k in g.kernels)))
            for g in trace.gradients
        ),
        walks=tuple(
            replace(w, kernels=tuple(
                replace(k, kernel=member_of.get(k.kernel, k.kernel)) for k in w.kernels
            ))
            for w in trace.walks
        ),
    )


def _grouped(buffer: int, writers: dict[int, set[int]], by_first: dict[int, Group]) -> bool:
    (writer,) = writers[buffer]
    return writer in by_first and len(by_first[writer].members) > 1


def _sum(kernel: int, timings: list[Timing]) -> Timing:
    return Timing(
        kernel,
        max(t.calls for t in timings),
        sum(t.total_us for t in timings),
        sum(t.min_us for t in timings),
        sum(t.median_us for t in timings),
    )


def _merge(members: list[Kernel], label: str, inside: Callable[[int], bool]) -> Kernel:
    def distinct(column: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(x for k in members for x in getattr(k, column)))

    written = {b for k in members for b in k.writes}
    phases = Counter(k.phase for k in members)
    devices = {k.device for k in members}
    return replace(
        members[0],
        name=label,
        tinygrad_name=f"{len(members)} kernels",
        device=members[0].device if len(devices) == 1 else "",
        phase=phases.most_common(1)[0][0],
        kind="graph",
        program=-1,
        ast=-1,
        ops=distinct("ops"),
        lines=distinct("lines"),
        forward=distinct("forward"),
        origins=distinct("origins"),
        reads=tuple(b for b in distinct("reads") if not inside(b) and b not in written),
        writes=tuple(b for b in distinct("writes") if not inside(b)),
        flops=_total(k.flops for k in members),
        bytes=_total(k.bytes for k in members),
    )


def _total(values: Iterable[int]) -> int:
    known = [v for v in values if v >= 0]
    return sum(known) if known else -1


def collapse_to(trace: Trace, schedule: int, limit: int = LIMIT) -> Trace:
    """One schedule, with its kernels grouped until there are at most `limit` of them."""
    part = select(trace, (schedule,))
    levels = kernel_levels(part, schedule, limit)
    return collapse(part, levels.parts) if levels.parts else part
