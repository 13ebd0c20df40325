"""A kernel as plain data: a Nest, one loop nest with exact affine accesses. It prints.

Made by recover.py from tinygrad's expression, planned by plan.py, turned into code by emit.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tinygrad.dtype import DType


class Miss(Exception):
    """This kernel is not for the tile path; the message is the reason, kept in its PathRecord."""


@dataclass(frozen=True)
class Axis:
    """One loop. `out` loops write different outputs, the others are summed (or max-ed) over."""

    name: str
    size: int
    out: bool


@dataclass(frozen=True)
class Affine:
    """const + sum of coefficient * axis, and of coefficient * a variable that a call brings."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()
    variables: tuple[tuple[str, int], ...] = ()

    @functools.cached_property
    def coefs(self) -> dict[str, int]:
        return dict(self.terms)

    def __getitem__(self, axis: str) -> int:
        return self.coefs.get(axis, 0)

    def __str__(self) -> str:
        words = [f"{c}*{a}" if c != 1 else a for a, c in self.variables + self.terms]
        return " + ".join(words + ([str(self.const)] if self.const or not words else []))

    @staticmethod
    def of(const: int, coefs: dict[str, int]) -> Affine:
        return Affine(const).over(coefs)

    def over(self, coefs: dict[str, int]) -> Affine:
        """The same start, and other axes."""
        return replace(self, terms=tuple(sorted((a, c) for a, c in coefs.items() if c)))


@dataclass(frozen=True)
class Mask:
    """Which points of a few axes are valid: a small truth table, one entry per point.

    `implied` says that the loops only visit points where it holds."""

    axes: tuple[str, ...]
    table: np.ndarray = field(compare=False)
    key: bytes
    implied: bool = False

    @staticmethod
    def of(axes: Iterable[str], table: np.ndarray, implied: bool = False) -> Mask:
        return Mask(tuple(axes), table, np.packbits(table).tobytes(), implied)

    def __str__(self) -> str:
        return f"[{','.join(self.axes)}: {int(self.table.sum())} of {self.table.size}]"


@dataclass(frozen=True)
class Access:
    """One place a kernel reads or writes: buffer `slot` at `index`, where all masks hold."""

    slot: int
    dtype: DType
    size: int
    index: Affine
    masks: tuple[Mask, ...] = ()

    def __str__(self) -> str:
        return f"p{self.slot}[{self.index}]" + "".join(
            f" if {m}" for m in self.masks if not m.implied
        )

    def uses(self, axis: str) -> bool:
        return self.index[axis] != 0 or any(axis in m.axes for m in self.masks)


SIGNS = {"add": "+", "mul": "*", "fdiv": "/", "cmplt": "<", "cmpne": "!=", "and": "&"}


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of the expression. `op` is a tinygrad op name in lower case, or
    load (arg: Access), const (a value), index (Affine), mask (Masks), sum (op), part (which)."""

    op: str
    dtype: DType
    src: tuple[Node, ...] = ()
    arg: Any = None

    def walk(self) -> Iterator[Node]:
        """Every node once, sources first."""
        seen: set[Node] = set()
        stack = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((s, False) for s in reversed(node.src))

    def __str__(self) -> str:
        """The expression as a tree. What a long one uses twice is written once, under a name: a
        polynomial of a polynomial, as a tree, doubles in length with every level."""
        nodes, names, lines = list(self.walk()), dict[Node, str](), []
        size: dict[Node, int] = {}
        for n in nodes:
            size[n] = 1 + sum(size[s] for s in n.src)
        if size[self] > 100:
            uses = Counter(s for n in nodes for s in n.src)
            for n in nodes:
                if uses[n] > 1 and n.src:
                    lines.append(f"t{len(names)} = {n.text(names)}")
                    names[n] = f"t{len(names)}"
        return "\n  ".join([*lines, self.text(names)])

    def text(self, names: dict[Node, str]) -> str:
        """The expression, with the nodes in `names` written by their names."""
        if (known := names.get(self)) is not None:
            return known
        src = [s.text(names) for s in self.src]
        match self.op:
            case "load":
                return str(self.arg)
            case "const":
                return str(self.arg)
            case "index":
                return f"({self.arg})"
            case "part":
                return f"part {self.arg}"
            case "mask":
                return " & ".join(map(str, self.arg)) or "true"
            case "sum":
                return f"{self.arg.name.lower()}({src[0]})"
            case "where":
                return f"({src[0]} ? {src[1]} : {src[2]})"
            case "cast":
                return f"{self.dtype.name}({src[0]})"
        if sign := SIGNS.get(self.op):
            return f"({src[0]} {sign} {src[1]})"
        return f"{self.op}({', '.join(src)})"


@dataclass(frozen=True)
class Nest:
    """A perfect loop nest: for every point of the out axes, store `value`.

    At most one node of `value` is a `sum`; it runs over the axes that are not `out`, on the points
    where every mask of `domain` holds. What else is summed up for the same outputs is in `parts`,
    nests of their own over the same out axes; the node `part` stands for their values."""

    axes: tuple[Axis, ...]
    store: Access
    value: Node
    domain: tuple[Mask, ...] = ()
    parts: tuple[Nest, ...] = ()

    @property
    def reduction(self) -> Node | None:
        return next((n for n in self.value.walk() if n.op == "sum"), None)

    def size(self, axis: str) -> int:
        return next(a.size for a in self.axes if a.name == axis)

    def __str__(self) -> str:
        loops = " ".join(f"{a.name}:{a.size}" for a in self.axes if a.out)
        sums = " ".join(f"{a.name}:{a.size}" for a in self.axes if not a.out)
        where = "".join(f"\n  where {describe(m)}" for m in self.domain)
        first = "".join(f"part {i}: {p}\n" for i, p in enumerate(self.parts))
        loops = f"for {loops or '-'}{' sum ' + sums if sums else ''}"
        return f"{first}{loops}{where}\n  {self.store} = {self.value}"


def describe(mask: Mask) -> str:
    """`kh=0: h in [1,14) …`: valid intervals of the last axis for each value of the first."""
    if len(mask.axes) != 2:
        return str(mask)
    words = []
    for value, row in enumerate(mask.table):
        points = np.flatnonzero(row)
        words.append(
            f"{mask.axes[0]}={value}: "
            + (
                f"{mask.axes[1]} in [{points[0]},{points[-1] + 1})"
                if len(points) and len(points) == points[-1] - points[0] + 1
                else f"{len(points)} points"
            )
        )
    return ", ".join(words if len(words) <= 4 else words[:2] + ["…"] + words[-1:])
