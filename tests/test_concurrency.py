"""Threads, forks and signals: what may happen at the same time, and what that must not break.

tinygrad builds programs in one thread at a time: its scheduler, its compiler and TinyJit's capture
share global state without locks, and whatever any thread realizes during a capture is captured with
it. So do these tests, under one lock; what was captured runs in any thread, once nobody captures.
The mutants at the end plant bugs, and the tests' programs fail.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor, TinyJit
from tinygrad.device import Device

from tgx.devices import stacks, threads
from tgx.devices.compiler import Loaded, TGXCompiler
from tgx.devices.ops_tgx import TGXAllocator

BUILDING = threading.Lock()


def slow(case: Any) -> Any:
    """A case of the slow tier."""
    return pytest.param(case, marks=pytest.mark.slow)


# Most children start so. `step` is a captured step, big enough to be shared among the workers.
HEAD = """
import os, signal, sys, threading, time
import numpy as np
from tinygrad import Tensor, TinyJit
from tgx.devices import compiler, stacks, threads
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((256, 256), dtype=np.float32) for _ in range(2))
W = Tensor(b).realize()
step = TinyJit(lambda x: (x @ W).relu().contiguous().softmax().realize())
def want(x):
    h = np.maximum(x.astype(np.float64) @ b.astype(np.float64), 0)
    e = np.exp(h - h.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
def check(x=a):
    np.testing.assert_allclose(step(Tensor(x).realize()).numpy(), want(x), rtol=1e-3, atol=1e-5)
for _ in range(4): check()
"""


def child(code: str, head: str = HEAD, timeout: float = 100,
          **env: str) -> subprocess.CompletedProcess[str]:
    """Another Python, on TGX with three workers; hanging is a failure as well: status -1."""
    try:
        return subprocess.run(
            [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "DEV": "TGX", "PARALLEL": "0", "NUM_CPU_THREADS": "4", **env})
    except subprocess.TimeoutExpired as e:
        return subprocess.CompletedProcess(e.cmd, -1, str(e.stdout), f"hangs; {e.stderr!s}")


def passes(code: str, **how: Any) -> None:
    done = child(code, **how)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), (
        done.returncode, done.stdout[-2000:], done.stderr[-3000:])


def in_threads(count: int, work: Any) -> None:
    """`work(number)` in `count` threads at once; the first exception is raised here."""
    failed: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as e:
            failed.append(e)

    crowd = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for t in crowd:
            t.start()
        for t in crowd:
            t.join()
    finally:
        sys.setswitchinterval(before)
    if failed:
        raise failed[0]


# ***************************** threads *****************************


def models_in_threads(count: int, calls: int) -> None:
    built = threading.Barrier(count)

    def work(number: int) -> None:
        r = np.random.default_rng(number)
        w1, w2 = (r.standard_normal(s, dtype=np.float32) for s in ((64, 128), (128, 10)))
        with BUILDING:
            v1, v2 = Tensor(w1).realize(), Tensor(w2).realize()
            f = TinyJit(lambda x: ((x @ v1).relu() @ v2).realize())
            for _ in range(3):
                f(Tensor(r.standard_normal((32, 64), dtype=np.float32)).realize())
        built.wait()
        for _ in range(calls):
            x = r.standard_normal((32, 64), dtype=np.float32)
            got = f(Tensor(x).realize()).numpy()
            np.testing.assert_allclose(got, np.maximum(x @ w1, 0) @ w2, rtol=1e-3, atol=1e-3)

    in_threads(count, work)


def test_models_in_threads_on_one_device() -> None:
    models_in_threads(4, 40)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_models_in_many_threads_for_long() -> None:
    models_in_threads(8, 1000)


def shared_step(count: int, calls: int) -> None:
    """A captured step that adds its input to a running sum: no call may be lost, or another's
    input be added in its place."""
    with BUILDING:
        total = Tensor.zeros(4096).contiguous().realize()

        @TinyJit
        def add(x: Tensor) -> None:
            total.assign(total + x.contiguous() * 2).realize()

        inputs = [Tensor(np.full(4096, 1 << i, np.float32)).realize() for i in range(count)]
        for _ in range(3):
            add(inputs[0])
        total.assign(Tensor.zeros(4096)).realize()

    def work(number: int) -> None:
        for _ in range(calls):
            add(inputs[number])

    in_threads(count, work)
    np.testing.assert_array_equal(total.numpy(), np.full(4096, 2 * calls * (2**count - 1)))


def test_one_captured_step_called_by_many_threads_takes_turns() -> None:
    shared_step(4, 150)


def test_the_runtime_is_made_once_however_many_threads_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two were made once, and the first was unloaded while its workers ran in it."""
    made = []

    class Slow(threads.Runtime):
        def __init__(self) -> None:
            made.append(self)
            time.sleep(0.02)
            super().__init__()

    monkeypatch.setattr(threads, "Runtime", Slow)
    monkeypatch.setattr(threads, "_runtime", None)
    monkeypatch.setattr(threads, "_pool", None)
    in_threads(8, lambda _: threads.pool())
    assert len(made) == 1


def test_no_buffer_is_handed_out_twice_and_none_is_lost() -> None:
    """tinygrad's LRU looks whether there is a buffer and then takes it: another thread may be
    quicker, and an IndexError was the answer."""
    allocator = TGXAllocator(Device["TGX"])
    held: dict[int, int] = {}

    def work(number: int) -> None:
        for i in range(1500):
            size = 4096 * (1 + i % 3)
            buffer = allocator.alloc(size)
            assert held.setdefault(buffer.address, number) == number, "handed out twice"
            del held[buffer.address]
            allocator.free(buffer, size)
            if i % 100 == 99:
                allocator.free_cache()

    in_threads(4, work)


BUMP = """
define void @bump(ptr %args, i64 %chunk) nounwind {
entry:
  %base = load ptr, ptr %args
  %pause.at = getelementptr i64, ptr %args, i64 1
  %pause = load i64, ptr %pause.at
  %place = getelementptr i64, ptr %base, i64 %chunk
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %n, %loop ]
  %v = load volatile i64, ptr %place
  %n = add i64 %i, 1
  %more = icmp ult i64 %n, %pause
  br i1 %more, label %loop, label %out
out:
  %old = load i64, ptr %place
  %new = add i64 %old, 1
  store i64 %new, ptr %place
  ret void
}
"""


def test_lists_run_by_several_threads_run_every_chunk_once() -> None:
    """The first caller has the workers for a while, the others come then and run theirs alone."""
    kernel = Loaded(TGXCompiler().compile(BUMP), ("bump",))
    threads.pool()

    def work(number: int) -> None:
        pause, jobs_each = (60_000_000, 1) if number == 0 else (100, 50)
        counts = array("q", [0] * 16)
        words = array("q", [counts.buffer_info()[0], pause])
        jobs = array("q", [kernel.address["bump"], words.buffer_info()[0], 16] * jobs_each)
        time.sleep(0.05 * (number > 0))
        for _ in range(20 if number else 1):
            threads.run(jobs.buffer_info()[0], jobs_each)
        assert list(counts) == [1000 if number else 1] * 16

    in_threads(4, work)


# ***************************** stacks *****************************

BIG = """
x = rng.standard_normal((512, 2048), dtype=np.float32)
y = rng.standard_normal((2048, 512), dtype=np.float32)
def big():
    got = (Tensor(x) @ Tensor(y)).numpy()
    np.testing.assert_allclose(got, x @ y, rtol=1e-3, atol=1e-2)
"""


@pytest.mark.parametrize("size", [64, slow(256)])
def test_kernels_and_llvm_have_their_stack_where_threads_have_little(size: int) -> None:
    """The workers and the compiling thread inherited `threading.stack_size`, and a caller's own
    stack may be as small: a packed factor takes 272 KB of it."""
    passes(BIG + f"""
threading.stack_size({size} << 10)
big()
failed = []
def small():
    try:
        assert not stacks.enough()
        for _ in range(2): big(); check()
    except BaseException as e: failed.append(e)
t = threading.Thread(target=small); t.start(); t.join()
assert not failed, failed
assert threading.stack_size() == {size} << 10
print("ok")
""", CCACHE="0")


def test_a_small_stack_of_the_whole_process(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"ulimit -s 512; exec {sys.executable} -c '{BIG_ALONE}'"],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, "DEV": "TGX", "CCACHE": "0"})
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-2000:]


BIG_ALONE = ("import numpy as np\nfrom tinygrad import Tensor\nfrom tgx.devices import stacks\n"
             "rng = np.random.default_rng(0)" + BIG + "big(); big()\n"
             "assert not stacks.enough()\nprint(\"ok\")")


def test_what_goes_wrong_on_the_other_stack_is_raised_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stacks._known, "enough", False)
    assert stacks.call(lambda x: (x, threading.current_thread().name), 3) == (3, "tgx-stack")
    with pytest.raises(ZeroDivisionError):
        stacks.call(lambda: 1 // 0)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(MemoryError, match=r"of stack, this thread has \d+ KB.*ulimit -s"):
        stacks.call(int)


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# ***************************** no more threads *****************************


@pytest.mark.parametrize("granted", [0, slow(1)])
def test_fewer_workers_are_enough(granted: int) -> None:
    """`ulimit -u`, or a full memory: what cannot start is left out; compiling needs none either."""
    passes(f"""
mine = [t for t in threading.enumerate() if t.name.startswith("tgx-")]
assert len(started) == len(mine) == {granted}
check(); check()
assert (threads.pool() is None) == ({granted} == 0)
print("ok")
""", head=f"""
import threading
start, started = threading.Thread.start, []
def limited(self):
    if len(started) >= {granted} or not self.name.startswith("tgx-") or "llvm" in self.name:
        raise RuntimeError("can't start new thread")
    started.append(self); start(self)
threading.Thread.start = limited
""" + HEAD, CCACHE="0")


# ***************************** forks *****************************

# `compiling()` keeps LLVM busy in another thread until `stop` is set.
COMPILING = """
source = "define void @k(ptr %args, i64 %chunk) nounwind {\\n" + "".join(
    f"  %v{i} = load volatile i64, ptr %args\\n" for i in range(800)) + "  ret void\\n}\\n"
stop = threading.Event()
def compiling():
    own = compiler.TGXCompiler()
    while not stop.is_set(): compiler.Loaded(own.compile(source), ("k",))
def alive(pid, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    return "hangs"
def forked(work):
    pid = os.fork()
    if pid == 0:
        try: work()
        except BaseException:
            import traceback; traceback.print_exc(); os._exit(1)
        os._exit(0)
    return pid
"""

FORK_WHILE_COMPILING = COMPILING + """
PATIENCE = globals().get("PATIENCE", 60)
t = threading.Thread(target=compiling, daemon=True); t.start()
def work():
    compiler.Loaded(compiler.TGXCompiler().compile(source), ("k",)); check()
ends = []
for i in range(5):
    time.sleep(0.013 * i)
    ends.append(alive(forked(work), PATIENCE))
    if ends[-1]: break
stop.set(); t.join()
check()
assert ends == [0] * 5, ends
print("ok")
"""


def test_a_child_forked_while_another_thread_compiles_can_compile() -> None:
    """llvmlite's lock, and LLVM's own, were held in the child for ever."""
    passes(FORK_WHILE_COMPILING)


def test_children_forked_in_the_middle_of_a_kernel() -> None:
    """While another thread's kernels run on the pool, a child is forked, and one by that child:
    all of them compute the same."""
    passes(COMPILING + """
from tinygrad.engine import realize
x = Tensor(a).realize()
graph, inputs = realize.graph_cache[step.captured.linear.src[0].src[0]], (x.uop.base,)
def running():  # tinygrad's part has locks of its own: Python 3.11's cached_property
    while not stop.is_set(): graph(inputs, {})
t = threading.Thread(target=running, daemon=True); t.start()
def grandchild():
    fresh = rng.standard_normal((256, 256), dtype=np.float32)
    check(fresh); check()
def work():
    grandchild(); assert alive(forked(grandchild)) == 0
ends = []
for i in range(6):
    time.sleep(0.003 * i)
    ends.append(forked(work))
ends = [alive(pid) for pid in ends]
stop.set(); t.join()
check()
assert ends == [0] * 6, ends
print("ok")
""")


def test_a_child_that_cleans_up_takes_nothing_from_its_parent() -> None:
    """A child unloads the programs it inherited, and frees the buffers: the parent has its own."""
    passes(COMPILING + """
import gc
from tinygrad.engine import realize
def work():
    global step, W
    step = W = None
    realize.runtime_cache.clear(); realize.graph_cache.clear(); gc.collect()
    (Tensor(a) + 1).realize()
for _ in range(3): assert alive(forked(work)) == 0
check(); check()
print("ok")
""")


@pytest.mark.parametrize("method", ["fork", "spawn", slow("forkserver")])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    script = tmp_path / "pool.py"
    script.write_text("""
import multiprocessing, sys
import numpy as np
from tinygrad import Tensor
def work(seed):
    a = np.random.default_rng(seed).standard_normal((96, 96), dtype=np.float32)
    got = (Tensor(a) @ Tensor(a)).relu().numpy()
    return bool(np.allclose(got, np.maximum(a @ a, 0), rtol=1e-3, atol=1e-3))
if __name__ == "__main__":
    assert work(99)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.map(work, range(6)) == [True] * 6
    assert work(98)
    print("ok")
""")
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True,
                          timeout=100, env={**os.environ, "DEV": "TGX", "PARALLEL": "0"})
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-2000:]


# ***************************** signals *****************************

# `long` is one native call of about a second.
LONG = """
from array import array
spin = compiler.Loaded(compiler.TGXCompiler().compile('''
define void @spin(ptr %args, i64 %chunk) nounwind {
entry:
  %left.at = load ptr, ptr %args
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %n, %loop ]
  %v = load volatile i64, ptr %left.at
  %n = add i64 %i, 1
  %more = icmp ult i64 %n, 20000000
  br i1 %more, label %loop, label %out
out:
  ret void
}
'''), ("spin",))
cell = array("q", [0]); words = array("q", [cell.buffer_info()[0]])
jobs = array("q", [spin.address["spin"], words.buffer_info()[0], 4] * 20)
def long(): threads.run(jobs.buffer_info()[0], 20)
"""


def test_ctrl_c_during_a_native_call_is_noticed_when_it_returns() -> None:
    """Not lost, and nothing is broken by it: the pool is still everybody's, the same step runs."""
    passes(LONG + """
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in range(3):
    began = time.monotonic()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try: long(); time.sleep(5); raise SystemExit("the interrupt was lost")
    except KeyboardInterrupt: pass
    assert time.monotonic() - began < 60
    check()
from ctypes import c_int64
assert c_int64.from_address(threads.pool().address + 232).value == 0, "somebody has the pool still"
print("ok")
""")


def test_a_handler_may_run_other_programs_but_not_the_step_it_interrupts() -> None:
    passes("""
other = TinyJit(lambda x: ((x + 1).contiguous() * 2).realize())
x = Tensor(a).realize()
for _ in range(3): other(x)
seen, inside = {"ran": 0, "refused": 0}, []
def handler(*_):
    if inside: return  # it takes longer than until the next alarm
    inside.append(1)
    np.testing.assert_allclose(other(x).numpy(), (a + 1) * 2); seen["ran"] += 1
    try: step(x)
    except RuntimeError as e: assert "in the middle of a call" in str(e); seen["refused"] += 1
    inside.clear()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
end = time.monotonic() + 60
while min(seen.values()) < 5 and time.monotonic() < end: check()
signal.setitimer(signal.ITIMER_REAL, 0)
assert min(seen.values()) >= 5, seen
check()
print("ok")
""")


def test_a_storm_of_signals_leaves_results_alone() -> None:
    """A thousand signals a second, to a process whose kernels run on four threads."""
    passes("""
rings = []
signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for i in range(60):
    check(rng.standard_normal((256, 256), dtype=np.float32))
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(rings) > 20, len(rings)
print("ok")
""")


def test_stopped_and_continued() -> None:
    code = HEAD + """
print("ready", flush=True)
end = time.monotonic() + 1.2
while time.monotonic() < end: check()
print("ok")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "DEV": "TGX", "NUM_CPU_THREADS": "4"}) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for _ in range(10):
            time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)
            process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "ok\n"
    assert process.returncode == 0


def test_an_interrupt_while_the_pool_starts_leaves_no_dangling_workers() -> None:
    passes("""
assert threads._pool is not None
threads._pool = None
start, calls = threading.Thread.start, []
def interrupted(self):
    start(self); calls.append(self)
    if len(calls) == 2: raise KeyboardInterrupt
threading.Thread.start = interrupted
try: check(); raise SystemExit("no interrupt")
except KeyboardInterrupt: pass
threading.Thread.start = start
for t in calls: t.join(20)
assert not any(t.is_alive() for t in calls), "workers of a pool nobody has"
check(); check()
print("ok")
""")


# ***************************** the end *****************************


@pytest.mark.parametrize("end", ["", slow("sys.exit(0)"), slow("os._exit(0)"),
                                 "import atexit; atexit.register(fresh)"])
def test_leaving_while_workers_are_awake(end: str) -> None:
    """The end comes at once after a kernel, when the workers still look for work, and with a
    daemon thread in the middle of one; a handler at exit may still compile and run."""
    passes(f"""
def running():
    x = Tensor(a).realize()
    while True: step(x)
def fresh(): assert (Tensor(a) * 3 - 7).sum().item() is not None
threading.Thread(target=running, daemon=True).start()
time.sleep(0.05)
print("ok", flush=True)
{end}
""")


# ***************************** planted bugs *****************************


def test_mutant_without_the_fork_hook_hangs() -> None:
    done = child(FORK_WHILE_COMPILING, head="""
import os
PATIENCE = 3
real = os.register_at_fork
def none(*, before=None, after_in_parent=None, after_in_child=None):
    if getattr(before, "__module__", "") != "tgx.devices.compiler":
        real(**{k: v for k, v in dict(before=before, after_in_parent=after_in_parent,
                                     after_in_child=after_in_child).items() if v})
os.register_at_fork = none
""" + HEAD)
    assert done.returncode == 1 and "hangs" in done.stderr, (done.returncode, done.stderr[-2000:])


def test_mutant_without_turns_loses_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from tgx.devices import graph

    monkeypatch.setattr(graph, "turn", lambda lock: nullcontext())
    with pytest.raises(AssertionError):
        for _ in range(20):
            shared_step(4, 150)


def test_mutant_that_gives_the_pool_to_every_caller() -> None:
    """Then two lists share one ticket: chunks run twice or never, or the caller waits for ever.
    Threads that a busy machine starts one after the other never meet, so there are many tries."""
    done = child("""
import tests.test_concurrency as here
for _ in range(30): here.test_lists_run_by_several_threads_run_every_chunk_once()
print("ok")
""", timeout=60, head="""
import os, sys
sys.path.insert(0, os.environ["TOP"])
from tgx.devices import threads
source = threads.runtime_source
def shared(architecture):
    text = source(architecture)
    assert "phi i1 [ false, %entry ], [ %got, %claim ]" in text
    return text.replace("[ %got, %claim ]", "[ true, %claim ]")
threads.runtime_source = shared
""", TOP=str(Path(__file__).parents[1]), CCACHE="0")
    assert done.returncode != 0, done.stdout


def test_mutant_whose_workers_keep_the_program_s_stack_size() -> None:
    done = child(BIG + """
threading.stack_size(64 << 10)
big()
print("ok")
""", head="""
from contextlib import nullcontext
from tgx.devices import stacks
stacks.large = nullcontext
""" + HEAD.replace("for _ in range(4): check()", ""))
    assert done.returncode == -signal.SIGSEGV, (done.returncode, done.stderr[-1000:])
