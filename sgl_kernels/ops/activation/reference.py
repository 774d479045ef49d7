"""The definition of each activation, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def halves(x: Tensor, up: Tensor | None) -> tuple[Tensor, Tensor]:
    """(gate, up): the two halves of x's last dimension, or x and `up`."""
    if up is not None:
        return x, up
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def silu_mul(x: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up."""
    gate, other = halves(x, up)
    return (F.silu(_wide(gate)) * _wide(other)).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return F.gelu(_wide(x), approximate="tanh").to(x.dtype)


def gelu_mul(x: Tensor, up: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """gelu(gate) * up."""
    gate, other = halves(x, up)
    return (F.gelu(_wide(gate), approximate=approximate) * _wide(other)).to(x.dtype)
