"""torch's SDPA pinned to one of its kernels: torch_cudnn, torch_flash, torch_efficient; and flex attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends._attention import (
    expanded_mask,
    narrowed,
    rejects,
    rejects_before_ampere,
    without_hidden,
)
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS, HALF, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected

_sdpa = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch


def _rows(t: Tensor) -> Tensor:
    """The tensor with contiguous rows: the fused kernels of torch take no other stride in the last dimension."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _pinned(kernel: str) -> Callable[[Any], Callable[..., Tensor]]:
    def load(config: Any) -> Callable[..., Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        choice = getattr(SDPBackend, kernel)

        def run(
            q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
            scale: float | None, window_left: int, window_right: int, softcap: float,
        ) -> Tensor:  # fmt: skip
            # windows and softcap are turned away; causal_alignment is: torch aligns top-left, and a
            # bottom-right call of unequal lengths was turned away too
            k, v = without_hidden(k, v, attn_mask)
            mask = expanded_mask(attn_mask, q, k)
            if mask is not None and mask.dtype not in (torch.bool, q.dtype):
                mask = narrowed(mask, q.dtype)
            with sdpa_kernel(choice):
                out = _sdpa(
                    _rows(q).transpose(1, 2), _rows(k).transpose(1, 2), _rows(v).transpose(1, 2), mask,
                    is_causal=is_causal, scale=scale, enable_gqa=q.shape[2] != k.shape[2],
                )  # fmt: skip
            return out.transpose(1, 2)

        return run

    return load


def _load_flex(config: Any) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        k, v = without_hidden(k, v, attn_mask)
        offset = k.shape[1] - q.shape[1]
        causal_shift = offset if causal_alignment == "bottom_right" else 0
        mask = expanded_mask(attn_mask, q, k)
        left, right = (min(side, q.shape[1] + k.shape[1]) for side in (window_left, window_right))

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if softcap > 0:
                score = softcap * torch.tanh(score / softcap)
            if mask is not None:
                value = mask[b, h, i, j]
                score = (
                    torch.where(value, score, -float("inf")) if mask.dtype is torch.bool else score + value
                )
            if is_causal:
                score = torch.where(j <= i + causal_shift, score, -float("inf"))
            if left >= 0:
                score = torch.where(j >= i + offset - left, score, -float("inf"))
            if right >= 0:
                score = torch.where(j <= i + offset + right, score, -float("inf"))
            return score

        out = compiled(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            score_mod=score_mod,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2)

    return run


def _flex_rejects_on(facts: Any, device: Device) -> Rejected | None:
    if device.platform == "cpu":
        return Rejected(
            Reason.FEATURE,
            "compiled flex attention is 0.56 to 0.92x of SDPA on the CPU, and compiles for seconds",
        )
    return None


def _multiple_of_8(limit: int) -> Callable[[int], bool]:
    return lambda d: d % 8 == 0 and d <= limit


GPU = frozenset({"cuda"})
IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="torch_cudnn",
        load=_pinned("CUDNN_ATTENTION"),
        requires=Requires(platforms=GPU, min_capability=(8, 0), dtypes=HALF),
        # cuDNN takes additive masks; masked-out rows are NaN in some of its versions, so masks go elsewhere
        rejects=rejects(head_dims=_multiple_of_8(128), head_dim_text="a multiple of 8, at most 128"),
        bugs=bugs_of("torch_cudnn", "attention"),
        rank=rank("torch_cudnn", "attention"),
        proof="simulated",
        doc="torch SDPA pinned to cuDNN's fused kernel",
    ),
    Implementation(
        op="attention",
        backend="torch_flash",
        load=_pinned("FLASH_ATTENTION"),
        requires=Requires(platforms=frozenset({"cuda", "rocm", "cpu"}), dtypes=HALF),
        rejects=rejects(
            causal=("square", "top_left"),
            head_dims=lambda d: d <= 256,
            head_dim_text="at most 256",
        ),
        rejects_on=rejects_before_ampere,
        bugs=bugs_of("torch_flash", "attention"),
        rank=rank("torch_flash", "attention"),
        proof="simulated",
        doc="torch SDPA pinned to its FlashAttention kernel",
    ),
    Implementation(
        op="attention",
        backend="torch_efficient",
        load=_pinned("EFFICIENT_ATTENTION"),
        requires=Requires(platforms=frozenset({"cuda", "rocm"}), dtypes=FLOATS),
        rejects=rejects(
            masks=("bool", "float"), causal=("square", "top_left"), gqa=False, equal_head_dims=False,
            head_dims=_multiple_of_8(1 << 16), head_dim_text="a multiple of 8",
        ),
        bugs=bugs_of("torch_efficient", "attention"),
        rank=rank("torch_efficient", "attention"),
        proof="simulated",
        doc="torch SDPA pinned to its memory-efficient kernel, which takes masks",
    ),
    Implementation(
        op="attention",
        backend="flex",
        load=_load_flex,
        requires=Requires(platforms=frozenset({"cuda", "rocm", "xpu"}), dtypes=FLOATS),
        rejects=rejects(
            masks=("bool", "float"), causal=("square", "bottom_right", "top_left"), window=True, softcap=True,
            empty_rows=True, head_dims=lambda d: d >= 16 and d & (d - 1) == 0, head_dim_text="a power of two from 16",
        ),
        bugs=bugs_of("flex", "attention"),
        rejects_on=_flex_rejects_on,
        rank=rank("flex", "attention"),
        proof="simulated",
        doc="torch's flex attention, compiled",
    ),
)  # fmt: skip
