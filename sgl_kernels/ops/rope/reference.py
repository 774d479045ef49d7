"""The definition of rotary embedding, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernels.ops.norm.reference import normalised


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the leading channels of x (B, S, H, D) by tables (S, R/2) or (B, S, R/2), at x's precision."""
    half = cos.shape[-1]
    rotary, rest = x[..., : 2 * half], x[..., 2 * half :]
    c, s = (t.to(x.dtype).unsqueeze(-2) for t in (cos, sin))  # (.., S, 1, R/2) against (B, S, H, R/2)
    if interleaved:
        a, b = rotary[..., 0::2], rotary[..., 1::2]
        out = torch.stack((a * c - b * s, a * s + b * c), dim=-1).flatten(-2)
    else:
        a, b = rotary[..., :half], rotary[..., half:]
        out = torch.cat((a * c - b * s, a * s + b * c), dim=-1)
    return torch.cat((out, rest), dim=-1) if rest.shape[-1] else out


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Pairs (a, b) become (a cos - b sin, a sin + b cos)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return rotated(wide, cos, sin, interleaved).to(x.dtype)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = normalised(wide, eps, "rms")
    return y if weight is None else y * weight.to(y.dtype)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None = None, k_weight: Tensor | None = None, cos: Tensor | None = None,
    sin: Tensor | None = None, eps: float = 1e-6, interleaved: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """RMS norm of q and k over each head, then rope, with one rounding at the end."""
    outs = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        y = _normed(x, weight, eps)
        if cos is not None and sin is not None:
            y = rotated(y, cos, sin, interleaved)
        outs.append(y.to(x.dtype))
    return outs[0], outs[1]
