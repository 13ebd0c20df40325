"""The backward walk as a picture: the forward graph, and beside it the gradients, each with a
dotted line to what it is the gradient of, and the derivative on every edge. Values stand on all
nodes.

Small walks are drawn node by node, as micrograd's draw_dot does; larger ones by operation, and very
large ones by layer. `only` opens one operation: its own steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from tgx.model import Trace, Walk, WalkOperation
from tgx.passes import walks
from tgx.views import backward, dot, svg, words
from tgx.views.picture import LIMIT, Box, Edge, Picture

LEGEND = (
    ("", "forward", "forward: value, and its gradient"),
    ("", "backward", "backward: a gradient"),
)
NOTHING = "no backward walk: tgx backward SCRIPT records one"


def render(trace: Trace, form: str = "dot", level: str = "auto", walk: int = -1,
           only: int = -1) -> str:
    """One walk, as dot or svg: the first one taken, unless ``walk`` says another."""
    text = dot.to_dot(picture(trace, level, walk, only))
    return svg.from_dot(text) if form == "svg" else text


def picture(trace: Trace, level: str = "auto", walk: int = -1, only: int = -1) -> Picture:
    """What is drawn: boxes have the keys ``n12`` and ``g12`` (the node of that number, and its
    gradient), or ``o3`` and ``d3`` (an operation, and its gradient)."""
    if not trace.walks:
        return Picture(NOTHING)
    w = trace.walk(walk) if walk != -1 else _outermost(trace)
    title = backward.title(trace, w)
    if only != -1:
        o = trace.operation(only)
        return _steps(trace, w, f"{backward.operation_name(o)}: its steps", set(o.steps))
    if backward.shown_level(trace, w, level) == "steps" and len(
        walks.steps(trace, w.id)
    ) <= 2 * LIMIT:
        return _steps(trace, w, title, {s.id for s in walks.steps(trace, w.id)})
    return _operations(trace, w, title)


def _outermost(trace: Trace) -> Walk:
    return next(w for w in trace.walks if w.parent < 0)


# **** node by node ****


def _steps(trace: Trace, walk: Walk, title: str, only: set[int]) -> Picture:
    graph = trace.graph(walk.graph)
    own = [s for s in walks.steps(trace, walk.id) if s.id in only]
    gradient: dict[int, int] = {}  # forward node -> its gradient, complete
    for s in own:
        gradient[s.node] = s.upstream
        for c in s.contributions:
            if c.total >= 0 and not c.stops:
                gradient[c.target] = c.total
    shown: dict[int, None] = {}
    for s in own:
        for n in (s.node, *graph.src(s.node)):
            if graph.ops[n] != "CONST" or walk.value(n).size:
                shown[n] = None
    boxes, edges = [], []
    at_node = {s.node: s for s in own}
    for n in sorted(shown):
        step = at_node.get(n)
        small = [f"data {_number(walk, n)}"]
        if n in gradient:
            small.append(f"grad {_number(walk, gradient[n])}")
        kind = "constant" if graph.ops[n] == "CONST" else "arithmetic"
        name = walks.name(trace, walk, n)
        what = f"{graph.ops[n]}  {name}" if step is not None else name
        boxes.append(Box(
            f"n{n}", words.line(what, 44), tuple(small), kind,
            "forward" if kind != "constant" else "data",
            backward.where(trace, step) if step else "",
        ))
        edges += [Edge(f"n{s}", f"n{n}") for s in dict.fromkeys(graph.src(n)) if s in shown]
    for n, g in gradient.items():
        if n not in shown or graph.ops[n] == "CONST":
            continue
        name = walks.name(trace, walk, n)
        boxes.append(Box(f"g{n}", words.line(f"∂L/∂({name})" if not name.isidentifier() else
                                             f"∂L/∂{name}", 44),
                         (_number(walk, g),), "arithmetic", "backward"))
        edges.append(Edge(f"g{n}", f"n{n}", kind="of"))
    for s in own:
        by_target: dict[int, list[str]] = {}
        tips: list[str] = []
        for c in s.contributions:
            if c.node >= 0 and c.target in gradient and graph.ops[c.target] != "CONST":
                label = c.local.replace("-", "−") or _short(c.formula)
                by_target.setdefault(c.target, []).append(f"·{label}" if c.local else label)
                tips.append(backward.mathematics(c))
        for target, labels in by_target.items():
            edges.append(Edge(f"g{s.node}", f"g{target}", " + ".join(labels), "; ".join(tips),
                              "gradient"))
    return Picture(title, tuple(boxes), tuple(edges), LEGEND, tuple(_notes(trace, walk)))


def _number(walk: Walk, node: int) -> str:
    return backward.brief(walk.value(node))


def _short(formula: str) -> str:
    """A derivative's right-hand side, short enough for an edge."""
    right = formula.partition(" = ")[2] or formula
    return words.line(f"·{right}" if len(right) < 18 else f"·{right[:16]}…")


def _notes(trace: Trace, walk: Walk) -> list[str]:
    return [*backward.heading(trace, walk)[1:], backward.result_line(trace, walk),
            *(f"! {f.text}" for f in walks.findings(trace, walk)[:2])]


# **** by operation, and by layer ****


def _operations(trace: Trace, walk: Walk, title: str) -> Picture:
    own = walks.operations(trace, walk.id)
    weights = {t.node for t in walks.parameters(walk)}
    groups: list[list[WalkOperation]] = [[o] for o in own]
    notes = _notes(trace, walk)
    if 2 * len(own) > LIMIT:
        groups = _layers(own, {o.id for o in walks.layers(trace, walk)})
        notes.append("an operation with weights is drawn as one with those behind it")
    inside: dict[int, int] = {}  # weights that have no box of their own, and their gradients
    if 2 * len(groups) + len(weights) > LIMIT:
        inside = {t.node: t.gradient for t in walks.parameters(walk)}
        weights = set()
    if 2 * len(groups) > LIMIT:
        gone = len(groups) - LIMIT // 2
        half = LIMIT // 4
        middle = [o for g in groups[half:half + gone + 1] for o in g]
        groups = [*groups[:half], middle, *groups[half + gone + 1:]]
        notes.append(f"{gone + 1} layers in the middle are drawn as one")
    maker: dict[int, int] = {}
    steps = {s.id: s for s in walks.steps(trace, walk.id)}
    for i, group in enumerate(groups):
        for o in group:
            maker.update((steps[s].node, i) for s in o.steps)
    boxes, edges = [], []
    for i, group in enumerate(groups):
        first = group[0]  # the last of the forward: the walk meets it first
        key = group[0].id
        names = list(dict.fromkeys(o.name for o in reversed(group)))
        text = " + ".join(names if len(names) <= 3 else [names[0], "…", names[-1]])
        kind = "arithmetic" if len(group) == 1 else "graph"
        boxes.append(Box(f"o{key}", text, (
            *((backward.spot(trace, first.origin),) if first.origin >= 0 else ()),
            _number(walk, first.output)), kind, "forward"))
        own_weights = dict.fromkeys(f.node for o in group for f in o.flows if f.node in inside)
        boxes.append(Box(f"d{key}", f"∂ {text}", (
            f"arrives {_number(walk, first.upstream)}",
            *(f"∂ {walks.name(trace, walk, n)} {_number(walk, inside[n])}"
              for n in list(own_weights)[:4])), kind, "backward",
            words.plural(sum(len(o.steps) for o in group), "step")))
        edges.append(Edge(f"d{key}", f"o{key}", kind="of"))
        for o in group:
            for f in o.flows:
                to = maker.get(f.node)
                label = f.formula if len(f.formula) < 40 else ""
                if to == i:
                    continue
                if to is not None:
                    other = groups[to][0].id
                    edges.append(Edge(f"o{other}", f"o{key}", walk.value(f.node).shape))
                    edges.append(Edge(f"d{key}", f"d{other}", label, f.formula, "gradient"))
                elif f.node in weights:
                    edges.append(Edge(f"n{f.node}", f"o{key}"))
                    edges.append(Edge(f"d{key}", f"n{f.node}", label, f.formula, "gradient"))
    used = {e.source for e in edges} | {e.target for e in edges}
    for t in walks.parameters(walk):
        if f"n{t.node}" in used:
            boxes.append(Box(
                f"n{t.node}", words.line(walks.name(trace, walk, t.node), 44),
                (f"data {_number(walk, t.node)}", f"grad {_number(walk, t.gradient)}"),
                "buffer", "forward", backward.check_word(t.check)))
    return Picture(title, tuple(boxes), _once(edges), LEGEND, tuple(notes))


def _layers(own: Sequence[WalkOperation], weighty: set[int]) -> list[list[WalkOperation]]:
    """Operations in the walk's order, each with weights ending a group that began nearer the
    loss: ``relu`` and ``max_pool2d`` behind a ``conv1`` belong to its layer."""
    groups: list[list[WalkOperation]] = [[]]
    for o in own:
        groups[-1].append(o)
        if o.id in weighty:
            groups.append([])
    return [g for g in groups if g]


def _once(edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Edges between the same boxes, as one."""
    found: dict[tuple[str, str, str], Edge] = {}
    for e in edges:
        found.setdefault((e.source, e.target, e.kind), e)
    return tuple(found.values())
