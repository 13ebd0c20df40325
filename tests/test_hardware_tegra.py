"""tegrastats, nvpmodel and jetson_clocks as boards printed them, and as they never will."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgx.hardware import tegra
from tgx.hardware.tegra import parse_line

pytestmark = pytest.mark.pure

# Lines that users published; each stands under the name of its board.
LINES = dict(
    zip(*2 * [iter((Path(__file__).parent / "recorded/tegrastats.txt").read_text().splitlines())],
        strict=True)
)  # fmt: skip

# board: (load, clocks, memory's load and clock, total power, hottest sensor, cores that are on)
EXPECTED = {
    "# Jetson Nano, JetPack 4.6.1": (0, (76,), 0, 1600, 1750, ("PMIC", 50), 4),
    "# Jetson Nano, without root": (34, (), 0, None, 3129, ("PMIC", 100), 4),
    "# Jetson TX2": (0, (), 0, None, 1649, ("PMIC", 100), 6),
    "# Jetson AGX Xavier": (0, (), 0, None, 3793, ("PMIC", 100), 4),
    "# Jetson Xavier NX, JetPack 5.1.2": (0, (114,), 2, 204, 2763, ("PMIC", 50), 6),
    "# Jetson Orin Nano, JetPack 6, busy": (99, (612,), 61, 2133, 8535, ("gpu", 58.5), 6),
    "# Jetson AGX Orin 64GB, L4T R36.4": (0, (0, 0), 3, 2133, 8726, ("cpu", 52.562), 12),
    "# Jetson AGX Orin 64GB, sensors that are off": (0, (0, 0), 0, 2133, 6755, ("CPU", 44.562), 12),
    "# Jetson AGX Thor, L4T R39, idle": (None, (1574,) * 3, None, 4266, 28906, ("tj", 51.218), 2),
    "# Jetson AGX Thor, L4T R39, busy": (87, (1574,) * 3, 34, 4266, 124486, ("tj", 66.625), 3),
}


@pytest.mark.parametrize("board", LINES)
def test_a_line_from_a_board(board: str) -> None:
    sample = parse_line(LINES[board])
    load, clocks, emc_load, emc_mhz, power, hottest, cores = EXPECTED[board]
    assert sample.understood and sample.raw == LINES[board]
    assert (sample.gpu_load, sample.gpu_mhz) == (load, clocks)
    assert (sample.emc_load, sample.emc_mhz) == (emc_load, emc_mhz)
    assert sample.total_mw == power
    assert max(sample.temperatures, key=lambda sensor: sensor[1]) == hottest
    assert sum(core is not None for core in sample.cpu_load) == cores
    assert sample.ram_mb and sample.ram_total_mb and sample.ram_mb < sample.ram_total_mb
    assert all(degrees > -256 for _, degrees in sample.temperatures)


def test_a_load_that_is_not_said_is_unknown_and_not_zero() -> None:
    idle = parse_line(LINES["# Jetson AGX Thor, L4T R39, idle"])
    assert idle.gpu_load is None and idle.emc_load is None
    assert dict(idle.rails)["VIN"] == tegra.Rail(28906, 14453)
    assert "NC" not in dict(parse_line(list(LINES.values())[7]).rails)


def test_a_rail_may_be_told_in_watts() -> None:
    found = parse_line("RAM 1/2MB VDD_IN 5.2W/4.1W VDD_SOC 900mW/800mW")
    assert dict(found.rails) == {
        "VDD_IN": tegra.Rail(5200, pytest.approx(4100)), "VDD_SOC": tegra.Rail(900, 800),
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["", "tegrastats: command not found", "GPU busy 40 percent, 612 MHz", "GR3D: 40%", "\x00\xff",
     "RAM", "GR3D_FREQ", "Unknown command"],
)  # fmt: skip
def test_a_new_format_keeps_its_raw_line(line: str) -> None:
    sample = parse_line(line)
    assert sample.raw == line
    assert sample.gpu_load is None and sample.total_mw is None and sample.gpu_mhz == ()


def test_what_is_known_of_a_half_known_line_is_kept() -> None:
    sample = parse_line("GR3D_FREQ 20%@N/A VDD_IN 1.5W/2W NEW_THING 3 gpu@42C")
    assert (sample.gpu_load, sample.gpu_mhz) == (20, ())
    assert sample.rail("VDD_IN") == tegra.Rail(1500, 2000)
    assert parse_line("GR3D_FREQ 120%@[300,off,600]").gpu_load is None
    assert parse_line("GR3D_FREQ 120%@[300,off,600]").gpu_mhz == (300, 600)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    sample = parse_line("RAM 1/2MB " + text)
    assert sample.raw.startswith("RAM 1/2MB ")
    tegra.parse_log(text)
    tegra.parse_nvpmodel_query(text)
    tegra.parse_nvpmodel_conf(text)
    tegra.parse_jetson_clocks(text)
    tegra.parse_release(text)


def test_a_log_is_summed_up() -> None:
    log = "\n".join([LINES["# Jetson Orin Nano, JetPack 6, busy"]] * 3 + ["", "something new"])
    sum_ = tegra.summarise(tegra.parse_log(log))
    assert sum_.samples == 4 and sum_.not_understood == ("something new",)
    assert (sum_.gpu_load, sum_.gpu_mhz_low, sum_.gpu_mhz_high) == (99, 612, 612)
    assert sum_.power_mw == 8535 and sum_.hottest == ("gpu", 58.5)
    assert tegra.energy_mj(sum_, seconds=2, count=1000) == pytest.approx(17.07)
    nano = tegra.summarise([parse_line(LINES["# Jetson Nano, without root"])])
    assert nano.hottest == ("AO", 46)  # and not the PMIC, which says 100 degrees for ever
    nothing = tegra.summarise(())
    assert nothing.power_mw is None and tegra.energy_mj(nothing, 1, 1) is None


# ---- nvpmodel and jetson_clocks ----

CONF = """
< PARAM TYPE=FILE NAME=EMC >
MAX_FREQ /sys/kernel/nvpmodel_emc_cap/emc_iso_cap

< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/gpu.0/devfreq/17000000.ga10b/max_freq

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
TPC_POWER_GATING TPC_PG_MASK 240
CPU_A78_0 MAX_FREQ 1510400
GPU MIN_FREQ 0
GPU MAX_FREQ 612000000
EMC MAX_FREQ 2133000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 0
GPU MAX_FREQ -1
EMC MAX_FREQ 0
< PM_CONFIG DEFAULT=0 >
"""


def test_modes_of_a_configuration() -> None:
    fifteen, most = tegra.parse_nvpmodel_conf(CONF)
    assert fifteen == tegra.ConfMode(0, "15W", 612, 2133, 2, 240)
    assert most == tegra.ConfMode(2, "MAXN_SUPER", None, None, 1, None)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", ("MAXN", 0)),
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n2\n", ("MAXN_SUPER", 2)),
        ("NVPM VERB: parsing done\nNVPM VERB: Current mode: NV Power Mode: 25W\n1\n", ("25W", 1)),
        ("NV Power Mode: MODE_15W_6CORE\n", ("MODE_15W_6CORE", None)),
        ("nvpmodel: command not found", None),
        ("", None),
    ],
)
def test_the_mode_in_use(text: str, mode: tuple[str, int | None] | None) -> None:
    assert tegra.parse_nvpmodel_query(text) == mode


SHOWN = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit
Online CPUs: 0-5
cpu0:  Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=960000 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=665600000
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=60
NV Power Mode: 25W
"""


def test_clocks_that_float_and_clocks_that_are_held() -> None:
    clocks = tegra.parse_jetson_clocks(SHOWN)
    assert clocks == tegra.Clocks(306, 918, 306, 3199, 665.6, 4, "25W")
    assert clocks.locked is False
    held = tegra.parse_jetson_clocks(SHOWN.replace("MinFreq=306000000", "MinFreq=918000000"))
    assert held.locked is True
    assert tegra.parse_jetson_clocks("Error: run as root").locked is None


def test_the_306_mhz_trap() -> None:
    asleep = [parse_line("GR3D_FREQ 99%@[306] VDD_IN 5000mW/5000mW")] * 5
    said = tegra.low_clock(asleep, 1020)
    assert "306 MHz" in said and "sudo jetson_clocks" in said
    assert tegra.low_clock(asleep, 306) == ""  # the mode's own limit
    awake = [*asleep, parse_line("GR3D_FREQ 99%@[1020]")]
    assert tegra.low_clock(awake, 1020) == ""
    idle = [parse_line("GR3D_FREQ 0%@[306]")]  # nobody asked for more
    assert tegra.low_clock(idle, 1020) == ""
    assert tegra.low_clock([parse_line("GR3D_FREQ 99%")], 1020) == ""  # no clock was said
    thor = [parse_line("GR3D_FREQ @[314,314,314]")]  # load unknown is not idle
    assert "314 MHz" in tegra.low_clock(thor, 1575)


# ---- the release, and the doctor's checks ----


@pytest.mark.parametrize(
    ("text", "release", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.6, GCID: 38171779, BOARD: t210ref", (32, "7.6"), 4),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", (35, "4.1"), 5),
        ("# R36 (release), REVISION: 4.3, GCID: 12345, BOARD: generic", (36, "4.3"), 6),
        ("# R38 (release), REVISION: 2.0", (38, "2.0"), 7),
    ],
)
def test_the_release_names_the_jetpack(text: str, release: tuple[int, str], jetpack: int) -> None:
    assert tegra.parse_release(text) == release
    found = tegra.jetpack_of(release[0])
    assert found is not None and found.major == jetpack


def test_every_jetpack_says_what_to_do_about_its_python() -> None:
    for jetpack in tegra.JETPACKS:
        old = tuple(map(int, jetpack.python.split("."))) < (3, 11)
        assert old == any("uv venv" in note for note in jetpack.notes)


def test_a_nano_is_told_why_and_what_instead() -> None:
    rows = {c.what: c for c in tegra.checks("# R32 (release), REVISION: 7.6", (3, 6), True, False)}
    assert not rows["JetPack"].ok and "DEVICE=TGX" in rows["JetPack"].fix
    assert not rows["Python"].ok and "3.11" in rows["Python"].fix
    assert not rows["NVRTC"].ok and "NVRTC_PATH" in rows["NVRTC"].fix


def test_a_board_that_is_well() -> None:
    clocks = tegra.parse_jetson_clocks(SHOWN)
    rows = {c.what: c for c in tegra.checks("# R36 (release), REVISION: 4.3", (3, 11), True, True,
                                            clocks)}  # fmt: skip
    assert rows["JetPack"].ok and rows["Python"].ok and rows["NVRTC"].ok
    assert not rows["GPU clock held"].ok and "sudo jetson_clocks" in rows["GPU clock held"].fix


def test_other_machines_have_no_checks_and_new_releases_say_so() -> None:
    assert tegra.checks("", (3, 12), False, False) == ()
    (first, *_) = tegra.checks("# R99 (release), REVISION: 1", (3, 12), True, True)
    assert not first.ok and "R99" in first.detail
