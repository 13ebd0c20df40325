"""`tgx profile` measures: the device is TGX (or what DEVICE says), the board's programs are played
back, the compiler is the stand-in of test_hardware_offline."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from test_hardware_measured import line_of, path, printing, tegrastats  # noqa: F401 - a fixture
from test_hardware_offline import stand_in  # noqa: F401 - a fixture
from tinygrad import Device

from tgx import cli, codec
from tgx.adapter import board, devices, offline, panes, profile, profiled, timing
from tgx.commands import profile as command

ROOT = Path(__file__).parents[1]
BOARD = ["--device", "jetson-orin-nano-super", "--mode", "15W"]

SCRIPT = """
import sys
from tinygrad import Context, Tensor, TinyJit, nn

class Net:
    def __init__(self):
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)
    def __call__(self, x):
        return self.b(self.a(x).relu())

net = Net()

def tgx_models():
    optimizer = nn.optim.Adam(nn.state.get_parameters(net))
    @Context(TRAINING=1)
    def train(x):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return [loss, *optimizer.schedule_step()]
    inputs = lambda batch: (Tensor.ones(batch, 16).contiguous().realize(),)
    return {"net": (net, inputs), "net-train": (train, inputs)}

step = TinyJit(lambda x: net(x).realize())
for number in range(9):
    step(Tensor.ones(2, 16).contiguous().realize())
    print("ran", number)
raise SystemExit("not reached")
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return str(file)


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))


QUICK = ["profile", "--seconds", "0.02", "--batch", "8"]


def test_without_a_board_the_device_here_is_measured(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trace"
    assert cli.main([*QUICK, "--json", "--trace", str(folder), script]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["device"] == Device.DEFAULT and "ran 0" in err and "ran 2" not in err
    steps = {(s["name"], s["batch"]): s for s in data["steps"]}
    assert list(steps) == [("jitted step", None), ("net", 8), ("net-train", 8)]
    for step in steps.values():
        rows = step["kernels"]
        assert all(0 < r["measured_low_us"] <= r["measured_us"] <= r["measured_p95_us"]
                   for r in rows)  # fmt: skip
        assert all(r["runs"] >= 5 and r["model_us"] is None for r in rows)
        assert step["total"]["measured_us"] == pytest.approx(sum(r["measured_us"] for r in rows))
        assert 0 < step["total"]["jitted_us"] <= step["total"]["jitted_p95_us"]
    assert len(steps["net-train", 8]["kernels"]) > len(steps["net", 8]["kernels"]) == 2
    first = steps["net", 8]["kernels"][0]
    assert any(line.endswith("script.py:9") for line in first["lines"])
    assert first["grid"] and first["ops"] > 0
    trace = codec.read(folder)  # and it opens anywhere
    assert {s.jit for s in trace.schedules} == {"<lambda>", "Net", "train"}
    assert {t.calls >= 5 for t in trace.timings} == {True}
    assert len(trace.timings) == len(trace.kernels) and all(k.program >= 0 for k in trace.kernels)
    assert (folder / "index.html").exists()


def test_a_step_is_timed_where_it_left_off(script: str) -> None:
    """Timing runs kernels many times over; what the script had is not asked for any more, and
    tinygrad is as before."""
    def run() -> None:
        exec(compile(SCRIPT, "script.py", "exec"), vars(sys.modules["__main__"]))

    watch, steps = profile.captured([2], run, ["net-train"], real=True)
    pace = timing.Pace(seconds=0, least=2, most=9, warm=1)
    found = timing.measure(steps, offline.origins(watch), pace)
    (step,) = found.steps
    assert [len(k.times.us) for k in step.kernels] == [2] * len(step.kernels)
    assert len(step.whole.us) == 2 and not found.stopped and found.board is None
    pace = timing.Pace(seconds=60, least=2, most=4, warm=0)
    count: list[int] = []
    assert pace.repeat(lambda: count.append(1)) >= 0 and len(count) == 4


def test_ctrl_c_keeps_what_was_measured(script: str, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    plain, calls = timing.timed, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(timing, "timed", interrupted)
    assert cli.main([*QUICK, script]) == 130
    out, _ = capsys.readouterr()
    assert "stopped by Ctrl-C: 1 of 3 steps were measured" in out
    assert "jitted step" in out and "net-train" not in out


@pytest.mark.usefixtures("stand_in")
def test_where_the_board_is_here_both(
    script: str, path: Path, tmp_path: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """TGX stands in for the board's GPU; tegrastats says that it never woke up."""
    monkeypatch.setattr(command, "choose_device", lambda arch: True)
    printing(path, "nvpmodel", "NV Power Mode: 15W\n0\n")
    tegrastats(path, line_of("Jetson Orin Nano, JetPack 6, busy").replace("[612]", "[306]"), "new!")
    file = tmp_path / "predictions.json"
    times = []
    measure = timing.measure
    monkeypatch.setattr(timing, "measure", lambda *a: times.append(time.time()) or measure(*a))
    words = [*QUICK, *BOARD, "--seconds", "0.2", "--model", "net", "--predictions", str(file)]
    assert cli.main([*words, "--json", script]) == 0
    out, err = capsys.readouterr()
    data, before = json.loads(out), json.loads(file.read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() in err
    assert file.stat().st_mtime <= times[0]  # written before anything was measured
    assert before["errors"] == {} and before["measured"] is None
    for old, new in zip(before["steps"], data["steps"], strict=True):
        for predicted, row in zip(old["kernels"], new["kernels"], strict=True):
            assert predicted["measured_us"] is None and row["measured_us"] > 0
            assert predicted["model_us"] == row["model_us"]
        assert new["total"]["energy_mj"] > 0
        assert new["total"]["telemetry"]["power_mw"] == 8535
    assert data["errors"]["all"]["count"] == 2 and data["errors"]["all"]["mape"] > 0
    said = "\n".join(data["measured"]["said"])
    assert data["measured"]["board"]["mode"] == ["15W", 0]
    assert "306 MHz at most, where this mode allows 612" in said
    assert "in a format tgx does not know; the first: new!" in said
    printing(path, "nvpmodel", "NV Power Mode: 25W\n1\n")
    assert cli.main([*words, "--html", str(tmp_path / "page.html"), script]) == 0
    out, _ = capsys.readouterr()
    page = (tmp_path / "page.html").read_text()
    assert "model against measured, all" in page and "jitted step: p50" in page
    for line in ("power mode 25W, the prediction is for 15W", "jitted step: p50", "mJ a run",
                 "model against measured, all"):  # fmt: skip
        assert line in out


@pytest.mark.usefixtures("stand_in")
def test_a_predicted_trace_has_the_boards_programs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(profiled, "disassembled", lambda cubin: "/*0000*/ EXIT ;" * bool(cubin))
    board_, here = tmp_path / "board", tmp_path / "here"
    assert cli.main([*QUICK, *BOARD, "--model", "net", "--trace", str(board_), script]) == 0
    assert cli.main([*QUICK, "--model", "net", "--trace", str(here), script]) == 0
    trace = codec.read(board_)
    assert trace.environment.device == "CUDA, sm_87: Jetson Orin Nano 8GB Super 15W"
    assert "nothing was measured" in trace.environment.missing[0] and not trace.timings
    assert len(trace.kernels) == 2 and {k.device for k in trace.kernels} == {"CUDA"}
    for program in trace.programs:
        assert [code.level for code in program.code] == ["source", "ptx", "sass"]
        assert "__global__" in program.code[0].text and program.name in program.code[0].text
        assert program.code[2].facts[0][0] == "registers" and program.opts
    capsys.readouterr()
    assert cli.main(["compare", str(board_), str(here)]) == 0
    text = capsys.readouterr().out
    assert "the same kernels" in text and "optimised otherwise" in text
    assert cli.main(["compare", str(board_), str(here), "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)["comparisons"][0]["pairs"]
    assert all(pair["a_opts"] and pair["b_us"] > 0 for pair in pairs)
    # and a DEBUG=2 log of a CUDA machine, which knows tinygrad's names and the times only
    log = tmp_path / "cuda.log"
    log.write_text("".join(
        f"*** CUDA    {n:4d} {program.name:46s} arg  3 mem   0.01 GB tm     12.34us/     1.20ms "
        "(    120 GFLOPS    3|3      GB/s)\n" for n, program in enumerate(trace.programs)))
    assert cli.main(["debug", str(log), "-o", str(tmp_path / "log")]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path / "log"), str(here), "--all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"][0]
    assert len(found["pairs"]) == 2 and not found["kernels"]["added"]
    assert all(pair["a_us"] == 12.34 and pair["ratio"] > 0 for pair in found["pairs"])


def test_machine_code_only_where_there_is_a_disassembler(
    path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    cubin = (ROOT / "tests/recorded/cubins/plain.sm_87.cubin").read_bytes()
    assert profiled.disassembled(cubin) == ""
    printing(path, "nvdisasm", "\t/*0000*/ MOV R1, c[0x0][0x28] ;\n")
    assert "MOV R1" in profiled.disassembled(cubin) and profiled.disassembled(b"") == ""
    (path / "nvdisasm").write_text(f"#!{sys.executable}\nraise SystemExit('sm_53 is not known')")
    assert profiled.disassembled(cubin) == ""


def test_a_program_that_ran_on_cuda_shows_its_ptx() -> None:
    """There the compiler hands PTX to the driver, and that is the program's binary."""
    ptx = b"//\n// Generated by NVIDIA NVVM Compiler\n.visible .entry r_4(\n)\0"
    (pane,) = panes._below("CUDA", None, "__global__ void r_4() {}", ptx)
    assert (pane.level, pane.language) == ("ptx", "ptx") and pane.text.endswith(")")
    assert panes._below("CUDA", None, "__global__ void r_4() {}", b"something else") == []


def test_a_device_that_does_not_open_is_said(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "try_device", lambda name: (False, "no driver library"))
    assert cli.main([*QUICK, script]) == 2
    assert "does not work here: no driver library" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "chosen", "arch", "device", "measured"),
    [
        ("", "", "", "TGX", True),  # no GPU, no board: TGX is measured
        ("", "", "sm_87", "TGX", False),  # a board that is elsewhere
        ("sm_87", "", "", "CUDA", True),
        ("sm_87", "", "sm_87", "CUDA", True),  # the board is here
        ("sm_90", "", "sm_87", "TGX", False),  # a GPU is here, and it is another
        ("sm_87", "TGX", "sm_87", "TGX", False),  # DEVICE=TGX: predict only
        ("sm_87", "CPU", "", "CPU", True),
    ],
)
def test_what_is_measured_and_what_predicted(
    gpu: str, chosen: str, arch: str, device: str, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [chosen]
    monkeypatch.setattr(board, "gpu_arch", lambda: gpu)
    monkeypatch.setattr(command.settings, "requested_device", lambda: ("DEV", now[0]))
    monkeypatch.setattr(command.settings, "choose_device", lambda value: now.__setitem__(0, value))
    assert command.choose_device(arch) is measured and now == [device]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--predictions", "p.json"], "--predictions without --device"),
        (["--mode", "15W"], "--mode without --device"),
        (["--roofline"], "--roofline without --device"),
        (["--seconds", "0"], "above 0, and at most 600"),
        (["--seconds", "nan"], "above 0, and at most 600"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "script.py"
    file.write_text("raise SystemExit('it ran')")
    assert cli.main(["profile", *words, str(file)]) == 2
    assert said in capsys.readouterr().err


def test_predictions_that_cannot_be_written(
    script: str, tmp_path: Path, stand_in: None,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [*QUICK, *BOARD, "--model", "net", "--predictions", str(tmp_path / "no" / "file")]
    assert cli.main([*words, script]) == 2
    assert "--predictions" in capsys.readouterr().err


def test_a_real_interrupt_ends_everything(tmp_path: Path, script: str) -> None:
    """A process of its own, Ctrl-C while it measures: it reports, and tegrastats has ended."""
    tegrastats(tmp_path, line_of("Jetson Nano, JetPack 4.6.1"))
    env = {**os.environ, "PATH": str(tmp_path), "DEV": "TGX", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tgx", "profile", "--seconds", "60", "--batch", "8", "--model",
             "net", script]
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, cwd=ROOT,
                               # a job in the background ignores it, and so would its children
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                               )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("measuring"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped by Ctrl-C: 0 of" in out and "Traceback" not in err
