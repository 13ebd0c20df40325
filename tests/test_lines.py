"""Lines of generated code and the UOps they came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tinygrad import Device, Tensor
from tinygrad.codegen import to_program
from tinygrad.helpers import Context
from tinygrad.uop.ops import Ops, UOp

from tgx import model
from tgx.adapter import lines
from tgx.adapter.provenance import COMPUTING
from tgx.adapter.wording import closed


def programs(device: str, program: Callable[[], Tensor]) -> list[UOp]:
    """The compiled kernels of what a program returns."""
    with Context(DEV=device):
        linear = program().schedule_linear()
        asts = [c.src[0] for c in linear.src if c.src[0].op is Ops.SINK]
        return [to_program(ast, Device[device].renderer) for ast in asts]


def line_table(device: str, prg: UOp) -> tuple[list[UOp], model.Code]:
    nodes = [*closed(prg.src[1].src)]
    code = model.Code("source", prg.src[2].arg)
    return nodes, lines.traced(code, prg, nodes, Device[device].renderer)


def several() -> Tensor:
    x = Tensor.empty(30, 20)
    return (x.pad(((1, 1), (0, 0))).exp2() * x.max()).sum(0).contiguous() + Tensor.rand(20)


@pytest.mark.parametrize("device", ["TGX", "NULL"])
def test_every_line_and_every_operation_has_its_place(device: str) -> None:
    for prg in programs(device, several):
        nodes, code = line_table(device, prg)
        text = code.text.split("\n")
        assert len(code.uops) == len(code.inside) == len(text)
        written = {nodes[u] for u in code.uops if u >= 0}
        written |= {nodes[u] for row in code.inside for u in row}
        whole = any(u.op is Ops.CUSTOM for u in nodes)  # one node holds the kernel's text
        for u in prg.src[1].src:
            if u.op in (Ops.STORE, Ops.RANGE, Ops.END) or (u.op in COMPUTING and u.max_numel() > 1):
                assert whole or u in written, (prg.arg.name, u)
        for line, u in zip(text, code.uops, strict=True):
            if u >= 0 and nodes[u].op is Ops.STORE and not whole:
                assert "=" in line or "store " in line or "zext" in line, line


def test_the_line_that_computes_it() -> None:
    (prg,) = programs("NULL", lambda: Tensor.empty(7).exp2() + 3)
    nodes, code = line_table("NULL", prg)
    (at,) = [i for i, line in enumerate(code.text.split("\n")) if "exp2" in line]
    assert nodes[code.uops[at]].op is Ops.STORE
    assert {nodes[u].op for u in code.inside[at]} >= {Ops.EXP2, Ops.ADD, Ops.INDEX}


def test_a_text_that_is_not_the_renderers_gets_no_places() -> None:
    (prg,) = programs("NULL", lambda: Tensor.empty(7).exp2() + 3)
    nodes = [*closed(prg.src[1].src)]
    other = model.Code("source", prg.src[2].arg.replace("exp2", "exp3"))
    assert lines.traced(other, prg, nodes, Device["NULL"].renderer) == other
