"""What makes a kernel's result wrong: ``tgx bisect DIR --kernel K``.

The kernel's AST is compiled and run on the device, and compared with NumPy (`reference`). If they
differ, parts of the way from one to the other are turned off, one at a time, until the result is
right:

    path            TGX's own contraction compiler (TGX_FAST=0 leaves it out)
    rule            one rewrite rule of those that fired
    optimisation    one of the decisions UPCAST, UNROLL, …, by applying ever more of them
    emitter row     every operation of the program by itself, in the smallest kernel that has it
    gradient rule   the kernel does what it says, but a derivative in it is wrong

A rule that is needed to compile at all cannot be turned off; it is passed over.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tinygrad.codegen as tg_codegen
from tinygrad import Device, Tensor
from tinygrad.dtype import dtypes
from tinygrad.engine.realize import run_linear
from tinygrad.helpers import Context
from tinygrad.uop.ops import KernelInfo, Ops, ParamArg, UOp

from tgx import settings
from tgx.adapter import reference
from tgx.adapter.extract import rebuild
from tgx.adapter.provenance import Follow, following
from tgx.errors import TgxError
from tgx.model import Trace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """What was found. ``kind`` is "right", one of the kinds above, or "unknown"."""

    kind: str
    name: str = ""
    place: str = ""  # file:line
    text: str = ""
    wrong: str = ""  # what the result looked like
    tried: int = 0

    def __str__(self) -> str:
        if self.kind == "right":
            return "the kernel is right: the device and NumPy agree"
        lines = [f"{self.kind}: {self.name}"]
        lines += [f"  {x}" for x in (self.place, self.text, self.wrong) if x]
        return "\n".join(lines)


def bisect(trace: Trace, kernel: int, device: str = "", say: Say = lambda line: None) -> Verdict:
    """Why one kernel of a trace gives a wrong result here."""
    k = trace.kernel(kernel)
    device = device or k.device.split(",")[0]
    ast = rebuild(trace, kernel, device)
    verdict = bisect_ast(ast, device, say)
    if verdict.kind == "right" and k.phase == "backward":
        say("the kernel does what its AST says; looking at the gradient rules behind it")
        return wrong_gradient(_forward_ops(trace, kernel), device) or verdict
    return verdict


def bisect_ast(ast: UOp, device: str, say: Say = lambda line: None) -> Verdict:
    """Why a kernel gives a wrong result on a device."""
    trial = Trial(ast, device)
    fired: dict[tuple[str, int], None] = {}
    wrong = trial.wrong(heard=fired)
    if not wrong:
        return Verdict("right", tried=trial.count)
    say(f"wrong: {wrong}")
    path = trial.path
    with settings.set_to("TGX_FAST", "0"):
        slow_is_right = device.startswith("TGX") and not trial.wrong()
    if slow_is_right:
        return Verdict(
            "path",
            path or "tile",
            "tgx/devices/contract.py",
            "right with TGX_FAST=0",
            wrong,
            trial.count,
        )
    say(f"turning off {len(fired)} rewrite rules, one at a time")
    # what fires late is nearest to the fault: rules before it may only have led there
    for place in reversed(fired):
        if place[0].endswith(MACHINERY):
            continue
        try:
            if not trial.wrong(skip=(place,)):
                return Verdict(
                    "rule",
                    _rule_name(place),
                    f"{_short(place[0])}:{place[1]}",
                    linecache.getline(*place).strip(),
                    wrong,
                    trial.count,
                )
        except TrialFailed:
            continue
    say("turning off optimisations")
    if found := _wrong_opt(trial):
        return replace(found, wrong=wrong, tried=trial.count)
    say("trying the program's operations by themselves")
    if found := _wrong_row(trial):
        return replace(found, wrong=wrong, tried=trial.count)
    return Verdict(
        "unknown",
        "every rule, optimisation and operation alone is right",
        wrong=wrong,
        tried=trial.count,
    )


# rules of the rewriting itself: substitution, and the compiler of patterns
MACHINERY = (os.path.join("uop", "ops.py"), os.path.join("uop", "upat.py"))


class TrialFailed(TgxError):
    """A variant of the kernel that does not compile or run."""


class Trial:
    """Compiles and runs one kernel in variants, always on the same numbers."""

    def __init__(self, ast: UOp, device: str) -> None:
        self.ast, self.device, self.count = ast, device, 0
        self.renderer = Device[device].renderer
        self.arrays = reference.inputs(ast)
        self.values = {v.expr: int(v.vmax) for v in ast.variables()}
        self.wanted = [a.copy() for a in self.arrays]
        self.written = reference.run(ast, self.wanted, self.values)
        params = {n.arg.slot: n for n in ast.toposort() if n.op is Ops.PARAM and n.arg.slot >= 0}
        self.names = [str(params[s].dtype).removeprefix("dtypes.") for s in sorted(params)]
        self.program: UOp | None = None
        self.path = ""

    def wrong(
        self,
        skip: tuple[Any, ...] = (),
        heard: dict[Any, None] | None = None,
        opts: tuple[Any, ...] | None = None,
        optimise: bool = True,
    ) -> str:
        """What is wrong with a variant's result, "" if nothing."""
        self.count += 1
        ast = self.ast
        if opts is not None:
            ast = ast.replace(arg=replace(ast.arg, opts_to_apply=opts))
        follow = Follow()
        follow.skip = skip
        if heard is not None:
            follow.watch = lambda old, new, fresh, pattern, context: (
                heard.setdefault(pattern.location) if pattern is not None else None
            )
        try:
            with Context(NOOPT=0 if optimise else 1), following(follow):
                program = tg_codegen.do_to_program(ast, self.renderer)
            self.program = program
            self.path = _path(program) or self.path
            return reference.difference(self._run(program), self.wanted, self.written, self.names)
        except Exception as e:
            raise TrialFailed(f"{type(e).__name__}: {str(e)[:200]}") from None

    def _run(self, program: UOp) -> list[Any]:
        tensors = [Tensor(a.copy(), device=self.device).realize() for a in self.arrays]
        call = program.call(*[t.uop.base for t in tensors])
        run_linear(UOp(Ops.LINEAR, src=(call,)), self.values)
        return [t.numpy() for t in tensors]


def _path(program: UOp) -> str:
    from tgx.devices.record import record_of

    record = record_of(program.src[2].arg)
    return record.path if record else ""


def _short(path: str) -> str:
    return "tinygrad/" + path.replace(os.sep, "/").rpartition("tinygrad/")[2]


def _rule_name(place: tuple[str, int]) -> str:
    from tgx.adapter.steps import _rule_text

    text, name = _rule_text(*place)
    return name or text.partition("#")[0][:120]


def _wrong_opt(trial: Trial) -> Verdict | None:
    """The first optimisation that makes the result wrong."""
    try:
        if trial.wrong(opts=()):
            return None
        trial.wrong()
    except TrialFailed:
        return None
    assert trial.program is not None
    applied = tuple(trial.program.src[0].arg.applied_opts)
    for n in range(1, len(applied) + 1):
        try:
            if trial.wrong(opts=applied[:n]):
                opt = applied[n - 1]
                return Verdict(
                    "optimisation",
                    f"{opt.op.name} axis {opt.axis} by {opt.arg}",
                    "tinygrad/codegen/opt/postrange.py",
                    f"right without it: {opt}",
                )
        except TrialFailed:
            continue
    return None


# **** operations alone ****

UNARY = (Ops.EXP2, Ops.LOG2, Ops.SIN, Ops.SQRT, Ops.RECIPROCAL, Ops.NEG, Ops.TRUNC)
BINARY = (Ops.ADD, Ops.SUB, Ops.MUL, Ops.FDIV, Ops.MAX, Ops.CMPLT, Ops.CMPNE, Ops.CMPEQ, Ops.AND,
          Ops.OR, Ops.XOR, Ops.CDIV, Ops.CMOD, Ops.SHL, Ops.SHR)  # fmt: skip


def _wrong_row(trial: Trial) -> Verdict | None:
    """The operation that is wrong in the smallest kernel that has it."""
    assert trial.program is not None
    seen: dict[tuple[Ops, Any, Any], None] = {}
    for n in trial.program.src[1].src:
        if n.op in (*UNARY, *BINARY, Ops.WHERE, Ops.CAST, Ops.MULACC):
            seen[n.op, n.dtype, n.src[0].dtype] = None
    for op, dtype, source in seen:
        if dtype in dtypes.weaks or source in dtypes.weaks:
            continue
        try:
            with settings.set_to("TGX_FAST", "0"):
                alone = Trial(_alone(op, dtype, source), trial.device)
                wrong = alone.wrong(opts=())
        except (TrialFailed, reference.NoReference, RuntimeError, AssertionError):
            continue
        if wrong:
            kind = str(dtype).removeprefix("dtypes.")
            return Verdict(
                "emitter row",
                f"Ops.{op.name} ({kind})",
                _renderer_file(trial.renderer),
                f"wrong in a kernel of this one operation: {wrong}",
            )
    return None


def _renderer_file(renderer: Any) -> str:
    return type(renderer).__module__.replace(".", "/") + ".py"


def _alone(op: Ops, dtype: Any, source: Any, size: int = 64) -> UOp:
    """A kernel of one operation: out[i] = op(a[i], b[i], …)."""
    i = UOp.range(size, 0)

    def param(slot: int, kind: Any) -> UOp:
        return UOp(Ops.PARAM, src=(UOp.const(size),), arg=ParamArg(slot, kind))

    def read(slot: int, kind: Any) -> UOp:
        return param(slot, kind).index(i)

    a = read(1, source)
    if op is Ops.CAST:
        value = a.cast(dtype)
    elif op is Ops.WHERE:
        value = UOp(op, src=(read(1, dtypes.bool), read(2, dtype), read(3, dtype)))
    elif op in UNARY:
        value = UOp(op, src=(a,))
    elif op is Ops.MULACC:
        value = UOp(op, src=(a, read(2, source), read(3, source)))
    else:
        value = UOp(op, src=(a, read(2, source)))
    store = param(0, value.dtype).index(i).store(value).end(i)
    return store.sink(arg=KernelInfo(name=f"only_{op.name.lower()}"))


# **** gradient rules ****

# operation -> (its value, where to try it): each is checked against a central difference
TRY: dict[str, tuple[Callable[..., Any], int, float]] = {
    "EXP2": (lambda t: t.exp2(), 1, 0.1), "LOG2": (lambda t: t.log2(), 1, 0.5),
    "SIN": (lambda t: t.sin(), 1, 0.1), "SQRT": (lambda t: t.sqrt(), 1, 0.5),
    "RECIPROCAL": (lambda t: t.reciprocal(), 1, 0.5),
    "ADD": (lambda a, b: a + b, 2, 0.1), "MUL": (lambda a, b: a * b, 2, 0.1),
    "MAX": (lambda a, b: a.maximum(b), 2, 0.1),
    "POW": (lambda a, b: a.pow(b), 2, 0.5),
    "WHERE": (lambda a, b: (a > 1.0).where(a * 3, b), 2, 0.1),
    "REDUCE": (lambda t: t.sum() * t, 1, 0.1),
    "REDUCE MAX": (lambda t: t.max() * t, 1, 0.1), "REDUCE MUL": (lambda t: t.prod() * t, 1, 0.5),
    "CAST": (lambda t: t.cast(dtypes.float32).cast(dtypes.float32), 1, 0.1),
    "PERMUTE": (lambda t: t.reshape(2, 3).permute(1, 0).reshape(6) * t, 1, 0.1),
    "EXPAND": (lambda t: t.reshape(6, 1).expand(6, 2).sum(1) * t, 1, 0.1),
    "PAD": (lambda t: t.pad(((1, 2),))[2:8] * t, 1, 0.1),
    "SHRINK": (lambda t: t.shrink(((1, 4),)).pad(((0, 3),)) * t, 1, 0.1),
    "FLIP": (lambda t: t.flip(0) * t, 1, 0.1),
    "RESHAPE": (lambda t: t.reshape(3, 2).reshape(6) * t, 1, 0.1),
}  # fmt: skip


def _forward_ops(trace: Trace, kernel: int) -> list[str]:
    """The operations a gradient kernel may differentiate: those of its Tensor graph."""
    k = trace.kernel(kernel)
    lazy = trace.schedule(k.schedule).lazy if k.schedule >= 0 else -1
    if lazy < 0:
        return list(TRY)
    graph = trace.graph(lazy)
    found = dict.fromkeys(graph.ops)
    if "REDUCE" in found:
        args = {
            a.split()[0]
            for op, a in zip(graph.ops, graph.args, strict=True)
            if op == "REDUCE" and a
        }
        found.update(dict.fromkeys(f"REDUCE {a}" for a in args))
    # simple ones first: the examples of the others are made of them
    return [op for op in TRY if op in found] or list(TRY)


def wrong_gradient(ops: list[str], device: str) -> Verdict | None:
    """The first operation whose gradient differs from a finite difference."""
    for op in ops:
        wrong = _gradient_error(op, device)
        if wrong:
            place, text = _gradient_rule(op)
            return Verdict("gradient rule", f"of Ops.{op}", place, text, wrong)
    return None


def _gradient_error(op: str, device: str) -> str:
    function, arity, low = TRY[op]
    random = np.random.default_rng(1)
    # well apart, so that no step of the difference changes which is the greatest
    points = [(low + random.permutation(6) / 3 + 0.11 * n).astype(np.float32) for n in range(arity)]
    tensors = [Tensor(p, device=device) for p in points]
    weights = Tensor(np.arange(1, 7, dtype=np.float32), device=device)
    try:
        grads = function(*tensors).gradient(*tensors, gradient=weights)
        got = [g.numpy() for g in grads]
    except Exception as e:
        return f"it cannot be computed: {type(e).__name__}: {e}"
    step = 1e-2
    for which in range(arity):
        for place in range(6):
            values = []
            for sign in (1, -1):
                moved = [p.copy() for p in points]
                moved[which][place] += sign * step
                out = function(*(Tensor(m, device=device) for m in moved))
                values.append(float((out * weights).sum().item()))
            wanted = (values[0] - values[1]) / (2 * step)
            if abs(wanted - float(got[which][place])) > 2e-2 * max(1.0, abs(wanted)):
                return (
                    f"at {points[which][place]:.4f} the gradient is {got[which][place]:.5f}, "
                    f"a finite difference says {wanted:.5f}"
                )
    return ""


def _gradient_rule(op: str) -> tuple[str, str]:
    """Where the rule for an operation stands."""
    from tinygrad.mixin.gradient import pm_gradient

    wanted = getattr(Ops, op.split()[0])
    for pattern, _ in pm_gradient.patterns:
        if wanted in (pattern.op or ()):
            path, line = pattern.location
            return f"{_short(path)}:{line}", linecache.getline(path, line).strip()
    return "", ""
