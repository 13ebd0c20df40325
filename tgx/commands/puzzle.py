"""`tgx puzzle`: the course's exercises, checked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tgx import settings
from tgx.commands.common import Options, add_json, print_json, print_table

if TYPE_CHECKING:
    from tgx.puzzles.base import Outcome, Puzzle

STATES = {"new": "-", "untouched": "begun", "wrong": "not yet", "solved": "solved"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", nargs="?", type=int, metavar="N", help="which; none: list them")
    parser.add_argument("--hint", action="store_true", help="a push in the right direction")
    parser.add_argument("--solution", action="store_true", help="one that passes")
    add_json(parser)


def run(options: Options) -> int:
    from tgx.errors import BadInput
    from tgx.puzzles import PUZZLES

    settings.choose_device("TGX")  # the counts of kernels are the scheduler's, the same elsewhere
    number = options.number
    if number is None:
        return show_all(options.json)
    if number not in PUZZLES:
        raise BadInput(f"puzzle {number}", f"1 to {len(PUZZLES)}", "tgx puzzle")
    puzzle = PUZZLES[number]
    if options.hint or options.solution:
        text = puzzle.solution.strip() if options.solution else puzzle.hint
        kind = "solution" if options.solution else "hint"
        print_json({"puzzle": number, kind: text}) if options.json else print(text)
        return 0
    path = Path(f"puzzle_{number}.py")
    if not path.exists():
        return begin(puzzle, number, path, options.json)
    return tell(puzzle, number, path, options.json)


def show_all(as_json: bool) -> int:
    from tgx.puzzles import PUZZLES
    from tgx.puzzles.base import outcome

    states = {n: outcome(p, n, Path(f"puzzle_{n}.py")).state for n, p in PUZZLES.items()}
    solved = [n for n, state in states.items() if state == "solved"]
    if as_json:
        print_json(
            [
                {"puzzle": n, "title": p.title, "teaches": p.teaches, "state": states[n]}
                for n, p in PUZZLES.items()
            ]
        )
        return 0
    print_table(
        ("", "puzzle", "", "what it teaches"),
        [(str(n), p.title, STATES[states[n]], p.teaches) for n, p in PUZZLES.items()],
    )
    print(f"\n{len(solved)} of {len(PUZZLES)} solved. {next_one(states)}")
    return 0


def next_one(states: dict[int, str]) -> str:
    left = [n for n, state in states.items() if state != "solved"]
    if not left:
        return "All of them: now change tgx."
    return f"Next: tgx puzzle {left[0]}"


def begin(puzzle: Puzzle, number: int, path: Path, as_json: bool) -> int:
    """Write the puzzle's file and its picture, where there is none yet."""
    from tgx.errors import BadInput

    picture = path.with_suffix(".svg")
    try:
        picture.write_text(puzzle.svg(number), encoding="utf-8")
        with path.open("x", encoding="utf-8") as file:  # "x": never over the learner's own
            file.write(puzzle.file(number))
    except OSError as error:
        raise BadInput(
            f"cannot write {error.filename} in {os.getcwd()}: {error.strerror}",
            next_step="go to a folder of your own",
        ) from None
    if as_json:
        print_json(
            {
                "puzzle": number,
                "title": puzzle.title,
                "state": "new",
                "file": str(path),
                "picture": str(picture),
            }
        )
        return 0
    print(f"Puzzle {number}: {puzzle.title}\n\n{puzzle.task.strip()}\n")
    print(f"Fill in {path} (the picture is {picture}), then: tgx puzzle {number}")
    return 0


def tell(puzzle: Puzzle, number: int, path: Path, as_json: bool) -> int:
    """Check the file; 0 is solved, 1 is not."""
    from tgx.puzzles.base import outcome

    found = outcome(puzzle, number, path)
    if as_json:
        print_json(
            {
                "puzzle": number,
                "title": puzzle.title,
                "state": found.state,
                "message": found.message,
                "file": str(path),
            }
        )
    else:
        print("\n".join(told(found, number)))
    return 0 if found.state == "solved" else 1


def told(found: Outcome, number: int) -> Iterator[str]:
    from tgx.puzzles import PUZZLES

    if found.state == "solved":
        yield f"Solved. {found.message}"
        if number + 1 in PUZZLES:
            yield f"Next: tgx puzzle {number + 1} ({PUZZLES[number + 1].title})"
        return
    yield f"Not yet: {found.message}"
    yield f"A hint: tgx puzzle {number} --hint"
