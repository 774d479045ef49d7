"""Attention in C++ where numbers end: lowest biases, huge scores and values, NaN in hidden keys, endless windows."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from sgl_kernels.kernels.cpu.loader import load

SHAPES = ((40, 50), (3, 50), (1, 1500), (70, 400))  # blocked, decoding, decoding in splits, several blocks
LOWEST = torch.finfo(torch.float32).min
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.skipif(load() is not None, reason="the C++ extension is not built")


def inputs(rows: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + keys)
    shapes = ((2, rows, 4, 64), (2, keys, 2, 64), (2, keys, 2, 64))
    q, k, v = (torch.randn(shape).to(dtype) for shape in shapes)
    return q, k, v


def expected(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """In float64; a hidden key's V is left out of the sum rather than multiplied by 0."""
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        bias = (
            torch.zeros(()).double().masked_fill(~mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask.double()
        )
        scores = torch.where(bias == -torch.inf, bias, scores + bias)
    top = scores.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    # A visible key whose V is no number makes its row NaN; a hidden one takes no part.
    spoilt = ((scores != -torch.inf) & ~v.isfinite().all(-1)[:, :, None]).any(-1, keepdim=True)
    out = weights @ v.nan_to_num(0, 0, 0) / total.masked_fill(total == 0, 1)
    out = out.masked_fill(spoilt, torch.nan)
    return out.transpose(1, 2), (top + total.log()).squeeze(-1)


def exact(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, far: int = -1
) -> tuple[Tensor, Tensor]:
    scale = q.shape[-1] ** -0.5
    out, lse = torch.ops.sgl_kernels_cpu.attention(q, k, v, mask, 0, scale, far, far, 0.0, True)
    return out, lse


def sage(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, int8_values: bool = True) -> Tensor:
    scale = q.shape[-1] ** -0.5
    out: Tensor = torch.ops.sgl_kernels_cpu.sage_attention(q, k, v, mask, 0, scale, -1, -1, int8_values)
    return out


def assert_near(out: Tensor, want: Tensor, tolerance: float) -> None:
    assert torch.equal(out.isnan(), want.isnan())
    if want.isnan().all():
        return
    error = (out.double() - want).nan_to_num(0).norm() / want.nan_to_num(0).norm()
    assert error < tolerance, error


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize("fill", (LOWEST, torch.finfo(torch.bfloat16).min, -1e30))
@pytest.mark.parametrize("per_row", (False, True))
def test_a_finite_bias_hides_nothing(
    dtype: torch.dtype, rows: int, keys: int, fill: float, per_row: bool
) -> None:
    q, k, v = inputs(rows, keys, dtype)
    mask = torch.zeros(2, 1, rows if per_row else 1, keys)
    mask[0] = fill
    mask[1, ..., ::3], mask[1, ..., 1::3] = fill, -torch.inf
    if per_row:
        mask[1, :, 0] = -torch.inf
        mask[0, :, -1, ::2] = -torch.inf
    out, lse = exact(q, k, v, mask)
    want, want_lse = expected(q, k, v, mask)
    assert_near(out, want, TOLERANCE[dtype])
    assert torch.allclose(lse.double(), want_lse, rtol=1e-3)
    for int8_values in (False, True):
        assert_near(sage(q, k, v, mask, int8_values), want, 0.04)


@pytest.mark.parametrize(
    ("dtype", "size"), ((torch.float16, 6e4), (torch.bfloat16, 1e18), (torch.float32, 1e18))
)
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
def test_huge_scores(dtype: torch.dtype, size: float, rows: int, keys: int) -> None:
    q, k, v = inputs(rows, keys, dtype)
    most = torch.finfo(dtype).max
    q, k = ((t.float() * size).clamp(-most, most).to(dtype) for t in (q, k))
    out, lse = exact(q, k, v)
    want, want_lse = expected(q, k, v)
    assert_near(out, want, 0.05)
    assert torch.allclose(lse.double(), want_lse, rtol=1e-3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize("size", (1e20, 1e38, 3.3e38))
def test_huge_values(dtype: torch.dtype, rows: int, keys: int, size: float) -> None:
    q, k, v = inputs(rows, keys, dtype)
    v = (torch.rand(v.shape) * size).to(dtype)
    out, _ = exact(q * 3, k, v)
    want, _ = expected(q * 3, k, v)
    assert_near(out, want, TOLERANCE[dtype])
    assert_near(sage(q * 3, k, v, None), want, 0.05)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize("junk", (torch.nan, torch.inf))
@pytest.mark.parametrize("where", ("k", "v"))
@pytest.mark.parametrize("kind", ("bool", "float", "per_row"))
def test_what_hidden_keys_hold(
    dtype: torch.dtype, rows: int, keys: int, junk: float, where: str, kind: str
) -> None:
    q, k, v = inputs(rows, keys, dtype)
    (k if where == "k" else v)[:, keys // 2 :] = junk
    mask = torch.arange(keys).expand(2, 1, rows if kind == "per_row" else 1, keys) < keys // 2
    if kind == "per_row" and junk != junk:
        mask = mask.clone()
        mask[:, :, -1, -1] = True  # the last row sees one, and is NaN
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    want, _ = expected(q, k, v, mask)
    assert_near(exact(q, k, v, mask)[0], want, TOLERANCE[dtype])
    assert_near(sage(q, k, v, mask), want, 0.04)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize("junk", (torch.nan, torch.inf))
def test_a_key_of_the_lowest_bias_is_seen(dtype: torch.dtype, rows: int, keys: int, junk: float) -> None:
    """Its weight rounds to 0, and 0 times what is no number is none."""
    q, k, v = inputs(rows, keys, dtype)
    v[:, keys // 3] = junk
    mask = torch.zeros(1, 1, rows, keys)
    mask[..., keys // 3] = LOWEST
    assert not exact(q, k, v, mask)[0].isfinite().any()
    for one in (mask, mask[:, :, :1]):  # a mask per row, and one that sets the scales of V
        for int8_values in (False, True):
            assert not sage(q, k, v, one, int8_values).isfinite().any()
    mask[..., keys // 3] = -torch.inf
    assert exact(q, k, v, mask)[0].isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(("rows", "keys"), SHAPES)
@pytest.mark.parametrize("kind", ("none", "bool", "float", "per_row"))
def test_products_that_overflow_below(dtype: torch.dtype, rows: int, keys: int, kind: str) -> None:
    """Each is the lowest score, and no hidden one: a row of nothing else is the mean over the keys that it sees."""
    q, k, v = inputs(rows, keys, dtype)
    q, k = q.abs() * 1e20 + 1e20, -k.abs() * 1e20 - 1e20
    q[0, -1] = 1e-20 * q[0, -1]  # an ordinary row among them
    mask = None
    if kind != "none":
        mask = torch.arange(keys).expand(2, 1, rows if kind == "per_row" else 1, keys) % 3 != 0
        mask = mask.clone()
        if kind == "per_row" and rows > 1:
            mask[:, :, 0] = False  # sees no key
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    out, lse = exact(q, k, v, mask)
    seen = torch.ones(2, 1, rows, keys) if mask is None else (mask if mask.dtype == torch.bool else mask == 0)
    weights = seen.expand(2, 2, rows, keys).double()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    want = (weights @ v.double().transpose(1, 2)).transpose(1, 2).repeat_interleave(2, 2)
    ordinary, other = expected(q[:1, -1:], k[:1], v[:1], None if mask is None else mask[:1, :, -1:])
    want[0, -1] = ordinary[0, 0]
    assert_near(out, want, TOLERANCE[dtype])
    hidden = ~seen.bool().any(-1).expand(2, 4, rows)
    assert torch.equal(lse == -torch.inf, hidden)
    assert torch.allclose(lse[0, :, -1].double(), other[0, :, 0], rtol=1e-3)
    for int8_values in (False, True):
        assert_near(sage(q, k, v, mask, int8_values), want, 0.04)
    k[:, 1] = -torch.inf
    v[:, 1] = torch.nan
    poisoned = exact(q, k, v, mask)[0].isnan().all(-1).transpose(1, 2)
    assert torch.equal(poisoned, ~hidden)  # key 1 is seen, so its V counts


@pytest.mark.parametrize(("rows", "keys"), SHAPES)
def test_large_hidden_keys_do_not_set_the_scales(rows: int, keys: int) -> None:
    q, k, v = inputs(rows, keys, torch.float32)
    k[:, keys // 2 :] = v[:, keys // 2 :] = 1e4
    mask = torch.arange(keys).expand(2, 1, 1, keys) < keys // 2
    assert_near(sage(q, k, v, mask), expected(q, k, v, mask)[0], 0.04)


def test_endless_windows() -> None:
    q, k, v = inputs(40, 50, torch.float32)
    for far in (2**31 - 1, 2**31, sys.maxsize):
        assert_near(exact(q, k, v, far=far)[0], expected(q, k, v)[0], 3e-6)


def test_more_rows_than_can_be_counted_are_refused() -> None:
    q = torch.ones(1, 1, 1, 1, dtype=torch.float16).expand(1, 2**31 // 12 + 100, 12, 1)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="expected fewer than 2\\^30 rows"):
        exact(q, one, one)
