"""A kernel in NumPy: the reference that extracted scripts and `tgx bisect` check against.

Every node of a kernel's AST becomes one array with an axis for each of the kernel's ranges, so a
loop nest is plain broadcasting. Floating point is float64. This file is written into extracted
scripts as it stands.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tinygrad.dtype import AddrSpace, Invalid, dtypes
from tinygrad.uop.ops import Ops, UOp

MOST_ELEMENTS = 1 << 24  # of one array: beyond, a sample of the outermost range is computed

ARITHMETIC: dict[Ops, Any] = {
    Ops.ADD: np.add,
    Ops.SUB: np.subtract,
    Ops.MUL: np.multiply,
    Ops.FDIV: np.divide,
    Ops.MAX: np.maximum,
    Ops.POW: np.power,
    Ops.CMPLT: np.less,
    Ops.CMPNE: np.not_equal,
    Ops.CMPEQ: np.equal,
    Ops.AND: np.bitwise_and,
    Ops.OR: np.bitwise_or,
    Ops.XOR: np.bitwise_xor,
    Ops.SHL: lambda a, b: np.left_shift(a, b.astype(a.dtype)),
    Ops.SHR: lambda a, b: np.right_shift(a, b.astype(a.dtype)),
    Ops.FLOORDIV: np.floor_divide,
    Ops.FLOORMOD: np.mod,
    Ops.CDIV: lambda a, b: np.trunc(a / b).astype(np.int64),
    Ops.CMOD: np.fmod,
    Ops.NEG: np.negative,
    Ops.RECIPROCAL: lambda a: 1.0 / a,
    Ops.SQRT: np.sqrt,
    Ops.EXP2: np.exp2,
    Ops.LOG2: np.log2,
    Ops.SIN: np.sin,
    Ops.TRUNC: np.trunc,
    Ops.WHERE: np.where,
    Ops.MULACC: lambda a, b, c: a * b + c,
}
INTEGER = {Ops.ADD, Ops.SUB, Ops.MUL, Ops.MAX, Ops.AND, Ops.OR, Ops.XOR, Ops.SHL, Ops.SHR}
REDUCTIONS: dict[Ops, Any] = {Ops.ADD: np.sum, Ops.MUL: np.prod, Ops.MAX: np.max}


class NoReference(NotImplementedError):
    """A kernel that holds something this file does not compute."""


def number_type(dtype: Any) -> Any:
    """The NumPy type a value is computed in: float64 for every float."""
    if dtypes.is_float(dtype) or (dtype in dtypes.weaks and dtype != dtypes.weakint):
        return np.float64
    if dtype == dtypes.bool:
        return np.bool_
    name = str(dtype).removeprefix("dtypes.")
    kinds = {
        "uchar": "u1",
        "ushort": "u2",
        "uint": "u4",
        "ulong": "u8",
        "char": "i1",
        "short": "i2",
        "int": "i4",
        "long": "i8",
    }
    return np.dtype(kinds.get(name, "i8")).type


def run(ast: UOp, buffers: list[Any], values: dict[str, int] | None = None) -> list[Any]:
    """What a kernel makes of its buffers (flat arrays): for each a mask of what it wrote.

    The arrays are changed in place, in their own types.
    """
    values = values or {}
    ranges = [n for n in ast.toposort() if n.op is Ops.RANGE and n.dtype is not dtypes.void]
    axis = {r: i for i, r in enumerate(ranges)}
    sizes = [_size(r.src[0], values) for r in ranges]
    indices = [np.arange(n) for n in sizes]
    outer = _outermost(ast, axis)
    while outer and math.prod(len(i) for i in indices) > MOST_ELEMENTS:
        widest = max(outer, key=lambda i: len(indices[i]))
        count = max(1, MOST_ELEMENTS * len(indices[widest]) // math.prod(map(len, indices)))
        indices[widest] = np.unique(np.linspace(0, sizes[widest] - 1, count).astype(np.int64))
        outer.remove(widest)
    written = [np.zeros(len(b), dtype=bool) for b in buffers]
    result: dict[UOp, Any] = {}
    valid: dict[UOp, Any] = {}
    places: dict[UOp, tuple[int, Any, Any]] = {}
    shape = [1] * len(ranges)
    with np.errstate(all="ignore"):
        for n in ast.toposort():
            if n.op is Ops.RANGE and n in axis:
                s = shape.copy()
                s[axis[n]] = len(indices[axis[n]])
                result[n] = indices[axis[n]].reshape(s)
            else:
                _step(n, result, valid, places, axis, buffers, written, values)
    return written


def _outermost(ast: UOp, axis: dict[UOp, int]) -> list[int]:
    """The ranges whose steps are independent: of every store."""
    ends = [n for n in ast.toposort() if n.op is Ops.END]
    shared = set.intersection(*[set(e.src[1:]) for e in ends]) if ends else set()
    return [axis[r] for r in shared if r in axis]


def _size(u: UOp, values: dict[str, int]) -> int:
    return (
        int(u.arg)
        if u.op is Ops.CONST
        else int(
            u.substitute({v: UOp.const(values[v.expr]) for v in u.variables()}).simplify().vmax
        )
    )


def _step(
    n: UOp,
    result: dict[UOp, Any],
    valid: dict[UOp, Any],
    places: dict[UOp, tuple[int, Any, Any]],
    axis: dict[UOp, int],
    buffers: list[Any],
    written: list[Any],
    values: dict[str, int],
) -> None:
    if n.op is Ops.CONST:
        result[n] = np.asarray(0 if n.arg is Invalid else n.arg)
        return
    if n.op in (
        Ops.PARAM,
        Ops.SINK,
        Ops.END,
        Ops.AFTER,
        Ops.STACK,
        Ops.NOOP,
        Ops.RESHAPE,
        Ops.GROUP,
    ):
        if n.op is Ops.PARAM and n.addrspace is AddrSpace.ALU:
            result[n] = np.asarray(values[n.expr])
        elif n.op in (Ops.AFTER, Ops.END, Ops.RESHAPE) and n.src[0] in result:
            result[n] = result[n.src[0]]
        return
    if n.op is Ops.INDEX:
        slot = n.buf_uop.arg.slot
        place = result[n.src[1]] if len(n.src) > 1 else np.asarray(0)
        ok = valid.get(n.src[1]) if len(n.src) > 1 else None
        place = np.asarray(place)
        safe = np.clip(place, 0, len(buffers[slot]) - 1)
        loaded = buffers[slot][safe].astype(number_type(n.dtype))
        result[n] = loaded if ok is None else np.where(ok, loaded, 0)
        places[n] = slot, place, ok
        return
    if n.op is Ops.STORE:
        slot, place, ok = places[n.src[0]]
        value = np.asarray(result[n.src[1]])
        place, value = np.broadcast_arrays(place, value)
        keep = np.ones(place.shape, bool) if ok is None else np.broadcast_to(ok, place.shape)
        buffers[slot][place[keep]] = value[keep].astype(buffers[slot].dtype)
        written[slot][place[keep]] = True
        return
    sources = [result[s] for s in n.src if s in result]
    oks = [valid[s] for s in n.src if s in valid]
    if n.op is Ops.LOAD:
        result[n] = sources[0]
    elif n.op is Ops.REDUCE:
        over = tuple(axis[r] for r in n.src[1:] if r in axis)
        full = list(_padded(sources[0], len(axis)))
        for r in n.src[1:]:  # a range the value does not depend on repeats it
            if r in axis:
                full[axis[r]] = result[r].size
        whole = np.broadcast_to(sources[0], full)
        result[n] = REDUCTIONS[n.arg[0]](whole, axis=over, keepdims=True)
    elif n.op is Ops.CAST:
        result[n] = np.asarray(sources[0]).astype(number_type(n.dtype))
    elif n.op is Ops.BITCAST:
        narrow = {2: np.float16, 4: np.float32, 8: np.float64}
        had, has = n.src[0].dtype, n.dtype
        raw = np.asarray(sources[0])
        raw = raw.astype(narrow[had.itemsize]) if dtypes.is_float(had) else raw
        made = raw.view(narrow[has.itemsize] if dtypes.is_float(has) else number_type(has))
        result[n] = made.astype(number_type(has))
    elif n.op in (Ops.CONTIGUOUS, Ops.DETACH):
        result[n] = sources[0]
    elif n.op in ARITHMETIC:
        if n.op is Ops.WHERE and n.src[2].op is Ops.CONST and n.src[2].arg is Invalid:
            oks.append(sources[0])
        if not dtypes.is_float(n.dtype) and n.op in INTEGER:  # int64 with uint64 would be a float
            sources = [np.asarray(s).astype(number_type(n.dtype)) for s in sources]
        made = ARITHMETIC[n.op](*sources)
        result[n] = np.asarray(made).astype(number_type(n.dtype))
    else:
        raise NoReference(f"NumPy has no row for {n.op.name}")
    if oks:
        ok = oks[0]
        for more in oks[1:]:
            ok = np.logical_and(ok, more)
        valid[n] = ok


def _padded(a: Any, n: int) -> tuple[int, ...]:
    shape = np.asarray(a).shape
    return (1,) * (n - len(shape)) + shape


def inputs(ast: UOp, seed: int = 0) -> list[Any]:
    """Random contents for a kernel's buffers, in the order of its parameters."""
    import tinygrad.dtype as tg

    random = np.random.default_rng(seed)
    params = sorted(
        (n for n in ast.toposort() if n.op is Ops.PARAM and n.addrspace is not AddrSpace.ALU),
        key=lambda n: n.arg.slot,
    )
    made = []
    for p in {p.arg.slot: p for p in params}.values():
        kind = tg._to_np_dtype(p.dtype)
        if kind is None:
            raise NoReference(f"NumPy has no {p.dtype}")
        if dtypes.is_float(p.dtype):
            made.append(random.standard_normal(p.max_numel()).astype(kind))
        else:
            made.append(random.integers(0, 2, p.max_numel()).astype(kind))
    return made


def difference(
    got: list[Any], wanted: list[Any], written: list[Any], dtype_names: list[str]
) -> str:
    """What is wrong with a result, "" if nothing is."""
    for slot, (a, b, mask) in enumerate(zip(got, wanted, written, strict=True)):
        if not mask.any():
            continue
        x, y = a[mask].astype(np.float64), b[mask].astype(np.float64)
        scale = float(np.max(np.abs(y[np.isfinite(y)]), initial=1.0))
        limit = {"half": 1e-2, "__bf16": 5e-2}.get(dtype_names[slot], 2e-4) * scale
        if a.dtype.kind != "f":
            limit = 0.0
        same = (x == y) | (np.isnan(x) & np.isnan(y)) | (np.abs(x - y) <= limit)
        if not same.all():
            at = int(np.argmin(same))
            place = int(np.flatnonzero(mask)[at])
            wrong = int((~same).sum())
            return (
                f"buffer {slot}: {wrong} of {len(same)} values differ; at {place} it is "
                f"{x[at]:.9g} and should be {y[at]:.9g}"
            )
    return ""
