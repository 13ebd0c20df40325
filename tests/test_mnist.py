"""The main job, examples/mnist.py: its data, its files, its numbers, and what can go wrong."""

import ast
import errno
import gzip
import io
import json
import lzma
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import guide_data  # noqa: E402  found through the line above, as beside the examples
import guide_report  # noqa: E402

DEVICE = os.environ.get("DEV") or "TGX"
TRAIN, TEST = 320, 120  # samples of the small data set that most tests train on


@pytest.fixture(scope="module")
def digits() -> guide_data.Images:
    return guide_data.mnist()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory, digits) -> Path:
    """A few of MNIST's samples as idx files: one plain, one gz, two xz."""
    folder = tmp_path_factory.mktemp("small")
    for name, array, suffix, pack in [
            ("train-images-idx3-ubyte", digits.train_images[:TRAIN], ".gz", gzip.compress),
            ("train-labels-idx1-ubyte", digits.train_labels[:TRAIN], "", bytes),
            ("t10k-images-idx3-ubyte", digits.test_images[:TEST], ".xz", lzma.compress),
            ("t10k-labels-idx1-ubyte", digits.test_labels[:TEST], ".xz", lzma.compress)]:
        (folder / (name + suffix)).write_bytes(pack(idx(array)))
    return folder


# ***************************** data *****************************

@pytest.mark.pure
def test_the_embedded_data_is_all_of_mnist(digits) -> None:
    assert digits.train_images.shape == (60000, 28, 28)
    assert digits.test_images.shape == (10000, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(digits.train_labels).tolist() == counts
    assert np.bincount(digits.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert digits.train_images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.pure
def test_a_changed_byte_in_the_embedded_data_is_noticed(small, monkeypatch, tmp_path) -> None:
    (tmp_path / "mnist").symlink_to(small)  # well-formed idx files, but not MNIST's
    monkeypatch.setattr(guide_data, "HERE", tmp_path)
    with pytest.raises(guide_data.DataError, match=r"SHA-256.*\n.*git checkout"):
        guide_data.mnist()


@pytest.mark.pure
def test_own_data_is_read_plain_gz_and_xz(small, digits) -> None:
    own = guide_data.mnist(small)
    assert np.array_equal(own.train_images, digits.train_images[:TRAIN])
    assert np.array_equal(own.train_labels, digits.train_labels[:TRAIN])
    assert np.array_equal(own.test_images, digits.test_images[:TEST])
    assert np.array_equal(own.test_labels, digits.test_labels[:TEST])


IMAGES = np.random.default_rng(3).integers(0, 256, (5, 28, 28), dtype=np.uint8)
GOOD = idx(IMAGES)
MIDDLE = len(GOOD) // 2
BAD_FILES = {
    "empty": (b"", "found an empty file, expected 00 00 08 03"),
    "not idx": (b"hello, world" * 400, "found 68 65 6c 6c, expected 00 00 08 03"),
    "labels": (idx(np.zeros(5, np.uint8)), "found 00 00 08 01.*\n.*swapped"),
    "header cut off": (GOOD[:10], "truncated: 10 bytes, its header alone takes 16"),
    "no samples": (idx(IMAGES[:0]), "holds 0 x 28 x 28.*at least one"),
    "wrong size": (idx(IMAGES[:, :27]), "holds 5 x 27 x 28; expected samples x 28 x 28"),
    "truncated": (GOOD[:-1], "3,935 bytes unpacked, but its header promises 3,936"),
    "too long": (GOOD + b"!", "3,937 bytes unpacked, but its header promises 3,936"),
    "huge promise": (GOOD[:4] + b"\xff" * 4 + GOOD[8:], "header promises 3,367,254,359,"),
    "gz truncated": (gzip.compress(GOOD)[:-9], "truncated: it ends in the middle"),
    "gz corrupt": (gzip.compress(GOOD, 0)[:MIDDLE] + b"\0" + gzip.compress(GOOD, 0)[MIDDLE + 1:],
                   "damaged and cannot be unpacked"),
    "gz of nothing": (gzip.compress(b""), "found an empty file"),
    "xz truncated": (lzma.compress(GOOD)[:-20], "truncated: it ends in the middle"),
    "xz corrupt": (lzma.compress(GOOD)[:60] + b"\xaa\x55\xaa" + lzma.compress(GOOD)[63:],
                   "damaged and cannot be unpacked"),
}


@pytest.mark.pure
@pytest.mark.parametrize("content, message", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_says_what_is_wrong(small, tmp_path, content: bytes, message: str) -> None:
    for path in small.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "train-images-idx3-ubyte"  # preferred to the .gz beside it
    bad.write_bytes(content)
    with pytest.raises(guide_data.DataError, match=message) as error:
        guide_data.mnist(tmp_path)
    assert str(bad) in str(error.value)


@pytest.mark.pure
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_unpacking_stops_at_the_limit(tmp_path, pack) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(pack(bytes(5_000_000)))
    assert len(guide_data.unpack(path, 5_000_001)) == 5_000_000
    with pytest.raises(guide_data.DataError, match=r"1,000,000.*expected"):
        guide_data.unpack(path, 1_000_000)


@pytest.mark.pure
def test_files_that_do_not_belong_together(small, tmp_path) -> None:
    with pytest.raises(guide_data.DataError, match="is not a folder"):
        guide_data.mnist(tmp_path / "nowhere")
    with pytest.raises(guide_data.DataError, match=r"no train-images.*\n.*\.gz, .*\.xz"):
        guide_data.mnist(tmp_path)
    for path in small.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(guide_data.DataError, match=f"train: {TRAIN} images but 7 labels"):
        guide_data.mnist(tmp_path)
    labels.write_bytes(idx(np.full(TRAIN, 10, np.uint8)))
    with pytest.raises(guide_data.DataError, match="a label is 10; expected classes 0 to 9"):
        guide_data.mnist(tmp_path)


# ***************************** files and curves *****************************

@pytest.mark.pure
def test_a_full_disk_leaves_the_previous_files(tmp_path, monkeypatch) -> None:
    guide_report.save_files(tmp_path, {"a": b"old a", "b": b"old b"})
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        guide_report.save_files(tmp_path, {"a": b"new a", "b": b"new b"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a": b"old a", "b": b"old b"}


@pytest.mark.pure
def test_our_safetensors_are_read_by_the_safetensors_library() -> None:
    from safetensors.numpy import load
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3),
              "count": np.array(7, np.int64), "bytes": np.arange(3, dtype=np.uint8)}
    content = guide_report.safetensors_bytes(arrays)
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0
    back = load(content)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array)


@pytest.mark.pure
def test_json_has_no_nan() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5], "c": "x"}
    assert json.loads(guide_report.json_bytes(value)) == {"a": None, "b": [None, 1.5], "c": "x"}


POINTS = [{"step": 10 * i, "epoch": i / 4, "train_loss": 2.0 / i, "train_accuracy": 1 - 0.3 / i}
          | ({"test_loss": 1.9 / i, "test_accuracy": 1 - 0.4 / i} if i % 4 == 0 else {})
          for i in range(1, 13)]


@pytest.mark.pure
def test_the_curves_are_drawn_to_scale() -> None:
    root = ET.fromstring(guide_report.curves_svg("a < b", POINTS))
    svg = "{http://www.w3.org/2000/svg}"
    lines = {line.get("class"): line for line in root.iter(f"{svg}polyline")}
    assert [len(line.get("points").split()) for line in root.iter(f"{svg}polyline")] == [
        12, 12, 3, 12, 12, 3]  # loss: raw, smoothed, test; accuracy: the same
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter(f"{svg}circle")][1:]
    assert len(dots) == 6  # the legend's is left out
    xs, ys = zip(*dots[3:], strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # equal epochs
    # test accuracies 90, 95, 96.67 %: 5 points are three times 1.67 on a linear axis
    assert (ys[0] - ys[1]) / (ys[1] - ys[2]) == pytest.approx(3, rel=0.02)
    texts = [text.text for text in root.iter(f"{svg}text")]
    assert texts[0] == "a < b" and "96.67 %" in texts and "epoch" in texts
    assert lines["test"].get("points").split()[-1] == f"{xs[-1]:.1f},{ys[-1]:.1f}"


@pytest.mark.pure
@pytest.mark.parametrize("points", [
    [], POINTS[:1], POINTS[:2],
    [{"step": 1, "epoch": 0.5, "train_loss": float("nan"), "train_accuracy": 0.0,
      "test_loss": float("inf"), "test_accuracy": 0.098}],
    [{"step": i, "epoch": i, "train_loss": 0.0, "train_accuracy": 1.0,
      "test_loss": 1e-9, "test_accuracy": 1.0} for i in range(1, 4)]])
def test_any_run_can_be_drawn(points) -> None:
    drawing = guide_report.curves_svg("x", points)
    ET.fromstring(drawing)
    assert "nan" not in drawing and "inf" not in drawing


@pytest.mark.pure
def test_the_csv_holds_the_curves(tmp_path) -> None:
    path = tmp_path / "curves.csv"
    path.write_bytes(guide_report.csv_bytes(POINTS))
    back = guide_report.read_csv(path)
    assert guide_report.curves_svg("x", back) == guide_report.curves_svg("x", POINTS)


@pytest.mark.pure
def test_the_example_needs_only_tinygrad_numpy_and_rich() -> None:
    for path in (EXAMPLES / name for name in ("mnist.py", "guide_data.py", "guide_report.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                     else [node.module] if isinstance(node, ast.ImportFrom) else [])
            for name in names:
                assert name.split(".")[0] in {"tinygrad", "numpy", "rich", "guide_data",
                                              "guide_report", *sys.stdlib_module_names}, path


# ***************************** training *****************************

def main(*arguments: object) -> int:
    """examples/mnist.py in this process, where what was compiled stays compiled; its status."""
    import mnist
    from tinygrad import Context
    before = sys.argv
    sys.argv = ["mnist.py", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as end, Context(DEV=DEVICE):
            mnist.main()
    finally:
        sys.argv = before
    if isinstance(end.value.code, str):  # what Python itself would do with it
        print(end.value.code, file=sys.stderr)
        return 1
    return end.value.code


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """The weights in the npz file, which must be those in the safetensors file."""
    from safetensors.numpy import load_file
    with np.load(folder / "weights.npz") as archive:
        weights = dict(archive)
    other = load_file(folder / "weights.safetensors")
    assert weights.keys() == other.keys()
    assert all(np.array_equal(weights[name], other[name]) for name in weights)
    return weights


def softmax_scores(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in float64."""
    logits = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return loss.mean(), (logits.argmax(axis=1) == labels).mean()


def dense(w: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T.astype(float) + w[f"{name}.bias"]


def numpy_mlp(w: dict, images: np.ndarray) -> np.ndarray:
    x = images.reshape(len(images), 784) / 255
    for name in ("layer1", "layer2"):
        x = np.maximum(dense(w, name, x), 0)
    return dense(w, "layer3", x)


def numpy_cnn(w: dict, images: np.ndarray) -> np.ndarray:
    x = images[:, None] / 255
    for i in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
        x = np.einsum("nchwij,ocij->nohw", windows, w[f"conv{i}.weight"].astype(float),
                      optimize=True) + w[f"conv{i}.bias"][:, None, None]
        if f"norm{i}.weight" in w:
            n = {part: w[f"norm{i}.{part}"][:, None, None].astype(float)
                 for part in ("weight", "bias", "running_mean", "running_var")}
            x = (x - n["running_mean"]) / np.sqrt(n["running_var"] + 1e-5) * n["weight"] + n["bias"]
        x = np.maximum(x, 0)
        x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))
    return dense(w, "fc2", np.maximum(dense(w, "fc1", x.reshape(len(x), 3136)), 0))


def check_run(out: Path, digits, network, parameters: int, epochs: int, floor: float) -> dict:
    """Every file is there, complete, and agrees with the others and with NumPy."""
    assert {path.name for path in out.iterdir()} == {
        "weights.npz", "weights.safetensors", "metrics.json", "curves.csv", "curves.svg"}
    metrics = json.loads((out / "metrics.json").read_text())
    weights = weights_of(out)
    loss, accuracy = softmax_scores(network(weights, digits.test_images[:TEST]),
                                    digits.test_labels[:TEST])
    assert metrics["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["test_accuracy"] > floor
    assert metrics["parameters"] == parameters
    assert metrics["epochs"] == epochs and metrics["steps"] == epochs * 5
    assert metrics["device"] == DEVICE.split(":")[0] and metrics["finished"]
    assert 0 < sum(metrics["epoch_seconds"]) <= metrics["seconds"]
    points = guide_report.read_csv(out / "curves.csv")
    assert points[-1]["test_accuracy"] == pytest.approx(metrics["test_accuracy"], rel=1e-5)
    assert points[-1]["step"] == metrics["steps"] and points[-1]["epoch"] == epochs
    assert sum(point["test_loss"] is not None for point in points) == epochs
    ET.parse(out / "curves.svg")
    return metrics


@pytest.fixture(scope="module")
def mlp_run(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mlp") / "not" / "there yet"
    assert main("--data", small, "--epochs", 6, "--out", out) == 0
    return out


def test_the_mlp_learns_and_leaves_everything(mlp_run, digits) -> None:
    metrics = check_run(mlp_run, digits, numpy_mlp, 235_146, 6, floor=0.6)
    assert metrics["batch"] == 64 and metrics["train_samples"] == TRAIN
    assert metrics["train_loss"] < 1.5  # from ln 10 = 2.30


def test_the_same_seed_gives_the_same_weights(mlp_run, small, tmp_path) -> None:
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        assert main("--data", small, "--epochs", 6, "--seed", seed, "--out", out) == 0
        ours, theirs = weights_of(out), weights_of(mlp_run)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours) is same


def test_an_epoch_is_every_sample_once_in_a_new_order() -> None:
    import mnist
    rng = np.random.default_rng(0)
    first, second = (mnist.shuffled(rng, 100, 64) for _ in range(2))
    assert first.shape == (2, 64)
    assert sorted(first.ravel()[:100]) == list(range(100))
    assert first.ravel()[100:].tolist() == first.ravel()[:28].tolist()
    assert first.tolist() != second.tolist()
    assert sorted(mnist.shuffled(rng, 128, 64).ravel()) == list(range(128))


def test_limit_takes_the_first_samples_and_a_last_ragged_batch(mlp_run, small, tmp_path) -> None:
    assert main("--data", small, "--epochs", 1, "--limit", 100, "--out", tmp_path) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train_samples"] == 100 and metrics["steps"] == 2
    assert metrics["test_samples"] == TEST


def test_the_cnn_learns_and_leaves_everything(small, digits, tmp_path) -> None:
    assert main("--model", "cnn", "--data", small, "--epochs", 4, "--out", tmp_path) == 0
    check_run(tmp_path, digits, numpy_cnn, 421_642, 4, floor=0.5)


@pytest.mark.slow
def test_the_cnn_with_batch_normalisation(small, digits, tmp_path) -> None:
    assert main("--model", "cnn", "--batchnorm", "--data", small, "--epochs", 12,
                "--out", tmp_path) == 0
    check_run(tmp_path, digits, numpy_cnn, 421_834, 12, floor=0.5)
    assert weights_of(tmp_path)["norm1.num_batches_tracked"] == 60


def test_a_disk_that_fills_up_does_not_lose_the_training(
        mlp_run, small, tmp_path, monkeypatch, capsys) -> None:
    spare, out = tmp_path / "spare", tmp_path / "out"
    spare.mkdir()
    save_files = guide_report.save_files

    def full(folder: Path, contents) -> None:
        if folder == out:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_files(folder, contents)

    monkeypatch.setattr(guide_report, "save_files", full)
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    assert main("--data", small, "--epochs", 2, "--out", out) == 1
    printed = capsys.readouterr()
    assert printed.out.count("No space left on device") == 2  # it went on after the first epoch
    saved = next(spare.iterdir())
    assert str(saved) in printed.err
    assert weights_of(saved).keys() == weights_of(mlp_run).keys()


def test_an_out_that_cannot_be_written_is_refused_before_training(small, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main("--data", small, "--out", tmp_path / "file" / "out") == 1
    assert "cannot write to" in (printed := capsys.readouterr()).err
    assert "epoch" not in printed.out


@pytest.mark.parametrize("arguments, message", [
    (["--lr", "0"], "--lr: 0 is not a number above 0"),
    (["--lr", "inf"], "--lr: inf is not a number above 0"),
    (["--epochs", "-1"], "--epochs: -1 is not a number above 0"),
    (["--batch", "many"], "--batch: invalid int value: 'many'"),
    (["--seed", "-1"], "--seed: -1 is not a number above -1"),
    (["--model", "rnn"], "--model: invalid choice: 'rnn'"),
    (["--batchnorm"], "--batchnorm needs --model cnn")])
def test_wrong_arguments(arguments, message: str, capsys) -> None:
    assert main(*arguments) == 2
    assert message in capsys.readouterr().err


def test_bad_data_ends_with_one_sentence(tmp_path, capsys) -> None:
    assert main("--data", tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: no train-images-idx3-ubyte in ")


def test_ctrl_c_leaves_the_weights_so_far(small, tmp_path) -> None:
    """In a process of its own, with no compiler on PATH and without --out."""
    empty = tmp_path / "empty"
    empty.mkdir()
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "mnist.py", "--data", small, "--epochs", "1000000"],
        cwd=tmp_path, env={**os.environ, "DEV": DEVICE} | (
            {"PATH": str(empty)} if DEVICE.startswith("TGX") else {}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("epoch 1 ")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "stopping after this step" in errors and "Traceback" not in errors
    assert "mnist-mlp-interrupted" in output
    metrics = json.loads((tmp_path / "mnist-mlp-interrupted" / "metrics.json").read_text())
    weights = weights_of(tmp_path / "mnist-mlp-interrupted")
    assert not metrics["finished"] and metrics["steps"] >= 5
    own = guide_data.mnist(small)
    _, accuracy = softmax_scores(numpy_mlp(weights, own.test_images), own.test_labels)
    assert metrics["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_tgx_models_are_steps_with_inputs() -> None:
    import mnist
    from tinygrad import Context
    with Context(DEV=DEVICE):
        models = mnist.tgx_models()
        assert models.keys() == {"mlp", "cnn", "mlp-train", "cnn-train"}
        for name, (step, make_inputs) in models.items():
            result = step(*make_inputs(4))
            if name.endswith("-train"):
                assert result[0].shape == () and len(result) > 3 * len(make_inputs(4))
            else:
                assert result.shape == (4, 10)
        step, make_inputs = models["mlp"]
        assert np.isfinite(step(*make_inputs(4)).numpy()).all()


# ***************************** the figures the README states *****************************

@pytest.mark.slow
@pytest.mark.parametrize("model, floor", [("mlp", 0.97), ("cnn", 0.99)])
def test_the_defaults_reach_the_promised_accuracy(model: str, floor: float, tmp_path) -> None:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, EXAMPLES / "mnist.py", "--model", model, "--out",
                           tmp_path], env={**os.environ, "DEV": DEVICE}, timeout=3000,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test_accuracy"] > floor
    assert metrics["train_samples"] == 60_000 and metrics["test_samples"] == 10_000
    assert metrics["seconds"] < time.perf_counter() - began
    assert io.StringIO(done.stdout).readline().startswith("epoch 1 ")
