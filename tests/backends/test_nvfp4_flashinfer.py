"""mm_fp4 and scaled_mm through strict fakes: real signatures, layouts undone the way the kernels read them."""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal

import pytest
import torch
from torch import Tensor

from sgl_kernels.backends import nvfp4_flashinfer as adapter
from sgl_kernels.core import dispatch
from sgl_kernels.core.device import parse_device
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.op import TensorSpec
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.settings import OpPolicy, load_settings
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.formats import NVFP4
from sgl_kernels.ops.nvfp4.layouts import swizzle_scales
from tests.backends import contract


class SfLayout(enum.Enum):
    layout_128x4 = 0
    layout_8x4 = 1
    layout_linear = 2


class _Unset:
    def __repr__(self):
        return "_UNSET"


_UNSET = _Unset()


def nvfp4_quantize(
    a, a_global_sf, sfLayout=SfLayout.layout_128x4, do_shuffle=False, sf_vec_size=16, enable_pdl=None,
    backend="cuda", per_token_activation=False, expanded_idx_to_permuted_idx=None, out_scale=None,
    nvfp4_4over6=_UNSET,
):  # fmt: skip
    assert a.ndim == 2 and a.is_contiguous() and a.dtype in (torch.float16, torch.bfloat16)
    assert a_global_sf.dtype is torch.float32 and a_global_sf.numel() == 1
    assert sfLayout is SfLayout.layout_128x4 and not do_shuffle and sf_vec_size == 16
    data, scale, _ = reference.nvfp4_quantize(a, 1.0 / a_global_sf, "nvfp4", False)
    return data, swizzle_scales(scale).view(torch.uint8)


def _unswizzled(scale: Tensor, rows: int, blocks: int) -> Tensor:
    """By the position formula, not by our converter."""
    tall, wide = scale.shape
    assert tall % 128 == 0 and wide % 4 == 0 and tall >= rows and wide >= blocks
    m, c = torch.meshgrid(torch.arange(rows), torch.arange(blocks), indexing="ij")
    at = ((m // 128) * (wide // 4) + c // 4) * 512 + (m % 32) * 16 + (m % 128) // 32 * 4 + c % 4
    return scale.contiguous().view(torch.uint8).flatten()[at].view(torch.float8_e4m3fn)


Kernel = Literal["cudnn", "trtllm", "cutlass", "cute-dsl", "cutedsl_low_latency", "b12x", "cake", "auto"]


def make_mm_fp4(seen, listed=Kernel):
    def mm_fp4(
        a, b, a_descale, b_descale, alpha=None, out_dtype=torch.bfloat16, out=None, block_size=16,
        use_8x4_sf_layout=False, backend: listed = "auto", use_nvfp4=True, enable_pdl=True,
    ):  # fmt: skip
        seen.append(backend)
        assert a.dtype is torch.uint8 and b.dtype is torch.uint8 and block_size == 16 and use_nvfp4
        assert a.shape[1] == b.shape[0] and b.stride(0) == 1, "b is column major"
        assert (
            alpha.dtype is torch.float32 and alpha.is_contiguous() and out is None and not use_8x4_sf_layout
        )
        assert alpha.shape == ((a.shape[0],) if backend == "cake" else (1,)), (
            "one factor, a row's for cake alone"
        )
        assert backend != "cutedsl_low_latency" or (a.shape[0] <= 8 and a.is_contiguous())
        assert backend != "cake" or (a.shape[0] > 1 and a.shape[1] % 128 == 0 and b.shape[1] % 8 == 0)
        assert out_dtype is torch.bfloat16 or backend != "trtllm"
        weight, scale = b.T, b_descale.T
        n, blocks = weight.shape[0], weight.shape[1] // 8
        scale = _unswizzled(scale, n, blocks)
        if backend == "trtllm":  # row r of every 32 was moved to (r % 4) * 8 + r // 4
            r = torch.arange(n)
            moved = r // 32 * 32 + r % 4 * 8 + r % 32 // 4
            weight, scale = weight[moved], scale[moved]
        left = reference.without_global(a, _unswizzled(a_descale, a.shape[0], blocks), NVFP4, torch.float32)
        right = reference.without_global(weight, scale, NVFP4, torch.float32)
        return (left @ right.T * (alpha[:, None] if backend == "cake" else alpha)).to(out_dtype)

    mm_fp4.__annotations__["backend"] = listed
    return mm_fp4


@pytest.mark.parametrize("backend", list(adapter.KERNELS))
def test_flashinfer_kernels_give_the_reference(backend, monkeypatch):
    seen: list[str] = []
    contract.install(
        monkeypatch,
        {"flashinfer": {"SfLayout": SfLayout, "mm_fp4": make_mm_fp4(seen), "nvfp4_quantize": nvfp4_quantize}},
    )
    contract.check("nvfp4_linear", backend, at_least=1)
    assert set(seen) == {adapter.KERNELS[backend][0]}


def test_scaled_mm_gives_the_reference(monkeypatch):
    def scaled_mm(a, b, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
        assert a.dtype is b.dtype is torch.float4_e2m1fn_x2 and scale_a.ndim == scale_b.ndim == 1
        assert bias is None and scale_result is None and out_dtype is torch.float32
        a, b = a.view(torch.uint8), b.t().view(torch.uint8)
        wide = -(-a.shape[1] // 8 // 4) * 4
        parts = [
            reference.without_global(
                data, _unswizzled(scale.reshape(-1, wide), data.shape[0], data.shape[1] // 8), NVFP4,
                torch.float32,
            )
            for data, scale in ((a, scale_a), (b, scale_b))
        ]  # fmt: skip
        return parts[0] @ parts[1].T

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    contract.check("nvfp4_linear", "torch_scaled_mm", at_least=2)


def decide(device, m, wanted=None, layout="swizzled_128x4", activation="nvfp4"):
    op = registry.op("nvfp4_linear")
    case = next(
        c for c in op.cases() if c.name == ("nvfp4.shuffled" if "trt" in layout else "nvfp4.swizzled")
    )
    args = list(op.canonical(*case.fake(torch.bfloat16)))
    args[0] = TensorSpec((m, 128)).make(torch.bfloat16, torch.device("cpu"), torch.Generator())
    args[5] = activation
    settings = dispatch.current().settings
    quantization = dataclasses.replace(settings.quantization, flashinfer_fp4_gemm_backend=wanted)
    settings = dataclasses.replace(settings, quantization=quantization)
    implementations = registry.implementations("nvfp4_linear")
    off = {i.backend: r for i in implementations if i.enabled and (r := i.enabled(settings)) is not None}
    return select(
        op.name,
        op.facts(*args),
        parse_device(device),
        lambda name: "99",
        OpPolicy(),
        implementations,
        switched_off=off,
    )


@pytest.mark.parametrize(
    "device, m, wanted, layout, chosen",
    [
        ("cuda:sm100", 1, None, "trtllm_shuffled", "flashinfer_trtllm"),
        ("cuda:sm100", 1, None, "swizzled_128x4", "flashinfer_cutlass"),
        ("cuda:sm100", 512, None, "swizzled_128x4", "flashinfer_cute_dsl"),
        ("cuda:sm100", 8192, None, "swizzled_128x4", "flashinfer_cutlass"),
        ("cuda:sm120", 512, None, "swizzled_128x4", "flashinfer_b12x"),
        ("cuda:sm100", 512, "flashinfer_cudnn", "swizzled_128x4", "flashinfer_cudnn"),
        ("cuda:sm100", 512, "auto", "swizzled_128x4", "flashinfer_cute_dsl"),
        ("cuda:sm90", 512, None, "swizzled_128x4", "triton"),
    ],
)
def test_the_order_follows_rows_architecture_and_the_variable(device, m, wanted, layout, chosen):
    selection = decide(device, m, wanted, layout)
    assert selection.chosen == chosen, str(selection)


@pytest.mark.parametrize(
    "device, m, order",
    [
        ("cuda:sm120", 1, ("flashinfer_b12x", "flashinfer_cutlass", "flashinfer_cudnn")),
        ("cuda:sm121", 1, ("flashinfer_cutlass", "flashinfer_cudnn", "flashinfer_b12x")),
        ("cuda:sm110", 64, ("flashinfer_cutlass", "flashinfer_cudnn")),
    ],
)
def test_every_row_of_the_table_is_followed(device, m, order):
    op = registry.op("nvfp4_linear")
    case = next(c for c in op.cases() if c.name == "nvfp4.swizzled")
    facts = op.facts(*op.canonical(*case.fake(torch.bfloat16)))._replace(m=m)
    ranks = {b: adapter._rank(b)(facts, parse_device(device)) for b in adapter.KERNELS}
    assert tuple(sorted((b for b in ranks if ranks[b] > 0), key=ranks.get, reverse=True)) == order
    assert all(row.evidence and set(row.order) <= set(adapter.KERNELS) for row in adapter.ORDER)


NAMES = ("cudnn", "cutlass", "trtllm", "cute_dsl", "cutedsl_low_latency", "b12x", "cake")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("auto", "auto"),
        *((f"flashinfer_{name}", f"flashinfer_{name}") for name in NAMES),
        *((name, f"flashinfer_{name}") for name in NAMES),
        ("cute-dsl", "flashinfer_cute_dsl"),
        ("CUTLASS", "flashinfer_cutlass"),
    ],
)
def test_every_value_of_the_variable(text, wanted):
    settings = load_settings({adapter.VARIABLE: text})
    assert settings.quantization.flashinfer_fp4_gemm_backend == wanted
    on = {b for b in adapter.KERNELS if adapter._enabled(b)(settings) is None}
    assert on == (set(adapter.KERNELS) if wanted == "auto" else {wanted})


@pytest.mark.parametrize("text", ["marlin", "flashinfer", "trt-llm", "cudnn,cutlass", "flashinfer_auto"])
def test_a_wrong_value_is_named_with_what_is_right(text):
    with pytest.raises(ConfigError, match=adapter.VARIABLE) as error:
        load_settings({adapter.VARIABLE: text})
    assert text in str(error.value) and "flashinfer_cutlass" in str(error.value)


def test_an_older_release_has_fewer_kernels(monkeypatch):
    """The signature of mm_fp4 is the list; a release whose annotations are text is read too."""
    old = Literal["cudnn", "trtllm", "cutlass", "auto"]
    for listed in (old, 'Literal["cudnn", "trtllm", "cutlass", "auto"]'):
        mm_fp4 = make_mm_fp4([], listed)
        fakes = {"SfLayout": SfLayout, "mm_fp4": mm_fp4, "nvfp4_quantize": nvfp4_quantize}
        contract.install(monkeypatch, {"flashinfer": fakes})
        for backend, (kernel, *_) in adapter.KERNELS.items():
            declared = contract.implementation("nvfp4_linear", backend)
            if kernel in ("cudnn", "trtllm", "cutlass"):
                declared.load(None)
            else:
                with pytest.raises(RuntimeError, match=f"no '{kernel}' kernel, only cudnn, trtllm"):
                    declared.load(None)
    assert adapter.listed_kernels(lambda a, backend="auto": a) is None


def test_what_single_kernels_turn_away():
    op = registry.op("nvfp4_linear")
    case = next(c for c in op.cases() if c.name == "nvfp4.swizzled")
    facts = op.facts(*op.canonical(*case.fake(torch.bfloat16)))
    cake, low = (
        contract.implementation("nvfp4_linear", f"flashinfer_{n}") for n in ("cake", "cutedsl_low_latency")
    )
    assert "K a multiple of 256" in cake.rejects(facts).detail and cake.rejects(facts._replace(k=512)) is None
    assert low.rejects(facts) is None and "at most 8 rows" in low.rejects(facts._replace(m=9)).detail
    dsl, place = contract.implementation("nvfp4_linear", "flashinfer_cute_dsl"), parse_device("cuda:sm120")
    assert dsl.rejects_on(facts._replace(n=96), place) is not None
    assert dsl.rejects_on(facts._replace(n=128), place) is None


def test_a_backend_switched_off_says_which_variable_did_it():
    selection = decide("cuda:sm100", 512, "flashinfer_cudnn")
    rejected = selection.rejected("flashinfer_cutlass")
    assert rejected.detail == f"{adapter.VARIABLE} is flashinfer_cudnn"
