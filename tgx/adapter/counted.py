"""Counted mode in a recording: which kernel of the trace did what.

A program's counters (`tgx.devices.counts`) run on over all of its launches. Here they are read
after every launch, and what they grew by is that launch's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tinygrad.engine.realize as tg_realize
from tinygrad.helpers import to_tuple
from tinygrad.uop.ops import Ops, UOp

from tgx import model

KINDS = {"packed copies": "copies", "constant tables": "tables"}
"""What TGX puts beside a kernel's buffers, by its name there."""


def counts_module() -> Any:
    """`tgx.devices.counts`, if any kernel of this process counts."""
    return sys.modules.get("tgx.devices.counts")


class Ledger:
    """What the launches of each kernel of one recording did."""

    def __init__(self) -> None:
        self.before: dict[Any, Any] = {}  # counter -> its counts when they were last read
        self.of: dict[int, Any] = {}  # kernel -> its counts
        self.programs: dict[int, UOp] = {}
        if (counts := counts_module()) is not None:
            self.before = {counter: counter.counts() for counter in counts.living()}

    @property
    def counting(self) -> bool:
        """Is there a kernel that counts?"""
        counts = counts_module()
        return counts is not None and bool(counts.living())

    def taken(self, call: UOp) -> Any:
        """What the launch that has just ended did, on all of its devices; None if not counted."""
        program, found = call.src[0], None
        if program.op is Ops.CUSTOM_FUNCTION and program.arg == "graph":
            for inside in program.src[0].src:  # whose kernels they were is not known
                self.taken(inside)
        if program.op is not Ops.PROGRAM or counts_module() is None:
            return None
        for device in to_tuple(call.src[1].device):
            runtime = tg_realize.runtime_cache.get((program.key, device))
            counter = getattr(runtime, "counter", None)
            if counter is None:
                continue
            now = counter.counts()
            before = self.before.get(counter)
            self.before[counter] = now
            new = now if before is None else now.plus(before, -1)
            found = new if found is None else found.plus(new)
        return found

    def add(self, kernel: int, counts: Any, program: UOp) -> None:
        """A launch of a kernel of the trace."""
        known = self.of.get(kernel)
        self.of[kernel] = counts if known is None else known.plus(counts)
        self.programs[kernel] = program

    def records(
        self, kernels: Mapping[int, model.Kernel], arguments: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[str, Any]]:
        """(table, record) pairs. `arguments` has each kernel's buffers, in the order of its slots;
        -1 is one that lies on several devices."""
        for kernel, c in sorted(self.of.items()):
            operations, moved, distinct = c.estimates
            yield (
                "counts",
                model.Counts(kernel, c.calls, c.flops, c.integer, operations, moved, distinct),
            )
            slots = self.programs[kernel].arg.globals
            for m in c.memory:
                if not (m.loads or m.stores):
                    continue
                slot = slots[m.word] if m.word >= 0 else -1
                own = arguments.get(kernel, ())
                buffer = own[slot] if 0 <= slot < len(own) else -1
                known = (*kernels[kernel].reads, *kernels[kernel].writes)
                buffer = buffer if buffer in known else -1
                yield (
                    "traffic",
                    model.Traffic(
                        kernel,
                        buffer,
                        m.name if buffer == -1 else "",
                        m.loads,
                        m.stores,
                        m.loaded,
                        m.stored,
                        m.l1,
                        m.l2,
                        KINDS.get(m.name, "buffer"),
                    ),
                )

    def caches(self) -> tuple[model.Cache, ...]:
        """The caches of the model, where anything was counted."""
        if not self.of:
            return ()
        counts = counts_module()
        return tuple(model.Cache(c.name, c.nbytes, c.ways, counts.LINE) for c in counts.CACHES)


def say_if_idle() -> None:
    """At the end of a program with TGX_COUNT=1: kernels ran, and none of them could be counted."""
    from tinygrad import Device
    from tinygrad.helpers import GlobalCounters

    counts = counts_module()
    if GlobalCounters.kernel_count and (counts is None or not counts.all_counts()):
        print(
            f"TGX_COUNT=1: nothing was counted: it counts kernels of TGX, and the device was "
            f"{Device.DEFAULT}\n  next: DEVICE=TGX",
            file=sys.stderr,
        )
