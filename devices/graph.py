"""TinyJit on TGX: a captured batch of kernels is one call into machine code.

tinygrad's own loop over a captured step costs about 20 µs of Python per kernel. Here the batch is
laid out once as an array of jobs (see runtime.ll), each with its argument words; a call writes the
words that may have changed (the buffers the user passed in, symbolic variables) and runs the array.
"""
from __future__ import annotations

import decimal
import os
import threading
import time
import weakref
from array import array
from typing import Any

from tinygrad.device import Buffer, MultiBuffer, ProfileGraphEntry, ProfileGraphEvent
from tinygrad.engine.jit import MultiGraphRunner
from tinygrad.engine.realize import _resolve, get_call_arg_uops
from tinygrad.helpers import PROFILE, cpu_events
from tinygrad.uop.ops import Ops, UOp

from tgx.devices import threads


def address_of(buffer: Buffer) -> int:
    return int(buffer.get_buf(buffer.device).address)


_turns: weakref.WeakSet[Any] = weakref.WeakSet()


def new_turn() -> Any:
    """The lock of a captured batch, see `turn`."""
    _turns.add(lock := threading.RLock())
    return lock


def turn(lock: Any) -> Any:
    """Calls of a captured batch take turns, or the words of one would be read by the kernels of
    another thread's. A call from inside a call (a signal handler's) is refused."""
    if lock._is_owned():
        raise RuntimeError("this TinyJit function is in the middle of a call, in this very thread: "
                           "a signal handler, or a __del__, must not call it")
    return lock


def _forget() -> None:
    """In a forked child: whoever had a turn stayed with the parent."""
    for lock in _turns:
        lock._at_fork_reinit()


os.register_at_fork(after_in_child=_forget)


class TGXGraph(MultiGraphRunner):
    """One captured batch.

    `words` holds the argument words of all jobs, back to back. `jobs` holds three words a job: the
    address of the kernel, the address of its first argument word, its number of chunks.
    """

    joins = True  # can several be run as one list of jobs? See Step
    lead = 0  # words before each job's arguments: where a special mode keeps what is its own

    def __init__(self, linear: UOp, input_uops: tuple[UOp, ...] = ()) -> None:
        super().__init__(linear, input_uops)
        self.words, self.jobs = array("q"), array("q")
        self.variables: list[tuple[int, str]] = []  # (word, name of a variable)
        # (argument, lane) -> its words: what the user passed in, which changes every call
        self.inputs: dict[tuple[UOp, int], list[int]] = {}
        calls = iter(zip(self.calls, self.runtimes, strict=True))
        self.entries: list[tuple[str, str, bytes | None]] = []  # (device, name, profile key)
        first_words: list[int] = []
        passed_in: list[Buffer] = []
        for call in self.linear.src:
            ast, arguments = call.src[0], get_call_arg_uops(call)
            order = ast.arg.globals if ast.op is Ops.PROGRAM else (0, 1)
            devices = call.src[1].device
            for lane in range(len(devices) if isinstance(devices, tuple) else 1):
                (_, _, buffers, device_vars), runtime = next(calls)
                self.words.extend([0] * self.lead)
                first_words.append(len(self.words))
                device = buffers[0].device
                self.entries.append(
                    (device, f"{buffers[1].device} -> {device}", None) if runtime is None
                    else (device, runtime.name, runtime.profile_key))
                for i in order:
                    if any(u.op is Ops.PARAM for u in arguments[i].toposort()):
                        words = self.inputs.setdefault((arguments[i], lane), [])
                        words.append(len(self.words))
                        passed_in.append(buffers[i])
                    self.words.append(address_of(buffers[i]))
                if runtime is None:
                    self.words.append(buffers[0].nbytes)
                    self.jobs.extend((threads.runtime().copy_address, 0, 1))
                    continue
                for name in (variable.expr for variable in ast.arg.vars):
                    if name not in device_vars and name not in ast.arg.runtimevars:
                        self.variables.append((len(self.words), name))
                    self.words.append(device_vars.get(name, 0))
                self.jobs.extend((runtime.address, 0, int(ast.arg.global_size[0])))
        base = self.words.buffer_info()[0]  # nothing grows from here on, so addresses hold
        for j, first in enumerate(first_words):
            self.jobs[3 * j + 1] = base + self.words.itemsize * first
        for _, _, buffers, _ in self.calls:  # or the first call's inputs would stay for ever
            buffers[:] = [b for b in buffers if not any(b is other for other in passed_in)]
        self.shared = any(chunks > 1 for chunks in self.jobs[2::3])
        self.stamps = array("q", bytes(8 * (len(first_words) + 1)))
        self.turn = new_turn()

    def write_words(self, input_uops: tuple[UOp, ...], var_vals: dict[str, int]) -> None:
        """The argument words that are this call's own."""
        for (argument, lane), words in self.inputs.items():
            buffer = _resolve(argument, input_uops).buffer
            if isinstance(buffer, MultiBuffer):
                buffer = buffer.bufs[lane]
            address = address_of(buffer.ensure_allocated())
            for word in words:
                self.words[word] = address
        for word, name in self.variables:
            self.words[word] = var_vals[name]

    def launch(self, stamps: int, var_vals: dict[str, int]) -> None:
        """Runs the jobs, whose words are written."""
        threads.run(self.jobs.buffer_info()[0], len(self.calls), stamps, self.shared)

    def __call__(self, input_uops: tuple[UOp, ...], var_vals: dict[str, int],
                 wait: bool = False) -> float | None:
        with turn(self.turn):
            self.write_words(input_uops, var_vals)
            stamps = self.stamps.buffer_info()[0] if PROFILE else 0
            start = time.perf_counter()
            self.launch(stamps, var_vals)
            end = time.perf_counter()
            if PROFILE:
                self._record_profile()
        return end - start if wait else None

    def _record_profile(self) -> None:
        """A row of kernels for tinygrad's own viewer."""
        entries = [ProfileGraphEntry(device, name, j, j + 1, key)
                   for j, (device, name, key) in enumerate(self.entries)]
        microseconds = [decimal.Decimal(ns) / 1000 for ns in self.stamps]
        cpu_events.append(ProfileGraphEvent(entries, [], microseconds))


class Step:
    """Several captured batches in a row, as one list of jobs: one native call."""

    def __init__(self, graphs: list[TGXGraph]) -> None:
        self.graphs = graphs
        self.jobs = array("q", [word for graph in graphs for word in graph.jobs])
        self.shared = any(graph.shared for graph in graphs)
        self.turn = graphs[0].turn
        for graph in graphs:  # a thread that calls one of them by itself waits for the same turn
            graph.turn = self.turn

    def __call__(self, input_uops: tuple[UOp, ...], var_vals: dict[str, int]) -> None:
        with turn(self.turn):
            for graph in self.graphs:
                graph.write_words(input_uops, var_vals)
            threads.run(self.jobs.buffer_info()[0], len(self.jobs) // 3, shared=self.shared)
