"""The view `perfetto`: a timeline in Chrome's trace format, for ui.perfetto.dev or
chrome://tracing.

One process is the Python program (realizes, scheduling, compiling), one each device; kernels are
slices, memory is a counter. Times are the trace's own microseconds.
"""

from __future__ import annotations

from typing import Any

from tgx.model import Trace
from tgx.passes import costs
from tgx.safe import to_json
from tgx.views import words

PYTHON = 1


def render(trace: Trace) -> str:
    """The whole timeline as JSON text."""
    trace = costs.attach(trace)
    devices = list(dict.fromkeys(
        [*(k.device for k in trace.kernels), *(m.device for m in trace.memory)]))
    process = {d: i for i, d in enumerate(devices, PYTHON + 1)}
    events: list[dict[str, Any]] = [_name(PYTHON, "python", trace.environment.program or "python")]
    events += [_name(process[d], "device", d or "device") for d in devices]
    for r in trace.realizes:
        s = trace.schedule(r.schedule)
        events.append(_slice(PYTHON, 1, s.name or f"schedule {s.id}", "realize", r.start_us,
                             r.end_us - r.start_us, line=trace.place(s.frame), step=r.step))
    for e in trace.events:
        events.append(_slice(PYTHON, 2, e.name, e.kind, e.at_us, e.time_us,
                             line=trace.place(e.frame), text=e.text))
    known = {k.id: k for k in trace.kernels}
    for run in trace.runs:
        k = known[run.kernel]
        events.append(_slice(
            process[k.device], 1, k.name, k.phase, run.start_us, run.time_us,
            tinygrad=k.tinygrad_name, lines=", ".join(trace.places(k.id)), kernel=k.id,
            flops=k.flops if k.flops >= 0 else None, bytes=k.bytes if k.bytes >= 0 else None,
            clock=run.clock))
    events += [
        {"name": "memory", "ph": "C", "pid": process[m.device], "ts": m.at_us,
         "args": {"bytes": m.used}}
        for m in trace.memory
    ]
    return to_json({"displayTimeUnit": "ns", "traceEvents": events})


def _name(pid: int, kind: str, name: str) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": pid,
            "args": {"name": f"{kind}: {words.line(name)}"}}


def _slice(pid: int, tid: int, name: str, cat: str, start: float, time: float,
           **args: object) -> dict[str, Any]:
    return {"name": words.line(name), "cat": cat, "ph": "X", "pid": pid, "tid": tid, "ts": start,
            "dur": max(time, 0.0),
            "args": {k: words.line(v) if isinstance(v, str) else v for k, v in args.items()
                     if v not in ("", None)}}
