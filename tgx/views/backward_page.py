"""The backward walk as a page: a slider steps through it, with the picture, the user's code, the
rule and the numbers beside it. One file, offline, like the explorer's page.

All text is prepared here; the script only puts it into text nodes. Pictures are graphviz's SVG,
whose labels are escaped; a trace travels as base64, which cannot close a script element.
"""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from typing import Any

from tgx.errors import TgxError
from tgx.model import Contribution, GradientStep, Trace, Walk
from tgx.passes import walks
from tgx.safe import policy, shown_json
from tgx.views import backward, backward_picture, svg, words
from tgx.views.dot import to_dot

MOST_LINES = 4_000  # of one source file
MOST_PICTURES = 30  # operations that can be opened
MOST_STEPS = 40  # of an operation that can be opened

PARTS = ("backward.css", "backward.js")


def render(trace: Trace, form: str = "html", level: str = "auto") -> str:
    """The page as one string of HTML."""
    page = files("tgx.views") / "page"
    style, script = ((page / name).read_text("utf-8") for name in PARTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    data, pictures = pack(trace, level)
    holes = {
        "{{title}}": escape(words.line(trace.environment.program or "backward", 80)),
        "{{policy}}": policy(style, script),
        "{{style}}": style,
        "{{pictures}}": "\n".join(
            f'<div class="picture" data-picture="{escape(key, quote=True)}" hidden>{text}</div>'
            for key, text in pictures.items()
        ),
        "{{data}}": base64.b64encode(shown_json(data).encode()).decode(),
        "{{script}}": script,
    }
    out = []
    for line in (page / "backward.html").read_text("utf-8").split("\n"):
        hole = next((h for h in holes if h in line), None)
        out.append(line.replace(hole, holes[hole]) if hole else line)
    return "\n".join(out)


def pack(trace: Trace, level: str = "auto") -> tuple[dict[str, Any], dict[str, str]]:
    """What the page shows, as plain data, and its pictures by their keys."""
    pictures: dict[str, str] = {}
    problems: list[str] = []

    def draw(key: str, **choices: Any) -> str:
        try:
            drawn = backward_picture.picture(trace, **choices)
            pictures[key] = svg.from_dot(to_dot(drawn))
        except TgxError as e:  # without graphviz the rest of the page stands
            if str(e) not in problems:
                problems.append(str(e))
            return ""
        return key

    shown = []
    for walk in trace.walks:
        chosen = backward.shown_level(trace, walk, level)
        main = draw(f"w{walk.id}", level=level, walk=walk.id)
        few = [o for o in walks.operations(trace, walk.id) if len(o.steps) <= MOST_STEPS]
        opened = {
            o.id: draw(f"o{o.id}", walk=walk.id, only=o.id) for o in few[:MOST_PICTURES]
        } if chosen == "operations" else {}
        shown.append(_walk(trace, walk, chosen, main, opened))
    used = {s["file"] for w in shown for s in w["steps"] if s["file"] >= 0}
    data = {
        "program": trace.environment.program,
        "device": trace.environment.device,
        "tinygrad": trace.environment.tinygrad,
        "problems": [words.line(p) for p in problems],
        "files": {
            f.id: {"path": f.path, "lines": f.lines[:MOST_LINES]}
            for f in trace.files if f.id in used
        },
        "walks": shown,
    }
    return data, pictures


def _walk(trace: Trace, walk: Walk, level: str, picture: str,
          opened: dict[int, str]) -> dict[str, Any]:
    own = walks.steps(trace, walk.id)
    return {
        "title": backward.title(trace, walk),
        "heading": backward.heading(trace, walk),
        "result": backward.result_line(trace, walk),
        "level": level,
        "picture": picture,
        "findings": [{"kind": f.kind, "text": f.text,
                      "place": "" if f.place.startswith("expression") else f.place,
                      "step": next((i for i, s in enumerate(own) if s.id == f.step), -1)}
                     for f in walks.findings(trace, walk)],
        "targets": [
            {"node": t.node, "name": walks.name(trace, walk, t.node),
             "value": backward.brief(walk.value(t.node)),
             "gradient": backward.brief(walk.value(t.gradient)) if t.gradient >= 0 else "none",
             "check": backward.check_word(t.check, walks.tolerance(trace, walk)) or t.stops}
            for t in walks.parameters(walk)
        ],
        "operations": [
            {"id": o.id, "name": backward.operation_name(o),
             "at": backward.spot(trace, o.origin), "picture": opened.get(o.id, ""),
             "upstream": backward.brief(walk.value(o.upstream)),
             "flows": [{"to": walks.name(trace, walk, f.node), "formula": f.formula,
                        "total": backward.brief(f.total),
                        "check": f"✓ {f.error:.0e}" if f.error >= 0 else ""} for f in o.flows]}
            for o in walks.operations(trace, walk.id)
        ],
        "steps": [_step(trace, walk, s) for s in own],
        "kernels": [
            {"id": p.kernel, "name": trace.kernel(p.kernel).name,
             "steps": [i for i, s in enumerate(own) if s.id in set(p.steps)],
             "spans": backward.spans([i + 1 for i, s in enumerate(own) if s.id in set(p.steps)]),
             "again": backward.recomputed(trace, walk, p),
             "reads": [r for r in dict.fromkeys(p.reads) if r]}
            for p in walks.kernel_parts(trace, walk)
        ],
    }  # fmt: skip


def _step(trace: Trace, walk: Walk, s: GradientStep) -> dict[str, Any]:
    place, rule = walks.rule_text(trace, s)
    file, line, start, end = _frame(trace, s.origin)
    return {
        "op": s.op,
        "node": s.node,
        "name": walks.name(trace, walk, s.node),
        "at": backward.where(trace, s),
        "file": file, "line": line, "start": start, "end": end,
        "formula": s.formula,
        "value": backward.brief(walk.value(s.node)),
        "upstream": backward.brief(walk.value(s.upstream)),
        "place": place,
        "rule": rule,
        "group": s.group,
        "parts": [_part(trace, walk, c) for c in backward.told(trace, walk, s)],
        "kernels": [f"{k}: {trace.kernel(k).name}" for k in s.kernels],
        "made": len(s.made),
    }  # fmt: skip


def _part(trace: Trace, walk: Walk, c: Contribution) -> dict[str, Any]:
    return {
        "to": walks.name(trace, walk, c.target),
        "target": c.target,
        "gets": backward.brief(walk.value(c.node)) if c.node >= 0 else "",
        "total": backward.brief(walk.value(c.total)) if c.total >= 0 else "",
        "adds": c.node >= 0 and c.total != c.node,
        "formula": backward.mathematics(c),
        "summed": ", ".join(map(str, c.summed)),
        "stops": c.stops,
        "check": backward.check_word(c.check, walks.tolerance(trace, walk)),
        "difference": backward.number(c.check.difference[0]) if c.check.difference else "",
        "beside": backward.number(c.check.gradient[0]) if c.check.gradient else "",
    }


def _frame(trace: Trace, origin: int) -> tuple[int, int, int, int]:
    """(file, line, first column, last column) of a step's forward operation; -1 for unknown."""
    if origin < 0:
        return -1, 0, -1, -1
    o = trace.origin(origin)
    while o.phase == "backward" and o.forward >= 0:
        o = trace.origin(o.forward)
    if o.frame < 0:
        return -1, 0, -1, -1
    f = trace.frame(o.frame)
    text = trace.file(f.file).text(f.line).encode("utf-8", "replace")
    # Python counts bytes, the page the halves of UTF-16, in a text whose hidden marks are shown
    start, end = (len(words.clean(text[:c].decode("utf-8", "replace")).encode("utf-16-le")) // 2
                  if c >= 0 else -1 for c in (f.column, f.end_column))
    return f.file, f.line, start, end
