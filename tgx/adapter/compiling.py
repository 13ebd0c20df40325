"""What is seen of a kernel while it is compiled: its loops before optimisation, and with
``--level full`` every rewrite on the way to the program.

Kernels are compiled in this process (`observing` takes the place of tinygrad's own function) or in
worker processes (`compile_kernel` does, there). A worker writes what it saw into a file, as a small
trace of its own; all is joined to the whole when the program has ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tinygrad.codegen as tg_codegen
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp

from tgx import codec, model
from tgx.adapter import loops
from tgx.adapter.provenance import Follow, following
from tgx.adapter.steps import StepRecorder
from tgx.adapter.wording import closed

Build = Callable[[UOp, Any], UOp]


@dataclass
class Sight:
    """What was noted while one kernel was compiled."""

    before_opts: UOp | None = None
    renderer: Any = None
    took_us: float = -1.0
    rewrites: StepRecorder | None = None
    sources: tuple[tuple[int, ...], ...] = ()

    def fragment(self, program: UOp) -> model.Trace:
        """As a trace with one program."""
        trace = model.Trace()
        if self.rewrites is not None:
            trace = self.rewrites.records(str, {"program": -1})
        opts, final = self._loops(program)
        record = model.Program(
            0,
            program.arg.name,
            key=program.key.hex(),
            opts=opts,
            loops=final,
            compile_us=self.took_us,
            sources=self.sources,
        )
        return replace(trace, programs=(record,))

    def _loops(self, program: UOp) -> tuple[tuple[model.Opt, ...], tuple[model.Loop, ...]]:
        if self.before_opts is None:
            return (), ()
        applied = tuple(getattr(program.src[0].arg, "applied_opts", ()))
        try:
            opts, final, _ = loops.replay(self.before_opts, self.renderer, applied)
        except Exception:  # a kernel whose optimiser is not tinygrad's: its loops as they came
            opts, final, _ = loops.replay(self.before_opts, self.renderer, ())
        return opts, final


_watching = False  # a kernel is being compiled under our eyes


def observed(ast: UOp, renderer: Any, level: str, build: Build) -> tuple[UOp, Sight]:
    """A kernel compiled by ``build``, and what was seen of it."""
    global _watching
    sight = Sight()
    _watching = True
    started = time.perf_counter()
    try:
        with _opts_seen(sight):
            if level == "full":
                sight.rewrites = StepRecorder()
                follow = Follow(recorder=sight.rewrites)
                follow.layers[0] = {n: (i,) for i, n in enumerate(ast.toposort())}
                with following(follow):
                    program = build(ast, renderer)
                sight.sources = tuple(follow.get(n) or () for n in closed(program.src[1].src))
            else:
                program = build(ast, renderer)
    finally:
        _watching = False
    sight.took_us = (time.perf_counter() - started) * 1e6
    return program, sight


class _Enough(Exception):
    """All that a replay wanted to see has been seen."""


@contextmanager
def _opts_seen(sight: Sight, enough: bool = False) -> Iterator[None]:
    """Notes the kernel as it comes to its optimisation; goes no further if that is ``enough``."""
    plain = tg_codegen.apply_opts

    def apply_opts(ast: UOp, ren: Any, beam: int = 0) -> UOp:
        sight.before_opts, sight.renderer = ast, ren
        if enough:
            raise _Enough
        return plain(ast, ren, beam)

    tg_codegen.apply_opts = apply_opts
    try:
        yield
    except _Enough:
        pass
    finally:
        tg_codegen.apply_opts = plain


def again(ast: UOp, renderer: Any, level: str) -> Sight:
    """A kernel that was compiled before the recording began, looked at afterwards."""
    if level == "full":
        return observed(ast, renderer, level, tg_codegen.do_to_program)[1]
    sight = Sight()
    with _opts_seen(sight, enough=True):
        tg_codegen.full_rewrite_to_sink(ast, renderer)
    return sight


def decisions(ast: UOp, renderer: Any) -> tuple[tuple[model.Opt, ...], tuple[model.Loop, ...]]:
    """What tinygrad's optimiser decides about a kernel for that renderer's device, which need not
    be here, and the loops that come of it."""
    sight = Sight()
    with _opts_seen(sight):
        sink = tg_codegen.full_rewrite_to_sink(ast, renderer)
    return sight._loops(UOp(Ops.PROGRAM, src=(sink,)))


# **** in this process ****


def observing(build: Build, level: str, seen: Callable[[UOp, Sight], None]) -> Build:
    """``build``, telling what it saw; one inside another is left alone."""

    def to_program(ast: UOp, renderer: Any) -> UOp:
        if _watching:
            return build(ast, renderer)
        program, sight = observed(ast, renderer, level, build)
        seen(program, sight)
        return program

    return to_program


# **** in worker processes ****


def compile_kernel(
    folder: str, level: str, parent: int, x: tuple[int, tuple[UOp, Any], dict[str, Any]]
) -> tuple[int, UOp]:
    """tinygrad's `_compile_kernel`, observed. Runs in a worker process, or in its parent."""
    number, (ast, renderer), context = x
    with Context(**context):
        if os.getpid() == parent:  # `observing` is in place there
            return number, tg_codegen.to_program(ast, renderer)
        program, sight = observed(ast, renderer, level, tg_codegen.to_program)
        fragment = sight.fragment(program)
    path = Path(folder) / f"{os.getpid()}.jsonl"
    # where the disk is full, the kernel is looked at again in the parent
    with suppress(OSError), open(path, "a", encoding="utf-8", newline="\n") as out:
        out.write(codec.dumps(fragment).replace("\n", "\x00") + "\n")
    return number, program


def fragments(folder: Path) -> Iterator[model.Trace]:
    """What worker processes left in a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield codec.loads(line.replace("\x00", "\n"))
            except codec.TraceError:
                continue  # a worker that was killed in the middle of a line
