"""Lesson 12: the bridge: micrograd, PyTorch and tinygrad, the same network in each

    python examples/12_bridge.py [--quick] [--out DIR]

The deep dive's second half. One small network, with the same weights, in three engines: losses,
gradients and three training steps agree to a millionth; what each hides does not. Then what
PyTorch's course teaches, in tinygrad beside PyTorch: its autograd, losses, layers, blocks, transfer
learning, the head of a one-stage detector, exercises. Without PyTorch tinygrad's half still runs
(pip install torch brings the other).
"""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mnist
import numpy as np
from guide_data import mnist as load_mnist
from guide_lesson import Chart, Lesson, Picture, legend, table, words
from guide_networks import NETWORKS, Network, Residual, conv, parameters
from tinygrad import Context, GlobalCounters, Tensor, TinyJit, nn

try:
    import torch
except ImportError:
    torch = None

micrograd = importlib.import_module("03_micrograd")
convolution = importlib.import_module("08_convolution")


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    Tensor.realize(*tensors)
    return [t.numpy() for t in tensors]


# ---- one network, three engines ------------------------------------------------------------------

XOR = (np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32),
       np.array([[-1], [1], [1], [-1]], np.float32))


@dataclass(frozen=True)
class Run:
    """The loss, all 17 gradients and all 17 weights of each step; and how large the graph was."""

    losses: list[float]
    gradients: list[np.ndarray]
    weights: list[np.ndarray]
    graph: int

    def apart(self, other: "Run") -> float:
        """The largest difference in anything."""
        return max(float(abs(np.asarray(a) - np.asarray(b)).max()) for a, b in (
            (self.losses, other.losses), (self.gradients, other.gradients),
            (self.weights, other.weights)))


def start() -> list[np.ndarray]:
    """W₁ [4, 2], b₁ [4], W₂ [1, 4], b₂ [1] of a 2-4-1 network, the same for all."""
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, s).astype(np.float32) for s in ((4, 2), (4,), (1, 4), (1,))]


def flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


def by_micrograd(steps: int = 3, rate: float = 0.1) -> Run:
    """Every number is an object; a step is a loop over them."""
    net = micrograd.MLP(2, 4, 1)
    order = [p for layer in net.layers
             for p in (*[w for neuron in layer for w in neuron.w], *[n.b for n in layer])]
    for p, value in zip(order, flat(start()), strict=True):
        p.data = float(value)
    losses, gradients, weights, graph = [], [], [], 0
    for _ in range(steps):
        answers = [net(x)[0] for x in XOR[0].tolist()]
        loss = sum(((out - y) ** 2 for out, (y,) in zip(answers, XOR[1].tolist(), strict=True)),
                   micrograd.Value(0.0)) * (1 / 4)
        for p in order:
            p.grad = 0.0
        loss.backward()
        graph = len(micrograd.in_order(loss))
        losses.append(loss.data)
        gradients.append(np.array([p.grad for p in order]))
        for p in order:
            p.data -= rate * p.grad
        weights.append(np.array([p.data for p in order]))
    return Run(losses, gradients, weights, graph)


class Tiny:
    """2-4-1 in tinygrad. Its parameters: nn.state.get_parameters, not [*layer.weight, ...]."""

    def __init__(self) -> None:
        self.layer1, self.layer2 = nn.Linear(2, 4), nn.Linear(4, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x).tanh()).tanh()


def by_tinygrad(steps: int = 3, rate: float = 0.1) -> Run:
    """Operations build one graph of forward, backward and update; then it runs, as few kernels."""
    net = Tiny()
    p = nn.state.get_parameters(net)
    for t, value in zip(p, start(), strict=True):
        t.assign(Tensor(value)).realize()
    optimizer = nn.optim.SGD(p, lr=rate)
    x, y = (Tensor(a).realize() for a in XOR)
    losses, gradients, weights, graph = [], [], [], 0
    for _ in range(steps):
        with Context(TRAINING=1):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            graph = len(loss.uop.toposort())
            losses.append(loss.item())
            gradients.append(flat(numbers(*[t.grad for t in p])))
            optimizer.step()
        weights.append(flat(numbers(*p)))
    return Run(losses, gradients, weights, graph)


def by_torch(steps: int = 3, rate: float = 0.1) -> Run:
    """Operations run at once, one by one, and note their backward functions."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1),
                              torch.nn.Tanh())
    p = list(net.parameters())
    with torch.no_grad():
        for t, value in zip(p, start(), strict=True):
            t.copy_(torch.from_numpy(value))
    optimizer = torch.optim.SGD(p, lr=rate)
    x, y = map(torch.from_numpy, XOR)
    losses, gradients, weights, graph = [], [], [], 0
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        graph = len(torch_graph(loss))
        losses.append(loss.item())
        gradients.append(flat([t.grad.numpy() for t in p]))
        optimizer.step()
        weights.append(flat([t.detach().numpy().copy() for t in p]))
    return Run(losses, gradients, weights, graph)


def torch_graph(loss) -> set:
    """The backward functions that PyTorch noted."""
    found, todo = set(), [loss.grad_fn]
    while todo:
        if (f := todo.pop()) is not None and f not in found:
            found.add(f)
            todo += [g for g, _ in f.next_functions]
    return found


def deep_dives_parameters() -> list[tuple[int, ...]]:
    """What the deep dive's `[*self.l1.weight, ...]` gives the optimizer: rows, not parameters.

    A row is a view, made anew by `*`: no gradient ever reaches it.
    """
    net = Tiny()
    wrong = [*net.layer1.weight, net.layer1.bias, *net.layer2.weight, net.layer2.bias]
    (net(Tensor(XOR[0])) ** 2).mean().backward()
    return [t.shape for t in wrong if t.grad is None]


def kernels(work: Callable[[], Tensor]) -> int:
    before = GlobalCounters.kernel_count
    work().realize()
    return GlobalCounters.kernel_count - before


def operations_of_torch(work: Callable) -> int:
    """How many of its own functions PyTorch calls, one after the other."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        work()
    return counter.count


# ---- PyTorch's autograd, and tinygrad's ----------------------------------------------------------

def same_semantics() -> dict[str, tuple[object, object]]:
    """What the deep dive says of PyTorch's autograd: (PyTorch, tinygrad)."""
    found: dict[str, tuple[object, object]] = {}
    leaves = [[torch.tensor([v], requires_grad=True) for v in (2.0, 3.0, 1.0)],
              [Tensor([v]) for v in (2.0, 3.0, 1.0)]]
    results = []
    for x, w, b in leaves:
        loss = ((x * w + b) ** 2).mean()
        loss.backward()
        results.append((loss.item(), *(t.grad.item() for t in (w, x, b))))
    found["loss, dw, dx, db"] = tuple(results)

    results = []
    for x in (torch.tensor([2.0], requires_grad=True), Tensor([2.0])):
        (x**2).sum().backward()
        first = x.grad.item()
        (x**3).sum().backward()
        results.append((first, x.grad.item()))
    found["x², then x³ without clearing"] = tuple(results)

    x = torch.tensor([2.0], requires_grad=True)
    with torch.no_grad():
        y = x * 3
    found["no graph wanted"] = (y.requires_grad, "nothing to say: a graph costs nothing")

    results = []
    for x in (torch.tensor([2.0], requires_grad=True), Tensor([2.0])):
        (x * x.detach()).sum().backward()
        results.append(x.grad.item())
    found["x · detach(x): dx"] = tuple(results)

    class MyReLU(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(context, gradient):
            (x,) = context.saved_tensors
            return gradient * (x > 0)

    x, t = torch.tensor([-1.0, 1.0, 2.0], requires_grad=True), Tensor([-1.0, 1.0, 2.0])
    MyReLU.apply(x).sum().backward()
    own = t * (t.detach() > 0)  # a gradient of one's own: what is detached is a constant
    found["a ReLU of one's own: dx"] = (x.grad.tolist(), own.sum().gradient(t)[0].tolist())
    return found


def same_losses(rng: np.random.Generator) -> dict[str, float]:
    """How far apart the two libraries' losses and their gradients are."""
    z, target = rng.normal(size=(2, 6, 4)).astype(np.float32) * 2
    classes = rng.integers(0, 4, 6)
    yes = (target > 0).astype(np.float32)
    f = torch.nn.functional if torch else None
    c, y, t = Tensor(classes.astype(np.int32)), Tensor(yes), Tensor(target)
    pairs: dict[str, tuple[Callable, Callable]] = {
        "cross-entropy": (lambda x: f.cross_entropy(x, torch.from_numpy(classes)),
                          lambda x: x.sparse_categorical_crossentropy(c)),
        "  = the right class's -log softmax": (
            lambda x: -f.log_softmax(x, 1)[torch.arange(6), torch.from_numpy(classes)].mean(),
            lambda x: -x.log_softmax(1).gather(1, c.reshape(-1, 1)).mean()),
        "binary, on logits": (
            lambda x: f.binary_cross_entropy_with_logits(x, torch.from_numpy(yes)),
            lambda x: x.binary_crossentropy_logits(y)),
        "mean squared error": (lambda x: f.mse_loss(x, torch.from_numpy(target)),
                               lambda x: (x - t).square().mean()),
        "focal": (lambda x: focal(x.sigmoid(), torch.from_numpy(yes)),
                  lambda x: focal(x.sigmoid(), y))}
    found = {}
    for name, (theirs, ours) in pairs.items():
        a, b = torch.tensor(z, requires_grad=True), Tensor(z).realize()
        loss = theirs(a)
        loss.backward()
        mine = ours(b)
        value, gradient = numbers(mine, *mine.gradient(b))
        found[name] = max(abs(loss.item() - float(value)),
                          float(abs(a.grad.numpy() - gradient).max()))
    return found


def focal(p, y, gamma: float = 2.0):
    """Lin and others 2017: cross-entropy, but (1 - p)^γ as loud for what is right already.

    Written once: PyTorch's and tinygrad's tensors both have these methods.
    """
    right = p * y + (1 - p) * (1 - y)
    return (-((1 - right) ** gamma) * (right + 1e-7).log()).mean()


def clipped(gradients: list[Tensor], most: float = 1.0) -> list[Tensor]:
    """torch.nn.utils.clip_grad_norm_: all gradients as one arrow, made no longer than this."""
    length = sum((g.square().sum() for g in gradients), Tensor(0.0)).sqrt()
    return [g * (most / (length + 1e-6)).clamp(max_=1.0) for g in gradients]


# ---- blocks --------------------------------------------------------------------------------------

def identity_gradient() -> np.ndarray:
    """A residual block whose body gives nothing: the gradient comes through as it was."""
    block = Residual([nn.Conv2d(2, 2, 3, padding=1)], [], lambda x: x)
    block.body[0].weight = Tensor.zeros(2, 2, 3, 3)
    block.body[0].bias = Tensor.zeros(2)
    x = Tensor.ones(1, 2, 4, 4).contiguous()
    return block(x).sum().gradient(x)[0].numpy()


def depthwise(channels: int, outputs: int) -> Network:
    """3x3 on each channel, 1x1 across them."""
    return Network(*conv(channels, channels, groups=channels), *conv(channels, outputs, 1))


def same_block(rng: np.random.Generator) -> float:
    """relu(x + conv(relu(conv(x)))) by PyTorch and by tinygrad: how far apart."""
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    weights = [rng.normal(size=(3, 3, 3, 3)).astype(np.float32) / 5 for _ in range(2)]
    f, t = torch.nn.functional, torch.from_numpy(x)
    a, b = map(torch.from_numpy, weights)
    theirs = (t + f.conv2d(f.conv2d(t, a, padding=1).relu(), b, padding=1)).relu()
    first, second = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
    first.weight, second.weight = map(Tensor, weights)
    ours = Residual([first, Tensor.relu, second], [])(Tensor(x))
    return float(abs(theirs.numpy() - ours.numpy()).max())


# ---- transfer learning ---------------------------------------------------------------------------

class Body:
    """784-128-64: what was learnt on one task and is to help on another."""

    def __init__(self) -> None:
        self.layer1, self.layer2 = nn.Linear(784, 128), nn.Linear(128, 64)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x).relu()).relu()


class Digits:
    """Pixels and labels of a few of the classes, the labels counted from the first of them."""

    def __init__(self, classes: range, training: int, test: int):
        data = load_mnist()
        self.parts = []
        for images, labels, most in ((data.train_images, data.train_labels, training),
                                     (data.test_images, data.test_labels, test)):
            rows = np.flatnonzero((labels >= classes.start) & (labels < classes.stop))[:most]
            self.parts.append((
                Tensor(images[rows].reshape(-1, 784).astype(np.float32) / 255).realize(),
                Tensor(labels[rows].astype(np.int32) - classes.start).realize()))


def fit(body: Body, head: nn.Linear, digits: Digits, steps: int, rates: tuple[float, float],
        every: int = 10) -> list[float]:
    """Adam on all of it, `rates` for body and head; a rate of 0 freezes: that part is not given
    to the optimizer at all. Gives the accuracy on the test images, every few steps."""
    parts = [(nn.state.get_parameters(part), rate)
             for part, rate in zip((body, head), rates, strict=True) if rate]
    optimizer = nn.optim.OptimizerGroup(*[nn.optim.Adam(p, lr=rate) for p, rate in parts])
    (images, labels), (unseen, expected) = digits.parts

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = head(body(images)).sparse_categorical_crossentropy(labels).backward()
        return loss.realize(*optimizer.schedule_step())

    @TinyJit
    def score() -> Tensor:
        return (head(body(unseen)).argmax(1) == expected).mean().realize()

    found = [score().item()]
    for i in range(1, steps + 1):
        step()
        if i % every == 0:
            found.append(score().item())
    return found


TRANSFER = {  # name: start from what was learnt?, then for a share of the steps (body, head) rates
    "from scratch": (False, [(1.0, (3e-3, 3e-3))]),
    "frozen body": (True, [(1.0, (0.0, 3e-3))]),
    "a tenth of the rate for the body": (True, [(1.0, (3e-4, 3e-3))]),
    "frozen, then unfrozen": (True, [(0.5, (0.0, 3e-3)), (0.5, (3e-4, 3e-3))]),
}


def transfer(steps: int, names: Sequence[str] = tuple(TRANSFER), samples: int = 10
             ) -> tuple[dict[str, list[float]], dict[str, bool]]:
    """Learn 0 to 7 from 6,000 pictures, then 8 and 9 from `samples`: accuracy while learning, by
    what is done with the body; and whether that changed it."""
    Tensor.manual_seed(0)
    first, second = Digits(range(8), 6000, 1000), Digits(range(8, 10), samples, 1000)
    body, head = Body(), nn.Linear(64, 8)
    Tensor.realize(*nn.state.get_parameters([body, head]))
    fit(body, head, first, 30, (3e-3, 3e-3), every=30)
    learnt = [t.numpy() for t in nn.state.get_parameters(body)]

    curves, changed = {}, {}
    for name in names:
        again, phases = TRANSFER[name]
        Tensor.manual_seed(1)
        body, head = Body(), nn.Linear(64, 2)
        Tensor.realize(*nn.state.get_parameters([body, head]))
        for t, value in zip(nn.state.get_parameters(body), learnt if again else (), strict=again):
            t.assign(Tensor(value)).realize()
        before = [t.numpy() for t in nn.state.get_parameters(body)]
        curve: list[float] = []
        for share, rates in phases:
            part = fit(body, head, second, int(steps * share), rates)
            curve += part[1:] if curve else part
        curves[name] = curve
        changed[name] = any((a != t.numpy()).any()
                            for a, t in zip(before, nn.state.get_parameters(body), strict=True))
    return curves, changed


def two_rates(library: str) -> list[np.ndarray]:
    """Three steps of SGD with two parameters, two rates and one frozen one, in either library."""
    rng = np.random.default_rng(0)
    a, b, c, x = (rng.normal(size=s).astype(np.float32) for s in ((4, 3), (3, 2), (2, 2), (5, 4)))
    if library == "torch":
        p = [torch.tensor(v, requires_grad=v is not c) for v in (a, b, c)]
        optimizer = torch.optim.SGD([{"params": [p[0]], "lr": 0.01}, {"params": [p[1]]}], lr=0.1)
        inputs = torch.from_numpy(x)
    else:
        p = [Tensor(v).realize() for v in (a, b, c)]
        optimizer = nn.optim.OptimizerGroup(nn.optim.SGD([p[0]], lr=0.01),
                                            nn.optim.SGD([p[1]], lr=0.1))
        inputs = Tensor(x).realize()
    for _ in range(3):
        with Context(TRAINING=1):
            optimizer.zero_grad()
            ((((inputs @ p[0]).tanh() @ p[1]).tanh() @ p[2]) ** 2).mean().backward()
            optimizer.step()
    return [v.detach().numpy().copy() for v in p]


# ---- a one-stage detector's head -----------------------------------------------------------------

ANCHORS = ((1.0, 1.0), (2.5, 1.2))  # widths and heights of typical boxes, in cells


def head_shape(features: Tensor, classes: int, weight: Tensor) -> Tensor:
    """[batch, channels, H, W] -> [batch, anchors, H, W, 5 + classes], by one 1x1 convolution.

    At every cell, for every anchor: x, y, width, height, is there anything?, which class?
    """
    a = len(ANCHORS)
    out = features.conv2d(weight)  # A · (5 + C) channels
    n, _, high, wide = out.shape
    return out.reshape(n, a, 5 + classes, high, wide).permute(0, 1, 3, 4, 2)


def boxes(raw):
    """The raw numbers as boxes, in cells: the centre stays in its cell (a sigmoid), sizes are
    anchors times e^raw. PyTorch's tensors or tinygrad's."""
    cat = torch.cat if torch is not None and isinstance(raw, torch.Tensor) else \
        (lambda parts, dim: Tensor.cat(*parts, dim=dim))
    make = torch.tensor if torch is not None and isinstance(raw, torch.Tensor) else Tensor
    _, a, high, wide, _ = raw.shape
    cells = np.stack(np.meshgrid(np.arange(wide), np.arange(high)), -1).astype(np.float32)
    centre = raw[..., 0:2].sigmoid() + make(cells).reshape(1, 1, high, wide, 2)
    anchors = make(np.array(ANCHORS, np.float32)).reshape(1, a, 1, 1, 2)
    return cat([centre, raw[..., 2:4].exp() * anchors, raw[..., 4:5].sigmoid()], -1)


def iou_of_sizes(size: tuple[float, float], anchor: tuple[float, float]) -> float:
    """How well a box and an anchor agree if put on one another: intersection over union."""
    both = min(size[0], anchor[0]) * min(size[1], anchor[1])
    return both / (size[0] * size[1] + anchor[0] * anchor[1] - both)


def targets(objects: Sequence[tuple], shape: tuple[int, ...], classes: int) -> dict:
    """For (image, x, y, width, height, class) in cells: who is responsible, and for what.

    The cell the centre lies in, and of its anchors the one most like the object.
    """
    n, a, high, wide = shape
    found = {"there": np.zeros((n, a, high, wide), np.float32),
             "box": np.zeros((n, a, high, wide, 4), np.float32),
             "class": np.zeros((n, a, high, wide, classes), np.float32)}
    for image, x, y, w, h, kind in objects:
        best = max(range(a), key=lambda k: iou_of_sizes((w, h), ANCHORS[k]))
        at = (image, best, int(y), int(x))
        found["there"][at] = 1
        found["box"][at] = (x % 1, y % 1, math.log(w / ANCHORS[best][0]),
                            math.log(h / ANCHORS[best][1]))
        found["class"][at][kind] = 1
    return found


def detection_loss(raw, there, box, kind, softplus: Callable):
    """Box, objectness and class, added up. Only who is responsible answers for box and class;
    everybody for whether there is anything. PyTorch's tensors or tinygrad's."""
    def bce(z, y):  # cross-entropy of a sigmoid, finite for every z
        return softplus(z) - z * y

    count = there.sum()
    centre = ((raw[..., 0:2].sigmoid() - box[..., 0:2]) ** 2).sum(-1)
    size = ((raw[..., 2:4] - box[..., 2:4]) ** 2).sum(-1)
    located = ((centre + size) * there).sum() / count
    seen = bce(raw[..., 4], there).mean()
    named = (bce(raw[..., 5:], kind).sum(-1) * there).sum() / count
    return located + seen + named


def detector(objects: Sequence[tuple] = ((0, 2.3, 1.6, 1.1, 0.9, 2), (1, 4.5, 3.2, 2.2, 1.3, 0)),
             grid: int = 7, classes: int = 3, channels: int = 8) -> dict[str, object]:
    """One forward pass and one loss of the head, by tinygrad (and by PyTorch, where it is)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, channels, grid, grid)).astype(np.float32)
    weight = rng.normal(size=(len(ANCHORS) * (5 + classes), channels, 1, 1)).astype(
        np.float32) / math.sqrt(channels)
    f, w = Tensor(features).realize(), Tensor(weight).realize()
    raw = head_shape(f, classes, w)
    want = targets(objects, raw.shape[:4], classes)
    loss = detection_loss(raw, *map(Tensor, want.values()), lambda z: z.softplus())
    value, gradient = numbers(loss, *loss.gradient(w))
    found: dict[str, object] = {
        "shape": raw.shape, "channels": weight.shape[0], "boxes": boxes(raw).numpy(),
        "raw": raw.numpy(), "loss": float(value), "targets": want}
    if torch is not None:
        tw = torch.tensor(weight, requires_grad=True)
        out = torch.nn.functional.conv2d(torch.from_numpy(features), tw)
        theirs = out.reshape(2, len(ANCHORS), 5 + classes, grid, grid).permute(0, 1, 3, 4, 2)
        their_loss = detection_loss(theirs, *map(torch.from_numpy, want.values()),
                                    torch.nn.functional.softplus)
        their_loss.backward()
        found["apart"] = max(abs(their_loss.item() - float(value)),
                             float(abs(tw.grad.numpy() - gradient).max()))
    return found


# ---- exercises -----------------------------------------------------------------------------------

class TensorValue:
    """The exercise "Value on tinygrad": micrograd's interface, a one-element Tensor inside."""

    def __init__(self, data):
        self.t = data if isinstance(data, Tensor) else Tensor([float(data)])

    def __add__(self, other): return TensorValue(self.t + getattr(other, "t", other))
    def __mul__(self, other): return TensorValue(self.t * getattr(other, "t", other))
    def __pow__(self, power): return TensorValue(self.t**power)
    def tanh(self): return TensorValue(self.t.tanh())
    def backward(self): self.t.sum().backward()
    __radd__, __rmul__ = __add__, __mul__

    @property
    def data(self) -> float: return self.t.item()

    @property
    def grad(self) -> float: return self.t.grad.item()


def xor_in_torch(epochs: int = 1000) -> tuple[float, bool]:
    """2-4-1, tanh, by PyTorch: the last loss, and whether all four signs are right."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1),
                              torch.nn.Tanh())
    x, y = map(torch.from_numpy, XOR)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
    return loss.item(), bool(((net(x) > 0) == (y > 0)).all())


def mlp_by_hand(samples: int = 20_000, epochs: int = 3, batch: int = 50, rate: float = 0.5
                ) -> float:
    """784-128-10 on MNIST without an optimizer: w ← w - α·gradient, written out. Accuracy."""
    Tensor.manual_seed(0)
    data = convolution.few(load_mnist(), samples, 10_000)
    layers = [nn.Linear(784, 128), nn.Linear(128, 10)]
    p = nn.state.get_parameters(layers)
    Tensor.realize(*p)

    def forward(images: Tensor) -> Tensor:
        return layers[1](layers[0](images.flatten(1)).relu())

    @TinyJit
    def step(images: Tensor, labels: Tensor) -> None:
        loss = forward(mnist.pixels(images)).sparse_categorical_crossentropy(labels)
        Tensor.realize(*[t.assign(t - rate * g)
                         for t, g in zip(p, loss.gradient(*p), strict=True)])

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in mnist.shuffled(rng, samples, batch):
            step(Tensor(data.train_images[rows]).realize(),
                 Tensor(data.train_labels[rows]).realize())
    return mnist.evaluator(lambda images: forward(images), data)()[1]


def memory_of_a_batch(batch: int) -> int:
    """Bytes of what the way back needs of the way there, of a 784-256-128-10 network: each hidden
    layer's values, float32, once for every image."""
    model = mnist.build("mlp")
    images = Tensor.zeros(batch, 28, 28).contiguous().realize()
    hidden = [model.layer1(images.flatten(1)).relu()]
    hidden.append(model.layer2(hidden[0]).relu())
    before = GlobalCounters.mem_used
    Tensor.realize(*hidden)
    return GlobalCounters.mem_used - before


# ---- the lesson ----------------------------------------------------------------------------------

def draw(runs: dict[str, Run], curves: dict[str, list[float]], found: dict) -> str:
    page = Picture("Three engines, one network; what was learnt, used again; who answers for a box",
                   1080, 400, "differences between engines, transfer learning, detection grid")
    first = next(iter(runs))
    chart = Chart(page, (60, 92, 240, 220), (1, 3), (1e-10, 1e-4), "difference from micrograd",
                  "step", log=True, xticks=(1, 2, 3))
    for (name, run), css in zip(list(runs.items())[1:], ("orange", "green"), strict=False):
        apart = [max(float(abs(a - b).max()) for a, b in
                     zip((run.gradients[i], run.weights[i]),
                         (runs[first].gradients[i], runs[first].weights[i]), strict=True))
                 for i in range(3)]
        chart.line((1, 2, 3), apart, css)
        chart.dots((1, 2, 3), apart, css)
        chart.note(1.05, apart[0], name, f"ink {css}", dy=-8 if css == "green" else 18)
    chart.line((1, 3), (1e-6, 1e-6), "grey dashed")
    chart.note(1.05, 1e-6, "a millionth", dy=-6)
    steps = 10 * (max(map(len, curves.values()), default=2) - 1)
    chart = Chart(page, (380, 92, 300, 220), (0, steps), (40, 100),
                  "8 or 9, learnt from ten pictures: right, %", "step of training")
    chart.line((0, steps), (50, 50), "grey dashed")
    names = list(zip(("grey", "blue", "orange", "green"), curves, strict=False))
    for css, name in names:
        chart.line([10 * i for i in range(len(curves[name]))], [100 * v for v in curves[name]], css)
    page.add(*legend(380, 372, names[:2], 130), *legend(380, 390, names[2:], 250))
    side, left, top = 30, 780, 92
    page.add(words(left, top - 10, "a 7 x 7 grid: the cell of the centre answers", "head"))
    for i in range(7):
        for j in range(7):
            page.add(f'<rect class="box" x="{left + side * j}" y="{top + side * i}" '
                     f'width="{side}" height="{side}"/>')
    for (x, y, w, h), css in (((2.3, 1.6, 1.1, 0.9), "blue"), ((4.5, 3.2, 2.2, 1.3), "orange")):
        page.add(f'<rect class="soft {css}" x="{left + side * int(x)}" y="{top + side * int(y)}" '
                 f'width="{side}" height="{side}"/>',
                 f'<rect class="line {css}" x="{left + side * (x - w / 2):.1f}" '
                 f'y="{top + side * (y - h / 2):.1f}" width="{side * w:.1f}" '
                 f'height="{side * h:.1f}"/>',
                 f'<circle class="dot {css}" cx="{left + side * x:.1f}" cy="{top + side * y:.1f}" '
                 'r="4"/>')
    page.add(words(left, top + 236, f"each cell: {found['channels']} numbers = 2 anchors x "
                   "(4 + 1 + 3)", "quiet"))
    return str(page)


def main() -> None:
    lesson = Lesson("12_bridge", __doc__)
    if torch is None:
        lesson.say("(PyTorch is not installed: its columns are left out; pip install torch)")

    lesson.part("One network, three engines", "2-4-1, tanh, the same 17 weights; three steps.")
    runs = {"micrograd": by_micrograd()} | ({"PyTorch": by_torch()} if torch else {}) \
        | {"tinygrad": by_tinygrad()}
    x = Tensor(np.linspace(-1, 1, 1000, dtype=np.float32)).realize()
    lesson.beside(
        *[(f"{name}: losses", "the same", ", ".join(f"{v:.6f}" for v in run.losses))
          for name, run in runs.items()],
        *[(f"{name} against micrograd, everything", "", f"{run.apart(runs['micrograd']):.0e} apart")
          for name, run in list(runs.items())[1:]],
        *[(f"{name}: nodes in the graph", "hidden", str(run.graph)) for name, run in runs.items()],
        ("relu(x)·2 + 1: kernels by tinygrad", "one kernel",
         str(kernels(lambda: x.relu() * 2 + 1))),
        *([("  by PyTorch, one operation at a time", "", str(operations_of_torch(
            lambda: torch.ones(1000).relu() * 2 + 1) - 1))] if torch else []),
        ("the deep dive's [*l1.weight, …]: no gradient", "parameters()",
         str(deep_dives_parameters()), "rows are not parameters: get_parameters(model)"))

    rng = np.random.default_rng(0)
    if torch:
        lesson.part("PyTorch's autograd, and tinygrad's")
        print(table(("", "PyTorch", "tinygrad"), [(name, str(a), str(b)) for name, (a, b)
                                                  in same_semantics().items()]))
        lesson.beside(*[(f"{name}: loss and gradients", "", f"{apart:.0e} apart")
                        for name, apart in same_losses(rng).items()])

    lesson.part("Blocks")
    first = nn.Conv2d(3, 64, 3, padding=1)
    full, saved = parameters(Network(*conv(64, 128))), parameters(depthwise(64, 128))
    lesson.beside(
        ("3 to 64 channels, 3x3: parameters", "1,792", f"{parameters(first):,}"),
        ("  its output for 224 x 224", "[8, 64, 224, 224]",
         str(list(first(Tensor.empty(8, 3, 224, 224)).shape))),
        ("64 to 128, 3x3 and batch norm", "", f"{full:,}"),
        ("  depthwise, then 1x1, both with batch norm", "8-9 times fewer",
         f"{saved:,}: {full / saved:.1f} times fewer"),
        ("a residual block that does nothing: gradient", "identity",
         f"{identity_gradient().min():g} everywhere"),
        *([("a residual block, PyTorch against tinygrad", "", f"{same_block(rng):.0e} apart")]
          if torch else []),
        *[(f"{name}: parameters", says, f"{NETWORKS[name].parameters:,}") for name, says in (
            ("ResNet-18", "11.7M"), ("MobileNetV3-Small", "2.5M"), ("EfficientNet-B0", "5.3M"))])

    lesson.part("Transfer learning", "A body learnt 0 to 7. A new head, ten pictures of 8 and 9.")
    curves, changed = ({}, {}) if lesson.quick else transfer(60)
    if lesson.quick:
        lesson.say("(not with --quick)")
    lesson.beside(*[(name, "", f"{curve[-1]:.1%} of 1,000 unseen; body "
                     + ("changed" if changed[name] else "stayed as it was"))
                    for name, curve in curves.items()])

    lesson.part("The head of a one-stage detector")
    found = detector()
    scores = found["boxes"][..., 4]
    lesson.beside(
        ("channels: anchors · (5 + classes)", "A·(5 + C)", str(found["channels"])),
        ("shape", "[B, A, H, W, 5 + C]", str(list(found["shape"]))),
        ("is there anything?", "0 to 1", f"{scores.min():.3f} to {scores.max():.3f}"),
        ("loss: box, object, class", "", f"{found['loss']:.4f}"),
        *([("  PyTorch: loss and gradient", "", f"{found['apart']:.0e} apart")] if torch else []))

    lesson.part("Exercises")
    a = TensorValue(2.0)
    f = (a**2 + 3 * a + 2) * a.tanh()
    f.backward()
    batches = (16, 128) if lesson.quick else (16, 32, 64, 128)
    easy, hard = (float(focal(Tensor([p]), Tensor([1.0])).item()) for p in (0.9, 0.1))
    rows = [("Value on tinygrad: f(2), f'(2)", "11.568331, 7.596003",
             f"{f.data:.6f}, {a.grad:.6f}"),
            ("focal loss: easy (0.9), hard (0.1)", "easy counts less", f"{easy:.5f}, {hard:.3f}"),
            ("  cross-entropy of the same", "", f"{-math.log(0.9):.5f}, {-math.log(0.1):.3f}"),
            ("kept for the way back, 16 to 128 images", "grows with the batch",
             ", ".join(f"{memory_of_a_batch(b):,}" for b in batches) + " bytes")]
    if torch:
        loss, right = xor_in_torch()
        rows.append(("XOR in PyTorch: loss, all right", "", f"{loss:.5f}, {right}"))
    if not lesson.quick:
        rows.append(("the MLP without an optimizer: right", ">95 %", f"{mlp_by_hand():.2%}"))
    lesson.beside(*rows)

    lesson.picture(draw(runs, curves, found))
    net, inputs = Tiny(), Tensor(XOR[0]).realize()
    Tensor.realize(*nn.state.get_parameters(net))
    lesson.kernels(lambda: net(inputs).realize())


if __name__ == "__main__":
    main()
