"""What the triton backend declines of FP4, on machines that are only described."""

from __future__ import annotations

import torch

from sgl_kernels.backends.nvfp4_triton import IMPLEMENTATIONS, MOST_ROWS
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.ops.nvfp4.facts import LinearFacts


def test_more_rows_than_a_grid_has_programs_are_declined():
    (linear,) = (i for i in IMPLEMENTATIONS if i.op == "nvfp4_linear")
    facts = LinearFacts(torch.bfloat16, MOST_ROWS, 64, 64, "none", "nvfp4", "linear", None, False, False)
    assert linear.rejects(facts) is None
    rejected = linear.rejects(facts._replace(m=MOST_ROWS + 1))
    assert rejected.reason is Reason.SHAPE and str(MOST_ROWS) in rejected.detail
