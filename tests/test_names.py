"""Names of kernels: what a reader would call them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tinygrad import Context, Tensor, nn

import tgx
from tgx.model import Trace

NULL = Context(DEV="NULL")


def names(trace: Trace) -> list[str]:
    return [k.name for k in trace.kernels if k.phase != "data"]


def test_the_guides_own_variables() -> None:
    """Multiplied and transposed as on paper, wherever the matrices lie in memory."""
    with NULL:
        X, w1, b1, w2 = (Tensor.empty(*s).contiguous().realize() for s in
                         ((8, 6), (6, 5), (5,), (5, 3)))
        with tgx.trace() as t:
            z1 = X @ w1 + b1
            a1 = z1.relu()
            z2 = a1 @ w2
            loss = z2.exp().sum()
            Tensor.realize(loss, *loss.gradient(w1, b1, w2))
    found = names(t.trace)
    assert "∂w1 = Xᵀ·∂z1" in found and "∂b1 = Σ ∂z1" in found, found
    assert any(n.startswith("∂w2 ") for n in found) and any(n.startswith("∂z1 ") for n in found)


def a_b(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y1 = a @ b
    return y1 @ c


def b_at(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y2 = b @ a.transpose()
    return y2 @ c


def a_bt(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y3 = a @ b.transpose()
    return y3 @ c


@pytest.mark.parametrize("forward", [a_b, b_at, a_bt])
def test_what_a_name_says_is_the_gradient(
    forward: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Its factors, multiplied and transposed as it says, are what the kernel computed."""
    random = np.random.default_rng(0)
    a, b, c = (Tensor(random.normal(size=(4, 4)).astype(np.float32)).realize() for _ in range(3))
    with tgx.trace() as t:
        (result,) = forward(a, b, c).exp().sum().gradient(b)
        result.realize()
    (name,) = [n for n in names(t.trace) if n.startswith("∂b = ")]
    upstream = forward(a, b, c).exp().numpy() @ c.numpy().T
    product = np.eye(4, dtype=np.float32)
    for factor in name.removeprefix("∂b = ").split("·"):
        value = upstream if factor[0] == "∂" else a.numpy()
        product = product @ (value.T if factor.endswith("ᵀ") else value)
    np.testing.assert_allclose(result.numpy(), product, rtol=1e-4, err_msg=name)


def test_a_name_leaves_nothing_out() -> None:
    """A sum of gradients that is scaled afterwards is not called that sum."""
    with NULL:
        x, b, w = (Tensor.empty(*s).contiguous().realize() for s in ((8, 6), (6,), (6, 5)))
        with tgx.trace() as t:
            shifted = x + b * 3
            loss = (shifted.relu() @ w).exp().sum()
            Tensor.realize(*loss.gradient(b, w, x))
    assert "∂b through add · mul" in names(t.trace), names(t.trace)


def test_layers_losses_and_optimizers() -> None:
    class Net:
        def __init__(self) -> None:
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm(4)
            self.hidden, self.out = nn.Linear(4 * 6 * 6, 8), nn.Linear(8, 3)

        def __call__(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x)).relu().flatten(1)
            return self.out(self.hidden(x).relu())

    with NULL, Context(TRAINING=1, NOOPT=1):
        net, labels = Net(), Tensor.empty(2, dtype="int").contiguous().realize()
        images = Tensor.empty(2, 1, 8, 8).contiguous().realize()
        optimizer = nn.optim.Adam(nn.state.get_parameters(net))
        Tensor.realize(*nn.state.get_state_dict(net).values(),
                       *nn.state.get_state_dict(optimizer).values())
        with tgx.trace() as t:
            loss = net(images).sparse_categorical_crossentropy(labels)
            loss.backward()
            Tensor.realize(loss, *optimizer.schedule_step())
    found = names(t.trace)
    for expected in (
        "conv + bias", "norm (mean)", "norm (var)", "norm: running_mean", "norm: running_var",
        "relu + hidden + bias", "relu + out + bias", "crossentropy (max)", "crossentropy (sum)",
        "crossentropy: loss", "∂out.bias = Σ ∂out", "∂out.weight = ∂outᵀ·relu(hidden)",
        "∂hidden = ∂out·out.weight ⊙ relu′", "∂out through crossentropy", "adam b1_t",
        "adam m: out.weight", "adam v: out.bias", "adam: out.weight",
    ):
        assert expected in found, (expected, "\n".join(found))
    assert not [n for n in found if "unknown" in n or len(n) > 60]
    stored = {b.name for b in t.trace.buffers}
    assert {"∂out", "∂hidden", "∂out.weight", "relu + hidden + bias"} <= stored
    assert not [n for n in stored if " = " in n or " through " in n]
