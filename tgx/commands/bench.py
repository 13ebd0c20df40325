"""`tgx bench`: TGX beside stock tinygrad, PyTorch and JAX, in one run."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tgx.commands.common import Options, add_json, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases named like this")
    parser.add_argument("--all", action="store_true", help="the large networks too")
    parser.add_argument("--quick", action="store_true", help="few cases, short turns: a first look")
    parser.add_argument("--list", action="store_true", help="name the cases, measure nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contender in a case")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all CPUs")
    parser.add_argument(
        "--contenders", default="", metavar="NAMES", help="tgx,stock,torch,jax: some of these"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="MNIST's idx files, for the epoch")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the JSON there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a kept report again")
    parser.add_argument("--markdown", action="store_true", help="tables for a pull request")
    add_json(parser)


def run(options: Options) -> int:
    from dataclasses import replace

    from tgx.bench.cases import choose
    from tgx.bench.driver import CONTENDERS, NORMAL, QUICK, bench
    from tgx.errors import BadInput

    if options.show:
        show(options, kept(options.show))
        return 0
    cases = choose(options.only, options.quick, options.all)
    if not cases:
        raise BadInput(f"--only {options.only}", "a case's name or part", "tgx bench --list")
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    wanted = options.contenders.lower().split(",") if options.contenders else []
    if strangers := set(wanted) - {c.role for c in CONTENDERS}:
        raise BadInput(f"--contenders {','.join(strangers)}", "tgx, stock, torch or jax")
    pace = QUICK if options.quick else NORMAL
    if options.rounds:
        pace = replace(pace, rounds=options.rounds, starts=options.rounds)
    report = bench(
        cases,
        tuple(c for c in CONTENDERS if not wanted or c.role in wanted),
        options.threads,
        pace,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        data=options.data,
    )
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    show(options, report)
    return 0 if all(case["agree"] for case in report["cases"]) else 1


def kept(path: Path) -> dict[str, Any]:
    """A report that `-o` wrote."""
    from tgx.errors import BadInput

    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}", "a file that tgx bench -o wrote") from None
    return read(data, str(path))


MOST_BYTES = 1 << 20  # of a report; one of all cases has a twentieth

NUMBER = (int, float)
SHAPE: dict[str, Any] = {  # of a report: what its tables read; [x] is a list of them
    "schema": int,
    "cpu": str,
    "threads": int,
    "contenders": [{"name": str, "role": str, "what": str, "missing": (str, type(None))}],
    "cases": [{"name": str, "shape": [NUMBER], "results": dict, "ratios": dict, "agree": bool}],
    "targets": [{"case": str, "against": str, "wanted": NUMBER,
                 "reached": (int, float, type(None)), "met": (bool, type(None))}],
    "notes": [str],
}
RESULT: dict[str, Any] = {"median": NUMBER, "min": NUMBER, "cpu": NUMBER}  # of one that ran
HELD: dict[str, Any] = {"resident": NUMBER, "held": NUMBER}


def read(data: bytes, where: str) -> dict[str, Any]:
    """A report from the bytes of a file; what its tables need is there, and of the right type."""
    from tgx.bench.driver import SCHEMA
    from tgx.errors import BadInput

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"over {MOST_BYTES >> 20} MB")
        report = json.loads(data, parse_constant=constant)
        if not isinstance(report, dict) or report.get("schema") != SCHEMA:
            raise ValueError("another schema")
        fits(report, SHAPE, "the report")
        for case in report["cases"]:
            if len(case["shape"]) != 3:
                raise ValueError("a shape that is not of three sizes")
            for result in case["results"].values():
                fits(result, {}, "a result")
                if "median" in result:
                    fits(result, RESULT, "a result")
                    if min(result[key] for key in RESULT) <= 0:
                        raise ValueError("a time that is not above 0")
                if "resident" in result:
                    fits(result, HELD, "a result")
            fits(case["ratios"], dict.fromkeys(case["ratios"], NUMBER), "ratios")
    except RecursionError:
        raise BadInput(f"{where}: lists inside lists, too deep", "a report of tgx bench") from None
    except ValueError as error:
        raise BadInput(f"{where}: {error}", f"a report of tgx bench, schema {SCHEMA}",
                       "tgx bench -o FILE") from None
    return report


def fits(value: object, shape: Any, where: str) -> None:
    """Raises ValueError where a value has not the shape: a type, types, or one inside another."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no table")
        for key, inner in shape.items():
            if key not in value:
                raise ValueError(f"{where} has no {key}")
            fits(value[key], inner, key)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for item in value:
            fits(item, shape[0], where)
    else:
        types = shape if isinstance(shape, tuple) else (shape,)
        number = isinstance(value, NUMBER) and not isinstance(value, bool)
        if type(value) not in types or (number and not abs(value) < 1e15):  # type: ignore[arg-type]
            raise ValueError(f"{where} is {type(value).__name__}, or too large")


def show(options: Options, report: dict[str, Any]) -> None:
    from tgx.bench.report import tables
    from tgx.views import words

    def cell(text: str) -> str:  # no markup, no link, no new cell
        return re.sub(r"([\\`|\[\]<])", r"\\\1", words.line(text))

    if options.json:
        print_json(report)
        return
    tell = cell if options.markdown else words.line  # the report may be a stranger's
    print(f"{tell(report['cpu'])}, {report['threads']} threads" + "\n" * options.markdown)
    for contender in report["contenders"]:
        told = tell(contender["what"] or f"not measured: {contender['missing']}")
        print(f"{'* ' if options.markdown else '  '}{tell(contender['name'])}: {told}")
    for title, heads, rows in tables(report):
        if rows and options.markdown:
            lines = [heads, ["---"] * len(heads), *rows]
            print(f"\n### {title}\n")
            for line in lines:
                print("| " + " | ".join(text if text == "---" else cell(text) for text in line)
                      + " |")
        elif rows:
            print(f"\n{title}")
            print_table(heads, rows)
    for note in report["notes"]:
        print(f"\nnote: {tell(note)}")
