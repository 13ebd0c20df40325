"""`tgx profile`: scripts are stopped once their step is seen, models are asked for theirs. The
compiler is the stand-in of test_hardware_offline."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tinygrad.engine.jit as tg_jit
from test_hardware_offline import stand_in  # noqa: F401 - a fixture
from tinygrad import Tensor, TinyJit, nn

from tgx import cli
from tgx.adapter import offline
from tgx.adapter.profile import captured, predicted, stopping
from tgx.errors import BadInput
from tgx.hardware import profiles
from tgx.hardware.report import Report

pytestmark = pytest.mark.usefixtures("stand_in")

BOARD = ("jetson-orin-nano-super", "15W")


def profile(batches: list[int], script: Callable[[], object], *models: str) -> Report:
    """What the command predicts for BOARD."""
    board = profiles.find(BOARD[0])
    watch, steps = captured(batches, script, models, real=False)
    machine = profiles.machine(board, BOARD[1])
    return predicted(board, machine, steps, offline.origins(watch))[0]


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What `tgx profile` takes for the script's module."""
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def test_a_script_runs_until_its_step_is_captured() -> None:
    ran: list[Any] = []

    def script() -> None:
        try:
            weight = Tensor(np.ones((16, 8), np.float32)).realize()

            @TinyJit
            def step(x: Tensor) -> Tensor:
                return (x @ weight).relu().realize()

            for number in range(5):
                ran.append(number)
                step(Tensor(np.ones((4, 16), np.float32)).realize())
        except Exception:  # a script that goes on after its own errors
            ran.append("went on")
        finally:
            ran.append("cleaned up")
        ran.append("came to its end")

    report = profile([1], script)
    assert ran == [0, 1, "cleaned up"]
    (step,) = report.steps
    assert (step.name, step.batch, len(step.rows)) == ("jitted step", None, 1)
    assert step.rows[0].lines[0].startswith("tests/test_hardware_profile_command.py:") or Path(
        step.rows[0].lines[0].split(":")[0]
    ).name == Path(__file__).name
    # and tinygrad is as it was
    jitted = TinyJit(lambda x: (x + 1).realize())
    assert [jitted(Tensor([1.0]).realize()).item() for _ in range(3)] == [2, 2, 2]


def test_stopping_leaves_tinygrad_as_it_was() -> None:
    before = tg_jit.jit_lower
    with stopping() as seen:
        jitted = TinyJit(lambda x: (x + 1).realize())
        for _ in range(3):
            jitted(Tensor([1.0]).realize())
    assert len(seen) == 1 and tg_jit.jit_lower is before
    with pytest.raises(ZeroDivisionError), stopping():
        raise ZeroDivisionError
    assert tg_jit.jit_lower is before


def test_models_are_profiled_at_each_batch(main_module: ModuleType) -> None:
    layer = nn.Linear(16, 4)

    def inputs(batch: int) -> tuple[Tensor]:
        return (Tensor(np.ones((batch, 16), np.float32)).realize(),)

    def train(x: Tensor) -> list[Tensor]:
        loss = layer(x).square().mean()
        (gradient,) = loss.gradient(layer.weight)
        return [loss, layer.weight.assign(layer.weight - 0.1 * gradient)]

    main_module.tgx_models = lambda: {  # type: ignore[attr-defined]
        "net": (lambda x: layer(x).relu(), inputs), "net-train": (train, inputs),
    }  # fmt: skip
    report = profile([1, 8], lambda: None)
    assert [(s.name, s.batch) for s in report.steps] == [("net", 1), ("net", 8), ("net-train", 8)]
    small, large, training = report.steps
    assert large.total("ops") > small.total("ops") and len(training.rows) > len(large.rows)
    assert all(row.lower_us <= row.model_us for step in report.steps for row in step.rows)
    only = profile([2], lambda: None, "net")
    assert [(s.name, s.batch) for s in only.steps] == [("net", 2)]
    with pytest.raises(BadInput, match="no model 'nett'"):
        profile([2], lambda: None, "nett")


def test_a_script_without_a_step_is_told_what_is_missing() -> None:
    with pytest.raises(BadInput, match="no TinyJit step of it ran twice") as error:
        profile([1], lambda: (Tensor([1.0]) + 1).realize())
    assert "tgx_models" in str(error.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tinygrad import Tensor, TinyJit\n"
        "print('hello from', sys.argv[1])\n"
        "step = TinyJit(lambda x: (x * 2).sum().realize())\n"
        "for _ in range(9): step(Tensor.ones(64).contiguous().realize())\n"
        "raise SystemExit('not reached')\n"
    )
    words = ["profile", "--device", BOARD[0], "--mode", BOARD[1]]
    assert cli.main([*words, "--json", str(script), "me"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)  # what the script prints is not in the report
    assert "hello from me" in err
    assert [step["name"] for step in data["steps"]] == ["jitted step"]
    assert data["steps"][0]["kernels"][0]["measured_us"] is None
    assert cli.main([*words, str(script), "me"]) == 0
    out, _ = capsys.readouterr()
    assert "jitted step" in out and "1 launch " in out and "bound us" in out


def test_models_by_name_need_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tinygrad import Tensor\n"
        "def tgx_models():\n"
        "    return {'double': (lambda x: x * 2, lambda batch: (Tensor.ones(batch, 8).clone(),))}\n"
        "if __name__ == '__main__': raise SystemExit('it ran')\n"
    )
    words = ["profile", "--device", BOARD[0], "--json", "--batch", "4", "--model", "double"]
    assert cli.main([*words, str(script)]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert (step["name"], step["batch"]) == ("double", 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "raspberry"], "no device is called 'raspberry'"),
        (["--device", "orin"], "fits several boards"),
        (["--device", "jetson-nano", "--mode", "fast"], "one of MAXN, 5W"),
        (["--device", "jetson-nano", "--batch", "0"], "sizes of at least 1"),
        (["--device", "jetson-nano", "--batch", "1,x"], "sizes of at least 1"),
        (["--device", "jetson-t4000"], "does not know the GPU clock"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('it ran')")
    assert cli.main(["profile", *words, str(script)]) == 2
    assert said in capsys.readouterr().err
