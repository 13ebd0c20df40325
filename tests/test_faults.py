"""What goes wrong around TGX: memory, disks, homes and processes that end in the middle.

A program's output and its exit code are its own, whatever happens to a cache or a trace; what was
written opens and says how far it goes; where an exception is possible there is no crash.
"""
from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tinygrad import Tensor
from tinygrad.codegen import to_program
from tinygrad.device import Device
from tinygrad.helpers import Target
from tinygrad.uop.ops import Ops, UOp

from tgx import codec
from tgx.devices import cache, compiler
from tgx.devices.renderer import TGXRenderer

ROOT = Path(__file__).parents[1]


def slow(case: Any) -> Any:
    """A case of the slow tier."""
    return pytest.param(case, marks=pytest.mark.slow)


MODEL = """
import numpy as np
from tinygrad import Tensor
a = np.random.default_rng(0).standard_normal((40, 40), dtype=np.float32)
x = Tensor(a)
np.testing.assert_allclose(((x @ x).relu() + x.exp().sum(0)).numpy(),
                           np.maximum(a @ a, 0) + np.exp(a).sum(0), rtol=1e-3, atol=1e-3)
print("ok")
"""


def run(code: str, home: Path, *, limits: str = "", timeout: float = 120,
        start: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """A script on TGX with a home of its own, after `limits` (a shell command: ulimit …)."""
    env = {**os.environ, "DEV": "TGX", "PARALLEL": "0", "XDG_CACHE_HOME": str(home), **env}
    env.setdefault("PYTHONPATH", str(ROOT))
    try:
        return subprocess.run(
            [*start, "sh", "-c", f'{limits or ":"}; exec "$0" -c "$1"', sys.executable, code],
            capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired as e:
        return subprocess.CompletedProcess(e.cmd, 124, str(e.stdout), f"hangs; {e.stderr!s}")


def good(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0 and done.stdout == "ok\n" and not done.stderr, (
        done.returncode, done.stdout[-1000:], done.stderr[-2000:])


def forked(work: Callable[[], Any], kill_after: float | None = None) -> int:
    """`work()` in a child; how that ended: 0, 1, or minus the signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later: this process has threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ***************************** memory *****************************

LIMITED = """
import resource, sys
import numpy as np
from tinygrad import Tensor
from tgx.devices import compiler
(Tensor.ones(9, 9) @ Tensor.ones(9, 9)).realize()
a = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
def used(): return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
def limit(megabytes):
    resource.setrlimit(resource.RLIMIT_AS, (used() + (megabytes << 20), resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("megabytes", [6, slow(24)])
def test_llvm_without_memory_is_an_exception(tmp_path: Path, megabytes: int) -> None:
    """LLVM would end the process. The exception says so; with more memory, it goes on."""
    good(run(LIMITED + f"""
limit({megabytes})
try:
    (Tensor(a) @ Tensor(a)).relu().numpy(); raise SystemExit("no exception")
except MemoryError as e: assert "compiling a kernel may take 48 MB" in str(e), e
limit(400)
np.testing.assert_allclose((Tensor(a) @ Tensor(a)).relu().numpy(), np.maximum(a @ a, 0), atol=1e-3)
print("ok")
""", tmp_path, CCACHE="0"))


# What the allocator keeps for later leaves LLVM nothing: it has to be given back.
FULL = LIMITED + """
import mmap
from tinygrad import Device
if MUTANT: compiler.make_room = lambda: None
limit(220)
try: Tensor.full((4000 << 20,), 7, dtype="uint8").contiguous().realize(); raise SystemExit("4 GB")
except MemoryError as e: assert "failed on TGX" in str(e), e
allocator, held, size = Device["TGX"].allocator, [], 1 << 20
try:
    while True:
        mmap.mmap(-1, 4 << 20).close()
        held.append(allocator.alloc(size))
except OSError: pass
for buffer in held: allocator.free(buffer, size)
assert len(held) > 50
for i in range(3):
    got = (Tensor(a) @ Tensor(a) * i).relu().numpy()
    np.testing.assert_allclose(got, np.maximum(i * (a @ a), 0), atol=1e-3)
print("ok")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_tensor_too_big_for_the_limit_is_an_exception_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    good(run(FULL.replace("MUTANT", "False"), tmp_path, CCACHE="0"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_mutant_that_does_not_look_for_room_is_ended_by_llvm(tmp_path: Path) -> None:
    """At times LLVM finds enough in what the C library has kept: five tries."""
    program = FULL.replace("MUTANT", "True")
    ends = [run(program, tmp_path, CCACHE="0", timeout=60).returncode for _ in range(5)]
    assert -signal.SIGABRT in ends, ends


@pytest.mark.parametrize(("room", "given_back", "raises"), [
    ([True], 0, False), ([False, True], 1, False), ([False, False], 1, True)])
def test_room_is_made_before_llvm_needs_it(
    monkeypatch: pytest.MonkeyPatch, room: list[bool], given_back: int, raises: bool
) -> None:
    class Allocator:
        count = 0

        def free_cache(self) -> None:
            self.count += 1

    allocator, answers = Allocator(), iter(room)
    monkeypatch.setattr(compiler, "spare", [allocator])
    monkeypatch.setattr(compiler, "_room", lambda: next(answers))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
    with pytest.raises(MemoryError, match="ulimit -v") if raises else nullcontext():
        compiler.make_room()
    assert allocator.count == given_back and next(answers, None) is None


def test_buffers_given_back_after_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Device["TGX"].allocator
    size, failed, real = 3 << 20, [], type(allocator)._alloc

    def scarce(self: Any, n: int, options: Any) -> Any:
        if not failed:
            failed.append(n)
            raise MemoryError("not now")
        return real(self, n, options)

    allocator.free(allocator.alloc(size + 64), size + 64)
    monkeypatch.setattr(type(allocator), "_alloc", scarce)
    buffer = allocator.alloc(size + 128)
    assert failed == [size + 128] and not any(allocator.cache.values())
    allocator.free(buffer, size + 128)


def test_sizes_that_change_all_the_time_do_not_pile_up() -> None:
    changing_sizes(300)


def changing_sizes(rounds: int) -> None:
    """tinygrad keeps freed buffers for others of the same size. With a size for each, that is all
    of them: until memory is short, and then they are given back."""
    allocator, chance = Device["TGX"].allocator, random.Random(1)
    allocator.free_cache()
    before = resident()
    for i in range(rounds):
        size = chance.randrange(1, 1 << 20)
        buffer = allocator.alloc(size)
        allocator.free(buffer, size)
        if i % 100 == 99:
            allocator.free_cache()
    assert resident() - before < 160 << 20


def resident() -> int:
    if not os.path.exists("/proc/self/statm"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ***************************** the program cache *****************************


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


@pytest.fixture(scope="module")
def program() -> UOp:
    calls = (Tensor.empty(7, device="NULL") * 3 + 1).schedule_linear().src
    ast = next(c.src[0] for c in calls if c.src[0].op is Ops.SINK)
    return to_program(ast, TGXRenderer(Target("TGX", "", "x86_64,x86-64-v3")))


def kill_me(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", ["mkdir", "mkstemp", "fdopen", "half", "replace", "replaced"])
def test_killed_at_every_step_of_writing_a_program(
    place: Path, program: UOp, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Half:
        def __init__(self, handle: int) -> None:
            self.handle = handle

        def __enter__(self) -> Half:
            return self

        def write(self, data: bytes) -> None:
            os.write(self.handle, data[: len(data) // 2])
            kill_me()

        def __exit__(self, *_: object) -> None:
            pass

    def replaced(*arguments: Any) -> None:
        real(*arguments)
        kill_me()

    real = os.replace
    where: Any = {"mkdir": Path, "mkstemp": tempfile}.get(step, os)
    name = {"half": "fdopen", "replaced": "replace"}.get(step, step)
    with monkeypatch.context() as m:
        m.setattr(where, name, {"half": lambda handle, *_: Half(handle), "replaced": replaced}.get(
            step, kill_me))
        assert forked(lambda: cache.write("k", program)) == -signal.SIGKILL
    back = cache.read("k")
    assert back is None if step != "replaced" else back is not None
    cache.write("k", program)
    assert cache.read("k") is not None
    assert [p.name for p in place.iterdir() if not p.name.startswith(".new-")] == ["k"]


def random_kills(place: Path, program: UOp, count: int) -> dict[str, int]:
    """A writer of many programs is killed at a random moment; what is left is whole."""
    chance = random.Random(2)

    def work() -> None:
        for i in range(100_000):
            cache.write(f"k{i % 50}", program)
            cache.read(f"k{(i * 7) % 50}")

    for _ in range(count):
        assert forked(work, kill_after=chance.uniform(0, 0.03)) == -signal.SIGKILL
        for path in place.glob("k*"):
            assert cache.contents(path) is not None and path.exists(), f"{path} is not whole"
    seen = {"kills": count, "programs": len(list(place.glob("k*"))),
            "unfinished": len(list(place.glob(".new-*")))}
    cache.sweep(0)
    assert not list(place.iterdir()), "what a killed writer left is never swept"
    return seen


def test_killed_at_random_while_writing_programs(place: Path, program: UOp) -> None:
    random_kills(place, program, 12)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_while_writing_programs_200_times(place: Path, program: UOp) -> None:
    print(random_kills(place, program, 200))


def test_a_flipped_bit_anywhere_is_noticed(place: Path, program: UOp) -> None:
    cache.write("k", program)
    path, chance = place / "k", random.Random(3)
    data = path.read_bytes()
    for _ in range(200):
        spoilt, at = bytearray(data), chance.randrange(len(data))
        spoilt[at] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        path.chmod(0o600)
        assert cache.read("k") is None, f"bit at byte {at}"
        assert not path.exists()


def test_processes_that_share_an_empty_cache(tmp_path: Path) -> None:
    """Four at once compile the same programs; each is right, each program is there once."""
    env = {**os.environ, "DEV": "TGX", "PARALLEL": "0", "XDG_CACHE_HOME": str(tmp_path)}
    crowd = [subprocess.Popen([sys.executable, "-c", MODEL], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    for process in crowd:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out == "ok\n" and not err, err
    names = [p.name for p in (tmp_path / "tinygrad/tgx_programs").iterdir()]
    assert names and len(set(names)) == len(names) and not [n for n in names if n[0] == "."]
    good(run(MODEL, tmp_path))


class Payload:
    """Unpickled, it leaves a mark: somebody's code has run as us."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def plant(path: Path, mark: Path) -> None:
    import hashlib

    short = pickle.dumps(Payload(mark))
    data = len(short).to_bytes(8, "little") + short + short
    path.write_bytes(hashlib.sha256(data).digest() + data)
    path.chmod(0o600)


def other_owner(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 65534, -1)


PLANTED: dict[str, Callable[[Path], None]] = {
    "another's file": other_owner,
    "another's folder": lambda p: other_owner(p.parent),
    "a folder anyone may write to": lambda p: p.parent.chmod(0o777),
    "a folder the group may write to": lambda p: p.parent.chmod(0o770),
    "a file anyone may write to": lambda p: p.chmod(0o606),
    "a link to another place": lambda p: p.rename(p.parent / "x") and p.symlink_to("x"),
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_file_that_others_could_have_planted_is_not_read(
    place: Path, program: UOp, how: str
) -> None:
    cache.write("warm", program)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    mark = place.parent / "mark"
    plant(place / "k", mark)
    PLANTED[how](place / "k")
    assert cache.read("k") is None and not mark.exists()


def test_mutant_that_trusts_everybody_runs_what_was_planted(
    place: Path, program: UOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("warm", program)
    mark = place.parent / "mark"
    plant(place / "k", mark)
    PLANTED["a folder anyone may write to"](place / "k")
    monkeypatch.setattr(cache, "trusted", lambda status: True)
    assert cache.read("k") is None and mark.exists()


def test_mutant_without_the_checksum_takes_a_flipped_bit(
    place: Path, program: UOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("k", program)
    data = bytearray((place / "k").read_bytes())
    machine_code = data.index(program.src[3].arg[200:232])
    data[machine_code] ^= 1
    (place / "k").write_bytes(data)

    class Blind:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def digest(self) -> bytes:
            return bytes((place / "k").read_bytes()[:32])

    monkeypatch.setattr(cache.hashlib, "sha256", Blind)
    back = cache.read("k")
    assert back is not None and back.src[3].arg != program.src[3].arg


def test_strange_things_in_the_folder(place: Path, program: UOp) -> None:
    """A pipe (nobody writes to it), a folder, a file too big to be one of ours."""
    cache.write("warm", program)
    os.mkfifo(place / "pipe", 0o600)
    (place / "folder").mkdir()
    with open(place / "huge", "wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "folder", "huge"):
        assert cache.read(name) is None
        cache.write(name, program)
    assert cache.read("pipe") is not None and cache.read("huge") is not None
    cache.sweep(0)


def test_whole_and_ours_but_nothing_we_know(place: Path, program: UOp) -> None:
    import hashlib

    cache.write("warm", program)
    short = b"cno_such_module\nthing\n."
    data = len(short).to_bytes(8, "little") + short
    (place / "k").write_bytes(hashlib.sha256(data).digest() + data)
    (place / "k").chmod(0o600)
    assert cache.read("k") is None


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT,
                                     errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("step", ["mkdir", "mkstemp", "replace"])
def test_every_step_may_fail(place: Path, program: UOp, monkeypatch: pytest.MonkeyPatch,
                             problem: int, step: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(problem, os.strerror(problem))

    with monkeypatch.context() as m:
        m.setattr({"mkdir": Path, "mkstemp": tempfile}.get(step, os), step, fails)
        cache.write("k", program)
        assert cache.read("k") is None
    assert not place.exists() or not list(place.iterdir()), "something was left behind"
    cache.write("k", program)
    assert cache.read("k") is not None


# ***************************** homes and disks *****************************


def a_file(home: Path) -> None:
    (home / "tinygrad").write_text("a file where the folder should be")


def a_dangling_link(home: Path) -> None:
    (home / "tinygrad").symlink_to(home / "nowhere" / "at" / "all")


def a_dangling_folder(home: Path) -> None:
    (home / "tinygrad").mkdir()
    (home / "tinygrad/tgx_programs").symlink_to(home / "nowhere" / "at" / "all")


@pytest.mark.parametrize("what", [a_file, slow(a_dangling_link), slow(a_dangling_folder)])
def test_a_cache_folder_that_is_none(tmp_path: Path, what: Callable[[Path], None]) -> None:
    what(tmp_path)
    good(run(MODEL, tmp_path))


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """No file may be longer than a kilobyte: neither ours, nor tinygrad's database."""
    good(run(MODEL, tmp_path, limits="ulimit -f 1"))
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "tgx_programs" in str(p)]
    assert not left, left


MOUNTS = {"read-only": "ro", "full": "size=8k"}


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize("what", MOUNTS)
def test_a_home_that_is_mounted(tmp_path: Path, what: str) -> None:
    """A file system of the child's own; for it alone, so nothing stays mounted."""
    mount = f"mount -t tmpfs -o {MOUNTS[what]} none {tmp_path} || exit 99"
    done = run(MODEL, tmp_path, limits=mount, start=("unshare", "-m"))
    if "denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip(done.stderr)
    good(done)


AS_NOBODY = """
import os, resource, sys
import numpy as np
from tinygrad import Tensor
def product(n):
    a = np.random.default_rng(n).standard_normal((n, n), dtype=np.float32)
    np.testing.assert_allclose((Tensor(a) @ Tensor(a)).relu().numpy(), np.maximum(a @ a, 0),
                               rtol=1e-3, atol=1e-3)
product(9)
if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def test_a_home_that_may_not_be_written(tmp_path: Path) -> None:
    """As nobody, who compiles what root's cache does not have, and cannot keep it."""
    tmp_path.chmod(0o755)
    good(run(AS_NOBODY + """
product(10)
print("ok")
""", tmp_path))


def test_a_limit_on_threads(tmp_path: Path) -> None:
    """`ulimit -u`: neither a worker nor a thread for LLVM, and all is computed by the caller."""
    good(run(AS_NOBODY + """
import threading
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try: threading.Thread(target=print).start()
except RuntimeError: product(256); product(11)
else: raise SystemExit("threads start all the same")
from tgx.devices import threads
assert threads.pool() is None and threads.worker_count() == 3
print("ok")
""", tmp_path, NUM_CPU_THREADS="4", CCACHE="0"))


def test_a_cache_folder_that_vanishes_in_the_middle(tmp_path: Path) -> None:
    good(run("""
import shutil, threading, os
home = os.environ["XDG_CACHE_HOME"]
stop = threading.Event()
def vanish():
    while not stop.is_set(): shutil.rmtree(home + "/tinygrad/tgx_programs", ignore_errors=True)
t = threading.Thread(target=vanish); t.start()
try:
    import numpy as np
    from tinygrad import Tensor
    for n in range(3, 9):
        a = np.arange(n * n, dtype=np.float32).reshape(n, n)
        np.testing.assert_allclose((Tensor(a) @ Tensor(a)).numpy(), a @ a)
finally: stop.set(); t.join()
print("ok")
""", tmp_path))


# ***************************** traces *****************************

SCRIPT = """
from tinygrad import Tensor, TinyJit
import sys, time
@TinyJit
def step(x): return (x * 2 + 1).relu().sum().realize()
total = 0.0
for i in range(ROUNDS):
    total += step(Tensor([1.0, float(i)]).realize()).item()
    (Tensor.ones(3 + i % 5, 4) @ Tensor.ones(4, 5)).realize()
print("result", total, flush=True)
sys.exit(7)
"""


def traced(tmp_path: Path, limits: str, rounds: int = 5,
           **env: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT.replace("ROUNDS", str(rounds)))
    command = "" if "TGX_TRACE" in env else "-m tgx trace -o out"
    return subprocess.run(
        ["sh", "-c", f'{limits}; exec "$0" {command} program.py', sys.executable],
        capture_output=True, text=True, timeout=200, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0", "DEV": "TGX", **env})


@pytest.mark.parametrize(("how", "kilobytes"), [("command", 4), ("variable", 0)])
def test_a_disk_that_is_full_while_tracing(tmp_path: Path, how: str, kilobytes: int) -> None:
    """The script's output and exit code are its own; there is one warning; what was written opens
    and says that it ends early."""
    env = {"TGX_TRACE": "out"} if how == "variable" else {}
    done = traced(tmp_path, f"ulimit -f {kilobytes}", **env)
    assert done.returncode == 7 and done.stdout.startswith("result "), done.stderr
    assert done.stderr.count("tgx: ") == 1 and "trace.jsonl ends early: File too large" in \
        done.stderr and "Traceback" not in done.stderr, done.stderr
    if kilobytes:
        trace = codec.read(tmp_path / "out")
        assert trace.environment.ended == "unfinished"
        assert "stops early" in trace.environment.missing[-1]


@pytest.mark.parametrize("how", ["command", slow("variable")])
def test_a_folder_that_cannot_be_written(tmp_path: Path, how: str) -> None:
    """The command says so before it starts; with the variable, the script runs untraced."""
    (tmp_path / "out").write_text("a file")
    done = traced(tmp_path, ":", **({"TGX_TRACE": "out"} if how == "variable" else {}))
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (7 if how == "variable" else 1)
    assert done.stdout.startswith("result " if how == "variable" else "")


def test_views_that_cannot_be_written_are_left_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgx import recording

    real = Path.write_text

    def write_text(self: Path, text: str, **how: Any) -> int:
        real(self, text[:10], **how)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    problems = recording.write_views(codec.read(ROOT / "traces/mlp"), tmp_path)
    assert problems == ["not all files could be written: No space left on device"]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_forked_child_leaves_its_parents_trace_alone(tmp_path: Path) -> None:
    """It would write the same file, end it, and delete it if it is a temporary one."""
    script = tmp_path / "forks.py"
    script.write_text("""
import os, sys, tgx
from tinygrad import Tensor
def work(n): return (Tensor.ones(n) * 2).sum().item()
def forked():
    if (pid := os.fork()) == 0:
        work(11); sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
work(3); forked(); work(4)
""")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "tgx", "trace", "-o", str(out), str(script)], capture_output=True,
        text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0"})
    assert done.returncode == 0 and done.stderr.count("tgx: trace in") == 1, done.stderr
    trace = codec.read(out)
    assert trace.environment.ended == "ok" and len(trace.realizes) == 2
    good(run("""
import os, sys, tgx
from tinygrad import Tensor
with tgx.trace() as t:
    Tensor.ones(5).sum().item()
    if (pid := os.fork()) == 0: Tensor.ones(6).sum().item(); sys.exit(5)
    os.waitpid(pid, 0)
if (pid := os.fork()) == 0: sys.exit(5)
os.waitpid(pid, 0)
assert len(t.trace.realizes) == 1
print("ok")
""", tmp_path))


def killed_traces(tmp_path: Path, count: int) -> dict[str, int]:
    """`kill -9` at a random moment of a traced run: what was written opens and says so."""
    seen = {"nothing yet": 0, "unfinished": 0, "kernels": 0, "ok": 0}
    chance = random.Random(4)
    script = tmp_path / "program.py"
    script.write_text(SCRIPT.replace("ROUNDS", "100000"))
    for i in range(count):
        out = tmp_path / f"out{i}"
        with subprocess.Popen(
            [sys.executable, "-m", "tgx", "trace", "-o", str(out), str(script)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL": "0", "DEV": "TGX"},
        ) as process:
            end = time.monotonic() + 60
            while not (out / "trace.jsonl").exists() and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 1.5))
            process.kill()
        if not (out / "trace.jsonl").stat().st_size:
            seen["nothing yet"] += 1
            continue
        trace = codec.read(out)
        seen[trace.environment.ended] += 1
        seen["kernels"] += bool(trace.kernels)
        assert trace.environment.ended == "unfinished"
        assert "stops early" in trace.environment.missing[-1]
    return seen


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_traces_killed_at_random_50_times(tmp_path: Path) -> None:
    seen = killed_traces(tmp_path, 50)
    print(json.dumps(seen))
    assert seen["kernels"] > 10




# ***************************** for long *****************************

LONG = """
import gc, os, threading
import numpy as np
from tinygrad import Tensor, TinyJit, codegen, schedule
from tinygrad.engine import realize
from tinygrad.runtime.support.memory import TLSFAllocator
w = Tensor(np.random.default_rng(0).standard_normal((8, 8), dtype=np.float32)).realize()
x = np.random.default_rng(1).standard_normal((4, 8), dtype=np.float32)
(w @ Tensor.ones(8, 5).contiguous() - Tensor.ones(8, 5)).relu().realize()
def resident():  # but for what is read from files, which the system drops and reads again
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
def state():
    gc.collect()
    return {"KB": resident(), "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "code": sum("r-xp" in l and "/" not in l for l in open("/proc/self/maps")),
            "maps": sum(1 for l in open("/proc/self/maps"))}
def settled():
    for cached in (TLSFAllocator.lv1, TLSFAllocator.lv2):  # tinygrad's: they keep every allocator
        cached.cache_clear()
    return state()
def grown(first, last):
    import json, sys
    print(json.dumps({"first": first, "last": last}), file=sys.stderr)
    return {k: last[k] - first[k] for k in first}
"""

CAPTURES = LONG + """
@TinyJit
def step(x): return ((x @ w).relu().contiguous() @ w).realize()
X = Tensor(x).realize()
def capture():
    step.reset()
    for _ in range(3): got = step(X)
    return got
for _ in range(20): capture()
first = settled()
for i in range(ROUNDS):
    got = capture()
    if i % 100 == 99: settled()
last = settled()
np.testing.assert_allclose(got.numpy(), np.maximum(x @ w.numpy(), 0) @ w.numpy(), rtol=1e-4)
more = grown(first, last)
assert more["threads"] == more["files"] == more["code"] == 0 and more["maps"] < 8, more
assert more["KB"] < 4096, more
print("ok")
"""

KERNELS = LONG + """
def forget():
    for known in (realize.runtime_cache, codegen.to_program_cache, schedule.schedule_cache):
        known.clear()
    return settled()
def kernel(i): return (w.reshape(64)[: 1 + i % 60] * (i + 0.5)).sum().realize()
for i in range(100): kernel(-1 - i)
first = forget()
for i in range(ROUNDS):
    got = kernel(i)
    if i % 100 == 99: forget()
want = (w.numpy().reshape(64)[: 1 + i % 60] * (i + 0.5)).sum()
np.testing.assert_allclose(got.item(), want, rtol=1e-3)
del got
last = forget()
more = grown(first, last)
assert more["threads"] == more["files"] == 0 and more["code"] < 3, more
assert more["KB"] < 4096 + PER_KERNEL * ROUNDS, more
print("ok")
"""


def for_long(program: str, rounds: int, tmp_path: Path, **env: str) -> None:
    done = run(program.replace("ROUNDS", str(rounds)).replace("PER_KERNEL", "24"), tmp_path,
               timeout=3000, **env)
    print(done.stderr)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_captures_again_and_again(tmp_path: Path) -> None:
    for_long(CAPTURES, 60, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_captures_10_000_times(tmp_path: Path) -> None:
    for_long(CAPTURES, 10_000, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_kernels_that_tinygrad_forgets_are_unloaded(tmp_path: Path) -> None:
    for_long(KERNELS, 100, tmp_path, CCACHE="0")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_10_000_different_kernels(tmp_path: Path) -> None:
    for_long(KERNELS, 10_000, tmp_path, CCACHE="0")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_100_000_buffers_of_changing_sizes() -> None:
    changing_sizes(100_000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_mutant_that_keeps_every_program_loaded(tmp_path: Path) -> None:
    keep = """
from tgx.devices import compiler
kept, init = [], compiler.Loaded.__init__
def keeping(self, *how): init(self, *how); kept.append(self)
compiler.Loaded.__init__ = keeping
"""
    done = run(keep + KERNELS.replace("ROUNDS", "60").replace("PER_KERNEL", "24"), tmp_path,
               CCACHE="0")
    assert done.returncode == 1 and "AssertionError: {'KB'" in done.stderr, done.stderr
