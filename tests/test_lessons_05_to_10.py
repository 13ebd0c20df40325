"""Lessons 5, 6, 7, 9 and 10: optimizers, the training loop, the MLP, regularization, data sets.

Like test_lessons.py, which also runs each of these lessons in its quick form.
"""

import gzip
import hashlib
import http.server
import inspect
import io
import pickle
import shutil
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import guide_data
from test_lessons import lesson

# ---- 5: optimizers and schedules ---------------------------------------------------------------


def test_gradient_descent_is_geometric_on_a_bowl():
    it = lesson(5)
    for curve, rate in ((1.0, 0.1), (4.0, 0.4)):
        np.testing.assert_allclose(it.descend(curve, rate, 20),
                                   (1 - rate * curve) ** np.arange(21), rtol=1e-12)
    assert abs(it.descend(2.0, 0.99, 100)[-1]) < 1 < abs(it.descend(2.0, 1.01, 100)[-1])  # α = 2/λ


def test_the_gradients_variance_falls_as_one_over_the_batch():
    noise = lesson(5).gradient_noise((1, 4, 16, 64))
    for batch in (4, 16, 64):
        assert batch * noise[batch] == pytest.approx(noise[1], rel=0.15)


def test_two_conventions_of_momentum():
    it = lesson(5)
    ones = [[1.0]] * 3
    ours, guides, scaled = (it.moves(lambda p, o=o: it.Momentum(p, **o), ones)[:, 0] for o in (
        {"lr": 1.0}, {"lr": 1.0, "mean": True}, {"lr": 10.0, "mean": True}))
    np.testing.assert_allclose(ours, [1, 1.9, 2.71], rtol=1e-6)
    np.testing.assert_allclose(guides, [0.1, 0.19, 0.271], rtol=1e-6)
    np.testing.assert_allclose(scaled, ours, rtol=1e-6)  # α/(1-β) makes them the same


def test_momentum_is_faster_on_a_long_bowl():
    it = lesson(5)
    bowl = (1.0, 100.0)
    steps = {name: it.steps_to_the_bottom(bowl, *s) for name, s in it.best_settings(bowl).items()}
    assert steps["momentum"] < steps["gradient descent"] / 4
    with pytest.raises(ValueError, match="does not get there"):
        it.steps_to_the_bottom(bowl, 0.021)


def test_adams_first_step_and_defaults():
    from tinygrad import nn
    it = lesson(5)
    theirs, mine = (inspect.signature(f).parameters for f in (nn.optim.Adam, it.Adam))
    for name, value in {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "lr": 1e-3}.items():
        assert theirs[name].default == mine[name].default == value
    # gradients 1 and 1000: the same first step, α, towards lower loss
    np.testing.assert_allclose(it.moves(it.Adam, [[1.0, -1000.0]])[0], [1e-3, -1e-3], rtol=1e-4)
    uncorrected = it.moves(lambda p: it.Adam(p, correct=False), [[1.0]])[0, 0]
    assert uncorrected == pytest.approx(1e-3 * 0.1 / 0.001**0.5, rel=1e-4)  # 3.16 times as far


def test_adams_epsilon_stands_outside_the_root():
    from tinygrad import nn
    it = lesson(5)
    tiny = [[1e-8]]
    outside, inside, theirs = (it.moves(make, tiny)[0, 0] for make in (
        lambda p: it.Adam(p, 1.0), lambda p: it.Adam(p, 1.0, eps_inside=True),
        lambda p: nn.optim.Adam(p, 1.0)))
    assert outside == pytest.approx(0.5, rel=1e-3) and inside == pytest.approx(1e-4, rel=1e-3)
    assert theirs == pytest.approx(outside, rel=1e-6)


def test_adams_second_moment_is_not_a_variance():
    found = lesson(5).alternating()
    assert found["v̂"] == pytest.approx(1, rel=1e-4)  # as is the variance; but for constant ones,
    w = lesson(5).moves(lambda p: lesson(5).Adam(p, 1.0), [[1.0]] * 3)
    np.testing.assert_allclose(w, 1, rtol=1e-4)      # whose variance is 0, v̂ is 1 as well
    assert abs(found["m̂"]) < 0.1 and abs(found["step"]) < 0.1


@pytest.fixture(scope="module")
def trained():
    """The weights after 100 steps of each optimizer, ours and tinygrad's; each is trained once."""
    it, results = lesson(5), {}

    def get(name: str) -> tuple[np.ndarray, np.ndarray | None]:
        if name not in results:
            mine, theirs = it.OPTIMIZERS[name]
            results[name] = it.train(mine), None if theirs is None else it.train(theirs)
        return results[name]

    return get


TORCH = {  # the same in PyTorch
    "SGD": lambda o, p: o.SGD(p, 0.1),
    "SGD, λ = 0.01": lambda o, p: o.SGD(p, 0.1, weight_decay=0.01),
    "momentum": lambda o, p: o.SGD(p, 0.02, momentum=0.9),
    "Nesterov": lambda o, p: o.SGD(p, 0.02, momentum=0.9, nesterov=True),
    "AdaGrad": lambda o, p: o.Adagrad(p, 0.01),
    "RMSprop": lambda o, p: o.RMSprop(p, 0.001),
    "Adam": lambda o, p: o.Adam(p, 0.001),
    "AdamW, λ = 0.01": lambda o, p: o.AdamW(p, 0.001, weight_decay=0.01),
}


@pytest.mark.parametrize("name", TORCH)
def test_an_optimizer_from_scratch_equals_tinygrads_own(name, trained):
    assert lesson(5).OPTIMIZERS.keys() == TORCH.keys()
    mine, theirs = trained(name)
    start = lesson(5).problem()[2]
    assert abs(mine - start).max() > 0.05
    if theirs is None:
        from tinygrad import nn
        assert not hasattr(nn.optim, name)  # the guide says that AdaGrad is there
    else:
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", TORCH)
def test_an_optimizer_from_scratch_equals_pytorchs(name, trained):
    torch = pytest.importorskip("torch")
    x, classes, start = lesson(5).problem()
    w = torch.tensor(start, requires_grad=True)
    optimizer = TORCH[name](torch.optim, [w])
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(torch.tensor(x) @ w, torch.tensor(classes)).backward()
        optimizer.step()
    np.testing.assert_allclose(trained(name)[0], w.detach().numpy(), atol=1e-6, rtol=0)


@pytest.mark.skipif(not shutil.which("clang"), reason="tinygrad's CPU device compiles with clang")
def test_the_stock_cpu_device_gives_the_same_numbers(trained):
    from tinygrad import Context
    it, loop = lesson(5), lesson(6)
    clouds, h = loop.xor_clouds(), loop.Hyperparameters(lr=0.02, layers=1, width=8, epochs=3)
    here = [e.val_loss for e in loop.learn(clouds, h)[1]]
    with Context(DEV="CPU"):
        there = it.train(it.OPTIMIZERS["momentum"][0])
        np.testing.assert_allclose([e.val_loss for e in loop.learn(clouds, h)[1]], here, atol=1e-5)
    np.testing.assert_allclose(trained("momentum")[0], there, atol=1e-6)


def test_sgd_needs_a_larger_rate_than_adam():
    """After 40 steps on the same digits: at 1e-3 SGD has hardly begun."""
    it = lesson(5)
    slow, fast, adam = (it.digits_loss(make, 41, 128, every=40)[-1] for make in (
        lambda p: it.SGD(p, 1e-3), lambda p: it.SGD(p, 0.5), lambda p: it.Adam(p, 1e-3)))
    assert slow > 2.1 and adam < 1.3 and fast < 0.5


def test_schedules():
    it = lesson(5)
    rates = [1e-3 * it.step_decay(epoch, 30) for epoch in (0, 9, 10, 20)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert [it.cosine(t, 30) for t in (0, 15, 30)] == pytest.approx([1, 0.5, 0], abs=1e-15)
    up, down = [it.warmup(t, 30) for t in range(4)], [it.warmup(t, 30) for t in range(3, 31)]
    assert up == pytest.approx([0, 1 / 3, 2 / 3, 1]) and down[-1] == pytest.approx(0, abs=1e-15)
    assert (np.diff(down) < 0).all()
    assert all(it.constant(t, 30) == 1 for t in (0, 30))


def test_schedules_are_pytorchs():
    torch = pytest.importorskip("torch")
    it, lr, total = lesson(5), 0.1, 50

    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        seen = []
        for _ in range(total):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    for schedule, make in (
            (it.step_decay, lambda s, o: s.StepLR(o, 10, 0.1)),
            (it.cosine, lambda s, o: s.CosineAnnealingLR(o, total)),
            (it.one_cycle, lambda s, o: s.OneCycleLR(o, lr, total_steps=total))):
        np.testing.assert_allclose([lr * schedule(t, total) for t in range(total)],
                                   rates(make), rtol=1e-6, atol=1e-12)


def test_a_jitted_step_follows_its_schedule():
    it = lesson(5)
    used = it.follow(it.warmup, 20, 0.1)
    np.testing.assert_allclose(used, [0.1 * it.warmup(t, 20) for t in range(20)], atol=1e-6)


def test_a_rate_that_falls_ends_closer():
    it = lesson(5)
    ends = {name: it.noisy_end(schedule) for name, schedule in it.SCHEDULES.items()}
    assert all(far < ends["constant"] / 2 for name, far in ends.items() if name != "constant")


# ---- 6: the training loop ----------------------------------------------------------------------

def test_five_steps_in_order_and_none_computes_before_the_last():
    events, kernels = lesson(6).events_and_kernels()
    assert events == ["forward", "loss", "zero", "backward", "step"] * 2  # then the jit replays
    assert kernels[:5] == [0] * 5 and kernels[5] > 5


def test_the_batchs_gradient_is_the_mean_of_its_samples():
    gradient, mean = lesson(6).batch_and_sample_gradients()
    assert abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, mean, atol=1e-7)


def test_batches_take_every_sample_once():
    it = lesson(6)
    rows = it.batches(0, 1, 60_000, 64)
    assert rows.shape == (938, 64)  # of losses there are 938, too: the guide divides by 937
    assert 60_000 // 64 == 937
    assert sorted(rows.ravel()[:60_000]) == list(range(60_000))
    assert (it.batches(0, 1, 100, 10) == it.batches(0, 1, 100, 10)).all()
    assert (it.batches(0, 1, 100, 10) != it.batches(0, 2, 100, 10)).any()


def test_parameters_are_learnt_and_hyperparameters_chosen():
    from tinygrad import nn
    it = lesson(6)
    h = it.Hyperparameters(layers=3, width=7)
    names = set(nn.state.get_state_dict(it.Network(4, 2, h)))
    assert names == {f"layers.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert len(vars(h)) == 7


def test_the_mean_loss_is_that_of_the_epochs_batches():
    from tinygrad import Tensor, nn
    it = lesson(6)
    data = it.xor_clouds(20)
    Tensor.manual_seed(0)
    model = it.Network(2, 2, it.Hyperparameters(layers=1, width=4))
    still = nn.optim.SGD(nn.state.get_parameters(model), lr=0.0)
    (epoch,) = it.training(model, still, data, 1, 5)
    assert epoch.loss == pytest.approx(it.evaluator(model, data.x, data.y)()[0], rel=1e-5)


def test_validation_changes_nothing():
    from tinygrad import Context, Tensor
    it = lesson(9)
    Tensor.manual_seed(0)
    model = it.Net((4, 8, 2), dropout=0.5, norm=True)
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    before = it.loop.checkpoint(model)
    evaluate = it.loop.evaluator(model, x, np.zeros(16, np.int32))
    assert evaluate() == evaluate() == evaluate()  # no dropout, either
    after = it.loop.checkpoint(model)
    assert all((before[name] == after[name]).all() for name in before)
    with Context(TRAINING=1):
        model(Tensor(x)).realize(model.norms[0].running_mean)
    changed = it.loop.checkpoint(model)
    assert (changed["0.norms.0.running_mean"] != before["0.norms.0.running_mean"]).any()


@pytest.fixture(scope="module")
def overfitted():
    it = lesson(6)
    h = it.Hyperparameters(epochs=20, lr=3e-3, layers=1)
    return it.learn(it.digits(200, 500), h)


def test_overfitting(overfitted):
    _, history, stopping = overfitted
    assert history[-1].loss < 0.01
    assert 2 < stopping.best_epoch < 20 and len(history) == 20
    assert stopping.stopped_at == stopping.best_epoch + stopping.patience
    assert history[-1].val_loss > 1.08 * stopping.best > 5 * history[-1].loss


def test_early_stopping_brings_back_the_best_weights(overfitted):
    it = lesson(6)
    model, history, stopping = overfitted
    data = it.digits(200, 500)
    best = history[stopping.best_epoch - 1]
    upto = history[:stopping.stopped_at]
    assert min(e.val_loss for e in upto) == best.val_loss == stopping.best
    loss, accuracy = it.evaluator(model, data.val_x, data.val_y)()
    assert (loss, accuracy) == pytest.approx((best.val_loss, best.val_accuracy), abs=1e-5)


def test_training_ends_where_early_stopping_says():
    it = lesson(6)
    h = it.Hyperparameters(lr=3.0, batch=50, layers=1, width=8, epochs=9)  # it will not get better
    _, history, stopping = it.learn(it.xor_clouds(), h, patience=1, go_on=False)
    assert len(history) == stopping.stopped_at < 9


def test_underfitting():
    it = lesson(6)
    clouds, h = it.xor_clouds(), it.Hyperparameters(lr=0.02, batch=50, width=8, epochs=15)
    linear, bent = (it.learn(clouds, replace(h, layers=n))[1][-1] for n in (0, 1))
    assert linear.loss > 0.6 and linear.val_loss > 0.6 and linear.val_accuracy <= 0.8
    assert bent.loss < 0.15 and bent.val_loss < 0.15 and bent.val_accuracy > 0.95


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path):
    it = lesson(6)
    h = it.Hyperparameters(lr=0.02, batch=50, layers=1, width=8, epochs=4)
    assert it.interrupted(tmp_path, it.xor_clouds(), h, 2)
    model = it.Network(2, 2, h)
    with np.load(tmp_path / "checkpoint.npz") as saved:
        assert {"1.b1_t", "1.m.0", "1.v.0", "1.lr"} < set(saved)  # Adam's memory is part of it
        with pytest.raises(ValueError, match="another model"):
            it.restore(model, dict(saved))


def test_early_stopping_on_the_guides_numbers():
    from tinygrad import nn
    it, model = lesson(6), nn.Linear(1, 1)
    stopping = it.EarlyStopping(patience=1)
    marks = {1: 2.3, 5: 1.3, 10: 0.8, 15: 1.1, 20: 1.4}
    kept = {}
    for epoch, val_loss in marks.items():
        model.weight.assign(model.weight * 0 + epoch).realize()
        kept[epoch] = model.weight.numpy()
        if stopping.check(epoch, val_loss, model):
            break
    assert (epoch, stopping.best_epoch, stopping.best) == (15, 10, 0.8)
    stopping.restore(model)
    assert model.weight.item() == kept[10].item() == 10
    patient = it.EarlyStopping(patience=3)
    assert not any(patient.check(e, v, model) for e, v in marks.items())


# ---- 7, Project 2: the MLP ---------------------------------------------------------------------

def test_the_guides_neuron_learns():
    from tinygrad import Tensor
    it = lesson(7)
    losses = it.train_neuron()
    assert losses[-1] < 1e-6 < 1 < losses[0]
    assert it.Neuron(3)(Tensor([[0.5, 1.2, -0.3]])).shape == (1, 1)


def test_the_guides_linear_and_mlp():
    from tinygrad import Tensor
    it = lesson(7)
    Tensor.manual_seed(0)
    layer = it.Linear(784, 256)
    x = np.random.default_rng(0).normal(size=(3, 784)).astype(np.float32)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), x @ layer.w.numpy().T, atol=1e-4)
    # spread for 784 inputs, not for 256: uniform in ±√(6/inputs)/√(1 + a²), a = 0.01
    assert abs(layer.w.numpy()).max() == pytest.approx((6 / 784) ** 0.5, rel=0.01)
    model = it.MLP([784, 256, 128, 10])
    rows = it.summary(model)
    assert [kind for kind, _, _ in rows] == ["input", "hidden", "hidden", "output"]
    assert [n for _, _, n in rows] == [0, 200_960, 32_896, 1_290]
    assert model(Tensor(x)).shape == (3, 10)


def test_one_hot_rows_or_classes():
    from tinygrad import Tensor
    it = lesson(7)
    Tensor.manual_seed(0)
    rng = np.random.default_rng(0)
    images = Tensor(rng.random((16, 784)).astype(np.float32)).realize()
    one_hot, classes = it.two_kinds_of_labels(it.MLP([784, 8, 10]), images, rng.integers(0, 10, 16))
    assert one_hot[-1] > 1 and abs(one_hot[:-1]).max() > 1e-4
    np.testing.assert_allclose(one_hot, classes, atol=1e-6)


def test_the_mlps_mistakes_are_told():
    it = lesson(7)
    scores = np.eye(10)[[3, 3, 5, 7]] * np.array([[4.0], [9], [2], [1]])
    labels = np.array([3, 8, 3, 1])
    assert it.worst_mistakes(scores, labels, 2) == [1, 2]  # the surest first
    assert it.confusions(scores, labels)[:3] == [(1, 8, 3), (1, 3, 5), (1, 1, 7)]


# ---- 9: regularization -------------------------------------------------------------------------

def test_error_is_bias_and_variance_and_noise():
    it = lesson(9)
    found = {degree: it.bias_and_variance(degree, 120) for degree in (1, 5, 20)}
    for parts in found.values():
        assert parts["bias²"] + parts["variance"] + parts["noise"] == pytest.approx(
            parts["error"], rel=0.05)
    assert found[1]["bias²"] > 10 * found[5]["bias²"]
    assert found[20]["variance"] > 10 * found[5]["variance"] > found[1]["variance"]
    assert found[5]["error"] < min(found[1]["error"], found[20]["error"])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout(p):
    from tinygrad import Context, Tensor
    it = lesson(9)
    Tensor.manual_seed(0)
    x = Tensor(np.full(20_000, 3, np.float32)).realize()
    assert (x.dropout(p).numpy() == 3).all()  # not training: as it was
    with Context(TRAINING=1):
        y = x.dropout(p).numpy()
    assert (y == 0).mean() == pytest.approx(p, abs=0.015)
    np.testing.assert_allclose(y[y != 0], 3 / (1 - p), rtol=1e-6)
    assert y.mean() == pytest.approx(3, rel=0.03)
    keep = Tensor((y != 0).astype(np.float32))
    np.testing.assert_allclose(it.dropout(x, p, keep).numpy(), y, rtol=1e-6)


def test_dropout_of_nothing_and_of_everything():
    from tinygrad import Context, Tensor
    with Context(TRAINING=1):
        assert Tensor([1.0, 2.0]).dropout(0.0).tolist() == [1, 2]
        assert Tensor([1.0, 2.0]).dropout(1.0).tolist() == [0, 0]


def test_many_dropped_networks_average_to_the_whole_one():
    it = lesson(9)
    few, many = it.ensemble((10, 1000))
    assert many < 0.05 and many < few / 4  # 1/√n would be a tenth


def test_weight_decay_is_half_the_guides_penalty():
    from tinygrad import nn
    it = lesson(9)
    loss = it.decayed(lambda p: nn.optim.SGD(p, 0.05), 0.05)
    half, same = (it.decayed(lambda p, d=d: nn.optim.SGD(p, 0.05, weight_decay=d))
                  for d in (0.05, 0.1))
    np.testing.assert_allclose(loss, same, atol=1e-6)
    assert abs(loss - half).max() > 0.01


def test_adams_l2_is_not_weight_decay():
    from tinygrad import nn
    it = lesson(9)
    penalised = it.decayed(lambda p: nn.optim.Adam(p, 0.05), 0.05)
    decoupled = it.decayed(lambda p: nn.optim.AdamW(p, 0.05, weight_decay=0.1))
    assert abs(penalised - decoupled).max() > 0.01
    assert "weight_decay" not in inspect.signature(nn.optim.Adam).parameters


def test_a_gaussian_prior_is_ridge_regression():
    it = lesson(9)
    x, y = it.regression()
    for noise, prior in ((0.5, 0.8), (1.0, 0.1)):
        np.testing.assert_allclose(it.most_probable(x, y, noise, prior),
                                   it.ridge(x, y, noise**2 / prior**2), atol=1e-9)


def test_more_decay_makes_smaller_weights():
    it = lesson(9)
    sizes = [np.linalg.norm(it.ridge(*it.regression(), s)) for s in (0, 1e-4, 1e-2, 1, 100)]
    assert (np.diff(sizes) < 0).all()


def test_batch_norm():
    from tinygrad import Context, Tensor, nn
    it = lesson(9)
    x = np.random.default_rng(0).normal(5, 3, (64, 4)).astype(np.float32)
    mine, theirs = it.BatchNorm(4), nn.BatchNorm(4)
    for _ in range(2):
        with Context(TRAINING=1):
            a, b = mine(Tensor(x), True), theirs(Tensor(x))
            Tensor.realize(a, b, mine.mean, mine.var, theirs.running_mean, theirs.running_var)
    np.testing.assert_allclose(a.numpy().mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(a.numpy().var(0), 1, atol=1e-4)
    np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)
    share = 1 - 0.9**2  # two steps of a tenth, from mean 0 and variance 1
    np.testing.assert_allclose(theirs.running_mean.numpy(), share * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(theirs.running_var.numpy(), 0.81 + share * x.var(0, ddof=1),
                               rtol=1e-4)
    np.testing.assert_allclose(mine.mean.numpy(), theirs.running_mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(mine.var.numpy(), theirs.running_var.numpy(), atol=1e-5)
    later, own = mine(Tensor(x), False).numpy(), theirs(Tensor(x)).numpy()
    np.testing.assert_allclose(later, own, atol=1e-5)
    assert abs(later - a.numpy()).max() > 0.5  # not training, it answers otherwise
    alone = mine(Tensor(x[:1]), False).numpy()
    np.testing.assert_allclose(alone, later[:1], atol=1e-6)  # and does not look at the others
    one, beta = it.BatchNorm(4), Tensor([1.0, 2, 3, 4])
    one.beta = beta
    np.testing.assert_allclose(one(Tensor(x[:1]), True).numpy(), beta.numpy()[None])  # all the same


def test_batch_norm_bears_ten_times_the_rate():
    it = lesson(9)
    plain, normed = (it.at_rate(2.0, norm) for norm in (False, True))
    assert not plain < 2 and normed < 0.1


AUGMENTATIONS = ["flip", "crop, resize", "rotate", "shift", "jitter", "noise"]


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_shape_type_and_range(name, channels):
    it = lesson(9)
    assert list(it.AUGMENTATIONS) == AUGMENTATIONS
    images = np.random.default_rng(0).random((6, channels, 12, 10), dtype=np.float32)
    f = it.AUGMENTATIONS[name]
    new, again, other = (f(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert new.shape == images.shape and new.dtype == np.float32
    assert new.min() >= 0 and new.max() <= 1
    np.testing.assert_array_equal(new, again)
    assert (new != other).any() and (new != images).any()


def test_augmentations_that_undo_or_do_nothing():
    it = lesson(9)
    images = np.random.default_rng(0).random((4, 3, 9, 9), dtype=np.float32)
    rng = np.random.default_rng(0)
    for axis in (2, 3):
        flipped = it.flip(images, rng, 1.0, axis)
        np.testing.assert_array_equal(flipped, np.flip(images, axis))
        np.testing.assert_array_equal(it.flip(flipped, rng, 1.0, axis), images)
    for same in (it.rotate(images, rng, 0), it.crop(images, rng, 1.0), it.shift(images, rng, 0),
                 it.jitter(images, rng, 0), it.noise(images, rng, 0)):
        np.testing.assert_allclose(same, images, atol=1e-5)
    quarter = it.transform(images, np.tile([[0.0, 1], [-1, 0]], (4, 1, 1)), np.zeros((4, 2)))
    np.testing.assert_allclose(quarter, np.rot90(images, 1, (2, 3)), atol=1e-5)
    between = it.transform(images, np.tile(np.eye(2), (4, 1, 1)), np.tile([0.25, 0.5], (4, 1)))
    across = (images[..., :-1] + images[..., 1:]) / 2
    np.testing.assert_allclose(between[..., :-1, :-1],
                               0.75 * across[..., :-1, :] + 0.25 * across[..., 1:, :], atol=1e-5)


def test_augmentation_helps_where_digits_are_few():
    """Smaller than the lesson: 200 digits, judged by the loss, which moves before accuracy does."""
    it = lesson(9)
    plain, moved = (it.regularized(it.METHODS[name], *it.QUICK)
                    for name in ("nothing", "augmentation"))
    assert moved.test_loss < plain.test_loss and moved.train_loss > plain.train_loss


@pytest.mark.slow
def test_what_each_method_does_for_a_thousand_digits():
    it = lesson(9)
    found = {name: it.regularized(method) for name, method in it.METHODS.items()}
    plain = found["nothing"]
    assert found["augmentation"].test_accuracy > plain.test_accuracy + 0.01
    assert found["batch norm"].test_accuracy > plain.test_accuracy
    assert found["dropout 0.4"].test_loss < plain.test_loss
    assert found["early stopping"].test_loss < plain.test_loss
    assert found["early stopping"].epochs < plain.epochs
    assert found["L2, λ = 1e-4"].weights < plain.weights
    assert found["AdamW, decay 0.3"].weights < plain.weights
    assert found["flips (wrong here)"].test_accuracy < plain.test_accuracy - 0.01


# ---- 10: the data sets -------------------------------------------------------------------------

@pytest.mark.pure
def test_iris():
    flowers = guide_data.load("iris")
    assert flowers.features.shape == (150, 4) and flowers.features.dtype == np.float32
    assert np.bincount(flowers.labels).tolist() == [50, 50, 50]
    np.testing.assert_allclose(flowers.features.mean(0), [5.843333, 3.057333, 3.758, 1.199333],
                               atol=1e-5)
    # the two flowers that the copy at UCI has wrong
    np.testing.assert_allclose(flowers.features[[34, 37]],
                               [[4.9, 3.1, 1.5, 0.2], [4.9, 3.6, 1.4, 0.1]], atol=1e-6)
    assert flowers.classes == ("setosa", "versicolor", "virginica")


@pytest.mark.pure
def test_a_damaged_iris_is_noticed(tmp_path, monkeypatch):
    text = (guide_data.HERE / "iris" / "iris.csv").read_text()
    (tmp_path / "iris").mkdir()
    (tmp_path / "iris" / "iris.csv").write_text(text.replace("5.1", "5.2", 1))
    monkeypatch.setattr(guide_data, "HERE", tmp_path)
    with pytest.raises(guide_data.DataError, match=r"SHA-256.*\n.*git checkout"):
        guide_data.iris()
    (tmp_path / "iris.csv").write_text(text.replace("setosa", "rose", 1))
    with pytest.raises(guide_data.DataError, match="four numbers and a species"):
        guide_data.iris(tmp_path)


def test_iris_by_five_folds():
    it = lesson(10)
    rng = np.random.default_rng(0)
    tests = np.concatenate([it.folds(150, 5, rng) for _ in range(4)])
    assert tests.shape == (20, 30)
    assert sorted(tests[:5].ravel()) == list(range(150))  # each flower in exactly one test
    accuracies, _ = it.cross_validate(guide_data.iris(), tests)
    assert 0.94 < accuracies.mean() < 0.99
    assert np.ptp(accuracies) >= 1 / 30  # single tests of 30 differ by whole flowers


def test_the_way_up_from_guessing():
    it = lesson(10)
    digits = guide_data.mnist()
    some = guide_data.Images(digits.train_images[:5000], digits.train_labels[:5000],
                             digits.test_images[:2000], digits.test_labels[:2000])
    accuracies = [step(some) for step in it.STEPS_UP.values()]
    assert accuracies[0] < 0.15 < 0.7 < accuracies[1] < 0.85
    assert accuracies[2] > 0.77
    assert it.header() == bytes.fromhex("00000803 0000ea60 0000001c 0000001c")


@pytest.mark.slow
def test_the_way_up_from_guessing_on_all_of_mnist():
    it = lesson(10)
    guess, mean, linear = (step(guide_data.mnist()) for step in it.STEPS_UP.values())
    assert guess == pytest.approx(0.1135, abs=1e-4) and mean == pytest.approx(0.8203, abs=1e-3)
    assert 0.91 < linear < 0.93


@pytest.mark.pure
def test_the_checksums_name_official_files():
    remotes = [*guide_data.FASHION.values(), guide_data.CIFAR10]
    assert all(len(r.sha256) == 64 and r.size > 0 for r in remotes)
    assert guide_data.FASHION.keys() == guide_data.MNIST_FILES.keys()
    assert guide_data.SETS.keys() == lesson(10).GUIDE.keys()
    with pytest.raises(guide_data.DataError, match="no data set roses; there are mnist, "):
        guide_data.load("roses")


class Cifar:
    """Generated batches in the official formats: 4 samples each."""

    NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)
        self.labels = rng.integers(0, 10, (6, 4), dtype=np.uint8)

    def records(self, i: int) -> bytes:
        return np.concatenate([self.labels[i][:, None], self.images[i].reshape(4, -1)], 1).tobytes()

    def pickled(self, i: int, protocol: int = 2) -> bytes:
        return pickle.dumps({b"batch_label": b"some", b"labels": self.labels[i].tolist(),
                             b"data": self.images[i].reshape(4, -1)}, protocol)

    def archive(self, folder: str = "cifar-10-batches-bin") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for i, name in enumerate(self.NAMES):
                info = tarfile.TarInfo(f"{folder}/{name}.bin")
                info.size = len(self.records(i))
                tar.addfile(info, io.BytesIO(self.records(i)))
        return buffer.getvalue()

    def check(self, data: guide_data.Images) -> None:
        np.testing.assert_array_equal(data.train_images, self.images[:5].reshape(20, 3, 32, 32))
        np.testing.assert_array_equal(data.train_labels, self.labels[:5].ravel())
        np.testing.assert_array_equal(data.test_images, self.images[5])
        np.testing.assert_array_equal(data.test_labels, self.labels[5])
        assert data.classes[:2] == ("airplane", "automobile") and len(data.classes) == 10


@pytest.mark.pure
@pytest.mark.parametrize("layout", [
    "binary", "binary in its folder", "archive", "pickles", "pickles of Python 3"])
def test_cifar_in_every_official_form(layout, tmp_path):
    made = Cifar()
    home = tmp_path / "cifar-10-batches-bin" if "folder" in layout else tmp_path
    home.mkdir(exist_ok=True)
    if layout == "archive":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(made.archive())
    else:
        for i, name in enumerate(made.NAMES):
            if layout.startswith("binary"):
                (home / f"{name}.bin").write_bytes(made.records(i))
            else:
                (home / name).write_bytes(made.pickled(i, 4 if "3" in layout else 2))
    made.check(guide_data.load("cifar10", tmp_path))


@pytest.mark.pure
@pytest.mark.parametrize("name, content, message", [
    ("test_batch.bin", b"", "0 bytes; expected records of 3,073"),
    ("data_batch_2.bin", bytes(3072), "3,072 bytes; expected records"),
    ("data_batch_1.bin", b"\x0a" + bytes(3072), "a label is 10; expected classes 0 to 9"),
    ("data_batch_5.bin", None, "cannot read .*data_batch_5.bin")])
def test_a_bad_cifar_file_says_what_is_wrong(name, content, message, tmp_path):
    made = Cifar()
    for i, good in enumerate(made.NAMES):
        (tmp_path / f"{good}.bin").write_bytes(made.records(i))
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(guide_data.DataError, match=message):
        guide_data.cifar10(tmp_path)


@pytest.mark.pure
def test_no_cifar_and_bad_archives(tmp_path):
    with pytest.raises(guide_data.DataError, match=r"no data_batch_1\.bin.*\n.*six batches"):
        guide_data.cifar10(tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    for content in (b"nothing", Cifar().archive()[:-2000], gzip.compress(b"x" * 3000)):
        path.write_bytes(content)
        with pytest.raises(guide_data.DataError, match=r"damaged or not a \.tar\.gz|has no"):
            guide_data.cifar10(tmp_path)


class Evil:
    """Pickled, it asks its reader to open a file for writing."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.pure
def test_a_pickle_is_read_without_running_it(tmp_path):
    ran = tmp_path / "ran"
    for evil in ({b"data": Evil(ran), b"labels": [1]}, Evil(ran)):
        with pytest.raises(guide_data.DataError, match=r"x is not a batch of CIFAR-10"):
            guide_data.cifar_pickle(pickle.dumps(evil, 2), Path("x"))
        assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran), 2)).close()
    assert ran.exists()  # so an ordinary reader would have
    with pytest.raises(guide_data.DataError, match="ValueError"):
        guide_data.cifar_pickle(b"no pickle", Path("x"))


@pytest.fixture
def server():
    """A server of one file on this machine; it notes what it was asked for, and obeys `broken`."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site = self.server
            start = self.headers.get("Range")
            site.asked.append(start)
            begin = int(start.removeprefix("bytes=").rstrip("-")) if start and site.ranges else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(site.content) - begin))
            self.end_headers()
            self.wfile.write(site.content[begin:site.broken])

        def log_message(self, *_):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.content, site.asked, site.broken, site.ranges = b"", [], None, True
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.shutdown()
    site.server_close()
    thread.join()


def remote(server, content: bytes) -> guide_data.Remote:
    server.content = content
    return guide_data.Remote(f"http://127.0.0.1:{server.server_port}/some.bin", len(content),
                             hashlib.sha256(content).hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return guide_data.cache()


@pytest.mark.pure
def test_a_download_is_checked_and_kept(server, cache):
    file = remote(server, bytes(range(256)) * 3000)
    path = guide_data.fetch(file, "set")
    assert path == cache / "set" / "some.bin" and path.read_bytes() == server.content
    assert guide_data.fetch(file, "set") == path and server.asked == [None]  # asked once
    assert [p.name for p in path.parent.iterdir()] == ["some.bin"]


@pytest.mark.pure
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(ranges, server, cache):
    file = remote(server, np.random.default_rng(0).bytes(700_000))
    server.broken, server.ranges = 300_000, ranges
    with pytest.raises(guide_data.DataError,
                       match=r"broke off|IncompleteRead|300,000 of 700,000 bytes are here"):
        guide_data.fetch(file, "set")
    server.broken = None
    assert guide_data.fetch(file, "set").read_bytes() == server.content
    assert server.asked[0] is None and server.asked[1].startswith("bytes=")
    assert int(server.asked[1][6:-1]) >= 2**18


@pytest.mark.pure
def test_what_is_not_the_file_is_refused(server, cache):
    file = remote(server, b"what should come")
    server.content = b"what really came"
    with pytest.raises(guide_data.DataError, match=r"SHA-256 .*, not .*\nIt was deleted"):
        guide_data.fetch(file, "set")
    assert list((cache / "set").iterdir()) == []
    (cache / "set" / "some.bin").write_bytes(b"put there by hand, wrongly")
    with pytest.raises(guide_data.DataError, match="26 bytes, not 16"):
        guide_data.fetch(file, "set")
    (cache / "set" / "some.bin").write_bytes(b"what should come")
    assert guide_data.fetch(file, "set").exists()


@pytest.mark.pure
def test_offline_it_says_where_to_put_the_file(cache, monkeypatch):
    nobody = guide_data.Remote("http://127.0.0.1:9/cifar-10-binary.tar.gz", 7, "00")
    monkeypatch.setattr(guide_data, "CIFAR10", nobody)
    assert not guide_data.at_hand("cifar10") and guide_data.at_hand("iris")
    with pytest.raises(guide_data.DataError) as error:
        guide_data.cifar10()
    for part in ("cannot download http://127.0.0.1:9/", "0 of 7 bytes are here", "save it as",
                 str(cache / "cifar10" / "cifar-10-binary.tar.gz")):
        assert part in str(error.value)


@pytest.mark.pure
def test_cifar_is_downloaded_once_and_read(server, cache, monkeypatch):
    made = Cifar()
    file = remote(server, made.archive())
    file = replace(file, url=file.url.replace("some.bin", "cifar-10-binary.tar.gz"))
    monkeypatch.setattr(guide_data, "CIFAR10", file)
    made.check(guide_data.load("cifar10"))
    assert guide_data.at_hand("cifar10")
    made.check(guide_data.load("cifar10"))
    assert len(server.asked) == 1


@pytest.mark.pure
def test_fashion_mnist_from_its_own_files(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"train": 5, "test": 3}
    for field, (name, inner, _) in guide_data.MNIST_FILES.items():
        split, kind = field.split("_")
        array = (rng.integers(0, 256, (sizes[split], *inner), dtype=np.uint8) if kind == "images"
                 else rng.integers(0, 10, sizes[split], dtype=np.uint8))
        header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4) for n in array.shape)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    data = guide_data.load("fashion-mnist", tmp_path)
    assert data.train_images.shape == (5, 28, 28) and data.test_labels.shape == (3,)
    assert data.classes[9] == "ankle boot" and len(data.classes) == 10
