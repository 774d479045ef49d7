"""The 4-bit kernels: quantisation bit-equal to its definition, both ways to multiply against float64."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_kernels.kernels.triton import configs_nvfp4 as configs
from sgl_kernels.kernels.triton.nvfp4 import linear
from sgl_kernels.kernels.triton.nvfp4_quantize import dequantize, quantize
from sgl_kernels.kernels.triton.nvfp4_scaled import linear_scaled
from sgl_kernels.ops.nvfp4 import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [("nvfp4", 16), ("mxfp4", 32)]
TILE = configs.QuantizeConfig(4, 64, 4)
TIES = (0.25, -0.25, 0.75, -0.75, 1.25, 1.75, -1.75, 2.5, -2.5, 3.5, -3.5, 5.0, -5.0, 6.0, -0.0, 0.5)


def hard(dtype: torch.dtype) -> torch.Tensor:
    """Rows of wild sizes, ties, zeros, subnormal scales, NaN and infinities."""
    x = torch.randn(11, 160) * torch.exp(3 * torch.randn(11, 1))
    x[1, :16] = torch.tensor(TIES)
    x[2] = 0.0
    x[3] *= 1e-5
    x[4, 5], x[4, 40], x[5, 150] = math.nan, math.inf, -math.inf
    return x.to(dtype)


def same(x: torch.Tensor, given: torch.Tensor | None, name: str, group: int) -> None:
    data, scale, total = quantize(x, given, group=group, config=TILE)
    want_data, want_scale, want_total = reference.nvfp4_quantize(x, given, name, False)
    assert torch.equal(data, want_data.reshape(data.shape))
    assert torch.equal(scale, want_scale.view(torch.uint8).reshape(scale.shape))
    assert torch.equal(total.reshape(()), want_total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, group", FORMATS)
def test_quantisation_is_equal_to_the_bit(name, group, dtype):
    x = hard(dtype)
    same(x, None, name, group)
    if name == "nvfp4":
        for given in (1.0, 0.02, 1e-6):
            same(x, torch.tensor(given), name, group)


def test_every_e4m3_scale_and_its_ties():
    """Block scales rounded by hand from 2^-10 up to saturation, through all subnormals."""
    amax = torch.cat((torch.arange(0, 4096) / 1024.0, torch.arange(1, 3000, 7).float()))
    x = torch.zeros(amax.numel(), 16)
    x[:, 3] = amax
    config = configs.QuantizeConfig(512, 32, 4)
    data, scale, _ = quantize(x, torch.tensor(1.0), group=16, config=config)
    want = reference.nvfp4_quantize(x, torch.tensor(1.0), "nvfp4", False)
    assert torch.equal(scale, want[1].view(torch.uint8)) and torch.equal(data, want[0])


def test_views_are_read_in_place():
    packed = torch.randn(3, 5, 2, 96)
    same(packed[:, :, 1], None, "nvfp4", 16)
    same(packed[:, 1:, 0].transpose(0, 1), torch.tensor(0.1), "nvfp4", 16)
    same(torch.zeros(0, 32), torch.tensor(0.5), "nvfp4", 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, group", FORMATS)
def test_values_are_equal_to_the_bit(name, group, dtype):
    data = torch.randint(0, 256, (9, 80), dtype=torch.uint8)
    # NaN among them; from 3 up, because the interpreter rounds subnormal bf16 values (below 2^-126) to zero or down
    scale = torch.randint(3, 256, (9, 160 // group), dtype=torch.uint8)
    kind = reference.FORMATS[name].scale_dtype
    total = torch.tensor(0.01) if name == "nvfp4" else None
    out = dequantize(data, scale, total, dtype, group=group, config=TILE)
    want = reference.nvfp4_dequantize(data, scale.view(kind), total, name, str(dtype).removeprefix("torch."))
    assert torch.equal(out.isnan(), want.isnan()) and torch.equal(out.nan_to_num(1.0), want.nan_to_num(1.0))


@pytest.mark.parametrize("m, n, k", [(1, 16, 32), (37, 70, 160), (5, 130, 96)])
@pytest.mark.parametrize("name, group", FORMATS)
def test_packed_and_decoded_products(name, group, m, n, k):
    """MXFP4 goes through tl.dot_scaled itself; NVFP4 is decoded by hand here, its loads and masks are the same."""
    a, w, bias = torch.randn(m, k), torch.randn(n, k), torch.randn(n)
    left, left_scale, left_total = reference.nvfp4_quantize(a, None, name, False)
    right, right_scale, right_total = reference.nvfp4_quantize(w, None, name, False)
    fmt, alpha = reference.FORMATS[name], (left_total * right_total).reshape(1)
    x = reference.without_global(left, left_scale, fmt, torch.float64)
    y = reference.without_global(right, right_scale, fmt, torch.float64)
    want = x @ y.T * alpha.double() + bias.double()
    tile = configs.LinearConfig(16, 32, 64, 4, 1)
    out = linear_scaled(
        left, left_scale, right, right_scale, alpha, bias, torch.float32, group=group, config=tile
    )
    decoded = linear(x.float(), right, right_scale, alpha, None, bias, group=group, config=tile)
    for found in (out, decoded):
        assert (found.double() - want).norm() <= 4e-7 * want.norm()


def test_a_row_with_nan_spoils_no_other():
    a, w = torch.randn(5, 64), torch.randn(20, 64)
    a[3, 17] = math.nan
    left, scale, total = quantize(a, None, group=16, config=TILE)
    right, right_scale, right_total = quantize(w, None, group=16, config=TILE)
    tile = configs.INTERPRETER_NATIVE
    out = linear_scaled(
        left, scale, right, right_scale, total * right_total, None, torch.float32, group=16, config=tile
    )
    bad = out.isnan().any(-1)
    assert out[3].isnan().all() and bad.sum() == 1


def test_the_table_is_whole_and_frozen():
    for row in (*configs.DECODED.values(), *(r for rows in configs.NATIVE.values() for r in rows.values())):
        assert row.why
        for c in (row.few, row.some, row.many):
            assert all(v & (v - 1) == 0 for v in (c.block_m, c.block_n, c.block_k)) and c.block_k % 32 == 0
            with pytest.raises(AttributeError):
                c.block_m = 1


def test_offsets_beyond_two_to_the_31():
    x = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((3, 64), (2**30, 1))
    x.copy_(torch.randn(x.shape))
    same(x, None, "nvfp4", 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_nan_scales_are_what_they_are_elsewhere(dtype):
    """Zeros whatever the codes, NaN in its row alone: what the torch floor and the C++ kernels give."""
    data = torch.randint(0, 256, (40, 48), dtype=torch.uint8) | 0x22
    scale = torch.randint(3, 0x7E, (40, 6), dtype=torch.uint8)
    scale[::3, ::2], scale[5], scale[7, 3] = 0, 0, 0x7F
    x, alpha = torch.randn(9, 96).to(dtype), torch.tensor([0.01])
    tile = configs.LinearConfig(16, 32, 64, 4, 1)
    out = linear(x, data, scale.view(torch.float8_e4m3fn), alpha, None, None, group=16, config=tile)
    values = reference.without_global(
        data, scale.view(torch.float8_e4m3fn), reference.FORMATS["nvfp4"], torch.float64
    )
    want = x.double() @ values.T * 0.01
    assert torch.equal(out.isnan(), want.isnan()) and out.isnan().sum() == 9 and out[:, 5].eq(0).all()
    keep = [n for n in range(40) if n != 7]
    error = (out.double() - want)[:, keep].norm() / want[:, keep].norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]
