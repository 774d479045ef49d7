"""Where the C++ attention goes first, and where a measurement sends the call to torch."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.backends.cpu_attention import IMPLEMENTATIONS
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.ops.attention.spec import dense_facts

DENSE, LSE, VARLEN, SAGE = IMPLEMENTATIONS
CPU = Device("cpu")


def facts(sq, sk, dtype, softcap=0.0, head_dim=64):
    q, k = (torch.zeros(1, s, 4, head_dim, dtype=dtype) for s in (sq, sk))
    return dense_facts(q, k, k, None, False, "bottom_right", None, -1, -1, softcap)


@pytest.mark.parametrize(
    "sq, sk, dtype, first",
    [
        (16, 16, torch.float32, False),
        (32, 32, torch.float32, False),
        (49, 49, torch.float32, False),
        (64, 64, torch.float32, True),
        (16, 16, torch.bfloat16, True),
        (1, 64, torch.float32, True),  # decoding
    ],
)
def test_torch_keeps_what_it_does_faster(sq, sk, dtype, first):
    assert (DENSE.rank_for(facts(sq, sk, dtype), CPU) > 0) is first
    assert LSE.rank_for(facts(sq, sk, dtype), CPU) > 0


def test_narrow_heads_win_earlier():
    assert DENSE.rank_for(facts(33, 33, torch.float32, head_dim=32), CPU) > 0
    assert DENSE.rank_for(facts(33, 33, torch.float32, head_dim=64), CPU) < 0


@pytest.mark.parametrize("rows, first", [(16, False), (32, True), (49, True)])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_avx2_wins_earlier_than_avx512(rows, head_dim, first):
    device = Device("cpu", "avx2")
    assert (DENSE.rank_for(facts(rows, rows, torch.float32, head_dim=head_dim), device) > 0) is first


def test_quantised_attention_must_be_asked_for():
    assert SAGE.fidelity is Fidelity.LOSSY and DENSE.fidelity is Fidelity.EXACT
    assert SAGE.rejects(facts(9, 9, torch.float32, softcap=2.0)).reason.value == "feature"
    assert SAGE.rejects(facts(9, 9, torch.float32)) is None


def test_sizes_that_32_bits_cannot_count_are_anothers():
    rows = torch.empty(1, 1, 1, 1).expand(1, 2**31 // 12, 12, 1)
    long = torch.empty(1, 1, 1, 1).expand(1, 2**28, 1, 1)
    one, wide = torch.empty(1, 1, 1, 1), torch.empty(1, 2, 1, 65537)
    for q, k, text in ((rows, one, "2^30"), (long, one, "2^28"), (one, long, "2^28"), (wide, wide, "65536")):
        call = dense_facts(q, k, k, None, False, "bottom_right", None, -1, -1, 0.0)
        for entry in (DENSE, LSE, SAGE):
            rejected = entry.rejects(call)
            assert rejected is not None
            assert text in rejected.detail
    assert DENSE.rejects(facts(3, 5, torch.float32)) is None
