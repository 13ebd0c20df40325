"""Where TGX chooses the loops of a kernel itself.

tinygrad looks up `hand_coded_optimizations` in its module each time it optimizes a kernel
(`tinygrad/codegen/opt/postrange.py`, `apply_opts`). There is no hook for a renderer, so this is the
one function of tinygrad that the device replaces: for a TGX renderer the replacement asks
`TGXRenderer.optimize`, for any other it is tinygrad's own. `BEAM` and hand-picked optimizations do
not come this way, and keep working.
"""
from __future__ import annotations

from collections.abc import Callable

from tinygrad.codegen.opt import heuristic
from tinygrad.codegen.opt.postrange import Scheduler


def install(choose: Callable[[Scheduler], Scheduler | None], renderer: type) -> None:
    """Makes `choose(k)` decide for kernels of `renderer`; where it returns None, tinygrad does."""
    stock = heuristic.hand_coded_optimizations
    if getattr(stock, "tgx", False):
        return

    def hand_coded_optimizations(k: Scheduler) -> Scheduler:
        chosen = choose(k) if isinstance(k.ren, renderer) else None
        return stock(k) if chosen is None else chosen

    hand_coded_optimizations.tgx = True  # type: ignore[attr-defined]
    heuristic.hand_coded_optimizations = hand_coded_optimizations
