"""Which way a kernel was compiled, and why. Nothing is silent.

The record travels as the first line of the kernel's IR, a comment: so it survives tinygrad's disk
cache and its compile workers, and anyone who has the program has its record.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

MARK = "; tgx path "


@dataclass(frozen=True)
class PathRecord:
    """`path` is "tile" (the contraction compiler) or "loops" (tinygrad's ordinary way)."""

    path: str
    tile: str = ""  # the plan, for the tile path
    reason: str = ""  # why not the tile path, for the others
    nest: str = ""  # the recovered loop nest

    def line(self) -> str:
        """The record as one comment line of LLVM IR."""
        return MARK + json.dumps({k: v for k, v in asdict(self).items() if v})

    def __str__(self) -> str:
        return f"path {self.path}: {self.tile or self.reason}"


def record_of(source: str) -> PathRecord | None:
    """The record of a kernel, from its IR text."""
    for line in source.splitlines()[:8]:
        if line.startswith(MARK):
            return PathRecord(**json.loads(line[len(MARK) :]))
    return None
