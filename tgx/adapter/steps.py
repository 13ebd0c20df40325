"""Rewrites, step by step (``--level full``): which rule replaced which node by which.

A step is four numbers. The nodes they speak of stand once in a table, so that the thousands of
graphs between the first and the last cost no more than the nodes that differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tinygrad.uop.ops import UOp

from tgx import model
from tgx.adapter.wording import argument_text, dtype_name

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
