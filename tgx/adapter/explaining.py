"""Why each buffer of a schedule is there: the scheduler's decisions in words, one `Boundary` for
every time a kernel stores something.

Which decision it was is `boundaries`' business, and the words are its table REASONS; here they are
filled in with what the user wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinygrad.uop.ops import Ops

from tgx import model
from tgx.adapter import names
from tgx.adapter.boundaries import KEPT, OPAQUE, REASONS, Decision
from tgx.adapter.origins import Marks
from tgx.adapter.provenance import Tokens
from tgx.adapter.templates import Lowered

if TYPE_CHECKING:
    from tgx.adapter.building import Builder

RULES = {
    "custom-output": "tensor.py custom_kernel",
    "realize": "tensor.py realize",
    "assign": "tensor.py assign",
    "contiguous": "tensor.py replace_contig_with_store_after",
    "library-contiguous": "tensor.py replace_contig_with_store_after",
    "copy": "schedule/rangeify.py convert_copy_to_store",
    "allreduce": "schedule/allreduce.py handle_allreduce",
    "precompiled": "tensor.py transform_precompiled_call",
}
"""Where tinygrad decides on what is stored for the program and not for the scheduler."""


class Explainer:
    """The boundaries of the schedule that a Builder has put together."""

    def __init__(self, built: Builder) -> None:
        self.built, self.recorder, self.origins = built, built.recorder, built.origins
        self.found: list[model.Boundary] = []
        self.stores_seen: dict[int, int] = {}

    def boundaries(self) -> list[model.Boundary]:
        """One for every time a kernel stores something."""
        for place, kernel in enumerate(self.built.kernels):
            for number in kernel.writes:
                readers = []
                for later in self.built.kernels[place + 1 :]:
                    if number in later.reads:
                        readers.append(later.id)
                    if number in later.writes:
                        break
                if number in self.built.decision_of:
                    decision, low = self.built.decision_of[number]
                    self._boundary(number, kernel, tuple(readers), decision, low)
                else:
                    self._output(number, kernel, tuple(readers))
        return self.found

    def _boundary(
        self,
        number: int,
        kernel: model.Kernel,
        readers: tuple[int, ...],
        decision: Decision,
        low: Lowered,
    ) -> None:
        reason = decision.reason
        value = low.marks(decision.value)
        if not value and low.function is None:  # a function of the scheduler's: one node's work
            value = low.origins[-1]
        asked = self._asked(value)
        method = self.origins.records[value[0]].op if value else ""
        if reason == "contiguous" and self._crosses(kernel.id, readers) == "allreduce":
            reason = "allreduce"
        elif reason == "contiguous" and value and not self._users_own(value[0]):
            reason = "library-contiguous"
        words = {
            "value": self._describe(value, decision.reason),
            "readers": self._readers(readers, [low.marks(r) for r in decision.readers]),
            "via": self._line_of(low.marks(decision.via)),
            "count": str(max(2, len(readers), len(decision.readers))),
            "asked": asked, "method": method, "target": self.built.buffers[number].name,
            "device": kernel.device,
        }  # fmt: skip
        kept, fuse = KEPT.get(decision.kept, ("", ""))
        rule = decision.rule
        if decision.kept_rule:
            rule = f"{rule}; kept by {decision.kept_rule}"
        self._add(
            reason,
            kernel,
            readers,
            number,
            rule,
            words,
            kept,
            fuse,
            decision.value if low is self.built.outer else (),
        )
        if reason not in OPAQUE:
            self.recorder.proofs[self.found[-1].id] = (
                low.template,
                "stage",
                low.template.decisions.index(decision),
            )

    def _crosses(self, kernel: int, readers: tuple[int, ...]) -> str:
        """The function that a value is an argument of, by its name; "" for none."""
        scopes = self.built.scopes
        return next((scopes[r].name for r in readers if scopes[r] is not scopes[kernel]), "")

    def _output(self, number: int, kernel: model.Kernel, readers: tuple[int, ...]) -> None:
        """An output of the whole graph, or of a function it calls."""
        slot = self.built.slots.get(number, -1)
        reason, store = self._store_of(slot)
        function = self.built.borders.get(number)
        if function is not None and slot < 0:
            reason = "allreduce" if function == "allreduce" else "precompiled"
        elif reason in ("contiguous", "realize") and self._crosses(kernel.id, readers):
            reason = "precompiled"
        elif kernel.kind == "custom":
            reason = "custom-output"
        elif kernel.kind == "copy" and reason != "assign":
            reason = "copy"
        origins = self.built.outer.origins
        value = origins[store] if 0 <= store < len(origins) else ()
        if reason == "contiguous":
            stored = [m for m in value if "contiguous" in self.origins.records[m].via]
            own = next((m for m in stored if self._users_own(m)), None)
            if own is not None:
                value = (own,)
            elif stored and self.origins.records[stored[0]].phase != "data":
                reason, value = "library-contiguous", (stored[0],)
            else:
                reason = "realize"
        asked = (
            self._asked(value)
            if "contiguous" in reason
            else (self.recorder.place_text(self.built.asked) or "the end")
        )
        words = {"value": self._describe(kernel.origins[-1:], reason), "asked": asked,
                 "target": self.built.buffers[number].name or "a tensor", "readers": "", "via": "",
                 "count": "", "method": self.origins.records[value[0]].op if value else "",
                 "device": kernel.device}  # fmt: skip
        self._add(
            reason,
            kernel,
            readers,
            number,
            RULES.get(reason, ""),
            words,
            "",
            "",
            (store,) if store >= 0 else (),
        )
        if readers and store >= 0 and reason not in OPAQUE:
            self.recorder.proofs[self.found[-1].id] = (self.built.outer.template, "output", store)

    def _store_of(self, slot: int) -> tuple[str, int]:
        """(reason, node) of what fills an argument of the graph, a STORE or a custom kernel's CALL:
        the first time it is asked for, the first of them, and so on."""
        fills: list[tuple[str, int]] = []
        place = {n: i for i, n in enumerate(self.built.nodes)}
        for n in self.built.nodes:
            base = n.src[0].buf_uop if n.op is Ops.AFTER else None
            if base is None or base.op is not Ops.PARAM or base.arg.slot != slot:
                continue
            for s in n.src[1:]:
                if s.op is Ops.STORE:
                    fills.append((self.built.outer.outputs.get(place[s], "assign"), place[s]))
                elif s.op is Ops.CALL:
                    inner = s.src[0].op is Ops.LINEAR
                    fills.append(("precompiled" if inner else "custom-output", -1))
        nth = self.stores_seen.get(slot, 0)
        self.stores_seen[slot] = nth + 1
        return fills[min(nth, len(fills) - 1)] if fills else ("realize", -1)

    def _add(
        self,
        reason: str,
        kernel: model.Kernel,
        readers: tuple[int, ...],
        buffer: int,
        rule: str,
        words: dict[str, str],
        kept: str,
        fuse: str,
        nodes: Tokens,
    ) -> None:
        words["Value"] = words["value"][:1].upper() + words["value"][1:]
        row = REASONS[reason]
        because = row.because.format_map(words)
        advice = " ".join(x for x in (row.fuse_by.format_map(words), fuse) if x)
        if reason == "assign" and not readers:
            advice = ""  # it is what the program is for
        number = self.recorder.boundaries
        self.recorder.boundaries += 1
        self.found.append(
            model.Boundary(
                number,
                reason,
                f"{because} {kept}".strip(),
                kernel.id,
                readers,
                buffer,
                self.built.number,
                rule,
                row.brief.format_map(words),
                advice,
                self.built.lazy,
                tuple(nodes),
            )
        )

    # words
    def _users_own(self, origin: int) -> bool:
        """Whether the user himself wrote the call, rather than a method of the library."""
        record = self.origins.records[origin]
        return record.op == "contiguous" and record.phase == "forward"

    def _asked(self, marks: Marks) -> str:
        return next((t for m in marks if (t := self.recorder.place_text(m))), "") or (
            self.recorder.place_text(self.built.asked) or "the end of the program"
        )

    def _one(self, mark: int) -> str:
        record = self.origins.records[mark]
        if record.phase == "backward":
            base = self.origins.records[record.forward]
            place = self.recorder.place_text(base.id)
            what = f"the gradient of {names.operation(base)}"
        else:
            what, place = names.operation(record), self.recorder.place_text(mark)
        return f"{what} ({place})" if place else what

    def _describe(self, marks: Marks, reason: str) -> str:
        marks = tuple(m for m in marks if m != self.origins.unknown)
        if not marks:
            return "this value"
        text = self._one(marks[0])
        return text if text.startswith("the ") else f"the result of {text}"

    def _readers(self, kernels: tuple[int, ...], groups: list[Marks]) -> str:
        """Who reads a value: the operations, or the kernels where they say more."""
        parts = list(dict.fromkeys(self._one(g[0]) for g in groups if g))
        if len(groups) > 1 and len(parts) < 2:
            own = {self.recorder.kernels[k].id: self.recorder.kernels[k].name for k in kernels}
            named = list(dict.fromkeys(own.values()))
            parts = named if len(named) > 1 else [f"{p} in several ways" for p in parts]
        if not parts:
            return "its readers"
        if len(parts) == 1:
            return parts[0]
        return ", ".join(parts[:-1][:3]) + (" …" if len(parts) > 4 else "") + f" and {parts[-1]}"

    def _line_of(self, marks: Marks) -> str:
        return next(
            (f"in {t}" for m in marks if (t := self.recorder.place_text(self._base(m)))),
            "by broadcasting",
        )

    def _base(self, mark: int) -> int:
        record = self.origins.records[mark]
        return record.forward if record.phase == "backward" and record.forward >= 0 else mark


