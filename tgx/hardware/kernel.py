"""One kernel on one GPU, as plain numbers: what it was compiled to and how much it does.

`tgx.adapter.offline` makes these from tinygrad's kernels; the roofline, the model and the tables
work on them, and so can be tested, saved and read again without tinygrad or CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from tgx.errors import BadInput


@dataclass(frozen=True)
class Work:
    """What a launch does, counted in its program (not measured).

    `flops` are arithmetic operations without those that compute addresses, `tensor_flops` those of
    them on tensor cores. `instructions` are per launch over all threads, addresses included.
    `bytes` counts each byte of each buffer once, `traffic` every load and store.
    """

    flops: int = 0
    tensor_flops: int = 0
    instructions: int = 0
    bytes: int = 0
    traffic: int = 0


@dataclass(frozen=True)
class Chain:
    """The longest chain of dependent steps in one thread: what time even an infinite GPU needs."""

    alu: int = 0
    memory: int = 0  # loads from global memory, one after another
    shared: int = 0
    tensor: int = 0
    barriers: int = 0

    def __add__(self, other: Chain) -> Chain:
        return Chain(*(a + b for a, b in zip(self.counts(), other.counts(), strict=True)))

    def __mul__(self, times: int) -> Chain:
        return Chain(*(count * times for count in self.counts()))

    def counts(self) -> tuple[int, int, int, int, int]:
        return self.alu, self.memory, self.shared, self.tensor, self.barriers


@dataclass(frozen=True)
class GpuKernel:
    """One launch. Sizes are in bytes; `grid` counts blocks and `block` threads."""

    name: str
    arch: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    work: Work
    chain: Chain = field(default_factory=Chain)
    half: bool = False  # its arithmetic is on 16-bit numbers
    registers: int = 0
    shared: int = 0
    stack: int = 0
    barriers: int = 0
    code: int = 0
    lines: tuple[str, ...] = ()
    source: str = ""
    ptx: str = ""
    cubin: bytes = b""

    def __post_init__(self) -> None:
        if not self.grid or not self.block or min(*self.grid, *self.block) < 1:
            raise BadInput(
                f"kernel {self.name}: a grid of {self.grid} blocks of {self.block} threads",
                "sizes of at least 1",
            )

    @property
    def blocks(self) -> int:
        return prod(self.grid)

    @property
    def threads(self) -> int:
        """Threads of one block."""
        return prod(self.block)


@dataclass(frozen=True)
class Copy:
    """Bytes moved between the host and the GPU, or between buffers."""

    name: str
    bytes: int
