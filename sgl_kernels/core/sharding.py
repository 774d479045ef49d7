"""How DTensor may split each op: along which dimensions every shard is computed by itself.

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
    rule = _RULES.get(op.name)
    return list(rule(args)) if rule is not None else []


def _parameter(p: Any, x: Any, d: int) -> int | bool | None:
    """The dimension of a modulation parameter that goes with dimension d of x; None: replicated; False: none fits."""
    if p.ndim == 2 and x.ndim > 2:  # (B, D)
        return 0 if d == 0 else None
    at = d - (x.ndim - p.ndim)
    if at < 0 or p.shape[at] == 1:
        return None
    return at if p.shape[at] == x.shape[d] else False


def _rows(lead: Sequence[int], parameters: Sequence[int], results: int = 1) -> Rule:
    """Rows are split: `lead` are arguments shaped as x, `parameters` modulate it; weights stay whole."""

    def rule(args: tuple[Any, ...]) -> Iterable[Split]:
        x = args[lead[0]]
        for d in range(x.ndim - 1):
            ins: dict[int, int | None] = {i: d for i in lead if args[i] is not None}
            found = {i: _parameter(args[i], x, d) for i in parameters if args[i] is not None}
            if not any(at is False for at in found.values()):
                yield [d] * results, ins | found

    return rule


def _batch(args: tuple[Any, ...]) -> Iterable[Split]:
    yield [0], {0: 0}


def _rope(heads: Sequence[int], table: int) -> Rule:
    def rule(args: tuple[Any, ...]) -> Iterable[Split]:
        cos = args[table]
        for d in (0, 1, 2):
            at: int | None = None
            if cos is not None and d == 1:
                at = cos.ndim - 2
            elif cos is not None and d == 0 and cos.ndim == 3 and cos.shape[0] > 1:
                at = 0
            yield [d] * len(heads), {**dict.fromkeys(heads, d), table: at, table + 1: at}

    return rule


def _divide(q: Any, k: Any, dim: int) -> bool:
    """Whether each shard of the query heads finds its key heads in its own shard."""
    count = (q.mesh if hasattr(q, "mesh") else q.device_mesh).size()  # a spec of DTensor, or one itself
    return q.shape[dim] % count == 0 and k.shape[dim] % count == 0


def _attention(lse: bool) -> Rule:
    def rule(args: tuple[Any, ...]) -> Iterable[Split]:
        q, k, _, mask, is_causal, _, _, left, right, _ = args

        def split(d: int, whole_keys: bool, mask_dim: int, lse_dim: int) -> Split:
            at = None if mask is None else mask_dim - (4 - mask.ndim)
            if at is not None and (at < 0 or mask.shape[at] == 1):
                at = None
            keys = None if whole_keys else d
            return [d, lse_dim] if lse else [d], {0: d, 1: keys, 2: keys, 3: at}

        yield split(0, False, 0, 0)
        if k.shape[2] == 1 or _divide(q, k, 2):
            yield split(2, k.shape[2] == 1, 1, 1)
        if not is_causal and left < 0 and right < 0:
            yield split(1, True, 2, 2)

    return rule


def _varlen(args: tuple[Any, ...]) -> Iterable[Split]:
    q, k = args[:2]
    if _divide(q, k, 1):
        yield [1], {0: 1, 1: 1, 2: 1}


def _linear(args: tuple[Any, ...]) -> Iterable[Split]:
    x = args[0]
    for d in range(x.ndim - 1):
        yield [d], {0: d}
    yield [x.ndim - 1], {1: 0, 2: 0}


_RULES: dict[str, Rule] = {
    "rms_norm": _rows((0,), ()),
    "layer_norm": _rows((0,), ()),
    "group_norm": _batch,
    "norm_scale_shift": _rows((0,), (1, 2)),
    "residual_gate_norm_scale_shift": _rows((0, 1), (2, 3, 4), 2),
    "scale_shift": _rows((0,), (1, 2)),
    "gate_residual": _rows((0, 1), (2,)),
    "silu_mul": _rows((0, 1), ()),
    "gelu_mul": _rows((0, 1), ()),
    "gelu_tanh": _rows((0,), ()),
    "apply_rope": _rope((0,), 1),
    "qk_norm_rope": _rope((0, 1), 4),
    "attention": _attention(False),
    "attention_lse": _attention(True),
    "attention_varlen": _varlen,
    "linear": _linear,
}
"""Ops that are not here (4 bits, and those of others) are computed whole on every rank."""
