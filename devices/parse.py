"""LLVM IR text as data: functions, blocks, instructions, and what every pointer points into.

A small reader of what TGX's emitters write (renderer.py, emit.py, the hand-written kernels), for
passes that look at a kernel before LLVM optimizes it. It knows no checking and no counting.

    module = parse(text)
    for function in module.functions:
        roots = pointers(module, function)
        for block in function.blocks:
            for x in block.body:
                for a in accesses(x):  # a load, a store, a gather, ... of a.type at a.pointer
                    roots[a.pointer.text]  # (Root("argument", "2"),): the third argument word

A line it does not know raises Unread, with the line: nothing is passed over in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tgx.errors import BadInput


class Unread(BadInput):
    """A line of IR that this reader does not know."""

    def __init__(self, line: str) -> None:
        super().__init__(
            f"a line of LLVM IR that tgx cannot read: {line.strip()}",
            "what TGX's own emitters write",
            "add the form to tgx/devices/parse.py",
        )


# ***************************** the data *****************************


@dataclass(frozen=True, slots=True)
class Operand:
    """A type and a value: `i64 %v7`, `<2 x i1> <i1 true, i1 false>`."""

    type: str
    text: str

    @property
    def constant(self) -> bool:
        return not self.text.startswith(("%", "@"))

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line. What does not apply is empty."""

    line: str  # as it was written, without the indentation
    opcode: str  # add, load, br, call, ...
    result: str  # %v7
    type: str  # of the result; of what is stored
    operands: tuple[Operand, ...]  # of a phi: the incoming values; of a call: the arguments
    labels: tuple[str, ...] = ()  # br, switch: where to; phi: where from
    name: str = ""  # call: the function; icmp, fcmp: the predicate
    element: str = ""  # getelementptr: what an index counts; alloca: what there is room for


@dataclass(frozen=True, slots=True)
class Block:
    """A label and what follows it; the last instruction is a terminator."""

    label: str  # the entry block may have none
    body: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Function:
    head: str  # the line with `define`
    name: str
    parameters: tuple[Operand, ...]
    blocks: tuple[Block, ...]

    def __iter__(self) -> Iterator[Instruction]:
        """All instructions, in the order of the text."""
        return (x for block in self.blocks for x in block.body)


@dataclass(frozen=True, slots=True)
class Module:
    functions: tuple[Function, ...]
    tables: dict[str, str]  # constant tables: @name -> type
    outside: tuple[str, ...]  # every other line, as it stands: comments, declarations, metadata


@dataclass(frozen=True, slots=True)
class Root:
    """What a pointer points into.

    "argument": a buffer, `name` is the number of its argument word. "stack": an alloca. "table": a
    constant of the module. "words": the argument words themselves. "unknown": anything else.
    """

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Access:
    """One side of an instruction that touches memory."""

    kind: str  # "load" or "store"
    pointer: Operand  # or a vector of pointers: a gather, a scatter
    type: str  # what is moved; of a copy: i8
    mask: Operand | None = None  # the lanes that are touched; None for all
    value: Operand | None = None  # what is stored
    otherwise: Operand | None = None  # what a load gives for the other lanes
    length: Operand | None = None  # of a copy, in bytes


# ***************************** types *****************************

BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}
_SHAPED = re.compile(r"[<\[](\d+) x (.*)[>\]]$")


def lanes(type: str) -> int:
    """How many lanes: 1 for a scalar."""
    return int(m[1]) if type[0] == "<" and (m := _SHAPED.match(type)) else 1


def scalar(type: str) -> str:
    """The type of one lane."""
    return m[2] if type[0] == "<" and (m := _SHAPED.match(type)) else type


def bits(type: str) -> int:
    """The width of a scalar type."""
    if type in BITS:
        return BITS[type]
    if type[0] == "i" and type[1:].isdigit():
        return int(type[1:])
    raise Unread(type)


def size(type: str) -> int:
    """How many bytes a value of this type takes in memory."""
    if type[0] in "<[" and (m := _SHAPED.match(type)):
        if type[0] == "<" and m[2] == "i1":
            return -(-int(m[1]) // 8)
        return int(m[1]) * size(m[2])
    return -(-bits(type) // 8)


# ***************************** reading a line *****************************

_CLOSING = {"<": ">", "[": "]", "(": ")", "{": "}"}


def parts(text: str) -> list[str]:
    """The pieces between the commas that are not inside brackets."""
    if not any(c in text for c in "<[({"):
        return text.split(", ")
    out, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "<[({":
            depth += 1
        elif c in ">])}":
            depth -= 1
        elif c == "," and not depth:
            out.append(text[start:i].strip())
            start = i + 1
    out.append(text[start:].strip())
    return out


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "<[({":
            depth += 1
        elif text[i] in ">])}":
            depth -= 1
            if not depth:
                return i
    raise Unread(text)


def typed(text: str) -> Operand:
    """`ptr align 4 %v7` → Operand("ptr", "%v7"): attributes in between are left out."""
    end = closing(text, 0) + 1 if text[0] in _CLOSING else (text + " ").index(" ")
    kind, rest = text[:end], text[end:].strip()
    if rest[:1] in ("<", "[", "{") or " " not in rest or rest.startswith(("splat", "getelement")):
        return Operand(kind, rest)
    return Operand(kind, rest.rsplit(" ", 1)[1])


def leading(text: str, words: frozenset[str]) -> str:
    """The text without the flags before its first type."""
    while True:
        word, _, rest = text.partition(" ")
        if word not in words:
            return text
        text = rest


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLAGS = words_of(
    "nuw nsw exact disjoint inbounds nusw nneg samesign tail fast nnan ninf nsz arcp contract afn "
    "reassoc volatile nounwind"
)
ARITHMETIC = words_of(
    "add sub mul udiv sdiv urem srem shl lshr ashr and or xor fadd fsub fmul fdiv frem"
)
CASTS = words_of(
    "trunc zext sext fptrunc fpext fptoui fptosi uitofp sitofp ptrtoint inttoptr bitcast"
)
LANES = frozenset(("insertelement", "extractelement", "shufflevector", "select"))


def instruction(line: str) -> Instruction:
    """One line of a function, read."""
    line = line.strip()
    text = line.split(" ;")[0].rstrip() if " ;" in line else line
    text = text.split(", !", 1)[0]
    result = ""
    if text[0] == "%":
        result, _, text = text.partition(" = ")
    opcode, _, rest = text.partition(" ")
    if opcode in ("tail", "musttail", "notail"):
        opcode, _, rest = rest.partition(" ")
    rest = leading(rest, FLAGS)
    try:
        return _read(line, opcode, result, rest)
    except (IndexError, ValueError):
        raise Unread(line) from None


def _read(line: str, opcode: str, result: str, rest: str) -> Instruction:
    if opcode in ARITHMETIC or opcode in ("icmp", "fcmp"):
        predicate = ""
        if opcode in ("icmp", "fcmp"):
            predicate, _, rest = rest.partition(" ")
            rest = leading(rest, FLAGS)
        first, second = parts(rest)
        a = typed(first)
        both = (a, Operand(a.type, second))
        kind = a.type if not predicate else f"<{lanes(a.type)} x i1>" if a.type[0] == "<" else "i1"
        return Instruction(line, opcode, result, kind, both, name=predicate)
    if opcode == "load":
        kind, pointer = parts(rest)[:2]
        return Instruction(line, opcode, result, kind, (typed(pointer),))
    if opcode == "store":
        value, pointer = (typed(p) for p in parts(rest)[:2])
        return Instruction(line, opcode, "", value.type, (value, pointer))
    if opcode == "getelementptr":
        element, *given = parts(rest)
        operands = tuple(map(typed, given))
        many = max(lanes(o.type) for o in operands)
        kind = "ptr" if many == 1 else f"<{many} x ptr>"
        return Instruction(line, opcode, result, kind, operands, element=element)
    if opcode in LANES:
        operands = tuple(map(typed, parts(rest)))
        kind = operands[-1].type if opcode == "select" else operands[0].type
        if opcode == "extractelement":
            kind = scalar(kind)
        elif opcode == "shufflevector":
            kind = f"<{lanes(operands[2].type)} x {scalar(kind)}>"
        return Instruction(line, opcode, result, kind, operands)
    if opcode in ("fneg", "freeze"):
        a = typed(rest)
        return Instruction(line, opcode, result, a.type, (a,))
    if opcode in CASTS:
        value, kind = rest.rsplit(" to ", 1)
        return Instruction(line, opcode, result, kind, (typed(value),))
    if opcode == "call":
        at = rest.index("@")
        start = rest.index("(", at)
        name, end = rest[at + 1 : start], closing(rest, start)
        kind = rest[:at].strip()
        inside = rest[start + 1 : end]
        operands = tuple(map(typed, parts(inside))) if inside.strip() else ()
        return Instruction(line, opcode, result, "" if kind == "void" else kind, operands, (), name)
    if opcode == "phi":
        end = closing(rest, 0) + 1 if rest[0] in "<[" else rest.index(" ")
        kind, incoming = rest[:end], [p.strip("[] ") for p in parts(rest[end:].strip())]
        pairs = [p.rsplit(", %", 1) for p in incoming]
        values = tuple(Operand(kind, v.strip()) for v, _ in pairs)
        return Instruction(line, opcode, result, kind, values, tuple(b.strip() for _, b in pairs))
    if opcode == "br":
        given = parts(rest)
        condition = () if given[0].startswith("label") else (typed(given.pop(0)),)
        labels = tuple(p.removeprefix("label %") for p in given)
        return Instruction(line, opcode, "", "", condition, labels)
    if opcode == "alloca":
        element, *given = parts(rest)
        count = tuple(typed(p) for p in given if not p.startswith("align"))
        return Instruction(line, opcode, result, "ptr", count, element=element)
    if opcode == "ret":
        return Instruction(line, opcode, "", "", () if rest == "void" else (typed(rest),))
    if opcode == "unreachable":
        return Instruction(line, opcode, "", "", ())
    raise Unread(line)


TERMINATORS = ("br", "ret", "unreachable")
_LABEL = re.compile(r'("?[\w.$-]+"?):')
_TABLE = re.compile(r"(@[\w.$-]+) = .*?\bconstant (.*)")


def parse(text: str) -> Module:
    """A module of TGX's. Raises Unread."""
    functions: list[Function] = []
    tables: dict[str, str] = {}
    outside: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("define "):
            functions.append(_function(line, lines))
            continue
        outside.append(line)
        if line.startswith("@") and (m := _TABLE.match(line)):
            tables[m[1]] = typed(m[2]).type
    return Module(tuple(functions), tables, tuple(outside))


def _function(head: str, lines: Iterator[str]) -> Function:
    at = head.index("@")
    start = head.index("(", at)
    inside = head[start + 1 : closing(head, start)]
    parameters = tuple(map(typed, parts(inside))) if inside.strip() else ()
    blocks: list[Block] = []
    label, body = "", list[Instruction]()
    for line in lines:
        text = line.strip()
        if not text or text[0] == ";":
            continue
        if text == "}":
            blocks.append(Block(label, tuple(body)))
            break
        if m := _LABEL.match(text):
            if body or blocks:
                blocks.append(Block(label, tuple(body)))
            label, body = m[1], []
            continue
        body.append(instruction(text))
    return Function(head, head[at + 1 : start], parameters, tuple(blocks))


# ***************************** memory *****************************


def accesses(x: Instruction) -> tuple[Access, ...]:
    """What an instruction loads and stores; nothing, for most."""
    o = x.operands
    if x.opcode == "load":
        return (Access("load", o[0], x.type),)
    if x.opcode == "store":
        return (Access("store", o[1], x.type, value=o[0]),)
    if x.opcode != "call":
        return ()
    if x.name.startswith(("llvm.masked.load", "llvm.masked.gather")):
        # (pointer, [alignment,] mask, otherwise): the alignment is an attribute since LLVM 22
        return (Access("load", o[0], x.type, mask=o[-2], otherwise=o[-1]),)
    if x.name.startswith(("llvm.masked.store", "llvm.masked.scatter")):
        return (Access("store", o[1], o[0].type, mask=o[-1], value=o[0]),)
    if x.name.startswith(("llvm.memcpy", "llvm.memmove")):
        return (
            Access("load", o[1], "i8", length=o[2]),
            Access("store", o[0], "i8", length=o[2]),
        )
    if x.name.startswith("llvm.memset"):
        return (Access("store", o[0], "i8", value=o[1], length=o[2]),)
    return ()


def pointers(module: Module, function: Function) -> dict[str, tuple[Root, ...]]:
    """Every pointer (or vector of them) of a function, and what it may point into.

    One root, for nearly all; a `select` of two pointers has two.
    """
    made = {x.result: x for x in function if x.result}
    passed = arguments(module, function)
    roots: dict[str, tuple[Root, ...]] = {}

    def of(name: str, open: frozenset[str]) -> tuple[Root, ...]:
        if name in roots:
            return roots[name]
        if name in open:  # around a loop: the other ways into it decide
            return ()
        if name.startswith("@"):
            found: tuple[Root, ...] = (Root("table", name),)
        elif name in passed:
            found = (passed[name],)
        elif (x := made.get(name)) is None:
            found = (Root("unknown", name),)
        elif x.opcode == "alloca":
            found = (Root("stack", name),)
        elif x.opcode == "getelementptr":
            found = of(x.operands[0].text, open | {name})
        elif x.opcode in ("select", "phi"):
            given = x.operands[1:] if x.opcode == "select" else x.operands
            several = [r for o in given for r in of(o.text, open | {name})]
            found = tuple(dict.fromkeys(several))
            if x.opcode == "phi" and any(o.text in open for o in x.operands):
                return found  # not all of it is known yet
        elif x.opcode == "load" and of(x.operands[0].text, open) == (Root("words", "args"),):
            found = (Root("argument", str(word(made, x.operands[0].text))),)
        else:
            found = (Root("unknown", name),)
        roots[name] = found
        return found

    for name, x in made.items():
        if scalar(x.type) == "ptr":
            of(name, frozenset())
    for p in function.parameters:
        if p.type == "ptr":
            of(p.text, frozenset())
    return roots


def word(made: dict[str, Instruction], pointer: str) -> int:
    """The number of the argument word that a pointer into the words points at."""
    x = made.get(pointer)
    if x is None:
        return 0
    return word(made, x.operands[0].text) + int(x.operands[1].text)


def arguments(module: Module, function: Function) -> dict[str, Root]:
    """The pointer parameters of a function: of the entry, the words; of a body, the buffers that
    the entry passes on."""
    if "internal" not in function.head.split("@")[0]:
        first = next((p for p in function.parameters if p.type == "ptr"), None)
        return {first.text: Root("words", "args")} if first else {}
    for other in module.functions:
        if other is function:
            continue
        for x in other:
            if x.opcode == "call" and x.name == function.name:
                roots = pointers(module, other)
                return {
                    p.text: roots[o.text][0]
                    for p, o in zip(function.parameters, x.operands, strict=True)
                    if p.type == "ptr"
                }
    return {}
