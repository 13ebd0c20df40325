"""What a backward walk says, beyond its rows: names for its nodes, what each kernel does in it, and
what is wrong with its gradients (`findings`).

Pure functions on the trace; the views share them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tgx.model import (
    Contribution,
    GradientStep,
    Graph,
    Target,
    Trace,
    Value,
    Walk,
    WalkOperation,
)
from tgx.passes.places import origin_place

WRONG = 1e-3  # a check that is further off than this is told
COARSE = {"float16": 2e-2, "bfloat16": 1e-1}  # where a walk computes in fewer bits
CARRYING = frozenset(
    ("CAST", "CONST", "RESHAPE", "PERMUTE", "EXPAND", "PAD", "SHRINK", "FLIP", "BUFFER", "COPY",
     "CONTIGUOUS", "DETACH", "AFTER", "STORE", "STACK")
)  # fmt: skip
"""Operations that carry values along and compute nothing."""
LAYERS = 4  # at least so many, before a gradient is said to vanish or explode
RATIO = 1e3  # between the first and the last of them
SMALLEST = 149  # 2 to the power of less than -149 is 0 in float32
LARGEST = 128  # 2 to this power is infinite in float32


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell about a walk: where it begins, and what to do. ``kind`` is "nan", "inf",
    "vanishing", "exploding", "zero", "missing", "unequal", "kink" or "no formula"."""

    kind: str
    text: str
    step: int = -1
    node: int = -1
    place: str = ""


def steps(trace: Trace, walk: int) -> tuple[GradientStep, ...]:
    return trace.steps_of(walk)


def operations(trace: Trace, walk: int) -> tuple[WalkOperation, ...]:
    return trace.operations_of(walk)


def parameters(walk: Walk) -> tuple[Target, ...]:
    """The targets that nothing else with a gradient was computed into: weights and inputs."""
    return tuple(t for t in walk.targets if t.parameter)


def tolerance(trace: Trace, walk: Walk) -> float:
    """How far a check may be off: rounding, in the coarsest type the walk computes in."""
    return max((COARSE.get(d, WRONG) for d in set(trace.graph(walk.graph).dtypes)), default=WRONG)


# **** names and places ****


def name(trace: Trace, walk: Walk, node: int) -> str:
    """What to call a node: the user's word for it, a constant's value, ∂ and the name of what a
    gradient is of, else its operation and number."""
    graph = trace.graph(walk.graph)
    label = graph.label(node)
    if label:
        return label.removeprefix("self.")
    if graph.ops[node] == "CONST":
        return _constant(graph[node].arg)
    if graph.ops[node] == "BUFFER":
        return f"data{node}"
    return f"{graph.ops[node].lower()}{node}"


def _constant(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def place(trace: Trace, step: GradientStep) -> str:
    """The user's line that a step's forward operation comes from: ``mlp.py:12``."""
    return origin_place(trace, step.origin)


def rule_text(trace: Trace, step: GradientStep) -> tuple[str, str]:
    """(place, text) of the rule that matched."""
    if step.rule < 0:
        return "", ""
    rule = trace.rule(step.rule)
    return f"{trace.file(rule.file).path}:{rule.line}", rule.text


def sums(step: GradientStep) -> Iterator[tuple[Contribution, bool]]:
    """A step's contributions, each with whether it joins one that was there before."""
    for c in step.contributions:
        yield c, c.node >= 0 and c.total != c.node


# **** kernels ****


@dataclass(frozen=True, slots=True)
class KernelPart:
    """What a kernel does for a walk: the steps it computes, the forward values it computes (again,
    if another kernel did before: ``again``), and the stored ones it reads."""

    kernel: int
    steps: tuple[int, ...]
    forward: tuple[int, ...]
    again: tuple[int, ...]
    reads: tuple[str, ...]


def kernel_parts(trace: Trace, walk: Walk) -> tuple[KernelPart, ...]:
    """By kernel, in the order they ran."""
    by_node = {n: s.id for s in steps(trace, walk.id) for n in s.made}
    graph = trace.graph(walk.graph)
    done: set[int] = set()
    found = []
    for k in sorted(walk.kernels, key=lambda k: k.kernel):
        own = sorted({by_node[n] for n in k.nodes if n in by_node})
        forward = [n for n in k.nodes if n < walk.forward and _counts(graph, n)]
        again = tuple(n for n in forward if n in done)
        done.update(forward)
        kernel = trace.kernel(k.kernel)
        reads = tuple(trace.buffer(b).name for b in kernel.reads)
        found.append(KernelPart(k.kernel, tuple(own), tuple(forward), again, reads))
    return tuple(found)


def _counts(graph: Graph, node: int) -> bool:
    """Whether computing a node is work worth telling."""
    return graph.ops[node] not in CARRYING


# **** findings ****


def findings(trace: Trace, walk: Walk) -> tuple[Finding, ...]:
    """All there is to tell of a walk, what matters most first."""
    return (
        *_not_numbers(trace, walk),
        *_sizes(trace, walk),
        *_zeros(trace, walk),
        *_missing(trace, walk),
        *_checks(trace, walk),
    )


def _not_numbers(trace: Trace, walk: Walk) -> Iterator[Finding]:
    """Where NaN and infinity begin: at the first node that has one and whose inputs have none."""
    graph = trace.graph(walk.graph)
    maker = {n: s for s in steps(trace, walk.id) for n in s.made}
    at_node = {s.node: s for s in steps(trace, walk.id)}
    wanted = _reached(graph, [walk.root, *(t.gradient for t in walk.targets if t.gradient >= 0)])
    for forward in (True, False):
        nodes = range(walk.forward) if forward else range(walk.forward, len(graph))
        told: set[str] = set()
        for n in nodes:
            v = walk.value(n)
            kind = "nan" if v.nans else "inf" if v.infs else ""
            inputs = [walk.value(s) for s in graph.src(n)]
            if not kind or kind in told or graph.ops[n] in ("CONST", "BUFFER") or n not in wanted:
                continue
            if any(i.nans or (kind == "inf" and i.infs) for i in inputs):
                continue
            told.add(kind)
            step = maker.get(n) or at_node.get(n)
            where = "forward" if forward else "backward"
            what = "NaN" if kind == "nan" else "infinity"
            line = place(trace, step) if step else _node_place(trace, graph, n)
            text = f"{what} begins in the {where}: {_cause(trace, walk, n, step, kind)}"
            yield Finding(kind, text, step.id if step else -1, n, line)


def _reached(graph: Graph, roots: Sequence[int]) -> set[int]:
    """The nodes that some nodes are made of. (A rule also makes what nobody asks for: the gradient
    of the 2 in x**2 is NaN where x is negative.)"""
    found: set[int] = set()
    todo = list(roots)
    while todo:
        n = todo.pop()
        if n not in found:
            found.add(n)
            todo.extend(graph.src(n))
    return found


def _node_place(trace: Trace, graph: Graph, node: int) -> str:
    marks = graph.origins[node] if graph.origins else ()
    return next((p for m in marks if (p := origin_place(trace, m))), "")


def _cause(trace: Trace, walk: Walk, node: int, step: GradientStep | None, kind: str) -> str:
    """Why a node is NaN or infinite, and what to do about it."""
    graph = trace.graph(walk.graph)
    op = graph.ops[node]
    inputs = [walk.value(s) for s in graph.src(node)]
    first = inputs[0] if inputs else Value(known=False)
    if op == "LOG2" and first.zeros:
        gap = _underflow(walk, graph, graph.src(node)[0])
        if gap:
            return (
                f"the logarithm of an exact 0 is −∞. The 0 is exp(−{gap:.4g}), which is less than "
                "float32's smallest number (1.4e-45): softmax makes it where a score lies 104 or "
                "more below the largest. Use log_softmax, or cross_entropy on the scores: they "
                "subtract before they exponentiate, and never take the logarithm of a rounded 0"
            )
        return "the logarithm of 0 is −∞. Keep its input above 0: (x + 1e-8).log()"
    if op == "LOG2" and first.low < 0:
        return "the logarithm of a negative number is not a number"
    if op == "SQRT" and first.low < 0:
        return "the square root of a negative number is not a number"
    if op == "EXP2" and first.high >= LARGEST:
        return (
            f"exp({first.high * math.log(2):.4g}) is more than float32's largest number (3.4e38, "
            "exp(88.7)). Subtract the largest score first, as softmax and logsumexp do"
        )
    if op == "RECIPROCAL" and first.zeros:
        if step is not None and node >= walk.forward and step.key == "SQRT":
            return "the slope of √a, 1/(2·√a), is infinite at 0. Add a little inside: (x + 1e-8)"
        if step is not None and node >= walk.forward and step.key == "LOG2":
            return "the slope of log a, 1/a, is infinite at 0. Keep a above 0"
        return "a division by 0"
    if op == "MUL" and any(i.infs for i in inputs) and any(i.zeros for i in inputs):
        return "0 · ∞ is not a number: one factor has an exact 0 where the other is infinite"
    if op == "MUL" and kind == "inf":
        sizes = " · ".join(f"{max(abs(i.low), abs(i.high)):.3g}" for i in inputs)
        return f"a product is more than float32's largest number (3.4e38): {sizes}"
    if op in ("ADD", "REDUCE") and any(i.infs for i in inputs):
        return "∞ − ∞ is not a number"
    return f"{op} makes it of numbers that are still finite"


def _underflow(walk: Walk, graph: Graph, node: int) -> float:
    """If a zero comes out of an exponential: how negative its argument was, in powers of e."""
    frontier, seen = [node], {node}
    while frontier and len(seen) < 200:
        n = frontier.pop()
        if graph.ops[n] == "EXP2" and walk.value(n).zeros:
            below = walk.value(graph.src(n)[0]).low
            return -below * math.log(2) if below < -SMALLEST else 0.0
        for s in graph.src(n):
            if s not in seen and walk.value(s).zeros:
                seen.add(s)
                frontier.append(s)
    return 0.0


def typical(value: Value) -> float:
    """The root mean square of a value's elements."""
    return value.norm / math.sqrt(value.size) if value.size else 0.0


def layers(trace: Trace, walk: Walk) -> tuple[WalkOperation, ...]:
    """The operations with a weight matrix, in the walk's order: the last layer first."""
    weights = {t.node for t in parameters(walk) if "×" in walk.value(t.node).shape}
    return tuple(
        o for o in operations(trace, walk.id)
        if any(f.role == "W" or f.node in weights for f in o.flows)
        and o.upstream >= 0 and walk.value(o.upstream).known and not walk.value(o.upstream).nans
    )


def _sizes(trace: Trace, walk: Walk) -> Iterator[Finding]:
    """Gradients that vanish or explode from layer to layer."""
    found = layers(trace, walk)
    sizes = [typical(walk.value(o.upstream)) for o in found]
    if len(found) < LAYERS or not all(s > 0 and math.isfinite(s) for s in sizes):
        return
    ratio = sizes[-1] / sizes[0]
    if not (ratio < 1 / RATIO or ratio > RATIO):
        return
    kind = "vanishing" if ratio < 1 else "exploding"
    factors = [b / a for a, b in pairwise(sizes)]
    each = ratio ** (1 / len(factors))
    begins = next((i for i, f in enumerate(factors) if (f < 0.7 if ratio < 1 else f > 1.4)), 0)
    guilty = _between(trace, walk, found[begins], found[begins + 1], ratio < 1)
    first = trace_step(trace, guilty)
    advice = (
        "relu in place of sigmoid or tanh, normalisation, or a residual path keeps it up"
        if kind == "vanishing" else
        "smaller initial weights (Kaiming, Glorot), normalisation, or clipping the norm holds it"
    )
    yield Finding(
        kind,
        f"the gradient is {kind}: its root mean square is {sizes[0]:.2g} at {found[0].name} and "
        f"{sizes[-1]:.2g} {len(factors)} layers further back, ×{each:.2g} a layer. It begins at "
        f"{guilty.name} (step {_number(trace, walk, first)}). {advice[0].upper()}{advice[1:]}.",
        first, guilty.output, origin_place(trace, guilty.origin),
    )  # fmt: skip


def _between(trace: Trace, walk: Walk, late: WalkOperation, early: WalkOperation,
             shrinks: bool) -> WalkOperation:
    """The operation between two layers that changes the gradient's size most."""
    own = operations(trace, walk.id)
    span = own[own.index(late): own.index(early)] or (late,)

    def factor(o: WalkOperation) -> float:
        before = typical(walk.value(o.upstream))
        after = [typical(f.total) for f in o.flows if f.role != "W" and f.role != "b"]
        return (max(after) / before if shrinks else -max(after) / before) if after and before else 1

    return min(span, key=factor)


def trace_step(trace: Trace, operation: WalkOperation) -> int:
    return operation.steps[0] if operation.steps else -1


def _number(trace: Trace, walk: Walk, step: int) -> int:
    """A step's number within its walk, from 1."""
    own = [s.id for s in steps(trace, walk.id)]
    return own.index(step) + 1 if step in own else 0


def _zeros(trace: Trace, walk: Walk) -> Iterator[Finding]:
    """Where the gradient of a parameter becomes exactly 0 everywhere: it will not learn."""
    own = steps(trace, walk.id)
    last = {c.target: c.total for s in own for c in s.contributions if c.total >= 0}

    def dead(node: int) -> bool:
        v = walk.value(last.get(node, -1))
        return v.known and v.size > 0 and v.norm == 0 and not v.nans and not v.infs

    lost = {t.node for t in parameters(walk) if dead(t.node)}
    names = [name(trace, walk, n) for n in sorted(lost)]
    for s in reversed(own):  # all that leads to them
        if any(c.target in lost and not c.stops for c in s.contributions):
            lost.add(s.node)
    for s in own:
        came = walk.value(s.upstream)
        if not names or s.node not in lost or not came.known or came.norm == 0 or came.nans:
            continue
        if not any(c.target in lost and dead(c.target) for c in s.contributions):
            continue
        why = (
            f"every element of it is on the flat side of {s.tensor_op or s.op}"
            if s.op in ("WHERE", "MAX") else f"{s.key} makes it so"
        )
        yield Finding(
            "zero",
            f"the gradient of {', '.join(names[:4])}{' …' if len(names) > 4 else ''} is exactly 0: "
            f"{why}, so nothing before it learns from this",
            s.id, s.node, place(trace, s),
        )  # fmt: skip
        return


def _missing(trace: Trace, walk: Walk) -> Iterator[Finding]:
    for t in walk.targets:
        if t.gradient < 0 and (t.name or t.parameter):
            yield Finding(
                "missing",
                f"no gradient reaches {t.name or name(trace, walk, t.node)}: {t.stops}",
                node=t.node,
            )
    for s in steps(trace, walk.id):
        if s.formula.endswith("no formula for this rule"):
            yield Finding("no formula", f"{s.key}: tgx has no formula for this rule of tinygrad's",
                          s.id, s.node, place(trace, s))


def _checks(trace: Trace, walk: Walk) -> Iterator[Finding]:
    limit = tolerance(trace, walk)
    kinks = sum(t.check.kink for t in walk.targets)
    for s in steps(trace, walk.id):
        for c in s.contributions:
            kinks += c.check.kink
            if c.check.error > limit and not c.check.kink:
                why = (
                    "; a whole number has no slope, and tinygrad lets the gradient through a cast"
                    if s.key == "CAST" else ""
                )
                yield Finding(
                    "unequal",
                    f"the gradient of {name(trace, walk, c.target)} by {s.key} is "
                    f"{_numbers(c.check.gradient)}, the finite difference says "
                    f"{_numbers(c.check.difference)}{why}",
                    s.id, s.node, place(trace, s),
                )  # fmt: skip
            elif c.formula_error > limit:
                yield Finding(
                    "unequal",
                    f"tgx's formula for {s.key} ({c.formula}) does not give what the rule gave",
                    s.id, s.node, place(trace, s),
                )  # fmt: skip
    for t in walk.targets:
        if t.check.error > limit and not t.check.kink:
            yield Finding(
                "unequal",
                f"the gradient of {t.name} is {_numbers(t.check.gradient)}, the loss's finite "
                f"difference says {_numbers(t.check.difference)}",
                node=t.node,
            )
    if kinks:
        yield Finding(
            "kink",
            f"{kinks} of the gradients stand at a kink, where the slopes left and right differ "
            "(relu at 0, ties of max): there is no derivative, and the rule chooses one",
        )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.6g}" for v in values)


def worst(trace: Trace, walk: Walk) -> tuple[float, int, int]:
    """(largest error, contributions and gradients checked, not checked), kinks left out."""
    checks = [c.check for s in steps(trace, walk.id) for c in s.contributions if c.node >= 0]
    checks += [t.check for t in walk.targets if t.gradient >= 0 and (t.name or t.parameter)]
    done = [c.error for c in checks if c.error >= 0 and not c.kink]
    return max(done, default=0.0), len(done), sum(c.error < 0 for c in checks)
