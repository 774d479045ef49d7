"""What an op's own check refuses goes back to the module under `apply`: the result, or the error, is torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgl_kernels
from tests.peer_suites import opinfo

X = torch.linspace(-2, 3, 3 * 8).reshape(3, 8).sin() * 2
EPS = (-1e-6, -1.0, float("nan"), float("inf"), torch.tensor(1e-5), "x", 0)


def _same(module, x):
    module = nn.Sequential(module).requires_grad_(False)
    want = opinfo.outcome(module, x)
    with sgl_kernels.apply(module):
        have = opinfo.outcome(module, x)
    opinfo.assert_same(have, want, strides=False, factor=4.0)  # torch rounds a group of one value


def _norms(eps):
    import diffusers.models.normalization as theirs

    for affine in (True, False):
        yield nn.LayerNorm(8, eps=eps, elementwise_affine=affine)
        yield nn.RMSNorm(8, eps=eps, elementwise_affine=affine)
        yield nn.GroupNorm(2, 8, eps=eps, affine=affine)
        yield theirs.RMSNorm(8, eps=eps, elementwise_affine=affine)
        yield theirs.FP32LayerNorm(8, eps=eps, elementwise_affine=affine)
        yield theirs.MochiRMSNorm(8, eps=eps, elementwise_affine=affine)


@pytest.mark.parametrize("eps", EPS, ids=str)
def test_eps_that_our_ops_refuse(eps):
    for norm in _norms(eps):
        _same(norm, X)


SHAPES = {
    "fewer": X[:, :4], "more": X.repeat(1, 2), "behind": X[..., None], "scalar": X[0, 0], "none": None,
    "empty": X[:0], "no_columns": X[:, :0], "integers": X.int(), "complex": X + 1j, "one_row": X[:1], "one": X[:, :1],
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_that_torch_refuses_or_takes(name):
    for norm in _norms(1e-5):
        _same(norm, SHAPES[name])
    for norm in (
        nn.GroupNorm(8, 8),
        nn.GroupNorm(8, 8, affine=False),
        nn.LayerNorm(1, elementwise_affine=False),
    ):
        _same(norm, SHAPES[name])


def test_a_compiled_norm_with_such_an_eps():
    norm = nn.Sequential(nn.LayerNorm(8, eps=-1e-6))
    want = norm(X)
    with sgl_kernels.apply(norm):
        torch.testing.assert_close(torch.compile(norm, backend="aot_eager", fullgraph=True)(X), want)


def test_an_error_that_is_no_refusal_is_raised():
    norm = nn.Sequential(nn.LayerNorm(8))
    with (
        sgl_kernels.apply(norm),
        pytest.raises(sgl_kernels.ConfigError),
        sgl_kernels.use(backend="no_such_backend"),
    ):
        norm(X)
