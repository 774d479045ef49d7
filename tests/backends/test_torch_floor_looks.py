"""The looks at small tensors: the key module's answers are torch's, and where it has none torch is asked."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sgl_kernels.backends import _torch_checks as checks
from sgl_kernels.backends import torch_rowwise

NAN, INF = math.nan, math.inf
COMPILED = pytest.mark.skipif(checks._near is None, reason="the key module is not built")


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    if request.param == "torch":
        for name in ("_near", "_finite", "_bounds", "_even"):
            monkeypatch.setattr(checks, name, None)
    elif checks._near is None:
        pytest.skip("the key module is not built")


@pytest.mark.parametrize("rows", [1, 7, 16, 17, 300])
@pytest.mark.parametrize("value", [0.0, 7.9, -7.9, 8.0, -8.0, 1e30, NAN, INF, -INF])
def test_means_are_near_or_not(way, rows, value):
    for at in {0, rows // 2, rows - 1}:
        mean, rstd = torch.randn(rows, 1) * 0.1, torch.ones(rows, 1)
        mean[at] = value
        assert checks.is_near(mean, rstd, 8.0) == (abs(value) < 8)
        assert checks.is_near(mean.requires_grad_(), rstd, 8.0) == (abs(value) < 8)
    assert not checks.is_near(torch.zeros(rows, 1), torch.full((rows, 1), NAN), 8.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF, 1.0])
def test_finite_or_not_in_any_order_of_memory(way, dtype, value):
    whole = torch.randn(2, 6, 4, 8, dtype=dtype)
    views = {
        "dense": lambda t: t, "heads first": lambda t: t.transpose(1, 2), "columns": lambda t: t.transpose(2, 3),
        "every second": lambda t: t[:, ::2], "expanded": lambda t: t[:, :1].expand(2, 6, 4, 8),
        "later": lambda t: t[:, 2:, 1:], "one": lambda t: t[1, 2, 1, 3],
    }  # fmt: skip
    for name, view in views.items():
        assert checks.is_finite(view(whole)), name
        seen = whole.clone()
        view(seen)[..., -1:].fill_(value) if name != "one" else view(seen).fill_(value)
        assert checks.is_finite(view(seen)) == math.isfinite(value), name
    hidden = whole.clone()
    hidden[:, 1::2] = value
    assert checks.is_finite(hidden[:, ::2])  # what stands beside a view is not looked at


def test_bounds(way):
    t = torch.tensor([[3.0, -2.0], [0.5, 4.0]])
    assert checks.bounds(t) == (-2.0, 4.0, False)
    t[1, 0] = -0.0
    assert checks.bounds(t) == (-2.0, 4.0, True)
    t[0, 0] = -INF
    assert checks.bounds(t) == (-INF, 4.0, True)
    log_sums = torch.randn(2, 5, 3).transpose(1, 2)  # as torch's attention keeps them
    assert checks.bounds(log_sums)[:2] == (float(log_sums.min()), float(log_sums.max()))
    for view in (
        torch.arange(1.0, 10).as_strided((3, 3), (2, 2)),
        torch.arange(9.0)[1::2],
        torch.ones(1).expand(4),
    ):
        assert checks.bounds(view) == (float(view.min()), float(view.max()), False)
    for at in range(4):
        odd = torch.randn(4)
        odd[at] = NAN
        low, high, _ = checks.bounds(odd)
        assert math.isnan(low) and math.isnan(high)


@COMPILED
def test_what_the_key_module_leaves_to_torch():
    small = torch.ones(8)
    for odd in (
        torch.ones(1 << 17),
        torch.empty(0),
        small.to("meta"),
        torch.ones(4, dtype=torch.int64),
        3.0,
        None,
    ):
        assert checks._finite(odd) is None and checks._bounds(odd) is None
    assert checks._near(small, small.double(), 8.0) is None and checks._near(small, small[:4], 8.0) is None
    assert checks._near(torch.ones(4, 2)[:, 0], torch.ones(4), 8.0) is None
    assert checks._bounds(torch.randn(2, 5, 3).transpose(1, 2)) is not None
    assert checks._bounds(torch.ones(9).as_strided((3, 3), (2, 2))) is None
    with pytest.raises(TypeError):
        checks._near(small, small)
    with pytest.raises(TypeError):
        checks._near(small, small, "8")


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 32, 24, 40), (2, 16, 3, 12, 14), (1, 8, 1, 40000)])
@pytest.mark.parametrize("mean", [0.0, 0.5, 30.0, 1e3])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_with_channels_last(way, shape, mean, affine):
    order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (torch.randn(shape) + mean).to(memory_format=order)
    w, b = (torch.randn(shape[1]) if affine else None for _ in range(2))
    want = F.group_norm(x.double(), 4, *(None if t is None else t.double() for t in (w, b)), eps=1e-5)
    got = torch_rowwise._group_norm(x, 4, w, b, 1e-5, "none")
    assert got.stride() == x.stride()
    assert float((got - want).abs().max()) < 4e-6


@pytest.mark.parametrize("value", [NAN, INF, 1e25])
def test_group_norm_with_channels_last_keeps_odd_groups_apart(way, value):
    x = torch.randn(2, 16, 24, 24).to(memory_format=torch.channels_last)
    x[1, 5, 3, 3] = value
    got = torch_rowwise._group_norm(x, 4, None, None, 1e-5, "none").unflatten(1, (4, 4))
    want = F.group_norm(x.double(), 4, eps=1e-5).unflatten(1, (4, 4))
    for n in range(2):
        for g in range(4):
            if (n, g) != (1, 1):
                torch.testing.assert_close(got[n, g].double(), want[n, g], rtol=0, atol=4e-6)
    assert value == 1e25 or got[1, 1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_odd_rows(way, dtype, size):
    out = (torch.rand(2, 3, 5, size) + 0.5).to(dtype)
    for value in (INF, 2.0):
        out[1, 2, 3, 0] = value
        assert checks.has_no_odd_row(out) and checks.has_no_odd_row(out.transpose(1, 2))
    for value, at in ((0.0, slice(None)), (-0.0, slice(None)), (NAN, size // 2), (-NAN, 0)):
        for view in (lambda t: t, lambda t: t.transpose(1, 2)):
            odd = out.clone()
            odd[1, 0, 4, at] = value
            assert not checks.has_no_odd_row(view(odd))
    odd = out.clone()
    odd[0, 0, 0, 1:] = 0  # one element speaks for its row
    assert checks.has_no_odd_row(odd)
