"""Random calls of the C++ norm, rope, modulation and activation ops: one generator, one call."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tests.kernels.cpu_rowwise import DTYPES, REFERENCES, normal, padded

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, 1e30)


def random_call(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    """An op and its arguments: any dtype, strides, mixed parameters, odd, empty and one-element sizes."""
    op = rng.choice(sorted(REFERENCES))
    make = {
        "rms_norm": _rms,
        "layer_norm": _layer,
        "group_norm": _group,
        "norm_scale_shift": _adaln,
        "residual_gate_norm_scale_shift": _residual,
        "apply_rope": _rope,
        "qk_norm_rope": _qk,
        "scale_shift": _scale_shift,
        "gate_residual": _gate,
    }
    return op, make.get(op, lambda r, d: _activation(op, r, d))(rng, rng.choice(DTYPES))


def values(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Normal values, now and then around a large mean, in one of four layouts."""
    x = normal(*shape, seed=rng.randrange(10**6), scale=scale)
    x = (x + rng.choice((0, 0, 0, 30))).to(dtype)
    layout = rng.randrange(5)
    if layout == 1:
        return padded(x, rng.randint(1, 9))
    if layout == 2 and x.ndim > 1:
        order = rng.sample(range(x.ndim - 1), x.ndim - 1)
        back = [order.index(d) for d in range(x.ndim - 1)]
        return x.permute(*order, x.ndim - 1).contiguous().permute(*back, x.ndim - 1)
    if layout == 3:
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == 4:  # not aligned to anything but its own elements
        return torch.cat((x.flatten()[:1], x.flatten()))[-x.numel() :].view(shape) if x.numel() else x
    return x


def extreme(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    """A norm of rows at the ends of float32: large means, squares that overflow or vanish; without parameters."""
    op = rng.choice(("rms_norm", "layer_norm", "group_norm", "norm_scale_shift", "qk_norm_rope"))
    size = 10.0 ** rng.uniform(-36, 38.4)
    eps = rng.choice((0.0, 1e-6)) if size < 1 else 1e-6
    mean = rng.choice((0.0, 0.0, 1e3, 1e5)) if 0.1 < size < 1e3 else 0.0
    shape = (rng.randint(1, 3), 8 * rng.randint(1, 4), rng.randint(2, 90), rng.randint(2, 40))
    x = normal(*shape, seed=rng.randrange(10**6)).tanh() * size + mean
    if op == "group_norm":
        x = x.to(memory_format=torch.channels_last) if rng.random() < 0.5 else x
        return op, (x, 8, None, None, eps, "none")
    if op == "qk_norm_rope":
        return op, (x, x[:, :, :1], None, None, None, None, eps, rng.random() < 0.5)
    if op == "rms_norm":
        return op, (x, None, eps, 0.0)
    return op, (x, None, None, eps) if op == "layer_norm" else (x, None, None, None, None, eps, "layer")


def _spoil(rng: random.Random, x: Tensor) -> Tensor:
    if x.numel() and rng.random() < 0.1:
        x[tuple(rng.randrange(n) for n in x.shape)] = rng.choice(SPECIAL)
    return x


def _dim(rng: random.Random) -> int:
    return rng.choice((rng.randint(1, 70), rng.randint(1, 300), 32 * rng.randint(1, 8)))


def _maybe(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    params = rng.choice((dtype, torch.float32, torch.bfloat16, torch.float16, torch.float64))
    return None if rng.random() < 0.3 else values(rng, shape, params)


def _tokens(rng: random.Random, dtype: torch.dtype) -> Tensor:
    shape = (
        rng.randint(0, 3) if rng.random() < 0.05 else rng.randint(1, 3),
        rng.choice((1, 4, 6, 12)),
        _dim(rng),
    )
    return _spoil(rng, values(rng, shape, dtype))


def _modulation(rng: random.Random, x: Tensor) -> Tensor | None:
    b, s, d = x.shape
    shapes = [(d,), (b, d), (b, 1, d), (b, s, d), (1, d), (1, s, d)]
    shapes += [(b, f, 1, d) for f in (1, 2, 4, 12) if s % f == 0]
    return _maybe(rng, rng.choice(shapes), x.dtype)


def _eps(rng: random.Random) -> float:
    return rng.choice((1e-6, 1e-5, 1e-2))


def _rms(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = _tokens(rng, dtype)
    return x, _maybe(rng, x.shape[-1:], dtype), _eps(rng), rng.choice((0.0, 1.0))


def _layer(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = _tokens(rng, dtype)
    return x, _maybe(rng, x.shape[-1:], dtype), _maybe(rng, x.shape[-1:], dtype), _eps(rng)


def _adaln(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = _tokens(rng, dtype)
    affine = _maybe(rng, x.shape[-1:], dtype), _maybe(rng, x.shape[-1:], dtype)
    return x, _modulation(rng, x), _modulation(rng, x), *affine, _eps(rng), rng.choice(("layer", "rms"))


def _residual(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x, scale, shift, *rest = _adaln(rng, dtype)
    residual = _spoil(rng, values(rng, tuple(x.shape), dtype))
    return residual, x, _modulation(rng, x), scale, shift, *rest


def _scale_shift(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = _tokens(rng, dtype)
    return x, _modulation(rng, x), _modulation(rng, x)


def _gate(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = _tokens(rng, dtype)
    gate = _modulation(rng, x)
    return values(rng, tuple(x.shape), dtype), x, values(rng, x.shape[-1:], dtype) if gate is None else gate


def _group(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    groups, width = rng.randint(1, 9), rng.randint(1, 9)
    spatial = [rng.randint(1, 12) for _ in range(rng.randint(0, 3))]
    channels = groups * width
    x = _spoil(rng, values(rng, (rng.randint(1, 3), channels, *spatial), dtype))
    if x.ndim in (4, 5) and rng.random() < 0.5:
        x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    affine = _maybe(rng, (channels,), dtype), _maybe(rng, (channels,), dtype)
    return x, groups, *affine, _eps(rng), rng.choice(("none", "silu"))


def _tables(rng: random.Random, b: int, s: int, d: int) -> tuple[Tensor, Tensor]:
    shape = rng.choice(((s,), (b, s), (1, s)))
    half = rng.randint(1, d // 2) if rng.random() < 0.5 else d // 2
    dtype = rng.choice((torch.float32, *DTYPES))
    return values(rng, (*shape, half), dtype), values(rng, (*shape, half), dtype)


def _heads(rng: random.Random) -> tuple[int, int, int, int]:
    return rng.randint(1, 3), rng.randint(1, 7), rng.randint(1, 9), rng.choice((64, 128, rng.randint(2, 140)))


def _rope(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    b, s, h, d = _heads(rng)
    return _spoil(rng, values(rng, (b, s, h, d), dtype)), *_tables(rng, b, s, d), rng.random() < 0.5


def _qk(rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    b, s, h, d = _heads(rng)
    q, k = (_spoil(rng, values(rng, (b, s, n, d), dtype)) for n in (h, rng.randint(1, h)))
    tables = (None, None) if rng.random() < 0.2 else _tables(rng, b, s, d)
    return q, k, _maybe(rng, (d,), dtype), _maybe(rng, (d,), dtype), *tables, _eps(rng), rng.random() < 0.5


def _activation(op: str, rng: random.Random, dtype: torch.dtype) -> tuple[Any, ...]:
    x = values(rng, (rng.randint(1, 4), rng.randint(1, 5), _dim(rng)), dtype, scale=3)
    if op == "gelu_tanh":
        return (x,)
    up: Tensor | None = values(rng, tuple(x.shape), dtype)
    if rng.random() < 0.5:
        x, up = torch.cat((x, up), dim=-1) if up is not None else x, None
        x = padded(x) if rng.random() < 0.3 else x
    return (x, up) if op == "silu_mul" else (x, up, rng.choice(("tanh", "none")))
