"""Project 6: MNIST on a Jetson. Train on the desktop, pack one directory, run it on the board.

    python examples/mnist.py --model cnn --out run                  # desktop: train
    python examples/jetson.py pack run/weights.npz --out board      # desktop: one command packs it
    scp -r board jetson:                                            # or a USB stick
    python board/jetson.py run                                      # board: check, measure, compare

The directory holds the network's code, its weights as float32 and as INT8 (quantized here, by
guide_quantize.py), the test set, and what the desktop answered. On the board nothing is trained or
calibrated: the answers must be the desktop's, then accuracy, bytes and latency are measured, for
float32, float16 and INT8, and for every device that opens there.

On a board with CUDA, DEV=CUDA is the GPU. `tgx profile board/jetson.py run` has its kernels one by
one; with --device NAME of the board, on the desktop, what they should cost there.
"""

import sys

# Before anything is imported: JetPack 4's own Python, 3.6, gets this far and says what to do.
if sys.version_info < (3, 11):  # noqa: UP036  no later than here would help
    sys.exit(f"error: this is Python {sys.version_info[0]}.{sys.version_info[1]}, and tinygrad "
             "0.14 needs 3.11 or newer. A JetPack's own is older (4: 3.6, 5: 3.8, 6: 3.10). "
             "Without root:\n"
             "  uv venv --python 3.11 .venv && . .venv/bin/activate\n"
             "  uv pip install -r requirements.txt        # conda or a container does as well")

import argparse
import hashlib
import json
import platform
import re
from importlib import metadata
from pathlib import Path

import guide_quantize as q
import mnist
import numpy as np
from guide_data import DataError, Images
from guide_data import mnist as load_mnist
from guide_report import json_bytes, npz_bytes, save_files
from tinygrad import Device, Tensor, nn

HERE = Path(__file__).resolve().parent
RELEASE = Path("/etc/nv_tegra_release")  # every Jetson has it
CODE = ("jetson.py", "mnist.py", "guide_data.py", "guide_quantize.py", "guide_report.py")
MANIFEST = "package.json"
ARRAYS = ("weights.npz", "int8.npz", "test.npz", "expected.npz")
FILES = {*CODE, *ARRAYS, "requirements.txt"}
ABOUT = ("device", "machine", "python", "tinygrad", "board")
CALIBRATION = 512  # training images that the desktop sees the activations of
APART = 1e-3  # how far float32 logits may lie from the desktop's: another order of adding up
SAME = 0.999  # INT8: of all answers, how many must be the desktop's: rounding has edges
LOSES, BYTES = 0.5, 0.28  # points INT8 may lose; its share of float32's bytes

REQUIREMENTS = """\
tinygrad>=0.14,<0.15
numpy
# For DEVICE=TGX, the CPU without a compiler, also tgx: pip install . in a clone of it.
"""

JETPACK_4 = (
    "this is JetPack 4 (L4T R32), whose CUDA ends at 10.2: its NVRTC does not know what tinygrad "
    "0.14 asks it for, and its driver has no cuGraphInstantiate_v2. The GPU cannot be used.\n"
    "On its CPU the network runs: DEVICE=TGX python jetson.py run")


# ---- on the desktop ------------------------------------------------------------------------------

def pack(weights: Path, folder: Path) -> dict[str, object]:
    """All that the board needs, in one directory; returns its manifest."""
    arrays, data = q.read_weights(weights), load_mnist()
    if any("norm" in name for name in arrays):
        raise DataError(f"{weights} has batch norm, which INT8 would have to fold into the "
                        "convolutions first; train without --batchnorm.")
    model = q.network_of(arrays)
    small = q.to_int8(model, mnist.pixels(Tensor(data.train_images[:CALIBRATION])).realize())
    contents = {
        "weights.npz": npz_bytes(arrays),
        "int8.npz": npz_bytes(q.int8_arrays(small)),
        "test.npz": npz_bytes({"images": data.test_images, "labels": data.test_labels}),
        "expected.npz": npz_bytes({"float32": answers(model, data), "int8": answers(small, data)}),
        "requirements.txt": REQUIREMENTS.encode(),
        **{name: (HERE / name).read_bytes() for name in CODE},
    }
    manifest = {
        "model": type(model).__name__,
        "made_on": about(),
        "accuracy": {name: q.accuracy(network, data)
                     for name, network in (("float32", model), ("int8", small))},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    save_files(folder, contents | {MANIFEST: json_bytes(manifest)})
    return manifest


def answers(model, data: Images) -> np.ndarray:
    """Logits [samples, 10] of the whole test set, in pieces."""
    images = data.test_images
    return np.concatenate([q.logits(model, images[start:start + mnist.TEST_BATCH])
                           for start in range(0, len(images), mnist.TEST_BATCH)])


def about() -> dict[str, str]:
    return {"device": Device.DEFAULT, "machine": platform.machine(),
            "python": platform.python_version(), "tinygrad": metadata.version("tinygrad"),
            "board": release()}


def release() -> str:
    """What a Jetson calls itself: "R36 (release), REVISION: 4.3, ..."; "" elsewhere."""
    try:
        return RELEASE.read_text(errors="replace").strip().lstrip("# ")
    except OSError:
        return ""


# ---- on the board --------------------------------------------------------------------------------

class Half:
    """The network in 16-bit floats: half the bytes of float32, and tensor cores where there are."""

    def __init__(self, arrays: q.Arrays):
        self.model = q.network_of(arrays)
        for layer in q.layers(self.model).values():
            layer.weight, layer.bias = layer.weight.half().realize(), layer.bias.half().realize()

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images.half()).float()


def check_board() -> None:
    """Refuse what cannot work here, and say what does."""
    try:
        name = Device.DEFAULT
        if re.match(r"R32\b", release()) and name in ("CUDA", "NV"):
            raise DataError(JETPACK_4)
        Device[name]
    except DataError:
        raise
    except Exception as error:  # whatever a missing driver or compiler may raise
        raise DataError(f"this device cannot be used: {error}") from None


def opened(folder: Path) -> tuple[dict, dict[str, q.Arrays]]:
    """The manifest and the arrays of a package, every file as it was when it was packed."""
    try:
        manifest = read_manifest((folder / MANIFEST).read_bytes())
        for name, digest in manifest["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise DataError(f"{folder / name} is not the file that was packed: copy the "
                                "directory again.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder} is no package ({error}).\nMake one on the desktop: "
                        "python examples/jetson.py pack run/weights.npz --out board") from None
    names = ("weights", "int8", "test", "expected")
    arrays = {name: q.read_weights(folder / f"{name}.npz") for name in names}
    check_arrays(arrays)
    return manifest, arrays


def read_manifest(raw: bytes) -> dict:
    """The manifest of a package, with the files it names and the texts that are printed checked."""
    if len(raw) > 2**16:
        raise ValueError("a manifest of over 64 KiB")
    manifest = json.loads(raw)
    unknown = manifest["sha256"].keys() ^ FILES
    if unknown:  # no file elsewhere is read, and none is left out
        raise ValueError(f"{sorted(unknown)[0]:.60} is not a file of a package, or is missing")
    for text in (manifest["model"], *(manifest["made_on"][key] for key in ABOUT)):
        if not isinstance(text, str) or not text.isprintable():
            raise ValueError("a text that cannot be printed")
    return manifest


def check_arrays(arrays: dict[str, q.Arrays]) -> None:
    """Pictures, labels and answers that belong together."""
    test, expected = arrays["test"], arrays["expected"]
    count = len(test["labels"]) if "labels" in test and test["labels"].ndim == 1 else 0
    if not count or any(name not in found or found[name].shape != (count, *shape)
                        for found, name, shape in ((test, "images", (28, 28)),
                                                   (expected, "float32", (10,)),
                                                   (expected, "int8", (10,)))):
        raise DataError("test.npz and expected.npz do not belong together: pack the directory "
                        "again.")


def networks(arrays: dict[str, q.Arrays]) -> dict[str, object]:
    """By number format; all on the default device."""
    model = q.network_of(arrays["weights"])
    return {"float32": model, "float16": Half(arrays["weights"]),
            "int8": q.load_int8(q.network_of(arrays["weights"]), arrays["int8"])}


def measure(folder: Path, runs: int) -> dict[str, object]:
    """Everything the board is asked, as plain numbers."""
    check_board()
    manifest, arrays = opened(folder)
    test = arrays["test"]
    nothing = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)
    data = Images(*nothing, test["images"], test["labels"])
    found = networks(arrays)
    here = {name: answers(found[name], data) for name in ("float32", "int8")}
    expected = arrays["expected"]
    same = (here["int8"].argmax(1) == expected["int8"].argmax(1)).mean()
    sizes = {"float32": q.size(arrays["weights"]), "float16": q.size(arrays["weights"]) // 2,
             "int8": q.size(arrays["int8"])}
    one = test["images"][:1]
    work = {(name, Device.DEFAULT): q.runner(network, one) for name, network in found.items()}
    for device in q.usable(*(name for name in ("CUDA", "TGX", "CPU") if name != Device.DEFAULT)):
        model = q.on_device(arrays["weights"], device)
        work["float32", device] = q.runner(model, one, device)
    times = q.latencies(work, runs)
    return {
        "here": about(), "packed": manifest["made_on"], "model": manifest["model"],
        "images": len(test["images"]),
        "apart": float(abs(here["float32"] - expected["float32"]).max()),
        "same_int8": float(same),
        "accuracy": {name: q.accuracy(network, data) for name, network in found.items()},
        "bytes": sizes,
        "latency": [{"numbers": name, "device": device, "p50_ms": 1e3 * t.p50,
                     "p95_ms": 1e3 * t.p95, "first_ms": 1e3 * t.first, "runs": t.runs}
                    for (name, device), t in times.items()],
    }


def problems(found: dict) -> list[str]:
    """What is not as it should be, in sentences."""
    lost = 100 * (found["accuracy"]["float32"] - found["accuracy"]["int8"])
    share = found["bytes"]["int8"] / found["bytes"]["float32"]
    return [sentence for wrong, sentence in (
        (not found["apart"] <= APART,
         f"float32 logits lie up to {found['apart']:.2g} from the desktop's (at most {APART:g})"),
        (found["same_int8"] < SAME,
         f"only {found['same_int8']:.2%} of the INT8 answers are the desktop's"),
        (lost >= LOSES, f"INT8 loses {lost:.2f} points (less than {LOSES} is asked)"),
        (share > BYTES, f"INT8 takes {share:.3f} of float32's bytes (at most {BYTES})")) if wrong]


def shown(found: dict) -> list[str]:
    here, packed, accuracy = found["here"], found["packed"], found["accuracy"]
    size, lines = found["bytes"], []
    lines.append(f"{found['model']}, {found['images']:,} test images, on {here['device']} "
                 f"({here['machine']}, Python {here['python']}, tinygrad {here['tinygrad']})"
                 + (f"; {here['board']}" if here["board"] else ""))
    lines.append(f"packed on {packed['device']} ({packed['machine']}): float32 logits at most "
                 f"{found['apart']:.2g} apart, INT8 answers {found['same_int8']:.2%} the same")
    lines += [f"{name:8} accuracy {accuracy[name]:.2%}   {size[name]:9,} bytes, "
              f"{size[name] / size['float32']:.3f} of float32's" for name in accuracy]
    lines += [f"{t['numbers']:8} on {t['device']:5} one image: p50 {t['p50_ms']:.3f} ms, "
              f"p95 {t['p95_ms']:.3f} ms ({t['runs']} runs; the first, which compiles: "
              f"{t['first_ms']:.0f} ms)" for t in found["latency"]]
    lines.append(f"INT8 loses {100 * (accuracy['float32'] - accuracy['int8']):.2f} points; faster "
                 "it need not be: tinygrad has no INT8 tensor cores, and loads bytes one by one")
    return lines


# ---- for tgx -------------------------------------------------------------------------------------

def tgx_models():
    """For `tgx profile`: the packed network in its three number formats."""
    arrays = opened(HERE)[1]

    def inputs(batch: int) -> tuple[Tensor]:
        images = np.resize(arrays["test"]["images"], (batch, 28, 28))
        return (mnist.pixels(Tensor(images)).realize(),)

    found = networks(arrays)
    for model in found.values():
        Tensor.realize(*nn.state.get_parameters(model))
    return {name: (model, inputs) for name, model in found.items()}


# ---- the program ---------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description="MNIST on a Jetson: pack here, run there")
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack", help="on the desktop: make the directory to copy over")
    packing.add_argument("weights", type=Path, help="weights.npz of examples/mnist.py --out")
    packing.add_argument("--out", type=Path, default=Path("board"), metavar="DIR")
    running = actions.add_parser("run", help="on the board: check, measure, compare")
    running.add_argument("folder", type=Path, nargs="?", default=HERE, help="this file's own")
    running.add_argument("--runs", type=mnist.number(int), default=200, help="of each latency")
    running.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    try:
        if args.action == "pack":
            manifest = pack(args.weights, args.out)
            right = ", ".join(f"{name} {value:.2%}" for name, value in manifest["accuracy"].items())
            print(f"{args.out} is ready to be copied ({manifest['model']}: {right}).\n"
                  f"On the board: python {args.out.name}/jetson.py run")
            return
        found = measure(args.folder, args.runs)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(shown(found)))
    if args.json:
        save_files(args.json.parent, {args.json.name: json_bytes(found)})
    wrong = problems(found)
    if wrong:
        sys.exit("not as it should be:\n  " + "\n  ".join(wrong))


if __name__ == "__main__":
    main()
