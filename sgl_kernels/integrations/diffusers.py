"""diffusers: a backend name for its dispatcher, and `apply` for one model.

The name is the one private thing used: diffusers' table of attention functions is keyed by a closed enum, so a
member is added to it, and removed again by `uninstall`. Versions whose internals are not known are refused.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.integrations import native, processors
from sgl_kernels.ops.attention import compat
from sgl_kernels.ops.attention.api import attention, attention_lse

NAME = "sgl_kernels"
KNOWN = ("0.36", "0.44")
"""Releases whose dispatcher was read: from the first up to, but without, the second."""

_lock = threading.RLock()
_member: Any = None  # one object for the life of the process: processors keep references to it
_loaded: Any = None  # diffusers' dispatcher, once a model that may ask it is applied


def _dispatch_module() -> Any:
    found = installed_version("diffusers")
    if found is None:
        raise ConfigError("diffusers is not installed: pip install 'sgl_kernels[diffusers]'")
    low, high = KNOWN
    if not Version(low) <= found < Version(high):
        raise ConfigError(
            f"diffusers {found} is installed; its attention dispatcher is private and was checked for versions "
            f"{low} up to {high} (excluded): pip install 'diffusers>={low},<{high}'. Without the dispatcher, "
            "sgl_kernels.install('torch') serves diffusers through torch's SDPA"
        )
    from diffusers.models import attention_dispatch

    for name in ("AttentionBackendName", "_AttentionBackendRegistry", "dispatch_attention_fn"):
        if not hasattr(attention_dispatch, name):
            raise ConfigError(
                f"diffusers {found} has no {name} in models/attention_dispatch.py; use a version from {low} up to "
                f"{high}, or sgl_kernels.install('torch')"
            )
    return attention_dispatch


def install() -> None:
    """Make "sgl_kernels" a backend name in diffusers. Changes no model and no default; again changes nothing.

    After it: `model.set_attention_backend("sgl_kernels")`, and `with attention_backend("sgl_kernels"):`.
    """
    global _member
    module = _dispatch_module()
    names, table = module.AttentionBackendName, module._AttentionBackendRegistry
    with _lock:
        if _member is None:
            _member = str.__new__(names, NAME)
            _member._name_, _member._value_ = NAME.upper(), NAME
            _member.__reduce_ex__ = (
                _reduce  # an enum member pickles as its value, which no other process knows
            )
        names._member_map_[_member._name_] = _member
        names._value2member_map_[NAME] = _member
        if _member._name_ not in names._member_names_:
            names._member_names_.append(_member._name_)
        table.register(_member, supports_context_parallel=True)(dispatched)


def uninstall() -> None:
    """Take the name out of diffusers again. What was set to it goes on with diffusers' own default."""
    if _member is None:
        return
    module = _dispatch_module()
    names, table = module.AttentionBackendName, module._AttentionBackendRegistry
    with _lock:
        names._member_map_.pop(_member._name_, None)
        names._value2member_map_.pop(NAME, None)
        if _member._name_ in names._member_names_:
            names._member_names_.remove(_member._name_)
        if table._active_backend == NAME:
            table.set_active_backend(names.NATIVE)
        # Processors may still hold the member; under it now stands diffusers' own function.
        table.register(_member, supports_context_parallel=True)(native.own(table))


def is_installed() -> bool:
    """Whether the name is known to diffusers."""
    if _member is None:
        return False
    return NAME in _dispatch_module().AttentionBackendName._value2member_map_


def member() -> Any:
    """The enum member behind the name, registered if need be."""
    if not is_installed():
        install()
    return _member


def find_dispatcher() -> None:
    """Look once whether diffusers' dispatcher is loaded, so that `names_a_backend` need not at every call."""
    global _loaded
    _loaded = sys.modules.get("diffusers.models.attention_dispatch")


def asks(module: Any) -> bool:
    """Whether a module's own attention goes through diffusers' dispatcher and has no place to name a backend."""
    processor = processors.processor_of(module)
    source: Any = type(module if processor is None else processor)
    return not hasattr(source, "_attention_backend") and processors.dispatches(source)


def names_a_backend(module: Any, asking: bool) -> bool:
    """Whether the attention of a module runs on a backend that its processor or the user named; ours is none.

    The user's own is in the processor (set_attention_backend) or is the one in force (attention_backend(...),
    DIFFUSERS_ATTN_BACKEND); "native" in force is what nobody chose. asking: what `asks` said of the module.
    """
    named = getattr(getattr(module, "processor", module), "_attention_backend", "")
    if named is None or (asking and named == ""):
        named = "native" if _loaded is None else _loaded._AttentionBackendRegistry._active_backend
        return named != "native" and named != NAME
    return named != "" and named != NAME


def _reduce(protocol: int) -> Any:
    return member, ()


def dispatched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
) -> Any:
    """The function diffusers' dispatcher calls: (B, S, H, D), causal top-left as torch's.

    It declares everything the dispatcher can pass, because the dispatcher drops what a backend does not
    declare. lse is (B, S, H), as diffusers wants it. Dropout goes to torch.
    """
    if _parallel_config is not None:
        return _dispatch_module()._templated_context_parallel_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse,
            forward_op=_parallel_forward, backward_op=_parallel_backward, _parallel_config=_parallel_config,
        )  # fmt: skip
    if query.shape[2] != key.shape[2] and not enable_gqa:
        raise ValueError(
            f"sgl_kernels in diffusers: query has {query.shape[2]} heads and key {key.shape[2]}; pass enable_gqa=True"
        )
    mask = None if attn_mask is None else expand_mask(attn_mask, query, key)
    if dropout_p > 0.0:
        if return_lse:
            raise ValueError(
                "sgl_kernels in diffusers: return_lse with dropout_p > 0 is not served; set dropout_p=0"
            )
        out = compat.TORCH_SDPA(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, dropout_p, is_causal,
            scale=scale, enable_gqa=enable_gqa,
        )  # fmt: skip
        return out.transpose(1, 2)
    if return_lse:
        out, lse = attention_lse(
            query, key, value, attn_mask=mask, is_causal=is_causal, causal_alignment="top_left", scale=scale
        )
        return out, lse.transpose(1, 2)
    return attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, causal_alignment="top_left", scale=scale
    )


def expand_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask of 1 to 4 dimensions as one that broadcasts to (B, H, Sq, Sk). Refuses what has two readings.

    (Sk,), (B, Sk) and (B, 1, Sk) mask keys; (Sq, Sk) and (B, Sq, Sk) are the same for every head; (H, Sq, Sk)
    the same for every batch.
    """
    batch, sq, heads, _ = query.shape
    sk = key.shape[1]
    shape = tuple(mask.shape)
    if len(shape) in (1, 4):
        return mask if len(shape) == 4 else mask[None, None, None, :]
    if len(shape) == 2:
        padding = shape[0] == batch and shape[1] in (1, sk)
        full = shape[0] == sq and shape[1] in (1, sk)
        if padding and full and batch > 1:
            raise _ambiguous(
                shape, f"(batch, keys) and (queries, keys) with batch = queries = {batch}", "(B, 1, 1, Sk)"
            )
        if padding:
            return mask[:, None, None, :]
        if full or shape[0] == 1:
            return mask[None, None]
    if len(shape) == 3 and shape[1] in (1, sq) and shape[2] in (1, sk):
        if shape[0] == batch == heads and batch > 1:
            raise _ambiguous(
                shape,
                f"(batch, queries, keys) and (heads, queries, keys) with batch = heads = {batch}",
                "(B, 1, Sq, Sk)",
            )
        if shape[0] in (1, batch):
            return mask[:, None]
        if shape[0] == heads:
            return mask[None]
    raise ValueError(
        f"sgl_kernels in diffusers: attn_mask has shape {list(shape)}; with batch {batch}, {heads} heads, {sq} "
        f"queries and {sk} keys expected (Sk,), (B, Sk), (Sq, Sk), (B, Sq, Sk) or one that broadcasts to (B, H, Sq, Sk)"
    )


def _ambiguous(shape: tuple[int, ...], readings: str, write: str) -> ValueError:
    return ValueError(
        f"sgl_kernels in diffusers: attn_mask of shape {list(shape)} can be read as {readings}; give it four "
        f"dimensions, such as {write}"
    )


def _parallel_forward(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, return_lse: bool = False,
    _save_ctx: bool = True, _parallel_config: Any = None,
) -> Any:  # fmt: skip
    """One shard's attention, for diffusers' ring and Ulysses templates."""
    return dispatched(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, return_lse)


def _parallel_backward(ctx: Any, grad_out: Tensor, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        "sgl_kernels in diffusers: context parallelism is for inference here; train with "
        'model.set_attention_backend("native") or "flash"'
    )


def applies_to(model: object) -> bool:
    """Whether a model is one of diffusers' (a model or a pipeline)."""
    return any(cls.__module__.split(".")[0] == "diffusers" for cls in type(model).__mro__)


def parts(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """(prefix, module) of everything in a pipeline that computes, or of the model itself."""
    if isinstance(model, torch.nn.Module):
        return [("", model)]
    return [(name, part) for name, part in model.components.items() if isinstance(part, torch.nn.Module)]
