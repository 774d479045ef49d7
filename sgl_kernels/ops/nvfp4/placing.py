"""Where a quantised weight goes: the layout that its device's kernels read, made once and remembered."""

from __future__ import annotations

import functools

import torch

from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.dispatch import current
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledFormat, ScaledTensor
from sgl_kernels.ops.nvfp4.layouts import MAX_FINITE_E4M3, to_layout

OP = "nvfp4_linear"


def for_device(weight: ScaledTensor, activation: str = "bf16") -> ScaledTensor:
    """The weight in the layout that its device's own kernels read, converted once and remembered.

    Its scales are checked before the first use, also where the layout stays: nobody could read them on a device before.
    """
    if not weight.examined:
        weight.examine("nvfp4_linear: weight")
    layout = preferred_layout(weight, activation)
    if layout == weight.layout:
        return weight
    found = weight.prepared.get(layout)
    if found is None:
        with torch.inference_mode(False):  # it outlives this call, and may then have to enter a backward
            found = weight.prepared[layout] = to_layout(weight, layout)
    return found


def as_prepared(weight: ScaledTensor) -> ScaledTensor:
    """Under the compiler the layout is no question (its answer reads scales and the machine): what is there serves."""
    for found in weight.prepared.values():
        return found
    return weight


def preferred_layout(weight: ScaledTensor, activation: str = "bf16") -> str:
    """The layout that the kernels of the weight's device read; the present one where nothing is gained."""
    if weight.layout != "linear" or len(weight.shape) != 2 or not weight.data.numel():
        return weight.layout
    if weight.device.type == "cpu":
        return _cpu_layout(weight) if weight.format == NVFP4 else weight.layout
    return layout_on(probe(weight.device), weight.format, weight.shape, activation)


def layout_on(where: Device, format: ScaledFormat, shape: tuple[int, ...], activation: str = "bf16") -> str:
    """The layout that the kernels of an accelerator read a (N, K) weight in; "linear" where any does.

    Blackwell's kernels want swizzled scales. AITER multiplies MXFP4 by MXFP4 on gfx950 where its tiles divide N and K.
    """
    if format != NVFP4:
        n, k = shape
        fits = activation == "mxfp4" and n % 128 == 0 and k % 256 == 0
        return "aiter_shuffled" if fits and where.platform == "rocm" and _aiter_runs(where) else "linear"
    if where.platform == "cuda" and (where.capability or (0, 0)) >= (10, 0):
        wanted = current().settings.quantization.flashinfer_fp4_gemm_backend
        return "trtllm_shuffled" if wanted == "flashinfer_trtllm" else "swizzled_128x4"
    return "linear"


@functools.cache
def _aiter_runs(where: Device) -> bool:
    """Whether the backend is declared for this device, its package is here and it loads."""
    for implementation in registry.implementations(OP):
        if implementation.backend == "aiter":
            rejected = implementation.requires.rejects(torch.bfloat16, where, installed_version)
            return rejected is None and not isinstance(registry.loaded(implementation, None), Rejected)
    return False


def _cpu_layout(weight: ScaledTensor) -> str:
    """ "cpu_packed" where the C++ kernels run and the scales are finite."""
    if "cpu_packed" in weight.prepared:
        return "cpu_packed"
    if not _cpu_kernels_run():
        return weight.layout
    scales = weight.block_scale.view(torch.uint8)
    return "cpu_packed" if int(scales.max()) <= MAX_FINITE_E4M3 else weight.layout


@functools.cache
def _cpu_kernels_run() -> bool:
    here = probe(torch.device("cpu"))
    for implementation in registry.implementations(OP):
        if implementation.backend == "cpu":
            fits = not implementation.requires.archs or here.arch in implementation.requires.archs
            return fits and not isinstance(registry.loaded(implementation, None), Rejected)
    return False
