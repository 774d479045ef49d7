"""Inputs, oracle and judgement shared by the tests of the C++ norm, rope, modulation and activation kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernels.kernels.cpu.loader import load
from sgl_kernels.ops.activation import reference as activation
from sgl_kernels.ops.modulate import reference as modulate
from sgl_kernels.ops.norm import reference as norm
from sgl_kernels.ops.rope import reference as rope
from sgl_kernels.tools.parity.tolerance import allowed, measure

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MISSING = load()  # None, or why the extension is not there

REFERENCES = {
    "rms_norm": norm.rms_norm,
    "layer_norm": norm.layer_norm,
    "group_norm": norm.group_norm,
    "norm_scale_shift": norm.norm_scale_shift,
    "residual_gate_norm_scale_shift": norm.residual_gate_norm_scale_shift,
    "apply_rope": rope.apply_rope,
    "qk_norm_rope": rope.qk_norm_rope,
    "scale_shift": modulate.scale_shift,
    "gate_residual": modulate.gate_residual,
    "silu_mul": activation.silu_mul,
    "gelu_tanh": activation.gelu_tanh,
    "gelu_mul": activation.gelu_mul,
}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Reproducible normal values."""
    generator = torch.Generator().manual_seed(seed * 7919 + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def padded(x: Tensor, extra: int = 3) -> Tensor:
    """The same values with a gap after each row; the gap holds NaN, which nobody may read."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + extra), float("nan"), dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def run(op: str, *args: Any) -> tuple[Tensor, ...]:
    """The C++ op, always as a tuple."""
    return _tuple(getattr(torch.ops.sgl_kernels_cpu, op)(*args))


def oracle(op: str, *args: Any) -> tuple[Tensor, ...]:
    """The definition in float64; the norm after a residual reads the sum rounded as the op rounds it."""
    if op == "residual_gate_norm_scale_shift":
        residual, x, gate, *rest = args
        total = REFERENCES[op](_double(residual), _double(x), _double(gate))[1]
        rounded = run(op, *args)[1]
        return REFERENCES["norm_scale_shift"](rounded.double(), *map(_double, rest)), total
    return _tuple(REFERENCES[op](*map(_double, args)))


def check(op: str, *args: Any) -> tuple[Tensor, ...]:
    """The op's answer, having compared it to the oracle within what plain torch errs at the same dtypes."""
    outs, wants, plains = run(op, *args), oracle(op, *args), _tuple(REFERENCES[op](*args))
    for out, want, plain in zip(outs, wants, plains, strict=True):
        assert out.dtype == plain.dtype
        assert out.shape == plain.shape
        error, baseline = measure(out, want), measure(plain, want)
        max_abs, relative = allowed(want, (baseline,), out.dtype)
        assert error.finite_match, f"{op}: NaN or infinity in other places than in the definition"
        assert error.max_abs <= max_abs, f"{op}: off by {error.max_abs:.3g}, allowed {max_abs:.3g}"
        assert error.relative_l2 <= relative, f"{op}: {error.relative_l2:.3g}, allowed {relative:.3g}"
    return outs
