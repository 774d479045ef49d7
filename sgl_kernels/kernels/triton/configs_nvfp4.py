"""The tuning table of the 4-bit kernels, as frozen data with the reason for each row. Importable without Triton.

No GPU has timed these rows: they are tiles that spill no register on any chip of the family and fit its shared memory,
which `make triton-aot` checks. A measured winner from a tuning file replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """Tile of the product. block_k is a multiple of 32, the longest run of weights that shares a scale.

    `native`: both operands go packed to tl.dot_scaled (W4A4 only) instead of being decoded in registers. `fp32_dot` is
    how fp32 operands are multiplied: "ieee", or "tf32x3" where tensor cores give fp32 accuracy in three passes.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    native: bool = False
    fp32_dot: str = "ieee"


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """Rows and columns of a program's tile; columns are a multiple of 32."""

    rows: int
    columns: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Row:
    """Configs for at most 16 rows of x, at most 64, and more; `why` they differ from the others."""

    few: LinearConfig
    some: LinearConfig
    many: LinearConfig
    why: str


L = LinearConfig
_BROAD = (L(16, 32, 128, 4, 4), L(64, 64, 64, 4, 3), L(128, 128, 64, 8, 3))
DECODED: dict[str, Row] = {
    "sm80": Row(*_BROAD, "few rows stream the weight: narrow tiles, four stages; many reuse it: wide ones"),
    "sm86": Row(*_BROAD, "as sm80: 64 KB of stages fit the 99 KB of Ada"),
    "sm90": Row(*_BROAD, "as sm80; 128 x 128 is the least that wgmma fills with two warp groups"),
    "sm100": Row(*_BROAD, "as sm90, the accumulators in tensor memory"),
    "sm120": Row(*_BROAD, "as sm86"),
    "cdna": Row(*_BROAD, "as sm80: 174 of 512 registers at most, 64 KB of LDS"),
    "rdna": Row(
        L(16, 32, 64, 4, 2), L(64, 64, 32, 4, 2), L(64, 64, 32, 4, 2),
        "256 registers: the tiles of the others spill 19 to 66 on gfx1100",
    ),
    "xpu": Row(*_BROAD, "no compiler for it runs here: as sm80, unproven"),
}  # fmt: skip

# fp32 operands: x is fp32, or fp16 beside MXFP4, whose scales leave fp16's range. The tiles of DECODED spill 8 to 10 KB
# with them on NVIDIA, 192 registers on gfx1100, and take more than the 64 KB of gfx942.
_TF32 = L(32, 64, 32, 4, 2, False, "tf32x3")
WIDE: dict[str, LinearConfig] = {
    **dict.fromkeys(("sm80", "sm86", "sm90", "sm100", "sm120"), _TF32),
    "cdna": L(64, 64, 32, 4, 2),  # v_mfma_f32 takes fp32 as it is
    "rdna": L(32, 32, 32, 4, 1),  # no matrix instruction does: plain FMA on small tiles
    "xpu": L(32, 32, 32, 4, 1),
}

# 4-bit by 4-bit on the tensor cores, by architecture and elements that share a scale (16 NVFP4, 32 MXFP4). Triton 3.8
# lowers each of these to the chip's own instruction, which the committed results of `make triton-aot` name:
# tcgen05.mma kind::mxf4nvf4 block16 and kind::mxf4 block32, mma.sync kind::mxf4nvf4 with ue4m3 or ue8m0 scales,
# v_mfma_scale_f32. NVFP4 on gfx950 is not here: its scales are powers of two, and Triton 3.8 fails to compile the call.
_SM100 = Row(
    L(128, 64, 256, 4, 3, True), L(128, 64, 256, 4, 3, True), L(128, 128, 256, 8, 3, True),
    "tcgen05 multiplies 128 rows or none, so few rows take the narrow tile; 255 registers with 4 warps at 128 x 128",
)  # fmt: skip
_SM120 = Row(
    L(16, 64, 128, 4, 3, True), L(64, 64, 128, 4, 2, True), L(128, 128, 128, 8, 3, True),
    "mma.sync m16n8k64; 99 KB of shared memory, 206 registers at most",
)  # fmt: skip
_GFX950 = Row(
    L(16, 64, 256, 4, 2, True), L(64, 64, 256, 4, 2, True), L(128, 128, 256, 8, 2, True),
    "v_mfma_scale 16x16x128 for few rows, 32x32x64 above; 70 of 160 KB of LDS",
)  # fmt: skip
NATIVE: dict[str, dict[int, Row]] = {
    "sm100": {16: _SM100, 32: _SM100},
    "sm103": {16: _SM100, 32: _SM100},
    "sm120": {16: _SM120, 32: _SM120},
    "sm121": {16: _SM120, 32: _SM120},
    "gfx950": {32: _GFX950},
}

INTERPRETER = LinearConfig(64, 64, 128, 4, 1)
INTERPRETER_NATIVE = LinearConfig(64, 64, 128, 4, 1, True)
"""On CPU tensors under TRITON_INTERPRET, where every program costs milliseconds and tests are small."""


def _pick(row: Row, m: int) -> LinearConfig:
    return row.few if m <= 16 else row.some if m <= 64 else row.many


def is_wide(dtype: torch.dtype, group: int) -> bool:
    """Whether operands must be fp32: a power-of-two scale may leave fp16's range, and NaN rules need fp32 for fp32."""
    return dtype is torch.float32 or (dtype is torch.float16 and group == 32)


def linear(family: str, m: int, wide: bool = False) -> LinearConfig:
    """The row for a product whose weights are decoded in registers; `wide` when its operands are fp32."""
    if wide and family in WIDE:
        return WIDE[family]
    return _pick(DECODED[family], m) if family in DECODED else INTERPRETER


def native(arch: str, group: int, m: int) -> LinearConfig | None:
    """The row for a 4-bit by 4-bit product with scales over `group` elements; None where `arch` has no such unit."""
    if arch == "interpreter":
        return INTERPRETER_NATIVE
    row = NATIVE.get(arch, {}).get(group)
    return None if row is None else _pick(row, m)


def quantize(family: str) -> QuantizeConfig:
    """2048 values for each program, 16 for each thread: a row of 128 columns is 8 or 4 blocks."""
    if family == "interpreter":
        return QuantizeConfig(32, 128, 4)
    return QuantizeConfig(16, 128, 2 if family == "cdna" else 4)
