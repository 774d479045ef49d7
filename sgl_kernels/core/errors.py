"""The error of settings, and the mark on those that speak of a call's arguments."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot be used: an environment variable, a file or an argument."""


def mark_refused(error: Exception) -> None:
    """Say of an error that an op's own check of its arguments raised it, before anything ran."""
    error.__dict__["sgl_kernels_refused"] = True


def is_refused(error: Exception) -> bool:
    """Whether an error is an op's refusal of its arguments: torch's own function may still serve them."""
    return "sgl_kernels_refused" in error.__dict__
