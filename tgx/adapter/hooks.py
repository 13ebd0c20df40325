"""What a recording changes in tinygrad, and how each of it is put back.

Every function of `PATCHES` takes a session, replaces some attributes of tinygrad's by ones that
tell the session what happens, and returns what undoes it. Nothing else in tgx changes tinygrad for
a recording, and nothing stays changed after it.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tinygrad.codegen as tg_codegen
import tinygrad.device as tg_device
import tinygrad.engine.jit as tg_jit
import tinygrad.engine.realize as tg_realize
import tinygrad.mixin.gradient as tg_gradient
import tinygrad.schedule as tg_schedule
import tinygrad.tensor as tg_tensor
from tinygrad.function import _function
from tinygrad.uop.ops import Ops, PatternMatcher, UOp

from tgx import model
from tgx.adapter import compiling
from tgx.adapter.origins import MARK, WALK, GradientMarks
from tgx.adapter.provenance import Follow, following

if TYPE_CHECKING:
    from tgx.adapter.capture import Session

Undo = Callable[[], None]

current: Session | None = None
"""The recording in progress."""


def install(session: Session) -> Undo:
    """Puts all of PATCHES in; the result takes them out."""
    global current
    undos: list[Undo] = []

    def undo() -> None:
        global current
        current = None
        while undos:
            undos.pop()()

    current = session
    try:
        for patch in PATCHES:
            undos.append(patch(session))
    except BaseException:
        undo()
        raise
    return undo


def _leave() -> None:
    if current is not None:
        current.leave()


os.register_at_fork(after_in_child=_leave)


def replace_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Sets an attribute; the result puts the old one back."""
    before = vars(owner)[name]
    setattr(owner, name, value)

    def undo() -> None:
        setattr(owner, name, before)

    return undo


def _both(*undos: Undo) -> Undo:
    def undo() -> None:
        for u in reversed(undos):
            u()

    return undo


def mark_tensors(s: Session) -> Undo:
    """Every UOp a Tensor method makes carries its line."""
    Tensor, mark = tg_tensor.Tensor, s.marker.mark
    plain_apply, plain_init, plain_assign = Tensor._apply_uop, Tensor.__init__, Tensor.assign

    @functools.wraps(plain_apply)
    def _apply_uop(self: Any, fxn: Any, *x: Any, **kwargs: Any) -> Any:
        result = plain_apply(self, fxn, *x, **kwargs)
        node = result.uop
        if MARK not in node.__dict__:
            mark(node)
        elif node is not self.uop:
            mark(node, known=(self.uop, *(t.uop for t in x)))
        return result

    @functools.wraps(plain_init)
    def __init__(self: Any, data: Any, *args: Any, **kwargs: Any) -> None:
        plain_init(self, data, *args, **kwargs)
        if MARK not in self.uop.__dict__ or self.uop.op is Ops.CAST:
            mark(self.uop)

    @functools.wraps(plain_assign)
    def assign(self: Any, x: Any) -> Any:
        result = plain_assign(self, x)
        if MARK not in self.uop.__dict__:
            mark(self.uop, op="assign")
        return result

    return _both(
        replace_attribute(Tensor, "_apply_uop", _apply_uop),
        replace_attribute(Tensor, "__init__", __init__),
        replace_attribute(Tensor, "assign", assign),
    )


def mark_gradients(s: Session) -> Undo:
    """Gradient nodes carry their forward node's line."""
    return replace_attribute(
        tg_gradient, "all_metadata", GradientMarks(tg_gradient.all_metadata, s.marker)
    )


def keep_marks(s: Session) -> Undo:
    """Marks survive tinygrad putting buffers into its Tensors' graphs."""
    plain = tg_tensor._apply_map_to_tensors

    def _apply_map_to_tensors(applied_map: dict[UOp, UOp], name: str) -> None:
        follow = Copying()
        with following(follow):
            plain(applied_map, name)

    plain_call = _function.__call__

    @functools.wraps(plain_call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with following(Copying()):  # a @function's inputs become parameters
            return plain_call(self, *args, **kwargs)

    return _both(
        replace_attribute(tg_tensor, "_apply_map_to_tensors", _apply_map_to_tensors),
        replace_attribute(_function, "__call__", __call__),
    )


class Copying(Follow):
    """Marks themselves are carried along, on the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[UOp] = []  # a rebuilt node dies with its mark if nobody holds it yet

    def rebuilt(self, old: UOp, new: UOp) -> None:
        for name in (MARK, WALK):
            if (marks := old.__dict__.get(name)) is not None:
                new.__dict__.setdefault(name, marks)
                self.held.append(new)

    def matched(self, old: UOp, new: UOp, pattern: Any, context: Any) -> None:
        self.rebuilt(old, new)


def follow_schedules(s: Session) -> Undo:
    plain_call, plain_create = tg_tensor.transform_to_call, tg_tensor.create_linear_with_vars
    plain_lower = tg_schedule.lower_sink_to_linear
    plain_pm = tg_schedule.pm_schedule

    def transform_to_call(big_sink: UOp) -> Any:
        return s.call_made(big_sink, plain_call)

    def create_linear_with_vars(big_sink: UOp) -> Any:
        return s.scheduled(big_sink, plain_create)

    watched = PatternMatcher(
        [(p, lower_sink_to_linear if f is plain_lower else f) for p, f in plain_pm.patterns]
    )
    return _both(
        replace_attribute(tg_tensor, "transform_to_call", transform_to_call),
        replace_attribute(tg_tensor, "create_linear_with_vars", create_linear_with_vars),
        replace_attribute(tg_schedule, "pm_schedule", watched),
    )


def lower_sink_to_linear(function: UOp) -> UOp | None:
    """tinygrad's rule of the same name, followed while a session records."""
    return _watched_lower(function)


def _watched_lower(function: UOp) -> UOp | None:
    if current is None:
        return tg_schedule.lower_sink_to_linear(function)
    return current.lower(function, tg_schedule.lower_sink_to_linear)


def follow_jit(s: Session) -> Undo:
    plain_lower, plain_add = tg_jit.jit_lower, tg_jit._TinyJit.add_linear
    s.jit_parts = []

    def jit_lower(linear: UOp, held_bufs: set[UOp], input_uops: list[UOp]) -> UOp:
        lowered = plain_lower(linear, held_bufs, input_uops)
        try:
            s.jit_lowered(linear, lowered)
        except Exception as e:
            s._fault("jit", e)
        return lowered

    def add_linear(self: Any, linear: UOp, var_vals: dict[str, int]) -> None:
        s.jit_linear = linear
        plain_add(self, linear, var_vals)

    return _both(
        replace_attribute(tg_jit, "jit_lower", jit_lower),
        replace_attribute(tg_jit._TinyJit, "add_linear", add_linear),
    )


def time_kernels(s: Session) -> Undo:
    plain_stats = tg_realize.track_stats

    def timed(module: Any) -> Undo:
        """Each module's own `run_linear`: on TGX, captured steps have a shorter one."""
        plain = module.run_linear

        @functools.wraps(plain)
        def run_linear(linear: UOp, *args: Any, **kwargs: Any) -> Any:
            return s.run(plain, linear, *args, **kwargs)

        return replace_attribute(module, "run_linear", run_linear)

    def track_stats(ctx: Any, call: UOp, st: Any, ets: list[float | None]) -> None:
        try:
            s.launched(ctx, call, st, ets)
        except Exception as e:
            s._fault("launch", e)
        plain_stats(ctx, call, st, ets)

    return _both(
        timed(tg_realize),
        timed(tg_tensor),
        timed(tg_jit),
        replace_attribute(tg_realize, "track_stats", track_stats),
    )


def watch_compiling(s: Session) -> Undo:
    plain = tg_realize.lower_and_compile
    of_tgx: list[Undo] = []

    def observing(build: compiling.Build) -> compiling.Build:
        return compiling.observing(build, s.level, s.compiled)

    def watch_tgx() -> Undo:
        """TGX's own shorter way from a kernel to its program, and what LLVM makes of it."""
        from tgx.devices import compiler, contract

        plain_optimized = compiler.TGXCompiler.optimized

        @contextmanager
        def optimized(self: Any, source: str) -> Iterator[tuple[Any, Any]]:
            with plain_optimized(self, source) as (module, machine):
                s.recorder.optimized[source] = module.as_bitcode()
                yield module, machine

        return _both(
            replace_attribute(contract, "program", observing(contract.program)),
            replace_attribute(compiler.TGXCompiler, "optimized", optimized),
        )

    def lower_and_compile(linear: UOp) -> UOp:
        if not of_tgx and "tgx.devices.renderer" in sys.modules:  # the device has been opened
            of_tgx.append(watch_tgx())
        started = s.now()
        result = plain(linear)
        if result is not linear:
            s.events.append(
                model.Event("compile", f"{len(linear.src)} kernels", started, s.now() - started)
            )
        return result

    s.spool.mkdir(exist_ok=True)
    in_worker = functools.partial(compiling.compile_kernel, str(s.spool), s.level, os.getpid())
    undo = _both(
        replace_attribute(tg_realize, "lower_and_compile", lower_and_compile),
        replace_attribute(tg_realize, "_compile_kernel", in_worker),
        replace_attribute(tg_codegen, "do_to_program", observing(tg_codegen.do_to_program)),
    )
    return lambda: _both(undo, *of_tgx)()


def watch_memory(s: Session) -> Undo:
    Buffer = tg_device.Buffer
    plain_allocate, plain_free = Buffer.allocate, Buffer.deallocate

    @functools.wraps(plain_allocate)
    def allocate(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain_allocate(self, *args, **kwargs)
        if self._base is None and not self.device.startswith(("DISK", "NPY", "PYTHON")):
            s.memory_changed(self, self.nbytes)
        return result

    @functools.wraps(plain_free)
    def deallocate(self: Any) -> None:
        plain_free(self)
        if self._base is None and not self.device.startswith(("DISK", "NPY", "PYTHON")):
            s.memory_changed(self, -self.nbytes)

    return _both(
        replace_attribute(Buffer, "allocate", allocate),
        replace_attribute(Buffer, "deallocate", deallocate),
    )


@contextmanager
def scheduled_calls(made: dict[int, UOp]) -> Iterator[None]:
    """Which CALL of the kernel graph each call of `create_schedule`'s list was made from, by its
    place."""
    plain = UOp.call
    inside = tg_schedule.create_schedule.__code__

    def call(self: UOp, *args: Any, **kwargs: Any) -> UOp:
        caller = sys._getframe(1)
        if caller.f_code is inside:
            scope = caller.f_locals
            made[len(scope["linearized"])] = scope["k"]
        return plain(self, *args, **kwargs)

    UOp.call = call
    try:
        yield
    finally:
        UOp.call = plain


PATCHES: tuple[Callable[[Session], Undo], ...] = (
    mark_tensors,
    mark_gradients,
    keep_marks,
    follow_schedules,
    follow_jit,
    time_kernels,
    watch_compiling,
    watch_memory,
)
"""Everything a recording changes in tinygrad, in the order it is put in; undone in reverse."""
