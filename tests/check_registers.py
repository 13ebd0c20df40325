"""Compile every kernel of the guide's models for every Jetson's architecture, and compare what tgx
reads in the cubins with what NVIDIA's ptxas says. Not a test of CI's: it needs the compilers.

    python -m pip install 'tinygrad-tgx[cuda]' 'nvidia-cuda-nvcc-cu12>=12.9,<13' \
        'nvidia-cuda-nvcc>=13,<14'
    python tests/check_registers.py                       # all; about ten minutes on two cores
    python tests/check_registers.py --archs sm_87 --models mlp --batches 1

For each kernel: registers, stack, shared memory and barriers, from the cubin that NVRTC made and
from `ptxas -v` on the PTX of the same compilation.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("DEV", "NULL")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ARCHS = "sm_53,sm_62,sm_72,sm_87,sm_90,sm_110"


def assemblers() -> dict[int, Path]:
    """ptxas by the major version of its CUDA."""
    found = {}
    for folder in map(Path, sys.path):
        for major, name in ((12, "cuda_nvcc"), (13, "cu13")):
            path = folder / "nvidia" / name / "bin" / "ptxas"
            if path.is_file():
                found[major] = path
    return found


def ptxas(path: Path, ptx: str, arch: str) -> tuple[int, int, int, int]:
    """Registers, stack, shared memory and barriers, from what ptxas prints."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "k.ptx")
        source.write_text(ptx)
        command = [path, "-v", f"-arch={arch}", source, "-o", Path(folder, "k.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr

    def number(pattern: str) -> int:
        match = re.search(pattern, text)
        return int(match[1]) if match else 0

    return (
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes smem"),
        number(r"used (\d+) barriers"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=ARCHS)
    parser.add_argument("--models", default="mlp,cnn,mlp-train,cnn-train")
    parser.add_argument("--batches", default="1,32", help="for inference; training is at 128")
    args = parser.parse_args()

    from tgx.adapter import nvrtc, offline
    from tgx.hardware.kernel import GpuKernel

    sys.path.insert(0, str(EXAMPLES))
    with offline.catching():
        models = offline.models_of(runpy.run_path(str(EXAMPLES / "mnist.py"), run_name="models"))
    captured = []
    for name in args.models.split(","):
        batches = [128] if name.endswith("-train") else map(int, args.batches.split(","))
        captured += [offline.capture_model(*models[name], batch) for batch in batches]
    compared = compiled = spilled = 0
    for arch in args.archs.split(","):
        started = time.perf_counter()
        seen, wrong = {}, 0
        for step in captured:
            for kernel in offline.lower(step, arch):
                if isinstance(kernel, GpuKernel):
                    seen[kernel.source] = kernel
        for kernel in seen.values():
            spilled += kernel.stack > 0
            tool = assemblers().get(nvrtc.compiler_for(arch).version[0])
            if tool is None:
                continue
            ours = (kernel.registers, kernel.stack, kernel.shared, kernel.barriers)
            theirs = ptxas(tool, kernel.ptx, arch)
            compared += 1
            if ours != theirs:
                wrong += 1
                print(f"  {arch} {kernel.name}: tgx {ours}, ptxas {theirs}")
        compiled += len(seen)
        seconds = time.perf_counter() - started
        print(f"{arch}: {len(seen)} kernels compiled, {wrong} differ from ptxas, {seconds:.0f} s")
    print(f"{compiled} compiled, {compared} compared with ptxas -v, {spilled} use the stack")


if __name__ == "__main__":
    main()
