"""Each op as people spell it in plain torch: what a model runs that does not use this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.ops.linear.reference import activated

Run = Callable[..., Any]


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
    scale: float | None, window_left: int, window_right: int, softcap: float,
) -> Tensor:  # fmt: skip
    """SDPA on transposed views, as diffusers' native processor does."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    """As in transformers' LlamaRMSNorm and diffusers' RMSNorm."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    out = wide.to(x.dtype)
    return out if weight is None else out * (weight + weight_offset if weight_offset else weight)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch's own."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> Tensor:
    """As in the residual blocks of a VAE."""
    y = F.group_norm(x, num_groups, weight, bias, eps)
    return F.silu(y) if activation == "silu" else y


def _rows(p: Tensor, x: Tensor) -> Tensor:
    if p.ndim == 2 and x.ndim == 3:
        return p[:, None]
    if p.ndim == 4 and x.ndim == 3:
        return p.expand(-1, -1, x.shape[1] // p.shape[1], -1).flatten(1, 2)
    return p


def norm_scale_shift(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: str,
) -> Tensor:  # fmt: skip
    """As in diffusers' AdaLayerNormZero."""
    y = rms_norm(x, weight, eps, 0.0) if norm == "rms" else layer_norm(x, weight, bias, eps)
    if scale is not None:
        y = y * (1 + _rows(scale, x))
    return y if shift is None else y + _rows(shift, x)


def residual_gate_norm_scale_shift(
    residual: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, eps: float, norm: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The end of one DiT branch and the start of the next."""
    out = residual + (x if gate is None else _rows(gate, x) * x)
    return norm_scale_shift(out, scale, shift, weight, bias, eps, norm), out


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """As in diffusers' apply_rotary_emb and transformers' rotate_half, over a table for each half."""
    c, s = (t[None, :, None] if t.ndim == 2 else t[:, :, None] for t in (cos, sin))
    if interleaved:
        c, s = c.repeat_interleave(2, -1), s.repeat_interleave(2, -1)
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack([-imaginary, real], -1).flatten(3)
    else:
        c, s = torch.cat([c, c], -1), torch.cat([s, s], -1)
        first, second = x.chunk(2, -1)
        rotated = torch.cat([-second, first], -1)
    return (x.float() * c + rotated.float() * s).to(x.dtype)


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    eps: float, interleaved: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As in Flux's attention processor."""
    q, k = rms_norm(q, q_weight, eps, 0.0), rms_norm(k, k_weight, eps, 0.0)
    if cos is None or sin is None:
        return q, k
    return apply_rope(q, cos, sin, interleaved), apply_rope(k, cos, sin, interleaved)


def scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """As spelled in every DiT."""
    y = x if scale is None else x * (1 + _rows(scale, x))
    return y if shift is None else y + _rows(shift, x)


def gate_residual(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """As spelled in every DiT."""
    return residual + _rows(gate, x) * x


def silu_mul(x: Tensor, up: Tensor | None) -> Tensor:
    """As in a gated MLP."""
    if up is None:
        x, up = x.chunk(2, -1)
    return F.silu(x) * up


def gelu_tanh(x: Tensor) -> Tensor:
    """torch's own."""
    return F.gelu(x, approximate="tanh")


def gelu_mul(x: Tensor, up: Tensor | None, approximate: str) -> Tensor:
    """As in diffusers' GEGLU."""
    if up is None:
        x, up = x.chunk(2, -1)
    return F.gelu(x, approximate=approximate) * up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """A layer and the activation after it."""
    return activated(F.linear(x, weight, bias), activation)


_SPELLINGS: dict[str, Run] = {
    run.__name__: run
    for run in (
        attention, rms_norm, layer_norm, group_norm, norm_scale_shift, residual_gate_norm_scale_shift, apply_rope,
        qk_norm_rope, scale_shift, gate_residual, silu_mul, gelu_tanh, gelu_mul, linear,
    )
}  # fmt: skip


def spelling(op: str, args: tuple[Any, ...]) -> Run | None:
    """The plain spelling of an op, where there is one that means the same for these arguments."""
    run = _SPELLINGS.get(op)
    if op == "attention":
        q, k, mask, causal, align, left, right, softcap = *args[:2], *args[3:6], *args[7:]
        same = not causal or (mask is None and (q.shape[1] == k.shape[1] or align == "top_left"))
        if not same or left >= 0 or right >= 0 or softcap:
            return None
    if op in ("apply_rope", "qk_norm_rope"):
        x, cos = args[0], args[1] if op == "apply_rope" else args[4]
        if cos is not None and 2 * cos.shape[-1] != x.shape[-1]:
            return None
    return run
