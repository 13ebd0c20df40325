"""What `tgx profile` found, as a trace: it opens in the explorer, and `tgx compare` sets it beside
a trace from any device.

The kernels are those of the profiled steps. Predicted ones get the programs they become on the
board: what tinygrad decided, CUDA C, PTX, and machine code where nvdisasm is installed. Measured
ones get their times.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinygrad.uop.ops import UOp

from tgx import model
from tgx.adapter import compiling, offline
from tgx.adapter.capture import Session
from tgx.adapter.timing import Named
from tgx.hardware.kernel import Copy, GpuKernel
from tgx.hardware.measured import Measurement
from tgx.hardware.profiles import Machine
from tgx.passes.select import select

PATIENCE = 60.0  # seconds for nvdisasm


def traced(
    watch: Session,
    steps: Sequence[Named],
    machine: Machine | None = None,
    lowered: Sequence[Sequence[GpuKernel | Copy]] | None = None,
    measurement: Measurement | None = None,
) -> model.Trace:
    """`watch` has stopped; `lowered` and `machine` are of a prediction, `measurement` of a run."""
    trace = watch.trace()
    ids = {id for named in steps for id in named.step.ids if id >= 0}
    trace = replace(select(trace, kernels=ids), runs=(), realizes=(), timings=(), memory=())
    if machine is not None and lowered is not None:
        trace = on_board(trace, steps, machine, lowered)
    if measurement is None:
        note = "nothing was measured: the kernels are as they would be, and were not run"
        return replace(trace, environment=replace(trace.environment, missing=(note,)))
    timings = {
        k.kernel: model.Timing(k.kernel, len(k.times.us), sum(k.times.us), k.times.low, k.times.p50)
        for step in measurement.steps
        for k in step.kernels
        if k.kernel in ids
    }
    return replace(trace, timings=tuple(timings[id] for id in sorted(timings)))


def on_board(
    trace: model.Trace,
    steps: Sequence[Named],
    machine: Machine,
    lowered: Sequence[Sequence[GpuKernel | Copy]],
) -> model.Trace:
    """The trace with each kernel's program as it is on the board, and no other program."""
    renderer = offline.renderer_for(machine.arch)
    programs: dict[tuple[str, bytes], model.Program] = {}
    of_kernel: dict[int, model.Program] = {}
    for named, launches in zip(steps, lowered, strict=True):
        for call, id, launch in zip(named.step.calls, named.step.ids, launches, strict=False):
            if id < 0 or isinstance(launch, Copy):
                continue
            key = launch.source, call.src[0].key
            if key not in programs:
                programs[key] = program(len(programs), launch, call.src[0], renderer)
            of_kernel[id] = programs[key]
    kernels = tuple(
        k
        if k.kind == "copy"
        else replace(k, device="CUDA", program=-1)
        if (p := of_kernel.get(k.id)) is None
        else replace(k, device="CUDA", program=p.id, tinygrad_name=p.name, flops=p.flops,
                     bytes=p.bytes)
        for k in trace.kernels
    )  # fmt: skip
    name = f"CUDA, {machine.arch}: {machine.name} {machine.mode}".rstrip()
    return replace(
        trace,
        kernels=kernels,
        programs=tuple(programs.values()),
        passes=tuple(p for p in trace.passes if p.program < 0),
        environment=replace(trace.environment, device=name),
    )


def program(
    number: int, kernel: GpuKernel, ast: UOp, renderer: offline.OfflineRenderer
) -> model.Program:
    opts, loops = compiling.decisions(ast, renderer)
    facts = (
        ("registers", str(kernel.registers)),
        ("shared memory", f"{kernel.shared} B"),
        ("stack", f"{kernel.stack} B"),
        ("code", f"{kernel.code} B"),
    )
    code = [model.Code("source", kernel.source, "c"), model.Code("ptx", kernel.ptx, "ptx")]
    if sass := disassembled(kernel.cubin):
        code.append(model.Code("sass", sass, "asm"))
    code[-1] = replace(code[-1], facts=facts)
    return model.Program(
        number,
        function_name(kernel),
        "CUDA",
        ast.key.hex()[:16],
        global_size=tuple(map(str, kernel.grid)),
        local_size=tuple(map(str, kernel.block)),
        loops=loops,
        opts=opts,
        code=tuple(code),
        flops=kernel.work.flops,
        bytes=kernel.work.bytes,
        lds_bytes=kernel.work.traffic,
    )


def function_name(kernel: GpuKernel) -> str:
    """tinygrad's own name, r_64_8, as its source has it."""
    _, _, rest = kernel.source.partition("__global__ void ")
    return rest.partition(") ")[2].partition("(")[0].strip() or kernel.name


def disassembled(cubin: bytes) -> str:
    """Machine code as text, by NVIDIA's own disassembler; "" where there is none, or where it has
    dropped the architecture (13 knows none before sm_75)."""
    tool = shutil.which("nvdisasm")
    if tool is None or not cubin:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        try:
            done = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True,
                                  errors="replace", timeout=PATIENCE)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return ""
    return "" if done.returncode else done.stdout
