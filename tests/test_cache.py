"""The cache of finished programs: what it keeps, what it notices, what it survives."""
from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tinygrad import Tensor
from tinygrad.codegen import to_program, to_program_key
from tinygrad.helpers import Target
from tinygrad.uop.ops import Ops, UOp

from tgx.devices import cache
from tgx.devices.renderer import TGXRenderer

RUN = """
import hashlib, time, sys
from tinygrad import Tensor
import tinygrad.codegen as codegen
made = []
stock = codegen.do_to_program
def counted(*args):
    made.append(1)
    return stock(*args)
codegen.do_to_program = counted
x = Tensor([[1., 2.], [3., 4.]])
print((x @ x).relu().tolist(), x.softmax().sum().item(), len(made))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


def kernel(n: int = 7) -> UOp:
    calls = (Tensor.empty(n, device="NULL") * 3 + 1).schedule_linear().src
    return next(c.src[0] for c in calls if c.src[0].op is Ops.SINK)


def renderer(arch: str = "x86_64,x86-64-v3") -> TGXRenderer:
    return TGXRenderer(Target("TGX", "", arch))


def run(home: Path, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "DEV": "TGX", "XDG_CACHE_HOME": str(home),
                               "CACHEDB": str(home / "tinygrad.db"), **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_process_compiles_nothing_and_agrees(tmp_path: Path) -> None:
    first, second = run(tmp_path).rsplit(" ", 1), run(tmp_path).rsplit(" ", 1)
    assert first[0] == second[0] and int(first[1]) >= 2 and int(second[1]) == 0
    assert int(run(tmp_path, CCACHE="0").rsplit(" ", 1)[1]) >= 2, "CCACHE=0 must switch it off"
    plain = run(tmp_path, TGX_FAST="0").rsplit(" ", 1)
    assert int(plain[1]) >= 2, "a setting that changes code must change the key"


def test_a_program_comes_back_able_to_run(place: Path) -> None:
    ast, ren = kernel(), renderer()
    program = to_program(ast, ren)
    cache.write("k", program)
    back = cache.read("k")
    assert back is not None and back.arg == program.arg and back.src[3] is program.src[3]
    assert back.src[0].arg == program.src[0].arg, "the estimates are lost"
    assert back.to_elf().signature == program.to_elf().signature


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"",
                                   lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:],
                                   lambda b: b + b"x"])
def test_a_spoilt_file_is_noticed_and_removed(place: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    cache.write("k", to_program(kernel(), renderer()))
    path = place / "k"
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.read("k") is None and not path.exists()


def test_the_key_holds_everything_that_decides_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(ast: UOp, ren: TGXRenderer) -> str:
        return cache.program_key(to_program_key(ast, ren), ren)

    base = key(kernel(), renderer())
    assert key(kernel(), renderer()) == base
    assert key(kernel(8), renderer()) != base
    assert key(kernel(), renderer("x86_64,x86-64-v4")) != base
    assert key(kernel(), renderer("arm64,cortex-a78")) != base
    monkeypatch.setenv("TGX_FAST", "0")
    assert key(kernel(), renderer()) != base
    monkeypatch.delenv("TGX_FAST")
    monkeypatch.setattr(cache, "code_version", lambda: "another")
    assert key(kernel(), renderer()) != base


def test_the_folder_stays_bounded_and_the_oldest_go_first(place: Path) -> None:
    program = to_program(kernel(), renderer())
    for i in range(6):
        cache.write(f"k{i}", program)
        os.utime(place / f"k{i}", (1000 + i, 1000 + i))
    size = (place / "k0").stat().st_size
    cache.read("k0")  # used just now: no longer the oldest
    cache.sweep(3 * size)
    assert sorted(p.name for p in place.iterdir()) == ["k0", "k4", "k5"]


def test_many_writers_of_one_program_leave_one_good_file(place: Path) -> None:
    program = to_program(kernel(), renderer())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.write("k", program), range(64)))
    assert cache.read("k") is not None
    assert [p.name for p in place.iterdir()] == ["k"], "a temporary file was left behind"


def test_a_folder_that_cannot_be_written_is_no_error(place: Path) -> None:
    place.parent.joinpath("programs").write_text("a file where the folder should be")
    cache.write("k", to_program(kernel(), renderer()))
    assert cache.read("k") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_home_is_no_error(place: Path) -> None:
    place.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    cache.write("k", to_program(kernel(), renderer()))
    assert cache.read("k") is None


def test_the_short_way_gives_the_very_same_program():
    """`contract.program` leaves out tinygrad's last passes; for every kernel of a training step,
    fast path or not, what comes out is the UOp that they would have given."""
    from tinygrad import Context, Device, Tensor, codegen, nn
    from tinygrad.uop.ops import Ops

    from tgx.devices import cache, contract

    x, y = Tensor.rand(4, 1, 12, 12).realize(), Tensor([1, 0, 2, 1]).realize()
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm(8), nn.Linear(200, 3)]
    optimizer = nn.optim.Adam(nn.state.get_parameters(layers))
    with Context(TRAINING=1):
        hidden = layers[1](layers[0](x)).relu().max_pool2d().flatten(1)
        loss = layers[2](hidden).sparse_categorical_crossentropy(y).backward()
        updates = optimizer.schedule_step()
    linear, _ = loss.linear_with_vars(*updates)
    renderer, paths = Device["TGX"].renderer, set()
    for ast in {ast for ast, _ in cache.kernels(linear)}:
        ours, theirs = contract.program(ast, renderer), codegen.do_to_program(ast, renderer)
        assert ours is theirs, ours.src[0].arg.name
        paths.add(any(u.op is Ops.CUSTOM for u in ours.src[0].toposort()))
    assert paths == {True, False}


def test_the_estimates_of_a_symbolic_kernel_are_short(place: Path) -> None:
    """tinygrad's have an addition for every operation; as deep a UOp cannot be printed, nor made a
    key of, in Python 3.12."""
    from tinygrad import Context, Device, Variable, codegen, dtypes
    from tinygrad.uop.ops import sym_infer

    size = Variable("size", 1, 4).bind(3)
    x = Tensor.rand(4, 8, dtype=dtypes.float64, device="TGX").realize()
    ((ast, by),) = cache.kernels(x[:size].cos().linear_with_vars()[0])
    assert by is Device["TGX"].renderer
    with Context(CCACHE=0):
        theirs = codegen.do_to_program(ast, by).src[0].arg.estimates
        cache.compile_here({("ours",): (ast, by, "")})
    ours = codegen.to_program_cache.pop(("ours",)).src[0].arg.estimates
    assert len(theirs.ops.toposort()) > 100 and len(ours.ops.toposort()) < 20
    for name in ("ops", "lds", "mem"):
        one, other = (sym_infer(getattr(e, name), {"size": 3}) for e in (ours, theirs))
        assert one == other > 0


def test_a_program_from_the_cache_is_whole_for_who_looks_at_it(tmp_path: Path) -> None:
    """The second process runs slim programs; its trace shows the UOps of the first one's all the
    same."""
    script = """
import tgx
from tinygrad import Tensor
with tgx.trace() as t:
    x = Tensor.ones(6, 5).contiguous().realize()
    (x.exp() @ x.T).sum(0).realize()
print([(k.name, len(t.trace.graph(t.trace.program(k.program).uops))) for k in t.kernels])
"""
    first, second = (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                       env={**os.environ, "DEV": "TGX", "XDG_CACHE_HOME": str(tmp_path)})
        for _ in range(2))
    assert first.stdout == second.stdout and "exp" in first.stdout, first.stderr + second.stderr
