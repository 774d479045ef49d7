"""torch.library.opcheck of every op with tensors of the device: schema, autograd, fake tensors, AOT dispatch."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.task import Task

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def run(task: Task) -> None:
    """Each op once, on a small case."""
    problems = []
    for op in task.ops():
        case, dtype = task.smoke(op)
        args = op.canonical(*case.make(task.device, dtype, seed=3))
        checks = list(CHECKS)
        if any(isinstance(a, Tensor) and a.is_floating_point() and a.dtype.itemsize == 1 for a in args):
            checks.remove("test_schema")  # it compares inputs with allclose, which torch has not for float8
        try:
            torch.library.opcheck(getattr(torch.ops.sgl_kernels, op.name).default, args, test_utils=checks)
            task.wait()
            task.data[op.name] = "right"
        except Exception as error:  # whatever an op raises is what this step is looking for
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            task.data[op.name] = f"{type(error).__name__}: {line}"
            problems.append(f"{op.name}: {task.data[op.name]}")
        task.keep()
    task.done(problems)
