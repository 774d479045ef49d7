"""One rule for scales, on every backend: zero and NaN stay so, a sign or a wrong global scale is an error."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_kernels.core.dispatch import current
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.formats import LAYOUTS, MXFP4, NVFP4, ScaledTensor, scales_fault
from sgl_kernels.ops.nvfp4.layouts import swizzle_scales, to_layout, unswizzle_scales
from sgl_kernels.ops.nvfp4.placing import preferred_layout

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BAD = [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf]


def weight(n=70, k=96):
    return nvfp4_quantize(torch.randn(n, k))


def edited(w, change, layout="linear"):
    """The weight with its scales' bytes changed, unchecked, in a layout whose converter takes anything."""
    raw = w.block_scale.view(torch.uint8).clone()
    change(raw)
    scale = raw.view(NVFP4.scale_dtype)
    if layout == "swizzled_128x4":
        scale = swizzle_scales(scale)
    return ScaledTensor(w.data, scale, w.global_scale, NVFP4, w.shape, layout)


@pytest.mark.parametrize("layout", ["linear", "swizzled_128x4"])
@pytest.mark.parametrize("byte", [0x80, 0x81, 0xC0, 0xFE, 0xFF])
def test_a_scale_with_a_sign_is_no_scale(byte, layout):
    """Also minus zero and the NaN with a sign: tensor cores read e4m3 scales without one."""
    with pytest.raises(ValueError, match="block_scale has 1 negative values of"):
        edited(weight(), lambda raw: raw[3, 2:3].fill_(byte), layout)


def test_what_is_said_to_be_checked_can_be_checked_later():
    w = weight()
    raw = w.block_scale.view(torch.uint8).clone()
    raw[2, 2] = 0xC0
    held = ScaledTensor(w.data, raw.view(NVFP4.scale_dtype), w.global_scale, NVFP4, w.shape, checked=True)
    assert w.examined and held.examined
    held.examine("weight")  # it was said to be checked
    with pytest.raises(ValueError, match=r"^weight: block_scale has 1 negative"):
        held.check_scales(anywhere=True, of="weight: ")
    with pytest.raises(ValueError, match="block_scale has 1 negative"):
        to_layout(held, "swizzled_128x4")
    w.check_scales(anywhere=True)


@pytest.mark.parametrize("byte", [0x7F, 0x80, 0xFF])
def test_packed_scales_are_finite(byte):
    packed = to_layout(weight(), "cpu_packed")
    data = packed.data.clone()
    data[0, 1, 512 + 5] = byte
    with pytest.raises(ValueError, match="block_scale has "):
        ScaledTensor(data, packed.block_scale, packed.global_scale, NVFP4, packed.shape, "cpu_packed")


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_global_and_input_scales_are_positive_and_finite(value, dtype):
    w, x, bad = weight(), torch.randn(4, 96), torch.tensor(value, dtype=dtype)
    with pytest.raises(ValueError, match=r"global_scale is .*, expected a positive finite number"):
        ScaledTensor(w.data, w.block_scale, bad, NVFP4, w.shape)
    for shape in ((), (1,)):
        with pytest.raises(
            ValueError, match=r"nvfp4_quantize: global_scale is .*, expected a positive finite"
        ):
            nvfp4_quantize(x, bad.reshape(shape))
        for _ in range(2):  # the second call of a shape is as strict as the first
            nvfp4_linear(x, w, activation="nvfp4", input_scale=torch.tensor(0.01).reshape(shape))
            with pytest.raises(
                ValueError, match=r"nvfp4_linear: input_scale is .*, expected a positive finite"
            ):
                nvfp4_linear(x, w, activation="nvfp4", input_scale=bad.reshape(shape))


def test_scales_of_mxfp4_have_no_sign_and_one_nan():
    data = torch.zeros(2, 32, dtype=torch.uint8)
    raw = torch.tensor([[0, 254], [127, 255]], dtype=torch.uint8)
    q = ScaledTensor(data, raw.view(torch.float8_e8m0fnu), None, MXFP4, (2, 64))
    got = nvfp4_dequantize(q, torch.float32)
    assert torch.equal(got.isnan().any(-1), torch.tensor([False, True])) and got[1, :32].eq(0).all()
    assert scales_fault(raw.view(torch.float8_e8m0fnu), None) == "has NaN in 1 of 4 values"


def test_only_what_the_host_can_read_is_read():
    meta = weight().map(lambda t: t.to("meta"))
    assert meta.device.type == "meta" and scales_fault(meta.block_scale, meta.global_scale) == ""
    nan = torch.full((2, 2), 0xFF, dtype=torch.uint8).view(NVFP4.scale_dtype)
    assert scales_fault(torch.empty(0, dtype=NVFP4.scale_dtype), None) == ""
    assert "negative" in scales_fault(nan, None)


def backends(layout):
    """Who can serve a linear layer on the CPU with a weight in this layout."""
    served = layout == "cpu_packed" and preferred_layout(weight()) == "cpu_packed"
    return ["torch", "cpu"] if served else ["torch"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("layout", ["linear", "cpu_packed", "swizzled_128x4"])
def test_zero_scales_give_zeros_whatever_their_codes(layout, activation, dtype):
    """Scales of zero on blocks of large codes: exactly the product without those blocks."""
    w = weight(130, 160)
    data = w.data | 0x77  # no code is zero
    w = ScaledTensor(data, w.block_scale, w.global_scale, NVFP4, w.shape)
    zeroed = edited(w, lambda raw: (raw[::3, ::2].fill_(0), raw[5].fill_(0)))
    values = nvfp4_dequantize(zeroed, torch.float64)
    assert values[0, :16].eq(0).all() and values[5].eq(0).all() and values[1].ne(0).all()
    x = torch.randn(9, 160).to(dtype)
    for backend in backends(layout):
        held = to_layout(zeroed, layout)
        got = nvfp4_linear(x, held, activation=activation, backend=backend)
        assert got[:, 5].eq(0).all()
        want = nvfp4_linear(x.double(), zeroed, activation=activation)
        error = (got.double() - want).norm() / want.norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_a_nan_scale_gives_nan_in_its_row_and_nowhere_else(activation, dtype):
    w = edited(weight(), lambda raw: raw[7, 3].fill_(0x7F))
    w.data[7, 24:32] = 0  # even where all codes are zero
    x = torch.randn(5, 96).to(dtype)
    values = nvfp4_dequantize(w, torch.float32)
    assert torch.equal(values.isnan().nonzero().unique(dim=0)[:, 0].unique(), torch.tensor([7]))
    assert values[7, 48:64].isnan().all() and values[7].isnan().sum() == 16
    for held in (w, to_layout(w, "swizzled_128x4")):
        got = nvfp4_linear(x, held, activation=activation)
        assert got[:, 7].isnan().all() and got.isnan().sum() == 5
    with pytest.raises(ValueError, match="keep layout 'linear'"):
        to_layout(w, "cpu_packed")


def test_every_layout_decodes_the_extreme_scales_alike():
    """The smallest subnormal, zero and 448."""
    w = edited(weight(128, 128), lambda raw: raw.copy_(torch.tensor([0, 1, 7, 8, 0x7E, 0x38, 2, 0x40])))
    want = nvfp4_dequantize(w, torch.float64)
    scales = w.block_scale.double()[0]
    assert scales.tolist() == [0, 2**-9, 7 * 2**-9, 2**-6, 448, 1, 2**-8, 2]
    for layout in LAYOUTS:
        if layout != "aiter_shuffled":
            assert torch.equal(nvfp4_dequantize(to_layout(w, layout), torch.float64), want)


@pytest.mark.parametrize("rows, columns", [(128, 4), (1, 1), (130, 9), (300, 64)])
def test_tiles_come_back(rows, columns):
    scale = torch.randint(0, 127, (rows, columns), dtype=torch.uint8)
    tiles = swizzle_scales(scale)
    assert torch.equal(unswizzle_scales(tiles, rows, columns), scale)
    assert torch.equal(unswizzle_scales(tiles.flatten(), rows, columns), scale)


def test_checked_values_keep_the_memo():
    """A value is no part of a call's key: the check of every call adds no binding."""
    w, x = weight(), torch.randn(3, 96)
    nvfp4_linear(x, w, activation="nvfp4", input_scale=torch.tensor(0.01))
    before = len(current().bound)
    for value in (0.02, 0.5, 3.0):
        nvfp4_linear(x, w, activation="nvfp4", input_scale=torch.tensor(value))
    assert len(current().bound) == before
