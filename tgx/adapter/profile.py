"""`tgx profile`: a script's kernels, compiled for a board that may not be here, and what they cost.

Two ways lead to the kernels. A script that has `tgx_models() -> {name: (step, make_inputs)}` is
asked for them; for a prediction no step of theirs runs, its schedules are enough. And the script
itself runs, as it is, until its first TinyJit step has been captured; then it is stopped. Where the
device is here, `tgx.adapter.timing` then times what was captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tinygrad.engine.jit as tg_jit
from tinygrad import Device, Tensor, TinyJit
from tinygrad.engine.realize import compile_linear
from tinygrad.helpers import BEAM, getenv
from tinygrad.uop.ops import Ops, UOp

from tgx.adapter import devices, nvrtc, offline
from tgx.adapter.capture import Session
from tgx.adapter.offline import Captured, Origin, Runnable, Step
from tgx.adapter.timing import Named
from tgx.errors import BadInput
from tgx.hardware import report
from tgx.hardware.kernel import Copy, GpuKernel
from tgx.hardware.profiles import Machine, Profile
from tgx.hardware.report import Report


class Enough(BaseException):
    """Raised through the script when its step has been seen. Not an Exception: a script that goes
    on after errors of its own is not meant to go on after this."""


@contextmanager
def stopping(watch: Session | None = None, real: bool = False) -> Iterator[list[Captured]]:
    """Within this, a script runs up to the capture of its first TinyJit and is then stopped. Where
    that is `real`ly to run, its kernels are compiled, and the session told what they became."""
    seen: list[Captured] = []
    plain = tg_jit.jit_lower
    before = offline.parts(watch)

    def jit_lower(linear: UOp, held: set[UOp], inputs: list[UOp]) -> UOp:
        calls = tuple(offline.flat(linear))
        ids = offline.ids_since(watch, before, len(calls))
        run = None
        if real:
            beam = getenv("JITBEAM", BEAM.value)  # as tinygrad's own jit_lower
            linear = compile_linear(UOp(Ops.LINEAR, src=calls), beam=beam)
            run = Runnable(linear, frozenset(held), tuple(inputs))
            if watch is not None:
                for id, call in zip(ids, linear.src, strict=False):
                    if id >= 0 and call.src[0].op is Ops.PROGRAM:
                        watch.recorder.program(id, call.src[0], offline.highest(calls))
        seen.append(Captured(calls, {}, ids, run))
        raise Enough

    tg_jit.jit_lower = jit_lower
    try:
        yield seen
    except Enough:
        pass
    finally:
        tg_jit.jit_lower = plain


def captured(
    batches: Sequence[int],
    script: Callable[[], object],
    models: Sequence[str],
    real: bool,
    program: str = "",
) -> tuple[Session, list[Named]]:
    """The steps of a script, and the recording that was made meanwhile, for the names of kernels
    and their lines. `real` runs the models' first steps, as is needed to time them afterwards."""
    works, why = devices.try_device(Device.DEFAULT)  # and what it has to say comes first
    if not works:
        raise BadInput(f"{Device.DEFAULT} does not work here: {why}", "a device that does",
                       "tgx devices lists them; DEVICE=NAME chooses one")  # fmt: skip
    watch = Session(program=program).start()
    try:
        steps = list(_captured(batches, script, models, watch, real))
    finally:
        watch.stop()
    if not steps:
        raise BadInput(
            "the script ended, and no TinyJit step of it ran twice",
            "a script with a @TinyJit step, or one with tgx_models()",
            "def tgx_models(): return {'name': (step, lambda batch: (inputs, ...))}",
        )
    return watch, steps


def predicted(
    board: Profile,
    machine: Machine,
    steps: Sequence[Named],
    known: Mapping[int, Origin],
    constants: Mapping[str, float] | None = None,
) -> tuple[Report, list[list[GpuKernel | Copy]]]:
    """The report, and every step's launches as they were compiled for the board."""
    compiler = nvrtc.compiler_for(machine.arch)
    jetson = board.kind == "jetson"
    lowered = [offline.lower(named.step, machine.arch, known) for named in steps]
    rows = tuple(
        report.step(named.name, named.batch, launches, machine, jetson, constants)
        for named, launches in zip(steps, lowered, strict=True)
    )
    name = f"NVRTC {compiler.version[0]}.{compiler.version[1]}"
    return Report(board, machine, name, rows, dict(constants or {})), lowered


def _captured(
    batches: Sequence[int],
    script: Callable[[], object],
    chosen: Sequence[str],
    watch: Session,
    real: bool,
) -> Iterator[Named]:
    with stopping(watch, real) as seen:
        script()
    models = offline.models_of(vars(sys.modules["__main__"]))
    for name in chosen:
        if name not in models:
            known = ", ".join(models) or "none: the script has no tgx_models()"
            raise BadInput(f"the script has no model {name!r}", known)
    if not chosen:
        for step in seen:
            yield Named("jitted step", None, step)
    for name in chosen or models:
        # A training step ("...-train") is asked for at the largest batch, inference at every one.
        training = name.endswith("-train")
        for batch in [max(batches)] if training else batches:
            if real:
                yield Named(name, batch, _jitted(*models[name], batch, watch))
                continue
            step = offline.capture_model(*models[name], batch, watch, first=training)
            yield Named(name, batch, step)


def _jitted(step: Step, make_inputs: Step, batch: int, watch: Session) -> Captured:
    """A model's step as a TinyJit captures it, its first call having run."""
    function = getattr(step, "fxn", None) or step

    def run(*inputs: Any) -> list[Tensor]:
        return list(offline.tensors(function(*inputs)))

    run.__name__ = offline.name_of(function)
    jitted = TinyJit(run)
    inputs = tuple(make_inputs(batch))
    with stopping(watch, real=True) as seen:
        for _ in range(2):
            jitted(*inputs)
    return seen[0]
