"""What is joined to the trace once the program has ended: what compile workers saw, code below the
source."""

from __future__ import annotations

import functools
import hashlib
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygrad.helpers import CACHELEVEL, diskcache_get, diskcache_put
from tinygrad.uop.ops import UOp

from tgx import codec, model
from tgx.adapter import compiling, panes

if TYPE_CHECKING:
    from tgx.adapter.capture import Session
    from tgx.adapter.writing import Recorder


def complete(recorder: Recorder, session: Session) -> list[str]:
    """Adds to the programs; returns sentences about what could not be added."""
    seen: dict[str, model.Trace] = {}
    for left in compiling.fragments(session.spool):
        for p in left.programs:
            seen.setdefault(p.key, left)
    shutil.rmtree(session.spool, ignore_errors=True)
    missing: list[str] = []
    unseen = 0
    slowest = _slowest(recorder, session)
    for number, prg in recorder.program_uops.items():
        if number not in recorder.seen:
            key = _key(prg, session.level)
            fragment = seen.get(prg.key.hex()) or _remembered(key)
            if fragment is None and (fragment := _again(recorder, session, number, prg)):
                _remember(key, fragment)
            if fragment is None:
                unseen += 1
            else:
                recorder.compiled(number, fragment)
        if session.level == "full" or number in slowest:
            try:
                record = recorder.program_records[number]
                record = panes.added(record, prg, recorder.optimized)
                recorder.program_records[number] = record
                recorder.bundle([("programs", record)])
            except Exception as e:
                text = f"code below the source is missing: {type(e).__name__}: {str(e)[:200]}"
                if text not in missing:
                    missing.append(text)
    if unseen:
        missing.append(
            f"{unseen} kernels were compiled before the recording began: their "
            f"optimisation decisions were not seen"
        )
    return missing


# **** remembered from one recording to the next ****

# Looking at a kernel that tinygrad has in its cache of programs means compiling it once more.
CACHE = "tgx_observed"


def _key(prg: UOp, level: str) -> dict[str, Any]:
    return {"key": prg.key.hex(), "level": level, "made": _makers()}


@functools.cache
def _makers() -> str:
    """Says which tinygrad and which tgx: an edited rule is another tinygrad."""
    import tinygrad

    from tgx import __version__

    home = Path(tinygrad.__file__).parent
    files = sorted([*(home / "uop").glob("*.py"), *(home / "codegen").rglob("*.py")])
    times = "".join(str(f.stat().st_mtime_ns) for f in files)
    return f"{__version__} {hashlib.sha256(times.encode()).hexdigest()[:16]}"


def _remembered(key: dict[str, Any]) -> model.Trace | None:
    try:
        found = diskcache_get(CACHE, key)
        return codec.loads(zlib.decompress(found).decode()) if found else None
    except Exception:  # a cache is never a reason to fail
        return None


def _remember(key: dict[str, Any], fragment: model.Trace) -> None:
    if CACHELEVEL < 1:
        return
    try:
        diskcache_put(CACHE, key, zlib.compress(codec.dumps(fragment).encode(), 1))
    except Exception:  # a full disk, a read-only home
        return


def _again(recorder: Recorder, session: Session, number: int, prg: UOp) -> model.Trace | None:
    """A program that came out of tinygrad's cache: compiled once more, to see how."""
    from tinygrad import Device

    kernel = next((k for k in recorder.kernels.values() if k.program == number), None)
    if kernel is None or kernel.id not in recorder.asts:
        return None
    try:
        renderer = Device[kernel.device.split(",")[0]].renderer
        sight = compiling.again(recorder.asts[kernel.id], renderer, session.level)
        sight.took_us = -1.0  # not the program's own time
        return sight.fragment(prg)
    except Exception:  # a device that compiles only for itself, a kernel with its own options
        return None


MOST_PANES = 2


def _slowest(recorder: Recorder, session: Session) -> set[int]:
    """At level "kernels", the programs whose assembly is worth its cost: those that took
    longest."""
    total: dict[int, float] = {}
    for kernel, times in session.times.items():
        program = recorder.kernels[kernel].program
        if program >= 0:
            total[program] = total.get(program, 0.0) + sum(times)
    return set(sorted(total, key=lambda p: -total[p])[:MOST_PANES])
