"""SGLANG_USE_ROCM_CUDNN_BENCHMARK: MIOpen's search for the fastest convolutions, for a VAE's layers and nothing else.

torch reads one process-wide switch, torch.backends.cudnn.benchmark, when a convolution runs. It is on only while a
VAE's own convolution runs and then is what it was, also after an error. Graphs made by torch.compile do not change it.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling
from torch.nn.modules.conv import _ConvNd

from sgl_kernels.core.settings import Settings


class _Switch:
    """The process-wide switch, on while anybody is inside. Threads may overlap: the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.cudnn.benchmark
                torch.backends.cudnn.benchmark = True
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.cudnn.benchmark = self._before


_switch = _Switch()
_mine = threading.local()


def _before_conv(module: nn.Module, args: tuple[Any, ...]) -> None:
    if not is_compiling() and not getattr(_mine, "inside", False):
        _switch.enter()
        _mine.inside = True


def _after_conv(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Called after errors too, also those of other people's hooks that ran before ours did."""
    if not is_compiling() and getattr(_mine, "inside", False):
        _mine.inside = False
        _switch.leave()


def wanted(model: nn.Module, settings: Settings) -> bool:
    """Whether the flag asks for this model: on ROCm, a VAE by the name of its class."""
    name = type(model).__name__
    is_vae = name.startswith("Autoencoder") or "VAE" in name or "Vae" in name
    return settings.rocm.cudnn_benchmark and torch.version.hip is not None and is_vae


def tune_convolutions(model: nn.Module) -> int:
    """Let MIOpen search while a convolution of `model` runs. Returns how many layers that is. Undo: `release`.

    The hooks are plain functions, so copies and pickles of the model have them too.
    """
    release(model)
    convolutions = [m for m in model.modules() if isinstance(m, _ConvNd)]
    for module in convolutions:
        module.register_forward_pre_hook(_before_conv)
        module.register_forward_hook(_after_conv, always_call=True)
    return len(convolutions)


def release(model: nn.Module) -> None:
    """Take the hooks of `tune_convolutions` off. A model without them is left as it is."""
    for module in model.modules():
        if isinstance(module, _ConvNd):
            _drop(module._forward_pre_hooks, _before_conv)
            for key in _drop(module._forward_hooks, _after_conv):
                module._forward_hooks_always_called.pop(key, None)


def _drop(hooks: Any, function: Any) -> list[int]:
    ours = [key for key, hook in hooks.items() if hook is function]
    for key in ours:
        del hooks[key]
    return ours
