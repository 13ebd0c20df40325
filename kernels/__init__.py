"""Kernels by hand, from naive to fast, to be read in order and measured.

    gemm.py       C = A B               conv.py     3×3 convolution
    softmax.py    rows of exp           layernorm.py
    adam.py       an optimizer's step

Each file states the problem, has a reference in NumPy and a list of versions: small steps, each of
which says what it should gain. `python -m tgx.kernels.gemm` prints what it does gain on this
machine, and `from tgx.kernels import gemm; gemm.matmul(a, b)` uses the last one on tensors.

ir.py is the pen (a few lines of Python that write LLVM IR), lesson.py runs and times.
"""
