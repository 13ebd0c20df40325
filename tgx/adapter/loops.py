"""Loop nests: a kernel's loops before and after each optimisation.

tinygrad applies a list of Opts to a kernel's AST, all at once from outside. Here they are applied
again one at a time, and the loops written down in between. The replay is checked: it has to end in
the AST tinygrad compiled.
"""

from __future__ import annotations

from typing import Any

from tinygrad.codegen.opt import Opt
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.uop.ops import AxisType, Ops, UOp

from tgx import model

KINDS = {
    AxisType.GLOBAL: "global", AxisType.THREAD: "thread", AxisType.LOCAL: "local",
    AxisType.WARP: "warp", AxisType.WEAK: "loop", AxisType.LOOP: "loop",
    AxisType.REDUCE: "reduce", AxisType.GROUP_REDUCE: "group_reduce",
    AxisType.UPCAST: "upcast", AxisType.UNROLL: "unroll", AxisType.DEVICE: "device",
    AxisType.PLACEHOLDER: "loop",
}  # fmt: skip

SENTENCES = {
    "UPCAST": "{amount} elements of {axis} at once, in a vector or in registers",
    "UNROLL": "{amount} steps of the reduction {axis} written out",
    "LOCAL": "{amount} threads of one group share {axis}",
    "THREAD": "{axis} divided among {amount} threads",
    "GROUP": "{amount} threads reduce {axis} together, each a stretch of it",
    "GROUPTOP": "{amount} threads reduce {axis} together, interleaved",
    "NOLOCALS": "no groups of threads",
    "TC": "tensor cores multiply {axis}",
    "PADTO": "{axis} padded to a multiple of {amount}",
    "SWAP": "{axis} changes places with axis {amount}",
}


def nest(scheduler: Scheduler) -> tuple[model.Loop, ...]:
    """The loops of a kernel, outermost first."""
    names = scheduler.shape_str()
    out = []
    for name, r in zip(names, scheduler.rngs, strict=True):
        size = r.src[0]
        text = str(size.arg) if size.op is Ops.CONST else size.render()
        out.append(model.Loop(name, text, KINDS[r.arg[-1]]))
    return tuple(out)


def replay(
    ast: UOp, renderer: Any, opts: tuple[Opt, ...]
) -> tuple[tuple[model.Opt, ...], tuple[model.Loop, ...], UOp | None]:
    """(opts with the loops around each, the final loops, the AST they give) of a kernel."""
    scheduler = Scheduler(ast, renderer)
    scheduler.convert_loop_to_global()
    steps = []
    for opt in opts:
        before = nest(scheduler)
        names = scheduler.shape_str()
        axis = -1
        try:
            axis = scheduler.real_axis(opt.op, opt.axis) if opt.axis is not None else -1
        except Exception:  # an axis only this Opt's own code understands
            axis = -1
        scheduler.apply_opt(opt)
        amount = opt.arg if isinstance(opt.arg, int) else 0
        label = names[axis] if 0 <= axis < len(names) else "the kernel"
        if amount == 0 and 0 <= axis < len(before) and before[axis].size.isdigit():
            amount = int(before[axis].size)  # 0 means the whole axis
        text = SENTENCES.get(opt.op.name, "{axis} {amount}").format(axis=label, amount=amount)
        steps.append(model.Opt(opt.op.name, axis, amount, text, before, nest(scheduler)))
    return tuple(steps), nest(scheduler), scheduler.ast


__all__ = ["nest", "replay"]
