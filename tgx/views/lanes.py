"""Where the boxes of a training step stand: forward runs down on the left, each gradient comes back
up in the row of what it differentiates, and the optimizer stands at the right.

The page draws the same (`page/lanes.js`); this is for graphviz, which is given the places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LANES = {"data": "data", "forward": "forward ↓", "backward": "backward ↑", "optimizer": "optimizer"}
LANE_GAP, ROW_GAP, CELL_GAP = 46.0, 16.0, 12.0
CELL_WIDTH = 330.0
"""Forward kernels that could run at once stand side by side, up to this width."""


@dataclass(frozen=True, slots=True)
class Item:
    """A box to be placed: its size in points, and the items whose row it wants, best first."""

    key: str
    lane: str
    w: float
    h: float
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Places:
    """Centres of the boxes, y downwards; and (title, centre) of each lane."""

    at: Mapping[str, tuple[float, float]]
    lanes: tuple[tuple[str, float], ...]


def place(items: Sequence[Item], edges: Sequence[tuple[str, str]]) -> Places:
    """`edges` are (from, to) pairs of keys."""
    row = rows(items, edges)
    used = {r: i for i, r in enumerate(sorted(set(row.values())))}
    cells: dict[tuple[int, str], list[Item]] = {}
    for item in items:
        cells.setdefault((used[row[item.key]], item.lane), []).append(item)
    lines = {at: _lines(cell, at[1]) for at, cell in cells.items()}
    heights = [0.0] * len(used)
    widths: dict[str, float] = {}
    for (r, lane), cell in lines.items():
        heights[r] = max(heights[r], _height(cell))
        widths[lane] = max(widths.get(lane, 0.0), *(_width(line) for line in cell))
    left, centre = 0.0, {}
    for lane in LANES:
        if lane in widths:
            centre[lane] = left + widths[lane] / 2
            left += widths[lane] + LANE_GAP
    at: dict[str, tuple[float, float]] = {}
    for (r, lane), cell in lines.items():
        y = sum(heights[:r]) + ROW_GAP * r + (heights[r] - _height(cell)) / 2
        for line in cell:
            x, tall = centre[lane] - _width(line) / 2, max(i.h for i in line)
            for item in line:
                at[item.key] = x + item.w / 2, y + tall / 2
                x += item.w + CELL_GAP
            y += tall + CELL_GAP
    return Places(at, tuple((LANES[lane], x) for lane, x in centre.items()))


def columns(items: Sequence[Item], tall: int = 14) -> Places | None:
    """Items in the order they run, column by column; none where they fit one below the other."""
    if len(items) <= tall:
        return None
    at, x = {}, 0.0
    for start in range(0, len(items), tall):
        column = items[start : start + tall]
        wide = max(i.w for i in column)
        for n, item in enumerate(column):
            at[item.key] = x + wide / 2, n * (max(i.h for i in items) + ROW_GAP)
        x += wide + LANE_GAP
    return Places(at, ())


def _lines(cell: Sequence[Item], lane: str) -> list[list[Item]]:
    """A cell's boxes line by line; gradients flow up, so their first stands lowest."""
    out: list[list[Item]] = []
    for item in reversed(cell) if lane == "backward" else cell:
        fits = lane == "forward" and out and _width([*out[-1], item]) <= CELL_WIDTH
        if fits:
            out[-1].append(item)
        else:
            out.append([item])
    return out


def _width(line: Sequence[Item]) -> float:
    return sum(i.w for i in line) + CELL_GAP * (len(line) - 1)


def _height(cell: Sequence[Sequence[Item]]) -> float:
    return sum(max(i.h for i in line) for line in cell) + CELL_GAP * (len(cell) - 1)


def rows(items: Sequence[Item], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Forward: below all it reads, and as near as possible to what reads it. The others: beside
    what they want to stand by, or what they are joined to."""
    lane = {i.key: i.lane for i in items}
    own = [i.key for i in items if i.lane == "forward"]
    inner = _without_cycles(own, edges)
    row = dict.fromkeys(own, 0)
    for _ in own:  # few: this settles after as many rounds as the longest way is long
        before = dict(row)
        for a, b in inner:
            row[b] = max(row[b], row[a] + 1)
        if row == before:
            break
    for key in sorted(own, key=lambda key: -row[key]):
        if below := [row[b] for a, b in inner if a == key]:
            row[key] = min(below) - 1
    last = max(row.values(), default=0)
    around: dict[str, list[str]] = {i.key: [] for i in items}
    for a, b in edges:
        around[a].append(b)
        around[b].append(a)
    for which in ("backward", "optimizer", "data"):
        todo = [i for i in items if i.lane == which]
        for item in todo:
            near = [row[a] for a in item.anchors if a in row]
            if not near and which == "optimizer":
                near = [row[a] for a in around[item.key] if lane[a] == "backward" and a in row]
                near = [max(near)] if near else []
            if near:
                row[item.key] = min(near) if which == "data" else near[0]
        for _ in range(4):
            for item in todo:
                near = [row[a] for a in around[item.key] if a in row]
                if item.key not in row and near:
                    row[item.key] = min(near) if which == "data" else max(near)
        for item in todo:
            row.setdefault(item.key, 0 if which == "data" else last)
    return row


def _without_cycles(own: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges among some items, without those that lead back (groups may read each other)."""
    out: dict[str, list[str]] = {key: [] for key in own}
    for a, b in dict.fromkeys(edges):
        if a in out and b in out and a != b:
            out[a].append(b)
    kept: list[tuple[str, str]] = []
    state: dict[str, int] = {}  # 1: on the way, 2: done
    for root in own:
        stack = [(root, iter(out[root]))] if root not in state else []
        state.setdefault(root, 1)
        while stack:
            key, following = stack[-1]
            below = next(following, None)
            if below is None:
                state[key] = 2
                stack.pop()
            elif state.get(below) != 1:
                kept.append((key, below))
                if below not in state:
                    state[below] = 1
                    stack.append((below, iter(out[below])))
    return kept
