"""Rewrites, step by step (``--level full``): which rule replaced which node by which.

A step is four numbers. The nodes they speak of stand once in a table, so that the thousands of
graphs between the first and the last cost no more than the nodes that differ.

Kernels are compiled in worker processes. `compile_kernel` takes the place of tinygrad's own
function there; what it observes goes into a file as a small trace of its own, and is joined to the
whole at the end.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tinygrad.codegen as tg_codegen
from tinygrad.helpers import Context
from tinygrad.uop.ops import UOp

from tgx import codec, model
from tgx.adapter import loops
from tgx.adapter.provenance import Follow, following
from tgx.adapter.wording import argument_text, closed, dtype_name

INNER = {"kernel split"}  # passes inside a rule that are shown as passes

MOST_NODES = 400_000  # in one table: beyond, steps are counted only


@dataclass
class Recorded:
    """One pass being recorded."""

    name: str
    bottom_up: bool
    walk: bool
    depth: int
    shown: bool
    matches: int = 0
    steps: list[int] = field(default_factory=list)
    before: int = -1
    after: int = -1


class StepRecorder:
    """The recorder of a `provenance.Follow`: hears every rewrite."""

    def __init__(self) -> None:
        self.rows: dict[UOp, int] = {}
        self.open: list[Recorded] = []
        self.passes: list[Recorded] = []
        self.rules: dict[tuple[str, int], int] = {}
        self.full = False

    def row(self, node: UOp) -> int:
        found = self.rows.get(node)
        if found is not None:
            return found
        rows = self.rows
        for n in node.toposort(gate=lambda n: n not in rows):
            rows[n] = len(rows)
        if len(rows) > MOST_NODES:
            self.full = True
        return rows[node]

    def begin(self, name: str, sink: UOp | None, bottom_up: bool, walk: bool) -> Recorded:
        depth = len(self.open)
        shown = (depth == 0 or name in INNER) and bool(name) and not self.full
        recorded = Recorded(name, bottom_up, walk, depth, shown)
        if shown and sink is not None:
            recorded.before = self.row(sink)
            self.passes.append(recorded)
        self.open.append(recorded)
        return recorded

    def finish(self, recorded: Recorded, root: UOp, result: UOp) -> None:
        while self.open and self.open.pop() is not recorded:
            pass
        if recorded.shown:
            recorded.after = self.row(result)

    def rebuilt(self, old: UOp, new: UOp) -> None:
        if self.open and (p := self.open[-1]).shown:
            p.steps += (1, self.row(old), self.row(new), -1)

    def matched(self, old: UOp, new: UOp, pattern: Any) -> None:
        if not self.open:
            return
        p = self.open[-1]
        p.matches += 1
        if p.shown:
            rule = -1
            if pattern is not None:
                rule = self.rules.setdefault(pattern.location, len(self.rules))
            p.steps += (0, self.row(old), self.row(new), rule)

    def records(self, short: Callable[[str], str], passes_of: dict[str, int]) -> model.Trace:
        """What was recorded, as a trace of its own: one table, its passes, their rules."""
        nodes = list(self.rows)
        rows = self.rows
        table = model.Graph(
            0,
            "table",
            "",
            tuple(n.op.name for n in nodes),
            tuple(dtype_name(n.dtype) for n in nodes),
            (),
            tuple(argument_text(n) for n in nodes),
            tuple(tuple(rows[s] for s in n.src) for n in nodes),
        )
        files: dict[str, int] = {}
        rules = []
        for (path, line), number in self.rules.items():
            file = files.setdefault(path, len(files))
            rules.append(model.Rule(number, file, line, *_rule_text(path, line)))
        passes = tuple(
            model.Pass(
                i,
                p.name,
                table=0,
                before=p.before,
                after=p.after,
                depth=p.depth,
                bottom_up=p.bottom_up,
                walk=p.walk,
                matches=p.matches,
                steps=tuple(p.steps),
                **passes_of,
            )
            for i, p in enumerate(self.passes)
            if p.after >= 0
        )
        return model.Trace(
            files=tuple(model.File(n, path, False) for path, n in files.items()),
            graphs=(table,),
            rules=tuple(rules),
            passes=passes,
        )


@functools.cache
def _rule_text(path: str, line: int) -> tuple[str, str]:
    """(source text, rewriter's name) of a rule: its first line, and on to its end if it is
    short."""
    import linecache

    text = linecache.getline(path, line).strip()
    depth = _open_brackets(text)
    following_line = line + 1
    while depth > 0 and len(text) < 400 and following_line < line + 8:
        more = linecache.getline(path, following_line)
        text += " " + more.strip()
        depth += _open_brackets(more)
        following_line += 1
    last = text.rstrip("),").rpartition(" ")[2]
    return text.rstrip(","), last if last.isidentifier() else ""


def _open_brackets(text: str) -> int:
    return sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")


# **** kernels, wherever they are compiled ****


class _Facts:
    """What is noted while one kernel is compiled."""

    def __init__(self) -> None:
        self.before_opts: UOp | None = None
        self.renderer: Any = None


@contextmanager
def _watch_opts(facts: _Facts) -> Iterator[None]:
    plain = tg_codegen.apply_opts

    def apply_opts(ast: UOp, ren: Any, beam: int = 0) -> UOp:
        facts.before_opts, facts.renderer = ast, ren
        return plain(ast, ren, beam)

    tg_codegen.apply_opts = apply_opts
    try:
        yield
    finally:
        tg_codegen.apply_opts = plain


def compile_kernel(
    folder: str, level: str, x: tuple[int, tuple[UOp, Any], dict[str, Any]]
) -> tuple[int, UOp]:
    """tinygrad's `_compile_kernel`, observed. Runs in a worker process, or in this one."""
    number, (ast, renderer), context = x
    with Context(**context):
        if _receive is not None:  # this process: the session's own to_program observes
            return number, tg_codegen.to_program(ast, renderer)
        program, fragment = observed(ast, renderer, level)
    path = Path(folder) / f"{os.getpid()}.jsonl"
    with open(path, "a", encoding="utf-8", newline="\n") as out:
        out.write(codec.dumps(fragment).replace("\n", "\x00") + "\n")
    return number, program


_receive: Callable[[model.Trace], None] | None = None  # set where the session itself compiles


@contextmanager
def receiving(receive: Callable[[model.Trace], None]) -> Iterator[None]:
    """Kernels compiled in this process hand over what was observed directly."""
    global _receive
    before, _receive = _receive, receive
    try:
        yield
    finally:
        _receive = before


def watched(plain: Callable[[UOp, Any], UOp], level: str) -> Callable[[UOp, Any], UOp]:
    """`to_program`, which observes what is not in tinygrad's cache of programs."""

    def to_program(ast: UOp, renderer: Any) -> UOp:
        known = tg_codegen.to_program_key(ast, renderer) in tg_codegen.to_program_cache
        if known or _receive is None:
            return plain(ast, renderer)
        program, fragment = observed(ast, renderer, level, plain)
        _receive(fragment)
        return program

    return to_program


def observed(
    ast: UOp, renderer: Any, level: str, build: Callable[[UOp, Any], UOp] | None = None
) -> tuple[UOp, model.Trace]:
    """A kernel compiled, and what was seen of it as a trace with one program."""
    build = build or tg_codegen.to_program
    facts = _Facts()
    started = time.perf_counter()
    recorder = StepRecorder() if level == "full" else None
    nodes = list(ast.toposort())
    follow = Follow(recorder=recorder)
    with _watch_opts(facts):
        if recorder is not None:
            follow.layers[0] = {n: (i,) for i, n in enumerate(nodes)}
            with following(follow):
                program = build(ast, renderer)
        else:
            program = build(ast, renderer)
    took = (time.perf_counter() - started) * 1e6
    opts, final = _loops(facts, program)
    fragment = model.Trace()
    sources: tuple[tuple[int, ...], ...] = ()
    if recorder is not None:
        fragment = recorder.records(str, {"program": -1})
        sources = tuple(follow.get(n) or () for n in closed(program.src[1].src))
    record = model.Program(
        0,
        program.arg.name,
        key=program.key.hex(),
        opts=opts,
        loops=final,
        compile_us=took,
        sources=sources,
    )
    return program, replace(fragment, programs=(record,))


class _Enough(Exception):
    """All that a replay wanted to see has been seen."""


def again(ast: UOp, renderer: Any, program: UOp, level: str) -> model.Trace:
    """A kernel that was compiled before the recording began, looked at afterwards."""
    if level == "full":
        return observed(ast, renderer, level, tg_codegen.do_to_program)[1]
    facts = _Facts()
    plain = tg_codegen.apply_opts

    def apply_opts(ast: UOp, ren: Any, beam: int = 0) -> UOp:
        facts.before_opts, facts.renderer = ast, ren
        raise _Enough

    tg_codegen.apply_opts = apply_opts
    try:
        tg_codegen.full_rewrite_to_sink(ast, renderer)
    except _Enough:
        pass
    finally:
        tg_codegen.apply_opts = plain
    opts, final = _loops(facts, program)
    return model.Trace(
        programs=(model.Program(0, "", key=program.key.hex(), opts=opts, loops=final),)
    )


def _loops(facts: _Facts, program: UOp) -> tuple[tuple[model.Opt, ...], tuple[model.Loop, ...]]:
    if facts.before_opts is None:
        return (), ()
    applied = tuple(getattr(program.src[0].arg, "applied_opts", ()))
    try:
        opts, final, _ = loops.replay(facts.before_opts, facts.renderer, applied)
    except Exception:  # a kernel whose optimiser is not tinygrad's: its loops as they came
        opts, final, _ = loops.replay(facts.before_opts, facts.renderer, ())
    return opts, final


def fragments(folder: Path) -> Iterator[model.Trace]:
    """What worker processes left in a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield codec.loads(line.replace("\x00", "\n"))
            except codec.TraceError:
                continue  # a worker that was killed in the middle of a line


def joined(
    recorder: Any, fragment: model.Trace, schedule: int = -1, program: int = -1
) -> Iterator[tuple[str, Any]]:
    """A fragment's records with the numbers they have in the whole."""
    rules: dict[int, int] = {-1: -1}
    for r in fragment.rules:
        path = fragment.file(r.file).path
        key = (path, r.line)
        if key not in recorder.rules:
            recorder.rules[key] = len(recorder.rules)
            yield "rules", replace(r, id=recorder.rules[key], file=recorder.file(path))
        rules[r.id] = recorder.rules[key]
    tables: dict[int, int] = {}
    for g in fragment.graphs:
        tables[g.id] = recorder.graphs
        recorder.graphs += 1
        yield "graphs", replace(g, id=tables[g.id])
    for p in fragment.passes:
        yield (
            "passes",
            replace(
                p,
                id=recorder.pass_count,
                table=tables[p.table],
                schedule=schedule,
                program=program,
                steps=_renumbered(p.steps, rules),
            ),
        )
        recorder.pass_count += 1


def _renumbered(steps: Sequence[int], rules: dict[int, int]) -> tuple[int, ...]:
    out = list(steps)
    out[3::4] = [rules[r] for r in out[3::4]]
    return tuple(out)
