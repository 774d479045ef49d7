"""A few rows of an attention call computed exactly, to hold against what a lossy backend answered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernels.ops.attention import reference

ROWS, HEADS = 8, 8
"""Scores of 8 x 8 rows over 32k keys are 8 MB, and the copies of K and V in float32 at D=128 are 268 MB."""


def _spread(size: int, count: int, turn: int) -> list[int]:
    """`count` places of range(size), evenly apart and moved on by one with each turn; all of them if few."""
    if size <= count:
        return list(range(size))
    return sorted({(i * size // count + turn) % size for i in range(count)})


def sampled(out: Any, args: tuple[Any, ...], turn: int) -> tuple[Tensor, Tensor]:
    """(what `out` has there, what is right), in float32, for some rows and heads of one sample of the batch.

    `turn` counts the samplings of a call, so that repeated ones look at other rows.
    """
    q, k, v, mask, is_causal, alignment, scale, left, right, softcap = args
    first = out[0] if isinstance(out, tuple) else out
    batch, sq, heads = q.shape[:3]
    sk = k.shape[1]
    group = heads // k.shape[2]
    b = turn % batch
    rows, chosen = _spread(sq, ROWS, turn), _spread(heads, HEADS, turn)
    keys = [h // group for h in chosen]

    def some(t: Tensor) -> Tensor:
        return t[b : b + 1, rows][:, :, chosen].float()

    shown = [reference.visible(sq, sk, is_causal, alignment, left, right, q.device, r, r + 1) for r in rows]
    keep = None if shown[0] is None else torch.cat([s for s in shown if s is not None])
    if mask is not None:
        mask = mask.expand(batch, heads, sq, sk)[b : b + 1, chosen][:, :, rows]
    if keep is not None:
        if mask is None:
            mask = keep
        elif mask.dtype is torch.bool:
            mask = mask & keep
        else:
            mask = mask.float().masked_fill(~keep, float("-inf"))
    k, v = (t[b : b + 1, :, keys].float() for t in (k, v))
    want = reference.attention(some(q), k, v, mask, False, alignment, scale, -1, -1, softcap)
    return some(first), want
