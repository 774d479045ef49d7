"""Workloads of attention: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
INF = float("-inf")


def _qkv(
    b: int, sq: int, sk: int, h: int, d: int, hk: int | None = None, dv: int | None = None, strides: str = "contiguous",
    scale: float = 1.0, fill: str = "normal",
) -> tuple[TensorSpec, ...]:  # fmt: skip
    hk, dv = hk or h, dv or d
    return (
        T((b, sq, h, d), strides=strides, scale=scale, fill=fill),
        T((b, sk, hk, d), strides=strides, scale=scale),
        T((b, sk, hk, dv), strides=strides),
    )


def _call(
    qkv: tuple[TensorSpec, ...], mask: Any = None, causal: bool = False, align: str = "bottom_right",
    scale: float | None = None, left: int = -1, right: int = -1, softcap: float = 0.0,
) -> tuple[Any, ...]:  # fmt: skip
    return (*qkv, mask, causal, align, scale, left, right, softcap)


def dense() -> tuple[Case, ...]:
    """Cases of `attention`."""
    return (*_edge_cases(), *_model_cases())


def lse() -> tuple[Case, ...]:
    """Cases of `attention_lse`: the edge cases again, since the lse has edges of its own."""
    return _edge_cases()


def _edge_cases() -> tuple[Case, ...]:
    base = _qkv(2, 33, 33, 4, 64)
    cross = _qkv(2, 17, 45, 4, 32)
    short = _qkv(1, 45, 17, 2, 32)
    none_visible = (True,) * 20 + (False,) * 20
    rows: list[tuple[str, tuple[Any, ...]]] = [
        ("plain", _call(base)),
        ("scale", _call(base, scale=0.3)),
        ("scale_negative", _call(base, scale=-0.2)),
        ("scale_zero", _call(base, scale=0.0)),
        ("causal_square", _call(base, causal=True)),
        ("causal_bottom_right", _call(cross, causal=True)),
        ("causal_top_left", _call(cross, causal=True, align="top_left")),
        ("causal_more_queries", _call(short, causal=True)),  # the first rows see nothing
        ("causal_top_left_more_queries", _call(short, causal=True, align="top_left")),
        ("cross", _call(cross)),
        ("mask_bool", _call(cross, T((2, 4, 17, 45), fill="bool"))),
        ("mask_bool_heads", _call(cross, T((1, 4, 1, 45), fill="bool"))),
        ("mask_float", _call(cross, T((2, 1, 17, 45)))),
        ("mask_float32", _call(cross, T((17, 45), dtype=torch.float32))),
        ("mask_queries", _call(cross, T((2, 1, 17, 1), fill="bool"))),
        ("mask_padding", _call(cross, T((2, 1, 1, 45), fill="bool"))),
        ("mask_and_causal", _call(base, T((2, 1, 1, 33), fill="bool"), causal=True)),
        ("mask_strided", _call(cross, T((2, 4, 17, 45), strides="transposed", dims=(2, 3), fill="bool"))),
        (
            "rows_without_keys",
            _call(_qkv(1, 2, 20, 2, 16), T((1, 1, 2, 20), torch.bool, "values", values=none_visible)),
        ),
        (
            "mask_minus_inf",
            _call(_qkv(1, 3, 5, 2, 16), T((1, 1, 1, 5), fill="values", values=(0, INF, 0, INF, 0))),
        ),
        ("gqa", _call(_qkv(2, 29, 29, 8, 64, hk=2), causal=True)),
        ("mqa", _call(_qkv(1, 29, 40, 6, 32, hk=1))),
        ("gqa_mask", _call(_qkv(2, 9, 21, 4, 32, hk=2), T((2, 4, 9, 21), fill="bool"))),
        ("window", _call(base, left=5, right=3)),
        ("window_left", _call(cross, left=7)),
        ("window_causal", _call(base, causal=True, left=4)),
        ("softcap", _call(base, softcap=5.0)),
        ("softcap_mask_causal", _call(base, T((2, 4, 33, 33)), causal=True, softcap=3.0)),
        ("head_dim_v", _call(_qkv(2, 19, 23, 2, 64, dv=32))),
        ("head_dim_v_larger", _call(_qkv(1, 19, 23, 2, 32, dv=80))),
        *((f"head_dim_{d}", _call(_qkv(1, 21, 37, 2, d))) for d in (16, 24, 40, 72, 80, 96, 128, 192, 256)),
        ("head_dim_odd", _call(_qkv(1, 9, 11, 2, 37))),
        ("bhsd_strides", _call(_qkv(2, 33, 33, 4, 64, strides="transposed"))),
        ("padded_strides", _call(_qkv(2, 33, 33, 4, 64, strides="padded"), causal=True)),
        ("decode", _call(_qkv(2, 1, 130, 8, 64, hk=2))),
        ("decode_causal", _call(_qkv(1, 3, 70, 4, 128, hk=4), causal=True)),
        ("one_key", _call(_qkv(2, 5, 1, 2, 32))),
        ("one_by_one", _call(_qkv(1, 1, 1, 1, 16))),
        ("no_queries", _call(_qkv(2, 0, 7, 2, 32))),
        ("no_keys", _call(_qkv(2, 5, 0, 2, 32))),
        ("no_batch", _call(_qkv(0, 5, 5, 2, 32))),
        ("large_scores", _call(_qkv(1, 40, 40, 2, 64, scale=6.0))),
        ("long", _call(_qkv(1, 300, 517, 2, 64))),
        ("long_causal", _call(_qkv(1, 390, 390, 2, 40), causal=True)),
    ]
    smoke = {
        "plain",
        "causal_bottom_right",
        "mask_bool",
        "mask_float",
        "gqa",
        "rows_without_keys",
        "bhsd_strides",
    }
    return tuple(Case(name, args, SMOKE if name in smoke else frozenset({"test"})) for name, args in rows)


def _model_cases() -> tuple[Case, ...]:
    def case(name: str, args: tuple[Any, ...], note: str = "") -> Case:
        return Case(name, args, BENCH, note=note)

    return (
        case("dit1k.s1024h24d64", _call(_qkv(1, 1024, 1024, 24, 64))),
        case("flux.s4096h24d128", _call(_qkv(1, 4096, 4096, 24, 128)), "image tokens of Flux at 1024x1024"),
        case("window.s256h16d72", _call(_qkv(2, 256, 256, 16, 72))),
        case("wan.s2048h12d128", _call(_qkv(1, 2048, 2048, 12, 128)), "Wan 1.3B, a short clip"),
        case("cross.s4096k512h24d128", _call(_qkv(1, 4096, 512, 24, 128)), "text cross-attention"),
        case("small.s128h12d32", _call(_qkv(8, 128, 128, 12, 32)), "MiniLM"),
        case("bhsd.s1024h24d64", _call(_qkv(1, 1024, 1024, 24, 64, strides="transposed"))),
        case(
            "qwen.s1216h24d128.padding", _call(_qkv(1, 1216, 1216, 24, 128), T((1, 1, 1, 1216), fill="bool"))
        ),
        case("sd3.s1178h24d64", _call(_qkv(1, 1178, 1178, 24, 64)), "SD3, 32x32 tokens and 154 of text"),
        case(
            "hunyuan.s2304h24d128.mask",
            _call(_qkv(1, 2304, 2304, 24, 128), T((1, 1, 2304, 2304), fill="bool")),
        ),
        case(
            "text.s512h32d128.causal",
            _call(_qkv(1, 512, 512, 32, 128, hk=8), causal=True),
            "language model prefill",
        ),
        case("causal.s2048h12d128", _call(_qkv(1, 2048, 2048, 12, 128), causal=True)),
        case("additive.s1024h16d64", _call(_qkv(1, 1024, 1024, 16, 64), T((1, 1, 1024, 1024)))),
        case("t5.s512h24d64.bias", _call(_qkv(1, 512, 512, 24, 64), T((1, 24, 512, 512)))),
        case("decode.k4096h32d128", _call(_qkv(1, 1, 4096, 32, 128, hk=8))),
        Case(
            "decode.k4096h32d128.cold",
            _call(_qkv(1, 1, 4096, 32, 128, hk=8)),
            frozenset({"bench", "cold"}),
            note="as one layer of many: K and V come from memory",
        ),
        case("vae.s4096h1d512", _call(_qkv(1, 4096, 4096, 1, 512)), "mid block of an image VAE"),
        case("tiny.s16h2d64", _call(_qkv(1, 16, 16, 2, 64))),
    )


def varlen() -> tuple[Case, ...]:
    """Cases of `attention_varlen`."""

    def packed(
        lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], h: int, d: int, hk: int | None = None,
        causal: bool = False, scale: float | None = None, left: int = -1, right: int = -1, softcap: float = 0.0,
    ) -> tuple[Any, ...]:  # fmt: skip
        def starts(lengths: tuple[int, ...]) -> TensorSpec:
            sums = (0, *(sum(lengths[: i + 1]) for i in range(len(lengths))))
            return T((len(sums),), torch.int32, "values", values=sums)

        return (
            T((sum(lengths_q), h, d)),
            T((sum(lengths_k), hk or h, d)),
            T((sum(lengths_k), hk or h, d)),
            starts(lengths_q),
            starts(lengths_k),
            max(lengths_q),
            max(lengths_k),
            causal,
            scale,
            left,
            right,
            softcap,
        )

    return (
        Case("plain", packed((5, 33, 1), (5, 33, 1), 4, 64), SMOKE),
        Case("causal", packed((5, 33, 17), (5, 40, 21), 4, 64, causal=True)),
        Case("cross_gqa", packed((5, 33), (50, 3), 8, 32, hk=2, scale=0.2)),
        Case("empty_sequence", packed((5, 0, 9), (5, 7, 9), 2, 32)),
        Case("no_keys", packed((5, 4, 9), (5, 0, 9), 2, 32)),
        Case("window_softcap", packed((20, 33), (20, 33), 2, 40, left=4, right=2, softcap=4.0)),
        Case("bench.4x1024", packed((1024,) * 4, (1024,) * 4, 12, 64), BENCH),
    )
