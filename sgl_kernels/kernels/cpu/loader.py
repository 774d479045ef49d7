"""Finds and loads the C++ extension once, or says why it could not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[2]
# Another build of the library in place of the package's own: the sanitizer build of `make asan`, say.
LIBRARY_VARIABLE = "SGL_KERNELS_CPU_LIBRARY"

_lock = threading.Lock()
_outcome: list[str | None] = []  # empty until the first load; then its reason, or None for success


def library_path() -> Path | None:
    """The library file to load, or None where none was built."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return Path(named)
    return next(iter(sorted(PACKAGE.glob("_cpu.*so"))), None)


def load() -> str | None:
    """Makes torch.ops.sgl_kernels_cpu usable; the answer is None, or the reason it is not. Thread-safe."""
    if not _outcome:
        with _lock:
            if not _outcome:
                _outcome.append(_load())
    return _outcome[0]


def _load() -> str | None:
    path = library_path()
    if path is None:
        return "the C++ extension is not built (reinstall with a C++20 compiler and --no-build-isolation)"
    if not path.is_file():
        return f"the C++ extension {path} named by {LIBRARY_VARIABLE} does not exist"
    try:
        torch.ops.load_library(str(path))
        torch.ops.sgl_kernels_cpu.isa_level()
    except (OSError, RuntimeError, AttributeError) as error:
        return f"the C++ extension {path.name} does not load: {str(error).splitlines()[0]}"
    return None
