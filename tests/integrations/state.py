"""Everything that `apply` could leave behind on a model, as values that can be compared."""

from __future__ import annotations

import sys
from typing import Any

import torch.nn.functional as F
from torch import nn

_CONTAINERS = (dict, list, tuple, set)


def _seen(value: Any) -> Any:
    if isinstance(value, _CONTAINERS):
        items = value.items() if isinstance(value, dict) else value
        return type(value), [(id(k), id(v)) for k, v in items] if isinstance(value, dict) else list(
            map(id, items)
        )
    return id(value)


def snapshot(model: nn.Module, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """(name, attribute) -> identity, for every module, its hooks, its processor; and torch's SDPA by name."""
    found: dict[str, Any] = {"sdpa": F.scaled_dot_product_attention}
    dispatcher = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatcher is not None:
        found["native"] = dispatcher._AttentionBackendRegistry._backends["native"]
    for name, module in model.named_modules():
        found[f"{name} class"] = type(module)
        found[f"{name} keys"] = [k for k in module.__dict__ if k not in ignore]
        for key, value in module.__dict__.items():
            if key not in ignore:
                found[f"{name}.{key}"] = _seen(value)
        processor = module.__dict__.get("processor")
        if processor is not None:
            found[f"{name}.processor keys"] = {k: id(v) for k, v in vars(processor).items()}
        config = module.__dict__.get("config")
        if hasattr(config, "_attn_implementation"):
            found[f"{name} attention"] = config._attn_implementation
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was."""
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
