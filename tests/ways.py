"""Every way there is to run a random program, and the net of them: many programs, each through all.

`WAYS` is the table.  A case is one program of `programs.py` (which of its families, how big, in a
TinyJit or not, with gradients or not: all from its seed).  It goes through every way that suits it,
each is held against the one NumPy reference, and the ways of TGX, which compute the same, also
against each other.  What differs is shrunk and written as a stand-alone script.

    python tests/programs.py --count 10000 --ways all --log programs.jsonl --failures failures

Cases run in child processes, so that one that crashes or hangs is a failure like any other.  Every
finished case is a line of the log; a run that was stopped goes on where it was, and a log that is
whole gives its table again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import programs
from programs import CONTRACT, FAMILIES, OPS, Expected, Mismatch, Program, Report, is_float

ROOT = Path(__file__).resolve().parents[1]

# --------------------------------------------------------------------------------- the ways


def _suits_all(expected: Expected) -> str:
    return ""


def _work(expected: Expected) -> int:
    """About how many scalar operations a run takes."""
    values, total = expected.own.values, 0
    for place, step in enumerate(expected.program.steps, len(expected.program.inputs)):
        size = max(values[i].data.size for i in (place, *step.reads))
        if step.op in CONTRACT or step.op in ("attention", "mse_step"):
            size *= max(1, values[step.reads[-1]].data.size // 4)
        total += size
    return total * expected.count


def _rounds_late(expected: Expected) -> str:
    """Both of tinygrad's CPU devices keep a half's excess digits until it is stored: the largest,
    which one kernel stored, is then equal to none that the next kernel computes anew."""
    halves = any(v.dtype in ("float16", "bfloat16") for v in expected.own.values)
    looks = any(word in step.op for step in expected.program.steps
                for word in ("max", "min", "sort", "topk"))
    return "rounds halves only where it stores them" if halves and looks else ""


def _suits_python(expected: Expected) -> str:
    """tinygrad's Python device interprets: a program for it is small."""
    if _work(expected) > 3000:
        return "too big"
    if any(s.op == "to" for s in expected.program.steps):
        return "no transfers"  # "unbound Variable '_device_num'"
    return _rounds_late(expected)


@functools.cache
def _clang_can(dtype: str) -> bool:
    """Whether the compiler of tinygrad's CPU device knows a type; there may be no compiler."""
    if not (clang := shutil.which("clang")):
        return False
    code = {"bfloat16": "__bf16 f(__bf16 *x) { return *x; }"}.get(dtype, "int x;")
    run = subprocess.run([clang, "-march=native", "-x", "c", "-c", "-", "-o", os.devnull],
                         input=code, text=True, capture_output=True, check=False)
    return run.returncode == 0


def _keeps_bits(expected: Expected) -> str:
    """In C, what is narrower than an int is computed as one: in tinygrad's CPU device the digits
    that a uint8 has lost are there again where the same kernel divides or sums it."""
    narrow, first = ("int8", "uint8", "int16", "uint16"), len(expected.program.inputs)
    if any(OPS[s.op].rounds and expected.own.values[n].dtype in narrow
           for n, s in enumerate(expected.program.steps, first)):
        return "keeps the digits that a narrow integer loses"
    return ""


def _suits_clang(expected: Expected) -> str:
    if not _clang_can(""):
        return "no clang"
    if expected.backward and any(i.split not in (None, -1) for i in expected.program.inputs):
        return "crashes: vectors at a split's offset are loaded as if they were aligned"
    dtypes = {v.dtype for v in expected.own.values}
    if "bfloat16" in dtypes and not _clang_can("bfloat16"):
        return "this clang has no bfloat16"
    return _keeps_bits(expected) or _rounds_late(expected)


@dataclass(frozen=True)
class Way:
    """One way to run a program.

    device: one of its own (TGX:30) for a mode that a device learns when it is opened.  variables:
    its environment.  constants: what it sets in our modules, by dotted name.  suits:
    "" or why a program does not go this way.
    """

    device: str
    variables: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    suits: Callable[[Expected], str] = _suits_all

    @property
    def kind(self) -> str:
        """What computes: TGX, for TGX:30 too."""
        return self.device.partition(":")[0]

    @property
    def setup(self) -> str:
        """The constants as lines of a script."""
        return "\n".join(f"import {name.rpartition('.')[0]}\n{name} = {value!r}"
                         for name, value in self.constants.items())


WAYS: dict[str, Way] = {
    "fast": Way("TGX", {"TGX_FAST": "1"}),
    "plain": Way("TGX", {"TGX_FAST": "0"}),
    # every kernel cut for threads, however small
    "chunks": Way("TGX", {"TGX_FAST": "1"}, {"tgx.devices.plan.CHUNK_CYCLES": 40}),
    "checked": Way("TGX:30", {"TGX_CHECK": "1"}),
    "cpu": Way("CPU", suits=_suits_clang),
    "python": Way("PYTHON", suits=_suits_python),
}


@contextlib.contextmanager
def entered(way: Way) -> Iterator[None]:
    """This process set up for a way, with no program compiled for another."""
    from tinygrad.codegen import to_program_cache
    from tinygrad.engine.realize import runtime_cache
    from tinygrad.helpers import Context, Target

    before = {name: os.environ.get(name) for name in way.variables}
    held = {}
    for name, value in way.constants.items():
        module, _, constant = name.rpartition(".")
        held[name] = getattr(importlib.import_module(module), constant)
        setattr(sys.modules[module], constant, value)
    os.environ.update(way.variables)
    to_program_cache.clear()
    runtime_cache.clear()
    try:
        # a Target, for in a string TGX:30 would be a renderer called 30; no cache on disk hides a
        # compiler's fault
        with Context(DEV=Target(way.device), CCACHE=0):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for name, value in held.items():
            module, _, constant = name.rpartition(".")
            setattr(sys.modules[module], constant, value)
        to_program_cache.clear()
        runtime_cache.clear()


def fallen_back() -> str:
    """Why a kernel just compiled left the tile path by an error of ours; "" if none did."""
    from tinygrad.codegen import to_program_cache

    from tgx.devices.record import record_of

    for program in to_program_cache.values():
        record = record_of(str(program.src[2].arg))
        if record is not None and "tile path failed" in record.reason:
            return record.reason
    return ""


def disagreement(expected: Expected, one: Sequence[Sequence[np.ndarray]],
                 other: Sequence[Sequence[np.ndarray]]) -> str:
    """Where two ways of one device differ by more than the order of a sum explains, or "".

    They compute every step alike, so this is far closer than the reference allows.
    """
    for k, call in enumerate(expected.calls):
        for n, i in enumerate(call.places if call else ()):
            assert call is not None
            a, b = one[k][n], other[k][n]
            exact, moved = call.reference.outputs[i]
            if not is_float(call.reference.values[i].dtype):
                wrong = (a != b) & (moved == 0)
            else:
                form = programs.coarsest(call.reference, i)
                with np.errstate(all="ignore"):
                    far = np.abs(a.astype(np.float64) - b.astype(np.float64))
                    # a sum that nearly cancels is off by the size of what it summed
                    size = 32 * np.abs(exact) + 8 * np.abs(exact).max(initial=0)
                    allowed = 16 * moved + form.eps * size + form.tiny
                    wrong = ~(far <= allowed) & np.isfinite(moved)
            if np.any(wrong):
                at = tuple(int(x) for x in np.argwhere(wrong)[0])
                return (f"call {k + 1}: {programs.name(call.reference.program, i)}{list(at)} is "
                        f"{a[at]!r} one way and {b[at]!r} the other, {exact[at]!r} exactly")
    return ""


# --------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A program, and how it is called."""

    seed: int
    program: Program
    jit: bool = False
    backward: bool = False

    @functools.cached_property
    def expected(self) -> Expected:
        return Expected(self.program, self.jit, self.backward)


SIZES = (0,) * 14 + (1,) * 5 + (2,)  # and one in 50 of size 3, or 4: enough for threads and tiles
# How often a family is drawn: the ones whose programs are many kernels cost the most.
WEIGHTS = {"network": 1, "conv": 2, "pool": 2}


def case(seed: int, families: Sequence[str] = ()) -> Case:
    """The case of a seed: small programs mostly, of every family alike."""
    rng = random.Random(seed)
    size = rng.choice((3, 4)) if rng.random() < 0.02 else rng.choice(SIZES)
    kinds = families or [f for f in FAMILIES if f != "contraction"
                         for _ in range(WEIGHTS.get(f, 4))]
    jit, backward = rng.random() < 0.2, rng.random() < 0.35
    return Case(seed, programs.random_program(rng, size, kinds), jit, backward)


def shrunk(given: Case, fails: Callable[[Case], bool], tries: int) -> Case:
    """A smaller case that still fails: without the TinyJit and the gradients if it can be."""
    for simpler in ({"jit": False, "backward": False}, {"jit": False}, {"backward": False}):
        candidate = dataclasses.replace(given, **simpler)
        if candidate != given and fails(candidate):
            given = candidate
            break
    program = programs.shrink(
        given.program, lambda p: fails(dataclasses.replace(given, program=p)), tries)
    return dataclasses.replace(given, program=program)


def message_of(error: BaseException) -> str:
    text = str(error) if isinstance(error, Mismatch) else f"{type(error).__name__}: {error}"
    return text[:2000]


def fault_on(given: Case, way: str) -> tuple[str, Sequence[Sequence[np.ndarray]]]:
    """What is wrong with a case on a way ("" if nothing), and what it computed."""
    results: Sequence[Sequence[np.ndarray]] = ()
    try:
        with entered(WAYS[way]):
            results = programs.run_tinygrad(given.expected, WAYS[way].device)
            problem = fallen_back() if WAYS[way].kind == "TGX" else ""
        programs.judge(given.expected, results)
    except Exception as error:
        return message_of(error), results
    return problem, results


def outcome(given: Case, ways: Iterable[str], begin: Callable[[str], None] = lambda way: None,
            ) -> dict[str, str]:
    """Of each way: "ok", "skipped: why", "refused: by what fault of tinygrad's", or what is wrong.

    A way that agrees with NumPy, but not with the other ways of its device, is wrong too.
    """
    found: dict[str, str] = {}
    agreed: dict[str, tuple[str, Sequence[Sequence[np.ndarray]]]] = {}
    for name in ways:
        way = WAYS[name]
        if reason := way.suits(given.expected):
            found[name] = f"skipped: {reason}"
            continue
        begin(name)
        problem, results = fault_on(given, name)
        if refused := programs.refusal(problem):
            found[name] = f"refused: {refused}"
            continue
        if not problem and way.kind in agreed:
            first, others = agreed[way.kind]
            if problem := disagreement(given.expected, others, results):
                problem = f"not as {first}: {problem}"
        elif not problem and way.kind == "TGX":
            agreed[way.kind] = (name, results)
        found[name] = problem or "ok"
    return found


def is_failure(result: str) -> bool:
    return not (result == "ok" or result.startswith(("skipped: ", "refused: ")))


def report_of(expected: Expected) -> Report:
    """What the reference lets be compared, of all calls."""
    report = Report()
    for call in expected.calls:
        for i in call.places if call else ():
            assert call is not None
            exact = call.reference.outputs[i][0]
            report += Report(exact.size,
                             int(programs.allowance(call.reference, i)[1].sum()))
    if expected.backward:
        probes = expected.own.probes
        report += Report(slopes=len(probes), smooth=sum(p.slope is not None for p in probes))
    return report


def script_of(given: Case, way: str, problem: str, file: str,
              results: Sequence[Sequence[np.ndarray]] = ()) -> str:
    """The case as a script that shows what is wrong with it on a way."""
    row = WAYS[way]
    title = (f"A random tensor program ({given.program.family}, seed {given.seed}) that was wrong "
             f"on the way {way!r}:\n\n    " + problem.replace("\n", "\n    ")[:600])
    return programs.source(given.expected, row.kind, title, row.setup, row.variables, file,
                           results)


def write_failure(given: Case, way: str, problem: str, folder: Path, tries: int = 40) -> Path:
    """The shrunk case as a script and as JSON, in the folder of failures."""
    def fails(candidate: Case) -> bool:
        found, _ = fault_on(candidate, way)
        return bool(found) and not programs.refusal(found)

    results: Sequence[Sequence[np.ndarray]] = ()
    if not problem.startswith("not as "):
        given = shrunk(given, fails, tries)
        problem, results = fault_on(given, way)
    return save_failure(given, way, problem, folder, results)


def save_failure(given: Case, way: str, problem: str, folder: Path,
                 results: Sequence[Sequence[np.ndarray]] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed{given.seed}_{way}.py"
    path.write_text(script_of(given, way, problem, path.name, results), encoding="utf-8")
    path.with_suffix(".json").write_text(programs.to_json(given.program) + "\n", encoding="utf-8")
    return path


# --------------------------------------------------------------------------------- the child


def serve(ways: Sequence[str], families: Sequence[str], folder: Path) -> int:
    """Runs the seeds that come in, one a line; says what it begins, and what came of a case."""
    import tgx  # noqa: F401 - before tinygrad: it brings the device TGX

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # the parent is gone
        serve_lines(sys.stdin, ways, families, folder)
    return 0


def serve_lines(lines: Iterable[str], ways: Sequence[str], families: Sequence[str],
                folder: Path) -> None:
    def say(**record: Any) -> None:
        print(json.dumps(record), flush=True)

    for line in lines:
        seed, start = int(line), time.process_time()
        given = case(seed, families)
        record: dict[str, Any] = {"seed": seed, "family": given.program.family}
        if fault := programs.known_fault(given.program):
            say(**record, fault=fault)
            continue
        found = outcome(given, ways, lambda way, seed=seed: say(seed=seed, begin=way))
        scripts = {}
        for way, result in found.items():
            if is_failure(result):
                say(seed=seed, begin=way, shrinking=result)
                scripts[way] = str(write_failure(given, way, result, folder))
        from tinygrad.schedule import schedule_cache

        schedule_cache.clear()
        say(**record, jit=given.jit, backward=given.expected.backward, ways=found,
            scripts=scripts, report=dataclasses.astuple(report_of(given.expected)),
            seconds=round(time.process_time() - start, 3))


# --------------------------------------------------------------------------------- the parent

CASE_SECONDS = 600  # a case that takes longer hangs
CASES_A_CHILD = 250  # tinygrad's caches grow


class Child:
    """A process that runs cases; replaced when it dies."""

    def __init__(self, arguments: Sequence[str]):
        self.arguments, self.process, self.served = arguments, None, 0

    def start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        command = [sys.executable, str(ROOT / "tests/programs.py"), "--serve", *self.arguments]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths, "PARALLEL": "0"},
            start_new_session=True)  # Ctrl-C is the parent's to handle

    def run(self, seed: int) -> dict[str, Any]:
        """The record of a case; of one that killed the child, what it died of and where."""
        if self.process is None or self.served >= CASES_A_CHILD:
            self.close()
            self.process, self.served = self.start(), 0
        self.served += 1
        process, last = self.process, {}
        timer = threading.Timer(CASE_SECONDS, process.kill)
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
            for line in process.stdout:
                record = json.loads(line)
                if "begin" not in record:
                    return record
                last = record
        except BrokenPipeError:
            pass
        finally:
            hung = not timer.is_alive()
            timer.cancel()
        code = process.wait()
        self.close()
        way = last.get("begin", "none")
        why = f"hangs: no end after {CASE_SECONDS} s" if hung else f"crash: exit code {code}"
        if "shrinking" in last:
            why = f"{last['shrinking']} (while shrinking: {why})"
        return {"seed": seed, "family": "", "ways": {way: why}, "died": True}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):  # what it had not read
                    pipe.close()
            self.process = None


@functools.cache
def generator_version() -> str:
    """A digest of the first cases: what another generator would make otherwise."""
    first = "".join(programs.to_json(case(seed).program) for seed in range(60))
    return hashlib.sha256(first.encode()).hexdigest()[:16]


def commit() -> str:
    run = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                         capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The cases of a log, of this generator, each as it came out last; a line cut short by a kill
    is left out."""
    records: dict[Any, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("generator", generator_version()) != generator_version():
                raise SystemExit(f"{path}: these cases were made by another version of "
                                 "tests/programs.py. Give another --log, or remove it.")
            records[record.get("seed", f"line {len(records)}")] = record
    return list(records.values())


def table(records: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> str:
    """What came of the cases: by family and way, then what was compared, then the failures."""
    cases = [r for r in records if "seed" in r and "fault" not in r]
    families = sorted({r["family"] for r in cases})
    rows = [f"{'family':<12}{'cases':>8}" + "".join(f"{w:>16}" for w in ways)]
    for family in [*families, "all"]:
        of = [r for r in cases if family in (r["family"], "all")]
        cells = []
        for way in ways:
            results = [r["ways"][way] for r in of if way in r["ways"]]
            failed, right = sum(map(is_failure, results)), results.count("ok")
            cells.append(f"{right} ok" + (f", {failed} bad" if failed else ""))
        rows.append(f"{family:<12}{len(of):>8}" + "".join(f"{c:>16}" for c in cells))
    total = sum((Report(*r["report"]) for r in cases if "report" in r), Report())
    seconds = sum(r.get("seconds", 0) for r in cases)
    why = collections.Counter(f"{way}, {result}" for r in cases for way, result in
                              r["ways"].items() if not is_failure(result) and result != "ok")
    why.update(f"not run, {r['fault']}" for r in records if "fault" in r)
    commits = sorted({r["commit"] for r in records if "commit" in r})
    runs = sum(result == "ok" or is_failure(result) for r in cases for result in r["ways"].values())
    failures = [(r["seed"], r["family"], way, result, r.get("scripts", {}).get(way, ""))
                for r in cases for way, result in r["ways"].items() if is_failure(result)]
    return "\n".join([
        *rows, "",
        f"{len(cases)} cases, {runs} runs, {len(failures)} failures; "
        f"{total.compared} of {total.elements} elements "
        f"({total.compared / max(total.elements, 1):.1%}) and {total.smooth} of {total.slopes} "
        f"slopes compared; {sum(r.get('jit', False) for r in cases)} in a TinyJit, "
        f"{sum(r.get('backward', False) for r in cases)} with gradients; {seconds:.0f} s of CPU; "
        f"commit {', '.join(commits)}",
        *(f"  {count:>6} {reason}" for reason, count in why.most_common()),
        *(f"FAILED seed {seed} ({family}), {way}: {result.splitlines()[0][:160]}  {script}"
          for seed, family, way, result, script in failures)])


def has_failed(record: Mapping[str, Any]) -> bool:
    """Whether a line of the log is a case that failed on a way."""
    return "seed" in record and any(map(is_failure, record.get("ways", {}).values()))


def run_cases(seeds: Sequence[int], ways: Sequence[str], families: Sequence[str], jobs: int,
              log: Path, folder: Path, again: bool = False, every: float = 30.0) -> int:
    """Run the cases that the log does not have yet, or has as failures if they are to be run
    again; print the table of them all; 1 if one failed."""
    records = [r for r in read_log(log) if not (again and has_failed(r))]
    done = {r["seed"] for r in records if "seed" in r}
    todo = iter([seed for seed in seeds if seed not in done])
    log.parent.mkdir(parents=True, exist_ok=True)
    lock, stop = threading.Lock(), threading.Event()
    arguments = ["--ways", ",".join(ways), "--failures", str(folder),
                 *itertools.chain.from_iterable(("--family", f) for f in families)]
    shown = start = time.monotonic()
    new = 0
    with log.open("a", encoding="utf-8") as out:
        header = {"generator": generator_version(), "commit": commit(), "ways": list(ways)}
        out.write(json.dumps(header) + "\n")
        records.append(header)

        def work() -> None:
            nonlocal shown, new
            child = Child(arguments)
            try:
                while not stop.is_set():
                    with lock:
                        seed = next(todo, None)
                    if seed is None:
                        return
                    record = child.run(seed)
                    if record.get("died"):
                        record = after_death(record, ways, families, folder)
                    if stop.is_set() and record.get("died"):
                        return
                    with lock:
                        records.append(record)
                        new += 1
                        out.write(json.dumps(record) + "\n")
                        out.flush()
                        for way, result in record.get("ways", {}).items():
                            if is_failure(result):
                                print(f"seed {seed} ({record['family']}), {way}: "
                                      f"{result.splitlines()[0][:200]}", flush=True)
                        if time.monotonic() - shown > every:
                            shown = time.monotonic()
                            rate = new / (shown - start)
                            print(f"{len(done) + new} of {len(seeds)} cases, {rate:.2f} a second",
                                  flush=True)
            finally:
                child.close()

        def end(*_: object) -> None:
            stop.set()
            print("stopping after the cases that are under way", flush=True)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        with ThreadPoolExecutor(jobs) as pool:
            workers = [pool.submit(work) for _ in range(jobs)]
            for worker in workers:
                worker.result()
    wanted = set(seeds)
    chosen = [r for r in records if r.get("seed") in wanted or "commit" in r]
    print(table(chosen, ways))
    return int(any(map(has_failed, chosen)))


def after_death(record: dict[str, Any], ways: Sequence[str], families: Sequence[str],
                folder: Path) -> dict[str, Any]:
    """A case that killed its process: its script, shrunk by running it in processes of its own."""
    given = case(record["seed"], families)
    record["family"] = given.program.family
    (way, why), = record["ways"].items()
    if way not in WAYS:
        return record

    def dies(candidate: Case) -> bool:
        path = save_failure(candidate, way, why, folder)
        run = subprocess.run([sys.executable, str(path)], capture_output=True, check=False,
                             env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
        return run.returncode not in (0, 1)

    smaller = given
    if why.startswith("crash") and dies(given):
        smaller = shrunk(given, dies, tries=15)
    record["scripts"] = {way: str(save_failure(smaller, way, why, folder))}
    return record


def main(args: argparse.Namespace) -> int:
    """`programs.py --ways …`."""
    names = list(WAYS) if args.ways == "all" else args.ways.split(",")
    if unknown := [name for name in names if name not in WAYS]:
        raise SystemExit(f"--ways {','.join(unknown)}: there is all, or {', '.join(WAYS)}")
    folder = Path(args.failures)
    if args.serve:
        return serve(names, args.family or (), folder)
    seeds = range(args.seed, args.seed + args.count)
    return run_cases(seeds, names, args.family or (), args.jobs, Path(args.log), folder, args.again)
