"""What the lessons share: the command line, the guide beside the measurement, kernels, pictures.

A lesson is a script: its functions compute facts (tests/test_lessons.py asserts them), its `main`
tells the story. Here is what tells it: `Lesson` prints, `Chart` draws, by hand, in plain SVG.
"""

import argparse
import base64
import contextlib
import itertools
import math
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from guide_report import escape, nice_ticks, save_files

# ---- the telling -------------------------------------------------------------------------------

class Lesson:
    """One run of a lesson; reads the options every lesson has."""

    def __init__(self, name: str, doc: str, argv: Sequence[str] | None = None):
        self.name = name
        title, _, rest = doc.strip().partition("\n")
        parser = argparse.ArgumentParser(
            prog=f"{name}.py", description=title, epilog=rest,
            formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="smaller, in under 8 seconds")
        parser.add_argument("--out", type=Path, metavar="DIR", help="draw the pictures into DIR")
        args = parser.parse_args(argv)
        self.quick, self.out = args.quick, args.out
        print(f"{title}\n{'=' * len(title)}")

    def part(self, title: str, *sentences: str) -> None:
        print(f"\n{title}\n{'-' * len(title)}")
        self.say(*sentences)

    def say(self, *sentences: str) -> None:
        for sentence in sentences:
            print(sentence)

    def beside(self, *rows: tuple[str, str, str] | tuple[str, str, str, str]) -> None:
        """A table: what, what the guide says, what was measured; a fourth column corrects it."""
        cells = [(*row, "")[:4] for row in rows]
        heads = ("", "the guide", "measured here", "")
        widths = [max(len(row[i]) for row in (*cells, heads)) for i in range(3)]
        for row in (heads, *cells):
            line = "  ".join(text.ljust(width) for text, width in zip(row[:3], widths, strict=True))
            print(line.rstrip() + (f"  ⚠ {row[3]}" if row[3] else ""))

    def picture(self, svg: str, name: str = "") -> None:
        """Saved as NAME.svg where --out asked for it."""
        if self.out is None:
            return
        name = f"{name or self.name}.svg"
        try:
            save_files(self.out, {name: svg.encode()})
        except OSError as error:
            sys.exit(f"error: cannot write to {self.out} ({error.strerror}); give another --out")
        print(f"drew {self.out / name}")

    def kernels(self, work: Callable[[], object]) -> None:
        """Run `work`, which realizes Tensors, and list what it became inside the machine."""
        self.part("What it became inside the machine")
        try:
            import tgx
        except ImportError:
            print("(the list of kernels needs tgx: `pip install -e .` in a clone of it)")
            return
        with contextlib.ExitStack() as stack:
            try:
                t = stack.enter_context(tgx.trace())
            except tgx.TgxError:  # the lesson itself runs under `tgx trace`
                t = None
            work()
        if t is None:
            print("(somebody is recording this run: the kernels are in that trace)")
            return
        rows = [(kernel.name, kernel.phase, ", ".join(t.trace.places(kernel.id)) or "-",
                 f"{kernel.flops:,}" if kernel.flops > 0 else "-",
                 f"{kernel.bytes:,}" if kernel.bytes > 0 else "-")
                for kernel in t.kernels if kernel.kind != "copy"]
        print(table(("kernel", "phase", "lines", "flops", "bytes"), rows, right=(3, 4)))
        print(f"{len(rows)} kernels. More: tgx trace -o DIR examples/{self.name}.py; tgx show DIR")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns of text, those in `right` flush right."""
    body = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    return "\n".join("  ".join(
        text.rjust(width) if i in right else text.ljust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in body)


# ---- pictures ----------------------------------------------------------------------------------
# Okabe and Ito's colours by name, told apart by every kind of colour vision; lighter when dark.

COLOURS = {  # name: on white, on black
    "blue": ("#0072b2", "#56b4e9"), "orange": ("#d55e00", "#ff9a4d"),
    "green": ("#009e73", "#3fcf9f"), "pink": ("#b0609a", "#e6a3cc"),
    "gold": ("#b07d00", "#e6c34d"), "grey": ("#57606a", "#9da7b3"),
}


def colour_rules(dark: int) -> str:
    """Lines are stroked; dots, inked words and soft areas are filled, in a colour by name."""
    return "\n".join(f"  .line.{name} {{ stroke: {c[dark]} }} .dot.{name}, .ink.{name}, "
                     f".soft.{name} {{ fill: {c[dark]} }}" for name, c in COLOURS.items())


STYLE = f"""
  text {{ font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }}
  text {{ fill: #24292f }} .title {{ font-size: 17px; font-weight: 600 }}
  .head {{ font-weight: 600 }} .quiet {{ fill: #57606a }} .page {{ fill: #ffffff }}
  .grid {{ stroke: #d8dee4; stroke-width: 1; fill: none }}
  .axis {{ stroke: #8c959f; stroke-width: 1; fill: none }}
  .box {{ fill: #f6f8fa; stroke: #8c959f }} .dot {{ stroke: #ffffff }} .soft {{ opacity: .16 }}
  .line {{ fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round }}
  .thin {{ stroke-width: 1.3 }} .dashed {{ stroke-dasharray: 5 5 }}
{colour_rules(0)}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3 }} .quiet {{ fill: #9da7b3 }} .page {{ fill: #0d1117 }}
    .grid {{ stroke: #30363d }} .axis {{ stroke: #6e7681 }} .dot {{ stroke: #0d1117 }}
    .box {{ fill: #161b22; stroke: #6e7681 }} .soft {{ opacity: .25 }}
{colour_rules(1)}
  }}
"""


class Picture:
    """A page of SVG: `add` shapes, or whole `Chart`s; `str()` is the file."""

    def __init__(self, title: str, width: int, height: int, about: str = ""):
        self.title, self.width, self.height, self.about = title, width, height, about
        self.parts: list[str] = []

    def add(self, *parts: str) -> None:
        self.parts += parts

    def __str__(self) -> str:
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-labelledby="title">',
            f'<title id="title">{escape(self.about or self.title)}</title>',
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{self.width}" height="{self.height}" rx="6"/>',
            words(24, 32, self.title, "title"), *self.parts, "</svg>\n"])


def words(x: float, y: float, text: str, css: str = "", anchor: str = "") -> str:
    side = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{side}>{escape(text)}</text>'


def bitmap(x: float, y: float, pixels: np.ndarray, scale: float = 1) -> str:
    """uint8 [height, width, 3] as a picture in the picture, each pixel `scale` wide."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + name + content
                + struct.pack(">I", zlib.crc32(name + content)))

    high, wide, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # 0: this line as it is
    png = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", wide, high, 8, 2, 0, 0, 0))
           + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b""))
    return (f'<image x="{x:g}" y="{y:g}" width="{wide * scale:.1f}" height="{high * scale:.1f}" '
            'style="image-rendering: pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(png).decode()}"/>')


class Chart:
    """One set of axes on a Picture; x and y are the ranges shown; `log` is for y."""

    def __init__(self, page: Picture, box: tuple[float, float, float, float],
                 x: tuple[float, float], y: tuple[float, float], head: str = "",
                 xlabel: str = "", log: bool = False, xticks: Sequence[float] | None = None,
                 yticks: Sequence[float] | None = None):
        self.page, self.x, self.y, self.log = page, x, y, log
        self.left, self.top, self.width, self.height = box
        low = self.top + self.height
        self.clip = f"clip{len(page.parts)}"
        page.add(f'<clipPath id="{self.clip}"><rect x="{self.left}" y="{self.top}" '
                 f'width="{self.width}" height="{self.height}"/></clipPath>')
        if head:
            page.add(words(self.left, self.top - 10, head, "head"))
        if yticks is None:
            yticks = [10.0**p for p in range(math.ceil(math.log10(y[0])),
                                             math.floor(math.log10(y[1])) + 1)] \
                if log else nice_ticks(*y, 5)
        for tick in yticks:
            page.add(f'<path class="grid" d="M{self.left} {self.at_y(tick):.1f}h{self.width}"/>',
                     words(self.left - 7, self.at_y(tick) + 4, short(tick), "quiet", "end"))
        for tick in nice_ticks(*x, 6) if xticks is None else xticks:
            page.add(f'<path class="axis" d="M{self.at_x(tick):.1f} {low}v5"/>',
                     words(self.at_x(tick), low + 19, short(tick), "quiet", "middle"))
        page.add(f'<path class="axis" d="M{self.left} {low}h{self.width}"/>')
        if xlabel:
            page.add(words(self.left + self.width / 2, low + 38, xlabel, "quiet", "middle"))

    def at_x(self, x: float) -> float:
        return self.left + self.width * (x - self.x[0]) / (self.x[1] - self.x[0])

    def at_y(self, y: float) -> float:
        scale = (lambda v: math.log10(max(v, 1e-300))) if self.log else (lambda v: v)
        low, high = map(scale, self.y)
        return self.top + self.height * (1 - (scale(y) - low) / (high - low))

    def line(self, xs: Iterable[float], ys: Iterable[float], css: str = "blue") -> None:
        points = " ".join(f"{self.at_x(float(x)):.1f},{self.at_y(float(y)):.1f}"
                          for x, y in zip(xs, ys, strict=True) if math.isfinite(y))
        self.page.add(f'<polyline class="line {css}" clip-path="url(#{self.clip})" '
                      f'points="{points}"/>')

    def dots(self, xs: Iterable[float], ys: Iterable[float], css: str = "blue",
             radius: float = 3.5) -> None:
        self.page.add(*[f'<circle class="dot {css}" cx="{self.at_x(float(x)):.1f}" '
                        f'cy="{self.at_y(float(y)):.1f}" r="{radius}"/>'
                        for x, y in zip(xs, ys, strict=True)])

    def regions(self, inside: Callable[[np.ndarray, np.ndarray], np.ndarray], cells: int,
                colours: Sequence[str] = ("blue", "orange")) -> None:
        """Shade the plane by class: `inside(xs, ys)` gives a number 0, 1, ... for every point."""
        dx, dy = (self.x[1] - self.x[0]) / cells, (self.y[1] - self.y[0]) / cells
        xs = self.x[0] + dx * (np.arange(cells) + 0.5)
        ys = self.y[0] + dy * (np.arange(cells) + 0.5)
        kinds = inside(*np.meshgrid(xs, ys)).astype(int)
        for row, y in zip(kinds, ys, strict=True):  # one rectangle for each run of equal cells
            edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), cells]
            for start, stop in itertools.pairwise(edges):
                left, top = self.at_x(self.x[0] + start * dx), self.at_y(y + dy / 2)
                self.page.add(
                    f'<rect class="soft {colours[row[start]]}" x="{left:.1f}" y="{top:.1f}" '
                    f'width="{self.width * (stop - start) / cells:.1f}" '
                    f'height="{self.height / cells:.2f}" shape-rendering="crispEdges"/>')

    def note(self, x: float, y: float, text: str, css: str = "quiet", anchor: str = "",
             dx: float = 0, dy: float = 0) -> None:
        """Words at a point of the plane, moved by dx, dy pixels."""
        self.page.add(words(self.at_x(x) + dx, self.at_y(y) + dy, text, css, anchor))


def short(value: float) -> str:
    """A tick's number: 0.5, 100, 1e-06 as 10⁻⁶."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        power = round(math.log10(abs(value)))
        if math.isclose(abs(value), 10.0**power):
            return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:g}".replace("-", "−")


def legend(x: float, y: float, names: Sequence[tuple[str, str]], gap: int = 150) -> list[str]:
    """(colour, name) side by side."""
    out = []
    for i, (css, name) in enumerate(names):
        left = x + i * gap
        out += [f'<path class="line {css}" d="M{left} {y}h22"/>', words(left + 30, y + 4, name)]
    return out
