"""From raw times of small benchmarks to the figures of a profile: pure arithmetic, no clock here.

`tgx.adapter.measure` runs the benchmarks; what it hands over are times, several of each. The figure
is made from the quickest: on a machine that other programs share, every disturbance adds time and
none takes any away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tgx.errors import BadInput
from tgx.hardware.profiles import Fact, Profile

SOURCE = "measured"  # the name of the source that measured facts refer to


@dataclass(frozen=True)
class Timing:
    """Seconds that a benchmark took, each time it ran, and how much it did each time."""

    seconds: tuple[float, ...]
    amount: float  # launches, bytes, loads or operations of one run

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0 or self.amount <= 0:
            raise BadInput(
                f"a benchmark of {self.amount:g} steps that took {self.seconds}",
                "times above 0, and something done",
            )

    @property
    def each(self) -> float:
        """Seconds for one step, in the quickest run."""
        return min(self.seconds) / self.amount

    @property
    def spread(self) -> float:
        """The median over the quickest: 1.0 is quiet; from 1.3 on the machine was busy."""
        ordered = sorted(self.seconds)
        return ordered[len(ordered) // 2] / ordered[0]


# fact -> from seconds for one step to the fact's unit
CONVERT = {
    "launch": lambda each: each * 1e6,
    "graph_launch": lambda each: each * 1e6,
    "copy": lambda each: 1 / each / 1e9,
    "latency": lambda each: each * 1e9,
    "fma": lambda each: 1 / each / 1e9,
}
UNITS = {"launch": "us", "graph_launch": "us", "copy": "GB/s", "latency": "ns", "fma": "GFLOPS"}


def facts(timings: Mapping[str, Timing]) -> dict[str, Fact]:
    """The measured facts, rounded to what such a measurement is worth: three digits."""
    return {
        name: Fact(
            float(f"{CONVERT[name](timing.each):.3g}"),
            UNITS[name],
            SOURCE,
            "measured",
            f"median {timing.spread:.2f} times the quickest of {len(timing.seconds)}",
        )
        for name, timing in timings.items()
    }


def filled(profile: Profile, measured: Mapping[str, Fact], how: str) -> Profile:
    """The profile with measured facts in it; `how` says on what they were measured."""
    return replace(
        profile,
        facts={**profile.facts, **measured},
        sources={**profile.sources, SOURCE: how},
    )


def cpu_profile(id: str, name: str, cores: int, memory_gb: float) -> Profile:
    """A CPU's profile before anything is measured."""
    said = "the operating system"
    return Profile(
        id=id,
        name=name,
        kind="cpu",
        facts={
            "cpu": Fact(name, source="system", confidence="high"),
            "cpu_cores": Fact(cores, source="system", confidence="high"),
            "memory": Fact((round(memory_gb, 1),), "GB", "system", "high"),
        },
        sources={"system": said},
    )


def busy(timings: Mapping[str, Timing], limit: float = 1.3) -> Sequence[str]:
    """The benchmarks whose runs differed so much that something else used the machine."""
    return [name for name, timing in timings.items() if timing.spread > limit]
