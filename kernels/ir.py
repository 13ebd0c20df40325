"""A few lines of Python that write LLVM IR: the pen the kernels of this room are written with.

    k = Code("axpy", "y x")              # two buffers, in the order of the call
    y, x = k.buffers
    with k.loop(0, 1000, 16) as i:       # i = 0, 16, 32, ...
        y.store(i, k.fma(x.load(i, 16), k.splat(2.0, 16), y.load(i, 16)))
    print(k.text())

A `Value` is an SSA name with its type; `+ - * /` on values write instructions. Loops count in
memory (`alloca`) and so do `Variable`s: LLVM turns both into registers, and the kernel reads as it
would in C. Nothing is decided behind the reader's back: every loop forbids LLVM to vectorize or
unroll it, so lanes and tiles are there if, and only if, the kernel asks for them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

I64, F32, I32 = "i64", "float", "i32"


def vector(lanes: int, kind: str = F32) -> str:
    """The type of so many lanes; one lane is a scalar."""
    return kind if lanes == 1 else f"<{lanes} x {kind}>"


def literal(number: float) -> str:
    """A float32 as LLVM reads it: the bits of the double of the same value."""
    if math.isinf(number):
        return "0x7FF0000000000000" if number > 0 else "0xFFF0000000000000"
    rounded = struct.unpack("f", struct.pack("f", number))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


class Value:
    """The result of an instruction, or a constant."""

    __slots__ = ("code", "name", "type")

    def __init__(self, code: Code, name: str, type: str) -> None:
        self.code, self.name, self.type = code, name, type

    @property
    def lanes(self) -> int:
        return int(self.type[1:].split(" ")[0]) if self.type[0] == "<" else 1

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    def __add__(self, other: Value | float) -> Value:
        return self.code.binary("add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.code.binary("sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self.code.binary("mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.code.binary("div", self, other)

    __radd__, __rmul__ = __add__, __mul__


class Buffer:
    """Floats at an address. An index counts floats."""

    def __init__(self, code: Code, name: str) -> None:
        self.code, self.name = code, name

    def at(self, index: Value | int, inside: bool = True) -> str:
        """The address of one number; `inside` promises LLVM that there is one."""
        return self.code.let(
            f"getelementptr {'inbounds ' if inside else ''}float, "
            f"ptr {self.name}, {self.code.value(index, I64)}"
        )

    def load(self, index: Value | int, lanes: int = 1, mask: Value | None = None) -> Value:
        """`lanes` floats from `index` on. Lanes that the mask leaves out are 0 and not touched."""
        kind, place = vector(lanes), self.at(index, mask is None)
        if mask is None:
            return Value(self.code, self.code.let(f"load {kind}, ptr {place}, align 4"), kind)
        name = f"@llvm.masked.load.v{lanes}f32.p0"
        self.code.declare(f"{kind} {name}(ptr, i32, <{lanes} x i1>, {kind})")
        return Value(
            self.code,
            self.code.let(
                f"call {kind} {name}(ptr {place}, i32 4, {mask}, {kind} zeroinitializer)"
            ),
            kind,
        )

    def store(self, index: Value | int, value: Value, mask: Value | None = None) -> None:
        place, lanes = self.at(index, mask is None), value.lanes
        if mask is None:
            self.code.emit(f"store {value}, ptr {place}, align 4")
            return
        name = f"@llvm.masked.store.v{lanes}f32.p0"
        self.code.declare(f"void {name}({value.type}, ptr, i32, <{lanes} x i1>)")
        self.code.emit(f"call void {name}({value}, ptr {place}, i32 4, {mask})")


class Variable:
    """Something that changes: an accumulator, mostly."""

    def __init__(self, code: Code, start: Value) -> None:
        self.code, self.type = code, start.type
        self.place = code.stack(start.type)
        self.set(start)

    def get(self) -> Value:
        return Value(self.code, self.code.let(f"load {self.type}, ptr {self.place}"), self.type)

    def set(self, value: Value) -> None:
        self.code.emit(f"store {value}, ptr {self.place}")


class Code:
    """A kernel in the making: `void name(ptr args, i64 chunk)`, TGX's calling convention."""

    def __init__(self, name: str, buffers: str, lanes: int = 1) -> None:
        self.name, self.lanes = name, lanes
        self.lines: list[str] = []
        self.slots: list[str] = []
        self.declared: set[str] = set()
        self.tables: list[str] = []
        self.count = 0
        self.chunk, self.chunks = Value(self, "%chunk", I64), 1
        self.buffers = []
        for word, buffer in enumerate(buffers.split()):
            self.emit(f"%{buffer}.at = getelementptr inbounds ptr, ptr %args, i64 {word}")
            self.emit(f"%{buffer} = load ptr, ptr %{buffer}.at, align 8")
            self.buffers.append(Buffer(self, f"%{buffer}"))

    # ---- writing ----

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def let(self, expression: str) -> str:
        self.count += 1
        self.emit(f"%v{self.count} = {expression}")
        return f"%v{self.count}"

    def declare(self, signature: str) -> None:
        self.declared.add(f"declare {signature}")

    def stack(self, type: str, count: int = 1) -> str:
        """Memory of the kernel's own, one per call."""
        self.count += 1
        self.slots.append(f"  %s{self.count} = alloca {type}, i64 {count}, align 64")
        return f"%s{self.count}"

    def scratch(self, floats: int) -> Buffer:
        """A buffer on the stack."""
        return Buffer(self, self.stack(F32, floats))

    def text(self) -> str:
        """The whole module."""
        return "\n".join(
            [
                *self.tables,
                *sorted(self.declared),
                f"define void @{self.name}(ptr noalias readonly %args, i64 %chunk) nounwind {{",
                *self.slots,
                *self.lines,
                "  ret void",
                "}",
                '!0 = !{!"llvm.loop.vectorize.enable", i1 false}',
                '!1 = !{!"llvm.loop.unroll.disable"}',
                "!2 = distinct !{!2, !0, !1}",
                "",
            ]
        )

    # ---- values ----

    def value(self, x: Value | float, type: str) -> Value:
        """A constant of a type; a value is left as it is."""
        if isinstance(x, Value):
            return x
        if type in (I64, I32):
            return Value(self, str(int(x)), type)
        if type == F32:
            return Value(self, literal(x), type)
        kind = type[1:-1].split(" x ")[1]
        count = int(type[1:].split(" ")[0])
        word = literal(x) if kind == F32 else str(int(x))
        return Value(self, "<" + ", ".join([f"{kind} {word}"] * count) + ">", type)

    def binary(self, op: str, a: Value, b: Value | float) -> Value:
        b = self.value(b, a.type)
        op = "f" + op if "float" in a.type else {"div": "sdiv"}.get(op, op)
        return Value(self, self.let(f"{op} {a}, {b.name}"), a.type)

    def splat(self, x: Value | float, lanes: int) -> Value:
        """The same number in every lane."""
        if not isinstance(x, Value):
            return self.value(x, vector(lanes))
        if lanes == 1:
            return x
        kind = vector(lanes)
        first = self.let(f"insertelement {kind} poison, {x}, i64 0")
        return Value(
            self,
            self.let(
                f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer"
            ),
            kind,
        )

    def call(self, name: str, *arguments: Value) -> Value:
        """An LLVM intrinsic on floats: `fmuladd`, `maxnum`, `sqrt`, ..."""
        kind = arguments[0].type
        suffix = "f32" if kind == F32 else f"v{arguments[0].lanes}f32"
        self.declare(f"{kind} @llvm.{name}.{suffix}({', '.join(a.type for a in arguments)})")
        return Value(
            self,
            self.let(f"call {kind} @llvm.{name}.{suffix}({', '.join(map(str, arguments))})"),
            kind,
        )

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a·b + c in one instruction, where the CPU has it."""
        return self.call("fmuladd", a, b, c)

    def power_of_two(self, n: Value) -> Value:
        """2**n for whole n: n goes where a float keeps its exponent."""
        whole = vector(n.lanes, I32)
        bits = Value(self, self.let(f"fptosi {n} to {whole}"), whole) + 127
        bits = Value(self, self.let(f"shl {bits}, {self.value(23, whole).name}"), whole)
        return Value(self, self.let(f"bitcast {bits} to {n.type}"), n.type)

    def below(self, x: Value, limit: float, yes: float, no: Value) -> Value:
        """`yes if x < limit else no`, lane by lane."""
        bits = "i1" if x.lanes == 1 else f"<{x.lanes} x i1>"
        test = self.let(f"fcmp olt {x}, {self.value(limit, x.type).name}")
        return Value(
            self, self.let(f"select {bits} {test}, {self.value(yes, x.type)}, {no}"), x.type
        )

    def keep(self, mask: Value | None, x: Value, otherwise: Value | float) -> Value:
        """x in the lanes of the mask, `otherwise` in the others; no mask keeps all."""
        if mask is None:
            return x
        return Value(self, self.let(f"select {mask}, {x}, {self.value(otherwise, x.type)}"), x.type)

    def total(self, x: Value, op: str = "add") -> Value:
        """The sum (or `max`) of all lanes: halves onto each other, until one lane is left."""
        while (half := x.lanes // 2) >= 1:
            low, high = (self.part(x, start, half) for start in (0, half))
            x = low + high if op == "add" else self.call("maximum", low, high)
        return x

    def part(self, x: Value, start: int, lanes: int) -> Value:
        """Some neighbouring lanes of a vector."""
        if lanes == 1:
            return Value(self, self.let(f"extractelement {x}, i64 {start}"), F32)
        lanes_of = ", ".join(f"i32 {start + i}" for i in range(lanes))
        return Value(
            self,
            self.let(f"shufflevector {x}, {x.type} poison, <{lanes} x i32> <{lanes_of}>"),
            vector(lanes),
        )

    def select(
        self, comparison: str, a: Value, b: Value | int, yes: Value | int, no: Value | int
    ) -> Value:
        """`yes if a < b else no` on whole numbers, for LLVM's comparison."""
        test = self.let(f"icmp {comparison} {a}, {self.value(b, a.type).name}")
        return Value(
            self, self.let(f"select i1 {test}, {self.value(yes, I64)}, {self.value(no, I64)}"), I64
        )

    def pick(self, numbers: Sequence[int], index: Value) -> Value:
        """`numbers[index]`, from a table in the kernel."""
        name = f"@table{len(self.tables)}"
        words = ", ".join(f"i64 {number}" for number in numbers)
        self.tables.append(f"{name} = private constant [{len(numbers)} x i64] [{words}]")
        place = self.let(f"getelementptr inbounds i64, ptr {name}, {index}")
        return Value(self, self.let(f"load i64, ptr {place}"), I64)

    def first(self, count: int, lanes: int) -> Value | None:
        """The mask of the first `count` lanes; None for all of them."""
        if count >= lanes:
            return None
        bits = ", ".join(f"i1 {'true' if i < count else 'false'}" for i in range(lanes))
        return Value(self, f"<{bits}>", f"<{lanes} x i1>")

    def table(self, masks: Sequence[int], lanes: int) -> str:
        """Lane masks as constant data, one integer each; `mask` reads one."""
        name = f"@table{len(self.tables)}"
        words = ", ".join(f"i{lanes} {m}" for m in masks)
        self.tables.append(f"{name} = private constant [{len(masks)} x i{lanes}] [{words}]")
        return name

    def mask(self, table: str, index: Value | int, lanes: int) -> Value:
        place = self.let(f"getelementptr inbounds i{lanes}, ptr {table}, {self.value(index, I64)}")
        bits = self.let(f"load i{lanes}, ptr {place}")
        return Value(
            self, self.let(f"bitcast i{lanes} {bits} to <{lanes} x i1>"), f"<{lanes} x i1>"
        )

    # ---- control ----

    @contextmanager
    def share(self, count: int, cost: int, most: int = 16) -> Iterator[tuple[Value, Value]]:
        """This chunk's part of `range(count)`. The number of chunks follows from the shape: as
        many as keep 8192 elements of work each, when one of the range is `cost` elements."""
        self.chunks = max(1, min(most, count, count * cost // 8192))
        yield (self.chunk * count / self.chunks, (self.chunk + 1) * count / self.chunks)

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """`for i in range(start, stop, step)`"""
        self.count += 1
        tag, place = f"loop{self.count}", self.stack(I64)
        begin, end = self.value(start, I64), self.value(stop, I64)
        self.emit(f"store {begin}, ptr {place}")
        self.emit(f"br label %{tag}.head")
        self.lines.append(f"{tag}.head:")
        i = Value(self, self.let(f"load i64, ptr {place}"), I64)
        self.emit(f"{'%' + tag} = icmp slt {i}, {end.name}")
        self.emit(f"br i1 %{tag}, label %{tag}.body, label %{tag}.exit")
        self.lines.append(f"{tag}.body:")
        yield i
        self.emit(f"store {i + step}, ptr {place}")
        self.emit(f"br label %{tag}.head, !llvm.loop !2")
        self.lines.append(f"{tag}.exit:")

    @contextmanager
    def when(self, comparison: str, a: Value, b: Value | int) -> Iterator[None]:
        """`if a < b:` and the like; `comparison` is LLVM's: slt, sge, eq, ..."""
        self.count += 1
        tag = f"if{self.count}"
        self.emit(f"%{tag} = icmp {comparison} {a}, {self.value(b, a.type).name}")
        self.emit(f"br i1 %{tag}, label %{tag}.then, label %{tag}.end")
        self.lines.append(f"{tag}.then:")
        yield
        self.emit(f"br label %{tag}.end")
        self.lines.append(f"{tag}.end:")


@dataclass(frozen=True)
class Run:
    """A loop over part of a row, and the vectors of one of its steps."""

    start: int
    stop: int
    step: int
    counts: tuple[int, ...]  # elements in each vector

    def vectors(self, code: Code) -> list[tuple[int, Value | None]]:
        """Offset and mask of each vector; no mask for a full one."""
        return [
            (v * code.lanes, code.first(count, code.lanes)) for v, count in enumerate(self.counts)
        ]


def pieces(n: int, lanes: int, at_once: int) -> list[Run]:
    """A row of n elements: a loop over groups of `at_once` vectors, and a step for what is left."""
    group = lanes * at_once
    whole = n // group * group
    left = [min(lanes, n - start) for start in range(whole, n, lanes)]
    runs = [Run(0, whole, group, (lanes,) * at_once)] if whole else []
    return runs + ([Run(whole, n, n - whole, tuple(left))] if left else [])
