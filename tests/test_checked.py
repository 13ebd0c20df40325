"""TGX_CHECK=1: what is wrong is found and named, what is right is left alone.

A planted bug is a patch of the code; the test says what the error must say. Each device here is
checked because it was opened with TGX_CHECK set; TGX itself stays as it is.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import check_cost
import models
import numpy as np
import programs
import pytest
from tinygrad import Context, Tensor, TinyJit
from tinygrad.uop.ops import Ops, UOp

import tgx
from tgx import settings
from tgx.devices import contract, renderer
from tgx.devices.checking import memories
from tgx.devices.instrument import Argument, checked
from tgx.devices.values import Values
from tgx.errors import BadSetting, CheckFailed

CHECKED = check_cost.CHECKED


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    """The checked device is open; programs of planted bugs go into no cache."""
    check_cost.checked_device()
    with Context(CCACHE=0):
        right()  # compiled before anything is planted
        yield


@pytest.fixture
def plain() -> Iterator[None]:
    """The loops path, for every kernel."""
    with settings.set_to("TGX_FAST", "0"):
        yield


def tensor(data: object) -> Tensor:
    return Tensor(data, device=CHECKED)  # type: ignore[arg-type]


def empty(*shape: int) -> Tensor:
    return Tensor.empty(*shape, device=CHECKED)


def some(*shape: int) -> Tensor:
    """Random numbers on the checked device, never zero."""
    numbers = np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape).astype(np.float32)
    return tensor(numbers).realize()


def failure(run: Callable[[], object], kind: str) -> CheckFailed:
    """The error of a program that must fail; the device works afterwards."""
    with pytest.raises(CheckFailed) as caught:
        run()
    assert caught.value.kind == kind, caught.value
    right()
    return caught.value


def right() -> None:
    """A kernel whose result is known."""
    x = some(7, 5)
    np.testing.assert_allclose((x @ x.T).numpy(), x.numpy() @ x.numpy().T, rtol=1e-5)


# **************** accesses outside of a buffer ****************


def shifted(body: renderer.Body, u: UOp) -> None:
    """emit_index, off by one where an element is stored."""
    renderer.emit_index(body, u)
    if renderer.is_pointer(u.src[0]) and u.src[0].arg.slot == 0:
        kind = renderer.memory_type(u.dtype)
        body.names[u] = body.value(f"getelementptr {kind}, ptr {body[u]}, i64 1")


@pytest.mark.usefixtures("plain")
def test_a_store_off_by_one_on_the_loops_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in (Ops.INDEX, Ops.SHRINK):
        monkeypatch.setitem(renderer.EMIT, op, shifted)
    x = some(11, 13)
    error = failure(lambda: (x + 3).realize(), "bounds")
    assert error.kernel.startswith("E_") and error.buffer == "data0" and error.index == 143
    assert re.search(
        r"kernel E_\w*, chunk 0 writes outside of a buffer: element 143 of data0 "
        r"\(143 elements of float, 572 bytes\)\n"
        r"  asked for at .*test_checked.py:\d+: error = failure.*\n"
        r"  expected: an index from 0 to 142\n  next: ",
        str(error),
    )


def test_a_store_off_by_one_on_the_tile_path(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Values.pointer

    def pointer(self: Values, access: object, scope: object, extra: int = 0) -> str:
        wrong = access == self.nest.store
        return plain(self, access, scope, extra + wrong)  # type: ignore[arg-type]

    monkeypatch.setattr(Values, "pointer", pointer)
    x, w = some(12, 20), some(20, 24)
    error = failure(lambda: (x @ w).realize(), "bounds")
    assert (error.buffer, error.index) == ("data0", 12 * 24)


@pytest.mark.usefixtures("plain")
def test_a_dropped_gate_on_the_loops_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def ungated(body: renderer.Body, u: UOp) -> None:
        body.names[u] = renderer.load(body, u.src[0])

    monkeypatch.setitem(renderer.EMIT, Ops.LOAD, ungated)
    x = some(9)
    error = failure(lambda: x.pad((3, 2)).contiguous().realize(), "bounds")
    assert "reads outside" in str(error) and error.buffer == "data1" and error.index == -3


def test_a_dropped_mask_on_the_tile_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Values, "mask_of", lambda *_: None)
    x, w = some(1, 2, 9, 9), some(3, 2, 3, 3)
    error = failure(lambda: x.conv2d(w, padding=1).realize(), "bounds")
    assert "reads outside" in str(error) and error.buffer == "data1"


def test_a_hand_written_kernel_that_reads_too_far() -> None:
    text = """
define void @mine(ptr noalias readonly %args, i64 %chunk) nounwind {
  %a.at = getelementptr inbounds ptr, ptr %args, i64 1
  %a = load ptr, ptr %a.at, align 8
  %p = getelementptr float, ptr %a, i64 13
  %v = load <4 x float>, ptr %p, align 4
  ret void
}
"""
    two = [Argument("data0", 64, "float", 4), Argument("data1", 64, "float", 4)]
    assert '"kind":"access"' in table(checked(text, two))
    assert '"kind":"access"' not in table(checked(text.replace("i64 13", "i64 12"), two))


def table(text: str) -> str:
    line = next(x for x in text.splitlines() if ".tgx.table = " in x)
    return line.replace("\\22", '"')


def test_a_buffer_smaller_than_the_kernel_was_made_for() -> None:
    x = some(6, 6)
    y = (x * 5).realize()
    from tinygrad.engine import realize

    runtime = next(r for (_, d), r in realize.runtime_cache.items() if d == CHECKED and
                   r.table.arguments[0].bytes == 144 and len(r.table.arguments) == 2)  # fmt: skip
    whole, part = x.uop.base.realized._buf, y.uop.base.realized._buf
    small = type(part)(part.address, 100, part)
    error = failure(lambda: runtime(small, whole, vals=()), "size")
    assert "buffer data0 has 100 bytes" in str(error) and "at least 144" in str(error)


def test_a_last_block_that_reaches_past_the_outputs_loads_nothing_there() -> None:
    """Found by this mode: in the gradient of a max-pool that leaves a row over, 5 rows are walked
    as 3 times 2; the sixth was not stored, but what it depends on was loaded."""
    x = some(3, 1, 5, 2)
    (gradient,) = x.exp().max_pool2d(2).sum().gradient(x)
    numbers = x.numpy().reshape(3, 5, 2)
    pairs = numbers[:, :4].reshape(3, 2, 4)
    largest = pairs.max(-1, keepdims=True)
    wanted = np.zeros_like(numbers)
    wanted[:, :4] = np.where(pairs == largest, np.exp(pairs), 0).reshape(3, 4, 2)
    np.testing.assert_allclose(gradient.numpy().reshape(3, 5, 2), wanted, rtol=1e-5)


# **************** memory ****************


def test_memory_that_was_never_written() -> None:
    error = failure(lambda: (empty(40) + some(40)).realize(), "unwritten")
    assert re.search(r"uses memory that was never written: element 0 of data\d \(40 ", str(error))
    assert "Tensor.zeros" in error.next_step
    failure(lambda: empty(3, 4).numpy(), "unwritten")
    part = empty(40).contiguous()
    part[:17].assign(some(17)).realize()
    error = failure(lambda: (part * 2).realize(), "unwritten")
    assert error.index == 17
    assert part[:17].numpy().sum() > 0


def test_memory_that_is_handed_out_again_is_new() -> None:
    for _ in range(2):
        x = some(1237)
        del x
        failure(lambda: (empty(1237) + 1).realize(), "unwritten")


def test_memory_that_is_read_and_not_used_is_no_error() -> None:
    where = tensor(np.arange(40) < 17).realize()
    x = empty(40).contiguous()
    x[:17].assign(some(17)).realize()
    np.testing.assert_array_equal(where.where(x, 5).numpy()[17:], 5)


def overlapping(text: str) -> str:
    """A kernel whose chunks each do the next one's work as well."""
    assert "add i64 %chunk, 1" in text
    return text.replace("add i64 %chunk, 1", "add i64 %chunk, 2")


def test_a_race_between_two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = contract.emit
    monkeypatch.setattr(contract, "emit", lambda *given: overlapping(plain(*given)))
    x, w = some(256, 300), some(300, 256)
    error = failure(lambda: (x @ w).realize(), "race")
    assert "chunk 1 writes what chunk 0 wrote" in str(error) and error.buffer == "data0"


@pytest.mark.usefixtures("plain")
def test_a_race_on_the_loops_path(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = renderer.module_text
    monkeypatch.setattr(
        renderer, "module_text",
        lambda *given: plain(*given).replace("trunc i64 %chunk to", "trunc i64 0 to"),
    )  # fmt: skip
    x, w = some(256, 300), some(300, 256)
    error = failure(lambda: (x @ w).realize(), "race")
    assert "writes what chunk 0 wrote" in str(error)


# **************** arithmetic ****************


def ints(*numbers: int) -> Tensor:
    return tensor(list(numbers)).realize()


@pytest.mark.parametrize("fast", ["0", "1"])
def test_arithmetic_that_has_no_result(fast: str) -> None:
    with settings.set_to("TGX_FAST", fast):
        a, b = ints(7, 8, 9), ints(2, 0, 3)
        error = failure(lambda: (a // b).realize(), "divide")
        assert "divides 8 by zero; it reaches element 1 of data0 (3 elements" in str(error)
        failure(lambda: (a % b).realize(), "divide")
        error = failure(lambda: (a << ints(1, 40, 2)).realize(), "shift")
        assert "shifts by 40" in str(error)
        failure(lambda: (a >> ints(1, 32, 2)).realize(), "shift")
        x = some(3).cat(tensor([-3e9])).realize()
        error = failure(lambda: x.cast("int").realize(), "cast")
        assert "casts -3000000000.0 to an integer" in str(error)
        y = tensor([1.0, float("nan")])
        failure(lambda: y.cast("int").realize(), "cast")
        np.testing.assert_array_equal((a // ints(2, 3, 4)).numpy(), [3, 2, 2])
        np.testing.assert_array_equal(tensor([-1.0, 2.9]).cast("uint8").numpy(), [255, 2])


def test_a_result_that_nobody_uses_is_no_error() -> None:
    a, b = ints(7, 8, 9), ints(2, 0, 3)
    np.testing.assert_array_equal((b != 0).where(a // b, -1).numpy(), [3, -1, 3])
    x = tensor([1e30, 2.0]).realize()
    np.testing.assert_array_equal((x < 9).where(x.cast("int"), 4).numpy(), [4, 2])
    np.testing.assert_array_equal(tensor([-3e38, 0.0]).exp().numpy(), [0, 1])


# **************** NaN and infinity ****************


@pytest.mark.parametrize("fast", ["0", "1"])
def test_the_first_kernel_with_a_nan_is_named(fast: str) -> None:
    with settings.set_to("TGX_FAST", fast):
        x = some(30).cat(tensor([-1.0]), some(9)).realize()

        def program() -> None:
            root = x.sqrt().contiguous()
            (root.sum() + 1).realize()

        error = failure(program, "nan")
        assert error.kernel == "E_40" or error.kernel.startswith("E_")
        assert error.index == 30 and "makes a NaN: element 30 of data0 (40 elements" in str(error)
        error = failure(lambda: (1000 * some(40)).exp().realize(), "infinity")
        assert "makes an infinity" in str(error)
        failure(lambda: (x + 1).log().realize(), "infinity")
        big = (some(40) * 300).realize()
        failure(lambda: (big.half() * big.half()).realize(), "infinity")
        failure(lambda: (some(40) * 1e38 * 100).cast("bfloat16").realize(), "infinity")


def test_infinities_that_were_there_before_are_no_error() -> None:
    mask = tensor(np.tri(6) == 0).realize()
    scores = mask.where(float("-inf"), some(6, 6)).contiguous().realize()  # asked for
    np.testing.assert_allclose(scores.softmax(-1).sum(-1).numpy(), 1, rtol=1e-5)
    given = tensor([1.0, float("inf"), float("nan")]).realize()
    assert np.isnan((given * 2).numpy()[2])
    failure(lambda: (scores - scores.flip(1)).realize(), "nan")  # inf - inf: the NaN is new
    assert some(3, 9, 9).pad((1, 1, 1, 1), value=float("-inf")).max().item() < 2
    assert Tensor.full((5,), float("inf"), device=CHECKED).contiguous().numpy()[0] == np.inf


def test_kinds_can_be_chosen() -> None:
    other = check_cost.checked_device("memory,arithmetic", "TGX:8")
    x = Tensor([-1.0], device=other).realize()
    assert np.isnan(x.sqrt().numpy()[0])
    with pytest.raises(CheckFailed):
        (Tensor.empty(4, device=other) + 1).realize()
    only = check_cost.checked_device("nan", "TGX:7")
    (Tensor.empty(4, device=only) + 1).realize()
    with pytest.raises(CheckFailed):
        Tensor([-1.0], device=only).sqrt().realize()


def test_a_wrong_kind_is_an_error_that_lists_them() -> None:
    with settings.set_to("TGX_CHECK", "memry"), pytest.raises(BadSetting) as caught:
        settings.check()
    assert "TGX_CHECK=memry" in str(caught.value) and "memory, arithmetic, nan" in str(caught.value)


# **************** TinyJit, threads ****************


def test_through_a_jit() -> None:
    @TinyJit
    def step(x: Tensor, d: Tensor) -> Tensor:
        return ((x @ x.T).relu().sum(1) / d).contiguous().realize()

    x, good, bad = some(8, 8), some(8), some(7).cat(tensor([0.0])).realize()
    for _ in range(4):
        wanted = np.maximum(x.numpy() @ x.numpy().T, 0).sum(1) / good.numpy()
        np.testing.assert_allclose(step(x, good).numpy(), wanted, rtol=1e-5)
    error = failure(lambda: step(x, bad), "infinity")
    assert error.index == 7
    np.testing.assert_allclose(step(x, good).numpy(), wanted, rtol=1e-5)
    late = some(8)
    memories.at(late.uop.base.realized._buf.address).forget()  # as if it were Tensor.empty's
    failure(lambda: step(x, late), "unwritten")
    np.testing.assert_allclose(step(x, good).numpy(), wanted, rtol=1e-5)


def test_the_first_of_many_chunks_is_enough() -> None:
    """Sixteen chunks fail at once; one error is written down, whole."""
    x = (some(512, 512) - 10).realize()
    run = TinyJit(lambda x, w: (x @ w).sqrt().realize())
    w = some(512, 512)
    for _ in range(3):
        run((x + 20).realize(), w)
    for _ in range(10):
        error = failure(lambda: run(x, w), "nan")
        assert 0 <= error.index < 512 * 512


def test_kernels_after_a_failure_do_nothing() -> None:
    x = some(20)
    run = TinyJit(lambda x, y: (x.log().contiguous() + 1, y.assign(y + 1)))

    def both(x: Tensor, y: Tensor) -> None:
        Tensor.realize(*run(x, y))

    y = Tensor.zeros(20, device=CHECKED).contiguous().realize()
    for _ in range(3):
        both(x, y)
    before = y.numpy().copy()
    failure(lambda: both(Tensor.zeros(20, device=CHECKED).contiguous().realize(), y), "infinity")
    assert np.isin(y.numpy() - before, (0, 1)).all()


# **************** right programs ****************

FOUND = (
    '{"inputs": [{"shape": [2, 1, 3, 12], "dtype": "float64", "seed": 1048674822, "kind": '
    '"small", "high": 0, "split": null}, {"shape": [8, 3, 1, 2], "dtype": "float64", "seed": '
    '1967215579, "kind": "small", "high": 0, "split": null}, {"shape": [1, 8, 1, 1], "dtype":'
    ' "float64", "seed": 1044186030, "kind": "small", "high": 0, "split": null}, {"shape": '
    '[2, 8, 4, 34], "dtype": "float64", "seed": 1011365629, "kind": "small", "high": 0, '
    '"split": null}], "steps": [{"op": "permute", "reads": [1], "args": [[2, 0, 1, 3]]}, '
    '{"op": "conv_transpose", "reads": [0, 4], "args": [1, [2, 3], [1, 1], [0, 1, 2, 1]]}, '
    '{"op": "add", "reads": [5, 2], "args": []}, {"op": "ne", "reads": [6, 3], "args": []}, '
    '{"op": "masked_fill", "reads": [7, 6], "args": [0.5]}], "family": "conv", "updates": []}'
)
"""Lanes of a sum that the domain leaves out were loaded; past the end of a buffer, for the last."""


def test_the_mlp_trains_as_ever() -> None:
    losses = []
    for device in ("TGX", CHECKED):
        Tensor.manual_seed(0)
        step = check_cost.stepper(models.MLP(), (4, 1, 28, 28), device)
        losses.append([step() for _ in range(4)])
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["cnn", "transformer", "resnet18"])
def test_models_run_as_ever(name: str) -> None:
    """Dropout's random numbers too are the same."""
    printed = [
        subprocess.run(
            [sys.executable, str(models.__file__), name, "--steps", "4", "--jit"],
            env=settings.child_environment({"TGX_CHECK": on, "DEVICE": "TGX"}),
            capture_output=True, text=True, check=True,
        ).stdout
        for on in ("0", "1")
    ]  # fmt: skip
    assert printed[0] == printed[1]


def run_programs(*arguments: object) -> None:
    """`tests/programs.py`, a command, on a TGX that is checked."""
    environment = settings.child_environment({"TGX_CHECK": "1", "DEVICE": "TGX"})
    command = [sys.executable, str(programs.__file__), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_random_programs_raise_nothing() -> None:
    run_programs("--seed", 11, "--count", 2, "--size", 1, "--device", "TGX", "--backward")


def test_lanes_outside_of_a_domain_load_nothing(tmp_path: Path) -> None:
    (tmp_path / "found.jsonl").write_text(FOUND)
    run_programs("--json", tmp_path / "found.jsonl", "--device", "TGX", "--backward")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_random_programs_raise_nothing() -> None:
    run_programs("--count", 500, "--device", "TGX", "--backward")


BEAM = """
import numpy as np
from tinygrad import Tensor
x = np.random.default_rng(1).uniform(0.5, 1.5, (24, 24)).astype(np.float32)
np.testing.assert_allclose((Tensor(x) @ Tensor(x)).numpy(), x @ x, rtol=1e-5)
"""


def test_beam_times_kernels_on_memory_that_holds_nothing(fresh: object) -> None:
    done = fresh(  # type: ignore[operator]
        "-c", BEAM, DEVICE="TGX", TGX_CHECK="1", BEAM="1", PARALLEL="0", BEAM_UPCAST_MAX="8"
    )
    assert done.returncode == 0, done.stderr


def test_several_devices() -> None:
    other = check_cost.checked_device(device="TGX:6")
    numbers = some(8, 12).numpy()
    x = Tensor(numbers, device=CHECKED).shard((CHECKED, other), axis=0).realize()
    run = TinyJit(lambda x: (x * 2).sum(0).realize())
    for _ in range(4):
        np.testing.assert_allclose(run(x).numpy(), numbers.sum(0) * 2, rtol=1e-5)
    moved = Tensor.empty(8, device=other).to(CHECKED)
    with pytest.raises(CheckFailed):
        (moved + 1).realize()


# **************** off ****************

OFF = """
import sys
from tinygrad import Tensor
assert (Tensor([1.0, 2.0]) * 2).tolist() == [2.0, 4.0]
assert not {"tgx.devices.checking", "tgx.devices.instrument"} & set(sys.modules)
"""


@pytest.mark.parametrize("calls", [0, 2, 40])
def test_while_a_trace_is_recorded_the_lines_of_the_kernel_are_named(calls: int) -> None:
    """Not jitted, jitted and timed kernel by kernel, jitted and long left alone."""
    def scores(x: Tensor) -> Tensor:
        share = x / x.sum(1, keepdim=True)
        return (share.log() * share).sum().realize()

    step = TinyJit(scores) if calls else scores
    with tgx.trace():
        good, bad = some(8, 16).abs().realize(), (-some(8, 16).abs() - some(8, 16).abs()).realize()
        bad[0, 0] = 1.0  # log of a negative share
        for _ in range(calls):
            step(good)
        error = failure(lambda: step(bad.realize()), "nan")
    told = [line.split(": ", 1)[1] for line in error.made_of]
    assert "return (share.log() * share).sum().realize()" in told, error
    assert "share = x / x.sum(1, keepdim=True)" in told, error
    assert "\n  made of " in str(error) and "TGX_TRACE" not in str(error)
    assert "TGX_TRACE=FOLDER" in str(failure(lambda: scores(bad), "nan"))


def test_where_it_is_off_nothing_of_it_is_loaded(fresh: object) -> None:
    done = fresh("-c", OFF, DEVICE="TGX")  # type: ignore[operator]
    assert done.returncode == 0, done.stderr


SCRIPT = """
from tinygrad import Tensor
x = Tensor([4, 5]) // Tensor([2, 0])
x.realize()
"""


def test_an_unmodified_script(fresh: object, tmp_path: object) -> None:
    """Twice: the second run takes the kernel from the cache on disk."""
    for _ in range(2):
        done: subprocess.CompletedProcess[str] = fresh(  # type: ignore[operator]
            "-c", SCRIPT, DEVICE="TGX", TGX_CHECK="1"
        )
        assert done.returncode == 1
        assert "divides 5 by zero; it reaches element 1 of data0" in done.stderr, done.stderr
        assert "asked for at <string>:4" in done.stderr
    done = fresh("-c", SCRIPT, DEVICE="TGX")  # type: ignore[operator]
    assert done.returncode == 0, done.stderr


# ***************************** gates that tinygrad has lost *****************************


def rows_of(*columns: int) -> Tensor:
    return tensor(np.array([[c] for c in columns], np.int32)).realize()


def test_a_load_that_lost_its_gate_reads_inside() -> None:
    """tinygrad pads the product with ones, and asks for the padding's index before it looks whether
    there is one: what it would read from before the buffer is thrown away."""
    x = some(5, 3)
    found = x.gather(1, rows_of(1, 2, 0, 1, 2)).cumprod(0).numpy()
    rows = np.arange(5), np.array([1, 2, 0, 1, 2])
    np.testing.assert_allclose(found[:, 0], x.numpy()[rows].cumprod(), rtol=1e-6)


def test_what_was_read_elsewhere_may_not_decide_anything() -> None:
    """Here the index without a gate is compared, and the outcome decides about the next load."""
    x, columns = some(5, 2), tensor(np.array([1, 0, 1], np.int32)).realize()
    found = failure(
        lambda: x[..., columns].gather(1, rows_of(1, 2, 0, 1, 2)).cumprod(0).realize(), "outside"
    )
    assert found.index == -4 and "element -4 of data1 (5 elements of int, 20 bytes)" in str(found)
    assert "x.gather(1, y).cumprod(0)" in str(found)
