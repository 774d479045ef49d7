"""The parity matrix on the device, a backend at a time; one that is present and serves nothing is a failure."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.steps.present import present
from benchmarks.gpu.task import Task
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.tools.parity.cell import matrix, run_cell

NOT_THE_CALL = (Reason.PLATFORM.value, Reason.PACKAGE.value, Reason.LOAD.value)
"""Skips with these reasons are not about a call: a backend that is required may have none of them."""
OF_THE_DEVICE = (Reason.BUG.value, Reason.CAPABILITY.value)
"""A backend that runs nothing and says this of the calls it would take is rightly not used here: SageAttention 2 on
Hopper, which is known to give noise."""


def run(task: Task) -> None:
    """Every cell of every backend that is here."""
    here, absent = present(task)
    task.each_backend(list(here), lambda backend: _one(task, backend))
    found = dict(task.data)
    problems = [line for backend, part in found.items() for line in required(backend, part)]
    cells = {
        status: sum(part.get(status, 0) for part in found.values()) for status in ("pass", "fail", "skip")
    }
    task.data = {"required": sorted(here), "absent": absent, "cells": cells, "backends": found}
    task.done(problems)


def _one(task: Task, backend: str) -> None:
    part: dict[str, Any] = {"pass": 0, "fail": 0, "skip": 0, "ops": {}, "failures": [], "skips": {}}
    task.data[backend] = part
    names = tuple(op.name for op in task.ops())
    for number, (op, case, implementation, dtype) in enumerate(
        matrix(ops=names, backends=(backend,), tag=task.tag("test"))
    ):
        cell = run_cell(op, case, implementation, dtype, device=task.device)
        part[cell.status] += 1
        if cell.status == "pass":
            part["ops"][op.name] = part["ops"].get(op.name, 0) + 1
        elif cell.status == "fail":
            part["failures"].append(f"{op.name}/{case.name}/{cell.dtype}: {cell.detail}")
        else:
            part["skips"][cell.detail] = part["skips"].get(cell.detail, 0) + 1
        if number % 50 == 49:
            task.keep()


def required(backend: str, part: dict[str, Any]) -> list[str]:
    """What is wrong with a backend that must be right: crashes, wrong cells, and nothing that ran."""
    problems = [f"{backend}: {part['crashed']}"] if "crashed" in part else []
    problems += [f"{backend}: {text}" for text in part.get("failures", ())]
    skips = part.get("skips", {})
    kept_away = any(why.startswith(OF_THE_DEVICE) for why in skips)
    if not part.get("pass") and not kept_away:
        problems.append(f"{backend} is present, and no cell of it ran")
    for why, number in skips.items():
        if why.startswith(NOT_THE_CALL):
            problems.append(f"{backend} is present, and {number} cells were skipped: {why}")
    return problems
