"""Learn to read handwritten digits: the guide's MLP and CNN on all of MNIST.

    python examples/mnist.py                          # the MLP, past 97 % in seconds
    python examples/mnist.py --model cnn --out run    # the CNN, past 99 %; keeps everything in run/
    DEVICE=CPU python examples/mnist.py               # the same on another tinygrad device

A program in five parts: data (in guide_data.py), models, one training step, evaluation, report.
It needs tinygrad, NumPy and rich, and nothing of tgx but (by default) its device.
"""

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from guide_data import DataError, Images, mnist
from guide_report import Report, Stop, progress_bar
from tinygrad import Context, Device, Tensor, TinyJit, Variable, nn

DEFAULTS = {"mlp": {"epochs": 5, "lr": 2e-3}, "cnn": {"epochs": 3, "lr": 3e-3}}
EVERY = 10  # steps between two readings of loss and accuracy
TEST_BATCH = 500


# ---- models: 28 x 28 numbers from 0 to 1 in, ten scores out ------------------------------------
# The scores are logits: no softmax at the end. The loss takes its logarithm together with the
# softmax, which stays finite; log(softmax(x)) becomes NaN as soon as one probability rounds to 0.
# nn.Linear and nn.Conv2d start with weights in +-1/sqrt(fan in), fan in being the number of inputs
# that one output sums up: the ten scores start out small and the first loss near ln 10 = 2.30.

class MLP:
    """784 -> 256 -> 128 -> 10: 235,146 parameters."""

    def __init__(self) -> None:
        self.layer1 = nn.Linear(28 * 28, 256)
        self.layer2 = nn.Linear(256, 128)
        self.layer3 = nn.Linear(128, 10)

    def __call__(self, images: Tensor) -> Tensor:
        x = images.flatten(1)                # [batch, 784]
        x = self.layer1(x).relu()
        x = self.layer2(x).relu()
        return self.layer3(x)


class CNN:
    """Two 3x3 convolutions, each halved by max-pooling, then two layers: 421,642 parameters."""

    def __init__(self, batchnorm: bool = False) -> None:
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm1 = nn.BatchNorm(32) if batchnorm else lambda x: x
        self.norm2 = nn.BatchNorm(64) if batchnorm else lambda x: x
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def __call__(self, images: Tensor) -> Tensor:
        x = images.unsqueeze(1)                              # [batch,  1, 28, 28]
        x = self.norm1(self.conv1(x)).relu().max_pool2d()    # [batch, 32, 14, 14]
        x = self.norm2(self.conv2(x)).relu().max_pool2d()    # [batch, 64,  7,  7]
        x = self.fc1(x.flatten(1)).relu()
        return self.fc2(x)


def pixels(images: Tensor) -> Tensor:
    """Bytes as numbers from 0 to 1, computed once and not in each kernel that reads them."""
    return (images.float() / 255).contiguous()


MODELS = {"mlp": MLP, "cnn": CNN}


def build(name: str, **options) -> MLP | CNN:
    model = MODELS[name](**options)
    Tensor.realize(*nn.state.get_parameters(model))  # draw the random numbers now, once
    return model


# ---- one training step -------------------------------------------------------------------------

def learn(model, optimizer, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Forward, backward, update, as one lazy graph: the mean loss, how many are right, updates."""
    optimizer.zero_grad()
    logits = model(images)
    loss = logits.sparse_categorical_crossentropy(labels)
    loss.backward()
    right = (logits.argmax(axis=1) == labels).sum()
    return loss, right, optimizer.schedule_step()


def shuffled(rng: np.random.Generator, samples: int, batch: int) -> np.ndarray:
    """Row numbers [steps, batch] of an epoch: each sample once, in a new order.

    Where the batch does not divide the samples, the last row is filled up with the epoch's first
    samples: every step then has one shape, and compiles once.
    """
    steps = math.ceil(samples / batch)
    return np.resize(rng.permutation(samples), (steps, batch))


class Trainer:
    """Runs epochs of jitted steps over data that is shuffled and sent to the device once an epoch.

    A step is told only its number. It takes that batch, learns, lowers the learning rate along a
    straight line to zero, and adds loss and hits to `totals`: all on the device, so that Python
    waits for a result once in EVERY steps only.
    """

    def __init__(self, model, digits: Images, batch: int, lr: float, epochs: int, seed: int):
        self.images, self.labels = digits.train_images, digits.train_labels
        self.samples = len(self.images)
        self.batch = min(batch, self.samples)
        self.steps = math.ceil(self.samples / self.batch)  # an epoch
        self.rng = np.random.default_rng(seed)
        self.totals = Tensor.zeros(2).contiguous().realize()
        optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=lr)
        decay = lr / (epochs * self.steps)

        @TinyJit
        @Context(TRAINING=1)
        def step(images: Tensor, labels: Tensor, number: Variable) -> None:
            loss, right, updates = learn(model, optimizer, pixels(images[number]), labels[number])
            self.totals.assign(self.totals + Tensor.stack(loss, right.float()))
            optimizer.lr.assign(optimizer.lr - decay)
            Tensor.realize(self.totals, optimizer.lr, *updates)

        self.step = step

    def augmented(self, images: np.ndarray) -> np.ndarray:
        """An epoch's images [steps, batch, ...] as they are shown; cifar.py changes them."""
        return images

    def epoch(self, stop: Stop):
        """Runs one; every few steps yields (steps, mean loss, accuracy, seconds a step) of them."""
        before, since, start = np.zeros(2), 0, time.perf_counter()
        order = shuffled(self.rng, self.samples, self.batch)
        images = Tensor(self.augmented(self.images[order])).realize()
        labels = Tensor(self.labels[order]).realize()
        number = Variable("number", 0, max(self.steps - 1, 1))
        self.totals.assign(Tensor.zeros(2)).realize()
        for done in range(1, self.steps + 1):
            self.step(images, labels, number.bind(done - 1))
            if done % EVERY and done < self.steps and not stop.asked:
                continue
            totals, now = self.totals.numpy(), time.perf_counter()
            steps = done - since
            loss, right = ((totals - before) / steps).tolist()
            yield steps, loss, right / self.batch, (now - start) / steps
            if stop.asked:
                return
            before, since, start = totals, done, now


# ---- evaluation --------------------------------------------------------------------------------

def evaluator(model, digits: Images):
    """A function that returns mean loss and accuracy on the test set, for the weights of now.

    The set is cut into equal pieces, for one compiled shape; the last is filled up with blank
    images labelled -1, which the loss ignores and no answer equals.
    """
    samples = len(digits.test_images)
    pieces = math.ceil(samples / TEST_BATCH)
    missing = pieces * TEST_BATCH - samples
    shape = digits.test_images.shape[1:]
    images = Tensor(np.pad(digits.test_images, ((0, missing), *((0, 0) for _ in shape))))
    images = images.reshape(pieces, TEST_BATCH, *shape).realize()
    labels = np.pad(digits.test_labels.astype(np.int32), (0, missing), constant_values=-1)
    labels = Tensor(labels).reshape(pieces, TEST_BATCH).realize()
    number = Variable("piece", 0, max(pieces - 1, 1))

    @TinyJit
    def score(piece: Variable) -> Tensor:
        logits, expected = model(pixels(images[piece])), labels[piece]
        right = (logits.argmax(axis=1) == expected).sum().float()
        return Tensor.stack(logits.sparse_categorical_crossentropy(
            expected, ignore_index=-1, reduction="sum"), right)

    def evaluate() -> list[float]:
        totals = sum(score(number.bind(i)).numpy().astype(float) for i in range(pieces))
        return (totals / samples).tolist()

    return evaluate


# ---- for tgx -----------------------------------------------------------------------------------

def tgx_models():
    """For `tgx profile`: name -> (step, make_inputs).

    `step(*make_inputs(batch))` returns the tensors to realize, and may be wrapped in TinyJit.
    """
    def inputs(batch: int) -> tuple[Tensor]:
        return (pixels(Tensor(np.arange(batch * 784, dtype=np.uint8).reshape(batch, 28, 28))
                       ).realize(),)

    def labelled(batch: int) -> tuple[Tensor, Tensor]:
        return *inputs(batch), Tensor((np.arange(batch) % 10).astype(np.uint8)).realize()

    def training(model):
        optimizer = nn.optim.Adam(nn.state.get_parameters(model), lr=1e-3)

        @Context(TRAINING=1)
        def step(images: Tensor, labels: Tensor) -> list[Tensor]:
            loss, _, updates = learn(model, optimizer, images, labels)
            return [loss, *updates]
        return step

    models = {name: build(name) for name in MODELS}
    return ({name: (model, inputs) for name, model in models.items()}
            | {f"{name}-train": (training(model), labelled) for name, model in models.items()})


# ---- the program -------------------------------------------------------------------------------

def number(kind, above=0):
    """For argparse: a number of that kind above a limit."""
    def convert(text: str):
        if not above < (value := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number above {above}")
        return value
    convert.__name__ = kind.__name__  # for argparse's message about what is no number at all
    return convert


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train the guide's MLP or CNN on MNIST")
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--batchnorm", action="store_true", help="batch normalisation in the CNN")
    parser.add_argument("--epochs", type=number(int), help="default: 5 (mlp), 3 (cnn)")
    parser.add_argument("--batch", type=number(int), default=64, help="default: 64")
    parser.add_argument("--lr", type=number(float), help="at first; falls to 0 (2e-3, 3e-3)")
    parser.add_argument("--seed", type=number(int, -1), default=0, help="of weights and shuffling")
    parser.add_argument("--data", type=Path, metavar="DIR", help="idx files: plain, gz or xz")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep weights, metrics and curves")
    parser.add_argument("--limit", type=number(int), metavar="N", help="the first N samples only")
    args = parser.parse_args()
    if args.batchnorm and args.model != "cnn":
        parser.error("--batchnorm needs --model cnn: the MLP has no channels to normalise")
    args.epochs = args.epochs or DEFAULTS[args.model]["epochs"]
    args.lr = args.lr or DEFAULTS[args.model]["lr"]
    return args


@dataclass(frozen=True)
class Job:
    """What a run trains: `name` begins the names of folders nobody named."""

    title: str
    name: str
    data: Images
    model: object
    trainer: Trainer


def prepare(args: argparse.Namespace) -> Job:
    digits = first(mnist(args.data), args.limit)
    Tensor.manual_seed(args.seed)
    model = build(args.model, **({"batchnorm": True} if args.batchnorm else {}))
    trainer = Trainer(model, digits, args.batch, args.lr, args.epochs, args.seed)
    return Job(f"{args.model.upper()} on MNIST", f"mnist-{args.model}", digits, model, trainer)


def first(data: Images, limit: int | None) -> Images:
    """Only so many training images; all for None."""
    return replace(data, train_images=data.train_images[:limit],
                   train_labels=data.train_labels[:limit])


def train(args: argparse.Namespace, prepare, console, stop: Stop) -> int:
    """The whole run; returns the exit status."""
    job = prepare(args)
    model, trainer = job.model, job.trainer
    evaluate = evaluator(model, job.data)
    options = {key: value for key, value in vars(args).items()
               if key not in ("data", "out", "limit", "epochs")}
    report = Report(f"{job.title}, device {Device.DEFAULT}", trainer.steps, options | {
        "device": Device.DEFAULT,
        "parameters": sum(t.numel() for t in nn.state.get_parameters(model) if t.is_param),
        "batch": trainer.batch, "epochs_asked": args.epochs,
        "train_samples": trainer.samples, "test_samples": len(job.data.test_images)})

    def save(folder: Path | None) -> OSError | None:
        weights = {name: t.numpy() for name, t in nn.state.get_state_dict(model).items()}
        return report.save(folder, weights)

    def folder() -> Path | None:  # an interrupted run is kept even where nobody asked for it
        return args.out or (Path(f"{job.name}-interrupted") if stop.asked else None)

    stopping, home, problem = False, None, None
    with progress_bar(console) as bar:
        task = bar.add_task("compiling", total=args.epochs * trainer.steps, now="")
        for epoch in range(1, args.epochs + 1):
            for steps, loss, accuracy, seconds in trainer.epoch(stop):
                report.read(steps, loss, accuracy, seconds)
                bar.update(task, description=f"epoch {epoch}/{args.epochs}", advance=steps,
                           now=f"loss {loss:.4f}  accuracy {accuracy:.1%}")
            if stop.asked and not save(folder()):  # first what another Ctrl-C must not cost
                console.print(f"the weights so far are in {folder()}", soft_wrap=True)
            report.tested(*evaluate())
            console.print(report.line(), highlight=False)
            stopping, home = stop.asked, folder()
            if problem := save(home):
                console.print(f"cannot write to {home} ({problem.strerror}); going on",
                              soft_wrap=True)
            if stopping:
                break
    console.print(report.table())
    if problem:  # a full disk, say: the training must not be lost
        spare = Path(tempfile.mkdtemp(prefix=f"{job.name}-"))
        where = "are lost" if save(spare) else f"are in {spare}"
        sys.exit(f"error: cannot write to {home} ({problem.strerror}); the results {where}")
    if home:
        print(f"weights, metrics and curves are in {home}")
    if not math.isfinite(report.metrics["test_loss"]):
        print(f"The loss is no longer a number: try a smaller --lr than {args.lr:g}.")
    return 130 if stopping else 0


def run(args: argparse.Namespace, prepare) -> None:
    """Train what `prepare` makes of the arguments, and leave the program."""
    from rich.console import Console

    try:
        Device[Device.DEFAULT]
    except Exception as error:  # whatever a missing driver or compiler may raise
        sys.exit(f"error: this device cannot be used: {error}")
    try:
        if args.out:  # find out now, not after the training, that nothing can be written there
            args.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=args.out).close()
    except OSError as error:
        sys.exit(f"error: cannot write to {args.out} ({error.strerror}); give another --out")
    try:
        with Stop() as stop:
            sys.exit(train(args, prepare, Console(), stop))
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    run(arguments(), prepare)


if __name__ == "__main__":
    main()
