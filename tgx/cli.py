"""The command line: `tgx`, which is `python -m tgx`.

A command is one row of COMMANDS, its help and its example, and a file in `tgx/commands` named as it
is. Modules a command needs are imported inside its `run`, so `tgx --help` is quick and `tgx show`
works where tinygrad is not installed.

    "count": Command("count lines", "tgx count FILE", count)      here
    def add_arguments(parser): ...                                tgx/commands/count.py: argparse's
    def run(options) -> int: ...                                  does the work, prints, returns the
                                                                  exit code

Exit codes: 0 it worked; 1 it ran, and what it looked at is not well; 2 it could not run (bad
arguments, or an error of `tgx.errors`, which is printed without a traceback).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tgx import __version__, settings
from tgx.commands import (
    backward,
    bench,
    bisect,
    compare,
    debug,
    devices,
    doctor,
    extract,
    profile,
    puzzle,
    run,
    show,
    trace,
)
from tgx.commands.common import Options
from tgx.errors import TgxError
from tgx.safe import clean


class Work(Protocol):
    """A command's file."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: Options) -> int: ...


@dataclass(frozen=True)
class Command:
    """One command: what it is for, an example, and its file."""

    help: str
    example: str
    work: Work
    # Commands that run the user's script leave every error to Python, which prints it as it would
    # for `python script.py`.
    runs_script: bool = False


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run a script with TGX as its device (unless DEV or DEVICE says otherwise)",
        "tgx run train.py --epochs 2",
        run,
        runs_script=True,
    ),
    "trace": Command(
        "run a script and record what tinygrad's scheduler did to it, and why",
        "tgx trace -o run --level full train.py --epochs 2",
        trace,
        runs_script=True,
    ),
    "backward": Command(
        "every gradient of an expression or a script: its rule, its value, its kernel",
        'tgx backward "(x*x + x).sum()" x=2.0',
        backward,
    ),
    "show": Command(
        "look at a trace, in the terminal or as another view",
        "tgx show train.trace --kernel 3",
        show,
    ),
    "compare": Command(
        "traces side by side: before and after an edit, two devices, two versions",
        "tgx compare before.trace after.trace",
        compare,
    ),
    "debug": Command(
        "turn a DEBUG=2..7 log, of any machine, into a trace",
        "tgx debug jetson.log -o jetson",
        debug,
    ),
    "extract": Command(
        "write a script that runs one kernel of a trace alone, and checks it",
        "tgx extract run --kernel 12 -o kernel.py",
        extract,
    ),
    "bisect": Command(
        "find the rule, optimisation or path that makes a kernel wrong",
        "tgx bisect run --kernel 12",
        bisect,
    ),
    "bench": Command(
        "TGX beside stock tinygrad, PyTorch and JAX, in one run",
        "tgx bench --quick --only mlp -o bench.json",
        bench,
    ),
    "profile": Command(
        "what each kernel of a script costs: measured here, or predicted for a board elsewhere",
        "tgx profile --device jetson-orin-nano-super --mode 15W examples/mnist.py",
        profile,
    ),
    "puzzle": Command(
        "ten small exercises, each checked at once",
        "tgx puzzle 1",
        puzzle,
    ),
    "devices": Command(
        "what devices there are, and which work here; profiles of boards that are elsewhere",
        "tgx devices show jetson-orin-nano-super",
        devices,
    ),
    "doctor": Command(
        "what works here, what is missing, and the command that installs it",
        "tgx doctor --json",
        doctor,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the value is the process's exit code."""
    options = make_parser().parse_args(arguments)
    command = COMMANDS[options.command]
    if command.runs_script:
        return command.work.run(options)
    try:
        code = command.work.run(options)
        sys.stdout.flush()
        return code
    except TgxError as error:
        if settings.traceback():
            raise
        print(f"tgx {options.command}: {clean(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `tgx ... | head` closed its end: nobody is left to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tgx",
        description="A readable, fast LLVM device for tinygrad, and an explorer of its kernels.",
        epilog="`tgx COMMAND --help` has the arguments and an example.",
    )
    parser.add_argument("--version", action="version", version=f"tinygrad-tgx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        child = commands.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example: {command.example}",
        )
        command.work.add_arguments(child)
    return parser
