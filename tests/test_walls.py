"""The house: which room may import what. The table below is the design; a new import that breaks
a wall fails here, with the file and the line.

Imports run from the edges (adapter, devices, cli) to `model`, which imports nothing. So a trace can
be read, transformed and drawn on a machine where tinygrad is not installed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.pure


@dataclass(frozen=True)
class Room:
    """What a file or a folder may import: rooms of ours, and packages of others.

    The standard library, the room itself and `tgx.errors` are open to all.
    """

    ours: frozenset[str]
    others: frozenset[str]


def room(ours: str = "", others: str = "") -> Room:
    return Room(frozenset(ours.split()), frozenset(others.split()))


ALL = (
    "adapter bench codec devices hardware kernels model passes recording safe settings views "
    "puzzles walking __version__ TgxError"
)

# The first row that a path starts with is its room.
WALLS = {
    "tgx/errors.py": room("__version__"),
    "tgx/settings.py": room(),
    "tgx/safe.py": room(),
    "tgx/model.py": room(),
    "tgx/codec.py": room("model __version__"),
    "tgx/passes/": room("model"),
    "tgx/views/": room(
        "model passes codec safe", "graphviz graphviz_pure jinja2 markupsafe pygments"
    ),
    "tgx/hardware/": room("model safe"),
    "tgx/adapter/": room(
        "model codec safe settings devices hardware kernels passes __version__",
        "tinygrad llvmlite numpy",
    ),
    # runs the same programs on tinygrad and on its peers, each in a process of its own
    "tgx/bench/": room("settings adapter devices __version__", "tinygrad llvmlite numpy torch jax"),
    "tgx/puzzles/": room("devices", "tinygrad llvmlite"),
    "tgx/__init__.py": room("adapter"),
    "tgx/recording.py": room("adapter codec model safe settings views"),
    "tgx/walking.py": room("adapter codec model recording safe views", "tinygrad"),
    "tgx/__main__.py": room("cli"),
    "tgx/cli.py": room("commands safe settings __version__"),
    "tgx/commands/": room(ALL, "rich"),
    "devices/": room("settings kernels adapter __version__", "tinygrad llvmlite numpy"),
    "kernels/": room("settings devices __version__", "tinygrad llvmlite numpy"),
    "examples/": room("TgxError backward trace __version__", "tinygrad numpy tqdm rich torch"),
}


def sources() -> list[Path]:
    return sorted(
        path.relative_to(ROOT)
        for top in ("tgx", "devices", "kernels", "examples")
        for path in (ROOT / top).rglob("*.py")
        # tgx/devices and tgx/kernels are links to the folders at the top
        if not (top == "tgx" and path.relative_to(ROOT).parts[1] in ("devices", "kernels"))
    )


def place(path: Path) -> str:
    """The row of WALLS that a file belongs to."""
    rows = [row for row in WALLS if path.as_posix().startswith(row)]
    assert rows, f"{path} is in no room: give it a row in WALLS"
    return rows[0]


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, inside functions too."""
    package = [*path.parent.parts] if path.parts[0] == "tgx" else ["tgx", *path.parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            if start == "tgx":  # from tgx import settings
                yield from ((node.lineno, f"tgx.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, start


def trespasses(path: Path, source: str) -> list[str]:
    """The imports of a file that its room does not allow."""
    row = place(path)
    allowed = WALLS[row]
    own = row.removeprefix("tgx/").removesuffix(".py").rstrip("/")
    found = []
    for line, name in imports(path, source):
        top, _, rest = name.partition(".")
        if top == "tgx":
            ok = rest.split(".")[0] in {*allowed.ours, "errors", own} or (not rest and row in EDGES)
        else:
            beside = row == "examples/" and (ROOT / row / f"{top}.py").exists()
            ok = beside or top in allowed.others or top in sys.stdlib_module_names
        if not ok:
            found.append(f"{path}:{line} imports {name}, which {row} may not")
    return found


EDGES = ("examples/", "tgx/__main__.py", "tgx/cli.py")  # `import tgx`, all of it


def test_no_import_crosses_a_wall() -> None:
    found = [line for path in sources() for line in trespasses(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tgx/model.py", "import tinygrad"),
        ("tgx/model.py", "from tgx import settings"),
        ("tgx/passes/match.py", "from tinygrad.uop.ops import UOp"),
        ("tgx/views/dot.py", "from tgx.adapter import compat"),
        ("tgx/views/dot.py", "def f():\n    from ..adapter import compat"),
        ("tgx/settings.py", "import numpy"),
        ("devices/ops_tgx.py", "from tgx.views import svg"),
        ("devices/ops_tgx.py", "from .. import views"),
        ("examples/mnist.py", "from tgx.devices import threads"),
    ],
)
def test_the_walls_stand(path: str, line: str) -> None:
    assert trespasses(Path(path), line), f"{path}: {line!r} should not pass"


def test_only_settings_reads_the_environment() -> None:
    found = []
    for path in sources():
        if path.parts[0] == "examples" or path.as_posix() == "tgx/settings.py":
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
                found.append(f"{path}:{node.lineno} reads the environment; ask tgx.settings")
    assert not found, "\n".join(found)


def test_the_rooms_at_the_top_are_parts_of_the_package() -> None:
    for name in ("devices", "kernels"):
        link = ROOT / "tgx" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
        assert not link.readlink().is_absolute()
