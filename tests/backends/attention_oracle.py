"""Attention row by row in float64 over the keys a row sees and no others, and the calls at the edges of softmax."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

INF = math.inf
LOWEST = {
    "half": -65504.0,
    "bfloat16": torch.finfo(torch.bfloat16).min,
    "float32": torch.finfo(torch.float32).min,
}


def visible(mask: Tensor | None, b: int, h: int, i: int, sq: int, sk: int, call: dict[str, Any]) -> list[int]:
    shift, (left, right) = sk - sq, call.get("window_size") or (-1, -1)
    causal, alignment = call.get("is_causal", False), call.get("causal_alignment", "bottom_right")
    keys = []
    for j in range(sk):
        hidden = causal and j > i + (shift if alignment == "bottom_right" else 0)
        hidden |= left >= 0 and j < i + shift - left
        hidden |= right >= 0 and j > i + shift + right
        if mask is not None:
            value = mask[b, h, i, j].item()
            hidden |= value is False or value == -INF
        if not hidden:
            keys.append(j)
    return keys


def _added(scores: Tensor, bias: Tensor, wide: torch.dtype) -> Tensor:
    """The sum as `wide` holds it, which is what tells the mean (a bias of -1e9 swallows a score) from softmax."""
    exact = scores + bias
    rounded = (scores.to(wide) + bias.to(wide)).clamp(min=torch.finfo(wide).min).double()
    return exact + (rounded - exact).detach()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    wide: torch.dtype = torch.float32,
    **call: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse) in float64, differentiable: keys a row does not see take no part in any operation."""
    (batch, sq, heads, dim), sk = q.shape, k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, sq, sk)
    scale, softcap, group = call.get("scale"), call.get("softcap", 0.0), heads // k.shape[2]
    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            for i in range(sq):
                keys = visible(mask, b, h, i, sq, sk, call)
                if not keys:
                    outs.append(torch.zeros(v.shape[-1], dtype=torch.float64))
                    lses.append(torch.tensor(-INF, dtype=torch.float64))
                    continue
                scores = k[b, keys, h // group] @ q[b, i, h] * (dim**-0.5 if scale is None else scale)
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                if mask is not None and mask.dtype is not torch.bool:
                    scores = _added(scores, mask[b, h, i, keys].double(), wide)
                outs.append(torch.softmax(scores, -1) @ v[b, keys, h // group])
                peak = scores.detach().max()
                lses.append(peak + torch.log(torch.exp(scores - peak).sum()))
    out = torch.stack(outs).reshape(batch, heads, sq, -1).transpose(1, 2)
    return out, torch.stack(lses).reshape(batch, heads, sq)


def edges(sq: int = 7, sk: int = 9) -> dict[str, dict[str, Any]]:
    """Calls by name: rows of equal low biases, rows that see nothing, every window, each with its mask."""
    torch.manual_seed(3)
    seen = torch.rand(2, 1, sq, sk) < 0.6
    seen[0, :, 3] = False
    padding = torch.ones(2, 1, 1, sk, dtype=torch.bool)
    padding[0, ..., sk // 2 :], padding[1] = False, False
    hiding = torch.randn(2, 1, sq, sk).masked_fill(~seen, -INF)
    found: dict[str, dict[str, Any]] = {
        "bool mask per query": {"attn_mask": seen},
        "bool padding": {"attn_mask": padding},
        "float mask with -inf": {"attn_mask": hiding},
        "float padding with -inf": {"attn_mask": torch.zeros(2, 1, 1, sk).masked_fill(~padding, -INF)},
        "softcap and -inf": {"attn_mask": hiding, "softcap": 2.0},
        "mask per head, causal": {"attn_mask": torch.rand(1, 4, sq, sk) < 0.6, "is_causal": True},
        "causal": {"is_causal": True},
        "causal top left": {"is_causal": True, "causal_alignment": "top_left"},
        "window": {"window_size": (2, 1)},
        "causal window, softcap": {"is_causal": True, "window_size": (2, -1), "softcap": 3.0},
        "no scale": {"attn_mask": seen, "scale": 0.0},
        "negative scale": {"is_causal": True, "scale": -0.3},
    }
    for side in (2**31 - 1, 2**31, sys.maxsize):
        found[f"window of {side}"] = {"window_size": (side, side)}
        found[f"left window of {side}, causal"] = {"window_size": (side, -1), "is_causal": True}
    for low in (-1e4, -1e9, -1e20, *LOWEST.values()):
        mask = torch.zeros(2, 1, sq, sk)
        mask[:, :, 2] = low  # one row hides every key alike: any finite value means the plain mean of v
        mask[0, :, 4, 1:] = low
        mask[1, :, 5, ::2], mask[1, :, 5, 1::2] = low, -INF
        found[f"rows of {low:.3g}"] = {"attn_mask": mask}
        padded = torch.zeros(2, 1, 1, sk)
        padded[1] = low
        found[f"a sample of {low:.3g}"] = {"attn_mask": padded}
    return found
