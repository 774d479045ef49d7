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


def sampled(out: Any, args: tuple[Any, ...], turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """(what `out` has there, what is right, the sum of its terms' sizes), for some rows and heads of one sample.

    In float32; what is right is rounded to the dtype of `out`, where a tiny number may be 0 and a huge one infinite.
    `turn` counts the samplings of a call, so that repeated ones look at other rows.
    """
    got, want, terms, _, _ = _rows(out, args, turn)
    return got, want, terms


def sampled_lse(out: Any, args: tuple[Any, ...], turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with a column for the lse of each row.

    What an lse is used for is exp(lse), the row's weight when parts are merged. The column is that weight relative to
    the right one, times the row's own length, so that 10 % there weighs as 10 % of the row. Rows without keys, whose
    lse must be -inf, count as right when it is, and so does an lse that is off by float32's own steps: those of an
    evenly hidden row, of -1e9, are 64 wide.
    """
    got, want, terms, lse, right = _rows(out, args, turn)
    steps = 4 * torch.finfo(torch.float32).eps * right.abs()
    same = (lse == right) | (right.isfinite() & ((lse - right).abs() <= steps))
    relative = torch.where(same, 0.0, lse - right).exp()
    size = torch.linalg.vector_norm(want, dim=-1, keepdim=True)
    empty = right.isinf()[..., None]
    size = torch.where(empty, 1.0, size)
    return torch.cat((got, relative[..., None] * size), -1), torch.cat((want, size), -1), terms


def sampled_varlen(out: Tensor, args: tuple[Any, ...], turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """`sampled` for one of the packed sequences, another each turn. Reading the lengths waits for the device."""
    q, k, v, cu_q, cu_k, _, _, is_causal, scale, left, right, softcap = args
    starts_q, starts_k = cu_q.tolist(), cu_k.tolist()
    spans = list(zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False))
    spans = [(a, b, c, d) for a, b, c, d in spans if b > a and d > c]
    if not spans:
        return out[:0].float(), out[:0].float(), out[:0].float()
    a, b, c, d = spans[turn % len(spans)]
    dense = (
        q[None, a:b],
        k[None, c:d],
        v[None, c:d],
        None,
        is_causal,
        "bottom_right",
        scale,
        left,
        right,
        softcap,
    )
    return sampled(out[None, a:b], dense, turn // len(spans))


def _rows(out: Any, args: tuple[Any, ...], turn: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(rows of `out`, the right ones, their terms, their lse, the right one); both lse are (1, rows, heads)."""
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
    pair = torch.cat((v, v.abs()), -1)  # the sum of a row's weighted sizes beside the row itself
    both, right_lse = reference.attention_lse(
        some(q), k, pair, mask, False, alignment, scale, -1, -1, softcap
    )
    want, terms = both.split(v.shape[-1], -1)
    want = want.to(first.dtype).float()
    right_lse = right_lse.transpose(1, 2)
    lse = (
        out[1][b : b + 1, chosen][:, :, rows].float().transpose(1, 2) if isinstance(out, tuple) else right_lse
    )
    return some(first), want, terms, lse, right_lse
