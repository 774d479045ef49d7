"""The front doors of the norms."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops._front import Front
from sgl_kernels.ops.norm.spec import (
    GROUP_NORM,
    LAYER_NORM,
    NORM_SCALE_SHIFT,
    RESIDUAL_GATE_NORM_SCALE_SHIFT,
    RMS_NORM,
)

_rms_norm = Front(RMS_NORM).door
_layer_norm = Front(LAYER_NORM).door
_group_norm = Front(GROUP_NORM).door
_norm_scale_shift = Front(NORM_SCALE_SHIFT).door
_residual = Front(RESIDUAL_GATE_NORM_SCALE_SHIFT).door


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    weight_offset: float = 0.0,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Root-mean-square norm over the last dimension: x / sqrt(mean(x^2) + eps) * (weight + weight_offset).

    x (..., D), weight (D,) of any float dtype or None -> (..., D), dtype of x. Statistics in float32.
    weight_offset=1.0 is Gemma's form. Source: Zhang and Sennrich, arXiv 1910.07467.

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.

    out, shaped as the result, is written and returned; it may be x itself: each row is read before it is written.
    """
    return _rms_norm((x, weight, eps, weight_offset), out, backend)  # type: ignore[no-any-return]


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Layer norm over the last dimension: (x - mean) / sqrt(var + eps) * weight + bias.

    x (..., D), weight and bias (D,) of any float dtype or None -> (..., D), dtype of x. Statistics in
    float32 with the variance taken around the mean, so large means lose nothing.

    out: as in `rms_norm`.
    """
    return _layer_norm((x, weight, bias, eps), out, backend)  # type: ignore[no-any-return]


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "none",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Group norm of x (N, C, ...), then SiLU if activation="silu".

    weight and bias (C,) of any float dtype or None. The result has x's shape, dtype and memory format.

    out: as in `rms_norm`, in any memory format.
    """
    return _group_norm((x, num_groups, weight, bias, eps, activation), out, backend)  # type: ignore[no-any-return]


def norm_scale_shift(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """adaLN: norm(x) * (1 + scale) + shift, in float32 with one rounding at the end.

    `scale` is the adaLN factor, not the softmax factor of attention. x (..., D); scale and shift (D,),
    (B, D), (B, 1, D), (B, S, D), or per frame (B, F, 1, D) with F dividing S; weight and bias (D,) are the
    norm's own. norm: "layer" or "rms". Source: Peebles and Xie, arXiv 2212.09748.

    out: as in `rms_norm`.
    """
    return _norm_scale_shift((x, scale, shift, weight, bias, eps, norm), out, backend)  # type: ignore[no-any-return]


def residual_gate_norm_scale_shift(
    residual: Tensor,
    x: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    norm: str = "layer",
    out: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """residual_out = residual + gate * x; out = norm(residual_out) * (1 + scale) + shift. Returns (out, residual_out).

    residual and x have one shape and dtype; gate, scale and shift take the shapes of `norm_scale_shift`; gate
    None means 1. The norm reads the rounded residual_out, so the fused and the unfused results agree.

    out=(out, residual_out) are written and returned; each may be residual or x itself, but not both the same.
    """
    return _residual((residual, x, gate, scale, shift, weight, bias, eps, norm), out, backend)  # type: ignore[no-any-return]
