"""Recovery: known kernels give known nests, and every nest equals the expression it came from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from nests import buffers, interpret_ast, interpret_nest, kernels
from tinygrad import Context, Tensor, Variable, dtypes, nn

from tgx.devices import nest as nest_module
from tgx.devices.merge import merged
from tgx.devices.nest import Miss
from tgx.devices.plan import Machine, plan
from tgx.devices.recover import recover, residues


def empty(*shape: int, dtype: Any = dtypes.float) -> Tensor:
    return Tensor.empty(*shape, dtype=dtype, device="NULL")


def conv(
    n: int, cin: int, h: int, w: int, cout: int, k: int, which: str, **how: Any
) -> Callable[[], Any]:
    """One kernel of a convolution: "y", or the gradient of "x" or "w"."""

    def work() -> Any:
        x, weight = empty(n, cin, h, w), empty(cout, cin // how.get("groups", 1), k, k)
        y = x.conv2d(weight, **how)
        if which == "y":
            return y.realize()
        dx, dw = y.gradient(x, weight, gradient=empty(*y.shape))
        return (dx if which == "x" else dw).contiguous().realize()

    return work


def pool_backward() -> Any:
    x = empty(2, 4, 14, 14)
    y = x.relu().max_pool2d(2)
    return y.gradient(x, gradient=empty(*y.shape))[0].contiguous().realize()


def two_gradients() -> Any:
    """The end of a residual block: two convolutions share an input, so its gradient is two sums."""
    x = empty(2, 4, 8, 8)
    r = x.relu()
    a, b = r.conv2d(empty(8, 4, 3, 3), stride=2, padding=1), r.conv2d(empty(8, 4, 1, 1), stride=2)
    return (a + b).gradient(x, gradient=empty(2, 8, 4, 4))[0].contiguous().realize()


# ---------- known answers ----------

GOLDEN: dict[str, tuple[Callable[[], Any], str]] = {
    "matmul": (
        lambda: (empty(64, 784) @ empty(256, 784).T).realize(),
        """\
for o0:64 o1:256 sum r0:784
  p0[256*o0 + o1] = add((p1[784*o0 + r0] * p2[784*o1 + r0]))""",
    ),
    "conv forward": (
        conv(64, 32, 14, 14, 64, 3, "y", padding=1),
        """\
for o0:64 o1:64 o2:14 o3:14 sum r0:32 r1:3 r2:3
  where r1=0: o2 in [1,14), r1=1: o2 in [0,14), r1=2: o2 in [0,13)
  where r2=0: o3 in [1,14), r2=1: o3 in [0,14), r2=2: o3 in [0,13)
  p0[12544*o0 + 196*o1 + 14*o2 + o3] = add((p1[6272*o0 + 14*o2 + o3 + 196*r0 + 14*r1 + r2 + -15] \
if [r1,o2: 40 of 42] if [r2,o3: 40 of 42] * p2[288*o1 + 9*r0 + 3*r1 + r2]))""",
    ),
    "stride 2 forward": (
        conv(4, 8, 14, 14, 8, 3, "y", padding=1, stride=2),
        """\
for o0:4 o1:8 o2:7 o3:7 sum r0:8 r1:3 r2:3
  where r1=0: o2 in [1,7), r1=1: o2 in [0,7), r1=2: o2 in [0,7)
  where r2=0: o3 in [1,7), r2=1: o3 in [0,7), r2=2: o3 in [0,7)
  p0[392*o0 + 49*o1 + 7*o2 + o3] = add((p1[1568*o0 + 28*o2 + 2*o3 + 196*r0 + 14*r1 + r2 + -15] \
if [r1,o2: 20 of 21] if [r2,o3: 20 of 21] * p2[72*o1 + 9*r0 + 3*r1 + r2]))""",
    ),
}


def text(work: Callable[[], Any]) -> str:
    (ast,) = kernels(work)
    return show(recover(ast))


def show(nest: nest_module.Nest) -> str:
    """The nest with all masks of its loads, also those that the loops imply."""
    old = nest_module.Access.__str__
    try:
        nest_module.Access.__str__ = lambda a: (  # type: ignore[method-assign]
            f"p{a.slot}[{a.index}]" + "".join(f" if {m}" for m in a.masks)
        )
        return str(nest)
    finally:
        nest_module.Access.__str__ = old  # type: ignore[method-assign]


@pytest.mark.parametrize("name", GOLDEN)
def test_known_nests(name: str) -> None:
    work, expected = GOLDEN[name]
    assert text(work) == expected


def test_input_gradient_is_a_plain_convolution() -> None:
    """16x16 gated taps with // 17 and % 17 turn out to be h - r, three taps of four."""
    asts = kernels(conv(64, 32, 14, 14, 64, 3, "x", padding=1))
    nests = [recover(a) for a in asts]
    taps = next(n for n in nests if n.reduction is not None)
    assert [a.size for a in taps.axes if not a.out] == [64, 3, 3]
    assert "14*o2 + o3 + 196*r0 + -14*r1 + -1*r2" in str(taps)


def test_strided_input_gradient_loses_its_stride() -> None:
    """Both the output and the taps are split by the stride; no gate with a modulus is left."""
    (ast,) = (
        a
        for a in kernels(conv(2, 3, 8, 8, 4, 3, "x", padding=1, stride=2))
        if any(x.op.name == "REDUCE" for x in a.toposort())
    )
    nest = recover(ast)
    assert sorted(a.size for a in nest.axes if a.out).count(2) >= 2
    assert all("%" not in str(n.arg) for n in nest.value.walk())


def test_pool_backward_is_elementwise() -> None:
    """Each input belongs to one window: the sum over 3x3 gated taps is gone."""
    nests = [recover(a) for a in kernels(pool_backward)]
    assert any(
        n.reduction is None and [a.size for a in n.axes][-4:] == [7, 2, 7, 2] for n in nests
    ), nests


def test_planes_merge_into_one_axis() -> None:
    (ast,) = kernels(GOLDEN["conv forward"][0])
    flat = merged(recover(ast))
    assert [a.size for a in flat.axes if a.out] == [64, 64, 196]
    assert flat.domain[0].table.sum() == 40 * 40


# ---------- every nest equals its kernel ----------


def property_cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {"pool backward": pool_backward}
    menu = itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (1, 2))
    for i, (stride, padding, dilation, groups) in enumerate(menu):
        which, k, h, w = "yxw"[i % 3], (3, 2, 1)[i // 3 % 3], 5 + i % 4, 5 + i % 3
        if (k - 1) * dilation + 1 <= min(h, w) + 2 * padding:
            how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            cases[f"{which} {k}x{k} on {h}x{w} {how}"] = conv(2, 4, h, w, 4, k, which, **how)
    for ta, tb in itertools.product((False, True), repeat=2):
        cases[f"matmul {'t' if ta else 'n'}{'t' if tb else 'n'}"] = lambda ta=ta, tb=tb: (
            (empty(7, 5).T if ta else empty(5, 7)) @ (empty(6, 7).T if tb else empty(7, 6))
        ).realize()
    cases["batched"] = lambda: (empty(3, 4, 5) @ empty(3, 5, 2)).realize()
    cases["pad, cat and flip"] = lambda: (
        Tensor.cat(empty(4, 3).pad(((1, 2), (0, 1))), empty(7, 2).flip(1), dim=1)
        .contiguous()
        .realize()
    )
    cases["max pool with padding"] = lambda: (
        empty(1, 2, 7, 7).max_pool2d(3, stride=2, padding=1).realize()
    )
    cases["average pool backward"] = lambda: (
        (x := empty(1, 2, 7, 6))
        .avg_pool2d(4, stride=2)
        .gradient(x, gradient=empty(1, 2, 2, 2))[0]
        .contiguous()
        .realize()
    )
    cases["triangle"] = lambda: (empty(5, 5).tril() @ empty(5, 3)).realize()
    cases["gather by stride"] = lambda: empty(40)[3:37:5].contiguous().realize()
    cases["two sums"] = two_gradients
    return cases


@pytest.mark.parametrize("name", property_cases())
def test_a_nest_equals_its_kernel(name: str) -> None:
    recovered = 0
    for ast in kernels(property_cases()[name]):
        try:
            nest = recover(ast)
        except Miss:
            continue
        recovered += 1
        data = buffers(ast)
        expected = interpret_ast(ast, data)
        for variant in (nest, merged(nest)):
            np.testing.assert_array_equal(interpret_nest(variant, data), expected, str(variant))
    assert recovered or name in TOO_HARD


# Input gradients of oddly dilated or grouped convolutions whose indices stay bent: they are misses.
TOO_HARD = {
    "x 1x1 on 8x6 {'stride': 1, 'padding': 1, 'dilation': 2, 'groups': 2}",
    "x 3x3 on 8x6 {'stride': 2, 'padding': 1, 'dilation': 2, 'groups': 2}",
    "x 3x3 on 5x6 {'stride': 3, 'padding': 1, 'dilation': 1, 'groups': 1}",
    "x 2x2 on 8x6 {'stride': 3, 'padding': 1, 'dilation': 2, 'groups': 2}",
}


def test_a_planted_error_is_seen() -> None:
    """The property test is worth something: an index that is off by one does not pass it."""
    (ast,) = kernels(GOLDEN["stride 2 forward"][0])
    nest, data = recover(ast), buffers(ast)
    loads = [n for n in nest.value.walk() if n.op == "load"]
    index = loads[-1].arg.index
    object.__setattr__(
        loads[-1].arg,
        "index",
        nest_module.Affine(index.const, tuple((a, c + (a == "r2")) for a, c in index.terms)),
    )
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(interpret_nest(nest, data), interpret_ast(ast, data))


# ---------- reasons ----------


def two_reductions() -> Any:
    x = empty(8, 16)
    return (x.sum(1) * x.max(1)).realize()


REASONS: dict[str, tuple[Callable[[], Any], str]] = {
    "gather": (
        lambda: empty(10, 4)[empty(3, dtype=dtypes.int)].realize(),
        "depends on loaded data",
    ),
    "symbolic": (lambda: empty(10)[: Variable("n", 1, 10).bind(3)].sum().realize(), "symbolic"),
    "fp8": (
        lambda: empty(8, dtype=dtypes.fp8e4m3).cast(dtypes.float).contiguous().realize(),
        "dtype float8",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_misses_say_why(name: str) -> None:
    work, reason = REASONS[name]
    reasons = []
    for ast in kernels(work):
        try:
            recover(ast)
        except Miss as miss:
            reasons.append(str(miss))
    assert any(reason in r for r in reasons), reasons


# ---------- the small parts ----------


def table(size_r: int, size_g: int, holds: Callable[[int, int], bool]) -> np.ndarray:
    return np.array([[holds(r, g) for g in range(size_g)] for r in range(size_r)])


def test_residues() -> None:
    assert residues(table(3, 12, lambda r, g: r == g % 2)) == (2, 1, 0, True)
    assert residues(table(4, 12, lambda r, g: (g - r) % 2 == 0)) == (2, 1, 0, False)
    assert residues(table(3, 9, lambda r, g: (g + r) % 3 == 2)) == (3, -1, 2, True)
    assert residues(table(3, 9, lambda r, g: 0 <= g - r < 7)) is None


def test_plan_prints_and_repeats() -> None:
    (ast,) = kernels(GOLDEN["matmul"][0])
    first = plan(recover(ast), Machine())
    assert str(first) == str(plan(recover(ast), Machine()))
    assert "tile " in str(first) and "chunks" in str(first)
    assert first.chunks <= 16


def test_every_kernel_of_the_guides_training_steps_is_recovered() -> None:
    class Net:
        def __init__(self) -> None:
            self.a, self.b, self.c = (
                nn.Conv2d(1, 4, 3, padding=1),
                nn.Conv2d(4, 8, 3, padding=1),
                nn.Linear(32, 10),
            )

        def __call__(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu().max_pool2d(2)).relu().max_pool2d(2).flatten(1))

    def step() -> Any:
        net = Net()
        params = nn.state.get_parameters(net)
        for p in params:
            p.replace(empty(*p.shape))
        opt = nn.optim.Adam(params)
        for p in nn.state.get_parameters(opt):
            p.replace(empty(*p.shape))
        loss = (
            net(empty(4, 1, 8, 8))
            .sparse_categorical_crossentropy(empty(4, dtype=dtypes.int))
            .backward()
        )
        return loss.realize(*opt.schedule_step())

    misses = []
    with Context(DEV="NULL"):
        asts = kernels(step)
    for ast in asts:
        try:
            plan(recover(ast), Machine())
        except Miss as miss:
            misses.append(str(miss))
    assert len(asts) > 25
    # the loss itself picks a logit by its label; single numbers need no loops
    assert set(misses) <= {"an index depends on loaded data", "no plan"}
    assert misses.count("an index depends on loaded data") <= 1
