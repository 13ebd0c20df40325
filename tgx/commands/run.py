"""`tgx run SCRIPT`: a script with TGX as its device."""

from __future__ import annotations

import argparse

from tgx import settings
from tgx.commands.common import Options, add_script, run_script


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_script(parser)


def run(options: Options) -> int:
    settings.choose_device("TGX")
    run_script(options)
    return 0
