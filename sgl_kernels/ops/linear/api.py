"""The front door of linear layers."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops._front import Front
from sgl_kernels.ops.linear.spec import LINEAR

_linear = Front(LINEAR).door


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
    return _linear((x, weight, bias, activation), None, backend)  # type: ignore[no-any-return]
