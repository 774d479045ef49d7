"""The front doors of the activations."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops._front import Front
from sgl_kernels.ops.activation.spec import GELU_MUL, GELU_TANH, SILU_MUL

_silu_mul = Front(SILU_MUL).door
_gelu_tanh = Front(GELU_TANH).door
_gelu_mul = Front(GELU_MUL).door


def silu_mul(
    x: Tensor, up: Tensor | None = None, *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """SwiGLU's gate: silu(gate) * up.

    x (..., 2D) holds gate and up side by side -> (..., D); or x and up (..., D) are given apart, which may be
    the two views of a chunk. Source: Shazeer, arXiv 2002.05202.

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.

    out, shaped as the result, is written and returned; it may be the gate or up itself, also as a half of x.
    """
    return _silu_mul((x, up), out, backend)  # type: ignore[no-any-return]


def gelu_tanh(x: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """GELU by its tanh approximation, x (..., D) -> (..., D). Source: Hendrycks and Gimpel, arXiv 1606.08415.

    out, shaped as x, is written and returned; it may be x itself: each element is read before it is written.
    """
    return _gelu_tanh((x,), out, backend)  # type: ignore[no-any-return]


def gelu_mul(
    x: Tensor,
    up: Tensor | None = None,
    *,
    approximate: str = "tanh",
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """GEGLU's gate: gelu(gate) * up, with x and up as in `silu_mul`; approximate "tanh" or "none" (erf).

    out: as in `silu_mul`.
    """
    return _gelu_mul((x, up, approximate), out, backend)  # type: ignore[no-any-return]
