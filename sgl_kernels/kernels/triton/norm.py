"""Row norms: rms, layer, adaLN and residual-gate-adaLN, one kernel with the unused parts compiled away."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, Parameter, Rows, narrow, parameter_of, rows_of, tokens_of
from .configs import NormConfig


@triton.jit
def _read(
    x_row, residual_row, gate_row, cols, ok, width, dtype: tl.constexpr,
    RESIDUAL: tl.constexpr, GATE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What the norm reads, in fp32: x, or residual + gate * x rounded to the residual's dtype as the output is."""
    x = tl.load(x_row[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        if GATE:
            x *= tl.load(gate_row[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        x += tl.load(residual_row[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        x = narrow(x, dtype, UPCAST).to(tl.float32)
    return x


@triton.jit
def _write(
    y, out_row, scale_row, shift_row, WEIGHT_PTR, BIAS_PTR, cols, ok, width, weight_offset,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The affine part, the modulation, and the one rounding of the result."""
    inside = cols < width
    if WEIGHT:
        y *= (tl.load(WEIGHT_PTR + cols, mask=inside, other=0.0).to(tl.float32) + weight_offset)[None, :]
    if BIAS:
        y += tl.load(BIAS_PTR + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    if SCALE:
        y *= 1.0 + tl.load(scale_row[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if SHIFT:
        y += tl.load(shift_row[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    tl.store(out_row[:, None] + cols[None, :], narrow(y, out_row.dtype.element_ty, UPCAST), mask=ok)


@triton.jit
def row_norm_kernel(
    X, RESIDUAL_PTR, GATE_PTR, SCALE_PTR, SHIFT_PTR, WEIGHT_PTR, BIAS_PTR, OUT, RESIDUAL_OUT,
    rows, width, inner, x_outer, x_inner, residual_outer, residual_inner,
    gate_batch, gate_frame, gate_tokens, scale_batch, scale_frame, scale_tokens,
    shift_batch, shift_frame, shift_tokens, eps, weight_offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNKED: tl.constexpr, LAYER: tl.constexpr, RESIDUAL: tl.constexpr,
    GATE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """ROWS rows for each program: read once, centre, square, scale, write. CHUNKED rows are read three times."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    outer = (row // inner).to(tl.int64)
    token = row % inner
    token64 = token.to(tl.int64)
    x_row = X + outer * x_outer + token64 * x_inner
    residual_row = RESIDUAL_PTR + outer * residual_outer + token64 * residual_inner
    gate_row = GATE_PTR + outer * gate_batch + (token // gate_tokens).to(tl.int64) * gate_frame
    scale_row = SCALE_PTR + outer * scale_batch + (token // scale_tokens).to(tl.int64) * scale_frame
    shift_row = SHIFT_PTR + outer * shift_batch + (token // shift_tokens).to(tl.int64) * shift_frame
    out_row = OUT + row.to(tl.int64) * width
    residual_out_row = RESIDUAL_OUT + row.to(tl.int64) * width
    dtype: tl.constexpr = OUT.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    if CHUNKED:
        mean = tl.zeros((ROWS,), tl.float32)
        if LAYER or RESIDUAL:
            for start in range(0, width, BLOCK):
                cols = start + lanes
                ok = live[:, None] & (cols < width)[None, :]
                x = _read(x_row, residual_row, gate_row, cols, ok, width, dtype, RESIDUAL, GATE, UPCAST)
                mean += tl.sum(x, 1)
                if RESIDUAL:
                    tl.store(residual_out_row[:, None] + cols[None, :], x.to(dtype), mask=ok)
        mean = mean / width if LAYER else mean * 0.0
        square = tl.zeros((ROWS,), tl.float32)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            ok = live[:, None] & (cols < width)[None, :]
            x = _read(x_row, residual_row, gate_row, cols, ok, width, dtype, RESIDUAL, GATE, UPCAST)
            x = tl.where(ok, x - mean[:, None], 0.0) if LAYER else x
            square += tl.sum(x * x, 1)
        inverse = tl.rsqrt(square / width + eps)
        for start in range(0, width, BLOCK):
            cols = start + lanes
            ok = live[:, None] & (cols < width)[None, :]
            x = _read(x_row, residual_row, gate_row, cols, ok, width, dtype, RESIDUAL, GATE, UPCAST)
            x = x - mean[:, None] if LAYER else x
            _write(
                x * inverse[:, None], out_row, scale_row, shift_row, WEIGHT_PTR, BIAS_PTR, cols, ok, width,
                weight_offset, WEIGHT, BIAS, SCALE, SHIFT, UPCAST,
            )  # fmt: skip
    else:
        ok = live[:, None] & (lanes < width)[None, :]
        x = _read(x_row, residual_row, gate_row, lanes, ok, width, dtype, RESIDUAL, GATE, UPCAST)
        if RESIDUAL:
            tl.store(residual_out_row[:, None] + lanes[None, :], x.to(dtype), mask=ok)
        if LAYER:
            mean = tl.sum(x, 1) / width
            x = tl.where(ok, x - mean[:, None], 0.0)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
        _write(
            x * inverse[:, None], out_row, scale_row, shift_row, WEIGHT_PTR, BIAS_PTR, lanes, ok, width,
            weight_offset, WEIGHT, BIAS, SCALE, SHIFT, UPCAST,
        )  # fmt: skip


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, weight_offset: float, *, config: NormConfig
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension."""
    return _launch(rows_of(x), None, None, None, None, weight, None, eps, weight_offset, False, config)[0]


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, *, config: NormConfig
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension, variance in a second pass."""
    return _launch(rows_of(x), None, None, None, None, weight, bias, eps, 0.0, True, config)[0]


def norm_scale_shift(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    norm: str,
    *,
    config: NormConfig,
) -> torch.Tensor:
    """adaLN: norm(x) * (1 + scale) + shift, rounded once."""
    view = rows_of(x) if scale is None and shift is None else tokens_of(x)
    return _launch(view, None, None, scale, shift, weight, bias, eps, 0.0, norm == "layer", config)[0]


def residual_gate_norm_scale_shift(
    residual: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    norm: str,
    *,
    config: NormConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(adaLN of residual_out, residual_out = residual + gate * x), both written in one pass over memory."""
    view, base = tokens_of(x), tokens_of(residual)
    out, total = _launch(view, base, gate, scale, shift, weight, bias, eps, 0.0, norm == "layer", config)
    return out, total


def _launch(
    x: Rows,
    residual: Rows | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    layer: bool,
    config: NormConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, residual_out); without a residual the second is the first and is not to be used."""
    shape, width = x.tensor.shape, x.tensor.shape[-1]
    out = torch.empty(shape, dtype=x.tensor.dtype, device=x.tensor.device)
    total = out if residual is None else torch.empty(shape, dtype=x.tensor.dtype, device=x.tensor.device)
    if out.numel() == 0:
        return out, total
    base = residual or x
    params: list[Parameter] = [parameter_of(p, x) for p in (gate, scale, shift)]
    block = min(triton.next_power_of_2(width), config.max_block)
    rows = max(1, config.tile // block)
    row_norm_kernel[(triton.cdiv(x.total, rows),)](
        x.tensor, base.tensor, *(p.tensor for p in params),
        x.tensor if weight is None else weight.contiguous(), x.tensor if bias is None else bias.contiguous(),
        out, total,
        x.total, width, x.inner, x.outer_stride, x.inner_stride, base.outer_stride, base.inner_stride,
        *(value for p in params for value in p[1:]), eps, weight_offset,
        ROWS=rows, BLOCK=block, CHUNKED=width > block, LAYER=layer, RESIDUAL=residual is not None,
        GATE=gate is not None, WEIGHT=weight is not None, BIAS=bias is not None, SCALE=scale is not None,
        SHIFT=shift is not None, UPCAST=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip
    return out, total
