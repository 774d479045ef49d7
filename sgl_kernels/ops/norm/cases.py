"""Workloads of the norms: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
TEST = frozenset({"test"})
F32 = torch.float32
TOKENS = ((256, 768), (1024, 1152), (4096, 3072))


def _cases(
    rows: list[tuple[str, tuple[Any, ...]]], bench: list[tuple[str, tuple[Any, ...]]]
) -> tuple[Case, ...]:
    head, *rest = rows
    return (
        Case(*head, SMOKE),
        *(Case(name, args, TEST) for name, args in rest),
        *(Case(name, args, BENCH) for name, args in bench),
    )


def rms() -> tuple[Case, ...]:
    """Cases of `rms_norm`."""
    w = T((96,), fill="uniform")
    return _cases(
        [
            ("plain", (T((2, 17, 96)), w)),
            ("no_weight", (T((2, 17, 96)), None)),
            ("weight_fp32", (T((5, 96)), T((96,), F32), 1e-5)),
            ("weight_offset", (T((5, 96)), T((96,), scale=0.1), 1e-6, 1.0)),
            ("odd", (T((3, 7, 131)), T((131,)))),
            ("one_column", (T((4, 1)), T((1,)))),
            ("wide", (T((3, 5120)), T((5120,)))),
            ("heads_transposed", (T((2, 9, 4, 64), strides="transposed"), T((64,)))),
            ("padded", (T((6, 96), strides="padded"), w)),
            ("columns_strided", (T((40, 96), strides="transposed", dims=(0, 1)), w)),
            ("large_mean", (T((8, 256), fill="large"), T((256,)))),
            ("tiny_values", (T((4, 128), scale=1e-4), T((128,)), 1e-12)),
            ("vector", (T((96,)), w)),
            ("empty", (T((0, 96)), w)),
        ],
        [(f"{m}x{d}", (T((m, d)), T((d,), fill="uniform"))) for m, d in TOKENS]
        + [("qk.4096x24x128", (T((1, 4096, 24, 128)), T((128,), fill="uniform")))],
    )


def layer() -> tuple[Case, ...]:
    """Cases of `layer_norm`."""
    w, b = T((96,), fill="uniform"), T((96,))
    return _cases(
        [
            ("plain", (T((2, 17, 96)), w, b)),
            ("no_affine", (T((2, 17, 96)),)),
            ("weight_only", (T((5, 96)), w)),
            ("bias_only", (T((5, 96)), None, b, 1e-6)),
            ("affine_fp32", (T((5, 96)), T((96,), F32), T((96,), F32))),
            ("odd", (T((3, 7, 131)), T((131,)), T((131,)))),
            ("wide", (T((3, 5120)), T((5120,)), None)),
            ("padded", (T((6, 96), strides="padded"), w, b)),
            ("transposed", (T((2, 9, 4, 64), strides="transposed"), T((64,)), T((64,)))),
            ("large_mean", (T((8, 256), fill="large"), T((256,)), None)),
            ("constant_row", (T((3, 64), fill="ones"), T((64,)), T((64,)))),
            ("empty", (T((0, 96)), w, b)),
        ],
        [(f"{m}x{d}", (T((m, d)), T((d,)), T((d,)))) for m, d in TOKENS],
    )


def group() -> tuple[Case, ...]:
    """Cases of `group_norm`."""
    w, b = T((32,), fill="uniform"), T((32,))
    return _cases(
        [
            ("plain", (T((2, 32, 7, 5)), 8, w, b)),
            ("silu", (T((2, 32, 7, 5)), 8, w, b, 1e-6, "silu")),
            ("no_affine", (T((2, 32, 9)), 4)),
            ("video", (T((1, 32, 3, 5, 4)), 32, w, b)),
            ("one_group", (T((2, 32, 6, 6)), 1, w, b, 1e-5, "silu")),
            ("affine_fp32", (T((2, 32, 6, 6)), 8, T((32,), F32), T((32,), F32), 1e-6, "silu")),
            ("channels_last", (T((2, 32, 7, 5), strides="transposed", dims=(1, 3)), 8, w, b, 1e-6, "silu")),
            ("large_mean", (T((1, 32, 8, 8), fill="large"), 8, w, b)),
            ("no_positions", (T((3, 32)), 4, w, b)),
            ("empty", (T((0, 32, 4, 4)), 8, w, b)),
        ],
        [
            (f"vae.{c}x{s}x{s}", (T((1, c, s, s)), 32, T((c,)), T((c,)), 1e-6, "silu"))
            for c, s in ((128, 64), (512, 64), (128, 256))
        ],
    )


def _modulations(name: str, lead: tuple[Any, ...], gate: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """The parameter shapes of adaLN, for x (2, 12, 64); `gate` puts a gate of the same shape first."""
    shapes = {
        "batch": (2, 64),
        "vector": (64,),
        "row": (2, 1, 64),
        "token": (2, 12, 64),
        "frame": (2, 3, 1, 64),
    }
    rows = []
    for kind, shape in shapes.items():
        params = [T(shape, scale=0.5) for _ in range(3 if gate else 2)]
        rows.append((f"{name}{kind}", (*lead, *params)))
    return rows


def adaln() -> tuple[Case, ...]:
    """Cases of `norm_scale_shift`."""
    x = T((2, 12, 64))
    p32 = T((2, 64), F32, scale=0.5)
    return _cases(
        [
            *_modulations("", (x,), gate=False),
            ("params_fp32", (x, p32, p32)),
            ("affine", (x, p32, p32, T((64,)), T((64,)))),
            ("rms", (x, p32, p32, T((64,)), None, 1e-6, "rms")),
            ("scale_only", (x, p32)),
            ("shift_only", (x, None, p32)),
            ("chunked_params", (x, T((2, 64), strides="padded"), T((2, 64), strides="padded"))),
            ("batch_of_one", (x, T((1, 64)), T((1, 1, 64)))),
            ("two_dims", (T((12, 64)), T((12, 64)), T((64,)))),
            ("odd", (T((1, 7, 131)), T((1, 131)), T((1, 131)))),
            ("large_mean", (T((1, 8, 256), fill="large"), T((1, 256)), T((1, 256)))),
            ("empty", (T((2, 0, 64)), T((2, 64)), T((2, 64)))),
        ],
        [(f"{m}x{d}", (T((1, m, d)), T((1, d)), T((1, d)))) for m, d in TOKENS]
        + [
            ("wan.frames.4096x1536", (T((1, 4096, 1536)), T((1, 16, 1, 1536), F32), T((1, 16, 1, 1536), F32)))
        ],
    )


def residual_adaln() -> tuple[Case, ...]:
    """Cases of `residual_gate_norm_scale_shift`."""
    r, x = T((2, 12, 64)), T((2, 12, 64))
    p32 = T((2, 64), F32, scale=0.5)
    return _cases(
        [
            *_modulations("", (r, x), gate=True),
            ("params_fp32", (r, x, p32, p32, p32)),
            ("no_gate", (r, x, None, p32, p32)),
            ("gate_only", (r, x, p32)),
            ("plain_residual", (r, x)),
            ("rms", (r, x, p32, p32, p32, T((64,)), None, 1e-6, "rms")),
            ("affine", (r, x, p32, p32, p32, T((64,)), T((64,)))),
            ("padded", (T((2, 12, 64), strides="padded"), T((2, 12, 64), strides="padded"), p32, p32, p32)),
            ("odd", (T((1, 7, 131)), T((1, 7, 131)), T((1, 131)), T((1, 131)), T((1, 131)))),
            ("empty", (T((2, 0, 64)), T((2, 0, 64)), T((2, 64)), T((2, 64)), T((2, 64)))),
        ],
        [(f"{m}x{d}", (T((1, m, d)), T((1, m, d)), T((1, d)), T((1, d)), T((1, d)))) for m, d in TOKENS],
    )
