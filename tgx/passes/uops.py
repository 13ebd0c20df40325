"""One kernel's UOps with their provenance.

Equal kernels share a program, wherever they were called from, so its UOps carry no origins of their
own: a kernel's come through its AST (`Trace.uop_origins`).
"""

from __future__ import annotations

from dataclasses import replace

from tgx.model import Graph, Trace


def kernel_graph(trace: Trace, kernel: int, drawn: bool = False) -> Graph | None:
    """The UOps of a kernel (or its AST, where they were not recorded), each with its origins.

    ``drawn``: the AST too where the UOps are a shell around a program that a device made from it.
    """
    k = trace.kernel(kernel)
    program = trace.program(k.program) if k.program != -1 else None
    graph = trace.graph(program.uops) if program and program.uops != -1 else None
    if graph is None or (drawn and k.ast != -1 and is_shell(graph)):
        ast = k.ast if k.ast != -1 or program is None else program.ast
        return named(trace, trace.graph(ast)) if ast != -1 else None
    origins = trace.uop_origins(kernel)
    if len(origins) == len(graph):
        graph = replace(graph, origins=origins)
    return named(trace, graph)


def is_shell(uops: Graph) -> bool:
    """Whether a device wrote the program as a whole (TGX's tile path): what the kernel computes is
    then in its AST, not in its UOps."""
    return "CUSTOM" in uops.ops or "STORE" not in uops.ops


def named(trace: Trace, graph: Graph) -> Graph:
    """A graph whose nodes have the Tensor operation and phase of their origins."""
    if not graph.origins:
        return graph
    first = [trace.origin(row[0]) if row else None for row in graph.origins]
    ops, phases = graph.tensor_ops, graph.phases
    return replace(
        graph,
        tensor_ops=tuple((ops and ops[i]) or (o.op if o else "") for i, o in enumerate(first)),
        phases=tuple((phases and phases[i]) or (o.phase if o else "")
                     for i, o in enumerate(first)),
    )
