"""The backward walk as text and as JSON, and the words all its forms share.

    render(trace, form)     form: text, markdown, json, dot, svg or html

Two levels: every step, or the operations the user wrote; small walks show their steps.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from tgx.errors import BadInput
from tgx.model import Check, Contribution, GradientStep, Trace, Value, Walk, WalkOperation
from tgx.passes import places, walks
from tgx.safe import to_json
from tgx.views import words

FORMS = {  # form -> the module that renders it
    "text": "", "json": "", "markdown": "backward_markdown", "dot": "backward_picture",
    "svg": "backward_picture", "html": "backward_page",
}  # fmt: skip
FEW = 24  # steps that are shown one by one, if nobody asks otherwise
LEVELS = ("auto", "steps", "operations")


def render(trace: Trace, form: str = "text", level: str = "auto", **choices: Any) -> str:
    """A trace's walks in one of FORMS."""
    if form not in FORMS:
        raise BadInput(f"form {form}", f"one of {', '.join(FORMS)}")
    if level not in LEVELS:
        raise BadInput(f"level {level}", f"one of {', '.join(LEVELS)}")
    if form == "text":
        return text(trace, level)
    if form == "json":
        return to_json(facts(trace), 2)
    module = import_module(f"tgx.views.{FORMS[form]}")
    return str(module.render(trace, form=form, level=level, **choices))


def shown_level(trace: Trace, walk: Walk, level: str) -> str:
    if level != "auto":
        return level
    return "steps" if len(walks.steps(trace, walk.id)) <= FEW else "operations"


# **** words ****


def number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.6g}".replace("-", "−")


def brief(value: Value) -> str:
    """A value in a few words: a number, or shape, range and size."""
    if not value.known:
        return "not known"
    if value.size == 1 and value.sample:
        return number(value.sample[0])
    if 0 < value.size <= 4 and len(value.sample) == value.size:
        return "[" + ", ".join(f"{v:.4g}".replace("-", "−") if math.isfinite(v) else number(v)
                               for v in value.sample) + "]"
    bad = [f"{n:,} {word}" for n, word in ((value.nans, "NaN"), (value.infs, "∞")) if n]
    if bad:
        return f"{value.shape}, {', '.join(bad)}"
    return (f"{value.shape}, {value.low:.3g} … {value.high:.3g}, rms "
            f"{walks.typical(value):.3g}").replace("-", "−")


def check_word(check: Check, limit: float = walks.WRONG) -> str:
    """A check in a word: ``✓ 2e-08``, ``kink``, ``≠ …`` where it is off by more than ``limit``."""
    if check.error < 0:
        return f"not checked: {check.why}" if check.why else ""
    if check.kink:
        return "a kink: slopes differ left and right"
    if check.error > limit and check.difference:
        return f"≠ {number(check.difference[0])} by finite difference"
    return f"✓ {check.error:.0e}"


def where(trace: Trace, step: GradientStep) -> str:
    """A step's line; of an expression, the part of it."""
    return spot(trace, step.origin)


def spot(trace: Trace, origin: int) -> str:
    """The place of a forward operation: ``mlp.py:12``, or the part of an expression."""
    if origin < 0:
        return ""
    o = places.forward_of(trace, origin)
    if o.frame < 0:
        return ""
    frame = trace.frame(o.frame)
    file = trace.file(frame.file)
    if file.path == "expression" and frame.column >= 0:
        line = file.text(frame.line).encode("utf-8", "replace")
        return line[frame.column : frame.end_column].decode("utf-8", "replace")
    return trace.place(o.frame)


def title(trace: Trace, walk: Walk) -> str:
    """``L = 49``: what the walk is of."""
    value = walk.value(walk.root)
    label = trace.graph(walk.graph).label(walk.root) or walk.name or "the loss"
    program = trace.environment.program
    if label == program:
        return f"{label} = {brief(value)}"
    return f"{label} = {brief(value)}"


def heading(trace: Trace, walk: Walk) -> list[str]:
    """What a walk is, in a line or two."""
    own = walks.steps(trace, walk.id)
    parts = [words.plural(len(own), "step"), words.plural(
        len(walks.operations(trace, walk.id)), "operation")]
    if walk.kernels:
        parts.append(words.plural(len(walk.kernels), "kernel"))
    else:
        parts.append("no kernel yet: nothing realized its gradients")
    line = trace.place(walk.frame)
    asked = f", asked for by {line}" if line and not line.startswith("expression") else ""
    out = [f"{title(trace, walk)}: {', '.join(parts)}{asked}"]
    if walk.order > 1:
        out.append("a gradient of gradients: its forward contains an earlier walk's backward")
    if walk.parent >= 0:
        out.append(f"inside the function {walk.name}, as a step of walk {walk.parent}")
    if walk.jit:
        out.append(f"captured by TinyJit, in {walk.jit}")
    if walk.repeats > 1:
        out.append(f"began {walk.repeats} times; the numbers are the first one's")
    return out


def result_line(trace: Trace, walk: Walk) -> str:
    error, done, undone = walks.worst(trace, walk)
    if not done:
        return "nothing could be checked by finite differences"
    left = f", {undone} not checked" if undone else ""
    return (f"{done} gradients checked by central differences in float64: the largest error is "
            f"{error:.0e}{left}")


# **** text ****


def text(trace: Trace, level: str = "auto") -> str:
    """The walks for a terminal."""
    if not trace.walks:
        lacks = "".join(f"note: {words.line(m)}\n" for m in trace.environment.missing)
        return f"This trace has no backward walk; `tgx backward SCRIPT` records one.\n{lacks}"
    out: list[str] = []
    for walk in trace.walks:
        if out:
            out.append("")
        out += heading(trace, walk)
        chosen = shown_level(trace, walk, level)
        out.append("")
        if chosen == "steps":
            out += _step_lines(trace, walk)
        else:
            out += _operation_lines(trace, walk)
        out += ["", *_target_lines(trace, walk), result_line(trace, walk)]
        found = walks.findings(trace, walk)
        if found:
            out.append("")
        for f in found:
            at = f" ({f.place})" if f.place and not f.place.startswith("expression") else ""
            out.append(f"! {f.text}{at}")
        out += _kernel_lines(trace, walk)
        out += [f"note: {n}" for n in walk.notes]
    notes = [m for m in trace.environment.missing if "script was stopped" in m or "walk" in m]
    out += [f"note: {m}" for m in notes]
    return words.clean("\n".join([*out, ""]))


def _step_lines(trace: Trace, walk: Walk) -> list[str]:
    out = []
    for i, s in enumerate(walks.steps(trace, walk.id), 1):
        name = walks.name(trace, walk, s.node)
        at = where(trace, s)
        what = f"{name} = {s.formula}" if name != at else s.formula
        said = f"{i:3}  {s.op:<8} {what}"
        if at:
            said += f"   [{at}]"
        out.append(said)
        place, rule = walks.rule_text(trace, s)
        if place:
            out.append(f"     rule  {place}  {words.line(rule, 110)}")
        out.append(f"     value {brief(walk.value(s.node))}, upstream gradient "
                   f"{brief(walk.value(s.upstream))}")
        for c in told(trace, walk, s):
            out.append("       " + contribution(trace, walk, c))
    return out


def told(trace: Trace, walk: Walk, step: GradientStep) -> list[Contribution]:
    """The contributions worth a line: not those to a constant, where there are others."""
    ops = trace.graph(walk.graph).ops
    own = [c for c in step.contributions if ops[c.target] != "CONST"]
    return own or list(step.contributions)


def contribution(trace: Trace, walk: Walk, c: Contribution) -> str:
    """``→ x  += 2   ∂(a·b)/∂a = b = 2   total 4   ✓ 1e-09``."""
    target = walks.name(trace, walk, c.target)
    if c.node < 0:
        return f"→ {target}: stops, {c.stops}"
    parts = [f"→ {target} += {brief(walk.value(c.node))}", mathematics(c)]
    if c.summed:
        parts.append("summed over axis " + ", ".join(map(str, c.summed)))
    if c.total != c.node:
        parts.append(f"total {brief(walk.value(c.total))}")
    if c.stops:
        parts.append(f"goes no further: {c.stops}")
    if c.check.error >= 0 or c.check.why:
        parts.append(check_word(c.check, walks.tolerance(trace, walk)))
    return "   ".join(p for p in parts if p)


def mathematics(c: Contribution) -> str:
    """``∂(a·b)/∂a = b = 2``: the derivative, and its number where it is one."""
    local = c.local.replace("-", "−")
    return c.formula if not local or c.formula.endswith(f"= {local}") else f"{c.formula} = {local}"


def _operation_lines(trace: Trace, walk: Walk) -> list[str]:
    out = []
    for i, o in enumerate(walks.operations(trace, walk.id), 1):
        at = spot(trace, o.origin)
        kernels = operation_kernels(trace, o)
        head = f"{i:3}  {operation_name(o)}" + (f"   {at}" if at else "")
        out.append(f"{head}   {words.plural(len(o.steps), 'step')}" + (
            f", kernel {', '.join(map(str, kernels))}" if kernels else ""))
        out.append(f"     upstream gradient {brief(walk.value(o.upstream))}")
        for f in o.flows:
            known = f"   {f.formula}" if f.formula else ""
            error = f"   ✓ {f.error:.0e}" if 0 <= f.error <= walks.WRONG else (
                f"   ≠ the textbook by {f.error:.1g}" if f.error > 0 else "")
            out.append(f"       → {walks.name(trace, walk, f.node)} += {brief(f.total)}"
                       f"{known}{error}")
    return out


def operation_name(o: WalkOperation) -> str:
    return o.name if o.name.lstrip("∂") == o.op else f"{o.name} ({o.op})"


def operation_kernels(trace: Trace, o: WalkOperation) -> tuple[int, ...]:
    return tuple(sorted({k for id in o.steps for k in trace.step(id).kernels}))


def _target_lines(trace: Trace, walk: Walk) -> list[str]:
    rows = []
    limit = walks.tolerance(trace, walk)
    for t in walks.parameters(walk):
        name = walks.name(trace, walk, t.node)
        if t.gradient < 0:
            rows.append((f"d/d{name}", "none", t.stops))
            continue
        rows.append((f"d/d{name}", brief(walk.value(t.gradient)), check_word(t.check, limit)))
    if not rows:
        return []
    widths = [max(len(r[i]) for r in rows) for i in range(2)]
    return [f"  {a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in rows]


def _kernel_lines(trace: Trace, walk: Walk) -> list[str]:
    parts = walks.kernel_parts(trace, walk)
    if not parts:
        return []
    number_of = {s.id: i for i, s in enumerate(walks.steps(trace, walk.id), 1)}
    out = ["", "kernels:"]
    for p in parts:
        kernel = trace.kernel(p.kernel)
        said = [f"  {p.kernel:3}  {kernel.name}"]
        if p.steps:
            said.append("steps " + spans([number_of[s] for s in p.steps]))
        if p.again:
            said.append("computes again " + ", ".join(recomputed(trace, walk, p)))
        reads = [r for r in p.reads if r]
        if reads:
            said.append("reads " + ", ".join(dict.fromkeys(reads)))
        out.append("; ".join(said))
    return out


def recomputed(trace: Trace, walk: Walk, part: walks.KernelPart) -> list[str]:
    """The forward operations a kernel computes although another did before."""
    graph = trace.graph(walk.graph)
    return list(dict.fromkeys(graph[n].tensor_op or walks.name(trace, walk, n)
                              for n in part.again))


def spans(numbers: list[int]) -> str:
    """1, 2, 3, 7 as ``1–3, 7``."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in found)


# **** json ****


def facts(trace: Trace) -> dict[str, Any]:
    """All that is known of the walks, as plain data."""
    return {
        "program": trace.environment.program,
        "device": trace.environment.device,
        "tinygrad": trace.environment.tinygrad,
        "missing": list(trace.environment.missing),
        "walks": [_walk(trace, w) for w in trace.walks],
    }


def _walk(trace: Trace, walk: Walk) -> dict[str, Any]:
    error, done, undone = walks.worst(trace, walk)
    return {
        "id": walk.id,
        "loss": _value(walk.value(walk.root)),
        "name": walk.name,
        "line": trace.place(walk.frame),
        "order": walk.order,
        "parent": walk.parent if walk.parent >= 0 else None,
        "jit": walk.jit,
        "repeats": walk.repeats,
        "targets": [
            {
                "name": walks.name(trace, walk, t.node),
                "parameter": t.parameter,
                "value": _value(walk.value(t.node)),
                "gradient": _value(walk.value(t.gradient)) if t.gradient >= 0 else None,
                "stops": t.stops,
                **_check(t.check),
            }
            for t in walk.targets
        ],
        "steps": [_step(trace, walk, s) for s in walks.steps(trace, walk.id)],
        "operations": [
            {
                "name": o.name,
                "op": o.op,
                "line": places.origin_place(trace, o.origin),
                "steps": list(o.steps),
                "upstream": _value(walk.value(o.upstream)),
                "gradients": [
                    {
                        "to": walks.name(trace, walk, f.node),
                        "role": f.role,
                        "formula": f.formula,
                        "value": _value(f.total),
                        "error": _known(f.error),
                    }
                    for f in o.flows
                ],
                "kernels": list(operation_kernels(trace, o)),
            }
            for o in walks.operations(trace, walk.id)
        ],
        "kernels": [
            {
                "id": p.kernel,
                "name": trace.kernel(p.kernel).name,
                "steps": list(p.steps),
                "recomputes": [walks.name(trace, walk, n) for n in p.again],
                "forward": [walks.name(trace, walk, n) for n in p.forward],
                "reads": list(p.reads),
            }
            for p in walks.kernel_parts(trace, walk)
        ],
        "checked": {"worst": _finite(error), "done": done, "not_done": undone},
        "findings": [
            {"kind": f.kind, "text": f.text, "step": f.step if f.step >= 0 else None,
             "line": f.place}
            for f in walks.findings(trace, walk)
        ],
        "notes": list(walk.notes),
    }  # fmt: skip


def _step(trace: Trace, walk: Walk, s: GradientStep) -> dict[str, Any]:
    place, rule = walks.rule_text(trace, s)
    flowing = [c for c in s.contributions if c.node >= 0]
    return {
        "id": s.id,
        "op": s.op,
        "tensor_op": s.tensor_op,
        "name": walks.name(trace, walk, s.node),
        "line": walks.place(trace, s),
        "rule": rule,
        "rule_line": place,
        "key": s.key,
        "formula": s.formula,
        "value": _value(walk.value(s.node)),
        "upstream": _value(walk.value(s.upstream)),
        "contributions": [
            {
                "to": walks.name(trace, walk, c.target),
                "node": c.target,
                "formula": c.formula,
                "local": c.local,
                "value": _value(walk.value(c.node)) if c.node >= 0 else None,
                "total": _value(walk.value(c.total)) if c.total >= 0 else None,
                "adds": c.node >= 0 and c.total != c.node,
                "summed": list(c.summed),
                "stops": c.stops,
                "formula_error": _known(c.formula_error),
                **_check(c.check),
            }
            for c in s.contributions
        ],
        "total": [_value(walk.value(c.total)) for c in flowing],
        "finite_difference": [[_finite(d) for d in c.check.difference] for c in flowing],
        "kernel": list(s.kernels),
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "at": list(check.at),
        "gradient_at": [_finite(g) for g in check.gradient],
        "finite_difference": [_finite(d) for d in check.difference],
        "error": _known(check.error),
        "kink": check.kink,
        "why": check.why,
    }


def _value(value: Value) -> Any:
    """A number, or a record for a tensor; None where it is not known."""
    if not value.known:
        return None
    if value.size == 1 and value.sample:
        return _finite(value.sample[0])
    return {
        "shape": value.shape,
        "sample": [_finite(v) for v in value.sample],
        "mean": value.mean,
        "norm": value.norm,
        "low": value.low,
        "high": value.high,
        "nans": value.nans,
        "infs": value.infs,
        "sampled": value.sampled,
    }


def _finite(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are words."""
    return value if math.isfinite(value) else str(value)


def _known(value: float) -> float | None:
    return None if value < 0 else value
