"""`tgx backward "(x*x + x).sum()" x=2.0`: an expression of tensors, computed without running code.

The text is parsed, and only what is listed here is computed: numbers, the names that were given
values, arithmetic, and the methods of tensors in METHODS. Anything else is an error that names it.
Every part is computed under a frame of its own that stands where the part stands in the text, so
the recording knows each operation's place in it, as it does for lines of a script.
"""

from __future__ import annotations

import ast
import linecache
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from tinygrad import Tensor
from tinygrad.dtype import DType, dtypes
from tinygrad.uop.ops import UOp

from tgx.errors import BadInput

FILE = "expression"  # what the recording calls the text's file
EXAMPLE = 'tgx backward "(x*x + x).sum()" x=2.0'

BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: operator.pow, ast.MatMult: operator.matmul,
    ast.Lt: operator.lt, ast.Gt: operator.gt, ast.LtE: operator.le, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}

METHODS = frozenset(  # quotes around each would be in the way
    "abs acos acosh argmax asin asinh atan atanh avg_pool2d batchnorm binary_crossentropy "  # noqa: SIM905
    "binary_crossentropy_logits cast cat celu clamp clip contiguous contiguous_backward conv2d cos "
    "cosh cross_entropy cumsum detach div dot dropout elu erf exp exp2 expand flatten flip gather "
    "gelu hardsigmoid hardswish hardtanh isnan layernorm leaky_relu linear log log2 log_softmax "
    "logaddexp logsigmoid logsumexp matmul max max_pool2d maximum mean min minimum mish mul neg "
    "nll_loss one_hot pad permute pow prod quick_gelu reciprocal relu relu6 repeat reshape round "
    "rsqrt selu shrink sigmoid sign silu sin sinh softmax softplus softsign "
    "sparse_categorical_crossentropy split sqrt square squeeze stack std sub sum swish tan tanh "
    "transpose trunc unsqueeze var where".split()
)
FILLED: dict[str, Callable[..., Tensor]] = {
    "rand": Tensor.rand, "randn": Tensor.randn, "zeros": Tensor.zeros, "ones": Tensor.ones,
}  # fmt: skip
MOST_TEXT = 10_000
MOST_SAID = 200  # characters of it that an error repeats
MOST_ELEMENTS = 2**24  # of a value that is given
MOST_PIECES = 1_000
MOST_RESULT = 2**28  # and of anything computed from it


class Expression:
    """A parsed expression, and the tensors its names stand for."""

    def __init__(self, text: str, bindings: Sequence[str]) -> None:
        self.text = text.strip()
        self.said = _said(self.text)
        if len(text) > MOST_TEXT:
            raise BadInput(f"an expression of {len(text):,} characters", f"at most {MOST_TEXT:,}",
                           "put it into a script: tgx backward script.py")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is not run anyway
                self.tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            why = str(e) or "it is too deep"
            raise BadInput(f"{self.said!r} is neither a file nor an expression: {why}",
                           "a script, module:function, or an expression", EXAMPLE) from None
        self.values = dict(map(_binding, bindings))
        used = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)}
        for name in self.values:
            if name not in used:
                raise BadInput(f"{_said(name)} does not occur in {self.said}",
                               "values for its names")
        self.words: dict[UOp, str] = {t.uop: name for name, t in self.values.items()}
        linecache.cache[FILE] = (len(self.text), None, [self.text + "\n"], FILE)

    def compute(self) -> Tensor:
        """The value, which is a tensor of one number."""
        try:
            result = self._value(self.tree)
        except RecursionError:
            raise BadInput("the expression is nested too deeply", "a shorter one") from None
        if not isinstance(result, Tensor):
            raise BadInput(f"{self.said} is {result!r:.60}, not a tensor",
                           "a name with a value in it", EXAMPLE)
        check_loss(result, self.text)
        return result

    def parameters(self) -> Mapping[str, Tensor]:
        """The names that have a gradient."""
        floats = {n: t for n, t in self.values.items() if t.is_floating_point()}
        if not self.values:
            raise BadInput(f"{self.said} is no tensor: it has no name with a value",
                           "a name, and a value for it", EXAMPLE)
        if not floats:
            given = _said(", ".join(self.values))
            raise BadInput(f"only whole numbers were given ({given}), which have no gradient",
                           "a number with a decimal point", 'tgx backward "x*x" x=2.0')
        return floats

    # **** computing ****

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, (bool, int, float, type(None))):
                return node.value
            if isinstance(getattr(dtypes, str(node.value), None), DType):
                return node.value
            raise self._foreign(node)
        if isinstance(node, (ast.Tuple, ast.List)):
            parts = [self._value(e) for e in node.elts]
            return tuple(parts) if isinstance(node, ast.Tuple) else parts
        if isinstance(node, ast.Name):
            if node.id not in self.values:
                name = _said(node.id)
                raise BadInput(f"{name} has no value", "a value for every name",
                               f'tgx backward "{self.said}" {name}=2.0')
            return self.values[node.id]
        if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
            return self._apply(node, UNARY[type(node.op)], self._operand(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            left, right = self._operand(node.left), self._operand(node.right)
            if isinstance(node.op, ast.Pow) and not isinstance(left, Tensor) and not isinstance(
                right, Tensor
            ):
                return self._apply(node, math.pow, left, right)
            return self._apply(node, BINARY[type(node.op)], left, right)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BINARY:
            parts = [self._operand(node.left), self._operand(node.comparators[0])]
            return self._apply(node, BINARY[type(node.ops[0])], *parts)
        if isinstance(node, ast.Attribute) and node.attr == "T":
            return self._apply(node, lambda t: t.transpose(), self._value(node.value))
        if isinstance(node, ast.Subscript):
            value, index = self._value(node.value), self._index(node.slice)
            return self._apply(node, lambda t: t[index], value)
        if isinstance(node, ast.Call):
            return self._call(node)
        raise self._foreign(node)

    def _operand(self, node: ast.expr) -> Any:
        """Arithmetic is for numbers and tensors: a list times a billion would be one."""
        value = self._value(node)
        if not isinstance(value, (Tensor, int, float)):
            raise self._foreign(node)
        return value

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*(None if e is None else self._value(e)
                           for e in (node.lower, node.upper, node.step)))
        if isinstance(node, ast.Tuple):
            return tuple(self._index(e) for e in node.elts)
        return self._value(node)

    def _call(self, node: ast.Call) -> Any:
        """``x.tanh()``, or ``tanh(x)``, which is the same."""
        arguments = [self._value(a) for a in node.args if not isinstance(a, ast.Starred)]
        keywords = {k.arg: self._value(k.value) for k in node.keywords if k.arg}
        if len(arguments) != len(node.args) or len(keywords) != len(node.keywords):
            raise self._foreign(node)
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, self._value(node.func.value)
        elif isinstance(node.func, ast.Name) and arguments:
            name, (owner, *arguments) = node.func.id, arguments
        else:
            raise self._foreign(node)
        if name not in METHODS:
            raise BadInput(f"{_said(name)} is not among the tensor methods that can be used here",
                           ", ".join(sorted(METHODS)), "for more, write a script")
        if not isinstance(owner, Tensor):
            raise BadInput(f"{name}() of {owner!r:.40}, which is not a tensor",
                           "a tensor in front of it", EXAMPLE)
        if name == "split":  # the only method that makes many tensors of one
            size = next((a for a in (*arguments, *keywords.values()) if isinstance(a, int)), 1)
            if max(owner.shape, default=0) > MOST_PIECES * max(size, 1):
                raise BadInput(f"{self._source(node)} makes over {MOST_PIECES} tensors",
                               "larger pieces", "for more, write a script")
        return self._apply(node, lambda t: getattr(t, name)(*arguments, **keywords), owner)

    def _apply(self, node: ast.expr, work: Callable[..., Any], *operands: Any) -> Any:
        """One operation, under a frame that stands where it does in the text."""
        try:
            result = _placed(node)(work, operands)
            shape = result.shape if isinstance(result, Tensor) else ()  # only now is it worked out
        except (BadInput, RecursionError):
            raise
        except Exception as e:  # tinygrad's own word on shapes and types
            said = _said(str(e).splitlines()[0] if str(e).strip() else type(e).__name__)
            raise BadInput(f"{self._source(node)}: {said}",
                           "shapes and types that fit", EXAMPLE) from None
        if isinstance(result, Tensor):
            if math.prod(shape) > MOST_RESULT:
                raise BadInput(f"{self._source(node)} has the shape {shape}",
                               f"at most {MOST_RESULT:,} elements", "for more, write a script")
            self.words.setdefault(result.uop, self._source(node))
        return result

    def _source(self, node: ast.expr) -> str:
        return _said(ast.get_source_segment(self.text, node) or self.text)

    def _foreign(self, node: ast.expr) -> BadInput:
        return BadInput(
            f"{self._source(node)}: tgx backward does not run this",
            "numbers, names, + - * / ** @, comparisons, [ ] and the methods of tensors", EXAMPLE,
        )  # fmt: skip


def _said(text: str) -> str:
    """Text as an error repeats it."""
    return text if len(text) <= MOST_SAID else text[: MOST_SAID - 1] + "…"


def _placed(node: ast.expr) -> Callable[..., Any]:
    """``lambda work, operands: work(*operands)``, placed where ``node`` stands."""
    tree = ast.parse("lambda work, operands: work(*operands)", FILE, mode="eval")
    for part in ast.walk(tree):
        if isinstance(part, ast.expr):
            ast.copy_location(part, node)
    code = compile(tree, FILE, "eval")
    (body,) = (c for c in code.co_consts if isinstance(c, CodeType))
    return FunctionType(body, {})


def _binding(word: str) -> tuple[str, Tensor]:
    """``x=2.0`` as a name and a tensor in memory."""
    name, equals, text = word.partition("=")
    if not equals or not name.isidentifier():
        raise BadInput(f"{_said(word)!r} is not NAME=VALUE", "a value for a name", "x=2.0")
    filled = re.fullmatch(r"\s*(\w+)\(([\d\s,]*)\)\s*", text)
    try:
        if filled and filled[1] in FILLED:
            shape = [int(n) for n in filled[2].split(",") if n.strip()]
            if math.prod(shape) > MOST_ELEMENTS:
                raise BadInput(f"{_said(name)} of {math.prod(shape):,} elements",
                               f"at most {MOST_ELEMENTS:,}", "for more, write a script")
            made = FILLED[filled[1]](*shape)
        else:
            value = ast.literal_eval(text.strip())
            if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple)):
                raise ValueError
            scalar = isinstance(value, (int, float))
            made = Tensor([value] if scalar else value)
            made = made.reshape(()) if scalar else made
        return name, made.contiguous().realize()
    except BadInput:
        raise
    except Exception:  # no literal, no numbers, ragged, or more than a number can be
        raise BadInput(f"{_said(word)} is not a value",
                       "a number, a list of numbers, or rand(2, 3), randn, zeros, ones",
                       f"{_said(name)}=2.0") from None


# **** what cannot be a loss ****


def check_loss(loss: Tensor, what: str) -> None:
    """Refuses what has no gradient, with what to do."""
    what = _said(what)
    if not dtypes.is_float(loss.dtype):
        raise BadInput(f"{what} is a tensor of whole numbers ({loss.dtype.name}), which has no "
                       "gradient", "a loss of floats", "give floats (x=2.0), or .cast('float')")
    if loss.shape != ():
        raise BadInput(f"{what} has the shape {loss.shape}; a loss is one number",
                       "one number to take the gradient of", "add .sum() or .mean()")
