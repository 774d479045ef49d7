"""The mathematics in MLX's own operations: float32 inside, one rounding at the end.

Modulation parameters come as (rows of a table, period): row r of x reads row (r // period) % rows of the table, which
covers vectors (period 1 of 1 row), one row per sample, per frame and per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx


class Modulation(NamedTuple):
    """A table of parameter rows, (P, D), and how many consecutive rows of x share one."""

    table: Any
    period: int


def _wide(a: Any) -> Any:
    return None if a is None else a.astype(mx.float32)


def _normed(x: Any, weight: Any, bias: Any, eps: float, norm: str) -> Any:
    """mx.fast's norm of rows in float32."""
    if norm == "layer":
        return mx.fast.layer_norm(_wide(x), _wide(weight), _wide(bias), eps)
    y = mx.fast.rms_norm(_wide(x), _wide(weight), eps)
    return y if bias is None else y + _wide(bias)


def rms_norm(x: Any, weight: Any, eps: float, weight_offset: float) -> Any:
    scaled = _wide(weight) + weight_offset if weight is not None and weight_offset else weight
    return _normed(x, scaled, None, eps, "rms").astype(x.dtype)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    return _normed(x, weight, bias, eps, "layer").astype(x.dtype)


def _rows(parameter: Modulation, rows: int) -> Any:
    """The parameter's row for each row of x."""
    count = parameter.table.shape[0]
    if count == 1:
        return _wide(parameter.table)
    return _wide(parameter.table)[(mx.arange(rows) // parameter.period) % count]


def adaln(
    x: Any, scale: Modulation | None, shift: Modulation | None, weight: Any, bias: Any, eps: float, norm: str
) -> Any:
    """norm(x) * (1 + scale) + shift for x of shape (rows, D)."""
    y = _normed(x, weight, bias, eps, norm)
    if scale is not None:
        y = y * (1 + _rows(scale, x.shape[0]))
    if shift is not None:
        y = y + _rows(shift, x.shape[0])
    return y.astype(x.dtype)


def residual_adaln(
    residual: Any, x: Any, gate: Modulation | None, scale: Modulation | None, shift: Modulation | None, weight: Any,
    bias: Any, eps: float, norm: str,
) -> tuple[Any, Any]:  # fmt: skip
    """(adaLN of the rounded sum, the rounded sum residual + gate * x)."""
    added = _wide(x) if gate is None else _wide(x) * _rows(gate, x.shape[0])
    total = (_wide(residual) + added).astype(residual.dtype)
    return adaln(total, scale, shift, weight, bias, eps, norm), total


def rope(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """Rotate the leading channels of x (B, S, H, D) by tables (1 or B, S, R / 2)."""
    half = cos.shape[-1]
    wide = _wide(x)
    turning, rest = wide[..., : 2 * half], x[..., 2 * half :]
    c, s = (_wide(t)[:, :, None, :] for t in (cos, sin))
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        out = mx.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(turning.shape)
    else:
        a, b = turning[..., :half], turning[..., half:]
        out = mx.concatenate([a * c - b * s, a * s + b * c], axis=-1)
    return mx.concatenate([out.astype(x.dtype), rest], axis=-1)
