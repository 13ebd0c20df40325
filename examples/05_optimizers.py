"""Lesson 5: optimizers and schedules (Project 4)

    python examples/05_optimizers.py [--quick] [--out DIR]

Guide, section 10. Gradient descent on a bowl, where everything can be counted; how much a batch's
gradient trembles; momentum, in both conventions; AdaGrad, RMSprop, Adam and AdamW from scratch in
tinygrad, beside tinygrad's own; and learning rates that change while training.
"""

import inspect
import math
from collections.abc import Callable

import numpy as np
from guide_data import mnist
from guide_lesson import Chart, Lesson, Picture, legend, table, words
from tinygrad import Context, Tensor, TinyJit, nn

# ---- gradient descent on a bowl ------------------------------------------------------------------
# The bowl is L = Σ λᵢ wᵢ²/2: its gradient is λᵢ wᵢ, its lowest point 0, and κ = λmax/λmin says how
# much longer it is than wide.

def descend(curve: float, rate: float, steps: int) -> list[float]:
    """One weight from w = 1: each step multiplies it by 1 - αλ."""
    path = [1.0]
    for _ in range(steps):
        path.append(path[-1] - rate * curve * path[-1])
    return path


def steps_to_the_bottom(curves: tuple[float, ...], rate: float, beta: float = 0.0,
                        close: float = 1e-3) -> int:
    """How many steps of (heavy-ball) momentum bring all weights from 1 to within `close` of 0."""
    w, v = np.ones(len(curves)), np.zeros(len(curves))
    for step in range(1, 100_000):
        v = beta * v + np.array(curves) * w
        w = w - rate * v
        if abs(w).max() < close and abs(rate * v).max() < close:
            return step
        if abs(w).max() > 1e9:
            break
    raise ValueError(f"it does not get there with α = {rate:g}, β = {beta:g}")


def best_settings(curves: tuple[float, ...]) -> dict[str, tuple[float, float]]:
    """The α and β that are fastest on this bowl (Polyak 1964)."""
    low, high = min(curves), max(curves)
    a, b = math.sqrt(low), math.sqrt(high)
    return {"gradient descent": (2 / (low + high), 0.0),
            "momentum": (4 / (a + b) ** 2, ((b - a) / (b + a)) ** 2)}


def gradient_noise(batches: tuple[int, ...], draws: int = 4000) -> dict[int, float]:
    """The variance of a batch's gradient, at one point, for several sizes of batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=4096)
    y = 3 * x + rng.normal(size=4096)
    each = 2 * (0 - y) * x  # every sample's gradient of (w·x - y)² at w = 0
    return {b: float(each[rng.integers(0, len(x), (draws, b))].mean(1).var()) for b in batches}


# ---- the optimizers, from scratch ----------------------------------------------------------------
# Each says by how much the weights w change, given their gradient g and what it has remembered.

class Optimizer:
    """Keeps `memory` Tensors of each parameter's shape, 0 at first; `change` is the rule."""

    def __init__(self, params: list[Tensor], lr: float, memory: int = 0):
        self.params = params
        self.lr = Tensor([lr]).realize()  # not a number, so that a schedule can change it
        self.memory = [[Tensor.zeros(*w.shape).contiguous().realize() for _ in range(memory)]
                       for w in params]
        self.counters: list[Tensor] = []  # what is remembered for all parameters together

    def change(self, w: Tensor, g: Tensor, *memory: Tensor) -> Tensor:
        raise NotImplementedError

    def zero_grad(self) -> None:
        for w in self.params:
            w.grad = None

    def schedule_step(self) -> list[Tensor]:
        """The update as a graph: what has to be realized, together with the loss if you like."""
        for w, memory in zip(self.params, self.memory, strict=True):
            w.assign(w.detach() - self.change(w.detach(), w.grad, *memory))
        return [*self.params, *(m for memory in self.memory for m in memory), *self.counters]


class SGD(Optimizer):
    """w ← w - αg; with a decay λ, g + λw for g: the gradient of λ Σw²/2 added to the loss."""

    def __init__(self, params: list[Tensor], lr: float = 0.01, decay: float = 0.0):
        super().__init__(params, lr)
        self.decay = decay

    def change(self, w: Tensor, g: Tensor) -> Tensor:
        return self.lr * (g + self.decay * w)


class Momentum(Optimizer):
    """v ← βv + g, w ← w - αv: a ball that rolls on. `mean`: the guide's v ← βv + (1-β)g.

    `nesterov` looks one step ahead: it goes along g + βv.
    """

    def __init__(self, params: list[Tensor], lr: float = 0.01, beta: float = 0.9,
                 mean: bool = False, nesterov: bool = False):
        super().__init__(params, lr, memory=1)
        self.beta, self.share, self.nesterov = beta, 1 - beta if mean else 1.0, nesterov

    def change(self, w: Tensor, g: Tensor, v: Tensor) -> Tensor:
        v.assign(self.beta * v + self.share * g)
        return self.lr * (g + self.beta * v if self.nesterov else v)


class AdaGrad(Optimizer):
    """s ← s + g², w ← w - αg/(√s + ε): each weight its own rate, which only ever falls."""

    def __init__(self, params: list[Tensor], lr: float = 0.01, eps: float = 1e-10):
        super().__init__(params, lr, memory=1)
        self.eps = eps

    def change(self, w: Tensor, g: Tensor, s: Tensor) -> Tensor:
        s.assign(s + g * g)
        return self.lr * g / (s.sqrt() + self.eps)


class RMSprop(Optimizer):
    """s ← ρs + (1-ρ)g²: AdaGrad that forgets."""

    def __init__(self, params: list[Tensor], lr: float = 0.01, rho: float = 0.99,
                 eps: float = 1e-8):
        super().__init__(params, lr, memory=1)
        self.rho, self.eps = rho, eps

    def change(self, w: Tensor, g: Tensor, s: Tensor) -> Tensor:
        s.assign(self.rho * s + (1 - self.rho) * g * g)
        return self.lr * g / (s.sqrt() + self.eps)


class Adam(Optimizer):
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², both divided by 1 - βᵗ; w ← w - αm̂/(√v̂ + ε).

    m and v start at 0 and are too small at first: dividing by 1 - βᵗ corrects that. With `decay`
    it is AdamW: λαw is taken off beside all this, untouched by the division by √v̂.
    """

    def __init__(self, params: list[Tensor], lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999,
                 eps: float = 1e-8, decay: float = 0.0, correct: bool = True,
                 eps_inside: bool = False):
        super().__init__(params, lr, memory=2)
        self.b1, self.b2, self.eps, self.decay = b1, b2, eps, decay
        self.correct, self.eps_inside = correct, eps_inside
        # β₁ᵗ and β₂ᵗ, counted on by the device: as Python numbers, they would be constants in the
        # kernel, and every step would need a kernel of its own.
        self.counters = [Tensor([1.0]).realize(), Tensor([1.0]).realize()]

    def schedule_step(self) -> list[Tensor]:
        for power, beta in zip(self.counters, (self.b1, self.b2), strict=True):
            power.assign(power * beta)
        return super().schedule_step()

    def change(self, w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        m.assign(self.b1 * m + (1 - self.b1) * g)
        v.assign(self.b2 * v + (1 - self.b2) * g * g)
        b1t, b2t = self.counters
        mean, square = (m / (1 - b1t), v / (1 - b2t)) if self.correct else (m, v)
        root = (square + self.eps).sqrt() if self.eps_inside else square.sqrt() + self.eps
        return self.lr * (mean / root + self.decay * w)


# name: (ours, tinygrad's own or None)
OPTIMIZERS: dict[str, tuple[Callable, Callable | None]] = {
    "SGD": (lambda p: SGD(p, 0.1), lambda p: nn.optim.SGD(p, 0.1)),
    "SGD, λ = 0.01": (lambda p: SGD(p, 0.1, decay=0.01),
                      lambda p: nn.optim.SGD(p, 0.1, weight_decay=0.01)),
    "momentum": (lambda p: Momentum(p, 0.02), lambda p: nn.optim.SGD(p, 0.02, momentum=0.9)),
    "Nesterov": (lambda p: Momentum(p, 0.02, nesterov=True),
                 lambda p: nn.optim.SGD(p, 0.02, momentum=0.9, nesterov=True)),
    "AdaGrad": (lambda p: AdaGrad(p, 0.01), None),
    "RMSprop": (lambda p: RMSprop(p, 0.001), None),
    "Adam": (lambda p: Adam(p, 0.001), lambda p: nn.optim.Adam(p, 0.001)),
    "AdamW, λ = 0.01": (lambda p: Adam(p, 0.001, decay=0.01),
                        lambda p: nn.optim.AdamW(p, 0.001, weight_decay=0.01)),
}


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A linear classifier to train: 64 samples of 5 numbers, their classes (of 3), the weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    start = 0.05 * rng.normal(size=(5, 3))  # small: what float32 rounds off stays below 1e-7
    return x, (x @ rng.normal(size=(5, 3))).argmax(1), start.astype(np.float32)


def train(make: Callable, steps: int = 100) -> np.ndarray:
    """The weights that so many steps of an optimizer arrive at."""
    x, classes, start = problem()
    inputs, labels = Tensor(x).realize(), Tensor(classes.astype(np.int32)).realize()
    w = Tensor(start).realize()
    optimizer = make([w])

    @TinyJit
    @Context(TRAINING=1)
    def step() -> None:
        optimizer.zero_grad()
        (inputs @ w).sparse_categorical_crossentropy(labels).backward()
        Tensor.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
    return w.numpy()


def alternating(steps: int = 40) -> dict[str, float]:
    """Adam told +1, -1, +1, …: its v̂ and m̂ after that, and its last step in units of α."""
    w = Tensor([0.0]).realize()
    optimizer = Adam([w], 1.0)
    for step in range(steps):
        w.grad, before = Tensor([(-1.0) ** step]), w.item()
        with Context(TRAINING=1):
            Tensor.realize(*optimizer.schedule_step())
    ((m, v),), (b1t, b2t) = optimizer.memory, optimizer.counters
    return {"v̂": (v / (1 - b2t)).item(), "m̂": (m / (1 - b1t)).item(), "step": w.item() - before}


def moves(make: Callable, gradients: list[list[float]]) -> np.ndarray:
    """What an optimizer makes of given gradients: how far the weights move, step by step."""
    w = Tensor([0.0] * len(gradients[0])).realize()
    optimizer, path = make([w]), [w.numpy()]
    for gradient in gradients:
        w.grad = Tensor(gradient)
        with Context(TRAINING=1):
            Tensor.realize(*optimizer.schedule_step())
        path.append(w.numpy())
    return -np.diff(path, axis=0)


def roll(make: Callable, steps: int) -> np.ndarray:
    """The path of two weights down the bowl (w₁² + 25 w₂²)/2 from (-4, 1)."""
    w = Tensor([-4.0, 1.0]).realize()
    optimizer, path = make([w]), [w.numpy()]

    @TinyJit
    @Context(TRAINING=1)
    def step() -> None:
        optimizer.zero_grad()
        (w.square() * Tensor([0.5, 12.5])).sum().backward()
        Tensor.realize(*optimizer.schedule_step())

    for _ in range(steps):
        step()
        path.append(w.numpy())
    return np.array(path)


def digits_loss(make: Callable, steps: int, samples: int = 512, every: int = 5) -> list[float]:
    """The loss of 784-32-10 while it learns `samples` digits, all of them in every step."""
    Tensor.manual_seed(0)
    digits = mnist()
    x = Tensor(digits.train_images[:samples].reshape(-1, 784).astype(np.float32) / 255).realize()
    y = Tensor(digits.train_labels[:samples].astype(np.int32)).realize()
    layers = [nn.Linear(784, 32), nn.Linear(32, 10)]
    params = nn.state.get_parameters(layers)
    Tensor.realize(*params)
    optimizer = make(params)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = layers[1](layers[0](x).relu()).sparse_categorical_crossentropy(y).backward()
        return loss.realize(*optimizer.schedule_step())

    losses = [step() if i % every else step().item() for i in range(steps)]
    return [loss for loss in losses if isinstance(loss, float)]


RACE: dict[str, tuple[Callable, Callable]] = {  # name: (down the bowl, on digits)
    "SGD": (lambda p: SGD(p, 0.07), lambda p: SGD(p, 0.5)),
    "momentum": (lambda p: Momentum(p, 0.02), lambda p: Momentum(p, 0.1)),
    "AdaGrad": (lambda p: AdaGrad(p, 0.8), lambda p: AdaGrad(p, 0.02)),
    "RMSprop": (lambda p: RMSprop(p, 0.1, 0.9), lambda p: RMSprop(p, 0.002, 0.9)),
    "Adam": (lambda p: Adam(p, 0.25), lambda p: Adam(p, 0.01)),
}


# ---- schedules -----------------------------------------------------------------------------------
# How much of the learning rate α₀ is used at time t of `total` (in steps or in epochs).

def constant(t: float, total: float) -> float:
    return 1.0


def step_decay(t: float, total: float, every: float = 10) -> float:
    """A tenth, every ten epochs."""
    return 0.1 ** (t // every)


def cosine(t: float, total: float) -> float:
    """Half a wave: slow, fast, slow; half of α₀ half-way, 0 at the end."""
    return (1 + math.cos(math.pi * t / total)) / 2


def warmup(t: float, total: float, share: float = 0.1) -> float:
    """Up along a straight line for a tenth of the time, then down by the cosine."""
    rise = share * total
    return t / rise if t < rise else cosine(t - rise, total - rise)


def one_cycle(t: float, total: float, share: float = 0.3, div: float = 25,
              final: float = 1e4) -> float:
    """From 1/25 up to 1 and down to 1/250,000, both by cosines (Smith 2018, PyTorch's form)."""
    start, end, rise = 1 / div, 1 / div / final, share * total - 1
    if t <= rise:
        return 1 - (1 - start) * cosine(t, rise)
    return end + (1 - end) * cosine(t - rise, total - 1 - rise)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": constant, "step": step_decay, "cosine": cosine, "warm-up": warmup,
    "one-cycle": one_cycle}


def follow(schedule: Callable[[float, float], float], total: int, lr: float) -> list[float]:
    """Rates that a jitted step of tinygrad's SGD really used: the gradient is 1, w moves by α."""
    w = Tensor([0.0]).realize()
    optimizer = nn.optim.SGD([w], lr=lr)

    @TinyJit
    @Context(TRAINING=1)
    def step() -> None:
        optimizer.zero_grad()
        w.sum().backward()
        optimizer.step()

    places = [0.0]
    for t in range(total):
        optimizer.lr.assign([lr * schedule(t, total)]).realize()
        step()
        places.append(w.item())
    return [float(-move) for move in np.diff(places)]


def noisy_end(schedule: Callable[[float, float], float], steps: int = 3000) -> float:
    """How far from the best weights SGD ends, one noisy sample at a time (mean of 20 runs)."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=10)
    w = np.zeros((20, 10))
    for t in range(steps):
        x = rng.normal(size=(20, 10))
        error = (w * x).sum(1) - (x @ truth + 0.5 * rng.normal(size=20))
        w -= 0.02 * schedule(30 * t / steps, 30) * error[:, None] * x
    return float(np.linalg.norm(w - truth, axis=1).mean())


# ---- the lesson ----------------------------------------------------------------------------------

COLOURS = ("grey", "blue", "gold", "green", "orange")


def draw(paths: dict[str, np.ndarray], losses: dict[str, list[float]], every: int) -> str:
    page = Picture("Five optimizers, five schedules", 1080, 400,
                   "paths down a bowl, the loss on MNIST digits, learning rates over time")
    chart = Chart(page, (46, 92, 330, 210), (-4.3, 1.7), (-1.2, 1.2), "down a bowl, from the left",
                  xticks=(-4, -2, 0), yticks=(-1, 0, 1))
    turn = np.linspace(0, 2 * np.pi, 90)
    for level in (0.05, 0.4, 1.5, 4, 8, 14):
        chart.line(math.sqrt(2 * level) * np.cos(turn), math.sqrt(2 * level / 25) * np.sin(turn),
                   "grey thin dashed")
    for path, css in zip(paths.values(), COLOURS, strict=False):
        chart.line(*path.T, css)
        chart.dots(*path[:25].T, css, 2.4)
    steps = every * (len(next(iter(losses.values()))) - 1)
    low = min(min(loss) for loss in losses.values())
    chart = Chart(page, (446, 92, 260, 210), (0, steps), (10 ** math.floor(math.log10(low)), 10),
                  "loss on digits (log scale)", "steps", log=True)
    for loss, css in zip(losses.values(), COLOURS, strict=False):
        chart.line(range(0, steps + 1, every), loss, css)
    page.add(*legend(46, 370, list(zip(COLOURS, paths, strict=False)), 128))
    chart = Chart(page, (776, 92, 270, 210), (0, 30), (0, 1.05), "schedules: share of α₀", "epochs",
                  xticks=(0, 10, 20, 30), yticks=(0, 0.5, 1))
    times = np.linspace(0, 29, 291)
    for schedule, css in zip(SCHEDULES.values(), COLOURS, strict=True):
        chart.line(times, [schedule(t, 30) for t in times], css)
    names = list(zip(COLOURS, SCHEDULES, strict=True))
    page.add(*legend(776, 360, names[:3], 96), *legend(776, 384, names[3:], 96),
             words(1054, 32, "α chosen for each", "quiet", "end"))
    return str(page)


def main() -> None:
    lesson = Lesson("05_optimizers", __doc__)

    lesson.part("Gradient descent: w ← w - α·gradient, on L = λw²/2 with λ = 1")
    lesson.beside(
        ("α = 0.1, three steps from 1", "geometric",
         ", ".join(f"{w:.3f}" for w in descend(1, 0.1, 3)[1:])),
        ("α = 1.9", "", f"{descend(1, 1.9, 50)[-1]:.4f} after 50 steps"),
        ("α = 2.1, above 2/λ", "", f"{descend(1, 2.1, 50)[-1]:.0f} after 50 steps",
         "diverges: |1 - αλ| > 1"))

    lesson.part("How many samples a step looks at (60,000 in all)")
    sizes = (1, 16, 64, 256)
    noise = gradient_noise(sizes)
    print(table(("batch", "steps an epoch", "variance of the gradient", "× batch"),
                [(str(b), f"{math.ceil(60_000 / b):,}", f"{noise[b]:.4f}", f"{b * noise[b]:.1f}")
                 for b in sizes] + [("60,000", "1", "0", "")], right=(0, 1, 2, 3)))
    lesson.say("Four times the batch: a quarter of the variance, and a quarter of the steps.",
               "(The class named SGD takes whatever batch it is given.)")

    lesson.part("Momentum", "A gradient of 1, three times, β = 0.9, α = 1; the steps it becomes:")
    ones = [[1.0]] * 3
    ours = moves(lambda p: Momentum(p, 1.0), ones)[:, 0]
    guides = moves(lambda p: Momentum(p, 1.0, mean=True), ones)[:, 0]
    same = moves(lambda p: Momentum(p, 10.0, mean=True), ones)[:, 0]
    bowl = (1.0, 100.0)
    settings = best_settings(bowl)
    steps = {name: steps_to_the_bottom(bowl, *s) for name, s in settings.items()}

    def shown(numbers: np.ndarray) -> str:
        return ", ".join(f"{n:.3g}" for n in numbers)

    lesson.beside(
        ("v ← βv + g (tinygrad, PyTorch)", "", shown(ours)),
        ("v ← βv + (1-β)g", "written so", shown(guides), "ten times smaller in the long run:"),
        ("  with α/(1-β)", "", shown(same), "the same, once α is ten times as large"),
        *[(f"bowl with κ = 100: steps of {name}", "faster" * (name == "momentum"),
           f"{steps[name]} (α = {s[0]:.4f}, β = {s[1]:.2f})") for name, s in settings.items()])

    lesson.part("Adam")
    defaults = {k: p.default for k, p in inspect.signature(nn.optim.Adam).parameters.items()}
    thousand = moves(lambda p: Adam(p), [[1.0, 1000.0]])[0]
    plain = moves(lambda p: Adam(p, correct=False), [[1.0]])[0, 0]
    tiny = [moves(lambda p, i=i: Adam(p, 1.0, eps_inside=i), [[1e-8]])[0, 0] for i in (0, 1)]
    jumpy = alternating()
    lesson.beside(
        ("defaults β₁, β₂, ε, α", "0.9, 0.999, 1e-8, 1e-3",
         ", ".join(f"{defaults[k]:g}" for k in ("b1", "b2", "eps", "lr")) + " (tinygrad)"),
        ("first step, gradients 1 and 1000", "per parameter", shown(thousand)),
        ("  without bias correction", "", f"{plain:.5f}", "3.16 times as far: 0.1/√0.001"),
        ("gradient 1e-8, α = 1: ε outside the root", "section 10", f"{tiny[0]:.4f}"),
        ("  ε inside", "the card of equations", f"{tiny[1]:.4f}", "outside is Adam"),
        ("gradients +1, -1, +1, …: m̂, v̂", "mean, variance", f"{jumpy['m̂']:.3f}, {jumpy['v̂']:.3f}",
         "v̂ is the mean of squares: no mean is taken off"),
        ("  its steps, in α", "", f"{abs(jumpy['step']):.3f}"))

    lesson.part("From scratch, beside tinygrad's own: weights after 100 steps")
    rows = []
    for name, (mine, theirs) in list(OPTIMIZERS.items())[::3 if lesson.quick else 1]:
        weights = train(mine)
        apart = f"{abs(weights - train(theirs)).max():.0e}" if theirs else "no such in tinygrad"
        rows.append((name, f"{abs(weights - problem()[2]).max():.3f}", apart))
    print(table(("optimizer", "weights moved by", "apart from tinygrad's"), rows))
    lesson.say("(the tests compare all of them with PyTorch's, too)",
               "⚠ The guide lists AdaGrad in tinygrad's optim.py. There: SGD, Adam, AdamW, LARS,",
               "  LAMB, Muon.")

    lesson.part("Schedules")
    count = 10 if lesson.quick else 60
    used = follow(cosine, count, 0.1)
    apart = max(abs(a - 0.1 * cosine(t, count)) for t, a in enumerate(used))
    ends = {name: noisy_end(schedule) for name, schedule in SCHEDULES.items()}
    lesson.beside(
        ("step: at epochs 0, 10, 20", "× 0.1 every 10", shown([1e-3 * step_decay(e, 30)
                                                                for e in (0, 10, 20)])),
        ("cosine: begin, middle, end", "a cosine curve", shown([cosine(t, 30)
                                                                for t in (0, 15, 30)])),
        ("warm-up: 0, 3, 30 of 30 epochs", "low, up, down", shown([warmup(t, 30)
                                                                   for t in (0, 3, 30)])),
        (f"a jitted step with lr.assign, {count} times", "", f"{apart:.0e} off the cosine"),
        *[(f"noisy samples, {name}: ends at", "", f"{far:.3f} from the best weights")
          for name, far in ends.items()])
    lesson.say("A constant rate ends trembling; one that falls comes closer.")

    every, count = 5, 40 if lesson.quick else 200
    racers = {name: RACE[name] for name in list(RACE)[::4 if lesson.quick else 1]}
    paths = {name: roll(make, 25 if lesson.quick else 60) for name, (make, _) in racers.items()}
    losses = {name: digits_loss(make, count + 1, every=every) for name, (_, make) in racers.items()}
    lesson.part(f"A race: 784-32-10 on 512 digits, {count} steps, a good α for each")
    makers = (("SGD", SGD), ("Adam", Adam))[:1 if lesson.quick else 2]
    typical = [(name, digits_loss(lambda p, make=make: make(p, 1e-3), count + 1, every=every)[-1])
               for name, make in makers]
    lesson.beside(
        *[(name, "", f"loss {loss[0]:.2f} -> {loss[-1]:.4f}") for name, loss in losses.items()],
        *[(f"{name} with α = 1e-3", "typical", f"-> {loss:.4f}",
           "typical of Adam: SGD takes a hundred times that" * (name == "SGD"))
          for name, loss in typical])

    lesson.picture(draw(paths, losses, every))
    x, classes, start = problem()
    w, inputs = Tensor(start).realize(), Tensor(x).realize()
    labels = Tensor(classes.astype(np.int32)).realize()
    optimizer = Adam([w])

    def one_step_of_adam() -> None:
        (inputs @ w).sparse_categorical_crossentropy(labels).backward()
        Tensor.realize(*optimizer.schedule_step())

    lesson.kernels(one_step_of_adam)


if __name__ == "__main__":
    main()
