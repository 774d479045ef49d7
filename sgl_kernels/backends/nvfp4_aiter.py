"""AITER's gemm_a4w4: MXFP4 times MXFP4 on gfx950, the CDNA chip with fp4 units.

Signatures read from amd-aiter 0.1.7 (the caller gives `out`, padded to 32 rows) and from its later sources (`dtype`
instead, the padding taken off). Bias is added here: with a tuned CK kernel the wrapper drops the one it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import BEFORE_OURS
from sgl_kernels.backends.aiter import INSTALL, Amds
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation, Place
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.facts import LinearFacts
from sgl_kernels.ops.nvfp4.formats import ceil_to
from sgl_kernels.ops.nvfp4.layouts import aiter_scales

LAYOUT = "aiter_shuffled"
TILE_N, TILE_K = 128, 256
"""Its heuristic takes assembly kernels whose tile divides N, the narrowest 128, and splits K by 256."""


def _quantizer() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Rows to MXFP4: our Triton kernel in one pass, or torch where Triton is missing."""
    try:
        from sgl_kernels.kernels.triton.configs_nvfp4 import quantize as tile
        from sgl_kernels.kernels.triton.nvfp4_quantize import quantize
    except ImportError:
        return lambda x: reference.nvfp4_quantize(x, None, "mxfp4", False)[:2]

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_cuda:  # nothing but a test
            return reference.nvfp4_quantize(x, None, "mxfp4", False)[:2]
        data, scale, _ = quantize(x, None, group=32, config=tile("cdna"))
        return data, scale.view(torch.float8_e8m0fnu)

    return run


def _load(config: Any) -> Callable[..., Tensor]:
    from aiter.ops.gemm_op_a4w4 import gemm_a4w4

    quantize, fp4 = _quantizer(), torch.float4_e2m1fn_x2
    takes_out = "out" in inspect.signature(gemm_a4w4).parameters

    def run(
        x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
        activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
    ) -> Tensor:  # fmt: skip
        # activation, format and layout are mxfp4 and shuffled: _rejects. MXFP4 has no global and no input scale.
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        rows = flat.shape[0]
        data, scale = quantize(flat)
        operands = (data.view(fp4), weight.view(fp4), aiter_scales(scale), weight_scale)
        if takes_out:
            out = x.new_empty((ceil_to(rows, 32), out_features))
            y = gemm_a4w4(*operands, out, None, 1.0, 0.0, True)[:rows]
        else:
            y = gemm_a4w4(*operands, bias=None, dtype=x.dtype, alpha=1.0, beta=0.0, bpreshuffle=True)
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], out_features)

    return run


def _rejects(f: LinearFacts) -> Rejected | None:
    if f.activation != "mxfp4" or f.format != "mxfp4":
        return feature(f"multiplies mxfp4 by mxfp4 only, not {f.format} by {f.activation}")
    if f.layout != LAYOUT:
        return feature(f"needs the weight in layout {LAYOUT!r}, it is {f.layout!r}")
    if f.m == 0 or f.n % TILE_N or f.k % TILE_K:
        return shape(f"needs rows, N a multiple of {TILE_N} and K of {TILE_K}; got M {f.m}, N {f.n}, K {f.k}")
    return None


def _layout(f: LinearFacts, device: Device) -> str | None:
    shuffled = f._replace(layout=LAYOUT)
    return LAYOUT if _rejects(shuffled) is None else None


IMPLEMENTATIONS = (
    Implementation(
        op="nvfp4_linear",
        backend="aiter",
        load=_load,
        requires=Amds(
            platforms=frozenset({"rocm"}),
            archs=frozenset({"gfx950"}),
            dtypes=frozenset({torch.bfloat16}),
            install=INSTALL,
        ),
        rejects=_rejects,
        layout=_layout,
        bugs=bugs_of("aiter", "nvfp4_linear"),
        rank=Place(
            BEFORE_OURS, "assembly written for gfx950, before our Triton kernel, which nobody has timed there"
        ),
        proof="contract",
        doc="AITER's gemm_a4w4: MXFP4 by MXFP4 on gfx950",
    ),
)
