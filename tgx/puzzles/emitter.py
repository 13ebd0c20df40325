"""A row of the TGX device's own table: an operation in, LLVM IR out."""

from __future__ import annotations

import ctypes

from tgx.puzzles.base import Given, Puzzle, Wrong, get
from tgx.puzzles.drawing import Drawing

# a, b, c and a*b + c rounded once. Rounded twice (after the product, then after the sum), the
# second gives 0: the digits that make the difference are already lost.
STEP = 2.0**-12
POINTS = (
    (2.0, 3.0, 4.0, 10.0),
    (1 + STEP, 1 + STEP, -(1 + 2 * STEP), STEP * STEP),
    (-1.5, 4.0, 0.25, -5.75),
)


def check(given: Given) -> str:
    from tinygrad.device import CompileError
    from tinygrad.dtype import dtypes
    from tinygrad.uop.ops import Ops, UOp

    from tgx.devices.compiler import TGXCompiler
    from tgx.devices.renderer import Body

    emit = get(given, "emit_mulacc")
    operands = tuple(UOp.const(float(i), dtypes.float32) for i in (1, 2, 3))
    u = UOp(Ops.MULACC, src=operands)
    body = Body("puzzle", [])
    body.names.update(zip(operands, ("%a", "%b", "%c"), strict=True))
    emit(body, u)
    if body.names.get(u) in (None, ...):
        raise Wrong("body.names[u] is not set: where will the next operation find the result?")
    written = "\n".join(body.lines)
    source = (
        "define void @puzzle(ptr %out, float %a, float %b, float %c) nounwind {\n"
        f"{written}\n  store float {body[u]}, ptr %out\n  ret void\n}}\n"
    )
    compiler = TGXCompiler()
    try:
        for a, b, c, right in POINTS:
            found = run(compiler, source, a, b, c)
            if found != right:
                raise Wrong(
                    f"{a!r} · {b!r} + {c!r} is {found!r}, expected {right!r}."
                    + (" It was rounded twice; MULACC rounds once." if found == 0 else "")
                    + f"\nWhat was written:\n{written}"
                )
        assembly = compiler.assembly(source)
    except CompileError as error:
        raise Wrong(f"LLVM does not take it:\n{written}\n{str(error).splitlines()[0]}") from None
    line = next((" ".join(li.split()) for li in assembly.splitlines() if "fma" in li), "")
    return "LLVM took your line" + (f", and made it one instruction: {line}" if line else ".")


def run(compiler: object, source: str, a: float, b: float, c: float) -> float:
    """Compile the function, and call it."""
    import llvmlite.binding as llvm

    out = ctypes.c_float()
    with (
        compiler.optimized(source) as (module, machine),  # type: ignore[attr-defined]
        llvm.create_mcjit_compiler(module, machine) as engine,
    ):
        engine.finalize_object()
        address = engine.get_function_address("puzzle")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_float] * 3)
        kind(address)(ctypes.addressof(out), a, b, c)
    return out.value


def picture(d: Drawing) -> None:
    d.box(30, 70, 150, 110, "", "blue")
    d.words(105, 98, "UOp", "title", "middle")
    d.words(105, 124, "MULACC", "code", "middle")
    d.words(105, 146, "src = a, b, c", "code", "middle")
    d.words(105, 168, "float32", "code", "middle")
    d.arrow(180, 125, 250, 125, "asked")
    d.words(215, 108, "your row", "quiet", "middle")
    d.box(250, 70, 240, 110)
    d.words(370, 98, "LLVM IR", "title", "middle")
    d.words(262, 130, "%v1 = ? float %a, ...", "code")
    d.arrow(490, 125, 560, 125)
    d.words(525, 108, "LLVM", "quiet", "middle")
    d.box(560, 70, 130, 110)
    d.words(625, 98, "machine", "title", "middle")
    d.words(625, 130, "one", "quiet", "middle")
    d.words(625, 150, "instruction", "quiet", "middle")
    d.words(30, 222, "a · b + c, rounded once: the product keeps all its digits until the sum")


PUZZLE = Puzzle(
    title="Write an emitter row",
    teaches="how the TGX device turns an operation into LLVM IR",
    task="""
The TGX device has a table: for each operation, a function that writes LLVM IR
(tgx/devices/renderer.py, EMIT). MULACC, a·b + c, has no row. Write it: with *one*
rounding, at the end.

    u.src             the operands, three here
    body.typed(a)     an operand with its type: "float %a"
    body[a]           its name alone: "%a"
    body.value(text)  writes "%v1 = text" and gives back "%v1"
    body.names[u]     where the result's name belongs

A row for subtraction would be
    body.names[u] = body.value(f"fsub {body.typed(a)}, {body[b]}")
""",
    start="""
def emit_mulacc(body, u):
    a, b, c = u.src
    body.names[u] = ...
""",
    hint="fmul and then fadd rounds twice. LLVM has an intrinsic that does not: its name is"
    " llvm.fma.f32, and it is called like this: call float @llvm.sqrt.f32(float %a)",
    solution="""
def emit_mulacc(body, u):
    a, b, c = u.src
    operands = ", ".join(body.typed(x) for x in (a, b, c))
    body.names[u] = body.value(f"call float @llvm.fma.f32({operands})")
""",
    check=check,
    picture=picture,
)
