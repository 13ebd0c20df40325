"""Whole models: every kernel says where it comes from, every boundary why it stands. Slow."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from tinygrad import Context, Tensor, TinyJit, nn

import tgx
from tgx.model import Trace

pytestmark = pytest.mark.slow


class ResNet18:
    """torchvision's, for pictures of 32 x 32."""

    class Block:
        def __init__(self, ins: int, outs: int, stride: int) -> None:
            self.c1 = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, bias=False)
            self.c2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
            self.n1, self.n2 = nn.BatchNorm(outs), nn.BatchNorm(outs)
            self.short: list[Callable[[Tensor], Tensor]] = []
            if stride != 1 or ins != outs:
                self.short = [nn.Conv2d(ins, outs, 1, stride=stride, bias=False),
                              nn.BatchNorm(outs)]

        def __call__(self, x: Tensor) -> Tensor:
            out = self.n2(self.c2(self.n1(self.c1(x)).relu()))
            return (out + x.sequential(self.short)).relu()

    def __init__(self) -> None:
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm(64)
        widths = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2),
                  (256, 256, 1), (256, 512, 2), (512, 512, 1))  # fmt: skip
        self.blocks = [self.Block(*w) for w in widths]
        self.fc = nn.Linear(512, 10)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu().sequential(self.blocks)
        return self.fc(x.mean((2, 3)))


class Transformer:
    def __init__(self) -> None:
        self.embed, self.ln = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 50)

    def __call__(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.ln(x)).chunk(3, dim=-1)
        x = x + self.out(q.scaled_dot_product_attention(k, v, is_causal=True))
        return self.head(x + self.down(self.up(self.ln(x)).gelu()))


class CNN:
    def __init__(self) -> None:
        self.c1, self.c2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm(8), nn.Linear(16 * 7 * 7, 10)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm(self.c1(x)).relu().max_pool2d()
        x = self.c2(x).relu().max_pool2d().flatten(1).dropout(0.2)
        return self.fc(x)


def resnet18(jit: bool) -> None:
    net = ResNet18()
    run = TinyJit(lambda x: net(x).realize()) if jit else lambda x: net(x).realize()
    x = Tensor.rand(1, 3, 32, 32).realize()
    for _ in range(3):
        run(x)


def training(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, jit: bool) -> None:
    optimizer = nn.optim.Adam(nn.state.get_parameters(net), lr=1e-3)

    def step(x: Tensor, y: Tensor) -> Tensor:
        with Context(TRAINING=1):
            optimizer.zero_grad()
            scores = net(x)
            loss = scores.reshape(-1, scores.shape[-1]).sparse_categorical_crossentropy(y.flatten())
            loss.backward()
            optimizer.step()
            return loss.realize()

    run = TinyJit(step) if jit else step
    for _ in range(3):
        run(x, y)


def transformer(jit: bool) -> None:
    tokens = Tensor([[(7 * i + j) % 50 for j in range(8)] for i in range(2)]).realize()
    training(Transformer(), tokens, ((tokens + 1) % 50).realize(), jit)


def cnn(jit: bool) -> None:
    labels = Tensor([0, 1, 2, 3]).realize()
    training(CNN(), Tensor.rand(4, 1, 28, 28).realize(), labels, jit)


def devices() -> list[str]:
    return ["TGX", *(["CPU"] if shutil.which("clang") else [])]


def check(trace: Trace) -> None:
    assert trace.environment.missing == ("rewrites were not recorded: --level full",)
    own = next(f.id for f in trace.files if f.path.endswith("test_models.py"))
    for k in trace.kernels:
        assert k.lines and all(file == own for file, _ in k.lines), k
        assert k.ops and "unknown" not in k.ops, k
        assert k.forward or k.phase != "backward", k
        timing = trace.timing(k.id)
        assert timing is not None and timing.calls >= 1, k
    stored = {(k.id, b) for k in trace.kernels for b in k.writes}
    assert {(b.source, b.buffer) for b in trace.boundaries} == stored
    for b in trace.boundaries:
        assert b.rule and "this value" not in b.because, b


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("model", [cnn, transformer, resnet18])
@pytest.mark.parametrize("device", devices())
def test_nothing_is_unknown(device: str, model: Callable[[bool], None], jit: bool) -> None:
    with Context(DEV=device), tgx.trace() as t:
        model(jit)
    check(t.trace)
