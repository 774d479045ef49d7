"""Workloads of the activations: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
TEST = frozenset({"test"})


def _gated(*tail: object) -> tuple[Case, ...]:
    """Cases of a gated activation; `tail` are its further arguments."""
    return (
        Case("fused", (T((2, 9, 128)), None, *tail), SMOKE),
        Case("two_tensors", (T((2, 9, 64)), T((2, 9, 64)), *tail), TEST),
        Case("odd", (T((3, 262)), None, *tail), TEST),
        Case("padded", (T((5, 64), strides="padded"), T((5, 64), strides="padded"), *tail), TEST),
        Case("transposed", (T((2, 9, 4, 16), strides="transposed"), T((2, 9, 4, 16)), *tail), TEST),
        Case("wide_range", (T((4, 256), scale=30.0), None, *tail), TEST),
        Case("vector", (T((64,)), None, *tail), TEST),
        Case("empty", (T((0, 128)), None, *tail), TEST),
        *(Case(f"{m}x{d}", (T((m, 2 * d)), None, *tail), BENCH) for m, d in ((256, 3072), (4096, 12288))),
    )


def silu_mul() -> tuple[Case, ...]:
    """Cases of `silu_mul`."""
    return _gated()


def gelu_mul() -> tuple[Case, ...]:
    """Cases of `gelu_mul`."""
    exact = Case("erf", (T((3, 130)), None, "none"), TEST)
    return (*_gated("tanh"), exact, Case("erf_wide", (T((4, 256), scale=8.0), None, "none"), TEST))


def gelu_tanh() -> tuple[Case, ...]:
    """Cases of `gelu_tanh`."""
    return (
        Case("plain", (T((2, 9, 96)),), SMOKE),
        Case("odd", (T((3, 131)),), TEST),
        Case("padded", (T((5, 64), strides="padded"),), TEST),
        Case("transposed", (T((2, 9, 4, 16), strides="transposed"),), TEST),
        Case("wide_range", (T((4, 256), scale=30.0),), TEST),
        Case("empty", (T((0, 64)),), TEST),
        *(Case(f"{m}x{d}", (T((m, d)),), BENCH) for m, d in ((256, 3072), (4096, 12288))),
    )
