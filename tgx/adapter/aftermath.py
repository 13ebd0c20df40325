"""What is joined to the trace once the program has ended: what compile workers saw, code below the
source."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from tinygrad.uop.ops import UOp

from tgx import model
from tgx.adapter import panes, steps

if TYPE_CHECKING:
    from tgx.adapter.capture import Session
    from tgx.adapter.writing import Recorder


def complete(recorder: Recorder, session: Session) -> list[str]:
    """Adds to the programs; returns sentences about what could not be added."""
    seen: dict[str, model.Trace | None] = dict(session.fragments)
    for left in steps.fragments(session.spool):
        for p in left.programs:
            seen.setdefault(p.key, left)
    shutil.rmtree(session.spool, ignore_errors=True)
    missing: list[str] = []
    unseen = 0
    slowest = _slowest(recorder, session)
    for number, prg in recorder.program_uops.items():
        record = recorder.program_records[number]
        fragment = seen.get(prg.key.hex())
        if fragment is None:
            fragment = _again(recorder, session, number, prg)
        if fragment is not None:
            known = fragment.programs[0]
            record = replace(
                record,
                opts=known.opts,
                loops=known.loops,
                sources=known.sources,
                compile_us=known.compile_us,
            )
            recorder.bundle(steps.joined(recorder, fragment, program=number))
            recorder.flush()
        else:
            unseen += 1
        try:
            if session.level == "full" or number in slowest:
                record = panes.added(record, prg)
        except Exception as e:
            text = f"code below the source is missing: {type(e).__name__}: {str(e)[:200]}"
            if text not in missing:
                missing.append(text)
        recorder.program_records[number] = record
        recorder.bundle([("programs", record)])
    if unseen:
        missing.append(
            f"{unseen} kernels were compiled before the recording began: their "
            f"optimisation decisions were not seen"
        )
    return missing


def _again(recorder: Recorder, session: Session, number: int, prg: UOp) -> model.Trace | None:
    """A program that came out of tinygrad's cache: compiled once more, to see how."""
    from tinygrad import Device

    kernel = next((k for k in recorder.kernels.values() if k.program == number), None)
    if kernel is None or kernel.id not in recorder.asts:
        return None
    try:
        renderer = Device[kernel.device.split(",")[0]].renderer
        return steps.again(recorder.asts[kernel.id], renderer, prg, session.level)
    except Exception:  # a device that compiles only for itself, a kernel with its own options
        return None


MOST_PANES = 12


def _slowest(recorder: Recorder, session: Session) -> set[int]:
    """At level "kernels", the programs whose assembly is worth its cost: those that took
    longest."""
    total: dict[int, float] = {}
    for kernel, times in session.times.items():
        program = recorder.kernels[kernel].program
        if program >= 0:
            total[program] = total.get(program, 0.0) + sum(times)
    return set(sorted(total, key=lambda p: -total[p])[:MOST_PANES])
