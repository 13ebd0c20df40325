"""The hand-written kernels: every version against NumPy, between guard pages, and from tinygrad."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import child_environment
from guarded import LESSONS, SHAPES
from tinygrad import Context, Tensor, TinyJit, nn

from tgx.kernels import adam, conv, gemm, layernorm, lesson, softmax

ALL = {"gemm": gemm, "conv": conv, "softmax": softmax, "layernorm": layernorm, "adam": adam}
random = np.random.default_rng(3)


def some(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def on_tgx(x: np.ndarray) -> Tensor:
    return Tensor(x, device="TGX")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, list[dict]]:
    """What guarded.py found out, by lesson and version; a crash names the kernel that crashed."""
    done = subprocess.run(
        [sys.executable, str(root / "tests/guarded.py")],
        env=child_environment(tmp_path_factory.mktemp("guarded"), PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]} ended it: {done.returncode} {done.stderr[-500:]}"
    found: dict[str, list[dict]] = {}
    for line in lines:
        row = json.loads(line)
        if "error" in row:
            found.setdefault(f"{row['lesson']} {row['version']}", []).append(row)
    return found


@pytest.mark.parametrize(
    "name", [f"{name} {v.name}" for name in LESSONS for v in ALL[name].LESSON.versions]
)
def test_a_version_agrees_with_numpy_and_stays_in_its_buffers(
    name: str, results: dict[str, list[dict]]
) -> None:
    for row in results[name]:
        assert row["error"] < 3e-6, row
        assert row["same"], f"{row}: another order of the chunks gave other bits"


def test_the_last_version_is_tried_on_every_shape_and_width(
    results: dict[str, list[dict]],
) -> None:
    for name in LESSONS:
        rows = results[f"{name} {ALL[name].LESSON.best.name}"]
        assert {tuple(row["shape"]) for row in rows} == set(SHAPES[name])
        assert {row["width"] for row in rows} == {0, 16, 32}
        assert any(row["chunks"] > 1 for row in rows)


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_has_steps_and_says_why(name: str) -> None:
    found = ALL[name].LESSON
    assert len(found.versions) >= 4 and found.versions[0].name == "naive"
    assert all(len(version.why) > 20 for version in found.versions)
    with pytest.raises(KeyError, match="has no version 'faster'"):
        found.build(SHAPES[name][0], "faster")


# **************** from tinygrad ****************


def test_matmul_from_tinygrad_with_gradients() -> None:
    a, b = some(33, 50), some(50, 41)
    x, y = on_tgx(a), on_tgx(b)
    out = gemm.matmul(x, y)
    np.testing.assert_allclose(out.numpy(), a @ b, rtol=1e-4, atol=1e-5)
    (gemm.matmul(x, y) * 2).sum().backward()
    ones = np.full((33, 41), 2, np.float32)
    np.testing.assert_allclose(x.grad.numpy(), ones @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.grad.numpy(), a.T @ ones, rtol=1e-4, atol=1e-4)


def test_matmul_in_a_jit_between_other_kernels() -> None:
    @TinyJit
    def step(x: Tensor, y: Tensor) -> Tensor:
        return (gemm.matmul(x * 2, y).relu() + 1).realize()

    for _ in range(4):
        a, b = some(20, 30), some(30, 40)
        got = step(on_tgx(a).realize(), on_tgx(b).realize()).numpy()
        np.testing.assert_allclose(got, np.maximum(2 * a @ b, 0) + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", [v.name for v in conv.LESSON.versions])
def test_convolution_from_tinygrad(version: str) -> None:
    x, f = some(2, 3, 9, 9), some(10, 3, 3, 3)
    got = conv.conv3x3(on_tgx(x), on_tgx(f), version).numpy()
    np.testing.assert_allclose(got, conv.by_numpy(x, f), rtol=1e-4, atol=1e-4)


def test_softmax_from_tinygrad() -> None:
    x = 30 * some(4, 5, 23)
    got = softmax.softmax(on_tgx(x)).numpy()
    wanted = softmax.by_numpy(x.reshape(20, 23).astype(np.float64)).reshape(x.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_softmax_of_unusual_numbers() -> None:
    x = np.zeros((3, 20), np.float32)
    x[0, ::2] = -np.inf  # masked out, as attention does
    x[1] = -1000
    x[2, 5] = np.nan
    got = softmax.softmax(on_tgx(x)).numpy()
    np.testing.assert_allclose(got[0], np.tile([0, 0.1], 10), rtol=1e-6)
    np.testing.assert_allclose(got[1], 0.05, rtol=1e-6)
    assert np.isnan(got[2]).all()


def test_layernorm_from_tinygrad_far_from_zero() -> None:
    """One pass over a row of mean 1000: the shift keeps the digits."""
    x, w, b = 1000 + some(6, 100), some(100), some(100)
    got = layernorm.layernorm(on_tgx(x), on_tgx(w), on_tgx(b)).numpy()
    np.testing.assert_allclose(got, layernorm.by_numpy(x.astype(float), w, b), rtol=0, atol=2e-4)


@Context(TRAINING=1)
def test_adam_from_tinygrad_is_tinygrads_adam() -> None:
    start, gradients = some(300), [some(300) for _ in range(3)]
    theirs = on_tgx(start).realize()
    theirs.is_param_()
    optimizer = nn.optim.Adam([theirs], lr=0.01)
    ours, m, v = (on_tgx(x).realize() for x in (start, 0 * start, 0 * start))
    for number, gradient in enumerate(gradients, 1):
        theirs.grad = on_tgx(gradient)
        optimizer.step()
        ours, m, v = adam.step(ours, m, v, on_tgx(gradient), 0.01, number)
        Tensor.realize(ours, m, v)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(ours.numpy() - start).max() > 0.01


def test_a_tensor_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use .to\('TGX'\)"):
        gemm.matmul(on_tgx(some(4, 4)).cast("float64"), on_tgx(some(4, 4)))
    with pytest.raises(ValueError, match="not"):
        gemm.matmul(on_tgx(some(4, 4)), on_tgx(some(5, 4)))


def test_the_kernel_records_that_it_is_handmade(capsys: pytest.CaptureFixture[str]) -> None:
    with Context(DEBUG=4):
        softmax.softmax(on_tgx(some(3, 19))).realize()
    assert '"path": "hand", "tile": "softmax: threaded"' in capsys.readouterr().out


# **************** the benchmark ****************


def test_the_benchmark_prints_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    small = replace(layernorm.LESSON, shapes=((8, 64),))
    lesson.main(small, seconds=0.01)
    printed = capsys.readouterr().out
    assert "layernorm 8 × 64: GB/s" in printed
    for name in [*(f"{v.name}: {v.why}" for v in small.versions), "NumPy", "generated"]:
        assert name in printed
    rates = [float(line.split()[0]) for line in printed.splitlines()[2:]]
    assert len(rates) == len(small.versions) + 2 and min(rates) > 0
