"""Lesson 13: from the desktop to the edge: export, latency, eight-bit integers (Project 6)

    python examples/13_export_and_int8.py [--quick] [--out DIR]

Guide, sections 1 and 15. Training happens once, with much memory; the network then runs for years
on something small. What goes there: its weights, in a file any program can read. What matters
there: the time until the answer, and bytes. INT8 is done properly (a scale for each channel,
calibrated activations, integer sums), and everything is measured. The Jetson itself: jetson.py.

With your own network: python examples/guide_quantize.py run/weights.npz
"""

import hashlib
import importlib
import tempfile
from pathlib import Path

import guide_quantize as q
import mnist
import numpy as np
from guide_data import Images
from guide_data import mnist as load_mnist
from guide_lesson import Chart, Lesson, Picture, legend, words
from guide_quantize import logits, on_device, usable
from tinygrad import Device, Tensor

convolution = importlib.import_module("08_convolution")


# ---- export and reload ---------------------------------------------------------------------------

def export(model, folder: Path) -> dict[str, str]:
    """weights.npz and weights.safetensors, and the SHA-256 of each."""
    arrays = q.weights_of(model)
    for suffix in ("npz", "safetensors"):
        q.save_weights(folder / f"weights.{suffix}", arrays)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.iterdir())}


def numpy_forward(arrays: q.Arrays, images: np.ndarray) -> np.ndarray:
    """The network without tinygrad: what any language could do with the file. Images are uint8."""
    x = images.astype(np.float32) / 255
    if "conv1.weight" in arrays:
        x = x[:, None]
        for name in ("conv1", "conv2"):
            x = np.stack([convolution.conv_matmul(image, arrays[f"{name}.weight"], padding=1)
                          for image in x]) + arrays[f"{name}.bias"].reshape(-1, 1, 1)
            n, c, high, wide = x.shape
            x = np.maximum(x, 0).reshape(n, c, high // 2, 2, wide // 2, 2).max((3, 5))
    x = x.reshape(len(x), -1)
    dense = [name for name in ("layer1", "layer2", "layer3", "fc1", "fc2")
             if f"{name}.weight" in arrays]
    for name in dense:
        x = x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]
        if name != dense[-1]:
            x = np.maximum(x, 0)
    return x


# ---- what eight bits cost ------------------------------------------------------------------------

def rounding(weight: np.ndarray) -> dict[str, float]:
    """The root mean square error of int8 weights, as a share of the weights' own."""
    errors = {}
    for name, per_channel in (("one scale", False), ("a scale a channel", True)):
        numbers, scales = q.quantize(weight, per_channel)
        again = numbers * scales.reshape(-1, *[1] * (weight.ndim - 1))
        assert (abs(again - weight) <= scales.reshape(-1, *[1] * (weight.ndim - 1)) * 0.5001).all()
        errors[name] = float(np.sqrt(((again - weight) ** 2).mean() / (weight**2).mean()))
    return errors


def pruning(model, data: Images, shares: tuple[float, ...]) -> dict[float, float]:
    """Accuracy with that share of the weights set to zero, the smallest first; no retraining."""
    arrays, found = q.weights_of(model), {}
    for share in shares:
        q.load_weights(model, q.pruned(arrays, share))
        found[share] = q.accuracy(model, data)
    q.load_weights(model, arrays)
    return found


# ---- the lesson ----------------------------------------------------------------------------------

def draw(weight: np.ndarray, found: dict, kept: dict[float, float]) -> str:
    page = Picture("What goes to the edge: fewer bits, fewer weights", 1080, 340,
                   "scales of channels, bytes and time in float32 and INT8, accuracy when pruned")
    largest = np.sort(abs(weight.reshape(len(weight), -1)).max(1))
    chart = Chart(page, (50, 86, 290, 180), (0, len(largest)), (0, float(largest.max()) * 1.1),
                  "each channel's largest weight", "channel, sorted")
    for i, value in enumerate(largest):
        chart.line([i + 0.5, i + 0.5], [0, value], "blue thin")
    chart.line([0, len(largest)], [largest.max()] * 2, "orange dashed")
    chart.note(len(largest) * 0.02, largest.max(), "one scale for all reaches to here",
               "ink orange", dy=16)
    page.add(words(400, 76, "float32 against INT8", "head"))
    a, b = found["float32"], found["int8"]
    rows = (("bytes", a["bytes"], b["bytes"], "{:,.0f}"),
            ("ms, one image (p50)", 1e3 * a["latency"].p50, 1e3 * b["latency"].p50, "{:.2f}"),
            ("wrong in 10,000", round(1e4 * (1 - a["accuracy"])), round(1e4 * (1 - b["accuracy"])),
             "{:.0f}"))
    for i, (name, first, second, form) in enumerate(rows):
        top = 104 + 62 * i
        page.add(words(400, top, name, "quiet"))
        for j, (value, css) in enumerate(((first, "blue"), (second, "orange"))):
            wide = 170 * value / max(first, second, 1e-9)
            page.add(f'<rect class="dot {css}" x="400" y="{top + 8 + 19 * j}" width="{wide:.1f}" '
                     'height="15"/>', words(408 + wide, top + 20 + 19 * j, form.format(value)))
    page.add(*legend(400, 300, (("blue", "float32"), ("orange", "INT8")), 110))
    low = min(kept.values())
    chart = Chart(page, (740, 86, 290, 180), (0, 100), (100 * low - 5, 100),
                  "right, % (weights pruned, not retrained)", "smallest weights set to 0, %")
    chart.line([100 * s for s in kept], [100 * v for v in kept.values()], "green")
    chart.dots([100 * s for s in kept], [100 * v for v in kept.values()], "green")
    return str(page)


def main() -> None:
    lesson = Lesson("13_export_and_int8", __doc__)
    name, everything = "mlp" if lesson.quick else "cnn", load_mnist()
    data = convolution.few(everything, *((1280, 1000) if lesson.quick else (19_200, 10_000)))
    Tensor.manual_seed(0)
    model = mnist.build(name)
    convolution.train(model, data, 1, 3e-3)
    arrays, some = q.weights_of(model), data.test_images[:64]
    expected = logits(model, some)

    lesson.part("1 to 3: train, export, load elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        sums = export(model, Path(folder))
        same = {path: max(abs(expected - logits(q.network_of(q.read_weights(Path(folder) / path)),
                                                some)).ravel()) for path in sums}
        sizes = {path: (Path(folder) / path).stat().st_size for path in sums}
    apart = abs(numpy_forward(arrays, some) - expected).max()
    rows = [("trained here: right", "", f"{q.accuracy(model, data):.2%}"),
            ("numbers in it", "1.69 MB" if name == "cnn" else "", f"{q.size(arrays):,} bytes")]
    for path, digest in sums.items():
        rows += [(path, "numpy arrays", f"{sizes[path]:,} bytes, SHA-256 {digest[:12]}…"),
                 ("  loaded again: logits", "equal", f"{same[path]:g} apart")]
    rows.append(("NumPy alone, without tinygrad: logits", "", f"{apart:.0e} apart"))
    lesson.beside(*rows)

    lesson.part("4: latency", "One image, sent to the device, answered, fetched. The first run "
                "compiles; then ten to warm up.")
    rows, answers = [], {}
    for device in usable(Device.DEFAULT, *({"TGX", "CPU", "CUDA"} - {Device.DEFAULT})):
        there = on_device(arrays, device)
        time = q.latency(q.runner(there, some[:1], device), 20 if lesson.quick else 200)
        answers[device] = logits(there, some, device).argmax(1)
        rows.append((device, "CPU vs GPU", f"{time}; first {1e3 * time.first:.0f} ms"))
    agree = all((a == answers[Device.DEFAULT]).all() for a in answers.values())
    lesson.beside(*rows, (f"the same answers on {', '.join(answers)}", "", str(agree)))

    lesson.part("5: eight-bit integers")
    layer = model.conv2 if name == "cnn" else model.layer1
    weight = layer.weight.numpy()
    errors = rounding(weight)
    small, found = q.compare(model, data, 20 if lesson.quick else 200)
    images = mnist.pixels(Tensor(data.train_images[:512])).realize()
    others = {"one scale for all channels": q.to_int8(model, images, per_channel=False),
              "the largest 0.1 % of activations cut": q.to_int8(model, images, keep=0.999)}
    if lesson.quick:
        others = {}
    a, b = found["float32"], found["int8"]
    lesson.beside(
        ("rounding, one scale: error of the weights", "", f"{errors['one scale']:.2%}"),
        ("  a scale for each channel", "", f"{errors['a scale a channel']:.2%}"),
        ("right, float32", "", f"{a['accuracy']:.2%}"),
        ("  INT8, calibrated on 512 images", "compare", f"{b['accuracy']:.2%}"),
        *[(f"  {text}", "", f"{q.accuracy(other, data):.2%}") for text, other in others.items()],
        ("bytes", "", f"{b['bytes']:,}: {b['bytes'] / a['bytes']:.3f} of float32's"),
        ("time of one image, float32", "compare", str(a["latency"])),
        ("  INT8", "faster", str(b["latency"]), "depends on the machine: measure"))

    lesson.part("Fewer weights")
    kept = pruning(model, data, (0, 0.9) if lesson.quick else
                   (0, 0.5, 0.8, 0.9, 0.95, 0.99))
    lesson.beside(*[(f"smallest {share:.0%} set to zero: right", "", f"{value:.2%}")
                    for share, value in kept.items()])
    lesson.say("Zeros save nothing by themselves: the same products are computed. They compress,",
               "and NVIDIA's sparse units want two of every four.")
    lesson.part("Further",
                "⚠ A Jetson Nano's own software (JetPack 4: Python 3.6, CUDA 10.2) does not run",
                "  tinygrad 0.14, which needs Python 3.11; an Orin's does. "
                "⚠ Weights that go through NumPy are copied.",
                "TensorRT and TFLite take networks as ONNX: onnx.ai; tinygrad reads that, too.")
    lesson.picture(draw(weight, found, kept))

    one = mnist.pixels(Tensor(some[:1])).realize()
    lesson.kernels(lambda: small(one).realize())


if __name__ == "__main__":
    main()
