"""Which UOp each line of a program's source came from.

tinygrad's renderers turn one UOp after the other into text by a table of rules, `string_rewrite`,
and keep no account of it. So the program is rendered once more, by a copy of the renderer whose
rules leave a mark in what they write: marks of UOps that are written inside another's expression
end up inside its line. Without its marks the text has to be the program's own, letter by letter;
where it is not, nothing is said. TGX's own renderer keeps the account itself.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

from tinygrad.uop.ops import Ops, UOp

from tgx import model

# from Unicode's private use area: no renderer writes these
OPEN, CLOSE = "\ue000", "\ue001"
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Marking:
    """A renderer's table of rules that marks what each of them writes."""

    def __init__(self, rules: Any, place: dict[UOp, int]) -> None:
        self.rules, self.place = rules, place

    def rewrite(self, node: UOp, ctx: Any = None) -> Any:
        text = self.rules.rewrite(node, ctx=ctx)
        if text is None:
            return None
        mark = f"{OPEN}{self.place[node]}{CLOSE}"
        if isinstance(text, list):
            return [_marked(line, mark) for line in text]
        return "\n".join(_marked(line, mark) for line in str(text).split("\n"))


def _marked(line: str, mark: str) -> str:
    # inside outer parentheses, which a rule may look for and strip
    return f"{line[:-1]}{mark})" if line[:1] == "(" and line[-1:] == ")" else line + mark


def traced(code: model.Code, prg: UOp, nodes: list[UOp], renderer: Any) -> model.Code:
    """A program's source with the UOps of its lines: places among ``nodes``."""
    place = {n: i for i, n in enumerate(nodes)}
    uops = list(prg.src[1].src)
    try:
        found = _own(renderer, uops, code.text, place) or _marks(renderer, uops, code.text, place)
    except Exception:  # a renderer that cannot do without its device, or is no table of rules
        return code
    if not found:
        return code
    return replace(
        code,
        uops=tuple(line[-1] if line else -1 for line in found),
        inside=tuple(tuple(dict.fromkeys(line[:-1])) for line in found),
    )


def _marks(
    renderer: Any, uops: list[UOp], source: str, place: dict[UOp, int]
) -> list[list[int]] | None:
    """For each line of the source, the UOps that are written in it: the line's own comes last."""
    if not hasattr(renderer, "string_rewrite"):
        return None
    marking = copy.copy(renderer)
    marking.string_rewrite = Marking(renderer.string_rewrite, place)
    text = marking.render(uops)
    if MARK.sub("", text) != source:
        return None
    return [[int(i) for i in MARK.findall(line)] for line in text.split("\n")]


def _own(
    renderer: Any, uops: list[UOp], source: str, place: dict[UOp, int]
) -> list[list[int]] | None:
    """The account that TGX's renderer keeps of the lines it wrote."""
    whole = next(  # behind it counted mode writes a comment
        (u for u in uops if u.op is Ops.CUSTOM and isinstance(u.arg, str) and u.arg
         and source.startswith(u.arg)), None,
    )  # fmt: skip
    lines = source.split("\n")
    if whole is not None:  # the tile path: one node holds all of the kernel
        return [[place[whole]] for _ in lines]
    if not hasattr(renderer, "written"):
        return None
    body = renderer.written("", uops)
    block = [*body.stack_slots, *body.lines]
    start = next(i for i, line in enumerate(lines) if line.startswith("define ")) + 1
    if lines[start : start + len(block)] != block:
        return None
    sources = [u for u in uops if u.op is Ops.BUFFER][: len(body.stack_slots)] + body.sources
    before, after = start, len(lines) - start - len(block)
    return [[]] * before + [[place[u]] for u in sources] + [[]] * after
