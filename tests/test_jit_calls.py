"""A TinyJit call on TGX takes tinygrad's shortest way, and checks all that tinygrad checks."""

import numpy as np
import pytest

random = np.random.default_rng(7)


def data(*shape):
    return random.standard_normal(shape, dtype=np.float32)


def tensor(array):
    from tinygrad import Tensor

    return Tensor(array, device="TGX").realize()


def jitted(function):
    from tinygrad import TinyJit

    return TinyJit(function)


def test_new_buffers_and_views_of_them_each_call():
    """As they are, and reshaped: the same view of other buffers."""
    step = jitted(lambda x, y: (x.T @ y).realize())
    for _ in range(5):
        x, y = data(6, 4), data(6, 3)
        got = step(tensor(x.reshape(-1)).reshape(6, 4), tensor(y))
        np.testing.assert_allclose(got.numpy(), x.T @ y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [0, 5])
def test_an_offset_is_part_of_the_view(first):
    """Two inputs that differ in their offset alone are two views: the second one is refused."""
    from tinygrad.engine.jit import JitError

    step = jitted(lambda x: (x * 2).realize())
    large = data(20, 3)
    for _ in range(4):
        got = step(tensor(large)[first : first + 4])
        np.testing.assert_array_equal(got.numpy(), 2 * large[first : first + 4])
    with pytest.raises(JitError, match="args mismatch"):
        step(tensor(large)[first + 1 : first + 5])


def test_what_does_not_fit_is_refused_as_ever():
    from tinygrad.engine.jit import JitError

    step = jitted(lambda x, y: (x + y).realize())
    for _ in range(3):
        step(tensor(data(4, 4)), tensor(data(4, 4)))
    for x, y in (
        (data(2, 8), data(4, 4)),
        (data(4, 4).astype(np.float16), data(4, 4)),
    ):
        with pytest.raises(JitError, match="args mismatch"):
            step(tensor(x), tensor(y))
    same = tensor(data(4, 4))
    with pytest.raises(JitError, match="duplicate"):
        step(same, same)


def test_lists_keywords_and_variables():
    from tinygrad import Variable

    step = jitted(lambda pair, *, rows, at: (pair[0] + pair[1] * rows[at]).realize())
    place = Variable("place", 0, 4)
    for i in range(5):
        a, b, rows = data(3), data(3), data(5, 3)
        got = step([tensor(a), tensor(b)], rows=tensor(rows), at=place.bind(i % 5))
        np.testing.assert_allclose(got.numpy(), a + b * rows[i % 5], rtol=1e-6)
    step = jitted(lambda rows, at: (rows[at] * 2).realize())
    for i in range(5):
        rows = data(5, 3)
        np.testing.assert_array_equal(step(tensor(rows), place.bind(i)).numpy(), 2 * rows[i])


def test_an_input_that_the_step_writes_is_not_overwritten():
    state = tensor(np.zeros(4, np.float32))

    def step(x):
        state.assign(state + x).realize()
        return state

    step, total = jitted(step), np.zeros(4, np.float32)
    for _ in range(5):
        x = data(4)
        total += x
        np.testing.assert_allclose(step(tensor(x)).numpy(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", [1, 2])
def test_the_counters_count_what_tinygrad_counts(kernels):
    """Kernels, operations and bytes of a jitted call: with DEBUG=2 tinygrad's own loop runs it."""
    import contextlib
    import io

    from tinygrad import Context
    from tinygrad.helpers import GlobalCounters

    def call(x):
        x = x @ x
        return (x.contiguous() @ x if kernels == 2 else x).realize()

    step = jitted(call)
    for _ in range(3):
        step(tensor(data(8, 8)))

    def counted(**settings):
        x = tensor(data(8, 8))
        GlobalCounters.reset()
        with Context(**settings), contextlib.redirect_stdout(io.StringIO()) as told:
            step(x)
        counters = GlobalCounters.kernel_count, GlobalCounters.global_ops, GlobalCounters.global_mem
        return counters, told.getvalue()

    (ours, silent), (theirs, told) = counted(), counted(DEBUG=2)
    assert ours == theirs
    assert ours[0] == 1 and ours[1] >= kernels * 2 * 8**3
    assert not silent and "batched" in told


def test_a_program_with_many_different_views_keeps_a_bounded_number(monkeypatch):
    from tinygrad.engine import jit

    from tgx.adapter import jitcalls

    monkeypatch.setattr(jitcalls, "KEPT_VIEWS", 3)
    prepare = jitcalls.prepared_inputs(jit)
    large = tensor(data(20))
    told = [prepare((large[i : i + 4],), {})[3] for i in range(8)]
    assert len({str(view) for view in told}) == 8


@pytest.mark.parametrize("kernels", [1, 2])
def test_the_first_calls_inputs_are_let_go(kernels):
    import gc

    from tinygrad.helpers import GlobalCounters

    step = jitted(lambda x: ((x + 1).contiguous() * 2 if kernels == 2 else x + 1).sum().realize())
    for _ in range(4):
        step(tensor(data(1000)))
    gc.collect()
    before = GlobalCounters.mem_used
    step(x := tensor(data(1000)))
    assert GlobalCounters.mem_used == before + 4000  # x, and none of those before it
    del x
