"""What `tgx profile` measured on the device that is here: times of kernels and of whole steps, and
what a Jetson said of itself meanwhile. Pure data and its tables; the clock is in
`tgx.adapter.timing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tgx.errors import BadInput
from tgx.hardware import tegra
from tgx.hardware.accuracy import quantile
from tgx.hardware.tegra import Board, Telemetry


@dataclass(frozen=True)
class Times:
    """Microseconds that one thing took, each time it ran."""

    us: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.us or min(self.us) < 0:
            raise BadInput(f"times of {self.us}", "at least one, none below 0")

    @property
    def low(self) -> float:
        return min(self.us)

    @property
    def p50(self) -> float:
        return quantile(self.us, 0.5)

    @property
    def p95(self) -> float:
        return quantile(self.us, 0.95)


@dataclass(frozen=True)
class KernelTime:
    """One launch, timed alone each time, in its place among the others of its step."""

    name: str
    lines: tuple[str, ...]
    grid: tuple[int, ...]  # () for copies
    block: tuple[int, ...]
    ops: int  # tinygrad's own estimates
    bytes: int
    times: Times
    clock: str  # "device": the device's own (CUDA events); "host": Python's, waiting for the device
    kernel: int = -1  # its number in the trace made meanwhile


@dataclass(frozen=True)
class StepTime:
    """One step: its launches one by one, and the whole of it as TinyJit runs it."""

    name: str
    batch: int | None
    kernels: tuple[KernelTime, ...]
    whole: Times  # by the host's clock: launched, and waited for
    seconds: float  # that all runs of the whole took together
    telemetry: Telemetry | None = None  # of that time

    @property
    def sum_us(self) -> float:
        return sum(kernel.times.p50 for kernel in self.kernels)

    @property
    def energy_mj(self) -> float | None:
        """Of the whole board, idle parts too, for one run; None where no rail says."""
        if self.telemetry is None:
            return None
        return tegra.energy_mj(self.telemetry, self.seconds, len(self.whole.us))


@dataclass(frozen=True)
class Measurement:
    """All that was measured in one run of `tgx profile`."""

    device: str
    arch: str
    steps: tuple[StepTime, ...]
    board: Board | None = None  # on a Jetson
    said: tuple[str, ...] = ()  # what to know before believing the numbers
    stopped: bool = False  # by Ctrl-C: steps are missing


# **************** as data ****************


def kernel_json(kernel: KernelTime) -> dict[str, Any]:
    return {
        "measured_us": kernel.times.p50,
        "measured_low_us": kernel.times.low,
        "measured_p95_us": kernel.times.p95,
        "runs": len(kernel.times.us),
        "clock": kernel.clock,
    }


def step_json(step: StepTime) -> dict[str, Any]:
    """The totals of a step, beside those that were predicted."""
    return {
        "measured_us": step.sum_us,
        "jitted_us": step.whole.p50,
        "jitted_p95_us": step.whole.p95,
        "jitted_runs": len(step.whole.us),
        "energy_mj": step.energy_mj,
        "telemetry": None if step.telemetry is None else asdict(step.telemetry),
    }


def about(m: Measurement) -> dict[str, Any]:
    return {
        "device": m.device,
        "arch": m.arch,
        "board": None if m.board is None else asdict(m.board),
        "said": list(m.said),
        "stopped": m.stopped,
    }


PREDICTED = ("regs", "smem", "occupancy", "waves", "bound", "lower_us", "model_us")


def to_json(m: Measurement) -> dict[str, Any]:
    """A measurement with no prediction beside it: what only a prediction has is null."""
    return {
        "device": m.device,
        "arch": m.arch,
        "measured": about(m),
        "steps": [
            {
                "name": step.name,
                "batch": step.batch,
                "kernels": [
                    {
                        "name": k.name,
                        "lines": list(k.lines),
                        "grid": list(k.grid),
                        "block": list(k.block),
                        "ops": k.ops,
                        "bytes": k.bytes,
                        **dict.fromkeys(PREDICTED),
                        **kernel_json(k),
                    }
                    for k in step.kernels
                ],
                "total": {"launches": len(step.kernels), **step_json(step)},
            }
            for step in m.steps
        ],
    }


# **************** as text ****************

HEADS = ("kernel", "line", "grid x block", "ops", "bytes", "p50 us", "p95 us", "GFLOP/s", "GB/s")


def heading(m: Measurement) -> list[str]:
    """The lines above the tables: where, how, and what to doubt."""
    arch = f" ({m.arch})" if m.arch else ""
    clock = "its own events" if m.device.startswith("CUDA") else "the run time's own clock"
    lines = [
        f"measured on {m.device}{arch}. Kernels: each timed alone, by {clock}, in its place among "
        "the others. Jitted step: all of it, by the host's clock, waited for.",
    ]
    if m.board is not None:
        lines.append(board_line(m.board))
    return lines + [f"note: {line}" for line in m.said]


def board_line(board: Board) -> str:
    """What the board said of itself before the run."""
    mode = "power mode unknown" if board.mode is None else f"power mode {board.mode[0]}"
    clocks = board.clocks
    parts = [f"L4T {board.release}" if board.release else "", mode]
    if clocks is not None and clocks.gpu_min is not None and clocks.gpu_max is not None:
        held = "held at" if clocks.locked else f"{clocks.gpu_min:g} to"
        parts.append(f"GPU {held} {clocks.gpu_max:g} MHz")
    return "Jetson: " + ", ".join(filter(None, parts))


def foot(step: StepTime) -> list[str]:
    """The lines under a step's table."""
    whole = step.whole
    lines = [
        f"jitted step: p50 {whole.p50:.1f} us, p95 {whole.p95:.1f} us ({len(whole.us)} runs); "
        f"its kernels one by one: {step.sum_us:.1f} us"
    ]
    t = step.telemetry
    if t is not None and t.samples:
        clock = "" if t.gpu_mhz_high is None else (
            f"GPU {t.gpu_mhz_low:g} to {t.gpu_mhz_high:g} MHz")
        load = "" if t.gpu_load is None else f"load {t.gpu_load:.0f} %"
        power = "power unknown" if t.power_mw is None else f"{t.power_mw / 1e3:.2f} W"
        heat = "" if t.hottest is None else f"{t.hottest[0]} at {t.hottest[1]:g} C"
        lines.append(f"tegrastats, {t.samples} samples: "
                     + ", ".join(filter(None, (clock, load, power, heat))))
    if step.energy_mj is not None:
        lines.append(f"energy: {step.energy_mj:.4g} mJ a run, of the whole board")
    return lines


def table(step: StepTime) -> list[tuple[str, ...]]:
    """One row of texts for each launch, under HEADS, and their sum."""
    rows: list[tuple[str, ...]] = []
    for k in step.kernels:
        us = max(k.times.p50, 1e-9)
        rows.append(
            (
                k.name, place(k.lines), f"{dims(k.grid)} x {dims(k.block)}" if k.block else
                dims(k.grid) if k.grid else "", scaled(k.ops) if k.grid else "", scaled(k.bytes),
                f"{k.times.p50:.1f}", f"{k.times.p95:.1f}",
                f"{k.ops / us / 1e3:.1f}" if k.ops else "", f"{k.bytes / us / 1e3:.1f}",
            )
        )  # fmt: skip
    ops, moved = (sum(getattr(k, what) for k in step.kernels) for what in ("ops", "bytes"))
    count = f"{len(rows)} launch" + "es" * (len(rows) != 1)
    rows.append((count, "", "", scaled(ops), scaled(moved), f"{step.sum_us:.1f}", "", "", ""))
    return rows


def place(lines: tuple[str, ...]) -> str:
    """The first source line, and how many more."""
    return (lines[0] + (f" +{len(lines) - 1}" if len(lines) > 1 else "")) if lines else ""


def dims(sizes: Iterable[int]) -> str:
    """(4, 8, 1) as 4,8: the ones at the end say nothing."""
    sizes = list(sizes)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return ",".join(map(str, sizes))


UNITS = ("", "k", "M", "G", "T")


def scaled(number: float) -> str:
    """12877824 as 12.9M."""
    for unit in UNITS:
        if abs(number) < 999.5 or unit == UNITS[-1]:
            return f"{number:.{int(bool(unit) and abs(number) < 99.95)}f}{unit}"
        number /= 1000
    return str(number)
