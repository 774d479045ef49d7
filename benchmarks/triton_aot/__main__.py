"""Compile every shipped Triton config for GPUs we need not have, and record registers, shared memory and spills.

The real launchers run on empty CPU tensors with two substitutions: Triton's driver is a stand-in that names the
target, and a launch stops after compilation. So what is compiled is what would run, specialisation included. No GPU
and no vendor driver are needed: ptxas, cuobjdump and the AMD assembler come inside Triton's wheel.

    python -m benchmarks.triton_aot                      # everything, compared with the committed budgets
    python -m benchmarks.triton_aot --update             # everything, and write the budgets
    python -m benchmarks.triton_aot --target sm_90 --only attention
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from benchmarks.triton_aot.cases import CASES

RESULTS = Path(__file__).resolve().parents[1] / "results" / "triton_aot"


@dataclass(frozen=True, slots=True)
class Target:
    """A chip to compile for: Triton's name for it, and the row set of our tuning table that serves it."""

    backend: str
    arch: int | str
    warp: int
    family: str
    only: str = ""  # part of the names of the cases that are compiled for it


TARGETS = {
    "sm_80": Target("cuda", 80, 32, "sm80"),
    "sm_89": Target("cuda", 89, 32, "sm86"),
    "sm_90": Target("cuda", 90, 32, "sm90"),
    "sm_100": Target("cuda", 100, 32, "sm100"),
    "sm_120": Target("cuda", 120, 32, "sm120"),
    "sm_103": Target(
        "cuda", 103, 32, "sm100", "/packed."
    ),  # the other chips with fp4 units: only what uses them
    "sm_121": Target("cuda", 121, 32, "sm120", "/packed."),
    "gfx942": Target("hip", "gfx942", 64, "cdna"),
    "gfx950": Target("hip", "gfx950", 64, "cdna"),
    "gfx1100": Target("hip", "gfx1100", 32, "rdna"),
}
SHARED_LIMIT = {  # bytes a block may use: CUDA programming guide, table of compute capabilities; AMD: LDS of a CU
    "sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376,
    "sm_103": 232448, "sm_121": 101376, "gfx942": 65536, "gfx950": 163840, "gfx1100": 65536,
}  # fmt: skip


PACKED = "/packed."  # cases of configs_nvfp4.NATIVE


class NoDevice(DriverBase):
    """Answers the questions that compilation asks of a driver. The index keeps one cache for each target."""

    def __init__(self, target: Target, index: int) -> None:
        self.target, self.index = GPUTarget(target.backend, target.arch, target.warp), index

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise RuntimeError("nothing is timed ahead of time")

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def compiled(launch: Callable[[], Any], driver: NoDevice) -> list[Any]:
    """Every kernel that `launch` would start on the driver's target."""
    found: list[Any] = []
    run = JITFunction.run

    def stop_after_compile(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = stop_after_compile
    triton.runtime.driver.set_active(driver)
    try:
        launch()
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = None
    return found


def resources(kernel: Any) -> dict[str, int]:
    """Registers, shared memory and spills of one compiled kernel."""
    shared, warps = int(kernel.metadata.shared), int(kernel.metadata.num_warps)
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]

        def field(name: str) -> int:
            match = re.search(rf"\.{name}:\s+(\d+)", text)
            return int(match.group(1)) if match else 0

        # A scalar register that spills goes to a lane of a vector register, not to memory: noted, not counted.
        return {
            "registers": field("vgpr_count"), "accumulators": field("agpr_count"), "shared": shared,
            "spills": field("vgpr_spill_count"), "scalar_spills": field("sgpr_spill_count"),
            "stack": field("private_segment_fixed_size"), "warps": warps,
        }  # fmt: skip
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": usage["REG"], "shared": shared, "spills": usage["LOCAL"] + usage["STACK"],
        "stack": usage["STACK"], "warps": warps,
    }  # fmt: skip


FP4_UNIT = re.compile(r"tcgen05\.mma\S*block_scale\S*|mma\.sync\S*block_scale\S*|v_mfma_scale_f32\w*")


def fp4_unit(kernel: Any) -> str:
    """The instruction that multiplies 4-bit operands with their scales, as the compiler wrote it; "" for none."""
    found = sorted(set(FP4_UNIT.findall(kernel.asm.get("ptx") or kernel.asm.get("amdgcn", ""))))
    return ", ".join(found)


def measure(name: str, only: str = "", subset: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(case/kernel, resources) for one target."""
    target = TARGETS[name]
    driver = NoDevice(target, list(TARGETS).index(name))
    for case in CASES:
        if only not in case.name or target.only not in case.name or (subset and not case.subset):
            continue
        where = name.replace("_", "") if case.by_arch else target.family
        for index, (kernel_name, kernel) in enumerate(compiled(lambda c=case, w=where: c.start(w), driver)):
            suffix = "" if index == 0 else f"/{index}"
            used: dict[str, Any] = resources(kernel)
            if PACKED in case.name:
                used["fp4_unit"] = fp4_unit(kernel)
            yield f"{case.name}/{kernel_name}{suffix}", used


def problems(target: str, found: dict[str, dict[str, Any]], budget: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with these resources: spills, too much shared memory, or more than was committed."""
    wrong = []
    for name, used in found.items():
        if used["spills"] or used["stack"]:
            spilled = f"{used['spills']} spills and {used['stack']} bytes of stack"
            wrong.append(f"{target} {name}: {spilled}; choose a smaller tile in configs.py")
        if used["shared"] > SHARED_LIMIT[target]:
            wrong.append(
                f"{target} {name}: {used['shared']} bytes shared, the chip has {SHARED_LIMIT[target]}"
            )
        if used.get("fp4_unit") == "":
            wrong.append(f"{target} {name}: no fp4 instruction; take the row out of configs_nvfp4.NATIVE")
        known = budget.get(name)
        if known is None:
            wrong.append(f"{target} {name}: not in the budget; run `make triton-aot-update` and commit")
        elif used["registers"] > known["registers"] or used["shared"] > known["shared"]:
            wrong.append(
                f"{target} {name}: {used['registers']} registers and {used['shared']} bytes shared, the budget is "
                f"{known['registers']} and {known['shared']}; if that is intended, run with --update and commit"
            )
    return wrong


def read_budget(target: str) -> dict[str, Any]:
    """The committed budget of a target; empty when there is none."""
    path = RESULTS / f"{target}.json"
    return json.loads(path.read_text()) if path.exists() else {"triton": "", "kernels": {}}


def main() -> int:
    """Compile, print, compare or update."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--only", default="", help="part of a case name")
    parser.add_argument("--subset", action="store_true", help="the cases that CI compiles")
    parser.add_argument("--update", action="store_true", help="write the budgets")
    options = parser.parse_args()
    wrong: list[str] = []
    for target in options.target or TARGETS:
        budget = read_budget(target)
        found = {}
        for name, used in measure(target, options.only, options.subset):
            found[name] = used
            print(f"{target:8} {name:60} " + " ".join(f"{k} {v}" for k, v in used.items()), flush=True)
        if options.update:
            kernels = {**budget["kernels"], **found} if options.only or options.subset else found
            wrong += problems(target, found, kernels)
            RESULTS.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"triton": triton.__version__, "kernels": kernels}, indent=1, sort_keys=True)
            (RESULTS / f"{target}.json").write_text(text + "\n")
        else:
            wrong += problems(target, found, budget["kernels"])
            if budget["triton"] not in ("", triton.__version__):
                wrong.append(
                    f"{target}: budgets are of Triton {budget['triton']}, this is {triton.__version__}"
                )
    print("\n".join(wrong) or "no spills, everything within budget")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
