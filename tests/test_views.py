"""tgx.views: what each says of a hand-built trace, by exact text; and what holds for all of them.

The goldens are rewritten by `TGX_GOLDENS=write pytest tests/test_views.py`; read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import traces
from tgx import codec
from tgx.errors import BadInput
from tgx.model import Environment, Kernel, Schedule, Trace
from tgx.passes.costs import Roof
from tgx.views import VIEWS, compare, html, picture, svg, text, words

pytestmark = pytest.mark.pure

GOLDENS = Path(__file__).with_name("goldens")
BIG = traces.big(3000, 4000)
TRACES = {
    "mlp": traces.mlp_step, "counted": traces.counted_step, "hostile": traces.hostile,
    "empty": Trace,
}
PICTURES = tuple(picture.PICTURES)


def check(name: str, got: str) -> None:
    """Compare with a golden file, or write it."""
    file = GOLDENS / name
    if os.environ.get("TGX_GOLDENS") == "write":
        file.write_text(got, "utf-8")
    assert got == file.read_text("utf-8"), f"{name} differs; TGX_GOLDENS=write rewrites it"


def render(view: str, trace: Trace, **choices: Any) -> str:
    return VIEWS[view].render(trace, **choices)


# **** goldens ****

GOLDEN: dict[str, tuple[str, dict[str, Any]]] = {
    "summary.txt": ("text", {}),
    "kernel-0.txt": ("text", {"kernel": 0}),
    "line-11.txt": ("text", {"line": "mlp.py:11"}),
    "pull-request.md": ("markdown", {"rows": 4}),
    "facts.json": ("json", {"kernels": (0, 9)}),
    **{f"{what}.dot": ("dot", {"what": what}) for what in PICTURES},
    "schedule-cost.dot": ("dot", {"what": "schedule", "colour": "cost"}),
    "schedule-around-2.dot": ("dot", {"what": "schedule", "focus": 2, "limit": 4}),
    "timeline.json": ("perfetto", {}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    view, choices = GOLDEN[name]
    got = render(view, traces.mlp_step(), **choices)
    check(name, got.replace("},{", "},\n{") if name == "timeline.json" else got)


@pytest.mark.parametrize(("name", "kernel"), [("counted.txt", -1), ("counted-0.txt", 0)])
def test_golden_counts(name: str, kernel: int) -> None:
    """What was counted stands where what was measured stands, and is all that is added."""
    got = render("text", traces.counted_step(), kernel=kernel, code=False)
    before = render("text", traces.mlp_step(), kernel=kernel, code=False).split("\n")
    assert [x for x in got.split("\n") if x and x in before] == [x for x in before if x]
    check(name, got)


def test_counts_as_records() -> None:
    kernels = json.loads(render("json", traces.counted_step(), kernels=(0, 1)))["kernels"]
    told = {k["id"]: k["counts"] for k in kernels}
    assert told[1] is None and told[0]["calls"] == 3 and told[0]["flops"] == 38_535_168
    assert [m["name"] for m in told[0]["memory"]] == ["h", "x", "w1", "packed copies"]
    assert told[0]["memory"][3]["buffer"] is None and told[0]["memory"][2]["l1_misses"] == 301_056


def test_golden_comparison() -> None:
    from test_passes import contiguous

    before, after = traces.mlp_step(), contiguous(traces.mlp_step())
    check("compare.txt", compare.render([before, after], ["before", "after"]))
    told = json.loads(compare.render([before, after], form="json"))["comparisons"][0]
    assert told["operations"]["added"] == [
        {"op": "contiguous", "phase": "forward", "line": "mlp.py:10"}]
    assert told["kernels"]["split"][0]["into"] == ["linear + bias", "relu"]
    assert "| kernel | A | B |" in compare.render([before, after], form="markdown")
    with pytest.raises(BadInput, match="two or more"):
        compare.render([before])


def test_comparison_of_counted_kernels() -> None:
    one = traces.counted_step()
    more = [replace(t, loaded=2 * t.loaded, l1_misses=3 * t.l1_misses) if t.kernel == 0 else
            replace(t, l1_misses=t.l1_misses * 101 // 100) for t in one.traffic]
    other = replace(one, traffic=tuple(more))
    shown = compare.render([one, other])
    assert shown.startswith("the fastest launch of each kernel (slowed by TGX_COUNT=1)")
    assert ("- counted, one launch of linear + bias + relu (0): loaded 12.8 MB → 25.7 MB (×2.00), "
            "L1 misses 123 k → 369 k (×3.00)\n") in shown
    assert shown.count("counted,") == 1  # a hundredth more misses is where the buffers lie
    assert "- counted: 2 kernels with the same work\n" in compare.render([one, one])
    assert "counted" not in compare.render([one, traces.mlp_step()]).replace("slowed by", "")
    pairs = json.loads(compare.render([one, other], form="json"))["comparisons"][0]["pairs"]
    (pair,) = (p for p in pairs if p["a"] == 0)
    assert pair["a_counts"]["flops"] == pair["b_counts"]["flops"] == 38_535_168


# **** every view of every trace ****


@pytest.mark.parametrize("of", TRACES)
@pytest.mark.parametrize("view", [v for v in VIEWS if v not in ("dot", "svg")])
def test_every_view_of_every_trace(view: str, of: str) -> None:
    trace = TRACES[of]()
    got = render(view, trace)
    assert got and got == render(view, trace), "the same trace gives the same text"
    assert got == render(view, codec.loads(codec.dumps(trace)))
    if VIEWS[view].suffix == ".json":
        json.loads(got)
    if view in ("text", "markdown"):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", got)
    if view == "markdown":
        assert "<script" not in got and "<img" not in got


@pytest.mark.parametrize("what", PICTURES)
@pytest.mark.parametrize("of", TRACES)
def test_every_picture_draws(of: str, what: str) -> None:
    trace = TRACES[of]()
    if of == "empty":
        try:
            dot = render("dot", trace, what=what)
        except BadInput as e:
            assert "this trace has no" in str(e)
            return
    else:
        dot = render("dot", trace, what=what)
    drawn = ET.fromstring(svg.from_dot(dot))
    assert drawn.tag.endswith("svg")
    for element in drawn.iter():
        assert not element.tag.endswith(("script", "image", "foreignObject"))
        for name, value in element.attrib.items():
            assert not name.split("}")[-1].startswith("on")
            assert not (name.split("}")[-1] == "href" and value)
    if of == "hostile":
        texts = "".join(drawn.itertext())
        assert "<script>alert(1)" in texts or "</script>" in texts, "it is shown as what it is"


@pytest.mark.parametrize("what", ["schedule", "kernel"])
def test_lines_stand_around_the_middle_of_their_box(what: str) -> None:
    """So that they stay in it, about, in a font that is wider than the one graphviz knows."""
    drawn = svg.from_dot(render("dot", traces.mlp_step(), what=what))
    nodes = re.findall(r'class="node">.*?</g>', drawn, re.DOTALL)
    nodes = [n for n in nodes if n.count("<path") + n.count("<polygon") == 1]
    assert len(nodes) >= 5
    for node in nodes:
        (outline,) = re.findall(r' (?:d|points)="([^"]*)"', node)
        xs = [float(x) for x in re.findall(r"(-?[\d.]+),-?[\d.]+", outline)]
        lines = re.findall(r'<text text-anchor="(\w+)" x="([^"]*)"', node)
        for anchor, x in lines:
            assert anchor == "middle" and abs(float(x) - (min(xs) + max(xs)) / 2) < 0.01


def test_every_picture_has_a_legend_and_says_its_colours() -> None:
    for what in PICTURES:
        p = picture.picture(traces.mlp_step(), what)
        tones = {b.tone for b in p.boxes if b.tone} | {r.tone for r in p.rows}
        assert tones <= {tone for _, tone, _ in p.legend}, what
        assert {b.kind for b in p.boxes} <= {kind for kind, _, _ in p.legend}, what


# **** bounds ****


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_are_bounded(what: str) -> None:
    p = picture.picture(BIG, what, **({"id": 0} if what == "kernel" else {}))
    assert 1 <= len(p.boxes) + len(p.rows) <= 61
    assert len(p.boxes) == len({b.key for b in p.boxes})
    keys = {b.key for b in p.boxes}
    assert all(e.source in keys and e.target in keys for e in p.edges)


def test_a_neighbourhood_holds_its_focus() -> None:
    p = picture.picture(BIG, "schedule", focus=1500, limit=30)
    assert len(p.boxes) <= 30
    assert [b.key for b in p.boxes if b.mark == "chosen"] == ["k1500"]
    p = picture.picture(BIG, "kernel", id=0, focus=2000, limit=30)
    assert len(p.boxes) <= 30 and any(b.mark == "chosen" for b in p.boxes)


def test_a_layout_that_takes_too_long_is_stopped() -> None:
    dense = "digraph {" + ";".join(
        f"{i}->{j}" for i in range(120) for j in range(i + 1, 120)) + "}"
    with pytest.raises(svg.LayoutError, match="more than"):
        svg.from_dot(dense, seconds=0.05)


def test_without_graphviz_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    svg.engine.cache_clear()
    monkeypatch.setattr("shutil.which", lambda *_a, **_k: None)
    with pytest.raises(FileNotFoundError, match="graphviz-pure"):
        svg.engine()
    svg.engine.cache_clear()


# **** the pictures' contents ****


def test_a_training_step_stands_in_lanes() -> None:
    p = picture.picture(traces.mlp_step())
    assert p.places is not None
    at = {b.title: p.places.at[b.key] for b in p.boxes}
    assert [t for t, _ in p.places.lanes] == ["data", "forward ↓", "backward ↑", "optimizer"]
    lane = {b.title: b.tone for b in p.boxes}
    x = {tone: {at[t][0] for t in at if lane[t] == tone} for tone in ("forward", "backward")}
    assert max(x["forward"]) < min(x["backward"])
    down = [at[t][1] for t in ("linear + bias + relu", "linear + bias")]
    up = [at[t][1] for t in ("∂w2 = hᵀ·∂z", "∂w1 = xᵀ·∂h")]
    assert down == sorted(down) and up == sorted(up, reverse=True)
    centres = list(p.places.at.values())
    assert len(set(centres)) == len(centres)


def test_a_kernel_says_what_it_stores_and_why() -> None:
    p = picture.picture(traces.mlp_step())
    (box,) = [b for b in p.boxes if b.key == "k0"]
    assert box.small[-1] == "⟂ readers walk it differently · 32.8 kB"
    assert "walk it in different orders" in box.tooltip
    edges = [e for e in p.edges if e.source == "k0"]
    assert len(edges) > 1 and not [e.label for e in edges if e.label]
    assert all("walk it in different orders" in e.tooltip for e in edges)


def test_without_its_gradients_a_buffer_is_named_once() -> None:
    p = picture.picture(traces.mlp_step(), focus=0, limit=3)
    labels = [e.label for e in p.edges if e.source == "k0"]
    assert labels[0].startswith("h · 32.8 kB\n⟂ readers walk it differently")
    assert labels[1:] == [""] * len(labels[1:])


def test_a_log_without_buffers_is_drawn_in_launch_order() -> None:
    log = Trace(kernels=tuple(Kernel(i, f"E_{i}", f"E_{i}", schedule=0) for i in range(3)),
                schedules=(Schedule(0, (0, 1, 2)),))
    p = picture.picture(log)
    assert [(e.source, e.target, e.kind) for e in p.edges] == [
        ("k0", "k1", "order"), ("k1", "k2", "order")]
    assert "which kernel reads what" in p.notes[0]


def test_a_step_marks_what_went_and_what_came() -> None:
    p = picture.picture(traces.mlp_step(), "step")
    marks = {b.title: b.mark for b in p.boxes}
    assert marks == {"PARAM data1": "", "ADD": "removed"}
    last = picture.picture(traces.mlp_step(), "step", pass_id=1, index=2)
    assert {b.mark for b in last.boxes if b.title == "SINK"} == {"removed", "added"}
    with pytest.raises(BadInput, match="0 to 2"):
        picture.picture(traces.mlp_step(), "step", pass_id=1, index=9)


def test_memory_names_the_buffers_of_the_peak() -> None:
    p = picture.picture(traces.mlp_step(), "memory")
    assert {r.name for r in p.rows if r.at_peak} >= {"w1", "∂w1", "∂h", "x"}
    assert not any(r.at_peak for r in p.rows if r.name in ("z", "h"))
    assert "peak 1.05 MB at kernel 8 of 10 (∂w1 = xᵀ·∂h)" in p.notes


def test_unknown_pictures_and_colours_are_errors() -> None:
    with pytest.raises(BadInput, match="schedule, lazy"):
        picture.picture(traces.mlp_step(), "soup")
    with pytest.raises(BadInput, match="phase, cost or bound"):
        picture.picture(traces.mlp_step(), colour="mood")


# **** text ****


def test_text_says_what_went_wrong_and_what_is_missing() -> None:
    env = Environment("x.py", ended="exception", error="ValueError: no",
                      missing=("rewrites were not recorded: --level full",))
    got = render("text", Trace(environment=env))
    assert "ValueError: no" in got and "not recorded: rewrites" in got
    assert "cut short" in render("text", Trace(environment=replace(env, ended="unfinished")))
    assert "code 3" in render("text", Trace(environment=replace(env, ended="exit", exit_code=3)))


def test_text_of_what_is_not_there() -> None:
    with pytest.raises(BadInput, match="one of this trace's kernels"):
        render("text", traces.mlp_step(), kernel=99)
    with pytest.raises(BadInput, match=r"with one of these files: mlp\.py"):
        render("text", traces.mlp_step(), line="other.py:3")
    assert "no kernel comes from this line" in render("text", traces.mlp_step(), line="mlp.py:1")


def test_long_lists_are_cut_to_the_slowest() -> None:
    got = text.render(traces.big(500), rows=10)
    assert "the slowest 10:" in got
    assert len([row for row in got.split("\n") if "  r_" in row]) == 10


@pytest.mark.parametrize(("value", "expected"), [
    (0, "0 µs"), (1.234, "1.2 µs"), (99.4, "99 µs"), (420, "0.42 ms"), (1500, "1.5 ms"),
    (999_600, "1 s"), (-1, "")])
def test_durations_read_well(value: float, expected: str) -> None:
    assert words.duration(value) == expected


@pytest.mark.parametrize(("value", "expected"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_600_000, "1.6 MB"), (999_999, "1 MB"),
    (123_400_000_000, "123 GB"), (-1, "")])
def test_sizes_read_well(value: float, expected: str) -> None:
    assert words.size(value) == expected


# **** json ****


def test_facts_have_every_column_scripts_were_promised() -> None:
    got = json.loads(render("json", traces.mlp_step()))
    promised = {"id", "name", "tinygrad_name", "device", "ops", "lines", "forward", "phase",
                "path", "time_us", "flops", "bytes"}
    assert all(promised <= set(k) for k in got["kernels"]) and len(got["kernels"]) == 10
    promised = {"from", "to", "buffer", "rule", "because", "fuse_by"}
    assert all(promised <= set(b) for b in got["boundaries"]) and len(got["boundaries"]) == 7
    by_id = {k["id"]: k for k in got["kernels"]}
    assert by_id[5]["lines"] == ["mlp.py:10", "mlp.py:11"] and by_id[5]["forward"]
    assert by_id[9]["flops"] is None, "unknown is null, never -1"


# **** perfetto ****


def test_the_timeline_holds_every_run_and_the_memory() -> None:
    trace = traces.mlp_step()
    events = json.loads(render("perfetto", trace))["traceEvents"]
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 2]
    assert len(slices) == len(trace.runs) == 20
    assert (slices[1]["name"], slices[1]["ts"], slices[1]["dur"]) == (
        "linear + bias + relu", 103.5, 420.0)
    assert slices[1]["args"]["lines"] == "mlp.py:9, mlp.py:10"
    counters = [e["args"]["bytes"] for e in events if e["ph"] == "C"]
    assert max(counters) == trace.peak()
    assert {e["name"] for e in events if e["ph"] == "X" and e["pid"] == 1} == {
        "training step", "schedule training step", "r_64_128_784"}


# **** html (the page's behaviour is test_page.py's) ****


class Outside(HTMLParser):
    """Everything in a page that could reach outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.scripts += tag == "script" and given.get("type") != "text/plain"
        if tag in ("link", "iframe", "img", "object", "embed", "base", "form"):
            self.found.append(tag)
        self.found += [a for a in given if a in ("src", "href", "action") or a.startswith("on")]


@pytest.mark.parametrize("of", TRACES)
def test_the_page_reaches_nowhere(of: str) -> None:
    page = render("html", TRACES[of]())
    parser = Outside()
    parser.feed(page)
    assert parser.found == [] and parser.scripts == 1
    assert "default-src 'none'" in page and "unsafe-eval" not in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "alert(1)" not in re.sub(r"<title>.*</title>", "", page), "names travel packed"


def test_a_page_too_big_leaves_rewrites_out_and_says_so() -> None:
    trace = traces.big(60, 5000, 20_000)
    whole, cut = html.pack(trace), html.pack(trace, budget=20_000)
    assert sum(map(len, cut.values())) < sum(map(len, whole.values()))
    core = unpack(cut["core"])
    assert "left out of this page" in core["env"]["missing"][-1]
    assert "rp0" not in cut and len(unpack(whole["rp0"])["passes"][0]["delta"]) == 80_000
    assert unpack(whole["p0"])["code"] and unpack(cut["p0"])["uops"]["n"] == 5000


def test_a_given_roof_is_named() -> None:
    core = unpack(html.pack(traces.mlp_step(), Roof(1e11, 2e10, "data sheet"))["core"])
    assert core["roof"] == [1e11, 2e10, "data sheet"]


def unpack(chunk: str) -> Any:
    import base64
    import zlib

    return json.loads(zlib.decompress(base64.b64decode(chunk)))


# **** walls ****


def test_views_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import traces; from tgx.views import VIEWS\n"
        "[VIEWS[v].render(traces.mlp_step()) for v in VIEWS]\n"
        "from tgx.views import compare; compare.render([traces.mlp_step()] * 2)\n"
        "print([m for m in ('tinygrad', 'llvmlite', 'numpy', 'tgx.adapter.capture')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


def test_colours_keep_their_order_in_greyscale() -> None:
    from tgx.views.colours import TONES

    def light(tone: str) -> float:
        r, g, b = (int(TONES[tone][0][i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2

    for ladder in (("data", "forward", "backward", "optimizer"),
                   ("cost-0", "cost-1", "cost-2", "cost-3", "cost-4"),
                   ("bound-unknown", "bound-launch", "bound-memory", "bound-compute")):
        steps = [light(tone) for tone in ladder]
        assert all(a > b * 1.1 for a, b in pairwise(steps)), ladder
