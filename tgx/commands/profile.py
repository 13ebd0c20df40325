"""`tgx profile SCRIPT`: what each kernel costs: measured on the device that is here, predicted for
a board that is not."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tgx import settings
from tgx.commands.common import Options, add_json, add_script, print_json, print_table, run_script

if TYPE_CHECKING:
    from tgx.hardware.measured import Measurement
    from tgx.hardware.report import Report
    from tgx.model import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="",
        help="predict for this board (`tgx devices show` lists them); without it, the device that "
        "is here is measured; where that is this board, both",
    )
    parser.add_argument("--mode", default="", help="its power mode, by name (the fastest)")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes for tgx_models(): 1,8,32")
    parser.add_argument("--model", default="", metavar="NAME,...", help="only these tgx_models()")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S",
                        help="measuring: for each step's kernels, and as long for the whole (1)")
    parser.add_argument("--predictions", type=Path, metavar="FILE",
                        help="write them there, as JSON, before anything is measured")
    parser.add_argument("--roofline", action="store_true", help="draw it, under each table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="tables and rooflines as a page")
    parser.add_argument("--trace", type=Path, metavar="DIR",
                        help="the steps as a trace, with what each kernel became there")
    add_json(parser)
    add_script(parser)


def run(options: Options) -> int:
    from contextlib import redirect_stdout

    from tgx.errors import BadInput
    from tgx.hardware import measured, profiles, report

    check(options)
    board = machine = None
    if options.device:  # errors before anything runs
        board = profiles.find(options.device)
        machine = profiles.machine(board, options.mode)
    here = choose_device(machine.arch if machine else "")

    from tgx.adapter import nvrtc, offline
    from tgx.adapter.profile import captured, predicted
    from tgx.adapter.timing import Pace, measure

    if machine is not None:
        nvrtc.compiler_for(machine.arch)  # it may not be there
    models = [word for word in options.model.split(",") if word]

    def script() -> None:
        with redirect_stdout(sys.stderr):  # what it prints is not the report
            try:  # models asked for by name are all that is wanted: its main part need not run
                run_script(options, "tgx_profile" if models else "__main__")
            except SystemExit as stop:
                if stop.code not in (None, 0):
                    raise

    batches = [int(word) for word in options.batch.split(",")]
    program = (options.module or options.script or [""])[0]
    watch, steps = captured(batches, script, models, here, program)
    known = offline.origins(watch)
    result: Report | None = None
    measurement: Measurement | None = None
    lowered = None
    if board is not None and machine is not None:
        result, lowered = predicted(board, machine, steps, known)
    if options.predictions and result is not None:
        text = json.dumps(report.to_json(result), indent=2) + "\n"
        write(options.predictions, "--predictions", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        tell(f"predictions written to {options.predictions}, before measuring; sha256 {digest}")
    if here:
        measurement = measure(steps, known, Pace(seconds=options.seconds), machine, tell)
        if result is not None:
            result = report.joined(result, measurement)
    if options.trace:
        from tgx.adapter.profiled import traced

        save(traced(watch, steps, machine, lowered, measurement), options.trace)
    if options.html and result is not None:
        from tgx.hardware import picture

        write(options.html, "--html", picture.html(result))
    if options.json:
        if result is not None:
            print_json(report.to_json(result))
        elif measurement is not None:
            print_json(measured.to_json(measurement))
    elif result is not None:
        show_predicted(result, options.roofline)
    elif measurement is not None:
        show_measured(measurement)
    else:
        raise BadInput("nothing was asked for", "a --device, or a device that is here")
    return 130 if measurement is not None and measurement.stopped else 0


def check(options: Options) -> None:
    """What can be wrong with the arguments alone."""
    from tgx.errors import BadInput

    if not all(word.isdecimal() and int(word) for word in options.batch.split(",")):
        raise BadInput(f"--batch {options.batch}", "sizes of at least 1: --batch 1,8,32")
    if not 0 < options.seconds <= 600:
        raise BadInput(f"--seconds {options.seconds:g}", "above 0, and at most 600")
    alone = [name for name in ("predictions", "mode", "html", "roofline")
             if getattr(options, name) and not options.device]  # fmt: skip
    if alone:
        raise BadInput(
            f"--{alone[0]} without --device",
            "a board to predict for: only predictions have it",
            "tgx devices show",
        )


def choose_device(arch: str) -> bool:
    """Decide what this process runs on, before tinygrad is loaded; True: it is to be measured.

    What DEV or DEVICE says holds. Without them it is CUDA where there is an NVIDIA GPU (and it is
    the board asked for), else TGX.
    """
    from tgx.adapter.board import gpu_arch

    gpu = gpu_arch()
    wanted = settings.requested_device()[1]
    if not wanted:
        wanted = "CUDA" if gpu and arch in ("", gpu) else "TGX"
        settings.choose_device(wanted)
    return not arch or (wanted.startswith("CUDA") and gpu == arch)


def write(path: Path, option: str, text: str) -> None:
    from tgx.errors import BadInput

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror}", "a file to write") from None


def save(trace: Trace, folder: Path) -> None:
    from tgx import codec, recording
    from tgx.errors import BadInput

    try:
        folder.mkdir(parents=True, exist_ok=True)
        codec.write(trace, folder)
        problems = recording.write_views(trace, folder)
    except OSError as error:
        raise BadInput(f"--trace {folder}: {error.strerror}", "a folder to write to") from None
    for problem in problems:
        tell(problem)
    tell(f"{folder}/index.html shows it; tgx compare {folder} OTHER sets it beside another")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show_predicted(result: Report, roofline: bool) -> None:
    from tgx.hardware import measured, picture, report

    def under(step: report.Step) -> list[str]:
        lines = measured.foot(step.timed) if step.timed else []
        return [*lines, "", picture.text(result.machine, step)] if roofline else lines

    print("\n".join(report.heading(result)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    spared: dict[str, None] = {}
    for step in result.steps:
        print(f"\n{report.title(step)}")
        heads, rows, left_out = report.narrowed(report.table(step), width)
        print_table(heads, rows)
        spared |= dict.fromkeys(left_out)
        if lines := under(step):
            print("\n".join(lines))
    print("\nall of it")
    print_table(*report.filled(report.SUMMARY, report.summary(result)))
    if result.machine.watts is not None:
        print(f"mJ at most: were all of the mode's {result.machine.watts:g} W drawn")
    if foot := report.foot(result):
        print("\n" + "\n".join(foot))
    if spared:
        print(f"\nleft out for this terminal's {width} columns: {', '.join(spared)}; a wider one, "
              "a pipe, --html and --json have all")


def show_measured(measurement: Measurement) -> None:
    from tgx.hardware import measured

    print("\n".join(measured.heading(measurement)))
    for step in measurement.steps:
        print(f"\n{step.name}" + (f", batch {step.batch}" if step.batch else ""))
        print_table(measured.HEADS, measured.table(step))
        if lines := measured.foot(step):
            print("\n".join(lines))
