"""`tgx compare` on recorded programs: before and after an edit, and on two devices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tinygrad.helpers import Context

import tgx
from tgx.model import Trace
from tgx.passes.match import match
from tgx.views import compare

PROGRAM = """\
from tinygrad import Tensor, nn
class Net:
    def __init__(self):
        self.l1, self.l2 = nn.Linear(16, 8), nn.Linear(8, 4)
    def __call__(self, x):
        h = self.l1(x).relu()
        return (self.l2(h) * 2).exp()
net, x = Net(), Tensor.rand(4, 16).realize()
Tensor.realize(*nn.state.get_parameters(net))
for _ in range(2):
    net(x).realize()
"""


def record(folder: Path, program: str, device: str) -> Trace:
    path = folder / "net.py"
    path.write_text(program)
    with Context(DEV=device), tgx.trace() as t:
        exec(compile(program, str(path), "exec"), {})
    return t.trace


def test_one_added_contiguous_is_all_that_is_reported(tmp_path: Path) -> None:
    (tmp_path / "after").mkdir()
    before = record(tmp_path, PROGRAM, "NULL")
    edited = PROGRAM.replace("(self.l2(h) * 2)", "(self.l2(h) * 2).contiguous()")
    after = record(tmp_path / "after", edited, "NULL")
    found = match(before, after)
    assert [o.op for o in found.operations_added] == ["contiguous"]
    assert not found.operations_removed and not found.added and not found.removed
    assert len(found.split) == 1 and not found.merged
    text = compare.render([before, after], ["before", "after"])
    assert text.count("contiguous added at") == 1 and text.count("split:") == 1
    assert "the same kernels" in compare.render([before, before], ["a", "b"])


@pytest.mark.skipif(not shutil.which("clang"), reason="tinygrad's CPU device needs clang")
def test_two_devices_run_the_same_kernels(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    ours, theirs = record(tmp_path, PROGRAM, "TGX"), record(tmp_path / "cpu", PROGRAM, "CPU")
    found = match(ours, theirs)
    assert found.alike and len(found.pairs) == 2
