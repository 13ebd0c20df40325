"""`tgx devices`: what devices there are here, and profiles of boards that are elsewhere."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tgx import settings
from tgx.commands.common import Options, add_json, print_json, print_table
from tgx.safe import clean

if TYPE_CHECKING:
    from tgx.hardware.profiles import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "measure"),
        help="show: a board's profile, or the list of them; measure: fill one on this machine",
    )
    parser.add_argument("name", nargs="?", default="", help="a profile's name, or its beginning")
    parser.add_argument("--toml", action="store_true", help="print the profile's file")
    add_json(parser)


def run(options: Options) -> int:
    if options.action:
        return show_profile(options) if options.action == "show" else measure_profile(options)
    from tgx.adapter.devices import device_states

    states = list(device_states())
    if options.json:
        print_json([asdict(state) for state in states])
    else:
        rows = [
            ("*" if state.default else "", state.name, "yes" if state.works else "no", state.detail)
            for state in states
        ]
        print_table(("", "device", "works here", ""), rows)
        print("\n* is the default. Choose another with DEVICE=NAME.")
    return 0 if any(state.works for state in states) else 1


def show_profile(options: Options) -> int:
    from tgx.hardware import profiles

    if not options.name:
        found = list(profiles.load().values())
        if options.json:
            print_json([profiles.to_json(profile) for profile in found])
        else:
            print_table(("profile", "name", "arch", "SMs", "memory", "modes"),
                        profiles.list_rows(found))
        return 0
    profile = profiles.find(options.name)
    if options.toml:
        print(profiles.to_toml(profile), end="")
    elif options.json:
        print_json(profiles.to_json(profile))
    else:
        print(clean(f"{profile.name} ({profile.id})"))
        print(clean("".join(f"  {note}\n" for note in profile.notes)))
        print_table(("fact", "value", "sure", "source"), profiles.fact_rows(profile))
        print("\n" + clean("\n".join(f"{k}: {text}" for k, text in profile.sources.items())))
    return 0


def measure_profile(options: Options) -> int:
    """Without a name: this CPU. The file goes where the user's own profiles are."""
    from tgx.hardware import profiles

    known = profiles.find(options.name) if options.name else None
    choose_device(known)
    from tgx.adapter.measure import measure
    from tgx.hardware.measure import busy

    profile, timings = measure(known, say=lambda line: print(line, file=sys.stderr, flush=True))
    path = profiles.user_folder() / f"{profile.id}.toml"
    if options.toml:
        print(profiles.to_toml(profile), end="")
    elif options.json:
        print_json(profiles.to_json(profile))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profiles.to_toml(profile), encoding="utf-8")
        print(f"written to {path}; tgx devices show {profile.id}")
    if disturbed := busy(timings):
        print(f"note: something else used this machine during {', '.join(disturbed)}: measure "
              "again when it is quiet", file=sys.stderr)
    return 0


def choose_device(known: Profile | None) -> None:
    """A board's profile is filled on that board's GPU and nowhere else, a CPU's on a CPU: numbers
    of another device would be believed by every prediction after."""
    from tgx.adapter.board import gpu_arch
    from tgx.commands.profile import choose_device as choose
    from tgx.errors import BadInput

    if known is not None and known.kind != "cpu":
        arch, gpu = known.text("arch"), gpu_arch()
        if choose(arch):
            return
        wanted = settings.requested_device()[1]
        here = f"an NVIDIA GPU of {gpu}" if gpu else "no NVIDIA GPU"
        raise BadInput(
            f"the profile of {known.id} ({arch}) cannot be filled on the device {wanted}; there is "
            f"{here} here",
            "the board itself, and its GPU as the device",
            "`tgx devices measure`, without a name, fills the profile of this CPU",
        )
    settings.choose_device("TGX")
    wanted = settings.requested_device()[1]
    if wanted.split(":")[0] not in ("TGX", "CPU", "PYTHON"):
        raise BadInput(
            f"the profile of a CPU cannot be filled on the device {wanted}",
            "DEVICE=TGX, or CPU",
            "`tgx devices measure NAME` fills the profile of a board that is here",
        )
