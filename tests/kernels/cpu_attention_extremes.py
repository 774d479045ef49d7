"""Random calls of the C++ attention at the ends of its numbers; each row is judged by its own scores' rounding."""

from __future__ import annotations

import random
import sys

import torch
from torch import Tensor

from sgl_kernels.ops.attention.reference import visible
from tests.kernels.cpu_attention import ALIGNMENTS, DTYPES, INF, ROUNDING, Call, poison, random_call

LOWEST = torch.finfo(torch.float32).min
LARGEST = {torch.float32: 1e18, torch.bfloat16: 1e18, torch.float16: 6e4}
"""Of q and k, so that their product over 256 channels is a float32."""
ENDLESS = (2**31 - 2, 2**31 - 1, 2**31, 2**40, sys.maxsize)


def random_extreme(rng: random.Random) -> Call:
    """A call with lowest biases, huge scores or values, junk in hidden keys, and endless windows, mixed."""
    call = random_call(rng)
    call.scale = rng.choice((None, None, 1.0))
    dtype = call.q.dtype
    full = (*call.q.shape[:1], call.q.shape[2], call.q.shape[1], call.k.shape[1])
    if rng.random() < 0.5:
        call.left, call.right = rng.choice((-1, 3, *ENDLESS)), rng.choice((-1, 0, *ENDLESS))
    if rng.random() < 0.5:
        call.mask = lowest_mask(rng, full)
    call.k, call.v = call.k.contiguous(), call.v.contiguous()
    if rng.random() < 0.3:
        size = rng.choice((1e3, LARGEST[dtype]))
        call.q, call.k = ((t / peak_of(t) * size).to(dtype) for t in (call.q.double(), call.k.double()))
    if rng.random() < 0.4:
        size = 1e4 if dtype is torch.float16 else rng.choice((1e20, 1e30, 3e37))
        call.v = (call.v.float() * size).to(dtype)
    if rng.random() < 0.4 and full[3]:
        junk = torch.rand(full[3]) < rng.choice((0.05, 0.5))
        for t in rng.choice(((call.k,), (call.v,), (call.k, call.v))):
            t[:, junk] = rng.choice((float("nan"), INF, -INF)) if t is call.v else float("nan")
        if rng.random() < 0.8:  # else rows that see it become NaN
            call.mask = ~junk if rng.random() < 0.5 else torch.zeros(full[3]).masked_fill(junk, -INF)
    return call


def peak_of(t: Tensor) -> float:
    return max(1.0, float(t.abs().max())) if t.numel() else 1.0


def lowest_mask(rng: random.Random, full: tuple[int, ...]) -> Tensor:
    """A float mask in which some keys, or all, carry one very low finite bias, and some are hidden."""
    dtype = rng.choice(DTYPES)
    fills = (torch.finfo(dtype).min,) if dtype is torch.float16 else (torch.finfo(dtype).min, -1e30, -1e9)
    shape = [n if rng.random() < 0.6 else 1 for n in full]
    bias = (torch.randn(shape) * rng.choice((0, 1))).to(dtype)
    bias = bias.masked_fill(torch.rand(shape) < rng.choice((0.3, 0.95, 1.0, 1.0)), rng.choice(fills))
    return bias.masked_fill(torch.rand(shape) < rng.choice((0.0, 0.3)), -INF)


def scores_of(call: Call) -> tuple[Tensor, Tensor]:
    """(scores, what rounding may add to or take from each) in float64, (B, Hq, Sq, Sk); hidden ones are -inf."""
    q, k = call.q.double().transpose(1, 2), call.k.double().transpose(1, 2)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.mT * call.factor
    doubt = 2.0**-21 * (1 + q.abs() @ k.abs().mT * abs(call.factor))
    if call.softcap:
        scores, doubt = call.softcap * torch.tanh(scores / call.softcap), doubt.clamp(max=call.softcap)
    mask = call.mask
    keep = torch.ones((), dtype=torch.bool)
    if mask is not None and mask.dtype is torch.bool:
        keep = mask
    elif mask is not None:
        bias = mask.double()
        keep = ~bias.isneginf()
        bias = bias.masked_fill(~keep, 0.0)
        # A bias beside which float32 does not see the score is the sum; keys that share it are equals.
        drowned = bias.abs() > 2.0**26 * (scores.abs() + doubt)
        size = bias.abs() + scores.abs()
        scores = torch.where(drowned, bias.expand_as(scores), scores + bias).clamp(min=LOWEST)
        doubt = torch.where(drowned, 0.0, doubt + 2.0**-21 * size)
    causal, alignment = ALIGNMENTS[call.causal]
    seen = visible(*scores.shape[2:], causal, alignment, call.left, call.right, scores.device)
    keep = keep if seen is None else keep & seen
    return scores.masked_fill(~keep, -INF), doubt.nan_to_num(0.0)


def judge_extreme(call: Call, out: Tensor, tolerance: float | None = None) -> None:
    """Each row within what its scores' rounding explains; NaN only where a visible key or q brings it, and then always.

    `tolerance`: of the largest value, for results that are near by design. Those may lose what a key of weight 0 holds.
    """
    assert not out.isnan().all() or not out.numel() or call.k.isnan().any() or call.v.isnan().any(), str(call)
    if out.numel() == 0 or call.k.shape[1] == 0:
        assert not out.any(), str(call)
        return
    scores, doubt = scores_of(call)
    hidden = scores.isneginf()
    v = call.v.double().transpose(1, 2)
    v = v.repeat_interleave(call.q.shape[2] // v.shape[1], 1)
    bad = ~v.isfinite().all(-1)[:, :, None] & ~hidden  # junk fills whole rows of v
    spoilt = (scores.isnan() | bad).any(-1)
    got = out.double().transpose(1, 2)
    assert not got[~spoilt].isnan().any(), f"NaN from nowhere: {call}"
    top = scores.nan_to_num(0.0, neginf=-INF).amax(-1, keepdim=True)
    top = top.masked_fill(top.isneginf(), 0.0)
    relative = (scores - top).masked_fill(hidden, -INF).nan_to_num(0.0, neginf=-INF)
    share = softmax(relative, relative)
    sure = spoilt if tolerance is None else spoilt & (scores.isnan() | bad & (share > 1e-30)).any(-1)
    assert not got[sure].isfinite().any(), f"what visible keys hold is lost: {call}"
    low, high = softmax(relative - doubt, relative + doubt), softmax(relative + doubt, relative - doubt)
    v = v.nan_to_num(0.0, 0.0, 0.0)
    want = share @ v
    off = torch.maximum(high.clamp(max=1) - share, share - low) @ v.abs()
    largest = (v.abs().amax(-1)[:, :, None] * ~hidden).amax(-1, keepdim=True)
    off = off.minimum(2 * largest) + (2 * ROUNDING[call.q.dtype] + 2.0**-20) * largest + 1e-7
    off += (tolerance or 0) * v.abs().max()
    worst = ((got - want).abs() - off)[~spoilt]
    assert worst.numel() == 0 or worst.max() <= 0, f"off by {worst.max():.3e} too much: {call}"


def softmax(above: Tensor, below: Tensor) -> Tensor:
    """exp(above) over the sum of exp(below)."""
    top, floor = above.clamp(max=700).exp(), below.clamp(max=700).exp()
    return top / floor.sum(-1, keepdim=True).clamp(min=1e-300)


def check_extreme(call: Call, lse: bool) -> None:
    """The exact kernel, with or without lse."""
    poison(call)
    out, sums = torch.ops.sgl_kernels_cpu.attention(
        call.q, call.k, call.v, call.mask, call.causal, call.factor, call.left, call.right, call.softcap, lse
    )  # fmt: skip
    judge_extreme(call, out)
    if lse and call.k.shape[1]:
        empty = scores_of(call)[0].isneginf().all(-1)
        assert torch.equal(sums.isneginf(), empty), f"rows without keys: {call}"


def check_extreme_sage(call: Call) -> None:
    """The quantised kernel: its scores are near those of ordinary size only."""
    call.softcap, call.scale = 0.0, None
    if call.q.numel() and call.k.numel() and call.q.abs().max() * call.k.nan_to_num().abs().max() > 40:
        call.q = torch.zeros_like(call.q)
    poison(call)
    out: Tensor = torch.ops.sgl_kernels_cpu.sage_attention(
        call.q, call.k, call.v, call.mask, call.causal, call.factor, call.left, call.right, True
    )
    judge_extreme(call, out, 0.06)
