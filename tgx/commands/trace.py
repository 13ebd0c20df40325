"""`tgx trace SCRIPT`: run a script and record what tinygrad's scheduler did to it, and why."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tgx.commands.common import Options, add_script, run_script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="", metavar="DIR", help="default: SCRIPT.trace")
    parser.add_argument(
        "--level",
        choices=("kernels", "full"),
        default="kernels",
        help="full: also every rewrite, and the origin of every UOp of every kernel",
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="replay the schedule without each boundary: it has to have one kernel fewer (slow)",
    )
    add_script(parser)


def run(options: Options) -> int:
    from tgx import recording
    from tgx.adapter.capture import Session

    words = options.module or options.script
    if not words:
        raise SystemExit("tgx: which script? For example: " + "tgx trace train.py")
    if not options.module and not Path(words[0]).is_file():  # before a folder is made for it
        raise SystemExit(f"tgx: cannot read {words[0]}: there is no such file")
    folder = Path(options.output or Path(words[0]).stem + ".trace").resolve()
    program = words[0] if not options.module else f"-m {words[0]}"
    session = Session(folder, options.level, program, tuple(words[1:]), options.prove)
    try:
        session.start()
    except OSError as error:
        raise SystemExit(f"tgx: cannot write {folder}: {error.strerror}") from None
    failure: BaseException | None = None
    try:
        run_script(options)
    except BaseException as error:  # also exit() and an interrupt: they end the program as well
        failure = error
        raise
    finally:
        if session.running:  # not in a forked child of the script's
            problems = recording.complete(session, failure)
            # the script's own output is stdout's
            print(f"tgx: trace in {folder}", *problems, sep="\n  ", file=sys.stderr)
    return 0
