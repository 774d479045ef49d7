"""Rotary embedding, alone or after the per-head RMS norm of q and k, interleaved or half-split, partial too."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, narrow, unit_last
from .configs import TileConfig


@triton.jit
def _rotate_rows(
    X, WEIGHT_PTR, COS, SIN, OUT, block, rows, seq, heads, x_batch, x_seq, x_head, table_batch, table_seq, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, INTERLEAVED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS heads: 2 * HALF leading channels rotate, the rest pass; with NORM each row is normalised first."""
    row = block * ROWS + tl.arange(0, ROWS)
    live = (row < rows)[:, None]
    token = row // heads
    batch, place = (token // seq).to(tl.int64), (token % seq).to(tl.int64)
    x_row = (X + batch * x_batch + place * x_seq + (row % heads).to(tl.int64) * x_head)[:, None]
    out_row = (OUT + row.to(tl.int64) * DIM)[:, None]
    dtype: tl.constexpr = OUT.dtype.element_ty
    square = tl.zeros((ROWS,), tl.float32)
    if HALF > 0:
        pair = tl.arange(0, HALF_BLOCK)
        ok = live & (pair < HALF)[None, :]
        if INTERLEAVED:
            # One contiguous load of both members; split and join stay in registers.
            both = tl.arange(0, 2 * HALF_BLOCK)[None, :]
            x = tl.load(x_row + both, mask=live & (both < 2 * HALF), other=0.0).to(tl.float32)
            a, b = tl.split(tl.reshape(x, (ROWS, HALF_BLOCK, 2)))
        else:
            a = tl.load(x_row + pair[None, :], mask=ok, other=0.0).to(tl.float32)
            b = tl.load(x_row + HALF + pair[None, :], mask=ok, other=0.0).to(tl.float32)
        if NORM:
            square += tl.sum(a * a + b * b, 1)
    if REST_BLOCK > 0:
        rest = 2 * HALF + tl.arange(0, REST_BLOCK)
        kept = live & (rest < DIM)[None, :]
        tail = tl.load(x_row + rest[None, :], mask=kept, other=0.0).to(tl.float32)
        if NORM:
            square += tl.sum(tail * tail, 1)
    if NORM:
        inverse = tl.rsqrt(square / DIM + eps)[:, None]
    if HALF > 0:
        if NORM:
            a, b = a * inverse, b * inverse
        if WEIGHT:
            step: tl.constexpr = 2 if INTERLEAVED else 1
            other: tl.constexpr = 1 if INTERLEAVED else HALF
            inside = pair < HALF
            a *= tl.load(WEIGHT_PTR + pair * step, mask=inside, other=0.0).to(tl.float32)[None, :]
            b *= tl.load(WEIGHT_PTR + pair * step + other, mask=inside, other=0.0).to(tl.float32)[None, :]
        entry = (batch * table_batch + place * table_seq)[:, None] + pair[None, :]
        cos = tl.load(COS + entry, mask=ok, other=0.0).to(tl.float32)
        sin = tl.load(SIN + entry, mask=ok, other=0.0).to(tl.float32)
        left = a * cos - b * sin
        right = a * sin + b * cos
        if INTERLEAVED:
            joined = tl.reshape(tl.join(left, right), (ROWS, 2 * HALF_BLOCK))
            tl.store(out_row + both, narrow(joined, dtype, UPCAST), mask=live & (both < 2 * HALF))
        else:
            tl.store(out_row + pair[None, :], narrow(left, dtype, UPCAST), mask=ok)
            tl.store(out_row + HALF + pair[None, :], narrow(right, dtype, UPCAST), mask=ok)
    if REST_BLOCK > 0:
        if NORM:
            tail = tail * inverse
        if WEIGHT:
            tail *= tl.load(WEIGHT_PTR + rest, mask=rest < DIM, other=0.0).to(tl.float32)[None, :]
        tl.store(out_row + rest[None, :], narrow(tail, dtype, UPCAST), mask=kept)


@triton.jit
def rope_kernel(
    Q, K, Q_WEIGHT, K_WEIGHT, COS, SIN, Q_OUT, K_OUT, q_rows, k_rows, seq, q_heads, k_heads,
    q_batch, q_seq, q_head, k_batch, k_seq, k_head, table_batch, table_seq, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, HALF_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    NORM: tl.constexpr, Q_WEIGHTED: tl.constexpr, K_WEIGHTED: tl.constexpr, INTERLEAVED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The rows of q, then those of k, in one launch; without k its row count is 0."""
    block = tl.program_id(0)
    q_blocks = tl.cdiv(q_rows, ROWS)
    if block < q_blocks:
        _rotate_rows(
            Q, Q_WEIGHT, COS, SIN, Q_OUT, block, q_rows, seq, q_heads, q_batch, q_seq, q_head,
            table_batch, table_seq, eps,
            DIM, HALF, ROWS, HALF_BLOCK, REST_BLOCK, NORM, Q_WEIGHTED, INTERLEAVED, UPCAST,
        )  # fmt: skip
    else:
        _rotate_rows(
            K, K_WEIGHT, COS, SIN, K_OUT, block - q_blocks, k_rows, seq, k_heads, k_batch, k_seq, k_head,
            table_batch, table_seq, eps,
            DIM, HALF, ROWS, HALF_BLOCK, REST_BLOCK, NORM, K_WEIGHTED, INTERLEAVED, UPCAST,
        )  # fmt: skip


def apply_rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, *, config: TileConfig
) -> torch.Tensor:
    """Pairs (a, b) of the leading channels of x (B, S, H, D) become (a cos - b sin, a sin + b cos)."""
    return _launch(x, None, None, None, cos, sin, 0.0, interleaved, False, config)[0]


def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
    interleaved: bool,
    *,
    config: TileConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm of q and k over each head, then rope (none when cos is None), one rounding, one launch."""
    q_out, k_out = _launch(q, k, q_weight, k_weight, cos, sin, eps, interleaved, True, config)
    return q_out, k_out


def _launch(
    q: torch.Tensor,
    k: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    eps: float,
    interleaved: bool,
    norm: bool,
    config: TileConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rotated q, rotated k); without k the second is the first."""
    q = unit_last(q)
    k = q if k is None else unit_last(k)
    single = k is q and not norm
    q_out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k_out = q_out if single else torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if q_out.numel() == 0 and k_out.numel() == 0:
        return q_out, k_out
    dim = q.shape[-1]
    half, table_batch, table_seq = 0, 0, 0
    if cos is not None and sin is not None:
        half = cos.shape[-1]
        cos, sin = cos.contiguous(), sin.contiguous()
        table_batch = cos.stride(0) if cos.ndim == 3 and cos.shape[0] > 1 else 0
        table_seq = half
    half_block = triton.next_power_of_2(max(half, 1))
    rest_block = triton.next_power_of_2(dim - 2 * half) if dim > 2 * half else 0
    rows, _ = config.shape(2 * half_block * (half > 0) + rest_block)
    q_rows, k_rows = q.numel() // dim, 0 if single else k.numel() // dim
    rope_kernel[(triton.cdiv(q_rows, rows) + triton.cdiv(k_rows, rows),)](
        q, k, q if q_weight is None else q_weight.contiguous(), k if k_weight is None else k_weight.contiguous(),
        q if cos is None else cos, q if sin is None else sin, q_out, k_out, q_rows, k_rows, q.shape[1],
        q.shape[2], k.shape[2], *q.stride()[:3], *k.stride()[:3], table_batch, table_seq, eps,
        DIM=dim, HALF=half, ROWS=rows, HALF_BLOCK=half_block, REST_BLOCK=rest_block, NORM=norm,
        Q_WEIGHTED=q_weight is not None, K_WEIGHTED=k_weight is not None, INTERLEAVED=interleaved,
        UPCAST=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip
    return q_out, k_out
