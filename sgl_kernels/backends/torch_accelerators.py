"""xpu and musa: the fused attention that torch itself carries for Intel and Moore Threads GPUs.

On XPU it is oneDNN's fused graph behind SDPA's overrideable slot; on MUSA, torch_musa registers its flash kernel
behind SDPA's flash slot. Pinning the slot turns a silent fall to the unfused path into an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends._attention import rejects
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import HALF, Requires

_sdpa = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch


def _pinned(slot: str) -> Callable[[Any], Callable[..., Tensor]]:
    def load(config: Any) -> Callable[..., Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        choice = getattr(SDPBackend, slot)

        def run(
            q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
            scale: float | None, window_left: int, window_right: int, softcap: float,
        ) -> Tensor:  # fmt: skip
            # masks, windows, softcap and causal of unequal lengths were turned away
            with sdpa_kernel(choice):
                out = _sdpa(
                    q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, is_causal=is_causal, scale=scale,
                    enable_gqa=q.shape[2] != k.shape[2],
                )  # fmt: skip
            return out.transpose(1, 2)

        return run

    return load


def _load_rms_norm(config: Any) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, eps)  # an offset and mixed dtypes were turned away

    return run


def _rejects_rms(facts: Any) -> Any:
    from sgl_kernels.backends._attention import feature

    if facts.weight_offset or (facts.weight is not None and facts.weight is not facts.dtype):
        return feature("the fused norm takes a weight of the dtype of x and no offset")
    return None


IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="xpu",
        load=_pinned("OVERRIDEABLE"),
        requires=Requires(platforms=frozenset({"xpu"}), dtypes=HALF),
        rejects=rejects(head_dims=lambda d: d <= 256, head_dim_text="at most 256"),
        bugs=bugs_of("xpu", "attention"),
        rank=rank("xpu", "attention"),
        proof="simulated",
        doc="oneDNN's fused attention for Intel GPUs",
    ),
    Implementation(
        op="attention",
        backend="musa",
        load=_pinned("FLASH_ATTENTION"),
        requires=Requires(platforms=frozenset({"musa"}), packages=("torch_musa",), dtypes=HALF),
        rejects=rejects(
            head_dims=lambda d: d % 8 == 0 and d <= 256, head_dim_text="a multiple of 8, at most 256"
        ),
        bugs=bugs_of("musa", "attention"),
        rank=rank("musa", "attention"),
        proof="simulated",
        doc="torch_musa's flash attention for Moore Threads GPUs",
    ),
    Implementation(
        op="rms_norm",
        backend="musa",
        load=_load_rms_norm,
        requires=Requires(
            platforms=frozenset({"musa"}),
            packages=("torch_musa",),
            dtypes=HALF | {torch.float32},
        ),
        rejects=_rejects_rms,
        bugs=bugs_of("musa", "rms_norm"),
        rank=rank("musa", "norm"),
        proof="simulated",
        doc="torch_musa's fused RMS norm",
    ),
)
