"""TGX compiler: LLVM IR text in, object code out, machine code in memory. All through llvmlite.

`TGXCompiler.compile` is what tinygrad calls, in the parent or in a worker of its compile pool; the
object code it returns lives in tinygrad's disk cache. `load` links an object into this process.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import mmap
import os
import platform
import resource
import sqlite3
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite.binding.newpassmanagers import NewPassManager
from tinygrad.device import CompileError, Compiler

from tgx.devices import stacks

# Part of every cache key: change it whenever the same IR should give other machine code.
VERSION = "1"

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64",
                 "riscv64": "riscv64"}
TRIPLE = {"x86_64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu",
          "riscv64": "riscv64-unknown-linux-gnu"}


def host_architecture() -> str:
    """This machine, in tinygrad's words: `x86_64,native`, `arm64,native`."""
    machine = platform.machine().lower()
    return f"{ARCHITECTURES.get(machine, machine)},native"


@functools.cache
def initialize_llvm(every_target: bool) -> None:
    if every_target:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@functools.cache
def host_cpu() -> tuple[str, str]:
    """Name and features of this CPU, as LLVM sees them."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


class _Here(threading.local):
    """What one thread of the program is doing with a compiler: see `in_background`."""

    start: Callable[[str], bytes] | None = None


class TGXCompiler(Compiler):
    """`arch` is tinygrad's string: `<architecture>,<cpu>[,<feature>…]`; the cpu `native` is this
    one, a feature with a leading `-` is switched off."""

    def __init__(self, arch: str = "") -> None:
        self.arch = arch or host_architecture()
        self.architecture, cpu, *features = [*self.arch.split(","), "native"][:max(
            2, self.arch.count(",") + 1)]
        if self.architecture not in TRIPLE:
            raise CompileError(f"TGX cannot compile for {self.architecture!r}; it knows "
                               f"{', '.join(TRIPLE)}. Example: DEV=TGX::x86_64,native")
        self.is_host = self.architecture == host_architecture().split(",")[0]
        initialize_llvm(not self.is_host)
        if cpu == "native" and not self.is_host:
            raise CompileError(f"'native' is {host_architecture()} here, not {self.architecture}: "
                               f"name a CPU, as in DEV=TGX::arm64,cortex-a78")
        extra = [f if f[0] in "+-" else f"+{f}" for f in features]
        self.cpu, host_features = host_cpu() if cpu == "native" else (cpu, "")
        # x18 belongs to the operating system on macOS and Windows
        reserved = ["+reserve-x18"] if self.architecture == "arm64" else []
        self.features = ",".join(filter(None, [host_features, *extra, *reserved]))
        self.triple = llvm.get_process_triple() if self.is_host else TRIPLE[self.architecture]
        self._sources: dict[bytes, str] = {}
        self._here = _Here()
        digest = hashlib.sha256("|".join([
            VERSION, llvmlite.__version__, str(llvm.llvm_version_info), self.triple, self.cpu,
            self.features]).encode()).hexdigest()[:16]
        super().__init__(f"compile_tgx_{digest}")

    @property
    def has_half(self) -> bool:
        """Can the CPU convert half to float by itself?"""
        return self.architecture == "arm64" or "+f16c" in self.features.split(",") or \
            self.cpu.startswith(("x86-64-v3", "x86-64-v4", "znver", "haswell", "skylake"))

    @property
    def vector_bytes(self) -> int:
        """Width of a vector register: 64 with AVX-512, 32 with AVX2, else 16."""
        features = self.features.split(",")
        if self.architecture == "x86_64":
            if "+avx512f" in features or self.cpu in ("znver4", "znver5", "x86-64-v4"):
                return 64 if "-avx512f" not in features else 32
            if "+avx2" in features or self.cpu in ("x86-64-v3", "znver3", "haswell"):
                return 32
        return 16

    def target_machine(self) -> llvm.TargetMachine:
        """A target machine of the caller's own: LLVM's are not to be shared between threads."""
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.cpu, features=self.features, opt=3,
                                            reloc="pic", codemodel="default", jit=False)

    @contextlib.contextmanager
    def optimized(self, source: str) -> Iterator[tuple[llvm.ModuleRef, llvm.TargetMachine]]:
        """Parses and optimizes a module, which is there for the length of the `with` block."""
        machine = self.target_machine()
        if self.vector_bytes == 64:  # LLVM would settle for half-width vectors
            source = source.replace(" nounwind {", ' nounwind "prefer-vector-width"="512" {')
        try:
            module = llvm.parse_assembly(source, context=llvm.create_context())
        except RuntimeError as e:
            raise CompileError(self._failure(source, str(e))) from e
        # Closed here, also when LLVM refuses it: left to the garbage collector, which goes through
        # a traceback's frames in any order, its context may go first, and that ends the process.
        with module:
            try:
                module.triple, module.data_layout = self.triple, str(machine.target_data)
                module.verify()
            except RuntimeError as e:
                raise CompileError(self._failure(source, str(e))) from e
            options = llvm.create_pipeline_tuning_options(speed_level=2)
            options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = True
            builder = llvm.create_pass_builder(machine, options)
            passes = builder.getModulePassManager()
            passes.run(module, builder)
            # llvmlite never frees one (its class finds an empty `_dispose` first): 60 KB a kernel
            NewPassManager._dispose(passes)
            passes.detach()
            yield module, machine

    def compile(self, src: str) -> bytes:
        return stacks.call(self._compile, src)

    def _compile(self, src: str) -> bytes:
        make_room()
        with self.optimized(src) as (module, machine):
            return bytes(machine.emit_object(module))

    @contextlib.contextmanager
    def in_background(self) -> Iterator[Callable[[bytes], bytes]]:
        """Inside, `compile_cached` starts LLVM on a thread of its own and returns a ticket at once;
        what this yields turns the ticket into object code, waiting for it if need be.

        A kernel's IR takes Python about as long to write as its code takes LLVM to make, and LLVM
        works without the GIL: so one kernel is written while the one before is compiled.
        """
        started: dict[bytes, Future[bytes]] = {}
        thread = ThreadPoolExecutor(1, "tgx-llvm")

        def start(source: str) -> bytes:
            ticket = hashlib.sha256(source.encode()).digest()
            if ticket not in started:
                make_room()  # here too: a Python thread that starts without memory never says so
                try:
                    with stacks.large():
                        started[ticket] = thread.submit(self.compile, source)
                except RuntimeError:  # no thread to be had: a limit, or Python is shutting down
                    here: Future[bytes] = Future()
                    here.set_result(self.compile(source))
                    started[ticket] = here
            return ticket

        self._here.start = start
        try:
            yield lambda ticket: started[ticket].result()
        finally:
            self._here.start = None
            thread.shutdown(cancel_futures=True)  # after an error, or Ctrl-C: no more of them

    def compile_cached(self, src: str) -> bytes:
        if self._here.start is not None:  # and no look at tinygrad's cache: ours holds all of it
            return self._here.start(src)
        try:
            lib = super().compile_cached(src)
        except (OSError, sqlite3.Error):  # a cache that cannot be used (a read-only home, a full
            lib = self.compile(src)  # disk, another thread's connection) is no cache
        self._sources = {lib: src}  # for DEBUG=7, which hands back only the object code
        return lib

    def assembly(self, source: str) -> str:
        """The machine code of `source`, as text."""
        with self.optimized(source) as (module, machine):
            return str(machine.emit_assembly(module))

    def assembly_of(self, module: str) -> str:
        """The machine code of IR that has been optimized already, as text."""
        with llvm.parse_assembly(module, context=llvm.create_context()) as parsed:
            return str(self.target_machine().emit_assembly(parsed))

    def text_of(self, bitcode: bytes) -> str:
        """A module's IR from its bitcode."""
        with llvm.parse_bitcode(bitcode, context=llvm.create_context()) as parsed:
            return str(parsed)

    def optimized_ir(self, source: str) -> str:
        """`source` after LLVM's passes."""
        with self.optimized(source) as (module, _):
            return str(module)

    def disassemble(self, lib: bytes) -> None:
        source = self._sources.get(lib)
        print(self.assembly(source) if source else "no source at hand for this object")

    def _failure(self, source: str, problem: str) -> str:
        name = next((line.split("@")[1].split("(")[0] for line in source.splitlines()
                     if line.startswith("define void @")), "kernel")
        path = Path(tempfile.gettempdir()) / f"tgx-failed-{name}-{os.getpid()}.ll"
        try:
            path.write_text(source)
            kept = f"its IR is kept in {path}"
        except OSError as e:
            kept = f"its IR could not be kept ({e})"
        return f"LLVM refused kernel {name} ({kept}): {problem.strip()}"


# ***************************** memory *****************************

ROOM = 48 << 20  # bytes of address space LLVM may take for a kernel: its own, a stack, tables
spare: weakref.WeakSet[Any] = weakref.WeakSet()  # allocators, which can give memory back


def make_room() -> None:
    """LLVM ends the process when it gets no memory. So where there is a limit (`ulimit -v`), look
    first; give back what allocators keep for later; at worst raise a MemoryError."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or _room():
        return
    for allocator in list(spare):
        allocator.free_cache()
    if not _room():
        raise MemoryError(f"compiling a kernel may take {ROOM >> 20} MB of memory, and this "
                          f"process has no more than that left of its {limit >> 20} MB: delete "
                          "some Tensors, or raise the limit (ulimit -v)")


def _room() -> bool:
    try:
        mmap.mmap(-1, ROOM).close()
    except OSError:
        return False
    return True


# ***************************** loading *****************************

_load_lock = threading.RLock()  # reentrant: a signal handler may load a program while we do
_load_count = itertools.count(1)


@functools.cache
def _jit() -> llvm.LLJIT:
    initialize_llvm(False)
    return llvm.create_lljit_compiler()


class Loaded:
    """Machine code in this process. It stays mapped for as long as this object lives."""

    def __init__(self, obj: bytes, symbols: tuple[str, ...]) -> None:
        library = llvm.JITLibraryBuilder().add_object_img(obj).add_current_process()
        for symbol in symbols:
            library = library.export_symbol(symbol)
        make_room()
        with _load_lock:
            self._tracker = stacks.call(library.link, _jit(), f"tgx.{next(_load_count)}")
        self.address = {symbol: self._tracker[symbol] for symbol in symbols}


# A fork while another thread is inside LLVM would leave the child an LLVM in disorder, and locks
# that nobody will release: so a fork waits for it.
_llvm_lock = llvm.ffi.lib._lock._lock  # llvmlite's own, around every call of LLVM


def _hold() -> None:
    _load_lock.acquire()
    _llvm_lock.acquire()


def _let_go() -> None:
    _llvm_lock.release()
    _load_lock.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
