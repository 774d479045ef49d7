"""Where the C++ linear layer goes first, for invented processors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sgl_kernels.backends.cpu import BEHIND, FIRST
from sgl_kernels.backends.linear import _rank
from sgl_kernels.core.device import Device

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def rank(arch: str, dtype: torch.dtype, m: int, activation: str = "none", k: int = 768) -> int:
    facts = SimpleNamespace(dtype=dtype, m=m, n=3072, k=k, activation=activation)
    return _rank(facts, Device("cpu", arch))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("arch", ["baseline", "neon"])
def test_without_a_product_of_ours_only_the_gelu_is(arch: str, dtype: torch.dtype) -> None:
    assert rank(arch, dtype, 512, "gelu_tanh") == FIRST
    assert rank(arch, dtype, 512) == rank(arch, dtype, 512, "gelu") == BEHIND


@pytest.mark.parametrize("arch", ["avx512", "avx512bf16"])
def test_with_avx512_all_but_bfloat16_is_ours_from_four_rows_on(arch: str) -> None:
    for dtype in (F32, F16):
        assert rank(arch, dtype, 4, k=192) == FIRST
        assert rank(arch, dtype, 3) == BEHIND
    assert rank(arch, BF16, 512) == BEHIND
    assert rank(arch, BF16, 512, "gelu_tanh") == FIRST


def test_with_avx2_shallow_plain_products_are_torchs() -> None:
    assert rank("avx2", F32, 512, k=192) == BEHIND
    assert rank("avx2", F32, 512, "gelu", k=192) == rank("avx2", F32, 512) == FIRST
    assert rank("avx2", BF16, 4, k=192) == FIRST
    assert rank("avx2", F32, 15) == rank("avx2", F16, 3) == BEHIND
