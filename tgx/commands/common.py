"""What commands share: --json, a script and its arguments, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tgx.safe import clean, to_json

Options = argparse.Namespace


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_script(parser: argparse.ArgumentParser) -> None:
    """SCRIPT, or -m MODULE, and all that follows, which is the script's. See `run_script`."""
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        metavar="MODULE ...",
        help="a module to run in place of a file, as python's own -m does",
    )
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="SCRIPT ...",
        help="a Python file; all arguments after it are its own",
    )


def run_script(options: Options, name: str = "__main__") -> None:
    """Run the script of `add_script`'s arguments as `python` itself would.

    It is the module `__main__`, sees its own `sys.argv`, finds the modules beside it, and its exit
    code and its errors are its own. Under another `name` a file is as if imported: what stands
    behind `if __name__ == "__main__"` does not run.
    """
    import runpy
    from types import ModuleType

    words = options.module or options.script
    if not words:
        raise SystemExit("tgx: which script? For example: " + "tgx run train.py")
    sys.argv[:] = words
    sys.excepthook = _hide_our_frames
    if options.module:
        _set_first_path(Path.cwd())
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        return
    try:
        source = Path(words[0]).read_bytes()
    except OSError as error:
        raise SystemExit(f"tgx: cannot read {words[0]}: {error.strerror}") from None
    _set_first_path(Path(words[0]).resolve().parent)
    script = ModuleType(name)
    script.__file__ = str(Path(words[0]).absolute())
    script.__dict__["__builtins__"] = __builtins__
    # And it stays: exit handlers and workers look there; dataclasses look under its own name.
    sys.modules["__main__"] = sys.modules[name] = script
    exec(compile(source, script.__file__, "exec"), script.__dict__)


def _set_first_path(folder: Path) -> None:
    """Let the script import what stands beside it, and its worker processes still find tgx."""
    if not sys.flags.safe_path:
        sys.path[0] = str(folder)
    home = str(Path(__file__).resolve().parents[2])
    if home not in sys.path:  # tgx runs from a checkout that was never installed
        sys.path.append(home)


def _hide_our_frames(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a script's traceback from its own first line on, however tgx was started."""
    own = trace
    while own is not None and own.tb_frame.f_code is not run_script.__code__:
        own = own.tb_next
    if own is not None:
        trace = own.tb_next
        while trace is not None and trace.tb_frame.f_code.co_filename == "<frozen runpy>":
            trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def print_json(value: object) -> None:
    print(to_json(value, 2))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table: drawn by rich on a terminal, plain columns in a pipe or a file."""
    rows = [tuple(clean(cell).replace("\n", " ") for cell in row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*heads, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))  # Text: brackets in a message are not markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (tuple(heads), *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
