"""Workloads of the NVFP4 ops: edge cases for tests, and the linear layers of real models for benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernels.core.op import Case, TensorSpec
from sgl_kernels.ops.nvfp4.formats import ScaledTensor, parse_format

T = TensorSpec
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
_E4M3, _E8M0, _BYTE, _FLOAT = torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint8, torch.float32
TIES = (0.25, -0.25, 0.75, -0.75, 1.25, 1.75, -1.75, 2.5, -2.5, 3.5, -3.5, 5.0, -5.0, 6.0, -0.0, 0.5)


def _scalar(value: float) -> TensorSpec:
    return T((), _FLOAT, fill="values", values=(value,))


def quantize() -> tuple[Case, ...]:
    """Cases of `nvfp4_quantize`."""
    return (
        Case("row", (T((1, 16)),), SMOKE),
        Case("odd", (T((3, 5, 48)),)),
        Case("chunk", (T((7, 272)),)),
        Case("strided", (T((6, 64), strides="padded"),)),
        Case("zeros", (T((4, 64), fill="zeros"),)),
        Case("ties", (T((1, 16), fill="values", values=TIES), _scalar(1.0))),
        Case("saturating", (T((5, 96), scale=4.0), _scalar(1e-5))),
        Case("tiny_scales", (T((5, 96), scale=1e-3), _scalar(1.0))),
        Case("offset", (T((5, 96), fill="large"),)),
        Case("empty", (T((0, 32)),)),
        Case("mxfp4", (T((5, 96)), None, "mxfp4")),
        Case("mxfp4.zeros", (T((2, 32), fill="zeros"), None, "mxfp4")),
        Case("flux.m1024k3072", (T((1024, 3072)),), BENCH),
        Case("flux.m4096k3072", (T((4096, 3072)),), BENCH),
        Case("flux.m1024k12288", (T((1024, 12288)),), BENCH),
    )


def dequantize() -> tuple[Case, ...]:
    """Cases of `nvfp4_dequantize`. The result's dtype is an argument, so each runs once."""
    once: Any = (torch.float32,)
    return tuple(
        Case(
            f"{fmt}.{out}",
            (
                T((3, 5, 48), _BYTE, fill="uniform", scale=256.0),
                T((3, 5, 96 // block), dtype, fill="uniform", scale=4.0),
                _scalar(0.01) if fmt == "nvfp4" else None,
                fmt,
                out,
            ),
            SMOKE if (fmt, out) == ("nvfp4", "bfloat16") else frozenset({"test"}),
            once,
        )
        for fmt, block, dtype in (("nvfp4", 16, _E4M3), ("mxfp4", 32, _E8M0))
        for out in ("bfloat16", "float16", "float32")
    )


def _linear(
    lead: tuple[int, ...], n: int, k: int, activation: str = "bf16", bias: bool = False, strides: str = "contiguous",
    input_scale: float | None = None, fmt: str = "nvfp4", layout: str = "linear",
) -> tuple[Any, ...]:  # fmt: skip
    chosen = parse_format(fmt)
    data, scale = ScaledTensor.storage_shapes(chosen, (n, k), layout)
    # in the packed layout scales sit among the data, where bytes from 120 up would be NaN or close to it
    top = 120.0 if layout == "cpu_packed" else 256.0
    return (
        T((*lead, k), strides=strides),
        T(data, _BYTE, fill="uniform", scale=top),
        T(scale, chosen.scale_dtype, fill="uniform", scale=4.0),
        _scalar(0.01) if chosen.has_global else None,
        T((n,)) if bias else None,
        activation,
        None if input_scale is None else _scalar(input_scale),
        fmt,
        layout,
        n,
    )


def linear() -> tuple[Case, ...]:
    """Cases of `nvfp4_linear`."""
    edge: list[Case] = []
    for activation in ("bf16", "int8", "nvfp4"):
        for layout in ("linear", "cpu_packed"):
            tag = f"{activation}.{layout.removeprefix('cpu_')}"
            edge += [
                Case(f"{tag}.one", _linear((1,), 16, 16, activation, layout=layout), SMOKE),
                Case(f"{tag}.vector", _linear((), 70, 48, activation, True, layout=layout)),
                Case(f"{tag}.tails", _linear((2, 5), 100, 272, activation, True, layout=layout)),
                Case(f"{tag}.rows", _linear((37,), 130, 544, activation, layout=layout)),
                Case(f"{tag}.strided", _linear((9,), 64, 64, activation, True, "padded", layout=layout)),
                Case(f"{tag}.empty", _linear((0,), 64, 32, activation, layout=layout)),
            ]
    edge += [
        Case("nvfp4.calibrated", _linear((6,), 48, 96, "nvfp4", input_scale=0.002, layout="cpu_packed")),
        Case("nvfp4.swizzled", _linear((6,), 96, 128, "nvfp4", True, layout="swizzled_128x4")),
        Case(
            "nvfp4.swizzled.calibrated",
            _linear((2, 3), 64, 192, "nvfp4", False, "padded", 0.002, layout="swizzled_128x4"),
        ),
        Case("nvfp4.swizzled.k256", _linear((7,), 64, 256, "nvfp4", True, layout="swizzled_128x4")),
        Case("nvfp4.shuffled", _linear((6,), 96, 128, "nvfp4", True, layout="trtllm_shuffled")),
        Case("bf16.swizzled_8x4", _linear((6,), 40, 80, layout="swizzled_8x4")),
        Case("mxfp4.bf16", _linear((6,), 48, 96, fmt="mxfp4", bias=True)),
        Case("mxfp4.int8", _linear((6,), 48, 96, "int8", fmt="mxfp4")),
        Case("mxfp4.mxfp4", _linear((6,), 48, 96, "mxfp4", fmt="mxfp4", bias=True)),
        Case("mxfp4.mxfp4.tails", _linear((2, 19), 70, 160, "mxfp4", fmt="mxfp4")),
        Case(
            "mxfp4.aiter", _linear((5,), 128, 256, "mxfp4", fmt="mxfp4", bias=True, layout="aiter_shuffled")
        ),
        Case("mxfp4.aiter.rows", _linear((2, 40), 256, 512, "mxfp4", fmt="mxfp4", layout="aiter_shuffled")),
        Case("mxfp4.nvfp4", _linear((6,), 48, 96, "nvfp4", fmt="mxfp4")),
    ]
    bench = [
        Case(
            f"{activation}.m{m}n{n}k{k}", _linear((m,), n, k, activation, layout="cpu_packed"), BENCH, (torch.bfloat16,)
        )
        for activation in ("bf16", "int8", "nvfp4")
        for m, n, k in (
            (1, 3072, 3072), (1, 12288, 3072), (4, 3072, 3072), (16, 3072, 3072), (64, 3072, 3072),
            (256, 3072, 3072), (1024, 3072, 3072), (1024, 12288, 3072), (1024, 3072, 12288), (4096, 3072, 3072),
        )
    ]  # fmt: skip
    return (*edge, *bench)
