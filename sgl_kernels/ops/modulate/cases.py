"""Workloads of modulation: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

import torch

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
F32 = torch.float32
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
TEST = frozenset({"test"})
SHAPES = {"batch": (2, 64), "vector": (64,), "row": (2, 1, 64), "token": (2, 12, 64), "frame": (2, 3, 1, 64)}


def scale_shift() -> tuple[Case, ...]:
    """Cases of `scale_shift`."""
    x = T((2, 12, 64))
    return (
        *(Case(n, (x, T(s), T(s)), SMOKE if n == "batch" else TEST) for n, s in SHAPES.items()),
        Case("params_fp32", (x, T((2, 64), F32), T((2, 64), F32)), TEST),
        Case("scale_only", (x, T((2, 64))), TEST),
        Case("shift_only", (x, None, T((2, 64))), TEST),
        Case("neither", (x,), TEST),
        Case("padded", (T((2, 12, 64), strides="padded"), T((2, 64), strides="padded"), T((64,))), TEST),
        Case("odd", (T((1, 7, 131)), T((1, 131)), T((1, 131))), TEST),
        Case("empty", (T((2, 0, 64)), T((2, 64)), T((2, 64))), TEST),
        *(
            Case(f"{m}x{d}", (T((1, m, d)), T((1, d)), T((1, d))), BENCH)
            for m, d in ((256, 768), (1024, 1152), (4096, 3072))
        ),
    )


def gate_residual() -> tuple[Case, ...]:
    """Cases of `gate_residual`."""
    x = T((2, 12, 64))
    return (
        *(Case(n, (x, x, T(s)), SMOKE if n == "batch" else TEST) for n, s in SHAPES.items()),
        Case("gate_fp32", (x, x, T((2, 64), F32)), TEST),
        Case(
            "padded", (T((2, 12, 64), strides="padded"), T((2, 12, 64), strides="padded"), T((2, 64))), TEST
        ),
        Case("transposed", (T((2, 12, 64), strides="transposed"), x, T((64,))), TEST),
        Case("odd", (T((1, 7, 131)), T((1, 7, 131)), T((1, 131))), TEST),
        Case("empty", (T((2, 0, 64)), T((2, 0, 64)), T((2, 64))), TEST),
        *(
            Case(f"{m}x{d}", (T((1, m, d)), T((1, m, d)), T((1, d))), BENCH)
            for m, d in ((256, 768), (1024, 1152), (4096, 3072))
        ),
    )
