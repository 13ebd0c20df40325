"""Backward traces from outside: `tgx backward`, and `tgx.backward(loss)` in Python.

What is recorded and how is the business of `tgx.adapter.gradients`; here it gets a beginning and an
end: an expression, a script, a function, or a loss that stands already.
"""

from __future__ import annotations

import importlib
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tgx import codec
from tgx.errors import BadInput, MissingTool, TgxError
from tgx.model import GradientStep, Trace, Walk
from tgx.safe import frame

if TYPE_CHECKING:
    from tinygrad import Tensor

FORMS = {"text": ".txt", "markdown": ".md", "json": ".json", "dot": ".dot", "svg": ".svg",
         "html": ".html"}  # fmt: skip


class Backward:
    """A backward, recorded: every step, its rule, its numbers and its kernel.

    b = tgx.backward(loss)
    b                        draws itself in a notebook, or print(b)
    b.steps, b.walks         the records, see tgx.model
    b.save("walk.html")      the page; .md, .svg, .dot, .txt, .json by the name's end
    b.save("walk")           a folder: the trace, and all of these
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @property
    def walks(self) -> tuple[Walk, ...]:
        return self.trace.walks

    @property
    def steps(self) -> tuple[GradientStep, ...]:
        return self.trace.gradients

    def render(self, form: str = "text", **choices: Any) -> str:
        """One of FORMS."""
        from tgx.views import backward

        return backward.render(self.trace, form, **choices)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the form that the name's end says; a name without one is a folder for all."""
        path = Path(path)
        form = next((f for f, suffix in FORMS.items() if suffix == path.suffix), "")
        if form:
            path.write_text(self.render(form), encoding="utf-8")
        elif path.suffix:
            raise BadInput(f"{path.name}", "a name that ends in " + ", ".join(FORMS.values()))
        else:
            codec.write(self.trace, path)
            for form, suffix in FORMS.items():
                name = "index.html" if form == "html" else f"walk{suffix}"
                with suppress(MissingTool):  # without graphviz all but the picture
                    codec.inside(path, name).write_text(self.render(form), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return frame(self.render("html"), 760)

    def _repr_svg_(self) -> str:
        return self.render("svg")

    def __str__(self) -> str:
        return self.render("text")


def backward(loss: Tensor | Callable[[], Any]) -> Backward:
    """Does ``loss.backward()`` and tells every step of it.

    Given a function in place of a loss, the function is called: its return value is the loss, or
    it calls ``backward()`` itself. Then the steps know the lines of the forward as well; of a graph
    that stands already, only tinygrad's own names for its operations are known.
    """
    from tinygrad import Tensor

    if isinstance(loss, Tensor):
        tensor = loss
        return of_function(lambda: tensor, "the loss")
    if callable(loss):
        return of_function(loss, getattr(loss, "__name__", "the function"))
    raise BadInput(f"tgx.backward({type(loss).__name__})", "a Tensor, or a function that makes one",
                   "tgx.backward(model(x).cross_entropy(y))")


def of_function(function: Callable[[], Any], what: str) -> Backward:
    """The backward of a function's result, or the one it does itself."""
    from tinygrad import Tensor

    from tgx.adapter.expression import check_loss

    with _recording(_program()) as session:
        with _explained(), _keeping(function, session.scopes):
            result = function()
        known = len(session.walks)
        if isinstance(result, Tensor) and not known:
            check_loss(result, what)
            with _explained():
                result.backward()
            if not any(g.leaf and g.node != w.root for w in session.walks for g in w.goals):
                raise BadInput(
                    f"{what} is made of no tensor that is still there, so none has a gradient",
                    "a float tensor in a variable that outlives the function",
                    "keep the model, or the input, in a variable: x = Tensor([2.0])",
                )  # fmt: skip
        elif not known:
            raise BadInput(
                f"{what} returned {type(result).__name__}, and called no backward()",
                "a loss: a Tensor of one number", "return loss, or call loss.backward() inside",
            )  # fmt: skip
        realize_gradients(session)
        session.scopes.clear()
    return Backward(session.trace())


@contextmanager
def _keeping(function: Callable[[], Any], kept: list[dict[str, Any]]) -> Iterator[None]:
    """Keeps a function's own variables: tinygrad gives gradients to tensors that are alive."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            kept.append(dict(frame.f_locals))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def of_expression(text: str, bindings: Sequence[str]) -> Backward:
    """The backward of an expression; see `tgx.adapter.expression`."""
    from tgx.adapter.expression import Expression

    expression = Expression(text, bindings)
    parameters = expression.parameters()
    with _recording(f"{text.strip()}", tuple(bindings)) as session:
        session.words = expression.words
        loss = expression.compute()
        loss.backward()
        goals = [g for w in session.walks for g in w.goals if g.leaf and g.name in parameters]
        if not any(g.gradient >= 0 for g in goals):
            why = f": {goals[0].stops}" if goals else ""
            raise BadInput(f"no gradient reaches {', '.join(parameters)} in {text.strip()}{why}",
                           "a result that depends on it", "leave the detach() out, if there is one")
        loss.realize(*(t.grad for t in parameters.values() if t.grad is not None))
    return Backward(session.trace())


def of_named_function(word: str) -> Backward:
    """``module:function``, imported from the current folder or from anywhere Python looks."""
    module_name, _, name = word.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise BadInput(f"{word}: there is no module {e.name}", "a module Python can import",
                       "python -c 'import " + module_name + "' has to work here") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise BadInput(f"{word}: {module_name} has no function {name}", "module:function")
    return of_function(function, word)


def of_script(program: str, arguments: Sequence[str], run: Callable[[], None],
              whole: bool = False) -> Backward:
    """The backward of a script. It is stopped when the same backward begins a second time, unless
    the ``whole`` of it is asked for."""
    from tgx.adapter.gradients import Enough

    stopped = False
    with _recording(program, tuple(arguments), once=not whole) as session:
        try:
            with _explained():
                run()
        except Enough:
            stopped = True
        except SystemExit as e:
            if e.code not in (None, 0) and not session.walks:
                raise
        if not session.walks:
            raise BadInput(
                f"{program} ended without a backward() or gradient() call",
                "a loss whose gradient is taken", "loss.backward(), on a tensor of one number",
            )  # fmt: skip
        if not any(w.kernels for w in session.walks):
            realize_gradients(session)
        if stopped:
            session.say("the script was stopped when its backward began again: --all runs it whole")
    return Backward(session.trace())


def realize_gradients(session: Any) -> None:
    """Computes every gradient that is wanted and still lazy: then its kernels are seen."""
    from tinygrad import Tensor

    from tgx.adapter.gradients import lazy_gradients

    found = lazy_gradients()
    if found:
        Tensor.realize(*found)


@contextmanager
def _recording(program: str, arguments: tuple[str, ...] = (), once: bool = False) -> Iterator[Any]:
    from tgx.adapter.gradients import Backward as Session
    from tgx.recording import stop

    session = Session(None, program=program, arguments=arguments, once=once).start()
    failure: BaseException | None = None
    try:
        yield session
    except BaseException as error:
        failure = error
        raise
    finally:
        stop(session, failure)


def _program() -> str:
    return str(getattr(sys.modules.get("__main__"), "__file__", "") or "")


# **** a failure of the user's, explained ****


@contextmanager
def _explained() -> Iterator[None]:
    """Errors that say in tinygrad's words what is wrong with a loss, said in ours."""
    try:
        yield
    except TgxError:
        raise
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        raise told from None


ADVICE = (
    ("backward must be called on a scalar tensor",
     "the loss is not one number", "add .sum() or .mean() to the loss"),
    ("only float Tensors have gradient",
     "a tensor of whole numbers has no gradient",
     "make it a float: Tensor([2.0]), or .cast('float') before the arithmetic"),
    ("cannot take gradient wrt a weak Tensor",
     "a constant has no gradient of its own", "give it memory: Tensor([2.0])"),
    ("failed to compute gradient for",
     "tinygrad has no gradient rule for one of the operations",
     "leave it out of the loss, or detach() what goes into it"),
)  # fmt: skip


def explain(error: BaseException) -> BadInput | None:
    """A user's error about gradients as a sentence that says where and what to do."""
    text, line = str(error), _users_line(error.__traceback__)
    source = line[1]
    for words, given, advice in ADVICE:
        if words in text:
            op = text.partition("failed to compute gradient for ")[2].split()[:1]
            return BadInput(f"{line[0]}: {given}{f' ({op[0]})' if op else ''}: {source}",
                            "a float tensor of one number, made by operations with a gradient",
                            advice)
    if isinstance(error, (AttributeError, TypeError, AssertionError)) and (
        ".grad" in source or "grad" in text
    ) and ("None" in text or "grad" in text):
        return BadInput(f"{line[0]}: there is no gradient: {source}",
                        "backward() before it, on a loss that is made with this tensor",
                        "is it behind a detach(), or not part of the loss?")
    return None


def _users_line(trace: TracebackType | None) -> tuple[str, str]:
    """(file:line, its text) of the innermost frame of the user's own."""
    import tinygrad

    theirs = (os.path.dirname(str(tinygrad.__file__)), os.path.dirname(os.path.abspath(__file__)))
    found = ("", "")
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((*theirs, "<frozen")):
            text = linecache.getline(path, trace.tb_lineno).strip()
            found = f"{Path(path).name}:{trace.tb_lineno}", text
        trace = trace.tb_next
    return found
