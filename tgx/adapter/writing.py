"""From what was observed to records of `tgx.model`, written as soon as they are known."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinygrad.helpers import ansistrip
from tinygrad.uop.ops import Ops, UOp, sym_infer

from tgx import codec, model
from tgx.adapter import steps
from tgx.adapter.building import Builder
from tgx.adapter.compiling import Sight
from tgx.adapter.extract import text_of
from tgx.adapter.origins import Marks, Origins, Place
from tgx.adapter.templates import Lowered, Scope, Template, TemplateKernel
from tgx.adapter.wording import argument_text, closed, dtype_name, language, shape_of, shape_text

if TYPE_CHECKING:
    from tgx.adapter.capture import Session

MOST_FILE = 2 * 2**20  # bytes of a source file kept whole


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
        self.seen: set[int] = set()  # programs whose compiling was observed
        self.optimized: dict[str, bytes] = {}  # TGX's IR -> the same, optimised, as bitcode
        self.sights: dict[UOp, Sight] = {}  # by the program's LINEAR, until it runs
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
        latest: dict[tuple[str, int], Any] = {}  # of what changed while it waited, the last
        for table, record in self.waiting:
            latest[table, getattr(record, "id", len(latest))] = record
        self.waiting = []
        self.writer.bundle((table, record) for (table, _), record in latest.items())

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
        ops = [known[marks[0]].op if marks else "" for marks in origins]
        phases = [known[marks[0]].phase if marks else "" for marks in origins]
        number = self.graphs
        self.graphs += 1
        for m in set().union(*origins):
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
                    tuple(shape_of(n) for n in nodes) if kind == "lazy" else (),
                    tuple(argument_text(n) for n in nodes),
                    tuple([tuple([place[s] for s in n.src if s in place]) for n in nodes]),
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
        outer: Lowered,
        kernels: list[tuple[TemplateKernel, Scope]],
        calls: Sequence[UOp],
        asked: int,
        arguments: list[str],
        jit: str,
    ) -> int:
        number = len(self.schedules)
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
        build = Builder(self, number, outer, nodes, arguments, asked, lazy)
        before = len(self.waiting)
        try:
            for place, (tk, scope) in enumerate(kernels):
                build.kernel(place, tk, scope, calls[place] if len(calls) == len(kernels) else None)
            build.finish()
        except Exception:  # what speaks of a schedule that is not recorded must not stay
            self.waiting[before:] = [r for r in self.waiting[before:] if r[0] != "buffers"]
            raise
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

    def _schedule_name(self, asked: int, jit: str, build: Builder) -> str:
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
        if buffer < 0 or self.buffers[buffer].kind != "intermediate":
            return
        # what tinygrad's memory planner writes: bytes of an arena, as another type
        place = arg.src[0] if arg.op is Ops.BITCAST else arg
        if place.op is not Ops.SHRINK or place.src[0].op is not Ops.BUFFER:
            return
        base, ((offset, _),) = place.src[0], place.marg
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
        number = self.programs.get(key := prg.key)
        if number is None:
            number = self.programs[key] = len(self.programs)
            prg = whole(prg)
            sink, linear = prg.src[0], prg.src[1]
            self.program_uops[number] = prg
            uops = self.graph("uops", ansistrip(prg.arg.name), [*closed(linear.src)])
            source = prg.src[2].arg if len(prg.src) > 2 else ""
            estimates = getattr(sink.arg, "estimates", None)

            def number_of(x: Any) -> int:
                return int(sym_infer(x, var_vals)) if x is not None else -1

            code = (model.Code("source", source, language(source)),) if source else ()
            if kernel in self.asts and (text := text_of(self.asts[kernel])):
                code = (*code, model.Code("ast", text, "python"))
            path, path_reason = _path(source)
            record = model.Program(
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
            self.waiting.append(("programs", record))
            self.program_records[number] = record
            if (sight := self.sights.pop(prg.src[1], None)) is not None:
                self.compiled(number, sight.fragment(prg))
        record = self.program_records[number]
        self.kernels[kernel] = replace(
            known,
            program=number,
            flops=record.flops,
            bytes=record.bytes,
            tinygrad_name=record.name,
        )
        self.waiting.append(("kernels", self.kernels[kernel]))
        self.fresh = True

    def compiled(self, number: int, fragment: model.Trace) -> None:
        """What was seen of a program while it was compiled."""
        seen = fragment.programs[0]
        self.program_records[number] = replace(
            self.program_records[number],
            opts=seen.opts,
            loops=seen.loops,
            sources=seen.sources,
            compile_us=seen.compile_us,
        )
        self.waiting.append(("programs", self.program_records[number]))
        if fragment.passes:
            self.flush()
            self.bundle(steps.joined(self, fragment, program=number))
        self.seen.add(number)

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
        if session.ledger.of:
            missing.append("times are those of counted kernels (TGX_COUNT=1), which are slower")
        if session.prove:
            missing += self._proved(session)
        for number in sorted(self.changed):
            self.waiting.append(("schedules", self.schedules[number]))
        self.waiting += [("timings", t) for t in session.timings()]
        self.waiting += session.ledger.records(self.kernels, self.arguments)
        self.waiting += [("memory", m) for m in session.memory]
        self.waiting += [("events", e) for e in session.events]
        self.waiting += [("files", f) for f in self._file_texts()]
        self.flush()
        self.environment = replace(
            self.environment, ended=ended, error=error, exit_code=exit_code, missing=tuple(missing),
            caches=session.ledger.caches(),
        )  # fmt: skip
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


# **** helpers ****


def _commonest(phases: list[str]) -> str:
    return max(model.PHASES, key=phases.count) if phases else "forward"


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


def whole(prg: UOp) -> UOp:
    """A program that TGX found in its cache on disk lacks its graphs, which are kept apart."""
    cache = sys.modules.get("tgx.devices.cache")
    found: UOp = cache.whole(prg) if cache is not None else prg
    return found
