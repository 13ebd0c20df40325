"""tinygrad, on whichever device DEV names: TGX's side, and stock's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Context, Device, Tensor, TinyJit, Variable, dtypes, nn
from tinygrad.helpers import GlobalCounters

from tgx.bench.models import Array, Model, Parameters, trained
from tgx.bench.sides import EPOCH_BATCH, LEARNING_RATE


class Side:
    training = False

    # ---- operations ----
    relu = staticmethod(Tensor.relu)
    relu6 = staticmethod(Tensor.relu6)
    gelu = staticmethod(Tensor.gelu)  # the tanh form
    mean = staticmethod(Tensor.mean)
    reshape = staticmethod(Tensor.reshape)
    permute = staticmethod(Tensor.permute)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x.linear(w.T, b)

    def conv(
        self, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Any:
        return x.conv2d(w, b, groups, stride, 1, padding)

    def max_pool(self, x: Any, size: int, stride: int = 0, padding: int = 0) -> Any:
        return x.max_pool2d((size, size), stride or size, padding=padding)

    def batch_norm(self, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
        if self.training:
            mean = x.mean(axis=(0, 2, 3))
            var = (x - mean.reshape(1, -1, 1, 1)).square().mean(axis=(0, 2, 3))
        return x.batchnorm(w, b, mean, (var + 1e-5).rsqrt())

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return x.layernorm() * w + b

    def attention(self, q: Any, k: Any, v: Any, causal: bool) -> Any:
        return q.scaled_dot_product_attention(k, v, is_causal=causal)

    # ---- what is timed ----

    def train(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], float]:
        self.training = True
        p, optimizer = self._learner(parameters)
        sets = [(Tensor(x).realize(), Tensor(y).realize()) for x, y in batches]

        @TinyJit
        @Context(TRAINING=1)
        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = model.apply(self, p, x).sparse_categorical_crossentropy(y).backward()
            return loss.realize(*optimizer.schedule_step())

        return lambda i: float(step(*sets[i % len(sets)]).item())

    def infer(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], Array]:
        self.training = False
        p = {name: Tensor(x).realize() for name, x in parameters.items()}
        sets = [Tensor(x).realize() for x, _ in batches]
        step = TinyJit(lambda x: model.apply(self, p, x).realize())
        return lambda i: np.asarray(step(sets[i % len(sets)]).numpy())

    def matmul(
        self, a: Array, b: Array, form: str
    ) -> tuple[Callable[[int], None], Callable[[], Array]]:
        first, second = Tensor(a).realize(), Tensor(b).realize()

        @TinyJit
        def multiply(x: Any, y: Any) -> Any:
            return ((x.T if form[0] == "t" else x) @ (y.T if form[1] == "t" else y)).realize()

        def step(_: int) -> None:
            multiply(first, second)
            Device[Device.DEFAULT].synchronize()

        return step, lambda: np.asarray(multiply(first, second).numpy())

    def epoch(
        self, model: Model, parameters: Parameters, folder: Path
    ) -> Callable[[int], list[float]]:
        self.training = True
        p, optimizer = self._learner(parameters)
        steps = len(np.load(folder / "labels.npy", mmap_mode="r")) // EPOCH_BATCH
        number = Variable("number", 0, steps - 1)

        @TinyJit
        @Context(TRAINING=1)
        def step(images: Any, labels: Any, at: Any) -> Any:
            optimizer.zero_grad()
            # contiguous: the batch is cut out and converted once, not in every kernel that reads it
            x = (images[at].flatten(1).cast(dtypes.float) / 255).contiguous()
            loss = model.apply(self, p, x).sparse_categorical_crossentropy(labels[at]).backward()
            return loss.realize(*optimizer.schedule_step())

        def run(seed: int, limit: int = steps) -> list[float]:
            # shuffled here: a step then takes a slice, where tinygrad would turn a gather into a
            # search through all indices
            order = np.random.default_rng(seed).permutation(steps * EPOCH_BATCH)
            order = order.reshape(steps, EPOCH_BATCH)
            images = Tensor(np.load(folder / "images.npy")[order]).realize()
            labels = Tensor(np.load(folder / "labels.npy").astype(np.int32)[order]).realize()
            return [float(step(images, labels, number.bind(i)).item()) for i in range(limit)]

        return run

    def memory(self) -> int:
        return int(GlobalCounters.mem_used)

    def name(self) -> str:
        from importlib.metadata import version

        return f"tinygrad {version('tinygrad')}, {Device.DEFAULT}"

    def _learner(self, parameters: Parameters) -> tuple[dict[str, Any], Any]:
        p = {name: Tensor(x).realize() for name, x in parameters.items()}
        learned = [x.is_param_() for name, x in p.items() if trained(name)]
        return p, nn.optim.Adam(learned, lr=LEARNING_RATE)
