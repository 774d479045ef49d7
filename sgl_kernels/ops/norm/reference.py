"""The definition of each norm, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgl_kernels.ops._modulation import aligned


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


TINY = 1e-36
"""Below this an eps does not hide that the square of a small number is 0 in float32."""


def normalised(x: Tensor, eps: float, norm: str) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, less its mean where `norm` is "layer"."""
    added: float | Tensor = eps
    if eps < TINY and x.numel():  # rows are brought near 1 first
        size = x.detach().abs().amax(-1, keepdim=True)
        size = torch.where((size > 0) & size.isfinite(), size, 1.0)
        x = x / size  # a constant to the gradient: the quotient below is the same for any size
        # torch divides a number by way of 1 / size, which overflows
        added = (torch.full_like(size, math.sqrt(eps)) / size).square()
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + added)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight.to(y.dtype)
    return y if bias is None else y + bias.to(y.dtype)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, weight_offset: float = 0.0
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset)."""
    y = normalised(_wide(x), eps, "rms")
    if weight is not None:
        y = y * (weight.to(y.dtype) + weight_offset)
    return y.to(x.dtype)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias."""
    return _affine(normalised(_wide(x), eps, "layer"), weight, bias).to(x.dtype)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
) -> Tensor:
    """Layer norm over each group of channels and all positions, then per-channel affine, then SiLU."""
    n, c = x.shape[:2]
    if x.numel() == 0:  # nothing to normalise, but a gradient of zeros flows back to x, weight and bias
        y = _wide(x) * 1
    else:
        y = normalised(_wide(x).reshape(n, num_groups, -1), eps, "layer").reshape(x.shape)
    per_channel = (1, c) + (1,) * (x.ndim - 2)
    y = _affine(
        y,
        None if weight is None else weight.reshape(per_channel),
        None if bias is None else bias.reshape(per_channel),
    )
    if activation == "silu":
        y = y * torch.sigmoid(y)
    return y.to(x.dtype)


def norm_scale_shift(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-6, norm: str = "layer",
) -> Tensor:  # fmt: skip
    """adaLN: norm(x) * (1 + scale) + shift, rounded once."""
    y = _affine(normalised(_wide(x), eps, norm), weight, bias)
    if scale is not None:
        y = y * (1 + aligned(scale, x).to(y.dtype))
    if shift is not None:
        y = y + aligned(shift, x).to(y.dtype)
    return y.to(x.dtype)


def residual_gate_norm_scale_shift(
    residual: Tensor, x: Tensor, gate: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6,
    norm: str = "layer",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """residual_out = residual + gate * x, rounded; out = adaLN of the rounded residual_out."""
    y = _wide(x)
    if gate is not None:
        y = y * aligned(gate, x).to(y.dtype)
    residual_out = (_wide(residual) + y).to(residual.dtype)
    return norm_scale_shift(residual_out, scale, shift, weight, bias, eps, norm), residual_out
