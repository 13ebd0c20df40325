"""Checked kernels: one pass over a kernel's LLVM IR, before LLVM optimizes it (TGX_CHECK=1).

What a sanitizer does for C, for what TGX's emitters write, on whichever path. The pass makes two
copies of a kernel, and an entry that chooses:

* the *fast* copy checks that every access lies in its buffer, that no number of an undefined
  division, shift or cast is used, and that no NaN or infinity is stored that was not there before;
* the *shadow* copy also keeps a tag for every byte of its buffers: never written, written, written
  in this launch by chunk c. It runs only where that can tell something new, see checking.py.

Bounds. An address is followed back to what it points into: `offset = sum of index * size`, in
bytes, from the start of a buffer, a stack slot or a table, whose sizes are constants. Accesses of a
block that differ by a constant are one check. Sizes being constants, LLVM proves most of what is
left, or moves it out of loops.

Blame. A division by zero whose result a `where` throws away is no error, nor is a number that was
read from unwritten memory and not used. So such a value is given blame, the number of the site that
made it, which goes along with it through arithmetic; a `select` takes the blame of the side it
takes. It is an error where a blamed value is *used*: stored, or taken as an address or a condition.
So is one that was read from another place than was asked for (see `inside` in renderer.py).
(This is how MemorySanitizer treats uninitialized values.)

A failed check records where and what, once, and returns from the kernel; chunks and kernels that
come after do nothing. The table of sites is data in the object file, where `tables_of` finds it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from tgx.devices.parse import (
    Access,
    Block,
    Function,
    Instruction,
    Module,
    Operand,
    Root,
    Unread,
    accesses,
    bits,
    lanes,
    parse,
    pointers,
    scalar,
    size,
)

KINDS = ("memory", "arithmetic", "nan")
"""What TGX_CHECK may name."""

# ***************************** what the run time must know *****************************

# What a failure says it is: the word `what` of a run block.
WHAT = ("", "bounds", "nan", "infinity", "blame", "race on a store", "race on a load")
BOUNDS, NAN, INFINITY, BLAME, RACE_STORE, RACE_LOAD = range(1, 7)

# struct run, one for all launches of a device, in 64-bit words: what failed first, and functions
STATE, LAUNCH, SITE, CHUNK, OFFSET, WHAT_WORD, DETAIL = range(7)
FAIL, LOADED, STORED, SCAN = range(8, 12)
RUN_WORDS = 12

# struct launch, in 64-bit words: the run, the launch's number, whether to run the shadow copy, the
# tags of each argument (or 0), and for each site a note: the value, or the place, that was bad.
LAUNCH_RUN, LAUNCH_NUMBER, LAUNCH_SHADOW, LAUNCH_TAGS = range(4)


@dataclass(frozen=True)
class Argument:
    """A buffer, as the kernel was compiled for it."""

    name: str
    bytes: int
    dtype: str
    item: int  # bytes of an element
    loaded: bool = False
    stored: bool = False


@dataclass(frozen=True)
class Site:
    """A place in a kernel where a check is made."""

    kind: str  # access, divide, shift, cast, float, unwritten, outside
    line: str  # of LLVM IR
    word: int = -1  # the argument; -1 for what is the kernel's own
    target: str = ""  # the stack slot or table, where it is one
    limit: int = 0  # bytes
    item: int = 1  # bytes of an element
    members: tuple[tuple[str, int, int], ...] = ()  # load or store, constant offset, bytes


@dataclass(frozen=True)
class Table:
    """All that the run time knows of a checked kernel."""

    arguments: tuple[Argument, ...]
    sites: tuple[Site, ...]
    kinds: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def table_of(text: str) -> Table:
    """The table, from its JSON."""
    d = json.loads(text)
    sites = []
    for s in d["sites"]:
        s["members"] = tuple((k, c, n) for k, c, n in s["members"])
        sites.append(Site(**s))
    return Table(tuple(Argument(**a) for a in d["arguments"]), tuple(sites), tuple(d["kinds"]))


TABLE_SUFFIX = ".tgx.table"


# ***************************** addresses *****************************


@dataclass(frozen=True)
class Place:
    """Where a pointer points: bytes from the start of what it points into.

    The offset is the sum of `terms` (an operand times a number of bytes), and `const`; for a vector
    of pointers each lane has a constant of its own, or a term."""

    terms: tuple[tuple[Operand, int], ...] = ()
    const: int = 0
    lanes: tuple[int, ...] = ()
    vector: tuple[tuple[Operand, int], ...] = ()
    limit: int | str = 0  # bytes of what it points into
    root: Root | None = None  # None: one of two
    tags: str = ""  # the argument's tags


def constants(o: Operand) -> tuple[int, ...] | None:
    """The numbers of a constant, lane by lane; None for a value."""
    n, text = lanes(o.type), o.text
    if text.startswith(("%", "@")):
        return None
    if text in ("zeroinitializer", "poison", "undef"):
        return (0,) * n
    if text.startswith("splat ("):
        return (_number(text[7:-1].split()[-1]),) * n
    if text[0] == "<":
        return tuple(_number(part.split()[-1]) for part in text[1:-1].split(","))
    return (_number(text),)


def _number(word: str) -> int:
    return {"true": 1, "false": 0}.get(word) if word in ("true", "false") else int(word)  # type: ignore[return-value]


def element_sizes(x: Instruction) -> list[int]:
    """What each index of a getelementptr counts, in bytes."""
    kind, sizes = x.element, [size(x.element)]
    for _ in x.operands[2:]:
        if kind[0] != "[":
            raise Unread(x.line)
        kind = kind[kind.index(" x ") + 3 : -1]
        sizes.append(size(kind))
    return sizes


# ***************************** the pass *****************************


def checked(
    text: str, arguments: Iterable[Argument], kinds: Iterable[str] = KINDS, literals: int = 0
) -> str:
    """The checked form of a kernel's IR.

    `arguments` are its buffers, in the order of the argument words. `literals` says which numbers
    that are not finite the program itself asks for: 1 NaN, 2 infinity.
    """
    module = parse(text)
    arguments = list(arguments)
    (entry,) = (f for f in module.functions if not internal(f))
    kinds = tuple(k for k in KINDS if k in set(kinds))
    sites: list[Site] = []
    functions: list[str] = []
    for shadow in (False, True) if "memory" in kinds else (False,):
        for function in module.functions:
            writer = Checker(module, function, shadow, sites, arguments, kinds)
            functions.append(writer.text())
            for a in writer.touched:
                w = int(a[0])
                change = {"loaded": True} if a[1] == "load" else {"stored": True}
                arguments[w] = replace(arguments[w], **change)
    table = Table(tuple(arguments), tuple(sites), kinds)
    return "\n".join(
        [
            *module.outside,
            data(f"@{entry.name}{TABLE_SUFFIX}", table.to_json()),
            *functions,
            entry_text(entry.name, "memory" in kinds),
            FAIL_TEXT.format(fail=FAIL, notes=LAUNCH_TAGS + len(arguments)),
            excused_text(arguments, literals),
            "",
        ]
    )


def internal(f: Function) -> bool:
    return " internal " in f.head.split("@")[0]


def data(name: str, text: str) -> str:
    """A constant string of the module, that ends with a zero."""
    raw = text.encode() + b"\0"
    safe = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in raw)
    return f'{name} = constant [{len(raw)} x i8] c"{safe}"'


def entry_text(name: str, shadow: bool) -> str:
    """The kernel's entry: nothing, once something has failed; else the copy that is wanted."""
    choose = f"""  %shadow.at = getelementptr i64, ptr %launch, i64 {LAUNCH_SHADOW}
  %shadow = load i64, ptr %shadow.at, align 8
  %tagged = icmp ne i64 %shadow, 0
  br i1 %tagged, label %slow, label %fast
slow:
  call void @{name}.shadow(ptr %args, i64 %chunk)
  ret void"""
    return f"""
define void @{name}(ptr noalias readonly %args, i64 %chunk) nounwind {{
  %launch.at = getelementptr i64, ptr %args, i64 -1
  %launch = load ptr, ptr %launch.at, align 8
  %run = load ptr, ptr %launch, align 8
  %state = load atomic i64, ptr %run monotonic, align 8
  %stopped = icmp ne i64 %state, 0
  br i1 %stopped, label %out, label %go
go:
{choose if shadow else "  br label %fast"}
fast:
  call void @{name}.fast(ptr %args, i64 %chunk)
  ret void
out:
  ret void
}}"""


FAIL_TEXT = """
define internal void @tgx.fail(ptr %args, i64 %chunk, i64 %site, i64 %what, i64 %offset, \
i64 %detail) cold noinline nounwind {{
  %launch.at = getelementptr i64, ptr %args, i64 -1
  %launch = load ptr, ptr %launch.at, align 8
  %run = load ptr, ptr %launch, align 8
  %fail.at = getelementptr i64, ptr %run, i64 {fail}
  %fail = load ptr, ptr %fail.at, align 8
  call void %fail(ptr %launch, i64 %chunk, i64 %site, i64 %what, i64 %offset, i64 %detail)
  ret void
}}

define internal void @tgx.note(ptr %args, i64 %site, i64 %value) cold noinline nounwind {{
  %launch.at = getelementptr i64, ptr %args, i64 -1
  %launch = load ptr, ptr %launch.at, align 8
  %notes.at = getelementptr i64, ptr %launch, i64 {notes}
  %note.at = getelementptr i64, ptr %notes.at, i64 %site
  store atomic i64 %value, ptr %note.at monotonic, align 8
  ret void
}}"""

FLOATS = {"half": 0, "bfloat16": 1, "float": 2, "double": 3}
"""dtypes whose NaN and infinities `tgx_scan` (check.ll) finds, and its number for them."""


def excused_text(arguments: list[Argument], literals: int) -> str:
    """`tgx.excused(args, seen, wanted)`: was a NaN (wanted 1) or an infinity (2) there before?

    A kernel's inputs are looked through once for each chunk that asks; `seen` keeps the answer. An
    infinity may come of an infinity or a NaN, a NaN only of a NaN: inf - inf is where it appears.
    """
    lines, found = [], str(literals)
    for word, a in enumerate(arguments):
        if not a.loaded or a.dtype not in FLOATS:
            continue
        lines += [
            f"  %at{word} = getelementptr i64, ptr %args, i64 {word}",
            f"  %p{word} = load ptr, ptr %at{word}, align 8",
            f"  %s{word} = call i64 %scan(ptr %p{word}, i64 {a.bytes // a.item}, "
            f"i64 {FLOATS[a.dtype]})",
            f"  %f{word} = or i64 {found}, %s{word}",
        ]
        found = f"%f{word}"
    look = "\n".join(lines)
    return f"""
define internal i1 @tgx.excused(ptr %args, ptr %seen, i64 %wanted) cold noinline nounwind {{
  %old = load i64, ptr %seen, align 8
  %known = icmp ne i64 %old, 0
  br i1 %known, label %answer, label %look
look:
  %launch.at = getelementptr i64, ptr %args, i64 -1
  %launch = load ptr, ptr %launch.at, align 8
  %run = load ptr, ptr %launch, align 8
  %scan.at = getelementptr i64, ptr %run, i64 {SCAN}
  %scan = load ptr, ptr %scan.at, align 8
{look}
  %new = or i64 {found}, 4
  store i64 %new, ptr %seen, align 8
  br label %answer
answer:
  %have = phi i64 [ %old, %0 ], [ %new, %look ]
  %all = icmp eq i64 %wanted, 1
  %mask = select i1 %all, i64 1, i64 3
  %hit = and i64 %have, %mask
  %excused = icmp ne i64 %hit, 0
  ret i1 %excused
}}"""


ARITHMETIC_SITES = {
    **dict.fromkeys(("udiv", "sdiv", "urem", "srem"), "divide"),
    **dict.fromkeys(("shl", "lshr", "ashr"), "shift"),
    **dict.fromkeys(("fptosi", "fptoui"), "cast"),
}


def arithmetic_site(x: Instruction) -> str:
    """What an operation may be undefined as; "" for most."""
    if x.opcode == "call":
        return "cast" if x.name.startswith(("llvm.fptosi.sat", "llvm.fptoui.sat")) else ""
    kind = ARITHMETIC_SITES.get(x.opcode, "")
    if kind in ("divide", "shift") and (known := constants(x.operands[1])) is not None:
        width = bits(scalar(x.type))
        fine = (
            all(n != 0 for n in known) if kind == "divide" else all(0 <= n < width for n in known)
        )
        return "" if fine else kind
    return kind


@dataclass
class Group:
    """Accesses of one block that differ by a constant: one check for all."""

    low: int
    high: int
    members: list[tuple[str, int, int]] = field(default_factory=list)
    line: str = ""


class Checker:
    """Writes one function anew, with its checks."""

    def __init__(
        self,
        module: Module,
        function: Function,
        shadow: bool,
        sites: list[Site],
        arguments: list[Argument],
        kinds: tuple[str, ...],
    ) -> None:
        self.module, self.function, self.shadow = module, function, shadow
        self.sites, self.arguments, self.kinds = sites, arguments, kinds
        self.roots = pointers(module, function)
        self.made = {x.result: x for x in function if x.result}
        self.users: dict[str, list[Instruction]] = {}
        for x in function:
            for o in x.operands:
                self.users.setdefault(o.text, []).append(x)
        self.places: dict[str, Place] = {}
        self.touched: set[tuple[str, str]] = set()  # (argument word, load or store)
        self.out: list[str] = []
        self.first: list[str] = []  # what belongs at the head of the entry block
        self.cold: list[str] = []
        self.ends: dict[str, str] = {}  # a block's label -> that of its last piece
        self.sums: dict[tuple[tuple[Operand, int], ...], str] = {}
        self.count = 0
        self.label = ""
        self.tagged: dict[str, str] = {}  # argument word -> its tags
        self.entry = not internal(function)
        self.args = function.parameters[0].text if self.entry else "%tgx.args"
        self.chunk = function.parameters[1].text if self.entry else "%tgx.chunk"
        self.blames: dict[str, str] = {}  # a value -> its blame, often another's
        self.joined: dict[tuple[str, ...], str] = {}  # blames of this block that were put together
        self.blamed = self.taint()

    # ---------- writing ----------

    def emit(self, line: str) -> None:
        self.out.append("  " + line)

    def new(self) -> str:
        self.count += 1
        return f"%tgx.{self.count}"

    def let(self, expression: str) -> str:
        name = self.new()
        self.emit(f"{name} = {expression}")
        return name

    def start(self, label: str) -> None:
        self.out.append(f"{label}:")
        self.label = label

    def site(self, site: Site) -> int:
        self.sites.append(site)
        return len(self.sites) - 1

    def text(self) -> str:
        function, suffix = self.function, ".shadow" if self.shadow else ".fast"
        for block in function.blocks:
            self.block(block)
        body = [line if isinstance(line, str) else self.phi(*line) for line in self.out]
        head = function.head.replace(f"@{function.name}(", f"@{function.name}{suffix}(")
        if self.entry:
            head = head.replace("define ", "define internal ", 1)
        else:
            at = head.rindex(")")
            comma = ", " if function.parameters else ""
            head = f"{head[:at]}{comma}ptr %tgx.args, i64 %tgx.chunk{head[at:]}"
        at = 1 if function.blocks[0].label else 0
        return "\n".join(["", head, *body[:at], *self.first, *body[at:], *self.cold, "}"])

    def phi(self, x: Instruction, result: str, kind: str, values: list[str] | None) -> str:
        if values is None:  # of blame, which is known by now
            values = [self.blame(o) for o in x.operands]
        incoming = ", ".join(
            f"[ {v}, %{self.ends.get(label, label)} ]"
            for v, label in zip(values, x.labels, strict=True)
        )
        return f"  {result} = phi {kind} {incoming}"

    def block(self, block: Block) -> None:
        if block.label:
            self.start(block.label)
        self.sums, self.joined = {}, {}
        groups = self.groups(block) if "memory" in self.kinds else {}
        phis = [x for x in block.body if x.opcode == "phi"]
        for x in phis:
            self.out.append((x, x.result, x.type, [o.text for o in x.operands]))  # type: ignore[arg-type]
        for x in phis:
            if x.result in self.blamed:
                name, kind = f"{x.result}.blame", blame_type(lanes(x.type))
                self.blames[x.result] = name
                self.out.append((x, name, kind, None))  # type: ignore[arg-type]
        for x in block.body:
            if x.opcode != "phi":
                self.instruction(x, groups)
        if block.label:
            self.ends[block.label] = self.label

    def instruction(self, x: Instruction, groups: dict[object, Group]) -> None:
        touching = [(a, p) for a in accesses(x) if (p := self.place(a.pointer)) is not None]
        for a, place in touching:
            if place.root is not None and place.root.kind == "argument":
                self.touched.add((place.root.name, a.kind))
            elif place.root is None:
                words = [r for r in self.roots[a.pointer.text] if r.kind == "argument"]
                self.touched |= {(r.name, a.kind) for r in words}
            if "memory" in self.kinds:
                self.inside(x, a, place, groups)
            self.no_blame(x, a.pointer, a.mask, place)
            if a.value is not None:
                self.no_blame(x, a.value, a.mask, place)
                if "nan" in self.kinds and not (place.root and place.root.kind != "argument"):
                    self.finite(x, a, place)
            if self.shadow:
                self.tags(x, a, place)
        if x.opcode == "br" and x.operands:
            self.no_blame(x, x.operands[0], None, None)
        if (kind := arithmetic_site(x)) and "arithmetic" in self.kinds:
            self.defined(x, kind)
        if (near := self.near(x)) is not None:
            self.meant_inside(x, near)
        if x.opcode == "call" and any(x.name == f.name for f in self.module.functions):
            self.call(x)
        else:
            self.emit(x.line)
        if x.opcode == "select" and x.type == "ptr" and x.result in self.places:
            self.choose(x)
        if x.result in self.blamed:
            self.pass_on(x)

    def call(self, x: Instruction) -> None:
        """Of a body: the copy of the same kind, with two arguments more."""
        given = ", ".join(map(str, x.operands))
        comma = ", " if given else ""
        suffix = ".shadow" if self.shadow else ".fast"
        self.emit(f"call void @{x.name}{suffix}({given}{comma}ptr {self.args}, i64 {self.chunk})")

    # ---------- where pointers point ----------

    def place(self, pointer: Operand) -> Place | None:
        """None for the argument words, which nobody can get wrong."""
        name = pointer.text
        if name not in self.places:
            if (found := self.find(name)) is None:
                return None
            self.places[name] = found
        return self.places[name]

    def find(self, name: str) -> Place | None:
        if name.startswith("@"):
            return Place(limit=size(self.module.tables[name]), root=Root("table", name))
        x = self.made.get(name)
        if x is not None and x.opcode == "getelementptr":
            base = self.place(x.operands[0])
            return None if base is None else self.moved(base, x)
        roots = self.roots.get(name, ())
        if x is not None and x.opcode == "select" and x.type == "ptr":
            return Place(
                terms=((Operand("i64", f"{name}.offset"), 1),),
                limit=f"{name}.limit",
                tags=f"{name}.tags",
            )
        if len(roots) != 1 or roots[0].kind == "unknown":
            raise Unread(x.line if x is not None else name)
        (root,) = roots
        if root.kind == "words":
            return None
        if root.kind == "argument":
            return Place(limit=self.arguments[int(root.name)].bytes, root=root)
        assert x is not None
        count = constants(x.operands[0]) if x.operands else (1,)
        if count is None:
            raise Unread(x.line)
        return Place(limit=size(x.element) * count[0], root=root)

    def moved(self, base: Place, x: Instruction) -> Place:
        place = base
        for o, step in zip(x.operands[1:], element_sizes(x), strict=True):
            known, n = constants(o), lanes(o.type)
            if known is None:
                term = ((o, step),)
                place = (
                    replace(place, vector=place.vector + term)
                    if n > 1
                    else replace(place, terms=place.terms + term)
                )
            elif n == 1:
                place = replace(place, const=place.const + known[0] * step)
            else:
                had = place.lanes or (0,) * n
                here = tuple(a + b * step for a, b in zip(had, known, strict=True))
                place = replace(place, lanes=here)
        return place

    def choose(self, x: Instruction) -> None:
        """A pointer that is one of two: so are its offset and its limit."""
        condition = x.operands[0]
        sides = [self.place(o) for o in x.operands[1:]]
        offsets, limits, tags = [], [], []
        for side in sides:
            if side is None:
                raise Unread(x.line)
            offsets.append(f"i64 {self.offset(side)}")
            limits.append(f"i64 {side.limit}")
            tags.append(f"ptr {self.tags_of(side)}")
        for what, given in (("offset", offsets), ("limit", limits), ("tags", tags)):
            if what != "tags" or self.shadow:
                self.emit(f"{x.result}.{what} = select {condition}, {', '.join(given)}")

    def offset(self, place: Place) -> str:
        """The scalar part of a place's offset, as a value or a number."""
        if not place.terms:
            return str(place.const)
        if place.terms not in self.sums:
            total = ""
            for o, step in place.terms:
                part = o.text
                if o.type != "i64":
                    part = self.let(f"sext {o} to i64")
                if step != 1:
                    part = self.let(f"mul i64 {part}, {step}")
                total = self.let(f"add i64 {total}, {part}") if total else part
            self.sums[place.terms] = total
        base = self.sums[place.terms]
        return base if not place.const else self.let(f"add i64 {base}, {place.const}")

    def lane_offsets(self, place: Place, n: int, item: int) -> str:
        """The offset of every lane: <n x i64>."""
        kind, base = f"<{n} x i64>", self.offset(place)
        total = self.splat("i64", n, base)
        steps = place.lanes
        if not steps and not place.vector:
            steps = tuple(i * item for i in range(n))
        if steps:
            words = ", ".join(f"i64 {s}" for s in steps)
            total = self.let(f"add {kind} {total}, <{words}>")
        for o, step in place.vector:
            part = o.text if scalar(o.type) == "i64" else self.let(f"sext {o} to {kind}")
            part = self.let(f"mul {kind} {part}, {splat_constant('i64', n, step)}")
            total = self.let(f"add {kind} {total}, {part}")
        return total

    def splat(self, kind: str, n: int, value: str) -> str:
        if not value.startswith("%"):
            return splat_constant(kind, n, value)
        one = self.let(f"insertelement <{n} x {kind}> poison, {kind} {value}, i64 0")
        return self.let(
            f"shufflevector <{n} x {kind}> {one}, <{n} x {kind}> poison, "
            f"<{n} x i32> zeroinitializer"
        )

    # ---------- failing ----------

    def fail_if(self, bad: str, site: int, what: int, offset: str = "0", detail: str = "0") -> None:
        """Leaves the kernel where `bad` holds."""
        self.count += 1
        n = self.count
        self.emit(f"br i1 {bad}, label %tgx.bad{n}, label %tgx.ok{n}")
        self.cold += [f"tgx.bad{n}:", *self.failing(site, what, offset, detail)]
        self.start(f"tgx.ok{n}")

    def failing(self, site: int, what: int, offset: str, detail: str) -> list[str]:
        return [
            f"  call void @tgx.fail(ptr {self.args}, i64 {self.chunk}, i64 {site}, i64 {what}, "
            f"i64 {offset}, i64 {detail})",
            "  ret void",
        ]

    def any(self, mask: str, n: int) -> str:
        """Is one of n bits set?"""
        if n == 1:
            return mask
        word = self.let(f"bitcast <{n} x i1> {mask} to i{n}")
        return self.let(f"icmp ne i{n} {word}, 0")

    # ---------- bounds ----------

    def groups(self, block: Block) -> dict[object, Group]:
        """The accesses of a block that one check does for."""
        found: dict[object, Group] = {}
        for x in block.body:
            for a in accesses(x):
                place = self.place(a.pointer)
                span = None if place is None else self.span(a, place)
                if place is None or span is None:
                    continue
                group = found.setdefault(self.key(place), Group(*span))
                group.low, group.high = min(group.low, span[0]), max(group.high, span[1])
                group.members.append((a.kind, span[0], span[1] - span[0]))
                group.line = group.line or x.line
        return found

    def key(self, place: Place) -> object:
        return place.terms, place.limit, place.root

    def span(self, a: Access, place: Place) -> tuple[int, int] | None:
        """The bytes that are touched, from the place's terms on, where constants say so."""
        if place.vector:
            return None
        if a.length is not None:
            if (length := constants(a.length)) is None:
                raise Unread(str(a.length))
            return place.const, place.const + length[0]
        n, item = lanes(a.type), size(scalar(a.type))
        on = constants(a.mask) if a.mask is not None else (1,) * n
        if on is None:
            return None
        steps = place.lanes or tuple(i * item for i in range(n))
        if a.mask is None and not place.lanes:  # (eight i1 are one byte)
            return place.const, place.const + size(a.type)
        touched = [s for s, bit in zip(steps, on, strict=True) if bit]
        if not touched:
            return None
        return place.const + min(touched), place.const + max(touched) + item

    def inside(self, x: Instruction, a: Access, place: Place, groups: dict[object, Group]) -> None:
        """The check that an access lies inside of what it points into."""
        if self.span(a, place) is not None:
            group = groups.pop(self.key(place), None)
            if group is not None:
                self.inside_group(group, a, place)
            return
        mask = constants(a.mask) if a.mask is not None else None
        if mask is not None and not any(mask):
            return
        n, item = lanes(a.type), size(scalar(a.type))
        site = self.site(self.access_site(a, place, x.line, ((a.kind, 0, item),)))
        hull = None if place.vector else (
            min(place.lanes or (0,)),
            max(place.lanes or (item * (n - 1),)) + item,
        )  # fmt: skip
        self.count += 1
        tag = self.count
        if hull is not None:  # all lanes, mask or not: nearly always inside
            whole = self.beyond(replace(place, const=place.const + hull[0]), hull[1] - hull[0])
            self.emit(f"br i1 {whole}, label %tgx.each{tag}, label %tgx.in{tag}")
            self.start(f"tgx.each{tag}")
        saved, self.sums = self.sums, dict(self.sums)
        offsets = self.lane_offsets(place, n, item)
        most = (
            self.splat("i64", n, self.let(f"sub i64 {place.limit}, {item}"))
            if isinstance(place.limit, str)
            else splat_constant("i64", n, place.limit - item)
        )
        bad = self.let(f"icmp ugt <{n} x i64> {offsets}, {most}")
        if a.mask is not None:
            bad = self.let(f"and {a.mask}, {bad}")
        word = self.let(f"bitcast <{n} x i1> {bad} to i{n}")
        some = self.let(f"icmp ne i{n} {word}, 0")
        self.emit(f"br i1 {some}, label %tgx.bad{tag}, label %tgx.in{tag}")
        lane, offset = self.new(), self.new()
        self.cold += [
            f"tgx.bad{tag}:",
            f"  {lane} = call i{n} @llvm.cttz.i{n}(i{n} {word}, i1 false)",
            f"  {offset} = extractelement <{n} x i64> {offsets}, i{n} {lane}",
            *self.failing(site, BOUNDS, offset, "0"),
        ]
        self.sums = saved
        self.start(f"tgx.in{tag}")

    def inside_group(self, group: Group, a: Access, place: Place) -> None:
        here = replace(place, const=group.low, lanes=())
        length = group.high - group.low
        fixed = not place.terms and isinstance(place.limit, int)
        if fixed and group.low >= 0 and group.high <= int(place.limit):
            return
        members = tuple(dict.fromkeys(group.members))
        site = self.site(self.access_site(a, place, group.line, members))
        bad = "true" if fixed else self.beyond(here, length)
        self.fail_if(bad, site, BOUNDS, self.offset(replace(here, const=0)))

    def access_site(
        self, a: Access, place: Place, line: str, members: tuple[tuple[str, int, int], ...]
    ) -> Site:
        root = place.root
        word = int(root.name) if root is not None and root.kind == "argument" else -1
        if root is None:
            words = [r for r in self.roots[a.pointer.text] if r.kind == "argument"]
            word = int(words[0].name) if words else -1
        target = f"{root.kind} {root.name}" if root is not None and word < 0 else ""
        limit = place.limit if isinstance(place.limit, int) else 0
        return Site("access", line, word, target, limit, size(scalar(a.type)), members)

    def beyond(self, place: Place, length: int) -> str:
        """Do `length` bytes from a place on reach outside?"""
        offset = self.offset(place)
        if isinstance(place.limit, int):
            if place.limit < length:
                return "true"
            return self.let(f"icmp ugt i64 {offset}, {place.limit - length}")
        most = self.let(f"sub i64 {place.limit}, {length}")
        far = self.let(f"icmp ugt i64 {offset}, {most}")
        small = self.let(f"icmp ult i64 {place.limit}, {length}")
        return self.let(f"or i1 {far}, {small}")

    # ---------- blame ----------

    def taint(self) -> set[str]:
        """The values that may be blamed."""
        found: set[str] = set()
        for x in self.function:
            if ("arithmetic" in self.kinds and arithmetic_site(x)) or self.near(x) or (
                self.shadow and any(self.has_tags(a.pointer) for a in accesses(x)) and x.result
            ):
                found.add(x.result)
        grew = bool(found)
        while grew:
            grew = False
            for x in self.function:
                if not x.result or x.result in found or x.opcode in ("load", "alloca"):
                    continue
                if any(o.text in found for o in x.operands):
                    found.add(x.result)
                    grew = True
        return found

    def has_tags(self, pointer: Operand) -> bool:
        return any(r.kind == "argument" for r in self.roots.get(pointer.text, ()))

    def blame(self, o: Operand, n: int = 0) -> str:
        """An operand's blame, for n lanes."""
        have = lanes(o.type)
        n = n or have
        if o.text not in self.blamed:
            return "0" if n == 1 else "zeroinitializer"
        name = self.blames[o.text]
        if n == have or name in ("0", "zeroinitializer"):
            return name if n == have else "0" if n == 1 else "zeroinitializer"
        if have > 1:
            name = self.let(f"call i32 @llvm.vector.reduce.umax.v{have}i32(<{have} x i32> {name})")
        return name if n == 1 else self.splat("i32", n, name)

    def worst(self, given: list[str], n: int) -> str:
        """The blame of what is made of several."""
        given = [g for g in dict.fromkeys(given) if g not in ("0", "zeroinitializer")]
        if not given:
            return "0" if n == 1 else "zeroinitializer"
        kind, suffix = blame_type(n), "i32" if n == 1 else f"v{n}i32"
        total = given[0]
        for g in given[1:]:
            pair = (total, g)
            if pair not in self.joined:
                both = f"call {kind} @llvm.umax.{suffix}({kind} {total}, {kind} {g})"
                self.joined[pair] = self.let(both)
            total = self.joined[pair]
        return total

    def pass_on(self, x: Instruction) -> None:
        """The blame of a result, from its operands' (and its own)."""
        n, o = lanes(x.type), x.operands
        kind = blame_type(n)
        if x.opcode == "select":
            of_condition = self.blame(o[0], n)
            a, b = (f"{kind} {self.blame(v, n)}" for v in o[1:])
            taken = self.let(f"select {o[0]}, {a}, {b}")
            if self.guards(x):
                taken = self.blame(o[2], n)
            total = self.worst([of_condition, taken], n)
        elif x.opcode == "insertelement":
            total = self.let(
                f"insertelement {kind} {self.blame(o[0])}, i32 {self.blame(o[1])}, {o[2]}"
            )
        elif x.opcode == "extractelement":
            many = lanes(o[0].type)
            total = self.let(f"extractelement <{many} x i32> {self.blame(o[0])}, {o[1]}")
        elif x.opcode == "shufflevector":
            many = f"<{lanes(o[0].type)} x i32>"
            a, b = (f"{many} {self.blame(v)}" for v in o[:2])
            total = self.let(f"shufflevector {a}, {b}, {o[2]}")
        elif (found := accesses(x)) and x.result:
            self.of_load(x, found[0], n)
            return
        else:
            given = [self.blame(v, n) for v in o if v.text in self.blamed]
            if x.result in self.blames:  # its own
                given.append(self.blames[x.result])
            total = self.worst(given, n)
        self.blames[x.result] = total

    def of_load(self, x: Instruction, a: Access, n: int) -> None:
        """What was loaded is to blame where it was never written."""
        kind = blame_type(n)
        given = [self.blame(a.otherwise, n)] if a.otherwise is not None else []
        if x.result in self.blames:  # its own
            given.append(self.blames[x.result])
        if a.mask is not None and a.otherwise is not None and a.otherwise.text in self.blamed:
            zero = "0" if n == 1 else "zeroinitializer"
            given = [self.let(f"select {a.mask}, {kind} {zero}, {kind} {given[0]}")]
        if self.has_tags(a.pointer) and self.shadow:
            given.append(self.let(f"load {kind}, ptr %tgx.out, align 4"))
        self.blames[x.result] = self.worst(given, n)

    def no_blame(
        self, x: Instruction, o: Operand, mask: Operand | None, place: Place | None
    ) -> None:
        """A use: here a blamed value is an error."""
        if o.text not in self.blamed:
            return
        n = lanes(o.type)
        blame = self.blames[o.text]
        if blame in ("0", "zeroinitializer"):
            return
        if mask is not None and n == lanes(mask.type) and n > 1:
            blame = self.let(f"select {mask}, <{n} x i32> {blame}, <{n} x i32> zeroinitializer")
        if n > 1:
            word = self.let(f"icmp ne <{n} x i32> {blame}, zeroinitializer")
            bad = self.any(word, n)
            worst = self.let(f"call i32 @llvm.vector.reduce.umax.v{n}i32(<{n} x i32> {blame})")
        else:
            worst = blame
            bad = self.let(f"icmp ne i32 {blame}, 0")
        detail = self.let(f"zext i32 {worst} to i64")
        offset = self.offset(place) if place is not None else "0"
        known = place is not None and (place.root is None or place.root.kind == "argument")
        access = Access("store", Operand("ptr", ""), o.type)
        site = (
            Site("use", x.line)
            if place is None or not known or place.root is None
            else replace(self.access_site(access, place, x.line, ()), kind="use")
        )
        self.fail_if(bad, self.site(site), BLAME, offset, detail)

    def near(self, x: Instruction) -> Instruction | None:
        """The `umin` with which the renderer keeps a load inside of its buffer (`inside` there)."""
        if x.opcode != "load" or "memory" not in self.kinds:
            return None
        pointer = self.made.get(x.operands[0].text)
        if pointer is None or pointer.opcode != "getelementptr":
            return None
        near = self.made.get(pointer.operands[-1].text)
        kept = near is not None and near.result.startswith("%inside")
        return near if kept else None

    def meant_inside(self, x: Instruction, near: Instruction) -> None:
        """Blames what was loaded from another place than it was asked for."""
        index, last = near.operands
        (access,) = accesses(x)
        place = self.place(access.pointer)
        assert place is not None
        site = self.site(replace(self.access_site(access, place, x.line, ()), kind="outside"))
        bad = self.let(f"icmp ugt {index}, {last.text}")
        self.note_where(bad, index, bad, 1, site)
        blame = self.let(f"select i1 {bad}, i32 {site + 1}, i32 0")
        n = lanes(x.type)
        self.blames[x.result] = blame if n == 1 else self.splat("i32", n, blame)

    def note_where(self, some: str, value: Operand, bad: str, n: int, site: int) -> None:
        """Keeps a value in the launch's notes, where `some` holds."""
        self.count += 1
        tag = self.count
        self.emit(f"br i1 {some}, label %tgx.note{tag}, label %tgx.go{tag}")
        self.cold += [f"tgx.note{tag}:", *self.noting(value, bad, n, site)]
        self.cold.append(f"  br label %tgx.go{tag}")
        self.start(f"tgx.go{tag}")

    # ---------- arithmetic ----------

    def defined(self, x: Instruction, kind: str) -> None:
        """Blames the result of an operation that has none."""
        n = lanes(x.type)
        if kind == "divide":
            bad = self.zero_divisor(x, n)
            value = x.operands[0]
        elif kind == "shift":
            width = bits(scalar(x.type))
            bad = self.let(f"icmp uge {x.operands[1]}, {splat_or(x.type, n, width)}")
            value = x.operands[1]
        else:
            bad = self.outside_range(x, n)
            value = x.operands[0]
        site = self.site(Site(kind, x.line))
        self.note_where(self.any(bad, n), value, bad, n, site)
        k = blame_type(n)
        yes = splat_or(k, n, site + 1)
        no = "0" if n == 1 else "zeroinitializer"
        test = "i1" if n == 1 else f"<{n} x i1>"
        self.blames[x.result] = self.let(f"select {test} {bad}, {k} {yes}, {k} {no}")

    def noting(self, value: Operand, bad: str, n: int, site: int) -> list[str]:
        """Lines that keep the bits of the first bad lane of a value."""
        lines, name, kind = [], value.text, scalar(value.type)
        if n > 1:
            word, lane, one = self.new(), self.new(), self.new()
            lines += [
                f"  {word} = bitcast <{n} x i1> {bad} to i{n}",
                f"  {lane} = call i{n} @llvm.cttz.i{n}(i{n} {word}, i1 false)",
                f"  {one} = extractelement {value}, i{n} {lane}",
            ]
            name = one
        if kind in ("half", "float"):
            wide = self.new()
            lines.append(f"  {wide} = fpext {kind} {name} to double")
            name, kind = wide, "double"
        if kind != "i64":
            wide = self.new()
            how = "bitcast" if kind == "double" else "sext"
            lines.append(f"  {wide} = {how} {kind} {name} to i64")
            name = wide
        lines.append(f"  call void @tgx.note(ptr {self.args}, i64 {site}, i64 {name})")
        return lines

    def guards(self, x: Instruction) -> bool:
        """Is this an emitter's own `divisor == 0 ? 0 : quotient`, around a division it guarded?"""
        test, quotient = (self.made.get(x.operands[i].text) for i in (0, 2))
        if test is None or quotient is None or test.opcode != "icmp":
            return False
        if arithmetic_site(quotient) != "divide":
            return False
        guard = self.made.get(quotient.operands[1].text)
        return (
            guard is not None and guard.opcode == "select" and guard.operands[2] == test.operands[0]
        )

    def zero_divisor(self, x: Instruction, n: int) -> str:
        """Emitters guard a division: `select(bad, 1, divisor)`. The divisor is what they guard."""
        divisor = x.operands[1]
        guard = self.made.get(divisor.text)
        guarded = (
            guard is not None
            and guard.opcode == "select"
            and (ones := constants(guard.operands[1])) is not None
            and all(o == 1 for o in ones)
        )
        if guarded:
            assert guard is not None
            divisor = guard.operands[2]
        bad = self.let(f"icmp eq {divisor}, {splat_or(x.type, n, 0)}")
        if not guarded:  # the machine would end the program: leave before it
            site = self.site(Site("divide", x.line))
            self.fail_if(self.any(bad, n), site, BLAME, "0", str(site + 1))
        return bad

    def outside_range(self, x: Instruction, n: int) -> str:
        """Is a float not a number of the integer type, or of the one it is cut to right after?"""
        value = x.operands[0]
        kind, width = scalar(value.type), bits(scalar(x.type))
        unsigned = x.opcode == "fptoui" or x.name.startswith("llvm.fptoui")
        low, high = (-1, 2**width) if unsigned else (-(2 ** (width - 1)) - 1, 2 ** (width - 1))
        uses = self.users.get(x.result, [])
        cuts = {bits(scalar(u.type)) for u in uses if u.opcode == "trunc"}
        if uses and len(cuts) == 1 and all(u.opcode == "trunc" for u in uses):
            (cut,) = cuts  # -1.0 becomes 255 as a uint8, as in NumPy: either reading is right
            low, high = max(low, -(2 ** (cut - 1)) - 1), min(high, 2**cut)
        exact = -low < 2 ** {"half": 11, "float": 24, "double": 53}[kind]
        compare, bound = ("ogt", low) if exact else ("oge", low + 1)
        above = self.let(
            f"fcmp {compare} {value}, {splat_constant_or(kind, n, literal_float(bound, kind))}"
        )
        below = self.let(
            f"fcmp olt {value}, {splat_constant_or(kind, n, literal_float(high, kind))}"
        )
        test = "i1" if n == 1 else f"<{n} x i1>"
        fine = self.let(f"and {test} {above}, {below}")
        return self.let(f"xor {test} {fine}, {splat_constant_or('i1', n, 'true')}")

    # ---------- NaN and infinity ----------

    def finite(self, x: Instruction, a: Access, place: Place) -> None:
        """A number that is stored into a buffer must be one, or not be the first that is not."""
        assert a.value is not None
        n, kind = lanes(a.type), scalar(a.type)
        root = place.root
        short = (
            kind == "i16"
            and root is not None
            and self.arguments[int(root.name)].dtype == "bfloat16"
        )
        if kind not in ("half", "float", "double") and not short:
            return
        value = a.value
        if (known := value.text) and not known.startswith("%"):
            return  # a constant: what the program asks for
        if short:  # the upper half of a float
            wide = "i32" if n == 1 else f"<{n} x i32>"
            w = self.let(f"zext {value} to {wide}")
            w = self.let(f"shl {wide} {w}, {splat_or(wide, n, 16)}")
            flt = "float" if n == 1 else f"<{n} x float>"
            value, kind = Operand(flt, self.let(f"bitcast {wide} {w} to {flt}")), "float"
        suffix = {"half": "f16", "float": "f32", "double": "f64"}[kind]
        suffix = suffix if n == 1 else f"v{n}{suffix}"
        test = "i1" if n == 1 else f"<{n} x i1>"
        # (is.fpclass would say it in one line; LLVM takes twice as long to compile it)
        size_of = self.let(f"call {value.type} @llvm.fabs.{suffix}({value})")
        most = splat_constant_or(kind, n, literal_float(1 << 2000, kind))
        bad = self.let(f"fcmp ueq {value.type} {size_of}, {most}")
        if a.mask is not None:
            bad = self.let(f"and {a.mask}, {bad}")
        some = self.any(bad, n)
        site = self.site(replace(self.access_site(a, place, x.line, ()), kind="float"))
        if "%tgx.seen" not in "".join(self.first):
            self.first += ["  %tgx.seen = alloca i64, align 8", "  store i64 0, ptr %tgx.seen"]
        base = self.offset(place)
        self.count += 1
        tag = self.count
        self.emit(f"br i1 {some}, label %tgx.odd{tag}, label %tgx.go{tag}")
        hot, self.out = self.out, []
        self.out.append(f"tgx.odd{tag}:")
        nan = self.let(f"fcmp uno {value}, {value.text}")
        if a.mask is not None:
            nan = self.let(f"and {a.mask}, {nan}")
        is_nan = self.any(nan, n)
        wanted = self.let(f"select i1 {is_nan}, i64 1, i64 2")
        ok = self.let(f"call i1 @tgx.excused(ptr {self.args}, ptr %tgx.seen, i64 {wanted})")
        self.emit(f"br i1 {ok}, label %tgx.go{tag}, label %tgx.bad{tag}")
        self.out.append(f"tgx.bad{tag}:")
        offset = base
        if n > 1:
            first = self.let(f"select i1 {is_nan}, {test} {nan}, {test} {bad}")
            word = self.let(f"bitcast {test} {first} to i{n}")
            lane = self.let(f"call i{n} @llvm.cttz.i{n}(i{n} {word}, i1 false)")
            if place.vector or place.lanes:
                saved, self.sums = self.sums, dict(self.sums)
                many = self.lane_offsets(place, n, size(scalar(a.type)))
                self.sums = saved
                offset = self.let(f"extractelement <{n} x i64> {many}, i{n} {lane}")
            else:
                how = "zext" if n < 64 else "bitcast"
                lane = self.let(f"{how} i{n} {lane} to i64")
                step = self.let(f"mul i64 {lane}, {size(scalar(a.type))}")
                offset = self.let(f"add i64 {base}, {step}")
        what = self.let(f"select i1 {is_nan}, i64 {NAN}, i64 {INFINITY}")
        self.out += self.failing(site, 0, offset, "0")
        self.out[-2] = self.out[-2].replace(f"i64 {site}, i64 0,", f"i64 {site}, i64 {what},")
        self.cold += self.out
        self.out = hot
        self.start(f"tgx.go{tag}")

    # ---------- tags ----------

    def tags_of(self, place: Place) -> str:
        """The tags of what a place is in: a pointer, null for what has none."""
        if place.tags:
            return place.tags
        if place.root is None or place.root.kind != "argument":
            return "null"
        word = place.root.name
        if word not in self.tagged:
            at = f"%tgx.tags{word}"
            if not self.tagged:
                self.first += [
                    "  %tgx.out = alloca [64 x i32], align 64",
                    "  %tgx.lanes = alloca [64 x i64], align 64",
                    f"  %tgx.launch.at = getelementptr i64, ptr {self.args}, i64 -1",
                    "  %tgx.launch = load ptr, ptr %tgx.launch.at, align 8",
                    "  %tgx.run = load ptr, ptr %tgx.launch, align 8",
                    f"  %tgx.loaded.at = getelementptr i64, ptr %tgx.run, i64 {LOADED}",
                    "  %tgx.loaded = load ptr, ptr %tgx.loaded.at, align 8",
                    f"  %tgx.stored.at = getelementptr i64, ptr %tgx.run, i64 {STORED}",
                    "  %tgx.stored = load ptr, ptr %tgx.stored.at, align 8",
                ]
            self.first += [
                f"  {at}.at = getelementptr i64, ptr %tgx.launch, i64 {LAUNCH_TAGS + int(word)}",
                f"  {at} = load ptr, ptr {at}.at, align 8",
            ]
            self.tagged[word] = at
        return self.tagged[word]

    def tags(self, x: Instruction, a: Access, place: Place) -> None:
        """Asks for, or sets, the tags of what is touched: see check.ll."""
        tags = self.tags_of(place)
        if tags == "null":
            return
        n, item = lanes(a.type), size(scalar(a.type))
        if a.length is not None:
            n, item = 1, (constants(a.length) or (0,))[0]
        if n > 64:
            raise Unread(x.line)
        mask = str((1 << n) - 1 if n < 64 else -1)
        if a.mask is not None and (on := constants(a.mask)) is not None:
            set_bits = sum(bit << i for i, bit in enumerate(on))
            mask = str(set_bits - (1 << 64) if set_bits >> 63 else set_bits)
        elif a.mask is not None:
            word = self.let(f"bitcast {a.mask} to i{n}")
            mask = self.let(f"zext i{n} {word} to i64") if n < 64 else word
        offsets = "null"
        if place.lanes or place.vector:
            many = self.lane_offsets(place, n, item)
            self.emit(f"store <{n} x i64> {many}, ptr %tgx.lanes, align 8")
            offsets = "%tgx.lanes"
        site = self.site(replace(self.access_site(a, place, x.line, ()), kind="unwritten"))
        which = "%tgx.loaded" if a.kind == "load" else "%tgx.stored"
        bad = self.let(
            f"call i64 {which}(ptr %tgx.launch, i64 {self.chunk}, i64 {site}, ptr {tags}, "
            f"ptr {offsets}, i64 {self.offset(place)}, i64 {item}, i64 {n}, i64 {mask}, "
            f"ptr %tgx.out, i64 {LAUNCH_TAGS + len(self.arguments)})"
        )
        self.count += 1
        tag = self.count
        gone = self.let(f"icmp ne i64 {bad}, 0")
        self.emit(f"br i1 {gone}, label %tgx.bad{tag}, label %tgx.ok{tag}")
        self.cold += [f"tgx.bad{tag}:", "  ret void"]
        self.start(f"tgx.ok{tag}")


# ***************************** small things *****************************


def blame_type(n: int) -> str:
    return "i32" if n == 1 else f"<{n} x i32>"


def splat_constant(kind: str, n: int, value: object) -> str:
    return "<" + ", ".join([f"{kind} {value}"] * n) + ">"


def splat_constant_or(kind: str, n: int, value: object) -> str:
    return str(value) if n == 1 else splat_constant(kind, n, value)


def literal_float(value: int, kind: str) -> str:
    """A whole number that the type can hold, or infinity, as LLVM reads it."""
    most = {"half": 65504.0, "float": 3.4e38, "double": 1.7e308}[kind]
    number = float(value) if abs(value) <= most else math.inf if value > 0 else -math.inf
    if kind == "half":
        return f"0xH{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


def splat_or(type: str, n: int, value: object) -> str:
    return splat_constant_or(scalar(type), n, value)
