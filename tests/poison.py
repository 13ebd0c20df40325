"""Strings that strangers would write, and traces that have one in every place a string can be."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import traces
from tgx.model import Trace

EVIL = {
    "script": "</script><script>document.title='owned'</script>",
    "style": "</style><script>document.title='owned'</script>",
    "comment": "<!--<script>--!><img src=x onerror=document.title='owned'>",
    "cdata": "]]><svg onload=document.title='owned'><a href='javascript:document.title=1'>",
    "attribute": "\" onload=document.title='owned' x='` autofocus onfocus=document.title='owned' ",
    "template": "{{script}}${document.title='owned'}{{policy}}",
    "entity": "&lt;script&gt;&amp;#x3c;&#60;b&nosuch;",
    "dot": '"]; evil [shape=box URL="javascript:1"]; <b>x</b> \\N \\G \\" <<table>',
    "terminal": "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b1mbell\x07\rover\x08\x08\x7f\x00",
    "lines": "first\nsecond\r\nthird\u2028fourth\u2029fifth\x0b\x0c\x85",
    "bidi": "\u202egnp.\u202c\u2066a\u2069\u200f\u061c",
    "hidden": "ad\u200bmin\u200d\u2060\ufeff\xad\u3164\U000e0041",
    "surrogates": "\ud800half\udfff\ufffe\uffff",
    "paths": "../../../etc/passwd\0/abs\\..\\CON nul:aux.txt ",
    "markdown": "`` ` ``` [x](javascript:1) ![x](http://x/) <b> | * _ ~ # > \\ @all <!-- $",
    "prototype": "__proto__",
    "constructor": "constructor",
    "quotes": '"' + "\\a" * 40,
    "astral": "\U0001f600𝔸\u0301" + "\u0301" * 200,
    "format": "%s%n{0.__class__}{__import__}$(touch owned)`touch owned`;touch owned",
    "long": "W" * 20_000,
}

# Fields that hold one of a few words (the model checks them), or on whose value much depends.
WORDS = {"ended", "phase", "kind", "phases"}


def poisoned(text: str, trace: Trace | None = None, instead: bool = False) -> Trace:
    """A trace with `text` behind (or in place of) every string in it."""
    trace = trace or everything()

    def poison(value: Any, name: str) -> Any:
        if type(value) is str:
            return value if name in WORDS else text if instead else value + text
        if type(value) is tuple:
            return tuple(poison(v, name) for v in value)
        if is_dataclass(value):
            changes = {f.name: poison(getattr(value, f.name), f.name) for f in fields(value)}
            return replace(value, **changes)  # type: ignore[type-var]
        return value

    changed: Trace = poison(trace, "")
    return changed


def everything() -> Trace:
    """One trace that has a record in every table: a step of a network, and a backward walk."""
    return joined(traces.mlp_step(), traces.backward_walk())


def joined(a: Trace, b: Trace) -> Trace:
    """The records of both, b's ids moved behind a's."""
    from tgx.model import RECORDS, REFERENCES, TABLES

    after = {t: 1 + max((r.id for r in getattr(a, t)), default=-1) for t in TABLES}

    def moved(value: Any, target: str) -> Any:
        if isinstance(value, tuple):  # a tuple of ids, or of (id, something)
            return tuple((v[0] + after[target], *v[1:]) if isinstance(v, tuple)
                         else v + after[target] for v in value)
        return value + after[target] if value >= 0 else value

    def shifted(table: str, record: Any) -> Any:
        changes = {name: moved(getattr(record, name), target)
                   for name, target in REFERENCES.get(table, ())}
        if table in TABLES:
            changes["id"] = record.id + after[table]
        if table == "graphs":
            changes["origins"] = tuple(moved(row, "origins") for row in record.origins)
        if table == "walks":
            changes["kernels"] = tuple(replace(k, kernel=k.kernel + after["kernels"])
                                       for k in record.kernels)
        return replace(record, **changes)

    both = {t: (*getattr(a, t), *(shifted(t, r) for r in getattr(b, t))) for t in RECORDS}
    return replace(a, **both)
