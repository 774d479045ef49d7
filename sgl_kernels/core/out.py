"""Calls with `out=`: the result goes into tensors that the caller gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.wrapping.autocast import autocast_dtype, cast_arguments

from .dispatch import current
from .op import Op, Run
from .tensors import is_transformed

_increment_version = torch.autograd.graph.increment_version


def into(op: Op, eager: Callable[..., Any], args: tuple[Any, ...], out: Any, backend: str | None) -> None:
    """Run the call of `args`, in schema order, and leave its result in `out`.

    `eager(*args, backend=...)` is the same call without `out`. Where the chosen backend cannot write into given
    tensors its result is copied, so the meaning does not depend on who serves.

    Raises ValueError or TypeError for an `out` that is not exactly what the call would have made or that overlaps
    what is still to be read, RuntimeError where a gradient would have to pass through it.
    """
    outs = out if isinstance(out, tuple | list) else (out,)
    cast = autocast_dtype(op, args)
    if cast is not None:  # so that `out` is asked to have the dtype of the result
        args = cast_arguments(op, args, cast)
    dispatcher = current()
    try:
        key = ("out", op, backend, outs is out, *map(_fact, args), *map(_fact, outs))
        run = dispatcher.bound.get(key)
    except TypeError:  # an argument that is no tensor, number or string: the check says which
        key, run = None, None
    if run is None:
        check(op, args, out)
        run = dispatcher.bind_into(op, key, backend, args, _copying(eager, backend))
    refuse_gradients(op, args, outs)
    refuse_overlap(op, args, outs)
    run(*args, out=outs)
    for t in outs:
        if not t.is_inference():
            _increment_version(t)


def traced_into(
    op: Op, functional: Callable[..., Any], args: tuple[Any, ...], out: Any, backend: str | None
) -> None:
    """The same under the compiler and for tensor subclasses: the torch op, and a copy."""
    result = functional(*args, backend=backend)
    results = result if isinstance(result, tuple) else (result,)
    outs = out if isinstance(out, tuple | list) else (out,)
    if len(outs) != len(results):
        raise ValueError(f"{op.name}: out has {len(outs)} tensors, expected {len(results)}")
    for given, made in zip(outs, results, strict=True):
        if given.shape != made.shape or given.dtype != made.dtype or given.device != made.device:
            raise ValueError(
                f"{op.name}: out is {given.dtype} {list(given.shape)} on {given.device}, expected {made.dtype} "
                f"{list(made.shape)} on {made.device}"
            )
        given.copy_(made)


def check(op: Op, args: tuple[Any, ...], out: Any) -> None:
    """The arguments fit each other, and every tensor of `out` is exactly what the call would have made."""
    op.check(*args)
    op.check_kinds(args)
    meta = [
        torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta") if isinstance(a, Tensor) else a
        for a in args
    ]
    made = op.fake(*meta)
    expected = made if isinstance(made, tuple) else (made,)
    outs = out if isinstance(out, tuple | list) else (out,)
    if len(outs) != len(expected) or (outs is out) != (len(expected) > 1):
        what = f"a tuple of {len(outs)}" if isinstance(out, tuple | list) else type(out).__name__
        raise TypeError(f"{op.name}: out is {what}, expected {_count(len(expected))}")
    device = args[0].device
    for name, given, want in zip(names(outs), outs, expected, strict=True):
        if not isinstance(given, Tensor):
            raise TypeError(f"{op.name}: {name} is {type(given).__name__}, expected a torch.Tensor")
        if given.shape != want.shape:
            raise ValueError(
                f"{op.name}: {name} has shape {list(given.shape)}, expected {list(want.shape)}; nothing is "
                "broadcast or resized"
            )
        if given.dtype != want.dtype:
            raise ValueError(
                f"{op.name}: {name} has dtype {_short(given.dtype)}, expected {_short(want.dtype)}; give a "
                "tensor of that dtype, nothing is converted"
            )
        if given.device != device:
            raise ValueError(f"{op.name}: {name} is on {given.device} but the inputs are on {device}")
        if _repeats(given):
            raise ValueError(
                f"{op.name}: {name} has strides {given.stride()} for shape {list(given.shape)}, so that elements "
                "share memory; write into a tensor that was not expanded"
            )


def refuse_gradients(op: Op, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """No gradient passes through a tensor that is written in place."""
    if is_transformed(*args, *outs):
        raise RuntimeError(
            f"{op.name}: out is given inside vmap, grad, jvp or another transform of torch.func, or where tensors may "
            "carry tangents, and none of that passes through out; leave out away"
        )
    if not torch.is_grad_enabled():
        return
    for name, t in (
        *zip((a.name for a in op.arguments), args, strict=True),
        *zip(names(outs), outs, strict=True),
    ):
        if isinstance(t, Tensor) and t.requires_grad:
            raise RuntimeError(
                f"{op.name}: out is given but {name} requires grad, and no gradient passes through out; call inside "
                "torch.no_grad(), or leave out away"
            )


def refuse_overlap(op: Op, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """An out may be one of the inputs that `op.in_place` lists for it, whole; otherwise it overlaps nothing."""
    named = tuple(zip((a.name for a in op.arguments), args, strict=True))
    storages = {t.untyped_storage().data_ptr() for t in outs} - {0}  # 0: a tensor without memory
    touched = [
        (name, t) for name, t in named if isinstance(t, Tensor) and t.untyped_storage().data_ptr() in storages
    ]
    for i, (label, t) in enumerate(zip(names(outs), outs, strict=True)):
        for other, u in zip(names(outs)[:i], outs, strict=False):
            if may_overlap(t, u):
                raise ValueError(f"{op.name}: {label} and {other} share memory; give two tensors that do not")
        if not touched:
            continue
        allowed = op.in_place(*args)[i] if op.in_place is not None else ()
        same = [name for name, a in allowed if is_same(a, t)]
        for name, u in touched:
            if name not in same and may_overlap(t, u):
                raise ValueError(
                    f"{op.name}: {label} shares memory with {name}, which is still read after the first rows are "
                    "written; an out may be an input as a whole where the documentation says so, else give another "
                    "tensor"
                )


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same elements in the same order."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )


def may_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two strided tensors may share an element. Columns of one buffer, side by side, are told apart."""
    if a.numel() == 0 or b.numel() == 0 or a.is_meta or b.is_meta:
        return False
    (low_a, high_a), (low_b, high_b) = _span(a), _span(b)
    if high_a <= low_b or high_b <= low_a:
        return False
    # Rows of both begin at multiples of one pitch, as views of one buffer's columns do.
    width_a, steps_a = _columns(a)
    width_b, steps_b = _columns(b)
    pitch = math.gcd(*steps_a, *steps_b)
    if pitch == 0:
        return True
    between = (low_b - low_a) % pitch
    return not (width_a <= between and between + width_b <= pitch)


def _span(t: Tensor) -> tuple[int, int]:
    """The bytes from the first element to the end of the last."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _columns(t: Tensor) -> tuple[int, list[int]]:
    """The bytes of one row of adjacent elements, and the steps in bytes of the other dimensions."""
    item, width, steps = t.element_size(), 1, []
    for n, s in sorted(zip(t.shape, t.stride(), strict=True), key=lambda pair: pair[1]):
        if n > 1 and s == width:
            width *= n
        elif n > 1:
            steps.append(s * item)
    return width * item, steps


def _repeats(t: Tensor) -> bool:
    """Whether elements of t may share memory, as those of an expanded tensor do."""
    reach = 0
    for s, n in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if s <= reach:
            return True
        reach += (n - 1) * s
    return False


def _copying(eager: Callable[..., Any], backend: str | None) -> Run:
    def copied(*args: Any, out: Sequence[Tensor]) -> None:
        result = eager(*args, backend=backend)
        for given, made in zip(out, result if isinstance(result, tuple) else (result,), strict=True):
            given.copy_(made)

    return copied


def _fact(value: Any) -> Any:
    """What a call's key says of one argument."""
    if not isinstance(value, Tensor):
        return value
    return value.shape, value.stride(), value.dtype, value.device


def names(outs: Sequence[Any]) -> list[str]:
    """'out', or 'out[0]' and 'out[1]'."""
    return ["out"] if len(outs) == 1 else [f"out[{i}]" for i in range(len(outs))]


def _count(n: int) -> str:
    return "a torch.Tensor" if n == 1 else f"a tuple of {n} tensors"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
