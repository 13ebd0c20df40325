"""The report of `tgx profile`: rows, totals, JSON; and the arithmetic of `tgx devices measure`."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from xml.etree import ElementTree

import pytest

from tgx.errors import BadInput
from tgx.hardware import measure, picture, profiles, report
from tgx.hardware.kernel import Chain, Copy, GpuKernel, Work
from tgx.hardware.measure import Timing
from tgx.hardware.report import Report

pytestmark = pytest.mark.pure

BOARD = profiles.find("jetson-orin-nano-super")
MACHINE = profiles.machine(BOARD, "15W")
KERNELS = [
    Copy("copy", 100_000),
    GpuKernel("layer1 + relu", "sm_87", (16, 1, 1), (8, 4, 1), Work(423_936, 0, 700_000, 808_000),
              Chain(alu=400, memory=98), registers=128, shared=512, lines=("m.py:45", "m.py:46")),
    GpuKernel("layer2", "sm_87", (4, 1, 1), (128, 1, 1), Work(10**6, 0, 10**6, 10**5), Chain(),
              registers=40),
]  # fmt: skip


REPORT = Report(BOARD, MACHINE, "NVRTC 12.9", (
    report.step("mlp", 32, KERNELS, MACHINE), report.step("jitted step", None, KERNELS, MACHINE),
))  # fmt: skip


@pytest.fixture
def predicted() -> Report:
    return REPORT


def test_json_has_the_fields_that_were_promised(predicted: Report) -> None:
    data = json.loads(json.dumps(report.to_json(predicted), allow_nan=False))
    assert (data["device"], data["mode"], data["sms"]) == ("jetson-orin-nano-super", "15W", 8)
    assert data["fitted"] is False and data["constants"]["dram_ns"]["source"]
    kernels = data["steps"][0]["kernels"]
    promised = "name lines grid block regs smem occupancy waves bound lower_us model_us measured_us"
    for kernel in kernels:
        assert set(promised.split()) <= set(kernel)
        assert kernel["lower_us"] <= kernel["model_low_us"] <= kernel["model_us"]
        assert kernel["model_us"] <= kernel["model_high_us"]
        assert kernel["measured_us"] is None  # nothing claims a time that nobody took
    total = data["steps"][0]["total"]
    assert total["launches"] == 3 and total["measured_us"] is None
    assert total["budget_mj"] == pytest.approx(15 * total["model_us"] / 1e3)  # 15 W
    unknown = replace(predicted, machine=replace(MACHINE, watts=None))
    assert report.to_json(unknown)["steps"][0]["total"]["budget_mj"] is None
    assert total["model_us"] == pytest.approx(sum(k["model_us"] for k in kernels))


def test_a_row_says_how_the_grid_sits(predicted: Report) -> None:
    row = predicted.steps[0].rows[1]
    assert (row.grid, row.block, row.regs, row.smem) == ((16, 1, 1), (8, 4, 1), 128, 512)
    assert row.occupancy == pytest.approx(16 / 48) and row.idle_sms == 0
    assert row.waves == pytest.approx(16 / (8 * 16))
    assert predicted.steps[0].rows[2].idle_sms == 4


def test_the_table_as_text(predicted: Report) -> None:
    rows = report.table(predicted.steps[0])
    assert all(len(row) == len(report.HEADS) for row in rows)
    shown = dict(zip(report.HEADS, rows[1], strict=False))
    assert shown["kernel"] == "layer1 + relu" and shown["line"] == "m.py:45 +1"
    assert shown["grid x block"] == "16 x 8,4" and shown["ops"] == "424k"
    assert shown["measured"] == ""
    assert rows[0][0] == "copy" and rows[0][2] == ""
    assert rows[-1][0] == "3 launches"
    text = "\n".join(report.heading(predicted))
    assert "no launch can be faster" in text and "no measurement was fitted" in text


def test_a_narrow_terminal_goes_without_columns_and_not_without_digits(predicted: Report) -> None:
    rows = report.table(predicted.steps[0])

    def wide(heads: tuple[str, ...], body: list[tuple[str, ...]]) -> int:
        return sum(max(map(len, column)) + 2 for column in zip(heads, *body, strict=True)) - 2

    everything = report.narrowed(rows, 1000)
    assert everything[:2] == report.filled(report.HEADS, rows) and everything[2] == ()
    assert "measured" not in everything[0]  # nothing was: no column for it
    for width in (140, 120, 100, 80):
        heads, body, spared = report.narrowed(rows, width)
        assert wide(heads, body) <= width and set(heads) | set(spared) == set(everything[0])
        assert heads[0] == "kernel" and {"bound us", "model us", "between"} <= set(heads)
        at = [everything[0].index(head) for head in heads]
        assert body == [tuple(row[i] for i in at) for row in everything[1]]
    measured_ = replace(predicted.steps[0].rows[1], measured_us=3.0)
    step = replace(predicted.steps[0], rows=(measured_,))
    assert "measured" in report.narrowed(report.table(step), 1000)[0]


def test_the_totals_of_all_steps_stand_together(predicted: Report) -> None:
    heads, rows = report.filled(report.SUMMARY, report.summary(predicted))
    assert heads == ("step", "launches", "bound us", "model us", "between", "mJ at most")
    assert [row[:2] for row in rows] == [("mlp, batch 32", "3"), ("jitted step", "3")]
    assert rows[0][3] == report.table(predicted.steps[0])[-1][12]
    assert f"<td>{rows[0][3]}</td>" in picture.html(predicted)


def test_what_is_assumed_stands_above_the_table() -> None:
    orin = profiles.find("jetson-agx-orin-64gb")
    machine = profiles.machine(orin, "MODE_50W")
    text = "\n".join(report.heading(Report(orin, machine, "NVRTC 12.9", ())))
    assert text.count("assumed:") == 3 and "the GPU clock in mode MODE_50W is unknown" in text


def test_a_measured_total_needs_every_row(predicted: Report) -> None:
    step = predicted.steps[0]
    some = replace(step, rows=(replace(step.rows[0], measured_us=3.0), *step.rows[1:]))
    assert some.measured_us is None
    every = replace(step, rows=tuple(replace(row, measured_us=3.0) for row in step.rows))
    assert every.measured_us == 9.0 and report.table(every)[-1][-1] == "9.0"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.0k"), (12_877_824, "12.9M"), (99_960, "100k"),
     (999_600, "1.0M"), (3e15, "3000T")],
)  # fmt: skip
def test_numbers_are_shortened(number: float, text: str) -> None:
    assert report.scaled(number) == text


# ---- the picture ----


def test_the_roofs_are_the_boards() -> None:
    dram, l2, flat = picture.roofs(MACHINE)
    assert dram.gbs == MACHINE.bandwidth and flat.gflops == pytest.approx(2 * 128 * 8 * 0.612)
    assert l2.gbs == pytest.approx(64 * 8 * 0.612)
    assert dram.at(2.0) == 2 * dram.gbs and flat.at(1e9) == flat.gflops


def test_no_point_is_above_the_l2_and_the_arithmetic(predicted: Report) -> None:
    for point in picture.points(predicted.steps[0].rows):
        assert point.low <= point.gflops <= point.high
        assert point.high <= picture._best(picture.roofs(MACHINE), point.intensity)


def test_the_picture_on_the_terminal(predicted: Report) -> None:
    lines = picture.text(MACHINE, predicted.steps[0]).splitlines()
    assert lines[0].startswith("10^4 GFLOP/s |") and "operations a byte" in lines[15]
    assert lines[-2:] == ["  a: layer1 + relu", "  b: layer2"]
    body = "".join(line.partition("|")[2] for line in lines[:14])
    assert body.count("a") == body.count("b") == 1 and "/" in body and "-" in body
    nothing = report.step("copies", 1, [Copy("copy", 10)], MACHINE)
    assert "/" in picture.text(MACHINE, nothing)


def test_the_page_is_whole_and_escaped(predicted: Report) -> None:
    kernel = replace(KERNELS[1], name="<b>&\"layer\"")
    odd = replace(predicted, steps=(report.step("a<b", 1, [kernel, *KERNELS], MACHINE),))
    page = picture.html(odd)
    assert "<b>" not in page and "&lt;b&gt;" in page and "://" not in page
    assert page == picture.html(odd)
    (drawing,) = re.findall(r"<svg.*?</svg>", page, re.S)
    circles = ElementTree.fromstring(drawing).findall("circle")
    assert len(circles) == 3 and circles[0].find("title") is not None
    assert page.count("<tr>") == 2 + 1 + 4 + 1  # of all steps; heads, launches, total


# ---- measuring ----


def test_the_quickest_run_counts_and_the_median_tells_how_quiet_it_was() -> None:
    timing = Timing((3e-3, 1e-3, 1.2e-3), 1000)
    assert timing.each == pytest.approx(1e-6) and timing.spread == pytest.approx(1.2)
    facts = measure.facts({"launch": timing, "copy": Timing((0.1,), 512e6)})
    assert (facts["launch"].value, facts["launch"].unit) == (1.0, "us")
    assert (facts["copy"].value, facts["copy"].unit) == (5.12, "GB/s")
    assert facts["copy"].confidence == "measured" and "1.00 times" in facts["copy"].note
    assert measure.busy({"launch": timing, "copy": Timing((1, 1.4, 2), 1)}) == ["copy"]
    for seconds, amount in (((), 1), ((0.0,), 1), ((1.0,), 0)):
        with pytest.raises(BadInput):
            Timing(seconds, amount)


def test_every_measured_fact_is_one_a_profile_can_hold() -> None:
    for name, unit in measure.UNITS.items():
        assert profiles.FACTS[name].unit == unit and not profiles.FACTS[name].needed_by
        assert name in measure.CONVERT


def test_a_filled_profile_is_a_file_that_reads_back() -> None:
    timings = {name: Timing((1e-4, 2e-4), 10) for name in measure.UNITS}
    cpu = measure.cpu_profile("my-cpu", 'A "CPU"', 4, 15.63)
    filled = measure.filled(cpu, measure.facts(timings), "tgx devices measure")
    assert profiles.parse(profiles.to_toml(filled), "my-cpu") == filled
    assert filled.sources["measured"] == "tgx devices measure"
    board = measure.filled(BOARD, measure.facts(timings), "on the board")
    machine = profiles.machine(board, "15W")
    assert (machine.launch_us, machine.latency_ns) == (10.0, 10_000.0)
    assert profiles.parse(profiles.to_toml(board), BOARD.id) == board
    with pytest.raises(BadInput, match="is a CPU"):
        profiles.machine(filled)


def test_shown_profiles_say_how_sure_each_fact_is() -> None:
    rows = {row[0]: row for row in profiles.fact_rows(BOARD)}
    assert rows["sms"][1:3] == ("8", "high") and rows["mode 15W"][1] == "nvpmodel -m 0"
    data = json.loads(json.dumps(profiles.to_json(BOARD)))
    assert {f.name for f in fields(profiles.Fact)} == set(data["facts"]["sms"])
    assert len(profiles.list_rows([BOARD])[0]) == 6
