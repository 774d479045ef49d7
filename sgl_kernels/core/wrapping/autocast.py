"""Autocast as torch does it for its own ops: arguments cast, the body without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.op import Op, Run


def autocast_dtype(op: Op, args: tuple[Any, ...]) -> torch.dtype | None:
    """The dtype autocast asks this op's inputs to have, or None when it is off or the op ignores it."""
    if not op.autocast or not torch._C._is_any_autocast_enabled() or not isinstance(args[0], Tensor):
        return None
    kind = args[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast_arguments(op: Op, args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """`args` with the op's autocast arguments in `dtype`; float64 stays, as in torch."""
    return tuple(
        value.to(dtype)
        if argument.name in op.autocast
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype is not torch.float64
        else value
        for argument, value in zip(op.arguments, args, strict=True)
    )


def ignores_autocast(op: Op, args: tuple[Any, ...]) -> bool:
    """Whether autocast is on for the device of a call of an op that keeps the dtype of its inputs all the same."""
    if op.autocast or not torch._C._is_any_autocast_enabled():
        return False
    kind = args[0].device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def shielded(run: Run) -> Run:
    """`run` with autocast off, for plain torch inside it, which autocast would change."""

    def without(*args: Any, **out: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False):
            return run(*args, **out)

    return without


def casting(run: Run, op: Op, dtype: torch.dtype) -> Run:
    """`run` on the arguments in the dtype that autocast asks for, and with autocast off inside."""

    def cast(*args: Any) -> Any:
        values = cast_arguments(op, args, dtype)
        with torch.autocast(values[0].device.type, enabled=False):
            return run(*values)

    return cast
