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

from tgx.adapter import hook
from tgx.errors import WrongTinygrad

MADE_FOR = "0.14"
INSTALL = "python -m pip install 'tinygrad>=0.14,<0.15'"

# module -> {name: the function's parameters, or "" where only the name is needed}. What is replaced
# stands here (a test finds it in the source), and what is called with arguments.
NEEDS = {
    "tinygrad": {"Tensor": "", "Device": "", "TinyJit": ""},
    "tinygrad.codegen": {
        "apply_opts": "ast ren beam",
        "do_to_program": "",
        "full_rewrite_to_sink": "ast ren optimize",
        "to_program": "ast renderer",
        "to_program_cache": "",
        "to_program_config": "",
        "to_program_key": "ast renderer",
    },
    "tinygrad.codegen.late.linearizer": {"linearize": "sink"},
    "tinygrad.codegen.opt.heuristic": {"hand_coded_optimizations": "k"},
    "tinygrad.codegen.opt.postrange": {"Scheduler": ""},
    "tinygrad.codegen.opt.tc": {"get_cuda": "arch"},
    "tinygrad.device": {
        "ALL_DEVICES": "",
        "Buffer.allocate": "self opaque external_ptr",
        "Buffer.as_memoryview": "self allow_zero_copy force_zero_copy no_sync",
        "Buffer.deallocate": "self",
        "Compiled.__init__": "self device allocator renderers runtime graph arch",
        "Compiler.__init__": "self cachekey",
        "Compiler.compile_cached": "self src",
        "Device.DEFAULT": "",
        "Device._devices": "",
        "Device.get_class": "self ix",
        "LRUAllocator": "",
    },
    "tinygrad.engine.jit": {
        "CapturedJit": "ret _linear expected_names expected_input_info",
        "CapturedJit.__call__": "self input_uops var_vals",
        "JitError": "",
        "_TinyJit.add_linear": "self linear var_vals",
        "_prepare_jit_inputs": "args kwargs",
        "create_graph_call": "batch",
        "graph_split_rewrite": "linear max_batch_size",
        "jit_lower": "",
        "merge_dicts": "ds",
        "mop_cleanup": "",
        "run_linear": "linear var_vals input_uops update_stats jit wait",
    },
    "tinygrad.engine.realize": {
        "ExecContext": "var_vals input_uops update_stats jit wait timeout cache",
        "_compile_kernel": "x",
        "_get_call_to_compile": "c",
        "capturing": "",
        "compile_linear": "linear beam validate input_uops profile",
        "estimate_uop": "call",
        "get_call_name": "call bufs var_vals",
        "link_linear": "linear cache",
        "lower_and_compile": "linear",
        "pm_exec": "",
        "run_linear": "linear var_vals input_uops update_stats jit wait",
        "track_stats": "ctx call st ets",
    },
    "tinygrad.engine.worker": {"get_worker_pool": ""},
    "tinygrad.mixin.gradient": {
        "_deepwalk": "root targets",
        "all_metadata": "",
        "call_gradient": "ctx k needed",
        "compute_gradient": "root root_grad targets",
        "pm_gradient": "",
        "reduce_gradient": "ctx ret op",
    },
    "tinygrad.helpers": {
        "Target": "device renderer arch interface indices",
        "diskcache_get": "table key",
        "diskcache_put": "table key val prepickled",
    },
    "tinygrad.nn.state": {"TensorIO": "", "accept_filename": "func", "zip_extract": "t"},
    "tinygrad.renderer.cstyle": {"CStyleLanguage.__init__": "self target", "CUDARenderer": ""},
    "tinygrad.runtime.ops_cpu": {"CPUDevice.__init__": "self device"},
    "tinygrad.function": {"_function.__call__": "self args kwargs"},
    "tinygrad.schedule": {
        "create_schedule": "sched_sink",
        "lower_sink_to_linear": "function",
        "pm_schedule": "",
        "schedule_cache": "",
    },
    "tinygrad.schedule.indexing": {"IndexingContext": ""},
    "tinygrad.schedule.rangeify": {
        "pm_remove_bufferize": "",
        "remove_bufferize": "src buf idx",
        "run_rangeify": "",
        "to_define_global": "",
    },
    "tinygrad.tensor": {
        "Tensor.__init__": "self data device dtype",
        "Tensor._apply_uop": "self fxn x kwargs",
        "Tensor._buffer": "self",
        "Tensor.assign": "self x",
        "Tensor.clone": "self device",
        "Tensor.custom_kernel": "self lst fxn grad_fxn",
        "_apply_map_to_tensors": "applied_map name",
        "create_linear_with_vars": "",
        "run_linear": "",
        "transform_to_call": "",
    },
    "tinygrad.uop.ops": {
        "RewriteContext": "",
        "UOp.call": "",
        "UOp.placeholder": "",
        "_rebuild_dtype": "n new_src",
    },
}


def check() -> None:
    """Raise `WrongTinygrad` unless the tinygrad installed here is one tgx was made for."""
    if find_spec("tinygrad") is None:
        raise refusal("no tinygrad")
    found = version()
    if found and not found.startswith(MADE_FOR + "."):
        raise refusal(f"tinygrad {found}")
    # What the hook patches is looked at when it is loaded; no device is loaded for this.
    present = [name for name in NEEDS if name in sys.modules or name not in hook.PATCHES]
    wrong = [line for name in present for line in misfits(name)]
    if wrong:
        raise refusal(f"tinygrad {found or 'of unknown version'}, in which " + "; ".join(wrong))


def refusal(found: str) -> WrongTinygrad:
    from tgx import __version__

    expected = f"tinygrad {MADE_FOR}.x, which tgx {__version__} is made for"
    return WrongTinygrad(f"found {found}", expected, INSTALL)


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
