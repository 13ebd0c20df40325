"""Recovery: what a kernel really computes, found by trying every point instead of guessing.

tinygrad hands the device one kernel as an expression over RANGEs. After autograd that expression
can be badly disguised: the input gradient of a 3x3 convolution arrives as 4x4 *gated taps* whose
row is `(16*kh + h) % 17` and whose weight is `(16*kh + h) // 17`. Nobody wants to pattern-match
that. But ranges are small. `kh` and `h` have 64 points between them, so we visit all 64, ask which
of them pass the gate, and fit an **exact affine function** (rationals, no rounding) through the
points that do. The row turns out to be `h - kh`, the weight's `kh`; `kh = 3` is never valid.

This is the access function of the polyhedral model (Feautrier 1991), got from samples; it holds on
every point because it is *checked* on every point. What does not fit is a `Miss` with its reason,
and tinygrad's ordinary path compiles the kernel.

    recover(ast) -> Nest                  a Nest is plain data: axes, one store, one expression
    print(nest)                           its text form
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from tinygrad.codegen.decomp.transcendental import get_transcendental_patterns, xexp2
from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.uop.ops import AxisType, GroupOp, Ops, PatternMatcher, UOp, UPat, graph_rewrite

from tgx.devices.nest import Access, Affine, Axis, Mask, Miss, Nest, Node
from tgx.devices.points import (
    Group,
    Stride,
    conjuncts,
    evaluate,
    is_index,
    is_variable,
    ranges,
    split_terms,
    tie,
)

DTYPES = {
    dtypes.bool,
    dtypes.int8,
    dtypes.int16,
    dtypes.int32,
    dtypes.int64,
    dtypes.uint8,
    dtypes.uint16,
    dtypes.uint32,
    dtypes.uint64,
    dtypes.half,
    dtypes.bfloat16,
    dtypes.float32,
    dtypes.float64,
}


# ***************************** undoing the disguises *****************************


@dataclass(frozen=True)
class Kernel:
    """A kernel while it is being rewritten: where it stores, what, and over which ranges."""

    index: UOp  # INDEX of the output buffer
    value: UOp
    outs: tuple[UOp, ...]

    def substitute(self, table: dict[UOp, UOp]) -> Kernel:
        both = UOp.sink(self.index, self.value).substitute(table)
        value, outs = both.src[1], tuple(ranges(*[table.get(r, r) for r in self.outs]))
        fixed: dict[UOp, UOp] = {}
        for x in value.toposort():
            flat = (
                tuple(r for r in ranges(*x.src[1:]) if r not in outs) if x.op is Ops.REDUCE else ()
            )
            if x.op is Ops.REDUCE and x.src[1:] != flat:
                fixed[x] = x.src[0] if not flat else x.replace(src=(x.src[0], *flat))
        # a reduction may sit inside another: inner ones first
        for old in fixed:
            value = value.substitute({old: fixed[old]})
        return Kernel(both.src[0], value, outs)

    @property
    def reductions(self) -> list[UOp]:
        return [x for x in self.value.toposort() if x.op is Ops.REDUCE]


def is_zero(u: UOp) -> bool:
    return u.op is Ops.CONST and not u.is_invalid and u.val == 0


def zero_gates(u: UOp) -> list[UOp]:
    """Gates that make `u` zero where they fail: such points add nothing to a sum."""
    if u.op is Ops.WHERE and is_zero(u.src[2]) and is_index(u.src[0]):
        return conjuncts(u.src[0]) + zero_gates(u.src[1])
    if u.op is Ops.MUL:
        return zero_gates(u.src[0]) + zero_gates(u.src[1])
    if u.op is Ops.CAST:
        return zero_gates(u.src[0])
    return []


def flatten(kernel: Kernel) -> Kernel:
    """sum_a(gate ? sum_b(x) : 0) is sum_ab(gate ? x : 0); gate ? sum(x) : 0 likewise."""
    for x in kernel.value.toposort():
        if x.op is Ops.WHERE and x.src[2].is_invalid and not dtypes.is_int(x.dtype):
            # no value where the condition fails: so it never does
            return flatten(replace(kernel, value=kernel.value.substitute({x: x.src[1]})))
        if (
            x.op is Ops.WHERE
            and is_zero(x.src[2])
            and is_index(x.src[0])
            and (red := x.src[1]).op is Ops.REDUCE
            and red.arg[0] is Ops.ADD
            and any(m.op in (Ops.FLOORDIV, Ops.FLOORMOD) for m in x.src[0].toposort())
        ):
            body = red.src[0]
            inner = red.replace(src=(x.src[0].where(body, body.const_like(0)), *red.src[1:]))
            return flatten(replace(kernel, value=kernel.value.substitute({x: inner})))
    for outer in kernel.reductions:
        gates, inner = [], outer.src[0]
        while inner.op is Ops.WHERE and is_zero(inner.src[2]) and is_index(inner.src[0]):
            gates, inner = [*gates, inner.src[0]], inner.src[1]
        if (
            inner.op is not Ops.REDUCE
            or inner.arg != outer.arg
            or (gates and outer.arg[0] is not Ops.ADD)
        ):
            continue
        if any(r in inner.src[1:] for g in gates for r in ranges(g)) or inner.dtype != outer.dtype:
            continue
        body = inner.src[0]
        for g in reversed(gates):
            body = g.where(body, body.const_like(0))
        merged = outer.replace(src=(body, *inner.src[1:], *outer.src[1:]))
        return flatten(replace(kernel, value=kernel.value.substitute({outer: merged})))
    return kernel


def fresh_range(kernel: Kernel, size: int, like: UOp) -> UOp:
    top = max((r.arg[0] for r in ranges(kernel.index, kernel.value)), default=0)
    return UOp.range(size, top + 1, like.arg[-1])


def simplify(kernel: Kernel) -> Kernel:
    """Drop reduce values that are never valid; solve for those that the output decides."""
    kernel = unwrap(flatten(kernel))
    ones = {
        r: UOp.const(0, dtypes.weakint) for r in ranges(kernel.index, kernel.value) if r.vmax == 0
    }
    if ones:
        return simplify(kernel.substitute(ones))
    for x in UOp.sink(kernel.index, kernel.value).toposort():
        if (
            x.op in (Ops.FLOORDIV, Ops.FLOORMOD)
            and x.src[0].op is Ops.RANGE
            and x.src[1].op is Ops.CONST
            and (0 < x.src[1].val <= x.src[0].vmax and (x.src[0].vmax + 1) % x.src[1].val == 0)
        ):
            return simplify(split_range(kernel, x.src[0], int(x.src[1].val)))
    for red in kernel.reductions:
        gates = list(dict.fromkeys(zero_gates(red.src[0]))) if red.arg[0] is Ops.ADD else []
        for group in tie(ranges(g) for g in gates):
            group.valid = group.table(
                [g for g in gates if ranges(g) and ranges(g)[0] in group.axes]
            )
            valid = group.valid.reshape(group.shape)
            for i, r in enumerate(group.axes):
                if r not in red.src[1:]:
                    continue
                alive = np.flatnonzero(
                    valid.any(tuple(j for j in range(len(group.axes)) if j != i))
                )
                if not len(alive):
                    raise Miss("a reduction has no valid point")
                if len(alive) <= r.vmax:
                    step = int(alive[1] - alive[0]) if len(alive) > 1 else 1
                    if (np.diff(alive) == step).all():
                        new = fresh_range(kernel, len(alive), r)
                        return simplify(kernel.substitute({r: new * step + int(alive[0])}))
                for j, g in enumerate(group.axes):
                    others = tuple(x for x in range(len(group.axes)) if x not in (i, j))
                    if g in kernel.outs and (found := residues(pair_table(valid, i, j, others))):
                        return simplify(split(kernel, red, r, g, *found))
    return kernel


def pair_table(valid: np.ndarray, i: int, j: int, others: tuple[int, ...]) -> np.ndarray:
    both = valid.any(others) if others else valid
    return both if i < j else both.T


def split_range(kernel: Kernel, r: UOp, s: int) -> Kernel:
    """r becomes s*r' + r'', and every r // s and r % s is gone."""
    high = fresh_range(kernel, -(-(int(r.vmax) + 1) // s), r)
    low = UOp.range(s, high.arg[0] + 1, r.arg[-1])
    return bounded(
        kernel.substitute(
            {
                r: high * s + low,
                **{
                    x: high if x.op is Ops.FLOORDIV else low
                    for x in UOp.sink(kernel.index, kernel.value).toposort()
                    if x.op in (Ops.FLOORDIV, Ops.FLOORMOD)
                    and x.src[0] is r
                    and x.src[1].op is Ops.CONST
                    and x.src[1].val == s
                },
            }
        ),
        high * s + low,
        int(r.vmax) + 1,
    )


def bounded(kernel: Kernel, new: UOp, size: int) -> Kernel:
    """Nothing happens where `new`, which replaced a range of `size`, is beyond it."""
    if new.vmax < size:
        return kernel
    if ranges(new)[0] in kernel.outs:
        buf, idx = kernel.index.src[0], kernel.index.src[1]
        return replace(kernel, index=buf.index(idx.get_idx().valid(idx.get_valid() & (new < size))))
    for red in kernel.reductions:
        if ranges(new)[0] in red.src[1:]:
            if red.arg[0] is not Ops.ADD:
                raise Miss("a reduction that is no sum has a rest")
            body = (new < size).where(red.src[0], red.src[0].const_like(0))
            kernel = replace(
                kernel, value=kernel.value.substitute({red: red.replace(src=(body, *red.src[1:]))})
            )
    return kernel


def unwrap(kernel: Kernel) -> Kernel:
    """Drop a // or % that never wraps where its access is valid (`% size of the buffer`, often).

    The dividend is a sum over groups of ranges, so its extremes over the valid points are exact."""
    table: dict[UOp, UOp] = {}
    for x in UOp.sink(kernel.index, kernel.value).toposort():
        if x.op is not Ops.INDEX or not is_index(x.src[1]):
            continue
        idx, valid = x.src[1].get_idx(), x.src[1].get_valid()
        wraps = [
            m
            for m in idx.toposort()
            if m.op in (Ops.FLOORDIV, Ops.FLOORMOD)
            and m.src[1].op is Ops.CONST
            and m.src[1].val > 0
        ]
        if not wraps:
            continue
        gates = [g for g in conjuncts(valid) if ranges(g)]
        inner: dict[UOp, UOp] = {}
        for m in wraps:
            low, coefs, rest = split_terms(m.src[0])
            high, size = low, int(m.src[1].val)
            try:
                groups = tie([ranges(e) for e in gates + rest])
            except Miss:  # too many points
                continue
            for group in groups:
                points = group.table([g for g in gates if ranges(g)[0] in group.axes])
                part = sum(
                    [coefs.pop(r, 0) * group.env[r] for r in group.axes]
                    + [
                        np.broadcast_to(evaluate(t, group.env), points.shape)
                        for t in rest
                        if ranges(t)[0] in group.axes
                    ]
                )[points]
                if not len(part):
                    raise Miss("an access has no valid point")
                low, high = low + int(part.min()), high + int(part.max())
            least, most = extremes(coefs)
            low, high = low + least, high + most
            if (q := low // size) == high // size:
                inner[m] = (
                    UOp.const(q, dtypes.weakint) if m.op is Ops.FLOORDIV else m.src[0] + (-q * size)
                )
        if inner:
            idx = idx.substitute(inner)
            table[x] = x.replace(src=(x.src[0], idx.valid(valid) if gates else idx))
    return kernel.substitute(table) if table else kernel


def residues(table: np.ndarray) -> tuple[int, int, int, bool] | None:
    """Is r decided by g, modulo something? table[r, g] says which pairs are valid.

    Returns (s, a, b, single): every valid r is a*(g mod s)+b modulo s; single: it is that value."""
    nr, ng = table.shape
    cols = [np.flatnonzero(table[:, g]) for g in range(ng)]
    gaps = functools.reduce(np.gcd, [int(x) for c in cols for x in np.diff(c)], 0)
    for s in [int(gaps)] if gaps else range(2, nr + 1):
        if s < 2:
            continue
        want: dict[int, int] = {}
        if any(
            want.setdefault(g % s, int(c[0]) % s) != int(c[0]) % s
            for g, c in enumerate(cols)
            if len(c)
        ):
            continue
        if not gaps and any(int(c[0]) >= s for c in cols if len(c)):
            continue
        for a in (1, -1, 0):
            for b in range(s):
                if all((a * m + b) % s == v for m, v in want.items()) and (
                    all(0 <= a * m + b < s for m in range(s))
                ):
                    return s, a, b, not gaps
    return None


def split(kernel: Kernel, red: UOp, r: UOp, g: UOp, s: int, a: int, b: int, single: bool) -> Kernel:
    """g becomes s*g' + g'' and r becomes s*r' + a*g''+b: the stride is gone from the gates."""
    ng, nr = int(g.vmax) + 1, int(r.vmax) + 1
    high = fresh_range(kernel, -(-ng // s), g)
    low = UOp.range(s, high.arg[0] + 1, g.arg[-1])
    wide = UOp.range(-(-nr // s), high.arg[0] + 2, r.arg[-1])
    new_g = high * s + low
    new_r = low * a + b if single else wide * s + low * a + b
    if not single and nr % s:  # the last r' does not exist for every g''
        body = (new_r < nr).where(red.src[0].substitute({r: new_r}), red.src[0].const_like(0))
        kernel = replace(
            kernel,
            value=kernel.value.substitute(
                {red: red.replace(src=(body, *[wide if x is r else x for x in red.src[1:]]))}
            ),
        )
    return bounded(kernel.substitute({r: new_r, g: new_g}), new_g, ng)


# ***************************** from UOps to the Nest *****************************


class Builder:
    """Turns a simplified Kernel into a Nest, checking every index on every point."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        reds = kernel.reductions
        # several sums for the same outputs: the longest is the nest's own, the others are parts
        self.red = max(
            reds, key=lambda r: int(np.prod([x.vmax + 1 for x in r.src[1:]])), default=None
        )
        self.others = [r for r in reds if r is not self.red]
        if self.red is not None and any(
            r in o.src[0].toposort() or o in r.src[0].toposort()
            for o in reds
            for r in reds
            if r is not o
        ):
            raise Miss("a reduction of a reduction")
        sums = tuple(self.red.src[1:]) if self.red is not None else ()
        self.names: dict[UOp, str] = {}
        const, coefs, _ = split_terms(kernel.index.src[1].get_idx())
        del const
        outs = sorted(kernel.outs, key=lambda r: -coefs.get(r, 0))
        for prefix, members in (("o", outs), ("r", sums)):
            for i, r in enumerate(members):
                if r.dtype is dtypes.void or r.src[0].op is not Ops.CONST:
                    raise Miss("a range has a symbolic size")
                self.names[r] = f"{prefix}{i}"
        self.axes = tuple(Axis(n, int(r.vmax) + 1, r in kernel.outs) for r, n in self.names.items())
        self.gates = (
            list(dict.fromkeys(zero_gates(self.red.src[0])))
            if self.red is not None and self.red.arg[0] is Ops.ADD
            else []
        )
        self.groups = tie(self.bundles())
        self.of_range = {r: g for g in self.groups for r in g.axes}
        for g in self.groups:
            g.valid = g.table(self.within(g, self.gates))
        self.memo: dict[tuple[UOp, bool], Node] = {}
        self.stored: tuple[Mask, ...] = ()  # where there is something to store

    def bundles(self) -> Iterator[list[UOp]]:
        """What is tied: the ranges of each gate, and of each index term that is not linear."""
        for x in UOp.sink(self.kernel.index, self.kernel.value).toposort(
            gate=lambda u: u not in self.others
        ):
            if x.op is Ops.INDEX:
                if not is_index(x.src[1]):
                    raise Miss("an index depends on loaded data")
                yield from (ranges(g) for g in conjuncts(x.src[1].get_valid()))
                yield from (ranges(t) for t in split_terms(x.src[1].get_idx())[2])
            elif x.op is Ops.WHERE and not x.src[2].is_invalid and is_index(x.src[0]):
                yield from (ranges(g) for g in conjuncts(x.src[0]))
            elif x.dtype is dtypes.bool and x.op in GroupOp.ALU and is_index(x):
                yield from (ranges(g) for g in conjuncts(x))

    def within(self, group: Group, gates: list[UOp]) -> list[UOp]:
        return [g for g in gates if (rs := ranges(g)) and rs[0] in group.axes]

    def mask(self, group: Group, table: np.ndarray, inside: bool) -> Mask:
        """A Mask on the axes of the group that matter."""
        implied = inside and not (group.valid & ~table).any()
        grid, axes = table.reshape(group.shape), [self.names[r] for r in group.axes]
        for i in reversed(range(len(axes))):
            if (grid == grid.take([0], i)).all():
                grid, axes = grid.take(0, i), axes[:i] + axes[i + 1 :]
        return Mask.of(axes, np.ascontiguousarray(grid), implied)

    def masks(self, gates: list[UOp], inside: bool) -> tuple[Mask, ...]:
        out = []
        for group in self.groups:
            if mine := self.within(group, gates):
                if not (table := group.table(mine)).all():
                    out.append(self.mask(group, table, inside))
        if any(not ranges(g) for g in gates):
            raise Miss("a gate is never true")
        return tuple(out)

    def access(self, u: UOp, inside: bool) -> Access:
        buf, where = u.src[0], u.src[1]
        if len(u.src) != 2 or buf.op is not Ops.PARAM or buf.addrspace is not AddrSpace.GLOBAL:
            raise Miss(f"an access of {buf.op.name} with {len(u.src) - 1} indices")
        if buf.dtype not in DTYPES:
            raise Miss(f"dtype {buf.dtype.name}")
        gates = conjuncts(where.get_valid())
        if any(not ranges(g) for g in gates):
            raise Miss("a gate is never true")
        const, coefs, rest = split_terms(where.get_idx())
        bent: set[int] = set()
        for gi, group in enumerate(self.groups):
            if terms := [t for t in rest if ranges(t) and ranges(t)[0] in group.axes]:
                points = group.table(self.within(group, gates)) & (group.valid if inside else True)
                if not points.any():
                    raise Miss("an access has no valid point")
                c, more = group.fit(terms, points)
                const += c
                for a, v in more.items():
                    coefs[a] = coefs.get(a, 0) + v
                bent.add(gi)
        least, most = extremes(coefs)
        inbounds = const + least >= 0 and const + most < buf.max_numel()
        axes = {a: c for a, c in coefs.items() if c and not is_variable(a)}
        masks = []
        for gi, group in enumerate(self.groups):
            table = group.table(self.within(group, gates))
            # the fit holds on the domain only, and so may the buffer: do not load elsewhere
            if inside and (gi in bent or not inbounds):
                table &= group.valid
            mask = self.mask(group, table, inside)
            if mask.implied:
                # A gate of the whole sum is no business of a load that is safe without it. And for
                # its safety only the axes count that move it.
                mask = narrowed(mask, {self.names[a] for a in axes})
            if not mask.table.all() and not (mask.implied and inbounds):
                masks.append(mask)
        if not inbounds:  # a last block may reach past the outputs: nothing need be there to load
            mine = {self.names[a] for a in axes}
            for mask in (narrowed(m, mine) for m in self.stored):
                if not any(m.axes == mask.axes and not (m.table & ~mask.table).any()
                           for m in masks) and not mask.table.all():  # fmt: skip
                    masks.append(mask)
        return Access(
            buf.arg.slot,
            buf.dtype,
            int(buf.max_numel()),
            replace(
                Affine.of(const, {self.names[a]: c for a, c in axes.items()}),
                variables=tuple(sorted((a.expr, c) for a, c in coefs.items() if is_variable(a))),
            ),
            tuple(masks),
        )

    def node(self, u: UOp, inside: bool, want: DType | None = None) -> Node:
        """The Node of a UOp; `want` is the dtype a weak constant takes from its neighbours."""
        if u.op is Ops.CONST:
            if u.is_invalid:
                raise Miss("an invalid value")
            return Node("const", u.dtype if want is None else want, arg=u.val)
        if (u, inside) not in self.memo:
            self.memo[u, inside] = self.build(u, inside)
        node = self.memo[u, inside]
        if want is not None and u.dtype in dtypes.weaks and node.dtype != want:
            node = Node("cast", want, (node,))
        return node

    def build(self, u: UOp, inside: bool) -> Node:
        if u.dtype is dtypes.bool and u.op in GroupOp.ALU and is_index(u):
            masks = tuple(m for m in self.masks(conjuncts(u), inside) if not m.implied)
            return Node("mask", dtypes.bool, arg=masks)
        dtype = strong(u)
        if dtype not in DTYPES:
            raise Miss(f"dtype {dtype.name}")
        if u.op is Ops.INDEX:
            return Node("load", dtype, arg=self.access(u, inside))
        if is_variable(u):
            raise Miss("a variable is used as a value")
        if u.op is Ops.RANGE:
            return Node("index", dtype, arg=Affine(0, ((self.names[u], 1),)))
        if u in self.others:
            return Node("part", dtype, arg=self.others.index(u))
        if u.op is Ops.REDUCE:
            return Node("sum", dtype, (self.node(u.src[0], True, dtype),), u.arg[0])
        if u.op is Ops.WHERE:
            cond, yes = self.node(u.src[0], inside), self.node(u.src[1], inside, dtype)
            if cond.op == "mask" and (
                not cond.arg or (is_zero(u.src[2]) and covers(yes, cond.arg))
            ):
                return yes
            return Node("where", dtype, (cond, yes, self.node(u.src[2], inside, dtype)))
        if u.op in (Ops.CAST, Ops.BITCAST):
            if u.op is Ops.BITCAST and u.dtype.itemsize != u.src[0].dtype.itemsize:
                raise Miss("a bitcast that changes the shape")
            if (
                inside
                and u.op is Ops.CAST
                and u.dtype is dtypes.float32
                and u.src[0].op is Ops.MUL
                and (u.src[0].dtype in (dtypes.half, dtypes.bfloat16))
            ):
                # a product of halves summed in float: exact, as in tensor cores
                a, b = (self.node(s, True, u.src[0].dtype) for s in u.src[0].src)
                return Node("mul", dtype, (Node("cast", dtype, (a,)), Node("cast", dtype, (b,))))
            src = self.node(
                u.src[0], inside, strong(u.src[0]) if u.src[0].dtype in dtypes.weaks else None
            )
            return src if src.dtype == dtype else Node(u.op.name.lower(), dtype, (src,))
        if u.op in GroupOp.ALU and u.op not in (Ops.THREEFRY, Ops.POW, Ops.LOG2, Ops.SIN):
            if u.op is Ops.EXP2 and dtype is not dtypes.float32:  # of a half: in float
                src = self.node(u.src[0], inside, strong(u.src[0]))
                return Node(
                    "cast",
                    dtype,
                    (Node("exp2", dtypes.float32, (Node("cast", dtypes.float32, (src,)),)),),
                )
            if (
                u.op in (Ops.RECIPROCAL, Ops.SQRT, Ops.EXP2) and u.src[0].dtype != dtype
            ):  # of an integer
                return Node(
                    u.op.name.lower(),
                    dtype,
                    (Node("cast", dtype, (self.node(u.src[0], inside, strong(u.src[0])),)),),
                )
            if (over := quotient(u, dtype)) is not None:
                return Node("fdiv", dtype, tuple(self.node(s, inside, dtype) for s in over))
            kinds = [s.dtype for s in u.src if s.dtype not in dtypes.weaks]
            operand = (
                (kinds[0] if kinds else strong(u.src[0])) if u.op in GroupOp.Comparison else dtype
            )
            return Node(
                u.op.name.lower(), dtype, tuple(self.node(s, inside, operand) for s in u.src)
            )
        raise Miss(f"op {u.op.name}")

    def nest(self) -> Nest:
        store = self.access(self.kernel.index, False)
        self.stored = store.masks
        whole = self.kernel.value is not self.red  # else this is a part, and nothing is stored
        value = self.node(self.kernel.value, False, store.dtype if whole else None)
        if whole and value.dtype != store.dtype:
            raise Miss(f"stores {value.dtype.name} to a buffer of {store.dtype.name}")
        domain = tuple(self.mask(g, g.valid, False) for g in self.groups if not g.valid.all())
        parts = tuple(
            Builder(Kernel(self.kernel.index, r, self.kernel.outs)).nest() for r in self.others
        )
        axes = self.axes
        if not any(a.out for a in axes):  # one number: a loop of one step, so that there is one
            axes = (Axis("o0", 1, True), *axes)
            store = replace(store, index=Affine.of(store.index.const, {"o0": 1}))
        nest = Nest(axes, store, value, domain, parts)
        for n in value.walk():
            if (
                n.op == "load"
                and n.arg.slot == store.slot
                and ((n.arg.index != store.index and self.names) or self.red is not None)
            ):
                raise Miss("reads the buffer it writes")
        return nest


def quotient(u: UOp, dtype: DType) -> tuple[UOp, UOp] | None:
    """(a, b) of a * (1 / b), which tinygrad makes a / b of for the loops path, late: what is
    rounded once there must not be rounded twice here. `argmin` compares the two."""
    if u.op is Ops.MUL and dtype in (dtypes.float32, dtypes.float64, dtypes.half, dtypes.bfloat16):
        for a, b in (u.src, u.src[::-1]):
            if b.op is Ops.RECIPROCAL and b.src[0].dtype == dtype:
                return a, b.src[0]
    return None


def extremes(coefs: dict[UOp, int]) -> tuple[int, int]:
    """The least and the most that a sum of coefficient * range or variable can be."""
    ends = [(c * int(a.vmin), c * int(a.vmax)) for a, c in coefs.items()]
    return sum(map(min, ends)), sum(map(max, ends))


def narrowed(mask: Mask, axes: set[str]) -> Mask:
    """The mask over some of its axes: true where it holds for some point of the others."""
    drop = tuple(i for i, a in enumerate(mask.axes) if a not in axes)
    table = np.ascontiguousarray(mask.table.any(drop)) if drop else mask.table
    return Mask.of([a for a in mask.axes if a in axes], table, mask.implied)


def strong(u: UOp) -> DType:
    if u.dtype is dtypes.weakfloat:
        return dtypes.float32
    if u.dtype is dtypes.weakint:
        return dtypes.int64 if u.overflows(dtypes.int32) else dtypes.int32
    return u.dtype


def covers(node: Node, masks: tuple[Mask, ...]) -> bool:
    """Is `node` a load that is already zero wherever one of the masks fails?"""
    while node.op == "cast":
        node = node.src[0]
    return node.op == "load" and all(
        any(m.axes == own.axes and not (own.table & ~m.table).any() for own in node.arg.masks)
        for m in masks
    )


def kernel_of(ast: UOp) -> Kernel:
    """The one store of a SINK, and the ranges around it."""
    if ast.op is not Ops.SINK or len(ast.src) != 1:
        raise Miss(f"{len(ast.src)} stores in one kernel")
    end = ast.src[0]
    store, outs = (end.src[0], end.src[1:]) if end.op is Ops.END else (end, ())
    if store.op is not Ops.STORE or len(store.src) != 2 or store.src[0].op is not Ops.INDEX:
        raise Miss(f"the kernel ends in {store.op.name}")
    for x in ast.toposort():
        if x.op in (
            Ops.SPECIAL,
            Ops.BUFFER,
            Ops.STAGE,
            Ops.AFTER,
            Ops.CUSTOM,
            Ops.CUSTOMI,
            Ops.WMMA,
            Ops.CALL,
            Ops.IF,
            Ops.BARRIER,
            Ops.LOAD,
        ):
            raise Miss(f"op {x.op.name}")
        if x.op is Ops.RANGE and x.arg[-1] not in (AxisType.WEAK, AxisType.REDUCE, AxisType.LOOP):
            raise Miss(f"an axis of kind {x.arg[-1].name}")
        if x.op is Ops.RANGE and (x.dtype is dtypes.void or x.src[0].op is not Ops.CONST):
            raise Miss("a range has a symbolic size")
    return Kernel(store.src[0], store.src[1], tuple(outs))


# log2, sin and double's exp2 become polynomials: ordinary arithmetic, so vectors of any width.
# float's exp2, which softmax and GELU lean on, has a shorter one of its own (values.py).
polynomials = get_transcendental_patterns((Ops.SQRT, Ops.EXP2), False) + PatternMatcher(
    [
        (UPat(Ops.EXP2, dtype=dtypes.float64, src=(UPat.var("d"),)), xexp2),
    ]
)


def recover(ast: UOp) -> Nest:
    """The Nest of a kernel's AST. Raises Miss, with the reason, for what it cannot prove."""
    kernel = simplify(kernel_of(ast))
    if any(x.op in (Ops.EXP2, Ops.LOG2, Ops.SIN) for x in kernel.value.toposort()):
        kernel = replace(kernel, value=graph_rewrite(kernel.value, polynomials, name="polynomials"))
    for _ in range(8):
        try:
            return Builder(kernel).nest()
        except Stride as stride:
            kernel = simplify(split_range(kernel, stride.axis, stride.denominator))
    raise Miss("an index is affine only with fractions")
