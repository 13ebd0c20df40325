"""The import hook, in fresh interpreters: tinygrad scripts that never heard of tgx."""

from __future__ import annotations

import ast
import importlib.util
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, run_python

DOUBLE = """
from tinygrad import Device, Tensor
print(Device.DEFAULT, (Tensor([1, 2, 3]) * 2).tolist())
"""


def output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# **************** choosing the device ****************


@pytest.mark.parametrize(
    "variables",
    [{"DEVICE": "TGX"}, {"DEV": "TGX"}, {"DEVICE": "tgx"}, {}],
    ids=["DEVICE", "DEV", "lower case", "no variable, and no stock device opens"],
)
def test_an_unmodified_script_runs_on_tgx(fresh: Run, variables: dict[str, str]) -> None:
    assert output(fresh("-c", DOUBLE, **variables)) == "TGX [2, 4, 6]"


def test_the_tensor_may_name_it(fresh: Run) -> None:
    script = "from tinygrad import Tensor; print(Tensor([1, 2], device='TGX').add(1).tolist())"
    assert output(fresh("-c", script)) == "[2, 3]"


@pytest.mark.parametrize(
    ("variables", "device"),
    [
        ({"DEVICE": "PYTHON"}, "PYTHON"),
        ({"DEV": "PYTHON", "DEVICE": "TGX"}, "PYTHON"),
        ({"DEV": "", "DEVICE": "PYTHON"}, "PYTHON"),
    ],
    ids=["a stock device", "DEV wins", "an empty DEV is none"],
)
def test_device_means_dev(fresh: Run, variables: dict[str, str], device: str) -> None:
    assert output(fresh("-c", DOUBLE, **variables)) == f"{device} [2, 4, 6]"


@pytest.mark.parametrize("variable", ["DEVICE", "DEV"])
def test_an_unknown_device_lists_those_that_exist(fresh: Run, variable: str) -> None:
    done = fresh("-c", DOUBLE, **{variable: "TGY"})
    assert done.returncode == 1
    message = done.stderr.split("UnknownDevice: ")[1]
    assert message.startswith(f"there is no device 'TGY' ({variable}=TGY); did you mean TGX?")
    assert all(f"{name}," in message for name in ("CPU", "CUDA", "METAL", "TGX", "NULL"))
    assert "DISK" not in message


def test_an_unknown_device_in_a_tensor() -> None:
    from tinygrad import Tensor

    from tgx import TgxError

    with pytest.raises(TgxError, match="there is no device 'CUDDA'; did you mean CUDA"):
        (Tensor([1], device="CUDDA") + 1).realize()
    with pytest.raises(ModuleNotFoundError):  # as it was without us
        __import__("tinygrad.runtime.ops_cudda")


# **************** what it costs, and what it leaves alone ****************


def test_a_python_that_uses_none_of_it_loads_next_to_nothing(fresh: Run) -> None:
    script = "import sys; print(*sorted(sys.modules))"
    loaded = set(output(fresh("-c", script, COVERAGE_PROCESS_CONFIG="")).split())
    rooms = ("tgx", "tinygrad", "llvmlite", "numpy", "rich")
    ours = {name for name in loaded if name.split(".")[0] in rooms}
    assert ours == {"tgx", "tgx.adapter", "tgx.adapter.hook"}
    without = set(output(fresh("-S", "-c", script)).split())
    assert not {"typing", "dataclasses", "importlib.util"} & (loaded - without)


def test_it_costs_about_a_millisecond(fresh: Run, tmp_path: Path) -> None:
    """Python's own count of the time to import tgx, the least of many: the machine may be busy.

    The bound is generous; `typing` alone would break it.
    """
    keep = {"PYTHONPYCACHEPREFIX": str(tmp_path / "pyc"), "COVERAGE_PROCESS_CONFIG": ""}

    def microseconds() -> int:
        report = fresh("-X", "importtime", "-c", "pass", **keep).stderr
        (line,) = [line for line in report.splitlines() if line.endswith("|   tgx")]
        return int(line.split("|")[1])

    assert min(microseconds() for _ in range(20)) < 2000


def test_what_tools_see_of_a_patched_module_is_tinygrads() -> None:
    import inspect

    import tinygrad.device

    assert type(tinygrad.device.__loader__).__module__ == "_frozen_importlib_external"
    assert tinygrad.device.__spec__.loader is tinygrad.device.__loader__
    assert "ALL_DEVICES" in inspect.getsource(tinygrad.device)
    assert tinygrad.device.ALL_DEVICES.count("TGX") == 1
    assert tinygrad.device.ALL_DEVICES[-1] == "TGX"


def test_the_stock_modules_still_run_with_dash_m(fresh: Run) -> None:
    """`python -m tinygrad.device` runs its own copy of the module, which has its own list."""
    shown = output(fresh("-m", "tinygrad.device", DEV="PYTHON"))
    assert "CPU" in shown and "compiles with 'clang'" in shown


def test_arming_late_and_twice(fresh: Run) -> None:
    """`import tgx` after tinygrad, where no .pth armed the hook (-S: no site, so no .pth)."""
    script = """
import sys
sys.path += sys.argv[1].split(":")
from tinygrad import Tensor
from tinygrad.device import ALL_DEVICES
assert "tgx" not in sys.modules and "TGX" not in ALL_DEVICES
import tgx
from tgx.adapter import hook
hook.arm()
print(ALL_DEVICES.count("TGX"), Tensor([1, 2], device="TGX").add(1).tolist())
"""
    path = output(fresh("-c", "import sys; print(*sys.path[1:], sep=':')"))
    assert output(fresh("-S", "-c", script, path)) == "1 [2, 3]"


# **************** worker processes ****************

WORKERS = """
import multiprocessing, sys
from tinygrad import Device, Tensor
from tinygrad.engine import worker

def double(n):
    assert sys.argv[1:] == ["an argument"]
    return Device.DEFAULT, (Tensor([n]) * 2).tolist()

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(double, [1, 2]))
    x = Tensor([1., 2, 3]).realize()
    two = Tensor.realize(x + 1, x.sum())  # two kernels: tinygrad compiles them in its own pool
    print((x + 1).tolist(), x.sum().item(), worker.worker_pool is not None)
"""


def test_spawned_processes_know_tgx(fresh: Run, tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    shown = output(fresh(script, "an argument", DEVICE="TGX", PARALLEL="1"))
    assert shown.splitlines() == ["('TGX', [2]) ('TGX', [4])", "[2.0, 3.0, 4.0] 6.0 True"]


def test_compile_workers_find_the_renderer_by_its_module() -> None:
    import tinygrad.runtime.ops_tgx as alias
    from tinygrad import Device

    from tgx.devices import ops_tgx

    assert alias is ops_tgx and alias.__name__ == "tgx.devices.ops_tgx"
    assert Device.get_class("TGX") is ops_tgx.TGXDevice
    renderer = type(Device["TGX"].renderer)
    assert renderer.__module__.startswith("tgx.devices.")
    assert pickle.loads(pickle.dumps(renderer)) is renderer


# **************** without clang ****************

NO_CLANG = """
import zipfile
from tinygrad import Device, Tensor, nn

print(Tensor(3.0).item(), Tensor.arange(3).tolist(), Tensor.eye(2).numpy().tolist())
two = Tensor([1., 2, 3, 4], device="TGX").shard(("TGX:0", "TGX:1"), axis=0)
print((two + 1).numpy().tolist())
weights = {"w": Tensor([[1., 2], [3, 4]]), "n": Tensor.arange(3)}
nn.state.safe_save({k: v.cast("float32") for k, v in weights.items()}, "w.safetensors")
print({k: v.to(None).tolist() for k, v in nn.state.safe_load("w.safetensors").items()})
with zipfile.ZipFile("a.zip", "w") as archive:
    archive.writestr("plain", b"1234")
    archive.writestr("packed", b"5" * 100, zipfile.ZIP_DEFLATED)
print({k: bytes(v.data()) for k, v in nn.state.zip_extract("a.zip").items()})
print(sorted({name.split(":")[0] for name in Device._opened_devices}))
"""


def test_tgx_never_opens_cpu(fresh: Run) -> None:
    """tinygrad reads constants, shards, safetensors and zips through CPU, unless told otherwise."""
    lines = output(fresh("-c", NO_CLANG)).splitlines()
    assert lines == [
        "3.0 [0, 1, 2] [[1.0, 0.0], [0.0, 1.0]]",
        "[2.0, 3.0, 4.0, 5.0]",
        "{'w': [[1.0, 2.0], [3.0, 4.0]], 'n': [0.0, 1.0, 2.0]}",
        "{'plain': b'1234', 'packed': b'" + "5" * 100 + "'}",
        "['DISK', 'PYTHON', 'TGX']",
    ]


@pytest.mark.slow  # importing torch takes seconds
def test_torch_weights_without_torch_or_clang(fresh: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.tensor([[1.0, 2], [3, 4]]).T}, tmp_path / "w.pth")
    script = "from tinygrad import nn; print(nn.state.torch_load('w.pth')['w'].to(None).tolist())"
    assert output(fresh("-c", script)) == "[[1.0, 3.0], [2.0, 4.0]]"


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        (DOUBLE, {"DEVICE": "CPU"}),
        ("from tinygrad import Tensor; Tensor([1]).to('CPU').realize()", {"DEVICE": "TGX"}),
        (DOUBLE, {"DEVICE": "TGX", "VALIDATE_WITH_CPU": "1"}),
    ],
    ids=["DEVICE=CPU", ".to('CPU')", "VALIDATE_WITH_CPU"],
)
def test_where_cpu_is_asked_for_clang_is_named(
    fresh: Run, script: str, variables: dict[str, str]
) -> None:
    done = fresh("-c", script, **variables)
    assert done.returncode == 1
    last = done.stderr.split("MissingTool: ")[1]
    assert "compiles with 'clang', which is not on PATH" in last and "install" in last
    assert "DEVICE=TGX" in last


@pytest.mark.skipif(not shutil.which("clang"), reason="clang is not on PATH")
def test_stock_cpu_is_as_it_was(plugged: Path, tmp_path: Path) -> None:
    import os

    script = DOUBLE + "print(Tensor(3.0).item(), 'TGX' in Device._opened_devices)"
    for variables in ({"DEVICE": "CPU"}, {}):
        done = run_python(plugged, tmp_path, "-c", script, PATH=os.environ["PATH"], **variables)
        assert output(done).splitlines() == ["CPU [2, 4, 6]", "3.0 False"]
    # clang is gone, but not what it left in the cache: CPU could open, and compile nothing new
    assert output(run_python(plugged, tmp_path, "-c", DOUBLE)) == "TGX [2, 4, 6]"


# **************** another tinygrad ****************


def test_another_tinygrad_is_refused_by_version(fresh: Run, tmp_path: Path) -> None:
    info = tmp_path / "tinygrad-0.15.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinygrad\nVersion: 0.15.1\n")
    done = fresh("-c", DOUBLE, DEVICE="TGX", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    message = done.stderr.split("WrongTinygrad: ")[1]
    assert message.startswith("found tinygrad 0.15.1\n")
    assert (
        "expected: tinygrad 0.14.x" in message and "pip install 'tinygrad>=0.14,<0.15'" in message
    )
    # whoever does not ask for TGX is not troubled
    assert output(fresh("-c", DOUBLE, DEVICE="PYTHON", PYTHONPATH=str(tmp_path)))


def test_a_changed_tinygrad_is_left_alone_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tgx.adapter import compat, hook

    compat.check()
    monkeypatch.setitem(compat.NEEDS["tinygrad.tensor"], "Tensor.assign", "self x other")
    with pytest.raises(compat.WrongTinygrad, match=r"Tensor\.assign takes \(self x\), not"):
        compat.check()
    tensor = sys.modules["tinygrad.tensor"]
    before = tensor.Tensor.assign
    hook.patch(tensor)
    assert tensor.Tensor.assign is before


def replaced(source: str) -> set[str]:
    """What a file of ours replaces in tinygrad: `module.name = ...`, `replace_attribute(...)`.

    As "module:name", of the name that stands in the file: `realize` for `tinygrad.engine.realize`.
    """
    tree = ast.parse(source)
    known = {}  # what tinygrad's things are called in this file -> "module:" or "module:Class."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname: f"{alias.name}:" for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinygrad"):
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                inside = f"{path}:" if find_spec_of(path) else f"{node.module}:{alias.name}."
                known[alias.asname or alias.name] = inside
    places = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = [target for target in node.targets if isinstance(target, ast.Attribute)]
            places += [(target.value, target.attr) for target in targets]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "replace_attribute":
            places.append((node.args[0], str(ast.literal_eval(node.args[1]))))
    found = set()
    for owner, name in places:
        first, _, rest = ast.unparse(owner).partition(".")
        if known.get(first, "").startswith("tinygrad"):
            found.add(known[first] + (f"{rest}." if rest else "") + name)
    return found


def find_spec_of(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


def test_what_is_replaced_in_tinygrad_has_its_needs_written_down(root: Path) -> None:
    from tgx.adapter import compat, hook

    assert set(hook.PATCHES) <= set(compat.NEEDS)
    needs = {f"{module}:{name}" for module, names in compat.NEEDS.items() for name in names}
    found = set()
    for path in [*root.glob("tgx/adapter/*.py"), *root.glob("devices/*.py")]:
        found |= replaced(path.read_text())
    assert "tinygrad.codegen.opt.heuristic:hand_coded_optimizations" in found
    assert found <= needs, f"give them rows in tgx/adapter/compat.py: {sorted(found - needs)}"
