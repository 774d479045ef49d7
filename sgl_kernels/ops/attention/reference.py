"""The definition of attention, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    sq: int,
    sk: int,
    is_causal: bool,
    causal_alignment: str,
    window_left: int,
    window_right: int,
    device: torch.device,
    start: int = 0,
    stop: int | None = None,
) -> Tensor | None:
    """Which keys the flags let query rows start..stop see: bool (rows, Sk), or None when all.

    Key j is visible to query i if j <= i + Sk - Sq (bottom-right causal), j <= i (top-left causal), and
    i + Sk - Sq - left <= j <= i + Sk - Sq + right for a window side that is not -1.
    """  # fmt: skip
    if not is_causal and window_left < 0 and window_right < 0:
        return None
    i = torch.arange(start, sq if stop is None else stop, device=device)[:, None]
    j = torch.arange(sk, device=device)[None, :]
    diagonal = i + (sk - sq)
    keep = torch.ones(i.shape[0], sk, dtype=torch.bool, device=device)
    if is_causal:
        keep &= j <= (diagonal if causal_alignment == "bottom_right" else i)
    if window_left >= 0:
        keep &= j >= diagonal - window_left
    if window_right >= 0:
        keep &= j <= diagonal + window_right
    return keep


def attention_lse(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    causal_alignment: str = "bottom_right", scale: float | None = None, window_left: int = -1,
    window_right: int = -1, softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out in q's dtype, lse). lse is float32, or float64 for float64 inputs."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[2] // k.shape[2] if k.shape[2] else 1
    qh = q.to(wide).transpose(1, 2)
    kh = k.to(wide).transpose(1, 2).repeat_interleave(group, dim=1)
    vh = v.to(wide).transpose(1, 2).repeat_interleave(group, dim=1)
    scores = qh @ kh.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask.to(wide)
    keep = visible(q.shape[1], k.shape[1], is_causal, causal_alignment, window_left, window_right, q.device)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.softmax(scores, dim=-1)
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)  # no key to attend to: softmax gives 0/0
    weights = weights.masked_fill(empty, 0.0)
    return (weights @ vh).transpose(1, 2).to(q.dtype), lse


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    causal_alignment: str = "bottom_right", scale: float | None = None, window_left: int = -1,
    window_right: int = -1, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + mask) v."""
    return attention_lse(
        q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap
    )[0]


def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, is_causal: bool = False, scale: float | None = None, window_left: int = -1,
    window_right: int = -1, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """Each sequence on its own."""
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        if b > a:
            out[a:b] = attention(
                q[None, a:b], k[None, c:d], v[None, c:d], None, is_causal, "bottom_right", scale, window_left,
                window_right, softcap,
            )[0]  # fmt: skip
    return out
