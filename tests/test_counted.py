"""Counted mode (TGX_COUNT=1): the counts are exact, the cache model is the model it says it is, and
what is shown is what was counted.

Three witnesses. Kernels whose answer is known: n additions load 2n numbers. A callback in the cache
model's place, which sees every address a kernel touches and adds up for itself. A cache written
down in ten lines of Python, for the native one.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import random
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import pytest
from conftest import Run
from tinygrad import Device, Tensor, TinyJit, Variable, codegen, dtypes
from tinygrad.device import CompileError
from tinygrad.helpers import Context
from tinygrad.uop.ops import UOp, sym_infer

import tgx
from tgx import codec, settings
from tgx.adapter import lines
from tgx.devices import cache, counting, counts
from tgx.devices.counting import Asked, Table, evaluate, expression
from tgx.devices.counts import Cache, CacheModel, Counts
from tgx.model import Code

DEVICE = "TGX:9"  # opened in counted mode, beside the others of this process
ONE_DEVICE = [family for family in programs.FAMILIES if family != "devices"]
BOTH = pytest.mark.parametrize("fast", [True, False], ids=["tile", "loops"])


@pytest.fixture(scope="module", autouse=True)
def counting_device() -> Iterator[None]:
    with settings.set_to("TGX_COUNT", "1"):
        assert Device[DEVICE].renderer.__class__ is counts.CountedRenderer
    yield
    atexit.unregister(counts.print_table)


rng = np.random.default_rng(11)


def given(*shape: int, dtype: type = np.float32) -> Tensor:
    return Tensor(rng.standard_normal(shape).astype(dtype), device=DEVICE).realize()


def launches(
    work: Callable[[], object], fast: bool = True, plain: bool = False
) -> list[Counts]:
    """What the kernels that `work` launched did. `plain`: without tinygrad's optimizations."""
    codegen.to_program_cache.clear()  # its keys know nothing of TGX_FAST
    before = {c: c.counts() for c in counts.living()}
    with settings.set_to("TGX_FAST", str(int(fast))), Context(NOOPT=int(plain), PARALLEL=0):
        work()
    codegen.to_program_cache.clear()
    now = ((c.counts(), before.get(c)) for c in counts.living())
    new = (c if old is None else c.plus(old, -1) for c, old in now)
    return [c for c in new if c.calls]


def only(found: list[Counts]) -> Counts:
    assert len(found) == 1, [c.name for c in found]
    return found[0]


def width(itemsize: int = 4) -> int:
    return int(Device[DEVICE].renderer.compiler.vector_bytes // itemsize)


def moved(c: Counts) -> dict[str, tuple[int, int]]:
    """Loads and stores of everything touched."""
    return {m.name: (m.loads, m.stores) for m in c.memory if m.loads or m.stores}


# ***************************** kernels with known answers *****************************


@BOTH
def test_addition(fast: bool) -> None:
    n, a, b = 1001, given(1001), given(1001)
    c = only(launches(lambda: (a + b).realize(), fast))
    assert moved(c) == {"data0": (0, n), "data1": (n, 0), "data2": (n, 0)}
    assert (c.total("loaded"), c.total("stored")) == (8 * n, 4 * n)
    # the tile path's last vector has lanes past the end, and they are added too
    assert c.flops == (-(-n // width()) * width() if fast else n)
    assert c.path == ("tile" if fast else "loops") and c.calls == 1
    assert c.estimates == (n, 12 * n, 12 * n)
    # every line comes once from memory
    lines = -(-4 * n // 64)
    assert [(m.l1, m.l2) for m in c.memory if m.word >= 0] == [(lines, lines)] * 3


@BOTH
def test_sum(fast: bool) -> None:
    n, x = 1000, given(1000)
    c = only(launches(lambda: x.sum().realize(), fast))
    assert moved(c) == {"data0": (0, 1), "data1": (n, 0)}
    if not fast:
        assert c.flops == n
        return
    # vectors of partial sums: as many lanes of additions as the loop has, then one number of all
    vectors, w = map(int, re.search(r"tile (\d+)\*(\d+)\[", plan_of(x.sum())).groups())  # type: ignore[union-attr]
    full, rest = divmod(n, vectors * w)
    steps = full * vectors + -(-rest // w)
    assert c.flops == (steps + vectors - 1) * w + (w - 1)


def plan_of(t: Tensor) -> str:
    """The tile path's own words for the one kernel of a tensor."""
    from nests import paths

    _, (record, *more) = paths(lambda: t.contiguous().realize())
    assert record.path == "tile" and not more, record
    return record.tile


def test_matrix_product_without_any_optimization() -> None:
    """Three loops: every product loads both of its factors."""
    m, k, n = 9, 7, 10
    x, w = given(m, k), given(k, n)
    c = only(launches(lambda: (x @ w).realize(), fast=False, plain=True))
    assert moved(c) == {"data0": (0, m * n), "data1": (m * k * n, 0), "data2": (m * k * n, 0)}
    assert c.flops == 2 * m * k * n == c.estimates[0]
    assert c.total("loaded") + c.total("stored") == c.estimates[1]


@pytest.mark.parametrize(("m", "k", "n"), [(12, 20, 32), (30, 33, 70), (256, 64, 256)])
def test_matrix_product_in_tiles(m: int, k: int, n: int) -> None:
    """Of a tile of rows and columns each row's number is loaded once, and each column's: so a
    factor is loaded once for each block of tiles along the axis it does not have."""
    x, w = given(m, k), given(k, n)
    plan = plan_of(x @ w)
    found = re.match(r"tile (?:(\d+)(o\d) x )?(\d+)\*(\d+)\[(o\d)\]; (?!.*packed)", plan)
    assert found, f"a plan with its lanes along an output, without copies: {plan}"
    rows, row_axis, vectors, lanes, lane_axis = found.groups()
    step = {lane_axis: int(vectors) * int(lanes), row_axis: int(rows or 1)}
    size = {"o0": m, "o1": n}
    blocks = {a: -(-size[a] // step.get(a, 1)) for a in size}
    c = only(launches(lambda: (x @ w).realize()))
    assert moved(c) == {
        "data0": (0, m * n),
        "data1": (m * k * blocks["o1"], 0),
        "data2": (k * n * blocks["o0"], 0),
    }
    # lanes past the end multiply as well
    units = -(-size[lane_axis] // int(lanes)) * int(lanes)
    other = n if lane_axis == "o0" else m
    assert c.flops == 2 * k * units * other
    assert c.estimates[0] == 2 * m * k * n


@BOTH
def test_a_gate_lets_only_its_own_lanes_load(fast: bool) -> None:
    x = given(10, 10)
    c = only(launches(lambda: x.pad(((1, 1), (1, 1))).contiguous().realize(), fast))
    loads = {name: n for name, n in moved(c).items() if name.startswith("data")}
    assert loads == {"data0": (0, 144), "data1": (100, 0)}
    assert c.total("loaded") == 400
    if fast:  # one word of the mask's table for each vector, told apart
        assert moved(c)["constant tables"][0] > 0


@BOTH
def test_indexing(fast: bool) -> None:
    x, places = given(1000), Tensor([3, 1, 4, 1, 5], device=DEVICE).realize()
    c = only(launches(lambda: x[places].contiguous().realize(), fast))
    assert moved(c) == {"data0": (0, 5), "data1": (5, 0), "data2": (5, 0)}
    assert c.total("l2") == 3


def test_indexing_out_of_range_loads_nothing() -> None:
    """The gate is the data's: what is loaded is known when the kernel runs, not before."""
    x, places = given(100), Tensor([3, 900, 4, -900], device=DEVICE).realize()
    c = only(launches(lambda: x[places].contiguous().realize()))
    assert moved(c)["data2"] == (2, 0)


def test_a_sum_cut_into_chunks() -> None:
    x, w = given(256, 256), given(256, 256)
    assert plan_of(x @ w).endswith("16 chunks")
    c = only(launches(lambda: (x @ w).realize()))
    assert c.flops == 2 * 256**3 and moved(c)["data0"] == (0, 256**2)


def test_max_pool() -> None:
    x = given(1, 1, 8, 8)
    c = only(launches(lambda: x.max_pool2d((2, 2)).realize(), fast=False))
    assert moved(c) == {"data0": (0, 16), "data1": (64, 0)}
    assert c.flops == 48  # of four numbers the largest takes three comparisons


@BOTH
def test_strided(fast: bool) -> None:
    x = given(1000)
    c = only(launches(lambda: x[::2].contiguous().realize(), fast))
    loads, stores = moved(c)["data1"][0], moved(c)["data0"][1]
    assert stores == 500
    if not fast:
        assert loads == 500
        return
    # the tile path loads all between the first lane and the last, and picks
    full, rest = divmod(500, width())
    assert loads == full * (2 * width() - 1) + (2 * rest - 1 if rest else 0)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 63])
@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float16], ids=lambda d: d.__name__)
def test_vectors_with_tails(n: int, dtype: type) -> None:
    x = Tensor(np.ones(n, dtype), device=DEVICE).realize()
    c = only(launches(lambda: (x + x).realize()))
    assert moved(c) == {"data0": (0, n), "data1": (n, 0)}
    assert c.total("loaded") == n * np.dtype(dtype).itemsize
    w = width(np.dtype(dtype).itemsize)
    lanes = 1 if n == 1 else -(-n // w) * w  # one number needs no vector
    assert (c.integer if dtype is np.int8 else c.flops) >= n
    if dtype is np.float32:
        assert c.flops == lanes
    if dtype is np.int8:
        assert c.flops == 0


def test_a_size_that_is_known_only_when_the_kernel_runs() -> None:
    x = given(1000)
    size = Variable("size", 1, 1000)
    found = launches(lambda: [x[: size.bind(n)].sum().realize() for n in (137, 20)])
    assert sum(c.calls for c in found) == 2
    assert sum(moved(c)["data1"][0] for c in found) == 157 == sum(c.flops for c in found)
    assert [sum(c.estimates[i] for c in found) for i in range(2)] == [157, 157 * 4 + 8]


def test_bool_and_double() -> None:
    x = Tensor(rng.standard_normal(100) > 0, device=DEVICE).realize()
    y = given(100, dtype=np.float64)
    a = only(launches(lambda: x.logical_not().realize()))
    b = only(launches(lambda: (y * 3).realize()))
    assert (a.total("loaded"), a.total("stored"), a.flops) == (100, 100, 0)
    assert (b.total("loaded"), b.total("stored")) == (800, 800)


# ***************************** the same numbers, however it runs *****************************


def same(a: Counts, b: Counts) -> bool:
    return a == replace(b, key=a.key)


def step_of(x: Tensor, w: Tensor) -> Tensor:
    return ((x @ w).relu().contiguous().sum(0) + 1).exp().realize()


def test_a_captured_step_counts_as_plain_calls_do() -> None:
    x, w = given(64, 100), given(100, 96)
    plain = launches(lambda: step_of(x, w))
    jitted = TinyJit(step_of)
    with Context(PARALLEL=0):
        for _ in range(3):  # the third is the first native call of the whole
            jitted(x, w)
        before = {c: c.counts() for c in counts.living()}
        jitted(x, w)
    new = [c.counts().plus(old, -1) for c, old in before.items() if c.counts() != old]
    assert len(new) == len(plain) > 1
    assert all(same(a, b) for a, b in zip(plain, new, strict=True))


def test_several_threads_of_the_program_lose_nothing() -> None:
    x = given(4096)
    jitted = [TinyJit(lambda t: (t * 3).realize()) for _ in range(3)]
    for j in jitted:
        for _ in range(3):
            j(x)
    before = {c: c.counts() for c in counts.living()}
    threads = [threading.Thread(target=lambda j=j: [j(x) for _ in range(50)]) for j in jitted]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    new = [c.counts().plus(old, -1) for c, old in before.items() if c.counts() != old]
    assert sum(c.calls for c in new) == 150
    assert sum(moved(c)["data1"][0] for c in new) == 150 * 4096


SCRIPT = """
import json, sys
import numpy as np
from tinygrad import Tensor
rng = np.random.default_rng(1)
x, w = (Tensor(rng.standard_normal((256, 256)).astype(np.float32)).realize() for _ in range(2))
(x @ w).relu().realize()
Tensor(rng.standard_normal(1 << 18).astype(np.float32)).realize().sum().realize()
from tgx.devices import counts
print(json.dumps([[c.name, c.flops, c.integer, [list(vars(m).values()) for m in c.memory]]
                  for c in counts.all_counts()]))
"""


def test_one_thread_or_many(fresh: Run) -> None:
    one = fresh("-c", SCRIPT, DEVICE="TGX", TGX_COUNT="1", THREADS="0")
    many = fresh("-c", SCRIPT, DEVICE="TGX", TGX_COUNT="1", NUM_CPU_THREADS="4")
    assert one.returncode == many.returncode == 0, one.stderr + many.stderr
    assert one.stdout == many.stdout and len(json.loads(one.stdout)) >= 2
    assert one.stderr == many.stderr and "TGX_COUNT: " in one.stderr


def test_a_forked_child_counts_for_itself(fresh: Run) -> None:
    script = (
        "import os\nfrom tinygrad import Tensor\n"
        "x = Tensor([1.0, 2.0]).realize()\n(x + 1).realize()\n"
        "from tgx.devices import counts\n"
        "if os.fork() == 0:\n"
        "    assert not counts.all_counts()\n    (x * 2).realize()\n"
        "    print([c.calls for c in counts.all_counts()], flush=True)\n    os._exit(0)\n"
        "os.wait()\nprint([c.calls for c in counts.all_counts()])\n"
    )
    done = fresh("-c", script, DEVICE="TGX", TGX_COUNT="1")
    assert done.stdout.splitlines() == ["[1]", "[1]"], done.stdout + done.stderr


def test_a_trace_has_its_own_launches_alone() -> None:
    x = given(333)
    jitted = TinyJit(lambda t: (t * 5).realize())
    for _ in range(4):
        jitted(x)
    with tgx.trace() as recording:
        for _ in range(3):
            jitted(x)
        (x * 5).realize()
    trace = recording.trace
    own = [c for c in trace.counts if any(t.loads for t in trace.traffic_of(c.kernel))]
    assert sum(c.calls for c in own) == 1  # the jitted calls belong to a graph made before
    jitted(x)
    with tgx.trace() as recording:
        (x * 5).realize()
    assert [c.calls for c in recording.trace.counts] == [1]


PICKLED = """
import pickle, sys
from tinygrad import Tensor, TinyJit
if sys.argv[1] == "make":
    step = TinyJit(lambda x: (x * 3).realize())
    for i in range(3):
        step(Tensor.full((100,), float(i)).contiguous().realize())
    open("jit", "wb").write(pickle.dumps(step))
else:
    step = pickle.load(open("jit", "rb"))
    print(step(Tensor.full((100,), 2.0).contiguous().realize()).sum().item())
"""


def test_a_pickled_step_is_not_run_the_wrong_way(fresh: Run, tmp_path: Path) -> None:
    """A counted kernel looks for its block before its arguments: there must be one."""
    (script := tmp_path / "pickled.py").write_text(PICKLED)
    modes: list[dict[str, str]] = [{}, {"TGX_COUNT": "1"}, {"TGX_CHECK": "1"}]
    for made, other in zip(modes, (*modes[1:], modes[0]), strict=True):
        assert fresh(script, "make", DEVICE="TGX", **made).returncode == 0
        same, refused = (fresh(script, "use", DEVICE="TGX", **mode) for mode in (made, other))
        assert same.stdout == "600.0\n", same.stderr
        assert refused.returncode == 1, refused.stdout
        assert "was compiled with" in refused.stderr and "compile anew" in refused.stderr


# ***************************** the cache model *****************************


class Reference:
    """A set-associative cache with LRU, as the textbook has it."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.sets: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(cache.sets)]

    def misses(self, line: int) -> bool:
        lines = self.sets[line % self.cache.sets]
        if line in lines:
            lines.move_to_end(line)
            return False
        lines[line] = None
        if len(lines) > self.cache.ways:
            lines.popitem(last=False)
        return True


class Two:
    """Two of them, the second behind the first."""

    def __init__(self, caches: tuple[Cache, Cache] = counts.CACHES) -> None:
        self.levels = [Reference(c) for c in caches]
        self.count = [0, 0]

    def touch(self, address: int, nbytes: int) -> None:
        for line in range(address // 64, (address + nbytes - 1) // 64 + 1):
            for i, level in enumerate(self.levels):
                if not level.misses(line):
                    break
                self.count[i] += 1


class Native:
    def __init__(self, caches: tuple[Cache, Cache] = counts.CACHES) -> None:
        self.model = CacheModel(caches)
        self.misses = array("q", [0, 0])

    def touch(self, address: int, nbytes: int) -> None:
        self.model.touch(self.model.address, self.misses.buffer_info()[0], address, nbytes)

    def lanes(self, addresses: list[int], mask: int) -> None:
        where = array("q", addresses)
        self.model.lanes(
            self.model.address, self.misses.buffer_info()[0], where.buffer_info()[0],
            len(addresses), mask,
        )  # fmt: skip


SMALL = (Cache("L1", 1024, 2), Cache("L2", 8192, 4))


@pytest.mark.parametrize("caches", [SMALL, counts.CACHES], ids=["small", "as used"])
@pytest.mark.parametrize("seed", range(3))
def test_the_model_is_the_textbooks(seed: int, caches: tuple[Cache, Cache]) -> None:
    draw = random.Random(seed)
    native, reference = Native(caches), Two(caches)
    reach = caches[1].nbytes * 2
    at = 0
    for _ in range(6000):
        # near the last place, or anywhere
        at = (at + draw.choice((4, 4, 64, -64, 1024))) % reach if draw.random() < 0.8 else \
            draw.randrange(reach)
        nbytes = draw.choice((1, 4, 8, 64, 200))
        if draw.random() < 0.3:
            addresses = [(at + draw.randrange(4096)) & ~3 for _ in range(16)]
            mask = draw.getrandbits(16)
            native.lanes(addresses, mask)
            for i, a in enumerate(addresses):
                if mask >> i & 1:
                    reference.touch(a, 4)
        else:
            native.touch(at, nbytes)
            reference.touch(at, nbytes)
    assert list(native.misses) == reference.count
    assert native.misses[0] > native.misses[1] > 0


def test_streaming_misses_every_line_once() -> None:
    native = Native()
    for at in range(0, 4 << 20, 4):
        native.touch(at, 4)
    assert list(native.misses) == [(4 << 20) // 64] * 2


def test_what_fits_misses_once() -> None:
    native = Native()
    for _ in range(5):
        for at in range(0, 32 << 10, 64):
            native.touch(at, 64)
    assert list(native.misses) == [512, 512]
    native = Native()
    for _ in range(5):  # too much for the first cache, which LRU then keeps emptying
        for at in range(0, 64 << 10, 64):
            native.touch(at, 64)
    assert list(native.misses) == [5 * 1024, 1024]


def test_a_launch_begins_cold() -> None:
    native = Native()
    for chunk in (0, 1, 0):
        native.model.cold(native.model.address, chunk)
        native.touch(0, 64)
    assert list(native.misses) == [2, 2]  # chunk 1 went on with what chunk 0 had


def test_misses_of_a_kernel_are_those_of_its_addresses() -> None:
    """Three loops, done again in Python with the textbook's caches."""
    m, k, n = 8, 300, 40  # w, 48 kB, is too much for the first cache
    x, w = given(m, k), given(k, n)
    c = only(launches(lambda: (x @ w).realize(), fast=False, plain=True))
    sizes = [4 * m * n, 4 * m * k, 4 * k * n]
    bases, top = [], 64
    for size in sizes:
        bases.append(-(-top // 64) * 64)
        top = bases[-1] + size
    caches = Two()
    own = [[0, 0] for _ in sizes]

    def touch(place: int, element: int) -> None:
        before = list(caches.count)
        caches.touch(bases[place] + 4 * element, 4)
        own[place] = [o + a - b for o, a, b in zip(own[place], caches.count, before, strict=True)]

    for i in range(m):
        for j in range(n):
            for r in range(k):
                touch(1, i * k + r)
                touch(2, r * n + j)
            touch(0, i * n + j)
    assert [[t.l1, t.l2] for t in c.memory if t.word >= 0] == own
    assert own[2][0] > 5 * own[2][1]  # the column of w, again and again


# ***************************** a second witness *****************************

Touch = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
Lanes = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)


class Witness:
    """In the cache model's place: sees every access, and adds up by itself."""

    def __init__(self) -> None:
        self.model = counts.cache_model()
        self.seen: dict[int, list[tuple[int, int]]] = {}  # where the misses are: (address, bytes)

    def __enter__(self) -> Witness:
        def touch(model: int, misses: int, address: int, nbytes: int) -> None:
            self.seen.setdefault(misses, []).append((address, nbytes))

        def lanes(model: int, misses: int, where: int, n: int, mask: int) -> None:
            addresses = (ctypes.c_int64 * n).from_address(where)
            self.seen.setdefault(misses, []).extend(
                (addresses[i], 0) for i in range(n) if mask >> i & 1
            )

        self.kept = list(self.model.words[6:8])
        self.callbacks = Touch(touch), Lanes(lanes)
        for i, f in enumerate(self.callbacks):
            self.model.words[6 + i] = ctypes.cast(f, ctypes.c_void_p).value
        return self

    def __exit__(self, *_: object) -> None:
        for i, address in enumerate(self.kept):
            self.model.words[6 + i] = address

    def disagreements(self, counter: counts.Counter, did: Counts) -> list[str]:
        """Where the table's sums are not what was seen."""
        out = []
        for i, m in enumerate(did.memory):
            seen = self.seen.get(counter.address + 8 * (1 + 2 * i), [])
            itemsize = (m.loaded + m.stored) // max(1, m.loads + m.stores)
            elements = sum(max(1, nbytes // max(1, itemsize)) for _, nbytes in seen)
            if m.name != "constant tables" and elements != m.loads + m.stores:
                out.append(f"{did.name} {m.name}: {elements} seen, {m.loads} + {m.stores} counted")
            reach = max((a + n for a, n in seen), default=0) - min((a for a, _ in seen), default=0)
            if m.word >= 0 and reach > m.nbytes:
                out.append(f"{did.name} {m.name}: {reach} bytes of {m.nbytes}")
        return out


def watched(work: Callable[[], object], fast: bool) -> tuple[list[str], int]:
    """What the witness and the counts disagree about, and how many kernels both saw."""
    codegen.to_program_cache.clear()
    before = {c: c.counts() for c in counts.living()}
    with (
        settings.set_to("TGX_FAST", str(int(fast))),
        Context(PARALLEL=0),
        Witness() as witness,
    ):
        try:
            work()
        except RuntimeError as e:  # some make constants on the default device, which does not count
            if "all buffers must be on the same device" not in str(e):
                raise
            pytest.skip("a program of two devices")
    out, kernels = [], 0
    for c in counts.living():
        did = c.counts() if c not in before else c.counts().plus(before[c], -1)
        if did.calls:
            kernels += 1
            out += witness.disagreements(c, did)
    codegen.to_program_cache.clear()
    return out, kernels


@BOTH
@pytest.mark.parametrize("seed", range(8))
def test_random_programs_are_counted_right(seed: int, fast: bool) -> None:
    program = programs.seeded(1000 + seed, 1, ONE_DEVICE)
    out, kernels = watched(lambda: programs.run_tinygrad(programs.Expected(program), DEVICE), fast)
    assert not out and kernels, "\n".join(out)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("seed", range(8, 300))
def test_many_random_programs_are_counted_right(seed: int, fast: bool) -> None:
    program = programs.seeded(1000 + seed, 1, ONE_DEVICE)
    out, _ = watched(lambda: programs.run_tinygrad(programs.Expected(program), DEVICE), fast)
    assert not out, "\n".join(out)


def wrong_rows(monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., None]) -> None:
    """Kernels compiled from now on get rows with a mistake; nothing of it stays in a cache."""
    monkeypatch.setattr(counting, "note", mistake)
    monkeypatch.setattr(Device[DEVICE].renderer.compiler, "cachekey", None)


@pytest.mark.parametrize("mistake", ["an element too few", "loads for stores", "wrong bytes"])
def test_a_wrong_row_is_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = counting.note

    def wrong(touched: dict[int, list[int]], place: int, kind: str, lanes: int, n: int) -> None:
        if mistake == "an element too few":
            lanes -= 1
        if mistake == "loads for stores":
            kind = "load" if kind == "store" else "store"
        right(touched, place, kind, lanes, n * (2 if mistake == "wrong bytes" else 1))

    wrong_rows(monkeypatch, wrong)
    for fast in (True, False):
        with Context(CCACHE=0), pytest.raises(AssertionError):
            test_addition(fast)


# ***************************** what is asked for, and refused *****************************


def test_a_table_and_its_line_come_back() -> None:
    asked = Asked("k", "tile", (400, 8), (["MUL", "n", 4], 7, 0))
    source = f"define void @k() {{\n  ret void\n}}\n{asked.line()}\n"
    found = Asked.of(source)
    assert found == asked and Asked.of(source.rsplit("\n", 2)[0]) is None
    memory = (counting.Memory("data0", 0, 400), counting.Memory('a "name" \\', -1, 0))
    table = Table("loops", memory, (counting.Row(1, 2, ((0, 1, 0, 4, 0),)),), asked.estimates)
    assert Table.loads(table.dumps()) == table


def test_estimates_that_depend_on_variables() -> None:
    n, m = (UOp.variable(name, 1, 100, dtypes.int, param=True) for name in "nm")
    for e in (n * 4 + m, (n + 3) // 4 * 8, n.minimum(17) * 2, (n % 5) * m, n * 0 + 7):
        told = json.loads(json.dumps(expression(e)))
        for values in ({"n": 5, "m": 9}, {"n": 100, "m": 1}):
            assert evaluate(told, values) == sym_infer(e, values)
    for unknown in (["ADD", ["FROBNICATE", 1], 2], ["MUL", "unbound", 2]):
        assert evaluate(unknown, {}) == -1


@pytest.mark.parametrize("line", [
    "%r = call float @cosf(float %x)",
    "%r = load float, ptr %unknown, align 4",
    "%r = frobnicate float %x",
])
def test_what_cannot_be_counted_is_refused(line: str) -> None:
    text = (
        "define void @k(ptr %args, i64 %chunk) nounwind {\n"
        "  %at = getelementptr i64, ptr %args, i64 0\n"
        "  %word = load i64, ptr %at\n  %unknown = inttoptr i64 %word to ptr\n"
        f"  %x = sitofp i64 %word to float\n  {line}\n  ret void\n}}\n"
    )
    with pytest.raises(CompileError, match="TGX_COUNT=1 cannot count") as caught:
        counting.counted(text, Asked("k", "loops", (4,), (0, 0, 0)))
    assert line in str(caught.value) and "unset TGX_COUNT" in str(caught.value)


def test_the_text_of_a_kernel_stays_as_it_is() -> None:
    """What people and the explorer read, with its lines' UOps, is the kernel without counting."""
    def source(device: str, fast: bool) -> tuple[str, list[int]]:
        x = Tensor(np.ones(64, np.float32), device=device).realize()
        codegen.to_program_cache.clear()
        with settings.set_to("TGX_FAST", str(int(fast))), Context(PARALLEL=0):
            (x * 2 + 1).realize()
        (program,) = codegen.to_program_cache.values()
        codegen.to_program_cache.clear()
        program = cache.whole(program)
        code = Code("source", program.src[2].arg, "llvm")
        uops = list(program.src[1].src)
        return code.text, list(lines.traced(code, program, uops, Device[device].renderer).uops)

    for fast in (True, False):
        plain, counted = source("TGX", fast), source(DEVICE, fast)
        text, _, asked = counted[0].rstrip("\n").rpartition("\n")
        assert text + "\n" == plain[0] and asked.startswith(counting.MARK)
        known = [u for u in plain[1] if u >= 0]
        assert known and known == [u for u in counted[1] if u >= 0][: len(known)]


# ***************************** from the command line *****************************

TRAIN = """
from tinygrad import Tensor, TinyJit
w = Tensor.ones(20, 30).contiguous().realize()
@TinyJit
def step(x):
    return (x @ w).relu().realize()
for i in range(5):
    y = step(Tensor.full((12, 20), float(i)).contiguous().realize())
print(y.sum().item())
"""


def test_a_script_prints_a_table(fresh: Run, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    plain = fresh(script, DEVICE="TGX")
    done = fresh(script, DEVICE="TGX", TGX_COUNT="1")
    assert done.returncode == 0 and done.stdout == plain.stdout, done.stderr
    assert plain.stderr == ""
    told = done.stderr.strip().splitlines()
    assert re.match(r"TGX_COUNT: \d+ kernels, \d+ launches", told[0])
    (at,) = [i for i, x in enumerate(told) if x.startswith("r_12_30_20 ")]
    assert told[at].split()[1:3] == ["tile", "5"]
    assert [x.split()[:2] for x in told[at + 1 : at + 4]] == [[f"data{i}", "of"] for i in range(3)]
    assert "times its size" in told[at + 1]
    assert all(len(x) <= 110 for x in told), max(map(len, told))


def test_what_beam_tries_is_not_the_programs(fresh: Run) -> None:
    code = "from tinygrad import Tensor; print(Tensor.ones(64, 64).contiguous().sum().item())"
    done = fresh("-c", code, DEVICE="TGX", TGX_COUNT="1", BEAM="1", PARALLEL="0")
    assert done.returncode == 0 and done.stderr.count("TGX_COUNT: ") == 1, done.stderr
    assert "TGX_COUNT: 2 kernels, 2 launches" in done.stderr


def test_a_traced_script_keeps_its_counts(fresh: Run, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    done = fresh("-m", "tgx", "trace", "-o", tmp_path / "run", script, DEVICE="TGX", TGX_COUNT="1")
    assert done.returncode == 0, done.stderr
    trace = codec.read(tmp_path / "run")
    assert [c.name for c in trace.environment.caches] == ["L1", "L2"]
    assert any("TGX_COUNT=1" in m for m in trace.environment.missing)
    names = {b.id: b.name for b in trace.buffers}
    products = [k for k in trace.kernels if "matmul" in k.ops and trace.counted(k.id)]
    assert sum(c.calls for k in products if (c := trace.counted(k.id))) == 5
    for k in products:
        c = trace.counted(k.id)
        assert c is not None and c.estimated_flops == c.calls * (2 * 12 * 20 * 30 + 12 * 30)
        traffic = {names.get(t.buffer, t.name): t for t in trace.traffic_of(k.id)}
        assert traffic["w"].loads >= c.calls * 600 and traffic["w"].stores == 0
        assert sum(t.stores for t in traffic.values()) == c.calls * 360


SHARDED = """
from tinygrad import Tensor, TinyJit
devices = ("TGX:0", "TGX:1")
x = Tensor.ones(8, 64).contiguous().realize().shard(devices, axis=0).realize()
w = Tensor.ones(64, 32).contiguous().realize().shard(devices).realize()
@TinyJit
def f(x):
    return (x @ w).realize()
for i in range(4):
    y = f(x)
print(y.numpy().sum())
"""


def test_several_devices_count_together(fresh: Run, tmp_path: Path) -> None:
    (script := tmp_path / "sharded.py").write_text(SHARDED)
    done = fresh("-m", "tgx", "trace", "-o", tmp_path / "run", script, DEVICE="TGX", TGX_COUNT="1")
    assert done.returncode == 0, done.stderr
    trace = codec.read(tmp_path / "run")
    found = [c for k in trace.kernels if "matmul" in k.ops and (c := trace.counted(k.id))]
    assert sum(c.calls for c in found) == 8  # four calls, half of the rows on each device
    assert sum(c.estimated_flops for c in found) == 4 * 2 * 8 * 64 * 32
    stores = [t.stores for c in found for t in trace.traffic_of(c.kernel)]
    assert sum(stores) == 4 * 8 * 32


def test_nothing_to_count_is_said(fresh: Run) -> None:
    code = "from tinygrad import Tensor; print((Tensor([1, 2]) + 1).tolist())"
    done = fresh("-c", code, DEVICE="PYTHON", TGX_COUNT="1")
    assert done.returncode == 0 and "nothing was counted" in done.stderr, done.stderr
    assert "DEVICE=TGX" in done.stderr
    quiet = fresh("-c", "import tinygrad", DEVICE="TGX", TGX_COUNT="1")
    assert quiet.stderr == ""
    wrong = fresh("-c", "import tinygrad", DEVICE="TGX", TGX_COUNT="yes")
    assert "TGX_COUNT=yes" in wrong.stderr and "expected: 0 or 1" in wrong.stderr
