"""Tiles of the 4-bit linear kernel. Importable without Triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearConfig:
    """Tile of the product. block_k is a multiple of 32, the longest run of weights that shares a scale."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def linear(family: str, m: int) -> LinearConfig:
    """Few rows stream the weight with narrow tiles; many reuse it. Starting points: no GPU has measured them.

    Compiled with Triton 3.8 none spills: 94 to 241 registers on sm_80, sm_90 and sm_100, 127 to 174 on gfx942. RDNA
    has its own row because the tiles of the others spill 19 to 66 registers on gfx1100.
    """
    if family == "rdna":
        return LinearConfig(16, 32, 64, 4, 2) if m <= 16 else LinearConfig(64, 64, 32, 4, 2)
    if m <= 16:
        return LinearConfig(16, 32, 128, 4, 4)
    if m <= 64:
        return LinearConfig(64, 64, 64, 4, 3)
    return LinearConfig(128, 128, 64, 8, 3)
