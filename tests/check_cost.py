"""What checked mode costs: `python tests/check_cost.py` prints it for training steps.

The same jitted step on two devices of one process, TGX and a TGX that is checked, in turns: other
work on the machine meets both. The figures are minima over all turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import models
from tinygrad import Context, Device, Tensor, TinyJit, nn

from tgx import settings

CHECKED = "TGX:19"


def checked_device(kinds: str = "1", device: str = CHECKED) -> str:
    """A device that is checked, whatever TGX_CHECK says for the others."""
    with settings.set_to("TGX_CHECK", kinds):
        _ = Device[device].renderer
    return device


def stepper(net: models.Net, shape: tuple[int, ...], device: str) -> Callable[[], float]:
    """A jitted training step on a device."""
    Tensor.manual_seed(0)
    x = Tensor.rand(*shape).realize().to(device).realize()
    y = Tensor([i % 10 for i in range(shape[0])], device=device).realize()
    for p in nn.state.get_parameters(net):
        p.replace(p.to(device).realize())
    optimizer = models.adam(nn.state.get_parameters(net))

    @TinyJit
    def step(x: Tensor, y: Tensor) -> Tensor:
        with Context(TRAINING=1):
            optimizer.zero_grad()
            loss = net(x).sparse_categorical_crossentropy(y).backward()
            return loss.realize(*optimizer.schedule_step())

    return lambda: float(step(x, y).item())


def compare(name: str, batch: int, turns: int) -> tuple[float, float]:
    """The shortest step, in milliseconds: unchecked, checked."""
    shape = (batch, 1, 28, 28)
    make = {"mlp": models.MLP, "cnn": models.CNN}[name]
    steps = [stepper(make(), shape, d) for d in ("TGX", checked_device())]
    for step in steps:
        for _ in range(4):
            step()
    best = [float("inf")] * 2
    for _ in range(turns):
        for i, step in enumerate(steps):
            for _ in range(10):
                start = time.perf_counter()
                step()
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] * 1e3, best[1] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("models", nargs="*", default=["mlp", "cnn"])
    given = parser.parse_args()
    for name in given.models:
        plain, checked = compare(name, given.batch, given.turns)
        print(f"{name}, batch {given.batch}: {plain:.3f} ms unchecked, {checked:.3f} ms checked, "
              f"{checked / plain:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
