"""Which compiler from PyPI makes code for which NVIDIA architecture.

NVIDIA drops old architectures as it adds new ones, so no single NVRTC serves a Jetson Nano (sm_53,
2014's Maxwell) and a Jetson Thor (sm_110) alike. The table was checked by compiling with every
wheel in it; `tgx.adapter.nvrtc` asks the library itself, and turns to this table only to say which
wheel would have done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tgx.errors import BadInput


@dataclass(frozen=True)
class Wheel:
    """One NVRTC on PyPI: a compiler from CUDA C++ to machine code, as a shared library."""

    package: str  # as pip knows it, with bounds
    headers: str  # the package whose headers `half` kernels include
    cuda: str
    archs: tuple[int, ...]

    def compiles(self, arch: str) -> bool:
        return number(arch) in self.archs


WHEELS = (
    Wheel(
        "nvidia-cuda-nvrtc-cu12>=12.9,<13",
        "nvidia-cuda-runtime-cu12>=12.9,<13",
        "12.9",
        (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121),
    ),
    Wheel(
        "nvidia-cuda-nvrtc>=13,<14",
        "nvidia-cuda-runtime>=13,<14",
        "13",
        (75, 80, 86, 87, 88, 89, 90, 100, 103, 107, 110, 120, 121),
    ),
    Wheel(
        "nvidia-cuda-nvrtc-cu11>=11.8,<12",
        "nvidia-cuda-runtime-cu11>=11.8,<12",
        "11.8",
        (35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90),
    ),
)


def number(arch: str) -> int:
    """87 for "sm_87"; the architecture-specific "sm_90a" counts as 90."""
    match = re.fullmatch(r"sm_(\d{2,3})[a-z]?", arch)
    if match is None:
        raise BadInput(
            f"{arch!r} is not an architecture",
            "sm_ and the compute capability without its dot: sm_53, sm_87, sm_110",
            "`tgx devices` lists the boards tgx knows; a board's profile has its architecture",
        )
    return int(match[1])


def wheels_for(arch: str) -> tuple[Wheel, ...]:
    """The wheels that compile for `arch`; the first is the one to install."""
    return tuple(wheel for wheel in WHEELS if wheel.compiles(arch))


def install(arch: str) -> str:
    """The command that gets a compiler for `arch`; what to do where there is none."""
    wheels = wheels_for(arch)
    if not wheels:
        known = sorted({a for wheel in WHEELS for a in wheel.archs})
        return "no wheel on PyPI compiles it; they know " + ", ".join(f"sm_{a}" for a in known)
    wheel = wheels[0]
    return f"python -m pip install '{wheel.package}' '{wheel.headers}'"
