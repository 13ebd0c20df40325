"""The roofline as a picture: on the terminal, and in a page of its own with the tables.

Along the x axis are operations for each byte, up the y axis billions of operations a second, both
logarithmic. Slopes are memories, the flat line is 32-bit arithmetic. Nothing lies above the L2's
slope; above the flat line, only 16-bit kernels and tensor cores; above DRAM's slope, only kernels
whose bytes are still in the cache. A kernel's point
stands at its modelled speed, its whisker from the slow to the quick end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from tgx.hardware import measured, report
from tgx.hardware.profiles import Machine
from tgx.hardware.report import Report, Row, Step
from tgx.hardware.roofline import L2_BYTES_CYCLE
from tgx.safe import clean, policy


@dataclass(frozen=True)
class Roof:
    """One limit, in billions of operations a second at `intensity` operations a byte."""

    name: str
    gbs: float = 0.0  # a memory's bandwidth, or
    gflops: float = 0.0  # the arithmetic's rate

    def at(self, intensity: float) -> float:
        return self.gflops or self.gbs * intensity


@dataclass(frozen=True)
class Point:
    """A kernel on the picture."""

    name: str
    intensity: float
    gflops: float
    low: float  # at the model's slow end
    high: float


def roofs(machine: Machine) -> tuple[Roof, ...]:
    ghz = machine.gpu_mhz / 1e3
    return (
        Roof("DRAM", gbs=machine.bandwidth),
        Roof("L2", gbs=L2_BYTES_CYCLE * machine.sms * ghz),
        Roof("multiply-add", gflops=2 * machine.lanes * machine.sms * ghz),
    )


def points(rows: tuple[Row, ...]) -> tuple[Point, ...]:
    """The kernels that compute anything; copies have no place on a roofline."""
    return tuple(
        Point(
            row.name,
            row.ops / row.bytes,
            row.ops / row.model_us / 1e3,
            row.ops / row.model_high_us / 1e3,
            row.ops / row.model_low_us / 1e3,
        )
        for row in rows
        if row.ops and row.bytes
    )


@dataclass(frozen=True)
class _Axes:
    """Whole decades that hold everything: exponents of ten."""

    left: int
    right: int
    bottom: int
    top: int

    def x(self, intensity: float) -> float:
        return (log10(intensity) - self.left) / (self.right - self.left)

    def y(self, gflops: float) -> float:
        return (log10(gflops) - self.bottom) / (self.top - self.bottom)


def _axes(limits: tuple[Roof, ...], found: tuple[Point, ...]) -> _Axes:
    flat = max(roof.gflops for roof in limits)
    xs = [0.1, 10.0, *(p.intensity for p in found)]
    ys = [flat, flat / 100, *(p.low for p in found)]
    return _Axes(
        floor(log10(min(xs))), ceil(log10(max(xs) * 1.0001)),
        floor(log10(min(ys))), ceil(log10(max(ys) * 1.5)),
    )  # fmt: skip


def _best(limits: tuple[Roof, ...], intensity: float) -> float:
    """What the highest memory and the arithmetic allow there."""
    memory = max(roof.at(intensity) for roof in limits if roof.gbs)
    return min(memory, *(roof.gflops for roof in limits if roof.gflops))


# **************** on the terminal ****************


def text(machine: Machine, step: Step, width: int = 64, height: int = 14) -> str:
    """The roofline of one step in characters: `/` and `-` the roof, letters the kernels, in order;
    kernels that fall on one place share the first one's letter."""
    limits, found = roofs(machine), points(step.rows)
    axes = _axes(limits, found)
    grid = [[" "] * width for _ in range(height)]

    def put(x: float, y: float, mark: str) -> None:
        column, line = round(x * (width - 1)), round((1 - y) * (height - 1))
        if 0 <= column < width and 0 <= line < height and grid[line][column] in " /-":
            grid[line][column] = mark

    flat = max(roof.gflops for roof in limits)
    for column in range(width):
        intensity = 10 ** (axes.left + column / (width - 1) * (axes.right - axes.left))
        best = _best(limits, intensity)
        put(column / (width - 1), axes.y(best), "-" if best == flat else "/")
    names: dict[str, list[str]] = {}
    for index, point in enumerate(found):
        letter = chr(ord("a") + index % 26)
        put(axes.x(point.intensity), axes.y(point.gflops), letter)
        names.setdefault(point.name, []).append(letter)
    lines = [f"10^{axes.top} GFLOP/s" if i == 0 else "" for i in range(height)]
    lines[-1] = f"10^{axes.bottom}"
    side = max(map(len, lines))
    body = [
        f"{label:>{side}} |{''.join(row).rstrip()}" for label, row in zip(lines, grid, strict=True)
    ]
    foot = f"{'':>{side}} +{'-' * width}\n{'':>{side}}  10^{axes.left}"
    foot += f"{f'10^{axes.right} operations a byte':>{width - 4}}"
    key = [f"  {', '.join(letters)}: {name}" for name, letters in names.items()]
    return "\n".join([*body, foot, *key])


# **************** as a page ****************

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
div { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px;
  font-variant-numeric: tabular-nums }
th, td { padding: 2px 8px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left }
.total td:nth-child(n+2), .total th:nth-child(n+2) { text-align: right }
svg { max-width: 100%; height: auto }
table:not(.total) tr:last-child td { font-weight: bold; border-top: 2px solid #888 }
.roof { stroke: #b35; fill: none; stroke-width: 2 } .grid { stroke: #eee }
.bar { stroke: #369; opacity: .5 } .kernel { fill: #369 } text { font-size: 11px; fill: #444 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } th, td { border-color: #444 } .grid { stroke: #333 }
  text { fill: #bbb } .kernel { fill: #7bf } .bar { stroke: #7bf } .roof { stroke: #f79 } }
"""


def svg(machine: Machine, step: Step, width: int = 640, height: int = 360) -> str:
    """The roofline of one step, with a title on each point."""
    limits, found = roofs(machine), points(step.rows)
    axes = _axes(limits, found)
    pad = 44

    def x(intensity: float) -> str:
        return f"{pad + axes.x(intensity) * (width - 2 * pad):.1f}"

    def y(gflops: float) -> str:
        return f"{height - pad - axes.y(gflops) * (height - 2 * pad):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
             f'aria-label="Roofline of {escape(step.name)}">']  # fmt: skip
    left, right = 10.0**axes.left, 10.0**axes.right
    for power in range(axes.left, axes.right + 1):
        at = x(10.0**power)
        parts.append(f'<path class="grid" d="M{at} {pad}V{height - pad}"/>'
                     f'<text x="{at}" y="{height - pad + 16}">{10.0**power:g}</text>')  # fmt: skip
    for power in range(axes.bottom, axes.top + 1):
        at = y(10.0**power)
        parts.append(f'<path class="grid" d="M{pad} {at}H{width - pad}"/>'
                     f'<text x="4" y="{at}">{10.0**power:g}</text>')  # fmt: skip
    flat = max(roof.gflops for roof in limits)
    for roof in limits:
        if roof.gflops:
            start = min(right, flat / max(r.gbs for r in limits))
            line = f"M{x(max(start, left))} {y(flat)}H{x(right)}"
            name_at, high = right / 5, flat
        else:
            low = max(left, 10.0**axes.bottom / roof.gbs)
            end = min(right, flat / roof.gbs)
            line = f"M{x(low)} {y(roof.at(low))}L{x(end)} {y(roof.at(end))}"
            name_at, high = low * 1.1, roof.at(low * 1.1) * 1.2
        parts.append(f'<path class="roof" d="{line}"/>'
                     f'<text x="{x(name_at)}" y="{y(high * 1.3)}">{roof.name}</text>')  # fmt: skip
    for point in found:
        title = (f"{point.name}: {point.gflops:.3g} GFLOP/s modelled, {point.low:.3g} to "
                 f"{point.high:.3g}; {point.intensity:.3g} operations a byte")  # fmt: skip
        at = x(point.intensity)
        parts.append(f'<path class="bar" d="M{at} {y(max(point.low, 10.0**axes.bottom))}'
                     f'V{y(point.high)}"/><circle class="kernel" cx="{at}" '
                     f'cy="{y(point.gflops)}" r="4"><title>{escape(title)}</title></circle>')
    parts.append(f'<text x="{width // 2}" y="{height - 8}">operations a byte</text>'
                 f'<text x="4" y="16">GFLOP/s</text></svg>')  # fmt: skip
    return "\n".join(parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself where the page is too narrow for it."""
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div><table class="{kind}">{body}</table></div>' if kind else \
        f"<div><table>{body}</table></div>"


def html(result: Report) -> str:
    """Everything on one page that needs no network: tables, rooflines, what was assumed."""
    machine = result.machine
    title = f"{machine.name} {machine.mode}".strip()
    parts = ["<!doctype html><html lang=en><meta charset=utf-8>"
             '<meta name="viewport" content="width=device-width">'
             f'<meta http-equiv="Content-Security-Policy" content="{policy(STYLE)}">'
             f"<title>{escape(title)}</title><style>{STYLE}</style>"
             f"<h1>{escape(title)}</h1>"]  # fmt: skip
    parts += [f"<p>{escape(line)}</p>" for line in report.heading(result)]
    parts.append("<p>In the pictures: points at the modelled speed, whiskers to both ends of the "
                 "model. Above DRAM's slope are only kernels whose bytes stay in the cache; above "
                 "the flat line, only 16-bit kernels and tensor cores.</p>")
    parts.append(table(*report.filled(report.SUMMARY, report.summary(result)), "total"))
    for step in result.steps:
        heads, rows = report.filled(report.HEADS, report.table(step))
        parts.append(f"<h2>{escape(report.title(step))}</h2>{svg(machine, step)}"
                     + table(heads, rows))  # fmt: skip
        if step.timed is not None:
            parts += [f"<p>{escape(line)}</p>" for line in measured.foot(step.timed)]
    parts += [f"<p>{escape(line)}</p>" for line in report.foot(result)]
    return clean("\n".join(parts)) + "</html>\n"
