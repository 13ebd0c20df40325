"""The guide's lessons: examples/NN_name.py. The facts are asserted, not the printing.

tests/checklist.md says which test holds which numbered fact of the guide. Here are lessons 0 to 4,
and what holds for every lesson; the others are in test_lessons_05_to_10.py, .._08_to_15.py.
"""

import importlib
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

LESSONS = sorted(path.stem for path in EXAMPLES.glob("[0-9][0-9]_*.py"))


def lesson(number: int) -> ModuleType:
    """The lesson as a module: its name starts with a digit, so `import` cannot say it."""
    (name,) = (name for name in LESSONS if name.startswith(f"{number:02}_"))
    return importlib.import_module(name)


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_runs_and_draws(name, tmp_path, monkeypatch, capsys):
    """The quick form, in this process: it tells the guide beside the measured, and draws."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--out", str(tmp_path)])
    importlib.import_module(name).main()
    told = capsys.readouterr().out
    assert "the guide" in told and "measured here" in told and "nan" not in told.split("⚠")[0]
    drawn = sorted(tmp_path.iterdir())
    assert name in [path.stem for path in drawn] and all(p.suffix == ".svg" for p in drawn)
    for path in drawn:
        root = ET.fromstring(path.read_text())
        wide, high = float(root.get("width")), float(root.get("height"))
        assert root.find("{*}title").text
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 <= float(text.get("x")) <= wide and 0 <= float(text.get("y")) <= high
            assert "nan" not in (text.text or "")


def test_the_course_lists_the_lessons_that_exist_and_their_pictures():
    text = (EXAMPLES / "README.md").read_text()
    for name in LESSONS:
        assert f"({name}.py)" in text and f"(pictures/{name}.svg)" in text
        assert (EXAMPLES / "pictures" / f"{name}.svg").exists()


def test_a_lesson_can_itself_be_traced(capsys):
    """It ends by tracing itself, and of traces there is one at a time."""
    from guide_lesson import Lesson
    from tinygrad import Tensor

    import tgx
    told = Lesson("02_neuron_numpy", "A lesson", [])
    with tgx.trace() as t:
        told.kernels(lambda: (Tensor([1.0, 2.0]).realize() + 1).realize())
    assert t.kernels and "in that trace" in capsys.readouterr().out
    told.kernels(lambda: (Tensor([1.0, 2.0]).realize() + 1).realize())
    assert "1 kernels. More: tgx trace -o DIR" in capsys.readouterr().out


def test_the_checklist_names_every_row_once_and_only_tests_that_exist():
    text = (ROOT / "tests" / "checklist.md").read_text()
    covered, missing = text.split("## Without a test, and why")
    rows = re.findall(r"^\| (\d+) \| .+? \| (.+) \|$", covered, re.M)
    seen = [int(number) for number, _ in rows]
    for ranges in re.findall(r"^\| ([\d, -]+) \| .+ \|$", missing, re.M):
        for part in ranges.split(", "):
            first, _, last = part.partition("-")
            seen += range(int(first), int(last or first) + 1)
    assert sorted(seen) == [*range(1, 173), *range(176, 184)]
    for number, tests in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named, f"row {number} names no test"
        for file, test in named:
            path = ROOT / "tests" / file
            assert path.exists() and f"def {test}(" in path.read_text(), f"row {number}: {test}"


# ---- 0: what learning is -----------------------------------------------------------------------

def test_and_by_rule_and_by_examples():
    it = lesson(0)
    w, b, mistakes = it.learnt_and()
    assert [it.rule_and(*map(int, x)) for x in it.BITS] == [0, 0, 0, 1]
    assert [int(w @ x + b > 0) for x in it.BITS] == [0, 0, 0, 1]
    assert mistakes[0] > 0 and mistakes[-1] == 0


def test_supervised_learning_beats_chance_on_unseen_points():
    it, rng = lesson(0), np.random.default_rng(1)
    weight, bias = it.supervised(*it.blobs(300, rng), 40).numbers()
    unseen, expected = it.blobs(300, rng)
    assert ((unseen @ weight.T + bias).argmax(1) == expected).mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_k_means_recovers_three_blobs(seed):
    it, rng = lesson(0), np.random.default_rng(seed)
    points, labels = it.blobs(300, rng)
    centres, groups = it.k_means(points, 3, rng)
    assert it.purity(groups, labels) >= 0.95
    assert it.purity(rng.permutation(groups), labels) < 0.5  # the measure itself tells
    for centre in it.CENTRES:
        assert np.linalg.norm(centres - centre, axis=1).min() < 0.15


def test_the_bandit_finds_the_best_arm():
    it = lesson(0)
    share = [(it.bandit(2000, np.random.default_rng(seed))[1000:] == 4).mean() for seed in range(5)]
    assert np.mean(share) > 0.9 and max(share) < 0.95  # it goes on exploring
    chosen = it.bandit(2000, np.random.default_rng(0))
    assert it.PAYS[chosen[-500:]].mean() > it.PAYS[chosen[:20]].mean()


def test_one_hidden_layer_fits_the_sine_and_width_helps():
    it = lesson(0)
    errors = [it.fit_sine(width, 250)[0] for width in (1, 16)]
    assert errors[1] < 1e-3 < errors[0]


def test_what_each_family_of_networks_sees():
    it = lesson(0)
    facts = it.families()
    assert facts["order"] > 0.1 and facts["shuffled"] < 1e-12 and facts["renumbered"] < 1e-12
    assert len(it.FAMILIES) == 5 and len(it.BRAIN) == 5


# ---- 1: the neuron and its activations -----------------------------------------------------------

def test_the_tumour_neuron():
    it = lesson(1)
    z, a = it.tumour(3.5, 45)
    assert z == pytest.approx(0.8 * 3.5 + 0.3 * 45 - 2) == pytest.approx(14.3, abs=1e-6)
    assert a == pytest.approx(0.99999938, abs=1e-8) and 1 - a == pytest.approx(6.2e-7, rel=0.01)
    assert it.sigmoid(9.21) == pytest.approx(0.9999, abs=1e-6)  # what the guide's number would be
    healthy, alarm = it.tumour(0, 45)
    assert healthy == pytest.approx(11.5) and alarm > 0.9999


def test_the_bias_moves_the_boundary():
    it = lesson(1)
    assert all(it.boundary(w, 0) == 0 and it.sigmoid(w * 0) == 0.5 for w in (-3.0, 0.1, 7.0))
    x = it.boundary(2, -6)
    assert x == 3 and it.sigmoid(it.weighted_sum([x], [2], -6)) == 0.5


def test_activations_have_the_values_ranges_and_slopes_they_are_said_to_have():
    it = lesson(1)
    z = np.linspace(-9.95, 10.05, 201)  # never at a corner
    for name, (f, df, _, bounds, _) in it.ACTIVATIONS.items():
        np.testing.assert_allclose(df(z), it.slope(f, z), atol=1e-8, err_msg=name)
        low, high = (float(b.strip("()[]").replace("∞", "inf")) for b in bounds.split(","))
        assert low - 0.005 <= f(z).min() and f(z).max() <= high, name
    s, ds, *_ = it.ACTIVATIONS["sigmoid"]
    assert s(0) == 0.5 and ds(0.0) == 0.25 == max(ds(np.linspace(-5, 5, 1001)))
    np.testing.assert_allclose(s(-z), 1 - s(z), atol=1e-15)
    assert ds(10.0) == pytest.approx(4.54e-5, rel=1e-3)
    t, dt, *_ = it.ACTIVATIONS["tanh"]
    np.testing.assert_allclose(t(z), 2 * s(2 * z) - 1, atol=1e-14)
    np.testing.assert_allclose(t(-z), -t(z))
    assert dt(5.0) == pytest.approx(1.82e-4, abs=5e-7) and t(0) == 0
    assert np.isfinite(s(np.array([-1000.0, 1000.0]))).all()


def test_three_gelus():
    it = lesson(1)
    exact, form, quick = (it.ACTIVATIONS[name][0] for name in list(it.ACTIVATIONS)[4:])
    assert [round(float(f(np.array(1.0))), 6) for f in (exact, form, quick)] == [
        0.841345, 0.841192, 0.845796]
    z = np.linspace(-6, 6, 12001)
    assert abs(quick(z) - exact(z)).max() == pytest.approx(0.0203, abs=1e-4)
    assert abs(z[abs(quick(z) - exact(z)).argmax()]) == pytest.approx(2.27, abs=0.01)
    assert abs(form(z) - exact(z)).max() == pytest.approx(4.7e-4, abs=1e-5)
    assert z[exact(z).argmin()] == pytest.approx(-0.75, abs=0.01)


def test_tinygrad_has_the_same_activations():
    it = lesson(1)
    assert len(it.ACTIVATIONS) == 7
    apart = it.compare_with_tinygrad(np.array([-5.0, -2.27, -0.75, -0.1, 0.1, 1, 2, 5]))
    assert all(value < 1e-6 and slope < 5e-6 for value, slope in apart.values()), apart


def test_at_zero_tinygrad_chooses():
    from tinygrad import Tensor
    x = Tensor([0.0])
    assert x.relu().sum().gradient(x)[0].item() == 0
    assert x.leaky_relu().sum().gradient(x)[0].item() == 1


def test_softmax():
    it = lesson(1)
    z = np.array([[2.0, 1.0, 0.1], [-3.0, 5.0, 5.5]])
    p = it.softmax(z)
    np.testing.assert_allclose(p.sum(-1), 1)
    assert (p > 0).all() and (p.argsort() == z.argsort()).all()
    np.testing.assert_allclose(it.softmax(z + 1000), p)
    np.testing.assert_allclose(it.softmax(np.array([0.3, 1.5]))[1], it.sigmoid(1.2))
    steps = [(it.softmax(z[0] + h) - it.softmax(z[0] - h)) / 2e-6 for h in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(np.diag(p[0]) - np.outer(p[0], p[0]), steps, atol=1e-9)


def test_a_dead_relu_stays_dead_and_a_leaky_one_recovers():
    from tinygrad import Tensor
    it = lesson(1)
    answers = 2 * np.linspace(0, 1, 16) + 1
    first, error = it.train_stuck(Tensor.relu, 20)
    assert first == 0 and error == pytest.approx((answers**2).mean(), rel=1e-6)
    first, error = it.train_stuck(Tensor.leaky_relu)
    assert first > 0 and error < 0.05


def test_which_activation_for_which_layer():
    it = lesson(1)
    assert it.recommend("regression output") == "none" and "ReLU" in it.recommend("hidden")
    rng, (h, c) = np.random.default_rng(0), (np.zeros(3), np.zeros(3))
    weights = rng.normal(size=(5, 12))
    for _ in range(50):
        h, c = it.lstm_cell(np.ones(2), h, c, weights)
        assert (abs(h) < 1).all()


def test_layers():
    it = lesson(1)
    rng = np.random.default_rng(0)
    assert it.layer_equals_neurons(rng) < 1e-12
    flat, bent = it.collapse(rng)
    assert flat < 1e-12 and bent > 0.1
    assert sum(it.parameters(3, 4, 4, 2)) == 46
    assert it.parameters(784, 256, 128, 10) == [200_960, 32_896, 1_290]  # the guide: 201,216
    assert sum(it.parameters(784, 256, 128, 10)) == 235_146  # the guide: 235,402


def test_the_forward_pass_by_the_guides_names():
    from tinygrad import Tensor, nn
    it = lesson(1)
    model = it.MLP(3, 4, 4, 2)
    values = model.forward(Tensor([[0.5, -1.0, 2.0]]))
    assert [(name, value.shape) for name, value in values.items()] == [
        ("z1", (1, 4)), ("a1", (1, 4)), ("z2", (1, 4)), ("a2", (1, 4)), ("z3", (1, 2)),
        ("output", (1, 2))]
    assert values["output"].numpy().sum() == pytest.approx(1)
    assert sum(t.numel() for t in nn.state.get_parameters(model)) == 46


# ---- 2, Project 1: a neuron in NumPy -------------------------------------------------------------

@pytest.mark.parametrize("model", ["Neuron", "TwoLayers"])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_by_hand_equal_finite_differences(model, seed):
    it = lesson(2)
    rng = np.random.default_rng(seed)
    net = getattr(it, model)(rng)
    x, y = rng.normal(size=(7, 2)), rng.integers(0, 2, 7).astype(float)
    before = [p.copy() for p in net.parameters()]
    assert it.gradient_error(net, x, y) < 1e-9
    assert sum(p.size for p in before) == {"Neuron": 3, "TwoLayers": 9}[model]
    for old, new in zip(before, net.parameters(), strict=True):  # the check puts back what it moved
        np.testing.assert_array_equal(old, new)


def test_one_neuron_learns_and_and_or():
    it = lesson(2)
    for task in ("AND", "OR"):
        neuron = it.Neuron(np.random.default_rng(0))
        losses = it.train(neuron, task, 500, rate=1.0)
        assert it.accuracy(neuron, task) == 1 and losses[-1] < 0.1 < losses[0]
    assert it.with_tinygrad(neuron, "OR") < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_one_neuron_cannot_learn_xor(seed):
    it = lesson(2)
    neuron = it.Neuron(np.random.default_rng(seed))
    losses = it.train(neuron, "XOR", 2000, rate=1.0)
    assert losses[-1] == pytest.approx(np.log(2), abs=1e-6) and min(losses) >= np.log(2) - 1e-12
    np.testing.assert_allclose(neuron.forward(it.X), 0.5, atol=1e-3)
    assert it.accuracy(neuron, "XOR") <= 0.75
    rng = np.random.default_rng(seed)
    assert [it.best_line(task, 20_000, rng) for task in it.TASKS] == [1, 1, 0.75]


def test_two_hidden_neurons_learn_xor():
    it = lesson(2)
    network = it.TwoLayers(np.random.default_rng(next(
        seed for seed in range(10)
        if it.train(n := it.TwoLayers(np.random.default_rng(seed)), "XOR", 2000, 1.0)
        and it.accuracy(n, "XOR") == 1)))
    losses = it.train(network, "XOR", 2000, rate=1.0)
    assert it.accuracy(network, "XOR") == 1 and losses[-1] < 0.01


# ---- 3: micrograd ------------------------------------------------------------------------------

MICROGRAD_CHECKS = [
    "a + b", "a * b", "a - b", "a / b", "a ** 3", "a ** -0.5", "-a", "2 + a", "2 - a", "2 * a",
    "2 / a", "a / 2", "relu(a), a > 0", "relu(a), a < 0", "tanh(a)", "exp(a)", "log(a)", "sin(a)",
    "(a + a)²", "sin(a·b)·tanh(a - b)"]


@pytest.mark.parametrize("name", MICROGRAD_CHECKS)
def test_every_operation_of_micrograd(name):
    it = lesson(3)
    assert list(it.CHECKS) == MICROGRAD_CHECKS
    f, at = it.CHECKS[name]
    assert it.gradient_check(f, *at) < 1e-8
    value = eval(name.split(",")[0].replace("(a + a)²", "(a+a)**2").replace("·", "*"),
                 {"relu": lambda a: max(a, 0), "tanh": np.tanh, "exp": np.exp, "log": np.log,
                  "sin": np.sin} | dict(zip("ab", at, strict=False)))
    assert f(*map(it.Value, at)).data == pytest.approx(value, rel=1e-12)


def test_topological_order_and_accumulation():
    it = lesson(3)
    a = it.Value(2.0)
    b = a + a
    c = b * b
    order = it.in_order(c)
    assert order == [a, b, c]
    assert all(order.index(p) < order.index(v) for v in order for p in v.parents)
    c.backward()
    assert a.grad == 16
    c.backward()  # gradients add up until somebody sets them to zero
    assert a.grad == 32
    deep = a
    for _ in range(5000):
        deep = deep + 1
    deep.backward()
    assert a.grad == 33


def test_the_deep_dives_examples():
    it = lesson(3)
    f, x = it.example()
    assert (f.data, x.grad) == pytest.approx((11.568331, 7.596003), abs=1e-6)
    assert it.with_tinygrad() == pytest.approx((f.data, x.grad), rel=1e-6)
    y, v = it.tanh_neuron()
    assert y.data == pytest.approx(-0.99991, abs=1e-6)
    assert [v[n].grad for n in "xwb"] == pytest.approx([-5.447e-4, 3.632e-4, 1.816e-4], rel=1e-3)


def test_micrograd_learns_xor():
    it = lesson(3)
    for seed in range(2):
        net, losses, right = it.learn_xor(seed, 600)
        assert len(net.parameters()) == 17
        assert right[-1] and losses[-1] < 0.02 < losses[0]


def test_batch_norm_on_single_numbers():
    it = lesson(3)
    running = {"mean": 0.0, "var": 1.0}
    numbers = np.array([1.0, 2.0, 4.0, 9.0])

    def normal(training, *values):
        return it.batch_norm(list(values), it.Value(1.0), it.Value(0.0), dict(running), training)

    out = np.array([o.data for o in normal(True, *map(it.Value, numbers))])
    np.testing.assert_allclose(
        out, (numbers - numbers.mean()) / np.sqrt(numbers.var() + 1e-5))
    # the mean and variance are part of the graph: what the first output does to all the inputs
    assert it.gradient_check(lambda *v: normal(True, *v)[0] ** 2, *numbers) < 1e-7
    assert [o.data for o in normal(False, it.Value(3.0))] == pytest.approx([3.0], rel=1e-4)
    it.batch_norm(list(map(it.Value, numbers)), it.Value(1.0), it.Value(0.0), running, True)
    assert running == pytest.approx({"mean": 0.4, "var": 0.9 + 0.1 * numbers.var(ddof=1)})


def test_a_vector_of_values_and_the_graph_in_dot():
    it = lesson(3)
    u = it.Vector([1.0, -2.0, 3.0])
    u.relu().dot(it.Vector([4.0, 5.0, 6.0])).backward()
    assert u.grad == [4, 0, 6]
    x, y = it.Value(1.5, "x"), it.Value(0.5, "y")
    f = (x**2 + y) * (x - y).tanh()
    f.backward()
    text, order = it.dot(f), it.in_order(f)
    assert text == it.dot(f) and text.startswith("digraph {")
    assert text.count("label=") == len(order)
    assert text.count("->") == sum(len(v.parents) for v in order)
    assert f"x\\n1.5\\ngrad {x.grad:.4g}" in text


# ---- 4: losses, backpropagation, vanishing and exploding -----------------------------------------

def test_losses():
    from tinygrad import Tensor
    it, rng = lesson(4), np.random.default_rng(0)
    y, guess = rng.normal(size=(2, 5))
    assert it.mse(y, y) == 0 < it.mse(y, guess)
    steps = [(it.mse(y, guess + h) - it.mse(y, guess - h)) / 2e-6 for h in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(steps, 2 * (guess - y) / 5, atol=1e-8)
    no = np.zeros(1)
    assert it.bce(no, 0.99) == pytest.approx(4.60517, abs=1e-5)
    assert it.bce(no, 0.5) == pytest.approx(0.693147, abs=1e-6)
    assert it.bce(no, 0.01) == pytest.approx(0.01005, abs=1e-5)
    assert it.cce(np.eye(10), np.full((10, 10), 0.1)) == pytest.approx(np.log(10))
    p, yes = rng.uniform(0.1, 0.9, 6), rng.integers(0, 2, 6).astype(float)
    assert it.bce(yes, p) == pytest.approx(  # two classes: the same thing
        it.cce(np.stack([1 - yes, yes], 1), np.stack([1 - p, p], 1)))
    z = rng.normal(size=(6, 4)).astype(np.float32)
    classes = rng.integers(0, 4, 6).astype(np.int32)
    one_hot = np.eye(4, dtype=np.float32)[classes]
    mine = it.cce(one_hot, it.softmax(z))
    t = Tensor(z).realize()
    by_class = t.sparse_categorical_crossentropy(Tensor(classes))
    (gradient,) = by_class.gradient(t)
    np.testing.assert_allclose([by_class.item(), t.cross_entropy(Tensor(one_hot)).item()],
                               mine, rtol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), (it.softmax(z) - one_hot) / 6, atol=1e-6)
    wide = Tensor([-200.0, 3.0, 200.0])
    assert np.isfinite(wide.binary_crossentropy_logits(Tensor([1.0, 1.0, 0.0])).item())


def test_cross_entropy_is_maximum_likelihood():
    it = lesson(4)
    truth, rng = np.array([0.5, 0.3, 0.2]), np.random.default_rng(0)
    best = -(truth * np.log(truth)).sum()
    for model in rng.dirichlet(np.ones(3), 200):
        entropy, divergence = it.entropy_and_divergence(truth, model)
        assert -(truth * np.log(model)).sum() == pytest.approx(entropy + divergence)
        assert entropy == pytest.approx(best) and divergence > 0
    assert it.entropy_and_divergence(truth, truth)[1] == 0


def test_a_lower_loss_may_be_right_less_often():
    careful, bold = lesson(4).confident_and_right().values()
    assert bold[0] < careful[0] and bold[1] < careful[1]


@pytest.mark.parametrize("right", [0, 1])
def test_log_of_softmax_is_nan_where_logits_stay_finite(right):
    it = lesson(4)
    fine = it.gap(10.0, right)
    np.testing.assert_allclose(fine["guide"], fine["logits"], atol=1e-4)
    for size in (104.0, 200.0):
        found = it.gap(size, right)
        assert not np.isfinite(found["guide"]).any(), "the guide's loss, and both its gradients"
        assert found["logits"] == pytest.approx([0, 0, 0] if right == 0 else [size, 1, -1])
    assert not np.isfinite(it.gap(100.0, 1)["guide"][1:]).any()  # the gradient goes first


def test_the_guides_autograd_examples():
    from tinygrad import Tensor
    it = lesson(4)
    assert it.guide_example() == {"z": 7, "loss": 49, "dw": 28, "dx": 42, "db": 14}
    with pytest.raises(TypeError, match="requires_grad"):
        Tensor([2.0], requires_grad=True)
    x = Tensor([2.0])
    assert (3 * x + 1).square().sum().gradient(x)[0].item() == 42
    y = x * x
    z = (y + x).sum()
    z.backward()
    assert (x.grad.item(), y.grad.item(), z.grad.item()) == (5, 1, 1)
    assert "5" not in str(x.grad)  # printing shows no number
    a = Tensor([2.0])
    assert (a + a).square().sum().gradient(a)[0].item() == 16


def test_gradients_accumulate_until_they_are_cleared():
    from tinygrad import Tensor, nn
    w = Tensor([2.0])
    optimizer = nn.optim.SGD([w], lr=0.1)
    (3 * w).square().sum().backward()
    assert w.grad.item() == 36
    (3 * w).square().sum().backward()
    assert w.grad.item() == 72
    optimizer.zero_grad()
    assert w.grad is None


def test_one_layer_backward_by_hand_equals_autograd():
    it, rng = lesson(4), np.random.default_rng(3)
    x, w, b, y = (rng.normal(size=s) for s in ((8, 3), (3, 4), (4,), (8, 4)))
    mine, theirs = it.one_layer_by_hand(x, w, b, y), it.one_layer_by_tinygrad(x, w, b, y)
    assert list(mine) == list(theirs) == ["w", "b", "x"]
    for name in mine:
        np.testing.assert_allclose(theirs[name], mine[name], atol=1e-6)


def test_three_layers_six_gradients_equal_finite_differences():
    it = lesson(4)
    network = it.three_layers(np.random.default_rng(1))
    pairs = list(zip(it.network_by_tinygrad(*network), it.by_finite_differences(*network),
                     strict=True))
    assert len(pairs) == 6
    for autograd, differences in pairs:
        np.testing.assert_allclose(autograd, differences, atol=1e-5)


def test_a_small_step_helps_and_a_large_one_may_not():
    it = lesson(4)
    assert it.step_size(0.01) < 0 < it.step_size(100)


def test_what_the_way_back_needs():
    it = lesson(4)
    kept = {name: it.kept_for_the_way_back(name) for name in it.KEPT}
    assert kept == {"x + 1": "nothing", "x · x": "its input", "exp2(x)": "its output",
                    "sin(x)": "its input", "relu(x)": "its input", "sum(x)": "nothing"}
    graph = it.graph_of_a_network()
    assert (graph["REDUCE"], graph["WHERE"]) == (3, 1)  # two matmuls and a mean; a ReLU


def test_vanishing_gradients_and_their_cures():
    it = lesson(4)
    kept = {}
    for name, options in it.DEEP.items():
        norms = it.norms(it.gradients_of_deep(**options))
        kept[name] = norms[0] / norms[-1]
    assert pytest.approx(9.5e-7, rel=0.01) == 0.25**10
    assert kept["sigmoid"] < 1e-5
    assert all(ratio > 0.01 for name, ratio in kept.items() if name != "sigmoid"), kept
    plain, half, big = (it.norms(it.gradients_of_deep("tanh", gain=g)) for g in (1, 0.5, 5))
    assert half[0] < plain[0] / 100  # tanh vanishes with smaller weights,
    assert big[0] > 10 * big[-1]     # and saturated by large ones it still explodes


@pytest.mark.parametrize("options", [
    {"activation": "sigmoid", "residual": False, "norm": True},
    {"activation": "tanh", "residual": True, "norm": False}])
def test_deep_gradients_by_hand_equal_tinygrads(options):
    it = lesson(4)
    mine = it.gradients_of_deep(**options, depth=3, width=8)
    for hand, auto in zip(
            mine, it.deep_by_tinygrad(**options, depth=3, gain=1.0, width=8), strict=True):
        np.testing.assert_allclose(auto, hand, atol=2e-5)


def test_exploding_gradients_and_their_cures():
    it = lesson(4)
    wild = it.gradients_of_deep("relu", depth=20, gain=3 * np.sqrt(2))
    tame = it.gradients_of_deep("relu", depth=20, gain=np.sqrt(2))
    assert it.length(wild) > 1e6 and 0.1 < it.length(tame) < 100
    clipped = it.clip(wild, 1.0)
    assert it.length(clipped) == pytest.approx(1.0)
    np.testing.assert_allclose(clipped[3] * it.length(wild), wild[3])  # the direction stays
    same = it.clip([np.array([0.3, 0.4])], 1.0)
    assert same[0].tolist() == [0.3, 0.4]


def test_how_to_start():
    it = lesson(4)
    assert it.kaiming(256, 10) == np.sqrt(2 / 256) and it.glorot(6, 4) == np.sqrt(2 / 10)
    ends = {name: it.signal(std)[-1] for name, std in it.STARTS.items()}
    assert [0.5 < ends[name] < 2 for name in it.STARTS] == [True, False, False, False]
    assert it.start_from(0.1) < 1e-6 and it.start_from(0.0) == 0 and it.start_from(None) > 0.1


def test_the_guides_linear_starts_too_large():
    it = lesson(4)
    assert it.first_loss(False) == pytest.approx(np.log(10), abs=0.1)
    assert 4.5 < it.first_loss(True) < 8
