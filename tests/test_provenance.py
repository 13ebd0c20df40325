"""Where kernels come from, on programs where the answer is known.

Each program is written so that a line can only become certain kernels: the pieces are kept apart by
realize, by shape, or by device. What the trace says is compared with that, in both directions: no
line is missing, and none is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tinygrad import Tensor, TinyJit, Variable, nn
from tinygrad.helpers import Context

import tgx
from tgx.adapter.origins import spoken
from tgx.adapter.provenance import union
from tgx.model import Kernel, Trace

HERE = Path(__file__).read_text().splitlines()
MARK = re.compile(r"#: (\w+)")


def marks_of(trace: Trace, kernel: Kernel) -> set[str]:
    """The marks (``#: name``) of a kernel's lines; a line without one is given as its text."""
    own = {f.id for f in trace.files if f.path.endswith(Path(__file__).name)}
    found = set()
    for file, line in kernel.lines:
        assert file in own, trace.file(file).path
        text = HERE[line - 1]
        mark = MARK.search(text)
        found.add(mark[1] if mark else text.strip())
    return found


def record(program: Callable[[], object]) -> Trace:
    with tgx.trace() as t:
        program()
    return t.trace


def e(*shape: int) -> Tensor:
    return Tensor.empty(*shape, device="NULL")


def kernels(trace: Trace) -> list[tuple[set[str], tuple[str, ...]]]:
    return [(marks_of(trace, k), k.ops) for k in trace.kernels if k.phase != "data"]


def test_lines_kept_apart_by_realize() -> None:
    def program() -> None:
        a = e(4, 4).exp().realize()  #: exp
        b = (a * 3).realize()  #: mul
        (b.sum() + 1).realize()  #: sum

    assert kernels(record(program)) == [
        ({"exp"}, ("exp",)),
        ({"mul"}, ("mul",)),
        ({"sum"}, ("sum", "add")),
    ]


def test_one_kernel_of_many_lines() -> None:
    def program() -> None:
        x = e(8, 8)
        x = x.exp()  #: a
        x = x + 2  #: b
        x = x.relu()  #: c
        x.realize()

    assert kernels(record(program)) == [({"a", "b", "c"}, ("exp", "add", "relu"))]


def test_a_kernels_nodes_have_no_line_of_another_kernels() -> None:
    """A constant exists once in a program, with the line that first wrote it."""

    def program() -> None:
        (e(8, 8) + 0.0625).realize()  #: first
        (e(4, 4) * 0.0625).realize()  #: second

    trace = record(program)
    for kernel, other in zip(trace.kernels, ("second", "first"), strict=True):
        graph = trace.graph(kernel.ast)
        assert "CONST" in graph.ops
        lines = {trace.frame(trace.origin(o).frame).line for row in graph.origins for o in row}
        assert lines and not any(f"#: {other}" in HERE[line - 1] for line in lines)


def test_two_reduces_are_two_kernels_with_a_line_each() -> None:
    def program() -> None:
        x = e(8, 16)
        y = x.sum(axis=1)  #: rows
        z = y.max()  #: all
        z.realize()

    trace = record(program)
    assert [m for m, _ in kernels(trace)] == [{"rows"}, {"all"}] or [
        m for m, _ in kernels(trace)
    ] == [{"rows", "all"}]


def test_outputs_of_one_realize_keep_their_lines() -> None:
    def program() -> None:
        a = e(3, 5).exp()  #: a
        b = e(7, 2).sqrt()  #: b
        Tensor.realize(a, b)

    assert sorted(kernels(record(program)), key=str) == sorted(
        [({"a"}, ("exp",)), ({"b"}, ("sqrt",))], key=str
    )


def test_functions_and_comprehensions() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2  #: double

    def program() -> None:
        for y in [double(t) for t in (e(3), e(4))]:
            y.realize()

    assert kernels(record(program)) == [({"double"}, ("mul",))] * 2


def test_the_same_computation_written_twice_has_both_lines() -> None:
    def program() -> None:
        x = e(6, 6)
        a = x.sin()  #: one
        b = x.sin()  #: two
        (a + b).realize()  #: add

    assert kernels(record(program)) == [({"one", "two", "add"}, ("sin", "add"))]


def test_a_line_that_is_gone_leaves_no_mark() -> None:
    """A value computed, dropped, and computed again elsewhere: only the second line made the
    kernel."""

    def program() -> None:
        x = e(6, 7)
        x.cos()  #: dropped
        x.cos().realize()  #: used

    assert kernels(record(program)) == [({"used"}, ("cos",))]


def test_equal_kernels_of_different_lines() -> None:
    """One AST, one program, two lines, in one schedule: notes on the AST's nodes would mix them
    up."""

    def program() -> None:
        a = (e(9, 9) + 1).relu()  #: a
        b = (e(9, 9) + 1).relu()  #: b
        Tensor.realize(a, b)

    trace = record(program)
    assert sorted(kernels(trace), key=str) == [({"a"}, ("add", "relu")), ({"b"}, ("add", "relu"))]
    assert len(trace.programs) == 1


def test_assigning_in_place_twice() -> None:
    """Two equal calls on one buffer, one after the other, from two lines."""

    def program() -> None:
        x = e(5).contiguous().realize()
        x.assign(x + 1)  #: first
        x.assign(x + 1)  #: second
        x.realize()

    trace = record(program)
    own = [m for m, ops in kernels(trace) if "add" in ops]
    assert own in ([{"first"}, {"second"}], [{"first", "second"}])


def test_folding_keeps_the_line_that_was_folded_in() -> None:
    def program() -> None:
        x = e(4) + 2  #: two
        (x + 3).realize()  #: three

    assert kernels(record(program)) == [({"two", "three"}, ("add",))]


def test_a_cut_between_kernels_is_a_cut_between_lines() -> None:
    def program() -> None:
        x = (e(16, 16) @ e(16, 16)).contiguous()  #: matmul
        x.softmax().realize()  #: softmax

    trace = record(program)
    for marks, ops in kernels(trace):
        assert marks in ({"matmul"}, {"softmax"}), (marks, ops)
        assert ("matmul" in ops) == (marks == {"matmul"})


def test_movement_only() -> None:
    def program() -> None:
        x = e(4, 5)
        x.permute(1, 0).contiguous().realize()  #: turn

    ((marks, ops),) = kernels(record(program))
    assert marks == {"turn"} and set(ops) <= {"permute", "contiguous"}


def test_gradients_name_their_forward_line() -> None:
    def program() -> None:
        w = e(6, 3).contiguous().realize()
        x = e(4, 6).contiguous().realize()
        h = x @ w  #: matmul
        y = h.tanh()  #: tanh
        loss = y.sum()  #: sum
        loss.backward()  #: backward
        assert w.grad is not None
        w.grad.realize()

    trace = record(program)
    gradients = [k for k in trace.kernels if k.phase == "backward"]
    assert gradients
    for k in gradients:
        assert marks_of(trace, k) <= {"matmul", "tanh", "sum", "backward"}
        assert "backward" in marks_of(trace, k) and k.forward
    assert {f for k in gradients for f in k.forward} >= {"matmul", "tanh"}
    last = gradients[-1]
    assert "matmul" in last.forward and "matmul" in marks_of(trace, last)


def test_gradients_that_meet() -> None:
    """x is used on two lines: the sum of its two gradients belongs to both."""

    def program() -> None:
        x = e(5, 5).contiguous().realize()
        a = x.exp()  #: a
        b = x * x  #: b
        (a + b).sum().backward()  #: backward
        assert x.grad is not None
        x.grad.realize()

    trace = record(program)
    marks = set().union(*(marks_of(trace, k) for k in trace.kernels if k.phase == "backward"))
    assert marks == {"a", "b", "backward"}


def test_second_order() -> None:
    def program() -> None:
        x = e(3).contiguous().realize()
        y = (x * x * x).sum()  #: cube
        g = y.gradient(x)[0]  #: first
        h = g.sum().gradient(x)[0]  #: second
        h.realize()

    trace = record(program)
    (k,) = [k for k in trace.kernels if k.phase == "backward"]
    assert "cube" in marks_of(trace, k) and marks_of(trace, k) <= {"cube", "first", "second"}


def test_an_optimizers_work_is_the_steps_line() -> None:
    def program() -> None:
        w = e(4, 4).contiguous().realize()
        optimizer = nn.optim.SGD([w], lr=0.1)
        with Context(TRAINING=1):
            (w * 2).sum().backward()  #: loss
            optimizer.step()  #: step

    trace = record(program)
    found = [k for k in trace.kernels if k.phase == "optimizer"]
    assert found and all("step" in marks_of(trace, k) for k in found)
    assert found[-1].name == "sgd: w"


def test_jit_keeps_lines() -> None:
    @TinyJit
    def f(x: Tensor) -> Tensor:
        y = (x + 1).exp()  #: exp
        return y.sum(0).realize()  #: sum

    def program() -> None:
        x = e(16, 4).contiguous().realize()
        for _ in range(4):
            f(x)

    trace = record(program)
    (schedule,) = [s for s in trace.schedules if s.jit == "f"]
    marks = set().union(*(marks_of(trace, trace.kernel(k)) for k in schedule.kernels))
    assert marks == {"exp", "sum"}
    assert all((t := trace.timing(k)) is not None and t.calls == 3 for k in schedule.kernels)


def test_random_numbers_belong_to_the_call_that_drew_them() -> None:
    """Every call of rand shares a key and a counter; none may be blamed for another's numbers."""

    def program() -> None:
        Tensor.manual_seed(3)
        Tensor.rand(4, 3, device="NULL").realize()  #: one
        Tensor.rand(5, 3, device="NULL").realize()  #: two
        (e(6, 3) * Tensor.rand(6, 3, device="NULL")).realize()  #: three

    trace = record(program)
    last = [marks_of(trace, k) for k in trace.kernels if k.kind == "kernel"]
    assert all(len(m) == 1 for m in last), last
    assert set().union(*last) == {"one", "two", "three"}


@pytest.mark.parametrize(("name", "said"), [
    ("__matmul__", "matmul"), ("__radd__", "add"), ("__getitem__", "getitem"), ("relu", "relu"),
    ("__rtruediv__", "div"), ("_pool", "pool"), ("__neg__", "neg"), ("__iadd__", "add"),
])  # fmt: skip
def test_operators_are_called_by_their_names(name: str, said: str) -> None:
    assert spoken(name) == said


def test_union_keeps_order_and_is_bounded() -> None:
    assert union((1, 2), (2, 3)) == (1, 2, 3)
    assert union((), (4,)) == (4,) and union((4,), ()) == (4,)
    assert len(union(tuple(range(20)), tuple(range(100, 130)))) == 24


def test_inside_a_function() -> None:
    """@function turns its inputs into parameters; what its body computes keeps its lines."""
    from tinygrad.function import function

    def program() -> None:
        @function(precompile=True)
        def f(x: Tensor) -> Tensor:
            return (x * 2).sum(axis=0)  #: body

        f(e(8, 8).contiguous().realize()).realize()  #: call

    trace = record(program)
    assert any(marks_of(trace, k) == {"body"} and "sum" in k.ops for k in trace.kernels)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("device", ["NULL", "TGX"])
def test_sums_over_several_devices(device: str, jit: bool) -> None:
    """A sum over devices is a function that the scheduler writes: its copies and additions are
    kernels like others, of the line of the sum, between the buffers of the program."""
    devices = tuple(f"{device}:{i}" for i in range(2))

    def program() -> None:
        w = Tensor.ones(4, 4, device=device).contiguous().shard(devices).realize()  #: w
        x = Tensor.ones(4, 4, device=device).contiguous().shard(devices, axis=0).realize()  #: x

        def f(x: Tensor) -> Tensor:
            y = (x @ w).relu()  #: matmul
            z = y.sum()  #: sum
            return (z + 1).realize()  #: add

        run = TinyJit(f) if jit else f
        for _ in range(4):
            run(x)

    trace = record(program)
    assert trace.environment.missing == ("rewrites were not recorded: --level full",)
    last = max(trace.schedules, key=lambda s: (bool(s.jit), s.id) if jit else s.id)
    kernels = [trace.kernel(k) for k in last.kernels]
    assert [(k.kind, marks_of(trace, k)) for k in kernels] == [
        ("kernel", {"matmul", "sum"}),
        ("copy", {"sum"}),
        ("copy", {"sum"}),
        ("kernel", {"sum"}),
        ("kernel", {"add"}),
    ]
    local, there, back, total, result = kernels
    assert there.reads == back.reads == local.writes
    assert set(total.reads) == {*local.writes, *there.writes, *back.writes}
    assert result.reads == total.writes
    for k in kernels:
        timing = trace.timing(k.id)
        assert timing is not None and timing.calls >= (3 if jit else 4)
    reasons = {b.source: b.reason for b in trace.boundaries if b.schedule == last.id}
    assert [reasons[k.id] for k in kernels] == [
        "allreduce", "copy", "copy", "allreduce", "realize"
    ]  # fmt: skip
    for b in trace.boundaries:
        assert "this value" not in b.because.lower(), b


def test_a_ring_of_four_devices() -> None:
    """Above a size, parts travel round in a ring: dozens of copies, none of them unknown."""
    devices = tuple(f"NULL:{i}" for i in range(4))

    def program() -> None:
        x = Tensor.empty(4, 300_000, device="NULL").shard(devices, axis=0).realize()  #: x
        x.sum(0).realize()  #: sum

    trace = record(program)
    last = trace.schedules[-1]
    assert len(last.kernels) > 20
    assert all(marks_of(trace, trace.kernel(k)) == {"sum"} for k in last.kernels)
    assert all(trace.timing(k) for k in last.kernels)
    written = {b for k in last.kernels for b in trace.kernel(k).writes}
    read = {b for k in last.kernels for b in trace.kernel(k).reads}
    inputs = {b.id for b in trace.buffers if b.schedule == last.id and b.kind == "input"}
    assert read <= written | inputs  # nothing comes out of nowhere


def test_a_function_that_is_called_twice() -> None:
    """Each call of a precompiled function has buffers of its own, between those of the program."""
    from tinygrad.function import function

    def program() -> None:
        @function(precompile=True)
        def f(x: Tensor) -> Tensor:
            return (x * 2).softmax(0)  #: body

        a, b = e(8, 8).contiguous().realize(), e(8, 8).contiguous().realize()
        (f(a) + f(b).sum()).realize()  #: call

    trace = record(program)
    last = [trace.kernel(k) for k in trace.schedules[-1].kernels]
    bodies = [k for k in last if marks_of(trace, k) == {"body"}]
    assert len(bodies) == 2 * len({k.program for k in bodies})
    assert len({b for k in bodies for b in k.writes}) == len(bodies)
    written: set[int] = set()
    inputs = {b.id for b in trace.buffers if b.kind == "input"}
    for k in last:
        assert set(k.reads) <= written | inputs, k
        written |= set(k.writes)


def test_symbolic_shapes_and_setitem() -> None:
    def program() -> None:
        a = e(10, 4).contiguous().realize()
        for i in (2, 3):
            n = Variable("n", 1, 10).bind(i)
            a[:n].sum(0).reshape(4).contiguous().realize()  #: symbolic
        a[1:3] = a[3:5] + 1  #: setitem
        a.realize()

    trace = record(program)
    found = [marks_of(trace, k) for k in trace.kernels if k.phase != "data"]
    assert {"symbolic"} in found and {"setitem"} in found
    assert all(m <= {"symbolic", "setitem"} for m in found), found
