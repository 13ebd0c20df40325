"""tests/measure_gpu.py in full, with TGX in the GPU's place and a stand-in for NVRTC."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import measure_gpu
import pytest
from test_hardware_offline import stand_in  # noqa: F401 - a fixture
from test_hardware_timing import SCRIPT
from tinygrad import Device

from tgx.adapter import board, measure
from tgx.hardware import profiles
from tgx.hardware.measure import Timing

FILES = ("profile.toml", "1-fit-predicted.json", "2-fit-measured.json", "3-constants.json",
         "4-try-predicted.json", "5-try-measured.json", "report.json")  # fmt: skip


@pytest.mark.usefixtures("stand_in")
def test_a_rehearsal_leaves_every_file_and_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, value in (("DEV", Device.DEFAULT), ("DEVICE", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(measure_gpu, "libraries", dict)
    quick = [(name, Timing((1e-3, 1.1e-3), 100)) for name in ("launch", "graph_launch")]
    monkeypatch.setattr(measure, "benchmarks", lambda: iter(quick))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.split("step = TinyJit")[0])
    out = tmp_path / "out"
    words = ["--device", "jetson-orin-nano-super", "--mode", "15W", "--stand-in", Device.DEFAULT,
             "--out", str(out), "--seconds", "0.01", "--batch", "2", "--script", str(script),
             "--fit", "net,net-train", "--try", "net"]  # fmt: skip
    assert measure_gpu.main(words) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == set(FILES)
    assert [said.index(str(out / name)) for name in FILES] == sorted(
        said.index(str(out / name)) for name in FILES)  # each kept before the next  # fmt: skip
    filled = profiles.read(out / "profile.toml")
    assert filled.value("graph_launch") == 10.0 and filled.value("sms") == 8
    data = {name: json.loads((out / name).read_text()) for name in FILES[1:]}
    before, after = (data[name]["steps"][0]["kernels"] for name in FILES[4:6])
    assert [k["model_us"] for k in before] == [k["model_us"] for k in after]
    assert all(k["measured_us"] is None for k in before) and all(k["measured_us"] for k in after)
    fitted = data["3-constants.json"]
    assert fitted["loss_after"] <= fitted["loss_before"] and fitted["fitted_to"] == "net,net-train"
    assert data["4-try-predicted.json"]["fitted"] is bool(fitted["constants"])
    report = data["report.json"]
    assert report["rehearsal"] is True and report["reached"] is False
    assert report["errors"]["all"]["count"] == 2 and report["before"]["all"]["count"] > 8
    assert "mean nothing" in said and "not reached" in said


def test_without_the_gpu_it_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("DEV", Device.DEFAULT), ("DEVICE", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(measure_gpu, "libraries", dict)
    monkeypatch.setattr(board, "gpu_arch", lambda: "sm_89")
    with pytest.raises(SystemExit, match="the GPU here is sm_89, h200 is sm_90"):
        measure_gpu.main(["--device", "h200", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert measure_gpu.main(["--device", "h2000"]) == 2
    assert "did you mean h200" in capsys.readouterr().err


def test_pips_compiler_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    plain = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: str(p) != "/usr/local/cuda" and plain(p))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = measure_gpu.libraries()
    assert found == {"NVRTC_PATH": str(library), "CUDA_PATH": str(tmp_path / "nvidia/cuda_runtime")}
    monkeypatch.setattr(sys, "path", [])
    assert measure_gpu.libraries() == {}
