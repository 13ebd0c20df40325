"""The lower bound is one, the model says how sure it is, and the two are never mixed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgx.errors import BadInput
from tgx.hardware import roofline
from tgx.hardware.kernel import Chain, Copy, GpuKernel, Work
from tgx.hardware.profiles import find, load, machine
from tgx.hardware.roofline import CONSTANTS, lower_bound, model

pytestmark = pytest.mark.pure

MACHINES = tuple(
    machine(profile) for profile in load().values()
    if profile.kind != "cpu" and profile.number_of("gpu_mhz")
)  # fmt: skip
ORIN = machine(find("jetson-orin-nano-super"), "15W")  # 8 SMs of 128 lanes at 612 MHz

FC = GpuKernel(  # a 32 x 784 by 784 x 256 product, as tinygrad makes it: four blocks
    "fc", "sm_87", (4, 1, 1), (8, 16, 1),
    Work(flops=12_877_824, instructions=17_000_960, bytes=861_696, traffic=8_069_120),
    Chain(alu=983, memory=197), registers=56,
)  # fmt: skip


def test_the_bound_by_hand() -> None:
    bound = lower_bound(FC, ORIN)
    roofs = dict(bound.roofs)
    # two operations a lane and cycle: 8 x 128 x 2 x 612e6 = 1.253e12 a second
    assert roofs["fma"] == pytest.approx(12_877_824 / 1.253376e12 * 1e6)
    # 64 bytes an SM and cycle: 8 x 64 x 612e6 = 313 GB/s
    assert roofs["l2"] == pytest.approx(861_696 / 313.344e9 * 1e6)
    assert roofs["dram"] == 0  # it fits the 2 MiB of L2, so no byte need come from further away
    assert (bound.bound, bound.us) == ("fma", roofs["fma"])
    big = replace(FC, work=replace(FC.work, bytes=12 * 2**20))
    assert dict(lower_bound(big, ORIN).roofs)["dram"] == pytest.approx(
        10 * 2**20 / (102.4e9 * 2133 / 3199) * 1e6
    )


def test_half_and_tensor_cores_raise_the_roof() -> None:
    half = lower_bound(replace(FC, half=True), ORIN)
    assert dict(half.roofs)["fma"] == pytest.approx(lower_bound(FC, ORIN).us / 2)
    tensor = replace(FC, work=replace(FC.work, tensor_flops=FC.work.flops), half=True)
    roofs = dict(lower_bound(tensor, ORIN).roofs)
    assert roofs["fma"] == 0 and 0 < roofs["tensor"] < dict(half.roofs)["fma"]
    # 1024 multiply-adds an SM and cycle in 16 bits, and twice as many in 8, which is the bound
    assert roofs["tensor"] == pytest.approx(FC.work.flops / (2 * 2048 * 8 * 612e6) * 1e6)


def test_a_copy_moves_its_bytes_twice() -> None:
    bound = lower_bound(Copy("copy", 10**6), ORIN)
    assert bound.us == pytest.approx(2 * 1e6 / ORIN.bandwidth / 1e3)
    guess = model(Copy("copy", 10**6), ORIN)
    assert bound.us < guess.low < guess.us < guess.high


def test_the_model_knows_what_occupancy_hides() -> None:
    """Four blocks on eight SMs: half the machine is idle, at 75 % occupancy."""
    spread = replace(FC, grid=(8, 1, 1))
    fit = roofline.fit(FC, ORIN)
    assert (fit.occupancy.fraction, fit.idle_sms) == (0.75, 4)
    assert dict(model(FC, ORIN).parts)["instructions"] == pytest.approx(
        2 * dict(model(spread, ORIN).parts)["instructions"]
    )


def test_a_long_chain_is_latency() -> None:
    alone = replace(FC, grid=(1, 1, 1), block=(1, 1, 1), work=Work(10, 0, 20, 64, 64),
                    chain=Chain(memory=4000))  # fmt: skip
    guess = model(alone, ORIN)
    assert guess.bound == "latency"
    # 1000 rounds of four loads together, from L2: 230 cycles at 612 MHz
    assert dict(guess.parts)["latency"] == pytest.approx(1000 * 230 / 612)


def test_bytes_beyond_the_cache_come_from_dram() -> None:
    small, large = model(FC, ORIN), model(FC, ORIN, working_set=64 * 2**20)
    assert dict(small.parts)["dram"] == 0
    assert dict(large.parts)["dram"] > 0 and large.high > small.high


def test_measured_figures_take_the_place_of_constants() -> None:
    board = replace(ORIN, launch_us=2.0)
    assert dict(model(FC, board).parts)["launch"] == 2.0
    assert model(FC, board).us < model(FC, ORIN).us
    assert not model(FC, ORIN).fitted


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_constant_has_a_source_and_matters(name: str, monkeypatch) -> None:
    constant = CONSTANTS[name]
    assert constant.source and min(constant.low, constant.high) <= constant.value
    assert constant.value <= max(constant.low, constant.high)
    desktop = machine(find("h200"))
    dram = Work(8, 0, 8, 10**8)
    works = (dram, Work(8, 0, 8, 10**6), Work(10**9, 10**9, 10))
    chains = (Chain(alu=9**6), Chain(memory=9**6), Chain(shared=9**6), Chain(tensor=9**6),
              Chain(barriers=9**6))  # fmt: skip
    kernels = [
        (FC, ORIN, True),
        (replace(FC, arch="sm_90"), desktop, False),
        (Copy("c", 10**7), ORIN, True),
        *((replace(FC, work=work, chain=Chain()), ORIN, True) for work in works),
        *((replace(FC, chain=chain), ORIN, True) for chain in chains),
        (replace(FC, work=dram, chain=Chain(memory=9**6)), ORIN, True),
    ]
    before = [model(k, m, jetson=j).us for k, m, j in kernels]
    monkeypatch.setitem(CONSTANTS, name, replace(constant, value=constant.value * 1.5))
    assert [model(k, m, jetson=j).us for k, m, j in kernels] != before


def test_a_kernel_of_another_architecture_is_refused() -> None:
    for function in (lower_bound, model):
        with pytest.raises(BadInput, match="compiled for sm_87, h200 is sm_90"):
            function(FC, machine(find("h200")))


def test_a_kernel_that_cannot_be_launched_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be launched on jetson-nano"):
        wide = replace(FC, arch="sm_53", block=(1024, 1, 1), registers=64)
        model(wide, machine(find("jetson-nano")))
    with pytest.raises(BadInput, match="sizes of at least 1"):
        replace(FC, grid=(0, 1, 1))


@given(
    st.sampled_from(MACHINES),
    st.integers(1, 4000),
    st.sampled_from((1, 32, 33, 128, 256)),
    st.integers(0, 10**10),
    st.integers(0, 10**9),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 10**4),
    st.integers(0, 10**9),
)
@settings(max_examples=150, deadline=None)
def test_no_model_is_below_the_bound(
    board, blocks, threads, flops, size, tensor, half, loads, working_set
) -> None:
    work = Work(flops, int(flops * tensor) if board.tensor_cores else 0, 2 * flops, size, 4 * size)
    kernel = GpuKernel("k", board.arch, (blocks, 1, 1), (threads, 1, 1), work,
                       Chain(alu=loads, memory=loads), half, registers=40)  # fmt: skip
    bound = lower_bound(kernel, board)
    for jetson in (True, False):
        guess = model(kernel, board, working_set, jetson)
        assert bound.us <= guess.low * 1.000001 <= guess.us * 1.00001 <= guess.high * 1.0001
    assert {name for name, _ in bound.roofs} <= {"dram", "l2", "fma", "tensor"}
