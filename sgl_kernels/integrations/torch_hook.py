"""A drop-in behind torch.nn.functional.scaled_dot_product_attention: process-wide, or only where a model asks.

The name in `torch.nn.functional` is replaced once, by a function that decides at each call who serves it:

* process-wide after `install()`, for every thread;
* inside `serving()` (a ContextVar: this thread or asyncio task only), which is what `sgl_kernels.apply` uses;
* torch, in all other cases, and always when the call comes from inside one of our own backends.

Code that took the function by name before (`from torch.nn.functional import scaled_dot_product_attention`)
keeps torch's, because its name is its own; so do torch's fused C++ paths such as TransformerEncoderLayer's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.attention.bias import CausalBias
from torch.overrides import _get_overloaded_args, has_torch_function

from sgl_kernels.integrations.holding import Exchange, Hold
from sgl_kernels.ops.attention import sdpa

TORCH_SDPA = sdpa.TORCH_SDPA

DEFAULT, OURS, TORCH, ONWARDS = "", "ours", "torch", "onwards"
WHO: ContextVar[str] = ContextVar("sgl_kernels_sdpa", default=DEFAULT)


class _State(Exchange):
    """The exchange of torch's name, and what its calls need to know."""

    def __init__(self) -> None:
        super().__init__(_patch, _unpatch)
        self.previous: Any = TORCH_SDPA  # what the name meant before us: torch's, or another library's patch
        self.lent = 0  # > 0 while the name is torch's for the length of some subclass's call
        self.tracing = 0  # > 0 while dynamo traces a module that asked for us; a ContextVar cannot be traced


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
    """torch's scaled_dot_product_attention, served by sgl_kernels where that was asked for.

    What the registry does not serve goes on to whatever the name meant before us, with the arguments as they came.
    """
    if is_dynamo_compiling():
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if isinstance(mask, CausalBias):  # asks whether it is the name in torch that was called; see _stock
            return CausalBias._dispatch(*args, **kwargs)
        if STATE.everywhere or STATE.tracing > 0:
            out = sdpa.served(*args, **kwargs)
            if out is not None:
                return out
        return STATE.previous(*args, **kwargs)  # type: ignore[no-any-return]
    who = WHO.get()
    if who is OURS or (who is DEFAULT and STATE.everywhere):
        token = WHO.set(TORCH)  # a backend that calls SDPA by this name must reach torch, not itself
        try:
            out = sdpa.served(*args, **kwargs)
        finally:
            WHO.reset(token)
        if out is not None:
            return out
    onwards = STATE.previous
    if onwards is TORCH_SDPA:
        return _stock(args, kwargs)
    # Another library's patch. It may have wrapped this function, and lead back here: then torch serves.
    if who is ONWARDS:
        return _stock(args, kwargs)
    guard = WHO.set(ONWARDS)
    try:
        return onwards(*args, **kwargs)  # type: ignore[no-any-return]
    finally:
        WHO.reset(guard)


def _stock(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """torch's own function. Where a subclass or a mode answers, the name in torch is torch's while it does: those
    that ask `func is torch.nn.functional.scaled_dot_product_attention` (CausalBias does) must recognise it."""
    values = (*args, *kwargs.values())
    if not has_torch_function(values) or not (_get_overloaded_args(values) or sdpa.is_mode_watching()):
        return TORCH_SDPA(*args, **kwargs)
    with STATE.lock:
        STATE.lent += 1
        if F.scaled_dot_product_attention is scaled_dot_product_attention:
            F.scaled_dot_product_attention = TORCH_SDPA
    try:
        return TORCH_SDPA(*args, **kwargs)
    finally:
        with STATE.lock:
            STATE.lent -= 1
            if STATE.lent == 0 and F.scaled_dot_product_attention is TORCH_SDPA:
                F.scaled_dot_product_attention = scaled_dot_product_attention
                STATE.settle()  # where it was uninstalled meanwhile


sdpa.be_scripted_as_torch(scaled_dot_product_attention)


def install() -> None:
    """Serve torch's SDPA from the registry in the whole process. Calling it again changes nothing."""
    STATE.install()


def uninstall() -> None:
    """Give torch its SDPA back. Models under `sgl_kernels.apply` keep theirs. Calling it again changes nothing."""
    STATE.uninstall()


def is_installed() -> bool:
    """Whether `install` is in force."""
    return STATE.everywhere


@contextmanager
def serving(ours: bool = True) -> Iterator[None]:
    """Serve SDPA from the registry inside a `with` block, in this thread or task only; False: leave it to torch."""
    holder = hold()
    token = WHO.set(OURS if ours else TORCH)
    try:
        yield
    finally:
        WHO.reset(token)
        holder.release()


def hold() -> Hold:
    """Keep the hook in place, serving nobody until a scope asks."""
    return STATE.hold()


def _patch() -> None:
    if F.scaled_dot_product_attention is scaled_dot_product_attention or STATE.lent:
        return
    # The floor keeps torch's own function by the name it finds on import; it must not find this one.
    importlib.import_module("sgl_kernels.backends.torch_native")
    STATE.previous = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = scaled_dot_product_attention


def _unpatch() -> None:
    if F.scaled_dot_product_attention is scaled_dot_product_attention:
        F.scaled_dot_product_attention = STATE.previous
        STATE.previous = TORCH_SDPA
    # Else another library patched over us and may still call this function: it goes on to `previous`.


STATE = _State()
