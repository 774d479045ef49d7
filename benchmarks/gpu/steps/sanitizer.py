"""compute-sanitizer over our Triton kernels at small sizes: memcheck for bounds, racecheck for shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.plan import IMPOSSIBLE
from benchmarks.gpu.steps.present import present
from benchmarks.gpu.task import Task, environment
from sgl_kernels.core.registry import registry

TOOLS = ("memcheck", "racecheck")
OURS = ("triton", "triton_int8")
FOUND = 86  # an exit status nothing else uses


def run(task: Task) -> None:
    """Each tool over each op of ours; in a child of the sanitizer, the small cases themselves."""
    if os.environ.get("SGL_KERNELS_UNDER_SANITIZER"):
        _kernels(task)
        return
    tool = executable()
    if tool is None:
        task.keep(IMPOSSIBLE, "compute-sanitizer is not installed; it is part of the CUDA toolkit")
        return
    here, _ = present(task)
    ours = sorted({i.op for backend in OURS for i in here.get(backend, ())})
    if not ours:
        task.keep(IMPOSSIBLE, "our Triton kernels cannot run here: is triton installed?")
        return
    problems = []
    for check in TOOLS:
        for op in ours:
            done = subprocess.run(
                [tool, "--tool", check, f"--error-exitcode={FOUND}", "--target-processes", "all",
                 sys.executable, "-m", "benchmarks.gpu.child", "sanitizer", "sanitizer", f"{task.path}.child",
                 f"--device={task.options.device}", f"--ops={op}"],
                env=environment(SGL_KERNELS_UNDER_SANITIZER="1", PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            Path(f"{task.path}.child").unlink(missing_ok=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("=========")]
            summary = lines[-1].strip("= ") if lines else "no summary"
            task.data.setdefault(check, {})[op] = summary
            if done.returncode:
                problems.append(f"{check} of {op}: {summary} (status {done.returncode})")
            task.keep()
    task.done(problems)


def executable() -> str | None:
    """The tool on the path, or in the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("compute-sanitizer") or shutil.which(f"{home}/bin/compute-sanitizer")
    return found or shutil.which(f"{home}/compute-sanitizer/compute-sanitizer")


def _kernels(task: Task) -> None:
    from sgl_kernels.tools.parity.cell import run_cell

    for op in task.ops():
        for implementation in registry.implementations(op.name):
            if implementation.backend in OURS:
                case, dtype = task.smoke(op)
                cell = run_cell(op, case, implementation, dtype, device=task.device, seed=1)
                assert cell.status != "fail", cell.detail
    task.keep("ran", "")
