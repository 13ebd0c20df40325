"""Enough stack. Kernels copy their factors onto it (`model.PACK_BYTES`), and LLVM recurses.

A thread has 8 MB by default, but `threading.stack_size(64 << 10)`, `ulimit -s` or a small libc can
leave less than one kernel needs, and running past the end is a crash, or worse, another thread's
memory. So the threads made here are given enough, and a caller that has too little has its work
done on one of those.
"""
from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

NEEDED = 1 << 20  # bytes a kernel, or LLVM compiling one, may use
GIVEN = 8 << 20  # to the threads made here; only what is used becomes memory

_libc = ctypes.CDLL(None)
_lock = threading.RLock()  # threading.stack_size is one for all


def size() -> int:
    """Bytes of the calling thread's stack; a guess of plenty where the system does not say."""
    try:
        if sys.platform == "darwin":
            _libc.pthread_get_stacksize_np.restype = ctypes.c_size_t
            _libc.pthread_self.restype = ctypes.c_void_p
            return int(_libc.pthread_get_stacksize_np(ctypes.c_void_p(_libc.pthread_self())))
        attributes = ctypes.create_string_buffer(256)  # pthread_attr_t: 56 bytes, 64 on arm64
        start, length = ctypes.c_void_p(), ctypes.c_size_t()
        _libc.pthread_self.restype = ctypes.c_void_p
        if _libc.pthread_getattr_np(ctypes.c_void_p(_libc.pthread_self()), attributes):
            return GIVEN
        _libc.pthread_attr_getstack(attributes, ctypes.byref(start), ctypes.byref(length))
        _libc.pthread_attr_destroy(attributes)
        return length.value
    except AttributeError:  # a libc without these
        return GIVEN


class _Known(threading.local):
    enough: bool | None = None


_known = _Known()


def enough() -> bool:
    """Has the calling thread the stack that a kernel may need? Asked of the system once."""
    if _known.enough is None:
        _known.enough = size() >= NEEDED
    return _known.enough


@contextmanager
def large() -> Iterator[None]:
    """Threads started inside get GIVEN bytes of stack, whatever the program's own setting is."""
    with _lock:
        before = threading.stack_size(GIVEN)
        try:
            yield
        finally:
            threading.stack_size(before)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`: here, or where there is enough stack for it."""
    if enough():
        return function(*arguments)
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as e:
            outcome.set_exception(e)

    thread = threading.Thread(target=work, daemon=True, name="tgx-stack")
    try:
        with large():
            thread.start()
    except RuntimeError as e:
        raise MemoryError(
            f"TGX needs {NEEDED >> 10} KB of stack, this thread has {size() >> 10} KB, and no "
            f"other could be started ({e}); raise `ulimit -s` or threading.stack_size") from e
    interrupt: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as e:  # Ctrl-C: what the work uses must stay until it is done
            interrupt = e
    if interrupt is not None:
        raise interrupt
    return outcome.result()


def _hold() -> None:
    _lock.acquire()


def _let_go() -> None:
    _lock.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
