"""Vendors' own code where it runs without their device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("sageattention", "triton") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"pip install {' '.join(MISSING)} to run SageAttention 1.x itself")
def test_sageattention_1_in_the_interpreter():
    """It smooths K in place, takes BSHD as "NHD", aligns causal top-left: all as the adapter believes."""
    done = subprocess.run(
        [sys.executable, "-O", "-m", "tests.backends.real_sage"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"plain", "causal", "scaled", "not full"}
    assert found.pop("not full")["error"] > 0.1, "the known bug sage1-padded-keys is gone: look at its entry"
    for name, seen in found.items():
        assert seen["error"] < 0.05, (name, seen)
        assert seen["k_kept"], f"{name}: the caller's K was changed"


WHEELS = sorted(Path(sys.prefix, "vendor").glob("amd_aiter-*.whl"))


@pytest.mark.skipif(
    not WHEELS or importlib.util.find_spec("triton") is None,
    reason="make triton-vendors puts AITER's wheel where this test looks",
)
def test_aiters_triton_rms_norm_in_the_interpreter(tmp_path):
    """AITER's order of weight, eps and rounding, as the adapter believes. Its wheel is unpacked, never installed."""
    with zipfile.ZipFile(WHEELS[-1]) as wheel:
        wheel.extractall(tmp_path, [n for n in wheel.namelist() if n.startswith("aiter/ops/triton/")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.real_aiter", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"5x96", "3x130"}
    for name, seen in found.items():
        assert seen["error"] < 5e-4 and seen["shape"], (name, seen)
