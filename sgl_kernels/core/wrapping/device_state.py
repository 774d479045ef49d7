"""The state of the device around a call: the current device, and a graph that is being captured."""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernels.core.op import Run


def guarded(run: Run) -> Run:
    """`run` with the device of its first argument current, for backends that launch on the current one."""

    def on_device(*args: Any, **out: Any) -> Any:
        with torch.get_device_module(args[0].device.type).device(args[0].device):
            return run(*args, **out)

    return on_device


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured on the current stream."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
