"""Activations: silu_mul, gelu_tanh and gelu_mul, on two tensors or on the halves of one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, gelu, narrow, rows_of, silu
from .configs import TileConfig

SILU, GELU_TANH, GELU_ERF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def activation_kernel(
    X, UP, OUT, rows, width, x_inner, x_outer, x_step, up_inner, up_outer, up_step,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, GATED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """act(x) * up, or act(x). Each operand has its own two-level rows: (inner count, outer stride, inner stride)."""
    chunks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // chunks) * ROWS + tl.arange(0, ROWS)
    cols = (tl.program_id(0) % chunks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    ok = (row < rows)[:, None] & (cols < width)
    x_row = X + (row // x_inner).to(tl.int64) * x_outer + (row % x_inner).to(tl.int64) * x_step
    x = tl.load(x_row[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
    y = silu(x) if KIND == SILU else gelu(x, KIND == GELU_ERF)
    if GATED:
        up_row = UP + (row // up_inner).to(tl.int64) * up_outer + (row % up_inner).to(tl.int64) * up_step
        y *= tl.load(up_row[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
    out = (OUT + row.to(tl.int64) * width)[:, None] + cols
    tl.store(out, narrow(y, OUT.dtype.element_ty, UPCAST), mask=ok)


def silu_mul(x: torch.Tensor, up: torch.Tensor | None, *, config: TileConfig) -> torch.Tensor:
    """silu(x) * up; without `up` x holds both, the gate in its first half."""
    return _launch(x, up, SILU.value, True, config)


def gelu_tanh(x: torch.Tensor, *, config: TileConfig) -> torch.Tensor:
    """GELU by its tanh approximation."""
    return _launch(x, None, GELU_TANH.value, False, config)


def gelu_mul(
    x: torch.Tensor, up: torch.Tensor | None, approximate: str, *, config: TileConfig
) -> torch.Tensor:
    """gelu(x) * up; without `up` x holds both, the gate in its first half."""
    return _launch(x, up, (GELU_TANH if approximate == "tanh" else GELU_ERF).value, True, config)


def _launch(
    x: torch.Tensor, up: torch.Tensor | None, kind: int, gated: bool, config: TileConfig
) -> torch.Tensor:
    if gated and up is None:
        half = x.shape[-1] // 2
        x, up = x[..., :half], x[..., half:]
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    first = rows_of(x)
    second = rows_of(up) if up is not None else first
    rows, block = config.shape(width)
    activation_kernel[(triton.cdiv(first.total, rows) * triton.cdiv(width, block),)](
        first.tensor, second.tensor, out, first.total, width,
        first.inner, first.outer_stride, first.inner_stride, second.inner, second.outer_stride, second.inner_stride,
        ROWS=rows, BLOCK=block, KIND=kind, GATED=gated, UPCAST=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip
    return out
