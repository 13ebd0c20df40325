"""The guide's lessons 8 and 11 to 14, and the networks and files they share.

tests/checklist.md says which test holds which numbered fact of the guide; puzzles (15) have
test_puzzles.py.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_lessons import ROOT, lesson

sys.path.append(str(ROOT / "examples"))
import guide_quantize  # noqa: F401  found through the line above, whatever ran before

# ---- 8: convolution ------------------------------------------------------------------------------

def test_the_guides_convolution_in_full():
    it = lesson(8)
    assert it.conv_loop(it.EXAMPLE[None], it.FILTER[None, None])[0].tolist() == [
        [14, 19, 24], [26, 31, 36], [14, 19, 24]]
    assert 1 + 3 + 6 + 1 + 3 == 14


@pytest.mark.parametrize("size, k, padding, stride", [
    (5, 3, 0, 1), (9, 3, 1, 1), (12, 5, 2, 2), (11, 4, 0, 3), (8, 1, 0, 2), (7, 7, 3, 2)])
def test_convolution_as_loops_as_a_product_as_conv2d(size, k, padding, stride):
    it, rng = lesson(8), np.random.default_rng(size)
    x, w = rng.normal(size=(3, size, size + 1)), rng.normal(size=(4, 3, k, k))
    loops = it.conv_loop(x, w, padding, stride)
    assert loops.shape == (4, it.out_size(size, k, padding, stride),
                           it.out_size(size + 1, k, padding, stride))
    np.testing.assert_allclose(it.conv_matmul(x, w, padding, stride), loops, atol=1e-12)
    np.testing.assert_allclose(it.conv_tinygrad(x, w, padding, stride), loops, atol=1e-4)
    assert it.im2col(x, k, padding, stride).shape == (loops[0].size, 3 * k * k)


def test_networks_do_not_turn_the_filter():
    it = lesson(8)
    lop = np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]])[None, None]
    image = it.EXAMPLE[None]
    turned = it.conv_loop(image, lop[:, :, ::-1, ::-1])
    here = it.conv_loop(image, lop)
    np.testing.assert_array_equal(it.conv_tinygrad(image, lop), here)
    assert (here != turned).any()
    for i, j in np.ndindex(3, 3):  # mathematics' convolution: the sum over f(a)·g(x - a)
        assert turned[0, i, j] == sum(image[0, i + 2 - a, j + 2 - b] * lop[0, 0, a, b]
                                      for a, b in np.ndindex(3, 3))


def test_output_sizes():
    it = lesson(8)
    for (size, k, padding, stride), out in {(5, 3, 0, 1): 3, (28, 3, 1, 1): 28,
                                            (224, 7, 3, 2): 112, (32, 5, 0, 1): 28}.items():
        assert it.out_size(size, k, padding, stride) == out


@pytest.mark.parametrize("seed", range(20))
def test_output_sizes_are_conv2ds(seed):
    from tinygrad import Tensor
    rng = np.random.default_rng(seed)
    k, padding, stride = int(rng.integers(1, 8)), int(rng.integers(0, 5)), int(rng.integers(1, 5))
    size = int(rng.integers(k, 40))
    made = Tensor.empty(1, 1, size, size).conv2d(Tensor.empty(1, 1, k, k), padding=padding,
                                                 stride=stride)
    assert made.shape[2:] == (lesson(8).out_size(size, k, padding, stride),) * 2


def test_the_pooling_figure():
    from tinygrad import Tensor
    it = lesson(8)
    assert it.max_pool(it.POOLING).tolist() == [[6, 8], [8, 6]]
    assert it.max_pool(it.POOLING, 1, 2).tolist() == [[3, 4], [6, 8], [3, 4], [8, 6]]  # the guide's
    pooled = Tensor(it.POOLING.astype(np.float32))[None, None].max_pool2d(2)
    assert pooled[0, 0].tolist() == [[6, 8], [8, 6]]


def test_pooling_blames_the_largest():
    it = lesson(8)
    assert it.blame(1, 2, 4, 3) == [0, 0, 1, 0]
    assert it.blame(5, 5, 5, 5) == [0.25] * 4 and it.blame(7, 1, 7, 2) == [0.5, 0, 0.5, 0]


def test_what_convolution_saves():
    from guide_networks import parameters
    from tinygrad import nn
    it = lesson(8)
    first = nn.Linear(224 * 224 * 3, 1024)
    assert 224 * 224 * 3 == 150_528
    assert (first.weight.numel(), first.bias.numel()) == (154_140_672, 1024)
    assert parameters(nn.Conv2d(1, 32, 3)) == 320
    assert parameters(nn.Linear(784, 28 * 28 * 32)) == 19_694_080
    for channels, times in ((64, 7.9), (256, 8.7)):
        assert it.separable(channels) == pytest.approx(times, abs=0.05)
        assert it.separable(channels) == pytest.approx(1 / (1 / channels + 1 / 9))


@pytest.mark.parametrize("seed", range(3))
def test_convolution_moves_along_and_only_pooling_forgets_where(seed):
    apart = lesson(8).equivariance(seed)
    assert apart["conv"] < 1e-5 and apart["pooled"] < 1e-5 < 0.1 < apart["dense"]


def test_a_dense_network_cannot_tell_mixed_up_pixels():
    import mnist
    from tinygrad import nn
    it = lesson(8)
    digits = it.few(it.load_mnist(), 64, 64)
    order = np.random.default_rng(0).permutation(784)
    mixed = it.mixed_up(digits, order)
    model = mnist.build("mlp")
    straight = model(mnist.pixels(nn.Tensor(digits.test_images))).numpy()
    model.layer1.weight.assign(model.layer1.weight[:, order.tolist()].contiguous()).realize()
    np.testing.assert_allclose(model(mnist.pixels(nn.Tensor(mixed.test_images))).numpy(), straight,
                               atol=1e-5)


@pytest.mark.slow
def test_a_convolutional_network_can_tell_mixed_up_pixels():
    it = lesson(8)
    plain, mixed = it.learn_mixed_up(it.few(it.load_mnist(), 6400, 2000), 3)
    assert mixed < plain - 0.08


def test_the_cnns_shapes_from_picture_to_answer():
    import mnist
    it = lesson(8)
    image = it.load_mnist().test_images[0]
    model = mnist.build("cnn")
    values = it.stages(model, image)
    assert [value.shape[1:] for value in values.values()] == [
        (1, 28, 28), (32, 28, 28), (32, 14, 14), (64, 14, 14), (64, 7, 7), (3136,), (128,), (10,),
        (10,)]
    assert values["softmax"].numpy().sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(values["fc2"].numpy(),
                               model(mnist.pixels(mnist.Tensor(image[None]))).numpy(), atol=1e-5)


NETWORKS = {  # parameters, layers with weights
    "LeNet-5": (60_000, 7), "LeNet-5, as written today": (61_706, 5),
    "AlexNet": (60_965_224, 8), "AlexNet, torchvision": (61_100_840, 8),
    "VGG-16": (138_357_544, 16), "ResNet-50": (25_557_032, 50), "MobileNetV2": (3_504_872, 53),
    "EfficientNet-B0": (5_288_548, 50), "ResNet-18": (11_689_512, 18),
    "MobileNetV3-Small": (2_542_856, 36)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tables_networks_have_exactly_their_parameters(name):
    import guide_networks as it
    from tinygrad import Tensor
    assert list(it.NETWORKS) == list(NETWORKS)
    row, model = it.NETWORKS[name], it.NETWORKS[name].build()
    assert (it.parameters(model), it.weight_layers(model)) == NETWORKS[name]
    assert (row.parameters, row.layers) == NETWORKS[name]
    assert model(Tensor.empty(2, *row.input[1:])).shape == (2, 10 if "LeNet" in name else 1000)


def test_lenets_parts_are_the_papers():
    import guide_networks as it
    net = it.LeNet5()
    parts = [it.parameters(part) for part in (net.c1, net.s2, net.c3, net.s4, net.c5, net.f6)]
    assert parts == [156, 12, 1516, 32, 48_120, 10_164]
    assert [len(maps) for maps in net.SEES] == [3] * 6 + [4] * 9 + [6]
    assert len({tuple(sorted(maps)) for maps in net.SEES}) == 16


def test_every_top_5_number_names_its_source():
    import guide_networks as it
    for name, row in it.NETWORKS.items():
        if row.guide and row.guide[1] != "—":
            assert "(" in row.top5 or "paper" in row.top5, name
    top5 = {name: row.top5 for name, row in it.NETWORKS.items()}
    assert "81.8" in top5["AlexNet"] and "90.38" in top5["VGG-16"]
    assert "92.86" in top5["ResNet-50"] and "90.29" in top5["MobileNetV2"]
    assert "B7" in top5["EfficientNet-B0"] and "93.3" in top5["EfficientNet-B0"]


@pytest.mark.parametrize("name", ["LeNet-5, as written today", *(
    pytest.param(name, marks=pytest.mark.slow) for name in (
        "LeNet-5", "ResNet-18", "MobileNetV2", "MobileNetV3-Small", "EfficientNet-B0"))])
def test_the_networks_run(name):
    import guide_networks as it
    from tinygrad import Tensor
    Tensor.manual_seed(0)
    row = it.NETWORKS[name]
    out = row.build()(Tensor.randn(*row.input)).numpy()
    assert np.isfinite(out).all() and out.std() > 0


def test_filters_and_maps_as_pictures():
    it = lesson(8)
    tiles = it.signed(np.array([[[1.0, -1.0], [0.0, 0.5]]]))
    assert tiles[0, 0].tolist() == [[0, 114, 178], [213, 94, 0]]
    assert tiles[0, 1, 0].tolist() == [255, 255, 255]
    page = it.mosaic(np.zeros((32, 3, 3, 3), np.uint8), 8)
    assert page.shape == (15, 31, 3) and (page[3] == 255).all() and (page[0, :3] == 0).all()
    assert it.grey(np.array([[[0.0, 2.0]]]))[0, 0, :, 0].tolist() == [255, 20]


# ---- CIFAR-10 ------------------------------------------------------------------------------------

TRAIN, TEST = 60, 40  # pictures a batch of the generated data


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """Data of CIFAR-10's form that a network can learn: each class has a colour of its own."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3, 1, 1))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels = rng.integers(0, 10, TEST if name == "test_batch" else TRAIN).astype(np.uint8)
        noise = rng.normal(scale=30, size=(len(labels), 3, 32, 32))
        images = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(
            np.concatenate([labels[:, None], images.reshape(len(labels), -1)], 1).tobytes())
    return folder


def test_pictures_are_moved_and_mirrored_and_stay_themselves():
    import cifar as it
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (50, 2, 3, 32, 32), dtype=np.uint8)
    moved = it.moved_and_mirrored(images, np.random.default_rng(1))
    assert moved.shape == images.shape and moved.dtype == np.uint8
    again = it.moved_and_mirrored(images, np.random.default_rng(1))
    np.testing.assert_array_equal(moved, again)
    mirrored = 0
    for old, new in zip(images.reshape(-1, 3, 32, 32), moved.reshape(-1, 3, 32, 32), strict=True):
        centre = new[:, 4:28, 4:28]  # what is certainly not black that came in
        places = [(m, i, j) for m, view in enumerate((old, old[:, :, ::-1])) for i in range(9)
                  for j in range(9) if (view[:, i:i + 24, j:j + 24] == centre).all()]
        assert places, "each is a piece of the original, or of its mirror image"
        mirrored += places[0][0]
    assert 30 < mirrored < 70
    nothing = it.moved_and_mirrored(images, np.random.default_rng(3), by=0)
    flips = (nothing != images).any((2, 3, 4))
    np.testing.assert_array_equal(nothing[flips], images[flips][:, :, :, ::-1])


def test_the_cifar_network_is_residual_and_has_its_size():
    import guide_networks as it
    from tinygrad import Tensor
    model = it.small_residual(32)
    assert it.weight_layers(model) == 9 and it.parameters(model) == 1_646_122
    assert model(Tensor.empty(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("network", [
    "one layer", pytest.param("the real one", marks=pytest.mark.slow)])
def test_cifars_training_from_files_to_curves(network, cifar, tmp_path, monkeypatch, capsys):
    import cifar as it
    from guide_networks import Network, conv, global_mean, nn
    if network == "one layer":
        monkeypatch.setattr(it, "small_residual", lambda width: Network(
            *conv(3, 8), global_mean, nn.Linear(8, 10)))
    monkeypatch.setattr(sys, "argv", [
        "cifar.py", "--data", str(cifar), "--epochs", "10", "--batch", "30", "--width", "4", "--lr",
        "0.02", "--out", str(tmp_path / "run")])
    monkeypatch.setattr("mnist.TEST_BATCH", 20)
    with pytest.raises(SystemExit) as end:
        it.main()
    assert end.value.code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_samples"] == 5 * TRAIN and metrics["test_samples"] == TEST
    assert metrics["test_accuracy"] > 0.5, "chance is 0.1"
    assert {"curves.svg", "curves.csv", "weights.npz", "weights.safetensors"} <= {
        path.name for path in (tmp_path / "run").iterdir()}
    assert "CIFAR-10" in capsys.readouterr().out


def test_cifar_without_its_data_says_where_to_put_it(tmp_path, monkeypatch):
    import cifar as it
    monkeypatch.setattr(sys, "argv", ["cifar.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: no data_batch_1"):
        it.main()


# ---- 13: export, latency, eight-bit integers -----------------------------------------------------

@pytest.fixture(scope="module")
def trained():
    """The MLP after 2,560 images, and data to try it on: quick, and far from chance."""
    import mnist
    from tinygrad import Tensor
    it = lesson(8)
    data = it.few(it.load_mnist(), 2560, 2000)
    Tensor.manual_seed(0)
    model = mnist.build("mlp")
    it.train(model, data, 1, 3e-3)
    return model, data


@pytest.fixture(scope="module")
def cnn():
    """The CNN, not trained: what a test of exactness needs is only that it is one."""
    import mnist
    from tinygrad import Tensor
    Tensor.manual_seed(0)
    return mnist.build("cnn")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_exported_weights_come_back_bit_for_bit(trained, suffix, tmp_path):
    import guide_quantize as it
    model, data = trained
    path = tmp_path / f"weights.{suffix}"
    arrays = it.weights_of(model)
    it.save_weights(path, arrays)
    again = it.read_weights(path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    images = data.test_images[:32]
    np.testing.assert_array_equal(lesson(13).logits(it.network_of(again), images),
                                  lesson(13).logits(model, images))
    if suffix == "safetensors":
        safetensors = pytest.importorskip("safetensors.numpy")
        np.testing.assert_array_equal(safetensors.load_file(path)["layer1.bias"],
                                      arrays["layer1.bias"])


def test_an_export_has_a_hash_that_tells(trained, tmp_path):
    it, q = lesson(13), lesson(13).q
    model, _ = trained
    sums = it.export(model, tmp_path)
    assert list(sums) == ["weights.npz", "weights.safetensors"]
    assert it.export(model, tmp_path) == sums
    arrays = q.weights_of(model)
    arrays["layer1.bias"] = arrays["layer1.bias"] + np.float32(1e-6)
    q.save_weights(tmp_path / "weights.safetensors", arrays)
    digest = it.hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    assert digest != sums["weights.safetensors"]


@pytest.mark.parametrize("content, message", [
    (b"", "holds no weights"), (b"PK\3\4 and no more", "holds no weights"),
    (b"\xff" * 64, "holds no weights")])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_broken_file_of_weights_is_an_error(content, message, suffix, tmp_path):
    import guide_quantize as it
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(it.DataError, match=message):
        it.read_weights(path)
    with pytest.raises(it.DataError, match="cannot read"):
        it.read_weights(tmp_path / f"nothing.{suffix}")


def test_weights_of_another_network_are_refused(trained, cnn):
    import guide_quantize as it
    arrays = it.weights_of(trained[0])
    with pytest.raises(it.DataError, match="this network's are"):
        it.load_weights(cnn, arrays)
    with pytest.raises(it.DataError, match=r"layer1\.bias is \(3,\) in the file"):
        it.load_weights(trained[0], arrays | {"layer1.bias": np.zeros(3, np.float32)})


def test_a_pickle_among_the_weights_is_not_run(tmp_path):
    import guide_quantize as it
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.array([{"not": "numbers"}], dtype=object))
    with pytest.raises(it.DataError, match="allow_pickle"):
        it.read_weights(path)


@pytest.mark.parametrize("which", ["mlp", "cnn"])
def test_numpy_alone_runs_the_exported_network(which, trained, cnn):
    it = lesson(13)
    model, data = trained if which == "mlp" else (cnn, trained[1])
    images = data.test_images[:4]
    np.testing.assert_allclose(it.numpy_forward(it.q.weights_of(model), images),
                               it.logits(model, images), atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_rounding_moves_a_weight_by_half_a_step_at_most(per_channel):
    import guide_quantize as it
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 3, 3, 3)).astype(np.float32) * (
        10.0 ** rng.uniform(-3, 0, (8, 1, 1, 1))).astype(np.float32)
    weight[3] = 0
    numbers, scales = it.quantize(weight, per_channel)
    assert numbers.dtype == np.int8 and abs(numbers.astype(int)).max() == 127
    assert (numbers >= -127).all() and scales.shape == (8,)
    apart = abs(weight - numbers * scales.reshape(-1, 1, 1, 1))
    assert (apart <= scales.reshape(-1, 1, 1, 1) / 2 * 1.0001).all()
    assert (len(np.unique(scales)) > 1) == per_channel
    if per_channel:
        others = [c for c in range(8) if c != 3]
        assert (abs(numbers[others].reshape(7, -1).astype(int)).max(1) == 127).all()


def test_a_scale_for_each_channel_rounds_finer(cnn):
    errors = lesson(13).rounding(cnn.conv2.weight.numpy() * np.linspace(
        0.1, 1, 64, dtype=np.float32).reshape(-1, 1, 1, 1))
    assert errors["a scale a channel"] < 0.9 * errors["one scale"] < 0.02


def test_calibration_sees_the_largest_activation(trained):
    import guide_quantize as it
    import mnist
    from tinygrad import Tensor
    model, data = trained
    images = mnist.pixels(Tensor(data.train_images[:64])).realize()
    scales = it.calibrate(model, images)
    hidden = model.layer1(images.flatten(1)).relu().numpy()
    assert scales["layer1"] * 127 == pytest.approx(1.0)  # pixels reach from 0 to 1
    assert scales["layer2"] * 127 == pytest.approx(hidden.max(), rel=1e-5)
    cut = it.calibrate(model, images, keep=0.99)
    assert cut["layer2"] * 127 == pytest.approx(np.quantile(hidden, 0.99), rel=1e-5)


@pytest.mark.parametrize("which", ["layer1", "conv2"])
def test_integer_sums_are_exact(which, trained, cnn):
    """int32 in tinygrad against int64 in NumPy, with the largest numbers there are among them."""
    import guide_quantize as it
    from tinygrad import Tensor
    rng = np.random.default_rng(0)
    layer = getattr(trained[0] if which == "layer1" else cnn, which)
    small = it.Int8(layer, 0.02)
    shape = (5, 784) if which == "layer1" else (2, 32, 9, 9)
    inputs = rng.integers(-127, 128, shape).astype(np.int8)
    inputs[0] = 127
    weight, bias = small.weight.numpy().astype(np.int64), small.bias.numpy().astype(np.int64)
    if which == "layer1":
        right = inputs.astype(np.int64) @ weight.T + bias
    else:
        right = np.stack([lesson(8).conv_matmul(x, weight, padding=1)
                          for x in inputs.astype(np.int64)]) + bias.reshape(-1, 1, 1)
    found = small.sums(Tensor(inputs).realize()).numpy()
    assert found.dtype == np.int32 and small.weight.numpy().dtype == np.int8
    np.testing.assert_array_equal(found, right)
    assert abs(right).max() > 2**15, "more than 16 bits are needed"


def test_what_is_larger_than_calibration_saw_is_cut(trained):
    import guide_quantize as it
    from tinygrad import Tensor
    small = it.Int8(trained[0].layer1, 0.01)
    assert small.quantized(Tensor([0.0, 0.004, 0.006, 1.27, 50.0, -50.0])).tolist() == [
        0, 0, 1, 127, 127, -127]


def test_int8_loses_little_and_takes_a_quarter_of_the_bytes(trained):
    import guide_quantize as it
    model, data = trained
    small, found = it.compare(model, data, runs=3)
    a, b = found["float32"], found["int8"]
    assert a["accuracy"] > 0.7 and abs(a["accuracy"] - b["accuracy"]) < 0.005
    assert b["bytes"] / a["bytes"] <= 0.28 and a["bytes"] == 4 * 235_146
    assert 0 < b["latency"].p50 <= b["latency"].p95
    apart = abs(lesson(13).logits(small, data.test_images[:200])
                - lesson(13).logits(model, data.test_images[:200]))
    assert 0 < apart.max() < 0.5


def test_int8_comes_back_from_its_file(trained, tmp_path):
    import guide_quantize as it
    import mnist
    from tinygrad import Tensor
    model, data = trained
    small = it.to_int8(model, mnist.pixels(Tensor(data.train_images[:64])).realize())
    it.save_weights(tmp_path / "int8.safetensors", it.int8_arrays(small))
    arrays = it.read_weights(tmp_path / "int8.safetensors")
    assert arrays["layer1.weight"].dtype == np.int8 and arrays["layer1.bias"].dtype == np.int32
    again = it.load_int8(mnist.build("mlp"), arrays)
    images = data.test_images[:32]
    np.testing.assert_array_equal(lesson(13).logits(again, images),
                                  lesson(13).logits(small, images))


def test_the_cnn_is_1_69_megabytes_and_a_quarter_in_int8(cnn):
    import guide_quantize as it
    import mnist
    from tinygrad import Tensor
    arrays = it.weights_of(cnn)
    assert it.size(arrays) == 421_642 * 4 == 1_686_568
    some = lesson(8).load_mnist().train_images[:8]
    small = it.to_int8(cnn, mnist.pixels(Tensor(some)).realize())
    assert it.size(it.int8_arrays(small)) <= 0.28 * it.size(arrays)
    assert it.size(it.int8_arrays(small)) == pytest.approx(0.42e6, rel=0.01)


def test_latency_is_of_warm_runs_and_in_order():
    import guide_quantize as it
    now = [0.0]
    costs = iter([5.0, *[2.0] * 10, *[0.001 * i for i in range(1, 101)]])

    def run():
        now[0] += next(costs)

    found = it.latency(run, 100, 10, clock=lambda: now[0])
    assert found.first == 5.0 and found.runs == 100
    assert found.p50 == pytest.approx(0.0505) and found.p95 == pytest.approx(0.09505)
    calls = []
    it.latencies({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 1)
    assert "".join(calls) == "ababababab"


def test_pruning_zeroes_the_smallest_weights(trained):
    import guide_quantize as it
    model, data = trained
    arrays = it.weights_of(model)
    for share in (0.5, 0.9):
        cut = it.pruned(arrays, share)
        weights = [name for name in arrays if arrays[name].ndim > 1]
        zeros = sum((cut[name] == 0).sum() for name in weights)
        assert zeros / sum(arrays[name].size for name in weights) == pytest.approx(share, abs=1e-3)
        lost = max(abs(arrays[n][cut[n] == 0]).max() for n in weights)
        assert lost <= min(abs(cut[n][cut[n] != 0]).min() for n in weights)
        np.testing.assert_array_equal(cut["layer1.bias"], arrays["layer1.bias"])
    kept = lesson(13).pruning(model, data, (0, 0.5, 0.99))
    assert kept[0.5] > kept[0] - 0.03 and kept[0.99] < kept[0] - 0.1
    np.testing.assert_array_equal(it.weights_of(model)["layer1.weight"], arrays["layer1.weight"])


def test_every_device_gives_the_same_answers(trained):
    it = lesson(13)
    from tinygrad import Device
    names = it.usable(Device.DEFAULT, *({"TGX", "CPU", "CUDA"} - {Device.DEFAULT}))
    assert names[0] == Device.DEFAULT
    if len(names) == 1:
        pytest.skip("no second device opens here (CPU needs clang, CUDA a GPU)")
    model, data = trained
    arrays, images = it.q.weights_of(model), data.test_images[:200]
    answers = {name: it.logits(it.on_device(arrays, name), images, name) for name in names}
    for found in answers.values():
        np.testing.assert_allclose(found, answers[Device.DEFAULT], atol=1e-4)
        assert (found.argmax(1) == answers[Device.DEFAULT].argmax(1)).all()


@pytest.mark.slow
def test_the_trained_cnn_in_int8_on_the_whole_test_set(tmp_path):
    """python examples/mnist.py --model cnn --epochs 1; then guide_quantize.py."""
    import guide_quantize as it
    import mnist
    from tinygrad import Tensor
    data = lesson(8).load_mnist()
    Tensor.manual_seed(0)
    model = mnist.build("cnn")
    lesson(8).train(model, data, 1, 3e-3)
    _, found = it.compare(model, data)
    a, b = found["float32"], found["int8"]
    assert a["accuracy"] > 0.98 and abs(a["accuracy"] - b["accuracy"]) < 0.005
    assert b["bytes"] / a["bytes"] <= 0.28


# ---- 11: backward, line by line ------------------------------------------------------------------

def test_the_walkthrough_is_of_the_tinygrad_that_is_installed():
    import tgx
    it = lesson(11)
    walk = tgx.backward(it.loss_of_x)
    assert [step.op for step in walk.steps][-2:] == ["ADD", "MUL"]  # from last to first
    source = (it.HOME / "mixin" / "gradient.py").read_text().splitlines()
    for op in ("ADD", "MUL"):
        path, line, text = it.rule_of(walk, op)
        assert path == "tinygrad/mixin/gradient.py" and f"Ops.{op}" in source[line - 1]
        assert text in source[line - 1]
    added = [float(c.local) for step in walk.steps if step.op == "MUL"
             for c in step.contributions]
    assert added == [2, 2]
    checks = [c.check.error for step in walk.steps for c in step.contributions]
    assert len(checks) == 5 and max(checks) < 1e-9, "against finite differences"
    told = str(walk)
    assert "total 5" in told and "total 3" in told and "11_walkthrough.py" in told


def test_a_linear_layer_annotated():
    import tgx
    walk = tgx.backward(lesson(11).loss_of_a_layer)
    told = walk.render("text", level="operations")
    for formula in ("dW = dZᵀ·X", "db = Σ dZ over the batch", "dX = dZ·W"):
        assert formula in told
    assert "✗" not in told


def test_every_function_on_the_way_stands_where_it_is_said_to():
    it = lesson(11)
    for name, place in (*it.way_there(), *it.way_back()):
        path, _, line = place.rpartition(":")
        text = (it.HOME.parent / path).read_text().splitlines()[int(line) - 1:int(line) + 3]
        word = name.rpartition(".")[2]
        assert any(f"def {word}(" in one for one in text), (name, place)


def test_the_guides_first_tinygrad_example():
    shape, waiting, found, by_hand = lesson(11).guides_first_example()
    assert shape == (1, 4) and waiting == 0, "lazy: nothing ran before .numpy()"
    np.testing.assert_array_equal(found, by_hand)
    assert 0 < (found != 0).any(0).sum() < 4, "some units are on and some are off"


def test_elementwise_operations_and_a_product_are_one_kernel_each():
    from tinygrad import Tensor
    it = lesson(11)
    x, w = Tensor.ones(16, 16).contiguous().realize(), Tensor.ones(16, 16).contiguous().realize()
    assert it.kernels(lambda: (x.relu() * 2 + 1).realize()) == 1
    assert it.kernels(lambda: (x @ w).relu().realize()) == 1
    assert it.kernels(lambda: (x @ w).relu()) == 0


def test_a_kernels_source_can_be_read():
    from tinygrad import Device, Tensor
    it = lesson(11)
    a, b = (Tensor.ones(8, 8).contiguous().realize() for _ in range(2))
    source = it.source_of(lambda: (a @ b).relu())
    assert len(source) > 200
    if Device.DEFAULT == "TGX":
        assert it.readable(source).startswith("for o0:8 o1:8 sum r0:8") and "max(" in source
    assert it.readable("a\nb\nc", 2) == "a\nb"


def test_two_devices_compile_one_kernel_differently_and_agree():
    """The exercise "compare kernels"."""
    from tinygrad import Device, Tensor
    names = lesson(13).usable(Device.DEFAULT, *({"TGX", "CPU", "CUDA"} - {Device.DEFAULT}))
    if len(names) == 1:
        pytest.skip("no second device opens here (CPU needs clang, CUDA a GPU)")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(8, 8)).astype(np.float32) for _ in range(2)]
    sources, results = set(), []
    for name in names:
        a, b = (Tensor(x, device=name).realize() for x in arrays)
        sources.add(lesson(11).source_of(lambda a=a, b=b: (a @ b).relu()))
        results.append((a @ b).relu().numpy())
    assert len(sources) == len(names)
    for found in results:
        np.testing.assert_allclose(found, np.maximum(arrays[0] @ arrays[1], 0), atol=1e-5)


def test_tinygrad_is_no_longer_a_thousand_lines():
    it = lesson(11)
    core = it.lines_of_code(it.HOME, it.NOT_CORE)
    assert 5000 < core < 20_000


def test_lines_of_code_are_counted_without_comments_and_docstrings(tmp_path):
    (tmp_path / "a.py").write_text('"""Doc."""\n\n# no\ndef f():\n    """Doc\n    doc."""\n'
                                   "    return (1 +\n            2)  # yes, two\n")
    (tmp_path / "viz").mkdir()
    (tmp_path / "viz" / "b.py").write_text("x = 1\n")
    assert lesson(11).lines_of_code(tmp_path, ("viz",)) == 3
    assert lesson(11).lines_of_code(tmp_path) == 4


def test_the_backends_and_the_default():
    from tinygrad import Device
    it = lesson(11)
    assert {"CPU", "CL", "CUDA", "METAL", "WEBGPU", "AMD", "NV", "QCOM", "HIP", "DSP"} == set(
        it.backends())
    assert "GPU" not in it.backends() and Device.DEFAULT in ("TGX", *it.backends())


def test_the_map_of_tinygrads_files_leads_somewhere():
    it = lesson(11)
    for rows in it.MAP.values():
        for path, text in rows:
            assert it.find(path, text) > 0, (path, text)
    assert all(it.find(path, "") == -1 for path in it.GONE)
    assert it.find("nn/optim.py", "AdaGrad") == 0


def test_micrograds_parts_are_found_in_tinygrad():
    it = lesson(11)
    assert len(it.BRIDGE) == 7
    for old, _, there in it.BRIDGE:
        assert there(), old
    assert it.find("tensor.py", "grad_fn") == 0 and it.find("uop/ops.py", "class LazyBuffer") == 0


# ---- 12: the bridge ------------------------------------------------------------------------------

needs_torch = pytest.mark.skipif(lesson(12).torch is None, reason="PyTorch is not installed")


def test_micrograd_and_tinygrad_agree_for_three_steps():
    it = lesson(12)
    a, b = it.by_micrograd(), it.by_tinygrad()
    assert len(a.losses) == 3 and a.weights[0].shape == a.gradients[0].shape == (17,)
    assert a.apart(b) < 1e-6 and a.losses[2] < a.losses[0]
    assert a.graph > b.graph > 20  # single numbers against arrays
    steps = [start - new for start, new in zip((it.flat(it.start()), *a.weights), a.weights,
                                               strict=False)]
    np.testing.assert_allclose(steps, 0.1 * np.array(a.gradients), atol=1e-12)


@needs_torch
def test_pytorch_agrees_with_them():
    it = lesson(12)
    run = it.by_torch()
    assert run.apart(it.by_micrograd()) < 1e-6 and run.apart(it.by_tinygrad()) < 1e-6
    assert it.operations_of_torch(lambda: it.torch.ones(9).relu() * 2 + 1) == 4  # ones() is one


def test_the_deep_dives_parameters_are_rows_without_gradients():
    from tinygrad import nn
    it = lesson(12)
    assert it.deep_dives_parameters() == [(2,)] * 4 + [(4,)]
    assert [t.shape for t in nn.state.get_parameters(it.Tiny())] == [(4, 2), (4,), (1, 4), (1,)]


@needs_torch
def test_the_two_autograds_mean_the_same():
    found = lesson(12).same_semantics()
    assert found["loss, dw, dx, db"] == ((49, 28, 42, 14),) * 2
    assert found["x², then x³ without clearing"] == ((4, 16),) * 2
    assert found["no graph wanted"][0] is False
    assert found["x · detach(x): dx"] == (2, 2)
    assert found["a ReLU of one's own: dx"] == ([0, 1, 1], [0, 1, 1])


@needs_torch
def test_losses_and_their_gradients_are_pytorchs():
    apart = lesson(12).same_losses(np.random.default_rng(1))
    assert len(apart) == 5 and max(apart.values()) < 2e-6


@needs_torch
def test_linear_layers_start_alike():
    """kaiming_uniform_(a=√5) is a bound of 1/√inputs: what tinygrad's nn.Linear has, too."""
    from tinygrad import Tensor, nn
    torch = lesson(12).torch
    torch.manual_seed(0)
    Tensor.manual_seed(0)
    for inputs in (25, 400):
        bound = 1 / np.sqrt(inputs)
        for layer in (torch.nn.Linear(inputs, 300), nn.Linear(inputs, 300)):
            weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
            assert 0.98 * bound < abs(weight).max() <= bound and abs(bias).max() <= bound
            assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)


@needs_torch
def test_clipping_is_pytorchs():
    from tinygrad import Tensor
    it, rng = lesson(12), np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (5,))]
    for factor in (3.0, 0.01):
        p = [it.torch.zeros(a.shape, requires_grad=True) for a in arrays]
        for t, a in zip(p, arrays, strict=True):
            t.grad = it.torch.from_numpy(factor * a)
        it.torch.nn.utils.clip_grad_norm_(p, 1.0)
        ours = it.clipped([Tensor(factor * a) for a in arrays])
        for t, mine in zip(p, ours, strict=True):
            np.testing.assert_allclose(mine.numpy(), t.grad.numpy(), atol=1e-6)
        length = np.sqrt(sum((t.numpy() ** 2).sum() for t in ours))
        assert length == pytest.approx(min(1.0, factor * np.sqrt(sum((a**2).sum() for a in arrays)))
                                       , rel=1e-4)


@needs_torch
def test_a_data_loader_and_ours_give_every_sample_once():
    import mnist
    torch = lesson(12).torch
    loader = torch.utils.data.DataLoader(torch.arange(100), batch_size=32, shuffle=True)
    theirs = [batch.tolist() for batch in loader]
    assert [len(b) for b in theirs] == [32, 32, 32, 4]
    assert sorted(i for rows in theirs for i in rows) == list(range(100))
    rows = mnist.shuffled(np.random.default_rng(0), 100, 32)
    assert rows.shape == (4, 32) and set(rows.ravel()) == set(range(100))


def test_the_deep_dives_blocks():
    from guide_networks import Network, conv, nn, parameters
    from tinygrad import Tensor
    it = lesson(12)
    first = nn.Conv2d(3, 64, 3, padding=1)
    assert parameters(first) == 64 * 27 + 64 == 1792
    assert first(Tensor.empty(8, 3, 224, 224)).shape == (8, 64, 224, 224)
    cheap = it.depthwise(64, 128)
    assert parameters(cheap) == 64 * 9 + 128 + 64 * 128 + 256
    assert cheap(Tensor.empty(2, 64, 8, 8)).shape == (2, 128, 8, 8)
    assert parameters(Network(*conv(64, 128))) / parameters(cheap) == pytest.approx(8.1, abs=0.05)
    np.testing.assert_array_equal(it.identity_gradient(), np.ones((1, 2, 4, 4)))


@needs_torch
def test_a_residual_block_is_pytorchs():
    assert lesson(12).same_block(np.random.default_rng(2)) < 1e-5


def test_transfer_freezes_what_it_says_and_helps():
    curves, changed = lesson(12).transfer(40, ["from scratch", "frozen body"])
    assert changed == {"from scratch": True, "frozen body": False}
    assert curves["frozen body"][-1] > curves["from scratch"][-1] + 0.05 > 0.6


@pytest.mark.slow
def test_lower_rates_and_later_unfreezing_help_too():
    curves, changed = lesson(12).transfer(60)
    assert [changed[name] for name in lesson(12).TRANSFER] == [True, False, True, True]
    assert all(curve[-1] > curves["from scratch"][-1] + 0.05
               for name, curve in curves.items() if name != "from scratch")


@needs_torch
def test_rates_for_parts_and_frozen_parts_are_pytorchs():
    it = lesson(12)
    ours, theirs = it.two_rates("tinygrad"), it.two_rates("torch")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_detection_heads_shapes_boxes_and_targets():
    it = lesson(12)
    objects = ((0, 2.3, 1.6, 1.1, 0.9, 2), (1, 4.5, 3.2, 2.2, 1.3, 0))
    found = it.detector(objects)
    assert found["channels"] == 2 * (5 + 3) and found["shape"] == (2, 2, 7, 7, 8)
    boxes, want = found["boxes"], found["targets"]
    assert ((boxes[..., 4] > 0) & (boxes[..., 4] < 1)).all() and (boxes[..., 2:4] > 0).all()
    columns, rows = np.meshgrid(np.arange(7), np.arange(7))
    assert (np.floor(boxes[..., 0]) == columns).all() and (np.floor(boxes[..., 1]) == rows).all()
    # the cell of the centre answers, with the anchor most like the object
    assert np.argwhere(want["there"]).tolist() == [[0, 0, 1, 2], [1, 1, 3, 4]]
    assert want["class"][0, 0, 1, 2].tolist() == [0, 0, 1]
    x, y, w, h = want["box"][1, 1, 3, 4]
    assert (x + 4, y + 3) == pytest.approx((4.5, 3.2))
    assert (np.exp(w) * 2.5, np.exp(h) * 1.2) == pytest.approx((2.2, 1.3))
    assert it.iou_of_sizes((2, 1), (1, 1)) == 0.5 and it.iou_of_sizes((1, 2), (1, 2)) == 1


def test_a_detection_loss_falls_to_nothing_for_the_right_answer():
    from tinygrad import Tensor
    it = lesson(12)
    want = it.targets(((0, 2.3, 1.6, 1.1, 0.9, 2),), (1, 2, 7, 7), 3)
    right = np.zeros((1, 2, 7, 7, 8), np.float32)
    right[..., 4] = np.where(want["there"], 20, -20)
    centre = np.clip(want["box"][..., 0:2], 1e-6, 1 - 1e-6)
    right[..., 0:2] = np.log(centre / (1 - centre))
    right[..., 2:4] = want["box"][..., 2:4]
    right[..., 5:] = np.where(want["class"], 20, -20)
    wrong = right.copy()
    wrong[0, 0, 1, 2, 2] += 1  # too wide, by a factor of e

    def loss(raw):
        return it.detection_loss(Tensor(raw), *map(Tensor, want.values()),
                                 lambda z: z.softplus()).item()

    assert 0 <= loss(right) < 1e-5 and loss(wrong) == pytest.approx(1, abs=1e-4)


@needs_torch
def test_the_detection_loss_is_pytorchs():
    assert lesson(12).detector()["apart"] < 1e-5


def test_the_exercises():
    from tinygrad import Tensor
    it = lesson(12)
    a = it.TensorValue(2.0)
    f = (a**2 + 3 * a + 2) * a.tanh()
    f.backward()
    assert (f.data, a.grad) == pytest.approx((11.568331, 7.596003), rel=1e-6)
    y = Tensor([1.0])
    easy, hard = (it.focal(Tensor([p]), y).item() for p in (0.9, 0.1))
    assert easy == pytest.approx(0.01 * -np.log(0.9), rel=1e-4)
    assert hard == pytest.approx(0.81 * -np.log(0.1), rel=1e-4)
    assert it.focal(Tensor([0.3]), y, gamma=0.0).item() == pytest.approx(-np.log(0.3), rel=1e-5)
    for batch in (16, 128):
        assert it.memory_of_a_batch(batch) == 4 * batch * (256 + 128)


@needs_torch
def test_xor_in_pytorch():
    loss, right = lesson(12).xor_in_torch()
    assert right and loss < 0.02


@pytest.mark.slow
def test_the_mlp_without_an_optimizer_passes_95_percent():
    assert lesson(12).mlp_by_hand() > 0.95


# ---- 14: errata ----------------------------------------------------------------------------------

# every row of the guide's facts that is marked as wrong or misleading
MARKED = [6, 14, 15, 22, 25, 26, 30, 31, 32, 39, 47, 48, 49, 55, 58, 59, 63, 64, 66, 70, 75, 81, 85,
          88, 90, 91, 92, 93, 94, 95, 96, 102, 105, 106, 108, 110, 117, 124, 128, 129, 130, 131,
          134, 136, 142, 143, 158]


def test_every_marked_row_has_its_erratum():
    it = lesson(14)
    assert [e.row for e in it.ERRATA] == MARKED
    checklist = (ROOT / "tests" / "checklist.md").read_text()
    marked = {int(row) for row in re.findall(r"^\| (\d+) \| [^|]*⚠", checklist, re.M)}
    assert marked <= set(MARKED), f"{sorted(marked - set(MARKED))}: no erratum in lesson 14"


@pytest.mark.parametrize("row", MARKED)
def test_an_erratum_holds(row):
    (e,) = (e for e in lesson(14).ERRATA if e.row == row)
    found, holds = e.check()
    assert holds, f"{e.guide} / {e.right}: {found}"
    assert e.guide and e.right and found
    if found.startswith("source: "):
        assert len(found) > len("source: ") + 10


def test_the_card_and_the_mathematics_are_doctests_that_pass():
    import doctest

    import guide_card as it
    found = doctest.testmod(it)
    assert found.attempted >= 20 and found.failed == 0
    assert len(it.CARD) == 7 and len(it.MATHEMATICS) == 4
    assert all(">>>" in f.__doc__ for f in (*it.CARD, *it.MATHEMATICS))


def test_the_mathematics_is_drawn(tmp_path, monkeypatch, capsys):
    import guide_card as it
    monkeypatch.setattr(sys, "argv", ["guide_card.py", "--out", str(tmp_path)])
    it.main()
    assert "0 failed" in capsys.readouterr().out
    assert (tmp_path / "guide_card.svg").read_text() == it.draw()


def test_the_course_has_the_guides_links():
    text = (ROOT / "examples" / "README.md").read_text()
    for link in ("3blue1brown.com/topics/neural-networks", "github.com/karpathy/micrograd",
                 "cs231n.github.io", "deeplearningbook.org", "TinyML", "AI at the Edge",
                 "github.com/tinygrad/tinygrad", "beautiful_mnist.py", "onnx.ai", "openpilot"):
        assert link in text, link


def test_an_erratum_that_does_not_hold_is_told(monkeypatch, capsys):
    it = lesson(14)
    monkeypatch.setattr(it, "ERRATA", [it.Erratum(1, "a", "b", lambda: ("c", False))])
    monkeypatch.setattr(sys, "argv", ["14_errata.py", "--quick"])
    it.main()
    told = capsys.readouterr().out
    assert "DOES NOT HOLD" in told and "0 of 1 hold" in told
