"""What each kernel costs: its time, its rates, and what bounds it.

Estimates of work come from the trace (tinygrad counts arithmetic and bytes), times from its runs.
The roof is given by the caller where the device is known; otherwise it is the best this very trace
shows, which is a lower bound of the device's and is called so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

from tgx.model import Kernel, Timing, Trace

LAUNCH_US = 5.0
"""Below this a kernel's time is mostly the launch, whatever it computes."""


@dataclass(frozen=True, slots=True)
class Roof:
    """The most a device can do: arithmetic and bytes a second, and where the figures come from."""

    flops: float
    bytes: float
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """One kernel's cost. Unknown numbers are -1. ``of_roof`` is the achieved part of what the roof
    allows at this intensity; ``bound`` is "memory", "compute", "launch" or ""."""

    kernel: int
    time_us: float
    share: float
    flops: int
    bytes: int
    flops_s: float
    bytes_s: float
    intensity: float
    of_roof: float
    bound: str


def attach(trace: Trace) -> Trace:
    """Give every kernel its work and its timing, where the trace knows them in another place."""
    programs = {p.id: p for p in trace.programs}
    sizes = {b.id: b.nbytes for b in trace.buffers}

    def work(k: Kernel) -> Kernel:
        p = programs.get(k.program)
        flops = k.flops if k.flops >= 0 or p is None else p.flops
        nbytes = k.bytes if k.bytes >= 0 or p is None else p.bytes
        if nbytes < 0 and (k.reads or k.writes):
            nbytes = sum(sizes[b] for b in dict.fromkeys((*k.reads, *k.writes)))
        return k if (flops, nbytes) == (k.flops, k.bytes) else replace(k, flops=flops, bytes=nbytes)

    timed = {t.kernel for t in trace.timings}
    runs: dict[int, list[float]] = {}
    for r in trace.runs:
        if r.kernel not in timed:
            runs.setdefault(r.kernel, []).append(r.time_us)
    more = tuple(Timing(k, len(t), sum(t), min(t), median(t)) for k, t in runs.items())
    kernels = tuple(work(k) for k in trace.kernels)
    if not more and all(a is b for a, b in zip(kernels, trace.kernels, strict=True)):
        return trace
    return replace(trace, kernels=kernels, timings=trace.timings + more)


def roof_of(trace: Trace) -> Roof:
    """The best rates any kernel of this trace reached."""
    flops = bytes_ = 0.0
    for k in trace.kernels:
        us = trace.time_us(k.id)
        if us > 0:
            flops, bytes_ = max(flops, k.flops / us * 1e6), max(bytes_, k.bytes / us * 1e6)
    return Roof(flops, bytes_, "the best rates in this trace")


def costs(trace: Trace, roof: Roof | None = None) -> dict[int, Cost]:
    """The cost of every kernel of a trace; shares are of all its kernels together."""
    trace = attach(trace)
    roof = roof or roof_of(trace)
    total = sum(max(trace.time_us(k.id), 0.0) for k in trace.kernels)
    return {k.id: _cost(k, trace.time_us(k.id), total, roof) for k in trace.kernels}


def _cost(k: Kernel, us: float, total: float, roof: Roof) -> Cost:
    flops_s = k.flops / us * 1e6 if us > 0 and k.flops >= 0 else -1.0
    bytes_s = k.bytes / us * 1e6 if us > 0 and k.bytes >= 0 else -1.0
    intensity = k.flops / k.bytes if k.bytes > 0 and k.flops >= 0 else -1.0
    by_compute = flops_s / roof.flops if roof.flops > 0 else -1.0
    by_memory = bytes_s / roof.bytes if roof.bytes > 0 else -1.0
    of_roof, bound = max(by_compute, by_memory), ""
    if us > 0:
        if us < LAUNCH_US and of_roof < 1 / 3:
            bound = "launch"
        elif of_roof > 0:
            bound = "compute" if by_compute > by_memory else "memory"
    share = us / total if us > 0 and total > 0 else 0.0
    return Cost(k.id, us, share, k.flops, k.bytes, flops_s, bytes_s, intensity, of_roof, bound)
