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


# One process each, so that pytest-xdist spreads them: CPU seconds on one core of a Zen 3 are beside them.
FILES = ("test_attention.py", "test_attention_edges.py", "test_rows.py", "test_nvfp4.py")


def test_no_file_is_left_out():
    assert {p.name for p in (ROOT / "tests" / "interpreted").glob("test_*.py")} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_kernels_agree_with_float64(file):
    out = _pytest(f"tests/interpreted/{file}")
    assert "passed" in out and "skipped" not in out, out[-400:]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parity_matrix(dtype):
    """Every op and case. bf16 rounds worst and is what the interpreter gets wrong, fp32 shows the arithmetic."""
    out = _pytest("tests/ops/test_parity.py", "-k", f"/triton and {dtype}", "--require=triton")
    assert "passed" in out, out[-400:]
