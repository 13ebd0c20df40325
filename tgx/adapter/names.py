"""Names people can read: of buffers, from the user's own variables; of kernels, from what they
compute."""

from __future__ import annotations

import linecache
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

from tinygrad.tensor import Tensor
from tinygrad.uop.ops import GroupOp, Ops, UOp

from tgx.adapter.origins import OriginRecord, Origins
from tgx.model import Kernel

MOST_OBJECTS = 4000  # looked at while searching for the owner of a buffer
DEPTH = 6

# operations that only carry or shape values: a name lists them only if there is nothing else
QUIET = {
    "tensor",
    "contiguous",
    "cast",
    "reshape",
    "permute",
    "expand",
    "view",
    "flatten",
    "transpose",
    "shrink",
    "pad",
    "getitem",
    "broadcast",
    "broadcast_to",
    "detach",
    "unsqueeze",
    "squeeze",
    "movement",
    "to",
    "clone",
    "unknown",
    "float",
    "half",
    "assign",
    "flip",
    "stack",
    "cat",
    "item",
    "numpy",
    "tolist",
    "realize",
    "const_like",
    "bitcast",
    "data",
    "empty",
    "full",
    "zeros",
    "ones",
    "zeros_like",
    "ones_like",
    "repeat",
    "requires_grad_",
    "is_param_",
    "replace",
    "backward",
    "gradient",
    "shard",
    "unbind",
    "copy",
}

FILLING = {
    "rand",
    "randn",
    "randint",
    "uniform",
    "normal",
    "scaled_uniform",
    "glorot_uniform",
    "kaiming_uniform",
    "kaiming_normal",
    "zeros",
    "ones",
    "full",
    "arange",
    "eye",
    "empty",
    "linspace",
    "manual_seed",
    "tensor",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randperm",
    "multinomial_",
    "from_blob",
    "randn_like",
}
"""Operations that make values from nothing: initial weights, ranges, constants."""


# **** buffers ****


def arguments(buffers: Sequence[UOp], frame: FrameType | None, origins: Origins) -> list[str]:
    """What the user calls each of a graph's buffers, "" where he has no name for it.

    Looks through the variables of the user's functions on the stack, innermost last so that the
    outermost, longest-lived name wins, and into objects, lists and dictionaries they hold.
    """
    wanted = {b.src[0] if b.op is Ops.AFTER and b.src else b for b in buffers}
    found: dict[UOp, str] = {}
    scopes: list[dict[str, Any]] = []
    while frame is not None:
        if origins.kind(frame.f_code.co_filename) == "user":
            scopes.append(frame.f_locals)
            if frame.f_locals is not frame.f_globals:
                scopes.append(frame.f_globals)
        frame = frame.f_back
    todo: deque[tuple[str, Any, int]] = deque()
    late: list[tuple[str, Any, int]] = []  # a place in a list says less than any other name
    seen: set[int] = set()
    for scope in reversed(scopes):
        if id(scope) not in seen:
            seen.add(id(scope))
            todo.extend((k, v, 0) for k, v in list(scope.items()) if not k.startswith("__"))
    while (todo or late) and len(seen) < MOST_OBJECTS and len(found) < len(wanted):
        if not todo:
            todo.extend(late)
            late.clear()
        name, value, depth = todo.popleft()
        if isinstance(value, Tensor):
            _name_tensor(name, value, wanted, found)
        elif id(value) not in seen and depth < DEPTH:
            seen.add(id(value))
            listed = depth == 0 and isinstance(value, (list, tuple))
            (late if listed else todo).extend((n, v, depth + 1) for n, v in _inside(name, value))
    result = []
    for b in buffers:
        base = b.src[0] if b.op is Ops.AFTER and b.src else b
        result.append(found.get(base, ""))
    return result


# objects that hold no Tensors of the user's
_CLOSED = (str, bytes, int, float, ModuleType, type, UOp, type(None))
_BORROWED = ("params", "buffers")  # an optimizer's lists of what belongs to the model
_FOREIGN = {"builtins", "numpy", "functools", "types", "tgx"}


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, each with the expression that reaches it."""
    if isinstance(value, _CLOSED):
        return
    if isinstance(value, (list, tuple)):
        yield from ((f"{name}[{i}]", v) for i, v in enumerate(value[:256]))
    elif isinstance(value, dict):
        for k, v in list(value.items())[:256]:
            if isinstance(k, (str, int)):
                yield f"{name}[{k!r}]", v
    elif type(value).__module__.split(".")[0] not in _FOREIGN:
        borrowed = _BORROWED if type(value).__module__ == "tinygrad.nn.optim" else ()
        for k, v in list(getattr(value, "__dict__", {}).items()):
            if k not in borrowed:
                yield f"{name}.{k}", v


def _name_tensor(name: str, tensor: Tensor, wanted: set[UOp], found: dict[UOp, str]) -> None:
    for text, t in ((name, tensor), (f"∂{name}", tensor.grad)):
        if t is None:
            continue
        node = t.uop
        for _ in range(16):
            if node in wanted:
                found.setdefault(node, text)
                break
            if not node.src or node.op not in VIEWS:
                break
            node = node.src[0]


# a tensor that is one of these over a buffer is that buffer, seen in some way
VIEWS = {*GroupOp.Movement, Ops.AFTER, Ops.DETACH, Ops.BITCAST, Ops.UNSHARD}


# **** kernels ****


SHORT = {
    "sparse_categorical_crossentropy": "crossentropy",
    "categorical_crossentropy": "crossentropy",
    "cross_entropy": "crossentropy",
    "binary_crossentropy": "crossentropy",
    "binary_crossentropy_logits": "crossentropy",
    "scaled_dot_product_attention": "attention",
}
"""Operations whose names fill a box: a kernel's `ops` have them in full."""


def shortened(op: str) -> str:
    return SHORT.get(op, op)


def variable(record: OriginRecord) -> str:
    """The variable an operation's result is assigned to, ``a1`` of ``a1 = z1.relu()``: where the
    operation is all that stands right of the =, and nothing else is ever called so."""
    place = record.places[record.user] if record.user >= 0 else None
    if place is None or record.phase != "forward" or place.column < 0:
        return ""
    text = linecache.getline(place.path, place.line).rstrip()
    found = ASSIGNED.match(text)
    if not found or len(text[: found.end()].encode()) != place.column:
        return ""
    if place.end_column != len(text.partition("#")[0].rstrip().encode()):
        return ""
    name = found[1]
    lines = linecache.getlines(place.path)
    again = [m for t in lines if (m := ASSIGNED.match(t)) and m[1] == name]
    return name if len(again) == 1 else ""


ASSIGNED = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*(?=[^=\s])")


def operation(record: OriginRecord) -> str:
    """One operation as a name: the layer's if it has one (``conv1``), else the method's."""
    if record.phase == "forward" and record.label:
        return record.label
    return record.op


def kernel(
    records: Sequence[OriginRecord],
    origins: Origins,
    writes: Iterable[str],
    reads: Iterable[str],
    phase: str,
    kind: str,
    target: str = "",
    devices: str = "",
) -> str:
    """A kernel's name: ``conv1 + bias + relu``, ``∂w2``, ``adam: w1``.

    ``records`` are the origins of what it computes, in order; ``writes`` and ``reads`` the names of
    its buffers; ``target`` the parameter that it computes a gradient or an update of, if any.
    """
    outputs = [w for w in writes if w]
    if kind == "copy":
        return f"copy {outputs[0]}" if outputs else f"copy to {devices}".strip()
    optimizer = next((r.label for r in records if r.label and r.phase == "optimizer"), "update")
    if phase == "optimizer":
        what = ", ".join(brief(o) for o in outputs[:2]) or brief(target)
        if outputs and is_state(outputs[0]):  # its m, v or b of a parameter, or of them all
            state = outputs[0].rpartition(".")[2].partition("[")[0]
            shared = "[" not in outputs[0] or not target
            return f"{optimizer} {state}" + ("" if shared else f": {brief(target)}")
        if what and all(r.op in QUIET for r in records):
            return f"store: {what}"  # computed before, kept apart until nobody reads the old value
        return f"{optimizer}: {what}" if what else optimizer
    if phase == "backward":
        if not target and outputs and outputs[0].startswith("∂"):
            target = outputs[0][1:]
        text = f"∂{brief(target)}" if target else _gradient(records, origins)
        updates = any(r.phase == "optimizer" for r in records)
        return f"{text} + {optimizer}" if updates else text
    parts: list[str] = []
    for r in records:
        name = shortened(operation(r))
        if r.op in QUIET and not (r.phase == "forward" and r.label):
            continue
        if name not in parts:
            parts.append(name)
        if r.label and r.op in ("linear", "conv2d") and name in parts:
            bias = next((n for n in reads if n.endswith(f"{r.label}.bias")), "")
            if bias and "bias" not in parts and _adds_bias(r):
                parts.append("bias")
    if not parts:
        quiet = list(dict.fromkeys(r.op for r in records if r.op not in ("unknown", "tensor")))
        parts = quiet or ["fill"]
    text = " + ".join(_short(parts))
    if phase == "data" and outputs:
        return f"{text}: {brief(outputs[0])}"
    return text


def value(kernel: str) -> str:
    """What a kernel's result is called: ``∂w2`` of ``∂w2 = a1ᵀ·∂z2``."""
    left, equals, right = kernel.partition(" = ")
    if equals and " + " in right:
        left += f" + {right.rpartition(' + ')[2]}"
    return left.partition(" through ")[0]


def is_state(name: str) -> bool:
    """Whether a buffer's name is an optimizer's own: ``opt.m[0]``, ``opt.b1_t``, ``opt.lr``."""
    last = name.rpartition(".")[2].partition("[")[0]
    return last in ("m", "v", "b", "b1_t", "b2_t", "lr")


def brief(name: str) -> str:
    """A buffer's name without the variable that holds the whole model: ``l1.weight``."""
    return name.partition(".")[2] if name.count(".") > 1 else name


def _adds_bias(record: OriginRecord) -> bool:
    return record.via[-1:] == ("add",) or "add" in record.via


def _gradient(records: Sequence[OriginRecord], origins: Origins) -> str:
    """``∂relu · ∂l2``: the operations it goes back through."""
    bases = [origins.records[r.forward] for r in records if r.phase == "backward"]
    spoken = [b for b in bases if b.op not in QUIET] or bases
    names = list(dict.fromkeys(shortened(operation(b)) for b in spoken)) or ["gradient"]
    return " · ".join(f"∂{n}" for n in _short(names))


def _short(parts: list[str]) -> list[str]:
    return parts if len(parts) <= 5 else [*parts[:2], "…", *parts[-2:]]


# **** kernels of one name ****

PRODUCTS = {"linear", "matmul", "dot", "conv2d"}
"""Operations whose gradients are products of matrices: `tgx.adapter.formulas` names them."""

PLAIN_STEPS = {
    "reduce", "alu", "binop", "movement", "broadcast", "promote", "cast", "where", "reshape",
    "expand", "permute", "broadcast_to", "unknown", "neg", "mul", "add", "sub", "div",
    "reciprocal", "ne", "eq", "gt", "lt", "logical_not", "getitem", "shrink", "pad", "const_like",
    "le", "ge", "unsqueeze", "transpose", "flip", "tri", "tril", "triu", "masked_fill",
    "full", "arange",
}  # fmt: skip
"""Steps inside an operation that say nothing of what it does there."""


def tell_apart(
    names: Sequence[str],
    groups: Sequence[Sequence[OriginRecord]],
    kernels: Sequence[Kernel],
    outputs: Sequence[str],
    origins: Origins,
) -> list[str]:
    """Kernels of one schedule that have the same name say which part of the operation they are:
    ``norm1 (mean)``, ``norm1 (var)``, ``norm1: running_mean``, ``crossentropy (max)``. The one
    that ends the operation keeps the bare name."""
    out = list(names)
    same: dict[str, list[int]] = {}
    for i, (name, kernel) in enumerate(zip(names, kernels, strict=True)):
        whole = kernel.phase == "backward" and any(r.op in PRODUCTS for r in groups[i])
        if kernel.phase in ("forward", "backward") and not whole and ":" not in name:
            same.setdefault(name, []).append(i)
    for name, members in same.items():
        if len(members) < 2:
            continue
        inner: list[int] = []  # what they store is read by another of them
        for i in members:
            if outputs[i]:
                out[i] = f"{name}: {outputs[i].rpartition('.')[2]}"
            elif any(set(kernels[i].writes) & set(kernels[j].reads) for j in members if j > i):
                inner.append(i)
        steps = [_steps(groups[i], origins) for i in inner]
        told = max(([word(s) for s in steps] for word in WORDS), key=lambda words: len(set(words)))
        for i, word, all_steps in zip(inner, told, steps, strict=True):
            word = word or next((w for w in (f(all_steps) for f in WORDS[:2]) if w), "")
            out[i] = f"{name} ({word})" if word else name
    return out


KNOWN_STEPS: dict[tuple[str, ...], str] = {
    ("sub", "mul", "mean"): "var",
    ("sub", "square", "mean"): "var",
}
STEP_WORDS = {"next_counter": "random counter"}

WORDS: tuple[Callable[[tuple[str, ...]], str], ...] = (
    lambda s: s[-1] if s and s[-1] not in PLAIN_STEPS else "",
    lambda s: ", ".join([x for x in s if x not in PLAIN_STEPS][-2:]),
    lambda s: KNOWN_STEPS.get(s, ", ".join(s[-3:])),
)
"""What may be said of a kernel's steps: the first that tells the most kernels apart is."""


def _steps(records: Sequence[OriginRecord], origins: Origins) -> tuple[str, ...]:
    """What an operation does in a kernel, step by step: the methods it calls. Of a gradient, those
    it goes back through."""
    back = [r for r in records if r.phase == "backward"]
    found: dict[str, None] = {}
    for r in back or records:
        via = (origins.records[r.forward] if r.phase == "backward" else r).via[1:]
        spoken = [v for v in via if v not in PLAIN_STEPS]
        if spoken[-2:] in (["mean", "sum"], ["dot", "sum"], ["rsqrt", "sqrt"]):
            spoken.pop()
        if via:
            step = spoken[-1] if spoken else via[0]
            found.setdefault(STEP_WORDS.get(step, step))
    return tuple(found)
