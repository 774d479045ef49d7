"""The two errors of the library, and the mark on those that speak of a call's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_kernels.core.selection.verdict import Selection


class ConfigError(ValueError):
    """A setting that cannot be used: an environment variable, a file or an argument."""


class UnsupportedError(NotImplementedError):
    """Nothing fits a call, or a strict request cannot be met. The message is the selection table."""

    def __init__(self, selection: Selection, advice: str = "") -> None:
        super().__init__(f"{selection}\n{advice}" if advice else str(selection))
        self.selection = selection


def mark_refused(error: Exception) -> None:
    """Say of an error that an op's own check of its arguments raised it, before anything ran."""
    error.__dict__["sgl_kernels_refused"] = True


def is_refused(error: Exception) -> bool:
    """Whether an error is an op's refusal of its arguments: torch's own function may still serve them."""
    return "sgl_kernels_refused" in error.__dict__
