"""AITER's gemm_a4w4 through strict fakes of both its signatures, operands un-shuffled as the kernel reads them."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from sgl_kernels.core.device import parse_device
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.settings import OpPolicy
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.formats import MXFP4, ScaledTensor
from sgl_kernels.ops.nvfp4.layouts import to_layout
from tests.backends import contract


def _rows(data: Tensor) -> Tensor:
    """By the formula: byte b of row r lies in tile (r / 16, b / 32), half b / 16 % 2, then by row, then b % 16."""
    n, half = data.shape
    assert n % 16 == 0 and half % 32 == 0 and data.is_contiguous()
    r, b = torch.meshgrid(torch.arange(n), torch.arange(half), indexing="ij")
    at = ((r // 16 * (half // 32) + b // 32) * 2 + b // 16 % 2) * 256 + r % 16 * 16 + b % 16
    return data.flatten()[at]


def _scales(scale: Tensor, rows: int, blocks: int) -> Tensor:
    """Scale (r, c) lies in tile (r / 32, c / 8) at (c % 4, r % 16, c / 4 % 2, r / 16 % 2)."""
    tall, wide = scale.shape
    assert tall % 256 == 0 and wide % 8 == 0 and tall >= rows and wide >= blocks
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(blocks), indexing="ij")
    at = (r // 32 * (wide // 8) + c // 8) * 256 + c % 4 * 64 + r % 16 * 4 + c // 4 % 2 * 2 + r // 16 % 2
    return scale.contiguous().view(torch.uint8).flatten()[at].view(torch.float8_e8m0fnu)


def _product(a, b, a_scale, b_scale, alpha, beta, bpreshuffle):
    assert (
        a.dtype is b.dtype is torch.float4_e2m1fn_x2
        and a_scale.dtype is b_scale.dtype is torch.float8_e8m0fnu
    )
    assert alpha == 1.0 and beta == 0.0 and bpreshuffle is True
    a, b = a.view(torch.uint8), b.view(torch.uint8)
    blocks = a.shape[1] // 16
    left = reference.without_global(a, _scales(a_scale, a.shape[0], blocks), MXFP4, torch.float32)
    right = reference.without_global(_rows(b), _scales(b_scale, b.shape[0], blocks), MXFP4, torch.float32)
    return left @ right.T


def gemm_into_out(A, B, A_scale, B_scale, out, bias=None, alpha=1.0, beta=0.0, bpreshuffle=True):
    """amd-aiter 0.1.7."""
    assert out.dtype is torch.bfloat16 and out.shape[0] % 32 == 0, "padded to multiples of 32"
    assert bias is None, "a tuned CK kernel would drop it"
    out[: A.shape[0]] = _product(A, B, A_scale, B_scale, alpha, beta, bpreshuffle).to(out.dtype)
    return out


def gemm_of_dtype(
    A, B, A_scale, B_scale, bias=None, dtype=torch.bfloat16, alpha=1.0, beta=0.0, bpreshuffle=True,
    apreshuffle=False, global_A_scale=None, global_B_scale=None,
):  # fmt: skip
    """Since 2026: the output is allocated, and cut to the rows of A."""
    assert bias is None and dtype is torch.bfloat16 and not apreshuffle
    assert global_A_scale is None and global_B_scale is None
    return _product(A, B, A_scale, B_scale, alpha, beta, bpreshuffle).to(dtype)


@pytest.mark.parametrize("gemm", [gemm_into_out, gemm_of_dtype])
def test_both_signatures_give_the_reference(gemm, monkeypatch):
    contract.install(monkeypatch, {"aiter.ops.gemm_op_a4w4": {"gemm_a4w4": gemm}})
    contract.check("nvfp4_linear", "aiter", at_least=2)


@pytest.mark.parametrize("rows", [1, 100, 128])
def test_the_layout_goes_there_and_back(rows):
    data, scale, _ = reference.nvfp4_quantize(torch.randn(rows, 320), None, "mxfp4", False)
    weight = ScaledTensor(data, scale, None, MXFP4, (rows, 320))
    shuffled = to_layout(weight, "aiter_shuffled")
    back = to_layout(shuffled, "linear")
    assert torch.equal(back.data, data) and torch.equal(
        back.block_scale.view(torch.uint8), scale.view(torch.uint8)
    )
    assert torch.equal(_rows(shuffled.data)[:rows], data)
    assert torch.equal(_scales(shuffled.block_scale, rows, 10).view(torch.uint8), scale.view(torch.uint8))


def test_the_layout_names_what_it_cannot_hold():
    data, scale, total = reference.nvfp4_quantize(torch.randn(16, 64), None, "nvfp4", False)
    weight = ScaledTensor(data, scale, total, reference.FORMATS["nvfp4"], (16, 64))
    with pytest.raises(ValueError, match=r"aiter_shuffled.*mxfp4"):
        to_layout(weight, "aiter_shuffled")


def _decide(device, layout="aiter_shuffled", activation="mxfp4", versions=None, dtype=torch.bfloat16):
    op = registry.op("nvfp4_linear")
    case = next(c for c in op.cases() if c.name == ("mxfp4.aiter" if "aiter" in layout else "mxfp4.mxfp4"))
    args = list(op.canonical(*case.fake(dtype)))
    args[5] = activation
    versions = {"amd-aiter": Version("0.1.7"), "triton": Version("3.8.0")} if versions is None else versions
    found = [i for i in registry.implementations(op.name) if i.backend in ("aiter", "triton", "torch")]
    return select(op.name, op.facts(*args), parse_device(device), versions.get, OpPolicy(), found)


def test_only_gfx950_and_only_the_shuffled_layout():
    assert _decide("rocm:gfx950").chosen == "aiter"
    assert _decide("rocm:gfx942").chosen == "triton"
    assert _decide("rocm:gfx950", layout="linear").chosen == "triton"
    assert "mxfp4 by bf16" in _decide("rocm:gfx950", activation="bf16").rejected("aiter").detail
    assert _decide("rocm:gfx950", dtype=torch.float16).chosen == "triton"
    assert "amd-aiter" in _decide("rocm:gfx950", versions={}).rejected("aiter").detail


def test_triton_takes_packed_operands_where_the_chip_multiplies_them():
    op = registry.op("nvfp4_linear")
    triton = next(i for i in registry.implementations(op.name) if i.backend == "triton")
    case = next(c for c in op.cases() if c.name == "mxfp4.mxfp4")
    mxfp4 = op.facts(*op.canonical(*case.fake(torch.bfloat16)))
    nvfp4 = mxfp4._replace(format="nvfp4", activation="nvfp4")
    native = {
        name: tuple(triton.configs(f, parse_device(name))[0].native for f in (nvfp4, mxfp4))
        for name in (
            "cuda:sm100",
            "cuda:sm103",
            "cuda:sm120",
            "cuda:sm121",
            "rocm:gfx950",
            "cuda:sm90",
            "rocm:gfx942",
        )
    }
    assert native == {
        "cuda:sm100": (True, True), "cuda:sm103": (True, True), "cuda:sm120": (True, True), "cuda:sm121": (True, True),
        "rocm:gfx950": (False, True), "cuda:sm90": (False, False), "rocm:gfx942": (False, False),
    }  # fmt: skip
    mixed = mxfp4._replace(activation="nvfp4")
    for facts in (mixed, mxfp4._replace(activation="bf16"), mxfp4._replace(activation="int8")):
        assert not any(c.native for c in triton.configs(facts, parse_device("cuda:sm100")))
