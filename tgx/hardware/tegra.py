"""What a Jetson says about itself: tegrastats, nvpmodel, jetson_clocks, and the release it runs.

All pure: text in, facts out, so that a log from a board can be read anywhere. NVIDIA changed every
one of these formats between releases without a version in it. The rule here: a value that is not
said is None and never 0, a line that does not fit keeps its raw text, and nothing raises.

tegrastats, as seen on boards, differs in
    the GPU          GR3D_FREQ 40%          load, no clock            (JetPack 4 and 5 without root)
                     GR3D_FREQ 0%@76        one clock                 (JetPack 4, 5 and 6)
                     GR3D_FREQ 99%@[612]    in brackets               (JetPack 5 and 6)
                     GR3D_FREQ 0%@[0,0]     a clock for each GPC      (AGX Orin)
                     GR3D_FREQ @[314,314,314]  clocks, no load        (Thor: unknown, not zero)
    power            POM_5V_IN 1750/1628                    now / mean, in mW without saying so
                     VDD_IN 5313mW/5313mW                   the same, saying so
                     VIN 124486mW/36487mW/124486mW          now / mean / peak (JetPack 7)
    temperatures     CPU@44.5C, cpu@58.25C/61.75C, and -256C for a sensor that is off
    CPU cores        CPU [5%@1224,off], CPU [0%,5%,off]@2601
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

MOST_LINE = 4_096  # characters of a line that are looked at
MOST_TEXT = 1 << 20  # of what a program printed
OFF = -256.0  # the temperature of a sensor that is switched off
FIXED = {"PMIC"}  # sensors that say 50 or 100 for ever

# The rails that together are the power of the whole module or board; the first set that a line has
# decides. Adding up all rails of a line would count some twice: VDD_IN feeds the ones beside it.
TOTALS = (
    ("VDD_IN",),  # TX2, Xavier NX, Orin Nano and NX
    ("VIN",),  # Thor
    ("POM_5V_IN",),  # Nano
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


@dataclass(frozen=True)
class Rail:
    """Power in milliwatts: now, and the mean since tegrastats began."""

    now: float
    mean: float | None = None


@dataclass(frozen=True)
class Sample:
    """One line of tegrastats. What the line does not say is None, or missing from its tuple."""

    raw: str
    ram_mb: int | None = None
    ram_total_mb: int | None = None
    gpu_load: float | None = None  # percent
    gpu_mhz: tuple[float, ...] = ()  # one for each cluster of the GPU that says
    emc_load: float | None = None
    emc_mhz: float | None = None
    cpu_load: tuple[float | None, ...] = ()  # None: that core is off
    temperatures: tuple[tuple[str, float], ...] = ()  # sensors that are on, in degrees
    rails: tuple[tuple[str, Rail], ...] = ()
    understood: bool = True  # False: no field was recognised, `raw` is all there is

    def rail(self, name: str) -> Rail | None:
        return dict(self.rails).get(name)

    @property
    def total_mw(self) -> float | None:
        """The whole board's power, where its rails are known."""
        rails = dict(self.rails)
        for names in TOTALS:
            if all(name in rails for name in names):
                return sum(rails[name].now for name in names)
        return None


_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_RAM = re.compile(r"\bRAM ([0-9]{1,12})/([0-9]{1,12})MB")
_CLOCK = r"\s{1,20}(?:([0-9]{1,12})%)?(?:@(?:\[([^\]]*)\]|(\S*)))?(?=\s|$)"
_GPU = re.compile(r"\bGR3D_FREQ" + _CLOCK)
_EMC = re.compile(r"\bEMC_FREQ" + _CLOCK)
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_TEMPERATURE = re.compile(rf"(?<!\S)([A-Za-z][\w.-]*)@(-?{_NUMBER})C(?:/-?{_NUMBER}C)?(?=\s|$)")
_POWER = rf"({_NUMBER})(mW|W)?"
_RAIL = re.compile(rf"(?<!\S)([A-Z][A-Z0-9_]*) {_POWER}/{_POWER}(?:/{_POWER})?(?=\s|$)")
_NOT_RAILS = {"RAM", "SWAP", "IRAM", "NC"}  # NC: not connected


def parse_line(line: str) -> Sample:
    """One line of tegrastats, whatever the release."""
    raw = line[:MOST_LINE].rstrip("\r\n")
    ram, gpu, emc = _RAM.search(raw), _GPU.search(raw), _EMC.search(raw)
    cpu = _CPU.search(raw)
    rails = tuple(
        (name, Rail(float(now) * scale, float(mean) * scale))
        for name, now, unit, mean, *_ in _RAIL.findall(raw)
        for scale in (1000 if unit == "W" else 1,)
        if name not in _NOT_RAILS
    )
    temperatures = tuple(
        (name, float(degrees))
        for name, degrees in _TEMPERATURE.findall(raw)
        if float(degrees) > OFF
    )
    emc_mhz = _clocks(emc)
    return Sample(
        raw=raw,
        ram_mb=int(ram[1]) if ram else None,
        ram_total_mb=int(ram[2]) if ram else None,
        gpu_load=_load(gpu),
        gpu_mhz=_clocks(gpu),
        emc_load=_load(emc),
        emc_mhz=emc_mhz[0] if emc_mhz else None,
        cpu_load=tuple(map(_core, cpu[1].split(","))) if cpu else (),
        temperatures=temperatures,
        rails=rails,
        understood=bool(ram or gpu or emc or cpu or rails or temperatures),
    )


def _load(match: re.Match[str] | None) -> float | None:
    return float(match[1]) if match and match[1] and int(match[1]) <= 100 else None


def _clocks(match: re.Match[str] | None) -> tuple[float, ...]:
    if not match:
        return ()
    words = match[2].split(",") if match[2] is not None else [match[3] or ""]
    return tuple(float(word) for word in words if re.fullmatch(rf"\s*{_NUMBER}\s*", word))


def _core(text: str) -> float | None:
    load = re.match(r"\s*([0-9]{1,12})%", text)
    return float(load[1]) if load else None


def parse_log(text: str) -> tuple[Sample, ...]:
    """Every line of a tegrastats log that is not empty."""
    return tuple(parse_line(line) for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class Telemetry:
    """A log summed up. Energy is mean power over time: tegrastats samples, so it is an estimate."""

    samples: int
    not_understood: tuple[str, ...]  # raw lines in a format tgx does not know
    gpu_load: float | None
    gpu_mhz_low: float | None
    gpu_mhz_high: float | None
    power_mw: float | None
    hottest: tuple[str, float] | None


def summarise(samples: Iterable[Sample]) -> Telemetry:
    samples = tuple(samples)
    clocks = [mhz for sample in samples for mhz in sample.gpu_mhz if mhz > 0]
    power = [sample.total_mw for sample in samples if sample.total_mw is not None]
    loads = [sample.gpu_load for sample in samples if sample.gpu_load is not None]
    sensors = [(n, c) for sample in samples for n, c in sample.temperatures if n not in FIXED]
    return Telemetry(
        samples=len(samples),
        not_understood=tuple(s.raw for s in samples if not s.understood),
        gpu_load=fmean(loads) if loads else None,
        gpu_mhz_low=min(clocks, default=None),
        gpu_mhz_high=max(clocks, default=None),
        power_mw=fmean(power) if power else None,
        hottest=max(sensors, key=lambda sensor: sensor[1], default=None),
    )


def energy_mj(telemetry: Telemetry, seconds: float, count: int) -> float | None:
    """Millijoules for each of `count` inferences that took `seconds` together; None where the board
    has no rail for its whole power."""
    if telemetry.power_mw is None or count < 1:
        return None
    return telemetry.power_mw * seconds / count


# **************** nvpmodel ****************


@dataclass(frozen=True)
class ConfMode:
    """A power mode of /etc/nvpmodel.conf. Clocks in MHz; None: the board's most, or not said."""

    number: int
    name: str
    gpu_mhz: float | None = None
    emc_mhz: float | None = None
    cpu_cores: int | None = None
    tpc_mask: int | None = None  # which TPCs, of two SMs each, are off; no two SoCs agree


def parse_nvpmodel_query(text: str) -> tuple[str, int | None] | None:
    """The mode's name and number from `nvpmodel -q`, which needs no root; None if it says none."""
    text = text[:MOST_TEXT]
    name = re.search(r"^(?:NVPM VERB: Current mode: )?NV Power Mode: *(\S[^\n]*)$", text, re.M)
    if name is None:
        return None
    rest = (line.strip() for line in text[name.end() :].split("\n"))
    number = next((line for line in rest if re.fullmatch("[0-9]{1,9}", line)), None)
    return name[1].strip()[:200], None if number is None else int(number)


def parse_nvpmodel_conf(text: str) -> tuple[ConfMode, ...]:
    """The power modes of an nvpmodel.conf, in its order. Lines outside of a mode are definitions
    that look alike, and are passed over."""
    modes: list[ConfMode] = []
    facts: dict[str, float] = {}
    head: tuple[int, str] | None = None

    def close() -> None:
        if head is not None:
            gpu, emc = facts.get("gpu", 0), facts.get("emc", 0)
            cores, mask = facts.get("cores"), facts.get("mask")
            modes.append(
                ConfMode(
                    *head,
                    gpu_mhz=gpu / 1e6 if gpu > 0 else None,  # -1 and 0 are "the most there is"
                    emc_mhz=emc / 1e6 if emc > 0 else None,
                    cpu_cores=None if cores is None else int(cores),
                    tpc_mask=None if mask is None else int(mask),
                )
            )

    for line in text[:MOST_TEXT].splitlines():
        line = line[:MOST_LINE]
        if section := re.match(r"\s*<\s*(\w+)(.*)>", line):
            close()
            facts, head = {}, None
            if section[1] == "POWER_MODEL":
                number = re.search(r"\bID\s{0,9}=\s{0,9}([0-9]{1,9})\b", section[2])
                name = re.search(r"\bNAME\s{0,9}=\s{0,9}(\S+)", section[2])
                head = (int(number[1]), name[1]) if number and name else None
            continue
        words = line.split()
        if head is None or len(words) != 3 or not re.fullmatch(r"-?[0-9]{1,15}", words[2]):
            continue
        match words[0], words[1]:
            case "GPU", "MAX_FREQ":
                facts["gpu"] = int(words[2])
            case "EMC", "MAX_FREQ":
                facts["emc"] = int(words[2])
            case "CPU_ONLINE", _:
                facts["cores"] = facts.get("cores", 0) + (words[2] == "1")
            case "TPC_POWER_GATING", "TPC_PG_MASK":
                facts["mask"] = int(words[2])
    close()
    return tuple(modes)


# **************** jetson_clocks ****************


@dataclass(frozen=True)
class Clocks:
    """`jetson_clocks --show` (which needs root): megahertz, None where it does not say."""

    gpu_min: float | None = None
    gpu_max: float | None = None
    gpu_now: float | None = None
    emc_max: float | None = None
    emc_now: float | None = None
    tpcs: int | None = None  # of two SMs each
    mode: str = ""

    @property
    def locked(self) -> bool | None:
        """Whether `jetson_clocks` holds the GPU at its highest clock."""
        if self.gpu_min is None or self.gpu_max is None:
            return None
        return self.gpu_min == self.gpu_max


def parse_jetson_clocks(text: str) -> Clocks:
    text = text[:MOST_TEXT]

    def line(name: str) -> dict[str, float]:
        found = re.search(rf"^{name} (.*)$", text, re.M)
        pairs = re.findall(r"\b(\w{1,40})=([0-9]{1,15})\b", found[1][:MOST_LINE]) if found else []
        return {key: int(value) / 1e6 for key, value in pairs}

    gpu, emc = line("GPU"), line("EMC")
    tpcs = re.search(r"^Active GPU TPCs: ([0-9]{1,9})\b", text, re.M)
    query = parse_nvpmodel_query(text)
    return Clocks(
        gpu_min=gpu.get("MinFreq"),
        gpu_max=gpu.get("MaxFreq"),
        gpu_now=gpu.get("CurrentFreq"),
        emc_max=emc.get("MaxFreq"),
        emc_now=emc.get("CurrentFreq"),
        tpcs=int(tpcs[1]) if tpcs else None,
        mode=query[0] if query else "",
    )


@dataclass(frozen=True)
class Board:
    """What a Jetson said of itself before a run. None and "": it did not say."""

    release: str = ""  # "36.4.3"
    mode: tuple[str, int | None] | None = None  # the power mode's name, and its number there
    clocks: Clocks | None = None


def low_clock(samples: Iterable[Sample], highest_mhz: float) -> str:
    """The 306 MHz trap: a GPU that was busy, and never left its lowest clock. The governor raises
    the clock only after a while, and short kernels never last that long: a published measurement
    was 21.7 ms where 4.67 ms was right. Returns what to tell the user; "" where all is well, or
    nothing is known.
    """
    busy = [s for s in samples if s.gpu_mhz and (s.gpu_load is None or s.gpu_load >= 20)]
    clocks = [mhz for sample in busy for mhz in sample.gpu_mhz if mhz > 0]
    if not clocks or max(clocks) >= 0.6 * highest_mhz:
        return ""
    return (
        f"the GPU ran at {max(clocks):g} MHz at most, where this mode allows {highest_mhz:g}: what "
        "was measured is a GPU that never woke up. `sudo jetson_clocks` holds it at its highest "
        "clock (`sudo jetson_clocks --store` before, `--restore` after)"
    )


# **************** the release ****************


@dataclass(frozen=True)
class JetPack:
    """One major JetPack: what it brings, and what tinygrad needs there."""

    major: int
    l4t: tuple[int, ...]  # the numbers its /etc/nv_tegra_release starts with
    python: str
    cuda: str
    notes: tuple[str, ...]


_PYTHON = (
    "its own Python is too old for tinygrad: `uv venv --python 3.11` (or conda, or a container) "
    "brings one; pip wheels for aarch64 work on it"
)
_COPIES = "tinygrad's CUDA device copies between CPU and GPU, though they share the memory"

JETPACKS = (
    JetPack(
        4,
        (32,),
        "3.6",
        "10.2",
        (
            _PYTHON,
            "CUDA 10.2 is the last for these boards: stock tinygrad fails there, as its NVRTC is "
            "asked for what it does not know and cuGraphInstantiate_v2 is missing from the driver. "
            "DEVICE=TGX on the CPU is the way that works",
            "an NVRTC 12.9 from pip writes PTX 8.8, which this driver should refuse",
        ),
    ),
    JetPack(
        5,
        (34, 35),
        "3.8",
        "11.4",
        (
            _PYTHON,
            "NVRTC_PATH=/usr/local/cuda/lib64/libnvrtc.so.11.2: tinygrad does not find the file by "
            "itself, for its name does not fit the pattern tinygrad looks for",
            _COPIES,
        ),
    ),
    JetPack(6, (36,), "3.10", "12.6", (_PYTHON, _COPIES)),
    JetPack(7, (38, 39), "3.12", "13", (_COPIES,)),
)


def parse_release(text: str) -> tuple[int, str] | None:
    """L4T's number and revision, (36, "4.3"), from /etc/nv_tegra_release; None if it has none."""
    match = re.search(r"R([0-9]{1,6}) \(release\)(?:, REVISION: ([0-9.]{1,20}))?", text[:MOST_LINE])
    return (int(match[1]), match[2] or "") if match else None


def jetpack_of(release: int) -> JetPack | None:
    return next((jetpack for jetpack in JETPACKS if release in jetpack.l4t), None)


@dataclass(frozen=True)
class Check:
    """One thing `tgx doctor` looks at on a board."""

    what: str
    ok: bool
    detail: str
    fix: str = ""


def checks(
    release: str,
    python: tuple[int, int],
    tegrastats: bool,
    nvrtc: bool,
    clocks: Clocks | None = None,
) -> tuple[Check, ...]:
    """What stands between this board and tinygrad on its GPU: the text of /etc/nv_tegra_release
    ("" on another machine), the Python that runs, whether tegrastats and an NVRTC were found."""
    found = parse_release(release)
    if found is None:
        return ()
    number, revision = found
    jetpack = jetpack_of(number)
    if jetpack is None:
        known = ", ".join(f"R{n}" for j in JETPACKS for n in j.l4t)
        rows = [Check("JetPack", False, f"L4T R{number}.{revision} is not known here", known)]
    else:
        cuda = f"JetPack {jetpack.major} (L4T R{number}.{revision}), CUDA {jetpack.cuda}"
        rows = [Check("JetPack", jetpack.major > 4, cuda, jetpack.notes[1 if number < 34 else 0])]
    old = python < (3, 11)
    rows.append(
        Check("Python", not old, ".".join(map(str, python)), _PYTHON if old else "")
    )
    rows.append(
        Check(
            "tegrastats",
            tegrastats,
            "on PATH" if tegrastats else "not on PATH: no power, no clocks, no temperatures",
            "" if tegrastats else "it comes with L4T, in /usr/bin; containers need it mounted",
        )
    )
    rows.append(
        Check(
            "NVRTC",
            nvrtc,
            "found" if nvrtc else "not found",
            "" if nvrtc else "export NVRTC_PATH=/usr/local/cuda/lib64/libnvrtc.so, the board's own",
        )
    )
    if clocks is not None and clocks.locked is not None:
        detail = f"{clocks.gpu_min:g} to {clocks.gpu_max:g} MHz"
        fix = "" if clocks.locked else "sudo jetson_clocks, before measuring; --restore undoes it"
        rows.append(Check("GPU clock held", clocks.locked, detail, fix))
    return tuple(rows)
