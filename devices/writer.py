"""Writing LLVM IR as text: values with a type and a width, lines, loops, tables of constants.

Loops are phi nodes; what lives longer than a block lives in an alloca, which LLVM turns into
registers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tinygrad.dtype import DType, dtypes, truncate
from tinygrad.uop.ops import Ops

TYPES: dict[DType, str] = {
    dtypes.bool: "i1",
    dtypes.int8: "i8",
    dtypes.uint8: "i8",
    dtypes.int16: "i16",
    dtypes.uint16: "i16",
    dtypes.int32: "i32",
    dtypes.uint32: "i32",
    dtypes.int64: "i64",
    dtypes.uint64: "i64",
    dtypes.half: "half",
    dtypes.bfloat16: "i16",
    dtypes.float32: "float",
    dtypes.float64: "double",
}
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


def memory(dtype: DType) -> str:
    """How a value lies in memory: a bool is a byte."""
    return "i8" if dtype is dtypes.bool else TYPES[dtype]


def mangle(kind: str) -> str:
    return SUFFIX.get(kind, kind)


def short(v: Value) -> str:
    """`v16f32`, as in the names of intrinsics."""
    return (f"v{v.lanes}" if v.lanes > 1 else "") + mangle(TYPES[v.dtype])


class Writer:
    """A function under construction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.globals: dict[object, str] = {}
        self.allocas: list[str] = []
        self.declared: set[str] = set()
        self.count = 0
        self.label = "entry"

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
            self.globals[key] = (
                f"{name} = private unnamed_addr constant [{len(words)} x {kind}] "
                f"[{', '.join(f'{kind} {w}' for w in words)}]"
            )
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
        types = [
            k.strip()[: k.strip().index(">") + 1] if k.strip().startswith("<") else k.split()[0]
            for k in kinds
        ]
        self.declared.add(f"declare {head}({', '.join(types)})")
        return f"call {signature}"

    def loop(
        self, first: str, last: str, step: int, body: Callable[[str], None], guard: bool
    ) -> None:
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
