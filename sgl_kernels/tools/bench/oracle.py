"""The right answer of a large case: the definition in float64, on a part of the result where the whole is too big."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.op import Op
from sgl_kernels.tools.parity.tolerance import Error, measure

ROWS = 192
MAX_ELEMENTS = 1 << 25
"""Largest tensor that is taken to float64 whole: 256 MiB."""

Part = Callable[[Tensor], Tensor]


class Oracle:
    """Judges outputs of one call. The definition is computed once."""

    def __init__(self, op: Op, args: tuple[Any, ...]) -> None:
        part, smaller = _part(op, args)
        self.part: Part = part
        wide = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in smaller)
        self.expected: Tensor = _first(op.reference(*wide))

    def judge(self, out: Any) -> Error:
        """The distance of an output (of its first tensor, where there are several) from the definition."""
        return measure(self.part(_first(out)), self.expected)


def _first(out: Any) -> Tensor:
    result: Tensor = out[0] if isinstance(out, tuple | list) else out
    return result


def _whole(out: Tensor) -> Tensor:
    return out


def _part(op: Op, args: tuple[Any, ...]) -> tuple[Part, tuple[Any, ...]]:
    """Which part of the output is judged, and the arguments that give exactly this part."""
    if op.name in ("attention", "attention_lse"):
        return _attention_part(args)
    biggest = max((a.numel() for a in args if isinstance(a, Tensor)), default=0)
    if biggest <= MAX_ELEMENTS:
        return _whole, args
    if op.family == "activation":  # elementwise in rows: any rows will do

        def rows(t: Tensor) -> Tensor:
            return t.flatten(0, -2)[-ROWS:]

        return rows, tuple(rows(a) if isinstance(a, Tensor) else a for a in args)
    return _whole, args


def _attention_part(args: tuple[Any, ...]) -> tuple[Part, tuple[Any, ...]]:
    """The last queries of the last key head's group, in the first batch entry; the last queries see most keys."""
    q, k, v, mask, causal, align, scale, left, right, softcap = args
    sq, sk, group = q.shape[1], k.shape[1], max(1, q.shape[2] // max(1, k.shape[2]))
    if q.numel() == 0 or k.numel() == 0 or (causal and align == "top_left" and sq != sk):
        return _whole, args
    rows = slice(max(0, sq - ROWS), sq)
    heads = slice(q.shape[2] - group, q.shape[2])

    def part(out: Tensor) -> Tensor:
        return out[:1, rows, heads]

    if mask is not None:
        mask = torch.broadcast_to(mask, (q.shape[0], q.shape[2], sq, sk))[:1, heads, rows]
    smaller = (part(q), k[:1, :, -1:], v[:1, :, -1:], mask, causal, "bottom_right")
    return part, (*smaller, scale, left, right, softcap)
