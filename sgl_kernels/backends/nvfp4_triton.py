"""NVFP4 and MXFP4 in Triton: linear layers for GPUs with and without fp4 instructions, quantisation in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._order import LAST
from sgl_kernels.backends.triton import (
    FUSED,
    INTERPRETED,
    chosen_tile,
    gpu_or_interpreter,
    rejects_old_gpu,
    tuned_for,
)
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation, Place
from sgl_kernels.core.selection.requires import FLOATS
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.kernels.triton import configs_nvfp4
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.formats import ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import to_layout

FOUR_BIT = ("nvfp4", "mxfp4")


def _load_linear(config: Any) -> Callable[..., Tensor]:
    from sgl_kernels.kernels.triton.nvfp4 import linear
    from sgl_kernels.kernels.triton.nvfp4_quantize import dequantize, quantize
    from sgl_kernels.kernels.triton.nvfp4_scaled import linear_scaled

    tile = chosen_tile(config, configs_nvfp4.LinearConfig, configs_nvfp4.INTERPRETER)

    def run(
        x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
        activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
    ) -> Tensor:  # fmt: skip
        fmt = parse_format(format)
        n, k = out_features or weight.shape[0], x.shape[-1]
        w = to_layout(ScaledTensor(weight, weight_scale, global_scale, fmt, (n, k), layout), "linear")
        data, scale = w.data.contiguous(), w.block_scale.contiguous()
        alpha = global_scale if global_scale is not None else torch.ones((), device=x.device)
        alpha, rows, flat = alpha.to(torch.float32).reshape(1), None, x.reshape(-1, k)
        if activation in FOUR_BIT:
            group = parse_format(activation).block
            codes, code_scale, total = quantize(flat, input_scale, group=group, config=_quantize_tile(x))
            alpha = alpha * total
            if tile.native and activation == format:
                y = linear_scaled(
                    codes, code_scale, data, scale, alpha, bias, x.dtype, group=group, config=tile
                )
                return y.reshape(*x.shape[:-1], n)
            # MXFP4 has no global scale, so its values are as large as x and may round up beyond fp16
            dtype = torch.float32 if activation == "mxfp4" and x.dtype is torch.float16 else x.dtype
            flat = dequantize(codes, code_scale, None, dtype, group=group, config=_quantize_tile(x))
        elif activation == "int8":
            q, rows = reference.int8_rows(flat)
            flat, rows = q.to(x.dtype), rows.reshape(-1)
        y = linear(flat.contiguous(), data, scale, alpha, rows, bias, group=fmt.block, config=tile)
        return y.to(x.dtype).reshape(*x.shape[:-1], n)

    return run


def _quantize_tile(x: Tensor) -> configs_nvfp4.QuantizeConfig:
    """The tile of the activation's quantisation inside a linear layer."""
    return configs_nvfp4.quantize("interpreter" if x.device.type == "cpu" else "gpu")


def _load_quantize(config: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    from sgl_kernels.kernels.triton.nvfp4_quantize import quantize

    tile = chosen_tile(config, configs_nvfp4.QuantizeConfig, configs_nvfp4.quantize("interpreter"))

    def run(
        x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        # stochastic is False here: _rejects_stochastic
        fmt, (*lead, k) = parse_format(format), x.shape
        data, scale, total = quantize(x, global_scale, group=fmt.block, config=tile)
        scale = scale.view(fmt.scale_dtype).reshape(*lead, k // fmt.block)
        return data.reshape(*lead, k // 2), scale, total.reshape(())

    return run


def _load_dequantize(config: Any) -> Callable[..., Tensor]:
    from sgl_kernels.kernels.triton.nvfp4_quantize import dequantize

    tile = chosen_tile(config, configs_nvfp4.QuantizeConfig, configs_nvfp4.quantize("interpreter"))

    def run(
        data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
    ) -> Tensor:
        fmt, (*lead, half) = parse_format(format), data.shape
        flat = data.reshape(-1, half).contiguous()
        scale = block_scale.to(fmt.scale_dtype).reshape(-1, block_scale.shape[-1]).contiguous()
        y = dequantize(flat, scale, global_scale, getattr(torch, dtype), group=fmt.block, config=tile)
        return y.reshape(*lead, 2 * half)

    return run


def _rejects_stochastic(facts: Any) -> Rejected | None:
    if facts.stochastic:
        return Rejected(
            Reason.FEATURE, "rounds to nearest only; torch draws the numbers of stochastic rounding"
        )
    return None


MOST_ROWS = 65535 * 64
"""A CUDA grid has 65535 programs along its second axis, and the tile for many rows has at least 64 of them."""


def _rejects_tall(facts: Any) -> Rejected | None:
    if facts.m > MOST_ROWS:
        return Rejected(Reason.SHAPE, f"{facts.m} rows of x; one launch takes {MOST_ROWS} at most")
    return None


def _rank(facts: Any, device: Device) -> int:
    """Above the floor, which writes what it decodes to memory and reads it again."""
    return (
        INTERPRETED
        if device.platform == "cpu"
        else Place(FUSED, "the floor writes what it decodes to memory")
    )


def _linear_rank(facts: Any, device: Device) -> int:
    """Behind torch._scaled_mm where it reads a swizzled weight as it is: ours would undo that in every call."""
    if device.platform == "cuda" and facts.activation == facts.format and facts.layout == "swizzled_128x4":
        return Place(LAST, "the floor writes what it decodes to memory")
    return _rank(facts, device)


def _linear_configs(facts: Any, device: Device) -> tuple[configs_nvfp4.LinearConfig, ...]:
    """Packed operands where the chip multiplies them, then the decoded tile for a tuner to compare."""
    group = parse_format(facts.format).block
    # a decoded MXFP4 activation of an fp16 x is fp32 too: see run
    wide = configs_nvfp4.is_wide(facts.dtype, 32 if facts.activation == "mxfp4" else group)
    decoded = configs_nvfp4.linear(tuned_for(device), facts.m, wide)
    if facts.activation != facts.format:
        return (decoded,)
    arch = device.arch if device.platform in ("cuda", "rocm") else tuned_for(device)
    native = configs_nvfp4.native(arch, group, facts.m)
    return (decoded,) if native is None else (native, decoded)


def _quantize_configs(facts: Any, device: Device) -> tuple[configs_nvfp4.QuantizeConfig, ...]:
    return (configs_nvfp4.quantize(tuned_for(device)),)


def _implementation(
    op: str, load: Any, rank: Any, make_configs: Any, doc: str, rejects: Any = None
) -> Implementation:
    return Implementation(
        op=op, backend="triton", load=load, requires=gpu_or_interpreter(FLOATS), rejects=rejects,
        rejects_on=rejects_old_gpu, rank=rank, configs=make_configs, launches_on_current_device=True,
        proof="interpreted, compiled", doc=doc,
    )  # fmt: skip


IMPLEMENTATIONS = (
    _implementation(
        "nvfp4_linear", _load_linear, _linear_rank, _linear_configs,
        "ours: packed operands on fp4 tensor cores, else weights decoded in registers", _rejects_tall,
    ),
    _implementation(
        "nvfp4_quantize", _load_quantize, _rank, _quantize_configs, "ours: one pass, after one for the amax",
        _rejects_stochastic,
    ),
    _implementation("nvfp4_dequantize", _load_dequantize, _rank, _quantize_configs, "ours: one pass"),
)  # fmt: skip
