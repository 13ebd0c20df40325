"""One schedule's kernels and buffers, from its template and the origins that its graph brought.

A template's notes are places in a graph; here they become origins, and from these everything a
reader wants of a kernel: its operations and lines, what it is for, what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinygrad.helpers import size_to_str, to_tuple
from tinygrad.uop.ops import Ops, UOp

from tgx import model
from tgx.adapter import names
from tgx.adapter.boundaries import Decision
from tgx.adapter.explaining import Explainer
from tgx.adapter.formulas import Formulas
from tgx.adapter.origins import Marks, OriginRecord
from tgx.adapter.provenance import COMPUTING, SHARED, Tokens, data_nodes
from tgx.adapter.templates import Lowered, Scope, TemplateKernel
from tgx.adapter.wording import dtype_name, shape_text

if TYPE_CHECKING:
    from tgx.adapter.writing import Recorder


class Builder:
    """The kernels, buffers and boundaries of one schedule."""

    def __init__(
        self,
        recorder: Recorder,
        number: int,
        outer: Lowered,
        nodes: list[UOp],
        arguments: list[str],
        asked: int,
        lazy: int,
    ) -> None:
        self.recorder, self.number, self.outer, self.nodes = recorder, number, outer, nodes
        self.argument_names, self.asked, self.lazy = arguments, asked, lazy
        self.origins = recorder.origins
        self.kernels: list[model.Kernel] = []
        self.records: list[list[OriginRecord]] = []
        self.roots: list[list[OriginRecord]] = []  # the origins of the very value each stores
        self.scopes: dict[int, Scope] = {}  # kernel -> the function it is in
        self.buffers: dict[int, model.Buffer] = {}
        self.by_uop: dict[tuple[Scope, UOp], int] = {}
        self.decision_of: dict[int, tuple[Decision, Lowered]] = {}
        self.slots: dict[int, int] = {}  # buffer -> slot of the outer graph's argument
        self.borders: dict[int, str] = {}  # buffer -> the function whose result it is
        self.boundaries: list[model.Boundary] = []
        self.arenas: dict[UOp, int] = {}
        self.owner: dict[int, Scope] = {}  # buffer -> the function it lives in
        self.planned = self.unplanned = -1

    # **** kernels ****

    def kernel(self, place: int, tk: TemplateKernel, scope: Scope, call: UOp | None) -> None:
        """Adds one kernel; ``call`` is what will be launched, where that is known."""
        low = scope.lowered
        number = len(self.recorder.kernels)
        ast_nodes = list(tk.ast.toposort())
        marks = self._marks(tk, ast_nodes, low)
        ids = list(dict.fromkeys(m for m in marks))
        for vague in ("unknown", "tensor", "empty"):  # says less than any other origin
            ids = [m for m in ids if self.origins.records[m].op != vague] or ids
        ids = ids or [self.asked]
        records = [self.origins.records[m] for m in ids]
        args = [a for a in tk.args if not a.is_bound_var]
        actual = [a for a in call.src[1:] if not a.is_bound_var] if call is not None else []
        buffers = [self._buffers(a, scope, place) for a in args]
        for pieces, a in zip(buffers, actual, strict=False):
            if len(pieces) == 1:
                self._place(pieces[0], a)
        kind = "kernel"
        if call is not None and call.src[0].op is Ops.COPY:
            kind = "copy"
        elif call is not None and call.src[0].op is Ops.CUSTOM_FUNCTION:
            kind = "custom"
        root = self._root_records(tk, ast_nodes, low) or records
        phase = "data" if kind == "copy" and scope.outer is None else _phase(root, records)
        if any(self._goes_back(n, t, low) for n, t in zip(ast_nodes, tk.notes, strict=False)):
            phase = "backward"  # a gradient is its main work, whatever is done to it afterwards
        writes = [b for i in tk.writes if i < len(buffers) for b in buffers[i]]
        reads = [b for i in tk.reads if i < len(buffers) for b in buffers[i]]
        for b in writes:
            if scope.outer is not None and self.owner[b] is not scope:
                self.borders[b] = scope.name
        self.recorder.arguments[number] = [b[0] if len(b) == 1 else -1 for b in buffers]
        ast = self.recorder.graph(
            "ast",
            f"kernel {number}",
            ast_nodes,
            # what exists once for the whole program has the line that first made it
            [
                () if n.op in SHARED else low.marks(t)
                for n, t in zip(ast_nodes, tk.notes, strict=True)
            ],
            roots=(ast_nodes[-1],),
        )
        forward = (r.forward for r in records if r.phase == "backward")
        kernel = model.Kernel(
            number,
            "",
            "",
            ", ".join(_devices(call)),
            phase,
            kind,
            self.number,
            -1,
            tuple(dict.fromkeys(r.op for r in records)),
            tuple(self._lines(records)),
            tuple(dict.fromkeys(self.origins.records[f].op for f in forward)),
            tuple(self.recorder.origin(i) for i in ids),
            tuple(dict.fromkeys(reads)),
            tuple(dict.fromkeys(writes)),
            ast,
        )
        if kind == "copy" and writes:
            nbytes = self.buffers[writes[0]].nbytes
            name = _copy_name(call, nbytes)
            kernel = replace(kernel, bytes=2 * nbytes, flops=0, tinygrad_name=name)
        self.kernels.append(kernel)
        self.scopes[number] = scope
        self.records.append(records)
        self.roots.append(root)
        self.recorder.kernels[number] = kernel
        self.recorder.asts[number] = tk.ast

    def _marks(self, tk: TemplateKernel, ast_nodes: list[UOp], low: Lowered) -> list[int]:
        """The origins of what a kernel computes, in the order it computes them."""
        data = data_nodes(tk.ast)
        groups: list[Marks] = []
        for n, tokens in zip(ast_nodes, tk.notes, strict=False):
            if n in data and n.op in COMPUTING:
                groups.extend(low.origins[t] for t in tokens if t < len(low.origins))
        marks = self._own(groups)
        if not [m for m in marks if m != self.origins.unknown]:
            for n, tokens in zip(ast_nodes, tk.notes, strict=False):
                if n.op is Ops.STORE or (n in data and n.op not in SHARED):
                    marks.extend(low.marks(tokens))
        return marks

    def _own(self, groups: list[Marks]) -> list[int]:
        """The marks that are this kernel's.

        Two lines that write the same computation share its nodes, which then have a mark of each.
        Where other nodes of the kernel tell which of the lines it serves, the others' marks go.
        """
        line = self.origins.line
        sure = {line(g[0]) for g in groups if len(g) == 1}
        out: list[int] = []
        for g in groups:
            mine = [m for m in g if line(m) in sure] if len(g) > 1 else []
            out.extend(mine or g)
        return out

    def _root_records(
        self, tk: TemplateKernel, ast_nodes: list[UOp], low: Lowered
    ) -> list[OriginRecord]:
        """The origins of the value a kernel stores: they decide what it is for."""
        note = dict(zip(ast_nodes, tk.notes, strict=False))
        for n in ast_nodes:
            if n.op is Ops.STORE and len(n.src) > 1:
                node = n.src[1]
                for _ in range(64):
                    marks = low.marks(note.get(node, ()))
                    if node.op in COMPUTING and marks:
                        return [self.origins.records[m] for m in marks]
                    if not node.src or node.op is Ops.INDEX:
                        break
                    node = node.src[0]
                return [self.origins.records[m] for m in low.marks(note.get(n, ()))]
        return []

    def _goes_back(self, node: UOp, tokens: Tokens, low: Lowered) -> bool:
        return node.op is Ops.REDUCE and any(
            self.origins.records[m].phase == "backward" for m in low.marks(tokens)
        )

    def _lines(self, records: list[OriginRecord]) -> Iterator[tuple[int, int]]:
        """The user's lines: a gradient's are the forward's, then the line that asked for it."""
        late: dict[tuple[str, int], None] = {}
        found: dict[tuple[str, int], None] = {}
        for r in records:
            base = r
            while base.phase == "backward" and base.forward >= 0:
                base = self.origins.records[base.forward]
            if (line := self.origins.line(base.id)) is not None:
                found[line] = None
            if base is not r and (line := self.origins.line(r.id)) is not None:
                late[line] = None
        if not found and not late and (line := self.origins.line(self.asked)) is not None:
            found[line] = None
        for path, number in {**found, **late}:
            yield self.recorder.file(path), number

    # **** buffers ****

    def _buffers(self, arg: UOp, scope: Scope, place: int) -> tuple[int, ...]:
        """The buffers behind an argument of a call: one, or a piece on each of several devices."""
        return tuple(self._buffer(node, own, place) for node, own in scope.buffers(arg))

    def _buffer(self, node: UOp, scope: Scope, place: int) -> int:
        key = (scope, node)
        if key in self.by_uop:
            number = self.by_uop[key]
            self._set(number, last=place)
            return number
        number = len(self.recorder.buffers)
        low, whole = scope.lowered, scope.outer is None
        name, kind, shape = "", "intermediate", shape_text(node._shape)
        if node.op is Ops.PARAM and whole:
            kind = "input"
            slot = node.arg.slot
            self.slots[number] = slot
            if 0 <= slot < len(self.argument_names):
                name = self.argument_names[slot]
        decision = low.template.stage_of.get(node)
        if decision is not None:
            d = low.template.decisions[decision]
            self.decision_of[number] = d, low
            if whole and d.value:
                shape = self._value_shape(d.value, node) or shape
        nbytes = node.max_numel() * node.dtype.itemsize if node._shape is not None else 0
        devices = to_tuple(node.device) if node.device is not None else ("",)
        buffer = model.Buffer(
            number,
            name,
            kind,
            ", ".join(devices),
            dtype_name(node.dtype),
            shape,
            nbytes,
            self.number,
            first=place,
            last=place,
        )
        self.by_uop[key] = number
        self.owner[number] = scope
        self.buffers[number] = self.recorder.buffers[number] = buffer
        return number

    def _set(self, number: int, **changes: Any) -> None:
        self.buffers[number] = replace(self.buffers[number], **changes)
        self.recorder.buffers[number] = self.buffers[number]

    def _value_shape(self, tokens: Tokens, node: UOp) -> str:
        for t in tokens:
            shape = self.nodes[t]._shape if t < len(self.nodes) else None
            if shape is not None:
                size = 1
                for s in shape:
                    size *= s if isinstance(s, int) else int(s.vmax)
                if size == node.max_numel():
                    return shape_text(shape)
        return ""

    def _place(self, number: int, arg: UOp) -> None:
        before = len(self.recorder.buffers)
        self.recorder.place_buffer(number, arg, self.arenas)
        for new in (number, *range(before, len(self.recorder.buffers))):
            self.buffers[new] = self.recorder.buffers[new]

    # **** the end ****

    def finish(self) -> None:
        written = {b: k for k in self.kernels for b in k.writes}
        for number in written:
            if self.buffers[number].kind == "input":
                self._set(number, kind="output")
        targets = [self._target(k) for k in self.kernels]
        plain = [
            names.kernel(
                records,
                self.origins,
                [self.buffers[b].name for b in kernel.writes],
                [self.buffers[b].name for b in kernel.reads],
                kernel.phase,
                kernel.kind,
                target,
                kernel.device,
            )
            for kernel, records, target in zip(self.kernels, self.records, targets, strict=True)
        ]
        outputs = [next((self.buffers[b].name for b in k.writes), "") for k in self.kernels]
        plain = names.tell_apart(plain, self.records, self.kernels, outputs, self.origins)
        formulas = Formulas(self)
        for i, (kernel, records) in enumerate(zip(self.kernels, self.records, strict=True)):
            name = formulas.name(kernel, records, self.roots[i], targets[i], plain[i])
            self.kernels[i] = self.recorder.kernels[kernel.id] = replace(kernel, name=name)
        for number, kernel in written.items():
            if not self.buffers[number].name:
                self._set(number, name=names.value(self.recorder.kernels[kernel.id].name))
            self._set(number, origins=kernel.origins[-1:])
        self.boundaries = Explainer(self).boundaries()
        inner = [b for b in self.buffers.values() if b.kind == "intermediate"]
        self.unplanned = sum(b.nbytes for b in inner)
        arenas = [b.nbytes for b in self.buffers.values() if b.kind == "arena"]
        self.planned = sum(arenas) if arenas else self.unplanned

    def _target(self, kernel: model.Kernel) -> str:
        """The parameter an optimizer finally changes with what a kernel computes."""
        if kernel.phase not in ("backward", "optimizer"):
            return ""
        frontier, seen = [kernel], {kernel.id}
        while frontier:
            k = frontier.pop(0)
            if k is not kernel or kernel.phase == "optimizer":
                for b in k.writes:
                    name = self.buffers[b].name
                    if name and not names.is_state(name):
                        return name
            for reader in self.kernels:
                if (
                    reader.id not in seen
                    and reader.phase == "optimizer"
                    and (reader.id > k.id and set(k.writes) & set(reader.reads))
                ):
                    seen.add(reader.id)
                    frontier.append(reader)
        return ""


def _devices(call: UOp | None) -> tuple[str, ...]:
    device = call.src[1].device if call is not None and len(call.src) > 1 else ""
    return to_tuple(device) if device is not None else ("",)


def _copy_name(call: UOp | None, nbytes: int) -> str:
    """A copy's name as DEBUG=2 prints it."""
    if call is None or len(call.src) < 3:
        return "copy"
    into, out = (", ".join(d[:7] for d in to_tuple(a.device)) for a in call.src[1:3])
    return f"copy {size_to_str(nbytes):>10}, {into:>7s} <- {out:7s}".strip()


def _phase(root: list[OriginRecord], records: list[OriginRecord]) -> str:
    phases = [r.phase for r in root]
    if "optimizer" in phases:
        return "optimizer"
    if "backward" in phases:
        return "backward"
    if all(r.op in names.FILLING or r.phase == "data" for r in records):
        return "data"
    return "forward"
