"""FlashAttention 2, 3 and 4 by contract: their signatures, their window encodings, their return values."""

from __future__ import annotations

import pytest

from sgl_kernels.ops.attention import reference
from tests.backends import contract


def _dense(q, k, v, scale, causal, window, softcap):
    left, right = (-1 if side is None else side for side in window)
    return reference.attention_lse(q, k, v, None, causal, "bottom_right", scale, left, right, softcap or 0.0)


def _packed(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, softcap):
    left, right = (-1 if side is None else side for side in window)
    return reference.attention_varlen(
        q, k, v, cu_q, cu_k, max_q, max_k, causal, scale, left, right, softcap or 0.0
    )


def _minus_one(window):
    assert None not in window, "this generation writes an unlimited side as -1"
    return window


# Signatures of flash-attn 2.8.4, the hopper folder at 0251105a and flash-attn-4 4.0.0b36, held by test_signatures.py
def fa2_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    out, lse = _dense(q, k, v, softmax_scale, causal, _minus_one(window_size), softcap)
    return (out, lse, None) if return_attn_probs else out


def fa2_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    return _packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal,
        _minus_one(window_size), softcap,
    )  # fmt: skip


def fa3_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    out, lse = _dense(q, k, v, softmax_scale, causal, _minus_one(window_size), softcap)
    return (out, lse) if return_attn_probs else out


def fa3_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
    softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):  # fmt: skip
    return _packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal,
        _minus_one(window_size), softcap,
    )  # fmt: skip


def _none(window):
    assert -1 not in window, "FA4 writes an unlimited side as None"
    return window


def fa4_func(
    q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
    learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
    score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
    block_sparse_tensors_bwd=None, return_lse=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None,
):  # fmt: skip
    out, lse = _dense(q, k, v, softmax_scale, causal, _none(window_size), softcap)
    return (out, lse) if return_lse else (out, None)


def fa4_varlen(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
    seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    score_mod=None, score_mod_bwd=None, mask_mod=None, block_sparse_tensors=None, aux_tensors=None, aux_scalars=None,
    return_lse=False, scheduler_metadata=None, seqlen_k_per_split=None, disable_scheduler_metadata=False,
    gather_bwd_recompute_p=False, gather_bwd_token_chunk=None,
):  # fmt: skip
    out = _packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, _none(window_size),
        softcap,
    )  # fmt: skip
    return out, None


FAKES = {
    "fa2": {
        "flash_attn.flash_attn_interface": {"flash_attn_func": fa2_func, "flash_attn_varlen_func": fa2_varlen}
    },
    "fa3": {"flash_attn_interface": {"flash_attn_func": fa3_func, "flash_attn_varlen_func": fa3_varlen}},
    "fa4": {"flash_attn.cute": {"flash_attn_func": fa4_func, "flash_attn_varlen_func": fa4_varlen}},
}


@pytest.mark.parametrize("backend", FAKES)
@pytest.mark.parametrize("op, at_least", [("attention", 30), ("attention_lse", 30), ("attention_varlen", 8)])
def test_flash_attention_contract(backend, op, at_least, monkeypatch):
    contract.install(monkeypatch, FAKES[backend])
    contract.check(op, backend, at_least=at_least)


def test_a_contract_catches_a_wrong_alignment(monkeypatch):
    def top_left(q, k, v, **kw):
        return reference.attention(q, k, v, None, kw["causal"], "top_left", kw["softmax_scale"])

    fakes = {
        "flash_attn.flash_attn_interface": {"flash_attn_func": top_left, "flash_attn_varlen_func": fa2_varlen}
    }
    contract.install(monkeypatch, fakes)
    with pytest.raises(AssertionError):
        contract.check("attention", "fa2", at_least=1)
