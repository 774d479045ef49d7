"""Ascend's fused ops with torch_npu 2.13.0's schemas and exact semantics, in plain torch.

`define(namespace, key)` registers them with torch under the schemas that the wheel ships, so a call is bound by torch
itself: a wrong name, order or type raises. The mathematics follows the vendor: masks say True = hide, a row whose keys
are all hidden comes out uniform, maxima and sums have eight equal columns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMAS = Path(__file__).parent / "schemas" / "torch_npu-2.13.0.txt"
MASKED = -1e30  # finite, so that a row without keys is a mean of all values


def schemas() -> list[str]:
    """The schema lines of the wheel."""
    return [line for line in SCHEMAS.read_text().splitlines() if line and not line.startswith("#")]


def npu_fusion_attention(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, pse: Any = None,
    padding_mask: Any = None, atten_mask: Tensor | None = None, scale: float = 1.0, keep_prob: float = 1.0,
    pre_tockens: int = 2**31 - 1, next_tockens: int = 2**31 - 1, inner_precise: int = 0, prefix: Any = None,
    actual_seq_qlen: Any = None, actual_seq_kvlen: Any = None, sparse_mode: int = 0, gen_mask_parallel: bool = True,
    sync: bool = False, softmax_layout: str = "", sink: Any = None, dropout_mask: Any = None, seed: int = 0,
    offset: int = 0,
) -> tuple[Any, ...]:  # fmt: skip
    assert input_layout == "BSND" and keep_prob == 1.0 and sparse_mode in (0, 2, 3)
    assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    batch, sq, heads, dim = query.shape
    sk, kv_heads = key.shape[1:3]
    assert head_num == heads and heads % kv_heads == 0 and dim <= 512
    q, k, v = (t.float().transpose(1, 2) for t in (query, key, value))
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if sparse_mode == 0 and atten_mask is not None:
        assert atten_mask.dtype is torch.bool and atten_mask.is_contiguous()
        allowed = [(batch, heads, sq, sk), (batch, 1, sq, sk), (1, 1, sq, sk), (sq, sk)]
        assert tuple(atten_mask.shape) in allowed, f"mask of shape {list(atten_mask.shape)}"
        scores = scores.masked_fill(atten_mask, MASKED)
    elif sparse_mode in (2, 3):
        assert atten_mask is not None and tuple(atten_mask.shape) == (2048, 2048)
        assert torch.equal(atten_mask, torch.ones_like(atten_mask).triu(1))
        shift = 0 if sparse_mode == 2 else sk - sq
        hidden = torch.ones(sq, sk, dtype=torch.bool, device=query.device).triu(1 + shift)
        scores = scores.masked_fill(hidden, MASKED)
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    out = (weights / total @ v).transpose(1, 2).to(query.dtype).contiguous()
    return out, torch.cat([top] * 8, -1), torch.cat([total] * 8, -1), query.new_empty(0), 0, 0, 0


def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    assert self.dtype == gamma.dtype and gamma.ndim == 1
    wide = self.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(self.dtype), rstd


def npu_rotary_mul(
    self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Any = None
) -> Tensor:
    assert self.dtype == r1.dtype == r2.dtype and self.ndim == 4 and rotary_mode in ("half", "interleave")
    b, s, _, d = self.shape
    assert r1.shape == r2.shape and tuple(r1.shape) in ((1, s, 1, d), (b, s, 1, d)), (
        f"tables {list(r1.shape)}"
    )
    assert d % 2 == 0 and d < 896
    if rotary_mode == "half":
        turned = torch.cat((-self[..., d // 2 :], self[..., : d // 2]), -1)
    else:
        turned = torch.stack((-self[..., 1::2], self[..., ::2]), -1).flatten(-2)
    return (self.float() * r1.float() + turned.float() * r2.float()).to(self.dtype)


def npu_swiglu(self: Tensor, dim: int = -1) -> Tensor:
    gate, up = self.float().chunk(2, dim)
    return (F.silu(gate) * up).to(self.dtype)


def npu_gelu(self: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(self.float(), approximate=approximate).to(self.dtype)


def npu_group_norm_silu(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    assert input.is_contiguous() and weight is not None and input.dtype == weight.dtype == bias.dtype
    normed = F.group_norm(input.float(), group, weight.float(), bias.float(), eps)
    stats = input.new_empty(input.shape[0], group, dtype=torch.float32)
    return F.silu(normed).to(input.dtype), stats, stats


KERNELS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (npu_fusion_attention, npu_rms_norm, npu_rotary_mul, npu_swiglu, npu_gelu, npu_group_norm_silu)
}


def define(namespace: str, key: str) -> tuple[torch.library.Library, ModuleType]:
    """Register every schema with its kernel, and a module that offers them as torch_npu does."""
    library = torch.library.Library(namespace, "DEF")
    module = ModuleType("torch_npu")
    for schema in schemas():
        name = schema.split("(", 1)[0]
        library.define(schema)
        library.impl(name, KERNELS[name], key)
        setattr(module, name, getattr(getattr(torch.ops, namespace), name))
    return library, module
