"""The build backend: setuptools' own, once it is known to be there and new enough; else one sentence that says so.

An isolated build (`pip install .`) brings its own setuptools. A build without isolation uses what the environment
has, which in a fresh one is setuptools 65 or, from Python 3.12 on, none: setuptools' own answer to this project's
metadata is then a traceback.
"""

from __future__ import annotations

import re
import sys

OLDEST = (77, 0)  # reads `license = "Apache-2.0"`
FIX = (
    "Leave --no-build-isolation out (`pip install .` finds the torch of this environment by itself), or first:\n"
    f"  {sys.executable or 'python'} -m pip install 'setuptools>={OLDEST[0]}'"
)


def _found() -> str:
    """What stands in the way of a build, or nothing."""
    try:
        import setuptools
    except ImportError as error:
        return f"setuptools is not there ({error})"
    version = str(getattr(setuptools, "__version__", "0"))
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return "" if tuple(numbers) >= OLDEST else f"setuptools is {version}"


_problem = _found()
if not _problem:
    from setuptools.build_meta import *  # noqa: F403 - every hook that setuptools offers
else:

    def _refuse(*args: object, **more: object) -> None:
        sys.exit(f"error: building sgl_kernels needs setuptools>={OLDEST[0]}, and {_problem}. {FIX}")

    # A frontend asks for these by name; without them it would speak of hooks that are missing.
    get_requires_for_build_wheel = get_requires_for_build_sdist = get_requires_for_build_editable = _refuse
    prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = _refuse
    build_wheel = build_sdist = build_editable = _refuse
