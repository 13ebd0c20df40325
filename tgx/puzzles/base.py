"""What a puzzle is, and how an answer is checked."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgx.puzzles.drawing import Drawing

Given = dict[str, Any]  # the names the learner's file defines
SECONDS = 30  # an answer may take


class Wrong(Exception):
    """An answer that is not right yet; the message says what happened, and what should have."""


@dataclass(frozen=True)
class Puzzle:
    """`check` looks at what the learner's file defines: it raises `Wrong`, or returns a sentence
    about what was just shown."""

    title: str
    teaches: str
    task: str
    start: str
    hint: str
    solution: str
    check: Callable[[Given], str]
    picture: Callable[[Drawing], None]

    def file(self, number: int) -> str:
        """The file the learner fills in."""
        return (
            f'"""Puzzle {number}: {self.title}\n\n{self.task.strip()}\n\n'
            f"The picture is puzzle_{number}.svg. `tgx puzzle {number}` checks this file,\n"
            f'`tgx puzzle {number} --hint` helps.\n"""\n\n{self.start.strip()}\n'
        )

    def svg(self, number: int) -> str:
        drawing = Drawing(f"Puzzle {number}: {self.title}")
        self.picture(drawing)
        return str(drawing)


@dataclass(frozen=True)
class Outcome:
    """`state` is new (no file), untouched (a file as it was written), wrong or solved."""

    state: str
    message: str = ""


def outcome(puzzle: Puzzle, number: int, path: Path) -> Outcome:
    """Run the learner's file, and check what it defines."""
    if not path.exists():
        return Outcome("new")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Outcome("wrong", f"{path} cannot be read: {error}")
    if source == puzzle.file(number):
        return Outcome("untouched", f"{path.name} is as it was written: fill in the places with …")
    try:
        with limited(SECONDS), contextlib.redirect_stdout(sys.stderr):  # stdout is the answer's
            given: Given = {"__name__": f"puzzle_{number}", "__file__": str(path)}
            exec(compile(source, str(path), "exec"), given)
            return Outcome("solved", puzzle.check(given))
    except Wrong as wrong:
        return Outcome("wrong", str(wrong))
    except TimeoutError:
        return Outcome("wrong", f"it was not done after {SECONDS} seconds: does a loop never end?")
    except SyntaxError as error:
        return Outcome("wrong", f"line {error.lineno} is not Python: {error.msg}")
    except (Exception, SystemExit) as error:
        return Outcome("wrong", where(error, path))


def where(error: BaseException, path: Path) -> str:
    """An exception, with the learner's own last line on the way to it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.filename == str(path)]
    place = f", after line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return f"{type(error).__name__}: {error}{place}"


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what runs longer. (Signals reach the main thread only.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def get(given: Given, name: str) -> Any:
    """What the file calls `name`."""
    if name not in given:
        raise Wrong(f"the file should define {name}")
    if given[name] is ...:
        raise Wrong(f"{name} is still ...: nothing is filled in there yet")
    return given[name]


def filled(value: Any, name: str) -> Any:
    """`value`, which is not `...` any more."""
    if value is ... or value is None:
        raise Wrong(f"{name} gives {'...' if value is ... else 'nothing'}: fill it in, return it")
    return value


def near(found: float, right: float, tolerance: float = 1e-5) -> bool:
    return abs(found - right) <= tolerance * max(1.0, abs(right))
