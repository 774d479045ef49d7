"""NVFP4 in C++: exact integer products on AVX-512 VNNI, AVX2, SSE2 and NEON (csrc/cpu/nvfp4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._extension import absent, extension
from sgl_kernels.backends.cpu import FIRST
from sgl_kernels.core.device import Device, cpu_arch
from sgl_kernels.core.selection.implementation import Implementation, Place
from sgl_kernels.core.selection.requires import FLOATS, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.ops.nvfp4.facts import LinearFacts, QuantizeFacts
from sgl_kernels.ops.nvfp4.layouts import PANEL

LAYOUT = "cpu_packed"
PLACE = Place(
    FIRST, "products of packed integers, where torch decodes the weight: benchmarks/notes/cpu_nvfp4.md"
)
CPU = Requires(platforms=frozenset({"cpu"}), dtypes=FLOATS)
DECODED_ROWS = {
    "avx512vbmi": {torch.float32: 48},
    "avx512vbmi, bf16": {torch.float32: 48, torch.bfloat16: 48},
}
"""From this many rows W4A16 on AVX-512 decodes the weight in slices and multiplies with torch, which then is faster:
four int8 digits for an fp32 x cost more than fp32 products, two for a bf16 x more than bf16 instructions where there
are any. The other kernels multiply in fp32 themselves, which is faster than slices at every size: see
benchmarks/notes/cpu_nvfp4.md, as for the numbers here."""
SLICE_BYTES = 2 << 20  # of decoded weight, found in L2 by the product (M=256, fp32: 42.8 ms; 48.3 with 4 MiB)


def _load_quantize(config: Any) -> Callable[..., Any]:
    kernel = extension().nvfp4_quantize.default

    def run(x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool) -> tuple[Tensor, ...]:
        lead, k = x.shape[:-1], x.shape[-1]
        scale_in = None if global_scale is None else global_scale.to(torch.float32)
        data, scale, found = kernel(x.detach().reshape(-1, k).contiguous(), scale_in)
        return (
            data.reshape(*lead, k // 2),
            scale.view(torch.float8_e4m3fn).reshape(*lead, k // 16),
            found.reshape(()),
        )

    return run


def _load_linear(config: Any) -> Callable[..., Any]:
    kernels = extension()
    kernel, decode = kernels.nvfp4_linear.default, kernels.nvfp4_decode.default
    level = kernels.nvfp4_level()
    if level == "avx512vbmi" and cpu_arch() == "avx512bf16":
        level += ", bf16"
    limits = DECODED_ROWS.get(level, {})

    def run(
        x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor, bias: Tensor | None,
        activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
    ) -> Tensor:  # fmt: skip
        lead, k = x.shape[:-1], x.shape[-1]
        flat = x.detach().reshape(-1, k).contiguous()
        weight, scale = weight.contiguous(), global_scale.to(torch.float32)
        if activation == "bf16" and flat.shape[0] >= limits.get(x.dtype, 1 << 62):
            return _decoded(decode, flat, weight, scale, bias, out_features).reshape(*lead, out_features)
        bias = None if bias is None else _plain(bias.detach().contiguous())
        calibrated = None if input_scale is None else input_scale.to(torch.float32)
        y = kernel(flat, weight, scale, bias, activation, calibrated, out_features)
        return y.reshape(*lead, out_features)

    return run


def _plain(bias: Tensor) -> Tensor:
    return bias if bias.dtype in FLOATS else bias.to(torch.float32)


def _decoded(decode: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """W4A16 through torch's own product, a slice of the weight at a time. Decoded weights are exact in bf16."""
    m, k = x.shape
    panels = max(1, SLICE_BYTES // (k * PANEL * x.element_size()))
    out = x.new_empty((m, n))
    for begin in range(0, weight.shape[0], panels):
        end = min(weight.shape[0], begin + panels)
        y = torch.mm(x, decode(weight, k, n, begin, end, x)).to(torch.float32).mul_(scale)
        part = slice(begin * PANEL, min(n, end * PANEL))
        out[:, part] = y if bias is None else y.add_(bias[part])
    return out


def _rejects_quantize(f: QuantizeFacts) -> Rejected | None:
    if f.format != "nvfp4":
        return Rejected(Reason.FEATURE, f"quantises nvfp4 only, format is {f.format}")
    if f.stochastic:
        return Rejected(Reason.FEATURE, "does not round stochastically")
    return None


def _layout(f: LinearFacts, device: Device) -> str | None:
    """Whatever the activation: the floor, which serves mxfp4, reads it as well."""
    return LAYOUT if f.format == "nvfp4" else None


def _rejects_linear(f: LinearFacts) -> Rejected | None:
    if f.layout != LAYOUT:
        return Rejected(
            Reason.FEATURE,
            f"needs the weight in layout {LAYOUT!r}, it is {f.layout!r}",
            "nvfp4_linear packs once",
        )
    if f.activation == "mxfp4":
        return Rejected(Reason.FEATURE, "rounds activations to int8 or nvfp4, not to mxfp4")
    return None


IMPLEMENTATIONS = (
    Implementation(
        op="nvfp4_quantize", backend="cpu", rank=PLACE, load=_load_quantize, requires=CPU, rejects=_rejects_quantize,
        absent=absent,
        doc="AVX-512, AVX2, SSE2 or NEON, bit-equal to the reference",
    ),
    Implementation(
        op="nvfp4_linear", backend="cpu", rank=PLACE, load=_load_linear, requires=CPU, rejects=_rejects_linear,
        absent=absent, layout=_layout,
        doc="AVX-512 VNNI, AVX2, SSE2 or NEON: W4A16, W4A8 and exact W4A4",
    ),
)  # fmt: skip
