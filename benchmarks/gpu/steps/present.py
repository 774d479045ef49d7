"""Which backends are really there: of this platform, with their packages, and loading without an error."""

from __future__ import annotations

import dataclasses

from benchmarks.gpu.task import Task
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Reason, Rejected

DOWNLOADS = frozenset({"hf_kernels"})
"""Backends that fetch and run code at their first use, which nobody asked for here."""


def present(task: Task) -> tuple[dict[str, list[Implementation]], dict[str, str]]:
    """(the implementations of each backend that is here, why each other one of this platform is not)."""
    here: dict[str, list[Implementation]] = {}
    absent: dict[str, str] = {}
    wanted = {op.name for op in task.ops()}
    for name in registry.ops():
        for implementation in registry.implementations(name):
            backend = implementation.backend
            if name not in wanted or (task.options.backend and backend != task.options.backend):
                continue
            if backend in DOWNLOADS and not task.options.backend:
                absent[backend] = (
                    "downloads its code at its first use; run it with `sgl-kernels parity --backend`"
                )
                continue
            why = reason_against(implementation, task)
            if why is None:
                here.setdefault(backend, []).append(implementation)
            elif why.reason is not Reason.PLATFORM:
                absent.setdefault(backend, f"{why.reason.value}: {why.detail}")
    return here, {backend: why for backend, why in absent.items() if backend not in here}


def reason_against(implementation: Implementation, task: Task) -> Rejected | None:
    """Why this machine cannot run it at any call, or None. Loads it."""
    requires = dataclasses.replace(implementation.requires, dtypes=frozenset())
    dtype = next(iter(implementation.requires.dtypes), None)
    rejected = requires.rejects(dtype, task.where, installed_version)  # type: ignore[arg-type]
    if rejected is not None:
        return rejected
    found = registry.loaded(implementation, None)
    return found if isinstance(found, Rejected) else None
