"""tgx.codec: traces come back as they were, and bad files are refused in words."""

from __future__ import annotations

import base64
import io
import json
import math
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import small

from tgx import codec
from tgx.codec import TraceError
from tgx.model import Environment, GradientStep, Graph, Kernel, Pass, Trace, Value, Walk

pytestmark = pytest.mark.pure

HEADER = '{"record":"tgx-trace","schema":1}\n'


def bundle(text: str, size: int | None = None) -> str:
    data = base64.b64encode(zlib.compress(text.encode())).decode()
    size = len(text.encode()) if size is None else size
    return json.dumps({"record": "bundle", "size": size, "data": data}) + "\n"


def test_a_trace_comes_back_equal(tmp_path: Path) -> None:
    trace = small()
    assert codec.loads(codec.dumps(trace)) == trace
    assert codec.write(trace, tmp_path / "run") == tmp_path / "run" / "trace.jsonl"
    assert codec.read(tmp_path / "run") == codec.read(tmp_path / "run" / "trace.jsonl") == trace


def test_writing_is_stable() -> None:
    assert codec.dumps(small()) == codec.dumps(codec.loads(codec.dumps(small())))


def test_numbers_json_does_not_have() -> None:
    value = Value(norm=math.inf, low=-math.inf, sample=(math.nan, 1.0))
    trace = Trace(
        graphs=(Graph(0, "lazy", ops=("LOG2",)),),
        walks=(Walk(0, 0, 0, values=(value,)),),
        gradients=(GradientStep(0, 0, 0, "LOG2"),),
    )
    text = codec.dumps(trace)
    back = codec.loads(text).walks[0].value(0)
    assert back.norm == math.inf and back.low == -math.inf and math.isnan(back.sample[0])
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_a_later_record_replaces_an_earlier_one() -> None:
    out = io.StringIO()
    writer = codec.Writer(out)
    writer.write("kernels", Kernel(0, "r_4_4"))
    writer.bundle([("kernels", Kernel(0, "matmul", "r_4_4"))])
    writer.close()
    assert codec.loads(out.getvalue()).kernels == (Kernel(0, "matmul", "r_4_4"),)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_cut_still_opens_and_says_so(data: st.DataObject) -> None:
    """kill -9 at any moment: what was written is there, the rest is said to be missing."""
    out = io.StringIO()
    writer = codec.Writer(out)
    trace = small()
    for table in codec.RECORDS:
        for record in getattr(trace, table):
            writer.write(table, record)
    writer.close()
    text = out.getvalue()
    cut = data.draw(st.integers(len(HEADER), len(text) - 2))
    opened = codec.loads(text[:cut])
    assert opened.environment.ended == "unfinished"
    assert "stops early" in opened.environment.missing[-1]


def test_a_live_file_is_flushed_record_by_record(tmp_path: Path) -> None:
    with open(tmp_path / "trace.jsonl", "w") as out:
        writer = codec.Writer(out)
        writer.write("environment", Environment(program="mnist.py"))
        writer.write("kernels", Kernel(0, "relu", program=3))  # its program was never written
        seen = codec.read(tmp_path)  # while the writer still holds the file open
    assert seen.environment.program == "mnist.py"
    assert seen.kernels[0].name == "relu" and seen.kernels[0].program == -1


BAD = {
    "empty": ("", "is empty"),
    "binary": ("\x00\x01\x02", "not JSON"),
    "html": ("<html>hello</html>\n", "not JSON"),
    "another JSON": ('{"traceEvents":[]}\n', "not a record"),
    "a list": ("[1,2]\n", "not a record"),
    "another tool": ('{"record":"memray"}\n', "not a tgx trace"),
    "newer schema": ('{"record":"tgx-trace","schema":999}\n', "upgrade"),
    "odd schema": ('{"record":"tgx-trace","schema":"1"}\n', "its schema is '1'"),
    "rubbish within": (HEADER + "rubbish\n" + '{"record":"end","records":0}\n', "line 2"),
    "unknown record": (HEADER + '{"record":"secrets"}\n', "knows no such record"),
    "unknown field": (HEADER + '{"record":"files","id":0,"path":"x","exec":"y"}\n', "'exec'"),
    "a missing field": (HEADER + '{"record":"files","id":0}\n', "without its path"),
    "text for a number": (HEADER + '{"record":"files","id":"0","path":"x"}\n', "whole number"),
    "a yes for a number": (HEADER + '{"record":"files","id":true,"path":"x"}\n', "whole number"),
    "a huge number": (HEADER + f'{{"record":"files","id":{10**30},"path":"x"}}\n', "64 bits"),
    "a huger number": (HEADER + '{"record":"files","id":1' + "0" * 5000 + "}\n", "not JSON"),
    "NaN": (HEADER + '{"record":"events","kind":"note","name":"x","at_us":NaN}\n', "not JSON"),
    "deep": (HEADER + "[" * 100_000 + "]" * 100_000 + "\n", "too deep"),
    "a bad word": (HEADER + '{"record":"kernels","id":0,"name":"x","phase":"up"}\n', "phase"),
    "after the end": (HEADER + '{"record":"end","records":0}\n{"record":"end","records":0}\n',
                      "after the end"),
    "a wrong count": (HEADER + '{"record":"end","records":5}\n', "counts 5"),
    "a bundle of air": (HEADER + '{"record":"bundle","size":3}\n', "without its data"),
    "a bundle of noise": (HEADER + '{"record":"bundle","size":3,"data":"eJ!!"}\n', "unpack"),
    "a bundle that lies": (HEADER + bundle('{"record":"files"}', size=4), "another size"),
    "a boast": (HEADER + '{"record":"bundle","size":99999999999,"data":""}\n', "more than"),
    "a nested bundle": (HEADER + bundle(bundle("{}").strip()), "knows no such record"),
    "no such word": (HEADER + '{"record":"kernels","id":0,"name":"k","ops":'
                     '{"words":[],"at":[1]}}\n', "does not have"),
    "dangling": (HEADER + '{"record":"kernels","id":0,"name":"k","program":5}\n'
                 '{"record":"end","records":1}\n', "contradicts itself"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_in_words(what: str) -> None:
    text, expected = BAD[what]
    with pytest.raises(TraceError) as caught:
        codec.loads(text)
    assert expected in str(caught.value)


def test_a_bomb_is_not_unpacked() -> None:
    """A small line that inflates to a gigabyte stops at the size it claims."""
    squeeze = zlib.compressobj()
    data = b"".join(squeeze.compress(bytes(2**20)) for _ in range(64)) + squeeze.flush()
    line = {"record": "bundle", "size": 100, "data": base64.b64encode(data).decode()}
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match="another size"):
            codec.loads(HEADER + json.dumps(line) + "\n")
        assert tracemalloc.get_traced_memory()[1] < 2**22, "it was unpacked before it was refused"
    finally:
        tracemalloc.stop()


def test_a_line_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_LINE", 1000)
    with pytest.raises(TraceError, match="more than"):
        codec.loads(HEADER + '{"record":"files","id":0,"path":"%s"}\n' % ("x" * 2000))


def test_too_many_records_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_RECORDS", 10)
    with pytest.raises(TraceError, match="more than 10 records"):
        codec.loads(codec.dumps(Trace(kernels=tuple(Kernel(i, "k") for i in range(20)))))


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="tgx trace -o DIR SCRIPT"):
        codec.read(tmp_path)
    (tmp_path / "trace.jsonl").mkdir()
    with pytest.raises(TraceError):
        codec.read(tmp_path / "trace.jsonl" / "nothing")


def test_half_a_character_does_not_survive() -> None:
    """Lone surrogates can be read from JSON, but no view could write them."""
    text = HEADER + '{"record":"files","id":0,"path":"a\\ud800b"}\n{"record":"end","records":1}\n'
    codec.loads(text).files[0].path.encode()


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_anything_but_a_trace_error(text: str) -> None:
    for candidate in (text, HEADER + text, HEADER + text + "\n"):
        try:
            codec.loads(candidate)
        except TraceError:
            pass


TEXT = st.text(max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(codec.RECORDS)), st.data())
@settings(max_examples=150, deadline=None)
def test_no_record_makes_anything_but_a_trace_error(table: str, data: st.DataObject) -> None:
    names = [name for name, _ in codec._defaults(codec.RECORDS[table])]
    values = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=4))
    try:
        codec.loads(HEADER + json.dumps({"record": table, **values}) + "\n")
    except TraceError:
        pass


@pytest.mark.parametrize("steps", [
    {"delta": [0, 1, 2]}, {"delta": ["x"] * 4}, {"delta": 7}, {"delta": [], "back": []}, {"d": []},
    {"delta": [2**62] * 8},
])  # fmt: skip
def test_steps_that_are_packed_wrong_are_refused(steps: object) -> None:
    lines = [{"record": "tgx-trace", "schema": 1},
             {"record": "graphs", "id": 0, "kind": "table"},
             {"record": "passes", "id": 0, "name": "p", "table": 0, "steps": steps}]  # fmt: skip
    with pytest.raises(codec.TraceError, match="line 3"):
        codec.loads("".join(json.dumps(line) + "\n" for line in lines))


def test_steps_and_sources_are_written_as_distances() -> None:
    srcs = ((), (0,), (1, 0), (2,))
    steps = (0, 1, 2, -1, 1, 2, 3, -1)
    trace = Trace(
        graphs=(Graph(0, "table", ops=("A", "B", "C", "D"), srcs=srcs),),
        passes=(Pass(0, "p", table=0, before=1, after=3, steps=steps),),
    )
    writer = io.StringIO()
    out = codec.Writer(writer)
    out.write("graphs", trace.graphs[0])
    out.write("passes", trace.passes[0])
    _, graph, done = (json.loads(line) for line in writer.getvalue().splitlines())
    assert graph["srcs"] == {"back": [[], [1], [1, 2], [1]]}
    assert done["steps"] == {"delta": [0, 1, 1, 1, 2, 1, -1, 0]}
    assert codec.loads(codec.dumps(trace)) == trace
    plain = {**done, "steps": list(steps)}  # as it was written before
    text = "\n".join(json.dumps(x) for x in ({"record": "tgx-trace", "schema": 1}, graph, plain))
    assert codec.loads(text + "\n").passes == trace.passes
