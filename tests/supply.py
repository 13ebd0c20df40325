"""What tgx is made of and runs on, checked in environments made for it. A command, not a test of
CI's: it needs a package index.

    python tests/supply.py lowest      the fast tests on the lowest releases pyproject.toml allows
    python tests/supply.py newest      the same on the newest
    python tests/supply.py readme      README's "Set up" and "Test" where PATH has only Python
    python tests/supply.py bounds      each dependency: its bounds, what they were tested with, and
                                       what is released beyond them
    python tests/supply.py licences    writes LICENCES.md, from what is installed here
    python tests/supply.py wheel       builds the release twice, in unlike places, and compares
    python tests/supply.py jetpack     notes in recorded/wheels.json which wheels pip would take on
                                       aarch64 with JetPack 4's glibc, the oldest of any Jetson

`--python python3.13` chooses the interpreter; what stands after `--` goes to pytest. `lowest` and
`newest` note in recorded/supply.json what they ran with, if all passed and nothing was left out;
test_supply.py holds pyproject.toml to that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests/recorded/supply.json"
WHEELS = ROOT / "tests/recorded/wheels.json"
LICENCES = ROOT / "tests/LICENCES.md"

# What a copy of the checkout is made without.
BUILT = ("__pycache__", ".git", ".venv", "venv", "build", "dist", ".*_cache", ".hypothesis",
         ".coverage*")  # fmt: skip


def copy_checkout(folder: Path) -> Path:
    """A copy of the checkout as it stands, links as links: building there leaves this alone."""
    copy = folder / "tinygrad-tgx"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*BUILT))
    return copy


# **************** bounds ****************


def project() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: "" are the dependencies, then the extras; "build" is for
    building. tgx itself, which extras name, is left out."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {"": config["project"]["dependencies"], "build": config["build-system"]["requires"]}
    groups |= config["project"]["optional-dependencies"]
    asked = {group: [Requirement(text) for text in texts] for group, texts in groups.items()}
    ours = canonicalize_name(config["project"]["name"])
    return {
        group: [each for each in requirements if canonicalize_name(each.name) != ours]
        for group, requirements in asked.items()
    }


def bounds(requirement: Requirement) -> tuple[Version, Version]:
    """(the lowest release allowed, the first that is not)."""
    found = {spec.operator: Version(spec.version) for spec in requirement.specifier}
    if set(found) != {">=", "<"}:
        raise ValueError(f"{requirement}: one lower bound with >= and one upper bound with <")
    return found[">="], found["<"]


def next_after(version: Version) -> Version:
    """The first release that may break what `version` kept: the next major one; the next minor one
    of what is still at 0."""
    return Version(f"0.{version.minor + 1}" if version.major == 0 else f"{version.major + 1}")


TESTED = ("", "build", "test", "dev")  # the groups that `lowest` and `newest` install


def tested_requirements() -> dict[str, Requirement]:
    """By name, what the two environments are made of."""
    asked = project()
    return {canonicalize_name(each.name): each for group in TESTED for each in asked[group]}


def recorded() -> dict[str, Any]:
    """What was tested: "lowest 3.11", "newest 3.13" → Python, machine, packages, outcome."""
    found: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return found


def show_bounds() -> None:
    """A table; "beyond" is the newest release, where the bounds exclude it."""
    runs = recorded()
    print(f"{'':24}{'allowed':18}{'tested':34}beyond")
    for group, requirements in project().items():
        for requirement in requirements:
            lower, upper = bounds(requirement)
            name = canonicalize_name(requirement.name)
            tested = sorted({Version(run["packages"][name]) for run in runs.values()
                             if name in run["packages"]})  # fmt: skip
            newest = _newest(requirement.name)
            print(f"{name:24}{f'>={lower}, <{upper}':18}{', '.join(map(str, tested)) or '-':34}"
                  f"{newest if newest and newest >= upper else ''}  {group}")  # fmt: skip


def _newest(name: str) -> Version | None:
    command = [sys.executable, "-m", "pip", "index", "versions", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Available versions: ([^,\n]+)", done.stdout)
    return Version(found[1]) if found else None


# **************** environments ****************


def environment(python: str, folder: Path, *arguments: str) -> Path:
    """A new environment with what pip makes of `arguments`; its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / "bin/python"
    subprocess.run([inside, "-m", "pip", "install", "--quiet", *arguments], check=True)
    return inside


ABOUT = """
import json, platform
from importlib.metadata import distributions
print(json.dumps({
    "python": platform.python_version(),
    "machine": f"{platform.system()} {platform.machine()}",
    "packages": {each.name: each.version for each in distributions()},
}))
"""


def about(python: Path | str) -> dict[str, Any]:
    """An environment: its Python, its machine, and the version of each package but tgx and pip."""
    done = subprocess.run([python, "-c", ABOUT], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    packages = {canonicalize_name(name): version for name, version in found["packages"].items()}
    for name in ("tinygrad-tgx", "pip", "setuptools"):
        packages.pop(name, None)
    return found | {"packages": dict(sorted(packages.items()))}


def run_tests(which: str, python: str, options: list[str]) -> None:
    """ruff, mypy and the fast tests, with the lowest or the newest releases."""
    pins = []
    if which == "lowest":
        pins = [f"{name}=={bounds(each)[0]}" for name, each in tested_requirements().items()]
    with tempfile.TemporaryDirectory(prefix=f"tgx-{which}-") as folder:
        copy = copy_checkout(Path(folder))
        inside = environment(python, Path(folder, "venv"), "-e", f"{copy}[dev]", *pins)
        found = about(inside)
        print(*(f"{name}=={version}" for name, version in found["packages"].items()), flush=True)
        if which == "newest":  # of the lowest: other rules and fewer inferences, nothing of ours
            for tool in (["ruff", "check", "."], ["mypy"]):
                subprocess.run([inside, "-m", *tool], cwd=copy, check=True)
        tests = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        result = shown([str(word) for word in tests], copy, dict(os.environ))
    if not options:
        note(which, found | {"tests": result})


def note(which: str, found: dict[str, Any]) -> None:
    """Writes what was tested into recorded/supply.json."""
    short = ".".join(found["python"].split(".")[:2])
    runs = recorded() | {f"{which} {short}": found}
    RECORD.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")


def shown(command: list[str], cwd: Path, variables: dict[str, str]) -> str:
    """Runs a command, showing what it prints; its last line. Ends this one if it fails."""
    line = ""
    with subprocess.Popen(command, cwd=cwd, env=variables, text=True,
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    return line.strip()


def run_readme(python: str, options: list[str]) -> None:
    """README's "Set up" and "Test", where PATH has Python and nothing else: no compiler, no dot."""
    commands = []
    for heading in ("Set up", "Test"):
        section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        commands += re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    with tempfile.TemporaryDirectory(prefix="tgx-readme-") as folder:
        copy, bare = copy_checkout(Path(folder)), Path(folder, "bin")
        bare.mkdir()
        ask = [python, "-c", "import sys; print(sys.executable)"]
        found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        (bare / "python3").symlink_to(found)
        kept = {name: value for name, value in os.environ.items() if name not in NOT_FRESH}
        script = "".join(commands).rstrip() + " " + shlex.join(options)
        bash = shutil.which("bash") or "bash"
        shown([bash, "-euxc", script], copy, kept | {"PATH": str(bare), "HOME": folder})


NOT_FRESH = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "XDG_CACHE_HOME", "DEV", "DEVICE")


# **************** a board ****************

GLIBC = (2, 27)  # of JetPack 4; 5 has 2.31, 6 has 2.35
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC[1], 16, -1)]
PLATFORMS += ["manylinux2014_aarch64"]
PYTHONS = ("3.11", "3.12", "3.13")


def wheels(version: str, requirements: list[str]) -> list[str]:
    """The files pip would take, for a Python on aarch64 with that glibc. Nothing is installed."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-",
               "--ignore-installed", "--target", "nowhere", "--only-binary=:all:",
               "--implementation", "cp", "--python-version", version,
               *platforms, *requirements]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    install = json.loads(done.stdout)["install"]
    return sorted(each["download_info"]["url"].rpartition("/")[2] for each in install)


def write_wheels() -> None:
    asked = project()[""]
    pins = [f"{each.name}=={bounds(each)[0]}" for each in asked]
    found = {f"newest {version}": wheels(version, list(map(str, asked))) for version in PYTHONS}
    found |= {f"lowest {PYTHONS[0]}": wheels(PYTHONS[0], pins)}
    WHEELS.write_text(json.dumps(found, indent=1) + "\n")


# **************** the release ****************


def build(checkout: Path, folder: Path, umask: int = 0o022, **variables: str) -> Path:
    """The source distribution and, from that, the wheel, as for a release; where they are."""
    folder.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}

    def hatchling(target: str, where: Path) -> None:
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
        done = subprocess.run(command, cwd=where, env=kept | variables, umask=umask,
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr + done.stdout)

    hatchling("sdist", checkout)
    (archive,) = folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(archive) as tar:  # by an attribute: Python before 3.11.4 has no argument
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(unpacked)
        (source,) = Path(unpacked).iterdir()
        hatchling("wheel", source)
    return folder


def unlike(checkout: Path, folder: Path) -> Path:
    """The same files elsewhere: made in another order, at another time, for their owner only."""
    copy = folder / "another place"
    copy.mkdir(parents=True)
    for path in sorted(checkout.rglob("*"), reverse=True):
        target = copy / path.relative_to(checkout)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_file():
            shutil.copyfile(path, target)
            target.chmod(0o600)
            os.utime(target, (1e9, 1e9))
        else:
            target.mkdir(exist_ok=True)
    return copy


ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1",
             "PYTHONUTF8": "0"}  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by name, of the files in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())}  # fmt: skip


def show_wheel() -> None:
    with tempfile.TemporaryDirectory(prefix="tgx-wheel-") as name:
        folder = Path(name)
        checkout = copy_checkout(folder)
        first = build(checkout, folder / "first")
        second = build(unlike(checkout, folder), folder / "second", umask=0o077, **ELSEWHERE)
        (wheel,) = first.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for each in archive.infolist():
                print(f"{each.file_size:8} {each.filename}")
        for file, digest in digests(first).items():
            print(digest, file)
        if digests(first) != digests(second):
            sys.exit("the second build, in another place, gave other bytes")
        print("the second build, in another place, gave the same bytes")


# **************** licences ****************

# What the older ways of saying it mean: the words of `License:` and of the classifiers.
WORDS = {
    "MIT License": "MIT",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD": "BSD-3-Clause",
    "BSD-3-Clause License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "NVIDIA's, proprietary",
    "NVIDIA Proprietary Software": "NVIDIA's, proprietary",
    "LicenseRef-NVIDIA-Proprietary": "NVIDIA's, proprietary",
}


def licence(name: str) -> str:
    """A package's licence, in SPDX's words where it has any."""
    about = metadata.metadata(name)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier", [])
        if line.startswith("License ::") and "DFSG" not in line
    ]
    said = about.get("License-Expression") or ""
    short = about.get("License") or ""
    if not said and len(short) < 60 and "\n" not in short:
        said = short
    said = said or " AND ".join(classifiers) or "not stated"
    return WORDS.get(said, said)


def needed(group: str) -> set[str]:
    """Every package a group asks for, with what those ask for, as far as they are installed."""
    found: set[str] = set()
    queue = list(project()[group])
    while queue:
        each = queue.pop()
        name = canonicalize_name(each.name)
        try:
            theirs = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        if name not in found or each.extras:
            found.add(name)
            for extra in ("", *each.extras):
                queue += [r for r in theirs if not r.marker or r.marker.evaluate({"extra": extra})]
    return found


ONLY_WITH_OLD = {"attrs", "pyee"}  # needed by the lowest releases of hypothesis, of playwright
GROUPS = ("", "build", "test", "dev", "peers", "cuda")


def rows() -> dict[str, tuple[str, str, str]]:
    """The table in LICENCES.md: name → (version read, licence, needed for)."""
    found = {}
    table = LICENCES.read_text().partition(HEADER)[2].split("\n\n", 1)[0]
    for line in table.splitlines():
        name, version, words, group = (cell.strip() for cell in line.strip("|").split("|"))
        found[name] = (version, words, group)
    return found


def here() -> dict[str, tuple[str, str, str]]:
    """The rows of what is installed here."""
    by_name: dict[str, list[str]] = {}
    for group in GROUPS:
        for name in needed(group):
            by_name.setdefault(name, []).append(group or "running")
    return {
        name: (metadata.version(name), licence(name), "running" if "running" in by_name[name]
               else ", ".join(by_name[name]))
        for name in sorted(by_name)
    }  # fmt: skip


def write_licences() -> None:
    """Renews the table's rows of what is installed here; all else in the file stays."""
    old, table = rows(), rows() | here()
    for name in old.keys() & table.keys():  # a group that is not installed here may need it, too
        groups = {*old[name][2].split(", "), *table[name][2].split(", ")}
        known = [group for group in ("running", *GROUPS) if group in groups]
        table[name] = (*table[name][:2], "running" if "running" in groups else ", ".join(known))
    lines = [f"| {name} | {' | '.join(table[name])} |\n" for name in sorted(table)]
    before, header, rest = LICENCES.read_text().partition(HEADER)
    after = rest.split("\n\n", 1)[1]
    LICENCES.write_text(before + header + "".join(lines) + "\n" + after)


HEADER = "| package | version | licence | needed for |\n|---|---|---|---|\n"


def main() -> None:
    words, _, options = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("lowest", "newest", "readme", "bounds", "licences",
                                         "wheel", "jetpack"))  # fmt: skip
    parser.add_argument("--python", default=sys.executable)
    chosen = parser.parse_args(words.split())
    if chosen.what in ("lowest", "newest"):
        run_tests(chosen.what, chosen.python, options.split())
    elif chosen.what == "readme":
        run_readme(chosen.python, options.split())
    else:
        {
            "bounds": show_bounds,
            "licences": write_licences,
            "wheel": show_wheel,
            "jetpack": write_wheels,
        }[chosen.what]()


if __name__ == "__main__":
    main()
