"""Norms at large means: what the docstrings promise, for every number of rows and with gradients."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels
from sgl_kernels.ops.norm import reference


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


CALLS = {
    "layer_norm": lambda module, x, w, b: module.layer_norm(x, w, b),
    "norm_scale_shift": lambda module, x, w, b: module.norm_scale_shift(x, weight=w, bias=b),
    "residual": lambda module, x, w, b: module.residual_gate_norm_scale_shift(x, x * 0, weight=w, bias=b)[0],
    "group_norm": lambda module, x, w, b: module.group_norm(torch.cat((x, x + 1)).T.contiguous()[None], 4),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("rows, dim", [(1, 32), (1, 768), (7, 320), (15, 320), (40, 64)])
def test_a_large_mean_costs_no_digit(rows, dim, mean, name):
    torch.manual_seed(0)
    x, call = torch.randn(rows, dim) + mean, CALLS[name]
    weight, bias = torch.rand(dim) + 0.5, torch.randn(dim)
    want = call(reference, x.double(), weight.double(), bias.double())
    assert error(call(sgl_kernels, x, weight, bias), want) < 5e-7
    found = []
    for module, dtype in ((sgl_kernels, torch.float32), (reference, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        out = call(module, *leaves)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=dtype).sin().reshape(out.shape)
        used = leaves[:1] if name == "group_norm" else leaves
        found.append((out.detach(), *torch.autograd.grad((out * upstream).sum(), used)))
    for mine, right in zip(*found, strict=True):
        assert error(mine, right) < 3e-6


@pytest.mark.parametrize("mean", [0.0, 1.5, 1e3])
@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 4, 384, 384), (1, 4, 3, 5, 6)])
def test_channels_last_cost_the_floor_no_digit(shape, mean):
    torch.manual_seed(0)
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (torch.randn(shape) + mean).to(memory_format=last)
    want = reference.group_norm(x.double(), 2)
    out = sgl_kernels.group_norm(x, 2, backend="torch")
    assert error(out, want) < 5e-7 and out.stride() == x.stride()
