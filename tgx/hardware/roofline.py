"""How long a kernel takes on a GPU that is not here. Two answers, never mixed:

`lower_bound` is a bound: no launch of this kernel on this board can be faster. It takes only what
the kernel must do (bytes that have to move, operations that have to be done) and the board's own
figures, and leaves out everything that could be disputed: a launch costs nothing, every byte that
the L2 cache could still hold is there already, every SM is busy.

`model` is a guess with error bars: it adds the launch, the uneven last wave, latency that too few
warps cannot hide, and efficiencies. Every constant it uses is a row of CONSTANTS, with a low and a
high value and where they come from. The bars are the model at all its low and all its high
constants. `tgx.hardware.fitting` fits some of them to a measurement; `fitted` says in every result
whether it was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from tgx.errors import BadInput
from tgx.hardware import toolchains
from tgx.hardware.kernel import Copy, GpuKernel
from tgx.hardware.occupancy import SHARED_BLOCK, WARP, Fit, limits_of, occupancy
from tgx.hardware.profiles import Machine

# Multiply-adds of 16-bit numbers that the tensor cores of one SM do in a cycle, dense. From
# NVIDIA's architecture papers (Volta, Ampere, Ada, Hopper, Blackwell); for Orin and Thor derived
# from the vendor's TOPS at the module's clock. 32-bit numbers as TF32 run at half of it, 8-bit at
# twice; tinygrad uses tensor cores from sm_75 on.
TENSOR_FMA = {72: 512, 75: 512, 80: 1024, 86: 512, 87: 1024, 89: 512, 90: 2048, 100: 4096,
              110: 4096, 120: 512}  # fmt: skip
L2_BYTES_CYCLE = 64  # from L2 to one SM, at most: the width of its port (Volta to Hopper papers)
SCHEDULERS = 4  # warp schedulers of an SM, each issuing one instruction a cycle


@dataclass(frozen=True)
class Constant:
    """A number the model needs and no data sheet gives."""

    value: float
    low: float  # the value for the quickest plausible kernel
    high: float  # and for the slowest
    unit: str
    source: str


_LIT = "published micro-benchmarks of Maxwell to Hopper (Jia et al. 2018-19 and later)"
_ASSUMED = "assumed; tests/measure_gpu.py fits it where there is a GPU"

CONSTANTS: dict[str, Constant] = {
    "launch_jetson": Constant(6.0, 3.0, 15.0, "us", _ASSUMED),
    "launch_desktop": Constant(2.5, 1.2, 5.0, "us", _ASSUMED),
    "dram_efficiency": Constant(0.75, 0.92, 0.5, "", _ASSUMED),
    "l2_efficiency": Constant(0.6, 0.9, 0.3, "", _ASSUMED),
    "issue_efficiency": Constant(0.7, 0.95, 0.4, "", _ASSUMED),
    "tensor_efficiency": Constant(0.5, 0.9, 0.2, "", _ASSUMED),
    # A multiply and an add, two operations, become one instruction where the compiler joins them.
    "instructions_per_flop": Constant(0.6, 0.5, 1.0, "", _ASSUMED),
    # Of the addresses tinygrad writes out, the compiler keeps about this share as instructions.
    "address_share": Constant(0.5, 0.2, 1.0, "", _ASSUMED),
    "alu_cycles": Constant(4.5, 4.0, 6.0, "cycles", _LIT),
    "shared_cycles": Constant(28, 22, 35, "cycles", _LIT),
    "barrier_cycles": Constant(30, 15, 60, "cycles", _ASSUMED),
    "tensor_cycles": Constant(33, 17, 66, "cycles", _LIT),
    "l2_cycles": Constant(230, 190, 300, "cycles", _LIT),
    "dram_ns": Constant(450, 300, 900, "ns", _LIT),
    # Loads of one thread that are under way together: the compiler unrolls loops, by 4 as a rule.
    "loads_together": Constant(4, 8, 1, "", _ASSUMED),
}


@dataclass(frozen=True)
class LowerBound:
    """A time no launch of this kernel can beat, and what sets it."""

    us: float
    bound: str  # "dram", "l2", "fma", "tensor"
    roofs: tuple[tuple[str, float], ...]  # every roof, in microseconds


@dataclass(frozen=True)
class Model:
    """The modelled time of a launch in microseconds, between `low` and `high`."""

    us: float
    low: float
    high: float
    bound: str  # what the model thinks the time goes to
    parts: tuple[tuple[str, float], ...]
    fitted: bool = False  # whether a constant was fitted to a measurement


def tensor_rate(arch: str) -> int:
    return TENSOR_FMA.get(toolchains.number(arch), 0)


def fit(kernel: GpuKernel, machine: Machine) -> Fit:
    """How the kernel's grid sits on the machine."""
    same_arch(kernel, machine)
    sm = limits_of(machine.arch)
    full = occupancy(sm, kernel.threads, kernel.registers, kernel.shared, kernel.barriers)
    if not full.blocks:
        raise BadInput(
            f"kernel {kernel.name} cannot be launched on {machine.id}: {kernel.threads} threads, "
            f"{kernel.registers} registers, {kernel.shared} bytes of shared memory a block",
            f"at most {sm.registers_block} registers and {SHARED_BLOCK} bytes a block",
            "NOLOCALS=1, or smaller LOCAL and UPCAST optimisations, make smaller blocks",
        )
    return Fit(full, kernel.blocks, machine.sms)


def same_arch(kernel: GpuKernel, machine: Machine) -> None:
    if kernel.arch != machine.arch:
        raise BadInput(
            f"kernel {kernel.name} was compiled for {kernel.arch}, {machine.id} is {machine.arch}",
            f"a kernel compiled for {machine.arch}",
        )


def lower_bound(kernel: GpuKernel | Copy, machine: Machine) -> LowerBound:
    """The best any launch could do: the highest of four roofs."""
    if isinstance(kernel, Copy):  # read and written once
        return _bound({"dram": 2 * kernel.bytes / machine.bandwidth / 1e3})
    same_arch(kernel, machine)
    work, cycles_us = kernel.work, machine.sms * machine.gpu_mhz  # SM-cycles in a microsecond
    roofs = {}
    if machine.l2 is not None:  # what fits the cache may be there from the kernel before
        roofs["dram"] = max(0, work.bytes - machine.l2) / machine.bandwidth / 1e3
    roofs["l2"] = work.bytes / (L2_BYTES_CYCLE * cycles_us)
    rate = machine.half_rate if kernel.half else 1.0
    roofs["fma"] = (work.flops - work.tensor_flops) / (2 * machine.lanes * rate * cycles_us)
    if work.tensor_flops and (tensor := tensor_rate(machine.arch)):
        # Counted as the fastest numbers tinygrad puts there, 8-bit floats: a bound for all others.
        roofs["tensor"] = work.tensor_flops / (2 * 2 * tensor * cycles_us)
    return _bound(roofs)


def _bound(roofs: Mapping[str, float]) -> LowerBound:
    name = max(roofs, key=lambda roof: roofs[roof])
    return LowerBound(roofs[name], name, tuple(roofs.items()))


def model(
    kernel: GpuKernel | Copy,
    machine: Machine,
    working_set: int = 0,
    jetson: bool = True,
    fitted: Mapping[str, float] | None = None,
) -> Model:
    """The modelled time. `working_set` are the bytes that all kernels of the step touch together:
    what of them exceeds the L2 cache is read from DRAM again. `fitted` are constants from
    `tgx.hardware.fitting`; the bars stay those of the table, and hold the fitted model, too."""
    parts, us = _model(kernel, machine, working_set, jetson, values(fitted))
    low, high = (_model(kernel, machine, working_set, jetson, values(end=end))[1]
                 for end in ("low", "high"))  # fmt: skip
    bound = max(parts, key=lambda part: parts[part])
    return Model(us, min(low, us), max(high, us), bound, tuple(parts.items()), bool(fitted))


def estimate(
    kernel: GpuKernel | Copy,
    machine: Machine,
    working_set: int,
    jetson: bool,
    fitted: Mapping[str, float],
) -> float:
    """Only the modelled time in microseconds, without its bars: what fitting asks for often."""
    return _model(kernel, machine, working_set, jetson, values(fitted))[1]


def values(fitted: Mapping[str, float] | None = None, end: str = "value") -> dict[str, float]:
    """All constants at one end ("value", "low", "high"), with the fitted ones in their places."""
    return {name: getattr(c, end) for name, c in CONSTANTS.items()} | dict(fitted or {})


def _model(
    kernel: GpuKernel | Copy,
    machine: Machine,
    working_set: int,
    jetson: bool,
    constants: Mapping[str, float],
) -> tuple[dict[str, float], float]:
    """The parts of the model and their sum, with these constants."""
    constant = constants.__getitem__
    launch = machine.launch_us
    if launch is None:
        launch = constant("launch_jetson" if jetson else "launch_desktop")
    bandwidth = (machine.copy or machine.bandwidth * constant("dram_efficiency")) * 1e3
    if isinstance(kernel, Copy):
        moved = 2 * kernel.bytes / bandwidth
        return {"launch": launch, "dram": moved}, launch + moved

    work, spread = kernel.work, fit(kernel, machine)
    mhz, sms = machine.gpu_mhz, machine.sms
    cached = 0.0 if not machine.l2 else min(1.0, machine.l2 / max(working_set, work.bytes, 1))
    even = sms * mhz / spread.imbalance  # SM-cycles in a microsecond that do work

    plain = work.flops - work.tensor_flops
    issued = plain * constant("instructions_per_flop")
    issued += max(0, work.instructions - plain) * constant("address_share")
    rate = min(machine.lanes, SCHEDULERS * WARP) * (machine.half_rate if kernel.half else 1.0)
    throughput = {
        "dram": work.bytes * (1 - cached) / bandwidth,
        "l2": work.bytes / (L2_BYTES_CYCLE * constant("l2_efficiency") * even),
        "instructions": issued / (rate * constant("issue_efficiency") * even),
    }
    if work.tensor_flops and (tensor := tensor_rate(machine.arch)):
        amount = work.tensor_flops / (2 * tensor * (1.0 if kernel.half else 0.5))
        throughput["tensor"] = amount / (constant("tensor_efficiency") * even)

    dram_cycles = (machine.latency_ns or constant("dram_ns")) * mhz / 1e3
    load = cached * constant("l2_cycles") + (1 - cached) * dram_cycles
    chain = kernel.chain
    cycles = (
        chain.alu * constant("alu_cycles")
        + ceil(chain.memory / constant("loads_together")) * load
        + chain.shared * constant("shared_cycles")
        + chain.tensor * constant("tensor_cycles")
        + chain.barriers * constant("barrier_cycles")
    )
    rounds = ceil(spread.waves)  # blocks that follow one another on the busiest SM
    latency = cycles * rounds / mhz
    # What is waited for and what is issued overlap where there are other warps to run: the longer
    # of the two decides.
    parts = {"launch": launch, **throughput, "latency": latency}
    return parts, launch + max(latency, *throughput.values())
