"""The emitter: a plan becomes LLVM IR text. No decisions are taken here.

The trick that fuses everything: the expression of a nest is evaluated once per *coordinate it
depends on*. In a tile of 16 rows x 2 vectors, `x[row, k]` depends on the row only and is made 16
times, `w[k, lane]` on the vector only and is made twice, their product 32 times. So any prologue
(relu of an operand, a cast) and any epilogue (bias, relu, a mask) falls into the right place.

Loops are written with phi nodes, accumulators live in allocas that LLVM turns into registers.
Nothing is loaded that the original expression would not load: past an edge there is a mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tinygrad.dtype import dtypes
from tinygrad.uop.ops import Ops

from tgx.devices.model import Pack, body_of, bounds, dependence, projected, strides
from tgx.devices.nest import Mask, Miss, Nest, Node
from tgx.devices.plan import Plan
from tgx.devices.values import Values
from tgx.devices.writer import TYPES, Block, Scope, Value, identity, memory, splat_literal, vector


class Emitter(Values):
    """Loops around tiles."""

    def __init__(
        self, plan: Plan, name: str, slots: tuple[int, ...], variables: tuple[str, ...]
    ) -> None:
        super().__init__(plan, name, variables)
        self.slots = slots

    def run(self) -> str:
        plan = self.plan
        counts = [plan.blocks(a) for a in plan.loops[: plan.split]]
        tasks = math.prod(counts)
        scope = Scope({}, plan.lane, plan.width)
        for a in plan.lane[1:]:
            scope.at[a] = Block(None, 0, self.nest.size(a))
        if plan.chunks == 1:
            self.outer(0, scope, {})
        else:
            low = self.let(f"udiv i64 {self.let(f'mul i64 %chunk, {tasks}')}, {plan.chunks}")
            top = self.let("add i64 %chunk, 1")
            high = self.let(f"udiv i64 {self.let(f'mul i64 {top}, {tasks}')}, {plan.chunks}")

            def task(t: str) -> None:
                where: dict[str, str] = {}
                rest = t
                for axis, n in reversed(list(zip(plan.loops, counts, strict=False))):
                    where[axis] = (
                        rest if axis == plan.loops[0] else self.let(f"urem i64 {rest}, {n}")
                    )
                    if axis != plan.loops[0]:
                        rest = self.let(f"udiv i64 {rest}, {n}")
                self.outer(0, scope, where)

            self.loop(low, high, 1, task, guard=True)
        self.emit("ret void")
        return self.text()

    def outer(self, level: int, scope: Scope, where: dict[str, str]) -> None:
        """The output loops, one by one; the last block of each may be smaller."""
        for pack in self.plan.packs:
            if pack.level == level:
                self.copy(pack, scope)
        if level == len(self.plan.loops):
            return self.tile_body(scope)
        axis = self.plan.loops[level]
        step, blocks = self.plan.step(axis), self.plan.blocks(axis)
        size = self.plan.lane_size if axis == self.plan.lane[0] else self.nest.size(axis)
        full, rest = divmod(size, step)

        def go(block: Block) -> None:
            inner = replace(scope, at={**scope.at, axis: block}, memo={})
            if axis == self.plan.lane[0]:
                inner.valid = block.count
            self.outer(level + 1, inner, where)

        if axis in where and blocks > 1:
            base = where[axis] if step == 1 else self.let(f"mul nsw i64 {where[axis]}, {step}")
            if not rest:
                return go(Block(base, 0, step))
            self.count += 1
            n = self.count
            last = self.let(f"icmp eq i64 {where[axis]}, {blocks - 1}")
            self.emit(f"br i1 {last}, label %last{n}, label %full{n}")
            self.start(f"full{n}")
            go(Block(base, 0, step))
            self.emit(f"br label %join{n}")
            self.start(f"last{n}")
            go(Block(None, full * step, rest))
            return self.branch(f"join{n}")
        if full == 1:
            go(Block(None, 0, step))
        elif full > 1:
            self.loop("0", str(full * step), step, lambda i: go(Block(i, 0, step)), guard=False)
        if rest:
            go(Block(None, full * step, rest))
        return None

    def copy(self, pack: Pack, scope: Scope) -> None:
        """Fill a packed factor, in whole vectors along one axis of its source. Where the copy lies
        along another one, the lanes', as many vectors as it has lanes change rows for columns."""
        kind, w, lane = memory(pack.node.dtype), self.plan.width, self.plan.lane[0]
        if pack.node not in self.packed:
            name = self.new("pack")
            self.allocas.append(f"  {name} = alloca [{pack.size} x {kind}], align 64")
            self.packed[pack.node] = name, pack
        name = self.packed[pack.node][0]
        ready, self.packed = self.packed, {}  # while it is made, values are those of their sources
        outside, strides = self.plan.loops[: pack.level], dict(pack.strides)
        turned = lane in strides and pack.along != lane
        rows = [a for a, _ in pack.extents if a not in (pack.along, lane if turned else None)]
        count = {a: scope.at[a].count if a in outside else n for a, n in pack.extents}
        Places = dict[str, tuple[str | None, int]]  # axis -> run-time part, constant

        def vector_at(at: Places, n: int) -> Value:
            """`n` points of the factor, from a place in what is copied."""
            blocks = dict(scope.at)
            for a, (base, offset) in at.items():
                whole = scope.at[a] if a in outside else Block(None, 0, 1)
                if base is None or whole.base is None:
                    base = base or whole.base
                else:
                    base = self.let(f"add nsw i64 {base}, {whole.base}")
                blocks[a] = Block(base, whole.offset + offset, 1)
            here = Scope(blocks, (pack.along,), w, valid=n)
            return self.widen(self.ev(pack.node, here), w)

        def put(v: Value, at: Places) -> None:
            to, const = name, 0
            for a, (base, offset) in at.items():
                if base is not None:
                    step = self.let(f"mul nsw i64 {base}, {strides[a]}")
                    to = self.let(f"getelementptr {kind}, ptr {to}, i64 {step}")
                const += offset * strides[a]
            to = self.let(f"getelementptr {kind}, ptr {to}, i64 {const}")
            self.emit(f"store {v}, ptr {to}, align {pack.node.dtype.itemsize}")

        def each(axis: str, at: Places, step: int, body: Callable[[Places, int], None]) -> None:
            """Along an axis in steps; the last may be shorter."""
            full, rest = divmod(count[axis], step)
            if full == 1:
                body({**at, axis: (None, 0)}, step)
            elif full:
                end = str(full * step)
                self.loop("0", end, step, lambda i: body({**at, axis: (i, 0)}, step), guard=False)
            if rest:
                body({**at, axis: (None, full * step)}, rest)

        def row(level: int, at: Places) -> None:
            if level < len(rows):
                each(rows[level], at, 1, lambda here, _: row(level + 1, here))
            elif turned:
                each(lane, at, w, lambda here, n: each(pack.along, here, w, square(n)))
            else:
                each(pack.along, at, w, lambda here, n: put(vector_at(here, n), here))

        def square(lanes: int) -> Callable[[Places, int], None]:
            def turn(at: Places, n: int) -> None:
                base, offset = at[lane]
                many = [vector_at({**at, lane: (base, offset + i)}, n) for i in range(lanes)]
                start, first = at[pack.along]
                for i, v in enumerate(self.transposed(many)[:n]):
                    put(v, {**at, pack.along: (start, first + i)})

            return turn

        row(0, {})
        self.packed = ready

    def transposed(self, rows: list[Value]) -> list[Value]:
        """The columns of a square of vectors: one bit of row and lane number changes places at a
        time. Rows that are missing are zero."""
        w, kind = rows[0].lanes, rows[0].type
        rows = rows + [Value("zeroinitializer", rows[0].dtype, w)] * (w - len(rows))
        bit = w // 2
        while bit:
            for i in (i for i in range(w) if not i & bit):
                a, b = rows[i], rows[i | bit]
                low = ", ".join(f"i32 {p if not p & bit else w + (p ^ bit)}" for p in range(w))
                high = ", ".join(f"i32 {p | bit if not p & bit else w + p}" for p in range(w))
                for at, picks in ((i, low), (i | bit, high)):
                    name = self.let(f"shufflevector {kind} {a.name}, {b}, <{w} x i32> <{picks}>")
                    rows[at] = Value(name, a.dtype, w)
            bit //= 2
        return rows

    def tiles(self, scope: Scope) -> list[dict[str, int]]:
        """All coordinates of the register tile."""
        axes = list(self.tile)
        return [
            dict(zip(axes, c, strict=True))
            for c in itertools.product(*[range(scope.at[a].count) for a in axes])
        ]

    def units(self, scope: Scope) -> int:
        return -(-scope.valid // scope.width)

    def tile_body(self, scope: Scope) -> None:
        self.inside = False
        if self.red is None:
            for coords in self.tiles(scope):
                for unit in range(self.units(scope)):
                    here = replace(scope, coords=coords, unit=unit)
                    self.store(self.nest.store, self.ev(self.nest.value, here), here)
        elif self.plan.lanes_out:
            units = self.units(scope)
            parts = [self.part(p, scope, units) for p in self.nest.parts]
            accs = self.accumulate(scope, units)
            outer = scope.at.get(self.plan.hoisted or "")
            rows = self.turning(scope)
            values: dict[tuple[tuple[int, ...], int], Value] = {}
            for coords in self.tiles(scope):
                for unit in range(units):
                    here = replace(scope, coords=coords, unit=unit)
                    key = tuple(coords.values()), unit
                    if outer is not None and outer.base is not None:
                        accs[key] = self.continued(accs[key], outer.base, here)
                    values[key] = self.finish(accs[key], here, [p[key] for p in parts])
                    if rows is None:
                        self.store(self.nest.store, values[key], here)
            if rows is not None:
                self.store_turned(rows, values, scope, units)
        else:
            self.across(scope)

    def continued(self, acc: Value, outer: str, scope: Scope) -> Value:
        """A partial sum, with what the steps of the outer reduction loop before left in memory."""
        before = self.load(self.nest.store, scope, True)
        first = self.let(f"icmp eq i64 {outer}, 0")
        zero = splat_literal(TYPES[acc.dtype], acc.lanes, identity(Ops.ADD, acc.dtype))
        name = self.let(f"select i1 {first}, {acc.type} {zero}, {before}")
        return self.combine(Ops.ADD, Value(name, acc.dtype, acc.lanes), acc)

    def part(
        self, part: Nest, scope: Scope, units: int
    ) -> dict[tuple[tuple[int, ...], int], Value]:
        """Another sum over the same tile: the emitter looks at its nest for a while."""
        mine = self.plan, self.nest, self.deps, self.red, self.body
        self.plan = replace(
            self.plan,
            nest=part,
            unroll=(),
            packs=(),
            sums=tuple(
                a.name
                for a in sorted(part.axes, key=lambda a: a.name not in bounds(part, scope.lane))
                if not a.out
            ),
        )
        self.nest, self.deps, self.red, self.body = (
            part,
            dependence(part),
            part.reduction,
            body_of(part),
        )
        sums = self.accumulate(replace(scope, memo={}), units)
        self.plan, self.nest, self.deps, self.red, self.body = mine
        return sums

    def turning(self, scope: Scope) -> str | None:
        """The tile axis along which outputs lie in a row, where the lanes are far apart."""
        store, near = self.nest.store, strides(self.nest.store.index, scope.lane, self.nest, 2)
        if near[1] == 1 or len(scope.lane) > 1 or store.masks or store.dtype is dtypes.bool:
            return None
        found = (a for a in self.tile if store.index[a] == 1 and scope.at[a].count >= 4)
        return next(found, None)

    def store_turned(
        self,
        axis: str,
        values: dict[tuple[tuple[int, ...], int], Value],
        scope: Scope,
        units: int,
    ) -> None:
        """Rows of the tile change places with lanes, and what was far apart is stored in a row."""
        (lane,), w = scope.lane, scope.width
        for coords in self.tiles(scope):
            if coords[axis] % w:
                continue
            n = min(w, scope.at[axis].count - coords[axis])
            for unit in range(units):
                keys = [{**coords, axis: coords[axis] + i} for i in range(n)]
                rows = [values[tuple(k.values()), unit] for k in keys]
                rows = [self.widen(v, w) for v in rows]
                block = scope.at[lane]
                for i, v in enumerate(self.transposed(rows)):
                    first = unit * w + i
                    if first >= scope.valid:
                        break
                    at = {**scope.at, lane: Block(block.base, block.offset + first, 1)}
                    here = replace(scope, at=at, lane=(axis,), valid=n, unit=0, memo={})
                    here.coords = coords
                    self.store(self.nest.store, v, here)

    def finish(self, acc: Value, scope: Scope, parts: list[Value] | None = None) -> Value:
        """The epilogue of one accumulator."""
        assert self.red is not None
        key = (
            self.red,
            tuple(scope.coords.get(a, 0) for a in self.tile if a in self.deps[self.red]),
            scope.unit if any(a in self.deps[self.red] for a in scope.lane) else -1,
        )
        sums = [n for n in self.nest.value.walk() if n.op in ("sum", "part")]
        memo = {
            k: v
            for k, v in scope.memo.items()
            if not isinstance(k[0], Node) or not any(n in sums for n in k[0].walk())
        }
        here = replace(scope, memo=memo)
        here.memo[key] = acc
        for n in self.nest.value.walk():
            if n.op == "part":
                assert parts is not None
                lanes = any(a in self.deps[n] for a in scope.lane)
                here.memo[
                    n,
                    tuple(scope.coords.get(a, 0) for a in self.tile if a in self.deps[n]),
                    scope.unit if lanes else -1,
                ] = parts[n.arg]
        value = self.ev(self.nest.value, here)
        scope.memo.update(
            {
                k: v
                for k, v in here.memo.items()
                if not isinstance(k[0], Node) or not any(n in sums for n in k[0].walk())
            }
        )
        return value

    def accumulate(self, scope: Scope, units: int) -> dict[tuple[tuple[int, ...], int], Value]:
        """Run the reduction loops over a tile; the finished accumulators."""
        assert self.red is not None
        kind = vector(TYPES[self.red.dtype], scope.width)
        start = splat_literal(
            TYPES[self.red.dtype], scope.width, identity(self.red.arg, self.red.dtype)
        )
        slots: dict[tuple[tuple[int, ...], int], str] = {}
        for coords in self.tiles(scope):
            for unit in range(units):
                slot = self.new("acc")
                self.allocas.append(f"  {slot} = alloca {kind}")
                self.emit(f"store {kind} {start}, ptr {slot}")
                slots[tuple(coords.values()), unit] = slot
        self.inside = True
        sums = {a.name for a in self.nest.axes if not a.out}
        closed: Value | None = None
        for (
            whole
        ) in self.nest.domain:  # gates that only the outputs decide: all of the sum, or nothing
            if (m := projected(whole, scope.lane)) is not None and not sums & set(m.axes):
                if any(scope.at[a].count != 1 for a in m.axes):
                    raise Miss("a gate varies inside the tile")
                closed = self.both(closed, self.mask_lookup(m, scope, False))
        if closed is not None:
            self.count += 1
            n = self.count
            self.emit(f"br i1 {closed.name}, label %open{n}, label %shut{n}")
            self.start(f"open{n}")
        self.inner(0, replace(scope, memo={}), slots, units)
        if closed is not None:
            self.branch(f"shut{n}")
        self.inside = False
        return {
            k: Value(self.let(f"load {kind}, ptr {s}"), self.red.dtype, scope.width)
            for k, s in slots.items()
        }

    def inner(
        self, level: int, scope: Scope, slots: dict[tuple[tuple[int, ...], int], str], units: int
    ) -> None:
        """The reduction loops."""
        plan = self.plan
        if level == len(plan.sums):
            return self.step(scope, slots, units)
        axis = plan.sums[level]
        size = self.nest.size(axis)

        def go(block: Block, units: int = units) -> None:
            inner = replace(scope, at={**scope.at, axis: block}, memo={})
            if axis == plan.lane[0]:
                inner.valid = block.count
                units = -(-block.count // scope.width)
            self.inner(level + 1, inner, slots, units)

        if axis == plan.lane[0]:
            step = plan.step(axis)
            full, rest = divmod(size, step)
            if full == 1:
                go(Block(None, 0, step))
            elif full > 1:
                self.loop("0", str(full * step), step, lambda i: go(Block(i, 0, step)), guard=False)
            if rest:
                go(Block(None, full * step, rest))
        elif axis in plan.unroll:
            for i in range(size):
                inner = replace(scope, at={**scope.at, axis: Block(None, i, 1)})
                # values of other taps must not be mistaken for this one's
                inner.memo = {
                    k: v
                    for k, v in scope.memo.items()
                    if isinstance(k[0], Node) and axis not in self.deps[k[0]]
                }
                self.inner(level + 1, inner, slots, units)
                scope.memo.update(
                    {
                        k: v
                        for k, v in inner.memo.items()
                        if isinstance(k[0], Node)
                        and axis not in self.deps[k[0]]
                        and not any(s in self.deps[k[0]] for s in plan.sums[level + 1 :])
                    }
                )
        else:
            self.bounded(axis, size, scope, lambda i: go(Block(i, 0, 1)))
        return None

    def bounded(self, axis: str, size: int, scope: Scope, body: Callable[[str], None]) -> None:
        """One reduction loop, over the points that the domain leaves for the loops outside it."""
        mine = [
            p
            for m in self.nest.domain
            if (p := projected(m, self.plan.lane)) is not None
            and axis in p.axes
            and all(a == axis or a in scope.at for a in p.axes)
        ]
        if not mine:
            return self.loop("0", str(size), 1, body, guard=False)
        low, high = "0", str(size)
        checks: list[Mask] = []
        for m in mine:
            others = [a for a in m.axes if a != axis]
            if any(scope.at[a].count != 1 for a in others):
                raise Miss("a loop bound varies inside the tile")
            grid = m.table.transpose([*[m.axes.index(a) for a in others], m.axes.index(axis)])
            grid = grid.reshape(-1, size)
            first = np.where(grid.any(1), grid.argmax(1), 0)
            last = np.where(grid.any(1), size - grid[:, ::-1].argmax(1), 0)
            if not (last - first == grid.sum(1)).all():
                checks.append(m)
                continue
            row, const, parts = "0", 0, []
            shape = [self.nest.size(a) for a in others]
            for i, a in enumerate(others):
                scale = math.prod(shape[i + 1 :])
                if scope.at[a].base is not None:
                    parts.append(self.let(f"mul nsw i64 {scope.at[a].base}, {scale}"))
                const += scale * scope.at[a].offset
            for i, p in enumerate(parts):
                row = p if i == 0 else self.let(f"add nsw i64 {row}, {p}")
            row = self.let(f"add nsw i64 {row}, {const}")
            bounds = []
            for which, words in (("first", first), ("last", last)):
                name = self.table((m.axes, m.key, axis, which), "i32", [int(x) for x in words])
                at = self.let(f"getelementptr i32, ptr {name}, i64 {row}")
                bounds.append(self.let(f"sext i32 {self.let(f'load i32, ptr {at}')} to i64"))
            low = (
                bounds[0]
                if low == "0"
                else self.let(self.call(f"i64 @llvm.smax.i64(i64 {low}, i64 {bounds[0]})"))
            )
            high = (
                bounds[1]
                if high == str(size)
                else self.let(self.call(f"i64 @llvm.smin.i64(i64 {high}, i64 {bounds[1]})"))
            )

        def guarded(i: str) -> None:
            ok: Value | None = None
            here = replace(scope, at={**scope.at, axis: Block(i, 0, 1)}, memo={})
            for m in checks:
                ok = self.both(ok, self.mask_lookup(m, here, False))
            if ok is None:
                return body(i)
            self.count += 1
            n = self.count
            self.emit(f"br i1 {ok.name}, label %do{n}, label %skip{n}")
            self.start(f"do{n}")
            body(i)
            return self.branch(f"skip{n}")

        return self.loop(low, high, 1, guarded, guard=True)

    def step(self, scope: Scope, slots: dict[tuple[tuple[int, ...], int], str], units: int) -> None:
        """One point of the reduction, for the whole tile."""
        assert self.red is not None
        lane_masks = tuple(m for m in self.nest.domain if any(a in m.axes for a in scope.lane))
        kind = vector(TYPES[self.red.dtype], scope.width)
        for coords in self.tiles(scope):
            if self.outside(coords, scope):
                continue
            for unit in range(units):
                here = replace(scope, coords=coords, unit=unit)
                slot = slots[tuple(coords.values()), unit]
                old = Value(self.let(f"load {kind}, ptr {slot}"), self.red.dtype, scope.width)
                new = self.accumulated(old, here)
                keep: Value | None = None
                for m in lane_masks:
                    if self.red.arg is not Ops.ADD or not zero_where(self.body, m):
                        keep = self.both(keep, self.mask_lookup(m, here, True))
                if not self.plan.lanes_out and (
                    self.red.arg is not Ops.ADD or not self.zero_past_end()
                ):
                    keep = self.both(keep, self.tail(here))
                if keep is not None:
                    keep = self.widen(keep, scope.width)
                    new = Value(self.let(f"select {keep}, {new}, {old}"), new.dtype, new.lanes)
                self.emit(f"store {new}, ptr {slot}")

    def outside(self, coords: dict[str, int], scope: Scope) -> bool:
        """Is this point of the tile known, while compiling, to be no part of the sum?"""
        for m in self.nest.domain:
            if (p := projected(m, scope.lane)) is None:
                continue
            places = [scope.at.get(a) for a in p.axes]
            if all(b is not None and b.base is None for b in places):
                at = tuple(
                    b.offset + coords.get(a, 0) for a, b in zip(p.axes, places, strict=True) if b
                )
                if not p.table[at]:
                    return True
        return False

    def zero_past_end(self) -> bool:
        """Do lanes past the end add nothing? Their loads give 0, but 0 times the reciprocal of
        another 0 is NaN: every factor must be such a zero, or a finite constant."""

        def zero(node: Node) -> bool:
            if node.op == "load":
                return any(node.arg.index[a] for a in self.plan.lane)
            if node.op == "mul":
                return any(map(zero, node.src)) and all(zero(s) or finite(s) for s in node.src)
            return node.op == "cast" and zero(node.src[0])

        def finite(node: Node) -> bool:
            return not dtypes.is_float(node.dtype) or (
                node.op == "const" and math.isfinite(node.arg)
            )

        return zero(self.body)

    def accumulated(self, old: Value, scope: Scope) -> Value:
        assert self.red is not None
        if (
            self.red.arg is Ops.ADD
            and self.body.op == "mul"
            and old.dtype in (dtypes.float32, dtypes.float64, dtypes.half)
        ):
            a, b = (self.widen(self.ev(s, scope), scope.width) for s in self.body.src)
            return Value(self.fma(a, b, old), old.dtype, old.lanes)
        value = self.widen(self.ev(self.body, scope), scope.width)
        return self.combine(self.red.arg, old, value)

    # ---------- lanes on a summed axis ----------

    def across(self, scope: Scope) -> None:
        """Every lane has a part of the sum: add the lanes up, then the epilogue."""
        assert self.red is not None
        plan, op = self.plan, self.red.arg
        parts = self.accumulate(scope, plan.vectors)
        accs: dict[tuple[int, ...], Value] = {}
        for coords in self.tiles(scope):
            key = tuple(coords.values())
            accs[key] = parts[key, 0]
            for unit in range(1, plan.vectors):
                accs[key] = self.combine(op, accs[key], parts[key, unit])
        outside = replace(scope, lane=(), width=1, memo={})
        if (axis := self.row_axis(scope)) is not None:
            return self.rows(axis, accs, scope)
        for coords in self.tiles(scope):
            total = self.horizontal(op, accs[tuple(coords.values())])
            here = replace(outside, coords=coords)
            self.store(self.nest.store, self.finish(total, here), here)
        return None

    def horizontal(self, op: Ops, v: Value) -> Value:
        """One vector to one number, by halves."""
        lanes = v.lanes
        while lanes > 1:
            lanes //= 2
            halves = []
            for first in (0, lanes):
                picks = ", ".join(f"i32 {first + i}" for i in range(lanes))
                halves.append(
                    Value(
                        self.let(f"shufflevector {v}, {v.type} poison, <{lanes} x i32> <{picks}>"),
                        v.dtype,
                        lanes,
                    )
                )
            if lanes == 1:
                halves = [
                    Value(
                        self.let(f"extractelement <1 x {TYPES[v.dtype]}> {h.name}, i64 0"), v.dtype
                    )
                    for h in halves
                ]
            v = self.combine(op, *halves)
        return v

    def row_axis(self, scope: Scope) -> str | None:
        """A tile axis along which the finished sums can be stored as one short vector."""
        store = self.nest.store
        total = math.prod(scope.at[a].count for a in self.tile)
        masks = [
            m
            for n in self.nest.value.walk()
            if n.op in ("load", "mask")
            for m in (n.arg if n.op == "mask" else n.arg.masks)
        ] + list(store.masks)
        for axis in self.tile:
            n = scope.at[axis].count
            if (
                store.index[axis] == 1
                and n > 1
                and total & (total - 1) == 0
                and total <= self.plan.width
                and n & (n - 1) == 0
                and not any(axis in m.axes for m in masks)
            ):
                return axis
        return None

    def rows(self, axis: str, accs: dict[tuple[int, ...], Value], scope: Scope) -> None:
        """Add up many vectors at once: at level b, lanes with bit b are the second's."""
        assert self.red is not None
        axes = [a for a in self.tile if a != axis] + [axis]
        order = sorted(
            accs, key=lambda c: tuple(dict(zip(self.tile, c, strict=True))[a] for a in axes)
        )
        todo, bit, w = [accs[c] for c in order], 1, self.plan.width
        op = self.red.arg
        while bit < w:
            pairs = (
                list(zip(todo[::2], todo[1::2], strict=True))
                if len(todo) > 1
                else [(todo[0], todo[0])]
            )
            merged = []
            for a, b in pairs:
                keep = ", ".join(f"i32 {p if not p & bit else w + p}" for p in range(w))
                swap = ", ".join(
                    f"i32 {p ^ bit if not p & bit else w + (p ^ bit)}" for p in range(w)
                )
                x = Value(self.let(f"shufflevector {a}, {b}, <{w} x i32> <{keep}>"), a.dtype, w)
                y = Value(self.let(f"shufflevector {a}, {b}, <{w} x i32> <{swap}>"), a.dtype, w)
                merged.append(self.combine(op, x, y))
            todo, bit = merged, bit * 2
        n = scope.at[axis].count
        for i in range(0, len(order), n):
            picks = ", ".join(f"i32 {i + j}" for j in range(n))
            row = Value(
                self.let(f"shufflevector {todo[0]}, {todo[0].type} poison, <{n} x i32> <{picks}>"),
                todo[0].dtype,
                n,
            )
            coords = dict(zip(self.tile, order[i], strict=True))
            here = replace(
                scope, lane=(axis,), width=n, valid=n, memo={}, coords={**coords, axis: 0}
            )
            self.store(self.nest.store, self.finish(row, here), here)

    # ---------- the whole text ----------

    def text(self) -> str:
        """Globals, the entry that unpacks the arguments, the body; pointers do not alias."""
        params = ", ".join(f"ptr noalias %p{s}" for s in self.slots)
        entry = [f"define void @{self.name}(ptr %args, i64 %chunk) nounwind {{"]
        for i, s in enumerate(self.slots):
            entry += [
                f"  %a{s} = getelementptr i64, ptr %args, i64 {i}",
                f"  %p{s} = load ptr, ptr %a{s}",
            ]
        given = ", ".join(f"ptr %p{s}" for s in self.slots)
        for i in range(len(self.variables)):
            params, given = f"{params}, i64 %n{i}", f"{given}, i64 %n{i}"
            entry += [
                f"  %w{i} = getelementptr i64, ptr %args, i64 {len(self.slots) + i}",
                f"  %n{i} = load i64, ptr %w{i}",
            ]
        entry += [f"  call void @{self.name}.body({given}, i64 %chunk)", "  ret void", "}"]
        body = [
            f"define internal void @{self.name}.body({params}, i64 %chunk) noinline nounwind {{",
            "entry:",
            *self.allocas,
            *self.lines,
            "}",
        ]
        return "\n".join([*self.globals.values(), *sorted(self.declared), *entry, *body, ""])


def zero_where(node: Node, mask: Mask) -> bool:
    """Is the value zero in every lane that the mask forbids, thanks to a masked load?

    A product is, if no factor divides there: the reciprocal of a masked load is infinite, and 0
    times that is NaN. Then the sum itself has to be masked."""
    if node.op == "load":
        return any(
            m.axes == mask.axes and not (m.table & ~mask.table).any() for m in node.arg.masks
        )
    if node.op == "mul":
        return any(zero_where(s, mask) for s in node.src) and not any(
            n.op in DIVIDES for n in node.walk()
        )
    return node.op == "cast" and zero_where(node.src[0], mask)


DIVIDES = {"reciprocal", "fdiv", "log2", "pow"}  # what makes infinity of a zero


def emit(plan: Plan, name: str, slots: tuple[int, ...], variables: tuple[str, ...] = ()) -> str:
    """The LLVM IR of a plan: `void name(ptr args, i64 chunk)`. `args` are the buffers' addresses,
    then the variables."""
    return Emitter(plan, name, slots, variables).run()
