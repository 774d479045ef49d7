"""Watching over lossy backends: some rows of their answers are computed exactly, and a backend that fails is out.

Quantised attention has turned pictures black, or into noise, on whole generations of devices without an error (see
data/known_bugs.json for those we know of). The check runs at the first call of every shape and at every EVERY-th, and
costs a few rows of exact attention and one wait for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sgl_kernels.core.log import warn_once
from sgl_kernels.core.op import Op, Run
from sgl_kernels.core.selection.implementation import Fidelity
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.policy import OpPolicy
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.verdict import Reason, Rejected, Selection

from .device_state import guarded, is_capturing

if TYPE_CHECKING:
    from sgl_kernels.core.registry import Registry

EVERY = 256  # a 50-step, 57-block model makes 2,850 attention calls: 12 checks


def watched(run: Run, op: Op, selection: Selection, registry: Registry, forget: Callable[[], None]) -> Run:
    """`run`, checked now and then; once its backend is out, the exact path answers instead."""
    backend = selection.chosen
    calls = itertools.count()  # next() is one step, so two threads cannot both miss the call that is due
    owed: list[int] = []  # a check that fell into a capture is made at the next call outside

    def guarded_run(*args: Any, **into: Any) -> Any:
        if backend in registry.quarantined(op.name):  # found elsewhere in the process: decide anew next time
            forget()
            return _given(_exact(op, selection, registry)(*args), **into)
        out = run(*args, **into)
        turn, since = divmod(next(calls), EVERY)
        if since and not owed:
            return out
        if is_capturing():
            owed[:] = [turn]
            return out
        owed.clear()
        cause = _fault(op, _outs(out, **into), args, turn)
        if not cause:
            return out
        registry.quarantine(op.name, backend, Rejected(Reason.BUG, f"put in quarantine: {cause}"))
        forget()
        exact = _exact(op, selection, registry)
        warn_once(
            f"quarantine {op.name} {backend}",
            f"{op.name}: backend {backend!r} is not used any more in this process: {cause}; exact backends answer "
            "from here on, this call included",
        )
        return _given(exact(*args), **into)

    return guarded_run


def _outs(result: Any, out: Any = None) -> Any:
    """The answer of a call, which is in the tensors it was given where there are some."""
    return result if out is None else out if len(out) > 1 else out[0]


def _given(result: Any, out: Any = None) -> Any:
    """An exact answer, copied into the tensors of a call that gave some."""
    for given, made in zip(out or (), result if isinstance(result, tuple) else (result,), strict=False):
        given.copy_(made)
    return result


CANCELLED = 0.03
"""Where terms cancel, a result is judged as if it were this share of them: what a quantised sum of +1 and -1 leaves is
no sign of a fault, however far it is from 0 in relation."""


def _fault(op: Op, out: Any, args: tuple[Any, ...], turn: int) -> str:
    """What is wrong with an answer, or ''. Inputs and results that are not finite in their type prove nothing."""
    assert op.sampled is not None
    with torch.no_grad():
        got, want, terms = op.sampled(out, args, turn)
        if want.numel() == 0 or not bool(torch.isfinite(want).all()):
            return ""
        if not bool(torch.isfinite(got).all()):
            return "it gave values that are not finite, and the exact ones are"
        size = _length(want)
        if size == 0.0:
            size = want.numel() ** 0.5 * 1e-3  # all rows are without keys: next to nothing may come out
        elif not bool(got.any()):
            return "it gave zeros"
        error = _length(got.double() - want.double()) / max(size, CANCELLED * _length(terms))
    if error > op.lossy_tolerance:
        return (
            f"it is {error:.0%} off the exact result of sampled rows, and {op.lossy_tolerance:.0%} is allowed"
        )
    return ""


def _length(t: torch.Tensor) -> float:
    """In float64, where the squares of float32's tiniest and largest numbers are numbers."""
    return float(torch.linalg.vector_norm(t, dtype=torch.float64))


def _exact(op: Op, selection: Selection, registry: Registry) -> Run:
    """The best exact implementation for the facts of `selection`, whatever the policy prefers."""
    left = [i for i in registry.implementations(op.name) if i.fidelity is Fidelity.EXACT]
    while left:
        decided = select(op.name, selection.facts, selection.device, installed_version, OpPolicy(), left)
        chosen = next((i for i in left if i.backend == decided.chosen), None)
        if chosen is None:
            break
        found = registry.loaded(chosen, decided.config)
        if not isinstance(found, Rejected):
            elsewhere = chosen.launches_on_current_device and selection.device.platform != "cpu"
            return guarded(found) if elsewhere else found
        left.remove(chosen)
    return op.reference
