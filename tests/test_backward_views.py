"""The forms of a backward walk, on one built by hand: exact text, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import traces
from tgx.model import Check, Trace
from tgx.passes import collapse, select, walks
from tgx.views import backward, svg
from tgx.views.backward_picture import picture

pytestmark = pytest.mark.pure

TEXT = """\
x*x + x = 6: 2 steps, 2 operations, 1 kernel

  1  ADD      a + b   [x*x + x]
     rule  tinygrad/mixin/gradient.py:60  (UPat(Ops.ADD), lambda ctx: (ctx, ctx))
     value 6, upstream gradient 1
       → x*x += 1   ∂(a+b)/∂a = 1   ✓ 2e-12
       → x += 1   ∂(a+b)/∂b = 1   ✓ 2e-12
  2  MUL      a · b   [x*x]
     rule  tinygrad/mixin/gradient.py:65  (UPat(Ops.MUL, name="ret"), lambda ctx, ret: (ret.src[1]*ctx, ret.src[0]*ctx))
     value 4, upstream gradient 1
       → x += 2   ∂(a·b)/∂a = b = 2   total 3   ✓ 2e-12
       → x += 2   ∂(a·b)/∂b = a = 2   total 5   ✓ 2e-12

  d/dx  5  ✓ 2e-12
5 gradients checked by central differences in float64: the largest error is 2e-12

kernels:
    0  ∂x; steps 2
"""  # noqa: E501

BY_OPERATION = """\
  1  add   x*x + x   1 step
     upstream gradient 1
       → x*x += 1   dA = dZ   ✓ 0e+00
       → x += 1   dB = dZ   ✓ 0e+00
  2  mul   x*x   1 step, kernel 0
     upstream gradient 1
       → x += 4   dX = 2·X⊙dZ   ✓ 0e+00
"""


def test_text() -> None:
    trace = traces.backward_walk()
    assert backward.render(trace) == TEXT
    assert BY_OPERATION in backward.render(trace, "text", "operations")


def test_json_has_every_column() -> None:
    (walk,) = json.loads(backward.render(traces.backward_walk(), "json"))["walks"]
    first, second = walk["steps"]
    wanted = {"op", "tensor_op", "line", "rule", "formula", "upstream", "contributions", "total",
              "finite_difference", "kernel"}  # fmt: skip
    assert wanted <= first.keys()
    assert (first["op"], first["tensor_op"], first["line"]) == ("ADD", "add", "expression:1")
    assert second["total"] == [3.0, 5.0] and second["kernel"] == [0]
    assert second["finite_difference"] == [[2.0], [2.0]]
    assert [c["adds"] for c in second["contributions"]] == [True, True]
    assert walk["targets"][0]["gradient"] == 5.0
    assert walk["kernels"] == [
        {"id": 0, "name": "∂x", "steps": [1], "recomputes": [], "forward": [], "reads": []}]


def test_markdown_names_the_places_that_are_true() -> None:
    text = backward.render(traces.backward_walk(), "markdown")
    assert text.startswith("# What `backward()` does for `x*x + x`\n")
    assert "1. `tinygrad/tensor.py:657` `backward()` begins here." in text
    assert "2. `tinygrad/mixin/gradient.py:128` A value used more than once" in text
    assert "### 2. MUL: `x*x`" in text
    assert "- ∂\\(a·b\\)/∂b = a = 2, so `x` gets **2**; with what it had, 5." in text
    assert "Computed in kernel 0 (∂x)." in text


def test_the_picture_has_both_graphs() -> None:
    p = picture(traces.backward_walk())
    boxes = {b.key: b for b in p.boxes}
    assert set(boxes) == {"n1", "n2", "n3", "g1", "g2", "g3"}
    assert boxes["n1"].small == ("data 2", "grad 5") and boxes["g1"].small == ("5",)
    assert boxes["g1"].title == "∂L/∂x"
    edges = {(e.source, e.target, e.kind): e.label for e in p.edges}
    assert edges["g2", "g1", "gradient"] == "·2 + ·2", "a value used twice has both on its edge"
    assert edges["g3", "g2", "gradient"] == "·1"
    assert all((f"g{n}", f"n{n}", "of") in edges for n in (1, 2, 3))
    by_operation = picture(traces.backward_walk(), "operations")
    assert {"o0", "d0", "o1", "d1", "n1"} == {b.key for b in by_operation.boxes}
    assert picture(traces.backward_walk(), only=1).title == "mul: its steps"
    assert picture(Trace()).boxes == ()


def test_dot_dots_the_edges_from_gradients() -> None:
    text = backward.render(traces.backward_walk(), "dot")
    assert re.search(r'"g1" -> "n1" \[style=dotted', text)
    assert re.search(r'"g1" -> "g2" \[.*dir=back', text), "drawn the way the forward lies"
    assert "{ rank=same; \"g1\"; \"n1\" }" in text


def test_svg_is_drawn() -> None:
    try:
        svg.engine()
    except Exception:
        pytest.skip("graphviz is not installed")
    drawn = backward.render(traces.backward_walk(), "svg")
    assert drawn.startswith("<svg") and "∂L/∂x" in drawn


def test_findings_of_a_wrong_gradient() -> None:
    trace = traces.backward_walk()
    (walk,) = trace.walks
    assert walks.findings(trace, walk) == ()
    wrong = replace(walk.targets[0], check=Check((0,), (5.0,), (4.0,), 0.2))
    told = replace(trace, walks=(replace(walk, targets=(wrong,)),))
    (finding,) = walks.findings(told, told.walks[0])
    assert finding.kind == "unequal" and "5, the loss's finite difference says 4" in finding.text
    assert "! the gradient of x is 5" in backward.render(told)
    missing = replace(walk.targets[0], gradient=-1, stops="it is behind a detach()")
    told = replace(trace, walks=(replace(walk, targets=(missing,)),))
    assert "no gradient reaches x: it is behind a detach()" in backward.render(told)


def test_other_passes_keep_walks_whole() -> None:
    trace = traces.backward_walk()
    assert collapse.collapse(trace, ()).walks == trace.walks
    assert select.select(trace, ()).walks[0].kernels == ()


@pytest.mark.parametrize("form", ["text", "json", "markdown", "dot", "html"])
def test_names_of_strangers_stay_text(form: str) -> None:
    trace = traces.backward_walk("</script><img src=x onerror=alert(1)>\x1b[31m`|*")
    text = backward.render(trace, form)
    assert "\x1b" not in text, "no character that steers a terminal"
    if form == "html":
        assert "<img" not in text and text.count("</script>") == 2
    if form == "dot":  # in plain strings alone, where nothing is markup
        assert "<img" not in re.sub(r'="[^"]*"', "", text)
    if form == "markdown":  # as code, between more backquotes than it has itself
        assert all("``" in line or "\\<" in line or "&lt;" in line
                   for line in text.splitlines() if "img" in line)


# **** the page ****

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield started
        started.close()


class Page:
    """The page of a trace, opened from disk, with what it complained about or asked for."""

    def __init__(self, browser: Any, file: Path, trace: Trace, at: str = "") -> None:
        file.write_text(backward.render(trace, "html"), "utf-8")
        self.page = browser.new_context(viewport={"width": 1500, "height": 900}).new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text)
                     if m.type in ("error", "warning") else None)  # fmt: skip
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        began = time.monotonic()
        self.page.goto(file.as_uri() + at)
        self.page.wait_for_selector("html[data-ready]")
        self.seconds = time.monotonic() - began

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def close(self) -> None:
        assert self.errors == []
        assert len(self.requests) == 1 and self.requests[0].startswith("file:")
        self.page.context.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Page]:
    opened = Page(browser, tmp_path / "walk.html", traces.backward_walk())
    yield opened
    opened.close()


def slide(page: Page, step: int) -> None:
    page.page.evaluate(
        "n => { const s = document.getElementById('slider'); s.value = n;"
        " s.dispatchEvent(new Event('input')); }", step
    )


def test_the_slider_steps_through_the_walk(page: Page) -> None:
    assert page.seconds < 2
    assert page.text("#title") == "x*x + x = 6" and page.text("#count") == "step 1 of 2"
    assert "ADD  x*x + x" in page.page.locator("#detail h1").text_content()
    assert "UPat(Ops.ADD)" in page.text("#rule") and page.text("#place").endswith("gradient.py:60")
    assert page.text("#lines mark") == "x*x + x"
    assert page.text("#targets tr td:nth-child(2)") == "1"
    slide(page, 1)
    assert page.text("#count") == "step 2 of 2"
    assert "MUL  x*x" in page.page.locator("#detail h1").text_content()
    assert "UPat(Ops.MUL" in page.text("#rule") and page.text("#lines mark") == "x*x"
    assert page.page.locator(".part .sum").all_text_contents() == [
        "running total 3", "running total 5"]
    assert page.text("#targets tr td:nth-child(2)") == "5"
    assert "✓ 2e-12" in page.text("#targets")
    assert page.text(".kernel.now") == "0 ∂x steps 2"
    assert page.page.url.endswith("#w=0&s=1")
    slide(page, 0)
    assert page.text("#count") == "step 1 of 2"


def test_keys_buttons_and_rows_move_it_too(page: Page) -> None:
    keyboard = page.page.keyboard
    keyboard.press("ArrowRight")
    assert page.text("#count") == "step 2 of 2"
    keyboard.press("ArrowRight")
    assert page.text("#count") == "step 2 of 2", "it stops at the end"
    keyboard.press("Home")
    assert page.text("#count") == "step 1 of 2"
    page.page.click("#next")
    assert page.text("#count") == "step 2 of 2"
    page.page.click("#list li:nth-child(1)")
    assert page.text("#count") == "step 1 of 2"
    page.page.goto(page.page.url.partition("#")[0] + "#w=0&s=1")
    assert page.text("#count") == "step 2 of 2", "the address holds the step"


def test_the_picture_follows(page: Page) -> None:
    if not page.page.locator(".picture svg").count():
        pytest.skip("graphviz is not installed")
    now = ".picture:not([hidden]) g.node.now title"

    def titles(selector: str) -> set[str]:
        return set(page.page.locator(selector).all_text_contents())

    assert titles(now) == {"n3", "g3"}
    assert titles(".picture:not([hidden]) g.node.later title") == {"g1"}, "x is not complete yet"
    slide(page, 1)
    assert titles(now) == {"n2", "g2"}
    assert titles(".picture:not([hidden]) g.node.target title") == {"n1", "g1"}
    assert titles(".picture:not([hidden]) g.node.later title") == set()
    page.page.locator("g.node", has_text="ADD").first.click()
    assert page.text("#count") == "step 1 of 2", "a click on a node goes to its step"


def test_a_strangers_names_run_nothing(browser: Any, tmp_path: Path) -> None:
    trace = traces.backward_walk("<img src=x onerror=alert(1)>")
    opened = Page(browser, tmp_path / "hostile.html", trace)
    assert "<img src=x" in opened.text("#title")
    opened.close()


def test_a_page_without_a_walk(browser: Any, tmp_path: Path) -> None:
    opened = Page(browser, tmp_path / "none.html", Trace())
    assert "tgx backward SCRIPT" in opened.text("#title")
    opened.close()
