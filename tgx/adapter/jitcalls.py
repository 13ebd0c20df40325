"""A TinyJit call on TGX, without what tinygrad computes anew each time although it cannot change.

A captured step is one native call (`tgx.devices.graph`). Around it tinygrad spends 0.1 to 0.3 ms of
Python a call, as much as a small network takes. Two parts of that are cut here, both for programs
on TGX only; every check of tinygrad's stays:

* the *view* of each input (its movement operations, without the buffer they start from) is found by
  rewriting a graph. It depends on the operations alone, so it is kept by them;
* a captured graph is executed by pattern matching on a call of it. It is called.

Functions here are rows of `hook.PATCHES`, see patches.py.
"""

from __future__ import annotations

import functools
from typing import Any

KEPT_VIEWS = 4096


def quicken(jit: Any) -> None:
    """Patch `tinygrad.engine.jit`."""
    jit._prepare_jit_inputs = prepared_inputs(jit)
    jit.graph_split_rewrite = graph_of_one_kernel(jit)
    jit.run_linear = direct_run(jit)


def prepared_inputs(jit: Any) -> Any:
    """`_prepare_jit_inputs` with views kept; other than plain Tensors on TGX, tinygrad's own."""
    stock = jit._prepare_jit_inputs
    Tensor, Ops, UOp = jit.Tensor, jit.Ops, jit.UOp
    views: dict[Any, Any] = {}

    def view(uop: Any, base: Any) -> Any:
        """tinygrad's words for one input: (view, variables and their values, dtype, device)."""
        key: list[Any] = [uop.device, base.src, base.dtype]
        at = uop
        while at is not base:
            key += (at.op, at.arg, at.dtype, at.src[1:])
            at = at.src[0]
        found = views.get(frozen := tuple(key))
        if found is None:
            if len(views) >= KEPT_VIEWS:  # slices bound to ever new values
                views.clear()
            alone = uop.substitute({base: UOp(Ops.NOOP)}, extra_pm=jit.mop_cleanup).unbind_all()
            found = views[frozen] = (*alone, uop.dtype, uop.device)
        return found

    @functools.wraps(stock)
    def _prepare_jit_inputs(args: Any, kwargs: Any) -> Any:
        named = (*enumerate(args), *sorted(kwargs.items()))
        inputs, bases = [], []
        for _, x in named:
            if x.__class__ is Tensor:
                uop = x.uop
                base, device = uop.base, uop.device
                if base.op is not Ops.BUFFER or base.realized is None \
                        or device.__class__ is not str or not device.startswith("TGX"):
                    return stock(args, kwargs)
                bases.append(base)
                inputs.append(view(uop, base))
            elif isinstance(x, (tuple, list, dict)):  # may hold Tensors
                return stock(args, kwargs)
        if len(set(bases)) != len(bases):
            raise jit.JitError("duplicate inputs to JIT")
        bound = [dict(x.unbind() for _, x in named if isinstance(x, UOp))]
        values = jit.merge_dicts([v for _, v, _, _ in inputs] + bound)
        return (
            bases,
            {variable.expr: value for variable, value in values.items()},
            [name for name, x in named if x.__class__ is Tensor],
            [
                (shape, tuple(sorted(variables, key=lambda v: v.expr)), dtype, device)
                for shape, variables, dtype, device in inputs
            ],
        )

    return _prepare_jit_inputs


def graph_of_one_kernel(jit: Any) -> Any:
    """`graph_split_rewrite`: on TGX a capture of a single kernel is a graph too.

    tinygrad leaves it to the ordinary way, which costs more than the graph's.
    """
    stock = jit.graph_split_rewrite

    @functools.wraps(stock)
    def graph_split_rewrite(linear: Any, max_batch_size: int = 0) -> Any:
        split = stock(linear, max_batch_size)
        if len(split.src) == 1 and (call := split.src[0]).src[0].op is jit.Ops.PROGRAM:
            if str(call.src[1].device).startswith("TGX"):
                return split.replace(src=(jit.create_graph_call([call]),))
        return split

    return graph_split_rewrite


def direct_run(jit: Any) -> Any:
    """`run_linear`, for a capture that is TGX graphs and nothing else; the rest is tinygrad's.

    tinygrad cuts a capture into graphs of 32, 64, … kernels, so that a GPU may begin early. Here
    they are run as one list.
    """
    import weakref

    from tinygrad.engine import realize
    from tinygrad.helpers import DEBUG, PROFILE

    stock = jit.run_linear
    steps: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    @functools.wraps(stock)
    def run_linear(linear: Any, var_vals: Any = None, input_uops: Any = (), **how: Any) -> Any:
        if how == {"jit": True} and DEBUG < 2 and not PROFILE:
            # the first call makes the graphs, in tinygrad's way
            graphs = [realize.graph_cache.get(call.src[0]) for call in linear.src]
            if all(g is not None and g.device == "TGX" and g.joins for g in graphs):
                step = steps.get(linear)
                if step is None or step.graphs != graphs:  # see CapturedJit.free_intermediates
                    from tgx.devices.graph import Step

                    step = steps[linear] = Step(graphs)
                step(input_uops, var_vals or {})
                count(graphs, var_vals)
                return
        stock(linear, var_vals, input_uops, **how)

    def count(graphs: Any, var_vals: Any) -> None:
        """What `track_stats` adds up: a graph counts as one kernel."""
        counters = realize.GlobalCounters
        counters.kernel_count += len(graphs)
        for cost in (graph.estimates for graph in graphs):
            counters.global_ops += realize.sym_infer(cost.ops, var_vals)
            counters.global_mem += realize.sym_infer(cost.mem, var_vals)

    return run_linear
