"""transformers: "sgl_kernels" as an attn_implementation, its masks included, and `apply` for one model.

Both interfaces are registered: without a mask function under the same name, transformers hands a custom
attention no padding mask at all, and the result is wrong without an error.
"""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.packages import installed_version
from sgl_kernels.integrations.modules import Hook, attach, found
from sgl_kernels.ops.attention.api import attention, attention_varlen

NAME = "sgl_kernels"
SINCE = "4.57"
"""The first release with both interfaces as they are used here."""

HARMLESS: set[str] = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "max_length_k", "max_length_q",
    "num_items_in_batch", "output_hidden_states", "output_router_logits", "position_embeddings", "position_ids",
    "return_dict", "seq_idx", "use_cache",
}  # fmt: skip
"""Keyword arguments that reach an attention function and do not change what it computes. Add a name to accept it."""

_STATE = "_sgl_kernels_attn"
_lock = threading.RLock()


def _interfaces() -> tuple[Any, Any, Any]:
    version = installed_version("transformers")
    if version is None:
        raise ConfigError("transformers is not installed: pip install 'sgl_kernels[transformers]'")
    if version < Version(SINCE):
        raise ConfigError(
            f"transformers {version} is installed, {SINCE} or newer is needed: pip install 'transformers>={SINCE}'"
        )
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    return AttentionInterface, AttentionMaskInterface, sdpa_mask


def install() -> None:
    """Make "sgl_kernels" an attn_implementation. Changes no model and no default; again changes nothing."""
    attention_table, mask_table, sdpa_mask = _interfaces()
    with _lock:
        attention_table.register(NAME, attention_interface)
        mask_table.register(NAME, sdpa_mask)


def uninstall() -> None:
    """Take the name out of transformers again. Models still set to it raise, naming it, when they are called."""
    attention_table, mask_table, _ = _interfaces()
    with _lock:
        attention_table._global_mapping.pop(NAME, None)
        mask_table._global_mapping.pop(NAME, None)


def is_installed() -> bool:
    """Whether the name is known to transformers."""
    if "transformers" not in sys.modules:
        return False
    return _interfaces()[0]._global_mapping.get(NAME) is attention_interface


def attention_interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: query (B, H, S, D), key and value with their own heads -> (B, S, H, D).

    Meaning of causal and masks as in transformers' "sdpa": a mask says everything by itself; without one,
    is_causal (the argument, else the module's flag) holds, aligned top-left, unless there is a single query.
    Dropout goes to torch. Raises ValueError for arguments that change the mathematics and are not served.
    """
    _refuse(module, kwargs, output_attentions)
    sq, sk = query.shape[2], key.shape[2]
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    causal = attention_mask is None and sq > 1 and causal
    mask = attention_mask
    if mask is None and cu_lengths(kwargs) > 1:
        if _is_packed(query, kwargs) and position_bias is None and not (dropout > 0.0 and module.training):
            return _packed(query, key, value, kwargs, causal, scaling, sliding_window, softcap), None
        raise ValueError(
            "sgl_kernels in transformers: cu_seq_lens_q packs several sequences but no attention mask came with "
            "it; pass position_ids that restart at 0, from which transformers builds the mask, or all four of "
            "cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k, with batch 1 and without dropout"
        )
    window: tuple[int, int] | None = None
    if mask is None and sliding_window is not None and sk > sliding_window:
        if not causal:
            raise ValueError(
                f"sgl_kernels in transformers: sliding_window={sliding_window} over {sk} keys without a mask and "
                "without causal order has no single meaning; pass the attention mask"
            )
        window = (sliding_window - 1, -1)
    if causal and sk > sq:  # an empty static cache behind the prompt: those keys are not visible
        key, value = key[:, :, :sq], value[:, :, :sq]
        position_bias = None if position_bias is None else position_bias[..., :sq]
        sk = sq
    if position_bias is not None:
        mask = _biased(position_bias, mask)
    if dropout > 0.0 and module.training:
        return _with_dropout(query, key, value, mask, dropout, causal, scaling, softcap, window), None
    out = attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        causal_alignment="top_left",
        scale=scaling,
        window_size=window,
        softcap=softcap or 0.0,
    )
    return out, None


def cu_lengths(kwargs: dict[str, Any]) -> int:
    """How many packed sequences the FlashAttention arguments speak of; 1 without them."""
    lengths = kwargs.get("cu_seq_lens_q")
    return 1 if lengths is None else int(lengths.shape[0]) - 1


PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def _is_packed(query: Tensor, kwargs: dict[str, Any]) -> bool:
    return query.shape[0] == 1 and all(kwargs.get(name) is not None for name in PACKING)


def _packed(
    query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any], causal: bool, scaling: float | None,
    sliding_window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """Sequences end to end in one row, (1, H, T, D): each attends to itself alone -> (1, T, H, D)."""
    if sliding_window is not None and not causal and kwargs["max_length_k"] > sliding_window:
        raise ValueError(
            f"sgl_kernels in transformers: sliding_window={sliding_window} over packed sequences without causal order "
            "has no single meaning; pass the attention mask"
        )
    out = attention_varlen(
        *(t[0].transpose(0, 1) for t in (query, key, value)),
        *(kwargs[name] for name in PACKING),
        is_causal=causal,
        scale=scaling,
        window_size=(sliding_window - 1, -1) if causal and sliding_window is not None else None,
        softcap=softcap or 0.0,
    )
    return out[None]


def _refuse(module: nn.Module, kwargs: dict[str, Any], output_attentions: bool | None) -> None:
    if output_attentions:
        raise ValueError(
            "sgl_kernels in transformers: output_attentions=True asks for the weights, which are never formed; "
            'use model.set_attn_implementation("eager")'
        )
    for name, given in kwargs.items():
        if name not in HARMLESS and given is not None and given is not False:
            raise ValueError(
                f"sgl_kernels in transformers: {type(module).__name__} passes {name}=, which is not served and may "
                'change the result; use model.set_attn_implementation("sdpa") or "eager" for this model, or, if it '
                f"cannot matter, sgl_kernels.integrations.transformers.HARMLESS.add({name!r})"
            )


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A position bias and a mask as one additive mask."""
    if mask is None:
        return bias
    if mask.dtype is torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return bias + mask


def _with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool,
    scaling: float | None, softcap: float | None, window: tuple[int, int] | None,
) -> Tensor:  # fmt: skip
    from sgl_kernels.ops.attention import compat

    if softcap or window is not None:
        raise ValueError(
            f"sgl_kernels in transformers: dropout {dropout} together with softcap or a sliding window is not "
            'served; train with attn_implementation="eager"'
        )
    out = compat._torch_sdpa(
        query, key, value, mask, dropout, causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


def applies_to(model: object) -> bool:
    """Whether a model is one of transformers'."""
    return any(cls.__module__.split(".")[0] == "transformers" for cls in type(model).__mro__)


def hook(model: nn.Module, prefix: str, backend: str | None) -> list[str]:
    """Set this model, and no other that shares its configuration object, to our implementation.

    Returns the dotted names of its attention modules. Models that bypass the interface keep their own code;
    where that calls torch's SDPA, `apply` has hooked it already.
    """
    install()
    configs: dict[int, tuple[Any, Any]] = {}
    memo: dict[int, Any] = {}
    layers: list[str] = []
    for name, module in model.named_modules():
        config = module.__dict__.get("config")
        if config is not None and hasattr(config, "_attn_implementation"):
            if id(config) not in configs:
                configs[id(config)] = (config, copy.deepcopy(config, memo))
            module.config = configs[id(config)][1]  # two models may share one configuration object
        if is_attention(module) and found(module) is None:
            path = ".".join(part for part in (prefix, name) if part)
            role = "cross" if "cross" in name.lower() or "encoder_attn" in name.lower() else "self"
            scoped = Hook(module, path, role, backend)
            attach(scoped, scoped.attend)
            layers.append(path)
    before = [(ours, ours._attn_implementation) for _, ours in configs.values()]
    model.__dict__[_STATE] = before
    part: Any
    for part in model.modules():
        if hasattr(part, "set_attn_implementation") and part.config._attn_implementation != NAME:
            part.set_attn_implementation(NAME)
    return layers


def unhook(model: nn.Module) -> None:
    """Give the model the implementations it had."""
    for config, implementation in model.__dict__.pop(_STATE, ()):
        if config._attn_implementation == NAME:  # else somebody chose another one since; that stands
            config._attn_implementation_internal = implementation


def is_attention(module: nn.Module) -> bool:
    """Whether a module's code asks transformers for its attention function."""
    forward = type(module).forward
    return "get_interface" in getattr(getattr(forward, "__wrapped__", forward), "__code__", _EMPTY).co_names


_EMPTY = (lambda: None).__code__
