"""`tgx bench`: the driver on canned contenders, the models, and one real run that must notice a
contender that computes something else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tgx.bench import models
from tgx.bench.cases import CASES, FORMS, TARGETS, choose
from tgx.bench.driver import (
    CONTENDERS,
    Contender,
    Pace,
    bench,
    disagreements,
    judge,
    load_digits,
    worker_environment,
)
from tgx.bench.report import tables
from tgx.cli import main
from tgx.errors import BadInput

# A worker without a framework: takes `step` seconds a step, by its own account.
CANNED = """
import json, sys
step, loss, dies = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "dies"
print(json.dumps({"name": "canned"}), flush=True)
for line in sys.stdin:
    do = json.loads(line)["do"]
    if do == "burst" and dies:
        sys.exit("out of luck")
    answers = {
        "open": {"check": [loss, 2.0], "seconds": 1.0, "resident": 2**20,
                 "grown": 0, "held": 512},
        "burst": {"times": [step, 3 * step, 2 * step], "cpu": 6 * step, "resident": 2**21,
                  "held": 1024},
        "close": {},
    }
    print(json.dumps(answers[do]), flush=True)
"""
PACE = Pace(rounds=2, seconds=0.01)


def canned(name: str, role: str, step: float, loss: float = 1.0, end: str = "") -> Contender:
    command = (sys.executable, "-c", CANNED, str(step), str(loss), end)
    return Contender(name, role, "canned", command=command)


@pytest.mark.pure
def test_medians_minima_and_ratios() -> None:
    contenders = (
        canned("TGX", "tgx", 0.001),
        canned("stock CLANG", "stock", 0.010),
        canned("stock LLVM", "stock", 0.008),
        canned("PyTorch", "torch", 0.0015),
        Contender("JAX", "jax", "jax", needs="no-such-program"),
    )
    heard: list[str] = []
    report = bench(choose("mlp-train-64"), contenders, pace=PACE, say=heard.append)
    (case,) = report["cases"]
    assert case["results"]["TGX"] == {
        "check": [1.0, 2.0], "seconds": 1.0, "resident": 2**21, "grown": 0, "held": 1024,
        "median": 0.002, "min": 0.001, "count": 6, "cpu": pytest.approx(0.002),
    }  # fmt: skip
    # of stock's renderers the slower one is dropped after a round
    assert [case["results"][f"stock {r}"]["count"] for r in ("CLANG", "LLVM")] == [3, 6]
    ratios = {role: round(ratio, 9) for role, ratio in case["ratios"].items()}
    assert ratios == {"stock": 8.0, "torch": 1.5, "peers": 1.5}
    assert [(t["against"], t["met"]) for t in report["targets"]] == [
        ("peers", True), ("torch", True), ("stock", True)
    ]  # fmt: skip
    assert report["contenders"][-1]["missing"].startswith("no-such-program is not installed")
    assert case["agree"] and heard == [
        "mlp-train-64: TGX 2, stock CLANG 20, stock LLVM 16, PyTorch 3 ms"
    ]
    assert json.loads(json.dumps(report)) == report


@pytest.mark.pure
def test_a_contender_that_dies_is_reported_and_the_others_go_on() -> None:
    contenders = (
        canned("TGX", "tgx", 0.001),
        canned("PyTorch", "torch", 0.002, end="dies"),
        canned("JAX", "jax", 0.003),
    )
    report = bench(choose("mlp-infer-64"), contenders, pace=PACE)
    (case,) = report["cases"]
    assert case["results"]["PyTorch"]["error"] == "ended with exit code 1: out of luck"
    assert case["ratios"] == {"jax": pytest.approx(3), "peers": pytest.approx(3)}
    assert any("PyTorch failed: ended with" in note for note in report["notes"])
    text = "\n".join(" ".join(row) for _, _, rows in tables(report) for row in rows)
    assert "mlp-infer-64 better of PyTorch, JAX ≥ 1 3.00 met" in text
    assert "mlp-infer-64 stock ≥ 4  not measured" in text


@pytest.mark.pure
def test_the_one_that_computes_something_else_is_named() -> None:
    contenders = (
        canned("TGX", "tgx", 0.001),
        canned("PyTorch", "torch", 0.001, loss=1.01),
        canned("JAX", "jax", 0.001, loss=1.0005),
    )
    report = bench(choose("mlp-train-64"), contenders, pace=PACE)
    (case,) = report["cases"]
    assert not case["agree"]
    assert case["differences"] == ["PyTorch: number 0 is 1.01, others 1.0005"]
    assert disagreements({"a": [1.0], "b": [float("nan")], "c": [1.0]}) != []
    assert disagreements({"a": [1.0], "b": [1.0005]}) == []


@pytest.mark.pure
def test_every_target_speaks_of_a_case() -> None:
    for target in TARGETS:
        assert any(target.matches(case.name) for case in CASES), target
    assert len({case.name for case in CASES}) == len(CASES)
    warm = {"name": "start-mlp-warm", "results": {"TGX": {"cpu": 1.5}}, "ratios": {}}
    (limit,) = [t for t in TARGETS if t.matches("start-mlp-warm")]
    assert judge(limit, warm)["met"] is False
    assert judge(limit, {**warm, "results": {}})["met"] is None


@pytest.mark.pure
def test_choosing_cases() -> None:
    assert [case.name for case in choose("mlp-train-1")] == ["mlp-train-1"]
    assert [case.batch for case in choose("mlp-train")] == [1, 64, 1024]
    assert [case.batch for case in choose("mlp-train", quick=True)] == [64]
    assert not any(case.large for case in choose())
    assert any(case.large for case in choose(large=True)) and choose("vit")
    assert choose("nonsense") == ()


@pytest.mark.pure
def test_models_have_the_published_sizes() -> None:
    def count(name: str) -> int:
        found = models.parameters(name, 0)
        return sum(x.size for key, x in found.items() if models.trained(key))

    assert count("mlp") == 235_146
    assert count("cnn") == 421_642
    assert count("resnet18") == 11_689_512
    assert count("mobilenetv2") == 3_504_872
    assert count("gpt2block") == 7_087_872


@pytest.mark.pure
@pytest.mark.parametrize("form", FORMS)
def test_operands_lie_as_their_form_says(form: str) -> None:
    a, b = models.operands((3, 4, 5), form, 0)
    whole_a, whole_b = models.operands((3, 4, 5), "nn", 0)
    assert np.array_equal(a.T if form[0] == "t" else a, whole_a) and a.flags.c_contiguous
    assert np.array_equal(b.T if form[1] == "t" else b, whole_b) and b.flags.c_contiguous


@pytest.mark.pure
def test_without_mnist_digits_are_generated_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgx.bench.driver.MNIST", ("absent", "absent too"))
    images, labels, note = load_digits(None)
    assert images.shape == (60_000, 28, 28) and labels.shape == (60_000,) and labels.max() == 9
    assert "generated" in note
    with pytest.raises(BadInput, match="absent"):
        load_digits(tmp_path)


@pytest.mark.pure
def test_workers_get_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_FAST", "1")
    monkeypatch.setenv("DEVICE", "CUDA")
    environment = worker_environment(CONTENDERS[0], 3)
    assert environment["DEV"] == "TGX" and environment["NUM_CPU_THREADS"] == "3"
    assert not {"TGX_FAST", "DEVICE"} & set(environment)


def test_a_real_run_notices_a_planted_difference() -> None:
    """TGX beside TGX with other weights: the losses differ, and the command says so."""
    honest = CONTENDERS[0]
    wrong = replace(honest, name="wrong", role="torch", seed=2)
    report = bench(choose("mlp-train-1"), (honest, wrong), 1, replace(PACE, budget=0.5))
    (case,) = report["cases"]
    assert not case["agree"] and len(case["differences"]) == 2
    for result in case["results"].values():
        assert 0 < result["min"] <= result["median"] < 1 and result["count"] >= 2
        assert len(result["check"]) == 4 and 1.5 < result["check"][0] < 3.5
        assert result["held"] > 3 * 4 * 235_146  # weights and both moments


def test_the_command_writes_json(tmp_path: Path) -> None:
    """`tgx bench` on a machine that has no peers: it measures TGX, and says what is missing."""
    arguments = ["--quick", "--only", "matmul-64x784x256-nn", "--contenders", "tgx,stock"]
    environment = worker_environment(CONTENDERS[0], 1) | {"PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tgx", "bench", *arguments, "--rounds", "2", "-o", "out.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["schema"] == 1 and set(report) == {
        "schema", "tgx", "python", "cpu", "threads", "load", "pace", "contenders", "cases",
        "targets", "notes",
    }  # fmt: skip
    assert {c["name"]: bool(c["missing"]) for c in report["contenders"]} == {
        "TGX": False, "stock CLANG": True, "stock LLVM": True
    }  # fmt: skip
    assert "not measured: clang is not installed" in done.stdout
    assert "targets" in done.stdout and "GFLOP/s" in done.stdout


def test_losses_may_drift_apart_as_training_goes_on() -> None:
    """By twice as much in each next step; a first loss that differs is a different network."""
    assert disagreements({"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.012]}, growth=2.0) == []
    assert disagreements({"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.012]}) != []
    assert disagreements({"a": [1.0, 1.0], "b": [1.012, 1.0]}, growth=2.0) != []


def test_a_kept_report_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "bench.json"
    bench_command = ["bench", "--only", "mlp-infer-1", "--contenders", "tgx", "--quick"]
    assert main([*bench_command, "-o", str(report)]) == 0
    printed = capsys.readouterr().out
    assert main(["bench", "--show", str(report)]) == 0
    assert capsys.readouterr().out == printed
    assert main(["bench", "--show", str(report), "--markdown"]) == 0
    tables = capsys.readouterr().out
    assert "### ms: median (minimum)\n\n|  | TGX |\n| --- | --- |\n| mlp-infer-1 | " in tables
    report.write_text('{"schema": 99}')
    assert main(["bench", "--show", str(report)]) == 2
    assert "a report of tgx bench" in capsys.readouterr().err


def test_the_tables_of_performance_md_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parent
    assert main(["bench", "--show", str(folder / "performance.json"), "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in (folder / "PERFORMANCE.md").read_text()
