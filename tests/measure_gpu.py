"""How good the predictions are, on the NVIDIA GPU that is here. Not a test of CI's: it needs one.

    python -m pip install -e '.[cuda]'
    python tests/measure_gpu.py --device h200 --out measured                  # about ten minutes
    python tests/measure_gpu.py --device jetson-orin-nano-super --mode 15W    # on that board
    python tests/measure_gpu.py --device h200 --stand-in TGX                  # a rehearsal

In this order, each result in a file of the folder before the next step begins:

    profile.toml           small benchmarks fill the device's profile (`tgx devices measure`)
    1-fit-predicted.json   the MLP's kernels predicted, with the model's constants as they stand
    2-fit-measured.json    the same beside measured times
    3-constants.json       constants fitted to the MLP, and to nothing else
    4-try-predicted.json   the CNN's kernels predicted with those; its SHA-256 is printed
    5-try-measured.json    the same beside measured times
    report.json            errors (MAPE, nine of ten, Spearman), outputs against other devices

A rehearsal runs every step on another device in the GPU's place. Its numbers mean nothing, and say
so: a CPU's times stand beside a GPU's predictions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TARGET_MAPE, TARGET_SPEARMAN = 0.25, 0.9
CLOSE = 1e-3  # outputs on two devices: 32-bit sums in another order
MOST_SECONDS = 60.0


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure how good tgx's predictions are")
    parser.add_argument("--device", required=True, help="the profile of the GPU that is here")
    parser.add_argument("--mode", default="", help="its power mode, by name")
    parser.add_argument("--out", type=Path, default=Path("measured"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each step, twice")
    parser.add_argument("--batch", default="1,32,128", help="inference; training at the largest")
    parser.add_argument("--script", type=Path, default=EXAMPLES / "mnist.py")
    parser.add_argument("--fit", default="mlp,mlp-train", help="models to fit constants to")
    parser.add_argument("--try", dest="tried", default="cnn,cnn-train", help="to try them on")
    parser.add_argument("--stand-in", default="", metavar="DEVICE", help="rehearse, without a GPU")
    args = parser.parse_args(words)
    if not 0 < args.seconds <= MOST_SECONDS:
        parser.error(f"--seconds {args.seconds:g}: above 0, at most {MOST_SECONDS:g}")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    from tinygrad import Device

    from tgx.adapter import board, offline
    from tgx.adapter.measure import measure as measure_device
    from tgx.adapter.profile import captured, predicted
    from tgx.adapter.timing import Pace, measure
    from tgx.hardware import fitting, profiles, report
    from tgx.hardware.kernel import GpuKernel

    known = profiles.find(args.device)
    arch = known.text("arch")
    if not args.stand_in and board.gpu_arch() != arch:
        raise SystemExit(f"the GPU here is {board.gpu_arch() or 'none'}, {known.id} is {arch}; "
                         "--stand-in TGX rehearses without")  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)

    def keep(name: str, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
        (args.out / name).write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        print(f"{args.out / name}: sha256 {digest}", flush=True)

    say = lambda line: print(line, flush=True)  # noqa: E731 - two calls hand it on
    filled, timings = measure_device(known, say)
    keep("profile.toml", profiles.to_toml(filled))
    # A pair of events around one launch costs something that a launch in a graph does not: the
    # launch is left to the fit here, and not taken from the benchmark of graphs.
    machine = replace(profiles.machine(filled, args.mode), launch_us=None)
    jetson = known.kind == "jetson"

    def one(models: str, names: tuple[str, str], constants: dict[str, float]) -> Any:
        """Predict, keep the predictions, measure: the joined report, and what to fit to."""
        batches = [int(word) for word in args.batch.split(",")]
        watch, steps = captured(batches, lambda: load(args.script), models.split(","), real=True)
        origins = offline.origins(watch)
        guess, lowered = predicted(filled, machine, steps, origins, constants)
        keep(names[0], report.to_json(guess))
        found = measure(steps, origins, Pace(args.seconds), machine, say)
        if found.stopped:
            raise SystemExit(130)
        both = report.joined(guess, found)
        keep(names[1], report.to_json(both))
        seen = [
            fitting.Seen(k, sum(x.work.bytes for x in launches if isinstance(x, GpuKernel)),
                         row.measured_us or 0)
            for launches, step in zip(lowered, both.steps, strict=True)
            for k, row in zip(launches, step.rows, strict=True)
            if isinstance(k, GpuKernel)
        ]  # fmt: skip
        return both, seen, found

    first, seen, _ = one(args.fit, ("1-fit-predicted.json", "2-fit-measured.json"), {})
    constants = fitting.fit(seen, machine, jetson)
    keep("3-constants.json", {
        "fitted_to": args.fit, "constants": constants,
        "loss_before": fitting.loss(seen, machine, jetson, {}),
        "loss_after": fitting.loss(seen, machine, jetson, constants),
    })  # fmt: skip
    second, _, found = one(args.tried, ("4-try-predicted.json", "5-try-measured.json"), constants)

    errors = report.errors(second.steps, machine.sms)
    reached = errors["all"].mape <= TARGET_MAPE and (errors["all"].spearman or 0) >= TARGET_SPEARMAN
    result = {
        "device": Device.DEFAULT, "profile": filled.id, "mode": machine.mode,
        "rehearsal": bool(args.stand_in),
        "micro_benchmarks": {name: timing.spread for name, timing in timings.items()},
        "fitted_to": args.fit, "tried_on": args.tried,
        "before": {n: asdict(e) for n, e in report.errors(first.steps, machine.sms).items()},
        "errors": {name: asdict(e) for name, e in errors.items()},
        "beaten": report.beaten(second.steps), "said": list(found.said),
        "target": f"MAPE at most {TARGET_MAPE:.0%}, Spearman at least {TARGET_SPEARMAN}",
        "reached": reached and not args.stand_in,
        "outputs": outputs(),
    }  # fmt: skip
    keep("report.json", result)
    if args.stand_in:
        print(f"A rehearsal on {Device.DEFAULT}: the errors below compare a GPU's predictions with "
              "another device's times, and mean nothing.")
    for name, error in errors.items():
        print(f"{args.tried}, {name}: {error}")
    print(f"target ({result['target']}): {'reached' if result['reached'] else 'not reached'}")
    for name, row in result["outputs"].items():
        print(f"{name}: {row}")
    return result


def load(path: Path) -> None:
    """The script as a module, its main part not run, in the place where tgx looks for it."""
    sys.path.insert(0, str(path.parent))
    module = ModuleType("measured_script")
    module.__file__ = str(path)
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    exec(compile(path.read_text(), str(path), "exec"), vars(module))


def outputs() -> dict[str, str]:
    """Both networks' scores of eight images on every device that opens, against the default's."""
    sys.path.insert(0, str(EXAMPLES))
    import guide_quantize as q
    import mnist
    import numpy as np
    from tinygrad import Device

    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28)).astype(np.uint8)
    found = {}
    for name in mnist.MODELS:
        model = mnist.build(name)
        arrays, here = q.weights_of(model), q.logits(model, images)
        for device in q.usable(*({"CUDA", "TGX", "CPU"} - {Device.DEFAULT})):
            there = q.logits(q.on_device(arrays, device), images, device)
            apart = float(abs(there - here).max() / abs(here).max())
            verdict = "equal" if apart <= CLOSE else "NOT equal"
            found[f"{name}, {Device.DEFAULT} and {device}"] = (
                f"{verdict}: {apart:.1e} apart, relative to the largest score; at most {CLOSE:g}"
            )
    return found


def libraries() -> dict[str, str]:
    """Where pip put the compiler that tinygrad's own CUDA device needs, in tinygrad's variables; a
    toolkit in /usr/local/cuda, which a Jetson has, is found without."""
    if Path("/usr/local/cuda").exists():
        return {}
    found = [path for folder in map(Path, sys.path)
             for path in sorted(folder.glob("nvidia/cuda_nvrtc/lib/libnvrtc.so.1?"))]  # fmt: skip
    if not found:
        return {}
    return {"NVRTC_PATH": str(found[0]), "CUDA_PATH": str(found[0].parents[2] / "cuda_runtime")}


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    os.environ["DEV"] = args.stand_in or "CUDA"  # before tinygrad is loaded
    os.environ.pop("DEVICE", None)
    for name, value in libraries().items():
        os.environ.setdefault(name, value)
    from tgx.errors import TgxError

    try:
        found = run(args)
    except TgxError as error:
        print(f"measure_gpu: {error}", file=sys.stderr)
        return 2
    return 0 if all(row.startswith("equal") for row in found["outputs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
