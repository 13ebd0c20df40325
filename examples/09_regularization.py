"""Lesson 9: regularization

    python examples/09_regularization.py [--quick] [--out DIR]

Guide, section 13. Bias and variance, measured; dropout, weight decay in its two meanings, batch
normalisation with its running statistics, early stopping, augmentation: each by itself, from the
formula, and then all of them on a network that has only a few digits to learn from.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from importlib import import_module

import numpy as np
from guide_data import mnist
from guide_lesson import Chart, Lesson, Picture, bitmap, legend, table, words
from guide_report import progress_bar
from rich.console import Console
from tinygrad import Context, Tensor, TinyJit, nn

loop = import_module("06_training_loop")  # its name starts with a digit: `import` cannot say it

# ---- bias and variance ---------------------------------------------------------------------------

NOISE = 0.3  # standard deviation of what nobody can predict


def truth(x: np.ndarray) -> np.ndarray:
    return np.sin(3 * x)


def fit_polynomials(degree: int, data_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """The same experiment again and again: x, and each fitted polynomial's values there."""
    rng, at = np.random.default_rng(degree), np.linspace(-0.95, 0.95, 100)
    x = np.linspace(-1, 1, 30)
    fits = [np.polynomial.Chebyshev.fit(x, truth(x) + NOISE * rng.normal(size=30), degree)(at)
            for _ in range(data_sets)]
    return at, np.array(fits)


def bias_and_variance(degree: int, data_sets: int = 200) -> dict[str, float]:
    """How far off the fits are on average, how much they differ, and both measured as one error."""
    at, fits = fit_polynomials(degree, data_sets)
    fresh = truth(at) + NOISE * np.random.default_rng(99).normal(size=(50, *fits.shape))
    return {"bias²": float(((fits.mean(0) - truth(at)) ** 2).mean()),
            "variance": float(fits.var(0).mean()), "noise": NOISE**2,
            "error": float(((fits - fresh) ** 2).mean())}


# ---- dropout -------------------------------------------------------------------------------------

def dropout(x: Tensor, p: float, keep: Tensor) -> Tensor:
    """The formula: `keep` is 1 for survivors, which are scaled up so that the mean stays."""
    return x * keep / (1 - p)


def ensemble(sizes: tuple[int, ...]) -> list[float]:
    """How far the mean answer of so many networks with neurons dropped is from the whole one's."""
    Tensor.manual_seed(0)
    hidden, out = nn.Linear(8, 64), nn.Linear(64, 3)
    x = Tensor(np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)).realize()
    features = hidden(x).relu().realize()
    whole = out(features).numpy()
    with Context(TRAINING=1):
        many = out(features.expand(max(sizes), 16, 64).dropout(0.5)).numpy()
    return [float(abs(many[:n].mean(0) - whole).mean() / abs(whole).mean()) for n in sizes]


# ---- weight decay --------------------------------------------------------------------------------

def decayed(make: Callable, penalty: float = 0.0, steps: int = 20) -> np.ndarray:
    """Weights of a linear regression after some steps; `penalty` adds λ Σw² to the loss."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.normal(size=(32, 4)).astype(np.float32)).realize()
    y = (x @ Tensor(np.array([[3.0], [-2.0], [0.1], [0.0]], np.float32))).realize()
    w = Tensor(np.ones((4, 1), np.float32)).realize()
    optimizer = make([w])

    @TinyJit
    @Context(TRAINING=1)
    def step() -> None:
        optimizer.zero_grad()
        ((x @ w - y).square().mean() + penalty * w.square().sum()).backward()
        Tensor.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return w.numpy()[:, 0]


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """The lowest point of |Xw - y|² + λ|w|², in closed form."""
    return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)


def most_probable(x: np.ndarray, y: np.ndarray, noise: float, prior: float) -> np.ndarray:
    """The same by Bayes: y is Xw and Gaussian noise, w Gaussian around 0; climb log P(w|y)."""
    w = np.zeros(x.shape[1])
    rate = 1 / (np.linalg.eigvalsh(x.T @ x).max() / noise**2 + 1 / prior**2)
    for _ in range(5000):
        w += rate * (x.T @ (y - x @ w) / noise**2 - w / prior**2)
    return w


def regression() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    return x, x @ rng.normal(size=6) + 0.5 * rng.normal(size=40)


# ---- batch normalisation -------------------------------------------------------------------------

class BatchNorm:
    """Each channel's mean 0 and variance 1 over the batch, then γ and β; with running statistics.

    While training, the batch's own mean and variance; each step moves the running ones a tenth of
    the way. Afterwards those are used: an answer must not depend on who else is in the batch.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        self.eps, self.momentum = eps, momentum
        self.gamma = Tensor.ones(channels).contiguous()
        self.beta = Tensor.zeros(channels).contiguous()
        self.mean = Tensor.zeros(channels).contiguous().is_param_(False)
        self.var = Tensor.ones(channels).contiguous().is_param_(False)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        mean, var = self.mean, self.var
        if training:
            mean, var = x.mean(0), x.var(0, correction=0)
            unbiased = var * (len(x) / max(len(x) - 1, 1))
            for running, now in ((self.mean, mean), (self.var, unbiased)):
                running.assign((1 - self.momentum) * running + self.momentum * now.detach())
        return (x - mean) / (var + self.eps).sqrt() * self.gamma + self.beta


def at_rate(lr: float, norm: bool, steps: int = 30) -> float:
    """The loss of 784-32-32-10 on 128 digits after some steps of plain SGD with this rate."""
    Tensor.manual_seed(0)
    data = loop.digits(128, 1)
    x, y = Tensor(data.x).realize(), Tensor(data.y).realize()
    model = Net((784, 32, 32, 10), norm=norm)
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=lr)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).sparse_categorical_crossentropy(y).backward()
        return loss.realize(*optimizer.schedule_step())

    losses = [step() for _ in range(steps)]
    return losses[-1].item()


# ---- augmentation --------------------------------------------------------------------------------
# Images are float32 [samples, channels, height, width] from 0 to 1; each function draws its own
# random numbers for each image, from the generator it is given.

def look_up(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The images at places [samples, height, width] between the pixels (bilinear), 0 outside."""
    n, channels, high, wide = images.shape
    flat = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).reshape(n, channels, -1)
    rows = np.clip(rows, -1, high).astype(np.float32) + 1
    columns = np.clip(columns, -1, wide).astype(np.float32) + 1
    top, left = np.minimum(np.floor(rows), high), np.minimum(np.floor(columns), wide)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    first = top.astype(int) * (wide + 2) + left.astype(int)

    def at(i: int, j: int) -> np.ndarray:
        places = (first + i * (wide + 2) + j).reshape(n, 1, -1)
        return np.take_along_axis(flat, places, axis=2).reshape(n, channels, high, wide)

    return ((1 - down) * ((1 - right) * at(0, 0) + right * at(0, 1))
            + down * ((1 - right) * at(1, 0) + right * at(1, 1)))


def grid(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, counted from the middle."""
    high, wide = images.shape[2:]
    return np.meshgrid(np.arange(high) - (high - 1) / 2, np.arange(wide) - (wide - 1) / 2,
                       indexing="ij")


def transform(images: np.ndarray, matrices: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Each image through its own 2 x 2 matrix about the middle, then moved by its own shift."""
    y, x = grid(images)
    high, wide = images.shape[2:]
    places = np.einsum("nij,jhw->nihw", matrices, np.stack([y, x])) + shifts[:, :, None, None]
    return look_up(images, places[:, 0] + (high - 1) / 2, places[:, 1] + (wide - 1) / 2)


def flip(images: np.ndarray, rng: np.random.Generator, chance: float = 0.5,
         axis: int = 3) -> np.ndarray:
    """Left for right (axis 3), or top for bottom (axis 2)."""
    chosen = rng.random(len(images)) < chance
    return np.where(chosen[:, None, None, None], np.flip(images, axis), images)


def crop(images: np.ndarray, rng: np.random.Generator, least: float = 0.8) -> np.ndarray:
    """A part at least `least` as wide, anywhere, stretched to the whole size."""
    scale = rng.uniform(least, 1, len(images))
    room = (1 - scale)[:, None] * (np.array(images.shape[2:]) - 1) / 2
    return transform(images, scale[:, None, None] * np.eye(2),
                     rng.uniform(-1, 1, (len(images), 2)) * room)


def turns(count: int, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Matrices [count, 2, 2], each a rotation by a random angle."""
    turn = np.radians(rng.uniform(-degrees, degrees, count))
    return np.array([[np.cos(turn), np.sin(turn)],
                     [-np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)


def rotate(images: np.ndarray, rng: np.random.Generator, degrees: float = 15) -> np.ndarray:
    return transform(images, turns(len(images), rng, degrees), np.zeros((len(images), 2)))


def shift(images: np.ndarray, rng: np.random.Generator, pixels: float = 2) -> np.ndarray:
    return transform(images, np.tile(np.eye(2), (len(images), 1, 1)),
                     rng.uniform(-pixels, pixels, (len(images), 2)))


def jitter(images: np.ndarray, rng: np.random.Generator, most: float = 0.3) -> np.ndarray:
    """Brightness (times), contrast (away from the mean), saturation (away from grey)."""
    bright, contrast, colour = rng.uniform(1 - most, 1 + most, (3, len(images), 1, 1, 1))
    images = bright * images
    images = contrast * (images - images.mean((1, 2, 3), keepdims=True)) \
        + images.mean((1, 2, 3), keepdims=True)
    grey = images.mean(1, keepdims=True)
    return np.clip(grey + colour * (images - grey), 0, 1).astype(np.float32)


def noise(images: np.ndarray, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    return np.clip(images + spread * rng.normal(size=images.shape), 0, 1).astype(np.float32)


AUGMENTATIONS = {"flip": flip, "crop, resize": crop, "rotate": rotate, "shift": shift,
                 "jitter": jitter, "noise": noise}


def digits_moved(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What leaves a digit the digit it is: turned, moved, stretched a little; never flipped."""
    images = x.reshape(-1, 1, 28, 28)
    sizes = rng.uniform(0.85, 1.1, (len(x), 1, 1))
    return transform(images, sizes * turns(len(x), rng, 12),
                     rng.uniform(-1.5, 1.5, (len(x), 2))).reshape(x.shape)


def digits_flipped(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What does not: a 2 or a 7 in a mirror is no digit."""
    return flip(flip(x.reshape(-1, 1, 28, 28), rng), rng, axis=2).reshape(x.shape)


# ---- all of them, on a few digits ----------------------------------------------------------------

class Net:
    """Dense layers with ReLU; batch norm before it and dropout after it, if asked for."""

    def __init__(self, sizes: tuple[int, ...], dropout: float = 0.0, norm: bool = False):
        self.layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
        self.norms = [nn.BatchNorm(m) for m in sizes[1:-1]] if norm else []
        self.dropout = dropout
        Tensor.realize(*nn.state.get_state_dict(self).values())

    def __call__(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = (self.norms[i](x) if self.norms else x).relu().dropout(self.dropout)
        return self.layers[-1](x)


@dataclasses.dataclass(frozen=True)
class Method:
    dropout: float = 0.0
    norm: bool = False
    l2: float = 0.0        # λ of λΣw², added to the loss
    decay: float = 0.0     # of AdamW
    augment: Callable | None = None
    patience: int = 0      # of early stopping; 0: the last weights count, not the best


QUICK = (200, 25, 1000, (784, 64, 10))  # samples, epochs, tests, sizes

METHODS = {
    "nothing": Method(),
    "early stopping": Method(patience=5),
    "dropout 0.4": Method(dropout=0.4),
    "L2, λ = 1e-4": Method(l2=1e-4),
    "AdamW, decay 0.3": Method(decay=0.3),
    "batch norm": Method(norm=True),
    "augmentation": Method(augment=digits_moved),
    "flips (wrong here)": Method(augment=digits_flipped),
    "augmentation, dropout, batch norm": Method(dropout=0.2, norm=True, augment=digits_moved),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    train_loss: float
    test_loss: float
    test_accuracy: float
    weights: float  # the length of all weights as one arrow
    epochs: int


@functools.cache  # the same experiment again gives the same numbers
def regularized(method: Method, samples: int = 1000, epochs: int = 30, tests: int = 10_000,
                sizes: tuple[int, ...] = (784, 256, 128, 10), seed: int = 0) -> Outcome:
    """Train on the first digits with this method, and examine it on the test set."""
    Tensor.manual_seed(seed)
    data = loop.digits(samples, samples)
    model = Net(sizes, method.dropout, method.norm)
    params = nn.state.get_parameters(model)
    optimizer = nn.optim.AdamW(params, lr=1e-3, weight_decay=method.decay)
    matrices = [layer.weight for layer in model.layers]
    penalty = (lambda: method.l2 * sum(w.square().sum() for w in matrices)) if method.l2 else None
    stopping = loop.EarlyStopping(method.patience or epochs)
    for epoch in loop.training(model, optimizer, data, epochs, 50 if samples > 500 else 20, seed,
                               augment=method.augment, penalty=penalty):
        if stopping.check(epoch.number, epoch.val_loss, model) and method.patience:
            break
    if method.patience:
        stopping.restore(model)
    test = mnist()
    x = (test.test_images[:tests].reshape(-1, 784) / 255).astype(np.float32)
    loss, accuracy = loop.evaluator(model, x, test.test_labels[:tests].astype(np.int32))()
    train_loss, _ = loop.evaluator(model, data.x, data.y)()
    size = sum(float((w.numpy() ** 2).sum()) for w in matrices) ** 0.5
    return Outcome(train_loss, loss, accuracy, size, epoch.number)


# ---- the lesson ----------------------------------------------------------------------------------

def draw(degrees: tuple[int, ...], outcomes: dict[str, Outcome]) -> str:
    page = Picture("Too stiff, too supple, and what helps with few digits", 1080, 480,
                   "polynomials through noisy data; augmented digits; test accuracies by method")
    for i, degree in enumerate(degrees):
        chart = Chart(page, (46 + 180 * i, 92, 150, 130), (-1, 1), (-2, 2), f"degree {degree}",
                      xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        at, fits = fit_polynomials(degree, 12)
        for fit in fits:
            chart.line(at, fit, "blue thin")
        chart.line(at, truth(at), "orange")
    page.add(*legend(46, 262, [("blue", "fitted to one data set each"), ("orange", "the truth")],
                     210))
    rng = np.random.default_rng(1)
    image = (mnist().train_images[5:6, None] / 255).astype(np.float32)
    page.add(words(46, 304, "one digit, augmented", "head"))
    for i, (name, f) in enumerate({"as it is": None, **AUGMENTATIONS}.items()):
        new = image if f is None else f(image, rng, 1.0) if name == "flip" else f(image, rng)
        pixels = (255 * (1 - new[0, 0])).astype(np.uint8)[..., None].repeat(3, axis=2)
        page.add(bitmap(46 + 78 * i, 316, pixels, 2.5), words(46 + 78 * i, 406, name, "quiet"))
    page.add(words(46, 440, "In a mirror a 2 is no 2: what may be changed depends on the task.",
                   "quiet"))
    names = list(outcomes)
    accuracies = [100 * outcomes[name].test_accuracy for name in names]
    low, high = np.floor(min(accuracies)), max(accuracies) + 1.5
    chart = Chart(page, (850, 92, 200, 330), (low, high), (0, len(names)),
                  "test accuracy, %", "", yticks=())
    for i, (name, accuracy) in enumerate(zip(names, accuracies, strict=True)):
        y = len(names) - i - 0.5
        css = "grey" if i == 0 else "green" if accuracy > accuracies[0] else "orange"
        chart.line((low, accuracy), (y, y), css)
        chart.dots([accuracy], [y], css, 5.5)
        chart.note(low, y, name, "", "end", dx=-10, dy=4)
        chart.note(accuracy, y, f"{accuracy:.1f}", "quiet", dx=10, dy=4)
    return str(page)


def main() -> None:
    lesson = Lesson("09_regularization", __doc__)
    quick = lesson.quick

    lesson.part("Bias and variance: polynomials through 30 noisy points, again and again")
    degrees = (1, 5, 20)
    rows = []
    for degree in degrees:
        parts = bias_and_variance(degree, 60 if quick else 200)
        total = parts["bias²"] + parts["variance"] + parts["noise"]
        rows.append((str(degree), *(f"{parts[k]:.4f}" for k in ("bias²", "variance", "noise")),
                     f"{total:.4f}", f"{parts['error']:.4f}"))
    print(table(("degree", "bias²", "variance", "noise", "their sum", "error measured"), rows,
                right=range(6)))

    lesson.part("Dropout")
    with Context(TRAINING=1):
        Tensor.manual_seed(0)
        dropped = (Tensor.ones(20_000) * 3).realize().dropout(0.4).numpy()
    sizes = () if quick else (10, 100, 1000)
    lesson.beside(
        ("p = 0.4: set to 0", "with probability p", f"{(dropped == 0).mean():.3f}"),
        ("  the others, times", "1/(1-p)", f"{dropped.max() / 3:.4f}"),
        ("  the mean of 3, 3, 3, …", "", f"{dropped.mean():.3f}"),
        *[(f"mean of {n} networks, off the whole one's answer", "an ensemble", f"{off:.1%}")
          for n, off in zip(sizes, sizes and ensemble(sizes), strict=True)])

    lesson.part("Weight decay: L_total = L + λΣw²")
    strength = 0.05
    sgd = {name: decayed(lambda p, d=d: nn.optim.SGD(p, 0.05, weight_decay=d), penalty)
           for name, d, penalty in (("loss", 0, strength), ("λ", strength, 0),
                                    ("2λ", 2 * strength, 0))}
    adam = (decayed(lambda p: nn.optim.Adam(p, 0.05), strength),
            decayed(lambda p: nn.optim.AdamW(p, 0.05, weight_decay=2 * strength)))
    x, y = regression()
    by_ridge = ridge(x, y, 0.5**2 / 0.8**2)
    lengths = [float(np.linalg.norm(ridge(x, y, s))) for s in (0, 1e-4, 1, 100)]
    lesson.beside(
        ("SGD, weight_decay=λ, against λΣw² in the loss", "the same",
         f"{abs(sgd['loss'] - sgd['λ']).max():.0e} apart",
         "weight_decay=λ is ½λΣw²; its gradient is λw, that of λΣw² is 2λw"),
        ("  weight_decay=2λ", "", f"{abs(sgd['loss'] - sgd['2λ']).max():.0e} apart"),
        ("Adam with it in the loss, against AdamW's 2λ", "the same",
         f"{abs(adam[0] - adam[1]).max():.0e} apart",
         "Adam divides the penalty by √v̂, too; AdamW takes it off beside"),
        ("Gaussian prior: ridge against the most probable w", "equivalent",
         f"{abs(by_ridge - most_probable(x, y, 0.5, 0.8)).max():.0e} apart"),
        ("|w| for λ = 0, 1e-4, 1, 100", "small weights", ", ".join(f"{s:.3f}" for s in lengths)))

    lesson.part("Batch normalisation")
    batch = Tensor(np.random.default_rng(0).normal(5, 3, (64, 4)).astype(np.float32)).realize()
    mine, theirs = BatchNorm(4), nn.BatchNorm(4)
    with Context(TRAINING=1):
        one, other = mine(batch, True), theirs(batch)
        Tensor.realize(one, other, mine.mean, mine.var, theirs.running_mean, theirs.running_var)
    rates = () if quick else (0.2, 2.0)
    losses = {(lr, norm): at_rate(lr, norm) for lr in rates for norm in (False, True)}
    lesson.beside(
        ("each channel: mean, variance", "0, 1",
         f"{abs(one.mean(0).numpy()).max():.0e}, {one.var(0, correction=0).numpy().mean():.5f}"),
        ("against tinygrad's", "", f"{abs(one.numpy() - other.numpy()).max():.0e} apart"),
        ("the same batch, not training", "(left out)",
         f"mean {mine(batch, False).numpy().mean():.1f}",
         "then running statistics are used, here after one step of 0.1"),
        *[(f"SGD with α = {lr}: loss {'with' if norm else 'without'} batch norm",
           "higher learning rates" * (norm and lr == rates[-1]), f"{loss:.3g}")
          for (lr, norm), loss in losses.items()])
    lesson.say("⚠ \"Reduces internal covariate shift\" is disputed: Santurkar et al. (2018) find",
               "  that it makes the loss smoother, and helps as much with the shift put back in.")

    lesson.part("Early stopping, on the guide's own numbers")
    stopping = loop.EarlyStopping(patience=1)
    model = nn.Linear(1, 1)
    stops = next(epoch for epoch, val in {1: 2.3, 5: 1.3, 10: 0.8, 15: 1.1, 20: 1.4}.items()
                 if stopping.check(epoch, val, model))
    lesson.beside(("best epoch, stops at", "10, 15", f"{stopping.best_epoch}, {stops}"))

    chosen = [n for n in METHODS if not quick or n in ("nothing", "augmentation")]
    lesson.part("784-64-10, 200 digits, 25 epochs; examined on 1,000 of the test set" if quick else
                "784-256-128-10, 1,000 digits, 30 epochs; examined on the whole test set")
    outcomes = {}
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("learning", total=len(chosen), now="")
        for name in chosen:
            bar.update(task, now=name)
            outcomes[name] = regularized(METHODS[name], *QUICK if quick else ())
            bar.advance(task)
    base = outcomes["nothing"].test_accuracy
    print(table(("method", "training loss", "test loss", "accuracy", "gain", "|w|", "epochs"), [
        (name, f"{o.train_loss:.4f}", f"{o.test_loss:.3f}", f"{o.test_accuracy:.2%}",
         f"{100 * (o.test_accuracy - base):+.2f}", f"{o.weights:.1f}", str(o.epochs))
        for name, o in outcomes.items()], right=range(1, 7)))

    lesson.picture(draw(degrees, outcomes))
    small = Tensor(np.ones((8, 16), np.float32)).realize()
    norm = nn.BatchNorm(16)
    Tensor.realize(*nn.state.get_state_dict(norm).values())

    @Context(TRAINING=1)
    def norm_and_dropout() -> None:
        Tensor.realize(norm(small).relu().dropout(0.5), norm.running_mean, norm.running_var)

    lesson.kernels(norm_and_dropout)


if __name__ == "__main__":
    main()
