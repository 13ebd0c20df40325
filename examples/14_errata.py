"""Lesson 14: errata: each place where the guide is wrong or misleads, executed

    python examples/14_errata.py [--quick] [--out DIR]

Every row is a few lines that run: what the guide says, what is right, and what came out here. The
numbers are those of tests/checklist.md. Where no computer can decide (a contest's results, an open
question) the source stands in place of a measurement.
"""

import importlib
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from guide_data import mnist as load_mnist
from guide_lesson import Chart, Lesson, Picture, legend, table
from guide_networks import NETWORKS, lenet_modern, parameters
from tinygrad import Context, Tensor, nn

neuron, project1, micrograd, gradients, convolution, walkthrough, bridge = (
    importlib.import_module(name) for name in (
        "01_neuron", "02_neuron_numpy", "03_micrograd", "04_losses_and_gradients",
        "08_convolution", "11_walkthrough", "12_bridge"))


@dataclass(frozen=True)
class Erratum:
    """`check` gives what came out, and whether it is as `right` says."""

    row: int
    guide: str
    right: str
    check: Callable[[], tuple[str, bool]]


ERRATA: list[Erratum] = []


def erratum(row: int, guide: str, right: str):
    def add(check: Callable[[], tuple[str, bool]]) -> Callable[[], tuple[str, bool]]:
        ERRATA.append(Erratum(row, guide, right, check))
        return check
    return add


def cited(row: int, guide: str, right: str, source: str) -> None:
    """A statement about the world: nothing to run, but a source."""
    ERRATA.append(Erratum(row, guide, right, lambda: (f"source: {source}", True)))


# ---- learning, neurons, activations --------------------------------------------------------------

@erratum(6, "networks: supervised and self-supervised", "they learn from rewards, too")
def _():
    rng, scores = np.random.default_rng(0), np.zeros(3)
    for _ in range(500):  # REINFORCE: what was rewarded is made more likely
        p = np.exp(scores) / np.exp(scores).sum()
        arm = rng.choice(3, p=p)
        reward = rng.random() < (0.2, 0.5, 0.8)[arm]
        scores += 0.3 * (reward - 0.5) * (np.eye(3)[arm] - p)
    return f"best arm chosen {p[2]:.0%} of the time", bool(p[2] > 0.8)


@erratum(14, "sigmoid(14.3) ≈ 0.9999", "0.99999938")
def _():
    z, a = neuron.tumour(3.5, 45)
    return f"{a:.8f}; 0.9999 is sigmoid({math.log(0.9999 / 0.0001):.2f})", \
        bool(abs(a - 0.99999938) < 1e-8 and abs(z - 14.3) < 1e-9)


@erratum(15, "malignant, from size and age", "so is age 45 without a tumour: scale features")
def _():
    z, a = neuron.tumour(0, 45)
    return f"z = {z:g}, {a:.5f}", bool(a > 0.9999)


@erratum(22, "GELU ≈ z·σ(1.702z)", "one of three, off by up to 0.02")
def _():
    exact, form, quick = (neuron.ACTIVATIONS[name][0] for name in list(neuron.ACTIVATIONS)[4:])
    z = np.linspace(-6, 6, 2401)
    apart = abs(quick(z) - exact(z)).max(), abs(form(z) - exact(z)).max()
    return f"{apart[0]:.4f}; the tanh form {apart[1]:.5f}", \
        bool(0.0202 < apart[0] < 0.0204 and apart[1] < 5e-4)


@erratum(25, "softmax at the output, then cross-entropy", "once: the loss contains it")
def _():
    scores = Tensor([[100.0] + [0.0] * 9])
    twice = scores.softmax().sparse_categorical_crossentropy(Tensor([0])).item()
    once = scores.sparse_categorical_crossentropy(Tensor([0])).item()
    return f"sure and right: {abs(once):.4f}; with softmax twice {twice:.4f}, at best", \
        abs(once) < 1e-6 and abs(twice - math.log((math.e + 9) / math.e)) < 1e-5


@erratum(26, "ReLU: no vanishing gradient for z > 0", "not by the unit; but by the weights")
def _():
    lengths = [gradients.length(gradients.gradients_of_deep("relu", depth=20, gain=g))
               for g in (0.5, math.sqrt(2), 3 * math.sqrt(2))]
    return "20 layers, small to large weights: " + ", ".join(f"{v:.0e}" for v in lengths), \
        lengths[0] < 1e-6 and lengths[2] > 1e6


# ---- networks ------------------------------------------------------------------------------------

@erratum(30, "784 → 256: 201,216; in all 235,402", "200,960; 235,146")
def _():
    counts = neuron.parameters(784, 256, 128, 10)
    return f"{counts[0]:,}; {sum(counts):,}", counts[0] == 200_960 and sum(counts) == 235_146


@erratum(31, "a 2-layer network", "two hidden layers, three with weights")
def _():
    layers = [v for v in vars(neuron.MLP(3, 4, 4, 2)).values() if isinstance(v, list)]
    count = len(layers[0]) if layers else 0
    return f"{count} layers with weights", count == 3


@erratum(32, "layer 1 edges, 2 shapes, 3 parts", "of CNNs; to dense layers nothing is near")
def _():
    rng = np.random.default_rng(0)
    images = load_mnist().train_images[:200].reshape(200, -1) / 255.0
    order, w = rng.permutation(784), rng.normal(size=(784, 16))
    apart = abs(images @ w - images[:, order] @ w[order]).max()
    return f"pixels mixed up, weights too: the same outputs ({apart:.0e} apart)", bool(apart < 1e-9)


@erratum(39, "loss = -Σ y·log(softmax(z))", "on logits: log(softmax) becomes NaN")
def _():
    found = gradients.gap(104.0, 0)
    return f"gap 104, right answer: {found['guide'][0]}; on logits {abs(found['logits'][0]):g}", \
        math.isnan(found["guide"][0]) and found["logits"][0] == 0


@erratum(47, "dL/dW = dz · x", "for one sample; for a batch Xᵀ @ dZ, added up")
def _():
    rng = np.random.default_rng(0)
    data = [rng.normal(size=s) for s in ((8, 3), (3, 4), (4,), (8, 4))]
    hand, auto = gradients.one_layer_by_hand(*data), gradients.one_layer_by_tinygrad(*data)
    apart = max(abs(hand[k] - auto[k]).max() for k in hand)
    return f"by hand and by tinygrad {apart:.0e} apart", bool(apart < 1e-5)


@erratum(48, "Tensor(..., requires_grad=True)", "gone: every float Tensor can be asked")
def _():
    try:
        Tensor([2.0], requires_grad=True)
    except TypeError:
        return f"TypeError; without it {gradients.guide_example()['dw']:g}", True
    return "accepted", False


@erratum(49, "print(x.grad) shows 5.0", "a graph; .item() computes it")
def _():
    x = Tensor([2.0])
    (x * x + x).sum().backward()
    return f"{str(x.grad)[:20]}…; {x.grad.item()}", "5" not in str(x.grad) and x.grad.item() == 5


# ---- learning ------------------------------------------------------------------------------------

@erratum(55, "kaiming_uniform(n_in, n_out)", "its first size is the outputs: starts too large")
def _():
    Tensor.manual_seed(0)
    swapped, right = Tensor.kaiming_uniform(128, 10), nn.Linear(128, 10).weight
    largest = [float(abs(w.numpy()).max()) for w in (swapped, right)]
    return f"128 → 10: weights up to {largest[0]:.2f}, not {largest[1]:.2f}", \
        largest[0] > 8 * largest[1]


@erratum(117, "Linear: x.matmul(kaiming_uniform(n_in, n_out))", "nn.Linear: first loss near ln 10")
def _():
    wrong, right = gradients.first_loss(True, 64), gradients.first_loss(False, 64)
    return f"MNIST before learning: {wrong:.2f}, not {right:.2f}", \
        wrong > 4 and abs(right - math.log(10)) < 0.2


@erratum(58, "SGD: one sample", "the class SGD takes whatever batch it is given")
def _():
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    w = Tensor([1.0, 2.0, 3.0]).contiguous().realize()
    optimizer = nn.optim.SGD([w], lr=0.1)
    with Context(TRAINING=1):
        (Tensor(x) @ w).square().mean().backward()
        optimizer.step()
    hand = np.array([1, 2, 3]) - 0.1 * 2 * (x * (x @ np.array([1, 2, 3]))[:, None]).mean(0)
    apart = abs(w.numpy() - hand).max()
    return f"32 at once: the mean gradient, {apart:.0e} apart", bool(apart < 1e-5)


def steps_of(optimizer: Callable, gradient: float, steps: int = 3) -> list[float]:
    """What an optimizer takes off a weight, step by step, if the gradient stays the same."""
    w = Tensor([0.0]).contiguous().realize()
    o, taken = optimizer([w]), []
    for _ in range(steps):
        before = w.item()
        with Context(TRAINING=1):
            o.zero_grad()
            (w * gradient).sum().backward()
            o.step()
        taken.append(before - w.item())
    return taken


@erratum(59, "momentum: v ← βv + (1-β)g", "tinygrad, PyTorch: v ← βv + g, ten times as far")
def _():
    taken = steps_of(lambda p: nn.optim.SGD(p, lr=1.0, momentum=0.9), 1.0)
    return ", ".join(f"{v:g}" for v in np.round(taken, 4)) + "; the guide's 0.1, 0.19, 0.271", \
        bool(np.allclose(taken, [1, 1.9, 2.71], atol=1e-5))


@erratum(63, "v: estimate of the variance", "of g², not centred: a steady g has no variance")
def _():
    v = 0.0
    for _ in range(5000):
        v = 0.999 * v + 0.001 * 3.0**2
    return f"g = 3 always: v = {v:.2f}, variance 0", abs(v - 9) < 0.1


def adam_step(g: float, inside: bool, eps: float = 1e-8) -> float:
    """The first step, in units of the learning rate."""
    return g / math.sqrt(g * g + eps) if inside else g / (abs(g) + eps)


@erratum(64, "Adam's card: m̂ / √(v̂ + ε)", "m̂ / (√v̂ + ε), as section 10 has it")
def _():
    (taken,) = steps_of(lambda p: nn.optim.Adam(p, lr=1.0), 1e-8, 1)
    outside, inside = adam_step(1e-8, False), adam_step(1e-8, True)
    return f"g = 1e-8: tinygrad {taken:.3f} (outside {outside:g}, inside {inside:.4g})", \
        abs(taken - outside) < 0.01


@erratum(66, "typical rates 1e-3 to 1e-4", "for Adam; SGD wants 0.01 to 0.1")
def _():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4))
    y = x @ rng.normal(size=4)
    losses = {}
    for rate in (1e-3, 0.1):
        w = np.zeros(4)
        for _ in range(100):
            w -= rate * 2 * x.T @ (x @ w - y) / 64
        losses[rate] = float(((x @ w - y) ** 2).mean())
    return "100 steps of SGD: " + ", ".join(f"{k:g} → {v:.1e}" for k, v in losses.items()), \
        losses[1e-3] > 0.1 > 1e-6 > losses[0.1]


@erratum(70, "model.train(), DataLoader, CrossEntropyLoss", "Context(TRAINING=1), slices, methods")
def _():
    names = [name for name in ("CrossEntropyLoss", "DataLoader", "Module") if hasattr(nn, name)]
    return f"in tinygrad.nn: {names or 'none of them'}", \
        not names and hasattr(Tensor, "sparse_categorical_crossentropy")


@erratum(75, "total / (60000 // 64)", "938 batches, not 937: the last has 32")
def _():
    batches = math.ceil(60_000 / 64)
    return f"{batches} losses over {60_000 // 64}: {batches / (60_000 // 64) - 1:.2%} too high", \
        batches == 938


# ---- convolution ---------------------------------------------------------------------------------

@erratum(81, "convolution", "cross-correlation: the filter is not turned")
def _():
    lop = np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]])[None, None]
    here = convolution.conv_tinygrad(convolution.EXAMPLE[None], lop)[0, 0, 0]
    turned = convolution.conv_loop(convolution.EXAMPLE[None], lop[:, :, ::-1, ::-1])[0, 0, 0]
    return f"{here:g}; turned {turned}", here == 11 and turned == 13


@erratum(85, "2x2 max pooling gives 4 x 2 numbers", "2 x 2: [[6, 8], [8, 6]]")
def _():
    found = convolution.max_pool(convolution.POOLING).tolist()
    return str(found), found == [[6, 8], [8, 6]]


@erratum(88, "convolution is translation invariant", "equivariant; invariant after pooling it all")
def _():
    apart = convolution.equivariance()
    return f"moved along: {apart['conv']:.0e} apart; pooled: {apart['pooled']:.0e}", \
        apart["conv"] < 1e-5 and apart["pooled"] < 1e-5


for _row, _name, _right in (
        (91, "AlexNet", "84.7 is seven networks together"), (92, "VGG-16", "a contest entry"),
        (93, "ResNet-50", "25.6M; not the network of 2015"),
        (94, "MobileNetV2", "EfficientNet-B0's number"),
        (95, "EfficientNet-B0", "B7's; B0 to B7 differ")):
    cited(_row, f"{_name}: {NETWORKS[_name].guide[0]}, top-5 {NETWORKS[_name].guide[1]}", _right,
          NETWORKS[_name].top5)
cited(96, "one column of top-5 accuracies", "different protocols: crops, ensembles, recipes",
      "lesson 8's table names each")


# ---- regularization ------------------------------------------------------------------------------

@erratum(102, "weight decay λ adds λΣw² to the loss", "½λΣw²: its slope is λw, not 2λw")
def _():
    w = Tensor([3.0]).contiguous().realize()
    optimizer = nn.optim.SGD([w], lr=1.0, weight_decay=0.1)
    with Context(TRAINING=1):
        optimizer.zero_grad()
        (w * 0).sum().backward()
        optimizer.step()
    return f"w = 3, λ = 0.1: a step of {3 - w.item():.2f}; λΣw² would give 0.60", \
        abs(3 - w.item() - 0.3) < 1e-6


@erratum(105, "batch norm: mean and variance of the batch", "while training; then the running ones")
def _():
    norm, x = nn.BatchNorm(1), Tensor([[1.0], [3.0]]).reshape(2, 1, 1, 1).realize()
    with Context(TRAINING=1):
        training = norm(x).flatten().tolist()
    using = norm(x).flatten().tolist()
    return f"{np.round(training, 2).tolist()} training, {np.round(using, 2).tolist()} after", \
        bool(np.allclose(training, [-1, 1], atol=1e-3) and using[0] > 0)


cited(106, "batch norm reduces internal covariate shift", "disputed: it smooths the loss",
      "Santurkar, Tsipras, Ilyas, Madry 2018")


@erratum(108, "augmentation: horizontal and vertical flips", "not of digits: the label must stay")
def _():
    data = load_mnist()
    train, labels = data.train_images[:2000] / 255.0, data.train_labels[:2000]
    means = np.stack([train[labels == k].mean(0) for k in range(10)]).reshape(10, -1)
    right = []
    for images in (data.test_images[:500], data.test_images[:500, :, ::-1]):
        apart = ((images.reshape(500, 1, -1) / 255.0 - means) ** 2).sum(2)
        right.append(float((apart.argmin(1) == data.test_labels[:500]).mean()))
    return f"nearest mean: {right[0]:.0%} right, of mirrored digits {right[1]:.0%}", \
        right[1] < right[0] - 0.2


# ---- tinygrad and projects -----------------------------------------------------------------------

@erratum(110, "tinygrad: ~1000 lines of core code", "about 9,600 in 0.14")
def _():
    count = walkthrough.lines_of_code(walkthrough.HOME, walkthrough.NOT_CORE)
    return f"{count:,}", 9000 < count < 11_000


@erratum(124, "XOR by one neuron", "impossible: ln 2 and three of four, at best")
def _():
    losses = project1.train(project1.Neuron(np.random.default_rng(0)), "XOR", 2000, rate=1.0)
    return f"after 2,000 steps: {losses[-1]:.6f}", abs(losses[-1] - math.log(2)) < 1e-6


@erratum(128, "read tensor.py and ops.py for backward()", "mixin/gradient.py and uop/")
def _():
    at = walkthrough.find("mixin/gradient.py", "pm_gradient = PatternMatcher")
    return f"mixin/gradient.py:{at}; ops.py is gone", \
        at > 0 and walkthrough.find("ops.py", "") == -1


@erratum(129, "tinygrad on a Jetson Nano", "JetPack 4 has Python 3.6; an Orin's is new enough")
def _():
    wants = importlib.metadata.metadata("tinygrad")["Requires-Python"]
    return f"tinygrad wants Python {wants}", "3.11" in wants


@erratum(130, "tinygrad/examples/mnist.py, efficientnet.py", "beautiful_mnist.py, extra/models/")
def _():
    here = (walkthrough.HOME / "examples").exists()
    return f"in the wheel: {'some' if here else 'no'} examples; in its repository they moved", \
        not here


@erratum(131, "MNIST, baseline 99.7 %", "a good result; a baseline is what guessing gets")
def _():
    labels = load_mnist().test_labels
    return f"always the same digit: {np.bincount(labels).max() / len(labels):.2%}", \
        np.bincount(labels).max() == 1135


@erratum(134, "Iris: 97 %", "of 30 test flowers one error is 3.3 points: use folds")
def _():
    spread = math.sqrt(0.97 * 0.03 / 30)
    return f"1/30 = {1 / 30:.1%}; standard error at 97 %: {spread:.1%}", spread > 0.03


@erratum(136, "card: L = -(1/N) Σ y·log(ŷ)", "the sum is over classes, too")
def _():
    y, p = np.eye(10), np.full((10, 10), 0.1)
    each, over = -(y * np.log(p)).sum(1).mean(), -(y * np.log(p)).mean()
    return f"no idea, ten classes: {each:.4f} = ln 10; mean of everything {over:.4f}", \
        bool(abs(each - math.log(10)) < 1e-12)


@erratum(142, "XOR by 2-4-1 in 200 epochs", "most seeds have the signs; the loss wants more")
def _():
    early = [micrograd.learn_xor(seed, 200)[1][-1] for seed in range(2)]
    late = micrograd.learn_xor(0, 600)[1][-1]
    return f"200: {', '.join(f'{v:.3f}' for v in early)}; 600: {late:.4f}", late < min(early)


@erratum(143, "LazyBuffer; Tensor.grad_fn", "UOp; the rules of pm_gradient")
def _():
    gone = [name for name in ("grad_fn", "lazydata", "requires_grad") if hasattr(Tensor, name)]
    return f"of Tensor's: {gone or 'none left'}", not gone


@erratum(158, "parameters(): [*self.l1.weight, …]", "nn.state.get_parameters(model)")
def _():
    rows = bridge.deep_dives_parameters()
    return f"{len(rows)} rows that never get a gradient", len(rows) == 5


@erratum(90, "LeNet-5: 60K", "60,000 as published; 61,706 as it is written today")
def _():
    counts = parameters(NETWORKS["LeNet-5"].build()), parameters(lenet_modern())
    return f"{counts[0]:,}; {counts[1]:,}", counts == (60_000, 61_706)


ERRATA.sort(key=lambda e: e.row)


# ---- the lesson ----------------------------------------------------------------------------------

def draw(gaps: tuple[float, ...]) -> str:
    page = Picture("Three errata, drawn", 1080, 360, "log softmax, momentum, Adam's epsilon")
    losses = [gradients.gap(g, 1) for g in gaps]
    chart = Chart(page, (56, 86, 270, 190), (0, 200), (0, 220), "loss, if the lower score is right",
                  "gap between two scores")
    chart.line(gaps, [v["logits"][0] for v in losses], "green")
    finite = [(g, v["guide"][0]) for g, v in zip(gaps, losses, strict=True)
              if math.isfinite(v["guide"][0])]
    chart.line(*zip(*finite, strict=True), "orange dashed")
    chart.dots(*zip(*finite[-1:], strict=True), "orange", 5)
    chart.note(*finite[-1], "log(softmax) ends here", "ink orange", dx=10, dy=16)
    page.add(*legend(56, 334, (("green", "on logits"), ("orange", "the guide's")), 130))
    chart = Chart(page, (406, 86, 270, 190), (1, 20), (0, 10), "momentum: v, if g is always 1",
                  "step")
    for css, factor in (("green", 1.0), ("orange", 0.1)):
        v, path = 0.0, []
        for _ in range(20):
            v = 0.9 * v + factor
            path.append(v)
        chart.line(range(1, 21), path, css)
    page.add(*legend(406, 334, (("green", "βv + g"), ("orange", "βv + (1-β)g, the guide's")), 110))
    powers = np.linspace(-12, 0, 60)
    chart = Chart(page, (756, 86, 270, 190), (-12, 0), (1e-9, 2), "Adam's first step / rate",
                  "gradient, power of ten", log=True, xticks=(-12, -8, -4, 0),
                  yticks=(1, 1e-2, 1e-4, 1e-6, 1e-8))
    for css, inside in (("green", False), ("orange", True)):
        chart.line(powers, [adam_step(10.0**p, inside) for p in powers], css)
    page.add(*legend(756, 334, (("green", "√v̂ + ε"), ("orange", "√(v̂ + ε), the card's")), 110))
    return str(page)


def main() -> None:
    lesson = Lesson("14_errata", __doc__)
    slow = {15, 110, 142} if lesson.quick else set()
    results = [(e, *e.check()) for e in ERRATA if e.row not in slow]
    print(table(("row", "⚠ the guide", "right", "measured here", ""),
                [(str(e.row), e.guide, e.right, found, "holds" if ok else "DOES NOT HOLD")
                 for e, found, ok in results], right=(0,)))
    lesson.say("", f"{sum(ok for *_, ok in results)} of {len(results)} hold.")
    lesson.picture(draw((0, 50, 100, 103.9, 150, 200) if lesson.quick else
                        (0, 25, 50, 75, 100, 103, 103.9, 104, 125, 150, 175, 200)))
    logits, label = Tensor([[104.0, 0.0]]).realize(), Tensor([0]).realize()
    lesson.kernels(lambda: logits.sparse_categorical_crossentropy(label).realize())


if __name__ == "__main__":
    main()
