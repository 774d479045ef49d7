"""What is wrapped around a backend's function when a call is bound, and paid for only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_kernels.core.log import warn_once
from sgl_kernels.core.op import Op, Run
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.core.selection.policy import OpPolicy
from sgl_kernels.core.selection.verdict import Reason, Selection

from .autocast import casting, shielded
from .device_state import guarded

if TYPE_CHECKING:
    from sgl_kernels.core.registry import Registry
    from sgl_kernels.core.selection.implementation import Implementation
    from sgl_kernels.core.settings import Settings

    from .record import Recorder


@dataclass(frozen=True, slots=True)
class Parts:
    """What a binding is wrapped with: the settings, who counts calls, and whom the watch over lossy backends tells.

    `forget` drops every binding of the dispatcher that asks, so that its next calls are decided anew.
    """

    settings: Settings
    recorder: Recorder | None
    registry: Registry
    forget: Callable[[], None]


def composed(
    run: Run, op: Op, selection: Selection, implementation: Implementation, parts: Parts, cast: torch.dtype | None,
    shield: bool = False,
) -> Run:  # fmt: skip
    """`run` inside everything that the settings ask for. With nothing asked for: `run` itself.

    What wraps it passes a keyword on: `out`, of a call that writes into given tensors (core/out.py).
    """
    settings = parts.settings
    if implementation.launches_on_current_device and selection.device.platform != "cpu":
        run = guarded(run)
    if implementation.fidelity is Fidelity.LOSSY and op.sampled is not None:
        from .lossy_guard import watched

        run = watched(run, op, selection, parts.registry, parts.forget)
    if settings.check:
        run = _checked(run, op)
    if settings.trace.level > 0:
        from .trace import traced

        run = traced(run, op, selection, settings.trace)
    if parts.recorder is not None:
        run = parts.recorder.wrap(run, op, selection)
    if cast is not None:
        run = casting(run, op, cast)
    elif shield and implementation.differentiable:  # plain torch inside, which autocast would change
        run = shielded(run)
    return run


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
