"""Norms without an eps, of rows so small that their squares are 0 in float32: the exact answer is near 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgl_kernels as sk

OPS = {
    "rms_norm": lambda x, b: sk.rms_norm(x, eps=0.0, backend=b),
    "layer_norm": lambda x, b: sk.layer_norm(x, eps=0.0, backend=b),
    "group_norm": lambda x, b: sk.group_norm(x, 3, eps=0.0, backend=b),
    "norm_scale_shift": lambda x, b: sk.norm_scale_shift(x, eps=0.0, backend=b),
    "adaln of rms": lambda x, b: sk.norm_scale_shift(x, eps=0.0, norm="rms", backend=b),
    "qk_norm_rope": lambda x, b: sk.qk_norm_rope(x[:, :, None], x[:, :, None], eps=0.0, backend=b)[0][
        :, :, 0
    ],
}


def exact(name: str, x: Tensor) -> Tensor:
    wide = x.double()
    if name == "group_norm":
        wide = wide.reshape(x.shape[0], 3, -1)
    if name in ("layer_norm", "group_norm", "norm_scale_shift"):
        wide = wide - wide.mean(-1, keepdim=True)
    return (wide / wide.square().mean(-1, keepdim=True).sqrt()).reshape(x.shape)


def rows(size: float) -> Tensor:
    return (
        torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    ).float()


@pytest.mark.parametrize("size", [1e-15, 1e-25, 1e-37, 2.5e-39, 1e-41])
@pytest.mark.parametrize("name", OPS)
def test_small_rows_without_eps(name: str, size: float) -> None:
    x = rows(size)
    for backend in ("torch", None):
        torch.testing.assert_close(OPS[name](x, backend).double(), exact(name, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-37, 2.5e-39, 1e-40])
@pytest.mark.parametrize("last", [False, True])
def test_small_groups_beside_ordinary_ones(dtype: torch.dtype, size: float, last: bool) -> None:
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(2))
    x[0, 2:4] *= size
    x[1] *= size
    x = x.to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    weight, bias = torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6)
    weight[2] = 1e-38  # the gain of a small group is ordinary then, and the result small
    for activation in ("none", "silu"):
        have = sk.group_norm(x, 3, weight, bias, eps=0.0, activation=activation)
        want = exact("group_norm", x) * weight[:, None, None] + bias[:, None, None]
        want = torch.nn.functional.silu(want) if activation == "silu" else want
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(have.double(), want, atol=tolerance, rtol=tolerance)


def test_a_small_gain_of_large_rows() -> None:
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(3)) * 1e20
    weight = torch.full((4,), 1e-25)
    have = sk.group_norm(x, 2, weight, eps=0.0)
    want = (exact("layer_norm", x.reshape(1, 2, -1)) * 1e-25).reshape(x.shape)
    torch.testing.assert_close(have.double() * 1e25, want * 1e25, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads", [1, 6])
def test_small_heads_are_turned(dtype: torch.dtype, interleaved: bool, heads: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, heads, 64, generator=generator)
    x[:, 1] *= 1e-39
    x[:, 2, -1] *= 1e-40
    x = x.to(dtype)
    weight, angle = torch.linspace(0.5, 2, 64), torch.randn(3, 16, generator=generator)
    tables = angle.cos(), angle.sin()
    have = sk.qk_norm_rope(x, x, weight, weight, *tables, eps=0.0, interleaved=interleaved)
    normed = exact("rms_norm", x) * weight
    want = normed.clone()
    c, s = (t.double()[:, None] for t in tables)
    first, second = (slice(0, 32, 2), slice(1, 32, 2)) if interleaved else (slice(0, 16), slice(16, 32))
    want[..., first] = normed[..., first] * c - normed[..., second] * s
    want[..., second] = normed[..., first] * s + normed[..., second] * c
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for part in have:
        torch.testing.assert_close(part.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", OPS)
def test_their_gradient(name: str) -> None:
    size = 1e-25
    x, wide = rows(size).requires_grad_(), rows(size).double().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (have,) = torch.autograd.grad((OPS[name](x, None) * weight).sum(), x)
    (want,) = torch.autograd.grad((exact(name, wide) * weight).sum(), wide)
    torch.testing.assert_close(have.double() * size, want * size, atol=1e-4, rtol=1e-4)


def test_an_eps_below_float32_counts_where_it_matters() -> None:
    x = rows(1e-22)
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-43).sqrt()
    torch.testing.assert_close(
        sk.rms_norm(x, eps=1e-43, backend="torch").double(), want, atol=1e-5, rtol=1e-5
    )
