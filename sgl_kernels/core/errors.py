"""The two errors of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import Selection


class ConfigError(ValueError):
    """A setting that cannot be used: an environment variable, a file or an argument."""


class UnsupportedError(NotImplementedError):
    """Nothing fits a call, or a strict request cannot be met. The message is the selection table."""

    def __init__(self, selection: Selection, advice: str = "") -> None:
        super().__init__(f"{selection}\n{advice}" if advice else str(selection))
        self.selection = selection
