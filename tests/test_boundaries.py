"""Why kernels end: every kind of reason with its cause, and fused without it; and the proofs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from tinygrad import Tensor, nn
from tinygrad.function import function
from tinygrad.helpers import Context
from tinygrad.uop.ops import KernelInfo, UOp

from tgx.adapter import boundaries, proof
from tgx.adapter.boundaries import KEPT, LINES, REASONS
from tgx.adapter.capture import Session
from tgx.model import Trace


def e(*shape: int) -> Tensor:
    """A tensor that is in memory already."""
    return Tensor.empty(*shape, device="NULL").contiguous().realize()


def record(program: Callable[[], object]) -> tuple[Session, Trace]:
    """Realizes what a program returns; only that is recorded."""
    session = Session().start()
    try:
        result = program()
        if isinstance(result, Tensor):
            result.realize()
    finally:
        session.stop()
    return session, session.trace()


X, Z, V, W = e(8, 8), e(8, 8), e(8), e(8, 8)
MANY = [e(6) for _ in range(8)]
TWO = ("NULL", "NULL:1")
SPREAD = e(8, 8).shard(TWO, 0).realize()


def added(a: UOp, b: UOp) -> UOp:
    i = UOp.range(a.size if isinstance(a.size, int) else 8, 0)
    return (
        a.flatten()
        .index(i)
        .store(b.flatten().index(i) * 2)
        .end(i)
        .sink(arg=KernelInfo(name="mine"))
    )


def custom(b: Tensor) -> Tensor:
    return Tensor.empty(8, device="NULL").custom_kernel(b, fxn=added)[0]


def both(a: Tensor, b: Tensor) -> Tensor:
    """Two results of one realize, the second computed from the first."""
    Tensor.realize(a, b)
    return b


def prepared(a: Tensor) -> Tensor:
    return a.sum(axis=1).relu()


inlined, precompiled = function(prepared), function(prepared, precompile=True)


CASES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], dict[str, int]]] = {
    "contiguous": (lambda: (X + 1).contiguous() * 2, lambda: (X + 1) * 2, {}),
    "realize": (lambda: both((y := X + 1), y.reshape(64) * 2), lambda: (X + 1) * 2, {}),
    "consumers-differ": (
        lambda: (y := X.sum(axis=1)) + y.flip(0),
        lambda: (y := X.sum(axis=1)) + y * 2,
        {},
    ),
    "reduce-broadcast": (lambda: X.sum(axis=1, keepdim=True) * Z, lambda: X.sum(axis=1) * V, {}),
    "elementwise-broadcast": (
        lambda: X.sum(axis=1, keepdim=True).exp() * Z,
        lambda: X.sum(axis=1).exp() * V,
        {},
    ),
    "store-hazard": (lambda: W.assign(W.permute(1, 0) + 1), lambda: W.assign(W + 1), {}),
    "self-access": (lambda: V.assign(V + X.sum(axis=1)), lambda: V + X.sum(axis=1), {}),
    "split-reduce": (
        lambda: Tensor.empty(1 << 19, device="NULL").sum(),
        lambda: Tensor.empty(1 << 14, device="NULL").sum(),
        {},
    ),
    "too-many-buffers": (
        lambda: sum(MANY[1:], MANY[0]),
        lambda: sum(MANY[1:3], MANY[0]),
        {"MAX_KERNEL_BUFFERS": 5},
    ),
    "copy-source": (lambda: X.permute(1, 0).to("NULL:1"), lambda: X.to("NULL:1"), {}),
    "copy": (lambda: X.to("NULL:1") + 1, lambda: X + 1, {}),
    "custom-kernel": (lambda: custom(V.exp()), lambda: custom(V), {}),
    "custom-output": (lambda: custom(V) + 1, lambda: V * 2 + 1, {}),
    "assign": (lambda: W.assign(X + 1) * 2, lambda: (X + 1) * 2, {}),
    "devices": (lambda: (X + 1).shard(TWO) * 2, lambda: (X + 1) * 2, {}),
    "allreduce": (lambda: SPREAD.sum(axis=0) * 2, lambda: SPREAD.sum(axis=1) * 2, {}),
    "precompiled": (lambda: precompiled(X + 1) * 2, lambda: inlined(X + 1) * 2, {}),
    "library-contiguous": (
        lambda: Tensor.rand(8, device="NULL") + V,
        lambda: Tensor.rand(8, device="NULL", contiguous=False) + V,
        {},
    ),
}


@pytest.mark.parametrize("reason", CASES)
def test_a_reason_and_its_absence(reason: str) -> None:
    """The first program has this boundary; the second, without its cause, has a kernel fewer."""
    with_cause, without, setting = CASES[reason]
    context: AbstractContextManager[object] = Context(**setting) if setting else nullcontext()
    with context:
        Tensor.manual_seed(1)
        (Tensor.rand(8, device="NULL") + V).realize()  # the generator's own state is in memory
        _, first = record(with_cause)
        _, second = record(without)
    found = [b for b in first.boundaries if b.reason == reason]
    assert found, [b.reason for b in first.boundaries]
    assert not [b for b in second.boundaries if b.reason == reason and b.readers]
    assert len(second.kernels) < len(first.kernels)
    for b in found:
        assert "this value" not in b.because, b.because
        assert "{" not in b.because + b.fuse_by


def test_every_reason_has_such_a_pair() -> None:
    assert set(CASES) == set(REASONS)


@pytest.mark.parametrize(
    ("kept", "stored", "again"),
    [
        ("more than three buffers", lambda: sum(MANY[1:4], MANY[0]), lambda: MANY[0] + MANY[1]),
        ("a reduction over memory", lambda: X.sum(axis=1), lambda: X.exp()[0]),
    ],
)
def test_what_is_computed_again_instead(
    kept: str, stored: Callable[[], Tensor], again: Callable[[], Tensor]
) -> None:
    """Readers in two orders: too dear to compute for each, and cheap enough."""
    _, first = record(lambda: (y := stored()) + y.flip(0))
    _, second = record(lambda: (y := again()) + y.flip(0))
    assert len(first.kernels) == 2 and len(second.kernels) == 1
    assert kept in next(b.because for b in first.boundaries if b.readers)


@pytest.mark.parametrize("reason", CASES)
def test_a_reason_is_proved(reason: str) -> None:
    """Replayed with that one decision reversed and all others as they were: one kernel fewer."""
    with_cause, _, setting = CASES[reason]
    context: AbstractContextManager[object] = Context(**setting) if setting else nullcontext()
    with context:
        Tensor.manual_seed(1)
        session, trace = record(with_cause)
        proofs = {p.boundary: p for p in proof.prove(session)}
    for b in trace.boundaries:
        if b.reason == reason and b.id in proofs:
            assert proofs[b.id].holds, (b, proofs[b.id])
    if reason not in boundaries.OPAQUE:
        assert any(b.id in proofs for b in trace.boundaries if b.reason == reason)


def test_sentences_name_lines_and_what_would_fuse() -> None:
    def program() -> Tensor:
        y = X.sum(axis=1)
        return y + y.flip(0)

    _, trace = record(program)
    (b,) = [b for b in trace.boundaries if b.readers]
    line = program.__code__.co_firstlineno + 1
    assert b.because.startswith(f"The result of sum (tests/test_boundaries.py:{line})")
    assert "stored once" in b.because and "three buffers" not in b.because
    assert b.fuse_by and b.brief == "2 readers, other ranges"
    assert b.rule.startswith("schedule/indexing.py:") and "kept by" in b.rule
    graph = trace.graph(b.graph)
    assert graph[b.nodes[0]].op == "REDUCE"


@pytest.mark.parametrize("reason", ["reduce-broadcast", "elementwise-broadcast"])
def test_a_broadcast_names_what_spreads_the_value(reason: str) -> None:
    _, trace = record(CASES[reason][0])
    (b,) = [b for b in trace.boundaries if b.reason == reason]
    assert b.readers and "mul (tests/test_boundaries.py:" in b.because


def test_rows_of_the_table_stand_in_the_installed_tinygrad() -> None:
    assert boundaries.missing_lines() == []
    assert {reason for _, _, reason in LINES} - {"broadcast"} <= set(REASONS)
    assert set(KEPT) == {key for _, key in boundaries.KEPT_LINES}


def test_a_changed_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.errors import WrongTinygrad

    monkeypatch.setattr(boundaries, "LINES", (("indexing.py", "def gone(ctx", "contiguous"),))
    with pytest.raises(WrongTinygrad, match="has no line with 'def gone"):
        Session()


def small_transformer() -> None:
    class Block:
        def __init__(self) -> None:
            self.ln = nn.LayerNorm(8)
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def __call__(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.ln(x)).chunk(3, dim=-1)
            return x + self.out(q.scaled_dot_product_attention(k, v).gelu())

    steps(Block(), Tensor.rand(2, 4, 8).realize())


def steps(net: Callable[[Tensor], Tensor], x: Tensor) -> None:
    optimizer = nn.optim.SGD(nn.state.get_parameters(net), lr=0.1, momentum=0.9)
    with Context(TRAINING=1):
        for _ in range(2):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()


def small_mlp() -> None:
    class Net:
        def __init__(self) -> None:
            self.l1, self.l2 = nn.Linear(8, 8), nn.Linear(8, 4)

        def __call__(self, x: Tensor) -> Tensor:
            return self.l2(self.l1(x).relu()).log_softmax()

    steps(Net(), Tensor.rand(4, 8).realize())


def small_cnn() -> None:
    class Net:
        def __init__(self) -> None:
            self.c1, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm(4), nn.Linear(36, 4)

        def __call__(self, x: Tensor) -> Tensor:
            x = self.bn(self.c1(x)).relu().max_pool2d().dropout(0.2)
            return self.fc(x.flatten(1)).log_softmax()

    steps(Net(), Tensor.rand(2, 1, 8, 8).realize())


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "net",
    [small_mlp, pytest.param(small_cnn, marks=SLOW), pytest.param(small_transformer, marks=SLOW)],
)
def test_every_boundary_inside_a_training_step_is_proved(net: Callable[[], None]) -> None:
    """All that is stored between kernels: each replay without one has one kernel fewer."""
    session, trace = record(net)
    steady = trace.schedules[-1].id
    between = {b.id for b in trace.boundaries if b.schedule == steady and b.readers}
    session.recorder.proofs = {b: p for b, p in session.recorder.proofs.items() if b in between}
    assert set(session.recorder.proofs) == between  # none is left out
    proofs = list(proof.prove(session))
    assert len(proofs) > 5
    assert [p for p in proofs if not p.holds] == []


def test_a_wrong_reason_would_not_be_proved() -> None:
    """The proof can fail: reversing another decision than the one claimed is not one kernel
    fewer."""

    def program() -> Tensor:
        y = X.sum(axis=1, keepdim=True)
        return (y * Z).max(axis=0) + (y + 1).reshape(8)

    session, _ = record(program)
    (boundary, (template, kind, _)), *_ = [
        p for p in session.recorder.proofs.items() if p[1][1] == "stage"
    ]
    fused = next(
        i
        for i, d in enumerate(template.decisions)
        if i not in {w for n, w in template.stage_of.items() if n.op.name == "BUFFER"}
    )
    session.recorder.proofs = {boundary: (template, kind, fused)}
    (p,) = proof.prove(session)
    assert not p.holds
