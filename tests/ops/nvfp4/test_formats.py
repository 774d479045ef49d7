"""Scaled tensors and their layouts: every converter returns what it was given, padding included."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_quantize
from sgl_kernels.ops.nvfp4.formats import LAYOUTS, MXFP4, NVFP4, ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import shuffled_rows, swizzle_scales, to_layout

SHAPES = ((1, 16), (3, 48), (64, 64), (100, 272), (128, 64), (130, 208), (257, 1040))


def same(a: ScaledTensor, b: ScaledTensor) -> bool:
    return torch.equal(a.data, b.data) and torch.equal(
        a.block_scale.view(torch.uint8), b.block_scale.view(torch.uint8)
    )


NVFP4_LAYOUTS = [name for name in LAYOUTS if name != "aiter_shuffled"]


@pytest.mark.parametrize("layout", NVFP4_LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layouts_round_trip(layout, shape, seed):
    x = nvfp4_quantize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    there = to_layout(x, layout)
    assert there.layout == layout and there.shape == shape
    assert same(to_layout(there, "linear"), x)
    for other in NVFP4_LAYOUTS:
        assert same(to_layout(to_layout(there, other), "linear"), x)
    assert torch.equal(nvfp4_dequantize(there, torch.float32), nvfp4_dequantize(x, torch.float32))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "cpu_packed"])
def test_mxfp4_layouts_round_trip(layout):
    x = nvfp4_quantize(torch.randn(70, 128), format="mxfp4")
    assert same(to_layout(to_layout(x, layout), "linear"), x)


def test_128x4_tiles_are_where_blackwell_reads_them():
    rows, columns = 200, 10
    scale = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns).to(torch.uint8)
    flat = swizzle_scales(scale).flatten()
    wide = 12  # columns padded to a multiple of 4
    for m in (0, 1, 31, 32, 127, 128, 199):
        for c in (0, 3, 4, 9):
            at = ((m // 128) * (wide // 4) + c // 4) * 512 + (m % 32) * 16 + (m % 128) // 32 * 4 + c % 4
            assert flat[at] == scale[m, c]
    assert flat.numel() == 256 * wide


def test_8x4_tiles_are_row_major():
    scale = torch.arange(9 * 5, dtype=torch.uint8).reshape(9, 5)
    flat = swizzle_scales(scale, 8).flatten()
    for m in range(9):
        for c in range(5):
            assert flat[((m // 8) * 2 + c // 4) * 32 + m % 8 * 4 + c % 4] == scale[m, c]


def test_shuffled_rows_interleave_quarters_of_32():
    order = shuffled_rows(64, torch.device("cpu"))
    assert order[:8].tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    for old in range(64):
        assert order[old // 32 * 32 + old % 4 * 8 + old % 32 // 4] == old


def test_packed_bytes_hold_the_operands_of_int8_dot_products():
    x = nvfp4_quantize(torch.randn(70, 48))
    packed = to_layout(x, "cpu_packed").data
    assert packed.shape == (2, 3, 576)
    codes = torch.stack((x.data & 15, x.data >> 4), -1).flatten(-2)
    for n, k in ((0, 0), (5, 17), (69, 47), (64, 31)):
        panel, block, group, lane = n // 64, k // 16, n % 64 // 16, n % 16
        v, inside = k % 16 // 8, k % 8
        byte = packed[panel, block, group * 128 + v * 64 + lane * 4 + inside % 4]
        assert (byte >> 4 if inside >= 4 else byte & 15) == codes[n, k]
        assert packed[panel, block, 512 + n % 64] == x.block_scale.view(torch.uint8)[n, block]


def test_packing_costs_no_more_than_the_padding():
    x = nvfp4_quantize(torch.randn(256, 512))
    assert to_layout(x, "cpu_packed").nbytes == x.nbytes == 256 * 512 * 9 // 16 + 4


def test_nan_scales_stay_linear():
    x = nvfp4_quantize(torch.full((2, 16), float("nan")), nonfinite="propagate")
    with pytest.raises(ValueError, match="keep layout 'linear'"):
        to_layout(x, "cpu_packed")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": torch.zeros(2, 8)}, "packed torch.uint8"),
        ({"block_scale": torch.zeros(2, 1)}, "needs torch.float8_e4m3fn"),
        ({"global_scale": None}, "needs one"),
        ({"global_scale": torch.ones(2)}, "expected one value"),
        ({"shape": (2, 24)}, "multiple of 16"),
        ({"shape": (3, 16)}, "needs \\(3, 8\\)"),
        ({"layout": "column"}, "expected one of linear"),
    ],
)
def test_a_scaled_tensor_checks_itself(change, message):
    good = dict(
        data=torch.zeros(2, 8, dtype=torch.uint8),
        block_scale=torch.zeros(2, 1).to(torch.float8_e4m3fn),
        global_scale=torch.tensor(1.0),
        format=NVFP4,
        shape=(2, 16),
    )
    ScaledTensor(**good)
    with pytest.raises((ValueError, TypeError), match=message):
        ScaledTensor(**{**good, **change})


def test_formats_by_name():
    assert parse_format("nvfp4") is NVFP4 and parse_format(MXFP4) is MXFP4
    with pytest.raises(ValueError, match="expected one of nvfp4, mxfp4"):
        parse_format("fp4")
