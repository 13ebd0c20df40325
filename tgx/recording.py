"""Recording a run from outside: `tgx trace`, ``TGX_TRACE=DIR``, and ``with tgx.trace() as t:``.

What is recorded and how is `tgx.adapter.capture`'s business; here it gets a beginning, an end, and
a folder:

    trace.jsonl      the trace itself: data, which `tgx show` and tgx.codec.read open
    index.html       the explorer's page
    graphs/          pictures: .dot, and .svg where graphviz is at hand
    kernels/         every kernel's code, level by level
    timeline.json    for Perfetto or chrome://tracing
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tgx import codec, settings
from tgx.errors import TgxError
from tgx.model import Graph, Kernel, Trace
from tgx.safe import frame

if TYPE_CHECKING:
    from tgx.adapter.capture import Session

LEVELS = ("kernels", "full")

SUFFIXES = {"c": "c", "llvm": "ll", "asm": "s", "ptx": "ptx"}
MOST_LAZY = 4  # pictures of Tensor graphs in graphs/
MOST_KERNELS = 24  # pictures of kernels in graphs/; the page and `tgx show` draw every one


class trace:
    """Records what tinygrad does inside a ``with`` block.

    with tgx.trace() as t:
        train_step()
    t.kernels, t.graph      the records, see tgx.model
    t.save("run")           the folder `tgx trace` writes
    t                       draws itself in a notebook
    """

    def __init__(self, level: str = "kernels") -> None:
        if level not in LEVELS:
            raise TgxError(f"level={level!r}", "one of " + ", ".join(LEVELS))
        self.level = level
        self._session: Session | None = None
        self._trace: Trace | None = None

    def __enter__(self) -> trace:
        from tgx.adapter.capture import Session

        self._session = Session(level=self.level, program=_main_program()).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        assert self._session is not None
        stop(self._session, error)
        if self._session.out.failed:
            print(f"tgx: the trace ends early: {self._session.out.failed}", file=sys.stderr)

    @property
    def trace(self) -> Trace:
        """The Trace; what has been recorded so far, inside the block."""
        if self._trace is not None:
            return self._trace
        if self._session is None:
            raise TgxError("nothing has been recorded", "a with block: with tgx.trace() as t:")
        if self._session.running:
            self._session._flush_runs()
            return self._session.trace()
        self._trace = self._session.trace()  # read once, when first looked at
        return self._trace

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return self.trace.kernels

    @property
    def graph(self) -> Graph:
        """The Tensor graph of the last schedule."""
        t = self.trace
        if not t.schedules:
            raise TgxError(
                "no Tensor was realized inside the block",
                "",
                "realize something there, or print a value",
            )
        return t.graph(t.schedules[-1].lazy)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the folder `tgx trace -o` writes; says which."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        codec.write(self.trace, path)
        write_views(self.trace, path)
        return path

    def _repr_html_(self) -> str:
        from tgx.views import VIEWS

        return frame(VIEWS["html"].render(self.trace), 720)

    def _repr_svg_(self) -> str:
        from tgx.views import VIEWS

        return VIEWS["svg"].render(self.trace)

    def __str__(self) -> str:
        from tgx.views import VIEWS

        return VIEWS["text"].render(self.trace)


def _main_program() -> str:
    main = sys.modules.get("__main__")
    return str(getattr(main, "__file__", "") or "")


def stop(session: Session, error: BaseException | None) -> None:
    """Ends a recording, saying how the program ended."""
    if error is None:
        session.stop("ok")
    elif isinstance(error, SystemExit):
        code = error.code
        session.stop("exit", exit_code=code if isinstance(code, int) else int(code is not None))
    else:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        session.stop("exception", error=text, exit_code=1)


def complete(session: Session, error: BaseException | None) -> list[str]:
    """Ends the recording of a whole program and writes its folder; returns sentences about what
    could not be made. It raises nothing: how a program ends is its own business."""
    if not session.running:  # a forked child: the folder is its parent's
        return []
    problems: list[str] = []
    try:
        stop(session, error)
        problems += write_views(session.trace(), session.folder)
    except Exception as e:
        if settings.traceback():
            raise
        problems.append(f"the trace is incomplete: {type(e).__name__}: {e}")
    if session.out.failed:
        problems.insert(0, f"{codec.FILE_NAME} ends early: {session.out.failed}")
    return problems


# **** the folder ****


def write_views(t: Trace, folder: Path) -> list[str]:
    """Everything but trace.jsonl; returns sentences about what could not be made."""
    from tgx.views import VIEWS

    problems: list[str] = []

    def write(name: str, text: str) -> None:
        try:
            path = codec.inside(folder, name)
        except (OSError, TgxError) as e:
            if str(e) not in problems:
                problems.append(str(e))
            return
        try:
            path.write_text(text, encoding="utf-8", errors="replace")
        except OSError as e:  # a full disk; half a page is worse than none
            with suppress(OSError):
                path.unlink()
            if (problem := f"not all files could be written: {e.strerror}") not in problems:
                problems.append(problem)

    def put(name: str, view: str, **choices: Any) -> None:
        try:
            text = VIEWS[view].render(t, **choices)
        except Exception as e:  # a picture that fails must not fail the program it is of
            text = str(e) if isinstance(e, TgxError) else f"{name}: {type(e).__name__}: {e}"
            if text not in problems:
                problems.append(text)
            return
        write(name, text)

    put("index.html", "html")
    put("timeline.json", "perfetto")
    for name, choices in pictures(t):
        put(f"graphs/{name}.dot", "dot", **choices)
        put(f"graphs/{name}.svg", "svg", **choices)
    for name, text in code_files(t):
        write(f"kernels/{name}", text)
    return problems


def pictures(t: Trace) -> Iterable[tuple[str, dict[str, Any]]]:
    """(file name, choices for the view) of what stands in graphs/."""
    steady = list(t.steady()) or [s.id for s in t.schedules]
    shown = sorted(steady, key=lambda s: -len(t.schedule(s).kernels))[:MOST_LAZY]
    for s in shown:
        if t.schedule(s).kernels:
            yield f"schedule-{s}", {"what": "schedule", "id": s}
        if t.schedule(s).lazy >= 0:
            yield f"lazy-{s}", {"what": "lazy", "id": s}
        yield f"debug-{s}", {"what": "debug", "id": s}
    kernels = [k for s in shown for k in t.schedule(s).kernels]
    programs: dict[int, int] = {}  # equal kernels have equal pictures
    for k in sorted(kernels, key=lambda k: -t.time_us(k)):
        if t.kernel(k).program >= 0:
            programs.setdefault(t.kernel(k).program, k)
    for k in list(programs.values())[:MOST_KERNELS]:
        yield f"kernel-{k}", {"what": "kernel", "id": k}
    if t.passes:
        yield "step-0", {"what": "step"}
    if t.memory or t.buffers:
        yield "memory", {"what": "memory"}


def code_files(t: Trace) -> Iterable[tuple[str, str]]:
    """(file name, text) of what stands in kernels/."""
    for p in t.programs:
        for code in p.code:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", p.name)[:60] or "kernel"
            level = re.sub(r"[^A-Za-z0-9_.-]", "_", code.level)[:60]
            suffix = SUFFIXES.get(code.language, "txt")
            yield f"{p.id}-{name}.{level}.{suffix}", code.text


# **** TGX_TRACE ****


def start_from_environment(module: object = None) -> None:
    """TGX_TRACE=DIR: records this process from the import of tinygrad to its end.

    Processes it starts are not traced: each would write the same file. TGX_COUNT=1 prints by
    itself; here it only gets somebody who notices that there is nothing to print.
    """
    import atexit

    if settings.count():
        from tgx.adapter.counted import say_if_idle

        atexit.register(say_if_idle)
    folder = settings.take_trace_dir()
    if not folder:
        return
    from tgx.adapter.capture import Session

    try:
        session = Session(folder, "kernels", _main_program(), tuple(sys.argv[1:])).start()
    except OSError as error:
        print(f"tgx: no trace: cannot write {folder}: {error.strerror}", file=sys.stderr)
        return
    failure: list[BaseException] = []
    before = sys.excepthook

    def remember(kind: type[BaseException], error: BaseException, where: Any) -> None:
        failure.append(error)
        before(kind, error, where)

    sys.excepthook = remember

    @atexit.register
    def finish() -> None:
        if problems := complete(session, failure[0] if failure else None):
            print(f"tgx: trace in {session.folder}", *problems, sep="\n  ", file=sys.stderr)
