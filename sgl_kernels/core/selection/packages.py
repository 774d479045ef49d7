"""Which packages are installed, asked without importing them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.version import Version

VersionOf = Callable[[str], "Version | None"]
"""Distribution or module name -> version; None when absent. Tests pass their own."""


@functools.cache
def installed_version(name: str) -> Version | None:
    """The version of a distribution, or of the module `name`; None when absent. Imports nothing.

    A module without metadata (a source checkout on the path) counts as version 0.
    """
    from packaging.version import InvalidVersion, Version

    try:
        return Version(importlib.metadata.version(name))
    except InvalidVersion:
        return Version("0")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        found = importlib.util.find_spec(name.replace("-", "_"))
    except (ImportError, ValueError, AttributeError):
        return None
    return Version("0") if found is not None and found.origin is not None else None


@functools.cache
def _requirement(text: str) -> tuple[str, Callable[[Version], bool], str]:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    return (
        requirement.name,
        lambda v: requirement.specifier.contains(v, prereleases=True),
        str(requirement.specifier),
    )


def missing(requirement: str, version_of: VersionOf = installed_version) -> str | None:
    """Why 'name>=1.2' is not met ('x is not installed', 'x is 1.0, needs >=1.2'), or None when it is."""
    name, contains, wanted = _requirement(requirement)
    version = version_of(name)
    if version is None:
        return f"{name} is not installed"
    if wanted and not contains(version):
        return f"{name} is {version}, needs {wanted}"
    return None
