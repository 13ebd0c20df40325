"""JAX on the CPU: each step is one jitted function, its state donated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tgx.bench.models import Array, Model, Parameters, trained
from tgx.bench.sides import BETA1, BETA2, EPOCH_BATCH, EPSILON, LEARNING_RATE


def cross_entropy(scores: Any, labels: Any) -> Any:
    logs = jax.nn.log_softmax(scores)
    return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()


class Side:
    training = False

    # ---- operations ----
    relu = staticmethod(jax.nn.relu)
    relu6 = staticmethod(jax.nn.relu6)
    mean = staticmethod(jnp.mean)
    reshape = staticmethod(jnp.reshape)
    permute = staticmethod(jnp.transpose)

    def gelu(self, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x @ w.T + b

    def conv(
        self, x: Any, w: Any, b: Any, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Any:
        y = lax.conv_general_dilated(
            x, w, (stride, stride), [(padding, padding)] * 2, feature_group_count=groups
        )
        return y if b is None else y + b[:, None, None]

    def max_pool(self, x: Any, size: int, stride: int = 0, padding: int = 0) -> Any:
        step, edge = stride or size, (padding, padding)
        return lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, 1, size, size),
            (1, 1, step, step),
            ((0, 0),) * 2 + (edge,) * 2,
        )

    def batch_norm(self, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        scale = w * lax.rsqrt(var + 1e-5)
        return x * scale[:, None, None] + (b - mean * scale)[:, None, None]

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * lax.rsqrt(var + 1e-5) * w + b

    def attention(self, q: Any, k: Any, v: Any, causal: bool) -> Any:
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        return jax.nn.softmax(scores) @ v

    # ---- what is timed ----

    def _update(self, model: Model, state: Any, x: Any, y: Any) -> Any:
        """One step of Adam. The state is (parameters, fixed statistics, m, v, number of steps)."""
        learned, fixed, m, v, count = state

        def loss_of(p: Any) -> Any:
            return cross_entropy(model.apply(self, p | fixed, x), y)

        loss, gradients = jax.value_and_grad(loss_of)(learned)
        count = count + 1
        m = jax.tree.map(lambda a, g: BETA1 * a + (1 - BETA1) * g, m, gradients)
        v = jax.tree.map(lambda a, g: BETA2 * a + (1 - BETA2) * g * g, v, gradients)
        first, second = 1 - BETA1**count, 1 - BETA2**count
        learned = jax.tree.map(
            lambda p, a, b: p - LEARNING_RATE * (a / first) / (jnp.sqrt(b / second) + EPSILON),
            learned,
            m,
            v,
        )
        return (learned, fixed, m, v, count), loss

    def _state(self, parameters: Parameters) -> Any:
        learned = {name: jnp.array(x) for name, x in parameters.items() if trained(name)}
        fixed = {name: jnp.array(x) for name, x in parameters.items() if not trained(name)}
        m = jax.tree.map(jnp.zeros_like, learned)
        v = jax.tree.map(jnp.zeros_like, learned)
        return learned, fixed, m, v, jnp.zeros((), jnp.float32)

    def train(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], float]:
        self.training = True
        sets = [(jnp.array(x), jnp.array(y)) for x, y in batches]
        update = jax.jit(partial(self._update, model), donate_argnums=0)
        state = self._state(parameters)

        def step(i: int) -> float:
            nonlocal state
            state, loss = update(state, *sets[i % len(sets)])
            return float(loss)

        return step

    def infer(self, model: Model, parameters: Parameters, batches: Any) -> Callable[[int], Array]:
        self.training = False
        p = {name: jnp.array(x) for name, x in parameters.items()}
        sets = [jnp.array(x) for x, _ in batches]
        apply = jax.jit(partial(model.apply, self))
        return lambda i: np.asarray(apply(p, sets[i % len(sets)]))

    def matmul(
        self, a: Array, b: Array, form: str
    ) -> tuple[Callable[[int], None], Callable[[], Array]]:
        first, second = jnp.array(a), jnp.array(b)

        @jax.jit
        def multiply(x: Any, y: Any) -> Any:
            return (x.T if form[0] == "t" else x) @ (y.T if form[1] == "t" else y)

        def step(_: int) -> None:
            multiply(first, second).block_until_ready()

        return step, lambda: np.asarray(multiply(first, second))

    def epoch(
        self, model: Model, parameters: Parameters, folder: Path
    ) -> Callable[[int], list[float]]:
        self.training = True
        state = self._state(parameters)

        @partial(jax.jit, donate_argnums=0)
        def update(state: Any, images: Any, labels: Any, order: Any, i: Any) -> Any:
            rows = order[i]
            x = images[rows].reshape(EPOCH_BATCH, -1).astype(jnp.float32) / 255
            return self._update(model, state, x, labels[rows])

        def run(seed: int, limit: int = 0) -> list[float]:
            nonlocal state
            images = jnp.array(np.load(folder / "images.npy"))
            labels = jnp.array(np.load(folder / "labels.npy").astype(np.int32))
            steps = len(labels) // EPOCH_BATCH
            shuffled = np.random.default_rng(seed).permutation(steps * EPOCH_BATCH)
            order = jnp.array(shuffled.reshape(steps, EPOCH_BATCH).astype(np.int32))
            losses = []
            for i in range(limit or steps):
                state, loss = update(state, images, labels, order, i)
                losses.append(float(loss))
            return losses

        return run

    def memory(self) -> int:
        return sum(x.nbytes for x in jax.live_arrays())

    def name(self) -> str:
        return f"JAX {jax.__version__}"
