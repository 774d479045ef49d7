"""What the C++ NVFP4 kernels promise beyond parity: bit-equal codes, exact sums, thread-independent results."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.backends import nvfp4_cpu
from sgl_kernels.core.registry import registry
from sgl_kernels.core.verdict import Rejected
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.api import for_device, nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.layouts import to_layout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 16), (3, 48), (5, 256), (7, 272), (64, 1024), (33, 4112))


@pytest.fixture(autouse=True)
def extension(require):
    found = registry.loaded(nvfp4_cpu.IMPLEMENTATIONS[1], None)
    if isinstance(found, Rejected):
        require.skip("cpu", found.detail)


def inputs(shape, seed):
    g = torch.Generator().manual_seed(seed)
    m, k = shape
    x = torch.randn(m, k, generator=g)
    wild = torch.randn(m, k // 16, generator=g).mul(2).exp().repeat_interleave(16, -1)
    quarters = torch.randint(-24, 25, shape, generator=g) * 0.25
    spoiled = x.clone()
    spoiled[0, 3], spoiled[-1, -1], spoiled[m // 2, :16] = float("nan"), float("inf"), 0.0
    yield "normal", x, None
    yield "wild", x * wild, None
    yield "ties", quarters, torch.tensor(1.0)
    yield "saturated", quarters, torch.tensor(0.01)
    yield "tiny scales", quarters, torch.tensor(30.0)
    yield "not finite", spoiled, None
    yield "zeros", torch.zeros(shape), None
    yield "negative zeros", -torch.zeros(shape), None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantiser_is_bit_equal_to_the_reference(dtype, shape, seed):
    for name, x, scale in inputs(shape, seed):
        got = nvfp4_quantize(x.to(dtype), scale, nonfinite="propagate", backend="cpu")
        data, block_scale, global_scale = reference.nvfp4_quantize(x.to(dtype), scale, "nvfp4", False)
        assert torch.equal(got.data, data), name
        assert torch.equal(got.block_scale.view(torch.uint8), block_scale.view(torch.uint8)), name
        assert torch.equal(got.global_scale, global_scale), name


def test_every_bf16_value_gets_the_reference_code():
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[(x.float().abs() < 2.0**100) & (x.float().abs() > 2.0**-100)]
    x = x[: x.numel() // 16 * 16].reshape(-1, 16)
    for scale in (None, torch.tensor(1.0), torch.tensor(0.37)):
        got = nvfp4_quantize(x, scale, backend="cpu")
        want = reference.nvfp4_quantize(x, scale, "nvfp4", False)
        assert torch.equal(got.data, want[0])


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8, 9, 17, 40])
def test_every_row_count_and_tail(activation, m, seed):
    g = torch.Generator().manual_seed(seed)
    for n, k in ((1, 16), (63, 80), (65, 528), (128, 1040)):
        w = for_device(nvfp4_quantize(torch.randn(n, k, generator=g)))
        x, bias = torch.randn(m, k, generator=g), torch.randn(n, generator=g)
        got = nvfp4_linear(x, w, bias, activation=activation, backend="cpu").double()
        linear = to_layout(w, "linear")
        want = reference.nvfp4_linear(
            x.double(), linear.data, linear.block_scale, linear.global_scale, bias.double(), activation, None,
            "nvfp4", "linear", n,
        )  # fmt: skip
        assert (got - want).norm() <= 2e-6 * want.norm() + 1e-6


def test_w4a4_products_are_exact():
    """Small integers everywhere: fp32 sums are exact, so the result must be the float64 one to the bit."""
    g = torch.Generator().manual_seed(1)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    w, x = (grid[torch.randint(0, 8, s, generator=g)] for s in ((96, 512), (21, 512)))
    w, x = w * (torch.rand(w.shape, generator=g) < 0.5).float().mul(2).sub(1), x
    x[:, ::16] = 6.0
    w[:, ::16] = 6.0
    one = torch.tensor(1.0)
    got = nvfp4_linear(
        x, for_device(nvfp4_quantize(w, one)), activation="nvfp4", input_scale=one, backend="cpu"
    )
    assert torch.equal(got.double(), x.double() @ w.double().T)


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(activation, bad):
    w = for_device(nvfp4_quantize(torch.randn(70, 96)))
    x = torch.randn(9, 96)
    scale = torch.tensor(0.002) if activation == "nvfp4" else None
    clean = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    x[4, 17] = bad
    got = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    assert not got[4].isfinite().any()
    keep = torch.arange(9) != 4
    assert torch.equal(got[keep], clean[keep])


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 30, 1100])
def test_results_do_not_depend_on_threads(activation, m):
    w = for_device(nvfp4_quantize(torch.randn(300, 64)))
    x = torch.randn(m, 64).bfloat16()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = nvfp4_linear(x, w, activation=activation, backend="cpu")
        torch.set_num_threads(2)
        two = nvfp4_linear(x, w, activation=activation, backend="cpu")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("activation", ["int8", "nvfp4"])
def test_rows_do_not_see_each_other(activation):
    """Chunks, tiles and remainders: a row alone gives the bits it gives among 1100."""
    w = for_device(nvfp4_quantize(torch.randn(70, 64)))
    x = torch.randn(1100, 64)
    scale = torch.tensor(0.002) if activation == "nvfp4" else None
    every = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    for row in (0, 7, 1023, 1024, 1099):
        alone = nvfp4_linear(x[row : row + 1], w, activation=activation, input_scale=scale, backend="cpu")
        assert torch.allclose(alone[0], every[row], rtol=1e-6, atol=1e-6)


def test_wide_fp32_activations_lose_nothing_to_outliers():
    w = torch.randn(64, 1024)
    q = for_device(nvfp4_quantize(w))
    x = torch.randn(8, 1024)
    x[:, 5] *= 1e4
    linear = to_layout(q, "linear")
    want = reference.nvfp4_linear(
        x.double(),
        linear.data,
        linear.block_scale,
        linear.global_scale,
        None,
        "bf16",
        None,
        "nvfp4",
        "linear",
        64,
    )
    assert (nvfp4_linear(x, q, backend="cpu").double() - want).norm() < 1e-6 * want.norm()


def test_operands_are_checked_before_they_are_read():
    kernel = torch.ops.sgl_kernels_cpu.nvfp4_linear
    w = for_device(nvfp4_quantize(torch.randn(64, 32)))
    one = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match="but x has 48 columns"):
        kernel(torch.randn(2, 48), w.data, one, None, "bf16", None, 64)
    with pytest.raises(RuntimeError, match="panels of 64"):
        kernel(torch.randn(2, 32), w.data, one, None, "bf16", None, 65)
    with pytest.raises(RuntimeError, match="expected bf16, int8 or nvfp4"):
        kernel(torch.randn(2, 32), w.data, one, None, "fp8", None, 64)
    with pytest.raises(RuntimeError, match="one float32"):
        kernel(torch.randn(2, 32), w.data, torch.ones(2), None, "bf16", None, 64)
