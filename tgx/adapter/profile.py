"""`tgx profile`: a script's kernels, compiled for a board that may not be here, and what they cost.

Two ways lead to the kernels. A script that has `tgx_models() -> {name: (step, make_inputs)}` is
asked for them: nothing of it runs, its schedules are enough. And the script itself runs, as it is,
until its first TinyJit step has been captured; then it is stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import tinygrad.engine.jit as tg_jit
from tinygrad import Device
from tinygrad.uop.ops import UOp

from tgx.adapter import nvrtc, offline
from tgx.adapter.capture import Session
from tgx.adapter.offline import Captured
from tgx.errors import BadInput
from tgx.hardware import profiles, report
from tgx.hardware.report import Report


class Enough(BaseException):
    """Raised through the script when its step has been seen. Not an Exception: a script that goes
    on after errors of its own is not meant to go on after this."""


@contextmanager
def stopping(watch: Session | None = None) -> Iterator[list[Captured]]:
    """Within this, a script runs up to the capture of its first TinyJit and is then stopped."""
    seen: list[Captured] = []
    plain = tg_jit.jit_lower

    def jit_lower(linear: UOp, held: set[UOp], inputs: list[UOp]) -> UOp:
        calls = tuple(offline.flat(linear))
        seen.append(Captured(calls, {}, offline.ids_since(watch, 0, len(calls))))
        raise Enough

    tg_jit.jit_lower = jit_lower
    try:
        yield seen
    except Enough:
        pass
    finally:
        tg_jit.jit_lower = plain


def profile(
    device: str,
    mode: str,
    batches: Sequence[int],
    script: Callable[[], object],
    models: Sequence[str] = (),
) -> Report:
    """Profile a script for a board. `script` runs it, as the module __main__. `models` chooses
    among its `tgx_models()`; none chooses all of them, and the jitted step."""
    board = profiles.find(device)
    machine = profiles.machine(board, mode)
    compiler = nvrtc.compiler_for(machine.arch)  # before anything runs: it may not be there
    Device[Device.DEFAULT]  # opens it now, so that what it has to say comes before all else
    watch = Session().start()  # for names and source lines
    try:
        steps = list(_captured(batches, script, models, watch))
    finally:
        watch.stop()
    known = offline.origins(watch)
    if not steps:
        raise BadInput(
            "the script ended, and no TinyJit step of it ran twice",
            "a script with a @TinyJit step, or one with tgx_models()",
            "def tgx_models(): return {'name': (step, lambda batch: (inputs, ...))}",
        )
    jetson = board.kind == "jetson"
    return Report(
        board,
        machine,
        f"NVRTC {compiler.version[0]}.{compiler.version[1]}",
        tuple(
            report.step(name, batch, offline.lower(step, machine.arch, known), machine, jetson)
            for name, batch, step in steps
        ),
    )


def _captured(
    batches: Sequence[int],
    script: Callable[[], object],
    chosen: Sequence[str],
    watch: Session,
) -> Iterator[tuple[str, int | None, Captured]]:
    with stopping(watch) as seen:
        script()
    with offline.catching():
        models = offline.models_of(vars(sys.modules["__main__"]))
    for name in chosen:
        if name not in models:
            known = ", ".join(models) or "none: the script has no tgx_models()"
            raise BadInput(f"the script has no model {name!r}", known)
    if not chosen:
        for step in seen:
            yield "jitted step", None, step
    for name in chosen or models:
        # A training step ("...-train") is asked for at the largest batch, inference at every one.
        training = name.endswith("-train")
        for batch in [max(batches)] if training else batches:
            yield name, batch, offline.capture_model(*models[name], batch, watch, first=training)
