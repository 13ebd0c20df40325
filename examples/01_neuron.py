"""Lesson 1: the neuron and its activations

    python examples/01_neuron.py [--quick] [--out DIR]

Guide, sections 4 to 7. A neuron is a weighted sum and a bend. The sum: z = w·x + b. The bend: an
activation f(z), without which any stack of layers is one layer. Here: why the bias, the tumour
example and what is wrong with it, every activation with its slope, the units that die, which to
use where, and a whole layer of neurons as one matrix product.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from guide_lesson import Chart, Lesson, Picture, legend, table
from tinygrad import Context, Tensor, TinyJit, nn

# ---- one neuron --------------------------------------------------------------------------------

def weighted_sum(x: list[float], w: list[float], b: float) -> float:
    """z = w₁x₁ + w₂x₂ + … + b, as the guide writes it."""
    z = b
    for wi, xi in zip(w, x, strict=True):
        z += wi * xi
    return z


def sigmoid(z):
    """1 / (1 + e⁻ᶻ), written so that neither end overflows."""
    return np.exp(-np.logaddexp(0, -np.asarray(z, dtype=float)))


TUMOUR = {"w": [0.8, 0.3], "b": -2.0, "x": [3.5, 45.0]}  # the guide's: size in cm, age in years


def tumour(size: float, age: float) -> tuple[float, float]:
    z = weighted_sum([size, age], TUMOUR["w"], TUMOUR["b"])
    return z, float(sigmoid(z))


def boundary(w: float, b: float) -> float:
    """Where the neuron is undecided, f = 0.5: at x = -b/w, so without a bias always at 0."""
    return -b / w


# ---- every activation --------------------------------------------------------------------------

def erf(z):
    return np.vectorize(math.erf, otypes=[float])(z)


def gelu_slope(z):
    return (1 + erf(z / math.sqrt(2))) / 2 + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


# name: (f, its slope written by hand, tinygrad's, range, where it is used)
Function = Callable[[np.ndarray], np.ndarray]
ACTIVATIONS: dict[str, tuple[Function, Function, Callable[[Tensor], Tensor], str, str]] = {
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z)), Tensor.sigmoid,
                "(0, 1)", "one yes-or-no output; gates of an RNN"),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, Tensor.tanh,
             "(-1, 1)", "states of an RNN; hidden layers, once"),
    "ReLU": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0, Tensor.relu,
             "[0, ∞)", "hidden layers"),
    "leaky ReLU": (lambda z: np.where(z < 0, 0.01 * z, z), lambda z: np.where(z < 0, 0.01, 1.0),
                   Tensor.leaky_relu, "(-∞, ∞)", "hidden layers where units die"),
    "GELU": (lambda z: z * (1 + erf(z / math.sqrt(2))) / 2, gelu_slope, lambda t: t.gelu("none"),
             "[-0.17, ∞)", "hidden layers, Transformers"),
    "GELU, tanh form": (
        lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        lambda z: slope(ACTIVATIONS["GELU, tanh form"][0], z), Tensor.gelu,
        "[-0.17, ∞)", "what tinygrad's gelu() is"),
    "GELU, z·σ(1.702z)": (
        lambda z: z * sigmoid(1.702 * z),
        lambda z: sigmoid(1.702 * z) * (1 + 1.702 * z * (1 - sigmoid(1.702 * z))),
        Tensor.quick_gelu, "[-0.16, ∞)", "the guide's formula"),
}


def slope(f: Function, z, h: float = 1e-5):
    """The slope without any calculus: the rise over a small step to both sides."""
    return (f(z + h) - f(z - h)) / (2 * h)


def softmax(z: np.ndarray) -> np.ndarray:
    """Scores to probabilities. Subtracting the largest changes nothing, and nothing overflows."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def compare_with_tinygrad(z: np.ndarray) -> dict[str, tuple[float, float]]:
    """For each activation, how far tinygrad's value and gradient are from the formulas above."""
    result = {}
    for name, (f, df, theirs, _, _) in ACTIVATIONS.items():
        x = Tensor(z.astype(np.float32))
        y = theirs(x)
        y.sum().backward()
        Tensor.realize(y, x.grad)
        result[name] = (float(abs(y.numpy() - f(z)).max()),
                        float(abs(x.grad.numpy() - df(z)).max()))
    return result


def recommend(layer: str) -> str:
    """The guide's table: which activation for which layer."""
    return {"hidden": "ReLU or GELU", "binary output": "sigmoid", "multi-class output": "softmax",
            "regression output": "none", "RNN gates": "tanh and sigmoid"}[layer]


# ---- units that die ----------------------------------------------------------------------------

def train_stuck(activation: Callable[[Tensor], Tensor], steps: int = 300) -> tuple[float, float]:
    """One unit starts at b = -100, where it is silent for every input; it should learn y = 2x + 1.

    The size of its first gradient, and the squared error in the end.
    """
    x = np.linspace(0, 1, 16, dtype=np.float32)
    inputs, answers = Tensor(x).realize(), Tensor(2 * x + 1).realize()
    w, b = Tensor([1.0]), Tensor([-100.0])
    optimizer = nn.optim.Adam([w, b], lr=1.0)

    def error() -> Tensor:
        return (activation(inputs * w + b) - answers).square().mean()

    first = sum(abs(gradient.item()) for gradient in error().gradient(w, b))

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = error().backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return first, error().item()


# ---- layers ------------------------------------------------------------------------------------

def collapse(rng: np.random.Generator) -> tuple[float, float]:
    """Two layers against the one layer W = W₂W₁, b = W₂b₁ + b₂: without a bend, and with ReLU."""
    w1, b1, w2, b2 = (rng.normal(size=s) for s in ((4, 3), (4,), (2, 4), (2,)))
    x = rng.normal(size=(3, 50))
    hidden, one = w1 @ x + b1[:, None], (w2 @ w1) @ x + (w2 @ b1 + b2)[:, None]
    return (float(abs(w2 @ hidden + b2[:, None] - one).max()),
            float(abs(w2 @ np.maximum(hidden, 0) + b2[:, None] - one).max()))


def parameters(*sizes: int) -> list[int]:
    """Numbers to learn in each layer of an MLP: n_in·n_out weights and n_out biases."""
    return [n * m + m for n, m in itertools.pairwise(sizes)]


class MLP:
    """The guide's network: 3 inputs, two hidden layers of 4, 2 outputs."""

    def __init__(self, *sizes: int):
        self.layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Every value on the way, by the guide's names; the last one, `output`, is the softmax."""
        values, a = {}, x
        for i, layer in enumerate(self.layers, 1):
            values[f"z{i}"] = z = layer(a)
            if i < len(self.layers):
                values[f"a{i}"] = a = z.relu()
        return values | {"output": z.softmax()}


def layer_equals_neurons(rng: np.random.Generator) -> float:
    """Z = X @ W + b against one weighted sum for each sample and neuron: the largest difference."""
    x, w, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)), rng.normal(size=4)
    loop = [[weighted_sum(row, w[:, j], b[j]) for j in range(4)] for row in x]
    return float(abs(x @ w + b - np.array(loop)).max())


def lstm_cell(x, h, c, weights) -> tuple[np.ndarray, np.ndarray]:
    """RNN gates: three sigmoids open and close (0 to 1), two tanhs are what passes (-1 to 1)."""
    forget, enter, leave, news = np.split(np.concatenate([x, h]) @ weights, 4)
    c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(news)
    return sigmoid(leave) * np.tanh(c), c


# ---- the lesson --------------------------------------------------------------------------------

def draw() -> str:
    page = Picture("Activations and their slopes", 1080, 356,
                   "sigmoid, tanh, ReLU, leaky ReLU and GELU with their derivatives")
    z = np.linspace(-4, 4, 321)
    shown = (("sigmoid", "blue"), ("tanh", "green"), ("leaky ReLU", "gold"),
             ("ReLU", "orange dashed"), ("GELU", "pink"))
    page.add(*legend(46, 64, [(css, name) for name, css in shown], 130))
    values = Chart(page, (46, 112, 300, 190), (-4, 4), (-1.2, 2.2), "f(z)", yticks=(-1, 0, 1, 2))
    slopes = Chart(page, (410, 112, 300, 190), (-4, 4), (-0.2, 1.2), "slope f'(z)",
                   yticks=(0, 0.25, 0.5, 1))
    for name, css in shown:
        f, df, *_ = ACTIVATIONS[name]
        for chart, function in ((values, f), (slopes, df)):
            chart.line(z, function(z), css)
    slopes.note(-3.9, 0.25, "at most ¼", "ink blue", dy=-6)
    far = np.linspace(0, 10, 200)
    fading = Chart(page, (784, 112, 270, 190), (0, 10), (1e-9, 2), "slope far from 0, log scale",
                   log=True, yticks=(1, 1e-2, 1e-4, 1e-6, 1e-8))
    for name, css in (*shown[:2], ("ReLU", "orange")):
        fading.line(far, ACTIVATIONS[name][1](far + 1e-9), css)
    fading.note(10, 1, "ReLU stays at 1", "ink orange", "end", dy=18)
    for chart in (values, slopes):
        chart.note(0, chart.y[0], "z", "quiet", "middle", dy=40)
    fading.note(5, 1e-9, "z", "quiet", "middle", dy=40)
    return str(page)


def main() -> None:
    lesson = Lesson("01_neuron", __doc__)
    rng = np.random.default_rng(0)

    lesson.part("A neuron: z = w·x + b, a = f(z)")
    z, a = tumour(*TUMOUR["x"])
    healthy, alarm = tumour(0, 45)
    lesson.beside(
        ("tumour of 3.5 cm, age 45: z", "14.3", f"{z:.6f}"),
        ("sigmoid(14.3)", "≈ 0.9999", f"{a:.8f}", "0.9999 would be z = 9.21"),
        ("no tumour at all, age 45: z", "", f"{healthy:.1f} -> {alarm:.5f}",
         "\"malignant\": age in years drowns size in cm"),
        ("loop against dot product", "equal",
         f"{abs(z - float(np.dot(TUMOUR['w'], TUMOUR['x']) + TUMOUR['b'])):.0e} apart"))
    lesson.say("The cure is to standardize: subtract each feature's mean, divide by its spread.",
               "", "Why the bias? Undecided (f = ½) is where w·x + b = 0:",
               f"  w = 2, b = 0: at x = {boundary(2, 0):+.1f}, as for any w;"
               f"  w = 2, b = -6: at x = {boundary(2, -6):+.1f}")

    lesson.part("Every activation, its slope, and tinygrad's version of both")
    grid = np.array([-5.0, -2.27, -0.75, -0.1, 0.1, 1, 2, 5])
    apart = compare_with_tinygrad(grid)
    print(table(("activation", "range", "f(1)", "f'(1)", "f'(5)", "f'(-5)", "tinygrad off", "use"),
                [(name, bounds, f"{f(1.0):.6f}", f"{df(np.array(1.0)):.4f}",
                  f"{float(df(np.array(5.0))):.2e}", f"{float(df(np.array(-5.0))):.2e}",
                  f"{max(apart[name]):.0e}", use)
                 for name, (f, df, _, bounds, use) in ACTIVATIONS.items()]))
    wide = np.linspace(-6, 6, 12001)
    exact, form, quick = (ACTIVATIONS[n][0](wide) for n in list(ACTIVATIONS)[4:])
    lesson.beside(
        ("largest slope of the sigmoid, at z = 0", "vanishing",
         f"{ACTIVATIONS['sigmoid'][1](0.0):.2f}"),
        ("sigmoid'(10)", "vanishing", f"{ACTIVATIONS['sigmoid'][1](10.0):.2e}"),
        ("tanh(z) = 2σ(2z) - 1", "zero-centred",
         f"{abs(np.tanh(wide) - 2 * sigmoid(2 * wide) + 1).max():.0e} apart"),
        ("z·σ(1.702z) against GELU", "≈", f"{abs(quick - exact).max():.4f} apart",
         f"at z = {wide[abs(quick - exact).argmax()]:.2f}; the tanh form: "
         f"{abs(form - exact).max():.1e}"),
        ("GELU is lowest at", "smooth ReLU", f"z = {wide[exact.argmin()]:.2f}",
         "unlike ReLU it falls, then rises"))
    ties = {name: Tensor([0.0]) for name in ("relu", "leaky_relu")}
    for name, x in ties.items():
        getattr(x, name)().sum().backward()
    lesson.say("At exactly 0 there is no slope, and a library has to choose: tinygrad says "
               f"{ties['relu'].grad.item():g} for relu, {ties['leaky_relu'].grad.item():g} "
               "for leaky_relu.")

    lesson.part("Softmax: scores to probabilities")
    scores = np.array([2.0, 1.0, 0.1])
    p = softmax(scores)
    lesson.beside(
        (f"softmax{tuple(scores.tolist())}", "sums to 1",
         " ".join(f"{v:.4f}" for v in p) + f", sum {p.sum():.6f}"),
        ("all scores + 1000", "", f"{abs(softmax(scores + 1000) - p).max():.0e} apart"),
        ("two classes: softmax = σ(z₁ - z₀)", "",
         f"{abs(softmax(np.array([0.3, 1.5]))[1] - sigmoid(1.2)):.0e} apart"),
        ("its slopes, diag(p) - ppᵀ", "", " / ".join(
            " ".join(f"{v:+.3f}" for v in row) for row in np.diag(p) - np.outer(p, p))))

    lesson.part("Dying ReLU: a unit that is silent everywhere gets no gradient, and stays silent")
    steps = 300 if lesson.quick else 600
    dead, alive = train_stuck(Tensor.relu, steps), train_stuck(Tensor.leaky_relu, steps)
    lesson.beside(("ReLU from b = -100: first gradient, error", "stuck at 0",
                   f"{dead[0]:g}, {dead[1]:.3f}"),
                  ("leaky ReLU from there", "", f"{alive[0]:.3f}, {alive[1]:.3f}"))
    lesson.say("⚠ \"No vanishing gradient for z > 0\" is true of one unit. Through many layers the",
               "  gradient is also multiplied by the weights, and these may shrink it: lesson 4.")

    lesson.part("Which to use")
    kinds = ("hidden", "binary output", "multi-class output", "regression output", "RNN gates")
    print(table(("layer", "activation"), [(kind, recommend(kind)) for kind in kinds]))
    h, _ = lstm_cell(np.ones(2), np.zeros(3), np.zeros(3), rng.normal(size=(5, 12)))
    lesson.say(f"(an LSTM cell, run: its output {np.round(h, 2).tolist()} stays within ±1)",
               "⚠ Sigmoid and softmax belong inside the loss: a network that ends in one needs",
               "  log(softmax), which becomes NaN. End in raw scores (logits). Lesson 4 shows it.")

    lesson.part("Layers: many neurons are one matrix product, Z = X @ W + b")
    flat, bent = collapse(rng)
    sizes = parameters(784, 256, 128, 10)
    lesson.beside(
        ("X @ W + b against neuron by neuron", "equal", f"{layer_equals_neurons(rng):.0e} apart"),
        ("two linear layers against one", "collapse", f"{flat:.0e} apart"),
        ("the same with ReLU between", "", f"{bent:.1f} apart"),
        ("parameters of 3-4-4-2", "", f"{sum(parameters(3, 4, 4, 2))}"),
        ("784 -> 256", "201,216", f"{sizes[0]:,}", "200,704 + 256: the bias was added twice"),
        ("256 -> 128", "32,896", f"{sizes[1]:,}"), ("128 -> 10", "1,290", f"{sizes[2]:,}"),
        ("in all", "235,402", f"{sum(sizes):,}", "as examples/mnist.py counts its own"))
    Tensor.manual_seed(0)
    model = MLP(3, 4, 4, 2)
    Tensor.realize(*nn.state.get_parameters(model))
    x = Tensor([[0.5, -1.0, 2.0]]).realize()
    lesson.say("", "The forward pass, layer by layer (⚠ the guide's \"2-layer MLP\" has three",
               "layers of weights: two hidden ones and the output):")
    for name, value in model.forward(x).items():
        numbers = value.numpy()[0].astype(float).round(3).tolist()
        lesson.say(f"  {name:6} {tuple(value.shape)}  {numbers}")

    lesson.picture(draw())
    lesson.kernels(lambda: model.forward(x)["output"].realize())


if __name__ == "__main__":
    main()
