"""Lesson 11: what happens during backward(), line by line (Project 5), and where it lives

    python examples/11_walkthrough.py [--quick] [--out DIR]

Guide, sections 14 and 15. y = x·x, L = y + x, and backward(): every step that tinygrad takes, with
the rule it applied (the line of its source), and each slope checked by finite differences; made by
`tgx backward`, so it is about the tinygrad that is installed. Then what "lazy" means, counted in
kernels, and a map: where the guide's tensor.py, lazybuffer.py and ops.py are today.

The same for anything else:  tgx backward "(x*x + x).sum()" x=2.0
"""

import inspect
import io
import json
import token
import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tinygrad
from guide_lesson import Lesson, Picture, table, words
from tinygrad import Device, GlobalCounters, Tensor, nn
from tinygrad.mixin import gradient
from tinygrad.uop.ops import UOp

import tgx

HOME = Path(tinygrad.__file__).parent

# ---- the walk ------------------------------------------------------------------------------------

def loss_of_x() -> Tensor:
    x = Tensor([2.0]).realize()
    y = x * x
    loss = (y + x).sum()
    return loss


def loss_of_a_layer() -> Tensor:
    """The exercise: nn.Linear, annotated. Every input is 1 or 2, so the weights' gradients are."""
    Tensor.manual_seed(0)
    layer = nn.Linear(2, 3)
    Tensor.realize(layer.weight, layer.bias)
    x = Tensor([[1.0, 2.0]]).realize()
    return layer(x).sum()


def rule_of(walk, op: str) -> tuple[str, int, str]:
    """File, line and text of the rule that a recorded step went by."""
    (number,) = {step.rule for step in walk.steps if step.op == op}
    rule = walk.trace.rules[number]
    return walk.trace.files[rule.file].path, rule.line, rule.text


def way_there() -> list[tuple[str, str]]:
    """What x * x calls on its way to a node of the graph, and where each stands."""
    return [(name, place(f)) for name, f in (
        ("Tensor.__mul__", Tensor.__mul__), ("Tensor.mul", Tensor.mul),
        ("Tensor._binop", Tensor._binop), ("Tensor.alu", Tensor.alu), ("UOp.alu", UOp.alu))]


def way_back() -> list[tuple[str, str]]:
    """What backward() calls, and where each stands."""
    return [(name, place(f)) for name, f in (
        ("Tensor.backward", Tensor.backward), ("Tensor.gradient", Tensor.gradient),
        ("compute_gradient", gradient.compute_gradient), ("_deepwalk", gradient._deepwalk))]


def place(function: Callable) -> str:
    """tinygrad/mixin/elementwise.py:121"""
    function = inspect.unwrap(function)
    path = Path(inspect.getsourcefile(function)).relative_to(HOME.parent)
    return f"{path.as_posix()}:{inspect.getsourcelines(function)[1]}"


# ---- lazy ----------------------------------------------------------------------------------------

def kernels(work: Callable[[], object]) -> int:
    """How many kernels ran in there."""
    before = GlobalCounters.kernel_count
    work()
    return GlobalCounters.kernel_count - before


def guides_first_example() -> tuple[tuple[int, ...], int, np.ndarray, np.ndarray]:
    """Section 14: the shape of z = x @ w, kernels before .numpy(), w's gradient, and by hand.

    loss = Σ relu(z), so each weight's gradient is its input, where z > 0.
    """
    Tensor.manual_seed(0)
    x, w = Tensor([[1.0, 2.0, 3.0]]).realize(), Tensor.kaiming_uniform(3, 4).realize()
    before = GlobalCounters.kernel_count
    z = x.matmul(w)
    loss = z.relu().sum()
    loss.backward()
    waiting = GlobalCounters.kernel_count - before
    by_hand = x.numpy().T @ (z.numpy() > 0)
    return z.shape, waiting, w.grad.numpy(), by_hand


def source_of(work: Callable[[], Tensor]) -> str:
    """The last kernel's source, as its device compiled it."""
    with tgx.trace() as t:
        work().realize()
    program = t.trace.programs[t.kernels[-1].program]
    return next(code.text for code in program.code if code.level == "source")


def readable(source: str, lines: int = 12) -> str:
    """Its first lines; of TGX's tiled kernels the loops they were made of, which say it all."""
    head = source.splitlines()[0]
    if head.startswith("; tgx path ") and (nest := json.loads(head[11:]).get("nest")):
        return nest
    return "\n".join(source.splitlines()[:lines])


# ---- the map -------------------------------------------------------------------------------------

# the guide's file and what it says of it: where that is now, and what to look for there
MAP: dict[str, list[tuple[str, str]]] = {
    "tensor.py: Tensor, all ops, autograd engine": [
        ("tensor.py", "class Tensor"), ("mixin/elementwise.py", "def relu"),
        ("mixin/op.py", "def softmax"), ("mixin/movement.py", "def permute"),
        ("mixin/reduce.py", "def sum"), ("mixin/rand.py", "def kaiming_uniform"),
        ("mixin/gradient.py", "pm_gradient = PatternMatcher"),
        ("mixin/gradient.py", "def compute_gradient")],
    "lazybuffer.py: lazy evaluation, the graph": [
        ("uop/ops.py", "class UOp"), ("schedule/rangeify.py", "PatternMatcher")],
    "ops.py: all primitive operations": [
        ("uop/__init__.py", "class Ops"), ("uop/symbolic.py", "PatternMatcher")],
    "nn/optim.py: SGD, Adam, AdaGrad": [("nn/optim.py", "def Adam"), ("nn/optim.py", "def SGD")],
    "runtime/ops_cpu.py: how ops run on the CPU": [
        ("runtime/ops_cpu.py", "class CPUDevice"), ("renderer/cstyle.py", "class ClangRenderer")],
    "runtime/ops_gpu.py: ... on the GPU": [
        ("runtime/ops_cl.py", "class CLDevice"), ("runtime/ops_cuda.py", "class CUDADevice")],
}
GONE = ("lazybuffer.py", "ops.py", "runtime/ops_gpu.py")  # and AdaGrad: lesson 5 has it

# micrograd's parts and tinygrad's: (micrograd, tinygrad, is it really there?)
BRIDGE: list[tuple[str, str, Callable[[], bool]]] = [
    ("Value", "Tensor, and the UOp in it", lambda: isinstance(Tensor([1.0]).uop, UOp)),
    ("_prev", "UOp.src", lambda: len((Tensor([1.0]) + 2).uop.src) > 0),
    ("_op", "UOp.op", lambda: (Tensor([1.0]).realize() * Tensor([2.0])).uop.op.name == "MUL"),
    ("_backward", "a row of pm_gradient", lambda: len(gradient.pm_gradient.patterns) > 20),
    ("topological order", "UOp.toposort", lambda: callable(UOp.toposort)),
    ("+=", "grads[k] + v in compute_gradient",
     lambda: "grads[k]+v" in inspect.getsource(gradient.compute_gradient).replace(" ", "")),
    ("data", "a buffer, once it is realized",
     lambda: Tensor([1.0]).contiguous().realize().uop.is_realized),
]


def find(path: str, text: str) -> int:
    """The line of a file of tinygrad's that has this text; 0 if none has, -1 without the file."""
    if not (HOME / path).is_file():
        return -1
    lines = (HOME / path).read_text().splitlines()
    return next((i for i, line in enumerate(lines, 1) if text in line), 0)


def backends() -> list[str]:
    """The devices tinygrad's wheel has a file for, the pretending ones left out."""
    other = {"DISK", "NPY", "NULL", "PYTHON", "RDMA", "TINYFS"}
    names = {path.stem[4:].upper() for path in (HOME / "runtime").glob("ops_*.py")}
    return sorted(names - other)


NOT_CORE = ("llm", "nn", "renderer", "runtime", "viz")


def lines_of_code(folder: Path, without: tuple[str, ...] = ()) -> int:
    """Lines that hold code: no comments, no docstrings, no empty ones; as tinygrad's own sz.py."""
    layout = {token.NEWLINE, token.NL, token.COMMENT, token.INDENT, token.DEDENT, token.ENDMARKER,
              token.ENCODING}
    total = 0
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] in without:
            continue
        found, before = set(), token.NEWLINE
        for t in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            doc = t.type == token.STRING and before in (token.NEWLINE, token.INDENT, token.NL)
            if t.type not in layout and not doc:
                found.update(range(t.start[0], t.end[0] + 1))
            before = t.type
        total += len(found)
    return total


# ---- the lesson ----------------------------------------------------------------------------------

def draw(walk) -> str:
    """The graph of the loss with what went back over each arrow, from the recorded steps."""
    page = Picture("backward() of L = x·x + x at x = 2", 1080, 300,
                   "the graph of the loss, values forward, gradients backward, and the two rules")
    for x, y, text, value, css in ((50, 120, "x", "2", "blue"), (300, 70, "MUL", "4", "grey"),
                                   (560, 120, "ADD", "6", "grey"), (800, 120, "loss", "6", "grey")):
        page.add(f'<rect class="box" x="{x}" y="{y}" width="110" height="56" rx="5"/>',
                 words(x + 55, y + 24, text, "head", "middle"),
                 words(x + 55, y + 44, f"= {value}", f"ink {css}", "middle"))
    arrows = [(160, 138, 300, 98, "2 (x)", "2"), (160, 146, 300, 112, "2 (x)", "2"),
              (410, 98, 560, 138, "4", "1"), (160, 166, 560, 166, "2", "1"),
              (670, 148, 800, 148, "6", "1")]
    for x1, y1, x2, y2, _, _ in arrows:
        page.add(f'<path class="line grey thin" d="M{x1} {y1}L{x2} {y2}"/>')
    for x, y, text in ((196, 98, "+2 and +2"), (470, 100, "1"), (350, 186, "+1"), (726, 138, "1")):
        page.add(words(x, y, "← " + text, "ink orange"))
    page.add(words(50, 206, "1 + 2 + 2 = 5 = 2x + 1", "ink orange"),
             words(300, 60, "rule of MUL: each operand gets ctx times the other", "quiet"),
             words(560, 110, "rule of ADD: both get ctx", "quiet"))
    for i, op in enumerate(("ADD", "MUL")):
        page.add(words(50, 246 + 22 * i, "{}:{}   {}".format(*rule_of(walk, op)), "quiet"))
    page.add(words(1054, 32, "grey: there; orange: back", "quiet", "end"))
    return str(page)


def main() -> None:
    lesson = Lesson("11_walkthrough", __doc__)

    lesson.part("The way there: x * x", "Five calls, and one node of a graph. Nothing is computed.")
    print(table(("", "stands in"), way_there()))

    lesson.part("The way back: backward()")
    print(table(("", "stands in"), way_back()))
    walk = tgx.backward(loss_of_x)
    lesson.say("", "From last to first; `ctx` is what came in (this is `tgx backward`):", str(walk))

    if not lesson.quick:
        lesson.part("nn.Linear(2, 3), the same way")
        lesson.say(tgx.backward(loss_of_a_layer).render("text", level="operations"))

    lesson.part("Lazy")
    shape, waiting, found, by_hand = guides_first_example()
    x = Tensor(np.linspace(-1, 1, 1000, dtype=np.float32)).realize()
    a, b = (Tensor.ones(8, 8).contiguous().realize() for _ in range(2))
    lesson.beside(
        ("z = x @ w: shape", "[1, 4]", str(list(shape))),
        ("kernels before .numpy()", "lazy", str(waiting)),
        ("w.grad against xᵀ·1[z > 0]", "", f"{abs(found - by_hand).max():g} apart"),
        ("relu(x)·2 + 1", "one kernel", str(kernels(lambda: (x.relu() * 2 + 1).realize()))),
        ("relu(a @ b)", "", str(kernels(lambda: (a @ b).relu().realize()))),
        ("tinygrad's core: lines of code", "~1000", f"{lines_of_code(HOME, NOT_CORE):,}",
         "no thousand any more"),
        ("  the way back alone (mixin/gradient.py)", "",
         str(len((HOME / "mixin/gradient.py").read_text().splitlines()))),
        ("runs on", "CPU, GPU, CUDA, Metal, WebGPU", ", ".join(backends())),
        ("  here on", "", Device.DEFAULT),
        ("in production", "comma.ai", "not measured: github.com/commaai/openpilot says so"))
    lesson.say("", f"relu(a @ b) as {Device.DEFAULT} was given it:",
               readable(source_of(lambda: (a @ b).relu())))

    lesson.part("Where the guide's files are")
    print(table(("the guide", "today", "look for", "line"), [
        (old if not i else "", path, text, str(find(path, text)))
        for old, rows in MAP.items() for i, (path, text) in enumerate(rows)], right=(3,)))
    lesson.say("⚠ gone: " + ", ".join(GONE) + "; and AdaGrad", "")
    print(table(("micrograd", "tinygrad", "there?"),
                [(old, new, str(there())) for old, new, there in BRIDGE]))

    lesson.picture(draw(walk))
    lesson.kernels(lambda: (x.relu() * 2 + 1).realize())


if __name__ == "__main__":
    main()
