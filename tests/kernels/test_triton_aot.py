"""Ahead-of-time compilation of our Triton kernels: a few targets and cases now, all of them in `make triton-aot`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "triton_aot.py"
RESULTS = ROOT / "benchmarks" / "results" / "triton_aot"
REQUIRED = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "gfx1100")


def _pinned() -> str:
    return (ROOT / "requirements" / "triton.txt").read_text().split("==")[1].split()[0]


def _installed() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


@pytest.mark.parametrize("target", REQUIRED)
def test_committed_budgets_have_no_spills(target):
    budget = json.loads((RESULTS / f"{target}.json").read_text())
    assert budget["triton"] == _pinned()
    assert len(budget["kernels"]) > 20
    spilled = [name for name, used in budget["kernels"].items() if used["spills"] or used["stack"]]
    assert not spilled, f"{spilled}: choose smaller tiles in sgl_kernels/kernels/triton/configs.py"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_what_compiles_now_is_within_budget(target):
    if importlib.util.find_spec("triton") is None or _installed() != _pinned():
        pytest.skip(
            f"triton is {_installed()}, budgets are of {_pinned()}: pip install -r requirements/triton.txt"
        )
    command = [sys.executable, str(SCRIPT), "--target", target, "--subset"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "attention" in done.stdout and "rms_norm" in done.stdout
