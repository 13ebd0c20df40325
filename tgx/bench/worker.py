"""A process that runs one framework: `python -m tgx.bench.worker SIDE --threads N`.

It says who it is, {"name": "PyTorch 2.13.0"}, then reads requests, one JSON object a line, and
answers each with one line:

    {"do": "open", "case": {...}, "seed": 1}    -> {"check": [...], "seconds": s, ...}
    {"do": "burst", "seconds": 0.2, "least": 1, "most": 500, "warm": true}
                                                -> {"times": [...], "cpu": s, "held": bytes}
    {"do": "close"}                             -> {}

`check` is what all contenders must agree on: the losses of the first steps, or numbers made from a
result. An answer with "error" says why a request could not be done; the worker lives on.

With `--start MODEL` it does no such thing: it trains for three steps and says so, for the driver to
time a whole process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tgx.bench import models
from tgx.bench.cases import Case
from tgx.bench.sides import side
from tgx.errors import TgxError

CHECKED_STEPS = 4
EPOCH_WARM = 10  # steps before a timed epoch: compiling is measured elsewhere


class Worker:
    def __init__(self, name: str) -> None:
        self.side = side(name)
        self.step: Callable[[int], Any] = lambda i: None
        self.count = 0

    def open(self, case: dict[str, Any], seed: int, folder: str = "") -> dict[str, Any]:
        """Make ready to run a case, and run it often enough for every jit to have settled."""
        start, before = time.perf_counter(), resident()
        chosen = Case(**case | {"shape": tuple(case["shape"])})
        check = getattr(self, f"_{chosen.kind}")(chosen, seed, Path(folder))
        self.count = CHECKED_STEPS
        return {
            "check": [float(x) for x in check],
            "seconds": time.perf_counter() - start,
            "resident": resident(),
            "grown": resident() - before,
            "held": self.side.memory(),
        }

    def burst(self, seconds: float, least: int, most: int, warm: bool) -> dict[str, Any]:
        """Time steps, one by one. With `warm`, one more comes first, to wake threads and caches."""
        if warm:
            self._next()
        times: list[float] = []
        cpu, end = time.process_time(), time.perf_counter() + seconds
        while len(times) < most and (len(times) < least or time.perf_counter() < end):
            start = time.perf_counter()
            self._next()
            times.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        return {"times": times, "cpu": cpu, "resident": resident(), "held": self.side.memory()}

    def close(self) -> dict[str, Any]:
        self.step = lambda i: None
        gc.collect()
        return {}

    def _next(self) -> None:
        self.step(self.count)
        self.count += 1

    # ---- kinds of cases; each sets `step`, and gives what is compared ----

    def _train(self, case: Case, seed: int, _: Path) -> list[float]:
        batches = models.batches(case.model, case.batch, seed)
        parameters = models.parameters(case.model, seed)
        self.step = self.side.train(models.MODELS[case.model], parameters, batches)
        return [self.step(i) for i in range(CHECKED_STEPS)]

    def _infer(self, case: Case, seed: int, _: Path) -> list[float]:
        batches = models.batches(case.model, case.batch, seed)
        parameters = models.parameters(case.model, seed)
        self.step = self.side.infer(models.MODELS[case.model], parameters, batches)
        return [number for i in range(CHECKED_STEPS) for number in summary(self.step(i))]

    def _matmul(self, case: Case, seed: int, _: Path) -> list[float]:
        a, b = models.operands(case.shape, case.form, seed)
        self.step, result = self.side.matmul(a, b, case.form)
        for i in range(CHECKED_STEPS):
            self.step(i)
        return summary(result())

    def _epoch(self, case: Case, seed: int, folder: Path) -> list[float]:
        parameters = models.parameters(case.model, seed)
        run = self.side.epoch(models.MODELS[case.model], parameters, folder)
        self.step = run
        return list(run(seed, EPOCH_WARM))


def summary(result: models.Array) -> list[float]:
    """Two numbers that change if any element does: a weighted sum, and the mean size."""
    flat = result.astype(np.float64).ravel()
    weights = np.cos(np.arange(flat.size) % 1009)
    return [float(flat @ weights / np.sqrt(flat.size)), float(np.abs(flat).mean())]


def resident() -> int:
    """Bytes of memory this process occupies now; where that is not known, the most it ever did."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def start(name: str, model: str, batch: int, seed: int) -> list[float]:
    """What a script does between its first line and its third step."""
    step = side(name).train(
        models.MODELS[model], models.parameters(model, seed), models.batches(model, batch, seed)
    )
    return [step(i) for i in range(3)]


def serve(worker: Worker, requests: Any, answers: Any) -> None:
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--start", default="")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.threads and hasattr(os, "sched_setaffinity"):
        # every framework alike sees, and can use, this many CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is not an answer
    try:
        if options.start:
            losses = start(options.side, options.start, options.batch, options.seed)
            print(json.dumps({"check": losses}), file=answers, flush=True)
            return
        worker = Worker(options.side)
    except (TgxError, Exception) as error:
        told = error.given if isinstance(error, TgxError) else f"{type(error).__name__}: {error}"
        print(json.dumps({"error": told}), file=answers, flush=True)
        return
    print(json.dumps({"name": worker.side.name()}), file=answers, flush=True)
    serve(worker, sys.stdin, answers)


if __name__ == "__main__":
    main()
