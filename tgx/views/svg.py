"""A picture as SVG, laid out by graphviz: the system's `dot`, or the pip-installed graphviz-pure.

Both are run with a time bound; a picture that takes longer is drawn again with straight edges, and
failing that an error says so (the .dot file is always there to try again with).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tgx.errors import MissingTool, TgxError
from tgx.model import Trace
from tgx.views import dot

SECONDS = 20.0
"""The longest one picture may take to lay out."""


class LayoutError(TgxError, RuntimeError):
    """Graphviz could not draw a picture, or took too long."""


def render(trace: Trace, what: str = "schedule", **choices: object) -> str:
    """One of `picture.PICTURES` as SVG."""
    return from_dot(dot.render(trace, what, **choices))


@cache
def engine() -> str:
    """The program that lays out graphs: `dot` from PATH, else graphviz-pure's command."""
    beside = Path(sys.executable).with_name("graphviz-pure")
    found = shutil.which("dot") or shutil.which("graphviz-pure") or shutil.which(beside)
    if not found:
        raise MissingTool(
            "no graphviz was found to draw an SVG",
            "the program `dot`, or the Python package graphviz-pure",
            "python -m pip install graphviz-pure (the .dot file can be drawn elsewhere)",
        )
    return found


def from_dot(text: str, seconds: float = SECONDS) -> str:
    """Lay out a dot graph: SVG text, its first line the svg element."""
    try:
        return _run(text, seconds)
    except subprocess.TimeoutExpired:
        straight = text.replace("splines=true", "splines=line").replace("polyline", "line")
        try:
            return _run(straight, seconds)
        except subprocess.TimeoutExpired:
            raise LayoutError(
                f"graphviz took more than {2 * seconds:g} s on this picture",
                "a smaller one", "draw the neighbourhood of one kernel: --kernel K",
            ) from None


def from_dots(texts: Iterable[str], seconds: float = SECONDS) -> list[str]:
    """Lay out several graphs; one process start for each, as graphviz takes one time bound."""
    return [from_dot(text, seconds) for text in texts]


def _run(text: str, seconds: float) -> str:
    done = subprocess.run(
        [engine(), "-Tsvg"], input=text.encode(), capture_output=True, timeout=seconds, check=False
    )
    svg = done.stdout.decode(errors="replace")
    start = svg.find("<svg")
    if done.returncode or start < 0:
        error = done.stderr.decode(errors="replace").strip()
        raise LayoutError(f"graphviz refused a picture: {error[:300]}", "valid dot",
                          "please report this, with the .dot file")
    # no scripts can come in (everything is escaped), and links have no address: only tooltips
    return re.sub(r'\s+xml:space="preserve"', "", svg[start:])
