"""Attention in C++ on the CPU (csrc/cpu/attention): cpu is exact, sage_cpu multiplies bytes (LOSSY)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import default_scale, feature, shape
from sgl_kernels.backends._extension import absent, extension
from sgl_kernels.backends._measured import measured
from sgl_kernels.backends._order import ONLY_WHEN_NAMED, rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.requires import FLOATS, Requires
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.ops.attention.reference import sequences

CAUSAL = {"bottom_right": 1, "top_left": 2}
MASK_DTYPES = (torch.bool, torch.float32, torch.bfloat16, torch.float16)


def _op(name: str) -> Callable[..., Any]:
    return getattr(extension(), name).default  # type: ignore[no-any-return]


def _readable(mask: Tensor | None) -> Tensor | None:
    """The mask in a dtype the kernel reads; float64 becomes float32, where a finite bias stays finite."""
    if mask is None or mask.dtype in MASK_DTYPES:
        return mask
    narrow = mask.float()
    return narrow.masked_fill_(narrow.isneginf() & ~mask.isneginf(), torch.finfo(torch.float32).min)


def _load_attention(config: Any) -> Callable[..., Tensor]:
    attention, heads_first_attention = _op("attention"), _op("attention_heads_first")

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        causal = CAUSAL[causal_alignment] if is_causal else 0
        mask, factor = _readable(attn_mask), default_scale(q, scale)
        out: Tensor = attention(q, k, v, mask, causal, factor, window_left, window_right, softcap, False)[0]
        return out

    def heads_first(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None,
        like_query: bool,
    ) -> Tensor:  # fmt: skip
        """torch's layout (B, H, S, D), causal top-left; the result laid out as q, or else contiguous."""
        out: Tensor = heads_first_attention(
            q, k, v, _readable(attn_mask), 2 if is_causal else 0, default_scale(q, scale), like_query
        )
        return out

    run.heads_first = heads_first  # type: ignore[attr-defined]  # for torch's SDPA: no views, no copy at the end
    return run


def _load_attention_lse(config: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    attention = _op("attention")

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        causal = CAUSAL[causal_alignment] if is_causal else 0
        mask, factor = _readable(attn_mask), default_scale(q, scale)
        out, lse = attention(q, k, v, mask, causal, factor, window_left, window_right, softcap, True)
        return out, lse

    return run


def _load_attention_varlen(config: Any) -> Callable[..., Tensor]:
    attention = _op("attention_varlen")

    def run(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int,
        softcap: float,
    ) -> Tensor:  # fmt: skip
        try:
            out: Tensor = attention(
                q, k, v, cu_seqlens_q, cu_seqlens_k, min(max_seqlen_q, q.shape[0]),
                min(max_seqlen_k, k.shape[0]), int(is_causal),
                default_scale(q, scale), window_left, window_right, softcap,
            )  # fmt: skip
        except RuntimeError:  # the kernel reads cu_seqlens, which the op's check does not
            sequences(
                cu_seqlens_q, cu_seqlens_k, q, k, max_seqlen_q, max_seqlen_k
            )  # says which is wrong, if it is
            raise
        return out

    return run


def _load_sage(config: Any) -> Callable[..., Tensor]:
    sage_attention = _op("sage_attention")

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        causal = CAUSAL[causal_alignment] if is_causal else 0  # softcap was turned away
        mask, factor = _readable(attn_mask), default_scale(q, scale)
        out: Tensor = sage_attention(q, k, v, mask, causal, factor, window_left, window_right, True)
        return out

    return run


MOST_ROWS = 2**30
LONGEST = 2**28
MOST_BATCHES = 2**31
MOST_HEADS = 2**24
WIDEST_HEAD = 65536
"""The sizes that csrc/cpu/attention counts in 32 bits; beyond them it refuses the call."""


def _countable_heads(facts: Any) -> Rejected | None:
    """Of packed calls too: their declared maximum is cut to the tokens there are, so it is no size yet."""
    if facts.batch >= MOST_BATCHES or facts.heads >= MOST_HEADS:
        return shape(f"a batch of {facts.batch} with {facts.heads} heads; expected fewer than 2^31 and 2^24")
    widest = max(facts.head_dim, facts.head_dim_v)
    return shape(f"a head_dim of {widest}; expected at most {WIDEST_HEAD}") if widest > WIDEST_HEAD else None


def _countable(facts: Any) -> Rejected | None:
    """What the kernels' 32-bit indices cannot hold is another backend's."""
    longest = max(facts.sq, facts.sk)
    if longest >= LONGEST:
        return shape(f"a sequence of {longest} tokens; expected fewer than 2^28")
    if facts.sq * (facts.heads // max(1, facts.kv_heads)) >= MOST_ROWS:
        return shape(
            "the rows of all query heads that share a key head are 2^30 or more: split q along Sq or heads"
        )
    return _countable_heads(facts)


def _sage_rejects(facts: Any) -> Rejected | None:
    if facts.softcap:
        return feature("softcap is not supported on quantised scores")
    return _countable(facts)


FEW_ROWS = 8
"""At most this many query rows to a key head run as decoding, without packing."""
SMALL_FP32 = 64 * 64
SMALL_FP32_NARROW = 32 * 32
"""Fewer scores to a head than this, in fp32, and torch is faster: benchmarks/notes/cpu_attention.md, tiny shapes
(AVX-512, head_dim 64: 16 x 16 0.63 to 0.82x, 32 x 32 0.73 to 0.89x, 49 x 49 0.95x, 64 x 64 1.04 to 1.19x of torch;
head_dim 32: 33 x 33 1.31 to 1.37x; bf16 and fp16 win from 16 x 16 on)."""
SMALL_FP32_AVX2 = 24 * 24
"""The same with AVX2, where torch has half the registers too: 16 x 16 0.85 to 1.02x, 32 x 32 1.15 to 1.18x, 49 x 49
0.99 to 1.16x (the same notes, AVX2 on Zen 3)."""
ALWAYS = "avx512bf16"
"""Where ours wins from 16 x 16 scores and 8 heads on (1.17x; 49 x 49 1.8 to 2.65x) and is level below (0.95 to 0.98x of
two heads' 6 us, while the floor's own call takes longer): the same notes, Zen 5, whose MKL runs its AVX2 code."""

_place = rank("cpu", "attention")


def dense_rank(facts: Any, device: Device) -> int:
    """The order table's place, but behind torch for the few shapes where torch was measured to be faster."""
    rows = facts.sq * max(1, facts.heads // max(1, facts.kv_heads))
    small = SMALL_FP32 if facts.head_dim >= 64 else SMALL_FP32_NARROW
    if device.arch == "avx2":
        small = SMALL_FP32_AVX2
    if device.arch == ALWAYS:
        return _place(facts, device)
    if facts.dtype is torch.float32 and rows > FEW_ROWS and facts.sq * facts.sk < small:
        return ONLY_WHEN_NAMED
    return _place(facts, device)


CPU = Requires(platforms=frozenset({"cpu"}), dtypes=FLOATS)

IMPLEMENTATIONS = (
    *(
        Implementation(
            op=op,
            backend="cpu",
            load=load,
            requires=CPU,
            absent=absent,
            rejects=_countable_heads if op == "attention_varlen" else _countable,
            rank=measured("cpu", op, placed),
            doc="blocked online softmax in C++: AVX-512 (BF16 dot on AMD), AVX2, SSE2 or NEON",
        )
        for op, load, placed in (
            ("attention", _load_attention, dense_rank),
            (
                "attention_lse",
                _load_attention_lse,
                _place,
            ),  # torch's lse is a chunked composite: never faster
            ("attention_varlen", _load_attention_varlen, _place),
        )
    ),
    Implementation(
        op="attention",
        backend="sage_cpu",
        load=_load_sage,
        requires=CPU,
        absent=absent,
        rejects=_sage_rejects,
        rank=rank("sage_cpu", "attention"),
        fidelity=Fidelity.LOSSY,
        doc="int8 Q, K, weights and V in C++ (vpdpbusd): K smoothed, one scale per token",
    ),
)
