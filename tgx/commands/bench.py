"""`tgx bench`: TGX beside stock tinygrad, PyTorch and JAX, in one run."""

from __future__ import annotations

import argparse
import json
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
    from tgx.bench.driver import SCHEMA
    from tgx.errors import BadInput

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}", "a file that tgx bench -o wrote") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA or "cases" not in report:
        raise BadInput(f"{path}", f"a report of tgx bench, schema {SCHEMA}", "tgx bench -o FILE")
    return report


def show(options: Options, report: dict[str, Any]) -> None:
    from tgx.bench.report import tables

    if options.json:
        print_json(report)
        return
    print(f"{report['cpu']}, {report['threads']} threads" + "\n" * options.markdown)
    for contender in report["contenders"]:
        told = contender["what"] or f"not measured: {contender['missing']}"
        print(f"{'* ' if options.markdown else '  '}{contender['name']}: {told}")
    for title, heads, rows in tables(report):
        if rows and options.markdown:
            lines = [heads, ["---"] * len(heads), *rows]
            print(f"\n### {title}\n")
            for line in lines:
                print("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |")
        elif rows:
            print(f"\n{title}")
            print_table(heads, rows)
    for note in report["notes"]:
        print(f"\nnote: {note}")
