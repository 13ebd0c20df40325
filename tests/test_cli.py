"""The command line: what it prints, what it returns, and scripts run as Python would run them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

from tgx import __version__, cli, errors
from tgx.commands import common

SHOW = """
import os, sys
import beside
print(__name__, sys.argv, sys.path[0] == os.path.dirname(os.path.realpath(__file__)), beside.NAME)
print(sys.modules["__main__"].__dict__ is globals(), __spec__, os.path.isabs(__file__))
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("NAME = 'a module beside the script'\n")
    path = tmp_path / "show.py"
    path.write_text(SHOW)
    return path


# **************** tgx run ****************


def test_a_script_runs_as_python_would_run_it(fresh: Run, script: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ours = fresh("-m", "tgx", "run", script, "--epochs", "2", "-h", cwd=elsewhere)
    plain = fresh(script, "--epochs", "2", "-h", cwd=elsewhere)
    assert ours.stdout == plain.stdout and "a module beside the script" in plain.stdout
    assert ours.returncode == plain.returncode == 3


def test_a_module_runs_as_python_would_run_it(fresh: Run, script: Path) -> None:
    script.write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0], __spec__.name)\n")
    ours = fresh("-m", "tgx", "run", "-m", "show", "x", cwd=script.parent)
    plain = fresh("-m", "show", "x", cwd=script.parent)
    assert ours.stdout == plain.stdout and ours.returncode == plain.returncode == 0


def test_a_script_runs_on_tgx(fresh: Run, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        "import multiprocessing\n"
        "from tinygrad import Device, Tensor\n"
        "def f(n): return Device.DEFAULT, Tensor([n]).add(1).item()\n"
        "if __name__ == '__main__':\n"
        "    print(f(1), multiprocessing.get_context('spawn').Pool(1).map(f, [2]))\n"
    )
    assert fresh("-m", "tgx", "run", path).stdout == "('TGX', 2) [('TGX', 3)]\n"
    told = fresh("-m", "tgx", "run", path, DEVICE="PYTHON")
    assert told.stdout == "('PYTHON', 2) [('PYTHON', 3)]\n"


def test_a_scripts_error_is_its_own(fresh: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    raise ValueError('mine')\nf()\n")
    ours, plain = fresh("-m", "tgx", "run", path), fresh(path)
    assert ours.returncode == plain.returncode == 1
    assert ours.stderr == plain.stderr and "wrong.py" in plain.stderr
    installed = tmp_path / "tgx"  # as pip makes it: a frame of its own
    installed.write_text("import sys\nfrom tgx.cli import main\nsys.exit(main())\n")
    assert fresh(installed, "run", path).stderr == plain.stderr
    path.write_text("def f(:\n")
    assert fresh("-m", "tgx", "run", path).stderr == fresh(path).stderr


def test_no_script(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in [([], "which script"), (["no such.py"], "cannot read no such.py")]:
        with pytest.raises(SystemExit, match=said):
            cli.main(["run", *arguments])


# **************** devices, doctor ****************


def test_devices(fresh: Run) -> None:
    done = fresh("-m", "tgx", "devices", "--json")
    states = {state["name"]: state for state in json.loads(done.stdout)}
    assert done.returncode == 0
    assert states["TGX"]["works"] and states["TGX"]["default"]
    assert states["PYTHON"]["works"] and not states["PYTHON"]["default"]
    assert not states["CPU"]["works"] and "'clang', which is not on PATH" in states["CPU"]["detail"]
    assert [state["default"] for state in states.values()].count(True) == 1


def test_devices_for_people(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from tgx.adapter import devices

    states = [
        devices.DeviceState("CPU", False, False, "no [clang]"),
        devices.DeviceState("TGX", True, True, "renderers: TGX"),
    ]
    monkeypatch.setattr(devices, "device_states", lambda: iter(states))
    assert cli.main(["devices"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "   device  works here",
        "   CPU     no          no [clang]",
        "*  TGX     yes         renderers: TGX",
        "",
        "* is the default. Choose another with DEVICE=NAME.",
    ]
    monkeypatch.setattr(devices, "device_states", lambda: iter(states[:1]))
    assert cli.main(["devices"]) == 1


def test_doctor(fresh: Run) -> None:
    done = fresh("-m", "tgx", "doctor", "--json", TGX_CHEK="1")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0
    for what in ("Python", "tinygrad", "llvmlite", "numpy", "CPU", "threads", "device TGX", "hook"):
        assert found[what]["ok"], found[what]
    assert "LLVM" in found["llvmlite"]["detail"] and int(found["threads"]["detail"]) >= 1
    assert found["program cache"]["ok"]
    assert not found["clang"]["ok"] and found["clang"]["install"]
    assert found["dot"]["ok"] and "graphviz-pure" in found["dot"]["detail"]
    assert "DEV" not in found  # nobody set it
    assert not found["TGX_CHEK"]["ok"] and found["TGX_CHEK"]["install"] == "unset TGX_CHEK"
    assert {"tinygrad-tgx[peers]", "tinygrad-tgx[cuda]", "tinygrad-tgx[test]"} <= set(found)
    assert all(f["install"] for f in found.values() if not f["ok"])
    assert "tgx[" not in done.stdout.replace("tinygrad-tgx[", "")


def test_doctor_fails_only_if_tgx_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tgx.adapter import doctor

    dot = doctor.Finding("dot", False, False, "not on PATH", "drawings", "get dot")
    monkeypatch.setattr(doctor, "examine", lambda: [dot])
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "get dot" in shown and shown.endswith("TGX runs here.\n")
    llvmlite = doctor.Finding("llvmlite", False, True, "no", "all", "get llvmlite")
    monkeypatch.setattr(doctor, "examine", lambda: [dot, llvmlite])
    assert cli.main(["doctor"]) == 1
    assert "get llvmlite" in capsys.readouterr().out


def test_without_tinygrad(root: Path) -> None:
    """-S: no site-packages at all, so everything is missing."""

    def tgx(command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-S", "-m", "tgx", command]
        return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)

    doctor = tgx("doctor")
    assert doctor.returncode == 1 and "Traceback" not in doctor.stderr, doctor.stderr
    assert "pip install 'tinygrad>=0.14,<0.15'" in doctor.stdout
    assert doctor.stdout.endswith("TGX does not run here.\n")
    devices = tgx("devices")
    assert devices.returncode == 2 and devices.stderr.splitlines() == [
        "tgx devices: found no tinygrad",
        f"  expected: tinygrad 0.14.x, which tgx {__version__} is made for",
        "  next: python -m pip install 'tinygrad>=0.14,<0.15'",
    ]


def test_ctrl_c_is_the_scripts_too(fresh: Run, tmp_path: Path) -> None:
    path = tmp_path / "endless.py"
    path.write_text(
        "import os, signal\n"
        # who starts the tests in the background leaves them with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    ours, plain = fresh("-m", "tgx", "run", path), fresh(path)
    assert ours.returncode == plain.returncode == -2
    assert ours.stderr == plain.stderr


# **************** all commands ****************


@pytest.mark.pure
def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name}" in shown for name in cli.COMMANDS)
    for name, command in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as exit:
            cli.main([name, "--help"])
        shown = capsys.readouterr().out
        assert exit.value.code == 0 and command.example in " ".join(shown.split())
        assert command.example.startswith(f"tgx {name}")


@pytest.mark.pure
def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"tinygrad-tgx {__version__}\n"


@pytest.mark.pure
def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nonsense"], ["devices", "--nonsense"]):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2


@pytest.mark.pure
def test_an_error_is_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fail:
        def add_arguments(self, parser: argparse.ArgumentParser) -> None:
            pass

        def run(self, options: common.Options) -> int:
            raise errors.BadInput("a.txt is empty", "a trace", "tgx trace SCRIPT")

    monkeypatch.setitem(cli.COMMANDS, "fail", cli.Command("fail", "tgx fail", Fail()))
    assert cli.main(["fail"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "tgx fail: a.txt is empty",
        "  expected: a trace",
        "  next: tgx trace SCRIPT",
    ]
    monkeypatch.setenv("TGX_TRACEBACK", "1")
    with pytest.raises(errors.BadInput):
        cli.main(["fail"])


@pytest.mark.pure
def test_a_reader_that_leaves_early(root: Path, tmp_path: Path) -> None:
    """`tgx doctor | head -n 1` is not an error worth a traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-S", "-m", "tgx", "doctor", "--json"],
            cwd=root,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.pure
def test_the_command_line_is_quick_and_needs_no_tinygrad(root: Path) -> None:
    """-S: no site-packages, so anything but the standard library would be missing."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tgx", "--version"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"tinygrad-tgx {__version__}\n", done.stderr


@pytest.mark.pure
def test_a_table_on_a_terminal_is_drawn_by_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    common.print_table(("a", "b"), [("1", "[bold]not markup[/bold]")])
    assert "[bold]not markup[/bold]" in capsys.readouterr().out
