"""A cache of finished programs on disk, so that a second run compiles nothing.

Of the seconds before a first training step, four fifths are Python rewriting of kernels and one
fifth is LLVM. tinygrad caches only the latter. Here a whole lowered program is kept: what it is
called with, its estimates, its IR and its object code, under a key made of everything that decides
them (see `program_key`). A file is written whole and then renamed, carries its own checksum, and is
deleted when it does not match: processes that share the folder, or die while writing, do no harm.

Programs are machine code, and pickled: whoever can write one can do anything as us. So the folder
is ours alone, and what is not ours, or others could have written to, is not read (`trusted`).

tinygrad looks for programs in `lower_and_compile` (`tinygrad/engine/realize.py`), which the import
hook makes come here first. BEAM, which measures, and DEBUG=3 and above, which print while they
compile, do without.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tinygrad.codegen as codegen
from tinygrad.codegen import to_program
from tinygrad.engine import realize
from tinygrad.helpers import CACHELEVEL, CCACHE, DEBUG, NUM_CPU_THREADS, VIZ, cache_dir, getenv
from tinygrad.helpers import VERSION as SCHEMA
from tinygrad.renderer import Renderer
from tinygrad.uop.ops import Ops, UOp

MAX_BYTES = 256 << 20  # of the whole folder; the files used longest ago go first
MAX_FILE = 16 << 20
SWEEP_EVERY = 64  # writes between two looks at the folder's size
# Starting tinygrad's compile workers costs a second of CPU each: only for many kernels, on many
# cores, does it win over compiling here.
POOL_KERNELS, POOL_CORES = 32, 4


def folder() -> Path:
    return Path(cache_dir) / "tgx_programs"


@functools.cache
def code_version() -> str:
    """A digest of what decides how a kernel is compiled: our files, and tinygrad's release."""
    from importlib.metadata import version
    digest = hashlib.sha256(f"{version('tinygrad')} {version('llvmlite')} {SCHEMA}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def program_key(key: tuple, renderer: Renderer) -> str:
    """Names a program: tinygrad's own key (the kernel, the target, its settings), the compiler's
    (LLVM, CPU, features), and our code's."""
    ast_key, kind, target, *config = key
    parts = [ast_key.hex(), kind.__name__, str(target), repr(config),
             str(renderer.compiler.cachekey),
             repr(renderer.settings()), code_version()]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def slim(program: UOp) -> UOp:
    """A program without the graphs it was made from: what running it needs, and its source."""
    sink, linear, source, binary = program.src
    parameters = tuple(u for u in linear.src if u.op is Ops.PARAM)
    return program.replace(src=(UOp(Ops.SINK, arg=sink.arg), UOp(Ops.LINEAR, src=parameters),
                                source, binary))


# The file a slim program was read from, where `whole` finds the rest of it.
_origin: weakref.WeakKeyDictionary[UOp, Path] = weakref.WeakKeyDictionary()


def trusted(status: os.stat_result) -> bool:
    """Is it ours, and could nobody else write to it?"""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def problem() -> str:
    """Why no program is kept, for `tgx doctor`; empty where they are."""
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        if not trusted(folder().stat()):
            return "it is not yours, or others may write to it"
        tempfile.TemporaryFile(dir=folder()).close()
    except OSError as e:
        return f"{e.strerror}"
    return ""


def contents(path: Path) -> tuple[bytes, bytes] | None:
    """A file's two pickles: the slim program, and the graphs that it left out."""
    try:
        if not trusted(path.parent.stat()):
            return None
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not (stat.S_ISREG(status.st_mode) and trusted(status)) or status.st_size > MAX_FILE:
                return None
            data = file.read()
    except OSError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    middle = 40 + int.from_bytes(data[32:40], "little")
    return data[40:middle], data[middle:]


def read(name: str) -> UOp | None:
    path = folder() / name
    if (found := contents(path)) is None:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used now: swept last
    program = unpickled(found[0])
    if not isinstance(program, UOp):
        return None
    _origin[program] = path
    return program


def unpickled(data: bytes) -> Any:
    """What was pickled; None for what is whole and ours and yet nothing we know."""
    try:
        return pickle.loads(data)
    except Exception:
        return None


def whole(program: UOp) -> UOp:
    """A program with its graphs, for whoever wants to look at them; itself if they are gone."""
    path = _origin.get(program)
    if path is None or (found := contents(path)) is None:
        return program
    graphs = unpickled(found[1])
    return program if graphs is None else program.replace(src=(*graphs, *program.src[2:]))


_writes = 0


def write(name: str, program: UOp) -> None:
    """Keeps a program. A cache that cannot be written (full or read-only disk) is no cache."""
    global _writes
    try:
        short, graphs = pickle.dumps(slim(program)), pickle.dumps(program.src[:2])
        data = len(short).to_bytes(8, "little") + short + graphs
    except (RecursionError, MemoryError):  # too deep, or too big, to be kept
        return
    if len(data) + 32 > MAX_FILE:
        return
    with contextlib.suppress(OSError):
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        if not trusted(folder().stat()):
            return
        handle, temporary = tempfile.mkstemp(dir=folder(), prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, folder() / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _writes += 1
        if _writes % SWEEP_EVERY == 1:
            sweep()


def sweep(limit: int = MAX_BYTES) -> None:
    """Deletes the files used longest ago until the folder is below `limit` bytes."""
    entries = []
    for entry in os.scandir(folder()):
        with contextlib.suppress(OSError):
            status = entry.stat()
            entries.append((status.st_mtime, status.st_size, entry.path))
    excess = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
            excess -= size


def enabled() -> bool:
    return bool(CCACHE) and CACHELEVEL >= 1 and DEBUG < 3 and not VIZ


def compile_all(kernels: Iterable[tuple[UOp, Renderer]]) -> dict[tuple, str]:
    """Puts the programs of these kernels where `lower_and_compile` looks for them.

    Returns what it left to tinygrad's pool: the keys, and the names to keep the programs under.
    """
    missing = {}
    for ast, renderer in kernels:
        key = codegen.to_program_key(ast, renderer)
        if key in codegen.to_program_cache or key in missing:
            continue
        name = program_key(key, renderer) if enabled() else ""
        if name and (program := read(name)) is not None:
            codegen.to_program_cache[key] = program
        else:
            missing[key] = (ast, renderer, name)
    many = len(missing) >= POOL_KERNELS and NUM_CPU_THREADS.value >= POOL_CORES
    if many or getenv("PARALLEL", 0) > 0:  # a user who sets PARALLEL gets the workers he asks for
        return {key: name for key, (_, _, name) in missing.items()}
    compile_here(missing)
    return {}


def compile_here(missing: dict[tuple, tuple[UOp, Renderer, str]]) -> None:
    """Compiles in this process: Python lowers one kernel while LLVM works on the one before.

    Not where somebody looks on, who wants each program whole: DEBUG=4 and above, `tgx trace`.
    """
    if DEBUG >= 4 or codegen.to_program is not to_program:
        for ast, renderer, name in missing.values():
            whole = codegen.to_program(ast, renderer)
            if name:
                write(name, whole)
        return
    from tgx.devices import contract  # late: see renderer.contractions
    by_renderer: dict[Renderer, list[tuple]] = {}
    for key, (_, renderer, _) in missing.items():
        by_renderer.setdefault(renderer, []).append(key)
    for renderer, keys in by_renderer.items():
        with renderer.compiler.in_background() as finished:
            lowered = {key: contract.program(missing[key][0], renderer) for key in keys}
            for key, ticketed in lowered.items():
                *rest, binary = ticketed.src
                code = UOp(Ops.BINARY, arg=finished(binary.arg))
                whole = with_short_estimates(ticketed.replace(src=(*rest, code)))
                codegen.to_program_cache[key] = whole
                if name := missing[key][2]:
                    write(name, whole)


def with_short_estimates(program: UOp) -> UOp:
    """The program, its estimates simplified where sizes are symbolic.

    tinygrad adds them up operation by operation, in a UOp as deep as the kernel is long, which is
    printed to make a key: for a long kernel, deeper than Python 3.12 lets it.
    """
    sink, *rest = program.src
    found = sink.arg.estimates
    if found is None or not any(isinstance(x, UOp) for x in (found.ops, found.lds, found.mem)):
        return program
    info = dataclasses.replace(sink.arg, estimates=found.simplify())
    return program.replace(src=(sink.replace(arg=info), *rest))


def kernels(linear: UOp) -> Iterator[tuple[UOp, Renderer]]:
    """The TGX kernels of a schedule that are still to be compiled, but for BEAM's."""
    from tgx.devices.renderer import TGXRenderer
    for call in linear.toposort():
        if call.op is Ops.CALL and (found := realize._get_call_to_compile(call)) is not None:
            ast, renderer = found
            if isinstance(renderer, TGXRenderer) and ast.op is Ops.SINK and not ast.arg.beam:
                yield ast, renderer


def lower_and_compile(linear: UOp, stock: Callable[[UOp], UOp]) -> UOp:
    """tinygrad's `lower_and_compile` (which is `stock`), with this cache before it."""
    pooled = compile_all(kernels(linear))
    compiled = stock(linear)
    for key, name in pooled.items():
        if name:
            write(name, codegen.to_program_cache[key])
    return compiled
