"""How DTensor may split an op: along which dimensions every shard is computed by itself. Each op states its own.

An op without a rule (4 bits, and those of others) is computed whole on every rank.
Rules are given to DTensor when the first of its tensors is met; nothing of torch.distributed is imported before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .op import Op
from .registry import registry

Split = tuple[Sequence[int | None], dict[int, int | None]]
"""One way to split: the dimension of each result, and of each tensor argument that is split; the rest is replicated."""
Rule = Callable[[tuple[Any, ...]], Iterable[Split]]

_lock = threading.Lock()
_done: set[str] = set()


def prepare() -> bool:
    """Register the rules of every op, where DTensor is imported and does not have them."""
    if "torch.distributed.tensor" in sys.modules and len(_done) != len(registry.ops()):
        with _lock:
            for op in map(registry.op, registry.ops()):
                if op.name not in _done:
                    _register(op)
                    _done.add(op.name)
    return True


# Runs while dynamo traces, and leaves nothing in the graph: torch.compiler.assume_constant_result, which would import
# all of dynamo here and now, sets this.
prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_dtensor(t: Any) -> bool:
    """Whether t is a DTensor, asked without importing it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def _register(op: Op) -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    results = op.schema.rpartition("->")[2].count("Tensor")

    def shardings(*given: Any, **keywords: Any) -> list[Any]:
        keywords.pop("backend", None)
        args = op.canonical(*given, **keywords)
        tensors = [a.is_tensor and v is not None for a, v in zip(op.arguments, args, strict=True)]
        found: list[Any] = []
        for outs, ins in [([None] * results, {}), *splits(op, args)]:
            placed = [
                None if not t else Replicate() if (d := ins.get(i)) is None else Shard(d)
                for i, t in enumerate(tensors)
            ]
            found.append(([Replicate() if d is None else Shard(d) for d in outs], placed))
        return found

    register_sharding(getattr(torch.ops.sgl_kernels, op.name).default)(shardings)


def splits(op: Op, args: tuple[Any, ...]) -> list[Split]:
    """Every way to split a call but for the one that splits nothing. Arguments need only shape, ndim and mesh."""
    return list(op.splits(args)) if op.splits is not None else []


def _parameter(p: Any, x: Any, d: int) -> int | bool | None:
    """The dimension of a modulation parameter that goes with dimension d of x; None: replicated; False: none fits."""
    if p.ndim == 2 and x.ndim > 2:  # (B, D)
        return 0 if d == 0 else None
    at = d - (x.ndim - p.ndim)
    if at < 0 or p.shape[at] == 1:
        return None
    return at if p.shape[at] == x.shape[d] else False


def rows(lead: Sequence[int], parameters: Sequence[int], results: int = 1) -> Rule:
    """Rows are split: `lead` are arguments shaped as x, `parameters` modulate it; weights stay whole."""

    def rule(args: tuple[Any, ...]) -> Iterable[Split]:
        x = args[lead[0]]
        for d in range(x.ndim - 1):
            ins: dict[int, int | None] = {i: d for i in lead if args[i] is not None}
            found = {i: _parameter(args[i], x, d) for i in parameters if args[i] is not None}
            if not any(at is False for at in found.values()):
                yield [d] * results, ins | found

    return rule


def batch(args: tuple[Any, ...]) -> Iterable[Split]:
    """Only the first dimension of the first argument is split."""
    yield [0], {0: 0}
