"""Writes devices/README.md: one kernel, from tinygrad's UOps to the call, with the real text.

    python -m tgx.devices.walk              print the page
    python -m tgx.devices.walk --check      exit 1 if devices/README.md is not what this prints

The kernel is compiled for one named CPU (x86-64-v3, AVX2), so that the page is the same everywhere.
"""
from __future__ import annotations

import argparse
import re
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from tinygrad import Tensor
from tinygrad.codegen import full_rewrite_to_sink
from tinygrad.codegen.late.linearizer import linearize
from tinygrad.codegen.opt.postrange import Scheduler
from tinygrad.helpers import Context, Target
from tinygrad.uop.ops import Ops, UOp
from tinygrad.uop.render import pyrender

from tgx.devices import contract
from tgx.devices.plan import Machine
from tgx.devices.record import record_of
from tgx.devices.renderer import TGXRenderer

ARCH = "x86_64,x86-64-v3"

PAGE = """# The device, in an afternoon

<!-- python -m tgx.devices.walk > devices/README.md -->

TGX turns a kernel of tinygrad's into machine code and runs it. This page follows one kernel all
the way; every block below is what the code prints (`python -m tgx.devices.walk`).

| file | what it is |
|---|---|
{files}

Read them in this order. The kernel:

```python
x, w = Tensor.empty(64, 784), Tensor.empty(784, 256)   # the guide's first layer
(x @ w).relu()
```

## 1. What tinygrad hands over

tinygrad's scheduler has fused the product, the sum and the relu into one kernel. It is a graph of
UOps: `RANGE` is a loop, `INDEX` a place in a buffer, `REDUCE` a sum over a loop.

```python
{ast}
```

## 2. Two ways from here

`TGXRenderer.optimize` (renderer.py) is asked first. It tries the **tile** path; where that does not
apply it says why, and the kernel goes the **loops** path. `DEBUG=3` prints which, for every kernel.

### The loops path: one row per UOp

tinygrad lowers the graph to a list of UOps in the order they will run. Indentation shows the loops:

```
{uops}
```

`renderer.py` writes LLVM IR for it, one row of the table `EMIT` for each UOp, top to bottom:

```llvm
{ir}
```

The second function is the entry every kernel has, whatever its arguments: it unpacks the argument
words. LLVM optimizes the module and makes machine code of it (`compiler.py`). The innermost loop:

```asm
{asm}
```

### The tile path: recover, plan, emit

A matrix product deserves better: every value loaded once should be used many times. `recover.py`
recovers what the kernel computes, not by matching patterns but by trying every point of its
index expressions. (Here that is easy; the gradient of a convolution is where it earns its keep.)

```
{nest}
```

`plan.py` decides how to run it: which axis fills the lanes of a vector, which outputs are kept in
registers together, in which order the loops go, and how the work is cut for threads:

```
{plan}
```

`emit.py` writes that as LLVM IR, and the innermost loop of the machine code becomes

```asm
{tile_asm}
```

## 3. The call

`TGXProgram` (ops_tgx.py) writes one word per argument, and one job of three words:

```
{call}
```

`tgx_run` (runtime.ll) walks an array of such jobs. A job of several chunks is shared with the
threads of the pool; what is in a chunk is decided by shapes alone, so the result is the same for
any number of threads. `TinyJit` makes one array of a whole training step (`graph.py`), so that a
step is a single call.

## 4. What it did

`TGX_COUNT=1` counts the loads, stores, bytes and flops of every kernel, on either path, and models
the misses of two caches (`counting.py`); `tgx trace` keeps them, buffer by buffer.

On the guide's networks tinygrad estimates that a training step loads and stores 274 MB (MLP) and
7.1 GB (CNN): TGX moves 54 and 414 MB, because a tile of outputs stays in registers. Of the flops
6 and 13 % are not needed (taps outside of a padded image; what Adam computes once, not for every
element), but a cross entropy takes four to seven times its estimate, where an exp is one operation.
"""

FILES = {
    "ops_tgx.py": "the device: memory, programs, and how they are put together",
    "renderer.py": "UOps → LLVM IR, one row per operation",
    "compiler.py": "LLVM IR → object code → code in memory, through llvmlite",
    "runtime.ll": "the native loop over kernels, and the thread pool",
    "threads.py": "starts the pool, calls the native loop",
    "graph.py": "a TinyJit batch as one native call",
    "nest.py": "tile path: a kernel as plain data, a loop nest",
    "recover.py": "tile path: what does this kernel compute?",
    "points.py": "tile path: index expressions, point by point",
    "plan.py": "tile path: how should it run?",
    "model.py": "tile path: what a plan would cost",
    "merge.py": "tile path: nests with other axes",
    "emit.py": "tile path: the plan as LLVM IR, loops and tiles",
    "values.py": "tile path: expressions, loads, masks, operations",
    "exp2.py": "2**x, the same on both paths",
    "writer.py": "tile path: writing IR as text",
    "contract.py": "tile path: the front door",
    "record.py": "which path a kernel took, and why",
    "parse.py": "LLVM IR text as data, for passes over finished kernels",
    "counting.py": "TGX_COUNT=1: counters put into a kernel's IR, and what each stands for",
    "counts.py": "TGX_COUNT=1: the device's classes that count, and the table at the end",
    "counting.ll": "TGX_COUNT=1: a model of two caches",
    "instrument.py": "checked kernels: the pass over their IR (TGX_CHECK=1)",
    "check.ll": "what checked kernels call",
    "checking.py": "checked kernels: memory that was written, and what failed",
    "optimize.py": "the one function of tinygrad the device replaces",
    "cache.py": "finished programs on disk",
}


@dataclass(frozen=True)
class Stages:
    """The text of each stage of one kernel."""
    ast: str
    uops: str
    ir: str
    asm: str
    nest: str
    plan: str
    tile_asm: str
    call: str


def stages() -> Stages:
    renderer = TGXRenderer(Target("TGX", "", ARCH))
    x, w = Tensor.empty(64, 784, device="NULL"), Tensor.empty(784, 256, device="NULL")
    calls = (x @ w).relu().schedule_linear().src
    ast = next(c.src[0] for c in calls if c.src[0].op is Ops.SINK)
    with Context(NOOPT=1):
        lowered = linearize(full_rewrite_to_sink(ast, renderer))
    ir = renderer.render(list(lowered))
    ir = "\n".join(line for line in ir.splitlines() if not line.startswith("; tgx"))
    compiler = renderer.compiler
    tile = contract.optimize(Scheduler(simplified(ast, renderer), renderer),
                             Machine.of(compiler.vector_bytes, compiler.architecture))
    source = next(u.arg for u in tile.get_optimized_ast().toposort() if u.op is Ops.CUSTOM)
    record = record_of(source)
    assert record is not None
    words = array("q", [0x7F00_0000_0000, 0x7F00_0001_0000, 0x7F00_0002_0000])
    call = "\n".join([
        "words  " + "  ".join(f"{v:#x}" for v in words) + "      output, x, w",
        "job    <address of the kernel>  <address of words>  1      one chunk"])
    return Stages(kernel_text(ast), listing(lowered), ir, hot_loop(compiler.assembly(ir)),
                  record.nest, record.tile, hot_loop(compiler.assembly(source)), call)


def simplified(ast: UOp, renderer: TGXRenderer) -> UOp:
    """The kernel as `optimize` sees it: after tinygrad's own simplifications."""
    seen: list[UOp] = []

    class Watching(TGXRenderer):
        def optimize(self, k: Scheduler) -> Scheduler | None:
            seen.append(k.ast)
            return None

    full_rewrite_to_sink(ast, Watching(renderer.target))
    return seen[0]


def kernel_text(ast: UOp) -> str:
    text = pyrender(ast.replace(arg=None))
    text = re.sub(r"UOp\.const\((-?[\d.]+), dtypes\.\w+\)", r"\1", text)
    return re.sub(r", device='NULL'", "", text)


def listing(uops: list[UOp]) -> str:
    """A line per UOp: its number, what it is, and the numbers of its sources."""
    number, lines, depth = {}, [], 0
    for u in uops:
        if u.op is Ops.CONST:
            continue
        depth -= u.op is Ops.END
        number[u] = len(number)
        value = u.src[0].val if u.op is Ops.CAST and u.src[0].op is Ops.CONST else None
        sources = " ".join(str(number[s]) for s in u.src if s in number)
        what = f"= {value}" if value is not None else sources
        lines.append(f"{number[u]:3d} {'  ' * depth}{u.op.name} {u.dtype.name} {what}".rstrip())
        depth += u.op is Ops.RANGE
    return "\n".join(lines)


def hot_loop(assembly: str, most: int = 30) -> str:
    """The innermost loop with most multiplications: from a label to the jump back to it."""
    lines = [line.split("#")[0].rstrip() for line in assembly.splitlines()]
    best: list[str] = []
    for end, line in enumerate(lines):
        if (jump := re.match(r"\tj\w+\t(\.LBB\w+)$", line)) is None:
            continue
        starts = [i for i in range(end) if lines[i] == jump.group(1) + ":"]
        body = lines[starts[0]:end + 1] if starts else []
        if any(x.startswith(".LBB") for x in body[1:]):
            continue  # not an innermost one
        best = max(best, body, key=lambda text: sum("mul" in x or "fma" in x for x in text))
    if not best:  # LLVM has unrolled all of it
        best = [x for x in lines if re.match(r"\tv?(fma|mul|mov|broadcast|max)", x)]
    kept = [x for x in best if x.strip() and not x.startswith("\t.")]
    return "\n".join(kept[:most] + (["\t…"] if len(kept) > most else [])).expandtabs(8)


def page() -> str:
    rows = [f"| [{name}]({name}) | {what} |" for name, what in FILES.items()]
    return PAGE.format(files="\n".join(rows), **vars(stages()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tgx.devices.walk", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with devices/README.md")
    text = page()
    if not parser.parse_args().check:
        print(text, end="")
        return 0
    same = (Path(__file__).parent / "README.md").read_text() == text
    if not same:
        print("devices/README.md is out of date; python -m tgx.devices.walk > devices/README.md",
              file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
