"""The models of the benchmark, written once for all frameworks, and their data.

A model is a function of operations (`ops`, one object for each framework, see sides/), parameters
(a dict of that framework's tensors) and an input. The parameters start as NumPy arrays, drawn here
from a seed: so all contenders compute the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Model:
    """`make(new)` asks `new` for its parameters; `apply(ops, p, x)` is the forward pass."""

    make: Callable[[New], None]
    apply: Callable[[Any, Any, Any], Any]
    sample: tuple[int, ...]  # the shape of one input
    classes: int = 10  # the labels are below it; 0: the output is not a score


class New:
    """Collects parameters: uniform within ±1/sqrt(fan in), as PyTorch and tinygrad start them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.parameters: Parameters = {}

    def __call__(self, name: str, *shape: int, fan: int = 0) -> None:
        bound = 1 / math.sqrt(fan or math.prod(shape[1:]) or shape[0])
        self.parameters[name] = self.random.uniform(-bound, bound, shape).astype(np.float32)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self(f"{name}.w", outputs, inputs)
        self(f"{name}.b", outputs, fan=inputs)

    def conv(self, name: str, inputs: int, outputs: int, size: int, bias: bool = False) -> None:
        """`inputs` is per group."""
        self(f"{name}.w", outputs, inputs, size, size)
        if bias:
            self(f"{name}.b", outputs, fan=inputs * size * size)

    def norm(self, name: str, channels: int) -> None:
        self.parameters[f"{name}.w"] = np.ones(channels, np.float32)
        self.parameters[f"{name}.b"] = np.zeros(channels, np.float32)

    def batch_norm(self, name: str, channels: int) -> None:
        """With what training would have found out about mean and variance, for inference."""
        self.norm(name, channels)
        self.parameters[f"{name}.mean"] = self.random.normal(0, 0.1, channels).astype(np.float32)
        self.parameters[f"{name}.var"] = self.random.uniform(0.1, 1, channels).astype(np.float32)


def trained(name: str) -> bool:
    """Is this parameter learned? Statistics are not."""
    return not name.endswith((".mean", ".var"))


def make_mlp(new: New) -> None:
    new.linear("layer1", 784, 256)
    new.linear("layer2", 256, 128)
    new.linear("layer3", 128, 10)


def apply_mlp(ops: Any, p: Any, x: Any) -> Any:
    x = ops.relu(ops.linear(x, p["layer1.w"], p["layer1.b"]))
    x = ops.relu(ops.linear(x, p["layer2.w"], p["layer2.b"]))
    return ops.linear(x, p["layer3.w"], p["layer3.b"])


def make_cnn(new: New) -> None:
    new.conv("conv1", 1, 32, 3, bias=True)
    new.conv("conv2", 32, 64, 3, bias=True)
    new.linear("fc1", 64 * 7 * 7, 128)
    new.linear("fc2", 128, 10)


def apply_cnn(ops: Any, p: Any, x: Any) -> Any:
    x = ops.reshape(x, (x.shape[0], 1, 28, 28))
    x = ops.max_pool(ops.relu(ops.conv(x, p["conv1.w"], p["conv1.b"], padding=1)), 2)
    x = ops.max_pool(ops.relu(ops.conv(x, p["conv2.w"], p["conv2.b"], padding=1)), 2)
    x = ops.reshape(x, (x.shape[0], 64 * 7 * 7))
    x = ops.relu(ops.linear(x, p["fc1.w"], p["fc1.b"]))
    return ops.linear(x, p["fc2.w"], p["fc2.b"])


# ---- larger ones ----

RESNET_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first block


def make_resnet18(new: New) -> None:
    new.conv("stem", 3, 64, 7)
    new.batch_norm("stem.norm", 64)
    inputs = 64
    for stage, (channels, stride) in enumerate(RESNET_STAGES):
        for block in range(2):
            name = f"{stage}.{block}"
            new.conv(f"{name}.1", inputs, channels, 3)
            new.batch_norm(f"{name}.1.norm", channels)
            new.conv(f"{name}.2", channels, channels, 3)
            new.batch_norm(f"{name}.2.norm", channels)
            if block == 0 and (stride != 1 or inputs != channels):
                new.conv(f"{name}.skip", inputs, channels, 1)
                new.batch_norm(f"{name}.skip.norm", channels)
            inputs = channels
    new.linear("head", 512, 1000)


def conv_norm(ops: Any, p: Any, x: Any, name: str, **how: int) -> Any:
    x = ops.conv(x, p[f"{name}.w"], None, **how)
    return ops.batch_norm(x, *(p[f"{name}.norm.{part}"] for part in ("w", "b", "mean", "var")))


def apply_resnet18(ops: Any, p: Any, x: Any) -> Any:
    x = ops.relu(conv_norm(ops, p, x, "stem", stride=2, padding=3))
    x = ops.max_pool(x, 3, stride=2, padding=1)
    for stage, (_, stride) in enumerate(RESNET_STAGES):
        for block in range(2):
            name, step = f"{stage}.{block}", stride if block == 0 else 1
            y = ops.relu(conv_norm(ops, p, x, f"{name}.1", stride=step, padding=1))
            y = conv_norm(ops, p, y, f"{name}.2", padding=1)
            if f"{name}.skip.w" in p:
                x = conv_norm(ops, p, x, f"{name}.skip", stride=step)
            x = ops.relu(x + y)
    return ops.linear(ops.mean(x, (2, 3)), p["head.w"], p["head.b"])


# expansion, channels, blocks, stride of the first
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_blocks() -> list[tuple[str, int, int, int, int]]:
    """Name, channels in, channels inside, channels out, stride."""
    blocks, inputs = [], 32
    for stage, (expansion, channels, count, stride) in enumerate(MOBILENET_STAGES):
        for block in range(count):
            step = stride if block == 0 else 1
            blocks.append((f"{stage}.{block}", inputs, inputs * expansion, channels, step))
            inputs = channels
    return blocks


def make_mobilenetv2(new: New) -> None:
    new.conv("stem", 3, 32, 3)
    new.batch_norm("stem.norm", 32)
    for name, inputs, inside, outputs, _ in mobilenet_blocks():
        if inside != inputs:
            new.conv(f"{name}.up", inputs, inside, 1)
            new.batch_norm(f"{name}.up.norm", inside)
        new.conv(f"{name}.deep", 1, inside, 3)
        new.batch_norm(f"{name}.deep.norm", inside)
        new.conv(f"{name}.down", inside, outputs, 1)
        new.batch_norm(f"{name}.down.norm", outputs)
    new.conv("last", 320, 1280, 1)
    new.batch_norm("last.norm", 1280)
    new.linear("head", 1280, 1000)


def apply_mobilenetv2(ops: Any, p: Any, x: Any) -> Any:
    x = ops.relu6(conv_norm(ops, p, x, "stem", stride=2, padding=1))
    for name, inputs, inside, outputs, stride in mobilenet_blocks():
        y = x
        if inside != inputs:
            y = ops.relu6(conv_norm(ops, p, y, f"{name}.up"))
        deep = {"stride": stride, "padding": 1, "groups": inside}
        y = ops.relu6(conv_norm(ops, p, y, f"{name}.deep", **deep))
        y = conv_norm(ops, p, y, f"{name}.down")
        x = x + y if stride == 1 and inputs == outputs else y
    x = ops.relu6(conv_norm(ops, p, x, "last"))
    return ops.linear(ops.mean(x, (2, 3)), p["head.w"], p["head.b"])


def make_block(new: New, name: str, width: int) -> None:
    new.norm(f"{name}.norm1", width)
    new.linear(f"{name}.qkv", width, 3 * width)
    new.linear(f"{name}.out", width, width)
    new.norm(f"{name}.norm2", width)
    new.linear(f"{name}.up", width, 4 * width)
    new.linear(f"{name}.down", 4 * width, width)


def apply_block(ops: Any, p: Any, x: Any, name: str, heads: int, causal: bool) -> Any:
    """A transformer block: attention and two layers, each after a norm and beside a shortcut."""
    batch, words, width = x.shape
    y = ops.layer_norm(x, p[f"{name}.norm1.w"], p[f"{name}.norm1.b"])
    y = ops.linear(y, p[f"{name}.qkv.w"], p[f"{name}.qkv.b"])
    y = ops.permute(ops.reshape(y, (batch, words, 3, heads, width // heads)), (2, 0, 3, 1, 4))
    y = ops.attention(y[0], y[1], y[2], causal)
    y = ops.reshape(ops.permute(y, (0, 2, 1, 3)), (batch, words, width))
    x = x + ops.linear(y, p[f"{name}.out.w"], p[f"{name}.out.b"])
    y = ops.layer_norm(x, p[f"{name}.norm2.w"], p[f"{name}.norm2.b"])
    y = ops.gelu(ops.linear(y, p[f"{name}.up.w"], p[f"{name}.up.b"]))
    return x + ops.linear(y, p[f"{name}.down.w"], p[f"{name}.down.b"])


VIT_WIDTH, VIT_HEADS, VIT_DEPTH, VIT_PATCH = 192, 3, 6, 8


def make_vit(new: New) -> None:
    """32×32 pictures in 16 patches; six blocks, 192 wide."""
    new.conv("patch", 3, VIT_WIDTH, VIT_PATCH, bias=True)
    new("place", 1, 16, VIT_WIDTH)
    for i in range(VIT_DEPTH):
        make_block(new, str(i), VIT_WIDTH)
    new.norm("norm", VIT_WIDTH)
    new.linear("head", VIT_WIDTH, 10)


def apply_vit(ops: Any, p: Any, x: Any) -> Any:
    x = ops.conv(x, p["patch.w"], p["patch.b"], stride=VIT_PATCH)
    x = ops.permute(ops.reshape(x, (x.shape[0], VIT_WIDTH, 16)), (0, 2, 1)) + p["place"]
    for i in range(VIT_DEPTH):
        x = apply_block(ops, p, x, str(i), VIT_HEADS, causal=False)
    x = ops.mean(ops.layer_norm(x, p["norm.w"], p["norm.b"]), (1,))
    return ops.linear(x, p["head.w"], p["head.b"])


def make_gpt2block(new: New) -> None:
    make_block(new, "block", 768)


def apply_gpt2block(ops: Any, p: Any, x: Any) -> Any:
    return apply_block(ops, p, x, "block", 12, causal=True)


MODELS = {
    "mlp": Model(make_mlp, apply_mlp, (784,)),
    "cnn": Model(make_cnn, apply_cnn, (784,)),
    "resnet18": Model(make_resnet18, apply_resnet18, (3, 224, 224), 1000),
    "mobilenetv2": Model(make_mobilenetv2, apply_mobilenetv2, (3, 224, 224), 1000),
    "vit": Model(make_vit, apply_vit, (3, 32, 32)),
    "gpt2block": Model(make_gpt2block, apply_gpt2block, (128, 768), 0),
}


# ---- data ----

SETS = 4  # batches a contender goes round in; so no step sees what lies in the cache already


def parameters(name: str, seed: int) -> Parameters:
    new = New(seed)
    MODELS[name].make(new)
    return new.parameters


def batches(name: str, size: int, seed: int) -> list[tuple[Array, Array]]:
    """`SETS` batches of inputs and labels."""
    model, random = MODELS[name], np.random.default_rng([seed, size])
    return [
        (
            random.random((size, *model.sample), np.float32),
            random.integers(0, model.classes or 1, size).astype(np.int32),
        )
        for _ in range(SETS)
    ]


def operands(shape: tuple[int, int, int], form: str, seed: int) -> tuple[Array, Array]:
    """The two matrices of a matmul as they lie in memory."""
    rows, summed, columns = shape
    random = np.random.default_rng(seed)
    a = random.standard_normal((rows, summed), np.float32)
    b = random.standard_normal((summed, columns), np.float32)
    first, second = (
        np.ascontiguousarray(x.T if letter == "t" else x)
        for x, letter in zip((a, b), form, strict=True)
    )
    return first, second


def digits(random_seed: int, samples: int = 60_000) -> tuple[Array, Array]:
    """What is learned where MNIST is absent: ten blurred patterns under noise, in its form."""
    random = np.random.default_rng(random_seed)
    patterns = random.integers(0, 192, (10, 7, 7), np.uint8).repeat(4, 1).repeat(4, 2)
    labels = random.integers(0, 10, samples).astype(np.uint8)
    noise = np.frombuffer(random.bytes(samples * 784), np.uint8).reshape(samples, 28, 28)
    return patterns[labels] + (noise & 63), labels
