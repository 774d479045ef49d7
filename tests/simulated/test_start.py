"""Starts the tests on a simulated npu and a simulated musa, each in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the simulated device needs g++")
@pytest.mark.skipif("SIMULATED_DEVICE" in os.environ, reason="inside a simulated device")
@pytest.mark.parametrize("name", ["npu", "musa"])
def test_on_a_simulated_device(name):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/simulated/test_{name}.py"],
        cwd=ROOT,
        env={**os.environ, "SIMULATED_DEVICE": name, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-400:]
