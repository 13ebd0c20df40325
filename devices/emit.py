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
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from tinygrad.dtype import DType, dtypes, truncate
from tinygrad.uop.ops import Ops

from tgx.devices.nest import Access, Affine, Mask, Miss, Nest, Node
from tgx.devices.plan import Pack, Plan, body_of, bounds, dependence, strides

TYPES: dict[DType, str] = {
    dtypes.bool: "i1", dtypes.int8: "i8", dtypes.uint8: "i8", dtypes.int16: "i16",
    dtypes.uint16: "i16", dtypes.int32: "i32", dtypes.uint32: "i32", dtypes.int64: "i64",
    dtypes.uint64: "i64", dtypes.half: "half", dtypes.bfloat16: "i16", dtypes.float32: "float",
    dtypes.float64: "double"}
SUFFIX = {"half": "f16", "float": "f32", "double": "f64"}


def literal(value: object, dtype: DType) -> str:
    """A constant as LLVM reads it: floats as the bits of a double."""
    if dtype is dtypes.bool:
        return "true" if value else "false"
    if dtypes.is_float(dtype):
        number = float(value)  # type: ignore[arg-type]
        if dtype is dtypes.half:
            number = float(np.float16(number))
            return f"0xH{int(np.array(number, np.float16).view(np.uint16)):04X}"
        if dtype is dtypes.bfloat16:
            bits = struct.unpack("I", struct.pack("f", float(np.float32(number))))[0]
            if math.isfinite(number):
                bits += 0x7FFF + ((bits >> 16) & 1)
            return str((bits >> 16) & 0xFFFF)
        if dtype is dtypes.float32:
            with np.errstate(over="ignore"):
                number = float(np.float32(number))
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    return str(int(truncate[dtype](int(value))))  # type: ignore[call-overload]


def identity(op: Ops, dtype: DType) -> str:
    """The value that a reduction starts from."""
    if op is Ops.ADD:
        return literal(0, dtype)
    if op is Ops.MUL:
        return literal(1, dtype)
    return literal(-math.inf if dtypes.is_float(dtype) else dtype.min, dtype)


@dataclass(frozen=True)
class Value:
    """An SSA name (or literal), its dtype, and how many lanes it has (1: a scalar)."""
    name: str
    dtype: DType
    lanes: int = 1

    @property
    def type(self) -> str:
        return vector(TYPES[self.dtype], self.lanes)

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


def vector(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"<{lanes} x {kind}>"


def splat_literal(kind: str, lanes: int, word: str) -> str:
    """`<i64 3, i64 3>`, or just the word for a scalar."""
    return word if lanes == 1 else "<" + ", ".join([f"{kind} {word}"] * lanes) + ">"


@dataclass
class Block:
    """Where along one axis the code is: a run-time base, and how many points follow."""
    base: str | None
    offset: int
    count: int


@dataclass
class Scope:
    """What is known at one point of the emission."""
    at: dict[str, Block]  # axis -> where
    lane: tuple[str, ...]
    width: int
    valid: int = 0  # points of the lane axis in this tile
    coords: dict[str, int] = field(default_factory=dict)  # tile axis -> row
    unit: int = 0  # which vector
    memo: dict[tuple, Value] = field(default_factory=dict)  # type: ignore[type-arg]


class Emitter:
    def __init__(self, plan: Plan, name: str, slots: tuple[int, ...]) -> None:
        self.plan, self.nest, self.name, self.slots = plan, plan.nest, name, slots
        self.lines: list[str] = []
        self.globals: dict[object, str] = {}
        self.allocas: list[str] = []
        self.declared: set[str] = set()
        self.count = 0
        self.label = "entry"
        self.deps = dependence(self.nest)
        self.red, self.body = self.nest.reduction, body_of(self.nest)
        self.tile = dict(plan.tile)
        self.inside = False  # in the summed body?
        self.packed: dict[Access, tuple[str, Pack]] = {}  # copies that are ready: where, and how they lie

    # ---------- writing lines ----------

    def new(self, prefix: str = "v") -> str:
        self.count += 1
        return f"%{prefix}{self.count}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def let(self, expression: str, prefix: str = "v") -> str:
        name = self.new(prefix)
        self.emit(f"{name} = {expression}")
        return name

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.label = label

    def branch(self, label: str) -> None:
        self.emit(f"br label %{label}")
        self.start(label)

    def table(self, key: object, kind: str, words: list[int]) -> str:
        if key not in self.globals:
            name = f"@{self.name}.t{len(self.globals)}"
            self.globals[key] = (f"{name} = private unnamed_addr constant [{len(words)} x {kind}] "
                                 f"[{', '.join(f'{kind} {w}' for w in words)}]")
        return self.globals[key].split(" ", 1)[0]

    def call(self, signature: str) -> str:
        """A call of an intrinsic: declared on first use."""
        head, args = signature.split("(", 1)
        kinds, depth, word = [], 0, ""
        for c in args[:-1]:
            depth += c in "<[({"
            depth -= c in ">])}"
            if c == "," and not depth:
                kinds.append(word)
                word = ""
            else:
                word += c
        kinds.append(word)
        types = [k.strip()[:k.strip().index(">") + 1] if k.strip().startswith("<") else k.split()[0]
                 for k in kinds]
        self.declared.add(f"declare {head}({', '.join(types)})")
        return f"call {signature}"

    def loop(self, first: str, last: str, step: int, body: Callable[[str], None], guard: bool) -> None:
        """for i in range(first, last, step): body(i). `guard`: it may be empty."""
        self.count += 1
        n = self.count
        if guard:
            some = self.let(f"icmp slt i64 {first}, {last}")
            self.emit(f"br i1 {some}, label %pre{n}, label %out{n}")
        else:
            self.emit(f"br label %pre{n}")
        self.start(f"pre{n}")
        self.branch(f"loop{n}")
        at = len(self.lines)
        index = self.new("i")
        body(index)
        self.branch(f"latch{n}")
        after = self.let(f"add nuw nsw i64 {index}, {step}")
        more = self.let(f"icmp slt i64 {after}, {last}")
        self.emit(f"br i1 {more}, label %loop{n}, label %out{n}")
        self.lines.insert(at, f"  {index} = phi i64 [ {first}, %pre{n} ], [ {after}, %latch{n} ]")
        self.start(f"out{n}")

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
                    parts.append(self.let(f"mul nsw i64 {base}, {coef}") if n == 1 else
                                 self.let(f"mul nsw i64 {self.let(f'sdiv exact i64 {base}, {n}')}, {coef}"))
                const += coef * ((scope.at[axis].offset + scope.unit * scope.width) // n
                                 + scope.coords.get(axis, 0))
                continue
            if scope.at[axis].base is not None:
                parts.append(self.let(f"mul nsw i64 {scope.at[axis].base}, {coef}"))
            const += coef * self.offset_of(axis, scope)
        total = "0"
        for i, part in enumerate(parts):
            total = part if i == 0 else self.let(f"add nsw i64 {total}, {part}")
        return total, const

    def pointer(self, access: Access, scope: Scope, extra: int = 0) -> str:
        key = ("address", access.slot, access.index, tuple(sorted(scope.coords.items())), scope.unit)
        name, pack = self.packed.get(access, (f"%p{access.slot}", None))
        if key not in scope.memo:
            base, const = self.address(access.index, scope) if pack is None else self.address(
                Affine.of(0, dict(pack.strides)), scope, self.plan.loops[:pack.level])
            scope.memo[key] = Value(base, dtypes.int64, const)
        where = scope.memo[key]
        kind = memory(access.dtype)
        if where.name != "0":
            gep = ("gep", name, where.name)
            if gep not in scope.memo:
                scope.memo[gep] = Value(self.let(f"getelementptr {kind}, ptr {name}, i64 {where.name}"), dtypes.int64)
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

        `spots` moves the bit of each lane elsewhere (-1: nowhere): where a load finds its element."""
        others = [a for a in m.axes if a not in scope.lane]
        key = ("mask", m.axes, m.key, spots, scope.unit if lanes else 0,
               tuple(scope.coords.get(a, 0) for a in others))
        if key in scope.memo:
            return scope.memo[key]
        row, const = "0", 0
        shape = [self.nest.size(a) for a in others]
        parts: list[str] = []
        for i, a in enumerate(others):
            scale = math.prod(shape[i + 1:])
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
            padded[:, :grid.shape[1]] = grid
            place = np.array(spots or range(w))
            weights = np.where(place >= 0, 1 << np.maximum(place, 0), 0)
            words = (padded.reshape(-1, units, w) * weights).sum(2).reshape(-1)
            bits = max(8, w)
            name = self.table((m.axes, m.key, w, axis, spots), f"i{bits}", [int(x) for x in words])
            block = scope.at[axis]
            if block.offset % w or scope.coords.get(axis):
                raise Miss("a mask is not aligned with the lanes")
            index = row if units == 1 else self.let(f"mul nsw i64 {row}, {units}") if row != "0" else row
            if block.base is not None:
                unit = self.let(f"sdiv exact i64 {block.base}, {w}")
                index = self.let(f"add nsw i64 {index}, {unit}")
            index = self.let(f"add nsw i64 {index}, {const * units + block.offset // w + scope.unit}")
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
        return Value(self.let(f"shufflevector <{lanes} x {kind}> {one}, <{lanes} x {kind}> poison, "
                              f"<{lanes} x i32> zeroinitializer"), v.dtype, lanes)

    def ev(self, node: Node, scope: Scope) -> Value:
        """The value of a node at the coordinates of the scope."""
        deps = self.deps[node]
        lanes = any(a in deps for a in scope.lane)
        key = (node, tuple(scope.coords.get(a, 0) for a in self.tile if a in deps),
               scope.unit if lanes else -1)
        if key not in scope.memo:
            scope.memo[key] = self.make(node, scope, lanes)
        return scope.memo[key]

    def make(self, node: Node, scope: Scope, lanes: bool) -> Value:
        w = scope.width if lanes else 1
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
        if any(x.dtype is dtypes.bfloat16 for x in args) and node.op not in ("cast", "bitcast", "where"):
            # no CPU adds bfloat16: every step in float, rounded back
            wide = [self.cast(x, dtypes.float32) if x.dtype is dtypes.bfloat16 else x for x in args]
            kind = dtypes.float32 if dtype is dtypes.bfloat16 else dtype
            return self.cast(self.apply(Node(node.op, kind), wide, w), dtype)
        if node.op in ("cast", "bitcast"):
            return self.cast(a, dtype) if node.op == "cast" else Value(
                self.let(f"bitcast {a} to {vector(TYPES[dtype], w)}"), dtype, w)
        if node.op == "where":
            return Value(self.let(f"select {a}, {args[1]}, {args[2]}"), dtype, w)
        if node.op in DIVISIONS and not (node.src and node.src[1].op == "const" and node.src[1].arg > 0):
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
            wide = dst if dst in (dtypes.int32, dtypes.int64) else (
                dtypes.int64 if dst.itemsize >= 4 else dtypes.int32)
            to_wide = vector(TYPES[wide], v.lanes)
            whole = Value(self.let(self.call(
                f"{to_wide} @llvm.fptosi.sat.{short(Value('', wide, v.lanes))}.{short(v)}({v})")), wide, v.lanes)
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
            return self.cast(Value(self.let(f"bitcast {bits} {wide} to {vector('float', n)}"), dtypes.float32, n), dst)
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
            return self.from_memory(self.vector_load(access, self.pointer(access, scope), w, mask, kind),
                                    access.dtype, w)
        elif high - low < 2 * w - (n < w) and high > low and len(set(offsets)) == n and (
                mask is None or len(scope.lane) == 1) or mask is None and high - low < 2 * w - (n < w):
            return self.shuffled(access, scope, offsets, low, high)
        mask = self.widen(self.both(mask, self.tail(scope)) or Value("true", dtypes.bool), w)
        at = self.pointer(access, scope)
        words = ", ".join(f"i64 {o}" for o in offsets + [offsets[0]] * (w - n))
        many = self.let(f"getelementptr {kind}, ptr {at}, <{w} x i64> <{words}>")
        name = self.let(self.call(
            f"<{w} x {kind}> @llvm.masked.gather.v{w}{mangle(kind)}.v{w}p0(<{w} x ptr> align {access.dtype.itemsize} {many}, "
            f"{mask}, <{w} x {kind}> zeroinitializer)"))
        return self.from_memory(name, access.dtype, w)

    def shuffled(self, access: Access, scope: Scope, offsets: list[int], low: int, high: int) -> Value:
        """Lanes that lie close but not in a row (stride 2, reversed, repeated): load all, pick."""
        w, kind, parts = scope.width, memory(access.dtype), []
        span = high - low + 1
        for first in range(0, span, w):
            n = min(w, span - first)
            mask = None if n == w else Value(
                "<" + ", ".join(f"i1 {'true' if i < n else 'false'}" for i in range(w)) + ">", dtypes.bool, w)
            spots = tuple(o - low - first if 0 <= o - low - first < w else -1 for o in offsets)
            spots += (-1,) * (w - len(offsets))
            for m in access.masks:  # a lane's bit goes to where its element lies
                lanes = any(a in m.axes for a in scope.lane)
                if lanes or not (m.implied and self.inside):
                    mask = self.both(mask, self.mask_lookup(m, scope, lanes, spots if lanes else ()))
            parts.append(self.vector_load(access, self.pointer(access, scope, low + first), w, mask, kind))
        # lanes past the end are zero: from the empty half, or from a lane that was masked off
        other = parts[1] if len(parts) > 1 else "zeroinitializer"
        picks = ", ".join([f"i32 {o - low}" for o in offsets]
                          + [f"i32 {2 * w - 1 if len(parts) > 1 else w}"] * (w - len(offsets)))
        name = self.let(f"shufflevector <{w} x {kind}> {parts[0]}, <{w} x {kind}> {other}, <{w} x i32> <{picks}>")
        return self.from_memory(name, access.dtype, w)

    def vector_load(self, access: Access, at: str, w: int, mask: Value | None, kind: str) -> str:
        align = access.dtype.itemsize
        if mask is None:
            return self.let(f"load <{w} x {kind}>, ptr {at}, align {align}")
        mask = self.widen(mask, w)
        return self.let(self.call(f"<{w} x {kind}> @llvm.masked.load.v{w}{mangle(kind)}.p0(ptr align {align} {at}, "
                                  f"{mask}, <{w} x {kind}> zeroinitializer)"))

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
        offsets = strides(access.index, scope.lane, self.nest, w)
        mask = self.both(mask, self.tail(scope))
        if offsets == list(range(w)):
            if mask is None:
                self.emit(f"store <{w} x {kind}> {name}, ptr {at}, align {align}")
            else:
                mask = self.widen(mask, w)
                self.emit(self.call(f"void @llvm.masked.store.v{w}{mangle(kind)}.p0(<{w} x {kind}> {name}, "
                                    f"ptr align {align} {at}, {mask})"))
            return
        mask = self.widen(mask or Value("true", dtypes.bool), w)
        words = ", ".join(f"i64 {o}" for o in offsets)
        many = self.let(f"getelementptr {kind}, ptr {at}, <{w} x i64> <{words}>")
        self.emit(self.call(f"void @llvm.masked.scatter.v{w}{mangle(kind)}.v{w}p0(<{w} x {kind}> {name}, "
                            f"<{w} x ptr> align {align} {many}, {mask})"))

    # ---------- loops ----------

    def run(self) -> str:
        plan = self.plan
        counts = [plan.blocks(a) for a in plan.loops[:plan.split]]
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
                    where[axis] = rest if axis == plan.loops[0] else self.let(f"urem i64 {rest}, {n}")
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
        """Fill a packed operand, row by row."""
        kind, w = memory(pack.access.dtype), self.plan.width
        if pack.access not in self.packed:
            name = self.new("pack")
            self.allocas.append(f"  {name} = alloca [{pack.size} x {kind}], align 64")
            self.packed[pack.access] = name, pack
        name = self.packed.pop(pack.access)[0]
        outside = self.plan.loops[:pack.level]
        *rows, (last, most) = pack.extents
        count = {a: scope.at[a].count if a in outside and a in scope.at else n for a, n in pack.extents}
        strides = dict(pack.strides)

        def row(level: int, at: dict[str, Block]) -> None:
            if level < len(rows):
                axis = rows[level][0]
                self.loop("0", str(count[axis]), 1, lambda i: row(
                    level + 1, {**at, axis: Block(i, 0, 1)}), guard=False)
                return
            full, rest = divmod(count[last], w)
            if full:
                self.loop("0", str(full * w), w, lambda i: piece({**at, last: Block(i, 0, w)}, w), guard=False)
            if rest:
                piece({**at, last: Block(None, full * w, rest)}, rest)

        def piece(at: dict[str, Block], n: int) -> None:
            base, const = self.address(pack.access.index, replace(scope, lane=(), coords={}, memo={}))
            for a, c in pack.access.index.terms:  # inner axes are not in the scope yet, outer ones are
                block = at[a]
                if block.base is not None:
                    base = self.let(f"add nsw i64 {base}, {self.let(f'mul nsw i64 {block.base}, {c}')}")
                const += block.offset * c
            source = self.let(f"getelementptr {kind}, ptr %p{pack.access.slot}, i64 {base}")
            source = self.let(f"getelementptr {kind}, ptr {source}, i64 {const}")
            to, const = "0", 0
            for a, block in at.items():
                if block.base is not None:
                    to = self.let(f"add nsw i64 {to}, {self.let(f'mul nsw i64 {block.base}, {strides[a]}')}")
                const += block.offset * strides[a]
            target = self.let(f"getelementptr {kind}, ptr {name}, i64 {to}")
            target = self.let(f"getelementptr {kind}, ptr {target}, i64 {const}")
            mask = None if n == w else Value("<" + ", ".join(
                f"i1 {'true' if i < n else 'false'}" for i in range(w)) + ">", dtypes.bool, w)
            data = self.vector_load(pack.access, source, w, mask, kind)
            self.emit(f"store <{w} x {kind}> {data}, ptr {target}, align {pack.access.dtype.itemsize}")
        inner = {a: Block(None, 0, 1) for a, _ in pack.extents if a not in scope.at}
        scope = replace(scope, at={**scope.at, **inner})
        row(0, {})
        self.packed[pack.access] = name, pack

    def tiles(self, scope: Scope) -> list[dict[str, int]]:
        """All coordinates of the register tile."""
        axes = list(self.tile)
        return [dict(zip(axes, c, strict=True))
                for c in itertools.product(*[range(scope.at[a].count) for a in axes])]

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
            for coords in self.tiles(scope):
                for unit in range(units):
                    here = replace(scope, coords=coords, unit=unit)
                    key = tuple(coords.values()), unit
                    self.finish(accs[key], here, [p[key] for p in parts])
        else:
            self.across(scope)

    def part(self, part: Nest, scope: Scope, units: int) -> dict[tuple[tuple[int, ...], int], Value]:
        """Another sum over the same tile: the emitter looks at its nest for a while."""
        mine = self.plan, self.nest, self.deps, self.red, self.body
        self.plan = replace(self.plan, nest=part, unroll=(), packs=(), sums=tuple(
            a.name for a in sorted(part.axes, key=lambda a: a.name not in bounds(part, scope.lane)) if not a.out))
        self.nest, self.deps, self.red, self.body = part, dependence(part), part.reduction, body_of(part)
        sums = self.accumulate(replace(scope, memo={}), units)
        self.plan, self.nest, self.deps, self.red, self.body = mine
        return sums

    def finish(self, acc: Value, scope: Scope, parts: list[Value] | None = None) -> None:
        """The epilogue of one accumulator, and its store."""
        assert self.red is not None
        key = (self.red, tuple(scope.coords.get(a, 0) for a in self.tile if a in self.deps[self.red]),
               scope.unit if any(a in self.deps[self.red] for a in scope.lane) else -1)
        sums = [n for n in self.nest.value.walk() if n.op in ("sum", "part")]
        memo = {k: v for k, v in scope.memo.items() if not isinstance(k[0], Node)
                or not any(n in sums for n in k[0].walk())}
        here = replace(scope, memo=memo)
        here.memo[key] = acc
        for n in self.nest.value.walk():
            if n.op == "part":
                assert parts is not None
                lanes = any(a in self.deps[n] for a in scope.lane)
                here.memo[n, tuple(scope.coords.get(a, 0) for a in self.tile if a in self.deps[n]),
                          scope.unit if lanes else -1] = parts[n.arg]
        self.store(self.nest.store, self.ev(self.nest.value, here), here)
        scope.memo.update({k: v for k, v in here.memo.items() if not isinstance(k[0], Node)
                           or not any(n in sums for n in k[0].walk())})

    def accumulate(self, scope: Scope, units: int) -> dict[tuple[tuple[int, ...], int], Value]:
        """Run the reduction loops over a tile; the finished accumulators."""
        assert self.red is not None
        kind = vector(TYPES[self.red.dtype], scope.width)
        start = splat_literal(TYPES[self.red.dtype], scope.width, identity(self.red.arg, self.red.dtype))
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
        for whole in self.nest.domain:  # gates that only the outputs decide: all of the sum, or nothing
            if (m := project(whole, scope.lane)) is not None and not sums & set(m.axes):
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
        return {k: Value(self.let(f"load {kind}, ptr {s}"), self.red.dtype, scope.width)
                for k, s in slots.items()}

    def inner(self, level: int, scope: Scope, slots: dict[tuple[tuple[int, ...], int], str],
              units: int) -> None:
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
                inner.memo = {k: v for k, v in scope.memo.items() if isinstance(k[0], Node)
                              and axis not in self.deps[k[0]]}
                self.inner(level + 1, inner, slots, units)
                scope.memo.update({k: v for k, v in inner.memo.items() if isinstance(k[0], Node)
                                   and axis not in self.deps[k[0]] and not any(
                                       s in self.deps[k[0]] for s in plan.sums[level + 1:])})
        else:
            self.bounded(axis, size, scope, lambda i: go(Block(i, 0, 1)))
        return None

    def bounded(self, axis: str, size: int, scope: Scope, body: Callable[[str], None]) -> None:
        """One reduction loop, over the points that the domain leaves for the loops outside it."""
        mine = [p for m in self.nest.domain if (p := project(m, self.plan.lane)) is not None
                and axis in p.axes and all(a == axis or a in scope.at for a in p.axes)]
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
                scale = math.prod(shape[i + 1:])
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
            low = bounds[0] if low == "0" else self.let(self.call(f"i64 @llvm.smax.i64(i64 {low}, i64 {bounds[0]})"))
            high = bounds[1] if high == str(size) else self.let(
                self.call(f"i64 @llvm.smin.i64(i64 {high}, i64 {bounds[1]})"))

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
            for unit in range(units):
                here = replace(scope, coords=coords, unit=unit)
                slot = slots[tuple(coords.values()), unit]
                old = Value(self.let(f"load {kind}, ptr {slot}"), self.red.dtype, scope.width)
                new = self.accumulated(old, here)
                keep: Value | None = None
                for m in lane_masks:
                    if self.red.arg is not Ops.ADD or not zero_where(self.body, m):
                        keep = self.both(keep, self.mask_lookup(m, here, True))
                if not self.plan.lanes_out and (self.red.arg is not Ops.ADD or not self.zero_past_end()):
                    keep = self.both(keep, self.tail(here))
                if keep is not None:
                    keep = self.widen(keep, scope.width)
                    new = Value(self.let(f"select {keep}, {new}, {old}"), new.dtype, new.lanes)
                self.emit(f"store {new}, ptr {slot}")

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
            return not dtypes.is_float(node.dtype) or node.op == "const" and math.isfinite(node.arg)
        return zero(self.body)

    def accumulated(self, old: Value, scope: Scope) -> Value:
        assert self.red is not None
        if self.red.arg is Ops.ADD and self.body.op == "mul" and old.dtype in (
                dtypes.float32, dtypes.float64, dtypes.half):
            a, b = (self.widen(self.ev(s, scope), scope.width) for s in self.body.src)
            return Value(self.fma(a, b, old), old.dtype, old.lanes)
        value = self.widen(self.ev(self.body, scope), scope.width)
        return self.combine(self.red.arg, old, value)

    def fma(self, a: Value, b: Value, c: Value) -> str:
        return self.let(self.call(f"{c.type} @llvm.fmuladd.{short(c)}({a}, {b}, {c})"))

    def combine(self, op: Ops, a: Value, b: Value) -> Value:
        node = Node(op.name.lower(), a.dtype)
        return self.apply(node, [a, b], a.lanes)

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
            self.finish(total, replace(outside, coords=coords))
        return None

    def horizontal(self, op: Ops, v: Value) -> Value:
        """One vector to one number, by halves."""
        lanes = v.lanes
        while lanes > 1:
            lanes //= 2
            halves = []
            for first in (0, lanes):
                picks = ", ".join(f"i32 {first + i}" for i in range(lanes))
                halves.append(Value(self.let(f"shufflevector {v}, {v.type} poison, <{lanes} x i32> <{picks}>"),
                                    v.dtype, lanes))
            if lanes == 1:
                halves = [Value(self.let(f"extractelement <1 x {TYPES[v.dtype]}> {h.name}, i64 0"), v.dtype)
                          for h in halves]
            v = self.combine(op, *halves)
        return v

    def row_axis(self, scope: Scope) -> str | None:
        """A tile axis along which the finished sums can be stored as one short vector."""
        store = self.nest.store
        total = math.prod(scope.at[a].count for a in self.tile)
        masks = [m for n in self.nest.value.walk() if n.op in ("load", "mask")
                 for m in (n.arg if n.op == "mask" else n.arg.masks)] + list(store.masks)
        for axis in self.tile:
            n = scope.at[axis].count
            if (store.index[axis] == 1 and n > 1 and total & (total - 1) == 0 and total <= self.plan.width
                    and n & (n - 1) == 0 and not any(axis in m.axes for m in masks)):
                return axis
        return None

    def rows(self, axis: str, accs: dict[tuple[int, ...], Value], scope: Scope) -> None:
        """Add up many vectors at once: at level b, lanes with bit b take from the second of a pair."""
        assert self.red is not None
        axes = [a for a in self.tile if a != axis] + [axis]
        order = sorted(accs, key=lambda c: tuple(dict(zip(self.tile, c, strict=True))[a] for a in axes))
        todo, bit, w = [accs[c] for c in order], 1, self.plan.width
        op = self.red.arg
        while bit < w:
            pairs = list(zip(todo[::2], todo[1::2], strict=True)) if len(todo) > 1 else [(todo[0], todo[0])]
            merged = []
            for a, b in pairs:
                keep = ", ".join(f"i32 {p if not p & bit else w + p}" for p in range(w))
                swap = ", ".join(f"i32 {p ^ bit if not p & bit else w + (p ^ bit)}" for p in range(w))
                x = Value(self.let(f"shufflevector {a}, {b}, <{w} x i32> <{keep}>"), a.dtype, w)
                y = Value(self.let(f"shufflevector {a}, {b}, <{w} x i32> <{swap}>"), a.dtype, w)
                merged.append(self.combine(op, x, y))
            todo, bit = merged, bit * 2
        n = scope.at[axis].count
        for i in range(0, len(order), n):
            picks = ", ".join(f"i32 {i + j}" for j in range(n))
            row = Value(self.let(f"shufflevector {todo[0]}, {todo[0].type} poison, <{n} x i32> <{picks}>"),
                        todo[0].dtype, n)
            coords = dict(zip(self.tile, order[i], strict=True))
            here = replace(scope, lane=(axis,), width=n, valid=n, memo={}, coords={**coords, axis: 0})
            self.finish(row, here)

    # ---------- the whole text ----------

    def text(self) -> str:
        """Globals, the entry that unpacks the arguments, the body with pointers that do not alias."""
        params = ", ".join(f"ptr noalias %p{s}" for s in self.slots)
        entry = [f"define void @{self.name}(ptr %args, i64 %chunk) nounwind {{"]
        for i, s in enumerate(self.slots):
            entry += [f"  %a{s} = getelementptr i64, ptr %args, i64 {i}", f"  %p{s} = load ptr, ptr %a{s}"]
        given = ", ".join(f"ptr %p{s}" for s in self.slots)
        entry += [f"  call void @{self.name}.body({given}, i64 %chunk)", "  ret void", "}"]
        body = [f"define internal void @{self.name}.body({params}, i64 %chunk) noinline nounwind {{", "entry:",
                *self.allocas, *self.lines, "}"]
        return "\n".join([*self.globals.values(), *sorted(self.declared), *entry, *body, ""])


def sf_to_u64(src: DType, dst: DType) -> bool:
    return dtypes.is_float(src) and dst is dtypes.uint64


def project(m: Mask, lane: tuple[str, ...]) -> Mask | None:
    """The mask without its lane axes: where at least one lane is valid. None if that is everywhere."""
    drop = tuple(i for i, a in enumerate(m.axes) if a in lane)
    if not drop:
        return m
    table = m.table.any(drop)
    return None if table.all() else Mask.of([a for a in m.axes if a not in lane], np.ascontiguousarray(table))


def zero_where(node: Node, mask: Mask) -> bool:
    """Is the value zero in every lane that the mask forbids, thanks to a masked load?

    A product is, if no factor divides there: the reciprocal of a masked load is infinite, and 0
    times that is NaN. Then the sum itself has to be masked."""
    if node.op == "load":
        return any(m.axes == mask.axes and not (m.table & ~mask.table).any() for m in node.arg.masks)
    if node.op == "mul":
        return any(zero_where(s, mask) for s in node.src) and not any(n.op in DIVIDES for n in node.walk())
    return node.op == "cast" and zero_where(node.src[0], mask)


DIVIDES = {"reciprocal", "fdiv", "log2", "pow"}  # what makes infinity of a zero


def memory(dtype: DType) -> str:
    """How a value lies in memory: a bool is a byte."""
    return "i8" if dtype is dtypes.bool else TYPES[dtype]


def mangle(kind: str) -> str:
    return SUFFIX.get(kind, kind)


def short(v: Value) -> str:
    """`v16f32`, as in the names of intrinsics."""
    return (f"v{v.lanes}" if v.lanes > 1 else "") + mangle(TYPES[v.dtype])


# ***************************** operations *****************************

def _binary(floats: str, signed: str, unsigned: str | None = None) -> Callable[[Emitter, Node, list[Value]], str]:
    def row(e: Emitter, node: Node, args: list[Value]) -> str:
        d = args[0].dtype
        op = floats if dtypes.is_float(d) else (unsigned or signed) if d in dtypes.uints or d is dtypes.bool else signed
        if d is dtypes.bool and op == "add":  # of bits, the machine's addition is exclusive or
            op = "or"
        if not op:
            raise Miss(f"{node.op} of {d.name}")
        b = args[1]
        if TYPES[b.dtype] != TYPES[d]:  # a shift's count may have another width
            b = e.cast(b, d)
        return e.let(f"{op} {args[0]}, {b.name}")
    return row


def _call(name: str) -> Callable[[Emitter, Node, list[Value]], str]:
    def row(e: Emitter, node: Node, args: list[Value]) -> str:
        if not dtypes.is_float(args[0].dtype):
            raise Miss(f"{node.op} of {args[0].dtype.name}")
        return e.let(e.call(f"{args[0].type} @llvm.{name}.{short(args[0])}({args[0]})"))
    return row


def _max(e: Emitter, node: Node, args: list[Value]) -> str:
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
    return e.let(e.call(f"{a.type} @llvm.maximum.{short(a)}({a}, {b})").replace("call", "call nsz", 1))


def _reciprocal(e: Emitter, node: Node, args: list[Value]) -> str:
    a = args[0]
    return e.let(f"fdiv {a.type} {splat_literal(TYPES[a.dtype], a.lanes, literal(1.0, a.dtype))}, {a.name}")


EXP2 = (0.1535920892e-3, 0.1339262701e-2, 0.9618384764e-2, 0.5550347269e-1, 0.2402264476, 0.6931471825, 1.0)


def _exp2(e: Emitter, node: Node, args: list[Value]) -> str:
    """2**x for floats: 2**n times a polynomial in x - n, |x - n| <= 1/2 (as tinygrad's xexp2, branch-free).

    Adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits; 2**n is put together in
    two halves, so that denormals and infinities come out by themselves."""
    x = args[0]
    n, bits = x.lanes, vector("i32", x.lanes)

    def const(number: float) -> Value:
        return Value(splat_literal("float", n, literal(number, dtypes.float32)), dtypes.float32, n)

    def word(number: int) -> str:
        return splat_literal("i32", n, str(number))

    def ints(op: str, a: str, b: str) -> str:
        return e.let(f"{op} {bits} {a}, {b}")
    test = vector("i1", n)
    low, high, magic = const(-152.0), const(129.0), const(12582912.0)
    x = Value(e.let(f"select {test} {e.let(f'fcmp olt {x}, {low.name}')}, {low}, {x}"), x.dtype, n)
    x = Value(e.let(f"select {test} {e.let(f'fcmp ogt {x}, {high.name}')}, {high}, {x}"), x.dtype, n)
    big = Value(e.let(f"fadd {x}, {magic.name}"), x.dtype, n)
    whole = e.let(f"fsub {big}, {magic.name}")
    f = Value(e.let(f"fsub {x}, {whole}"), x.dtype, n)
    poly = const(EXP2[0])
    for c in EXP2[1:]:
        poly = Value(e.fma(poly, f, const(c)), x.dtype, n)
    power = ints("sub", e.let(f"bitcast {big} to {bits}"), word(0x4B400000))
    half = ints("ashr", power, word(1))
    for part in (half, ints("sub", power, half)):
        scale = e.let(f"bitcast {bits} {ints('shl', ints('add', part, word(127)), word(23))} to {x.type}")
        poly = Value(e.let(f"fmul {poly}, {scale}"), x.dtype, n)
    return poly.name


def _neg(e: Emitter, node: Node, args: list[Value]) -> str:
    a = args[0]
    if dtypes.is_float(a.dtype):
        return e.let(f"fneg {a}")
    return e.let(f"sub {a.type} {splat_literal(TYPES[a.dtype], a.lanes, '0')}, {a.name}")


def _mulacc(e: Emitter, node: Node, args: list[Value]) -> str:
    return e.fma(*args)


def _floor(quotient: bool) -> Callable[[Emitter, Node, list[Value]], str]:
    """Division that rounds down, from the machine's, which rounds to zero."""
    def row(e: Emitter, node: Node, args: list[Value]) -> str:
        a, b = args
        if a.dtype in dtypes.uints or a.dtype is dtypes.bool:
            return e.let(f"{'udiv' if quotient else 'urem'} {a}, {b.name}")
        kind = TYPES[a.dtype]
        zero = splat_literal(kind, a.lanes, "0")
        r = Value(e.let(f"srem {a}, {b.name}"), a.dtype, a.lanes)
        signs = Value(e.let(f"xor {r}, {b.name}"), a.dtype, a.lanes)
        bits = vector("i1", a.lanes)
        off = e.let(f"and {bits} {e.let(f'icmp ne {r}, {zero}')}, {e.let(f'icmp slt {signs}, {zero}')}")
        fix = e.let(f"{'sext' if quotient else 'zext'} {bits} {off} to {a.type}")
        if quotient:
            return e.let(f"add {a.type} {e.let(f'sdiv {a}, {b.name}')}, {fix}")
        return e.let(f"add {a.type} {r.name}, {e.let(f'mul {a.type} {fix}, {b.name}')}")
    return row


DIVISIONS = ("cdiv", "cmod", "floordiv", "floormod")

OPS: dict[str, Callable[[Emitter, Node, list[Value]], str]] = {
    "add": _binary("fadd contract", "add"), "sub": _binary("fsub contract", "sub"),
    "mul": _binary("fmul contract", "mul"),
    "fdiv": _binary("fdiv", ""), "cdiv": _binary("", "sdiv", "udiv"), "cmod": _binary("", "srem", "urem"),
    "floordiv": _floor(True), "floormod": _floor(False),
    "and": _binary("", "and"), "or": _binary("", "or"), "xor": _binary("", "xor"),
    "shl": _binary("", "shl"), "shr": _binary("", "ashr", "lshr"),
    "cmplt": _binary("fcmp olt", "icmp slt", "icmp ult"), "cmpne": _binary("fcmp une", "icmp ne"),
    "cmpeq": _binary("fcmp oeq", "icmp eq"), "max": _max, "reciprocal": _reciprocal, "neg": _neg,
    "sqrt": _call("sqrt"), "exp2": _exp2, "trunc": _call("trunc"), "mulacc": _mulacc,
}


def emit(plan: Plan, name: str, slots: tuple[int, ...]) -> str:
    """The LLVM IR of a plan: `void name(ptr args, i64 chunk)`."""
    return Emitter(plan, name, slots).run()
