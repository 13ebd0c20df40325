"""From what was observed to records of `tgx.model`, written as soon as they are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinygrad.helpers import ansistrip, size_to_str, to_tuple
from tinygrad.uop.ops import Ops, UOp, sym_infer

from tgx import codec, model
from tgx.adapter import names
from tgx.adapter.boundaries import KEPT, OPAQUE, REASONS, Decision
from tgx.adapter.extract import text_of
from tgx.adapter.origins import Marks, OriginRecord, Origins, Place
from tgx.adapter.provenance import COMPUTING, SHARED, Tokens, data_nodes

if TYPE_CHECKING:
    from tgx.adapter.capture import Lowered, Session, Template, TemplateKernel

MOST_ARG = 120  # characters of a node's argument
MOST_FILE = 2 * 2**20  # bytes of a source file kept whole

DTYPES = {"float": "float32", "int": "int32", "half": "float16", "double": "float64",
          "long": "int64", "uint": "uint32", "uchar": "uint8", "char": "int8", "short": "int16",
          "ushort": "uint16", "ulong": "uint64", "__bf16": "bfloat16"}  # fmt: skip


def dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("dtypes.")
    return DTYPES.get(name, name)


def shape_text(shape: Any) -> str:
    """(64, 32) as ``64×32``; a scalar is ``scalar``."""
    if shape is None:
        return ""
    parts = [s.render() if isinstance(s, UOp) else str(s) for s in shape]
    return "×".join(parts) if parts else "scalar"


def argument_text(node: UOp) -> str:
    if node.arg is None or node.op in (Ops.SINK, Ops.CALL, Ops.FUNCTION):
        return ""
    if node.op is Ops.REDUCE:
        return f"{node.arg[0].name} {node.arg[1]}" if node.arg[1] else node.arg[0].name
    if node.op is Ops.BINARY:
        return ""
    if node.op is Ops.RANGE:
        return "_".join(str(a) for a in node.arg[:-1]) + f" {node.arg[-1].name.lower()}"
    if node.op in (Ops.PARAM, Ops.BUFFER) and hasattr(node.arg, "slot"):
        return node.arg.name or f"slot {node.arg.slot}"
    text = str(node.arg)
    return text if len(text) <= MOST_ARG else text[: MOST_ARG - 1] + "…"


class Recorder:
    """Gives ids, keeps what later records refer to, and writes."""

    def __init__(
        self, writer: codec.Writer, origins: Origins, environment: model.Environment, root: str
    ) -> None:
        self.writer, self.origins, self.environment = writer, origins, environment
        self.files: dict[str, int] = {}
        self.frames: dict[Place, int] = {}
        self.written_origins: set[int] = set()
        self.schedules: dict[int, model.Schedule] = {}
        self.kernels: dict[int, model.Kernel] = {}
        self.buffers: dict[int, model.Buffer] = {}
        self.programs: dict[bytes, int] = {}
        self.program_uops: dict[int, UOp] = {}
        self.program_records: dict[int, model.Program] = {}
        self.asts: dict[int, UOp] = {}
        self.realizes: dict[int, model.Realize] = {}
        self.arguments: dict[
            int, list[int]
        ] = {}  # kernel -> buffers, in the order of its arguments
        self.graphs = self.boundaries = self.pass_count = 0
        self.rules: dict[tuple[str, int], int] = {}
        self.costs: dict[int, tuple[int, int]] = {}
        self.changed: set[int] = set()
        # boundary -> what to reverse to prove it, see tgx.adapter.proof
        self.boundary_records: dict[int, model.Boundary] = {}
        self.proofs: dict[int, tuple[Template, str, int]] = {}
        self.waiting: list[tuple[str, Any]] = []
        self.fresh = False  # something in waiting is new, and should survive a kill
        self.root = root
        self.writer.write("environment", environment)

    def bundle(self, records: Iterable[tuple[str, Any]]) -> None:
        self.writer.bundle(records)

    # **** places ****

    def file(self, path: str) -> int:
        if path not in self.files:
            self.files[path] = len(self.files)
            user = self.origins.kind(path) == "user"
            self.waiting.append(("files", model.File(self.files[path], self.short(path), user)))
        return self.files[path]

    def short(self, path: str) -> str:
        """A path that says the same on every machine."""
        if path.startswith(self.origins.library):
            return "tinygrad/" + path[len(self.origins.library) :].replace(os.sep, "/")
        for base in (*self.origins.packages, *sys.path):
            base = os.path.abspath(base).rstrip(os.sep) + os.sep if base else ""
            if base and base in self.origins.packages and path.startswith(base):
                return path[len(base) :].replace(os.sep, "/")
        full = os.path.abspath(path)
        if self.root and full.startswith(self.root):
            return full[len(self.root) :].replace(os.sep, "/")
        return "/".join(full.split(os.sep)[-2:]) if os.sep in path else path

    def frame(self, place: Place) -> int:
        if place not in self.frames:
            self.frames[place] = len(self.frames)
            self.waiting.append(
                (
                    "frames",
                    model.Frame(
                        self.frames[place],
                        self.file(place.path),
                        place.line,
                        place.function,
                        place.column,
                        place.end_column,
                    ),
                )
            )
        return self.frames[place]

    def frame_of(self, origin: int) -> int:
        record = self.origins.records[origin]
        return self.frame(record.places[record.user]) if record.user >= 0 else -1

    def origin(self, number: int) -> int:
        """Writes an origin, once, with all it refers to."""
        if number not in self.written_origins:
            self.written_origins.add(number)
            r = self.origins.records[number]
            forward = self.origin(r.forward) if r.forward >= 0 else -1
            self.waiting.append(
                (
                    "origins",
                    model.Origin(
                        number,
                        r.op,
                        self.frame_of(number),
                        r.phase,
                        forward,
                        r.via,
                        tuple(self.frame(p) for p in r.places),
                        (r.label,) if r.label else (),
                    ),
                )
            )
        return number

    def flush(self) -> None:
        """Writes what other records already refer to."""
        self.fresh = False
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            self.writer.bundle(waiting)

    # **** graphs ****

    def graph(
        self,
        kind: str,
        name: str,
        nodes: Sequence[UOp],
        origins: Sequence[Marks] = (),
        labels: dict[UOp, str] | None = None,
        roots: Sequence[UOp] = (),
    ) -> int:
        place = {n: i for i, n in enumerate(nodes)}
        known = self.origins.records
        ops = [next((known[m].op for m in marks), "") for marks in origins]
        phases = [next((known[m].phase for m in marks), "") for marks in origins]
        number = self.graphs
        self.graphs += 1
        for m in {m for marks in origins for m in marks}:
            self.origin(m)
        self.waiting.append(
            (
                "graphs",
                model.Graph(
                    number,
                    kind,
                    name,
                    tuple(n.op.name for n in nodes),
                    tuple(dtype_name(n.dtype) for n in nodes),
                    tuple(_shape(n) for n in nodes) if kind == "lazy" else (),
                    tuple(argument_text(n) for n in nodes),
                    tuple(tuple(place[s] for s in n.src if s in place) for n in nodes),
                    tuple(origins),
                    (),
                    tuple(phases),
                    tuple(ops),
                    tuple((labels or {}).get(n, "") for n in nodes) if labels else (),
                    tuple(place[r] for r in roots),
                ),
            )
        )
        return number

    # **** schedules ****

    def schedule(
        self,
        lowered: list[Lowered],
        kernels: list[tuple[TemplateKernel, Template]],
        calls: Sequence[UOp],
        asked: int,
        arguments: list[str],
        jit: str,
    ) -> int:
        number = len(self.schedules)
        outer = lowered[-1]
        assert outer.function is not None
        nodes = list(outer.function.toposort())
        labels = {
            n: arguments[n.arg.slot]
            for n in nodes
            if n.op is Ops.PARAM and 0 <= n.arg.slot < len(arguments) and arguments[n.arg.slot]
        }
        for m in {m for marks in outer.origins for m in marks}:
            self.origin(m)
        self.origin(asked)
        lazy = self.graph("lazy", f"lazy {number}", nodes, outer.origins, labels, (nodes[-1],))
        frame = self.frame_of(asked)
        schedule = model.Schedule(
            number, (), frame, lazy, name="", jit=jit, key=outer.template.key.hex()[:16]
        )
        by_template = {id(low.template): low for low in lowered}
        build = _Build(self, number, outer, nodes, arguments, asked, lazy)
        for place, (tk, template) in enumerate(kernels):
            call = calls[place] if len(calls) == len(kernels) else None
            build.kernel(place, tk, template, by_template.get(id(template), outer), call)
        build.finish()
        ids = tuple(k.id for k in build.kernels)
        phase = _commonest([k.phase for k in build.kernels])
        schedule = replace(
            schedule,
            kernels=ids,
            phase=phase,
            name=self._schedule_name(asked, jit, build),
            planned_bytes=build.planned,
            unplanned_bytes=build.unplanned,
        )
        self.schedules[number] = schedule
        self.flush()
        self.boundary_records.update((b.id, b) for b in build.boundaries)
        self.writer.bundle(
            [
                ("schedules", schedule),
                *(("buffers", b) for b in build.buffers.values()),
                *(("kernels", k) for k in build.kernels),
                *(("boundaries", b) for b in build.boundaries),
            ]
        )
        return number

    def _schedule_name(self, asked: int, jit: str, build: _Build) -> str:
        where = self.place_text(asked)
        what = f"{jit}: " if jit else ""
        return f"{what}{where}" if where else f"{what}schedule {build.number}"

    def schedule_name(self, number: int) -> str:
        return self.schedules[number].name

    def place_text(self, origin: int) -> str:
        """``mlp.py:14``, "" where no line of the user's is known."""
        found = self.origins.line(origin)
        return f"{self.short(found[0])}:{found[1]}" if found else ""

    def kernels_of(self, schedule: int) -> list[int]:
        return list(self.schedules[schedule].kernels)

    def hit(self, schedule: int) -> None:
        """The same graph from the same lines again: nothing new to record."""

    def cache_hit(self, schedule: int) -> None:
        s = self.schedules[schedule]
        self.schedules[schedule] = replace(s, cache_hits=s.cache_hits + 1)
        self.changed.add(schedule)

    def planned(self, kernels: Sequence[int], calls: Sequence[UOp]) -> None:
        """Where the memory planner of a jitted function put the buffers."""
        arenas: dict[UOp, int] = {}
        for kernel, call in zip(kernels, calls, strict=True):
            if kernel < 0:
                continue
            actual = [a for a in call.src[1:] if not a.is_bound_var]
            for buffer, arg in zip(self.arguments[kernel], actual, strict=False):
                self.place_buffer(buffer, arg, arenas)
        together = sum(self.buffers[a].nbytes for a in arenas.values())
        for schedule in {self.kernels[k].schedule for k in kernels if k >= 0}:
            s = self.schedules[schedule]
            self.schedules[schedule] = replace(s, planned_bytes=together or s.planned_bytes)
            self.changed.add(schedule)

    def place_buffer(self, buffer: int, arg: UOp, arenas: dict[UOp, int]) -> None:
        view = arg.contiguous_view() if arg.op in (Ops.SHRINK, Ops.BITCAST) else None
        if view is None or buffer < 0 or self.buffers[buffer].kind != "intermediate":
            return
        base, offset = view
        old = self.buffers[buffer]
        if base not in arenas:
            arenas[base] = len(self.buffers)
            arena = model.Buffer(
                arenas[base],
                "arena",
                "arena",
                old.device,
                "uint8",
                shape_text((base.max_numel(),)),
                base.max_numel() * base.dtype.itemsize,
            )
            self.buffers[arena.id] = arena
            self.waiting.append(("buffers", arena))
        self.buffers[buffer] = replace(old, base=arenas[base], offset=offset * base.dtype.itemsize)
        self.waiting.append(("buffers", self.buffers[buffer]))

    # **** executions ****

    def realize(self, schedule: int, started: float, steps: dict[int, int]) -> int:
        number = len(self.realizes)
        step = steps.get(schedule, 0)
        steps[schedule] = step + 1
        self.realizes[number] = model.Realize(number, schedule, started, started, step)
        return number

    def realized(self, realize: int, ended: float) -> None:
        self.realizes[realize] = replace(self.realizes[realize], end_us=ended)
        self.waiting.append(("realizes", self.realizes[realize]))
        if len(self.waiting) > 500:
            self.flush()

    def owns(self, realize: int, kernel: int) -> bool:
        return self.kernels[kernel].schedule == self.realizes[realize].schedule

    def program(self, kernel: int, prg: UOp, var_vals: dict[str, int]) -> None:
        """The compiled program a kernel runs, the first time it does."""
        known = self.kernels[kernel]
        if known.program >= 0:
            return
        number = self.programs.get(prg.key)
        sink, linear = prg.src[0], prg.src[1]
        if number is None:
            number = self.programs[prg.key] = len(self.programs)
            self.program_uops[number] = prg
            uops = self.graph("uops", ansistrip(prg.arg.name), [*closed(linear.src)])
            source = prg.src[2].arg if len(prg.src) > 2 else ""
            estimates = getattr(sink.arg, "estimates", None)

            def number_of(x: Any) -> int:
                return int(sym_infer(x, var_vals)) if x is not None else -1

            code = (model.Code("source", source, _language(source)),) if source else ()
            if kernel in self.asts and (text := text_of(self.asts[kernel])):
                code = (*code, model.Code("ast", text, "python"))
            path, path_reason = _path(source)
            self.program_records[number] = model.Program(
                number,
                ansistrip(prg.arg.name),
                known.device,
                prg.key.hex()[:16],
                uops=uops,
                global_size=tuple(str(g) for g in prg.arg.global_size),
                local_size=tuple(str(g) for g in prg.arg.local_size or ()),
                code=code,
                flops=number_of(getattr(estimates, "ops", None)),
                bytes=number_of(getattr(estimates, "mem", None)),
                lds_bytes=number_of(getattr(estimates, "lds", None)),
                path=path,
                path_reason=path_reason,
            )
            self.waiting.append(("programs", self.program_records[number]))
            self.costs[number] = (
                number_of(getattr(estimates, "ops", None)),
                number_of(getattr(estimates, "mem", None)),
            )
        flops, nbytes = self.costs[number]
        self.kernels[kernel] = replace(
            known, program=number, flops=flops, bytes=nbytes, tinygrad_name=ansistrip(prg.arg.name)
        )
        self.waiting.append(("kernels", self.kernels[kernel]))
        self.fresh = True

    # **** the end ****

    def finish(self, session: Session, ended: str, error: str, exit_code: int) -> None:
        from tgx.adapter import aftermath

        missing = list(session.failed)
        if session.untimed:
            missing.append(
                f"{session.untimed} later executions of jitted functions ran as one "
                f"batch each and were not timed kernel by kernel"
            )
        if session.level == "kernels":
            missing.append("rewrites were not recorded: --level full")
        missing += aftermath.complete(self, session)
        if session.prove:
            missing += self._proved(session)
        for number in sorted(self.changed):
            self.waiting.append(("schedules", self.schedules[number]))
        self.waiting += [("timings", t) for t in session.timings()]
        self.waiting += [("memory", m) for m in session.memory]
        self.waiting += [("events", e) for e in session.events]
        self.waiting += [("files", f) for f in self._file_texts()]
        self.flush()
        self.environment = replace(
            self.environment, ended=ended, error=error, exit_code=exit_code, missing=tuple(missing)
        )
        self.writer.write("environment", self.environment)
        self.writer.close()

    def _proved(self, session: Session) -> list[str]:
        """Writes into every boundary how many kernels there are without it."""
        from tgx.adapter.proof import prove

        failed = 0
        for found in prove(session):
            failed += not found.holds
            old = self.boundary_records[found.boundary]
            self.waiting.append(("boundaries", replace(old, kernels_without=found.without)))
        return [f"{failed} boundaries could not be proved"] if failed else []

    def _file_texts(self) -> Iterator[model.File]:
        """The user's files whole, of others the lines something points at."""
        needed: dict[str, set[int]] = {}
        for place in self.frames:
            needed.setdefault(place.path, set()).add(place.line)
        for path, number in self.files.items():
            user = self.origins.kind(path) == "user"
            lines = _read_lines(path)
            if not user:
                keep = needed.get(path, set())
                lines = tuple((n, t) for n, t in lines if n in keep)
            yield model.File(number, self.short(path), user, lines)


class _Build:
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
        self.buffers: dict[int, model.Buffer] = {}
        self.by_uop: dict[tuple[int, UOp], int] = {}
        self.decision_of: dict[int, tuple[Decision, Lowered]] = {}
        self.slots: dict[int, int] = {}  # buffer -> slot of the outer graph's argument
        self.boundaries: list[model.Boundary] = []
        self.arenas: dict[UOp, int] = {}
        self.planned = self.unplanned = -1
        self.stores_seen: dict[int, int] = {}

    # kernels
    def kernel(
        self, place: int, tk: TemplateKernel, template: Template, low: Lowered, call: UOp | None
    ) -> None:
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
        buffers = [self._buffer(a, template, low, place) for a in args]
        for b, a in zip(buffers, actual, strict=False):
            self._place(b, a)
        kind = "kernel"
        if call is not None and call.src[0].op is Ops.COPY:
            kind = "copy"
        elif call is not None and call.src[0].op is Ops.CUSTOM_FUNCTION:
            kind = "custom"
        root = self._root_records(tk, ast_nodes, low) or records
        phase = "data" if kind == "copy" else _phase(root, records)
        if any(self._goes_back(tk, n, t, low) for n, t in zip(ast_nodes, tk.notes, strict=False)):
            phase = "backward"  # a gradient is its main work, whatever is done to it afterwards
        device = call.src[1].device if call is not None and len(call.src) > 1 else ""
        devices = to_tuple(device) if device is not None else ("",)
        writes = [buffers[i] for i in tk.writes if i < len(buffers)]
        reads = [buffers[i] for i in tk.reads if i < len(buffers)]
        self.recorder.arguments[number] = buffers
        ast = self.recorder.graph(
            "ast",
            f"kernel {number}",
            ast_nodes,
            [self._expand(t, low) for t in tk.notes],
            roots=(ast_nodes[-1],),
        )
        kernel = model.Kernel(
            number,
            "",
            "",
            ", ".join(devices),
            phase,
            kind,
            self.number,
            -1,
            tuple(dict.fromkeys(r.op for r in records)),
            tuple(self._lines(records)),
            tuple(
                dict.fromkeys(
                    self.origins.records[r.forward].op for r in records if r.phase == "backward"
                )
            ),
            tuple(self.recorder.origin(i) for i in ids),
            tuple(dict.fromkeys(reads)),
            tuple(dict.fromkeys(writes)),
            ast,
        )
        if kind == "copy":
            kernel = replace(
                kernel,
                bytes=2 * self.buffers[writes[0]].nbytes,
                flops=0,
                tinygrad_name=_copy_name(call, self.buffers[writes[0]].nbytes),
            )
        self.kernels.append(kernel)
        self.records.append(records)
        self.recorder.kernels[number] = kernel
        self.recorder.asts[number] = tk.ast

    def _expand(self, tokens: Tokens, low: Lowered) -> Marks:
        out: dict[int, None] = {}
        for t in tokens:
            for m in low.origins[t] if t < len(low.origins) else ():
                out[m] = None
        return tuple(out)[:16]

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
                    marks.extend(self._expand(tokens, low))
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
                    marks = self._expand(note.get(node, ()), low)
                    if node.op in COMPUTING and marks:
                        return [self.origins.records[m] for m in marks]
                    if not node.src or node.op is Ops.INDEX:
                        break
                    node = node.src[0]
                return [self.origins.records[m] for m in self._expand(note.get(n, ()), low)]
        return []

    def _goes_back(self, tk: TemplateKernel, node: UOp, tokens: Tokens, low: Lowered) -> bool:
        return node.op is Ops.REDUCE and any(
            self.origins.records[m].phase == "backward" for m in self._expand(tokens, low)
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

    # buffers
    def _buffer(self, arg: UOp, template: Template, low: Lowered, place: int) -> int:
        node = arg
        while node.src and node.op not in (
            Ops.AFTER,
            Ops.BUFFER,
            Ops.PARAM,
            Ops.MSELECT,
            Ops.MSTACK,
        ):
            node = node.src[0]
        node = node.buf_uop if node.op not in (Ops.MSELECT, Ops.MSTACK) else node
        key = (id(template), node)
        if key in self.by_uop:
            number = self.by_uop[key]
            self._set(number, last=place)
            return number
        number = len(self.recorder.buffers)
        name, kind, shape = "", "intermediate", shape_text(node._shape)
        if node.op is Ops.PARAM and low is self.outer:
            kind = "input"
            slot = node.arg.slot
            self.slots[number] = slot
            if 0 <= slot < len(self.argument_names):
                name = self.argument_names[slot]
        decision = template.stage_of.get(node)
        if decision is not None:
            d = template.decisions[decision]
            self.decision_of[number] = d, low
            if low is self.outer and d.value:
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

    # the end
    def finish(self) -> None:
        written = {b: k for k in self.kernels for b in k.writes}
        for number in written:
            if self.buffers[number].kind == "input":
                self._set(number, kind="output")
        targets = [self._target(k) for k in self.kernels]
        for i, (kernel, records) in enumerate(zip(self.kernels, self.records, strict=True)):
            name = names.kernel(
                records,
                self.origins,
                [self.buffers[b].name for b in kernel.writes],
                [self.buffers[b].name for b in kernel.reads],
                kernel.phase,
                kernel.kind,
                targets[i],
                kernel.device,
            )
            self.kernels[i] = self.recorder.kernels[kernel.id] = replace(kernel, name=name)
        for number, kernel in written.items():
            if not self.buffers[number].name:
                self._set(number, name=self.recorder.kernels[kernel.id].name)
            self._set(number, origins=kernel.origins[-1:])
        self._bounds()
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

    def _bounds(self) -> None:
        """One boundary for every time a kernel stores something."""
        for place, kernel in enumerate(self.kernels):
            for number in kernel.writes:
                readers = []
                for later in self.kernels[place + 1 :]:
                    if number in later.reads:
                        readers.append(later.id)
                    if number in later.writes:
                        break
                if number in self.decision_of:
                    decision, low = self.decision_of[number]
                    self._boundary(number, kernel, tuple(readers), decision, low)
                else:
                    self._output(number, kernel, tuple(readers))

    def _boundary(
        self,
        number: int,
        kernel: model.Kernel,
        readers: tuple[int, ...],
        decision: Decision,
        low: Lowered,
    ) -> None:
        reason = decision.reason
        value = self._expand(decision.value, low)
        asked = self._asked(value)
        method = self.origins.records[value[0]].op if value else ""
        if reason == "contiguous" and value and not self._users_own(value[0]):
            reason = "library-contiguous"
        words = {
            "value": self._describe(value, decision.reason),
            "readers": self._readers(readers, [self._expand(r, low) for r in decision.readers]),
            "via": self._line_of(self._expand(decision.via, low)),
            "count": str(max(2, len(readers), len(decision.readers))),
            "asked": asked, "method": method, "target": self.buffers[number].name,
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
            decision.value if low is self.outer else (),
        )
        if reason not in OPAQUE:
            self.recorder.proofs[self.boundaries[-1].id] = (
                low.template,
                "stage",
                low.template.decisions.index(decision),
            )

    def _output(self, number: int, kernel: model.Kernel, readers: tuple[int, ...]) -> None:
        slot = self.slots.get(number, -1)
        reason, store = self._store_of(slot)
        if kernel.kind == "custom":
            reason = "custom-output"
        elif kernel.kind == "copy" and reason != "assign":
            reason = "copy"
        value = self.outer.origins[store] if 0 <= store < len(self.outer.origins) else ()
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
            else (self.recorder.place_text(self.asked) or "the end")
        )
        words = {"value": self._describe(kernel.origins[-1:], reason), "asked": asked,
                 "target": self.buffers[number].name or "a tensor", "readers": "", "via": "",
                 "count": "", "method": self.origins.records[value[0]].op if value else "",
                 "device": kernel.device}  # fmt: skip
        rules = {
            "realize": "tensor.py realize",
            "assign": "tensor.py assign",
            "contiguous": "tensor.py replace_contig_with_store_after",
            "library-contiguous": "tensor.py replace_contig_with_store_after",
            "copy": "schedule/rangeify.py convert_copy_to_store",
        }
        self._add(
            reason,
            kernel,
            readers,
            number,
            rules.get(reason, ""),
            words,
            "",
            "",
            (store,) if store >= 0 else (),
        )
        if readers and store >= 0 and reason not in OPAQUE:
            self.recorder.proofs[self.boundaries[-1].id] = (self.outer.template, "output", store)

    def _store_of(self, slot: int) -> tuple[str, int]:
        """(reason, node) of the STORE that fills an argument of the graph: the first time it is
        asked for, the first of them, and so on."""
        stores = [
            i
            for i, n in enumerate(self.nodes)
            if n.op is Ops.STORE
            and (base := n.src[0].buf_uop).op is Ops.PARAM
            and base.arg.slot == slot
        ]
        nth = self.stores_seen.get(slot, 0)
        self.stores_seen[slot] = nth + 1
        if not stores:
            return "realize", -1
        store = stores[min(nth, len(stores) - 1)]
        return self.outer.outputs.get(store, "assign"), store

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
        number = self.recorder.boundaries
        self.recorder.boundaries += 1
        self.boundaries.append(
            model.Boundary(
                number,
                reason,
                f"{because} {kept}".strip(),
                kernel.id,
                readers,
                buffer,
                self.number,
                rule,
                row.brief.format_map(words),
                advice,
                self.lazy,
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
            self.recorder.place_text(self.asked) or "the end of the program"
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


# **** helpers ****


def _copy_name(call: UOp | None, nbytes: int) -> str:
    """A copy's name as DEBUG=2 prints it."""
    if call is None or len(call.src) < 3:
        return "copy"
    into, out = (", ".join(d[:7] for d in to_tuple(a.device)) for a in call.src[1:3])
    return f"copy {size_to_str(nbytes):>10}, {into:>7s} <- {out:7s}".strip()


def _shape(node: UOp) -> str:
    try:
        return shape_text(node._shape)
    except Exception:  # late nodes have no shape, and some raise when asked
        return ""


def closed(nodes: Sequence[UOp]) -> Iterator[UOp]:
    """A program's nodes with any source that the list itself leaves out (shapes) before its
    user."""
    seen: set[UOp] = set()
    for n in nodes:
        for s in n.toposort(gate=lambda x: x not in seen):
            if s not in seen:
                seen.add(s)
                yield s


def _phase(root: list[OriginRecord], records: list[OriginRecord]) -> str:
    phases = [r.phase for r in root]
    if "optimizer" in phases:
        return "optimizer"
    if "backward" in phases:
        return "backward"
    if all(r.op in names.FILLING or r.phase == "data" for r in records):
        return "data"
    return "forward"


def _commonest(phases: list[str]) -> str:
    return max(model.PHASES, key=phases.count) if phases else "forward"


def _language(source: str) -> str:
    if source.startswith(("; ", "define", "target", "source_filename")) or "\ndefine " in source:
        return "llvm"
    if ".visible .entry" in source or source.lstrip().startswith(".version"):
        return "ptx"
    return "c"


def _path(source: str) -> tuple[str, str]:
    """TGX's own record of how it made a kernel, and why so; nothing on other devices."""
    from tgx.devices.record import record_of

    record = record_of(source)
    return ("", "") if record is None else (record.path, record.tile or record.reason)


def program_folder(program: str) -> str:
    """The folder paths are shown relative to."""
    if not program or program.startswith("-"):
        return os.getcwd() + os.sep
    return os.path.dirname(os.path.abspath(program)) + os.sep


def _read_lines(path: str) -> tuple[tuple[int, str], ...]:
    import linecache

    try:
        if os.path.exists(path) and os.path.getsize(path) > MOST_FILE:
            return ()
    except OSError:
        return ()
    return tuple((i, line.rstrip("\n")) for i, line in enumerate(linecache.getlines(path), 1))
