"""Pieces of the hot key: what a tensor argument contributes, and whether autograd is watching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

_PLAIN = (Tensor, torch.nn.Parameter)
_grad_enabled = torch.is_grad_enabled
_any_autocast = torch._C._is_any_autocast_enabled


def of(t: Tensor | None) -> Any:
    """Shape, dtype and device index of an optional tensor."""
    return None if t is None else (t.shape, t.dtype, t.get_device())


def grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a backward."""
    if not _grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)


def is_opaque(t: Any) -> bool:
    """Whether a call must go through the torch op: under the compiler, and for tensor subclasses."""
    return is_compiling() or (type(t) not in _PLAIN and isinstance(t, Tensor))
