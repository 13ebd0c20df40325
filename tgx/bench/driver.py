"""Runs the benchmark: starts the workers, gives them turns, collects what they say.

A case is opened by every contender (data made, code compiled, first steps run), one after the
other. Then come rounds: in each, every contender runs a burst of steps while the others sleep, and
the order turns from round to round. A machine that slows down for a second so slows all of them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tgx import __version__, settings
from tgx.bench import models
from tgx.bench.cases import TARGETS, Case, Target
from tgx.errors import BadInput

SCHEMA = 1
SEED = 1
# relative: how far results may lie apart, and how much farther the losses of each next step: a
# difference in rounding grows while a network learns, fastest where batch norm sees two images
AGREEMENT, GROWTH = 2e-3, 2.0
PATIENCE = 900.0  # seconds a contender has to make ready for one case
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


@dataclass(frozen=True)
class Contender:
    """One competitor: a framework, and how to run it."""

    name: str
    role: str  # tgx, stock, torch or jax: what targets speak of
    side: str  # the file in sides/
    variables: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a program that must be installed
    seed: int = SEED
    command: tuple[str, ...] = ()  # instead of tgx.bench.worker; for tests

    def missing(self) -> str:
        """Why it cannot run here, as far as can be seen from outside."""
        if self.needs and shutil.which(self.needs) is None:
            return f"{self.needs} is not installed, and stock tinygrad's CPU device needs it"
        return ""


CONTENDERS = (
    Contender("TGX", "tgx", "tinygrad", {"DEV": "TGX"}),
    Contender("stock CLANG", "stock", "tinygrad", {"DEV": "CPU:CLANG"}, needs="clang"),
    Contender("stock LLVM", "stock", "tinygrad", {"DEV": "CPU:LLVM"}, needs="clang"),
    Contender("PyTorch", "torch", "torch"),
    Contender("JAX", "jax", "jax"),
)


@dataclass(frozen=True)
class Pace:
    """How long to measure."""

    rounds: int = 7
    seconds: float = 0.25  # of one burst
    budget: float = 8.0  # for one contender and case; beyond it, fewer rounds (two, or one epoch)
    starts: int = 3


NORMAL, QUICK = Pace(), Pace(rounds=3, seconds=0.08, budget=2.0, starts=1)


# **************** one worker ****************


class WorkerDied(Exception):
    """The worker ended, or did not answer in time."""


class Worker:
    """A process that speaks worker.py's protocol."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender = contender
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process, see stop()
        self.process = subprocess.Popen(
            contender.command or worker_command(contender, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=worker_environment(contender, threads),
        )
        self._pending = b""

    def receive(self, patience: float) -> dict[str, Any]:
        assert self.process.stdout
        end = time.monotonic() + patience
        while b"\n" not in self._pending:
            left = max(0, end - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            if not ready:
                self.stop()
                raise WorkerDied(f"no answer after {patience:.0f} s")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise WorkerDied(self._last_words())
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, do: str, patience: float = PATIENCE, **details: Any) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"do": do, **details}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._last_words()) from None
        return self.receive(patience)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {lines[-1]}" if lines else how


def worker_command(contender: Contender, threads: int) -> list[str]:
    python = [sys.executable, "-m", "tgx.bench.worker", contender.side]
    return [*python, "--threads", str(threads)]


def worker_environment(
    contender: Contender, threads: int, cache: Path | None = None
) -> dict[str, str]:
    """Ours, without what would change the device or slow it down."""
    changes: dict[str, str | None] = dict.fromkeys(
        ("DEV", "DEVICE", "DEBUG", "VIZ", "PROFILE", "BEAM", "TGX_TRACE", "TGX_FAST", "TGX_COUNT")
    )
    home = str(Path(__file__).resolve().parents[2])
    changes |= {"NUM_CPU_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    changes |= {"JAX_PLATFORMS": "cpu", "PYTHONSAFEPATH": "1"}
    if cache is not None:
        changes |= {"XDG_CACHE_HOME": str(cache), "CACHEDB": str(cache / "cache.db")}
    return settings.child_environment(changes | contender.variables, python_path=home)


# **************** a run ****************


class Run:
    """One run of the benchmark. `report` is the JSON that comes out of it."""

    def __init__(
        self,
        contenders: Sequence[Contender],
        threads: int,
        pace: Pace,
        say: Callable[[str], None],
        data: Path | None = None,
    ) -> None:
        self.contenders, self.threads, self.pace, self.say = contenders, threads, pace, say
        self.workers: dict[str, Worker] = {}
        self.missing: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.notes: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="tgx-bench-"))
        self.data = data

    def worker(self, contender: Contender) -> Worker | None:
        """The contender's worker, started when first needed; None where it cannot run."""
        if contender.name in self.missing:
            return None
        if contender.name not in self.workers:
            reason = contender.missing()
            if not reason:
                worker = self.workers[contender.name] = Worker(contender, self.threads)
                try:
                    self.names[contender.name] = worker.receive(PATIENCE)["name"]
                except (WorkerDied, RuntimeError) as error:
                    reason = str(error)
                    worker.stop()
            if reason:
                self.missing[contender.name] = reason
                return None
        return self.workers[contender.name]

    def run(self, case: Case) -> dict[str, Any]:
        results = self.starts(case) if case.kind == "start" else self.steps(case)
        report: dict[str, Any] = {**asdict(case), "shape": list(case.shape), "results": results}
        checks = {name: r["check"] for name, r in results.items() if "check" in r}
        off = disagreements(checks, GROWTH if case.kind == "train" else 1.0)
        return report | {"agree": not off, "differences": off, "ratios": self.ratios(results)}

    # ---- steps, in turns ----

    def steps(self, case: Case) -> dict[str, dict[str, Any]]:
        details: dict[str, Any] = {"case": asdict(case)}
        if case.kind == "epoch":
            details["folder"] = str(self.digits())
        results: dict[str, dict[str, Any]] = {}
        running: list[Contender] = []
        for contender in self.contenders:
            if (worker := self.worker(contender)) is None:
                continue
            try:
                answer = worker.ask("open", seed=contender.seed, **details)
            except (WorkerDied, RuntimeError) as error:
                results[contender.name] = self.failed(contender, error)
                continue
            results[contender.name] = {**answer, "times": [], "cpu": 0.0}
            running.append(contender)
        for number in range(self.pace.rounds):
            turn = number % max(1, len(running))
            for contender in running[turn:] + running[:turn]:
                self.burst(case, contender, results, number)
            running = [c for c in running if "times" in results[c.name]]
            if number == 0:
                running = self.without_slower_stock(running, results)
        for contender in self.contenders:
            result = results.get(contender.name, {})
            if "times" not in result:
                continue
            with contextlib.suppress(WorkerDied, RuntimeError):
                self.workers[contender.name].ask("close")
            summarize(result)
        return results

    def burst(
        self, case: Case, contender: Contender, results: dict[str, dict[str, Any]], number: int
    ) -> None:
        result = results[contender.name]
        spent, slowest = sum(result["times"]), max(result["times"], default=0)
        epoch = case.kind == "epoch"
        if number >= (1 if epoch else 2) and spent + slowest > self.pace.budget:
            return
        most = 1 if epoch else 5000
        warm = not epoch and slowest < self.pace.seconds and result["seconds"] < PATIENCE / 10
        how = {"seconds": self.pace.seconds, "least": 1, "most": most, "warm": warm}
        try:
            answer = self.workers[contender.name].ask("burst", **how)
        except (WorkerDied, RuntimeError) as error:
            results[contender.name] = self.failed(contender, error)
            return
        result["times"] += answer["times"]
        result["cpu"] += answer["cpu"]
        result["held"] = max(result["held"], answer["held"])
        result["resident"] = answer["resident"]

    def without_slower_stock(
        self, running: list[Contender], results: dict[str, dict[str, Any]]
    ) -> list[Contender]:
        """Of stock's renderers only the better one goes on, where it is clear which that is."""
        stock = {c.name: min(results[c.name]["times"]) for c in running if c.role == "stock"}
        best = min(stock.values(), default=0)
        return [c for c in running if c.name not in stock or stock[c.name] <= 1.15 * best]

    def failed(self, contender: Contender, error: Exception) -> dict[str, Any]:
        """What went wrong. A dead worker is replaced by a new one at the next case."""
        if isinstance(error, WorkerDied):
            self.workers.pop(contender.name).stop()
        return {"error": str(error)}

    # ---- whole processes ----

    def starts(self, case: Case) -> dict[str, dict[str, Any]]:
        results: dict[str, dict[str, Any]] = {}
        for number in range(self.pace.starts + case.warm):
            for contender in self.contenders:
                if contender.command or self.worker(contender) is None:
                    continue
                result = results.setdefault(contender.name, {"times": [], "cpu": 0.0})
                if "error" in result:
                    continue
                cache = self.folder / f"cache-{contender.name.replace(' ', '-')}-{case.model}"
                if not case.warm:
                    shutil.rmtree(cache, ignore_errors=True)
                try:
                    wall, cpu, check = self.start(case, contender, cache)
                except RuntimeError as error:
                    results[contender.name] = {"error": str(error)}
                    continue
                if not (case.warm and number == 0):  # that one only filled the cache
                    result["times"].append(wall)
                    result["cpu"] += cpu
                    result["check"] = check
        for result in results.values():
            if "times" in result:
                summarize(result)
        return results

    def start(
        self, case: Case, contender: Contender, cache: Path
    ) -> tuple[float, float, list[float]]:
        """Wall and CPU seconds of a process that trains three steps, children included."""
        cache.mkdir(exist_ok=True)
        command = [*worker_command(contender, self.threads), "--start", case.model]
        command += ["--batch", str(case.batch), "--seed", str(contender.seed)]
        begin = time.perf_counter()
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(contender, self.threads, cache),
        ) as process:
            assert process.stdout
            line = process.stdout.readline()
            wall = time.perf_counter() - begin
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        answer = json.loads(line or "{}")
        if "check" not in answer:
            raise RuntimeError(answer.get("error", f"ended with code {process.returncode}"))
        return wall, usage.ru_utime + usage.ru_stime, answer["check"]

    # ---- what comes out ----

    def ratios(self, results: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Their median over ours, for each role and for the better of PyTorch and JAX."""
        medians: dict[str, list[float]] = {}
        for contender in self.contenders:
            if "median" in results.get(contender.name, {}):
                medians.setdefault(contender.role, []).append(results[contender.name]["median"])
        if "tgx" not in medians:
            return {}
        ours = min(medians.pop("tgx"))
        peers = [*medians.get("torch", []), *medians.get("jax", [])]
        groups = medians | ({"peers": peers} if peers else {})
        return {role: min(times) / ours for role, times in groups.items()}

    def digits(self) -> Path:
        """A folder with the digits as .npy files, the same for all; unpacking is not timed."""
        folder = self.folder / "digits"
        if not folder.exists():
            folder.mkdir()
            images, labels, note = load_digits(self.data)
            np.save(folder / "images.npy", images)
            np.save(folder / "labels.npy", labels)
            self.notes.append(note)
        return folder

    def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def summarize(result: dict[str, Any]) -> None:
    """Median, minimum and CPU seconds of a step, in place of the list of times."""
    times = result.pop("times")
    if times:
        result |= {"median": statistics.median(times), "min": min(times), "count": len(times)}
        result["cpu"] /= len(times)


def disagreements(checks: dict[str, list[float]], growth: float = 1.0) -> list[str]:
    """Contenders whose numbers are not everybody's, in words.

    `growth`: how much farther than number i number i + 1 may lie from the others.
    """
    if len(checks) < 2:
        return []
    lengths = {len(check) for check in checks.values()}
    if len(lengths) > 1:
        return [f"results of different lengths: {sorted(lengths)}"]
    middle = [statistics.median(column) for column in zip(*checks.values(), strict=True)]
    scale = max(statistics.fmean(map(abs, middle)), 1e-6)
    found = []
    for name, check in checks.items():
        gaps = [
            abs(x - m) / max(abs(m), scale) / growth**i
            for i, (x, m) in enumerate(zip(check, middle, strict=True))
        ]
        worst = max(range(len(gaps)), key=lambda i: (gaps[i] != gaps[i], gaps[i]))
        if not gaps[worst] <= AGREEMENT:  # so that NaN is caught
            ours, others = check[worst], middle[worst]
            found.append(f"{name}: number {worst} is {ours:.6g}, others {others:.6g}")
    return found


def judge(target: Target, case: dict[str, Any]) -> dict[str, Any]:
    """One target, met or not; `reached` is None where it was not measured."""
    if target.against == "cpu":
        reached = case["results"].get("TGX", {}).get("cpu")
        met = None if reached is None else reached <= target.value
    else:
        reached = case["ratios"].get(target.against)
        met = None if reached is None else reached >= target.value
    row = {"case": case["name"], "against": target.against, "wanted": target.value}
    return row | {"reached": reached, "met": met}


def load_digits(data: Path | None) -> tuple[models.Array, models.Array, str]:
    """Images, labels, and where they came from: `data`, a checkout's own, or generated."""
    home = data or Path(__file__).resolve().parents[2] / "examples/data/mnist"
    found = [
        next((path for s in ("", ".gz", ".xz") if (path := home / (name + s)).exists()), None)
        for name in MNIST
    ]
    images, labels = found
    if images is None or labels is None:
        if data is not None:
            raise BadInput(f"--data {data}", f"a folder with {' and '.join(MNIST)} (.gz, .xz)")
        return *models.digits(SEED), "MNIST is not here: the epoch ran on generated digits"
    pixels = np.frombuffer(unpack(images), np.uint8, offset=16).reshape(-1, 28, 28)
    told = f"MNIST from {data or 'the checkout'}"
    return pixels, np.frombuffer(unpack(labels), np.uint8, offset=8), told


def unpack(path: Path) -> bytes:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        return bytes(file.read())


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def bench(
    cases: Sequence[Case],
    contenders: Sequence[Contender] = CONTENDERS,
    threads: int = 0,
    pace: Pace = NORMAL,
    say: Callable[[str], None] = lambda line: None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measure; the value is the report, ready for JSON. `say` hears of every finished case."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = min(threads or available or 1, available or 1)
    load = os.getloadavg()[0]
    run = Run(contenders, threads, pace, say, data)
    if load > 0.5:
        run.notes.append(
            f"the machine was busy (load {load:.1f} before the run): trust ratios more than times"
        )
    measured: list[dict[str, Any]] = []
    try:
        for case in cases:
            measured.append(run.run(case))
            say(headline(measured[-1]))
    finally:
        run.close()
    states = [
        {
            "name": c.name,
            "role": c.role,
            "what": run.names.get(c.name, ""),
            "missing": run.missing.get(c.name),
        }
        for c in contenders
    ]
    targets = [judge(t, case) for case in measured for t in TARGETS if t.matches(case["name"])]
    return {
        "schema": SCHEMA,
        "tgx": __version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": threads,
        "load": [load, os.getloadavg()[0]],
        "pace": asdict(pace),
        "contenders": states,
        "cases": measured,
        "targets": targets,
        "notes": [*run.notes, *failures(measured)],
    }


def failures(measured: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What could not be measured, and what does not agree."""
    for case in measured:
        for name, result in case["results"].items():
            if "error" in result:
                yield f"{case['name']}: {name} failed: {result['error']}"
        for difference in case["differences"]:
            yield f"{case['name']}: results differ: {difference}"


def headline(case: dict[str, Any]) -> str:
    """One line about a finished case, for whoever waits."""
    times = ", ".join(
        f"{name} {1e3 * result['median']:.3g}" if "median" in result else f"{name} failed"
        for name, result in case["results"].items()
    )
    return f"{case['name']}: {times} ms" + ("" if case["agree"] else "; RESULTS DIFFER")
