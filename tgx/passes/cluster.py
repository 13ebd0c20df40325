"""How a big graph divides into levels that fit on a screen.

`divide` takes items in order and keys from coarse to fine (phase, layer, source line …) and makes a
tree of Groups in which no group has more than `limit` parts. Each level uses the finest key that
fits; where none does, neighbours in order share a group. The pictures draw one level at a time, and
going deeper is going into a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tgx.model import Graph, Kernel, Node, Trace
from tgx.passes.places import forward_of, origin_place

LIMIT = 60
"""No picture opens on more boxes than this."""

Key = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Group:
    """Some items, and how they divide. Without parts, its members are what is drawn inside it."""

    label: str
    members: tuple[int, ...]
    parts: tuple[Group, ...] = ()

    def __iter__(self) -> Iterator[Group]:
        """This group and all groups in it."""
        yield self
        for part in self.parts:
            yield from part


def divide(
    members: Sequence[int],
    keys: Sequence[Key],
    limit: int = LIMIT,
    label: str = "",
    prefer: int = 0,
) -> Group:
    """Divide items into a tree of groups of at most `limit` parts, or `prefer` where that goes."""
    members = tuple(members)
    prefer = prefer or limit
    if len(members) <= prefer:
        return Group(label, members)
    best: dict[str, list[int]] | None = None
    rest: Sequence[Key] = ()
    for level, key in enumerate(keys):
        buckets: dict[str, list[int]] = {}
        for m in members:
            buckets.setdefault(key(m), []).append(m)
        if len(buckets) > limit or (best is not None and len(buckets) > prefer):
            break
        if len(buckets) > 1:
            best, rest = buckets, keys[level + 1 :]
    if best is None and len(members) <= limit:
        return Group(label, members)
    if best is None:
        best, rest = _in_order(members, keys, limit), keys
    return Group(label, members, tuple(divide(b, rest, limit, k) for k, b in best.items()))


def _in_order(
    members: tuple[int, ...], keys: Sequence[Key], limit: int
) -> dict[str, list[int]]:
    """Groups of neighbours, named by their places: the fallback that always fits."""
    size = max(limit // 2, -(-len(members) // limit))
    chunks = [list(members[i : i + size]) for i in range(0, len(members), size)]
    name = keys[-1] if keys else str
    out: dict[str, list[int]] = {}
    for i, chunk in enumerate(chunks):
        first, last = name(chunk[0]), name(chunk[-1])
        about = first if first == last else f"{first} … {last}"
        out[f"{i * size + 1}-{i * size + len(chunk)}: {about}"] = chunk
    return out


# **** kernels: by phase, then by the user's own call stack ****

PHASE_MARK = {"forward": "", "backward": "∂ ", "optimizer": "", "data": ""}
MAX_STACK = 12


def kernel_keys(trace: Trace) -> list[Key]:
    """Keys for kernels: the phase, then ever deeper places of the stack that called the operation.

    The places are the user's own lines, so that a group is named by the text of the line it stands
    for (`x = self.layer1(x)`). A gradient stands where its forward operation was called.
    """
    by_id = {k.id: k for k in trace.kernels}
    texts = {(f.id, n): text for f in trace.files for n, text in f.lines}

    @cache
    def stack(origin: int) -> tuple[str, ...]:
        o = trace.origin(origin)
        if o.forward != -1:
            o = trace.origin(o.forward)
        frames = [trace.frame(f) for f in (o.stack or ((o.frame,) if o.frame != -1 else ()))]
        user = [f for f in frames if trace.file(f.file).user]
        return tuple(
            texts.get((f.file, f.line), "").strip() or f"{trace.file(f.file).path}:{f.line}"
            for f in user[:MAX_STACK]
        )

    @cache
    def places(kernel: int) -> tuple[str, ...]:
        found = [stack(o) for o in main_origins(trace, by_id[kernel])]
        return max(found, key=len, default=())

    def at_depth(depth: int) -> Key:
        def key(kernel: int) -> str:
            k, path = by_id[kernel], places(kernel)
            return PHASE_MARK[k.phase] + (path[min(depth, len(path)) - 1] if path else k.phase)

        return key

    deepest = max((len(places(k)) for k in by_id), default=0)
    keys: list[Key] = [lambda kernel: by_id[kernel].phase]
    keys += [at_depth(d) for d in range(1, deepest + 1)]
    return [*keys, lambda kernel: by_id[kernel].name]


def main_origins(trace: Trace, kernel: Kernel) -> tuple[int, ...]:
    """A kernel's origins of its own phase; all of them if it has none."""
    own = tuple(o for o in kernel.origins if trace.origin(o).phase == kernel.phase)
    return own or kernel.origins


def kernel_levels(trace: Trace, schedule: int, limit: int = LIMIT) -> Group:
    """How one schedule's kernels divide into levels."""
    s = trace.schedule(schedule)
    name = s.name or f"schedule {s.id}"
    if len(s.kernels) > limit:
        return divide(s.kernels, kernel_keys(trace), limit, name, min(limit, KERNEL_PREFER))
    kernels = [trace.kernel(k) for k in s.kernels]
    updates = [k for k in kernels if k.phase == "optimizer"]
    if len(updates) <= FEW_UPDATES or len(updates) == len(kernels):
        return Group(name, s.kernels)
    layers: dict[str, list[Kernel]] = {}
    for k in updates:
        layers.setdefault(_layer(k.name), []).append(k)
    whole = [Group(k.name, (k.id,)) for k in kernels if k.phase != "optimizer"]
    parts = [Group(_update(layer, ks), tuple(k.id for k in ks)) for layer, ks in layers.items()]
    return Group(name, s.kernels, (*whole, *parts))


FEW_UPDATES = 8
"""An optimizer's kernels, several for each parameter, are drawn a layer at a time where they are
more than these."""


def _layer(name: str) -> str:
    """`adam m: layer1.weight` and `store: layer1.bias` update `layer1`."""
    parameter = name.partition(": ")[2]
    return parameter.rpartition(".")[0] or parameter or name


def _update(layer: str, kernels: Sequence[Kernel]) -> str:
    """What a layer's updates are called together: `adam: layer1`."""
    words = [k.name.partition(": ") for k in kernels]
    update = next((w[0].split()[0] for w in words if w[1] and w[0] != "store"), "store")
    return f"{update}: {layer}" if words[0][1] else layer


KERNEL_PREFER = 20
"""Groups exchange more buffers than kernels do: fewer of them make a readable picture."""


# **** nodes of a graph: by what they do, then by the operation they come from ****

CONTROL = {"RANGE", "END", "IF", "ENDIF", "BARRIER", "SINK", "LINEAR", "PROGRAM", "SPECIAL"}
MEMORY = {"PARAM", "BUFFER", "DEFINE_LOCAL", "DEFINE_REG", "DEFINE_GLOBAL", "LOAD", "STORE",
          "INDEX", "COPY", "ASSIGN", "AFTER"}
MOVEMENT = {"RESHAPE", "PERMUTE", "EXPAND", "PAD", "SHRINK", "FLIP", "VIEW", "GEP", "VECTORIZE",
            "STACK", "CAT", "CAST", "BITCAST", "CONTIGUOUS", "DETACH"}
REDUCE = {"REDUCE", "REDUCE_AXIS", "WMMA", "ALLREDUCE"}
CONSTANT = {"CONST", "VCONST", "UNIQUE", "DEVICE", "BIND", "DEFINE_VAR", "NOOP"}
SORTS = {
    **dict.fromkeys(CONTROL, "control"),
    **dict.fromkeys(MEMORY, "memory"),
    **dict.fromkeys(MOVEMENT, "movement"),
    **dict.fromkeys(REDUCE, "reduce"),
    **dict.fromkeys(CONSTANT, "constant"),
}


def sort_of(node: Node) -> str:
    """What sort of thing a node is: control, memory, movement, reduce, constant, index or
    arithmetic."""
    if node.op in SORTS:
        return SORTS[node.op]
    is_index = "int" in node.dtype and not node.origins and not node.tensor_op
    return "index" if is_index else "arithmetic"


def constants(graph: Graph) -> list[bool]:
    """Which nodes are constants, or only cast and gather constants (a shape is a stack of them)."""
    out: list[bool] = []
    for i, op in enumerate(graph.ops):
        src = graph.src(i)
        sort = SORTS.get(op)
        folds = sort in (None, "movement") and bool(src) and all(out[s] for s in src)
        out.append(sort == "constant" or folds or (op == "STACK" and not src))
    return out


def constant_text(graph: Graph, i: int, depth: int = 3) -> str:
    """A constant as it reads: `2.0`, `(4, 5)`."""
    src = graph.src(i)
    if not src or depth == 0:
        return (graph.args[i] if graph.args else "") or graph.ops[i]
    parts = [constant_text(graph, s, depth - 1) for s in src[:8]]
    return parts[0] if len(src) == 1 else f"({', '.join(parts)})"


def node_keys(graph: Graph, trace: Trace | None = None) -> list[Key]:
    """Keys for a graph's nodes: the user's line for a Tensor graph, the sort and Tensor operation
    for one kernel's; then the call of the operation, and what it is made of."""

    nodes = graph.nodes

    @cache
    def operation(i: int) -> str:
        n = nodes[i]
        phase = n.phase or (trace.origin(n.origins[0]).phase if trace and n.origins else "")
        return ("∂" if phase == "backward" else "") + (n.tensor_op or sort_of(n))

    @cache
    def call(i: int) -> str:
        n = nodes[i]
        place = origin_place(trace, n.origins[0]) if trace and n.origins else ""
        return f"{operation(i)} {place}".strip()

    @cache
    def line(i: int) -> str:
        n = nodes[i]
        if trace is None or not n.origins:
            return sort_of(n)
        o = trace.origin(n.origins[0])
        where = texts.get(forward_of(trace, o.id).frame) or call(i)
        return PHASE_MARK[o.phase] + where

    if graph.kind == "lazy" and trace is not None:
        kept = {(f.id, n): text.strip() for f in trace.files for n, text in f.lines}
        texts = {f.id: kept.get((f.file, f.line), "") for f in trace.frames}
        coarse: list[Key] = [line]
    else:
        texts = {}
        coarse = [lambda i: sort_of(nodes[i]), operation]
    return [
        *coarse,
        call,
        lambda i: f"{call(i)}: {nodes[i].op}",
        lambda i: f"{call(i)}: {nodes[i].op} {nodes[i].dtype}".strip(),
    ]


def node_levels(graph: Graph, trace: Trace | None = None, limit: int = LIMIT) -> Group:
    """How a graph's nodes divide into levels. Constants do not count: they are drawn inside their
    readers. A Tensor graph opens on the operations the user wrote, unless it is small."""
    constant = constants(graph)
    shown = [i for i in range(len(graph)) if not constant[i]]
    keys = node_keys(graph, trace)
    prefer = min(limit, LAZY_PREFER) if graph.kind == "lazy" else limit
    return divide(shown, keys, limit, graph.name or graph.kind, prefer)


LAZY_PREFER = 30
"""A Tensor graph of more nodes than this opens on groups: one for each call the user wrote."""
