"""Where a node of the Tensor graph comes from: the user's line and the operation he called.

While a trace records, every new UOp of the Tensor graph carries a *mark* in its ``__dict__``: a
tuple of origin numbers. An origin is one place on the call stack, interned by the whole stack of
(code object, instruction), so recording one costs a walk over the frames and a dictionary look-up.

The backward pass marks itself: tinygrad's `compute_gradient` copies metadata from a forward node to
everything new in its gradient, so a stand-in for its `all_metadata` dictionary (`GradientMarks`)
sees each pair of forward and gradient node at no cost of understanding the rules.
"""

from __future__ import annotations

import dataclasses
import itertools
import linecache
import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Any, NamedTuple

MARK = "_tgx_mark"
WALK = "_tgx_walk"  # a node of a backward walk, see tgx.adapter.gradients

Marks = tuple[int, ...]

MOST_MARKS = 64  # lines that may share one node: every call of rand shares its key


class Place(NamedTuple):
    """One frame of a stack. Columns are 0-based and -1 where Python does not know them."""

    path: str
    line: int
    function: str
    column: int = -1
    end_column: int = -1


@dataclasses.dataclass(frozen=True)
class OriginRecord:
    """What `Origins` knows of an origin; `tgx.model.Origin` is made from it.

    ``places`` are outermost first; ``user`` is the index of the innermost that is the user's own,
    or -1.
    """

    id: int
    op: str
    phase: str
    via: tuple[str, ...]
    places: tuple[Place, ...]
    user: int
    forward: int = -1
    label: str = ""


# Methods whose name is not what one would call the operation.
SPOKEN = {
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "__getitem__": "getitem",
    "__setitem__": "setitem",
    "__truediv__": "div",
    "__rtruediv__": "div",
    "__invert__": "not",
    "__init__": "tensor",
    "_buffer": "contiguous",
    "_data": "contiguous",
    "alu": "alu",
    "_broadcasted": "broadcast",
    "_mop": "movement",
    "_rop": "reduce",
}

# Frames of tinygrad that are machinery, never the operation the user called.
MACHINERY = {
    "_wrapper",
    "_metadata_wrapper",
    "_apply_uop",
    "_wrap_uop",
    "__call__",
    "<lambda>",
    "<listcomp>",
    "<genexpr>",
    "<dictcomp>",
    "wrapper",
    "wrapped",
    "inner",
    "__iter__",
    "decorator",
    "realize",
}

# Reading a value makes a copy or a cast first: those nodes are for moving data.
READING = {"numpy", "item", "tolist", "data", "_data", "_buffer"}


# An optimizer at work, rather than being made.
STEPPING = {"step", "schedule_step", "_step", "schedule_step_with_grads", "_apply_update"}


def spoken(name: str) -> str:
    """A method's name as the operation it is: ``__radd__`` is ``add``."""
    if name in SPOKEN:
        return SPOKEN[name]
    if name.startswith("__") and name.endswith("__"):
        bare = name.strip("_")
        return bare[1:] if bare[:1] in "ir" and bare[1:] in _ARITHMETIC else bare
    return name.lstrip("_")


_ARITHMETIC = {
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
}


class Origins:
    """Interns call stacks. One per trace."""

    def __init__(self) -> None:
        import tinygrad

        self.library = os.path.dirname(os.path.abspath(tinygrad.__file__)) + os.sep
        self.ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
        paths = sysconfig.get_paths()
        self.packages = tuple(p + os.sep for p in (paths["purelib"], paths["platlib"]))
        self.standard = (paths["stdlib"] + os.sep, paths["platstdlib"] + os.sep)
        self.records: list[OriginRecord] = []
        self._stacks: dict[tuple[Any, ...], int] = {}
        self._gradients: dict[tuple[int, int], int] = {}
        # codes are told apart by id, which only means something while they live
        self._alive: dict[int, CodeType] = {}
        self._places: dict[tuple[int, int], Place] = {}
        self._kinds: dict[str, str] = {}
        self.unknown = self._new("unknown", "data", (), (), -1)

    def _new(
        self,
        op: str,
        phase: str,
        via: tuple[str, ...],
        places: tuple[Place, ...],
        user: int,
        forward: int = -1,
        label: str = "",
    ) -> int:
        self.records.append(
            OriginRecord(len(self.records), op, phase, via, places, user, forward, label)
        )
        return len(self.records) - 1

    def kind(self, path: str) -> str:
        """Whose code a file is: "library" (tinygrad), "user", or "other" (Python's own, ours)."""
        found = self._kinds.get(path)
        if found is None:
            standard = path.startswith(self.standard) and not path.startswith(self.packages)
            found = "other" if standard or path.startswith((self.ours, "<frozen")) else "user"
            found = self._kinds[path] = "library" if path.startswith(self.library) else found
        return found

    def here(self, depth: int = 1, op: str = "") -> int:
        """The origin of the calling stack; ``op`` where no method on it names the operation."""
        key: list[Any] = [op]
        frame: FrameType | None = sys._getframe(depth)
        top = frame
        while frame is not None:
            key.append(id(frame.f_code))
            key.append(frame.f_lasti)
            frame = frame.f_back
        found = self._stacks.get(stack := tuple(key))
        if found is None:
            found = self._stacks[stack] = self._intern(top, op)
        return found

    def _intern(self, frame: FrameType | None, hint: str) -> int:
        frames: list[FrameType] = []
        while frame is not None:
            self._alive[id(frame.f_code)] = frame.f_code
            frames.append(frame)
            frame = frame.f_back
        frames.reverse()
        kinds = [self.kind(f.f_code.co_filename) for f in frames]
        # the launcher's frames (runpy, tgx, pytest's importers) come before the user's first one
        first = next((i for i, k in enumerate(kinds) if k in ("user", "library")), 0)
        frames, kinds = frames[first:], kinds[first:]
        keep = [i for i, k in enumerate(kinds) if k != "other"]
        frames, kinds = [frames[i] for i in keep], [kinds[i] for i in keep]
        user = max((i for i, k in enumerate(kinds) if k == "user"), default=-1)
        inside = frames[user + 1 :]
        op, via, phase, label = self._operation(inside, hint)
        places = tuple(self.place(f) for f in frames)
        return self._new(op, phase, via, places, user, label=label)

    def place(self, frame: FrameType) -> Place:
        """Where a frame stands, with the columns of the expression it is in."""
        code = frame.f_code
        found = self._places.get((id(code), frame.f_lasti))
        if found is not None:
            return found
        self._alive[id(code)] = code
        found = Place(code.co_filename, frame.f_lineno, code.co_qualname, *_columns(frame))
        self._places[id(code), frame.f_lasti] = found
        return found

    def _operation(
        self, inside: list[FrameType], hint: str
    ) -> tuple[str, tuple[str, ...], str, str]:
        """(operation, chain of methods, phase, label) from the library's frames below the
        user's."""
        chain: list[str] = []
        phase, label = "forward", ""
        for f in inside:
            path, name = f.f_code.co_filename[len(self.library) :], f.f_code.co_name
            path = path.replace(os.sep, "/")
            if path == "nn/optim.py":
                phase, label = "optimizer", _optimizer_name(f) or label
            elif path == "tensor.py" or path.startswith("mixin/"):
                if name not in MACHINERY and (not chain or chain[-1] != spoken(name)):
                    chain.append(spoken(name))
            elif path == "nn/__init__.py" and name == "__call__":
                chain.append(f.f_code.co_qualname.split(".")[0].lower())
                label = _called_name(f.f_back) or label
        names = {f.f_code.co_name for f in inside}
        if phase == "optimizer" and not names & STEPPING:
            phase = "data"  # its state, being made
        if names & READING and chain[1:2] != ["cast"]:
            phase = "data" if phase == "forward" else phase
        chain = [c for c in chain if c != "__new__"] or [hint or "tensor"]
        return chain[0], tuple(chain), phase, label

    def gradient(self, forward: int, asked: int) -> int:
        """The origin of the gradient of ``forward``, computed because of the origin ``asked``."""
        found = self._gradients.get((forward, asked))
        if found is None:
            f, a = self.records[forward], self.records[asked]
            found = self._new(f.op, "backward", f.via, a.places, a.user, forward, f.label)
            self._gradients[forward, asked] = found
        return found

    def line(self, origin: int) -> tuple[str, int] | None:
        """(path, line) of the user's own innermost frame."""
        record = self.records[origin]
        if record.user < 0:
            return None
        place = record.places[record.user]
        return place.path, place.line


def _optimizer_name(frame: FrameType) -> str:
    """``adam``, ``sgd``…: tinygrad builds them all from two classes and their settings."""
    me = frame.f_locals.get("self")
    if me is None:
        return ""
    kind = type(me).__name__
    if kind == "LAMB":
        return ("adamw" if getattr(me, "wd", 0) else "adam") if getattr(me, "adam", 0) else "lamb"
    if kind == "LARS":
        if getattr(me, "ns_coefficients", None):
            return "muon"
        return "sgd" if getattr(me, "tcoef", 1) == 0 else "lars"
    return kind.lower() if kind != "Optimizer" else ""


def _columns(frame: FrameType) -> tuple[int, int]:
    """Of the expression a frame is in, on its line; (-1, -1) where Python does not know, or where
    it has several lines."""
    # one by one: a list of them all would be ten thousand tuples for a small program
    positions = itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)
    line, end_line, column, end = next(positions, (None,) * 4)
    if line is None or line != end_line or column is None or end is None:
        return -1, -1
    return column, end


def _called_name(frame: FrameType | None) -> str:
    """What the caller calls the thing it calls: ``conv1`` where the line says ``self.conv1(x)``."""
    if frame is None:
        return ""
    column, end = _columns(frame)
    if column < 0:
        return ""
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    # columns count bytes
    expression = text.encode()[column:end].decode("utf-8", "replace")
    name, _, _ = expression.partition("(")
    name = name.strip().removeprefix("self.")
    parts = name.split(".")
    if all(_is_name(p) for p in parts) and name:
        return ".".join(parts[-2:]) if len(parts) > 1 else name
    return ""


def _is_name(part: str) -> bool:
    bare, _, index = part.partition("[")
    return bare.isidentifier() and (not index or index.endswith("]"))


# **** marking ****


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Stands among tinygrad's own Metadata during a backward pass: it has to have this field."""

    marks: Marks
    backward: bool = False


class GradientMarks:
    """A stand-in for `all_metadata` in `compute_gradient`, which asks it for the metadata of each
    forward node and sets that of each gradient node. Tinygrad's own entries go on to the real
    dictionary."""

    def __init__(self, real: Any, marker: Marker) -> None:
        self.real, self.marker = real, marker
        self.asked: tuple[FrameType, int] | None = None

    def get(self, node: Any, default: Any = ()) -> Any:
        marks = node.__dict__.get(MARK)
        found = self.real.get(node, default)
        return found if marks is None else (*(found or ()), Metadata(marks))

    def __setitem__(self, node: Any, value: tuple[Any, ...]) -> None:
        # value is what `get` gave for this node, and after it what it gave for the forward node:
        # tinygrad's entries pile up over a backward pass, so they are cut out, not looked through
        marked = MARK in node.__dict__
        before = self.real.get(node, ())
        new = value[len(before) + marked :]
        ours = new[-1] if new and isinstance(new[-1], Metadata) else None
        self.real[node] = (*before, *(new if ours is None else new[:-1]))
        if marked or ours is None or not ours.backward:
            return
        frame = sys._getframe(1)
        if self.asked is None or self.asked[0] is not frame:
            self.asked = frame, self.marker.origins.here(2)
        origins = self.marker.origins
        node.__dict__[MARK] = tuple(origins.gradient(m, self.asked[1]) for m in ours.marks)


class Marker:
    """Marks the UOps that Tensor methods make."""

    def __init__(self) -> None:
        self.origins = Origins()

    def mark(self, node: Any, depth: int = 2, known: tuple[Any, ...] = (), op: str = "") -> None:
        """Everything new below ``node`` comes from the calling line.

        A node that has a mark was made by another line as well: the same computation written twice
        is one node. It then has both, unless it is only passed through (one of ``known``).
        """
        marks = node.__dict__.get(MARK)
        if marks is None:
            self._mark_new(node, self.origins.here(depth + 1, op))
        elif node.op.name in COMPUTES and not any(node is k for k in known):
            origin = self.origins.here(depth + 1)
            if origin not in marks and len(marks) < MOST_MARKS and self._distinct(marks, origin):
                node.__dict__[MARK] = (*marks, origin)

    def _distinct(self, marks: Marks, origin: int) -> bool:
        """Whether a second mark says something new: wrapping a gradient in a Tensor does not."""
        records = self.origins.records
        new = records[origin]
        for m in marks:
            old = records[m]
            if old.phase == "backward" or new.op == "tensor":
                return False
            if old.user >= 0 and new.user >= 0:
                a, b = old.places[old.user], new.places[new.user]
                if (a.path, a.line) == (b.path, b.line):
                    return False
        return True

    def _mark_new(self, node: Any, origin: int) -> None:
        wrapped = self.origins.records[origin].op in ("tensor", "gradient", "backward")
        todo = [node]
        while todo:
            n = todo.pop()
            d = n.__dict__
            if MARK in d:
                continue
            # gradients that meet are added without metadata: the sum belongs to what it adds
            inherited = self._from_gradients(n) if n is not node or wrapped else ()
            d[MARK] = inherited or (origin,)
            todo.extend(n.src)

    def _from_gradients(self, node: Any) -> Marks:
        records = self.origins.records
        marks: list[int] = []
        if node.op.name == "ADD":
            for s in node.src:
                for m in s.__dict__.get(MARK, ()):
                    if records[m].phase == "backward" and m not in marks:
                        marks.append(m)
        return tuple(marks[:4])


COMPUTES = {
    "CAST",
    "BITCAST",
    "EXP2",
    "LOG2",
    "SIN",
    "SQRT",
    "RECIPROCAL",
    "NEG",
    "TRUNC",
    "ADD",
    "MUL",
    "SHL",
    "SHR",
    "CDIV",
    "MAX",
    "CMOD",
    "CMPLT",
    "CMPNE",
    "CMPEQ",
    "XOR",
    "OR",
    "AND",
    "THREEFRY",
    "SUB",
    "FDIV",
    "POW",
    "FLOORDIV",
    "FLOORMOD",
    "WHERE",
    "MULACC",
    "REDUCE",
    "WMMA",
    "ALLREDUCE",
}
"""Ops that compute something: the ones whose lines a kernel is made of."""


def with_text(path: str, line: int) -> str:
    """A line of a program, as `FILE:LINE: text`."""
    import linecache

    text = linecache.getline(path, line).strip()
    return f"{path}:{line}" + (f": {text}" if text else "")


def asked_at() -> str:
    """The line of the user's program that is being run, as `FILE:LINE: text`; "" for none."""
    import sys

    finder, frame = Origins(), sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        # (tinygrad runs code of its own making, whose file is "<string>" too)
        made = path == "<string>" and frame.f_globals.get("__name__") != "__main__"
        if finder.kind(path) == "user" and not made:
            return with_text(path, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def made_of(kernel: str) -> tuple[str, ...]:
    """The user's lines that a kernel of this name is made of, while a trace is recorded; () else.

    `kernel` is tinygrad's name for it, as in `Kernel.tinygrad_name`.
    """
    import sys

    hooks = sys.modules.get("tgx.adapter.hooks")  # nothing is recorded where it was never needed
    session = hooks.current if hooks is not None else None
    return () if session is None else session.lines_of(kernel)
