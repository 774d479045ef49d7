"""The floor for NVFP4: plain torch in slices of bounded memory, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.formats import ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import PANEL, to_layout

SLICE_ELEMENTS = 1 << 22  # 16 MiB of fp32 values at once, about four times that in temporaries


def _slices(rows: int, k: int) -> range:
    return range(0, rows, max(PANEL, SLICE_ELEMENTS // max(k, 1) // PANEL * PANEL))


def _quantize(x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool) -> tuple[Tensor, ...]:
    fmt = parse_format(format)
    flat = x.reshape(-1, x.shape[-1])
    steps = _slices(*flat.shape)
    if fmt.has_global and global_scale is None:
        found = [_amax(flat[i : i + steps.step]) for i in steps]
        global_scale = reference.global_scale_of(torch.stack(found) if found else flat.float())
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = [
        reference.nvfp4_quantize(flat[i : i + steps.step], global_scale, format, stochastic) for i in steps
    ]
    if len(parts) != 1:
        data = (
            torch.cat([p[0] for p in parts])
            if parts
            else flat.new_empty(flat.shape, dtype=torch.uint8)[:, ::2]
        )
        raw = [p[1].view(torch.uint8) for p in parts]
        scale = torch.cat(raw) if raw else flat.new_empty((0, flat.shape[1] // fmt.block), dtype=torch.uint8)
        parts = [(data, scale.view(fmt.scale_dtype), global_scale)]
    data, scale, out = parts[0]
    *lead, k = x.shape
    out = flat.new_ones((), dtype=torch.float32) if out is None else out.reshape(()).to(torch.float32).clone()
    return data.reshape(*lead, k // 2).contiguous(), scale.reshape(*lead, k // fmt.block), out


def _amax(x: Tensor) -> Tensor:
    wide = x.detach().to(torch.float32).abs()
    return torch.where(wide.isfinite(), wide, 0.0).amax()


def _dequantize(
    data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
) -> Tensor:
    flat, scale = data.reshape(-1, data.shape[-1]), block_scale.reshape(-1, block_scale.shape[-1])
    out = data.new_empty((flat.shape[0], 2 * flat.shape[1]), dtype=getattr(torch, dtype))
    steps = _slices(flat.shape[0], out.shape[1])
    for i in steps:
        part = slice(i, i + steps.step)
        out[part] = reference.nvfp4_dequantize(flat[part], scale[part], global_scale, format, dtype)
    return out.reshape(*data.shape[:-1], out.shape[1])


def _compute_dtype(x: Tensor) -> torch.dtype:
    """bf16 where the device multiplies it fast; the weight without its global scale is exact in bf16."""
    if x.dtype is torch.bfloat16 and x.device.type != "cpu":
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)  # fp16 would overflow: unscaled weights reach 2688


def _linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
    activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
) -> Tensor:  # fmt: skip
    fmt = parse_format(format)
    shape = (out_features or weight.shape[0], x.shape[-1])
    w = ScaledTensor(weight, weight_scale, global_scale, fmt, shape, layout)
    if layout not in ("linear", "cpu_packed"):
        w = to_layout(w, "linear")
    dtype = _compute_dtype(x)
    a = reference.quantised_activation(x, activation, input_scale, dtype).reshape(-1, shape[1])
    if (
        activation != "bf16" and x.requires_grad
    ):  # straight through: the gradient passes as if x were not rounded
        wide_x = x.to(dtype).reshape(a.shape)
        a = a + (wide_x - wide_x.detach())
    steps = _slices(*shape)
    parts = []
    for i in steps:
        part = _rows(w, i, min(shape[0], i + steps.step))
        parts.append(F.linear(a, reference.without_global(part.data, part.block_scale, fmt, dtype)))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    wide = torch.promote_types(y.dtype, torch.float32)
    if global_scale is not None:
        y = y.to(wide) * global_scale.to(wide)
    if bias is not None:
        y = y.to(wide) + bias.to(wide)
    return y.to(x.dtype).reshape(*x.shape[:-1], shape[0])


def _rows(w: ScaledTensor, begin: int, end: int) -> ScaledTensor:
    """Rows of a weight, in linear layout; `begin` is a multiple of a panel."""
    shape = (end - begin, w.shape[1])
    if w.layout == "linear":
        return replace(w, data=w.data[begin:end], block_scale=w.block_scale[begin:end], shape=shape)
    panels = w.data[begin // PANEL : -(-end // PANEL)]
    return to_layout(replace(w, data=panels, shape=shape), "linear")


def _floor(op: str, run: Callable[..., Any], **more: Any) -> Implementation:
    return Implementation(
        op=op, backend="torch", load=lambda config: run, doc="plain torch in slices, any device", **more
    )


IMPLEMENTATIONS = (
    _floor("nvfp4_quantize", _quantize, traceable=True),
    _floor("nvfp4_dequantize", _dequantize),
    _floor("nvfp4_linear", _linear, differentiable=True),
)
