"""`tgx show DIR`: look at a trace, in the terminal or as another view."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tgx.commands.common import Options, add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="DIR", help="a folder `tgx trace` wrote, or a trace.jsonl")
    parser.add_argument(
        "--view",
        default="text",
        help="text, markdown, html, dot, svg, perfetto, backward or json",
    )
    parser.add_argument("--kernel", type=int, default=-1, metavar="K", help="one kernel, by its id")
    parser.add_argument("--line", default="", metavar="FILE:N", help="the kernels of a source line")
    parser.add_argument("--schedule", type=int, default=-1, metavar="S", help="one schedule's")
    parser.add_argument(
        "--picture",
        default="",
        help="what dot and svg draw: schedule, lazy, kernel, step, debug or memory",
    )
    parser.add_argument("--colour", choices=("phase", "cost", "bound"), default="phase")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there")
    add_json(parser)


def run(options: Options) -> int:
    from tgx import codec
    from tgx.errors import BadInput
    from tgx.views import VIEWS

    if options.json:
        options.view = "json"
    if options.view not in VIEWS:
        raise BadInput(f"--view {options.view}", f"one of {', '.join(VIEWS)}")
    accepted = {  # view -> the choices it takes, by their names there
        "text": ("kernel", "line", "schedule"),
        "markdown": ("schedule",),
        "json": ("kernel", "line", "schedule"),
        "dot": ("kernel", "schedule", "picture", "colour"),
        "svg": ("kernel", "schedule", "picture", "colour"),
    }.get(options.view, ())
    for name in ("kernel", "line", "schedule", "picture"):
        if getattr(options, name) not in (-1, "") and name not in accepted:
            raise BadInput(f"--{name} with --view {options.view}", "a view that has this choice")
    trace = codec.read(options.trace)
    text = VIEWS[options.view].render(trace, **show_choices(trace, options))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def show_choices(trace: Any, options: Options) -> dict[str, Any]:
    """`tgx show`'s options as the arguments of its view."""
    kernel, schedule, line = options.kernel, options.schedule, options.line
    if options.view == "text":
        return {"kernel": kernel, "line": line, "schedule": schedule}
    if options.view == "markdown":
        return {"schedule": schedule}
    if options.view == "json":
        from tgx.views.text import parse_line

        only = (kernel,) if kernel != -1 else None
        if line:
            only = trace.kernels_at(*parse_line(trace, line))
        return {"kernels": only, "schedules": (schedule,) if schedule != -1 else None}
    if options.view in ("dot", "svg"):
        what = options.picture or ("kernel" if kernel != -1 else "schedule")
        choices: dict[str, Any] = {"what": what}
        if what == "kernel":
            choices["id"] = kernel
        elif what == "schedule":
            choices |= {"id": schedule, "focus": kernel, "colour": options.colour}
        elif what == "debug":
            choices |= {"id": schedule, "colour": options.colour}
        elif what != "step":
            choices["id"] = schedule
        return choices
    return {}
