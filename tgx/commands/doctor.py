"""`tgx doctor`: what works here, what is missing, and the command that installs it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tgx.commands.common import Options, add_json, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: Options) -> int:
    from tgx.adapter.doctor import examine

    findings = examine()
    broken = [finding for finding in findings if finding.needed and not finding.ok]
    if options.json:
        print_json([asdict(finding) for finding in findings])
        return 1 if broken else 0
    marks = {(True, True): "ok", (True, False): "ok", (False, False): "-", (False, True): "NO"}
    rows = [(marks[f.ok, f.needed], f.what, f.detail) for f in findings]
    print_table(("", "what", "found"), rows)
    missing = [finding for finding in findings if not finding.ok]
    if missing:
        print("\nTo have what is missing:")
        for finding in missing:
            print(f"  {finding.what}: {finding.gives}\n      {finding.install}")
    print("\nTGX does not run here." if broken else "\nTGX runs here.")
    return 1 if broken else 0
