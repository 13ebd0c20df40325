"""Device profiles: the shipped ones hold together, look-up is helpful, bad files are refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tgx.errors import BadInput
from tgx.hardware import occupancy, profiles
from tgx.hardware.profiles import CONFIDENCES, SHIPPED, Fact, find, load, machine, parse, to_toml

pytestmark = pytest.mark.pure

BOARDS = sorted(path.stem for path in SHIPPED.glob("*.toml"))
JETSONS = {
    "jetson-nano", "jetson-tx2", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano-4gb",
    "jetson-orin-nano-8gb", "jetson-orin-nano-super", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb",
    "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-t4000", "jetson-t5000",
}  # fmt: skip

MINE = """
schema = 1
name = "my board"
kind = "gpu"
[sources]
me = "I measured it"
[facts]
soc = { value = "X1", source = "me", confidence = "low" }
arch = { value = "sm_87", source = "me", confidence = "measured" }
sms = { value = 4, source = "me", confidence = "measured" }
cuda_cores = { value = 512, source = "me", confidence = "measured" }
tensor_cores = { value = "unknown" }
gpu_mhz = { value = 1000, unit = "MHz", source = "me", confidence = "measured" }
cpu = { value = "unknown" }
cpu_cores = { value = "unknown" }
memory = { value = [4, 8], unit = "GB", source = "me", confidence = "high" }
memory_type = { value = "unknown" }
bus = { value = "unknown", unit = "bit" }
bandwidth = { value = 50, unit = "GB/s", source = "me", confidence = "measured" }
l2 = { value = "unknown", unit = "KiB" }
shared_sm = { value = "unknown", unit = "KiB" }
threads_sm = { value = "unknown" }
blocks_sm = { value = "unknown" }
registers_sm = { value = "unknown" }
registers_block = { value = "unknown" }
half_rate = { value = "unknown" }
int8 = { value = "unknown" }
cuda = { value = "unknown" }
[[modes]]
name = "slow"
sms = { value = 2, source = "me", confidence = "measured" }
gpu_mhz = { value = 500, unit = "MHz", source = "me", confidence = "measured" }
emc_mhz = { value = "unknown", unit = "MHz" }
"""


def test_every_board_of_the_project_is_there() -> None:
    assert JETSONS | {"rtx-4090", "h200"} <= set(BOARDS)


@pytest.mark.parametrize("board", BOARDS)
def test_a_shipped_profile_is_whole(board: str) -> None:
    profile = profiles.read(SHIPPED / f"{board}.toml")
    for fact in (*profile.facts.values(), *(f for m in profile.modes for f in m.facts.values())):
        if fact.value is not None:
            assert fact.source in profile.sources and fact.confidence in CONFIDENCES
    assert parse(to_toml(profile), board) == profile
    if profile.kind == "cpu":
        return
    # the per-SM limits of the file are those the occupancy arithmetic uses
    limits = occupancy.limits_of(profile.text("arch"))
    assert profile.value("threads_sm") == limits.threads
    assert profile.value("blocks_sm") == limits.blocks
    assert profile.value("registers_sm") == limits.registers
    assert profile.value("registers_block") == limits.registers_block
    assert profile.value("shared_sm") == limits.shared // 1024
    # 64 lanes an SM on Xavier, 128 on all others
    lanes = 64 if profile.value("arch") == "sm_72" else 128
    assert profile.value("cuda_cores") == lanes * profile.value("sms")
    if profile.kind == "jetson":  # two transfers a clock on every wire of the bus
        emc, bus = profile.number_of("emc_mhz"), profile.number_of("bus")
        assert profile.value("bandwidth") == pytest.approx(2 * emc * bus / 8 / 1000, rel=0.01)
    for mode in profile.modes:
        for fact in ("sms", "gpu_mhz", "emc_mhz"):
            if mode.number_of(fact) is not None:
                assert mode.number_of(fact) <= profile.number_of(fact)


def test_modes_gate_sms_and_clocks() -> None:
    orin = find("jetson-agx-orin-64gb")
    assert machine(orin, "MAXN").sms == 16
    thirty = machine(orin, "mode_30w")  # the case of a mode's name does not matter
    assert (thirty.sms, thirty.gpu_mhz) == (8, 612)
    assert any("memory clock" in line for line in thirty.assumed)
    # the same number is another mode on another board: names only
    assert find("jetson-orin-nano-super").mode("15W").number == 0
    assert find("jetson-orin-nx-16gb").mode("MAXN_SUPER").number == 0
    nx = find("jetson-xavier-nx")
    assert machine(nx, "MODE_15W_2CORE").bandwidth == pytest.approx(51.2, abs=0.1)


def test_unknown_stays_unknown() -> None:
    board = find("jetson-orin-nano-4gb")
    assert board.value("l2") is None and board.text("l2") == "unknown"
    with pytest.raises(BadInput, match="does not know the GPU clock"):
        machine(find("jetson-t4000"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("jetson-nano", "jetson-nano"),
        ("h2", "h200"),
        ("NANO", "jetson-nano"),
        ("xavier", "jetson-xavier-nx"),
        ("orin-nano-s", "jetson-orin-nano-super"),
    ],
)
def test_a_prefix_is_enough_where_it_fits_one(asked: str, found: str) -> None:
    assert find(asked).id == found


def test_a_prefix_that_fits_several_lists_them() -> None:
    with pytest.raises(BadInput) as error:
        find("orin-nano")
    for board in ("jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nano-super"):
        assert board in str(error.value)
    assert "jetson-orin-nx" not in str(error.value)


@pytest.mark.parametrize("asked", ["", "raspberry", "jetson-ornin"])
def test_an_unknown_board_lists_those_known(asked: str) -> None:
    with pytest.raises(BadInput) as error:
        find(asked)
    assert all(board in str(error.value) for board in JETSONS)


def test_an_unknown_mode_lists_those_known() -> None:
    with pytest.raises(BadInput) as error:
        find("jetson-orin-nano-super").mode("30W")
    assert "MAXN_SUPER, 25W, 15W, 7W" in str(error.value)


def test_a_users_profile_wins_and_can_be_found(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "jetson-nano.toml").write_text(MINE.replace("my board", "my nano"))
    folders = (SHIPPED, tmp_path)
    assert find("mine", folders).name == "my board"
    assert find("jetson-nano", folders).name == "my nano"
    assert find(str(tmp_path / "mine.toml")).id == "mine"
    assert load([tmp_path]).keys() == {"mine", "jetson-nano"}
    slow = machine(find("mine", folders), "slow")
    assert (slow.sms, slow.gpu_mhz, slow.bandwidth, slow.l2) == (2, 500, 50, None)
    assert len(slow.assumed) == 3  # memory clock, L2, half rate


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ('unit = "MB/s"', 'unit = "GB/s"', "bandwidth: unit is 'MB/s'; expected unit = 'GB/s'"),
        ("value = 4, ", 'value = "four", ', "facts.sms is 'four'; expected a whole number"),
        ("value = 4, ", "value = -4, ", "facts.sms is -4"),
        ("value = 4, ", "value = true, ", "facts.sms is True"),
        ("l2 = ", "#l2 = ", 'facts.l2 is missing (second-level cache, shared by all SMs); '
         'where nobody knows, write l2 = { value = "unknown", unit = "KiB" }'),
        ("sms = { value = 2", "smss = { value = 2", "did you mean sms?"),
        ('kind = "gpu"', 'kind = "tpu"', "kind is 'tpu'; expected one of jetson, gpu, cpu"),
        ("schema = 1", "schema = 9", "schema is 9"),
        ('"sm_87"', '"compute_87"', "is not an architecture"),
        ('source = "me", confidence = "low"', 'confidence = "low"', "source is ''"),
        ('confidence = "low"', 'confidence = "sure"', "confidence is 'sure'"),
        ('name = "slow"', "", "modes[0]: name is None"),
        ("[facts]", "[facts]\nhome = { value = 1 }", "facts.home is not a known fact"),
        ("kind = ", "kind ", "is not TOML"),
        ("gpu_mhz = { value = 1000,", "gpu_mhz = { value = nan,", "facts.gpu_mhz is nan"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(wrong: str, right: str, said: str) -> None:
    text = MINE.replace(right, wrong) if right in MINE and "unit" in wrong else MINE.replace(
        wrong, right
    )
    assert text != MINE
    with pytest.raises(BadInput) as error:
        parse(text, "mine", "somewhere/mine.toml")
    assert said in str(error.value) and "somewhere/mine.toml" in str(error.value)


def test_all_problems_are_listed_at_once() -> None:
    text = MINE.replace('unit = "GB/s"', 'unit = "MB/s"').replace("schema = 1", "schema = 2")
    with pytest.raises(BadInput) as error:
        parse(text, "mine")
    assert "schema" in str(error.value) and "MB/s" in str(error.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(BadInput, match="cannot read"):
            profiles.read(path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot read"):
        profiles.read(tmp_path / "bytes.toml")


def test_writing_keeps_quotes_and_lists() -> None:
    profile = parse(MINE, "mine")
    odd = replace(profile, name='a "b" \\ c', notes=("line\nbreak",))
    odd = replace(odd, facts={**odd.facts, "cpu": Fact('x"y', source="me", confidence="low")})
    assert parse(to_toml(odd), "mine") == odd
    assert tomllib.loads(to_toml(odd))["facts"]["memory"]["value"] == [4, 8]
