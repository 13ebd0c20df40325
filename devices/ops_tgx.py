"""TGX: a tinygrad device. Read this file first, then renderer.py, compiler.py, graph.py.

tinygrad asks a device for four things: memory (an allocator), code (a renderer and its compiler,
see renderer.py), a way to run it (a program), and, for TinyJit, a way to run many at once (a graph,
see graph.py). They are put together in `TGXDevice`, at the end.

There is no queue: a program has finished when the call returns. Its work may be spread over
threads, see threads.py.
"""
from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from array import array
from typing import Any

from tinygrad.device import (
    Allocator,
    BufferSpec,
    Compiled,
    LRUAllocator,
    ProfileDeviceEvent,
    Program,
    TinyELF,
)
from tinygrad.helpers import PROFILE, cpu_profile, from_mv, to_mv

from tgx import settings
from tgx.devices import threads
from tgx.devices.compiler import Loaded, host_architecture, spare
from tgx.devices.graph import TGXGraph
from tgx.devices.renderer import TGXRenderer


class TGXBuffer:
    """`size` bytes at `address`. `owner` is what keeps them alive, if we do not."""

    __slots__ = ("address", "owner", "size")

    def __init__(self, address: int, size: int, owner: Any = None) -> None:
        self.address, self.size, self.owner = address, size, owner

    @property
    def va_addr(self) -> int:
        """tinygrad's name for a buffer's address."""
        return self.address


_libc = ctypes.CDLL(None, use_errno=True)
_libc.posix_memalign.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t)
_libc.free.argtypes = (ctypes.c_void_p,)

ALIGNMENT = 64  # a cache line, and the widest vector
HUGE_PAGE = 2 << 20  # big buffers start on one, and ask for more: fewer TLB misses
MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)


class TGXAllocator(LRUAllocator["TGXDevice"]):
    """Host memory, aligned; freed buffers are kept and given out again (tinygrad's LRU, but for
    threads: a buffer leaves the cache in one step, so no two ever get the same one)."""

    def __init__(self, dev: TGXDevice) -> None:
        super().__init__(dev, supports_copy_from_disk=False, supports_transfer=True)
        spare.add(self)

    def alloc(self, size: int, options: BufferSpec | None = None) -> TGXBuffer:
        try:
            return self.cache[size, options].pop()
        except IndexError:
            pass
        try:
            return Allocator.alloc(self, size, options)
        except MemoryError:
            self.free_cache()
            return Allocator.alloc(self, size, options)

    def free_cache(self) -> None:
        for size, options in list(self.cache):
            with contextlib.suppress(IndexError):  # empty
                while True:
                    Allocator.free(self, self.cache[size, options].pop(), size, options)

    def _alloc(self, size: int, options: BufferSpec) -> TGXBuffer:
        if options.external_ptr is not None:
            return TGXBuffer(options.external_ptr, size, owner=options)
        address, big = ctypes.c_void_p(), size >= HUGE_PAGE
        if _libc.posix_memalign(ctypes.byref(address), HUGE_PAGE if big else ALIGNMENT, size):
            raise MemoryError(f"TGX could not get {size} bytes of memory")
        if big and MADV_HUGEPAGE is not None:
            _libc.madvise(address, ctypes.c_size_t(size), MADV_HUGEPAGE)
        if options.zero or not big:  # the system gives zeros to big ones, the heap what was there
            ctypes.memset(address, 0, size)
        return TGXBuffer(int(address.value or 0), size)

    def _free(self, opaque: TGXBuffer, options: BufferSpec) -> None:
        if opaque.owner is None:
            _libc.free(opaque.address)

    def _as_buffer(self, src: TGXBuffer) -> memoryview:
        return to_mv(src.address, src.size)

    def copy_of(self, src: TGXBuffer) -> bytearray:
        """What a buffer holds now."""
        return bytearray(self._as_buffer(src))

    def _copyin(self, dest: TGXBuffer, src: memoryview) -> None:
        ctypes.memmove(dest.address, from_mv(src), len(src))

    def _copyout(self, dest: memoryview, src: TGXBuffer) -> None:
        ctypes.memmove(from_mv(dest), src.address, len(dest))

    def _transfer(self, dest: TGXBuffer, src: TGXBuffer, sz: int, src_dev: TGXDevice,
                  dest_dev: TGXDevice) -> None:
        with cpu_profile(f"{src_dev.device} -> {dest_dev.device}", dest_dev.device):
            ctypes.memmove(dest.address, src.address, sz)

    def _offset(self, buf: TGXBuffer, size: int, offset: int) -> TGXBuffer:
        return TGXBuffer(buf.address + offset, size, owner=buf)

    def _map(self, buf: Any) -> TGXBuffer:
        """Another device's buffer, if it lies in host memory."""
        if isinstance(buf, TGXBuffer):
            return buf
        if isinstance(address := getattr(buf, "va_addr", None), int) and \
                getattr(buf, "view", None) is not None:
            return TGXBuffer(address, buf.size, owner=buf)
        raise RuntimeError(f"TGX cannot see the memory of a {type(buf).__name__}: copy it with "
                           ".to('TGX')")


# What special modes add to an object, after the kernel's name, and the variables they go by. Such
# a kernel is called in another way; a pickled TinyJit may bring one to where it is not.
MODES = {".counted": "TGX_COUNT", ".tgx.table": "TGX_CHECK"}


class TGXProgram(Program["TGXDevice"]):
    """A compiled kernel, loaded and ready to call."""

    suffixes: tuple[str, ...] = ("",)  # of the symbols that are looked up, after the kernel's name

    def __init__(self, dev: TGXDevice, obj: TinyELF) -> None:
        if dev.renderer.compiler.is_host is False:
            raise RuntimeError(f"this kernel was compiled for {obj.target}, it cannot run on this "
                               f"machine ({host_architecture()}); unset the arch in DEV to run")
        for suffix, variable in MODES.items():
            if (made := f"{obj.name}{suffix}".encode() in obj.lib) != (suffix in self.suffixes):
                raise RuntimeError(f"kernel {obj.name} was compiled with{'' if made else 'out'} "
                                   f"{variable}=1 and cannot run with{'out' if made else ''} it: "
                                   f"{'set' if made else 'unset'} {variable}, or compile anew")
        self.dev, self.name, self.profile_key = dev, obj.name, obj.profile_key
        self.loaded = Loaded(obj.lib, tuple(obj.name + s for s in self.suffixes))
        self.address = self.loaded.address[obj.name]

    def __call__(self, *bufs: TGXBuffer, global_size: tuple[int, int, int] = (1, 1, 1),
                 local_size: tuple[int, int, int] | None = None, vals: tuple[int | None, ...] = (),
                 wait: bool = False, timeout: int | None = None) -> float | None:
        words = array("q", [b.address for b in bufs])
        words.extend(v or 0 for v in vals)
        job = array("q", [self.address, words.buffer_info()[0], global_size[0]])
        with cpu_profile(self.name, self.dev.device, profile_key=self.profile_key):
            start = time.perf_counter()
            threads.run(job.buffer_info()[0], 1, shared=global_size[0] > 1)
            end = time.perf_counter()
        return end - start if wait else None


class TGXDevice(Compiled):
    """`DEV=TGX`. `TGX:0`, `TGX:1`, … are separate devices that share this machine's CPU."""

    def __init__(self, device: str) -> None:
        if problem := threads.supported():
            raise RuntimeError(problem)
        allocator, renderer, program, graph = TGXAllocator, TGXRenderer, TGXProgram, TGXGraph
        if settings.count():
            from tgx.devices import counts as c
            renderer, program, graph = c.CountedRenderer, c.CountedProgram, c.CountedGraph
        elif settings.check():
            from tgx.devices import checking
            allocator, renderer, program, graph = (
                checking.CheckedAllocator, checking.CheckedRenderer, checking.CheckedProgram,
                checking.CheckedGraph)
        super().__init__(device, allocator(self), [renderer], program, graph,
                         arch=host_architecture())
        if PROFILE:
            Compiled.profile_events.append(ProfileDeviceEvent(device))
