"""The front doors of the activations."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.core.dispatch import Key, bind, current
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._into import write
from sgl_kernels.ops._key import grad, is_opaque, of
from sgl_kernels.ops.activation.spec import GELU_MUL, GELU_TANH, SILU_MUL


def _eager_silu_mul(x: Tensor, up: Tensor | None = None, backend: str | None = None) -> Tensor:
    try:
        key: Key = (SILU_MUL, backend, x.shape, x.dtype, x.device, of(up), grad(x, up))
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(SILU_MUL, key, backend, (x, up)))(x, up)


def _eager_gelu_tanh(x: Tensor, backend: str | None = None) -> Tensor:
    try:
        key: Key = (GELU_TANH, backend, x.shape, x.dtype, x.device, grad(x))
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(GELU_TANH, key, backend, (x,)))(x)


def _eager_gelu_mul(
    x: Tensor, up: Tensor | None = None, approximate: str = "tanh", backend: str | None = None
) -> Tensor:
    try:
        key: Key = (GELU_MUL, backend, x.shape, x.dtype, x.device, of(up), approximate, grad(x, up))
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(GELU_MUL, key, backend, (x, up, approximate)))(
        x, up, approximate
    )


_silu_mul = define(SILU_MUL, _eager_silu_mul)
_gelu_tanh = define(GELU_TANH, _eager_gelu_tanh)
_gelu_mul = define(GELU_MUL, _eager_gelu_mul)


def silu_mul(
    x: Tensor, up: Tensor | None = None, *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """SwiGLU's gate: silu(gate) * up.

    x (..., 2D) holds gate and up side by side -> (..., D); or x and up (..., D) are given apart, which may be
    the two views of a chunk. Source: Shazeer, arXiv 2002.05202.

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.

    out, shaped as the result, is written and returned; it may be the gate or up itself, also as a half of x.
    """
    if out is not None:
        return write(SILU_MUL, _eager_silu_mul, _silu_mul, (x, up), out, backend)
    if is_opaque(x):
        return _silu_mul(x, up, backend=backend)
    return _eager_silu_mul(x, up, backend)


def gelu_tanh(x: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """GELU by its tanh approximation, x (..., D) -> (..., D). Source: Hendrycks and Gimpel, arXiv 1606.08415.

    out, shaped as x, is written and returned; it may be x itself: each element is read before it is written.
    """
    if out is not None:
        return write(GELU_TANH, _eager_gelu_tanh, _gelu_tanh, (x,), out, backend)
    if is_opaque(x):
        return _gelu_tanh(x, backend=backend)
    return _eager_gelu_tanh(x, backend)


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
    if out is not None:
        return write(GELU_MUL, _eager_gelu_mul, _gelu_mul, (x, up, approximate), out, backend)
    if is_opaque(x):
        return _gelu_mul(x, up, approximate, backend=backend)
    return _eager_gelu_mul(x, up, approximate, backend)
