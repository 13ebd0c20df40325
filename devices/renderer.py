"""TGX renderer: tinygrad's linearized UOps in, LLVM IR text out.

A kernel arrives as a list of UOps in execution order (`tinygrad/codegen/late/linearizer.py`). Each
UOp is one row of `EMIT`, the table below; the row writes zero or more lines of LLVM IR and names
the value it made. There is nothing else to it: no second pass, no state between kernels.

Text, not llvmlite's `ir` builder: for the same 12,000 instructions the builder takes 179 ms and
joined strings 4 ms, and a training step renders tens of kernels.

Calling convention of every TGX kernel, generated or hand-written::

    void kernel(ptr args, i64 chunk)

`args` is an array of 64-bit words: one pointer per buffer, in the order of `ProgramInfo.globals`,
then one integer per variable. `chunk` says which piece of the work to do. How many pieces there
are is decided by shapes alone, never by the number of threads, so results are bit-for-bit the
same on any machine load.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tinygrad.codegen.decomp.transcendental import xexp2
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.device import CompileError
from tinygrad.dtype import AddrSpace, DType, dtypes, float_to_bf16, truncate
from tinygrad.helpers import DEBUG, Target
from tinygrad.renderer import Renderer
from tinygrad.renderer.cstyle import create_non_native_float_pats, pm_manual_bf16_cast
from tinygrad.uop.ops import GroupOp, Ops, PatternMatcher, UOp, UPat

from tgx import settings
from tgx.devices import optimize
from tgx.devices.compiler import TGXCompiler
from tgx.devices.exp2 import exp2
from tgx.devices.record import PathRecord, record_of

# Pieces a kernel may be cut into for threads. A constant: the cut must not depend on the machine.
MAX_CHUNKS = 16

# ***************************** types and constants *****************************

# bfloat16 and fp8 are only ever moved and bitcast here: tinygrad's decompositions do their math.
LLVM_TYPE: dict[DType, str] = {
    dtypes.void: "void", dtypes.bool: "i1",
    dtypes.int8: "i8", dtypes.int16: "i16", dtypes.int32: "i32", dtypes.int64: "i64",
    dtypes.uint8: "i8", dtypes.uint16: "i16", dtypes.uint32: "i32", dtypes.uint64: "i64",
    dtypes.float16: "half", dtypes.bfloat16: "i16", dtypes.float32: "float",
    dtypes.float64: "double", **dict.fromkeys(dtypes.fp8s, "i8"),
}
SUFFIX = {"half": "f16", "float": "f32", "double": "f64"}  # names of overloaded intrinsics


def llvm_type(dtype: DType, count: int = 1) -> str:
    """The type of `count` values in registers: `float`, `<4 x i32>`."""
    return LLVM_TYPE[dtype] if count == 1 else f"<{count} x {LLVM_TYPE[dtype]}>"


def memory_type(dtype: DType, count: int = 1) -> str:
    """The type of `count` values in memory. It differs for bool: one byte there, one bit here."""
    return llvm_type(dtypes.uint8 if dtype is dtypes.bool else dtype, count)


def constant(value: Any, dtype: DType) -> str:
    """An LLVM literal. Floats are written as the bits of a double, which loses nothing."""
    if dtype is dtypes.bool:
        return "true" if value else "false"
    if dtype is dtypes.bfloat16:
        return str(struct.unpack("I", struct.pack("f", float_to_bf16(float(value))))[0] >> 16)
    if dtype in dtypes.fp8s:
        return str(truncate_fp8(value, dtype))
    if dtype in dtypes.floats:
        rounded = float(truncate[dtype](value)) if math.isfinite(value) else float(value)
        if dtype is dtypes.half:
            return f"0xH{struct.unpack('<H', struct.pack('<e', rounded))[0]:04X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    return str(int(truncate[dtype](int(value))))


def truncate_fp8(value: Any, dtype: DType) -> int:
    """The byte that stores `value` in an fp8 format."""
    from tinygrad.dtype import float_to_fp8
    return int(float_to_fp8(float(value), dtype))


def is_pointer(u: UOp) -> bool:
    """Does this UOp stand for a place in memory, rather than for a value?"""
    return u.addrspace in (AddrSpace.GLOBAL, AddrSpace.LOCAL, AddrSpace.REG)


# ***************************** one kernel being written *****************************

class Body:
    """The function under construction: lines so far, and the IR name of every UOp done."""

    def __init__(self, kernel: str, uops: list[UOp]) -> None:
        self.kernel = kernel
        self.names: dict[UOp, str] = {}
        self.lines: list[str] = []
        self.sources: list[UOp] = []  # of each line, the UOp it was written for
        self.parameters: list[UOp] = []
        self.stack_slots: list[str] = []  # allocas, in the entry block: LLVM makes them registers
        self.counter = 0
        self.index_math = index_math(uops)
        self.accumulations = accumulations(uops)

    def __getitem__(self, u: UOp) -> str:
        return self.names[u]

    def fresh(self, prefix: str = "v") -> str:
        self.counter += 1
        return f"%{prefix}{self.counter}"

    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def value(self, expression: str, name: str | None = None) -> str:
        """Writes `%name = expression` and returns the name."""
        name = name or self.fresh()
        self.emit(f"{name} = {expression}")
        return name

    def typed(self, u: UOp) -> str:
        """`float %v7`: an operand with its type."""
        return f"{llvm_type(u.dtype, u.max_numel())} {self[u]}"


def index_math(uops: list[UOp]) -> set[UOp]:
    """UOps whose only purpose is to compute addresses.

    tinygrad picked an integer wide enough for them, so they cannot overflow; saying so (`nsw`) is
    what lets LLVM see that an index grows by one per iteration, and vectorize.
    """
    todo = [s for u in uops if u.op in (Ops.INDEX, Ops.SHRINK) and is_pointer(u.src[0])
            for s in u.src[1:]]
    seen: set[UOp] = set()
    while todo:
        if (u := todo.pop()) in seen or u.op not in GroupOp.ALU | {Ops.CAST}:
            continue
        seen.add(u)
        todo.extend(u.src)
    return seen


def accumulations(uops: list[UOp]) -> set[UOp]:
    """The additions `acc = acc + x` of a sum held in a register, and the product if x is one.

    A sum has no order of its own, so these (and only these) may be reassociated, and fused with the
    product: LLVM then keeps one partial sum per vector lane. The order is fixed when the kernel is
    compiled, so a result is still the same in every run.
    """
    found = set()
    for u in uops:
        if u.op is Ops.STORE and u.src[0].addrspace is AddrSpace.REG and u.src[1].op is Ops.ADD:
            buffer = u.src[0].buf_uop
            if any(s.op is Ops.LOAD and s.src[0].buf_uop is buffer for s in u.src[1].src):
                found |= {u.src[1], *(s for s in u.src[1].src if s.op is Ops.MUL)}
    return found


# ***************************** arithmetic rows *****************************

# op: (bool, unsigned, signed, float). Without a `contract` flag LLVM may not fuse a*b+c into one
# rounding: a value that two kernels compute, each for itself, then has the same bits in both. The
# gradient of max() depends on it: it looks for the elements that are equal to the maximum.
ARITHMETIC: dict[Ops, tuple[str | None, str | None, str | None, str | None]] = {
    Ops.ADD:   ("or",       "add",      "add",      "fadd"),
    Ops.SUB:   ("xor",      "sub",      "sub",      "fsub"),
    Ops.MUL:   ("and",      "mul",      "mul",      "fmul"),
    Ops.FDIV:  (None,       None,       None,       "fdiv"),
    Ops.AND:   ("and",      "and",      "and",      None),
    Ops.OR:    ("or",       "or",       "or",       None),
    Ops.XOR:   ("xor",      "xor",      "xor",      None),
    Ops.SHL:   (None,       "shl",      "shl",      None),
    Ops.SHR:   (None,       "lshr",     "ashr",     None),
    Ops.CMPLT: ("icmp ult", "icmp ult", "icmp slt", "fcmp olt"),
    Ops.CMPNE: ("icmp ne",  "icmp ne",  "icmp ne",  "fcmp une"),
    Ops.CMPEQ: ("icmp eq",  "icmp eq",  "icmp eq",  "fcmp oeq"),
}
CANNOT_WRAP = {Ops.ADD, Ops.SUB, Ops.MUL, Ops.SHL}


def kind(dtype: DType) -> int:
    """Column of `ARITHMETIC`: 0 bool, 1 unsigned, 2 signed, 3 float."""
    if dtype in dtypes.floats:
        return 3
    return 0 if dtype is dtypes.bool else 1 if dtypes.is_unsigned(dtype) else 2


def no_row(body: Body, u: UOp) -> CompileError:
    sources = ", ".join(f"{s.op.name} {s.dtype.name}" for s in u.src)
    return CompileError(f"TGX has no row for {u.op.name} of {u.dtype.name} (sources: "
                        f"{sources or 'none'}; argument: {u.arg!r}) in kernel {body.kernel}. "
                        "Rows live in tgx/devices/renderer.py, in the tables ARITHMETIC and EMIT.")


def emit_arithmetic(body: Body, u: UOp) -> None:
    a, b = u.src
    if (opcode := ARITHMETIC[u.op][kind(a.dtype)]) is None:
        raise no_row(body, u)
    if u in body.index_math and u.op in CANNOT_WRAP and kind(a.dtype) == 2:
        opcode += " nsw"
    if u in body.accumulations and kind(a.dtype) == 3:
        opcode += " reassoc nsz contract"
    body.names[u] = body.value(f"{opcode} {body.typed(a)}, {body[b]}")


def emit_divide(body: Body, u: UOp) -> None:
    """Truncating integer division. A zero divisor gives zero instead of killing the process, and
    `min / -1` wraps: on x86 both would raise SIGFPE."""
    a, b = u.src
    signed, remainder = kind(a.dtype) == 2, u.op is Ops.CMOD
    opcode = {(0, 0): "udiv", (0, 1): "urem", (1, 0): "sdiv", (1, 1): "srem"}[(signed, remainder)]
    ty = llvm_type(a.dtype, a.max_numel())
    if u in body.index_math or (b.vmin == b.vmax and b.vmin not in (0, -1)):
        body.names[u] = body.value(f"{opcode} {body.typed(a)}, {body[b]}")
        return
    bad = body.value(f"icmp eq {body.typed(b)}, 0")
    if signed:
        lowest = body.value(f"icmp eq {body.typed(a)}, {a.dtype.min}")
        minus_one = body.value(f"icmp eq {body.typed(b)}, -1")
        wraps = body.value(f"and i1 {lowest}, {minus_one}")
        bad = body.value(f"or i1 {bad}, {wraps}")
    safe = body.value(f"select i1 {bad}, {ty} 1, {ty} {body[b]}")
    quotient = body.value(f"{opcode} {body.typed(a)}, {safe}")
    zero = body.value(f"icmp eq {body.typed(b)}, 0")
    body.names[u] = body.value(f"select i1 {zero}, {ty} 0, {ty} {quotient}")


def emit_negate(body: Body, u: UOp) -> None:
    a = u.src[0]
    body.names[u] = body.value(f"fneg {body.typed(a)}" if kind(a.dtype) == 3 else
                               f"sub {llvm_type(a.dtype)} 0, {body[a]}")


def emit_max(body: Body, u: UOp) -> None:
    """The larger of two; NaN wins, as in NumPy and PyTorch (LLVM's `maximum`)."""
    a, b = u.src
    ty = llvm_type(a.dtype, a.max_numel())
    if kind(a.dtype) == 0:
        body.names[u] = body.value(f"or {body.typed(a)}, {body[b]}")
        return
    name = {1: "umax", 2: "smax", 3: "maximum"}[kind(a.dtype)]
    suffix = SUFFIX.get(ty, ty)
    body.names[u] = body.value(f"call {ty} @llvm.{name}.{suffix}({body.typed(a)}, {body.typed(b)})")


def emit_intrinsic(name: str) -> Callable[[Body, UOp], None]:
    def emit(body: Body, u: UOp) -> None:
        ty = llvm_type(u.dtype)
        body.names[u] = body.value(f"call {ty} @llvm.{name}.{SUFFIX[ty]}({body.typed(u.src[0])})")
    return emit


def emit_exp2(body: Body, u: UOp) -> None:
    """Of a float; extra_matcher has made the other types something else."""
    body.names[u] = exp2(body[u.src[0]], u.max_numel(), body.value, "call {}".format)


def emit_where(body: Body, u: UOp) -> None:
    body.names[u] = body.value("select " + ", ".join(body.typed(s) for s in u.src))


# ***************************** casts *****************************

def emit_cast(body: Body, u: UOp) -> None:
    a = u.src[0]
    if a.op is Ops.CONST:
        body.names[u] = constant(a.val, u.dtype)
    elif is_pointer(a) or a.dtype == u.dtype:
        body.names[u] = body[a]
    else:
        body.names[u] = cast(body, body[a], a.dtype, u.dtype, u.max_numel())


def cast(body: Body, x: str, old: DType, new: DType, count: int) -> str:
    """Converts a value as C and NumPy do."""
    source, target = llvm_type(old, count), llvm_type(new, count)
    if new is dtypes.bool:
        zero = "zeroinitializer" if count > 1 else "0.0" if kind(old) == 3 else "0"
        return body.value(f"{'fcmp une' if kind(old) == 3 else 'icmp ne'} {source} {x}, {zero}")
    if kind(old) == 3 and kind(new) == 3:
        return body.value(f"{'fpext' if new.itemsize > old.itemsize else 'fptrunc'} "
                          f"{source} {x} to {target}")
    if kind(old) == 3:
        # Out of range is undefined in LLVM. Go through an integer that saturates, then cut to
        # width: -1.0 becomes 255 as a uint8, as in NumPy.
        wide = dtypes.uint64 if new is dtypes.uint64 else dtypes.int64 if new.itemsize >= 4 \
            else dtypes.int32
        name, wide_type = ("fptoui" if new is dtypes.uint64 else "fptosi"), llvm_type(wide, count)
        if new is dtypes.uint64:  # a negative number wraps
            return cast_negative_to_uint64(body, x, source, target)
        if new is dtypes.int32:
            wide, wide_type = new, target
        suffix = f"{vector_suffix(wide_type)}.{vector_suffix(source)}"
        y = body.value(f"call {wide_type} @llvm.{name}.sat.{suffix}({source} {x})")
        return y if wide_type == target else body.value(f"trunc {wide_type} {y} to {target}")
    if kind(new) == 3:
        return body.value(f"{'sitofp' if kind(old) == 2 else 'uitofp'} {source} {x} to {target}")
    if new.itemsize == old.itemsize and old is not dtypes.bool:
        return x
    if new.itemsize < old.itemsize:
        return body.value(f"trunc {source} {x} to {target}")
    return body.value(f"{'sext' if kind(old) == 2 else 'zext'} {source} {x} to {target}")


def cast_negative_to_uint64(body: Body, x: str, source: str, target: str) -> str:
    suffix = f"{vector_suffix(target)}.{vector_suffix(source)}"
    up = body.value(f"call {target} @llvm.fptoui.sat.{suffix}({source} {x})")
    down = body.value(f"call {target} @llvm.fptosi.sat.{suffix}({source} {x})")
    bits = "i1" if source[0] != "<" else source.split(" x ")[0] + " x i1>"
    zero = "0.0" if source[0] != "<" else "zeroinitializer"
    negative = body.value(f"fcmp olt {source} {x}, {zero}")
    return body.value(f"select {bits} {negative}, {target} {down}, {target} {up}")


def vector_suffix(ty: str) -> str:
    """`float` → `f32`, `<4 x i32>` → `v4i32`: how intrinsics spell a type."""
    if ty[0] != "<":
        return SUFFIX.get(ty, ty)
    count, element = ty[1:-1].split(" x ")
    return f"v{count}{SUFFIX.get(element, element)}"


def emit_bitcast(body: Body, u: UOp) -> None:
    a = u.src[0]
    if is_pointer(a):
        body.names[u] = body[a]
        return
    old, new = llvm_type(a.dtype, a.max_numel()), llvm_type(u.dtype, u.max_numel())
    if a.dtype is dtypes.bool or u.dtype is dtypes.bool:
        body.names[u] = cast(body, body[a], a.dtype, u.dtype, u.max_numel())
    else:
        body.names[u] = body[a] if old == new else body.value(f"bitcast {old} {body[a]} to {new}")


# ***************************** memory *****************************

def emit_buffer(body: Body, u: UOp) -> None:
    """A buffer inside the kernel: accumulators (REG) and scratch (LOCAL), both on the stack."""
    name = f"%{'local' if u.addrspace is AddrSpace.LOCAL else 'reg'}{u.arg.slot}"
    size = f"[{u.max_numel()} x {memory_type(u.dtype)}]"
    body.stack_slots.append(f"  {name} = alloca {size}, align 64")
    body.names[u] = name


def emit_index(body: Body, u: UOp) -> None:
    buffer, index = u.src[0], u.src[1]
    if is_pointer(buffer):
        body.names[u] = body.value(f"getelementptr inbounds {memory_type(u.dtype)}, "
                                   f"ptr {body[buffer]}, {body.typed(index)}")
    elif buffer.max_numel() == 1:
        body.names[u] = body[buffer]
    else:  # a lane of a vector
        body.names[u] = body.value(f"extractelement {body.typed(buffer)}, {body.typed(index)}")


def load(body: Body, place: UOp, pointer: str = "") -> str:
    count, volatile = place.max_numel(), is_volatile(place)
    x = body.value(f"load {volatile}{memory_type(place.dtype, count)}, "
                   f"ptr {pointer or body[place]}, align {place.dtype.itemsize}")
    if place.dtype is not dtypes.bool:
        return x
    byte, bit = memory_type(dtypes.bool, count), llvm_type(dtypes.bool, count)
    return body.value(f"trunc {byte} {x} to {bit}")


def inside(body: Body, place: UOp) -> str:
    """A pointer for a load without a gate, which may read nothing but its buffer.

    Nearly all indices are in range by their own bounds. tinygrad 0.14 loses one gate, on every
    device: that of an index which is itself loaded, and used behind the same gate
    (`x.gather(1, y).cumprod(0)`). What such a load reads from outside is thrown away, so it reads
    the last element instead. Checked mode knows these by their name: see instrument.py.
    """
    buffer, index = place.buf_uop, place.src[1] if len(place.src) > 1 else None
    if index is None or buffer is not place.src[0] or buffer.op is not Ops.PARAM:
        return body[place]
    last = buffer.max_numel() - place.max_numel()
    if last < 0 or (index.vmin >= 0 and index.vmax <= last):
        return body[place]
    kind = llvm_type(index.dtype, 1)
    near = body.value(f"call {kind} @llvm.umin.{kind}({body.typed(index)}, {kind} {last})",
                      body.fresh("inside"))
    return body.value(f"getelementptr inbounds {memory_type(place.dtype)}, ptr {body[buffer]}, "
                      f"{kind} {near}")


def is_volatile(place: UOp) -> str:
    buffer = place.buf_uop
    return "volatile " if buffer.op is Ops.PARAM and buffer.arg.volatile else ""


def emit_load(body: Body, u: UOp) -> None:
    if len(u.src) == 1:
        body.names[u] = load(body, u.src[0], inside(body, u.src[0]))
        return
    place, otherwise, gate = u.src  # read only where the gate holds: elsewhere may be out of bounds
    tag = body.fresh("gate")[1:]
    body.emit(f"br label %{tag}.if")
    body.label(f"{tag}.if")
    body.emit(f"br i1 {body[gate]}, label %{tag}.then, label %{tag}.end")
    body.label(f"{tag}.then")
    x = load(body, place)
    body.emit(f"br label %{tag}.end")
    body.label(f"{tag}.end")
    body.names[u] = body.value(f"phi {llvm_type(u.dtype, u.max_numel())} [ {x}, %{tag}.then ], "
                               f"[ {body[otherwise]}, %{tag}.if ]")


def emit_store(body: Body, u: UOp) -> None:
    place, x = u.src
    count, value = place.max_numel(), body[x]
    if place.dtype is dtypes.bool:
        value = body.value(f"zext {llvm_type(dtypes.bool, count)} {value} to "
                           f"{memory_type(dtypes.bool, count)}")
    body.emit(f"store {is_volatile(place)}{memory_type(x.dtype, count)} {value}, "
              f"ptr {body[place]}, align {x.dtype.itemsize}")


def emit_stack(body: Body, u: UOp) -> None:
    """Scalars side by side in one vector."""
    if len(u.src) < 2:  # one scalar is itself; none is an empty shape
        emit_nothing(body, u)
        return
    ty, vector = llvm_type(u.dtype, len(u.src)), "poison"
    for lane, s in enumerate(u.src):
        vector = body.value(f"insertelement {ty} {vector}, {body.typed(s)}, i32 {lane}")
    body.names[u] = vector


# ***************************** control flow *****************************

def emit_range(body: Body, u: UOp) -> None:
    """`for i in range(n)`, or, of type void, a loop that ends on a condition (see emit_end)."""
    tag = body.names[u] = body.fresh("i")
    loop = tag[1:]
    body.emit(f"br label %{loop}.entry")
    body.label(f"{loop}.entry")
    body.emit(f"br label %{loop}.head")
    body.label(f"{loop}.head")
    if u.dtype is dtypes.void:
        return
    ty = llvm_type(u.dtype)
    body.emit(f"{tag} = phi {ty} [ 0, %{loop}.entry ], [ {tag}.next, %{loop}.latch ]")
    less = "ult" if kind(u.dtype) == 1 else "slt"
    body.emit(f"{tag}.more = icmp {less} {ty} {tag}, {body[u.src[0]]}")
    body.emit(f"br i1 {tag}.more, label %{loop}.body, label %{loop}.exit")
    body.label(f"{loop}.body")


def emit_end(body: Body, u: UOp) -> None:
    tag, loop = body[u.src[1]], body[u.src[1]][1:]
    if u.src[1].dtype is dtypes.void:
        body.emit(f"br i1 {body[u.src[2]]}, label %{loop}.head, label %{loop}.exit")
    else:
        body.emit(f"br label %{loop}.latch")
        body.label(f"{loop}.latch")
        body.emit(f"{tag}.next = add nuw nsw {llvm_type(u.src[1].dtype)} {tag}, 1")
        body.emit(f"br label %{loop}.head")
    body.label(f"{loop}.exit")


def emit_if(body: Body, u: UOp) -> None:
    tag = body.names[u] = body.fresh("if")[1:]
    body.emit(f"br i1 {body[u.src[0]]}, label %{tag}.then, label %{tag}.end")
    body.label(f"{tag}.then")


def emit_endif(body: Body, u: UOp) -> None:
    tag = body[u.src[0]]
    body.emit(f"br label %{tag}.end")
    body.label(f"{tag}.end")


def emit_custom(body: Body, u: UOp) -> None:
    """IR written by hand (tinygrad's custom kernels). `{0}`, `{1}`… are the sources; `{out}` is
    the name of the result, for those that have one."""
    out = body.names[u] = body.fresh()
    for line in u.arg.format(*[body[s] for s in u.src], out=out).splitlines():
        body.emit(line.strip())


def emit_nothing(body: Body, u: UOp) -> None:
    if u.src and u.src[0] in body.names:
        body.names[u] = body.names[u.src[0]]


EMIT: dict[Ops, Callable[[Body, UOp], None]] = {
    **dict.fromkeys(ARITHMETIC, emit_arithmetic),
    Ops.CDIV: emit_divide, Ops.CMOD: emit_divide,
    Ops.NEG: emit_negate, Ops.MAX: emit_max, Ops.WHERE: emit_where,
    Ops.EXP2: emit_exp2, Ops.SQRT: emit_intrinsic("sqrt"), Ops.TRUNC: emit_intrinsic("trunc"),
    Ops.CAST: emit_cast, Ops.BITCAST: emit_bitcast,
    Ops.BUFFER: emit_buffer, Ops.INDEX: emit_index, Ops.SHRINK: emit_index,
    Ops.LOAD: emit_load, Ops.STORE: emit_store, Ops.STACK: emit_stack,
    Ops.RANGE: emit_range, Ops.END: emit_end, Ops.IF: emit_if, Ops.ENDIF: emit_endif,
    Ops.CUSTOM: emit_custom, Ops.CUSTOMI: emit_custom,
    # A chunk runs on one thread, so LOCAL memory needs no barrier. The rest is bookkeeping.
    **dict.fromkeys((Ops.BARRIER, Ops.AFTER, Ops.CONST, Ops.NOOP, Ops.GROUP, Ops.SINK),
                    emit_nothing),
}


# ***************************** the renderer *****************************

BY_HAND = PathRecord("loops", reason="its optimizations were chosen by hand or by BEAM")


class TGXRenderer(Renderer):
    """Chosen by `DEV=TGX`; `DEV=TGX::x86_64,znver4` compiles for another CPU."""

    has_local = False
    has_shared = False
    has_threads = True
    global_max = (MAX_CHUNKS, 0, 0)
    code_for_op = {op: lambda: None for op in EMIT if op in GroupOp.ALU}

    # LLVM turns double → half into a library call, and has no bfloat16 arithmetic on most CPUs.
    extra_matcher = PatternMatcher([
        (UPat.var("x", dtypes.float64).cast(dtypes.float16),
         lambda x: x.cast(dtypes.float32).cast(dtypes.float16)),
        (UPat(Ops.EXP2, dtypes.float64, (UPat.var("d"),)), xexp2),
        (UPat(Ops.EXP2, dtypes.float16, (UPat.var("d"),)),
         lambda d: d.cast(dtypes.float32).exp2().cast(dtypes.float16)),
    ]) + create_non_native_float_pats((dtypes.bfloat16,)) + pm_manual_bf16_cast

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.compiler = TGXCompiler(target.arch)
        self.record = BY_HAND  # of the kernel being compiled: how, and why so

    def supported_dtypes(self) -> set[DType]:
        """What LLVM handles itself; tinygrad emulates the others."""
        missing = set(dtypes.fp8s) | (set() if self.compiler.has_half else {dtypes.half})
        return super().supported_dtypes() - missing

    def settings(self) -> tuple[bool, ...]:
        """The settings that change the code made from a kernel."""
        return (settings.fast(),)

    def optimize(self, k: Scheduler) -> Scheduler | None:
        """TGX's own choice of loops for a kernel, or None to leave it to tinygrad's heuristics."""
        self.record = PathRecord("loops", reason="TGX_FAST=0")
        if settings.fast():
            contract = contractions()
            try:
                finished = contract.optimize(k, contract.Machine.of(self.compiler.vector_bytes,
                                                                    self.compiler.architecture))
            except contract.Miss as miss:
                self.record = PathRecord("loops", reason=str(miss))
            except Exception as e:  # a bug there must cost speed, not the program
                reason = f"tile path failed, {type(e).__name__}: {e}"
                self.record = PathRecord("loops", reason=reason)
            else:
                return contract.hand_out(finished)
        return None

    def render(self, uops: list[UOp]) -> str:
        name = next((u.arg.function_name for u in uops if u.op is Ops.SINK and u.arg), "kernel")
        text = contractions().text_of(uops)
        record, self.record = self.record if text is None else record_of(text), BY_HAND
        if DEBUG >= 3:
            print(f"{name:<25} {record}")
        if text is not None:
            return text
        return record.line() + "\n" + module_text(name, self.written(name, uops))

    def written(self, name: str, uops: list[UOp]) -> Body:
        """The kernel's body, UOp by UOp."""
        body = Body(name, uops)
        for u in uops:
            if u.op is Ops.PARAM:
                body.names[u] = f"%data{u.arg.slot}" if is_pointer(u) else f"%{u.expr}"
                body.parameters.append(u)
            elif u.op in EMIT:
                EMIT[u.op](body, u)
            else:
                raise no_row(body, u)
            body.sources += [u] * (len(body.lines) - len(body.sources))
        return body


def contractions() -> ModuleType:
    """The contraction compiler, loaded when the first kernel is compiled: a program whose kernels
    are all in the cache starts 35 ms sooner."""
    from tgx.devices import contract

    return contract


def module_text(name: str, body: Body) -> str:
    """Two functions: the body, with typed arguments that LLVM may assume do not overlap, and the
    entry, which unpacks the argument words for it."""
    parameters = sorted(body.parameters, key=lambda u: (not is_pointer(u), u.arg.slot))
    declared = ", ".join(f"ptr noalias {body[u]}" if is_pointer(u) else
                         f"{llvm_type(u.dtype)} {body[u]}" for u in parameters)
    entry = []
    for word, u in enumerate(parameters):
        if not is_pointer(u) and u.expr == "core_id":
            entry.append(f"  {body[u]} = trunc i64 %chunk to {llvm_type(u.dtype)}")
            continue
        entry.append(f"  %word{word} = getelementptr inbounds i64, ptr %args, i64 {word}")
        if is_pointer(u):
            entry.append(f"  {body[u]} = load ptr, ptr %word{word}, align 8")
        elif llvm_type(u.dtype) == "i64":
            entry.append(f"  {body[u]} = load i64, ptr %word{word}, align 8")
        else:
            entry.append(f"  {body[u]}.word = load i64, ptr %word{word}, align 8")
            entry.append(f"  {body[u]} = trunc i64 {body[u]}.word to {llvm_type(u.dtype)}")
    passed = ", ".join(f"{'ptr' if is_pointer(u) else llvm_type(u.dtype)} {body[u]}"
                       for u in parameters)
    return "\n".join([
        f"define internal void @{name}.body({declared}) noinline nounwind {{",
        *body.stack_slots, *body.lines, "  ret void", "}", "",
        f"define void @{name}(ptr noalias readonly %args, i64 %chunk) nounwind {{",
        *entry, f"  call void @{name}.body({passed})", "  ret void", "}", ""])


optimize.install(lambda k: k.ren.optimize(k), TGXRenderer)
