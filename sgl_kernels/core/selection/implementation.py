"""One backend's way to run one op, as data."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sgl_kernels.core.device import Device

from .bugs import Bug
from .requires import Requires
from .verdict import Rejected

if TYPE_CHECKING:
    from sgl_kernels.core.settings import Settings


class Fidelity(enum.Enum):
    """Whether an implementation computes the same mathematics."""

    EXACT = "exact"  # rounding differences only
    LOSSY = "lossy"  # quantised or sparse attention, fp8 or fp4 compute: opt-in


class Place(int):
    """A rank that says, in a few words, what it rests on."""

    evidence: str

    def __new__(cls, rank: int, evidence: str) -> Place:
        made = super().__new__(cls, rank)
        made.evidence = evidence
        return made


Rank = int | Callable[[Any, Device], int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Implementation:
    """One backend's way to run one op. Importing its module costs nothing.

    `load(config)` imports the vendor and returns `run`, called with exactly the op's schema arguments, in
    order; `config` is a kernel configuration, or the pairs that the settings give for this backend's
    `options`. `rejects(facts)` says what data in `requires` cannot. `rank` orders the eligible; the torch
    floor is 0 and a callable may look at the facts and the device. A Place also says why, for reports.
    """

    op: str
    backend: str
    load: Callable[[Any], Callable[..., Any]]
    requires: Requires = Requires()  # noqa: RUF009 - frozen and immutable
    rejects: Callable[[Any], Rejected | None] | None = None
    rejects_on: Callable[[Any, Device], Rejected | None] | None = (
        None  # when the reason depends on the device too
    )
    enabled: Callable[[Settings], Rejected | None] | None = (
        None  # a flag of the user's page; naming it overrides
    )
    absent: Callable[[], str | None] | None = (
        None  # why a part of this package that it runs on is not here; quick, and asked without a call
    )
    bugs: tuple[Bug, ...] = ()  # known wrong results, each a rejection where it applies
    rank: Rank = 0
    fidelity: Fidelity = Fidelity.EXACT
    differentiable: bool = False
    traceable: bool = False  # plain aten: better inlined for Inductor
    load_out: Callable[[Any], Callable[..., Any]] | None = (
        None  # as `load`, but run takes out=(tensors), of any strides, fills them and returns what the op returns
    )
    layout: Callable[[Any, Device], str | None] | None = (
        None  # (facts, device) -> the layout in which it reads a packed weight; None: the one that it lies in
    )
    configs: Callable[[Any, Device], Sequence[Any]] | None = None  # [0] is the heuristic default
    options: Mapping[str, str] = field(default_factory=dict)  # option of the settings -> what it does
    launches_on_current_device: bool = False  # Triton and friends: compose a device guard
    proof: str = ""  # how it is proven without its device: "interpreted", "compiled", "contract", "simulated"
    doc: str = ""  # one line for tables: what it is and where it comes from

    def rank_for(self, facts: Any, device: Device) -> int:
        """The preference of this implementation for a call."""
        return self.rank if isinstance(self.rank, int) else self.rank(facts, device)
