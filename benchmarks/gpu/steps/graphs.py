"""CUDA graphs: a first call inside a capture says 'warm up first'; a warmed call is captured and replayed right."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.steps.present import present
from benchmarks.gpu.task import Task
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.op import Op
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.core.settings import Settings
from sgl_kernels.tools.parity.cell import verdict

WARMING = 3
SYNCHRONISE = {("attention_varlen", "torch"): "the floor reads the lengths on the host"}
"""Who cannot be captured, and why: a copy to the host inside a capture is an error by CUDA's rules."""


def run(task: Task) -> None:
    """Every op on every backend that is here and takes one of its small cases."""
    here, absent = present(task)
    names = {i.op for found in here.values() for i in found}
    if not task.options.backend:
        cold = {op.name: _cold(task, op) for op in task.ops() if op.name in names}
        task.data["cold"] = cold
        task.keep()
    task.each_backend(list(here), lambda backend: _one(task, backend))
    cold = task.data.pop("cold")
    problems = [f"{op}: {text}" for op, text in cold.items() if text != "refused"]
    for backend, part in task.data.items():
        problems += [
            f"{op} on {backend}: {text}" for op, text in part.items() if text not in _fine(op, backend)
        ]
    task.data = {"cold": cold, "absent": absent, "backends": dict(task.data)}
    task.done(problems)


def _fine(op: str, backend: str) -> tuple[str, ...]:
    expected = SYNCHRONISE.get((op, backend))
    return ("right", "takes no small case", *((f"not captured: {expected}",) if expected else ()))


def _cold(task: Task, op: Op) -> str:
    """What a first call inside a capture does."""
    case, dtype = task.smoke(op)
    args = op.canonical(*case.make(task.device, dtype, seed=1))
    call = getattr(torch.ops.sgl_kernels, op.name).default
    with activate(Dispatcher(Settings())):
        try:
            _captured(functools.partial(call, *args))
        except RuntimeError as error:
            return "refused" if "warm up first" in str(error) else f"{type(error).__name__}: {error}"
        return "captured without having been called before"


def _one(task: Task, backend: str) -> None:
    here, _ = present(task)
    part: dict[str, Any] = {}
    task.data[backend] = part
    by_name = {op.name: op for op in task.ops()}
    for implementation in here.get(backend, ()):
        op = by_name[implementation.op]
        part[op.name] = "crashed"
        task.keep()
        part[op.name] = _captured_and_right(task, op, backend)
        task.keep()


def _captured_and_right(task: Task, op: Op, backend: str) -> str:
    from sgl_kernels.core.registry import registry

    implementation = next(i for i in registry.implementations(op.name) if i.backend == backend)
    found = None
    for case in (c for c in op.cases() if "smoke" in c.tags):
        for dtype in case.dtypes:
            args = op.canonical(*case.make(task.device, dtype, seed=1))
            if verdict(op, implementation, args, task.where, installed_version) is None:
                found = found or (case, dtype, args)
    if found is None:
        return "takes no small case"
    if (op.name, backend) in SYNCHRONISE:
        return f"not captured: {SYNCHRONISE[op.name, backend]}"
    case, dtype, args = found
    config = implementation.configs(op.facts(*args), task.where)[0] if implementation.configs else None
    kernel = registry.loaded(implementation, config)
    if isinstance(kernel, Rejected):
        return f"did not load: {kernel.detail}"
    try:
        graph, out = _captured(functools.partial(kernel, *args), WARMING)
        fresh = op.canonical(*case.make(task.device, dtype, seed=2))
        for old, new in zip(args, fresh, strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)
        graph.replay()
        task.wait()
        return _compare(out, kernel(*fresh))
    except (
        Exception
    ) as error:  # any failure to capture is a finding about this backend, not the end of the step
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _captured(call: Any, warming: int = 0) -> tuple[Any, Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warming):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def _compare(got: Any, want: Any) -> str:
    """The replay ran the same kernel on the same numbers, so it may differ by the order of sums at most."""
    outs = [tuple(o) if isinstance(o, tuple | list) else (o,) for o in (got, want)]
    for g, w in zip(*outs, strict=True):
        a, b = g.double().nan_to_num(), w.double().nan_to_num()
        if float((a - b).norm()) > 1e-2 * max(float(b.norm()), 1e-6):
            return "the replay gave other numbers than the call"
    return "right"
