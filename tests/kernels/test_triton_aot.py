"""Ahead-of-time compilation of our Triton kernels: a few targets and cases now, all of them in `make triton-aot`."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = "benchmarks.triton_aot"
RESULTS = ROOT / "benchmarks" / "results" / "triton_aot"
REQUIRED = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "gfx1100")


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


FP4_UNITS = {
    "sm_100": {
        "nvfp4": "tcgen05.mma.*kind::mxf4nvf4.block_scale.block16",
        "mxfp4": "kind::mxf4.block_scale.block32",
    },
    "sm_103": {
        "nvfp4": "tcgen05.mma.*kind::mxf4nvf4.block_scale.block16",
        "mxfp4": "kind::mxf4.block_scale.block32",
    },
    "sm_120": {"nvfp4": "mma.sync.*kind::mxf4nvf4.*ue4m3", "mxfp4": "mma.sync.*kind::mxf4nvf4.*ue8m0"},
    "sm_121": {"nvfp4": "mma.sync.*kind::mxf4nvf4.*ue4m3", "mxfp4": "mma.sync.*kind::mxf4nvf4.*ue8m0"},
    "gfx950": {"mxfp4": "v_mfma_scale_f32_.*f8f6f4"},
}


@pytest.mark.parametrize("target", FP4_UNITS)
def test_packed_operands_reach_the_fp4_unit(target):
    """What the compiler wrote for each row of configs_nvfp4.NATIVE, as `make triton-aot-update` recorded it."""
    kernels = json.loads((RESULTS / f"{target}.json").read_text())["kernels"]
    found = {name: used["fp4_unit"] for name, used in kernels.items() if "/packed." in name}
    assert len(found) == 3 * len(FP4_UNITS[target])
    for name, instruction in found.items():
        wanted = FP4_UNITS[target][name.split(".")[1]]
        assert re.search(wanted, instruction), (name, instruction)


def test_the_table_promises_no_more_than_was_compiled():
    from sgl_kernels.kernels.triton.configs_nvfp4 import NATIVE

    groups = {"nvfp4": 16, "mxfp4": 32}
    compiled = {t.replace("_", ""): {groups[f] for f in found} for t, found in FP4_UNITS.items()}
    assert {arch: set(rows) for arch, rows in NATIVE.items()} == compiled


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("target", REQUIRED)
def test_what_compiles_now_is_within_budget(target):
    if importlib.util.find_spec("triton") is None or _installed() != _pinned():
        pytest.skip(
            f"triton is {_installed()}, budgets are of {_pinned()}: pip install -r requirements/triton.txt"
        )
    command = [sys.executable, "-m", MODULE, "--target", target, "--subset"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert all(op in done.stdout for op in ("attention", "rms_norm", "nvfp4_linear", "nvfp4_quantize"))


@pytest.mark.parametrize("target", REQUIRED)
def test_compiled_in_the_support_matrix_means_that_this_op_was(target):
    """The word comes from here: an op of ours says "compiled" if and only if every target's results name it."""
    from sgl_kernels.core.registry import registry

    kernels = json.loads((RESULTS / f"{target}.json").read_text())["kernels"]
    # lse and packed sequences are variants of the one attention kernel: their cases carry them in the name
    variants = {"attention_lse": ".lse", "attention_varlen": ".varlen"}
    for op in registry.ops():
        for declared in registry.implementations(op):
            if not declared.backend.startswith("triton"):
                continue
            part = variants.get(op, ".int8" if declared.backend == "triton_int8" else "")
            case = "attention/" if op in variants else f"{op}/"
            compiled = any(name.startswith(case) and part in name for name in kernels)
            assert compiled == ("compiled" in declared.proof), (op, declared.backend, declared.proof)
