"""Norms in C++ where numbers end: large means, squares beyond float32, denormals, eps = 0; the oracle is in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu_rowwise import MISSING, normal, padded

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

OPS = torch.ops.sgl_kernels_cpu
NEAR = 2e-6
HUGE = (1e19, 1e25, 3e38)
TINY = (1e-18, 1e-25, 1e-37)


def rows(dim: int, scale: float, mean: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seven rows within (-scale, scale) around a mean; the second is of ordinary size: it must not be disturbed."""
    x = normal(7, dim, seed=dim).tanh() * scale + mean
    x[1] = normal(dim, seed=1)
    return x.to(dtype)


def normed(x: Tensor, norm: str, eps: float) -> Tensor:
    x = x.double()
    x = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def near(out: Tensor, want: Tensor, tolerance: float = NEAR) -> None:
    assert torch.isfinite(out).all()
    error = (out.double() - want).abs() / want.abs().clamp(min=1e-2 * want.abs().max().item())
    assert error.max() <= tolerance * 100, error.max()
    assert (out.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("dim", (5, 64, 200, 1024))
@pytest.mark.parametrize("scale", (*HUGE, *TINY))
@pytest.mark.parametrize("norm", ("layer", "rms"))
def test_every_size_of_row(dim: int, scale: float, norm: str) -> None:
    eps = 0.0 if scale < 1 else 1e-6
    for x in (rows(dim, scale), padded(rows(dim, scale))):
        want = normed(x, norm, eps)
        near(OPS.norm_scale_shift(x, None, None, None, None, eps, norm), want)
        if norm == "layer":
            near(OPS.layer_norm(x, None, None, eps), want)
            gain, shift = normal(dim, seed=3), normal(dim, seed=4)
            near(OPS.layer_norm(x, gain, shift, eps), want * gain.double() + shift.double())
        else:
            near(OPS.rms_norm(x, None, eps, 0.0), want)
        out, total = OPS.residual_gate_norm_scale_shift(x / 2, x / 4, None, None, None, None, None, eps, norm)
        near(out, normed(total, norm, eps))
    inplace = rows(dim, scale)
    want = normed(inplace, norm, eps)
    if norm == "rms":
        near(OPS.rms_norm_out(inplace, None, eps, 0.0, inplace), want)


@pytest.mark.parametrize("scale", HUGE)
@pytest.mark.parametrize("norm", ("layer", "rms"))
def test_huge_bfloat16(scale: float, norm: str) -> None:
    x = rows(200, scale, dtype=torch.bfloat16)
    out = OPS.norm_scale_shift(x, None, None, None, None, 1e-6, norm)
    near(out, normed(x, norm, 1e-6), 4e-3)


@pytest.mark.parametrize("mean", (1e3, 1e4, 1e5))
@pytest.mark.parametrize("dim", (8, 100, 768, 3072))
def test_layer_norm_at_large_means(mean: float, dim: int) -> None:
    x = rows(dim, 3.0, mean)
    want = normed(x, "layer", 1e-6)
    near(OPS.layer_norm(x, None, None, 1e-6), want)
    near(OPS.norm_scale_shift(padded(x), None, None, None, None, 1e-6, "layer"), want)


@pytest.mark.parametrize("scale", (*HUGE, 1e-18, 1e-25))
@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize("dim", (64, 70))
def test_qk_norm_of_every_size(scale: float, interleaved: bool, dim: int) -> None:
    eps = 0.0 if scale < 1 else 1e-6
    q, k = (rows(dim, scale).view(1, 7, 1, dim).expand(1, 7, h, dim) for h in (5, 1))
    outs = OPS.qk_norm_rope(q, k, None, None, None, None, eps, interleaved)
    for out, x in zip(outs, (q, k), strict=True):
        near(out, normed(x, "rms", eps))


def grouped(x: Tensor, groups: int, eps: float) -> Tensor:
    flat = x.double().contiguous().view(x.shape[0], groups, -1)
    return normed(flat, "layer", eps).view(x.shape)


def layouts(x: Tensor) -> dict[str, Tensor]:
    found = {"contiguous": x, "strided": x.repeat_interleave(2, dim=-1)[..., ::2]}
    if x.ndim == 4:
        found["channels_last"] = x.to(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("shape", ((2, 32), (2, 40, 1, 1), (2, 24, 7, 9), (1, 64, 33, 33), (3, 16, 1200)))
@pytest.mark.parametrize(
    ("scale", "mean"),
    ((1, 1e3), (1, 1e4), (1, 1e5), (1e19, 0), (1e25, 0), (3e38, 0), (1e36, 3e38), (1e-18, 0), (1e-25, 0)),
)
def test_group_norm(shape: tuple[int, ...], scale: float, mean: float) -> None:
    eps = 0.0 if scale < 1 else 1e-6
    x = normal(*shape, seed=5).tanh() * scale + mean
    want = grouped(x, 8, eps)
    weight, bias = normal(shape[1], seed=6), normal(shape[1], seed=7)
    affine = want * weight.double().view(1, -1, *[1] * (len(shape) - 2))
    affine = affine + bias.double().view(1, -1, *[1] * (len(shape) - 2))
    for laid in layouts(x).values():
        near(OPS.group_norm(laid, 8, None, None, eps, "none"), want)
        near(OPS.group_norm(laid, 8, weight, bias, eps, "none"), affine)
        near(OPS.group_norm(laid, 8, None, None, eps, "silu"), torch.nn.functional.silu(want))


def test_without_eps_a_row_without_spread_is_what_torch_makes_of_it() -> None:
    zero, constant = torch.zeros(2, 64), torch.full((2, 64), 3.7)
    for x in (zero, constant):
        assert OPS.layer_norm(x, None, None, 0.0).isnan().all()
        assert OPS.group_norm(x, 8, None, None, 0.0, "none").isnan().all()
        assert not OPS.layer_norm(x, None, None, 1e-30).any()
        assert not OPS.group_norm(x, 8, None, None, 1e-30, "none").any()
    assert OPS.rms_norm(zero, None, 0.0, 0.0).isnan().all()
    assert not OPS.rms_norm(zero, None, 1e-6, 0.0).any()
    near(OPS.rms_norm(constant, None, 0.0, 0.0), torch.ones(2, 64))


def test_junk_spoils_its_own_row() -> None:
    for junk in (torch.nan, torch.inf):
        clean = rows(100, 1.0)
        x, others = clean.clone(), [0, 1, 2, 4, 5, 6]
        x[3, 7] = junk
        for out, alone in (
            (OPS.layer_norm(x, None, None, 1e-6), OPS.layer_norm(clean, None, None, 1e-6)),
            (OPS.rms_norm(x, None, 1e-6, 0.0), OPS.rms_norm(clean, None, 1e-6, 0.0)),
        ):
            assert torch.equal(out[others], alone[others])
            assert out[3, 7].isnan()
