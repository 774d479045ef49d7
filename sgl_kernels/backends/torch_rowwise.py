"""The floor for norms, rope, modulation and activations: plain torch, differentiable and traceable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.backends._torch_checks import is_near, is_traced, may_look, watching
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.ops._modulation import aligned
from sgl_kernels.ops.activation import reference as activation
from sgl_kernels.ops.modulate import reference as modulate
from sgl_kernels.ops.norm import reference as norm
from sgl_kernels.ops.rope import reference as rope


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _like(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.to(x.dtype)


def _all_like(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return (weight is None or weight.dtype is x.dtype) and (bias is None or bias.dtype is x.dtype)


def _centred(x: Tensor, dims: int | tuple[int, ...] = -1) -> Tensor:
    """float32 `x` without its mean, where torch's layer and group norm lose digits to a large one.

    They compute x * rstd - mean * rstd: 6e-3 off at a mean of 1e5 deviations. The norm does not see a shift, so the
    mean is a constant to the gradient. Half types cannot hold a mean large enough to matter: their own steps are wider.
    """
    return x - x.detach().mean(dims, keepdim=True)


FAR, FAR_LAST = 8.0, 1.0
"""A mean of so many deviations costs torch's layer norm less than one bit of float32 more than rounding does.

Its group norm with channels last errs three times as much at a mean of one deviation as it does without any.
"""


def _layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, exact: bool) -> Tensor:
    """torch's layer norm; `exact` where x came in float32."""
    if exact and eps >= norm.TINY and may_look(x, weight, bias) and x.numel():
        # the statistics come with the result: no pass over x is needed to see them
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        if is_near(mean, rstd, FAR):
            return out
        return F.layer_norm(_centred(x), x.shape[-1:], weight, bias, eps)
    if is_traced() or eps < norm.TINY:
        return norm.layer_norm(x, weight, bias, eps)
    if exact and x.device.type != "cuda" and x.numel():  # CUDA's kernel subtracts before it multiplies
        x = _centred(x)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
    if eps < norm.TINY:  # torch squares first, which makes 0 of what is small, and infinities of the result
        return norm.rms_norm(x, weight, eps, weight_offset)
    if weight_offset == 0 and (weight is None or weight.dtype is x.dtype):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    wide = _wide(x)
    scaled = None if weight is None else weight.to(wide.dtype) + weight_offset
    return F.rms_norm(wide, x.shape[-1:], scaled, eps).to(x.dtype)


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    exact = x.dtype is torch.float32
    if _all_like(x, weight, bias):
        return _layer(x, weight, bias, eps, exact)
    wide = _wide(x)
    return _layer(wide, _like(weight, wide), _like(bias, wide), eps, exact).to(x.dtype)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> Tensor:
    batch, channels, *_ = x.shape
    if x.numel() in (0, channels * batch):  # torch refuses one value per channel; the formula does not
        return norm.group_norm(x, num_groups, weight, bias, eps, activation)
    exact = x.dtype is torch.float32
    if _all_like(x, weight, bias):
        y = _group(x, num_groups, weight, bias, eps, exact)
    else:
        wide = _wide(x)
        y = _group(wide, num_groups, _like(weight, wide), _like(bias, wide), eps, exact)
    return _laid_out_like((F.silu(y) if activation == "silu" else y).to(x.dtype), x)


def _group(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, exact: bool
) -> Tensor:
    """torch's group norm; `exact` where x came in float32."""
    if exact and eps >= norm.TINY and may_look(x, weight, bias):
        last = _is_last(x)
        if last and not watching(x, weight, bias):
            return _group_last(x, num_groups, weight, bias, eps)
        if last or x.is_contiguous():
            batch, channels = x.shape[:2]
            size = x.numel() // (batch * channels)
            out, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, size, num_groups, eps)
            if is_near(mean, rstd, FAR_LAST if last else FAR):
                return out
    if is_traced() or eps < norm.TINY:
        return norm.group_norm(x, num_groups, weight, bias, eps)
    last = exact and _is_last(x) and x.device.type == "cpu"
    if last and not watching(x, weight, bias):
        return _group_last(x, num_groups, weight, bias, eps)
    if last:
        x = x - _of_group(x.detach(), num_groups)
    elif exact:
        groups = x.unflatten(1, (num_groups, -1))
        x = _centred(groups, tuple(range(2, groups.ndim))).flatten(1, 2)
    return F.group_norm(x, num_groups, weight, bias, eps)


def _is_last(x: Tensor) -> bool:
    """Whether x has its channels last and more than one of them."""
    if x.is_contiguous():
        return False
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return last is not None and x.is_contiguous(memory_format=last)


def _of_group(x: Tensor, num_groups: int) -> Tensor:
    """The mean of each group, for each of its channels: (N, C, 1, 1).

    Planes first, which torch walks fast in any order of memory.
    """
    means = x.mean(tuple(range(2, x.ndim)))
    wide = means.unflatten(1, (num_groups, -1)).mean(-1, keepdim=True)
    return wide.expand(-1, -1, x.shape[1] // num_groups).reshape(*means.shape, *(1,) * (x.ndim - 2))


def _group_last(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group norm with channels last and without a gradient.

    torch's own kernel takes the squared mean from the mean square, in one chain over a plane: 4e-6 off at 64 x 64
    without any mean, 5e-5 at 256 x 256, and lost at a mean of 1e3. With a gradient it is torch's kernel, on centred
    rows where their mean is large: its backward is five times as fast.
    """
    if may_look(x, weight, bias):
        out = _group_last_near(x, num_groups, weight, bias, eps)
        if out is None:
            out = _group_last_near(x - _of_group(x, num_groups), num_groups, weight, bias, eps)
        if out is not None:
            return out
    return _group_last_centred(x, num_groups, weight, bias, eps)  # NaN and infinities, or nobody may look


FEW_LAST = 1 << 13
"""Up to so many elements two transpositions cost less than the tens of calls that they save."""


def _group_last_near(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | None:
    """As torch's kernel computes it, but out of exact sums; None where the mean is too large for that."""
    batch, channels = x.shape[:2]
    length = x.numel() // (batch * channels)
    if x.numel() <= FEW_LAST:
        rows = x.contiguous()
        out, mean, rstd = torch.native_group_norm(
            rows, weight, bias, batch, channels, length, num_groups, eps
        )
        return torch.empty_like(x).copy_(out) if is_near(mean, rstd, FAR) else None
    last = x.movedim(1, -1)
    pixels = last.view(batch, length, channels)
    out = torch.empty_like(pixels)  # the squares first, then the result: fresh memory costs as much as a pass
    size = length * (channels // num_groups)
    mean = pixels.sum(1).view(batch, num_groups, -1).sum(-1) / size
    square = torch.mul(pixels, pixels, out=out).sum(1).view(batch, num_groups, -1).sum(-1) / size
    rstd = torch.rsqrt(square - mean * mean + eps)
    if not is_near(mean + 0 * square, rstd, FAR_LAST):  # 0 * inf is NaN, which is not near
        return None
    gain = rstd.repeat_interleave(channels // num_groups, 1)
    shift = -mean.repeat_interleave(channels // num_groups, 1) * gain
    if weight is not None:
        gain, shift = gain * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    torch.addcmul(shift[:, None], pixels, gain[:, None], out=out)
    return out.view(last.shape).movedim(-1, 1)


def _group_last_centred(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Out of means over whole planes: 6e-8 off at any mean, in 3 to 4 times what torch takes."""
    plane = (1,) * (x.ndim - 2)
    x = x - _of_group(x, num_groups)
    left = _of_group(x, num_groups)  # what rounding took from the mean
    gain = torch.rsqrt(_of_group(x * x, num_groups) - left * left + eps)
    if weight is not None:
        gain = gain * weight.view(-1, *plane)
    shift = -left * gain
    return x * gain + (shift if bias is None else shift + bias.view(-1, *plane))


def _laid_out_like(y: Tensor, x: Tensor) -> Tensor:
    """`y` with the strides that empty_like(x) has, which the compiler was promised; torch drops those of (N, C, L)."""
    if y.is_contiguous() and x.is_contiguous():
        return y
    promised = torch.empty_like(x)
    return y if y.stride() == promised.stride() else promised.copy_(y)


def _norm_scale_shift(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: str,
) -> Tensor:  # fmt: skip
    wide = _wide(x)
    if norm == "rms":
        y = _rms_norm(wide, _like(weight, wide), eps, 0.0)
        y = y if bias is None else y + bias.to(y.dtype)
    else:
        y = _layer(wide, _like(weight, wide), _like(bias, wide), eps, x.dtype is torch.float32)
    if scale is not None:
        y = y * (1 + aligned(scale, x).to(y.dtype))
    if shift is not None:
        y = y + aligned(shift, x).to(y.dtype)
    return y.to(x.dtype)


def _residual(
    residual: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, eps: float, norm: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    residual_out = residual + x if gate is None else modulate.gate_residual(residual, x, gate)
    return _norm_scale_shift(residual_out, scale, shift, weight, bias, eps, norm), residual_out


def _qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    eps: float, interleaved: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return rope.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved)


def _silu_mul(x: Tensor, up: Tensor | None) -> Tensor:
    gate, other = activation.halves(x, up)
    return F.silu(gate) * other


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_mul(x: Tensor, up: Tensor | None, approximate: str) -> Tensor:
    gate, other = activation.halves(x, up)
    return F.gelu(gate, approximate=approximate) * other


def _implementation(op: str, run: Callable[..., Any]) -> Implementation:
    return Implementation(
        op=op,
        backend="torch",
        load=lambda config: run,
        differentiable=True,
        traceable=True,
        doc="plain torch",
    )


IMPLEMENTATIONS = (
    _implementation("rms_norm", _rms_norm),
    _implementation("layer_norm", _layer_norm),
    _implementation("group_norm", _group_norm),
    _implementation("norm_scale_shift", _norm_scale_shift),
    _implementation("residual_gate_norm_scale_shift", _residual),
    _implementation("apply_rope", rope.apply_rope),
    _implementation("qk_norm_rope", _qk_norm_rope),
    _implementation("scale_shift", modulate.scale_shift),
    _implementation("gate_residual", modulate.gate_residual),
    _implementation("silu_mul", _silu_mul),
    _implementation("gelu_tanh", _gelu_tanh),
    _implementation("gelu_mul", _gelu_mul),
)
