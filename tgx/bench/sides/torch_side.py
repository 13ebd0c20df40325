"""PyTorch, eager: no torch.compile, the plain optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tgx.bench.models import Array, Model, Parameters, trained
from tgx.bench.sides import EPOCH_BATCH, LEARNING_RATE


class Side:
    training = False

    # ---- operations ----
    relu = staticmethod(F.relu)
    relu6 = staticmethod(F.relu6)
    linear = staticmethod(F.linear)
    mean = staticmethod(torch.mean)
    reshape = staticmethod(torch.reshape)
    permute = staticmethod(torch.permute)

    def __init__(self) -> None:
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        torch.set_num_threads(cores or os.cpu_count() or 1)

    def gelu(self, x: Any) -> Any:
        return F.gelu(x, approximate="tanh")

    def conv(
        self, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Any:
        return F.conv2d(x, w, b, stride, padding, 1, groups)

    def max_pool(self, x: Any, size: int, stride: int = 0, padding: int = 0) -> Any:
        return F.max_pool2d(x, size, stride or size, padding)

    def batch_norm(self, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
        if self.training:
            return F.batch_norm(x, None, None, w, b, training=True)
        return F.batch_norm(x, mean, var, w, b)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return F.layer_norm(x, w.shape, w, b)

    def attention(self, q: Any, k: Any, v: Any, causal: bool) -> Any:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    # ---- what is timed ----

    def train(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], float]:
        self.training = True
        p, optimizer = self._learner(parameters)
        sets = [(torch.tensor(x), torch.tensor(y, dtype=torch.long)) for x, y in batches]

        def step(i: int) -> float:
            x, y = sets[i % len(sets)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model.apply(self, p, x), y)
            loss.backward()
            optimizer.step()
            return float(loss.item())

        return step

    def infer(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], Array]:
        self.training = False
        p = {name: torch.tensor(x) for name, x in parameters.items()}
        sets = [torch.tensor(x) for x, _ in batches]

        def step(i: int) -> Array:
            with torch.inference_mode():
                return np.asarray(model.apply(self, p, sets[i % len(sets)]).numpy())

        return step

    def matmul(
        self, a: Array, b: Array, form: str
    ) -> tuple[Callable[[int], None], Callable[[], Array]]:
        first, second = torch.tensor(a), torch.tensor(b)
        x = first.T if form[0] == "t" else first
        y = second.T if form[1] == "t" else second

        def step(_: int) -> None:
            x @ y

        return step, lambda: np.asarray((x @ y).numpy())

    def epoch(
        self, model: Model, parameters: Parameters, folder: Path
    ) -> Callable[[int], list[float]]:
        self.training = True
        p, optimizer = self._learner(parameters)

        def run(seed: int, limit: int = 0) -> list[float]:
            images = torch.from_numpy(np.load(folder / "images.npy"))
            labels = torch.from_numpy(np.load(folder / "labels.npy").astype(np.int64))
            steps = len(labels) // EPOCH_BATCH
            shuffled = np.random.default_rng(seed).permutation(steps * EPOCH_BATCH)
            order = torch.from_numpy(shuffled.reshape(steps, EPOCH_BATCH))
            losses = []
            for rows in order[: limit or steps]:
                optimizer.zero_grad()
                x = images[rows].flatten(1).float() / 255
                loss = F.cross_entropy(model.apply(self, p, x), labels[rows])
                loss.backward()
                optimizer.step()
                losses.append(float(loss.item()))
            return losses

        return run

    def memory(self) -> int:
        return 0  # PyTorch does not count what it holds on a CPU

    def name(self) -> str:
        return f"PyTorch {torch.__version__}"

    def _learner(self, parameters: Parameters) -> tuple[dict[str, Any], Any]:
        p = {name: torch.tensor(x) for name, x in parameters.items()}
        learned = [x.requires_grad_() for name, x in p.items() if trained(name)]
        return p, torch.optim.Adam(learned, lr=LEARNING_RATE)
