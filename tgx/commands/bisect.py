"""`tgx bisect DIR --kernel K`: the rule, optimisation or path that makes a kernel wrong."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from tgx.commands import extract
from tgx.commands.common import Options, add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    extract.add_arguments(parser)
    add_json(parser)


def run(options: Options) -> int:
    from tgx import codec
    from tgx.adapter import bisect, extract

    trace = codec.read(options.trace)
    verdict = bisect.bisect(
        trace,
        options.kernel,
        options.device,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    path = Path(options.output or f"kernel-{options.kernel}.py")
    if verdict.kind != "right":
        text = extract.script(trace, options.kernel, options.device, path.name)
        path.write_text(text, encoding="utf-8")
    if options.json:
        print_json(asdict(verdict))
    else:
        print(verdict)
        if verdict.kind != "right":
            print(f"to see it alone: python {path}")
    return 0 if verdict.kind == "right" else 1
