"""Counted mode, while it runs: the cache model, what each kernel has done so far, and the table
that a program prints when it ends. How kernels come to count is told in counting.py.

Counted kernels run one after the other on one thread, whatever the pool: there is one model of the
caches, and it sees their accesses in the order of the chunks, so that every run gives the same
numbers.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinygrad.device import TinyELF
from tinygrad.helpers import Target, cpu_profile
from tinygrad.uop.ops import Ops, UOp

from tgx.devices import threads
from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.devices.counting import LINE, SYMBOL, Asked, Table, asked_of, counted, evaluate
from tgx.devices.graph import TGXGraph
from tgx.devices.ops_tgx import TGXBuffer, TGXProgram
from tgx.devices.record import record_of
from tgx.devices.renderer import TGXRenderer

# ***************************** the cache model *****************************


@dataclass(frozen=True)
class Cache:
    """One cache of the model. Its sets are a power of two."""

    name: str
    nbytes: int
    ways: int

    @property
    def sets(self) -> int:
        return self.nbytes // (LINE * self.ways)

    def __str__(self) -> str:
        return f"{self.name} ({self.nbytes >> 10} KiB, {self.ways} ways)"


# The sizes that the tile path plans for (`Machine` in model.py): the same on every machine, so that
# counts are. What CPUs of today have is near.
CACHES = (Cache("L1", 32 << 10, 8), Cache("L2", 1 << 20, 8))


class CacheModel:
    """The native model of counting.ll, with its memory: two caches, empty."""

    def __init__(self, caches: tuple[Cache, Cache] = CACHES) -> None:
        names = ("tgx_touch", "tgx_touch_lanes", "tgx_cold")
        source = (files("tgx.devices") / "counting.ll").read_text()
        self.loaded = Loaded(TGXCompiler().compile_cached(source), names)
        self.tags = [array("q", bytes(8 * c.sets * c.ways)) for c in caches]
        self.words = array("q")
        for cache, tags in zip(caches, self.tags, strict=True):
            self.words.extend((tags.buffer_info()[0], cache.sets - 1, cache.ways))
        self.words.extend(self.loaded.address[name] for name in names)
        self.address = self.words.buffer_info()[0]
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        at = self.loaded.address
        self.touch = ctypes.CFUNCTYPE(None, pointer, pointer, i64, i64)(at["tgx_touch"])
        self.lanes = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, i64, i64)(
            at["tgx_touch_lanes"]
        )
        self.cold = ctypes.CFUNCTYPE(None, pointer, i64)(at["tgx_cold"])


@functools.cache
def cache_model() -> CacheModel:
    return CacheModel()


# ***************************** what a kernel did *****************************


@dataclass(frozen=True)
class Traffic:
    """What launches did with one piece of memory: a buffer (`word` is its argument word), or what
    TGX puts beside them (word -1). Loads and stores are elements; misses are lines."""

    name: str
    word: int
    nbytes: int
    loads: int = 0
    stores: int = 0
    loaded: int = 0
    stored: int = 0
    l1: int = 0
    l2: int = 0


@dataclass(frozen=True)
class Counts:
    """What a number of launches of one kernel did, and what tinygrad had estimated for them:
    operations, bytes loaded and stored, distinct bytes (-1: unknown)."""

    key: int  # equal for equal code
    name: str
    path: str
    calls: int
    flops: int
    integer: int
    memory: tuple[Traffic, ...]
    estimates: tuple[int, int, int]

    def plus(self, other: Counts, sign: int = 1) -> Counts:
        """With another's launches of the same kernel; `sign` -1 takes them away."""
        memory = tuple(
            replace(m, **{n: getattr(m, n) + sign * getattr(o, n) for n in NUMBERS})
            for m, o in zip(self.memory, other.memory, strict=True)
        )
        estimates = tuple(
            a + sign * b if a >= 0 and b >= 0 else -1
            for a, b in zip(self.estimates, other.estimates, strict=True)
        )
        return replace(
            self,
            calls=self.calls + sign * other.calls,
            flops=self.flops + sign * other.flops,
            integer=self.integer + sign * other.integer,
            memory=memory,
            estimates=estimates,  # type: ignore[arg-type]
        )

    def total(self, number: str, own: bool = True) -> int:
        """One number of `Traffic`, added up over the buffers; `own=False` adds copies, tables."""
        return sum(getattr(m, number) for m in self.memory if m.word >= 0 or not own)


NUMBERS = ("loads", "stores", "loaded", "stored", "l1", "l2")


class Counter:
    """The block of words that a loaded kernel counts in (see counting.py), read as `Counts`."""

    def __init__(self, name: str, text: str) -> None:
        table = Table.loads(text)
        self.name, self.table, self.key = name, table, hash(text)
        self.model = cache_model()
        self.rows = 1 + 2 * len(table.memory)  # where the counters begin
        self.block = array("q", bytes(8 * (self.rows + len(table.rows))))
        self.block[0] = self.model.address
        self.address = self.block.buffer_info()[0]
        self.calls, self.estimated = 0, [0, 0, 0]
        register(self)

    def launched(self, values: Mapping[str, int]) -> None:
        """One launch, with these values of the kernel's variables."""
        self.calls += 1
        for i, e in enumerate(self.table.estimates):
            number = evaluate(e, values)
            self.estimated[i] = -1 if number < 0 else self.estimated[i] + number

    def reset(self) -> None:
        self.calls, self.estimated = 0, [0, 0, 0]
        for i in range(1, len(self.block)):
            self.block[i] = 0

    def counts(self) -> Counts:
        table, flops, integer = self.table, 0, 0
        sums = [[0, 0, 0, 0] for _ in table.memory]
        for n, row in zip(self.block[self.rows :], table.rows, strict=True):
            flops, integer = flops + n * row.flops, integer + n * row.integer
            for place, *numbers in row.accesses:
                for i, number in enumerate(numbers):
                    sums[place][i] += n * number
        memory = tuple(
            Traffic(m.name, m.word, m.nbytes, *sums[i], *self.block[1 + 2 * i : 3 + 2 * i])
            for i, m in enumerate(table.memory)
        )
        a, b, c = self.estimated
        return Counts(
            self.key, self.name, table.path, self.calls, flops, integer, memory, (a, b, c)
        )


# ***************************** all of them *****************************

_lock = threading.RLock()  # one caller at a time: there is one cache model
_counters: list[weakref.ref[Counter]] = []


def register(counter: Counter) -> None:
    """Remembers a kernel, for the table at the end. One that is let go (BEAM's candidates) goes."""
    _counters.append(weakref.ref(counter, _counters.remove))


Launches = Iterable[tuple[Counter, Mapping[str, int]]]  # and the values of their variables


def run(jobs: int, count: int, launches: Launches, stamps: int = 0) -> None:
    """Runs counted jobs: one caller at a time, one thread."""
    with _lock:
        threads.run(jobs, count, stamps, shared=False)
        for counter, values in launches:
            counter.launched(values)


def _child() -> None:
    """A forked child counts what it does itself."""
    global _lock
    _lock = threading.RLock()
    for counter in living():
        counter.reset()


os.register_at_fork(after_in_child=_child)


def living() -> list[Counter]:
    return [c for ref in _counters if (c := ref()) is not None]


def all_counts() -> list[Counts]:
    """Every kernel that ran, in the order they were loaded."""
    with _lock:
        return [c.counts() for c in living() if c.calls]


# ***************************** the device's classes, counting *****************************


class CountingCompiler(TGXCompiler):
    """Puts the counting in, where a kernel asks for it. Everything else, `optimized` for the
    explorer's sake too, is as ever: a kernel reads as it does without."""

    def __init__(self, arch: str = "") -> None:
        super().__init__(arch)
        code = (Path(__file__).with_name(name).read_bytes() for name in ("counting.py", "parse.py"))
        self.cachekey = f"{self.cachekey}_{hashlib.sha256(b''.join(code)).hexdigest()[:16]}"

    def compile(self, src: str) -> bytes:
        asked = Asked.of(src)
        return super().compile(src if asked is None else counted(src, asked))


class CountedRenderer(TGXRenderer):
    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.compiler = CountingCompiler(target.arch)

    def settings(self) -> tuple[object, ...]:
        return (*super().settings(), "count")

    def render(self, uops: list[UOp]) -> str:
        text = super().render(uops)
        name = next((u.arg.function_name for u in uops if u.op is Ops.SINK and u.arg), "kernel")
        record = record_of(text)
        return text + asked_of(name, record.path if record else "", uops).line() + "\n"


class CountedProgram(TGXProgram):
    suffixes = ("", SYMBOL)

    def __init__(self, dev: Any, obj: TinyELF) -> None:
        super().__init__(dev, obj)
        text = ctypes.string_at(self.loaded.address[obj.name + SYMBOL])
        self.counter = Counter(obj.name, text.decode())
        self.arguments = [str(name) for name, *_ in obj.signature]

    def __call__(self, *bufs: TGXBuffer, global_size: tuple[int, int, int] = (1, 1, 1),
                 local_size: tuple[int, int, int] | None = None, vals: tuple[int | None, ...] = (),
                 wait: bool = False, timeout: int | None = None) -> float | None:  # fmt: skip
        words = array("q", [self.counter.address, *[b.address for b in bufs]])
        words.extend(v or 0 for v in vals)
        given = {n: v or 0 for n, v in zip(self.arguments[len(bufs) :], vals, strict=True)}
        job = array("q", [self.address, words.buffer_info()[0] + words.itemsize, global_size[0]])
        with cpu_profile(self.name, self.dev.device, profile_key=self.profile_key):
            start = time.perf_counter()
            run(job.buffer_info()[0], 1, [(self.counter, given)])
            end = time.perf_counter()
        return end - start if wait else None


class CountedGraph(TGXGraph):
    joins, lead = False, 1

    def __init__(self, linear: UOp, input_uops: tuple[UOp, ...] = ()) -> None:
        super().__init__(linear, input_uops)
        base, item = self.words.buffer_info()[0], self.words.itemsize
        self.counters: list[tuple[Counter, dict[str, int]]] = []
        for j, (runtime, call) in enumerate(zip(self.runtimes, self.calls, strict=True)):
            if runtime is not None:
                first = (self.jobs[3 * j + 1] - base) // item
                self.words[first - 1] = runtime.counter.address
                self.counters.append((runtime.counter, call[3]))  # its device's own variables

    def launch(self, stamps: int, var_vals: dict[str, int]) -> None:
        launches = [(counter, {**var_vals, **own}) for counter, own in self.counters]
        run(self.jobs.buffer_info()[0], len(self.calls), launches, stamps)


# ***************************** the table at the end *****************************

MOST_ROWS = 24  # kernels in the table; the rest is added up


def scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    """`25.7 M`: three digits and a unit."""
    scale = 0
    while abs(value) >= step * 0.9995 and scale < len(units) - 1:
        value, scale = value / step, scale + 1
    digits = f"{value:.0f}" if scale == 0 or abs(value) >= 99.95 else f"{value:.3g}"
    return f"{digits} {units[scale]}".strip()


def size(nbytes: float) -> str:
    return scaled(nbytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def number(value: float) -> str:
    return scaled(value, 1000, ("", "k", "M", "G", "T"))


def ratio(counted: float, estimated: float) -> str:
    """How many times the estimate; nothing to compare with is nothing."""
    return f"{counted / estimated:.3g}×" if estimated > 0 else ""


def merged(all_of: Iterable[Counts]) -> list[Counts]:
    """Launches of equal kernels together: the same code may be loaded for several devices."""
    found: dict[tuple[str, int], Counts] = {}
    for c in all_of:
        key = c.name, c.key
        found[key] = found[key].plus(c) if key in found else c
    return list(found.values())


def table_text(all_of: Iterable[Counts], most: int = MOST_ROWS) -> str:
    """What every kernel did, the one that moves most first, and with which of its buffers."""
    kernels = sorted(merged(all_of), key=lambda c: -(c.total("loaded") + c.total("stored")))
    calls = sum(c.calls for c in kernels)
    rows = [("kernel", "calls", "flops", "×est", "loaded", "stored", "×est", "L1 miss", "L2 miss")]
    for c in kernels[:most]:
        n = c.calls
        loaded, stored = c.total("loaded"), c.total("stored")
        rows.append(
            (
                f"{c.name[:34]} {c.path}", str(n), number(c.flops / n),
                ratio(c.flops, c.estimates[0]), size(loaded / n), size(stored / n),
                ratio(loaded + stored, c.estimates[1]),
                number(c.total("l1", own=False) / n), number(c.total("l2", own=False) / n),
            )
        )  # fmt: skip
        for m in c.memory:
            if not (m.loads or m.stores):
                continue
            moved = m.loaded + m.stored
            rows.append(
                (
                    f"  {m.name} of {size(m.nbytes)}", "", "", "",
                    size(m.loaded / n) if m.loads else "", size(m.stored / n) if m.stores else "",
                    "", number(m.l1 / n), number(m.l2 / n),
                    f"  {moved / n / m.nbytes:.3g} times its size" if m.nbytes else "",
                )
            )  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(9)]
    body = [
        "  ".join([r[0].ljust(widths[0]), *(r[i].rjust(widths[i]) for i in range(1, 9)), *r[9:]])
        for r in rows
    ]
    out = [
        f"TGX_COUNT: {len(kernels)} kernels, {calls} launches. The numbers are of one launch.",
        *body,
    ]
    if len(kernels) > most:
        out.append(f"… and {len(kernels) - most} more kernels that move less")
    out += [
        "×est: counted, over tinygrad's estimate. Misses: lines of 64 bytes that a model of",
        f"{CACHES[0]} and {CACHES[1]}, empty at each launch's start, had not.",
    ]
    return "\n".join(line.rstrip() for line in out)


def print_table() -> None:
    """At the program's end, to stderr."""
    if found := all_counts():
        print(f"\n{table_text(found)}", file=sys.stderr)


atexit.register(print_table)
