"""The environment of this process. The one module of the package that reads it; a test refuses others."""

from __future__ import annotations

import os
from collections.abc import Mapping


def process() -> Mapping[str, str]:
    """Every variable, as it is now."""
    return os.environ


def variable(name: str) -> str:
    """A variable that is no setting: another program's, or one for those who build. '' where it is not set."""
    return os.environ.get(name, "")
