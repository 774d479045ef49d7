"""How far quantised CPU attention is from the truth, on plain input and on input with outliers."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.tools.parity.tolerance import measure
from tests.kernels.cpu_attention import DTYPES, INF, MISSING, Call


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


def run(call: Call, int8_values: bool = True) -> torch.Tensor:
    return torch.ops.sgl_kernels_cpu.sage_attention(
        call.q, call.k, call.v, call.mask, call.causal, call.factor, call.left, call.right, int8_values
    )


def call(kind="normal", sq=150, sk=600, h=4, hk=2, d=64, dv=None, dtype=torch.bfloat16, **rest):
    q, k, v = torch.randn(2, sq, h, d), torch.randn(2, sk, hk, d), torch.randn(2, sk, hk, dv or d)
    if kind == "key bias":  # a few channels far from zero in every key: smoothing removes them
        k += 20 * torch.randn(1, 1, hk, d) * (torch.rand(d) < 0.1)
    if kind == "key outliers":  # a few channels 8 times as wide
        k[..., : d // 16] *= 8
    if kind == "value bias":
        v += 5 * torch.randn(1, 1, hk, dv or d)
    return Call(q.to(dtype), k.to(dtype), v.to(dtype), **rest)


@pytest.mark.parametrize("int8_values", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind, cosine, relative",
    [
        ("normal", 0.9997, 0.025),
        ("key bias", 0.9997, 0.025),
        ("key outliers", 0.999, 0.045),
        ("value bias", 0.9999, 0.01),
    ],
)
def test_accuracy(kind, cosine, relative, dtype, int8_values, seed):
    torch.manual_seed(seed)
    c = call(kind, d=128, dtype=dtype)
    error = measure(run(c, int8_values), c.oracle()[0])
    assert error.finite_match and error.cosine >= cosine and error.relative_l2 <= relative, error


@pytest.mark.parametrize(
    "rest",
    [
        {"causal": 1},
        {"causal": 2},
        {"left": 70, "right": 5},
        {"scale": -0.1},
        {"mask": torch.rand(2, 1, 1, 600) > 0.5},
        {"mask": torch.rand(150, 600) > 0.5},
        {"mask": torch.randn(2, 4, 150, 600)},
        {"mask": torch.randn(1, 1, 150, 1)},
    ],
)
@pytest.mark.parametrize("d, dv", [(64, 64), (37, 50), (72, 40), (3, 1)])
def test_what_decides_visibility_is_exact(rest, d, dv, seed):
    torch.manual_seed(seed)
    c = call(d=d, dv=dv, **rest)
    out, (exact, lse) = run(c), c.oracle()
    error = measure(out, exact)
    assert error.cosine >= 0.998 and error.relative_l2 <= 0.06, error
    assert not out.transpose(1, 2)[torch.isneginf(lse)].any()


@pytest.mark.parametrize("sq, sk", [(1, 300), (3, 0), (0, 5), (9, 1), (65, 5), (300, 25), (16, 1000)])
def test_odd_lengths(sq, sk, seed):
    torch.manual_seed(seed)
    c = call(sq=sq, sk=sk)
    exact = c.oracle()[0]
    out = run(c)
    assert out.shape == exact.shape
    if sq and sk:
        assert measure(out, exact).cosine >= 0.9995


def test_nan_in_a_query_stays_and_in_a_key_does_not_hide(seed):
    torch.manual_seed(seed)
    c = call()
    clean = run(c)
    c.q[0, 7, 1, 3] = float("nan")
    out = run(c)
    assert out[0, 7, 1].isnan().all()
    out[0, 7, 1] = clean[0, 7, 1]
    assert torch.equal(out, clean)
    c.k[1, 5, 0, 2] = INF
    assert measure(run(c), c.oracle()[0]).finite_match


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_weights_that_round_to_nothing_stay_in_the_sum(dtype, seed):
    torch.manual_seed(seed)
    c = call(sk=1000, dtype=dtype)
    c.q *= 0.3
    c.q[..., 0] = 8  # five keys lead, and most of the others round to nothing
    c.k[:, ::200, :, 0] = 8
    error = measure(run(c), c.oracle()[0])
    assert error.relative_l2 <= 0.04, error  # with the sum of the rounded weights 0.074


def test_scores_that_grow(seed):
    torch.manual_seed(seed)
    c = call(sk=900, d=32, dtype=torch.float32)
    c.k *= torch.linspace(0.01, 12.0, 900)[None, :, None, None]
    assert measure(run(c), c.oracle()[0]).cosine >= 0.999


def test_the_same_call_gives_the_same_bits(seed):
    torch.manual_seed(seed)
    c = call(causal=1)
    first = run(c)
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        assert torch.equal(run(c), first)
