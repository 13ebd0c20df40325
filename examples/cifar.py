"""Learn to name what is in small colour pictures: a residual network on all of CIFAR-10.

    python examples/cifar.py                     # downloads the data once: 170 MB, to a cache
    python examples/cifar.py --data DIR          # your copy: the archive, or its six batches
    DEVICE=CUDA python examples/cifar.py --width 64 --out run

Project 3, its second half: more than 85 % are right. 50,000 pictures, eight convolutions: hours on
two CPU cores, minutes on a GPU. The training is mnist.py's own (jitted steps, curves, what survives
Ctrl-C); here is what colour pictures need besides: a network that keeps its gradients (residual
blocks, batch norm), and pictures that are never the same twice (moved, mirrored).
"""

import argparse
from pathlib import Path

import mnist
import numpy as np
from guide_data import cifar10
from guide_networks import small_residual
from tinygrad import Tensor, nn


def moved_and_mirrored(images: np.ndarray, rng: np.random.Generator, by: int = 4) -> np.ndarray:
    """[..., 3, 32, 32]: each picture up to `by` pixels to any side (black comes in), half mirrored.

    What is in a picture stays what it is. (A mirrored 2 does not: choose what keeps the label.)
    """
    flat = images.reshape(-1, *images.shape[-3:])
    high, wide = flat.shape[2:]
    padded = np.pad(flat, ((0, 0), (0, 0), (by, by), (by, by)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (high, wide), axis=(2, 3))
    down, right = rng.integers(0, 2 * by + 1, (2, len(flat)))
    out = windows[np.arange(len(flat)), :, down, right]
    mirrored = rng.random(len(flat)) < 0.5
    out[mirrored] = out[mirrored, :, :, ::-1]
    return out.reshape(images.shape)


class Trainer(mnist.Trainer):
    """Shows every picture anew each epoch, unless `augment` is False."""

    augment = True

    def augmented(self, images: np.ndarray) -> np.ndarray:
        return moved_and_mirrored(images, self.rng) if self.augment else images


def arguments() -> argparse.Namespace:
    number = mnist.number
    parser = argparse.ArgumentParser(description="train a residual network on CIFAR-10")
    parser.add_argument("--epochs", type=number(int), default=15, help="default: 15")
    parser.add_argument("--batch", type=number(int), default=128, help="default: 128")
    parser.add_argument("--lr", type=number(float), default=3e-3, help="at first; falls to 0")
    parser.add_argument("--width", type=number(int), default=32, help="channels, at first (32)")
    parser.add_argument("--seed", type=number(int, -1), default=0, help="of weights and shuffling")
    parser.add_argument("--as-they-are", action="store_true", help="never moved or mirrored")
    parser.add_argument("--data", type=Path, metavar="DIR", help="CIFAR-10, binary or Python form")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep weights, metrics and curves")
    parser.add_argument("--limit", type=number(int), metavar="N", help="the first N samples only")
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> mnist.Job:
    data = mnist.first(cifar10(args.data), args.limit)
    Tensor.manual_seed(args.seed)
    model = small_residual(args.width)
    Tensor.realize(*nn.state.get_parameters(model))
    trainer = Trainer(model, data, args.batch, args.lr, args.epochs, args.seed)
    trainer.augment = not args.as_they_are
    return mnist.Job("Residual network on CIFAR-10", "cifar", data, model, trainer)


def main() -> None:
    mnist.run(arguments(), prepare)


if __name__ == "__main__":
    main()
