"""The C++ linear layer against float64: tiles, tails, depths beyond a slice, strides, threads, special values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_kernels.kernels.cpu.loader import load
from sgl_kernels.ops.linear.reference import ACTIVATIONS, activated

pytestmark = pytest.mark.skipif(
    load() is not None or bool(torch.ops.sgl_kernels_cpu.linear_unsupported_reason()),
    reason="needs the C++ extension and AVX2",
)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.sgl_kernels_cpu.linear(x, weight, bias, activation)


def made(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(m * 1000 + k * 10 + n)
    x, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g) / k**0.5
    return x.to(dtype), weight.to(dtype), torch.randn(n, generator=g).to(dtype)


def check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    wide = None if bias is None else bias.double()
    want = activated(F.linear(x.double(), weight.double(), wide), activation)
    have = run(x, weight, bias, activation)
    assert have.dtype is x.dtype and have.shape == want.shape
    assert ((have.double() - want).abs() / (want.abs() + 1)).max() <= TOLERANCE[x.dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("m", (*range(1, 14), 37))
def test_every_tile_height_and_every_tail(m: int, dtype: torch.dtype) -> None:
    for k in (1, 15, 16, 17, 32, 70):
        for n in (1, 8, 15, 16, 17, 31, 32, 33, 70):
            x, weight, bias = made(m, k, n, dtype)
            check(x, weight, bias, ACTIVATIONS[(m + k + n) % 4])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "shape", [(14, 255, 20), (14, 257, 20), (14, 1536, 20), (14, 1537, 20), (13, 4000, 35)]
)
def test_depths_that_are_cut(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for activation in ACTIVATIONS:
        check(*made(*shape, dtype), activation)


@pytest.mark.parametrize("shape", [(1100, 40, 30), (520, 1700, 70), (64, 128, 500)])
def test_several_tasks_and_the_same_bits_for_any_number_of_threads(shape: tuple[int, int, int]) -> None:
    x, weight, bias = made(*shape)
    check(x, weight, bias, "gelu")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(x, weight, bias, "gelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_deep_sum_is_as_accurate_as_torch() -> None:
    x, weight, _ = made(96, 3072, 64)
    exact = F.linear(x.double(), weight.double())
    ours, torchs = ((y.double() - exact).abs().mean() for y in (run(x, weight), F.linear(x, weight)))
    assert ours <= 1.3 * torchs


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_strides_and_leading_dimensions(dtype: torch.dtype) -> None:
    x, weight, bias = made(24, 33, 19, dtype)
    check(x.view(2, 3, 4, 33), weight, bias, "silu")
    check(x.view(4, 6, 33).transpose(0, 1), weight, bias, "none")
    check(torch.cat((x, x), -1)[:, 5:38], torch.cat((weight, weight), 1)[:, 2:35], bias, "none")
    check(x, weight.t().contiguous().t(), None, "none")
    check(x, weight, torch.stack((bias, bias), 1)[:, 0], "none")
    assert run(x[:0], weight, bias).shape == (0, 19)
    assert run(x[0], weight, bias).shape == (19,)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_special_values_stay_where_they_are(dtype: torch.dtype) -> None:
    x, weight, bias = made(20, 24, 20, dtype)
    x[3, 5], x[11, 2], weight[7, 1] = float("nan"), float("inf"), float("nan")
    want, have = F.linear(x.double(), weight.double(), bias.double()), run(x, weight, bias).double()
    assert torch.equal(want.isnan(), have.isnan())
    assert torch.equal(want.isinf(), have.isinf())
    assert have.isfinite().sum() == 18 * 19


def test_nothing_outside_the_tensors_is_read_or_written() -> None:
    for dtype in TOLERANCE:
        storage = torch.full((3, 40 * 40), float("nan"), dtype=dtype)
        x, weight, bias = (storage[i, 5 : 5 + size] for i, size in enumerate((7 * 13, 9 * 13, 9)))
        for part, source in zip((x, weight, bias), made(7, 13, 9, dtype), strict=True):
            part.copy_(source.flatten())
        assert run(x.view(7, 13), weight.view(9, 13), bias).isfinite().all()


def test_errors_name_the_argument() -> None:
    x, weight, bias = made(4, 8, 6)
    for args, words in (
        ((x, weight[:, :7], bias, "none"), "linear: weight"),
        ((x, weight.bfloat16(), bias, "none"), "weight"),
        ((x, weight, bias[:5], "none"), "bias must have shape"),
        ((x, weight, bias, "relu"), "activation is 'relu'"),
        ((x.double(), weight.double(), bias.double(), "none"), "dtype"),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.sgl_kernels_cpu.linear(*args)
