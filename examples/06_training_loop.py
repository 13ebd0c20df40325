"""Lesson 6: the training loop

    python examples/06_training_loop.py [--quick] [--out DIR]

Guide, section 11. The five steps, and what really happens in which; epochs and batches; validation
that changes nothing; a network that is too small for its problem and one that learns its examples
by heart; stopping early, and going on from a checkpoint as if nothing had happened.
"""

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from guide_data import mnist
from guide_lesson import Chart, Lesson, Picture, table, words
from guide_report import npz_bytes, save_files
from tinygrad import Context, GlobalCounters, Tensor, TinyJit, Variable, nn

# ---- what is learnt, and what you choose ---------------------------------------------------------

@dataclass(frozen=True)
class Hyperparameters:
    """The guide's seven: chosen before training. What training sets are the weights and biases."""

    lr: float = 1e-3
    batch: int = 50
    layers: int = 2      # hidden ones
    width: int = 128     # neurons in each of them
    epochs: int = 40
    dropout: float = 0.0
    decay: float = 0.0   # of the weights


class Network:
    """`inputs` numbers -> hidden layers with ReLU -> `outputs` scores."""

    def __init__(self, inputs: int, outputs: int, h: Hyperparameters):
        sizes = [inputs, *[h.width] * h.layers, outputs]
        self.layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
        self.dropout = h.dropout
        Tensor.realize(*nn.state.get_parameters(self))

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu().dropout(self.dropout)
        return self.layers[-1](x)


@dataclass(frozen=True)
class Data:
    """Inputs float32 [samples, numbers], classes int32: to learn from, and to be examined on."""

    x: np.ndarray
    y: np.ndarray
    val_x: np.ndarray
    val_y: np.ndarray


# ---- the loop ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Epoch:
    number: int
    loss: float  # mean over the epoch's batches, while it learnt
    val_loss: float
    val_accuracy: float


def batches(seed: int, epoch: int, samples: int, batch: int) -> np.ndarray:
    """Row numbers [steps, batch]: every sample once, in an order that seed and epoch fix.

    Where the batch does not divide the samples, the first ones fill up the last row: a smaller
    batch would be another shape, and another shape is other kernels.
    """
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    return np.resize(order, (math.ceil(samples / batch), batch))


def training(model, optimizer, data: Data, epochs: int, batch: int, seed: int = 0, first: int = 1,
             augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
             penalty: Callable[[], Tensor] | None = None,
             log: Callable[[str], None] = lambda event: None) -> Iterator[Epoch]:
    """The guide's loop; yields after each epoch, and whoever asks for the next one may stop.

    Epochs `first` to `epochs`; `augment` changes an epoch's inputs, `penalty` is added to the loss.
    """
    @TinyJit  # the third call and all later ones replay the kernels, without this Python
    @Context(TRAINING=1)  # the guide's model.train(): dropout and batch norm look at it
    def step(x: Tensor, y: Tensor, number: Variable) -> None:
        log("forward")                                       # 1. forward pass
        predictions = model(x[number])
        log("loss")                                          # 2. loss
        loss = predictions.sparse_categorical_crossentropy(y[number])
        log("zero")                                          # 3. forget the old gradients
        optimizer.zero_grad()
        log("backward")                                      # 4. backward pass
        (loss + penalty() if penalty else loss).backward()
        log("step")                                          # 5. update; and now compute it all
        total.assign(total + loss).realize(*optimizer.schedule_step())

    total = Tensor(0.0).contiguous().realize()  # of an epoch's losses, added up on the device
    validate = evaluator(model, data.val_x, data.val_y)
    number = Variable("batch", 0, max(1, math.ceil(len(data.x) / batch) - 1))
    for epoch in range(first, epochs + 1):
        rows = batches(seed, epoch, len(data.x), batch)
        x = augment(data.x, np.random.default_rng((seed, epoch, 1))) if augment else data.x
        epoch_x, epoch_y = Tensor(x[rows]).realize(), Tensor(data.y[rows]).realize()
        total.assign(Tensor(0.0)).realize()
        for i in range(len(rows)):
            step(epoch_x, epoch_y, number.bind(i))
        yield Epoch(epoch, total.item() / len(rows), *validate())


def evaluator(model, x: np.ndarray, y: np.ndarray) -> Callable[[], tuple[float, float]]:
    """A function that says loss and accuracy on these samples, for the weights of that moment.

    No Context(TRAINING=1): the guide's model.eval() is what tinygrad does anyway.
    """
    inputs, labels = Tensor(x).realize(), Tensor(y).realize()

    @TinyJit
    def score() -> Tensor:
        scores = model(inputs)
        right = (scores.argmax(1) == labels).mean()
        return Tensor.stack(scores.sparse_categorical_crossentropy(labels), right).realize()

    def evaluate() -> tuple[float, float]:
        loss, accuracy = score().tolist()
        return loss, accuracy

    return evaluate


# ---- stopping early, and checkpoints -------------------------------------------------------------

class EarlyStopping:
    """Keeps the weights that did best in validation; stops after `patience` checks without better.

    `check` is told each validation loss, `restore` brings the best weights back.
    """

    def __init__(self, patience: int):
        self.patience, self.waited, self.stopped_at = patience, 0, 0
        self.best, self.best_epoch, self.weights = math.inf, 0, {}

    def check(self, epoch: int, val_loss: float, model) -> bool:
        """Is it time to stop?"""
        self.waited += 1
        if val_loss < self.best:
            self.best, self.best_epoch, self.waited = val_loss, epoch, 0
            self.weights = checkpoint(model)
        self.stopped_at = epoch if self.waited >= self.patience else 0
        return self.stopped_at > 0

    def restore(self, model) -> None:
        restore(model, self.weights)


def checkpoint(*parts) -> dict[str, np.ndarray]:
    """All numbers of a model; of a model and its optimizer, if training is to go on from here."""
    return {name: t.numpy() for name, t in nn.state.get_state_dict(parts).items()}


def restore(*parts_and_weights) -> None:
    """Put a checkpoint's numbers back: the same parts in the same order, then the checkpoint."""
    *parts, weights = parts_and_weights
    state = nn.state.get_state_dict(tuple(parts))
    if state.keys() != weights.keys():
        raise ValueError(f"this checkpoint is of another model: {set(state) ^ set(weights)}")
    Tensor.realize(*[t.assign(Tensor(weights[name])) for name, t in state.items()])


def interrupted(folder: Path, data: Data, h: Hyperparameters, at: int) -> bool:
    """Train; train again, stop at epoch `at`, save, load into new objects, go on. The same bits?"""
    def begin():
        Tensor.manual_seed(0)
        model = Network(data.x.shape[1], int(data.y.max()) + 1, h)
        return model, nn.optim.Adam(nn.state.get_parameters(model), lr=h.lr)

    whole, parts, resumed = begin(), begin(), begin()
    list(training(*whole, data, h.epochs, h.batch))
    list(training(*parts, data, at, h.batch))
    save_files(folder, {"checkpoint.npz": npz_bytes(checkpoint(*parts))})
    with np.load(folder / "checkpoint.npz") as saved:
        restore(*resumed, dict(saved))
    list(training(*resumed, data, h.epochs, h.batch, first=at + 1))
    ends = checkpoint(*whole), checkpoint(*resumed)
    return all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---- experiments ---------------------------------------------------------------------------------

def digits(samples: int, validation: int) -> Data:
    """The first digits of MNIST's training set, and the last: the test set stays untouched."""
    data = mnist()
    parts = slice(samples), slice(-validation, None)
    x, val_x = (data.train_images[part].reshape(-1, 784) / np.float32(255) for part in parts)
    y, val_y = (data.train_labels[part].astype(np.int32) for part in parts)
    return Data(x, y, val_x, val_y)


def xor_clouds(samples: int = 200, seed: int = 0) -> Data:
    """Four clouds, opposite ones of one class: what no straight line can part."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 2, (2 * samples, 2))
    x = (2 * corner - 1 + 0.35 * rng.normal(size=corner.shape)).astype(np.float32)
    y = (corner[:, 0] ^ corner[:, 1]).astype(np.int32)
    return Data(x[:samples], y[:samples], x[samples:], y[samples:])


def learn(data: Data, h: Hyperparameters, patience: int = 5, go_on: bool = True, seed: int = 0):
    """Train a Network; the model (with its best weights), its epochs, the EarlyStopping.

    With `go_on` it trains all epochs, to see what stopping has spared us.
    """
    Tensor.manual_seed(seed)
    model = Network(data.x.shape[1], int(data.y.max()) + 1, h)
    optimizer = nn.optim.AdamW(nn.state.get_parameters(model), lr=h.lr, weight_decay=h.decay)
    stopping, history = EarlyStopping(patience), []
    for epoch in training(model, optimizer, data, h.epochs, h.batch, seed):
        history.append(epoch)
        if not stopping.stopped_at and stopping.check(epoch.number, epoch.val_loss, model) \
                and not go_on:
            break
    stopping.restore(model)
    return model, history, stopping


def events_and_kernels() -> tuple[list[str], list[int]]:
    """The order of the steps in an epoch of four batches; how many kernels ran before each."""
    model = Network(2, 2, Hyperparameters(layers=1, width=8))
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=0.1)
    events, kernels = [], []

    def log(event: str) -> None:
        events.append(event)
        kernels.append(GlobalCounters.kernel_count)

    next(training(model, optimizer, xor_clouds(), 1, 50, log=log))
    return events, [k - kernels[0] for k in kernels]


def batch_and_sample_gradients(samples: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The first layer's gradient for a batch, and the mean of its samples' gradients."""
    data = xor_clouds(samples)
    Tensor.manual_seed(0)
    model = Network(2, 2, Hyperparameters(layers=1, width=8))

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        scores = model(Tensor(x).realize())
        loss = scores.sparse_categorical_crossentropy(Tensor(y).realize())
        return loss.gradient(model.layers[0].weight)[0].numpy()

    each = [gradient(data.x[i:i + 1], data.y[i:i + 1]) for i in range(samples)]
    return gradient(data.x, data.y), np.mean(each, axis=0)


# ---- the lesson ----------------------------------------------------------------------------------

def draw(history: list[Epoch], best: int, linear, hidden, clouds: Data) -> str:
    page = Picture("Learning by heart, and too simple to learn", 1080, 380,
                   "training and validation loss over the epochs; a linear and a deep boundary")
    last = history[-1].number
    losses = [e.loss for e in history] + [e.val_loss for e in history]
    chart = Chart(page, (56, 96, 460, 210), (1, last), (0, min(1.2, max(losses) * 1.05)),
                  "overfitting: loss on digits", "epochs")
    numbers = [e.number for e in history]
    chart.line(numbers, [e.loss for e in history], "blue")
    chart.line(numbers, [e.val_loss for e in history], "orange")
    low = history[best - 1].val_loss
    chart.dots([best], [low], "green", 6)
    chart.note(best, low, f"best: epoch {best}, kept", "ink green", dx=-6, dy=22)
    chart.note(last, history[-1].loss, "training", "ink blue", "end", dy=-10)
    chart.note(last, history[-1].val_loss, "validation", "ink orange", "end", dy=-12)
    for left, model, head in ((590, linear, "underfitting: no hidden layer"),
                              (850, hidden, "one hidden layer")):
        chart = Chart(page, (left, 96, 200, 210), (-2.2, 2.2), (-2.2, 2.2), head,
                      xticks=(-1, 1), yticks=(-1, 1))

        layers = [(layer.weight.numpy().T, layer.bias.numpy()) for layer in model.layers]

        def inside(x, y, layers=layers):  # the network in NumPy, for every point of the plane
            values = np.stack([x, y], -1)
            for w, b in layers[:-1]:
                values = np.maximum(values @ w + b, 0)
            w, b = layers[-1]
            return (values @ w + b).argmax(-1)

        chart.regions(inside, 60)
        for kind, css in enumerate(("blue", "orange")):
            chart.dots(*clouds.val_x[clouds.val_y == kind][:60].T, css, 2.8)
    page.add(words(590, 350, "dots: validation samples; shading: the answer", "quiet"))
    return str(page)


def main() -> None:
    lesson = Lesson("06_training_loop", __doc__)
    quick = lesson.quick

    lesson.part("Five steps")
    events, kernels = events_and_kernels()
    gradient, mean = batch_and_sample_gradients()
    lesson.beside(
        ("the order", "forward, loss, zero, backward, step", ", ".join(events[:5])),
        ("kernels run before each", "", ", ".join(map(str, kernels[:5])),
         "the first four only build a graph; step 5 computes it"),
        ("Python went through them, in 4 batches", "4 times", f"{events.count('step')} times",
         "from the third on, TinyJit replays the kernels"),
        ("the batch's gradient, the mean of its samples'", "averaging",
         f"{abs(gradient - mean).max():.0e} apart"),
        ("model.train(), DataLoader, CrossEntropyLoss", "very close to tinygrad", "none of them",
         "Context(TRAINING=1), rows of an array, .sparse_categorical_crossentropy"))
    steps = len(batches(0, 1, 60_000, 64))
    lesson.beside(
        ("60,000 samples in batches of 64", "", f"{steps} steps, the last of 32 (here: filled up)"),
        ("the guide's mean loss of an epoch", "sum / (60000 // 64)",
         f"{steps} losses / {60_000 // 64}", "one too many: 0.1 % off"))

    h = Hyperparameters()
    network = Network(784, 10, h)
    kinds = sorted({name.rsplit(".", 1)[1] for name in nn.state.get_state_dict(network)})
    learnt = sum(t.numel() for t in nn.state.get_parameters(network))
    lesson.beside(
        ("parameters: learnt", "W, b", ", ".join(kinds)),
        ("  in 784-128-128-10", "", f"{learnt:,}"),
        ("hyperparameters: chosen", "7", ", ".join(f.name for f in dataclasses.fields(h))))

    lesson.part("Underfitting: the network is too simple")
    clouds = xor_clouds()
    small = Hyperparameters(lr=0.02, batch=50, width=8, epochs=15 if quick else 60)
    linear, straight, _ = learn(clouds, dataclasses.replace(small, layers=0))
    hidden, bent, _ = learn(clouds, dataclasses.replace(small, layers=1))
    lesson.beside(*[
        (name, says, f"{e.loss:.2f}, {e.val_loss:.2f} (accuracy {e.val_accuracy:.0%})")
        for name, says, e in (("XOR clouds, no hidden layer: losses", "both high", straight[-1]),
                              ("  one hidden layer of 8", "", bent[-1]))])

    lesson.part("Overfitting: it learns its examples by heart")
    data = digits(*((200, 500) if quick else (1000, 5000)))
    h = dataclasses.replace(h, epochs=20, lr=3e-3, layers=1) if quick else h
    model, history, stopping = learn(data, h)
    last = history[-1]
    marks = sorted({1, stopping.best_epoch, stopping.stopped_at or last.number, last.number})
    print(table(("epoch", "training loss", "validation loss", "validation accuracy"),
                [(str(e.number), f"{e.loss:.3f}", f"{e.val_loss:.3f}", f"{e.val_accuracy:.2%}")
                 for e in (history[m - 1] for m in marks)], right=(0, 1, 2, 3)))
    loss, accuracy = evaluator(model, data.val_x, data.val_y)()
    lesson.beside(
        (f"{len(data.x)} digits: training loss ends at", "0.01", f"{last.loss:.3f}"),
        ("  validation loss: lowest, at the end", "falls, then rises to 0.45",
         f"{stopping.best:.3f} (epoch {stopping.best_epoch}), {last.val_loss:.3f}"),
        (f"early stopping, patience {stopping.patience}", "stop",
         f"says stop after epoch {stopping.stopped_at}"),
        ("  the best weights brought back: loss, accuracy", "the checkpoint's",
         f"{loss:.3f}, {accuracy:.2%}"))
    lesson.say("⚠ Loss and accuracy need not agree: overconfident answers make the loss rise while",
               f"  as many are right (epoch {last.number}: {last.val_accuracy:.2%}).")

    if not quick:
        lesson.part("Checkpoints")
        short = dataclasses.replace(small, layers=1, epochs=4)
        with tempfile.TemporaryDirectory() as folder:
            same = interrupted(Path(folder), clouds, short, 2)
        lesson.beside(("stopped, saved, loaded, gone on: the same bits?", "save checkpoint",
                       "yes" if same else "no",
                       "save the optimizer too: Adam's m, v, βᵗ are part of the state"))

    lesson.picture(draw(history, stopping.best_epoch, linear, hidden, clouds))
    inputs, labels = Tensor(data.val_x).realize(), Tensor(data.val_y).realize()

    def validation() -> None:
        scores = model(inputs)
        Tensor.realize(scores.sparse_categorical_crossentropy(labels),
                       (scores.argmax(1) == labels).mean())

    lesson.kernels(validation)


if __name__ == "__main__":
    main()
