"""What the C++ attention promises beyond parity: float64 accuracy anywhere, determinism, containment, re-entrancy."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_attention import DTYPES, INF, MISSING, Call, check, random_call


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


def qkv(b, sq, sk, h, d, hk=None, dv=None, dtype=torch.float32):
    hk, dv = hk or h, dv or d
    return (
        torch.randn(b, sq, h, d).to(dtype),
        torch.randn(b, sk, hk, d).to(dtype),
        torch.randn(b, sk, hk, dv).to(dtype),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**31))
def test_random_calls_agree_with_float64(seed):
    check(random_call(random.Random(seed)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sq, sk", [(1, 700), (8, 300), (9, 300), (70, 200), (400, 390)])
@pytest.mark.parametrize("causal", [0, 1, 2])
def test_everything_at_once(dtype, sq, sk, causal, seed):
    torch.manual_seed(seed)
    mask = torch.randn(2, 1, sq, sk).masked_fill(torch.rand(2, 1, sq, sk) < 0.2, -INF)
    tensors = qkv(2, sq, sk, 6, 72, hk=2, dv=40, dtype=dtype)
    check(Call(*tensors, mask, causal=causal, left=150, right=90, softcap=8.0))


def test_the_error_does_not_grow_with_the_number_of_keys(seed):
    """One chain of sums over all keys was off by 3.7 times torch's error at 4096 of them."""
    torch.manual_seed(seed)
    q, k, v = (t.transpose(1, 2) for t in qkv(1, 64, 4096, 4, 64))
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    ours = torch.ops.sgl_kernels_cpu.attention(
        *(t.transpose(1, 2) for t in (q, k, v)), None, 0, 0.125, -1, -1, 0.0, False
    )[0].transpose(1, 2)
    assert (ours.double() - exact).norm() < 1.5 * (theirs.double() - exact).norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 2, 7, 16, 24, 33, 40, 72, 80, 96, 127, 192, 256])
def test_head_dims(dtype, head_dim, seed):
    torch.manual_seed(seed)
    check(Call(*qkv(1, 70, 50, 2, head_dim, dtype=dtype)))
    check(Call(*qkv(1, 2, 50, 2, head_dim, dtype=dtype)))


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_grow_move_the_reference(dtype, rows, seed):
    """Each block of keys dwarfs the one before; fp32 weights relative to the first would overflow."""
    torch.manual_seed(seed)
    q, k, v = qkv(1, rows, 900, 2, 32, dtype=dtype)
    growth = torch.linspace(0.01, 12.0, 900)[None, :, None, None]
    for direction in (growth, growth.flip(1)):
        check(Call(q, (k * direction).to(dtype), v, scale=1.0))


@pytest.mark.parametrize("rows", [1, 4, 70])
def test_hidden_first_blocks_and_far_references(rows, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(1, rows, 600, 1, 16)
    for offset in (-500.0, 500.0):
        mask = torch.full((1, 1, rows, 600), offset)
        mask[..., :400] = -INF
        check(Call(q, k, v, mask))


@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_keys_are_zero(dtype, rows, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(2, rows, 50, 2, 24, dtype=dtype)
    mask = torch.rand(2, 1, rows, 50) > 0.5
    mask[0, 0, 1] = False
    v[:, 7] = INF  # 0 * inf must not reach a row that sees nothing
    out, lse = Call(q, k, v, mask).run()
    assert not out[0, 1].any() and torch.isneginf(lse[0, :, 1]).all()
    out, lse = Call(q, k, v, torch.zeros(1, 1, 1, 50, dtype=torch.bool)).run()
    assert not out.any() and torch.isneginf(lse).all()


@pytest.mark.parametrize("rows", [6, 70])
@pytest.mark.parametrize("value", [float("nan"), INF])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype, value, rows, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(1, rows, 210, 1, 40, dtype=dtype)
    clean, clean_lse = Call(q, k, v).run()
    q[0, 3, 0, 5] = value
    out, lse = Call(q, k, v).run()
    others = [r for r in range(rows) if r != 3]
    assert torch.equal(out[:, others], clean[:, others]) and torch.equal(
        lse[..., others], clean_lse[..., others]
    )
    assert out[0, 3].isnan().all() and lse[0, 0, 3].isnan()


@pytest.mark.parametrize("rows", [6, 70])
def test_hidden_keys_cannot_spoil_scores(rows, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(1, rows, 210, 1, 40)
    mask = torch.ones(1, 1, 1, 210, dtype=torch.bool)
    mask[..., 100:] = False
    clean = Call(q, k, v, mask).run()[0]
    k[:, 100:150], k[:, 150:] = float("nan"), INF
    assert torch.equal(Call(q, k, v, mask).run()[0], clean)
    per_query = mask.expand(1, 1, rows, 210).contiguous()
    assert torch.equal(Call(q, k, v, per_query).run()[0], clean)


@pytest.mark.parametrize("scale", [None, 0.0])
@pytest.mark.parametrize("sk", [1, 5, 7, 23, 193, 197, 383])
def test_last_tiles_of_keys(sk, scale, seed):
    """Plain, with one bias to a key and with one to a score: tiles that the keys fill only in part."""
    torch.manual_seed(seed)
    for dtype in DTYPES:
        for rows in (9, 17, 49):
            tensors = qkv(1, rows, sk, 2, 24, dtype=dtype)
            check(Call(*tensors, scale=scale))
            for mask in (
                torch.rand(1, 1, 1, sk) > 0.3,
                torch.randn(1, 1, rows, sk),
                torch.rand(rows, sk) > 0.3,
            ):
                check(Call(*tensors, mask, scale=scale))


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_hidden_keys_in_a_shared_tile_cannot_spoil_scores(bad, seed):
    torch.manual_seed(seed)
    q, k, v = qkv(1, 70, 46, 1, 40)
    mask = torch.rand(1, 1, 70, 46) > 0.2
    mask[..., 1::6] = False  # a key of every tile
    clean = Call(q, k, v, mask).run()
    k[:, 1::6] = bad
    for shown in (mask, torch.zeros(1, 1, 70, 46).masked_fill(~mask, -INF)):
        out, lse = Call(q, k, v, shown).run()
        assert torch.equal(out, clean[0]) and torch.equal(lse, clean[1])


def test_lse_of_one_score_is_as_exact_as_the_score(seed):
    """Over many single scores: a rounding of the score, of its scale and of the result, not more."""
    torch.manual_seed(seed)
    for rows in (1, 64):
        q, k, v = qkv(1, rows, 1, 64, 1)
        call = Call(q, k, v, scale=1.0)
        exact, lse = call.oracle()[1], call.run()[1]
        assert ((lse.double() - exact).norm() / exact.norm()).item() < 1.5 * 2.0**-24


def test_the_same_call_gives_the_same_bits(seed):
    torch.manual_seed(seed)
    for sq, sk in ((1, 5000), (40, 3000), (300, 300)):
        call = Call(*qkv(1, sq, sk, 4, 64, hk=2, dtype=torch.bfloat16), causal=1)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            first = call.run()
            for _ in range(3):
                again = call.run()
                assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


@pytest.mark.parametrize("sq, group", [(1, 1), (1, 4), (2, 4), (12, 1), (40, 2)])
def test_keys_split_over_threads(sq, group, seed):
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    for dtype in DTYPES:
        tensors = qkv(1, sq, 5000, group, 64, hk=1, dtype=dtype)
        check(Call(*tensors, causal=1))
        check(Call(*tensors, torch.rand(5000) > 0.5, left=3000))


def test_calls_from_several_threads_do_not_meet(seed):
    torch.manual_seed(seed)
    calls = [Call(*qkv(1, n, 300, 2, 64), causal=1) for n in (1, 50, 120, 300)]
    expected = [c.run()[0] for c in calls]
    wrong = []

    def work(index):
        for _ in range(20):
            out = calls[index].run()[0]
            if not torch.allclose(out, expected[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_empty_calls():
    for sizes in ((0, 5, 5, 2, 8), (2, 0, 5, 2, 8), (2, 5, 0, 2, 8)):
        out, lse = Call(*qkv(*sizes)).run()
        assert out.shape == (sizes[0], sizes[1], 2, 8) and not out.any() and torch.isneginf(lse).all()
    q, k, v = qkv(1, 3, 3, 2, 8)
    assert Call(q[:, :, :0], k[:, :, :0], v[:, :, :0]).run()[0].shape == (1, 3, 0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_varlen_is_each_sequence_alone(dtype, seed):
    torch.manual_seed(seed)
    lengths_q, lengths_k = (5, 0, 130, 1, 40), (5, 7, 200, 300, 0)
    q, k, v = (t[0] for t in qkv(1, sum(lengths_q), sum(lengths_k), 4, 40, hk=2, dv=24, dtype=dtype))
    starts_q = torch.tensor([0, *lengths_q]).cumsum(0).int()
    starts_k = torch.tensor([0, *lengths_k]).cumsum(0).int()
    out = torch.ops.sgl_kernels_cpu.attention_varlen(
        q, k, v, starts_q, starts_k, 130, 300, 1, 0.2, 100, -1, 0.0
    )  # fmt: skip
    for i in range(5):
        rows, keys = slice(starts_q[i], starts_q[i + 1]), slice(starts_k[i], starts_k[i + 1])
        alone = Call(q[None, rows], k[None, keys], v[None, keys], causal=1, scale=0.2, left=100)
        exact = alone.oracle()[0][0]
        torch.testing.assert_close(
            out[rows].double(), exact, atol=2e-2 if dtype is not DTYPES[0] else 1e-5, rtol=0
        )


@pytest.mark.parametrize(
    "starts, message",
    [
        ([1, 4], r"cu_seqlens_q\[0\] is 1"),
        ([0, 5], r"cu_seqlens_q\[1\] is 5"),
        ([0, -1], r"cu_seqlens_q\[1\] is -1"),
        ([0, 4], "the declared maximum is 3"),
    ],
)
def test_varlen_refuses_bad_offsets(starts, message):
    q, k, v = (t[0] for t in qkv(1, 4, 4, 2, 8))
    good = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sgl_kernels_cpu.attention_varlen(
            q, k, v, torch.tensor(starts, dtype=torch.int32), good, 3, 4, 0, 1.0, -1, -1, 0.0
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: setattr(c, "k", c.k[..., :4]), "q has head_dim 8 and k 4"),
        (lambda c: setattr(c, "k", c.k.half()), "the same for all three"),
        (lambda c: setattr(c, "v", c.v[:, :3]), "k has shape .* and v"),
        (lambda c: setattr(c, "q", c.q.double()), "q has dtype"),
        (lambda c: setattr(c, "q", c.q[0]), r"expected \(batch, seqlen, heads, head_dim\)"),
        (lambda c: setattr(c, "q", c.q[:, :, :3]), "q has 3 heads and k has 2"),
        (lambda c: setattr(c, "mask", torch.zeros(5, 5)), "attn_mask has shape"),
        (lambda c: setattr(c, "mask", torch.zeros(6, 6, dtype=torch.int64)), "attn_mask has dtype"),
        (lambda c: setattr(c, "left", -2), "the window is"),
        (lambda c: setattr(c, "causal", 3), "causal is 3"),
        (lambda c: setattr(c, "softcap", -1.0), "softcap is"),
    ],
)
def test_bad_arguments_are_named(change, message):
    call = Call(*qkv(2, 6, 6, 4, 8, hk=2))
    change(call)
    with pytest.raises(RuntimeError, match=message):
        call.run()


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512", "avx512bf16", "amx"])
def test_lower_instruction_sets_agree(level):
    """A level that this machine lacks falls back to the highest it has."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.cpu_attention", "25", str(os.getpid())],
        env={**os.environ, "SGL_KERNELS_CPU_ISA": level},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
