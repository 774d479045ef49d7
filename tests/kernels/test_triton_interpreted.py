"""Our Triton kernels in Triton's interpreter: processes with TRITON_INTERPRET=1, which no other test may see."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.timeout(3000),
]


def _pytest(*arguments: str) -> str:
    """Runs pytest in a process where Triton interprets; the variable must be set before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=2500", *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_kernels_agree_with_float64():
    out = _pytest("tests/interpreted")
    assert "passed" in out and "skipped" not in out, out[-400:]


def test_parity_matrix_in_bfloat16():
    """bf16 rounds worst and is what the interpreter gets wrong; `make triton-parity` runs every dtype."""
    out = _pytest("tests/ops/test_parity.py", "-k", "/triton and bfloat16", "--require=triton")
    assert "passed" in out, out[-400:]
