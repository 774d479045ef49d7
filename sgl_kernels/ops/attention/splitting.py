"""How DTensor may split attention: by batch, by heads that keep their key heads, by queries where none is ordered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sgl_kernels.core.sharding import Rule, Split


def _divide(q: Any, k: Any, dim: int) -> bool:
    """Whether each shard of the query heads finds its key heads in its own shard."""
    count = (q.mesh if hasattr(q, "mesh") else q.device_mesh).size()  # a spec of DTensor, or one itself
    return q.shape[dim] % count == 0 and k.shape[dim] % count == 0


def dense(lse: bool) -> Rule:
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


def varlen(args: tuple[Any, ...]) -> Iterable[Split]:
    q, k = args[:2]
    if _divide(q, k, 1):
        yield [1], {0: 1, 1: 1, 2: 1}
