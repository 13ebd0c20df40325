"""Templates: what the scheduler makes of one structure of graph.

tinygrad schedules a graph once and serves every later graph of the same structure from its cache,
whatever lines that came from. So what was seen of the scheduling is kept by structure, in a
`Template`, whose notes are places in the graph; and every graph brings its own origins to it
(`Lowered`).

A graph may call functions: precompiled ones, and the sums over several devices, which tinygrad
writes as a function of its own. Each is scheduled by itself and has its own template; a `Scope` is
one call of it. `kernels_of` walks through all of them, in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinygrad.uop.ops import KernelInfo, Ops, UOp

from tgx.adapter.boundaries import Decision
from tgx.adapter.origins import Marks
from tgx.adapter.provenance import Tokens
from tgx.adapter.steps import StepRecorder


@dataclass
class TemplateKernel:
    """One CALL of a template: its AST, what each AST node came from, its arguments.

    ``inner`` is the template of the function it calls, where it is not a kernel, and ``name`` that
    function's name.
    """

    ast: UOp
    notes: list[Tokens]
    args: tuple[UOp, ...]
    writes: tuple[int, ...]  # places in args
    reads: tuple[int, ...]
    inner: Template | None = None
    name: str = ""


@dataclass
class Template:
    """One structure of graph and the kernels it becomes; serves every graph with the same key."""

    key: bytes
    kernels: list[TemplateKernel]
    decisions: list[Decision]
    stage_of: dict[UOp, int]  # BUFFER -> place in decisions
    size: int  # nodes of the graph
    structure: tuple[Any, ...] = ()
    rewrites: StepRecorder | None = None  # until they are written

    def made(self, linear: UOp) -> bool:
        """Whether this template's kernels are the calls of a scheduled function."""
        return len(self.kernels) == len(linear.src) and all(
            k.ast is c.src[0] for k, c in zip(self.kernels, linear.src, strict=True)
        )


@dataclass
class Lowered:
    """A template together with the origins this graph brings to it."""

    template: Template
    origins: tuple[Marks, ...]
    function: UOp | None
    hit: bool
    outputs: dict[int, str] = field(default_factory=dict)

    def marks(self, tokens: Tokens) -> Marks:
        """The origins that tokens of this template stand for."""
        found = (m for t in tokens if t < len(self.origins) for m in self.origins[t])
        return tuple(dict.fromkeys(found))[:16]


@dataclass(eq=False)
class Scope:
    """One call of a function: its graph, and where its parameters come from. The outermost has
    none."""

    lowered: Lowered
    outer: Scope | None = None
    args: tuple[UOp, ...] = ()  # what its parameters are in the outer scope, by slot
    name: str = ""

    def buffers(self, arg: UOp) -> Iterator[tuple[UOp, Scope]]:
        """The buffers an argument of a call is made of, each with the scope it lives in: one, or a
        piece on each device."""
        node = arg
        while node.src and node.op not in BUFFERS:
            node = node.src[0]
        if node.op in (Ops.MSELECT, Ops.MSTACK):
            for source in node.src:
                yield from self.buffers(source)
            return
        node = node.buf_uop
        if node.op in (Ops.MSELECT, Ops.MSTACK):
            yield from self.buffers(node)
        elif (
            node.op is Ops.PARAM and self.outer is not None and 0 <= node.arg.slot < len(self.args)
        ):
            yield from self.outer.buffers(self.args[node.arg.slot])
        else:
            yield node, self


BUFFERS = (Ops.AFTER, Ops.BUFFER, Ops.PARAM, Ops.MSELECT, Ops.MSTACK)


def outermost(all_lowered: list[Lowered]) -> Lowered:
    """Of all graphs that were lowered together, the one that calls the others."""
    by_key = {low.template.key: low.template for low in all_lowered}
    called = {id(t) for low in all_lowered for k in low.template.kernels if (t := inner(k, by_key))}
    return [low for low in all_lowered if id(low.template) not in called][-1]


def inner(kernel: TemplateKernel, known: Mapping[bytes, Template]) -> Template | None:
    """The template of the function that a CALL calls, None for a kernel."""
    if kernel.inner is not None or kernel.ast.op is not Ops.SINK:
        return kernel.inner
    return None if isinstance(kernel.ast.arg, KernelInfo) else known.get(kernel.ast.key)


def kernels_of(
    scope: Scope, known: Mapping[bytes, Template], lowered: Mapping[bytes, Lowered]
) -> Iterator[tuple[TemplateKernel, Scope]]:
    """The kernels of a graph in order, those of the functions it calls in their places.

    ``known`` are all templates by key, ``lowered`` what this graph brought to them. A function that
    the scheduler itself wrote, and so lowered last, has no lines of its own: all of it is the work
    of the node it was written for.
    """
    for kernel in scope.lowered.template.kernels:
        template = inner(kernel, known)
        if template is None:
            yield kernel, scope
            continue
        own = lowered.get(template.key)
        if own is None or kernel.inner is None:
            marks = scope.lowered.marks(kernel.notes[-1] if kernel.notes else ())
            own = Lowered(template, (marks,) * template.size, None, False)
        yield from kernels_of(Scope(own, scope, kernel.args, kernel.name), known, lowered)


# **** a graph's structure ****


def flatten_graph(nodes: list[UOp]) -> tuple[Any, ...]:
    """A graph as (op, dtype, places of its sources, arg) rows: its structure, holding none of its
    UOps.

    Holding the UOps themselves would keep them alive, and a later line that builds the same node
    would find it with an earlier line's mark.
    """
    place = {n: i for i, n in enumerate(nodes)}
    return tuple((n.op, n.dtype, tuple(place[s] for s in n.src), n.arg, n.tag) for n in nodes)


def rebuild_graph(structure: tuple[Any, ...]) -> list[UOp]:
    """The nodes of `flatten_graph`, made again; the last is the root."""
    nodes: list[UOp] = []
    for op, dtype, src, arg, tag in structure:
        nodes.append(UOp(op, dtype, tuple(nodes[i] for i in src), arg, tag))
    return nodes


def accesses(ast: UOp) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which of its arguments a kernel writes and which it reads, as places among them."""
    writes: dict[int, None] = {}
    reads: dict[int, None] = {}
    if ast.op is Ops.COPY:
        return (0,), (1,)
    targets: set[UOp] = set()
    nodes = ast.toposort()
    for n in nodes:
        if n.op is Ops.STORE:
            target = n.src[0]
            targets.add(target)
            buffer = target.buf_uop
            if buffer.op is Ops.PARAM:
                writes[buffer.arg.slot] = None
    for n in nodes:
        if n.op is Ops.INDEX and n not in targets:
            buffer = n.buf_uop
            if buffer.op is Ops.PARAM and buffer.arg.slot >= 0:
                reads[buffer.arg.slot] = None
    return tuple(writes), tuple(reads)
