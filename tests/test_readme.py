"""The README: what it says can be done. `.ci/run` runs its commands in a new environment."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tgx import cli

pytestmark = pytest.mark.pure

TEXT = (ROOT / "README.md").read_text()


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
    assert found, f"README.md has no section {heading!r}"
    return found[1]


def commands(heading: str) -> list[str]:
    """The commands that .ci/run finds in a section."""
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", section(heading), re.M | re.S)
        for line in block.splitlines()
    ]


def test_two_commands_set_up_one_runs_and_one_tests() -> None:
    assert [len(commands(heading)) for heading in ("Set up", "Run", "Test")] == [2, 1, 1]
    assert commands("Run") == ["DEVICE=TGX python examples/mnist.py"]
    assert commands("Test") == ["python -m pytest"]


def test_it_says_what_tgx_is_in_ten_lines() -> None:
    about = TEXT.split("## Set up")[0].splitlines()[1:]
    assert len([line for line in about if line]) <= 10


def test_every_command_is_in_the_table_and_every_row_is_a_command() -> None:
    rows = set(re.findall(r"^\| `tgx ([a-z]+)", section("Use"), re.M))
    assert rows == set(cli.COMMANDS), "each command has one row in README.md, under Use"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT) + re.findall(r'src="([^"]+)"', TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_extras_are_named_as_they_are_installed() -> None:
    metadata = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"(\S*)tgx\[(\w+)\]", TEXT)
    assert named and all(before.endswith("tinygrad-") for before, _ in named)
    extras = metadata.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert {extra for _, extra in named} <= set(re.findall(r"^(\w+) = \[", extras, re.M))


def test_nothing_in_the_repository_says_tgx_brackets() -> None:
    """The bare name is somebody else's: `pip install 'tgx[cuda]'` would fetch a stranger."""
    for path in [*ROOT.glob("tgx/**/*.py"), *ROOT.glob("examples/*.py"), ROOT / "README.md"]:
        wrong = re.findall(r"(?<!tinygrad-)\btgx\[\w+\]", path.read_text())
        assert not wrong, f"{path}: {wrong}"


def test_ci_finds_the_readmes_commands(tmp_path: Path) -> None:
    """Its sed reads the same blocks as `commands` above."""
    if not (shutil.which("bash") and shutil.which("sed")):
        pytest.skip(".ci/run needs bash and sed; PATH has no such program")
    script = (ROOT / ".ci/run").read_text()
    (line,) = (line.strip() for line in script.splitlines() if "commands=$(sed" in line)
    for heading in ("Set up", "Run", "Test"):
        program = f'set -- "{heading}"\n{line}\nprintf "%s\\n" "$commands"'
        shown = subprocess.run(
            ["bash", "-euc", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert shown.stdout.splitlines() == commands(heading)
    assert f"python{sys.version_info[0]}" in commands("Set up")[0]


def test_the_commands_about_gpus_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is run by tests of its own (test_hardware_*, test_jetson, test_measure_gpu); here, that
    the README's arguments are theirs, and that what it names is there."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    import measure_gpu

    from tgx.hardware import profiles

    text = section("A GPU that is not here, and one that is")
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
             for line in block.splitlines()]  # fmt: skip
    assert len(lines) == 6
    for line in lines:
        program, *words = shlex.split(line)
        if program == "tgx":
            options = cli.make_parser().parse_args(words)
            assert (ROOT / options.script[0]).is_file()
            if options.device:
                profiles.machine(profiles.find(options.device), options.mode)
            continue
        assert (ROOT / words[0].replace("board/", "examples/")).is_file()
        if words[0] == "tests/measure_gpu.py":
            profiles.machine(profiles.find(measure_gpu.arguments(words[1:]).device))
    source = (ROOT / "examples/jetson.py").read_text()
    assert all(word in source for word in ('"pack"', '"run"', '"--out"'))
