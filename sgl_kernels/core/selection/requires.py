"""The part of a capability that is plain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgl_kernels.core.device import Device

from .packages import VersionOf, missing
from .verdict import Reason, Rejected

HALF: frozenset[torch.dtype] = frozenset({torch.float16, torch.bfloat16})
FLOATS: frozenset[torch.dtype] = HALF | {torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Requires:
    """Where an implementation runs. An empty field means unrestricted."""

    platforms: frozenset[str] = frozenset()
    min_capability: tuple[int, int] | None = None
    max_capability: tuple[int, int] | None = None  # inclusive
    archs: frozenset[str] = frozenset()
    packages: tuple[str, ...] = ()  # "sageattention>=2.1,<3"
    dtypes: frozenset[torch.dtype] = frozenset()
    install: str = ""  # the command that fixes a missing package; default: pip install '<requirement>'

    def rejects(self, dtype: torch.dtype, device: Device, version_of: VersionOf) -> Rejected | None:
        """The first reason against running on `device` with `dtype`, or None."""
        if self.platforms and device.platform not in self.platforms:
            wanted = ", ".join(sorted(self.platforms))
            return Rejected(Reason.PLATFORM, f"needs {wanted}, the tensor is on {device.platform}")
        rejected = self._rejects_arch(device)
        if rejected is not None:
            return rejected
        for requirement in self.packages:
            cause = missing(requirement, version_of)
            if cause is not None:
                return Rejected(Reason.PACKAGE, cause, self.install or f"pip install '{requirement}'")
        if self.dtypes and dtype not in self.dtypes:
            wanted = ", ".join(sorted(str(d).removeprefix("torch.") for d in self.dtypes))
            return Rejected(Reason.DTYPE, f"needs {wanted}, got {str(dtype).removeprefix('torch.')}")
        return None

    def _rejects_arch(self, device: Device) -> Rejected | None:
        low, high, found = self.min_capability, self.max_capability, device.capability
        if low is not None or high is not None:
            if found is None:
                return Rejected(
                    Reason.CAPABILITY, f"needs capability {_span(low, high)}, the device has none"
                )
            if (low is not None and found < low) or (high is not None and found > high):
                return Rejected(
                    Reason.CAPABILITY, f"needs capability {_span(low, high)}, device is {found[0]}.{found[1]}"
                )
        arch = device.processor or device.arch  # what holds our own kernels down holds nobody else's
        if self.archs and arch not in self.archs:
            wanted = ", ".join(sorted(self.archs))
            return Rejected(Reason.CAPABILITY, f"needs {wanted}, device is {arch or 'of unknown arch'}")
        return None


def _span(low: tuple[int, int] | None, high: tuple[int, int] | None) -> str:
    text = [f"{c[0]}.{c[1]}" if c else "" for c in (low, high)]
    return text[0] if low == high else "..".join(text)
