"""Random tensor programs against NumPy, on the device under test (TGX unless DEV says another).

The generator, the reference and the tolerances are `tests/programs.py`; `tests/ways.py` has every
way to run a program.  Here hypothesis picks the seeds: the same ones every time, `derandomize` sees
to that.  A failure prints a stand-alone script of a shrunk program, which stays here in FOUND.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import ways
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
    function_source,
    has_gradient,
    random_program,
    seeded,
    shrink,
    to_json,
)
from tinygrad import Tensor
from tinygrad.codegen import to_program_cache
from tinygrad.mixin import gradient
from tinygrad.uop.ops import Ops, PatternMatcher, UOp, UPat, identity_element
from ways import WAYS, Case, case, entered, is_failure, outcome, script_of
from ways import run_cases as run_cases_of

from tgx.devices import emit as tgx_emit
from tgx.devices import renderer, values
from tgx.devices.instrument import TABLE_SUFFIX
from tgx.devices.record import record_of
from tgx.devices.writer import TYPES, literal, splat_literal

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
        if programs.refusal(str(first)):  # tinygrad cannot run it, anywhere
            return Report()
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
        sys.setrecursionlimit(10_000)  # as tinygrad does; hypothesis lowers it for each example
        program = random_program(random.Random(seed), size, (family,))
        assume(not programs.known_fault(program))
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
    run_cases(family, count=2 if family == "network" else 5, size=1, tier="fast")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", KINDS)
def test_thousand_random_programs(family: str) -> None:
    """77 of each of thirteen families: 1,001 cases, forward and, where it can be, backward."""
    run_cases(family, count=77, size=2, tier="slow")


# ----------------------------------------------------- every way to run a program, side by side

TGX_WAYS = [name for name, way in WAYS.items() if way.kind == "TGX"]
PATHS = ("fast", "plain", "chunks")
on_tgx = pytest.mark.skipif(DEVICE != "TGX", reason="the ways are those of TGX")


def hold(case: Case, ways: Iterable[str]) -> None:
    """Every way agrees with NumPy, and those of TGX with each other."""
    if not programs.known_fault(case.program):
        for way, result in outcome(case, ways).items():
            assert not is_failure(result), script_of(case, way, result, "program.py")


@on_tgx
@pytest.mark.parametrize("seed", range(16))
def test_every_way_agrees(seed: int) -> None:
    """The fixed set: the first cases of the 10,000 of `programs.py --ways all`."""
    hold(case(seed), WAYS)


@on_tgx
@pytest.mark.parametrize("seed", (500, 502))
def test_fast_and_plain_agree(seed: int) -> None:
    hold(Case(seed, seeded(seed, 1, ("contraction",)), backward=True), PATHS)


@on_tgx
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fast_and_plain_agree_on_many() -> None:
    for seed in range(1000, 1200):
        hold(Case(seed, seeded(seed, 3, ("contraction",)), backward=True), PATHS)


@on_tgx
def test_checked_way_is_checked_and_no_other() -> None:
    for way in TGX_WAYS:
        with entered(WAYS[way]):
            programs.run_tinygrad(case(0).expected, WAYS[way].device)
            sources = [str(compiled.src[2].arg) for compiled in to_program_cache.values()]
        assert sources and all((TABLE_SUFFIX in s) == (way == "checked") for s in sources), way


def paths_of(case: Case, way: str) -> list[tuple[str, int]]:
    """How each kernel of a case was made on a way, and in how many pieces."""
    found = []
    with entered(WAYS[way]):
        programs.run_tinygrad(case.expected, WAYS[way].device)
        for compiled in to_program_cache.values():
            record = record_of(compiled.src[2].arg)
            found.append((record.path, int(compiled.arg.global_size[0])))
    return found


def slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


SAME_BITS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x/y": lambda x, y, z: x / y,
    "1/y": lambda x, y, z: 1 / y,
    "x/y*z": lambda x, y, z: x / y * z,
    "x*z/y": lambda x, y, z: x * z / y,
    "(1/x)*(1/y)": lambda x, y, z: (1 / x) * (1 / y),
    "x*y+z": lambda x, y, z: x * y + z,
    "exp2": lambda x, y, z: x.exp2(),
    "rsqrt": lambda x, y, z: x.abs().rsqrt(),
    "sigmoid": lambda x, y, z: x.sigmoid(),
    "silu": lambda x, y, z: x.silu(),
}


@on_tgx
@pytest.mark.parametrize("dtype", ("float32", "bfloat16", *map(slow, ("float64", "half"))))
def test_a_value_has_the_same_bits_on_both_paths(dtype: str) -> None:
    """argmax() compares what one kernel computed with what another computes anew; they may have
    taken different paths, and "equal" means every bit."""
    rng = np.random.default_rng(3)
    inputs = [Tensor(rng.uniform(0.3, 2, (9, 257)) * rng.choice([-1, 1], (9, 257)), device="TGX")
              .cast(dtype).realize() for _ in "xyz"]
    both = 0
    for name, function in SAME_BITS.items():
        found, paths = [], set()
        for way in ("fast", "plain"):
            with entered(WAYS[way]):
                result = function(*inputs).realize()
                paths |= {record_of(p.src[2].arg).path for p in to_program_cache.values()}
            found.append(result.bitcast(f"uint{8 * result.dtype.itemsize}").numpy())
        both += paths == {"tile", "loops"}
        np.testing.assert_array_equal(*found, err_msg=name)
    assert both > 7


@on_tgx
@pytest.mark.parametrize("name", ("x/y", "exp2", "sigmoid", "silu"))
def test_counting_right_answers_finds_the_largest(name: str) -> None:
    """`(f(x).argmax(1) == y).sum()` is a reduction of a reduction: one path computes the largest,
    the other looks for it."""
    rng = np.random.default_rng(5)
    x, y, z = (Tensor(rng.uniform(0.3, 2, (64, 17)).astype("float32"), device="TGX").realize()
               for _ in "xyz")
    computed = SAME_BITS[name](x, y, z)
    right = Tensor(computed.numpy().argmax(1).astype("int32"), device="TGX").realize()
    assert (SAME_BITS[name](x, y, z).argmax(1) == right).sum().item() == 64


@on_tgx
def test_the_ways_are_different() -> None:
    """Comparing a path with itself would prove nothing."""
    product = Case(0, Program((Input((40, 9), "float32", 1), Input((9, 70), "float32", 2)),
                              (Step("matmul", (0, 1)),)))
    assert paths_of(product, "fast") == [("tile", 1)]
    assert paths_of(product, "plain") == [("loops", 1)]
    ((path, pieces),) = paths_of(product, "chunks")
    assert path == "tile" and pieces > 1


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
        compile(function_source(program, has_gradient(program)), "program", "exec")
    with pytest.raises(ValueError, match="no such operation: system"):
        from_json('{"inputs": [], "steps": [{"op": "system", "reads": [], "args": []}]}')


def test_inputs_are_never_zero() -> None:
    for dtype in programs.FORMATS:
        for kind in ("small", "wide"):
            values = programs.make_values((50,), dtype, 3, kind)
            assert dtype == "bool" or (values != 0).all()


def script_result(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text(text, encoding="utf-8")
    paths = os.pathsep.join((str(Path(programs.__file__).parents[1]),
                             os.environ.get("PYTHONPATH", "")))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": paths}, check=False)


SCRIPTED = Program((Input((2, 3), "float32", 5), Input((3,), "float32", 6)),
                   (Step("sub", (0, 1)), Step("sum", (2,), (1, False))))


def test_a_script_runs_alone_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs nothing of ours, and its exit code says whether the device is right."""
    case = Case(1, SCRIPTED, jit=True, backward=True)
    run = script_result(tmp_path, script_of(case, "plain", "nothing", "program.py"))
    assert (run.returncode, run.stdout) == (0, "right: TGX and NumPy agree\n"), run.stderr
    wrong(monkeypatch, "sub", "({x} - {y}) * 1.125")
    run = script_result(tmp_path, script_of(case, "plain", "a planted bug", "program.py"))
    assert run.returncode == 1, run.stderr
    assert "call 0, result 0, element 0" in run.stdout and "gradient" in run.stdout


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


# -------------------------------------------- planted bugs, and the way each is attributed to

LESS = Case(1, Program(  # a sum of the smaller of two
    (Input((6, 9), "float32", 1), Input((6, 9), "float32", 2)),
    (Step("lt", (0, 1)), Step("where", (2, 0, 1)), Step("sum", (3,), (1, False)))))
LARGEST = Case(2, Program(  # all numbers are negative
    (Input((5, 33), "float32", 3),),
    (Step("abs", (0,)), Step("neg", (1,)), Step("max", (2,), (1, False)))))
TANGENT = Case(3, Program((Input((3, 4), "float32", 4),), (
    Step("square", (0,)), Step("add_const", (1,), (0.5,)), Step("log2", (2,)))), backward=True)


def blamed(case: Case, ways: Iterable[str] = ("fast", "plain", "python")) -> set[str]:
    return {way for way, result in outcome(case, ways).items() if is_failure(result)}


def swapped(row: Callable[..., Any]) -> Callable[..., Any]:
    """An emitter row that takes its operands in the wrong order."""
    def emit(body: Any, u: UOp) -> None:
        turned = u.replace(src=u.src[::-1])
        row(body, turned)
        body.names[u] = body.names[turned]

    return emit


@on_tgx
def test_nothing_planted_nobody_blamed() -> None:
    assert not any(blamed(case) for case in (LESS, LARGEST, TANGENT))


@on_tgx
def test_a_swapped_operand_in_a_renderer_row_is_the_plain_ways(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renderer.EMIT, Ops.CMPLT, swapped(renderer.EMIT[Ops.CMPLT]))
    assert blamed(LESS) == {"plain"}


@on_tgx
def test_a_swapped_operand_in_a_tile_row_is_the_fast_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    row = values.OPS["cmplt"]
    monkeypatch.setitem(values.OPS, "cmplt", lambda e, node, args: row(e, node, args[::-1]))
    assert blamed(LESS, ("fast", "plain", "chunks", "python")) == {"fast", "chunks"}


@on_tgx
def test_a_wrong_reduction_identity_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of negative numbers is not 0: in the tiles, and in tinygrad's loops."""
    with monkeypatch.context() as patch:
        patch.setattr(tgx_emit, "identity", lambda op, dtype: "0.0")
        assert blamed(LARGEST) == {"fast"}
    with monkeypatch.context() as patch:
        # tinygrad's patterns hold on to the function itself
        patch.setattr(identity_element, "__code__", (lambda op, dt: dt.const(0)).__code__)
        assert blamed(LARGEST) == {"plain", "python"}


@on_tgx
def test_a_wrong_gradient_formula_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tinygrad's table, so it is wrong on every way."""
    false = PatternMatcher([(UPat(Ops.LOG2, name="ret"),
                             lambda ctx, ret: (ctx / (ret.src[0] * math.log(3)),))])
    monkeypatch.setattr(gradient, "pm_gradient", false + gradient.pm_gradient)
    assert blamed(TANGENT) == {"fast", "plain", "python"}


@on_tgx
def test_a_small_difference_between_two_ways_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times less than NumPy's tolerance allows."""
    row = values.OPS["exp2"]

    def off(e: Any, node: Any, args: list[Any]) -> str:
        factor = splat_literal(TYPES[args[0].dtype], args[0].lanes,
                               literal(1 + 2.0**-16, args[0].dtype))
        return e.let(f"fmul {args[0].type} {row(e, node, args)}, {factor}")

    monkeypatch.setitem(values.OPS, "exp2", off)
    case = Case(4, Program((Input((4, 8), "float32", 1), Input((8, 4), "float32", 2)),
                           (Step("exp2", (0,)), Step("matmul", (2, 1)))))
    found = outcome(case, ("plain", "fast"))
    assert found["plain"] == "ok" and found["fast"].startswith("not as plain: call 1: v1")


# ----------------------------------------------------------------- the run of many, and its log


def test_a_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, folder = tmp_path / "log.jsonl", tmp_path / "failures"

    def run(count: int) -> str:
        assert run_cases_of(range(count), ["python"], ["reduce"], 1, log, folder) == 0
        return capsys.readouterr().out

    assert "\nall                2" in run(2)
    with log.open("a", encoding="utf-8") as out:
        out.write('{"seed": 2, "fam')  # killed while it wrote
    before = log.read_text(encoding="utf-8")
    assert "\nall                3" in run(3)
    new = [json.loads(line) for line in
           log.read_text(encoding="utf-8")[len(before):].splitlines() if line]
    assert [r["seed"] for r in new if "seed" in r] == [2]
    assert not folder.exists()


def test_what_failed_is_run_again_if_asked(tmp_path: Path) -> None:
    log, folder = tmp_path / "log.jsonl", tmp_path / "failures"
    failed = {"seed": 0, "family": "reduce", "ways": {"python": "wrong"}, "report": [1, 1, 0, 0]}
    log.write_text(json.dumps(failed) + "\n", encoding="utf-8")
    assert run_cases_of([0], ["python"], ["reduce"], 1, log, folder) == 1
    assert run_cases_of([0], ["python"], ["reduce"], 1, log, folder, again=True) == 0
    assert run_cases_of([0], ["python"], ["reduce"], 1, log, folder) == 0


def test_a_case_that_hangs_or_crashes_is_a_failure(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "CASE_SECONDS", 0.05)
    child = ways.Child(["--ways", "fast", "--failures", str(tmp_path)])
    try:
        (result,) = child.run(0)["ways"].values()
    finally:
        child.close()
    assert is_failure(result) and result.startswith("hangs")


def test_a_log_of_another_generator_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"generator": "another"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="another version"):
        run_cases_of([0], ["python"], [], 1, log, tmp_path)


# ------------------------------------------------------------------- bugs that were found, by name

FOUND: dict[str, Program] = {
    # one padding inside another leaves an index that is no number: an error of ours, not a Miss
    "a padding in a padding": Program(
        (Input((7, 4, 7), "float32", 1253301806),),
        (Step("pad", (0,), (((2, 1), (2, 0), (0, 0)), 0.0)),
         Step("pad_mode", (1,), (((0, 1), (1, 0), (0, 1)), "replicate")))),
    # two kernels divide, each for itself: one rounded once, the other twice, and none was smallest
    "argmin of a quotient, and a maximum of it": Program(
        (Input((2, 63), "float32", 1166260273), Input((2, 63), "float32", 1924545311)),
        (Step("div", (0, 1)), Step("argmin", (2,), (0, False)), Step("max", (3,), (None, False)))),
    # tinygrad drops the gate of the index's own load, which began before the index's buffer
    "an index that is loaded without its gate": Program(
        (Input((5, 1), "int32", 1733259296, "index", 3), Input((5, 3), "float32", 3)),
        (Step("gather", (1, 0), (1,)), Step("cumprod", (2,), (0,)))),
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
    assert not ways.fallen_back()
