"""The page in a real browser: it loads, answers clicks and keys, and touches no network.

Chromium is looked for on PATH; Playwright comes with the `dev` extra. Without either these tests
skip, and say so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import traces
from tgx import safe
from tgx.model import Environment, Trace
from tgx.views import VIEWS

pytestmark = pytest.mark.pure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def render(trace: Trace, **choices: Any) -> str:
    return VIEWS["html"].render(trace, **choices)


class Page:
    """A page opened from disk, with everything it complained about or asked the network for."""

    def __init__(self, browser: Any, file: Path, trace: Trace | None, **choices: Any) -> None:
        if trace is not None:  # else the page is there already
            file.write_text(render(trace, **choices), "utf-8")
        self.context = browser.new_context(viewport={"width": 1400, "height": 900})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text)
                     if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", lambda d: (self.errors.append("dialog: " + d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.clock = self.context.new_cdp_session(self.page)
        self.clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.url = file.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-ready]")

    def cpu(self) -> float:
        """Seconds of CPU the page has used: what it takes on a machine with nothing else to do."""
        metrics = self.clock.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def until(self, condition: str) -> None:
        """Wait until JavaScript says so. (Playwright's own waiting needs eval, which the page's
        policy forbids.)"""
        end = time.monotonic() + 10
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            self.page.wait_for_timeout(20)

    def close(self) -> None:
        assert self.errors == [], self.errors
        assert [r for r in self.requests if not r.startswith((self.url, "blob:"))] == []
        self.context.close()


@pytest.fixture()
def mlp(browser: Any, tmp_path: Path) -> Iterator[Page]:
    page = Page(browser, tmp_path / "mlp.html", traces.mlp_step())
    yield page
    page.close()


def test_it_opens_on_the_program(mlp: Page) -> None:
    assert "10 kernels, 0.975 ms in all of the 1 ms a run takes" in mlp.text("#kernel")
    assert mlp.page.locator("#stage .box.kind-kernel").count() == 9
    assert mlp.page.locator("#stage .box.kind-copy").count() == 1
    # h and ∂z have several readers each: what is said of them is said once
    assert mlp.text("#stage").count("readers walk it differently") == 2
    assert "forward" in mlp.text("#legend") and "buffer" in mlp.text("#legend")
    assert "h = h.relu()" in mlp.text("#source")
    assert "peak 1.07 MB" in mlp.text("#strip")


def test_what_was_counted_stands_with_the_cost(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "counted.html", traces.counted_step())
    page.page.evaluate("location.hash = '#k=0&tab=cost'")
    page.page.wait_for_selector("#kernel .counted")
    told = page.text("#kernel .counted")
    assert "one launch of 3" in told and "12,845,056" in told
    assert "tinygrad estimates 51.4 MB: 0.251×" in told
    rows = [r.split() for r in page.page.locator(".counted tbody tr").all_inner_texts()]
    assert ["x", "201", "kB", "6.42", "MB", "32×", "3.4", "k", "3.14", "k"] in rows
    assert "packed copies" in told and "L1 (32 KiB, 8 ways)" in told
    page.page.click("#kernel .counted button")  # h: the buffer's own page
    page.page.wait_for_selector("#kernel h2:has-text('h')")
    page.page.evaluate("location.hash = '#k=1&tab=cost'")  # was not counted
    page.until("!document.querySelector('#kernel .counted')")
    page.close()


def test_line_to_kernel_to_step_and_back(mlp: Page) -> None:
    page = mlp.page
    page.click('#source li[data-line="0:10"]')  # h = h.relu()
    page.wait_for_selector('#source li[data-line="0:10"].lit')
    assert "linear + bias + relu" in mlp.text("#kernel h2")
    assert page.locator("#stage .box.chosen").count() == 1
    assert page.locator("#stage .box.lit").count() == 1  # the gradient through relu
    assert "walk it in different orders" in mlp.text("#kernel .reason")
    assert "compute relu again in each reader" in mlp.text("#kernel .fuse")
    page.click('[data-tab="code"]')
    page.wait_for_selector("#kernel .column")
    page.click('#kernel .column li[data-u="12"]')  # REDUCE: its line in C lights up
    mlp.until(
        "document.querySelectorAll('#kernel .column:nth-child(2) li.lit').length === 1")
    lit = page.locator("#kernel .column:nth-child(2) li.lit")
    assert "float acc = 0.0f" in lit.inner_text()
    assert "h = x @ self.w1" in mlp.text("#source li.from")
    page.click('[data-tab="steps"]')
    page.wait_for_selector(".pass")
    assert page.locator(".pass").count() == 1 and "symbolic" in mlp.text(".pass")
    page.click(".pass")
    page.wait_for_selector("#stage .box.removed")
    assert 'UPat.var("x") + 0' in mlp.text("#kernel .rule")
    assert "(PARAM data1 + 0)" in mlp.text("#kernel .gone")
    assert "rewrite step" in mlp.text("#crumbs")
    page.go_back()
    page.wait_for_selector("#stage .box.kind-copy")
    page.go_back()
    page.go_back()
    page.go_back()
    mlp.until("location.hash.includes('l=0%3A10')")
    page.keyboard.press("Escape")
    mlp.until("!location.hash.includes('l=')")
    assert "where the time goes" in mlp.text("#kernel")


def test_unchanged_passes_are_hidden_until_asked_for(mlp: Page) -> None:
    mlp.page.evaluate("location.hash = '#k=0&tab=steps'")
    mlp.page.wait_for_selector(".pass")
    assert mlp.page.locator(".pass").count() == 1
    assert "1 pass that changed nothing is hidden" in mlp.text(".passes")
    mlp.page.click("text=hide passes that changed nothing")
    assert mlp.page.locator(".pass").count() == 2
    mlp.page.fill("[aria-label='find a pass']", "earl")
    assert mlp.page.locator(".pass").count() == 1


def test_search_finds_everything(mlp: Page) -> None:
    page = mlp.page
    for words, kind in (
        ("softmax - y", "kernel"), ("relu", "operation"), ("self.w2, self.b2", "line"),
        ("784×128", "buffer"), ("symbolic", "pass"), ("different orders", "reason"),
        ("upat.var", "rule"), ("vaddps", "assembly"),
    ):
        page.keyboard.press("/")
        page.fill("#search", words)
        page.wait_for_selector(f".hit .kind:text-is('{kind}')")
        page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.fill("#search", "upat.var")
    page.click(".hit:has(.kind:text-is('rule'))")  # a rule leads to the step where it fired first
    page.wait_for_selector("#kernel .rule")
    assert mlp.page.locator("#stage .box.removed").count() == 1
    page.keyboard.press("/")
    page.fill("#search", "∂w1 =")
    page.wait_for_selector(".hit")
    page.keyboard.press("Enter")
    mlp.until("location.hash.includes('k=6')")
    assert "∂w1 = xᵀ·∂h" in mlp.text("#kernel h2")


def test_keys_walk_and_zoom(mlp: Page) -> None:
    page = mlp.page
    page.keyboard.press("j")
    mlp.until("location.hash.includes('k=9')")
    page.keyboard.press("j")
    mlp.until("location.hash.includes('k=0')")
    page.keyboard.press("l")  # into its UOps
    page.wait_for_selector("#stage .kind-reduce")
    assert "REDUCE ADD" in mlp.text("#stage")
    page.keyboard.press("h")
    page.wait_for_selector("#stage .kind-copy")
    page.keyboard.press("6")
    page.wait_for_selector("text=of the roof")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    mlp.until("location.hash.includes('c=cost')")
    assert "of the time" in mlp.text("#legend")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") in ("light", "dark")


def test_every_level_draws(mlp: Page) -> None:
    page = mlp.page
    for mode, expected in (("lazy graph", "relu"), ("roofline", "operations a byte"),
                           ("memory", "alive at the peak")):
        page.click(f"#crumbs >> text={mode}")
        mlp.until(
            f"document.querySelector('#stage').textContent.includes({expected!r})")
    for k in range(10):
        for tab in ("why", "ops", "loops", "code", "steps", "cost"):
            page.evaluate(f"location.hash = '#k={k}&tab={tab}'")
            page.wait_for_selector(f"#kernel [data-tab={tab}].on")
    page.evaluate("location.hash = '#b=4'")
    page.wait_for_selector("text=why it is stored")
    assert "32.8 kB" in mlp.text("#kernel")


def test_hidden_phases_are_not_drawn(mlp: Page) -> None:
    mlp.page.click("[data-phase=backward]")
    mlp.until("document.querySelectorAll('#stage .tone-backward').length === 0")
    assert mlp.page.locator("#stage .tone-forward").count() == 3
    assert "4 boxes of hidden phases" in mlp.text("#legend")
    mlp.page.click("[data-phase=backward]")
    mlp.until("document.querySelectorAll('#stage .tone-backward').length === 4")


def test_what_is_selected_stands_out(mlp: Page) -> None:
    mlp.page.click("[data-key=k3]")
    mlp.until("document.querySelectorAll('#stage .edge.lit').length === 4")  # z, y; ∂z to two
    assert mlp.page.locator("#stage .edge.faint").count() > 0
    mlp.page.keyboard.press("Escape")
    mlp.until("!document.querySelector('#stage .edge.lit')")


def test_a_link_may_name_a_kernel_alone(browser: Any, tmp_path: Path) -> None:
    trace = traces.mlp_step()
    other = replace(trace.kernels[0], id=50, name="of another schedule", schedule=1)
    trace = replace(trace, kernels=(*trace.kernels, other),
                    schedules=(*trace.schedules, replace(trace.schedules[0], id=1, kernels=(50,))))
    page = Page(browser, tmp_path / "two.html", trace)
    page.page.evaluate("location.hash = '#k=50'")
    page.page.wait_for_selector("#stage [data-key=k50].chosen")
    page.close()


def test_the_source_opens_where_the_kernels_begin(browser: Any, tmp_path: Path) -> None:
    trace = traces.mlp_step()
    rows = tuple((n + 400, text) for n, text in trace.files[0].lines)
    above = tuple((n, "# a long introduction") for n in range(1, 401))
    moved = replace(trace, files=(replace(trace.files[0], lines=above + rows), *trace.files[1:]),
                    kernels=tuple(replace(k, lines=tuple((f, n + 400) for f, n in k.lines))
                                  for k in trace.kernels))
    page = Page(browser, tmp_path / "long.html", moved)
    top = page.page.locator('#source li[data-line="0:409"]').bounding_box()["y"]
    assert 0 < top < 800
    page.close()


def test_it_prints(mlp: Page) -> None:
    mlp.page.emulate_media(media="print")
    assert not mlp.page.is_visible("#searchbox") and mlp.page.is_visible("#stage .box")
    assert mlp.page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")


def test_it_works_inside_a_notebooks_frame(browser: Any, tmp_path: Path) -> None:
    page = render(traces.mlp_step())
    file = tmp_path / "notebook.html"
    file.write_text(safe.frame(page, 800), "utf-8")
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda e: errors.append(str(e)))
    tab.goto(file.as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("#stage .box.kind-kernel").first.click()
    frame.locator("#kernel .tabs").wait_for()
    frame.locator("[data-tab=cost]").click()
    frame.locator("text=of the roof").wait_for()
    assert errors == []
    context.close()


def test_a_nonsense_address_opens_the_program(mlp: Page) -> None:
    mlp.page.evaluate("location.hash = '#k=999&s=44&g=9.9.9&l=zz&in=soup&p=71&i=-3&tab=none'")
    mlp.page.wait_for_timeout(100)
    assert mlp.page.locator("#stage .box").count() > 5


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "evil.html", traces.hostile())
    tabs = [f"k=0&tab={tab}" for tab in ("why", "ops", "loops", "code", "steps", "cost")]
    for state in (*tabs, "k=0&in=step&p=1&tab=steps", "k=0&in=uops", "in=lazy", "in=memory",
                  "in=roofline", "b=4", "l=0:10"):
        page.page.evaluate(f"location.hash = '#{state}'")
        page.page.wait_for_timeout(60)
    page.page.fill("#search", "alert")
    page.page.wait_for_timeout(100)
    assert page.page.locator("img").count() == 0
    assert "<img src=x onerror=alert(2)>" in page.text("#source")
    page.close()


LAID_OUT = """() => {
  const at = [...document.querySelectorAll('#stage .box')].map((b) => {
    const { e, f } = b.transform.baseVal[0].matrix, { width, height } = b.getBBox();
    return [e, f, e + width, f + height];
  });
  let overlaps = 0;
  at.forEach((a, i) => at.slice(i + 1).forEach((b) => {
    if (a[0] < b[2] - 6 && b[0] < a[2] - 6 && a[1] < b[3] - 6 && b[1] < a[3] - 6) overlaps++;
  }));
  // a training step is drawn in lanes, with some arrows from one to the other
  const lanes = {};
  for (const b of document.querySelectorAll('#stage .box')) {
    const { e } = b.transform.baseVal[0].matrix, { width } = b.getBBox(), of = b.dataset.lane ?? "";
    const span = (lanes[of] ??= [1e9, -1e9]);
    span[0] = Math.min(span[0], e); span[1] = Math.max(span[1], e + width);
  }
  const down = {};
  for (const p of document.querySelectorAll('#stage g.edge:not(.across) path:last-of-type')) {
    const a = p.getPointAtLength(0), b = p.getPointAtLength(p.getTotalLength());
    const of = Object.keys(lanes).find((l) => lanes[l][0] - 1 <= a.x && a.x <= lanes[l][1] + 1);
    (down[of] ??= []).push(b.y > a.y ? 1 : 0);
  }
  const share = (list) => list.reduce((x, y) => x + y, 0) / list.length;
  const order = Object.entries(lanes).sort((a, b) => a[1][0] - b[1][0]).map(([l]) => l);
  return [overlaps, order, Object.fromEntries(Object.entries(down).map(([l, d]) => [l, share(d)]))];
}"""


def test_forward_runs_down_and_gradients_come_back_up(mlp: Page) -> None:
    overlaps, lanes, down = mlp.page.evaluate(LAID_OUT)
    assert overlaps == 0 and lanes == ["data", "forward", "backward", "optimizer"]
    assert down["forward"] == 1 and down["backward"] == 0


def test_boxes_do_not_overlap_and_arrows_point_down(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "layout.html", traces.mlp_step())
    page.page.click("[data-phase=backward]")  # the forward pass alone is drawn in rows
    page.until("!document.querySelector('#stage .lane')")
    overlaps, _, down = page.page.evaluate(LAID_OUT)
    assert overlaps == 0 and all(share == 1 for share in down.values()), down
    page.close()
    page = Page(browser, tmp_path / "layout.html", traces.big(300))
    assert page.page.evaluate(LAID_OUT)[0] == 0
    page.close()


def test_three_thousand_kernels_open_quickly_on_few_boxes(browser: Any, tmp_path: Path) -> None:
    page = Page(browser, tmp_path / "big.html", traces.big(3000, 5000, 20_000))
    assert page.cpu() < 3
    assert 2 <= page.page.locator("#stage .box").count() <= 60
    page.page.keyboard.press("j")
    page.page.wait_for_selector("#kernel .tabs")
    page.page.locator("#stage .box").first.click()
    page.until("location.hash.includes('g=0')")
    assert 2 <= page.page.locator("#stage .box").count() <= 60
    page.page.evaluate("location.hash = '#k=0&tab=steps&in=step&p=0&i=1'")
    page.until("document.querySelector('.stepper input')?.value === '1'")
    for step in (0, 7_000, 19_999):
        page.page.wait_for_timeout(100)
        before = page.cpu()
        page.page.evaluate(f"location.hash = '#k=0&tab=steps&in=step&p=0&i={step}'")
        page.until(f"document.querySelector('.stepper input')?.value === '{step}'")
        page.page.wait_for_timeout(100)
        assert page.cpu() - before < 0.1
    page.close()


def test_what_was_not_recorded_is_said(browser: Any, tmp_path: Path) -> None:
    env = Environment("x.py", ended="exception", error="ValueError: no", missing=(
        "rewrites were not recorded: --level full",))
    page = Page(browser, tmp_path / "empty.html", Trace(environment=env))
    assert "ValueError: no" in page.text("#notes")
    assert "rewrites were not recorded" in page.text("#notes")
    assert "nothing was computed" in page.text("#stage")
    page.close()


def test_a_recording_draws_itself_in_a_notebook() -> None:
    """`tgx.trace()` as the last line of a cell: the page in a frame of its own, or one picture."""
    from tgx.recording import trace

    recording = trace()
    recording._trace = traces.mlp_step()
    frame = recording._repr_html_()
    assert frame.startswith("<iframe sandbox=") and frame.count("<iframe") == 1
    assert "<script" not in frame  # escaped: it stays inside the frame
    assert recording._repr_svg_().startswith("<svg")
    assert "linear + bias + relu" in str(recording)
