"""How many blocks of a kernel fit on one SM of an NVIDIA GPU, and what the whole grid makes of it.

The arithmetic is NVIDIA's published one (the occupancy calculator of the CUDA toolkit): a block
needs warps, registers and shared memory, each handed out in steps of a certain size; the resource
that runs out first decides. `tests/check_occupancy.py` compares it with NVIDIA's own header,
cuda_occupancy.h, on random kernels.

Occupancy is only half of the story. It says how full an SM *can* be; a small grid leaves most SMs
with nothing at all, at whatever occupancy. `Fit` therefore also counts waves, idle SMs and the
warps that are really there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tgx.errors import BadInput
from tgx.hardware import toolchains

WARP = 32
MAX_THREADS_BLOCK = 1024
SHARED_BLOCK = 49_152  # static shared memory of a block, on every capability
REGISTER_STEP = 256  # registers are handed to a warp in steps of this many
PARTITIONS = 4  # an SM is four quarters, each with its own registers and warps
UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class SmLimits:
    """What one SM of an architecture has."""

    threads: int
    blocks: int
    registers: int
    registers_block: int
    shared: int  # bytes
    shared_step: int
    shared_reserved: int  # bytes of each block that the driver keeps for itself
    registers_thread: int
    barriers: int


def _limits(
    threads: int,
    blocks: int,
    shared_kib: int,
    *,
    registers_block: int = 65_536,
    old: bool = False,
    ampere: bool = True,
    barriers: int = 0,
) -> SmLimits:
    return SmLimits(
        threads=threads,
        blocks=blocks,
        registers=65_536,
        registers_block=registers_block,
        shared=shared_kib * 1024,
        shared_step=128 if ampere else 256,
        shared_reserved=1024 if ampere else 0,
        registers_thread=255 if old else 256,
        barriers=barriers,
    )


# From NVIDIA's CUDA programming guide (technical specifications per compute capability) and
# cuda_occupancy.h. `barriers` counts from capability 9 on, where the calculator looks at them.
LIMITS: dict[int, SmLimits] = {
    53: _limits(2048, 32, 64, registers_block=32_768, old=True, ampere=False),
    62: _limits(2048, 32, 64, old=True, ampere=False),
    70: _limits(2048, 32, 96, ampere=False),
    72: _limits(2048, 32, 96, ampere=False),
    75: _limits(1024, 16, 64, ampere=False),
    80: _limits(2048, 32, 164),
    86: _limits(1536, 16, 100),
    87: _limits(1536, 16, 164),
    89: _limits(1536, 24, 100),
    90: _limits(2048, 32, 228, barriers=64),
    100: _limits(2048, 32, 228, barriers=64),
    110: _limits(1536, 24, 228, barriers=24),
    120: _limits(1536, 24, 100, barriers=24),
}


def limits_of(arch: str) -> SmLimits:
    number = toolchains.number(arch)
    if number not in LIMITS:
        known = ", ".join(f"sm_{n}" for n in LIMITS)
        raise BadInput(f"no limits are recorded for {arch}", f"one of {known}")
    return LIMITS[number]


@dataclass(frozen=True)
class Occupancy:
    """How many blocks fit on one SM, and what stops the next one."""

    blocks: int  # per SM; 0: not even one, the kernel cannot be launched
    limited_by: tuple[str, ...]  # of "warps", "blocks", "registers", "shared memory", "barriers"
    warps_block: int
    warps_max: int  # per SM
    registers_block: int  # as handed out, in whole steps
    shared_block: int  # as handed out, with what the driver keeps

    @property
    def warps(self) -> int:
        """Warps on an SM that is full."""
        return self.blocks * self.warps_block

    @property
    def fraction(self) -> float:
        return self.warps / self.warps_max


def occupancy(
    limits: SmLimits, threads: int, registers: int, shared: int, barriers: int = 1
) -> Occupancy:
    """The occupancy of a kernel with blocks of `threads` threads, `registers` registers a thread
    and `shared` bytes of shared memory a block."""
    if threads < 1 or registers < 0 or shared < 0 or barriers < 0:
        raise BadInput(
            f"a block of {threads} threads, {registers} registers, {shared} bytes, "
            f"{barriers} barriers",
            "at least one thread, and nothing negative",
        )
    warps = ceil(threads / WARP)
    by_warps = limits.threads // WARP // warps if threads <= MAX_THREADS_BLOCK else 0

    # Registers go to whole warps. A launch is refused by a check that counts whole rows of warps
    # over the four quarters; what fits is counted quarter by quarter.
    warp_registers = _round_up(registers * WARP, REGISTER_STEP)
    checked = warp_registers * _round_up(warps, PARTITIONS)
    if registers > limits.registers_thread or checked > limits.registers_block:
        by_registers = 0
    elif warp_registers:
        by_registers = limits.registers // PARTITIONS // warp_registers * PARTITIONS // warps
    else:
        by_registers = UNLIMITED

    block_shared = _round_up(shared + limits.shared_reserved, limits.shared_step)
    if block_shared > SHARED_BLOCK + limits.shared_reserved:
        by_shared = 0
    else:
        by_shared = limits.shared // block_shared if block_shared else UNLIMITED

    rows = {
        "warps": by_warps,
        "registers": by_registers,
        "shared memory": by_shared,
        "blocks": limits.blocks,
    }
    if limits.barriers and barriers:
        rows["barriers"] = limits.barriers // barriers
    blocks = min(rows.values())
    return Occupancy(
        blocks=blocks,
        limited_by=tuple(name for name, most in rows.items() if most == blocks),
        warps_block=warps,
        warps_max=limits.threads // WARP,
        registers_block=warp_registers * warps,
        shared_block=block_shared,
    )


@dataclass(frozen=True)
class Fit:
    """A whole grid on a GPU with so many SMs."""

    occupancy: Occupancy
    grid: int  # blocks
    sms: int

    @property
    def waves(self) -> float:
        """How often the GPU is filled: 2.1 means two full waves, and a third with little to do."""
        return self.grid / (self.sms * self.occupancy.blocks) if self.occupancy.blocks else 0.0

    @property
    def busy_sms(self) -> int:
        """SMs that get at least one block in the fullest wave."""
        return min(self.grid, self.sms)

    @property
    def idle_sms(self) -> int:
        return self.sms - self.busy_sms

    @property
    def resident_blocks(self) -> int:
        """Blocks on the fullest SM: never more than the grid has to give."""
        return min(self.occupancy.blocks, ceil(self.grid / self.sms))

    @property
    def resident_warps(self) -> int:
        """Warps on the fullest SM. This, not occupancy, is what hides latency."""
        return self.resident_blocks * self.occupancy.warps_block

    @property
    def imbalance(self) -> float:
        """Time of the SM with most blocks over the mean: 1 is even, 8 is one SM of eight at work.

        Blocks are handed out one by one as others end, so only the rest of the division counts.
        """
        return ceil(self.grid / self.sms) * self.sms / self.grid if self.grid else 1.0


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
