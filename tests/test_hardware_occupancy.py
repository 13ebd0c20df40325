"""Occupancy equals NVIDIA's calculator on recorded cases; grids are judged as a whole."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tgx.errors import BadInput
from tgx.hardware.occupancy import LIMITS, Fit, limits_of, occupancy

pytestmark = pytest.mark.pure

RECORDED = Path(__file__).parent / "recorded" / "occupancy.csv"


def test_equals_nvidias_calculator_on_what_was_recorded() -> None:
    """The file was written by `python tests/check_occupancy.py 400 --seed 1 --record ...`, which
    asks NVIDIA's header; with more questions it is the check of the real thing."""
    with RECORDED.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {int(row["arch"]) for row in rows} == set(LIMITS)
    for row in rows:
        threads, registers, shared, barriers = (
            int(row[name]) for name in ("threads", "registers", "shared", "barriers")
        )
        ours = occupancy(LIMITS[int(row["arch"])], threads, registers, shared, barriers)
        assert ours.blocks == int(row["blocks"]), row
        assert set(ours.limited_by) == set(row["limits"].split("+")), row


def test_what_a_known_kernel_gets() -> None:
    # 256 threads are 8 warps; 40 registers of 32 threads are 1280 a warp, which is five steps:
    # 12 warps fit in each quarter of an sm_87, 48 in all, and 48 are also all the warps there are.
    full = occupancy(limits_of("sm_87"), threads=256, registers=40, shared=0)
    assert (full.blocks, full.limited_by, full.warps) == (6, ("warps", "registers"), 48)
    assert full.fraction == 1.0
    # one register more is one step more, and two warps fewer in each quarter
    less = occupancy(limits_of("sm_87"), threads=256, registers=41, shared=0)
    assert (less.blocks, less.limited_by, less.fraction) == (5, ("registers",), 40 / 48)
    # the driver's KiB counts: 163 blocks of nothing would fit the memory, 16 are allowed
    assert occupancy(limits_of("sm_87"), 32, 16, 0).limited_by == ("blocks",)
    assert occupancy(limits_of("sm_87"), 32, 16, 40_000).blocks == 164 * 1024 // (40_064 + 1024)


def test_what_cannot_be_launched() -> None:
    nano = limits_of("sm_53")
    assert occupancy(nano, 1025, 16, 0).blocks == 0
    assert occupancy(nano, 1024, 40, 0).blocks == 0  # 40,960 registers; a Nano's block has 32,768
    assert occupancy(limits_of("sm_62"), 1024, 40, 0).blocks == 1
    assert occupancy(nano, 32, 16, 49_153).blocks == 0


def test_a_small_grid_is_not_hidden_by_a_high_occupancy() -> None:
    fit = Fit(occupancy(limits_of("sm_87"), 128, 40, 0), grid=2, sms=8)
    assert fit.occupancy.fraction == 1.0
    assert (fit.busy_sms, fit.idle_sms, fit.resident_warps) == (2, 6, 4)
    assert fit.waves == pytest.approx(2 / 96)
    assert fit.imbalance == 4.0
    assert Fit(fit.occupancy, grid=16, sms=8).imbalance == 1.0
    assert Fit(fit.occupancy, grid=9, sms=8).imbalance == pytest.approx(16 / 9)


@pytest.mark.parametrize("arch", ["sm_20", "87", "sm_", "", "gfx1100"])
def test_unknown_architectures_name_the_known(arch: str) -> None:
    with pytest.raises(BadInput) as error:
        limits_of(arch)
    assert "sm_87" in str(error.value)


def test_nonsense_is_refused() -> None:
    for threads, registers, shared in ((0, 8, 0), (-32, 8, 0), (32, -1, 0), (32, 8, -4)):
        with pytest.raises(BadInput):
            occupancy(limits_of("sm_87"), threads, registers, shared)
