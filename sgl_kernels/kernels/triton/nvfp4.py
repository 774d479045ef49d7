"""Linear layers with packed 4-bit weights: decoded in registers, multiplied at the precision of x.

One kernel serves every activation: int8 and nvfp4 activations arrive as exact small numbers in x's own dtype, with a
factor per row. Scales are decoded from their bits, so GPUs without fp8 conversions run it too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, narrow
from .configs_nvfp4 import LinearConfig, is_wide


@triton.jit
def decode_e2m1(code):
    """Codes 0..15 (int32) as fp32: from 1.0 up, two exponent bits and one of mantissa; below, 0 and 0.5."""
    size = code & 7
    bits = (((size >> 1) + 126) << 23) | ((size & 1) << 22)
    value = tl.where(size >= 2, bits.to(tl.float32, bitcast=True), size.to(tl.float32) * 0.5)
    return tl.where(code >= 8, -value, value)


@triton.jit
def decode_scale(byte, E8M0: tl.constexpr):
    """Bytes (int32) of e4m3 or e8m0 as fp32; the NaN of each stays NaN."""
    if E8M0:
        bits = tl.where(byte == 0, 0x00400000, byte << 23)
        value = tl.where(byte == 255, float("nan"), bits.to(tl.float32, bitcast=True))
    else:
        size = byte & 127
        normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        value = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
        value = tl.where(byte >= 128, -value, value)
        value = tl.where(size == 127, float("nan"), value)
    return value


@triton.jit
def _linear(
    x, data, scale, alpha, row_scale, bias, out,
    M, N, K, x_stride,
    GROUP: tl.constexpr, E8M0: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
    WIDE: tl.constexpr, FP32_DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = m.to(tl.int64), n.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + row[:, None] * x_stride + k[None, :], (m[:, None] < M) & (k[None, :] < K), 0.0)
        half = start // 2 + tl.arange(0, BLOCK_K // 2)
        inside = (n[:, None] < N) & (half[None, :] < K // 2)
        packed = tl.load(data + column[:, None] * (K // 2) + half[None, :], inside, 0).to(tl.int32)
        values = tl.interleave(decode_e2m1(packed & 15), decode_e2m1(packed >> 4))
        block = start // GROUP + tl.arange(0, BLOCK_K // GROUP)
        inside = (n[:, None] < N) & (block[None, :] < K // GROUP)
        bytes_ = tl.load(scale + column[:, None] * (K // GROUP) + block[None, :], inside, 0).to(tl.int32)
        w = tl.reshape(values, (BLOCK_N, BLOCK_K // GROUP, GROUP)) * decode_scale(bytes_, E8M0)[:, :, None]
        w = tl.reshape(w, (BLOCK_N, BLOCK_K))
        if UPCAST or WIDE:
            a = a.to(tl.float32)
        else:
            w = w.to(a.dtype)  # exact: at most six significant bits, and no larger than 2688
        total = tl.dot(a, tl.trans(w), total, input_precision=FP32_DOT)
    total = total * tl.load(alpha)
    if HAS_ROWS:
        total = total * tl.load(row_scale + m, m < M, 0.0)[:, None]
    if HAS_BIAS:
        total = total + tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(out + row[:, None] * N + column[None, :], narrow(total, out.dtype.element_ty, UPCAST), inside)


def linear(
    x: torch.Tensor,
    data: torch.Tensor,
    scale: torch.Tensor,
    alpha: torch.Tensor,
    row_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    group: int,
    config: LinearConfig,
) -> torch.Tensor:
    """x (M, K) times a packed weight (N, K/2), scales (N, K/group) as bytes; times alpha and row_scale, plus bias."""
    (rows, k), columns = x.shape, data.shape[0]
    out = x.new_empty((rows, columns))
    if out.numel() == 0:
        return out
    e8m0 = group == 32
    grid = (triton.cdiv(columns, config.block_n), triton.cdiv(rows, config.block_m))
    _linear[grid](
        x, data, scale.view(torch.uint8), alpha, x if row_scale is None else row_scale, x if bias is None else bias,
        out, rows, columns, k, x.stride(0),
        GROUP=group, E8M0=e8m0, HAS_ROWS=row_scale is not None, HAS_BIAS=bias is not None, UPCAST=INTERPRETED,
        WIDE=is_wide(x.dtype, group), FP32_DOT=config.fp32_dot,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
