"""Project 6, examples/jetson.py: packed on the desktop, run in another environment that stands in
for the board."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_python

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import guide_quantize as q  # noqa: E402  found through the line above
import jetson  # noqa: E402
import mnist  # noqa: E402
from guide_data import DataError, Images  # noqa: E402
from guide_report import npz_bytes  # noqa: E402
from tinygrad import Tensor  # noqa: E402

TEST = 600


def train(name: str, data: Images, epochs: int = 1) -> q.Arrays:
    from guide_report import Stop

    Tensor.manual_seed(0)
    model = mnist.build(name)
    trainer = mnist.Trainer(model, data, 64, 3e-3, epochs, 0)
    with Stop() as stop:
        for _ in range(epochs):
            for _ in trainer.epoch(stop):
                pass
    return q.weights_of(model)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `jetson.py pack` makes it: an MLP that has seen a little, a small test set."""
    folder, data = tmp_path_factory.mktemp("jetson"), jetson.load_mnist()
    data = Images(data.train_images[:3200], data.train_labels[:3200],
                  data.test_images[:TEST], data.test_labels[:TEST])  # fmt: skip
    weights = folder / "weights.npz"
    weights.write_bytes(npz_bytes(train("mlp", data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jetson, "load_mnist", lambda: data)
        patch.setattr(sys, "argv", ["jetson.py", "pack", str(weights), "--out",
                                    str(folder / "board")])  # fmt: skip
        jetson.main()
    return folder / "board"


def test_on_the_board_the_answers_are_the_desktops(
    packed: Path, plugged: Path, tmp_path: Path
) -> None:
    """A fresh environment, no clang, nothing but the directory; TGX stands in for the GPU."""
    board = tmp_path / "copied"
    shutil.copytree(packed, board)
    done = run_python(plugged, tmp_path, "copied/jetson.py", "run", "--runs", "5", "--json",
                      "found.json", DEVICE="TGX")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["apart"], found["same_int8"], found["images"]) == (0, 1, TEST)
    accuracy, size = found["accuracy"], found["bytes"]
    assert accuracy["float32"] > 0.6 and abs(accuracy["float32"] - accuracy["float16"]) < 0.005
    assert 100 * (accuracy["float32"] - accuracy["int8"]) < jetson.LOSES
    assert size["int8"] / size["float32"] <= jetson.BYTES and size["float32"] == 4 * 235_146
    assert [row["numbers"] for row in found["latency"]][:3] == ["float32", "float16", "int8"]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in found["latency"])
    assert "int8" in done.stdout and "the same" in done.stdout
    names = {path.name for path in packed.iterdir()}
    assert names == {*jetson.CODE, "weights.npz", "int8.npz", "test.npz", "expected.npz",
                     "requirements.txt", "package.json"}  # fmt: skip


@pytest.mark.slow
def test_the_cnn_on_all_of_mnist(tmp_path: Path, plugged: Path) -> None:
    """What the project asks for, on the full test set: less than 0.5 points, at most 0.28."""
    weights = tmp_path / "weights.npz"
    data = jetson.load_mnist()
    weights.write_bytes(npz_bytes(train("cnn", mnist.first(data, 19_200))))
    jetson.pack(weights, tmp_path / "board")
    done = run_python(plugged, tmp_path, "board/jetson.py", "run", "--runs", "20", "--json",
                      "found.json", DEVICE="TGX")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 10_000 and found["apart"] == 0 and found["accuracy"]["int8"] > 0.97


def test_activations_are_rounded_once_and_move_as_bytes() -> None:
    """Without its `.contiguous()`, each output would round all inputs of its layer again, and what
    lies between two layers would be int32."""
    from tgx.adapter import offline

    rng = np.random.default_rng(0)
    model = mnist.build("mlp")
    image = Tensor(rng.random((2, 28, 28), dtype=np.float32)).realize()
    small = q.to_int8(model, image)
    launches = [[buffer.dtype.name for buffer in call.src[1:]]
                for call in offline.capture(small, (image,)).calls]  # fmt: skip
    assert launches == [
        ["signed char", "float"],  # the image, once
        *[[output, "signed char", "signed char", "int", "float"]
          for output in ("signed char", "signed char", "float")],
    ]  # fmt: skip


def test_what_the_board_is_to_install_can_be_installed() -> None:
    """No name in it that no index has: one such line and nothing at all is installed."""
    names = [line.split(">")[0] for line in jetson.REQUIREMENTS.splitlines() if line[0] != "#"]
    assert names == ["tinygrad", "numpy"]


def test_an_old_python_can_read_the_file_and_is_told_what_to_do() -> None:
    """JetPack 4 has 3.6, which must get as far as the message."""
    source = (EXAMPLES / "jetson.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    kinds = [type(node).__name__ for node in tree.body[:3]]
    assert kinds == ["Expr", "Import", "If"]  # the text, `import sys`, the check: before the rest
    old = source.replace("sys.version_info", "(3, 6, 9)")
    with pytest.raises(SystemExit, match=r"Python 3\.6, and tinygrad 0\.14 needs 3\.11"):
        exec(compile(old, "jetson.py", "exec"), {"__name__": "x", "__file__": "jetson.py"})


def test_jetpack_4_is_refused_with_the_reason_and_the_way_that_works(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano = tmp_path / "nv_tegra_release"
    nano.write_text("# R32 (release), REVISION: 7.6, GCID: 38171779, BOARD: t210ref\n")
    monkeypatch.setattr(jetson, "RELEASE", nano)

    class Default:
        DEFAULT = "CUDA"

        def __getitem__(self, name: str) -> None:
            raise RuntimeError("libcuda.so.1: no such file")

    monkeypatch.setattr(jetson, "Device", Default())
    with pytest.raises(DataError, match=r"CUDA ends at 10\.2") as error:
        jetson.check_board()
    assert "DEVICE=TGX python jetson.py run" in str(error.value)
    nano.write_text("# R36 (release), REVISION: 4.3")  # there it is tried
    with pytest.raises(DataError, match=r"cannot be used: libcuda"):
        jetson.check_board()
    monkeypatch.undo()
    monkeypatch.setattr(jetson, "RELEASE", nano)
    nano.write_text("# R32 (release), REVISION: 7.6")
    jetson.check_board()  # on the CPU it goes
    assert jetson.release() == "R32 (release), REVISION: 7.6"


def test_what_is_not_as_packed_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no package"):
        jetson.opened(tmp_path)
    board = tmp_path / "board"
    shutil.copytree(packed, board)
    (board / "weights.npz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"weights\.npz is not the file that was packed"):
        jetson.opened(board)
    (board / "package.json").write_text("[]")
    with pytest.raises(DataError, match="is no package"):
        jetson.opened(board)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"conv1.weight": np.zeros(3), "norm1.weight": np.zeros(3)}, "without --batchnorm"),
        ({"something": np.zeros(3)}, "this network's are"),
    ],
)
def test_weights_of_another_network_are_refused(
    arrays: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.npz").write_bytes(npz_bytes(arrays))
    with pytest.raises(DataError, match=said):
        jetson.pack(tmp_path / "weights.npz", tmp_path / "board")
    assert not (tmp_path / "board").exists()


GOOD = {"apart": 1e-6, "same_int8": 1.0, "accuracy": {"float32": 0.99, "int8": 0.988},
        "bytes": {"float32": 100, "int8": 26}}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"apart": 0.1}, "0.1 from the desktop's"),
        ({"apart": float("nan")}, "nan from the desktop's"),
        ({"same_int8": 0.9}, "only 90.00% of the INT8 answers"),
        ({"accuracy": {"float32": 0.99, "int8": 0.98}}, "INT8 loses 1.00 points"),
        ({"bytes": {"float32": 100, "int8": 30}}, "INT8 takes 0.300"),
    ],
)
def test_every_limit_is_checked(changes: dict[str, object], said: str) -> None:
    found = jetson.problems(GOOD | changes)
    assert len(found) == bool(said) and said in "".join(found)
