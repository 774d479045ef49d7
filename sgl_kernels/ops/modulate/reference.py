"""The definition of modulation, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernels.ops._modulation import aligned


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def scale_shift(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """x * (1 + scale) + shift."""
    y = _wide(x)
    if scale is not None:
        y = y * (1 + aligned(scale, x).to(y.dtype))
    if shift is not None:
        y = y + aligned(shift, x).to(y.dtype)
    return y.to(x.dtype)


def gate_residual(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """residual + gate * x."""
    wide = _wide(x)
    return (_wide(residual) + aligned(gate, x).to(wide.dtype) * wide).to(residual.dtype)
