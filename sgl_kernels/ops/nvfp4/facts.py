"""What selection may know of a call of an NVFP4 op."""

from __future__ import annotations

from typing import NamedTuple

import torch


class QuantizeFacts(NamedTuple):
    """What selection may know of a quantisation."""

    dtype: torch.dtype
    rows: int
    k: int
    format: str
    stochastic: bool
    has_global: bool
    needs_grad: bool


class DequantizeFacts(NamedTuple):
    """What selection may know of a dequantisation."""

    dtype: torch.dtype  # of the result
    rows: int
    k: int
    format: str
    needs_grad: bool


class LinearFacts(NamedTuple):
    """What selection may know of a linear layer with a 4-bit weight."""

    dtype: torch.dtype
    m: int
    n: int
    k: int
    activation: str
    format: str
    layout: str
    bias: torch.dtype | None
    has_input_scale: bool
    needs_grad: bool
