"""Whole models: every kernel says where it comes from, every boundary why it stands. Slow."""

from __future__ import annotations

import shutil

import pytest
from models import MODELS
from tinygrad.helpers import Context

import tgx
from tgx.adapter.boundaries import OPAQUE
from tgx.adapter.capture import Session
from tgx.adapter.proof import prove
from tgx.model import Trace
from tgx.passes.replay import replay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def devices() -> list[str]:
    return ["TGX", *(["CPU"] if shutil.which("clang") else [])]


def check(trace: Trace) -> None:
    own = {f.id for f in trace.files if f.path.endswith(("test_models.py", "models.py"))}
    for k in trace.kernels:
        assert k.lines and all(file in own for file, _ in k.lines), k
        assert k.ops and "unknown" not in k.ops, k
        assert k.forward or k.phase != "backward", k
        timing = trace.timing(k.id)
        assert timing is not None and timing.calls >= 1, k
    stored = {(k.id, b) for k in trace.kernels for b in k.writes}
    assert {(b.source, b.buffer) for b in trace.boundaries} == stored
    for b in trace.boundaries:
        assert b.rule and "this value" not in b.because, b


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer", "resnet18"])
@pytest.mark.parametrize("device", devices())
def test_nothing_is_unknown(device: str, model: str, jit: bool) -> None:
    with Context(DEV=device), tgx.trace() as t:
        MODELS[model](3, jit)
    check(t.trace)
    assert t.trace.environment.missing == ("rewrites were not recorded: --level full",)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer", "resnet18"])
@pytest.mark.parametrize("device", devices())
def test_every_boundary_is_proved(device: str, model: str) -> None:
    """Of every schedule: replayed without that one boundary, it has one kernel fewer."""
    with Context(DEV=device):
        session = Session().start()
        try:
            MODELS[model](2, False)
        finally:
            session.stop()
    between = {b.id for b in session.trace().boundaries if b.readers and b.reason not in OPAQUE}
    proofs = {p.boundary: p for p in prove(session)}
    assert set(proofs) == between and proofs
    assert [p for p in proofs.values() if not p.holds] == []


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer", "resnet18"])
@pytest.mark.parametrize("device", devices())
def test_replayed_steps_give_what_was_captured(device: str, model: str) -> None:
    with Context(DEV=device), tgx.trace(level="full") as t:
        MODELS[model](2, False)
    assert t.trace.environment.missing == ()
    assert {p.program for p in t.trace.passes} > {p.id for p in t.trace.programs}
    for p in t.trace.passes:
        assert replay(t.trace, p) == p.after, p.name
