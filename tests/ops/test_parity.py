"""The one matrix: op x case x backend x dtype, generated from the registry."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.tools.parity import matrix, run_cell


def _params():
    for op, case, implementation, dtype in matrix():
        name = str(dtype).removeprefix("torch.")
        yield pytest.param(
            op, case, implementation, dtype, id=f"{op.name}/{implementation.backend}/{case.name}/{name}"
        )


@pytest.mark.parametrize("op, case, implementation, dtype", list(_params()))
def test_parity(op, case, implementation, dtype, device, require, seed):
    cell = run_cell(op, case, implementation, dtype, device=device, seed=seed)
    if cell.status == "skip":
        require.skip(implementation.backend, cell.detail)
    assert cell.status == "pass", cell.detail


def test_the_matrix_is_not_empty():
    rows = list(matrix(backends=("torch_sdpa",)))
    assert len({op.name for op, *_ in rows}) >= 15
    assert {dtype for *_, dtype in rows} >= {torch.float32, torch.bfloat16, torch.float16}
