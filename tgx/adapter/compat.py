"""What tgx needs of tinygrad, name by name, checked before anything is touched.

tinygrad changes its insides between releases. Each row of NEEDS is a name that some module of tgx
leans on, with the parameters it had in the release tgx was made for. If one row does not hold, tgx
refuses as a whole and says which tinygrad to install: it is never half at work.
"""

from __future__ import annotations

import inspect
import sys
from functools import reduce
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tgx.errors import WrongTinygrad

MADE_FOR = "0.14"
INSTALL = "python -m pip install 'tinygrad>=0.14,<0.15'"

# module -> {name: the function's parameters, or "" where only the name is needed}
NEEDS = {
    "tinygrad": {"Tensor": "", "Device": "", "TinyJit": ""},
    "tinygrad.device": {
        "ALL_DEVICES": "",
        "Device.DEFAULT": "",
        "Device._devices": "",
        "Device.get_class": "self ix",
        "Buffer.as_memoryview": "self allow_zero_copy force_zero_copy no_sync",
        "Compiled.__init__": "self device allocator renderers runtime graph arch",
        "Compiler.compile_cached": "self src",
        "LRUAllocator": "",
    },
    "tinygrad.tensor": {
        "Tensor._buffer": "self",
        "Tensor.assign": "self x",
        "Tensor.clone": "self device",
    },
    "tinygrad.nn.state": {
        "zip_extract": "t",
        "torch_load": "t",
        "TensorIO": "",
        "accept_filename": "func",
    },
    "tinygrad.runtime.support.compiler_cpu": {
        "ClangCompiler.compile": "self src",
    },
    "tinygrad.codegen.opt.heuristic": {
        "hand_coded_optimizations": "k",
    },
}


def check() -> None:
    """Raise `WrongTinygrad` unless the tinygrad installed here is one tgx was made for."""
    if find_spec("tinygrad") is None:
        raise refusal("no tinygrad")
    found = version()
    if found and not found.startswith(MADE_FOR + "."):
        raise refusal(f"tinygrad {found}")
    wrong = [line for module in NEEDS for line in misfits(module)]
    if wrong:
        raise refusal(f"tinygrad {found or 'of unknown version'}, in which " + "; ".join(wrong))


def refusal(found: str) -> WrongTinygrad:
    from tgx import __version__

    return WrongTinygrad(f"found {found}", f"tinygrad {MADE_FOR}.x, which tgx {__version__} is made for", INSTALL)


def version() -> str:
    """The installed tinygrad's version; empty for a source tree that was never installed."""
    try:
        return metadata.version("tinygrad")
    except metadata.PackageNotFoundError:
        return ""


def misfits(module_name: str) -> list[str]:
    """How the module differs from its rows in NEEDS; empty if it fits."""
    try:
        module = sys.modules.get(module_name) or import_module(module_name)
    except ImportError:
        return [f"{module_name} cannot be imported"]
    return [
        line
        for name, parameters in NEEDS.get(module_name, {}).items()
        if (line := _misfit(module, name, parameters))
    ]


def _misfit(module: ModuleType, name: str, parameters: str) -> str:
    try:
        # getattr_static does not run properties: Device.DEFAULT would open devices
        found: Any = reduce(inspect.getattr_static, name.split("."), module)
    except AttributeError:
        return f"{module.__name__} has no {name}"
    if not parameters:
        return ""
    has = " ".join(inspect.signature(found).parameters)
    if has == parameters:
        return ""
    return f"{module.__name__}.{name} takes ({has}), not ({parameters})"
