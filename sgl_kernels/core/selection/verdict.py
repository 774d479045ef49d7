"""Decisions as values: a reason, a candidate, a selection, and how they print."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from sgl_kernels.core.device import Device


class Reason(str, enum.Enum):
    """Why an implementation does not serve a call."""

    PLATFORM = "platform"  # the tensor lives on another kind of device
    CAPABILITY = "capability"  # right platform, wrong generation
    PACKAGE = "package"  # absent, or outside the version range
    DTYPE = "dtype"
    SHAPE = "shape"  # head_dim, alignment, divisibility
    FEATURE = "feature"  # mask, window, GQA, varlen, lse
    GRAD = "grad"  # needs a backward it does not have
    FIDELITY = "fidelity"  # lossy, and the policy asked for exact
    POLICY = "policy"  # denied, or outside a strict preference
    LOAD = "load"  # import, JIT or dlopen failed; detail carries the first line
    BUG = "bug"  # a known wrong result of this version on this device

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an implementation will not serve a call. Returned, never raised."""

    reason: Reason
    detail: str  # "needs capability 9.0..9.0, device is 8.9"
    hint: str = ""  # "pip install 'sageattention>=2.1'"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One implementation that was considered."""

    backend: str
    rejected: Rejected | None = None
    note: str = ""  # "rank 70" for the eligible, "fallback" for the floor


@dataclass(frozen=True, slots=True)
class Selection:
    """The whole decision: who was considered, who won, and why."""

    op: str
    facts: tuple[Any, ...]
    device: Device
    chosen: str  # "" when nothing fits
    why: str  # "call argument", "prefer[0]", "tuned 0.412 ms", "fallback", else what its rank rests on
    candidates: tuple[Candidate, ...]  # in the order they were considered
    config: Any = None

    def rejected(self, backend: str) -> Rejected | None:
        """The reason against `backend`, or None if it was eligible or not considered."""
        return next((c.rejected for c in self.candidates if c.backend == backend), None)

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain data for JSON."""
        names = getattr(self.facts, "_fields", tuple(str(i) for i in range(len(self.facts))))
        return {
            "op": self.op,
            "device": {"platform": self.device.platform, "arch": self.device.arch, "name": self.device.name},
            "facts": {n: _plain(v) for n, v in zip(names, self.facts, strict=True)},
            "chosen": self.chosen or None,
            "why": self.why,
            "config": None if self.config is None else str(self.config),
            "candidates": [
                {
                    "backend": c.backend,
                    "eligible": c.rejected is None,
                    "note": c.note,
                    "reason": c.rejected.reason.value if c.rejected else None,
                    "detail": c.rejected.detail if c.rejected else None,
                    "hint": c.rejected.hint if c.rejected else None,
                }
                for c in self.candidates
            ],
        }

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}: {describe_facts(self.facts)}"]
        width = max((len(c.backend) for c in self.candidates), default=0)
        for c in self.candidates:
            mark = "→" if c.backend == self.chosen else " "
            if c.rejected is None:
                text = f"ok          {c.note}"
                if c.backend == self.chosen and self.why != c.note:
                    text += f" ({self.why})"
            else:
                hint = f"   [{c.rejected.hint}]" if c.rejected.hint else ""
                text = f"{c.rejected.reason.value:<11} {c.rejected.detail}{hint}"
            lines.append(f"  {mark} {c.backend:<{width}}  {text}".rstrip())
        if not self.chosen:
            lines.append(f"  no backend serves this call ({self.why})")
        return "\n".join(lines)


class UnsupportedError(NotImplementedError):
    """Nothing fits a call, or a strict request cannot be met. The message is the selection table."""

    def __init__(self, selection: Selection, advice: str = "") -> None:
        super().__init__(f"{selection}\n{advice}" if advice else str(selection))
        self.selection = selection


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value).removeprefix("torch.")


def describe_facts(facts: tuple[Any, ...]) -> str:
    """Facts in one line: 'dtype bfloat16, head_dim 128, causal square', leaving out what is absent."""
    names = getattr(facts, "_fields", None)
    if names is None:
        return ", ".join(str(v) for v in facts)
    parts = []
    for name, value in zip(names, facts, strict=True):
        if value is None or value is False or value == "" or value == ():
            continue
        parts.append(name if value is True else f"{name} {_plain(value)}")
    return ", ".join(parts)
