"""Packed attention: one contract on every backend of this machine, cold and warm, with and without a gradient."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels
from sgl_kernels.backends._attention import zero_outside
from sgl_kernels.ops.attention import reference

BACKENDS = ("torch", "cpu", None)


def starts(*sums):
    return torch.tensor(sums, dtype=torch.int32)


def packed(tokens=14, grad=False):
    torch.manual_seed(0)
    q, k, v = torch.randn(tokens, 4, 16), torch.randn(15, 2, 16), torch.randn(15, 2, 16)
    return [t.requires_grad_(grad) for t in (q, k, v)]


def calls(grad, backend):
    yield lambda *a, **kw: sgl_kernels.attention_varlen(*a, **kw, backend=backend)
    yield lambda *a, **kw: sgl_kernels.flash_attn_varlen_func(*a, **kw)
    yield lambda *a, **kw: sgl_kernels.flash_attn_varlen_func(*a, **kw, return_attn_probs=True)[0]
    slopes = torch.rand(4)
    yield lambda *a, **kw: sgl_kernels.flash_attn_varlen_func(*a, **kw, alibi_slopes=slopes)


@pytest.mark.parametrize(
    "backend, grad",
    [("torch", False), ("torch", True), ("cpu", False), (None, False), (None, True)],
)
def test_tokens_behind_the_last_sequence_are_zero(backend, grad):
    q, k, v = packed(grad=grad)
    for call in calls(grad, backend):
        for _ in range(2):  # cold, warm
            out = call(q, k, v, starts(0, 5, 11), starts(0, 7, 15), 6, 8)
            assert not out[11:].any() and out[:11].any(-1).all() and out.isfinite().all()
        if grad:
            grads = torch.autograd.grad(out.sum(), (q, k, v))
            assert not grads[0][11:].any() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize(
    "backend, grad",
    [("torch", False), ("torch", True), ("cpu", False), (None, False), (None, True)],
)
@pytest.mark.parametrize(
    "sums, longest, match",
    [
        ((0, 5, 14), 6, "cu_seqlens_q"),  # a sequence of 9
        ((1, 5, 11), 9, "cu_seqlens_q"),
        ((0, 7, 5), 9, "cu_seqlens_q"),
        ((0, 5, 15), 99, "cu_seqlens_q"),
    ],
)
def test_lengths_that_do_not_fit_are_an_error_also_when_warm(sums, longest, match, backend, grad):
    q, k, v = packed(grad=grad)
    for call in calls(grad, backend):
        call(q, k, v, starts(0, 5, 11), starts(0, 7, 15), longest, 8)
        for _ in range(2):
            with pytest.raises(ValueError, match=match):
                call(q, k, v, starts(*sums), starts(0, 7, 15), longest, 8)
        with pytest.raises(ValueError, match="cu_seqlens_k"):
            call(q, k, v, starts(0, 5, 11), starts(0, 7, 15), 6, 7)


def test_promises_beyond_every_length_are_kept():
    q, k, v = packed()
    cu_q, cu_k, huge = starts(0, 5, 11), starts(0, 7, 15), 2**31 + 5
    want = reference.attention_varlen(q, k, v, cu_q, cu_k, 6, 8)
    for backend in BACKENDS:
        got = sgl_kernels.attention_varlen(
            q, k, v, cu_q, cu_k, huge, huge, window_size=(2**63 - 1, 2**31 - 1), backend=backend
        )
        torch.testing.assert_close(got, want)


def test_alibi_and_windows_of_flash_are_checked_and_served():
    q, k, v = packed()
    batch = [t[None] for t in (q, k, v)]
    plain = sgl_kernels.flash_attn_func(*batch)
    torch.testing.assert_close(sgl_kernels.flash_attn_func(*batch, window_size=None), plain)
    for slopes in (torch.rand(3), torch.rand(2, 4), torch.rand(4, 1)):
        with pytest.raises(ValueError, match="alibi_slopes has shape"):
            sgl_kernels.flash_attn_func(*batch, alibi_slopes=slopes)
    cu_q, cu_k = starts(0, 5, 11), starts(0, 7, 15)
    _, lse, _ = sgl_kernels.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, 6, 8, window_size=None, return_attn_probs=True
    )
    assert lse.shape == (4, 14) and bool((lse[:, 11:] == -torch.inf).all()) and lse[:, :11].isfinite().all()
    with pytest.raises(ValueError, match="window_size"):
        sgl_kernels.flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, 6, 8, window_size=(-2, 1), return_attn_probs=True
        )


@pytest.mark.parametrize("longest", [3, 4, 100])
def test_what_a_vendor_leaves_in_its_memory_becomes_zero(longest):
    out = torch.full((12, 2, 3), float("nan"))
    cu = starts(0, 4, 4, 9)
    out[:9] = 1.0
    kept = zero_outside(out.clone(), cu, longest)
    expected = [1, 1, 1, longest > 3, 1, 1, 1, longest > 3, longest > 4, 0, 0, 0]
    assert kept[:, 0, 0].tolist() == [float(e) for e in expected]
