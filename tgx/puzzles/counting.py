"""How many kernels a program became: counted while it runs, on the default device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def kernels(work: Callable[[], Any]) -> tuple[int, int, Any]:
    """Kernels that ran, arithmetic they did, and the numbers of the Tensor `work` gives."""
    from tinygrad import GlobalCounters

    kernels, flops = GlobalCounters.kernel_count, GlobalCounters.global_ops
    result = work().realize()
    counts = GlobalCounters.kernel_count - kernels, GlobalCounters.global_ops - flops
    return *counts, result.numpy()


def numbers(*shape: int, seed: int = 0) -> Any:
    """A Tensor of random numbers from -1 to 1 that is in memory already: it costs no kernel."""
    from random import Random

    from tinygrad import Tensor

    rng, size = Random(seed), 1
    for n in shape:
        size *= n
    return Tensor([rng.uniform(-1, 1) for _ in range(size)]).reshape(*shape).realize()
