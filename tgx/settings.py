"""Every environment variable tgx reads, in one place.

Values are read when they are asked for, not once at import: a test or a notebook may set one at
any time. tinygrad's own variables, but for the choice of device, are read through tinygrad.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# name -> what it does. `tgx doctor` prints the ones that are set, and warns of a TGX_ name that is
# not here: `TGX_FSAT=0` should not pass silently.
VARIABLES = {
    "DEVICE": "the device to run on, for every tinygrad script: DEVICE=TGX, DEVICE=CPU, ...",
    "DEV": "tinygrad's own variable for the same; it wins where both are set",
    "TGX_TRACE": "a folder: trace the run and write it there",
    "TGX_FAST": "0: leave the fast paths out and lower everything the ordinary way",
    "TGX_COUNT": "1: count what every TGX kernel does, and print it when the program ends",
    "TGX_CHECK": "1: check every kernel's loads, stores and arithmetic; or some of memory, "
    "arithmetic, nan, with commas",
    "TGX_TRACEBACK": "1: the command line shows Python's traceback with an error",
}


def text(name: str, default: str = "") -> str:
    """The variable as it stands; empty counts as not set."""
    if name not in VARIABLES:
        raise KeyError(f"{name} is not in tgx.settings.VARIABLES: add it there, with what it does")
    return os.environ.get(name, "") or default


def flag(name: str, default: bool = False) -> bool:
    """A variable that is 0 or 1."""
    value = text(name, "1" if default else "0")
    if value not in ("0", "1"):
        raise _bad(name, value, "0 or 1")
    return value == "1"


def _bad(name: str, value: str, expected: str) -> Exception:
    from tgx.errors import BadSetting

    return BadSetting(f"{name}={value}", f"{expected} ({VARIABLES[name]})", f"unset {name}")


def requested_device() -> tuple[str, str]:
    """The variable that chooses the device and what it says: ("DEVICE", "TGX"), or ("", "")."""
    dev, device = text("DEV"), text("DEVICE")
    if dev and dev != device:
        return "DEV", dev
    return ("DEVICE", device) if device else ("", "")


def adopt_device() -> None:
    """Hand DEVICE on to tinygrad, which reads DEV, once, while it is first imported."""
    name, value = requested_device()
    if name == "DEVICE":
        os.environ["DEV"] = value


def choose_device(value: str) -> None:
    """Make `value` the device of this process and its children, unless one was chosen already."""
    if not requested_device()[0]:
        os.environ["DEV"] = value


def trace_dir() -> str:
    return text("TGX_TRACE")


def take_trace_dir() -> str:
    """TGX_TRACE, for this process alone: those it starts would write the same folder."""
    return os.environ.pop("TGX_TRACE", "")


def fast() -> bool:
    return flag("TGX_FAST", default=True)


def count() -> bool:
    """Not together with TGX_CHECK: a kernel is rewritten for one of the two."""
    wanted, checked = flag("TGX_COUNT"), os.environ.get("TGX_CHECK", "")
    if wanted and checked not in ("", "0"):
        from tgx.errors import BadSetting

        raise BadSetting(
            f"TGX_COUNT=1 and TGX_CHECK={checked} together",
            "one of them: kernels are counted or checked",
            "run it twice",
        )
    return wanted


CHECKS = ("memory", "arithmetic", "nan")  # what TGX_CHECK may name


def check() -> frozenset[str]:
    """What TGX_CHECK asks for: some of CHECKS, all of them for 1, none for 0."""
    value = text("TGX_CHECK", "0")
    if value in ("0", "1"):
        return frozenset(CHECKS if value == "1" else ())
    named = frozenset(word.strip() for word in value.split(","))
    if not named <= set(CHECKS):
        raise _bad("TGX_CHECK", value, "0, 1, or some of " + ", ".join(CHECKS) + ", with commas")
    return named


def traceback() -> bool:
    return flag("TGX_TRACEBACK")


def strangers() -> list[str]:
    """The TGX_ variables that are set and mean nothing: misspelt, most likely."""
    return sorted(name for name in os.environ if name.startswith("TGX_") and name not in VARIABLES)


def given() -> dict[str, str]:
    """The variables of the table that are set, for `tgx doctor`."""
    return {name: text(name) for name in VARIABLES if text(name)}


def told(name: str) -> str:
    """Any variable, ours or not, as it was set: for a record of what a run was told."""
    return os.environ.get(name, "")


class set_to:
    """`with set_to("TGX_FAST", "0"):` gives a variable a value for the length of a block."""

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def __enter__(self) -> None:
        self.before = os.environ.get(self.name)
        os.environ[self.name] = self.value

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del os.environ[self.name]
        else:
            os.environ[self.name] = self.before


def child_environment(
    changes: Mapping[str, str | None], python_path: str = ""
) -> dict[str, str]:
    """This process's environment with `changes` made; None removes a variable.

    `python_path` is added to the folders that the child's Python imports from.
    """
    made = {name: value for name, value in os.environ.items() if name not in changes}
    made |= {name: value for name, value in changes.items() if value is not None}
    if python_path:
        folders = filter(None, [python_path, made.get("PYTHONPATH", "")])
        made["PYTHONPATH"] = os.pathsep.join(folders)
    return made
