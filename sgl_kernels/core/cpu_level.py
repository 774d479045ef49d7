"""The instruction set that the settings of the process hold our CPU kernels down to, and who must hear of a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

NOT_READ: Final = "not read"
"""No settings are in force yet: the environment says what they will name."""

_named: str | Literal["not read"] | None = NOT_READ
_followers: list[Callable[[], None]] = []


def named() -> str | None:
    """The level that is named, or None: then the kernels use the best that the processor has.

    Raises ConfigError for a name in the environment that is none.
    """
    if _named != NOT_READ:
        return _named
    from sgl_kernels.core.settings.environment import one

    found: str | None = one("cpu_isa")
    return found


def hold(level: str | None) -> None:
    """The settings of the process name `level` from now on, NOT_READ for no settings. Followers hear of it."""
    global _named
    if level == _named:
        return
    _named = level
    for follow in _followers:
        follow()


def follow(changed: Callable[[], None]) -> None:
    """Call `changed` after every change, in the order in which followers came: first who runs, then who remembers."""
    _followers.append(changed)
