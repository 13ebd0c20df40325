"""`tgx extract DIR --kernel K`: a script that runs one kernel of a trace alone, and checks it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgx.commands.common import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="DIR", help="a trace, from tgx trace")
    parser.add_argument("--kernel", type=int, required=True, metavar="K", help="its number")
    parser.add_argument("--device", default="", help="where to run it: the trace's own")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="default: kernel-K.py")


def run(options: Options) -> int:
    from tgx import codec
    from tgx.adapter import extract

    path = Path(options.output or f"kernel-{options.kernel}.py")
    text = extract.script(codec.read(options.trace), options.kernel, options.device, path.name)
    path.write_text(text, encoding="utf-8")
    print(f"written: python {path}")
    return 0
