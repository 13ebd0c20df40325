"""The tile path, run: numbers against NumPy in float64, paths by name, no load past an edge."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nests import paths
from tinygrad import Context, Tensor, TinyJit, Variable, dtypes
from tinygrad.dtype import DType

from tgx.devices.compiler import TGXCompiler
from tgx.devices.record import PathRecord, record_of

rng = np.random.default_rng(7)
TOLERANCE = {dtypes.float: 2e-5, dtypes.half: 4e-3, dtypes.double: 1e-12, dtypes.bfloat16: 3e-2}


def random(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def tgx(a: np.ndarray, dtype: DType = dtypes.float) -> Tensor:
    return Tensor(a, device="TGX").cast(dtype).contiguous().realize()


def close(got: Tensor, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(
        got.cast(dtypes.double).numpy(),
        expected,
        rtol=tolerance,
        atol=tolerance * max(1.0, float(np.abs(expected).max())),
    )


def tiled(work: Callable[[], Tensor]) -> Tensor:
    """Runs `work` and insists that all its kernels take the tile path."""
    with Context(PARALLEL=0):
        result, records = paths(lambda: work().realize())
    assert records and all(r.path == "tile" for r in records), [str(r) for r in records]
    return result


# ---------- matmul ----------

SHAPES = [
    (64, 784, 32),
    (37, 53, 41),
    (1, 300, 70),
    (70, 300, 1),
    (5, 3, 2),
    (17, 16, 129),
    (128, 33, 10),
]


@pytest.mark.parametrize("m, k, n", SHAPES)
@pytest.mark.parametrize("how", ["nn", "nt", "tn", "tt"])
def test_matmul(m: int, k: int, n: int, how: str) -> None:
    a, b = random(m, k), random(k, n)
    x = tgx(np.ascontiguousarray(a.T)).T if how[0] == "t" else tgx(a)
    y = tgx(np.ascontiguousarray(b.T)).T if how[1] == "t" else tgx(b)
    close(tiled(lambda: x @ y), a.astype(float) @ b.astype(float))


@pytest.mark.parametrize("dtype", [dtypes.half, dtypes.bfloat16, dtypes.double])
def test_matmul_of_other_floats(dtype: DType) -> None:
    a, b = random(33, 70), random(70, 20)
    x, y = tgx(a, dtype), tgx(b, dtype)
    a, b = x.cast(dtypes.double).numpy(), y.cast(dtypes.double).numpy()
    close(tiled(lambda: x @ y), a @ b, TOLERANCE[dtype])
    close(tiled(lambda: x.matmul(y, dtype=dtypes.float)), a @ b, 2e-5)


@pytest.mark.parametrize("columns", [17, 33, 9])
def test_a_last_vector_of_one_lane_writes_one_element(columns: int) -> None:
    """LLVM makes a store of a truncated vector's one lane as wide as it was before."""
    a, b = rng.integers(-3, 4, (7, 7)), rng.integers(-3, 4, (columns, 7))
    for dtype in (dtypes.bfloat16, dtypes.half, dtypes.short):
        got = tiled(lambda d=dtype: tgx(a, d).matmul(tgx(b, d).T, dtype=d))
        np.testing.assert_array_equal(got.cast(dtypes.float).numpy(), a @ b.T)


def test_integer_matmul_is_exact() -> None:
    a, b = rng.integers(-9, 9, (20, 31)), rng.integers(-9, 9, (31, 18))
    for dtype in (np.int32, np.int64, np.int8):
        got = tiled(
            lambda d=dtype: Tensor(a.astype(d), device="TGX").matmul(
                Tensor(b.astype(d), device="TGX"), dtype=dtypes.int
            )
        )
        np.testing.assert_array_equal(got.numpy(), a @ b)


def test_prologue_and_epilogue_are_fused() -> None:
    a, b, c = random(40, 60), random(60, 50), random(50)
    x, y, z = tgx(a), tgx(b), tgx(c)
    with Context(PARALLEL=0):
        got, records = paths(lambda: ((x.relu() @ y) * 0.5 + z).relu().realize())
    assert [r.path for r in records] == ["tile"]
    close(got, np.maximum(np.maximum(a, 0).astype(float) @ b * 0.5 + c, 0))


def test_a_variable_picks_the_batch() -> None:
    """images[number]: the start of an index comes with the call."""
    data, w, shift = random(5, 12, 40), random(40, 33), random(7, 33)
    x, y, z = tgx(data), tgx(w), tgx(shift)
    i, j = Variable("later", 0, 4), Variable("earlier", 0, 6)

    @TinyJit
    def work(at: Any, to: Any) -> Tensor:
        return (x[at].relu() @ y + z[to]).realize()

    with Context(PARALLEL=0):
        _, records = paths(lambda: work(i.bind(4), j.bind(1)).numpy())
    assert [r.path for r in records] == ["tile"] and "later" in records[0].nest
    for a, b in ((4, 1), (0, 0), (2, 6), (4, 3)):
        want = np.maximum(data[a], 0).astype(float) @ w + shift[b]
        close(work(i.bind(a), j.bind(b)), want)


def test_a_variable_picks_where_to_write() -> None:
    data, at = random(4, 30), Variable("at", 0, 3)
    x = tgx(data)
    with Context(PARALLEL=0):
        _, records = paths(lambda: x[at.bind(2)].assign(x[at.bind(2)] * 2 + 1).realize())
    assert records and {r.path for r in records} == {"tile"}
    data[2] = data[2] * 2 + 1
    np.testing.assert_allclose(x.numpy(), data, rtol=1e-6)


def test_two_copies_of_one_input() -> None:
    """silu is a product of x and of a function of x: each is copied from x, not from the other."""
    a = random(5, 4, 6, 6)
    x = tgx(a)
    want = (a / (1 + np.exp(-a.astype(float)))).reshape(5, 4, 3, 2, 3, 2).max((3, 5))
    close(tiled(lambda: x.silu().max_pool2d((2, 2))), want)


def test_batches() -> None:
    a, b = random(3, 4, 17, 20), random(3, 4, 20, 9)
    x, y = tgx(a), tgx(b)
    close(tiled(lambda: x @ y), a.astype(float) @ b)


# ---------- convolution ----------


def conv_reference(
    x: np.ndarray, w: np.ndarray, stride: int, padding: int, dilation: int, groups: int
) -> np.ndarray:
    x = np.pad(x.astype(float), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, _, h, wide = x.shape
    cout, per, kh, kw = w.shape
    oh, ow = (
        (h - (kh - 1) * dilation - 1) // stride + 1,
        (wide - (kw - 1) * dilation - 1) // stride + 1,
    )
    y = np.zeros((n, cout, oh, ow))
    for g, i, j in itertools.product(range(groups), range(kh), range(kw)):
        part = x[
            :,
            g * per : (g + 1) * per,
            i * dilation : i * dilation + (oh - 1) * stride + 1 : stride,
            j * dilation : j * dilation + (ow - 1) * stride + 1 : stride,
        ]
        outs = slice(g * cout // groups, (g + 1) * cout // groups)
        y[:, outs] += np.einsum("nchw,oc->nohw", part, w[outs, :, i, j])
    return y


# stride, padding, dilation, groups, kernel, (height, width)
CONVS = [
    (1, 1, 1, 1, 3, (14, 14)),
    (1, 0, 1, 1, 3, (9, 12)),
    (2, 1, 1, 1, 3, (14, 14)),
    (2, 0, 1, 1, 1, (8, 8)),
    (1, 2, 2, 1, 3, (11, 10)),
    (1, 1, 1, 2, 3, (7, 7)),
    (1, 1, 1, 8, 3, (12, 12)),
    (2, 3, 1, 1, 7, (15, 15)),
]


@pytest.mark.parametrize("stride, padding, dilation, groups, k, size", CONVS)
def test_convolution(
    stride: int, padding: int, dilation: int, groups: int, k: int, size: tuple[int, int]
) -> None:
    x, w = random(2, 8, *size), random(16, 8 // groups, k, k)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    tx, tw = tgx(x), tgx(w)
    got = tiled(lambda: tx.conv2d(tw, **how))
    expected = conv_reference(x, w, *how.values())
    close(got, expected)
    # its gradients, along a random direction: <dy, y> is linear in x and in w
    dy = random(*expected.shape)
    tdy = tgx(dy)
    dx, dw = tx.conv2d(tw, **how).gradient(tx, tw, gradient=tdy)
    ex, ew = random(*x.shape), random(*w.shape)
    along = (
        (conv_reference(ex, w, *how.values()) * dy).sum(),
        (conv_reference(x, ew, *how.values()) * dy).sum(),
    )
    for grad, direction, value in zip((dx, dw), (ex, ew), along, strict=True):
        total = (grad.numpy().astype(float) * direction).sum()
        assert abs(total - value) < 1e-4 * np.abs(grad.numpy() * direction).sum()


def test_pooling_and_its_gradient() -> None:
    x = random(2, 3, 12, 12)
    tx = tgx(x)
    close(tiled(lambda: tx.max_pool2d(2)), x.reshape(2, 3, 6, 2, 6, 2).max((3, 5)))
    dy = random(2, 3, 6, 6)
    dx = tx.max_pool2d(2).gradient(tx, gradient=tgx(dy))[0].numpy()
    best = x.reshape(2, 3, 6, 2, 6, 2)
    want = np.where(best == best.max((3, 5), keepdims=True), dy[:, :, :, None, :, None], 0).reshape(
        x.shape
    )
    np.testing.assert_allclose(dx, want, rtol=1e-6)


def test_max_pool_with_padding_sees_no_zeros() -> None:
    x = -1 - np.abs(random(1, 2, 9, 9))
    got = tiled(lambda: tgx(x).max_pool2d(3, stride=2, padding=1)).numpy()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    want = np.stack(
        [padded[:, :, i : i + 9 : 2, j : j + 9 : 2] for i in range(3) for j in range(3)]
    ).max(0)
    np.testing.assert_array_equal(got, want)


# ---------- the rest ----------


@pytest.mark.parametrize(
    "shape, axis",
    [
        ((33, 257), 0),
        ((33, 257), 1),
        ((5, 6, 7), (0, 2)),
        ((301, 17), 1),
        ((4, 4), None),
        ((3, 1000), 1),
    ],
)
def test_reductions(shape: tuple[int, ...], axis: Any) -> None:
    x = random(*shape)
    tx = tgx(x)
    close(tiled(lambda: tx.sum(axis)), x.astype(float).sum(axis))
    np.testing.assert_array_equal(tiled(lambda: tx.max(axis)).numpy(), x.max(axis))


def test_nan_and_infinity() -> None:
    x = random(7, 40)
    x[3, 5], x[4, 6], x[5, 39] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(tgx(x).max(1).numpy(), x.max(1))
    np.testing.assert_array_equal(tgx(x).relu().numpy(), np.maximum(x, 0))
    np.testing.assert_array_equal(np.isnan(tgx(x).sum(1).numpy()), np.isnan(x.sum(1)))


def test_functions() -> None:
    x = np.concatenate(
        [random(500) * 8, [0.0, -0.0, 1e-38, 100, -100, np.inf, -np.inf, np.nan]]
    ).astype(np.float32)
    with np.errstate(all="ignore"):
        for name, f in {"exp": np.exp, "sin": np.sin, "tanh": np.tanh}.items():
            np.testing.assert_allclose(
                getattr(tgx(x), name)().numpy(),
                f(x.astype(float)).astype(np.float32),
                rtol=2e-5,
                atol=3e-7,
            )
        y = np.abs(x)
        np.testing.assert_allclose(
            tgx(y).log().numpy(), np.log(y.astype(float)), rtol=3e-6, atol=3e-7
        )
        np.testing.assert_allclose(tgx(y).sqrt().numpy(), np.sqrt(y), rtol=1e-6)


def test_softmax_and_attention() -> None:
    q, k, v = random(2, 3, 16, 8), random(2, 3, 16, 8), random(2, 3, 16, 8)
    got = tiled(lambda: tgx(q).scaled_dot_product_attention(tgx(k), tgx(v)))
    s = np.einsum("bhid,bhjd->bhij", q.astype(float), k) / np.sqrt(8)
    p = np.exp(s - s.max(-1, keepdims=True))
    close(got, np.einsum("bhij,bhjd->bhid", p / p.sum(-1, keepdims=True), v))


def test_strides_flips_and_transposes() -> None:
    x = random(37, 50)
    for work in (
        lambda t: t.T,
        lambda t: t.flip(1),
        lambda t: t[::3, 1::2],
        lambda t: t[:, ::7],
        lambda t: t.pad(((1, 2), (3, 0))),
        lambda t: t.permute(1, 0)[5:].flip(0),
    ):
        got = tiled(lambda w=work: w(tgx(x)).contiguous()).numpy()
        want = work(Tensor(x, device="PYTHON")).numpy()
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [3000, 1_000_000])
def test_updates_in_place(size: int) -> None:
    """The larger one in several chunks: an element that two of them update is wrong."""
    x, g = random(size), random(size)
    t, h = tgx(x), tgx(g)
    t.assign(t * 0.9 + h * 0.1).realize()
    close(t, x * np.float32(0.9) + g * np.float32(0.1))


def test_casts_between_all_types() -> None:
    x = np.array([0, 1, 2, 3, 100, 7, 250, 17, 5, 3] * 4)
    for a, b in itertools.permutations(
        [
            dtypes.bool,
            dtypes.int8,
            dtypes.uint8,
            dtypes.int32,
            dtypes.int64,
            dtypes.half,
            dtypes.bfloat16,
            dtypes.float,
            dtypes.double,
        ],
        2,
    ):
        start = Tensor(x % 100, device="TGX").cast(a).contiguous().realize()
        np.testing.assert_array_equal(
            start.cast(b).contiguous().cast(dtypes.double).numpy(),
            ((x % 100) != 0 if dtypes.bool in (a, b) else x % 100).astype(float),
        )


# ---------- records ----------


def test_a_kernel_that_falls_back_says_why() -> None:
    labels = Tensor([1, 0, 2], device="TGX", dtype=dtypes.int).realize()
    table = tgx(random(3, 40))
    with Context(PARALLEL=0):
        got, records = paths(lambda: table[labels].realize())
    np.testing.assert_array_equal(got.numpy(), table.numpy()[[1, 0, 2]])
    assert [r.path for r in records] == ["loops"]
    assert "loaded data" in records[0].reason


def test_the_record_survives_as_text() -> None:
    record = PathRecord("tile", tile="tile 4o0 x 1*16[o1]", nest="for o0:4\n  p0[o0] = p1[o0]")
    assert record_of(record.line() + "\ndefine void @k() { ret void }") == record
    assert record_of("define void @k() { ret void }") is None


# ---------- edges and repeats ----------


def test_nothing_is_read_or_written_past_an_edge(root: Path) -> None:
    """Buffers that end at a page nobody may touch, then buffers that start after one."""
    script = textwrap.dedent("""
        import ctypes, mmap, os, sys
        sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
        import tgx, numpy as np
        from nests import buffers, interpret_ast, kernels, parameters
        from test_nest import conv, empty, property_cases
        from tgx.devices.compiler import Loaded, TGXCompiler
        from tgx.devices.emit import emit
        from tgx.devices.nest import Miss
        from tgx.devices.recover import recover
        from tgx.devices.plan import Machine, plan
        libc = ctypes.CDLL(None)
        libc.mmap.restype, page = ctypes.c_void_p, mmap.PAGESIZE
        word = ctypes.c_size_t
        libc.mmap.argtypes = [ctypes.c_void_p, word] + [ctypes.c_int] * 3 + [ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        def guarded(data, at_end):
            size = -(-data.nbytes // page) * page
            base = libc.mmap(None, size + 2 * page, 3, flags, -1, 0)
            libc.mprotect(base, page, 0), libc.mprotect(base + page + size, page, 0)
            start = base + page + (size - data.nbytes if at_end else 0)
            view = np.frombuffer((ctypes.c_char * data.nbytes).from_address(start), data.dtype)
            view[:] = data
            return start, view
        cases = property_cases()
        some = {n: c for i, (n, c) in enumerate(cases.items()) if i % 3 == 1 or n[1] != " "}
        some["plane"] = conv(2, 4, 14, 14, 16, 3, "y", padding=1)
        some["plane x"] = conv(2, 4, 14, 14, 16, 3, "x", padding=1)
        some["plane w"] = conv(2, 4, 14, 14, 16, 3, "w", padding=1)
        some["rows"] = lambda: empty(5, 37).sum(1).realize()
        some["odd"] = lambda: (empty(19, 33) @ empty(33, 21)).realize()
        compiler, ran = TGXCompiler(), 0
        machine = Machine.of(compiler.vector_bytes, compiler.architecture)
        for name, work in some.items():
            for ast in kernels(work):
                try: chosen = plan(recover(ast), machine)
                except Miss: continue
                slots = tuple(p.arg.slot for p in parameters(ast))
                code = Loaded(compiler.compile(emit(chosen, "kernel", slots)), ("kernel",))
                kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
                call = kind(code.address["kernel"])
                data = buffers(ast)
                expected = interpret_ast(ast, data)
                for at_end in (True, False):
                    print(name, "at the end" if at_end else "at the start", flush=True)
                    spots = {s: guarded(data[s], at_end) for s in slots}
                    args = (ctypes.c_void_p * len(slots))(*[spots[s][0] for s in slots])
                    for chunk in range(chosen.chunks): call(args, chunk)
                    np.testing.assert_array_equal(spots[chosen.nest.store.slot][1], expected)
                    ran += 1
        print("kernels", ran)
    """)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, str(root)],
        timeout=280,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout[-300:]}\n{run.stderr[-3000:]}"
    assert int(run.stdout.split()[-1]) > 30


def test_the_same_bits_every_time() -> None:
    a, b = tgx(random(200, 300)), tgx(random(300, 100))
    first = (a @ b).numpy()
    for _ in range(3):
        np.testing.assert_array_equal((a @ b).numpy(), first)


@pytest.mark.parametrize("how", ["nn", "nt", "tn", "tt"])
def test_large_matmul_packs_its_operands(how: str) -> None:
    """Rows 4 KB apart crowd the caches: such operands are copied first."""
    a, b = random(512, 1024), random(1024, 1024)
    x = tgx(np.ascontiguousarray(a.T)).T if how[0] == "t" else tgx(a)
    y = tgx(np.ascontiguousarray(b.T)).T if how[1] == "t" else tgx(b)
    with Context(PARALLEL=0):
        got, records = paths(lambda: (x @ y).realize())
    assert how == "nt" or any("packed" in r.tile for r in records), [str(r) for r in records]
    close(got, a.astype(float) @ b.astype(float))


def every_plan_agrees(root: Path, arch: str = "") -> int:
    """Runs plans of all kinds for a few nests, the best and the worst, on whole numbers: exact.

    In a process of its own, for a bad plan may crash."""
    script = textwrap.dedent("""
        import ctypes, sys
        sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
        import numpy as np
        from nests import buffers, interpret_ast, kernels, parameters
        from test_nest import conv, empty
        from tgx.devices import merge
        from tgx.devices.compiler import Loaded, TGXCompiler
        from tgx.devices.emit import emit
        from tgx.devices.model import settled
        from tgx.devices.nest import Miss
        from tgx.devices.plan import Machine, candidates, chunked, finished, unrolled
        from tgx.devices.plan import replace
        from tgx.devices.recover import recover
        merge.SUM_BLOCK = 32  # so that small sums are cut too
        cases = {
            "relu nt": lambda: (empty(20, 83).relu() @ empty(37, 83).T.relu()).realize(),
            "tt": lambda: (empty(70, 20).T @ empty(37, 70).T).realize(),
            "batched": lambda: (empty(3, 18, 40) @ empty(3, 21, 40).transpose(1, 2)).realize(),
            "cut": lambda: (empty(18, 128) @ empty(128, 40)).realize(),
            "weights": conv(4, 5, 7, 7, 18, 3, "w", padding=1),
            "by pixel": conv(2, 24, 5, 5, 17, 1, "y"),
            "image": conv(2, 5, 7, 7, 18, 3, "y", padding=1),
            "stride": conv(2, 6, 11, 10, 17, 3, "y", padding=1, stride=2),
            "gradient": conv(1, 18, 6, 7, 5, 3, "x", padding=1),
        }
        compiler = TGXCompiler(sys.argv[2])
        machine, kinds = Machine.of(compiler.vector_bytes, compiler.architecture), set()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        for name, work in cases.items():
            for ast in kernels(work):
                found = {}
                for c in sorted(candidates(recover(ast), machine), key=lambda c: c.cost):
                    whole = bool(settled(c.model.nest, c.lane, c.tile))
                    how = c.lane, c.model.hoisted, whole, tuple(o.packed for o in c.operands)
                    if len(found.setdefault(how, [])) < 1 and (p := finished(c)) is not None:
                        found[how].append(p)
                data, slots = buffers(ast), tuple(p.arg.slot for p in parameters(ast))
                expected = interpret_ast(ast, data)
                for how, plans in found.items():
                    for p in plans:
                        p = replace(p, unroll=unrolled(p), cycles=1e6)
                        p = chunked(p)
                        print(name, p, flush=True)
                        try: text = emit(p, "kernel", slots)
                        except Miss as miss: print("  ", miss); continue
                        code = Loaded(compiler.compile(text), ("kernel",))
                        out = p.nest.store.slot
                        mine = {**data, out: np.full_like(data[out], 99)}
                        args = [mine[s].ctypes.data for s in slots]
                        args = (ctypes.c_void_p * len(slots))(*args)
                        for chunk in range(p.chunks):
                            kind(code.address["kernel"])(args, chunk)
                        np.testing.assert_array_equal(mine[out].reshape(-1),
                                                      expected.reshape(-1))
                        kinds.add((p.hoisted is not None, how[2], *(
                            (q.along != q.extents[-1][0], q.node.op == "load") for q in p.packs)))
        assert any(edges for _, edges, *_ in kinds), kinds
        print(len(kinds))
    """)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, str(root), arch],
        timeout=280,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout[-300:]}\n{run.stderr[-2000:]}"
    return int(run.stdout.split()[-1])


def test_every_plan_computes_the_same(root: Path) -> None:
    """Turned copies and straight ones, of loads and of expressions; sums whole and in blocks; rows
    of an image whole in a tile, taps over its edge left out; stores that change rows for lanes."""
    assert every_plan_agrees(root) > 8


@pytest.mark.slow
def test_every_plan_computes_the_same_with_narrower_vectors(root: Path) -> None:
    """AVX2, where this CPU has it."""
    compiler = TGXCompiler()
    if compiler.architecture != "x86_64" or compiler.vector_bytes < 32:
        pytest.skip("no AVX2 here")
    assert every_plan_agrees(root, "x86_64,x86-64-v3") > 6


def test_other_vector_widths_compile(root: Path) -> None:
    """The same nests for AVX2 and NEON: plans of their width, machine code without a complaint.

    In a process of its own: what LLVM cannot select, it aborts on."""
    script = textwrap.dedent("""
        import sys
        sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
        import tgx
        from nests import kernels, parameters
        from test_nest import conv, empty
        from tinygrad import dtypes
        from tgx.devices.compiler import TGXCompiler
        from tgx.devices.emit import emit
        from tgx.devices.nest import Miss
        from tgx.devices.recover import recover
        from tgx.devices.plan import Machine, plan
        works = [conv(2, 8, 14, 14, 16, 3, w, padding=1, stride=1 + (w == "x")) for w in "yxw"]
        works += [lambda: (empty(40, 50) @ empty(50, 60)).relu().realize(),
                  lambda: empty(9, 77).softmax().realize(),
                  lambda: (empty(9, 30, dtype=half) @ empty(30, 20, dtype=half)).realize()]
        half = dtypes.half
        asts = [ast for work in works for ast in kernels(work)]
        for arch, width in (("x86_64,x86-64-v3", 8), ("x86_64,x86-64", 4), ("arm64,cortex-a78", 4),
                            ("x86_64,znver4", 16)):
            compiler, done = TGXCompiler(arch), 0
            machine = Machine.of(compiler.vector_bytes, compiler.architecture)
            for ast in asts:
                try: chosen = plan(recover(ast), machine)
                except Miss: continue
                if chosen.nest.store.dtype is dtypes.float:
                    assert chosen.width == width, (arch, chosen)
                elif not compiler.has_half: continue
                compiler.compile(emit(chosen, "kernel", tuple(p.arg.slot for p in parameters(ast))))
                done += 1
            print(arch, done, flush=True)
            assert done > 6
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(root)], timeout=280, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout[-300:]}\n{run.stderr[-2000:]}"


# ---------- both paths ----------


def random_contraction(seed: int) -> tuple[float, Callable[[], Tensor]]:
    """A tolerance, and a convolution, one of its gradients, or a matmul; random shape and type."""
    pick = np.random.default_rng(seed)

    def one(*choices: Any) -> Any:
        return choices[pick.integers(len(choices))]

    dtype = one(dtypes.float, dtypes.float, dtypes.float, dtypes.half, dtypes.double)
    if one(True, False):
        m, k, n = (int(x) for x in pick.integers(1, 70, 3))
        a, b = pick.standard_normal((m, k)), pick.standard_normal((k, n))
        x, y = Tensor(a, device="TGX").cast(dtype), Tensor(b, device="TGX").cast(dtype)
        x = x.T.contiguous().realize().T if one(True, False) else x.contiguous().realize()
        y = y.T.contiguous().realize().T if one(True, False) else y.contiguous().realize()
        return half_wide(dtype), (lambda: (x.relu() @ y) if seed % 2 else (x @ y))
    groups, k = one(1, 1, 2, 4), one(1, 2, 3, 5)
    how = {"stride": one(1, 1, 2, 3), "padding": one(0, 1, 2), "dilation": one(1, 1, 2)}
    cin, cout = groups * one(1, 3), groups * one(1, 2, 5)
    h, w = (int(v) for v in pick.integers((k - 1) * how["dilation"] + 1, 20, 2))
    x = Tensor(pick.standard_normal((one(1, 2), cin, h, w)), device="TGX").cast(dtype).contiguous()
    f = Tensor(pick.standard_normal((cout, cin // groups, k, k)), device="TGX").cast(dtype)
    x, f, which = x.realize(), f.contiguous().realize(), one("y", "x", "w")

    def work() -> Tensor:
        y = x.conv2d(f, groups=groups, **how)
        if which == "y":
            return y
        dy = Tensor(np.arange(y.numel()).reshape(y.shape) % 7 - 3.0, device="TGX")
        dy = dy.cast(dtype).contiguous().realize()
        return y.gradient(x if which == "x" else f, gradient=dy)[0]

    return half_wide(dtype), work


def half_wide(dtype: DType) -> float:
    """How far two orders of one sum may be apart: the ordinary path rounds halves at every step."""
    return {dtypes.half: 2e-2, dtypes.float: 2e-5, dtypes.double: 1e-12}[dtype]


def both_paths_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerance, work = random_contraction(seed)
    with Context(PARALLEL=0):
        fast, records = paths(lambda: work().realize().cast(dtypes.double).numpy())
        monkeypatch.setenv("TGX_FAST", "0")
        slow, ordinary = paths(lambda: work().realize().cast(dtypes.double).numpy())
        monkeypatch.delenv("TGX_FAST")
    assert any(r.path == "tile" for r in records), [str(r) for r in records]
    assert not [r for r in records if "failed" in r.reason], [str(r) for r in records]
    assert all(r.path == "loops" for r in ordinary)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=tolerance * max(1.0, np.abs(slow).max()))


@pytest.mark.parametrize("seed", range(4))
def test_both_paths_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    both_paths_agree(seed, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 200))
def test_both_paths_agree_on_many(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    both_paths_agree(seed, monkeypatch)
