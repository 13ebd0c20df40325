"""Compile a tinygrad program's kernels for an NVIDIA GPU that is not here.

The schedule is made on any device (`capture`), then each kernel is lowered as a real `DEV=CUDA`
would lower it (`lower`): by tinygrad's own CUDARenderer, whose target says device "CUDA" and the
board's architecture, and compiled by NVRTC from pip packages. `DEV=NULL:CUDA:sm_87` is not the
same: there the target's device is "NULL", which skips the gate that keeps 32-bit floats off the
tensor cores unless ALLOW_TF32 is set, and some kernels come out differently.

One difference to a board remains: tinygrad hands the driver PTX, and the driver's own assembler
makes the machine code; here NVRTC's does. Registers can differ by what one assembler's version
does otherwise than another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tinygrad import Context, Device, Tensor
from tinygrad.codegen import to_program, to_program_config
from tinygrad.codegen.opt import tc
from tinygrad.device import Compiler
from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.engine import realize
from tinygrad.helpers import CCACHE, Target, diskcache_get, diskcache_put
from tinygrad.renderer.cstyle import CStyleLanguage, CUDARenderer
from tinygrad.uop.ops import GroupOp, Ops, UOp, sym_infer

from tgx.adapter import compat, nvrtc
from tgx.errors import BadInput
from tgx.hardware import cubin
from tgx.hardware.kernel import Chain, Copy, GpuKernel, Work

CACHE = "tgx_offline_3"  # raise the number when what is stored changes


# **************** capture ****************


@dataclass(frozen=True)
class Captured:
    """A program's kernels in launch order, not yet lowered, and the values of its variables."""

    calls: tuple[UOp, ...]
    variables: dict[str, int]


class _Catcher:
    """What tinygrad hands its schedules to instead of running them, as it does for TinyJit."""

    def __init__(self) -> None:
        self.calls: list[UOp] = []
        self.variables: dict[str, int] = {}

    def add_linear(self, linear: UOp, variables: dict[str, int]) -> None:
        self.calls += _flat(linear)
        self.variables |= variables


def _flat(linear: UOp) -> Iterator[UOp]:
    for call in linear.src:
        if call.op is Ops.LINEAR:
            yield from _flat(call)
        else:
            yield call


@contextmanager
def catching() -> Iterator[_Catcher]:
    """Within this, nothing that is realized runs: the schedules are collected."""
    if realize.capturing:
        raise BadInput("a schedule cannot be captured inside a TinyJit", "a plain function")
    catcher = _Catcher()
    realize.capturing.append(catcher)
    try:
        yield catcher
    finally:
        realize.capturing.clear()


def capture(step: Callable[..., Any], inputs: Sequence[Any] = ()) -> Captured:
    """The kernels that `step(*inputs)` launches. Tensors it returns are realized, as TinyJit does;
    a TinyJit itself is looked into."""
    function = getattr(step, "fxn", None) or step
    Tensor.realize(*(value for value in inputs if isinstance(value, Tensor)))
    with catching() as catcher:
        lazy = list(_tensors(function(*inputs)))
        if lazy:
            Tensor.realize(*lazy)
    return Captured(tuple(catcher.calls), catcher.variables)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


# **************** lowering ****************


class OfflineCompiler(Compiler):
    """NVRTC for one architecture, as tinygrad's compiler; keeps the PTX of what it compiled last.

    It has no cache of its own: `lower` keeps whole results.
    """

    def __init__(self, arch: str) -> None:
        super().__init__(None)
        self.arch, self.nvrtc, self.ptx = arch, nvrtc.compiler_for(arch), ""

    def compile(self, src: str) -> bytes:
        binary, self.ptx = self.nvrtc.compile(src, self.arch)
        return binary


class OfflineRenderer(CUDARenderer):
    """tinygrad's CUDA renderer for a GPU that is elsewhere.

    CUDARenderer's own constructor would look for the system's NVRTC; the rest of it is used as it
    stands, and the target is what `DEV=CUDA` on the board has.
    """

    def __init__(self, target: Target) -> None:
        CStyleLanguage.__init__(self, target)
        self.compiler = OfflineCompiler(target.arch)
        self.tensor_cores = tc.get_cuda(target.arch)


def renderer_for(arch: str) -> OfflineRenderer:
    compat.check()
    return OfflineRenderer(Target("CUDA", "CUDA", arch))


def lower(captured: Captured, arch: str) -> list[GpuKernel | Copy]:
    """Every launch of a program, compiled for `arch`, in order. Equal kernels are compiled once."""
    renderer = renderer_for(arch)
    return [_lower_call(call, renderer, captured.variables) for call in captured.calls]


def _lower_call(
    call: UOp, renderer: OfflineRenderer, variables: dict[str, int]
) -> GpuKernel | Copy:
    ast = call.src[0]
    if ast.op is not Ops.SINK:
        buffer = call.src[1]
        size = buffer.max_numel() * buffer.dtype.itemsize
        return Copy(ast.op.name.lower(), size)
    used = {v.expr: variables.get(v.expr, v.vmax) for v in ast.variables()}
    key = _key(ast, renderer, used)
    record = diskcache_get(CACHE, key) if CCACHE else None
    if record is None:
        record = asdict(_compile(ast, renderer, used))
        if CCACHE:
            diskcache_put(CACHE, key, record)
    work, chain = Work(**record.pop("work")), Chain(**record.pop("chain"))
    return GpuKernel(work=work, chain=chain, **record)


def _key(ast: UOp, renderer: OfflineRenderer, variables: dict[str, int]) -> str:
    parts = (
        ast.key.hex(),
        renderer.compiler.arch,
        renderer.compiler.nvrtc.version,
        compat.version(),
        sorted(variables.items()),
        [variable.value for variable in to_program_config],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _compile(ast: UOp, renderer: OfflineRenderer, variables: dict[str, int]) -> GpuKernel:
    program = to_program(ast, renderer)
    uops, source, binary = (program.src[i] for i in (1, 2, 3))
    ptx = renderer.compiler.ptx
    kernels = cubin.read(binary.arg)
    if len(kernels) != 1:
        raise BadInput(f"a cubin with {len(kernels)} kernels", "one kernel, as tinygrad compiles")
    grid, block = program.arg.launch_dims(variables)
    grid, block = tuple(int(size) for size in grid), tuple(int(size) for size in block or (1,))
    work, chain, half = count(uops.src, grid, block, variables)
    compiled = kernels[0]
    return GpuKernel(
        name=program.arg.function_name,
        arch=renderer.target.arch,
        grid=grid,
        block=block,
        work=work,
        chain=chain,
        half=half,
        registers=compiled.registers,
        shared=compiled.shared,
        stack=compiled.stack,
        barriers=compiled.barriers,
        code=compiled.code,
        source=source.arg,
        ptx=ptx,
    )


# **************** counting ****************

# Rough latencies, in cycles, only to choose which of two chains is the longer one.
_CYCLES = {"alu": 4, "memory": 500, "shared": 30, "tensor": 32, "barriers": 30}


def _weight(chain: Chain) -> int:
    cycles = _CYCLES.values()
    return sum(n * c for n, c in zip(chain.counts(), cycles, strict=True))


def count(
    uops: Iterable[UOp],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    variables: dict[str, int] | None = None,
) -> tuple[Work, Chain, bool]:
    """What a program of UOps does, over all its threads; its longest chain; is it in half?

    It walks the program once, as tinygrad's own Estimates does, and keeps instructions and chains
    beside the operations. What stands under an `if` is counted as if it always ran.
    """
    values = variables or {}
    uops = tuple(uops)
    addresses: set[UOp] = set()
    for u in uops:
        if u.op in {Ops.INDEX, Ops.SHRINK}:
            addresses |= set(UOp.sink(*u.src[1:]).toposort(lambda x: x.op is not Ops.END))

    threads = 1
    for size in (*grid, *block):
        threads *= size
    times, outer = 1, []  # how often the current line runs in one thread
    flops = tensor = instructions = traffic = 0
    touched: dict[tuple[UOp, Ops], int] = {}
    half = False
    # One entry for each open loop: the chains of the lines in it, and of the loops that ended in it
    levels: list[tuple[dict[UOp, Chain], Chain]] = [({}, Chain())]

    for u in uops:
        step = Chain()
        if u.op is Ops.RANGE:
            outer.append(times)
            times *= int(sym_infer(u.src[0], values)) if u.dtype is not dtypes.void else 1
            levels.append(({}, Chain()))
            continue
        if u.op is Ops.END:
            chains, ended = levels.pop()
            before = outer.pop()
            body = max(chains.values(), key=_weight, default=Chain()) + ended
            above, total = levels[-1]
            levels[-1] = (above, total + body * (times // before))
            times = before
            continue
        if u.op in {Ops.LOAD, Ops.STORE}:
            place = u.src[0].addrspace
            if place is not AddrSpace.REG:
                value = u if u.op is Ops.LOAD else u.src[1]
                size = u.max_numel() if u.op is Ops.LOAD else value.max_numel()
                size *= value.dtype.itemsize
                traffic += size * times * threads
                instructions += times * threads
                if (buffer := _buffer(u)) is not None:
                    touched[buffer, u.op] = min(
                        touched.get((buffer, u.op), 0) + size * _places(u.src[0], values),
                        buffer.max_numel() * buffer.dtype.itemsize,
                    )
                if u.op is Ops.LOAD:
                    step = Chain(shared=1) if place is AddrSpace.LOCAL else Chain(memory=1)
        elif u.op is Ops.WMMA:
            amount = 2 * _product(u.arg[0]) // u.arg[3] * times * threads
            flops, tensor = flops + amount, tensor + amount
            instructions += times * threads
            step = Chain(tensor=1)
        elif u.op is Ops.BARRIER:
            step = Chain(barriers=1)
        elif u.op in GroupOp.ALU:
            numbers = u.max_numel() * times * threads
            instructions += numbers
            if u not in addresses:
                flops += numbers * (2 if u.op is Ops.MULACC else 1)
                half = half or u.dtype in (dtypes.half, dtypes.bfloat16)
                step = Chain(alu=1)
        chains, _ = levels[-1]
        longest = max((chains[s] for s in u.src if s in chains), key=_weight, default=Chain())
        chains[u] = longest + step
    chains, ended = levels[-1]
    chain = max(chains.values(), key=_weight, default=Chain()) + ended
    work = Work(flops, tensor, instructions, sum(touched.values()), traffic)
    return work, chain, half


def _buffer(u: UOp) -> UOp | None:
    """The buffer of the caller's that a load or store reaches; None for shared memory."""
    while u.src and u.op is not Ops.PARAM:
        u = u.src[0]
    return u if u.op is Ops.PARAM else None


def _places(address: UOp, variables: dict[str, int]) -> int:
    """How many different places an address can take, over all threads and loops: those it does not
    depend on read the same place again."""
    places = 1
    for u in address.toposort():
        if u.op in {Ops.RANGE, Ops.SPECIAL} and u.dtype is not dtypes.void:
            places *= int(sym_infer(u.src[0], variables))
    return places


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


# **************** whole models ****************


Step = Callable[..., Any]


def models_of(namespace: dict[str, Any]) -> dict[str, tuple[Step, Step]]:
    """What a script's `tgx_models()` offers: name -> (step, make_inputs(batch))."""
    if "tgx_models" not in namespace:
        return {}
    models = namespace["tgx_models"]()
    for name, row in models.items():
        if not (isinstance(row, tuple) and len(row) == 2 and callable(row[0]) and callable(row[1])):
            raise BadInput(
                f"tgx_models()[{name!r}] is {row!r}",
                "a pair (step, make_inputs): step(*make_inputs(batch)) returns tensors",
            )
    return dict(models)


def capture_model(
    step: Callable[..., Any], make_inputs: Callable[[int], Sequence[Any]], batch: int
) -> Captured:
    """The kernels of one step at this batch size. Nothing runs on a GPU, and weights are left as
    they are: what the step assigns is not carried out."""
    with Context(BEAM=0):
        return capture(step, tuple(make_inputs(batch)))


def default_device() -> str:
    return str(Device.DEFAULT)
