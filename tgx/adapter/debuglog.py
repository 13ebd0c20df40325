"""A ``DEBUG=2`` … ``7`` log of any tinygrad run becomes a trace: a Jetson's or a colleague's log
opens like the rest.

What tinygrad prints, by level:

    2  *** CUDA       12 r_64_16          arg  3 mem   0.01 GB tm     12.34us/     1.20ms (  120
    GFLOPS …) 3  scheduled    12 kernels in …       and      r_64_16   opts: (Opt(op=OptOps.UPCAST,
    …),) 4  every kernel's source 7  every kernel's machine code, and every allocation

A log says nothing about lines of the program, operations or reasons, and the trace says that it
does not. This module needs no tinygrad, and reads a log from a stranger: file, lines and code are
bounded, no pattern can be made to search for long, and unknown lines are the program's own.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tgx import model
from tgx.errors import BadInput

MOST_BYTES = 512 * 2**20
MOST_LINE = 1 << 16
MOST_SAID = 1 << 12  # characters of a line that says something: a launch, a schedule
MOST_CODE = 1 << 20  # characters of one kernel's source
MOST_STRETCH = 2 * MOST_CODE  # and of all code between two lines of tinygrad's own
MOST_ALL_CODE = 64 * MOST_CODE
MOST_RUNS = 200_000  # launches kept one by one, and as many events; all are counted

ANSI = re.compile(r"\x1b\[(?:K|[0-9;:]{0,40}m)")

LAUNCH = re.compile(
    r"\*\*\* (?P<device>[\w:]+) +(?P<number>\d+) (?P<name>.+?) {1,200}arg +(?P<args>\d+) "
    r"mem +(?P<mem>[\d.]+) GB(?: tm +(?P<time>[\d.]+)(?P<unit>us|ms|s )/ +[\d.]+ms "
    r"\( *(?P<gflops>[\d.]+) (?P<scale>[GT])FLOPS +(?P<mems>\d+)\|"
    r"(?P<lds>\d+) +(?P<mscale>[GT])B/s\))?"
)
SCHEDULED = re.compile(
    r"scheduled +(?P<kernels>\d+) kernels in +(?P<ms>[\d.]+) ms \| +"
    r"(?P<cache>CACHE MISS|cache hit) "
    r"(?P<key>[0-9a-f]+) \| +\d+ uops in cache(?: \| (?P<file>.+):(?P<line>\d+))?"
)
OPTS = re.compile(r"(?P<name>\w+) +opts: (?P<opts>\(.*\))$")
OPT = re.compile(
    r"Opt\(op=OptOps\.(\w{1,40}), axis=(-?\w{1,40}), arg=((?:[^()]|\([^()]{0,200}\)){1,200})\)"
)
ALLOCATE = re.compile(r"buffer: (allocate|deallocate) (\d+) bytes on (\S+)")
NOISE = re.compile(
    r"opened device |loading \w+ |JIT |jit execs|memory reduced|system: |c\d+ = |ast = |upcasting |"
    r"compiling|split \d+:|\*{20,}|/tmp/\S+: +file format|pruned from|rewrote |unrolling |LOCAL "
)

# the line that begins a kernel's function, in each language a renderer writes
DEFINITION = re.compile(
    r'^(?:extern "C" )?(?:__global__ |kernel |__kernel )?(?:__attribute__\(\([^()]*(?:\([^()]*\))?'
    r"[^()]*\)\) )?void (?:__launch_bounds__\(\d+\) |__attribute__\(\([^()]*(?:\([^()]*\))?"
    r"[^()]*\)\) )*(\w+)\("
    r"|^define (?!internal).*@([\w$]+)\(|^\.visible \.entry (\w+)|^@compute.*fn (\w+)\("
)
PREAMBLE = re.compile(
    r"^(#|typedef |struct |declare |target |source_filename|; |define internal|\.version|\.target|"
    r"\.address_size|__device__|using |template|inline |static |@\w|extern |enable )"
)
LISTING = re.compile(r"^[0-9a-f]{8,} <([\w.$]+)>:")
LISTED = re.compile(r"^ *[0-9a-f]+:\t")
ASSEMBLY = re.compile(r"^\t\.(text|file|globl|section|type|p2align)|^\.LCPI")

UNITS = {"us": 1.0, "ms": 1e3, "s ": 1e6}


@dataclass
class _Seen:
    """One kernel, as the log goes on telling about it."""

    id: int
    name: str
    device: str
    times: list[float] = field(default_factory=list)
    launches: int = 0
    flops: int = -1
    nbytes: int = -1


@dataclass
class _Log:
    kernels: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    order: dict[int, None] = field(default_factory=dict)  # kernels as they first ran
    runs: list[model.Run] = field(default_factory=list)
    memory: list[model.MemoryEvent] = field(default_factory=list)
    events: list[model.Event] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    frames: dict[tuple[str, int], int] = field(default_factory=dict)
    opts: dict[str, tuple[model.Opt, ...]] = field(default_factory=dict)
    code: dict[str, dict[str, str]] = field(default_factory=dict)
    clock: float = 0.0
    code_size: int = 0
    used: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)


def read(path: str | Path) -> model.Trace:
    """The trace of a log file."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(
                f"{path} has more than {MOST_BYTES >> 20} MB",
                "a DEBUG log",
                "cut it: the first part of a log is a log too",
            )
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            return _parse(_pieces(file), path.name)
    except OSError as e:
        raise BadInput(
            f"{path} cannot be read: {e.strerror}", "a log of a run with DEBUG=2"
        ) from None


def parse(text: str, name: str = "log") -> model.Trace:
    """The trace of a log's text."""
    return _parse(_pieces(io.StringIO(text, newline="\n")), name)


def _parse(pieces: Iterator[str], name: str) -> model.Trace:
    log = _Log()
    code: list[str] = []
    size = 0  # of this stretch of code: what is longer than two kernels' has no end
    for piece in pieces:
        if piece == "\n" and not code:
            continue
        line = _line(piece)
        if _known(log, line[:MOST_SAID]):
            _sources(log, code)
            code, size = [], 0
        elif code or _begins_code(line[:MOST_SAID]):
            size += len(line) + 1
            if size < MOST_STRETCH:
                code.append(line)
    _sources(log, code)
    if not log.kernels:
        raise BadInput(
            f"{name} has no kernel launch in it",
            "lines that begin with ***, as DEBUG=2 prints",
            "DEBUG=2 python script.py > log.txt 2>&1",
        )
    return _trace(log, name)


def _pieces(file: IO[str]) -> Iterator[str]:
    """Lines, of which only the beginning is kept where they are very long."""
    whole = True
    while piece := file.readline(MOST_LINE):
        if whole:
            yield piece
        whole = piece.endswith("\n")


def _line(piece: str) -> str:
    # a progress bar goes back to the line's start: what stands after it counts
    return ANSI.sub("", piece.rstrip("\r\n").rpartition("\r")[2]).rstrip()


def _begins_code(line: str) -> bool:
    return bool(
        DEFINITION.match(line)
        or PREAMBLE.match(line)
        or LISTING.match(line)
        or ASSEMBLY.match(line)
    )


# **** lines tinygrad prints itself ****


def _known(log: _Log, line: str) -> bool:
    if line.startswith("***") and (found := LAUNCH.match(line)):
        _launch(log, found)
    elif line.startswith("scheduled") and (found := SCHEDULED.match(line)):
        _scheduled(log, found)
    elif " opts: " in line and (found := OPTS.match(line)):
        log.opts[found["name"]] = tuple(_opts(found["opts"]))
    elif line.startswith("buffer: ") and (found := ALLOCATE.match(line)):
        _allocated(log, found)
    else:
        return bool(NOISE.match(line))
    return True


LARGEST = 1e15  # of any number in a log: microseconds, operations, bytes


def _number(text: str | None) -> float:
    """A number that a log may say; -1 for any other."""
    try:
        value = float(text or "")
    except ValueError:  # 1.2.3
        return -1.0
    return value if 0 <= value <= LARGEST else -1.0


def _launch(log: _Log, found: re.Match[str]) -> None:
    device, name = found["device"], found["name"].strip()
    seen = log.kernels.setdefault((device, name), _Seen(len(log.kernels), name, device))
    if device not in log.devices:
        log.devices.append(device)
    seen.launches += 1
    log.order[seen.id] = None
    time_us = _number(found["time"]) * UNITS.get(found["unit"], 1.0)
    if time_us < 0 or log.clock + time_us > LARGEST:
        return
    seen.times.append(time_us)
    if len(log.runs) < MOST_RUNS:
        log.runs.append(model.Run(seen.id, log.clock, time_us, 0, "device"))
    log.clock += time_us
    work = _number(found["gflops"]) * (1e3 if found["scale"] == "G" else 1e6) * time_us
    if 0 < work <= LARGEST and seen.flops < 0:
        seen.flops = round(work)
    moved = _number(found["mems"]) * (1e3 if found["mscale"] == "G" else 1e6) * time_us
    if 0 < moved <= LARGEST and seen.nbytes < 0:
        seen.nbytes = round(moved)


def _scheduled(log: _Log, found: re.Match[str]) -> None:
    frame = -1
    line = int(_number(found["line"]))
    if found["file"] and line >= 0:
        path = found["file"].replace("\\", "/").rpartition("/")[2]
        log.files.setdefault(path, len(log.files))
        frame = log.frames.setdefault((path, line), len(log.frames))
    if len(log.events) >= MOST_RUNS:
        return
    log.events.append(
        model.Event(
            "schedule",
            f"{found['kernels']} kernels, {found['cache'].lower()}",
            log.clock,
            min(max(_number(found["ms"]) * 1e3, 0.0), LARGEST),
            frame,
        )
    )


def _opts(text: str) -> Iterator[model.Opt]:
    for op, axis, amount in OPT.findall(text):
        number = int(amount) if re.fullmatch(r"-?[0-9]{1,15}", amount) else 0
        place = int(axis) if re.fullmatch(r"-?[0-9]{1,15}", axis) else -1
        yield model.Opt(op, place, number, f"{op} axis {axis} by {amount}")


def _allocated(log: _Log, found: re.Match[str]) -> None:
    nbytes = int(_number(found[2])) * (1 if found[1] == "allocate" else -1)
    if _number(found[2]) < 0 or len(log.memory) >= MOST_RUNS:
        return
    used = log.used[found[3]] = max(0, log.used.get(found[3], 0) + nbytes)
    log.memory.append(model.MemoryEvent(log.clock, found[3], nbytes, used))


# **** code ****


def _sources(log: _Log, lines: list[str]) -> None:
    """Sorts a stretch of code into the kernels whose it is."""
    current: list[str] = []
    level, name = "source", ""
    finished = False

    def flush() -> None:
        text = "\n".join(current).strip("\n")
        if name and text and level not in log.code.get(name, {}) and log.code_size < MOST_ALL_CODE:
            log.code.setdefault(name, {})[level] = text[:MOST_CODE]
            log.code_size += min(len(text), MOST_CODE)

    for line in lines:
        listing = LISTING.match(line)
        definition = DEFINITION.match(line) if level != "asm" or not current else None
        if listing:
            flush()
            current, level, name, finished = [], "asm", listing[1], False
        elif level == "asm" and LISTED.match(line):
            pass
        elif level == "source" and ASSEMBLY.match(line) and (finished or not current):
            flush()
            current, level, name, finished = [], "asm", "", False
        elif level == "asm" and (PREAMBLE.match(line) or DEFINITION.match(line)):
            flush()
            current, level, name, finished = [], "source", "", False
            definition = DEFINITION.match(line)
        elif finished and line.startswith("define internal") and f"@{name}." in line:
            pass  # the kernel's own body, which its entry calls
        elif finished and (definition or PREAMBLE.match(line)) and not line.startswith("declare"):
            flush()
            current, name, finished = [], "", False
        if definition:
            name = next(g for g in definition.groups() if g)
        if level == "asm" and line.startswith("\t.globl\t"):
            name = line.split("\t")[2].strip()
        current.append(line)
        if level == "source" and name and line == "}":
            finished = True
    flush()


def function_name(name: str) -> str:
    """A kernel's function: tinygrad writes characters a function cannot have as hex."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c == "_") else f"{ord(c):02X}" for c in name
    )


def _language(text: str) -> str:
    if "define " in text and "{" in text and ("@" in text):
        return "llvm"
    return "ptx" if ".visible .entry" in text else "c"


# **** the trace ****


def _trace(log: _Log, name: str) -> model.Trace:
    programs: list[model.Program] = []
    kernels: list[model.Kernel] = []
    timings: list[model.Timing] = []
    for seen in log.kernels.values():
        copy = seen.name.startswith(("copy ", "enc/dec"))
        program = -1
        function = function_name(seen.name)
        if not copy:
            program = len(programs)
            panes = log.code.get(function, {})
            programs.append(
                model.Program(
                    program,
                    seen.name,
                    seen.device,
                    opts=log.opts.get(function, ()),
                    code=tuple(
                        model.Code(level, text, _language(text) if level == "source" else "asm")
                        for level, text in panes.items()
                    ),
                    flops=seen.flops,
                    bytes=seen.nbytes,
                )
            )
        kernels.append(
            model.Kernel(
                seen.id,
                seen.name,
                seen.name,
                seen.device,
                "data" if copy else "forward",
                "copy" if copy else "kernel",
                0,
                program,
                flops=seen.flops,
                bytes=seen.nbytes,
            )
        )
        if seen.times:
            timings.append(
                model.Timing(
                    seen.id,
                    len(seen.times),
                    sum(seen.times),
                    min(seen.times),
                    statistics.median(seen.times),
                )
            )
    missing = (
        "made from a DEBUG log, which names no operations, no source lines and no reasons: "
        "tgx trace records them",
    )
    return model.Trace(
        environment=model.Environment(program=name, device=", ".join(log.devices), missing=missing),
        files=tuple(model.File(n, path) for path, n in log.files.items()),
        frames=tuple(
            model.Frame(n, log.files[path], line) for (path, line), n in log.frames.items()
        ),
        programs=tuple(programs),
        kernels=tuple(kernels),
        schedules=(model.Schedule(0, tuple(log.order), name="log"),),
        realizes=(model.Realize(0, 0, 0.0, log.clock),),
        runs=tuple(log.runs),
        timings=tuple(timings),
        memory=tuple(log.memory),
        events=tuple(log.events),
    )


def names_and_counts(trace: model.Trace) -> dict[str, int]:
    """How often each kernel ran, by tinygrad's name: what a log and a live trace must agree on."""
    counts: dict[str, int] = {}
    for k in trace.kernels:
        timing = trace.timing(k.id)
        counts[k.tinygrad_name] = counts.get(k.tinygrad_name, 0) + (timing.calls if timing else 0)
    return counts
