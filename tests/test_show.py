"""`tgx show` and `tgx compare`: what they print and refuse; and that they need no tinygrad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_passes import contiguous

import traces
from tgx import codec
from tgx.cli import main

pytestmark = pytest.mark.pure


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    codec.write(traces.mlp_step(), tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_show_prints_the_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", folder) == 0
    out = capsys.readouterr().out
    assert "10 kernels, 0.975 ms in all" in out and "linear + bias + relu" in out


@pytest.mark.parametrize(("choice", "value", "expected"), [
    ("--kernel", 6, "kernel 6: ∂w1 = xᵀ·∂h"),
    ("--line", "mlp.py:11", "3 kernels"),
    ("--view", "markdown", "| kernel | phase |"),
    ("--view", "dot", "digraph tgx"),
    ("--view", "svg", "<svg"),
    ("--view", "html", "<!doctype html>"),
    ("--view", "perfetto", '"traceEvents"'),
])
def test_show_takes_choices(folder: Path, capsys: pytest.CaptureFixture[str], choice: str,
                            value: object, expected: str) -> None:
    assert run("show", folder, choice, value) == 0
    assert expected in capsys.readouterr().out


def test_show_json_of_a_kernel_or_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", folder, "--json", "--line", "mlp.py:10") == 0
    got = json.loads(capsys.readouterr().out)
    assert [k["id"] for k in got["kernels"]] == [0, 5]
    assert run("show", folder, "--json", "--kernel", 5) == 0
    got = json.loads(capsys.readouterr().out)
    assert [k["name"] for k in got["kernels"]] == ["∂h = ∂z·w2ᵀ, relu"]
    assert {b["from"] for b in got["boundaries"]} >= {5}


@pytest.mark.parametrize("picture", ["lazy", "step", "memory", "debug"])
def test_show_draws_each_picture(folder: Path, picture: str, tmp_path: Path) -> None:
    out = tmp_path / "out.dot"
    assert run("show", folder, "--view", "dot", "--picture", picture, "-o", out) == 0
    assert out.read_text("utf-8").startswith("digraph")


@pytest.mark.parametrize(("choices", "complaint"), [
    (["--kernel", 77], "kernel 77"),
    (["--line", "other.py:1"], "mlp.py"),
    (["--view", "soup"], "one of text"),
    (["--view", "html", "--kernel", 3], "has this choice"),
    (["--view", "dot", "--picture", "soup"], "one of schedule"),
])
def test_show_refuses_in_sentences(folder: Path, capsys: pytest.CaptureFixture[str],
                                   choices: list[object], complaint: str) -> None:
    assert run("show", folder, *choices) == 2
    assert complaint in capsys.readouterr().err


def test_show_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", tmp_path / "none") == 2
    assert "tgx trace" in capsys.readouterr().err


def test_compare_names_the_one_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = codec.write(traces.mlp_step(), tmp_path / "before.jsonl")
    after = codec.write(contiguous(traces.mlp_step()), tmp_path / "after.jsonl")
    assert run("compare", before, after, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert [o["op"] for o in told["operations"]["added"]] == ["contiguous"]
    assert told["operations"]["removed"] == [] and not told["alike"]
    assert run("compare", before, before) == 0
    assert "the same kernels" in capsys.readouterr().out
    assert run("compare", before, after, before, "--markdown") == 0
    assert capsys.readouterr().out.count("| kernel |") == 1
    assert run("compare", before) == 2


def test_they_need_no_tinygrad(folder: Path) -> None:
    code = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('tinygrad', 'llvmlite', 'numpy'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from tgx.cli import main; raise SystemExit(main(['show', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "10 kernels" in done.stdout
