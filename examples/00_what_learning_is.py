"""Lesson 0: what learning is

    python examples/00_what_learning_is.py [--quick] [--out DIR]

Guide, sections 1 to 3. Classical programming: somebody writes the rules. Machine learning: the
rules are numbers, and examples set them. Three kinds of learning, each in a few lines that run:

    supervised       here are questions with their answers      a classifier
    unsupervised     here are questions                         k-means
    reinforcement    try something, and see what it pays        a bandit
"""

import numpy as np
from guide_lesson import Chart, Lesson, Picture, legend, table, words
from tinygrad import Context, Tensor, TinyJit, nn

CENTRES = np.array([[-1.5, 0.8], [0.4, 1.2], [1.3, -0.9]])
FAMILIES = (  # what the guide lists, and the smallest form of each kind of network
    ("images, video", "CNN", "a small window slides over the picture: examples/mnist.py"),
    ("text, sequences", "RNN, Transformer", "one cell for every step; or each word looks at all"),
    ("audio", "CNN + Transformer", "windows over time, then attention"),
    ("tables", "MLP", "layers of plain neurons: lessons 1 to 4"),
    ("graphs", "GNN", "each node averages its neighbours"),
)
BRAIN = (  # the guide's table of section 3
    ("dendrites", "inputs x₁ … xₙ"), ("synaptic weights", "weights w₁ … wₙ"),
    ("cell body sums up", "z = Σ wᵢxᵢ + b"), ("firing threshold", "activation a = f(z)"),
    ("axon", "output a"),
)


# ---- rules against examples --------------------------------------------------------------------

BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)


def rule_and(a: int, b: int) -> int:
    """Classical programming: a person knows the rule, and writes it down."""
    return 1 if a == 1 and b == 1 else 0


def learnt_and(steps: int = 20) -> tuple[np.ndarray, float, list[int]]:
    """Rosenblatt's perceptron (1958): start knowing nothing; wrong? move towards the answer.

    Weights, bias, and the number of mistakes in each round through the four examples.
    """
    w, b, mistakes = np.zeros(2), 0.0, []
    for _ in range(steps):
        wrong = 0
        for x, answer in zip(BITS, [0, 0, 0, 1], strict=True):
            error = answer - int(w @ x + b > 0)
            w, b, wrong = w + error * x, b + error, wrong + abs(error)
        mistakes.append(wrong)
    return w, b, mistakes


# ---- three kinds of learning -------------------------------------------------------------------

def blobs(samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points round three centres, and which centre each belongs to."""
    labels = np.arange(samples) % len(CENTRES)
    return CENTRES[labels] + 0.35 * rng.normal(size=(samples, 2)), labels


class Classifier:
    """Supervised: two numbers in, three scores out; one linear layer, learnt by its gradient."""

    def __init__(self) -> None:
        self.layer = nn.Linear(2, 3)
        self.optimizer = nn.optim.SGD(nn.state.get_parameters(self.layer), lr=0.5)

    @Context(TRAINING=1)
    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.layer(x).sparse_categorical_crossentropy(labels).backward()
        return loss.realize(*self.optimizer.schedule_step())

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        return self.layer.weight.numpy(), self.layer.bias.numpy()


def supervised(points: np.ndarray, labels: np.ndarray, steps: int) -> Classifier:
    Tensor.manual_seed(0)
    model = Classifier()
    step = TinyJit(model.step)
    x, y = Tensor(points.astype(np.float32)).realize(), Tensor(labels.astype(np.int32)).realize()
    for _ in range(steps):
        step(x, y)
    return model


def k_means(points: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unsupervised: nobody says which group a point is in. Centres, and each point's group.

    Each point joins the nearest centre, each centre moves to the middle of its points, until
    nothing moves. The first centres are points far from those already chosen (k-means++), and of
    five attempts the tightest counts: from one bad start it may settle on bad groups.
    """
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for _ in range(5):
        centres = points[rng.integers(len(points))][None]
        while len(centres) < k:
            far = ((points[:, None] - centres) ** 2).sum(-1).min(1)
            centres = np.vstack([centres, points[rng.choice(len(points), p=far / far.sum())]])
        while True:
            distance = ((points[:, None] - centres) ** 2).sum(-1)
            group = distance.argmin(1)
            moved = np.array([points[group == i].mean(0) if (group == i).any() else centres[i]
                              for i in range(k)])
            if np.allclose(moved, centres):
                break
            centres = moved
        spread = distance.min(1).sum()
        if best is None or spread < best[0]:
            best = spread, centres, group
    return best[1], best[2]


def purity(groups: np.ndarray, labels: np.ndarray) -> float:
    """How much of the data lies in a group whose most frequent true label is its own."""
    return sum(np.bincount(labels[groups == g]).max() for g in np.unique(groups)) / len(labels)


PAYS = np.array([0.2, 0.35, 0.5, 0.65, 0.9])  # how likely each arm pays 1; the agent is not told


def bandit(pulls: int, rng: np.random.Generator, curious: float = 0.1) -> np.ndarray:
    """Reinforcement: which arm was pulled each time.

    Mostly the arm that has paid best so far; one time in ten any arm, else a bad first impression
    would last for ever.
    """
    paid, tried = np.zeros(len(PAYS)), np.zeros(len(PAYS))
    chosen = np.empty(pulls, dtype=int)
    for t in range(pulls):
        unknown = np.flatnonzero(tried == 0)
        if len(unknown):
            arm = unknown[0]
        elif rng.random() < curious:
            arm = rng.integers(len(PAYS))
        else:
            arm = int((paid / tried).argmax())
        tried[arm] += 1
        paid[arm] += rng.random() < PAYS[arm]
        chosen[t] = arm
    return chosen


# ---- "arbitrary complex mappings" --------------------------------------------------------------

def fit_sine(width: int, steps: int) -> tuple[float, np.ndarray, np.ndarray]:
    """One hidden layer of `width` tanh neurons learns sin(x) from 64 examples.

    The squared error, x, and its answers.
    """
    Tensor.manual_seed(1)
    x = np.linspace(-np.pi, np.pi, 64, dtype=np.float32)[:, None]
    hidden, out = nn.Linear(1, width), nn.Linear(width, 1)
    optimizer = nn.optim.Adam(nn.state.get_parameters([hidden, out]), lr=0.03)
    inputs, answers = Tensor(x).realize(), Tensor(np.sin(x)).realize()

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = (out(hidden(inputs).tanh()) - answers).square().mean().backward()
        return loss.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    found = out(hidden(inputs).tanh()).numpy()
    return float(((found - np.sin(x)) ** 2).mean()), x[:, 0], found[:, 0]


# ---- the networks the guide names, each as small as it gets --------------------------------------

def rnn_cell(x: np.ndarray, state: np.ndarray, wx: np.ndarray, wh: np.ndarray) -> np.ndarray:
    """Text, sequences: the same weights at every step; the state is what it remembers."""
    return np.tanh(x @ wx + state @ wh)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Transformer: each position takes a weighted mean of all values, more where q and k agree."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


def graph_conv(adjacent: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Graphs: each node averages itself and its neighbours, then one layer that all nodes share."""
    linked = adjacent + np.eye(len(adjacent))
    return np.maximum(linked / linked.sum(1, keepdims=True) @ x @ w, 0)


def families() -> dict[str, float]:
    """What each of these sees, and what it cannot see."""
    rng = np.random.default_rng(0)
    wx, wh, first, second = rng.normal(size=(2, 3)), rng.normal(size=(3, 3)), *np.eye(2)
    states = []
    for order in ((first, second), (second, first)):
        state = np.zeros(3)
        for x in order:
            state = rnn_cell(x, state, wx, wh)
        states.append(state)
    tokens, shuffle = rng.normal(size=(5, 4)), rng.permutation(5)
    straight = attention(tokens, tokens, tokens)
    mixed = attention(tokens, tokens[shuffle], tokens[shuffle])
    adjacent = np.triu(rng.random((5, 5)) < 0.5, 1).astype(float)
    adjacent, w = adjacent + adjacent.T, rng.normal(size=(4, 3))
    nodes = graph_conv(adjacent, tokens, w)[shuffle]
    again = graph_conv(adjacent[shuffle][:, shuffle], tokens[shuffle], w)
    return {"order": abs(states[0] - states[1]).max(), "shuffled": abs(straight - mixed).max(),
            "renumbered": abs(nodes - again).max()}


# ---- the lesson --------------------------------------------------------------------------------

def draw(points, labels, weight, bias, centres, groups, chosen, sine) -> str:
    page = Picture("Three kinds of learning, and what one hidden layer can do", 1080, 330,
                   "a classifier, k-means, a bandit, and a network that learnt the sine")
    colours = ("blue", "orange", "green")
    wide, high = {"x": (-3, 2.6), "xticks": (-2, 0, 2)}, {"y": (-2.2, 2.4), "yticks": (-2, 0, 2)}
    chart = Chart(page, (46, 86, 210, 190), head="supervised: answers given", **wide, **high)
    chart.regions(lambda x, y: (np.stack([x, y], -1) @ weight.T + bias).argmax(-1), 70, colours)
    for kind, colour in enumerate(colours):
        chart.dots(*points[labels == kind][:40].T, colour, 3)
    chart = Chart(page, (306, 86, 210, 190), head="unsupervised: k-means", **wide, **high)
    for kind, colour in enumerate(("pink", "gold", "grey")):
        chart.dots(*points[groups == kind][:40].T, colour, 3)
    for x, y in centres:
        chart.page.add(f'<path class="axis" style="stroke-width:3" d="M{chart.at_x(x) - 7:.1f} '
                       f'{chart.at_y(y):.1f}h14m-7 -7v14"/>')
    pulls = len(chosen)
    chart = Chart(page, (572, 86, 200, 190), (0, pulls), (0, 1), "reinforcement: a bandit",
                  "pulls", xticks=(0, pulls // 2, pulls), yticks=(0, 0.5, 1))
    average = PAYS[chosen].cumsum() / np.arange(1, pulls + 1)
    chart.line((0, pulls), (PAYS.max(),) * 2, "grey dashed thin")
    chart.line(range(1, pulls + 1), average, "blue")
    chart.note(pulls, PAYS.max(), "the best arm", anchor="end", dy=-7)
    chart.note(pulls, average[-1], "mean reward", "ink blue", "end", dy=24)
    chart = Chart(page, (830, 86, 220, 190), (-np.pi, np.pi), (-1.2, 1.2), "one hidden layer",
                  xticks=(-3, 0, 3), yticks=(-1, 0, 1))
    shades = ("gold", "green", "blue")
    for (_, x, y), css in zip(sine.values(), shades, strict=False):
        chart.line(x, y, css)
    page.add(*legend(840, 311, [(css, f"{n}") for css, n in zip(shades, sine, strict=False)], 62),
             words(1026, 315, "neurons", "quiet"))
    return str(page)


def main() -> None:
    lesson = Lesson("00_what_learning_is", __doc__)
    rng = np.random.default_rng(0)

    lesson.part("Rules, or examples", "AND, as a rule and learnt from examples:")
    w, b, mistakes = learnt_and()
    print(table(("a b", "rule", "learnt"), [
        (f"{int(x[0])} {int(x[1])}", str(rule_and(*x.astype(int))), str(int(w @ x + b > 0)))
        for x in BITS]))
    lesson.say(f"It learnt w = ({w[0]:g}, {w[1]:g}), b = {b:g}; mistakes in each round: "
               + " ".join(map(str, mistakes[:8])))

    lesson.part("Three kinds of learning")
    points, labels = blobs(300, rng)
    unseen, expected = blobs(300, rng)
    model = supervised(points, labels, 60 if lesson.quick else 200)
    weight, bias = model.numbers()
    accuracy = float(((unseen @ weight.T + bias).argmax(1) == expected).mean())
    centres, groups = k_means(points, 3, rng)
    pulls = 1000 if lesson.quick else 2000
    chosen = bandit(pulls, rng)
    late = chosen[pulls // 2:]
    lesson.beside(
        ("supervised: 300 points it has not seen", "learns the mapping", f"{accuracy:.1%} right"),
        ("  guessing", "", f"{1 / 3:.1%}"),
        ("unsupervised: purity of k-means' groups", "finds the structure",
         f"{purity(groups, labels):.1%}"),
        ("reinforcement: best of 5 arms, second half", "reward guides it",
         f"{(late == PAYS.argmax()).mean():.1%} of pulls"),
        ("  mean reward, first 20 pulls -> last 500", "",
         f"{PAYS[chosen[:20]].mean():.2f} -> {PAYS[chosen[-500:]].mean():.2f}"))
    lesson.say("The bandit goes on trying any arm one time in ten, a fifth of which hit the best:",
               "92 % is the most this rule can reach.")

    lesson.part("Where neural networks fit")
    print(table(("data", "network", "the idea"), FAMILIES))
    facts = families()
    lesson.say("The smallest of each, in three lines of NumPy above:",
               f"  an RNN cell told [1, 0] and [0, 1] in both orders: states differ by "
               f"{facts['order']:.2f} (it hears the order)",
               f"  attention, its words shuffled: answers differ by {facts['shuffled']:.0e} "
               "(without positions, it does not)",
               f"  a graph layer, its nodes renumbered: they differ by {facts['renumbered']:.0e}")
    lesson.say("⚠ The guide: \"a family of supervised (and self-supervised) learning algorithms\".",
               "  They are functions with numbers in them: any of the three kinds of learning may",
               "  set those numbers (AlphaGo's networks learnt from rewards, an autoencoder from",
               "  bare data).")
    widths = (1, 16) if lesson.quick else (1, 2, 16)
    sine = {width: fit_sine(width, 250 if lesson.quick else 1500) for width in widths}
    lesson.beside(*[(f"sin(x) by a hidden layer of {width}, squared error", "any mapping",
                     f"{error:.1e}") for width, (error, _, _) in sine.items()])

    lesson.part("A neuron in the brain (there are about 86 billion), and here")
    print(table(("brain", "machine"), BRAIN))

    lesson.part("Training, and the edge",
                "Learning needs the loss, the gradients, the optimizer's state. Using what was",
                "learnt needs the weights alone:")
    parameters = weight.size + bias.size
    lesson.say(f"  to classify a point: {parameters} numbers, {parameters * 4} bytes, "
               "one matrix product.",
               "The guide's later projects (export, latency, INT8) take it from there.")

    lesson.picture(draw(points, labels, weight, bias, centres, groups, chosen, sine))
    x, y = Tensor(points.astype(np.float32)).realize(), Tensor(labels.astype(np.int32)).realize()
    lesson.kernels(lambda: model.step(x, y))


if __name__ == "__main__":
    main()
