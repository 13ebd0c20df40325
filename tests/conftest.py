"""What the tests share: TGX as the default device, fresh interpreters, machines without clang.

`import tgx` arms the plugin, so the suite runs in a checkout that was never installed, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before tinygrad is imported: its caches are this session's own, so nothing passes because some
# earlier run left the machine code behind.
_CACHE = tempfile.TemporaryDirectory(prefix="tgx-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ.pop("CACHEDB", None)
if not os.environ.get("DEVICE"):
    os.environ.setdefault("DEV", "TGX")

import tgx  # noqa: E402 - it reads what is set above

ROOT = Path(__file__).resolve().parents[1]

# What a variable of ours or of tinygrad's would change in a child process.
OURS = ("DEV", "DEVICE", "DEBUG", "CC", "PARALLEL", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout these tests belong to."""
    return ROOT


def make_venv(folder: Path) -> tuple[Path, Path]:
    """A new environment that sees the running one's packages but none of its .pth files.

    So tgx is in it only if a test puts it there, and nothing has to be fetched: each package is a
    link. Gives the environment's python and its site-packages.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    needed = ("tinygrad", "numpy", "llvmlite", "rich", "pytest", "hatchling", "pip", "coverage")
    specs = [find_spec(name) for name in needed]
    homes = {Path(spec.origin).parents[1] for spec in specs if spec and spec.origin}
    for path in (path for home in homes for path in home.iterdir()):
        ours = path.name == "tgx" or "tinygrad_tgx" in path.name
        if not ours and path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    if "COVERAGE_PROCESS_CONFIG" in os.environ:  # under coverage, it counts here as well
        start = "os.environ.get('COVERAGE_PROCESS_CONFIG') and __import__('coverage')"
        (site / "coverage.pth").write_text(f"import os; {start}.process_startup()\n")
    return folder / "bin" / "python", site


def child_environment(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of a machine without clang, gcc or dot: PATH is empty, and so is the cache.

    Give PATH to have the real one.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in OURS and not name.startswith("TGX_")
    }
    private = {"PATH": "", "XDG_CACHE_HOME": str(folder / "cache")}
    return kept | private | {name: str(value) for name, value in variables.items()}


def run_python(
    python: Path | str, folder: Path, *arguments: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter on a machine without clang; its cache lies in `folder`."""
    return subprocess.run(
        [str(python), *map(str, arguments)],
        cwd=cwd or folder,
        env=child_environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture(scope="session")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has tgx as an editable install gives it: on its path, and armed by the .pth."""
    python, site = make_venv(tmp_path_factory.mktemp("plugged"))
    (site / "_editable.pth").write_text(f"{ROOT}\n")
    hook = ROOT / "tgx/adapter/tinygrad_tgx.pth"
    (site / hook.name).write_text(hook.read_text())
    return python


@pytest.fixture
def fresh(plugged: Path, tmp_path: Path) -> Run:
    """`fresh(*arguments, cwd=..., DEVICE=...)`: a new Python with the plugin and without clang."""

    def run(*arguments: object, **keywords: object) -> subprocess.CompletedProcess[str]:
        return run_python(plugged, tmp_path, *arguments, **keywords)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    _CACHE.cleanup()


assert sys.modules["tgx"] is tgx
