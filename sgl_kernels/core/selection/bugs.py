"""Known wrong results of other people's releases, as data that rejects the calls they would spoil."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_kernels.core.device import Device

from .packages import VersionOf
from .verdict import Reason, Rejected

if TYPE_CHECKING:
    from packaging.version import Version

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "in": lambda value, options: value in options,
    "indivisible": lambda value, by: value % by != 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A defect of one package's versions on some devices, for some calls. Empty fields mean all."""

    name: str
    backend: str
    detail: str
    link: str
    ops: tuple[str, ...] = ()
    package: str = ""
    versions: str = ""  # a specifier, ">=2.0,<2.3"
    platforms: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    where: tuple[tuple[str, str, Any], ...] = ()  # (fact, comparison, value), all of which hold

    def applies(self, op: str, facts: Any, device: Device, version_of: VersionOf) -> bool:
        """Whether this call on this device would meet the defect."""
        if self.ops and op not in self.ops:
            return False
        if self.platforms and device.platform not in self.platforms:
            return False
        if self.archs and device.arch not in self.archs:
            return False
        if not all(self._holds(facts, *condition) for condition in self.where):
            return False
        if not self.package:
            return True
        version = version_of(self.package)
        return version is not None and (not self.versions or _specifier(self.versions)(version))

    @staticmethod
    def _holds(facts: Any, fact: str, comparison: str, value: Any) -> bool:
        found = getattr(facts, fact, None)
        return found is not None and COMPARISONS[comparison](_plain(found), value)

    def rejected(self) -> Rejected:
        """The rejection a selection shows."""
        return Rejected(Reason.BUG, self.detail, self.link)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | tuple) else str(value).removeprefix("torch.")


@functools.cache
def _specifier(text: str) -> Callable[[Version], bool]:
    from packaging.specifiers import SpecifierSet

    specifier = SpecifierSet(text)
    return lambda version: specifier.contains(version, prereleases=True)
