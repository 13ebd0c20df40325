"""Errors that teach.

Every error tgx raises on purpose says three things: what it was given, what it expected, and what
to do next. They are one family, so the command line can print any of them without a traceback, and
a caller can catch them all as `TgxError`.

Where Python already has a class for the trouble (a missing file, a missing module) ours is a child
of both, so code that catches the standard one still works.
"""

from __future__ import annotations


class TgxError(Exception):
    """What was given, what was expected, what to do next.

    The three stand in `args`, so the error survives being pickled out of a worker process.
    """

    def __init__(self, given: str, expected: str = "", next_step: str = "") -> None:
        super().__init__(given, expected, next_step)
        self.given, self.expected, self.next_step = given, expected, next_step

    def __str__(self) -> str:
        labels = (("", self.given), ("expected: ", self.expected), ("next: ", self.next_step))
        return "\n  ".join(label + text for label, text in labels if text)


class UnknownDevice(TgxError, ModuleNotFoundError):
    """A device name that no file of tinygrad's runtime folder, and no plugin, answers to."""


class WrongTinygrad(TgxError, ImportError):
    """The tinygrad found is not the one tgx was made for."""


class MissingTool(TgxError, FileNotFoundError):
    """A program that has to be installed outside Python, such as clang."""


class MissingExtra(TgxError, ImportError):
    """A Python package that one of tgx's extras would have installed."""


class BadSetting(TgxError, ValueError):
    """An environment variable with a value that means nothing."""


class BadInput(TgxError, ValueError):
    """A file or an argument that cannot be used."""


class CheckFailed(TgxError, RuntimeError):
    """Something a kernel did that TGX_CHECK=1 looks for: an access outside of its buffer, ...

    `kind` is one of bounds, size, race, unwritten, divide, shift, cast, nan, infinity. `index`
    counts elements of `buffer`; `line` is the kernel's LLVM IR, `asked` the line of the program
    that had the kernel run; `made_of`, while a trace is recorded, the lines the kernel is made of.
    """

    kernel = kind = buffer = line = asked = ""
    made_of: tuple[str, ...] = ()
    index: int | None = None


class CompileFailure(TgxError, RuntimeError):
    """A kernel that could not be compiled; the message names it and says where its text is."""


def missing_extra(package: str, extra: str) -> MissingExtra:
    """The error for an import that failed because an optional dependency is not installed."""
    return MissingExtra(
        f"the Python package {package!r} is not installed",
        f"it belongs to the extra {extra!r} of tinygrad-tgx",
        f"python -m pip install 'tinygrad-tgx[{extra}]'",
    )
