"""FlashAttention's three generations: fa2, fa3 and fa4, each with its own signature and window encoding.

Positional orders differ (softmax_scale is 5th in FA2, 4th in FA3, 6th in FA4), so keywords only. Signatures read
from flash-attn 2.8.4, the hopper folder of flash-attention (flash_attn_3), and flash-attn-4 4.0.0b36.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sgl_kernels.backends._attention import (
    feature,
    last_dim_contiguous,
    rejects,
    rejects_before_ampere,
    shape,
    zero_outside,
)
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import HALF, Requires
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.ops.attention.reference import sequences

Dense = Callable[..., Any]


def dense_adapter(call: Callable[..., Any], with_lse: bool) -> Dense:
    """An adapter from the op's arguments to `call(q, k, v, scale, causal, window, softcap)`."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Any:  # fmt: skip
        # masks were turned away, and so were top-left calls of unequal lengths: FlashAttention is bottom-right
        q, k, v = last_dim_contiguous(q, k, v)
        window = (min(window_left, q.shape[1] + k.shape[1]), min(window_right, q.shape[1] + k.shape[1]))
        found = call(q, k, v, scale, is_causal, window, softcap)
        return (found[0], found[1]) if with_lse else (found[0] if isinstance(found, tuple) else found)

    return run


def varlen_adapter(call: Callable[..., Any]) -> Callable[..., Tensor]:
    def run(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, is_causal: bool, scale: float | None, window_left: int, window_right: int,
        softcap: float,
    ) -> Tensor:  # fmt: skip
        q, k, v = last_dim_contiguous(q, k, v)
        if cu_seqlens_q.device.type == "cpu":
            sequences(cu_seqlens_q, cu_seqlens_k, q, k, max_seqlen_q, max_seqlen_k)
        longest_q, longest_k = min(max_seqlen_q, q.shape[0]), min(max_seqlen_k, k.shape[0])
        window = (min(window_left, q.shape[0] + k.shape[0]), min(window_right, q.shape[0] + k.shape[0]))
        found = call(
            q, k, v, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, scale, is_causal, window, softcap
        )
        return zero_outside(found[0] if isinstance(found, tuple) else found, cu_seqlens_q, longest_q)

    return run


def _same_window(window: tuple[int, int]) -> tuple[int, int]:
    return window


def _open_window(window: tuple[int, int]) -> tuple[int | None, int | None]:
    """FA4 writes an unlimited side as None, the others as -1."""
    return tuple(None if side < 0 else side for side in window)  # type: ignore[return-value]


def adapter(
    op: str,
    dense: Callable[..., Any],
    varlen: Callable[..., Any],
    *,
    lse_flag: str = "return_attn_probs",
    window_form: Callable[[tuple[int, int]], Any] = _same_window,
) -> Callable[..., Any]:
    """`run` for one op around a generation's two functions, which differ in the lse flag and the window's form."""
    if op == "attention_varlen":
        return varlen_adapter(
            lambda q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, softcap: varlen(
                q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=max_q, max_seqlen_k=max_k,
                softmax_scale=scale, causal=causal, window_size=window_form(window), softcap=softcap,
            )
        )  # fmt: skip
    lse = op == "attention_lse"
    return dense_adapter(
        lambda q, k, v, scale, causal, window, softcap: dense(
            q, k, v, softmax_scale=scale, causal=causal, window_size=window_form(window), softcap=softcap,
            **{lse_flag: lse},
        ),
        lse,
    )  # fmt: skip


def _load_fa2(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        # flash_attn.flash_attn_interface is FA2's alone: FA4 shares the flash_attn namespace
        from flash_attn.flash_attn_interface import flash_attn_func, flash_attn_varlen_func

        return adapter(op, flash_attn_func, flash_attn_varlen_func)

    return load


def _load_fa3(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        from flash_attn_interface import flash_attn_func, flash_attn_varlen_func

        return adapter(op, flash_attn_func, flash_attn_varlen_func)

    return load


def _load_fa4(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

        return adapter(
            op, flash_attn_func, flash_attn_varlen_func, lse_flag="return_lse", window_form=_open_window
        )

    return load


def _implementations(
    backend: str,
    load: Callable[[str], Callable[[Any], Callable[..., Any]]],
    requires: Requires,
    doc: str,
    head_dims: Callable[[int], bool],
    head_dim_text: str,
    rejects_on: Callable[[Any, Device], Rejected | None] = rejects_before_ampere,
) -> tuple[Implementation, ...]:
    return tuple(
        Implementation(
            op=op,
            backend=backend,
            load=load(op),
            requires=requires,
            # rows without keys come out right by FlashAttention's own tests: zeros, and an lse of -inf
            rejects=rejects(
                causal=("square", "bottom_right"),
                window=True,
                softcap=True,
                head_dims=head_dims,
                head_dim_text=head_dim_text,
            ),
            rejects_on=rejects_on,
            bugs=bugs_of(backend, op),
            rank=rank(backend, "attention"),
            proof="contract",
            doc=doc,
        )
        for op in ("attention", "attention_lse", "attention_varlen")
    )


def _fa2_rejects_on(facts: Any, device: Device) -> Rejected | None:
    if device.platform == "rocm" and facts.softcap:
        return feature("FlashAttention 2's ROCm build takes a softcap and ignores it")
    return rejects_before_ampere(facts, device)


def _fa4_rejects_on(facts: Any, device: Device) -> Rejected | None:
    """Head sizes of 4.0.0b36: to 256 on Hopper; to 128, or 256 without softcap, on Blackwell; to 128 on sm12x."""
    if facts.head_dim <= 128 or device.capability is None or device.capability[0] == 9:
        return None
    if device.capability[0] in (10, 11) and facts.head_dim == 256:
        return feature("softcap is not supported at head_dim 256") if facts.softcap else None
    only = "at most 128" if device.capability[0] == 12 else "at most 128, or 256"
    return shape(f"head_dim is {facts.head_dim}, needs {only} on {device.arch}")


def _multiple_of_8(limit: int) -> Callable[[int], bool]:
    return lambda d: d % 8 == 0 and d <= limit


IMPLEMENTATIONS = (
    *_implementations(
        "fa2",
        _load_fa2,
        Requires(
            platforms=frozenset({"cuda", "rocm"}),
            packages=("flash-attn>=2.6,<3",),
            dtypes=HALF,
            install="pip install --no-build-isolation 'flash-attn>=2.8,<3'",
        ),
        "FlashAttention 2, from the package flash-attn",
        _multiple_of_8(256),
        "a multiple of 8, at most 256",
        _fa2_rejects_on,
    ),
    *_implementations(
        "fa3",
        _load_fa3,
        Requires(
            platforms=frozenset({"cuda"}),
            min_capability=(9, 0),
            max_capability=(9, 0),
            packages=("flash_attn_interface",),
            dtypes=HALF,
            install="build the hopper folder of Dao-AILab/flash-attention: python setup.py install",
        ),
        "FlashAttention 3 for Hopper, built from source (it is not on PyPI)",
        _multiple_of_8(256),
        "a multiple of 8, at most 256",
    ),
    *_implementations(
        "fa4",
        _load_fa4,
        Requires(
            platforms=frozenset({"cuda"}),
            min_capability=(9, 0),
            max_capability=(12, 1),
            packages=("flash-attn-4>=4.0.0b36",),  # pre-releases whose signature moves: the one that was read
            dtypes=HALF,
            install="pip install --pre flash-attn-4",
        ),
        "FlashAttention 4 (CuTe DSL) for Hopper and Blackwell",
        _multiple_of_8(256),
        "a multiple of 8, at most 256",
        _fa4_rejects_on,
    ),
)
