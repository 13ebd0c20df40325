"""Write tests/recorded/cubins: small kernels for every Jetson's architecture, as NVRTC compiles
them, beside what NVIDIA's ptxas says of them. The tests read these files and need no CUDA.

    python -m pip install 'tinygrad-tgx[cuda]' 'nvidia-cuda-nvcc-cu12>=12.9,<13' \
        'nvidia-cuda-nvcc>=13,<14'
    python tests/record_cubins.py
"""

from __future__ import annotations

import json
from pathlib import Path

from check_registers import ARCHS, assemblers, ptxas

from tgx.adapter import nvrtc

HERE = Path(__file__).parent / "recorded" / "cubins"

# Shared memory, two barriers, a stack that a computed index forces, a limit on its threads.
SOURCE = """
extern "C" __global__ void __launch_bounds__(96) mixed(float *out, const float *in, int n) {
  __shared__ float tile[100];
  float mine[24];
  for (int i = 0; i < 24; i++) mine[i] = in[i * 96 + threadIdx.x];
  tile[threadIdx.x] = mine[n % 24];
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < n; i++) { sum += mine[(i * n) % 24] * tile[(threadIdx.x + i) % 96]; }
  __syncthreads();
  out[blockIdx.x * 96 + threadIdx.x] = sum;
}
"""
PLAIN = 'extern "C" __global__ void plain(float *a) { a[threadIdx.x] *= 2; }'


def main() -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    facts = {}
    for name, source, archs in (("mixed", SOURCE, ARCHS), ("plain", PLAIN, "sm_53,sm_87,sm_110")):
        for arch in archs.split(","):
            compiler = nvrtc.compiler_for(arch)
            cubin, ptx = compiler.compile(source, arch)
            (HERE / f"{name}.{arch}.cubin").write_bytes(cubin)
            registers, stack, shared, barriers = ptxas(
                assemblers()[compiler.version[0]], ptx, arch
            )
            facts[f"{name}.{arch}"] = {
                "registers": registers, "stack": stack, "shared": shared, "barriers": barriers,
                "max_threads": 96 if name == "mixed" else 0,
            }  # fmt: skip
    (HERE / "ptxas.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
