"""A Trace: what a tinygrad program did, as plain frozen data.

Everything the explorer shows is in here, and nothing else is: tuples of int, str and float. There
is no UOp, no device object, no date and no address; things refer to each other by small integer
ids. A trace can therefore be written on one machine and opened on another that has never seen
tinygrad.

How the parts hang together::

    Environment          what ran, on what, and whether the recording is whole
    File, Frame, Origin  places in source code: an Origin is one Tensor operation called somewhere
    Graph                nodes and edges: a lazy graph at a realize, or one kernel's UOps
    Schedule             one graph cut into kernels, in the order they run
     ├ Kernel            one launch in a schedule: its names, lines, operations and buffers
     │   └ Program       the compiled code behind it, shared by equal kernels: code, opts, costs
     ├ Buffer            what kernels read and write: the edges between kernels
     └ Boundary          why a buffer exists at all, that is, why two kernels were not one
    Rule, Pass, Step     rewrites: which rule replaced which node by which, pass by pass
    Realize, Run         one execution of a schedule; one kernel's time in it
    Counts, Traffic      what a kernel's launches did, counted (TGX_COUNT=1): per kernel, per buffer
    MemoryEvent, Event   memory over time; all else that took time (Python, compiling, errors)
    Walk                 one backward (``tgx backward``): its graph, values and targets
     ├ GradientStep      one rule of it at work, with what it contributes to each input
     └ WalkOperation     the steps of one operation the user wrote, together

Ids. Every ``id`` is unique within its own kind and is what other records hold. ``-1`` means "none".
A Trace checks itself when it is built: unknown ids and words raise ModelError and say which.

Look-ups: ``trace.kernel(3)``, ``trace.graph(0)``… return the record with that id. To change a
trace, use ``dataclasses.replace``; passes are functions ``Trace -> Trace``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import isfinite
from typing import Any

SCHEMA = 1  # raised whenever a reader of the old form could misread the new one

PHASES = ("forward", "backward", "optimizer", "data")
"""What a piece of work is for. "data" is movement and filling: copies, loading, random initial
values."""

KERNEL_KINDS = ("kernel", "copy", "view", "graph", "custom")
BUFFER_KINDS = ("input", "output", "intermediate", "arena", "constant")
TRAFFIC_KINDS = ("buffer", "copies", "tables")
GRAPH_KINDS = ("lazy", "schedule", "ast", "uops", "table")
LOOP_KINDS = (
    "global",
    "thread",
    "local",
    "warp",
    "loop",
    "reduce",
    "group_reduce",
    "upcast",
    "unroll",
    "device",
)
STEP_KINDS = ("match", "rebuild")
END_STATES = ("ok", "exception", "exit", "unfinished")


class ModelError(ValueError):
    """A trace that contradicts itself: an unknown id, a word outside its list, a negative size."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


LONGEST_TIME = 1e15  # microseconds: thirty years
DEEPEST = 1_000  # loops inside loops, passes inside passes, gradients of gradients
LARGEST_ID = 2**53 - 1  # the largest whole number that a page counts exactly


def _times(what: str, *values: float) -> None:
    _check(all(isfinite(v) and abs(v) <= LONGEST_TIME for v in values), f"{what}: a time of "
           + ", ".join(f"{v:g}" for v in values) + " us")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, f"{what:.80} is {value!r:.80}; expected one of {', '.join(allowed)}")


# **** what ran ****


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache of the model that counted the misses: `nbytes` in all, in lines of `line` bytes,
    `ways` of them in a set; the line used longest ago is pushed out."""

    name: str
    nbytes: int
    ways: int
    line: int = 64

    def __post_init__(self) -> None:
        sizes = (self.nbytes, self.ways, self.line)
        _check(min(sizes) > 0, f"cache {self.name}: its size, ways and lines are {sizes}")


@dataclass(frozen=True, slots=True)
class Environment:
    """The circumstances of a trace: facts that decide what the scheduler does. Never a date or a
    host name.

    ``level`` is "kernels" (no rewrites) or "full". ``ended`` says how the program ended: "ok",
    "exception" (``error`` has the text), "exit" (with ``exit_code``), or "unfinished" (the process
    was killed, or the file was cut short). ``caches`` are those of the model, nearest first, where
    kernels were counted. ``missing`` lists, in sentences for the reader, what was
    not recorded and how to record it: views show these instead of an empty pane.
    """

    program: str = ""
    arguments: tuple[str, ...] = ()
    tgx: str = ""
    tinygrad: str = ""
    python: str = ""
    machine: str = ""
    device: str = ""
    level: str = "kernels"
    settings: tuple[tuple[str, str], ...] = ()
    ended: str = "ok"
    exit_code: int = 0
    error: str = ""
    missing: tuple[str, ...] = ()
    caches: tuple[Cache, ...] = ()

    def __post_init__(self) -> None:
        _one_of("environment.ended", self.ended, END_STATES)


# **** places in source code ****


@dataclass(frozen=True, slots=True)
class File:
    """A source file that some origin, rule or reason points into.

    ``path`` is short: relative to the program for the user's files, ``tinygrad/…`` for the
    library's. ``lines`` holds (number, text) pairs: all of the user's own files, only the lines
    needed of others.
    """

    id: int
    path: str
    user: bool = True
    lines: tuple[tuple[int, str], ...] = ()

    def text(self, number: int) -> str:
        """The text of one line, or "" where it was not kept."""
        return next((text for n, text in self.lines if n == number), "")


@dataclass(frozen=True, slots=True)
class Frame:
    """One place: a file's line, in a function. ``column``/``end_column`` are 0-based; -1 is
    unknown."""

    id: int
    file: int
    line: int
    function: str = ""
    column: int = -1
    end_column: int = -1


@dataclass(frozen=True, slots=True)
class Origin:
    """One Tensor operation called at one place: where nodes of the graph come from.

    ``op`` is what the user called (``matmul``, ``relu``, ``backward`` never: a gradient keeps the
    name of the operation it differentiates). ``via`` is the chain of Tensor methods below it,
    outermost first, as ``linear → dot → mul``. ``frame`` is the innermost place in the user's own
    code; ``stack`` the whole stack, outermost first. For gradients ``phase`` is "backward" and
    ``forward`` is the origin of the forward operation (whose line is where the user wrote it);
    ``frame`` is then the line that asked for the gradient. ``names`` are variables and attributes
    of the user's that hold this operation's result (``w1``, ``self.l1.weight``).
    """

    id: int
    op: str
    frame: int = -1
    phase: str = "forward"
    forward: int = -1
    via: tuple[str, ...] = ()
    stack: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of(f"origin {self.id}: phase", self.phase, PHASES)


# **** graphs ****


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a Graph, made on demand from its columns. ``index`` is its place in the graph.

    ``op`` is tinygrad's (ADD, REDUCE, …), ``tensor_op`` what the user called (matmul, …; ""
    unknown). ``src`` are indices of its sources in the same graph: always smaller than ``index``.
    """

    index: int
    op: str
    dtype: str = ""
    shape: str = ""
    arg: str = ""
    src: tuple[int, ...] = ()
    origins: tuple[int, ...] = ()
    device: str = ""
    phase: str = ""
    tensor_op: str = ""
    label: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes and edges, in an order where every node comes after its sources.

    Kept as columns (row i of every column is node i) because graphs of 100,000 nodes are ordinary;
    read it as ``graph.nodes`` or ``graph[i]``, build small ones with ``Graph.of``. A column may be
    empty: unknown for every node. ``kind``: "lazy" (the Tensor graph given to a realize),
    "schedule" (after kernels were cut), "ast" (one kernel before code generation), "uops" (one
    kernel's final program: the order is the program's), "table" (the nodes rewrite steps refer to;
    its nodes belong to many graphs at once).
    """

    id: int
    kind: str
    name: str = ""
    ops: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    srcs: tuple[tuple[int, ...], ...] = ()
    origins: tuple[tuple[int, ...], ...] = ()
    devices: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    tensor_ops: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    roots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _one_of(f"graph {self.id}: kind", self.kind, GRAPH_KINDS)
        size = len(self.ops)
        for column in (
            "dtypes",
            "shapes",
            "args",
            "srcs",
            "origins",
            "devices",
            "phases",
            "tensor_ops",
            "labels",
        ):
            length = len(getattr(self, column))
            _check(
                length in (0, size),
                f"graph {self.id}: column {column} has {length} rows, ops has {size}",
            )
        for index, src in enumerate(self.srcs):
            for s in src:
                _check(
                    0 <= s < index,
                    f"graph {self.id}: node {index} has source {s}; sources come before their node",
                )
        for root in self.roots:
            _check(0 <= root < size, f"graph {self.id}: root {root} is not one of its {size} nodes")
        for phase in set(self.phases):
            _one_of(f"graph {self.id}: phase", phase, ("", *PHASES))

    @classmethod
    def of(
        cls, id: int, kind: str, nodes: Iterable[Node], name: str = "", roots: tuple[int, ...] = ()
    ) -> Graph:
        """A graph from Node records; node i must have index i."""
        nodes = tuple(nodes)
        for i, n in enumerate(nodes):
            _check(n.index == i, f"graph {id}: node {n.index} stands at place {i}")
        return cls(
            id,
            kind,
            name,
            tuple(n.op for n in nodes),
            tuple(n.dtype for n in nodes),
            tuple(n.shape for n in nodes),
            tuple(n.arg for n in nodes),
            tuple(n.src for n in nodes),
            tuple(n.origins for n in nodes),
            tuple(n.device for n in nodes),
            tuple(n.phase for n in nodes),
            tuple(n.tensor_op for n in nodes),
            tuple(n.label for n in nodes),
            roots,
        )

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, i: int) -> Node:
        def cell(column: tuple[Any, ...], empty: Any) -> Any:
            return column[i] if column else empty

        return Node(
            i,
            self.ops[i],
            cell(self.dtypes, ""),
            cell(self.shapes, ""),
            cell(self.args, ""),
            cell(self.srcs, ()),
            cell(self.origins, ()),
            cell(self.devices, ""),
            cell(self.phases, ""),
            cell(self.tensor_ops, ""),
            cell(self.labels, ""),
        )

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def src(self, i: int) -> tuple[int, ...]:
        return self.srcs[i] if self.srcs else ()

    def label(self, i: int) -> str:
        return self.labels[i] if self.labels else ""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self[i] for i in range(len(self.ops)))

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that read it."""
        out: list[list[int]] = [[] for _ in self.ops]
        for i, src in enumerate(self.srcs):
            for s in dict.fromkeys(src):
                out[s].append(i)
        return tuple(tuple(x) for x in out)


# **** programs ****


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a nest, outermost first in its tuple: ``for m in 64 (threads)``. ``size`` may be
    symbolic text."""

    name: str
    size: str
    kind: str

    def __post_init__(self) -> None:
        _one_of(f"loop {self.name}: kind", self.kind, LOOP_KINDS)


@dataclass(frozen=True, slots=True)
class Opt:
    """One optimisation decision of a kernel, with the loop nest before and after it.

    ``op`` is tinygrad's name (UPCAST, UNROLL, LOCAL, THREAD, GROUP, …), ``text`` a sentence.
    """

    op: str
    axis: int = -1
    amount: int = 0
    text: str = ""
    before: tuple[Loop, ...] = ()
    after: tuple[Loop, ...] = ()

    def __post_init__(self) -> None:
        _check(max(len(self.before), len(self.after)) <= DEEPEST, f"a nest of over {DEEPEST} loops")


@dataclass(frozen=True, slots=True)
class Code:
    """One pane of a program's code. ``level``: "uops", "source" (what the renderer wrote: C, LLVM
    IR, PTX…), "ir", "ir_opt" (LLVM IR before and after optimisation), "asm", "ptx", "plan" (TGX's
    own account)…

    ``uops[i]``, where present, is the index in the program's UOps of what line i (0-based) came
    from, -1 for none, and ``inside[i]`` has those that are written inside its expression: panes are
    kept in step through them. ``facts`` are (name, value) pairs:
    registers, spills, bytes of code.
    """

    level: str
    text: str
    language: str = ""
    uops: tuple[int, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    inside: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """One compiled program. Kernels with equal structure share it, wherever they were called from.

    ``ast`` and ``uops`` are graph ids. ``path`` is TGX's own record of how it made the code
    ("general", or the fast path's name; ``path_reason`` says why not a faster one); "" on other
    devices. ``flops``, ``bytes`` and ``lds_bytes`` are tinygrad's estimates for one launch:
    arithmetic done, distinct bytes touched, bytes loaded and stored in all. -1 is unknown. ``key``
    is a content hash (hex), equal in every trace of the same kernel.
    """

    id: int
    name: str
    device: str = ""
    key: str = ""
    ast: int = -1
    uops: int = -1
    global_size: tuple[str, ...] = ()
    local_size: tuple[str, ...] = ()
    loops: tuple[Loop, ...] = ()
    opts: tuple[Opt, ...] = ()
    code: tuple[Code, ...] = ()
    path: str = ""
    path_reason: str = ""
    flops: int = -1
    bytes: int = -1
    lds_bytes: int = -1
    compile_us: float = -1.0
    sources: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        _check(len(self.loops) <= DEEPEST, f"program {self.id}: a nest of over {DEEPEST} loops")
        _times(f"program {self.id}", self.compile_us)

    def pane(self, level: str) -> Code | None:
        """The code at one level, or None where it was not recorded."""
        return next((c for c in self.code if c.level == level), None)


# **** schedules, kernels, buffers, boundaries ****


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel in a schedule: what a box of the program's picture stands for.

    ``name`` is for people (``conv1 + bias + relu``), ``tinygrad_name`` is the library's
    (``r_64_8_4``). ``ops`` are the Tensor operations it computes, in order; ``lines`` the (file id,
    line) pairs of the user's code it comes from, first line first; ``forward`` for gradient kernels
    the forward operations they differentiate; ``origins`` the ids behind all of these. ``reads``
    and ``writes`` are buffer ids. ``kind`` "copy" moves data between devices and has no program.
    """

    id: int
    name: str
    tinygrad_name: str = ""
    device: str = ""
    phase: str = "forward"
    kind: str = "kernel"
    schedule: int = -1
    program: int = -1
    ops: tuple[str, ...] = ()
    lines: tuple[tuple[int, int], ...] = ()
    forward: tuple[str, ...] = ()
    origins: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    ast: int = -1
    flops: int = -1
    bytes: int = -1

    def __post_init__(self) -> None:
        _one_of(f"kernel {self.id}: phase", self.phase, PHASES)
        _one_of(f"kernel {self.id}: kind", self.kind, KERNEL_KINDS)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory kernels read and write: an edge of the program's picture.

    ``name`` is the user's where known (``w1``), else made from what writes it. ``shape`` is text as
    ``64×32``. ``nbytes`` is its size. The memory planner may place it inside ``base`` (a buffer id)
    at ``offset`` bytes; ``first`` and ``last`` are the places in the schedule's kernel order
    between which it is alive (-1 before/after it).
    """

    id: int
    name: str = ""
    kind: str = "intermediate"
    device: str = ""
    dtype: str = ""
    shape: str = ""
    nbytes: int = 0
    schedule: int = -1
    base: int = -1
    offset: int = 0
    first: int = -1
    last: int = -1
    origins: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _one_of(f"buffer {self.id}: kind", self.kind, BUFFER_KINDS)
        _check(self.nbytes >= 0 and self.offset >= 0, f"buffer {self.id}: negative size or offset")


@dataclass(frozen=True, slots=True)
class Boundary:
    """Why a buffer is stored instead of its computation being fused into its readers.

    ``source`` is the kernel that writes the buffer (-1: it came from outside), ``readers`` the
    kernels that read it (none: the program's own result). ``reason`` is a key of the table of
    reasons (``two-consumers``, ``reduce-broadcast``, ``contiguous``, ``realize``…), ``rule`` its
    place in tinygrad as ``schedule/indexing.py:267 run_rangeify``. ``because`` is the whole
    sentence, ``brief`` a few words for an edge label; ``fuse_by`` says what would fuse it ("" if
    nothing would). ``nodes`` are the responsible nodes in ``graph``. ``kernels_without`` is the
    number of kernels the schedule has when this one decision is reversed and all others are kept
    (the proof; -1: not tried).
    """

    id: int
    reason: str
    because: str
    source: int = -1
    readers: tuple[int, ...] = ()
    buffer: int = -1
    schedule: int = -1
    rule: str = ""
    brief: str = ""
    fuse_by: str = ""
    graph: int = -1
    nodes: tuple[int, ...] = ()
    kernels_without: int = -1


@dataclass(frozen=True, slots=True)
class Schedule:
    """One lazy graph, cut into kernels. Later realizes of the same graph from the same lines share
    it.

    ``frame`` is the user's line that asked for it, ``lazy`` the graph's id. ``jit`` is the jitted
    function's name where a TinyJit captured it. ``kernels`` are ids in execution order.
    ``cache_hits`` counts how often tinygrad's own schedule cache served it. ``planned_bytes`` and
    ``unplanned_bytes`` are what the memory planner made of its intermediate buffers and what they
    take without it.
    """

    id: int
    kernels: tuple[int, ...] = ()
    frame: int = -1
    lazy: int = -1
    graph: int = -1
    name: str = ""
    phase: str = "forward"
    jit: str = ""
    cache_hits: int = 0
    planned_bytes: int = -1
    unplanned_bytes: int = -1
    key: str = ""


# **** rewrites ****


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewrite rule: a pattern and what it does. ``text`` is its source line, ``function`` the
    rewriter's name."""

    id: int
    file: int
    line: int
    text: str = ""
    function: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One change, made on demand from a Pass: node ``old`` became node ``new``, both rows of the
    pass's table.

    ``kind`` "match" is a rule's work; "rebuild" follows from it: the same node with replaced
    sources (``rule`` is then -1).
    """

    kind: str
    old: int
    new: int
    rule: int = -1


@dataclass(frozen=True)
class Pass:
    """One named pass over one graph: its steps as deltas, in the order they happened.

    A pass belongs to a schedule or to a program (``schedule``/``program``: an id, or -1). ``table``
    is the id of a Graph of kind "table" that holds every node any step mentions, shared by the
    passes of one owner; ``before`` and ``after`` are the rows of the whole graph's root before and
    after the pass: following ``srcs`` from there gives the graph. ``steps`` are flat, four numbers
    each (kind index, old, new, rule); read ``len(p)`` and ``p[i]``. ``matches`` counts the rules
    that fired. ``depth`` > 0 is a pass inside a pass. Steps happened ``bottom_up`` (rules before
    sources) or top down (after); in a ``walk`` what a rule made was not looked at again.
    `tgx.passes.replay` applies the steps again.
    """

    id: int
    name: str
    schedule: int = -1
    program: int = -1
    table: int = -1
    before: int = -1
    after: int = -1
    depth: int = 0
    bottom_up: bool = False
    walk: bool = False
    matches: int = 0
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(
            len(self.steps) % 4 == 0,
            f"pass {self.id}: {len(self.steps)} numbers are not whole steps of four",
        )
        _check(0 <= self.depth <= DEEPEST, f"pass {self.id}: its depth is {self.depth}")

    def __len__(self) -> int:
        return len(self.steps) // 4

    def __getitem__(self, i: int) -> Step:
        kind, old, new, rule = self.steps[4 * i : 4 * i + 4]
        return Step(STEP_KINDS[kind], old, new, rule)

    def __iter__(self) -> Iterator[Step]:
        return (self[i] for i in range(len(self)))


# **** what happened when ****


@dataclass(frozen=True, slots=True)
class Realize:
    """One execution of a schedule. Times are microseconds since the trace began. ``step`` numbers
    the repetitions of the same schedule (0, 1, …): "training step 3"."""

    id: int
    schedule: int
    start_us: float = 0.0
    end_us: float = 0.0
    step: int = 0

    def __post_init__(self) -> None:
        _times(f"realize {self.id}", self.start_us, self.end_us)


@dataclass(frozen=True, slots=True)
class Run:
    """One launch of a kernel. ``time_us`` is on ``clock``: "device" (the device's own), or "host"
    (around the call)."""

    kernel: int
    start_us: float
    time_us: float
    realize: int = -1
    clock: str = "device"

    def __post_init__(self) -> None:
        _times(f"a run of kernel {self.kernel}", self.start_us, self.time_us)


@dataclass(frozen=True, slots=True)
class Timing:
    """All launches of one kernel together: kept even where single Runs were too many to keep."""

    kernel: int
    calls: int
    total_us: float
    min_us: float
    median_us: float

    def __post_init__(self) -> None:
        _times(f"timing of kernel {self.kernel}", self.total_us, self.min_us, self.median_us)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the counted launches of one kernel did, all ``calls`` of them together.

    ``flops`` are lanes of float arithmetic (a multiply-add is two), ``integer`` lanes of integer
    arithmetic, most of which computes addresses. The last three are tinygrad's estimates for the
    same launches: operations, bytes loaded and stored, distinct bytes touched (-1: unknown). What
    was loaded and stored is in the Traffic records of the same kernel.
    """

    kernel: int
    calls: int
    flops: int = 0
    integer: int = 0
    estimated_flops: int = -1
    estimated_moved: int = -1
    estimated_bytes: int = -1

    def __post_init__(self) -> None:
        _check(self.calls > 0, f"counts of kernel {self.kernel}: {self.calls} calls")
        _check(min(self.flops, self.integer) >= 0, f"counts of kernel {self.kernel}: negative")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the counted launches of a kernel did with one piece of memory, together.

    It is a ``buffer`` of the kernel's (-1 with a ``name``: one that lies on several devices), or,
    by ``kind``, what the device put beside them: "copies" of parts of them, packed for speed, and
    constant "tables". ``loads`` and ``stores`` are elements, ``loaded``
    and ``stored`` bytes; misses are lines that the model's caches did not have.
    """

    kernel: int
    buffer: int = -1
    name: str = ""
    loads: int = 0
    stores: int = 0
    loaded: int = 0
    stored: int = 0
    l1_misses: int = 0
    l2_misses: int = 0
    kind: str = "buffer"

    def __post_init__(self) -> None:
        what = f"traffic of kernel {self.kernel}"
        _one_of(f"{what}: kind", self.kind, TRAFFIC_KINDS)
        _check(self.kind == "buffer" or self.buffer == -1, f"{what}: {self.kind} in a buffer")
        _check(self.buffer != -1 or bool(self.name), f"{what}: of no buffer, and without a name")
        _check(min(self.loads, self.stores, self.l2_misses) >= 0, f"{what}: negative")
        _check(self.loads <= self.loaded and self.stores <= self.stored, f"{what}: elements of 0 B")
        _check(self.l2_misses <= self.l1_misses, f"{what}: more misses in L2 than L1 sent there")


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """Memory in use on a device changed. ``nbytes`` > 0 allocates, < 0 frees; ``used`` is the total
    after it. ``name`` says which buffer, ``kernel`` during which kernel (-1: between kernels)."""

    at_us: float
    device: str
    nbytes: int
    used: int
    name: str = ""
    kernel: int = -1
    buffer: int = -1

    def __post_init__(self) -> None:
        _times("memory", self.at_us)


@dataclass(frozen=True, slots=True)
class Event:
    """Anything else that took time or must be told: ``kind`` is "schedule", "compile", "python",
    "copy", "jit", "realize", "error" or "note"; ``frame`` the user's line."""

    kind: str
    name: str
    at_us: float = 0.0
    time_us: float = 0.0
    frame: int = -1
    text: str = ""

    def __post_init__(self) -> None:
        _times("an event", self.at_us, self.time_us)


# **** the backward walk ****


@dataclass(frozen=True, slots=True)
class Value:
    """What a tensor held, small enough to show: ``sample`` has the first few elements (all, if
    ``size`` is small). ``known`` is false where nothing could be read. ``sampled`` is the number of
    elements the statistics are of, where those are not all."""

    shape: str = ""
    size: int = 0
    sample: tuple[float, ...] = ()
    mean: float = 0.0
    norm: float = 0.0
    low: float = 0.0
    high: float = 0.0
    nans: int = 0
    infs: int = 0
    zeros: int = 0
    sampled: int = 0
    known: bool = True

    def __post_init__(self) -> None:
        right = self.size >= 0 and not self.norm < 0
        _check(right, f"a value of size {self.size} and norm {self.norm}")


@dataclass(frozen=True, slots=True)
class Check:
    """A gradient beside the central difference (f(x+h) - f(x-h)) / 2h, in float64.

    ``at`` are the places looked at, as indices into the flat tensor; ``gradient`` and
    ``difference`` the two numbers at each. ``error`` is the largest distance between them,
    relative to the larger of the two or to the tensor's root mean square, whichever is largest
    (-1: not checked, ``why`` says why).
    ``kink`` is true where the slopes left and right differ: there is no derivative then, and the
    rule chose a value.
    """

    at: tuple[int, ...] = ()
    gradient: tuple[float, ...] = ()
    difference: tuple[float, ...] = ()
    error: float = -1.0
    kink: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one gradient step adds to the gradient of one input of its forward node.

    ``target`` is that input and ``slot`` its place among the node's inputs; ``node`` is the
    contribution, ``total`` the running sum after it (the same node where it is the first), all
    nodes of the walk's graph (-1: nothing flows, and ``stops`` says why). ``formula`` is the
    mathematics (``∂(a·b)/∂a = b``), ``local`` the local derivative with its numbers. ``summed`` are
    the axes along which the input was broadcast: its gradient is the sum along them. ``check`` is
    of this contribution alone; ``formula_error`` says how far the formula, computed by itself, is
    from it (-1: not tried).
    """

    target: int
    slot: int = 0
    node: int = -1
    total: int = -1
    formula: str = ""
    local: str = ""
    summed: tuple[int, ...] = ()
    stops: str = ""
    check: Check = field(default_factory=Check)
    formula_error: float = -1.0


@dataclass(frozen=True, slots=True)
class GradientStep:
    """One row of a backward walk: the rule that turned the gradient of ``node`` into those of its
    inputs.

    ``node`` and ``upstream`` (the gradient that came in) are nodes of the walk's graph. ``rule`` is
    a Rule's id, ``key`` its row of the table of formulas, ``formula`` the operation as mathematics.
    ``made`` are the nodes this step added to the graph, ``kernels`` the kernels they were computed
    in. ``group`` is the operation of the user's it belongs to (a WalkOperation's id).
    """

    id: int
    walk: int
    node: int
    op: str
    tensor_op: str = ""
    origin: int = -1
    rule: int = -1
    key: str = ""
    formula: str = ""
    upstream: int = -1
    contributions: tuple[Contribution, ...] = ()
    made: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    group: int = -1


@dataclass(frozen=True, slots=True)
class Flow:
    """A gradient that leaves an operation for one of its inputs: ``node`` is the input, ``total``
    what this operation adds to its gradient in all, ``role`` what textbooks call it (``W``),
    ``formula`` their form of it (``dW = Xᵀ·dZ``), and ``error`` how far that is from what was built
    (-1: no such form)."""

    node: int
    total: Value = field(default_factory=Value)
    role: str = ""
    formula: str = ""
    error: float = -1.0


@dataclass(frozen=True, slots=True)
class WalkOperation:
    """The steps of one operation the user wrote (``matmul``, ``relu``), taken together.

    ``origin`` is the operation's own, ``output`` the node of its result, ``upstream`` the gradient
    node that came in there."""

    id: int
    walk: int
    name: str
    op: str
    origin: int = -1
    steps: tuple[int, ...] = ()
    output: int = -1
    upstream: int = -1
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor whose gradient was asked for. ``gradient`` is its node (-1: none reached it, and
    ``stops`` says why); ``check`` compares it with the loss's own central difference."""

    node: int
    name: str = ""
    gradient: int = -1
    parameter: bool = False
    stops: str = ""
    check: Check = field(default_factory=Check)


@dataclass(frozen=True, slots=True)
class WalkKernel:
    """What one kernel computes of a walk's graph: forward nodes and gradient nodes."""

    kernel: int
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """One backward: from ``root``, the loss, back to ``targets``.

    ``graph`` holds the forward nodes and the gradients; ``forward`` is the number of forward nodes,
    which come first; ``values`` has what each node held. ``order`` 2 is a gradient of a gradient.
    A walk inside a function's body has a ``parent`` walk. ``repeats`` counts how often the same
    walk was taken; the numbers are the first one's. ``frame`` is the line that asked for it,
    ``jit`` the jitted function it was captured in. ``route`` are the places of tinygrad's source
    that every walk passes, as Rule ids.
    """

    id: int
    graph: int
    root: int
    forward: int = 0
    name: str = ""
    frame: int = -1
    order: int = 1
    parent: int = -1
    jit: str = ""
    repeats: int = 1
    values: tuple[Value, ...] = ()
    targets: tuple[Target, ...] = ()
    kernels: tuple[WalkKernel, ...] = ()
    notes: tuple[str, ...] = ()
    route: tuple[int, ...] = ()

    def value(self, node: int) -> Value:
        """What a node held."""
        unknown = Value(known=False)
        return self.values[node] if 0 <= node < len(self.values) else unknown


# **** the whole ****


@dataclass(frozen=True)
class Trace:
    """Everything recorded of one run. See the module's text for how the parts hang together."""

    environment: Environment = field(default_factory=Environment)
    files: tuple[File, ...] = ()
    frames: tuple[Frame, ...] = ()
    origins: tuple[Origin, ...] = ()
    graphs: tuple[Graph, ...] = ()
    programs: tuple[Program, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    boundaries: tuple[Boundary, ...] = ()
    rules: tuple[Rule, ...] = ()
    passes: tuple[Pass, ...] = ()
    realizes: tuple[Realize, ...] = ()
    runs: tuple[Run, ...] = ()
    timings: tuple[Timing, ...] = ()
    counts: tuple[Counts, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    memory: tuple[MemoryEvent, ...] = ()
    events: tuple[Event, ...] = ()
    walks: tuple[Walk, ...] = ()
    gradients: tuple[GradientStep, ...] = ()
    operations: tuple[WalkOperation, ...] = ()

    def __post_init__(self) -> None:
        for name in TABLES:
            seen: set[int] = set()
            for record in getattr(self, name):
                _check(record.id not in seen, f"two {name} have the id {record.id}")
                _check(0 <= record.id <= LARGEST_ID, f"{name}: the id {record.id} is out of range")
                seen.add(record.id)
        for name, references in REFERENCES.items():
            for record in getattr(self, name):
                for attribute, target in references:
                    self._check_reference(name, record, attribute, target)
        for name, attribute in CHAINS:
            self._check_chain(name, attribute)
        for g in self.graphs:
            for origin in set().union(*g.origins):
                _check(origin in self._index("origins"), f"graph {g.id}: no origin {origin}")
        for b in self.boundaries:
            self._check_nodes(f"boundary {b.id}", b.graph, b.nodes)
        for moved in self.traffic:
            whose = self.kernel(moved.kernel)
            _check(
                moved.buffer in (-1, *whose.reads, *whose.writes),
                f"traffic of kernel {whose.id}: it neither reads nor writes buffer {moved.buffer}",
            )
        for walk in self.walks:
            used = {walk.root, *(t.node for t in walk.targets)}
            used |= {t.gradient for t in walk.targets} - {-1}
            used |= {n for k in walk.kernels for n in k.nodes}
            size = len(self.graph(walk.graph))
            _check(0 <= walk.forward <= size, f"walk {walk.id}: {walk.forward} of {size} nodes")
            for k in walk.kernels:
                _check(k.kernel in self._index("kernels"), f"walk {walk.id}: no kernel {k.kernel}")
            self._check_nodes(f"walk {walk.id}", walk.graph, used)
        for step in self.gradients:
            used = {step.node, *step.made, *(c.target for c in step.contributions)}
            some = {n for c in step.contributions for n in (c.node, c.total)} | {step.upstream}
            used |= some - {-1}
            self._check_nodes(f"gradient step {step.id}", self.walk(step.walk).graph, used)
        for o in self.operations:
            used = {f.node for f in o.flows} | ({o.output, o.upstream} - {-1})
            self._check_nodes(f"operation {o.id}", self.walk(o.walk).graph, used)
            for id in o.steps:
                own = self._index("gradients")[id].walk == o.walk
                _check(own, f"operation {o.id}: step {id} is of another walk")
        for p in self.passes:
            used = {node for node in (p.before, p.after) if node != -1}.union(
                p.steps[1::4], p.steps[2::4]
            )
            self._check_nodes(f"pass {p.id}", p.table, used)
            _check(
                all(0 <= kind < len(STEP_KINDS) for kind in set(p.steps[0::4])),
                f"pass {p.id}: an unknown step kind",
            )
            for rule in set(p.steps[3::4]):
                _check(rule == -1 or rule in self._index("rules"), f"pass {p.id}: no rule {rule}")

    def _check_nodes(self, what: str, graph: int, nodes: Iterable[int]) -> None:
        size = len(self.graph(graph)) if graph != -1 else 0
        for node in nodes:
            _check(0 <= node < size, f"{what}: node {node} is not in its graph of {size} nodes")

    def _check_reference(self, name: str, record: Any, attribute: str, target: str) -> None:
        value = getattr(record, attribute)
        index = self._index(target)
        if isinstance(value, int):
            if (value != -1 or (name, attribute) in NEEDED) and value not in index:
                raise ModelError(
                    f"{name}: {attribute} of {record!r:.80} is {value}, which is not among {target}"
                )
        else:
            for v in value:
                if (v[0] if isinstance(v, tuple) else v) not in index:
                    raise ModelError(
                        f"{name}: {attribute} of {record!r:.80} holds {v}, which is not "
                        f"among {target}"
                    )

    def _check_chain(self, name: str, attribute: str) -> None:
        """Following a reference within one table ends, and soon."""
        length: dict[int, int] = {}
        for record in getattr(self, name):
            chain = []
            while record.id not in length:
                chain.append(record.id)
                _check(len(chain) <= DEEPEST, f"{name}: {attribute} of {record.id} leads nowhere")
                following = getattr(record, attribute)
                if following == -1:
                    break
                record = self._index(name)[following]
            known = length.get(record.id, 0)
            for above, id in enumerate(reversed(chain), 1):
                length[id] = known + above
            _check(known + len(chain) <= DEEPEST, f"{name}: over {DEEPEST} {attribute} in a row")

    def _index(self, table: str) -> Mapping[int, Any]:
        cache: dict[str, dict[int, Any]] = self.__dict__.setdefault("_indices", {})
        if table not in cache:
            cache[table] = {record.id: record for record in getattr(self, table)}
        return cache[table]

    def _get(self, table: str, id: int) -> Any:
        try:
            return self._index(table)[id]
        except KeyError:
            raise KeyError(f"this trace has no {table} with id {id}") from None

    # look-ups by id
    def file(self, id: int) -> File:
        return self._get("files", id)  # type: ignore[no-any-return]

    def frame(self, id: int) -> Frame:
        return self._get("frames", id)  # type: ignore[no-any-return]

    def origin(self, id: int) -> Origin:
        return self._get("origins", id)  # type: ignore[no-any-return]

    def graph(self, id: int) -> Graph:
        return self._get("graphs", id)  # type: ignore[no-any-return]

    def program(self, id: int) -> Program:
        return self._get("programs", id)  # type: ignore[no-any-return]

    def schedule(self, id: int) -> Schedule:
        return self._get("schedules", id)  # type: ignore[no-any-return]

    def kernel(self, id: int) -> Kernel:
        return self._get("kernels", id)  # type: ignore[no-any-return]

    def buffer(self, id: int) -> Buffer:
        return self._get("buffers", id)  # type: ignore[no-any-return]

    def boundary(self, id: int) -> Boundary:
        return self._get("boundaries", id)  # type: ignore[no-any-return]

    def rule(self, id: int) -> Rule:
        return self._get("rules", id)  # type: ignore[no-any-return]

    def walk(self, id: int) -> Walk:
        return self._get("walks", id)  # type: ignore[no-any-return]

    def step(self, id: int) -> GradientStep:
        return self._get("gradients", id)  # type: ignore[no-any-return]

    def operation(self, id: int) -> WalkOperation:
        return self._get("operations", id)  # type: ignore[no-any-return]

    # questions every view asks
    def timing(self, kernel: int) -> Timing | None:
        """How long a kernel took over all its launches, or None if it was never timed."""
        return self._timings.get(kernel)

    @cached_property
    def _timings(self) -> dict[int, Timing]:
        return {t.kernel: t for t in self.timings}

    def time_us(self, kernel: int) -> float:
        """A kernel's typical time (the median launch), -1.0 where not measured."""
        timing = self.timing(kernel)
        return timing.median_us if timing else -1.0

    def counted(self, kernel: int) -> Counts | None:
        """What a kernel's launches did, or None if they were not counted."""
        return self._counts.get(kernel)

    @cached_property
    def _counts(self) -> dict[int, Counts]:
        return {c.kernel: c for c in self.counts}

    def traffic_of(self, kernel: int) -> tuple[Traffic, ...]:
        """What a kernel's counted launches did with each piece of memory."""
        return self._traffic.get(kernel, ())

    @cached_property
    def _traffic(self) -> dict[int, tuple[Traffic, ...]]:
        found: dict[int, list[Traffic]] = {}
        for moved in self.traffic:
            found.setdefault(moved.kernel, []).append(moved)
        return {kernel: tuple(rows) for kernel, rows in found.items()}

    def place(self, frame: int) -> str:
        """A frame as ``mnist.py:12``, "" for -1."""
        if frame < 0:
            return ""
        f = self.frame(frame)
        return f"{self.file(f.file).path}:{f.line}"

    def places(self, kernel: int) -> tuple[str, ...]:
        """A kernel's source lines as ``mnist.py:12``."""
        return tuple(f"{self.file(file).path}:{line}" for file, line in self.kernel(kernel).lines)

    def uop_origins(self, kernel: int) -> tuple[tuple[int, ...], ...]:
        """For each UOp of a kernel's program, the origins it comes from; () if not recorded."""
        k = self.kernel(kernel)
        if k.program < 0 or k.ast < 0:
            return ()
        origins = self.graph(k.ast).origins
        sources = self.program(k.program).sources
        return tuple(
            tuple(dict.fromkeys(o for i in row if 0 <= i < len(origins) for o in origins[i]))
            for row in sources
        )

    def kernels_at(self, file: int, line: int) -> tuple[int, ...]:
        """The kernels a source line became part of."""
        return self._by_line.get((file, line), ())

    @cached_property
    def _by_line(self) -> dict[tuple[int, int], tuple[int, ...]]:
        found: dict[tuple[int, int], list[int]] = {}
        for k in self.kernels:
            for place in k.lines:
                found.setdefault(place, []).append(k.id)
        return {place: tuple(ids) for place, ids in found.items()}

    def boundaries_of(self, kernel: int) -> tuple[Boundary, ...]:
        """The boundaries a kernel stands at: of the buffers it writes, then of those it reads."""
        return tuple(b for b in self.boundaries if b.source == kernel) + tuple(
            b for b in self.boundaries if kernel in b.readers and b.source != kernel
        )

    def steps_of(self, walk: int) -> tuple[GradientStep, ...]:
        """A walk's gradient steps, in order."""
        return self._by_walk[0].get(walk, ())

    def operations_of(self, walk: int) -> tuple[WalkOperation, ...]:
        """A walk's operations, in order."""
        return self._by_walk[1].get(walk, ())

    @cached_property
    def _by_walk(self) -> tuple[dict[int, tuple[Any, ...]], ...]:
        steps: dict[int, list[Any]] = {}
        operations: dict[int, list[Any]] = {}
        for step in self.gradients:
            steps.setdefault(step.walk, []).append(step)
        for operation in self.operations:
            operations.setdefault(operation.walk, []).append(operation)
        return tuple({w: tuple(own) for w, own in t.items()} for t in (steps, operations))

    def peak(self) -> int:
        """The most memory in use at once, in bytes (0 if memory was not recorded)."""
        return max((m.used for m in self.memory), default=0)

    def steady(self) -> tuple[int, ...]:
        """The schedules worth showing first: those run most often; of a program that trains, those
        of its training step, however often it evaluated. In order of first use.

        The first step of a program also fills its weights and optimizer state, and fuses
        differently; so where nothing ran twice, a line's last schedule stands for the others.
        """
        counts: dict[int, int] = {}
        for r in self.realizes:
            counts[r.schedule] = counts.get(r.schedule, 0) + 1
        if not counts:
            return tuple(s.id for s in self.schedules)
        train = {
            s: n
            for s, n in counts.items()
            if n > 1 and any(self.kernel(k).phase == "optimizer" for k in self.schedule(s).kernels)
        }
        counts = train or counts
        most = max(counts.values())
        found = [s for s, n in counts.items() if n == most]
        if most == 1:  # a run of one or two steps: of the same line's schedules, the last
            last = {(f if (f := self.schedule(s).frame) != -1 else ~s): s for s in found}
            found = [s for s in found if s in last.values()]
        return tuple(found)


TABLES = (
    "files",
    "frames",
    "origins",
    "graphs",
    "programs",
    "schedules",
    "kernels",
    "buffers",
    "boundaries",
    "rules",
    "passes",
    "realizes",
    "walks",
    "gradients",
    "operations",
)
"""The tables of a Trace whose records have ids."""

REFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "frames": (("file", "files"),),
    "origins": (("frame", "frames"), ("forward", "origins"), ("stack", "frames")),
    "programs": (("ast", "graphs"), ("uops", "graphs")),
    "schedules": (
        ("kernels", "kernels"),
        ("frame", "frames"),
        ("lazy", "graphs"),
        ("graph", "graphs"),
    ),
    "kernels": (
        ("schedule", "schedules"),
        ("program", "programs"),
        ("lines", "files"),
        ("origins", "origins"),
        ("reads", "buffers"),
        ("writes", "buffers"),
        ("ast", "graphs"),
    ),
    "buffers": (("schedule", "schedules"), ("base", "buffers"), ("origins", "origins")),
    "boundaries": (
        ("source", "kernels"),
        ("readers", "kernels"),
        ("buffer", "buffers"),
        ("schedule", "schedules"),
        ("graph", "graphs"),
    ),
    "rules": (("file", "files"),),
    "passes": (("schedule", "schedules"), ("program", "programs"), ("table", "graphs")),
    "realizes": (("schedule", "schedules"),),
    "runs": (("kernel", "kernels"), ("realize", "realizes")),
    "timings": (("kernel", "kernels"),),
    "counts": (("kernel", "kernels"),),
    "traffic": (("kernel", "kernels"), ("buffer", "buffers")),
    "memory": (("kernel", "kernels"), ("buffer", "buffers")),
    "events": (("frame", "frames"),),
    "walks": (
        ("graph", "graphs"),
        ("frame", "frames"),
        ("parent", "walks"),
        ("route", "rules"),
    ),
    "gradients": (
        ("walk", "walks"),
        ("origin", "origins"),
        ("rule", "rules"),
        ("kernels", "kernels"),
        ("group", "operations"),
    ),
    "operations": (("walk", "walks"), ("origin", "origins"), ("steps", "gradients")),
}
"""Which attribute of which table holds ids of which table: checked when a Trace is built."""

NEEDED = {
    ("frames", "file"),
    ("rules", "file"),
    ("realizes", "schedule"),
    ("runs", "kernel"),
    ("timings", "kernel"),
    ("counts", "kernel"),
    ("traffic", "kernel"),
    ("walks", "graph"),
    ("gradients", "walk"),
    ("operations", "walk"),
}
"""The references that cannot be -1: their record means nothing without what they refer to."""

CHAINS = (("origins", "forward"), ("buffers", "base"), ("walks", "parent"))
"""References within one table: following them has an end."""

RECORDS: dict[str, type] = {
    "files": File,
    "frames": Frame,
    "origins": Origin,
    "graphs": Graph,
    "programs": Program,
    "schedules": Schedule,
    "kernels": Kernel,
    "buffers": Buffer,
    "boundaries": Boundary,
    "rules": Rule,
    "passes": Pass,
    "realizes": Realize,
    "runs": Run,
    "timings": Timing,
    "counts": Counts,
    "traffic": Traffic,
    "memory": MemoryEvent,
    "events": Event,
    "walks": Walk,
    "gradients": GradientStep,
    "operations": WalkOperation,
}
"""The record type of every table of a Trace."""

assert {f.name for f in fields(Trace)} == {"environment", *RECORDS}
