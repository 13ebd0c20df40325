"""From a trained network to a small board: weights in files, eight-bit integers, latency.

    python examples/mnist.py --model cnn --out run
    python examples/guide_quantize.py run/weights.npz              # accuracy, bytes, time: both
    python examples/guide_quantize.py run/weights.npz --out int8.npz

INT8 here means integers: a layer's inputs and weights are int8, their products are added up as
int32, and one multiplication per output makes a float of the sum. A float is told by an integer and
a scale: w ≈ scale · q, with q from -127 to 127, so rounding moves a weight by scale/2 at most.

    weights       known: a scale for each output channel, from its largest weight
    activations   not known: a scale for each layer, from what it sees of calibration images
    bias          int32, in units of both scales' product: it is added to the sum as it is

Used by lesson 13 and by jetson.py.
"""

import argparse
import copy
import io
import json
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mnist
import numpy as np
from guide_data import DataError
from guide_data import mnist as load_mnist
from guide_report import npz_bytes, safetensors_bytes, save_files
from tinygrad import Device, Tensor, TinyJit, dtypes, nn

LIMIT = 256 * 2**20  # bytes of a file of weights, and of what it unpacks to
HEADER = 2**20  # bytes of a safetensors header
LARGEST = 127  # of int8; -128 is left out, so that both signs reach equally far
Layer = nn.Linear | nn.Conv2d
Arrays = dict[str, np.ndarray]


# ---- weights in files ----------------------------------------------------------------------------

def weights_of(model) -> Arrays:
    return {name: t.numpy() for name, t in nn.state.get_state_dict(model).items()}


def load_weights(model, arrays: Mapping[str, np.ndarray]) -> None:
    """Put the arrays into the model of their names; what does not fit is an error."""
    wanted = nn.state.get_state_dict(model)
    if wanted.keys() != arrays.keys():
        raise DataError(f"the file's weights are {', '.join(sorted(arrays))[:500]}; this network's "
                        f"are {', '.join(sorted(wanted))}.")
    for name, t in wanted.items():
        if t.shape != arrays[name].shape:
            raise DataError(f"{name} is {arrays[name].shape} in the file, {t.shape} here.")
        t.assign(Tensor(arrays[name], dtype=t.dtype, device=t.device)).realize()


def save_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As .npz or .safetensors, whichever the name ends in."""
    write = safetensors_bytes if path.suffix == ".safetensors" else npz_bytes
    save_files(path.parent, {path.name: write(arrays)})


def read_weights(path: Path) -> Arrays:
    """What `save_weights` or mnist.py wrote; nothing in the file is executed."""
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"more than {LIMIT:,} bytes")
        read = read_safetensors if path.suffix == ".safetensors" else read_npz
        return read(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a broken archive can be broken in many ways
        raise DataError(f"{path} holds no weights ({str(error)[:200]}).\n"
                        "Expected weights.npz or weights.safetensors of mnist.py.") from None


def read_npz(raw: bytes) -> Arrays:
    """A zip of NumPy's arrays. What it unpacks to is bounded before it is unpacked."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(info.file_size for info in archive.infolist()) > LIMIT:
            raise ValueError(f"it unpacks to more than {LIMIT:,} bytes")
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name:.60} is no array of numbers")
    return arrays


def read_safetensors(raw: bytes) -> Arrays:
    """Eight bytes: the header's length; a header in JSON; the elements."""
    kinds = {"F32": "<f4", "F64": "<f8", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
    (length,) = struct.unpack("<Q", raw[:8])
    if length > min(len(raw) - 8, HEADER):
        raise ValueError("its header is longer than the file, or than any header")
    rows = json.loads(raw[8:8 + length])
    rows.pop("__metadata__", None)
    content, end, arrays = memoryview(raw)[8 + length:], 0, {}
    for name, row in sorted(rows.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = row["data_offsets"]
        if (type(start), type(stop)) != (int, int) or not end <= start <= stop <= len(content):
            raise ValueError(f"{name:.60} lies outside of the file, or over another")
        arrays[name] = np.frombuffer(content[start:stop], kinds[row["dtype"]]).reshape(row["shape"])
        end = stop
    return {name: arrays[name] for name in rows}


# ---- eight bits ----------------------------------------------------------------------------------

def quantize(weight: np.ndarray, per_channel: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """int8 numbers and their scales, float32 [outputs]; one scale for all if not `per_channel`."""
    rows = abs(weight.reshape(len(weight), -1))
    largest = rows.max(1) if per_channel else np.full(len(weight), rows.max())
    scales = np.where(largest > 0, largest, 1).astype(np.float32) / LARGEST
    shape = (-1, *[1] * (weight.ndim - 1))
    return (weight / scales.reshape(shape)).round().astype(np.int8), scales


class Int8:
    """A dense or convolutional layer in integers; `input_scale` is what calibration found."""

    def __init__(self, layer: Layer, input_scale: float, per_channel: bool = True):
        weight, scales = quantize(layer.weight.numpy(), per_channel)
        self.input_scale = input_scale
        self.weight = Tensor(weight)                              # int8
        self.scale = Tensor(scales * np.float32(input_scale))     # float32 [outputs], for the sum
        bias = layer.bias.numpy() / (scales * np.float32(input_scale))
        self.bias = Tensor(bias.round().astype(np.int32))
        self.conv = {"padding": layer.padding, "stride": layer.stride, "groups": layer.groups} \
            if isinstance(layer, nn.Conv2d) else None
        Tensor.realize(self.weight, self.scale, self.bias)

    def quantized(self, x: Tensor) -> Tensor:
        """Inputs as int8, in memory: else each output would round all its inputs again, and where
        the layer before rounds them, they would lie there as int32. What is larger than anything
        calibration saw is cut."""
        q = (x / self.input_scale).round().clamp(-LARGEST, LARGEST).cast(dtypes.int8)
        return q.contiguous()

    def sums(self, q: Tensor) -> Tensor:
        """int8 in, int32 out: every product and every sum exact."""
        q, weight = q.cast(dtypes.int32), self.weight.cast(dtypes.int32)
        if self.conv is None:
            return q @ weight.T + self.bias
        return q.conv2d(weight, **self.conv) + self.bias.reshape(1, -1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        scale = self.scale if self.conv is None else self.scale.reshape(1, -1, 1, 1)
        return self.sums(self.quantized(x)).float() * scale


class Watch:
    """A layer that also notes how large its inputs are."""

    def __init__(self, layer: Layer, keep: float):
        self.layer, self.keep, self.seen = layer, keep, 0.0

    def __call__(self, x: Tensor) -> Tensor:
        sizes = abs(x.numpy()).ravel()
        self.seen = max(self.seen, float(np.quantile(sizes, self.keep)))
        return self.layer(x)


def layers(model) -> dict[str, Layer]:
    return {name: part for name, part in vars(model).items() if isinstance(part, Layer)}


def replaced(model, parts: Mapping[str, Callable]):
    """A copy of the model with other layers; the original keeps its own."""
    other = copy.copy(model)
    for name, part in parts.items():
        setattr(other, name, part)
    return other


def calibrate(model, images: Tensor, keep: float = 1.0) -> dict[str, float]:
    """Each layer's input scale, from these images. `keep` below 1 cuts the largest inputs off:
    fewer of them are right, and all others are rounded finer."""
    watched = {name: Watch(layer, keep) for name, layer in layers(model).items()}
    replaced(model, watched)(images)
    return {name: max(w.seen, 1e-9) / LARGEST for name, w in watched.items()}


def to_int8(model, images: Tensor, per_channel: bool = True, keep: float = 1.0):
    """Post-training quantization: the same network in integers, calibrated on `images`."""
    scales = calibrate(model, images, keep)
    return replaced(model, {name: Int8(layer, scales[name], per_channel)
                            for name, layer in layers(model).items()})


def int8_arrays(model) -> Arrays:
    """What a quantized model needs of a file."""
    return {f"{name}.{field}": np.asarray(value.numpy() if isinstance(value, Tensor) else value,
                                          None if isinstance(value, Tensor) else np.float32)
            for name, part in vars(model).items() if isinstance(part, Int8)
            for field, value in (("weight", part.weight), ("scale", part.scale),
                                 ("bias", part.bias), ("input_scale", part.input_scale))}


def load_int8(model, arrays: Mapping[str, np.ndarray]):
    """`model`, freshly built, as the quantized model whose arrays these are."""
    parts = {}
    for name, layer in layers(model).items():
        part = parts[name] = Int8(layer, float(_fitting(arrays, f"{name}.input_scale", ())))
        for field in ("weight", "scale", "bias"):
            old = getattr(part, field)
            array = _fitting(arrays, f"{name}.{field}", old.shape)
            setattr(part, field, Tensor(array, dtype=old.dtype).realize())
    return replaced(model, parts)


def _fitting(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays or arrays[name].shape != shape:
        found = arrays[name].shape if name in arrays else "not there"
        raise DataError(f"{name} is {found} in the file; it should be {shape}.")
    return arrays[name]


def size(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the numbers alone."""
    return sum(a.nbytes for a in arrays.values())


def pruned(arrays: Mapping[str, np.ndarray], share: float) -> Arrays:
    """The smallest `share` of all weights (not biases) set to 0, whichever layer they are in."""
    sizes = np.concatenate([abs(a).ravel() for a in arrays.values() if a.ndim > 1])
    limit = np.quantile(sizes, share)
    return {name: np.where(abs(a) > limit, a, 0).astype(a.dtype) if a.ndim > 1 and share else a
            for name, a in arrays.items()}


# ---- how good, how fast --------------------------------------------------------------------------

def accuracy(model, data) -> float:
    return mnist.evaluator(model, data)()[1]


@dataclass(frozen=True)
class Latency:
    """Seconds: half of the runs were as fast as p50, 95 of 100 as fast as p95."""

    p50: float
    p95: float
    first: float  # the first run, with all that is compiled in it
    runs: int

    def __str__(self) -> str:
        return f"p50 {1e3 * self.p50:.2f} ms, p95 {1e3 * self.p95:.2f} ms ({self.runs} runs)"


def latency(run: Callable[[], object], runs: int = 200, warm_up: int = 10,
            clock: Callable[[], float] = time.perf_counter) -> Latency:
    """`run` must wait for its result (`.numpy()` does): what is only started is not measured."""
    return latencies({"": run}, runs, warm_up, clock)[""]


def latencies(work: Mapping[str, Callable[[], object]], runs: int = 200, warm_up: int = 10,
              clock: Callable[[], float] = time.perf_counter) -> dict[str, Latency]:
    """Of several, by turns: what else the machine does meanwhile then slows all of them alike."""
    def once(run: Callable[[], object]) -> float:
        start = clock()
        run()
        return clock() - start

    first = {name: once(run) for name, run in work.items()}
    for _ in range(warm_up):  # compiled code is loaded, caches and clock frequencies settle
        for run in work.values():
            once(run)
    times = np.array([[once(run) for run in work.values()] for _ in range(runs)])
    p50, p95 = np.quantile(times, (0.5, 0.95), axis=0).tolist()
    return {name: Latency(p50[i], p95[i], first[name], runs) for i, name in enumerate(work)}


def runner(model, images: np.ndarray, device: str | None = None) -> Callable[[], np.ndarray]:
    """A function that sends the images to the device, runs the network, and fetches the answers."""
    @TinyJit
    def forward(x: Tensor) -> Tensor:
        return model(mnist.pixels(x)).realize()

    return lambda: forward(Tensor(images, device=device).realize()).numpy()


# ---- networks from files, on any device ----------------------------------------------------------

def network_of(arrays: Mapping[str, np.ndarray]):
    """mnist.py's network with these weights."""
    name = "cnn" if "conv1.weight" in arrays else "mlp"
    model = mnist.build(name, **({"batchnorm": True} if "norm1.weight" in arrays else {}))
    load_weights(model, arrays)
    return model


def logits(model, images: np.ndarray, device: str | None = None) -> np.ndarray:
    return model(mnist.pixels(Tensor(images, device=device))).numpy()


def on_device(arrays: Arrays, device: str):
    """The same network on another device: weights go there as NumPy arrays, which copies them."""
    model = mnist.build("cnn" if "conv1.weight" in arrays else "mlp")
    for t in nn.state.get_parameters(model):
        t.to_(device)
    load_weights(model, arrays)
    return model


def usable(*names: str) -> list[str]:
    """Those devices that open here."""
    found = []
    for name in names:
        try:
            Device[name]
            Tensor([1.0], device=name).mul(2).numpy()
            found.append(name)
        except Exception:  # whatever a missing driver or compiler may raise
            continue
    return found


# ---- the program ---------------------------------------------------------------------------------

def compare(model, data, runs: int = 200) -> tuple[object, dict[str, dict[str, object]]]:
    """The network in integers; and accuracy, bytes and time of one image, of both."""
    images = mnist.pixels(Tensor(data.train_images[:512])).realize()
    small = to_int8(model, images)
    both = {"float32": model, "int8": small}
    times = latencies({name: runner(network, data.test_images[:1])
                       for name, network in both.items()}, runs)
    sizes = {"float32": size(weights_of(model)), "int8": size(int8_arrays(small))}
    return small, {name: {"accuracy": accuracy(network, data), "bytes": sizes[name],
                          "latency": times[name]} for name, network in both.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="quantize mnist.py's network to INT8")
    parser.add_argument("weights", type=Path, help="weights.npz or weights.safetensors")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the integers: .npz, .safetensors")
    args = parser.parse_args()
    try:
        model, data = network_of(read_weights(args.weights)), load_mnist()
        if hasattr(model, "norm1") and isinstance(model.norm1, nn.BatchNorm):
            sys.exit("error: this network has batch norm, which would have to be folded into the "
                     "convolutions first; train without --batchnorm")
        small, found = compare(model, data)
        if args.out:
            save_weights(args.out, int8_arrays(small))
    except DataError as error:
        sys.exit(f"error: {error}")
    print(f"device {Device.DEFAULT}, {len(data.test_images):,} test images")
    for name, row in found.items():
        print(f"{name:8} accuracy {row['accuracy']:.2%}   {row['bytes']:9,} bytes   "
              f"one image: {row['latency']}")
    a, b = found["float32"], found["int8"]
    print(f"INT8 loses {100 * (a['accuracy'] - b['accuracy']):.2f} points, takes "
          f"{b['bytes'] / a['bytes']:.3f} of the bytes and "
          f"{b['latency'].p50 / a['latency'].p50:.2f} of the time")


if __name__ == "__main__":
    main()
