"""4-bit times 4-bit on the tensor cores that multiply it: tl.dot_scaled, packed operands with their scales.

Which chips do, and in which format, is `configs_nvfp4.NATIVE`; elsewhere Triton would decode to bf16 and gain nothing
over nvfp4.py. The interpreter reads every scale as e8m0, so there NVFP4 is decoded by hand: DECODE.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, narrow
from .configs_nvfp4 import LinearConfig
from .nvfp4 import decode_e2m1, decode_scale


@triton.jit
def _values(packed, byte, ROWS: tl.constexpr, COLS: tl.constexpr, GROUP: tl.constexpr):
    """A (ROWS, COLS / 2) tile of codes with its (ROWS, COLS / GROUP) e4m3 scales, as fp32."""
    code = packed.to(tl.int32)
    value = tl.reshape(
        tl.interleave(decode_e2m1(code & 15), decode_e2m1(code >> 4)), (ROWS, COLS // GROUP, GROUP)
    )
    return tl.reshape(value * decode_scale(byte.to(tl.int32), False)[:, :, None], (ROWS, COLS))


@triton.jit
def scaled_kernel(
    a, a_scale, w, w_scale, alpha, bias, out, M, N, K,
    GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, DECODE: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the product; rows of M run fastest, so that programs that follow each other share a weight tile."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = m.to(tl.int64), n.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        half = start // 2 + tl.arange(0, BLOCK_K // 2)
        block = start // GROUP + tl.arange(0, BLOCK_K // GROUP)
        inside, some = half[None, :] < K // 2, block[None, :] < K // GROUP
        left = tl.load(a + row[:, None] * (K // 2) + half[None, :], (m[:, None] < M) & inside, 0)
        right = tl.load(w + column[:, None] * (K // 2) + half[None, :], (n[:, None] < N) & inside, 0)
        byte_a = tl.load(a_scale + row[:, None] * (K // GROUP) + block[None, :], (m[:, None] < M) & some, 0)
        byte_w = tl.load(
            w_scale + column[:, None] * (K // GROUP) + block[None, :], (n[:, None] < N) & some, 0
        )
        if DECODE:
            x = _values(left, byte_a, BLOCK_M, BLOCK_K, GROUP)
            y = _values(right, byte_w, BLOCK_N, BLOCK_K, GROUP)
            total = tl.dot(x, tl.trans(y), total, input_precision="ieee")
        elif GROUP == 16:
            byte_a = byte_a.to(tl.float8e4nv, bitcast=True)
            byte_w = byte_w.to(tl.float8e4nv, bitcast=True)
            total = tl.dot_scaled(left, byte_a, "e2m1", tl.trans(right), byte_w, "e2m1", total)
        else:
            total = tl.dot_scaled(left, byte_a, "e2m1", tl.trans(right), byte_w, "e2m1", total)
    total = total * tl.load(alpha)
    if HAS_BIAS:
        total = total + tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    tl.store(out + row[:, None] * N + column[None, :], narrow(total, out.dtype.element_ty, UPCAST), inside)


def linear_scaled(
    a: torch.Tensor, a_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, alpha: torch.Tensor,
    bias: torch.Tensor | None, dtype: torch.dtype, *, group: int, config: LinearConfig,
) -> torch.Tensor:  # fmt: skip
    """a (M, K/2) times w (N, K/2) transposed, both packed with scales as bytes; times alpha, plus bias, in `dtype`."""
    rows, columns, k = a.shape[0], w.shape[0], 2 * a.shape[1]
    out = torch.empty((rows, columns), dtype=dtype, device=a.device)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(rows, config.block_m), triton.cdiv(columns, config.block_n))
    scaled_kernel[grid](
        a, a_scale.view(torch.uint8), w, w_scale.view(torch.uint8), alpha, out if bias is None else bias, out, rows,
        columns, k,
        GROUP=group, HAS_BIAS=bias is not None, DECODE=INTERPRETED and group == 16, UPCAST=INTERPRETED,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
