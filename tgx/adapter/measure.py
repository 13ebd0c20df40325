"""`tgx devices measure`: small benchmarks that find what no data sheet says.

All are tinygrad programs: they run on any device, and measure what a tinygrad program gets there,
through tinygrad's own run time and kernels.

    launch         a kernel of almost no work, waited for each time
    graph_launch   the same among 64 in one TinyJit graph
    copy           b = a + 1 over arrays much larger than the caches: bytes read plus bytes written
    latency        a chain of loads, each from the place the last one named
    fma            a product of two matrices
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tinygrad import Device, Tensor, TinyJit, dtypes
from tinygrad.dtype import AddrSpace
from tinygrad.uop.ops import AxisType, KernelInfo, UOp

from tgx.hardware.measure import Timing, cpu_profile, facts, filled
from tgx.hardware.profiles import Profile

MIB = 1 << 20
IN_GRAPH = 64
RUNS = 7


def measure(
    profile: Profile | None = None, say: Callable[[str], None] = lambda line: None
) -> tuple[Profile, dict[str, Timing]]:
    """The profile (this CPU's, where none is given) filled with what the default device measured,
    and the raw timings."""
    device = Device.DEFAULT
    timings = {}
    for name, timing in benchmarks():
        timings[name] = timing
        say(f"{name}: {facts({name: timing})[name]}")
    how = f"tgx devices measure on the device {device}, Python {platform.python_version()}"
    if profile is None:
        name = cpu_name()
        profile = cpu_profile(slug(name), name, cores(), memory_gb())
        how += f", {platform.machine()}"
    return filled(profile, facts(timings), how), timings


def benchmarks() -> Iterator[tuple[str, Timing]]:
    yield "launch", launch()
    yield "graph_launch", graph_launch()
    yield "copy", copy()
    yield "latency", latency()
    yield "fma", fma()


def timed(run: Callable[[], object], amount: float, runs: int = RUNS, warm: int = 3) -> Timing:
    """Run it a few times unseen, then with a clock, waiting for the device each time."""
    device = Device[Device.DEFAULT]
    for _ in range(warm):
        run()
    device.synchronize()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        device.synchronize()
        seconds.append(time.perf_counter() - started)
    return Timing(tuple(seconds), amount)


def launch() -> Timing:
    """One jitted kernel of almost no work: what a program pays for a step of one kernel."""

    @TinyJit
    def step(x: Tensor) -> Tensor:
        return (x + 1).realize()

    x = Tensor.zeros(4).contiguous().realize()
    return timed(lambda: step(x), 1, runs=200)


def graph_launch() -> Timing:
    """A chain of kernels in one graph, each needing the last."""

    @TinyJit
    def step(x: Tensor) -> Tensor:
        for _ in range(IN_GRAPH):
            x = (x + 1).contiguous()
        return x.realize()

    x = Tensor.zeros(4).contiguous().realize()
    return timed(lambda: step(x), IN_GRAPH, runs=50)


def copy(size: int = 64 * MIB) -> Timing:
    """An array of so many floats: 256 MiB, several times the caches of most machines."""

    @TinyJit
    def step(x: Tensor) -> Tensor:
        return (x + 1).realize()

    x = Tensor.zeros(size).contiguous().realize()
    return timed(lambda: step(x), 2 * 4 * size)


def latency(lines: int = 2 * MIB, steps: int = 1 << 18) -> Timing:
    """One long cycle through memory in random order, `i = table[i]`: no load can begin before the
    last has ended. On one thread, through 256 MiB with one place for each 128 bytes."""
    words = 32  # of 4 bytes: a cache line of NVIDIA's, two of a CPU's
    order = np.random.default_rng(0).permutation(lines).astype(np.int32)
    cycle = np.zeros((lines, words), np.int32)
    cycle[order, 0] = np.roll(order, -1) * words
    table = Tensor(cycle.reshape(-1)).realize()

    def walk(out: UOp, table: UOp, start: UOp) -> UOp:
        """In tinygrad's own UOps, for every device: a loop around one register."""
        place = UOp.placeholder((1,), dtypes.int, 0, addrspace=AddrSpace.REG)
        place = place.after(place[0].store(start[0].load()))
        loop = UOp.range(steps, 0, AxisType.REDUCE)
        following = table[place.after(loop)[0].load()].load()
        done = place.after(place[0].store(following).end(loop))
        return out[0].store(done[0].load()).sink(arg=KernelInfo(name="walk", opts_to_apply=()))

    @TinyJit
    def step(start: Tensor) -> Tensor:
        out = Tensor.empty(1, dtype=dtypes.int)
        return Tensor.custom_kernel(out, table, start, fxn=walk)[0].realize()

    place = Tensor([0], dtype=dtypes.int).realize()

    def run() -> None:  # goes on where the last one ended: what it meets is not cached
        nonlocal place
        place = step(place).clone().realize()

    return timed(run, steps)


def fma(n: int = 1024) -> Timing:
    """A product of two matrices: what multiply-adds a tinygrad program gets out of the device."""

    @TinyJit
    def step(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b).realize()

    a, b = Tensor.ones(n, n).contiguous().realize(), Tensor.ones(n, n).contiguous().realize()
    return timed(lambda: step(a, b), 2 * n**3)


# **************** this machine ****************


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return match[1].strip() if match else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A file's name from a CPU's: "Intel(R) Xeon(R) @ 2.2GHz" is intel-xeon-2-2ghz."""
    plain = re.sub(r"\((R|TM|tm|C)\)|\bCPU\b|\bProcessor\b", "", name)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "cpu"


def memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def cores() -> int:
    """The CPUs this process may run on: fewer than the machine has, in a container."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
