"""Drop-in with the signature and meaning of torch's SDPA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.attention.api import attention

_torch_sdpa = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, served by the registry.

    Layout (..., H, S, D), causal aligned top-left, as torch documents. dropout_p > 0, gradients, and inputs
    that are not (B, H, S, D) or (H, S, D) floating point go to torch itself.
    """
    grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    plain = (
        query.ndim == key.ndim == value.ndim and query.ndim in (3, 4) and query.dtype in validate.SUPPORTED
    )
    if dropout_p > 0.0 or grad or not plain or (attn_mask is not None and attn_mask.requires_grad):
        return _torch_sdpa(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if query.ndim == 3:
        mask = attn_mask[None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        out = scaled_dot_product_attention(
            query[None], key[None], value[None], mask, 0.0, is_causal, scale, enable_gqa
        )
        return out[0]
    if (
        query.shape[1] != key.shape[1] and not enable_gqa and key.shape[1] != 1
    ):  # torch broadcasts one key head
        raise ValueError(
            f"scaled_dot_product_attention: query has {query.shape[1]} heads and key {key.shape[1]}; "
            "pass enable_gqa=True"
        )
    if query.shape[0] != key.shape[0]:
        return _torch_sdpa(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=attn_mask,
        is_causal=is_causal,
        causal_alignment="top_left",
        scale=scale,
    )
    return out.transpose(1, 2)
