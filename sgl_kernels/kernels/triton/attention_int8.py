"""Attention with int8 scores (LOSSY): K loses its mean, Q and K go to int8 by scale, weights and V stay 16-bit.

Softmax does not see a constant added to a row of scores, and q . mean(K) is one: taking the mean out of K costs no
accuracy and removes the channel outliers that would otherwise eat the int8 range. One scale for each query row and one
for each block of keys; the product is exact in int32. Soft caps do see the constant, so they are refused upstream.
The caller's tensors are read only: what is quantised is a copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import attention as exact
from .common import unit_last
from .configs import AttentionConfig


@triton.jit
def quantize_kernel(
    X, MEAN, OUT, SCALE, seq, heads, stride_b, stride_n, stride_h, scales_per_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, CENTRE: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of one head to int8 at amax / 127, one scale for each row or one for all of them."""
    blocks = tl.cdiv(seq, ROWS)
    block = tl.program_id(0) % blocks
    pair = tl.program_id(0) // blocks
    batch, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    ok = (row < seq)[:, None] & (dims < D)[None, :]
    row64 = row.to(tl.int64)[:, None]
    x = tl.load(X + batch * stride_b + head * stride_h + row64 * stride_n + dims[None, :], mask=ok, other=0.0)
    x = x.to(tl.float32)
    if CENTRE:
        mean = tl.load(MEAN + pair.to(tl.int64) * D + dims, mask=dims < D, other=0.0)
        x = tl.where(ok, x - mean[None, :], 0.0)
    largest = tl.max(tl.abs(x), 1)
    if not PER_ROW:
        largest = tl.zeros((ROWS,), tl.float32) + tl.max(largest, 0)
    scale = tl.maximum(largest, 1e-30) / 127.0
    level = x / scale[:, None]
    level = tl.where(level < 0.0, level - 0.5, level + 0.5)  # the cast truncates: away from zero at ties
    out = OUT + ((batch * seq + row64) * heads + head) * D + dims[None, :]
    tl.store(out, level.to(tl.int8), mask=ok)
    places = SCALE + pair.to(tl.int64) * scales_per_head
    if PER_ROW:
        tl.store(places + row, scale, mask=row < seq)
    else:
        tl.store(places + block, tl.max(scale, 0))


def _quantize(
    x: torch.Tensor, mean: torch.Tensor | None, rows: int, per_row: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 copy in BSHD, fp32 scales (B, H, S) or (B, H, blocks))."""
    x = unit_last(x)
    batch, seq, heads, head_dim = x.shape
    blocks = triton.cdiv(seq, rows)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty((batch, heads, seq if per_row else blocks), dtype=torch.float32, device=x.device)
    if out.numel():
        quantize_kernel[(batch * heads * blocks,)](
            x, scales if mean is None else mean, out, scales, seq, heads, *x.stride()[:3], scales.shape[-1],
            D=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), ROWS=rows, CENTRE=mean is not None,
            PER_ROW=per_row, num_warps=4,
        )  # fmt: skip
    return out, scales


def attention_int8(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    causal_alignment: str,
    scale: float | None,
    window_left: int,
    window_right: int,
    config: AttentionConfig,
) -> torch.Tensor:
    """Dense attention on BSHD tensors with int8 scores; `v` keeps its 16-bit type. Never writes to q, k or v."""
    if attn_mask is not None or is_causal or window_left >= 0 or window_right >= 0:
        # A key that is not finite would spoil the mean and the scale of its block for every row. Bytes cannot carry
        # it, so its value does: the kernel keeps that from rows that do not see the key.
        bad = ~k.isfinite().all(-1, keepdim=True)
        k, v = k.masked_fill(bad, 0.0), v.masked_fill(bad, float("nan"))
    mean = k.mean(dim=1, dtype=torch.float32).contiguous() if k.shape[1] else None
    q8, q_scale = _quantize(q, None, 32, True)
    k8, k_scale = _quantize(k, mean, config.block_n, False)
    out, _ = exact.attention(
        q8, k8, v, attn_mask=attn_mask, is_causal=is_causal, causal_alignment=causal_alignment, scale=scale,
        window_left=window_left, window_right=window_right, softcap=0.0, write_lse=False, config=config,
        int8_scales=(q_scale, k_scale),
    )  # fmt: skip
    return out
