"""Linear layers: torch's own, and ours in C++ for processors whose torch has no fast product of half types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends._extension import absent, extension
from sgl_kernels.backends._measured import measured
from sgl_kernels.backends.cpu import BEHIND, CPU, FIRST, TINY
from sgl_kernels.core.device import Device, cpu_arch
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS
from sgl_kernels.ops.linear.reference import activated
from sgl_kernels.ops.linear.spec import LinearFacts

_WIDE = {torch.float32: 4, torch.float16: 4}
FEWEST_ROWS = {
    "avx2": {torch.float32: 16, torch.bfloat16: 4, torch.float16: 4},
    "avx512": _WIDE,
    "avx512bf16": _WIDE,
}
"""The instruction sets and dtypes for which our product is, and the fewest rows: with fewer the packing of the weight
is not paid back (benchmarks/notes/cpu_linear.md). From AVX-512 on, bfloat16 is torch's: oneDNN multiplies it at 395 to
450 GFLOP/s where fp32 tiles reach 230."""
SHORTEST_PLAIN = 384
"""fp32 without an activation on AVX2: shallower products are torch's (0.87 to 0.98 of its time at a depth of 192 over
3920 rows; 1.0 to 1.3 times its speed at 384 and more)."""


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return activated(F.linear(x, weight, bias), activation)


def _load(config: Any) -> Callable[..., Any]:
    kernels = extension()
    behind = _torch_product(kernels.gelu_tanh.default)
    served = set(FEWEST_ROWS.get(cpu_arch(), ()))
    # Not measured: oneDNN multiplies float16 in registers of halves where the processor has them, twice the fp32 rate.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("avx512_fp16", False):
        served.discard(torch.float16)
    if not served or kernels.linear_unsupported_reason():
        return behind
    ours = kernels.linear.default

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        product = ours if x.dtype in served else behind
        return product(x, weight, bias, activation)  # type: ignore[no-any-return]

    return ours if served >= FLOATS else run  # type: ignore[no-any-return]


def _torch_product(gelu_tanh: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        y = F.linear(x, weight, bias)
        return gelu_tanh(y) if activation == "gelu_tanh" else activated(y, activation)  # type: ignore[no-any-return]

    return run


def _rank(facts: LinearFacts, device: Device) -> int:
    """First where it was measured to win.

    Without AVX-512, torch multiplies half types in a plain loop, at 7 to 10 GFLOP/s where fp32 has 75. With it, oneDNN
    has a product for bfloat16, and what is left to gain there is torch's slow GELU behind it; float16 runs at 16 to 29
    GFLOP/s and fp32 at 90 to 100 (Zen 5), where our tiles reach 190 to 235 in both.
    """
    ours = FEWEST_ROWS.get(device.arch, {})
    if facts.dtype not in ours:
        return FIRST if facts.activation == "gelu_tanh" and facts.m * facts.n >= TINY else BEHIND
    plain = facts.dtype is torch.float32 and facts.activation == "none"
    shallow = device.arch == "avx2" and facts.k < SHORTEST_PLAIN
    return BEHIND if facts.m < ours[facts.dtype] or (plain and shallow) else FIRST


IMPLEMENTATIONS = (
    Implementation(
        op="linear", backend="torch", load=lambda config: _torch_linear, differentiable=True, traceable=True,
        doc="plain torch",
    ),
    Implementation(
        op="linear", backend="cpu", rank=measured("cpu", "linear", _rank), load=_load, requires=CPU, absent=absent,
        doc="tiles of our own from AVX2 on, activation fused; with AVX-512 torch's product of bf16, and our GELU",
    ),
)  # fmt: skip
