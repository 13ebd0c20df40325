"""Passes: pure functions from a Trace to a Trace (or to a plain answer about traces).

    select    keep some schedules or kernels, or the neighbourhood of one; drop what only others use
    collapse  draw many kernels as few: one box per layer, source line, phase …
    cluster   how a big graph divides into levels that fit on a screen
    costs     times, rates and what bounds each kernel
    match     which kernels of two traces are the same
"""
