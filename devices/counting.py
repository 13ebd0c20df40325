"""Counted mode: what a kernel does, counted while it runs (`TGX_COUNT=1`).

The renderer puts one comment line after a kernel's IR (`Asked`: what the pass has to know of it);
the compiler sees it and hands the text to `counted`, so the text itself, which people and the
explorer read, stays as it is. `counted` gives every basic block a counter, in a register, and
works out what one pass through the block does: a row of numbers. Loads and stores under a mask have
a counter each, of lanes. A kernel adds its counters to a block of words at its end; counter times
row, summed, is what it did (`counts.py`). Every access is also shown to a model of two caches
(`counting.ll`), at once, so the order is the program's.

What is counted is what TGX wrote, before LLVM optimizes it:

* **loads, stores** are elements: a vector of 16 counts 16, under a mask the lanes that are set.
  Those of the kernel's buffers are its own; packed copies and constant tables are told apart;
  registers (accumulators) are none.
* **flops** are lanes of float arithmetic, lanes past an edge included: the machine computes them
  too. A multiply-add is two; a comparison, a minimum, a root is one; selecting, converting and
  moving are none (`FLOPS`). Integer arithmetic, most of it addresses, is counted by itself.

On the guide's MLP it makes a training step twelve times slower (0.5 to 6 ms of CPU), eight times
with TGX_FAST=0.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from tinygrad.device import CompileError
from tinygrad.dtype import AddrSpace
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import Ops, UOp

from tgx.devices import parse
from tgx.devices.parse import Access, Function, Instruction, Module, Operand, Root

MARK = "; tgx counted "
SYMBOL = ".counted"  # of the table, in the object: it travels with the machine code

LINE = 64  # bytes of a cache line
BIG = 2 << 20  # bytes from which on TGX's allocator aligns buffers to as many, see ops_tgx.py

# Words of the cache model where its functions are, see counting.ll.
CALLS = {"touch": 6, "lanes": 7, "cold": 8}

# What an instruction, or an intrinsic, costs for each lane. tinygrad's estimates count the same,
# but for WHERE (here a selection moves, it does not compute) and for integers, which to them are
# operations like any other.
FLOPS = {
    **dict.fromkeys(("fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fcmp"), 1),
    **dict.fromkeys(("llvm.fmuladd", "llvm.fma"), 2),
    **dict.fromkeys(("llvm.maximum", "llvm.minimum", "llvm.maxnum", "llvm.minnum"), 1),
    **dict.fromkeys(("llvm.sqrt", "llvm.fabs", "llvm.copysign", "llvm.trunc", "llvm.floor"), 1),
    **dict.fromkeys(("llvm.ceil", "llvm.rint", "llvm.nearbyint", "llvm.round"), 1),
    **dict.fromkeys(("llvm.exp", "llvm.exp2", "llvm.log", "llvm.log2", "llvm.pow"), 1),
    **dict.fromkeys(("llvm.sin", "llvm.cos"), 1),
}
INTEGER = {
    *("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr", "and", "or"),
    *("xor", "icmp", "llvm.smax", "llvm.smin", "llvm.umax", "llvm.umin", "llvm.abs"),
    *("llvm.ctpop", "llvm.ctlz", "llvm.cttz"),
}
# What only moves, converts, or steers.
FREE = {
    *(parse.CASTS | parse.LANES), *("load", "store", "getelementptr", "phi", "br", "ret"),
    *("alloca", "freeze", "unreachable", "llvm.masked", "llvm.fptosi", "llvm.fptoui"),
}  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """One piece of memory that a kernel touches: a buffer (`word` is its argument word), or, with
    word -1, what TGX itself puts beside them."""

    name: str
    word: int
    nbytes: int


@dataclass(frozen=True)
class Row:
    """What one count of a counter stands for. `accesses`: of which memory (its place in the table)
    how many loads and stores, and their bytes."""

    flops: int = 0
    integer: int = 0
    accesses: tuple[tuple[int, int, int, int, int], ...] = ()


@dataclass(frozen=True)
class Table:
    """All there is to know of a counted kernel besides its counters.

    `estimates` are tinygrad's of one launch: operations, bytes loaded and stored, distinct bytes.
    Each is a number, or an expression of the kernel's variables: a name, or [operation, …].
    """

    path: str
    memory: tuple[Memory, ...]
    rows: tuple[Row, ...]
    estimates: tuple[object, object, object]

    def dumps(self) -> str:
        rows = [(r.flops, r.integer, r.accesses) for r in self.rows]
        memory = [tuple(asdict(m).values()) for m in self.memory]
        return json.dumps([self.path, memory, rows, self.estimates], separators=(",", ":"))

    @staticmethod
    def loads(text: str) -> Table:
        path, memory, rows, estimates = json.loads(text)
        return Table(
            path,
            tuple(Memory(*m) for m in memory),
            tuple(Row(f, i, tuple(map(tuple, a))) for f, i, a in rows),
            tuple(estimates),
        )


@dataclass(frozen=True)
class Asked:
    """What the pass needs and the IR does not say: the bytes of each buffer, by argument word, and
    tinygrad's estimates. The last line of a kernel's IR, a comment."""

    name: str
    path: str
    sizes: tuple[int, ...]
    estimates: tuple[object, object, object]

    def line(self) -> str:
        return MARK + json.dumps(asdict(self))

    @staticmethod
    def of(source: str) -> Asked | None:
        """What a kernel's text asks for; None where it is not to be counted."""
        last = source.rstrip("\n").rsplit("\n", 1)[-1]
        if not last.startswith(MARK):
            return None
        name, path, sizes, estimates = json.loads(last[len(MARK) :]).values()
        return Asked(name, path, tuple(sizes), tuple(estimates))


def asked_of(name: str, path: str, uops: list[UOp]) -> Asked:
    """What is to be known of a linearized kernel."""
    buffers = {u.arg.slot: u for u in uops if u.op is Ops.PARAM and u.addrspace is AddrSpace.GLOBAL}
    sizes = tuple(u.max_numel() * u.dtype.itemsize for _, u in sorted(buffers.items()))
    info = next((u.arg for u in uops if u.op is Ops.SINK), None)
    found = getattr(info, "estimates", None) or Estimates.from_uops(tuple(uops), True)
    numbers = tuple(map(expression, (found.ops, found.lds, found.mem)))
    return Asked(name, path, sizes, numbers)  # type: ignore[arg-type]


def expression(x: object) -> object:
    """A number that may depend on the kernel's variables, as JSON: `[ "MUL", "n", 4 ]`."""
    if not isinstance(x, UOp):
        return int(x)  # type: ignore[call-overload]
    if x.op is Ops.CONST:
        return int(x.val)
    if x.op is Ops.PARAM:
        return x.expr
    return [x.op.name, *map(expression, x.src)]


def evaluate(x: object, values: Mapping[str, int]) -> int:
    """The number; -1 where an expression has something in it that is not known here."""
    found = _evaluate(x, values)
    return -1 if found is None else found


def _evaluate(x: object, values: Mapping[str, int]) -> int | None:
    if isinstance(x, int):
        return x
    if isinstance(x, str):
        return values.get(x)
    assert isinstance(x, (list, tuple))
    numbers = [_evaluate(s, values) for s in x[1:]]
    if x[0] not in OPERATIONS or None in numbers:
        return None
    return int(OPERATIONS[x[0]](*numbers))


OPERATIONS: dict[str, Callable[..., int]] = {
    "ADD": operator.add, "SUB": operator.sub, "MUL": operator.mul, "MAX": max, "NEG": operator.neg,
    "FLOORDIV": operator.floordiv, "FLOORMOD": operator.mod, "CMPLT": operator.lt,
    "XOR": operator.xor, "AND": operator.and_, "OR": operator.or_, "SHL": operator.lshift,
    "CMPNE": operator.ne, "WHERE": lambda a, b, c: b if a else c, "CAST": int,
}  # fmt: skip


def cost(x: Instruction) -> tuple[int, int]:
    """Flops and integer operations of one instruction."""
    word = ".".join(x.name.split(".")[:2]) if x.opcode == "call" else x.opcode
    many = parse.lanes(x.type) if x.type else 1
    if word in FLOPS:
        return FLOPS[word] * many, 0
    if word in INTEGER:
        return 0, many
    if word in FREE:
        return 0, 0
    raise refusal(x, "nothing says what it costs")


def refusal(x: Instruction, why: str) -> CompileError:
    return CompileError(
        f"TGX_COUNT=1 cannot count an instruction ({why}): {x.line}\n"
        "  next: unset TGX_COUNT, or teach tgx/devices/counting.py"
    )


class Counting:
    """One module being rewritten.

    The block of a kernel, in words: the cache model (see counting.ll); two numbers of misses for
    each piece of memory; one counter for each row.
    """

    def __init__(self, module: Module, asked: Asked) -> None:
        self.module, self.asked = module, asked
        self.rows: list[Row] = []
        self.place: dict[Root, int] = {}  # which of the table's memory
        self.base: dict[Root, int] = {}  # and its address in the memory that the model sees
        self.memory = [Memory(f"data{i}", i, n) for i, n in enumerate(asked.sizes)]
        self.top = LINE
        for i, n in enumerate(asked.sizes):
            self.lay(Root("argument", str(i)), n, i)
        self.copies = self.beside("packed copies")
        self.tables = self.beside("constant tables")
        for name, kind in module.tables.items():
            self.lay(Root("table", name), parse.size(kind), self.tables)
        for f in module.functions:
            for x in f:
                if x.opcode == "alloca" and x.result.startswith("%pack"):
                    self.lay(Root("stack", x.result), parse.size(x.element), self.copies)

    def beside(self, name: str) -> int:
        self.memory.append(Memory(name, -1, 0))
        return len(self.memory) - 1

    def lay(self, root: Root, nbytes: int, place: int) -> None:
        """Gives a piece of memory its addresses: one after the other, aligned as the allocator
        aligns buffers."""
        step = BIG if nbytes >= BIG else LINE
        self.place[root], self.base[root] = place, -(-self.top // step) * step
        self.top = self.base[root] + nbytes
        if (m := self.memory[place]).word < 0:
            self.memory[place] = replace(m, nbytes=m.nbytes + nbytes)

    def counter(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def misses(self, place: int) -> int:
        """The word of the block where a memory's misses begin."""
        return 1 + 2 * place

    def word(self, counter: int) -> int:
        """The word of the block where a counter is added up."""
        return 1 + 2 * len(self.memory) + counter

    def text(self) -> str:
        functions = [Counted(self, f).text() for f in self.module.functions]
        whole = "\n".join((*self.module.outside, *functions))
        table = Table(self.asked.path, tuple(self.memory), tuple(self.rows), self.asked.estimates)
        data = table.dumps()
        quoted = data.replace("\\", "\\5C").replace('"', "\\22")
        symbol = f"@{self.asked.name}{SYMBOL} = constant [{len(data) + 1} x i8]"
        return f'{whole}\n{symbol} c"{quoted}\\00"\n'


class Counted:
    """One function being rewritten."""

    def __init__(self, kernel: Counting, f: Function) -> None:
        self.kernel, self.f = kernel, f
        self.inside = {g.name for g in kernel.module.functions}
        self.made = {x.result: x for x in f if x.result}
        self.roots = parse.pointers(kernel.module, f)
        self.starts = dict(self.where_roots_start())
        self.counters: list[int] = []
        self.memory: set[int] = set()  # what it touches
        self.fresh = 0
        self.lines: list[str] = []

    def where_roots_start(self) -> Iterator[tuple[Root, str]]:
        """For each root the pointer to its first byte."""
        passed = {p.text for p in self.f.parameters}
        for name, roots in self.roots.items():
            x = self.made.get(name)
            if name in passed or (x is not None and x.opcode in ("load", "alloca")):
                yield roots[0], name  # of these each has one
        for name in self.kernel.module.tables:
            yield Root("table", name), name

    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def new(self, expression: str) -> str:
        self.fresh += 1
        self.emit(f"%tgx.v{self.fresh} = {expression}")
        return f"%tgx.v{self.fresh}"

    def text(self) -> str:
        f, entry = self.f, self.f.name == self.kernel.asked.name
        head = f.head
        if not entry:
            at = parse.closing(head, head.index("(", head.index("@")))
            head = f"{head[:at]}{', ' if f.parameters else ''}ptr %tgx.block{head[at:]}"
        blocks = [self.block(b.body) for b in f.blocks]
        out = [head]
        for i, (b, lines) in enumerate(zip(f.blocks, blocks, strict=True)):
            self.lines = [f"{b.label}:"] if b.label else []
            if i == 0:
                self.top(entry)
            self.lines += lines[:-1]
            if b.body[-1].opcode == "ret":
                self.add_up()
            out += [*self.lines, lines[-1]]
        return "\n".join([*out, "}"])

    def top(self, entry: bool) -> None:
        """What stands before all: where the model is, and counters at zero. The entry finds its
        block in the word before its arguments; its first chunk empties the caches."""
        if entry:
            words, chunk = (p.text for p in self.f.parameters[:2])
            self.emit(f"%tgx.at = getelementptr i64, ptr {words}, i64 -1")
            self.emit("%tgx.block = load ptr, ptr %tgx.at, align 8")
        self.emit("%tgx.model = load ptr, ptr %tgx.block, align 8")
        for name in (*(("cold",) if entry else ()), "touch", "lanes"):
            self.emit(f"%tgx.{name}.at = getelementptr i64, ptr %tgx.model, i64 {CALLS[name]}")
            self.emit(f"%tgx.{name} = load ptr, ptr %tgx.{name}.at, align 8")
        if entry:
            self.emit(f"call void %tgx.cold(ptr %tgx.model, i64 {chunk})")
        self.emit("%tgx.where = alloca [64 x i64], align 64")
        for n in self.counters:
            self.emit(f"%tgx.n{n} = alloca i64, align 8")
            self.emit(f"store i64 0, ptr %tgx.n{n}, align 8")
        for m in sorted(self.memory):
            at = self.kernel.misses(m)
            self.emit(f"%tgx.misses{m} = getelementptr i64, ptr %tgx.block, i64 {at}")

    def block(self, body: tuple[Instruction, ...]) -> list[str]:
        """A block's lines with its counter, and its accesses shown to the model."""
        flops = integer = 0
        touched: dict[int, list[int]] = {}
        self.lines = []
        for x in body:
            for a in parse.accesses(x):
                self.access(x, a, touched)
            more, whole = (0, 0) if x.name in self.inside else cost(x)
            flops, integer = flops + more, integer + whole
            self.emit(self.passing_on(x))
        if not (flops or integer or touched):
            return self.lines
        accesses = tuple((place, *numbers) for place, numbers in sorted(touched.items()))
        self.counters.append(self.kernel.counter(Row(flops, integer, accesses)))
        lines, self.lines = self.lines, []
        self.bump(self.counters[-1], "1")
        phis = sum(x.opcode == "phi" for x in body)  # they come first
        return [*lines[:phis], *self.lines, *lines[phis:]]

    def passing_on(self, x: Instruction) -> str:
        """The instruction; a call of a function of this module hands the block on."""
        if x.opcode != "call" or x.name not in self.inside:
            return x.line
        at = parse.closing(x.line, x.line.index("(", x.line.index("@")))
        return f"{x.line[:at]}{', ' if x.operands else ''}ptr %tgx.block{x.line[at:]}"

    def bump(self, counter: int, by: str) -> None:
        old = self.new(f"load i64, ptr %tgx.n{counter}, align 8")
        self.emit(f"store i64 {self.new(f'add i64 {old}, {by}')}, ptr %tgx.n{counter}, align 8")

    def add_up(self) -> None:
        """At the end of the function: its counters are added to the block's."""
        for n in self.counters:
            at = self.new(f"getelementptr i64, ptr %tgx.block, i64 {self.kernel.word(n)}")
            here = self.new(f"load i64, ptr %tgx.n{n}, align 8")
            before = self.new(f"load i64, ptr {at}, align 8")
            self.emit(f"store i64 {self.new(f'add i64 {before}, {here}')}, ptr {at}, align 8")

    # ---------- memory ----------

    def access(self, x: Instruction, a: Access, touched: dict[int, list[int]]) -> None:
        """One side of an instruction: into the block's row, or to a counter of its own where a
        mask decides; and to the model."""
        pointer, gate = a.pointer, None
        roots = self.roots.get(pointer.text) or (Root("table", pointer.text),)
        chosen = self.made.get(pointer.text)
        if len(roots) == 2 and chosen is not None and chosen.opcode == "select":
            # a closed gate sends a load to a safe place: that is none
            gate, pointer = chosen.operands[0], chosen.operands[1]
            roots = self.roots[pointer.text]
        if roots == (Root("words", "args"),) or self.is_register(roots):
            return
        if len(roots) != 1 or roots[0] not in self.kernel.place or a.length is not None:
            raise refusal(x, "it is not known what it points into")
        root = roots[0]
        place = self.kernel.place[root]
        self.memory.add(place)
        many, nbytes = parse.lanes(a.type), parse.size(parse.scalar(a.type))
        mask = a.mask if gate is None else gate
        here = f"ptr %tgx.model, ptr %tgx.misses{place}"
        set_bits = literal_bits(mask) if mask is not None else [True] * many
        if set_bits is not None and pointer.type == "ptr" and all(set_bits[: sum(set_bits)]):
            lanes = sum(set_bits)  # in a row from the first
            note(touched, place, a.kind, lanes, nbytes)
            if lanes:
                address = self.address(pointer, root, 1)
                self.emit(f"call void %tgx.touch({here}, i64 {address}, i64 {lanes * nbytes})")
            return
        if set_bits is not None:
            bits = str(sum(1 << i for i, bit in enumerate(set_bits) if bit))
            note(touched, place, a.kind, sum(set_bits), nbytes)
        else:
            assert mask is not None
            bits = self.as_word(mask)
            row: dict[int, list[int]] = {}
            note(row, place, a.kind, 1, nbytes)
            counter = self.kernel.counter(Row(accesses=((place, *row[place]),)))
            self.counters.append(counter)
            self.bump(counter, self.new(f"call i64 @llvm.ctpop.i64(i64 {bits})"))
        address = self.address(pointer, root, many)
        if pointer.type == "ptr" and many > 1:  # lanes in a row: from the first one's address
            address = self.splat(address, many)
            steps = ", ".join(f"i64 {i * nbytes}" for i in range(many))
            address = self.new(f"add <{many} x i64> {address}, <{steps}>")
        kind = "i64" if many == 1 else f"<{many} x i64>"
        self.emit(f"store {kind} {address}, ptr %tgx.where, align 8")
        self.emit(f"call void %tgx.lanes({here}, ptr %tgx.where, i64 {many}, i64 {bits})")

    def is_register(self, roots: tuple[Root, ...]) -> bool:
        return all(r.kind == "stack" and r not in self.kernel.place for r in roots)

    def address(self, pointer: Operand, root: Root, many: int) -> str:
        """Where the model sees a pointer, or a vector of them: as far from its memory's base there
        as it is here from where its memory starts."""
        start = self.new(f"ptrtoint ptr {self.starts[root]} to i64")
        shift = self.new(f"sub i64 {self.kernel.base[root]}, {start}")
        if pointer.type == "ptr":
            at = self.new(f"ptrtoint ptr {pointer.text} to i64")
            return self.new(f"add i64 {at}, {shift}")
        at = self.new(f"ptrtoint {pointer} to <{many} x i64>")
        return self.new(f"add <{many} x i64> {at}, {self.splat(shift, many)}")

    def splat(self, word: str, many: int) -> str:
        one = self.new(f"insertelement <{many} x i64> poison, i64 {word}, i64 0")
        return self.new(
            f"shufflevector <{many} x i64> {one}, <{many} x i64> poison, "
            f"<{many} x i32> zeroinitializer"
        )

    def as_word(self, mask: Operand) -> str:
        """A mask as a number, a bit a lane."""
        many = parse.lanes(mask.type)
        word = mask.text
        if many > 1:
            word = self.new(f"bitcast {mask} to i{many}")
        return word if many == 64 else self.new(f"zext i{many} {word} to i64")


def note(touched: dict[int, list[int]], place: int, kind: str, lanes: int, nbytes: int) -> None:
    """Adds to a row: loads, stores, bytes loaded, bytes stored."""
    row = touched.setdefault(place, [0, 0, 0, 0])
    store = kind == "store"
    row[store] += lanes
    row[2 + store] += lanes * nbytes


def literal_bits(mask: Operand) -> list[bool] | None:
    """The lanes of a mask that is written out; None where it is a value."""
    text = mask.text
    if text.startswith("%"):
        return None
    if text in ("true", "false"):
        return [text == "true"] * parse.lanes(mask.type)
    if text == "zeroinitializer":
        return [False] * parse.lanes(mask.type)
    if text.startswith("splat"):
        return ["true" in text] * parse.lanes(mask.type)
    return [part.split()[1] == "true" for part in parse.parts(text[1:-1])]


def counted(source: str, asked: Asked) -> str:
    """The IR of a kernel with counting put in, and its table as the symbol NAME.counted."""
    try:
        return Counting(parse.parse(source), asked).text()
    except parse.Unread as e:
        raise CompileError(
            f"TGX_COUNT=1 cannot count kernel {asked.name}: {e.given}\n  next: unset TGX_COUNT"
        ) from None
