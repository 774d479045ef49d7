"""SageAttention, xFormers and FlashInfer by contract."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sgl_kernels.backends._bugs import known_bugs
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.ops.attention import reference
from sgl_kernels.ops.rope import reference as rope
from tests.backends import contract


def sageattn_v1(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True, **kwargs):
    """1.0.6: unknown keywords are swallowed, K is smoothed in place."""
    assert not kwargs, f"SageAttention would ignore {list(kwargs)}"
    if tensor_layout == "HND":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mean = k.mean(1, keepdim=True)
    if smooth_k:
        k -= mean
    out = reference.attention(q, k + mean, v, None, is_causal, "top_left", sm_scale)
    return out.transpose(1, 2) if tensor_layout == "HND" else out


def sageattn_v2(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert not kwargs, f"SageAttention would ignore {list(kwargs)}"
    if tensor_layout == "HND":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse = reference.attention_lse(q, k, v, None, is_causal, "top_left", sm_scale)
    out = out.transpose(1, 2) if tensor_layout == "HND" else out
    return (out, lse) if return_lse else out


def sageattn3_blackwell(q, k, v, attn_mask=None, is_causal=False, per_block_mean=True, **kwargs):
    assert attn_mask is None and not kwargs, "SageAttention 3 would ignore it"
    assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
    mean = k.mean(2, keepdim=True)
    k -= mean
    out = reference.attention(*(t.transpose(1, 2) for t in (q, k + mean, v)), None, is_causal, "top_left")
    return out.transpose(1, 2)


@pytest.mark.parametrize("fake", [sageattn_v1, sageattn_v2])
def test_sage_attn_contract(fake, monkeypatch):
    contract.install(monkeypatch, {"sageattention": {"sageattn": fake}})
    contract.check("attention", "sage_attn", at_least=12, tolerance=2)


def test_sage_attn_lse_contract(monkeypatch):
    contract.install(monkeypatch, {"sageattention": {"sageattn": sageattn_v2}})
    contract.check("attention_lse", "sage_attn", at_least=12, tolerance=2)


def test_sage_attn3_contract(monkeypatch):
    contract.install(monkeypatch, {"sageattn3": {"sageattn3_blackwell": sageattn3_blackwell}})
    contract.check("attention", "sage_attn3", at_least=12, tolerance=2)


@pytest.mark.parametrize("op, backend", [("attention", "sage_attn"), ("attention", "sage_attn3")])
def test_sage_is_lossy(op, backend):
    assert contract.implementation(op, backend).fidelity is Fidelity.LOSSY


class LowerTriangularMask:
    pass


class LowerTriangularFromBottomRightMask:
    pass


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    assert p == 0.0
    kw = {}
    if isinstance(attn_bias, LowerTriangularMask):
        kw = dict(is_causal=True, causal_alignment="top_left")
    elif isinstance(attn_bias, LowerTriangularFromBottomRightMask):
        kw = dict(is_causal=True, causal_alignment="bottom_right")
    elif attn_bias is not None:
        full = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
        assert tuple(attn_bias.shape) == full and attn_bias.dtype == query.dtype
        assert all(s % 8 == 0 for s in attn_bias.stride()[:-1]), "rows must start at multiples of 8"
        kw = dict(attn_mask=attn_bias)
    out, lse = reference.attention_lse(query, key, value, scale=scale, **kw)
    return torch.where(
        (lse == -math.inf).transpose(1, 2)[..., None], float("nan"), out
    )  # as the real one does


def test_xformers_contract(monkeypatch):
    contract.install(
        monkeypatch,
        {
            "xformers.ops": {"memory_efficient_attention": memory_efficient_attention},
            "xformers.ops.fmha.attn_bias": {
                "LowerTriangularMask": LowerTriangularMask,
                "LowerTriangularFromBottomRightMask": LowerTriangularFromBottomRightMask,
            },
        },
    )
    contract.check("attention", "xformers", at_least=60)


def single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None,
    causal=False, kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None,
    window_left=-1, logits_soft_cap=None, rope_scale=None, rope_theta=None, backend="auto", return_lse=False,
    kv_cache_sf=None, k_scale=None, v_scale=None,
):  # fmt: skip
    assert q.ndim == 3 and kv_layout == "NHD" and pos_encoding_mode == "NONE"
    out, lse = reference.attention_lse(
        q[None],
        k[None],
        v[None],
        None,
        causal,
        "bottom_right",
        sm_scale,
        window_left,
        -1,
        logits_soft_cap or 0.0,
    )
    return (out[0], lse[0].T / math.log(2.0)) if return_lse else out[0]  # lse (S, H), base 2


def rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):
    assert input.ndim == 2 and weight.dtype == input.dtype
    return F.rms_norm(input.float(), weight.shape, weight.float(), eps).to(input.dtype)


def _and_mul(act):
    def call(input, out=None, enable_pdl=None):
        assert input.is_contiguous() and input.shape[-1] % 16 == 0
        half = input.shape[-1] // 2
        return (act(input[..., :half].float()) * input[..., half:].float()).to(input.dtype)

    return call


def apply_rope_with_cos_sin_cache(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype is torch.float32 and positions.ndim == 1 and query.ndim == 2
    half = cos_sin_cache.shape[-1] // 2
    cos, sin = cos_sin_cache[positions, :half], cos_sin_cache[positions, half:]

    def rotate(t):
        heads = t.reshape(1, t.shape[0], -1, head_size)
        return rope.apply_rope(heads, cos, sin, not is_neox).reshape(t.shape)

    return rotate(query), rotate(key)


FLASHINFER = {
    "flashinfer.prefill": {"single_prefill_with_kv_cache": single_prefill_with_kv_cache},
    "flashinfer.norm": {"rmsnorm": rmsnorm},
    "flashinfer.activation": {
        "silu_and_mul": _and_mul(F.silu),
        "gelu_and_mul": _and_mul(F.gelu),
        "gelu_tanh_and_mul": _and_mul(lambda t: F.gelu(t, approximate="tanh")),
    },
    "flashinfer.rope": {"apply_rope_with_cos_sin_cache": apply_rope_with_cos_sin_cache},
}


@pytest.mark.parametrize(
    "op, at_least",
    [
        ("attention", 16),
        ("attention_lse", 16),
        ("rms_norm", 8),
        ("silu_mul", 4),
        ("gelu_mul", 4),
        ("apply_rope", 8),
    ],
)
def test_flashinfer_contract(op, at_least, monkeypatch):
    contract.install(monkeypatch, FLASHINFER)
    contract.check(op, "flashinfer", at_least=at_least)


def test_the_sage_bugs_are_declared():
    names = {b.name for b in known_bugs() if b.backend == "sage_attn"}
    assert names == {b.name for b in contract.implementation("attention", "sage_attn").bugs}
