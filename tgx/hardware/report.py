"""What `tgx profile` says: a row for each launch, a total for each step, as text and as JSON.

Rows keep three times apart. `lower_us` is a bound nothing can beat; `model_us`, with its bars, is a
guess; `measured_us` is what a board took, and null until there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

from tgx.errors import BadInput
from tgx.hardware import measured, roofline
from tgx.hardware.accuracy import Accuracy, accuracy
from tgx.hardware.kernel import Copy, GpuKernel
from tgx.hardware.measured import Measurement, StepTime, dims, place, scaled
from tgx.hardware.profiles import Machine, Profile


@dataclass(frozen=True)
class Row:
    """One launch. Sizes in bytes; `grid` in blocks and `block` in threads, x first."""

    name: str
    lines: tuple[str, ...]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    regs: int
    smem: int
    stack: int
    occupancy: float
    limited_by: tuple[str, ...]
    waves: float
    idle_sms: int
    resident_warps: int
    ops: int
    bytes: int
    bound: str  # the roof that sets lower_us
    lower_us: float
    model_us: float
    model_low_us: float
    model_high_us: float
    model_bound: str  # what the model thinks the time goes to
    measured_us: float | None = None  # the median
    measured_p95_us: float | None = None


@dataclass(frozen=True)
class Step:
    """Every launch of one step of a model, in order."""

    name: str
    batch: int | None  # None: the script's own
    rows: tuple[Row, ...]
    timed: StepTime | None = None  # where the device is here

    def total(self, field: str) -> float:
        return float(sum(getattr(row, field) for row in self.rows))

    @property
    def measured_us(self) -> float | None:
        times = [row.measured_us for row in self.rows if row.measured_us is not None]
        return sum(times) if times and len(times) == len(self.rows) else None


@dataclass(frozen=True)
class Report:
    """What was predicted for a board in one of its modes, and measured where it is here."""

    profile: Profile
    machine: Machine
    compiler: str
    steps: tuple[Step, ...]
    constants: Mapping[str, float] = field(default_factory=dict)  # fitted ones
    measurement: Measurement | None = None


def step(
    name: str,
    batch: int | None,
    kernels: Sequence[GpuKernel | Copy],
    machine: Machine,
    jetson: bool = True,
    constants: Mapping[str, float] | None = None,
) -> Step:
    """The rows of one step. All that its kernels touch together decides what the L2 can keep."""
    together = sum(k.work.bytes for k in kernels if isinstance(k, GpuKernel))
    rows = tuple(row(k, machine, together, jetson, constants) for k in kernels)
    return Step(name, batch, rows)


def row(
    kernel: GpuKernel | Copy,
    machine: Machine,
    together: int,
    jetson: bool,
    constants: Mapping[str, float] | None = None,
) -> Row:
    bound = roofline.lower_bound(kernel, machine)
    guess = roofline.model(kernel, machine, together, jetson, constants)
    times = {
        "bound": bound.bound,
        "lower_us": bound.us,
        "model_us": guess.us,
        "model_low_us": guess.low,
        "model_high_us": guess.high,
        "model_bound": guess.bound,
    }
    if isinstance(kernel, Copy):
        return Row(kernel.name, (), (), (), 0, 0, 0, 0.0, (), 0.0, 0, 0, 0, kernel.bytes, **times)  # type: ignore[arg-type]
    fit = roofline.fit(kernel, machine)
    return Row(
        name=kernel.name,
        lines=kernel.lines,
        grid=kernel.grid,
        block=kernel.block,
        regs=kernel.registers,
        smem=kernel.shared,
        stack=kernel.stack,
        occupancy=fit.occupancy.fraction,
        limited_by=fit.occupancy.limited_by,
        waves=fit.waves,
        idle_sms=fit.idle_sms,
        resident_warps=fit.resident_warps,
        ops=kernel.work.flops,
        bytes=kernel.work.bytes,
        **times,  # type: ignore[arg-type]
    )


# **************** beside what was measured ****************


def joined(predicted: Report, measurement: Measurement) -> Report:
    """The predictions with the measured times beside them; where a run was stopped, of the steps
    that were measured."""
    steps = []
    for step, timed in zip(predicted.steps, measurement.steps, strict=False):
        if len(step.rows) != len(timed.kernels):
            raise BadInput(
                f"{step.name}: {len(step.rows)} launches predicted, {len(timed.kernels)} measured",
                "the same program, scheduled once",
            )
        rows = tuple(
            replace(row, measured_us=k.times.p50, measured_p95_us=k.times.p95)
            for row, k in zip(step.rows, timed.kernels, strict=True)
        )
        steps.append(replace(step, rows=rows, timed=timed))
    return replace(predicted, steps=tuple(steps), measurement=measurement)


def errors(steps: Sequence[Step], sms: int) -> dict[str, Accuracy]:
    """How far the model was off: for all kernels, and apart for those whose grid does not fill the
    GPU and those whose grid does. Copies, which no model is made of, are left out."""
    rows = [row for s in steps for row in s.rows if row.grid and row.measured_us]
    groups = {
        "all": rows,
        "grids smaller than the GPU": [row for row in rows if prod(row.grid) < sms],
        "grids that fill it": [row for row in rows if prod(row.grid) >= sms],
    }
    return {
        name: accuracy([row.model_us for row in group], [row.measured_us or 0 for row in group])
        for name, group in groups.items()
        if group
    }


def beaten(steps: Sequence[Step]) -> list[str]:
    """Kernels quicker than their lower bound: the bound is wrong, or the profile, or the clock."""
    return [
        f"{row.name} took {row.measured_us:.2f} us, its lower bound is {row.lower_us:.2f}"
        for step in steps
        for row in step.rows
        if row.grid and row.measured_us is not None and row.measured_us < row.lower_us
    ]


# **************** as data ****************


def to_json(report: Report) -> dict[str, Any]:
    machine = report.machine
    return {
        "device": machine.id,
        "name": machine.name,
        "mode": machine.mode,
        "arch": machine.arch,
        "sms": machine.sms,
        "gpu_mhz": machine.gpu_mhz,
        "bandwidth_gbs": machine.bandwidth,
        "assumed": list(machine.assumed),
        "compiler": report.compiler,
        "fitted": bool(report.constants),
        "constants": {
            name: asdict(c)
            | ({"value": report.constants[name]} if name in report.constants else {})
            | {"fitted": name in report.constants}
            for name, c in roofline.CONSTANTS.items()
        },
        "measured": None if report.measurement is None else measured.about(report.measurement),
        "errors": {name: asdict(e) for name, e in errors(report.steps, machine.sms).items()},
        "beaten": beaten(report.steps),
        "steps": [
            {
                "name": step.name,
                "batch": step.batch,
                "kernels": [asdict(row) for row in step.rows],
                "total": {
                    "launches": len(step.rows),
                    "budget_mj": budget_mj(step, machine),
                    "lower_us": step.total("lower_us"),
                    "model_us": step.total("model_us"),
                    "model_low_us": step.total("model_low_us"),
                    "model_high_us": step.total("model_high_us"),
                    **({"measured_us": None} if step.timed is None else
                       measured.step_json(step.timed)),
                },
            }
            for step in report.steps
        ],
    }


# **************** as text ****************

HEADS = ("kernel", "line", "grid x block", "regs", "smem", "occ.", "waves", "idle SMs", "ops",
         "bytes", "bound us", "by", "model us", "between", "mostly", "measured")  # fmt: skip


def heading(report: Report) -> list[str]:
    """The lines above the tables: the board, what was assumed, and what the numbers are."""
    m = report.machine
    mode = f", mode {m.mode}" if m.mode else ""
    lines = [
        f"{m.name}{mode}: {m.arch}, {m.sms} SMs at {m.gpu_mhz:g} MHz, {m.bandwidth:.1f} GB/s; "
        f"compiled by {report.compiler}",
        *(f"assumed: {line}" for line in m.assumed),
        "bound: no launch can be faster. model: a guess between two ends, with "
        + (f"{len(report.constants)} constants fitted to measurements." if report.constants else
           "constants that no measurement was fitted to yet."),
    ]  # fmt: skip
    return lines + (measured.heading(report.measurement) if report.measurement else [])


def budget_mj(step: Step, machine: Machine) -> float | None:
    """The energy of one run if the board drew its mode's whole budget for the modelled time: an
    upper end, for a step of small kernels leaves most of the board idle. None: no budget known."""
    return None if machine.watts is None else machine.watts * step.total("model_us") / 1e3


def foot(report: Report) -> list[str]:
    """Under all tables: how far the model was off, where that is known."""
    lines = [f"model against measured, {name}: {e}"
             for name, e in errors(report.steps, report.machine.sms).items()]
    return lines + [f"below the bound: {line}" for line in beaten(report.steps)]


def table(step: Step) -> list[tuple[str, ...]]:
    """One row of texts for each launch, under HEADS, and the total."""
    rows = [cells(row) for row in step.rows]
    measured = step.measured_us
    rows.append(
        (
            f"{len(step.rows)} launch" + "es" * (len(step.rows) != 1), "", "", "", "", "", "", "",
            scaled(step.total("ops")), scaled(step.total("bytes")),
            f"{step.total('lower_us'):.1f}", "", f"{step.total('model_us'):.0f}",
            f"{step.total('model_low_us'):.0f}-{step.total('model_high_us'):.0f}", "",
            "" if measured is None else f"{measured:.1f}",
        )
    )  # fmt: skip
    return rows


# What a terminal that is too narrow goes without, in this order: indices of HEADS.
_SPARE = (4, 6, 9, 8, 3, 14, 11, 1, 2)


def filled(
    heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table without the columns that have nothing in any row."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    return tuple(heads[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def narrowed(
    rows: Sequence[Sequence[str]], width: int
) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]:
    """HEADS, rows under it, and what was left out of both for `width` characters (two between
    columns): the rows' other columns stand whole."""

    def wide(column: int) -> int:
        return max(map(len, (HEADS[column], *(row[column] for row in rows))))

    kept = [i for i in range(len(HEADS)) if any(row[i] for row in rows)]
    left_out = []
    for spare in _SPARE:
        if sum(wide(i) + 2 for i in kept) - 2 <= width:
            break
        if spare in kept:
            kept.remove(spare)
            left_out.append(spare)
    names = tuple(HEADS[i] for i in sorted(left_out))
    return tuple(HEADS[i] for i in kept), [tuple(row[i] for i in kept) for row in rows], names


SUMMARY = ("step", "launches", "bound us", "model us", "between", "measured us", "mJ at most")


def summary(report: Report) -> list[tuple[str, ...]]:
    """One row of texts for each step, under SUMMARY: its totals."""
    rows: list[tuple[str, ...]] = []
    for step in report.steps:
        energy, took = budget_mj(step, report.machine), step.measured_us
        rows.append(
            (
                title(step),
                str(len(step.rows)),
                f"{step.total('lower_us'):.1f}",
                f"{step.total('model_us'):.0f}",
                f"{step.total('model_low_us'):.0f}-{step.total('model_high_us'):.0f}",
                "" if took is None else f"{took:.1f}",
                "" if energy is None else f"{energy:.3g}",
            )
        )
    return rows


def title(step: Step) -> str:
    return step.name + (f", batch {step.batch}" if step.batch else "")


def cells(row: Row) -> tuple[str, ...]:
    launched = bool(row.grid)
    return (
        row.name,
        place(row.lines),
        f"{dims(row.grid)} x {dims(row.block)}" if launched else "",
        str(row.regs) if launched else "",
        str(row.smem) if row.smem else "",
        f"{row.occupancy:.0%}" if launched else "",
        f"{row.waves:.2f}" if launched else "",
        str(row.idle_sms) if row.idle_sms else "",
        scaled(row.ops) if launched else "",
        scaled(row.bytes),
        f"{row.lower_us:.2f}",
        row.bound,
        f"{row.model_us:.1f}",
        f"{row.model_low_us:.1f}-{row.model_high_us:.1f}",
        row.model_bound,
        "" if row.measured_us is None else f"{row.measured_us:.1f}",
    )  # fmt: skip
