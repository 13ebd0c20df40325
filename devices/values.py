"""Values of expressions: addresses, masks, loads and stores, conversions, and a row per operation.

`ev` evaluates a node once per coordinate that it depends on, which is all there is to fusion: in a
tile of 16 rows x 2 vectors, `x[row, k]` is made 16 times, `w[k, lane]` twice, their product 32.
Nothing is loaded that the original expression would not load: past an edge there is a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import Ops

from tgx.devices.exp2 import exp2
from tgx.devices.model import Pack, body_of, dependence, strides
from tgx.devices.nest import Access, Affine, Mask, Miss, Node
from tgx.devices.plan import Plan
from tgx.devices.writer import (
    TYPES,
    Block,
    Scope,
    Value,
    Writer,
    literal,
    mangle,
    memory,
    short,
    splat_literal,
    vector,
)


class Values(Writer):
    """A Writer that knows the nest: what every node is worth at a place in it."""

    def __init__(self, plan: Plan, name: str, variables: tuple[str, ...] = ()) -> None:
        super().__init__(name)
        self.variables = variables
        self.plan, self.nest = plan, plan.nest
        self.deps = dependence(self.nest)
        self.red, self.body = self.nest.reduction, body_of(self.nest)
        self.tile = dict(plan.tile)
        self.inside = False  # in the summed body?
        self.packed: dict[Node, tuple[str, Pack]] = {}  # copies that are ready, and how they lie

    # ---------- where things are ----------

    def offset_of(self, axis: str, scope: Scope) -> int:
        """The compile-time part of an axis's position."""
        block = scope.at[axis]
        return block.offset + scope.coords.get(axis, 0)

    def address(self, index: Affine, scope: Scope, here: tuple[str, ...] = ()) -> tuple[str, int]:
        """An index as (run-time part, constant). The lane axes contribute their first lane.

        Axes in `here` count from their own block: only the place inside the tile matters."""
        const, parts = index.const, []
        if here:
            at = {a: Block(None, 0, b.count) if a in here else b for a, b in scope.at.items()}
            scope = replace(scope, at=at)
        n = self.nest.size(scope.lane[1]) if len(scope.lane) == 2 else 1
        for axis, coef in index.terms:
            if len(scope.lane) == 2 and axis == scope.lane[1]:
                continue
            if axis == (scope.lane[0] if scope.lane else None):
                if axis in scope.at and scope.at[axis].base is not None:
                    base = scope.at[axis].base
                    parts.append(
                        self.let(f"mul nsw i64 {base}, {coef}")
                        if n == 1
                        else self.let(
                            f"mul nsw i64 {self.let(f'sdiv exact i64 {base}, {n}')}, {coef}"
                        )
                    )
                const += coef * (
                    (scope.at[axis].offset + scope.unit * scope.width) // n
                    + scope.coords.get(axis, 0)
                )
                continue
            if scope.at[axis].base is not None:
                parts.append(self.let(f"mul nsw i64 {scope.at[axis].base}, {coef}"))
            const += coef * self.offset_of(axis, scope)
        for variable, coef in index.variables:
            parts.append(self.let(f"mul nsw i64 {self.variable(variable)}, {coef}"))
        total = "0"
        for i, part in enumerate(parts):
            total = part if i == 0 else self.let(f"add nsw i64 {total}, {part}")
        return total, const

    def variable(self, name: str) -> str:
        """A variable's value: the entry passes them on in the order of `variables`."""
        return f"%n{self.variables.index(name)}"

    def pointer(self, access: Access, scope: Scope, extra: int = 0) -> str:
        return self.place(f"%p{access.slot}", memory(access.dtype), access.index, scope, extra)

    def place(
        self,
        name: str,
        kind: str,
        index: Affine,
        scope: Scope,
        extra: int = 0,
        here: tuple[str, ...] = (),
    ) -> str:
        """The address of an element of the array `name`."""
        key = ("address", name, index, tuple(sorted(scope.coords.items())), scope.unit)
        if key not in scope.memo:
            base, const = self.address(index, scope, here)
            scope.memo[key] = Value(base, dtypes.int64, const)
        where = scope.memo[key]
        if where.name != "0":
            gep = ("gep", name, where.name)
            if gep not in scope.memo:
                scope.memo[gep] = Value(
                    self.let(f"getelementptr {kind}, ptr {name}, i64 {where.name}"), dtypes.int64
                )
            name = scope.memo[gep].name
        if where.lanes + extra:
            name = self.let(f"getelementptr {kind}, ptr {name}, i64 {where.lanes + extra}")
        return name

    # ---------- masks ----------

    def valid_lanes(self, scope: Scope) -> int:
        """How many lanes of the current vector are inside the axis."""
        return max(0, min(scope.width, scope.valid - scope.unit * scope.width))

    def mask_of(self, masks: tuple[Mask, ...], scope: Scope, inside: bool) -> Value | None:
        """All masks together as i1 or <W x i1>; None where they cannot fail."""
        total: Value | None = None
        for m in masks:
            lanes = any(a in m.axes for a in scope.lane)
            if m.implied and inside and not lanes:
                continue
            total = self.both(total, self.mask_lookup(m, scope, lanes))
        return total

    def mask_lookup(self, m: Mask, scope: Scope, lanes: bool, spots: tuple[int, ...] = ()) -> Value:
        """A mask at the place of the scope: one bit, or a word with one bit for each lane.

        `spots` moves the bit of each lane (-1: nowhere) to where a load finds its element."""
        others = [a for a in m.axes if a not in scope.lane]
        key = (
            "mask",
            m.axes,
            m.key,
            spots,
            scope.unit if lanes else 0,
            tuple(scope.coords.get(a, 0) for a in others),
        )
        if key in scope.memo:
            return scope.memo[key]
        row, const = "0", 0
        shape = [self.nest.size(a) for a in others]
        parts: list[str] = []
        for i, a in enumerate(others):
            scale = math.prod(shape[i + 1 :])
            if scope.at[a].base is not None:
                parts.append(self.let(f"mul nsw i64 {scope.at[a].base}, {scale}"))
            const += scale * self.offset_of(a, scope)
        for i, p in enumerate(parts):
            row = p if i == 0 else self.let(f"add nsw i64 {row}, {p}")
        if not lanes:
            grid = m.table.reshape(-1)
            name = self.table((m.axes, m.key, 1), "i8", [int(x) for x in grid])
            index = self.let(f"add nsw i64 {row}, {const}")
            at = self.let(f"getelementptr i8, ptr {name}, i64 {index}")
            value = Value(self.let(f"icmp ne i8 {self.let(f'load i8, ptr {at}')}, 0"), dtypes.bool)
        else:
            (axis,) = scope.lane
            w = scope.width
            grid = m.table.transpose([*[m.axes.index(a) for a in others], m.axes.index(axis)])
            grid = grid.reshape(-1, grid.shape[-1])
            units = -(-grid.shape[1] // w)
            padded = np.zeros((grid.shape[0], units * w), np.int64)
            padded[:, : grid.shape[1]] = grid
            place = np.array(spots or range(w))
            weights = np.where(place >= 0, 1 << np.maximum(place, 0), 0)
            words = (padded.reshape(-1, units, w) * weights).sum(2).reshape(-1)
            bits = max(8, w)
            name = self.table((m.axes, m.key, w, axis, spots), f"i{bits}", [int(x) for x in words])
            block = scope.at[axis]
            if block.offset % w or scope.coords.get(axis):
                raise Miss("a mask is not aligned with the lanes")
            index = (
                row
                if units == 1
                else self.let(f"mul nsw i64 {row}, {units}")
                if row != "0"
                else row
            )
            if block.base is not None:
                unit = self.let(f"sdiv exact i64 {block.base}, {w}")
                index = self.let(f"add nsw i64 {index}, {unit}")
            index = self.let(
                f"add nsw i64 {index}, {const * units + block.offset // w + scope.unit}"
            )
            at = self.let(f"getelementptr i{bits}, ptr {name}, i64 {index}")
            word = self.let(f"load i{bits}, ptr {at}")
            if bits != w:
                word = self.let(f"trunc i{bits} {word} to i{w}")
            value = Value(self.let(f"bitcast i{w} {word} to <{w} x i1>"), dtypes.bool, w)
        scope.memo[key] = value
        return value

    def both(self, a: Value | None, b: Value | None) -> Value | None:
        if a is None or b is None:
            return a if b is None else b
        lanes = max(a.lanes, b.lanes)
        a, b = self.widen(a, lanes), self.widen(b, lanes)
        return Value(self.let(f"and {a}, {b.name}"), dtypes.bool, lanes)

    def tail(self, scope: Scope) -> Value | None:
        """The mask of the lanes that exist, where not all do."""
        n = self.valid_lanes(scope)
        if n == scope.width or not scope.lane:
            return None
        bits = ", ".join(f"i1 {'true' if i < n else 'false'}" for i in range(scope.width))
        return Value(f"<{bits}>", dtypes.bool, scope.width)

    # ---------- values ----------

    def widen(self, v: Value, lanes: int) -> Value:
        if v.lanes == lanes:
            return v
        kind = TYPES[v.dtype]
        if not v.name.startswith("%"):
            return Value(splat_literal(kind, lanes, v.name), v.dtype, lanes)
        one = self.let(f"insertelement <{lanes} x {kind}> poison, {kind} {v.name}, i64 0")
        return Value(
            self.let(
                f"shufflevector <{lanes} x {kind}> {one}, <{lanes} x {kind}> poison, "
                f"<{lanes} x i32> zeroinitializer"
            ),
            v.dtype,
            lanes,
        )

    def ev(self, node: Node, scope: Scope) -> Value:
        """The value of a node at the coordinates of the scope."""
        deps = self.deps[node]
        lanes = any(a in deps for a in scope.lane)
        key = (
            node,
            tuple(scope.coords.get(a, 0) for a in self.tile if a in deps),
            scope.unit if lanes else -1,
        )
        if key not in scope.memo:
            scope.memo[key] = self.make(node, scope, lanes)
        return scope.memo[key]

    def make(self, node: Node, scope: Scope, lanes: bool) -> Value:
        w = scope.width if lanes else 1
        if node in self.packed:
            return self.copied(node, scope, lanes)
        if node.op == "const":
            return Value(literal(node.arg, node.dtype), node.dtype)
        if node.op == "load":
            return self.load(node.arg, scope, lanes)
        if node.op == "index":
            base, const = self.address(node.arg, scope)
            kind = TYPES[node.dtype]
            if base != "0" and kind != "i64":
                base = self.let(f"trunc i64 {base} to {kind}")
            v = Value(self.let(f"add {kind} {base}, {const}"), node.dtype)
            if not lanes:
                return v
            v = self.widen(v, w)
            steps = ", ".join(f"{kind} {x}" for x in strides(node.arg, scope.lane, self.nest, w))
            return Value(self.let(f"add {v}, <{steps}>"), node.dtype, w)
        if node.op == "mask":
            return self.mask_of(node.arg, scope, self.inside) or Value("true", dtypes.bool)
        if node.op == "sum":
            raise Miss("a sum where none was planned")
        args = [self.ev(s, scope) for s in node.src]
        w = max(a.lanes for a in args)
        if node.op == "where" and args[0].lanes == 1:
            args = [args[0], *[self.widen(a, w) for a in args[1:]]]
        else:
            args = [self.widen(a, w) for a in args]
        return self.apply(node, args, w)

    def apply(self, node: Node, args: list[Value], w: int) -> Value:
        """One operation on values of equal width."""
        dtype, a = node.dtype, args[0]
        if any(x.dtype is dtypes.bfloat16 for x in args) and node.op not in (
            "cast",
            "bitcast",
            "where",
        ):
            # no CPU adds bfloat16: every step in float, rounded back
            wide = [self.cast(x, dtypes.float32) if x.dtype is dtypes.bfloat16 else x for x in args]
            kind = dtypes.float32 if dtype is dtypes.bfloat16 else dtype
            return self.cast(self.apply(Node(node.op, kind), wide, w), dtype)
        if node.op in ("cast", "bitcast"):
            return (
                self.cast(a, dtype)
                if node.op == "cast"
                else Value(self.let(f"bitcast {a} to {vector(TYPES[dtype], w)}"), dtype, w)
            )
        if node.op == "where":
            return Value(self.let(f"select {a}, {args[1]}, {args[2]}"), dtype, w)
        if node.op in DIVISIONS and not (
            node.src and node.src[1].op == "const" and node.src[1].arg > 0
        ):
            raise Miss("integer division by what may be zero")
        if (row := OPS.get(node.op)) is None:
            raise Miss(f"no row for {node.op}")
        return Value(row(self, node, args), dtype, w)

    def cast(self, v: Value, to: DType) -> Value:
        """C's conversions."""
        src, dst = v.dtype, to
        kind = vector(TYPES[dst], v.lanes)
        if src is dst:
            return v
        if dtypes.bfloat16 in (src, dst):
            return self.cast_bfloat(v, dst)
        if src is dtypes.float64 and dst is dtypes.half:  # LLVM would call a library
            return self.cast(self.cast(v, dtypes.float32), dst)
        if sf_to_u64(src, dst):
            raise Miss("a float becomes uint64")
        sf, df = dtypes.is_float(src), dtypes.is_float(dst)
        if dst is dtypes.bool:
            zero = splat_literal(TYPES[src], v.lanes, literal(0, src))
            return Value(self.let(f"{'fcmp une' if sf else 'icmp ne'} {v}, {zero}"), dst, v.lanes)
        if sf and df:
            if TYPES[src] == TYPES[dst]:
                return Value(v.name, dst, v.lanes)
            op = "fpext" if dst.itemsize > src.itemsize else "fptrunc"
        elif sf:  # saturate, then cut to width: defined for every number, as in renderer.py
            wide = (
                dst
                if dst in (dtypes.int32, dtypes.int64)
                else (dtypes.int64 if dst.itemsize >= 4 else dtypes.int32)
            )
            as_wide = Value("", wide, v.lanes)
            to_wide = vector(TYPES[wide], v.lanes)
            whole = Value(
                self.let(self.call(f"{to_wide} @llvm.fptosi.sat.{short(as_wide)}.{short(v)}({v})")),
                wide,
                v.lanes,
            )
            return self.cast(whole, dst)
        elif df:
            op = "uitofp" if src in dtypes.uints or src is dtypes.bool else "sitofp"
        elif TYPES[src] == TYPES[dst]:
            return Value(v.name, dst, v.lanes)
        elif dst.itemsize < src.itemsize and src is not dtypes.bool:
            op = "trunc"
        else:
            op = "zext" if src in dtypes.uints or src is dtypes.bool else "sext"
        return Value(self.let(f"{op} {v} to {kind}"), dst, v.lanes)

    def cast_bfloat(self, v: Value, dst: DType) -> Value:
        """bfloat16 is the upper half of a float, rounded to nearest even."""
        n = v.lanes
        bits, half = vector("i32", n), vector("i16", n)

        def word(x: int) -> str:
            return splat_literal("i32", n, str(x))

        if v.dtype is dtypes.bfloat16:
            wide = self.let(f"shl {bits} {self.let(f'zext {v} to {bits}')}, {word(16)}")
            return self.cast(
                Value(
                    self.let(f"bitcast {bits} {wide} to {vector('float', n)}"), dtypes.float32, n
                ),
                dst,
            )
        v = self.cast(v, dtypes.float32)
        x = self.let(f"bitcast {v} to {bits}")
        odd = self.let(f"and {bits} {self.let(f'lshr {bits} {x}, {word(16)}')}, {word(1)}")
        up = self.let(f"add {bits} {self.let(f'add {bits} {x}, {word(0x7FFF)}')}, {odd}")
        nan = self.let(f"fcmp uno {v}, {v.name}")
        quiet = self.let(f"or {bits} {x}, {word(0x400000)}")
        up = self.let(f"select {vector('i1', n)} {nan}, {bits} {quiet}, {bits} {up}")
        high = self.let(f"lshr {bits} {up}, {word(16)}")
        return Value(self.let(f"trunc {bits} {high} to {half}"), dtypes.bfloat16, n)

    # ---------- memory ----------

    def load(self, access: Access, scope: Scope, lanes: bool) -> Value:
        mask = self.mask_of(access.masks, scope, self.inside)
        kind = memory(access.dtype)
        if not lanes:
            at = self.pointer(access, scope)
            if mask is not None:  # a safe place to read from where the gate is closed
                safe = self.table(("zero", kind), "i64", [0])
                at = self.let(f"select i1 {mask.name}, ptr {at}, ptr {safe}")
            name = self.let(f"load {kind}, ptr {at}, align {access.dtype.itemsize}")
            if mask is not None:
                zero = "zeroinitializer" if kind != "i8" else "0"
                zero = literal(0, access.dtype) if kind == TYPES[access.dtype] else zero
                name = self.let(f"select i1 {mask.name}, {kind} {name}, {kind} {zero}")
            return self.from_memory(name, access.dtype, 1)
        w, n = scope.width, self.valid_lanes(scope)
        offsets = strides(access.index, scope.lane, self.nest, w)[:n]
        low, high = min(offsets), max(offsets)
        if offsets == list(range(n)) and any(access.index[a] for a in scope.lane):
            mask = self.both(mask, self.tail(scope))
            return self.from_memory(
                self.vector_load(access.dtype.itemsize, self.pointer(access, scope), w, mask, kind),
                access.dtype,
                w,
            )
        elif (
            high - low < 2 * w - (n < w)
            and high > low
            and len(set(offsets)) == n
            and (mask is None or len(scope.lane) == 1)
        ) or (mask is None and high - low < 2 * w - (n < w)):
            return self.shuffled(access, scope, offsets, low, high)
        mask = self.widen(self.both(mask, self.tail(scope)) or Value("true", dtypes.bool), w)
        at = self.pointer(access, scope)
        words = ", ".join(f"i64 {o}" for o in offsets + [offsets[0]] * (w - n))
        many = self.let(f"getelementptr {kind}, ptr {at}, <{w} x i64> <{words}>")
        name = self.let(
            self.call(
                f"<{w} x {kind}> @llvm.masked.gather.v{w}{mangle(kind)}.v{w}p0("
                f"<{w} x ptr> align {access.dtype.itemsize} {many}, "
                f"{mask}, <{w} x {kind}> zeroinitializer)"
            )
        )
        return self.from_memory(name, access.dtype, w)

    def shuffled(
        self, access: Access, scope: Scope, offsets: list[int], low: int, high: int
    ) -> Value:
        """Lanes that lie close but not in a row (stride 2, reversed, repeated): load all, pick."""
        w, kind, parts = scope.width, memory(access.dtype), []
        span = high - low + 1
        for first in range(0, span, w):
            n = min(w, span - first)
            mask = (
                None
                if n == w
                else Value(
                    "<" + ", ".join(f"i1 {'true' if i < n else 'false'}" for i in range(w)) + ">",
                    dtypes.bool,
                    w,
                )
            )
            spots = tuple(o - low - first if 0 <= o - low - first < w else -1 for o in offsets)
            spots += (-1,) * (w - len(offsets))
            for m in access.masks:  # a lane's bit goes to where its element lies
                lanes = any(a in m.axes for a in scope.lane)
                if lanes or not (m.implied and self.inside):
                    mask = self.both(
                        mask, self.mask_lookup(m, scope, lanes, spots if lanes else ())
                    )
            parts.append(
                self.vector_load(
                    access.dtype.itemsize, self.pointer(access, scope, low + first), w, mask, kind
                )
            )
        # lanes past the end are zero: from the empty half, or from a lane that was masked off
        other = parts[1] if len(parts) > 1 else "zeroinitializer"
        picks = ", ".join(
            [f"i32 {o - low}" for o in offsets]
            + [f"i32 {2 * w - 1 if len(parts) > 1 else w}"] * (w - len(offsets))
        )
        name = self.let(
            f"shufflevector <{w} x {kind}> {parts[0]}, <{w} x {kind}> {other}, "
            f"<{w} x i32> <{picks}>"
        )
        return self.from_memory(name, access.dtype, w)

    def copied(self, node: Node, scope: Scope, lanes: bool) -> Value:
        """A factor from its packed copy, whose lanes lie in a row."""
        name, pack = self.packed[node]
        kind, align = memory(node.dtype), node.dtype.itemsize
        index, here = Affine.of(0, dict(pack.strides)), self.plan.loops[: pack.level]
        at = self.place(name, kind, index, scope, here=here)
        if not lanes:
            return Value(self.let(f"load {kind}, ptr {at}, align {align}"), node.dtype)
        w = scope.width
        return Value(self.vector_load(align, at, w, self.tail(scope), kind), node.dtype, w)

    def vector_load(self, align: int, at: str, w: int, mask: Value | None, kind: str) -> str:
        if mask is None:
            return self.let(f"load <{w} x {kind}>, ptr {at}, align {align}")
        mask = self.widen(mask, w)
        return self.let(
            self.call(
                f"<{w} x {kind}> @llvm.masked.load.v{w}{mangle(kind)}.p0(ptr align {align} {at}, "
                f"{mask}, <{w} x {kind}> zeroinitializer)"
            )
        )

    def from_memory(self, name: str, dtype: DType, w: int) -> Value:
        if dtype is dtypes.bool:
            name = self.let(f"icmp ne {vector('i8', w)} {name}, {splat_literal('i8', w, '0')}")
        return Value(name, dtype, w)

    def store(self, access: Access, value: Value, scope: Scope) -> None:
        w = scope.width if scope.lane else 1
        value = self.widen(value, w)
        kind, align = memory(access.dtype), access.dtype.itemsize
        name = value.name
        if access.dtype is dtypes.bool:
            name = self.let(f"zext {value} to {vector('i8', w)}")
        mask = self.mask_of(access.masks, scope, False)
        at = self.pointer(access, scope)
        if w == 1:
            if mask is not None:
                self.count += 1
                n = self.count
                self.emit(f"br i1 {mask.name}, label %do{n}, label %skip{n}")
                self.start(f"do{n}")
            self.emit(f"store {kind} {name}, ptr {at}, align {align}")
            if mask is not None:
                self.branch(f"skip{n}")
            return
        if mask is None and self.valid_lanes(scope) == 1:
            # not a vector store of one lane: LLVM 22, where the value is a truncation, writes that
            # lane in the width before (a bfloat16 as four bytes)
            one = self.let(f"extractelement <{w} x {kind}> {name}, i64 0")
            self.emit(f"store {kind} {one}, ptr {at}, align {align}")
            return
        offsets = strides(access.index, scope.lane, self.nest, w)
        mask = self.both(mask, self.tail(scope))
        if offsets == list(range(w)):
            if mask is None:
                self.emit(f"store <{w} x {kind}> {name}, ptr {at}, align {align}")
            else:
                mask = self.widen(mask, w)
                self.emit(
                    self.call(
                        f"void @llvm.masked.store.v{w}{mangle(kind)}.p0(<{w} x {kind}> {name}, "
                        f"ptr align {align} {at}, {mask})"
                    )
                )
            return
        mask = self.widen(mask or Value("true", dtypes.bool), w)
        words = ", ".join(f"i64 {o}" for o in offsets)
        many = self.let(f"getelementptr {kind}, ptr {at}, <{w} x i64> <{words}>")
        self.emit(
            self.call(
                f"void @llvm.masked.scatter.v{w}{mangle(kind)}.v{w}p0(<{w} x {kind}> {name}, "
                f"<{w} x ptr> align {align} {many}, {mask})"
            )
        )

    def fma(self, a: Value, b: Value, c: Value) -> str:
        return self.let(self.call(f"{c.type} @llvm.fmuladd.{short(c)}({a}, {b}, {c})"))

    def combine(self, op: Ops, a: Value, b: Value) -> Value:
        node = Node(op.name.lower(), a.dtype)
        return self.apply(node, [a, b], a.lanes)


def sf_to_u64(src: DType, dst: DType) -> bool:
    return dtypes.is_float(src) and dst is dtypes.uint64


# ***************************** operations *****************************


def _binary(
    floats: str, signed: str, unsigned: str | None = None
) -> Callable[[Values, Node, list[Value]], str]:
    def row(e: Values, node: Node, args: list[Value]) -> str:
        d = args[0].dtype
        op = (
            floats
            if dtypes.is_float(d)
            else (unsigned or signed)
            if d in dtypes.uints or d is dtypes.bool
            else signed
        )
        if d is dtypes.bool and op == "add":  # of bits, the machine's addition is exclusive or
            op = "or"
        if not op:
            raise Miss(f"{node.op} of {d.name}")
        b = args[1]
        if TYPES[b.dtype] != TYPES[d]:  # a shift's count may have another width
            b = e.cast(b, d)
        return e.let(f"{op} {args[0]}, {b.name}")

    return row


def _call(name: str) -> Callable[[Values, Node, list[Value]], str]:
    def row(e: Values, node: Node, args: list[Value]) -> str:
        if not dtypes.is_float(args[0].dtype):
            raise Miss(f"{node.op} of {args[0].dtype.name}")
        return e.let(e.call(f"{args[0].type} @llvm.{name}.{short(args[0])}({args[0]})"))

    return row


def _max(e: Values, node: Node, args: list[Value]) -> str:
    """The larger of two; NaN wins, as in NumPy. Against a constant one comparison does it."""
    a, b = args
    if not dtypes.is_float(a.dtype):
        if a.dtype is dtypes.bool:
            return e.let(f"or {a}, {b.name}")
        name = "umax" if a.dtype in dtypes.uints else "smax"
        return e.let(e.call(f"{a.type} @llvm.{name}.{short(a)}({a}, {b})"))
    if node.src and node.src[0].op == "const" and node.src[0].arg == node.src[0].arg:
        test = e.let(f"fcmp olt {b}, {a.name}")
        return e.let(f"select {vector('i1', a.lanes)} {test}, {a}, {b}")
    return e.let(
        e.call(f"{a.type} @llvm.maximum.{short(a)}({a}, {b})").replace("call", "call nsz", 1)
    )


def _reciprocal(e: Values, node: Node, args: list[Value]) -> str:
    a = args[0]
    return e.let(
        f"fdiv {a.type} {splat_literal(TYPES[a.dtype], a.lanes, literal(1.0, a.dtype))}, {a.name}"
    )


def _exp2(e: Values, node: Node, args: list[Value]) -> str:
    return exp2(args[0].name, args[0].lanes, e.let, e.call)


def _neg(e: Values, node: Node, args: list[Value]) -> str:
    a = args[0]
    if dtypes.is_float(a.dtype):
        return e.let(f"fneg {a}")
    return e.let(f"sub {a.type} {splat_literal(TYPES[a.dtype], a.lanes, '0')}, {a.name}")


def _mulacc(e: Values, node: Node, args: list[Value]) -> str:
    return e.fma(*args)


def _floor(quotient: bool) -> Callable[[Values, Node, list[Value]], str]:
    """Division that rounds down, from the machine's, which rounds to zero."""

    def row(e: Values, node: Node, args: list[Value]) -> str:
        a, b = args
        if a.dtype in dtypes.uints or a.dtype is dtypes.bool:
            return e.let(f"{'udiv' if quotient else 'urem'} {a}, {b.name}")
        kind = TYPES[a.dtype]
        zero = splat_literal(kind, a.lanes, "0")
        r = Value(e.let(f"srem {a}, {b.name}"), a.dtype, a.lanes)
        signs = Value(e.let(f"xor {r}, {b.name}"), a.dtype, a.lanes)
        bits = vector("i1", a.lanes)
        off = e.let(
            f"and {bits} {e.let(f'icmp ne {r}, {zero}')}, {e.let(f'icmp slt {signs}, {zero}')}"
        )
        fix = e.let(f"{'sext' if quotient else 'zext'} {bits} {off} to {a.type}")
        if quotient:
            return e.let(f"add {a.type} {e.let(f'sdiv {a}, {b.name}')}, {fix}")
        return e.let(f"add {a.type} {r.name}, {e.let(f'mul {a.type} {fix}, {b.name}')}")

    return row


DIVISIONS = ("cdiv", "cmod", "floordiv", "floormod")

OPS: dict[str, Callable[[Values, Node, list[Value]], str]] = {
    "add": _binary("fadd", "add"),
    "sub": _binary("fsub", "sub"),
    "mul": _binary("fmul", "mul"),
    "fdiv": _binary("fdiv", ""),
    "cdiv": _binary("", "sdiv", "udiv"),
    "cmod": _binary("", "srem", "urem"),
    "floordiv": _floor(True),
    "floormod": _floor(False),
    "and": _binary("", "and"),
    "or": _binary("", "or"),
    "xor": _binary("", "xor"),
    "shl": _binary("", "shl"),
    "shr": _binary("", "ashr", "lshr"),
    "cmplt": _binary("fcmp olt", "icmp slt", "icmp ult"),
    "cmpne": _binary("fcmp une", "icmp ne"),
    "cmpeq": _binary("fcmp oeq", "icmp eq"),
    "max": _max,
    "reciprocal": _reciprocal,
    "neg": _neg,
    "sqrt": _call("sqrt"),
    "exp2": _exp2,
    "trunc": _call("trunc"),
    "mulacc": _mulacc,
}
