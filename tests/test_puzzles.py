"""`tgx puzzle`: what it writes, what it accepts, what it says to wrong answers."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT

from tgx import cli
from tgx.puzzles import PUZZLES, base
from tgx.puzzles.base import outcome

NUMBERS = sorted(PUZZLES)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(number: int, code: str) -> base.Outcome:
    path = Path(f"puzzle_{number}.py")
    path.write_text(code)
    return outcome(PUZZLES[number], number, path)


def test_there_are_ten() -> None:
    assert list(range(1, 11)) == NUMBERS
    assert len({puzzle.title for puzzle in PUZZLES.values()}) == 10


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_passes_and_the_blank_does_not(number: int) -> None:
    puzzle = PUZZLES[number]
    solved = answer(number, puzzle.solution)
    assert solved.state == "solved", solved.message
    assert len(solved.message) > 40, "it says what was just shown"
    assert answer(number, puzzle.file(number)).state == "untouched"
    blank = answer(number, puzzle.start)  # only the text at the top is gone
    assert blank.state == "wrong" and len(blank.message) > 20


def changed(number: int, old: str, new: str) -> str:
    code = PUZZLES[number].solution
    assert old in code
    return code.replace(old, new)


WRONG = {
    "1 no guard": (1, changed(1, "if thread < size:", "if True:"), "thread 5 reads a\\[5\\]"),
    "1 one too many": (1, changed(1, "<", "<="), "has 5 numbers"),
    "1 one too few": (1, changed(1, "< size", "< size - 1"), "out\\[4\\] is 0, expected 16"),
    "2 plain": (2, changed(2, "1 * i + 4 * j", "4 * i + j"),
                r"transposed\(0, 1\) is 1, expected 4"),
    "2 from the wrong end": (2, changed(2, "+ 3 - j", "- j"), r"flipped\(0, 0\) is 0, expected 3"),
    "3 half of it": (3, changed(3, "s + x * s", "s + s"), "which is a slope of"),
    "4 swapped": (4, changed(4, "(ctx * b, ctx * a)", "(ctx * a, ctx * b)"),
                  r"MUL\(2.0, -3.0\), with ctx = 1: operand a gets 2, expected -3"),
    "4 ctx forgotten": (4, changed(4, "ctx * out * math", "out * math"), "EXP2.*ctx = 2.5"),
    "4 no tuple": (4, changed(4, "(-ctx * out * out,)", "-ctx * out * out"), "tuple of 1"),
    "5 one for all": (5, 'KERNELS = dict.fromkeys("ABCDEF", 1)', r"(?s)3 of 6.*D: x - x.*F:"),
    "6 as it was": (6, PUZZLES[6].start, "it took 2 kernels"),
    "6 another number": (6, changed(6, "- x.mean(1)", "- 2 * x.mean(1)"), "the variance of row 0"),
    "7 as it was": (7, PUZZLES[7].start, "in 1 kernel still"),
    "7 the wrong part kept": (7, changed(7, "v.sin().contiguous()", "v.sin()").replace(
        "(w *", "(w.sin().asin().contiguous() *"), "two kernels do it|expected"),
    "8 sum of names": (8, changed(8, "x + (a.val + b.val)", "x + a.val"), r"became \(x\+3\)"),
    "8 not only constants": (8, changed(8, 'UPat.cvar("b"), lambda x, a, b: x + (a.val + b.val)',
                                        'UPat.var("b"), lambda x, a, b: x + a.val'), "expected"),
    "9 rounded twice": (9, """
def emit_mulacc(body, u):
    a, b, c = u.src
    product = body.value(f"fmul {body.typed(a)}, {body[b]}")
    body.names[u] = body.value(f"fadd float {product}, {body[c]}")
""", "(?s)rounded twice.*fadd float"),
    "9 not IR": (9, changed(9, "call float", "please"), "LLVM does not take it"),
    "9 no name": (9, changed(9, "body.names[u] = ", ""), "body.names\\[u\\] is not set"),
    "10 not corrected": (10, changed(10, "total * math.exp(largest - new)", "total"),
                         "rising: after 0.5, 1 step gives"),
    "10 overflows": (10, """
import math
def step(largest, total, x):
    new = max(largest, x)
    return new, (total * math.exp(min(largest, 9e9)) + math.exp(x)) / math.exp(new)
""", "no number any more"),
    "an error of its own": (1, "def kernel(*a):\n    return 1 / 0\n",
                            "ZeroDivisionError: .*after line 2: return 1 / 0"),
    "no Python": (1, "def kernel(:\n", "line 1 is not Python"),
    "nothing": (1, "", "should define kernel"),
    "not filled in": (3, "silu_slope = ...", "still"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name: str) -> None:
    number, code, message = WRONG[name]
    found = answer(number, code)
    assert found.state == "wrong"
    with pytest.raises(base.Wrong, match=message):
        raise base.Wrong(found.message)


def test_an_answer_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "SECONDS", 1)
    began = time.monotonic()
    found = answer(1, "while True:\n    pass\n")
    assert found.state == "wrong" and "never end" in found.message
    assert time.monotonic() - began < 10


def test_what_an_answer_prints_or_exits_with_does_not_disturb(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "puzzle_1.py").write_text("print('here')\n" + PUZZLES[1].solution)
    assert cli.main(["puzzle", "1", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["state"] == "solved" and told.err == "here\n"
    found = answer(1, "import sys\nsys.exit('no more')\n")
    assert found.state == "wrong" and "SystemExit: no more, after line 2" in found.message


@pytest.mark.parametrize("number", NUMBERS)
def test_the_picture_stays_on_its_page(number: int) -> None:
    root = ET.fromstring(PUZZLES[number].svg(number))
    wide, high = float(root.get("width") or 0), float(root.get("height") or 0)
    for item in root.iter():
        if item.get("x") is not None:
            x, y = float(item.get("x") or 0), float(item.get("y") or 0)
            assert x >= 0 and x + float(item.get("width") or 0) <= wide
            assert y >= 0 and y + float(item.get("height") or 0) <= high
    assert root.find("{*}title") is not None


def test_write_fill_in_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["puzzle", "6"]) == 0
    assert "The variance of every row" in capsys.readouterr().out
    assert (folder / "puzzle_6.svg").read_text().startswith("<svg")
    written = (folder / "puzzle_6.py").read_text()
    assert written.startswith('"""Puzzle 6: Fuse two')
    assert cli.main(["puzzle", "6"]) == 1
    assert "as it was written" in capsys.readouterr().out
    assert (folder / "puzzle_6.py").read_text() == written, "a file is never written over"
    (folder / "puzzle_6.py").write_text(PUZZLES[6].solution)
    assert cli.main(["puzzle", "6"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Solved.") and "Next: tgx puzzle 7" in told


def test_the_list_shows_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "puzzle_1.py").write_text(PUZZLES[1].solution)
    (folder / "puzzle_2.py").write_text("")
    (folder / "puzzle_3.py").write_text(PUZZLES[3].file(3))
    assert cli.main(["puzzle", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in listed] == ["solved", "wrong", "untouched"] + ["new"] * 7
    assert cli.main(["puzzle"]) == 0
    told = capsys.readouterr().out
    assert "1 of 10 solved. Next: tgx puzzle 2" in told and "Strides" in told


def test_hint_solution_json_and_what_does_not_exist(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, text in (("--hint", PUZZLES[4].hint), ("--solution", PUZZLES[4].solution)):
        assert cli.main(["puzzle", "4", option]) == 0
        assert text.strip() in capsys.readouterr().out
        assert cli.main(["puzzle", "4", option, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[option[2:]] == text.strip()
    assert not list(folder.iterdir()), "asking for help writes nothing"
    assert cli.main(["puzzle", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "new"
    (folder / "puzzle_1.py").write_text("kernel = 3")
    assert cli.main(["puzzle", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "wrong"
    assert cli.main(["puzzle", "11"]) == 2
    assert "1 to 10" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "puzzle_2.svg").mkdir()
    assert cli.main(["puzzle", "2"]) == 2 and not (folder / "puzzle_2.py").exists()
    assert "cannot write puzzle_2.svg" in capsys.readouterr().err


def test_the_wheel_has_them() -> None:
    """Nothing a puzzle needs is outside the package."""
    for path in (ROOT / "tgx" / "puzzles").glob("*.py"):
        assert "examples" not in path.read_text()
