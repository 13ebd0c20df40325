"""Pictures: boxes, edges and a legend, before anybody draws them.

A picture is plain data, like a trace. `dot` writes it for graphviz; the page's own drawing uses the
same words and colours. What each picture shows:

    schedule   kernels, and the buffers between them with the reason of each boundary
    lazy       the Tensor graph a realize was given, by operation
    kernel     one kernel's UOps
    step       one rewrite: what changed, and its surroundings, before and after
    debug      kernels in launch order, all that a DEBUG log tells
    memory     which buffers are alive while which kernel runs, and the peak

None has more than `limit` boxes: bigger graphs are drawn as groups, or as the neighbourhood of
what the reader asked for (`focus`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tgx.errors import BadInput
from tgx.model import Boundary, Buffer, Graph, Kernel, Node, Pass, Schedule, Trace
from tgx.passes import cluster, collapse, costs, select, uops
from tgx.passes.places import origin_place
from tgx.views import lanes, words
from tgx.views.lanes import Places

LIMIT = cluster.LIMIT


@dataclass(frozen=True, slots=True)
class Box:
    """One box. ``kind`` decides its shape, ``tone`` its fill, ``mark`` its border."""

    key: str
    title: str
    small: tuple[str, ...] = ()
    kind: str = "kernel"
    tone: str = ""
    tooltip: str = ""
    mark: str = ""  # "", "changed", "added", "removed", "chosen"


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow. ``kind`` is "data", "boundary" (it carries a reason), "order", "gradient" (of a
    backward walk: it carries a derivative) or "of" (from a gradient to what it is of)."""

    source: str
    target: str
    label: str = ""
    tooltip: str = ""
    kind: str = "data"


@dataclass(frozen=True, slots=True)
class Picture:
    """What to draw, and the legend that says what it means."""

    title: str
    boxes: tuple[Box, ...] = ()
    edges: tuple[Edge, ...] = ()
    legend: tuple[tuple[str, str, str], ...] = ()  # (kind, tone, what it means)
    notes: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()  # of the memory picture, which is a chart
    places: Places | None = None  # of a training step, whose boxes have their places


@dataclass(frozen=True, slots=True)
class Row:
    """One buffer's life in the memory chart: from column ``first`` to ``last`` (inclusive)."""

    name: str
    text: str
    first: int
    last: int
    tone: str
    at_peak: bool


PHASE_WORDS = {
    "forward": "forward",
    "backward": "backward (gradients)",
    "optimizer": "optimizer",
    "data": "data movement",
}
KIND_WORDS = {
    "kernel": "kernel",
    "copy": "copy",
    "view": "view, no work",
    "graph": "several, drawn as one",
    "custom": "custom kernel",
    "buffer": "buffer from outside, or result",
    "arithmetic": "arithmetic",
    "reduce": "reduce",
    "memory": "memory",
    "movement": "movement, no arithmetic",
    "control": "control",
    "index": "index arithmetic",
    "constant": "constant",
}
BOUND_WORDS = {
    "memory": "bound by memory",
    "compute": "bound by arithmetic",
    "launch": "bound by the launch",
    "": "not measured",
}
COST_STEPS = (0.02, 0.05, 0.1, 0.25)
COST_WORDS = ("below 2 % of the time", "2 to 5 %", "5 to 10 %", "10 to 25 %", "above 25 %")


def _legend(boxes: Iterable[Box], colour: str) -> tuple[tuple[str, str, str], ...]:
    """The rows a legend needs for these boxes: each tone, then each kind, in their fixed order."""
    boxes = tuple(boxes)
    tones, kinds = {b.tone for b in boxes}, {b.kind for b in boxes}
    tables: dict[str, dict[str, str]] = {
        "phase": PHASE_WORDS,
        "bound": {f"bound-{k or 'unknown'}": v for k, v in BOUND_WORDS.items()},
        "cost": {f"cost-{i}": w for i, w in enumerate(COST_WORDS)},
    }
    rows = [("", tone, text) for tone, text in tables[colour].items() if tone in tones]
    rows += [(kind, "", text) for kind, text in KIND_WORDS.items() if kind in kinds]
    return tuple(rows)


# **** schedule and debug ****


def _tone(trace: Trace, colour: str) -> Callable[[Kernel], str]:
    """What fills a kernel's box: its phase, its share of the time, or what bounds it."""
    if colour == "phase":
        return lambda k: k.phase
    cost = costs.costs(trace)
    if colour == "bound":
        return lambda k: f"bound-{cost[k.id].bound or 'unknown'}"
    if colour == "cost":
        return lambda k: f"cost-{sum(cost[k.id].share >= s for s in COST_STEPS)}"
    raise BadInput(f"no colouring {colour!r}", "phase, cost or bound", "choose one of these")


def kernel_box(trace: Trace, k: Kernel, tone: str, mark: str = "") -> Box:
    places = trace.places(k.id)
    shown = ", ".join(places[:2]) + (f" and {len(places) - 2} more" if len(places) > 2 else "")
    us = trace.time_us(k.id)
    facts = tuple(t for t in (words.duration(us), k.tinygrad_name) if t)
    tooltip = [k.name, *places, f"operations: {', '.join(k.ops)}" if k.ops else ""]
    if k.forward:
        tooltip.append(f"gradient of {', '.join(k.forward)}")
    return Box(
        f"k{k.id}",
        words.line(k.name or k.tinygrad_name, 44),
        tuple(words.line(t, 48) for t in (" · ".join(facts), shown) if t),
        k.kind,
        tone,
        "\n".join(t for t in tooltip if t),
        mark,
    )


def schedule(
    trace: Trace, id: int = -1, focus: int = -1, limit: int = LIMIT, colour: str = "phase"
) -> Picture:
    """One schedule's kernels, and the buffers between them."""
    s = trace.schedule(id if id != -1 else _first_schedule(trace))
    count = len(s.kernels)
    part = select.select(trace, (s.id,))
    notes = []
    if focus != -1:
        part = select.around(part, focus, 3, limit)
        notes.append(f"{words.plural(len(part.kernels), 'kernel')} of {count:,}: those around "
                     f"{trace.kernel(focus).name}")
    else:
        part = collapse.collapse_to(trace, s.id, limit)
        if count > limit:
            notes.append(f"{words.plural(count, 'kernel')} drawn as {len(part.kernels)} groups, by "
                         "the source lines they come from")
        elif len(part.kernels) < count:
            notes.append("the optimizer's are drawn as one for each layer")
    part = costs.attach(part)
    tone = _tone(part, colour)
    boxes = [
        kernel_box(part, k, tone(k), "chosen" if k.id == focus else "") for k in part.kernels
    ]
    grouped = any(k.kind == "graph" for k in part.kernels)  # what goes between them is enough then
    train = {"forward", "backward"} <= {k.phase for k in part.kernels} and focus == -1
    room = 2 * len(part.buffers) if train else 0 if grouped else limit - len(boxes)
    edges, outside = _buffer_edges(part, room)
    if len(boxes) > 1 and not edges:
        return debug(trace, s.id, limit, colour)
    if train:
        return _in_lanes(part, s, boxes, edges, outside, limit, colour, notes)
    boxes += outside
    title = _title(trace, s, count)
    return Picture(title, tuple(boxes), edges, _legend(boxes, colour), tuple(notes))


def _title(trace: Trace, s: Schedule, count: int) -> str:
    name = s.name or (f"jit {s.jit}" if s.jit else f"schedule {s.id}")
    place = trace.place(s.frame)
    where = f", realized at {place}" if place and place not in name else ""
    return f"{name}{where}: {words.plural(count, 'kernel')}"


def _in_lanes(
    part: Trace, s: Schedule, boxes: Sequence[Box], edges: Sequence[Edge],
    outside: Sequence[Box], limit: int, colour: str, notes: Sequence[str],
) -> Picture:
    """A training step: forward, backward and optimizer side by side. A kernel's box says what it
    stores and why; of the buffers from outside only those are drawn that no kernel changes."""
    kernels = {f"k{k.id}": k for k in part.kernels}
    forward = {o: key for key, k in kernels.items() if k.phase == "forward" for o in k.origins}
    reasons: dict[int, list[Boundary]] = {}
    for b in part.boundaries:
        if b.buffer != -1:
            reasons.setdefault(b.source, []).append(b)
    written = {b for k in part.kernels for b in k.writes}
    kept = [box for box in outside if box.key[0] == "b" and int(box.key[1:]) not in written
            and any(e.source == box.key and kernels[e.target].phase == "forward" for e in edges)
            and part.buffer(int(box.key[1:])).name][: max(0, limit - len(boxes))]
    told = []
    for box in boxes:
        why = reasons.get(kernels[box.key].id, []) if box.kind != "graph" else []
        line = (f"⟂ {words.line(why[0].brief, 32)} · "
                f"{words.size(part.buffer(why[0].buffer).nbytes)}",) if why else ()
        tip = [box.tooltip, *(b.because for b in why)]
        told.append(replace(box, title=words.line(box.title, 40), small=(*box.small, *line),
                            tooltip="\n".join(tip)))
    all_boxes = (*told, *kept)
    shown = {box.key for box in all_boxes}
    lit = {k.key for k in kept}
    phase = {box.key: kernels[box.key].phase if box.key in kernels else "" for box in all_boxes}
    arrows = tuple(  # from lane to lane they are drawn lighter
        replace(e, label="", kind=e.kind if phase[e.source] == phase[e.target] else "data")
        for e in edges
        if e.source in shown and e.target in shown
        and (e.source not in lit or phase[e.target] == "forward")
    )
    items = [lanes.Item(b.key, phase[b.key] or "data", *_size(b),
                        _anchors(part, kernels[b.key].origins, forward)
                        if phase[b.key] == "backward" else ())
             for b in all_boxes]
    places = lanes.place(items, [(e.source, e.target) for e in arrows])
    count = len(s.kernels)
    return Picture(_title(part, s, count), all_boxes, arrows, _legend(all_boxes, colour),
                   tuple(notes), places=places)


def _anchors(
    trace: Trace, origins: Iterable[int], forward: dict[int, str]
) -> tuple[str, ...]:
    """The forward boxes a gradient belongs beside: those whose operations it differentiates."""
    votes: dict[str, int] = {}
    for o in origins:
        key = forward.get(trace.origin(o).forward)
        if key is not None:
            votes[key] = votes.get(key, 0) + 1
    return tuple(sorted(votes, key=lambda key: -votes[key]))


def _size(b: Box) -> tuple[float, float]:
    """About the points a box takes: graphviz measures its own fonts later."""
    width = max(len(b.title) * 5.9, *(len(t) * 4.5 for t in b.small), 30.0) + 22
    return width, 26 + 10.5 * len(b.small)


def _first_schedule(trace: Trace) -> int:
    """The schedule worth showing first: of the steady ones, the one with the most kernels."""
    if not trace.schedules:
        raise BadInput("this trace has no schedule", "a program that realized a tensor",
                       "call .realize(), .item() or .numpy() on a result and trace again")
    steady = trace.steady()
    return max(steady, key=lambda s: (len(trace.schedule(s).kernels), -s))


def _buffer_edges(part: Trace, room: int) -> tuple[tuple[Edge, ...], list[Box]]:
    """Arrows along buffers, and boxes for buffers from outside if there is room for them."""
    writers: dict[int, list[int]] = {}
    order = {k: i for s in part.schedules for i, k in enumerate(s.kernels)}
    for k in sorted(part.kernels, key=lambda k: order.get(k.id, 0)):
        for b in k.writes:
            writers.setdefault(b, []).append(k.id)
    between: dict[tuple[int, int], list[int]] = {}
    inputs: dict[int, list[int]] = {}
    for k in part.kernels:
        for b in dict.fromkeys(k.reads):
            before = [w for w in writers.get(b, ()) if order.get(w, 0) < order.get(k.id, 0)]
            others = [w for w in writers.get(b, ()) if w != k.id]
            group_loop = others if k.kind == "graph" or not before else []
            if before:
                between.setdefault((before[-1], k.id), []).append(b)
            elif group_loop and part.buffer(b).kind == "intermediate":
                between.setdefault((group_loop[-1], k.id), []).append(b)
            else:
                inputs.setdefault(b, []).append(k.id)
    reasons = {(b.source, b.buffer): b for b in part.boundaries if b.buffer != -1}
    edges: list[Edge] = []
    told: set[tuple[int, ...]] = set()
    for (source, target), buffers in between.items():
        edge = _edge(f"k{source}", f"k{target}", [part.buffer(b) for b in buffers],
                     [reasons[source, b] for b in buffers if (source, b) in reasons])
        if (same := (source, *buffers)) in told:  # one buffer, several readers: said once
            edge = replace(edge, label="")
        told.add(same)
        edges.append(edge)
    results = [
        (w[-1], b.buffer)
        for b in part.boundaries
        if not b.readers and b.buffer != -1 and (w := writers.get(b.buffer))
    ]
    boxes: list[Box] = []
    if len(inputs) + len(results) <= room:
        for b, readers in inputs.items():
            buffer = part.buffer(b)
            boxes.append(buffer_box(buffer))
            edges += [Edge(f"b{b}", f"k{r}", "" if i else words.size(buffer.nbytes),
                           buffer.name) for i, r in enumerate(readers)]
        have = {box.key for box in boxes}
        for source, b in dict.fromkeys(results):
            box = replace(buffer_box(part.buffer(b)), key=f"r{b}")
            if box.key not in have:
                boxes.append(box)
            reason = [r] if (r := reasons.get((source, b))) else []
            edges.append(_edge(f"k{source}", box.key, [part.buffer(b)], reason))
    return tuple(edges), boxes


def buffer_box(b: Buffer) -> Box:
    about = " ".join(t for t in (b.shape, b.dtype) if t)
    return Box(f"b{b.id}", words.line(b.name or f"buffer {b.id}", 30), (words.line(about, 30),)
               if about else (), "buffer", "", f"{b.name} {about} {words.size(b.nbytes)} {b.kind}")


def _edge(
    source: str, target: str, buffers: Sequence[Buffer], reasons: Sequence[Boundary]
) -> Edge:
    total = words.size(sum(b.nbytes for b in buffers))
    what = words.line(buffers[0].name, 24) if len(buffers) == 1 else f"{len(buffers)} buffers"
    lines, tips = [" · ".join(t for t in (what, total) if t)], []
    for r in reasons:
        if len(lines) < 2:
            lines.append("⟂ " + words.line(r.brief or r.reason, 34))
        tips.append(f"{r.because} [{r.rule}]" + (f" To fuse: {r.fuse_by}" if r.fuse_by else ""))
    return Edge(source, target, "\n".join(lines), "\n".join(dict.fromkeys(tips)),
                "boundary" if reasons else "data")


def debug(trace: Trace, id: int = -1, limit: int = LIMIT, colour: str = "phase") -> Picture:
    """Kernels in launch order. Needs nothing but names and times: what a DEBUG log has."""
    ids = trace.schedule(id).kernels if id != -1 else tuple(k.id for k in trace.kernels)
    part = costs.attach(select.select(trace, kernels=ids))
    notes = ["in launch order; the trace does not say which kernel reads what"] if not any(
        k.reads or k.writes for k in part.kernels) else ["in launch order"]
    if len(ids) > limit:
        notes.append(f"{words.plural(len(ids), 'kernel')}, of which the slowest {limit} are drawn")
        slow = sorted(ids, key=lambda k: -trace.time_us(k))[:limit]
        ids = tuple(k for k in ids if k in set(slow))
    tone = _tone(part, colour)
    known = {k.id: k for k in part.kernels}
    boxes = tuple(kernel_box(part, known[k], tone(known[k])) for k in ids)
    edges = tuple(Edge(a.key, b.key, kind="order") for a, b in pairwise(boxes))
    title = f"{trace.environment.program or 'trace'}: {words.plural(len(ids), 'kernel')}"
    places = lanes.columns([lanes.Item(b.key, "", *_size(b)) for b in boxes])
    return Picture(title, boxes, edges, _legend(boxes, colour), tuple(notes), places=places)


# **** lazy graph, a kernel's UOps ****


def node_title(n: Node) -> str:
    arg = words.line(n.arg, 24)
    return n.label or (f"{n.op} {arg}" if arg else n.op)


def node_box(
    trace: Trace, graph: Graph, i: int, mark: str = "", constant: Collection[int] = ()
) -> Box:
    n = graph[i]
    consts = [words.line(cluster.constant_text(graph, s), 16) for s in n.src if s in constant]
    about = " ".join(t for t in (n.dtype, n.shape) if t)
    if consts:
        about = f"{about} with {', '.join(consts[:3])}".strip()
    places = list(dict.fromkeys(origin_place(trace, o) for o in n.origins))
    origin = " ".join(t for t in (n.tensor_op, ", ".join(p for p in places[:2] if p)) if t)
    phase = n.phase or next((trace.origin(o).phase for o in n.origins), "")
    return Box(
        f"n{i}",
        words.line(node_title(n), 36),
        tuple(words.line(t, 40) for t in (about, origin) if t),
        cluster.sort_of(n),
        phase,
        f"{n.op} {n.arg} {about}\n{origin}".strip(),
        mark,
    )


def nodes(
    trace: Trace, graph: Graph, title: str, focus: int = -1, limit: int = LIMIT,
    within: cluster.Group | None = None,
) -> Picture:
    """A graph's nodes; groups of them above the limit; the neighbourhood of a focus."""
    notes: list[str] = []
    if focus != -1:
        shown = neighbourhood(graph, focus, limit)
        total = len(graph)
        if len(shown) < total:
            notes.append(f"{len(shown)} of {total:,} nodes: those around {graph.ops[focus]}")
        level = cluster.Group("", tuple(shown))
    else:
        level = within or cluster.node_levels(graph, trace, limit)
    parts = level.parts or tuple(cluster.Group("", (m,)) for m in level.members)
    if level.parts:
        notes.append(f"{words.plural(len(level.members), 'node')} drawn as {len(parts)} groups")
    place = {m: p for p, group in enumerate(parts) for m in group.members}
    constant = {i for i, c in enumerate(cluster.constants(graph)) if c}
    boxes = []
    for group in parts:
        mark = "chosen" if focus in group.members else ""
        box = node_box(trace, graph, group.members[0], mark, constant)
        if len(group.members) > 1:
            sorts = {cluster.sort_of(graph[m]) for m in group.members}
            box = replace(
                box, title=words.line(group.label, 36), small=(f"{len(group.members)} nodes",),
                kind=sorts.pop() if len(sorts) == 1 else "graph",
                tooltip=f"{group.label}\n{len(group.members)} nodes",
            )
        boxes.append(box)
    edges: dict[tuple[str, str], int] = {}
    for target, p in place.items():
        for source in graph.src(target):
            q = place.get(source, p)
            if q != p:
                pair = (boxes[q].key, boxes[p].key)
                edges[pair] = edges.get(pair, 0) + 1
    places = None
    if graph.kind == "lazy" and level.parts and {"forward", "backward"} <= {b.tone for b in boxes}:
        places = _node_lanes(trace, graph, parts, boxes, edges)
    arrows = tuple(
        Edge(a, b, f"×{n}" if n > 1 and not places else "") for (a, b), n in edges.items()
    )
    return Picture(title, tuple(boxes), arrows, _legend(boxes, "phase"), tuple(notes),
                   places=places)


def _node_lanes(
    trace: Trace, graph: Graph, parts: Sequence[cluster.Group], boxes: Sequence[Box],
    edges: Iterable[tuple[str, str]],
) -> Places:
    """A Tensor graph that trains, in lanes as its kernels are."""
    origins = {b.key: [o for i in part.members for o in graph[i].origins]
               for b, part in zip(boxes, parts, strict=True)}
    lane = {}
    for box, part in zip(boxes, parts, strict=True):
        sorts = {cluster.sort_of(graph[i]) for i in part.members}
        given = not sorts & {"arithmetic", "reduce"} and any(
            graph.ops[i] == "PARAM" for i in part.members)
        end = "optimizer" if box.kind == "control" else "data"
        lane[box.key] = "data" if given else box.tone or end
    forward = {o: key for key, own in origins.items() if lane[key] == "forward" for o in own}
    return lanes.place([
        lanes.Item(b.key, lane[b.key], *_size(b), _anchors(trace, origins[b.key], forward)
                   if lane[b.key] == "backward" else ())
        for b in boxes
    ], list(edges))


def neighbourhood(graph: Graph, focus: int, limit: int = LIMIT) -> list[int]:
    """The nodes nearest to one, at most `limit`, in the graph's order."""
    found, edge = [focus], [focus]
    seen = {focus}
    while edge and len(found) < limit:
        following = []
        for i in edge:
            for j in (*graph.src(i), *graph.consumers[i]):
                if j not in seen and len(found) < limit:
                    seen.add(j)
                    found.append(j)
                    following.append(j)
        edge = following
    return sorted(found)


def lazy(trace: Trace, id: int = -1, focus: int = -1, limit: int = LIMIT) -> Picture:
    """The Tensor graph a realize was given."""
    s = trace.schedule(id if id != -1 else _first_schedule(trace))
    if s.lazy == -1:
        return Picture(f"schedule {s.id}", notes=("its lazy graph was not recorded",))
    graph = uops.named(trace, trace.graph(s.lazy))
    name = s.name or f"schedule {s.id}"
    title = f"lazy graph of {name}: {words.plural(len(graph), 'node')}"
    return nodes(trace, graph, title, focus, limit)


def kernel(trace: Trace, id: int = -1, focus: int = -1, limit: int = LIMIT) -> Picture:
    """One kernel's UOps."""
    k = trace.kernel(id) if id != -1 else _slowest(trace)
    graph = uops.kernel_graph(trace, k.id, drawn=True)
    if graph is None:
        return Picture(k.name, notes=("this kernel's UOps were not recorded",))
    title = f"{words.line(k.name)} ({words.line(k.tinygrad_name)}): " + words.plural(
        len(graph), "UOp" if graph.kind == "uops" else "node")
    return nodes(trace, graph, title, focus, limit)


def _slowest(trace: Trace) -> Kernel:
    if not trace.kernels:
        raise BadInput("this trace has no kernel", "a program that computed something",
                       "see `tgx show DIR` for what it has")
    return max(trace.kernels, key=lambda k: (trace.time_us(k.id), -k.id))


# **** one rewrite step ****


def step(trace: Trace, pass_id: int = -1, index: int = 0, limit: int = LIMIT) -> Picture:
    """One step of a pass: the old nodes that went, the new that came, and what both stand on."""
    p = _pass(trace, pass_id)
    if p is None or not len(p):
        name = f"pass {p.name!r} changed nothing" if p else "rewrites were not recorded"
        return Picture("rewrite step", notes=(name if p else f"{name}: --level full",))
    if not 0 <= index < len(p):
        raise BadInput(f"step {index} of pass {p.name!r}", f"a number from 0 to {len(p) - 1}")
    s, table = p[index], trace.graph(p.table)
    old, new = (_below(table, root, limit // 2) for root in (s.old, s.new))
    constant = {i for i in old | new if table.ops[i] in ("CONST", "VCONST")} - {s.old, s.new}
    boxes = []
    shown = (old | new) - constant
    for i in sorted(shown):
        mark = "" if i in old and i in new else "removed" if i in old else "added"
        boxes.append(node_box(trace, table, i, mark, constant))
    edges = tuple(Edge(f"n{j}", f"n{i}") for i in sorted(shown) for j in table.src(i)
                  if j in shown)
    title = f"{words.line(p.name)}, step {index + 1} of {len(p)}"
    notes = []
    if s.rule != -1:
        r = trace.rule(s.rule)
        title += f": {words.line(r.function)}".rstrip(": ")
        notes.append(f"{trace.file(r.file).path}:{r.line}  {r.text.strip()}")
    else:
        notes.append("the same node with replaced sources")
    return Picture(title, tuple(boxes), edges, _legend(boxes, "phase"), tuple(notes))


def _pass(trace: Trace, id: int) -> Pass | None:
    if id != -1:
        return next((p for p in trace.passes if p.id == id), None)
    return next((p for p in trace.passes if p.matches), next(iter(trace.passes), None))


def _below(table: Graph, root: int, limit: int) -> set[int]:
    found, edge = {root}, [root]
    while edge and len(found) < limit:
        edge = [j for i in edge for j in table.src(i) if j not in found]
        for j in edge:
            if len(found) < limit:
                found.add(j)
    return found


# **** memory ****


def memory(trace: Trace, id: int = -1, limit: int = 40) -> Picture:
    """Which buffers are alive while which kernel runs, the biggest first, and those at the peak."""
    if not trace.schedules:
        return Picture("memory", notes=("memory was not recorded",))
    s = trace.schedule(id if id != -1 else _first_schedule(trace))
    last = max(len(s.kernels) - 1, 0)
    own = [b for b in trace.buffers if b.schedule == s.id and b.nbytes]
    life = {b.id: (max(b.first, 0), b.last if b.last != -1 else last) for b in own}
    used = [0] * (last + 1)
    for b in own:
        for i in range(life[b.id][0], min(life[b.id][1], last) + 1):
            used[i] += b.nbytes
    top = max(used, default=0)
    peak_at = used.index(top) if used else 0
    columns = min(last + 1, limit)
    phases = {k: trace.kernel(k).phase for k in s.kernels}
    writer = {b: trace.kernel(k).phase for k in reversed(s.kernels)
              for b in trace.kernel(k).writes}

    def column(i: int) -> int:
        return min(i, last) * columns // (last + 1)

    rows = tuple(
        Row(words.line(b.name or f"buffer {b.id}", 28), words.size(b.nbytes),
            column(life[b.id][0]), column(life[b.id][1]),
            writer.get(b.id, "data") if b.kind != "input" else "data",
            life[b.id][0] <= peak_at <= life[b.id][1])
        for b in sorted(own, key=lambda b: (-b.nbytes, b.id))[:limit]
    )
    notes = [f"peak {words.size(top)} at kernel {peak_at + 1} of {last + 1}"
             f" ({words.line(trace.kernel(s.kernels[peak_at]).name)})" if s.kernels else "",
             f"in use at most, as measured: {words.size(trace.peak())}" if trace.memory else
             "measured memory was not recorded"]
    if s.planned_bytes >= 0 and s.unplanned_bytes >= 0:
        notes.append(f"the memory planner made {words.size(s.planned_bytes)} of "
                     f"{words.size(s.unplanned_bytes)}")
    if len(own) > limit:
        notes.append(f"the {limit} biggest of {len(own)} buffers")
    tones = {r.tone for r in rows} | set(phases.values())
    legend = tuple(("", t, f"written by: {w}" if t != "data" else "from outside, or copied")
                   for t, w in PHASE_WORDS.items() if t in tones)
    title = f"memory of {s.name or f'schedule {s.id}'}, kernel by kernel"
    return Picture(title, legend=legend, notes=tuple(n for n in notes if n), rows=rows)


PICTURES: dict[str, Callable[..., Picture]] = {
    "schedule": schedule,
    "lazy": lazy,
    "kernel": kernel,
    "step": step,
    "debug": debug,
    "memory": memory,
}


def picture(trace: Trace, what: str = "schedule", **choices: object) -> Picture:
    """One of PICTURES by name; `choices` are its own arguments (id, focus, limit, colour …)."""
    if what not in PICTURES:
        raise BadInput(f"no picture {what!r}", f"one of {', '.join(PICTURES)}")
    return PICTURES[what](trace, **choices)
