"""A short way from diffusers' default backend to the registry, for applied models.

Processors that name no backend end in `native`, which calls torch's SDPA, where `apply` waits for them: right without
this file, at the price of two layouts and two doors for each call. While a model is applied, `native` is a function
that asks first whether the call comes from one, and otherwise is diffusers' own. Nothing about processors changes.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.compiler import is_compiling

from sgl_kernels.integrations import torch_hook
from sgl_kernels.integrations.holding import Exchange, Hold
from sgl_kernels.ops._key import is_plain
from sgl_kernels.ops.attention.api import attention


def native(*args: Any, **given: Any) -> Any:
    """diffusers' native attention, (B, S, H, D): its own, but for the plain calls of applied models.

    The dispatcher passes everything by name, and what its release knows.
    """
    if is_compiling() or torch_hook.WHO.get() is not torch_hook.OURS or not _served(args, given):
        return _exchange.own(*args, **given)
    token = torch_hook.WHO.set(torch_hook.TORCH)  # a backend that calls SDPA by its name must reach torch
    try:
        return attention(
            given["query"],
            given["key"],
            given["value"],
            attn_mask=given.get("attn_mask"),
            is_causal=given.get("is_causal", False),
            causal_alignment="top_left",
            scale=given.get("scale"),
        )
    finally:
        torch_hook.WHO.reset(token)


_KNOWN = frozenset(
    {
        "query",
        "key",
        "value",
        "attn_mask",
        "dropout_p",
        "is_causal",
        "scale",
        "enable_gqa",
        "return_lse",
        "_parallel_config",
    }
)


def _served(args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Whether a call is one whose meaning is `attention`'s; masks of fewer dimensions are read by diffusers."""
    if args or not given.keys() <= _KNOWN:
        return False
    query, key, mask = given["query"], given["key"], given.get("attn_mask")
    return (
        is_plain(query, key, given["value"], mask)
        and (mask is None or (mask.ndim == 4 and not given.get("is_causal")))
        and not (given.get("dropout_p") or given.get("return_lse"))
        and given.get("_parallel_config") is None
        and (bool(given.get("enable_gqa")) or query.shape[2] == key.shape[2])
    )


def hold() -> Hold:
    """Keep the short way open while an applied model needs it."""
    return _exchange.hold()


class _Exchange(Exchange):
    """The exchange of diffusers' function, which it remembers."""

    own: Any = None  # once it was exchanged


def _put() -> None:
    table = _table()
    if table is not None and table.get("native", native) is not native:
        _exchange.own = table["native"]
        table["native"] = native


def _take() -> None:
    table = _table()
    if table is not None and table.get("native") is native:
        table["native"] = _exchange.own


_exchange = _Exchange(_put, _take)


def _table() -> Any:
    """name -> function of diffusers' dispatcher, whose keys are strings; None where it is not loaded or not known."""
    registry = getattr(
        sys.modules.get("diffusers.models.attention_dispatch"), "_AttentionBackendRegistry", None
    )
    table = getattr(registry, "_backends", None)
    return table if isinstance(table, dict) else None


def own(table: Any) -> Any:
    """diffusers' own native function."""
    found = table._backends["native"]
    return _exchange.own if found is native else found
