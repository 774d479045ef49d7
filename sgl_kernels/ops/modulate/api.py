"""The front doors of modulation."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.core.dispatch import Key, bind, current
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._into import write
from sgl_kernels.ops._key import grad, is_opaque, of
from sgl_kernels.ops.modulate.spec import GATE_RESIDUAL, SCALE_SHIFT


def _eager_scale_shift(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, backend: str | None = None
) -> Tensor:
    try:
        key: Key = (
            SCALE_SHIFT,
            backend,
            x.shape,
            x.dtype,
            x.device,
            of(scale),
            of(shift),
            grad(x, scale, shift),
        )
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(SCALE_SHIFT, key, backend, (x, scale, shift)))(x, scale, shift)


def _eager_gate(residual: Tensor, x: Tensor, gate: Tensor, backend: str | None = None) -> Tensor:
    try:
        key: Key = (
            GATE_RESIDUAL,
            backend,
            x.shape,
            x.dtype,
            x.device,
            of(residual),
            of(gate),
            grad(residual, x, gate),
        )
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(GATE_RESIDUAL, key, backend, (residual, x, gate)))(
        residual, x, gate
    )


_scale_shift = define(SCALE_SHIFT, _eager_scale_shift)
_gate_residual = define(GATE_RESIDUAL, _eager_gate)


def scale_shift(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x * (1 + scale) + shift, in float32 with one rounding at the end.

    `scale` is the adaLN factor, not the softmax factor of attention. x (..., D); scale and shift (D,), (B, D),
    (B, 1, D), (B, S, D), or per frame (B, F, 1, D) with F dividing S.

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.

    out, shaped as x, is written and returned; it may be x itself: each row is read before it is written.
    """
    if out is not None:
        return write(SCALE_SHIFT, _eager_scale_shift, _scale_shift, (x, scale, shift), out, backend)
    if is_opaque(x):
        return _scale_shift(x, scale, shift, backend=backend)
    return _eager_scale_shift(x, scale, shift, backend)


def gate_residual(
    residual: Tensor, x: Tensor, gate: Tensor, *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """residual + gate * x, in float32 with one rounding at the end.

    residual and x (..., D) of one shape and dtype; gate takes the shapes of `scale_shift`'s parameters.

    out: as in `scale_shift`; it may be residual or x.
    """
    if out is not None:
        return write(GATE_RESIDUAL, _eager_gate, _gate_residual, (residual, x, gate), out, backend)
    if is_opaque(x):
        return _gate_residual(residual, x, gate, backend=backend)
    return _eager_gate(residual, x, gate, backend)
