"""Lesson 10: the data sets

    python examples/10_datasets.py [--quick] [--out DIR]

Guide, section 16. MNIST, Fashion-MNIST, CIFAR-10 and Iris behind one loader, guide_data.py. What
their files look like inside; what is easy to reach on each and what is not, from guessing upwards;
and how little a test on 30 flowers says. Nothing is downloaded here; the lesson says how to.
"""

import struct
from collections.abc import Callable

import numpy as np
from guide_data import HERE, SETS, Images, Table, at_hand, draw, iris, load, mnist, unpack
from guide_lesson import Chart, Lesson, Picture, bitmap, legend, table, words
from tinygrad import Context, Tensor, TinyJit, nn

# name: (samples, size of one, the guide's "baseline")
GUIDE = {"mnist": (70_000, "28 × 28 × 1", "99.7 %"),
         "fashion-mnist": (70_000, "28 × 28 × 1", "94 %"),
         "cifar10": (60_000, "32 × 32 × 3", "95 %+"), "iris": (150, "4", "97 %")}


def header(name: str = "train-images-idx3-ubyte.xz") -> bytes:
    """The first bytes of one of MNIST's files."""
    return unpack(HERE / "mnist" / name)[:16]


# ---- from guessing upwards: images ---------------------------------------------------------------

def guess(data: Images) -> float:
    """Accuracy of always naming the class that is most frequent in training."""
    return float((data.test_labels == np.bincount(data.train_labels).argmax()).mean())


def class_means(data: Images) -> np.ndarray:
    """The mean picture of each class: [classes, pixels]."""
    x = data.train_images.reshape(len(data.train_images), -1)
    return np.stack([x[data.train_labels == c].mean(0) for c in range(len(data.classes))])


def nearest_mean(data: Images) -> float:
    """Accuracy of naming the class whose mean picture is nearest."""
    means = class_means(data).astype(np.float32)
    x = data.test_images.reshape(len(data.test_images), -1).astype(np.float32)
    distance = (means**2).sum(1) - 2 * x @ means.T  # + |x|², the same for every class
    return float((distance.argmin(1) == data.test_labels).mean())


def linear(data: Images, epochs: int = 3, batch: int = 500) -> float:
    """Accuracy of one layer: a score for each class, every pixel weighed."""
    Tensor.manual_seed(0)
    x = data.train_images.reshape(len(data.train_images), -1)
    layer = nn.Linear(x.shape[1], len(data.classes))
    optimizer = nn.optim.Adam(nn.state.get_parameters(layer), lr=3e-3)

    @TinyJit
    @Context(TRAINING=1)
    def step(pixels: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        scores = layer(pixels.float() / 255)
        scores.sparse_categorical_crossentropy(labels).backward()
        Tensor.realize(*optimizer.schedule_step())

    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(x))
        for rows in order[:len(x) // batch * batch].reshape(-1, batch):
            step(Tensor(x[rows]).realize(), Tensor(data.train_labels[rows]).realize())
    seen = data.test_images.reshape(len(data.test_images), -1) / np.float32(255)
    scores = seen @ layer.weight.numpy().T + layer.bias.numpy()
    return float((scores.argmax(1) == data.test_labels).mean())


STEPS_UP: dict[str, Callable[[Images], float]] = {
    "always the most frequent class": guess, "the nearest class mean": nearest_mean,
    "one linear layer": linear}


# ---- Iris: what a small test says ----------------------------------------------------------------

def folds(samples: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of the test samples, [count, samples / count]: each sample is in one of them."""
    return rng.permutation(samples).reshape(count, -1)


def cross_validate(data: Table, tests: np.ndarray, steps: int = 400) -> tuple[np.ndarray, Tensor]:
    """Train one classifier for each row of `tests`, on the samples not in it: its test accuracy.

    All of them at once: [splits, samples, 4] @ [splits, 4, 3] is one kernel, not one for each.
    """
    everything = np.arange(len(data.labels))
    trains = np.stack([np.setdiff1d(everything, test) for test in tests])
    x = standard(data.features)
    inputs = Tensor(x[trains]).realize()
    labels = Tensor(data.labels[trains].astype(np.int32)).realize()
    w, b = (Tensor.zeros(len(tests), n, 3).contiguous().realize() for n in (4, 1))
    step = descent(inputs, labels, w, b)
    for _ in range(steps):
        step()
    scores = x[tests] @ w.numpy() + b.numpy()
    return (scores.argmax(-1) == data.labels[tests]).mean(1), w


def standard(features: np.ndarray) -> np.ndarray:
    """Each column with mean 0 and standard deviation 1: centimetres of petals beside sepals."""
    return (features - features.mean(0)) / features.std(0)


def descent(inputs: Tensor, labels: Tensor, w: Tensor, b: Tensor) -> Callable[[], None]:
    optimizer = nn.optim.Adam([w, b], lr=0.1)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> None:
        optimizer.zero_grad()
        scores = (inputs @ w + b).reshape(-1, 3)
        scores.sparse_categorical_crossentropy(labels.flatten()).backward()
        Tensor.realize(*optimizer.schedule_step())

    return step


# ---- the lesson ----------------------------------------------------------------------------------

def tile(image: np.ndarray) -> np.ndarray:
    """A picture [height, width] or [3, height, width] as [height, width, 3]; ink is dark."""
    if image.ndim == 3:
        return image.transpose(1, 2, 0)
    return np.repeat((255 - image)[..., None], 3, axis=2).astype(np.uint8)


def picture(flowers: Table, single: np.ndarray, mean: float, sets: dict[str, Images]) -> str:
    page = Picture("What the data sets look like", 1080, 450 if len(sets) < 2 else 800,
                   "irises by their petals; what tests on 30 of them say; pictures of each class")
    x, y = flowers.features[:, 2], flowers.features[:, 3]
    colours = ("blue", "orange", "green")
    chart = Chart(page, (56, 96, 280, 240), (0.5, 7.2), (0, 2.7), "Iris: width of petals, cm",
                  "length, cm", xticks=(1, 3, 5, 7), yticks=(0, 1, 2))
    rng = np.random.default_rng(0)
    for kind, css in enumerate(colours):
        chosen = flowers.labels == kind
        moved = rng.uniform(-0.03, 0.03, (2, chosen.sum()))  # else equal flowers hide each other
        chart.dots(x[chosen] + moved[0], y[chosen] + moved[1], css, 3.5)
    page.add(*legend(56, 400, list(zip(colours, flowers.classes, strict=True)), 104))
    wrong = np.rint(30 * (1 - single)).astype(int)
    chart = Chart(page, (420, 96, 230, 240), (-0.7, 5.7), (0, 1.12 * max(np.bincount(wrong))),
                  f"{len(single)} tests of 30 irises", "wrong answers", xticks=range(6))
    for kind, count in enumerate(np.bincount(wrong)):
        at = chart.at_x(kind) - 14
        page.add(f'<rect class="dot blue" x="{at:.1f}" y="{chart.at_y(count):.1f}" width="28" '
                 f'height="{chart.at_y(0) - chart.at_y(count):.1f}"/>')
        chart.note(kind, count, f"{100 - kind / 0.3:.0f} %", anchor="middle", dy=-6)
    page.add(words(420, 404, f"on average over all folds: {mean:.1%}", "quiet"))
    places = [(730, 92), (56, 470), (420, 470)]
    for (left, top), (name, data) in zip(places, sets.items(), strict=False):
        page.add(words(left, top - 6, f"{name}: each class, its mean", "head"))
        wide = data.train_images.shape[-1]
        means = class_means(data).reshape(10, *data.train_images.shape[1:])
        for c in range(10):
            shown = [*data.train_images[data.train_labels == c][:8], means[c].astype(np.uint8)]
            for j, image in enumerate(shown):
                page.add(bitmap(left + 32 * j + 10 * (j == 8), top + 31 * c, tile(image),
                                30 / wide))
            if data.classes[c] != str(c):
                page.add(words(left + 304, top + 31 * c + 20, data.classes[c], "quiet"))
    return str(page)


def main() -> None:
    lesson = Lesson("10_datasets", __doc__)
    quick = lesson.quick

    lesson.part("One loader")
    sets, rows = {}, []
    for name in SETS:
        samples, size, good = GUIDE[name]
        if not at_hand(name):
            rows.append((name, f"{samples:,}", size, good, "not here",
                         f"python examples/guide_data.py {name} downloads it"))
            continue
        data = load(name)
        if isinstance(data, Images):
            sets[name] = data
            found = len(data.train_labels) + len(data.test_labels)
            shape = data.train_images.shape[1:]
        else:
            found, shape = len(data.labels), data.features.shape[1:]
        rows.append((name, f"{samples:,}", size, good,
                     f"{found:,} of {' × '.join(map(str, shape))}", f"{len(data.classes)} classes"))
    print(table(("", "samples", "size", "\"baseline\"", "measured here", ""), rows, right=(1,)))
    lesson.say("⚠ The guide calls these accuracies baselines. They are good results; what is easy",
               "  to reach comes next.")

    magic, *sizes = struct.unpack(">4I", header())
    lesson.part("Inside a file of MNIST",
                "  " + header().hex(" "),
                "  00 00; 08: unsigned bytes; 03: three dimensions (as one number, "
                f"{magic}); their sizes:", f"  {' × '.join(map(str, sizes))}. Then the pixels.")
    if not quick:
        print(draw(mnist().train_images[0][4:24]))

    lesson.part("From guessing upwards, on the test sets")
    results = []
    for name, data in sets.items():
        if quick:
            data = Images(data.train_images[:5000], data.train_labels[:5000],
                          data.test_images[:2000], data.test_labels[:2000], data.classes)
        results += [(f"{name}: {method}", "", f"{accuracy(data):.2%}")
                    for method, accuracy in STEPS_UP.items()]
        results.append((f"{name}: a good result", GUIDE[name][2],
                        "lessons 7 and 8" if name == "mnist" else "not measured here"))
    results += [(f"{name}: a good result", GUIDE[name][2], "not measured here: not downloaded")
                for name in SETS if not at_hand(name)]
    lesson.beside(*results)

    lesson.part("Iris: 150 flowers")
    flowers = iris()
    rng = np.random.default_rng(0)
    repeats = 4 if quick else 40
    tests = np.concatenate([folds(150, 5, rng) for _ in range(repeats)])
    accuracies, w = cross_validate(flowers, tests)
    lesson.beside(
        (f"{repeats} times five folds, each flower in one", "97 %", f"{accuracies.mean():.1%}"),
        ("  the first five by themselves", "", ", ".join(f"{a:.1%}" for a in accuracies[:5])),
        (f"  all {len(tests)} tests of 30 flowers", "",
         f"{accuracies.min():.1%} to {accuracies.max():.1%}",
         "one flower is 3.3 points: a single such test says little"))
    lesson.say(f"All {len(accuracies)} classifiers were trained at once: their weights are one "
               f"Tensor {' × '.join(map(str, w.shape))}.")

    lesson.picture(picture(flowers, accuracies, accuracies.mean(), sets))
    inputs = Tensor(np.tile(standard(flowers.features), (8, 1, 1))).realize()
    labels = Tensor(np.tile(flowers.labels.astype(np.int32), (8, 1))).realize()
    weights, bias = (Tensor.zeros(8, n, 3).contiguous().realize() for n in (4, 1))

    def eight_at_once() -> None:
        scores = (inputs @ weights + bias).reshape(-1, 3)
        loss = scores.sparse_categorical_crossentropy(labels.flatten())
        Tensor.realize(loss, *loss.gradient(weights, bias))

    lesson.kernels(eight_at_once)


if __name__ == "__main__":
    main()
