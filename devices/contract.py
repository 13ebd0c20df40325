"""The contraction compiler's front door: tinygrad's Scheduler in, a Scheduler with finished IR out.

    recover (recover.py)  ->  plan (plan.py)  ->  emit (emit.py)

What comes back to tinygrad is a kernel of a few UOps: loads of the first element of each input, one
CUSTOM node that holds the LLVM IR, one store. tinygrad reads from it which buffers go in and out;
the renderer finds the CUSTOM node and takes its text. Nothing is left to rewrite, which is most of
what compiling a kernel costs; `program` does not even look.
"""

from __future__ import annotations

import math
import threading

from tinygrad import codegen
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.renderer import Estimates, Renderer
from tinygrad.uop.ops import KernelInfo, Ops, PatternMatcher, ProgramInfo, UOp, UPat, graph_rewrite

from tgx.devices.emit import emit
from tgx.devices.nest import Miss, Nest
from tgx.devices.plan import Machine, Plan, plan
from tgx.devices.points import is_variable
from tgx.devices.record import MARK, PathRecord
from tgx.devices.recover import recover

# Bookkeeping nodes: what is left is arithmetic, counted as tinygrad counts it.
FREE = ("part", "load", "const", "index", "mask", "cast", "bitcast")


class Finished(Scheduler):
    """A Scheduler whose work is done: it hands out the little kernel around the IR."""

    def __init__(self, k: Scheduler, sink: UOp) -> None:
        super().__init__(k.ast, k.ren)
        self.sink = sink

    def get_optimized_ast(self, name_override: str | None = None) -> UOp:
        return self.sink


class Ready(Exception):
    """Ends tinygrad's lowering of a kernel there where its optimizer has handed out the little one.

    Raised by `hand_out`, for `program`.
    """

    def __init__(self, sink: UOp) -> None:
        super().__init__()
        self.sink = sink


class _Here(threading.local):
    hand_over = False  # whether this thread is in `program`


_here = _Here()


def hand_out(finished: Finished) -> Finished:
    if _here.hand_over:
        raise Ready(finished.sink)
    return finished


typed_constants = PatternMatcher(
    [(UPat(Ops.CONST, dtypes.weakint, name="c"), lambda c: UOp.cconst(c.val, dtypes.int))]
)


def program(ast: UOp, renderer: Renderer) -> UOp:
    """`codegen.do_to_program`, whose last thirty passes are left out for a little kernel.

    They change two things in it: variables get numbers after the buffers', and constants the type
    of an index. The result is the very same UOp (a test compares), a third sooner.
    """
    _here.hand_over = True
    try:
        return codegen.do_to_program(ast, renderer)
    except Ready as ready:
        sink = ready.sink
    finally:
        _here.hand_over = False
    sink = graph_rewrite(sink, typed_constants, walk=True)
    buffers = sum(u.op is Ops.PARAM and u.arg.slot != -1 for u in sink.toposort())
    sink = graph_rewrite(sink, codegen.pm_number_params, ctx=[buffers], walk=True)
    lowered = UOp(Ops.PROGRAM, src=(sink,), arg=ProgramInfo.from_sink(sink, renderer.target))
    return graph_rewrite(lowered, codegen.pm_to_program, ctx=renderer)


def estimates(nest: Nest) -> Estimates:
    """Operations and bytes, by tinygrad's rules, for the nest as it is run."""
    outs = math.prod(a.size for a in nest.axes if a.out)
    points = outs * math.prod(a.size for a in nest.axes if not a.out)
    red = nest.reduction
    inside = set(red.src[0].walk()) if red is not None else set()
    ops = sum(
        (points if n in inside or n is red else outs) for n in nest.value.walk() if n.op not in FREE
    )
    lds, mem = outs * nest.store.dtype.itemsize, {}
    for n in nest.value.walk():
        if n.op == "load":
            count = (points if n in inside else outs) * n.arg.dtype.itemsize
            lds += count
            mem[n.arg.slot] = min(mem.get(n.arg.slot, 0) + count, n.arg.size * n.arg.dtype.itemsize)
    own = Estimates(ops, lds, sum(mem.values()) + outs * nest.store.dtype.itemsize)
    return sum((estimates(p) for p in nest.parts), own)


def variables(ast: UOp) -> list[UOp]:
    """The variables of a kernel, by name."""
    found = {x.expr: x for x in ast.toposort() if is_variable(x)}
    return [found[name] for name in sorted(found)]


def finished(k: Scheduler, name: str, plan: Plan, text: str) -> Finished:
    """The little kernel: every input read once, the IR, the output written once."""
    params = {
        x.arg.slot: x
        for x in k.ast.toposort()
        if x.op is Ops.PARAM and x.addrspace is AddrSpace.GLOBAL
    }
    zero = UOp.const(0, dtypes.weakint)
    inputs = {
        n.arg.slot
        for nest in (plan.nest, *plan.nest.parts)
        for n in nest.value.walk()
        if n.op == "load"
    }
    loads = tuple(params[s].index(zero).load() for s in sorted(inputs))
    chunk = (
        (UOp.variable("core_id", 0, plan.chunks - 1, dtypes.int, param=True),)
        if plan.chunks > 1
        else ()
    )
    # a variable that is left is an index's; the IR finds them in this order, after the buffers
    symbols = tuple(
        UOp.variable(x.expr, int(x.vmin), int(x.vmax), dtypes.int, param=True)
        for x in variables(k.ast)
    )
    # buffers that recovery proved unused are still arguments of the call: keep them mentioned
    unused = tuple(
        p.index(zero).load()
        for s, p in sorted(params.items())
        if s not in inputs and s != plan.nest.store.slot
    )
    out = params[plan.nest.store.slot]
    code = UOp(Ops.CUSTOM, out.dtype, loads + unused + symbols + chunk, text)
    sink = UOp.sink(
        out.index(zero).store(code), arg=KernelInfo(name=name, estimates=estimates(plan.nest))
    )
    return Finished(k, sink.rtag(1))


def optimize(k: Scheduler, machine: Machine) -> Finished:
    """The tile path for one kernel. Raises Miss with the reason where it does not apply."""
    nest = recover(k.ast)
    if not k.ren.compiler.has_half and any(n.dtype is dtypes.half for n in nest.value.walk()):
        raise Miss("this CPU cannot convert half")
    chosen = plan(nest, machine)
    override = k.ast.arg.name if k.ast.arg is not None and k.ast.arg.name != "test" else None
    name = k.copy().get_optimized_ast(override).arg.name
    slots = tuple(
        sorted(
            {
                x.arg.slot
                for x in k.ast.toposort()
                if x.op is Ops.PARAM and x.addrspace is AddrSpace.GLOBAL
            }
        )
    )
    record = PathRecord("tile", tile=str(chosen), nest=str(chosen.nest)[:2000])
    function = KernelInfo(name=name).function_name
    names = tuple(x.expr for x in variables(k.ast))
    return finished(k, name, chosen, record.line() + "\n" + emit(chosen, function, slots, names))


def text_of(uops: list[UOp]) -> str | None:
    """The IR that `optimize` left in a linearized kernel, for the renderer."""
    return next(
        (
            u.arg
            for u in uops
            if u.op is Ops.CUSTOM and isinstance(u.arg, str) and u.arg.startswith(MARK)
        ),
        None,
    )
