"""Drop-ins with the signatures and meanings of FlashAttention's two functions."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.attention.api import attention, attention_lse, attention_varlen
from sgl_kernels.ops.attention.reference import sequences
from sgl_kernels.ops.attention.spec import check_varlen


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] | None = (-1, -1),
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
    mask = None
    if alibi_slopes is not None:
        _check_slopes("flash_attn_func", alibi_slopes, q, q.shape[0])
        mask = _alibi(alibi_slopes, q.shape[1], k.shape[1])
    if return_attn_probs:
        out, lse = attention_lse(
            q, k, v, attn_mask=mask, is_causal=causal, scale=softmax_scale, window_size=window_size, softcap=softcap
        )  # fmt: skip
        return out, lse, None
    return attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=softmax_scale, window_size=window_size, softcap=softcap
    )  # fmt: skip


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
    window_size: tuple[int, int] | None = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """FlashAttention's flash_attn_varlen_func, served by the registry.

    Layout (total_tokens, H, D). With alibi_slopes or return_attn_probs each sequence is served on its own, which
    reads the lengths and so waits for the device; the lse is (H, total_tokens). Tokens behind the last sequence are
    zero rows with an lse of -inf. Raises ValueError for arguments that do not fit each other, as `attention_varlen`
    does, for dropout_p > 0 and for block_table (a paged cache).
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
    window = (-1, -1) if window_size is None else window_size
    check_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal,
        softmax_scale,
        *window,
        softcap,
    )
    if alibi_slopes is not None:
        _check_slopes("flash_attn_varlen_func", alibi_slopes, q, cu_seqlens_q.numel() - 1)
    spans, end = sequences(cu_seqlens_q, cu_seqlens_k, q, k, max_seqlen_q, max_seqlen_k)
    outs, lses = [], []
    for i, (a, b, c, d) in enumerate(spans):
        mask = None
        if alibi_slopes is not None:
            mask = _alibi(alibi_slopes[i : i + 1] if alibi_slopes.ndim == 2 else alibi_slopes, b - a, d - c)
        out, lse = attention_lse(
            q[None, a:b], k[None, c:d], v[None, c:d], attn_mask=mask, is_causal=causal, scale=softmax_scale,
            window_size=window_size, softcap=softcap,
        )  # fmt: skip
        outs.append(out[0])
        lses.append(lse[0])
    behind = q.shape[0] - end
    outs.append(q.new_zeros((behind, q.shape[1], v.shape[-1])))
    lses.append(q.new_full((q.shape[1], behind), float("-inf"), dtype=torch.float32))
    joined = torch.cat(outs)
    return (joined, torch.cat(lses, dim=1), None) if return_attn_probs else joined


def _refuse_dropout(name: str, dropout_p: float) -> None:
    if dropout_p:
        raise ValueError(
            f"{name}: dropout_p is {dropout_p}, expected 0.0; call torch's SDPA for training with dropout"
        )


def _check_slopes(name: str, slopes: Tensor, q: Tensor, batch: int) -> None:
    heads = q.shape[-2]
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"{name}: alibi_slopes has shape {list(slopes.shape)}, expected [{heads}], one slope a head, or "
            f"[{batch}, {heads}], one for each sequence too"
        )
    validate.same_device(name, q=q, alibi_slopes=slopes)


def _alibi(slopes: Tensor, sq: int, sk: int) -> Tensor:
    """ALiBi as an additive mask: -slope * |i + Sk - Sq - j|; slopes (H,) or (B, H), float32."""
    i = torch.arange(sq, device=slopes.device)[:, None] + (sk - sq)
    distance = (i - torch.arange(sk, device=slopes.device)[None, :]).abs()
    per_head = slopes.float()[..., None, None] * -distance
    return per_head if per_head.ndim == 4 else per_head[None]
