"""tgx extract and tgx bisect: one kernel by itself, and what makes it wrong."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tinygrad import Device, Tensor, dtypes
from tinygrad.uop.ops import KernelInfo, Ops, ParamArg, PatternMatcher, UOp

import tgx
from tgx import codec
from tgx.adapter import bisect, extract, reference
from tgx.errors import BadInput
from tgx.model import Code, Trace

needs_tgx = pytest.mark.skipif(
    not Device.DEFAULT.startswith("TGX"), reason="plants bugs in the device TGX"
)


def record(program: Callable[[], object]) -> Trace:
    with tgx.trace() as t:
        program()
    return t.trace


def some_kernels() -> None:
    Tensor.manual_seed(1)
    x = Tensor.rand(12, 20).contiguous().realize()
    w = Tensor.rand(8, 20).contiguous().realize()
    (x @ w.T).relu().realize()
    x.pad(((1, 2), (0, 0))).max(axis=1).realize()
    x.softmax().realize()
    x[Tensor([3, 1, 2])].realize()
    x.cast(dtypes.half).sum(0).realize()
    (x > 0.5).where(x.sin(), x.log()).realize()
    (x.flatten()[:30] * 100).cast(dtypes.int32).bitwise_xor(5).realize()


@pytest.fixture(scope="module")
def trace() -> Trace:
    return record(some_kernels)


def test_extracted_kernels_agree_with_numpy(trace: Trace) -> None:
    """The script's own check, in this process: every kernel NumPy has a reference for."""
    checked = 0
    for k in trace.kernels:
        if k.program < 0 or k.phase == "data":
            continue
        scope: dict[str, Any] = {"__name__": "extracted"}
        exec(compile(extract.script(trace, k.id), "kernel.py", "exec"), scope)
        ast = scope["build"](Device.DEFAULT)
        arrays = scope["inputs"](ast)
        wanted = [a.copy() for a in arrays]
        written = scope["run"](ast, wanted, {})
        got = scope["on_device"](Device.DEFAULT, arrays)
        assert any(m.any() for m in written), k.name
        names = ["float"] * len(arrays)
        assert scope["difference"](got, wanted, written, names) == "", k.name
        checked += 1
    assert checked >= 8


def kernel_named(trace: Trace, name: str) -> int:
    return next(k.id for k in trace.kernels if k.name == name)


def test_the_script_stands_alone(tmp_path: Path, trace: Trace) -> None:
    """It runs by itself, passes on a right kernel and fails on one that is made wrong."""
    text = extract.script(trace, kernel_named(trace, "matmul + relu"))
    assert "test_bisect.py" in text.splitlines()[0]
    good = tmp_path / "kernel.py"
    good.write_text(text)
    wrong = tmp_path / "wrong.py"  # the device is given another kernel than NumPy
    wrong.write_text(
        text.replace(
            "    ast = build(device)\n",
            "    ast = build(device)\n    ast = ast.substitute({u: UOp(Ops.MAX, src="
            "(u.src[0], u.src[1] * 2.0)) for u in ast.toposort() "
            "if u.op is Ops.MAX})\n",
        )
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    for path, code, said in ((good, 0, "right:"), (wrong, 1, "values differ")):
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, timeout=200, env=env
        )
        assert done.returncode == code and said in done.stdout, done.stderr


@pytest.mark.parametrize("text", [
    "import os\nast = UOp(Ops.NOOP)",
    "ast = __import__('os').system('true')",
    "ast = UOp.__subclasses__()",
    "ast = open('/etc/passwd')",
    "ast = (lambda: 1)()",
    "ast = [x for x in (1, 2)]",
    "UOp = 3\nast = UOp",
    "x = UOp(Ops.NOOP)",
    "ast = f'{UOp}'",
    "ast = UOp(",
    "def ast(): pass",
    "ast = (1)(2)",
    "ast = UOp(Ops.NOOP)\nwhile True: pass",
])  # fmt: skip
def test_a_strangers_code_is_not_copied(trace: Trace, text: str) -> None:
    from dataclasses import replace

    k = trace.kernel(kernel_named(trace, "matmul + relu"))
    programs = tuple(
        replace(p, code=(Code("ast", text, "python"),)) if p.id == k.program else p
        for p in trace.programs
    )
    with pytest.raises(BadInput, match="the kernel's code"):
        extract.script(replace(trace, programs=programs), k.id)


def test_what_cannot_be_extracted_says_so(trace: Trace) -> None:
    with pytest.raises(BadInput, match="this trace has kernels"):
        extract.script(trace, 999)
    copy = next(k.id for k in trace.kernels if k.kind == "copy")
    with pytest.raises(BadInput, match="has no code"):
        extract.script(trace, copy)


def test_the_reference_samples_what_is_too_big(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_ELEMENTS", 100)
    i = UOp.range(50, 0)
    j = UOp.range(20, 1)
    out = UOp(Ops.PARAM, src=(UOp.const(1000),), arg=ParamArg(0, dtypes.float))
    read = UOp(Ops.PARAM, src=(UOp.const(1000),), arg=ParamArg(1, dtypes.float)).index(i * 20 + j)
    ast = out.index(i * 20 + j).store(read + 1).end(i, j).sink(arg=KernelInfo())
    arrays = [np.zeros(1000, np.float32), np.arange(1000, dtype=np.float32)]
    (mask, _) = reference.run(ast, arrays)
    assert 0 < mask.sum() <= 100
    assert (arrays[0][mask] == arrays[1][mask] + 1).all()


# **** bugs, planted ****


def elementwise(value: Callable[[UOp, UOp], UOp], size: int = 64) -> UOp:
    """out[i] = value(a[i], b[i])."""
    i = UOp.range(size, 0)

    def read(slot: int) -> UOp:
        param = UOp(Ops.PARAM, src=(UOp.const(size),), arg=ParamArg(slot, dtypes.float))
        return param.index(i)

    out = UOp(Ops.PARAM, src=(UOp.const(size),), arg=ParamArg(0, dtypes.float)).index(i)
    return out.store(value(read(1), read(2))).end(i).sink(arg=KernelInfo())


def matmul(n: int = 16) -> UOp:
    i, j, k = UOp.range(n, 0), UOp.range(n, 1), UOp.range(n, 2)

    def param(slot: int) -> UOp:
        return UOp(Ops.PARAM, src=(UOp.const(n * n),), arg=ParamArg(slot, dtypes.float))

    product = param(1).index(i * n + k) * param(2).index(k * n + j)
    total = product.reduce(k, arg=(Ops.ADD, 0))
    return param(0).index(i * n + j).store(total).end(i, j).sink(arg=KernelInfo())


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGX_FAST", "0")


def test_nothing_is_wrong() -> None:
    assert bisect.bisect_ast(matmul(), Device.DEFAULT).kind == "right"


def entries(place: tuple[str, int]) -> Iterator[list[Any]]:
    """Every matcher's entry for the rule at a place, wherever matchers were joined."""
    for matcher in [m for m in gc.get_objects() if isinstance(m, PatternMatcher)]:
        for rows in matcher.pdict.values():
            yield from (e for e in rows if e[0].location == place)


def test_a_rewrite_rule(slowly: None) -> None:
    ast = elementwise(lambda a, b: (a * 3.0) * 2.0 + b)
    trial = bisect.Trial(ast, Device.DEFAULT)
    fired: dict[Any, None] = {}
    assert trial.wrong(heard=fired) == ""
    # the rule that folds the two constants
    place = next(p for p in fired if 'UPat.cvar("c1")' in _line(p) and 'cvar("c2")' in _line(p))
    planted = []
    for entry in entries(place):
        planted.append((entry, entry[1]))

        def wrong(uop: UOp, ctx: Any, right: Any = entry[1]) -> Any:
            made = right(uop, ctx)
            return made + 1.0 if made is not None and made.dtype == dtypes.float else made

        entry[1] = wrong
    try:
        verdict = bisect.bisect_ast(ast, Device.DEFAULT)
    finally:
        for entry, right in planted:
            entry[1] = right
    assert verdict.kind == "rule", verdict
    assert verdict.place.endswith(f"{Path(place[0]).name}:{place[1]}")
    assert bisect.bisect_ast(ast, Device.DEFAULT).kind == "right"


def _line(place: tuple[str, int]) -> str:
    import linecache

    return linecache.getline(*place).strip()


@needs_tgx
def test_an_emitter_row(slowly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.devices import renderer

    plain = renderer.EMIT[Ops.SQRT]

    def wrong(body: Any, u: UOp) -> None:
        plain(body, u)
        body.names[u] = body.names[u.src[0]] if u.src[0] in body.names else body.names[u]

    monkeypatch.setitem(renderer.EMIT, Ops.SQRT, wrong)
    ast = elementwise(lambda a, b: UOp(Ops.SQRT, src=(a * a + 1.0,)) + b)
    verdict = bisect.bisect_ast(ast, "TGX")
    assert verdict.kind == "emitter row" and verdict.name.startswith("Ops.SQRT"), verdict
    assert verdict.place.endswith("renderer.py")


def test_an_optimisation(slowly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad.codegen.opt import OptOps
    from tinygrad.codegen.opt.postrange import AxisType, Scheduler

    plain = Scheduler.shift_to

    def wrong(self: Any, rng: UOp, amount: int, new_type: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, rng, amount, new_type, *args, **kwargs)
        if new_type is AxisType.UPCAST:  # every element is the first
            first, new = result
            self.ast = self.ast.substitute({first * amount + new: first * amount + new * 0})
        return result

    monkeypatch.setattr(Scheduler, "shift_to", wrong)
    verdict = bisect.bisect_ast(elementwise(lambda a, b: a + b), Device.DEFAULT)
    assert verdict.kind == "optimisation" and OptOps.UPCAST.name in verdict.name, verdict


@needs_tgx
def test_a_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.devices import contract

    plain = contract.emit

    def wrong(*args: Any, **kwargs: Any) -> str:
        return (
            plain(*args, **kwargs)
            .replace("fadd ", "fsub ")
            .replace("@llvm.fmuladd", "@llvm.fmuladd")
            .replace("fmul ", "fadd ")
        )

    monkeypatch.setattr(contract, "emit", wrong)
    verdict = bisect.bisect_ast(elementwise(lambda a, b: a * b + a), "TGX")
    assert verdict.kind == "path" and verdict.name == "tile", verdict


def test_a_gradient_rule() -> None:
    from tinygrad.mixin.gradient import pm_gradient

    def program() -> None:
        w = Tensor([[1.0, 2.0], [3.0, 4.0]]).contiguous().realize()
        (w * w * 3).sum().backward()
        assert w.grad is not None
        w.grad.realize()

    (entry,) = pm_gradient.pdict[Ops.MUL]
    right = entry[1]
    entry[1] = lambda uop, ctx: (uop.src[1] * ctx, uop.src[0] * ctx * 2)
    try:
        trace = record(program)
        kernel = next(k.id for k in trace.kernels if k.phase == "backward")
        verdict = bisect.bisect(trace, kernel)
    finally:
        entry[1] = right
    assert verdict.kind == "gradient rule" and verdict.name == "of Ops.MUL", verdict
    assert "mixin/gradient.py:" in verdict.place and "Ops.MUL" in verdict.text
    assert bisect.bisect(trace, kernel).kind == "right"


def test_every_gradient_that_can_be_tried_is_right() -> None:
    for op in ("MUL", "MAX", "EXP2", "REDUCE MAX", "PAD", "WHERE"):
        assert bisect.wrong_gradient([op], Device.DEFAULT) is None, op


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tgx", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
    )


def test_the_commands(tmp_path: Path) -> None:
    """tgx extract and tgx bisect on a trace of the repository."""
    recorded = codec.read(ROOT / "traces" / "mlp")
    k = next(k for k in recorded.kernels if "layer3" in k.name and k.phase == "forward")
    words = (str(ROOT / "traces" / "mlp"), "--kernel", str(k.id))
    done = command(tmp_path, "extract", *words, "-o", "one.py")
    assert done.returncode == 0, done.stderr
    assert "guide_step.py" in (tmp_path / "one.py").read_text().splitlines()[0]
    done = command(tmp_path, "bisect", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "right"
    done = command(tmp_path, "extract", words[0], "--kernel", "99999")
    assert done.returncode == 2 and "this trace has kernels" in done.stderr
