"""The view `text`: a trace in the terminal.

    summary    what ran, where its time went, kernel by kernel; why the slowest end where they end
    one kernel (`kernel=K`): lines, operations, reasons, loop nest, cost, code
    one line   (`line="mlp.py:9"`): the kernels that line became part of
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tgx.errors import BadInput
from tgx.model import Boundary, Counts, Kernel, Loop, Trace
from tgx.passes import costs
from tgx.passes.costs import Cost
from tgx.views import words
from tgx.views.facts import counted_launch

ROWS = 60
"""Kernels listed at most; the slowest, in execution order."""


def render(
    trace: Trace, kernel: int = -1, line: str = "", schedule: int = -1, rows: int = ROWS,
    code: bool = True,
) -> str:
    """Plain text, at most 100 columns but for source code."""
    trace = costs.attach(trace)
    if kernel != -1:
        return words.clean(one_kernel(trace, kernel, code))
    if line:
        return words.clean(one_line(trace, line))
    return words.clean(summary(trace, schedule, rows))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of text, those in `right` flush right; a cell is one line, whatever is in it."""
    body = [tuple(heads), *(tuple(words.clean(c).replace("\n", "␊") for c in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if i in right else c.ljust(w)
                  for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in body
    )


def header(trace: Trace) -> list[str]:
    """What ran, and what of it was not recorded."""
    env = trace.environment
    what = " ".join([env.program or "a program", *env.arguments])
    made = ", ".join(t for t in (env.device, f"tinygrad {env.tinygrad}" if env.tinygrad else "",
                                 env.machine) if t)
    out = [words.line(f"{what}  ({made})" if made else what)]
    if env.ended == "exception":
        out.append("the program ended in an error: " + words.line(env.error, 300))
    elif env.ended == "exit" and env.exit_code:
        out.append(f"the program exited with code {env.exit_code}")
    elif env.ended == "unfinished":
        out.append("the program was killed, or the trace cut short: the last records may be lost")
    out += ["not recorded: " + words.line(m) for m in env.missing]
    return out


def summary(trace: Trace, schedule: int = -1, rows: int = ROWS) -> str:
    """Schedules, then the kernels of one schedule (or of the steady ones)."""
    out = header(trace)
    if not trace.kernels:
        return "\n".join([*out, "", "no kernels: nothing was computed", ""])
    chosen = (trace.schedule(schedule).id,) if schedule != -1 else trace.steady()
    if len(trace.schedules) > 1:
        out += ["", _schedules(trace, chosen)]
    kernels = [trace.kernel(k) for s in chosen for k in trace.schedule(s).kernels]
    if not kernels:  # a log: kernels without a schedule
        kernels = list(trace.kernels)
    out += ["", _kernels(trace, kernels, rows)]
    if any(trace.counted(k.id) for k in kernels):
        out += ["", _counts(trace, kernels, rows)]
    reasons = _reasons(trace, kernels)
    if reasons:
        out += ["", "why kernels end where they end", *reasons]
    peak = trace.peak()
    if peak:
        out += ["", f"memory in use at most: {words.size(peak)}"]
    return "\n".join([*out, ""])


def _schedules(trace: Trace, chosen: Sequence[int]) -> str:
    runs: dict[int, int] = {}
    for r in trace.realizes:
        runs[r.schedule] = runs.get(r.schedule, 0) + 1
    return table(
        ("", "schedule", "realized at", "kernels", "runs"),
        (("*" if s.id in chosen else "", f"{s.id} {words.line(s.name or s.jit, 40)}".strip(),
          "" if trace.place(s.frame) in s.name else trace.place(s.frame),
          str(len(s.kernels)), str(runs.get(s.id, 0)))
         for s in trace.schedules),
        (3, 4),
    )


def _kernels(trace: Trace, kernels: Sequence[Kernel], rows: int) -> str:
    cost = _costs_among(trace, kernels)
    shown = set(sorted((k.id for k in kernels), key=lambda k: -cost[k].time_us)[:rows])
    total = sum(max(c.time_us, 0.0) for c in cost.values())
    head = f"{words.plural(len(kernels), 'kernel')}, {words.duration(total)} in all"
    if len(kernels) > rows:
        head += f"; the slowest {rows}:"
    body = table(
        ("id", "kernel", "phase", "time", "share", "rate", "bound", "lines", "tinygrad's name"),
        ((str(k.id), words.line(k.name, 42), k.phase, words.duration(cost[k.id].time_us),
          words.percent(cost[k.id].share) if cost[k.id].time_us >= 0 else "",
          _rates(cost[k.id]), cost[k.id].bound, _some(trace.places(k.id)),
          words.line(k.tinygrad_name, 24)) for k in kernels if k.id in shown),
        (0, 3, 4),
    )
    return head + "\n" + body


def _counts(trace: Trace, kernels: Sequence[Kernel], rows: int) -> str:
    """What one launch of each kernel did, counted, beside tinygrad's estimates."""
    def moved(k: Kernel) -> int:
        return sum(t.loaded + t.stored for t in trace.traffic_of(k.id) if t.kind == "buffer")

    counted = [(k, c) for k in kernels if (c := trace.counted(k.id)) is not None]
    shown = {k.id for k, _ in sorted(counted, key=lambda kc: -moved(kc[0]))[:rows]}
    head = "counted, one launch each"
    if len(counted) > rows:
        head += f"; the {rows} that move most"
    body = table(
        ("id", "kernel", "flops", "×est", "loaded", "stored", "×est", "L1 misses", "L2 misses"),
        (_counts_row(trace, k, c) for k, c in counted if k.id in shown),
        tuple(range(2, 9)),
    )
    return f"{head}\n{body}\n{_counted_by(trace)}"


def _counts_row(trace: Trace, k: Kernel, c: Counts) -> tuple[str, ...]:
    one = counted_launch(trace, k.id)
    assert one is not None
    return (
        str(k.id), words.line(k.name, 42), words.number(one.flops),
        words.times(one.flops * c.calls, c.estimated_flops),
        words.size(one.loaded), words.size(one.stored),
        words.times((one.loaded + one.stored) * c.calls, c.estimated_moved),
        words.number(one.l1_misses), words.number(one.l2_misses),
    )


def _counted_by(trace: Trace) -> str:
    """What the numbers are."""
    caches = trace.environment.caches
    told = " and ".join(f"{words.line(c.name)} ({c.nbytes >> 10} KiB, {c.ways} ways)"
                        for c in caches) or "two caches"
    line = caches[0].line if caches else 64
    return (f"×est: counted, over tinygrad's estimate. Misses: lines of {line} bytes that a model "
            f"of\n{told}, empty at each launch's start, had not.")


def _counted_kernel(trace: Trace, c: Counts) -> list[str]:
    """All that was counted of one kernel, and of each of its buffers."""
    traffic, n = trace.traffic_of(c.kernel), c.calls
    own = [t for t in traffic if t.kind == "buffer"]
    moved = sum(t.loaded + t.stored for t in own)

    def fact(name: str, value: float, estimate: float, show: Callable[[float], str]) -> str:
        beside = ""
        if estimate >= 0:
            factor = words.times(value, estimate)
            beside = f"tinygrad estimates {show(estimate / n)}" + (f": {factor}" if factor else "")
        return f"  {name:12}{show(value / n):12}{beside}".rstrip()

    def rows() -> Iterator[tuple[str, ...]]:
        for t in traffic:
            nbytes = trace.buffer(t.buffer).nbytes if t.buffer != -1 else 0
            name = trace.buffer(t.buffer).name if t.buffer != -1 else t.name
            yield (
                "  " + words.line(name or f"buffer {t.buffer}", 40),
                words.size(nbytes) if nbytes else "",
                words.number(t.loads / n) if t.loads else "",
                words.size(t.loaded / n) if t.loads else "",
                words.times(t.loaded / n, nbytes) if t.loads else "",
                words.number(t.stores / n) if t.stores else "",
                words.size(t.stored / n) if t.stores else "",
                words.number(t.l1_misses / n), words.number(t.l2_misses / n),
            )

    heads = ("  memory", "size", "loads", "loaded", "×size", "stores", "stored", "L1 misses",
             "L2 misses")
    return [
        "", f"counted, in {words.plural(n, 'launch' if n == 1 else 'launche')}; of one launch",
        fact("flops", c.flops, c.estimated_flops, lambda x: f"{x:,.0f}"),
        fact("integer ops", c.integer, -1, lambda x: f"{x:,.0f}"),
        fact("moved", moved, c.estimated_moved, words.size),
        *table(heads, rows(), tuple(range(1, 9))).split("\n"),
        *("  " + line for line in _counted_by(trace).split("\n")),
    ]


def _costs_among(trace: Trace, kernels: Sequence[Kernel]) -> dict[int, Cost]:
    from tgx.passes.select import select

    return costs.costs(select(trace, kernels=[k.id for k in kernels]), costs.roof_of(trace))


def _rates(c: Cost) -> str:
    if c.flops_s > 0 and c.bound != "memory":
        return words.rate(c.flops_s, "F")
    return words.rate(c.bytes_s, "B")


def _some(places: Sequence[str], most: int = 2) -> str:
    files = {p.rsplit(":", 1)[0] for p in places}
    short = [p.rsplit(":", 1)[1] if len(files) == 1 and i else p for i, p in enumerate(places)]
    more = f" +{len(short) - most}" if len(short) > most else ""
    return words.line(",".join(short[:most]) + more, 40)


def _reasons(trace: Trace, kernels: Sequence[Kernel]) -> list[str]:
    """Reasons of a schedule's boundaries, equal sentences together."""
    ids = {k.id for k in kernels}
    grouped: dict[str, list[Boundary]] = {}
    for b in trace.boundaries:
        if b.source in ids or (b.source == -1 and ids.intersection(b.readers)):
            grouped.setdefault(b.reason, []).append(b)
    out = []
    for reason, found in sorted(grouped.items(), key=lambda item: -len(item[1])):
        out.append(f"  {len(found):>4} × {words.line(reason, 40)}  [{words.line(found[0].rule)}]")
        out.append(f"         e.g. {_arrow(trace, found[0])}: {words.line(found[0].because, 300)}")
    return out


def _arrow(trace: Trace, b: Boundary) -> str:
    source = f"kernel {b.source}" if b.source != -1 else "outside"
    to = ", ".join(map(str, b.readers)) or "the program"
    name = f" ({words.line(trace.buffer(b.buffer).name, 30)})" if b.buffer != -1 else ""
    return f"{source} → {to}{name}"


def loop_lines(loops: Sequence[Loop], mark: Sequence[Loop] = ()) -> list[str]:
    """A nest as it reads: `for m in 64 (threads)`, one deeper than the other."""
    known = set(mark)
    return [
        "  " * min(i, 40) + f"for {words.line(x.name)} in {words.line(x.size)}"
        + ("" if x.kind == "loop" else f" ({LOOP_WORDS[x.kind]})")
        + (" ←" if mark and x not in known else "")
        for i, x in enumerate(loops)
    ]


LOOP_WORDS = {
    "global": "global", "thread": "threads", "local": "local threads", "warp": "warp",
    "loop": "", "reduce": "reduce", "group_reduce": "reduce in a group", "upcast": "vector",
    "unroll": "unrolled", "device": "devices",
}


def one_kernel(trace: Trace, id: int, code: bool = True) -> str:
    """All about one kernel."""
    try:
        k = trace.kernel(id)
    except KeyError:
        known = ", ".join(str(k.id) for k in trace.kernels[:12])
        raise BadInput(f"kernel {id}", f"one of this trace's kernels: {known} …",
                       "`tgx show DIR` lists them") from None
    fellows = trace.schedule(k.schedule).kernels if k.schedule != -1 else ()
    among = [trace.kernel(x) for x in fellows] if id in fellows else [k]
    c = _costs_among(trace, among)[id]
    out = [f"kernel {k.id}: {words.line(k.name)}",
           f"  {k.phase}, on {words.line(k.device)}, {words.line(k.tinygrad_name)} to tinygrad"]
    out += ["", "lines"]
    for file, number in k.lines:
        f = trace.file(file)
        out.append(f"  {words.line(f.path)}:{number}  {words.clean(f.text(number)).strip()}")
    out += ["", f"operations: {words.line(', '.join(k.ops)) or 'not recorded'}"]
    if k.forward:
        out.append(f"gradient of: {words.line(', '.join(k.forward))}")
    out += ["", "reads"] + [f"  {_buffer(trace, b)}" for b in k.reads]
    out += ["writes"] + [f"  {_buffer(trace, b)}" for b in k.writes]
    own: list[Boundary] = []
    others: list[Boundary] = []
    for b in trace.boundaries_of(id):
        (own if b.source == id else others).append(b)
    for title, found in (("why it ends where it ends", own), ("why it begins where it begins",
                                                              others)):
        if found:
            out += ["", title]
            for b in found:
                out.append(f"  {_arrow(trace, b)}: {words.line(b.because)}")
                if b.rule:
                    out.append(f"    rule: tinygrad {words.line(b.rule)}")
                if b.fuse_by:
                    out.append(f"    to fuse: {words.line(b.fuse_by)}")
                if b.kernels_without >= 0:
                    out.append(f"    without it the schedule has {b.kernels_without} kernels")
    out += ["", "cost"]
    facts = [("time", words.duration(c.time_us) or "not measured"),
             ("share", words.percent(c.share) if c.time_us >= 0 else ""),
             ("work", f"{c.flops:,} operations" if c.flops >= 0 else ""),
             ("moves", words.size(c.bytes)), ("reaches", words.rate(c.flops_s, "F")),
             ("", words.rate(c.bytes_s, "B")), ("bound by", c.bound),
             ("of the roof", words.percent(c.of_roof) if c.of_roof > 0 else "")]
    out += [f"  {name:12}{value}" for name, value in facts if value]
    p = trace.program(k.program) if k.program != -1 else None
    if p is not None and p.path:
        why = f" ({words.line(p.path_reason)})" if p.path_reason else ""
        out.append(f"  {'path':12}{words.line(p.path)}{why}")
    if (counts := trace.counted(id)) is not None:
        out += _counted_kernel(trace, counts)
    if p is not None:
        if p.loops:
            out += ["", "loops", *("  " + x for x in loop_lines(p.loops))]
        for i, o in enumerate(p.opts):
            what = f"{words.line(o.op)} axis {o.axis}, {o.amount}"
            out += ["", f"optimisation {i + 1}: {what}  {words.line(o.text)}".rstrip()]
            out += ["  " + x for x in loop_lines(o.after, o.before)]
        if code:
            for pane in p.code:
                facts_text = ", ".join(f"{words.line(n)} {words.line(v)}" for n, v in pane.facts)
                out += ["", words.line(f"{pane.level} ({pane.language})".replace(" ()", ""))
                        + (f": {facts_text}" if facts_text else "")]
                out += ["  " + words.clean(x) for x in pane.text.split("\n")]
    return "\n".join([*out, ""])


def _buffer(trace: Trace, id: int) -> str:
    b = trace.buffer(id)
    parts = (b.name or f"buffer {b.id}", b.shape, b.dtype, words.size(b.nbytes))
    return words.line("  ".join(p for p in parts if p))


def parse_line(trace: Trace, line: str) -> tuple[int, int]:
    """`mlp.py:9` as (file id, line number); the end of a path is enough."""
    path, _, number = line.rpartition(":")
    found = [f for f in trace.files if path and (f.path == path or f.path.endswith("/" + path))]
    if not number.isdigit() or not found:
        known = ", ".join(words.line(f.path) for f in trace.files if f.user)
        raise BadInput(f"line {line!r}", f"FILE:N, with one of these files: {known or 'none'}")
    return found[0].id, int(number)


def one_line(trace: Trace, line: str) -> str:
    """A source line, and the kernels it became part of."""
    file, number = parse_line(trace, line)
    f = trace.file(file)
    out = [f"{words.line(f.path)}:{number}  {words.clean(f.text(number)).strip()}", ""]
    kernels = [trace.kernel(k) for k in trace.kernels_at(file, number)]
    if not kernels:
        return "\n".join([*out, "no kernel comes from this line", ""])
    return "\n".join([*out, _kernels(trace, kernels, ROWS), ""])
