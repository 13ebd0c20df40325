"""The recorded traces of the repository: they open, and say what they should."""

from __future__ import annotations

import pytest
from conftest import ROOT

from tgx import codec
from tgx.model import Trace
from tgx.passes.replay import replay

pytestmark = pytest.mark.pure


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def trace(request: pytest.FixtureRequest) -> Trace:
    return codec.read(ROOT / "traces" / request.param)


def test_nothing_is_unknown(trace: Trace) -> None:
    assert trace.environment.ended == "ok" and trace.environment.missing == ()
    for k in trace.kernels:
        assert k.lines and k.ops and "unknown" not in k.ops, k
        assert k.forward or k.phase != "backward", k
    stored = {(k.id, b) for k in trace.kernels for b in k.writes}
    assert {(b.source, b.buffer) for b in trace.boundaries} == stored


def test_a_steady_training_step_is_in_it(trace: Trace) -> None:
    step = max((trace.schedule(s) for s in trace.steady()), key=lambda s: len(s.kernels))
    phases = {trace.kernel(k).phase for k in step.kernels}
    assert phases >= {"forward", "backward", "optimizer"}


def test_no_path_of_the_machine_it_was_made_on(trace: Trace) -> None:
    assert not [f.path for f in trace.files if f.path.startswith("/")]
    assert not trace.environment.program.startswith("/")


def test_steps_replay(trace: Trace) -> None:
    for p in trace.passes:
        assert replay(trace, p) == p.after


def test_they_are_small() -> None:
    for name in ("mlp", "cnn"):
        assert (ROOT / "traces" / name / "trace.jsonl").stat().st_size < 5 * 2**20
