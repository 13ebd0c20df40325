"""The command line: `tgx`, which is `python -m tgx`.

A command is one row of COMMANDS: its help, its arguments and the function that does it. Modules a
command needs are imported inside that function, so `tgx --help` is quick and `tgx show` works where
tinygrad is not installed.

    def add_count(parser):                       declares the arguments, with argparse
    def do_count(options) -> int:                does the work, prints, returns the exit code
    "count": Command("count lines", "tgx count FILE", add_count, do_count),

Exit codes: 0 it worked; 1 it ran, and what it looked at is not well; 2 it could not run (bad
arguments, or an error of `tgx.errors`, which is printed without a traceback).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tgx import __version__, settings
from tgx.errors import TgxError

Options = argparse.Namespace


@dataclass(frozen=True)
class Command:
    """One command: what it is for, an example, its arguments, and the function that does it."""

    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Options], int]
    # Commands that run the user's script leave every error to Python, which prints it as it would
    # for `python script.py`.
    runs_script: bool = False


# **************** run ****************


def add_run(parser: argparse.ArgumentParser) -> None:
    add_script(parser)


def do_run(options: Options) -> int:
    settings.choose_device("TGX")
    run_script(options)
    return 0


# **************** devices ****************


def add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "measure"),
        help="show: a board's profile, or the list of them; measure: fill one on this machine",
    )
    parser.add_argument("name", nargs="?", default="", help="a profile's name, or its beginning")
    parser.add_argument("--toml", action="store_true", help="print the profile's file")
    add_json(parser)


def show_profile(options: Options) -> int:
    from tgx.hardware import profiles

    if not options.name:
        found = list(profiles.load().values())
        if options.json:
            print_json([profiles.to_json(profile) for profile in found])
        else:
            print_table(("profile", "name", "arch", "SMs", "memory", "modes"),
                        profiles.list_rows(found))
        return 0
    profile = profiles.find(options.name)
    if options.toml:
        print(profiles.to_toml(profile), end="")
    elif options.json:
        print_json(profiles.to_json(profile))
    else:
        print(f"{profile.name} ({profile.id})")
        print("".join(f"  {note}\n" for note in profile.notes))
        print_table(("fact", "value", "sure", "source"), profiles.fact_rows(profile))
        print("\n" + "\n".join(f"{key}: {text}" for key, text in profile.sources.items()))
    return 0


def measure_profile(options: Options) -> int:
    """Without a name: this CPU. The file goes where the user's own profiles are."""
    settings.choose_device("TGX")
    from tgx.adapter.measure import measure
    from tgx.hardware import profiles
    from tgx.hardware.measure import busy

    known = profiles.find(options.name) if options.name else None
    profile, timings = measure(known, say=lambda line: print(line, file=sys.stderr, flush=True))
    path = profiles.user_folder() / f"{profile.id}.toml"
    if options.toml:
        print(profiles.to_toml(profile), end="")
    elif options.json:
        print_json(profiles.to_json(profile))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profiles.to_toml(profile), encoding="utf-8")
        print(f"written to {path}; tgx devices show {profile.id}")
    if disturbed := busy(timings):
        print(f"note: something else used this machine during {', '.join(disturbed)}: measure "
              "again when it is quiet", file=sys.stderr)
    return 0


def do_devices(options: Options) -> int:
    if options.action:
        return show_profile(options) if options.action == "show" else measure_profile(options)
    from tgx.adapter.devices import device_states

    states = list(device_states())
    if options.json:
        print_json([asdict(state) for state in states])
    else:
        rows = [
            ("*" if state.default else "", state.name, "yes" if state.works else "no", state.detail)
            for state in states
        ]
        print_table(("", "device", "works here", ""), rows)
        print("\n* is the default. Choose another with DEVICE=NAME.")
    return 0 if any(state.works for state in states) else 1


# **************** profile ****************


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", required=True, help="a board: `tgx devices show` lists them")
    parser.add_argument("--mode", default="", help="its power mode, by name (the fastest)")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes for tgx_models(): 1,8,32")
    parser.add_argument("--model", default="", metavar="NAME,...", help="only these tgx_models()")
    parser.add_argument("--roofline", action="store_true", help="draw it, under each table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="tables and rooflines as a page")
    add_json(parser)
    add_script(parser)


def do_profile(options: Options) -> int:
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


# **************** doctor ****************


def add_doctor(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def do_doctor(options: Options) -> int:
    from tgx.adapter.doctor import examine

    findings = examine()
    broken = [finding for finding in findings if finding.needed and not finding.ok]
    if options.json:
        print_json([asdict(finding) for finding in findings])
        return 1 if broken else 0
    marks = {(True, True): "ok", (True, False): "ok", (False, False): "-", (False, True): "NO"}
    rows = [(marks[f.ok, f.needed], f.what, f.detail) for f in findings]
    print_table(("", "what", "found"), rows)
    missing = [finding for finding in findings if not finding.ok]
    if missing:
        print("\nTo have what is missing:")
        for finding in missing:
            print(f"  {finding.what}: {finding.gives}\n      {finding.install}")
    print("\nTGX does not run here." if broken else "\nTGX runs here.")
    return 1 if broken else 0


# **************** bench ****************


def add_bench(parser: argparse.ArgumentParser) -> None:
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
    add_json(parser)


def do_bench(options: Options) -> int:
    from dataclasses import replace

    from tgx.bench.cases import choose
    from tgx.bench.driver import CONTENDERS, NORMAL, QUICK, bench
    from tgx.bench.report import tables
    from tgx.errors import BadInput

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
    if options.json:
        print_json(report)
    else:
        print(f"{report['cpu']}, {report['threads']} threads")
        for contender in report["contenders"]:
            told = contender["what"] or f"not measured: {contender['missing']}"
            print(f"  {contender['name']}: {told}")
        for title, heads, rows in tables(report):
            if rows:
                print(f"\n{title}")
                print_table(heads, rows)
        for note in report["notes"]:
            print(f"\nnote: {note}")
    return 0 if all(case["agree"] for case in report["cases"]) else 1


# **************** trace ****************


def add_trace(parser: argparse.ArgumentParser) -> None:
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


def do_trace(options: Options) -> int:
    from tgx import recording
    from tgx.adapter.capture import Session

    words = options.module or options.script
    if not words:
        raise SystemExit("tgx: which script? For example: " + COMMANDS["trace"].example)
    folder = Path(options.output or Path(words[0]).stem + ".trace").resolve()
    program = words[0] if not options.module else f"-m {words[0]}"
    session = Session(folder, options.level, program, tuple(words[1:]), options.prove).start()
    failure: BaseException | None = None
    try:
        run_script(options)
    except BaseException as error:  # also exit() and an interrupt: they end the program as well
        failure = error
        raise
    finally:
        recording.stop(session, failure)
        problems = recording.write_views(session.trace(), folder)
        # the script's own output is stdout's
        print(f"tgx: trace in {folder}", *problems, sep="\n  ", file=sys.stderr)
    return 0


# **************** show, compare ****************


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="DIR", help="a folder `tgx trace` wrote, or a trace.jsonl")
    parser.add_argument(
        "--view",
        default="text",
        help="text, markdown, html, dot, svg, perfetto or json",
    )
    parser.add_argument("--kernel", type=int, default=-1, metavar="K", help="one kernel, by its id")
    parser.add_argument("--line", default="", metavar="FILE:N", help="the kernels of a source line")
    parser.add_argument("--schedule", type=int, default=-1, metavar="S", help="one schedule's")
    parser.add_argument(
        "--picture",
        default="",
        help="what dot and svg draw: schedule, lazy, kernel, step, debug or memory",
    )
    parser.add_argument("--colour", choices=("phase", "cost", "bound"), default="phase")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there")
    add_json(parser)


def do_show(options: Options) -> int:
    from tgx import codec
    from tgx.errors import BadInput
    from tgx.views import VIEWS

    if options.json:
        options.view = "json"
    if options.view not in VIEWS:
        raise BadInput(f"--view {options.view}", f"one of {', '.join(VIEWS)}")
    accepted = {  # view -> the choices it takes, by their names there
        "text": ("kernel", "line", "schedule"),
        "markdown": ("schedule",),
        "json": ("kernel", "line", "schedule"),
        "dot": ("kernel", "schedule", "picture", "colour"),
        "svg": ("kernel", "schedule", "picture", "colour"),
    }.get(options.view, ())
    for name in ("kernel", "line", "schedule", "picture"):
        if getattr(options, name) not in (-1, "") and name not in accepted:
            raise BadInput(f"--{name} with --view {options.view}", "a view that has this choice")
    trace = codec.read(options.trace)
    text = VIEWS[options.view].render(trace, **show_choices(trace, options))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def show_choices(trace: Any, options: Options) -> dict[str, Any]:
    """`tgx show`'s options as the arguments of its view."""
    kernel, schedule, line = options.kernel, options.schedule, options.line
    if options.view == "text":
        return {"kernel": kernel, "line": line, "schedule": schedule}
    if options.view == "markdown":
        return {"schedule": schedule}
    if options.view == "json":
        from tgx.views.text import parse_line

        only = (kernel,) if kernel != -1 else None
        if line:
            only = trace.kernels_at(*parse_line(trace, line))
        return {"kernels": only, "schedules": (schedule,) if schedule != -1 else None}
    if options.view in ("dot", "svg"):
        what = options.picture or ("kernel" if kernel != -1 else "schedule")
        choices: dict[str, Any] = {"what": what}
        if what == "kernel":
            choices["id"] = kernel
        elif what == "schedule":
            choices |= {"id": schedule, "focus": kernel, "colour": options.colour}
        elif what == "debug":
            choices |= {"id": schedule, "colour": options.colour}
        elif what != "step":
            choices["id"] = schedule
        return choices
    return {}


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="+", metavar="DIR", help="two or more traces")
    parser.add_argument("--markdown", action="store_true", help="for a pull request")
    parser.add_argument(
        "--all", action="store_true", help="every schedule, not only those run most often"
    )
    add_json(parser)


def do_compare(options: Options) -> int:
    from tgx import codec
    from tgx.views import compare

    form = "json" if options.json else "markdown" if options.markdown else "text"
    traces = [codec.read(path) for path in options.traces]
    print(compare.render(traces, options.traces, form, options.all), end="")
    return 0


# **************** debug ****************


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="what a run with DEBUG=2..7 printed")
    parser.add_argument("-o", "--output", default="", metavar="DIR", help="default: LOG.trace")


def do_debug(options: Options) -> int:
    from tgx import codec, recording
    from tgx.adapter import debuglog

    trace = debuglog.read(options.log)
    folder = Path(options.output or Path(options.log).stem + ".trace")
    codec.write(trace, folder)
    problems = recording.write_views(trace, folder)
    print(f"{len(trace.kernels)} kernels, {len(trace.runs)} launches: {folder}")
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 0


# **************** extract, bisect ****************


def add_one_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="DIR", help="a trace, from tgx trace")
    parser.add_argument("--kernel", type=int, required=True, metavar="K", help="its number")
    parser.add_argument("--device", default="", help="where to run it: the trace's own")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="default: kernel-K.py")


def do_extract(options: Options) -> int:
    from tgx import codec
    from tgx.adapter import extract

    path = Path(options.output or f"kernel-{options.kernel}.py")
    text = extract.script(codec.read(options.trace), options.kernel, options.device, path.name)
    path.write_text(text, encoding="utf-8")
    print(f"written: python {path}")
    return 0


def add_bisect(parser: argparse.ArgumentParser) -> None:
    add_one_kernel(parser)
    add_json(parser)


def do_bisect(options: Options) -> int:
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


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run a script with TGX as its device (unless DEV or DEVICE says otherwise)",
        "tgx run train.py --epochs 2",
        add_run,
        do_run,
        runs_script=True,
    ),
    "trace": Command(
        "run a script and record what tinygrad's scheduler did to it, and why",
        "tgx trace -o run --level full train.py --epochs 2",
        add_trace,
        do_trace,
        runs_script=True,
    ),
    "show": Command(
        "look at a trace, in the terminal or as another view",
        "tgx show train.trace --kernel 3",
        add_show,
        do_show,
    ),
    "compare": Command(
        "traces side by side: before and after an edit, two devices, two versions",
        "tgx compare before.trace after.trace",
        add_compare,
        do_compare,
    ),
    "debug": Command(
        "turn a DEBUG=2..7 log, of any machine, into a trace",
        "tgx debug jetson.log -o jetson",
        add_debug,
        do_debug,
    ),
    "extract": Command(
        "write a script that runs one kernel of a trace alone, and checks it",
        "tgx extract run --kernel 12 -o kernel.py",
        add_one_kernel,
        do_extract,
    ),
    "bisect": Command(
        "find the rule, optimisation or path that makes a kernel wrong",
        "tgx bisect run --kernel 12",
        add_bisect,
        do_bisect,
    ),
    "bench": Command(
        "TGX beside stock tinygrad, PyTorch and JAX, in one run",
        "tgx bench --quick --only mlp -o bench.json",
        add_bench,
        do_bench,
    ),
    "profile": Command(
        "what each kernel of a script will cost on a board that is not here",
        "tgx profile --device jetson-orin-nano-super --mode 15W examples/mnist.py",
        add_profile,
        do_profile,
    ),
    "devices": Command(
        "what devices there are, and which work here; profiles of boards that are elsewhere",
        "tgx devices show jetson-orin-nano-super",
        add_devices,
        do_devices,
    ),
    "doctor": Command(
        "what works here, what is missing, and the command that installs it",
        "tgx doctor --json",
        add_doctor,
        do_doctor,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the value is the process's exit code."""
    options = make_parser().parse_args(arguments)
    command = COMMANDS[options.command]
    if command.runs_script:
        return command.run(options)
    try:
        code = command.run(options)
        sys.stdout.flush()
        return code
    except TgxError as error:
        if settings.traceback():
            raise
        print(f"tgx {options.command}: {error}", file=sys.stderr)
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
        command.add_arguments(child)
    return parser


# **************** what commands share ****************


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
        raise SystemExit("tgx: which script? For example: " + COMMANDS["run"].example)
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
    sys.modules["__main__"] = script  # and it stays: exit handlers and workers look there
    exec(compile(source, script.__file__, "exec"), script.__dict__)


def _set_first_path(folder: Path) -> None:
    """Let the script import what stands beside it, and its worker processes still find tgx."""
    if not sys.flags.safe_path:
        sys.path[0] = str(folder)
    home = str(Path(__file__).resolve().parents[1])
    if home not in sys.path:  # tgx runs from a checkout that was never installed
        sys.path.append(home)


def _hide_our_frames(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print a script's traceback from its own first line on."""
    ours = (__file__, str(Path(__file__).with_name("__main__.py")), "<frozen runpy>")
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table: drawn by rich on a terminal, plain columns in a pipe or a file."""
    rows = [tuple(row) for row in rows]
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
