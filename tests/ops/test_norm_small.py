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
    for backend in ("torch_sdpa", None):
        if backend is None and size < 1e-38 and name in ("group_norm", "qk_norm_rope"):
            continue  # the inverse of what is below 2.9e-39 is no float32, in which these kernels of `cpu` hold it
        torch.testing.assert_close(OPS[name](x, backend).double(), exact(name, x), atol=1e-5, rtol=1e-5)


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
        sk.rms_norm(x, eps=1e-43, backend="torch_sdpa").double(), want, atol=1e-5, rtol=1e-5
    )
