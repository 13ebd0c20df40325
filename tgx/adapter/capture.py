"""Recording a run: `tgx trace`, ``TGX_TRACE=dir`` and ``with tgx.trace():`` all start a `Session`
here.

What it does while the program runs is little: marks on new UOps (`origins`), one pass over each
realized graph, a note per kernel launch. The first time the scheduler meets a graph it is followed
(`provenance`, `boundaries`) and becomes a *template*; every later graph of the same structure only
brings its own origins to it.

tinygrad is changed only between `start` and `stop`, by the rows of `PATCHES`, each of which is put
back.
"""

from __future__ import annotations

import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tinygrad.codegen as tg_codegen
import tinygrad.device as tg_device
import tinygrad.engine.jit as tg_jit
import tinygrad.engine.realize as tg_realize
import tinygrad.mixin.gradient as tg_gradient
import tinygrad.schedule as tg_schedule
import tinygrad.tensor as tg_tensor
from tinygrad.function import _function
from tinygrad.helpers import SCACHE
from tinygrad.uop.ops import KernelInfo, Ops, PatternMatcher, UOp, UOpMetaClass

from tgx import codec, model, settings
from tgx.adapter import boundaries, compat, names, steps
from tgx.adapter.boundaries import Decision, Decisions
from tgx.adapter.origins import MARK, GradientMarks, Marker, Marks
from tgx.adapter.provenance import Follow, Tokens, data_nodes, following
from tgx.adapter.writing import Recorder, program_folder
from tgx.errors import TgxError

MOST_RUNS = 50_000  # launches kept one by one; all are counted
TIMED_JIT_CALLS = 64  # executions of a jitted graph that are run kernel by kernel, to time each
FLUSH_EVERY = 2.0  # seconds between writes of the launches


class TraceRunning(TgxError):
    """A second trace was started while one records."""


# **** what the scheduler made of one structure ****


@dataclass
class TemplateKernel:
    """One CALL of a template: its AST, what each AST node came from, its arguments."""

    ast: UOp
    notes: list[Tokens]
    args: tuple[UOp, ...]
    writes: tuple[int, ...]  # places in args
    reads: tuple[int, ...]


@dataclass
class Template:
    """One structure of graph and the kernels it becomes; serves every graph with the same key."""

    key: bytes
    kernels: list[TemplateKernel | Template]
    decisions: list[Decision]
    stage_of: dict[UOp, int]  # BUFFER -> place in decisions
    size: int  # nodes of the graph
    structure: tuple[Any, ...] = ()
    rewrites: steps.StepRecorder | None = None  # until they are written


@dataclass
class Lowered:
    """A template together with the origins this graph brings to it."""

    template: Template
    origins: tuple[Marks, ...]
    function: UOp | None
    hit: bool
    outputs: dict[int, str] = field(default_factory=dict)


@dataclass
class Plan:
    """What a linear will run: for each of its calls, the kernel's id (or -1)."""

    schedules: list[int]
    kernels: list[int]
    runs: int = 0
    jit: bool = False
    expanded: UOp | None = None
    realizes: list[int] = field(default_factory=list)


class Session:
    """One recording. ``start``, run the program, ``stop``."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        level: str = "kernels",
        program: str = "",
        arguments: tuple[str, ...] = (),
        prove: bool = False,
    ) -> None:
        compat.check()
        if wrong := boundaries.missing_lines():
            raise compat.refusal("a tinygrad whose scheduler differs: " + "; ".join(wrong))
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tgx-trace-")
            folder = self._temporary.name
        self.folder = Path(folder)
        self.level = level
        self.prove = prove  # every boundary, at the end: a replay for each
        self.marker = Marker()
        self.began = 0.0
        self.running = False
        self.program = program
        name = Path(program).name if os.path.isabs(program) else program
        self.environment = model.Environment(
            program=name, arguments=arguments, level=level, **_facts()
        )
        self.templates: dict[bytes, Template] = {}
        self.schedules: dict[tuple[Any, ...], int] = {}
        self.plans: dict[UOp, Plan] = {}
        self.lowering: list[list[Lowered]] = []
        self.outputs: dict[int, str] = {}
        self.executing: list[tuple[Plan | None, int]] = []
        self.repeats: dict[int, int] = {}
        self.times: dict[int, list[float]] = {}
        self.run_count = 0
        self.untimed = 0
        self.pending_runs: list[tuple[str, Any]] = []
        self.flushed = 0.0
        self.memory: list[model.MemoryEvent] = []
        self.memory_used: dict[str, int] = {}
        self.buffer_names: dict[int, str] = {}
        self.events: list[model.Event] = []
        self.failed: list[str] = []
        self.fragments: dict[str, model.Trace] = {}  # by the key of the program they are about
        self._undo: list[Callable[[], None]] = []

    # **** starting and stopping ****

    def start(self) -> Session:
        global _session
        if _session is not None:
            raise TraceRunning(
                "a trace is already being recorded",
                "one at a time",
                "end the first: leave its `with`, or unset TGX_TRACE",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = open(  # noqa: SIM115  (open for as long as the recording)
            self.folder / codec.FILE_NAME, "w", encoding="utf-8", newline="\n"
        )
        self.recorder = Recorder(
            codec.Writer(self.out),
            self.marker.origins,
            self.environment,
            program_folder(self.program),
        )
        self.began = time.perf_counter()
        self.running = True
        _session = self
        self._mark_what_exists()
        try:
            for patch in PATCHES:
                self._undo.append(patch(self))
        except BaseException:
            self._restore()
            _session = None
            raise
        return self

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def stop(self, ended: str = "ok", error: str = "", exit_code: int = 0) -> None:
        """Puts tinygrad back as it was and completes the file."""
        global _session
        if not self.running:
            return
        self.running = False
        self._restore()
        _session = None
        self._flush_runs()
        try:
            self.recorder.finish(self, ended, error, exit_code)
        finally:
            self.out.close()

    def _mark_what_exists(self) -> None:
        """What was built before the trace began comes from no line of it; the marks that an earlier
        trace left on what is still alive are numbers of that trace's own."""
        for alive in list(UOpMetaClass.ucache.values()):
            if (old := alive()) is not None:
                old.__dict__.pop(MARK, None)
        unknown = self.marker.origins.unknown
        for ref in list(tg_tensor.all_tensors):
            tensor = ref()
            if tensor is None:
                continue
            for node in tensor.uop.toposort(gate=lambda n: MARK not in n.__dict__):
                node.__dict__[MARK] = (unknown,)

    def now(self) -> float:
        """Microseconds since the recording began."""
        return (time.perf_counter() - self.began) * 1e6

    @property
    def spool(self) -> Path:
        """Where worker processes leave what they observe."""
        return self.folder / "spool"

    def received(self, fragment: model.Trace) -> None:
        """A kernel was compiled in this process."""
        for p in fragment.programs:
            self.fragments[p.key] = fragment

    # **** scheduling ****

    def call_made(self, big_sink: UOp, original: Callable[[UOp], Any]) -> Any:
        """`transform_to_call`: from the Tensor graph to the graph the scheduler is given."""
        marker = self.marker
        for node in big_sink.toposort(gate=lambda n: MARK not in n.__dict__):
            # sums of gradients are made without a Tensor method; they belong to what they add
            marks = marker._from_gradients(node)
            if not marks:
                marks = next((m for s in node.src if (m := s.__dict__.get(MARK))), ())
            if marks:
                node.__dict__[MARK] = marks
        follow = Follow(marks=True)
        asked = marker.origins.here(3)
        stores: dict[UOp, str] = {}
        follow.watch = functools.partial(self._output_rule, follow, stores)
        follow.carried.append(stores)
        with following(follow):
            call, becomes = original(big_sink)
        for old, new in becomes.items():
            if (marks := old.__dict__.get(MARK)) is not None:
                for node in new.toposort(gate=lambda n: MARK not in n.__dict__):
                    node.__dict__[MARK] = marks
        self.transformed = follow, stores, asked
        return call, becomes

    def _output_rule(
        self,
        follow: Follow,
        stores: dict[UOp, str],
        old: UOp,
        new: UOp,
        fresh: list[UOp],
        pattern: Any,
        context: Any,
    ) -> None:
        """Tells outputs somebody realizes from those a ``.contiguous()`` or an assign stores."""
        if context.name == "early transform tensor graph":
            if old.op is not Ops.CONTIGUOUS and new.op is Ops.CONTIGUOUS:
                stores[new] = "realize" if old.op is not Ops.AFTER else "assign"
            elif old.op is Ops.CONTIGUOUS:
                why = stores.get(old, "contiguous")
                for n in fresh:
                    if n.op in (Ops.STORE, Ops.CONTIGUOUS):
                        stores[n] = why
        elif old in stores:
            stores.setdefault(new, stores[old])

    def lower(self, function: UOp, original: Callable[[UOp], UOp | None]) -> UOp | None:
        """`lower_sink_to_linear`: a graph becomes kernels, or comes out of tinygrad's cache."""
        if isinstance(function.arg, KernelInfo):
            return original(function)
        key = function.key
        template = self.templates.get(key)
        hit = bool(SCACHE) and key in tg_schedule.schedule_cache
        if template is None:
            linear, template = self._follow_scheduler(function, original, hit)
            self.templates[key] = template
        else:
            linear = original(function)
        if self.lowering:
            follow, stores, _ = self.transformed
            nodes = list(function.toposort())
            origins = tuple(follow.get(n) or () for n in nodes)
            outputs = {i: why for i, n in enumerate(nodes) if (why := stores.get(n))}
            self.lowering[-1].append(Lowered(template, origins, function, hit, outputs))
        return linear

    def _follow_scheduler(
        self, function: UOp, original: Callable[[UOp], UOp | None], hit: bool
    ) -> tuple[UOp | None, Template]:
        nodes = list(function.toposort())
        rewrites = steps.StepRecorder() if self.level == "full" else None
        follow = Follow(recorder=rewrites)
        follow.layers[0] = {n: (i,) for i, n in enumerate(nodes)}
        decisions = Decisions(follow)
        made: dict[int, UOp] = {}
        with following(follow), boundaries.deciding(decisions), _scheduled_calls(made):
            if hit:  # tinygrad has it from before the recording began: schedule it once more
                linear: UOp | None = tg_schedule.create_schedule(
                    tg_schedule.get_kernel_graph(function)
                )
            else:
                linear = original(function)
        assert linear is not None
        kernels: list[TemplateKernel | Template] = []
        for place, call in enumerate(linear.src):
            kernels.append(self._template_kernel(call, made.get(place), follow))
        template = Template(
            function.key,
            kernels,
            decisions.found,
            dict(follow.stages),
            len(nodes),
            flatten_graph(nodes),
            rewrites,
        )
        return (original(function) if hit else linear), template

    def _template_kernel(
        self, call: UOp, made: UOp | None, follow: Follow
    ) -> TemplateKernel | Template:
        ast = call.src[0]
        if ast.op is Ops.LINEAR:  # a precompiled function, scheduled before
            for template in self.templates.values():
                if len(template.kernels) == len(ast.src) and all(
                    isinstance(k, TemplateKernel) and k.ast is c.src[0]
                    for k, c in zip(template.kernels, ast.src, strict=True)
                ):
                    return template
        notes = follow.calls.get(made) if made is not None else None
        if notes is None:  # a hand-written kernel: its CALL is what the user wrote
            own = follow.get(made) if made is not None else None
            notes = [own or ()] * len(ast.toposort())
        writes, reads = _accesses(ast)
        return TemplateKernel(ast, notes, call.src[1:], writes, reads)

    def scheduled(self, big_sink: UOp, original: Callable[..., Any]) -> Any:
        """`create_linear_with_vars`: the whole way from a graph to a list of calls."""
        self.lowering.append([])
        started = self.now()
        try:
            linear, var_vals = original(big_sink)
            lowered = self.lowering[-1]
        finally:
            self.lowering.pop()
        if not lowered:
            return linear, var_vals
        try:
            self._note_schedule(big_sink, linear, lowered, started)
        except Exception as e:  # a fault of ours must not become the program's
            self._fault("schedule", e)
        return linear, var_vals

    def _fault(self, what: str, error: Exception) -> None:
        if settings.traceback():
            raise error
        self._say_once(f"tgx could not record a {what}: {type(error).__name__}: {error}")

    def _say_once(self, text: str) -> None:
        """Something the trace lacks, for the reader."""
        if text not in self.failed:
            self.failed.append(text)

    def _note_schedule(
        self, big_sink: UOp, linear: UOp, all_lowered: list[Lowered], started: float
    ) -> None:
        lowered = all_lowered[-1]
        _, _, asked = self.transformed
        captured = tg_realize.capturing and not linear.src
        calls = self.jit_linear.src if captured else linear.src
        identity = (lowered.template.key, lowered.origins, asked, bool(captured))
        schedule = self.schedules.get(identity)
        if schedule is None:
            kernels = list(_flat(lowered.template, self.templates))
            arguments = names.arguments(big_sink.src[1:], sys._getframe(1), self.marker.origins)
            jit = _jit_name() if captured else ""
            schedule = self.recorder.schedule(all_lowered, kernels, calls, asked, arguments, jit)
            self.schedules[identity] = schedule
            for low in all_lowered:
                if (rewrites := low.template.rewrites) is not None:
                    low.template.rewrites = None
                    self.recorder.bundle(
                        steps.joined(self.recorder, rewrites.records(str, {}), schedule=schedule)
                    )
        else:
            self.recorder.hit(schedule)
        if lowered.hit:
            self.recorder.cache_hit(schedule)
        ids = self.recorder.kernels_of(schedule)
        if len(ids) != len(calls):
            self._say_once(
                f"{self.recorder.schedule_name(schedule)}: of {len(calls)} calls, "
                f"{len(calls) - len(ids)} inside functions of the scheduler's own (sums over "
                f"several devices) are not shown, and its kernels were not timed"
            )
            ids = [-1] * len(calls)
        plan = Plan([schedule], ids)
        if captured:
            self.jit_parts.append((plan, calls))
        else:
            self.plans[linear] = plan
        self.events.append(
            model.Event(
                "schedule",
                self.recorder.schedule_name(schedule),
                started,
                self.now() - started,
                self.recorder.frame_of(asked),
            )
        )

    # **** TinyJit ****

    jit_linear: UOp
    jit_parts: list[tuple[Plan, tuple[UOp, ...]]]

    def jit_lowered(self, linear: UOp, lowered: UOp) -> None:
        """`jit_lower`: several captured lists of calls became one, planned together."""
        by_call: dict[UOp, list[int]] = {}
        schedules: list[int] = []
        for plan, calls in self.jit_parts:
            schedules += plan.schedules
            for kernel, call in zip(plan.kernels, calls, strict=True):
                by_call.setdefault(call, []).append(kernel)
        kernels = [ids.pop(0) if (ids := by_call.get(call)) else -1 for call in linear.src]
        expanded = _expanded(lowered)
        if len(expanded.src) != len(kernels):
            kernels = [-1] * len(expanded.src)
        self.recorder.planned(kernels, expanded.src)
        self.plans[lowered] = Plan(schedules, kernels, jit=True, expanded=expanded)
        self.jit_parts = []

    # **** running ****

    def run(self, original: Callable[..., Any], linear: UOp, *args: Any, **kwargs: Any) -> Any:
        """`run_linear`, with each kernel timed."""
        plan = self.plans.get(linear)
        kwargs["wait"] = True
        if plan is not None and plan.jit and plan.expanded is not None:
            plan.runs += 1
            if plan.runs <= TIMED_JIT_CALLS:
                linear = plan.expanded
            elif plan.expanded is not linear:
                self.untimed += 1
                kwargs["wait"] = False
                plan = None
        started = self.now()
        plan = plan if plan is not None else None
        if plan is not None:
            plan.realizes = [
                self.recorder.realize(s, started, self.repeats) for s in plan.schedules
            ]
        self.executing.append((plan, 0))
        try:
            return original(linear, *args, **kwargs)
        finally:
            self.executing.pop()
            if plan is not None:
                ended = self.now()
                for realize in plan.realizes:
                    self.recorder.realized(realize, ended)
                if not plan.jit:
                    self.plans.pop(linear, None)
            if self.recorder.fresh:
                self.recorder.flush()
            if time.perf_counter() - self.flushed > FLUSH_EVERY:
                self._flush_runs()

    def launched(self, ctx: Any, call: UOp, st: Any, ets: list[float | None]) -> None:
        """`track_stats`: one call of a linear has been executed."""
        if not self.executing:
            return
        plan, place = self.executing[-1]
        ended = self.now()
        # a call launches one kernel, on each of its devices; with HCQ2, a list of kernels
        several = call.src[0].op is Ops.CUSTOM_FUNCTION and call.src[0].arg == "hcq"
        self.executing[-1] = plan, place + (len(ets) if several else 1)
        for n, et in enumerate(ets or [None]):
            at = place + n if several else place
            if plan is None or at >= len(plan.kernels):
                return
            kernel = plan.kernels[at]
            if kernel < 0:
                continue
            took = ended - (float(st) - self.began * 1e6)
            time_us, clock = (et * 1e6, "device") if et is not None else (took, "host")
            if call.src[0].op is Ops.PROGRAM:
                self.recorder.program(kernel, call.src[0], ctx.var_vals)
            self.times.setdefault(kernel, []).append(time_us)
            self.run_count += 1
            if self.run_count <= MOST_RUNS:
                realize = (
                    plan.realizes[-1]
                    if len(plan.realizes) == 1
                    else next((r for r in plan.realizes if self.recorder.owns(r, kernel)), -1)
                )
                self.pending_runs.append(
                    ("runs", model.Run(kernel, max(0.0, ended - took), time_us, realize, clock))
                )

    def _flush_runs(self) -> None:
        self.flushed = time.perf_counter()
        if self.pending_runs:
            self.recorder.bundle(self.pending_runs)
            self.pending_runs = []

    def timings(self) -> Iterator[model.Timing]:
        for kernel, times in self.times.items():
            yield model.Timing(kernel, len(times), sum(times), min(times), statistics.median(times))

    # **** memory ****

    def memory_changed(self, buffer: Any, nbytes: int) -> None:
        device = buffer.device
        used = self.memory_used.get(device, 0) + nbytes
        self.memory_used[device] = used
        if len(self.memory) < MOST_RUNS:
            kernel = -1
            if self.executing and (plan := self.executing[-1][0]) is not None:
                place = self.executing[-1][1]
                kernel = plan.kernels[place] if place < len(plan.kernels) else -1
            self.memory.append(model.MemoryEvent(self.now(), device, nbytes, used, "", kernel))

    # **** afterwards ****

    def trace(self) -> model.Trace:
        """What was recorded, as a Trace."""
        return codec.read(self.folder)


# **** helpers ****


def _facts() -> dict[str, Any]:
    from tinygrad import Device
    from tinygrad.helpers import ContextVar

    from tgx import __version__

    told = tuple(
        sorted(
            (k, str(v.value))
            for k, v in ContextVar._cache.items()
            if settings.is_set(k) and not k.startswith("TGX")
        )
    )
    return {
        "tgx": __version__, "tinygrad": compat.version(), "python": platform.python_version(),
        "machine": platform.machine(), "device": Device.DEFAULT, "settings": told,
    }  # fmt: skip


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


def _accesses(ast: UOp) -> tuple[tuple[int, ...], tuple[int, ...]]:
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


def _flat(
    template: Template, known: dict[bytes, Template]
) -> Iterator[tuple[TemplateKernel, Template]]:
    """A template's kernels in order, those of the functions it calls in their places."""
    for kernel in template.kernels:
        inner = kernel if isinstance(kernel, Template) else None
        if isinstance(kernel, TemplateKernel) and not isinstance(kernel.ast.arg, KernelInfo):
            inner = known.get(kernel.ast.key) if kernel.ast.op is Ops.SINK else None
        if inner is not None:
            yield from _flat(inner, known)
        elif isinstance(kernel, TemplateKernel):
            yield kernel, template


def _expanded(linear: UOp) -> UOp:
    """A jitted list of calls with its batches taken apart again."""
    calls: list[UOp] = []
    for call in linear.src:
        body = call.src[0]
        if body.op is Ops.CUSTOM_FUNCTION and body.arg == "graph":
            calls.extend(body.src[0].src)
        else:
            calls.append(call)
    return linear.replace(src=tuple(calls))


def _jit_name() -> str:
    jit = tg_realize.capturing[0] if tg_realize.capturing else None
    function = getattr(jit, "fxn", None)
    return getattr(function, "__name__", type(function).__name__ if function else "")


@contextmanager
def _scheduled_calls(made: dict[int, UOp]) -> Iterator[None]:
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


# **** the patches ****

Undo = Callable[[], None]
_session: Session | None = None


def session() -> Session | None:
    """The recording in progress."""
    return _session


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
        if (marks := old.__dict__.get(MARK)) is not None:
            new.__dict__.setdefault(MARK, marks)
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
    if _session is None:
        return tg_schedule.lower_sink_to_linear(function)
    return _session.lower(function, tg_schedule.lower_sink_to_linear)


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
    plain_run, plain_stats = tg_realize.run_linear, tg_realize.track_stats
    plain_compile = tg_realize.lower_and_compile

    @functools.wraps(plain_run)
    def run_linear(linear: UOp, *args: Any, **kwargs: Any) -> Any:
        return s.run(plain_run, linear, *args, **kwargs)

    def track_stats(ctx: Any, call: UOp, st: Any, ets: list[float | None]) -> None:
        try:
            s.launched(ctx, call, st, ets)
        except Exception as e:
            s._fault("launch", e)
        plain_stats(ctx, call, st, ets)

    def lower_and_compile(linear: UOp) -> UOp:
        started = s.now()
        with steps.receiving(s.received):
            result = plain_compile(linear)
        if result is not linear:
            s.events.append(
                model.Event("compile", f"{len(linear.src)} kernels", started, s.now() - started)
            )
        return result

    s.spool.mkdir(exist_ok=True)
    compile_kernel = functools.partial(steps.compile_kernel, str(s.spool), s.level)
    return _both(
        replace_attribute(tg_realize, "_compile_kernel", compile_kernel),
        replace_attribute(tg_codegen, "to_program", steps.watched(tg_codegen.to_program, s.level)),
        replace_attribute(tg_realize, "run_linear", run_linear),
        replace_attribute(tg_tensor, "run_linear", run_linear),
        replace_attribute(tg_jit, "run_linear", run_linear),
        replace_attribute(tg_realize, "track_stats", track_stats),
        replace_attribute(tg_realize, "lower_and_compile", lower_and_compile),
    )


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


PATCHES: tuple[Callable[[Session], Undo], ...] = (
    mark_tensors,
    mark_gradients,
    keep_marks,
    follow_schedules,
    follow_jit,
    time_kernels,
    watch_memory,
)
"""Everything a recording changes in tinygrad, in the order it is put in; undone in reverse."""

__all__ = ["PATCHES", "Session", "data_nodes", "session"]
