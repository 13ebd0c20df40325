"""A picture as graphviz's dot language.

Colour says the phase (or cost, or bound), shape says the kind, the border what changed; the legend
in every picture says so again. Everything that came out of the trace is escaped: labels are
HTML-like, so `<`, `>`, `&` and quotes are entities, and other strings are quoted.
"""

from __future__ import annotations

from html import escape

from tgx.model import Trace
from tgx.views import words
from tgx.views.colours import MARK_WORDS, MARKS, TONES
from tgx.views.lanes import Places
from tgx.views.picture import Box, Edge, Picture, picture

# kind -> graphviz shape, its style, and a character like it for the legend
SHAPES: dict[str, tuple[str, str, str]] = {
    "kernel": ("box", "filled,rounded", "▢"),
    "graph": ("box3d", "filled", "❒"),
    "copy": ("cds", "filled", "⇒"),
    "view": ("box", "filled,dashed", "┄"),
    "custom": ("octagon", "filled", "⬢"),
    "buffer": ("cylinder", "filled", "⛁"),
    "arithmetic": ("box", "filled,rounded", "▢"),
    "reduce": ("invtrapezium", "filled", "▽"),
    "memory": ("cylinder", "filled", "⛁"),
    "movement": ("parallelogram", "filled", "▱"),
    "control": ("hexagon", "filled", "⬡"),
    "index": ("ellipse", "filled", "○"),
    "constant": ("plain", "filled", "1"),
}

FONT = "Helvetica"  # one name: graphviz knows its widths, and would guess those of a list
LONGEST = 3_000
"""Characters of one text: graphviz reads none of more than 16384 bytes."""
BOUNDS = "nslimit=1 nslimit1=1 mclimit=0.1"
"""Graphviz may take minutes on a few hundred boxes; with these it stops polishing."""


def render(trace: Trace, what: str = "schedule", **choices: object) -> str:
    """One of `picture.PICTURES` as dot."""
    return to_dot(picture(trace, what, **choices))


def to_dot(p: Picture) -> str:
    """A picture as dot, whatever it shows."""
    splines = "polyline" if len(p.boxes) > 30 and not p.places else "true"
    out = [
        "digraph tgx {",
        f"  graph [{'layout=neato' if p.places else BOUNDS} splines={splines} ranksep=0.45"
        f" nodesep=0.3 fontname={quote(FONT)} fontsize=11 labelloc=t labeljust=l bgcolor=white"
        f" label={_title(p)}];",
        f"  node [fontname={quote(FONT)} fontsize=11 penwidth=1 margin={quote('0.14,0.07')}];",
        f"  edge [fontname={quote(FONT)} fontsize=9 color={quote('#57606a')}"
        f" fontcolor={quote('#3d444d')} arrowsize=0.7];",
    ]
    out += [_box(b, p.places) for b in p.boxes]
    if p.places:
        out += [f"  {quote('lane ' + title)} [shape=plain fontcolor={quote('#57606a')}"
                f" label=<<b>{html(title)}</b>> pos={quote(_place(x, -30))}];"
                for title, x in p.places.lanes]
    out += [_edge(e) for e in p.edges]
    if p.rows:
        out.append(_chart(p))
    out += _legend(p)
    return "\n".join([*out, "}", ""])


def quote(text: str) -> str:
    """A dot string: backslashes and quotes escaped, line ends as \\n."""
    text = words.clean(text)[:LONGEST].replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'


def html(text: str) -> str:
    """Text inside an HTML-like label."""
    return escape(words.clean(text)[:LONGEST], quote=True).replace("\n", "<br/>")


def _tip(text: str) -> str:
    # graphviz reads &entities; in plain strings too, so ampersands are written as entities
    return quote(words.clean(text)[: LONGEST // 2].replace("&", "&amp;"))


def _title(p: Picture) -> str:
    small = "".join(f'<br align="left"/><font point-size="9">{html(words.line(n, 120))}</font>'
                    for n in p.notes)
    return f'<<b>{html(words.line(p.title, 120))}</b>{small}<br align="left"/>>'


def _label(title: str, small: tuple[str, ...]) -> str:
    rows = "".join(f'<br/><font point-size="8.5">{html(s)}</font>' for s in small)
    return f'<<font point-size="11">{html(title) or " "}</font>{rows}>'


def _place(x: float, y: float) -> str:
    """Points, y downwards, as graphviz wants a fixed place: inches, y upwards."""
    return f"{x / 72:.3f},{-y / 72:.3f}!"


def _box(b: Box, places: Places | None = None) -> str:
    shape, style, _ = SHAPES.get(b.kind, SHAPES["kernel"])
    fill, ink = TONES.get(b.tone, TONES[""])
    border, line_style, width = MARKS[b.mark]
    style = style if line_style == "solid" else f"{style},{line_style}"
    return (
        f"  {quote(b.key)} [label={_label(b.title, b.small)} shape={shape} style={quote(style)}"
        f" fillcolor={quote(fill)} fontcolor={quote(ink)} color={quote(border)} penwidth={width}"
        f" tooltip={_tip(b.tooltip or b.title)}"
        + (f" pos={quote(_place(*places.at[b.key]))}" if places else "") + "];"
    )


def _edge(e: Edge) -> str:
    look = {
        "data": "",
        "boundary": f" penwidth=1.6 color={quote('#1b1f24')}",
        "order": f" style=dotted color={quote('#8c959f')}",
        "of": f" style=dotted color={quote('#b24a00')} arrowhead=odot constraint=false",
        "gradient": f" dir=back color={quote('#b24a00')} fontcolor={quote('#7a3200')}",
    }[e.kind]
    label = f" label=<{html(e.label)}>" if e.label else ""
    tip = f" tooltip={_tip(e.tooltip)} labeltooltip={_tip(e.tooltip)}" if e.tooltip else ""
    attributes = (label + tip + look).strip()
    ends = [quote(e.source), quote(e.target)]
    if e.kind == "gradient":  # against the forward's direction: so both graphs lie the same way up
        ends.reverse()
    same = f"  {{ rank=same; {ends[0]}; {ends[1]} }}\n" if e.kind == "of" else ""
    return f"{same}  {ends[0]} -> {ends[1]}{f' [{attributes}]' if attributes else ''};"


def _legend(p: Picture) -> list[str]:
    marks = [m for m in MARK_WORDS if any(b.mark == m for b in p.boxes)]
    rows = []
    for kind, tone, text in p.legend:
        if kind:
            sample = f'<td align="center">{SHAPES[kind][2]}</td>'
        else:
            fill, _ = TONES[tone]
            sample = f'<td bgcolor="{fill}" border="1" width="22" height="12"></td>'
        rows.append(_row(sample, html(text)))
    for m in marks:
        colour, style, _ = MARKS[m]
        sample = f'<td align="center"><font color="{colour}"><b>{style}</b></font></td>'
        rows.append(_row(sample, html(MARK_WORDS[m])))
    if any(e.kind == "boundary" for e in p.edges):
        why = "why it is stored (hover: the whole reason)"
        rows.append(_row('<td align="center"><b>⟂</b></td>', why))
    if any(e.kind == "order" for e in p.edges):
        rows.append(_row('<td align="center">┈</td>', "runs after"))
    if any(e.kind == "of" for e in p.edges):
        rows.append(_row('<td align="center">┈○</td>', "is the gradient of"))
    if any(e.kind == "gradient" for e in p.edges):
        colour = '<font color="#b24a00"><b>→</b></font>'
        rows.append(_row(f'<td align="center">{colour}</td>', "times the derivative on the edge"))
    if not rows:
        return []
    table = ('<table border="0" cellborder="0" cellspacing="2" cellpadding="1">'
             f'{"".join(rows)}</table>')
    if p.places:
        xs = [x for x, _ in p.places.at.values()]
        x = (min(xs) + max(xs)) / 2
        y = max(y for _, y in p.places.at.values()) + 60
        flat = "<td>   </td>".join(row[4:-5] for row in rows)
        table = ('<table border="0" cellborder="0" cellspacing="2" cellpadding="1">'
                 f"<tr>{flat}</tr></table>")
        return [f"  legend [shape=plain fontsize=9 label=<{table}> pos={quote(_place(x, y))}];"]
    return ["  subgraph cluster_legend {", "    label=legend; labeljust=l; fontsize=9;"
            f" color={quote('#d0d7de')};",
            f"    legend [shape=plain fontsize=9 label=<{table}>];", "  }"]


def _row(sample: str, text: str) -> str:
    """A legend's row. Fonts differ from machine to machine: the room on the right is for that."""
    return f'<tr>{sample}<td align="left"><font point-size="9">{text}</font>  </td></tr>'


def _chart(p: Picture) -> str:
    """The memory picture: a row for each buffer, a column for each kernel (or some kernels)."""
    width = max((r.last for r in p.rows), default=0) + 1
    cell = max(4, 420 // width)
    rows = []
    for r in p.rows:
        fill, _ = TONES[r.tone]
        cells = [f'<td width="{cell * n}" colspan="{n}"></td>' if n else "" for n in
                 (r.first, width - 1 - r.last)]
        n = r.last - r.first + 1
        life = (f'<td bgcolor="{fill}" border="1" color="#57606a" width="{cell * n}"'
                f' colspan="{n}"></td>')
        name = f"{html(r.name)}{' ▲' if r.at_peak else ''}"
        rows.append(f'<tr><td align="left"><font point-size="9">{name}</font>   </td>'
                    f'<td align="right"><font point-size="9">{html(r.text)}</font></td>'
                    f"{cells[0]}{life}{cells[1]}</tr>")
    rows.append('<tr><td align="left"><font point-size="9">▲ alive at the peak</font></td><td></td>'
                f'<td align="left" colspan="{width}"><font point-size="9">kernels in order →</font>'
                "</td></tr>")
    table = ('<table border="0" cellborder="0" cellspacing="1" cellpadding="2">'
             f'{"".join(rows)}</table>')
    return f"  chart [shape=plain fontsize=9 label=<{table}>];"
