"""Workloads of a linear layer: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
TEST = frozenset({"test"})


def _case(
    name: str, lead: tuple[int, ...], k: int, n: int, activation: str, tags: frozenset[str], bias: bool = True
) -> Case:
    weight = T((n, k), scale=k**-0.5)
    return Case(name, (T((*lead, k)), weight, T((n,)) if bias else None, activation), tags)


def linear() -> tuple[Case, ...]:
    """Cases of `linear`."""
    return (
        _case("plain", (2, 9), 64, 96, "none", SMOKE),
        _case("gelu_tanh", (2, 9), 64, 96, "gelu_tanh", SMOKE),
        _case("gelu", (2, 31), 72, 40, "gelu", TEST),
        _case("silu", (61,), 72, 200, "silu", TEST),
        _case("no_bias", (35,), 48, 24, "none", TEST, bias=False),
        _case("odd", (3, 13), 67, 21, "gelu_tanh", TEST),
        _case("deep", (37,), 1700, 33, "none", TEST),
        _case("one_row", (1,), 128, 70, "silu", TEST),
        _case("one_column", (70,), 33, 1, "none", TEST),
        _case("vector", (), 64, 32, "none", TEST),
        _case("empty", (0,), 32, 16, "none", TEST),
        Case(
            "padded",
            (T((40, 64), strides="padded"), T((48, 64), scale=0.125, strides="padded"), T((48,)), "gelu"),
            TEST,
        ),
        _case("512x768x3072_gelu_tanh", (512,), 768, 3072, "gelu_tanh", BENCH),
        _case("512x3072x768", (512,), 3072, 768, "none", BENCH),
        _case("396x384x1536_gelu", (396,), 384, 1536, "gelu", BENCH),
        _case("3920x192x768_gelu_tanh", (3920,), 192, 768, "gelu_tanh", BENCH),
    )
