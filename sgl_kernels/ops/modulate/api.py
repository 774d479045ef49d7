"""The front doors of modulation."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops._front import Front
from sgl_kernels.ops.modulate.spec import GATE_RESIDUAL, SCALE_SHIFT

_scale_shift = Front(SCALE_SHIFT).door
_gate_residual = Front(GATE_RESIDUAL).door


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
    return _scale_shift((x, scale, shift), out, backend)  # type: ignore[no-any-return]


def gate_residual(
    residual: Tensor, x: Tensor, gate: Tensor, *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """residual + gate * x, in float32 with one rounding at the end.

    residual and x (..., D) of one shape and dtype; gate takes the shapes of `scale_shift`'s parameters.

    out: as in `scale_shift`; it may be residual or x.
    """
    return _gate_residual((residual, x, gate), out, backend)  # type: ignore[no-any-return]
