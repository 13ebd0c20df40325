"""Whole models, small, on made-up data: what the explorer is measured on. Also a command:

    python tests/models.py resnet50                              # a training step, twice
    tgx trace --level full -o resnet50 tests/models.py resnet50  # the same, recorded
    tgx trace -o mlp tests/models.py mlp --steps 60
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tinygrad import Context, Tensor, TinyJit, nn

Net = Callable[[Tensor], Tensor]


class MLP:
    """The guide's: 784 → 256 → 128 → 10."""

    def __init__(self) -> None:
        self.l1, self.l2, self.l3 = nn.Linear(784, 256), nn.Linear(256, 128), nn.Linear(128, 10)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l3(self.l2(self.l1(x.flatten(1)).relu()).relu())


class CNN:
    """The guide's, narrower: two convolutions with max-pooling, batch norm and dropout."""

    def __init__(self) -> None:
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm(8), nn.Linear(16 * 7 * 7, 10)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm(self.c1(x)).relu().max_pool2d()
        x = self.c2(x).relu().max_pool2d().flatten(1).dropout(0.2)
        return self.fc(x)


class Transformer:
    """One block: attention over what came before, and two layers."""

    def __init__(self) -> None:
        self.embed, self.ln = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 50)

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.ln(x)).chunk(3, dim=-1)
        x = x + self.out(q.scaled_dot_product_attention(k, v, is_causal=True))
        return self.head(x + self.down(self.up(self.ln(x)).gelu()))


class Block:
    """ResNet-18's: two 3×3 convolutions around which the input is carried."""

    widening = 1

    def __init__(self, ins: int, width: int, stride: int) -> None:
        self.c1 = nn.Conv2d(ins, width, 3, stride=stride, padding=1, bias=False)
        self.c2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.n1, self.n2 = nn.BatchNorm(width), nn.BatchNorm(width)
        self.short = shortcut(ins, width, stride)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.n2(self.c2(self.n1(self.c1(x)).relu()))
        return (out + x.sequential(self.short)).relu()


class Bottleneck:
    """ResNet-50's: 1×1 narrows, 3×3, 1×1 widens by four."""

    widening = 4

    def __init__(self, ins: int, width: int, stride: int) -> None:
        self.c1 = nn.Conv2d(ins, width, 1, bias=False)
        self.c2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.c3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.n1, self.n2, self.n3 = (nn.BatchNorm(n) for n in (width, width, 4 * width))
        self.short = shortcut(ins, 4 * width, stride)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.n1(self.c1(x)).relu()
        out = self.n2(self.c2(out)).relu()
        return (self.n3(self.c3(out)) + x.sequential(self.short)).relu()


def shortcut(ins: int, outs: int, stride: int) -> list[Net]:
    if stride == 1 and ins == outs:
        return []
    return [nn.Conv2d(ins, outs, 1, stride=stride, bias=False), nn.BatchNorm(outs)]


class ResNet:
    """torchvision's; ``small`` has the stem that is used for small pictures."""

    def __init__(
        self, block: type[Block] | type[Bottleneck], depths: tuple[int, ...], small: bool
    ) -> None:
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.stem = nn.Conv2d(3, 64, kernel, stride=stride, padding=padding, bias=False)
        self.small, self.norm = small, nn.BatchNorm(64)
        self.blocks: list[Net] = []
        ins = 64
        for width, depth, first in zip((64, 128, 256, 512), depths, (1, 2, 2, 2), strict=True):
            for place in range(depth):
                self.blocks.append(block(ins, width, first if place == 0 else 1))
                ins = width * block.widening
        self.fc = nn.Linear(ins, 10 if small else 1000)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        if not self.small:
            x = x.max_pool2d(3, stride=2, padding=1)
        return self.fc(x.sequential(self.blocks).mean((2, 3)))


def resnet18() -> ResNet:
    return ResNet(Block, (2, 2, 2, 2), small=True)


def resnet50() -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), small=False)


# **** running them ****


def adam(parameters: list[Tensor]) -> nn.optim.Optimizer:
    return nn.optim.Adam(parameters, lr=1e-3)


def sgd(parameters: list[Tensor]) -> nn.optim.Optimizer:
    """For ResNets: with momentum or Adam, tinygrad 0.14.0 finds "a cycle in the assign graph"."""
    return nn.optim.SGD(parameters, lr=1e-3)


def train(
    net: Net,
    x: Tensor,
    y: Tensor,
    steps: int = 3,
    jit: bool = False,
    make: Callable[[list[Tensor]], nn.optim.Optimizer] = adam,
) -> list[float]:
    """The losses of some training steps."""
    parameters = nn.state.get_parameters(net)
    optimizer = make(parameters)
    Tensor.realize(*parameters, *nn.state.get_parameters(optimizer))

    def step(x: Tensor, y: Tensor) -> Tensor:
        with Context(TRAINING=1):
            optimizer.zero_grad()
            scores = net(x)
            loss = scores.reshape(-1, scores.shape[-1]).sparse_categorical_crossentropy(y.flatten())
            loss.backward()
            return loss.realize(*optimizer.schedule_step())

    run = TinyJit(step) if jit else step
    return [run(x, y).item() for _ in range(steps)]


def predict(net: Net, x: Tensor, steps: int = 3, jit: bool = False) -> None:
    run = TinyJit(lambda x: net(x).realize()) if jit else lambda x: net(x).realize()
    for _ in range(steps):
        run(x)


def pictures(count: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    labels = Tensor([i % 10 for i in range(count)]).realize()
    return Tensor.rand(count, channels, size, size).realize(), labels


def sentences(count: int, length: int) -> tuple[Tensor, Tensor]:
    rows = [[(7 * i + j) % 50 for j in range(length)] for i in range(count)]
    tokens = Tensor(rows).realize()
    return tokens, ((tokens + 1) % 50).realize()


MODELS: dict[str, Callable[[int, bool], object]] = {
    "mlp": lambda steps, jit: train(MLP(), *pictures(32, 1, 28), steps, jit),
    "cnn": lambda steps, jit: train(CNN(), *pictures(4, 1, 28), steps, jit),
    "transformer": lambda steps, jit: train(Transformer(), *sentences(2, 8), steps, jit),
    "resnet18": lambda steps, jit: predict(resnet18(), pictures(1, 3, 32)[0], steps, jit),
    "resnet50": lambda steps, jit: train(resnet50(), *pictures(2, 3, 64), steps, jit, sgd),
}
"""Training steps of each, and ResNet-18's predictions: given how many, and whether jitted."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--jit", action="store_true")
    chosen = parser.parse_args()
    Tensor.manual_seed(0)
    print(MODELS[chosen.model](chosen.steps, chosen.jit))
