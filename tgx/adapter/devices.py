"""What devices there are, and which of them work here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tgx import settings
from tgx.adapter import compat
from tgx.errors import UnknownDevice

# Not devices that compute: files, arrays, sockets.
STORES = {"DISK", "NPY", "TINYFS", "RDMA"}
# tinygrad's aids for tests: they compute in Python, or not at all.
AIDS = ("PYTHON", "NULL")


@dataclass(frozen=True)
class DeviceState:
    """One line of `tgx devices`."""

    name: str
    works: bool
    default: bool
    detail: str  # the renderers it offers, or the first line of why it does not open


def known_devices() -> list[str]:
    """The names a user may give: tinygrad's runtime folder, in its order of preference, and TGX.

    Read from the folder, without importing tinygrad.
    """
    spec = find_spec("tinygrad")
    folder = Path(next(iter(spec.submodule_search_locations or ()))) if spec else Path()
    files = (folder / "runtime").glob("ops_*.py")
    names = {path.stem.removeprefix("ops_").upper() for path in files}
    names = (names | {"TGX"}) - STORES
    return sorted(names, key=lambda name: (name in AIDS, name == "TGX", name))


def unknown_device(name: str) -> UnknownDevice:
    """The error for a device nobody knows, with those that exist."""
    name, known = name.upper(), known_devices()
    variable, value = settings.requested_device()
    asked = f" ({variable}={value})" if value.upper().split(":")[0] == name else ""
    near = difflib.get_close_matches(name, known, n=1)
    return UnknownDevice(
        f"there is no device {name!r}{asked}" + (f"; did you mean {near[0]}?" if near else ""),
        "one of " + ", ".join(known),
        "`tgx devices` shows which of them work on this machine",
    )


def device_states() -> Iterator[DeviceState]:
    """Open every device tinygrad would try, in its order, and run one small kernel on it."""
    compat.check()
    from tinygrad import Device
    from tinygrad.device import ALL_DEVICES

    try:
        default = Device.DEFAULT
    except RuntimeError:  # tinygrad's "no usable devices"
        default = ""
    for name in [*ALL_DEVICES, "PYTHON"]:
        works, detail = try_device(name)
        yield DeviceState(name, works, name == default.split(":")[0], detail)


def try_device(name: str) -> tuple[bool, str]:
    """Whether the device opens and computes here; its renderers, or why not."""
    try:
        from tinygrad import Device, Tensor

        device = Device[name]
        result = (Tensor([1, 2, 3], device=name) * 2).tolist()
        if result != [2, 4, 6]:
            return False, f"computed {result} where [2, 4, 6] is right"
    except Exception as error:  # a device may fail to open in any way it likes
        return False, reason(error)
    names = [device._renderer_name(renderer) for renderer in device.renderers]
    return True, "renderers: " + ", ".join(dict.fromkeys(names))


def reason(error: BaseException) -> str:
    """The first line of an error that says something: a group is as good as its first member."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
