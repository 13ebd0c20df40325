"""Fit the model's constants to measured times: on one network, to be tried on another.

The error that is made small is the mean of |log(model / measured)|: twice too slow counts as much
as twice too quick, and a kernel of 3 us as much as one of 3 ms. One constant after the other is
moved in small factors, between the low and the high value of its row in CONSTANTS, as long as that
helps. With a few dozen kernels only a few constants can be told apart: FITTED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, log

from tgx.errors import BadInput
from tgx.hardware import roofline
from tgx.hardware.kernel import GpuKernel
from tgx.hardware.profiles import Machine

# What a profile filled by `tgx devices measure` leaves open; launch and copy are measured there.
FITTED = ("launch_desktop", "launch_jetson", "l2_efficiency", "issue_efficiency",
          "instructions_per_flop", "alu_cycles", "l2_cycles", "loads_together")  # fmt: skip
STEPS = (1.5, 1.2, 1.05, 1.01)
LEAST = 8  # kernels: fewer fit anything


@dataclass(frozen=True)
class Seen:
    """One launch and what it took. `working_set`: see `roofline.model`."""

    kernel: GpuKernel
    working_set: int
    measured_us: float


def fit(
    seen: Sequence[Seen],
    machine: Machine,
    jetson: bool,
    names: Sequence[str] = FITTED,
) -> dict[str, float]:
    """Constants that fit these launches better than the table's; those that do not matter, because
    the profile's own measurement stands in their place or no kernel feels them, are left out."""
    if len(seen) < LEAST or min((s.measured_us for s in seen), default=0) <= 0:
        raise BadInput(
            f"{len(seen)} measured kernels to fit to", f"at least {LEAST}, of times above 0"
        )
    unknown = [name for name in names if name not in roofline.CONSTANTS]
    if unknown:
        raise BadInput(f"constants {', '.join(unknown)}", "one of " + ", ".join(roofline.CONSTANTS))
    start = {name: roofline.CONSTANTS[name].value for name in names}
    values = dict(start)
    best = loss(seen, machine, jetson, values)
    for factor in STEPS:
        moved = True
        while moved:
            moved = False
            for name in names:
                row = roofline.CONSTANTS[name]
                least, most = sorted((row.low, row.high))
                for trial in (values[name] * factor, values[name] / factor):
                    tried = values | {name: min(max(trial, least), most)}
                    error = loss(seen, machine, jetson, tried)
                    if error < best - 1e-9:
                        best, values, moved = error, tried, True
    return {name: value for name, value in values.items() if value != start[name]}


def loss(
    seen: Sequence[Seen], machine: Machine, jetson: bool, constants: Mapping[str, float]
) -> float:
    """The mean of |log(model / measured)|: 0.1 is about a tenth off."""
    return fsum(
        abs(log(roofline.estimate(s.kernel, machine, s.working_set, jetson, constants)
                / s.measured_us))
        for s in seen
    ) / len(seen)  # fmt: skip
