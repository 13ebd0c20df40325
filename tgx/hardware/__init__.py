"""Boards that are not here: what is known of them, and what a kernel will cost on them.

    profiles     a board's facts, each with its source and how sure it is (devices/*.toml)
    toolchains   which compiler from PyPI makes code for which architecture
    cubin        what a compiled kernel uses: registers, shared memory, stack
    kernel       one launch on one GPU, as plain numbers
    occupancy    how many of its blocks fit on an SM, and what the whole grid makes of it
    roofline     a time nothing can beat, and a model that says how unsure it is
    fitting      the model's constants, fitted to measured times; accuracy says how good it is
    report       the table of `tgx profile`; picture draws it; measured has what was timed
    tegra        what a Jetson says about itself: tegrastats, nvpmodel, jetson_clocks
    measure      from the times of small benchmarks to the figures of a profile

Pure functions on plain data: nothing here loads tinygrad or CUDA, and all of it is tested without.
"""
