"""The course's puzzles: `tgx puzzle`. Each is checked at once; most take a line or two.

In the spirit of Sasha Rush's GPU-Puzzles. A puzzle is a file that defines one `Puzzle`: the task,
what to start from, a hint, a picture, a solution, and a check that says what is wrong. A new one
is a file and a line here.
"""

from __future__ import annotations

from tgx.puzzles import (
    derive,
    emitter,
    fuse,
    guard,
    one_pass,
    predict,
    rewrite,
    rules,
    split,
    strides,
)
from tgx.puzzles.base import Puzzle

PUZZLES: dict[int, Puzzle] = dict(
    enumerate(
        (
            guard.PUZZLE,
            strides.PUZZLE,
            derive.PUZZLE,
            rules.PUZZLE,
            predict.PUZZLE,
            fuse.PUZZLE,
            split.PUZZLE,
            rewrite.PUZZLE,
            emitter.PUZZLE,
            one_pass.PUZZLE,
        ),
        start=1,
    )
)
