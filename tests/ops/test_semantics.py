"""What the front doors promise, checked against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sgl_kernels
from sgl_kernels.ops.attention import reference


def by_hand(q: Tensor, k: Tensor, v: Tensor, keep, scale: float | None = None) -> Tensor:
    """Attention as the textbook writes it, one query at a time; keep(i, j) says what is visible."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    group = q.shape[2] // k.shape[2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            for i in range(q.shape[1]):
                visible = [j for j in range(k.shape[1]) if keep(b, h, i, j)]
                if not visible:
                    continue
                scores = [float(q[b, i, h].double() @ k[b, j, h // group].double()) * factor for j in visible]
                top = max(scores)
                weights = [math.exp(s - top) for s in scores]
                total = sum(w * v[b, j, h // group].double() for w, j in zip(weights, visible, strict=True))
                out[b, i, h] = total / sum(weights)
    return out


def qkv(b=1, sq=5, sk=7, h=2, d=8, hk=None):
    hk = hk or h
    return torch.randn(b, sq, h, d), torch.randn(b, sk, hk, d), torch.randn(b, sk, hk, d)


def close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sq, sk", [(5, 7), (7, 5), (6, 6), (1, 4), (4, 1)])
def test_causal_alignments(sq, sk):
    q, k, v = qkv(sq=sq, sk=sk)
    bottom = by_hand(q, k, v, lambda b, h, i, j: j <= i + sk - sq)
    top = by_hand(q, k, v, lambda b, h, i, j: j <= i)
    close(sgl_kernels.attention(q, k, v, is_causal=True), bottom)
    close(sgl_kernels.attention(q, k, v, is_causal=True, causal_alignment="top_left"), top)
    close(sgl_kernels.flash_attn_func(q, k, v, causal=True), bottom)
    sdpa = sgl_kernels.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    close(sdpa.transpose(1, 2), top)


def test_window_is_inclusive_on_both_sides_and_follows_the_bottom_right_diagonal():
    q, k, v = qkv(sq=6, sk=9)
    want = by_hand(q, k, v, lambda b, h, i, j: i + 3 - 2 <= j <= i + 3 + 1)
    close(sgl_kernels.attention(q, k, v, window_size=(2, 1)), want)


def test_mask_causal_and_window_all_apply_together():
    q, k, v = qkv(b=2, sq=6, sk=6)
    mask = torch.rand(2, 1, 6, 6) < 0.7
    want = by_hand(q, k, v, lambda b, h, i, j: bool(mask[b, 0, i, j]) and j <= i and j >= i - 3)
    close(sgl_kernels.attention(q, k, v, attn_mask=mask, is_causal=True, window_size=(3, -1)), want)


def test_gqa_shares_heads_in_order():
    q, k, v = qkv(h=6, hk=2)
    close(sgl_kernels.attention(q, k, v), by_hand(q, k, v, lambda *_: True))


def test_rows_without_keys_are_zero_and_their_lse_is_minus_infinity():
    q, k, v = qkv(sq=4, sk=6)
    mask = torch.ones(1, 1, 4, 6, dtype=torch.bool)
    mask[:, :, 2] = False
    for m in (mask, torch.zeros(1, 1, 4, 6).masked_fill(~mask, float("-inf"))):
        out, lse = sgl_kernels.attention_lse(q, k, v, attn_mask=m)
        assert out[0, 2].abs().max() == 0 and bool((lse[0, :, 2] == float("-inf")).all())
        assert torch.isfinite(lse[0, :, :2]).all() and torch.isfinite(out).all()
        assert sgl_kernels.attention(q, k, v, attn_mask=m)[0, 2].abs().max() == 0


def test_lse_is_natural_and_combines_disjoint_keys_exactly():
    q, k, v = qkv(sq=4, sk=10)
    whole = sgl_kernels.attention(q, k, v)
    (a, la), (b, lb) = (sgl_kernels.attention_lse(q, k[:, s], v[:, s]) for s in (slice(0, 3), slice(3, 10)))
    total = torch.logaddexp(la, lb)
    wa, wb = (torch.exp(x - total).transpose(1, 2)[..., None] for x in (la, lb))
    close(wa * a + wb * b, whole)


def test_softcap_bounds_the_scores_before_the_mask():
    q, k, v = (t * 4 for t in qkv())
    bias = torch.randn(1, 2, 5, 7)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    weights = torch.softmax(2.0 * torch.tanh(scores / 2.0) + bias, -1)
    want = torch.einsum("bhij,bjhd->bihd", weights, v)
    close(sgl_kernels.attention(q, k, v, attn_mask=bias, softcap=2.0), want)


def test_a_nan_query_stays_in_its_row():
    q, k, v = qkv(sq=6, sk=6)
    q[0, 3, 1] = float("nan")
    for causal in (False, True):
        out = sgl_kernels.attention(q, k, v, is_causal=causal)
        bad = torch.isnan(out).flatten(2).reshape(1, 6, 2, 8).any(-1)[0]
        assert bad.nonzero().tolist() == [[3, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_infinite_logits_do_not_poison_other_rows(dtype):
    q, k, v = (t.to(dtype) for t in qkv())
    q[0, 1] = 3e38 if dtype is not torch.float16 else 6e4
    out = sgl_kernels.attention(q, k, v)
    rows = [0, 2, 3, 4]
    close(out[:, rows], reference.attention(q[:, rows], k, v), 2e-2)


def test_the_sdpa_drop_in_has_torchs_signature_and_meaning():
    import inspect

    names = list(inspect.signature(sgl_kernels.scaled_dot_product_attention).parameters)
    assert names == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    q, k, v = torch.randn(2, 4, 6, 16), torch.randn(2, 4, 9, 16), torch.randn(2, 4, 9, 16)
    bias = torch.randn(6, 9)
    calls = [
        dict(),
        dict(is_causal=True),
        dict(scale=0.3),
        dict(attn_mask=bias),
        dict(attn_mask=bias > 0),
        dict(attn_mask=bias[None, None]),
    ]
    for kw in calls:
        close(
            sgl_kernels.scaled_dot_product_attention(q, k, v, **kw),
            F.scaled_dot_product_attention(q, k, v, **kw),
        )
    shared = torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    close(
        sgl_kernels.scaled_dot_product_attention(q, *shared, enable_gqa=True),
        F.scaled_dot_product_attention(q, *shared, enable_gqa=True),
    )
    close(
        sgl_kernels.scaled_dot_product_attention(q[0], k[0], v[0], bias),
        F.scaled_dot_product_attention(q[0], k[0], v[0], bias),
    )


def test_the_sdpa_drop_in_leaves_training_to_torch():
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    sgl_kernels.scaled_dot_product_attention(q, q, q).sum().backward()
    assert q.grad is not None
    dropped = sgl_kernels.scaled_dot_product_attention(
        q.detach(), q.detach(), torch.ones(1, 2, 5, 8), None, 0.5
    )
    assert not torch.equal(dropped, torch.ones_like(dropped))


def test_the_flash_drop_ins():
    q, k, v = qkv(sq=6, sk=6, h=4)
    _out, lse, probabilities = sgl_kernels.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert lse.shape == (1, 4, 6) and probabilities is None
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    distance = (torch.arange(6)[:, None] - torch.arange(6)[None]).abs()
    want = sgl_kernels.attention(q, k, v, attn_mask=-slopes[:, None, None] * distance, is_causal=True)
    close(sgl_kernels.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes), want)
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    packed = sgl_kernels.flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 4, 4, causal=True)
    for a, b in ((0, 2), (2, 6)):
        close(packed[a:b], sgl_kernels.attention(q[:, a:b], k[:, a:b], v[:, a:b], is_causal=True)[0])
    again, lse, _ = sgl_kernels.flash_attn_varlen_func(
        q[0], k[0], v[0], starts, starts, 4, 4, causal=True, return_attn_probs=True
    )
    close(again, packed)
    assert lse.shape == (4, 6)
    with pytest.raises(ValueError, match=r"dropout_p is 0.1"):
        sgl_kernels.flash_attn_func(q, k, v, 0.1)
    with pytest.raises(ValueError, match="block_table"):
        sgl_kernels.flash_attn_varlen_func(q[0], k[0], v[0], starts, starts, 4, 4, block_table=starts)


def test_fused_residual_adaln_equals_the_parts():
    r, x = torch.randn(2, 12, 64).bfloat16(), torch.randn(2, 12, 64).bfloat16()
    gate, scale, shift = (torch.randn(2, 3, 1, 64) for _ in range(3))
    out, residual_out = sgl_kernels.residual_gate_norm_scale_shift(r, x, gate, scale, shift)
    parts = sgl_kernels.gate_residual(r, x, gate)
    assert torch.equal(residual_out, parts)
    torch.testing.assert_close(out, sgl_kernels.norm_scale_shift(parts, scale, shift))


def test_a_per_frame_parameter_covers_consecutive_tokens():
    x, p = torch.zeros(1, 6, 2), torch.tensor([[[[1.0, 1.0]], [[5.0, 5.0]]]])
    assert sgl_kernels.scale_shift(x, None, p)[0, :, 0].tolist() == [1, 1, 1, 5, 5, 5]


def test_rope_pairs():
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert sgl_kernels.apply_rope(x, cos, sin, interleaved=True).flatten().tolist() == [-2, 1, 3, 4]
    assert sgl_kernels.apply_rope(x, cos, sin).flatten().tolist() == [-3, 2, 1, 4]


def test_qk_norm_rope_equals_the_parts():
    q, k, w = torch.randn(2, 9, 4, 32), torch.randn(2, 9, 2, 32), torch.rand(32)
    angle = torch.randn(9, 16)
    got_q, got_k = sgl_kernels.qk_norm_rope(q, k, w, None, angle.cos(), angle.sin(), interleaved=True)
    close(
        got_q, sgl_kernels.apply_rope(sgl_kernels.rms_norm(q, w), angle.cos(), angle.sin(), interleaved=True)
    )
    close(got_k, sgl_kernels.apply_rope(sgl_kernels.rms_norm(k), angle.cos(), angle.sin(), interleaved=True))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_attention_on_drawn_calls_equals_the_reference_in_float64(data):
    draw = data.draw
    b, hk, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sq, sk, d = draw(st.integers(1, 20)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q = torch.randn(b, sq, hk * group, d, generator=generator)
    k, v = (torch.randn(b, sk, hk, d, generator=generator) for _ in range(2))
    mask = None
    if draw(st.booleans()):
        shape = [draw(st.sampled_from([1, n])) for n in (b, hk * group, sq, sk)]
        mask = torch.rand(shape, generator=generator) < 0.7
        if draw(st.booleans()):
            mask = torch.randn(shape, generator=generator).masked_fill(~mask, float("-inf"))
    kw = dict(
        attn_mask=mask,
        is_causal=draw(st.booleans()),
        causal_alignment=draw(st.sampled_from(["bottom_right", "top_left"])),
        scale=draw(st.sampled_from([None, 0.0, 0.5, -1.0])),
    )
    window = draw(st.sampled_from([(-1, -1), (3, -1), (0, 2), (-1, 5)]))
    got = sgl_kernels.attention(q, k, v, window_size=window, **kw)
    wide = {**kw, "attn_mask": mask.double() if mask is not None and mask.is_floating_point() else mask}
    want = reference.attention(
        q.double(), k.double(), v.double(), window_left=window[0], window_right=window[1], **wide
    )
    close(got, want, 1e-4)
