"""The definition of attention, in plain torch at float32 or, for float64 inputs, float64.

Which keys a row sees is decided by flags and masks alone: False in a bool mask, -inf in a float one, the causal order,
the window. What stands in a key that a row does not see reaches neither its result nor any gradient, be it NaN.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

INF = float("inf")


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
    """
    if not is_causal and window_left < 0 and window_right < 0:
        return None
    # A reach of Sq + Sk is unlimited: clamped before it meets a position, because sys.maxsize would wrap there.
    left, right = min(window_left, sq + sk), min(window_right, sq + sk)
    i = torch.arange(start, sq if stop is None else stop, device=device)[:, None]
    j = torch.arange(sk, device=device)[None, :]
    diagonal = i + (sk - sq)
    keep = torch.ones(i.shape[0], sk, dtype=torch.bool, device=device)
    if is_causal:
        keep &= j <= (diagonal if causal_alignment == "bottom_right" else i)
    if left >= 0:
        keep &= j >= diagonal - left
    if right >= 0:
        keep &= j <= diagonal + right
    return keep


def hidden_of(mask: Tensor | None, keep: Tensor | None) -> Tensor | None:
    """What a mask and the flags hide: bool, True = hidden, broadcastable to the scores; None when nothing."""
    hidden = None if keep is None else ~keep
    if mask is not None:
        masked = ~mask if mask.dtype is torch.bool else mask == -INF
        hidden = masked if hidden is None else hidden | masked
    return hidden


def softmax_parts(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, their sum, lse) of each row: exp(score - largest), so that no size of the scores can unbalance them.

    The largest is subtracted as a constant: neither quotient nor lse depends on it, so gradients are the exact ones.
    Rows of -inf have weights of 0, a sum of 1 to divide by, and an lse of -inf.
    """
    peak = scores.detach().amax(-1, keepdim=True)
    empty = peak == -INF
    level = peak.masked_fill(empty, 0.0)
    weights = torch.exp(scores - level)
    total = weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    return weights, total, (level + torch.log(total)).masked_fill(empty, -INF)[..., 0]


def _seen(weights: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """weights @ v, where a hidden entry of v is no factor at all: 0 * NaN is NaN, and 0 * inf too."""
    finite = weights @ v.masked_fill(~v.isfinite(), 0.0)
    shown = (~hidden).to(v.dtype).expand(weights.shape)
    above, below = (shown @ (v.isnan() | (v == limit)).to(v.dtype) > 0 for limit in (INF, -INF))
    zero = torch.zeros_like(finite)
    return finite + (zero.masked_fill(above, INF) + zero.masked_fill(below, -INF))


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
    if kh.shape[2] == 0:
        nothing = qh.sum(-1, keepdim=True) + kh.sum() + vh.sum()
        nothing = nothing.masked_fill(torch.ones_like(nothing, dtype=torch.bool), 0.0)
        out = nothing.expand(*qh.shape[:-1], v.shape[-1])
        return out.transpose(1, 2).to(q.dtype), qh.new_full(qh.shape[:-1], -INF)
    keep = visible(q.shape[1], k.shape[1], is_causal, causal_alignment, window_left, window_right, q.device)
    hidden = hidden_of(attn_mask, keep)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if hidden is None:
        scores = qh @ kh.transpose(-1, -2) * factor
    else:
        # The gradient of q is a sum over keys, hidden ones with a factor of 0, and that of k one over rows: what is
        # not finite there would turn them into NaN. So it takes part in the scores, but not in their gradient.
        qh = qh.masked_fill(hidden.all(-1, keepdim=True), 0.0)
        bad = ~kh.isfinite().all(-1)[:, :, None]
        scores = qh @ kh.masked_fill(~kh.isfinite(), 0.0).transpose(-1, -2) * factor
        scores = torch.where(bad, (qh @ kh.transpose(-1, -2)).detach() * factor, scores)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if attn_mask is not None and attn_mask.dtype is not torch.bool:
        scores = scores + attn_mask.to(wide)
    # What falls below the type is not hidden: a row of finfo.min alone is the mean of its values.
    scores = scores.clamp(min=torch.finfo(wide).min)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -INF)
    weights, total, lse = softmax_parts(scores)
    out = (weights @ vh if hidden is None else _seen(weights, vh, hidden)) / total
    return out.transpose(1, 2).to(q.dtype), lse


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
    """Each sequence on its own; tokens behind the last one are zero."""
    spans, end = sequences(cu_seqlens_q, cu_seqlens_k, q, k, max_seqlen_q, max_seqlen_k)
    outs = [
        attention(
            q[None, a:b], k[None, c:d], v[None, c:d], None, is_causal, "bottom_right", scale, window_left,
            window_right, softcap,
        )[0]
        for a, b, c, d in spans
    ]  # fmt: skip
    return torch.cat([*outs, q.new_zeros((q.shape[0] - end, q.shape[1], v.shape[-1]))])


def sequences(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, q: Tensor, k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    op: str = "attention_varlen",
) -> tuple[list[tuple[int, int, int, int]], int]:  # fmt: skip
    """(begin and end of the queries and of the keys of each packed sequence, where the last one's queries end).

    Raises ValueError unless the prefix sums fit the tokens there are and the longest lengths that were promised.
    Reading them waits for the device, so on an accelerator only those call it who have to read them anyway.
    """
    found = []
    for side, cu_seqlens, tokens, longest in (
        ("q", cu_seqlens_q, q.shape[0], max_seqlen_q),
        ("k", cu_seqlens_k, k.shape[0], max_seqlen_k),
    ):
        sums: list[int] = cu_seqlens.tolist()
        name = f"{op}: cu_seqlens_{side}"
        if sums[0] != 0:
            raise ValueError(f"{name} starts with {sums[0]}, expected 0")
        for a, b in pairwise(sums):
            if b < a:
                raise ValueError(f"{name} falls from {a} to {b}, expected prefix sums that never fall")
            if b - a > longest:
                raise ValueError(
                    f"{name} has a sequence of {b - a} tokens, but max_seqlen_{side} is {longest}; "
                    "pass the longest length, or more"
                )
        if sums[-1] > tokens:
            raise ValueError(f"{name} ends at {sums[-1]}, expected at most the {tokens} tokens of {side}")
        found.append(sums)
    queries, keys = found
    return [(*a, *b) for a, b in zip(pairwise(queries), pairwise(keys), strict=True)], queries[-1]
