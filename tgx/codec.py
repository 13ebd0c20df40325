"""Trace ⇄ ``trace.jsonl``: one JSON record a line, appended as the program runs.

The file::

    {"record": "tgx-trace", "schema": 1}                     first: which form this is
    {"record": "environment", "program": "mnist.py", …}
    {"record": "frames", "id": 0, "file": 0, "line": 12}     one record of a table of the Trace
    {"record": "bundle", "size": 81234, "data": "eJzt…"}     many records, zlib then base64
    {"record": "end", "records": 412}                        last: nothing is missing

A record is named after the table of `tgx.model.Trace` it belongs to; its keys are the fields that
differ from their defaults (the two longest columns are packed, see `PACKED`). A later record with
the same id replaces the earlier one, so that what is learnt after the run (names, reasons) can be
added without rewriting the file. A file without its end record (the process was killed) still
opens: `environment.ended` is then "unfinished", and references to what was never written are
dropped.

Reading only ever builds the records of tgx.model: there is no pickle and no eval, every value is
checked against the type its field declares, and what a file unpacks to is bounded by its own size
before it is unpacked: a small file cannot become a large trace.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import reprlib
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from tgx import model
from tgx.errors import BadInput
from tgx.model import NEEDED, RECORDS, REFERENCES, SCHEMA, TABLES, ModelError, Trace

MAGIC = "tgx-trace"
FILE_NAME = "trace.jsonl"

MAX_LINE = 256 * 2**20  # characters in one line of the file
MAX_BUNDLE = 512 * 2**20  # bytes one bundle may unpack to
MAX_TOTAL = 4 * 2**30  # bytes of all lines and unpacked bundles together
MAX_RECORDS = 20_000_000
MAX_TEXT = 2 * 2**20  # characters of one text (a file's longest line, say) that is not code
MAX_WORDS = 64 * 2**20  # characters of one column of words, each counted as often as it stands
# What a file may unpack to: so much, and so much more for each byte read. Traces of real programs
# unpack to 5 times their size (the most is 11), with 0.5 values a byte (1.8).
BYTES = (32 * 2**20, 40)
VALUES = (4_000_000, 4)
BUNDLE_RECORDS = 2_000  # records a writer puts into one bundle
BUNDLE_BYTES = 4 * 2**20


class TraceError(BadInput):
    """A file that is not a trace this tgx can read; the message says where and why."""


# **** plain values from records, and back ****


def _plain(value: Any) -> Any:
    """A field's value as JSON. Long rows of words are stored as a list of distinct words and
    indices."""
    kind = type(value)
    if kind is int or kind is str or kind is bool:
        return value
    if kind is float and not math.isfinite(value):
        return str(value)  # JSON has no infinity: "inf", "-inf", "nan"
    if kind is tuple:
        kinds = set(map(type, value))
        if kinds == {str} and len(value) > 16:
            places: dict[str, int] = {}
            return {"at": [places.setdefault(v, len(places)) for v in value], "words": list(places)}
        if kinds == {tuple}:
            kinds = set().union(*[map(type, v) for v in value])
        # json.dumps writes rows of numbers and words as they stand, but not records and floats
        return value if kinds <= _SIMPLE else [_plain(v) for v in value]
    if is_dataclass(value):
        return _fields_of(value)
    return value


_SIMPLE = {int, str}


def _fields_of(record: Any) -> dict[str, Any]:
    """The fields of a record that differ from their defaults."""
    out = {}
    kind: Any = type(record)
    for name, default in _defaults(kind):
        value = getattr(record, name)
        if value != default or type(value) is not type(default):
            pack = PACKED.get((kind, name))
            out[name] = pack[0](value) if pack and value else _plain(value)
    return out


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    def default(f: Any) -> Any:
        if f.default is not MISSING:
            return f.default
        return f.default_factory() if f.default_factory is not MISSING else MISSING

    return tuple((f.name, default(f)) for f in fields(kind))


# Two columns hold nearly all the numbers of a trace. Both walk through a table, so they are written
# as distances: small numbers, which deflate to less than half.


def _pack_steps(steps: tuple[int, ...]) -> dict[str, list[int]]:
    """Four columns after each other, every number as its distance from the one before."""
    columns = (steps[k::4] for k in range(4))
    return {"delta": [b - a for c in columns for a, b in zip((0, *c), c, strict=False)]}


def _unpack_steps(packed: Any) -> Any:
    delta = _packed(packed, "delta")
    rows, rest = divmod(len(_all_whole(delta)), 4)
    if rest:
        raise _Wrong(f"{len(delta)} numbers are not four columns")
    out = [0] * len(delta)
    for k in range(4):
        out[k::4] = accumulate(delta[k * rows : (k + 1) * rows])
    return out


def _pack_srcs(srcs: tuple[tuple[int, ...], ...]) -> dict[str, list[list[int]]]:
    """How many rows back each source stands."""
    return {"back": [[i - s for s in row] for i, row in enumerate(srcs)]}


def _unpack_srcs(packed: Any) -> Any:
    back = _packed(packed, "back")
    if not all(type(row) is list for row in back):
        raise _Wrong("a row of sources that is not a list")
    return [[i - b for b in _all_whole(row)] for i, row in enumerate(back)]


def _packed(value: Any, name: str) -> list[Any]:
    if value.keys() != {name} or type(value[name]) is not list:
        raise _Wrong(f"{_brief(value)} is not packed as {name}")
    found: list[Any] = value[name]
    return found


PACKED: dict[tuple[type, str], tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    (model.Pass, "steps"): (_pack_steps, _unpack_steps),
    (model.Graph, "srcs"): (_pack_srcs, _unpack_srcs),
}
"""Fields that are packed, and how they are packed and unpacked."""


Reader = Callable[[Any], Any]


class _Wrong(Exception):
    """A value that does not fit its field; the caller adds where it stood."""


def _brief(value: object) -> str:
    """A value of any size in a few characters; all of it is never written out."""
    return reprlib.repr(value)[:40]


def _whole(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise _Wrong(f"{_brief(value)} is not a whole number of at most 64 bits")
    return value


def _number(value: Any) -> float:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if type(value) is int:
        value = float(_whole(value))
    if type(value) is not float:
        raise _Wrong(f"{_brief(value)} is not a number")
    return value


def _yes_no(value: Any) -> bool:
    if type(value) is not bool:
        raise _Wrong(f"{_brief(value)} is not true or false")
    return value


def _words(value: Any) -> str:
    if type(value) is not str:
        raise _Wrong(f"{_brief(value)} is not text")
    if len(value) > MAX_TEXT:
        raise _Wrong(f"a text of {len(value):,} characters, at most {MAX_TEXT:,}")
    return _code(value)


def _code(value: Any) -> str:
    """Text of any length."""
    if type(value) is not str:
        raise _Wrong(f"{_brief(value)} is not text")
    # half a surrogate pair could be read but never written again
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


_SCALARS: dict[Any, Reader] = {int: _whole, float: _number, bool: _yes_no, str: _words}


def _all_whole(value: Any) -> tuple[int, ...]:
    """tuple[int, ...]: the long ones are rewrite steps, so look at the extremes instead of each."""
    if type(value) is not list:
        raise _Wrong(f"{_brief(value)} is not a list")
    if value:
        if not set(map(type, value)) <= {int}:
            raise _Wrong("a list of whole numbers holds something else")
        _whole(min(value))
        _whole(max(value))
    return tuple(value)


def _all_words(value: Any) -> tuple[str, ...]:
    if type(value) is dict and value.keys() == {"words", "at"}:
        words, at = _all_words(value["words"]), _all_whole(value["at"])
        if at and not 0 <= min(at) <= max(at) < len(words):
            raise _Wrong("a list of words refers to a word it does not have")
        if len(at) * max(map(len, words), default=0) > MAX_WORDS:
            if sum(len(words[i]) for i in at) > MAX_WORDS:
                raise _Wrong(f"a list of words of over {MAX_WORDS:,} characters")
        return tuple(words[i] for i in at)
    if type(value) is not list:
        raise _Wrong(f"{_brief(value)} is not a list")
    return tuple(map(_words, value))


@cache
def _reader(kind: Any) -> Reader:
    """The function that checks a JSON value and turns it into ``kind``."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if is_dataclass(kind) and isinstance(kind, type):
        return _record_reader(kind)
    inside = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and inside[-1] is Ellipsis:
        if inside[0] is int:
            return _all_whole
        if inside[0] is str:
            return _all_words
        each = _reader(inside[0])

        def many(value: Any) -> tuple[Any, ...]:
            if type(value) is not list:
                raise _Wrong(f"{_brief(value)} is not a list")
            return tuple(map(each, value))

        return many
    if typing.get_origin(kind) is tuple:
        parts = tuple(map(_reader, inside))

        def fixed(value: Any) -> tuple[Any, ...]:
            if type(value) is not list or len(value) != len(parts):
                raise _Wrong(f"{_brief(value)} is not a list of {len(parts)}")
            return tuple(part(v) for part, v in zip(parts, value, strict=True))

        return fixed
    raise TypeError(f"tgx.codec does not know how to read a field of type {kind}")


def _record_reader(kind: type) -> Reader:
    hints = typing.get_type_hints(kind, vars(model))
    readers = {f.name: _reader(hints[f.name]) for f in fields(kind)}
    if kind is model.Code:
        readers["text"] = _code
    required = [name for name, default in _defaults(kind) if default is MISSING]

    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _Wrong(f"{_brief(value)} is not a record")
        given = {}
        for name, v in value.items():
            if name not in readers:
                raise _Wrong(f"a {kind.__name__} has no field {_brief(name)}")
            try:
                if type(v) is dict and (kind, name) in PACKED:
                    v = PACKED[kind, name][1](v)
                given[name] = readers[name](v)
            except _Wrong as e:
                raise _Wrong(f"{name}: {e}") from None
        for name in required:
            if name not in given:
                raise _Wrong(f"a {kind.__name__} without its {name}")
        return kind(**given)

    return read


# **** writing ****


class OneFile(io.TextIOBase):
    """A file that a running program's records go to, which must never be the program's trouble:
    when it cannot be written any more (a full disk), `failed` says why, and the rest is left out.

    Opening it raises OSError, as ever.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.failed, self._left = "", False
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  (open as long as this is)
        self._waiting: list[str] = []

    def write(self, text: str) -> int:
        if not self.failed and not self._left:
            self._waiting.append(text)
        return len(text)

    def flush(self) -> None:
        data = memoryview("".join(self._waiting).encode())
        self._waiting.clear()
        try:
            while data and not self.failed and not self._left:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            self.failed = error.strerror or str(error)

    def abandon(self) -> None:
        """Writes nothing more, and is quiet about it: it is another process's now."""
        self._left = True

    def close(self) -> None:
        if not self.closed:
            self.flush()
            try:
                self._file.close()
            except OSError as error:  # some file systems say only now that they are full
                self.failed = self.failed or error.strerror or str(error)
        super().close()


class Writer:
    """Appends records to a trace. Every call leaves a file that opens, whatever happens next.

    ``write`` puts one record on a line of its own and flushes; ``bundle`` packs many.
    ``close(complete=True)`` adds the end record.
    """

    def __init__(self, out: IO[str] | OneFile) -> None:
        self.out, self.records = out, 0
        self._line({"record": MAGIC, "schema": SCHEMA})
        self.out.flush()

    def _line(self, record: dict[str, Any]) -> None:
        self.out.write(_dumps(record) + "\n")

    def write(self, table: str, record: Any) -> None:
        """One record, on disk when this returns. ``table`` is a Trace's field name or
        "environment"."""
        self._line({"record": table, **_fields_of(record)})
        self.records += 1
        self.out.flush()

    def bundle(self, records: Iterable[tuple[str, Any]]) -> None:
        """Many (table, record) pairs, compressed."""
        lines: list[str] = []
        size = 0
        for table, record in records:
            line = _dumps({"record": table, **_fields_of(record)})
            lines.append(line)
            size += len(line)
            if len(lines) >= BUNDLE_RECORDS or size >= BUNDLE_BYTES:
                self._pack(lines)
                lines, size = [], 0
        if lines:
            self._pack(lines)
        self.out.flush()

    def _pack(self, lines: list[str]) -> None:
        raw = "\n".join(lines).encode()
        data = base64.b64encode(zlib.compress(raw, 6)).decode()
        self._line({"record": "bundle", "size": len(raw), "data": data})
        self.records += len(lines)

    def close(self, complete: bool = True) -> None:
        if complete:
            self._line({"record": "end", "records": self.records})
        self.out.flush()


def _dumps(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False)


def dump(trace: Trace, out: IO[str]) -> None:
    """Writes a whole Trace."""
    writer = Writer(out)
    writer.write("environment", trace.environment)
    writer.bundle((table, record) for table in RECORDS for record in getattr(trace, table))
    writer.close()


def dumps(trace: Trace) -> str:
    out = io.StringIO()
    dump(trace, out)
    return out.getvalue()


def inside(folder: Path, name: str) -> Path:
    """Where to write ``name``, a path with slashes, in a folder; the folders on the way are made.

    A folder may have come from a stranger, with links in it: none of them is followed.
    """
    path = folder
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part or os.sep in part:
            raise BadInput(f"{name!r} is no name of a file in {folder}")
        path.mkdir(parents=True, exist_ok=True)
        path = path / part
        if path.is_symlink():
            raise BadInput(f"{path} is a link to {os.readlink(path)}", "a file of the folder's own",
                           "write to another folder: -o DIR, or remove the link")
    return path


def write(trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Writes ``path``, or ``path/trace.jsonl`` if it is a folder (or has no ending); says which."""
    path = Path(path)
    if path.is_dir() or not path.suffix:
        path = inside(path, FILE_NAME)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        dump(trace, out)
    return path


# **** reading ****


def read(path: str | os.PathLike[str]) -> Trace:
    """The trace at ``path``: the file itself, or the folder that ``tgx trace -o`` made."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    try:
        with open(path, "rb") as file:
            return _collect(_lines(file), str(path))
    except FileNotFoundError:
        raise TraceError(
            f"there is no trace at {path}",
            f"a folder with {FILE_NAME}, or that file",
            "make one with: tgx trace -o DIR SCRIPT",
        ) from None
    except OSError as e:
        raise TraceError(f"{path} cannot be read: {e.strerror}") from None


def loads(text: str) -> Trace:
    """A trace from text."""
    return _collect(_lines(io.BytesIO(text.encode("utf-8", "replace"))), "the text given")


def _lines(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Lines without their ends, and whether each was whole: only the last can lack its newline."""
    total = 0
    while line := file.readline(MAX_LINE + 1):
        total += len(line)
        if len(line) > MAX_LINE or total > MAX_TOTAL:
            raise _Wrong(f"more than {(MAX_LINE if len(line) > MAX_LINE else MAX_TOTAL) >> 20} MB")
        yield line.rstrip(b"\r\n"), line.endswith(b"\n")


def _parse(line: bytes) -> dict[str, Any]:
    def constant(name: str) -> float:
        raise _Wrong(f"{name} is not JSON")

    try:
        record = json.loads(line, parse_constant=constant)
    except RecursionError:
        raise _Wrong("lists inside lists, too deep") from None
    except ValueError:
        raise _Wrong("not JSON") from None
    if type(record) is not dict or type(record.get("record")) is not str:
        raise _Wrong("not a record")
    return record


class _Budget:
    """What a file may still unpack to, as it is read."""

    def __init__(self) -> None:
        self.read = self.unpacked = self.values = 0

    def line(self, raw: bytes) -> bytes:
        """A line of JSON that is about to be parsed: its values are at most these characters."""
        self.values += raw.count(b",") + raw.count(b"[") + raw.count(b"{")
        if self.values > VALUES[0] + VALUES[1] * self.read:
            raise _Wrong(f"over {self.values - 1:,} values in {self.read:,} bytes of file")
        return raw

    def left(self) -> int:
        """Bytes that may still be unpacked."""
        return min(BYTES[0] + BYTES[1] * self.read, MAX_TOTAL) - self.unpacked


def _unpack(record: dict[str, Any], budget: _Budget) -> Iterator[bytes]:
    size, data = record.get("size"), record.get("data")
    if type(size) is not int or type(data) is not str or not 0 <= size <= MAX_BUNDLE:
        raise _Wrong(f"a bundle without its data, or of more than {MAX_BUNDLE >> 20} MB")
    if size > budget.left():
        raise _Wrong(f"a bundle of {size >> 20} MB, in {budget.read:,} bytes of file")
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(data, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise _Wrong("a bundle that does not unpack") from None
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        raise _Wrong("a bundle of another size than it says")
    budget.unpacked += size
    return (line.removesuffix(b"\n") for line in io.BytesIO(raw))


class _Collector:
    """Gathers records into the tables of a Trace; later records replace earlier ones of the same
    id."""

    def __init__(self) -> None:
        self.environment: model.Environment | None = None
        self.tables: dict[str, dict[Any, Any]] = {name: {} for name in RECORDS}
        self.count = 0
        self.ended = False

    def take(self, record: dict[str, Any]) -> None:
        name = record.pop("record")
        if self.ended:
            raise _Wrong("a record after the end record")
        if name == "end":
            if record.get("records") != self.count:
                raise _Wrong(f"the end record counts {_brief(record.get('records'))} records")
            self.ended = True
            return
        self.count += 1
        if self.count > MAX_RECORDS:
            raise _Wrong(f"more than {MAX_RECORDS} records")
        try:
            if name == "environment":
                self.environment = _reader(model.Environment)(record)
            elif name in RECORDS:
                table, value = self.tables[name], _reader(RECORDS[name])(record)
                row = value.kernel if name in ("timings", "counts") else self.count
                table[value.id if name in TABLES else row] = value
            else:
                raise _Wrong("this tgx knows no such record")
        except (_Wrong, ModelError) as e:
            raise _Wrong(f"{_brief(name)}: {e}") from None


def _collect(lines: Iterator[tuple[bytes, bool]], where: str) -> Trace:
    gathered, budget = _Collector(), _Budget()
    number = 0
    try:
        for number, (line, whole) in enumerate(lines, 1):
            budget.read += len(line)
            try:
                record = _parse(budget.line(line))
            except _Wrong:
                if not whole and number > 1:
                    break  # cut in the middle of its last line: what came before is good
                raise
            if number == 1:
                _check_header(record)
            elif record["record"] == "bundle":
                for inner in _unpack(record, budget):
                    gathered.take(_parse(budget.line(inner)))
            else:
                gathered.take(record)
    except _Wrong as e:
        raise TraceError(
            f"{where}, line {max(number, 1)}: {e}",
            f"a trace of schema {SCHEMA}, as tgx trace writes it",
            "if the file was edited or joined from pieces, make it anew",
        ) from None
    if number == 0:
        raise TraceError(f"{where} is empty", "a trace", "run tgx trace again")
    try:
        return _build(gathered)
    except ModelError as e:
        raise TraceError(f"{where} contradicts itself: {e}", "", "make the trace anew") from None


def _check_header(record: dict[str, Any]) -> None:
    if record["record"] != MAGIC:
        raise _Wrong("this is not a tgx trace (its first line should say tgx-trace)")
    schema = record.get("schema")
    if schema != SCHEMA:
        newer = type(schema) is int and schema > SCHEMA
        advice = "; a newer tgx wrote it: upgrade" if newer else ""
        raise _Wrong(f"its schema is {_brief(schema)}, this tgx reads {SCHEMA}{advice}")


def _build(gathered: _Collector) -> Trace:
    environment = gathered.environment or model.Environment(ended="unfinished")
    tables = {name: tuple(table.values()) for name, table in gathered.tables.items()}
    if not gathered.ended:
        note = "the recording stops early: the process was killed, or the file was cut short"
        missing = (*environment.missing, note)
        environment = replace(environment, ended="unfinished", missing=missing)
        tables = _mend(tables)
    return Trace(environment=environment, **tables)


def _mend(tables: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Drops references to records that were never written, and rows that mean nothing without
    them."""
    ids = {name: {r.id for r in tables[name]} for name in TABLES}
    needed = {*NEEDED, ("passes", "table"), ("traffic", "buffer")}
    graphs = []
    for g in tables["graphs"]:
        if any(not set(o) <= ids["origins"] for o in g.origins):
            g = replace(
                g, origins=tuple(tuple(o for o in row if o in ids["origins"]) for row in g.origins)
            )
        graphs.append(g)
    out = {**tables, "graphs": tuple(graphs)}
    changed = True
    while changed:  # dropping a row can leave another without its target
        changed = False
        for name, references in REFERENCES.items():
            kept = []
            for record in out[name]:
                for attribute, target in references:
                    value = getattr(record, attribute)
                    if isinstance(value, int):
                        optional = (name, attribute) not in NEEDED
                        if value in ids[target] or (value == -1 and optional):
                            continue
                        if (name, attribute) in needed:
                            break
                        record = replace(record, **{attribute: -1})
                    else:
                        good = tuple(
                            v for v in value if (v[0] if isinstance(v, tuple) else v) in ids[target]
                        )
                        if len(good) != len(value):
                            record = replace(record, **{attribute: good})
                else:
                    if name == "boundaries" and record.graph == -1 and record.nodes:
                        record = replace(record, nodes=())
                    kept.append(record)
            if len(kept) != len(out[name]):
                changed = True
                if name in ids:
                    ids[name] = {r.id for r in kept}
            out[name] = tuple(kept)
    rules = ids["rules"]
    out["passes"] = tuple(p for p in out["passes"] if set(p.steps[3::4]) <= rules | {-1})
    return out


__all__ = [
    "FILE_NAME", "TraceError", "Writer", "dump", "dumps", "inside", "loads", "read", "write",
]  # fmt: skip
