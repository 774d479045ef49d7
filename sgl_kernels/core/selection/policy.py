"""Which backends may serve an op: policies, rules, and the groups of ops they address."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

ROLES: tuple[str, ...] = ("self", "cross")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a call comes from, for rules."""

    role: str = ""  # "self" | "cross" | ""
    layer: str = ""  # dotted module name


@dataclass(frozen=True, slots=True)
class OpPolicy:
    """Which backends one op may use, and in what order."""

    prefer: tuple[str, ...] = ()  # canonical backend names, tried first in this order
    deny: frozenset[str] = frozenset()
    strict: bool = False  # outside `prefer` nothing may run; with an empty `prefer` it restricts nothing
    allow_lossy: bool = False  # naming a lossy backend in `prefer` also allows it
    origin: str = field(default="", compare=False)  # "environment SGLANG_DIFFUSION_ATTENTION_BACKEND"


@dataclass(frozen=True, slots=True)
class Rule:
    """A preference for some calls of one op. Empty conditions match everything; the first match wins."""

    op: str
    prefer: tuple[str, ...]
    role: str = ""
    layer: str = ""  # glob, as in fnmatch: 'blocks.*.attn2'
    shape: str = ""  # a class of shapes, as the op tells them apart
    origin: str = field(default="", compare=False)

    def matches(self, op: str, scope: Scope, shape_class: str) -> bool:
        """Whether this rule speaks about a call."""
        return (
            self.op == op
            and (not self.role or self.role == scope.role)
            and (not self.shape or self.shape == shape_class)
            and (not self.layer or fnmatch.fnmatchcase(scope.layer, self.layer))
        )
