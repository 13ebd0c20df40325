"""Lesson 4: losses, backpropagation, gradients that vanish and explode

    python examples/04_losses_and_gradients.py [--quick] [--out DIR]

Guide, sections 8 and 9. How wrong is the network (the losses, and the one way to compute
cross-entropy that stays finite)? Whose fault is it (backpropagation, by hand and by tinygrad)? And
what happens to the answer on its way through many layers, with the cures measured.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from guide_data import mnist
from guide_lesson import Chart, Lesson, Picture, legend, table, words
from tinygrad import Context, Tensor, nn


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    """Compute them all at once, and fetch them."""
    Tensor.realize(*tensors)
    return [t.numpy() for t in tensors]


# ---- losses ------------------------------------------------------------------------------------

def mse(y: np.ndarray, guess: np.ndarray) -> float:
    """Mean squared error: (1/N) Σ (y - ŷ)²; its slope by each ŷ is 2(ŷ - y)/N."""
    return float(((y - guess) ** 2).mean())


def bce(y: np.ndarray, p: np.ndarray) -> float:
    """Binary cross-entropy: how surprised the probability p of a yes is by the answers."""
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


def cce(one_hot: np.ndarray, p: np.ndarray) -> float:
    """Categorical cross-entropy: -log of the probability given to the right class, on average."""
    return float(-(one_hot * np.log(p)).sum(-1).mean())


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy_and_divergence(truth: np.ndarray, model: np.ndarray) -> tuple[float, float]:
    """Cross-entropy is their sum: what nobody can know, and what the model gets wrong."""
    return float(-(truth * np.log(truth)).sum()), float((truth * np.log(truth / model)).sum())


def gap(size: float, right: int) -> dict[str, list[float]]:
    """Scores [size, 0], `right` the right class: loss and gradients, computed in two ways.

    The guide's -Σ y·log(softmax(z)): softmax rounds to 0 in float32, whose log is -∞, and 0 times
    that is not a number. tinygrad's cross-entropy takes the logarithm before anything can round:
    z - log Σ eᶻ.
    """
    answer = Tensor(np.eye(2, dtype=np.float32)[None, right]).realize()
    result = {}
    for name, loss_of in (("guide", lambda z: -(answer * z.softmax().log()).sum()),
                          ("logits", lambda z: z.cross_entropy(answer))):
        z = Tensor([[size, 0.0]]).realize()
        loss = loss_of(z)
        values = numbers(loss, *loss.gradient(z))
        result[name] = [float(values[0]), *values[1][0].tolist()]
    return result


def confident_and_right() -> dict[str, tuple[float, float]]:
    """Two models of four yes-answers: (cross-entropy, accuracy). The lower loss is right less."""
    models = {"careful": np.array([0.51, 0.51, 0.51, 0.51]),
              "bold": np.array([0.99, 0.99, 0.99, 0.49])}
    return {name: (bce(np.ones(4), p), float((p > 0.5).mean())) for name, p in models.items()}


# ---- backpropagation ---------------------------------------------------------------------------

def guide_example() -> dict[str, float]:
    """z = x·w + b, loss = z² with x = 2, w = 3, b = 1."""
    x, w, b = Tensor([2.0]), Tensor([3.0]), Tensor([1.0])
    z = x * w + b
    loss = z.pow(2).mean()
    loss.backward()
    values = numbers(z, loss, w.grad, x.grad, b.grad)
    return dict(zip(("z", "loss", "dw", "dx", "db"), (v.item() for v in values), strict=True))


def one_layer_by_hand(x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray) -> dict:
    """The guide's backward pass for L = MSE(relu(x W + b), y), for a whole batch of samples."""
    z = x @ w + b
    a = np.maximum(z, 0)
    dz = 2 * (a - y) / a.size * (z > 0)                    # dL/da, and the slope of ReLU
    return {"w": x.T @ dz, "b": dz.sum(0), "x": dz @ w.T}  # each sample's blame, added up


def one_layer_by_tinygrad(x, w, b, y) -> dict:
    t = {name: Tensor(v.astype(np.float32)).realize() for name, v in zip(
        "xwby", (x, w, b, y), strict=True)}
    loss = ((t["x"] @ t["w"] + t["b"]).relu() - t["y"]).square().mean()
    return dict(zip("wbx", numbers(*loss.gradient(t["w"], t["b"], t["x"])), strict=True))


def three_layers(rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Parameters W₁ b₁ W₂ b₂ W₃ b₃ of a 3-4-4-2 network, five samples, their classes (one-hot)."""
    sizes = (3, 4, 4, 2)
    shapes = [shape for n, m in itertools.pairwise(sizes) for shape in ((n, m), (m,))]
    return ([rng.normal(size=s) for s in shapes], rng.normal(size=(5, 3)),
            np.eye(2)[rng.integers(0, 2, 5)])


def network_loss(parameters: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    w1, b1, w2, b2, w3, b3 = parameters
    hidden = np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0)
    z = hidden @ w3 + b3
    return float((np.logaddexp.reduce(z, axis=1) - (y * z).sum(1)).mean())  # finite for every z


def network_by_tinygrad(parameters, x, y) -> list[np.ndarray]:
    w1, b1, w2, b2, w3, b3 = p = [Tensor(v.astype(np.float32)).realize() for v in parameters]
    inputs, answers = (Tensor(v.astype(np.float32)).realize() for v in (x, y))
    logits = ((inputs @ w1 + b1).relu() @ w2 + b2).relu() @ w3 + b3
    return numbers(*logits.cross_entropy(answers).gradient(*p))


def by_finite_differences(parameters, x, y, h: float = 1e-6) -> list[np.ndarray]:
    """What the loss does when one number moves a little, for every number."""
    slopes = [np.empty_like(p) for p in parameters]
    for p, slope in zip(parameters, slopes, strict=True):
        for place in np.ndindex(p.shape):
            kept, losses = p[place], []
            for moved in (kept + h, kept - h):
                p[place] = moved
                losses.append(network_loss(parameters, x, y))
            p[place], slope[place] = kept, (losses[0] - losses[1]) / (2 * h)
    return slopes


def step_size(rate: float) -> float:
    """How the loss of that network changes in one step of gradient descent."""
    parameters, x, y = three_layers(np.random.default_rng(0))
    gradients = by_finite_differences(parameters, x, y)
    moved = [p - rate * g for p, g in zip(parameters, gradients, strict=True)]
    return network_loss(moved, x, y) - network_loss(parameters, x, y)


KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "x + 1": lambda x: x + 1, "x · x": lambda x: x * x, "exp2(x)": lambda x: x.exp2(),
    "sin(x)": lambda x: x.sin(), "relu(x)": lambda x: x.relu(), "sum(x)": lambda x: x.sum(),
}


def kept_for_the_way_back(name: str) -> str:
    """Which values of the forward pass the gradient's own graph reads: input, output or nothing."""
    x = Tensor([0.5, 2.0]).realize()
    y = KEPT[name](x)
    (gradient,) = y.sum().gradient(x)
    used = gradient.uop.toposort()
    return ("its output" if y.uop in used else "its input" if x.uop in used else "nothing")


def graph_of_a_network() -> dict[str, int]:
    """How often each operation stands in the graph of x -> matmul -> relu -> matmul -> loss."""
    x, w1, w2 = Tensor.ones(5, 3), Tensor.ones(3, 4), Tensor.ones(4, 2)
    loss = ((x @ w1).relu() @ w2).square().mean()
    found = [u.op.name for u in loss.uop.toposort()]
    return {op: found.count(op) for op in ("MUL", "REDUCE", "ADD", "WHERE")} | {"all": len(found)}


# ---- through many layers -------------------------------------------------------------------------

# Here by hand, in NumPy's float64: exploding gradients soon leave float32 behind.

def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# name: (f(z), its slope given z and f(z))
ACTIVATIONS = {
    "sigmoid": (sigmoid, lambda z, a: a * (1 - a)),
    "tanh": (np.tanh, lambda z, a: 1 - a * a),
    "relu": (lambda z: np.maximum(z, 0), lambda z, a: z > 0),
}


def gradients_of_deep(activation: str, depth: int = 10, gain: float = 1.0, residual: bool = False,
                      norm: bool = False, width: int = 32) -> list[np.ndarray]:
    """The gradient of the loss by each layer's weights, first layer first.

    A layer is h -> f(h @ W), with `residual` h + f(h @ W), with `norm` h -> f(normalized h @ W):
    each unit's mean 0 and variance 1 over the batch. W has standard deviation gain/√width.
    """
    f, slope = ACTIVATIONS[activation]
    rng = np.random.default_rng(0)
    h, answers = rng.normal(size=(2, 64, width))
    weights = gain / math.sqrt(width) * rng.normal(size=(depth, width, width))
    kept = []
    for w in weights:  # forward: keep what the way back will need
        z, spread = h @ w, 1.0
        if norm:
            spread = np.sqrt(z.var(0) + 1e-5)
            z = (z - z.mean(0)) / spread
        a = f(z)
        kept.append((h, z, a, spread))
        h = h + a if residual else a
    dh = 2 * (h - answers) / h.size
    gradients = []
    for w, (before, z, a, spread) in zip(weights[::-1], kept[::-1], strict=True):
        dz = dh * slope(z, a)
        if norm:  # every sample moved the mean and the variance, too
            dz = (dz - dz.mean(0) - z * (dz * z).mean(0)) / spread
        gradients.append(before.T @ dz)
        dh = dz @ w.T + (dh if residual else 0)  # the residual's own way back: nothing multiplies
    return gradients[::-1]


def deep_by_tinygrad(activation: str, depth: int, gain: float, residual: bool, norm: bool,
                     width: int = 32) -> list[np.ndarray]:
    """The same network, the way back left to tinygrad."""
    rng = np.random.default_rng(0)
    h, answers = (Tensor(v.astype(np.float32)).realize() for v in rng.normal(size=(2, 64, width)))
    weights = [Tensor(w.astype(np.float32)).realize()
               for w in gain / math.sqrt(width) * rng.normal(size=(depth, width, width))]
    for w in weights:
        z = h @ w
        if norm:
            z = (z - z.mean(0)) * (z.var(0, correction=0) + 1e-5).rsqrt()
        a = getattr(z, activation)()
        h = h + a if residual else a
    return numbers(*(h - answers).square().mean().gradient(*weights))


def norms(gradients: list[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(g)) for g in gradients]


def length(gradients: list[np.ndarray]) -> float:
    """All parameters' numbers seen as one arrow."""
    return math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients))


def clip(gradients: list[np.ndarray], most: float) -> list[np.ndarray]:
    """Shorten that arrow to at most this length; its direction stays."""
    return [g * min(1.0, most / length(gradients)) for g in gradients]


DEEP: dict[str, dict] = {  # what the picture shows: name -> options of `gradients_of_deep`
    "sigmoid": {"activation": "sigmoid"},
    "tanh": {"activation": "tanh"},
    "ReLU": {"activation": "relu", "gain": math.sqrt(2)},
    "sigmoid, residual": {"activation": "sigmoid", "residual": True},
    "sigmoid, batch norm": {"activation": "sigmoid", "norm": True},
}


# ---- how to start --------------------------------------------------------------------------------

def signal(std: Callable[[int, int], float], depth: int = 10, width: int = 256) -> list[float]:
    """How large a ReLU network's values are, layer by layer, for weights of that spread."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(256, width))
    sizes = [float(np.sqrt((h**2).mean()))]
    for _ in range(depth):
        h = np.maximum(h @ (std(width, width) * rng.normal(size=(width, width))), 0)
        sizes.append(float(np.sqrt((h**2).mean())))
    return sizes


def kaiming(fan_in: int, fan_out: int) -> float:
    """Keeps the size through ReLU, which halves the squares: √(2 / inputs)."""
    return math.sqrt(2 / fan_in)


def glorot(fan_in: int, fan_out: int) -> float:
    """Between forward and backward, made for tanh: √(2 / (inputs + outputs))."""
    return math.sqrt(2 / (fan_in + fan_out))


def start_from(weight: float | None, steps: int = 5) -> float:
    """Train 3-4-1 from all weights equal (None: random); how unlike its hidden units become."""
    Tensor.manual_seed(0)
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(16, 3)).astype(np.float32)).realize()
    y = x.sum(1, keepdim=True).square().realize()
    w1, w2 = (Tensor.randn(*s) if weight is None else Tensor.full(s, weight).contiguous()
              for s in ((3, 4), (4, 1)))
    Tensor.realize(w1, w2)
    optimizer = nn.optim.SGD([w1, w2], lr=0.01)
    for _ in range(steps):
        with Context(TRAINING=1):
            optimizer.zero_grad()
            ((x @ w1).tanh() @ w2 - y).square().mean().backward()
            optimizer.step()
    return float(np.ptp(w1.numpy(), axis=1).max())


def first_loss(swapped: bool, samples: int = 200) -> float:
    """The loss of 784-256-128-10 on MNIST before any learning, with the guide's `Linear` or not.

    The guide asks `Tensor.kaiming_uniform(inputs, outputs)`, which takes the last size for the
    number of inputs; the numbers of inputs and outputs are swapped.
    """
    Tensor.manual_seed(0)
    digits = mnist()
    h = Tensor(digits.train_images[:samples].reshape(-1, 784).astype(np.float32) / 255).realize()
    labels = Tensor(digits.train_labels[:samples].astype(np.int32)).realize()
    for i, (n, m) in enumerate(((784, 256), (256, 128), (128, 10))):
        w = Tensor.kaiming_uniform(n, m) if swapped else nn.Linear(n, m).weight.T
        h = (h.relu() if i else h) @ w
    return h.sparse_categorical_crossentropy(labels).item()


# ---- the lesson --------------------------------------------------------------------------------

def draw(deep: dict[str, list[float]], starts: dict[str, list[float]]) -> str:
    page = Picture("Losses, and what becomes of gradients and signals in ten layers", 1080, 400,
                   "cross-entropy, gradient sizes layer by layer, signal sizes by initialisation")
    chart = Chart(page, (46, 92, 240, 200), (0, 1), (0, 5), "two losses, the truth being yes",
                  "predicted probability of yes", xticks=(0, 0.5, 1))
    p = np.linspace(0.001, 0.999, 400)
    chart.line(p, -np.log(p), "orange")
    chart.line(p, (1 - p) ** 2, "blue")
    chart.note(0.12, 3.6, "cross-entropy: −log p", "ink orange")
    chart.note(0.04, 0.18, "(1 − p)²", "ink blue")
    colours = ("blue", "green", "orange", "pink", "gold")
    chart = Chart(page, (380, 92, 300, 200), (1, 10), (1e-9, 10), "gradient by layer",
                  "layer (the loss is at the right)", log=True, xticks=(1, 4, 7, 10),
                  yticks=(1, 1e-2, 1e-4, 1e-6, 1e-8))
    for sizes, css in zip(deep.values(), colours, strict=True):
        chart.line(range(1, 11), sizes, css)
        chart.dots(range(1, 11), sizes, css, 3)
    named = list(zip(colours, deep, strict=True))
    page.add(*legend(380, 358, named[:3], 110), *legend(380, 382, named[3:], 160))
    chart = Chart(page, (770, 92, 280, 200), (0, 10), (1e-12, 1e6), "signal in a ReLU network",
                  "layer", log=True, xticks=(0, 5, 10), yticks=(1e6, 1, 1e-6, 1e-12))
    for sizes, css in zip(starts.values(), colours[:4], strict=True):
        chart.line(range(11), sizes, css)
    named = list(zip(colours[:4], starts, strict=True))
    page.add(*legend(770, 358, named[:2], 150), *legend(770, 382, named[2:], 150),
             words(1054, 32, "log scales but for the first", "quiet", "end"))
    return str(page)


STARTS = {"Kaiming √(2/n)": kaiming, "Glorot √(1/n)": glorot,
          "0.01": lambda n, m: 0.01, "3 × Kaiming": lambda n, m: 3 * kaiming(n, m)}


def main() -> None:
    lesson = Lesson("04_losses_and_gradients", __doc__)
    rng = np.random.default_rng(0)

    lesson.part("Losses")
    truth, model = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    unknown, wrong = entropy_and_divergence(truth, model)
    quality = confident_and_right()
    lesson.beside(
        ("cross-entropy: 0.99 when the truth is no", "very high", f"{bce(np.zeros(1), 0.99):.5f}"),
        ("  0.5 when the truth is no", "moderate", f"{bce(np.zeros(1), 0.5):.6f}"),
        ("  0.01 when the truth is no", "", f"{bce(np.zeros(1), 0.01):.5f}"),
        ("ten classes, no idea", "", f"{cce(np.eye(10), np.full((10, 10), 0.1)):.6f} = ln 10"),
        ("cross-entropy = entropy + divergence", "maximum likelihood",
         f"{float(-(truth * np.log(model)).sum()):.6f} = {unknown:.6f} + {wrong:.6f}"),
        *[(f"a {name} model: loss, accuracy", "", f"{loss:.3f}, {right:.0%}",
           "lower loss, fewer right" * (name == "bold"))
          for name, (loss, right) in quality.items()])

    lesson.part("log(softmax(z)) is not a loss to train with",
                "Two scores, `gap` apart: loss, and gradient by both.")
    rows = []
    gaps = ((10.0, 1), (100.0, 1), (104.0, 1), (104.0, 0), (200.0, 0))
    for size, right in gaps[::3] if lesson.quick else gaps:
        found = gap(size, right)
        rows.append((f"{size:g}", ("the higher", "the lower")[right],
                     *(", ".join(f"{v:.4g}" for v in found[k]) for k in ("guide", "logits"))))
    print(table(("gap", "right is", "the guide's log(softmax)", "cross_entropy on logits"), rows))
    lesson.say("⚠ From a gap of 104 on, softmax rounds to 0 in float32. The guide's loss is NaN",
               "  even where the answer is right, and so is every weight after the next step.")

    lesson.part("Backpropagation")
    chain = Tensor([2.0])
    (dx,) = (3 * chain + 1).square().sum().gradient(chain)
    five = Tensor([2.0])
    (five * five + five).sum().backward()
    example = guide_example()
    x, w, b, y = (rng.normal(size=s) for s in ((8, 3), (3, 4), (4,), (8, 4)))
    mine, theirs = one_layer_by_hand(x, w, b, y), one_layer_by_tinygrad(x, w, b, y)
    parameters, inputs, answers = three_layers(rng)
    pairs = zip(network_by_tinygrad(parameters, inputs, answers),
                by_finite_differences(parameters, inputs, answers), strict=True)
    try:
        Tensor([2.0], requires_grad=True)
        flag = "accepted"
    except TypeError:
        flag = "TypeError"
    lesson.beside(
        ("f = g², g = 3x + 1 at x = 2: df/dx", "chain rule", f"{dx.item():g}"),
        ("z = x·w + b, loss = z²: z, loss", "", f"{example['z']:g}, {example['loss']:g}"),
        ("  dw, dx, db", "computed", ", ".join(f"{example[k]:g}" for k in ("dw", "dx", "db"))),
        ("Tensor(…, requires_grad=True)", "needed", flag, "gone: every float Tensor can be asked"),
        ("y = x·x, L = y + x at 2: dL/dx", "5.0", f"{five.grad.item():g}",
         "print(x.grad) shows a graph; .item() computes it"),
        ("one layer by hand against tinygrad", "equal",
         f"{max(abs(mine[k] - theirs[k]).max() for k in 'wbx'):.0e} apart",
         "dL/dw = dL/dz·x is one sample; a batch: Xᵀ @ dZ"),
        ("three layers against finite differences", "equal",
         f"{max(abs(a - n).max() for a, n in pairs):.0e} apart"),
        ("a step of 0.01 changes the loss by", "decreases", f"{step_size(0.01):+.4f}"),
        ("a step of 100", "", f"{step_size(100):+.1f}", "only a small step is sure to help"))
    graph = graph_of_a_network()
    lesson.say("", "What the way back needs of the way there (from tinygrad's gradient graphs):",
               "  " + "; ".join(f"{name}: {kept_for_the_way_back(name)}" for name in KEPT),
               f"The graph of two layers and a loss: {graph['all']} nodes, "
               + ", ".join(f"{n} {op}" for op, n in graph.items() if op != "all"))

    lesson.part("Vanishing and exploding: gradients at the first and the last of ten layers")
    deep = {name: norms(gradients_of_deep(**options)) for name, options in DEEP.items()}
    says = ("vanishes", "vanishes", "a fix", "a fix", "a fix")
    half, big = (norms(gradients_of_deep("tanh", gain=gain)) for gain in (0.5, 5))
    notes = ("", "as large in the first layer as in the last", "", "", "")
    lesson.beside(*[(name, guide, f"{sizes[0]:.1e}, {sizes[-1]:.1e}: {sizes[0] / sizes[-1]:.0e}",
                     note)
                    for (name, sizes), guide, note in zip(deep.items(), says, notes, strict=True)])
    lesson.say(f"tanh with half these weights: {half[0]:.1e}, {half[-1]:.1e}, small; with five",
               f"times them, saturated: {big[0]:.1e}, {big[-1]:.1e}. Weights count, too.")
    lesson.say(f"(each sigmoid multiplies by at most ¼, ten of them by {0.25**10:.1e})", "")
    wild = gradients_of_deep("relu", depth=20, gain=3 * math.sqrt(2))
    tame = gradients_of_deep("relu", depth=20, gain=math.sqrt(2))
    lesson.beside(
        ("20 layers, Kaiming's weights × 3: gradient", "explodes", f"{length(wild):.1e}"),
        ("  clipped to 1", "a fix", f"{length(clip(wild, 1.0)):.6f}"),
        ("  Kaiming's weights", "a fix", f"{length(tame):.2f}"))

    lesson.part("How to start")
    starts = {name: signal(std) for name, std in STARTS.items()}
    lesson.beside(
        *[(f"weights {name}: signal after 10 layers", "", f"{sizes[-1]:.1e}")
          for name, sizes in starts.items()],
        ("all weights equal: hidden units differ by", "", f"{start_from(0.1):.0e}",
         "they stay one unit for ever"),
        ("random weights", "", f"{start_from(None):.1f}"))
    if not lesson.quick:
        lesson.beside(("first loss of the MNIST network (no idea is ln 10 = 2.30)", "",
                       f"{first_loss(False):.2f}"),
                      ("  by the guide's Linear", "", f"{first_loss(True):.2f}",
                       "it swaps the numbers of inputs and outputs"))

    lesson.picture(draw(deep, starts))
    data = [Tensor(v.astype(np.float32)).realize() for v in (x, w, b, y)]

    def one_layer() -> None:
        inputs, weights, bias, target = data
        loss = ((inputs @ weights + bias).relu() - target).square().mean()
        Tensor.realize(loss, *loss.gradient(weights, bias, inputs))

    lesson.kernels(one_layer)


if __name__ == "__main__":
    main()
