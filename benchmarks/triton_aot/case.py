"""One launch that is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """A launch by name. `subset` cases are the ones a test compiles on every change."""

    name: str
    start: Callable[[str], Any]  # of the family of the target, or of its architecture
    subset: bool = False
    by_arch: bool = False
