"""The benchmarks of `tgx devices measure` run, and measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tgx import cli
from tgx.adapter import board, measure
from tgx.hardware import profiles
from tgx.hardware.measure import Timing, facts


def test_each_benchmark_gives_a_plausible_figure() -> None:
    timings = {
        "copy": measure.copy(1 << 16),
        "latency": measure.latency(1 << 10, 1 << 12),
        "fma": measure.fma(64),
    }
    found = {name: fact.value for name, fact in facts(timings).items()}
    assert 0.01 < found["copy"] < 10_000  # GB/s
    assert 0.3 < found["latency"] < 5_000  # ns; 64 KiB are in the caches
    assert 0.01 < found["fma"] < 100_000  # GFLOPS


def test_the_walk_meets_every_line_before_one_again() -> None:
    """A cycle that closes early would stay in the cache, and the latency be that of the cache."""
    slow = measure.latency(1 << 20, 1 << 14)  # 64 MiB
    fast = measure.latency(1 << 6, 1 << 14)  # 4 KiB
    assert slow.each > 3 * fast.each


def test_names_become_file_names() -> None:
    assert measure.slug("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon-2-20ghz"
    assert measure.slug("AMD EPYC 7B12 64-Core Processor") == "amd-epyc-7b12-64-core"
    assert measure.slug("???") == "cpu"
    assert measure.cores() >= 1 and measure.memory_gb() > 0.1 and measure.cpu_name()


def test_the_command_writes_a_profile_that_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profiles, "user_folder", lambda: tmp_path)
    quick = [(name, Timing((1e-3, 1.6e-3, 1.7e-3), 100)) for name in ("launch", "copy")]
    monkeypatch.setattr(measure, "benchmarks", lambda: iter(quick))
    assert cli.main(["devices", "measure"]) == 0
    out, err = capsys.readouterr()
    (path,) = tmp_path.glob("*.toml")
    assert str(path) in out and "launch: 10.0 us" in err
    assert "something else used this machine" in err
    assert profiles.read(path).value("launch") == 10.0
    assert cli.main(["devices", "show", path.stem, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["launch"]["confidence"] == "measured"
    monkeypatch.setattr(board, "gpu_arch", lambda: "sm_87")
    monkeypatch.setenv("DEV", "CUDA")
    assert cli.main(["devices", "measure", "jetson-orin-nano-super", "--toml"]) == 0
    filled = profiles.parse(capsys.readouterr().out, "x")
    assert filled.value("launch") == 10.0 and filled.value("sms") == 8


@pytest.mark.parametrize(
    ("device", "gpu", "name", "said"),
    [
        ("TGX", "", "h200", "h200 (sm_90) cannot be filled on the device TGX; there is no NVIDIA"),
        ("TGX", "sm_90", "h200", "on the device TGX; there is an NVIDIA GPU of sm_90 here"),
        ("CUDA", "sm_90", "jetson-nano", "(sm_53) cannot be filled on the device CUDA"),
        ("CUDA", "sm_90", "", "the profile of a CPU cannot be filled on the device CUDA"),
    ],
)
def test_no_profile_is_filled_with_another_devices_numbers(
    device: str, gpu: str, name: str, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Such a file would be the user's own, win over the shipped one, and spoil every prediction."""
    monkeypatch.setattr(profiles, "user_folder", lambda: tmp_path)
    monkeypatch.setattr(board, "gpu_arch", lambda: gpu)
    monkeypatch.setattr(measure, "benchmarks", lambda: pytest.fail("measured"))
    monkeypatch.setenv("DEV", device)
    monkeypatch.delenv("DEVICE", raising=False)
    assert cli.main(["devices", "measure", name]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_shipped_cpu_profile_says_where_it_was_measured() -> None:
    (found,) = (p for p in profiles.load((profiles.SHIPPED,)).values() if p.kind == "cpu")
    measured = ("launch", "graph_launch", "copy", "latency", "fma")
    assert {found.facts[name].confidence for name in measured} == {"measured"}
    assert found.sources["measured"].startswith("tgx devices measure on the device TGX")
    assert any("virtual machine" in note for note in found.notes)


def test_showing_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "show"]) == 0
    assert "jetson-orin-nano-8gb" in capsys.readouterr().out
    assert cli.main(["devices", "show", "jetson-orin-nano-8gb"]) == 0
    shown = capsys.readouterr().out
    assert "mode 15W" in shown and "unknown" in shown and "nvpmodel.conf" in shown
    assert cli.main(["devices", "show", "orin-nano"]) == 2
    assert "jetson-orin-nano-4gb, jetson-orin-nano-8gb" in capsys.readouterr().err
