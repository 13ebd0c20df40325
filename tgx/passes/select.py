"""Keep a part of a trace: some schedules, some kernels, or what surrounds one kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tgx.model import Trace


def select(
    trace: Trace, schedules: Iterable[int] | None = None, kernels: Iterable[int] | None = None
) -> Trace:
    """The part of a trace that belongs to these schedules, or these kernels (or both).

    What only other kernels refer to goes; places in source code stay, they are small and shared.
    """
    keep_schedules = {s.id for s in trace.schedules} if schedules is None else set(schedules)
    wanted = None if kernels is None else set(kernels)
    kept = tuple(
        k
        for k in trace.kernels
        if (k.schedule in keep_schedules or (k.schedule == -1 and schedules is None))
        and (wanted is None or k.id in wanted)
    )
    ids = {k.id for k in kept}
    buffers = {b for k in kept for b in (*k.reads, *k.writes)}
    buffers |= {b.base for b in trace.buffers if b.id in buffers and b.base != -1}
    programs = {k.program for k in kept}
    if wanted is not None:
        keep_schedules &= {k.schedule for k in kept}
    passes = tuple(
        p
        for p in trace.passes
        if (p.schedule in keep_schedules if p.schedule != -1 else p.program in programs)
    )
    boundaries = tuple(
        replace(
            b,
            source=b.source if b.source in ids else -1,
            readers=tuple(r for r in b.readers if r in ids),
            buffer=b.buffer if b.buffer in buffers else -1,
            schedule=b.schedule if b.schedule in keep_schedules else -1,
        )
        for b in trace.boundaries
        if b.source in ids or ids.intersection(b.readers)
    )
    realizes = tuple(r for r in trace.realizes if r.schedule in keep_schedules)
    realized = {r.id for r in realizes}
    gradients = tuple(
        replace(g, kernels=tuple(k for k in g.kernels if k in ids)) for g in trace.gradients
    )
    graphs = {g for s in trace.schedules if s.id in keep_schedules for g in (s.lazy, s.graph)}
    graphs |= {g for p in trace.programs if p.id in programs for g in (p.ast, p.uops)}
    graphs |= {k.ast for k in kept} | {p.table for p in passes} | {b.graph for b in boundaries}
    walks = tuple(
        replace(w, kernels=tuple(k for k in w.kernels if k.kernel in ids)) for w in trace.walks
    )
    graphs |= {w.graph for w in walks}
    return replace(
        trace,
        schedules=tuple(
            replace(s, kernels=tuple(k for k in s.kernels if k in ids))
            for s in trace.schedules
            if s.id in keep_schedules
        ),
        kernels=kept,
        buffers=tuple(
            b if b.schedule in keep_schedules else replace(b, schedule=-1)
            for b in trace.buffers
            if b.id in buffers
        ),
        boundaries=boundaries,
        programs=tuple(p for p in trace.programs if p.id in programs),
        graphs=tuple(g for g in trace.graphs if g.id in graphs),
        passes=passes,
        realizes=realizes,
        runs=tuple(r for r in trace.runs if r.kernel in ids and r.realize in realized | {-1}),
        timings=tuple(t for t in trace.timings if t.kernel in ids),
        counts=tuple(c for c in trace.counts if c.kernel in ids),
        traffic=tuple(t for t in trace.traffic if t.kernel in ids),
        memory=tuple(
            replace(
                m,
                kernel=m.kernel if m.kernel in ids else -1,
                buffer=m.buffer if m.buffer in buffers else -1,
            )
            for m in trace.memory
        ),
        walks=walks,
        gradients=gradients,
    )


def steady(trace: Trace) -> Trace:
    """Only the schedules run most often: the training step, without what prepared it."""
    return select(trace, trace.steady())


def neighbours(trace: Trace, kernel: int, radius: int = 1) -> tuple[int, ...]:
    """The kernels at most `radius` buffers away from one, itself included, in execution order."""
    touching: dict[int, set[int]] = {}
    for k in trace.kernels:
        for b in (*k.reads, *k.writes):
            touching.setdefault(b, set()).add(k.id)
    schedule = trace.kernel(kernel).schedule
    found = edge = {kernel}
    for _ in range(radius):
        edge = {
            near
            for k in edge
            for b in (*trace.kernel(k).reads, *trace.kernel(k).writes)
            for near in touching[b]
            if trace.kernel(near).schedule == schedule
        } - found
        found = found | edge
    return tuple(k.id for k in trace.kernels if k.id in found)


def around(trace: Trace, kernel: int, radius: int = 1, limit: int = 60) -> Trace:
    """The neighbourhood of one kernel: at most `limit` kernels, the radius shrunk until it fits."""
    while radius > 1 and len(neighbours(trace, kernel, radius)) > limit:
        radius -= 1
    near = neighbours(trace, kernel, radius)
    if len(near) > limit:  # a buffer all kernels read: keep the nearest in execution order
        here = near.index(kernel)
        start = max(0, min(here - limit // 2, len(near) - limit))
        near = near[start : start + limit]
    return select(trace, kernels=near)
