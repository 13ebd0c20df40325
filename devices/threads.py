"""The native runner, and the one pool of threads that works for it.

`runtime.ll` is the code; this file compiles it once per process, starts the workers when the first
kernel of more than one chunk comes, and starts anew in a forked child, which has none.
"""
from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import threading
from importlib.resources import files

from tinygrad.helpers import NUM_CPU_THREADS, getenv

from tgx.devices.compiler import Loaded, TGXCompiler

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
    """`size` threads beside the caller. They are daemons: they never keep a program alive."""

    def __init__(self, runtime: Runtime, size: int) -> None:
        self.size = size
        self._memory = ctypes.create_string_buffer(POOL_BYTES + 64)
        self.address = (ctypes.addressof(self._memory) + 63) & ~63
        libc = ctypes.CDLL(None)
        libc.pthread_mutex_init(ctypes.c_void_p(self.address + MUTEX), None)
        libc.pthread_cond_init(ctypes.c_void_p(self.address + COND), None)
        ctypes.c_int64.from_address(self.address + SPIN).value = SPINS
        for number in range(size):
            threading.Thread(target=runtime.worker, args=(self.address,), daemon=True,
                             name=f"tgx-{number}").start()


@functools.cache
def runtime() -> Runtime:
    return Runtime()


def worker_count() -> int:
    """Threads beside the caller's: tinygrad's NUM_CPU_THREADS less one; none with THREADS=0."""
    return max(0, NUM_CPU_THREADS.value - 1) if getenv("THREADS", 1) else 0


_lock = threading.Lock()
_pool: Pool | None = None
_busy = threading.Lock()  # one caller at a time has the workers; another runs its kernels alone


def pool() -> Pool | None:
    """The pool, started now if it is not yet; None on one CPU."""
    global _pool
    if _pool is None and worker_count():
        with _lock:
            if _pool is None:
                _pool = Pool(runtime(), worker_count())
    return _pool


def _forget() -> None:
    """In a forked child: the threads stayed with the parent, and a lock may be held for ever."""
    global _pool, _lock, _busy
    _pool, _lock, _busy = None, threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_forget)


def run(jobs: int, count: int, stamps: int = 0, shared: bool = True) -> None:
    """Runs `count` jobs at address `jobs`; writes count + 1 times to `stamps`, if given."""
    native = runtime()
    workers = pool() if shared else None
    if workers is None or not _busy.acquire(blocking=False):
        native.run(jobs, count, None, stamps)
        return
    try:
        native.run(jobs, count, workers.address, stamps)
    finally:
        _busy.release()


def supported() -> str | None:
    """Why this runtime cannot work here, or None."""
    if sys.platform == "win32":
        return "TGX needs POSIX threads: Linux or macOS (on Windows, use WSL)"
    if sys.maxsize < 2**32:
        return f"TGX needs a 64-bit Python, this one is 32-bit ({platform.machine()})"
    return None
