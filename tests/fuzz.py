"""Feed broken files to every parser of tgx, for as long as you like.

    python tests/fuzz.py --seconds 600                    # a minute or so for each of FORMATS
    python tests/fuzz.py --format trace --seconds 600     # one
    python tests/fuzz.py --bombs                          # the files made to exhaust a machine
    python tests/fuzz.py --list

A bug is printed once, with the file that shows it (kept in --out, made smaller first). The exit
code is 1 if there was any. The formats, their seeds and the guard are in `strangers.py`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import strangers
from strangers import BOMBS, EDITS, FORMATS, Edit, Format


def edits(rng: random.Random) -> list[Edit]:
    count = min(1 + int(rng.expovariate(0.6)), 12)
    gentle = rng.random() < 0.5  # still a file of its kind: what is made of it is tried as well
    kinds = ("number", "text", "word") if gentle else EDITS
    return [(rng.choice(kinds), rng.randrange(1 << 32), rng.randrange(1 << 20))
            for _ in range(count)]


def smaller(form: Format, which: int, found: list[Edit], bug: str) -> list[Edit]:
    """The same kind of bug with fewer edits."""
    kind = bug.split(" at ")[-1]
    at = 0
    while at < len(found):
        fewer = found[:at] + found[at + 1 :]
        again = strangers.attempt(form, strangers.mutated(form.seeds(), which, fewer))
        if again.bug.split(" at ")[-1] == kind:
            found = fewer
        else:
            at += 1
    return found


def fuzz(form: Format, seconds: float, seed: int, out: Path) -> tuple[int, int, float, list[str]]:
    """(cases, of which refused, slowest in seconds, bugs) of one format."""
    strangers.warm(form)
    rng, seeds = random.Random(seed), form.seeds()
    end = time.monotonic() + seconds
    cases = refused = 0
    slowest = 0.0
    bugs: dict[str, str] = {}
    while time.monotonic() < end:
        which, chosen = rng.randrange(1 << 16), edits(rng)
        found = strangers.attempt(form, strangers.mutated(seeds, which, chosen))
        cases += 1
        refused += found.refused
        slowest = max(slowest, found.seconds)
        kind = found.bug.split(" at ")[-1]
        if found.bug and kind not in bugs and len(bugs) < 40:
            bugs[kind] = found.bug
            chosen = smaller(form, which, chosen, found.bug)
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{form.name}-{len(bugs)}"
            path.write_bytes(strangers.mutated(seeds, which, chosen))
            print(f"  BUG {form.name}: {found.bug}\n      {path} {chosen}", flush=True)
    return cases, refused, slowest, list(bugs.values())


def main() -> int:
    parser = argparse.ArgumentParser(description="feed broken files to every parser of tgx")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, of wall time (60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-found"), metavar="DIR")
    parser.add_argument("--bombs", action="store_true", help="files that exhaust a machine")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = options.format or list(FORMATS)
    if options.list:
        print("\n".join(f"{f.name:14}{(f.parse.__doc__ or '').splitlines()[0]}"
                        for f in FORMATS.values()))
        return 0
    wrong = 0
    if options.bombs:
        for name, (form, _) in BOMBS.items():
            if form in chosen:
                bug, seconds, megabytes = strangers.explode(name)
                wrong += bool(bug)
                print(f"{name:55}{seconds:7.2f} s{megabytes:7} MB  {bug}", flush=True)
        return int(wrong > 0)
    print(f"{'format':14}{'cases':>9}{'refused':>9}{'seconds':>9}{'slowest':>9}{'bugs':>6}")
    for name in chosen:
        share = options.seconds / len(chosen)
        cases, refused, slowest, bugs = fuzz(FORMATS[name], share, options.seed, options.out)
        wrong += len(bugs)
        print(f"{name:14}{cases:9,}{refused:9,}{share:9.0f}{slowest:9.2f}{len(bugs):6}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
