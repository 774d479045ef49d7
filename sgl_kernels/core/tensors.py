"""Kinds of tensors: which have memory that a kernel may read, and which torch alone knows how to treat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
functorch_active = torch._C._are_functorch_transforms_active
open_modes = torch._C._len_torch_dispatch_stack
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def is_subclass(t: Any) -> bool:
    """Whether t is a tensor of another type, which brings rules of its own (FakeTensor, DTensor, jagged)."""
    return isinstance(t, Tensor) and type(t) not in PLAIN_TYPES


def is_transformed(*tensors: Any) -> bool:
    """Whether a derivative or a batch that `requires_grad` does not show passes through one of the tensors.

    That is so inside torch.func's transforms (grad, vmap, jvp and what is built of them), and for any tensor while a
    level of forward-mode differentiation is open: it may carry a tangent.
    """
    if forward_ad._current_level >= 0:
        return True
    if not functorch_active():
        return False
    # Dynamo knows that a transform is active, and cannot trace which tensors it wraps.
    return is_dynamo_compiling() or any(isinstance(t, Tensor) and is_wrapped(t) for t in tensors)


def carries_derivative(*tensors: Any) -> bool:
    """As `is_transformed`, for the kernel of a torch op.

    A traced graph opens levels of its own there, which only the tensors tell. Asking them costs 3 us each, so it is
    done where levels are open or something traces.
    """
    if functorch_active():
        return True
    if forward_ad._current_level < 0 and not (is_compiling() or open_modes()):
        return False
    return any(isinstance(t, Tensor) and torch._unpack_dual(t, 0)[1] is not None for t in tensors)


_asked: ContextVar[bool] = ContextVar("sgl_kernels_derivative", default=False)


@contextmanager
def derivative_asked() -> Iterator[None]:
    """Inside, `watches` says yes: a derivative passes through that no tensor shows while a graph is traced."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def has_memory(t: Tensor) -> bool:
    """Whether t is strided, on a device that holds its elements, and not a tensor of tensors."""
    return not t.is_nested and t.layout is torch.strided and t.device.type != "meta"


def is_plain(*tensors: Any) -> bool:
    """Whether each is None or a strided torch.Tensor with memory, outside of every transform.

    Whoever stands in for a function or a layer of torch asks this first and leaves all others to torch: nested
    tensors, DTensor and other subclasses, meta tensors, torch.func's wrappers and tensors that may carry a tangent.
    """
    if is_transformed(*tensors):
        return False
    return all(t is None or (type(t) in PLAIN_TYPES and has_memory(t)) for t in tensors)


def watches(*tensors: Any) -> bool:
    """Whether autograd, in reverse or forward mode and at any level, will ask for a derivative."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return True
    return is_transformed(*tensors) or (not is_dynamo_compiling() and _asked.get())
