"""Gradient kernels named by what they compute: ``∂layer3.weight = ∂layer3ᵀ·relu(layer2)``.

The factors come out of the kernel's AST: a sum over a product of two operands, each of which reads
some buffers. What a buffer holds has a symbol: the user's own name for it, the layer that computed
it (``layer2``), or ∂ and the symbol of the value it is the gradient of. Where any part of this
cannot be told, a kernel keeps its plainer name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tinygrad.uop.ops import Ops, UOp

from tgx import model
from tgx.adapter import names
from tgx.adapter.origins import OriginRecord

if TYPE_CHECKING:
    from tgx.adapter.building import Builder

@dataclass(frozen=True)
class Operand:
    """One factor: the argument slots it reads, whether something was computed of them first, and
    whether the axis that is summed comes first in it (a matrix that is then transposed on the left
    and plain on the right)."""

    slots: tuple[int, ...]
    computed: bool
    summed_first: bool
    reach: int  # how far in the output one step of its own axis goes


def product(ast: UOp) -> tuple[Operand, Operand] | None:
    """The two factors that a kernel sums over, the output's rows first. None if it does not."""
    nodes = list(ast.toposort())
    stores = [n for n in nodes if n.op is Ops.STORE]
    sums = [n for n in nodes if n.op is Ops.REDUCE and n.arg[0] is Ops.ADD]
    if len(stores) != 1 or not sums or len(stores[0].src[0].src) < 2:
        return None
    value = _bare(sums[0].src[0])
    if value.op is not Ops.MUL:
        return None
    summed = {r for s in sums for r in s.src[1:]}
    out = stores[0].src[0].src[1]
    sides = [_operand(side, summed, out) for side in value.src]
    if None in sides:
        return None
    a, b = (s for s in sides if s is not None)
    return (a, b) if a.reach >= b.reach else (b, a)


def summand(ast: UOp) -> int:
    """The only argument that a kernel sums over without any factor; -1 if it does not."""
    sums = [n for n in ast.toposort() if n.op is Ops.REDUCE and n.arg[0] is Ops.ADD]
    value = _bare(sums[0].src[0]) if sums else ast
    if value.op is Ops.INDEX and value.src[0].op is Ops.PARAM:
        return int(value.src[0].arg.slot)
    return -1


def _bare(node: UOp) -> UOp:
    while node.op is Ops.CAST or (node.op is Ops.REDUCE and node.arg[0] is Ops.ADD):
        node = node.src[0]
    return node


def _operand(side: UOp, summed: set[UOp], out: UOp) -> Operand | None:
    reads = [n for n in side.toposort() if n.op is Ops.INDEX and n.src[0].op is Ops.PARAM]
    if not reads:
        return None
    index = reads[0].src[1]
    ranges = [n for n in index.toposort() if n.op is Ops.RANGE]
    inner = max((abs(_stride(index, r)) for r in ranges if r in summed), default=0)
    own = [r for r in ranges if r not in summed]
    outer = max((abs(_stride(index, r)) for r in own), default=0)
    slots = tuple(dict.fromkeys(int(n.src[0].arg.slot) for n in reads))
    reach = max((abs(_stride(out, r)) for r in own), default=0)
    return Operand(slots, _bare(side).op is not Ops.INDEX, inner > outer, reach)


def _stride(index: UOp, of: UOp) -> int:
    """How far an index goes when one range takes its first step."""
    values: dict[UOp, int] = {}
    for n in index.toposort():
        s = [values.get(x, 0) for x in n.src]
        if n.op is Ops.CONST:
            values[n] = int(n.arg) if isinstance(n.arg, (int, bool)) else 0
        elif n.op is Ops.RANGE:
            values[n] = int(n is of)
        elif n.op is Ops.ADD:
            values[n] = s[0] + s[1]
        elif n.op is Ops.MUL:
            values[n] = s[0] * s[1]
        elif n.op is Ops.WHERE:  # beside a picture's border: inside it
            values[n] = s[1]
    return values.get(index, 0)


class Formulas:
    """The symbols of one schedule's buffers, and names made of them. Kernels come in order."""

    def __init__(self, built: Builder) -> None:
        self.built = built
        self.symbols: dict[int, str] = {
            b.id: names.brief(b.name) for b in built.buffers.values() if b.name
        }
        self.at: dict[int, list[int]] = {}  # an origin -> its nodes in the Tensor graph
        for i, marks in enumerate(built.outer.origins):
            for m in marks:
                self.at.setdefault(m, []).append(i)

    def name(
        self, kernel: model.Kernel, records: list[OriginRecord], last: list[OriginRecord],
        target: str, plain: str,
    ) -> str:
        """A kernel's name; ``last`` are the origins of the very value it stores."""
        text, symbol = plain, ""
        if kernel.phase == "backward" and kernel.kind == "kernel" and "(" not in plain:
            known = self.built.argument_names
            named = bool(target) and target in known
            parameter = known.index(target) if named else self._parameter(kernel, last)
            of = target or (self._argument(parameter) if parameter >= 0 else "")
            symbol = f"∂{names.brief(of)}" if of else self._gradient_of(kernel, last)
            formula = self._product(kernel, records, parameter) if symbol else ""
            if formula:
                updates = plain.rpartition(" + ")[2] if target and " + " in plain else ""
                text = f"{symbol} = {formula}" + (f" + {updates}" if updates else "")
            elif symbol and not target:
                text = f"{symbol} through {plain.replace('∂', '')}"
        elif kernel.phase == "forward":
            symbol = next((v for r in last if (v := names.variable(r))), "") or _symbol(plain)
        for b in kernel.writes:
            if symbol and not self.built.buffers[b].name:
                self.symbols[b] = symbol
        return text

    def _product(
        self, kernel: model.Kernel, records: list[OriginRecord], parameter: int
    ) -> str:
        """The right-hand side: a sum of products, or the plain sum that a bias' gradient is."""
        slots = self.built.recorder.arguments[kernel.id]
        ast = self.built.recorder.asts[kernel.id]
        back = [self._base(r) for r in records if r.phase == "backward"]
        if parameter >= 0 and (slot := summand(ast)) >= 0:
            of = self._symbol_at(slots, slot)
            alone = len({b.op for b in back if b.op not in names.QUIET}) == 1  # nothing scales it
            return f"Σ {of}" if alone and of.startswith("∂") else ""
        base = next((b for b in back if b.op in names.PRODUCTS), None)
        factors = product(ast) if base else None
        if base is None or factors is None:
            return ""
        texts = [self._factor(slots, f, records) for f in factors]
        upstream = [t.startswith("∂") for t in texts]
        if not all(texts) or sum(upstream) != 1:
            return ""
        gradient, other = texts if upstream[0] else reversed(texts)
        if base.op == "conv2d":
            text = f"{gradient} ⋆ {other}"
        else:
            factor = factors[upstream.index(False)]
            text = self._matrices(kernel, base, gradient, other, factor, parameter)
        through = [names.operation(b) for b in back if b is not base and b.op not in names.QUIET]
        through = [t for t in dict.fromkeys(through) if t != names.operation(base)]
        return text + "".join(f" ⊙ {t}′" for t in through) if text else ""

    def _matrices(
        self, kernel: model.Kernel, base: OriginRecord, gradient: str, other: str, factor: Operand,
        parameter: int,
    ) -> str:
        """Of y = a·b: ∂a = ∂y·bᵀ and ∂b = aᵀ·∂y. Which of the two a kernel computes is asked of the
        forward graph; memory does not say it, as a result may lie in it transposed."""
        slots = self.built.recorder.arguments[kernel.id]
        read = {self.built.slots.get(slots[s], -1) for s in factor.slots if s < len(slots)}
        for i in self.at.get(base.id, ()):
            node = self.built.nodes[i]
            if node.op is not Ops.MUL:
                continue
            sides = [self._seen_through(s) for s in node.src[:2]]
            if base.op == "linear" and base.label:  # nn.Linear's x · Wᵀ
                sides[1] = sides[1][0], True
            for right, (slot, turned) in enumerate(sides):
                if parameter >= 0 and slot == parameter:
                    first, t = (gradient, other) if turned else (other, gradient)
                    if right:
                        return f"{first}{'' if sides[0][1] and not turned else 'ᵀ'}·{t}"
                    return f"{t}·{first}{'' if sides[1][1] and not turned else 'ᵀ'}"
                if parameter < 0 and slot >= 0 and slot in read:
                    if other != names.brief(self._argument(slot)):
                        return ""
                    t = "" if factor.summed_first else "ᵀ"
                    return f"{gradient}·{other}{t}" if right else f"{other}{t}·{gradient}"
        return ""

    def _seen_through(self, node: UOp) -> tuple[int, bool]:
        """The slot of the argument that a matmul's side is, -1 if it is none, and whether the user
        has transposed it. The matmul's own transpositions are its own business."""
        turned = False
        while node.op in names.VIEWS or node.op is Ops.CAST:
            if node.op is Ops.PERMUTE:
                records = self._forward(self._place[node]) if node in self._place else []
                turned ^= any(r.op in TURNING for r in records)
            node = node.src[0]
        return int(node.arg.slot) if node.op is Ops.PARAM else -1, turned

    def _argument(self, slot: int) -> str:
        known = self.built.argument_names
        return known[slot] if 0 <= slot < len(known) else ""

    def _factor(self, slots: list[int], f: Operand, records: list[OriginRecord]) -> str:
        known = [t for s in f.slots if (t := self._symbol_at(slots, s))]
        if not known:
            return ""
        before = [r for r in records if r.phase == "forward" and r.op not in names.QUIET]
        again = [n for r in before if not r.label and (n := names.operation(r))]
        if f.computed and known[0].startswith("∂"):
            return known[0]
        if f.computed and again:
            return f"{names.shortened(again[-1])}({known[0]})"
        return known[0]

    def _symbol_at(self, slots: list[int], slot: int) -> str:
        return self.symbols.get(slots[slot], "") if 0 <= slot < len(slots) else ""

    def _base(self, record: OriginRecord) -> OriginRecord:
        return self.built.origins.records[record.forward]

    def _parameter(self, kernel: model.Kernel, last: list[OriginRecord]) -> int:
        """The argument of the whole graph that a gradient is of, by its slot: what the operation it
        goes back through last was given, if the kernel itself does not read it. -1: none."""
        read = {self.built.slots.get(b, -1) for b in kernel.reads}
        size = max((self._elements(b) for b in kernel.writes), default=0)
        for node in self._given(last):
            while node.op in names.VIEWS or node.op is Ops.CAST:
                node = node.src[0]
            if node.op is Ops.PARAM and _numel(node) == size and node.arg.slot not in read:
                if self._argument(node.arg.slot):
                    return int(node.arg.slot)
        return -1

    def _given(self, last: list[OriginRecord]) -> Iterator[UOp]:
        """What the operations behind these origins were given: the nearest nodes of other calls."""
        for record in last:
            if record.phase != "backward":
                continue
            base = self._base(record)
            todo, seen = list(self.at.get(base.id, ())), set(self.at.get(base.id, ()))
            while todo:
                for s in self.built.nodes[todo.pop(0)].src:
                    i = self._place.get(s, -1)
                    if i < 0 or i in seen:
                        continue
                    seen.add(i)
                    own = self._forward(i)
                    inside = any(_call(r) == _call(base) for r in own)
                    if inside or not any(r.op not in names.QUIET for r in own):
                        todo.append(i)
                    if not inside:
                        yield s

    def _forward(self, node: int) -> list[OriginRecord]:
        records = [self.built.origins.records[m] for m in self.built.outer.origins[node]]
        return [r for r in records if r.phase == "forward"]

    def _gradient_of(self, kernel: model.Kernel, last: list[OriginRecord]) -> str:
        """∂ and the value that the last operation a gradient went back through was given."""
        size = max((self._elements(b) for b in kernel.writes), default=0)
        for node in self._given(last):
            own = self._forward(self._place[node])
            named = next((r for r in own if r.op not in names.QUIET | names.FILLING), None)
            if named is not None and _numel(node) == size:
                variables = (v for r in own if (v := names.variable(r)))
                text = next(variables, "") or names.shortened(names.operation(named))
                return f"∂{text}"
        return ""

    @cached_property
    def _place(self) -> dict[UOp, int]:
        return {n: i for i, n in enumerate(self.built.nodes)}

    def _elements(self, buffer: int) -> int:
        size = 1
        for part in self.built.buffers[buffer].shape.split("×"):
            size *= int(part) if part.isdigit() else 1
        return size


def _numel(node: UOp) -> int:
    if node._shape is None:
        return -1
    size = 1
    for s in node._shape:
        size *= s if isinstance(s, int) else int(s.vmax)
    return size


def _call(record: OriginRecord) -> tuple[object, ...]:
    """Which call of the user's an origin belongs to."""
    place = record.places[record.user] if record.user >= 0 else None
    return record.op, record.label, place


def _symbol(name: str) -> str:
    """What a forward kernel's result is called in a formula: ``relu + layer2 + bias`` is
    ``layer2``, ``layer1 + bias + relu`` is ``relu(layer1)``."""
    parts = [p for p in name.split(" + ") if p not in ("bias", "…")]
    if not parts:
        return ""
    if len(parts) > 1 and parts[-1] in ELEMENTWISE:
        return f"{parts[-1]}({parts[-2]})"
    return parts[-1]


TURNING = {"transpose", "permute", "T"}
"""The user's own transpositions; a matmul's are its own business."""

ELEMENTWISE = {"relu", "gelu", "silu", "swish", "tanh", "sigmoid", "elu", "leaky_relu", "exp"}
