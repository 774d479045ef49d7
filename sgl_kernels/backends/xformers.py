"""xFormers' memory_efficient_attention: BSHD, additive bias with aligned strides, causal as a bias object.

Signature read from xformers 0.0.35: memory_efficient_attention(query, key, value, attn_bias=None, p=0.0,
scale=None, *, op=None, output_dtype=None). Its CUTLASS kernel, the one with masks, float32 and top-left causal calls
of unequal lengths, says itself that it ends at capability 9.0; newer GPUs have the FlashAttention kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import (
    feature,
    last_dim_contiguous,
    narrowed,
    rejects,
    shape,
    without_hidden,
)
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected


def _aligned_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive bias whose rows start at multiples of 8 elements, as the CUTLASS kernel demands."""
    batch, heads, sq, sk = mask.shape
    bias = torch.zeros(batch, heads, sq, -(-sk // 8) * 8, dtype=dtype, device=mask.device)[..., :sk]
    if mask.dtype is torch.bool:
        return bias.masked_fill_(~mask, float("-inf"))
    return bias.copy_(narrowed(mask, dtype))


def _load(config: Any) -> Callable[..., Tensor]:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import LowerTriangularFromBottomRightMask, LowerTriangularMask

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        # windows and softcap were turned away, and so was a mask together with causal
        q, k, v = last_dim_contiguous(q, k, v)
        if attn_mask is not None:
            k, v = without_hidden(k, v, attn_mask)
            shown = attn_mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
            bias = _aligned_bias(shown, q.dtype)
            out = memory_efficient_attention(q, k, v, attn_bias=bias, p=0.0, scale=scale)
            seen = (
                (bias > float("-inf")).any(-1).transpose(1, 2)[..., None]
            )  # a row without keys comes out NaN
            return torch.where(seen, out, torch.zeros_like(out))
        causal = None
        if is_causal:
            bottom = causal_alignment == "bottom_right"
            causal = LowerTriangularFromBottomRightMask() if bottom else LowerTriangularMask()
        return memory_efficient_attention(q, k, v, attn_bias=causal, p=0.0, scale=scale)

    return run


_plain = rejects(
    masks=("bool", "float"),
    causal=("square", "bottom_right", "top_left"),
    gqa=False,
    head_dims=lambda d: d % 8 == 0,
    head_dim_text="a multiple of 8",
)


def _rejects(facts: Any) -> Any:
    if facts.mask and facts.causal:
        return feature("a mask together with causal is not supported")
    return _plain(facts)


def _rejects_on(facts: Any, device: Device) -> Rejected | None:
    """What is left past Hopper, where only the FlashAttention kernel runs."""
    if device.platform != "cuda" or device.capability is None or device.capability <= (9, 0):
        return None
    if facts.dtype is torch.float32:
        return Rejected(Reason.DTYPE, "its float32 kernel ends at capability 9.0")
    if facts.mask:
        return feature("its kernel with masks ends at capability 9.0")
    if facts.causal == "top_left" and facts.sq != facts.sk:
        return feature("its kernel for top-left causal calls of unequal lengths ends at capability 9.0")
    return shape(f"head_dim is {facts.head_dim}, needs at most 256 here") if facts.head_dim > 256 else None


IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="xformers",
        load=_load,
        requires=Requires(
            platforms=frozenset({"cuda", "rocm"}), packages=("xformers>=0.0.28",), dtypes=FLOATS
        ),
        rejects=_rejects,
        rejects_on=_rejects_on,
        bugs=bugs_of("xformers", "attention"),
        rank=rank("xformers", "attention"),
        proof="contract",
        doc="xFormers' memory-efficient attention",
    ),
)
