"""Rotary embedding in C++, alone and after the norm of q and k, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.cpu_rowwise import DTYPES, MISSING, check, normal, padded, run


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


DIMS = ((64, 64), (72, 72), (96, 32), (128, 128), (80, 40), (6, 2), (128, 96), (256, 256))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim, rotary_dim", DIMS)
@pytest.mark.parametrize("interleaved", (True, False))
def test_rope_matches_float64(dtype, head_dim, rotary_dim, interleaved):
    for heads, kv_heads, table in ((4, 4, (5,)), (6, 2, (2, 5)), (1, 1, (1, 5))):
        q = normal(2, 5, heads, head_dim, dtype=dtype)
        k = normal(2, 5, kv_heads, head_dim, dtype=dtype, seed=1)
        for table_dtype in (torch.float32, dtype, torch.float64):
            cos = normal(*table, rotary_dim // 2, dtype=table_dtype, seed=2)
            sin = normal(*table, rotary_dim // 2, dtype=table_dtype, seed=3)
            check("apply_rope", q, cos, sin, interleaved)
            weight, other = normal(head_dim, dtype=dtype, seed=4), normal(head_dim, seed=5)
            check("qk_norm_rope", q, k, weight, other, cos, sin, 1e-6, interleaved)
            check("qk_norm_rope", q, k, None, other, None, None, 1e-6, interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs_are_read_in_place(dtype):
    cos, sin = normal(7, 32), normal(7, 32, seed=1)
    bhsd = normal(2, 3, 7, 64, dtype=dtype).transpose(1, 2)
    q, k, _ = normal(2, 7, 3 * 3 * 64, dtype=dtype).chunk(3, dim=-1)
    q, k = q.unflatten(-1, (3, 64)), k.unflatten(-1, (3, 64))
    for interleaved in (True, False):
        for x in (bhsd, q, padded(bhsd), normal(2, 7, 3, 128, dtype=dtype)[..., ::2]):
            check("apply_rope", x, cos, sin, interleaved)
        check("qk_norm_rope", q, k, None, None, cos, sin, 1e-6, interleaved)
        expanded = cos[:1].expand(7, 32)
        check("apply_rope", bhsd, expanded, sin, interleaved)
        check("apply_rope", bhsd, sin, expanded, interleaved)


def test_channels_that_do_not_rotate_pass_bit_for_bit():
    for dtype in DTYPES:
        x = normal(1, 3, 2, 50, dtype=dtype)
        out = run("apply_rope", x, normal(3, 8), normal(3, 8), False)[0]
        assert torch.equal(out[..., 16:], x[..., 16:])


def test_streamed_heads_equal_cached_ones():
    x, cos, sin = normal(1, 4096, 20, 128, dtype=torch.bfloat16), normal(4096, 64), normal(4096, 64, seed=1)
    for interleaved in (True, False):
        whole = run("apply_rope", x, cos, sin, interleaved)[0]
        part = run("apply_rope", x[:, :64], cos[:64], sin[:64], interleaved)[0]
        assert torch.equal(whole[:, :64], part)


def test_nan_stays_in_its_head():
    for dtype in DTYPES:
        q = normal(1, 4, 5, 64, dtype=dtype)
        q[0, 2, 3, 10] = float("nan")
        out, other = run("qk_norm_rope", q, q[:, :, :2], None, None, normal(4, 32), normal(4, 32), 1e-6, True)
        assert out[0, 2, 3].isnan().all()
        assert out.isnan().sum() == 64
        assert not other.isnan().any()


def test_empty_and_wrong_arguments():
    cos = normal(5, 32)
    assert run("apply_rope", torch.empty(0, 5, 2, 64), cos, cos, True)[0].shape == (0, 5, 2, 64)
    assert run("apply_rope", torch.empty(2, 0, 2, 64), cos[:0], cos[:0], True)[0].shape == (2, 0, 2, 64)
    for args, text in (
        (("apply_rope", normal(1, 5, 64), cos, cos, True), "x has 3 dimensions, expected 4"),
        (("apply_rope", normal(1, 4, 2, 64), cos, cos, True), "S = 4 and head_dim = 64"),
        (("apply_rope", normal(1, 5, 2, 32), cos, cos, True), "R at most head_dim"),
        (("apply_rope", normal(1, 5, 2, 64), cos, cos[:, 1:], True), "sin has shape"),
        (
            ("qk_norm_rope", normal(1, 5, 2, 64), normal(1, 4, 2, 64), *[None] * 4, 1e-6, True),
            "q and k differ",
        ),
        (
            ("qk_norm_rope", normal(1, 5, 2, 64), normal(1, 5, 2, 64), *[None] * 2, cos, None, 1e-6, True),
            "both",
        ),
    ):
        with pytest.raises(RuntimeError, match=text):
            run(*args)
