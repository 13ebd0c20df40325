"""One kernel as a script of its own: ``tgx extract DIR --kernel K``.

The script rebuilds the kernel from the trace, fills its buffers with random numbers, runs it on a
device and compares the result with NumPy, or with another device. It needs tinygrad and NumPy (and
tgx only for the device TGX).

A trace may come from a stranger, and a script is run. So the kernel's code in it is not copied but
read: only what `pyrender` writes of a kernel's arithmetic gets through, see `checked`. Above all
not the operations that carry text of another language (CUSTOM, SOURCE, …), nor names that a
renderer would write into its program as they stand.
"""

from __future__ import annotations

import ast as python
import inspect
import re
import warnings

from tinygrad.codegen.opt import OptOps
from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.uop.ops import AxisType, GroupOp, Ops, UOp
from tinygrad.uop.render import pyrender

from tgx.errors import BadInput
from tgx.model import Kernel, Trace
from tgx.safe import clean

MOST_CODE = 1 << 20

# what the text of a kernel may use, and nothing else
NAMES = {
    "UOp",
    "Ops",
    "dtypes",
    "AxisType",
    "ParamArg",
    "AddrSpace",
    "KernelInfo",
    "Invalid",
    "Opt",
    "OptOps",
    "BufferizeOpts",
    "DEVICE",
    "inf",
    "nan",
    "math",
    "True",
    "False",
    "None",
}
NODES = (
    python.Module,
    python.Assign,
    python.Expr,
    python.Call,
    python.Attribute,
    python.Name,
    python.Constant,
    python.Tuple,
    python.List,
    python.keyword,
    python.BinOp,
    python.UnaryOp,
    python.Compare,
    python.Load,
    python.Store,
    python.operator,
    python.unaryop,
    python.cmpop,
    python.Starred,
)


METHODS = set(  # of a UOp, and of UOp itself
    "after alu barrier bitcast cast const contiguous detach end exp2 index load log2 range "  # noqa: SIM905
    "reciprocal reduce sin sink special sqrt store threefry vec".split()
)
MEMBERS: dict[str, set[str]] = {  # NAME.member
    "UOp": METHODS,
    "Ops": {op.name for op in (*GroupOp.ALU, *GroupOp.Movement)}.union(
        "PARAM CONST VCONST RANGE SPECIAL INDEX LOAD STORE REDUCE END SINK CAST BITCAST STACK "  # noqa: SIM905
        "AFTER BARRIER DETACH CONTIGUOUS WMMA DEFINE_LOCAL DEFINE_REG DEFINE_VAR BIND BUFFER GEP "
        "VECTORIZE NOOP".split()
    ),
    "dtypes": {n for n in dir(dtypes) if isinstance(getattr(dtypes, n), DType)},
    "math": {"inf", "nan"},
    **{kind.__name__: set(kind.__members__) for kind in (AxisType, AddrSpace, OptOps)},
}
WORD = re.compile(r"[A-Za-z0-9_:.+ -]{0,120}")  # what a text may be: a device, a kernel's name
ENDLESS = (python.Pow, python.MatMult)  # no kernel has them


def text_of(ast: UOp) -> str:
    """A kernel's AST as the Python that builds it; "" where tinygrad cannot write it."""
    try:
        return pyrender(ast)
    except Exception:  # pyrender gives up on calls inside a kernel
        return ""


def checked(code: str, where: str) -> str:
    """The code again, with its devices replaced by DEVICE, if it only builds UOps."""

    def refuse(why: str) -> BadInput:
        return BadInput(
            f"{where}: the kernel's code {why}",
            "only what builds UOps",
            "record the trace anew, with a program you know",
        )

    if len(code) > MOST_CODE:
        raise refuse(f"has {len(code)} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not run anyway
            tree = python.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refuse("is not Python") from None
    made = {
        target.id
        for line in tree.body if isinstance(line, python.Assign)
        for target in line.targets if isinstance(target, python.Name)
    }  # fmt: skip
    uops: set[int] = set()  # parts that make a UOp, by id(); arithmetic on others is done at once
    try:
        for node in reversed([*python.walk(tree)]):  # inner parts first
            if why := _foreign(node, made, uops):
                raise refuse(why)
            if isinstance(node, python.keyword) and node.arg == "device":
                node.value = python.Name("DEVICE", python.Load())
        if made & NAMES or "ast" not in made:
            raise refuse("builds no kernel")
        return python.unparse(tree)
    except RecursionError:
        raise refuse("is nested too deeply") from None


def _foreign(node: python.AST, made: set[str], uops: set[int]) -> str:
    """What of a part of the code no kernel has; "" for what one may have."""
    if not isinstance(node, NODES) or isinstance(node, ENDLESS):
        return f"has a {type(node).__name__}"
    match node:
        case python.Constant(value=str(text)):
            return "" if WORD.fullmatch(text) else f"has the text {text!r:.60}"
        case python.Constant(value=value):
            if value is not None and not isinstance(value, (bool, int, float)):
                return f"has a {type(value).__name__}"
            return "has a number of over 64 bits" if abs(value or 0) >= 2**64 else ""
        case python.Name(id=name):
            if name not in NAMES | made:
                return f"uses {name:.60}"
            if name in made:
                uops.add(id(node))
        case python.Attribute(value=python.Name(id=owner), attr=name) if owner in MEMBERS:
            return "" if name in MEMBERS[owner] else f"uses {owner}.{name:.60}"
        case python.Attribute(attr=name):
            return "" if name in METHODS else f"uses {name:.60}"
        case python.Call(func=python.Name(id=name)):
            if name == "UOp":
                uops.add(id(node))
        case python.Call(func=python.Attribute()):
            uops.add(id(node))
        case python.Call():
            return "calls what is not a name"
        case python.BinOp(left=left, right=right) | python.Compare(left=left, comparators=[right]):
            if not uops & {id(left), id(right)}:
                return "calculates without a UOp"
            uops.add(id(node))
        case python.Compare():
            return "compares more than two"
        case python.UnaryOp(operand=operand):
            if id(operand) in uops:
                uops.add(id(node))
        case python.Assign(value=value, targets=[python.Name()]):
            return "" if id(value) in uops else "assigns what is no UOp"
        case python.Assign():
            return "assigns to more than a name"
    return ""


TEMPLATE = '''\
"""{title}

Written by `tgx extract`. It runs one kernel of a recorded program by itself and checks the result:

    python {file} [DEVICE] [--against numpy|DEVICE] [--seed N]

The exit code is 0 if both agree, 1 if not.
"""
import argparse, math, sys
{tgx}import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.codegen.opt import Opt, OptOps
from tinygrad.dtype import AddrSpace, Invalid
from tinygrad.engine.realize import run_linear
from tinygrad.uop.ops import AxisType, KernelInfo, Ops, ParamArg, UOp

inf, nan = math.inf, math.nan


def build(DEVICE):
{code}
    return ast


# **** the reference ****

{reference}

# **** the check ****


def on_device(device, arrays):
    """The kernel's buffers after it ran on a device."""
    ast = build(device)
    tensors = [Tensor(a.copy(), device=device).realize() for a in arrays]
    call = ast.call(*[t.uop.base for t in tensors])
    values = {{v.expr: int(v.vmax) for v in ast.variables()}}
    run_linear(UOp(Ops.LINEAR, src=(call,)), values)
    return [t.numpy() for t in tensors]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default={device!r})
    parser.add_argument("--against", default="numpy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ast = build(options.device)
    arrays = inputs(ast, options.seed)
    params = {{n.arg.slot: n for n in ast.toposort() if n.op is Ops.PARAM and n.arg.slot >= 0}}
    names = [str(params[slot].dtype).removeprefix("dtypes.") for slot in sorted(params)]
    wanted = [a.copy() for a in arrays]
    written = run(ast, wanted, {{v.expr: int(v.vmax) for v in ast.variables()}})
    if options.against != "numpy":
        wanted = on_device(options.against, arrays)
    wrong = difference(on_device(options.device, arrays), wanted, written, names)
    print(wrong or f"right: {{options.device}} and {{options.against}} agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
'''


def script(trace: Trace, kernel: int, device: str = "", file: str = "kernel.py") -> str:
    """The script for one kernel of a trace."""
    from tgx.adapter import reference

    k = _kernel(trace, kernel)
    pane = trace.program(k.program).pane("ast") if k.program >= 0 else None
    if pane is None:
        raise BadInput(
            f"kernel {kernel} ({k.name}) has no code to extract",
            "a kernel of a trace that tgx trace made (not a copy, not a DEBUG log)",
            "tgx show DIR lists the kernels",
        )
    code = checked(pane.text, f"kernel {kernel}")
    places = ", ".join(trace.places(kernel))
    title = f"Kernel {kernel} ({k.name}, {k.tinygrad_name}), from {places}.".replace('"', "'")
    title = clean(title.replace("\\", "/").replace("\n", " "))[:500]
    device = device or k.device.split(",")[0]
    body = inspect.getsource(reference).partition("MOST_ELEMENTS")
    imports = "import tgx\n" if device.startswith("TGX") else ""
    return TEMPLATE.format(
        title=title,
        file=file,
        tgx=imports,
        device=device,
        code="\n".join("    " + line for line in code.splitlines()),
        reference="from typing import Any\n\n" + (body[1] + body[2]).strip(),
    )


def _kernel(trace: Trace, kernel: int) -> Kernel:
    try:
        return trace.kernel(kernel)
    except KeyError:
        raise BadInput(
            f"--kernel {kernel}: this trace has kernels 0 to {len(trace.kernels) - 1}",
            "",
            "tgx show DIR lists them",
        ) from None


def rebuild(trace: Trace, kernel: int, device: str) -> UOp:
    """A kernel's AST, made from the trace."""
    import math

    from tinygrad.codegen.opt import Opt, OptOps
    from tinygrad.dtype import AddrSpace, Invalid, dtypes
    from tinygrad.uop.ops import AxisType, KernelInfo, ParamArg

    k = _kernel(trace, kernel)
    pane = trace.program(k.program).pane("ast") if k.program >= 0 else None
    if pane is None:
        raise BadInput(f"kernel {kernel} ({k.name}) has no code to rebuild it from")
    scope = {
        "UOp": UOp,
        "Ops": Ops,
        "dtypes": dtypes,
        "AxisType": AxisType,
        "ParamArg": ParamArg,
        "AddrSpace": AddrSpace,
        "KernelInfo": KernelInfo,
        "Invalid": Invalid,
        "Opt": Opt,
        "OptOps": OptOps,
        "DEVICE": device,
        "inf": math.inf,
        "nan": math.nan,
        "math": math,
        "__builtins__": {},
    }
    code = compile(checked(pane.text, f"kernel {kernel}"), "<kernel>", "exec")
    try:
        exec(code, scope)
    except Exception as error:  # what passed the check may still be no kernel to tinygrad
        raise BadInput(f"the code of kernel {kernel} builds no kernel: {str(error)[:200]}",
                       "a trace that this tinygrad wrote", "record it anew") from None
    ast = scope["ast"]
    if not isinstance(ast, UOp):
        raise BadInput(f"the code of kernel {kernel} builds no kernel")
    return ast
