"""The native runner, and the one pool of threads that works for it.

`runtime.ll` is the code; this file compiles it once per process, starts the workers when the first
kernel of more than one chunk comes, and starts anew in a forked child, which has none.

One caller at a time has the workers; another one's kernels run on its own thread alone. Who that is
is decided in `tgx_run`, by one atomic swap: no Python lock that a signal could leave held.
"""
from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from importlib.resources import files

from tinygrad.helpers import NUM_CPU_THREADS, getenv

from tgx.devices import stacks
from tgx.devices.compiler import Loaded, TGXCompiler, make_room

# How often an idle worker looks for work before it sleeps: about 100 µs. Waking one takes 17 µs.
SPINS = 3000
POOL_BYTES = 512
MUTEX, COND, STOP, SPIN = 256, 384, 200, 208  # offsets, see runtime.ll

PAUSE = {  # what a waiting CPU should do: (declaration, call)
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "arm64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}
CLOCK_MONOTONIC = 8 if sys.platform == "darwin" else 1


def runtime_source(architecture: str) -> str:
    """`runtime.ll` for an architecture."""
    declare, call = PAUSE.get(architecture, ("", ""))
    text = (files("tgx.devices") / "runtime.ll").read_text()
    for key, value in (("declare_pause", declare), ("pause", call), ("clock", CLOCK_MONOTONIC)):
        text = text.replace("{" + key + "}", str(value))
    return text


class Runtime:
    """The native functions of `runtime.ll`, callable from Python without the GIL."""

    def __init__(self) -> None:
        compiler = TGXCompiler()
        source = runtime_source(compiler.architecture)
        names = ("tgx_run", "tgx_worker", "tgx_wake", "tgx_clock", "tgx_copy")
        self.loaded = Loaded(compiler.compile_cached(source), names)
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        address = self.loaded.address
        self.run = ctypes.CFUNCTYPE(None, pointer, i64, pointer, pointer)(address["tgx_run"])
        self.worker = ctypes.CFUNCTYPE(None, pointer)(address["tgx_worker"])
        self.wake = ctypes.CFUNCTYPE(None, pointer)(address["tgx_wake"])
        self.clock = ctypes.CFUNCTYPE(i64)(address["tgx_clock"])
        self.copy_address = address["tgx_copy"]


class Pool:
    """Up to `size` threads beside the caller, as many as the system grants. They are daemons: they
    never keep a program alive, and what they look at is never freed."""

    def __init__(self, runtime: Runtime, size: int) -> None:
        memory = ctypes.create_string_buffer(POOL_BYTES + 64)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))  # for ever: see the docstring
        self.size, self.address = 0, (ctypes.addressof(memory) + 63) & ~63
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_init(ctypes.c_void_p(self.address + MUTEX), None)
        libc.pthread_cond_init(ctypes.c_void_p(self.address + COND), None)
        ctypes.c_int64.from_address(self.address + SPIN).value = SPINS
        try:
            with stacks.large():
                for number in range(size):
                    make_room()  # a thread that starts without memory would never say so
                    threading.Thread(target=runtime.worker, args=(self.address,), daemon=True,
                                     name=f"tgx-{number}").start()
                    self.size += 1
        except (RuntimeError, MemoryError):
            pass  # a limit on threads or memory, or Python is shutting down: fewer will do
        except BaseException:  # Ctrl-C, and nobody will know this pool
            ctypes.c_int64.from_address(self.address + STOP).value = 1
            runtime.wake(self.address)
            raise


_lock = threading.RLock()  # reentrant: a signal handler may come here while we do
_runtime: Runtime | None = None
_pool: Pool | None = None


def runtime() -> Runtime:
    """The native functions, compiled and loaded once. Workers run in them: never unloaded."""
    global _runtime
    if _runtime is None:
        with _lock:
            if _runtime is None:
                made = Runtime()
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
                _runtime = _runtime or made
    return _runtime


def worker_count() -> int:
    """Threads beside the caller's: tinygrad's NUM_CPU_THREADS less one; none with THREADS=0."""
    return max(0, NUM_CPU_THREADS.value - 1) if getenv("THREADS", 1) else 0


def pool() -> Pool | None:
    """The pool, started now if it is not yet; None on one CPU, and where no thread can start."""
    global _pool
    if _pool is None and worker_count():
        native = runtime()
        with _lock:
            if _pool is None:
                made = Pool(native, worker_count())
                _pool = _pool or made
    return _pool if _pool is not None and _pool.size else None


def _forget() -> None:
    """In a forked child: the threads stayed with the parent, and the lock may be held for ever."""
    global _pool, _lock
    _pool, _lock = None, threading.RLock()


os.register_at_fork(after_in_child=_forget)


def run(jobs: int, count: int, stamps: int = 0, shared: bool = True) -> None:
    """Runs `count` jobs at address `jobs`; writes count + 1 times to `stamps`, if given.

    Ctrl-C is noticed when this returns: the list is always run to its end.
    """
    native = runtime()
    workers = pool() if shared else None
    address = workers.address if workers is not None else None
    if stacks.enough():
        native.run(jobs, count, address, stamps)
    else:
        stacks.call(native.run, jobs, count, address, stamps)


def supported() -> str | None:
    """Why this runtime cannot work here, or None."""
    if sys.platform == "win32":
        return "TGX needs POSIX threads: Linux or macOS (on Windows, use WSL)"
    if sys.maxsize < 2**32:
        return f"TGX needs a 64-bit Python, this one is 32-bit ({platform.machine()})"
    return None
