"""NVFP4 and MXFP4 linear layers in Triton, for GPUs without fp4 instructions (and any others)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends.triton import FUSED, INTERPRETED, _chosen, _rejects_old_gpu, _requires, family
from sgl_kernels.core.device import Device
from sgl_kernels.core.implementation import Implementation
from sgl_kernels.core.requires import FLOATS
from sgl_kernels.kernels.triton import configs_nvfp4
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import to_layout


def _load(config: Any) -> Callable[..., Tensor]:
    from sgl_kernels.kernels.triton.nvfp4 import linear

    tile = _chosen(config, configs_nvfp4.LinearConfig, configs_nvfp4.linear("interpreter", 1))

    def run(
        x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
        activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
    ) -> Tensor:  # fmt: skip
        fmt = parse_format(format)
        n, k = out_features or weight.shape[0], x.shape[-1]
        w = to_layout(ScaledTensor(weight, weight_scale, global_scale, fmt, (n, k), layout), "linear")
        flat = x.reshape(-1, k).contiguous()
        alpha = global_scale if global_scale is not None else torch.ones((), device=x.device)
        alpha, rows = alpha.to(torch.float32).reshape(1), None
        if activation == "int8":
            q, rows = reference.int8_rows(flat)
            flat, rows = q.to(x.dtype), rows.reshape(-1)
        elif activation == "nvfp4":
            data, scale, total = reference.nvfp4_quantize(flat, input_scale, "nvfp4", False)
            flat, alpha = reference.without_global(data, scale, NVFP4, x.dtype), alpha * total
        y = linear(
            flat.contiguous(), w.data.contiguous(), w.block_scale.contiguous(), alpha, rows, bias, group=fmt.block,
            config=tile,
        )  # fmt: skip
        return y.reshape(*x.shape[:-1], n)

    return run


def _rank(facts: Any, device: Device) -> int:
    """Above the floor, which writes the decoded weight to memory and reads it again."""
    return INTERPRETED if device.platform == "cpu" else FUSED


def _configs(facts: Any, device: Device) -> tuple[configs_nvfp4.LinearConfig, ...]:
    return (configs_nvfp4.linear(family(device), facts.m),)


IMPLEMENTATIONS = (
    Implementation(
        op="nvfp4_linear",
        backend="triton",
        load=_load,
        requires=_requires(FLOATS),
        rejects_on=_rejects_old_gpu,
        rank=_rank,
        configs=_configs,
        launches_on_current_device=True,
        proof="interpreted",
        doc="ours: weights decoded in registers, sm_80 and newer, CDNA, RDNA, Xe",
    ),
)
