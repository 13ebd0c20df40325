"""`tgx doctor`: what is here, what is missing, and the command that installs it."""

from __future__ import annotations

import ctypes.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module, metadata

from tgx import settings
from tgx.adapter import board, compat, devices, patches
from tgx.errors import TgxError
from tgx.hardware import tegra

# extra -> (the distributions it brings, what they are for)
EXTRAS = {
    "peers": (("torch", "jax"), "tgx bench compares with them"),
    "cuda": (
        ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"),
        "compiles kernels for NVIDIA GPUs, without one too",
    ),
    "test": (("pytest", "hypothesis", "safetensors"), "the tests"),
}

# Instruction sets worth naming; a modern CPU lists a hundred.
FEATURES = ("avx512bf16", "avx512f", "avx2", "fma", "f16c", "sve2", "sve", "neon", "dotprod", "v")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    ok: bool
    needed: bool  # without it TGX itself cannot run
    detail: str  # what was found
    gives: str = ""  # what it would give, if it is missing
    install: str = ""  # the command that installs it


def examine() -> list[Finding]:
    """Look at everything; nothing here raises."""
    told = variables()  # before tinygrad chooses a device: it notes its choice in DEV
    return [
        python(),
        tinygrad(),
        package("llvmlite", llvm_version),
        package("numpy"),
        cpu(),
        threads(),
        program_cache(),
        tgx_device(),
        hook(),
        clang(),
        dot(),
        cuda(),
        *jetson(),
        *map(extra, EXTRAS),
        *told,
    ]


def python() -> Finding:
    return Finding(
        "Python",
        (3, 11) <= sys.version_info[:2] <= (3, 13),
        True,
        f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "tgx is for Python 3.11, 3.12 and 3.13",
        "python3.13 -m venv .venv    (with any of the three)",
    )


def tinygrad() -> Finding:
    try:
        compat.check()
    except TgxError as error:
        return Finding("tinygrad", False, True, error.given, error.expected, error.next_step)
    return Finding("tinygrad", True, True, compat.version() or "a source tree")


def package(name: str, more: object = None) -> Finding:
    """A Python package TGX cannot run without."""
    try:
        import_module(name)
        detail = metadata.version(name) + (f", {more()}" if callable(more) else "")
    except Exception as error:  # a broken native library fails in its own way
        fix = f"python -m pip install --force-reinstall {name}"
        return Finding(name, False, True, devices.reason(error), "TGX is built on it", fix)
    return Finding(name, True, True, detail)


def llvm_version() -> str:
    from llvmlite import binding

    return "LLVM " + ".".join(map(str, binding.llvm_version_info))


def cpu() -> Finding:
    try:
        from llvmlite import binding

        features = binding.get_host_cpu_features()
        has = [name for name in FEATURES if features.get(name)]
        detail = ", ".join([binding.get_host_cpu_name(), *has])
    except Exception:  # without llvmlite, or on a CPU it cannot name: the line above says why
        detail = platform.processor() or platform.machine()
    return Finding("CPU", True, False, detail)


def threads() -> Finding:
    try:
        from tgx.devices.threads import worker_count

        return Finding("threads", True, False, str(1 + worker_count()))
    except Exception as error:
        return Finding("threads", False, False, devices.reason(error))


def program_cache() -> Finding:
    try:
        from tgx.devices import cache

        problem = cache.problem()
    except Exception as error:
        return Finding("program cache", False, False, devices.reason(error))
    return Finding(
        "program cache",
        not problem,
        False,
        f"{cache.folder()}{': ' if problem else ''}{problem}",
        "a second run compiles nothing",
        f"chmod 700 {cache.folder()}    (or set XDG_CACHE_HOME to a folder of yours)",
    )


def tgx_device() -> Finding:
    works, detail = devices.try_device("TGX")
    return Finding(
        "device TGX",
        works,
        True,
        detail,
        "the device itself",
        "put right what stands above; then TGX_TRACEBACK=1 DEVICE=TGX python -c "
        "'from tinygrad import Tensor; print((Tensor([1,2])*2).tolist())' shows where it fails",
    )


def hook() -> Finding:
    """Ask a fresh Python: there, only the .pth file can have loaded tgx."""
    probe = [sys.executable, "-c", "import sys; sys.exit('tgx' not in sys.modules)"]
    armed = subprocess.run(probe, capture_output=True, timeout=60).returncode == 0
    return Finding(
        "hook",
        armed,
        False,
        "DEVICE=TGX works for every script" if armed else "not installed",
        "DEVICE=TGX for every script; without it, `python -m tgx run SCRIPT`",
        "python -m pip install -e .    (in a clone of the repository)",
    )


def clang() -> Finding:
    path = shutil.which("clang")
    return Finding(
        "clang",
        path is not None,
        False,
        path or "not on PATH",
        "tinygrad's own CPU device, to compare with; TGX does not use it",
        patches.install_clang(),
    )


def dot() -> Finding:
    path = shutil.which("dot")
    pure = _version("graphviz-pure")
    return Finding(
        "dot",
        bool(path or pure),
        False,
        path or "not on PATH" + (f"; graphviz-pure {pure} draws instead" if pure else ""),
        "drawings of graphs",
        "python -m pip install graphviz-pure",
    )


def cuda() -> Finding:
    library = ctypes.util.find_library("cuda")
    return Finding(
        "CUDA",
        library is not None,
        False,
        library or "no driver library (libcuda)",
        "running on an NVIDIA GPU",
        "the NVIDIA driver of your system; it does not come from pip",
    )


def jetson() -> list[Finding]:
    """On a Jetson: what its release brings, and what stands in tinygrad's way. Needs no root."""
    text = board.release()
    if not text:
        return []
    ours, tinygrads = nvrtc_found()
    stats = shutil.which("tegrastats") is not None
    found, said = board.read()
    clocks = found.clocks if found is not None else None
    checks = tegra.checks(text, sys.version_info[:2], stats, tinygrads, clocks)
    rows = [
        Finding(f"Jetson: {check.what}", check.ok, False, check.detail, "its GPU",
                f"export NVRTC_PATH={ours}" if check.what == "NVRTC" and ours else check.fix)
        for check in checks
    ]  # fmt: skip
    if found is not None and found.mode is not None:
        rows.append(Finding("Jetson: power mode", True, False, found.mode[0]))
    rows += [Finding("Jetson: note", True, False, line) for line in said]
    return rows


def nvrtc_found() -> tuple[str, bool]:
    """The path of an NVRTC that tgx finds here ("" for none), and whether tinygrad finds one: it
    looks in fewer places, and passes over names like libnvrtc.so.11.2."""
    try:
        import_module("tinygrad.runtime.autogen.nvrtc")  # loads it
        from tinygrad.runtime.support.c import DLL

        from tgx.adapter import nvrtc

        libraries = nvrtc.installed()
    except Exception:  # no tinygrad, or a broken library: lines of their own say so
        return "", False
    return str(libraries[0].path) if libraries else "", "nvrtc" in DLL._loaded_


def extra(name: str) -> Finding:
    distributions, purpose = EXTRAS[name]
    found = {d: _version(d) for d in distributions}
    return Finding(
        f"tinygrad-tgx[{name}]",
        all(found.values()),
        False,
        ", ".join(f"{d} {v or 'is missing'}" for d, v in found.items()),
        purpose,
        f"python -m pip install 'tinygrad-tgx[{name}]'",
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def variables() -> list[Finding]:
    """The environment variables that are set, and those that look like ours and are not."""
    known = [Finding(name, True, False, value) for name, value in settings.given().items()]
    near = "one of " + ", ".join(name for name in settings.VARIABLES if name.startswith("TGX_"))
    return known + [
        Finding(name, False, False, "tgx knows no such variable", near, f"unset {name}")
        for name in settings.strangers()
    ]
