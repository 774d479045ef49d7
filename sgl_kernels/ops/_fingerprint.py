"""The key of a call: everything that decides it, made by one function for each op from the op's declared arguments."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sgl_kernels.core.op import Op
from sgl_kernels.core.tensors import PLAIN_TYPES, has_memory, is_transformed

Key = Any
KeyOf = Callable[[str | None, tuple[Any, ...]], Key]
"""key(backend, arguments in schema order): equal for calls that may share a binding; None for a call that may not be
remembered, because a tensor is not plain (core/tensors.py) or an argument is not what the schema says."""

_grad_enabled = torch.is_grad_enabled
_any_autocast = torch._C._is_any_autocast_enabled
_numbers = itertools.count(1)
_dtypes: dict[torch.dtype, int] = {}


def autocast_of(first: Any) -> int:
    """What autocast does to a call whose first argument this is: 0 for nothing, else a number of its dtype."""
    if not isinstance(first, Tensor) or not _any_autocast():
        return 0
    kind = first.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return 0
    return _dtypes.setdefault(torch.get_autocast_dtype(kind), len(_dtypes) + 1)


def builder(op: Op) -> tuple[KeyOf, KeyOf]:
    """The function `key` of an op, for its front door and for the body of its torch op.

    It holds the backend that was asked for; dtype, device and shape of every tensor (strides where the op says that
    they count); every other argument by type and value; whether autograd watches one of the tensors; and what
    autocast does on their device. 0.6 us for attention's ten arguments, and 3 us without the C++ module (one core of
    a Xeon with AVX-512, torch 2.13). The body also gets tensors of other types that have memory.
    """
    return for_kinds(_kinds(op))


def for_kinds(kinds: str) -> tuple[KeyOf, KeyOf]:
    """As `builder`, for arguments of these kinds: t a tensor or None, s the same and its strides count, v a value."""
    number = next(_numbers)
    outside, inside = _in_python(number, kinds)
    if compiled is None:
        return outside, inside
    return compiled.builder(number, kinds, outside), compiled.builder(number, kinds, inside)


def in_python(op: Op) -> tuple[KeyOf, KeyOf]:
    """As `builder`, without the C++ module."""
    return _in_python(next(_numbers), _kinds(op))


def _in_python(own: int, kinds: str) -> tuple[KeyOf, KeyOf]:

    def outside(backend: str | None, args: tuple[Any, ...]) -> Key:
        return through_attributes(own, kinds, backend, args)

    def inside(backend: str | None, args: tuple[Any, ...]) -> Key:
        return through_attributes(own, kinds, backend, args, Tensor)

    return outside, inside


def _kinds(op: Op) -> str:
    return "".join("s" if a.name in op.strided else "t" if a.is_tensor else "v" for a in op.arguments)


def through_attributes(
    number: int, kinds: str, backend: Any, args: tuple[Any, ...], *others: type[Tensor]
) -> Key:
    """The same in Python: without the C++ module, and for what that does not take. `others`: types taken too."""
    if len(args) != len(kinds) or is_transformed(*args):
        return None
    watched, grad = _grad_enabled(), False
    facts: list[Any] = [number, type(backend), backend, autocast_of(args[0])]
    for kind, value in zip(kinds, args, strict=True):
        if kind == "v" or value is None:
            facts += (type(value), value)
            continue
        if type(value) not in PLAIN_TYPES and not (others and isinstance(value, others)):
            return None
        if not has_memory(value):
            return None
        facts += (value.shape, value.dtype, value.device, value.stride() if kind == "s" else None)
        grad = grad or (watched and value.requires_grad)
    key = (*facts, grad)
    if any(isinstance(v, Tensor) for v in key):
        return None
    try:
        hash(key)
    except TypeError:  # a list, an array: the op's check says what is wrong with it
        return None
    return key


def _find() -> Any:
    try:
        module = importlib.import_module("sgl_kernels._key")
        table = torch.Tensor.__dlpack_c_exchange_api__  # type: ignore[attr-defined]
        module.connect(
            table, _grad_enabled, _any_autocast, torch.Tensor.requires_grad, *PLAIN_TYPES, vars(forward_ad),
            autocast_of,
        )  # fmt: skip
    except (ImportError, AttributeError, ValueError, TypeError):  # not built, or a torch without the table
        return None
    return module


compiled = _find()
