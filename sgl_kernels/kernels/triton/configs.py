"""The tuning table: launch parameters for each architecture family, as frozen data; knows no Triton.

No decorator searches at run time. A row here is a default; a measured winner from a tuning file replaces it. Rows are
the largest tiles that spill no register in any variant of the kernel and fit the shared memory of the smallest chip of
the family: `make triton-aot` compiles them all without a device, and its budgets are committed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Launch parameters of the attention kernel.

    fp32_dot  how fp32 inputs are multiplied
    guards_v  whether NaN in V at keys that only some rows hide is kept out of them: V then comes through registers,
              which only sm90 and sm100 have to spare. Elsewhere what a key-padding mask hides is cleared before
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    fp32_dot: str = "ieee"  # "ieee", or "tf32x3" where tensor cores give fp32 accuracy in three passes
    guards_v: bool = False


@dataclass(frozen=True, slots=True)
class NormConfig:
    """A program holds `tile` elements (several short rows); rows wider than `max_block` are walked in chunks."""

    tile: int
    max_block: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class GroupNormConfig:
    """Tiles are (channels, positions) of `tile` elements; one program walks a chunk of `tiles` of them."""

    tile: int
    tiles: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Elements for each program of an elementwise kernel, and its warps."""

    tile: int
    num_warps: int

    def shape(self, columns: int) -> tuple[int, int]:
        """(rows, columns) of a program's tile beside `columns`-wide rows; both powers of two."""
        block = min(1 << (columns - 1).bit_length(), self.tile)
        return self.tile // block, block


A = AttentionConfig
G = functools.partial(AttentionConfig, guards_v=True)
# family -> kind -> config for head dims up to 64, up to 128, up to 256. Kinds: "half" (16-bit inputs, any causal flag
# or window), "masked" (16-bit with a mask tensor or a soft cap: a second tile of scores is alive), "fp32"; "padded"
# (16-bit, head dim not a power of two, so every load is masked) where those need other tiles than "half". None: no tile
# is free of spills, the backend declines.
ATTENTION: dict[str, dict[str, tuple[A | None, A | None, A | None]]] = {
    # A100, 164 KB: mma.sync; 8 warps, because 4 hold 128 x 64 tiles only with 8 bytes of spills at head dim 64.
    "sm80": {
        "half": (A(128, 64, 8, 3), A(128, 64, 8, 3), A(64, 64, 8, 2)),
        "masked": (A(128, 64, 8, 2), A(128, 32, 8, 2), A(64, 32, 8, 2)),
        "fp32": (A(64, 32, 8, 1, "tf32x3"), A(32, 32, 8, 1, "tf32x3"), None),
    },
    # RTX 30 and 40, 99 KB: fewer stages, and the tiles of sm120 at head dim 128.
    "sm86": {
        "half": (A(128, 64, 8, 2), A(64, 64, 8, 2), A(64, 32, 8, 2)),
        "masked": (A(128, 64, 8, 1), A(128, 32, 8, 1), A(64, 32, 8, 1)),
        "fp32": (A(64, 32, 8, 1, "tf32x3"), A(32, 32, 8, 1, "tf32x3"), None),
    },
    # H100, H200, 227 KB: wgmma; 128 x 128 at head dim 128 spills 40 bytes, 128 x 64 with a third stage none.
    "sm90": {
        "half": (G(128, 128, 8, 2), G(128, 64, 8, 3), G(128, 32, 8, 2)),
        "masked": (G(128, 64, 8, 2), G(128, 64, 8, 2), G(128, 32, 8, 2)),
        "fp32": (G(128, 32, 8, 1, "tf32x3"), G(32, 32, 8, 1, "tf32x3"), None),
    },
    # B200, 227 KB: tcgen05, accumulators in tensor memory; the mask of a 128 x 128 tile spills 288 bytes.
    "sm100": {
        "half": (G(128, 128, 8, 2), G(128, 64, 8, 3), G(128, 32, 8, 2)),
        "padded": (G(64, 64, 8, 3), G(64, 64, 8, 3), G(128, 32, 8, 2)),
        "masked": (G(128, 64, 8, 2), G(128, 64, 8, 2), G(64, 32, 8, 2)),
        "fp32": (G(64, 32, 8, 1, "tf32x3"), G(32, 32, 8, 1, "tf32x3"), None),
    },
    # RTX 50 and RTX PRO, 99 KB: mma.sync again; 128 x 64 at head dim 128 with a window spills 56 bytes.
    "sm120": {
        "half": (A(128, 64, 8, 2), A(64, 64, 8, 2), A(64, 32, 8, 2)),
        "masked": (A(128, 64, 8, 1), A(128, 32, 8, 1), A(64, 32, 8, 1)),
        "fp32": (A(64, 16, 8, 1, "tf32x3"), A(32, 32, 8, 1, "tf32x3"), None),
    },
    # MI300, MI350, 64 KB of LDS (160 on gfx950): 512 registers with the accumulators, so 4 waves of 64 hold 128 x 64.
    "cdna": {
        "half": (A(128, 64, 4, 2), A(128, 64, 4, 2), A(128, 32, 8, 1)),
        "masked": (A(128, 32, 8, 2), A(128, 32, 8, 2), A(64, 32, 4, 2)),
        "fp32": (A(64, 32, 8, 1), A(64, 16, 4, 1), None),
    },
    # RX 7000, 256 registers and WMMA operands held twice: small tiles, and none without spills at head dim 256.
    "rdna": {
        "half": (A(64, 32, 4, 1), A(32, 32, 4, 1), None),
        "padded": (A(64, 32, 4, 1), A(32, 32, 8, 1), None),
        "masked": (A(64, 32, 4, 1), A(32, 32, 4, 1), None),
        "fp32": (
            None,
            None,
            None,
        ),  # no matrix instruction takes fp32: plain FMA tiles spill 300 registers and more
    },
    # Intel: no compiler for it runs here, so nothing is proven; the small tiles of RDNA are the careful choice.
    "xpu": {
        "half": (A(64, 32, 8, 2), A(64, 32, 8, 2), A(32, 32, 8, 1)),
        "masked": (A(64, 32, 8, 1), A(32, 32, 8, 1), A(32, 32, 8, 1)),
        "fp32": (A(32, 32, 8, 1), A(32, 32, 8, 1), None),
    },
}

INTERPRETER = AttentionConfig(32, 32, 4, 1, guards_v=True)
"""On CPU tensors under TRITON_INTERPRET, where every program costs milliseconds and tests use few tokens."""


def attention(
    family: str, dtype: torch.dtype, head_dim: int, head_dim_v: int, *, masked: bool = False
) -> AttentionConfig | None:
    """The row for a call, `masked` when it has a mask tensor or a soft cap; None when there is no good one."""
    if family not in ATTENTION:
        return INTERPRETER
    widest = max(head_dim, head_dim_v)
    padded = bool(head_dim & (head_dim - 1) or head_dim_v & (head_dim_v - 1))
    kind = "fp32" if dtype == torch.float32 else "masked" if masked else "padded" if padded else "half"
    rows = ATTENTION[family].get(kind, ATTENTION[family]["half"])
    return rows[0 if widest <= 64 else 1 if widest <= 128 else 2]


def attention_int8(
    family: str, dtype: torch.dtype, head_dim: int, head_dim_v: int, *, masked: bool = False
) -> AttentionConfig | None:
    """The row for int8 scores: the int32 scores and their fp32 copy are alive together, as under a mask."""
    return attention(family, dtype, head_dim, head_dim_v, masked=True)


def norm(family: str, width: int) -> NormConfig:
    """16 elements for each thread, so that a row's loads are in flight at once; AMD waves are 64 wide.

    At most 512 threads: 1024 leave 64 registers each, and the fused norms then spill, as they do with 32 elements for
    each of 512 (8 bytes on sm_80). Rows wider than 8192 are read three times instead; no diffusion model has them.
    """
    if family not in ATTENTION:
        return NormConfig(tile=2048, max_block=4096, num_warps=4)
    wave = 64 if family == "cdna" else 32
    block = min(1 << (width - 1).bit_length(), 8192)
    threads = min(max(block // 16, 128), 512)
    return NormConfig(tile=2048, max_block=8192, num_warps=threads // wave)


def group_norm(family: str) -> GroupNormConfig:
    """Tiles of 2048; eight for each program make 32 groups of a 128 x 256 x 256 image 512 programs."""
    return GroupNormConfig(tile=2048, tiles=8, num_warps=4)


def tile(family: str) -> TileConfig:
    """For rope, modulation and activations: 16 bytes for each thread of 4 warps, twice over."""
    return TileConfig(tile=2048, num_warps=4 if family != "cdna" else 2)
