"""TGX's tests on an emulated aarch64: aarch64.py is the command, and says what that shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aarch64
import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_on_an_emulated_aarch64(tmp_path: Path) -> None:
    """What aarch64.TESTS names passes there. Needs Debian and its package index, and pip's."""
    command = [sys.executable, ROOT / "tests/aarch64.py", "--folder", tmp_path / "aarch64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == aarch64.SKIPPED:
        pytest.skip(done.stderr.strip()[:500])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aarch64 Python 3." in done.stdout and " passed" in done.stdout


def test_without_apt_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests/aarch64.py", "--folder", tmp_path / "aarch64"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == aarch64.SKIPPED and done.stderr.startswith("no tests: ")
    assert not (tmp_path / "aarch64").exists()
