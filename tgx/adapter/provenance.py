"""Origins through the rewrites: which nodes of a kernel came from which nodes of the Tensor graph.

tinygrad turns a Tensor graph into kernels by thousands of small rewrites and keeps no record. Two
hooks see all of them: `RewriteContext` (a rule replaced a node) and `_rebuild_dtype` (a node is
rebuilt because its sources changed). `Follow` is a set of notes about nodes that is carried along
both.

A note is a tuple of small numbers, *tokens*. While a Tensor graph is put in order for the scheduler
(`transform_to_call`), tokens are origins. While the scheduler works (`lower_sink_to_linear`),
tokens are places in the graph it was given, so that its result, once followed, serves every later
graph of the same structure: tinygrad's schedule cache answers for all of them, and each brings its
own origins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tinygrad.uop import ops as uops
from tinygrad.uop.ops import Ops, RewriteContext, UOp

from tgx.adapter.origins import COMPUTES, MARK

Tokens = tuple[int, ...]

COMPUTING = {op for op in Ops if op.name in COMPUTES}
# nodes that carry a value along: what they mean is what they carry
CARRIERS = {Ops.STAGE, Ops.STORE, Ops.END, Ops.AFTER, Ops.NOOP}
# nodes that decide where a value is stored: their own line belongs to the stored value as well
STORING = {Ops.CONTIGUOUS, Ops.STORE, Ops.AFTER, Ops.COPY}
# these exist once for the whole graph, whoever uses them
SHARED = {Ops.CONST, Ops.RANGE, Ops.PARAM, Ops.BUFFER, Ops.SPECIAL}

MOST = 24  # tokens one node keeps


def union(a: Tokens, b: Tokens) -> Tokens:
    if a == b or not b:
        return a
    if not a:
        return b
    return tuple(dict.fromkeys(a + b))[:MOST]


class Follow:
    """Notes on nodes, carried along the rewrites that happen while it is current.

    ``notes`` are tokens; ``stages`` says which boundary decision a STAGE or BUFFER node embodies;
    ``calls`` has, for each kernel's CALL, the notes of its own AST (equal kernels share one AST, so
    a note on the AST's nodes would mix them up). ``recorder``, where given, hears every change.
    """

    def __init__(self, marks: bool = False, recorder: Any = None) -> None:
        self.marks = marks  # whether nodes without a note may have an origin mark
        self.layers: list[dict[UOp, Tokens]] = [{}]
        self.stages: dict[UOp, int] = {}
        self.calls: dict[UOp, list[Tokens]] = {}
        # what a node keeps when it is rebuilt
        self.carried: list[dict[UOp, Any]] = [self.stages, self.calls]
        self.split: tuple[UOp, dict[UOp, Tokens]] | None = None
        self.recorder = recorder
        self.skip: Collection[Any] = ()  # places of rules that are turned off
        self.after: dict[str, Callable[[UOp], UOp]] = {}  # name of a pass -> what follows it
        self.watch: Callable[[UOp, UOp, list[UOp], Any, Any], None] | None = None

    def get(self, node: UOp) -> Tokens | None:
        if (found := self.layers[-1].get(node)) is not None:
            return found
        for layer in self.layers[-2::-1]:
            if (found := layer.get(node)) is not None:
                return found
        return node.__dict__.get(MARK) if self.marks else None

    def rebuilt(self, old: UOp, new: UOp) -> None:
        """``new`` is ``old`` with other sources."""
        if new is old:
            return
        note = self.get(old)
        if note is not None:
            layer = self.layers[-1]
            before = layer.get(new)
            layer[new] = note if before is None else union(before, note)
        for kept in self.carried:
            if kept and old in kept:
                kept.setdefault(new, kept[old])
        if self.recorder is not None:
            self.recorder.rebuilt(old, new)

    def matched(self, old: UOp, new: UOp, pattern: Any, context: Any) -> None:
        """A rule replaced ``old`` by ``new``."""
        note = self.get(old) or ()
        fresh = self._fresh(new)
        layer = self.layers[-1]
        for n in reversed(fresh):  # sources before the nodes that use them
            if n.op in CARRIERS and n.src:
                value = self.get(n.src[1] if n.op is Ops.STORE and len(n.src) > 1 else n.src[0])
                keep = value if value is not None and n.src[0].op is not Ops.CONST else note
                layer[n] = union(keep, note) if old.op in STORING else keep
            else:
                layer[n] = note
        stage = self.stages.get(old)
        if stage is not None:
            for n in fresh:
                if n.op is Ops.STAGE or n.op is Ops.BUFFER:
                    self.stages.setdefault(n, stage)
        if fresh and pattern is not None and _merges(pattern):
            # arithmetic that was folded into one node: the lines of what disappeared stand behind
            # it
            self._keep_vanished(old, new, set(fresh))
        elif not fresh and new.op in COMPUTING and note and not _below(old, new):
            layer[new] = union(self.get(new) or (), note)
        if old in self.calls and new.op is Ops.CALL:
            self.calls.setdefault(new, self.calls[old])
        elif self.split is not None and new.op is Ops.CALL:
            notes = self.split[1]
            self.split = None
            self.calls[new] = [self._in(notes, n) for n in new.src[0].toposort()]
        if self.watch is not None:
            self.watch(old, new, fresh, pattern, context)
        if self.recorder is not None:
            self.recorder.matched(old, new, pattern)

    def _in(self, notes: dict[UOp, Tokens], node: UOp) -> Tokens:
        found = notes.get(node)
        return (self.get(node) or ()) if found is None else found

    def _fresh(self, root: UOp) -> list[UOp]:
        """The nodes of ``root`` without a note, each before its sources."""
        out: list[UOp] = []
        seen: set[UOp] = set()
        todo = [root]
        while todo:
            n = todo.pop()
            if n in seen or self.get(n) is not None:
                continue
            seen.add(n)
            out.append(n)
            todo.extend(n.src)
        return out

    def _keep_vanished(self, old: UOp, new: UOp, fresh: set[UOp]) -> None:
        if new not in fresh or new.op not in COMPUTING:
            return
        kept = {s for n in fresh for s in n.src} | {new}
        for s in old.src:
            if s.op in COMPUTING and s not in kept and (note := self.get(s)):
                self.layers[-1][new] = union(self.layers[-1][new], note)


def _merges(pattern: Any) -> bool:
    place = pattern.location[0]
    return bool(place.endswith(("symbolic.py", "simplify.py")))


def _below(old: UOp, new: UOp) -> bool:
    """Whether ``new`` is a part of ``old`` that was left over."""
    return any(s is new or any(t is new for t in s.src) for s in old.src)


# **** the hooks ****

_following: list[Follow] = []  # innermost last


def current() -> Follow | None:
    return _following[-1] if _following else None


def first_match(matcher: Any, node: UOp, ctx: Any, skip: Collection[Any] = ()) -> tuple[Any, Any]:
    """(result, pattern) of the first rule that fires: `PatternMatcher.rewrite`, which does not say
    which."""
    patterns = matcher.pdict.get(node.op)
    if patterns:
        have = node.__dict__.get("_src_ops")
        if have is None:
            node.__dict__["_src_ops"] = have = {s.op for s in node.src}
        for pattern, rule, needs in patterns:
            if needs.issubset(have) and not (skip and pattern.location in skip):
                result = rule(node, ctx)
                if result is not None and result is not node:
                    return result, pattern
    return None, None


NOT_YET = object()


class FollowedRewrite(RewriteContext):
    """tinygrad's RewriteContext, telling the current Follow what its rules do."""

    def __init__(self, pm: Any, bpm: Any, ctx: Any = None, enter_calls: bool = False) -> None:
        super().__init__(pm, bpm, ctx, enter_calls)
        self.follow = _following[-1]
        caller = sys._getframe(1).f_locals
        self.name: str = caller.get("name") or ""
        self.own_layer = self.name == "kernel split"
        recorder = self.follow.recorder
        self.recorded = None
        if recorder is not None:
            self.recorded = recorder.begin(
                self.name, caller.get("sink"), bpm is not None, bool(caller.get("walk"))
            )

    def pm_rewrite(self, x: UOp) -> UOp | None:
        result, pattern = first_match(self.pm, x, self.ctx, self.follow.skip)
        if pattern is not None and isinstance(result, UOp):
            self.follow.matched(x, result, pattern, self)
        return result

    def cached_bpm_rewrite(self, x: UOp) -> UOp | None:
        result = self.bpm_cache.get(x, NOT_YET)
        if result is NOT_YET:
            result, pattern = first_match(self.bpm, x, self.ctx, self.follow.skip)
            if pattern is not None and isinstance(result, UOp):
                self.follow.matched(x, result, pattern, self)
            self.bpm_cache[x] = result
        return result

    def unified_rewrite(self, root: UOp) -> UOp:
        return self._around(super().unified_rewrite, root)

    def walk_rewrite(self, root: UOp) -> UOp:
        return self._around(super().walk_rewrite, root)

    def _around(self, rewrite: Callable[[UOp], UOp], root: UOp) -> UOp:
        if self.own_layer:
            self.follow.layers.append({})
        result = root
        try:
            result = rewrite(root)
        finally:
            if self.own_layer:
                self.follow.split = result, self.follow.layers.pop()
            if self.recorded is not None:
                self.follow.recorder.finish(self.recorded, root, result)
        then = self.follow.after.get(self.name)
        return result if then is None else then(result)


_plain_rebuild = uops._rebuild_dtype


def _followed_rebuild(n: UOp, new_src: tuple[UOp, ...]) -> Any:
    """`_rebuild_dtype` runs just before each rebuild; the node it is for exists only once."""
    dtype = _plain_rebuild(n, new_src)
    if _following:
        _following[-1].rebuilt(n, UOp(n.op, dtype, new_src, n.arg, n.tag))
    return dtype


@contextmanager
def following(follow: Follow) -> Iterator[Follow]:
    """Every rewrite inside is noted in ``follow``."""
    saved = uops.RewriteContext, uops._rebuild_dtype
    uops.RewriteContext = FollowedRewrite
    uops._rebuild_dtype = _followed_rebuild
    _following.append(follow)
    try:
        yield follow
    finally:
        _following.pop()
        uops.RewriteContext, uops._rebuild_dtype = saved


@contextmanager
def not_following() -> Iterator[None]:
    """tinygrad's own rewrites, unobserved, inside a `following` block."""
    saved = uops.RewriteContext, uops._rebuild_dtype
    uops.RewriteContext, uops._rebuild_dtype = RewriteContext, _plain_rebuild
    try:
        yield
    finally:
        uops.RewriteContext, uops._rebuild_dtype = saved


# **** what a kernel's nodes come from ****


def data_nodes(ast: UOp) -> dict[UOp, None]:
    """The nodes of a kernel that compute values, without the arithmetic of indices and ranges."""
    out: dict[UOp, None] = {}
    todo = [s for s in ast.toposort() if s.op is Ops.STORE]
    values = [s.src[1] for s in todo if len(s.src) > 1] or [ast]
    stack = list(reversed(values))
    while stack:
        n = stack.pop()
        if n in out:
            continue
        out[n] = None
        if n.op in (Ops.INDEX, Ops.LOAD):
            stack.extend(n.src[:1])
        elif n.op is Ops.REDUCE:
            stack.append(n.src[0])
        elif n.op is not Ops.RANGE:
            stack.extend(reversed(n.src))
    return out
