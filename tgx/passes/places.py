"""Where an operation stands in the user's code; a gradient's is its forward operation's."""

from __future__ import annotations

from tgx.model import Origin, Trace


def forward_of(trace: Trace, origin: int) -> Origin:
    """The operation the user wrote: of a gradient, the one it is the gradient of, however often
    it was differentiated."""
    o = trace.origin(origin)
    while o.phase == "backward" and o.forward >= 0:
        o = trace.origin(o.forward)
    return o


def origin_place(trace: Trace, origin: int) -> str:
    """``mlp.py:12``; "" for no origin, and where no line of the user's is known."""
    return trace.place(forward_of(trace, origin).frame) if origin >= 0 else ""
