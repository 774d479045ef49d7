"""What is wrapped around a backend's function when a call is bound, and paid for only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_kernels.core.log import warn_once
from sgl_kernels.core.op import Op
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.core.selection.policy import OpPolicy
from sgl_kernels.core.selection.verdict import Reason, Selection

if TYPE_CHECKING:
    from sgl_kernels.core.dispatch import Dispatcher

Run = Callable[..., Any]


def composed(
    run: Run, op: Op, selection: Selection, dispatcher: Dispatcher, cast: torch.dtype | None,
    shielded: bool = False,
) -> Run:  # fmt: skip
    """`run` inside everything this dispatcher's settings ask for. With nothing asked for: `run` itself.

    What wraps it passes a keyword on: `out`, of a call that writes into given tensors (core/out.py).
    """
    implementation = dispatcher.implementation(op.name, selection.chosen)
    settings = dispatcher.settings
    if implementation.launches_on_current_device and selection.device.platform != "cpu":
        run = guarded(run)
    if implementation.fidelity is Fidelity.LOSSY and op.sampled is not None:
        from .lossy_guard import watched

        run = watched(run, op, selection, dispatcher)
    if settings.check:
        run = _checked(run, op)
    if settings.trace.level > 0:
        from .trace import traced

        run = traced(run, op, selection, settings.trace)
    if dispatcher.recorder is not None:
        run = dispatcher.recorder.wrap(run, op, selection)
    if cast is not None:
        run = _casting(run, op, cast)
    elif shielded and implementation.differentiable:  # plain torch inside, which autocast would change
        run = _shielded(run)
    return run


def guarded(run: Run) -> Run:
    """`run` with the device of its first argument current, for backends that launch on the current one."""

    def on_device(*args: Any, **out: Any) -> Any:
        with torch.get_device_module(args[0].device.type).device(args[0].device):
            return run(*args, **out)

    return on_device


def settling(run: Run, op: Op, args: tuple[Any, ...]) -> Run:
    """`run`, behind what brings calls like that of `args` into the form every implementation takes."""
    settled = op.settled
    if settled is None or settled(args) is args:
        return run
    return lambda *values, **out: run(*settled(values), **out)


def _checked(run: Run, op: Op) -> Run:
    """Validate every call, and refuse non-finite results that finite inputs produced."""

    def checked(*args: Any, **into: Any) -> Any:
        op.check(*args)
        finite = _all_finite(args) if into else None  # asked before: an input may be overwritten
        out = run(*args, **into)
        outs = out if isinstance(out, tuple) else (out,)
        first = outs[0]
        wrong = first.is_floating_point() and not bool(torch.isfinite(first).all())
        if wrong and (_all_finite(args) if finite is None else finite):
            raise FloatingPointError(f"{op.name}: finite inputs gave a non-finite result (check is on)")
        return out

    return checked


def _all_finite(args: tuple[Any, ...]) -> bool:
    return all(bool(torch.isfinite(a).all()) for a in args if isinstance(a, Tensor) and a.is_floating_point())


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


def _shielded(run: Run) -> Run:
    def shielded(*args: Any, **out: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False):
            return run(*args, **out)

    return shielded


def _casting(run: Run, op: Op, dtype: torch.dtype) -> Run:
    def cast(*args: Any) -> Any:
        values = cast_arguments(op, args, dtype)
        with torch.autocast(values[0].device.type, enabled=False):
            return run(*values)

    return cast


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def warn_about(selection: Selection, backend: str | None, policy: OpPolicy) -> None:
    """One warning per (op, cause) when a preference was not honoured; one per cause when a backend does not load."""
    if backend is None:
        _warn_about_loading(selection, policy)
    if backend is not None or not policy.prefer or selection.chosen in policy.prefer:
        return
    causes = [
        f"{c.backend}: {c.rejected.reason.value}: {c.rejected.detail}"
        for c in selection.candidates
        if c.backend in policy.prefer and c.rejected is not None and c.rejected.reason is not Reason.GRAD
    ]
    if not causes:  # the preferred backends do not offer this op, or only lack a backward: nothing to fix
        return
    cause = "; ".join(causes)
    origin = f" ({policy.origin})" if policy.origin else ""
    warn_once(
        f"{selection.op}: {cause}",
        f"{selection.op}: the preferred {', '.join(policy.prefer)}{origin} cannot serve this call [{cause}]; "
        f"{selection.chosen} runs instead",
    )


def _warn_about_loading(selection: Selection, policy: OpPolicy) -> None:
    """What is installed and would have served first, but does not load, is not passed over without a word."""
    for candidate in selection.candidates:
        if candidate.backend == selection.chosen:
            return
        rejected = candidate.rejected
        if rejected is not None and rejected.reason is Reason.LOAD and candidate.backend not in policy.prefer:
            warn_once(
                f"load {candidate.backend}: {rejected.detail}",
                f"{candidate.backend} would serve first and cannot be loaded: {rejected.detail}; {selection.chosen} "
                "runs instead. `sgl-kernels doctor` says what fixes it",
            )
