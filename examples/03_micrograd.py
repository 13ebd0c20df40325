"""Lesson 3: micrograd, an autograd engine for single numbers

    python examples/03_micrograd.py [--quick] [--out DIR]

The deep dive's first half. Automatic differentiation is two ideas. Every number remembers which
operation made it, from which numbers: that is a graph. And every operation knows its own slopes:
so the blame for the result can be handed from each number to those it was made of, last to first.
Written here from these two ideas (the name is Andrej Karpathy's, whose micrograd taught them to
many); then used: a function of the deep dive, a neuron, a network that learns XOR, and exercises.
"""

import math
import random
from collections.abc import Callable, Iterable

from guide_lesson import Chart, Lesson, Picture, legend, table, words

# ---- the engine --------------------------------------------------------------------------------
# One row per operation: its value, and its slope with respect to each operand, given the operands
# and the value. That a slope needs them is why the forward pass keeps every number.

Slopes = tuple[float, ...]
OPERATIONS: dict[str, tuple[Callable[..., float], Callable[..., Slopes]]] = {
    "+": (lambda a, b: a + b, lambda out, a, b: (1.0, 1.0)),
    "*": (lambda a, b: a * b, lambda out, a, b: (b, a)),
    "max0": (lambda a: max(a, 0.0), lambda out, a: (1.0 if a > 0 else 0.0,)),
    "tanh": (math.tanh, lambda out, a: (1 - out * out,)),
    "exp": (math.exp, lambda out, a: (out,)),
    "log": (math.log, lambda out, a: (1 / a,)),
    "sin": (math.sin, lambda out, a: (math.cos(a),)),  # the first exercise: one row
}


class Value:
    """A number that remembers how it was made. `grad` is the slope of the result by it."""

    __slots__ = ("data", "grad", "name", "op", "parents", "slopes")

    def __init__(self, data: float, name: str = "", op: str = "", parents: "tuple[Value, ...]" = (),
                 slopes: Callable[..., Slopes] | None = None):
        self.data, self.grad, self.name = float(data), 0.0, name
        self.op, self.parents, self.slopes = op, parents, slopes

    @staticmethod
    def make(op: str, *operands: "Value | float") -> "Value":
        value, slopes = OPERATIONS[op]
        parents = tuple(o if isinstance(o, Value) else Value(o) for o in operands)
        return Value(value(*(p.data for p in parents)), "", op, parents, slopes)

    def __add__(self, other): return Value.make("+", self, other)
    def __mul__(self, other): return Value.make("*", self, other)
    def __pow__(self, power: float) -> "Value":
        """self to a power that is a plain number: slope n·xⁿ⁻¹."""
        return Value(self.data**power, "", f"**{power:g}", (self,),
                     lambda out, a: (power * a ** (power - 1),))

    def relu(self): return Value.make("max0", self)
    def tanh(self): return Value.make("tanh", self)
    def exp(self): return Value.make("exp", self)
    def log(self): return Value.make("log", self)
    def sin(self): return Value.make("sin", self)

    # the rest of arithmetic is made of these
    def __neg__(self): return self * -1
    def __sub__(self, other): return self + -other
    def __truediv__(self, other):
        return self * (other if isinstance(other, Value) else Value(other)) ** -1
    def __rsub__(self, other): return other + -self
    def __rtruediv__(self, other): return other * self**-1
    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self) -> str:
        return f"Value({self.name + '=' if self.name else ''}{self.data:g}, grad={self.grad:g})"

    def backward(self) -> None:
        """The slope of this number by every number it was made of, added to their `grad`.

        From last to first, so that a number's own blame is complete before it is handed on. And
        added, since a number used twice is to blame twice.
        """
        blame = {self: 1.0}
        for value in reversed(in_order(self)):
            value.grad += blame[value]
            if value.slopes is None:
                continue
            slopes = value.slopes(value.data, *(p.data for p in value.parents))
            for parent, slope in zip(value.parents, slopes, strict=True):
                blame[parent] = blame.get(parent, 0.0) + blame[value] * slope


def in_order(result: Value) -> list[Value]:
    """Topological order: every number after those it was made of. (A stack: no recursion limit.)"""
    order: list[Value] = []
    seen: set[Value] = set()
    stack = [(result, False)]
    while stack:
        value, complete = stack.pop()
        if complete:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent in reversed(value.parents))
    return order


def gradient_check(f: Callable[..., Value], *at: float, h: float = 1e-6) -> float:
    """`backward` against (f(x+h) - f(x-h)) / 2h in every argument: the largest difference."""
    inputs = [Value(x) for x in at]
    f(*inputs).backward()
    worst = 0.0
    for i, value in enumerate(inputs):
        up, down = ([Value(x + d * (i == j)) for j, x in enumerate(at)] for d in (h, -h))
        worst = max(worst, abs(value.grad - (f(*up).data - f(*down).data) / (2 * h)))
    return worst


CHECKS: dict[str, tuple[Callable[..., Value], tuple[float, ...]]] = {
    "a + b": (lambda a, b: a + b, (2.0, -3.0)), "a * b": (lambda a, b: a * b, (2.0, -3.0)),
    "a - b": (lambda a, b: a - b, (2.0, -3.0)), "a / b": (lambda a, b: a / b, (2.0, -3.0)),
    "a ** 3": (lambda a: a**3, (-1.5,)), "a ** -0.5": (lambda a: a**-0.5, (2.5,)),
    "-a": (lambda a: -a, (0.7,)), "2 + a": (lambda a: 2 + a, (0.7,)),
    "2 - a": (lambda a: 2 - a, (0.7,)), "2 * a": (lambda a: 2 * a, (0.7,)),
    "2 / a": (lambda a: 2 / a, (0.7,)), "a / 2": (lambda a: a / 2, (0.7,)),
    "relu(a), a > 0": (lambda a: a.relu(), (0.7,)), "relu(a), a < 0": (lambda a: a.relu(), (-0.7,)),
    "tanh(a)": (lambda a: a.tanh(), (0.7,)), "exp(a)": (lambda a: a.exp(), (0.7,)),
    "log(a)": (lambda a: a.log(), (0.7,)), "sin(a)": (lambda a: a.sin(), (0.7,)),
    "(a + a)²": (lambda a: (a + a) ** 2, (2.0,)),
    "sin(a·b)·tanh(a - b)": (lambda a, b: (a * b).sin() * (a - b).tanh(), (0.6, -0.4)),
}


# ---- the deep dive's examples --------------------------------------------------------------------

def example() -> tuple[Value, Value]:
    """f = (x² + 3x + 2)·tanh(x) at x = 2."""
    x = Value(2.0, "x")
    f = (x**2 + 3 * x + 2) * x.tanh()
    f.backward()
    return f, x


def tanh_neuron() -> tuple[Value, dict[str, Value]]:
    """y = tanh(w·x + b) with x = 2, w = -3, b = 1."""
    v = {"x": Value(2.0, "x"), "w": Value(-3.0, "w"), "b": Value(1.0, "b")}
    y = (v["w"] * v["x"] + v["b"]).tanh()
    y.name = "y"
    y.backward()
    return y, v


# ---- a network of single numbers -----------------------------------------------------------------

class Neuron:
    def __init__(self, inputs: int, rng: random.Random):
        self.w = [Value(rng.uniform(-1, 1)) for _ in range(inputs)]
        self.b = Value(0.0)

    def __call__(self, x: Iterable[Value | float]) -> Value:
        z = self.b
        for w, xi in zip(self.w, x, strict=True):
            z = z + w * xi
        return z.tanh()


class MLP:
    """MLP(2, 4, 1): two inputs, four hidden neurons, one output; tanh everywhere."""

    def __init__(self, *sizes: int, seed: int = 0):
        rng = random.Random(seed)
        self.layers = [[Neuron(n, rng) for _ in range(m)]
                       for n, m in zip(sizes, sizes[1:])]  # noqa: B905, RUF007  pairs of sizes

    def __call__(self, x: list) -> list[Value]:
        for layer in self.layers:
            x = [neuron(x) for neuron in layer]
        return x

    def parameters(self) -> list[Value]:
        return [p for layer in self.layers for neuron in layer for p in (*neuron.w, neuron.b)]


XOR = (((0, 0), -1), ((0, 1), 1), ((1, 0), 1), ((1, 1), -1))  # answers as tanh gives them


def learn_xor(seed: int, epochs: int, rate: float = 0.1) -> tuple[MLP, list[float], list[bool]]:
    """The deep dive's network, 2-4-1, mean squared error.

    With the loss of every epoch, and whether all four answers had the right sign.
    """
    net, losses, right = MLP(2, 4, 1, seed=seed), [], []
    for _ in range(epochs):
        answers = [net(list(x))[0] for x, _ in XOR]
        loss = sum(((out - y) ** 2 for out, (_, y) in zip(answers, XOR, strict=True)),
                   Value(0.0)) * (1 / len(XOR))
        for p in net.parameters():
            p.grad = 0.0  # forget the last step's: backward adds
        loss.backward()
        for p in net.parameters():
            p.data -= rate * p.grad
        losses.append(loss.data)
        right.append(all(out.data * y > 0 for out, (_, y) in zip(answers, XOR, strict=True)))
    return net, losses, right


# ---- the deep dive's exercises -------------------------------------------------------------------

def batch_norm(batch: list[Value], gain: Value, shift: Value, running: dict[str, float],
               training: bool, eps: float = 1e-5, momentum: float = 0.1) -> list[Value]:
    """Batch normalisation of one feature. In training: by this batch, whose mean and variance are
    part of the graph, and are remembered; otherwise: by what was remembered."""
    n = len(batch)
    if training:
        mean = sum(batch, Value(0.0)) / n
        var = sum(((x - mean) ** 2 for x in batch), Value(0.0)) / n
        running["mean"] += momentum * (mean.data - running["mean"])
        running["var"] += momentum * (var.data * n / (n - 1) - running["var"])  # the unbiased one
    else:
        mean, var = Value(running["mean"]), Value(running["var"])
    return [(x - mean) * (var + eps) ** -0.5 * gain + shift for x in batch]


class Vector:
    """A one-dimensional tensor is a list of Values: the engine need not know."""

    def __init__(self, numbers: Iterable[Value | float]):
        self.values = [v if isinstance(v, Value) else Value(v) for v in numbers]

    def __add__(self, other: "Vector") -> "Vector":
        return Vector(a + b for a, b in zip(self.values, other.values, strict=True))

    def __mul__(self, other: "Vector") -> "Vector":
        return Vector(a * b for a, b in zip(self.values, other.values, strict=True))

    def relu(self) -> "Vector":
        return Vector(v.relu() for v in self.values)

    def sum(self) -> Value:
        return sum(self.values[1:], self.values[0])

    def dot(self, other: "Vector") -> Value:
        return (self * other).sum()

    @property
    def grad(self) -> list[float]:
        return [v.grad for v in self.values]


# ---- the graph as a picture ----------------------------------------------------------------------

def dot(result: Value) -> str:
    """The graph in Graphviz' language: numbers are boxes, what made them stands in them."""
    order = in_order(result)
    number = {value: i for i, value in enumerate(order)}
    lines = ["digraph {", "  rankdir=LR; node [shape=box]"]
    for value, i in number.items():
        name = value.name or value.op or "const"
        lines.append(f'  n{i} [label="{name}\\n{value.data:.4g}\\ngrad {value.grad:.4g}"]')
        lines += [f"  n{number[parent]} -> n{i}" for parent in value.parents]
    return "\n".join([*lines, "}", ""])


def draw_graph(page: Picture, result: Value, left: float, top: float) -> None:
    """The same by hand: as many columns as the longest chain, each value just before its use."""
    depth: dict[Value, int] = {}
    for value in in_order(result):
        depth[value] = 1 + max((depth[p] for p in value.parents), default=-1)
    for value in reversed(in_order(result)):
        users = [depth[v] for v in depth if value in v.parents]
        if users:
            depth[value] = min(users) - 1
    columns: dict[int, list[Value]] = {}
    for value in in_order(result):
        columns.setdefault(depth[value], []).append(value)
    tallest = max(map(len, columns.values()))
    place = {value: (left + 132 * column, top + 66 * (tallest - len(values)) / 2 + 66 * row)
             for column, values in columns.items() for row, value in enumerate(values)}
    below = top + 66 * tallest + 90
    for value, (x, y) in place.items():
        for parent in dict.fromkeys(value.parents):
            px, py = place[parent][0] + 102, place[parent][1] + 25
            far = depth[value] - depth[parent] > 1  # round the boxes between, under them
            bend = f"{px + 4} {below} {x - 4} {below}" if far else f"{x} {py} {px} {y + 25}"
            page.add(f'<path class="axis" d="M{px} {py}C{bend} {x} {y + 25}"/>')
    for value, (x, y) in place.items():
        name = value.name or value.op
        text = f"{name} = {value.data:.4g}" if name else f"{value.data:.4g}"
        page.add(f'<rect class="box" x="{x}" y="{y}" width="102" height="50" rx="5"/>',
                 words(x + 51, y + 21, text, "head", "middle"),
                 words(x + 51, y + 40, f"grad {value.grad:.4g}", "ink orange", "middle"))


def draw(curves: list[list[float]]) -> str:
    page = Picture("The graph of f = (x² + 3x + 2)·tanh(x), each number with its gradient",
                   1080, 330, "a computational graph with gradients, and XOR being learnt")
    f, _ = example()
    f.name = "f"
    draw_graph(page, f, 24, 94)
    chart = Chart(page, (830, 84, 224, 170), (0, len(curves[0])), (1e-4, 2),
                  "XOR, 2-4-1: loss, log scale", "epochs", log=True)
    colours = ("blue", "green", "pink", "gold", "orange")
    for curve, css in zip(curves, colours, strict=False):
        chart.line(range(len(curve)), curve, css)
    page.add(*legend(830, 314, [(css, f"{i}") for i, css in enumerate(colours[:4])], 44),
             words(1010, 318, "seeds", "quiet"))
    return str(page)


# ---- the lesson --------------------------------------------------------------------------------

BESIDE_TINYGRAD = (
    ("Value", "UOp, a node of the graph (Tensor.uop)"), ("parents", "UOp.src"),
    ("a row of OPERATIONS", "a rule of pm_gradient, in mixin/gradient.py"),
    ("in_order", "UOp.toposort"), ("blame[p] = ... +", "grads[k] = grads[k] + v"),
    ("data, computed at once", "Buffer, computed when somebody asks"),
)


def with_tinygrad() -> tuple[float, float]:
    """The deep dive's f by tinygrad: value and slope."""
    from tinygrad import Tensor
    x = Tensor([2.0]).realize()
    f = ((x * x + 3 * x + 2) * x.tanh()).sum()
    (slope,) = f.gradient(x)
    Tensor.realize(f, slope)
    return f.item(), slope.item()


def main() -> None:
    lesson = Lesson("03_micrograd", __doc__)

    lesson.part("Every operation against finite differences")
    errors = {name: gradient_check(f, *at) for name, (f, at) in CHECKS.items()}
    lesson.beside((f"{len(errors)} checks, the largest difference", "gradients are right",
                   f"{max(errors.values()):.0e}, at {max(errors, key=errors.get)}"))

    lesson.part("The deep dive's examples")
    f, x = example()
    y, v = tanh_neuron()
    a = Value(2.0)
    ((a + a) ** 2).backward()
    theirs = with_tinygrad()
    lesson.beside(
        ("f = (x² + 3x + 2)·tanh(x) at 2", "11.568331", f"{f.data:.6f}"),
        ("df/dx", "7.596003", f"{x.grad:.6f}"),
        ("  by tinygrad (float32)", "the same", f"{theirs[0]:.6f}, {theirs[1]:.6f}"),
        ("y = tanh(w·x + b) at x = 2, w = -3, b = 1", "-0.99991", f"{y.data:.5f}"),
        ("dy/dx, dy/dw, dy/db", "-5.447e-4, 3.632e-4, 1.816e-4",
         ", ".join(f"{v[n].grad:.3e}" for n in "xwb"), "saturated: hardly any slope is left"),
        ("(a + a)² at a = 2: used twice, blamed twice", "16", f"{a.grad:g}"))

    lesson.part("XOR by a network of 17 single numbers")
    seeds = 3 if lesson.quick else 8
    runs = [learn_xor(seed, 300 if lesson.quick else 1000) for seed in range(seeds)]
    lesson.beside(
        ("right after 200 epochs", "solved", f"{sum(r[199] for _, _, r in runs)} of {seeds} seeds",
         "200 epochs are not enough for every start"),
        (f"right after {len(runs[0][1])}", "", f"{sum(r[-1] for _, _, r in runs)} of {seeds}"),
        ("losses then", "< 0.01", " ".join(f"{curve[-1]:.4f}" for _, curve, _ in runs)))
    net = runs[0][0]
    lesson.say("seed 0 answers: "
               + "  ".join(f"{x} -> {net(list(x))[0].data:+.3f}" for x, _ in XOR))

    lesson.part("Exercises of the deep dive")
    b = Value(0.7)
    b.sin().backward()
    running = {"mean": 0.0, "var": 1.0}
    batch = [Value(t) for t in (1.0, 2.0, 4.0, 9.0)]
    out = batch_norm(batch, Value(1.0), Value(0.0), running, training=True)
    u = Vector([1.0, 2.0, 3.0])
    u.dot(Vector([4.0, 5.0, 6.0])).backward()
    p, q = Value(1.5, "x"), Value(0.5, "y")
    g = (p**2 + q) * (p - q).tanh()
    g.backward()
    lesson.beside(
        ("sin, one new row: slope at 0.7", "cos(0.7)", f"{b.grad:.6f}, cos {math.cos(0.7):.6f}"),
        ("a 1-d tensor: gradient of u·(4, 5, 6)", "4 5 6", " ".join(f"{d:g}" for d in u.grad)),
        ("batch norm, training: mean, variance", "0, 1",
         f"{sum(o.data for o in out) / 4:.0e}, {sum(o.data**2 for o in out) / 4:.5f}"),
        ("batch norm, evaluation: uses the running", "",
         f"mean {running['mean']:.2f}, variance {running['var']:.3f}"))
    lesson.say("", "(x² + y)·tanh(x - y) in Graphviz' language (dot -Tsvg draws it):", dot(g))

    lesson.part("The same things in tinygrad")
    print(table(("here", "tinygrad 0.14"), BESIDE_TINYGRAD))

    lesson.picture(draw([curve for _, curve, _ in runs][:4]))
    lesson.say("", f"Here f is {len(in_order(f))} Python objects, each a number. In tinygrad:")
    lesson.kernels(with_tinygrad)


if __name__ == "__main__":
    main()
