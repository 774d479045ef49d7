"""Every op of our Triton kernels turns down the calls whose rows 32 bits cannot count, and says how many."""

from __future__ import annotations

import pytest

from sgl_kernels.backends._triton_rows import MOST_ROWS
from sgl_kernels.backends.triton import IMPLEMENTATIONS
from sgl_kernels.core.verdict import Reason
from sgl_kernels.ops.activation.spec import ActivationFacts
from sgl_kernels.ops.attention.spec import AttentionFacts, VarlenFacts
from sgl_kernels.ops.modulate.spec import ModulateFacts
from sgl_kernels.ops.norm.spec import GroupNormFacts, NormFacts
from sgl_kernels.ops.rope.spec import RopeFacts

FAR = 2**31
ROWS = [({"rows": MOST_ROWS}, {"rows": FAR})]
# Facts of each op, and fields that count: just within and beyond, every other number being 1.
KINDS = {
    ("attention", "attention_lse"): (
        AttentionFacts, [({"sk": MOST_ROWS}, {"sk": FAR}), ({"sq": 2**24}, {"sq": 2**24, "batch": 2**8})],
    ),
    ("attention_varlen",): (
        VarlenFacts, [({"sk": MOST_ROWS}, {"sk": FAR}), ({"heads": 2**26}, {"heads": 2**27})],
    ),
    ("rms_norm", "layer_norm", "norm_scale_shift", "residual_gate_norm_scale_shift"): (NormFacts, ROWS),
    ("group_norm",): (
        GroupNormFacts, [({"batch": 2**20}, {"batch": 2**21}), ({"positions": 2**30}, {"positions": FAR})],
    ),
    ("apply_rope", "qk_norm_rope"): (
        RopeFacts, [({"tokens": 2**29}, {"tokens": 2**30}), ({"heads": 2**30}, {"heads": FAR})],
    ),
    ("scale_shift", "gate_residual"): (ModulateFacts, ROWS),
    ("silu_mul", "gelu_tanh", "gelu_mul"): (ActivationFacts, ROWS),
}  # fmt: skip
CASES = [(op, facts, *pair) for ops, (facts, pairs) in KINDS.items() for op in ops for pair in pairs]


def test_every_op_is_here():
    assert {op for op, *_ in CASES} == {i.op for i in IMPLEMENTATIONS}


@pytest.mark.parametrize("op, facts, within, beyond", CASES)
def test_calls_of_more_rows_than_32_bits_count_are_turned_down(op, facts, within, beyond):
    one = facts(*[1] * len(facts._fields))
    for declared in (i for i in IMPLEMENTATIONS if i.op == op):
        numbers = one._replace(softcap=False) if hasattr(one, "softcap") else one
        assert declared.rejects(numbers._replace(**within)) is None
        rejected = declared.rejects(numbers._replace(**beyond))
        assert rejected.reason is Reason.SHAPE and str(MOST_ROWS) in rejected.detail
