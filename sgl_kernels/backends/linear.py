"""Linear layers: torch's own, and ours in C++ for processors whose torch has no fast product of half types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends.cpu import BEHIND, CPU, FIRST, TINY
from sgl_kernels.core.device import Device, cpu_arch
from sgl_kernels.core.implementation import Implementation
from sgl_kernels.ops.linear.reference import activated
from sgl_kernels.ops.linear.spec import LinearFacts

TILES = "avx2"
"""The one instruction set for which csrc/cpu has a product."""
FEWEST_ROWS = {torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""With fewer rows the packing of the weight is not paid back (benchmarks/notes/cpu_linear.md)."""
SHORTEST_PLAIN = 384
"""fp32 without an activation: shallower products are torch's (0.87 to 0.98 of its time at a depth of 192 over 3920
rows; 1.0 to 1.3 times its speed at 384 and more)."""


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return activated(F.linear(x, weight, bias), activation)


def _load(config: Any) -> Callable[..., Any]:
    from sgl_kernels.kernels.cpu.loader import load

    reason = load()
    if reason is None and not hasattr(torch.ops.sgl_kernels_cpu, "linear"):
        reason = "sgl_kernels._cpu was built from older sources: install the package again"
    if reason is not None:
        raise RuntimeError(reason)
    if cpu_arch() != TILES or torch.ops.sgl_kernels_cpu.linear_unsupported_reason():
        return _torch_product(torch.ops.sgl_kernels_cpu.gelu_tanh.default)
    return torch.ops.sgl_kernels_cpu.linear.default  # type: ignore[no-any-return]


def _torch_product(gelu_tanh: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        y = F.linear(x, weight, bias)
        return gelu_tanh(y) if activation == "gelu_tanh" else activated(y, activation)  # type: ignore[no-any-return]

    return run


def _rank(facts: LinearFacts, device: Device) -> int:
    """First where it was measured to win.

    Without AVX-512, torch multiplies half types in a plain loop, at 7 to 10 GFLOP/s where fp32 has 75; with it,
    oneDNN has products for them, and what is left to gain is torch's slow GELU behind the product.
    """
    if device.arch != TILES:
        return FIRST if facts.activation == "gelu_tanh" and facts.m * facts.n >= TINY else BEHIND
    if facts.m < FEWEST_ROWS.get(facts.dtype, 1 << 62):
        return BEHIND
    plain = facts.dtype is torch.float32 and facts.activation == "none"
    return BEHIND if plain and facts.k < SHORTEST_PLAIN else FIRST


IMPLEMENTATIONS = (
    Implementation(
        op="linear", backend="torch_sdpa", load=lambda config: _torch_linear, differentiable=True, traceable=True,
        doc="plain torch",
    ),
    Implementation(
        op="linear", backend="cpu", rank=_rank, load=_load, requires=CPU,
        doc="on AVX2 tiles of our own, any dtype at fp32 speed, activation fused; else torch's product and our GELU",
    ),
)  # fmt: skip
