"""Modulation without a norm: x * (1 + scale) + shift, and residual + gate * x."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, narrow, parameter_of, tokens_of
from .configs import TileConfig


@triton.jit
def modulate_kernel(
    X, RESIDUAL_PTR, SCALE_PTR, SHIFT_PTR, OUT, rows, width, inner, x_outer, x_inner, residual_outer, residual_inner,
    scale_batch, scale_frame, scale_tokens, shift_batch, shift_frame, shift_tokens,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """RESIDUAL: residual + scale * x, the gate coming as SCALE_PTR; else x * (1 + scale) + shift."""
    chunks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // chunks) * ROWS + tl.arange(0, ROWS)
    cols = (tl.program_id(0) % chunks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    ok = (row < rows)[:, None] & (cols < width)
    outer = (row // inner).to(tl.int64)
    token = row % inner
    token64 = token.to(tl.int64)
    y = tl.load((X + outer * x_outer + token64 * x_inner)[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
    if SCALE:
        scale_row = SCALE_PTR + outer * scale_batch + (token // scale_tokens).to(tl.int64) * scale_frame
        scale = tl.load(scale_row[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
        if RESIDUAL:
            y *= scale
        else:
            y *= 1.0 + scale
    if SHIFT:
        shift_row = SHIFT_PTR + outer * shift_batch + (token // shift_tokens).to(tl.int64) * shift_frame
        y += tl.load(shift_row[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        base = RESIDUAL_PTR + outer * residual_outer + token64 * residual_inner
        y += tl.load(base[:, None] + cols, mask=ok, other=0.0).to(tl.float32)
    out = (OUT + row.to(tl.int64) * width)[:, None] + cols
    tl.store(out, narrow(y, OUT.dtype.element_ty, UPCAST), mask=ok)


def scale_shift(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, *, config: TileConfig
) -> torch.Tensor:
    """x * (1 + scale) + shift, in fp32, rounded once."""
    return _launch(x, None, scale, shift, config)


def gate_residual(
    residual: torch.Tensor, x: torch.Tensor, gate: torch.Tensor, *, config: TileConfig
) -> torch.Tensor:
    """residual + gate * x, in fp32, rounded once."""
    return _launch(x, residual, gate, None, config)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    config: TileConfig,
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype if residual is None else residual.dtype, device=x.device)
    if out.numel() == 0:
        return out
    view = tokens_of(x)
    base = view if residual is None else tokens_of(residual)
    first, second = parameter_of(scale, view), parameter_of(shift, view)
    width = x.shape[-1]
    rows, block = config.shape(width)
    modulate_kernel[(triton.cdiv(view.total, rows) * triton.cdiv(width, block),)](
        view.tensor, base.tensor, first.tensor, second.tensor, out, view.total, width, view.inner,
        view.outer_stride, view.inner_stride, base.outer_stride, base.inner_stride, *first[1:], *second[1:],
        ROWS=rows, BLOCK=block, RESIDUAL=residual is not None, SCALE=scale is not None, SHIFT=shift is not None,
        UPCAST=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip
    return out
