"""The networks of the guide's table and the deep dive's, as their papers or torchvision have them.

    python examples/guide_networks.py      # build every one, count its parameters

Each is a few lines of tinygrad. A network is a list of layers and functions, called in order; what
the table of a paper is, stays a table here. The number of parameters pins each down: a wrong stride
would not show in it, a forgotten bias or group would.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tinygrad import Tensor, nn

Act = Callable[[Tensor], Tensor]


class Network:
    """Layers in order."""

    def __init__(self, *layers):
        self.layers = list(layers)

    def __call__(self, x: Tensor) -> Tensor:
        return x.sequential(self.layers)


def same(x: Tensor) -> Tensor:
    return x


def flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


def global_mean(x: Tensor) -> Tensor:
    """[batch, channels, height, width] -> [batch, channels]: where it was no longer matters."""
    return x.mean((2, 3))


def pool(size: int, stride: int | None = None, padding: int = 0) -> Act:
    return lambda x: x.max_pool2d(size, stride, padding=padding)


def parameters(model) -> int:
    """Learned numbers; batch norm's running statistics are not."""
    return sum(t.numel() for t in nn.state.get_parameters(model) if t.is_param)


# ---- the bricks ----------------------------------------------------------------------------------

def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1,
         act: Act = Tensor.relu) -> list:
    """Convolution, batch norm, activation. The norm has a bias, so the convolution needs none."""
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm(outputs), act]


class Residual:
    """x -> act(short(x) + body(x)): the body learns what to add."""

    def __init__(self, body: list, short: list, act: Act = Tensor.relu):
        self.body, self.short, self.act = body, short, act

    def __call__(self, x: Tensor) -> Tensor:
        return self.act(x.sequential(self.short) + x.sequential(self.body))


class Squeeze:
    """Squeeze and excitation: look at the whole picture, then weigh the channels."""

    def __init__(self, channels: int, hidden: int, act: Act, gate: Act):
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.act, self.gate = act, gate

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(x.mean((2, 3), keepdim=True)))))


def inverted_residual(inputs: int, wide: int, outputs: int, size: int, stride: int, act: Act,
                      squeeze: list | None = None):
    """1x1 up to `wide` channels, one filter a channel, 1x1 down: added to x where shapes agree."""
    body = [*(conv(inputs, wide, 1, act=act) if wide != inputs else []),
            *conv(wide, wide, size, stride, groups=wide, act=act), *(squeeze or []),
            *conv(wide, outputs, 1, act=same)]
    return Residual(body, [], same) if stride == 1 and inputs == outputs else Network(*body)


# ---- the guide's table ---------------------------------------------------------------------------

class LeNet5:
    """LeCun, Bottou, Bengio, Haffner 1998. Input [batch, 1, 32, 32]; ten distances, small is near.

    As published: pooling has a weight and a bias per map, and each map of the third layer sees only
    some of those before it. The output layer's ten drawings were made by hand, not learned.
    """

    SEES = ([[(i + k) % 6 for k in range(3)] for i in range(6)]
            + [[(i + k) % 6 for k in range(4)] for i in range(6)]
            + [[0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]])

    def __init__(self) -> None:
        self.c1 = nn.Conv2d(1, 6, 5)
        self.s2 = [Tensor.ones(1, 6, 1, 1), Tensor.zeros(1, 6, 1, 1)]
        self.c3 = [nn.Conv2d(len(maps), 1, 5) for maps in self.SEES]
        self.s4 = [Tensor.ones(1, 16, 1, 1), Tensor.zeros(1, 16, 1, 1)]
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        # 7 x 12 pixels of each digit, +1 and -1; drawn by lot here, by hand in the paper
        self.drawings = (Tensor.rand(10, 84) > 0.5).where(1.0, -1.0).is_param_(False)

    def __call__(self, x: Tensor) -> Tensor:
        def squash(x: Tensor) -> Tensor:
            return 1.7159 * (x * (2 / 3)).tanh()
        x = squash(self.c1(x))                                                   # 6 x 28 x 28
        x = squash(x.avg_pool2d() * self.s2[0] + self.s2[1])                     # 6 x 14 x 14
        x = squash(Tensor.cat(*[c(x[:, maps]) for c, maps in
                                zip(self.c3, self.SEES, strict=True)], dim=1))   # 16 x 10 x 10
        x = squash(x.avg_pool2d() * self.s4[0] + self.s4[1])                     # 16 x 5 x 5
        x = squash(self.f6(squash(self.c5(x)).flatten(1)))                       # 120, then 84
        return (x.unsqueeze(1) - self.drawings).square().sum(2)                  # 10


def lenet_modern() -> Network:
    """LeNet-5 as it is usually written today. Input [batch, 1, 32, 32]."""
    return Network(nn.Conv2d(1, 6, 5), Tensor.relu, pool(2), nn.Conv2d(6, 16, 5), Tensor.relu,
                   pool(2), flatten, nn.Linear(400, 120), Tensor.relu, nn.Linear(120, 84),
                   Tensor.relu, nn.Linear(84, 10))


def classifier(inputs: int) -> list:
    """The three dense layers AlexNet and VGG end in; most of their parameters."""
    return [flatten, nn.Linear(inputs, 4096), Tensor.relu, Tensor.dropout,
            nn.Linear(4096, 4096), Tensor.relu, Tensor.dropout, nn.Linear(4096, 1000)]


def alexnet(channels: tuple[int, ...], groups: int) -> Network:
    """`groups` is 2 for the paper's two GPUs, each of which sees its half of the channels."""
    a, b, c, d, e = channels
    return Network(
        nn.Conv2d(3, a, 11, 4, 2), Tensor.relu, pool(3, 2),
        nn.Conv2d(a, b, 5, padding=2, groups=groups), Tensor.relu, pool(3, 2),
        nn.Conv2d(b, c, 3, padding=1), Tensor.relu,
        nn.Conv2d(c, d, 3, padding=1, groups=groups), Tensor.relu,
        nn.Conv2d(d, e, 3, padding=1, groups=groups), Tensor.relu, pool(3, 2),
        *classifier(e * 6 * 6))


def vgg16() -> Network:
    """Simonyan and Zisserman 2014: nothing but 3x3 convolutions and pooling."""
    layers, inputs = [], 3
    for outputs, times in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(times):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), Tensor.relu]
            inputs = outputs
        layers.append(pool(2))
    return Network(*layers, *classifier(512 * 7 * 7))


def resnet(blocks: tuple[int, ...], wide: int) -> Network:
    """He, Zhang, Ren, Sun 2015. `wide` is 1 for two 3x3 convolutions a block, 4 for 1x1, 3x3, 1x1.

    The stride is the 3x3 convolution's, as in torchvision.
    """
    layers, inputs = [*conv(3, 64, 7, 2), pool(3, 2, 1)], 64
    for i, times in enumerate(blocks):
        inner, outputs = 64 * 2**i, 64 * 2**i * wide
        for j in range(times):
            stride = 2 if i and not j else 1
            body = [*conv(inputs, inner, 3, stride), *conv(inner, outputs, act=same)] \
                if wide == 1 else [*conv(inputs, inner, 1), *conv(inner, inner, 3, stride),
                                   *conv(inner, outputs, 1, act=same)]
            short = [] if inputs == outputs and stride == 1 else \
                conv(inputs, outputs, 1, stride, act=same)
            layers.append(Residual(body, short))
            inputs = outputs
    return Network(*layers, global_mean, nn.Linear(inputs, 1000))


def mobilenet_v2() -> Network:
    """Sandler and others 2018. Rows: (times wider, channels, how often, stride)."""
    layers, inputs = conv(3, 32, 3, 2, act=Tensor.relu6), 32
    for times, outputs, repeats, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1)):
        for i in range(repeats):
            layers.append(inverted_residual(inputs, times * inputs, outputs, 3,
                                            1 if i else stride, Tensor.relu6))
            inputs = outputs
    return Network(*layers, *conv(320, 1280, 1, act=Tensor.relu6), global_mean,
                   Tensor.dropout, nn.Linear(1280, 1000))


def mobilenet_v3_small() -> Network:
    """Howard and others 2019. Rows: (filter, wide, channels, squeeze?, activation, stride)."""
    relu, swish = Tensor.relu, Tensor.hardswish
    rows = ((3, 16, 16, 1, relu, 2), (3, 72, 24, 0, relu, 2), (3, 88, 24, 0, relu, 1),
            (5, 96, 40, 1, swish, 2), (5, 240, 40, 1, swish, 1), (5, 240, 40, 1, swish, 1),
            (5, 120, 48, 1, swish, 1), (5, 144, 48, 1, swish, 1), (5, 288, 96, 1, swish, 2),
            (5, 576, 96, 1, swish, 1), (5, 576, 96, 1, swish, 1))
    layers, inputs = conv(3, 16, 3, 2, act=swish), 16
    for size, wide, outputs, squeezed, act, stride in rows:
        squeeze = [Squeeze(wide, eighths(wide / 4), relu, Tensor.hardsigmoid)] if squeezed else []
        layers.append(inverted_residual(inputs, wide, outputs, size, stride, act, squeeze))
        inputs = outputs
    return Network(*layers, *conv(96, 576, 1, act=swish), global_mean, nn.Linear(576, 1024), swish,
                   Tensor.dropout, nn.Linear(1024, 1000))


def eighths(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 * (nearest < 0.9 * channels)


def efficientnet_b0() -> Network:
    """Tan and Le 2019. Rows: (times wider, filter, stride, channels, how often)."""
    layers, inputs = conv(3, 32, 3, 2, act=Tensor.silu), 32
    for times, size, stride, outputs, repeats in (
            (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
            (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)):
        for i in range(repeats):
            wide = times * inputs
            squeeze = [Squeeze(wide, inputs // 4, Tensor.silu, Tensor.sigmoid)]
            layers.append(inverted_residual(inputs, wide, outputs, size, 1 if i else stride,
                                            Tensor.silu, squeeze))
            inputs = outputs
    return Network(*layers, *conv(320, 1280, 1, act=Tensor.silu), global_mean, Tensor.dropout,
                   nn.Linear(1280, 1000))


def small_residual(width: int = 32, classes: int = 10) -> Network:
    """For 32x32 pictures (CIFAR-10): eight convolutions, two of the pairs residual."""
    a, b, c, d = (width * k for k in (1, 2, 4, 8))
    return Network(
        *conv(3, a), *conv(a, b), pool(2),
        Residual([*conv(b, b), *conv(b, b)], [], same), *conv(b, c), pool(2),
        *conv(c, d), pool(2), Residual([*conv(d, d), *conv(d, d)], [], same),
        lambda x: x.max((2, 3)), nn.Linear(d, classes))


# ---- the tables ----------------------------------------------------------------------------------

TORCHVISION = "torchvision's table of pre-trained weights, one crop, 50,000 validation pictures"


@dataclass(frozen=True)
class Row:
    """A network, what the guide says of it, and what is right, with its source."""

    build: Callable
    year: int
    layers: int             # with weights, as the paper counts: no shortcuts, no squeezing
    parameters: int         # exactly
    input: tuple[int, ...]
    guide: tuple[str, str] | None = None  # parameters and top-5 accuracy, in the guide's table
    top5: str = ""          # the accuracy's protocol and source


NETWORKS = {
    "LeNet-5": Row(LeNet5, 1998, 7, 60_000, (1, 1, 32, 32), ("60K", "—"), ""),
    "LeNet-5, as written today": Row(lenet_modern, 1998, 5, 61_706, (1, 1, 32, 32)),
    "AlexNet": Row(
        lambda: alexnet((96, 256, 384, 384, 256), 2), 2012, 8, 60_965_224, (1, 3, 224, 224),
        ("61M", "84.6%"), "81.8 one network, 84.7 seven together (Krizhevsky 2012)"),
    "AlexNet, torchvision": Row(
        lambda: alexnet((64, 192, 384, 256, 256), 1), 2014, 8, 61_100_840, (1, 3, 224, 224),
        None, "79.07 (torchvision)"),
    "VGG-16": Row(vgg16, 2014, 16, 138_357_544, (1, 3, 224, 224), ("138M", "92.7%"),
                  "90.38 (torchvision); 92.7 several networks, many crops (contest)"),
    "ResNet-50": Row(lambda: resnet((3, 4, 6, 3), 4), 2015, 50, 25_557_032, (1, 3, 224, 224),
                     ("25M", "95.3%"),
                     "92.86 (torchvision V1), 93.3 ten crops (He 2015), 95.43 (V2, of 2021)"),
    "MobileNetV2": Row(mobilenet_v2, 2018, 53, 3_504_872, (1, 3, 224, 224), ("3.4M", "93.4%"),
                       "90.29 (torchvision V1), 90.82 (V2), 90.1 (Keras)"),
    "EfficientNet-B0": Row(efficientnet_b0, 2019, 50, 5_288_548, (1, 3, 224, 224),
                           ("varies", "97.1%"),
                           "93.3 for B0; 97.1 (97.0 in the paper's v5) is B7: 66M, 600 pixels"),
    "ResNet-18": Row(lambda: resnet((2, 2, 2, 2), 1), 2015, 18, 11_689_512, (1, 3, 224, 224)),
    "MobileNetV3-Small": Row(mobilenet_v3_small, 2019, 36, 2_542_856, (1, 3, 224, 224)),
}


def weight_layers(model) -> int:
    """Convolutions and dense layers, without shortcuts and squeezing; a list of them is one."""
    if isinstance(model, LeNet5):
        return 7  # the paper counts its two poolings, which have weights: C1 S2 C3 S4 C5 F6, output
    found = 0
    for layer in model.layers if isinstance(model, Network) else model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            found += 1
        elif isinstance(layer, Network):
            found += weight_layers(layer)
        elif isinstance(layer, Residual):
            found += weight_layers(layer.body)
    return found


def main() -> None:
    print(f"{'':27}{'parameters':>12}  layers  output")
    for name, row in NETWORKS.items():
        model = row.build()
        out = model(Tensor.empty(*row.input))
        print(f"{name:27}{parameters(model):>12,}  {weight_layers(model):6}  {out.shape}")


if __name__ == "__main__":
    main()
