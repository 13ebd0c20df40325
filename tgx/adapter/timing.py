"""Time a captured step on the device that is here: each launch alone, and the whole as TinyJit runs
it.

A launch is timed by tinygrad's own `wait=True`: on CUDA a pair of events around it. Launches run in
the order of the step, round after round, so that each meets the caches as the one before left them.
Variables stand at their highest value. A step that trains goes on training while it is timed: what
it computes does not matter any more, the script has been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import tinygrad.engine.jit as tg_jit
from tinygrad import Device
from tinygrad.engine.realize import (
    ExecContext,
    estimate_uop,
    get_call_name,
    link_linear,
    pm_exec,
)
from tinygrad.helpers import ansistrip
from tinygrad.uop.ops import Ops, UOp, sym_infer

from tgx.adapter import board, offline
from tgx.adapter.offline import Captured, Origin
from tgx.hardware import tegra
from tgx.hardware.measured import KernelTime, Measurement, StepTime, Times
from tgx.hardware.profiles import Machine


@dataclass(frozen=True)
class Pace:
    """How long to measure: every round of launches, and then every run of the whole, until
    `seconds` are over, but `least` and at most `most` times; `warm` more before, unseen."""

    seconds: float = 1.0
    least: int = 5
    most: int = 100_000
    warm: int = 3

    def repeat(self, run: Callable[[], None]) -> float:
        """The seconds that all counted runs took together."""
        for _ in range(self.warm):
            run()
        started = now = time.perf_counter()
        for count in range(1, self.most + 1):
            run()
            now = time.perf_counter()
            if count >= self.least and now - started >= self.seconds:
                break
        return now - started


@dataclass(frozen=True)
class Named:
    """A captured step, by its name."""

    name: str
    batch: int | None
    step: Captured


def measure(
    steps: Sequence[Named],
    known: Mapping[int, Origin],
    pace: Pace | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Measurement:
    """Every step in turn. Ctrl-C ends it with the steps that were timed until then. `machine` is
    what was predicted for: its clock should be reached, and its power mode be the board's."""
    pace = pace or Pace()
    found, said = board.read()
    samples: list[tegra.Sample] = []
    done: list[StepTime] = []
    stopped = False
    with board.Tegrastats(wanted=found is not None) as stats:
        try:
            for named in steps:
                say(f"measuring {named.name}" + (f", batch {named.batch}" * bool(named.batch)))
                started = time.perf_counter()
                done.append(timed(named, known, pace, stats))
                samples += stats.between(started, time.perf_counter())
        except KeyboardInterrupt:
            stopped = True
            said.append(f"stopped by Ctrl-C: {len(done)} of {len(steps)} steps were measured")
    if found:
        said += told(stats, samples)
        highest = found.clocks.gpu_max if found.clocks is not None else None
        highest = highest or (machine.gpu_mhz if machine is not None else None)
        if highest is not None and (trap := tegra.low_clock(samples, highest)):
            said.append(trap)
        mode = found.mode[0] if found.mode is not None else ""
        if machine is not None and mode and mode.casefold() != machine.mode.casefold():
            said.append(
                f"the board is in power mode {mode}, the prediction is for {machine.mode}: give "
                f"--mode {mode}, if `tgx devices show {machine.id}` has it"
            )
    device = Device.DEFAULT
    return Measurement(device, arch_of(device), tuple(done), found, tuple(said), stopped)


def told(stats: board.Tegrastats, samples: Sequence[tegra.Sample]) -> list[str]:
    """What tegrastats did not say, in sentences."""
    if stats.missing:
        return [stats.missing]
    if not samples:
        return ["tegrastats printed nothing while the steps ran: no clocks, no power"]
    strange = [sample.raw for sample in samples if not sample.understood]
    return [
        f"{len(strange)} of {len(samples)} lines of tegrastats are in a format tgx does not know; "
        f"the first: {strange[0]}"
    ] if strange else []  # fmt: skip


def arch_of(device: str) -> str:
    return str(Device[device].renderer.target.arch) if device.startswith("CUDA") else ""


def timed(
    named: Named, known: Mapping[int, Origin], pace: Pace, stats: board.Tegrastats
) -> StepTime:
    run = named.step.run
    assert run is not None, "what was captured without running cannot be timed"
    values = offline.highest(named.step.calls)
    calls = link_linear(run.linear).src
    context = ExecContext(values, update_stats=False, wait=True)
    spent: list[list[float]] = [[] for _ in calls]
    clocks = ["device"] * len(calls)

    def one_round() -> None:
        for place, call in enumerate(calls):
            started = time.perf_counter()
            seconds = [s for s in pm_exec.rewrite(call, context) or () if s is not None]
            if not seconds:  # a copy, or a device that does not time
                synchronize(call)
                seconds, clocks[place] = [time.perf_counter() - started], "host"
            spent[place].append(max(seconds) * 1e6)

    pace.repeat(one_round)
    names = named.step.ids or (-1,) * len(calls)
    kernels = tuple(
        kernel_time(call, values, known.get(id, Origin()), Times(tuple(us[pace.warm :])), clock, id)
        for call, us, clock, id in zip(calls, spent, clocks, names, strict=True)
    )

    lowered = tg_jit.jit_lower(run.linear, set(run.held), list(run.inputs))
    jitted = tg_jit.CapturedJit(None, lowered, [], [])
    whole: list[float] = []

    def one_run() -> None:
        started = time.perf_counter()
        jitted(list(run.inputs), values)
        Device[Device.DEFAULT].synchronize()
        whole.append((time.perf_counter() - started) * 1e6)

    began = time.perf_counter()
    seconds = pace.repeat(one_run)
    ended = time.perf_counter()
    samples = stats.between(max(began, ended - seconds), ended)
    return StepTime(
        named.name,
        named.batch,
        kernels,
        Times(tuple(whole[pace.warm :])),
        seconds,
        tegra.summarise(samples) if samples else None,
    )


def kernel_time(
    call: UOp, values: dict[str, int], origin: Origin, times: Times, clock: str, id: int
) -> KernelTime:
    body, estimates = call.src[0], estimate_uop(call)
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    name = origin.name
    if body.op is Ops.PROGRAM:
        sizes = body.arg.launch_dims(values)
        grid, block = (tuple(int(s) for s in size or ()) for size in sizes)
        name = name or body.arg.function_name
    return KernelTime(
        name or ansistrip(get_call_name(call, [s.buffer for s in call.src[1:3]], values)),
        origin.lines,
        grid,
        block,
        int(sym_infer(estimates.ops, values)),
        int(sym_infer(estimates.mem, values)),
        times,
        clock,
        id,
    )


def synchronize(call: UOp) -> None:
    for device in {d for b in call.src[1:3] for d in ([b.device] if isinstance(b.device, str)
                                                      else b.device)}:  # fmt: skip
        Device[device].synchronize()
