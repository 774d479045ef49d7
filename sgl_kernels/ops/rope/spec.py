"""What rope is: facts, validation, shapes and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import Rule, Split
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.rope import cases, reference


class RopeFacts(NamedTuple):
    """What selection may know of a rotary call."""

    dtype: torch.dtype
    tokens: int  # B * S
    heads: int
    kv_heads: int  # 0 for apply_rope
    head_dim: int
    rotary_dim: int  # 0 when nothing rotates
    batched_table: bool  # the table differs between the sequences of a batch
    table: torch.dtype | None
    interleaved: bool
    weight: torch.dtype | None
    needs_grad: bool


def rope_facts(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> RopeFacts:
    """Facts of a validated apply_rope."""
    b, s, h, d = x.shape
    return RopeFacts(
        x.dtype, b * s, h, 0, d, 2 * cos.shape[-1], cos.ndim == 3 and cos.shape[0] > 1, cos.dtype, interleaved, None,
        validate.needs_grad(x, cos, sin),
    )  # fmt: skip


def qk_facts(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    eps: float, interleaved: bool,
) -> RopeFacts:  # fmt: skip
    """Facts of a validated qk_norm_rope."""
    b, s, h, d = q.shape
    weight = q_weight if q_weight is not None else k_weight
    return RopeFacts(
        q.dtype, b * s, h, k.shape[2], d, 0 if cos is None else 2 * cos.shape[-1],
        cos is not None and cos.ndim == 3 and cos.shape[0] > 1, None if cos is None else cos.dtype, interleaved,
        None if weight is None else weight.dtype, validate.needs_grad(q, k, q_weight, k_weight, cos, sin),
    )  # fmt: skip


def _check_table(op: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    validate.tensor(op, "cos", cos)
    validate.tensor(op, "sin", sin)
    validate.same(op, cos=cos, sin=sin)
    validate.same_device(op, x=x, cos=cos)
    b, s, _, d = x.shape
    if cos.shape != sin.shape:
        raise ValueError(
            f"{op}: cos has shape {list(cos.shape)} but sin has {list(sin.shape)}; they must be equal"
        )
    lead = tuple(cos.shape[:-1])
    if lead not in ((s,), (b, s), (1, s)):
        raise ValueError(
            f"{op}: cos has shape {list(cos.shape)}, expected [{s}, R/2] or [{b}, {s}, R/2] for x of shape "
            f"{list(x.shape)} (batch, seqlen, heads, head_dim)"
        )
    if not 0 < 2 * cos.shape[-1] <= d:
        raise ValueError(
            f"{op}: cos has {cos.shape[-1]} columns, so {2 * cos.shape[-1]} channels would rotate, but head_dim is "
            f"{d}; the halves are not repeated: pass cos[..., : head_dim // 2]"
        )


def check_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Validate an apply_rope."""
    validate.tensor("apply_rope", "x", x, 4, "(batch, seqlen, heads, head_dim)")
    _check_table("apply_rope", x, cos, sin)


def check_qk(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    eps: float, interleaved: bool,
) -> None:  # fmt: skip
    """Validate a qk_norm_rope."""
    op = "qk_norm_rope"
    for name, value in (("q", q), ("k", k)):
        validate.tensor(op, name, value, 4, "(batch, seqlen, heads, head_dim)")
    validate.same(op, q=q, k=k)
    if (q.shape[0], q.shape[1], q.shape[3]) != (k.shape[0], k.shape[1], k.shape[3]):
        raise ValueError(
            f"{op}: q has shape {list(q.shape)} and k {list(k.shape)}; all but the number of heads must agree"
        )
    if q.shape[3] == 0:
        raise ValueError(f"{op}: head_dim is 0, expected at least 1")
    validate.positive(op, "eps", eps)
    validate.same_device(op, q=q, q_weight=q_weight, k_weight=k_weight)
    validate.vector(op, "q_weight", q_weight, q.shape[3], "head_dim")
    validate.vector(op, "k_weight", k_weight, q.shape[3], "head_dim")
    if (cos is None) != (sin is None):
        raise ValueError(
            f"{op}: {'sin' if cos is None else 'cos'} is given without the other; pass both or neither"
        )
    if cos is not None and sin is not None:
        _check_table(op, q, cos, sin)


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_two(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _like(q), _like(k)


def _cost_rope(x: Tensor, cos: Tensor, *rest: Any) -> Cost:
    return Cost(3 * x.numel(), 2 * x.numel() * x.element_size() + 2 * cos.numel() * cos.element_size())


def _cost_qk(q: Tensor, k: Tensor, *rest: Any) -> Cost:
    elements = q.numel() + k.numel()
    tables = sum(t.numel() * t.element_size() for t in rest[2:4] if isinstance(t, Tensor))
    return Cost(8 * elements, 2 * elements * q.element_size() + tables)


def _split(heads: Sequence[int], table: int) -> Rule:
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


APPLY_ROPE = registry.define(
    Op(
        name="apply_rope",
        splits=_split((0,), 1),
        schema="apply_rope(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor",
        facts=rope_facts,
        reference=reference.apply_rope,
        fake=_like,
        check=check_rope,
        cases=cases.rope,
        cost=_cost_rope,
        family="rope",
        doc="rotate pairs of channels by position",
        in_place=lambda x, *rest: ((("x", x),),),
    )
)
QK_NORM_ROPE = registry.define(
    Op(
        name="qk_norm_rope",
        splits=_split((0, 1), 4),
        schema="qk_norm_rope(Tensor q, Tensor k, Tensor? q_weight=None, Tensor? k_weight=None, Tensor? cos=None, "
        "Tensor? sin=None, float eps=1e-06, bool interleaved=False) -> (Tensor, Tensor)",
        facts=qk_facts,
        reference=reference.qk_norm_rope,
        fake=_like_two,
        check=check_qk,
        cases=cases.qk,
        cost=_cost_qk,
        family="rope",
        doc="RMS norm of q and k per head, then rope",
        in_place=lambda q, k, *rest: ((("q", q),), (("k", k),)),
    )
)
