"""Every rule of tinygrad's gradient table: a program that meets it, its formula, its numbers.

Each program's inputs are kept alive: tinygrad gives gradients to tensors that are still there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import tinygrad.mixin.gradient as tg_gradient
from tinygrad import Tensor, UOp, dtypes
from tinygrad.function import function
from tinygrad.uop.ops import KernelInfo, Ops, PatternMatcher, UPat

from tgx.adapter import derivatives
from tgx.adapter.gradients import Backward
from tgx.model import GradientStep, Trace
from tgx.passes import walks
from tgx.views import backward

KEPT: list[Tensor] = []


def v(*numbers: float) -> Tensor:
    """A parameter: some floats in memory."""
    made = Tensor([float(n) for n in numbers] or [0.5, -1.5, 2.0]).contiguous().realize()
    KEPT.append(made)
    return made


def record(program: Callable[[], Tensor]) -> Trace:
    """A program's backward, without its kernels."""
    KEPT.clear()
    session = Backward().start()
    try:
        loss = program()
        loss.backward()
    finally:
        session.stop()
    return session.trace()


def square_kernel(out: UOp, a: UOp) -> UOp:
    i = UOp.range(a.shape[0], 0)
    return out[i].store(a[i] * a[i]).end(i).sink(arg=KernelInfo(name="square"))


def square_gradient(gradient: UOp, kernel: UOp) -> tuple[UOp | None, ...]:
    return None, (Tensor(gradient) * Tensor(kernel.src[2]) * 2).uop


@function
def waves(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sin() + a


def between(x: Tensor) -> Tensor:
    return (x < 0.7).cast("float").sum() + x.sum()


PROGRAMS: dict[str, Callable[[], Tensor]] = {
    "CAST": lambda: v().cast("half").cast("float").sum(),
    "RECIPROCAL": lambda: v().reciprocal().sum(),
    "SIN": lambda: v().sin().sum(),
    "LOG2": lambda: v(0.5, 3.0, 2.0).log2().sum(),
    "EXP2": lambda: v().exp2().sum(),
    "SQRT": lambda: v(0.5, 3.0, 2.0).sqrt().sum(),
    "TRUNC": lambda: (v(0.5, 1.7, -2.2).trunc() + v(1.0, 2.0, 3.0)).sum(),
    "CMPLT/CMPNE": lambda: between(v()),
    "ADD": lambda: (v() + v(1.0, 2.0, 3.0)).sum(),
    "POW": lambda: (v(0.5, 1.5, 2.0) ** v(2.0, 3.0, 0.5)).sum(),
    "MAX": lambda: v(1.0, 2.5, 3.0).maximum(v(2.0, 2.0, 2.0)).sum(),
    "MUL": lambda: (v() * v(1.0, 2.0, 3.0)).sum(),
    "WHERE": lambda: Tensor([True, False, True]).where(v(), v(1.0, 2.0, 3.0)).sum(),
    "REDUCE ADD": lambda: v().sum(),
    "REDUCE MAX": lambda: v().max(),
    "REDUCE MUL": lambda: v().prod(),
    "CONTIGUOUS": lambda: (v() * 2).contiguous().sum(),
    "CONTIGUOUS_BACKWARD": lambda: (v() * 2).contiguous_backward().sum(),
    "RESHAPE": lambda: (v(1.0, 2.0, 3.0, 4.0).reshape(2, 2) * v(1.0, 2.0)).sum(),
    "EXPAND": lambda: (v(1.0, 2.0).expand(3, 2) * v(*range(6)).reshape(3, 2)).sum(),
    "PAD": lambda: (v().pad((1, 2)) * v(*range(6))).sum(),
    "SHRINK": lambda: (v()[1:] * v(1.0, 2.0)).sum(),
    "PERMUTE": lambda: (v(*range(6)).reshape(2, 3).T * v(*range(6)).reshape(3, 2)).sum(),
    "FLIP": lambda: (v().flip(0) * v(1.0, 2.0, 3.0)).sum(),
    "STACK": lambda: (Tensor.stack(v(), v(1.0, 2.0, 3.0)) * v(3.0, 2.0, 1.0)).sum(),
    "COPY": lambda: (v().to("TGX:1") * 2).to("TGX").sum(),
    "UNSHARD": lambda: (v(1.0, 2.0, 3.0, 4.0).shard(("TGX:0", "TGX:1"), 0) * 2).sum(),
    "TUPLE": lambda: waves(v(), v(1.0, 2.0, 3.0)).sum(),
    "AFTER CALL": lambda: Tensor.custom_kernel(
        Tensor.empty(3), v(), fxn=square_kernel, grad_fxn=square_gradient
    )[0].sum(),
    "AFTER STORE": lambda: Tensor.empty(3).assign(v() * 3).sum(),
    "STORE": lambda: v(1.0, 2.0, 3.0).clone().sum(),
    "BITCAST": lambda: v().bitcast(dtypes.int32).bitcast(dtypes.float32).sum(),
}

# what a rule makes of the upstream gradient 1
FIRST = {
    "RECIPROCAL": lambda x: -1 / x**2, "SIN": math.cos, "LOG2": lambda x: 1 / (x * math.log(2)),
    "EXP2": lambda x: 2**x * math.log(2), "SQRT": lambda x: 0.5 / math.sqrt(x),
    "TRUNC": lambda x: 0.0, "CAST": lambda x: 1.0,
}  # fmt: skip

NO_FLOW = {"CMPLT/CMPNE", "BITCAST"}


def test_every_rule_has_a_program_and_a_formula() -> None:
    rules = set(derivatives.keys())
    assert rules == set(PROGRAMS), "a rule of tinygrad's table needs a program here"
    assert rules <= set(derivatives.FORMULAS), "a rule of tinygrad's table needs a formula"
    extra = set(derivatives.FORMULAS) - rules
    assert extra == set(derivatives.WALK), "a formula for a rule that is not in the table"


@pytest.mark.parametrize("key", PROGRAMS)
def test_a_rule(key: str) -> None:
    trace = record(PROGRAMS[key])
    found = [s for s in trace.gradients if s.key == key]
    assert found, f"no step by {key}: {[s.key for s in trace.gradients]}"
    step = found[-1]
    walk = trace.walk(step.walk)
    assert step.formula == derivatives.FORMULAS[key].operation
    the_source_is_live(trace, step)
    flowing = [c for c in step.contributions if c.node >= 0]
    assert bool(flowing) == (key not in NO_FLOW)
    assert all(c.stops for c in step.contributions if c.node < 0)
    for c in flowing:
        assert c.formula, "mathematics for every contribution"
        if key != "AFTER CALL":  # its contribution is a gradient for each of the kernel's buffers
            assert walk.value(c.node).known
            assert 0 <= c.check.error < 1e-6, c.check
            assert c.formula_error < 1e-6
    if key in FIRST:
        inputs, given = walk.value(flowing[0].target).sample, walk.value(flowing[0].node).sample
        assert given == pytest.approx([FIRST[key](x) for x in inputs], rel=1e-5)
    outer = next(w for w in trace.walks if w.parent < 0)
    targets = [t for t in outer.targets if t.parameter and t.node != outer.root]
    assert len(targets) == len(KEPT)
    for t in targets:
        if key == "BITCAST":
            assert t.gradient < 0 and t.stops
        elif key != "UNSHARD":  # tinygrad 0.14 cannot run this gradient: "unbound _device_num"
            assert 0 <= t.check.error < 1e-6, (t, t.check)


def the_source_is_live(trace: Trace, step: GradientStep) -> None:
    """A rule's text is what stands at its line, in the tinygrad that is installed."""
    place, text = walks.rule_text(trace, step)
    path, _, line = place.rpartition(":")
    assert path == "tinygrad/mixin/gradient.py"
    live = Path(tg_gradient.__file__).read_text().splitlines()[int(line) - 1 :]
    joined = " ".join(" ".join(live[:4]).split())
    assert text.partition("    # from line")[0].rstrip(")") in joined.replace("( ", "(")
    assert step.op in text or step.op == "REDUCE"


def test_a_new_rule_is_named_as_one_without_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """NEG has no rule in tinygrad 0.14. With one, it is a step like others, and says what lacks."""
    table = tg_gradient.pm_gradient
    newer = PatternMatcher([*table.patterns, (UPat(Ops.NEG), lambda ctx: (-ctx,))])
    monkeypatch.setattr(tg_gradient, "pm_gradient", newer)
    assert "NEG" in list(derivatives.keys()) and "NEG" not in derivatives.FORMULAS
    trace = record(lambda: Tensor(v().uop.alu(Ops.NEG)).sum())
    step = next(s for s in trace.gradients if s.op == "NEG")
    (c,) = step.contributions
    assert step.formula == c.formula == "NEG: tgx has no formula for this rule"
    assert trace.walks[0].value(c.node).sample == (-1.0, -1.0, -1.0)
    assert c.check.error < 1e-6, "its numbers are checked all the same"
    (found,) = (f for f in walks.findings(trace, trace.walks[0]) if f.kind == "no formula")
    assert "NEG" in found.text and "NEG" in backward.render(trace)


def test_what_a_rule_does_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tg_gradient.pm_gradient
    wrong = [(p, f) for p, f in table.patterns if p.op != (Ops.SIN,)]
    wrong.append((UPat(Ops.SIN, name="ret"), lambda ctx, ret: (ret.src[0].sin() * ctx,)))
    monkeypatch.setattr(tg_gradient, "pm_gradient", PatternMatcher(wrong))
    trace = record(PROGRAMS["SIN"])
    found = [f for f in walks.findings(trace, trace.walks[0]) if f.kind == "unequal"]
    assert len(found) == 2, "the step, and the parameter's gradient"
    assert "SIN" in found[0].text and trace.gradients[-1].op == "SIN"
