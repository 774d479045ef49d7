"""The floor for attention: torch's own SDPA, made exact in every case and bounded in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends._attention import levelled, narrowed, without_hidden
from sgl_kernels.backends._torch_checks import (
    SAFE_BACKWARD,
    SAFE_FORWARD,
    bounds,
    has_no_odd_row,
    is_finite,
    is_tame,
    may_look,
    saved_lse,
    watching,
)
from sgl_kernels.backends._torch_chunked import MPS_LIMIT, both, chunked
from sgl_kernels.core.device import probe
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.tensors import is_wrapped
from sgl_kernels.ops.attention import reference

_sdpa = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch
FUSED_CPU = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _is_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's SDPA serves the call without materialising the scores."""
    if q.is_cpu:
        plain_mask = mask is None or not mask.requires_grad
        return q.shape[-1] == v.shape[-1] and q.dtype in FUSED_CPU and plain_mask
    if q.device.type == "xpu" and mask is not None:
        return False  # the fused XPU kernels give NaN or wrong rows under some masks (pytorch 154051)
    return q.device.type in ("cuda", "xpu") and q.dtype is not torch.float64


def _is_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """A call that a fused kernel takes for certain, so that nobody need be asked: half types without a mask."""
    half = q.dtype in (torch.float16, torch.bfloat16) and q.shape[2] == k.shape[2]
    return mask is None and half and q.shape[-1] == v.shape[-1] <= 128 and q.shape[-1] % 8 == 0


def _materialises(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> bool:
    """Whether SDPA would choose its unfused path for these BHSD tensors: all scores at once, 45 GiB for one call of
    grouped heads with a mask (diffusers 14518), and overflowing in fp16 on Arc (ipex 749)."""
    grouped = q.shape[1] != k.shape[1]
    choice: int = torch._fused_sdp_choice(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=grouped)
    return choice == 0


FEW_KV_HEADS = 8
"""Below this many, cuDNN's SDPA corrupts its result on data-centre Blackwell, and it is torch's first choice there
(pytorch 193893)."""


@functools.cache
def _is_datacenter_blackwell(device: torch.device) -> bool:
    return probe(device).arch in ("sm100", "sm103")


def _without_cudnn(q: Tensor, k: Tensor) -> contextlib.AbstractContextManager[Any]:
    """SDPA's kernels but for cuDNN's where that one is wrong. Entering costs 8 us, so only there."""
    if q.device.type != "cuda" or k.shape[2] >= FEW_KV_HEADS or not _is_datacenter_blackwell(q.device):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> Tensor:  # fmt: skip
    batch, sq, heads, _ = q.shape
    sk = k.shape[1]
    if q.numel() == 0 or sk == 0 or heads == 0:
        return _nothing(q, k, v)

    exactly = (q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap)
    plain_causal = is_causal and (sq == sk or causal_alignment == "top_left") and attn_mask is None
    windowed = window_left >= 0 or window_right >= 0
    if softcap > 0 or not _is_fused(q, k, v, attn_mask) or batch * heads * sq * sk >= _limit(q):
        return chunked(*exactly)[0]
    on_cpu = q.is_cpu  # device.type takes 0.4 us each time
    grad = watching(q, k, v)
    if on_cpu and not may_look(q, k, v, attn_mask):
        return chunked(*exactly)[0]
    mask = attn_mask
    if windowed or (is_causal and not plain_causal):
        keep = reference.visible(sq, sk, is_causal, causal_alignment, window_left, window_right, q.device)
        mask = keep if mask is None else both(mask, keep)
        plain_causal = False
    factor, query = scale, q
    if scale is not None and scale <= 0:  # torch scales after masking: -inf * 0 is NaN, -inf * -1 is inf
        query, factor = (-q, -scale) if scale < 0 else (q * 0, None)
    if on_cpu:
        if grad and q.dtype is torch.float64:  # which is for checking gradients: the kernel has no second one
            return chunked(*exactly)[0]
        out = _fused(query, k, v, _shaped(mask, q, grad), plain_causal, factor)
        if grad:
            sound = _has_backward(out, q, k, v, mask, plain_causal, scale)
        else:
            sound = has_no_odd_row(out) or is_tame(q, k, v, scale, SAFE_FORWARD)
        return out if sound else chunked(*exactly)[0]
    with _without_cudnn(q, k):
        keys, values = without_hidden(k, v, attn_mask)
        found = _on_device(query, keys, values, _shaped(mask, q, grad), plain_causal, factor)
    return chunked(*exactly)[0] if found is None else found


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return _sdpa(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _on_device(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor | None:
    """SDPA where it has a fused kernel for the call, with K and V repeated if that is what it takes; else None."""
    if _is_plain(q, k, v, mask) or q.__class__ is not Tensor or is_wrapped(q):
        return _fused(q, k, v, mask, causal, scale)
    group = q.shape[2] // k.shape[2]
    for repeat in dict.fromkeys((1, group)):  # the kernels with masks and float32 know no grouped heads
        keys, values = (t if repeat == 1 else t.repeat_interleave(repeat, 2) for t in (k, v))
        heads_first = (q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        if not _materialises(*heads_first, mask, causal, scale):
            return _fused(q, keys, values, mask, causal, scale)
    return None


def _has_backward(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> bool:
    """Whether a result of torch's CPU kernel, and the gradient that it will give, are right."""
    lse = saved_lse(out)
    if lse is not None:
        low, high, zero = bounds(lse)  # 0 where a row sees nothing, or is taken for one that does
        if not max(-low, high) < SAFE_BACKWARD:
            return False
        if not zero and ((mask is None and not is_causal) or (is_finite(k) and is_finite(v))):
            return True
        return is_tame(q, k, v, scale, SAFE_FORWARD)
    if not is_tame(q, k, v, scale, SAFE_BACKWARD):
        return False
    if mask is None or mask.dtype is torch.bool:
        return True
    peak = mask.detach().amax(-1)
    return bool(((peak.abs() < SAFE_BACKWARD) | (peak == -float("inf"))).all())


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros that still hang on the inputs, so that a gradient exists (and is zero, also where an input is NaN)."""
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    if torch.is_grad_enabled():
        total = q.sum() + k.sum() + v.sum()
        out = out + total.masked_fill(torch.ones_like(total, dtype=torch.bool), 0.0)
    return out


def _limit(q: Tensor) -> int:
    return MPS_LIMIT if q.is_mps else 2**62


def _shaped(mask: Tensor | None, q: Tensor, grad: bool) -> Tensor | None:
    """A mask as SDPA takes it: bool, or a float of the query's dtype (fp32 also on the CPU)."""
    if mask is None or mask.dtype is torch.bool:
        return mask
    if q.is_cpu and mask.dtype is torch.float32 and q.dtype is not torch.float64:
        return mask
    if grad and q.device.type != "cpu":  # as SAFE_BACKWARD says, and nobody may look here
        mask = levelled(mask)
    return narrowed(mask, q.dtype)


def _attention_lse(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v = args[:3]
    if q.numel() == 0 or k.shape[1] == 0 or q.shape[2] == 0:
        return _nothing(q, k, v), q.new_full(
            (q.shape[0], q.shape[2], q.shape[1]), float("-inf"), dtype=torch.float32
        )
    out, lse = chunked(*args)
    return out, lse.float()


def _attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int, softcap: float,
) -> Tensor:  # fmt: skip
    spans, end = reference.sequences(cu_seqlens_q, cu_seqlens_k, q, k, max_seqlen_q, max_seqlen_k)
    outs = [
        _attention(
            q[None, a:b], k[None, c:d], v[None, c:d], None, is_causal, "bottom_right", scale, window_left,
            window_right, softcap,
        )[0]
        for a, b, c, d in spans
    ]  # fmt: skip
    return torch.cat([*outs, _nothing(q[end:], k[:0], v[:0])])


def _loader(run: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    return lambda config: run


IMPLEMENTATIONS = tuple(
    Implementation(
        op=op,
        backend="torch",
        load=_loader(run),
        differentiable=True,
        traceable=True,
        doc="torch SDPA, exact in every case and bounded in memory",
    )
    for op, run in (
        ("attention", _attention),
        ("attention_lse", _attention_lse),
        ("attention_varlen", _attention_varlen),
    )
)
