"""Our C++ extension as the backends see it: its operations, or why there are none."""

from __future__ import annotations

from typing import Any

import torch


def absent() -> str | None:
    """Why the extension cannot serve here, or None. Loads it: 10 ms, once, and of nobody but ourselves."""
    from sgl_kernels.kernels.cpu.loader import load

    return load()


def extension() -> Any:
    """torch.ops.sgl_kernels_cpu, loaded. Raises RuntimeError with the reason where it cannot be."""
    reason = absent()
    if reason is not None:
        raise RuntimeError(reason)
    return torch.ops.sgl_kernels_cpu
