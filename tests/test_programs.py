"""Random tensor programs against NumPy, on the device under test (TGX unless DEV says another).

The generator, the reference and the tolerances are `tests/programs.py`.  Here hypothesis picks the
seeds: the same ones every time, `derandomize` sees to that.  A failure prints a stand-alone script
of a shrunk program, and stays here for ever by its seed, in FOUND.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from programs import (
    FAMILIES,
    Input,
    Mismatch,
    Program,
    Report,
    Step,
    check,
    from_json,
    has_gradient,
    random_program,
    run_numpy,
    seeded,
    shrink,
    source,
    to_json,
)

# One CPU device stands for all: the device is a choice of the run, not of the test.
DEVICE = os.environ.get("DEVICE") or os.environ.get("DEV", "TGX").split(":")[0]
# tinygrad raises it once, on its first deep graph
pytestmark = pytest.mark.filterwarnings("ignore:The recursion limit will not be reset")

KINDS = [f for f in FAMILIES if f != "contraction"]  # that one is the others, mixed

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
totals: dict[str, Report] = {}


def cases(count: int):
    """hypothesis, but always the same seeds; our own shrinker knows what a program is made of."""
    return settings(max_examples=count, derandomize=True, deadline=None, database=None,
                    phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def verify(program: Program, jit: bool = False, backward: bool = False) -> Report:
    """Check on the device; where it fails, find a smaller program that fails and show that."""
    try:
        return check(program, DEVICE, jit, backward)
    except Mismatch as first:
        error = first

        def fails(candidate: Program) -> bool:
            nonlocal error
            try:
                check(candidate, DEVICE, jit, backward)
            except Mismatch as smaller:
                error = smaller
                return True
            return False

        shrink(program, fails, tries=30)
        raise error from None


def run_cases(family: str, count: int, size: int, tier: str) -> None:
    """count programs of a family: every fifth in a TinyJit, every other one backward too."""
    report, ran = Report(), 0

    @cases(count)
    @given(SEEDS)
    def one(seed: int) -> None:
        nonlocal report, ran
        rng = random.Random(seed)
        program = random_program(rng, size, (family,))
        assume(not programs.wraps_under_max(program) and not programs.sums_a_repeat(program))
        ran += 1
        report += verify(program, jit=ran % 5 == 0, backward=ran % 2 == 0 or tier == "slow")

    one()
    assert ran == count
    # rounding must leave nearly everything comparable, or the tolerances hide what they should show
    # (least of chains in fp8, and of comparisons of bfloat16, where numbers are often equal)
    assert report.compared >= 0.75 * report.elements, report
    assert report.smooth >= 0.8 * report.slopes, report


@pytest.mark.parametrize("family", KINDS)
def test_random_programs(family: str) -> None:
    run_cases(family, count=3 if family == "network" else 8, size=1, tier="fast")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", KINDS)
def test_thousand_random_programs(family: str) -> None:
    """125 of each of eight families: 1,000 cases, each forward and, where it can be, backward."""
    run_cases(family, count=125, size=2, tier="slow")


# ------------------------------------------------------- both paths of the contraction compiler


def results_under(tmp_path: Path, todo: list[Program], **variables: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of the programs, from a process of its own with these variables."""
    listing, out = tmp_path / "programs.jsonl", tmp_path / "results.npz"
    listing.write_text("".join(to_json(p) + "\n" for p in todo), encoding="utf-8")
    here = Path(programs.__file__)
    paths = os.pathsep.join((str(here.parents[1]), os.environ.get("PYTHONPATH", "")))
    run = subprocess.run(
        [sys.executable, "-c", "import sys, tgx, runpy; sys.argv = sys.argv[1:]; "
         "runpy.run_path(sys.argv[0], run_name='__main__')", str(here), "--json", str(listing),
         "--device", DEVICE, "--backward", "--save", str(out)],
        env={**os.environ, "PYTHONPATH": paths, **variables}, capture_output=True, text=True,
        check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    with np.load(out) as arrays:
        return dict(arrays)


def compare_paths(tmp_path: Path, todo: list[Program]) -> None:
    """TGX_FAST=1 and =0 agree, element by element: outputs and whole gradients."""
    fast = results_under(tmp_path, todo, TGX_FAST="1")
    plain = results_under(tmp_path, todo, TGX_FAST="0")
    assert fast.keys() == plain.keys()
    for key, a in fast.items():
        program, b = todo[int(key.split("_")[0])], plain[key]
        values = programs.evaluate(program)
        coarse = max(programs.FORMATS[v.dtype].eps for v in values)
        scale = max(float(np.abs(b.astype(np.float64)).max(initial=0)), 1.0)
        tolerance = max(coarse, 2.0**-24) * 64 * scale
        far = np.abs(a.astype(np.float64) - b.astype(np.float64))
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (far <= tolerance).all(), (
            f"result {key}: fast and plain differ by {far.max():.3g} (allowed {tolerance:.3g})\n"
            + source(program, has_gradient(program)))


def contractions(count: int, start: int, size: int) -> list[Program]:
    return [seeded(s, size, ("contraction",)) for s in range(start, start + count)]


def test_fast_and_plain_agree(tmp_path: Path) -> None:
    compare_paths(tmp_path, contractions(5, start=500, size=1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fast_and_plain_agree_on_many(tmp_path: Path) -> None:
    compare_paths(tmp_path, contractions(200, start=1000, size=3))


# ------------------------------------------------------------------ the net itself: does it hold?


def test_every_operation_is_generated() -> None:
    """No row of the table that no program reaches."""
    reached = {s.op for seed in range(1500) for s in seeded(seed).steps}
    assert reached == set(programs.OPS)


def test_programs_are_data() -> None:
    for seed in range(40):
        program = seeded(seed)
        assert from_json(to_json(program)) == program
        assert program == seeded(seed)  # and the same for the same seed
        compile(source(program, has_gradient(program)), "program", "exec")
    with pytest.raises(ValueError, match="no such operation: system"):
        from_json('{"inputs": [], "steps": [{"op": "system", "reads": [], "args": []}]}')


def test_inputs_are_never_zero() -> None:
    for dtype in programs.FORMATS:
        for kind in ("small", "wide"):
            values = programs.make_values((50,), dtype, 3, kind)
            assert dtype == "bool" or (values != 0).all()


def test_source_runs_alone(tmp_path: Path) -> None:
    """The printed script needs nothing of ours, and computes what the reference says."""
    program = Program((Input((2, 3), "float32", 5),), (Step("sum", (0,), (1, False)),))
    script = tmp_path / "program.py"
    script.write_text(source(program), encoding="utf-8")
    start = "import tgx, runpy, sys; runpy.run_path(sys.argv[1])"
    paths = os.pathsep.join((str(Path(programs.__file__).parents[1]),
                             os.environ.get("PYTHONPATH", "")))
    run = subprocess.run([sys.executable, "-c", start, str(script)], capture_output=True,
                         text=True, env={**os.environ, "PYTHONPATH": paths}, check=True)
    printed = run.stdout.strip().split(") ")[-1]
    np.testing.assert_allclose(np.array(eval(printed)), run_numpy(program)[0], rtol=1e-6)


def wrong(monkeypatch: pytest.MonkeyPatch, op: str, expression: str) -> None:
    """Plant a bug: what tinygrad is told to compute differs from what the reference means."""
    row = programs.OPS[op]
    monkeypatch.setitem(programs.OPS, op, programs.Op(
        expression, row.numpy, row.dtype, row.rounds, row.sums))


@pytest.mark.parametrize(("op", "expression", "reads", "args"), [
    ("sub", "{y} - {x}", 2, ()),  # operands swapped
    ("exp", "{x}.exp() * 1.01", 1, ()),  # one per cent off
    ("permute", "{x}.permute({0}).flip(0)", 1, ((1, 0),)),
    ("min", "{x}.minimum(0).max({0}, keepdim={1})", 1, (1, False)),  # the wrong end of the row
    ("sum", "{x}[:-1].sum({0}, keepdim={1})", 1, (0, False)),  # the last row is lost
])
def test_planted_bugs_are_found(monkeypatch: pytest.MonkeyPatch, op: str, expression: str,
                                reads: int, args: tuple) -> None:
    wrong(monkeypatch, op, expression)
    inputs = tuple(Input((4, 5), "float32", seed) for seed in range(reads))
    program = Program(inputs, (Step(op, tuple(range(reads)), args),))
    with pytest.raises(Mismatch, match="elements differ"):
        check(program, DEVICE)


@pytest.mark.parametrize("expression", [
    "{x}.detach() + {y}",  # no gradient at all
    "({x} * 2 - {x}.detach()) + {y}",  # twice the gradient
    "{x}.detach().cat({x}[-1:])[:4] + {x}.pad(((0, 0), (0, 0)))[:4] * 0 + {y}",
])
def test_planted_gradient_bugs_are_found(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    wrong(monkeypatch, "add", expression)
    program = Program((Input((4, 5), "float32", 1), Input((4, 5), "float32", 2)),
                      (Step("add", (0, 1)),))
    with pytest.raises(Mismatch, match="gradient of x0"):
        check(program, DEVICE, backward=True)


def test_shrinking_leaves_the_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, "square", "{x} * {x} + 1")
    program = Program(
        (Input((3, 4), "float32", 1), Input((3, 4), "float32", 2)),
        (Step("add", (0, 1)), Step("tanh", (2,)), Step("square", (3,)),
         Step("sum", (4,), (0, False)), Step("neg", (5,))))

    def fails(candidate: Program) -> bool:
        try:
            check(candidate, DEVICE)
        except Mismatch:
            return True
        return False

    assert [s.op for s in shrink(program, fails).steps] == ["square"]


# ------------------------------------------------------------------- bugs that were found, by name

FOUND: dict[str, Program] = {
    # the printed form of a nest was a tree: exponential where a polynomial's parts are shared
    "nest text doubles with depth": Program(
        (Input((3,), "float64", 1302718217), Input((3,), "float64", 1537810351)),
        (Step("matmul", (0, 1)), Step("softplus", (2,)), Step("exp2", (3,)))),
    # the gradient sums x / y over the lanes, and lanes past the end held 0 * (1 / 0)
    "reciprocal in the lanes past the end": Program(
        (Input((4, 3), "float32", 829049881), Input((4,), "float32", 1047589125),
         Input((3,), "float32", 511977318)),
        (Step("permute", (0,), ((1, 0),)), Step("matmul", (3, 1)), Step("div", (4, 2)))),
    # the same, where the lanes are masked because the pool's windows end at the edge
    "reciprocal in masked lanes": Program(
        (Input((1, 2, 7, 11), "float32", 1674765456),),
        (Step("max_pool", (0,), ((3, 3), (3, 1), (1, 2), (0, 0, 0, 0))),)),
    # an index that is never valid reached the fit of the recovered nest
    "replicate pad twice": Program(
        (Input((33, 5), "float32", 1900031722),),
        (Step("cast", (0,), ("int64",)), Step("shr", (1,), (11,)),
         Step("pad_mode", (2,), (((1, 1), (1, 0)), "replicate")),
         Step("pad_mode", (3,), (((0, 1), (1, 1)), "replicate")))),
    # a sum of bits is their "or"; the machine's addition of bits is "exclusive or"
    "sum of bools as a bool": Program(
        (Input((18, 18), "bool", 4),), (Step("sum_bool", (0,), (None, False)),)),
    # two kernels fused different multiply-adds, so the maximum was equal to no element: no gradient
    "the maximum is not among the elements": Program(
        (Input((7, 4, 7, 1), "float32", 483500265),),
        (Step("square", (0,)), Step("add_const", (1,), (0.5,)), Step("log2", (2,)),
         Step("cos", (3,)), Step("max", (4,), (None, False)))),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_before(name: str) -> None:
    for backward in {False, has_gradient(FOUND[name])}:
        check(FOUND[name], DEVICE, backward=backward)
