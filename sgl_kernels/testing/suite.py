"""check_backend: the suite a third party runs on its implementations, in one line of pytest."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.backend import Implementation, Rejected
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.tools.parity.cell import Cell, matrix, run_cell


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an implementation."""

    op: str
    backend: str
    problem: str

    def __str__(self) -> str:
        return f"{self.op}/{self.backend}: {self.problem}"


def check_backend(
    implementations: Iterable[Implementation], *, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Cell, ...]:
    """Run every test case of every op on `implementations`, beside the torch floor.

    Each is checked for: a signature of exactly the op's arguments, in order and without defaults; the right
    answer in every case it accepts, within the tolerance of plain torch; no argument changed in place; the
    promised shapes and dtypes; at least one case that runs.

    Returns the cells of the matrix. Raises AssertionError with every finding.
    """
    mine = tuple(implementations)
    world = _world(mine)
    findings = [f for i in mine for f in _declaration(i, world)]
    cells = [
        run_cell(op, case, implementation, dtype, device=device, seed=seed, source=world)
        for op, case, implementation, dtype in matrix(world, backends=tuple({i.backend for i in mine}))
        if any(implementation is i for i in mine)
    ]
    findings += [
        Finding(c.op, c.backend, f"case {c.case}, {c.dtype}: {c.detail}") for c in cells if c.status == "fail"
    ]
    for i in mine:
        rows = [c for c in cells if (c.op, c.backend) == (i.op, i.backend)]
        if rows and all(c.status == "skip" for c in rows):
            findings.append(
                Finding(i.op, i.backend, f"no case ran; the first was skipped for {rows[0].detail}")
            )
    if findings:
        raise AssertionError(f"{len(findings)} findings:\n" + "\n".join(map(str, findings)))
    return tuple(cells)


def _world(mine: tuple[Implementation, ...]) -> Registry:
    """The process's ops and floor, and `mine`: nothing leaks into the process's registry."""
    world = Registry()
    for op in registry.ops().values():
        world.define(op)
        world.add([i for i in registry.implementations(op.name) if i.backend == "torch"], "floor")
    world.add(mine, "check_backend")
    return world


def _declaration(implementation: Implementation, world: Registry) -> list[Finding]:
    op = world.op(implementation.op)

    def finding(problem: str) -> list[Finding]:
        return [Finding(op.name, implementation.backend, problem)]

    if implementation.backend != implementation.backend.lower() or not implementation.backend.isidentifier():
        return finding("a backend name is lower case letters, digits and underscores")
    run = world.loaded(implementation, None)
    if isinstance(run, Rejected):
        return []  # not loadable here: the matrix says so
    try:
        parameters = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError):
        return []  # a C function without a signature: the matrix will call it
    names = [p.name for p in parameters]
    wanted = [a.name for a in op.arguments]
    kinds = {p.kind for p in parameters}
    if kinds - {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}:
        return finding("run takes *args or keyword-only arguments; take exactly the op's arguments")
    if any(p.default is not p.empty for p in parameters):
        return finding("run has default values; the op has already filled them in")
    return [] if names == wanted else finding(f"run takes {names}, the op's arguments are {wanted}")
