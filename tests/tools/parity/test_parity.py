"""The parity judge: a handful of values is judged over many draws, a large result on its own."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS, Requires
from sgl_kernels.ops.attention import reference
from sgl_kernels.tools.parity.cell import DRAWS, run_cell

OP = registry.op("attention_lse")


def judge(case_name, spoil=None):
    """The cell of a correct implementation, but for the call number `spoil`; and the queries it was given."""
    seen = []

    def run(*args):
        seen.append(args[0].clone())
        out, lse = reference.attention_lse(*args)
        return out, lse + (1e-3 if len(seen) == spoil else 0.0)

    made_up = Implementation(
        op="attention_lse",
        backend="made_up",
        load=lambda config: run,
        requires=Requires(platforms=frozenset({"cpu"}), dtypes=FLOATS),
        rank=1,
        doc="the definition",
    )
    case = next(c for c in OP.cases() if c.name == case_name)
    return run_cell(OP, case, made_up, torch.float32, seed=3), seen


def test_one_score_is_judged_over_many_draws():
    cell, seen = judge("one_by_one")
    assert cell.status == "pass" and len(seen) == DRAWS
    assert len({q.sum().item() for q in seen}) == DRAWS


@pytest.mark.parametrize("spoil", [1, DRAWS])
def test_one_wrong_draw_fails(spoil):
    cell, _ = judge("one_by_one", spoil)
    assert cell.status == "fail" and "relative L2" in cell.detail


def test_large_results_need_one_draw():
    cell, seen = judge("plain")
    assert cell.status == "pass" and len(seen) == 1
