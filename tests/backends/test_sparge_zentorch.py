"""SpargeAttention and zentorch by contract; zentorch for real where it is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

import sgl_kernels
from sgl_kernels.core.op import Case, TensorSpec
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.ops.attention import reference
from tests import evidence
from tests.backends import contract

SCHEMA = (
    "zentorch_sdpa(Tensor query, Tensor key, Tensor value, float dropout_p=0.0, bool is_causal=False, *, "
    "Tensor? attn_mask=None, float? scale=None, str zentorch_op_name='zentorch::zentorch_sdpa') -> (Tensor, Tensor)"
)


def spas_sage2_attn_meansim_topk_cuda(
    q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, smooth_k=True, simthreshd1=-0.1,
    cdfthreshd=None, topk=0.5, pvthreshd=50, attention_sink=False, tensor_layout="HND", output_dtype=torch.float16,
    return_sparsity=False,
):  # fmt: skip
    """Reads every block, so that the adapter's own mistakes are all that can go wrong."""
    assert attn_mask is None and not is_causal and smooth_k, "ignored, leaking, or a NameError in the package"
    assert tensor_layout == "HND" and q.size(-2) >= 128 and q.size(-1) in (64, 128) and 0 < topk < 1
    out = reference.attention(*(t.transpose(1, 2) for t in (q, k, v)), None, False, "bottom_right", scale)
    return out.transpose(1, 2)


def _long_case(sk: int, dim: int, scale: float | None) -> Case:
    q, kv = TensorSpec((1, 130, 2, dim)), TensorSpec((1, sk, 2, dim))
    return Case(f"sk{sk}d{dim}", (q, kv, kv, None, False, "bottom_right", scale))


def test_sparge_contract(monkeypatch):
    contract.install(
        monkeypatch,
        {"spas_sage_attn": {"spas_sage2_attn_meansim_topk_cuda": spas_sage2_attn_meansim_topk_cuda}},
    )
    declared, op = contract.implementation("attention", "sparge_attn"), registry.op("attention")
    assert declared.fidelity is Fidelity.LOSSY and declared.launches_on_current_device
    run = declared.load(None)
    for case in (_long_case(130, 64, None), _long_case(200, 128, 0.3)):
        args = op.canonical(*case.make(torch.device("cpu"), torch.bfloat16))
        assert declared.rejects(op.facts(*args)) is None
        torch.testing.assert_close(run(*args), op.reference(*args), rtol=3e-2, atol=3e-2)
    evidence.record("attention", "sparge_attn", "contract", 2)


@pytest.mark.parametrize(
    "change, reason", [({"is_causal": True}, "leaks"), ({"window_size": (8, 8)}, "window"), ({}, "fidelity")]
)
def test_sparge_is_turned_away(change, reason):
    q = torch.empty(1, 256, 4, 64, dtype=torch.bfloat16, device="meta")
    versions = {"spas_sage_attn": Version("0.1.0")}
    found = sgl_kernels.explain("attention", q, q, q, device="cuda:sm90", version_of=versions.get, **change)
    rejected = found.rejected("sparge_attn")
    assert reason in (rejected.reason.value, *rejected.detail.split()), rejected


def _zentorch_sdpa(
    query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None, zentorch_op_name=""
):
    """As the plug-in: masks of 2 or 4 dimensions in float32 or q's dtype, causal top-left, torch's own kernel."""
    assert dropout_p == 0.0 and query.shape[-1] == value.shape[-1]
    if attn_mask is not None:
        assert attn_mask.dtype in (torch.float32, query.dtype) and attn_mask.ndim in (2, 4)
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=True
    )
    return out.clone(), query.new_zeros(query.shape[:-1], dtype=torch.float32)


@pytest.fixture
def zentorch(monkeypatch):
    """The real plug-in where it is installed, else its op by schema."""
    if importlib.util.find_spec("zentorch") is not None:
        yield
        return
    library = torch.library.Library("zentorch", "DEF")
    library.define(SCHEMA)
    library.impl("zentorch_sdpa", _zentorch_sdpa, "CPU")
    contract.install(monkeypatch, {"zentorch": {"__version__": "2.13.0.2"}})
    yield
    library._destroy()


def test_zentorch_contract(zentorch):
    contract.check("attention", "zentorch", at_least=40)


@pytest.mark.parametrize(
    "arch, dtype, reason",
    [
        ("avx512bf16", torch.bfloat16, None),
        ("avx512", torch.float32, None),
        ("avx512", torch.bfloat16, Reason.CAPABILITY),
        ("avx2", torch.float32, Reason.CAPABILITY),
        ("avx512bf16", torch.float16, Reason.DTYPE),
    ],
)
def test_zentorch_serves_where_it_has_a_kernel(arch, dtype, reason):
    q = torch.empty(1, 64, 4, 64, dtype=dtype, device="meta")
    versions = {"zentorch": Version("2.13.0.2")}
    found = sgl_kernels.explain("attention", q, q, q, device=f"cpu:{arch}", version_of=versions.get)
    rejected = found.rejected("zentorch")
    assert (rejected and rejected.reason) == reason
    if arch == "avx2":  # its op runs there, with torch's own kernel: nothing to gain
        assert rejected.detail == "needs avx512, avx512bf16, device is avx2" and found.chosen != "zentorch"
