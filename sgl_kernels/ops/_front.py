"""The way of a call from a front door to the function that serves it, the same for every op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from sgl_kernels.core.dispatch import current
from sgl_kernels.core.names.backends import resolve_names
from sgl_kernels.core.op import Op, Run
from sgl_kernels.core.sharding import is_dtensor, prepare
from sgl_kernels.core.tensors import derivative_asked, functorch_active, is_subclass, watches
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._fingerprint import KeyOf, builder
from sgl_kernels.ops._into import write

Door = Callable[..., Any]
FLOOR = "torch"
DOORS: dict[str, Callable[..., Any]] = {}
"""op -> door(args in schema order, out, backend)."""
Bind = Callable[[str | None, tuple[Any, ...]], Run]


class Front:
    """What the front door of one op is made of.

    door      door(args, out, backend): the call of the arguments in schema order
    overload  the torch op
    traced    the call of it that a compiler sees
    eager     eager(*args, backend=None): its body, and the way of a call once compilers and subclasses are dealt with
    key       the function that makes a call's key, and
    bind      bind(backend, args): the cold path of a call whose key is not known
    """

    def __init__(self, op: Op) -> None:
        key, inside = builder(op)
        defaults = tuple(a.default for a in op.arguments)

        def eager(*args: Any, backend: str | None = None) -> Any:
            values = args if len(args) == len(defaults) else args + defaults[len(args) :]
            here = current()
            known = inside(backend, values)
            return (here.bound.get(known) or here.bind(op, known, backend, values))(*values)

        def derive(*args: Any, backend: str | None = None) -> Any:
            values = args + defaults[len(args) :]
            with derivative_asked():
                return current().bind(op, None, backend, values)(*values)

        overload = define(op, eager, derive)
        derived = getattr(torch.ops.sgl_kernels, f"{op.name}_derived").default

        def traced(*args: Any, backend: str | None) -> Any:
            if is_dynamo_compiling() and forward_ad._current_level >= 0 and not functorch_active():
                return derived(*args, backend=backend)
            return overload(*args, backend=backend)

        def bind(backend: str | None, args: tuple[Any, ...]) -> Run:
            return _bind(op, key, overload, backend, args)

        def door(args: tuple[Any, ...], out: Any, backend: str | None) -> Any:
            if out is not None:
                return write(op, eager, overload, args, out, backend)
            if is_compiling():
                prepare()
                return traced(*args, backend=backend)
            return (current().bound.get(key(backend, args)) or bind(backend, args))(*args)

        self.door: Door = door
        DOORS[op.name] = door
        self.overload = overload
        self.traced = traced
        self.eager: Callable[..., Any] = eager
        self.key = key
        self.bind: Bind = bind


def _bind(
    op: Op, key: KeyOf, overload: Callable[..., Any], backend: str | None, args: tuple[Any, ...]
) -> Run:
    known = key(backend, args)
    if known is not None:
        return current().bind(op, known, backend, args)
    tensors = [a for a in args if isinstance(a, Tensor)]
    _refuse_nested(op, args)
    if any(is_subclass(t) for t in tensors):
        if any(is_dtensor(t) for t in tensors):
            prepare()
            if watches(*tensors):  # torch's own ops have rules for both directions
                return current().bind(op, None, backend or FLOOR, args)
        return lambda *values: overload(*values, backend=backend)
    if any(
        t.is_meta for t in tensors
    ):  # shapes and dtypes only; nobody is chosen, but what is wrong is still said
        op.check(*args)
        if backend is not None:
            resolve_names(backend, current().registry.backends())
        return lambda *values: overload(*values, backend=backend)
    return current().bind(op, None, backend, args)


def _refuse_nested(op: Op, args: tuple[Any, ...]) -> None:
    for argument, value in zip(op.arguments, args, strict=True):
        if isinstance(value, Tensor) and value.is_nested:
            raise TypeError(
                f"{op.name}: {argument.name} is a nested tensor, expected a strided torch.Tensor; call torch's own "
                "function, or pass the parts: x.values() of a jagged one, x.unbind() one by one"
                + ("; packed sequences go to attention_varlen" if op.family == "attention" else "")
            )
