"""tinygrad's gradient table as mathematics: one formula for each of its rules.

`FORMULAS` is keyed as the rules are: by the operations a rule's pattern matches (``MUL``,
``CMPLT/CMPNE``), with those of its sources where the pattern names them (``AFTER STORE``), and for
a reduce by what it reduces with (``REDUCE MAX``). A rule of a newer tinygrad that has no formula
here is shown all the same, and named as one without (`formula_of`).

Each row says the operation, the derivative by each input, and computes the contributions once more
by the textbook, from the values alone: so a formula that is not true of the rule is found out.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinygrad.mixin.gradient as tg_gradient
from tinygrad.uop.ops import UPat

from tgx.adapter.values import Row

LN2 = math.log(2.0)

Arrays = Sequence[Any]
Compute = Callable[[Row, Any, Any, Arrays], tuple[Any, ...]]


@dataclass(frozen=True)
class Formula:
    """One operation and its derivatives. ``slopes`` has one text for each input, the last for all
    further ones; None where nothing flows, which ``stops`` explains. ``compute`` gives the
    contributions from (row, upstream gradient g, result, inputs), all float64."""

    operation: str
    slopes: tuple[str | None, ...]
    compute: Compute | None = None
    stops: str = ""
    keeps: str = ""  # the forward values the rule needs again

    def slope(self, slot: int) -> str:
        """The derivative by one input, "" where nothing flows."""
        return (self.slopes[min(slot, len(self.slopes) - 1)] or "") if self.slopes else ""


def _power(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    b, e = x
    zero = np.where(e < 0, -np.inf, 0.0)
    by_base = np.where(e == 0, e, e * np.power(b, e - 1))
    return g * by_base, g * np.where(b == 0, zero, out * np.log(np.where(b == 0, 1, b)))


def _larger(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    a, b = x
    return (np.where(a > b, g, np.where(a == b, g / 2, 0.0)),
            np.where(b > a, g, np.where(a == b, g / 2, 0.0)))


def _largest(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    hit = (x[0] == out).astype(np.float64)
    return (hit / hit.sum(axis=tuple(range(row.arg[1]))) * g,)


def _product(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    """The product of the others, without a division: products from both ends."""
    a = x[0].reshape(-1, *x[0].shape[row.arg[1]:])
    before = np.concatenate([np.ones_like(a[:1]), np.cumprod(a, axis=0)[:-1]])
    after = np.concatenate([np.cumprod(a[::-1], axis=0)[::-1][1:], np.ones_like(a[:1])])
    return ((g * before * after).reshape(x[0].shape),)


def _unpad(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    return (g[tuple(slice(o, o + s) for (o, _), s in zip(row.arg, x[0].shape, strict=True))],)


def _unshrink(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    made = np.zeros(x[0].shape)
    made[tuple(slice(o, o + size) for o, size in row.arg)] = g
    return (made,)


def _same(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    return (g,)


def _flipped(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    return (np.flip(g, tuple(i for i, f in enumerate(row.arg) if f)),)


def _stored(row: Row, g: Any, out: Any, x: Arrays) -> tuple[Any, ...]:
    return (None, g)


COMPARISON = "a comparison is flat: it jumps, and between jumps its slope is 0"
STORED = "what stood there before is overwritten"

FORMULAS: dict[str, Formula] = {
    "CAST": Formula("a, as another type", ("∂a/∂a = 1",), _same),
    "RECIPROCAL": Formula("1/a", ("∂(1/a)/∂a = −1/a²",),
                          lambda row, g, out, x: (-g * out * out,), keeps="the result"),
    "SIN": Formula("sin a", ("∂(sin a)/∂a = cos a = sin(π/2 − a)",),
                   lambda row, g, out, x: (g * np.cos(x[0]),), keeps="the input"),
    "LOG2": Formula("log₂ a", ("∂(log₂ a)/∂a = 1/(a·ln 2)",),
                    lambda row, g, out, x: (g / (x[0] * LN2),), keeps="the input"),
    "EXP2": Formula("2ᵃ", ("∂(2ᵃ)/∂a = 2ᵃ·ln 2",),
                    lambda row, g, out, x: (g * out * LN2,), keeps="the result"),
    "SQRT": Formula("√a", ("∂(√a)/∂a = 1/(2·√a)",),
                    lambda row, g, out, x: (g / (2 * out),), keeps="the result"),
    "TRUNC": Formula("a, cut to a whole number", ("∂(trunc a)/∂a = 0",),
                     lambda row, g, out, x: (0.0 * x[0],)),
    "CMPLT/CMPNE": Formula("a < b, a ≠ b", (None, None), stops=COMPARISON),
    "ADD": Formula("a + b", ("∂(a+b)/∂a = 1", "∂(a+b)/∂b = 1"),
                   lambda row, g, out, x: (g, g)),
    "POW": Formula("aᵇ", ("∂(aᵇ)/∂a = b·aᵇ⁻¹", "∂(aᵇ)/∂b = aᵇ·ln a"), _power,
                   keeps="both inputs and the result"),
    "MAX": Formula("max(a, b)", ("∂max(a,b)/∂a = 1 where a > b, ½ where a = b, else 0",
                                 "∂max(a,b)/∂b = 1 where b > a, ½ where a = b, else 0"), _larger,
                   keeps="both inputs"),
    "MUL": Formula("a · b", ("∂(a·b)/∂a = b", "∂(a·b)/∂b = a"),
                   lambda row, g, out, x: (g * x[1], g * x[0]), keeps="both inputs"),
    "WHERE": Formula("a ? b : c", (None, "∂(a ? b : c)/∂b = 1 where a, else 0",
                                   "∂(a ? b : c)/∂c = 0 where a, else 1"),
                     lambda row, g, out, x: (None, np.where(x[0], g, 0.0), np.where(x[0], 0.0, g)),
                     stops="a condition chooses; it has no slope", keeps="the condition"),
    "REDUCE ADD": Formula("Σ a", ("∂(Σa)/∂aᵢ = 1",),
                          lambda row, g, out, x: (np.broadcast_to(g, x[0].shape),)),
    "REDUCE MAX": Formula("max a", ("∂(max a)/∂aᵢ = 1 where aᵢ is the largest (shared by ties), "
                                    "else 0",), _largest, keeps="the input and the result"),
    "REDUCE MUL": Formula("Π a", ("∂(Πa)/∂aᵢ = the product of the others",), _product,
                          keeps="the input and the result"),
    "CONTIGUOUS": Formula("a, stored", ("∂a/∂a = 1",), _same),
    "CONTIGUOUS_BACKWARD": Formula("a; its gradient is stored", ("∂a/∂a = 1",), _same),
    "RESHAPE": Formula("a, in another shape", ("∂a/∂a = 1: the gradient in the old shape",),
                       lambda row, g, out, x: (g.reshape(x[0].shape),)),
    "EXPAND": Formula("a, repeated", ("∂(copy of a)/∂a = 1: the copies' gradients are summed",),
                      lambda row, g, out, x: (g.sum(axis=tuple(range(g.ndim - x[0].ndim))),)),
    "PAD": Formula("a, with zeros around it", ("∂(padded a)/∂a = 1: the margin is cut off",),
                   _unpad),
    "SHRINK": Formula("a part of a", ("∂(part of a)/∂a = 1 inside the part, 0 outside",),
                      _unshrink),
    "PERMUTE": Formula("a, its axes in another order", ("∂a/∂a = 1: the axes go back",),
                       lambda row, g, out, x: (g.transpose(np.argsort(row.arg)),)),
    "FLIP": Formula("a, turned round", ("∂a/∂a = 1: turned round again",), _flipped),
    "STACK": Formula("a, b, … in a row", ("∂(stack)/∂aᵢ = 1 at place i",),
                     lambda row, g, out, x: tuple(g[i] for i in range(len(x)))),
    "COPY": Formula("a, on another device", ("∂a/∂a = 1: copied back",), _same),
    "UNSHARD": Formula("pieces of a on several devices, as one", ("∂a/∂piece = 1: each its own",)),
    "TUPLE": Formula("results of a function", ("each result's own gradient",)),
    "AFTER CALL": Formula("what a kernel wrote", (
        "the buffer's gradient goes on to the kernel's own rule",)),
    "AFTER STORE": Formula("a, after b was stored in it", (None, "∂b/∂b = 1"), _stored, STORED),
    "STORE": Formula("b, stored", (None, "∂b/∂b = 1"), _stored, STORED),
    "BITCAST": Formula("the bits of a, read as another type", (None,),
                       stops="bits have no slope"),
    # not rules of the table, but cases of the walk itself
    "GETTUPLE": Formula("one result of a function", (
        "its gradient joins those of the function's other results",)),
    "FUNCTION": Formula("a function's body", ("a walk of its own, through the body",)),
    "CALL": Formula("a kernel written by hand", ("the gradient function it was given",)),
}

WALK = ("GETTUPLE", "FUNCTION", "CALL")
"""Cases that `compute_gradient` and `call_gradient` handle themselves, without a rule."""


def key_of(pattern: UPat, node: Any = None) -> str:
    """A rule's key in FORMULAS; of a reduce's rule, with the ``node`` it matched."""
    key = "/".join(op.name for op in pattern.op or ())
    named = [op.name for s in (pattern.src or [()])[0] or () for op in (s.op or ())]
    if node is not None and node.op.name == "REDUCE":
        named = [node.arg[0].name]
    return " ".join([key, *named])


def formula_of(key: str) -> Formula:
    """A rule's formula. One that is not in the table says so."""
    found = FORMULAS.get(key)
    return found if found is not None else Formula(f"{key}: tgx has no formula for this rule", ())


def keys() -> list[str]:
    """All rules of the installed tinygrad's table, by key, in its order."""
    found: list[str] = []
    for pattern, _ in tg_gradient.pm_gradient.patterns:
        key = key_of(pattern)
        if key == "REDUCE":
            found += [f"REDUCE {op}" for op in _reduces()]
        else:
            found.append(key)
    return found


# **** the rules' own source ****


@dataclass(frozen=True)
class Source:
    """Where a rule stands: its file, its line and its text there."""

    path: str
    line: int
    text: str
    function: str


@functools.cache
def _tree() -> tuple[str, ast.Module]:
    text = inspect.getsource(tg_gradient)
    return text, ast.parse(text)


def path() -> str:
    return str(inspect.getsourcefile(tg_gradient) or tg_gradient.__file__)


@functools.cache
def _rows() -> list[tuple[int, int, str]]:
    """(first line, last line, text) of every row of the table."""
    text, tree = _tree()
    rows = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pm_gradient":
            table = node.value.args[0]  # type: ignore[attr-defined]
            for row in table.elts:
                segment = ast.get_source_segment(text, row) or ""
                rows.append((row.lineno, row.end_lineno, _one_line(segment)))
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _reductions() -> dict[str, tuple[int, str]]:
    """Of `reduce_gradient`, the line and text of each operation's case."""
    text, tree = _tree()
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "reduce_gradient":
            for case in node.body:
                if isinstance(case, ast.If) and isinstance(case.test, ast.Compare):
                    op = ast.unparse(case.test.comparators[0]).rpartition(".")[2]
                    last = case.body[-1]
                    found[op] = last.lineno, _one_line(ast.get_source_segment(text, last) or "")
    return found


def _reduces() -> list[str]:
    return list(_reductions())


def source_of(pattern: UPat, key: str) -> Source:
    """The live text of the rule that matched: its row of the table, and for a reduce the line of
    `reduce_gradient` that did it."""
    file, line = pattern.location
    text = next((t for first, last, t in _rows() if first <= line <= last), "")
    text = text or linecache.getline(file, line).strip()
    first = next((f for f, last, _ in _rows() if f <= line <= last), line)
    kind, _, op = key.partition(" ")
    if kind == "REDUCE" and op in _reductions():
        number, case = _reductions()[op]
        return Source(file, number, f"{case}    # from line {first}: {text}", "reduce_gradient")
    return Source(file, first, text, "pm_gradient")


def walk_source(key: str) -> Source:
    """The line of the walk itself that handles what no rule does."""
    words = "if t0.op is Ops.GETTUPLE" if key == "GETTUPLE" else "= call_gradient(grads[t0]"
    return _found(tg_gradient, "compute_gradient", words) or Source(path(), 1, "", key)


def route() -> list[Source]:
    """The places every backward passes, in order, each with its live line. One that a newer
    tinygrad no longer has is left out."""
    import tinygrad.mixin.op as tg_op
    import tinygrad.tensor as tg_tensor

    wanted = (
        (tg_tensor, "backward", "def backward("),
        (tg_tensor, "backward", "tensors_need_grad: list[Tensor] ="),
        (tg_op, "gradient", "compute_gradient(self._uop"),
        (tg_gradient, "_deepwalk", "return [node for node in in_target_path"),
        (tg_gradient, "compute_gradient", "grads: dict[UOp, UOp] = {root: root_grad}"),
        (tg_gradient, "compute_gradient", "for t0 in reversed(walk):"),
        (tg_gradient, "compute_gradient", "pm_gradient.rewrite(t0"),
        (tg_gradient, "compute_gradient", "_rop(Ops.ADD, broadcast_axes("),
        (tg_gradient, "compute_gradient", "grads[k] = grads[k] + v"),
        (tg_tensor, "backward", "t.grad = g"),
    )
    return [found for module, name, words in wanted if (found := _found(module, name, words))]


@functools.cache
def _found(module: Any, function: str, words: str) -> Source | None:
    """The first line of a module's source that has these words."""
    for number, line in enumerate(inspect.getsource(module).splitlines(), 1):
        if words in line:
            return Source(str(inspect.getsourcefile(module)), number, line.strip(), function)
    return None
