"""Files from strangers: whatever is in them, tgx says what is wrong, quickly, in little memory, and
does nothing else; and what it shows of them cannot act, nor look like what it is not.

`tests/fuzz.py` has the table of parsers and is the long version of this file.
"""

from __future__ import annotations

import base64
import gc
import gzip
import hashlib
import json
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import poison
import pytest
import strangers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strangers import BOMBS, EDITS, FORMATS

import traces
from tgx import cli, codec, recording, safe
from tgx.adapter import debuglog
from tgx.codec import TraceError
from tgx.errors import BadInput
from tgx.hardware import cubin, profiles, tegra
from tgx.model import Boundary, Buffer, Environment, Kernel, Schedule, Trace
from tgx.passes import select
from tgx.views import VIEWS, backward, compare, dot, html, picture, svg

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


# **** every parser, a few hundred broken files each ****

EDIT = st.tuples(st.sampled_from(EDITS), st.integers(0, 2**32), st.integers(0, 2**20))
GENTLE = st.tuples(st.sampled_from(("number", "text", "word")), st.integers(0, 2**32),
                   st.integers(0, 2**20))


EXAMPLES = {"trace": 100, "debug_log": 100, "expression": 100, "weights": 150, "archive": 150}


def format_of(name: str) -> strangers.Format:
    if not FORMATS[name].pure:
        pytest.importorskip("tinygrad")
    return FORMATS[name]


@pytest.mark.parametrize("name", FORMATS)
def test_a_broken_file_ends_in_an_error_that_says_so(name: str) -> None:
    """Structure-aware: edits of real files, shrunk to the fewest where one is a bug."""
    form = format_of(name)
    strangers.warm(form)
    seeds = form.seeds()
    gc.collect()  # what tests before left would be cleared away in a case, and blamed on it

    @settings(max_examples=EXAMPLES.get(name, 300), deadline=None,
              derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 63), st.lists(EDIT, min_size=1, max_size=5) | st.lists(
        GENTLE, min_size=1, max_size=3))
    def search(which: int, edits: list[strangers.Edit]) -> None:
        found = strangers.attempt(form, strangers.mutated(seeds, which, edits))
        assert not found.bug, found.bug

    search()


@pytest.mark.parametrize("name", FORMATS)
def test_the_files_begun_with_are_read(name: str) -> None:
    form = format_of(name)
    assert not all(strangers.attempt(form, seed).refused for seed in form.seeds())
    assert strangers.attempt(form, b"").bug == "" and strangers.attempt(form, b"\xff\0").bug == ""


# tried in the fast tier: one of each kind
QUICK = (
    "trace: nested a million deep", "trace: sixty megabytes of brackets in a bundle",
    "trace: one long word a million times", "log: ten megabytes of escapes",
    "log: attributes of a kernel", "cubin: four hundred thousand symbols",
    "idx: more than is allowed, in gzip", "cifar: a memo of four billion",
    "profile: nested a hundred thousand deep", "archive: 300 megabytes of header",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_a_bomb_ends_soon_in_little_memory(name: str) -> None:
    bug, seconds, megabytes = strangers.explode(name)
    assert not bug and seconds < 10 and megabytes < 1500


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BOMBS) - set(QUICK)))
def test_every_bomb_ends_soon_in_little_memory(name: str) -> None:
    bug, seconds, megabytes = strangers.explode(name)
    assert not bug and seconds < 60 and megabytes < 3000


# **** the guard itself would notice ****


def bad(what: str) -> strangers.Format:
    def parse(data: bytes) -> object:
        if what == "exec":
            exec("x = 1")
        elif what == "write":
            open("/tmp/tgx-owned", "w").close()
        elif what == "process":
            subprocess.run(["true"], check=False)
        elif what == "import":
            sys.modules.pop("this", None)
            import this  # noqa: F401
        elif what == "pickle":
            pickle.loads(b"cos\nsystem\n(S'true'\ntR.")
        elif what == "socket":
            socket.create_connection(("127.0.0.1", 9))
        elif what == "slow":
            re.match(r"(a|a)*b", "a" * 40)
        elif what == "crash":
            raise KeyError("x")
        return None

    return strangers.Format("bad", parse, lambda: (b"",), lambda: (ValueError,))


@pytest.mark.parametrize("what", [
    "exec", "write", "process", "import", "pickle", "socket", "slow", "crash"])
def test_the_guard_reports(what: str) -> None:
    found = strangers.attempt(bad(what), b"", 0.5)
    assert found.bug
    if what == "write":
        assert not Path("/tmp/tgx-owned").exists()


# **** bugs that were found, by name ****

HEAD = '{"record":"tgx-trace","schema":1}\n'


def lines(*records: dict[str, Any]) -> str:
    return HEAD + "".join(json.dumps(r) + "\n" for r in records)


def test_gradients_of_each_other_do_not_turn_in_a_circle() -> None:
    origin = {"record": "origins", "op": "x", "phase": "backward"}
    with pytest.raises(TraceError, match="forward of 0 leads nowhere"):
        codec.loads(lines({**origin, "id": 0, "forward": 1}, {**origin, "id": 1, "forward": 0}))
    buffer = {"record": "buffers"}
    with pytest.raises(TraceError, match="base of 3 leads nowhere"):
        codec.loads(lines({**buffer, "id": 3, "base": 3}))


@pytest.mark.parametrize("record", [
    {"record": "frames", "id": 0, "file": -1, "line": 1},
    {"record": "rules", "id": 0, "file": -1, "line": 1},
    {"record": "realizes", "id": 0, "schedule": -1},
    {"record": "runs", "kernel": -1, "start_us": 0.0, "time_us": 1.0},
    {"record": "timings", "kernel": -1, "calls": 1, "total_us": 1, "min_us": 1, "median_us": 1},
    {"record": "gradients", "id": 0, "walk": -1, "node": 0, "op": "ADD"},
])  # fmt: skip
def test_what_means_nothing_without_its_fellow_is_refused(record: dict[str, Any]) -> None:
    """It was a KeyError in the views; in a file without its end it is left out."""
    whole = lines(record, {"record": "end", "records": 1})
    with pytest.raises(TraceError, match="is -1, which is not among"):
        codec.loads(whole)
    assert codec.loads(lines(record)).environment.ended == "unfinished"


@pytest.mark.parametrize("time", ["1e999", "1e300", "-1e300"])
def test_times_are_finite_in_a_trace_and_in_its_json(time: str) -> None:
    """Infinity in a page's JSON, and the page did not open."""
    text = lines({"record": "kernels", "id": 0, "name": "k"}) + (
        f'{{"record":"runs","kernel":0,"start_us":0,"time_us":{time}}}\n')
    with pytest.raises(TraceError, match="a time of"):
        codec.loads(text + '{"record":"end","records":2}\n')


def test_a_kernel_its_schedule_does_not_list_is_shown() -> None:
    trace = Trace(kernels=(Kernel(0, "a", schedule=0), Kernel(1, "b", schedule=0)),
                  schedules=(Schedule(0, (0,)),))
    assert "kernel 1: b" in VIEWS["text"].render(trace, kernel=1)


def test_a_buffer_of_another_schedule_is_selected_without_it() -> None:
    """It still referred to the schedule that had gone."""
    trace = Trace(kernels=(Kernel(0, "a", schedule=0, reads=(0,)),),
                  buffers=(Buffer(0, schedule=1),),
                  boundaries=(Boundary(0, "realize", "it ends here", 0, schedule=1),),
                  schedules=(Schedule(0, (0,)), Schedule(1)))
    part = select.select(trace, (0,))
    assert part.buffers[0].schedule == part.boundaries[0].schedule == -1


def test_an_archive_of_impossible_sizes_is_damaged(tmp_path: Path) -> None:
    import guide_data

    info = tarfile.TarInfo("x")
    info.size = 2**62
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) * 2))
    with pytest.raises(guide_data.DataError):
        guide_data.untar(path, {"x"})
    data = strangers.mutated(FORMATS["archive"].seeds(), 0, ())
    at = data.index(b"00000006001\0")  # 3073 in octal: the size of its first file
    broken = data[:at] + b"\x80" + b"\xff" * 11 + data[at + 12:]
    path.write_bytes(gzip.compress(broken))
    with pytest.raises(guide_data.DataError):
        guide_data.untar(path, {"data_batch_1.bin"})


def test_an_index_that_does_not_fit_is_said_where_it_stands() -> None:
    """Its shape is worked out later: the error came from there, as it was."""
    pytest.importorskip("tinygrad")
    from tgx.adapter.expression import Expression

    with pytest.raises(BadInput, match="mismatch"):
        Expression("x[[[0, 1, 0]], [0, 1]].sum()", ["x=[[1.0, 2.0], [3.0, 4.0]]"]).compute()


def test_a_small_file_does_not_unpack_to_a_large_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b'{"record":"graphs","id":0,"kind":"lazy","ops":["A"],"srcs":[' + b"[]," * 2_100_000
    bomb = strangers._bundle(rows + b"[]]}").decode()
    with pytest.raises(TraceError, match=r"over 4,200,0\d\d values in \d,\d{3} bytes of file"):
        codec.loads(bomb)
    monkeypatch.setattr(codec, "VALUES", (10**9, 4))  # without that net the other error comes
    with pytest.raises(TraceError, match="rows"):
        codec.loads(bomb)
    with pytest.raises(TraceError, match="a bundle of 95 MB, in"):
        codec.loads(strangers._bundle(bytes(100_000_000)).decode())


def test_words_are_counted_as_often_as_they_stand() -> None:
    graph = {"record": "graphs", "id": 0, "kind": "lazy",
             "ops": {"words": ["W" * 100_000], "at": [0] * 1_000}}
    with pytest.raises(TraceError, match="a list of words of over"):
        codec.loads(lines(graph))


def test_a_log_cannot_make_a_pattern_search_for_ever() -> None:
    """2 to the 40 ways to read forty attributes; a square of ten million escapes."""
    for text in ("void " + "__attribute__((a)) " * 40 + "!", "\x1b[" * 200_000,
                 "*** C 1 " + "x " * 30_000, "a opts: (" + "Opt(op=OptOps.A, axis=1, arg=" * 2000):
        began = time.process_time()
        with pytest.raises(BadInput, match="no kernel launch"):
            debuglog.parse(text)
        assert time.process_time() - began < 1


@pytest.mark.parametrize("number", ["1.2.3", "9" * 400, "1e5", "..", "1" * 5000])
def test_numbers_of_a_log_that_are_none(number: str) -> None:
    log = (f"*** CUDA 1 r_4 arg 1 mem 0.01 GB tm {number}us/ 1.0ms ( 2 GFLOPS 5|6 GB/s)\n"
           f"*** CUDA 2 r_4 arg 1 mem 0.01 GB tm 10.0us/ 1.0ms ( {number} GFLOPS 5|6 GB/s)\n"
           "*** CUDA 3 r_4 arg 1 mem 0.01 GB tm 10.0us/ 1.0ms ( 2 GFLOPS 5|6 GB/s)\n"
           f"scheduled 1 kernels in {number} ms | cache hit a0 | 1 uops in cache | t.py:{number}\n"
           f"buffer: allocate {number} bytes on CPU\n")
    trace = debuglog.parse(log)
    assert codec.loads(codec.dumps(trace)) == trace
    (timing,) = trace.timings
    assert timing.total_us <= 20.0


def test_a_log_of_endless_code_keeps_little_of_it() -> None:
    log = "*** C 1 k arg 1 mem 0.1 GB\n" + ("typedef int x;\n" + "y" * 60_000 + "\n") * 200
    assert len(codec.dumps(debuglog.parse(log))) < 10_000_000


def profile_with(**facts: str) -> bytes:
    text = (strangers.ROOT / "devices/jetson-orin-nano-super.toml").read_text("utf-8")
    for name, value in facts.items():
        text = re.sub(rf"(?m)^{name} = {{ value = [^,]*,", f"{name} = {{ value = {value},", text,
                      count=1)
    return text.encode()


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "0", "1e300", "[1]", "2024-01-01", "true"])
def test_a_fact_that_is_no_size_is_refused(value: str) -> None:
    with pytest.raises(BadInput, match=r"facts\.bandwidth is"):
        profiles.read_text(profile_with(bandwidth=value), "x")


@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "schema = " + "9" * 5_000,
                                  "a = " + "{b=" * 5_000, ".".join("a" * 5_000) + " = 1"])
def test_toml_that_breaks_its_reader_is_a_bad_profile(text: str) -> None:
    with pytest.raises(BadInput, match=r"TOML|too deep"):
        profiles.read_text(text.encode(), "x")


def test_a_profile_is_written_with_its_controls_escaped() -> None:
    text = profile_with().replace(b'name = "', b'name = "\\u001b[31m\\u009b\\u007f', 1)
    found = profiles.read_text(text, "x")
    assert "\x1b" in found.name
    assert not UNSEEN.search(profiles.to_toml(found))
    assert profiles.parse(profiles.to_toml(found), "x") == found


def test_a_cubin_of_two_kernels_of_one_name_is_refused() -> None:
    """Each would have been read with all the records of the other: a square."""
    with pytest.raises(BadInput, match="two kernels of one name"):
        cubin.read(strangers._sections(4, b"k"))


def test_nothing_a_board_prints_raises() -> None:
    for text in ("RAM " + "9" * 5_000 + "/1MB", "GR3D_FREQ " + "9" * 5_000 + "%@" + "9" * 400,
                 "CPU [" + "9" * 5_000 + "%@1]", "VDD_IN " + "9" * 400 + "mW/1mW"):
        tegra.summarise(tegra.parse_log(text))
    for text in ("NV Power Mode: a\n" + "9" * 5_000, "GPU MinFreq=" + "9" * 5_000,
                 "< POWER_MODEL ID=" + "9" * 5_000 + " NAME=x >\nGPU MAX_FREQ " + "9" * 5_000,
                 "# R" + "9" * 5_000 + " (release)"):
        tegra.parse_nvpmodel_query(text), tegra.parse_nvpmodel_conf(text)
        tegra.parse_jetson_clocks(text), tegra.parse_release(text)


def test_a_table_of_iris_has_numbers_only(tmp_path: Path) -> None:
    import guide_data

    for rows in ("nan,1,1,1,setosa", "1e999,1,1,1,setosa", "1,1,1,1", "", "1" * 200_000,
                 '"1\n' * 9, "1e30,1,1,1,setosa"):
        (tmp_path / "iris.csv").write_text("a,b,c,d,e\n" + rows)
        with pytest.raises(guide_data.DataError, match="is not a table of four numbers"):
            guide_data.iris(tmp_path)


def test_a_pickle_of_data_calls_nothing() -> None:
    import guide_data

    for evil in (b"cos\nsystem\n(S'touch owned'\ntR.",
                 b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R."):
        try:
            found = guide_data.read_pickle(evil)
        except ValueError:
            continue
        assert isinstance(found, guide_data._Named)
    # 2 to the 60 steps to hash, if a tuple of tuples could be a key
    deep = b"\x80\x02)" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60))
    with pytest.raises(ValueError, match="other keys"):
        guide_data.read_pickle(b"\x80\x02}" + deep[2:] + b"NsK\x01.")


def test_tensors_of_a_file_do_not_lie_over_each_other() -> None:
    pytest.importorskip("tinygrad")
    import guide_quantize as q

    row = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    for header in ({"a": row, "b": row}, {"a": {**row, "data_offsets": [0, 8]}},
                   {"a": {**row, "data_offsets": [-4, 4]}},
                   {"a": {**row, "data_offsets": [0.0, 4]}}):
        with pytest.raises(ValueError, match="outside of the file, or over another"):
            q.read_safetensors(strangers._safetensors(json.dumps(header).encode(), b"1234"))


@pytest.mark.parametrize("changes", [
    {"sha256": {"../../etc/passwd": "x"}}, {"sha256": {"/dev/zero": "x"}}, {"sha256": []},
    {"model": "\x1b[2J"}, {"made_on": {}}, {"model": None},
])  # fmt: skip
def test_a_package_names_only_its_own_files(changes: dict[str, Any]) -> None:
    """`/dev/zero` was read to its end."""
    pytest.importorskip("tinygrad")
    import jetson

    right = {"model": "MLP", "made_on": dict.fromkeys(jetson.ABOUT, "x"),
             "sha256": dict.fromkeys(jetson.FILES, "x")}
    assert jetson.read_manifest(json.dumps(right).encode()) == right
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        jetson.read_manifest(json.dumps(right | changes).encode())


# **** code ****

ATTACKS = (
    'UOp(Ops.CUSTOM, dtypes.void, (), "system(\\"touch owned\\");")',
    "UOp(Ops.CUSTOMI, dtypes.int, (), 'x')", "UOp(Ops.SOURCE, arg='int main(){}')",
    "UOp(Ops.BINARY, arg=b'\\xc3')", "UOp(Ops.PROGRAM)", "UOp(Ops.CALL)",
    "UOp.const(1, dtypes.int).__class__", "UOp.const('{0.__class__}'.format(UOp), dtypes.int)",
    "UOp.special(4, 'x; system(0)')", "UOp.sink(arg=KernelInfo(name='f(){} int g'))",
    "dtypes.float.new(4, 4, 'int x; y', 'f')", "math.factorial(1000000000)", "1 << 10000000000",
    "UOp.const(9**9**9, dtypes.int)", "UOp.const((0,) * 10000000000, dtypes.int)",
    "UOp.const('a' * 10000000000, dtypes.int)", "UOp.const(1 << 10000000000, dtypes.int)",
    "UOp.variable('x; system(0)', 0, 4)", "UOp.from_buffer(1)", "__import__('os')", "open('x')",
    "[UOp for UOp in ()]", "(lambda: UOp)()", "UOp if True else UOp", "UOp[0]",
    "f'{UOp}'", "UOp.const(10**400, dtypes.int)", "print(UOp)", "UOp.sum", "UOp.const(1j)",
    "UOp.const(1, dtypes.int).copy_to_device('DISK:/etc/passwd')", "UOp.new_buffer('DISK:x', 1)",
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_kernels_code_can_only_be_arithmetic(attack: str) -> None:
    """A renderer writes CUSTOM's text, and names, into a C program as they stand; `tgx bisect`
    would have compiled and run that."""
    pytest.importorskip("tinygrad")
    from tgx.adapter.extract import checked

    with pytest.raises(BadInput, match="the kernel's code"):
        checked(f"ast = {attack}", "kernel 0")
    with pytest.raises(BadInput, match="the kernel's code"):
        checked(f"c1 = UOp.const(1, dtypes.int)\nast = (c1+({attack})).sink()", "kernel 0")


CALLS = ("__import__('os').system('touch owned')", "x.__class__", "eval('1')", "(lambda: x)()",
         "[x for x in (1,)]", "f'{x}'", "x.numpy()", "x.realize()", "x.to('DISK:owned')",
         "open('x')", "x.sum().__init__.__globals__", "'{0}'.format(x)", "x if x else x",
         "(x := 1)", "x.assign(x)", "*x", "x.T.lazydata", "exec('1')", "x.custom_kernel(x)",
         "x.uop")  # fmt: skip


@pytest.mark.parametrize("text", CALLS)
def test_an_expression_runs_no_code(text: str) -> None:
    """Nor compiles any: but for the lambda, always the same, that marks a place in the text."""
    pytest.importorskip("tinygrad")
    from tgx.adapter.expression import Expression

    Expression("x*x", ["x=2.0"]).compute()  # what is compiled once for a device is compiled now
    with pytest.raises(BadInput), strangers.guarded(("compile", "code.__new__", "import")):
        Expression(text, ["x=2.0"]).compute()
    assert not strangers._guard.seen


def test_a_tensor_is_not_split_into_millions() -> None:
    pytest.importorskip("tinygrad")
    from tgx.adapter.expression import Expression

    with pytest.raises(BadInput, match="makes over 1000 tensors"):
        Expression("x.split(1)[0].sum()", ["x=zeros(1001)"]).compute()
    assert Expression("x.split(2)[0].sum()", ["x=zeros(1001)"]).compute().shape == ()


# **** folders ****


def test_nothing_is_written_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names with .., absolute, CON, NUL, very long, and look-alikes; levels of code, too."""
    monkeypatch.setattr(recording, "pictures", lambda t: ())  # their names are ours
    out = tmp_path / "a" / "out"
    for name in ("../../x", "/abs", "CON", "a\0b", "W" * 5_000, "‥/x", "..\\..\\x", "∕etc∕passwd"):
        trace = poison.poisoned(name, traces.mlp_step(), instead=True)
        programs = tuple(replace(p, code=tuple(replace(c, level=name, language=name)
                                               for c in p.code)) for p in trace.programs)
        assert recording.write_views(replace(trace, programs=programs), out) is not None
    assert [p for p in tmp_path.rglob("*") if p.is_file() and out not in p.parents] == []
    allowed = re.compile(r"[A-Za-z0-9_.-]+")
    for path in out.rglob("*"):
        assert allowed.fullmatch(path.name) and len(path.name) < 200 and not path.is_symlink()


@pytest.mark.parametrize("link", ["index.html", "trace.jsonl", "graphs", "kernels",
                                  "timeline.json"])
def test_a_link_in_the_folder_is_not_followed(tmp_path: Path, link: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir() if link in ("graphs", "kernels") else precious.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / link).symlink_to(precious)
    trace = traces.mlp_step()
    if link == "trace.jsonl":
        with pytest.raises(BadInput, match="is a link to"):
            codec.write(trace, out)
    else:
        assert any("is a link to" in p for p in recording.write_views(trace, out))
    assert precious.read_text() == "mine" if precious.is_file() else not any(precious.iterdir())


# **** what is printed ****


@pytest.mark.parametrize("arguments", [
    ["show"], ["show", "--kernel", "0"], ["show", "--line", "mlp.py:10"], ["show", "--json"],
    *(["show", "--view", view] for view in VIEWS if view != "svg"),
    ["compare"], ["compare", "--json"], ["compare", "--markdown"],
])  # fmt: skip
def test_a_terminal_sees_text_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    text = TOGETHER
    trace = poison.poisoned(text)
    files = tuple(replace(f, path=f"mlp.py{text}" if i else "mlp.py")
                  for i, f in enumerate(trace.files))
    codec.write(replace(trace, files=files), tmp_path / "t")
    where = [str(tmp_path / "t")] * (1 + (arguments[0] == "compare"))
    assert cli.main([arguments[0], *where, *arguments[1:]]) == 0
    told = capsys.readouterr().out
    assert told and not UNSEEN.search(told), UNSEEN.findall(told)[:5]


def test_an_error_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\u202e"
    (tmp_path / "trace.jsonl").write_text(lines(
        {"record": "programs", "id": 0, "name": "p",
         "loops": [{"name": evil, "size": "1", "kind": evil}]}))
    assert cli.main(["show", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert not UNSEEN.search(told) and "[2J" in told


def test_markdown_of_hostile_names_is_no_markup() -> None:
    from markdown_it import MarkdownIt  # rich brings it

    trace = poison.poisoned(TOGETHER.replace("\0", ""))
    for told in (VIEWS["markdown"].render(trace), backward.render(trace, "markdown"),
                 compare.render([trace, trace], form="markdown")):
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(told)
        inner = [child for token in tokens for child in token.children or ()]
        kinds = {token.type for token in (*tokens, *inner)}
        assert not kinds & {"html_block", "html_inline", "image", "link_open"}, kinds


def test_a_graph_label_stays_in_its_box() -> None:
    for text in ("dot", "attribute", "cdata", "entity", "lines", "long", "paths"):
        trace = poison.poisoned(poison.EVIL[text], traces.mlp_step())
        for what in picture.PICTURES:
            drawn = ET.fromstring(svg.from_dot(dot.render(trace, what)))
            assert not [e for e in drawn.iter() if e.tag.endswith(("script", "image", "style"))]
            links = [v for e in drawn.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert not any(links) and "evil" not in [
                e.text for e in drawn.iter() if e.tag.endswith("}title")]


# **** planted bugs: each is caught ****


def test_without_its_escape_a_page_is_caught(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The title unescaped: the policy still runs nothing, and says so, which is a failure here."""
    monkeypatch.setattr(html, "escape", lambda text: text)
    evil = "</title></head><script>document.title='owned'</script><img src=x>"
    trace = replace(traces.mlp_step(), environment=Environment(evil))
    opened = Opened(browser, tmp_path / "x.html", VIEWS["html"].render(trace))
    assert opened.page.title() != "owned"
    with pytest.raises(AssertionError, match="script-src"):
        opened.close()


def test_without_clean_a_view_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.views import words

    monkeypatch.setattr(words, "clean", lambda text: text)
    seed = strangers.FORMATS["trace"].seeds()[3]
    assert "not clean" in strangers.attempt(FORMATS["trace"], seed).bug


@pytest.mark.parametrize(("net", "value"), [("MAX_WORDS", 10**12), ("MAX_TEXT", 10**12)])
def test_without_a_bound_the_codec_is_caught(
    monkeypatch: pytest.MonkeyPatch, net: str, value: int
) -> None:
    monkeypatch.setattr(codec, net, value)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        if net == "MAX_WORDS":
            test_words_are_counted_as_often_as_they_stand()
        else:
            with pytest.raises(TraceError):
                codec.loads(lines({"record": "kernels", "id": 0, "name": "W" * (3 << 20)}))


def test_without_the_list_of_operations_the_kernels_code_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tinygrad")
    from tgx.adapter import extract

    monkeypatch.setitem(extract.MEMBERS, "Ops", extract.MEMBERS["Ops"] | {"CUSTOMI"})
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_a_kernels_code_can_only_be_arithmetic("UOp(Ops.CUSTOMI, dtypes.int, (), 'x')")
