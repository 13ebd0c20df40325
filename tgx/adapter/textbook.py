"""The gradients that textbooks give for whole operations, held against what was built.

A row of `TEXTBOOK` recognises an operation by computing it: which input is X and which is W is
found out by trying, and if none of the ways gives the result, nothing is claimed. Then the textbook
form is computed from X, W and dZ in float64 and compared with the sum of the walk's contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from tgx.adapter.values import whole

MOST = 1 << 24  # elements of an operation's largest tensor


@dataclass(frozen=True)
class Form:
    """One input's textbook gradient: its name, the formula, and how far off it is, relative to its
    largest element."""

    role: str
    formula: str
    error: float


@dataclass(frozen=True)
class Recipe:
    """(role, formula, gradient) of each input, given a result dZ, in the order of the inputs."""

    rows: tuple[tuple[str, str, Any], ...]


Inputs = Sequence[Any]
Try = Callable[[Inputs, Any, Any], Iterator[Recipe]]  # (inputs, result Z, dZ)


def match(op: str, out: Any, upstream: Any,
          flows: Sequence[tuple[int, Any, Any, float]]) -> dict[int, Form]:
    """By input node, its textbook form; ``flows`` are (node, value, gradient, size of the terms it
    sums)."""
    attempt = TEXTBOOK.get(op, _none)
    known = [f for f in flows if f[1] is not None and f[2] is not None]
    arrays = [out, upstream, *(f[1] for f in known), *(f[2] for f in known)]
    if not known or len(known) > 3 or any(
        a is None or isinstance(a, (list, tuple)) or a.size > MOST for a in arrays
    ):
        return {}
    z, dz = (np.asarray(whole(a), np.float64) for a in (out, upstream))
    if dz.shape != z.shape:
        dz = np.broadcast_to(dz, z.shape)
    with np.errstate(all="ignore"):
        if op in LOSSES:
            form = None
            if len(known) == 1:
                inputs = [np.asarray(whole(known[0][i]), np.float64) for i in (1, 2)]
                form = _cross_entropy(inputs[0], z, dz, inputs[1])
            return {known[0][0]: form} if form is not None else {}
        for order in permutations(known):
            inputs = [np.asarray(whole(f[1]), np.float64) for f in order]
            for recipe in attempt(inputs, z, dz):
                return {
                    f[0]: Form(role, formula, _error(gradient, np.asarray(whole(f[2])), f[3]))
                    for f, (role, formula, gradient) in zip(order, recipe.rows, strict=False)
                }
    return {}


LOSSES = ("cross_entropy", "sparse_categorical_crossentropy")


def _none(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    yield from ()


def _error(made: Any, given: Any, terms: float = 0.0) -> float:
    made = np.asarray(made, np.float64)
    if made.size != given.size:
        return -1.0
    made = made.reshape(given.shape)
    both = np.isfinite(made) & np.isfinite(given)
    if not both.any():
        return -1.0
    scale = max(float(np.abs(made[both]).max()), float(np.abs(given[both]).max()), terms,
                1e-30)
    return float(np.abs(made - given)[both].max() / scale)


def _near(a: Any, b: Any) -> bool:
    if a.shape != b.shape:
        return False
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    scale = float(np.abs(b).max(initial=1e-30))
    return bool(np.abs(a - b).max(initial=0.0) <= 1e-3 * scale)


# **** the operations ****


def _matmul(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    """Z = X·W, or X·Wᵀ where W is stored the other way round, with or without a bias."""
    if len(x) not in (2, 3) or x[0].ndim < 1 or x[1].ndim < 1:
        return
    a, w, *rest = x
    b = rest[0] if rest else None
    for turned in (False, True):
        m = np.swapaxes(w, -1, -2) if turned and w.ndim > 1 else w
        if a.shape[-1] != m.shape[-2 if m.ndim > 1 else 0]:
            continue
        try:
            made = a @ m + (b if b is not None else 0.0)
        except ValueError:
            continue
        if made.size != z.size or not _near(made.reshape(z.shape), z):
            continue
        d = dz.reshape(made.shape)
        a2, d2 = a.reshape(-1, a.shape[-1]), d.reshape(-1, *d.shape[a.ndim - 1:])
        if m.ndim == 2 and a.ndim >= 2:
            dw = a2.T @ d.reshape(-1, d.shape[-1])
        elif m.ndim == 2:
            dw = np.outer(a, d)
        elif m.ndim == 1:
            dw = a2.T @ d2.reshape(len(a2), -1)[:, 0] if a.ndim > 1 else a * d
        else:
            dw = _to(np.swapaxes(a, -1, -2) @ d, m.shape)
        da = d @ m.T if m.ndim == 2 else (np.multiply.outer(d, m) if m.ndim == 1 else
                                          _to(d @ np.swapaxes(m, -1, -2), a.shape))
        if turned and w.ndim > 1:
            dw = np.swapaxes(dw, -1, -2)
        rows = [
            ("X", "dX = dZ·W" if turned else "dX = dZ·Wᵀ", da),
            ("W", "dW = dZᵀ·X" if turned else "dW = Xᵀ·dZ", dw),
        ]
        if b is not None:
            rows.append(("b", "db = Σ dZ over the batch", _to(d, b.shape)))
        yield Recipe(tuple(rows))
        return


def _to(array: Any, shape: tuple[int, ...]) -> Any:
    """Summed over the axes along which ``shape`` was broadcast."""
    extra = array.ndim - len(shape)
    array = array.sum(axis=tuple(range(extra))) if extra > 0 else array
    axes = tuple(i for i, n in enumerate(shape) if n == 1 < array.shape[i])
    return array.sum(axis=axes, keepdims=True) if axes else array


def _conv2d(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    """Z = conv2d(X, W) + b, its stride and padding found out."""
    if len(x) not in (2, 3) or x[0].ndim != 4 or x[1].ndim != 4 or z.ndim != 4:
        return
    a, w = x[0], x[1]
    b = x[2] if len(x) == 3 else None
    if b is not None and b.size != w.shape[0]:
        return
    if a.shape[1] != w.shape[1] or z.shape[:2] != (a.shape[0], w.shape[0]):
        return
    kh, kw = w.shape[2:]
    for stride in (1, 2, 3, 4):
        for pad in range(max(kh, kw)):
            size = tuple((n + 2 * pad - k) // stride + 1
                         for n, k in zip(a.shape[2:], (kh, kw), strict=True))
            if size != z.shape[2:]:
                continue
            padded = np.pad(a, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(2, 3))
            windows = windows[:, :, ::stride, ::stride][:, :, : size[0], : size[1]]
            made = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
            if b is not None:
                made = made + b.reshape(1, -1, 1, 1)
            if not _near(made, z):
                continue
            dw = np.einsum("nchwij,nohw->ocij", windows, dz, optimize=True)
            dx = np.zeros_like(padded)
            for i in range(kh):
                for j in range(kw):
                    dx[:, :, i : i + stride * size[0] : stride, j : j + stride * size[1] : stride] \
                        += np.einsum("nohw,oc->nchw", dz, w[:, :, i, j], optimize=True)
            dx = dx[:, :, pad : pad + a.shape[2], pad : pad + a.shape[3]]
            rows = [
                ("X", "dX = dZ ∗ W (full convolution)", dx),
                ("W", "dW = X ⋆ dZ (correlation)", dw),
            ]
            if b is not None:
                rows.append(("b", "db = Σ dZ over images, places", dz.sum(axis=(0, 2, 3))))
            yield Recipe(tuple(rows))
            return


def _pointwise(function: Callable[[Any], Any], derivative: Callable[[Any, Any], Any],
               text: str) -> Try:
    def attempt(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
        if len(x) == 1 and x[0].size == z.size and _near(function(x[0]).reshape(z.shape), z):
            slope = derivative(x[0], function(x[0])).reshape(z.shape)
            yield Recipe((("X", text, np.where(dz == 0, 0.0, dz * slope)),))

    return attempt


def _pair(function: Callable[[Any, Any], Any], slopes: Callable[[Any, Any], tuple[Any, Any]],
          texts: tuple[str, str]) -> Try:
    def attempt(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
        if len(x) != 2:
            return
        try:
            made = function(x[0], x[1])
        except ValueError:
            return
        if made.size == z.size and _near(made.reshape(z.shape), z):
            d = dz.reshape(made.shape)
            left, right = slopes(x[0], x[1])
            yield Recipe((("A", texts[0], _to(d * left, x[0].shape)),
                          ("B", texts[1], _to(d * right, x[1].shape))))

    return attempt


def _either(*tries: Try) -> Try:
    def attempt(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
        for one in tries:
            yield from one(x, z, dz)

    return attempt


def _softmax(a: Any) -> Any:
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _softmaxed(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    if len(x) == 1 and x[0].shape == z.shape and z.ndim:
        p = _softmax(x[0])
        if _near(p, z):
            yield Recipe((("X", "dX = P⊙(dZ − Σ dZ⊙P)",
                           p * (dz - (dz * p).sum(axis=-1, keepdims=True))),))


def _log_softmaxed(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    if len(x) == 1 and x[0].shape == z.shape and z.ndim:
        p = _softmax(x[0])
        if _near(np.log(p), z):
            yield Recipe((("X", "dX = dZ − softmax(X)·Σ dZ",
                           dz - p * dz.sum(axis=-1, keepdims=True)),))


def _cross_entropy(x: Any, z: Any, dz: Any, given: Any) -> Form | None:
    """dX = (softmax(X) − Y)/N. The labels are no inputs with a gradient: they are read off the
    gradient, and have to be one class a row, and to give the loss."""
    if x.ndim != 2 or z.size != 1:
        return None
    p, count = _softmax(x), len(x)
    g = float(dz.reshape(-1)[0])
    labels = (p - given.reshape(x.shape) * count / g).argmax(axis=1) if g else np.zeros(count, int)
    y = np.zeros_like(p)
    y[np.arange(count), labels] = 1.0
    if not _near(-np.log(p[np.arange(count), labels]).mean().reshape(z.shape), z):
        return None
    return Form("X", "dX = (softmax(X) − Y)/N", _error(g * (p - y) / count, given))


def _summing(mean: bool) -> Try:
    def attempt(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
        if len(x) != 1 or not z.size or x[0].size % z.size:
            return
        a = x[0]
        for axes in _axes(a.shape, z.size):
            made = a.mean(axis=axes, keepdims=True) if mean else a.sum(axis=axes, keepdims=True)
            if made.size == z.size and _near(made.reshape(z.shape), z):
                share = z.size / a.size if mean else 1.0
                d = np.broadcast_to(dz.reshape(made.shape) * share, a.shape)
                text = "dX = dZ/n, for each of the n averaged" if mean else "dX = dZ, for each"
                yield Recipe((("X", text, d),))
                return

    return attempt


def _axes(shape: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    """Sets of axes without which ``size`` elements are left."""
    for bits in range(1 << len(shape)):
        axes = tuple(i for i in range(len(shape)) if bits >> i & 1)
        left = 1
        for i, n in enumerate(shape):
            left *= 1 if i in axes else n
        if left == size:
            yield axes


def _max_pool(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    """Windows that touch but do not overlap: the gradient goes to the largest of each."""
    if len(x) != 1 or x[0].ndim != 4 or z.ndim != 4 or x[0].shape[:2] != z.shape[:2]:
        return
    a = x[0]
    k = tuple(n // m for n, m in zip(a.shape[2:], z.shape[2:], strict=True) if m)
    if len(k) != 2 or min(k) < 1:
        return
    inside = a[:, :, : z.shape[2] * k[0], : z.shape[3] * k[1]]
    windows = inside.reshape(*z.shape[:3], k[0], z.shape[3], k[1])
    largest = windows.max(axis=(3, 5), keepdims=True)
    if not _near(largest.reshape(z.shape), z):
        return
    hit = (windows == largest).astype(np.float64)
    d = hit / hit.sum(axis=(3, 5), keepdims=True) * dz.reshape(largest.shape)
    made = np.zeros_like(a)
    made[:, :, : inside.shape[2], : inside.shape[3]] = d.reshape(inside.shape)
    yield Recipe((("X", "dX = dZ at each window's largest", made),))


def _batchnorm(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    """Z = γ·(X − μ)/√(σ² + ε) + β over all axes but the second, ε = 10⁻⁵."""
    if len(x) != 3 or x[0].shape != z.shape or x[0].ndim < 2:
        return
    a, gamma, beta = x
    c = a.shape[1]
    if gamma.size != c or beta.size != c:
        return
    axes = tuple(i for i in range(a.ndim) if i != 1)
    full = tuple(c if i == 1 else 1 for i in range(a.ndim))
    n = a.size // c
    deviation = np.sqrt(a.var(axis=axes, keepdims=True) + 1e-5)
    hat = (a - a.mean(axis=axes, keepdims=True)) / deviation
    if not _near(hat * gamma.reshape(full) + beta.reshape(full), z):
        return
    dg, db = (dz * hat).sum(axis=axes), dz.sum(axis=axes)
    dx = gamma.reshape(full) / (n * deviation) * (
        n * dz - db.reshape(full) - hat * dg.reshape(full))
    yield Recipe((
        ("X", "dX = γ/(n·σ)·(n·dZ − Σ dZ − X̂·Σ dZ⊙X̂)", dx),
        ("γ", "dγ = Σ dZ⊙X̂", dg),
        ("β", "dβ = Σ dZ", db),
    ))


def _dropout(x: Inputs, z: Any, dz: Any) -> Iterator[Recipe]:
    """What was kept passes, scaled by 1/(1 − p), which is read from what was kept."""
    if len(x) != 1 or x[0].shape != z.shape:
        return
    kept = (z != 0) & (x[0] != 0)
    if not kept.any():
        return
    scale = float(np.median(z[kept] / x[0][kept]))
    if _near(np.where(kept, x[0] * scale, 0.0), z) and not (x[0] == 0).all():
        sure = kept | (x[0] != 0)
        yield Recipe((("X", f"dX = dZ·{scale:.4g} where kept, else 0",
                       np.where(sure, dz * kept * scale, np.nan)),))


def _sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


_matrices = _matmul
_relu = _pointwise(lambda a: np.maximum(a, 0), lambda a, z: (a > 0).astype(float),
                   "dX = dZ where X > 0, else 0")

TEXTBOOK: dict[str, Try] = {
    "matmul": _matrices, "dot": _matrices, "linear": _matrices,
    "conv2d": _conv2d, "batchnorm": _batchnorm, "max_pool2d": _max_pool, "dropout": _dropout,
    "softmax": _softmaxed, "log_softmax": _log_softmaxed,
    "sum": _summing(False), "mean": _summing(True),
    "relu": _relu,
    "sigmoid": _pointwise(_sigmoid, lambda a, z: z * (1 - z), "dX = dZ⊙Z⊙(1 − Z)"),
    "tanh": _pointwise(np.tanh, lambda a, z: 1 - z * z, "dX = dZ⊙(1 − Z²)"),
    "exp": _pointwise(np.exp, lambda a, z: z, "dX = dZ⊙Z"),
    "log": _pointwise(np.log, lambda a, z: 1 / a, "dX = dZ/X"),
    "sqrt": _pointwise(np.sqrt, lambda a, z: 0.5 / z, "dX = dZ/(2·Z)"),
    "square": _pointwise(np.square, lambda a, z: 2 * a, "dX = 2·X⊙dZ"),
    "neg": _pointwise(np.negative, lambda a, z: -np.ones_like(a), "dX = −dZ"),
    "add": _pair(np.add, lambda a, b: (np.ones(()), np.ones(())), ("dA = dZ", "dB = dZ")),
    "sub": _pair(np.subtract, lambda a, b: (np.ones(()), -np.ones(())), ("dA = dZ", "dB = −dZ")),
    "mul": _either(
        _pair(np.multiply, lambda a, b: (b, a), ("dA = dZ⊙B", "dB = dZ⊙A")),
        _pointwise(np.square, lambda a, z: 2 * a, "dX = 2·X⊙dZ"),
    ),
    "div": _pair(np.divide, lambda a, b: (1 / b, -a / b**2), ("dA = dZ/B", "dB = −dZ⊙A/B²")),
}  # fmt: skip
