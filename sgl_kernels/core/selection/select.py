"""The decision: a pure function from facts, device, packages and policy to a Selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sgl_kernels.core.device import Device

from .implementation import Fidelity, Implementation
from .packages import VersionOf
from .policy import OpPolicy
from .verdict import Candidate, Reason, Rejected, Selection

if TYPE_CHECKING:
    import torch

    from .tuning import TuningRecord

NOTHING: Mapping[str, Rejected] = MappingProxyType({})


def select(
    op: str,
    facts: Any,
    device: Device,
    version_of: VersionOf,
    policy: OpPolicy,
    implementations: Sequence[Implementation],
    *,
    named: Sequence[str] = (),
    tuned: TuningRecord | None = None,
    broken: Mapping[str, Rejected] = NOTHING,
    switched_off: Mapping[str, Rejected] = NOTHING,
) -> Selection:
    """Choose an implementation and say why, for every candidate, why not.

    Order: `named` (the call's backend=, strict), then `policy.prefer`, then the tuned record, then rank.
    """
    by_name = {i.backend: i for i in implementations}
    preferred = tuple(named) or policy.prefer
    strict = bool(named) or policy.strict
    allowed = None if not strict or not preferred else frozenset(preferred)
    candidates: list[Candidate] = [
        Candidate(name, Rejected(Reason.POLICY, f"there is no implementation of {op} by this name"))
        for name in preferred
        if name not in by_name and bool(named)
    ]
    chosen = why = ""
    config = None
    for implementation in _in_order(implementations, facts, device, preferred, tuned):
        name = implementation.backend
        rejected = _rejects(implementation, facts, device, version_of, policy, preferred, allowed, broken)
        if rejected is None and name not in preferred:
            rejected = switched_off.get(name)
        rank = implementation.rank_for(facts, device)
        note = "" if rejected else ("fallback" if rank == 0 else f"rank {rank}")
        candidates.append(Candidate(name, rejected, note))
        if rejected is None and not chosen:
            chosen = name
            why = _why(name, named, policy, tuned, getattr(rank, "evidence", note))
            if tuned is not None and tuned.backend == name and tuned.config:
                config = tuned.config
            elif implementation.configs is not None:
                config = implementation.configs(facts, device)[0]
    if not chosen:
        why = (
            f"named: {', '.join(named)}"
            if named
            else ("strict policy" if strict else "no implementation fits")
        )
    return Selection(op, facts, device, chosen, why, tuple(candidates), config)


def reading_packed(
    facts: Any,
    device: Device,
    version_of: VersionOf,
    policy: OpPolicy,
    implementations: Sequence[Implementation],
    *,
    broken: Mapping[str, Rejected] = NOTHING,
    switched_off: Mapping[str, Rejected] = NOTHING,
) -> Iterator[tuple[Implementation, str]]:
    """Who could read such a weight in a layout of its own, and the layout, in the order of `select`.

    It ends at a preferred one that reads any layout. `facts` are those of a call of middling size.
    """
    allowed = frozenset(policy.prefer) if policy.strict and policy.prefer else None
    for implementation in _in_order(implementations, facts, device, policy.prefer, None):
        name = implementation.backend
        away = _rejects_here(implementation, facts.dtype, device, version_of, policy, allowed, broken)
        if away is not None or (name in switched_off and name not in policy.prefer):
            continue
        layout = None if implementation.layout is None else implementation.layout(facts, device)
        if layout is not None:
            yield implementation, layout
        elif name in policy.prefer:
            return


def _in_order(
    implementations: Sequence[Implementation],
    facts: Any,
    device: Device,
    preferred: Sequence[str],
    tuned: TuningRecord | None,
) -> Iterator[Implementation]:
    """The preferred, then the tuned one, then the others by rank; ties keep their order."""
    by_name = {i.backend: i for i in implementations}
    ranked = sorted(implementations, key=lambda i: -i.rank_for(facts, device))
    first = (*preferred, *([tuned.backend] if tuned is not None else []))
    names = (*(name for name in first if name in by_name), *(i.backend for i in ranked))
    return (by_name[name] for name in dict.fromkeys(names))


def _why(name: str, named: Sequence[str], policy: OpPolicy, tuned: TuningRecord | None, place: str) -> str:
    if name in named:
        return "call argument"
    if name in policy.prefer:
        origin = f", {policy.origin}" if policy.origin else ""
        return f"prefer[{policy.prefer.index(name)}]{origin}"
    if tuned is not None and tuned.backend == name:
        return f"tuned {tuned.median_ms:.3f} ms"
    return place


def _rejects_here(
    implementation: Implementation,
    dtype: torch.dtype,
    device: Device,
    version_of: VersionOf,
    policy: OpPolicy,
    allowed: frozenset[str] | None,
    broken: Mapping[str, Rejected],
) -> Rejected | None:
    """What the policy, the device and the packages say, whatever the call."""
    name = implementation.backend
    if allowed is not None and name not in allowed:
        return Rejected(Reason.POLICY, "not in the strict preference")
    if name in policy.deny:
        return Rejected(Reason.POLICY, "denied by the policy")
    rejected = implementation.requires.rejects(dtype, device, version_of)
    return broken.get(name) if rejected is None else rejected


def _rejects(
    implementation: Implementation,
    facts: Any,
    device: Device,
    version_of: VersionOf,
    policy: OpPolicy,
    preferred: Sequence[str],
    allowed: frozenset[str] | None,
    broken: Mapping[str, Rejected],
) -> Rejected | None:
    rejected = _rejects_here(implementation, facts.dtype, device, version_of, policy, allowed, broken)
    if rejected is not None:
        return rejected
    if facts.needs_grad and not implementation.differentiable:
        return Rejected(Reason.GRAD, "has no backward, and an input requires a gradient")
    if implementation.rejects is not None and (rejected := implementation.rejects(facts)) is not None:
        return rejected
    if (
        implementation.rejects_on is not None
        and (rejected := implementation.rejects_on(facts, device)) is not None
    ):
        return rejected
    for bug in implementation.bugs:
        if bug.applies(implementation.op, facts, device, version_of):
            return bug.rejected()
    if (
        implementation.fidelity is Fidelity.LOSSY
        and implementation.backend not in preferred
        and not policy.allow_lossy
    ):
        return Rejected(Reason.FIDELITY, "lossy: name it, or set allow_lossy")
    return None
