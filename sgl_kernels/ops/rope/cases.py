"""Workloads of rope: edge cases for tests, and the shapes of real models for benchmarks."""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernels.core.op import Case, TensorSpec

T = TensorSpec
F32 = torch.float32
BENCH = frozenset({"bench", "tune"})
SMOKE = frozenset({"test", "smoke"})
TEST = frozenset({"test"})


def _table(*shape: int) -> tuple[TensorSpec, TensorSpec]:
    return T(shape, F32), T(shape, F32)


def _cases(
    rows: list[tuple[str, tuple[Any, ...]]], bench: list[tuple[str, tuple[Any, ...]]]
) -> tuple[Case, ...]:
    head, *rest = rows
    return (
        Case(*head, SMOKE),
        *(Case(name, args, TEST) for name, args in rest),
        *(Case(name, args, BENCH) for name, args in bench),
    )


def rope() -> tuple[Case, ...]:
    """Cases of `apply_rope`."""
    x = T((2, 13, 4, 64))
    return _cases(
        [
            ("half", (x, *_table(13, 32), False)),
            ("interleaved", (x, *_table(13, 32), True)),
            ("batched_table", (x, *_table(2, 13, 32), True)),
            ("batch_of_one", (x, *_table(1, 13, 32), False)),
            ("partial_half", (x, *_table(13, 12), False)),
            ("partial_interleaved", (x, *_table(13, 12), True)),
            ("odd_heads", (T((1, 7, 3, 40)), *_table(7, 20), True)),
            ("odd_half", (T((1, 5, 2, 26)), *_table(5, 13), False)),
            ("bhsd_strides", (T((2, 13, 4, 64), strides="transposed"), *_table(13, 32), True)),
            ("padded", (T((2, 13, 4, 64), strides="padded"), *_table(13, 32), False)),
            ("table_in_dtype", (x, T((13, 32)), T((13, 32)), False)),
            ("one_token", (T((1, 1, 2, 128)), *_table(1, 64), True)),
            ("empty", (T((2, 0, 4, 64)), *_table(0, 32), True)),
        ],
        [
            ("flux.4096x24x128", (T((1, 4096, 24, 128)), *_table(4096, 64), True)),
            ("neox.4096x24x128", (T((1, 4096, 24, 128)), *_table(4096, 64), False)),
        ],
    )


def qk() -> tuple[Case, ...]:
    """Cases of `qk_norm_rope`."""
    q, k, w = T((2, 13, 4, 64)), T((2, 13, 4, 64)), T((64,), fill="uniform")
    return _cases(
        [
            ("interleaved", (q, k, w, w, *_table(13, 32), 1e-6, True)),
            ("half", (q, k, w, w, *_table(13, 32), 1e-6, False)),
            ("norm_only", (q, k, w, w)),
            ("no_weight", (q, k, None, None, *_table(13, 32))),
            ("gqa", (T((2, 13, 6, 64)), T((2, 13, 2, 64)), w, w, *_table(2, 13, 32), 1e-5, True)),
            ("weights_fp32", (q, k, T((64,), F32), T((64,), F32), *_table(13, 32), 1e-6, True)),
            ("partial", (q, k, w, w, *_table(13, 20), 1e-6, False)),
            ("bhsd_strides", (
                T((2, 13, 4, 64), strides="transposed"), T((2, 13, 4, 64), strides="transposed"), w, w,
                *_table(13, 32), 1e-6, True,
            )),
            ("odd", (T((1, 7, 3, 40)), T((1, 7, 1, 40)), T((40,)), T((40,)), *_table(7, 20), 1e-6, True)),
            ("empty", (T((1, 0, 4, 64)), T((1, 0, 4, 64)), w, w, *_table(0, 32), 1e-6, True)),
        ],
        [
            (f"{name}.4096x24x128", (
                T((1, 4096, 24, 128)), T((1, 4096, 24, 128)), T((128,)), T((128,)), *_table(4096, 64), 1e-6, inter,
            ))
            for name, inter in (("flux", True), ("neox", False))
        ],
    )  # fmt: skip
