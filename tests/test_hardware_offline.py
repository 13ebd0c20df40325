"""Lowering for a GPU that is not here. No CUDA package is needed: a stand-in for NVRTC hands out a
recorded cubin; where a real one is installed, the last tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Context, Tensor, TinyJit, Variable, dtypes
from tinygrad.codegen import to_program
from tinygrad.helpers import Target
from tinygrad.uop.ops import Ops

from tgx.adapter import nvrtc, offline
from tgx.errors import BadInput, MissingExtra
from tgx.hardware import toolchains
from tgx.hardware.kernel import Copy, GpuKernel

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / "recorded" / "cubins"


class StandIn:
    """Compiles everything to the same recorded kernel."""

    version = (12, 9)

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        assert f"sm_{toolchains.number(arch)}" == arch and "__global__" in source
        return (RECORDED / "plain.sm_87.cubin").read_bytes(), "// PTX"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nvrtc, "compiler_for", lambda arch: StandIn())
    monkeypatch.setattr(offline, "CCACHE", 0)  # nothing of it may reach the real cache
    with Context(PARALLEL=0):
        yield


def lowered(step: Any, *inputs: Any, arch: str = "sm_87") -> list[GpuKernel | Copy]:
    return offline.lower(offline.capture(step, inputs), arch)


def real(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32)).realize()


def test_what_is_captured_does_not_run() -> None:
    x = real(4)
    with offline.catching():
        y = (x + 1).realize()
    assert not y.uop.buffer.is_allocated()
    step = offline.capture(lambda t: {"out": [(t + 1).contiguous(), t.sum()]}, (x,))
    assert [call.src[0].op for call in step.calls] == [Ops.SINK, Ops.SINK]
    assert (x + 1).tolist() == [2, 2, 2, 2]  # and all is as it was


def test_a_tinyjit_is_looked_into_and_cannot_be_around() -> None:
    jitted = TinyJit(lambda t: (t * 3).realize())
    assert len(offline.capture(jitted, (real(8),)).calls) == 1

    @TinyJit
    def outer(t: Tensor) -> Tensor:
        offline.capture(lambda: t + 1)
        return (t + 2).realize()

    outer(real(8))
    with pytest.raises(BadInput, match="inside a TinyJit"):
        outer(real(8))


def test_variables_keep_their_values(stand_in: None) -> None:
    rows = real(10, 16)
    row = Variable("row", 0, 9)
    step = offline.capture(lambda: (rows[row.bind(7)] + 1).contiguous())
    assert step.variables == {"row": 7}
    assert len(offline.lower(step, "sm_87")) == 1


def test_work_is_counted(stand_in: None) -> None:
    (add,) = lowered(lambda a, b: a + b, real(4096), real(4096))
    assert isinstance(add, GpuKernel)
    assert (add.work.flops, add.work.bytes, add.work.traffic) == (4096, 3 * 16_384, 3 * 16_384)
    assert add.blocks * add.threads * 4 == 4096  # four to a thread, as float4
    assert add.work.instructions > 4096 and add.chain.memory == 1
    with Context(NOOPT=1):
        (product,) = lowered(lambda a, b: a @ b, real(64, 128), real(128, 32))
    assert isinstance(product, GpuKernel)
    assert product.work.flops == 2 * 64 * 128 * 32
    assert product.work.bytes == 4 * (64 * 128 + 128 * 32 + 64 * 32)  # each byte once
    assert product.work.traffic > product.work.bytes
    (row,) = lowered(lambda a: a.sum(), real(4096))
    assert isinstance(row, GpuKernel) and 4095 <= row.work.flops < 6000


def test_reading_one_number_many_times_counts_once(stand_in: None) -> None:
    (spread,) = lowered(lambda a, b: a + b[:1].expand(4096), real(4096), real(64))
    assert isinstance(spread, GpuKernel) and spread.work.bytes == 2 * 16_384 + 4


def test_the_longest_chain_goes_through_the_loops(stand_in: None) -> None:
    with Context(NOOPT=1):
        (short,) = lowered(lambda a: a.sum(), real(64))
        (long,) = lowered(lambda a: a.sum(), real(640))
    assert isinstance(short, GpuKernel) and isinstance(long, GpuKernel)
    assert (short.chain.memory, long.chain.memory) == (64, 640)
    assert 64 <= short.chain.alu < 80 and 640 <= long.chain.alu < 660


def test_copies_are_not_kernels(stand_in: None) -> None:
    with offline.catching() as catcher:
        Tensor(np.ones(100, np.float32)).realize()
    kernels = offline.lower(offline.Captured(catcher.calls, {}), "sm_87")
    assert kernels == [Copy("copy", 400)]


def test_float_products_stay_off_the_tensor_cores(stand_in: None) -> None:
    """As on a real DEV=CUDA, and unlike DEV=NULL:CUDA:sm_87, whose kernels would be others."""

    def product(dtype: Any) -> offline.Captured:
        a, b = real(32, 32).cast(dtype).realize(), real(32, 32).cast(dtype).realize()
        return offline.capture(lambda: a @ b)

    def tensor_flops(dtype: Any, arch: str) -> int:
        (kernel,) = offline.lower(product(dtype), arch)
        assert isinstance(kernel, GpuKernel)
        return kernel.work.tensor_flops

    assert tensor_flops(dtypes.float, "sm_87") == 0
    with Context(ALLOW_TF32=1):
        assert tensor_flops(dtypes.float, "sm_87") == 2 * 32**3
    assert tensor_flops(dtypes.half, "sm_87") == 2 * 32**3
    assert tensor_flops(dtypes.half, "sm_53") == tensor_flops(dtypes.half, "sm_72") == 0
    null = offline.OfflineRenderer(Target("NULL", "CUDA", "sm_87"))
    program = to_program(product(dtypes.float).calls[0].src[0], null)
    assert any(u.op is Ops.WMMA for u in program.src[1].src)


def test_results_are_kept_and_keyed_by_all_that_matters(
    stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    compiled = []
    monkeypatch.setattr(offline, "CCACHE", 1)
    monkeypatch.setattr(offline, "diskcache_get", lambda table, key: kept.get(key))
    monkeypatch.setattr(offline, "diskcache_put", lambda _, key, value: kept.update({key: value}))
    plain = offline._compile
    monkeypatch.setattr(offline, "_compile", lambda *args: compiled.append(args) or plain(*args))
    x = real(64)
    step = offline.capture(lambda: x * 5)
    first = offline.lower(step, "sm_87")
    assert offline.lower(step, "sm_87") == first and len(compiled) == 1
    offline.lower(step, "sm_53")
    assert len(compiled) == 2
    with Context(NOOPT=1):
        offline.lower(step, "sm_87")
    assert len(compiled) == 3


def test_models_of_a_script() -> None:
    def step(x: Tensor) -> Tensor:
        return x + 1

    assert offline.models_of({}) == {}
    models = offline.models_of({"tgx_models": lambda: {"a": (step, lambda n: (real(n),))}})
    assert len(offline.capture_model(*models["a"], 4).calls) == 1
    with pytest.raises(BadInput, match="a pair"):
        offline.models_of({"tgx_models": lambda: {"a": step}})


def test_a_training_step_is_that_of_its_second_call(stand_in: None) -> None:
    state: list[Tensor] = []
    weight = real(8)

    def step() -> list[Tensor]:
        if not state:
            state.append(Tensor.zeros(8).contiguous().realize())
        return [weight.assign(weight - state[0].assign(state[0] + 1))]

    first = offline.capture_model(step, lambda batch: (), 1)
    assert len(first.calls) == 2  # the two updates, and not the zeros of the first call
    assert weight.tolist() == [1] * 8


# ---- which compiler ----


class Fake(StandIn):
    def __init__(self, version: tuple[int, int], archs: tuple[int, ...]) -> None:
        self.version, self.archs = version, archs


def test_no_nvrtc_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "installed", lambda: ())
    with pytest.raises(MissingExtra, match=r"pip install 'tinygrad-tgx\[cuda\]'"):
        nvrtc.compiler_for("sm_87")


def test_a_dropped_architecture_names_the_wheel_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new = Fake((13, 5), toolchains.WHEELS[1].archs)
    monkeypatch.setattr(nvrtc, "installed", lambda: (new,))
    assert nvrtc.compiler_for("sm_87") is new
    for old in ("sm_53", "sm_62", "sm_72"):
        with pytest.raises(MissingExtra) as error:
            nvrtc.compiler_for(old)
        assert "NVRTC 13.5 compiles for sm_75 to sm_121" in str(error.value)
        assert "nvidia-cuda-nvrtc-cu12>=12.9,<13" in str(error.value)
    monkeypatch.setattr(nvrtc, "installed", lambda: (Fake((12, 9), toolchains.WHEELS[0].archs),))
    with pytest.raises(MissingExtra) as error:
        nvrtc.compiler_for("sm_110")
    assert "'nvidia-cuda-nvrtc>=13,<14'" in str(error.value)
    with pytest.raises(MissingExtra, match="no wheel on PyPI compiles it"):
        nvrtc.compiler_for("sm_20")
    with pytest.raises(BadInput, match="is not an architecture"):
        nvrtc.compiler_for("compute_87")


def test_a_library_that_is_none_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nvidia" / "cuda_nvrtc" / "lib"
    folder.mkdir(parents=True)
    (folder / "libnvrtc.so.12").write_bytes(b"not a library")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    nvrtc.installed.cache_clear()
    try:
        assert all(tmp_path not in found.path.parents for found in nvrtc.installed())
    finally:
        nvrtc.installed.cache_clear()


# ---- with the compilers, where they are installed ----

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.installed(), reason="no NVRTC: python -m pip install 'tinygrad-tgx[cuda]'"
)


@needs_nvrtc
def test_a_real_kernel_compiles_for_every_architecture_there_is() -> None:
    known = {arch for found in nvrtc.installed() for arch in found.archs}
    for arch in (53, 62, 72, 87, 90, 110):
        if arch in known:
            (kernel,) = lowered(lambda a, b: (a @ b).relu(), real(32, 64), real(64, 32),
                                arch=f"sm_{arch}")  # fmt: skip
            assert isinstance(kernel, GpuKernel)
            assert kernel.registers > 8 and kernel.code > 0 and kernel.stack == 0
            assert f".target sm_{arch}" in kernel.ptx


# ---- numbers: the very operations lowered for CUDA, interpreted ----

NUMERICS = """
import numpy as np
from tinygrad import Tensor, Device
rng = np.random.default_rng(0)
x, w, v = (rng.standard_normal(s).astype(np.float32) for s in ((2, 24), (24, 16), (16, 10)))
got = (Tensor(x) @ Tensor(w)).relu().matmul(Tensor(v)).log_softmax().numpy()
y = np.maximum(x @ w, 0) @ v
want = y - np.log(np.exp(y).sum(1, keepdims=True))
assert Device["PYTHON"].renderer.target.arch == "sm_87"
print(abs(got - want).max())
"""


def test_the_operations_lowered_for_cuda_compute_what_numpy_does() -> None:
    env = {**os.environ, "DEV": "PYTHON::sm_87", "PYTHONPATH": str(ROOT)}
    env.pop("DEVICE", None)
    done = subprocess.run([sys.executable, "-c", NUMERICS], env=env, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5
