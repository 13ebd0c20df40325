"""Recording a run: what is in a trace, and that recording changes nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from conftest import ROOT
from tinygrad import Tensor, TinyJit, nn
from tinygrad.helpers import Context
from tinygrad.uop.ops import PatternMatcher, UOp

import tgx
from tgx import codec, model
from tgx.adapter import capture, hooks
from tgx.adapter.origins import Origins
from tgx.adapter.writing import Recorder
from tgx.model import Trace
from tgx.passes.replay import replay


class Net:
    def __init__(self) -> None:
        self.l1, self.l2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def __call__(self, x: Tensor) -> Tensor:
        return self.l2(self.l1(x).relu())


def train(steps: int, jit: bool) -> list[float]:
    Tensor.manual_seed(7)
    net = Net()
    optimizer = nn.optim.SGD(nn.state.get_parameters(net), lr=0.01)
    x = Tensor.randn(8, 8).realize()
    y = Tensor([0, 1, 2, 3, 0, 1, 2, 3]).realize()

    def step(x: Tensor, y: Tensor) -> Tensor:
        with Context(TRAINING=1):
            optimizer.zero_grad()
            loss = net(x).sparse_categorical_crossentropy(y)
            loss.backward()
            optimizer.step()
            return loss.realize()

    run = TinyJit(step) if jit else step
    return [run(x, y).item() for _ in range(steps)]


def patched_things() -> dict[str, object]:
    """Everything a recording replaces, as it is now."""
    from tinygrad.device import Buffer
    from tinygrad.schedule import indexing, rangeify

    modules = (
        hooks.tg_tensor,
        hooks.tg_jit,
        hooks.tg_realize,
        hooks.tg_gradient,
        hooks.tg_schedule,
        indexing,
        rangeify,
        sys.modules["tinygrad.uop.ops"],
        sys.modules["tinygrad.codegen"],
    )
    found = {f"{m.__name__}.{k}": v for m in modules for k, v in vars(m).items()}
    for kind in (Tensor, Buffer, UOp, hooks.tg_jit._TinyJit):
        found |= {f"{kind.__name__}.{k}": v for k, v in vars(kind).items()}
    kinds = (PatternMatcher, type(lambda: 0), type(len), type, property, WeakKeyDictionary)
    return {k: v for k, v in found.items() if isinstance(v, kinds)}


@pytest.fixture(scope="module")
def jitted() -> Trace:
    with tgx.trace(level="full") as t:
        train(5, jit=True)
    return t.trace


@pytest.mark.parametrize("jit", [False, True])
def test_recording_changes_no_result_and_undoes_itself(jit: bool) -> None:
    plain = train(3, jit)
    before = patched_things()
    with tgx.trace():
        recorded = train(3, jit)
        assert patched_things() != before
    after = patched_things()
    changed = [k for k in before if after.get(k) is not before[k]]
    assert changed == []
    assert recorded == plain


def test_every_kernel_says_where_it_comes_from(jitted: Trace) -> None:
    own = next(f.id for f in jitted.files if f.path.endswith("test_capture.py"))
    for k in jitted.kernels:
        assert k.lines and k.ops and "unknown" not in k.ops, k
        assert all(file == own for file, _ in k.lines), k
        assert k.forward or k.phase != "backward", k
        assert k.name, k
    phases = {k.phase for k in jitted.kernels}
    assert phases == {"forward", "backward", "optimizer", "data"}


def test_every_stored_value_has_a_reason(jitted: Trace) -> None:
    stored = {(k.id, b) for k in jitted.kernels for b in k.writes}
    assert {(b.source, b.buffer) for b in jitted.boundaries} == stored
    for b in jitted.boundaries:
        assert b.because.endswith((".", "?")) and "{" not in b.because + b.brief + b.fuse_by
        assert b.rule, b


def test_jitted_kernels_are_named_after_the_model(jitted: Trace) -> None:
    step = next(s for s in jitted.schedules if s.jit == "step" and len(s.kernels) > 10)
    names = [jitted.kernel(k).name for k in step.kernels]
    for expected in ("l1 + bias", "relu + l2 + bias", "∂l1.weight", "∂l2.bias"):
        assert any(n.startswith(expected) for n in names), (expected, names)
    assert sum(r.schedule == step.id for r in jitted.realizes) == 4  # capture, and 3 more


def test_times_are_the_devices_own(jitted: Trace) -> None:
    assert {r.clock for r in jitted.runs if jitted.kernel(r.kernel).kind == "kernel"} == {"device"}
    for k in jitted.kernels:
        timing = jitted.timing(k.id)
        assert timing is not None and timing.calls >= 1 and timing.min_us >= 0
    ran = [p for p in jitted.programs if p.flops > 0]
    assert len(ran) > len(jitted.programs) // 2


def test_a_captured_step_goes_its_short_way_once_it_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TGX runs all batches of a step as one native call; so it does while a recording goes on."""
    from tgx.devices import graph

    called = []
    plain = graph.Step.__call__
    monkeypatch.setattr(
        graph.Step, "__call__", lambda self, *a: (called.append(self), plain(self, *a))[1]
    )
    monkeypatch.setattr(capture, "TIMED_JIT_CALLS", 2)
    with Context(DEV="TGX"), tgx.trace() as t:
        train(8, jit=True)
    # 7 executions: 2 timed, one that makes the batches, and these
    assert len(called) == 4
    step = next(s for s in t.trace.schedules if s.jit == "step" and len(s.kernels) > 10)
    assert {t.trace.timing(k).calls for k in step.kernels} == {2}
    assert any(text.startswith("5 later executions") for text in t.trace.environment.missing)


def test_of_what_changes_before_it_is_written_only_the_last_is_written() -> None:
    out = io.StringIO()
    recorder = Recorder(codec.Writer(out), Origins(), model.Environment(), "")
    first, last = model.Program(0, "kernel"), model.Program(0, "kernel", compile_us=3.0)
    runs = [("memory", model.MemoryEvent(float(i), "TGX", 4, 4)) for i in range(3)]
    recorder.waiting += [("programs", first), *runs, ("programs", last), *runs]
    recorder.flush()
    recorder.writer.close()
    trace = codec.loads(out.getvalue())
    assert trace.programs == (last,) and len(trace.memory) == 6
    assert recorder.writer.records == 1 + 1 + 6  # the environment, a program, and the rest


def test_the_planner_says_what_it_reuses(jitted: Trace) -> None:
    step = next(s for s in jitted.schedules if s.jit == "step" and len(s.kernels) > 10)
    inner = [b for b in jitted.buffers if b.schedule == step.id and b.kind == "intermediate"]
    placed = [b for b in inner if b.base >= 0]
    assert placed and all(jitted.buffer(b.base).kind == "arena" for b in placed)
    for b in placed:
        assert b.offset + b.nbytes <= jitted.buffer(b.base).nbytes
        for c in placed:  # what is alive at once never overlaps
            if b.id < c.id and b.base == c.base and b.first <= c.last and c.first <= b.last:
                assert b.offset + b.nbytes <= c.offset or c.offset + c.nbytes <= b.offset
    assert step.planned_bytes > 0


def test_replayed_steps_give_the_captured_result(jitted: Trace) -> None:
    assert len(jitted.passes) > 100 and sum(p.matches for p in jitted.passes) > 1000
    for p in jitted.passes:
        assert replay(jitted, p) == p.after, p.name
    named = {p.name for p in jitted.passes if p.schedule >= 0}
    assert {"earliest rewrites", "apply rangeify", "split kernels"} <= named


def test_a_step_left_out_is_noticed(jitted: Trace) -> None:
    """The replay above is a check only if it can fail."""
    from dataclasses import replace

    p = max((p for p in jitted.passes if p.schedule >= 0), key=len)
    matches = [i for i in range(len(p)) if p[i].kind == "match"]
    wrong = 0
    for i in matches[:20]:
        steps = p.steps[: 4 * i] + p.steps[4 * i + 4 :]
        try:
            wrong += replay(jitted, replace(p, steps=steps)) != p.after
        except ValueError:
            wrong += 1
    assert wrong > len(matches[:20]) // 2


def test_every_uop_is_traced_back(jitted: Trace) -> None:
    """Every float operation of every compiled program has an origin, in every kernel that runs
    it."""
    tile = 0
    for k in jitted.kernels:
        if k.program < 0:
            continue
        program = jitted.program(k.program)
        uops, origins = jitted.graph(program.uops), jitted.uop_origins(k.id)
        tile += program.path == "tile"
        assert len(origins) == len(uops)
        for node, found in zip(uops, origins, strict=True):
            if node.op in ("ADD", "MUL", "MAX", "EXP2", "LOG2", "WHERE") and "float" in node.dtype:
                assert found, (k.name, node)
                assert set(found) <= set(k.origins) | {
                    o for row in jitted.graph(k.ast).origins for o in row
                }


def test_programs_have_code_and_loops(jitted: Trace) -> None:
    for p in jitted.programs:
        assert p.pane("source") and p.pane("ir_opt") and p.pane("asm"), p.name
        assert p.path in ("tile", "loops") and p.path_reason
        for a, b in zip(p.opts, p.opts[1:], strict=False):
            assert a.after == b.before


def test_cache_hits_report_their_own_lines() -> None:
    """The same structure from two lines: tinygrad schedules it once; each line gets its kernels."""
    with tgx.trace() as t:
        a, b = Tensor.empty(5, 7), Tensor.empty(5, 7)
        (a.exp() + 3).realize()  # first
        (b.exp() + 3).realize()  # second
    lines = line_numbers(first="# first", second="# second")
    first, second = t.kernels
    assert first.program == second.program
    assert first.lines[0][1] == lines["first"]
    assert second.lines[0][1] == lines["second"]
    assert t.trace.schedule(second.schedule).cache_hits == 1


def test_what_was_scheduled_before_is_followed_too() -> None:
    """A graph tinygrad has in its caches from before the recording is explained all the same."""

    def work() -> None:
        ((Tensor.empty(6, 5).exp() @ Tensor.empty(5, 4)).relu().sum(0) * 2).realize()

    work()
    with tgx.trace() as t:
        work()
    assert [k.ops for k in t.kernels] != []
    assert all(k.lines for k in t.kernels) and t.trace.boundaries
    assert t.trace.schedules[0].cache_hits == 1


def test_tensors_from_before_have_no_line() -> None:
    """Lazy work begun before the recording is not blamed on the line that realizes it."""
    early = Tensor.empty(3, 3).exp()
    with tgx.trace() as t:
        late = (early + 1).relu()
        late.realize()
    (kernel,) = t.kernels
    assert kernel.ops == ("add", "relu")


def line_numbers(**marks: str) -> dict[str, int]:
    text = Path(__file__).read_text().splitlines()
    return {
        k: next(i for i, line in enumerate(text, 1) if line.rstrip().endswith(v))
        for k, v in marks.items()
    }


# **** scripts ****


def run_traced(
    folder: Path,
    code: str,
    *arguments: str,
    env: dict[str, str] | None = None,
    command: tuple[str, ...] = ("-m", "tgx", "trace", "-o", "{out}"),
) -> tuple[subprocess.CompletedProcess[str], Path]:
    script = folder / "program.py"
    script.write_text(code)
    out = folder / "out"
    words = [w.format(out=out) for w in command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0", **(env or {})}
    done = subprocess.run(
        [sys.executable, *words, str(script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    return done, out


def test_output_and_exit_code_are_the_scripts(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tinygrad import Tensor\nprint(sys.argv[1:], __name__)\n"
        "print((Tensor([1.0, 2.0]) + 1).tolist())\nsys.exit(7)\n"
    )
    done, out = run_traced(tmp_path, code, "-x", "--level", "y")
    assert done.returncode == 7
    assert done.stdout == "['-x', '--level', 'y'] __main__\n[2.0, 3.0]\n"
    trace = codec.read(out)
    assert trace.environment.ended == "exit" and trace.environment.exit_code == 7
    assert trace.environment.arguments == ("-x", "--level", "y")
    assert trace.kernels[-1].ops == ("add",)
    assert {p.name for p in out.iterdir()} >= {"trace.jsonl", "index.html", "timeline.json"}


def test_a_script_that_raises_leaves_a_trace(tmp_path: Path) -> None:
    code = "from tinygrad import Tensor\n(Tensor([1.0]) + 1).realize()\nraise KeyError('mine')\n"
    done, out = run_traced(tmp_path, code)
    assert done.returncode == 1 and "KeyError: 'mine'" in done.stderr
    assert "capture.py" not in done.stderr
    trace = codec.read(out)
    assert trace.environment.ended == "exception" and "mine" in trace.environment.error
    assert trace.kernels


def test_the_environment_variable_traces_an_unmodified_script(tmp_path: Path) -> None:
    code = "import tgx\nfrom tinygrad import Tensor\nprint((Tensor([1.0, 2.0]) * 3).sum().item())\n"
    done, out = run_traced(tmp_path, code, env={"TGX_TRACE": str(tmp_path / "out")}, command=())
    assert done.stdout == "9.0\n" and done.returncode == 0, done.stderr
    trace = codec.read(out)
    assert trace.environment.ended == "ok"
    assert any("sum" in k.ops for k in trace.kernels)


def test_kill_leaves_a_trace_that_opens_and_says_so(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "from tinygrad import Tensor\nimport time\n"
        "for i in range(3): (Tensor([1.0, float(i)]) + 1).relu().realize()\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "tgx", "trace", "-o", str(out), str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    trace = codec.read(out)
    assert trace.environment.ended == "unfinished"
    assert "stops early" in trace.environment.missing[-1]
    assert any(k.ops == ("add", "relu") for k in trace.kernels)
    assert trace.boundaries and trace.programs


def test_a_module_runs_like_a_script(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text(
        "from tinygrad import Tensor\nprint(Tensor([2.0]).exp().item())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tgx", "trace", "-o", "out", "-m", "mod"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env=env,
    )
    assert done.returncode == 0 and done.stdout.startswith("7.38"), done.stderr
    assert any("exp" in k.ops for k in codec.read(tmp_path / "out").kernels)


def test_a_fault_of_ours_costs_the_schedule_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tgx.adapter.explaining import Explainer

    with tgx.trace() as t:
        with monkeypatch.context() as m:
            m.setattr(Explainer, "boundaries", lambda self: 1 / 0)
            result = (Tensor([1.0, 2.0]) * 3).tolist()
        (Tensor.empty(3) + 1).realize()
    assert result == [3.0, 6.0]
    assert "could not record a schedule: ZeroDivisionError" in t.trace.environment.missing[0]
    assert [k.ops for k in t.kernels] == [("add",)]


def test_one_recording_at_a_time() -> None:
    with tgx.trace(), pytest.raises(tgx.TgxError, match="already being recorded"), tgx.trace():
        pass
    with tgx.trace():
        pass


def test_a_wrong_level_is_refused() -> None:
    with pytest.raises(tgx.TgxError, match="kernels, full"):
        tgx.trace(level="everything")


def test_worker_processes_tell_what_they_compile(tmp_path: Path) -> None:
    code = (
        "from tinygrad import Tensor\n"
        "a = Tensor.empty(9, 11)\n"
        "Tensor.realize((a + 1).relu(), a.sum(), a.exp().max(axis=0))\n"
    )
    done, out = run_traced(
        tmp_path,
        code,
        env={"PARALLEL": "2"},
        command=("-m", "tgx", "trace", "--level", "full", "-o", "{out}"),
    )
    assert done.returncode == 0, done.stderr
    trace = codec.read(out)
    assert len(trace.programs) >= 3
    for p in trace.programs:
        assert p.sources and any(q.program == p.id for q in trace.passes), p.name
    assert not (out / "spool").exists()


def test_a_gigantic_name_and_odd_text_survive(tmp_path: Path) -> None:
    """Whatever the user's file holds, the trace is data."""
    code = (
        'from tinygrad import Tensor\n# <script>alert("\u2028")</script> \U0001f600\n'
        "x = Tensor([1.0]) + 1; x.realize()\n"
    )
    done, out = run_traced(tmp_path, code)
    assert done.returncode == 0, done.stderr
    texts = [text for f in codec.read(out).files for _, text in f.lines]
    assert any("alert" in t for t in texts)
