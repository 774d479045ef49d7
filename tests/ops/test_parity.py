"""The one matrix: op x case x backend x dtype, generated from the registry."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.core.device import probe
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.tools.parity.cell import matrix, run_cell
from tests import evidence


def _params(place: torch.device):
    """Every cell; an (op, backend) that this device or its packages rule out is one cell, skipped with the reason."""
    found = probe(place)
    ruled_out = set()
    for op, case, implementation, dtype in matrix():
        key = (op.name, implementation.backend)
        elsewhere = dataclasses.replace(implementation.requires, dtypes=frozenset())
        if elsewhere.rejects(dtype, found, installed_version) is not None:
            if key not in ruled_out:
                ruled_out.add(key)
                yield pytest.param(op, case, implementation, dtype, id="/".join(key))
            continue
        name = str(dtype).removeprefix("torch.")
        yield pytest.param(op, case, implementation, dtype, id="/".join((*key, case.name, name)))


def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        place = torch.device(metafunc.config.getoption("--device"))
        metafunc.parametrize("op, case, implementation, dtype", list(_params(place)))


def test_parity(op, case, implementation, dtype, device, require, seed):
    cell = run_cell(op, case, implementation, dtype, device=device, seed=seed)
    if cell.status == "skip":
        require.skip(implementation.backend, cell.detail)
    assert cell.status == "pass", cell.detail
    if os.environ.get("TRITON_INTERPRET") == "1" and implementation.backend.startswith("triton"):
        evidence.record(op.name, implementation.backend, "interpreted", 1)


def test_the_matrix_is_not_empty():
    rows = list(matrix(backends=("torch",)))
    assert len({op.name for op, *_ in rows}) >= 15
    assert {dtype for *_, dtype in rows} >= {torch.float32, torch.bfloat16, torch.float16}
