"""Lesson 7: the MLP that reads digits (Project 2)

    python examples/07_mlp.py [--quick] [--out DIR]

Guide, sections 6, 7, 11 and 14. Neuron, Linear and MLP on today's tinygrad; 784-256-128-10 trained
on all of MNIST past 97 %, by examples/mnist.py, whose parts are explained here; what it learnt to
look at, what it still gets wrong, and the kernels of one step.
"""

import dataclasses
import itertools

import mnist as program
import numpy as np
from guide_data import Images, mnist
from guide_lesson import Chart, Lesson, Picture, bitmap, table, words
from guide_report import Stop, progress_bar, smooth
from rich.console import Console
from tinygrad import Context, Tensor, nn

# ---- the guide's classes, on today's tinygrad ----------------------------------------------------

class Neuron:
    """Weights and a bias; no ReLU at the end, or half of all starts would be dead: gradient 0."""

    def __init__(self, inputs: int):
        self.w = (Tensor.randn(inputs, 1) * 0.01).realize()  # drawn now, once
        self.b = Tensor.zeros(1).contiguous().realize()

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b


class Linear:
    """A layer of neurons: W is [outputs, inputs], so that kaiming_uniform sees the inputs last."""

    def __init__(self, inputs: int, outputs: int):
        self.w = Tensor.kaiming_uniform(outputs, inputs).realize()
        self.b = Tensor.zeros(outputs).contiguous().realize()

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.w.T + self.b


class MLP:
    """Layers of those sizes with ReLU between them; returns scores, no softmax (lesson 4)."""

    def __init__(self, sizes: list[int]):
        self.linears = [Linear(n, m) for n, m in itertools.pairwise(sizes)]

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.linears[:-1]:
            x = layer(x).relu()
        return self.linears[-1](x)


def summary(model: MLP) -> list[tuple[str, str, int]]:
    """Each layer: its kind, its numbers of inputs and outputs, its parameters."""
    rows = [("input", f"{model.linears[0].w.shape[1]}", 0)]
    for layer in model.linears:
        kind = "output" if layer is model.linears[-1] else "hidden"
        outputs, inputs = layer.w.shape
        rows.append((kind, f"{inputs} → {outputs}", layer.w.numel() + layer.b.numel()))
    return rows


def train_neuron(steps: int = 50) -> list[float]:
    """One neuron learns y = 2x₁ - x₂ + 0.5 from 32 samples: its losses."""
    Tensor.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    inputs, answers = Tensor(x).realize(), Tensor(x @ [[2.0], [-1.0]] + 0.5).float().realize()
    neuron = Neuron(2)
    optimizer = nn.optim.SGD([neuron.w, neuron.b], lr=0.2)
    losses = []
    for _ in range(steps):
        with Context(TRAINING=1):
            optimizer.zero_grad()
            loss = (neuron(inputs) - answers).square().mean().backward()
            losses.append(loss.realize(*optimizer.schedule_step()).item())
    return losses


def two_kinds_of_labels(model, images: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and last layer's gradient, from one-hot rows as the guide has them and from classes."""
    results = []
    for loss_of in (
            lambda z: z.cross_entropy(Tensor(np.eye(10, dtype=np.float32)[labels])),
            lambda z: z.sparse_categorical_crossentropy(Tensor(labels.astype(np.int32)))):
        loss = loss_of(model(images))
        (slope,) = loss.gradient(model.linears[-1].w)
        results.append(np.append(slope.numpy(), loss.item()))
    return results[0], results[1]


# ---- the training, by examples/mnist.py ----------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Run:
    model: program.MLP
    curve: list[tuple[float, float, float]]      # epoch, mean loss and accuracy of a few steps
    tests: list[tuple[int, float, float]]        # epoch, loss and accuracy on the test set
    scores: np.ndarray                           # the trained network's, for the test set


def train(digits: Images, epochs: int, seed: int = 0) -> Run:
    Tensor.manual_seed(seed)
    model = program.build("mlp")
    trainer = program.Trainer(model, digits, 64, program.DEFAULTS["mlp"]["lr"], epochs, seed)
    evaluate = program.evaluator(model, digits)
    curve, tests, stop = [], [(0, *evaluate())], Stop()
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("learning", total=epochs * trainer.steps, now="")
        for epoch in range(1, epochs + 1):
            done = 0
            for steps, loss, accuracy, _ in trainer.epoch(stop):
                done += steps
                curve.append((epoch - 1 + done / trainer.steps, loss, accuracy))
                bar.update(task, advance=steps, now=f"loss {loss:.3f}")
            tests.append((epoch, *evaluate()))
    images = Tensor(digits.test_images.astype(np.float32) / 255).realize()
    return Run(model, curve, tests, model(images).numpy())


def flat(loss: Tensor, right: Tensor, updates: list[Tensor]) -> list[Tensor]:
    return [loss, right, *updates]


def worst_mistakes(scores: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """The test images that it got wrong and was surest of."""
    sure = np.exp(scores - scores.max(1, keepdims=True))
    sure = sure.max(1) / sure.sum(1)
    wrong = np.flatnonzero(scores.argmax(1) != labels)
    return wrong[sure[wrong].argsort()[::-1][:count]].tolist()


def confusions(scores: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    """How often a digit was taken for another: (how often, digit, answer), most frequent first."""
    answers = scores.argmax(1)
    return sorted(((int(((labels == a) & (answers == b)).sum()), a, b)
                   for a in range(10) for b in range(10) if a != b), reverse=True)


# ---- the lesson ----------------------------------------------------------------------------------

def weight_tile(weights: np.ndarray) -> np.ndarray:
    """One neuron's 784 weights as a picture: blue where ink speaks against it, orange for it."""
    w = (weights / abs(weights).max()).reshape(28, 28, 1)
    ends = np.array([[0, 114, 178], [255, 255, 255], [213, 94, 0]], float)
    return (ends[1] + abs(w) * (np.where(w < 0, ends[0], ends[2]) - ends[1])).astype(np.uint8)


def draw(run: Run, digits: Images) -> str:
    page = Picture("An MLP learns to read", 1080, 500,
                   "loss and accuracy; the first layer's weights; its surest mistakes")
    epochs = run.tests[-1][0]
    epoch, loss, accuracy = np.array(run.curve).T
    loss, accuracy = (np.array(smooth(list(zip(epoch, curve, strict=True))))[:, 1]
                      for curve in (loss, accuracy))
    losses = [*loss, *(t[1] for t in run.tests)]
    low = min(losses) * 0.8
    chart = Chart(page, (56, 92, 300, 140), (0, epochs), (low, 3), "loss (log scale)", log=True,
                  yticks=[tick for tick in (0.01, 0.03, 0.1, 0.3, 1) if tick > low])
    chart.line(epoch, loss, "blue")
    chart.dots([t[0] for t in run.tests], [t[1] for t in run.tests], "orange", 5)
    low = np.floor(100 * run.tests[1][2]) - 1
    chart = Chart(page, (56, 290, 300, 140), (0, epochs), (low, 100), "accuracy, %", "epochs")
    chart.line(epoch, 100 * accuracy, "blue")
    chart.dots([t[0] for t in run.tests[1:]], [100 * t[2] for t in run.tests[1:]], "orange", 5)
    page.add(words(76, 490, "line: training, smoothed", "ink blue"),
             words(290, 490, "dots: the test set", "ink orange"))
    weights = run.model.layer1.weight.numpy()
    page.add(words(410, 82, "what 16 of the 256 first neurons look at", "head"))
    for i, row in enumerate(weights[:16]):
        page.add(bitmap(410 + 78 * (i % 4), 92 + 78 * (i // 4), weight_tile(row), 2.6))
    page.add(words(410, 424, "orange: ink speaks for it; blue: against it.", "quiet"),
             words(410, 444, "No edges: each pixel has a weight of its own.", "quiet"))
    page.add(words(760, 82, "its surest mistakes", "head"))
    for i, at in enumerate(worst_mistakes(run.scores, digits.test_labels, 12)):
        left, top = 760 + 78 * (i % 4), 92 + 104 * (i // 4)
        image = np.repeat(255 - digits.test_images[at][..., None], 3, axis=2)
        page.add(bitmap(left, top, image, 2.5), words(
            left, top + 87, f"{digits.test_labels[at]} read as {run.scores[at].argmax()}"))
    return str(page)


PARTS = (  # of examples/mnist.py: what the guide has there, what it does, and why
    ("data", "pixels as float64, / 255", "bytes; / 255 on the device", "a quarter of the transfer"),
    ("model", "ends in softmax", "ends in scores", "log(softmax) becomes NaN (lesson 4)"),
    ("weights", "kaiming_uniform(inputs, outputs)", "nn.Linear", "the guide's fan-in is swapped"),
    ("labels", "one-hot rows", "classes", "the same loss and gradient, a tenth of the bytes"),
    ("last batch", "32 samples", "filled up to 64", "another shape is other kernels"),
    ("step", "plain Python", "TinyJit", "Python's part is paid twice, not 4,690 times"),
    ("loss", "loss.numpy() each step", "summed up on the device", "nobody waits for a number"),
    ("α", "1e-3", "2e-3, falling to 0", "lesson 5"),
)


def main() -> None:
    lesson = Lesson("07_mlp", __doc__)

    lesson.part("Neuron, Linear, MLP")
    losses = train_neuron(10 if lesson.quick else 50)
    Tensor.manual_seed(0)
    model = MLP([784, 256, 128, 10])
    digits = mnist()
    some = Tensor(digits.test_images[:64].reshape(-1, 784).astype(np.float32) / 255).realize()
    a, b = two_kinds_of_labels(model, some, digits.test_labels[:64])
    rows = summary(model)
    print(table(("layer", "size", "parameters"), [(kind, size, f"{n:,}") for kind, size, n in rows],
                right=(2,)))
    lesson.beside(
        ("a neuron learns y = 2x₁ - x₂ + 0.5: loss", "", f"{losses[0]:.3f} -> {losses[-1]:.0e}"),
        ("parameters in all", "235,402", f"{sum(n for _, _, n in rows):,}",
         "the guide counts a bias of 256 twice"),
        ("one-hot rows or classes: loss and gradient", "the same", f"{abs(a - b).max():.0e} apart"))

    lesson.part("examples/mnist.py, beside the guide's script")
    print(table(("", "the guide", "mnist.py", "why"), PARTS))

    epochs = program.DEFAULTS["mlp"]["epochs"]
    if lesson.quick:
        epochs, digits = 4, dataclasses.replace(digits, train_images=digits.train_images[:1280],
                                                train_labels=digits.train_labels[:1280],
                                                test_images=digits.test_images[:1000],
                                                test_labels=digits.test_labels[:1000])
    lesson.part(f"Training: {len(digits.train_images):,} digits, {epochs} epochs")
    run = train(digits, epochs)
    wrong = int((run.scores.argmax(1) != digits.test_labels).sum())
    lesson.beside(
        ("first loss (knowing nothing: ln 10 = 2.303)", "", f"{run.tests[0][1]:.3f}"),
        *[(f"epoch {n}: test loss, accuracy", "> 97 %" * (n == epochs), f"{loss:.4f}, {right:.2%}")
          for n, loss, right in run.tests[1:]],
        (f"wrong, of {len(digits.test_labels):,}", "", f"{wrong}"))
    lesson.say("Most often: " + "; ".join(f"{a} read as {b} ({n} times)" for n, a, b in confusions(
        run.scores, digits.test_labels)[:4]))
    lesson.say("⚠ The guide: \"layer 1 edges, layer 2 shapes, layer 3 parts\". That is said of",
               "  convolutions (lesson 8); the picture shows what dense neurons look at.")

    lesson.picture(draw(run, digits))
    lesson.say("", "A training step of mnist.py on 64 digits: three layers forward, the loss, back",
               "through the layers; for each of six parameters Adam's m, its v, the new numbers,",
               "and a copy of these to where the parameter lies.")
    net, adam = run.model, nn.optim.Adam(nn.state.get_parameters(run.model), lr=1e-3)
    images = Tensor(digits.test_images[:64]).realize()
    labels = Tensor(digits.test_labels[:64]).realize()
    Tensor.realize(*nn.state.get_state_dict(adam).values())  # its m and v, else filled with 0 now

    @Context(TRAINING=1)
    def one_step() -> None:
        Tensor.realize(*flat(*program.learn(net, adam, program.pixels(images), labels)))

    lesson.kernels(one_step)


if __name__ == "__main__":
    main()
