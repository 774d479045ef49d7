"""Drop-ins with other libraries' signatures and meanings: torch's SDPA (sdpa.py) and FlashAttention's two functions."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernels.ops.attention.api import attention, attention_lse, attention_varlen
from sgl_kernels.ops.attention.sdpa import _torch_sdpa as _torch_sdpa
from sgl_kernels.ops.attention.sdpa import scaled_dot_product_attention as scaled_dot_product_attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """FlashAttention's flash_attn_func, served by the registry.

    Layout (B, S, H, D), causal aligned bottom-right. return_attn_probs gives (out, lse, None): the
    probabilities exist only with dropout, for testing. `deterministic` concerns FlashAttention's backward;
    gradients here come from the torch floor, so it changes nothing.

    Raises ValueError for dropout_p > 0, which no inference backend offers.
    """
    _refuse_dropout("flash_attn_func", dropout_p)
    mask = _alibi(alibi_slopes, q.shape[1], k.shape[1])
    left, right = window_size
    if return_attn_probs:
        out, lse = attention_lse(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            scale=softmax_scale,
            window_size=(left, right),
            softcap=softcap,
        )
        return out, lse, None
    return attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=softmax_scale,
        window_size=(left, right),
        softcap=softcap,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """FlashAttention's flash_attn_varlen_func, served by the registry.

    Layout (total_tokens, H, D). With alibi_slopes or return_attn_probs each sequence is served on its own;
    the lse is (H, total_tokens). Raises ValueError for dropout_p > 0 and for block_table (a paged cache).
    """
    _refuse_dropout("flash_attn_varlen_func", dropout_p)
    if block_table is not None:
        raise ValueError(
            "flash_attn_varlen_func: block_table is given; a paged cache is not served, pass packed k, v"
        )
    if alibi_slopes is None and not return_attn_probs:
        return attention_varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            is_causal=causal, scale=softmax_scale, window_size=window_size, softcap=softcap,
        )  # fmt: skip
    outs, lses = [], []
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i, (a, b, c, d) in enumerate(zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)):
        slopes = (
            alibi_slopes[i : i + 1] if alibi_slopes is not None and alibi_slopes.ndim == 2 else alibi_slopes
        )
        out, lse = attention_lse(
            q[None, a:b], k[None, c:d], v[None, c:d], attn_mask=_alibi(slopes, b - a, d - c),
            is_causal=causal, scale=softmax_scale, window_size=window_size, softcap=softcap,
        )  # fmt: skip
        outs.append(out[0])
        lses.append(lse[0])
    joined = torch.cat(outs)
    return (joined, torch.cat(lses, dim=1), None) if return_attn_probs else joined


def _refuse_dropout(name: str, dropout_p: float) -> None:
    if dropout_p:
        raise ValueError(
            f"{name}: dropout_p is {dropout_p}, expected 0.0; call torch's SDPA for training with dropout"
        )


def _alibi(slopes: Tensor | None, sq: int, sk: int) -> Tensor | None:
    """ALiBi as an additive mask: -slope * |i + Sk - Sq - j|; slopes (H,) or (B, H), float32."""
    if slopes is None:
        return None
    i = torch.arange(sq, device=slopes.device)[:, None] + (sk - sq)
    distance = (i - torch.arange(sk, device=slopes.device)[None, :]).abs()
    per_head = slopes.float()[..., None, None] * -distance
    return per_head if per_head.ndim == 4 else per_head[None]
