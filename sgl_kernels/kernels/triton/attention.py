"""Launchers of the flash attention kernel: dense BSHD, and packed sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from .attention_kernel import BOOL_MASK, BOTTOM_RIGHT, FLOAT_MASK, NO_MASK, TOP_LEFT, attention_kernel
from .common import INTERPRETED, LOG2E, unit_last
from .configs import AttentionConfig

MAX_STRIDE = 2**22
"""Offsets inside a tile (up to 256 rows) are 32-bit, where a tile starts is 64-bit: rows farther apart are copied."""


def _near(x: torch.Tensor) -> torch.Tensor:
    return unit_last(x) if x.stride(1) <= MAX_STRIDE else x.contiguous()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What differs between the dense and the packed launch."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    cu_q: torch.Tensor | None = None
    cu_k: torch.Tensor | None = None
    tokens: int = 0


def attention(
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
    softcap: float,
    write_lse: bool,
    config: AttentionConfig,
    int8_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention on BSHD tensors: (out, lse or None). `int8_scales` (of q, of k) when q and k are int8."""
    batch, seq_q, heads, head_dim = q.shape
    _, seq_k, kv_heads, head_dim_v = v.shape
    out = torch.empty(
        (batch, seq_q, heads, head_dim_v), dtype=v.dtype if int8_scales else q.dtype, device=q.device
    )
    lse = torch.empty((batch, heads, seq_q), dtype=torch.float32, device=q.device) if write_lse else None
    if attn_mask is not None:
        far = attn_mask.ndim > 1 and max(attn_mask.stride()[-2:]) > MAX_STRIDE
        attn_mask = attn_mask.contiguous() if far else attn_mask
        attn_mask = attn_mask.expand(batch, heads, seq_q, seq_k)
    causal = (BOTTOM_RIGHT if causal_alignment == "bottom_right" else TOP_LEFT).value if is_causal else 0
    scale = head_dim**-0.5 if scale is None else scale
    shape = _Shape(batch, heads, kv_heads, seq_q, seq_k)
    _launch(
        q,
        k,
        v,
        out,
        lse,
        attn_mask,
        shape,
        causal,
        scale,
        window_left,
        window_right,
        softcap,
        config,
        int8_scales,
    )
    return out, lse


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool,
    scale: float | None,
    window_left: int,
    window_right: int,
    softcap: float,
    config: AttentionConfig,
) -> torch.Tensor:
    """Packed sequences, THD: causal and window align each sequence at its own bottom right.

    Rows behind the last sequence, and those a too small max_seqlen_q leaves without a program, are zero.
    """
    tokens, heads, head_dim = q.shape
    out = torch.empty((tokens, heads, v.shape[-1]), dtype=q.dtype, device=q.device)
    scale = head_dim**-0.5 if scale is None else scale
    shape = _Shape(
        cu_seqlens_q.numel(), heads, k.shape[1], min(max_seqlen_q, tokens), min(max_seqlen_k, k.shape[0]),
        cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), tokens,
    )  # fmt: skip
    packed = (t.unsqueeze(0) for t in (q, k, v, out))
    q, k, v, destination = packed
    causal = BOTTOM_RIGHT.value if is_causal else 0
    _launch(
        q,
        k,
        v,
        destination,
        None,
        None,
        shape,
        causal,
        scale,
        window_left,
        window_right,
        softcap,
        config,
        None,
    )
    return out


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    attn_mask: torch.Tensor | None,
    shape: _Shape,
    causal: int,
    scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
    config: AttentionConfig,
    int8_scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Writes `out` and `lse`: one launch, or none for an empty result."""
    if out.numel() == 0 and (lse is None or lse.numel() == 0):
        return
    q, k, v = _near(q), _near(k), _near(v)
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    mask_kind = NO_MASK.value
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)
    if attn_mask is not None:
        mask_kind = (BOOL_MASK if attn_mask.dtype == torch.bool else FLOAT_MASK).value
        attn_mask = attn_mask.view(torch.uint8) if attn_mask.dtype == torch.bool else attn_mask
        mask_strides = attn_mask.stride()
    # The kernel multiplies once: by scale for natural units, by scale * log2(e) for units of log2; a soft cap
    # divides first, and its own factor carries the unit instead.
    unit = 1.0 if mask_kind == FLOAT_MASK.value else LOG2E.value
    factor = abs(scale) / softcap if softcap else abs(scale) * unit
    placeholder = q
    q_scale, k_scale = int8_scales or (placeholder, placeholder)
    blocks = max(1, triton.cdiv(shape.seq_q, config.block_m))
    # A reach of Sq + Sk is unlimited: clamped before it becomes a 32-bit number and meets positions.
    reach = max(shape.tokens, shape.seq_q) + k.shape[1]
    window_left, window_right = min(window_left, reach), min(window_right, reach)
    attention_kernel[(blocks * shape.heads * shape.batch,)](
        q, k, v, placeholder if attn_mask is None else attn_mask, out, out if lse is None else lse,
        placeholder if shape.cu_q is None else shape.cu_q, placeholder if shape.cu_k is None else shape.cu_k,
        q_scale, k_scale,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *mask_strides,
        shape.heads, shape.heads // shape.kv_heads, shape.seq_q, shape.seq_k, shape.tokens, window_left,
        window_right, factor, softcap * unit,
        D=head_dim, DV=head_dim_v,
        BLOCK_D=max(32 if int8_scales else 16, triton.next_power_of_2(head_dim)),
        BLOCK_DV=max(16, triton.next_power_of_2(head_dim_v)),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, CAUSAL=causal, LEFT=window_left >= 0, RIGHT=window_right >= 0,
        MASK=mask_kind, SOFTCAP=softcap != 0.0, NEGATE=scale < 0, VARLEN=shape.cu_q is not None,
        WRITE_LSE=lse is not None, INT8=int8_scales is not None, FP32_DOT=config.fp32_dot, UPCAST=INTERPRETED,
        GUARD=config.guards_v,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
