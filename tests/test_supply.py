"""What tgx is made of: bounds that were tested, licences that are known, wheels that a board takes,
and no network while it runs. tests/supply.py is the command behind the records compared here."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import supply
from conftest import ROOT, Run
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

REQUIREMENTS = [(group, each) for group, asked in supply.project().items() for each in asked]
NAMES = [f"{each.name} ({group or 'running'})" for group, each in REQUIREMENTS]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Who may use, change and pass on a program under these need not publish his own.
PERMISSIVE = {"MIT", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "PSF-2.0", "Zlib",
              "Apache-2.0 WITH LLVM-exception", "CC0-1.0", "OFL-1.1", "BSL-1.0"}  # fmt: skip
OTHERS = {  # and those that are none of these: LICENCES.md has a word on each
    "graphviz-pure": "EPL-2.0",
    "hypothesis": "MPL-2.0",
    "pathspec": "MPL-2.0",
    "nvidia-": "NVIDIA's, proprietary",
}


# **************** bounds ****************


@pytest.mark.parametrize(("group", "requirement"), REQUIREMENTS, ids=NAMES)
def test_every_dependency_has_both_bounds_and_they_were_tested(
    group: str, requirement: supply.Requirement
) -> None:
    """The lower bound is a release that passed the fast tests; the upper one is the first that may
    break what the newest that passed them did."""
    lower, upper = supply.bounds(requirement)
    name = canonicalize_name(requirement.name)
    versions = {
        run: Version(found["packages"][name])
        for run, found in supply.recorded().items()
        if name in found["packages"]
    }
    if group not in supply.TESTED:
        return  # what they are tested with is another machine's, or another measurement
    assert min(versions.values()) == lower, "tests/supply.py lowest says what holds"
    assert versions[f"lowest {supply.PYTHONS[0]}"] == lower
    assert supply.next_after(max(versions.values())) == upper, "tests/supply.py newest"


def test_every_python_was_tested() -> None:
    asked = CONFIG["project"]["requires-python"]
    runs = supply.recorded()
    assert asked == f">={supply.PYTHONS[0]},<3.{int(supply.PYTHONS[-1].split('.')[1]) + 1}"
    first, *others = supply.PYTHONS  # with the newest and the first of them runs .ci/run
    for run in (f"lowest {first}", *(f"newest {version}" for version in others)):
        assert re.fullmatch(r"\d+ passed.*", runs[run]["tests"]), run
        assert "failed" not in runs[run]["tests"]


def test_a_requirement_with_half_a_bound_is_refused() -> None:
    for text in ("numpy", "numpy>=1", "numpy<3", "numpy==1.26", "numpy>=1,!=2,<3"):
        with pytest.raises(ValueError, match="one lower bound"):
            supply.bounds(supply.Requirement(text))


def test_the_release_after() -> None:
    after = {"2.4.6": "3", "0.50.1": "0.51", "9.0": "10", "0.2": "0.3"}
    assert {v: str(supply.next_after(Version(v))) for v in after} == after


# **************** licences ****************


def test_the_licences_are_those_of_what_is_installed() -> None:
    """Every package that comes with tgx or an extra has its row; where the row's version is
    installed, its licence is what the package says."""
    rows = supply.rows()
    assert "tinygrad" in rows and list(rows) == sorted(rows)
    for name, (version, licence, _) in supply.here().items():
        assert name in rows.keys() | supply.ONLY_WITH_OLD, "python tests/supply.py licences"
        if name in rows and rows[name][0] == version:
            assert rows[name][1] == licence, name
    every = {name for run in supply.recorded().values() for name in run["packages"]}
    direct = {canonicalize_name(each.name) for _, each in REQUIREMENTS}
    assert direct <= rows.keys()
    assert every - rows.keys() <= supply.ONLY_WITH_OLD


def test_every_licence_is_permissive_or_named() -> None:
    text = supply.LICENCES.read_text().split(supply.HEADER)[1].split("\n\n", 1)[1]
    for name, (_, licence, _) in supply.rows().items():
        strange = set(re.split(r" AND | OR ", licence)) - PERMISSIVE
        expected = {said for start, said in OTHERS.items() if name.startswith(start)}
        assert strange == expected, f"{name}: {licence}"
        if expected and not name.startswith("nvidia-"):
            assert name in text
    assert "NVIDIA's licence" in text


def test_data_has_its_origin_and_terms() -> None:
    text = supply.LICENCES.read_text()
    for folder in (ROOT / "examples/data").iterdir():
        assert f"| `examples/data/{folder.name}` |" in text
    assert CONFIG["project"]["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


# **************** a board ****************


def test_wheels_fit_the_oldest_boards_glibc() -> None:
    """JetPack 4 has glibc 2.27. What pip would take there, recorded by `supply.py jetpack`: each
    dependency, as a wheel for that glibc, of a version that pyproject.toml allows."""
    recorded = json.loads(supply.WHEELS.read_text())
    wanted = {f"newest {version}" for version in supply.PYTHONS} | {f"lowest {supply.PYTHONS[0]}"}
    assert recorded.keys() == wanted
    fits = {f"manylinux_2_{minor}_aarch64" for minor in range(5, supply.GLIBC[1] + 1)}
    fits |= {"manylinux2014_aarch64", "any"}
    for run, files in recorded.items():
        python = "cp" + run.split()[1].replace(".", "")
        parsed = {name: (version, tags) for name, version, _, tags in
                  map(parse_wheel_filename, files)}  # fmt: skip
        for requirement in supply.project()[""]:
            version, tags = parsed[canonicalize_name(requirement.name)]
            assert version in requirement.specifier
            if run.startswith("lowest"):
                assert version == supply.bounds(requirement)[0]
            assert any(tag.platform in fits and tag.interpreter in (python, "py3") for tag in tags)


# **************** no network ****************

# Python runs it at start, in children too. Sockets of this machine's own (a path) stay.
NO_NETWORK = """
import sys
def refuse(event, arguments):
    network = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    network |= event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple)
    if network:
        print("NETWORK", event, arguments, file=sys.stderr)
        raise OSError("there is no network here")
sys.addaudithook(refuse)
"""
MNIST = (ROOT / "examples/mnist.py", "--limit", "320", "--epochs", "1")


def test_the_commands_need_no_network_and_warn_of_nothing(fresh: Run, tmp_path: Path) -> None:
    """Warnings are errors, also what Python's development mode sees beside them: files left open,
    and what the next Python will not do any more."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(NO_NETWORK)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return fresh("-X", "dev", "-W", "error", *arguments, PYTHONPATH=str(hook))

    assert "NETWORK" in run("-c", "import urllib.request as r; r.urlopen('http://[::1]:9')").stderr
    assert "ResourceWarning" in run("-c", "open('/dev/null')").stderr
    for command in (
        ("doctor", "--json"),
        ("trace", "--level", "full", "-o", tmp_path / "trace", *MNIST),
        ("show", tmp_path / "trace"),
        ("compare", tmp_path / "trace", tmp_path / "trace"),
        ("backward", "(x*x + x).sum()", "x=2.0"),
    ):
        done = run("-m", "tgx", *command)
        found = re.search("NETWORK|Warning", done.stderr)
        assert done.returncode == 0 and not found, done.stderr
