"""What is known of a board: one TOML file each, in `devices/`, and the user's own beside them.

    schema = 1
    name = "Jetson Orin Nano 8GB Super"
    kind = "jetson"                          # jetson, gpu or cpu

    [sources]                                # where a fact can be looked up, by a short name
    conf = "nvpmodel.conf of JetPack 6.2"

    [facts]                                  # FACTS below says which there are, and their units
    sms = { value = 8, source = "conf", confidence = "high" }
    bandwidth = { value = 102.4, unit = "GB/s", source = "conf", confidence = "high" }
    l2 = { value = "unknown", unit = "KiB" } # nobody knows: said, not guessed

    [[modes]]                                # power modes, the fastest first
    name = "MAXN_SUPER"                      # by name: the numbers differ from board to board
    sms = { value = 8, source = "conf", confidence = "high" }
    gpu_mhz = { value = 1020, unit = "MHz", source = "conf", confidence = "high" }
    emc_mhz = { value = 3199, unit = "MHz", source = "conf", confidence = "high" }

A file is checked as it is read: every problem in it is listed, each with what was expected.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tgx.errors import BadInput
from tgx.hardware import toolchains

SCHEMA = 1
MOST_BYTES = 1 << 18  # of a profile; the longest we ship has a thirtieth
MOST_PROBLEMS = 20  # told at once
SMALLEST, LARGEST = 1e-9, 1e18  # of any fact, in its unit
KINDS = ("jetson", "gpu", "cpu")
CONFIDENCES = ("measured", "high", "medium", "low")
UNKNOWN = "unknown"
SHIPPED = Path(__file__).resolve().parents[1] / "devices"


@dataclass(frozen=True)
class Rule:
    """What a fact must look like: its type, its unit, and the kinds of device that must have it."""

    type: str  # "whole", "number", "text" or "numbers"
    unit: str
    needed_by: tuple[str, ...]
    what: str
    zero: bool = False  # none of it is an answer


ALL, GPUS, JETSON, OPTIONAL = KINDS, ("jetson", "gpu"), ("jetson",), ()

FACTS: dict[str, Rule] = {
    "soc": Rule("text", "", GPUS, "the chip"),
    "arch": Rule("text", "", GPUS, "compute capability, as compilers call it"),
    "sms": Rule("whole", "", GPUS, "streaming multiprocessors, with none switched off"),
    "cuda_cores": Rule("whole", "", GPUS, "32-bit float lanes of all SMs"),
    "tensor_cores": Rule("whole", "", GPUS, "of all SMs", zero=True),
    "gpu_mhz": Rule("number", "MHz", GPUS, "highest GPU clock of any mode"),
    "emc_mhz": Rule("number", "MHz", JETSON, "highest memory clock of any mode"),
    "cpu": Rule("text", "", ALL, "the CPU"),
    "cpu_cores": Rule("whole", "", ALL, "its cores"),
    "memory": Rule("numbers", "GB", ALL, "main memory, in every size it is sold with"),
    "memory_type": Rule("text", "", GPUS, "main memory's kind"),
    "bus": Rule("whole", "bit", GPUS, "width of the memory's bus"),
    "bandwidth": Rule("number", "GB/s", GPUS, "of the memory at its highest clock"),
    "l2": Rule("whole", "KiB", GPUS, "second-level cache, shared by all SMs"),
    "shared_sm": Rule("whole", "KiB", GPUS, "shared memory of an SM"),
    "threads_sm": Rule("whole", "", GPUS, "most threads on an SM"),
    "blocks_sm": Rule("whole", "", GPUS, "most blocks on an SM"),
    "registers_sm": Rule("whole", "", GPUS, "registers of an SM"),
    "registers_block": Rule("whole", "", GPUS, "most registers of a block"),
    "half_rate": Rule("number", "", GPUS, "16-bit over 32-bit float rate, without tensor cores"),
    "int8": Rule("text", "", GPUS, "the vendor's INT8 figure, with its conditions"),
    "dla": Rule("text", "", JETSON, "deep-learning accelerators; tinygrad does not use them"),
    "jetpack": Rule("text", "", JETSON, "JetPack versions for the board"),
    "cuda": Rule("text", "", GPUS, "CUDA versions for it"),
    "python": Rule("text", "", JETSON, "Python in those JetPacks; tinygrad needs 3.11"),
    # what `tgx devices measure` finds
    "launch": Rule("number", "us", OPTIONAL, "one launch, the next one waiting for it"),
    "graph_launch": Rule("number", "us", OPTIONAL, "one kernel among many in a graph"),
    "copy": Rule("number", "GB/s", OPTIONAL, "main memory, bytes read plus bytes written"),
    "latency": Rule("number", "ns", OPTIONAL, "one load from main memory, waiting for the last"),
    "fma": Rule("number", "GFLOPS", OPTIONAL, "32-bit multiply-adds, counted as two"),
}

MODE_FACTS: dict[str, Rule] = {
    "sms": Rule("whole", "", ALL, "SMs this mode leaves on"),
    "gpu_mhz": Rule("number", "MHz", ALL, "highest GPU clock in this mode"),
    "emc_mhz": Rule("number", "MHz", ALL, "highest memory clock in this mode"),
    "watts": Rule("number", "W", OPTIONAL, "the mode's power budget"),
}

Value = int | float | str | tuple[int | float, ...] | None


@dataclass(frozen=True)
class Fact:
    """One fact; `value` is None where it is unknown."""

    value: Value
    unit: str = ""
    source: str = ""
    confidence: str = ""
    note: str = ""

    def __str__(self) -> str:
        value = self.value
        if value is None:
            return UNKNOWN
        text = " or ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
        return f"{text} {self.unit}".rstrip()


@dataclass(frozen=True)
class Mode:
    """A power mode: what it leaves of the board. `number` is what `nvpmodel -m` takes there."""

    name: str
    facts: Mapping[str, Fact]
    number: int | None = None
    note: str = ""

    def number_of(self, fact: str) -> float | None:
        return _number(self.facts.get(fact))


@dataclass(frozen=True)
class Profile:
    """All that is known of one device. `id` is its file's name."""

    id: str
    name: str
    kind: str
    facts: Mapping[str, Fact]
    sources: Mapping[str, str]
    modes: tuple[Mode, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, fact: str) -> Value:
        return self.facts[fact].value if fact in self.facts else None

    def number_of(self, fact: str) -> float | None:
        return _number(self.facts.get(fact))

    def text(self, fact: str) -> str:
        return str(self.facts[fact]) if fact in self.facts else UNKNOWN

    def mode(self, name: str) -> Mode:
        """The mode of that name (in any case); an unknown one lists those there are."""
        for mode in self.modes:
            if mode.name.casefold() == name.casefold():
                return mode
        if not self.modes:
            raise BadInput(
                f"{self.id} has no power mode {name!r}",
                "no mode: none is known for it",
                f"leave --mode out, or add [[modes]] to a profile of your own in {user_folder()}",
            )
        raise BadInput(
            f"{self.id} has no power mode {name!r}",
            "one of " + ", ".join(mode.name for mode in self.modes),
            f"tgx devices show {self.id}",
        )


def _number(fact: Fact | None) -> float | None:
    return fact.value if fact is not None and isinstance(fact.value, int | float) else None


# **************** reading ****************


def user_folder() -> Path:
    """Where the user's own profiles are; one of the same name wins over a shipped one."""
    return Path.home() / ".config" / "tgx" / "devices"


def load(folders: Iterable[Path] | None = None) -> dict[str, Profile]:
    """Every profile by its id; later folders win."""
    paths: dict[str, Path] = {}
    for folder in (SHIPPED, user_folder()) if folders is None else folders:
        paths |= {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {name: read(path) for name, path in sorted(paths.items())}


def find(name: str, folders: Iterable[Path] | None = None) -> Profile:
    """The profile called `name`, or the only one whose name starts so ("jetson-" may be left out);
    a path that ends in .toml is read from there."""
    if name.endswith(".toml"):
        return read(Path(name))
    profiles = load(folders)
    wanted = name.casefold()
    if wanted in profiles:
        return profiles[wanted]
    fits = [
        profile
        for key, profile in profiles.items()
        if wanted and (key.startswith(wanted) or key.removeprefix("jetson-").startswith(wanted))
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise BadInput(
            f"{name!r} fits several boards: " + ", ".join(profile.id for profile in fits),
            "the whole name of one",
        )
    near = get_close_matches(wanted, profiles, n=1)
    raise BadInput(
        f"no device is called {name!r}" + (f" (did you mean {near[0]}?)" if near else ""),
        "one of " + ", ".join(profiles),
        f"a profile of your own goes to {user_folder()}/NAME.toml; "
        "`tgx devices show NAME --toml` prints one to start from",
    )


def read(path: Path) -> Profile:
    """The profile in a TOML file."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the profile {path}: {error}", "a TOML file") from None
    return read_text(data, path.stem, str(path))


def read_text(data: bytes, id: str, where: str = "") -> Profile:
    """The profile in the bytes of a file."""
    if len(data) > MOST_BYTES:
        raise BadInput(f"{where or id} has over {MOST_BYTES >> 10} KiB", "a device profile")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"cannot read the profile {where or id}: {error}", "a TOML file") from None
    return parse(text, id, where)


def parse(text: str, id: str, where: str = "") -> Profile:
    """A profile from TOML text; `where` names the file in errors."""
    where = where or f"{id}.toml"
    try:
        if max(map(len, _DOTS.findall(text)), default=0) > MOST_PARTS:
            raise ValueError(f"a key of over {MOST_PARTS} parts")  # tomllib would take its square
        table = tomllib.loads(text)
    except RecursionError:
        raise BadInput(f"{where}: tables inside tables, too deep", "a device profile") from None
    except ValueError as error:  # TOMLDecodeError, and a number of too many digits
        raise BadInput(f"{where} is not TOML: {error}", "a device profile") from None
    checker = _Checker()
    profile = checker.profile(table, id)
    if checker.problems:
        told = checker.problems[:MOST_PROBLEMS]
        if len(told) < len(checker.problems):
            told.append(f"and {len(checker.problems) - len(told)} more")
        problems = "\n  - ".join(told)
        raise BadInput(
            f"{where} is no device profile:\n  - {problems}",
            "what tgx/hardware/profiles.py describes at its top",
            "`tgx devices show NAME --toml` prints one that is right",
        )
    return profile


MOST_PARTS = 100
_DOTS = re.compile(r"(?:\.[^.=\n]*){100,}")


class _Checker:
    """Builds a profile, and collects what is wrong with it on the way."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.sources: dict[str, str] = {}

    def wrong(self, problem: str) -> None:
        self.problems.append(problem if len(problem) < 300 else problem[:299] + "…")

    def profile(self, table: dict[str, Any], id: str) -> Profile:
        if table.get("schema") != SCHEMA:
            self.wrong(f"schema is {table.get('schema')!r:.40}; this tgx reads schema = {SCHEMA}")
        kind = table.get("kind")
        if kind not in KINDS:
            self.wrong(f"kind is {kind!r:.60}; expected one of {', '.join(KINDS)}")
            kind = "cpu"
        name = table.get("name")
        if not isinstance(name, str) or not name:
            self.wrong(f"name is {name!r:.60}; expected the board's name")
            name = id
        sources = table.get("sources", {})
        if not isinstance(sources, dict) or not all(isinstance(v, str) for v in sources.values()):
            self.wrong("[sources] must hold texts")
            sources = {}
        self.sources = sources
        notes = table.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
            self.wrong("notes must be a list of texts")
            notes = []
        known = ("schema", "name", "kind", "notes", "sources", "facts", "modes")
        for key in table:
            if key not in known:
                self.wrong(f"{key} is not known here; expected {', '.join(known)}")
        facts = self.facts(table.get("facts", {}), FACTS, kind, "facts")
        modes = table.get("modes", [])
        if not isinstance(modes, list):
            self.wrong("modes must be written as [[modes]] tables")
            modes = []
        built = tuple(self.mode(mode, i, kind) for i, mode in enumerate(modes))
        names = [mode.name.casefold() for mode in built]
        for name_ in sorted({n for n in names if names.count(n) > 1}):
            self.wrong(f"two modes are called {name_}")
        arch = facts.get("arch")
        if arch is not None and isinstance(arch.value, str):
            try:
                toolchains.number(arch.value)
            except BadInput as error:
                self.wrong(f"facts.arch: {error.given}; expected {error.expected}")
        return Profile(id, name, kind, facts, sources, built, tuple(notes))

    def mode(self, table: object, index: int, kind: str) -> Mode:
        where = f"modes[{index}]"
        if not isinstance(table, dict):
            self.wrong(f"{where} is {table!r:.60}; expected a table")
            return Mode(where, {})
        rest = dict(table)
        name, number, note = rest.pop("name", None), rest.pop("number", None), rest.pop("note", "")
        if not isinstance(name, str) or not name:
            self.wrong(f"{where}: name is {name!r:.60}; expected what `nvpmodel -q` prints")
            name = where
        if number is not None and type(number) is not int:
            self.wrong(f"{where}: number is {number!r:.60}; expected a whole number, or none")
            number = None
        facts = self.facts(rest, MODE_FACTS, kind, f"mode {name}")
        return Mode(name, facts, number, str(note))

    def facts(
        self, table: object, rules: Mapping[str, Rule], kind: str, where: str
    ) -> dict[str, Fact]:
        if not isinstance(table, dict):
            self.wrong(f"{where} is {table!r:.60}; expected a table of facts")
            return {}
        found = {}
        for name, row in table.items():
            if name not in rules:
                near = get_close_matches(name, rules, n=1)
                hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(rules)
                self.wrong(f"{where}.{name} is not a known fact; {hint}")
            else:
                found[name] = self.fact(row, rules[name], f"{where}.{name}")
        for name, rule in rules.items():
            if kind in rule.needed_by and name not in table:
                unit = f', unit = "{rule.unit}"' if rule.unit else ""
                self.wrong(
                    f"{where}.{name} is missing ({rule.what}); where nobody knows, "
                    f'write {name} = {{ value = "unknown"{unit} }}'
                )
        return found

    def fact(self, row: object, rule: Rule, where: str) -> Fact:
        if not isinstance(row, dict) or "value" not in row:
            self.wrong(f"{where} is {row!r:.60}; expected {{ value = ..., source = ... }}")
            return Fact(None)
        for key in row:
            if key not in ("value", "unit", "source", "confidence", "note"):
                self.wrong(f"{where}: {key} is not known; expected value, unit, source, "
                           "confidence, note")
        unit = row.get("unit", "")
        if unit != rule.unit:
            expected = f"unit = {rule.unit!r}" if rule.unit else "no unit"
            self.wrong(f"{where}: unit is {unit!r:.60}; expected {expected}")
        value = self.value(row["value"], rule, where)
        source, confidence = row.get("source", ""), row.get("confidence", "")
        if value is not None:
            if not isinstance(source, str) or source not in self.sources:
                names = ", ".join(self.sources) or "which is empty"
                self.wrong(f"{where}: source is {source!r:.60}; expected a name in [sources]: "
                           f"{names}")
            if confidence not in CONFIDENCES:
                self.wrong(f"{where}: confidence is {confidence!r:.60}; expected one of "
                           + ", ".join(CONFIDENCES))
        return Fact(value, rule.unit, str(source), str(confidence), str(row.get("note", "")))

    def value(self, value: object, rule: Rule, where: str) -> Value:
        if value == UNKNOWN:
            return None
        if rule.type == "text":
            if isinstance(value, str) and value:
                return value
            self.wrong(f"{where} is {value!r:.60}; expected a text")
            return None
        if rule.type == "numbers":
            items = value if isinstance(value, list) else [value]
            numbers = tuple(v for v in items if isinstance(v, int | float)
                            and not isinstance(v, bool) and SMALLEST <= v <= LARGEST)
            if numbers and len(numbers) == len(items):
                return numbers
            self.wrong(f"{where} is {value!r:.60}; expected a number above 0, or a list of them")
            return None
        fits = isinstance(value, int) or (rule.type == "number" and isinstance(value, float))
        if fits and isinstance(value, int | float) and not isinstance(value, bool):
            if SMALLEST <= value <= LARGEST or (rule.zero and value == 0):
                return value
        kind = "a whole number" if rule.type == "whole" else "a number"
        sign = "not negative" if rule.zero else "above 0"
        self.wrong(f'{where} is {value!r:.60}; expected {kind}, {sign}, or "unknown"')
        return None


# **************** a board in one of its modes ****************


@dataclass(frozen=True)
class Machine:
    """A GPU in one power mode, as the numbers the roofline and the model need.

    `assumed` lists, in sentences, what the profile does not know and what was put in its place.
    """

    id: str
    name: str
    mode: str
    arch: str
    sms: int
    lanes: int  # 32-bit float lanes of one SM
    gpu_mhz: float
    bandwidth: float  # GB/s
    l2: int | None  # bytes
    half_rate: float
    tensor_cores: bool
    launch_us: float | None = None  # measured, as the two below
    copy: float | None = None
    latency_ns: float | None = None
    watts: float | None = None  # the power mode's budget
    assumed: tuple[str, ...] = ()


def machine(profile: Profile, mode: str = "") -> Machine:
    """The board in a power mode: the named one, or the first, which is the fastest.

    What a mode leaves unknown is taken from the whole board: never less than what the mode has, so
    that a lower bound stays one.
    """
    if profile.kind == "cpu":
        raise BadInput(f"{profile.id} is a CPU", "a GPU's profile; a CPU is measured, not modelled")
    if mode:
        chosen = profile.mode(mode)
    else:
        chosen = profile.modes[0] if profile.modes else Mode("", {})
    assumed = []

    def pick(fact: str, what: str) -> float:
        value, whole = chosen.number_of(fact), profile.number_of(fact)
        if value is not None:
            return value
        if whole is None:
            raise BadInput(
                f"the profile of {profile.id} does not know {what} ({fact})",
                "a board whose clocks are known",
                f"put {fact} into a profile of your own: tgx devices show {profile.id} --toml > "
                f"{user_folder()}/{profile.id}.toml, then edit it",
            )
        if chosen.name:
            assumed.append(f"{what} in mode {chosen.name} is unknown: the board's best, {whole:g}")
        return whole

    sms, gpu_mhz = int(pick("sms", "the number of SMs")), pick("gpu_mhz", "the GPU clock")
    all_sms, cores = profile.number_of("sms"), profile.number_of("cuda_cores")
    full = profile.number_of("bandwidth")
    if full is None or not all_sms or not cores or cores < all_sms or sms < 1:
        raise BadInput(
            f"the profile of {profile.id} does not know bandwidth, sms or cuda_cores",
            "all three, and a core for each SM: nothing can be predicted without",
        )
    emc, emc_most = chosen.number_of("emc_mhz"), profile.number_of("emc_mhz")
    bandwidth = full
    if emc is not None and emc_most:
        bandwidth = full * emc / emc_most
    elif chosen.name:
        assumed.append(f"the memory clock in mode {chosen.name} is unknown: {full:g} GB/s at best")
    l2 = profile.number_of("l2")
    if l2 is None:
        assumed.append("the size of the L2 cache is unknown: the DRAM bound is left out")
    half = profile.number_of("half_rate")
    if half is None:
        assumed.append("the rate of 16-bit arithmetic is unknown: twice that of 32-bit")
    tensor = profile.number_of("tensor_cores")
    return Machine(
        id=profile.id,
        name=profile.name,
        mode=chosen.name,
        arch=profile.text("arch"),
        sms=sms,
        lanes=int(cores // all_sms),
        gpu_mhz=gpu_mhz,
        bandwidth=bandwidth,
        l2=None if l2 is None else int(l2 * 1024),
        half_rate=2.0 if half is None else half,
        tensor_cores=tensor is None or tensor > 0,
        launch_us=profile.number_of("graph_launch"),
        copy=profile.number_of("copy"),
        latency_ns=profile.number_of("latency"),
        watts=chosen.number_of("watts"),
        assumed=tuple(assumed),
    )


# **************** writing ****************


def to_toml(profile: Profile) -> str:
    """The profile as its file's text: what `parse` reads back as the same profile."""
    lines = [f"schema = {SCHEMA}", f"name = {_quote(profile.name)}", f'kind = "{profile.kind}"']
    if profile.notes:
        lines += ["notes = [", *(f"    {_quote(note)}," for note in profile.notes), "]"]
    lines += ["", "[sources]"]
    lines += [f"{_key(key)} = {_quote(text)}" for key, text in profile.sources.items()]
    lines += ["", "[facts]", *(_fact_line(n, f) for n, f in profile.facts.items())]
    for mode in profile.modes:
        lines += ["", "[[modes]]", f"name = {_quote(mode.name)}"]
        if mode.number is not None:
            lines.append(f"number = {mode.number}")
        if mode.note:
            lines.append(f"note = {_quote(mode.note)}")
        lines += [_fact_line(name, fact) for name, fact in mode.facts.items()]
    return "\n".join(lines) + "\n"


def _fact_line(name: str, fact: Fact) -> str:
    value = fact.value
    if isinstance(value, tuple):
        text = "[" + ", ".join(f"{v:g}" for v in value) + "]"
    else:
        text = _quote(UNKNOWN if value is None else value)
    cells = [f"value = {text}"]
    for key in ("unit", "source", "confidence", "note"):
        if getattr(fact, key):
            cells.append(f"{key} = {_quote(getattr(fact, key))}")
    return f"{name} = {{ {', '.join(cells)} }}"


def _quote(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the halves of characters, which a text here cannot have
        return re.sub(r"[\x7f-\x9f]", lambda c: f"\\u{ord(c[0]):04x}",
                      json.dumps(value, ensure_ascii=False))
    return str(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _quote(key)


# **************** showing ****************


def list_rows(profiles: Iterable[Profile]) -> list[tuple[str, ...]]:
    """id, name, architecture, SMs, bandwidth and modes of every profile."""
    return [
        (p.id, p.name, p.text("arch") if p.kind != "cpu" else "", p.text("sms") if p.kind != "cpu"
         else "", p.text("bandwidth") if p.kind != "cpu" else p.text("copy"),
         ", ".join(mode.name for mode in p.modes))
        for p in profiles
    ]  # fmt: skip


def fact_rows(profile: Profile) -> list[tuple[str, ...]]:
    """fact, value, how sure, where from; the modes' facts under their names."""
    rows = [_fact_row(name, fact) for name, fact in profile.facts.items()]
    for mode in profile.modes:
        number = "" if mode.number is None else f"nvpmodel -m {mode.number}"
        rows.append((f"mode {mode.name}", number, "", mode.note))
        rows += [_fact_row(f"  {name}", fact) for name, fact in mode.facts.items()]
    return rows


def _fact_row(name: str, fact: Fact) -> tuple[str, ...]:
    source = ": ".join(text for text in (fact.source, fact.note) if text)
    return name, str(fact), fact.confidence, source


def to_json(profile: Profile) -> dict[str, Any]:
    def facts(found: Mapping[str, Fact]) -> dict[str, Any]:
        return {name: asdict(fact) for name, fact in found.items()}

    return {
        "id": profile.id,
        "name": profile.name,
        "kind": profile.kind,
        "notes": list(profile.notes),
        "sources": dict(profile.sources),
        "facts": facts(profile.facts),
        "modes": [
            {"name": m.name, "number": m.number, "note": m.note, "facts": facts(m.facts)}
            for m in profile.modes
        ],
    }
