"""The steps, and how one is run: its own process, its own time limit, its own result file."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAN, FAILED, IMPOSSIBLE = "ran", "failed", "not possible"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done on the machine."""

    name: str
    module: str  # of this package; its `run(task)` does the work
    limit: int  # seconds
    what: str
    platforms: tuple[str, ...] = ()  # () for every one


STEPS: tuple[Step, ...] = (
    Step("install", "install", 600, "the vendors' wheels that fit this device, each optional"),
    Step("parity", "parity", 560, "the parity matrix, every backend that is present required"),
    Step("opcheck", "opcheck", 300, "torch.library.opcheck of every op on the device"),
    Step("graphs", "graphs", 300, "every op captured into a CUDA graph and replayed", ("cuda", "rocm")),
    Step("sanitizer", "sanitizer", 560, "compute-sanitizer on our Triton kernels, small sizes", ("cuda",)),
    Step("dispatch", "speed", 200, "what a call costs before its kernel starts"),
    Step("bench", "speed", 580, "the benchmark grid, and whether auto takes the best backend present"),
    Step("docs", "docs", 280, "docs/performance.md and docs/support-matrix.md written anew"),
)
BY_NAME = {step.name: step for step in STEPS}


def chosen(text: str | None) -> tuple[Step, ...]:
    """The steps of a comma list, in the order of the plan. Raises ValueError for a name that is none."""
    names = [part.strip() for part in (text or "").split(",") if part.strip()]
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"--steps names {unknown[0]!r}, expected some of {', '.join(BY_NAME)}")
    return tuple(step for step in STEPS if not names or step.name in names)


def impossible(step: Step, platform: str) -> str:
    """Why a step has no meaning on a platform; '' where it has."""
    if step.platforms and platform not in step.platforms:
        return f"needs {' or '.join(step.platforms)}, the device is {platform}"
    return ""


def result_file(folder: Path, step: Step) -> Path:
    """Where a step writes."""
    return folder / f"gpu_{step.name}.json"


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """A result, or {} where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run_step(
    step: Step, about: dict[str, Any], folder: Path, options: Sequence[str], limit: float
) -> dict[str, Any]:
    """Run one step and leave its result file behind, whatever happens to its process."""
    path = result_file(folder, step)
    why = impossible(step, about["machine"]["platform"])
    head = {
        "schema": 1,
        "step": step.name,
        "number": STEPS.index(step) + 1,
        "what": step.what,
        "date": datetime.date.today().isoformat(),
        **about,
    }
    if why:
        result = {**head, "status": IMPOSSIBLE, "reason": why, "seconds": 0.0, "data": {}}
        write(path, result)
        return result
    data_file = path.with_suffix(".data")
    data_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.child", step.module, step.name, str(data_file), *options]
    began = time.monotonic()
    status, reason, tail = _wait(command, limit)
    found = read(data_file)
    data_file.unlink(missing_ok=True)
    if found.get("status") and status == RAN:  # the step's own word; a process that died has none
        status, reason = found["status"], found.get("reason", "")
    result = {
        **head,
        "status": status,
        "reason": reason,
        "seconds": round(time.monotonic() - began, 1),
        "data": found.get("data", {}),
    }
    if status == FAILED and tail:
        result["output"] = tail
    write(path, result)
    return result


def _wait(command: Sequence[str], limit: float) -> tuple[str, str, list[str]]:
    """(status, reason, last lines of the output) of a step's process."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        reason = f"stopped after {limit:.0f} s; what was done until then is kept"
        return FAILED, reason, output.splitlines()[-20:]
    tail = output.splitlines()[-20:]
    if process.returncode == 0:
        return RAN, "", tail
    last = next((line for line in reversed(tail) if line.strip()), "no output")
    return FAILED, f"exit status {process.returncode}: {last.strip()}", tail
