"""The backward walk as an annotated walkthrough: what happens, where in tinygrad's source, and with
which numbers. File names and lines are those of the tinygrad that ran."""

from __future__ import annotations

from collections.abc import Iterator

from tgx.model import GradientStep, Trace, Walk, WalkOperation
from tgx.passes import walks
from tgx.views import backward, words
from tgx.views.markdown import cell

# what happens at each place of the route, by words of its line
ROUTE = (
    ("def backward(", "`backward()` begins here."),
    ("tensors_need_grad", "It collects every float tensor that is still in scope and part of the "
     "loss: these get a `.grad`."),
    ("compute_gradient(self._uop", "`gradient` starts the walk at the loss, with the gradient "
     "dL/dL = 1."),
    ("return [node for node in", "The order: all nodes that lead to one of those tensors, sources "
     "first. What stands behind a `detach()` is left out."),
    ("grads: dict", "One gradient for each node, to begin with only the loss's own."),
    ("for t0 in reversed(walk)", "From the loss back: when a node's turn comes, all that read it "
     "have had theirs, so its gradient is complete."),
    ("pm_gradient.rewrite", "The table is asked for the rule of this node's operation. The rule "
     "makes new graph nodes; it computes no number."),
    ("broadcast_axes(", "An input that was broadcast was used many times: its gradient is the sum "
     "along those axes."),
    ("grads[k] = grads[k] + v", "A value used more than once collects a gradient from each use: "
     "this is micrograd's `+=`."),
    ("t.grad = g", "At the end each tensor gets its `.grad`: still a graph. It is computed when "
     "somebody looks at it, fused with what surrounds it."),
)  # fmt: skip


def render(trace: Trace, form: str = "markdown", level: str = "auto") -> str:
    """All walks of a trace, as Markdown."""
    if not trace.walks:
        return "This trace has no backward walk; `tgx backward SCRIPT` records one.\n"
    out: list[str] = []
    for walk in trace.walks:
        chosen = backward.shown_level(trace, walk, level)
        out += _walk(trace, walk, chosen)
    return "\n".join([*out, ""])


def code(text: str) -> str:
    """Text as code; what would end the code, or a table's cell, is escaped text instead."""
    text = words.line(text)
    return cell(text) if "`" in text or "|" in text else f"`{text}`"


def _walk(trace: Trace, walk: Walk, level: str) -> Iterator[str]:
    label = trace.graph(walk.graph).label(walk.root) or walk.name or "the loss"
    env = trace.environment
    yield f"# What `backward()` does for {code(label)}"
    yield ""
    yield (f"Recorded with tinygrad {cell(env.tinygrad)} on {cell(env.device)}, Python "
           f"{cell(env.python)}. "
           + " ".join(cell(h) + "." for h in backward.heading(trace, walk)))
    yield ""
    if walk.route:
        yield "## The way through tinygrad"
        yield ""
        for number, rule in enumerate(map(trace.rule, walk.route), 1):
            said = next((text for key, text in ROUTE if key in rule.text), "")
            yield f"{number}. {code(f'{trace.file(rule.file).path}:{rule.line}')} {said}"
            yield ""
            yield f"       {words.line(rule.text)}"
            yield ""
    yield "## Forward"
    yield ""
    yield from _forward(trace, walk)
    yield ""
    if level == "steps":
        yield "## Backward, step by step"
        for i, step in enumerate(walks.steps(trace, walk.id), 1):
            yield from _step(trace, walk, step, i)
    else:
        yield "## Backward, by operation"
        for i, operation in enumerate(walks.operations(trace, walk.id), 1):
            yield from _operation(trace, walk, operation, i)
    yield ""
    yield "## The gradients"
    yield ""
    yield "| tensor | value | gradient | central difference | |"
    yield "|---|---|---|---|---|"
    for t in walks.parameters(walk):
        gradient = walk.value(t.gradient)
        difference = backward.number(t.check.difference[0]) if t.check.difference else ""
        at = f" at {t.check.at[0]}" if t.check.at and gradient.size > 1 else ""
        word = backward.check_word(t.check, walks.tolerance(trace, walk))
        yield "| " + " | ".join((
            code(walks.name(trace, walk, t.node)), cell(backward.brief(walk.value(t.node))),
            cell(backward.brief(gradient) if t.gradient >= 0 else f"none: {t.stops}"),
            cell(difference + at), cell(word))) + " |"
    yield ""
    yield cell(backward.result_line(trace, walk)) + "."
    found = walks.findings(trace, walk)
    if found:
        yield ""
        yield "## What to know"
        yield ""
        for f in found:
            yield f"- {cell(f.text)}" + (f" ({code(f.place)})" if f.place else "")
    parts = walks.kernel_parts(trace, walk)
    if parts:
        yield ""
        yield "## The kernels"
        yield ""
        yield "| kernel | name | steps | computes again | reads |"
        yield "|--:|---|---|---|---|"
        number_of = {s.id: i for i, s in enumerate(walks.steps(trace, walk.id), 1)}
        for p in parts:
            again = dict.fromkeys(walks.name(trace, walk, n) for n in p.again)
            yield "| " + " | ".join((
                str(p.kernel), cell(trace.kernel(p.kernel).name),
                backward.spans([number_of[s] for s in p.steps]),
                cell(", ".join(again)), cell(", ".join(r for r in p.reads if r)))) + " |"
    yield ""


def _forward(trace: Trace, walk: Walk) -> Iterator[str]:
    graph = trace.graph(walk.graph)
    shown = [n for n in range(walk.forward) if graph.ops[n] not in ("BUFFER", "COPY")]
    if len(shown) > 40:  # of a large graph only what the user has a name for
        shown = [n for n in shown if graph.label(n)]
    yield "| node | operation | of | value |"
    yield "|---|---|---|---|"
    for n in shown:
        sources = ", ".join(walks.name(trace, walk, s) for s in graph.src(n))
        yield "| " + " | ".join((
            code(walks.name(trace, walk, n)), cell(graph.ops[n]), cell(sources),
            cell(backward.brief(walk.value(n))))) + " |"


def _step(trace: Trace, walk: Walk, step: GradientStep, number: int) -> Iterator[str]:
    name = walks.name(trace, walk, step.node)
    at = backward.where(trace, step)
    place, rule = walks.rule_text(trace, step)
    yield ""
    yield (f"### {number}. {cell(step.op)}: {code(name)}"
           + (f", at {code(at)}" if at not in ("", name) else ""))
    yield ""
    yield (f"The forward computed {cell(step.formula)}, which was "
           f"{cell(backward.brief(walk.value(step.node)))}. The gradient that comes in is "
           f"{cell(backward.brief(walk.value(step.upstream)))}.")
    if place:
        yield ""
        yield f"The rule that matches, {code(place)}:"
        yield ""
        yield f"    {words.line(rule)}"
    yield ""
    for c in backward.told(trace, walk, step):
        target = code(walks.name(trace, walk, c.target))
        if c.node < 0:
            yield f"- {target}: nothing flows; {cell(c.stops)}."
            continue
        line = (f"- {cell(backward.mathematics(c))}, so {target} gets "
                f"**{cell(backward.brief(walk.value(c.node)))}**")
        if c.summed:
            line += f", summed over axis {', '.join(map(str, c.summed))}"
        if c.total != c.node:
            line += f"; with what it had, {cell(backward.brief(walk.value(c.total)))}"
        if c.check.difference:
            line += f". Central difference: {cell(backward.number(c.check.difference[0]))}"
        if c.stops:
            line += f". It goes no further: {cell(c.stops)}"
        yield line + "."
    if step.kernels:
        names = ", ".join(f"{k} ({cell(trace.kernel(k).name)})" for k in step.kernels)
        yield ""
        yield f"Computed in kernel {names}."
    elif step.made:
        yield ""
        yield "No kernel computes this: it became a constant, or a matter of indices."


def _operation(trace: Trace, walk: Walk, o: WalkOperation, number: int) -> Iterator[str]:
    at = backward.spot(trace, o.origin)
    yield ""
    yield f"### {number}. {cell(backward.operation_name(o))}" + (f", at {code(at)}" if at else "")
    yield ""
    rules = dict.fromkeys(s.key for s in walks.steps(trace, walk.id) if s.id in set(o.steps))
    yield (f"{words.plural(len(o.steps), 'step')}, by the rules {cell(', '.join(rules))}. Upstream "
           f"gradient: {cell(backward.brief(walk.value(o.upstream)))}.")
    yield ""
    for f in o.flows:
        line = f"- {code(walks.name(trace, walk, f.node))} gets {cell(backward.brief(f.total))}"
        if f.formula:
            line += f"; the textbook says {cell(f.formula)}, which differs by {f.error:.0e}"
        yield line + "."
    kernels = backward.operation_kernels(trace, o)
    if kernels:
        yield ""
        yield "Computed in kernel " + ", ".join(
            f"{k} ({cell(trace.kernel(k).name)})" for k in kernels) + "."
