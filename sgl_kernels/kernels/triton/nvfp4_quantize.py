"""Quantisation to NVFP4 and MXFP4 in one pass over the values, and back; bit-equal to ops/nvfp4/reference.py.

Divisions are rounded to nearest (`div_rn`; a plain `/` is approximate on NVIDIA), and e4m3 is rounded by hand from the
bits: GPUs before sm_89 cannot convert to it, and the interpreter's own conversion is off by one in 3 % of values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, Rows, narrow, rows_of
from .configs_nvfp4 import QuantizeConfig
from .nvfp4 import decode_e2m1, decode_scale


@triton.jit
def amax_kernel(x, out, outer_stride, inner_stride, inner, M, K, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The largest finite magnitude, as the bits of an fp32: those of non-negative floats are in order."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (row // inner * outer_stride + row % inner * inner_stride)[:, None]
    k = tl.program_id(1) * COLS + tl.arange(0, COLS)
    value = tl.load(x + first + k[None, :], (row[:, None] < M) & (k[None, :] < K), 0.0).to(tl.float32)
    size = tl.abs(value)
    size = tl.where(size < float("inf"), size, 0.0)
    tl.atomic_max(out, tl.max(tl.max(size, 1), 0).to(tl.int32, bitcast=True))


@triton.jit
def _e4m3(value):
    """fp32 values up to 448 as bytes of e4m3, to nearest, ties to even; NaN as 127."""
    size = tl.abs(value)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # below 2^-6 the step is 2^-9, which is the last place of a float that 2^14 was added to
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    byte = tl.where(size < 0.015625, small, normal)
    byte = tl.where(value < 0.0, byte | 128, byte)
    return tl.where(value == value, byte, 127)


@triton.jit
def _code(scaled):
    """fp32 values in units of their scale as codes 0..15: to nearest, ties to the even code, saturating."""
    size = tl.abs(scaled)
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    code += (size > 5.0).to(tl.int32)
    return tl.where(scaled < 0.0, code | 8, code)


@triton.jit
def quantize_kernel(
    x, amax, given, data, scale, scale_out, outer_stride, inner_stride, inner, M, K,
    GROUP: tl.constexpr, E8M0: tl.constexpr, FROM_AMAX: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """ROWS x COLS values: packed codes, block scales, and from the first program the global scale."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = (row // inner * outer_stride + row % inner * inner_stride)[:, None]
    k = tl.program_id(1) * COLS + tl.arange(0, COLS)
    value = tl.load(x + first + k[None, :], (row[:, None] < M) & (k[None, :] < K), 0.0).to(tl.float32)
    size = tl.reshape(tl.abs(value), (ROWS, COLS // GROUP, GROUP))
    bad = tl.max(tl.where(size < float("inf"), 0, 1), 2) > 0
    largest = tl.max(tl.where(size < float("inf"), size, 0.0), 2)
    if E8M0:
        total = 1.0
        bits = ((largest * 0.16666667163372040).to(tl.int32, bitcast=True) + 0x007FFFFF) & 0x7F800000
        bits = tl.where(bad, 0x7F800000, bits)
        byte = bits >> 23
        denominator = bits.to(tl.float32, bitcast=True)
    else:
        if FROM_AMAX:
            peak = tl.load(amax).to(tl.float32, bitcast=True)
            total = tl.maximum(tl.div_rn(peak, 2688.0), 6.018531076210112e-36)  # 2^-117, reference.MIN_GLOBAL
            total = tl.where(peak > 0.0, total, 1.0)
        else:
            total = tl.load(given)
        encode = tl.div_rn(1.0, total)
        level = encode * (largest * 0.16666667163372040)
        level = tl.where(level > 448.0, 448.0, level)
        byte = tl.where(bad, 127, _e4m3(level))
        denominator = decode_scale(byte, False) * tl.div_rn(1.0, encode)
    inverse = tl.div_rn(1.0, denominator)
    inverse = tl.where(inverse > 4.253529586511731e37, 4.253529586511731e37, inverse)  # 2^125
    inverse = tl.where(denominator == 0.0, 0.0, inverse)
    grouped = tl.reshape(value, (ROWS, COLS // GROUP, GROUP))
    scaled = tl.where(bad[:, :, None], 0.0, grouped * inverse[:, :, None])
    low, high = tl.split(tl.reshape(_code(scaled), (ROWS, COLS // 2, 2)))
    half = tl.program_id(1) * (COLS // 2) + tl.arange(0, COLS // 2)
    inside = (row[:, None] < M) & (half[None, :] < K // 2)
    tl.store(data + row[:, None] * (K // 2) + half[None, :], (low | (high << 4)).to(tl.uint8), inside)
    block = tl.program_id(1) * (COLS // GROUP) + tl.arange(0, COLS // GROUP)
    inside = (row[:, None] < M) & (block[None, :] < K // GROUP)
    tl.store(scale + row[:, None] * (K // GROUP) + block[None, :], byte.to(tl.uint8), inside)
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(scale_out, total)


@triton.jit
def dequantize_kernel(
    data, scale, total, out, M, K,
    GROUP: tl.constexpr, E8M0: tl.constexpr, HAS_GLOBAL: tl.constexpr, UPCAST: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """ROWS x COLS values: fp32 products, rounded once."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    half = tl.program_id(1) * (COLS // 2) + tl.arange(0, COLS // 2)
    inside = (row[:, None] < M) & (half[None, :] < K // 2)
    packed = tl.load(data + row[:, None] * (K // 2) + half[None, :], inside, 0).to(tl.int32)
    value = tl.interleave(decode_e2m1(packed & 15), decode_e2m1(packed >> 4))
    block = tl.program_id(1) * (COLS // GROUP) + tl.arange(0, COLS // GROUP)
    inside = (row[:, None] < M) & (block[None, :] < K // GROUP)
    byte = tl.load(scale + row[:, None] * (K // GROUP) + block[None, :], inside, 0).to(tl.int32)
    value = tl.reshape(value, (ROWS, COLS // GROUP, GROUP)) * decode_scale(byte, E8M0)[:, :, None]
    value = tl.reshape(value, (ROWS, COLS))
    if HAS_GLOBAL:
        value = value * tl.load(total)
    k = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row[:, None] < M) & (k[None, :] < K)
    tl.store(out + row[:, None] * K + k[None, :], narrow(value, out.dtype.element_ty, UPCAST), inside)


def _grid(rows: int, k: int, config: QuantizeConfig) -> tuple[int, int]:
    return triton.cdiv(rows, config.rows), triton.cdiv(k, config.columns)


def quantize(
    x: torch.Tensor, global_scale: torch.Tensor | None, *, group: int, config: QuantizeConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (..., K) as packed codes (M, K/2), scales as bytes (M, K/group) and an fp32 global scale of one value.

    group 16 is NVFP4, 32 is MXFP4. Without a global scale NVFP4 reads x twice: its amax comes first.
    """
    k, e8m0 = x.shape[-1], group == 32
    view: Rows = rows_of(x)
    rows = view.total if x.numel() else 0
    data = torch.empty((rows, k // 2), dtype=torch.uint8, device=x.device)
    scale = torch.empty((rows, k // group), dtype=torch.uint8, device=x.device)
    total = torch.ones(1, dtype=torch.float32, device=x.device)
    if rows == 0:
        return (
            data,
            scale,
            total if global_scale is None else global_scale.to(torch.float32).reshape(1).clone(),
        )
    strides = (view.outer_stride, view.inner_stride, view.inner)
    grid, from_amax = _grid(rows, k, config), not e8m0 and global_scale is None
    amax, given = total, total
    if from_amax:
        amax = torch.zeros(1, dtype=torch.int32, device=x.device)
        amax_kernel[grid](
            view.tensor, amax, *strides, rows, k, ROWS=config.rows, COLS=config.columns, num_warps=config.num_warps
        )  # fmt: skip
    elif global_scale is not None:
        given = global_scale.to(torch.float32).reshape(1)
    quantize_kernel[grid](
        view.tensor, amax, given, data, scale, total, *strides, rows, k,
        GROUP=group, E8M0=e8m0, FROM_AMAX=from_amax, ROWS=config.rows, COLS=config.columns,
        num_warps=config.num_warps,
    )  # fmt: skip
    return data, scale, total


def dequantize(
    data: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor | None, dtype: torch.dtype, *,
    group: int, config: QuantizeConfig,
) -> torch.Tensor:  # fmt: skip
    """Packed codes (M, K/2) and scales (M, K/group), both contiguous, as values (M, K) in `dtype`."""
    rows, k = data.shape[0], 2 * data.shape[1]
    out = torch.empty((rows, k), dtype=dtype, device=data.device)
    if out.numel() == 0:
        return out
    total = data if global_scale is None else global_scale.to(torch.float32).reshape(1)
    dequantize_kernel[_grid(rows, k, config)](
        data, scale.view(torch.uint8), total, out, rows, k,
        GROUP=group, E8M0=group == 32, HAS_GLOBAL=global_scale is not None, UPCAST=INTERPRETED, ROWS=config.rows,
        COLS=config.columns, num_warps=config.num_warps,
    )  # fmt: skip
    return out
