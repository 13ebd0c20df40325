"""Recording a run: `tgx trace`, ``TGX_TRACE=dir`` and ``with tgx.trace():`` all start a `Session`
here.

What it does while the program runs is little: marks on new UOps (`origins`), one pass over each
realized graph, a note per kernel launch. The first time the scheduler meets a graph it is followed
(`provenance`, `boundaries`) and becomes a *template* (`templates`); every later graph of the same
structure only brings its own origins to it. What is found is written at once (`writing`).

tinygrad is changed only between `start` and `stop`, by what stands in `hooks`.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tinygrad.engine.realize as tg_realize
import tinygrad.schedule as tg_schedule
import tinygrad.tensor as tg_tensor
from tinygrad.helpers import SCACHE
from tinygrad.uop.ops import KernelInfo, Ops, UOp, UOpMetaClass

from tgx import codec, model, settings
from tgx.adapter import boundaries, compat, hooks, names, steps
from tgx.adapter.boundaries import Decisions
from tgx.adapter.compiling import Sight
from tgx.adapter.counted import Ledger
from tgx.adapter.origins import MARK, Marker, with_text
from tgx.adapter.provenance import Follow, following
from tgx.adapter.templates import (
    Lowered,
    Scope,
    Template,
    TemplateKernel,
    accesses,
    flatten_graph,
    kernels_of,
    outermost,
)
from tgx.adapter.writing import Recorder, program_folder
from tgx.errors import TgxError

MOST_RUNS = 50_000  # launches kept one by one; all are counted
TIMED_JIT_CALLS = 32  # executions of a jitted graph that are run kernel by kernel, to time each
FLUSH_EVERY = 2.0  # seconds between writes of the launches


class TraceRunning(TgxError):
    """A second trace was started while one records."""


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
        if folder is None:
            folder = tempfile.mkdtemp(prefix="tgx-trace-")
            weakref.finalize(self, _remove, folder, os.getpid())
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
        self.functions = False
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

    # **** starting and stopping ****

    def start(self) -> Session:
        if hooks.current is not None:
            raise TraceRunning(
                "a trace is already being recorded",
                "one at a time",
                "end the first: leave its `with`, or unset TGX_TRACE",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = codec.OneFile(codec.inside(self.folder, codec.FILE_NAME))
        self.recorder = Recorder(
            codec.Writer(self.out),
            self.marker.origins,
            self.environment,
            program_folder(self.program),
        )
        self.began = time.perf_counter()
        self.ledger = Ledger()
        self._mark_what_exists()
        self._restore = hooks.install(self)
        self.running = True
        return self

    def stop(self, ended: str = "ok", error: str = "", exit_code: int = 0) -> None:
        """Puts tinygrad back as it was and completes the file."""
        if not self.running:
            return
        self.running = False
        self._restore()
        self._flush_runs()
        try:
            self.recorder.finish(self, ended, error, exit_code)
        finally:
            self.out.close()

    def leave(self) -> None:
        """In a forked child: the file is its parent's, the child goes on as if nobody looked."""
        if self.running:
            self.running = False
            self.out.abandon()
            self._restore()

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

    def compiled(self, program: UOp, sight: Sight) -> None:
        """A kernel was compiled in this process."""
        self.recorder.sights[program.src[1]] = sight

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
        self.functions = False  # are some of its values results of precompiled functions?
        asked = marker.origins.here(3)
        stores: dict[UOp, str] = {}
        follow.watch = functools.partial(self._output_rule, stores)
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
        stores: dict[UOp, str],
        old: UOp,
        new: UOp,
        fresh: list[UOp],
        pattern: Any,
        context: Any,
    ) -> None:
        """Tells outputs somebody realizes from those a ``.contiguous()`` or an assign stores."""
        if context.name == "early transform tensor graph":
            self.functions |= old.op is Ops.FUNCTION
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
        with following(follow), boundaries.deciding(decisions), hooks.scheduled_calls(made):
            if hit:  # tinygrad has it from before the recording began: schedule it once more
                linear: UOp | None = tg_schedule.create_schedule(
                    tg_schedule.get_kernel_graph(function)
                )
            else:
                linear = original(function)
        assert linear is not None
        kernels = [
            self._template_kernel(call, made.get(place), follow)
            for place, call in enumerate(linear.src)
        ]
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

    def _template_kernel(self, call: UOp, made: UOp | None, follow: Follow) -> TemplateKernel:
        ast = call.src[0]
        inner = None
        if ast.op is Ops.LINEAR:  # a precompiled function, scheduled before
            inner = next((t for t in self.templates.values() if t.made(ast)), None)
        notes = follow.calls.get(made) if made is not None else None
        if notes is None:  # a function, or a kernel written by hand: its CALL is what was written
            own = follow.get(made) if made is not None else None
            notes = [own or ()] * len(ast.toposort())
        writes, reads = accesses(ast) if ast.op is not Ops.LINEAR else ((), ())
        name = str(getattr(made.arg, "name", None) or "") if made is not None else ""
        return TemplateKernel(ast, notes, call.src[1:], writes, reads, inner, name)

    def scheduled(self, big_sink: UOp, original: Callable[..., Any]) -> Any:
        """`create_linear_with_vars`: the whole way from a graph to a list of calls."""
        self.lowering.append([])
        started = self.now()
        try:
            # a function scheduled before its caller is put into it, which rebuilds what reads it
            with following(self.transformed[0]) if self.functions else nullcontext():
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
        lowered = outermost(all_lowered)
        _, _, asked = self.transformed
        captured = tg_realize.capturing and not linear.src
        launches = self.jit_linear.src if captured else linear.src
        identity = (lowered.template.key, lowered.origins, asked, bool(captured))
        schedule = self.schedules.get(identity)
        if schedule is None:
            brought = {low.template.key: low for low in all_lowered}
            kernels = list(kernels_of(Scope(lowered), self.templates, brought))
            arguments = names.arguments(big_sink.src[1:], sys._getframe(1), self.marker.origins)
            jit = _jit_name() if captured else ""
            schedule = self.recorder.schedule(lowered, kernels, launches, asked, arguments, jit)
            self.schedules[identity] = schedule
            for low in all_lowered:
                if (rewrites := low.template.rewrites) is not None:
                    low.template.rewrites = None
                    self.recorder.bundle(
                        steps.joined(self.recorder, rewrites.records(str, {}), schedule=schedule)
                    )
        if lowered.hit:
            self.recorder.cache_hit(schedule)
        ids = self.recorder.kernels_of(schedule)
        if len(ids) != len(launches):
            self._say_once(
                f"{self.recorder.schedule_name(schedule)}: of {len(launches)} calls, "
                f"{len(launches) - len(ids)} could not be told apart: its kernels were not timed"
            )
            ids = [-1] * len(launches)
        plan = Plan([schedule], ids)
        if captured:
            self.jit_parts.append((plan, launches))
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
        if time.perf_counter() - self.flushed > FLUSH_EVERY:
            self._flush_runs()
        plan = self.plans.get(linear)
        if plan is not None and plan.expanded is not None:
            plan.runs += 1
            timed = plan.runs <= TIMED_JIT_CALLS or self.ledger.counting
            if not timed and plan.expanded is not linear:
                self.untimed += 1
                return original(linear, *args, **kwargs)  # as it would run unobserved
            linear = plan.expanded
        kwargs["wait"] = True
        started = self.now()
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

    def lines_of(self, name: str) -> tuple[str, ...]:
        """The user's lines of the kernel that is being run, or of all that have its name."""
        plan, place = self.executing[-1] if self.executing else (None, 0)
        known = self.recorder.kernels
        here = [known[k] for k in (plan.kernels[place : place + 1] if plan else ()) if k >= 0]
        found = [k for k in here if k.tinygrad_name in ("", name)]
        found = found or [k for k in known.values() if k.tinygrad_name == name]
        paths = list(self.recorder.files)  # a file's number is its place
        lines = dict.fromkeys((paths[file], line) for k in found for file, line in k.lines)
        return tuple(with_text(path, line) for path, line in lines)

    def launched(self, ctx: Any, call: UOp, st: Any, ets: list[float | None]) -> None:
        """`track_stats`: one call of a linear has been executed."""
        counts = self.ledger.taken(call)
        if not self.executing:
            return
        plan, place = self.executing[-1]
        if plan is None:
            return
        ended = self.now()
        # a call launches one kernel, on each of its devices; with HCQ2, a list of kernels
        several = call.src[0].op is Ops.CUSTOM_FUNCTION and call.src[0].arg == "hcq"
        self.executing[-1] = plan, place + (len(ets) if several else 1)
        for n, et in enumerate(ets or [None]):
            at = place + n if several else place
            if at >= len(plan.kernels):
                return
            kernel = plan.kernels[at]
            if kernel < 0:
                continue
            took = ended - (float(st) - self.began * 1e6)
            time_us, clock = (et * 1e6, "device") if et is not None else (took, "host")
            if call.src[0].op is Ops.PROGRAM:
                self.recorder.program(kernel, call.src[0], ctx.var_vals)
            if counts is not None and n == 0:
                self.ledger.add(kernel, counts, call.src[0])
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


def _remove(folder: str, owner: int) -> None:
    """Deletes a temporary folder, at the end of the process that made it; not of a forked child."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _facts() -> dict[str, Any]:
    from tinygrad import Device
    from tinygrad.helpers import ContextVar

    from tgx import __version__

    told = tuple(
        sorted(
            (name, value)
            for name in ContextVar._cache
            if (value := settings.told(name)) and not name.startswith("TGX")
        )
    )
    return {
        "tgx": __version__, "tinygrad": compat.version(), "python": platform.python_version(),
        "machine": platform.machine(), "device": Device.DEFAULT, "settings": told,
    }  # fmt: skip


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
