"""Random calls of the C++ attention's other ops: packed sequences, quantised attention, and results without lse."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from sgl_kernels.tools.parity.tolerance import measure
from tests.kernels.cpu_attention import DTYPES, Call, judge, poison, random_call, random_mask, tensor

SAGE_L2, SAGE_WORST = 0.05, 0.025
"""Of the result's norm, and of V's largest element; the worst of 24,851 random calls was off by 0.0169 of it."""


def check_out_only(call: Call) -> None:
    """Without lse some kernels take a shorter exponential; the result is held to the same bound."""
    poison(call)
    out, _ = torch.ops.sgl_kernels_cpu.attention(
        call.q, call.k, call.v, call.mask, call.causal, call.factor, call.left, call.right, call.softcap, False
    )  # fmt: skip
    judge(call, out, None)


def random_varlen(rng: random.Random) -> tuple[Call, list[int], list[int]]:
    """Packed q, k and v as a call with batch 1, and the lengths of its sequences; tokens may be left over."""
    torch.manual_seed(rng.randrange(2**31))
    dtype = rng.choice(DTYPES)
    hk, group = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 5))
    d = rng.choice((1, 8, 15, 16, 40, 64, 72, 96, 128))
    dv = d if rng.random() < 0.7 else rng.choice((1, 5, 24, 64, 72))
    count = rng.choice((1, 2, 3, 6))
    lengths_q = [rng.choice((0, 1, 1, 2, 7, 16, 33, 65, 130)) for _ in range(count)]
    lengths_k = [rng.choice((0, 1, 5, 24, 25, 64, 193, 400)) for _ in range(count)]
    spare = rng.choice((0, 0, 3))
    q = tensor(rng, (1, sum(lengths_q) + spare, hk * group, d), dtype)
    k = tensor(rng, (1, sum(lengths_k) + spare, hk, d), dtype)
    v = tensor(rng, (1, sum(lengths_k) + spare, hk, dv), dtype)
    call = Call(
        q, k, v,
        causal=rng.choice((0, 0, 1, 2)),
        scale=rng.choice((None, None, 0.0, -0.3, 1.0)),
        left=rng.choice((-1, -1, 0, 40)),
        right=rng.choice((-1, -1, 0, 3)),
        softcap=rng.choice((0.0, 0.0, 5.0)),
    )  # fmt: skip
    return call, lengths_q, lengths_k


def check_varlen(call: Call, lengths_q: list[int], lengths_k: list[int]) -> None:
    """Each packed sequence must be what it is alone, and tokens of no sequence 0."""
    ends_q, ends_k = torch.tensor([0, *lengths_q]).cumsum(0), torch.tensor([0, *lengths_k]).cumsum(0)
    poison(call)
    out = torch.ops.sgl_kernels_cpu.attention_varlen(
        call.q[0], call.k[0], call.v[0], ends_q.int(), ends_k.int(), max(lengths_q), max(lengths_k), call.causal,
        call.factor, call.left, call.right, call.softcap,
    )  # fmt: skip
    assert out.shape == (*call.q.shape[1:3], call.v.shape[-1]), str(call)
    assert not out[ends_q[-1] :].any(), f"tokens of no sequence: {call}"
    for i in range(len(lengths_q)):
        rows, keys = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
        alone = Call(
            call.q[:, rows], call.k[:, keys], call.v[:, keys], None, call.causal, call.scale, call.left, call.right,
            call.softcap,
        )  # fmt: skip
        judge(alone, out[None, rows], None)


def random_sage(rng: random.Random) -> tuple[Call, bool]:
    """A call of quantised attention, and whether V is quantised too."""
    call = random_call(rng)
    b, sq, hq, d = call.q.shape
    call.q = tensor(
        rng, (b, sq, hq, d), call.q.dtype
    )  # never peaked: softmax would amplify the bytes' error freely
    call.mask = random_mask(rng, (b, hq, sq, call.k.shape[1]))
    call.softcap = 0.0
    call.scale = rng.choice((None, None, -(d**-0.5), 0.0))
    return call, rng.random() < 0.6


def check_sage(call: Call, int8_values: bool) -> None:
    """Visibility is exact; values are near: 7 bits of a row's range in Q, K, weights and V."""
    poison(call)
    out: Tensor = torch.ops.sgl_kernels_cpu.sage_attention(
        call.q, call.k, call.v, call.mask, call.causal, call.factor, call.left, call.right, int8_values
    )
    exact, lse = call.oracle()
    assert out.dtype is call.q.dtype and out.shape == exact.shape, str(call)
    assert not out.transpose(1, 2)[torch.isneginf(lse)].any(), f"rows without keys: {call}"
    if out.numel() == 0 or not exact.any():
        assert not out.any(), str(call)
        return
    error = measure(out, exact)
    # A mean of many keys may cancel to less than V's steps: such outputs are judged by a quarter of V's size.
    v_size = call.v.double().square().mean().sqrt().item()
    cancelled = exact.norm().item() / max(0.25 * v_size * exact.numel() ** 0.5, 1e-30)
    worst = (out.double() - exact).abs().max().item() / call.v.double().abs().max().item()
    assert error.finite_match and error.relative_l2 * min(1.0, cancelled) <= SAGE_L2, f"{error}: {call}"
    assert worst <= SAGE_WORST, f"off by {worst:.2e} of the largest value: {call}"
