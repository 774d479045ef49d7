"""What is compiled ahead of time of the 4-bit kernels: every row of configs_nvfp4, every kind of activation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.triton_aot.case import Case
from sgl_kernels.kernels.triton import configs_nvfp4 as configs
from sgl_kernels.kernels.triton import nvfp4, nvfp4_quantize, nvfp4_scaled

BF16, F16, F32, BYTE = torch.bfloat16, torch.float16, torch.float32, torch.uint8
N = K = 3072
SIZES = {"few": 16, "some": 64, "many": 1024}  # rows of x: one for each config of a row of the table


def _packed(rows: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(rows, K // 2, dtype=BYTE), torch.empty(rows, K // group, dtype=BYTE)


def _decoded(
    family: str, *, m: int, group: int = 16, dtype: torch.dtype = BF16, int8: bool = False, bias: bool = True
) -> Any:
    """W4A16, and with `int8` W4A8: x holds small integers and has a factor for each row."""
    data, scale = _packed(N, group)
    return nvfp4.linear(
        torch.empty(m, K, dtype=dtype), data, scale, torch.empty(1), torch.empty(m) if int8 else None,
        torch.empty(N, dtype=dtype) if bias else None, group=group,
        config=configs.linear(family, m, configs.is_wide(dtype, group)),
    )  # fmt: skip


def _native(arch: str, *, m: int, group: int) -> Any:
    """W4A4 on the chip's own unit; nothing where it has none."""
    config = configs.native(arch, group, m)
    if config is None:
        return None
    left, right = _packed(m, group), _packed(N, group)
    bias = torch.empty(N, dtype=BF16)
    return nvfp4_scaled.linear_scaled(*left, *right, torch.empty(1), bias, BF16, group=group, config=config)


def _quantize(family: str, *, group: int, given: bool = False, dtype: torch.dtype = BF16) -> Any:
    scale = torch.empty(1) if given else None
    return nvfp4_quantize.quantize(
        torch.empty(64, K, dtype=dtype), scale, group=group, config=configs.quantize(family)
    )


def _dequantize(family: str, *, group: int, dtype: torch.dtype = BF16) -> Any:
    total = torch.empty(1) if group == 16 else None
    config = configs.quantize(family)
    return nvfp4_quantize.dequantize(*_packed(64, group), total, dtype, group=group, config=config)


NVFP4_CASES: tuple[Case, ...] = (
    *(
        Case(f"nvfp4_linear/w4a16.{size}", partial(_decoded, m=m), subset=size == "many")
        for size, m in SIZES.items()
    ),
    *(Case(f"nvfp4_linear/w4a8.{size}", partial(_decoded, m=m, int8=True)) for size, m in SIZES.items()),
    *(Case(f"nvfp4_linear/mxfp4.{size}", partial(_decoded, m=m, group=32)) for size, m in SIZES.items()),
    Case("nvfp4_linear/w4a16.many.fp16", partial(_decoded, m=1024, dtype=F16)),
    Case("nvfp4_linear/w4a16.many.fp32", partial(_decoded, m=1024, dtype=F32), subset=True),
    Case("nvfp4_linear/mxfp4.many.fp16", partial(_decoded, m=1024, group=32, dtype=F16)),
    *(
        Case(
            f"nvfp4_linear/packed.{name}.{size}",
            partial(_native, m=m, group=group),
            size == "many",
            by_arch=True,
        )
        for name, group in (("nvfp4", 16), ("mxfp4", 32))
        for size, m in SIZES.items()
    ),
    Case("nvfp4_quantize/nvfp4", partial(_quantize, group=16), subset=True),
    Case("nvfp4_quantize/nvfp4.given.fp32", partial(_quantize, group=16, given=True, dtype=F32)),
    Case("nvfp4_quantize/mxfp4", partial(_quantize, group=32)),
    Case("nvfp4_dequantize/nvfp4", partial(_dequantize, group=16), subset=True),
    Case("nvfp4_dequantize/mxfp4.fp16", partial(_dequantize, group=32, dtype=F16)),
)
