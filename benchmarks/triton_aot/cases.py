"""What is compiled ahead of time: every kernel of sgl_kernels/kernels/triton under the configs it ships with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.triton_aot.case import Case
from benchmarks.triton_aot.cases_nvfp4 import NVFP4_CASES
from sgl_kernels.kernels.triton import (
    activation,
    attention,
    attention_int8,
    configs,
    group_norm,
    modulate,
    norm,
    rope,
)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def _attention(
    family: str, *, head_dim: int, head_dim_v: int | None = None, dtype: torch.dtype = BF16, mask: Any = None,
    lse: bool = False, **changes: Any,
) -> Any:  # fmt: skip
    """A dense call on 1024 tokens and 8 heads."""
    masked = mask is not None or bool(changes.get("softcap"))
    config = configs.attention(family, dtype, head_dim, head_dim_v or head_dim, masked=masked)
    if config is None:  # the backend declines this head dim here
        return None
    q = torch.empty(1, 1024, 8, head_dim, dtype=dtype)
    v = torch.empty(1, 1024, 8, head_dim_v or head_dim, dtype=dtype)
    arguments: dict[str, Any] = {
        "attn_mask": None if mask is None else torch.empty(1, 1, 1024, 1024, dtype=mask), "is_causal": False,
        "causal_alignment": "bottom_right", "scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0,
        "write_lse": lse, "config": config,
    }  # fmt: skip
    return attention.attention(q, q.clone(), v, **{**arguments, **changes})


def _varlen(family: str, *, head_dim: int, is_causal: bool) -> Any:
    q = torch.empty(2048, 8, head_dim, dtype=BF16)
    cu = torch.tensor([0, 1024, 2048], dtype=torch.int32)
    return attention.attention_varlen(
        q, q, q, cu, cu, 1024, 1024, is_causal=is_causal, scale=None, window_left=-1, window_right=-1, softcap=0.0,
        config=configs.attention(family, BF16, head_dim, head_dim),
    )  # fmt: skip


def _int8(family: str, *, head_dim: int, is_causal: bool = False) -> Any:
    q = torch.empty(1, 1024, 8, head_dim, dtype=BF16)
    return attention_int8.attention_int8(
        q, q, q, attn_mask=None, is_causal=is_causal, causal_alignment="bottom_right", scale=None, window_left=-1,
        window_right=-1, config=configs.attention_int8(family, BF16, head_dim, head_dim),
    )  # fmt: skip


EVERYTHING: dict[str, Any] = {
    "mask": F32, "is_causal": True, "window_left": 256, "window_right": 0, "softcap": 30.0, "lse": True,
}  # fmt: skip


def _attention_cases() -> list[Case]:
    """The plainest and the fullest variant of each row of the table, and the variants that models use most."""
    cases = []
    for d in (64, 128, 256):
        cases += [
            Case(f"attention/d{d}", partial(_attention, head_dim=d), subset=d == 64),
            Case(f"attention/d{d}.causal.window.lse", partial(_attention, head_dim=d, is_causal=True, window_left=256,
                                                              lse=True)),
            Case(f"attention/d{d}.mask", partial(_attention, head_dim=d, mask=BF16)),
            Case(f"attention/d{d}.everything", partial(_attention, head_dim=d, **EVERYTHING)),
        ]  # fmt: skip
    return [
        *cases,
        Case("attention/d64.fp32.everything", partial(_attention, head_dim=64, dtype=F32, **EVERYTHING)),
        Case("attention/d128.fp32.everything", partial(_attention, head_dim=128, dtype=F32, **EVERYTHING)),
        Case("attention/d128.bool_mask", partial(_attention, head_dim=128, mask=torch.bool)),
        Case("attention/d128.varlen.causal", partial(_varlen, head_dim=128, is_causal=True)),
        Case("attention/d40", partial(_attention, head_dim=40)),
        Case("attention/d72.fp16", partial(_attention, head_dim=72, dtype=F16)),
        Case("attention/d192.v128", partial(_attention, head_dim=192, head_dim_v=128)),
        Case("attention/d64.int8", partial(_int8, head_dim=64)),
        Case("attention/d128.int8.causal", partial(_int8, head_dim=128, is_causal=True)),
    ]


def _rms(family: str, width: int, dtype: torch.dtype = BF16) -> Any:
    x, w = torch.empty(64, width, dtype=dtype), torch.empty(width, dtype=dtype)
    return norm.rms_norm(x, w, 1e-6, 0.0, config=configs.norm(family, width))


def _layer(family: str, width: int) -> Any:
    x, w = torch.empty(64, width, dtype=BF16), torch.empty(width, dtype=BF16)
    return norm.layer_norm(x, w, w, 1e-5, config=configs.norm(family, width))


def _adaln(family: str, width: int) -> Any:
    x, p = torch.empty(1, 64, width, dtype=BF16), torch.empty(1, width)
    return norm.norm_scale_shift(x, p, p, None, None, 1e-6, "layer", config=configs.norm(family, width))


def _residual(family: str, width: int) -> Any:
    x, p, w = torch.empty(1, 64, width, dtype=BF16), torch.empty(1, 8, 1, width), torch.empty(width)
    config = configs.norm(family, width)
    return norm.residual_gate_norm_scale_shift(x, x, p, p, p, w, w, 1e-6, "layer", config=config)


def _group(family: str, shape: tuple[int, ...], channels_last: bool = False) -> Any:
    x, w = torch.empty(shape, dtype=BF16), torch.empty(shape[1], dtype=BF16)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    return group_norm.group_norm(x, 32, w, w, 1e-6, "silu", config=configs.group_norm(family))


def _qk(family: str, interleaved: bool, rotary: int) -> Any:
    q, w = torch.empty(1, 64, 24, 128, dtype=BF16), torch.empty(128, dtype=BF16)
    table = torch.empty(64, rotary // 2)
    return rope.qk_norm_rope(q, q, w, w, table, table, 1e-6, interleaved, config=configs.tile(family))


def _rope(family: str, interleaved: bool) -> Any:
    x, table = torch.empty(1, 64, 24, 128, dtype=BF16), torch.empty(64, 64)
    return rope.apply_rope(x, table, table, interleaved, config=configs.tile(family))


def _scale_shift(family: str) -> Any:
    x, p = torch.empty(1, 64, 3072, dtype=BF16), torch.empty(1, 3072)
    return modulate.scale_shift(x, p, p, config=configs.tile(family))


def _gate(family: str) -> Any:
    x, p = torch.empty(1, 64, 3072, dtype=BF16), torch.empty(1, 3072)
    return modulate.gate_residual(x, x, p, config=configs.tile(family))


def _activation(family: str, which: str) -> Any:
    x, config = torch.empty(64, 6144, dtype=BF16), configs.tile(family)
    if which == "silu_mul":
        return activation.silu_mul(x, None, config=config)
    if which == "gelu_tanh":
        return activation.gelu_tanh(x, config=config)
    return activation.gelu_mul(x, None, "none", config=config)


def _row_cases() -> list[Case]:
    widths = (128, 3072, 5120, 70000)
    return [
        *(Case(f"rms_norm/{w}", partial(_rms, width=w), subset=w == 3072) for w in widths),
        Case("rms_norm/3072.fp32", partial(_rms, width=3072, dtype=F32)),
        Case("layer_norm/3072", partial(_layer, width=3072)),
        *(Case(f"norm_scale_shift/{w}", partial(_adaln, width=w), subset=w == 3072) for w in widths[1:]),
        *(
            Case(f"residual_gate_norm_scale_shift/{w}", partial(_residual, width=w), subset=w == 3072)
            for w in widths[1:]
        ),
        Case("group_norm/small", partial(_group, shape=(1, 128, 8, 8))),
        Case("group_norm/large", partial(_group, shape=(1, 128, 256, 256)), subset=True),
        Case("group_norm/channels_last", partial(_group, shape=(1, 512, 64, 64), channels_last=True)),
        Case("qk_norm_rope/interleaved", partial(_qk, interleaved=True, rotary=128), subset=True),
        Case("qk_norm_rope/half_split", partial(_qk, interleaved=False, rotary=128)),
        Case("qk_norm_rope/partial", partial(_qk, interleaved=False, rotary=64)),
        *(
            Case(f"apply_rope/{i}", partial(_rope, interleaved=i == "interleaved"))
            for i in ("interleaved", "half")
        ),
        Case("scale_shift/3072", _scale_shift),
        Case("gate_residual/3072", _gate),
        *(
            Case(f"{a.partition('.')[0]}/{a}", partial(_activation, which=a))
            for a in ("silu_mul", "gelu_tanh", "gelu_mul.erf")
        ),
    ]


CASES: tuple[Case, ...] = (*_attention_cases(), *_row_cases(), *NVFP4_CASES)
