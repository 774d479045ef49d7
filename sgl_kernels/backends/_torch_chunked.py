"""Exact attention out of plain torch operations, in query chunks of bounded memory: the floor under torch's kernels.

Every row is exp(score - largest) over its sum. Three ways to keep what stands in hidden keys away from other rows:
nothing to do where nothing is hidden or, on the CPU, a look found all of it finite; the definition itself, chunk by
chunk, where that look found something; and on devices and under transforms, where nobody may look, a way without
branches, which makes of a visible key that is not finite a row of NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgl_kernels.backends._torch_checks import INF, largest, may_look, watching
from sgl_kernels.ops.attention import reference

SCORE_BUDGET_BYTES = 128 << 20
"""The math path may hold this much of fp32 scores at once; more is computed in query chunks. Four such buffers
live at the peak: 8 heads of 6144 x 6144, 1.1 GiB of scores, grow the process by about 0.5 GiB."""
MPS_LIMIT = 2**31
"""A score matrix of this many elements is silently wrong on MPS (ComfyUI issue 14837)."""


def chunked(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, lse), GQA without copies. Softmax runs over whole rows, so chunking the queries changes no result."""
    batch, sq, heads, _ = q.shape
    sk = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = max(1, min(sq, _chunk_bytes(q) // max(1, batch * heads * sk * wide.itemsize)))
    hides = attn_mask is not None or is_causal or window_left >= 0 or window_right >= 0
    grad = watching(q, k, v, attn_mask)
    chunk: Callable[..., tuple[Tensor, Tensor]] = _plain_chunk
    if hides and not may_look(q, k, v, attn_mask):
        chunk = _blind_chunk
    elif hides and not all(largest(t) < INF for t in ((q, k, v) if grad else (k, v))):
        chunk = _defined_chunk
    mask = None
    if attn_mask is not None:
        mask = attn_mask.expand(batch, heads, sq, sk)
    parts = []
    for start in range(0, sq, rows):
        stop = min(sq, start + rows)
        keep = reference.visible(
            sq, sk, is_causal, causal_alignment, window_left, window_right, q.device, start, stop
        )
        part = None if mask is None else mask[:, :, start:stop]
        parts.append(chunk(q[:, start:stop], k, v, part, keep, scale, softcap))
    if len(parts) == 1:
        return parts[0]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 2)


def _chunk_bytes(q: Tensor) -> int:
    return min(SCORE_BUDGET_BYTES, (MPS_LIMIT - 1) * 2) if q.device.type == "mps" else SCORE_BUDGET_BYTES


def _defined_chunk(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor | None, scale: float | None, softcap: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, which says for every entry that is not finite which rows it reaches."""
    if keep is not None:
        mask = keep if mask is None else both(mask, keep)
    return reference.attention_lse(q, k, v, mask, False, "bottom_right", scale, -1, -1, softcap)


def _blind_chunk(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor | None, scale: float | None, softcap: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Keys that are not finite, in K or in V, become zeros, and NaN in the scores of the rows that see them."""
    bad = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
    k, v = (t.masked_fill(bad[..., None], 0.0) for t in (k, v))
    poison = torch.zeros_like(bad, dtype=torch.promote_types(q.dtype, torch.float32)).masked_fill(
        bad, float("nan")
    )
    return _plain_chunk(q, k, v, mask, keep, scale, softcap, poison)


def _plain_chunk(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor | None, scale: float | None, softcap: float,
    poison: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    heads, kv_heads = q.shape[2], k.shape[2]
    split = (kv_heads, heads // kv_heads)
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    hidden = reference.hidden_of(mask, keep)
    if hidden is not None:
        hidden = hidden.unflatten(1, split) if hidden.ndim == 4 else hidden
    # (B, Hk, G, S, D): a key head serves its G query heads by broadcasting
    qh = (q.to(wide) * factor).transpose(1, 2).unflatten(1, split)
    if (
        poison is not None and hidden is not None
    ):  # a NaN query that sees no key: 0 * NaN in the gradient of k
        qh = qh.masked_fill(hidden.all(-1, keepdim=True), 0.0)
    kt = k.to(wide).permute(0, 2, 3, 1)[:, :, None]
    vh = v.to(wide).transpose(1, 2)[:, :, None]
    scores = qh @ kt
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if poison is not None:
        scores = scores + poison.transpose(1, 2)[:, :, None, None]
    if mask is not None and mask.dtype is not torch.bool:
        scores = scores + mask.unflatten(1, split).to(wide)
    # What falls below the type is not hidden: a row of finfo.min alone is the mean of its values.
    scores = scores.clamp(min=torch.finfo(wide).min)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -INF)
    weights, total, lse = reference.softmax_parts(scores)
    out = (weights @ vh) / total
    return out.flatten(1, 2).transpose(1, 2).to(q.dtype), lse.flatten(1, 2)


def both(mask: Tensor, keep: Tensor | None) -> Tensor:
    """A mask that also hides what `keep` (bool, True = visible) does not show."""
    if keep is None:
        return mask
    return mask & keep if mask.dtype is torch.bool else mask.masked_fill(~keep, -INF)
