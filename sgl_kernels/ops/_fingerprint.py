"""What tensors contribute to a call's key: dtype, device, shape, autograd's interest, and autocast."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_grad_enabled = torch.is_grad_enabled
_any_autocast = torch._C._is_any_autocast_enabled


def through_attributes(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The slow way: for tensors without memory (meta, vmap), and where the C++ extension is not built."""
    facts: list[Any] = [False, _any_autocast()]
    watched = _grad_enabled()
    for t in tensors:
        if t is None:
            facts.append(None)
            continue
        facts += (t.shape, t.dtype, t.device)
        if watched and t.requires_grad:
            facts[0] = True
    return tuple(facts)


def _find() -> Callable[..., Any]:
    try:
        module = importlib.import_module("sgl_kernels._key")
        table = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
        module.connect(table, through_attributes, _grad_enabled, _any_autocast, torch.Tensor.requires_grad)
    except (ImportError, AttributeError, ValueError, TypeError):  # not built, or a torch without the table
        return through_attributes
    found: Callable[..., Any] = module.fingerprint
    return found


fingerprint: Callable[..., Any] = _find()
"""fingerprint(*tensors): equal for calls that may share a binding. 0.4 us for three tensors instead of 1.5 us
through their attributes (one core of a Xeon with AVX-512, torch 2.13)."""
