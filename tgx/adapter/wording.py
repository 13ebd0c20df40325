"""tinygrad's things as words: types, shapes, arguments, and which language a program is in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from tinygrad.uop.ops import Ops, UOp

MOST_ARG = 120  # characters of a node's argument

DTYPES = {"float": "float32", "int": "int32", "half": "float16", "double": "float64",
          "long": "int64", "uint": "uint32", "uchar": "uint8", "char": "int8", "short": "int16",
          "ushort": "uint16", "ulong": "uint64", "__bf16": "bfloat16"}  # fmt: skip


@cache
def dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("dtypes.")
    return DTYPES.get(name, name)


def shape_text(shape: Any) -> str:
    """(64, 32) as ``64×32``; a scalar is ``scalar``."""
    if shape is None:
        return ""
    parts = [s.render() if isinstance(s, UOp) else str(s) for s in shape]
    return "×".join(parts) if parts else "scalar"


def shape_of(node: UOp) -> str:
    try:
        return shape_text(node._shape)
    except Exception:  # late nodes have no shape, and some raise when asked
        return ""


SILENT = {Ops.SINK, Ops.CALL, Ops.FUNCTION, Ops.BINARY}  # their arguments are for tinygrad only


def argument_text(node: UOp) -> str:
    op, arg = node.op, node.arg
    if arg is None or op in SILENT:
        return ""
    if op is Ops.REDUCE:
        return f"{arg[0].name} {arg[1]}" if arg[1] else str(arg[0].name)
    if op is Ops.RANGE:
        return "_".join(str(a) for a in arg[:-1]) + f" {arg[-1].name.lower()}"
    if op in (Ops.PARAM, Ops.BUFFER) and hasattr(arg, "slot"):
        return arg.name or f"slot {arg.slot}"
    text = str(arg)
    return text if len(text) <= MOST_ARG else text[: MOST_ARG - 1] + "…"


def closed(nodes: Sequence[UOp]) -> Iterator[UOp]:
    """A program's nodes with any source that the list itself leaves out (shapes) before its
    user."""
    seen: set[UOp] = set()
    for n in nodes:
        if n in seen:
            continue
        if not seen.issuperset(n.src):
            for s in n.toposort(gate=lambda x: x not in seen):
                if s is not n and s not in seen:
                    seen.add(s)
                    yield s
        seen.add(n)
        yield n


def language(source: str) -> str:
    """Which language a renderer wrote: ``llvm``, ``ptx`` or ``c``."""
    if source.startswith(("; ", "define", "target", "source_filename")) or "\ndefine " in source:
        return "llvm"
    if ".visible .entry" in source or source.lstrip().startswith(".version"):
        return "ptx"
    return "c"
