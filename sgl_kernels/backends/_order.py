"""The default order on each architecture: one table, with the evidence for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Place

ONLY_WHEN_NAMED = -10
"""The rank of a backend the table does not list: below the torch floor, so it runs only when it is named.

That holds for hf_kernels on every device: its first use downloads and runs code, which nobody asked for by installing
a package that transformers depends on.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Who goes first for a group of ops on a family of devices; torch follows the last."""

    family: str
    group: str  # "attention" | "norm" | "rope" | "modulate" | "activation"
    order: tuple[str, ...]
    evidence: str


ATTENTION = "attention"
ROWWISE = ("norm", "rope", "modulate", "activation")

ORDER: tuple[Row, ...] = (
    Row(
        "hopper", ATTENTION, ("fa3", "torch_cudnn", "fa2", "flashinfer"),
        "H200, S=4096 H=24 D=128: FA3 291 us, torch SDPA 590 us (vllm-omni 1923); cuDNN 1.7 to 2.3x torch's "
        "flash on Hopper (transformers 48163)",
    ),
    Row(
        "blackwell", ATTENTION, ("torch_cudnn", "fa4", "flashinfer"),
        "cuDNN 9.19 is 1.24 to 1.98x FA4 on 11 diffusion shapes on B200 (sglang 33655)",
    ),
    Row(
        "blackwell_consumer", ATTENTION, ("torch_cudnn",),
        "sm120, S=24,960: cuDNN 10.08 ms, torch flash 11.16 ms (sglang 36494)",
    ),
    Row(
        "ada", ATTENTION, ("torch_cudnn", "fa2"),
        "sm89: cuDNN 106, flash 85.9 TFLOP/s (pytorch 192799)",
    ),
    Row(
        "ampere_consumer", ATTENTION, ("torch_cudnn", "fa2"),
        "sm86: cuDNN 62.4, flash 50.9 TFLOP/s (pytorch 192799)",
    ),
    Row(
        "ampere", ATTENTION, ("fa2",),
        "sm80: flash 136, cuDNN 135 TFLOP/s (pytorch 192799); cuDNN 0.82x on A100 (transformers 48163)",
    ),
    Row(
        "cdna3", ATTENTION, ("aiter", "fa2"),
        "MI300X: AITER 18 to 62 % over torch's AOTriton SDPA (published measurements)",
    ),
    Row("cdna4", ATTENTION, ("aiter",), "AITER's CK and assembly kernels are written for CDNA3 and CDNA4"),
    Row("cdna2", ATTENTION, ("fa2",), "FlashAttention 2 builds for MI200; AITER's kernels start at MI300"),
    Row("rdna", ATTENTION, (), "torch's SDPA has AOTriton for RDNA3; nothing measured against it, FA2 when named"),
    Row("turing", ATTENTION, (), "FlashAttention, cuDNN's SDPA and our Triton kernels start at sm80"),
    Row("xe", ATTENTION, ("xpu",), "torch's fused oneDNN kernel against the unfused path that overflows (ipex 749)"),
    Row("ascend", ATTENTION, ("ascend",), "the unfused path on Ascend materialises scores (vllm-ascend 13699)"),
    Row("musa", ATTENTION, ("musa",), "MTT's flash kernel is what SGLang and torch_musa default to"),
    Row("apple", ATTENTION, (), "two synchronisations per crossing to MLX; torch unless named"),
    Row(
        "cpu", ATTENTION, ("cpu", "zentorch"),
        "benchmarks/results: cpu against torch and zentorch on this grid, each shape class",
    ),
    Row(
        "hopper", "norm", ("triton", "flashinfer"),
        "one pass over memory; flashinfer's RMSNorm 788 us against 105 us of a fused kernel at 27030x24x128 "
        "(sglang 20632), though it wins at 140x4096",
    ),
    Row("blackwell", "norm", ("triton", "flashinfer"), "as on Hopper"),
    Row("blackwell_consumer", "norm", ("triton", "flashinfer"), "as on Hopper"),
    Row("ada", "norm", ("triton", "flashinfer"), "as on Hopper"),
    Row("ampere", "norm", ("triton", "flashinfer"), "as on Hopper"),
    Row("ampere_consumer", "norm", ("triton", "flashinfer"), "as on Hopper"),
    Row("cdna3", "norm", ("aiter", "triton"), "AITER's CK norms are tuned for CDNA"),
    Row("cdna4", "norm", ("aiter", "triton"), "AITER's CK norms are tuned for CDNA"),
    Row("ascend", "norm", ("ascend",), "npu_rms_norm is one kernel; torch's composite is five"),
    Row("musa", "norm", ("musa",), "torch_musa's F.rms_norm is one kernel"),
    *(
        Row(family, group, ("triton",), "fused in one pass; torch eager takes three to six")
        for family in ("cdna2", "rdna", "xe")
        for group in ("norm",)
    ),
    *(
        Row(family, group, ("triton", "flashinfer"), "fused in one pass; torch eager takes three to six")
        for family in ("hopper", "blackwell", "blackwell_consumer", "ada", "ampere", "ampere_consumer")
        for group in ("rope", "activation")
    ),
    *(
        Row(family, "modulate", ("triton",), "fused in one pass; torch eager takes three to six")
        for family in ("hopper", "blackwell", "blackwell_consumer", "ada", "ampere", "ampere_consumer")
    ),
    *(
        Row(family, group, ("triton",), "fused in one pass; torch eager takes three to six")
        for family in ("cdna2", "cdna3", "cdna4", "rdna", "xe")
        for group in ("rope", "modulate", "activation")
    ),
    *(
        Row("ascend", group, ("ascend",), "one fused NPU kernel against several")
        for group in ("rope", "activation")
    ),
    *(
        Row("apple", group, ("mlx",), "only with SGLANG_USE_MLX=1, which the backend itself checks")
        for group in ("norm", "rope")
    ),
    *(
        Row("cpu", group, ("cpu",), "benchmarks/results: cpu against torch eager, each op")
        for group in ROWWISE
    ),
)  # fmt: skip

OURS = 30
"""The rank of our Triton kernels (backends/triton.py), which a row may name: who follows them ranks below."""
BEFORE_OURS, AFTER_OURS, LAST = OURS + 20, OURS - 10, OURS - 20
"""Before our Triton kernels, right behind them, and behind those too; all above the floor."""

_ROWS = {(row.family, row.group): row for row in ORDER}
NTH = ("first", "second", "third", "fourth", "fifth")
FAMILIES = {
    "sm75": "turing",
    "sm80": "ampere", "sm86": "ampere_consumer", "sm87": "ampere_consumer", "sm89": "ada", "sm90": "hopper",
    "sm100": "blackwell", "sm103": "blackwell", "sm110": "blackwell", "sm120": "blackwell_consumer",
    "sm121": "blackwell_consumer",
    "gfx90a": "cdna2", "gfx942": "cdna3", "gfx950": "cdna4",
}  # fmt: skip


def family(device: Device) -> str:
    """The row of the table a device belongs to; '' for one it does not know."""
    if device.platform == "cuda":
        return FAMILIES.get(device.arch, "")
    if device.platform == "rocm":
        return FAMILIES.get(
            device.arch, "rdna" if device.arch.startswith(("gfx10", "gfx11", "gfx12")) else ""
        )
    return {"xpu": "xe", "npu": "ascend", "musa": "musa", "mps": "apple", "cpu": "cpu"}[device.platform]


def rank(backend: str, group: str) -> Callable[[Any, Device], int]:
    """The rank of `backend` for the ops of `group`: 90 for the first of its row, 80 for the second, and so on.

    Behind our Triton kernels, 20 for the first and 10 for the second: still above the torch floor.
    """

    def ranked(facts: Any, device: Device) -> int:
        row = _ROWS.get((family(device), group))
        if row is None or backend not in row.order:
            return ONLY_WHEN_NAMED
        order = row.order
        place, ours = order.index(backend), order.index("triton") if "triton" in order else len(order)
        return Place(
            90 - 10 * place if place < ours else OURS - 10 * (place - ours),
            f"{NTH[place]} on {row.family}: {row.evidence}",
        )

    return ranked
