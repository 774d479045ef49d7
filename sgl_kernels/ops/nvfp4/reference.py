"""The definition of 4-bit quantisation and of the quantised linear layer, in plain torch.

One formula, computed in fp32 in exactly this order, so that every implementation can be bit-equal to it:

    encode      = 1 / global_scale                      global_scale = amax / 2688 (decode direction)
    block_scale = e4m3(min(encode * (amax_block * fp32(1/6)), 448))         nearest even, no epsilon
    multiplier  = 1 / (block_scale * (1 / encode)), 0 where block_scale is 0
    code        = e2m1(clamp(x * multiplier, -6, 6))                        nearest, ties to the even code

A zero block gets scale 0 and codes 0; -0 gets code 0, a negative value that rounds to zero gets code 8 (-0). A block
with a NaN or an infinity gets the scale NaN and decodes to NaN, and leaves the other blocks alone.
MXFP4 differs in the scale: amax_block * fp32(1/6) rounded up to a power of two, so nothing saturates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import E2M1_MAX, E4M3_MAX, FORMATS, ScaledFormat, ScaledTensor, parse_format
from .layouts import to_layout

SIXTH = 1.0 / 6.0  # torch rounds it to fp32 where it meets an fp32 tensor
MIN_GLOBAL = 2.0**-117  # below, 1 / (block_scale * global_scale) would overflow fp32
FLOAT_MAX = torch.finfo(torch.float32).max
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_UPPER = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))


def global_scale_of(x: Tensor) -> Tensor:
    """amax / 2688 over the finite values of `x`, as an fp32 scalar; 1 for a tensor of zeros."""
    wide = x.detach().to(torch.float32).abs()
    if wide.numel() == 0:
        return wide.new_ones(())
    amax = torch.where(wide.isfinite(), wide, 0.0).amax()
    scale = (amax / (E2M1_MAX * E4M3_MAX)).clamp(min=MIN_GLOBAL)
    return torch.where(amax > 0, scale, torch.ones_like(scale))


def e2m1_codes(scaled: Tensor) -> Tensor:
    """fp32 values already divided by their scale -> codes 0..15 (uint8): nearest, ties to even, saturating."""
    magnitude = scaled.abs()
    code = torch.zeros_like(scaled, dtype=torch.uint8)
    for bound, closed in _UPPER:
        code += magnitude >= bound if closed else magnitude > bound
    return code | ((scaled < 0).to(torch.uint8) << 3)


def e2m1_codes_stochastic(scaled: Tensor) -> Tensor:
    """As e2m1_codes, but each value goes up with probability equal to its distance from the grid point below."""
    grid = torch.tensor(VALUES, device=scaled.device)
    magnitude = scaled.abs().clamp(max=E2M1_MAX).nan_to_num(0.0)
    low = (torch.bucketize(magnitude, grid, right=True) - 1).clamp(min=0)
    high = (low + 1).clamp(max=7)
    step = (grid[high] - grid[low]).clamp(min=0.5)
    up = torch.rand_like(magnitude) < (magnitude - grid[low]) / step
    code = torch.where(up, high, low).to(torch.uint8)
    return code | ((scaled < 0).to(torch.uint8) << 3)


def nvfp4_quantize(
    x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(packed data, block scales, global scale) of `x` (..., K), both in linear layout."""
    fmt = parse_format(format)
    wide = x.detach().to(torch.float32).unflatten(-1, (-1, fmt.block))
    amax = wide.abs().amax(-1, keepdim=True)
    finite = amax.isfinite()
    if fmt.has_global:
        scale_out = global_scale_of(x) if global_scale is None else global_scale.reshape(()).to(torch.float32)
        encode = 1.0 / scale_out
        block_scale = (encode * (amax * SIXTH)).clamp(max=E4M3_MAX).masked_fill(~finite, float("nan"))
        block_scale = block_scale.to(torch.float8_e4m3fn)
        denominator = block_scale.to(torch.float32) * (1.0 / encode)
    else:
        scale_out = wide.new_ones(())
        bits = ((amax * SIXTH).view(torch.int32) + 0x007FFFFF) & 0x7F800000
        bits = bits.masked_fill(~finite, 0x7F800000)
        block_scale = (bits >> 23).to(torch.uint8).view(torch.float8_e8m0fnu)
        denominator = bits.view(torch.float32)
    multiplier = torch.where(denominator == 0, 0.0, (1.0 / denominator).clamp(max=2.0**125))
    scaled = torch.where(finite, wide * multiplier, 0.0)
    codes = (e2m1_codes_stochastic if stochastic else e2m1_codes)(scaled).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), block_scale.squeeze(-1), scale_out


def unit_values(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Packed codes (..., K/2) -> e2m1 values (..., K)."""
    codes = torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)
    table = torch.tensor((*VALUES, *(-v for v in VALUES)), dtype=dtype, device=data.device)
    return table[codes.to(torch.int32)]


def without_global(data: Tensor, block_scale: Tensor, fmt: ScaledFormat, dtype: torch.dtype) -> Tensor:
    """e2m1 * block_scale: exact in fp32 and in bf16 (at most six significant bits), for nvfp4."""
    values = unit_values(data, dtype).unflatten(-1, (-1, fmt.block))
    return (values * block_scale.to(dtype).unsqueeze(-1)).flatten(-2)


def nvfp4_dequantize(
    data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
) -> Tensor:
    """The value of linear packed data, computed in fp32 (fp64 when asked for) and rounded once to `dtype`."""
    target: torch.dtype = getattr(torch, dtype)
    wide = torch.float64 if target is torch.float64 else torch.float32
    values = without_global(data, block_scale, parse_format(format), wide)
    if global_scale is not None:
        values = values * global_scale.to(wide)
    return values.to(target)


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-row symmetric int8: x ~= q * scale, scale = amax * fp32(1/127). A row with NaN or inf gets scale NaN."""
    wide = x.detach().to(torch.float32)
    amax = wide.abs().amax(-1, keepdim=True)
    finite = amax.isfinite()
    # a true division: `127.0 / amax` would be a reciprocal and a product, rounded twice
    multiplier = torch.where(amax > 0, (amax.new_tensor(127.0) / amax).clamp(max=FLOAT_MAX), 0.0)
    q = torch.where(finite, (wide * multiplier).round().clamp(-127, 127), 0.0).to(torch.int8)
    return q, torch.where(finite, amax * (1.0 / 127.0), float("nan"))


def quantised_activation(
    x: Tensor, activation: str, input_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What the products see of `x`, in `dtype`."""
    if activation == "int8":
        q, scale = int8_rows(x)
        return q.to(dtype) * scale.to(dtype)
    if activation in FORMATS:
        data, block_scale, scale = nvfp4_quantize(x, input_scale, activation, False)
        return without_global(data, block_scale, FORMATS[activation], dtype) * scale.to(dtype)
    return x.to(dtype)


def nvfp4_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
    activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
) -> Tensor:  # fmt: skip
    """x (..., K) times the dequantised weight (N, K), transposed, plus bias; result in x.dtype."""
    w = weight_of(x, weight, weight_scale, global_scale, format, layout, out_features)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    values = without_global(w.data, w.block_scale, w.format, wide)
    y = F.linear(quantised_activation(x, activation, input_scale, wide), values)
    if global_scale is not None:
        y = y * global_scale.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype)


def weight_of(
    x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, format: str, layout: str,
    out_features: int,
) -> ScaledTensor:  # fmt: skip
    """The weight operand of nvfp4_linear as a linear ScaledTensor."""
    fmt, shape = parse_format(format), (out_features or weight.shape[0], x.shape[-1])
    scale = weight_scale.to(fmt.scale_dtype)  # a wider dtype holds the same values
    return to_layout(ScaledTensor(weight, scale, global_scale, fmt, shape, layout), "linear")
