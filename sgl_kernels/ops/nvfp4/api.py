"""The front doors of NVFP4: quantise, dequantise, multiply."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from sgl_kernels.ops._front import Front
from sgl_kernels.ops._key import is_opaque, is_plain
from sgl_kernels.ops._validate import short
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledFormat, ScaledTensor, parse_format, scales_fault
from sgl_kernels.ops.nvfp4.layouts import MAX_FINITE_E4M3, to_layout
from sgl_kernels.ops.nvfp4.placing import as_prepared, for_device
from sgl_kernels.ops.nvfp4.spec import NVFP4_DEQUANTIZE, NVFP4_LINEAR, NVFP4_QUANTIZE

_quantize, _dequantize, _linear = (Front(op).door for op in (NVFP4_QUANTIZE, NVFP4_DEQUANTIZE, NVFP4_LINEAR))


def nvfp4_quantize(
    x: Tensor,
    global_scale: Tensor | None = None,
    *,
    format: str | ScaledFormat = NVFP4,
    stochastic: bool = False,
    nonfinite: str = "error",
    backend: str | None = None,
) -> ScaledTensor:
    """Quantise x (..., K) to 4 bits with a scale for each block along K; K a multiple of the block.

    global_scale: fp32 scalar tensor in the decode direction, positive and finite; None takes amax / 2688 of the
    finite values.
    Rounds to nearest, ties to even, saturating, with no epsilon: a zero block has scale 0. stochastic=True rounds
    up with probability equal to the distance (torch's global generator).
    nonfinite: "error" raises for NaN and infinities; "propagate" gives their block the scale NaN.

    The formula is spelled out, operation by operation, in ops/nvfp4/reference.py.
    """
    fmt = parse_format(format)
    _check_scale("nvfp4_quantize", "global_scale", global_scale)
    if nonfinite not in ("error", "propagate"):
        raise ValueError(f"nvfp4_quantize: nonfinite is {nonfinite!r}, expected 'error' or 'propagate'")
    data, block_scale, scale = _quantize((x, global_scale, fmt.name, stochastic), None, backend)
    if nonfinite == "error" and not is_opaque(x) and is_plain(block_scale) and _has_nan(block_scale):
        bad = int(torch.isnan(block_scale.to(torch.float32)).sum())
        raise ValueError(
            f"nvfp4_quantize: x has NaN or infinities in {bad} of {block_scale.numel()} blocks; clean them, or pass "
            "nonfinite='propagate' to have those blocks decode to NaN"
        )
    total = scale if fmt.has_global else None
    return ScaledTensor(data, block_scale, total, fmt, tuple(x.shape), checked=True)  # right by construction


def _check_scale(op: str, name: str, value: Tensor | None) -> None:
    """Positive and finite where the host can read it, in every call: the key of a call knows no values."""
    if value is None or is_compiling() or type(value) is not Tensor or value.numel() != 1:
        return  # what is no tensor of one value is for the check of arguments
    if fault := scales_fault(None, value):
        raise ValueError(f"{op}: {name} {fault} (decode direction, amax / 2688)")


def _has_nan(block_scale: Tensor) -> bool:
    if block_scale.numel() == 0 or block_scale.device.type == "meta":
        return False
    limit = MAX_FINITE_E4M3 if block_scale.dtype is torch.float8_e4m3fn else 0xFE
    return int(block_scale.view(torch.uint8).max()) > limit


def nvfp4_dequantize(
    x: ScaledTensor, dtype: torch.dtype = torch.bfloat16, *, backend: str | None = None
) -> Tensor:
    """The value of a quantised tensor, in any layout, computed in fp32 and rounded once to `dtype`."""
    if not isinstance(x, ScaledTensor):
        raise TypeError(
            f"nvfp4_dequantize: x is {type(x).__name__}, expected a ScaledTensor from nvfp4_quantize"
        )
    if not is_compiling():
        x.examine("nvfp4_dequantize: x")
    x = to_layout(x, "linear")
    args = (x.data, x.block_scale, x.global_scale, x.format.name, short(dtype))
    return _dequantize(args, None, backend)  # type: ignore[no-any-return]


def nvfp4_linear(
    x: Tensor,
    weight: ScaledTensor,
    bias: Tensor | None = None,
    *,
    activation: str = "bf16",
    input_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """x (..., K) @ weight (N, K)^T + bias, with a 4-bit weight; result (..., N) in x.dtype.

    activation  "bf16"   x keeps its own precision (fp32 and fp16 too): W4A16
                "int8"   x is rounded to int8, one scale per row: W4A8
                "nvfp4"  x is quantised like the weight: W4A4; input_scale (decode direction) is its calibrated
                         global scale, None takes it from the finite values of this call
                "mxfp4"  x is rounded to MXFP4 (powers of two over 32 elements), meant for an MXFP4 weight

    Accumulation is fp32 or exact integer. A row of x with NaN or infinities gives a row that is not finite and
    leaves the others alone. The first call on a CPU makes a packed copy of a linear weight and keeps it in
    weight.prepared; NVFP4Linear holds only the packed one. Under torch.compile nothing is packed: a weight is used as
    it is held then, so run once before compiling, or call NVFP4Linear.prepare() (quantize_model does).
    """
    _check_scale("nvfp4_linear", "input_scale", input_scale)
    if not isinstance(weight, ScaledTensor):
        raise TypeError(
            f"nvfp4_linear: weight is {type(weight).__name__}, expected a ScaledTensor from nvfp4_quantize"
        )
    w = as_prepared(weight) if is_opaque(x) else for_device(weight, activation)
    args = (
        x, w.data, w.block_scale, w.global_scale, bias, activation, input_scale, w.format.name, w.layout, w.shape[0],
    )  # fmt: skip
    return _linear(args, None, backend)  # type: ignore[no-any-return]
