"""Argument checks shared by the ops, with messages that say what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_kernels.core.tensors import has_memory, watches

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(op: str, name: str, value: object, ndim: int | None = None, layout: str = "") -> Tensor:
    """`value` as a floating-point tensor with `ndim` dimensions, or an error that names it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a torch.Tensor")
    if not has_memory(value) and not value.is_meta:
        kind = "a nested tensor" if value.is_nested else f"of layout {value.layout}"
        raise TypeError(
            f"{op}: {name} is {kind}, expected a strided torch.Tensor; use {name}.to_dense() or its parts"
        )
    if value.dtype not in SUPPORTED:
        raise ValueError(
            f"{op}: {name} has dtype {short(value.dtype)}, expected one of "
            f"{', '.join(short(d) for d in SUPPORTED)}; convert it with {name}.to(torch.bfloat16)"
        )
    if ndim is not None and value.ndim != ndim:
        raise ValueError(
            f"{op}: {name} has shape {list(value.shape)} ({value.ndim} dimensions), expected {ndim}: {layout}"
        )
    return value


def same(op: str, **tensors: Tensor) -> None:
    """All `tensors` share one dtype and device."""
    (first, lead), *rest = tensors.items()
    for name, value in rest:
        if value.dtype != lead.dtype:
            raise ValueError(
                f"{op}: {name} has dtype {short(value.dtype)} but {first} has {short(lead.dtype)}; "
                f"convert one, for example {name}.to({first}.dtype)"
            )
    same_device(op, **tensors)


def same_device(op: str, **tensors: Tensor | None) -> None:
    """All given tensors live on one device."""
    present = [(n, t) for n, t in tensors.items() if t is not None]
    first, lead = present[0]
    for name, value in present[1:]:
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a torch.Tensor or None")
        if value.device != lead.device:
            raise ValueError(
                f"{op}: {name} is on {value.device} but {first} is on {lead.device}; move one with .to()"
            )


def vector(op: str, name: str, value: Tensor | None, size: int, of: str) -> None:
    """An optional weight or bias has shape (size,)."""
    if value is None:
        return
    tensor(op, name, value)
    if tuple(value.shape) != (size,):
        raise ValueError(f"{op}: {name} has shape {list(value.shape)}, expected [{size}], {of}")


def choice(op: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """A string argument is one of its choices."""
    if value not in choices:
        raise ValueError(f"{op}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def positive(op: str, name: str, value: float, zero: bool = True) -> None:
    """A number is finite and not negative."""
    if not isinstance(value, int | float) or value != value or value < 0 or value == float("inf"):
        raise ValueError(f"{op}: {name} is {value!r}, expected a finite number, 0 or more")
    if not zero and value == 0:
        raise ValueError(f"{op}: {name} is 0, expected a positive number")


def short(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd, in reverse or forward mode and at any level, will ask for a derivative."""
    return watches(*tensors)
