"""The generator of random tensor programs: the only one in this project.

A program is data: a few seeded inputs and a list of steps, each an operation of the table `OPS`
on earlier values.  One row of that table says everything about an operation: the tinygrad
expression (what `source()` prints is the very text that `run_tinygrad()` executes), its meaning
in NumPy, and the type of its result.  So a program can be

* made:      `random_program(random.Random(7), size=2, families=("conv",))`
* run:       `run_tinygrad(program, "TGX", jit=True, backward=True)`
* predicted: `run_numpy(program)`, in float64 for floats and exactly for integers
* compared:  `check(program, "TGX", backward=True)` raises with a script that shows the error
* printed:   `source(program)`, a stand-alone tinygrad script
* kept:      `to_json(program)` and `from_json(text)`
* shrunk:    `shrink(program, fails)`, a smaller program that still fails

How near is near enough?  tinygrad's own tolerances (`TOLERANCE`, from its test_ops and
test_dtype_alu) hold for one well-conditioned operation, not for a chain that subtracts two nearly
equal numbers or stands at the kink of a relu.  So the reference runs several times more with a
little noise after every step, of the size of the type's rounding error: where noise moves an
element, the device may move it as far.  Integers that noise changes (the floor of 2.9999999)
are not compared.  `check` reports how many elements stayed comparable, and tests hold it high.

Gradients are compared with central differences of the float64 reference: at corner and random
entries of each input, and along random directions through whole slabs, which reach every entry.
Where the two one-sided differences disagree there is a kink, and nothing to compare.

The generator keeps a running reference of what it builds and throws a step away that would
overflow, divide by zero or leave a function's domain.  Inputs are never zero.

    python tests/programs.py --seed 7 --family conv                    # print a program
    python tests/programs.py --seed 7 --family conv --device CPU       # and check it
    python tests/programs.py --count 1000 --device TGX --backward      # check many
    python tests/programs.py --count 10000 --ways all                  # every way, see ways.py
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import math
import random
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# ------------------------------------------------------------------------------- number formats


@dataclass(frozen=True)
class Format:
    """What the reference must know of a dtype: storage in NumPy, rounding error, safe range."""

    store: Any  # the NumPy type that the reference computes in
    mantissa: int = 0  # bits after the leading one; inputs are drawn exactly representable
    tiny: float = 0.0  # numbers below this may be flushed or lose bits
    limit: float = math.inf  # the generator refuses values beyond this
    atol: float = 0.0  # tinygrad's own tolerances
    rtol: float = 0.0
    draws: int = 4  # noisy runs: coarse formats tie often, so they need more

    @property
    def eps(self) -> float:
        return 2.0 ** -(self.mantissa + 1) if self.mantissa else 0.0


FORMATS = {
    "bool": Format(np.bool_),
    "int8": Format(np.int8),
    "int16": Format(np.int16),
    "int32": Format(np.int32),
    "int64": Format(np.int64),
    "uint8": Format(np.uint8),
    "uint16": Format(np.uint16),
    "uint32": Format(np.uint32),
    "uint64": Format(np.uint64),
    "fp8e4m3": Format(np.float64, 3, 2.0**-6, 200, 1e-1, 1e-1, 16),
    "fp8e5m2": Format(np.float64, 2, 2.0**-14, 1e4, 1.0, 5e-1, 16),
    "float16": Format(np.float64, 10, 2.0**-14, 8e3, 1e-3, 1e-2, 8),
    "bfloat16": Format(np.float64, 7, 2.0**-126, 1e6, 1e-3, 2e-2, 10),
    "float32": Format(np.float64, 23, 2.0**-126, 1e6, 1e-6, 1e-3, 4),
    "float64": Format(np.float64, 52, 0.0, 1e9, 1e-10, 1e-7, 4),
}
FLOATS = ("float32", "float64", "float16", "bfloat16")
FP8 = ("fp8e4m3", "fp8e5m2")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
LOSS_WEIGHTS = [-1.5, -1.0, -0.5, 0.5, 1.0, 1.5]
GRAD_ATOL, GRAD_RTOL = {"float64": 1e-8, "float32": 1e-4}, {"float64": 1e-6, "float32": 1e-3}


def is_float(dtype: str) -> bool:
    return FORMATS[dtype].mantissa > 0


# ------------------------------------------------------------------------------------- programs


@dataclass(frozen=True)
class Input:
    """A seeded tensor.

    kind: "small" numbers, "wide" (every bit of an int), "index" below `high`, "signed" the same
    and its negatives, "unique0" an index whose entries along axis 0 are different.
    split: None lies on one device, an axis is split over two, -1 is copied to both.
    """

    shape: tuple[int, ...]
    dtype: str
    seed: int
    kind: str = "small"
    high: int = 0
    split: int | None = None


@dataclass(frozen=True)
class Step:
    """A row of OPS, the values it reads (inputs are numbered first, then steps), its arguments."""

    op: str
    reads: tuple[int, ...]
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Program:
    """Inputs, then steps.  Every value that no later step reads is an output.

    updates: (input, value) pairs; after each call the input, in its own memory, becomes the value,
    as an optimizer does it.  Such a program is called several times in a row.
    """

    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    family: str = ""
    updates: tuple[tuple[int, int], ...] = ()

    @property
    def outputs(self) -> tuple[int, ...]:
        read = {i for step in self.steps for i in step.reads}
        read |= {value for _, value in self.updates}
        first = len(self.inputs)
        return tuple(i for i in range(first, first + len(self.steps)) if i not in read)

    @property
    def state(self) -> tuple[int, ...]:
        """The inputs that the program updates."""
        return tuple(i for i, _ in self.updates)

    @property
    def spread(self) -> bool:
        """Whether it is on two devices."""
        return any(i.split is not None for i in self.inputs)

    @property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """The symbolic sizes: number -> its value and the largest it may have."""
        return {s.args[1]: (s.args[2], s.args[3]) for s in self.steps if s.op in SYMBOLIC}


def make_values(shape, dtype, seed, kind="small", high=0):
    """The numbers of an Input: exactly representable in its dtype, and never zero."""
    rng = np.random.default_rng(seed)
    if kind in ("index", "signed"):
        return np.asarray(rng.integers(-high if kind == "signed" else 0, high, size=shape), dtype)
    if kind.startswith("unique"):
        axis = int(kind[6:])
        order = rng.random([*shape[:axis], high, *shape[axis + 1 :]]).argsort(axis)
        return np.take(order, range(shape[axis]), axis).astype(dtype)
    if dtype == "bool":
        return np.asarray(rng.integers(0, 2, size=shape), dtype=np.bool_)
    bits = {"fp8e4m3": 3, "fp8e5m2": 2, "float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
    if dtype in bits:  # sign * 1.mantissa * 2^exponent, from 0.25 up to 2 in magnitude
        steps = 2 ** bits[dtype]
        mantissa = 1 + rng.integers(0, steps, size=shape) / steps
        sign = rng.choice([-1.0, 1.0], size=shape)
        return np.asarray(sign * mantissa * 2.0 ** rng.integers(-2, 1, size=shape))
    info = np.iinfo(dtype)
    lo, hi = (info.min, info.max) if kind == "wide" else (max(info.min, -9), 9)
    values = rng.integers(lo, hi, size=shape, dtype=np.dtype(dtype), endpoint=True)
    return np.where(values == 0, np.array(1, dtype), values)


def storable(dtype: str) -> str:
    """The NumPy dtype through which an input of this dtype travels."""
    return "float32" if dtype in (*FP8, "bfloat16") else dtype


# ---------------------------------------------------------------- operations: the NumPy meanings


def _erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _axes(axis, ndim):
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in ((axis,) if isinstance(axis, int) else axis))


def _logsumexp(x, axis, keepdim):
    m = x.max(axis=axis, keepdims=True)
    out = np.log(np.exp(x - m).sum(axis=axis, keepdims=True)) + m
    return out if keepdim else np.squeeze(out, axis=_axes(axis, x.ndim))


def _softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _layernorm(x, axis, eps):
    mean = x.mean(axis=axis, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=axis, keepdims=True) + eps)


def _pads(flat):
    """(left, right, top, bottom), the last axis first, to a pair per axis, the first axis first."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))[::-1]


def _windows(x, kernel, stride, dilation):
    """A view (..., outputs per axis, taps per axis) of the last len(kernel) axes."""
    n = len(kernel)
    lead, spatial = x.shape[: x.ndim - n], x.shape[x.ndim - n :]
    counts = tuple((s - d * (k - 1) - 1) // st + 1
                   for s, k, st, d in zip(spatial, kernel, stride, dilation, strict=True))
    strides = x.strides[x.ndim - n :]
    return np.lib.stride_tricks.as_strided(
        x, lead + counts + tuple(kernel),
        x.strides[: x.ndim - n] + tuple(s * st for s, st in zip(strides, stride, strict=True))
        + tuple(s * d for s, d in zip(strides, dilation, strict=True)), writeable=False)


def _conv(x, w, groups, stride, dilation, padding):
    n = w.ndim - 2
    x = np.pad(x, ((0, 0), (0, 0), *_pads(padding)))
    win = _windows(x, w.shape[2:], stride, dilation)  # batch, channel, out..., tap...
    batch, out = x.shape[0], win.shape[2 : 2 + n]
    win = win.reshape(batch, groups, x.shape[1] // groups, *win.shape[2:])
    taps = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    o, t = "xyz"[:n], "uvw"[:n]
    y = np.einsum(f"bgc{o}{t},gkc{t}->bgk{o}", win, taps, optimize=True)
    return y.reshape(batch, w.shape[0], *out)


def _conv_transpose(x, w, groups, stride, dilation, padding):
    n = w.ndim - 2
    batch, cin = x.shape[:2]
    per = w.shape[1]
    full = tuple((s - 1) * st + d * (k - 1) + 1 for s, st, d, k in
                 zip(x.shape[2:], stride, dilation, w.shape[2:], strict=True))
    out = np.zeros((batch, groups, per, *full), dtype=x.dtype)
    xg = x.reshape(batch, groups, cin // groups, *x.shape[2:])
    wg = w.reshape(groups, cin // groups, per, *w.shape[2:])
    o = "xyz"[:n]
    for tap in np.ndindex(*w.shape[2:]):  # each weight tap adds one shifted copy of the input
        where = tuple(slice(t * d, t * d + (s - 1) * st + 1, st) for t, d, s, st in
                      zip(tap, dilation, x.shape[2:], stride, strict=True))
        out[(slice(None),) * 3 + where] += np.einsum(
            f"bgc{o},gck->bgk{o}", xg, wg[(slice(None),) * 3 + tap], optimize=True)
    out = out.reshape(batch, groups * per, *full)
    cut = tuple(slice(a, s - b) for (a, b), s in zip(_pads(padding), full, strict=True))
    return out[(slice(None), slice(None), *cut)]


def _max_pool(x, kernel, stride, dilation, padding):
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    x = np.pad(x, ((0, 0),) * (x.ndim - len(kernel)) + _pads(padding), constant_values=low)
    win = _windows(x, kernel, stride, dilation)
    return win.max(axis=tuple(range(-len(kernel), 0)))


def _avg_pool(x, kernel, stride, dilation, padding, count_include_pad):
    edge = ((0, 0),) * (x.ndim - len(kernel)) + _pads(padding)
    axes = tuple(range(-len(kernel), 0))
    total = _windows(np.pad(x, edge), kernel, stride, dilation).sum(axis=axes)
    ones = np.pad(np.ones_like(x), edge, constant_values=1.0 if count_include_pad else 0.0)
    return total / _windows(ones, kernel, stride, dilation).sum(axis=axes)


def _pad_mode(x, pads, mode):
    return np.pad(x, pads, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))


def _scatter(x, index, source, dim, combine=None):
    """index and source may be smaller than x; combine None: the source replaces."""
    out = x.copy()
    where = list(np.indices(index.shape))
    where[dim] = index
    if combine is None:
        out[tuple(where)] = source
    else:
        combine.at(out, tuple(where), source)
    return out


def _changed(x, where, change):
    """A copy of x in which the places `where` hold change(what they held)."""
    out = x.copy()
    out[where] = change(out[where])
    return out


def _slices(parts):
    return tuple(slice(*s) for s in parts)


def _mse_step(w, x, rate):
    return w - rate * 2 * x.T @ (x @ w - 1) / (x.shape[0] * w.shape[1])


def _attention(q, k, v, causal):
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], dtype=bool)), scores, -np.inf)
    return _softmax(scores, -1) @ v


def _cross_entropy(x, labels):
    logp = x - _logsumexp(x, -1, True)
    return -np.take_along_axis(logp, labels[:, None].astype(np.int64), 1).mean()


def _bitcast(x, dtype):
    """The same bits as an integer type of the same width."""
    if x.dtype.kind == "f":  # the reference keeps every float in 64 bits
        x = x.astype(f"float{8 * np.dtype(dtype).itemsize}")
    return x.view(dtype)


def _round(x):
    return np.round(x)  # half to even, as tinygrad does


# ----------------------------------------------------------------------- operations: the table


def _same(dtypes, args):
    return dtypes[0]


def _bool(dtypes, args):
    return "bool"


def _second(dtypes, args):
    return dtypes[1]


def _int32(dtypes, args):
    return "int32"


def _argument(dtypes, args):
    return args[0]


def _sum_type(dtypes, args):
    """tinygrad sums small integers in 32 bits, and keeps a float's type."""
    d = dtypes[0]
    return {"bool": "int32", "int8": "int32", "int16": "int32", "uint8": "uint32",
            "uint16": "uint32"}.get(d, d)


def _mean_type(dtypes, args):
    return dtypes[0] if is_float(dtypes[0]) else "float32"


@dataclass(frozen=True)
class Op:
    """source: the tinygrad expression; {x} {y} {z} are values, {0} {1} … arguments.

    Where it names {out}, it is statements that make {out} instead: what changes a tensor in place.
    """

    source: str
    numpy: Callable[..., Any]
    dtype: Callable[[Sequence[str], Sequence[Any]], str] = _same
    rounds: bool = True  # False: it only moves values about, so its result is exact
    sums: bool = False  # it accumulates many terms: noise on its operands as well


def _moves(source: str, numpy: Callable[..., Any], dtype=_same) -> Op:
    return Op(source, numpy, dtype, rounds=False)


UNARY = {
    "neg": Op("-{x}", lambda x: -x, rounds=False),
    "abs": Op("{x}.abs()", np.abs, rounds=False),
    "relu": Op("{x}.relu()", lambda x: np.maximum(x, 0), rounds=False),
    "square": Op("{x}.square()", lambda x: x * x),
    "sign": Op("{x}.sign()", np.sign, rounds=False),
}
UNARY_FLOAT = {
    "exp": Op("{x}.exp()", np.exp),
    "exp2": Op("{x}.exp2()", np.exp2),
    "log": Op("{x}.log()", np.log),
    "log2": Op("{x}.log2()", np.log2),
    "sqrt": Op("{x}.sqrt()", np.sqrt),
    "rsqrt": Op("{x}.rsqrt()", lambda x: 1 / np.sqrt(x)),
    "reciprocal": Op("{x}.reciprocal()", lambda x: 1 / x),
    "sin": Op("{x}.sin()", np.sin),
    "cos": Op("{x}.cos()", np.cos),
    "tanh": Op("{x}.tanh()", np.tanh),
    "sigmoid": Op("{x}.sigmoid()", lambda x: 1 / (1 + np.exp(-x))),
    "silu": Op("{x}.silu()", lambda x: x / (1 + np.exp(-x))),
    "gelu": Op("{x}.gelu()", lambda x: 0.5 * x * (
        1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "softplus": Op("{x}.softplus()", lambda x: np.logaddexp(x, 0)),
    "elu": Op("{x}.elu()", lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "leaky_relu": Op("{x}.leaky_relu()", lambda x: np.where(x > 0, x, 0.01 * x)),
    "hardswish": Op("{x}.hardswish()", lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "softsign": Op("{x}.softsign()", lambda x: x / (1 + np.abs(x))),
    "atan": Op("{x}.atan()", np.arctan),
    "erf": Op("{x}.erf()", _erf),
    "floor": Op("{x}.floor()", np.floor),
    "ceil": Op("{x}.ceil()", np.ceil),
    "trunc": Op("{x}.trunc()", np.trunc),
    "round": Op("{x}.round()", _round),
    "add_const": Op("{x} + {0}", lambda x, c: x + c),
    "mul_const": Op("{x} * {0}", lambda x, c: x * c),
    "rsub_const": Op("{0} - {x}", lambda x, c: c - x),
    "pow_const": Op("{x} ** {0}", lambda x, c: x**c),
    "clip": Op("{x}.clip({0}, {1})", np.clip),
}
UNARY_INT = {
    "not": Op("~{x}", lambda x: ~x),
    "shl": Op("{x} << {0}", lambda x, n: np.left_shift(x, np.array(n, x.dtype))),
    "shr": Op("{x} >> {0}", lambda x, n: np.right_shift(x, np.array(n, x.dtype))),
    "idiv_const": Op("{x} // {0}", lambda x, c: np.floor_divide(x, np.array(c, x.dtype))),
    "mod_const": Op("{x} % {0}", lambda x, c: np.mod(x, np.array(c, x.dtype))),
    "add_int": Op("{x} + {0}", lambda x, c: x + np.array(c, x.dtype)),
    "mul_int": Op("{x} * {0}", lambda x, c: x * np.array(c, x.dtype)),
}
BINARY = {
    "add": Op("{x} + {y}", lambda x, y: x + y),
    "sub": Op("{x} - {y}", lambda x, y: x - y),
    "mul": Op("{x} * {y}", lambda x, y: x * y),
    "maximum": Op("{x}.maximum({y})", np.maximum, rounds=False),
    "minimum": Op("{x}.minimum({y})", np.minimum, rounds=False),
}
BINARY_FLOAT = {"div": Op("{x} / {y}", lambda x, y: x / y)}
BINARY_INT = {
    "and": Op("{x} & {y}", np.bitwise_and),
    "or": Op("{x} | {y}", np.bitwise_or),
    "xor": Op("{x} ^ {y}", np.bitwise_xor),
    "idiv": Op("{x} // {y}", np.floor_divide),
    "mod": Op("{x} % {y}", np.mod),
}
BINARY_BOOL = {
    "and": BINARY_INT["and"],
    "or": BINARY_INT["or"],
    "xor": BINARY_INT["xor"],
}
COMPARE = {
    "lt": Op("{x} < {y}", np.less, _bool),
    "ge": Op("{x} >= {y}", np.greater_equal, _bool),
    "eq": Op("{x}.eq({y})", np.equal, _bool),
    "ne": Op("{x}.ne({y})", np.not_equal, _bool),
}
MOVEMENT = {
    "reshape": _moves("{x}.reshape({0})", np.reshape),
    "permute": _moves("{x}.permute({0})", np.transpose),
    "expand": _moves("{x}.expand({0})", np.broadcast_to),
    "flip": _moves("{x}.flip({0})", lambda x, axes: np.flip(x, axes)),
    "slice": _moves("{x}[tuple(slice(*s) for s in {0})]",
                    lambda x, parts: x[tuple(slice(*s) for s in parts)]),
    "pad": _moves("{x}.pad({0}, value={1})",
                  lambda x, pads, value: np.pad(x, pads, constant_values=value)),
    "pad_mode": _moves("{x}.pad({0}, mode={1})", _pad_mode),
    "cat": _moves("{x}.cat({y}, dim={0})", lambda x, y, dim: np.concatenate([x, y], dim)),
    "stack": _moves("{x}.stack({y}, dim={0})", lambda x, y, dim: np.stack([x, y], dim)),
    "roll": _moves("{x}.roll({0}, {1})", np.roll),
    "repeat": _moves("{x}.repeat({0})", np.tile),
    "repeat_interleave": _moves("{x}.repeat_interleave({0}, {1})", np.repeat),
    "diagonal": _moves("{x}.diagonal({0})", lambda x, offset: np.diagonal(x, offset)),
    "tril": _moves("{x}.tril({0})", np.tril),
    "triu": _moves("{x}.triu({0})", np.triu),
    "contiguous": _moves("{x}.contiguous()", lambda x: x),
    "gather": _moves("{x}.gather({0}, {y})",
                     lambda x, y, dim: np.take_along_axis(x, y.astype(np.int64), dim)),
    "take": _moves("{x}[{y}]", lambda x, y: x[y.astype(np.int64)]),
    "take_column": _moves("{x}[:, {y}]", lambda x, y: x[:, y.astype(np.int64)]),
    "one_hot": _moves("{x}.one_hot({0}).cast('int32')",
                      lambda x, n: np.eye(n)[x.astype(np.int64)], _int32),
    "where": _moves("{x}.where({y}, {z})", np.where, _second),
    "masked_fill": _moves("{y}.masked_fill({x}, {0})",
                          lambda x, y, value: np.where(x, np.array(value, y.dtype), y), _second),
    "cast": Op("{x}.cast({0})", lambda x, dtype: x, _argument),
    "bitcast": _moves("{x}.bitcast({0})", _bitcast, _argument),
}
REDUCE = {
    "sum": Op("{x}.sum({0}, keepdim={1})",
              lambda x, axis, keep: np.sum(x, axis=axis, keepdims=keep), _sum_type, sums=True),
    "max": _moves("{x}.max({0}, keepdim={1})",
                  lambda x, axis, keep: np.max(x, axis=axis, keepdims=keep)),
    "min": _moves("{x}.min({0}, keepdim={1})",
                  lambda x, axis, keep: np.min(x, axis=axis, keepdims=keep)),
    "prod": Op("{x}.prod({0}, keepdim={1})",
               lambda x, axis, keep: np.prod(x, axis=axis, keepdims=keep, dtype=x.dtype),
               sums=True),
}
REDUCE_FLOAT = {
    "mean": Op("{x}.mean({0}, keepdim={1})",
               lambda x, axis, keep: np.mean(x, axis=axis, keepdims=keep), _mean_type, sums=True),
    "var": Op("{x}.var({0}, keepdim={1}, correction=0)",
              lambda x, axis, keep: np.var(x, axis=axis, keepdims=keep), sums=True),
    "std": Op("({x}.var({0}, keepdim={1}) + 0.5).sqrt()",
              lambda x, axis, keep: np.sqrt(np.var(x, axis=axis, keepdims=keep, ddof=1) + 0.5),
              sums=True),
    "logsumexp": Op("{x}.logsumexp({0}, keepdim={1})", _logsumexp, sums=True),
}
REDUCE_BOOL = {
    "sum_bool": _moves("{x}.sum({0}, keepdim={1}, dtype='bool')",
                       lambda x, axis, keep: np.any(x, axis=axis, keepdims=keep), _bool),
    "any": _moves("{x}.any({0}, keepdim={1})",
                  lambda x, axis, keep: np.any(x, axis=axis, keepdims=keep), _bool),
    "all": _moves("{x}.all({0}, keepdim={1})",
                  lambda x, axis, keep: np.all(x, axis=axis, keepdims=keep), _bool),
}
ONE_AXIS = {
    "argmax": Op("{x}.argmax({0}, keepdim={1})",
                 lambda x, axis, keep: np.argmax(x, axis=axis, keepdims=keep), _int32),
    "argmin": Op("{x}.argmin({0}, keepdim={1})",
                 lambda x, axis, keep: np.argmin(x, axis=axis, keepdims=keep), _int32),
    "cumsum": Op("{x}.cumsum({0})", lambda x, axis: np.cumsum(x, axis=axis), _sum_type, sums=True),
    "cumprod": Op("{x}.cumprod({0})", lambda x, axis: np.cumprod(x, axis=axis, dtype=x.dtype),
                  sums=True),
    "cummax": _moves("{x}.cummax({0})[0]", lambda x, axis: np.maximum.accumulate(x, axis=axis)),
    "sort": _moves("{x}.sort({0})[0]", lambda x, axis: np.sort(x, axis=axis)),
}
NORMALISE = {
    "softmax": Op("{x}.softmax({0})", _softmax, sums=True),
    "log_softmax": Op("{x}.log_softmax({0})",
                      lambda x, axis: x - _logsumexp(x, axis, True), sums=True),
    "layernorm": Op("{x}.layernorm({0}, eps={1})", _layernorm, sums=True),
    "attention": Op("{x}.scaled_dot_product_attention({y}, {z}, is_causal={0})",
                    _attention, sums=True),
    "cross_entropy": Op("{x}.cross_entropy({y})", _cross_entropy, sums=True),
}
CONTRACT = {
    "matmul": Op("{x} @ {y}", np.matmul, sums=True),
    "einsum": Op("Tensor.einsum({0}, {x}, {y})",
                 lambda x, y, formula: np.einsum(formula, x, y), _sum_type, sums=True),
    "conv": Op("{x}.conv2d({y}, groups={0}, stride={1}, dilation={2}, padding={3})",
               _conv, _sum_type, sums=True),
    "conv_transpose": Op(
        "{x}.conv_transpose2d({y}, groups={0}, stride={1}, dilation={2}, padding={3})",
        _conv_transpose, _sum_type, sums=True),
    "max_pool": _moves("{x}.max_pool2d({0}, stride={1}, dilation={2}, padding={3})", _max_pool),
    "avg_pool": Op("{x}.avg_pool2d({0}, stride={1}, dilation={2}, padding={3}, "
                   "count_include_pad={4})", _avg_pool, sums=True),
    "scatter_add": Op("{x}.scatter_reduce({0}, {y}, {z}, reduce='sum')",
                      lambda x, y, z, dim: _scatter(x, y, z, dim, np.add), sums=True),
    "scatter_max": _moves("{x}.scatter_reduce({0}, {y}, {z}, reduce='amax')",
                          lambda x, y, z, dim: _scatter(x, y, z, dim, np.maximum)),
}
INDEX = {
    "scatter": _moves("{x}.scatter({0}, {y}, {z})", lambda x, y, z, dim: _scatter(x, y, z, dim)),
    "take_pair": _moves("{x}[{y}, {z}]",
                        lambda x, y, z: x[y.astype(np.int64), z.astype(np.int64)]),
    "take_last": _moves("{x}[..., {y}]", lambda x, y: x[..., y.astype(np.int64)]),
    "take_after_slice": _moves("{x}[{0}:, {y}]", lambda x, y, n: x[n:, y.astype(np.int64)]),
    "pick": _moves("{x}[(slice(None),) * {0} + ({1},)]", lambda x, axis, at: np.take(x, at, axis)),
    "topk": _moves("{x}.topk({0}, dim=-1)[0]", lambda x, k: np.sort(x)[..., : -k - 1 : -1]),
}
IN_PLACE = {
    "set_slice": _moves("{out} = {x}.clone()\n{out}[tuple(slice(*s) for s in {0})] = {y}",
                        lambda x, y, parts: _changed(x, _slices(parts), lambda _: y)),
    "set_const": _moves("{out} = {x}.clone()\n{out}[tuple(slice(*s) for s in {0})] = {1}",
                        lambda x, parts, c: _changed(x, _slices(parts), lambda _: c)),
    "set_at": _moves("{out} = {x}.clone()\n{out}[{y}] = {z}",
                     lambda x, y, z: _changed(x, y.astype(np.int64), lambda _: z)),
    "add_slice": Op("{out} = {x}.clone()\n{out}[tuple(slice(*s) for s in {0})] += {y}",
                    lambda x, y, parts: _changed(x, _slices(parts), lambda old: old + y)),
    "assign": Op("{out} = {x}.clone()\n{out}.assign({out} + {y})", lambda x, y: x + y),
    "assign_turned": _moves("{out} = {x}.clone()\n{out}.assign({out}.flip(0))",
                            lambda x: np.flip(x, 0)),
    "mse_step": Op("{x} - {0} * ({y} @ {x} - 1).square().mean().gradient({x})[0]", _mse_step,
                   sums=True),
}
SYMBOLIC = {  # n0, n1 … are bound variables: shapes that change from call to call of a TinyJit
    "upto": _moves("{x}[(slice(None),) * {0} + (slice(n{1}),)]",
                   lambda x, axis, k, n, high: np.take(x, range(n), axis)),
    "window": _moves("{x}[(slice(None),) * {0} + (slice(n{1}, n{1} + {4}),)]",
                     lambda x, axis, k, n, high, size: np.take(x, range(n, n + size), axis)),
    "write_window": _moves(
        "{out} = {x}.clone()\n{out}[(slice(None),) * {0} + (slice(n{1}, n{1} + {4}),)] = {y}",
        lambda x, y, axis, k, n, high, size: _changed(
            x, (slice(None),) * axis + (slice(n, n + size),), lambda _: y)),
}
PLACES = {"to": _moves("{x}.to(devices[{0}])", lambda x, place: x)}
OPS: dict[str, Op] = {
    **UNARY, **UNARY_FLOAT, **UNARY_INT, **BINARY, **BINARY_FLOAT, **BINARY_INT, **COMPARE,
    **MOVEMENT, **REDUCE, **REDUCE_FLOAT, **REDUCE_BOOL, **ONE_AXIS, **NORMALISE, **CONTRACT,
    **INDEX, **IN_PLACE, **SYMBOLIC, **PLACES,
}


# ------------------------------------------------------------------------------- the reference


@dataclass(frozen=True)
class Noise:
    """Rounding errors, imitated: the same seed disturbs the same step in the same way."""

    seed: int

    def on(self, data: np.ndarray, dtype: str, place: int) -> np.ndarray:
        if not is_float(dtype):
            return data
        form = FORMATS[dtype]
        rng = np.random.default_rng((self.seed, place))
        shake, shift = rng.uniform(-2, 2, (2, *data.shape))
        return data * (1 + form.eps * shake) + form.tiny * form.eps * 4 * shift

    def compared(self, result: np.ndarray, a: np.ndarray, b: np.ndarray, dtype: str,
                 op: str) -> np.ndarray:
        """A comparison of numbers that rounding may make equal, or part: noise alone never hits
        equality, which rounding to bfloat16 often does."""
        close = np.abs(a - b) <= 2 * FORMATS[dtype].eps * np.maximum(np.abs(a), np.abs(b))
        if op in ("eq", "ne"):
            return close == (op == "eq")
        return result | close if self.seed % 2 else result & ~close


@dataclass(frozen=True)
class Value:
    dtype: str
    data: np.ndarray


def input_value(given: Input) -> Value:
    data = make_values(given.shape, given.dtype, given.seed, given.kind, given.high)
    return Value(given.dtype, data.astype(FORMATS[given.dtype].store))


def digits_of(step: Step, dtype: str) -> str:
    """The type whose digits a result has: tinygrad's arctangent has seven, also in float64."""
    return "float32" if step.op == "atan" and dtype == "float64" else dtype


def apply_numpy(step: Step, reads: Sequence[Value], place: int, noise: Noise | None) -> Value:
    """One step of the reference: float64 for every float, an integer's own width for integers."""
    op = OPS[step.op]
    dtype = op.dtype([v.dtype for v in reads], step.args)
    data = [v.data for v in reads]
    if noise is not None and op.sums:  # products are rounded to a half before they are summed
        data = [noise.on(v.data, v.dtype, place * 8 + n + 1) for n, v in enumerate(reads)]
    if op.dtype is _sum_type and not is_float(dtype):
        data = [d.astype(FORMATS[dtype].store) for d in data]
    with np.errstate(all="ignore"):
        result = np.asarray(op.numpy(*data, *step.args))
        if step.op == "cast" and reads[0].data.dtype.kind == "f" and not is_float(dtype):
            if dtype != "bool":
                result = np.trunc(result)
        result = result.astype(FORMATS[dtype].store)
    if noise is not None and step.op in COMPARE and data[0].dtype.kind == "f":
        result = noise.compared(result, data[0], data[1], reads[0].dtype, step.op)
    if noise is not None and op.rounds:
        result = noise.on(result, digits_of(step, dtype), place * 8)
    return Value(dtype, result)


def evaluate(program: Program, noise: Noise | None = None,
             inputs: Sequence[np.ndarray] | None = None) -> list[Value]:
    """Every value of the program, by NumPy; `inputs` replaces the seeded numbers."""
    values = [input_value(i) for i in program.inputs]
    if inputs is not None:
        values = [Value(v.dtype, d) for v, d in zip(values, inputs, strict=True)]
    for place, step in enumerate(program.steps):
        values.append(apply_numpy(step, [values[i] for i in step.reads], place, noise))
    return values


def run_numpy(program: Program) -> list[np.ndarray]:
    """The outputs, in float64 or exact integers."""
    values = evaluate(program)
    return [values[i].data for i in program.outputs]


def wraps_under_max(program: Program) -> bool:
    """Whether an integer product wraps and a maximum or minimum is taken of it.

    tinygrad moves a factor out of max(): max(3 x) becomes 3 max(x), on every device. That is true
    of numbers, and not of integers modulo 2**16.
    """
    values, wrapped = evaluate(program), set()
    for place, step in enumerate(program.steps, len(program.inputs)):
        result = values[place]
        if wrapped.intersection(step.reads):
            wrapped.add(place)
            if step.op.startswith(("max", "min", "arg", "cummax", "sort", "topk", "scatter_max")):
                return True
        elif step.op in ("mul", "mul_int", "shl") and not is_float(result.dtype):
            exact = OPS[step.op].numpy(*(values[i].data.astype(object) for i in step.reads),
                                       *step.args)
            if (np.asarray(exact) != result.data.astype(object)).any():
                wrapped.add(place)
    return False


def sums_a_repeat(program: Program) -> bool:
    """Whether a reduction reads what came out of a repeat, or out of a tensor beside itself.

    A fault of tinygrad 0.14.0 on every device: `Tensor.ones(5, 4).contiguous().repeat(1, 2).sum()`
    is 200, not 40.
    """
    repeated: set[int] = set()
    for place, step in enumerate(program.steps, len(program.inputs)):
        twice = step.op == "cat" and len(set(step.reads)) < len(step.reads)
        if step.op == "repeat" or twice or repeated.intersection(step.reads):
            if step.op in {**REDUCE, **REDUCE_FLOAT, **REDUCE_BOOL}:
                return True
            repeated.add(place)
    return False


def pairs_of_bools(program: Program) -> bool:
    """Whether two index tensors pick bools: tinygrad 0.14.0 gives integers back."""
    values = evaluate(program)
    return any(s.op == "take_pair" and values[s.reads[0]].dtype == "bool" for s in program.steps)


def products_wrap(program: Program) -> bool:
    """Whether a convolution or a product of narrow integers multiplies past its type.

    tinygrad multiplies in the type and sums in a wider one; NumPy and C multiply in the wider one.
    """
    values = evaluate(program)
    for step in program.steps:
        if step.op in CONTRACT and values[step.reads[0]].dtype in INTS:
            factors = [values[i] for i in step.reads]
            most = math.prod(int(np.abs(v.data.astype(np.int64)).max()) for v in factors)
            if most > np.iinfo(FORMATS[factors[0].dtype].store).max:
                return True
    return False


def short_erf(program: Program) -> bool:
    """Whether erf is taken of a bfloat16: it is 1 less a product, in eight bits; and its gradient
    is off by as much, always to the same side."""
    values = evaluate(program)
    return any(s.op == "erf" and values[s.reads[0]].dtype == "bfloat16" for s in program.steps)


def empty_triangle(program: Program) -> bool:
    """Whether a triangle is cut out of a tensor that has nothing there: its sum is NaN."""
    values, first = evaluate(program), len(program.inputs)
    return any(s.op in ("tril", "triu") and not values[n].data.any()
               for n, s in enumerate(program.steps, first))


def wraps_in_a_cast(program: Program) -> bool:
    """Whether an unsigned number becomes a negative one: tinygrad takes it for positive still, and
    its sign for 1."""
    values = evaluate(program)
    return any(s.op == "cast" and values[s.reads[0]].dtype.startswith("u")
               and values[n].data.dtype.kind == "i" and (values[n].data < 0).any()
               for n, s in enumerate(program.steps, len(program.inputs)))


def shifts_too_far(program: Program) -> bool:
    """Whether one number is shifted right twice, by more than its width in all: tinygrad makes one
    shift of it, which no machine has."""
    values, first = evaluate(program), len(program.inputs)
    shifted = dict.fromkeys(range(first), 0)
    for n, s in enumerate(program.steps, first):
        shifted[n] = max(shifted[i] for i in s.reads) + (s.args[0] if s.op == "shr" else 0)
        if s.op == "shr" and shifted[n] >= 8 * values[n].data.dtype.itemsize:
            return True
    return False


# Faults of tinygrad 0.14.0 on every device, or what it means otherwise than NumPy; programs that
# show one are not run.
KNOWN_FAULTS: dict[str, Callable[[Program], bool]] = {
    "a wrapped integer under max": wraps_under_max,
    "a sum of a repeat": sums_a_repeat,
    "bools picked by two indices": pairs_of_bools,
    "products of narrow integers that wrap": products_wrap,
    "erf of a bfloat16": short_erf,
    "an unsigned number that a cast makes negative": wraps_in_a_cast,
    "two shifts further than a number is wide": shifts_too_far,
    "a triangle with nothing in it": empty_triangle,
}


LOST_GATE = "an index that is loaded without its gate (checked mode and Python see it)"
# What tinygrad 0.14.0 says, on every device, of programs that it cannot run: part of the message,
# and what is at fault.
REFUSALS = {
    "val is only for CONST, got Ops.": "a range with two symbolic guards (codegen/simplify.py)",
    "failed to compute gradient for Ops.AFTER": "a gradient through two writes in place",
    "attempting multiple stores: 2": "a sum over two devices, beside what is split over them",
    "mselect must be on tuple device": "a device's part of what is split no more",
    "non-contiguous view is not supported for": "an expanded view of what is stored already",
    "bad reshape: () -> ": "a reflected triangle",
    "load out of bounds, size is": LOST_GATE,
    "uses what lies outside of a buffer": LOST_GATE,
    "UOp verification failed at": "halves in a vector, or summed over a symbolic size",
    "Command '['clang'": "halves in a vector, of which this clang makes no constant",
}


def refusal(message: str) -> str:
    """The name of what tinygrad refuses with this message, or ""."""
    return next((fault for text, fault in REFUSALS.items() if text in message), "")


def known_fault(program: Program) -> str:
    """The name of the fault of tinygrad's that this program runs into, or ""."""
    return next((fault for fault, shows in KNOWN_FAULTS.items() if shows(program)), "")


class Reference:
    """What NumPy says about a program, worked out once for all the devices it is held against."""

    def __init__(self, program: Program, compared: Iterable[int] = ()):
        """compared: the values that devices are held against, if not the program's outputs."""
        self.program = program
        self.compared = tuple(compared) or program.outputs

    @functools.cached_property
    def values(self) -> list[Value]:
        return evaluate(self.program)

    @functools.cached_property
    def draws(self) -> int:
        """Noisy runs: as many as the coarsest format needs."""
        return max((FORMATS[v.dtype].draws for v in self.values if is_float(v.dtype)), default=0)

    @functools.cached_property
    def noisy(self) -> list[list[Value]]:
        return [evaluate(self.program, Noise(seed)) for seed in range(self.draws)]

    def spread(self, i: int) -> np.ndarray:
        """How far rounding errors move each element of value i (inf where they make it NaN)."""
        exact = self.values[i].data.astype(np.float64)
        moved = np.zeros(exact.shape)
        for values in self.noisy:
            with np.errstate(all="ignore"):
                far = np.abs(values[i].data.astype(np.float64) - exact)
            moved = np.maximum(moved, np.where(np.isnan(far), np.inf, far))
        return moved

    @functools.cached_property
    def outputs(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Of the compared values: the exact numbers, and how far rounding moves them."""
        return {i: (self.values[i].data, self.spread(i)) for i in self.compared}

    @functools.cached_property
    def in_range(self) -> bool:
        return in_range(self.program, self.values)

    @functools.cached_property
    def probes(self) -> list[Probe]:
        return list(probes(self))

    @functools.cached_property
    def has_gradient(self) -> bool:
        return has_gradient(self.program, self.values)


def in_range(program: Program, values: Sequence[Value]) -> bool:
    """Whether every step stays where it has one meaning: finite, representable, no zero divisor."""
    for place, step in enumerate(program.steps, len(program.inputs)):
        value = values[place]
        if is_float(value.dtype) and value.data.size and not (
                np.abs(value.data).max() <= FORMATS[value.dtype].limit):
            return False
        if step.op in ("idiv", "mod", "div"):
            divisor = values[step.reads[1]].data
            if np.abs(divisor).min() < 0.2 or (divisor.dtype.kind == "i" and (divisor == -1).any()):
                return False
        if step.op == "cast" and is_float(values[step.reads[0]].dtype) and value.dtype in INTS:
            if not castable(values[step.reads[0]].data, value.dtype):
                return False
    return True


def castable(data: np.ndarray, to: str) -> bool:
    """Whether these floats have a meaning as integers of type `to`: out of range is undefined."""
    info = np.iinfo(FORMATS[to].store)
    low = 0 if to.startswith("u") else info.min + 1
    return bool(data.min() >= low and data.max() < min(info.max, 2**53))


# ------------------------------------------------------------------------------- call after call

JIT_CALLS = 4  # it looks, it captures, it replays twice
UPDATE_CALLS = 3


def calls_of(program: Program, jit: bool) -> int:
    return JIT_CALLS if jit else UPDATE_CALLS if program.updates else 1


def turned(value: int, high: int, turn: int) -> int:
    """A symbolic size at a turn: other sizes, in no order, and its own at turn 0."""
    return 1 + (value - 1 + 3 * turn) % high


def at_turn(program: Program, turn: int) -> Program:
    """The program with the numbers and sizes it is given at a turn; its own at turn 0."""
    inputs = tuple(i if n in program.state else dataclasses.replace(i, seed=i.seed + turn)
                   for n, i in enumerate(program.inputs))
    steps = tuple(
        s if s.op not in SYMBOLIC else dataclasses.replace(
            s, args=(*s.args[:2], turned(s.args[2], s.args[3], turn), *s.args[3:]))
        for s in program.steps)
    return dataclasses.replace(program, inputs=inputs, steps=steps)


@dataclass(frozen=True)
class Call:
    """What a call is compared with: a reference, and where in it the call's outputs are."""

    reference: Reference
    places: tuple[int, ...]


def unrolled(program: Program, calls: int) -> tuple[Program, list[tuple[int, ...]]]:
    """Several calls of a program with updates as one program without; each call's outputs in it."""
    rounds = [at_turn(program, (k + 1) % calls) for k in range(calls)]
    inputs: list[Input] = list(rounds[0].inputs)
    place = [[0] * len(program.inputs) for _ in rounds]  # of each call's values, in the whole
    for k, one in enumerate(rounds):
        for n, given in enumerate(one.inputs):
            place[k][n] = n
            if k and n not in program.state:
                place[k][n] = len(inputs)
                inputs.append(given)
    steps: list[Step] = []
    for k, one in enumerate(rounds):
        if k:
            for n, value in program.updates:
                place[k][n] = place[k - 1][value]
        for step in one.steps:
            place[k].append(len(inputs) + len(steps))
            steps.append(dataclasses.replace(step, reads=tuple(place[k][r] for r in step.reads)))
    whole = Program(tuple(inputs), tuple(steps), program.family,
                    tuple((n, place[-1][value]) for n, value in program.updates))
    wanted = [*program.outputs, *(value for _, value in program.updates)]
    return whole, [tuple(place[k][i] for i in wanted) for k in range(calls)]


class Expected:
    """What every call of a program should give, worked out once for all the ways to run it."""

    def __init__(self, program: Program, jit: bool = False, backward: bool = False):
        self.program, self.jit = program, jit
        self.count = calls_of(program, jit)
        self.own = Reference(program)  # of the last call, where the program updates nothing
        self.backward = backward and self.own.has_gradient

    @functools.cached_property
    def calls(self) -> list[Call | None]:
        """None for a call whose numbers, other than the program's own, leave the safe range."""
        if self.program.updates:
            whole, places = unrolled(self.program, self.count)
            reference = Reference(whole, {i for p in places for i in p})
            return [Call(reference, p) for p in places]
        others = [Reference(at_turn(self.program, k + 1)) for k in range(self.count - 1)]
        return [*(Call(r, self.program.outputs) if r.in_range else None for r in others),
                Call(self.own, self.program.outputs)]

    def shapes(self, call: int) -> list[tuple[int, ...]]:
        """Of a call's results, the gradients included."""
        turn = (call + 1) % self.count
        values = self.own.values if turn == 0 else evaluate(at_turn(self.program, turn))
        wanted = [*self.program.outputs, *(v for _, v in self.program.updates)]
        shapes = [values[i].data.shape for i in wanted]
        return shapes + ([self.program.inputs[n].shape for n in differentiable(self.program)]
                         if self.backward else [])


# ----------------------------------------------------------------------------------- gradients


def loss_weights(program: Program, values: Sequence[Value] = ()) -> dict[int, np.ndarray]:
    """Weights of the float outputs in the loss sum(weight * output).

    Where sizes are symbolic, for the largest: the loss takes as much of them as there is."""
    if program.sizes:
        values = evaluate(dataclasses.replace(program, steps=tuple(
            s if s.op not in SYMBOLIC else dataclasses.replace(
                s, args=(*s.args[:2], s.args[3], *s.args[3:])) for s in program.steps)))
    values = values or evaluate(program)
    return {n: np.random.default_rng(1000 + n).choice(LOSS_WEIGHTS, size=values[i].data.shape)
            for n, i in enumerate(program.outputs) if is_float(values[i].dtype)}


def differentiable(program: Program) -> list[int]:
    """The inputs that have gradients."""
    return [n for n, i in enumerate(program.inputs) if is_float(i.dtype) and i.dtype not in FP8]


def has_gradient(program: Program, values: Sequence[Value] = ()) -> bool:
    """Whether there is a gradient that is a derivative: tinygrad lets it pass through a cast of a
    float to an integer as if nothing happened (a "straight-through" gradient)."""
    if program.updates:
        return False
    values = values or evaluate(program)
    rounded = any(s.op == "cast" and is_float(values[s.reads[0]].dtype) and not is_float(s.args[0])
                  for s in program.steps)
    return not rounded and bool(differentiable(program)) and any(
        is_float(values[i].dtype) and values[i].dtype not in FP8 for i in program.outputs)


@dataclass(frozen=True)
class Probe:
    """A direction in the space of one input, and the loss's slope along it (None at a kink)."""

    input: int
    direction: np.ndarray
    slope: float | None
    spread: float


def _loss(program: Program, weights: Mapping[int, np.ndarray],
          inputs: Sequence[np.ndarray], noise: Noise | None) -> float:
    values = evaluate(program, noise, inputs)
    outputs = [values[i].data for i in program.outputs]
    return sum(float((w[tuple(map(slice, outputs[n].shape))] * outputs[n]).sum())
               for n, w in weights.items())


def _directions(shape: tuple[int, ...], rng: np.random.Generator) -> Iterable[np.ndarray]:
    """Corner and random entries, then the first and last slab of each axis, then all."""
    size = math.prod(shape)
    for entry in {0, size - 1, int(rng.integers(0, size))}:
        one = np.zeros(size)
        one[entry] = 1.0
        yield one.reshape(shape)
    for axis, length in enumerate(shape):
        for at in {0, length - 1} if length > 1 else ():
            slab = np.zeros(shape)
            where = tuple(at if a == axis else slice(None) for a in range(len(shape)))
            slab[where] = rng.choice([-1.0, 1.0], size=slab[where].shape)
            yield slab
    yield rng.choice([-1.0, 1.0], size=shape)


def probes(reference: Reference) -> Iterable[Probe]:
    """Slopes of the float64 reference by central differences."""
    program, values = reference.program, reference.values
    weights = loss_weights(program, values)
    base = [v.data for v in values[: len(program.inputs)]]
    step = 2.0**-18
    noises = (None, *(Noise(s) for s in range(max(2, reference.draws - 2))))
    middle = [_loss(program, weights, base, noise) for noise in noises]
    for n in differentiable(program):
        rng = np.random.default_rng(n)
        for direction in _directions(program.inputs[n].shape, rng):
            slopes: list[float] = []
            kink = False
            for noise, here in zip(noises, middle, strict=True):
                below, above = (_loss(program, weights, [
                    d + k * step * direction if m == n else d for m, d in enumerate(base)], noise)
                    for k in (-1, 1))
                left, right = (here - below) / step, (above - here) / step
                kink |= not abs(left - right) <= 1e-5 + 1e-3 * (abs(left) + abs(right))
                slopes.append((left + right) / 2)
            yield Probe(n, direction, None if kink else slopes[0],
                        max(abs(s - slopes[0]) for s in slopes))


# ------------------------------------------------------------------------- programs in tinygrad


def name(program: Program, i: int) -> str:
    return f"x{i}" if i < len(program.inputs) else f"v{i - len(program.inputs)}"


def statements(program: Program, place: int) -> list[str]:
    """The lines that make the value of step `place`."""
    step, out = program.steps[place], name(program, len(program.inputs) + place)
    reads = dict(zip("xyz", (name(program, i) for i in step.reads), strict=False))
    row = OPS[step.op].source
    text = row.format(*(repr(a) for a in step.args), **reads, out=out)
    return text.splitlines() if "{out}" in row else [f"{out} = {text}"]


def function_source(program: Program, backward: bool = False,
                    values: Sequence[Value] = ()) -> str:
    """The text of `program(x0, …, n0, …, w0, …)`.

    It returns the outputs, then the inputs it updated, then the gradients of the float inputs.
    """
    first, outs = len(program.inputs), [name(program, i) for i in program.outputs]
    params = [name(program, i) for i in range(first)] + [f"n{k}" for k in program.sizes]
    lines = []
    for n in range(len(program.steps)):
        lines += statements(program, n)
    lines += [f"{name(program, i)}.assign({name(program, value)})" for i, value in program.updates]
    result = outs + [name(program, i) for i in program.state]
    if backward:
        values = values or evaluate(program)
        floats = [n for n, i in enumerate(program.outputs) if is_float(values[i].dtype)]
        params += [f"w{n}" for n in floats]
        parts = {n: f"w{n}" + (f"[tuple(slice(s) for s in {outs[n]}.shape)]" if program.sizes
                               else "") for n in floats}
        moved = ".to(devices[0])" if program.spread else ""
        lines.append("loss = " + " + ".join(
            f"({outs[n]}{moved}.cast('float64') * {parts[n]}).sum()" for n in floats))
        wanted = [name(program, n) for n in differentiable(program)]
        lines.append(f"grads = loss.gradient({', '.join(wanted)})")
        result.append("*grads")
    body = "\n".join(lines + [f"return [{', '.join(result)}]"])
    return f"def program({', '.join(params)}):\n{textwrap.indent(body, '    ')}\n"


def device_pair(device):
    """The device that a program is on, and the other that it may be spread over."""
    from tinygrad import Device

    device = device or Device.DEFAULT
    kind, _, number = device.partition(":")
    return device, f"{kind}:{int(number or 0) + 1}"


def run_calls(program, device, inputs, sizes=(), weights=(), calls=1, jit=False, state=(),
              shapes=()):
    """A program's results, call by call, each as a dtype's name and a NumPy array.

    inputs are the arguments of make_values and a placement, sizes a value and a largest one.  The
    last call gets them as they are, the others other numbers and sizes; what is in `state` stays.
    shapes: of each call's results, where sizes make them symbolic.
    """
    from tinygrad import Tensor, TinyJit, Variable

    devices = device_pair(device)
    small = {"bfloat16", "fp8e4m3", "fp8e5m2"}

    def placed(array, dtype, split):
        tensor = Tensor(array.astype("float32" if dtype in small else dtype), device=devices[0])
        if dtype in small:
            tensor = tensor.cast(dtype).contiguous()
        if not array.shape:
            tensor = tensor.clone()  # it would stay a constant
        if split is not None:
            tensor = tensor.realize().shard(devices, axis=None if split < 0 else split)
        return tensor.realize()

    def numbers(i, turn):
        shape, dtype, seed, kind, high, split = inputs[i]
        return placed(make_values(shape, dtype, seed + turn, kind, high), dtype, split)

    kept = {i: numbers(i, 0) for i in state}
    fixed = [placed(w, "float64", None) for w in weights]

    def call(*args):
        results = program(*args)
        if jit:  # a bare view of an input would stay a view of the captured call's input
            changed = {id(args[i]) for i in state}
            results = [r if id(r) in changed else r.clone() for r in results]
        Tensor.realize(*results)
        return results

    step, found = TinyJit(call) if jit else call, []
    for k in range(calls):
        turn = (k + 1) % calls
        args = [kept[i] if i in kept else numbers(i, turn) for i in range(len(inputs))]
        args += [Variable(f"n{n}", 1, high).bind(1 + (value - 1 + 3 * turn) % high)
                 for n, value, high in sizes]
        results = step(*args, *fixed)
        if shapes:
            results = [r[tuple(slice(s) for s in shape)]
                       for r, shape in zip(results, shapes[k], strict=True)]
        found.append([(r.dtype.name, (r.cast("float32") if r.dtype.fmt is None else r).numpy())
                      for r in results])
    return found


def run_arguments(expected: Expected) -> dict[str, Any]:
    """What run_calls needs to know of a program: plain data."""
    program, values = expected.program, expected.own.values
    weights = loss_weights(program, values) if expected.backward else {}
    return {
        "inputs": [dataclasses.astuple(i) for i in program.inputs],
        "sizes": [(k, value, high) for k, (value, high) in program.sizes.items()],
        "weights": list(weights.values()),
        "calls": expected.count,
        "jit": expected.jit,
        "state": program.state,
        "shapes": [expected.shapes(k) for k in range(expected.count)] if program.sizes else [],
    }


def run_tinygrad(expected: Expected, device: str | None = None) -> list[list[np.ndarray]]:
    """The results of each call on a device: outputs, updated inputs, gradients."""
    from tinygrad import Tensor

    program = expected.program
    space: dict[str, Any] = {"Tensor": Tensor, "devices": device_pair(device)}
    text = function_source(program, expected.backward, expected.own.values)
    exec(text, space)  # our own table's text, arguments by repr()
    found = run_calls(space["program"], device, **run_arguments(expected))
    wanted = [*program.outputs, *(value for _, value in program.updates)]
    for i, (got, _) in zip(wanted, found[-1], strict=False):
        dtype = expected.own.values[i].dtype
        if got != _tinygrad_name(dtype):
            raise AssertionError(f"{name(program, i)} has dtype {got}, expected {dtype}")
    return [[array for _, array in call] for call in found]


def _tinygrad_name(dtype: str) -> str:
    from tinygrad import dtypes

    return getattr(dtypes, dtype).name


# ----------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Report:
    """What a check compared: elements in all, and those that rounding left comparable."""

    elements: int = 0
    compared: int = 0
    slopes: int = 0
    smooth: int = 0

    def __add__(self, other: Report) -> Report:
        return Report(*(a + b for a, b in zip(dataclasses.astuple(self),
                                              dataclasses.astuple(other), strict=True)))


class Mismatch(AssertionError):
    """The device and the reference disagree; the message holds a script that shows it."""


def coarsest(reference: Reference, i: int) -> Format:
    """The coarsest format that value i comes from: a cast to float64 brings no digits back."""
    program, first = reference.program, len(reference.program.inputs)
    needed, formats = {i}, []
    for place in range(i, -1, -1):
        if place in needed:
            dtype = reference.values[place].dtype
            if place >= first:
                step = program.steps[place - first]
                dtype = digits_of(step, dtype)
                needed.update(step.reads)
            formats.append(FORMATS[dtype])
    return max(formats, key=lambda form: form.rtol)


def allowance(reference: Reference, i: int) -> tuple[np.ndarray, np.ndarray]:
    """How far a device may be from value i, and which elements rounding leaves comparable."""
    exact, moved = reference.outputs[i]
    dtype = reference.values[i].dtype
    if not is_float(dtype):
        return np.where(moved == 0, 0.0, np.inf), moved == 0
    form = coarsest(reference, i)
    rounds = any(OPS[s.op].rounds for s in reference.program.steps)
    base = form.atol + form.rtol * np.abs(exact) if rounds else 0.0
    return base + 8 * moved, moved <= 0.1 * np.maximum(np.abs(exact), 1)


def compare(reference: Reference, places: Sequence[int], got: Sequence[np.ndarray],
            label: str = "") -> Report:
    """A call's outputs against the reference."""
    report = Report()
    for i, g in zip(places, got, strict=True):
        exact, moved = reference.outputs[i]
        what = label + name(reference.program, i)
        if g.shape != exact.shape:
            raise Mismatch(f"{what}: shape {g.shape}, expected {exact.shape}")
        allowed, firm = allowance(reference, i)
        if exact.dtype.kind != "f":
            wrong = np.isfinite(allowed) & (g != exact)
        else:
            with np.errstate(all="ignore"):
                wrong = ~(np.abs(g.astype(np.float64) - exact) <= allowed) & np.isfinite(moved)
        if wrong.any():
            first = np.unravel_index(int(np.argmax(wrong)), np.shape(wrong))
            at = tuple(int(a) for a in first)
            raise Mismatch(
                f"{what}{list(at)} is {g[at]!r}, expected {exact[at]!r} "
                f"(rounding may move it by {float(np.asarray(moved)[at]):.3g}); "
                f"{int(wrong.sum())} of {exact.size} elements differ")
        report += Report(elements=exact.size, compared=int(firm.sum()))
    return report


def slope_tolerance(reference: Reference, probe: Probe) -> tuple[float, float]:
    """(fixed, relative): a device may be off by fixed + relative * norm(gradient entries probed)"""
    coarse = max(FORMATS[v.dtype].eps for v in reference.values if is_float(v.dtype))
    dtype = reference.program.inputs[probe.input].dtype
    atol, rtol = GRAD_ATOL.get(dtype, 1e-2), GRAD_RTOL.get(dtype, 3e-2)
    if coarse > 2.0**-20:  # somewhere inside the program is a half or a bfloat16
        atol, rtol = max(atol, 1e-2), max(rtol, 3e-2)
    elif coarse > 2.0**-50:
        atol, rtol = max(atol, 1e-4), max(rtol, 1e-3)
    # errors of many entries add up like a random walk, the entries themselves may cancel
    count = max(int((probe.direction != 0).sum()), 1)
    return atol * math.sqrt(count) + rtol * abs(probe.slope or 0.0) + 8 * probe.spread, rtol


def compare_gradients(reference: Reference, grads: Sequence[np.ndarray]) -> Report:
    """Gradients against central differences."""
    report, program = Report(), reference.program
    wanted = differentiable(program)
    grads = [g.astype(np.float64) for g in grads]
    for n, g in zip(wanted, grads, strict=True):
        if g.shape != program.inputs[n].shape:
            raise Mismatch(f"gradient of x{n}: shape {g.shape}, not {program.inputs[n].shape}")
    for probe in reference.probes:
        report += Report(slopes=1, smooth=int(probe.slope is not None))
        if probe.slope is None:
            continue
        g = grads[wanted.index(probe.input)]
        along = float((g * probe.direction).sum())
        fixed, relative = slope_tolerance(reference, probe)
        allowed = fixed + relative * float(np.linalg.norm(g[probe.direction != 0]))
        if not abs(along - probe.slope) <= allowed:
            where = np.argwhere(probe.direction != 0)
            raise Mismatch(
                f"gradient of x{probe.input} along {len(where)} entries from {where[0].tolist()}: "
                f"{along!r}, expected {probe.slope!r} (allowed {allowed:.3g})")
    return report


def judge(expected: Expected, results: Sequence[Sequence[np.ndarray]]) -> Report:
    """What a device computed, call by call, against the reference: Mismatch or a Report."""
    report = Report()
    for k, (call, got) in enumerate(zip(expected.calls, results, strict=True)):
        if call is not None:
            label = f"call {k + 1} of {expected.count}: " if expected.count > 1 else ""
            report += compare(call.reference, call.places, got[: len(call.places)], label)
    if expected.backward:
        grads = results[-1][len(expected.program.outputs):]
        report += compare_gradients(expected.own, grads)
    return report


def check(program: Program, device: str | None = None, jit: bool = False,
          backward: bool = False) -> Report:
    """Run on a device, compare with NumPy, and raise Mismatch with a script if they disagree."""
    expected = Expected(program, jit, backward)
    try:
        return judge(expected, run_tinygrad(expected, device))
    except Exception as error:
        how = f"device={device} jit={jit} backward={expected.backward}"
        kind = "" if isinstance(error, Mismatch) else f"{type(error).__name__}: "
        raise Mismatch(f"{kind}{error}\n{how}\n{to_json(program)}\n"
                       f"{source(expected, device)}") from error


# ------------------------------------------------------------------------------- printed, kept


SCRIPT = '''\
"""{title}

    python {file} [DEVICE]

The exit code is 0 if what the device computes is what NumPy says, 1 if not.
"""
import argparse, os, sys

os.environ.update({variables})
{tgx}import numpy as np
from tinygrad import Tensor
{setup}
nan, inf = float("nan"), float("inf")


{make_values}

{device_pair}

{run_calls}

{program}

ARGUMENTS = {arguments}

# What NumPy says. (call, result, shape, places, what is there, how far off it may be)
EXPECTED = [
{expected}
]
# (call, result, places, signs, the sum of signs * gradient there, how far off it may be: this much,
#  and this much times the gradient's norm)
SLOPES = [
{slopes}
]


def wrong(results):
    for call, result, shape, places, values, allowed in EXPECTED:
        got = results[call][result][1]
        if got.shape != shape:
            yield f"call {{call}}, result {{result}}: shape {{got.shape}}, expected {{shape}}"
            continue
        for place, value, limit in zip(places, values, allowed):
            here = got.reshape(-1)[place].item()
            if here != value and not abs(here - value) <= limit:
                yield (f"call {{call}}, result {{result}}, element {{place}}: {{here!r}}, "
                       f"expected {{value!r}} (give or take {{limit:.3g}})")
    for call, result, places, signs, slope, fixed, relative in SLOPES:
        got = results[call][result][1].astype(np.float64).reshape(-1)[places]
        if not abs((got * signs).sum() - slope) <= fixed + relative * np.linalg.norm(got):
            yield (f"call {{call}}, gradient {{result}} along {{len(places)}} entries: "
                   f"{{(got * signs).sum()!r}}, expected {{slope!r}}")


def main():
    global devices
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default={device!r})
    device = parser.parse_args().device
    devices = device_pair(device)
    problems = list(wrong(run_calls(program, device, **ARGUMENTS)))
    print("\\n".join(problems[:20]) or f"right: {{device}} and NumPy agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
'''
MOST_SHOWN = 2000  # elements of one result that a script checks


def _expectations(expected: Expected, results: Sequence[Sequence[np.ndarray]]) -> Iterable[str]:
    """The rows of a script's EXPECTED; of big results a part, with what is wrong in it."""
    for k, call in enumerate(expected.calls):
        for n, i in enumerate(call.places if call else ()):
            exact = call.reference.outputs[i][0]
            allowed = allowance(call.reference, i)[0].reshape(-1)
            flat = exact.reshape(-1)
            places = np.flatnonzero(np.isfinite(allowed))
            if len(places) > MOST_SHOWN:
                chosen = places[:: -(-len(places) // MOST_SHOWN)]
                if len(results) > k and results[k][n].shape == exact.shape:
                    with np.errstate(all="ignore"):
                        far = np.abs(results[k][n].reshape(-1).astype(np.float64) - flat)
                    off = places[~(far[places] <= allowed[places])][:MOST_SHOWN]
                    chosen = np.union1d(chosen, off)
                places = chosen
            yield (f"    ({k}, {n}, {exact.shape}, {places.tolist()},\n     {flat[places].tolist()}"
                   f",\n     {[float(f'{a:.4g}') for a in allowed[places]]}),")


def _slopes(expected: Expected) -> Iterable[str]:
    if not expected.backward:
        return
    wanted = differentiable(expected.program)
    for probe in expected.own.probes:
        if probe.slope is not None:
            places = np.flatnonzero(probe.direction)
            fixed, relative = slope_tolerance(expected.own, probe)
            yield (f"    ({expected.count - 1}, "
                   f"{len(expected.program.outputs) + wanted.index(probe.input)}, "
                   f"{places.tolist()}, {probe.direction.reshape(-1)[places].tolist()},\n"
                   f"     {probe.slope!r}, {fixed:.4g}, {relative:.4g}),")


def source(expected: Expected, device: str | None = None, title: str = "", setup: str = "",
           variables: Mapping[str, str] | None = None, file: str = "program.py",
           results: Sequence[Sequence[np.ndarray]] = ()) -> str:
    """A stand-alone script, as `tgx extract` writes them: it runs the program on a device and
    checks it; needs tinygrad and NumPy, and tgx only for its own device."""
    program = expected.program
    arguments = run_arguments(expected)
    weights = [f"np.random.default_rng({1000 + n}).choice({LOSS_WEIGHTS}, size={w.shape})"
               for n, w in (loss_weights(program) if expected.backward else {}).items()]
    rows = [f"    {key!r}: {value!r}," for key, value in arguments.items() if key != "weights"]
    rows.append(f"    'weights': [{', '.join(weights)}],")
    title = title or f"A random tensor program ({program.family or 'hand-made'})."
    return SCRIPT.format(
        title=title.replace("\\", "/").replace('"', "'"), file=file,
        variables=dict(variables or {}), setup=setup + "\n" if setup else "",
        tgx="import tgx\n" if (device or "TGX").startswith("TGX") else "",
        device=device, make_values=inspect.getsource(make_values),
        device_pair=inspect.getsource(device_pair), run_calls=inspect.getsource(run_calls),
        program=function_source(program, expected.backward, expected.own.values),
        arguments="{\n" + "\n".join(rows) + "\n}",
        expected="\n".join(_expectations(expected, results)),
        slopes="\n".join(_slopes(expected)))


def to_json(program: Program) -> str:
    return json.dumps(dataclasses.asdict(program))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def from_json(text: str) -> Program:
    """Only names of the table and plain literals come out of it; nothing is executed."""
    raw = json.loads(text)
    inputs = tuple(Input(**{k: _tuples(v) for k, v in i.items()}) for i in raw["inputs"])
    steps = tuple(Step(s["op"], _tuples(s["reads"]), _tuples(s["args"])) for s in raw["steps"])
    unknown = [s.op for s in steps if s.op not in OPS]
    if unknown:
        raise ValueError(f"no such operation: {', '.join(unknown)}")
    return Program(inputs, steps, raw.get("family", ""), _tuples(raw.get("updates", [])))


# ------------------------------------------------------------------------------------ shrinking


def _without_unread(program: Program, keep: int) -> Program:
    """The program whose only output is value `keep`, without what it does not need."""
    needed, first = {keep}, len(program.inputs)
    for n in range(len(program.steps) - 1, -1, -1):
        if first + n in needed:
            needed.update(program.steps[n].reads)
    kept = sorted(needed)
    place = {old: new for new, old in enumerate(kept)}
    return Program(tuple(program.inputs[i] for i in kept if i < first),
                   tuple(dataclasses.replace(program.steps[i - first], reads=tuple(
                       place[r] for r in program.steps[i - first].reads))
                       for i in kept if i >= first), program.family)


def _cut(program: Program, at: int, split: int | None = None) -> Program:
    """Value `at` becomes an input with fresh numbers of the same shape and dtype."""
    value, first = evaluate(program)[at], len(program.inputs)
    new = Input(value.data.shape, value.dtype, seed=at, split=split)

    def moved(i: int) -> int:
        return first if i == at else i + 1 if i >= first else i

    steps = [dataclasses.replace(s, reads=tuple(moved(r) for r in s.reads))
             for s in program.steps]
    # the cut step now computes something nobody reads: _without_unread drops it
    whole = Program((*program.inputs, new), tuple(steps), program.family)
    last = len(whole.inputs) + len(steps) - 1
    return _without_unread(whole, last)


def _bypassed(program: Program, at: int) -> Program:
    """Without step `at`: who read it reads its first operand, where shape and dtype allow it."""
    first = len(program.inputs)
    instead = program.steps[at].reads[0]

    def moved(i: int) -> int:
        return instead if i == first + at else i - 1 if i > first + at else i

    steps = [dataclasses.replace(s, reads=tuple(moved(r) for r in s.reads))
             for n, s in enumerate(program.steps) if n != at]
    return dataclasses.replace(program, steps=tuple(steps), updates=tuple(
        (i, moved(value)) for i, value in program.updates))


def _smaller(program: Program) -> Iterable[Program]:
    first = len(program.inputs)
    if program.updates:
        for n in range(len(program.updates)):
            yield dataclasses.replace(
                program, updates=program.updates[:n] + program.updates[n + 1 :])
    else:
        for i in range(first, first + len(program.steps)):
            yield _without_unread(program, i)
        spread = {i.split for i in program.inputs} - {None}
        for i in range(first + len(program.steps) - 2, first - 1, -1):
            yield _cut(program, i, -1 if spread else None)
    for n in range(len(program.steps)):
        yield _bypassed(program, n)
    for i in program.inputs:  # one device
        if i.split is not None and len({x.split for x in program.inputs}) == 1:
            yield dataclasses.replace(program, inputs=tuple(
                dataclasses.replace(x, split=None) for x in program.inputs))
            break


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 60) -> Program:
    """A smaller program for which `fails` still holds: shorter, then with values for steps."""
    progress, seen = True, {program}
    while progress and tries > 0:
        progress = False
        for candidate in _smaller(program):
            if candidate in seen or not candidate.steps:
                continue
            seen.add(candidate)
            tries -= 1
            if sound(candidate) and fails(candidate):
                program, progress = candidate, True
                break
            if tries <= 0:
                break
    return program


def sound(program: Program) -> bool:
    """Whether the reference can run it, with dtypes that fit."""
    try:
        values = evaluate(program)
        for i, value in program.updates:
            given, new = values[i], values[value]
            if (given.dtype, given.data.shape) != (new.dtype, new.data.shape):
                return False
        whole = unrolled(program, UPDATE_CALLS)[0] if program.updates else program
        return in_range(whole, evaluate(whole) if program.updates else values)
    except (IndexError, ValueError, TypeError):  # fresh numbers where an index was
        return False


# ------------------------------------------------------------------------------------ generator


class Builder:
    """A program under construction, with the reference's values so far."""

    def __init__(self, rng: random.Random, size: int = 2):
        self.rng, self.size = rng, size
        self.inputs: list[Input] = []
        self.steps: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = []
        self.values: dict[Any, Value] = {}
        self.updates: list[tuple[Any, Any]] = []
        self.plain = False  # no sines: a hundred operations each, once for every window they are in

    # Values are named ("x", n) and ("v", n) until the program is done: inputs may come late.
    def input(self, shape: Sequence[int], dtype: str = "float32", kind: str = "small",
              high: int = 0, split: int | None = None) -> Any:
        given = Input(tuple(shape), dtype, self.rng.randrange(2**31), kind, high, split)
        key = ("x", len(self.inputs))
        self.inputs.append(given)
        self.values[key] = input_value(given)
        return key

    def shape(self, key: Any) -> tuple[int, ...]:
        return self.values[key].data.shape

    def dtype(self, key: Any) -> str:
        return self.values[key].dtype

    def try_apply(self, op: str, reads: Sequence[Any], *args: Any) -> Any | None:
        """A new value, or None where it would leave the safe range (the step is dropped)."""
        try:
            value = apply_numpy(Step(op, (), args), [self.values[k] for k in reads], 0, None)
        except (ValueError, IndexError):
            return None
        data = value.data
        if data.size == 0 or data.size > 40_000:
            return None
        if is_float(value.dtype):
            if not np.isfinite(data).all() or np.abs(data).max() > FORMATS[value.dtype].limit:
                return None
        key = ("v", len(self.steps))
        self.steps.append((op, tuple(reads), args))
        self.values[key] = value
        return key

    def apply(self, op: str, reads: Sequence[Any], *args: Any) -> Any:
        """Like try_apply, but where the step is refused the first operand stands for it."""
        key = self.try_apply(op, reads, *args)
        return reads[0] if key is None else key

    def program(self, family: str) -> Program:
        """The program; without its updates where repeating them would leave the safe range."""
        first = len(self.inputs)

        def place(key: Any) -> int:
            return key[1] if key[0] == "x" else first + key[1]

        steps = tuple(Step(op, tuple(place(k) for k in reads), args)
                      for op, reads, args in self.steps)
        made = Program(tuple(self.inputs), steps, family,
                       tuple((i[1], place(value)) for i, value in self.updates))
        return made if sound(made) else dataclasses.replace(made, updates=())

    # ------------------------------------------------------------------- pieces of programs

    def dim(self, most: int = 0) -> int:
        """A side length: often small, often odd or just beside a vector width."""
        most = most or (4, 8, 20, 40, 130)[min(self.size, 4)]
        choices = [n for n in (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 23, 31, 32, 33, 40, 61, 64,
                               67, 96, 97, 128, 129) if n <= most and 8 * n >= most]
        return self.rng.choice(choices)

    def some_shape(self, lo: int = 1, hi: int = 4) -> tuple[int, ...]:
        rank = self.rng.randint(lo, hi)
        most = {0: 0, 1: 0, 2: 40, 3: 16, 4: 9, 5: 5}.get(rank, 4)
        if self.size > 3 and rank <= 2:  # primes and powers, and one beside them
            long = self.rng.choice((509, 512, 1021, 4096, 4099, 10007) if rank == 1
                                   else (67, 128, 257, 509))
            return (long,) if rank == 1 else (self.dim(67), long)[:: self.rng.choice((1, -1))]
        return tuple(self.dim(min(most, 40) if self.size > 1 and most else 0)
                     for _ in range(rank))

    def float_type(self) -> str:
        return self.rng.choice(("float32",) * 6 + ("float64", "float16", "bfloat16"))

    def any_type(self) -> str:
        return self.rng.choice(FLOATS * 2 + INTS + ("bool", "float32", "float32"))

    def like(self, key: Any) -> Any:
        """Another input that broadcasts with this value."""
        shape, dtype = self.shape(key), self.dtype(key)
        if self.rng.random() < 0.4 and shape:
            keep = [self.rng.random() < 0.6 for _ in shape]
            shape = tuple(s if k else 1 for s, k in zip(shape, keep, strict=True))
            if self.rng.random() < 0.3:
                shape = shape[self.rng.randrange(len(shape)):]
        return self.input(shape, dtype)

    def positive(self, key: Any) -> Any:
        return self.apply("add_const", [self.apply("square", [key])], 0.5)

    def unary(self, key: Any) -> Any:
        dtype = self.dtype(key)
        if dtype == "bool":
            return self.apply("not", [key])
        op = self.rng.choice([*UNARY, *(UNARY_FLOAT if is_float(dtype) else UNARY_INT)])
        if self.plain and op in ("sin", "cos"):
            op = "tanh"
        if op in ("neg", "sign", "abs") and dtype.startswith("u"):
            op = "square"
        if op in ("log", "log2", "sqrt", "rsqrt", "reciprocal", "pow_const"):
            key = self.positive(key)
            if (self.values[key].data <= 0).any():
                return key
        if dtype == "float64" and op == "erf":
            op = "tanh"  # tinygrad computes erf to seven digits, whatever the type
        if dtype in FP8 and op in ("erf", "atan", "gelu", "softplus", "sin", "cos"):
            op = "relu"  # chains of many roundings say little in eight bits
        args: tuple[Any, ...] = ()
        if op in ("add_const", "rsub_const"):
            args = (self.rng.choice((-1.5, 0.5, 1.0, 2.0)),)
        elif op == "mul_const":
            args = (self.rng.choice((-2.0, -0.5, 0.25, 1.5)),)
        elif op == "pow_const":
            args = (self.rng.choice((0.5, 1.5, 2.0, 3.0, -1.0)),)
        elif op == "clip":
            args = (-0.75, 1.25)
        elif op in ("shl", "shr"):
            args = (self.rng.randint(0, 8 * np.dtype(FORMATS[dtype].store).itemsize - 1),)
        elif op in ("idiv_const", "mod_const"):
            args = (self.rng.choice((2, 3, 7, 8, 10) if dtype.startswith("u")
                                    else (2, 3, 7, 8, 10, -3, -4)),)
        elif op in ("add_int", "mul_int"):
            args = (self.rng.choice((1, 2, 3, 5, 16, 100)),)
        return self.apply(op, [key], *args)

    def binary(self, key: Any, other: Any | None = None) -> Any:
        dtype = self.dtype(key)
        other = self.like(key) if other is None else other
        if dtype == "bool":
            return self.apply(self.rng.choice([*BINARY_BOOL]), [key, other])
        op = self.rng.choice([*BINARY, *BINARY, *(BINARY_FLOAT if is_float(dtype)
                                                  else BINARY_INT)])
        reads = [key, other]
        if op not in ("div", "idiv", "mod") and self.rng.random() < 0.4:
            reads.reverse()
        divisor = self.values[reads[1]].data
        if op in ("idiv", "mod") and ((divisor == 0) | (divisor == -1)
                                      if divisor.dtype.kind == "i" else divisor == 0).any():
            op = "add"
        if op == "div" and np.abs(divisor).min() < 0.2:
            op = "mul"
        return self.apply(op, reads)

    def compare(self, key: Any) -> Any:
        return self.apply(self.rng.choice([*COMPARE]), [key, self.like(key)])

    def cast(self, key: Any, to: str | None = None) -> Any:
        to = to or self.any_type()
        data = self.values[key].data
        if is_float(self.dtype(key)) and to in INTS and not castable(data, to):
            return key
        return key if to == self.dtype(key) else self.apply("cast", [key], to)

    def bitcast(self, key: Any) -> Any:
        """To the integer of the same width; of floats only inputs, which are exact."""
        width = np.dtype(storable(self.dtype(key))).itemsize * 8
        exact = key[0] == "x" and self.dtype(key) in ("float16", "float32", "float64")
        if self.dtype(key) == "bool" or (is_float(self.dtype(key)) and not exact):
            return key
        to = self.rng.choice((f"int{width}", f"uint{width}"))
        return key if to == self.dtype(key) else self.apply("bitcast", [key], to)

    def where(self, key: Any) -> Any:
        test = self.compare(key) if self.dtype(key) != "bool" else key
        if self.dtype(test) != "bool" or self.shape(test) != self.shape(key):
            return key
        if self.rng.random() < 0.3 and is_float(self.dtype(key)):
            return self.apply("masked_fill", [test, key], 0.5) if self.dtype(key) not in FP8 \
                else key
        new = self.try_apply("where", [test, key, self.like(key)])
        return key if new is None else new

    def move(self, key: Any) -> Any:
        """A random movement of data."""
        rng, shape, dtype = self.rng, self.shape(key), self.dtype(key)
        rank = len(shape)
        if rank == 0:
            return self.apply("reshape", [key], (1, 1))
        axis = rng.randrange(rank)
        kind = rng.choice(("permute", "reshape", "flip", "slice", "pad", "expand", "cat", "stack",
                           "roll", "repeat", "tri", "contiguous", "pad_mode", "diagonal",
                           "repeat_interleave"))
        if kind == "permute":
            order = list(range(rank))
            rng.shuffle(order)
            return self.apply("permute", [key], tuple(order))
        if kind == "reshape":
            flat = math.prod(shape)
            split = next((d for d in rng.sample((2, 3, 4, 5, 7, 8), 6) if flat % d == 0), 1)
            return self.apply("reshape", [key], rng.choice(
                ((flat,), (split, flat // split), (flat // split, split), (1, *shape))))
        if kind == "flip":
            return self.apply("flip", [key], tuple(a for a in range(rank)
                                                   if a == axis or rng.random() < 0.3))
        if kind == "slice":
            parts = []
            for s in shape:
                lo = rng.randint(0, s - 1)
                hi = rng.randint(lo + 1, s)
                parts.append(rng.choice(((lo, hi, 1), (lo, hi, 2), (None, None, None),
                                         (None, None, -1), (hi - 1, None if lo == 0 else lo - 1,
                                                            -1), (-1 - lo, None, None))))
            return self.apply("slice", [key], tuple(parts))
        if kind == "pad":
            value = (rng.choice((0.0, 0.0, 1.5)) if is_float(dtype)
                     else rng.choice((0, 3)) if dtype != "bool" else False)
            return self.apply("pad", [key], tuple((rng.randint(0, 2), rng.randint(0, 2))
                                                  for _ in shape), value)
        if kind == "pad_mode" and rank <= 3 and min(shape) > 1:
            return self.apply("pad_mode", [key], tuple((rng.randint(0, 1), rng.randint(0, 1))
                                                       for _ in shape),
                              rng.choice(("reflect", "replicate", "circular")))
        if kind == "expand":
            lead = (rng.randint(1, 3), *shape)
            return self.apply("expand", [key], lead)
        if kind in ("cat", "stack"):
            other = self.input(shape, dtype) if rng.random() < 0.5 else key
            return self.apply(kind, [key, other], axis)
        if kind == "roll":
            return self.apply("roll", [key], rng.randint(-3, 3), axis)
        if kind == "repeat":
            return self.apply("repeat", [key], tuple(rng.randint(1, 2) for _ in shape))
        if kind == "repeat_interleave":
            return self.apply("repeat_interleave", [key], 2, axis)
        if kind == "tri" and rank >= 2:
            return self.apply(rng.choice(("tril", "triu")), [key], rng.randint(-2, 2))
        if kind == "diagonal" and rank == 2:
            return self.apply("diagonal", [key], rng.randint(-1, 1))
        return self.apply("contiguous", [key])

    def reduce(self, key: Any) -> Any:
        rng, rank, dtype = self.rng, len(self.shape(key)), self.dtype(key)
        if rank == 0:
            return key
        axes = tuple(a for a in range(rank) if rng.random() < 0.5) or (rng.randrange(rank),)
        if rng.random() < 0.25:
            axes = tuple(a - rank for a in axes)
        axis: Any = rng.choice((axes, axes, axes[0], None))
        keep = rng.random() < 0.4
        if dtype == "bool":
            return self.apply(rng.choice((*REDUCE_BOOL, "sum")), [key], axis, keep)
        count = math.prod(self.shape(key)[a] for a in _axes(axis, rank))
        rows = [*REDUCE, *(REDUCE_FLOAT if is_float(dtype) else ("mean",))]
        op = rng.choice(rows + ["argmax", "argmin"])
        if (op == "std" and count < 2) or (op == "prod" and count > 32 and is_float(dtype)):
            op = "sum"
        if op in ("argmax", "argmin", "logsumexp"):
            axis = axes[0]
        return self.apply(op, [key], axis, keep)

    def pointwise(self, key: Any, most: int = 2) -> Any:
        """None to a few elementwise steps, as a prologue or an epilogue."""
        for _ in range(self.rng.randint(0, most)):
            key = self.rng.choice((self.unary, self.unary, self.binary, self.where))(key)
        return key

    def strided_input(self, shape: Sequence[int], dtype: str) -> Any:
        """An input of this shape whose memory may lie in any order of axes."""
        order = list(range(len(shape)))
        if self.rng.random() < 0.5:
            self.rng.shuffle(order)
        if order == sorted(order):
            return self.input(shape, dtype)
        stored = self.input([shape[a] for a in order], dtype)
        return self.apply("permute", [stored], tuple(order.index(a) for a in range(len(shape))))


def _elementwise(b: Builder) -> None:
    dtype = b.any_type() if b.rng.random() < 0.93 else b.rng.choice(FP8)
    kind = "wide" if dtype in INTS and b.rng.random() < 0.4 else "small"
    key = b.input(b.some_shape(), dtype, kind)
    if b.rng.random() < 0.06 and dtype not in FP8:
        key = b.bitcast(key)
    steps = b.rng.randint(2, 3 if dtype in FP8 else 7)
    for _ in range(steps):
        actions = [b.unary, b.unary, b.binary, b.binary, b.where]
        if dtype not in FP8:
            actions += [b.cast, b.move]
        key = b.rng.choice(actions)(key)
    if not b.steps:
        b.apply("add", [key, b.input(b.shape(key), b.dtype(key))])


def _reduce(b: Builder) -> None:
    dtype = b.rng.choice(FLOATS + INTS + ("bool",) * 2 + ("float32",) * 8)
    kind = "wide" if dtype in INTS and b.rng.random() < 0.3 else "small"
    shape = b.some_shape(1, 4)
    if b.rng.random() < 0.3:  # a long axis, to be split over lanes, unrolls and threads
        shape = (*shape[:1], b.rng.choice((63, 64, 100, 129, 257, 513)))
    key = b.pointwise(b.input(shape, dtype, kind))
    if b.rng.random() < 0.3:
        key = b.move(key)
    key = b.pointwise(b.reduce(key))
    if b.rng.random() < 0.4:
        key = b.reduce(key)
    if not b.steps:
        b.apply("sum", [key], None, False)


def _matmul(b: Builder) -> None:
    rng, dtype = b.rng, b.float_type() if b.rng.random() < 0.9 else b.rng.choice(INTS)
    m, k, n = b.dim(), b.dim(), b.dim()
    lead = rng.choice(((), (), (), (2,), (3, 2), (1,)))
    form = rng.choice(("mm", "mm", "mm", "mm", "vm", "mv", "vv", "einsum"))
    if form == "einsum":
        formula, left, right = rng.choice((
            ("ij,kj->ik", (m, k), (n, k)), ("bij,bjk->bik", (2, m, k), (2, k, n)),
            ("bhid,bhjd->bhij", (2, 2, m, k), (2, 2, n, k)), ("i,j->ij", (m,), (n,)),
            ("ijk,k->ij", (2, m, k), (k,)), ("ij,ij->", (m, k), (m, k))))
        x, y = b.input(left, dtype), b.input(right, dtype)
        b.pointwise(b.apply("einsum", [x, y], formula))
        return
    x = b.input((k,), dtype) if form in ("vm", "vv") else b.strided_input((*lead, m, k), dtype)
    shape = (*(lead if rng.random() < 0.6 else ()), k, n)
    y = b.input((k,), dtype) if form in ("mv", "vv") else b.strided_input(shape, dtype)
    if rng.random() < 0.2:
        x = b.unary(x)
    key = b.apply("matmul", [x, y])
    if rng.random() < 0.4:
        key = b.apply("add", [key, b.input(b.shape(key)[-1:], b.dtype(key))])
    key = b.pointwise(key)
    if rng.random() < 0.3 and len(b.shape(key)) >= 2:
        key = b.apply("matmul", [key, b.strided_input((b.shape(key)[-1], b.dim()),
                                                      b.dtype(key))])
    if not b.steps:
        b.apply("add", [x, x])


def _conv_arguments(b: Builder, kernel: Sequence[int]) -> tuple[Any, Any, Any]:
    rng, n = b.rng, len(kernel)
    stride = tuple(rng.choice((1, 1, 1, 2, 3)) for _ in range(n))
    dilation = tuple(rng.choice((1, 1, 1, 2)) for _ in range(n))
    padding = tuple(rng.randint(0, 2) for _ in range(2 * n)) if rng.random() < 0.4 else \
        (rng.randint(0, 2),) * (2 * n)
    return stride, dilation, padding


def _conv_family(b: Builder) -> None:
    rng, dtype = b.rng, b.float_type() if b.rng.random() < 0.93 else b.rng.choice(INTS)
    b.plain = True
    n = rng.choice((1, 2, 2, 2, 2, 3 if b.size > 1 else 2))
    kernel = tuple(rng.choice((1, 2, 3, 3, 4, 5)[: 6 if n < 3 else 3]) for _ in range(n))
    stride, dilation, padding = _conv_arguments(b, kernel)
    batch, groups = rng.randint(1, 3), rng.choice((1, 1, 1, 2, 3))
    cin = groups * rng.choice((1, 1, 2, 3, 4))
    cout = groups * rng.choice((1, 2, 3, 4, 8))
    if rng.random() < 0.15:  # depthwise
        groups = cin = cout = rng.choice((2, 4, 5))
    most = {1: 33, 2: 14, 3: 6}[n] if b.size else 5
    spatial = tuple(max(d * (k - 1) + 1, rng.randint(1, most))
                    for k, d in zip(kernel, dilation, strict=True))
    x = b.strided_input((batch, cin, *spatial), dtype)
    if rng.random() < 0.2:
        x = b.unary(x)
    if rng.random() < 0.25:
        padding = tuple(min(p, d * (k - 1)) for p, k, d in
                        zip(padding, [k for k in kernel[::-1] for _ in (0, 1)],
                            [d for d in dilation[::-1] for _ in (0, 1)], strict=True))
        w = b.strided_input((cin, max(1, cout // groups), *kernel), dtype)
        key = b.apply("conv_transpose", [x, w], groups, stride, dilation, padding)
    else:
        w = b.strided_input((cout, cin // groups, *kernel), dtype)
        key = b.apply("conv", [x, w], groups, stride, dilation, padding)
    if key == x:
        b.apply("add", [x, x])
        return
    if rng.random() < 0.5:
        key = b.apply("add", [key, b.input((1, b.shape(key)[1], *[1] * n), b.dtype(key))])
    key = b.pointwise(key)
    if rng.random() < 0.3 and n == 2 and min(b.shape(key)[-2:]) >= 2 and \
            len(b.shape(key)) == 4:
        b.apply("max_pool", [key], (2, 2), (2, 2), (1, 1), (0, 0, 0, 0))


def _pool(b: Builder) -> None:
    rng, dtype = b.rng, b.float_type() if b.rng.random() < 0.85 else b.rng.choice(INTS)
    b.plain = True
    n = rng.choice((1, 2, 2, 2, 3))
    kernel = tuple(rng.choice((1, 2, 2, 3, 3, 4)) for _ in range(n))
    stride, dilation, _ = _conv_arguments(b, kernel)
    if rng.random() < 0.4:
        stride = kernel
    padding = tuple(rng.randint(0, k // 2) for k in kernel[::-1] for _ in (0, 1)) \
        if rng.random() < 0.5 else (0,) * (2 * n)
    most = {1: 40, 2: 15, 3: 7}[n] if b.size else 5
    spatial = tuple(max(d * (k - 1) + 1, rng.randint(1, most))
                    for k, d in zip(kernel, dilation, strict=True))
    x = b.strided_input((rng.randint(1, 3), rng.randint(1, 5), *spatial), dtype)
    if rng.random() < 0.3:
        x = b.unary(x)
    if is_float(b.dtype(x)) and rng.random() < 0.5:
        key = b.apply("avg_pool", [x], kernel, stride, dilation, padding, rng.random() < 0.5)
    else:
        key = b.apply("max_pool", [x], kernel, stride, dilation, padding)
    b.pointwise(key)
    if not b.steps:
        b.apply("add", [x, x])


def _index(b: Builder) -> None:
    rng = b.rng
    dtype = rng.choice(("float32",) * 4 + ("float64", "float16", "bfloat16", "int32", "int64",
                                           "uint8", "int8", "uint64", "bool"))
    key = b.input(b.some_shape(2, 3), dtype)
    for _ in range(rng.randint(1, 3)):
        shape = b.shape(key)
        rank = len(shape)
        kind = rng.choice(("move", "gather", "take", "take_column", "cumsum", "scan", "scatter",
                           "scatter_add", "sort", "one_hot", "point", "take_pair", "take_last",
                           "take_after_slice", "pick", "topk"))
        axis = rng.randrange(rank) if rank else 0
        signed = rng.choice(("index", "signed"))
        if kind == "gather" and rank:
            sizes = tuple(rng.randint(1, 9) if a == axis else s for a, s in enumerate(shape))
            key = b.apply("gather", [key, b.input(sizes, "int32", "index", shape[axis])], axis)
        elif kind == "take" and rank:
            index = b.input(rng.choice(((5,), (2, 3), (1,))), "int32", signed, shape[0])
            key = b.apply("take", [key, index])
        elif kind in ("take_column", "take_after_slice") and rank > 1:
            index = b.input((4,), rng.choice(("int32", "int64")), signed, shape[1])
            key = b.apply(kind, [key, index], *([rng.randrange(shape[0])]
                                                if kind == "take_after_slice" else []))
        elif kind == "take_pair" and rank > 1:
            rows, columns = rng.choice((((4,), (4,)), ((3, 1), (2,)), ((1,), (5,))))
            key = b.apply("take_pair", [key, b.input(rows, "int32", signed, shape[0]),
                                        b.input(columns, "int32", signed, shape[1])])
        elif kind == "take_last" and rank:
            key = b.apply("take_last", [key, b.input((3,), "int32", signed, shape[-1])])
        elif kind == "pick" and rank:
            key = b.apply("pick", [key], axis, rng.randrange(-shape[axis], shape[axis]))
        elif kind == "cumsum" and rank:
            key = b.apply("cumsum", [key], axis)
        elif kind == "scan" and rank and shape[axis] <= 16 and b.dtype(key) != "bool":
            key = b.apply(rng.choice(("cumprod", "cummax")), [key], axis)
        elif kind in ("scatter", "scatter_add") and rank and math.prod(shape) < 500 and \
                (kind == "scatter" or is_float(b.dtype(key))):
            sizes = tuple(rng.randint(1, s) for s in shape)
            op = "scatter" if kind == "scatter" else rng.choice(("scatter_add", "scatter_max"))
            index = b.input(sizes, "int32", f"unique{axis}" if kind == "scatter" else "index",
                            shape[axis])
            key = b.apply(op, [key, index, b.input(sizes, b.dtype(key))], axis)
        elif kind in ("sort", "topk") and rank and b.size < 3 and b.dtype(key) != "bool":
            if kind == "topk" and shape[-1] <= 9:
                key = b.apply("topk", [key], rng.randint(1, shape[-1]))
            elif kind == "sort" and shape[axis] <= 9:
                key = b.apply("sort", [key], axis)
        elif kind == "one_hot" and rank <= 2:
            labels = b.input(shape[:1] or (3,), "int32", "index", 7)
            hot = b.cast(b.apply("one_hot", [labels], 7), b.dtype(key))
            if rank == 2 and is_float(b.dtype(key)):
                key = b.apply("einsum", [key, hot], "ij,ik->jk")
        elif kind == "point":
            key = b.pointwise(key, 1)
        else:
            key = b.move(key)
    if not b.steps:
        b.apply("flip", [key], (0,))


def _softmax_family(b: Builder) -> None:
    rng, dtype = b.rng, b.float_type()
    if rng.random() < 0.25:
        t, s, d = b.dim(16), b.dim(16), rng.choice((2, 4, 8))
        lead = rng.choice(((2,), (2, 2), (1, 3)))
        causal = rng.random() < 0.4
        q = b.strided_input((*lead, t, d), dtype)
        k, v = (b.strided_input((*lead, t if causal else s, d), dtype) for _ in "kv")
        b.pointwise(b.apply("attention", [q, k, v], causal), 1)
        return
    key = b.pointwise(b.strided_input(b.some_shape(1, 3), dtype), 1)
    rank = len(b.shape(key))
    if rng.random() < 0.15 and rank == 2:
        labels = b.input(b.shape(key)[:1], "int32", "index", b.shape(key)[1])
        b.apply("cross_entropy", [key, labels])
        return
    axis = rng.randrange(-rank, rank)
    op = rng.choice(("softmax", "log_softmax", "layernorm", "logsumexp", "std"))
    if op == "layernorm":
        axes = rng.choice((-1, axis, tuple(range(-rank, 0))[-2:]))
        key = b.apply("layernorm", [key], axes, rng.choice((1e-5, 1e-2, 0.5)))
    elif op in ("logsumexp", "std"):
        if op == "std" and b.shape(key)[axis] < 2:
            op = "logsumexp"
        key = b.apply(op, [key], axis, rng.random() < 0.5)
    else:
        key = b.apply(op, [key], axis)
    key = b.pointwise(key)
    if not b.steps:
        b.apply("softmax", [key], -1)


def _network(b: Builder) -> None:
    """A few layers, so that kernels feed one another."""
    rng = b.rng
    activation = rng.choice(("relu", "tanh", "silu", "gelu", "sigmoid"))
    batch = rng.randint(1, 5)
    if rng.random() < 0.5:
        cin, cout = rng.randint(1, 3), rng.randint(2, 5)
        side = rng.randint(6, 10) if b.size else 5
        key = b.apply("conv", [b.input((batch, cin, side, side)),
                               b.input((cout, cin, 3, 3))], 1, (1, 1), (1, 1), (1,) * 4)
        key = b.apply(activation, [key])
        key = b.apply(*(("max_pool", [key], (2, 2), (2, 2), (1, 1), (0,) * 4)
                        if rng.random() < 0.6 else
                        ("avg_pool", [key], (3, 3), (2, 2), (1, 1), (1,) * 4, True)))
        key = b.apply("reshape", [key], (batch, math.prod(b.shape(key)[1:])))
        key = b.apply("mul_const", [key], 0.125)
    else:
        key = b.input((batch, b.dim()))
    for _ in range(rng.randint(1, 3 if b.size else 1)):
        out = b.dim()
        key = b.apply("matmul", [key, b.strided_input((b.shape(key)[1], out), "float32")])
        key = b.apply("add", [key, b.input((out,))])
        if rng.random() < 0.3:
            key = b.apply("layernorm", [key], -1, 0.1)
        key = b.apply(activation, [key])
    if rng.random() < 0.5:
        labels = b.input((batch,), "int32", "index", b.shape(key)[1])
        b.apply("cross_entropy", [key, labels])
    else:
        b.apply("log_softmax", [key], -1)


def _movement(b: Builder) -> None:
    """Chains of views: a kernel's index expressions."""
    kind = b.any_type()
    key = b.input(b.some_shape(2, 4), kind, "wide" if kind in INTS and b.rng.random() < 0.5
                  else "small")
    for _ in range(b.rng.randint(2, 6)):
        key = b.move(key)
        if b.rng.random() < 0.15:
            key = b.pointwise(key, 1)
    if b.rng.random() < 0.3:
        key = b.reduce(key)
    if not b.steps or b.rng.random() < 0.2:
        b.apply("cat", [key, key], 0)


def _part(b: Builder, shape: Sequence[int]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Slices of a tensor of this shape, and the shape of that part."""
    parts = []
    for s in shape[: b.rng.randint(1, len(shape))]:
        lo = b.rng.randint(0, s - 1)
        parts.append(b.rng.choice(((lo, b.rng.randint(lo + 1, s), 1), (None, None, None),
                                   (None, None, 2), (None, None, -1), (-1 - lo, None, None))))
    return tuple(parts), np.empty(shape)[_slices(parts)].shape


def _inplace(b: Builder) -> None:
    """A copy, changed in place: the whole of it, a part, or where an index says."""
    rng = b.rng
    key = b.input(b.some_shape(1, 3), b.any_type())
    for _ in range(rng.randint(1, 3)):
        shape, dtype = b.shape(key), b.dtype(key)
        kind = rng.choice(("set_slice", "set_slice", "set_const", "set_at", "add_slice", "assign",
                           "assign_turned", "mse_step", "point", "move"))
        if kind in ("set_slice", "add_slice") and shape and dtype != "bool":
            parts, inside = _part(b, shape)
            key = b.apply(kind, [key, b.input(inside if rng.random() < 0.7 else inside[-1:],
                                              dtype)], parts)
        elif kind == "set_const" and shape and dtype != "bool":
            key = b.apply(kind, [key], _part(b, shape)[0], 2.5 if is_float(dtype) else 3)
        elif kind == "set_at" and shape:
            count = rng.randint(1, shape[0])
            index = b.input((count,), "int32", "unique0", shape[0])
            key = b.apply(kind, [key, index, b.input((count, *shape[1:]), dtype)])
        elif kind == "assign" and dtype != "bool":
            key = b.apply(kind, [key, b.input(shape, dtype)])
        elif kind == "assign_turned" and shape:
            key = b.apply(kind, [key])
        elif kind == "mse_step" and len(shape) == 2 and dtype in ("float32", "float64"):
            key = b.apply(kind, [key, b.input((b.dim(), shape[0]), dtype)], 0.125)
        elif kind == "move":
            key = b.move(key)
        else:
            key = b.pointwise(key, 1)
    if not b.steps:
        b.apply("assign_turned", [key])


def _update(b: Builder) -> None:
    """A state that every call changes in place: optimizers, running means, counters."""
    rng = b.rng
    dtype = rng.choice(("float32",) * 4 + ("float64", "float16", "int32", "uint8"))
    kind = rng.choice(("momentum", "adam", "running", "fit", "turn", "mask", "part", "count")
                      if is_float(dtype) else ("turn", "mask", "part", "count"))
    shape = b.some_shape(1, 2)
    if kind == "turn" and rng.random() < 0.5:
        shape = (shape[0], shape[0])
    p, x = b.input(shape, dtype), b.input(shape, dtype)

    def mix(old: Any, share: float, new: Any) -> Any:
        return b.apply("add", [b.apply("mul_const", [old], share),
                               b.apply("mul_const", [new], 1 - share)])

    if kind == "momentum":
        m = b.input(shape, dtype)
        speed = mix(m, 0.75, b.pointwise(x, 1) if rng.random() < 0.3 else x)
        b.updates = [(m, speed), (p, b.apply("sub", [p, b.apply("mul_const", [speed], 0.125)]))]
    elif kind == "adam":
        m, v = b.input(shape, dtype), b.apply("square", [x])
        second = b.input(shape, dtype)
        first, spread = mix(m, 0.75, x), mix(b.positive(second), 0.75, v)
        change = b.apply("div", [first, b.apply("sqrt", [spread])])
        b.updates = [(m, first), (second, spread),
                     (p, b.apply("sub", [p, b.apply("mul_const", [change], 0.125)]))]
    elif kind == "running":
        rows = b.input((b.dim(), *shape), dtype)
        b.updates = [(p, mix(p, 0.75, b.apply("mean", [rows], 0, False)))]
    elif kind == "fit" and dtype in ("float32", "float64"):
        w = b.input((b.dim(), b.dim()), dtype)
        b.updates = [(w, b.apply("mse_step", [w, b.input((b.dim(), b.shape(w)[0]), dtype)],
                                 0.125))]
    elif kind == "turn":
        view = b.apply("permute", [p], (1, 0)) if len(shape) == 2 and len(set(shape)) == 1 \
            else b.apply("flip", [p], (0,))
        b.updates = [(p, b.apply("minimum", [view, x]) if rng.random() < 0.5 else view)]
    elif kind == "mask":
        test = b.apply("lt", [x, b.input(shape, dtype)])
        b.updates = [(p, b.apply("where", [test, p, x]))]
    elif kind == "part":
        parts, inside = _part(b, shape)
        b.updates = [(p, b.apply("set_slice", [p, b.input(inside, dtype)], parts))]
    else:
        b.updates = [(p, b.apply("add", [p, x]))]
    b.updates = [(i, value) for i, value in b.updates if value != i]
    if rng.random() < 0.6:  # a result beside it, of the state as it was
        b.reduce(b.apply("mul", [p, x])) if rng.random() < 0.7 else b.apply("sub", [x, p])
    if not b.steps:
        b.apply("add", [p, x])


def _symbolic(b: Builder) -> None:
    """Sizes that are variables, bound to a value: one kernel for all of them."""
    rng, dtype = b.rng, b.float_type() if b.rng.random() < 0.8 else b.rng.choice(INTS)
    high = rng.choice((4, 7, 8, 10, 16, 33)[: 4 + b.size])
    value = rng.randint(1, high)

    def sized(shape: Sequence[int], axis: int) -> Any:
        return b.apply("upto", [b.input(shape, dtype)], axis, 0, value, high)

    rank = rng.randint(1, 3)
    axis: int | None = rng.randrange(rank)
    key = sized([high if a == axis else b.dim() for a in range(rank)], axis)
    if rng.random() < 0.15:
        room = rng.randint(1, 3)
        given = b.input([high + room if a == axis else b.dim() for a in range(rank)], dtype)
        if rng.random() < 0.5:
            key = b.apply("window", [given], axis, 0, value, high, room)
        else:
            part = tuple(room if a == axis else s for a, s in enumerate(b.shape(given)))
            key = b.apply("write_window", [given, b.input(part, dtype)], axis, 0, value, high,
                          room)
        b.pointwise(key, 0)
        b.unary(key)
        return
    for _ in range(rng.randint(1, 5)):
        shape = b.shape(key)
        rank, dtype = len(shape), b.dtype(key)
        if dtype == "bool":
            break
        kind = rng.choice(("unary", "unary", "sibling", "row", "permute", "flip", "pad", "reduce",
                           "softmax", "matmul", "where", "cat", "cast"))
        if kind == "sibling":
            other = b.input(shape, dtype) if axis is None else \
                sized([high if a == axis else s for a, s in enumerate(shape)], axis)
            key = b.binary(key, other)
        elif kind == "row":
            key = b.binary(key, b.input([1 if a == axis else s for a, s in enumerate(shape)],
                                        dtype))
        elif kind == "where":
            other = b.input([1 if a == axis else s for a, s in enumerate(shape)], dtype)
            key = b.apply("where", [b.apply(rng.choice(("lt", "ge")), [key, other]), key, other])
        elif kind == "permute" and rank > 1:
            order = list(range(rank))
            rng.shuffle(order)
            key = b.apply("permute", [key], tuple(order))
            axis = None if axis is None else order.index(axis)
        elif kind == "flip" and rank:
            key = b.apply("flip", [key], (rng.randrange(rank),))
        elif kind in ("pad", "cat") and rank and rng.random() < 0.5:  # no axis is n0 long any more
            at = rng.randrange(rank)
            pads = tuple((rng.randint(0, 2), rng.randint(0, 2)) if a == at else (0, 0)
                         for a in range(rank))
            if kind == "pad":
                key = b.apply("pad", [key], pads, 0.0 if is_float(dtype) else 0)
            else:
                key = b.apply("cat", [key, key], at)
            if at == axis:
                b.unary(key)
                break
        elif kind == "reduce" and rank:
            at = rng.randrange(rank)
            op = rng.choice(("sum", "max", "min", *(("mean", "var", "logsumexp")
                                                    if is_float(dtype) else ())))
            made = b.try_apply(op, [key], at, False)
            if made is not None:
                key = made
                axis = None if axis in (at, None) else axis - (at < axis)
        elif kind == "softmax" and rank and is_float(dtype):
            key = b.apply(rng.choice(("softmax", "log_softmax")), [key], rng.randrange(rank))
        elif kind == "matmul" and rank == 2:
            if axis == 1:
                other, new = sized((high, b.dim()), 0), None
            else:
                other, new = b.input((shape[1], b.dim()), dtype), axis
            made = b.try_apply("matmul", [key, other])
            key, axis = (made, new) if made is not None else (key, axis)
        elif kind == "cast" and dtype != "bool":
            key = b.cast(key, rng.choice(("float32", "float64", "float16", "int32")))
        else:
            key = b.unary(key)


def _devices(b: Builder) -> None:
    """Tensors on two devices: split along an axis, copied to both, moved over, summed across."""
    rng, dtype = b.rng, b.float_type() if b.rng.random() < 0.8 else b.rng.choice(INTS)
    shape = list(b.some_shape(1, 3))
    if rng.random() < 0.2:  # there and back
        x, y = (b.apply("to", [b.input(shape, dtype)], 1) for _ in "xy")
        key = b.apply("to", [b.pointwise(b.apply("add", [x, y]), 0)], 0)
        b.pointwise(key)
        return
    at: int = rng.choice((-1, *range(len(shape))))  # the axis that is split, or -1
    if at >= 0:
        shape[at] = 2 * rng.randint(1, max(1, shape[at] // 2))
    key = b.input(shape, dtype, split=at)
    for _ in range(rng.randint(2, 5)):
        here, dtype = b.shape(key), b.dtype(key)
        rank = len(here)
        kind = rng.choice(("unary", "unary", "sibling", "copy", "where", "permute", "flip", "pad",
                           "reduce", "reduce", "softmax", "matmul", "matmul", "take"))
        others = [a for a in range(rank) if a != at]
        if dtype == "bool" and kind not in ("permute", "flip", "reduce"):
            kind = "unary"
        if kind in ("sibling", "copy"):
            key = b.binary(key, b.input(here, dtype, split=at if kind == "sibling" else -1))
        elif kind == "where":
            low = b.input(here, dtype, split=at)
            key = b.apply("where", [b.apply("lt", [key, low]), key, low])
        elif kind == "permute" and rank > 1:
            order = list(range(rank))
            rng.shuffle(order)
            key = b.apply("permute", [key], tuple(order))
            at = at if at < 0 else order.index(at)
        elif kind == "flip" and others:
            key = b.apply("flip", [key], (rng.choice(others),))
        elif kind == "pad" and others:
            side = rng.choice(others)
            key = b.apply("pad", [key], tuple((1, 2) if a == side else (0, 0)
                                              for a in range(rank)),
                          0.0 if is_float(dtype) else 0)
        elif kind == "reduce" and rank:
            side = rng.randrange(rank)
            op = rng.choice(("sum", "max", "min", *(("mean", "prod") if is_float(dtype) else ())))
            if dtype == "bool":
                op = rng.choice(("any", "all", "sum"))
            if op == "prod" and here[side] > 16:
                op = "sum"
            made = b.try_apply(op, [key], side, False)
            if made is not None:
                key, at = made, -1 if at == side else at - (0 <= side < at)
        elif kind == "softmax" and rank and is_float(dtype):
            key = b.apply("softmax", [key], rng.randrange(rank))
        elif kind == "matmul" and rank == 2:
            out = b.dim()
            made = b.try_apply("matmul", [key, b.input((here[1], out), dtype,
                                                       split=0 if at == 1 else -1)])
            if made is not None:
                key, at = made, -1 if at == 1 else at
        elif kind == "take" and rank and at != 0:
            key = b.apply("take", [key, b.input((3,), "int32", "signed", here[0], split=-1)])
            if len(b.shape(key)) != rank:
                break
        else:
            key = b.unary(key)
    if rng.random() < 0.3:
        key = b.apply("to", [key], 0)
        if b.dtype(key) != "bool":
            key = b.apply("add", [key, b.input(b.shape(key), b.dtype(key))])
    if not b.steps:
        b.apply("add", [key, key])


def _contraction(b: Builder) -> None:
    """What the device's contraction compiler is for; the fast path is compared with the plain."""
    b.rng.choice((_matmul, _conv_family, _conv_family, _pool))(b)


FAMILIES: dict[str, Callable[[Builder], None]] = {
    "elementwise": _elementwise,
    "reduce": _reduce,
    "matmul": _matmul,
    "conv": _conv_family,
    "pool": _pool,
    "index": _index,
    "softmax": _softmax_family,
    "network": _network,
    "movement": _movement,
    "inplace": _inplace,
    "update": _update,
    "symbolic": _symbolic,
    "devices": _devices,
    "contraction": _contraction,
}


def random_program(rng: random.Random, size: int = 2,
                   families: Sequence[str] = tuple(FAMILIES)) -> Program:
    """A program that the reference can run: finite, in range, at least one step.

    size 0 makes sides of at most 4, 3 sides of at most 40, 4 sides that fill threads and tiles.
    rng may be hypothesis's (`st.randoms()`) or a plain `random.Random(seed)`."""
    family = rng.choice(list(families))
    builder = Builder(rng, size)
    FAMILIES[family](builder)
    return builder.program(family)


def seeded(seed: int, size: int = 2, families: Sequence[str] = tuple(FAMILIES)) -> Program:
    return random_program(random.Random(seed), size, families)


# ----------------------------------------------------------------------------------- by command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="random tensor programs")
    parser.add_argument("--seed", "--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES))
    parser.add_argument("--device", help="check on this device instead of printing")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="take programs from FILE, one a line")
    many = parser.add_argument_group("every way to run a program, see ways.py")
    many.add_argument("--ways", help="all, or names: fast,plain")
    many.add_argument("--log", default="programs.jsonl", help="a line a case; goes on from there")
    many.add_argument("--again", action="store_true", help="run what failed in the log again")
    many.add_argument("--failures", default="failures", help="a folder for scripts of what failed")
    many.add_argument("--jobs", type=int, default=1, help="processes")
    many.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    families = args.family or tuple(FAMILIES)
    if args.ways:
        import ways

        return ways.main(args)
    if args.json:
        with open(args.json, encoding="utf-8") as lines:
            todo = [from_json(line) for line in lines if line.strip()]
    else:
        todo = [seeded(s, args.size, families) for s in range(args.seed, args.seed + args.count)]
    if not args.device:
        for program in todo:
            print(source(Expected(program, args.jit, args.backward)))
        return 0
    total, failed, refused = Report(), 0, 0
    for n, program in enumerate(todo):
        if known_fault(program):
            refused += 1
            continue
        try:
            total += check(program, args.device, args.jit, args.backward)
        except Mismatch as error:
            if refusal(str(error)):
                refused += 1
                continue
            failed += 1
            print(f"--- seed {args.seed + n} ({program.family})\n{error}")
    print(f"{len(todo)} programs, {failed} failed, {refused} refused by tinygrad; "
          f"{total.compared} of {total.elements} elements "
          f"and {total.smooth} of {total.slopes} slopes compared")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import programs  # the module that ways.py knows, not a second one called __main__

    sys.exit(programs.main())
