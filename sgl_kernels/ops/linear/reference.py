"""The definition of a linear layer, in plain torch at float32 or, for float64 inputs, float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")


def activated(y: Tensor, activation: str) -> Tensor:
    """The activation of that name."""
    if activation == "none":
        return y
    if activation == "silu":
        return F.silu(y)
    return F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """activation(x @ weight.T + bias)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return activated(y, activation).to(x.dtype)
