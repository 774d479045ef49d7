"""The attention kernel against a float64 oracle: random calls, then one test for each promise."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from sgl_kernels.kernels.triton.attention import attention, attention_varlen
from sgl_kernels.kernels.triton.attention_int8 import attention_int8
from sgl_kernels.kernels.triton.configs import AttentionConfig

SMALL = AttentionConfig(32, 32, 4, 1)
UNEVEN = AttentionConfig(64, 16, 4, 1)
BASE = {
    "attn_mask": None, "is_causal": False, "causal_alignment": "bottom_right", "scale": None, "window_left": -1,
    "window_right": -1, "softcap": 0.0,
}  # fmt: skip
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}


def oracle(q, k, v, *, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap):
    """(out, lse) by the definition, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    (_, sq, heads, dim), sk = q.shape, k.shape[1]
    group = heads // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (dim**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i, j, shift = torch.arange(sq)[:, None], torch.arange(sk)[None], sk - sq
    visible = torch.ones(sq, sk, dtype=torch.bool)
    if is_causal:
        visible &= j <= i + (shift if causal_alignment == "bottom_right" else 0)
    if window_left >= 0:
        visible &= j >= i + shift - window_left
    if window_right >= 0:
        visible &= j <= i + shift + window_right
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask.double()
    scores = scores.masked_fill(~visible, -math.inf)
    peak = scores.amax(-1, keepdim=True) if sk else scores.new_full((*scores.shape[:-1], 1), -math.inf)
    peak = peak.masked_fill(peak == -math.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    lse = (peak + torch.log(total))[..., 0]
    return torch.einsum("bhqk,bkhd->bqhd", weights / total.clamp_min(1e-300), v), lse


def compare(q: Tensor, k: Tensor, v: Tensor, config: AttentionConfig = SMALL, **changes) -> None:
    call = {**BASE, **changes}
    out, lse = attention(q, k, v, **call, write_lse=True, config=config)
    want, want_lse = oracle(q, k, v, **call)
    assert out.dtype == q.dtype and lse.dtype == torch.float32 and out.is_contiguous()
    empty = want_lse == -math.inf
    assert torch.equal(lse == -math.inf, empty)
    assert not out.transpose(1, 2)[empty].any()
    if out.numel():
        limit = TOLERANCE[q.dtype] * max(1.0, want.abs().max().item())
        assert (out.double() - want).abs().max().item() <= limit
        off = (lse.double() - want_lse)[~empty].abs() / (1 + want_lse[~empty].abs())
        assert off.numel() == 0 or off.max().item() < 4e-6


def tensors(b, sq, sk, h, hk, d, dv, dtype=torch.float32, bhsd=False):
    q = torch.randn(b, h, sq, d).to(dtype).transpose(1, 2) if bhsd else torch.randn(b, sq, h, d).to(dtype)
    return q, torch.randn(b, sk, hk, d).to(dtype), torch.randn(b, sk, hk, dv).to(dtype)


def draw_mask(pick: random.Random, b: int, h: int, sq: int, sk: int) -> Tensor | None:
    kind = pick.choice(["", "", "bool", "float"])
    shape = pick.choice([(b, h, sq, sk), (1, 1, 1, sk), (b, 1, sq, 1), (sq, sk)])
    if kind == "bool":
        return torch.rand(shape) > 0.4
    if kind == "float":
        mask = torch.randn(shape)
        mask[torch.rand(shape) > 0.7] = pick.choice([-math.inf, torch.finfo(torch.float32).min])
        return mask
    return None


@pytest.mark.parametrize("turn", range(24))
def test_random_calls(turn, seed):
    pick = random.Random(seed)
    torch.manual_seed(seed)
    b, hk = pick.choice([1, 2]), pick.choice([1, 2])
    h, sq, sk = hk * pick.choice([1, 3]), pick.choice([1, 5, 33, 70]), pick.choice([0, 1, 7, 40, 65])
    d = pick.choice([8, 24, 40, 72])
    dtype = pick.choice(list(TOLERANCE))
    compare(
        *tensors(b, sq, sk, h, hk, d, pick.choice([d, 24]), dtype, bhsd=turn % 2 == 0),
        pick.choice([SMALL, UNEVEN]),
        attn_mask=draw_mask(pick, b, h, sq, sk),
        is_causal=pick.random() < 0.4,
        causal_alignment=pick.choice(["bottom_right", "top_left"]),
        scale=pick.choice([None, 0.3, -0.2, 0.0]),
        window_left=pick.choice([-1, -1, 0, 9]),
        window_right=pick.choice([-1, -1, 0, 9]),
        softcap=pick.choice([0.0, 0.0, 2.5]),
    )


@pytest.mark.parametrize("dim, dim_v", [(160, 160), (256, 256), (192, 128), (1, 3)])
def test_head_dims(dim, dim_v):
    compare(*tensors(1, 5, 37, 2, 1, dim, dim_v, torch.float16), is_causal=True)


def test_a_nan_stays_in_its_row():
    q, k, v = tensors(1, 40, 40, 2, 2, 16, 16)
    q[0, 7, 1, 3] = math.nan
    out, lse = attention(q, k, v, **BASE, write_lse=True, config=SMALL)
    bad = out.isnan().any(-1)
    assert bad.sum() == 1 and bad[0, 7, 1]
    assert lse.isnan().sum() == 1 and lse[0, 1, 7].isnan()


def test_an_evenly_hidden_row_is_the_mean_and_an_empty_one_zero():
    q, k, v = tensors(1, 2, 40, 1, 1, 16, 16)
    mask = torch.full((2, 40), torch.finfo(torch.float32).min)
    mask[1] = -math.inf
    out, lse = attention(q, k, v, **{**BASE, "attn_mask": mask}, write_lse=True, config=SMALL)
    torch.testing.assert_close(out[0, 0, 0], v[0, :, 0].mean(0))
    assert not out[0, 1].any() and lse[0, 0, 1] == -math.inf


def test_last_dimension_may_be_strided():
    q, k, v = (torch.randn(1, 9, 2, 32)[..., ::2] for _ in range(3))
    compare(q, k, v)


@pytest.mark.parametrize("is_causal, left, softcap", [(False, -1, 0.0), (True, -1, 0.0), (True, 5, 3.0)])
def test_packed_sequences_equal_separate_ones(is_causal, left, softcap):
    lengths_q, lengths_k = [3, 0, 40, 33], [7, 5, 40, 0]
    cu_q, cu_k = (
        torch.tensor([0, *torch.tensor(n).cumsum(0)], dtype=torch.int32) for n in (lengths_q, lengths_k)
    )
    q = torch.randn(sum(lengths_q), 4, 24)
    k, v = torch.randn(sum(lengths_k), 2, 24), torch.randn(sum(lengths_k), 2, 16)
    call = {
        **BASE, "is_causal": is_causal, "window_left": left, "softcap": softcap, "scale": 0.25,
    }  # fmt: skip
    packed_call = {n: call[n] for n in call if n not in ("attn_mask", "causal_alignment")}
    out = attention_varlen(q, k, v, cu_q, cu_k, 40, 40, **packed_call, config=SMALL)
    for n in range(4):
        a, b, c, d = cu_q[n], cu_q[n + 1], cu_k[n], cu_k[n + 1]
        want, _ = oracle(q[None, a:b], k[None, c:d], v[None, c:d], **call)
        assert torch.allclose(out[a:b].double(), want[0], atol=4e-6)


@pytest.mark.parametrize("seq, stride", [(600, 2**22), (3, 2**30)])
def test_offsets_beyond_two_to_the_31(seq, stride):
    """Untouched pages cost nothing, so 5 GB of address space do. The second is copied: its rows are too far apart."""
    k = torch.empty(seq * stride + 64, dtype=torch.float16).as_strided((1, seq, 1, 16), (0, stride, 16, 1))
    k.copy_(torch.randn(k.shape))
    compare(torch.randn(1, 4, 1, 16, dtype=torch.float16), k, k)


@pytest.mark.parametrize("is_causal, scale", [(False, None), (True, 0.2), (True, -0.1)])
def test_int8_scores_are_close_and_change_no_argument(is_causal, scale):
    q, k, v = tensors(2, 45, 70, 4, 2, 40, 24, torch.float16)
    k += 5 * torch.randn(40).half()  # channel outliers: what smoothing is for
    before = [t.clone() for t in (q, k, v)]
    call = {n: x for n, x in BASE.items() if n != "softcap"}
    call |= {"is_causal": is_causal, "scale": scale}
    out = attention_int8(q, k, v, **call, config=SMALL)
    want, _ = oracle(q, k, v, **call, softcap=0.0)
    assert torch.cosine_similarity(out.double().flatten(), want.flatten(), 0) > 0.999
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))
