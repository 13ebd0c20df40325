"""`tgx debug LOG`: a DEBUG=2..7 log, of any machine, becomes a trace."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tgx.commands.common import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="what a run with DEBUG=2..7 printed")
    parser.add_argument("-o", "--output", default="", metavar="DIR", help="default: LOG.trace")


def run(options: Options) -> int:
    from tgx import codec, recording
    from tgx.adapter import debuglog

    trace = debuglog.read(options.log)
    folder = Path(options.output or Path(options.log).stem + ".trace")
    codec.write(trace, folder)
    problems = recording.write_views(trace, folder)
    print(f"{len(trace.kernels)} kernels, {len(trace.runs)} launches: {folder}")
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 0
