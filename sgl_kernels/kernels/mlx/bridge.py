"""Tensors from torch to MLX and back: synchronised, without a copy where both sides allow it, one at a time.

torch and MLX keep queues of their own on one GPU, so memory may cross only when nobody is still writing it: torch is
waited for before, MLX after. MLX's graph is not safe to build from several threads, hence the lock.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LOCK = threading.RLock()


class NoMetalError(RuntimeError):
    """MLX is installed, but it cannot use a GPU here."""


def require_metal() -> None:
    """Raise NoMetalError unless MLX has its Metal back end."""
    import mlx.core as mx

    if not mx.metal.is_available():
        raise NoMetalError(
            "this build of MLX has no Metal back end; pip install mlx on macOS with Apple silicon"
        )


def cross(compute: Callable[..., Sequence[Any]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """compute(*arrays) on MLX arrays over the memory of `tensors`; its results as tensors of the same device."""
    import mlx.core as mx

    device = next(t.device for t in tensors if t is not None)
    with LOCK:
        if device.type == "mps":
            torch.mps.synchronize()
        outs = tuple(compute(*(None if t is None else _imported(t) for t in tensors)))
        mx.eval(*outs)
        return tuple(_exported(out, device) for out in outs)


def _imported(t: Tensor) -> Any:
    import mlx.core as mx

    t = t.detach().contiguous()
    if t.device.type == "mps" and not _shares_memory_in():
        t = t.cpu()
    return mx.from_dlpack(t)


def _exported(array: Any, device: torch.device) -> Tensor:
    try:
        t = torch.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError):  # a torch that does not know MLX's device
        t = _copied(array)
    return t if t.device == device else t.to(device)


def _copied(array: Any) -> Tensor:
    """Through the bytes, which every release can read; bfloat16 as the integers it is made of."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return _copied(array.view(mx.uint16)).view(torch.bfloat16)
    raw = memoryview(array)
    dtype = {"f": torch.float32, "e": torch.float16, "H": torch.uint16, "i": torch.int32}[raw.format]
    if array.size == 0:
        return torch.empty(tuple(array.shape), dtype=dtype)
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype).reshape(tuple(array.shape))


@functools.cache
def _shares_memory_in() -> bool:
    """Whether MLX takes torch's MPS memory by DLPack and reads the values that are there. Asked once."""
    import mlx.core as mx

    probe = torch.arange(8, device="mps", dtype=torch.float32)
    torch.mps.synchronize()
    try:
        return bool((mx.from_dlpack(probe) == mx.arange(8, dtype=mx.float32)).all().item())
    except Exception:  # a release that does not know the other's device raises one of several kinds
        return False
