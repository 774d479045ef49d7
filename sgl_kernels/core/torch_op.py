"""Every op is also a torch op: define it, give it a fake and a backward.

`torch.library.custom_op` costs 6.4 us per eager call against 2.1 us for define + impl (torch 2.13, one Zen 5
core), so the plain Library calls are used. In eager the front doors bypass the torch op altogether; it is what
torch.compile, torch.export, FakeTensor and other tensor subclasses see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.wrapping.autocast import cast_arguments

from .op import Op
from .tensors import carries_derivative

NAMESPACE = "sgl_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(op: Op, eager: Callable[..., Any], derive: Callable[..., Any]) -> Callable[..., Any]:
    """Register torch.ops.sgl_kernels.<op> with schema + `str? backend=None`, and return its overload.

    `eager(*schema_args, backend=None)` is the body. It must repeat the schema's defaults, because the
    dispatcher strips trailing arguments that equal them before calling a Python kernel. `derive`, called alike, is the
    body where derivatives that no `requires_grad` shows pass through: it is made of operations that torch derives.
    """
    head, _, returns = op.schema.partition(" -> ")
    schema = f"{head[:-1]}, *, str? backend=None) -> {returns}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(op.name, _fresh(eager), "CompositeExplicitAutograd")

    def fake(*args: Any, backend: str | None = None) -> Any:
        return op.fake(*op.canonical(*args))

    torch.library.register_fake(f"{NAMESPACE}::{op.name}", fake, lib=_LIBRARY)
    _define_backward(op, head, eager, derive)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    if op.autocast:
        _define_autocast(op, overload)
    return overload


AUTOCAST_KEYS = {
    "cpu": "AutocastCPU",
    "cuda": "AutocastCUDA",
    "xpu": "AutocastXPU",
    "mps": "AutocastMPS",
    "": "AutocastPrivateUse1",
}


def _define_autocast(op: Op, overload: Callable[..., Any]) -> None:
    """What torch does for its own lowered ops: cast, and go on without autocast. The compiler traces through it.

    Without this the compiler asks for the result's dtype with autocast's casts left out, and runs the body when
    autocast is long over.
    """
    for kind, key in AUTOCAST_KEYS.items():

        def lowered(*args: Any, backend: str | None = None, kind: str = kind, key: str = key) -> Any:
            values = op.canonical(*args)
            dtype = torch.get_autocast_dtype(kind or values[0].device.type)
            left_out = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
            with torch._C._ExcludeDispatchKeyGuard(left_out):
                return overload(*cast_arguments(op, values, dtype), backend=backend)

        _LIBRARY.impl(op.name, lowered, key)


def _fresh(eager: Callable[..., Any]) -> Callable[..., Any]:
    """A torch op may not return a view of its input or the input itself: copy in that rare case."""

    def body(*args: Any, **kwargs: Any) -> Any:
        out = eager(*args, **kwargs)
        if isinstance(out, tuple):
            return tuple(_unaliased(o, args) for o in out)
        return _unaliased(out, args)

    return body


def _unaliased(out: Tensor, args: Sequence[Any]) -> Tensor:
    if out.device.type == "meta" or out.numel() == 0:
        return out
    storage = out.untyped_storage()._cdata
    for a in args:
        if isinstance(a, Tensor) and a.untyped_storage()._cdata == storage:
            return out.clone()
    return out


def _define_backward(op: Op, head: str, eager: Callable[..., Any], derive: Callable[..., Any]) -> None:
    """<op>_backward recomputes through the dispatcher with gradients on, so a differentiable backend serves it.

    It is a torch op of its own, opaque to the compiler, so torch.compile and eager share one formula.
    """
    name = f"{op.name}_backward"
    _, _, arguments = head.partition("(")
    _LIBRARY.define(f"{name}(Tensor?[] grads, int[] wrt, {arguments[:-1]}) -> Tensor[]")

    def backward_body(grads: Sequence[Tensor | None], wrt: Sequence[int], *args: Any) -> list[Tensor]:
        values = list(op.canonical(*args))
        with torch.enable_grad():
            for i in wrt:
                values[i] = values[i].detach().requires_grad_()
            outs = eager(*values)
            outs = outs if isinstance(outs, tuple) else (outs,)
            pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None and o.requires_grad]
            inputs = [values[i] for i in wrt]
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                inputs,
                [g for _, g in pairs],
                allow_unused=True,
                materialize_grads=True,
            )
        return [g.clone() if g._base is not None else g for g in found]

    def backward_fake(grads: Sequence[Tensor | None], wrt: Sequence[int], *args: Any) -> list[Tensor]:
        values = op.canonical(*args)
        return [torch.empty_like(values[i]) for i in wrt]

    _LIBRARY.impl(name, backward_body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", backward_fake, lib=_LIBRARY)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    def setup_context(ctx: Any, values: tuple[Any, ...]) -> None:
        tensors = [v if isinstance(v, Tensor) else None for v in values]
        ctx.save_for_backward(*tensors)
        ctx.plain = [None if isinstance(v, Tensor) else v for v in values]
        ctx.wrt = [i for i, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[i]]

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        values = [t if t is not None else p for t, p in zip(ctx.saved_tensors, ctx.plain, strict=True)]
        result: list[Tensor | None] = [None] * len(values)
        for i, g in zip(ctx.wrt, overload(list(grads), ctx.wrt, *values), strict=True):
            result[i] = g
        return tuple(result)

    _define_derivatives(op, backward, setup_context, derive)


def _define_derivatives(
    op: Op, backward: Callable[..., Any], setup_context: Callable[..., None], derive: Callable[..., Any]
) -> None:
    """Gradients by `backward`; tangents and torch.func's transforms through the operations of `derive`.

    The kernel that torch.library.register_autograd makes knows `requires_grad` alone. It drops tangents without a
    word, and inside torch.func.grad it raises; both are met where a transform is called inside a compiled function.
    """
    overload = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    graded = _gradient(op, overload, backward, setup_context)

    def derived(keys: Any, *args: Any, backend: str | None = None) -> Any:
        if carries_derivative(*args):
            return derive(*args, backend=backend)
        return graded(keys, *args, backend=backend)

    _LIBRARY.impl(op.name, derived, "Autograd", with_keyset=True)

    if not op.reads_values:  # else torch runs slice after slice
        _LIBRARY.impl(op.name, derive, "FuncTorchBatched")
    # For graphs that open a forward-mode level: what runs them may not know that any level is open.
    _LIBRARY.define(str(overload._schema).partition("::")[2].replace(op.name, f"{op.name}_derived", 1))
    _LIBRARY.impl(f"{op.name}_derived", derive, "CompositeImplicitAutograd")


def _gradient(
    op: Op, overload: Any, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """The kernel graded(keys, *args, backend): the op itself, and `backward` where a gradient may be asked for.

    What torch.library.register_autograd makes is the same, behind a private name if it is to be wrapped.
    """

    def below(keys: Any, args: tuple[Any, ...], backend: str | None) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *args, backend=backend)

    class Graded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *values, keys, backend = args
            out = below(keys, tuple(values), backend)
            setup_context(ctx, tuple(values))
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return (*backward(ctx, *grads), None, None)

    Graded.__name__ = f"GeneratedBackwardFor_{NAMESPACE}_{op.name}"

    def graded(keys: Any, *args: Any, backend: str | None = None) -> Any:
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in args):
            return Graded.apply(*op.canonical(*args), keys, backend)
        return below(keys, args, backend)

    return graded
