"""Activations far to the left, where what multiplies x is no normal number any more and the product may be one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu_rowwise import MISSING, oracle, run

LEAST = 2.0**-149  # of float32
LEAST_NORMAL = 2.0**-126
LEAST_HALF = 1.2e-36  # of bfloat16, whose quick exponentials end at e^-87.3


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


def grid(begin: float, end: float) -> Tensor:
    """Far values among ordinary ones, so that vectors hold both kinds."""
    x = torch.linspace(begin, end, 40_003)
    x[::7] = torch.linspace(-9, 9, len(x[::7]))
    return x


def assert_near(have: Tensor, want: Tensor, relative: float, absolute: float) -> None:
    error = (have.double() - want).abs()
    worst = (error - relative * want.abs() - absolute).argmax()
    assert (error <= relative * want.abs() + absolute).all(), (worst, have[worst], want[worst])


@pytest.mark.parametrize("begin", (-88.0, -105.0, -200.0, -3e38))
def test_silu(begin: float) -> None:
    x = grid(begin, -80.0)
    for size in (1.0, 1e20, -1e30):
        up = torch.full_like(x, size)
        want = oracle("silu_mul", x, up)[0]
        for have in (run("silu_mul", x, up)[0], run("silu_mul", torch.cat((x, up)), None)[0]):
            assert_near(have, want, 1e-6, 2 * LEAST * abs(size))


@pytest.mark.parametrize("begin", (-88.0, -105.0, -200.0, -3e38))
def test_silu_in_bfloat16(begin: float) -> None:
    x = grid(begin, -80.0).bfloat16()
    for size in (1.0, 1e20):
        up = torch.full_like(x, size)
        want = oracle("silu_mul", x, up)[0]
        assert_near(run("silu_mul", x, up)[0], want, 2.0**-8, LEAST_HALF * size)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_gelu(dtype: torch.dtype) -> None:
    x = grid(-16.0, -3.0).to(dtype)
    wide = x.double()
    inner = (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)  # the tanh of it cancels in float64 as well
    tanh, erf = wide * torch.sigmoid(2 * inner), wide * 0.5 * torch.erfc(-wide * 0.5**0.5)
    relative = 1e-4 if dtype is torch.float32 else 2.0**-7
    least = 2 * LEAST if dtype is torch.float32 else LEAST_HALF
    up = torch.ones_like(x)
    assert_near(run("gelu_tanh", x)[0], tanh, relative, least)
    assert_near(run("gelu_mul", x, up, "tanh")[0], tanh, relative, least)
    assert_near(
        run("gelu_mul", x, up, "none")[0], erf, relative, LEAST_NORMAL
    )  # 0 or next to it from there on


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_what_is_no_number_stays_what_it_is_in_torch(dtype: torch.dtype) -> None:
    inf = torch.inf
    x = torch.tensor([-100.0, torch.nan, -inf, inf, -95.0, 0.0, 3.0, -1.0] * 16, dtype=dtype)
    want = torch.nn.functional.silu(x)
    have = run("silu_mul", x, torch.ones_like(x))[0]
    assert torch.equal(have.isnan(), want.isnan())
    assert torch.equal(have.isinf(), want.isinf())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_neighbours_far_to_the_left_change_nothing(dtype: torch.dtype) -> None:
    x = torch.linspace(-20, 20, 4096).to(dtype)
    mixed = x.repeat_interleave(2)
    mixed[1::2] = -95
    for op, args in (("silu_mul", (torch.ones_like(mixed),)), ("gelu_tanh", ())):
        alone = run(op, x, *(a[: len(x)] for a in args))[0]
        assert torch.equal(run(op, mixed, *args)[0][::2], alone)
