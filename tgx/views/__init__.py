"""Views: pure functions from a Trace to text. One table, one file each.

    from tgx.views import VIEWS
    VIEWS["text"].render(trace)

A view is added by writing `tgx/views/NAME.py` with a function `render(trace, **choices) -> str`
and a row below; the tests run every row over their traces. A view sees only the trace: no tinygrad,
no clock, no machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tgx.model import Trace


@dataclass(frozen=True, slots=True)
class View:
    """A row of VIEWS. Its module is imported when it is first rendered."""

    module: str
    suffix: str
    help: str

    def render(self, trace: Trace, **choices: Any) -> str:
        return str(import_module(f"tgx.views.{self.module}").render(trace, **choices))


VIEWS: dict[str, View] = {
    "text": View("text", ".txt", "tables for the terminal"),
    "html": View("html", ".html", "the explorer's page: one file, works offline"),
    "dot": View("dot", ".dot", "a picture in graphviz's language"),
    "svg": View("svg", ".svg", "a picture, drawn"),
    "markdown": View("markdown", ".md", "a summary for a pull request"),
    "perfetto": View("perfetto", ".json", "a timeline for Perfetto or chrome://tracing"),
    "backward": View("backward", ".txt", "the backward walk: rules, numbers, kernels"),
    "json": View("facts", ".json", "kernels and boundaries, for scripts"),
}
