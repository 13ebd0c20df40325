"""Lesson 2, Project 1: a neuron in NumPy, its gradients by hand

    python examples/02_neuron_numpy.py [--quick] [--out DIR]

Guide, sections 9 and 15. No framework: the forward pass, the chain rule on paper, the update.
Gradients derived by hand are checked against finite differences. One neuron learns AND and OR.
The guide's goal for it is XOR, which no single neuron can do: the lesson shows why, and what two
hidden neurons change.
"""

import numpy as np
from guide_lesson import Chart, Lesson, Picture, legend, table

X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
TASKS = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "XOR": [0, 1, 1, 0]}


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def cross_entropy(p: np.ndarray, y: np.ndarray) -> float:
    """How surprised the predictions p are by the answers y (0 or 1), on average."""
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


# ---- one neuron --------------------------------------------------------------------------------

class Neuron:
    """p = sigmoid(x·w + b). The loss is cross-entropy, and its gradient is short:

        L = -log p  for y = 1, -log(1-p) for y = 0
        dL/dp = (p - y) / (p(1-p))        dp/dz = p(1-p)        so  dL/dz = p - y
        dz/dw = x,  dz/db = 1             so  dL/dw = (p - y)·x,  dL/db = p - y

    averaged over the samples.
    """

    def __init__(self, rng: np.random.Generator):
        self.w, self.b = rng.normal(size=2), np.zeros(1)

    def parameters(self) -> list[np.ndarray]:
        return [self.w, self.b]

    def forward(self, x: np.ndarray) -> np.ndarray:
        return sigmoid(x @ self.w + self.b)

    def gradients(self, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        dz = (self.forward(x) - y) / len(y)
        return [x.T @ dz, dz.sum(keepdims=True)]


# ---- two hidden neurons and one output -----------------------------------------------------------

class TwoLayers:
    """2-2-1: h = tanh(x W₁ + b₁), p = sigmoid(h·w₂ + b₂); nine numbers.

    Backwards, each line the chain rule once, from the value the forward pass kept:

        dz₂ = p - y                     (as in the neuron)
        dw₂ = hᵀ dz₂      db₂ = Σ dz₂
        dh  = dz₂ w₂                    (what each hidden neuron is to blame for)
        dz₁ = dh (1 - h²)               (tanh' = 1 - tanh²)
        dW₁ = xᵀ dz₁      db₁ = Σ dz₁
    """

    def __init__(self, rng: np.random.Generator):
        self.w1, self.b1 = rng.normal(size=(2, 2)), np.zeros(2)
        self.w2, self.b2 = rng.normal(size=2), np.zeros(1)

    def parameters(self) -> list[np.ndarray]:
        return [self.w1, self.b1, self.w2, self.b2]

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.h = np.tanh(x @ self.w1 + self.b1)  # kept for the way back
        return sigmoid(self.h @ self.w2 + self.b2)

    def gradients(self, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        dz2 = (self.forward(x) - y) / len(y)
        dw2, db2 = self.h.T @ dz2, dz2.sum(keepdims=True)
        dh = np.outer(dz2, self.w2)
        dz1 = dh * (1 - self.h**2)
        return [x.T @ dz1, dz1.sum(0), dw2, db2]


# ---- learning, and checking ----------------------------------------------------------------------

def finite_differences(model, x: np.ndarray, y: np.ndarray, h: float = 1e-5) -> list[np.ndarray]:
    """The gradient without calculus: wiggle each number a little, and see what the loss does."""
    result = []
    for parameter in model.parameters():
        slopes = np.empty_like(parameter)
        for place in np.ndindex(parameter.shape):
            kept, losses = parameter[place], []
            for moved in (kept + h, kept - h):
                parameter[place] = moved
                losses.append(cross_entropy(model.forward(x), y))
            parameter[place] = kept
            slopes[place] = (losses[0] - losses[1]) / (2 * h)
        result.append(slopes)
    return result


def gradient_error(model, x: np.ndarray, y: np.ndarray) -> float:
    return max(abs(mine - theirs).max() for mine, theirs in zip(
        model.gradients(x, y), finite_differences(model, x, y), strict=True))


def train(model, task: str, steps: int, rate: float) -> list[float]:
    """Gradient descent on all four samples at once; the loss before each step."""
    y, losses = np.array(TASKS[task], dtype=float), []
    for _ in range(steps):
        losses.append(cross_entropy(model.forward(X), y))
        for parameter, gradient in zip(model.parameters(), model.gradients(X, y), strict=True):
            parameter -= rate * gradient
    return losses


def accuracy(model, task: str) -> float:
    return float(((model.forward(X) > 0.5) == np.array(TASKS[task])).mean())


def best_line(task: str, tries: int, rng: np.random.Generator) -> float:
    """The best accuracy among many random neurons: what any straight line can separate."""
    z = X @ rng.normal(size=(2, tries)) + rng.normal(size=tries)
    return float(((z > 0) == np.array(TASKS[task])[:, None]).mean(0).max())


def with_tinygrad(model: Neuron, task: str) -> float:
    """The gradients by hand against tinygrad's: the largest difference."""
    from tinygrad import Tensor
    w, b = (Tensor(p.astype(np.float32)).realize() for p in model.parameters())
    x, y = (Tensor(np.array(a, np.float32)).realize() for a in (X, TASKS[task]))
    gradients = (x @ w + b).binary_crossentropy_logits(y).gradient(w, b)
    Tensor.realize(*gradients)
    return max(float(abs(theirs.numpy() - mine).max()) for theirs, mine in zip(
        gradients, model.gradients(X, np.array(TASKS[task])), strict=True))


# ---- the lesson --------------------------------------------------------------------------------

def draw(models: dict[str, Neuron | TwoLayers], curves: dict[str, list[float]]) -> str:
    page = Picture("What one neuron can learn, and what takes two layers", 1080, 316,
                   "decision regions for AND, OR and XOR, and the losses while learning")
    for i, (name, model) in enumerate(models.items()):
        chart = Chart(page, (40 + 178 * i, 84, 150, 150), (-0.5, 1.5), (-0.5, 1.5), name,
                      xticks=(0, 1), yticks=(0, 1))

        def side(x, y, model=model):
            return model.forward(np.stack([x, y], -1).reshape(-1, 2)).reshape(x.shape) > 0.5

        chart.regions(side, 75)
        answers = np.array(TASKS[name.split()[0]])
        for kind, css in enumerate(("blue", "orange")):
            chart.dots(*X[answers == kind].T, css, 7)
        right = round(4 * accuracy(model, name.split()[0]))
        chart.note(0.5, -0.5, f"{right} of 4 right", "quiet", "middle", dy=38)
    chart = Chart(page, (790, 84, 264, 150), (0, len(next(iter(curves.values())))), (0, 0.9),
                  "loss", "steps", yticks=(0, 0.3, 0.6, 0.9))
    names = (("AND", "green"), ("OR", "gold"), ("XOR", "pink"), ("2-2-1", "blue"))
    for (_, css), curve in zip(names, curves.values(), strict=True):
        chart.line(range(len(curve)), curve, css)
    chart.note(len(curve), np.log(2), "ln 2", "ink pink", "end", dy=-7)
    page.add(*legend(790, 300, [(css, name) for name, css in names], 70))
    return str(page)


def main() -> None:
    lesson = Lesson("02_neuron_numpy", __doc__)
    steps = 2000

    lesson.part("The gradient by hand, against finite differences (what h = 10⁻⁵ does to the loss)")
    y = np.array(TASKS["XOR"], dtype=float)
    lesson.beside(
        ("one neuron, 3 numbers", "< 1e-6",
         f"{gradient_error(Neuron(np.random.default_rng(0)), X, y):.0e} apart"),
        ("2-2-1, 9 numbers", "< 1e-6",
         f"{gradient_error(TwoLayers(np.random.default_rng(0)), X, y):.0e} apart"),
        ("the neuron by tinygrad's autograd (float32)", "the same",
         f"{with_tinygrad(Neuron(np.random.default_rng(0)), 'XOR'):.0e} apart"))

    lesson.part("One neuron learns AND and OR; XOR it cannot")
    models: dict[str, Neuron | TwoLayers] = {}
    curves = {}
    for task in TASKS:
        models[task] = model = Neuron(np.random.default_rng(0))
        curves[task] = train(model, task, steps, rate=1.0)
    lesson.beside(
        *[(f"{task}: right, last loss", "learnt",
           f"{accuracy(models[task], task):.0%}, {curves[task][-1]:.3f}")
          for task in ("AND", "OR")],
        ("XOR: last loss", "learnt", f"{curves['XOR'][-1]:.6f}",
         f"ln 2 = {np.log(2):.6f}: it says ½ to everything"),
        ("XOR: best of 100,000 random neurons", "",
         f"{best_line('XOR', 100_000, np.random.default_rng(0)):.0%}", "3 of 4 is the most"))
    lesson.say(
        "Why: a neuron splits the plane by one straight line, and no line has (0,1) and (1,0) on",
        "one side, (0,0) and (1,1) on the other. Added up: w₁ + b > 0 and w₂ + b > 0, so",
        "w₁ + w₂ + 2b > 0; but b < 0 and w₁ + w₂ + b < 0, so w₁ + w₂ + 2b < 0. Its loss is convex,",
        "with gradient 0 at w = 0, b = 0: there it ends, from wherever it starts.",
        "⚠ The guide's project asks a single neuron to learn XOR.")

    lesson.part("Two hidden neurons: XOR solved, with backpropagation by hand")
    tried = 5 if lesson.quick else 20
    solved = []
    for seed in range(tried):
        network = TwoLayers(np.random.default_rng(seed))
        curve = train(network, "XOR", steps, rate=1.0)
        if accuracy(network, "XOR") == 1:
            solved.append((seed, network, curve))
    seed, models["XOR 2-2-1"], curves["XOR 2-2-1"] = solved[0]
    lesson.beside(("XOR by 2-2-1: right, last loss", "learnt",
                   f"{accuracy(models['XOR 2-2-1'], 'XOR'):.0%}, {curves['XOR 2-2-1'][-1]:.4f}"),
                  (f"random starts that get there in {steps} steps", "",
                   f"{len(solved)} of {tried}"))
    network = models["XOR 2-2-1"]
    p = network.forward(X)
    print(table(("a b", "XOR", "hidden 1", "hidden 2", "output"), [
        (f"{int(x[0])} {int(x[1])}", str(int(t)), f"{h[0]:+.2f}", f"{h[1]:+.2f}", f"{out:.3f}")
        for x, t, h, out in zip(X, y, network.h, p, strict=True)]))
    lesson.say("The hidden layer moves the four points to where one line can separate them.",
               "With no neuron to spare, the start decides whether it does: lesson 3 has four.")

    lesson.picture(draw(models, curves))
    lesson.say("", "The project is NumPy: tinygrad only checked the neuron's gradient. There:")
    lesson.kernels(lambda: with_tinygrad(models["XOR"], "XOR"))


if __name__ == "__main__":
    main()
