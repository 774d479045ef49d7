"""The front doors of the norms."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.core.dispatch import Key, bind, current
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._into import write
from sgl_kernels.ops._key import grad, is_opaque, of
from sgl_kernels.ops.norm.spec import (
    GROUP_NORM,
    LAYER_NORM,
    NORM_SCALE_SHIFT,
    RESIDUAL_GATE_NORM_SCALE_SHIFT,
    RMS_NORM,
)


def _eager_rms(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    try:
        key: Key = (
            RMS_NORM,
            backend,
            x.shape,
            x.dtype,
            x.device,
            of(weight),
            eps,
            weight_offset,
            grad(x, weight),
        )
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(RMS_NORM, key, backend, (x, weight, eps, weight_offset)))(
        x, weight, eps, weight_offset
    )


def _eager_layer(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    try:
        key: Key = (
            LAYER_NORM,
            backend,
            x.shape,
            x.dtype,
            x.device,
            of(weight),
            of(bias),
            eps,
            grad(x, weight, bias),
        )
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(LAYER_NORM, key, backend, (x, weight, bias, eps)))(
        x, weight, bias, eps
    )


def _eager_group(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    activation: str = "none", backend: str | None = None,
) -> Tensor:  # fmt: skip
    args = (x, num_groups, weight, bias, eps, activation)
    try:
        key: Key = (
            GROUP_NORM, backend, x.shape, x.stride(), x.dtype, x.device, of(weight), of(bias), num_groups, eps,
            activation, grad(x, weight, bias),
        )  # fmt: skip
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(GROUP_NORM, key, backend, args))(*args)


def _eager_adaln(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-6, norm: str = "layer", backend: str | None = None,
) -> Tensor:  # fmt: skip
    args = (x, scale, shift, weight, bias, eps, norm)
    try:
        key: Key = (
            NORM_SCALE_SHIFT, backend, x.shape, x.dtype, x.device, of(scale), of(shift), of(weight), of(bias), eps,
            norm, grad(x, scale, shift, weight, bias),
        )  # fmt: skip
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(NORM_SCALE_SHIFT, key, backend, args))(*args)


def _eager_residual(
    residual: Tensor, x: Tensor, gate: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6,
    norm: str = "layer", backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    args = (residual, x, gate, scale, shift, weight, bias, eps, norm)
    try:
        key: Key = (
            RESIDUAL_GATE_NORM_SCALE_SHIFT, backend, x.shape, x.dtype, x.device, of(residual), of(gate), of(scale),
            of(shift), of(weight), of(bias), eps, norm, grad(residual, x, gate, scale, shift, weight, bias),
        )  # fmt: skip
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(RESIDUAL_GATE_NORM_SCALE_SHIFT, key, backend, args))(*args)


_rms_norm = define(RMS_NORM, _eager_rms)
_layer_norm = define(LAYER_NORM, _eager_layer)
_group_norm = define(GROUP_NORM, _eager_group)
_norm_scale_shift = define(NORM_SCALE_SHIFT, _eager_adaln)
_residual = define(RESIDUAL_GATE_NORM_SCALE_SHIFT, _eager_residual)


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
    if out is not None:
        return write(RMS_NORM, _eager_rms, _rms_norm, (x, weight, eps, weight_offset), out, backend)
    if is_opaque(x):
        return _rms_norm(x, weight, eps, weight_offset, backend=backend)
    return _eager_rms(x, weight, eps, weight_offset, backend)


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
    if out is not None:
        return write(LAYER_NORM, _eager_layer, _layer_norm, (x, weight, bias, eps), out, backend)
    if is_opaque(x):
        return _layer_norm(x, weight, bias, eps, backend=backend)
    return _eager_layer(x, weight, bias, eps, backend)


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
    if out is not None:
        return write(
            GROUP_NORM,
            _eager_group,
            _group_norm,
            (x, num_groups, weight, bias, eps, activation),
            out,
            backend,
        )
    if is_opaque(x):
        return _group_norm(x, num_groups, weight, bias, eps, activation, backend=backend)
    return _eager_group(x, num_groups, weight, bias, eps, activation, backend)


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
    if out is not None:
        return write(
            NORM_SCALE_SHIFT,
            _eager_adaln,
            _norm_scale_shift,
            (x, scale, shift, weight, bias, eps, norm),
            out,
            backend,
        )
    if is_opaque(x):
        return _norm_scale_shift(x, scale, shift, weight, bias, eps, norm, backend=backend)
    return _eager_adaln(x, scale, shift, weight, bias, eps, norm, backend)


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
    args = (residual, x, gate, scale, shift, weight, bias, eps, norm)
    if out is not None:
        return write(RESIDUAL_GATE_NORM_SCALE_SHIFT, _eager_residual, _residual, args, out, backend)
    if is_opaque(x):
        return _residual(*args, backend=backend)
    return _eager_residual(*args, backend)
