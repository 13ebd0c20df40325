"""The backward walk: complete, true to `.grad`, and the same as micrograd's and PyTorch's."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinygrad.mixin.gradient as tg_gradient
from conftest import ROOT
from tinygrad import Tensor, Variable, nn
from tinygrad.helpers import Context

import tgx
from tgx import cli, codec, walking
from tgx.adapter.gradients import Backward as Session
from tgx.errors import BadInput
from tgx.model import Trace
from tgx.passes import walks
from tgx.views import backward
from tgx.views.backward_picture import picture
from tgx.views.picture import LIMIT


def expression(text: str, *bindings: str) -> walking.Backward:
    return walking.of_expression(text, bindings)


def gradients(told: walking.Backward, walk: int = 0) -> dict[str, float]:
    """The gradients of named parameters, as numbers."""
    w = told.walks[walk]
    return {t.name: w.value(t.gradient).sample[0] for t in w.targets if t.parameter}


def not_run(loss: Callable[[], Tensor]) -> walking.Backward:
    """The walk alone: no gradient is computed, so there are no kernels."""
    session = Session().start()
    try:
        result = loss()
        result.backward()
    finally:
        session.stop()
    return walking.Backward(session.trace())


def finding(told: walking.Backward, kind: str) -> walks.Finding:
    found = [f for w in told.walks for f in walks.findings(told.trace, w)]
    return next(f for f in found if f.kind == kind)


# **** the guide's examples ****

GUIDE = [
    ("(x*x + x).sum()", "x=2.0", 6.0, {"x": 5.0}),
    ("(x*w + b)**2", "x=2.0 w=3.0 b=1.0", 49.0, {"w": 28.0, "x": 42.0, "b": 14.0}),
    ("(a + a)**2", "a=2.0", 16.0, {"a": 16.0}),
    ("tanh(w*x + b)", "x=2.0 w=-3.0 b=1.0", -0.999909,
     {"x": -5.447e-4, "w": 3.632e-4, "b": 1.816e-4}),
    ("(x**2 + 3*x + 2)*x.tanh()", "x=2.0", 11.568331, {"x": 7.596003}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "values", "loss", "expected"), GUIDE)
def test_the_guides_examples(
    text: str, values: str, loss: float, expected: dict[str, float]
) -> None:
    told = expression(text, *values.split())
    (walk,) = told.walks
    assert walk.value(walk.root).sample[0] == pytest.approx(loss, rel=1e-6)
    found = gradients(told)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4 if value < 0.1 else 1e-6)
    error, done, undone = walks.worst(told.trace, walk)
    assert error < 1e-6 and done > 3 and undone == 0
    assert any(s.kernels for s in told.steps)


def test_a_value_used_twice_has_a_running_total() -> None:
    told = expression("x*x + x", "x=2.0")
    (walk,) = told.walks
    rows = [(s.op, walk.value(c.node).sample[0], walk.value(c.total).sample[0])
            for s in told.steps for c in s.contributions
            if walks.name(told.trace, walk, c.target) == "x"]  # fmt: skip
    assert rows == [("ADD", 1.0, 1.0), ("MUL", 2.0, 3.0), ("MUL", 2.0, 5.0)]
    steps = json.loads(told.render("json"))["walks"][0]["steps"]
    assert [s["op"] for s in steps] == ["ADD", "MUL"]
    assert steps[1]["total"] == [3.0, 5.0] and steps[1]["upstream"] == 1.0
    assert steps[1]["formula"] == "a · b"
    assert [c["formula"] for c in steps[1]["contributions"]] == ["∂(a·b)/∂a = b", "∂(a·b)/∂b = a"]
    assert steps[1]["finite_difference"][0] == pytest.approx([2.0])
    assert "UPat(Ops.MUL" in steps[1]["rule"] and steps[1]["kernel"]


# **** micrograd ****

SCALARS = {
    "a*b + a": {"a": 2.0, "b": -3.0},
    "(a*b + b**3) * (a + b)": {"a": 1.5, "b": 0.5},
    "relu(a*b + 1) + relu(a)": {"a": -2.0, "b": -0.7},
    "exp(a) * tanh(b) / (a + 3)": {"a": 0.3, "b": -1.2},
    "log(a*a + 1) - a": {"a": 0.8},
    "(a - b) * (a - b) + sin(a*b)": {"a": 0.4, "b": 1.3},
    "tanh(a*b + c) * tanh(c)": {"a": 0.5, "b": 0.9, "c": -0.3},
}


@pytest.mark.parametrize("text", SCALARS)
def test_the_steps_agree_with_micrograd(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lesson 3's engine does the same expressions: each of its numbers has the walk's gradient."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    engine = __import__("03_micrograd").Value
    inputs = {name: engine(value) for name, value in SCALARS[text].items()}
    methods = {name: (lambda v, name=name: getattr(v, name)())
               for name in ("relu", "tanh", "exp", "log", "sin")}  # fmt: skip
    nodes: dict[str, list[Any]] = {}

    def value(node: Any) -> Any:
        """The expression in micrograd, every part of it kept by its text."""
        import ast

        if isinstance(node, ast.Constant):
            return engine(float(node.value))
        if isinstance(node, ast.Name):
            return inputs[node.id]
        if isinstance(node, ast.Call):
            made = methods[node.func.id](value(node.args[0]))  # type: ignore[attr-defined]
        elif isinstance(node.op, ast.Pow):
            made = value(node.left) ** node.right.value
        else:
            left, right = value(node.left), value(node.right)
            made = {ast.Add: lambda: left + right, ast.Sub: lambda: left - right,
                    ast.Mult: lambda: left * right,
                    ast.Div: lambda: left / right}[type(node.op)]()  # fmt: skip
        nodes.setdefault(ast.get_source_segment(text, node) or text, []).append(made)
        return made

    import ast

    root = value(ast.parse(text, mode="eval").body)
    root.backward()
    told = expression(text, *(f"{k}={v}" for k, v in SCALARS[text].items()))
    (walk,) = told.walks
    assert walk.value(walk.root).sample[0] == pytest.approx(root.data, rel=1e-6)
    for name, number in gradients(told).items():
        assert number == pytest.approx(inputs[name].grad, rel=1e-6, abs=1e-6)
    compared = 0
    for s in told.steps:
        label = walks.name(told.trace, walk, s.node)
        if label in nodes:
            compared += 1
            # what is written twice is one node of tinygrad's, and gets both gradients
            theirs = sum(node.grad for node in nodes[label])
            assert walk.value(s.node).sample[0] == pytest.approx(nodes[label][0].data, rel=1e-6)
            upstream = walk.value(s.upstream).sample[0]
            assert upstream == pytest.approx(theirs, rel=1e-6, abs=1e-6), label
    assert compared >= len(nodes) - text.count("/") * 2


# **** whole models ****


class Layers:
    def __init__(self) -> None:
        self.l1, self.l2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x).relu())


class Convolutional:
    """The guide's CNN, small: convolution, batch norm, pooling, dropout, cross-entropy."""

    def __init__(self) -> None:
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm(4)
        self.conv2, self.fc = nn.Conv2d(4, 6, 3), nn.Linear(6 * 2 * 2, 5)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu().max_pool2d()
        return self.fc(self.conv2(x).relu().avg_pool2d(1).flatten(1).dropout(0.3))


def neuron() -> tuple[Any, Callable[[], Tensor]]:
    w, b = Tensor([[0.8], [0.3]]).realize(), Tensor([-1.0]).realize()
    x, y = Tensor([[3.5, 4.5], [0.5, 2.0]]).realize(), Tensor([[1.0], [0.0]])
    return {"w": w, "b": b}, lambda: (x @ w + b).sigmoid().binary_crossentropy(y)


def mlp() -> tuple[Any, Callable[[], Tensor]]:
    Tensor.manual_seed(3)
    model, x, y = Layers(), Tensor.randn(5, 6).realize(), Tensor([0, 1, 2, 3, 0])
    Tensor.realize(*nn.state.get_parameters(model))
    return nn.state.get_state_dict(model), lambda: model(x).cross_entropy(y)


def cnn() -> tuple[Any, Callable[[], Tensor]]:
    Tensor.manual_seed(5)
    model, x, y = Convolutional(), Tensor.randn(3, 1, 8, 8).realize(), Tensor([0, 4, 2])
    Tensor.realize(*nn.state.get_state_dict(model).values())
    return nn.state.get_state_dict(model), lambda: model(x).sparse_categorical_crossentropy(y)


MODELS = {"neuron": neuron, "mlp": mlp, "cnn": cnn}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameters_gradient_is_the_sum_of_rows(name: str) -> None:
    state, loss = MODELS[name]()
    weights = {k: t for k, t in state.items() if t.is_floating_point() and "running" not in k}
    with Context(TRAINING=1):
        told = tgx.backward(loss)
    (walk,) = (w for w in told.walks if w.parent < 0)
    steps = walks.steps(told.trace, walk.id)
    by_size = {t.node: t for t in walk.targets if t.parameter}
    found = 0
    for key, tensor in weights.items():
        target = next(t for t in by_size.values()
                      if t.name.replace("['", ".").replace("']", "").endswith(key))  # fmt: skip
        rows = [c for s in steps for c in s.contributions if c.target == target.node]
        assert rows and rows[-1].total == target.gradient, key
        device = tensor.grad.numpy()
        whole = walk.value(target.gradient)
        total = sum((np.array(walk.value(c.node).sample) for c in rows), np.zeros(()))
        scale = float(np.abs(device).max()) + 1e-6
        shown = np.array(whole.sample)
        assert np.allclose(total, shown, rtol=1e-5, atol=1e-6 * scale), "rows add up to the total"
        assert whole.norm == pytest.approx(float(np.linalg.norm(device)), rel=2e-5, abs=1e-6)
        assert shown[0] == pytest.approx(float(device.reshape(-1)[0]), rel=2e-5, abs=1e-6)
        found += 1
        assert target.check.kink or target.check.error < 1e-5, (key, target.check)
    assert found == len(weights) >= 2
    error, done, undone = walks.worst(told.trace, walk)
    assert error < 1e-5 and not undone and done > len(steps)
    bad = [f for f in walks.findings(told.trace, walk) if f.kind not in ("kink", "zero")]
    assert bad == []


TEXTBOOK = {
    "mlp": {"dX = (softmax(X) − Y)/N": 1, "dW = dZᵀ·X": 2, "dX = dZ·W": 2, "dX = dZ where X > 0, "
            "else 0": 1, "db = Σ dZ over the batch": 2},
    "cnn": {"dγ = Σ dZ⊙X̂": 1, "dβ = Σ dZ": 1, "db = Σ dZ over images, places": 2,
            "dW = X ⋆ dZ (correlation)": 2,
            "dX = dZ at each window's largest": 1,
            "dX = dZ·1.429 where kept, else 0": 1, "dX = (softmax(X) − Y)/N": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTBOOK)
def test_operations_have_their_textbook_form(name: str) -> None:
    _, loss = MODELS[name]()
    with Context(TRAINING=1):
        told = not_run(loss)
    flows = [f for o in told.trace.operations for f in o.flows if f.formula]
    for formula, count in TEXTBOOK[name].items():
        own = [f for f in flows if f.formula == formula]
        assert len(own) >= count, (formula, sorted({f.formula for f in flows}))
        assert all(0 <= f.error < 1e-5 for f in own), own


def test_the_gradients_agree_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state, loss = mlp()
    told = not_run(loss)
    (walk,) = told.walks
    w = {k: torch.tensor(t.numpy(), requires_grad=True) for k, t in state.items()}
    closure = dict(zip(loss.__code__.co_freevars, loss.__closure__ or (), strict=True))
    x = torch.tensor(closure["x"].cell_contents.numpy())
    y = torch.tensor(closure["y"].cell_contents.numpy()).long()
    h = torch.relu(x @ w["l1.weight"].T + w["l1.bias"])
    z = h @ w["l2.weight"].T + w["l2.bias"]
    h.retain_grad(), z.retain_grad()
    theirs = torch.nn.functional.cross_entropy(z, y)
    theirs.backward()
    assert walk.value(walk.root).sample[0] == pytest.approx(theirs.item(), rel=1e-6)
    for t in walk.targets:
        key = next((k for k in w if t.name.endswith(k)), "")
        if t.parameter and key:
            own, peer = walk.value(t.gradient), w[key].grad.numpy()
            assert own.norm == pytest.approx(float(np.linalg.norm(peer)), rel=1e-6)
            assert max(abs(own.low - peer.min()), abs(own.high - peer.max())) < 1e-6
    upstream = {o.name: walk.value(o.upstream) for o in told.trace.operations}
    for name, tensor in (("self.l2", z), ("relu", h), ("l2", z)):
        if name in upstream:
            peer = tensor.grad.numpy()
            assert upstream[name].norm == pytest.approx(float(np.linalg.norm(peer)), rel=1e-6)


def test_the_cnns_gradients_agree_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functional = torch.nn.functional
    Tensor.manual_seed(9)
    conv, norm, fc = nn.Conv2d(2, 3, 3), nn.BatchNorm(3), nn.Linear(3 * 2 * 2, 4)
    x, y = Tensor.randn(4, 2, 6, 6).realize(), Tensor([0, 1, 2, 3])
    state = {"conv.weight": conv.weight, "conv.bias": conv.bias, "norm.weight": norm.weight,
             "norm.bias": norm.bias, "fc.weight": fc.weight, "fc.bias": fc.bias}  # fmt: skip
    Tensor.realize(*state.values())
    w = {k: torch.tensor(t.numpy(), requires_grad=True) for k, t in state.items()}
    z = functional.conv2d(torch.tensor(x.numpy()), w["conv.weight"], w["conv.bias"])
    z = functional.batch_norm(z, None, None, w["norm.weight"], w["norm.bias"], training=True)
    z = functional.max_pool2d(z.relu(), 2).flatten(1) @ w["fc.weight"].T + w["fc.bias"]
    functional.cross_entropy(z, torch.tensor(y.numpy()).long()).backward()
    with Context(TRAINING=1):
        told = not_run(
            lambda: fc(norm(conv(x)).relu().max_pool2d().flatten(1)).cross_entropy(y)
        )
    (walk,) = told.walks
    for key, theirs in w.items():
        target = next(t for t in walk.targets if t.name in (key, f"state['{key}']"))
        own, peer = walk.value(target.gradient), theirs.grad.numpy()
        assert own.norm == pytest.approx(float(np.linalg.norm(peer)), rel=1e-5, abs=1e-6), key
        assert max(abs(own.low - peer.min()), abs(own.high - peer.max())) < 1e-6, key
        assert own.sample[0] == pytest.approx(float(peer.reshape(-1)[0]), abs=1e-6), key


def test_nothing_of_the_users_changes() -> None:
    def grads() -> list[list[float]]:
        state, loss = mlp()
        loss().backward()
        return [t.grad.flatten().tolist() for t in state.values()]

    plain = grads()
    state, loss = mlp()
    tgx.backward(loss)
    assert [t.grad.flatten().tolist() for t in state.values()] == plain


def test_tinygrad_is_put_back() -> None:
    def parts() -> dict[str, object]:
        return {k: v for k, v in vars(tg_gradient).items() if not k.startswith("__")}

    before = parts()
    expression("x*x", "x=2.0")
    with pytest.raises(KeyError):
        tgx.backward(lambda: {}["nothing"])
    assert parts() == before


# **** what goes wrong ****


def test_the_guides_softmax_then_log() -> None:
    """Scores 104 apart: softmax gives an exact 0, and its logarithm spoils every gradient."""
    told = expression("-(softmax(x).log()*y).mean()", "x=[[0.0, 104.5]]", "y=[[0.0, 1.0]]")
    (walk,) = told.walks
    first = finding(told, "inf")
    assert "log_softmax" in first.text and "exp(−104.5)" in first.text
    assert "begins in the forward" in first.text
    assert told.trace.graph(walk.graph).ops[first.node] == "LOG2"
    nan = finding(told, "nan")
    assert "0 · ∞" in nan.text
    assert walk.value(walk.targets[0].gradient).nans == 2
    fine = expression("-(log_softmax(x)*y).mean()", "x=[[0.0, 104.5]]", "y=[[0.0, 1.0]]")
    kinds = {f.kind for f in walks.findings(fine.trace, fine.walks[0])}
    assert kinds <= {"zero"}, "a sure and right answer has no gradient, and no NaN"


def deep(count: int, gain: float, activation: str) -> Callable[[], Tensor]:
    rng = np.random.default_rng(1)
    x = Tensor(rng.standard_normal((4, 8)).astype(np.float32)).realize()
    ws = [Tensor((rng.standard_normal((8, 8)) * gain / math.sqrt(8)).astype(np.float32)).realize()
          for _ in range(count)]  # fmt: skip

    def loss() -> Tensor:
        h = x
        for w in ws:
            h = getattr(h @ w, activation)()
        return h.square().mean()

    return loss


def test_what_nobody_asks_for_is_no_finding() -> None:
    """The rule of a power also makes the gradient of the exponent: NaN for a negative base."""
    told = expression("x**3 + x*0.0", "x=-2.0")
    assert [f.kind for f in walks.findings(told.trace, told.walks[0])] == []
    assert gradients(told)["x"] == 12.0


def test_vanishing_and_exploding_gradients_are_pointed_at() -> None:
    vanishing = not_run(deep(10, 1.0, "sigmoid"))
    told = finding(vanishing, "vanishing")
    assert "9 layers further back" in told.text and "sigmoid" in told.text
    assert "test_backward.py:" in told.place and told.step >= 0
    exploding = not_run(deep(8, 6.0, "relu"))
    told = finding(exploding, "exploding")
    assert "7 layers further back" in told.text and "clipping" in told.text
    for told in (vanishing, exploding):
        layers = walks.layers(told.trace, told.walks[0])
        assert len(layers) in (8, 10), "a line in a loop is an operation each time"
    calm = not_run(deep(8, 1.4, "relu"))
    assert not [f for f in walks.findings(calm.trace, calm.walks[0]) if f.kind != "kink"]


def test_a_deep_networks_picture_is_bounded() -> None:
    told = not_run(deep(34, 1.4, "relu"))
    assert len(walks.operations(told.trace, told.walks[0].id)) > 60
    drawn = picture(told.trace)
    assert 30 < len(drawn.boxes) <= LIMIT
    assert any("…" in b.title or " + " in b.title for b in drawn.boxes), "collapsed by layer"
    assert any("in the middle are drawn as one" in n for n in drawn.notes)


def test_a_dead_relu_is_named() -> None:
    told = expression("(relu(x*w - 100)).sum()", "x=[1.0, 2.0]", "w=[0.5, 0.3]")
    assert "exactly 0" in finding(told, "zero").text


def test_a_kink_is_told_and_not_called_an_error() -> None:
    told = expression("relu(x)", "x=0.0")
    assert "kink" in finding(told, "kink").text
    assert not [f for f in walks.findings(told.trace, told.walks[0]) if f.kind == "unequal"]


def test_where_branches_stop() -> None:
    told = expression("(x.detach()*x + relu(x)*3).sum()", "x=[2.0, -1.0]")
    (walk,) = told.walks
    stops = {c.stops for s in told.steps for c in s.contributions if c.stops}
    assert any("detach()" in s for s in stops) and any("condition" in s for s in stops)
    assert any("constant" in s for s in stops)
    (target,) = (t for t in walk.targets if t.parameter)
    assert walk.value(target.gradient).sample == (5.0, -1.0)
    assert target.check.error < 1e-6, "the difference, too, holds what is detached"


# **** kernels ****


def test_gradients_and_kernels_know_each_other() -> None:
    _, loss = mlp()
    told = tgx.backward(loss)
    (walk,) = told.walks
    computing = {"MUL", "REDUCE", "WHERE"}
    graph = told.trace.graph(walk.graph)
    for s in told.steps:
        works = any(graph.ops[n] in computing and walk.value(n).size > 1 for n in s.made)
        if works and s.tensor_op in ("linear", "relu"):
            assert s.kernels, (s.op, s.tensor_op)
    parts = walks.kernel_parts(told.trace, walk)
    assert {k for s in told.steps for k in s.kernels} <= {p.kernel for p in parts}
    for p in parts:
        for step in p.steps:
            assert p.kernel in next(s for s in told.steps if s.id == step).kernels
        if p.steps:
            assert told.trace.kernel(p.kernel).phase in ("backward", "optimizer")
    again = {graph.tensor_ops[n] for p in parts for n in p.again}
    assert again, "some forward values are computed again rather than kept"
    assert any("l1.weight" in r or "l2.weight" in r for p in parts for r in p.reads)


# **** second order, functions, jit ****


def test_gradients_of_gradients() -> None:
    x = Tensor([2.0]).realize()

    def loss() -> None:
        y = (x * x * x).sum()
        (dx,) = y.gradient(x)
        (ddx,) = dx.sum().gradient(x)
        ddx.realize()

    told = tgx.backward(loss)
    first, second = told.walks
    assert (first.order, second.order) == (1, 2)
    assert [w.value(w.targets[0].gradient).sample[0] for w in told.walks] == [12.0, 12.0]
    assert second.targets[0].check.difference[0] == pytest.approx(12.0, rel=1e-6)
    assert any(o.name.startswith("∂") for o in walks.operations(told.trace, second.id))
    assert "a gradient of gradients" in str(told)
    assert {k.kernel for k in second.kernels}


def test_a_backward_inside_a_jit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jitted.py"
    path.write_text(
        "from tinygrad import Tensor, TinyJit\n"
        "w = Tensor([1.0, 2.0]).realize()\n"
        "@TinyJit\n"
        "def step(x):\n"
        "    w.grad = None\n"
        "    loss = (w * x).square().sum()\n"
        "    loss.backward()\n"
        "    return loss.realize(w.grad)\n"
        "for i in range(5):\n"
        "    step(Tensor([3.0, 4.0 + i]).realize())\n"
        "    print('ran', i)\n"
    )
    trace = traced(path, tmp_path, "-o", "kept")
    eager, captured = trace.walks
    assert (eager.jit, captured.jit) == ("", "step")
    assert captured.kernels, "its kernels are those of the captured function"
    kernels = {k.kernel for k in captured.kernels}
    assert all(trace.schedule(trace.kernel(k).schedule).jit == "step" for k in kernels)
    (w,) = (t for t in eager.targets if t.name == "w")
    assert eager.value(w.gradient).sample == (18.0, 64.0)


def traced(path: Path, folder: Path, *more: str, after: tuple[str, ...] = ()) -> Trace:
    """`tgx backward SCRIPT` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "tgx", "backward", *more, str(path), *after], cwd=folder, text=True,
        capture_output=True, timeout=240, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    traced.seconds = (  # type: ignore[attr-defined]
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )
    traced.output = done.stdout  # type: ignore[attr-defined]
    return codec.read(folder / "kept")


def test_a_function_has_a_walk_of_its_own() -> None:
    from tinygrad.function import function

    @function
    def waves(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sin() + a

    a, b = Tensor([0.5, 1.0]).realize(), Tensor([2.0, 3.0]).realize()
    told = tgx.backward(lambda: waves(a, b).sum())
    inner, outer = sorted(told.walks, key=lambda w: w.parent)[::-1]
    assert outer.parent == -1 and inner.parent == outer.id and "waves" in inner.name
    assert "FUNCTION" in {s.op for s in walks.steps(told.trace, outer.id)}
    assert "SIN" in {s.op for s in walks.steps(told.trace, inner.id)}
    for t in outer.targets:
        if t.parameter:
            assert t.check.error < 1e-5
    value = {t.name: outer.value(t.gradient).sample for t in outer.targets if t.parameter}
    assert value["a"] == pytest.approx([2 * math.cos(1) + 1, 3 * math.cos(3) + 1], rel=1e-5)


# **** the guide's Project 5 ****


@pytest.mark.parametrize("text", ["x*x", "x*x + x"])
def test_the_walkthrough_is_true(text: str) -> None:
    """Every file and line it names is there, in the tinygrad that is installed, and says that."""
    import tinygrad

    shown = expression(text, "x=2.0").render("markdown")
    home = Path(tinygrad.__file__).parents[1]
    places = re.findall(r"`(tinygrad/[\w/]+\.py):(\d+)`", shown)
    assert {file for file, _ in places} == {
        "tinygrad/tensor.py", "tinygrad/mixin/op.py", "tinygrad/mixin/gradient.py"}  # fmt: skip
    assert len(places) == 10 + text.count("*") + text.count("+")
    quoted = re.findall(r"`(tinygrad/[\w/]+\.py):(\d+)`.*?\n\n(?: {4,})(.+?)\n", shown)
    assert len(quoted) == len(places), "each with its line"
    for file, number, line in quoted:
        live = (home / file).read_text().splitlines()[int(number) - 1]
        assert live.strip().rstrip(",") == line, (file, number)
    result = {"x*x": "4", "x*x + x": "5"}[text]
    assert f"| `x` | 2 | {result} | {result} | ✓" in shown
    assert f"### 1. {'ADD' if '+' in text else 'MUL'}: `{text}`" in shown
    assert "- ∂\\(a·b\\)/∂a = b = 2, so `x` gets **2**" in shown


# **** in Python ****


def test_it_draws_itself_in_a_notebook() -> None:
    told = expression("x*x", "x=3.0")
    frame = told._repr_html_()
    assert frame.startswith("<iframe sandbox=") and "&lt;script" in frame and "<script" not in frame
    try:
        assert told._repr_svg_().startswith("<svg")
    except tgx.TgxError as error:
        assert "graphviz" in str(error)
    assert str(told).startswith("x*x = 9: 1 step")


def test_narrow_types_are_held_to_what_they_can() -> None:
    told = expression("(x.cast('half')*w + x.cast('bfloat16')).cast('float').sum()",
                      "x=[1.0, 2.5, 3.3]", "w=[0.5, 0.3, 0.1]")  # fmt: skip
    (walk,) = told.walks
    assert [f.kind for f in walks.findings(told.trace, walk)] == []
    assert all(0 <= t.check.error < 0.02 for t in walk.targets if t.parameter)
    assert "≠" not in str(told)


def test_a_batch_picked_by_a_variable() -> None:
    """As in examples/mnist.py: the place of a batch is a Variable, bound anew each step."""
    data, w = Tensor.arange(12).float().reshape(6, 2).realize(), Tensor([3.0, 1.0]).realize()
    at = Variable("at", 0, 4).bind(2)
    told = tgx.backward(lambda: (data[at : at + 2] * w).sum())
    target = next(t for t in told.walks[0].targets if t.name == "w")
    assert told.walks[0].value(target.gradient).sample == (10.0, 12.0) == tuple(w.grad.tolist())
    assert target.check.error < 1e-6



def test_a_loss_that_stands_already() -> None:
    x = Tensor([2.0]).realize()
    loss = (x * x).sum()
    told = tgx.backward(loss)
    assert x.grad.tolist() == [4.0]
    assert [s.tensor_op for s in told.steps][-1] == "mul", "by tinygrad's own name"
    assert "MUL" in str(told)


def test_it_is_saved_in_the_form_its_name_says(tmp_path: Path) -> None:
    told = expression("x*x", "x=3.0")
    for name in ("a.md", "a.json", "a.dot", "a.txt", "a.html"):
        assert told.save(tmp_path / name).stat().st_size > 200
    assert codec.read(told.save(tmp_path / "kept")) == told.trace
    with pytest.raises(BadInput, match="a name that ends in"):
        told.save(tmp_path / "a.exe")


def test_a_trace_without_a_walk() -> None:
    assert "tgx backward SCRIPT" in backward.render(Trace())
    for form in ("markdown", "dot", "html", "json"):
        assert backward.render(Trace(), form)
    with pytest.raises(BadInput, match="form poem"):
        backward.render(Trace(), "poem")


def test_a_function_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some_losses.py").write_text(
        "from tinygrad import Tensor\n"
        "def loss():\n"
        "    w = Tensor([3.0]).realize()\n"
        "    h = w * w\n"
        "    return h.sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ["some_losses:loss", "--json", "--dot", "a.dot", "--markdown", "a.md"]
    assert cli.main(["backward", *arguments]) == 0
    (walk,) = json.loads(capsys.readouterr().out)["walks"]
    lines = [(s["op"], s["name"], s["line"]) for s in walk["steps"]]
    assert any(op == "MUL" and name == "h" and line.endswith("some_losses.py:4")
               for op, name, line in lines)  # fmt: skip
    assert {t["name"]: t["gradient"] for t in walk["targets"]}["w"] == 6.0
    assert "∂L/∂w" in (tmp_path / "a.dot").read_text() and "`h`" in (tmp_path / "a.md").read_text()
    assert cli.main(["backward", "x*x", "x=2.0", "--svg", "no/such/folder/a.svg"]) == 2
    assert "a file to write" in capsys.readouterr().err


def test_any_device() -> None:
    """tinygrad's own Python device: the same steps and numbers as on TGX."""
    code = ("import json, sys; from tgx import walking; "
            "print(walking.of_expression('x*x + x', ['x=2.0']).render('json'))")  # fmt: skip
    environment = {**os.environ, "DEV": "PYTHON", "PYTHONPATH": str(ROOT)}
    environment.pop("DEVICE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, check=True,
                          capture_output=True, timeout=120)  # fmt: skip
    theirs = json.loads(done.stdout)
    ours = json.loads(expression("x*x + x", "x=2.0").render("json"))
    assert theirs["device"] == "PYTHON"
    for own, peer in zip(ours["walks"][0]["steps"], theirs["walks"][0]["steps"], strict=True):
        assert {k: own[k] for k in ("op", "rule", "upstream", "total", "contributions")} == {
            k: peer[k] for k in ("op", "rule", "upstream", "total", "contributions")}
    assert any(s["kernel"] for s in theirs["walks"][0]["steps"])


# **** bad input ****

WRONG = [
    (["x*x", "x=[1.0, 2.0]"], "the shape (2,); a loss is one number", "add .sum() or .mean()"),
    (["x*x", "x=2"], "only whole numbers were given (x)", "x=2.0"),
    (["(x > 1).sum()", "x=2.0"], "whole numbers (int), which has no gradient", ".cast('float')"),
    (["x*y", "x=2.0"], "y has no value", "y=2.0"),
    (["x*2", "x=2.0", "y=1.0"], "y does not occur in x*2", "values for its names"),
    (["3 + 4"], "3 + 4 is no tensor: it has no name with a value", "x=2.0"),
    (["(x, 3)", "x=2.0"], "not a tensor", "x=2.0"),
    (["3.0 + 4*(x.detach()).sum()", "x=2.0"], "no gradient reaches x", "detach()"),
    (["x +", "x=2.0"], "is neither a file nor an expression", "x=2.0"),
    (["x.frobnicate()", "x=2.0"], "frobnicate is not among the tensor methods", "write a script"),
    (["__import__('os').system('echo no')"], "is no tensor", "x=2.0"),
    (["x * __import__('os').getpid()", "x=2.0"], "does not run this", "methods of tensors"),
    (["(lambda: x)()", "x=2.0"], "does not run this", "numbers, names"),
    (["x.__class__", "x=2.0"], "does not run this", "numbers, names"),
    (["[x for x in [1]]", "x=2.0"], "does not run this", "numbers, names"),
    (["x.sum(**{'axis': 0})", "x=2.0"], "does not run this", "numbers, names"),
    (["x*2", "x=abc"], "x=abc is not a value", "a list of numbers"),
    (["x*2", "x=__import__('os')"], "is not a value", "a list of numbers"),
    (["x*2", "x=[[1.0], 2.0]"], "is not a value", "a list of numbers"),
    (["x*2", "x:2.0"], "'x:2.0' is not NAME=VALUE", "x=2.0"),
    (["x @ w", "x=[1.0, 2.0]", "w=[1.0, 2.0, 3.0]"], "x @ w:", "shapes and types that fit"),
    (["x*9.0**9**9", "x=1.0"], "math range error", "x=2.0"),
    (["no.such.module:f"], "there is no module no", "has to work here"),
    (["json:nothing"], "json has no function nothing", "module:function"),
    (["json:dumps"], "", ""),
    (["missing.py"], "cannot read missing.py", ""),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said", "advice"), WRONG)
def test_bad_input_is_a_sentence(
    arguments: list[str], said: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["backward", *arguments])
    except SystemExit as stop:
        assert said in str(stop.code)
        return
    except TypeError:
        assert arguments == ["json:dumps"]  # the user's own function, which fails in its own way
        return
    errors = capsys.readouterr().err
    assert code == 2 and errors.startswith("tgx backward: ")
    assert said in errors and advice in errors
    assert "Traceback" not in errors


SCRIPTS = {
    "a script without a backward()": ("print('hello')\n",
                                      "ended without a backward() or gradient() call"),
    "a loss of many numbers": ("x = Tensor([1.0, 2.0])\n(x * x).backward()\n",
                               "s.py:3: the loss is not one number: (x * x).backward()"),
    "a tensor of whole numbers": ("x = Tensor([2])\n(x * x).sum().backward()\n",
                                  "s.py:3: a tensor of whole numbers has no gradient"),
    "a missing gradient": ("x, w = Tensor([2.0]), Tensor([3.0])\n(x * x).sum().backward()\n"
                           "print(w.grad.numpy())\n",
                           "s.py:4: there is no gradient: print(w.grad.numpy())"),
}  # fmt: skip


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_scripts_mistake_is_a_sentence(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, said = SCRIPTS[what]
    path = tmp_path / "s.py"
    path.write_text("from tinygrad import Tensor\n" + text)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    assert cli.main(["backward", str(path)]) == 2
    errors = capsys.readouterr().err
    assert said in errors and "next: " in errors and "Traceback" not in errors
    gc.collect()


def test_a_users_own_error_stays_his_own() -> None:
    def loss() -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tgx.backward(loss)
    with pytest.raises(BadInput, match="a Tensor, or a function"):
        tgx.backward(3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="called no backward"):
        tgx.backward(lambda: 3)
    with pytest.raises(BadInput, match="no tensor that is still there"):
        tgx.backward(lambda: (Tensor([2.0]) * 3).sum())


# **** the command on the training step of the guide's MLP ****


@pytest.fixture(scope="module")
def mlp_step(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, str, Path]:
    """(trace, what was printed, folder with its page)."""
    folder = tmp_path_factory.mktemp("mlp")
    script = ROOT / "traces/guide_step.py"
    trace = traced(script, folder, "-o", "kept", "--html", "walk.html", after=("mlp",))
    assert traced.seconds < 25, "of CPU, with nothing compiled yet"  # type: ignore[attr-defined]
    return trace, traced.output, folder  # type: ignore[attr-defined]


def test_the_mlps_training_step(mlp_step: tuple[Trace, str, Path]) -> None:
    trace, printed, _ = mlp_step
    script = ROOT / "traces/guide_step.py"
    (walk,) = trace.walks
    assert walk.repeats == 2 and "stopped when its backward began again" in printed
    names = {t.name for t in walk.targets if t.parameter}
    assert {f"model.layer{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")} <= names
    assert all(t.check.error < 1e-5 for t in walk.targets if t.parameter)
    lines = {walks.place(trace, s) for s in walks.steps(trace, walk.id)}
    layers = [i for i, line in enumerate(script.read_text().splitlines(), 1) if "self.layer" in line
              and "(x)" in line]  # fmt: skip
    assert len(layers) == 3 and {f"guide_step.py:{n}" for n in layers} <= lines
    assert len(walks.operations(trace, walk.id)) == 7
    for o in walks.operations(trace, walk.id):
        assert o.op == "flatten" or all(0 <= f.error < 1e-5 for f in o.flows), o


def test_the_mlps_page_opens_at_once(mlp_step: tuple[Trace, str, Path]) -> None:
    """In under two seconds, with its picture, and its slider goes to the end."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        clock = page.context.new_cdp_session(page)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto((mlp_step[2] / "walk.html").as_uri())
        page.wait_for_selector("html[data-ready]")
        metrics = clock.send("Performance.getMetrics")["metrics"]
        seconds = next(m["value"] for m in metrics if m["name"] == "TaskDuration")
        assert seconds < 2, "of CPU: on a machine with nothing else to do"
        assert page.locator(".picture:not([hidden]) svg").count() == 1
        page.keyboard.press("End")
        assert page.inner_text("#count") == "step 51 of 51"
        page.keyboard.press("Home")
        page.click("#open")
        assert "sparse_categorical_crossentropy" in page.inner_text("#crumbs")
        page.keyboard.press("Escape")
        assert page.locator("#open").count() == 1
        browser.close()
