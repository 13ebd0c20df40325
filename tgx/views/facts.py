"""The view `json`: kernels and boundaries as plain records, for scripts (`tgx show --json`).

Every claim the other views make in pictures can be checked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from tgx.model import Boundary, Kernel, Trace
from tgx.passes import costs
from tgx.safe import to_json


def render(
    trace: Trace,
    schedules: Iterable[int] | None = None,
    kernels: Iterable[int] | None = None,
    indent: int | None = 2,
) -> str:
    """JSON text of `facts`."""
    return to_json(facts(trace, schedules, kernels), indent)


def facts(
    trace: Trace, schedules: Iterable[int] | None = None, kernels: Iterable[int] | None = None
) -> dict[str, Any]:
    """What a trace says of its kernels, schedules and boundaries."""
    trace = costs.attach(trace)
    cost = costs.costs(trace)
    in_schedules = None if schedules is None else set(schedules)
    chosen = None if kernels is None else set(kernels)
    wanted = {
        k.id
        for k in trace.kernels
        if (in_schedules is None or k.schedule in in_schedules)
        and (chosen is None or k.id in chosen)
    }
    env = trace.environment
    runs = Counter(r.schedule for r in trace.realizes)
    return {
        "environment": asdict(env),
        "steady": list(trace.steady()),
        "schedules": [
            {
                "id": s.id,
                "name": s.name,
                "line": trace.place(s.frame),
                "phase": s.phase,
                "jit": s.jit,
                "kernels": list(s.kernels),
                "runs": runs[s.id],
                "cache_hits": s.cache_hits,
                "planned_bytes": s.planned_bytes,
                "unplanned_bytes": s.unplanned_bytes,
            }
            for s in trace.schedules
            if in_schedules is None or s.id in in_schedules
        ],
        "kernels": [kernel_facts(trace, k, cost[k.id]) for k in trace.kernels if k.id in wanted],
        "boundaries": [
            boundary_facts(trace, b)
            for b in trace.boundaries
            if b.source in wanted or wanted.intersection(b.readers)
            or (kernels is None and in_schedules is None)
        ],
        "peak_bytes": trace.peak(),
    }


def kernel_facts(trace: Trace, k: Kernel, cost: costs.Cost) -> dict[str, Any]:
    program = trace.program(k.program) if k.program != -1 else None
    timing = trace.timing(k.id)
    return {
        "id": k.id,
        "name": k.name,
        "tinygrad_name": k.tinygrad_name,
        "device": k.device,
        "kind": k.kind,
        "phase": k.phase,
        "schedule": k.schedule,
        "ops": list(k.ops),
        "lines": list(trace.places(k.id)),
        "forward": list(k.forward),
        "path": program.path if program else "",
        "path_reason": program.path_reason if program else "",
        "time_us": _known(cost.time_us),
        "calls": timing.calls if timing else None,
        "total_us": timing.total_us if timing else None,
        "flops": _known(cost.flops),
        "bytes": _known(cost.bytes),
        "flops_per_s": _known(cost.flops_s),
        "bytes_per_s": _known(cost.bytes_s),
        "bound": cost.bound,
        "counts": counts_facts(trace, k.id),
        "reads": list(k.reads),
        "writes": list(k.writes),
        "global_size": list(program.global_size) if program else [],
        "local_size": list(program.local_size) if program else [],
    }


class Launch(NamedTuple):
    """What one launch of a kernel did: its counted launches' mean. Bytes are those of its buffers,
    misses those of everything it touched."""

    flops: float
    loaded: float
    stored: float
    l1_misses: float
    l2_misses: float


def counted_launch(trace: Trace, kernel: int) -> Launch | None:
    c = trace.counted(kernel)
    if c is None:
        return None
    traffic = trace.traffic_of(kernel)
    own = [t for t in traffic if t.kind == "buffer"]
    return Launch(
        c.flops / c.calls,
        sum(t.loaded for t in own) / c.calls,
        sum(t.stored for t in own) / c.calls,
        sum(t.l1_misses for t in traffic) / c.calls,
        sum(t.l2_misses for t in traffic) / c.calls,
    )


def counts_facts(trace: Trace, kernel: int) -> dict[str, Any] | None:
    """What all counted launches of a kernel did together, and with which memory."""
    c = trace.counted(kernel)
    if c is None:
        return None
    return {
        "calls": c.calls,
        "flops": c.flops,
        "integer": c.integer,
        "estimated_flops": _known(c.estimated_flops),
        "estimated_moved": _known(c.estimated_moved),
        "estimated_bytes": _known(c.estimated_bytes),
        "memory": [
            {
                "buffer": t.buffer if t.buffer != -1 else None,
                "name": t.name or trace.buffer(t.buffer).name,
                "kind": t.kind,
                "loads": t.loads,
                "stores": t.stores,
                "loaded": t.loaded,
                "stored": t.stored,
                "l1_misses": t.l1_misses,
                "l2_misses": t.l2_misses,
            }
            for t in trace.traffic_of(kernel)
        ],
    }


def boundary_facts(trace: Trace, b: Boundary) -> dict[str, Any]:
    buffer = trace.buffer(b.buffer) if b.buffer != -1 else None
    return {
        "id": b.id,
        "from": b.source if b.source != -1 else None,
        "to": list(b.readers),
        "buffer": b.buffer if b.buffer != -1 else None,
        "buffer_name": buffer.name if buffer else "",
        "nbytes": buffer.nbytes if buffer else None,
        "schedule": b.schedule,
        "reason": b.reason,
        "rule": b.rule,
        "because": b.because,
        "fuse_by": b.fuse_by,
        "kernels_without": _known(b.kernels_without),
    }


def _known(value: float) -> float | None:
    """A number, or null where the trace does not know it."""
    return None if value < 0 else value
