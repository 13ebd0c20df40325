"""The puzzles' pictures: boxes, cells, arrows, curves and words, as plain SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 720, 260

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f }
  .title { font-size: 16px; font-weight: 600 } .quiet { fill: #57606a }
  .code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px }
  .page { fill: #ffffff } .line { fill: none; stroke: #57606a; stroke-width: 1.6 }
  .head { fill: #57606a } .asked { stroke: #d55e00; stroke-width: 2.4; stroke-dasharray: 5 4 }
  .box { fill: #f6f8fa; stroke: #8c959f } .blue { fill: #cfe6f5; stroke: #0072b2 }
  .orange { fill: #fbe0cf; stroke: #d55e00 } .none { fill: none; stroke: #8c959f;
  stroke-dasharray: 4 4 } .curve { stroke: #0072b2; stroke-width: 2.4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #9da7b3 } .page { fill: #0d1117 }
    .line { stroke: #9da7b3 } .head { fill: #9da7b3 } .asked { stroke: #ff9a4d }
    .box { fill: #161b22; stroke: #6e7681 } .blue { fill: #0b3350; stroke: #56b4e9 }
    .orange { fill: #4d2a12; stroke: #ff9a4d } .none { fill: none } .curve { stroke: #56b4e9 }
  }
"""


class Drawing:
    """One picture; `str()` is the file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def words(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def box(
        self, x: float, y: float, wide: float, high: float, text: str = "", css: str = "box"
    ) -> None:
        """A rectangle with lines of text in its middle."""
        self.parts.append(
            f'<rect class="{css}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="4"/>'
        )
        lines = text.split("\n")
        for i, line in enumerate(lines):
            middle = y + high / 2 + 5 + 18 * (i - (len(lines) - 1) / 2)
            self.words(x + wide / 2, middle, line, "", "middle")

    def cells(
        self, x: float, y: float, values: Iterable[object], size: float = 34, css: str = "box"
    ) -> None:
        """A row of squares."""
        for i, value in enumerate(values):
            self.box(x + i * size, y, size, size, str(value), css)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, css: str = "") -> None:
        length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-9)
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        bx, by = x2 - 9 * dx, y2 - 9 * dy
        self.parts.append(
            f'<path class="line {css}" d="M{x1:.1f} {y1:.1f}L{bx:.1f} {by:.1f}"/>'
            f'<path class="head" d="M{x2:.1f} {y2:.1f}L{bx - 4 * dy:.1f} {by + 4 * dx:.1f}'
            f'L{bx + 4 * dy:.1f} {by - 4 * dx:.1f}z"/>'
        )

    def curve(self, points: Sequence[tuple[float, float]], css: str = "curve") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="line {css}" points="{path}"/>')

    def __str__(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title">',
                f'<title id="title">{escape(self.title)}</title>',
                f"<style>{STYLE}</style>",
                f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
                f'<text class="title" x="20" y="30">{escape(self.title)}</text>',
                *self.parts,
                "</svg>\n",
            ]
        )
