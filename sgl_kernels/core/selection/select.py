"""The decision: a pure function from facts, device, packages and policy to a Selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sgl_kernels.core.device import Device

from .implementation import Fidelity, Implementation
from .packages import VersionOf
from .policy import OpPolicy
from .verdict import Candidate, Reason, Rejected, Selection

if TYPE_CHECKING:
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
    ranked = sorted(
        implementations, key=lambda i: -i.rank_for(facts, device)
    )  # stable: ties keep their order
    order: list[str] = [name for name in preferred if name in by_name]
    if tuned is not None and tuned.backend in by_name:
        order.append(tuned.backend)
    order.extend(i.backend for i in ranked)

    candidates: list[Candidate] = [
        Candidate(name, Rejected(Reason.POLICY, f"there is no implementation of {op} by this name"))
        for name in preferred
        if name not in by_name and bool(named)
    ]
    chosen = why = ""
    config = None
    for name in dict.fromkeys(order):
        implementation = by_name[name]
        rejected = _rejects(implementation, facts, device, version_of, policy, preferred, allowed, broken)
        if rejected is None and name not in preferred:
            rejected = switched_off.get(name)
        rank = implementation.rank_for(facts, device)
        note = "" if rejected else ("fallback" if rank == 0 else f"rank {rank}")
        candidates.append(Candidate(name, rejected, note))
        if rejected is None and not chosen:
            chosen = name
            why = _why(name, named, policy, tuned, note)
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


def _why(name: str, named: Sequence[str], policy: OpPolicy, tuned: TuningRecord | None, note: str) -> str:
    if name in named:
        return "call argument"
    if name in policy.prefer:
        origin = f", {policy.origin}" if policy.origin else ""
        return f"prefer[{policy.prefer.index(name)}]{origin}"
    if tuned is not None and tuned.backend == name:
        return f"tuned {tuned.median_ms:.3f} ms"
    return note


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
    name = implementation.backend
    if allowed is not None and name not in allowed:
        return Rejected(Reason.POLICY, "not in the strict preference")
    if name in policy.deny:
        return Rejected(Reason.POLICY, "denied by the policy")
    rejected = implementation.requires.rejects(facts.dtype, device, version_of)
    if rejected is not None:
        return rejected
    if name in broken:
        return broken[name]
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
    if implementation.fidelity is Fidelity.LOSSY and name not in preferred and not policy.allow_lossy:
        return Rejected(Reason.FIDELITY, "lossy: name it, or set allow_lossy")
    return None
