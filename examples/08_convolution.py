"""Lesson 8: convolution, and Project 3, the convolutional network

    python examples/08_convolution.py [--quick] [--out DIR]

Guide, section 12. The same small pattern, looked for everywhere: by hand, as loops, as one matrix
product, as tinygrad's conv2d. What that keeps (where a thing is, until pooling forgets it) and what
it saves. The networks of the guide's table, every parameter counted. And Project 3: a network that
learns digits, with the patterns it came to look for, and what they find in a seven.

The whole of Project 3 is `python examples/mnist.py --model cnn` (past 99 %) and
`python examples/cifar.py` (colour pictures).
"""

import math
from dataclasses import replace

import mnist
import numpy as np
from guide_data import Images
from guide_data import mnist as load_mnist
from guide_lesson import Lesson, Picture, bitmap, table, words
from guide_networks import NETWORKS, parameters, weight_layers
from guide_report import Stop, progress_bar
from rich.console import Console
from tinygrad import Context, Tensor, nn

# ---- by hand -------------------------------------------------------------------------------------

EXAMPLE = np.array([[1, 2, 3, 4, 5], [5, 6, 7, 8, 9]] * 2 + [[1, 2, 3, 4, 5]])
FILTER = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def out_size(size: int, k: int, padding: int = 0, stride: int = 1) -> int:
    """How many places a filter of k has along a line: floor((in + 2p - k) / s) + 1."""
    return (size + 2 * padding - k) // stride + 1


def conv_loop(x: np.ndarray, w: np.ndarray, padding: int = 0, stride: int = 1) -> np.ndarray:
    """x [inputs, height, width], w [outputs, inputs, k, k]: at every place, multiply and sum."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    k = w.shape[2]
    rows, columns = (out_size(n, k, 0, stride) for n in x.shape[1:])
    out = np.zeros((len(w), rows, columns), x.dtype)
    for o in range(len(w)):
        for i in range(rows):
            for j in range(columns):
                window = x[:, i * stride:i * stride + k, j * stride:j * stride + k]
                out[o, i, j] = (window * w[o]).sum()
    return out


def im2col(x: np.ndarray, k: int, padding: int = 0, stride: int = 1) -> np.ndarray:
    """Every window laid out as a row: [places, inputs * k * k]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]                    # [inputs, rows, columns, k, k]
    return windows.transpose(1, 2, 0, 3, 4).reshape(-1, x.shape[0] * k * k)


def conv_matmul(x: np.ndarray, w: np.ndarray, padding: int = 0, stride: int = 1) -> np.ndarray:
    """The windows as rows, the filters as columns: convolution is one matrix product."""
    rows, columns = (out_size(n, w.shape[2], padding, stride) for n in x.shape[1:])
    product = im2col(x, w.shape[2], padding, stride) @ w.reshape(len(w), -1).T
    return product.T.reshape(len(w), rows, columns)


def conv_tinygrad(x: np.ndarray, w: np.ndarray, padding: int = 0, stride: int = 1) -> np.ndarray:
    t, f = Tensor(x.astype(np.float32)).unsqueeze(0), Tensor(w.astype(np.float32))
    return t.conv2d(f, padding=padding, stride=stride)[0].numpy()


# ---- pooling -------------------------------------------------------------------------------------

POOLING = np.array([[1, 3, 2, 4], [5, 6, 7, 8], [3, 1, 4, 2], [7, 8, 5, 6]])


def max_pool(x: np.ndarray, rows: int = 2, columns: int = 2) -> np.ndarray:
    high, wide = x.shape
    return x.reshape(high // rows, rows, wide // columns, columns).max((1, 3))


def blame(*window: float) -> list[float]:
    """The gradient of a 2x2 max-pooling's one output by its four inputs."""
    x = Tensor([*map(float, window)]).reshape(1, 1, 2, 2)
    return x.max_pool2d(2).sum().gradient(x)[0].flatten().tolist()


# ---- what it keeps -------------------------------------------------------------------------------

def equivariance(seed: int = 0) -> dict[str, float]:
    """Move the picture two places to the right, and compare: how far apart, at most?

    conv: convolve the moved picture, against: move the convolved one (away from the border).
    pooled: the largest answer anywhere, for both pictures. dense: the same question of a layer in
    which every pixel has its own weight.
    """
    rng = np.random.default_rng(seed)
    picture = np.zeros((1, 20, 20))
    picture[0, 7:13, 6:12] = rng.normal(size=(6, 6))
    moved = np.roll(picture, 2, axis=2)
    w = rng.normal(size=(4, 1, 3, 3))
    here, there = (conv_tinygrad(p, w, padding=1) for p in (picture, moved))
    dense = rng.normal(size=(400, 400)) / 20
    a, b = ((p.ravel() @ dense).reshape(20, 20) for p in (picture, moved))
    return {"conv": float(abs(np.roll(here, 2, axis=2) - there).max()),
            "pooled": float(abs(here.max((1, 2)) - there.max((1, 2))).max()),
            "dense": float(abs(np.roll(a, 2, axis=1) - b).max())}


class Small:
    """A convolutional network for the experiment with mixed-up pixels: 3x3 twice, pooled twice."""

    def __init__(self) -> None:
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Linear(16, 10)

    def __call__(self, images: Tensor) -> Tensor:
        x = self.conv1(images.unsqueeze(1)).relu().max_pool2d()
        return self.out(self.conv2(x).relu().max((2, 3)))


def mixed_up(digits: Images, order: np.ndarray) -> Images:
    """The same pixels of every picture, in another order."""
    return replace(digits, **{
        name: getattr(digits, name).reshape(-1, 784)[:, order].reshape(-1, 28, 28)
        for name in ("train_images", "test_images")})


def learn_mixed_up(digits: Images, epochs: int) -> tuple[float, float]:
    """Accuracy of `Small` on pictures as they are, and with every picture's pixels mixed up alike.

    (A dense layer cannot tell: its weights, mixed up alike, are the same network. See the test.)
    """
    order = np.random.default_rng(0).permutation(784)
    found = []
    for data in (digits, mixed_up(digits, order)):
        Tensor.manual_seed(0)
        model = Small()
        Tensor.realize(*nn.state.get_parameters(model))
        train(model, data, epochs, 1e-2)
        found.append(mnist.evaluator(model, data)()[1])
    return found[0], found[1]


# ---- Project 3 -----------------------------------------------------------------------------------

def train(model, digits: Images, epochs: int, lr: float) -> None:
    trainer = mnist.Trainer(model, digits, 64, lr, epochs, seed=0)
    with Stop() as stop, progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs * trainer.steps, now="")
        for _ in range(epochs):
            for steps, loss, _, _ in trainer.epoch(stop):
                bar.update(task, advance=steps, now=f"loss {loss:.3f}")
            if stop.asked:
                raise KeyboardInterrupt


def few(digits: Images, training: int, test: int) -> Images:
    return Images(digits.train_images[:training], digits.train_labels[:training],
                  digits.test_images[:test], digits.test_labels[:test])


def stages(model: mnist.CNN, image: np.ndarray) -> dict[str, Tensor]:
    """The network's forward pass, every value by name: what `mnist.CNN.__call__` does at once."""
    values = {"image": Tensor(image[None, None].astype(np.float32) / 255)}
    values["conv1, ReLU"] = model.conv1(values["image"]).relu()
    values["pool1"] = values["conv1, ReLU"].max_pool2d()
    values["conv2, ReLU"] = model.conv2(values["pool1"]).relu()
    values["pool2"] = values["conv2, ReLU"].max_pool2d()
    values["flatten"] = values["pool2"].flatten(1)
    values["fc1, ReLU"] = model.fc1(values["flatten"]).relu()
    values["fc2"] = model.fc2(values["fc1, ReLU"])
    values["softmax"] = values["fc2"].softmax()
    return values


def separable(channels: int) -> float:
    """How many times fewer weights: 3x3 on each channel, then 1x1 across, against 3x3 across."""
    full = nn.Conv2d(channels, channels, 3, bias=False)
    each = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
    across = nn.Conv2d(channels, channels, 1, bias=False)
    return full.weight.numel() / (each.weight.numel() + across.weight.numel())


# ---- pictures ------------------------------------------------------------------------------------

def signed(values: np.ndarray) -> np.ndarray:
    """Numbers as colours, uint8 [..., 3]: white at 0, blue above, orange below."""
    size = np.clip(values / abs(values).max(), -1, 1)[..., None]
    blue, orange, white = (np.array(c) for c in ((0, 114, 178), (213, 94, 0), (255, 255, 255)))
    return np.where(size > 0, white + size * (blue - white),
                    white - size * (orange - white)).round().astype(np.uint8)


def mosaic(tiles: np.ndarray, columns: int, background: int = 255) -> np.ndarray:
    """Pictures [n, height, width, 3] side by side, one pixel between them."""
    n, high, wide, _ = tiles.shape
    rows = math.ceil(n / columns)
    page = np.full((rows * (high + 1) - 1, columns * (wide + 1) - 1, 3), background, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (high + 1), i % columns * (wide + 1)
        page[top:top + high, left:left + wide] = tile
    return page


def grey(values: np.ndarray) -> np.ndarray:
    """[n, height, width] as dark on white, each picture by its own largest value."""
    peak = np.maximum(values.max((1, 2), keepdims=True), 1e-9)
    return np.repeat((255 - 235 * values / peak)[..., None], 3, -1).astype(np.uint8)


def draw(model: mnist.CNN, image: np.ndarray) -> str:
    page = Picture("Convolution: one pattern, looked for everywhere", 1080, 450,
                   "the guide's example, 32 learned filters, and what they find in a digit")

    def grid(left: float, top: float, cells: np.ndarray, side: int, marked: tuple = ()) -> None:
        for (i, j), value in np.ndenumerate(cells):
            css = "soft orange" if (i, j) in marked else "box"
            page.add(f'<rect class="{css}" x="{left + j * side}" y="{top + i * side}" '
                     f'width="{side}" height="{side}"/>' if css == "box" else
                     f'<rect class="box" x="{left + j * side}" y="{top + i * side}" '
                     f'width="{side}" height="{side}"/><rect class="{css}" '
                     f'x="{left + j * side}" y="{top + i * side}" width="{side}" '
                     f'height="{side}"/>',
                     words(left + (j + 0.5) * side, top + (i + 0.68) * side, str(value), "",
                           "middle"))

    page.add(words(30, 76, "the guide's picture", "head"),
             words(232, 76, "filter", "head"), words(30, 294, "found", "head"))
    window = tuple(np.ndindex(3, 3))
    grid(30, 92, EXAMPLE, 32, window)
    grid(232, 92, FILTER, 32, window)
    grid(30, 310, conv_loop(EXAMPLE[None], FILTER[None, None])[0], 40, ((0, 0),))
    page.add(words(176, 350, "14 = 1 + 3 + 6 + 1 + 3:", "quiet"),
             words(176, 370, "the shaded window, where", "quiet"),
             words(176, 390, "the filter has its ones", "quiet"))

    values = stages(model, image)
    filters = model.conv1.weight.numpy()[:, 0]
    filters /= abs(filters).max((1, 2), keepdims=True)
    first, second = values["conv1, ReLU"].numpy()[0], values["pool2"].numpy()[0]
    page.add(words(380, 76, "32 learned filters", "head"),
             bitmap(380, 92, mosaic(signed(filters), 8), 320 / 31),
             words(380, 268, "blue: wants ink there; orange: wants none", "quiet"),
             words(724, 76, "what each finds in this digit", "head"),
             bitmap(724, 92, mosaic(grey(first), 8), 320 / 231),
             words(724, 268, "dark: found here", "quiet"),
             words(380, 316, "the digit", "head"),
             bitmap(380, 330, grey(image[None].astype(float))[0], 3.2),
             words(484, 316, "what the 64 filters after them find, pooled to 7 x 7", "head"),
             bitmap(484, 330, mosaic(grey(second), 22), 560 / 175))
    return str(page)


# ---- the lesson ----------------------------------------------------------------------------------

def main() -> None:
    lesson = Lesson("08_convolution", __doc__)
    rng = np.random.default_rng(0)

    lesson.part("By hand")
    found = conv_loop(EXAMPLE[None], FILTER[None, None])[0]
    lop = np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]])
    straight, flipped = (conv_loop(EXAMPLE[None], f[None, None])[0, 0, 0]
                         for f in (lop, lop[::-1, ::-1]))
    x, w = rng.normal(size=(3, 12, 10)), rng.normal(size=(5, 3, 3, 3))
    loops = conv_loop(x, w, 1, 2)
    lesson.beside(
        ("the example's first number", "14", str(found[0, 0])),
        ("all of them", "? ? ?", str(found.tolist()), "the guide leaves the rest open"),
        ("a filter that is not symmetric, as it is", "", str(straight)),
        ("  turned around, as mathematics' convolution", "convolution", str(flipped),
         "networks do not turn it: that is cross-correlation"),
        ("loops against one matrix product", "", f"{abs(conv_matmul(x, w, 1, 2) - loops).max():.0e}"
         " apart"),
        ("loops against tinygrad's conv2d", "",
         f"{abs(conv_tinygrad(x, w, 1, 2) - loops).max():.0e} apart"),
        ("size 5, filter 3, no padding", "(in + 2p - k)/s + 1", str(out_size(5, 3))),
        ("  224, filter 7, padding 3, stride 2", "", str(out_size(224, 7, 3, 2))))

    lesson.part("Pooling")
    lesson.beside(
        ("2x2 maximum of " + str(POOLING.tolist()), "3 4, 6 8, 3 4, 8 6",
         str(max_pool(POOLING).tolist()), "the guide's figure pools 1x2"),
        ("  1x2", "", str(max_pool(POOLING, 1, 2).tolist())),
        ("whose fault is the output? of 1 2 4 3", "the largest's", str(blame(1, 2, 4, 3))),
        ("  of four equals", "", str(blame(5, 5, 5, 5)), "tinygrad shares it out"))

    lesson.part("What it saves and what it keeps")
    first = nn.Linear(150_528, 1024)
    shift = equivariance()
    lesson.beside(
        ("a 224 x 224 picture in colour", "150,528", f"{224 * 224 * 3:,}"),
        ("one dense layer of 1024 on it", "154 million",
         f"{first.weight.numel():,} + {first.bias.numel():,}"),
        ("32 filters of 3x3 on a digit", "", f"{parameters(nn.Conv2d(1, 32, 3)):,}"),
        ("  as many outputs by a dense layer", "millions",
         f"{parameters(nn.Linear(784, 28 * 28 * 32)):,}"),
        ("move, then convolve; convolve, then move", "translation invariant",
         f"{shift['conv']:.0e} apart", "equivariant: the answer moves along"),
        ("  the largest answer anywhere", "", f"{shift['pooled']:.0e} apart",
         "only this is invariant"),
        ("  a dense layer", "", f"{shift['dense']:.1f} apart"),
        ("depthwise separable: fewer weights, 64 channels", "", f"{separable(64):.1f} times"),
        ("  256 channels", "", f"{separable(256):.1f} times"))

    lesson.part("The networks of the table")
    rows = []
    for name, row in list(NETWORKS.items())[:5 if lesson.quick else None]:
        model = row.build()
        says = row.guide or ("", "")
        rows.append((name, str(row.year), f"{parameters(model):,}", says[0],
                     str(weight_layers(model)), says[1], row.top5))
    print(table(("", "year", "parameters", "guide", "layers", "top-5, guide", "⚠ top-5, source"),
                rows, right=(2, 3, 4)))
    lesson.say("⚠ The guide's accuracies were measured in different ways: one network or many, one",
               "  crop or ten. MobileNetV2's is EfficientNet-B0's, EfficientNet's is B7's.",
               "  (torchvision: one crop; pytorch.org/vision/stable/models.html)")

    lesson.part("Project 3: digits")
    everything = load_mnist()
    digits = few(everything, 19_200, 10_000)
    Tensor.manual_seed(0)
    model = mnist.build("cnn")
    seven = everything.test_images[0]
    print(table(("", "shape"), [(name, " x ".join(map(str, value.shape[1:])))
                                for name, value in stages(model, seven).items()]))
    rows = [("parameters", "", f"{parameters(model):,}")]
    if lesson.quick:
        lesson.say("(--quick draws the network as it starts: nothing is learnt)")
    else:
        train(model, digits, 1, 3e-3)
        accuracy = mnist.evaluator(model, digits)()[1]
        plain, mixed = learn_mixed_up(few(everything, 6400, 2000), 3)
        rows += [(f"after one epoch of {len(digits.train_images):,}: right, of "
                  f"{len(digits.test_images):,}", ">99 % in the end", f"{accuracy:.2%}"),
                 ("a smaller one, on 6,400", "", f"{plain:.1%}"),
                 ("  every picture's pixels mixed up alike", "spatial structure", f"{mixed:.1%}",
                  "a dense network would not notice")]
    lesson.beside(*rows)
    lesson.say("All of it, three epochs: python examples/mnist.py --model cnn")
    with Context(TRAINING=0):
        lesson.picture(draw(model, seven))

    images = Tensor(seven[None, None].astype(np.float32)).realize()
    lesson.kernels(lambda: model.conv1(images).relu().max_pool2d().realize())


if __name__ == "__main__":
    main()
