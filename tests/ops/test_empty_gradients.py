"""Norms of nothing: an empty result through which gradients of zeros flow, as through torch's own."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels as sk


@pytest.mark.parametrize("shape", [(0, 8, 4, 8), (2, 8, 0, 8), (0, 8)])
@pytest.mark.parametrize("op", ["group_norm", "layer_norm", "rms_norm"])
def test_gradients_of_empty_norms_are_zeros(op: str, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    channels = 8 if op == "group_norm" else shape[-1]
    weight = torch.ones(channels, requires_grad=True)
    out = sk.group_norm(x, 2, weight) if op == "group_norm" else getattr(sk, op)(x, weight)
    assert out.shape == x.shape and out.dtype is x.dtype
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and torch.equal(weight.grad.nan_to_num(), torch.zeros(channels))
