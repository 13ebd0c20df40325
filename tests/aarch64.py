"""TGX on another processor: tests on an emulated aarch64, by qemu's user mode. A command for
Debian; it needs no root, and nothing of it is installed in the system.

    python tests/aarch64.py                                 the tests named in TESTS
    python tests/aarch64.py tests/test_device.py -k half    others, with pytest's arguments
    python tests/aarch64.py --folder DIR …                  keeps what it makes (500 MB) in DIR

apt-get and pip fetch, for aarch64, Debian's Python and the wheels of what pyproject.toml asks for;
qemu itself is fetched where there is no qemu-aarch64. The environment is a folder: its
`env/bin/python` is a shell script that starts the emulated Python, also for the tests' children.

What this shows: instruction selection for arm64, NEON's vectors, relocations and calls in LLVM's
JIT, and whatever in TGX asks which machine it is on. What it cannot: memory that is ordered more
weakly than x86-64's (qemu keeps the order of its host), caches, speed, and features of a certain
CPU, for LLVM reads /proc/cpuinfo, which is the host's, and takes the machine for a "generic" one.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from supply import ROOT, project

# Ten minutes of a core. Left out: what takes long and is Python's work, not the processor's.
TESTS = ("tests/test_device.py", "tests/test_kernels.py", "tests/test_jit_calls.py")

APT = """
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
Dir::State "FOLDER/state";
Dir::State::status "FOLDER/status";
Dir::Cache "FOLDER/cache";
"""

# NumPy's BLAS would take kernels for the CPU that qemu shows, and NaN comes out of some of them.
# The name by which it is called is sys.executable, so that a virtual environment is found, and
# children started by that name are emulated.
WRAPPER = """#!/bin/sh
exec {qemu} -L {root} -0 "$0" -E PYTHONHOME={root}/usr -E OPENBLAS_CORETYPE=ARMV8 \\
  {root}/usr/bin/{python} "$@"
"""

OPTIONS = (
    # the BLAS in NumPy's wheels leaves floating-point flags behind when it is emulated
    *("-W", "ignore:divide by zero encountered in matmul:RuntimeWarning"),
    *("-W", "ignore:overflow encountered in matmul:RuntimeWarning"),
    *("-W", "ignore:invalid value encountered in matmul:RuntimeWarning"),
    # compiling for other processors is the same work on each, and takes an emulator minutes
    *("--deselect", "tests/test_device.py::test_kernels_compile_for_other_cpus"),
    *("-p", "tgx_patience", "--timeout", "3600", "-p", "no:cacheprovider", "-q"),
)

# A plugin for pytest, in the environment: the tests' children are emulated, and take their time.
PATIENCE = """
import subprocess
plain = subprocess.run
def run(*arguments, timeout=None, **keywords):
    return plain(*arguments, timeout=timeout and 30 * timeout, **keywords)
subprocess.run = run
"""


SKIPPED = 77  # the exit code that build systems take for it


class Impossible(Exception):
    """Why it cannot be done here."""


def run(*command: object, quiet: bool = True, **keywords: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
        **keywords,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise Impossible(f"{command[0]} failed:\n{(done.stdout or '').strip()[-2000:]}")
    return done.stdout or ""


def needs() -> None:
    """Says what is missing, before anything is fetched."""
    if platform.system() != "Linux" or platform.machine() == "aarch64":
        raise Impossible("it is for Linux on another processor than aarch64")
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise Impossible(f"there is no {program}: it is for Debian")


def packages(folder: Path, architecture: str, *names: str) -> Path:
    """Debian's packages of an architecture with all they depend on, unpacked in a folder."""
    root, apt = folder / "root", folder / "apt"
    if root.is_dir():
        return root
    for each in ("state/lists/partial", "cache/archives/partial"):
        (apt / each).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    text = APT.replace("FOLDER", str(apt)).replace('"arm64"', f'"{architecture}"')
    (apt / "apt.conf").write_text(text)
    settings = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    run("apt-get", "-q", "update", env=settings)
    run("apt-get", "-q", "-y", "--download-only", "install", *names, env=settings)
    unpacked = folder / "unpacked"
    for archive in sorted((apt / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "-x", archive, unpacked)
    shutil.rmtree(apt)
    return unpacked.rename(root)


def qemu(folder: Path) -> Path:
    """The emulator: the system's, or one fetched for this."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return Path(found)
    native = run("dpkg", "--print-architecture").strip()
    root = packages(folder / "qemu", native, "qemu-user-static")
    names = ("usr/bin/qemu-aarch64-static", "usr/bin/qemu-aarch64")
    return next(root / name for name in names if (root / name).is_file())


def make(folder: Path) -> Path:
    """The environment, unless it is there; its Python."""
    python = folder / "env/bin/python"
    site = folder / "site"
    if not (folder / "complete").is_file():
        root = packages(folder, "arm64", "python3", "libstdc++6")
        version = (root / "usr/bin/python3").readlink().name  # python3.11
        values = {"qemu": qemu(folder), "root": root, "python": version}
        emulated = folder / "python"
        emulated.write_text(WRAPPER.format(**values))
        emulated.chmod(0o755)
        run(emulated, "-m", "venv", "--without-pip", folder / "env")
        (site,) = folder.glob("env/lib/python*/site-packages")
        glibc = range(28, 16, -1)
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in glibc]
        wheels = [str(each) for group in ("", "test") for each in project()[group]]
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *platforms,
            "--platform=manylinux2014_aarch64", "--implementation=cp", "--only-binary=:all:",
            f"--python-version={version.removeprefix('python')}", *wheels)  # fmt: skip
        hook = ROOT / "tgx/adapter/tinygrad_tgx.pth"
        shutil.copy(hook, site)
        (folder / "complete").touch()
    (site,) = folder.glob("env/lib/python*/site-packages")
    (site / "_editable_impl_tinygrad_tgx.pth").write_text(f"{ROOT}\n")
    (site / "tgx_patience.py").write_text(PATIENCE)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    chosen, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="tgx-aarch64-") as temporary:
        folder = chosen.folder or Path(temporary)
        try:
            needs()
            python = make(folder.resolve())
            about = "import platform as p; print(p.machine(), 'Python', p.python_version())"
            run(python, "-c", about, quiet=False)
        except Impossible as problem:
            print(f"no tests: {problem}", file=sys.stderr)
            sys.exit(SKIPPED)
        command = [python, "-m", "pytest", *OPTIONS, *(options or TESTS)]
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
