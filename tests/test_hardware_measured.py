"""What `tgx profile` measures: times and their tables; a Jetson's own programs, played back."""

from __future__ import annotations

import json
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hardware_report import BOARD, KERNELS, MACHINE

from tgx.adapter import board
from tgx.errors import BadInput
from tgx.hardware import fitting, measured, report, roofline, tegra
from tgx.hardware.accuracy import accuracy, quantile, spearman
from tgx.hardware.measured import KernelTime, Measurement, StepTime, Times

RECORDED = Path(__file__).parent / "recorded"


# ---- arithmetic ----


def test_errors_are_relative_to_what_was_measured() -> None:
    found = accuracy([90, 240, 300, 400], [100, 200, 300, 800])
    assert found.mape == pytest.approx((0.1 + 0.2 + 0 + 0.5) / 4) and found.count == 4
    assert found.p90 == pytest.approx(0.2 + 0.7 * 0.3) and found.spearman == 1.0
    assert "MAPE 20%" in str(found)
    for bad in (([1], [1, 2]), ([], []), ([1], [0])):
        with pytest.raises(BadInput):
            accuracy(*bad)


def test_ranks_share_where_values_are_equal() -> None:
    assert spearman([1, 2, 3, 4], [40, 30, 20, 10]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)  # SciPy's
    assert spearman([1, 2], [1, 2]) is None and spearman([5, 5, 5], [1, 2, 3]) is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))


# ---- tables ----


def kernel(name: str, *us: float, grid: tuple[int, ...] = (4, 1, 1)) -> KernelTime:
    block = (32, 1, 1) if grid else ()
    return KernelTime(name, ("m.py:45", "m.py:46"), grid, block, 2_000_000 * bool(grid), 4000,
                      Times(us), "device" if grid else "host")  # fmt: skip


STEP = StepTime(
    "mlp", 32,
    (kernel("copy", 8, grid=()), kernel("layer1 + relu", 30, 20, 40), kernel("layer2", 10, 10, 10)),
    Times((50, 60, 70)), seconds=2.0,
    telemetry=tegra.Telemetry(20, (), 95, 306, 306, 8000, ("gpu", 58.5)),
)  # fmt: skip


def test_a_measurement_as_tables_and_data() -> None:
    m = Measurement("CUDA", "sm_87", (STEP,), tegra.Board("36.4.3", ("15W", 0)), ("beware",))
    rows = measured.table(STEP)
    assert all(len(row) == len(measured.HEADS) for row in rows)
    assert rows[1] == ("layer1 + relu", "m.py:45 +1", "4 x 32", "2.0M", "4.0k", "30.0", "39.0",
                       "66.7", "0.1")  # fmt: skip
    assert rows[0][2:4] == ("", "") and rows[-1][0] == "3 launches" and rows[-1][5] == "48.0"
    text = "\n".join(measured.heading(m) + measured.foot(STEP))
    for said in ("measured on CUDA (sm_87)", "power mode 15W", "L4T 36.4.3", "note: beware",
                 "p50 60.0 us", "one by one: 48.0 us", "8.00 W", "gpu at 58.5 C",
                 "energy: 5333 mJ a run"):  # fmt: skip
        assert said in text
    data = json.loads(json.dumps(measured.to_json(m), allow_nan=False))
    promised = "name lines grid block regs smem occupancy waves bound lower_us model_us measured_us"
    for row in data["steps"][0]["kernels"]:
        assert set(promised.split()) <= set(row)
    assert data["steps"][0]["kernels"][1]["measured_us"] == 30
    assert data["steps"][0]["kernels"][1]["model_us"] is None
    total = data["steps"][0]["total"]
    assert (total["measured_us"], total["jitted_us"]) == (48, 60)
    assert total["energy_mj"] == pytest.approx(8000 * 2 / 3)
    assert replace(STEP, telemetry=None).energy_mj is None
    with pytest.raises(BadInput):
        Times(())


def test_predicted_beside_measured() -> None:
    step = report.step("mlp", 32, KERNELS, MACHINE)
    predicted = report.Report(BOARD, MACHINE, "NVRTC 12.9", (step, step))
    joined = report.joined(predicted, Measurement("CUDA", "sm_87", (STEP,), stopped=True))
    assert len(joined.steps) == 1  # stopped after one of two
    rows = joined.steps[0].rows
    assert [row.measured_us for row in rows] == [8, 30, 10] and rows[1].measured_p95_us == 39
    found = report.errors(joined.steps, MACHINE.sms)
    assert found["all"].count == 2  # the copy is no kernel
    assert found["grids that fill it"].count == found["grids smaller than the GPU"].count == 1
    data = report.to_json(joined)
    assert data["errors"]["all"]["mape"] == found["all"].mape and data["measured"]["stopped"]
    assert data["steps"][0]["total"]["jitted_us"] == 60
    assert "model against measured, all: 2 launches" in "\n".join(report.foot(joined))
    assert report.table(joined.steps[0])[1][-1] == "30.0"
    assert report.errors(predicted.steps, 8) == {} and report.foot(predicted) == []
    quick = replace(STEP, kernels=(STEP.kernels[0], kernel("a", 1e-3), STEP.kernels[2]))
    beaten = report.joined(predicted, Measurement("CUDA", "sm_87", (quick,)))
    assert "below the bound: layer1" in "\n".join(report.foot(beaten))
    short = replace(STEP, kernels=STEP.kernels[:2])
    with pytest.raises(BadInput, match="3 launches predicted, 2 measured"):
        report.joined(predicted, Measurement("CUDA", "sm_87", (short,)))


# ---- fitting ----


def test_constants_are_found_again() -> None:
    """Times made by the model with other constants: fitting finds what explains them."""
    kernels = [replace(KERNELS[1], work=replace(KERNELS[1].work, instructions=n * 700_000,
                                                flops=n * 423_936), grid=(16 * n, 1, 1))
               for n in range(1, 13)]  # fmt: skip
    truth = {"launch_jetson": 9.0, "issue_efficiency": 0.45}

    def seen(constants: dict[str, float]) -> list[fitting.Seen]:
        return [fitting.Seen(k, 10**6, roofline.estimate(k, MACHINE, 10**6, True, constants))
                for k in kernels]  # fmt: skip

    found = fitting.fit(seen(truth), MACHINE, jetson=True)
    assert fitting.loss(seen(truth), MACHINE, True, found) < 0.02
    assert fitting.loss(seen(truth), MACHINE, True, {}) > 0.1
    for name, value in found.items():
        row = roofline.CONSTANTS[name]
        assert min(row.low, row.high) <= value <= max(row.low, row.high)
    assert fitting.fit(seen({}), MACHINE, jetson=True) == {}  # nothing to move
    step = report.step("mlp", 32, kernels, MACHINE, True, found)
    assert report.to_json(report.Report(BOARD, MACHINE, "", (step,), found))["fitted"] is True
    assert all(row.model_low_us <= row.model_us <= row.model_high_us for row in step.rows)
    with pytest.raises(BadInput, match="at least 8"):
        fitting.fit(seen({})[:3], MACHINE, jetson=True)
    with pytest.raises(BadInput, match="nonsense"):
        fitting.fit(seen({}), MACHINE, True, ["nonsense"])


# ---- a board's own programs, played back ----


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and no release file."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(board, "RELEASE", tmp_path / "nv_tegra_release")
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def printing(folder: Path, name: str, text: str) -> None:
    program(folder, name, f"print({text!r}, end='')")


def tegrastats(folder: Path, *lines: str) -> None:
    body = f"for line in {lines!r} * 1000:\n    print(line, flush=True); time.sleep(0.01)"
    program(folder, "tegrastats", body)


def line_of(name: str) -> str:
    lines = (RECORDED / "tegrastats.txt").read_text().splitlines()
    return lines[lines.index(f"# {name}") + 1]


def test_a_machine_that_is_no_jetson_is_not_asked(path: Path) -> None:
    assert board.read() == (None, [])
    with board.Tegrastats(wanted=False) as stats:
        assert stats.child is None and not stats.missing


def test_a_board_says_its_mode_and_clocks(path: Path) -> None:
    (path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1")
    printing(path, "nvpmodel", (RECORDED / "nvpmodel.txt").read_text())
    printing(path, "jetson_clocks", (RECORDED / "jetson_clocks.txt").read_text())
    found, said = board.read()
    assert found is not None and (found.release, found.mode) == ("36.4.3", ("15W", 0))
    assert found.clocks is not None and found.clocks.gpu_max == 918
    assert len(said) == 1 and "306 and 918 MHz" in said[0] and "sudo jetson_clocks" in said[0]
    assert measured.board_line(found) == "Jetson: L4T 36.4.3, power mode 15W, GPU 306 to 918 MHz"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sys.exit('NVPM ERROR: no permission')", "nvpmodel failed: NVPM ERROR: no permission"),
        ("pass", "nvpmodel printed nothing"),
        ("print('POWER: turbo')", "nvpmodel -q says no mode: POWER: turbo"),
        ("time.sleep(60)", "nvpmodel said nothing for 0.5 s"),
    ],
)
def test_what_a_board_does_not_say_is_said(
    body: str, why: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "PATIENCE", 0.5)
    program(path, "nvpmodel", body)
    found, said = board.read()
    assert found == tegra.Board()
    assert any(why in line for line in said)
    assert any("jetson_clocks is not on PATH" in line and "needs root" in line for line in said)


def test_tegrastats_is_sampled_and_ended(path: Path) -> None:
    tegrastats(path, line_of("Jetson Orin Nano, JetPack 6, busy"), "GPU: fast")
    with board.Tegrastats() as stats:
        child, started = stats.child, time.perf_counter()
        while len(stats.lines) < 6 and time.perf_counter() - started < 20:
            time.sleep(0.01)
        samples = stats.between(started, time.perf_counter())
        assert stats.between(0, started - 100) == []
    assert child is not None and child.poll() is not None  # it has been ended
    summed = tegra.summarise(samples)
    assert summed.gpu_mhz_high == 612 and summed.power_mw == 8535
    assert summed.not_understood[0].strip() == "GPU: fast"  # the raw line is kept


def test_tegrastats_that_cannot_be_had(path: Path) -> None:
    with board.Tegrastats() as stats:
        assert "not on PATH" in stats.missing and stats.between(0, 1e9) == []
    (path / "tegrastats").write_bytes(b"\x7fELF nothing")
    (path / "tegrastats").chmod(0o755)
    with board.Tegrastats() as stats:
        assert "cannot be run" in stats.missing


def test_tegrastats_that_does_not_end_is_killed(path: Path) -> None:
    program(path, "tegrastats",
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('x', flush=True)\nwhile True: time.sleep(1)")  # fmt: skip
    with board.Tegrastats() as stats:
        started = time.perf_counter()
        while not stats.lines and time.perf_counter() - started < 20:
            time.sleep(0.01)
    assert stats.child is not None and stats.child.poll() is not None


def test_the_doctor_on_a_board(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.adapter import doctor

    assert doctor.jetson() == []  # no Jetson
    (path / "nv_tegra_release").write_text("# R35 (release), REVISION: 4.1, GCID: 33958178")
    printing(path, "nvpmodel", (RECORDED / "nvpmodel.txt").read_text())
    printing(path, "jetson_clocks", (RECORDED / "jetson_clocks.txt").read_text())
    library = "/usr/local/cuda/lib64/libnvrtc.so.11.2"
    monkeypatch.setattr(doctor, "nvrtc_found", lambda: (library, False))
    rows = {row.what.removeprefix("Jetson: "): row for row in doctor.jetson()}
    assert rows["JetPack"].ok and "CUDA 11.4" in rows["JetPack"].detail
    assert not rows["NVRTC"].ok and rows["NVRTC"].install == f"export NVRTC_PATH={library}"
    assert not rows["GPU clock held"].ok and "sudo jetson_clocks" in rows["GPU clock held"].install
    assert rows["power mode"].detail == "15W" and not rows["tegrastats"].ok
    assert not any(row.needed for row in rows.values())  # TGX runs there without all that
    (path / "nv_tegra_release").write_text("# R32 (release), REVISION: 7.6, GCID: 38171779")
    nano = next(row for row in doctor.jetson() if row.what == "Jetson: JetPack")
    assert not nano.ok and "DEVICE=TGX" in nano.install


def test_where_tinygrad_looks_for_nvrtc_is_asked_of_tinygrad() -> None:
    from tgx.adapter import doctor, nvrtc

    ours, tinygrads = doctor.nvrtc_found()
    assert bool(ours) == bool(nvrtc.installed()) and isinstance(tinygrads, bool)
