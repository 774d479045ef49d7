"""The front doors' way to `out=`: written in place in eager, a copy under the compiler and for tensor subclasses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sgl_kernels.core.op import Op
from sgl_kernels.core.out import into, traced_into
from sgl_kernels.core.tensors import is_subclass
from sgl_kernels.ops._key import is_opaque

Out = TypeVar("Out")


def write(
    op: Op,
    eager: Callable[..., Any],
    overload: Callable[..., Any],
    args: tuple[Any, ...],
    out: Out,
    backend: str | None,
) -> Out:
    """The result of a call in `out`, which is returned. `eager` and `overload` are the call without it."""
    outs = out if isinstance(out, tuple | list) else (out,)
    if is_opaque(args[0]) or any(is_subclass(t) for t in outs):
        traced_into(op, overload, args, out, backend)
    else:
        into(op, eager, args, out, backend)
    return out
