"""tgx.model: a Trace holds together, or says what does not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from tgx import model
from tgx.model import (
    Boundary,
    Buffer,
    Cache,
    Counts,
    Environment,
    File,
    Frame,
    Graph,
    Kernel,
    ModelError,
    Node,
    Origin,
    Pass,
    Program,
    Realize,
    Rule,
    Run,
    Schedule,
    Timing,
    Trace,
    Traffic,
)

pytestmark = pytest.mark.pure


def small() -> Trace:
    """Two kernels and the buffer between them, from two lines of one file."""
    lines = ((1, "x = a @ b"), (2, "y = x.relu()"))
    nodes = (Node(0, "PARAM"), Node(1, "PARAM"), Node(2, "MUL", src=(0, 1), origins=(0,)))
    return Trace(
        files=(File(0, "mlp.py", lines=lines),),
        frames=(Frame(0, 0, 1), Frame(1, 0, 2)),
        origins=(Origin(0, "matmul", 0), Origin(1, "relu", 1)),
        graphs=(Graph.of(0, "lazy", nodes, roots=(2,)),),
        programs=(Program(0, "r_4_4"),),
        schedules=(Schedule(0, (0, 1), 1, 0),),
        kernels=(
            Kernel(
                0,
                "matmul",
                "r_4_4",
                schedule=0,
                program=0,
                ops=("matmul",),
                lines=((0, 1),),
                origins=(0,),
                writes=(0,),
            ),
            Kernel(
                1,
                "relu",
                "E_4",
                schedule=0,
                program=0,
                ops=("relu",),
                lines=((0, 2),),
                origins=(1,),
                reads=(0,),
            ),
        ),
        buffers=(Buffer(0, "x", nbytes=64, schedule=0),),
        boundaries=(Boundary(0, "contiguous", "asked for", 0, (1,), 0, 0, graph=0, nodes=(2,)),),
        rules=(Rule(0, 0, 1),),
        passes=(Pass(0, "early", schedule=0, table=0, before=2, after=2, steps=(0, 0, 1, 0)),),
        realizes=(Realize(0, 0), Realize(1, 0, step=1)),
        runs=(Run(0, 1.0, 5.0, 0), Run(1, 7.0, 3.0, 0)),
        timings=(Timing(0, 2, 10.0, 4.0, 5.0),),
        counts=(Counts(1, 2, 5),),
        traffic=(
            Traffic(1, 0, "", 4, 0, 16, 0, 1, 1),
            Traffic(1, -1, "tables", 1, 0, 8, kind="tables"),
        ),
        environment=Environment(caches=(Cache("L1", 1024, 2),)),
    )


def test_questions_views_ask() -> None:
    trace = small()
    assert trace.places(0) == ("mlp.py:1",)
    assert trace.kernels_at(0, 2) == (1,)
    assert trace.kernels_at(0, 99) == ()
    assert trace.time_us(0) == 5.0 and trace.time_us(1) == -1.0
    assert [b.id for b in trace.boundaries_of(1)] == [0]
    assert trace.place(1) == "mlp.py:2" and trace.place(-1) == ""
    assert trace.steady() == (0,)
    assert trace.graph(0)[2] == Node(2, "MUL", src=(0, 1), origins=(0,))
    assert trace.graph(0).consumers == ((2,), (2,), ())
    assert list(trace.passes[0]) == [model.Step("match", 0, 1, 0)]
    with pytest.raises(KeyError, match="no kernels with id 9"):
        trace.kernel(9)


def test_a_trace_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        small().kernels[0].name = "other"  # type: ignore[misc]


def test_steady_prefers_what_ran_most() -> None:
    trace = small()
    more = replace(
        trace, schedules=(*trace.schedules, Schedule(1)), realizes=(*trace.realizes, Realize(2, 1))
    )
    assert more.steady() == (0,)
    assert replace(more, realizes=(), runs=()).steady() == (0, 1)


def test_steady_prefers_training_to_evaluation() -> None:
    step, evaluation = (Kernel(i, "k", phase=p, schedule=i) for i, p in enumerate(
        ("optimizer", "forward")))
    runs = tuple(Realize(i, s) for i, s in enumerate((0, 0, 1, 1, 1)))
    trace = Trace(kernels=(step, evaluation), realizes=runs,
                  schedules=(Schedule(0, (0,)), Schedule(1, (1,))))
    assert trace.steady() == (0,)
    assert replace(trace, realizes=runs[1:]).steady() == (1,)  # it trained only once


def test_steady_prefers_a_line_s_last_schedule_where_nothing_ran_twice() -> None:
    trace = small()
    again = replace(trace.schedules[0], id=1, kernels=())
    two = replace(
        trace,
        schedules=(*trace.schedules, again, Schedule(2)),
        runs=(),
        realizes=(Realize(0, 0), Realize(1, 1), Realize(2, 2)),
    )
    assert two.steady() == (1, 2)


BROKEN = {
    "a kernel of no schedule": lambda t: replace(
        t, kernels=(replace(t.kernels[0], schedule=7), t.kernels[1])
    ),
    "a kernel's line in no file": lambda t: replace(
        t, kernels=(replace(t.kernels[0], lines=((4, 1),)), t.kernels[1])
    ),
    "two kernels with one id": lambda t: replace(t, kernels=(t.kernels[0], t.kernels[0])),
    "a negative id": lambda t: replace(t, files=(*t.files, File(-2, "x"))),
    "a boundary at a missing node": lambda t: replace(
        t, boundaries=(replace(t.boundaries[0], nodes=(3,)),)
    ),
    "a step to a missing node": lambda t: replace(
        t, passes=(replace(t.passes[0], steps=(0, 0, 3, 0)),)
    ),
    "a step by a missing rule": lambda t: replace(
        t, passes=(replace(t.passes[0], steps=(0, 0, 1, 5)),)
    ),
    "a step of no kind": lambda t: replace(t, passes=(replace(t.passes[0], steps=(9, 0, 1, 0)),)),
    "an origin nobody recorded": lambda t: replace(
        t, graphs=(replace(t.graphs[0], origins=((), (), (44,))),)
    ),
    "a run of a missing kernel": lambda t: replace(t, runs=(Run(9, 0.0, 0.0),)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_contradictions_are_refused(what: str) -> None:
    with pytest.raises(ModelError):
        BROKEN[what](small())


def test_words_outside_their_list_are_refused() -> None:
    for build in (
        lambda: Kernel(0, "k", phase="sideways"),
        lambda: Kernel(0, "k", kind="soup"),
        lambda: Graph(0, "lazy", ops=("ADD",), srcs=((0,),)),
        lambda: Graph(0, "lazy", ops=("ADD",), dtypes=("int", "int")),
        lambda: Graph(0, "lazy", ops=("ADD",), roots=(1,)),
        lambda: Graph.of(0, "lazy", [Node(1, "ADD")]),
        lambda: Buffer(0, nbytes=-1),
        lambda: Pass(0, "p", steps=(1, 2, 3)),
        lambda: model.Loop("m", "4", "sideways"),
        lambda: model.Environment(ended="maybe"),
    ):
        with pytest.raises(ModelError):
            build()


def test_the_model_needs_no_tinygrad() -> None:
    code = "import sys, tgx.model, tgx.codec; print('tinygrad' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_what_was_counted_must_make_sense() -> None:
    trace = small()
    assert trace.counted(0) is None and trace.traffic_of(0) == ()
    assert trace.counted(1) == Counts(1, 2, 5) and len(trace.traffic_of(1)) == 2
    for wrong, why in (
        (lambda: Counts(1, 0), "0 calls"),
        (lambda: Counts(1, 1, -1), "negative"),
        (lambda: Traffic(1), "without a name"),
        (lambda: Traffic(1, -1, "x", kind="soup"), "expected one of buffer, copies, tables"),
        (lambda: Traffic(1, 0, kind="tables"), "tables in a buffer"),
        (lambda: Traffic(1, 0, loads=-1), "negative"),
        (lambda: Traffic(1, 0, loads=4, loaded=3), "elements of 0 B"),
        (lambda: Traffic(1, 0, l1_misses=1, l2_misses=2), "more misses"),
        (lambda: Cache("L1", 0, 8), "its size"),
        (lambda: replace(trace, counts=(Counts(7, 1),)), "not among kernels"),
        (lambda: replace(trace, traffic=(Traffic(0, 9),)), "not among buffers"),
        (
            lambda: replace(trace, buffers=(*trace.buffers, Buffer(1)), traffic=(Traffic(0, 1),)),
            "neither reads nor writes",
        ),
    ):
        with pytest.raises(ModelError, match=why):
            wrong()
