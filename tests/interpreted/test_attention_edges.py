"""The attention kernel at its edges: hidden keys that are no numbers, low biases, huge windows, spare rows."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from sgl_kernels.kernels.triton.attention import attention, attention_varlen
from sgl_kernels.kernels.triton.attention_int8 import attention_int8
from sgl_kernels.kernels.triton.configs import AttentionConfig

SMALL = AttentionConfig(16, 16, 4, 1, guards_v=True)
NAN, INF = math.nan, math.inf
BASE = {
    "attn_mask": None, "is_causal": False, "causal_alignment": "bottom_right", "scale": None, "window_left": -1,
    "window_right": -1, "softcap": 0.0,
}  # fmt: skip
PACKED = {"is_causal": False, "scale": None, "window_left": -1, "window_right": -1, "softcap": 0.0}


def exact(q, k, v, **call):
    return attention(q, k, v, **{**BASE, **call}, write_lse=True, config=SMALL)


def int8(q, k, v, **call):
    asked = {n: x for n, x in {**BASE, **call}.items() if n != "softcap"}
    return attention_int8(q, k, v, **asked, config=SMALL), None


def tensors(sq=20, sk=40):
    torch.manual_seed(0)
    return torch.randn(1, sq, 1, 16), torch.randn(1, sk, 1, 16), torch.randn(1, sk, 1, 16)


def hiding(name, sq=20, sk=40):
    """(arguments, bool (Sq, Sk) of what they hide) for keys 17 and 39, and more."""
    seen = torch.rand(sq, sk, generator=torch.Generator().manual_seed(1)) < 0.7
    seen[5:9, 17], seen[:, 39] = False, False
    padding = torch.ones(sk, dtype=torch.bool)
    padding[16:] = False
    i, j = torch.arange(sq)[:, None], torch.arange(sk)
    return {
        "bool": ({"attn_mask": seen}, ~seen),
        "float": ({"attn_mask": torch.zeros(sq, sk).masked_fill(~seen, -INF)}, ~seen),
        "padding": ({"attn_mask": padding}, ~padding.expand(sq, sk)),
        "causal": ({"is_causal": True, "causal_alignment": "top_left"}, j > i),
        "window": ({"window_left": 4, "window_right": 3}, (j < i + 20 - 4) | (j > i + 20 + 3)),
    }[name]


@pytest.mark.parametrize("run", [exact, int8])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["bool", "float", "padding", "causal", "window"])
def test_what_hidden_keys_hold_reaches_no_row(name, value, run):
    call, hidden = hiding(name)
    q, k, v = tensors()
    clean, _ = run(q, k, v, **call)
    blind = hidden[:, (17, 39)].all(1)
    limit = 1e-6 if run is exact else 2e-2  # the mean that int8 takes out of K is another
    for spoilt in ("k", "v"):
        dirty = {"k": k.clone(), "v": v.clone()}
        dirty[spoilt][:, (17, 39), :, 3] = value
        out, _ = run(q, dirty["k"], dirty["v"], **call)
        torch.testing.assert_close(out[:, blind], clean[:, blind], rtol=limit, atol=limit)
        if value != value:
            assert out[:, ~blind].isnan().any(-1).all()


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("run", [exact, int8])
@pytest.mark.parametrize("name", ["plain", "float", "bool", "causal", "window", "packed"])
def test_a_nan_in_a_value_that_is_seen_shows_however_small_its_weight(name, run):
    """Keys 3 and 17 lie so far below that their weights round to 0: hidden keys do not show, these do."""
    q, k, v = tensors(20, 20)
    q, k = q.abs() + 0.5, k.abs()
    k[:, (3, 17)] = -400.0
    v[:, (3, 17), :, 5] = NAN
    i, j = torch.arange(20)[:, None], torch.arange(20)
    call, seen = {
        "plain": ({}, torch.ones(20, 20, dtype=torch.bool)),
        "bool": ({"attn_mask": (i + j) % 3 > 0}, (i + j) % 3 > 0),
        "float": ({"attn_mask": torch.where((i + j) % 3 > 0, 0.0, -INF)}, (i + j) % 3 > 0),
        "causal": ({"is_causal": True}, j <= i),
        "window": ({"window_left": 4, "window_right": 3}, (j >= i - 4) & (j <= i + 3)),
        "packed": ({"is_causal": True}, j <= i),
    }[name]
    if name == "packed" and run is exact:
        cu = torch.tensor([0, 20], dtype=torch.int32)
        out = attention_varlen(q[0], k[0], v[0], cu, cu, 20, 20, **{**PACKED, **call}, config=SMALL)[None]
    else:
        out, _ = run(q, k, v, **call)
    spoilt = seen[:, (3, 17)].any(1)
    assert spoilt.sum() > 0 and torch.equal(out.isnan().any(-1)[0, :, 0], spoilt)


@pytest.mark.parametrize("low", [-1e9, LOWEST])
def test_a_nan_under_the_lowest_bias_shows(low):
    q, k, v = tensors()
    v[:, 17, :, 5] = NAN
    bias = torch.zeros(20, 40)
    bias[:, 17], bias[5:9, 17] = low, -INF
    out, _ = exact(q, k, v, attn_mask=bias)
    want = torch.ones(20, dtype=torch.bool)
    want[5:9] = False
    assert torch.equal(out.isnan().any(-1)[0, :, 0], want)


@pytest.mark.parametrize(
    "dtype, low",
    [(torch.float32, -1e9), (torch.float32, -1e30), (torch.float32, LOWEST), (torch.bfloat16, -1e9),
     (torch.bfloat16, torch.finfo(torch.bfloat16).min), (torch.float16, -65504.0)],
)  # fmt: skip
def test_a_low_bias_is_an_addend_and_its_row_the_mean(dtype, low):
    """Scores of a few units are lost beside such a bias in float32, but for fp16's, which keeps two bits of them."""
    q, k, v = (x.to(dtype) for x in tensors())
    q = q * 2**-7
    out, lse = exact(q, k, v, attn_mask=torch.full((20, 40), low, dtype=dtype))
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    mean = v.double().mean(1, keepdim=True).expand_as(out)
    torch.testing.assert_close(out.double(), mean, rtol=limit, atol=limit)
    assert lse.isfinite().all()


@pytest.mark.parametrize("side", [2**31 - 1, sys.maxsize])
@pytest.mark.parametrize("sq, sk", [(9, 20), (20, 9)])
def test_windows_beyond_every_length_are_no_windows(side, sq, sk):
    q, k, v = tensors(sq, sk)
    want = exact(q, k, v)[0]
    for left, right in ((side, side), (side, -1)):
        torch.testing.assert_close(exact(q, k, v, window_left=left, window_right=right)[0], want)
        causal = exact(q, k, v, window_left=left, window_right=right, is_causal=True)[0]
        torch.testing.assert_close(causal, exact(q, k, v, is_causal=True)[0])


@pytest.mark.parametrize("longest", [0, 5, 30, sys.maxsize])
@pytest.mark.parametrize("behind", [0, 40])
def test_rows_that_nobody_computes_are_zero(longest, behind):
    """Fresh memory is NaN here, so that no luck is in it."""
    lengths = [5, 0, 30]
    cu = torch.tensor([0, 5, 5, 35], dtype=torch.int32)
    q, k, v = torch.randn(35 + behind, 2, 16), torch.randn(35, 1, 16), torch.randn(35, 1, 24)
    torch.use_deterministic_algorithms(True)
    try:
        out = attention_varlen(q, k, v, cu, cu, longest, 30, **PACKED, config=SMALL)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not out[35:].any() and out.isfinite().all()
    rows = max(1, -(-min(longest, 35 + behind) // SMALL.block_m)) * SMALL.block_m
    for n, length in enumerate(lengths):
        first = int(cu[n])
        want = exact(
            q[None, first : first + length], k[None, first : first + length], v[None, first : first + length]
        )
        torch.testing.assert_close(out[first : first + min(rows, length)], want[0][0][:rows])
        assert not out[first + rows : first + length].any()


def test_no_sequences_leave_zeros():
    cu, q = torch.zeros(1, dtype=torch.int32), torch.randn(9, 2, 16)
    assert not attention_varlen(q, q, q, cu, cu, 4, 4, **PACKED, config=SMALL).any()
