"""2**x for floats, as IR: the one function that TGX has an algorithm of its own for.

Both paths write it, so that a value which two kernels compute, each for itself, has the same bits
in both: `argmax` looks for the element that is equal to the largest.
"""

from __future__ import annotations

from collections.abc import Callable

from tinygrad.dtype import dtypes

from tgx.devices.writer import literal, splat_literal, vector

COEFFICIENTS = (  # of 2**f, |f| <= 1/2, the highest first; a test holds the error below one unit
    0.1535920892e-3,
    0.1339262701e-2,
    0.9618384764e-2,
    0.5550347269e-1,
    0.2402264476,
    0.6931471825,
    1.0,
)


def exp2(x: str, lanes: int, let: Callable[[str], str], call: Callable[[str], str]) -> str:
    """2**x of one float or of a vector: 2**n times a polynomial in x - n, without a branch.

    Adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits; 2**n is put together in
    two halves, so that denormals and infinities come out by themselves. `x` is a name, `let` writes
    `%name = expression` and returns the name, `call` writes the word before an intrinsic."""
    floats, words, test = (vector(kind, lanes) for kind in ("float", "i32", "i1"))
    suffix = f"v{lanes}f32" if lanes > 1 else "f32"

    def const(number: float) -> str:
        return splat_literal("float", lanes, literal(number, dtypes.float32))

    def word(number: int) -> str:
        return splat_literal("i32", lanes, str(number))

    low, high, magic = const(-152.0), const(129.0), const(12582912.0)
    for compare, bound in (("olt", low), ("ogt", high)):
        beyond = let(f"fcmp {compare} {floats} {x}, {bound}")
        x = let(f"select {test} {beyond}, {floats} {bound}, {floats} {x}")
    big = let(f"fadd {floats} {x}, {magic}")
    whole = let(f"fsub {floats} {big}, {magic}")
    f = let(f"fsub {floats} {x}, {whole}")
    poly = const(COEFFICIENTS[0])
    for c in COEFFICIENTS[1:]:
        poly = let(call(f"{floats} @llvm.fmuladd.{suffix}({floats} {poly}, {floats} {f}, "
                        f"{floats} {const(c)})"))
    power = let(f"sub {words} {let(f'bitcast {floats} {big} to {words}')}, {word(0x4B400000)}")
    half = let(f"ashr {words} {power}, {word(1)}")
    for part in (half, let(f"sub {words} {power}, {half}")):
        exponent = let(f"add {words} {part}, {word(127)}")
        scale = let(f"shl {words} {exponent}, {word(23)}")
        poly = let(f"fmul {floats} {poly}, {let(f'bitcast {words} {scale} to {floats}')}")
    return poly
