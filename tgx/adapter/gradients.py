"""The backward walk, as tinygrad takes it.

`compute_gradient` walks from the loss to the parameters and applies one rule of its table at each
node. Nothing of it is copied here; four of its globals tell what it does while it does it:

    compute_gradient   where a walk begins, and what it returns
    _deepwalk          the order of the nodes
    pm_gradient        which rule matched a node, with which upstream gradient
    all_metadata       is asked once after each contribution: the walk's own variables then hold
                       the input, the contribution and the running sum

A walk is kept as a `Recorded`, which holds no UOp: the graph's rows, what its buffers held at that
moment, and the steps as places in it. What the numbers are is worked out when the program has ended
(`tgx.adapter.backward`). To find the kernels, the walk's nodes carry a second mark, which is
followed through the scheduler as origins are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import tinygrad.engine.realize as tg_realize
import tinygrad.mixin.gradient as tg_gradient
import tinygrad.tensor as tg_tensor
from tinygrad.uop.ops import Ops, UOp, UOpMetaClass, UPat

from tgx.adapter import names, provenance
from tgx.adapter.capture import Session
from tgx.adapter.derivatives import formula_of, key_of
from tgx.adapter.hooks import Undo, replace_attribute
from tgx.adapter.origins import MARK, WALK, GradientMarks, Marks, spoken
from tgx.adapter.provenance import COMPUTING, Follow, data_nodes, first_match, following
from tgx.adapter.templates import Lowered, Scope, kernels_of, outermost
from tgx.adapter.values import Rows, data_sources, in_order, rows_of

MOST_WALKS = 12  # different ones; repeats are counted
MOST_NODES = 60_000  # of one walk's graph
MOST_BYTES = 1 << 30  # of all buffers whose contents are kept

SHIFT = 24  # a mark is walk << SHIFT | node


class Enough(BaseException):
    """The walk asked for has been seen: the rest of the script is not needed."""


# **** what is kept of a walk ****


@dataclass
class Part:
    """A contribution: to the node ``target``, input number ``slot``; all are places in the graph,
    -1 for none. ``stops`` says why nothing flows."""

    slot: int
    target: int
    node: int = -1
    total: int = -1
    stops: str = ""


@dataclass
class Visit:
    """One step of the walk."""

    node: int
    upstream: int
    pattern: UPat | None
    key: str
    parts: list[Part]
    made: list[int]


@dataclass
class Goal:
    """A tensor whose gradient was asked for."""

    node: int
    gradient: int
    name: str
    leaf: bool
    stops: str = ""


@dataclass
class Recorded:
    """One walk, without its UOps."""

    id: int
    graph: Rows
    forward: int
    root: int
    visits: list[Visit]
    goals: list[Goal]
    origins: list[Marks]
    spoken: list[str]
    labels: dict[int, str]
    asked: int
    key: Any
    order: int = 1
    parent: int = -1
    jit: str = ""
    function: str = ""
    repeats: int = 1
    params: dict[int, int] = field(default_factory=dict)  # slot -> node of the parent's graph
    kernels: dict[int, set[int]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)  # each node's argument


# **** while it is walked ****


@dataclass
class _Active:
    """A walk in progress."""

    root: UOp
    root_grad: UOp
    targets: set[UOp]
    order: list[UOp] = field(default_factory=list)
    on_path: dict[UOp, bool] = field(default_factory=dict)
    rules: dict[UOp, UPat | None] = field(default_factory=dict)
    upstream: dict[UOp, UOp] = field(default_factory=dict)
    events: dict[UOp, list[tuple[int, UOp, UOp, UOp]]] = field(default_factory=dict)
    nodes: set[UOp] = field(default_factory=set)
    inner: list[tuple[Recorded, UOp, UOp]] = field(default_factory=list)
    call: tuple[UOp, UOp] | None = None  # the FUNCTION whose body this is, and its gradient


class Matching:
    """tinygrad's gradient table, telling which of its rules matched."""

    def __init__(self, table: Any, active: list[_Active]) -> None:
        self.table, self.active = table, active
        self.patterns, self.pdict = table.patterns, table.pdict

    def rewrite(self, node: UOp, ctx: Any = None) -> Any:
        result, pattern = first_match(self.table, node, ctx)
        if self.active:
            self.active[-1].rules[node] = pattern
            self.active[-1].upstream[node] = ctx
        return result


class WalkMarks(GradientMarks):
    """`all_metadata`, which the walk asks about its node after each contribution."""

    def __init__(self, before: Any, walks: Backward) -> None:
        super().__init__(before.real, before.marker)
        self.walks = walks

    def get(self, node: Any, default: Any = ()) -> Any:
        active = self.walks.active
        if active and node in active[-1].nodes:
            frame = sys._getframe(1)
            if frame.f_code is self.walks.walker and frame.f_locals.get("t0") is node:
                self.walks.contributed(active[-1], frame.f_locals)
        return super().get(node, default)


class Numbers(Follow):
    """Follows walks' nodes through a rewrite, as `Follow` follows origins."""

    def get(self, node: UOp) -> Any:
        for layer in reversed(self.layers):
            if (found := layer.get(node)) is not None:
                return found
        return node.__dict__.get(WALK)


class Both(Follow):
    """Tells two what is rewritten."""

    def __init__(self, first: Follow, second: Follow) -> None:
        super().__init__(recorder=first.recorder)
        self.first, self.second = first, second
        self.skip, self.after = first.skip, first.after

    def rebuilt(self, old: UOp, new: UOp) -> None:
        self.first.rebuilt(old, new)
        self.second.rebuilt(old, new)

    def matched(self, old: UOp, new: UOp, pattern: Any, context: Any) -> None:
        self.first.matched(old, new, pattern, context)
        self.second.matched(old, new, pattern, context)


class Backward(Session):
    """A recording that keeps the backward walks.

    ``once``: raise `Enough` when a walk that is known begins again, or a captured one has run.
    """

    def __init__(self, *args: Any, once: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.once = once
        self.walks: list[Recorded] = []
        self.active: list[_Active] = []
        self.walker = tg_gradient.compute_gradient.__code__
        self.by_key: dict[Any, Recorded] = {}
        self.numbers: Numbers = Numbers()
        self.numbered: dict[bytes, tuple[Any, ...]] = {}
        self.left_out = 0
        self.room = MOST_BYTES
        self.words: dict[UOp, str] = {}  # what nodes are called, besides the user's variables
        self.scopes: list[dict[str, Any]] = []  # variables of functions that have returned

    def say(self, text: str) -> None:
        """Something for the reader."""
        self._say_once(text)

    def start(self) -> Backward:
        super().start()
        for alive in list(UOpMetaClass.ucache.values()):  # an earlier recording's
            if (old := alive()) is not None:
                old.__dict__.pop(WALK, None)
        undos: list[Undo] = []
        restore = self._restore

        def put_back() -> None:
            while undos:
                undos.pop()()
            restore()

        self._restore = put_back
        for patch in WALK_PATCHES:
            undos.append(patch(self))
        return self

    def stop(self, ended: str = "ok", error: str = "", exit_code: int = 0) -> None:
        if self.running:
            from tgx.adapter import backward

            try:
                backward.write(self)
            except Exception as e:
                self._fault("backward walk", e)
            finally:
                super().stop(ended, error, exit_code)

    # **** the walk ****

    def walked(self, original: Callable[..., Any], root: UOp, root_grad: UOp,
               targets: set[UOp]) -> Any:
        """`compute_gradient`: one walk, or one inside a function's body."""
        walk = _Active(root, root_grad, targets)
        caller = sys._getframe(2)
        if self.active and caller.f_code.co_name == "call_gradient":
            walk.call = caller.f_locals["k"], caller.f_locals["ctx"]
        self.active.append(walk)
        try:
            grads = original(root, root_grad, targets)
        finally:
            self.active.pop()
        try:
            self._keep(walk, grads, caller)
        except Enough:
            raise
        except Exception as e:  # a fault of ours must not become the program's
            self._fault("backward walk", e)
        return grads

    def ordered(self, result: tuple[list[UOp], dict[UOp, bool]]) -> None:
        """`_deepwalk`: the nodes the walk will visit, and which lie on a path."""
        if self.active:
            walk = self.active[-1]
            walk.order, walk.on_path = result
            walk.nodes = set(walk.order)

    def contributed(self, walk: _Active, scope: Any) -> None:
        """One contribution was added."""
        node, source, value = scope["t0"], scope["k"], scope["v"]
        done = walk.events.setdefault(node, [])
        flowing = [i for i, g in enumerate(scope["lgrads"]) if g is not None]
        done.append((flowing[len(done)], source, value, scope["grads"][source]))
        if node not in walk.upstream:
            walk.upstream[node] = scope["grads"][node]

    def _keep(self, walk: _Active, grads: dict[UOp, UOp], frame: Any) -> None:
        forward = in_order([walk.root])
        order = self._order(forward)
        asked = self.marker.origins.here(3)
        captured = _capturing()
        structure = tuple((n.op, n.dtype, n._shape, n.arg if n.op in _STRUCTURAL else None)
                          for n in forward)  # fmt: skip
        key = structure, self.marker.origins.line(asked), order, captured, bool(walk.call)
        if (before := self.by_key.get(key)) is not None and not walk.call:
            before.repeats += 1
            if self.once and not self.active:
                raise Enough
            return
        if len(self.walks) >= MOST_WALKS or len(forward) > MOST_NODES:
            self.left_out += 1
            return
        seen = dict.fromkeys(forward)  # and then the gradients, in the order they are made
        in_order([walk.root_grad], seen)
        visits = [n for n in reversed(walk.order)
                  if n in walk.events or n in walk.rules or n.op is Ops.GETTUPLE]
        made = [in_order((x for _, _, v, t in walk.events.get(n, ()) for x in (v, t)), seen)
                for n in visits]  # fmt: skip
        in_order((grads[t] for t in walk.targets if t in grads), seen)
        nodes = list(seen)
        place = {n: i for i, n in enumerate(nodes)}
        record = Recorded(
            len(self.walks), rows_of(nodes, self.room if walk.call is None else 0), len(forward),
            place[walk.root], [], [], [n.__dict__.get(MARK, ()) for n in nodes],
            [_spoken(n) for n in nodes], {}, asked, key, order, jit=captured,
        )  # fmt: skip
        self.walks.append(record)
        self.room -= record.graph.nbytes
        self.by_key[key] = record
        self._name(record, nodes, walk, frame)
        for n, fresh in zip(visits, made, strict=True):
            if n.op is Ops.GETTUPLE:
                if n in grads and n.src[0] in place:
                    part = Part(0, place[n.src[0]], place.get(grads[n], -1))
                    record.visits.append(Visit(place[n], place[grads[n]], None, "GETTUPLE",
                                               [part], []))
                continue
            record.visits.append(self._visit(walk, n, fresh, place, grads))
        self._goals(record, walk, grads, place)
        for inner, function, gradient in walk.inner:
            inner.parent = record.id
            inputs = (*function.src[1:], *gradient.src)
            inner.params = {i: place[x] for i, x in enumerate(inputs) if x in place}
        if walk.call is not None and self.active:
            record.function = str(getattr(walk.call[0].arg, "name", "") or "function")
            self.active[-1].inner.append((record, *walk.call))
        for i, n in enumerate(nodes):
            n.__dict__[WALK] = (*n.__dict__.get(WALK, ()), record.id << SHIFT | i)

    def _order(self, forward: list[UOp]) -> int:
        """2 for a graph that contains an earlier walk's gradients, and so on."""
        order = 1
        for n in forward:
            for mark in n.__dict__.get(WALK, ()) if n.op in COMPUTING else ():
                known = self.walks[mark >> SHIFT]
                if mark & (1 << SHIFT) - 1 >= known.forward and known.parent < 0:
                    order = max(order, known.order + 1)
        return order

    def _visit(self, walk: _Active, node: UOp, fresh: Iterable[UOp], place: dict[UOp, int],
               grads: dict[UOp, UOp]) -> Visit:
        pattern = walk.rules.get(node)
        key = key_of(pattern, node) if pattern is not None else node.op.name
        events = {slot: (v, total) for slot, _, v, total in walk.events.get(node, ())}
        parts = []
        sources = data_sources(node)
        body = 1 if node.op in (Ops.FUNCTION, Ops.CALL) else 0  # its first source, no input
        for slot, source in enumerate(sources):
            if slot + body not in events:
                stops = formula_of(key).stops or "the rule gives nothing here"
                parts.append(Part(slot, place[source], stops=stops))
                continue
            value, total = events[slot + body]
            parts.append(Part(slot, place[source], place[value], place[total],
                              _why_it_ends(walk, source)))
        return Visit(place[node], place.get(walk.upstream[node], -1), pattern, key, parts,
                     [place[n] for n in fresh])

    def _goals(self, record: Recorded, walk: _Active, grads: dict[UOp, UOp],
               place: dict[UOp, int]) -> None:
        for target in sorted((t for t in walk.targets if t in place), key=lambda t: place[t]):
            gradient = grads.get(target)
            if gradient is not None and gradient.op is Ops.NOOP:
                gradient = None
            stops = "" if gradient is not None else _why_not_reached(walk, target)
            at = place[target]
            record.goals.append(Goal(at, place[gradient] if gradient is not None else -1,
                                     record.labels.get(at, ""), target not in walk.nodes, stops))

    def _name(self, record: Recorded, nodes: list[UOp], walk: _Active, frame: Any) -> None:
        """What the user calls the forward nodes."""
        from tgx.adapter.wording import argument_text

        wanted = nodes[: record.forward]
        found = names.arguments(wanted, frame, self.marker.origins)
        known = {t.uop: text for scope in self.scopes for text, t in _tensors(scope)} | self.words
        found = [text or known.get(n, "") for text, n in zip(found, wanted, strict=True)]
        record.labels = {i: text for i, text in enumerate(found) if text}
        record.text = [argument_text(n) for n in nodes]

    # **** the kernels ****

    def call_made(self, big_sink: UOp, original: Callable[[UOp], Any]) -> Any:
        self.numbers = Numbers()

        def followed(sink: UOp) -> Any:
            first = provenance.current()
            assert first is not None
            with following(Both(first, self.numbers)):
                return original(sink)

        return super().call_made(big_sink, followed)

    def lower(self, function: UOp, original: Callable[[UOp], UOp | None]) -> UOp | None:
        linear = super().lower(function, original)
        self.numbered[function.key] = tuple(self.numbers.get(n) or () for n in function.toposort())
        return linear

    def _note_schedule(self, big_sink: UOp, linear: UOp, all_lowered: list[Lowered],
                       started: float) -> None:
        known = len(self.schedules)
        super()._note_schedule(big_sink, linear, all_lowered, started)
        if len(self.schedules) == known:
            return
        brought = {
            low.template.key: replace(low, origins=self.numbered.get(low.template.key, ()))
            for low in all_lowered
        }
        outer = brought[outermost(all_lowered).template.key]
        ids = self.recorder.kernels_of(len(self.schedules) - 1)
        for kernel, (tk, scope) in zip(ids, kernels_of(Scope(outer), self.templates, brought),
                                       strict=False):
            data = data_nodes(tk.ast)
            numbers = scope.lowered.origins
            for n, tokens in zip(tk.ast.toposort(), tk.notes, strict=False):
                if n in data and n.op in COMPUTING:
                    for t in tokens:
                        for number in numbers[t] if t < len(numbers) else ():
                            walk = self.walks[number >> SHIFT]
                            walk.kernels.setdefault(kernel, set()).add(number & (1 << SHIFT) - 1)

    def run(self, original: Callable[..., Any], linear: UOp, *args: Any, **kwargs: Any) -> Any:
        plan = self.plans.get(linear)
        result = super().run(original, linear, *args, **kwargs)
        if self.once and plan is not None and plan.jit and any(w.jit for w in self.walks):
            raise Enough
        return result


def _tensors(scope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors in some variables, and in the objects and lists they hold, with their names."""
    todo = [(name, value, 0) for name, value in scope.items()]
    seen: set[int] = set()
    while todo and len(seen) < names.MOST_OBJECTS:
        name, value, depth = todo.pop()
        if isinstance(value, tg_tensor.Tensor):
            yield name, value
        elif id(value) not in seen and depth < names.DEPTH:
            seen.add(id(value))
            todo += [(n, v, depth + 1) for n, v in names._inside(name, value)]


def lazy_gradients() -> list[Any]:
    """The gradients of tensors in scope that nothing has computed yet."""
    alive = [t for ref in list(tg_tensor.all_tensors) if (t := ref()) is not None]
    grads = [t.grad for t in alive if t.grad is not None]
    return [g for g in grads if WALK in g.uop.__dict__ and not g.uop.is_realized]


_STRUCTURAL = (Ops.REDUCE, Ops.PERMUTE, Ops.FLIP)


def _capturing() -> str:
    """The name of the jitted function that is being captured, "" outside."""
    if not tg_realize.capturing:
        return ""
    function = getattr(tg_realize.capturing[0], "fxn", None)
    return str(getattr(function, "__name__", "TinyJit"))


def _spoken(node: UOp) -> str:
    """The Tensor method tinygrad itself says a node comes from: for graphs built earlier."""
    found = node.metadata
    return next((spoken(m.name) for m in found or () if getattr(m, "name", "")), "")


def _why_it_ends(walk: _Active, source: UOp) -> str:
    """Why a contribution is carried no further; "" where it is, or where it was asked for."""
    if source in walk.nodes or source in walk.targets:
        return ""
    if source.op is Ops.DETACH:
        return "detach() stops the gradient here"
    if source.base.op is Ops.CONST:
        return "a constant: nobody asks for its gradient"
    return "not on the way to any tensor whose gradient is asked for"


def _why_not_reached(walk: _Active, target: UOp) -> str:
    for node in in_order([walk.root]):
        if node.op is Ops.DETACH and target in node.toposort():
            return "it enters the loss only behind a detach()"
    return "it enters the loss only where nothing flows: in a condition, or as whole numbers"


# **** the patches ****


def hear_walks(s: Backward) -> Undo:
    plain = tg_gradient.compute_gradient

    def compute_gradient(root: UOp, root_grad: UOp, targets: set[UOp]) -> Any:
        return s.walked(plain, root, root_grad, targets)

    return replace_attribute(tg_gradient, "compute_gradient", compute_gradient)


def hear_order(s: Backward) -> Undo:
    plain = tg_gradient._deepwalk

    def _deepwalk(root: UOp, targets: set[UOp]) -> Any:
        result = plain(root, targets)
        s.ordered(result)
        return result

    return replace_attribute(tg_gradient, "_deepwalk", _deepwalk)


def hear_rules(s: Backward) -> Undo:
    table = Matching(tg_gradient.pm_gradient, s.active)
    return replace_attribute(tg_gradient, "pm_gradient", table)


def hear_contributions(s: Backward) -> Undo:
    return replace_attribute(
        tg_gradient, "all_metadata", WalkMarks(tg_gradient.all_metadata, s)
    )


WALK_PATCHES: tuple[Callable[[Backward], Undo], ...] = (
    hear_walks, hear_order, hear_rules, hear_contributions,
)  # fmt: skip
