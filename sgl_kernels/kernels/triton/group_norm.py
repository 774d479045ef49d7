"""Group norm with optional SiLU: (N, C, ...) in any dense memory format, deterministic, no atomics.

A group of a VAE's decoder has millions of elements and there are only 32 groups in an image: one program for each
would leave a GPU idle. Large groups are split into chunks; each chunk writes its count, mean and centred square, and
the second kernel joins them by Chan's formula, which cannot cancel, before it normalises its own chunk.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .common import INTERPRETED, narrow, silu
from .configs import GroupNormConfig


@triton.jit
def _tile(base, start, channels, positions, stride_c, stride_s, C: tl.constexpr, S: tl.constexpr):
    """(pointers, mask) of the tile that begins at `start`; tiles run along positions, then along channels."""
    per_channel_block = tl.cdiv(positions, S)
    c = (start // per_channel_block) * C + tl.arange(0, C)
    s = (start % per_channel_block) * S + tl.arange(0, S)
    pointers = base + c.to(tl.int64)[:, None] * stride_c + s.to(tl.int64)[None, :] * stride_s
    return pointers, (c < channels)[:, None] & (s < positions)[None, :], c


@triton.jit
def group_stats_kernel(
    X, STATS, groups, channels, positions, stride_n, stride_c, stride_s, tiles_total, tiles_chunk, chunks,
    C: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of squared deviations of one chunk of one group, in two passes over the chunk."""
    chunk = tl.program_id(0) % chunks
    group = tl.program_id(0) // chunks
    base = (
        X + (group // groups).to(tl.int64) * stride_n + ((group % groups) * channels).to(tl.int64) * stride_c
    )
    first = chunk * tiles_chunk
    last = tl.minimum(first + tiles_chunk, tiles_total)
    count = 0.0
    total = 0.0
    for tile in range(first, last):
        pointers, ok, _ = _tile(base, tile, channels, positions, stride_c, stride_s, C, S)
        x = tl.load(pointers, mask=ok, other=0.0).to(tl.float32)
        total += tl.sum(x)
        count += tl.sum(ok.to(tl.float32))
    mean = total / tl.maximum(count, 1.0)
    square = 0.0
    for tile in range(first, last):
        pointers, ok, _ = _tile(base, tile, channels, positions, stride_c, stride_s, C, S)
        x = tl.load(pointers, mask=ok, other=0.0).to(tl.float32)
        off = tl.where(ok, x - mean, 0.0)
        square += tl.sum(off * off)
    place = STATS + (group * chunks + chunk).to(tl.int64) * 3
    tl.store(place, count)
    tl.store(place + 1, mean)
    tl.store(place + 2, square)


@triton.jit
def group_apply_kernel(
    X, STATS, WEIGHT_PTR, BIAS_PTR, OUT, groups, channels, positions, stride_n, stride_c, stride_s,
    out_n, out_c, out_s, tiles_total, tiles_chunk, chunks, eps,
    C: tl.constexpr, S: tl.constexpr, CHUNKS: tl.constexpr, FUSED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Normalises one chunk. FUSED: the group is one tile, so its statistics are taken here and memory read once."""
    chunk = tl.program_id(0) % chunks
    group = tl.program_id(0) // chunks
    sample = (group // groups).to(tl.int64)
    channel0 = (group % groups) * channels
    base = X + sample * stride_n + channel0.to(tl.int64) * stride_c
    out_base = OUT + sample * out_n + channel0.to(tl.int64) * out_c
    if FUSED:
        pointers, ok, _ = _tile(base, 0, channels, positions, stride_c, stride_s, C, S)
        x = tl.load(pointers, mask=ok, other=0.0).to(tl.float32)
        size = channels * positions
        mean = tl.sum(x) / size
        off = tl.where(ok, x - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(off * off) / size + eps)
    else:
        each = tl.arange(0, CHUNKS)
        stats = STATS + (group.to(tl.int64) * chunks + each) * 3
        count = tl.load(stats, mask=each < chunks, other=0.0)
        part = tl.load(stats + 1, mask=each < chunks, other=0.0)
        square = tl.load(stats + 2, mask=each < chunks, other=0.0)
        size = tl.sum(count)
        mean = tl.sum(part * (count / size))
        apart = tl.where(each < chunks, part - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(square + count * apart * apart) / size + eps)
    first = chunk * tiles_chunk
    for tile in range(first, tl.minimum(first + tiles_chunk, tiles_total)):
        pointers, ok, c = _tile(base, tile, channels, positions, stride_c, stride_s, C, S)
        y = (tl.load(pointers, mask=ok, other=0.0).to(tl.float32) - mean) * inverse
        if WEIGHT:
            y *= tl.load(WEIGHT_PTR + channel0 + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
        if BIAS:
            y += tl.load(BIAS_PTR + channel0 + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
        if SILU:
            y = silu(y)
        out, ok, _ = _tile(out_base, tile, channels, positions, out_c, out_s, C, S)
        tl.store(out, narrow(y, OUT.dtype.element_ty, UPCAST), mask=ok)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: str,
    *,
    config: GroupNormConfig,
) -> torch.Tensor:
    """Normalises each group of channels over all positions, then affine, then SiLU; keeps x's memory format."""
    if x.numel() == 0:
        return torch.empty_like(x)
    x, stride_s = _with_positions(x)
    out = torch.empty_like(x)
    _, out_s = _with_positions(out)
    n, channels = x.shape[0], x.shape[1] // num_groups
    positions = x.numel() // (n * x.shape[1])
    if stride_s == 1 or positions == 1:
        block_s = min(triton.next_power_of_2(positions), config.tile)
        block_c = min(triton.next_power_of_2(channels), config.tile // block_s)
    else:  # channels last: neighbours in memory are channels
        block_c = min(triton.next_power_of_2(channels), config.tile)
        block_s = min(triton.next_power_of_2(positions), config.tile // block_c)
    tiles = triton.cdiv(channels, block_c) * triton.cdiv(positions, block_s)
    chunk = config.tiles
    while triton.cdiv(tiles, chunk) > 1024:  # what the second kernel reads back at once
        chunk *= 2
    chunks = triton.cdiv(tiles, chunk)
    groups = n * num_groups
    grid = (groups * chunks,)
    fused = tiles == 1
    stats = torch.empty((groups, chunks, 3), dtype=torch.float32, device=x.device)
    stride_n, stride_c = x.stride(0), x.stride(1)
    if not fused:
        group_stats_kernel[grid](
            x, stats, num_groups, channels, positions, stride_n, stride_c, stride_s, tiles, chunk, chunks,
            C=block_c, S=block_s, num_warps=config.num_warps,
        )  # fmt: skip
    group_apply_kernel[grid](
        x, stats, x if weight is None else weight.contiguous(), x if bias is None else bias.contiguous(), out,
        num_groups, channels, positions, stride_n, stride_c, stride_s, out.stride(0), out.stride(1), out_s,
        tiles, chunk, chunks, eps,
        C=block_c, S=block_s, CHUNKS=triton.next_power_of_2(chunks), FUSED=fused, WEIGHT=weight is not None,
        BIAS=bias is not None, SILU=activation == "silu", UPCAST=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip
    return out


def _with_positions(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x, or a dense copy of it, and the one stride that walks all its positions."""
    stride, size = 1, 1
    for length, step in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if length == 1:
            continue
        if size > 1 and step != size * stride:
            return _with_positions(x.contiguous())
        stride = step if size == 1 else stride
        size *= length
    return x, stride
