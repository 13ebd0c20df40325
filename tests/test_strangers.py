"""Files from strangers: whatever is in them, tgx says what is wrong, quickly, in little memory, and
does nothing else; and what it shows of them cannot act, nor look like what it is not.

`tests/fuzz.py` has the table of parsers and is the long version of this file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import poison
import pytest

import traces
from tgx import safe
from tgx.model import Trace
from tgx.views import VIEWS, backward

pytestmark = pytest.mark.pure

UNSEEN = re.compile(f"[{safe.UNSEEN}]")

# **** text that can be seen ****


def test_every_character_that_nobody_sees_is_shown() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert not UNSEEN.search(safe.clean(everything))
    for found in UNSEEN.finditer(everything):
        shown = safe.clean(found[0])
        assert len(shown) == 1 or shown == f"[U+{ord(found[0]):04X}]"
    assert safe.clean("a\tb\nc é 漢 😀") == "a\tb\nc é 漢 😀"
    assert safe.clean("\x1b[2J\r\x7f\u202e\u200b\ud800") == "␛[2J␍␡[U+202E][U+200B]\ufffd"


def test_bidi_controls_are_marked_and_distinct_names_stay_distinct() -> None:
    """CVE-2021-42574: a line that reads otherwise than it runs."""
    line = 'access = "user\u202e \u2066# only if admin\u2069 \u2066"'
    assert safe.clean(line) == 'access = "user[U+202E] [U+2066]# only if admin[U+2069] [U+2066]"'
    names = {"admin", "ad\u200bmin", "ad\u200dmin", "ad\u2060min", "ad\xadmin"}
    assert len(set(map(safe.clean, names))) == len(names)


def test_json_keeps_every_text_and_shows_no_control() -> None:
    for text in (*poison.EVIL.values(), "\\u001b", "\\\x1b", "\\\\\x1b", '\\"\x1b'):
        written = safe.to_json({"a": text, "b": float("nan")})
        assert not UNSEEN.search(written)
        assert json.loads(written) == {"a": text, "b": None}
        packed = json.loads(safe.shown_json([text, float("inf")]))
        assert packed == [safe.clean(text), None]


# **** pages ****


class Tags(HTMLParser):
    """The content of a page's scripts and styles, and its policy."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside, self.policy = "", ""
        self.text: dict[str, list[str]] = {"script": [], "style": []}
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.attributes += [(tag, name) for name in given]
        data = tag == "script" and given.get("type") == "text/plain"
        self.inside = "" if data else tag if tag in self.text else ""
        if self.inside:
            self.text[tag].append("")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.text[self.inside][-1] += data


def pages(trace: Trace) -> dict[str, str]:
    """Every page tgx makes of a trace; and the report, which is of no trace."""
    return {"explorer": VIEWS["html"].render(trace), "backward": backward.render(trace, "html")}


def report_page(name: str = "kernel") -> str:
    from test_hardware_report import REPORT

    from tgx.hardware import picture

    return picture.html(renamed(REPORT, name))


def renamed(report: Any, name: str) -> Any:
    from dataclasses import replace

    steps = tuple(replace(s, name=name, rows=tuple(replace(r, name=name, lines=(name,), bound=name)
                                                   for r in s.rows)) for s in report.steps)
    return replace(report, steps=steps, machine=replace(report.machine, name=name))


@pytest.mark.parametrize("which", ["explorer", "backward", "report"])
def test_the_policy_allows_one_script_and_one_style_by_their_hashes(which: str) -> None:
    page = report_page() if which == "report" else pages(poison.everything())[which]
    tags = Tags(page)
    rules = dict(rule.strip().split(" ", 1) for rule in tags.policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in tags.policy and "http" not in tags.policy and "*" not in tags.policy
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    assert page.index("Content-Security-Policy") < page.index("<style") < page.index("<body") \
        if which != "report" else page.index("Content-Security-Policy") < page.index("<style")
    for tag in ("script", "style"):
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'"
                  for t in tags.text[tag]]
        assert rules[f"{tag}-src"] == (" ".join(hashes) or "'none'"), tag
    assert not [a for a in tags.attributes if a[1] == "style" or a[1].startswith("on")]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM,
                                    args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield started
        started.close()


class Opened:
    """A page opened from disk; `close` asserts that it complained of nothing and went nowhere."""

    def __init__(
        self, browser: Any, file: Path, text: str, ready: str = "html[data-ready]"
    ) -> None:
        file.write_text(text, "utf-8")
        self.context = browser.new_context(viewport={"width": 1400, "height": 900})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append("dialog: " + d.message), d.dismiss()))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(ready, state="attached")
        self.url = file.as_uri()

    def close(self) -> None:
        title = self.page.title()
        self.context.close()
        assert self.said == [], self.said
        assert self.requests == [self.url], self.requests
        assert title != "owned"


STATES = [*(f"k=0&tab={tab}" for tab in ("why", "ops", "loops", "code", "steps", "cost")),
          "k=0&in=step&p=1&tab=steps", "k=0&in=uops", "in=lazy", "in=memory", "in=roofline", "b=4",
          "l=0:10", "tab=constructor&k=0", "constructor=1&__proto__=2", "c=constructor&k=__proto__"]


def visit(opened: Opened) -> None:
    """Everything the explorer's page can show of a trace."""
    for state in STATES:
        opened.page.evaluate(f"location.hash = '#{state}'")
        opened.page.wait_for_timeout(25)
    opened.page.evaluate("""for (const b of document.querySelectorAll("[data-tip]"))
        b.dispatchEvent(new MouseEvent("mousemove", {bubbles: true}))""")
    opened.page.fill("#search", "e")
    opened.page.wait_for_timeout(50)


# together, for each page takes a second; alone only what would hide behind another
TOGETHER = "".join(v for k, v in poison.EVIL.items() if k not in ("long", "astral"))


@pytest.mark.parametrize("evil", ["together", "prototype", "constructor", "quotes", "long"])
def test_a_hostile_trace_in_the_explorer_does_nothing(
    browser: Any, tmp_path: Path, evil: str
) -> None:
    text = TOGETHER if evil == "together" else poison.EVIL[evil]
    trace = poison.poisoned(text, instead=evil != "together")
    opened = Opened(browser, tmp_path / "evil.html", VIEWS["html"].render(trace))
    visit(opened)
    seen = opened.page.evaluate("document.body.innerText")
    assert opened.page.locator("img, iframe, object, embed, a[href], script[src]").count() == 0
    assert not UNSEEN.search(seen), UNSEEN.findall(seen)[:5]
    if evil == "together":
        assert "[U+202E]" in seen and "␛]0;owned␇" in seen and "</script>" in seen
    opened.close()


@pytest.mark.parametrize("evil", ["together", "prototype"])
def test_a_hostile_walk_in_the_backward_page_does_nothing(
    browser: Any, tmp_path: Path, evil: str
) -> None:
    text = TOGETHER if evil == "together" else poison.EVIL[evil]
    trace = poison.poisoned(text, traces.backward_walk(), instead=evil != "together")
    opened = Opened(browser, tmp_path / "evil.html", backward.render(trace, "html"))
    for key in ("ArrowRight", "Home", "End", "Escape"):
        opened.page.keyboard.press(key)
    seen = opened.page.evaluate("document.body.innerText")
    assert opened.page.locator("img, iframe, object, embed, script[src]").count() == 0
    assert not UNSEEN.search(seen)
    opened.close()


def test_a_hostile_report_does_nothing(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "evil.html", report_page(TOGETHER), "h1")
    assert opened.page.locator("img, iframe, script, a").count() == 0
    assert not UNSEEN.search(opened.page.evaluate("document.body.innerText"))
    opened.close()


INJECT = """() => new Promise((done) => setTimeout(() => {
  window.refused = 0;
  const run = (make) => { try { make(); } catch (e) { window.refused++; } };
  run(() => { document.body.innerHTML = "<img src=x onerror=owned=1>"; });
  run(() => { document.write("<script>owned=2</" + "script>"); });
  run(() => eval("owned = 3"));
  run(() => new Function("owned = 4")());
  const put = (tag, name, value) => {
    const e = document.createElement(tag);
    e.setAttribute(name, value);
    document.body.append(e);
    return e;
  };
  run(() => { put("script", "id", "s").textContent = "owned = 5"; });
  put("img", "src", "data:image/gif;base64,R0lGODlhAQABAAAAACw=");
  put("iframe", "src", "about:srcdoc");
  const a = put("p", "style", "color: rgb(1, 2, 3)");
  fetch("data:,x").then(() => "reached", () => "refused").then((net) =>
    done([window.owned ?? null, window.refused, net, getComputedStyle(a).color]));
}))"""


@pytest.mark.parametrize("which", ["explorer", "backward", "report"])
def test_the_browser_refuses_what_the_policy_forbids(
    browser: Any, tmp_path: Path, which: str
) -> None:
    """An inline script put into the file runs nowhere; nor does anything a script could try."""
    page = report_page() if which == "report" else pages(poison.everything())[which]
    inline = "<script>document.title = 'owned'</script><p onclick='1' style='color:red'>"
    opened = Opened(browser, tmp_path / "inline.html", page.replace("</h1>", "</h1>" + inline, 1)
                    if which == "report" else page.replace("<main>", inline + "<main>", 1),
                    "h1" if which == "report" else "html[data-ready]")
    # Playwright's own evaluate stands outside the page's policy; what a timer calls does not
    owned, refused, net, colour = opened.page.evaluate(INJECT)
    assert opened.page.title() != "owned" and owned is None
    assert refused >= 4 and net == "refused" and colour != "rgb(1, 2, 3)"
    refusals = "\n".join(opened.said)
    assert "script-src" in refusals and "style-src" in refusals and len(opened.requests) == 1
    opened.context.close()
