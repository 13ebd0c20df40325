"""Why a kernel ends where it ends.

Every intermediate buffer of a schedule exists because some line of tinygrad's scheduler decided so,
and often a second line decided to leave it there. `Decisions` watches these lines at work:

* the scheduler's list of values to store (`IndexingContext.realize_map`): who put a node on it, and
  where;
* rules that insert a CONTIGUOUS, a STAGE or a copy's buffer: the rule's own line;
* `remove_bufferize`, which drops buffers that are cheap to compute again: which of its ``return
  None`` kept one.

Lines are found by their text, never by number. `REASONS` turns a decision into words for a person
who learns. `tgx.adapter.proof` replays a schedule with one decision reversed and all others as they
were.
"""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from tinygrad.dtype import Invalid
from tinygrad.schedule import indexing, rangeify
from tinygrad.uop.ops import GroupOp, Ops, PatternMatcher, UOp, broadcast_axes

from tgx.adapter.provenance import Follow, Tokens


@dataclass(frozen=True)
class Reason:
    """One kind of reason. ``{value}`` is what is stored, ``{readers}`` who reads it, ``{via}`` what
    stands between."""

    brief: str
    because: str
    fuse_by: str = ""


REASONS: dict[str, Reason] = {
    "realize": Reason(
        "asked for here",
        "The program asks for {value} at {asked}, so it has to be in memory when this part of the "
        "program ends.",
        "Ask for it later, together with what is computed from it (one realize for both): if "
        "nothing else needs it, it is never stored.",
    ),
    "assign": Reason(
        "assigned to {target}",
        "{Value} is assigned to {target}, which lives in memory from one step to the next.",
        "What is computed from it need not read it there: use the value itself, before it is "
        "assigned.",
    ),
    "contiguous": Reason(
        "contiguous() asked for it",
        "The program says .contiguous() at {asked}: {value} is stored there on purpose.",
        "Drop the .contiguous() at {asked}.",
    ),
    "library-contiguous": Reason(
        "{method} stores it",
        "tinygrad's own {method} says .contiguous(): {value} is stored there on purpose.",
        "Write {method} out without that .contiguous(), if reading it out of order does no harm.",
    ),
    "consumers-differ": Reason(
        "{count} readers, other ranges",
        "{Value} is read by {readers}, which walk it in different orders. One loop cannot follow "
        "both, so it is stored once and read by each.",
        "Make its readers walk it in the same order (the same axes, the same reshapes), or store "
        "less by letting PCONTIG=1 keep the axes they share.",
    ),
    "reduce-broadcast": Reason(
        "a reduce that is broadcast",
        "{Value} is a reduction that {readers} spreads over an axis again ({via}). Fused, the "
        "whole reduction would run again for every element of that axis.",
        "PCONTIG=2 lets tinygrad keep such a value inside the loop.",
    ),
    "elementwise-broadcast": Reason(
        "computed, then broadcast",
        "{Value} is spread over a further axis by {readers} ({via}). Fused, it would be computed "
        "again for every element of that axis.",
        "PCONTIG=2 lets tinygrad keep such a value inside the loop.",
    ),
    "store-hazard": Reason(
        "would overwrite what it reads",
        "{Value} is computed from the old contents of the very buffer it is stored into, in "
        "another order. It goes to a buffer of its own first, so that nothing is overwritten "
        "before it is read.",
        "Read and write it in the same order (no permute, flip or shrink between them), or write "
        "to a new tensor instead of assigning.",
    ),
    "self-access": Reason(
        "reads what it overwrites",
        "{Value} is stored into a buffer that its own computation reads, so it is computed whole "
        "first.",
        "Write to a new tensor instead of assigning in place.",
    ),
    "split-reduce": Reason(
        "a big reduction in two halves",
        "{Value} reduces so many elements to so few that one kernel could not use the whole "
        "device: it is split, this part first, the rest in the next kernel.",
        "SPLIT_REDUCEOP=0 reduces in one kernel; REDUCEOP_SPLIT_THRESHOLD sets from where on.",
    ),
    "too-many-buffers": Reason(
        "too many buffers for one kernel",
        "One kernel would read more buffers than {device} allows, so {value} is stored on the way.",
        "Raise MAX_KERNEL_BUFFERS where the device can take it, or sum fewer tensors at once.",
    ),
    "copy-source": Reason(
        "copies need plain memory",
        "{Value} is copied to another device, and a copy takes a contiguous piece of memory: it is "
        "stored in order first.",
        "Copy the tensor before reshaping it, or keep it on one device.",
    ),
    "copy": Reason(
        "moved to another device",
        "{Value} is copied between devices: the copy lands in a buffer there.",
        "Create it on the device that uses it.",
    ),
    "custom-kernel": Reason(
        "input of a custom kernel",
        "{Value} is an argument of a hand-written kernel, which reads it from memory.",
        "Compute {value} inside the hand-written kernel.",
    ),
    "custom-output": Reason(
        "written by a custom kernel",
        "{Value} is written by a hand-written kernel.",
        "Write that kernel in Tensor operations: then tinygrad may fuse it with what reads it.",
    ),
    "devices": Reason(
        "one piece per device",
        "{Value} is one device's piece of a tensor that is spread over several.",
        "Keep the tensor on one device, or spread what reads it in the same way.",
    ),
    "allreduce": Reason(
        "summed over devices",
        "{Value} is spread over several devices, each of which has a part of it. The parts are "
        "copied from device to device and added there, and copies need plain memory.",
        "Reduce over an axis that is not the one the tensor is spread along.",
    ),
    "precompiled": Reason(
        "border of a precompiled function",
        "{Value} crosses the border of a function that is scheduled by itself (precompile).",
        "Call the function without precompile.",
    ),
}

OPAQUE = {
    "copy", "copy-source", "custom-kernel", "custom-output", "devices", "allreduce", "precompiled",
}  # fmt: skip
"""Reasons whose reader is no kernel of tinygrad's: nothing could be fused into it, so there is no
proof."""

KEPT: dict[str, tuple[str, str]] = {
    "always": ("", ""),
    "buffers": (
        "Computing it again in each reader was ruled out, as it reads more than three buffers.",
        "Split what it reads into fewer tensors, or set PCONTIG=3.",
    ),
    "reduce": (
        "Computing it again in each reader was ruled out: it contains a reduction over memory.",
        "",
    ),
}
"""Why `remove_bufferize` did not drop a buffer: a sentence, and what would make it."""

# The text of a line of the scheduler -> the reason it stands for.
LINES: tuple[tuple[str, str, str], ...] = (
    # file, text that the deciding line or rule holds, reason
    ("indexing.py", "def realize(ctx", "contiguous"),
    ("indexing.py", "def realize_srcs(ctx", "devices"),
    ("indexing.py", "def realize_store_after_src(ctx", "self-access"),
    ("indexing.py", "def realize_custom_kernel_srcs(ctx", "custom-kernel"),
    (
        "indexing.py",
        "if len(_realize_axis): rctx.realize_map[x] = _realize_axis",
        "consumers-differ",
    ),
    ("indexing.py", "        rctx.realize_map[x] = _realize_axis", "broadcast"),
    ("rangeify.py", "fix_store_hazard", "store-hazard"),
    ("rangeify.py", "split_reduceop", "split-reduce"),
    ("rangeify.py", "UPat(Ops.COPY, src=(UPat(GroupOp.Movement", "copy-source"),
    ("rangeify.py", "convert_copy_to_store", "copy"),
    ("rangeify.py", "_limit_bufs", "too-many-buffers"),
    ("allreduce.py", "", "devices"),
    ("multi.py", "", "devices"),
)

KEPT_LINES: tuple[tuple[str, str], ...] = (
    ("not buf.arg.removable", "always"),
    ("len(accessed_buffers) > 3", "buffers"),
    ("return None", "reduce"),
)


@dataclass
class Decision:
    """One value the scheduler decided to store. Tokens are places in the graph it was given."""

    reason: str
    rule: str  # schedule/indexing.py:267 run_rangeify
    value: Tokens = ()
    readers: tuple[Tokens, ...] = ()
    via: Tokens = ()
    kept: str = ""
    kept_rule: str = ""
    op: str = ""  # of the node that is stored


class Decisions:
    """Watches one run of the scheduler. Give its `follow` to `provenance.following`."""

    def __init__(self, follow: Follow, fate: Callable[[Decision], str] | None = None) -> None:
        self.follow = follow
        self.found: list[Decision] = []
        self.by_node: dict[UOp, int] = {}
        self.fate = fate  # "keep", "drop" or "" (tinygrad decides): for replays
        self.always: list[Decision] = []  # of the run that is replayed: stored this time as well
        self.root: UOp | None = None
        follow.watch = self.rule_fired

    # the list of values to store
    def stored(self, node: UOp, frame: FrameType) -> None:
        if node.op is Ops.STORE:
            return  # an output: the graph itself says where it goes
        tagged = self.follow.stages.get(node)
        if tagged is not None:  # a CONTIGUOUS some rule inserted
            self.by_node[node] = tagged
            return
        reason, line = _site(frame)
        decision = Decision(
            reason,
            _place(frame.f_code.co_filename, line, frame.f_code.co_name),
            self.follow.get(node) or (),
            op=node.op.name,
        )
        if frame.f_code.co_name == "run_rangeify":
            consumers = frame.f_locals["consumer_map"]
            readers = list(consumers[node])
            decision.readers = tuple(self.follow.get(c) or () for c in readers)
            if reason == "broadcast":
                decision.reason = (
                    "reduce-broadcast" if _ends_in_reduce(node) else ("elementwise-broadcast")
                )
                spread = _broadcast_below(node, consumers)
                if spread is not None:
                    decision.via = self.follow.get(spread) or ()
                    decision.readers = (decision.via,)
        self.by_node[node] = self._add(decision)

    def _add(self, decision: Decision) -> int:
        self.found.append(decision)
        return len(self.found) - 1

    def store_again(self, stored: dict[UOp, Any]) -> None:
        """A replay stores what was stored, also where its own graph would no longer ask for it."""
        assert self.root is not None
        made = {(d.value, d.rule) for d in self.found}  # by rules that fired again
        wanted = {(d.value, d.op): d for d in self.always if (d.value, d.rule) not in made}
        todo, seen = [self.root], set()
        while todo:
            n = todo.pop()
            if n in seen:
                continue
            seen.add(n)
            todo.extend(n.src)
            decision = wanted.pop((self.follow.get(n) or (), n.op.name), None)
            if decision is not None:
                self.by_node[n] = self._add(replace(decision))
                dict.__setitem__(stored, n, None)

    # rules
    def rule_fired(self, old: UOp, new: UOp, fresh: list[UOp], pattern: Any, context: Any) -> None:
        if context.name == "apply rangeify":
            for s in new.src:
                stage = s.src[0] if s.op is Ops.INDEX and s.src else s
                if stage.op is Ops.STAGE and stage.src[0] in self.by_node:
                    self.follow.stages.setdefault(stage, self.by_node[stage.src[0]])
            return
        if pattern is None:
            return
        made = [
            n
            for n in fresh
            if n.op in (Ops.CONTIGUOUS, Ops.STAGE, Ops.BUFFER) and n not in self.follow.stages
        ]
        if not made:
            return
        path, line = pattern.location
        text = linecache.getline(path, line)
        reason = next(
            (
                r
                for file, snippet, r in LINES
                if path.endswith(file) and snippet in text and not snippet.startswith("def ")
            ),
            "",
        )
        if not reason:
            return
        for n in made:
            tag = reason
            if reason == "copy" and n.op is Ops.CONTIGUOUS:
                tag = "copy-source"
            value = self.follow.get(n.src[0]) if n.op is not Ops.BUFFER else self.follow.get(old)
            op = n.src[0].op.name if n.op is not Ops.BUFFER else ""
            self.follow.stages[n] = self._add(
                Decision(tag, _place(path, line, _function(text)), value or (), op=op)
            )

    # buffers that could have been dropped
    def kept(self, buf: UOp, line: int) -> None:
        which = self.follow.stages.get(buf)
        if which is None:
            return
        decision = self.found[which]
        text = linecache.getline(rangeify.__file__, line)
        decision.kept = next(key for snippet, key in KEPT_LINES if snippet in text)
        decision.kept_rule = _place(rangeify.__file__, line, "remove_bufferize")


def _site(frame: FrameType) -> tuple[str, int]:
    """The reason a line of the scheduler stands for."""
    path, name = frame.f_code.co_filename, frame.f_code.co_name
    text = linecache.getline(path, frame.f_lineno)
    for file, snippet, reason in LINES:
        if not path.endswith(file):
            continue
        if snippet.startswith(f"def {name}(") or (name == "run_rangeify" and snippet in text):
            return reason, frame.f_lineno
    raise KeyError(f"no row of LINES for {name}, line {frame.f_lineno}: {text.strip()}")


def _place(path: str, line: int, function: str) -> str:
    short = path.replace(os.sep, "/").rpartition("tinygrad/")[2]
    return f"{short}:{line} {function}".rstrip()


def _function(text: str) -> str:
    """The rewriter's name in a rule's line, "" for a lambda."""
    found = re.search(r", (\w+)[)\],]*$", text.strip())
    return found[1] if found else ""


def _ends_in_reduce(node: UOp) -> bool:
    """Whether what is stored is, seen without movement and casts, a reduction."""
    while node.op in GroupOp.Movement or node.op in (Ops.CAST, Ops.BITCAST):
        node = node.src[0]
    return node.op is Ops.REDUCE


def _broadcast_below(node: UOp, consumers: dict[UOp, dict[UOp, None]]) -> UOp | None:
    """The nearest reader of a value that spreads it over a further axis."""
    todo, seen = [node], {node}
    while todo:
        n = todo.pop(0)
        for c in consumers.get(n, ()):
            if c in seen:
                continue
            seen.add(c)
            if c.op is Ops.EXPAND:
                return c
            if c.op in GroupOp.Broadcastable and n._shape is not None and c._shape is not None:
                if broadcast_axes(n.shape, c.shape):
                    return c
            todo.append(c)
    return None


# **** the hooks ****

_deciding: list[Decisions] = []


class WatchedMap(dict[UOp, Any]):
    """`IndexingContext.realize_map`: every first entry is a decision."""

    def __setitem__(self, node: UOp, axes: Any) -> None:
        if _deciding and node not in self:
            _deciding[-1].stored(node, sys._getframe(1))
        super().__setitem__(node, axes)


class WatchedIndexing(indexing.IndexingContext):
    def __init__(self) -> None:
        super().__init__()
        self.realize_map = WatchedMap()
        if _deciding and _deciding[-1].always:
            _deciding[-1].store_again(self.realize_map)


_plain_remove = rangeify.remove_bufferize


def remove_bufferize(src: UOp, buf: UOp, idx: UOp) -> UOp | None:
    """tinygrad's rule of the same name, remembering which of its returns kept a buffer."""
    return _watched_remove(src, buf, idx)


def _watched_remove(src: UOp, buf: UOp, idx: UOp) -> UOp | None:
    if not _deciding:
        return _plain_remove(src, buf, idx)
    decisions = _deciding[-1]
    if decisions.fate is not None and (which := decisions.follow.stages.get(buf)) is not None:
        fate = decisions.fate(decisions.found[which])
        if fate == "keep":
            return None
        if fate == "drop":
            return drop(src, buf, idx)
    last = 0

    def lines(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal last
        last = frame.f_lineno
        return lines

    def calls(frame: FrameType, event: str, arg: object) -> Any:
        return lines if frame.f_code is _plain_remove.__code__ else None

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        result = _plain_remove(src, buf, idx)
    finally:
        sys.settrace(before)
    if result is None:
        _deciding[-1].kept(buf, last)
    return result


def drop(src: UOp, buf: UOp, idx: UOp) -> UOp:
    """What `remove_bufferize` does once it has decided to drop a buffer."""
    while src.op is Ops.CONTIGUOUS:
        src = src.src[0]
    replaced = {
        k: v
        for k, v in zip(buf.src[1:], idx.src[1:], strict=True)
        if k.op is not Ops.CONST and not (v.op is Ops.CONST and v.val is Invalid)
    }
    return src.substitute(replaced, extra_pm=rangeify.pm_gate_substitute)


_plain_pm = rangeify.pm_remove_bufferize
_watched_pm = PatternMatcher(
    [(p, remove_bufferize if f is _plain_remove else f) for p, f in _plain_pm.patterns]
)
# the same rule alone, for a replay that reverses a decision made after tinygrad has applied it
pm_reverse = PatternMatcher(
    [(p, remove_bufferize) for p, f in _plain_pm.patterns if f is _plain_remove]
)


@contextmanager
def deciding(decisions: Decisions) -> Iterator[Decisions]:
    """The scheduler's decisions inside are noted in ``decisions``."""
    saved = indexing.IndexingContext, rangeify.pm_remove_bufferize
    indexing.IndexingContext = WatchedIndexing
    rangeify.pm_remove_bufferize = _watched_pm
    _deciding.append(decisions)
    try:
        yield decisions
    finally:
        _deciding.pop()
        decisions.follow.watch = None  # a circle: all it noted would wait for the collector
        indexing.IndexingContext, rangeify.pm_remove_bufferize = saved


def missing_lines() -> list[str]:
    """Rows of LINES and KEPT_LINES whose text is not in the installed tinygrad: then reasons would
    be wrong."""
    sources = {
        m.__name__.rpartition(".")[2] + ".py": inspect.getsource(m) for m in (indexing, rangeify)
    }
    lines = [(f, t) for f, t, _ in LINES if t] + [("rangeify.py", t) for t, _ in KEPT_LINES]
    return [
        f"{file} has no line with {text!r}"
        for file, text in lines
        if file in sources and text not in sources[file]
    ]
