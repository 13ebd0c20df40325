"""Recorded walks become records of the model: their values, checks, operations and kernels.

Everything here happens after the program: in NumPy, from what `tgx.adapter.gradients` kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad.uop.ops import GroupOp, Ops

from tgx import model
from tgx.adapter import derivatives, finite, names, textbook
from tgx.adapter.gradients import Backward, Part, Recorded, Visit
from tgx.adapter.reference import ARITHMETIC, REDUCTIONS
from tgx.adapter.values import Array, Deferred, Values, apply, summary, whole
from tgx.adapter.wording import dtype_name, shape_text

if TYPE_CHECKING:
    from tgx.adapter.writing import Recorder

VIEWS = {*GroupOp.Movement, Ops.CAST, Ops.CONTIGUOUS, Ops.COPY}
MOST_FORMULA = 1 << 18  # elements of a step whose formula is computed once more


def write(session: Backward) -> None:
    """Adds the session's walks to its trace."""
    recorder = session.recorder
    numbers = _Numbers()
    values: dict[int, dict[int, Array]] = {}  # of a walk, the nodes its inner walks need
    told: list[_Telling] = []
    for walk in reversed(session.walks):  # an outer walk ends after those inside it, who need it
        inner = [w for w in session.walks if w.parent == walk.id]
        wanted = {n for w in inner for n in w.params.values()}
        params = {s: values[walk.parent].get(n) for s, n in walk.params.items()
                  if walk.parent in values}
        telling = _Telling(session, walk, numbers, params, wanted)
        values[walk.id] = telling.held
        told.append(telling)
    for telling in reversed(told):
        recorder.bundle(telling.records())
    if session.left_out:
        session._say_once(
            f"{session.left_out} more backward walks were not recorded: the first "
            f"{len(session.walks)} are shown"
        )


@dataclass
class _Numbers:
    """Ids given out so far."""

    steps: int = 0
    operations: int = 0


@dataclass
class _Group:
    """The visits of one operation."""

    origin: int
    op: str
    name: str
    visits: list[int] = field(default_factory=list)
    flows: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # target -> (visit, node)


class _Telling:
    """One walk's records."""

    def __init__(self, session: Backward, walk: Recorded, numbers: _Numbers,
                 params: dict[int, Array], wanted: set[int]) -> None:
        self.session, self.walk, self.numbers = session, walk, numbers
        self.recorder: Recorder = session.recorder
        self.graph = walk.graph
        self.held: dict[int, Array] = {}
        self.wanted = wanted
        self.checks: dict[tuple[int, int], tuple[model.Check, float, str]] = {}
        self.goal_checks: dict[int, model.Check] = {}
        self.terms: dict[int, float] = {}  # how large the terms are that a gradient sums
        self.flows: dict[tuple[int, int], model.Flow] = {}
        self.groups = self._groups()
        self.group_of = {v: g for g, group in enumerate(self.groups) for v in group.visits}
        self._compute(params)

    # **** which operation a step belongs to ****

    def _groups(self) -> list[_Group]:
        """Visits of one call of the user's: of the same expression, and connected. (A line in a
        loop makes an operation each time, which other operations separate.)"""
        visits = self.walk.visits
        visit_of = {visit.node: v for v, visit in enumerate(visits)}
        named = [self._call(visit) for visit in visits]
        leader = list(range(len(visits)))

        def find(v: int) -> int:
            while leader[v] != v:
                leader[v] = v = leader[leader[v]]
            return v

        for v, visit in enumerate(visits):
            for s in self.graph.rows[visit.node].src:
                o = visit_of.get(s)
                if o is not None and self._together(named[v][0], named[o][0], visits[o]):
                    a, b = sorted((find(v), find(o)))
                    leader[b] = a
        groups: dict[int, _Group] = {}
        for v, (_, origin, op, name) in enumerate(named):
            groups.setdefault(find(v), _Group(origin, op, name)).visits.append(v)
        for group in groups.values():
            inside = {visits[v].node for v in group.visits}
            for v in group.visits:
                for part in visits[v].parts:
                    if part.node < 0 or part.target in inside or part.stops:
                        continue
                    group.flows.setdefault(part.target, []).append((v, part.node))
        return list(groups.values())

    def _call(self, visit: Visit) -> tuple[Any, int, str, str]:
        """(what tells it from others, origin, operation, name) of the call a visit belongs to."""
        origin = self._origin(visit.node)
        record = self.session.marker.origins.records[origin] if origin >= 0 else None
        if record is None or record.op in ("unknown", "tensor"):
            spoken = self.walk.spoken[visit.node] or visit.key.split()[0].lower()
            return spoken, -1, spoken, spoken
        name = names.operation(record)
        name = f"∂{name}" if record.phase == "backward" else name
        call = record.op, record.label, record.phase, record.places[: record.user + 1]
        return call, origin, record.op, name

    def _together(self, call: Any, below: Any, source: Visit) -> bool:
        """Whether two connected steps are of one call. A view of a weight (its transpose) exists
        once, whoever calls for it: it has the mark of the first, and is told by the line alone."""
        if call == below or isinstance(call, str) or isinstance(below, str):
            return bool(call == below)
        same_line = call[:3] == below[:3] and call[3][-1:] == below[3][-1:]
        return same_line and self.graph.rows[source.node].op in VIEWS

    def _origin(self, node: int) -> int:
        records = self.session.marker.origins.records
        marks = self.walk.origins[node]
        known = [m for m in marks if records[m].op not in ("unknown", "tensor")]
        return (known or list(marks) or [-1])[0]

    # **** the numbers ****

    def _compute(self, params: dict[int, Array]) -> None:
        walk = self.walk
        jobs: dict[int, list[Callable[[], None]]] = {}
        uses: dict[int, list[int]] = {}

        def later(needed: Sequence[int], job: Callable[[], None]) -> None:
            at = max(needed)
            jobs.setdefault(at, []).append(job)
            uses.setdefault(at, []).extend(n for n in needed if n != at)

        for v, visit in enumerate(walk.visits):
            row = self.graph.rows[visit.node]
            for p, part in enumerate(visit.parts):
                if part.node >= 0 and visit.upstream >= 0 and visit.key != "GETTUPLE":
                    later((*row.src, visit.node, visit.upstream, part.node),
                          self._check_job(v, p, visit, part))
        for g, group in enumerate(self.groups):
            out, upstream = walk.visits[group.visits[0]].node, self._upstream(group)
            targets = list(group.flows)
            needed = [n for flow in group.flows.values() for _, n in flow]
            if needed and upstream >= 0:
                later((*targets, out, upstream, *needed), self._flow_job(g, group, out, upstream))
        roots = [walk.root, *(goal.gradient for goal in walk.goals if goal.gradient >= 0)]
        values = self.values = Values(self.graph, params=params)
        last = len(self.graph) - 1
        uses.setdefault(last, []).extend(n for n in (*roots, *self.wanted) if n != last)
        self.summaries: list[model.Value] = []

        def seen(i: int, array: Array) -> None:
            row = self.graph.rows[i]
            self.summaries.append(summary(array, row.shape))
            for job in jobs.get(i, ()):
                job()
            if i in self.wanted:
                self.held[i] = array
            if i == last:
                self._check_goals(values.held)

        values.run(seen, uses)

    def _upstream(self, group: _Group) -> int:
        return self.walk.visits[group.visits[0]].upstream

    def _check_job(self, v: int, p: int, visit: Visit, part: Part) -> Callable[[], None]:
        def job() -> None:
            held, row = self.values.held, self.graph.rows[visit.node]
            inputs = [held.get(s) for s in row.src]
            slot = part.slot
            upstream, given = held.get(visit.upstream), held.get(part.node)
            check, terms = finite.contribution(self.graph, row, slot, inputs, upstream, given)
            if row.op in VIEWS:
                terms = max(terms, self.terms.get(visit.upstream, 0.0))
            for node in (part.node, part.total):
                self.terms[node] = max(terms, self.terms.get(node, 0.0))
            error = self._formula_error(visit, slot, inputs, upstream, given)
            local = self._local(visit, slot, upstream, given)
            self.checks[v, p] = check, error, local

        return job

    def _formula_error(self, visit: Visit, slot: int, inputs: Sequence[Array], upstream: Array,
                       given: Array) -> float:
        """How far the formula, computed from the values alone, is from the contribution."""
        formula = derivatives.formula_of(visit.key)
        row = self.graph.rows[visit.node]
        arrays = (*inputs, upstream, given)
        if formula.compute is None or isinstance(row.arg, list) or any(
            not isinstance(a, np.ndarray | np.generic) or a.size > MOST_FORMULA for a in arrays
        ):
            return -1.0
        with np.errstate(all="ignore"):
            doubles = [np.asarray(a, np.float64) if a.dtype.kind == "f" else np.asarray(a)
                       for a in inputs]
            out = apply(row, doubles, True, [self.graph.rows[s].dtype for s in row.src]) \
                if row.op in ARITHMETIC else self._reduced(row, doubles)
            made = formula.compute(row, np.asarray(upstream, np.float64), out, doubles)[slot]
            if made is None:
                return -1.0
            terms = _summed(np.abs(np.asarray(made, np.float64)), np.shape(given))
            made = _summed(np.asarray(made, np.float64), np.shape(given))
            both = np.isfinite(made) & np.isfinite(given)
            # relative to the terms: where they cancel, float32 rounds as large as they are
            scale = max(float(terms[both].max(initial=0.0)), 1e-30)
            return float(np.abs(made - given)[both].max(initial=0.0) / scale)

    def _reduced(self, row: Any, doubles: Sequence[Any]) -> Any:
        if row.op is Ops.REDUCE:
            axes = tuple(range(row.arg[1]))
            return REDUCTIONS[row.arg[0]](doubles[0], axis=axes)
        return None

    def _local(self, visit: Visit, slot: int, upstream: Array, given: Array) -> str:
        """The local derivative's number, where it is one."""
        if upstream is None or given is None or isinstance(upstream, (list, tuple, Deferred)):
            return ""
        if getattr(given, "size", 0) != 1 or upstream.size != 1:
            return ""
        g, c = float(upstream.reshape(-1)[0]), float(whole(given).reshape(-1)[0])
        return f"{c / g:.6g}" if g and math.isfinite(c / g) else ""

    def _flow_job(self, g: int, group: _Group, out: int, upstream: int) -> Callable[[], None]:
        def job() -> None:
            held = self.values.held
            sums: dict[int, Array] = {}
            for target, parts in group.flows.items():
                arrays = [held.get(n) for _, n in parts]
                if any(a is None or isinstance(a, (list, tuple)) for a in arrays):
                    sums[target] = None
                elif len(arrays) == 1:
                    sums[target] = arrays[0]
                else:
                    with np.errstate(all="ignore"):
                        sums[target] = sum(map(whole, arrays[1:]), whole(arrays[0]))
            matched = textbook.match(
                group.op, held.get(out), held.get(upstream),
                [(t, held.get(t), s, max(self.terms.get(n, 0.0) for _, n in group.flows[t]))
                 for t, s in sums.items()],
            )
            for target, total in sums.items():
                found = matched.get(target)
                shape = self.graph.rows[target].shape
                flow = model.Flow(target, summary(total, shape))
                if found is not None:
                    flow = replace(flow, role=found.role, formula=found.formula, error=found.error)
                self.flows[g, target] = flow

        return job

    def _check_goals(self, held: dict[int, Array]) -> None:
        walk = self.walk
        goals = [goal for goal in walk.goals if goal.gradient >= 0]
        if walk.parent >= 0:
            why = "a function's body: its parameters are checked where it is called"
            self.goal_checks = {goal.node: model.Check(why=why) for goal in goals}
            return
        weight = held.get(self._root_gradient())
        slopes = finite.Slopes(self.graph, walk.forward, walk.root, weight)
        # what lies near the loss takes little to compute again: it comes first
        for goal in sorted(goals, key=lambda goal: (not goal.leaf, -goal.node)):
            if not goal.leaf and not goal.name:
                continue
            self.goal_checks[goal.node] = slopes.check(
                goal.node, held.get(goal.gradient), self.terms.get(goal.gradient, 0.0)
            )

    def _root_gradient(self) -> int:
        return next((v.upstream for v in self.walk.visits if v.node == self.walk.root), -1)

    # **** the records ****

    def records(self) -> Iterator[tuple[str, Any]]:
        walk, recorder = self.walk, self.recorder
        graph = self._graph()
        steps = list(self._steps())
        operations = list(self._operations([s.id for s in steps]))
        targets = tuple(
            model.Target(goal.node, goal.name, goal.gradient, goal.leaf, goal.stops,
                         self.goal_checks.get(goal.node, model.Check()))
            for goal in walk.goals
        )
        kernels = tuple(model.WalkKernel(k, tuple(sorted(nodes)))
                        for k, nodes in sorted(walk.kernels.items()))
        frame = recorder.frame_of(walk.asked)
        name = walk.labels.get(walk.root, "") or walk.function
        record = model.Walk(
            walk.id, graph.id, walk.root, walk.forward, name, frame, walk.order, walk.parent,
            walk.jit, walk.repeats, tuple(self.summaries), targets, kernels,
            tuple(dict.fromkeys(walk.graph.missing)), tuple(map(self._place, derivatives.route())),
        )  # fmt: skip
        recorder.flush()
        yield "graphs", graph
        yield "walks", record
        for operation in operations:
            yield "operations", replace(operation, steps=())
        for step in steps:
            yield "gradients", step
        for operation in operations:
            yield "operations", operation

    def _graph(self) -> model.Graph:
        walk, recorder = self.walk, self.recorder
        records = self.session.marker.origins.records
        for m in {m for marks in walk.origins for m in marks}:
            recorder.origin(m)
        number = recorder.graphs
        recorder.graphs += 1
        rows = walk.graph.rows
        phases, tensor_ops = [], []
        for i, marks in enumerate(walk.origins):
            origin = self._origin(i)
            phases.append(records[origin].phase if marks else
                          "backward" if i >= walk.forward else "forward")
            said = records[origin].op if marks and records[origin].op != "unknown" else ""
            tensor_ops.append(said or walk.spoken[i])
        return model.Graph(
            number,
            "lazy",
            f"walk {walk.id}",
            tuple(r.op.name for r in rows),
            tuple(dtype_name(r.dtype) for r in rows),
            tuple("" if r.shape is None else shape_text(r.shape) for r in rows),
            tuple(walk.text),
            tuple(r.src for r in rows),
            tuple(walk.origins),
            phases=tuple(phases),
            tensor_ops=tuple(tensor_ops),
            labels=tuple(walk.labels.get(i, "") for i in range(len(rows))),
            roots=(walk.root,),
        )

    def _steps(self) -> Iterator[model.GradientStep]:
        walk = self.walk
        first_operation = self.numbers.operations
        for v, visit in enumerate(walk.visits):
            formula = derivatives.formula_of(visit.key)
            row = self.graph.rows[visit.node]
            parts = tuple(self._contribution(v, p, visit, part, formula)
                          for p, part in enumerate(visit.parts))
            made = set(visit.made)
            kernels = tuple(k for k, nodes in sorted(walk.kernels.items()) if made & nodes)
            origin = self._origin(visit.node)
            number = self.numbers.steps
            self.numbers.steps += 1
            yield model.GradientStep(
                number, walk.id, visit.node, row.op.name,
                self._tensor_op(visit.node), self.recorder.origin(origin) if origin >= 0 else -1,
                self._rule(visit), visit.key, formula.operation, visit.upstream, parts,
                tuple(sorted(made)), kernels, first_operation + self.group_of[v],
            )  # fmt: skip

    def _tensor_op(self, node: int) -> str:
        origin = self._origin(node)
        record = self.session.marker.origins.records[origin] if origin >= 0 else None
        if record is not None and record.op != "unknown":
            return record.op
        return self.walk.spoken[node]

    def _contribution(self, v: int, p: int, visit: Visit, part: Part,
                      formula: derivatives.Formula) -> model.Contribution:
        check, error, local = self.checks.get((v, p), (model.Check(), -1.0, ""))
        text = formula.slope(part.slot) if part.node >= 0 else ""
        if part.node >= 0 and not formula.slopes:
            text = formula.operation
        return model.Contribution(
            part.target, part.slot, part.node, part.total, text, local,
            self._summed_axes(visit, part), part.stops, check, error,
        )  # fmt: skip

    def _summed_axes(self, visit: Visit, part: Part) -> tuple[int, ...]:
        """The axes of the result along which an input was repeated."""
        source, out = self.graph.rows[part.target].shape, self.graph.rows[visit.node].shape
        op = self.graph.rows[visit.node].op
        if part.node < 0 or source is None or out is None or op not in ARITHMETIC:
            return ()
        extra = len(out) - len(source)
        return tuple(a for a in range(len(out))
                     if a < extra or (source[a - extra] == 1 and out[a] != 1))

    def _rule(self, visit: Visit) -> int:
        if visit.pattern is None and visit.key not in derivatives.WALK:
            return -1
        source = (derivatives.source_of(visit.pattern, visit.key) if visit.pattern is not None
                  else derivatives.walk_source(visit.key))
        return self._place(source)

    def _place(self, source: derivatives.Source) -> int:
        """A line of tinygrad's as a Rule."""
        recorder = self.recorder
        path = recorder.short(source.path)
        key = (path, source.line)
        if key not in recorder.rules:
            recorder.rules[key] = len(recorder.rules)
            recorder.waiting.append(("rules", model.Rule(
                recorder.rules[key], recorder.file(source.path), source.line, source.text,
                source.function)))
        return recorder.rules[key]

    def _operations(self, steps: list[int]) -> Iterator[model.WalkOperation]:
        for g, group in enumerate(self.groups):
            number = self.numbers.operations
            self.numbers.operations += 1
            first = self.walk.visits[group.visits[0]]
            flows = tuple(self.flows[g, t] for t in group.flows if (g, t) in self.flows)
            yield model.WalkOperation(
                number, self.walk.id, group.name, group.op, group.origin,
                tuple(steps[v] for v in group.visits), first.node, first.upstream, flows,
            )  # fmt: skip


def _summed(array: Any, shape: tuple[int, ...]) -> Any:
    """A gradient summed to the shape of what was broadcast."""
    extra = array.ndim - len(shape)
    if extra > 0:
        array = array.sum(axis=tuple(range(extra)))
    axes = tuple(i for i, (a, b) in enumerate(zip(array.shape, shape, strict=True)) if b == 1 < a)
    return array.sum(axis=axes, keepdims=True) if axes else array
