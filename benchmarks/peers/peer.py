"""What a peer is: ways to run a call, or a reason why it has none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MODULES = {name: f"benchmarks.peers.adapters.{name}" for name in ("zentorch", "openvino", "onnxruntime")}
OPS = ("attention", "rms_norm", "layer_norm", "gelu_tanh")
"""What at least one peer has as an operation of its own."""


class NotOffered(Exception):  # noqa: N818 - not an error: an answer
    """The peer has no way to run this call; the message is the reason that stands in the table."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a call. `run` is what is timed; `result` gives what it wrote, in the layout of our op."""

    label: str
    run: Callable[[], object]
    result: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Broken:
    """A way to run a call that the peer turned down when it was built."""

    label: str
    why: str


class Peer(Protocol):
    """A library that is measured. Made in its own process, after the threads are pinned."""

    def versions(self) -> dict[str, str]:
        """Packages and their versions."""
        ...

    def note(self) -> str:
        """What a reader has to know about this peer on this machine; '' if nothing."""
        ...

    def variants(self, op: str, args: tuple[Any, ...]) -> list[Variant | Broken]:
        """Every sensible way to run `op`; the fastest one that is right counts. Raises NotOffered."""
        ...


def start(name: str, threads: int) -> Peer:
    """Import a peer and set it up for a number of threads. Raises whatever its import raises."""
    peer: Peer = importlib.import_module(MODULES[name]).start(threads)
    return peer


def attempt(label: str, build: Callable[[], Variant]) -> Variant | Broken:
    """`build()`, or why it could not be built."""
    try:
        return build()
    except Exception as error:
        return Broken(label, first_line(error))


def first_line(error: BaseException) -> str:
    """An error in one line of a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention call as peers spell it: (B, H, S, D) contiguous, and what else there is to it."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float

    @property
    def group(self) -> int:
        """Query heads to a key head."""
        return self.q.shape[1] // self.k.shape[1]

    def repeated(self) -> tuple[Tensor, Tensor]:
        """K and V with one head for each query head."""
        return tuple(t.repeat_interleave(self.group, 1).contiguous() for t in (self.k, self.v))  # type: ignore

    def additive(self) -> Tensor | None:
        """The mask as numbers to add, in the dtype of q."""
        if self.mask is None or self.mask.dtype is not torch.bool:
            return self.mask
        zero = torch.zeros(self.mask.shape, dtype=self.q.dtype)
        return zero.masked_fill_(~self.mask, float("-inf"))


def attention_of(args: tuple[Any, ...]) -> Attention:
    """The call behind canonical arguments. Raises NotOffered for what no peer is asked to do."""
    q, k, v, mask, causal, align, scale, left, right, softcap = args
    if left >= 0 or right >= 0 or softcap:
        raise NotOffered("windows and softcap are not compared")
    if causal and align != "top_left" and q.shape[1] != k.shape[1]:
        raise NotOffered("causal calls of unequal lengths are not compared")
    turned = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    return Attention(*turned, mask, causal, q.shape[-1] ** -0.5 if scale is None else scale)
