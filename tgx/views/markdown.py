"""The view `markdown`: what a pull request needs to say about a trace."""

from __future__ import annotations

import re

from tgx.model import Trace
from tgx.passes import costs
from tgx.views import text, words


def render(trace: Trace, schedule: int = -1, rows: int = 15) -> str:
    """A heading, the slowest kernels, and the reasons of their boundaries."""
    trace = costs.attach(trace)
    out = [f"### {cell(text.header(trace)[0])}", ""]
    out += [f"> {cell(h)}" for h in text.header(trace)[1:]]
    chosen = (schedule,) if schedule != -1 else trace.steady()
    kernels = [trace.kernel(k) for s in chosen for k in trace.schedule(s).kernels]
    kernels = kernels or list(trace.kernels)
    if not kernels:
        return "\n".join([*out, "No kernels.", ""])
    cost = text._costs_among(trace, kernels)
    total = sum(max(c.time_us, 0.0) for c in cost.values())
    slow = sorted(kernels, key=lambda k: (-cost[k.id].time_us, k.id))[:rows]
    out += [f"{words.plural(len(kernels), 'kernel')}, {words.duration(total)} in all, peak memory "
            f"{words.size(trace.peak()) or 'not recorded'}." if trace.peak() else
            f"{words.plural(len(kernels), 'kernel')}, {words.duration(total)} in all.", "",
            "| kernel | phase | time | share | bound by | lines | tinygrad's name |",
            "|---|---|--:|--:|---|---|---|"]
    for k in slow:
        c = cost[k.id]
        out.append("| " + " | ".join(cell(x) for x in (
            k.name, k.phase, words.duration(c.time_us),
            words.percent(c.share) if c.time_us >= 0 else "", c.bound,
            ", ".join(trace.places(k.id)), k.tinygrad_name)) + " |")
    if len(kernels) > rows:
        out.append(f"\nand {len(kernels) - rows} more.")
    reasons: dict[str, int] = {}
    ids = {k.id for k in kernels}
    for b in trace.boundaries:
        if b.source in ids:
            reasons[b.brief or b.reason] = reasons.get(b.brief or b.reason, 0) + 1
    if reasons:
        out += ["", "Why kernels end where they end: " + ", ".join(
            f"{n} × {cell(r)}" for r, n in sorted(reasons.items(), key=lambda i: (-i[1], i[0])))
            + "."]
    return "\n".join([*out, ""])


def cell(value: str) -> str:
    """Text that stays text in Markdown: no markup, no links, no new cell."""
    value = words.line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|!~$@])", r"\\\1", value)
