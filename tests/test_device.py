"""The device: every operation and type against NumPy, memory, threads, the graph, and failures."""
from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Device, Tensor, TinyJit, Variable, codegen, dtypes
from tinygrad.device import Buffer, BufferSpec, CompileError
from tinygrad.helpers import Context, Target
from tinygrad.uop.ops import KernelInfo, Ops, UOp

from tgx.devices import threads
from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.devices.renderer import TGXRenderer

rng = np.random.default_rng(7)
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]


def tgx(x: np.ndarray) -> Tensor:
    return Tensor(x, device="TGX")


def some(dtype: type, n: int = 37) -> np.ndarray:
    if dtype is np.bool_:
        return rng.integers(0, 2, n).astype(np.bool_)
    if np.issubdtype(dtype, np.integer):
        low = -100 if np.issubdtype(dtype, np.signedinteger) else 0
        return rng.integers(low, 100, n).astype(dtype)
    return rng.standard_normal(n).astype(dtype)


def child(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a fresh interpreter on TGX."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "DEV": "TGX", **env})


# ***************************** arithmetic *****************************

@pytest.fixture(params=["1", "0"], ids=["tile", "loops"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Once by the tile path, which takes most kernels, once the ordinary way, UOp by UOp: each has
    rows of its own for every operation."""
    monkeypatch.setenv("TGX_FAST", request.param)
    cache = dict(codegen.to_program_cache)
    codegen.to_program_cache.clear()
    yield
    codegen.to_program_cache.clear()
    codegen.to_program_cache.update(cache)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, np.bool_])
def test_arithmetic_of_every_type_equals_numpy(dtype: type) -> None:
    a, b = some(dtype), some(dtype)
    b[:5] = a[:5]  # less is not equal
    x, y = tgx(a), tgx(b)
    tolerance = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-12}.get(dtype, 0)
    with np.errstate(over="ignore"):
        pairs = [(x * y, a * b), (x.maximum(y), np.maximum(a, b)), (x < y, a < b), (x == y, a == b),
                 (x != y, a != b), ((x < y).where(x, y), np.where(a < b, a, b))]
        if dtype is np.bool_:
            pairs += [(x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (x + y, a + b)]
        else:
            pairs += [(x + y, a + b), (x - y, a - b)]
        if dtype in INTEGERS:
            pairs += [(x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (x << 3, a << dtype(3)),
                      (x >> 2, a >> dtype(2)), (x // 3, a // dtype(3)), (x % 3, a % dtype(3))]
    for got, expected in pairs:
        np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_division_never_kills_the_process(dtype: type) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([7, low, low, high, 5, 0], dtype)
    b = np.array([0, 0, np.array(-1).astype(dtype), 3, 2, 9], dtype)
    quotient = tgx(a).div(tgx(b), rounding_mode="trunc").numpy()
    rest = tgx(a).mod(tgx(b)).numpy()
    assert quotient[3:].tolist() == [high // 3, 2, 0] and rest[3:].tolist() == [high % 3, 1, 0]
    assert quotient[0] == 0


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("new", INTEGERS)
def test_float_to_integer_casts_equal_numpy_in_range_and_wrap_below_zero(new: type) -> None:
    low = max(-100, np.iinfo(new).min)
    a = np.array([0.0, 1.9, low + 0.5, 99.5, low], np.float32)
    np.testing.assert_array_equal(tgx(a).cast(getattr(dtypes, np.dtype(new).name)).numpy(),
                                  a.astype(new))
    assert tgx(np.array([-1.0], np.float32)).cast(dtypes.uint8).item() == 255


@pytest.mark.usefixtures("path")
def test_a_narrow_number_keeps_its_sign() -> None:
    signed, unsigned = np.array([-5, 7, -128, 127], np.int8), np.array([0, 200, 255], np.uint8)
    for a in (signed, unsigned):
        for new in (np.int16, np.int32, np.int64, np.float32, np.uint64):
            got = tgx(a).cast(getattr(dtypes, np.dtype(new).name)) + 0
            np.testing.assert_array_equal(got.numpy(), a.astype(new))


@pytest.mark.usefixtures("path")
def test_casts_out_of_range_are_defined() -> None:
    big = tgx(np.array([np.inf, -np.inf, np.nan, 1e30], np.float32))
    assert big.cast(dtypes.int64).tolist()[:3] == [2**63 - 1, -(2**63), 0]


@pytest.mark.usefixtures("path")
def test_max_lets_nan_win_like_numpy() -> None:
    a = np.array([1.0, np.nan, -3.0], np.float32)
    np.testing.assert_array_equal(tgx(a).maximum(2.0).numpy(), np.maximum(a, 2.0))
    assert math.isnan(tgx(a).max().item())


@pytest.mark.usefixtures("path")
def test_exp2_is_within_one_unit_in_the_last_place() -> None:
    a = np.concatenate([rng.uniform(-126, 128, 200_000), rng.uniform(-1, 1, 200_000)])
    a = a.astype(np.float32)
    exact = np.exp2(a.astype(np.float64))
    off = np.abs(tgx(a).exp2().numpy() - exact) / np.spacing(exact.astype(np.float32))
    assert off.max() < 1 and tgx(np.float32([0, 1, -3])).exp2().tolist() == [1, 2, 0.125]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_agree_with_numpy(dtype: type) -> None:
    a = np.abs(some(dtype, 101)) + dtype(0.1)
    tolerance = 3e-6 if dtype is np.float32 else 1e-9
    for got, expected in [(tgx(a).exp(), np.exp(a)), (tgx(a).log(), np.log(a)),
                          (tgx(a).sin(), np.sin(a)), (tgx(a).sqrt(), np.sqrt(a)),
                          (tgx(a).rsqrt(), 1 / np.sqrt(a)), (tgx(a).reciprocal(), 1 / a),
                          (tgx(a * 9).trunc(), np.trunc(a * 9)), (tgx(-a).abs(), a)]:
        np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance, atol=tolerance)
    assert tgx(np.zeros(1, dtype)).rsqrt().item() == math.inf


@pytest.mark.parametrize("dtype", [dtypes.bfloat16, *dtypes.fp8s, dtypes.half])
def test_small_floats_round_trip_through_memory(dtype: dtypes) -> None:
    values = [0.0, 1.0, -2.0, 0.5, 3.5]
    stored = Tensor(values, dtype=dtype, device="TGX").contiguous().realize()
    assert stored.cast(dtypes.float).tolist() == values
    assert (stored + stored).cast(dtypes.float).tolist() == [2 * v for v in values]


def test_reductions_of_long_rows_and_columns() -> None:
    a = rng.standard_normal((311, 257)).astype(np.float32)
    for axis in (0, 1, None):
        expected = a.sum(axis, dtype=np.float64)
        near = 4e-6 * (a.size / expected.size) ** 0.5  # the terms are about 1, the sum may be 0
        np.testing.assert_allclose(tgx(a).sum(axis).numpy(), expected, rtol=2e-5, atol=near)
        np.testing.assert_array_equal(tgx(a).max(axis).numpy(), a.max(axis))
    np.testing.assert_array_equal(tgx(a).argmax(1).numpy(), a.argmax(1))


@pytest.mark.parametrize("fast", ["1", "0"], ids=["tile", "loops"])
def test_gated_loads_never_read_out_of_bounds(fast: str) -> None:
    """The last page of the buffer borders on one that must not be touched."""
    code = """
import ctypes, mmap, numpy as np
from tinygrad import Tensor, dtypes
libc = ctypes.CDLL(None)
page = mmap.PAGESIZE
both = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(both))
assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
n = 33
values = (ctypes.c_float * n).from_address(start + page - 4 * n)
values[:] = range(n)
x = Tensor.from_blob(ctypes.addressof(values), (3, 11), dtype=dtypes.float, device="TGX")
a = np.arange(n, dtype=np.float32).reshape(3, 11)
assert (x.pad(((0, 2), (3, 9))).numpy() == np.pad(a, ((0, 2), (3, 9)))).all()
assert (x[:, 5:].contiguous().flip(1).numpy() == a[:, :4:-1]).all()
assert x.reshape(1, 1, 3, 11).max_pool2d(3, 1, padding=1).numpy().max() == n - 1
assert (x.sum(0).numpy() == a.sum(0)).all() and (x @ x.T).numpy().sum() == (a @ a.T).sum()
print("done")
"""
    done = child(code, TGX_FAST=fast)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr


# ***************************** memory *****************************

def test_buffers_are_aligned_reused_and_viewed_without_a_copy() -> None:
    allocator = Device["TGX"].allocator
    one = Buffer("TGX", 1000, dtypes.float, preallocate=True)
    assert (address := one._buf.address) % 64 == 0
    view = one.view(10, dtypes.float, 400).allocate()
    assert view._buf.address == address + 400
    allocator._as_buffer(view._buf).cast("f")[3] = 4.5
    assert one.numpy()[103] == 4.5
    del view, one
    gc.collect()
    assert Buffer("TGX", 1000, dtypes.float, preallocate=True)._buf.address == address


def test_external_memory_is_used_in_place() -> None:
    a = np.arange(12, dtype=np.float32)
    buffer = Buffer("TGX", 12, dtypes.float, options=BufferSpec(external_ptr=a.ctypes.data),
                    preallocate=True)
    assert buffer._buf.address == a.ctypes.data
    a[5] = 50
    assert buffer.numpy()[5] == 50


def test_zeroed_memory_is_zero() -> None:
    for _ in range(3):
        buffer = Buffer("TGX", 777, dtypes.uint8, options=BufferSpec(zero=True), preallocate=True)
        assert not buffer.numpy().any()
        Device["TGX"].allocator._as_buffer(buffer._buf)[:] = b"\1" * 777
        del buffer


def test_out_of_memory_says_so_and_the_device_goes_on() -> None:
    with pytest.raises(MemoryError, match="TGX"):
        Buffer("TGX", 1 << 60, dtypes.uint8, preallocate=True)
    assert (tgx(np.ones(3, np.float32)) + 1).tolist() == [2, 2, 2]


def test_disk_and_safetensors_round_trip(tmp_path: Path) -> None:
    from tinygrad.nn.state import safe_load, safe_save
    a = rng.standard_normal((65, 33)).astype(np.float32)
    with Context(DEV="TGX"):
        safe_save({"w": tgx(a)}, str(tmp_path / "w.safetensors"))
        back = safe_load(str(tmp_path / "w.safetensors"))["w"].to("TGX")
        np.testing.assert_array_equal(back.numpy(), a)


def test_several_devices_share_and_shard() -> None:
    a = rng.standard_normal((8, 6)).astype(np.float32)
    devices = ("TGX:0", "TGX:1", "TGX:2", "TGX:3")
    x = Tensor(a, device="TGX").shard(devices, axis=0)
    np.testing.assert_allclose((x @ x.T).numpy(), a @ a.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(Tensor(a, device="TGX").to("TGX:1").to("TGX:2").numpy(), a)


# ***************************** threads *****************************

BUMP = """
define void @bump(ptr %args, i64 %chunk) nounwind {
  %base = load ptr, ptr %args
  %place = getelementptr i64, ptr %base, i64 %chunk
  %old = load i64, ptr %place
  %new = add i64 %old, 1
  store i64 %new, ptr %place
  ret void
}
"""


@pytest.mark.parametrize("chunks", [1, 2, 3, 16])
def test_every_chunk_runs_exactly_once(chunks: int) -> None:
    kernel = Loaded(TGXCompiler().compile(BUMP), ("bump",))
    counts = array("q", [0] * 16)
    words = array("q", [counts.buffer_info()[0]])
    jobs = array("q", [kernel.address["bump"], words.buffer_info()[0], chunks] * 1000)
    for _ in range(20):
        threads.run(jobs.buffer_info()[0], 1000)
    assert list(counts) == [20_000] * chunks + [0] * (16 - chunks)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    code = """
import hashlib, numpy as np
from tinygrad import Tensor
r = np.random.default_rng(0)
a, b = (Tensor(r.standard_normal((512, 384)).astype(np.float32)) for _ in range(2))
out = [(a @ b.T).numpy(), a.softmax(1).numpy(), a.sum(0).numpy(), (a * b).sum().numpy()]
print(hashlib.sha256(b"".join(o.tobytes() for o in out)).hexdigest())
"""
    digests = {child(code, NUM_CPU_THREADS=str(n)).stdout.strip() for n in (1, 2, 3, 7)}
    assert len(digests) == 1 and len(digests.pop()) == 64


def test_a_forked_child_has_threads_of_its_own() -> None:
    a = rng.standard_normal((512, 512)).astype(np.float32)
    expected = (tgx(a) @ tgx(a)).numpy()  # starts the pool in this process
    code = os.fork()
    if code == 0:
        same = np.array_equal((tgx(a) @ tgx(a)).numpy(), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 0


# ***************************** TinyJit *****************************

def test_graph_takes_new_inputs_every_call() -> None:
    w = tgx(rng.standard_normal((6, 6)).astype(np.float32)).realize()

    @TinyJit
    def f(x: Tensor) -> Tensor:
        return ((x @ w).relu().contiguous() @ w + x).realize()

    kept = []  # else the next input may come to lie where the last one lay
    for _ in range(6):
        a = rng.standard_normal((5, 6)).astype(np.float32)
        kept.append(tgx(a).realize())
        expected = np.maximum(a @ w.numpy(), 0) @ w.numpy() + a
        np.testing.assert_allclose(f(kept[-1]).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert [c.src[0].arg for c in f.captured.linear.src if c.src[0].op is Ops.CUSTOM_FUNCTION] \
        == ["graph"], "the captured batch did not become one native call"


def test_graph_with_symbolic_sizes() -> None:
    a = rng.standard_normal((9, 4)).astype(np.float32)
    n = Variable("n", 1, 9)

    @TinyJit
    def f(x: Tensor) -> Tensor:
        return ((x * 2).contiguous().sum(0) + 1).contiguous().realize()

    for size in (2, 3, 9, 5, 1):
        got = f(tgx(a).realize()[:n.bind(size)]).numpy()
        np.testing.assert_allclose(got, (a[:size] * 2).sum(0) + 1, rtol=1e-5, atol=1e-5)


def test_graph_with_copies_between_devices() -> None:
    @TinyJit
    def f(x: Tensor) -> Tensor:
        return ((x + 1).contiguous().to("TGX:1") * 2).contiguous().to("TGX:0").realize()

    for i in range(5):
        np.testing.assert_array_equal(f(tgx(np.full(8, i, np.float32)).realize()).numpy(),
                                      np.full(8, 2 * i + 2))


def test_graph_can_be_captured_again() -> None:
    @TinyJit
    def f(x: Tensor) -> Tensor:
        return ((x + 1).contiguous() * 3).realize()

    for size in (4, 7, 4):
        f.reset()
        for _ in range(4):
            a = rng.standard_normal(size).astype(np.float32)
            np.testing.assert_allclose(f(tgx(a).realize()).numpy(), (a + 1) * 3, rtol=1e-6)


def test_profile_shows_a_row_for_tgx() -> None:
    code = """
import tinygrad.device as device
from tinygrad import Tensor, TinyJit
from tinygrad.helpers import cpu_events
from tinygrad.device import ProfileGraphEvent
@TinyJit
def f(x): return ((x + 1).contiguous() * 3).realize()
for _ in range(4): f(Tensor([1., 2.]).realize())
graphs = [e for e in cpu_events if isinstance(e, ProfileGraphEvent)]
assert graphs and all(b >= a for a, b in zip(graphs[-1].sigs, graphs[-1].sigs[1:]))
assert any(e.device == "TGX" for e in device.Compiled.profile_events)
import os; os._exit(0)
"""
    done = child(code, PROFILE="1")
    assert done.returncode == 0, done.stderr


# ***************************** compiling *****************************

def test_ir_that_llvm_refuses_is_kept_in_a_file() -> None:
    with pytest.raises(CompileError, match="kernel broken") as caught:
        TGXCompiler().compile("define void @broken(ptr %args, i64 %chunk) {\n  nonsense\n}\n")
    path = Path(str(caught.value).split("kept in ")[1].split(")")[0])
    assert "nonsense" in path.read_text()
    path.unlink()


def test_a_refused_kernel_is_collected_with_its_traceback(tmp_path: Path) -> None:
    """LLVM's module and its context are in the frames of the traceback: whichever of them the
    garbage collector takes first, the process lives."""
    code = """
import gc
from tgx.devices.compiler import CompileError, TGXCompiler
gc.disable()
for _ in range(20):  # an argument that has to be a constant is not: LLVM parses it, and refuses it
    try: TGXCompiler().compile('''declare i32 @llvm.abs.i32(i32, i1 immarg)
        define void @refused(ptr %args, i1 %no) {
          %a = call i32 @llvm.abs.i32(i32 1, i1 %no)
          ret void
        }''')
    except CompileError as error: error.itself = error
print(gc.collect() > 20)
"""
    done = child(code, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_an_operation_without_a_row_names_itself_and_the_kernel() -> None:
    one = UOp.const(1.0, dtypes.float).cast(dtypes.float)
    strange = UOp(Ops.POW, src=(one, one))
    sink = UOp.sink(arg=KernelInfo(name="my_kernel"))
    renderer = TGXRenderer(Target("TGX", "", "x86_64,x86-64-v3"))
    with pytest.raises(CompileError, match=r"no row for POW of float .*kernel my_kernel"):
        renderer.render([*strange.toposort(), sink])


@pytest.mark.parametrize("arch", ["arm64,cortex-a78", "arm64,apple-m1", "x86_64,x86-64-v2",
                                  "x86_64,x86-64-v4", "riscv64,generic-rv64"])
def test_kernels_compile_for_other_cpus(arch: str) -> None:
    """In a child: LLVM ends the process when it cannot select an instruction."""
    code = f"""
from tinygrad import Tensor, dtypes
from tinygrad.codegen import to_program
from tinygrad.helpers import Target
from tgx.devices.renderer import TGXRenderer
from tgx.devices.threads import runtime_source
renderer = TGXRenderer(Target("TGX", "", "{arch}"))
x, w = Tensor.empty(32, 48, device="NULL"), Tensor.empty(48, 24, device="NULL")
image, taps = Tensor.empty(2, 3, 9, 9, device="NULL"), Tensor.empty(4, 3, 3, 3, device="NULL")
programs = [(x @ w).relu(), x.softmax(), x.sin().sum(0), image.conv2d(taps, padding=1).max_pool2d(),
            x.cast(dtypes.half).exp(), x.cast(dtypes.int) // 7, x.cast(dtypes.bfloat16) + 1]
count = 0
for p in programs:
    for call in p.schedule_linear().src:
        if call.src[0].op.name == "SINK":
            program = to_program(call.src[0], renderer)
            assert program.src[3].arg[:4] == b"\\x7fELF"
            count += 1
assert renderer.compiler.compile(runtime_source(renderer.compiler.architecture))[:4] == b"\\x7fELF"
print(count)
"""
    done = child(code, PARALLEL="0", CCACHE="0")
    assert done.returncode == 0 and int(done.stdout) >= 7, done.stderr[-2000:]


def test_cross_compiled_kernels_are_not_run_here() -> None:
    other = "arm64,cortex-a78" if "x86" in TGXCompiler().architecture else "x86_64,x86-64-v2"
    code = "from tinygrad import Tensor; (Tensor([1.,2.]) + 1).realize()"
    done = child(code, DEV=f"TGX::{other}")
    assert done.returncode != 0 and "cannot run on this machine" in done.stderr


def test_debug_prints_ir_and_assembly() -> None:
    code = "from tinygrad import Tensor; print((Tensor([1.,2.]) + 1).tolist())"
    assert "define void @E_2(" in child(code, DEBUG="4").stdout
    assert ".globl\tE_2" in (out := child(code, DEBUG="7").stdout) and "ret" in out


def test_beam_search_works() -> None:
    a = rng.standard_normal((32, 32)).astype(np.float32)
    with Context(BEAM=2, CACHELEVEL=0):
        np.testing.assert_allclose((tgx(a) @ tgx(a)).numpy(), a @ a, rtol=1e-4, atol=1e-4)


def test_stock_cpu_is_never_opened() -> None:
    code = """
from tinygrad import Tensor, TinyJit, nn, Device, dtypes
from tinygrad.helpers import Context
import numpy as np
layer = nn.Linear(4, 3)
opt = nn.optim.Adam(nn.state.get_parameters(layer))
@TinyJit
def step(x):
    with Context(TRAINING=1):
        loss = layer(x).square().mean().backward()
        return loss.realize(*opt.schedule_step())
for _ in range(4): step(Tensor.rand(2, 4).realize()).item()
Tensor.arange(3).tolist(), Tensor([1, 2]).shard(("TGX:0", "TGX:1")).tolist()
print(sorted(d.split(":")[0] for d in Device._opened_devices))
"""
    done = child(code, PATH="")
    assert done.returncode == 0 and "CPU" not in done.stdout and "TGX" in done.stdout, done.stderr


def test_the_walk_through_the_device_is_what_the_code_prints() -> None:
    """devices/README.md, but for what another LLVM would print: the machine code."""
    from tgx.devices import walk

    def without_assembly(text: str) -> list[str]:
        return [part for part in text.split("```") if not part.startswith("asm\n")]

    here = Path(walk.__file__).parent / "README.md"
    assert without_assembly(here.read_text()) == without_assembly(walk.page()), \
        "python -m tgx.devices.walk > devices/README.md"
