"""Modules under `apply`, and our front doors, on torch's own samples of the functions behind them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgl_kernels
from tests.peer_suites import opinfo


def _norm(kind, sample):
    shape, weight, bias = (*sample.args, None, None)[:3]
    extra = {"eps": sample.kwargs["eps"]} if "eps" in sample.kwargs else {}
    if kind is nn.RMSNorm:
        module = kind(shape, elementwise_affine=weight is not None, **extra)
    else:
        module = kind(shape, elementwise_affine=weight is not None, bias=bias is not None, **extra)
    return _filled(module, weight, bias)


def _filled(module, weight, bias):
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))
    return module


def _group(sample):
    weight, bias = sample.kwargs.get("weight"), sample.kwargs.get("bias")
    if (weight is None) != (bias is None):
        return None  # no module has the one without the other
    extra = {"eps": sample.kwargs["eps"]} if "eps" in sample.kwargs else {}
    return _filled(
        nn.GroupNorm(sample.args[0], sample.input.shape[1], affine=weight is not None, **extra), weight, bias
    )


def _linear(sample):
    weight, bias = (*sample.args, None)[:2]
    return _filled(nn.Linear(1, 1, bias=bias is not None), weight, bias) if weight.ndim == 2 else None


MODULES = {
    "rms_norm": lambda s: _norm(nn.RMSNorm, s),
    "layer_norm": lambda s: _norm(nn.LayerNorm, s),
    "group_norm": _group,
    "gelu": lambda s: nn.GELU(**s.kwargs),
    "silu": lambda s: nn.SiLU(),
    "linear": _linear,
}


@pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_applied_modules(name, dtype):
    count = 0
    for sample in opinfo.samples(name, dtype):
        module = MODULES[name](sample)
        if module is None:
            continue
        module = nn.Sequential(module).requires_grad_(False)
        want = opinfo.outcome(module, sample.input)
        with sgl_kernels.apply(module):
            have = opinfo.outcome(module, sample.input)
        # Sums in another order: half types differ by a rounding of their result.
        opinfo.assert_same(have, want, strides=False, said=False, factor=2.0)
        count += 1
    assert count


DOORS = {
    "rms_norm": lambda x, shape, weight=None, eps=None: sgl_kernels.rms_norm(
        x, weight, torch.finfo(x.dtype).eps if eps is None else eps
    ),
    "layer_norm": lambda x, shape, weight=None, bias=None, eps=1e-5: sgl_kernels.layer_norm(
        x, weight, bias, eps
    ),
}


@pytest.mark.parametrize("dtype", opinfo.DTYPES, ids=str)
@pytest.mark.parametrize("name", DOORS)
def test_front_doors_over_the_last_dimension(name, dtype):
    count = 0
    for sample in opinfo.samples(name, dtype):
        if len(sample.args[0]) != 1 or sample.input.numel() == 0:
            continue
        want = getattr(F, name)(sample.input, *sample.args, **sample.kwargs)
        opinfo.assert_same(
            DOORS[name](sample.input, *sample.args, **sample.kwargs), want, strides=False, factor=2.0
        )
        count += 1
    assert count
