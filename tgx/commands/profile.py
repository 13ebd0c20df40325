"""`tgx profile SCRIPT`: what each kernel will cost on a board that is not here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tgx import settings
from tgx.commands.common import Options, add_json, add_script, print_json, print_table, run_script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", required=True, help="a board: `tgx devices show` lists them")
    parser.add_argument("--mode", default="", help="its power mode, by name (the fastest)")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes for tgx_models(): 1,8,32")
    parser.add_argument("--model", default="", metavar="NAME,...", help="only these tgx_models()")
    parser.add_argument("--roofline", action="store_true", help="draw it, under each table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="tables and rooflines as a page")
    add_json(parser)
    add_script(parser)


def run(options: Options) -> int:
    from contextlib import redirect_stdout

    from tgx.errors import BadInput
    from tgx.hardware import picture, profiles, report

    if not all(word.isdecimal() and int(word) for word in options.batch.split(",")):
        raise BadInput(f"--batch {options.batch}", "sizes of at least 1: --batch 1,8,32")
    profiles.machine(profiles.find(options.device), options.mode)  # errors before anything runs
    settings.choose_device("TGX")
    from tgx.adapter.profile import profile

    models = [word for word in options.model.split(",") if word]

    def script() -> None:
        with redirect_stdout(sys.stderr):  # what it prints is not the report
            try:  # models asked for by name are all that is wanted: its main part need not run
                run_script(options, "tgx_profile" if models else "__main__")
            except SystemExit as stop:
                if stop.code not in (None, 0):
                    raise

    batches = [int(word) for word in options.batch.split(",")]
    result = profile(options.device, options.mode, batches, script, models)
    if options.html:
        try:
            options.html.write_text(picture.html(result), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--html {options.html}: {error.strerror}", "a file to write") from None
    if options.json:
        print_json(report.to_json(result))
        return 0
    print("\n".join(report.heading(result)))
    for step in result.steps:
        print(f"\n{step.name}" + (f", batch {step.batch}" if step.batch else ""))
        print_table(report.HEADS, report.table(step))
        if options.roofline:
            print("\n" + picture.text(result.machine, step))
    return 0
