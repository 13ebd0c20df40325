"""tgx.adapter.debuglog: what DEBUG prints, read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tgx import codec
from tgx.adapter import debuglog
from tgx.errors import BadInput

CUDA = """\
scheduled     2 kernels in    12.50 ms | CACHE MISS ba0d3aea |     723 uops in cache | /home/x/train.py:14
\x1b[32m*** CUDA       1\x1b[0m \x1b[33mcopy     4.00 KB,    CUDA <- PYTHON \x1b[0m            arg  2 mem   0.00 GB tm     79.74us/     0.08ms (      0 GFLOPS    0|0      GB/s)
r_64_16                   opts: (Opt(op=OptOps.UPCAST, axis=0, arg=4), Opt(op=OptOps.LOCAL, axis=0, arg=16))
#define INFINITY (__int_as_float(0x7f800000))
extern "C" __global__ void __launch_bounds__(16) r_64_16(float* data0_64, float* data1_1024) {
  int gidx0 = blockIdx.x;
  *(data0_64+gidx0) = 1.0f;
}
#define INFINITY (__int_as_float(0x7f800000))
extern "C" __global__ void E_64(float* data0_64) {
  *(data0_64+0) = 1.0f;
}
\x1b[32m*** CUDA       2\x1b[0m r\x1b[90m_\x1b[0m\x1b[34m64\x1b[0m\x1b[90m_\x1b[0m\x1b[31m16\x1b[0m                                  arg  2 mem   0.01 GB tm     10.00us/     0.09ms (    200 GFLOPS   50|60     GB/s)
loss 2.30
*** CUDA       3 r_64_16                                        arg  2 mem   0.01 GB tm     30.00us/     0.12ms (     67 GFLOPS   17|20     GB/s)
*** CUDA       4 E_64                                           arg  1 mem   0.01 GB tm      2.00ms/     2.12ms (      0 GFLOPS    0|0      GB/s)
"""  # noqa: E501  (as tinygrad prints it)


@pytest.mark.pure
def test_a_cuda_log_without_a_gpu() -> None:
    trace = debuglog.parse(CUDA, "gpu.log")
    copy, reduce, fill = trace.kernels
    assert (copy.kind, copy.program, copy.tinygrad_name) == (
        "copy",
        -1,
        "copy     4.00 KB,    CUDA <- PYTHON",
    )
    assert (reduce.name, reduce.device) == ("r_64_16", "CUDA")
    timing = trace.timing(reduce.id)
    assert timing is not None
    assert (timing.calls, timing.min_us, timing.total_us) == (2, 10.0, 40.0)
    assert trace.time_us(fill.id) == 2000.0
    assert reduce.flops == 2_000_000 and reduce.bytes == 500_000
    program = trace.program(reduce.program)
    source = program.pane("source")
    assert source is not None and "gidx0 = blockIdx.x" in source.text
    assert "E_64" not in source.text and source.text.startswith("#define")
    assert [(o.op, o.axis, o.amount) for o in program.opts] == [("UPCAST", 0, 4), ("LOCAL", 0, 16)]
    assert "loss 2.30" not in str(trace.programs)
    (event,) = trace.events
    assert trace.place(event.frame) == "train.py:14"
    assert "no source lines" in trace.environment.missing[0]
    assert codec.loads(codec.dumps(trace)) == trace


@pytest.mark.pure
@pytest.mark.parametrize("text", ["", "hello\nworld\n", "***", "\x00" * 100, "<html>"])
def test_what_is_no_log_says_so(text: str) -> None:
    with pytest.raises(BadInput, match="no kernel launch"):
        debuglog.parse(text)


@pytest.mark.pure
def test_missing_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        debuglog.read(tmp_path / "none.log")
    (tmp_path / "log").write_text(CUDA)
    monkeypatch.setattr(debuglog, "MOST_BYTES", 100)
    with pytest.raises(BadInput, match="more than"):
        debuglog.read(tmp_path / "log")


@pytest.mark.pure
@given(st.lists(st.sampled_from(CUDA.splitlines()) | st.text(max_size=60), max_size=12))
@settings(max_examples=80, deadline=None)
def test_lines_in_any_order_never_break_it(lines: list[str]) -> None:
    try:
        debuglog.parse("\n".join(lines))
    except BadInput:
        pass


SCRIPT = """
from tinygrad import Tensor, TinyJit
a = Tensor([[1.0, 2.0], [3.0, 4.0]]).realize()
for _ in range(2):
    (a @ a).relu().sum(0).realize()
print("*** not a kernel")
@TinyJit
def g(x):
    return (x * 2 + 1).realize()
for _ in range(4):
    g(a)
"""


def log_and_trace(tmp_path: Path, device: str, level: int) -> tuple[str, Path]:
    """One run that prints a log and records a trace: both tell of the same launches."""
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    env = {
        **os.environ,
        "DEV": device,
        "DEBUG": str(level),
        "PARALLEL": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tgx", "trace", "-o", str(tmp_path / "out"), str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, tmp_path / "out"


@pytest.mark.parametrize("device", ["TGX", "CPU:CLANG"])
def test_a_log_tells_what_the_live_trace_tells(tmp_path: Path, device: str) -> None:
    import shutil

    if device == "CPU:CLANG" and not shutil.which("clang"):
        pytest.skip("stock tinygrad's CPU device needs clang")
    text, folder = log_and_trace(tmp_path, device, 7)
    live = codec.read(folder)
    for level in (2, 4, 7):  # the lower levels print fewer of the same lines
        kept = [
            line
            for line in text.splitlines()
            if level > 2 or line.lstrip("\r\x1b[0123456789m").startswith(("***", "scheduled"))
        ]
        log = debuglog.parse("\n".join(kept))
        assert debuglog.names_and_counts(log) == debuglog.names_and_counts(live)
        for k in log.kernels:
            times = [r.time_us for r in log.runs if r.kernel == k.id]
            same = [
                r.time_us
                for r in live.runs
                if live.kernel(r.kernel).tinygrad_name == k.tinygrad_name and r.clock == "device"
            ]
            if k.kind == "kernel":
                assert times == pytest.approx(same, rel=0.01, abs=0.006)
        if level == 7:
            kernels = [p for p in log.programs if p.pane("source")]
            assert len(kernels) == len(log.programs)
            assert all(p.pane("asm") for p in kernels)
