"""Packed calls at their ends, behind every vendor adapter: rows of nobody are zero, and lengths are checked."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.backends import flash_attn
from sgl_kernels.ops.attention import reference

NAN = float("nan")


def vendor(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, softcap):
    """As the vendors' kernels do: rows that no program computes keep what the allocator handed out, here NaN."""
    out = torch.full((*q.shape[:2], v.shape[-1]), NAN, dtype=q.dtype)
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        stop = min(int(b), int(a) + max_q)
        out[a:stop] = reference.attention(q[None, a:b], k[None, c:d], v[None, c:d], None, causal)[0][
            : stop - a
        ]
    return out


def calls():
    """One vendor kernel behind each adapter's own spelling of it."""

    def spelt(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, **kw):
        window = tuple(-1 if side is None else side for side in kw["window_size"])[:2]
        return vendor(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, kw.get("softmax_scale"),
            kw["causal"], window, kw.get("softcap", 0.0),
        )  # fmt: skip

    def with_lse(*args, **kw):
        return spelt(*args, **kw), None

    def aiter(q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, softcap):
        return spelt(q, k, v, cu_q, cu_k, max_q, max_k, causal=causal, window_size=(*window, 0)[:2])

    same = flash_attn._same_window
    return {
        "fa2, fa3, hf_kernels": flash_attn.adapter("attention_varlen", None, spelt, window_form=same),
        "fa4": flash_attn.adapter(
            "attention_varlen", None, with_lse, lse_flag="return_lse", window_form=flash_attn._open_window
        ),
        "aiter": flash_attn.varlen_adapter(aiter),
    }


def packed(sums, tokens):
    torch.manual_seed(0)
    cu = torch.tensor(sums, dtype=torch.int32)
    return (*(torch.randn(tokens, heads, 8) for heads in (4, 2, 2)), cu, cu)


REST = (False, None, -1, -1, 0.0)


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("sums, tokens", [([0, 3, 3, 9], 9), ([0, 3, 3, 9], 14), ([0, 0], 5)])
def test_tokens_behind_the_last_sequence_are_zero(name, sums, tokens):
    args = packed(sums, tokens)
    out = calls()[name](*args, 6, 6, *REST)
    torch.testing.assert_close(out, reference.attention_varlen(*args, 6, 6))
    assert not out[sums[-1] :].any()


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("sums, longest", [([1, 3, 9], 6), ([0, 5, 3], 6), ([0, 3, 20], 20), ([0, 3, 9], 5)])
def test_lengths_that_can_be_read_are_checked(name, sums, longest):
    with pytest.raises(ValueError, match="cu_seqlens_"):
        calls()[name](*packed(sums, 9), longest, longest, *REST)


@pytest.mark.parametrize("name", calls())
def test_rows_beyond_a_length_that_nobody_may_read_are_zero(name, monkeypatch):
    """On a device the lengths are not read: what the kernel leaves out is zero, not memory."""
    monkeypatch.setattr(flash_attn, "sequences", lambda *args: None)  # as on a device
    args = packed([0, 3, 3, 9], 12)
    out = calls()[name](*args, 4, 6, *REST)
    want = reference.attention_varlen(*args, 6, 6)
    torch.testing.assert_close(out[:7], want[:7])
    assert not out[7:].any()
