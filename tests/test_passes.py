"""tgx.passes: pure functions on traces, checked on traces small enough to check by eye."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces
from tgx.model import Buffer, File, Frame, Graph, Kernel, Node, Origin, Schedule, Timing, Trace
from tgx.passes import cluster, collapse, costs, places, select, uops
from tgx.passes.match import compared, match

pytestmark = pytest.mark.pure


# **** places ****


def test_a_gradients_place_is_its_forward_operations() -> None:
    trace = Trace(
        files=(File(0, "f.py"),),
        frames=(Frame(0, 0, 3), Frame(1, 0, 7)),
        origins=(
            Origin(0, "sin", 0),
            Origin(1, "sin", 1, "backward", 0),
            Origin(2, "sin", 1, "backward", 1),  # differentiated twice
            Origin(3, "add"),
        ),
    )
    assert [places.origin_place(trace, o) for o in (0, 1, 2)] == ["f.py:3"] * 3
    assert places.origin_place(trace, 3) == places.origin_place(trace, -1) == ""


# **** select ****


def test_selecting_a_kernel_keeps_what_it_needs_and_nothing_else() -> None:
    trace = traces.mlp_step()
    one = select.select(trace, kernels=(5,))
    assert [k.id for k in one.kernels] == [5]
    assert {b.name for b in one.buffers} == {"∂z", "w2", "h", "∂h"}
    assert [p.id for p in one.programs] == [5]
    assert {r.kernel for r in one.runs} == {5} and [t.kernel for t in one.timings] == [5]
    assert one.schedules[0].kernels == (5,)
    # boundaries at its inputs stay, without the kernels that are gone
    assert {(b.source, b.readers) for b in one.boundaries} == {(-1, (5,)), (5, ())}
    assert one.files == trace.files


def test_selecting_everything_changes_nothing() -> None:
    trace = traces.mlp_step()
    assert select.select(trace) == trace
    assert select.steady(trace) == trace


def test_selecting_a_schedule_drops_the_others() -> None:
    trace = traces.mlp_step()
    two = replace(
        trace,
        schedules=(*trace.schedules, Schedule(1, (20,))),
        kernels=(*trace.kernels, Kernel(20, "other", schedule=1)),
    )
    assert [k.id for k in select.select(two, (1,)).kernels] == [20]
    assert select.select(two, (0,)) == trace


def test_neighbourhoods_grow_by_buffers_and_stay_bounded() -> None:
    trace = traces.mlp_step()
    assert select.neighbours(trace, 2, 0) == (2,)
    # cross entropy reads z (kernels 1, 3) and y (copied by 9, read by 3)
    assert select.neighbours(trace, 2, 1) == (9, 1, 2, 3)
    assert len(select.around(traces.big(600), 300, radius=5, limit=20).kernels) <= 20
    hub = Trace(
        schedules=(Schedule(0, tuple(range(100))),),
        kernels=tuple(Kernel(i, f"k{i}", schedule=0, reads=(0,)) for i in range(100)),
        buffers=(Buffer(0, "shared"),),
    )
    near = select.around(hub, 50, limit=20)
    assert len(near.kernels) == 20 and 50 in {k.id for k in near.kernels}


# **** cluster and collapse ****


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=400),
       st.integers(2, 60))
def test_every_level_fits_and_loses_nobody(items: list[tuple[int, int]], limit: int) -> None:
    keys = [lambda i: str(items[i][0]), lambda i: f"{items[i][0]}.{items[i][1]}"]
    tree = cluster.divide(range(len(items)), keys, limit)
    for group in tree:
        if group.parts:
            assert 2 <= len(group.parts) <= limit
            assert sorted(m for p in group.parts for m in p.members) == sorted(group.members)
        else:
            assert len(group.members) <= limit
    assert sorted(tree.members) == list(range(len(items)))


def test_kernels_group_by_the_lines_they_come_from() -> None:
    levels = cluster.kernel_levels(traces.big(600), 0)
    labels = [p.label for p in levels.parts]
    assert "y = conv(x, w[0])" in labels and "∂ y = conv(x, w[0])" in labels
    assert "opt.step()" in labels
    assert sum(len(p.members) for p in levels.parts) == 600
    assert max(len(g.parts) or len(g.members) for g in levels) <= cluster.LIMIT


def test_a_small_schedule_is_not_grouped() -> None:
    levels = cluster.kernel_levels(traces.mlp_step(), 0)
    assert levels.parts == () and len(levels.members) == 10


def test_collapsing_adds_up_and_keeps_only_what_crosses() -> None:
    trace = traces.mlp_step()
    forward = cluster.Group("the model", (0, 1, 2))
    small = collapse.collapse(trace, (forward,))
    whole = small.kernel(0)
    assert (whole.name, whole.kind, whole.tinygrad_name) == ("the model", "graph", "3 kernels")
    assert whole.writes == (4, 7, 8), "h and z are read by gradients, loss is a result"
    assert set(whole.reads) == {0, 1, 2, 5, 6, 3}
    assert small.time_us(0) == pytest.approx(438.0)
    assert len(small.kernels) == 8
    lonely = collapse.collapse(trace, (cluster.Group("all", tuple(k.id for k in trace.kernels)),))
    names = {lonely.buffer(b).name for k in lonely.kernels for b in k.writes}
    assert names == {"loss", "w1", "w2"}, "inner buffers are gone, results stay"


def test_three_thousand_kernels_collapse_to_a_screen() -> None:
    small = collapse.collapse_to(traces.big(3000), 0)
    assert 2 <= len(small.kernels) <= 60
    assert sum(int(k.tinygrad_name.split()[0]) for k in small.kernels) == 3000


def test_constants_fold_into_their_readers() -> None:
    graph = Graph.of(0, "ast", (
        Node(0, "CONST", "int", arg="4"), Node(1, "CAST", "int", src=(0,)),
        Node(2, "STACK", "int", src=(0, 1)), Node(3, "PARAM", arg="x"),
        Node(4, "RESHAPE", src=(3, 2)), Node(5, "RANGE", src=(0,))))
    assert cluster.constants(graph) == [True, True, True, False, False, False]
    assert cluster.constant_text(graph, 2) == "(4, 4)"
    assert cluster.node_levels(graph).members == (3, 4, 5)


# **** costs ****


def test_costs_come_from_programs_runs_and_buffers() -> None:
    trace = replace(traces.mlp_step(), timings=())
    got = costs.attach(trace)
    assert got.time_us(0) == 420.0 and got.kernel(0).flops == 12_845_056
    assert costs.attach(got) is got
    copy = replace(trace, kernels=(replace(trace.kernels[0], bytes=-1), *trace.kernels[1:]))
    assert costs.attach(copy).kernel(9).bytes == 512  # y read once, written once


def test_bounds_and_shares() -> None:
    got = costs.costs(traces.mlp_step(), costs.Roof(40e9, 20e9, "made up"))
    assert got[0].bound == "compute" and got[0].of_roof == pytest.approx(30.58 / 40, rel=1e-3)
    assert got[7].bound == "memory"
    assert got[3].bound == "launch", "4 µs, far from both roofs"
    assert sum(c.share for c in got.values()) == pytest.approx(1.0)
    assert costs.costs(replace(traces.mlp_step(), runs=(), timings=()))[0].bound == ""


# **** a kernel's own UOps ****


def test_equal_kernels_keep_their_own_lines() -> None:
    trace = traces.mlp_step()
    ast = Graph.of(9, "ast", (Node(0, "PARAM"), Node(1, "STORE", src=(0,), origins=(10,))))
    other = Graph.of(10, "ast", (Node(0, "PARAM"), Node(1, "STORE", src=(0,), origins=(5,))))
    code = Graph.of(11, "uops", (Node(0, "PARAM"), Node(1, "STORE", src=(0,))))
    program = replace(trace.program(7), uops=11, sources=((0,), (1,)))
    kernels = {7: 9, 8: 10}
    trace = replace(
        trace,
        graphs=(*trace.graphs, ast, other, code),
        programs=tuple(program if p.id == 7 else p for p in trace.programs),
        kernels=tuple(replace(k, ast=kernels.get(k.id, -1)) for k in trace.kernels),
    )
    one, two = uops.kernel_graph(trace, 7), uops.kernel_graph(trace, 8)
    assert one is not None and two is not None
    assert one.tensor_ops == ("", "step") and one.phases == ("", "optimizer")
    assert two.tensor_ops == ("", "sparse_categorical_crossentropy")
    assert uops.kernel_graph(trace, 9) is None, "a copy has none"


# **** match ****


def test_a_trace_is_like_itself() -> None:
    got = match(traces.mlp_step(), traces.mlp_step())
    assert got.alike and len(got.pairs) == 10
    assert not (got.slower or got.faster or got.operations_added or got.boundaries_added)


def test_another_device_is_matched_by_meaning() -> None:
    trace = traces.mlp_step()
    other = replace(trace, kernels=tuple(
        replace(k, id=k.id + 100, tinygrad_name="E_" + str(k.id), device="CUDA")
        for k in trace.kernels), schedules=(replace(trace.schedules[0], kernels=tuple(
            k + 100 for k in trace.schedules[0].kernels)),), boundaries=(), runs=(), memory=(),
        timings=tuple(Timing(t.kernel + 100, 2, t.total_us, t.min_us * (
            2 if t.kernel == 6 else 1), t.median_us) for t in trace.timings))
    got = match(trace, other)
    assert got.alike and {(p.a, p.b) for p in got.pairs} == {(k.id, k.id + 100)
                                                            for k in trace.kernels}
    assert [(p.a, p.ratio) for p in got.slower] == [(6, 2.0)] and got.faster == ()


def contiguous(trace: Trace) -> Trace:
    """The MLP's step with `.contiguous()` before the relu: kernel 0 becomes two."""
    source = list(trace.files[0].lines)
    source[9] = (10, "        h = h.contiguous().relu()")
    file = replace(trace.files[0], lines=tuple(source))
    stored = Origin(20, "contiguous", 1, stack=(3, 1))
    k = trace.kernel(0)
    first = replace(k, name="linear + bias", ops=("matmul", "add"), origins=(0, 1, 20),
                    lines=((0, 9), (0, 10)), writes=(30,))
    second = replace(k, id=30, name="relu", ops=("relu",), origins=(2,), lines=((0, 10),),
                     reads=(30,), writes=(4,))
    lazy = trace.graph(0)
    nodes = [replace(n, src=tuple(s + (s > 5) for s in n.src)) for n in lazy.nodes]
    nodes = [*nodes[:6], Node(6, "CONTIGUOUS", src=(5,), origins=(20,)),
             *(replace(n, index=n.index + 1) for n in nodes[6:])]
    order = trace.schedules[0].kernels
    why = replace(trace.boundaries[0], id=30, reason="contiguous", because="you asked", source=0,
                  readers=(30,), buffer=30, nodes=())
    return replace(
        trace, files=(file, *trace.files[1:]), origins=(*trace.origins, stored),
        graphs=(Graph.of(0, "lazy", nodes, roots=(11, 12)), *trace.graphs[1:]),
        kernels=tuple(x for k in trace.kernels for x in ((first, second) if k.id == 0 else (k,))),
        schedules=(replace(trace.schedules[0], kernels=(*order[:2], 30, *order[2:])),),
        buffers=(*trace.buffers, Buffer(30, "h0", shape="64×128", nbytes=32_768, schedule=0)),
        boundaries=(why, *(replace(b, source=30) if b.id == 0 else b for b in trace.boundaries)),
    )


def test_one_added_contiguous_is_reported_as_one() -> None:
    before, after = traces.mlp_step(), contiguous(traces.mlp_step())
    got = match(before, after)
    assert [(o.op, o.line) for o in got.operations_added] == [("contiguous", "mlp.py:10")]
    assert got.operations_removed == ()
    assert got.split == ((0, (0, 30)),)
    assert not (got.added or got.removed or got.merged)
    assert [p for p in got.pairs if p.how != "same"] == []
    assert got.boundaries_added == (30,) and got.boundaries_removed == ()
    back = match(after, before)
    assert back.merged == (((0, 30), 0),) and not back.split
    assert [o.op for o in back.operations_removed] == ["contiguous"]


def test_lines_moved_by_an_edit_above_are_the_same_lines() -> None:
    before, after = traces.mlp_step(), traces.mlp_step()
    file = after.files[0]
    pushed = replace(file, lines=((1, "# new"), *((n + 1, t) for n, t in file.lines)))
    moved = replace(
        after,
        files=(pushed, *after.files[1:]),
        frames=tuple(replace(f, line=f.line + (f.file == 0)) for f in after.frames),
        kernels=tuple(replace(k, name=k.name + "!" if k.id == 5 else k.name,
                              lines=tuple((f, n + 1) for f, n in k.lines)) for k in after.kernels),
    )
    got = match(before, moved)
    assert got.operations_added == () == got.operations_removed
    assert [(p.a, p.b) for p in got.pairs if p.how == "changed"] == [(5, 5)]
    assert len(got.pairs) == 10


def test_what_only_one_trace_has_is_added_or_removed() -> None:
    trace = traces.mlp_step()
    fewer = select.select(trace, kernels=[k.id for k in trace.kernels if k.id != 2])
    assert match(trace, fewer).removed == (2,) and match(fewer, trace).added == (2,)
    assert compared(fewer) == fewer.kernels
    assert match(Trace(), trace).added == tuple(k.id for k in trace.kernels)


def test_a_kernel_that_computes_something_else_is_no_change_of_it() -> None:
    trace = traces.mlp_step()
    without = {i: select.select(trace, kernels=[k.id for k in trace.kernels if k.id != i])
               for i in (1, 2)}  # fmt: skip
    got = match(without[1], without[2])  # a linear layer, and a loss
    assert (got.added, got.removed) == ((1,), (2,))
    assert {p.how for p in got.pairs} == {"same"}


def test_a_program_written_as_a_whole_is_drawn_by_its_ast() -> None:
    """TGX's tile path leaves one CUSTOM node; what the kernel computes is in its AST."""
    trace = traces.mlp_step()
    shell = Graph.of(90, "uops", (Node(0, "PARAM", arg="data0"), Node(1, "CUSTOM", src=(0,)),
                                  Node(2, "STORE", src=(0, 1))))
    ast = Graph.of(91, "ast", (Node(0, "PARAM"), Node(1, "REDUCE", src=(0,), origins=(0,)),
                               Node(2, "STORE", src=(0, 1))))
    k = trace.kernel(0)
    whole = replace(
        trace, graphs=(*trace.graphs, shell, ast),
        programs=tuple(replace(p, uops=90, sources=()) if p.id == k.program else p
                       for p in trace.programs),
        kernels=tuple(replace(x, ast=91) if x.id == 0 else x for x in trace.kernels))
    assert uops.is_shell(shell) and not uops.is_shell(trace.graph(1))
    drawn = uops.kernel_graph(whole, k.id, drawn=True)
    assert drawn is not None and drawn.ops[1] == "REDUCE" and drawn.tensor_ops[1] == "matmul"
    listed = uops.kernel_graph(whole, k.id)
    assert listed is not None and listed.ops[1] == "CUSTOM"
