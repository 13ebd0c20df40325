"""tgx/devices/parse.py: the reader of our own LLVM IR, on every form that the emitters write."""

from __future__ import annotations

import pytest
from tinygrad import Context, Tensor

from tgx.devices.parse import (
    Access,
    Operand,
    Root,
    Unread,
    accesses,
    instruction,
    lanes,
    parse,
    pointers,
    scalar,
    size,
)
from tgx.devices.renderer import TGXRenderer
from tgx.kernels import adam, conv, gemm, layernorm, softmax

MASKED = (
    "%v1 = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %p, <4 x i1> "
    "<i1 true, i1 true, i1 false, i1 false>, <4 x float> zeroinitializer)"
)
OLD = (
    "call void @llvm.masked.store.v4f32.p0(<4 x float> %v, ptr %p, i32 4, <4 x i1> %m), !llvm.loop"
)


def test_types() -> None:
    assert [size(t) for t in ("i1", "half", "ptr", "<3 x i16>", "[5 x <2 x float>]")] == [
        1, 2, 8, 6, 40,
    ]  # fmt: skip
    assert lanes("<16 x float>") == 16 and scalar("<16 x float>") == "float"
    assert lanes("i64") == 1 and scalar("[5 x i8]") == "[5 x i8]"


@pytest.mark.parametrize(
    ("line", "opcode", "kind", "operands"),
    [
        ("%a = add nuw nsw i64 %i, 1", "add", "i64", ["i64 %i", "i64 1"]),
        ("%a = fadd reassoc nsz float %x, %y", "fadd", "float", ["float %x", "float %y"]),
        ("%a = icmp ult <2 x i64> %x, <i64 1, i64 2>", "icmp", "<2 x i1>",
         ["<2 x i64> %x", "<2 x i64> <i64 1, i64 2>"]),
        ("%a = load volatile i8, ptr %p, align 1", "load", "i8", ["ptr %p"]),
        ("%a = getelementptr inbounds float, ptr %p, <2 x i64> <i64 0, i64 4>", "getelementptr",
         "<2 x ptr>", ["ptr %p", "<2 x i64> <i64 0, i64 4>"]),
        ("%a = select i1 %c, ptr %p, ptr @k.t0", "select", "ptr", ["i1 %c", "ptr %p", "ptr @k.t0"]),
        ("%a = phi i64 [ 0, %entry ], [ %b, %latch ]", "phi", "i64", ["i64 0", "i64 %b"]),
        ("%a = shufflevector <2 x float> %x, <2 x float> poison, <1 x i32> <i32 1>",
         "shufflevector", "<1 x float>",
         ["<2 x float> %x", "<2 x float> poison", "<1 x i32> <i32 1>"]),
        ("%a = trunc i64 %x to i32 ; why", "trunc", "i32", ["i64 %x"]),
        ("br i1 %c, label %a, label %b", "br", "", ["i1 %c"]),
        ("%a = alloca [8 x float], align 64", "alloca", "ptr", []),
        ("ret void", "ret", "", []),
    ],
)  # fmt: skip
def test_a_line(line: str, opcode: str, kind: str, operands: list[str]) -> None:
    x = instruction("  " + line)
    assert (x.opcode, x.type, [str(o) for o in x.operands]) == (opcode, kind, operands)


def test_what_touches_memory() -> None:
    (a,) = accesses(instruction(MASKED))
    mask = Operand("<4 x i1>", "<i1 true, i1 true, i1 false, i1 false>")
    assert a == Access(
        "load", Operand("ptr", "%p"), "<4 x float>", mask,
        otherwise=Operand("<4 x float>", "zeroinitializer"),
    )  # fmt: skip
    (b,) = accesses(instruction(OLD))
    assert (b.kind, str(b.pointer), str(b.mask)) == ("store", "ptr %p", "<4 x i1> %m")
    copy = "call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 64, i1 false)"
    assert [(a.kind, a.pointer.text, str(a.length)) for a in accesses(instruction(copy))] == [
        ("load", "%from", "i64 64"),
        ("store", "%to", "i64 64"),
    ]
    assert accesses(instruction("%a = add i64 %i, 1")) == ()


def test_an_unknown_line_is_an_error_that_shows_it() -> None:
    with pytest.raises(Unread, match=r"%a = vaarg ptr %p"):
        instruction("%a = vaarg ptr %p, i32")


def test_what_a_pointer_points_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kernel of both paths and of those written by hand, no pointer is a stranger."""
    texts = [
        m.LESSON.build(tuple(min(9, n) for n in m.LESSON.shapes[0]), v.name).text
        for m in (softmax, gemm, conv, layernorm, adam)
        for v in m.LESSON.versions
    ]
    plain = TGXRenderer.render
    monkeypatch.setattr(
        TGXRenderer, "render", lambda self, uops: texts.append(plain(self, uops)) or texts[-1]
    )
    with Context(CCACHE=0):
        x = Tensor.rand(19, 37)
        (x[:, 3:20].pad((1, 2)).relu() @ Tensor.rand(20, 23)).sum().backward()
        Tensor.realize(x.grad, x.sort(1)[0], x.cast("half").exp(), x[Tensor([1, 2, 1])])
    assert sum('"path": "tile"' in t for t in texts) >= 2
    assert sum('"path": "loops"' in t for t in texts) >= 2
    kinds = set()
    for text in texts:
        module = parse(text)
        for function in module.functions:
            roots = pointers(module, function)
            for a in (a for x in function for a in accesses(x)):
                found = roots.get(a.pointer.text) or (Root("table", a.pointer.text),)
                assert found and all(r.kind != "unknown" for r in found), (a, found)
                assert all(r.name in module.tables for r in found if r.kind == "table")
                kinds |= {r.kind for r in found}
    assert kinds == {"argument", "stack", "table", "words"}
