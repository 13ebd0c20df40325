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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from tinygrad import Context, Tensor
from tinygrad.codegen import to_program, to_program_config
from tinygrad.codegen.opt import tc
from tinygrad.device import Compiler
from tinygrad.dtype import AddrSpace, dtypes
from tinygrad.engine import realize
from tinygrad.engine.jit import _TinyJit
from tinygrad.engine.worker import get_worker_pool
from tinygrad.helpers import CCACHE, Target, diskcache_get, diskcache_put
from tinygrad.renderer.cstyle import CStyleLanguage, CUDARenderer
from tinygrad.uop.ops import GroupOp, Ops, UOp, sym_infer

from tgx.adapter import compat, nvrtc
from tgx.adapter.capture import Session
from tgx.errors import BadInput
from tgx.hardware import cubin
from tgx.hardware.kernel import Chain, Copy, GpuKernel, Work

CACHE = "tgx_offline_5"  # raise the number when what is stored changes


Step = Callable[..., Any]

# **************** capture ****************


@dataclass(frozen=True)
class Origin:
    """What a kernel is, for people: the operations it does, and the lines that ask for them."""

    name: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runnable:
    """A step as TinyJit had it in hand: its compiled schedule, the buffers that must not be planned
    over, and its inputs. What was captured without running has none of this."""

    linear: UOp
    held: frozenset[UOp]
    inputs: tuple[UOp, ...]


@dataclass(frozen=True)
class Captured:
    """A program's kernels in launch order, not yet lowered, the values of its variables, the
    numbers that a session which recorded meanwhile gave the kernels, and how to run it."""

    calls: tuple[UOp, ...]
    variables: dict[str, int]
    ids: tuple[int, ...] = ()
    run: Runnable | None = None


class _Catcher(_TinyJit):
    """Takes schedules in place of running them, as a TinyJit does while it captures; being one, it
    is also seen by a trace that records at the same time."""

    def __init__(self, name: str) -> None:
        def nothing() -> None:
            """A TinyJit has a function; its name is what a trace calls the schedule."""

        nothing.__name__ = name
        super().__init__(nothing)
        self._linears: list[UOp] = []
        self.variables: dict[str, int] = {}

    def add_linear(self, linear: UOp, variables: dict[str, int]) -> None:
        super().add_linear(linear, variables)
        self.variables |= variables

    @property
    def calls(self) -> tuple[UOp, ...]:
        return tuple(call for linear in self._linears for call in flat(linear))


def flat(linear: UOp) -> Iterator[UOp]:
    """The launches of a schedule, with schedules inside of it opened."""
    for call in linear.src:
        if call.op is Ops.LINEAR:
            yield from flat(call)
        else:
            yield call


def highest(calls: Iterable[UOp]) -> dict[str, int]:
    """Every variable of these launches, at its highest: the most work there can be."""
    asts = (call.src[0] for call in calls if call.src[0].op is Ops.SINK)
    return {v.expr: v.vmax for ast in asts for v in ast.variables()}


@contextmanager
def catching(name: str = "captured") -> Iterator[_Catcher]:
    """Within this, nothing that is realized runs: the schedules are collected."""
    if realize.capturing:
        raise BadInput("a schedule cannot be captured inside a TinyJit", "a plain function")
    catcher = _Catcher(name)
    realize.capturing.append(catcher)
    try:
        yield catcher
    finally:
        realize.capturing.clear()


def capture(step: Step, inputs: Sequence[Any] = (), watch: Session | None = None) -> Captured:
    """The kernels that `step(*inputs)` launches. Tensors it returns are realized, as TinyJit does;
    a TinyJit itself is looked into. A session that is recording gives the kernels their names and
    source lines."""
    function = getattr(step, "fxn", None) or step
    before = parts(watch)
    with catching(name_of(function)) as catcher:
        lazy = list(tensors(function(*inputs)))
        if lazy:
            Tensor.realize(*lazy)
    calls = catcher.calls
    return Captured(calls, catcher.variables, ids_since(watch, before, len(calls)))


def name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def parts(watch: Session | None) -> int:
    """How many schedules the session has seen captured, of those no TinyJit took yet."""
    return 0 if watch is None else len(watch.jit_parts)


def ids_since(watch: Session | None, part: int, count: int) -> tuple[int, ...]:
    """The session's numbers for what was captured since its part number `part`; none where that is
    not as many launches as there are."""
    seen = [] if watch is None else watch.jit_parts[part:]
    ids = tuple(kernel for plan, _ in seen for kernel in plan.kernels)
    return ids if len(ids) == count else ()


def origins(watch: Session) -> dict[int, Origin]:
    """Names and source lines by kernel number, from a session that has stopped."""
    recorded = watch.trace()
    files = {file.id: file.path for file in recorded.files}
    return {
        k.id: Origin(k.name, tuple(f"{files[file]}:{line}" for file, line in k.lines))
        for k in recorded.kernels
    }


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


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


def lower(
    captured: Captured, arch: str, known: Mapping[int, Origin] | None = None
) -> list[GpuKernel | Copy]:
    """Every launch of a program, compiled for `arch`, in order. Equal kernels are compiled once, in
    parallel; results are kept on disk, in tinygrad's own cache."""
    renderer = renderer_for(arch)
    asts: dict[str, tuple[UOp, dict[str, int]]] = {}
    keys = []
    for call in captured.calls:
        ast = call.src[0]
        key = ""
        if ast.op is Ops.SINK:
            values = {v.expr: captured.variables.get(v.expr, v.vmax) for v in ast.variables()}
            key = _key(ast, renderer, values)
            asts[key] = ast, values
        keys.append(key)
    records = _records(asts, renderer)
    launches: list[GpuKernel | Copy] = []
    for key, call, id in zip(keys, captured.calls, captured.ids or (-1,) * len(keys), strict=True):
        if not key:
            launches.append(_copy(call))
            continue
        origin = (known or {}).get(id, Origin())
        name = origin.name or records[key].name
        launches.append(replace(records[key], name=name, lines=origin.lines))
    return launches


def _copy(call: UOp) -> Copy:
    buffer = call.src[1]
    return Copy(call.src[0].op.name.lower(), buffer.max_numel() * buffer.dtype.itemsize)


def _records(
    asts: dict[str, tuple[UOp, dict[str, int]]], renderer: OfflineRenderer
) -> dict[str, GpuKernel]:
    """The compiled kernels by their keys, from the cache where it has them."""
    found = {}
    for key in asts:
        record = diskcache_get(CACHE, key) if CCACHE else None
        if record is not None:
            work, chain = Work(**record.pop("work")), Chain(**record.pop("chain"))
            found[key] = GpuKernel(work=work, chain=chain, **record)
    tasks = [(key, *asts[key], renderer) for key in asts if key not in found]
    pool = get_worker_pool() if len(tasks) > 3 else None
    for key, kernel in (pool.imap_unordered if pool else map)(_task, tasks):
        found[key] = kernel
        if CCACHE:
            diskcache_put(CACHE, key, asdict(kernel))
    return found


def _task(task: tuple[str, UOp, dict[str, int], OfflineRenderer]) -> tuple[str, GpuKernel]:
    key, ast, values, renderer = task
    return key, _compile(ast, renderer, values)


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
        cubin=binary.arg,
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
    step: Step, make_inputs: Step, batch: int, watch: Session | None = None, first: bool = True
) -> Captured:
    """The kernels of one step at this batch size, as TinyJit would capture them: of its second
    call, for the first also makes what an optimizer keeps. Where there is nothing of the kind,
    `first=False` saves that call. Nothing runs, and nothing is changed."""
    with Context(BEAM=0):
        with catching():
            inputs = tuple(make_inputs(batch))
        if first:
            capture(step, inputs)
        return capture(step, inputs, watch)
