"""Help for the tests of the contraction compiler: kernels to look at, and two slow interpreters.

`interpret_ast` runs a kernel's AST exactly as tinygrad wrote it; `interpret_nest` runs what
recovery made of it. Both evaluate every point with NumPy. On integers the two must agree exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tinygrad.codegen as codegen
from tinygrad import Context, dtypes
from tinygrad.codegen.opt import heuristic
from tinygrad.uop.ops import KernelInfo, Ops, UOp

from tgx.devices.contract import Finished
from tgx.devices.nest import Mask, Nest, Node
from tgx.devices.record import PathRecord, record_of

NUMPY = {
    dtypes.bool: np.bool_,
    dtypes.int8: np.int8,
    dtypes.uint8: np.uint8,
    dtypes.int16: np.int16,
    dtypes.uint16: np.uint16,
    dtypes.int32: np.int32,
    dtypes.uint32: np.uint32,
    dtypes.int64: np.int64,
    dtypes.uint64: np.uint64,
    dtypes.half: np.float16,
    dtypes.float32: np.float32,
    dtypes.float64: np.float64,
}


def kernels(work: Callable[[], Any]) -> list[UOp]:
    """The ASTs that the optimizer sees while `work` compiles, on a device that runs nothing."""
    seen: list[UOp] = []
    stock, cache = heuristic.hand_coded_optimizations, dict(codegen.to_program_cache)

    def spy(k: Any) -> Any:
        seen.append(k.ast)
        buffer = next(x for x in k.ast.toposort() if x.op is Ops.STORE).src[0].src[0]
        nothing = buffer.index(UOp.const(0, dtypes.weakint)).store(UOp.const(0, buffer.dtype))
        return Finished(
            k, UOp.sink(nothing, arg=KernelInfo(name="seen")).rtag(1)
        )  # quick to compile

    heuristic.hand_coded_optimizations = spy
    codegen.to_program_cache.clear()
    try:
        with Context(TRAINING=1, PARALLEL=0):
            work()
    finally:
        heuristic.hand_coded_optimizations = stock
        codegen.to_program_cache.clear()
        codegen.to_program_cache.update(cache)
    return seen


def paths(work: Callable[[], Any]) -> tuple[Any, list[PathRecord]]:
    """What `work` returns, and the record of every kernel that it compiled."""
    cache = dict(codegen.to_program_cache)
    codegen.to_program_cache.clear()
    try:
        result = work()
        sources = [
            s.arg for p in codegen.to_program_cache.values() for s in p.src if s.op is Ops.SOURCE
        ]
        return result, [r for s in sources if (r := record_of(s)) is not None]
    finally:
        codegen.to_program_cache.clear()
        codegen.to_program_cache.update(cache)


def parameters(ast: UOp) -> list[UOp]:
    return sorted((x for x in ast.toposort() if x.op is Ops.PARAM), key=lambda x: x.arg.slot)


def buffers(ast: UOp, seed: int = 0) -> dict[int, np.ndarray]:
    """Small integers in every buffer: sums of their products are exact in any order."""
    rng = np.random.default_rng(seed)
    return {
        p.arg.slot: rng.integers(-3, 4, int(p.max_numel())).astype(NUMPY[p.dtype])
        for p in parameters(ast)
    }


ALU: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "sub": np.subtract,
    "max": np.maximum,
    "neg": np.negative,
    "cmplt": np.less,
    "cmpne": np.not_equal,
    "cmpeq": np.equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "where": np.where,
    "sqrt": np.sqrt,
    "reciprocal": lambda a: 1 / a,
    "trunc": np.trunc,
    "floordiv": np.floor_divide,
    "floormod": np.mod,
    "exp2": np.exp2,
    "log2": np.log2,
    "fdiv": np.divide,
}
REDUCE = {Ops.ADD: np.sum, Ops.MAX: np.max}


def interpret_ast(ast: UOp, data: dict[int, np.ndarray]) -> np.ndarray:
    """The output buffer of a kernel, straight from its AST."""
    loops = [x for x in ast.toposort() if x.op is Ops.RANGE]
    shape = [int(r.vmax) + 1 for r in loops]
    done: dict[UOp, Any] = {}
    with np.errstate(all="ignore"):
        for x in ast.toposort():
            args = [done.get(s) for s in x.src]
            if x.op is Ops.CONST:
                done[x] = None if x.is_invalid else x.val
            elif x.op is Ops.RANGE:
                i = loops.index(x)
                done[x] = np.arange(shape[i]).reshape(
                    [-1 if j == i else 1 for j in range(len(shape))]
                )
            elif x.op is Ops.WHERE and args[2] is None:  # an index and where it is valid
                done[x] = np.where(args[0], args[1], -1)
            elif x.op is Ops.INDEX:
                at = np.asarray(args[1])
                buffer = data[x.src[0].arg.slot]
                assert (at < len(buffer)).all()
                done[x] = (at, np.where(at >= 0, buffer[np.maximum(at, 0)], 0).astype(buffer.dtype))
            elif x.op is Ops.REDUCE:
                axes = tuple(loops.index(r) for r in x.src[1:])
                wide = np.broadcast_to(
                    value(args[0]),
                    np.broadcast_shapes(
                        np.shape(value(args[0])),
                        [n if i in axes else 1 for i, n in enumerate(shape)],
                    ),
                )
                done[x] = REDUCE[x.arg[0]](wide, axis=axes, keepdims=True)
            elif x.op is Ops.CAST:
                done[x] = np.asarray(value(args[0]))
                if x.dtype not in dtypes.weaks:
                    done[x] = done[x].astype(NUMPY[x.dtype])
            elif x.op.name.lower() in ALU:
                done[x] = ALU[x.op.name.lower()](*[value(a) for a in args])
    store = next(x for x in ast.toposort() if x.op is Ops.STORE)
    out = data[store.src[0].src[0].arg.slot].astype(np.float64)
    at, result = np.broadcast_arrays(done[store.src[0]][0], value(done[store.src[1]]))
    out[at] = result
    return out


def value(x: Any) -> Any:
    return x[1] if isinstance(x, tuple) else x


def interpret_nest(nest: Nest, data: dict[int, np.ndarray]) -> np.ndarray:
    """The output buffer of a nest, point by point. No load may leave its buffer."""
    names = [a.name for a in nest.axes]
    shape = [a.size for a in nest.axes]
    grid = dict(zip(names, np.indices(shape, sparse=True), strict=True))
    sums = tuple(i for i, a in enumerate(nest.axes) if not a.out)

    def holds(masks: tuple[Mask, ...]) -> Any:
        out: Any = np.ones([1] * len(shape), bool)
        for m in masks:
            out = out & m.table[tuple(grid[a] for a in m.axes)]
        return out

    def where(index: Any) -> Any:
        return (
            index.const + sum(c * grid[a] for a, c in index.terms) + np.zeros([1] * len(shape), int)
        )

    domain, done = holds(nest.domain), dict[Node, Any]()
    inside = set(nest.reduction.walk()) if nest.reduction is not None else set()
    with np.errstate(all="ignore"):
        for n in nest.value.walk():
            args = [done[s] for s in n.src]
            if n.op == "const":
                done[n] = np.asarray(n.arg, NUMPY[n.dtype])
            elif n.op == "load":
                at, ok = np.broadcast_arrays(
                    where(n.arg.index), holds(n.arg.masks) & (domain if n in inside else True)
                )
                assert (at[ok] >= 0).all() and (at[ok] < n.arg.size).all(), (
                    "a load leaves its buffer"
                )
                done[n] = np.where(ok, data[n.arg.slot][np.where(ok, at, 0)], 0).astype(
                    NUMPY[n.dtype]
                )
            elif n.op == "index":
                done[n] = where(n.arg).astype(NUMPY[n.dtype])
            elif n.op == "mask":
                done[n] = holds(n.arg)
            elif n.op == "part":  # stored to a buffer of its own, then read at the same place
                part = nest.parts[n.arg]
                lone = dataclasses.replace(part, store=dataclasses.replace(part.store, slot=-1))
                room = interpret_nest(lone, {**data, -1: np.zeros(len(data[nest.store.slot]))})
                at, ok = where(nest.store.index), holds(nest.store.masks)
                done[n] = room[np.where(ok, at, 0)]
            elif n.op == "sum":
                wide = np.broadcast_to(args[0], shape)
                wide = np.where(domain, wide, 0) if n.arg is Ops.ADD else wide
                done[n] = REDUCE[n.arg](wide, axis=sums, keepdims=True)
            elif n.op == "cast":
                done[n] = np.asarray(args[0]).astype(NUMPY[n.dtype])
            else:
                done[n] = ALU[n.op](*args)
    out = data[nest.store.slot].astype(np.float64)
    small = [1 if i in sums else n for i, n in enumerate(shape)]
    at, result, ok = (
        np.broadcast_to(x, small)
        for x in (where(nest.store.index), done[nest.value], holds(nest.store.masks))
    )
    out[at[ok]] = result[ok]
    assert len(np.unique(at[ok])) == ok.sum() == math.prod(small) - (~ok).sum()
    return out
