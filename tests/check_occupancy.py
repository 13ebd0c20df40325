"""Compare tgx's occupancy arithmetic with NVIDIA's own, on random kernels. Not a test of CI's: it
needs g++ and NVIDIA's header, which comes with a pip package.

    python -m pip install 'nvidia-cuda-runtime>=13,<14'
    python tests/check_occupancy.py 20000
    python tests/check_occupancy.py 400 --record tests/recorded/occupancy.csv

It builds a small C++ program around cuda_occupancy.h, asks both the same questions, and counts
where they differ: blocks per SM, and each limiting resource. --record writes NVIDIA's answers to a
file, which the tests read.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tgx.hardware.occupancy import LIMITS, occupancy

HEAD = "arch,threads,registers,shared,barriers,blocks,limits"
BITS = {1: "warps", 2: "registers", 4: "shared memory", 8: "blocks", 16: "barriers"}

PROGRAM = r"""
#include <climits>
#include <cstdio>
#include <cstring>
#include "cuda_occupancy.h"
int main() {
  int arch, threads, regs, shared, barriers, t_sm, r_sm, r_block, s_sm, reserved;
  while (scanf("%d %d %d %d %d %d %d %d %d %d", &arch, &threads, &regs, &shared, &barriers,
               &t_sm, &r_sm, &r_block, &s_sm, &reserved) == 10) {
    cudaOccDeviceProp p; cudaOccFuncAttributes a; cudaOccDeviceState s; cudaOccResult r;
    p.computeMajor = arch / 10; p.computeMinor = arch % 10; p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = t_sm; p.regsPerBlock = r_block; p.regsPerMultiprocessor = r_sm;
    p.warpSize = 32; p.sharedMemPerBlock = 49152; p.sharedMemPerMultiprocessor = s_sm;
    p.numSms = 8; p.sharedMemPerBlockOptin = 49152; p.reservedSharedMemPerBlock = reserved;
    a.maxThreadsPerBlock = INT_MAX; a.numRegs = regs; a.sharedSizeBytes = shared;
    a.numBlockBarriers = barriers;
    int e = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, 0);
    if (e) printf("error %d\n", e);
    // Not r.limitingFactors: where barriers lower the number, it keeps what limited it before.
    int n = r.activeBlocksPerMultiprocessor;
    if (!e) printf("%d %d\n", n, (n == r.blockLimitWarps) | (n == r.blockLimitRegs) << 1 |
                   (n == r.blockLimitSharedMem) << 2 | (n == r.blockLimitBlocks) << 3 |
                   (n == r.blockLimitBarriers) << 4);
  }
}
"""


def header() -> Path:
    for folder in map(Path, sys.path):
        for name in ("cu13", "cuda_runtime"):  # CUDA 12's header does not know sm_110
            if (folder / "nvidia" / name / "include" / "cuda_occupancy.h").is_file():
                return folder / "nvidia" / name / "include"
    sys.exit("no cuda_occupancy.h: python -m pip install 'nvidia-cuda-runtime>=13,<14'")


def questions(count: int, seed: int) -> list[tuple[int, int, int, int, int]]:
    rng = random.Random(seed)
    edges = (0, 1, 255, 256, 257, 1023, 1024, 16_384, 32_768, 48_128, 49_152, 49_153, 60_000)
    return [
        (
            rng.choice(list(LIMITS)),
            rng.choice((rng.randint(1, 1100), 32 * rng.randint(1, 32))),
            rng.choice((rng.randint(0, 260), 8 * rng.randint(1, 8), rng.randint(0, 40))),
            rng.choice((0, rng.randint(0, 50_000), rng.choice(edges))),
            rng.randint(0, 4),
        )
        for _ in range(count)
    ]


def nvidia(asked: list[tuple[int, int, int, int, int]]) -> list[tuple[int, int]]:
    """NVIDIA's answers: blocks per SM, and its bits for what limits them."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "occupancy.cpp"), Path(folder, "occupancy")
        source.write_text(PROGRAM)
        subprocess.run(["g++", "-O1", "-w", f"-I{header()}", "-o", program, source], check=True)
        lines = []
        for row in asked:
            sm = LIMITS[row[0]]
            facts = (sm.threads, sm.registers, sm.registers_block, sm.shared, sm.shared_reserved)
            lines.append(" ".join(map(str, (*row, *facts))))
        out = subprocess.run([program], input="\n".join(lines), text=True, capture_output=True)
    answers = out.stdout.splitlines()
    if len(answers) != len(asked) or any(line.startswith("error") for line in answers):
        sys.exit(f"NVIDIA's calculator refused a question: {set(answers) & {'error 1', 'error 2'}}")
    return [(int(a), int(b)) for a, b in (line.split() for line in answers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    asked = questions(args.count, args.seed)
    rows, wrong = [HEAD], 0
    for row, (blocks, bits) in zip(asked, nvidia(asked), strict=True):
        names = tuple(name for bit, name in BITS.items() if bits & bit)
        ours = occupancy(LIMITS[row[0]], *row[1:])
        if (ours.blocks, set(ours.limited_by)) != (blocks, set(names)):
            wrong += 1
            if wrong <= 10:
                print(row, "NVIDIA:", blocks, names, "tgx:", ours)
        rows.append(",".join(map(str, (*row, blocks, "+".join(names)))))
    if args.record:
        args.record.write_text("\n".join(rows) + "\n")
    print(f"{len(asked) - wrong} of {len(asked)} equal")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
