"""The fused Metal kernels: adaLN with and without residual and gate, and rope, each in one launch.

One SIMD group of 32 lanes works on a row, so sums need no threadgroup memory and no barrier. The sources use only
what C++ has too (plus simd_sum and rsqrt), which is how the tests run them without a Mac.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

from sgl_kernels.kernels.mlx.ops import Modulation

LANES = 32

# x and residual_in are (rows, D). periods holds gate's, scale's and shift's period, then their number of rows.
ADALN = """
    uint lane = thread_position_in_grid.x % 32;
    uint row = thread_position_in_grid.x / 32;
    size_t at = size_t(row) * D;
    size_t gate_at = size_t((row / uint(periods[0])) % uint(periods[3])) * D;
    size_t scale_at = size_t((row / uint(periods[1])) % uint(periods[4])) * D;
    size_t shift_at = size_t((row / uint(periods[2])) % uint(periods[5])) * D;
    float sum = 0.0f;
    for (uint i = lane; i < D; i += 32) {
        float value = float(x[at + i]);
        if (RESIDUAL) {
            float added = HAS_GATE ? float(gate[gate_at + i]) * value : value;
            T rounded = T(float(residual_in[at + i]) + added);
            residual_out[at + i] = rounded;
            value = float(rounded);
        }
        sum += value;
    }
    float mean = LAYER ? simd_sum(sum) / float(D) : 0.0f;
    float squares = 0.0f;
    for (uint i = lane; i < D; i += 32) {
        float value = (RESIDUAL ? float(residual_out[at + i]) : float(x[at + i])) - mean;
        squares += value * value;
    }
    float factor = metal::rsqrt(simd_sum(squares) / float(D) + eps[0]);
    for (uint i = lane; i < D; i += 32) {
        float value = (RESIDUAL ? float(residual_out[at + i]) : float(x[at + i])) - mean;
        value *= factor;
        if (HAS_WEIGHT) value *= float(weight[i]);
        if (HAS_BIAS) value += float(bias[i]);
        if (HAS_SCALE) value *= 1.0f + float(scale[scale_at + i]);
        if (HAS_SHIFT) value += float(shift[shift_at + i]);
        out[at + i] = T(value);
    }
"""

# x is (B, S, H, D), cos and sin are (TB, S, HALF) with TB 1 or B; sizes holds S, H and TB. A thread turns one pair.
ROPE = """
    uint pair = thread_position_in_grid.x % uint(HALF);
    size_t head = thread_position_in_grid.x / uint(HALF);
    size_t token = head / size_t(sizes[1]);
    size_t table = (token % (size_t(sizes[0]) * size_t(sizes[2]))) * HALF + pair;
    size_t at = head * D;
    uint first = INTERLEAVED ? 2 * pair : pair;
    uint second = INTERLEAVED ? 2 * pair + 1 : pair + HALF;
    float c = float(cos[table]);
    float s = float(sin[table]);
    float a = float(x[at + first]);
    float b = float(x[at + second]);
    out[at + first] = T(a * c - b * s);
    out[at + second] = T(a * s + b * c);
    for (uint i = 2 * HALF + pair; i < D; i += HALF) {
        out[at + i] = x[at + i];
    }
"""

ADALN_INPUTS = ["x", "residual_in", "gate", "scale", "shift", "weight", "bias", "periods", "eps"]
ROPE_INPUTS = ["x", "cos", "sin", "sizes"]


@functools.cache
def _kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str) -> Any:
    return mx.fast.metal_kernel(
        name=f"sgl_kernels_{name}", input_names=list(inputs), output_names=list(outputs), source=source
    )


def adaln(
    x: Any, scale: Modulation | None, shift: Modulation | None, weight: Any, bias: Any, eps: float, norm: str
) -> Any:
    """As ops.adaln."""
    return _adaln(None, x, None, scale, shift, weight, bias, eps, norm)[0]


def residual_adaln(
    residual: Any, x: Any, gate: Modulation | None, scale: Modulation | None, shift: Modulation | None, weight: Any,
    bias: Any, eps: float, norm: str,
) -> tuple[Any, Any]:  # fmt: skip
    """As ops.residual_adaln."""
    return _adaln(residual, x, gate, scale, shift, weight, bias, eps, norm)


def _adaln(
    residual: Any, x: Any, gate: Modulation | None, scale: Modulation | None, shift: Modulation | None, weight: Any,
    bias: Any, eps: float, norm: str,
) -> tuple[Any, Any]:  # fmt: skip
    rows, dim = x.shape
    dtype = x.dtype if residual is None else residual.dtype
    absent = Modulation(mx.zeros((1, 1)), 1)
    modulations = [m or absent for m in (gate, scale, shift)]
    one = mx.zeros((1,))
    periods = mx.array([m.period for m in modulations] + [m.table.shape[0] for m in modulations], mx.int32)
    arrays = [
        x, x if residual is None else residual, *(m.table for m in modulations), one if weight is None else weight,
        one if bias is None else bias, periods, mx.array([eps], mx.float32),
    ]  # fmt: skip
    flags = {
        "RESIDUAL": residual is not None,
        "LAYER": norm == "layer",
        "HAS_GATE": gate is not None,
        "HAS_SCALE": scale is not None,
        "HAS_SHIFT": shift is not None,
        "HAS_WEIGHT": weight is not None,
        "HAS_BIAS": bias is not None,
    }
    out, residual_out = _kernel("adaln", tuple(ADALN_INPUTS), ("out", "residual_out"), ADALN)(
        inputs=arrays,
        template=[("T", dtype), ("D", dim), *flags.items()],
        grid=(rows * LANES, 1, 1),
        threadgroup=(LANES, 1, 1),
        output_shapes=[x.shape, x.shape if residual is not None else (1,)],
        output_dtypes=[dtype, dtype],
    )
    return out, residual_out


def rope(x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """As ops.rope."""
    batch, seqlen, heads, dim = x.shape
    half = cos.shape[-1]
    (out,) = _kernel("rope", tuple(ROPE_INPUTS), ("out",), ROPE)(
        inputs=[x, cos, sin, mx.array([seqlen, heads, cos.shape[0]], mx.int32)],
        template=[("T", x.dtype), ("D", dim), ("HALF", half), ("INTERLEAVED", interleaved)],
        grid=(batch * seqlen * heads * half, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


@functools.cache
def agrees() -> str:
    """Compile and run both kernels on small inputs against MLX's own ops. '' when they agree, else what is wrong."""
    from sgl_kernels.kernels.mlx import ops

    x = mx.random.normal((6, 40))
    table = Modulation(mx.random.normal((2, 40)), 3)
    row = mx.random.normal((40,))
    heads, angle = x.reshape(1, 3, 2, 40), mx.random.normal((1, 3, 16))
    turn = (mx.cos(angle), mx.sin(angle))
    try:
        pairs = [
            (metal, plain)
            for norm in ("layer", "rms")
            for metal, plain in zip(
                residual_adaln(x, x, table, table, table, row, row, 1e-6, norm),
                ops.residual_adaln(x, x, table, table, table, row, row, 1e-6, norm),
                strict=True,
            )
        ]
        pairs += [(rope(heads, *turn, i), ops.rope(heads, *turn, i)) for i in (False, True)]
        wrong = [
            i for i, (a, b) in enumerate(pairs) if not bool(mx.allclose(a, b, rtol=1e-4, atol=1e-4).item())
        ]
    except Exception as error:  # a Metal compiler's message; any kind
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return f"results {wrong} differ from MLX's own ops" if wrong else ""
