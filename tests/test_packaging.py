"""The package as users get it: wheel, source distribution, editable install; from elsewhere and
from the checkout itself. Each is installed into an environment of its own, without a network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import supply
from conftest import ROOT, make_venv, run_python

pytest.importorskip("hatchling", reason="comes with the extra 'test'")
pytest.importorskip("editables", reason="comes with the extra 'test'")
pytest.importorskip("pip", reason="an environment without pip installs nothing")

SCRIPT = """
import multiprocessing, sys
from tinygrad import Device, Tensor
from tinygrad.engine import worker

def double(n):
    return Device.DEFAULT, (Tensor([n]) * 2).tolist()

if __name__ == "__main__":
    x = Tensor([1., 2, 3]).realize()
    Tensor.realize(x + 1, x.sum())  # two kernels, compiled in tinygrad's own pool
    assert worker.worker_pool is not None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(double, [1, 2]), sys.modules["tgx"].__file__)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as it stands, links as links: building leaves this one alone."""
    return supply.copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel built from it, as for a release."""
    return supply.build(checkout, tmp_path_factory.mktemp("release") / "built")


def _run(*arguments: object, cwd: Path) -> None:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def install(python: Path, *arguments: object) -> None:
    """`pip install` into another environment, with what is on this machine."""
    _run(
        *("-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"),
        *("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *arguments),
        cwd=python.parent,
    )


@pytest.fixture(scope="module")
def from_wheel(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python, _ = make_venv(tmp_path_factory.mktemp("wheel"))
    (wheel,) = built.glob("*.whl")
    install(python, wheel)
    return python


@pytest.fixture(scope="module")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python, _ = make_venv(tmp_path_factory.mktemp("editable"))
    install(python, "--editable", checkout)
    return python


@pytest.fixture(params=["from_wheel", "editable"])
def python(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


# **************** what is in them ****************


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "Name: tinygrad-tgx\n" in metadata and "Requires-Dist: tinygrad<0.15,>=0.14" in metadata
    assert "License-Expression: MIT" in metadata
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"tgx", "tinygrad_tgx.pth", info}
    about = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    assert {name for name in names if name.startswith(info)} == {f"{info}/{n}" for n in about}
    # every file of the three rooms that git does not ignore, and only those
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:  # a checkout, not an unpacked source distribution
        files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
        rooms = {name for name in files if name.startswith("tgx/")}
        rooms |= {f"tgx/{name}" for name in files if name.startswith(("devices/", "kernels/"))}
        packed = {name for name in names if name.startswith("tgx/")}
        assert packed == rooms - {"tgx/adapter/tinygrad_tgx.pth"}


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built: Path) -> None:
    (archive,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(archive) as tar, zipfile.ZipFile(wheel) as packed:
        assert not any(member.issym() for member in tar)
        names = {name.partition("/")[2] for name in tar.getnames()}
        rooms = {name for name in packed.namelist() if name.startswith("tgx/")}
    about = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    assert names == rooms | about | {"tgx/adapter/tinygrad_tgx.pth"}


def test_building_again_gives_the_same_bytes(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    """In another folder, from files made in another order and at another time, for their owner
    only, in another time zone and locale; and a wheel straight from the checkout is the one from
    the source distribution."""
    elsewhere = supply.unlike(checkout, tmp_path)
    again = supply.build(elsewhere, tmp_path / "again", umask=0o077, **supply.ELSEWHERE)
    assert supply.digests(again) == supply.digests(built) and len(supply.digests(built)) == 2
    straight = tmp_path / "straight"
    _run("-m", "hatchling", "build", "-t", "wheel", "-d", straight, cwd=elsewhere)
    (wheel,) = straight.iterdir()
    assert supply.digests(straight).items() <= supply.digests(built).items(), wheel.name


def test_a_release_is_dated_by_source_date_epoch(checkout: Path, tmp_path: Path) -> None:
    """And by nothing else: the default is hatchling's own date, 2020-02-02."""
    for variables, year in (({}, 2020), ({"SOURCE_DATE_EPOCH": "1700000000"}, 2023)):
        (wheel,) = supply.build(checkout, tmp_path / str(year), **variables).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            assert {each.date_time[0] for each in archive.infolist()} == {year}
            assert {each.external_attr >> 16 & 0o777 for each in archive.infolist()} == {0o644}


# **************** used from elsewhere, and from the checkout ****************


def test_scripts_and_their_workers(python: Path, tmp_path: Path, checkout: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    for cwd, variable in ((tmp_path, "DEVICE"), (checkout, "DEV")):
        variables = {variable: "TGX", "PARALLEL": "1", "XDG_CACHE_HOME": str(tmp_path / variable)}
        done = run_python(python, tmp_path, script, cwd=cwd, **variables)
        assert done.stdout.startswith("('TGX', [2]) ('TGX', [4]) "), done.stderr
    # an editable install runs the checkout; a wheel runs its own copy, even in the checkout
    assert (str(checkout) in done.stdout) == ("editable" in str(python))


def test_the_command(python: Path, tmp_path: Path, checkout: Path) -> None:
    done = run_python(python, tmp_path, "-m", "tgx", "devices", "--json", cwd=checkout)
    assert done.returncode == 0, done.stderr
    states = {state["name"]: state for state in json.loads(done.stdout)}
    assert states["TGX"]["works"] and states["TGX"]["default"]
    for command in ([python.with_name("tgx")], [python, "-m", "tgx"]):
        shown = subprocess.run(
            [*command, "--version"], cwd=tmp_path, capture_output=True, text=True
        )
        assert shown.stdout.startswith("tinygrad-tgx "), shown.stderr


def test_pytest_in_the_checkout(python: Path, tmp_path: Path, checkout: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-k", "compile_workers or unknown_device_in")
    arguments = ("-m", "pytest", *options, "tests/test_hook.py")
    done = run_python(python, tmp_path, *arguments, cwd=checkout)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_package_data_is_there(python: Path, tmp_path: Path) -> None:
    script = (
        "from importlib.resources import files; import tgx.devices\n"
        "print(*sorted(p.name for p in files(tgx.devices).iterdir() if p.name.endswith('.ll')))"
    )
    done = run_python(python, tmp_path, "-c", script)
    assert done.stdout.split() == sorted(path.name for path in (ROOT / "devices").glob("*.ll"))


def test_a_checkout_that_was_never_installed(checkout: Path, tmp_path: Path) -> None:
    """`python -m tgx run` needs no .pth, and tinygrad's compile workers find tgx without one."""
    python, _ = make_venv(tmp_path / "bare")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("    with", "    print('compiled')\n    sys.exit()\n    with"))
    arguments = ("-m", "tgx", "run", script)
    done = run_python(python, tmp_path, *arguments, cwd=checkout, PARALLEL="1")
    assert done.stdout == "compiled\n", done.stderr
    assert run_python(python, tmp_path, "-c", "import tgx").returncode == 1


def test_an_editable_install_whose_checkout_is_gone(checkout: Path, tmp_path: Path) -> None:
    """The .pth stays silent: every Python of that environment runs it."""
    python, _ = make_venv(tmp_path / "orphan")
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True)
    install(python, "--editable", copy)
    assert run_python(python, tmp_path, "-c", "import tgx").returncode == 0
    shutil.rmtree(copy)
    done = run_python(python, tmp_path, "-c", "print('fine')")
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_pythons(version: str, built: Path, tmp_path: Path) -> None:
    """The wheel and its dependencies from the package index: this one needs a network."""
    other = shutil.which(f"python{version}")
    works = other and subprocess.run([other, "-c", ""], capture_output=True, check=False)
    if not works or works.returncode:
        pytest.skip(f"there is no python{version} on PATH")
    subprocess.run([other, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (wheel,) = built.glob("*.whl")
    _run("-m", "pip", "--python", python, "install", "--quiet", wheel, cwd=tmp_path)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = run_python(python, tmp_path, script, DEVICE="TGX", PARALLEL="1", PATH=os.defpath)
    assert done.stdout.startswith("('TGX', [2]) ('TGX', [4]) "), done.stderr
