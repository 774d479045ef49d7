"""What attention is: facts, validation, shapes and cost of the three attention ops."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.attention import cases, reference, sampling, splitting

ALIGNMENTS = ("bottom_right", "top_left")
_DENSE = (
    "(Tensor q, Tensor k, Tensor v, Tensor? attn_mask=None, bool is_causal=False, "
    "str causal_alignment='bottom_right', float? scale=None, int window_left=-1, int window_right=-1, "
    "float softcap=0.0)"
)
_VARLEN = (
    "attention_varlen(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "int max_seqlen_q, int max_seqlen_k, bool is_causal=False, float? scale=None, int window_left=-1, "
    "int window_right=-1, float softcap=0.0) -> Tensor"
)


class AttentionFacts(NamedTuple):
    """What selection may know of a dense attention call."""

    dtype: torch.dtype
    batch: int
    sq: int
    sk: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    causal: str  # "" | "square" (Sq == Sk) | "bottom_right" | "top_left"
    mask: str  # "" | "bool" | "float"
    mask_kind: (
        str  # "" | "key_padding" (same for every query and head) | "per_query" (same for every head) | "full"
    )
    window: tuple[int, int] | None
    softcap: bool
    has_scale: bool
    needs_grad: bool

    @property
    def gqa(self) -> bool:
        """Several query heads share one key head."""
        return self.heads != self.kv_heads


class VarlenFacts(NamedTuple):
    """What selection may know of a packed attention call."""

    dtype: torch.dtype
    batch: int
    sq: int  # max_seqlen_q
    sk: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    causal: str  # "" | "bottom_right"
    window: tuple[int, int] | None
    softcap: bool
    has_scale: bool
    needs_grad: bool

    @property
    def gqa(self) -> bool:
        """Several query heads share one key head."""
        return self.heads != self.kv_heads


DECODE_MAX_QUERIES = 8
SHORT_MAX_KEYS = 512
LONG_MIN_KEYS = 8192


def shape_class(facts: AttentionFacts | VarlenFacts) -> str:
    """The class a rule's `shape` names: decode (Sq <= 8), short (Sk <= 512), long (Sk >= 8192) or medium.

    The bounds are the ones that separate regimes, not models: up to 8 queries a call is bound by reading
    keys and values, up to 512 keys (text, image tokens of small latents) launch cost rules, from 8192 keys
    (video) compute does. `decode` is looked at first.
    """
    if facts.sq <= DECODE_MAX_QUERIES:
        return "decode"
    if facts.sk <= SHORT_MAX_KEYS:
        return "short"
    return "long" if facts.sk >= LONG_MIN_KEYS else "medium"


def _mask_kind(mask: Tensor | None) -> str:
    if mask is None:
        return ""
    shape = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if shape[1] == 1 and shape[2] == 1:
        return "key_padding"
    return "per_query" if shape[1] == 1 else "full"


def dense_facts(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> AttentionFacts:  # fmt: skip
    """Facts of a validated dense call."""
    batch, sq, heads, head_dim = q.shape
    _, sk, kv_heads, head_dim_v = v.shape
    causal = "" if not is_causal else ("square" if sq == sk else causal_alignment)
    mask = "" if attn_mask is None else ("bool" if attn_mask.dtype is torch.bool else "float")
    window = None if window_left < 0 and window_right < 0 else (window_left, window_right)
    return AttentionFacts(
        q.dtype, batch, sq, sk, heads, kv_heads, head_dim, head_dim_v, causal, mask, _mask_kind(attn_mask),
        window, softcap > 0, scale is not None, validate.needs_grad(q, k, v, attn_mask),
    )  # fmt: skip


def varlen_facts(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int, softcap: float,
) -> VarlenFacts:  # fmt: skip
    """Facts of a validated packed call."""
    _, heads, head_dim = q.shape
    _, kv_heads, head_dim_v = v.shape
    window = None if window_left < 0 and window_right < 0 else (window_left, window_right)
    return VarlenFacts(
        q.dtype, cu_seqlens_q.numel() - 1, max_seqlen_q, max_seqlen_k, heads, kv_heads, head_dim, head_dim_v,
        "bottom_right" if is_causal else "", window, softcap > 0, scale is not None, validate.needs_grad(q, k, v),
    )  # fmt: skip


def _check_heads(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    validate.same(op, q=q, k=k, v=v)
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"{op}: k has shape {list(k.shape)} and v {list(v.shape)}; all but the last dimension must agree"
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{op}: q has head_dim {q.shape[-1]} but k has {k.shape[-1]}; they must be equal")
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if (kv_heads == 0 and heads) or (kv_heads and heads % kv_heads):
        raise ValueError(
            f"{op}: q has {heads} heads and k has {kv_heads}; the first must be a multiple of the second (GQA). "
            "The layout is (batch, seqlen, heads, head_dim): transpose(1, 2) a (batch, heads, seqlen, head_dim)"
        )
    if q.shape[-1] == 0:
        raise ValueError(f"{op}: head_dim is 0, expected at least 1")


def _check_numbers(op: str, scale: float | None, left: int, right: int, softcap: float) -> None:
    if scale is not None and (not isinstance(scale, int | float) or not abs(scale) < float("inf")):
        raise ValueError(f"{op}: scale is {scale!r}, expected a finite number or None for head_dim ** -0.5")
    if left < -1 or right < -1:
        raise ValueError(
            f"{op}: window_size is ({left}, {right}), expected -1 (unlimited) or more on each side"
        )
    validate.positive(op, "softcap", softcap)


def check_dense(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> None:  # fmt: skip
    """Validate a dense call."""
    op, layout = "attention", "(batch, seqlen, heads, head_dim)"
    for name, value in (("q", q), ("k", k), ("v", v)):
        validate.tensor(op, name, value, 4, layout)
    _check_heads(op, q, k, v)
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"{op}: q has batch {q.shape[0]} but k has {k.shape[0]}; expand one of them")
    validate.choice(op, "causal_alignment", causal_alignment, ALIGNMENTS)
    _check_numbers(op, scale, window_left, window_right, softcap)
    if attn_mask is not None:
        _check_mask(op, attn_mask, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
        validate.same_device(op, q=q, attn_mask=attn_mask)


def _check_mask(op: str, mask: object, full: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: attn_mask is {type(mask).__name__}, expected a torch.Tensor or None")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"{op}: attn_mask has dtype {validate.short(mask.dtype)}, expected bool (True = attend) or a float "
            "to add to the scores; convert 0/1 integers with .bool()"
        )
    shape = tuple(mask.shape)
    padded = (1,) * (4 - len(shape)) + shape
    if len(shape) > 4 or any(have not in (1, want) for have, want in zip(padded, full, strict=True)):
        hint = ""
        if shape == (full[0], full[3]):
            hint = "; a (batch, keys) padding mask is written mask[:, None, None, :]"
        raise ValueError(
            f"{op}: attn_mask has shape {list(shape)}, which does not broadcast to "
            f"(batch, heads, queries, keys) = {list(full)}{hint}"
        )


def check_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int, softcap: float,
) -> None:  # fmt: skip
    """Validate a packed call. The contents of cu_seqlens are checked by the CPU backends only: no device sync."""
    op, layout = "attention_varlen", "(total_tokens, heads, head_dim)"
    for name, value in (("q", q), ("k", k), ("v", v)):
        validate.tensor(op, name, value, 3, layout)
    _check_heads(op, q, k, v)
    for name, value in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if (
            not isinstance(value, Tensor)
            or value.dtype is not torch.int32
            or value.ndim != 1
            or not value.numel()
        ):
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise ValueError(f"{op}: {name} is {found}, expected int32 of shape [batch + 1], starting with 0")
    if cu_seqlens_q.numel() != cu_seqlens_k.numel():
        raise ValueError(
            f"{op}: cu_seqlens_q has {cu_seqlens_q.numel()} entries and cu_seqlens_k {cu_seqlens_k.numel()}; "
            "both must have batch + 1"
        )
    validate.same_device(op, q=q, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    for name, number in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{op}: {name} is {number!r}, expected an int, 0 or more")
    _check_numbers(op, scale, window_left, window_right, softcap)


def _spelled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """window_size, as the front doors take it, is two arguments of the schema."""
    if "window_size" in kwargs:
        window = kwargs.pop("window_size")
        kwargs["window_left"], kwargs["window_right"] = (-1, -1) if window is None else window
    return args, kwargs


def _settled(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A mask of one dimension, or of none, is one row for all queries: (Sk,) -> (1, Sk)."""
    mask = args[3]
    if mask is None or mask.ndim > 1:
        return args
    return (*args[:3], mask.expand(1, args[1].shape[1]), *args[4:])


def _out(q: Tensor, v: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _fake_dense(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return _out(q, v)


def _fake_lse(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _out(q, v), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)


def visible_pairs(sq: int, sk: int, causal: str, window: tuple[int, int] | None) -> int:
    """How many (query, key) pairs a causal flag and a window leave."""
    if not causal and window is None:
        return sq * sk
    total = 0
    left, right = window if window is not None else (-1, -1)
    for i in range(sq):
        low, high = 0, sk - 1
        if causal:
            high = min(high, i if causal == "top_left" else i + sk - sq)
        if left >= 0:
            low = max(low, i + sk - sq - left)
        if right >= 0:
            high = min(high, i + sk - sq + right)
        total += max(0, high - low + 1)
    return total


def cost_dense(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Cost:
    """Two products over the visible pairs; each tensor once."""
    f = dense_facts(q, k, v, *rest)
    pairs = visible_pairs(f.sq, f.sk, f.causal, f.window)
    flops = 2 * f.batch * f.heads * pairs * (f.head_dim + f.head_dim_v)
    moved = q.numel() + k.numel() + v.numel() + q.numel() // f.head_dim * f.head_dim_v
    return Cost(flops, moved * q.element_size())


def cost_varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *rest: Any) -> Cost:
    """As dense, for the average lengths (the contents of cu_seqlens are not read)."""
    batch = max(1, cu_q.numel() - 1)
    pairs = q.shape[0] * k.shape[0] // batch
    flops = 2 * q.shape[1] * pairs * (q.shape[2] + v.shape[2])
    return Cost(flops, (2 * q.numel() + k.numel() + v.numel()) * q.element_size())


ATTENTION = registry.define(
    Op(
        name="attention",
        splits=splitting.dense(False),
        schema=f"attention{_DENSE} -> Tensor",
        facts=dense_facts,
        reference=reference.attention,
        fake=_fake_dense,
        check=check_dense,
        cases=cases.dense,
        settled=_settled,
        cost=cost_dense,
        autocast=("q", "k", "v"),
        family="attention",
        shape_class=shape_class,
        spelled=_spelled,
        sampled=sampling.sampled,
        doc="softmax(q k^T * scale + mask) v",
    )
)
ATTENTION_LSE = registry.define(
    Op(
        name="attention_lse",
        splits=splitting.dense(True),
        schema=f"attention_lse{_DENSE} -> (Tensor, Tensor)",
        facts=dense_facts,
        reference=reference.attention_lse,
        fake=_fake_lse,
        check=check_dense,
        cases=cases.lse,
        settled=_settled,
        cost=cost_dense,
        autocast=("q", "k", "v"),
        family="attention",
        shape_class=shape_class,
        spelled=_spelled,
        sampled=sampling.sampled_lse,
        doc="attention and the natural log-sum-exp of its scores",
    )
)
ATTENTION_VARLEN = registry.define(
    Op(
        name="attention_varlen",
        splits=splitting.varlen,
        schema=_VARLEN,
        facts=varlen_facts,
        reference=reference.attention_varlen,
        fake=_fake_dense,
        check=check_varlen,
        cases=cases.varlen,
        cost=cost_varlen,
        autocast=("q", "k", "v"),
        family="attention",
        shape_class=shape_class,
        spelled=_spelled,
        sampled=sampling.sampled_varlen,
        reads_values=True,
        doc="attention over sequences packed end to end",
    )
)
