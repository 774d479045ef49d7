"""The quantiser against a brute-force nearest value in float64, and at its edges."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.reference import VALUES, e2m1_codes, e2m1_codes_stochastic


def draw(shape, seed, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    wild = torch.randn(*shape[:-1], shape[-1] // 16, generator=g).mul(spread).exp()
    return torch.randn(shape, generator=g) * wild.repeat_interleave(16, -1)


def test_codes_are_the_nearest_values_with_ties_to_even():
    grid = [math.ldexp(i, -6) for i in range(-600, 601)]  # 1/64 steps hit every tie exactly
    codes = e2m1_codes(torch.tensor(grid)).tolist()
    for value, code in zip(grid, codes, strict=True):
        distances = [abs(abs(value) - v) for v in VALUES]
        best = [i for i, d in enumerate(distances) if d == min(distances)]
        want = next((i for i in best if i % 2 == 0), best[0])
        assert code & 7 == want, value
        assert code >> 3 == int(value < 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_follow_the_formula_operation_by_operation(dtype, seed):
    x = draw((8, 128), seed, 1.0).to(dtype)
    q = nvfp4_quantize(x, backend="torch")
    amax = x.float().abs().max()
    assert q.global_scale == amax / 2688
    encode = 1 / q.global_scale
    block = x.float().unflatten(-1, (-1, 16)).abs().amax(-1)
    want = (encode * (block * torch.tensor(1 / 6))).clamp(max=448).to(torch.float8_e4m3fn)
    assert torch.equal(q.block_scale.view(torch.uint8), want.view(torch.uint8))
    error = (nvfp4_dequantize(q, torch.float32) - x.float()).norm() / x.float().norm()
    assert error < 0.12


def test_the_low_nibble_is_the_even_k():
    x = torch.zeros(1, 16)
    x[0, 0], x[0, 3] = 6.0, -1.0
    q = nvfp4_quantize(x, torch.tensor(1.0))
    assert q.block_scale.float().item() == 1.0
    assert q.data[0, 0] == 7 and q.data[0, 1] == 0xA0


def test_zero_blocks_have_scale_and_codes_zero():
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 20], x[1, 3] = 1.0, -1e-30, -0.0
    q = nvfp4_quantize(x)
    assert q.block_scale.float().tolist() == [[448.0, 0.0], [0.0, 0.0]]
    assert q.data[1].sum() == 0  # -1e-30 underflows its scale: no sign is left behind
    assert torch.equal(nvfp4_dequantize(q, torch.float32), torch.tensor([[1.0] + [0.0] * 31, [0.0] * 32]))


def test_a_tensor_of_zeros_gets_a_harmless_global_scale():
    q = nvfp4_quantize(torch.zeros(3, 16))
    assert q.global_scale == 1.0 and nvfp4_dequantize(q).abs().sum() == 0


def test_values_beyond_the_given_scale_saturate():
    q = nvfp4_quantize(torch.full((1, 16), 1e30), torch.tensor(1.0))
    assert nvfp4_dequantize(q, torch.float32).unique().item() == 6 * 448


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_nonfinite_values_are_refused_or_stay_in_their_block(bad, format):
    x = torch.randn(4, 96)
    clean = nvfp4_dequantize(nvfp4_quantize(x, format=format), torch.float32)
    hit = int(x[2, 40:50].abs().argmin()) + 40  # not the tensor's largest: the global scale must not move
    x[2, hit] = bad
    with pytest.raises(ValueError, match="nonfinite='propagate'"):
        nvfp4_quantize(x, format=format)
    q = nvfp4_quantize(x, format=format, nonfinite="propagate")
    got = nvfp4_dequantize(q, torch.float32)
    block = q.format.block
    start = hit // block * block
    assert got[2, start : start + block].isnan().all()
    got[2, start : start + block] = clean[2, start : start + block]
    if format == "mxfp4":
        assert torch.equal(got, clean)
    else:
        assert not got.isnan().any()


def test_mxfp4_scales_are_powers_of_two_that_never_saturate(seed):
    x = draw((6, 128), seed)
    q = nvfp4_quantize(x, format="mxfp4")
    scale = q.block_scale.float()
    block = x.unflatten(-1, (-1, 32)).abs().amax(-1)
    assert torch.equal(scale.log2(), scale.log2().round())
    assert (block <= 6.0001 * scale).all() and (block > 2.99 * scale).all()
    assert ((nvfp4_dequantize(q, torch.float32) - x).norm() / x.norm()) < 0.2


def test_stochastic_rounding_is_unbiased_and_leaves_grid_points_alone():
    torch.manual_seed(0)
    grid = torch.tensor([*VALUES, *(-v for v in VALUES)])
    codes = e2m1_codes_stochastic(grid.repeat(100))
    assert torch.equal(codes & 7, torch.arange(8, dtype=torch.uint8).repeat(200))
    value = torch.full((200_000,), 3.25)
    table = torch.tensor(VALUES)
    mean = table[(e2m1_codes_stochastic(value) & 7).long()].mean()
    assert abs(mean - 3.25) < 0.01
    q = nvfp4_quantize(torch.randn(64, 64), stochastic=True)
    assert q.data.shape == (64, 32)


def test_int8_rows_round_to_even_and_contain_what_is_not_finite():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [1.0, float("nan"), 2.0, 3.0]])
    q, scale = reference.int8_rows(x)
    assert q.tolist()[:2] == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scale[0] == 127 * torch.tensor(1 / 127) and scale[1] == 0 and scale[2].isnan()


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_linear_is_the_product_of_what_was_quantised(activation, seed):
    x, w = draw((5, 64), seed, 0.5), draw((24, 64), seed + 1, 0.5)
    q, bias = nvfp4_quantize(w), torch.randn(24)
    values = {
        "bf16": lambda: x,
        "int8": lambda: torch.mul(*[t.float() for t in reference.int8_rows(x)]),
        "nvfp4": lambda: nvfp4_dequantize(nvfp4_quantize(x), torch.float32),
    }[activation]()
    want = values.double() @ nvfp4_dequantize(q, torch.float64).T + bias.double()
    got = nvfp4_linear(x, q, bias, activation=activation)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_linear_passes_gradients_to_x_and_bias(activation):
    """Straight through where the activation is rounded."""
    x, bias = torch.randn(4, 32, requires_grad=True), torch.zeros(8, requires_grad=True)
    q = nvfp4_quantize(torch.randn(8, 32))
    nvfp4_linear(x, q, bias, activation=activation).sum().backward()
    assert torch.allclose(x.grad, nvfp4_dequantize(q, torch.float32).sum(0).expand(4, 32), atol=1e-5)
    assert torch.equal(bias.grad, torch.full((8,), 4.0))


def test_errors_say_what_to_do():
    q = nvfp4_quantize(torch.randn(8, 32))
    with pytest.raises(ValueError, match="multiple of 16"):
        nvfp4_quantize(torch.randn(3, 20))
    with pytest.raises(ValueError, match="expected \\[8\\]"):
        nvfp4_linear(torch.randn(2, 32), q, torch.zeros(9))
    with pytest.raises(ValueError, match="calibrates activation='nvfp4' only"):
        nvfp4_linear(torch.randn(2, 32), q, input_scale=torch.tensor(1.0))
    with pytest.raises(TypeError, match="ScaledTensor"):
        nvfp4_linear(torch.randn(2, 32), torch.randn(8, 32))
    with pytest.raises(ValueError, match="expected one of 'bf16', 'int8', 'nvfp4'"):
        nvfp4_linear(torch.randn(2, 32), q, activation="fp8")
