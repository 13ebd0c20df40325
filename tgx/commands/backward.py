"""`tgx backward`: every gradient, its rule, its value, its kernel."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from tgx import settings
from tgx.commands.common import Options, add_json, run_script

WHAT = (
    'an expression with values ("x*x + x" x=2.0), a script with arguments, or module:function; put '
    "-- before an expression that begins with a minus"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("what", metavar="WHAT", help=WHAT)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but what is traced: these may stand behind an expression, too."""
    parser.add_argument("--steps", action="store_true", help="every step, however many")
    parser.add_argument("--operations", action="store_true", help="the operations, however few")
    parser.add_argument("--all", action="store_true",
                        help="run a script to its end, and record every different backward")
    for form, what in (("html", "a page that steps through the walk"), ("svg", "a picture"),
                       ("dot", "the picture in graphviz's language"),
                       ("markdown", "an annotated walkthrough")):
        parser.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("-o", "--output", default="", metavar="DIR",
                        help="a folder for the trace and all of these")
    add_json(parser)


def run(options: Options) -> int:
    from tgx import walking
    from tgx.errors import BadInput
    from tgx.passes import walks

    settings.choose_device("TGX")
    kind = kind_of(options.what)
    if kind == "script":
        words = [options.what, *options.rest]
        script = argparse.Namespace(module=None, script=words)

        def execute() -> None:
            with redirect_stdout(sys.stderr):  # what it prints is not the report
                run_script(script)

        told = walking.of_script(options.what, words[1:], execute, options.all)
    else:
        bindings = behind(options)
        if kind == "function" and bindings:
            raise BadInput(f"{bindings[0]} behind {options.what}", "a function without arguments")
        with redirect_stdout(sys.stderr):
            told = (walking.of_named_function(options.what) if kind == "function"
                    else walking.of_expression(options.what, bindings))
    level = "steps" if options.steps else "operations" if options.operations else "auto"
    wrote = False
    for form in ("html", "svg", "dot", "markdown"):
        if path := getattr(options, form):
            write(path, told.render(form, level=level))
            wrote = True
    if options.output:
        told.save(Path(options.output).with_suffix(""))
        wrote = True
    if options.json:
        print(told.render("json"))
    elif wrote:
        print(told.render("text", level="operations"), end="")
    else:
        print(told.render("text", level=level), end="")
    bad = {"nan", "inf", "unequal"}
    return int(any(f.kind in bad for w in told.walks for f in walks.findings(told.trace, w)))


def kind_of(word: str) -> str:
    """What the first argument is: "script", "function" or "expression"."""
    if word.endswith(".py") or Path(word).is_file():
        return "script"
    return "function" if re.fullmatch(r"[\w.]+:\w+", word) else "expression"


def behind(options: Options) -> Sequence[str]:
    """The values behind an expression; options there are options."""
    parser = argparse.ArgumentParser(prog="tgx backward", add_help=False)
    add_options(parser)
    parser.add_argument("bindings", nargs="*")
    parser.parse_intermixed_args(options.rest, options)
    bindings: list[str] = options.bindings
    return bindings


def write(path: Path, text: str) -> None:
    from tgx.errors import BadInput

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "a file to write") from None
