"""What every Triton kernel here shares: number helpers on the device, row views on the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""True when TRITON_INTERPRET was set before Triton was imported: kernels then run on CPU tensors through numpy.

It is also the value of every kernel's UPCAST argument. The interpreter keeps bf16 as bare 16-bit integers, so bf16
arithmetic and dots are garbage there and fp32 -> bf16 truncates: under UPCAST operands become fp32 first and
results are rounded by hand. On a device UPCAST is off and tensor cores see their 16-bit operands.
"""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# ---------------------------------------------------------------- device side


@triton.jit
def narrow(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """fp32 `x` in `dtype`, rounded to nearest even in the interpreter too."""
    if UPCAST and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def tanh(x):
    """tanh from exp alone: libdevice has one per vendor and the interpreter has none.

    (1 - e) / (1 + e) loses its leading digits near zero, so |x| < 0.25 takes the odd series to x^9 (error 1e-8).
    """
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    far = tl.where(x < 0.0, -far, far)
    x2 = x * x
    series = 0.13333333333333333 + x2 * (-0.05396825396825397 + x2 * 0.021869488536155203)
    near = x * (1.0 + x2 * (-0.3333333333333333 + x2 * series))
    return tl.where(size < 0.25, near, far)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x * Phi(x), by erf or by the tanh approximation (written as a sigmoid, so large |x| cannot cancel)."""
    if EXACT:
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        result = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    return result


# ------------------------------------------------------------------ host side


class Rows(NamedTuple):
    """A tensor as (outer, inner, last): row r begins at r // inner * outer_stride + r % inner * inner_stride."""

    tensor: torch.Tensor
    outer: int
    inner: int
    outer_stride: int
    inner_stride: int

    @property
    def total(self) -> int:
        return self.outer * self.inner


def unit_last(x: torch.Tensor) -> torch.Tensor:
    """`x` itself when its last dimension is contiguous, else a copy: the kernels assume nothing else."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def rows_of(x: torch.Tensor) -> Rows:
    """Leading dimensions merged into two levels without copying where the strides allow it, else of a copy.

    Two levels are enough for slices of a packed QKV and for tokens cut out of a longer sequence, the views that
    models make; anything more scattered is copied once.
    """
    x = unit_last(x)
    levels: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    if len(levels) > 2:
        return rows_of(x.contiguous())
    levels = [(1, 0)] * (2 - len(levels)) + levels
    (outer, outer_stride), (inner, inner_stride) = levels
    return Rows(x, outer, inner, outer_stride, inner_stride)


def tokens_of(x: torch.Tensor) -> Rows:
    """`x` as (batch, tokens, channels): dimension 0 is the batch, every one between it and the last is a token.

    Modulation parameters are addressed by batch and token, so these two must stay apart.
    """
    x = unit_last(x)
    if x.ndim < 3:
        rows = x.shape[0] if x.ndim == 2 else 1
        return Rows(x, 1, rows, 0, x.stride(0) if x.ndim == 2 else 0)
    tokens, stride = 1, 0
    for size, step in zip(reversed(x.shape[1:-1]), reversed(x.stride()[1:-1]), strict=True):
        if size == 1:
            continue
        if tokens > 1 and step != tokens * stride:
            return tokens_of(x.contiguous())
        stride = stride if tokens > 1 else step
        tokens *= size
    return Rows(x, x.shape[0], tokens, x.stride(0), stride)


class Parameter(NamedTuple):
    """A modulation parameter: token t of batch b reads batch_stride * b + frame_stride * (t // tokens)."""

    tensor: torch.Tensor
    batch_stride: int
    frame_stride: int
    tokens: int


def parameter_of(param: torch.Tensor | None, x: Rows) -> Parameter:
    """Strides under which `param`, in any shape the ops accept, is read beside `x` (a `tokens_of` view).

    Shapes for x (B, S, D): (D,), (B, D) for (B, 1, D), (B, 1, D), (B, S, D), and (B, F, 1, D) with S / F tokens
    for each frame; a leading 1 covers the batch. None reads nothing: the kernel is told so, x is a placeholder.
    """
    if param is None:
        return Parameter(x.tensor, 0, 0, 1)
    param = unit_last(param)
    shape = x.tensor.shape
    if param.ndim == 1:
        param = param[None, None]
    elif param.ndim == 2:
        param = param[:, None] if len(shape) > 2 else param[None]
    elif param.ndim == 4 and len(shape) == 3:
        param = param[:, :, 0]
    elif param.ndim > 3:
        middle = (1,) if all(n == 1 for n in param.shape[1:-1]) else shape[1:-1]
        param = param.expand(-1, *shape[1:-1], -1) if middle != (1,) else param.flatten(1, -2)
        param = unit_last(param.reshape(param.shape[0], -1, shape[-1]))
    batch, frames, _ = param.shape
    return Parameter(
        param,
        0 if batch == 1 else param.stride(0),
        0 if frames == 1 else param.stride(1),
        max(1, x.inner // frames),
    )
