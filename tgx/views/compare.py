"""Two or more traces side by side: text, Markdown or JSON. (`tgx compare`; not a row of VIEWS, as
it takes several traces.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tgx.errors import BadInput
from tgx.model import Trace
from tgx.passes import costs
from tgx.passes.match import Match, Pair, compared, fastest, match
from tgx.safe import to_json
from tgx.views import text, words
from tgx.views.facts import counted_launch, counts_facts
from tgx.views.markdown import cell

ROWS = 60
OPTS = 12  # sentences about kernels that were optimised otherwise, or counted otherwise

# What a counted launch is compared by: its name, how it is shown, and by how much two may differ
# and be alike (a cache sees where in a line of it a buffer starts).
COUNTED = (("flops", words.number, 0.0), ("loaded", words.size, 0.0), ("stored", words.size, 0.0),
           ("l1_misses", words.number, 0.02), ("l2_misses", words.number, 0.02))


def render(
    traces: Sequence[Trace], names: Sequence[str] = (), form: str = "text", whole: bool = False
) -> str:
    """Compare the first trace with each of the others."""
    if len(traces) < 2:
        raise BadInput("one trace", "two or more to compare", "tgx compare BEFORE AFTER")
    names = list(names) or [chr(ord("A") + i) for i in range(len(traces))]
    traces = [costs.attach(t) for t in traces]
    matches = [match(traces[0], t, whole) for t in traces[1:]]
    if form == "json":
        body = [facts(traces[0], t, m) for t, m in zip(traces[1:], matches, strict=True)]
        return to_json({"names": list(names), "comparisons": body}, 2)
    out = [_times(traces, names, matches, whole, form)]
    for t, m, name in zip(traces[1:], matches, names[1:], strict=True):
        out.append(_story(traces[0], t, m, names[0], name, form))
    return "\n\n".join(out) + "\n"


def facts(a: Trace, b: Trace, m: Match) -> dict[str, Any]:
    """One comparison as plain records. Kernels of A and B are named by their own traces' ids."""

    def pair(p: Pair) -> dict[str, Any]:
        ratio = round(p.ratio, 4) if p.ratio > 0 else None
        return {"a": p.a, "b": p.b, "name": b.kernel(p.b).name, "how": p.how,
                "a_us": _us(a, p.a), "b_us": _us(b, p.b), "ratio": ratio,
                "a_counts": counts_facts(a, p.a), "b_counts": counts_facts(b, p.b),
                "a_opts": opts(a, p.a), "b_opts": opts(b, p.b)}

    def boundary(t: Trace, id: int) -> dict[str, Any]:
        found = t.boundary(id)
        return {"from": found.source, "reason": found.reason, "because": found.because,
                "rule": found.rule}

    return {
        "alike": m.alike,
        "operations": {"added": [asdict(o) for o in m.operations_added],
                       "removed": [asdict(o) for o in m.operations_removed]},
        "kernels": {
            "a": len({*[p.a for p in m.pairs], *m.removed, *[x for x, _ in m.split],
                      *[x for xs, _ in m.merged for x in xs]}),
            "b": len({*[p.b for p in m.pairs], *m.added, *[x for _, xs in m.split for x in xs],
                      *[x for _, x in m.merged]}),
            "added": [{"b": k, "name": b.kernel(k).name} for k in m.added],
            "removed": [{"a": k, "name": a.kernel(k).name} for k in m.removed],
            "split": [{"a": k, "name": a.kernel(k).name, "b": list(into),
                       "into": [b.kernel(i).name for i in into]} for k, into in m.split],
            "merged": [{"a": list(of), "of": [a.kernel(i).name for i in of], "b": k,
                        "name": b.kernel(k).name} for of, k in m.merged],
            "changed": [pair(p) for p in m.pairs if p.how == "changed"],
            "slower": [pair(p) for p in m.slower],
            "faster": [pair(p) for p in m.faster],
        },
        "boundaries": {"added": [boundary(b, i) for i in m.boundaries_added],
                       "removed": [boundary(a, i) for i in m.boundaries_removed]},
        "pairs": [pair(p) for p in m.pairs],
        "peak_bytes": [a.peak(), b.peak()],
    }


def opts(t: Trace, kernel: int) -> tuple[str, ...]:
    """What the optimiser decided about a kernel: ("UPCAST(0, 4)", ...); on TGX, which has one of
    its own, the path it took. () where nothing was decided, or recorded."""
    number = t.kernel(kernel).program
    if number < 0:
        return ()
    program = t.program(number)
    decided = tuple(f"{o.op}({o.axis}, {o.amount})" for o in program.opts)
    return decided or ((f"TGX's {program.path} path",) if program.path else ())


def counted(a: Trace, b: Trace, p: Pair) -> list[str] | None:
    """What a launch of B's kernel was counted to do otherwise than A's, in words; None where one
    of them was not counted."""
    one, other = counted_launch(a, p.a), counted_launch(b, p.b)
    if one is None or other is None:
        return None
    out = []
    for name, show, same in COUNTED:
        x, y = getattr(one, name), getattr(other, name)
        if abs(x - y) > same * max(x, y):
            ratio = f" (×{y / x:.2f})" if x else ""
            title = name.replace("l1_", "L1 ").replace("l2_", "L2 ")
            out.append(f"{title} {show(x)} → {show(y)}{ratio}")
    return out


def _us(t: Trace, kernel: int) -> float | None:
    us = fastest(t, kernel)
    return None if us < 0 else us


def _times(
    traces: Sequence[Trace], names: Sequence[str], matches: Sequence[Match], whole: bool, form: str
) -> str:
    """One row for each kernel of the first trace (or one that only another has), times beside."""
    fellows = [{p.a: p.b for p in m.pairs} for m in matches]
    first = compared(traces[0], whole)
    rows: list[list[str]] = []
    shown = sorted(first, key=lambda k: -fastest(traces[0], k.id))[:ROWS]
    keep = {k.id for k in shown}
    for k in first:
        if k.id not in keep:
            continue
        row = [words.line(k.name, 40), words.duration(fastest(traces[0], k.id))]
        for t, fellow in zip(traces[1:], fellows, strict=True):
            other = fellow.get(k.id)
            before = fastest(traces[0], k.id)
            after = fastest(t, other) if other is not None else -1.0
            ratio = f"  ×{after / before:.2f}" if before > 0 and after > 0 else ""
            row.append("–" if other is None else (words.duration(after) or "matched") + ratio)
        rows.append(row)
    totals = ["all kernels"]
    for t in traces:
        kernels = compared(t, whole)
        total = sum(max(fastest(t, k.id), 0.0) for k in kernels)
        totals.append(f"{len(kernels)}: " + (words.duration(total) if total else "not timed"))
    rows.append(totals)
    heads = ["kernel", *(words.line(n, 30) for n in names)]
    more = f"\nand {len(first) - len(shown)} faster kernels" if len(first) > len(shown) else ""
    if form == "markdown":
        lines = ["| " + " | ".join(map(cell, r)) + " |" for r in [heads, *rows]]
        return "\n".join([lines[0], "|---" + "|--:" * len(names) + "|", *lines[1:]]) + more
    slow = " (slowed by TGX_COUNT=1)" if any(t.counts for t in traces) else ""
    return (f"the fastest launch of each kernel{slow}\n"
            + text.table(heads, rows, range(1, len(heads))) + more)


def _story(a: Trace, b: Trace, m: Match, left: str, right: str, form: str) -> str:
    """What differs, in sentences, the causes first."""
    show = cell if form == "markdown" else words.line
    out = [f"{show(left)} → {show(right)}: " + ("the same kernels" if m.alike else "differs")]

    def tell(sentence: str) -> None:
        out.append(f"- {sentence}")

    def name(t: Trace, k: int) -> str:
        return f"{show(t.kernel(k).name)} ({k})"

    for sign, found in (("added", m.operations_added), ("removed", m.operations_removed)):
        for o in found:
            tell(f"the program: {show(o.op)} {sign}" + (f" at {show(o.line)}" if o.line else ""))
    for k, into in m.split:
        tell(f"split: {name(a, k)} into {' and '.join(name(b, i) for i in into)}")
    for of, k in m.merged:
        tell(f"merged: {' and '.join(name(a, i) for i in of)} into {name(b, k)}")
    for p in m.pairs:
        if p.how == "changed":
            tell(f"changed: {name(a, p.a)} is now {name(b, p.b)}")
    for k in m.added:
        tell(f"added: {name(b, k)}")
    for k in m.removed:
        tell(f"removed: {name(a, k)}")
    for word, pairs in (("slower", m.slower), ("faster", m.faster)):
        for p in pairs:
            tell(f"{word}: {name(b, p.b)} {words.duration(fastest(a, p.a))} → "
                 f"{words.duration(fastest(b, p.b))} (×{p.ratio:.2f})")
    otherwise = [(p, old, new) for p in m.pairs
                 for old, new in [(opts(a, p.a), opts(b, p.b))] if old != new]
    for p, old, new in otherwise[:OPTS]:
        tell(f"optimised otherwise: {name(b, p.b)}: {show(' '.join(old)) or 'nothing'} → "
             f"{show(' '.join(new)) or 'nothing'}")
    if len(otherwise) > OPTS:
        tell(f"and {len(otherwise) - OPTS} more kernels are optimised otherwise")
    told = [(p, numbers) for p in m.pairs if (numbers := counted(a, b, p)) is not None]
    differ = [(p, numbers) for p, numbers in told if numbers]
    for p, numbers in differ[:OPTS]:
        tell(f"counted, one launch of {name(b, p.b)}: {', '.join(numbers)}")
    if len(differ) > OPTS:
        tell(f"and {len(differ) - OPTS} more kernels are counted otherwise")
    if told and not differ:
        tell(f"counted: {words.plural(len(told), 'kernel')} with the same work")
    for sign, t, ids in (("new", b, m.boundaries_added), ("gone", a, m.boundaries_removed)):
        for i in ids:
            x = t.boundary(i)
            tell(f"boundary {sign}, after {name(t, x.source)}: {show(x.because)}")
    if a.peak() and b.peak() and a.peak() != b.peak():
        tell(f"peak memory {words.size(a.peak())} → {words.size(b.peak())}")
    return "\n".join(out)
