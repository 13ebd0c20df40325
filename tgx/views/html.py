"""The view `html`: the explorer's page, one self-contained file that works from disk, offline.

The page is `tgx/views/page/`: a skeleton, a style sheet and some scripts without a framework, put
into one file here. The trace travels inside it as chunks: JSON, deflated, in base64. The core (what
the first screen needs) is unpacked when the page opens, everything else when it is looked at: a
program's UOps and code are one chunk, its rewrites another, and so for each schedule.

Safety: a trace may come from a stranger. Base64 cannot close a script element, its texts are made
safe to look at before they are packed, the scripts only ever create text nodes, and the page's own
policy (`tgx.safe`) forbids the network and any script or style but its own.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import median
from typing import Any

from tgx.model import Graph, Kernel, Pass, Trace
from tgx.passes import cluster, costs, uops
from tgx.passes.cluster import Group
from tgx.passes.costs import Roof
from tgx.safe import policy, shown_json
from tgx.views import colours, words
from tgx.views.picture import _first_schedule

SCRIPTS = (
    "data.js", "state.js", "layout.js", "lanes.js", "draw.js", "source.js", "program.js", "code.js",
    "steps.js", "kernel.js", "strip.js", "search.js", "main.js",
)
BUDGET = 15_000_000
"""Bytes of chunks in one page; what does not fit is left out, biggest rewrites first, and told."""
MAX_RUNS = 20_000
MAX_MEMORY = 4_000


def render(trace: Trace, roof: Roof | None = None, budget: int = BUDGET) -> str:
    """The page as one string of HTML."""
    chunks = pack(trace, roof, budget)
    page = files("tgx.views") / "page"
    script = "\n".join((page / name).read_text("utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    style = _tones() + (page / "style.css").read_text("utf-8")
    title = words.line(trace.environment.program or "trace", 80)
    holes = {
        "{{title}}": escape(title),
        "{{style}}": style,
        "{{policy}}": policy(style, script),
        "{{chunks}}": "\n".join(
            f'<script type="text/plain" id="chunk-{name}">{data}</script>'
            for name, data in chunks.items()
        ),
        "{{script}}": script,
    }
    out = []
    for piece in (page / "page.html").read_text("utf-8").split("\n"):
        hole = next((h for h in holes if h in piece), None)
        out.append(piece.replace(hole, holes[hole]) if hole else piece)
    return "\n".join(out)


def _tones() -> str:
    """The colours of `tgx.views.colours` as CSS: one table for every view."""
    rows = [f".tone-{tone or 'none'} {{ --fill: {fill}; --ink: {ink}; }}"
            for tone, (fill, ink) in colours.TONES.items()]
    return "\n".join(rows) + "\n"


# **** packing ****


def pack(trace: Trace, roof: Roof | None = None, budget: int = BUDGET) -> dict[str, str]:
    """The trace as named chunks of text, together at most about `budget` bytes."""
    trace = costs.attach(trace)
    kernels: dict[int, list[Kernel]] = {}
    for k in trace.kernels:
        kernels.setdefault(k.program, []).append(k)
    details: dict[str, dict[str, Any]] = {
        f"p{p.id}": _program(trace, p.id, kernels.get(p.id, ())) for p in trace.programs
    }
    details |= {f"s{s.id}": _schedule(trace, s.id) for s in trace.schedules}
    owners: dict[str, list[Pass]] = {}  # rewrites are most of a trace: chunks of their own
    for p in trace.passes:
        owner = f"rs{p.schedule}" if p.schedule != -1 else f"rp{p.program}"
        owners.setdefault(owner, []).append(p)
    rewrites = {name: _deflate(_passes(trace, passes)) for name, passes in owners.items()}
    packed = {name: _deflate(value) for name, value in details.items() if any(value.values())}
    left_out: list[str] = []
    size = sum(map(len, (*packed.values(), *rewrites.values())))
    for name in sorted(rewrites, key=lambda n: -len(rewrites[n])):
        if size <= budget:
            break
        size -= len(rewrites.pop(name))
        left_out.append(name)
    for name in sorted(packed, key=lambda n: -len(packed[n])):
        if size <= budget:
            break
        if details[name].get("code"):
            size -= len(packed[name])
            packed[name] = _deflate(details[name] | {"code": [], "left_out": ["code"]})
            size += len(packed[name])
            left_out.append(name)
    packed |= rewrites
    core = _core(trace, roof or costs.roof_of(trace))
    core["chunks"] = list(packed)
    if left_out:
        core["env"]["missing"] += [
            f"the rewrites or code of {len(left_out)} programs and schedules were left out of "
            "this page to keep it small; `tgx show` has them all"
        ]
    return {"core": _deflate(core), **packed}


def _deflate(value: object) -> str:
    return base64.b64encode(zlib.compress(shown_json(value).encode(), 6)).decode()


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Records as one list of names and rows of values: the page makes objects of them."""
    return {"columns": columns, "rows": list(rows)}


def _words(column: Sequence[str]) -> dict[str, Any] | None:
    """A column of strings as its distinct strings and their places."""
    if not column:
        return None
    places: dict[str, int] = {}
    return {"at": [places.setdefault(w, len(places)) for w in column], "words": list(places)}


def _tree(group: Group) -> list[Any]:
    if group.parts:
        return [group.label, None, [_tree(part) for part in group.parts]]
    return [group.label, group.members]


def _graph(trace: Trace, graph: Graph, levels: bool = True) -> dict[str, Any]:
    return {
        "id": graph.id,
        "kind": graph.kind,
        "n": len(graph),
        "op": _words(graph.ops),
        "dtype": _words(graph.dtypes),
        "shape": _words(graph.shapes),
        "arg": _words(graph.args),
        "tensor_op": _words(graph.tensor_ops),
        "phase": _words(graph.phases),
        "label": _words(graph.labels),
        "back": [[i - s for s in row] for i, row in enumerate(graph.srcs)],
        "origins": _rows(graph.origins) if graph.origins else None,
        "roots": graph.roots,
        "levels": _tree(cluster.node_levels(graph, trace)) if levels else None,
    }


def _delta(steps: Sequence[int]) -> list[int]:
    """Steps, a column after the other, each number as its distance from the one before it: they
    walk through the table, so most are small, and deflate well."""
    columns = (steps[k::4] for k in range(4))
    return [b - a for c in columns for a, b in zip((0, *c), c, strict=False)]


def _passes(trace: Trace, passes: Sequence[Pass]) -> dict[str, Any]:
    """Passes and the tables their steps point into."""
    tables = {p.table for p in passes if p.table != -1}
    return {
        "passes": [
            {"id": p.id, "table": p.table, "before": p.before, "after": p.after,
             "delta": _delta(p.steps)}
            for p in passes
        ],
        "table": [_graph(trace, trace.graph(t), levels=False) for t in sorted(tables)] or None,
    }


def _program(trace: Trace, id: int, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """A program's UOps and code; and its AST, where a device wrote the program as a whole from
    that and its UOps say nothing (TGX's tile path)."""
    p = trace.program(id)
    whole = trace.graph(p.uops if p.uops != -1 else p.ast) if (p.uops, p.ast) != (-1, -1) else None
    own = {k.id: g for k in kernels if (g := uops.kernel_graph(trace, k.id)) is not None}
    asts = {}
    if whole is None or uops.is_shell(whole):
        asts = {k.id: uops.named(trace, trace.graph(k.ast)) for k in kernels if k.ast != -1}
    return {
        "uops": _shared(trace, whole or next(iter(own.values()), None), own),
        "ast": _shared(trace, next(iter(asts.values()), None), asts),
        "code": [[c.level, c.language, c.text, c.uops, c.facts, c.inside] for c in p.code],
    }


def _shared(
    trace: Trace, graph: Graph | None, own: Mapping[int, Graph]
) -> dict[str, Any] | None:
    """A graph that several kernels share. They come from different lines: each has its own
    origins, and, where its operations differ too, its own levels."""
    if graph is None:
        return None
    levels: dict[tuple[str, ...], int] = {}
    trees: list[Any] = []
    kernels: dict[int, list[int]] = {}
    rows: dict[tuple[tuple[int, ...], ...], int] = {}
    for k, g in own.items():
        if len(g) != len(graph):
            continue
        if g.tensor_ops not in levels:
            levels[g.tensor_ops] = len(trees)
            trees.append(_tree(cluster.node_levels(g)))
        kernels[k] = [rows.setdefault(g.origins, len(rows)), levels[g.tensor_ops]]
    return _graph(trace, graph, levels=not trees) | {
        "own": {"levels": trees, "origins": [_rows(row) for row in rows], "kernels": kernels}
    }


def _rows(column: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """A column of id tuples as its distinct tuples and their places."""
    places: dict[tuple[int, ...], int] = {}
    return {"at": [places.setdefault(r, len(places)) for r in column], "rows": list(places)}


def _schedule(trace: Trace, id: int) -> dict[str, Any]:
    s = trace.schedule(id)
    lazy = uops.named(trace, trace.graph(s.lazy)) if s.lazy != -1 else None
    return {"lazy": _graph(trace, lazy) if lazy else None}


def _core(trace: Trace, roof: Roof) -> dict[str, Any]:
    """All that the first screen and the search need."""
    env = trace.environment
    cost = costs.costs(trace, roof)
    loops = {x: [[y.name, y.size, y.kind] for y in x] for p in trace.programs
             for x in (p.loops, *(o.before for o in p.opts), *(o.after for o in p.opts))}
    summary: dict[tuple[str, int], list[Any]] = {}
    for p in trace.passes:
        owner = ("s", p.schedule) if p.schedule != -1 else ("p", p.program)
        summary.setdefault(owner, []).append([p.id, p.name, p.matches, len(p), p.depth])
    used: dict[int, tuple[int, int]] = {}  # where each rule first fired
    for p in trace.passes:
        for i, rule in enumerate(p.steps[3::4]):
            used.setdefault(rule, (p.id, i))
    runs_of: dict[int, list[float]] = {}
    for r in trace.realizes:
        runs_of.setdefault(r.schedule, []).append(r.end_us - r.start_us)
    return {
        "env": {
            "program": env.program, "arguments": env.arguments, "device": env.device,
            "tinygrad": env.tinygrad, "tgx": env.tgx, "python": env.python, "machine": env.machine,
            "level": env.level, "ended": env.ended, "exit_code": env.exit_code,
            "error": env.error, "missing": list(env.missing), "settings": env.settings,
            "caches": [[c.name, c.nbytes, c.ways, c.line] for c in env.caches],
        },
        "show": _first_schedule(trace) if trace.schedules else -1,
        "steady": trace.steady(),
        "roof": [roof.flops, roof.bytes, roof.source],
        "files": _table(("id", "path", "user", "lines"),
                        ((f.id, f.path, f.user, f.lines) for f in trace.files)),
        "frames": _table(("id", "file", "line", "fn"),
                         ((f.id, f.file, f.line, f.function) for f in trace.frames)),
        "origins": _table(("id", "op", "frame", "phase", "forward", "via", "names"),
                          ((o.id, o.op, o.frame, o.phase, o.forward, o.via, o.names)
                           for o in trace.origins)),
        "kernels": _table(
            ("id", "name", "tg", "device", "phase", "kind", "schedule", "program", "ops", "lines",
             "forward", "origins", "reads", "writes", "flops", "bytes", "us", "min", "calls",
             "total", "of_roof", "bound"),
            ((k.id, k.name, k.tinygrad_name, k.device, k.phase, k.kind, k.schedule, k.program,
              k.ops, k.lines, k.forward, k.origins, k.reads, k.writes, k.flops, k.bytes,
              cost[k.id].time_us, t.min_us if t else -1, t.calls if t else 0,
              t.total_us if t else -1, round(cost[k.id].of_roof, 4), cost[k.id].bound)
             for k in trace.kernels for t in (trace.timing(k.id),))),
        "buffers": _table(
            ("id", "name", "kind", "device", "dtype", "shape", "nbytes", "schedule", "base",
             "offset", "first", "last"),
            ((b.id, b.name, b.kind, b.device, b.dtype, b.shape, b.nbytes, b.schedule, b.base,
              b.offset, b.first, b.last) for b in trace.buffers)),
        "boundaries": _table(
            ("id", "reason", "because", "brief", "rule", "fuse_by", "source", "readers", "buffer",
             "schedule", "without", "graph", "nodes"),
            ((b.id, b.reason, b.because, b.brief or b.reason, b.rule, b.fuse_by, b.source,
              b.readers, b.buffer, b.schedule, b.kernels_without, b.graph, b.nodes)
             for b in trace.boundaries)),
        "schedules": _table(
            ("id", "name", "frame", "phase", "jit", "kernels", "runs", "wall", "cache_hits",
             "planned", "unplanned", "passes", "levels"),
            ((s.id, s.name, s.frame, s.phase, s.jit, s.kernels, len(runs_of.get(s.id, ())),
              median(runs_of.get(s.id, (-1.0,))), s.cache_hits, s.planned_bytes,
              s.unplanned_bytes, summary.get(("s", s.id), []),
              _tree(cluster.kernel_levels(trace, s.id))) for s in trace.schedules)),
        "programs": _table(
            ("id", "name", "device", "path", "path_reason", "loops", "opts", "global", "local",
             "flops", "bytes", "lds", "compile_us", "passes"),
            ((p.id, p.name, p.device, p.path, p.path_reason, loops[p.loops],
              [[o.op, o.axis, o.amount, o.text, loops[o.before], loops[o.after]] for o in p.opts],
              p.global_size, p.local_size, p.flops, p.bytes, p.lds_bytes, p.compile_us,
              summary.get(("p", p.id), [])) for p in trace.programs)),
        "rules": _table(("id", "file", "line", "text", "fn", "pass", "step"),
                        ((r.id, r.file, r.line, r.text, r.function, *used.get(r.id, (-1, -1)))
                         for r in trace.rules)),
        "counts": _table(("id", "calls", "flops", "integer", "est_flops", "est_moved"),
                         ((c.kernel, c.calls, c.flops, c.integer, c.estimated_flops,
                           c.estimated_moved) for c in trace.counts)),
        "traffic": _table(("kernel", "buffer", "name", "loads", "stores", "loaded", "stored",
                           "l1", "l2", "kind"),
                          ((t.kernel, t.buffer, t.name, t.loads, t.stores, t.loaded, t.stored,
                            t.l1_misses, t.l2_misses, t.kind) for t in trace.traffic)),
        "runs": list(_runs(trace)),
        "memory": _memory(trace),
        "events": _table(("kind", "name", "at", "us", "frame", "text"),
                         ((e.kind, e.name, e.at_us, e.time_us, e.frame, e.text)
                          for e in trace.events[:MAX_RUNS])),
    }


def _runs(trace: Trace) -> Iterator[list[Any]]:
    """The launches of each schedule's last execution: kernel, start, time."""
    last = {r.schedule: r.id for r in trace.realizes}
    shown, count = set(last.values()), 0
    for r in trace.runs:
        if r.realize in shown and count < MAX_RUNS:
            count += 1
            yield [r.kernel, round(r.start_us, 2), round(r.time_us, 3)]


def _memory(trace: Trace) -> list[Any]:
    """Memory in use over time: [time, used, change, name] rows, thinned out but for the peak."""
    events = trace.memory
    step = max(1, len(events) // MAX_MEMORY)
    top = max(range(len(events)), key=lambda i: events[i].used, default=-1)
    return [
        [round(m.at_us, 1), m.used, m.nbytes, m.name]
        for i, m in enumerate(events)
        if i % step == 0 or i == top or i == len(events) - 1
    ]
