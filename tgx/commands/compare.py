"""`tgx compare A B`: traces side by side."""

from __future__ import annotations

import argparse

from tgx.commands.common import Options, add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="+", metavar="DIR", help="two or more traces")
    parser.add_argument("--markdown", action="store_true", help="for a pull request")
    parser.add_argument(
        "--all", action="store_true", help="every schedule, not only those run most often"
    )
    add_json(parser)


def run(options: Options) -> int:
    from tgx import codec
    from tgx.views import compare

    form = "json" if options.json else "markdown" if options.markdown else "text"
    traces = [codec.read(path) for path in options.traces]
    print(compare.render(traces, options.traces, form, options.all), end="")
    return 0
