"""A picture as SVG, laid out by graphviz: the system's `dot`, or the pip-installed graphviz-pure.

Both are run with a time bound; a picture that takes longer is drawn again with straight edges, and
failing that an error says so (the .dot file is always there to try again with).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
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
    beside = str(Path(sys.executable).with_name("graphviz-pure"))
    names = ("dot", "graphviz-pure", beside, *_installed())
    found = next((path for name in names if (path := shutil.which(name))), None)
    if not found:
        raise MissingTool(
            "no graphviz was found to draw an SVG",
            "the program `dot`, or the Python package graphviz-pure",
            "python -m pip install graphviz-pure (the .dot file can be drawn elsewhere)",
        )
    return found


def _installed() -> list[str]:
    """Where pip put graphviz-pure's command: not on PATH when a venv is used without activating."""
    try:
        package = distribution("graphviz-pure")
    except PackageNotFoundError:
        return []
    return [str(package.locate_file(f)) for f in package.files or ()
            if f.stem == "graphviz-pure"]


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
    return centred(re.sub(r'\s+xml:space="preserve"', "", svg[start:]))


def centred(svg: str) -> str:
    """Every line in a box stands around the box's middle.

    Graphviz writes where a line begins, reckoned in Helvetica. Where that font is not, and another
    is wider, lines would run out of their boxes on the right.
    """
    return re.sub(r'<g id="node\d+" class="node">.*?</g>', _centre, svg, flags=re.DOTALL)


def _centre(node: re.Match[str]) -> str:
    group = node[0]
    outlines = re.findall(r'<(?:path|polygon)[^>]* (?:d|points)="([^"]*)"', group)
    filled = re.findall(r'<(?:path|polygon) fill="(?!none)', group)
    if round_one := re.search(r'<ellipse[^>]* cx="([^"]*)"', group):
        x = round_one[1]
    elif outlines and len(filled) == 1:  # a table (the legend, a chart) fills several, or none
        xs = [float(place.split(",")[0]) for place in re.findall(r"-?[\d.]+,-?[\d.]+", outlines[0])]
        x = f"{(min(xs) + max(xs)) / 2:.2f}"
    else:
        return group
    start, middle = r'<text text-anchor="start" x="[^"]*"', f'<text text-anchor="middle" x="{x}"'
    return re.sub(start, middle, group)
