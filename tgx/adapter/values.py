"""What every node of a Tensor graph held: the graph, computed again in NumPy, node by node.

tinygrad fuses: most nodes of a graph never exist in memory, so their values cannot be read, only
computed again. A graph is first copied into `Row`s, which hold none of its UOps, together with the
contents of the buffers it reads (`snapshot`); later, when the program has moved on, `Values`
computes it, in the graph's own types or, for the check of gradients, with every float a float64.

Products as large as a matmul's (rows × columns × inner) are never made: they stay a recipe
(`Deferred`) until they are summed, by NumPy's einsum, or sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tinygrad.device import Buffer, MultiBuffer
from tinygrad.dtype import AddrSpace, Invalid, dtypes
from tinygrad.uop.ops import GroupOp, Ops, UOp

from tgx import model
from tgx.adapter.reference import ARITHMETIC, REDUCTIONS, run
from tgx.adapter.wording import shape_text

Array = Any  # np.ndarray, Deferred, a list of arrays (one a device), or None: not known

DEFER = 1 << 18  # elements of a product with broadcast factors from which on it is only a recipe
MOST_ELEMENTS = 1 << 24  # of one array; beyond, only a recipe
SUMMARY = 1 << 16  # elements that a summary looks at
SAMPLE = 6  # elements a summary shows

SAME = {
    Ops.CONTIGUOUS, Ops.CONTIGUOUS_BACKWARD, Ops.DETACH, Ops.COPY, Ops.NOOP, Ops.STAGE, Ops.MSTACK,
}  # fmt: skip
COMPARE = {Ops.CMPLT, Ops.CMPNE, Ops.CMPEQ}


# **** a graph without its UOps ****


@dataclass(slots=True)
class Row:
    """One node: its sources are places in the same list. ``arg`` is what the operation needs: a
    shape, an order of axes, (operation, axes) of a reduce, a constant…"""

    op: Ops
    dtype: Any
    shape: tuple[int, ...] | None
    src: tuple[int, ...] = ()
    arg: Any = None


@dataclass
class Rows:
    """A graph: its rows, sources first, and the contents of its buffers, by row."""

    rows: list[Row] = field(default_factory=list)
    buffers: dict[int, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    nbytes: int = 0  # of the buffers

    def __len__(self) -> int:
        return len(self.rows)


def data_sources(node: UOp) -> tuple[UOp, ...]:
    """The sources that carry a node's values: without its shape and its ranges."""
    if node.op in GroupOp.Movement or node.op in (Ops.REDUCE, Ops.UNSHARD):
        return node.src[:1]
    if node.op in (Ops.BUFFER, Ops.PARAM, Ops.CONST, Ops.RANGE):
        return ()
    if node.op in (Ops.FUNCTION, Ops.CALL):
        return node.src[1:]
    if node.op is Ops.AFTER and node.is_bound_var:
        return ()
    return node.src


def in_order(roots: Iterable[UOp], known: dict[UOp, None] | None = None) -> list[UOp]:
    """The nodes that ``roots`` are made of, each after its data sources. Those ``known`` are left
    out, and the others are known from then on."""
    seen = {} if known is None else known
    found: list[UOp] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if node in seen:
                continue
            if done:
                seen[node] = None
                found.append(node)
            else:
                stack.append((node, True))
                stack.extend((s, False) for s in reversed(data_sources(node)))
    return found


def rows_of(nodes: Sequence[UOp], room: int = 0) -> Rows:
    """Copies a graph, and what its buffers hold now, as far as there is ``room`` for the bytes.
    ``nodes`` are in order."""
    place = {n: i for i, n in enumerate(nodes)}
    out = Rows()
    for i, n in enumerate(nodes):
        try:
            shape = _ints(n._shape)
            arg = _argument(n)
        except Exception:  # symbolic, or made by something that has no shape
            shape, arg = None, None
        src = tuple(place[s] for s in data_sources(n) if s in place)
        out.rows.append(Row(n.op, n.dtype, shape, src, arg))
        if room and n.op is Ops.BUFFER:
            size = math.prod(shape or (0,)) * n.dtype.itemsize
            if out.nbytes + size > room:
                out.missing.append(f"values: there was no room to keep a buffer of {size:,} bytes")
            elif (held := contents(n)) is not None:
                out.buffers[i] = held
                out.nbytes += size
    return out


def contents(node: UOp) -> Any:
    """What a BUFFER holds now: an array, a list of them (one a device), or None."""
    if node.addrspace is AddrSpace.ALU or not node.is_realized:
        return None
    buffer = node.buffer
    if isinstance(buffer, MultiBuffer):
        return [_read(b, node) for b in buffer.bufs]
    return _read(buffer, node)


def _read(buffer: Buffer, node: UOp) -> Any:
    raw = np.frombuffer(buffer.ensure_allocated().as_memoryview(), dtype=np.uint8)
    dtype = node.dtype
    if dtype is dtypes.bfloat16:
        array = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        kind = storage_type(dtype)
        if kind is None:
            return None
        array = raw.view(kind).copy()
    return array.reshape(_ints(node._shape))


def _ints(shape: Any) -> tuple[int, ...] | None:
    if shape is None:
        return None
    return tuple(map(_int, shape))


def _int(size: Any) -> int:
    """A size as a number: of a Variable, the value it is bound to."""
    if isinstance(size, int):
        return size
    bound = {n: n.const_like(n.src[1].src[1].arg) for n in size.toposort() if n.is_bound_var}
    known = size.substitute(bound).simplify() if bound else size
    if known.vmin != known.vmax:
        raise Unknown("a size that is not known")
    return int(known.vmax)


def _argument(n: UOp) -> Any:
    if n.op in (Ops.RESHAPE, Ops.EXPAND):
        return _ints(n.marg)
    if n.op in (Ops.PAD, Ops.SHRINK):
        return _by_device(n)
    if n.op in (Ops.PERMUTE, Ops.FLIP):
        return tuple(n.marg)
    if n.op is Ops.CONST:
        return None if n.arg is Invalid else n.arg
    if n.op is Ops.UNSHARD:
        return n.arg[0] if len(n.arg) == 1 else None
    if n.op in (Ops.FUNCTION, Ops.CALL):
        body = n.src[0]
        return rows_of(in_order([body])) if body.op is Ops.TUPLE else _plain_kernel(body)
    if n.op is Ops.PARAM:
        return n.arg.slot
    if n.op is Ops.AFTER and n.is_bound_var:
        return n.src[1].src[1].arg
    if n.op is Ops.MSELECT:
        return n.arg
    return n.arg


def _plain_kernel(body: UOp) -> UOp | None:
    """A kernel written by hand, if it is one that `reference.run` computes as it stands: whole
    buffers of one axis, and no running totals."""
    nodes = body.toposort()
    plain = body.op is Ops.SINK and all(
        n.op is not Ops.AFTER and (n.op is not Ops.INDEX or (
            len(n.src) == 2 and n.src[0].op is Ops.PARAM and len(n.src[0].shape) == 1))
        for n in nodes
    )
    return body if plain else None


def _by_device(n: UOp) -> Any:
    """((offset, size), …), or a list of such: one for each device, where it depends on it."""
    pairs = n.marg
    ranges = {r for pair in pairs for x in pair if isinstance(x, UOp)
              for r in x.toposort() if r.op is Ops.RANGE}
    if not ranges:
        return tuple((_int(offset), _int(size)) for offset, size in pairs)
    (device,) = ranges
    return [
        tuple(
            tuple(x if isinstance(x, int) else int(x.substitute({device: device.const_like(d)})
                                                   .simplify().vmax) for x in pair)
            for pair in pairs
        )
        for d in range(int(device.vmax) + 1)
    ]


# **** number types ****


def storage_type(dtype: Any) -> Any:
    """The NumPy type with a dtype's bits, None where there is none."""
    import tinygrad.dtype as tg

    try:
        return tg._to_np_dtype(dtype)
    except Exception:
        return None


def number_type(dtype: Any, double: bool) -> Any:
    """The NumPy type a dtype is computed in."""
    if dtypes.is_float(dtype):
        if double or dtype in dtypes.weaks:
            return np.float64
        return {dtypes.float64: np.float64, dtypes.float16: np.float16}.get(dtype, np.float32)
    if dtype == dtypes.bool:
        return np.bool_
    return storage_type(dtype) or np.int64


def rounded(array: Any, dtype: Any, double: bool) -> Any:
    """bfloat16 is computed in float32: its results are rounded, half to even."""
    if dtype is not dtypes.bfloat16 or double:
        return array
    bits = np.asarray(array, np.float32).view(np.uint32)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), array, kept.view(np.float32))


# **** computing ****


class Deferred:
    """An elementwise operation on arrays of one shape, computed where it is looked at."""

    def __init__(self, op: Ops, apply: Callable[..., Any], sources: Sequence[Any],
                 shape: tuple[int, ...]) -> None:
        self.op, self.apply, self.shape = op, apply, shape
        self.sources = [broadcast(s, shape) for s in sources]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def view(self, change: Callable[[Any], Any], shape: tuple[int, ...]) -> Deferred:
        """The same, seen through a movement."""
        moved = [s.view(change, shape) if isinstance(s, Deferred) else change(s)
                 for s in self.sources]
        return Deferred(self.op, self.apply, moved, shape)

    def __getitem__(self, block: Any) -> Any:
        return self.apply(*(s[block] for s in self.sources))

    def whole(self) -> Any:
        if self.size > 4 * MOST_ELEMENTS:
            raise TooLarge(f"{self.size:,} elements")
        return self[()] if not self.shape else self[tuple(slice(None) for _ in self.shape)]


class TooLarge(Exception):
    """A value that is not made, for its size."""


class Unknown(Exception):
    """A value that cannot be computed here."""


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(array, Deferred):
        if array.shape == shape:
            return array
        return array.view(lambda a: np.broadcast_to(a, shape), shape)
    return np.broadcast_to(array, shape)


def whole(array: Any) -> Any:
    return array.whole() if isinstance(array, Deferred) else array


def apply(row: Row, arrays: Sequence[Any], double: bool, kinds: Sequence[Any]) -> Any:
    """One elementwise operation. ``kinds`` are the dtypes of its sources."""
    op, kind = row.op, number_type(row.dtype, double)
    if op is Ops.CAST:
        return rounded(_cast(arrays[0], kind), row.dtype, double)
    if op is Ops.BITCAST:
        return _bitcast(arrays[0], kinds[0], row.dtype, double)
    if op is Ops.THREEFRY:
        return threefry(*arrays)
    if op in COMPARE:
        strong = [number_type(k, double) for k in kinds if k not in dtypes.weaks] or [np.float64]
        common = np.result_type(*strong)
        arrays = [np.asarray(a).astype(common, copy=False) for a in arrays]
    elif op is Ops.WHERE:
        arrays = [arrays[0], *(np.asarray(a).astype(kind, copy=False) for a in arrays[1:])]
    else:
        arrays = [np.asarray(a).astype(kind, copy=False) for a in arrays]
    made = ARITHMETIC[op](*arrays)
    return rounded(np.asarray(made).astype(kind, copy=False), row.dtype, double)


def _cast(array: Any, kind: Any) -> Any:
    array = np.asarray(array)
    if array.dtype.kind == "f" and np.dtype(kind).kind in "iu":  # towards zero, as tinygrad does
        return np.trunc(np.nan_to_num(array, posinf=0, neginf=0)).astype(np.int64).astype(kind)
    return array.astype(kind, copy=False)


def _bitcast(array: Any, old: Any, new: Any, double: bool) -> Any:
    before, after = storage_type(old), storage_type(new)
    if before is None or after is None:
        raise Unknown("a bitcast of this type")
    made = np.ascontiguousarray(np.asarray(array).astype(before, copy=False)).view(after)
    return made.astype(number_type(new, double), copy=False)


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(x: Any, key: Any) -> Any:
    """The random bits of Threefry 2×32, twenty rounds (Salmon et al., 2011)."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    low, high = (np.asarray(x) & mask).astype(np.uint32), (np.asarray(x) >> shift).astype(np.uint32)
    key = np.asarray(key)
    k0, k1 = (key & mask).astype(np.uint32), (key >> shift).astype(np.uint32)
    keys = (k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA), k0)
    with np.errstate(over="ignore"):
        a, b = low + keys[-1], high + keys[0]
        for i in range(5):
            for r in _ROTATIONS[i % 2]:
                a = a + b
                b = a ^ ((b << np.uint32(r)) | (b >> np.uint32(32 - r)))
            a, b = a + keys[i % 3], b + keys[(i + 1) % 3] + np.uint32(i + 1)
    return (b.astype(np.uint64) << shift) | a.astype(np.uint64)


def move(row: Row, array: Any, device: int = 0) -> Any:
    """A movement operation."""
    arg = row.arg[device] if isinstance(row.arg, list) else row.arg
    if row.op is Ops.RESHAPE:
        return whole(array).reshape(arg)
    if row.op is Ops.PAD:
        made = whole(array)
        return np.pad(made, [(o, size - o - s) for (o, size), s in
                             zip(arg, made.shape, strict=True)])
    changes: dict[Ops, Callable[[Any], Any]] = {
        Ops.EXPAND: lambda a: np.broadcast_to(a, (*arg, *a.shape)),
        Ops.PERMUTE: lambda a: a.transpose(arg),
        Ops.SHRINK: lambda a: a[tuple(slice(o, o + size) for o, size in arg)],
        Ops.FLIP: lambda a: a[tuple(slice(None, None, -1 if f else None) for f in arg)],
    }
    change = changes[row.op]
    if isinstance(array, Deferred):
        shape = change(np.broadcast_to(np.zeros(()), array.shape)).shape
        return array.view(change, shape)
    return change(array)


def reduce(row: Row, array: Any, double: bool) -> Any:
    """A reduce over the first axes: of a deferred product as a contraction."""
    op, count = row.arg[0], row.arg[1]
    kind = number_type(row.dtype, double)
    axes = tuple(range(count))
    if isinstance(array, Deferred):
        if op is Ops.ADD and array.op is Ops.MUL and len(array.sources) == 2:
            left, right = map(whole, array.sources)
            return contraction(left, right, count).astype(kind, copy=False)
        if count and array.size > MOST_ELEMENTS:
            inner = Row(Ops.REDUCE, row.dtype, row.shape, (), (op, count - 1))
            parts = [reduce(inner, array[i], double) for i in range(array.shape[0])]
            return REDUCTIONS[op](np.stack(parts), axis=0).astype(kind, copy=False)
        array = array.whole()
    return rounded(REDUCTIONS[op](array, axis=axes).astype(kind, copy=False), row.dtype, double)


def contraction(a: Any, b: Any, count: int) -> Any:
    """Σ a·b over the first axes of two arrays of one shape, of which some axes are only broadcast:
    these never come into being."""
    shape = a.shape
    letters = list(range(len(shape)))
    used: set[int] = set()
    parts: list[Any] = []
    for array in (a, b):
        kept = [i for i in letters if array.strides[i] != 0 and shape[i] != 1]
        parts += [array[tuple(slice(None) if i in kept else 0 for i in letters)], kept]
        used.update(kept)
    out = [i for i in letters[count:] if i in used]
    made = np.einsum(*parts, out, optimize=True)
    repeats = math.prod(shape[i] for i in letters[:count] if i not in used)
    if repeats != 1:
        made = made * made.dtype.type(repeats)
    full = tuple(shape[i] if i in used else 1 for i in letters[count:])
    return np.broadcast_to(made.reshape(full), shape[count:])


class Values:
    """Computes rows. ``visit(i, array)`` sees each; with ``keep`` they all stay, else those that
    nobody needs any more go."""

    def __init__(
        self,
        graph: Rows,
        double: bool = False,
        keep: bool = False,
        params: dict[int, Any] | None = None,
        buffers: dict[int, Any] | None = None,
    ) -> None:
        self.graph, self.double, self.keep, self.params = graph, double, keep, params or {}
        self.buffers = graph.buffers if buffers is None else buffers
        self.held: dict[int, Array] = {}
        self.why: dict[int, str] = {}

    def run(self, visit: Callable[[int, Array], None] | None = None,
            uses: dict[int, list[int]] | None = None) -> dict[int, Array]:
        """Computes all rows. When ``visit(i, ...)`` is called, the rows ``uses[i]`` are held."""
        rows, uses = self.graph.rows, uses or {}
        readers = [0] * len(rows)
        for i, row in enumerate(rows):
            for s in (*row.src, *uses.get(i, ())):
                readers[s] += 1
        with np.errstate(all="ignore"):
            for i, row in enumerate(rows):
                self.held[i] = self.one(i, row)
                if visit is not None:
                    visit(i, self.held[i])
                if not self.keep:
                    for s in (*row.src, *uses.get(i, ())):
                        readers[s] -= 1
                        if not readers[s]:
                            self.held.pop(s, None)
                    if not readers[i] and i < len(rows) - 1:
                        self.held.pop(i, None)
        return self.held

    def again(self, changed: dict[int, Array], rows: Sequence[int], wanted: int) -> Array:
        """The value of ``wanted`` where some rows are replaced; ``rows`` are those that change."""
        before = self.held
        self.held = _Overlay(before, changed)
        try:
            with np.errstate(all="ignore"):
                for i in rows:
                    self.held[i] = self.one(i, self.graph.rows[i])
            return self.held[wanted]
        finally:
            self.held = before

    def one(self, i: int, row: Row) -> Array:
        """The value of one row, None where it is not known."""
        arrays = [self.held.get(s) for s in row.src]
        try:
            return self._compute(i, row, arrays)
        except (Unknown, TooLarge, MemoryError, ValueError, TypeError, IndexError) as e:
            self.why[i] = str(e) or "not enough memory"
            return None

    def _compute(self, i: int, row: Row, arrays: list[Array]) -> Array:
        op = row.op
        if op is Ops.BUFFER:
            held = self.buffers.get(i)
            if held is None:
                raise Unknown("not in memory when the walk began")
            return self._doubled(held, row.dtype)
        if op is Ops.CONST:
            if row.arg is None:
                raise Unknown("no value")
            return np.asarray(row.arg, dtype=number_type(row.dtype, self.double))
        if op is Ops.AFTER and not row.src:
            return np.asarray(row.arg, dtype=number_type(row.dtype, self.double))
        if op is Ops.PARAM:
            if row.arg not in self.params:
                raise Unknown("an input of a function")
            return self.params[row.arg]
        if op is Ops.TUPLE:
            return tuple(arrays)
        if op is Ops.STORE:
            return arrays[1] if len(arrays) > 1 else None
        if op is Ops.AFTER:
            return self._after(row, arrays)
        if op is Ops.FUNCTION:
            if not isinstance(row.arg, Rows):
                raise Unknown("made by a kernel written by hand")
            return self.function(row, arrays)
        if op is Ops.CALL:
            return self.kernel(row, arrays)
        if op is Ops.GETTUPLE:
            if not isinstance(arrays[0], tuple):
                raise Unknown("")
            return arrays[0][row.arg]
        if any(a is None for a in arrays):
            raise Unknown("made of a value that is not known")
        if op is Ops.UNSHARD:
            if not isinstance(arrays[0], list) or row.arg is None:
                raise Unknown("spread over several devices")
            return np.concatenate([whole(a) for a in arrays[0]], axis=row.arg)
        if op is Ops.MSELECT:
            return arrays[0][row.arg] if isinstance(arrays[0], list) else arrays[0]
        if op is Ops.MSTACK:
            return list(arrays)
        if op is Ops.ALLREDUCE:
            if not isinstance(arrays[0], list):
                raise Unknown("a sum over several devices")
            return REDUCTIONS[row.arg[0]](np.stack([whole(a) for a in arrays[0]]), axis=0)
        spread = next((len(a) for a in arrays if isinstance(a, list)), 0)
        if not spread and isinstance(row.arg, list):
            spread = len(row.arg)
        if spread:
            return [self._plain(row, [a[d] if isinstance(a, list) else a for a in arrays], d)
                    for d in range(spread)]
        return self._plain(row, arrays)

    def _doubled(self, held: Any, dtype: Any) -> Any:
        if isinstance(held, list):
            return [self._doubled(h, dtype) for h in held]
        return held.astype(number_type(dtype, self.double), copy=False)

    def _plain(self, row: Row, arrays: list[Any], device: int = 0) -> Any:
        op = row.op
        if op in SAME:
            if not arrays:
                raise Unknown("nothing")
            return arrays[0]
        if op in GroupOp.Movement:
            if row.arg is None:
                raise Unknown("a size that is not known")
            return move(row, arrays[0], device)
        if op is Ops.REDUCE:
            return reduce(row, arrays[0], self.double)
        if op is Ops.STACK:
            kind = number_type(row.dtype, self.double)
            return np.stack([whole(a).astype(kind, copy=False) for a in arrays])
        if op is Ops.INDEX:
            return _index(arrays)
        if op not in ARITHMETIC and op not in (Ops.CAST, Ops.BITCAST, Ops.THREEFRY):
            raise Unknown(f"NumPy has no row for {op.name}")
        return self.elementwise(row, arrays)

    def elementwise(self, row: Row, arrays: list[Any]) -> Any:
        kinds = [self.graph.rows[s].dtype for s in row.src]

        def compute(*parts: Any) -> Any:
            return apply(row, parts, self.double, kinds)

        if row.op is Ops.CAST and number_type(row.dtype, self.double) == number_type(
            kinds[0], self.double
        ) and row.dtype is not dtypes.bfloat16:
            return arrays[0]
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
        size = math.prod(shape)
        thin = row.op is Ops.MUL and size > DEFER and any(
            a.size < size or 0 in getattr(a, "strides", ()) for a in arrays
        )
        if row.op is not Ops.BITCAST and (
            thin or size > MOST_ELEMENTS or (size > DEFER and any(
                isinstance(a, Deferred) for a in arrays))
        ):
            return Deferred(row.op, compute, arrays, shape)
        return compute(*map(whole, arrays))

    def function(self, row: Row, arrays: list[Any]) -> tuple[Array, ...]:
        """A function's results: its body, its parameters replaced."""
        inner = Values(row.arg, self.double, params=dict(enumerate(arrays)))
        return inner.run()[len(row.arg) - 1]

    def kernel(self, row: Row, arrays: list[Array]) -> tuple[Array, ...]:
        """What a kernel written by hand leaves in its buffers."""
        if row.arg is None:
            raise Unknown("made by a kernel written by hand")
        shapes = [self.graph.rows[s].shape or () for s in row.src]
        kinds = [number_type(self.graph.rows[s].dtype, self.double) for s in row.src]
        buffers = [np.zeros(math.prod(s), k) if a is None else
                   np.array(whole(a)).reshape(-1).astype(k)
                   for a, s, k in zip(arrays, shapes, kinds, strict=True)]
        run(row.arg, buffers)
        return tuple(b.reshape(s) for b, s in zip(buffers, shapes, strict=True))

    def _after(self, row: Row, arrays: list[Any]) -> Array:
        """A tensor after something was stored in it."""
        value = arrays[0]
        for s, stored in zip(row.src[1:], arrays[1:], strict=True):
            store = self.graph.rows[s]
            if store.op is Ops.AFTER:
                continue
            if store.op is Ops.CALL and isinstance(stored, tuple) and row.src[0] in store.src:
                value = stored[store.src.index(row.src[0])]
                continue
            if store.op is not Ops.STORE or stored is None or len(store.src) < 2:
                raise Unknown("made by a kernel written by hand")
            target = store.src[0]
            if target == row.src[0] or self.graph.rows[target].shape == row.shape:
                value = stored
                continue
            if value is None:
                raise Unknown("part of it was never set")
            value = np.array(whole(value))
            places = self._places(target, row.src[0])
            value.reshape(-1)[places.reshape(-1)] = np.broadcast_to(
                whole(stored), places.shape
            ).reshape(-1)
        if isinstance(value, (np.ndarray, Deferred)):
            return broadcast(value, row.shape) if row.shape is not None else value
        return value

    def _places(self, view: int, base: int) -> Any:
        """Which elements of ``base`` a view of it shows."""
        if view == base:
            shape = self.graph.rows[base].shape or ()
            return np.arange(math.prod(shape)).reshape(shape)
        row = self.graph.rows[view]
        if not row.src or row.op not in GroupOp.Movement:
            if row.op is Ops.AFTER:
                return self._places(row.src[0], base)
            shape = row.shape or ()
            return np.arange(math.prod(shape)).reshape(shape)
        return move(row, self._places(row.src[0], base))


class _Overlay(dict[int, Array]):
    """Values laid over others."""

    def __init__(self, below: dict[int, Array], changed: dict[int, Array]) -> None:
        super().__init__(changed)
        self.below = below

    def get(self, key: int, default: Any = None) -> Any:
        return self[key] if key in self else self.below.get(key, default)

    def __missing__(self, key: int) -> Any:
        return self.below[key]


def _index(arrays: list[Any]) -> Any:
    """INDEX picks along the first axes; indices are numbers or arrays of them."""
    array, *places = arrays
    picked = np.ix_(*(np.atleast_1d(whole(p)).reshape(-1) for p in places)) if places else ()
    shape = tuple(d for p in places for d in p.shape) + array.shape[len(places):]
    return whole(array)[picked].reshape(shape)


# **** summaries ****


def sampled(array: Any, most: int = SUMMARY) -> Any:
    """Some elements of a large array, evenly spread: every n-th along its longest axes."""
    if array.size <= most:
        return whole(array)
    steps = [1] * len(array.shape)
    counts = list(array.shape)
    while math.prod(counts) > most:
        widest = max(range(len(counts)), key=counts.__getitem__)
        steps[widest] += 1
        counts[widest] = -(-array.shape[widest] // steps[widest])
    return array[tuple(slice(None, None, s) for s in steps)]


def summary(array: Array, shape: tuple[int, ...] | None = None) -> model.Value:
    """A value as the trace keeps it."""
    if isinstance(array, list):
        array = np.stack([whole(a) for a in array]) if array and array[0] is not None else None
    if array is None or isinstance(array, tuple):
        text = "" if shape is None else shape_text(shape)
        return model.Value(text, math.prod(shape or ()), known=False)
    with np.errstate(all="ignore"):
        size = int(array.size)
        looked = sampled(array, 16 * SUMMARY if isinstance(array, np.ndarray) else SUMMARY)
        flat = np.asarray(looked).reshape(-1)
        numbers = flat.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        norm = float(np.sqrt(np.sum(np.square(finite))))
        if finite.size and finite.size < size:
            norm *= math.sqrt(size / finite.size) if flat.size < size else 1.0
        first = array[tuple(slice(0, 2 if i < len(array.shape) - 1 else SAMPLE)
                            for i in range(len(array.shape)))] if size > SAMPLE else looked
        return model.Value(
            shape_text(array.shape),
            size,
            tuple(float(x) for x in np.asarray(first).reshape(-1)[:SAMPLE]),
            float(finite.mean()) if finite.size else 0.0,
            norm,
            float(np.min(finite)) if finite.size else 0.0,
            float(np.max(finite)) if finite.size else 0.0,
            int(np.isnan(numbers).sum()),
            int(np.isinf(numbers).sum()),
            int((numbers == 0).sum()),
            flat.size if flat.size < size else 0,
        )
