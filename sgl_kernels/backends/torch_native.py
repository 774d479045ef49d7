"""The floor for attention: torch's own SDPA, made exact in every case and bounded in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.core.device import probe
from sgl_kernels.core.implementation import Implementation
from sgl_kernels.ops.attention import reference

_sdpa = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch
SCORE_BUDGET_BYTES = 128 << 20
"""The math path may hold this much of fp32 scores at once; more is computed in query chunks. Four such buffers
live at the peak: 8 heads of 6144 x 6144, 1.1 GiB of scores, grow the process by about 0.5 GiB."""
MPS_LIMIT = 2**31
"""A score matrix of this many elements is silently wrong on MPS (ComfyUI issue 14837)."""
FUSED_CPU = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _is_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's SDPA serves the call without materialising the scores."""
    if q.device.type == "cpu":
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


_is_functorch = torch._C._functorch.is_functorch_wrapped_tensor

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
    plain_causal = is_causal and (sq == sk or causal_alignment == "top_left") and attn_mask is None
    windowed = window_left >= 0 or window_right >= 0
    if softcap > 0 or not _is_fused(q, k, v, attn_mask) or batch * heads * sq * sk >= _limit(q):
        return _chunked(
            q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap
        )[0]
    mask = attn_mask
    if windowed or (is_causal and not plain_causal):
        keep = reference.visible(sq, sk, is_causal, causal_alignment, window_left, window_right, q.device)
        mask = keep if mask is None else _both(mask, keep)
        plain_causal = False
    if scale is not None and scale <= 0:  # torch scales after masking: -inf * 0 is NaN, -inf * -1 is inf
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), None)
    if q.device.type == "cpu":
        out = _fused(q, k, v, _shaped(mask, q), plain_causal, scale)
    else:
        with _without_cudnn(q, k):
            found = _on_device(q, k, v, _shaped(mask, q), plain_causal, scale)
        if found is None:
            return _chunked(
                q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap
            )[0]
        out = found
    return _with_nan_rows(out, q) if q.device.type == "cpu" else out


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return _sdpa(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _on_device(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor | None:
    """SDPA where it has a fused kernel for the call, with K and V repeated if that is what it takes; else None."""
    if _is_plain(q, k, v, mask) or q.__class__ is not Tensor or _is_functorch(q):
        return _fused(q, k, v, mask, causal, scale)
    group = q.shape[2] // k.shape[2]
    for repeat in dict.fromkeys((1, group)):  # the kernels with masks and float32 know no grouped heads
        keys, values = (t if repeat == 1 else t.repeat_interleave(repeat, 2) for t in (k, v))
        if not _materialises(*(t.transpose(1, 2) for t in (q, keys, values)), mask, causal, scale):
            return _fused(q, keys, values, mask, causal, scale)
    return None


def _with_nan_rows(out: Tensor, q: Tensor) -> Tensor:
    """Torch's CPU kernel takes a NaN query for a row without keys and answers 0: give NaN where q has one.

    amax carries NaN and costs 0.2 ms for 1.5 M elements, a twentieth of the attention; isnan().any(), 1.9 ms.
    """
    bad = q.detach().amax(-1, keepdim=True).isnan()
    if _is_functorch(bad) or bool(bad.any()):  # inside vmap the question has no one answer
        return torch.where(bad, float("nan"), out)
    return out


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Zeros that still hang on the inputs, so that a gradient exists (and is zero)."""
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    if q.requires_grad or k.requires_grad or v.requires_grad:
        out = out + 0 * (q.sum() + k.sum() + v.sum())
    return out


def _limit(q: Tensor) -> int:
    return MPS_LIMIT if q.device.type == "mps" else 2**62


def _both(mask: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return mask
    return mask & keep if mask.dtype is torch.bool else mask.masked_fill(~keep, float("-inf"))


def _shaped(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask as SDPA takes it: bool, or a float of the query's dtype (fp32 also on the CPU)."""
    if mask is None or mask.dtype in (torch.bool, q.dtype):
        return mask
    if q.device.type == "cpu" and mask.dtype is torch.float32 and q.dtype is not torch.float64:
        return mask
    return mask.to(q.dtype)


def _attention_lse(*args: Any) -> tuple[Tensor, Tensor]:
    q, k, v = args[:3]
    if q.numel() == 0 or k.shape[1] == 0 or q.shape[2] == 0:
        return _nothing(q, k, v), q.new_full(
            (q.shape[0], q.shape[2], q.shape[1]), float("-inf"), dtype=torch.float32
        )
    out, lse = _chunked(*args)
    return out, lse.float()


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Exact attention in query chunks of bounded memory, GQA without copies; (out, lse).

    Softmax runs over whole rows, so chunking the queries changes no result.
    """
    batch, sq, heads, dim = q.shape
    sk, kv_heads = k.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = max(1, min(sq, _chunk_bytes(q) // max(1, batch * heads * sk * wide.itemsize)))
    factor = dim**-0.5 if scale is None else scale
    group = heads // kv_heads
    # (B, Hk, G, S, D): a key head serves its G query heads by broadcasting
    kt = k.to(wide).permute(0, 2, 3, 1)[:, :, None]
    vh = v.to(wide).transpose(1, 2)[:, :, None]
    mask = attn_mask
    if mask is not None:
        mask = mask.expand(batch, heads, sq, sk).unflatten(1, (kv_heads, group))
    outs, lses = [], []
    for start in range(0, sq, rows):
        stop = min(sq, start + rows)
        qc = (q[:, start:stop].to(wide) * factor).transpose(1, 2).unflatten(1, (kv_heads, group))
        scores = qc @ kt
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            part = mask[:, :, :, start:stop]
            scores = (
                scores.masked_fill(~part, float("-inf"))
                if part.dtype is torch.bool
                else scores + part.to(wide)
            )
        keep = reference.visible(
            sq, sk, is_causal, causal_alignment, window_left, window_right, q.device, start, stop
        )
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        lse = torch.logsumexp(scores, -1)
        empty = lse == float("-inf")
        weights = torch.exp(scores - lse.masked_fill(empty, 0.0)[..., None])
        out = weights @ vh
        outs.append(out.flatten(1, 2).transpose(1, 2).to(q.dtype))
        lses.append(lse.flatten(1, 2))
    return torch.cat(outs, 1), torch.cat(lses, 2)


def _chunk_bytes(q: Tensor) -> int:
    return min(SCORE_BUDGET_BYTES, (MPS_LIMIT - 1) * 2) if q.device.type == "mps" else SCORE_BUDGET_BYTES


def _attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int, softcap: float,
) -> Tensor:  # fmt: skip
    starts_q, starts_k = _starts("cu_seqlens_q", cu_seqlens_q, q), _starts("cu_seqlens_k", cu_seqlens_k, k)
    outs = [
        _attention(
            q[None, a:b], k[None, c:d], v[None, c:d], None, is_causal, "bottom_right", scale, window_left,
            window_right, softcap,
        )[0]
        for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
    ]  # fmt: skip
    return torch.cat(outs) if outs else q.new_zeros((*q.shape[:-1], v.shape[-1]))


def _starts(name: str, cu_seqlens: Tensor, packed: Tensor) -> list[int]:
    """The prefix sums, checked. Reading them waits for the device, which is why only the floor does it."""
    starts: list[int] = cu_seqlens.tolist()
    if starts[0] != 0 or starts[-1] != packed.shape[0] or any(b < a for a, b in pairwise(starts)):
        raise ValueError(
            f"attention_varlen: {name} is {starts}, expected prefix sums from 0 to {packed.shape[0]} that never fall"
        )
    return starts


def _loader(run: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    return lambda config: run


IMPLEMENTATIONS = tuple(
    Implementation(
        op=op,
        backend="torch_sdpa",
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
