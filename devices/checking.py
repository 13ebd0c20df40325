"""Checked mode at run time (TGX_CHECK=1): who owns what memory, what was written, what failed.

The device's own classes stay as they are; those here are put in their place when a device is opened
with TGX_CHECK set (ops_tgx.py). instrument.py says what a checked kernel checks, and how.

Memory handed out by the allocator has a state: *tags*, one byte for each of its bytes (0 never
written, 1 written), or none, once all of it was written. A kernel runs its slow copy, which keeps
the tags, in its first launch (to see which chunk writes what), and as long as what it reads is not
all written, or what it writes is not known to be. After that nothing is left but the fast copy.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.device import BufferSpec, TinyELF
from tinygrad.dtype import DType, dtypes
from tinygrad.helpers import Target, cpu_profile
from tinygrad.uop.ops import Ops, UOp

from tgx import settings
from tgx.adapter import origins
from tgx.devices import threads
from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.devices.graph import TGXGraph
from tgx.devices.instrument import (
    BLAME,
    BOUNDS,
    CHUNK,
    DETAIL,
    FAIL,
    INFINITY,
    LAUNCH,
    LAUNCH_TAGS,
    LOADED,
    NAN,
    OFFSET,
    RACE_LOAD,
    RACE_STORE,
    RUN_WORDS,
    SCAN,
    SITE,
    STATE,
    STORED,
    TABLE_SUFFIX,
    WHAT_WORD,
    Argument,
    Site,
    Table,
    checked,
    table_of,
)
from tgx.devices.ops_tgx import TGXAllocator, TGXBuffer, TGXProgram
from tgx.devices.renderer import TGXRenderer, is_pointer
from tgx.errors import CheckFailed

TIMED = "test"
"""The name BEAM gives to kernels that it times, on buffers in which nothing was ever written."""

# ***************************** memory *****************************


class Memory:
    """One allocation. `tags` is None where all of it was written."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size
        self.tags: np.ndarray | None = None

    def forget(self) -> None:
        """It was handed out anew: nothing of it is written."""
        self.tags = np.zeros(self.size, np.uint8)

    def of(self, address: int, size: int) -> np.ndarray | None:
        """The tags of a part."""
        start = address - self.address
        return None if self.tags is None else self.tags[start : start + size]

    def written(self, address: int, size: int) -> bool:
        part = self.of(address, size)
        return part is None or bool(part.all())

    def write(self, address: int, size: int) -> None:
        if (part := self.of(address, size)) is not None and not part.all():
            part[:] = 1
            self.settle(part)

    def settle(self, part: np.ndarray) -> None:
        """After a launch: what its chunks wrote is written. No tags where that is everything."""
        np.minimum(part, 1, out=part)
        if self.tags is not None and part.all() and self.tags.all():
            self.tags = None


class Memories:
    """The allocations of this process, by address. What is not among them (a user's own memory, or
    what was allocated before checking began) counts as written."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.known: dict[int, Memory] = {}
        self.lock = threading.Lock()

    def add(self, memory: Memory) -> None:
        with self.lock:
            if memory.address not in self.known:
                bisect.insort(self.starts, memory.address)
            self.known[memory.address] = memory

    def remove(self, address: int) -> None:
        with self.lock:
            if self.known.pop(address, None) is not None:
                del self.starts[bisect.bisect_left(self.starts, address)]

    def at(self, address: int) -> Memory | None:
        with self.lock:
            i = bisect.bisect_right(self.starts, address) - 1
            memory = self.known[self.starts[i]] if i >= 0 else None
        return memory if memory is not None and address < memory.address + memory.size else None


memories = Memories()


class CheckedAllocator(TGXAllocator):
    """An allocator that knows what was written."""

    def _alloc(self, size: int, options: BufferSpec) -> TGXBuffer:
        buffer = super()._alloc(size, options)
        if options.external_ptr is None:
            memories.add(Memory(buffer.address, size))
        return buffer

    def alloc(self, size: int, options: BufferSpec | None = None) -> TGXBuffer:
        buffer = super().alloc(size, options)
        memory = memories.known.get(buffer.address)
        if memory is not None and not (options is not None and options.zero):
            memory.forget()
        return buffer

    def _free(self, opaque: TGXBuffer, options: BufferSpec) -> None:
        if opaque.owner is None:
            memories.remove(opaque.address)
        super()._free(opaque, options)

    @property
    def _as_buffer(self) -> Any:  # type: ignore[override]
        """Not offered: what the host reads or writes goes through _copyout and _copyin."""
        raise AttributeError("_as_buffer")

    def copy_of(self, src: TGXBuffer) -> bytearray:
        copy = bytearray(src.size)
        self._copyout(memoryview(copy), src)
        return copy

    def _copyin(self, dest: TGXBuffer, src: memoryview) -> None:
        super()._copyin(dest, src)
        write(dest.address, len(src))

    def _copyout(self, dest: memoryview, src: TGXBuffer) -> None:
        memory = memories.at(src.address)
        if memory is not None and not memory.written(src.address, len(dest)):
            tags = memory.of(src.address, len(dest))
            assert tags is not None
            first = int(np.argmin(tags))
            raise failure(
                "copy", "unwritten",
                f"a copy to the host reads byte {first} of {len(dest)} of a buffer that was never "
                "written there",
                "memory to be written before it is read: Tensor.empty holds nothing",
            )  # fmt: skip
        super()._copyout(dest, src)

    def _transfer(
        self, dest: TGXBuffer, src: TGXBuffer, sz: int, src_dev: Any, dest_dev: Any
    ) -> None:
        super()._transfer(dest, src, sz, src_dev, dest_dev)
        copy_tags(dest.address, src.address, sz)


def write(address: int, size: int) -> None:
    if (memory := memories.at(address)) is not None:
        memory.write(address, size)


def copy_tags(to: int, source: int, size: int) -> None:
    target, origin = memories.at(to), memories.at(source)
    tags = None if origin is None else origin.of(source, size)
    if target is None or target.tags is None:
        return
    part = target.of(to, size)
    assert part is not None
    part[:] = 1 if tags is None else tags
    target.settle(part)


# ***************************** compiling *****************************

NAMES = {dtypes.half: "half", dtypes.bfloat16: "bfloat16", dtypes.float32: "float",
         dtypes.float64: "double"}  # fmt: skip


def dtype_name(dtype: DType) -> str:
    return NAMES.get(dtype, dtype.name)


def arguments_of(uops: Sequence[UOp]) -> list[Argument]:
    """The buffers of a kernel, in the order of its argument words."""
    found = {u.arg.slot: u for u in uops if u.op is Ops.PARAM and is_pointer(u)}
    return [
        Argument(f"data{slot}", u.max_numel() * u.dtype.itemsize, dtype_name(u.dtype),
                 u.dtype.itemsize)
        for slot, u in sorted(found.items())
    ]  # fmt: skip


def literals_of(uops: Sequence[UOp]) -> int:
    """Which numbers that are not finite stand in a program: 1 NaN, 2 infinity."""
    numbers = [u.arg for u in uops if u.op is Ops.CONST and isinstance(u.arg, float)]
    return (1 if any(map(math.isnan, numbers)) else 0) | (2 if any(map(math.isinf, numbers)) else 0)


class CheckedRenderer(TGXRenderer):
    """TGX's renderer, and the pass over what it wrote."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.kinds = settings.check()
        self.literals: int | None = None

    def settings(self) -> tuple[object, ...]:  # type: ignore[override]
        return (*super().settings(), "check", *sorted(self.kinds))

    def optimize(self, k: Scheduler) -> Scheduler | None:
        # here, where exp is still exp: later it is full of infinities of tinygrad's own
        self.literals = literals_of(list(k.ast.toposort()))
        return super().optimize(k)

    def render(self, uops: list[UOp]) -> str:
        text = super().render(uops)
        literals, self.literals = self.literals, None
        if literals is None:
            literals = literals_of(uops)
        name = next((u.arg.function_name for u in uops if u.op is Ops.SINK and u.arg), "")
        kinds = self.kinds & {"memory"} if name == TIMED else self.kinds
        return checked(text, arguments_of(uops), kinds, literals)


# ***************************** running *****************************


class Native:
    """The functions of check.ll."""

    def __init__(self) -> None:
        names = ("tgx_fail", "tgx_loaded", "tgx_stored", "tgx_scan")
        source = (files("tgx.devices") / "check.ll").read_text()
        self.loaded = Loaded(TGXCompiler().compile_cached(source), names)
        self.address = self.loaded.address


class Run(threading.local):
    """What failed first in this thread: the block that kernels write (see instrument.py)."""

    native: Native | None = None

    def __init__(self) -> None:
        if Run.native is None:
            Run.native = Native()
        self.words = array("q", bytes(8 * RUN_WORDS))
        address = Run.native.address
        for word, name in ((FAIL, "tgx_fail"), (LOADED, "tgx_loaded"), (STORED, "tgx_stored"),
                           (SCAN, "tgx_scan")):  # fmt: skip
            self.words[word] = address[name]
        self.address = self.words.buffer_info()[0]

    def reset(self) -> None:
        self.words[STATE] = 0


@dataclass
class Part:
    """What a launch is given as one argument."""

    address: int
    size: int  # bytes that are there; -1 where nobody knows


class Launch:
    """One kernel and the words it is called with: [launch block] buffers..., variables..."""

    def __init__(self, program: CheckedProgram, words: int, number: int = 0) -> None:
        self.program = program
        table = program.table
        self.block = array("q", bytes(8 * (LAUNCH_TAGS + len(table.arguments) + len(table.sites))))
        self.block[1] = number
        self.address = self.block.buffer_info()[0]
        self.words = words  # the address of the first argument word
        self.written: set[int] = set()  # arguments that are all written, and stay what they are

    def ready(self, parts: list[Part]) -> bool:
        """Is there nothing to learn from the slow copy?"""
        program = self.program
        if not program.shadowed:
            return True
        return program.ran and all(
            i in self.written
            or (memory := memories.at(part.address)) is None
            or memory.tags is None
            or (a.stored and not a.loaded and i in program.fills)
            or memory.written(part.address, a.bytes)
            for i, (a, part) in enumerate(zip(program.table.arguments, parts, strict=True))
        )

    def run(self, parts: list[Part], chunks: int, values: tuple[int, ...]) -> float:
        """Runs it; raises CheckFailed."""
        program, table, run = self.program, self.program.table, here()
        for i, (a, part) in enumerate(zip(table.arguments, parts, strict=True)):
            if 0 <= part.size < a.bytes:
                raise too_small(program, i, part.size)
        shadow = not self.ready(parts)
        self.block[0], self.block[2] = run.address, int(shadow)
        held: list[tuple[Memory | None, np.ndarray]] = []
        if shadow:
            for i, (a, part) in enumerate(zip(table.arguments, parts, strict=True)):
                memory = memories.at(part.address)
                tags = None if memory is None else memory.of(part.address, a.bytes)
                if tags is None:
                    tags, memory = np.ones(a.bytes, np.uint8), None
                held.append((memory, tags))
                self.block[LAUNCH_TAGS + i] = tags.ctypes.data
            for i in range(LAUNCH_TAGS + len(table.arguments), len(self.block)):
                self.block[i] = 0
        job = array("q", [program.address, self.words, chunks])
        start = time.perf_counter()
        threads.run(job.buffer_info()[0], 1, shared=chunks > 1 and not shadow)
        elapsed = time.perf_counter() - start
        failed = bool(run.words[STATE])
        if shadow:
            for i, (memory, tags) in enumerate(held):
                if table.arguments[i].stored and not values and bool((tags >= 2).all()):
                    program.fills.add(i)
                if memory is not None:
                    memory.settle(tags)
            program.ran = program.ran or not failed
        if failed:
            raise failed_kernel(run, self, parts)
        if not shadow:
            self.wrote(parts)
        return elapsed

    def wrote(self, parts: list[Part]) -> None:
        """The fast copy ran: what it is known to fill is written."""
        for i, (a, part) in enumerate(zip(self.program.table.arguments, parts, strict=True)):
            if i in self.program.fills and i not in self.written:
                write(part.address, a.bytes)


_run: Run | None = None


def here() -> Run:
    global _run
    if _run is None:
        _run = Run()
    return _run


class CheckedProgram(TGXProgram):
    """A checked kernel."""

    suffixes = ("", TABLE_SUFFIX)

    def __init__(self, dev: Any, obj: TinyELF) -> None:
        super().__init__(dev, obj)
        text = ctypes.string_at(self.loaded.address[obj.name + TABLE_SUFFIX])
        self.table: Table = table_of(text.decode())
        self.shadowed = "memory" in self.table.kinds and obj.name != TIMED
        self.ran = False  # once, with tags
        self.fills: set[int] = set()  # arguments that a launch writes from end to end

    def __call__(self, *bufs: TGXBuffer, global_size: tuple[int, int, int] = (1, 1, 1),
                 local_size: tuple[int, int, int] | None = None, vals: tuple[int | None, ...] = (),
                 wait: bool = False, timeout: int | None = None) -> float | None:  # fmt: skip
        words = array("q", [0, *[b.address for b in bufs]])
        words.extend(v or 0 for v in vals)
        launch = Launch(self, words.buffer_info()[0] + words.itemsize)
        words[0] = launch.address
        with cpu_profile(self.name, self.dev.device, profile_key=self.profile_key):
            parts = [Part(b.address, b.size) for b in bufs]
            given = tuple(v for v in vals if v is not None)
            elapsed = launch.run(parts, global_size[0], given)
        return elapsed if wait else None


class CheckedGraph(TGXGraph):
    """A captured batch. As long as there is something to learn its kernels are run one by one; then
    all at once, in one native call, as ever."""

    joins, lead = False, 1

    def __init__(self, linear: UOp, input_uops: tuple[UOp, ...] = ()) -> None:
        super().__init__(linear, input_uops)
        base, item = self.words.buffer_info()[0], self.words.itemsize
        self.first = [(address - base) // item for address in self.jobs[1::3]]
        self.launches: list[Launch | None] = []
        for j, (first, runtime) in enumerate(zip(self.first, self.runtimes, strict=True)):
            launch = None if runtime is None else Launch(runtime, base + item * first, j)
            self.launches.append(launch)
            if launch is not None:
                self.words[first - 1] = launch.address
        self.changing = {word for given in self.inputs.values() for word in given}
        self.fixed: set[int] = set()  # jobs whose own buffers are all written
        named = {word for word, _ in self.variables}
        ends = [*[first - 1 for first in self.first[1:]], len(self.words)]
        self.symbolic = [
            tuple(w for w in range(start, end) if w in named)
            for start, end in zip(self.first, ends, strict=True)
        ]

    def parts(self, j: int) -> list[Part]:
        """The buffers of a job, as the words have them now."""
        launch, first = self.launches[j], self.first[j]
        assert launch is not None
        parts = []
        for word in range(first, first + len(launch.program.table.arguments)):
            address = self.words[word]
            memory = memories.at(address)
            left = -1 if memory is None else memory.address + memory.size - address
            parts.append(Part(address, left))
        return parts

    def settled(self) -> bool:
        """Can all jobs run at once? Not if one has something to learn, or to be told."""
        for j, launch in enumerate(self.launches):
            if j in self.fixed:
                continue
            if launch is None:  # a copy
                to, source, size = self.words[self.first[j] : self.first[j] + 3]
                if not all(m is None or m.written(at, size) for at in (to, source)
                           for m in (memories.at(at),)):  # fmt: skip
                    return False
                continue
            parts, table = self.parts(j), launch.program.table
            if not launch.ready(parts):
                return False
            for i, (a, part) in enumerate(zip(table.arguments, parts, strict=True)):
                if i not in launch.written and self.first[j] + i not in self.changing:
                    memory = memories.at(part.address)
                    if memory is None or memory.written(part.address, a.bytes):
                        launch.written.add(i)
            if len(launch.written) == len(table.arguments):
                self.fixed.add(j)
        return True

    def launch(self, stamps: int, var_vals: dict[str, int]) -> None:
        if self.settled():
            self.all_at_once(stamps)
        else:
            for j in range(len(self.launches)):
                self.one(j)

    def one(self, j: int) -> None:
        launch, first = self.launches[j], self.first[j]
        if launch is not None:
            values = tuple(self.words[w] for w in self.symbolic[j])
            launch.run(self.parts(j), self.jobs[3 * j + 2], values)
            return
        threads.run(self.jobs.buffer_info()[0] + 24 * j, 1, shared=False)
        copy_tags(self.words[first], self.words[first + 1], self.words[first + 2])

    def all_at_once(self, stamps: int) -> None:
        run = here()
        for j, launch in enumerate(self.launches):
            if launch is None:
                continue
            launch.block[0], launch.block[2] = run.address, 0
            if j not in self.fixed:
                for i, (a, part) in enumerate(
                    zip(launch.program.table.arguments, self.parts(j), strict=True)
                ):
                    if 0 <= part.size < a.bytes:
                        raise too_small(launch.program, i, part.size)
        threads.run(self.jobs.buffer_info()[0], len(self.launches), stamps, self.shared)
        if run.words[STATE]:
            guilty = self.launches[run.words[LAUNCH]]
            assert guilty is not None
            raise failed_kernel(run, guilty, self.parts(run.words[LAUNCH]))
        for j, launch in enumerate(self.launches):
            if launch is not None and j not in self.fixed:
                launch.wrote(self.parts(j))


# ***************************** saying what failed *****************************


def failure(kernel: str, kind: str, given: str, expected: str, **facts: Any) -> CheckFailed:
    asked, made_of = origins.asked_at(), origins.made_of(kernel)
    if asked:
        given += f"\n  asked for at {asked}"
    given += "".join(f"\n  made of {line}" for line in made_of)
    steps = [NEXT[kind]] if kind in NEXT else []
    if not made_of and kernel != "copy":
        steps.append("with TGX_TRACE=FOLDER beside TGX_CHECK, the lines the kernel is made of "
                     "are told too")
    error = CheckFailed(given, expected, "; ".join(steps))
    error.asked, error.made_of = asked, made_of
    error.kernel, error.kind = kernel, kind
    for name, value in facts.items():
        setattr(error, name, value)
    return error


NEXT = {
    "bounds": "this is a bug of the compiler or of a kernel written by hand, not of the tensors: "
    "please report it with the script",
    "outside": "an index of a kernel written by hand is out of range, or tinygrad has lost this "
    "load's gate, as it does in x.gather(1, y).cumprod(0); without TGX_CHECK the last element is "
    "read instead",
    "race": "this is a bug of the compiler or of a kernel written by hand: please report it with "
    "the script; THREADS=0 runs chunks one after the other",
    "unwritten": "write it first: Tensor.zeros instead of Tensor.empty, or look at why the kernel "
    "that should fill it did not",
    "divide": "look at the divisor before dividing, or choose what happens: "
    "(b != 0).where(a // b, 0)",
    "shift": "shift by less than the width of the type",
    "cast": "clip before the cast: x.clip(low, high).cast(...)",
    "nan": "look at the kernel's inputs; TGX_CHECK=memory,arithmetic lets NaN and infinity pass",
    "infinity": "look at the kernel's inputs; TGX_CHECK=memory,arithmetic lets NaN and infinity "
    "pass",
    "size": "pass a buffer of the size the kernel was compiled for",
}


def too_small(program: CheckedProgram, i: int, size: int) -> CheckFailed:
    a = program.table.arguments[i]
    return failure(
        program.name, "size",
        f"kernel {program.name}: buffer {a.name} has {size} bytes",
        f"at least {a.bytes}, {a.bytes // a.item} elements of {a.dtype}, for which it was compiled",
        buffer=a.name, size=size,
    )  # fmt: skip


def failed_kernel(run: Run, launch: Launch, parts: list[Part]) -> CheckFailed:
    """The error, from what a kernel wrote down; the run is ready for the next one."""
    w, program, table = list(run.words), launch.program, launch.program.table
    run.reset()
    site, what, offset = table.sites[w[SITE]], w[WHAT_WORD], w[OFFSET]
    notes = LAUNCH_TAGS + len(table.arguments)
    note = launch.block[notes + (w[DETAIL] - 1 if what == BLAME else w[SITE])]
    where = f"kernel {program.name}, chunk {w[CHUNK]}"
    a = table.arguments[site.word] if site.word >= 0 else None
    buffer = a.name if a else site.target
    facts: dict[str, Any] = {"buffer": buffer, "line": site.line, "chunk": w[CHUNK]}
    of = f"{buffer} ({describe(a, site)})"

    if what == BOUNDS:
        access, place = outside(site, offset)
        index = facts["index"] = place // site.item
        verb = "reads" if access == "load" else "writes"
        return failure(
            program.name, "bounds",
            f"{where} {verb} outside of a buffer: element {index} of {of}",
            f"an index from 0 to {site.limit // site.item - 1}", **facts,
        )  # fmt: skip
    index = facts["index"] = offset // site.item
    if what in (NAN, INFINITY):
        word = "NaN" if what == NAN else "infinity"
        return failure(
            program.name, "nan" if what == NAN else "infinity",
            f"{where} makes {'a NaN' if what == NAN else 'an infinity'}: element {index} of {of}",
            f"finite numbers: none of the kernel's inputs holds {'a ' if what == NAN else 'an '}"
            f"{word}, so it appears here first", **facts,
        )  # fmt: skip
    if what in (RACE_STORE, RACE_LOAD):
        verb = "writes" if what == RACE_STORE else "reads"
        return failure(
            program.name, "race",
            f"{where} {verb} what chunk {w[DETAIL]} wrote in the same launch: element {index} of "
            f"{of}",
            "chunks to touch different elements: they run at the same time", **facts,
        )  # fmt: skip
    source = table.sites[w[DETAIL] - 1]
    facts["line"] = source.line
    used = f"; it reaches element {index} of {of}" if a is not None and site.kind == "use" else ""
    if source.kind == "unwritten":
        b = table.arguments[source.word]
        note -= 1
        facts |= {"buffer": b.name, "index": note // source.item}
        return failure(
            program.name, "unwritten",
            f"{where} uses memory that was never written: element {note // source.item} of "
            f"{b.name} ({describe(b, source)}){used}",
            "memory to be written before it is read", **facts,
        )  # fmt: skip
    if source.kind == "outside":
        b = table.arguments[source.word]
        facts |= {"buffer": b.name, "index": note}
        return failure(
            program.name, "outside",
            f"{where} uses what lies outside of a buffer: element {note} of {b.name} "
            f"({describe(b, source)}){used}",
            f"an index from 0 to {source.limit // source.item - 1}", **facts,
        )  # fmt: skip
    facts["value"] = value = float_of(note) if source.kind == "cast" else note
    texts = {
        "divide": (f"divides {value} by zero", "a divisor other than 0"),
        "shift": (f"shifts by {value}", "a count below the width of the type"),
        "cast": (f"casts {value} to an integer type that cannot hold it", "a number in range"),
    }
    given, expected = texts[source.kind]
    return failure(program.name, source.kind, f"{where} {given}{used}", expected, **facts)


def describe(a: Argument | None, site: Site) -> str:
    """How big a buffer is."""
    if a is None:
        return f"{site.limit} bytes"
    return f"{a.bytes // a.item} elements of {a.dtype}, {a.bytes} bytes"


def outside(site: Site, offset: int) -> tuple[str, int]:
    """Which access of a group it was, and the byte it touches."""
    for kind, const, length in site.members:
        first = offset + const
        if first < 0:
            return kind, first
        if first + length > site.limit:
            # the first element beyond the end
            return kind, max(first, site.limit - (site.limit - first) % site.item)
    return site.members[0][0], offset + site.members[0][1]


def float_of(bits: int) -> float:
    return float(np.array([bits], np.int64).view(np.float64)[0])
