"""Shared by attention adapters: reasons to turn a call down, and helpers around vendors' conventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.verdict import Reason, Rejected


def feature(detail: str) -> Rejected:
    """A rejection for something a vendor does not offer."""
    return Rejected(Reason.FEATURE, detail)


def shape(detail: str) -> Rejected:
    """A rejection for a size a vendor does not take."""
    return Rejected(Reason.SHAPE, detail)


def rejects(
    *,
    masks: tuple[str, ...] = (),
    causal: tuple[str, ...] = ("square",),
    window: bool = False,
    softcap: bool = False,
    gqa: bool = True,
    head_dims: Callable[[int], bool] | None = None,
    head_dim_text: str = "",
    equal_head_dims: bool = True,
    empty_rows: bool = False,
    scale: bool = True,
) -> Callable[[Any], Rejected | None]:
    """A `rejects` function from what a vendor honours.

    masks      mask kinds it takes: of "bool", "float"
    causal     alignments it honours: of "square", "bottom_right", "top_left"
    empty_rows whether rows without keys come out as zeros with lse -inf (causal with more queries than keys)
    scale      whether a scale can be given
    """

    def rejecting(f: Any) -> Rejected | None:
        mask = getattr(f, "mask", "")
        if mask and mask not in masks:
            return feature(f"a {mask} mask is not supported" if masks else "masks are not supported")
        if f.causal and f.causal not in causal:
            return feature(f"causal aligned {f.causal.replace('_', '-')} is not supported when Sq != Sk")
        if f.causal and not empty_rows and f.causal == "bottom_right" and f.sq > f.sk:
            return feature("causal with more queries than keys leaves rows without keys")
        if f.window is not None and not window:
            return feature("a window is not supported")
        if f.softcap and not softcap:
            return feature("softcap is not supported")
        if f.gqa and not gqa:
            return feature("query and key heads must be equal in number")
        if equal_head_dims and f.head_dim != f.head_dim_v:
            return shape(f"value head_dim {f.head_dim_v} must equal head_dim {f.head_dim}")
        if head_dims is not None and not head_dims(f.head_dim):
            return shape(f"head_dim is {f.head_dim}, needs {head_dim_text}")
        if f.has_scale and not scale:
            return feature("a scale other than head_dim ** -0.5 is not supported")
        if f.batch == 0 or f.sq == 0 or f.sk == 0 or f.heads == 0:
            return shape("empty tensors go to torch")
        return None

    return rejecting


def rejects_before_ampere(facts: Any, device: Device) -> Rejected | None:
    """For kernels that on NVIDIA start at sm80 and on AMD have no such number."""
    if device.platform == "cuda" and device.capability is not None and device.capability < (8, 0):
        found = f"{device.capability[0]}.{device.capability[1]}"
        return Rejected(Reason.CAPABILITY, f"needs capability 8.0 or newer, device is {found}")
    return None


def last_dim_contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each tensor with stride 1 in its last dimension, copying only those that need it."""
    return tuple(t if t.stride(-1) == 1 else t.contiguous() for t in tensors)


def expanded_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """A mask as (B, Hq, Sq, Sk), a view."""
    return None if mask is None else mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def levelled(mask: Tensor) -> Tensor:
    """A float mask in float32 or wider, each row of which has lost its largest value where that is far from 0.

    Softmax does not see it. A row of -1e9 or finfo.min alone becomes one of zeros, which every kernel and every dtype
    takes for what it is: even weights. -inf stays -inf, and no other value becomes it.
    """
    mask = mask.to(torch.promote_types(mask.dtype, torch.float32))
    peak = mask.detach().amax(-1, keepdim=True)
    far = (peak.abs() > FAR) & peak.isfinite()
    lowest = torch.finfo(mask.dtype).min
    level = (mask - peak.masked_fill(~far, 0.0)).clamp(min=lowest)
    return level.masked_fill(mask == float("-inf"), float("-inf"))


FAR = 1024.0
"""Rows of ordinary biases, such as T5's and ALiBi's, keep their values to the bit."""


def narrowed(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A float mask in the dtype of the query, in which float32's lowest value is not the -inf that a cast makes it."""
    if mask.dtype is dtype:
        return mask
    if torch.finfo(mask.dtype).max <= torch.finfo(dtype).max:
        return mask.to(dtype)
    if dtype is torch.float16:  # whose 65504 leaves no room to tell -1e9 from -2e9
        mask = levelled(mask)
    lowest = torch.finfo(dtype).min
    return mask.clamp(min=lowest).masked_fill(mask == float("-inf"), float("-inf")).to(dtype)


def zero_outside(out: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """A packed result with zeros in the tokens that no sequence of at most `longest` holds, in place.

    A vendor's kernel leaves there what the allocator handed it: behind the last sequence, and beyond a length that is
    too small. Nothing here waits for the device.
    """
    places = torch.arange(out.shape[0], device=out.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens, places, right=True)
    outside = (places >= cu_seqlens[-1]) | (places - cu_seqlens[sequence - 1] >= longest)
    return out.masked_fill_(outside[:, None, None], 0.0)


def without_hidden(k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """K and V with zeros in the keys that a key-padding mask hides from every query, whatever stands there.

    A kernel multiplies a weight of 0 with them, and 0 * NaN is NaN. Keys that only some rows do not see (causal order,
    windows, masks per query) stay as they are: on an accelerator nobody may look without waiting for the device.
    """
    if mask is None or (mask.ndim > 1 and mask.shape[-2] != 1):
        return k, v
    hidden = ~mask if mask.dtype is torch.bool else mask == float("-inf")
    hidden = hidden[(None,) * (4 - hidden.ndim)]
    if hidden.shape[1] not in (1, k.shape[2]):
        hidden = hidden.unflatten(1, (k.shape[2], -1)).all(2)
    gone = hidden.permute(0, 3, 1, 2)
    return k.masked_fill(gone, 0.0), v.masked_fill(gone, 0.0)


def default_scale(q: Tensor, scale: float | None) -> float:
    """`scale`, or head_dim ** -0.5."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def natural_lse(base2: Tensor) -> Tensor:
    """A log-sum-exp in base 2 as a natural one."""
    return base2 * torch.log(torch.tensor(2.0)).item()
