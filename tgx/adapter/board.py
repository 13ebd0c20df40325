"""What machine this is: its NVIDIA GPU, and what a Jetson's own programs say. Reads only; nothing
here needs root, and what would is left out and said.

tegrastats runs in a child process while something is measured, and its lines are kept with the time
they came.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from tgx.hardware import tegra
from tgx.hardware.tegra import Board, Sample

RELEASE = Path("/etc/nv_tegra_release")
INTERVAL = 100  # milliseconds between two lines of tegrastats
MOST_LINES = 36_000  # an hour of them; older ones are dropped
PATIENCE = 10.0  # seconds that a program may take to answer


def gpu_arch() -> str:
    """The architecture of the first NVIDIA GPU here ("sm_87"), asked of the driver; "" without."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        wrong = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), 0)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # MAJOR and MINOR
        )
    except (OSError, AttributeError):  # no driver
        return ""
    return "" if wrong else f"sm_{major.value}{minor.value}"


def release() -> str:
    """The text of /etc/nv_tegra_release; "" on what is no Jetson."""
    try:
        return RELEASE.read_text(errors="replace")
    except OSError:
        return ""


def read() -> tuple[Board | None, list[str]]:
    """What the board says of itself, and in sentences what it did not; (None, []) where this is no
    Jetson: no release, and none of its programs."""
    text = release()
    if not text and not any(map(shutil.which, ("tegrastats", "nvpmodel"))):
        return None, []
    said = []
    found = tegra.parse_release(text)
    mode, why = None, ""
    answer, why = ask("nvpmodel", "-q")
    if answer and (mode := tegra.parse_nvpmodel_query(answer)) is None:
        why = f"nvpmodel -q says no mode: {_brief(answer)}"
    if mode is None:
        said.append(f"the power mode is unknown: {why}")
    clocks = None
    answer, why = ask("jetson_clocks", "--show")
    if answer:
        clocks = tegra.parse_jetson_clocks(answer)
        if clocks.gpu_max is None:
            clocks, why = None, f"jetson_clocks --show says no GPU clock: {_brief(answer)}"
    if clocks is None:
        said.append(f"whether the GPU's clock is held is unknown: {why} (it needs root)")
    elif not clocks.locked:
        said.append(
            f"the GPU's clock floats between {clocks.gpu_min:g} and {clocks.gpu_max:g} MHz: "
            "`sudo jetson_clocks` holds it (`--store` before, `--restore` after)"
        )
    number = f"{found[0]}.{found[1]}".rstrip(".") if found else ""
    return Board(number, mode, clocks), said


def ask(program: str, *arguments: str) -> tuple[str, str]:
    """What a program prints, or "" and why there is nothing."""
    path = shutil.which(program)
    if path is None:
        return "", f"{program} is not on PATH"
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return "", f"{program} said nothing for {PATIENCE:g} s"
    except OSError as error:
        return "", f"{program} cannot be run: {error.strerror}"
    if done.returncode:
        return "", f"{program} failed: {_brief(done.stderr or done.stdout) or done.returncode}"
    return done.stdout, "" if done.stdout.strip() else f"{program} printed nothing"


def _brief(text: str) -> str:
    return " ".join(text.split())[:120]


class Tegrastats:
    """tegrastats in a child process, for the length of a `with` block; where it cannot be had there
    are no samples, and `missing` says why. `wanted=False` is for a machine that is no Jetson."""

    def __init__(self, wanted: bool = True, interval: int = INTERVAL) -> None:
        self.wanted, self.interval = wanted, interval
        self.lines: deque[tuple[float, str]] = deque(maxlen=MOST_LINES)
        self.child: subprocess.Popen[str] | None = None
        self.missing = ""

    def __enter__(self) -> Tegrastats:
        if not self.wanted:
            return self
        path = shutil.which("tegrastats")
        if path is None:
            self.missing = "tegrastats is not on PATH: no clocks, no power, no temperatures"
            return self
        try:
            self.child = subprocess.Popen(
                [path, "--interval", str(self.interval)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us, who end it in __exit__
            )
        except OSError as error:
            self.missing = f"tegrastats cannot be run: {error.strerror}"
            return self
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def _read(self) -> None:
        assert self.child is not None and self.child.stdout is not None
        with self.child.stdout as pipe:
            for line in pipe:
                if line.strip():
                    self.lines.append((time.perf_counter(), line))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.child is None:
            return
        self.child.terminate()
        try:
            self.child.wait(2)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.reader.join(2)

    def between(self, start: float, end: float) -> list[Sample]:
        """The samples of a time, by `time.perf_counter`."""
        return [tegra.parse_line(line) for at, line in list(self.lines) if start <= at <= end]
