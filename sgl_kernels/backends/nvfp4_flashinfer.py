"""FlashInfer's mm_fp4 and torch's scaled_mm: NVFP4 times NVFP4 on Blackwell.

Signatures read from flashinfer-python 0.7.2.post1 and torch 2.13. Each of FlashInfer's kernels is a backend of ours;
TRT-LLM's wants its weight shuffled, the others swizzled 128x4, which NVFP4Linear prepares once. The variable
SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND leaves one of them (and decides the layout); naming a backend overrides it.
Which kernels the installed release has is read from mm_fp4's own signature when the backend is loaded.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import AFTER_OURS, NTH, ONLY_WHEN_NAMED
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation, Place
from sgl_kernels.core.selection.requires import HALF, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.core.settings import Settings
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.facts import LinearFacts
from sgl_kernels.ops.nvfp4.layouts import swizzle_scales

VARIABLE = "SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND"
DATACENTER = frozenset({"sm100", "sm103"})
BLACKWELL = DATACENTER | {"sm110", "sm120", "sm121"}
CONSUMER = frozenset({"sm120", "sm121"})
BF16 = frozenset({torch.bfloat16})
KERNELS = {  # FlashInfer's name, where it runs, its layout, the dtypes of its result
    "flashinfer_cutlass": ("cutlass", BLACKWELL, "swizzled_128x4", HALF),
    "flashinfer_cudnn": ("cudnn", BLACKWELL, "swizzled_128x4", HALF),
    "flashinfer_cute_dsl": ("cute-dsl", DATACENTER | CONSUMER, "swizzled_128x4", HALF),
    "flashinfer_cutedsl_low_latency": ("cutedsl_low_latency", DATACENTER, "swizzled_128x4", HALF),
    "flashinfer_b12x": ("b12x", CONSUMER, "swizzled_128x4", HALF),
    "flashinfer_cake": ("cake", DATACENTER, "swizzled_128x4", HALF),
    "flashinfer_trtllm": ("trtllm", DATACENTER, "trtllm_shuffled", BF16),
}
LOW_LATENCY_ROWS = 8  # the most that cutedsl_low_latency takes


@dataclass(frozen=True, slots=True)
class Row:
    """Who goes first for `rows` (few: up to 8, some, many: from 8192) on these architectures, and why.

    A kernel that no row of its architecture lists runs only when it is named.
    """

    archs: frozenset[str]
    rows: tuple[str, ...]
    order: tuple[str, ...]
    evidence: str


ORDER: tuple[Row, ...] = (
    Row(
        DATACENTER, ("few",),
        ("flashinfer_trtllm", "flashinfer_cutlass", "flashinfer_cute_dsl", "flashinfer_cudnn",
         "flashinfer_cutedsl_low_latency"),
        "TRT-LLM leads at M = 1 in the published measurements of FlashInfer's kernels; its own `auto` tries "
        "cutedsl_low_latency last, for at most 8 rows (gemm_base.py of 0.7.2.post1)",
    ),
    Row(
        DATACENTER, ("some",),
        ("flashinfer_cute_dsl", "flashinfer_cutlass", "flashinfer_trtllm", "flashinfer_cudnn"),
        "CuTe DSL leads in the middle in the same measurements",
    ),
    Row(
        DATACENTER, ("many",),
        ("flashinfer_cutlass", "flashinfer_cute_dsl", "flashinfer_trtllm", "flashinfer_cudnn"),
        "CUTLASS leads from 8192 rows in the same measurements",
    ),
    Row(
        frozenset({"sm120"}), ("few", "some", "many"), ("flashinfer_b12x", "flashinfer_cutlass", "flashinfer_cudnn"),
        "FlashInfer's own `auto` on SM120 (gemm_base.py of 0.7.2.post1)",
    ),
    Row(
        frozenset({"sm121"}), ("few", "some", "many"), ("flashinfer_cutlass", "flashinfer_cudnn", "flashinfer_b12x"),
        "FlashInfer's own `auto`: it leaves b12x out on SM121, where the two others are faster in most cases",
    ),
    Row(
        frozenset({"sm110"}), ("few", "some", "many"), ("flashinfer_cutlass", "flashinfer_cudnn"),
        "FlashInfer's own `auto` before cuDNN 9.15; the other kernels are not built for SM110",
    ),
)  # fmt: skip
_ROWS = {(arch, size): row for row in ORDER for arch in row.archs for size in row.rows}


def _rank(backend: str) -> Callable[[Any, Device], int]:
    def rank(facts: LinearFacts, device: Device) -> int:
        size = "few" if facts.m <= 8 else ("some" if facts.m < 8192 else "many")
        row = _ROWS.get((device.arch, size))
        if row is None or backend not in row.order:
            return ONLY_WHEN_NAMED
        place = row.order.index(backend)
        return Place(90 - 10 * place, f"{NTH[place]} on {device.arch} for {size} rows: {row.evidence}")

    return rank


def listed_kernels(mm_fp4: Callable[..., Any]) -> tuple[str, ...] | None:
    """The kernels that this release's signature names, or None where it does not list them."""
    parameter = inspect.signature(mm_fp4).parameters.get("backend")
    annotation = None if parameter is None else parameter.annotation
    if isinstance(annotation, str):  # the release postpones its annotations
        return tuple(re.findall(r"[\"']([\w-]+)[\"']", annotation)) or None
    return tuple(typing.get_args(annotation)) or None


def _activation(x: Tensor, input_scale: Tensor | None) -> Tensor:
    """The activation's global scale (decode direction), on its device: no synchronisation."""
    return reference.global_scale_of(x) if input_scale is None else input_scale.to(torch.float32).reshape(())


def _finish(y: Tensor, x: Tensor, bias: Tensor | None, n: int) -> Tensor:
    y = y[:, :n]
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.reshape(*x.shape[:-1], n)


def _load(kernel: str) -> Callable[[Any], Callable[..., Tensor]]:
    def load(config: Any) -> Callable[..., Tensor]:
        from flashinfer import SfLayout, mm_fp4, nvfp4_quantize

        listed = listed_kernels(mm_fp4)
        if listed is not None and kernel not in listed:
            raise RuntimeError(f"this flashinfer has no {kernel!r} kernel, only {', '.join(listed)}")
        supported = getattr(mm_fp4, "is_backend_supported", None)
        if supported is not None and torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            if not supported(kernel, major * 10 + minor):
                raise RuntimeError(f"this flashinfer has no {kernel!r} kernel for sm{major}{minor}")

        def run(
            x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor, bias: Tensor | None,
            activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
        ) -> Tensor:  # fmt: skip
            # activation, format and layout were checked against this kernel's by _rejects
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            scale = _activation(flat, input_scale)
            a, a_scale = nvfp4_quantize(flat, 1.0 / scale, sfLayout=SfLayout.layout_128x4, do_shuffle=False)
            alpha = (scale * global_scale).reshape(1)
            if kernel == "cake":  # it reads one factor for each row
                alpha = alpha.expand(flat.shape[0]).contiguous()
            y = mm_fp4(
                a, weight.T, a_scale, weight_scale.T, alpha, x.dtype, None,
                block_size=16, use_8x4_sf_layout=False, backend=kernel, use_nvfp4=True,
            )  # fmt: skip
            return _finish(y, x, bias, out_features)

        return run

    return load


def _load_scaled_mm(config: Any) -> Callable[..., Tensor]:
    scaled_mm, fp4 = torch._scaled_mm, torch.float4_e2m1fn_x2

    def run(
        x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor, bias: Tensor | None,
        activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
    ) -> Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        scale = _activation(flat, input_scale)
        a, a_scale, _ = reference.nvfp4_quantize(flat, scale, "nvfp4", False)
        y = scaled_mm(
            a.view(fp4),
            weight.view(fp4).t(),
            swizzle_scales(a_scale).flatten(),
            weight_scale.flatten(),
            out_dtype=torch.float32,
        )
        return _finish((y * (scale * global_scale)).to(x.dtype), x, bias, out_features)

    return run


def _layout(layout: str) -> Callable[[LinearFacts, Device], str | None]:
    """Of an NVFP4 weight, whatever the activation and its size: who reads any layout serves its other calls."""

    def wanted(f: LinearFacts, device: Device) -> str | None:
        return layout if f.format == "nvfp4" else None

    return wanted


def _rejects(layout: str, kernel: str = "") -> Callable[[LinearFacts], Rejected | None]:
    def rejects(f: LinearFacts) -> Rejected | None:
        if f.activation != "nvfp4" or f.format != "nvfp4":
            return feature(f"multiplies nvfp4 by nvfp4 only, not {f.format} by {f.activation}")
        if f.layout != layout:
            return feature(f"needs the weight in layout {layout!r}, it is {f.layout!r}")
        if f.m == 0 or f.k % 64 or f.n % 32:
            return shape(f"needs rows, K a multiple of 64 and N of 32; got M {f.m}, N {f.n}, K {f.k}")
        if kernel == "cutedsl_low_latency" and f.m > LOW_LATENCY_ROWS:
            return shape(f"takes at most {LOW_LATENCY_ROWS} rows, got {f.m}")
        if kernel == "cake" and (f.m == 1 or f.k % 256):
            return shape(f"needs two rows or more and K a multiple of 256; got M {f.m}, K {f.k}")
        return None

    return rejects


def _rejects_on(kernel: str) -> Callable[[LinearFacts, Device], Rejected | None]:
    def rejects_on(f: LinearFacts, device: Device) -> Rejected | None:
        if kernel == "cute-dsl" and device.arch in CONSUMER and (f.dtype is not torch.bfloat16 or f.n % 64):
            return shape(f"on {device.arch} gives bfloat16 for N a multiple of 64; got {f.dtype}, N {f.n}")
        return None

    return rejects_on


def _enabled(backend: str) -> Callable[[Settings], Rejected | None]:
    def enabled(settings: Settings) -> Rejected | None:
        wanted = settings.quantization.flashinfer_fp4_gemm_backend
        if wanted in (None, "auto", backend):
            return None
        return Rejected(Reason.POLICY, f"{VARIABLE} is {wanted}", f"export {VARIABLE}={backend}")

    return enabled


def _implementation(backend: str) -> Implementation:
    kernel, archs, layout, dtypes = KERNELS[backend]
    return Implementation(
        op="nvfp4_linear",
        backend=backend,
        load=_load(kernel),
        requires=Requires(
            platforms=frozenset({"cuda"}), archs=archs, dtypes=dtypes, packages=("flashinfer-python>=0.4",)
        ),
        rejects=_rejects(layout, kernel),
        layout=_layout(layout),
        rejects_on=_rejects_on(kernel),
        enabled=_enabled(backend),
        bugs=bugs_of(backend, "nvfp4_linear"),
        rank=_rank(backend),
        proof="contract",
        doc=f"FlashInfer mm_fp4, {kernel} kernel",
    )


IMPLEMENTATIONS = (
    *(_implementation(backend) for backend in KERNELS),
    Implementation(
        op="nvfp4_linear",
        backend="torch_scaled_mm",
        load=_load_scaled_mm,
        requires=Requires(platforms=frozenset({"cuda"}), archs=BLACKWELL, dtypes=HALF),
        rejects=_rejects("swizzled_128x4"),
        layout=_layout("swizzled_128x4"),
        rank=Place(
            AFTER_OURS, "reads a swizzled weight as it is, which our Triton kernel would undo in every call"
        ),
        proof="contract",
        doc="torch._scaled_mm (cuBLASLt) on packed fp4",
    ),
)
