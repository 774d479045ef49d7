"""Bad input: each message names the argument, what it is, and what was expected."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels as sk

Q = torch.randn(2, 8, 4, 16)
X, W = torch.randn(2, 6, 32), torch.randn(32)
STARTS = torch.tensor([0, 8], dtype=torch.int32)
T = Q[0]

BAD = [
    (lambda: sk.attention([1], Q, Q), TypeError, "q is list, expected a torch.Tensor"),
    (lambda: sk.attention(Q, None, Q), TypeError, "k is NoneType"),
    (
        lambda: sk.attention(Q[0], Q, Q),
        ValueError,
        r"q has shape \[8, 4, 16\].*\(batch, seqlen, heads, head_dim\)",
    ),
    (lambda: sk.attention(Q.int(), Q.int(), Q.int()), ValueError, "q has dtype int32, expected one of"),
    (
        lambda: sk.attention(Q, Q.half(), Q),
        ValueError,
        r"k has dtype float16 but q has float32.*k\.to\(q\.dtype\)",
    ),
    (lambda: sk.attention(Q, Q[..., :8], Q), ValueError, "head_dim 16 but k has 8"),
    (lambda: sk.attention(Q, Q[:, :4], Q), ValueError, "all but the last dimension must agree"),
    (lambda: sk.attention(Q, Q[:1], Q[:1]), ValueError, "q has batch 2 but k has 1"),
    (
        lambda: sk.attention(Q, Q[:, :, :3], Q[:, :, :3]),
        ValueError,
        r"4 heads and k has 3.*transpose\(1, 2\)",
    ),
    (lambda: sk.attention(Q, Q, Q.to("meta")), ValueError, "v is on meta but q is on cpu"),
    (lambda: sk.attention(Q, Q, Q, attn_mask=torch.ones(2, 8)), ValueError, r"mask\[:, None, None, :\]"),
    (
        lambda: sk.attention(Q, Q, Q, attn_mask=torch.ones(3, 1, 1, 8)),
        ValueError,
        r"broadcast to .*\[2, 4, 8, 8\]",
    ),
    (
        lambda: sk.attention(Q, Q, Q, attn_mask=torch.ones(8, 8).long()),
        ValueError,
        r"int64, expected bool.*\.bool\(\)",
    ),
    (lambda: sk.attention(Q, Q, Q, attn_mask="causal"), TypeError, "attn_mask is str"),
    (
        lambda: sk.attention(Q, Q, Q, causal_alignment="left"),
        ValueError,
        "'left', expected one of 'bottom_right'",
    ),
    (lambda: sk.attention(Q, Q, Q, window_size=(-2, 0)), ValueError, r"window_size is \(-2, 0\)"),
    (lambda: sk.attention(Q, Q, Q, scale=float("nan")), ValueError, "scale is nan"),
    (lambda: sk.attention(Q, Q, Q, softcap=-1.0), ValueError, r"softcap is -1\.0"),
    (lambda: sk.attention(Q, Q, Q, backend="flsh"), sk.ConfigError, "flsh"),
    (lambda: sk.attention(Q, Q, Q, dropout=0.1), TypeError, "unexpected keyword argument 'dropout'"),
    (lambda: sk.attention_varlen(Q, Q, Q, STARTS, STARTS, 8, 8), ValueError, "total_tokens, heads, head_dim"),
    (
        lambda: sk.attention_varlen(T, T, T, STARTS.long(), STARTS, 8, 8),
        ValueError,
        "cu_seqlens_q is torch.int64",
    ),
    (lambda: sk.attention_varlen(T, T, T, STARTS, STARTS[:1], 8, 8), ValueError, "both must have batch"),
    (lambda: sk.attention_varlen(T, T, T, STARTS, STARTS, 8, -1), ValueError, "max_seqlen_k is -1"),
    (lambda: sk.attention_varlen(T, T, T, STARTS + 1, STARTS, 8, 8), ValueError, "cu_seqlens_q"),
    (lambda: sk.rms_norm(X, W[:5]), ValueError, r"weight has shape \[5\], expected \[32\]"),
    (lambda: sk.rms_norm(X, W, eps=-1e-6), ValueError, "eps is -1e-06"),
    (lambda: sk.rms_norm(torch.tensor(1.0)), ValueError, "expected .*D"),
    (lambda: sk.rms_norm(X, W.to("meta")), ValueError, "weight is on meta"),
    (lambda: sk.layer_norm(X, bias=3), TypeError, "bias is int"),
    (lambda: sk.group_norm(X, 4), ValueError, "num_groups is 4, expected a divisor of the 6 channels"),
    (lambda: sk.group_norm(X, 3, activation="relu"), ValueError, "'relu', expected one of 'none', 'silu'"),
    (lambda: sk.norm_scale_shift(X, torch.randn(3, 32)), ValueError, "scale has shape .*expected one of"),
    (lambda: sk.norm_scale_shift(X, torch.randn(2, 4, 1, 32)), ValueError, "F dividing S"),
    (lambda: sk.norm_scale_shift(X, norm="batch"), ValueError, "'batch', expected one of 'layer', 'rms'"),
    (lambda: sk.residual_gate_norm_scale_shift(X, X[:, :3]), ValueError, "residual has shape"),
    (lambda: sk.gate_residual(X, X, None), TypeError, "gate is None"),
    (lambda: sk.gate_residual(X.half(), X, W), ValueError, "x has dtype float32 but residual has float16"),
    (lambda: sk.scale_shift(X, "big"), TypeError, "scale is str"),
    (lambda: sk.apply_rope(Q, torch.ones(8, 16), torch.ones(8, 16)), ValueError, "halves are not repeated"),
    (lambda: sk.apply_rope(Q, torch.ones(7, 8), torch.ones(7, 8)), ValueError, r"cos has shape \[7, 8\]"),
    (lambda: sk.apply_rope(Q, torch.ones(8, 8), torch.ones(8, 4)), ValueError, "must be equal"),
    (lambda: sk.qk_norm_rope(Q, Q, cos=torch.ones(8, 8)), ValueError, "cos is given without the other"),
    (lambda: sk.qk_norm_rope(Q, Q[:, :3]), ValueError, "all but the number of heads"),
    (lambda: sk.silu_mul(torch.randn(3, 7)), ValueError, "x has 7 columns, expected an even number"),
    (lambda: sk.silu_mul(X, X[:, :2]), ValueError, "up has"),
    (lambda: sk.gelu_mul(X, approximate="fast"), ValueError, "'fast', expected one of 'tanh', 'none'"),
    (lambda: sk.gelu_tanh(3.0), TypeError, "x is float"),
]


@pytest.mark.parametrize("call, kind, message", BAD, ids=range(len(BAD)))
def test_bad_input_gets_a_clear_error(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_an_error_leaves_nothing_bound():
    bound = len(sk.core.dispatch.current().bound)
    with pytest.raises(ValueError):
        sk.attention(Q, Q.half(), Q)
    assert len(sk.core.dispatch.current().bound) == bound
    assert sk.attention(Q, Q, Q).shape == Q.shape
