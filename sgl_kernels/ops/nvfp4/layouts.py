"""Converters between the layouts of scaled tensors, both ways, in plain torch.

linear           data (N, K/2), scales (N, K/16).
swizzled_128x4   scales in tiles of 128 rows x 4 columns, rows and columns padded with zero; inside a tile the
                 order is (row % 32, row // 32, column): what Blackwell's tensor cores read.
swizzled_8x4     tiles of 8 rows x 4 columns, each row-major: TensorRT-LLM's layout for few rows.
trtllm_shuffled  rows of each block of 32 interleaved (row r goes to (r % 4) * 8 + r // 4), then scales 128x4;
                 rows padded to 128. The low-latency epilogue of TensorRT-LLM's GEMM wants its weights so.
aiter_shuffled   MXFP4 for AITER: tiles of 16 rows x 32 bytes, a tile's two halves of 16 bytes one after the other for
                 all its rows; scales padded to 256 rows x 8, in tiles of 32 x 8 whose order is (column % 4,
                 row % 16, column // 4, row // 16): what gfx950's v_mfma_scale reads for a wave.
cpu_packed       (N/64, K/16, 576) bytes: for each panel of 64 rows and block of 16 k, four groups of 16 rows x
                 two 64-byte vectors, then 64 scales. In a vector each 32-bit lane is one row; byte b holds
                 k = 8v + b in its low nibble and k = 8v + 4 + b in its high one, so one mask and one shift give
                 the two operands of a 4-way int8 dot product. Rows are padded with zero scales.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .formats import LAYOUTS, NVFP4, ScaledTensor, ceil_to

PANEL = 64
NIBBLE_BYTES = 512  # of the 576 of a packed block; the rest are scales
MAX_FINITE_E4M3 = 0x7E


def to_layout(x: ScaledTensor, layout: str) -> ScaledTensor:
    """The same value in another layout; through "linear" when neither side is linear."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if x.layout == layout:
        return x
    if x.layout != "linear":
        x = _to_linear(x).same_as(x)
    return x if layout == "linear" else _from_linear(x, layout).same_as(x)


def holds(layout: str, x: ScaledTensor) -> bool:
    """Whether a layout has room for a linear tensor's values: "cpu_packed" has none for NaN. Reads the scales."""
    return layout != "cpu_packed" or int(_bytes(x.block_scale).max()) <= MAX_FINITE_E4M3


def _from_linear(x: ScaledTensor, layout: str) -> ScaledTensor:
    ScaledTensor.storage_shapes(x.format, x.shape, layout)  # raises for what is not a matrix
    x.examine(f"to_layout({layout!r})")  # one wait, when a weight is prepared
    if layout == "cpu_packed":
        return _pack(x)
    if layout == "trtllm_shuffled":
        rows = ceil_to(x.rows, 128)
        order = shuffled_rows(rows, x.device)
        data = _pad(x.data, rows, x.data.shape[1])[order]
        scale = _pad(_bytes(x.block_scale), rows, x.block_scale.shape[1])[order]
        return replace(
            x, data=data, block_scale=_swizzle(scale, 128).view(x.block_scale.dtype), layout=layout
        )
    if layout == "aiter_shuffled":
        data = _pad(x.data, ceil_to(x.rows, 16), x.data.shape[1])
        tiles = data.reshape(data.shape[0] // 16, 16, data.shape[1] // 32, 2, 16).permute(0, 2, 3, 1, 4)
        scale = aiter_scales(x.block_scale)
        return replace(x, data=tiles.reshape(data.shape), block_scale=scale, layout=layout)
    tall = 128 if layout == "swizzled_128x4" else 8
    scale = _swizzle(_bytes(x.block_scale), tall).view(x.block_scale.dtype)
    return replace(x, block_scale=scale, layout=layout)


def _to_linear(x: ScaledTensor) -> ScaledTensor:
    rows, blocks = x.shape[0], x.shape[-1] // x.format.block
    if x.layout == "cpu_packed":
        return _unpack(x)
    if x.layout == "trtllm_shuffled":
        padded = x.data.shape[0]
        back = torch.argsort(shuffled_rows(padded, x.device))
        data = x.data[back][:rows].contiguous()
        scale = _unswizzle(_bytes(x.block_scale), 128)[back][:rows, :blocks].contiguous()
        return replace(x, data=data, block_scale=scale.view(x.block_scale.dtype), layout="linear")
    if x.layout == "aiter_shuffled":
        tiles = x.data.reshape(x.data.shape[0] // 16, x.data.shape[1] // 32, 2, 16, 16).permute(0, 3, 1, 2, 4)
        data = tiles.reshape(x.data.shape)[:rows].contiguous()
        held = _bytes(x.block_scale)
        tiles = held.reshape(held.shape[0] // 32, held.shape[1] // 8, 4, 16, 2, 2).permute(0, 5, 3, 1, 4, 2)
        scale = tiles.reshape(held.shape)
        scale = scale[:rows, :blocks].contiguous().view(x.block_scale.dtype)
        return replace(x, data=data, block_scale=scale, layout="linear")
    tall = 128 if x.layout == "swizzled_128x4" else 8
    scale = _unswizzle(_bytes(x.block_scale), tall)[:rows, :blocks].contiguous()
    return replace(x, block_scale=scale.view(x.block_scale.dtype), layout="linear")


def shuffled_rows(rows: int, device: torch.device) -> Tensor:
    """Index `order` such that shuffled = linear[order]; rows must be a multiple of 32."""
    new = torch.arange(rows, device=device)
    inside = new % 32
    return new - inside + (inside % 8) * 4 + inside // 8


def swizzle_scales(scale: Tensor, rows_per_tile: int = 128) -> Tensor:
    """Linear block scales (M, C) -> tiles of rows_per_tile x 4, padded with zeros, as (Mp, Cp)."""
    return _swizzle(_bytes(scale), rows_per_tile).view(scale.dtype)


def unswizzle_scales(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The linear block scales (rows, columns) of tiles of 128 x 4; what stands in the padding is left out."""
    padded = tiles.reshape(ceil_to(rows, 128), ceil_to(columns, 4))
    return _unswizzle(_bytes(padded), 128)[:rows, :columns].contiguous().view(tiles.dtype)


def aiter_scales(scale: Tensor) -> Tensor:
    """Linear e8m0 scales (M, C) in AITER's tiles of 32 x 8, padded with zeros to (256, 8)."""
    rows, columns = ceil_to(scale.shape[0], 256), ceil_to(scale.shape[1], 8)
    padded = _pad(_bytes(scale), rows, columns)
    tiles = padded.reshape(rows // 32, 2, 16, columns // 8, 2, 4).permute(0, 3, 5, 2, 4, 1)
    return tiles.reshape(rows, columns).view(scale.dtype)


def _bytes(t: Tensor) -> Tensor:
    return t.view(torch.uint8)


def _pad(t: Tensor, rows: int, columns: int) -> Tensor:
    if tuple(t.shape) == (rows, columns):
        return t
    out = t.new_zeros(rows, columns)
    out[: t.shape[0], : t.shape[1]] = t
    return out


def _swizzle(scale: Tensor, tall: int) -> Tensor:
    rows, columns = ceil_to(scale.shape[0], tall), ceil_to(scale.shape[1], 4)
    padded = _pad(scale, rows, columns)
    if tall == 128:
        tiles = padded.reshape(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
    else:
        tiles = padded.reshape(rows // 8, 8, columns // 4, 4).permute(0, 2, 1, 3)
    return tiles.reshape(rows, columns)


def _unswizzle(scale: Tensor, tall: int) -> Tensor:
    rows, columns = scale.shape
    if tall == 128:
        tiles = scale.reshape(rows // 128, columns // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    else:
        tiles = scale.reshape(rows // 8, columns // 4, 8, 4).permute(0, 2, 1, 3)
    return tiles.reshape(rows, columns)


def _pack(x: ScaledTensor) -> ScaledTensor:
    if x.format != NVFP4:
        raise ValueError(f"format is {x.format.name}; layout 'cpu_packed' holds nvfp4 only")
    scale = _bytes(x.block_scale)
    if scale.numel() and int(scale.max()) > MAX_FINITE_E4M3:
        raise ValueError("block_scale has a NaN; 'cpu_packed' holds finite scales: keep layout 'linear'")
    n, k = x.shape
    panels, blocks = ceil_to(n, PANEL) // PANEL, k // 16
    rows = panels * PANEL
    data = _pad(x.data, rows, k // 2)
    # (panel, group, lane, block, v, byte): byte j of a block's vector v holds k = 8v+2j, 8v+2j+1
    codes = torch.stack((data & 15, data >> 4), dim=-1).reshape(panels, 4, 16, blocks, 2, 2, 4)
    nibbles = codes[..., 0, :] | (codes[..., 1, :] << 4)  # k = 8v + b low, 8v + 4 + b high
    nibbles = nibbles.permute(0, 3, 1, 4, 2, 5).reshape(panels, blocks, NIBBLE_BYTES)
    scales = _pad(scale, rows, blocks).reshape(panels, PANEL, blocks).permute(0, 2, 1)
    packed = torch.cat((nibbles, scales), dim=-1).contiguous()
    return replace(x, data=packed, block_scale=x.block_scale.new_empty(0), layout="cpu_packed")


def _unpack(x: ScaledTensor) -> ScaledTensor:
    n, k = x.shape
    panels, blocks, _ = x.data.shape
    nibbles = x.data[..., :NIBBLE_BYTES].reshape(panels, blocks, 4, 2, 16, 4).permute(0, 2, 4, 1, 3, 5)
    codes = torch.stack((nibbles & 15, nibbles >> 4), dim=-2).reshape(panels * PANEL, k // 2, 2)
    data = (codes[..., 0] | (codes[..., 1] << 4))[:n].contiguous()
    scale = x.data[..., NIBBLE_BYTES:].permute(0, 2, 1).reshape(panels * PANEL, blocks)[:n].contiguous()
    return replace(x, data=data, block_scale=scale.view(x.block_scale.dtype), layout="linear")
