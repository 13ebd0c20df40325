"""What `tgx bench` measures, and what is asked of TGX: two tables, no code that runs anything."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Case:
    """One line of the benchmark."""

    name: str
    kind: str  # train, infer, matmul, epoch, start
    model: str = ""  # a row of models.MODELS
    batch: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)  # of a matmul: rows, summed, columns
    form: str = "nn"  # t: that operand lies transposed in memory
    warm: bool = False  # of a start: the second process, which finds what the first one cached
    large: bool = False  # measured with --all only
    quick: bool = False  # measured with --quick too

    @property
    def gflop(self) -> float:
        """Of a matmul, in 10⁹ operations; 0 where it is not a matmul."""
        rows, summed, columns = self.shape
        return 2e-9 * rows * summed * columns


def _cases() -> tuple[Case, ...]:
    cases = [
        Case(f"{model}-{kind}-{batch}", kind, model, batch, quick=batch == 64)
        for model in ("mlp", "cnn")
        for kind in ("train", "infer")
        for batch in (1, 64, 1024)
    ]
    for shape, forms in (((512, 512, 512), ("nn",)), ((1024, 1024, 1024), FORMS), (GUIDE, FORMS)):
        size = str(shape[0]) if len(set(shape)) == 1 else "x".join(map(str, shape))
        cases += [
            Case(f"matmul-{size}-{form}", "matmul", shape=shape, form=form, quick=shape == GUIDE)
            for form in forms
        ]
    cases += [
        Case(f"start-{model}-{'warm' if warm else 'cold'}", "start", model, 64, warm=warm)
        for model in ("mlp", "cnn")
        for warm in (False, True)
    ]
    cases += [Case("epoch-mlp", "epoch", "mlp", 64)]
    cases += [
        Case("resnet18-infer-1", "infer", "resnet18", 1, large=True),
        Case("resnet18-train-2", "train", "resnet18", 2, large=True),
        Case("mobilenetv2-infer-1", "infer", "mobilenetv2", 1, large=True),
        Case("vit-infer-8", "infer", "vit", 8, large=True),
        Case("gpt2block-infer-1", "infer", "gpt2block", 1, large=True),
    ]
    return tuple(cases)


FORMS = ("nn", "nt", "tn", "tt")
GUIDE = (64, 784, 256)  # the MLP's first layer on a batch of 64
CASES = _cases()


@dataclass(frozen=True)
class Target:
    """What TGX should reach: a ratio of times (theirs / ours), or a limit in seconds of CPU."""

    case: str  # pattern
    against: str  # peers (the better of PyTorch and JAX), torch, stock; or cpu, a limit
    value: float

    def matches(self, case: str) -> bool:
        return fnmatch(case, self.case)


TARGETS = (
    Target("mlp-train-64", "peers", 1.0),
    Target("mlp-train-64", "torch", 1.5),
    Target("mlp-train-64", "stock", 4.5),
    Target("cnn-train-64", "peers", 1.7),
    Target("cnn-train-64", "stock", 14),
    Target("mlp-infer-64", "peers", 1.0),
    Target("mlp-infer-64", "stock", 4),
    Target("mlp-infer-1024", "peers", 1.0),
    Target("mlp-infer-1024", "stock", 4),
    Target("cnn-infer-64", "peers", 1.0),
    Target("cnn-infer-64", "stock", 9),
    Target("matmul-1024-*", "peers", 1.0),
    Target("matmul-1024-*", "stock", 3),
    Target("matmul-64x784x256-*", "peers", 1.0),
    Target("matmul-64x784x256-*", "stock", 3),
    Target("epoch-mlp", "peers", 1.2),
    Target("epoch-mlp", "stock", 3),
    Target("start-*-cold", "stock", 2),
    Target("start-mlp-warm", "cpu", 1),
    Target("start-cnn-warm", "cpu", 3),
    Target("resnet18-*", "stock", 2),
    Target("mobilenetv2-*", "stock", 2),
    Target("vit-*", "stock", 2),
    Target("gpt2block-*", "stock", 2),
)


def choose(only: str = "", quick: bool = False, large: bool = False) -> tuple[Case, ...]:
    """The case named `only`, or the cases whose name contains it or matches it as a pattern."""
    exact = tuple(case for case in CASES if case.name == only)
    return exact or tuple(
        case
        for case in CASES
        if (only in case.name or fnmatch(case.name, only))
        and (case.quick or not quick)
        and (large or not case.large or only)
    )
