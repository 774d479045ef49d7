"""The front door of linear layers."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.core.dispatch import Key, bind, current
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._key import grad, is_opaque, of
from sgl_kernels.ops.linear.spec import LINEAR


def _eager(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    try:
        key: Key = (
            LINEAR, backend, x.shape, x.dtype, x.device, of(weight), of(bias), activation, grad(x, weight, bias),
        )  # fmt: skip
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(LINEAR, key, backend, (x, weight, bias, activation)))(
        x, weight, bias, activation
    )


_linear = define(LINEAR, _eager)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    """activation(x @ weight.T + bias): sums, bias and activation in float32, with one rounding at the end.

    x (..., K), weight (N, K) and bias (N,) or None, of one dtype -> (..., N). activation: "none", "silu",
    "gelu" (exact) or "gelu_tanh".

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.
    """
    if is_opaque(x) or is_opaque(weight):
        return _linear(x, weight, bias, activation, backend=backend)
    return _eager(x, weight, bias, activation, backend)
