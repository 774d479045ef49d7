"""Which quantised layers a checkpoint holds, in whose spelling, and how to read each as a ScaledTensor."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_kernels.integrations.checkpoints_files import CheckpointError, Contents
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledTensor, ceil_to
from sgl_kernels.ops.nvfp4.layouts import to_layout


@dataclass(frozen=True, slots=True)
class Spelling:
    """One library's names for the parts of a quantised layer; `encode` says its global scales are 2688 / amax."""

    name: str
    data: str
    block_scale: str
    global_scale: str
    input_scale: str
    encode: bool
    global_required: bool = True


SPELLINGS = (
    Spelling("modelopt", "weight", "weight_scale", "weight_scale_2", "input_scale", False),
    Spelling(
        "compressed-tensors", "weight_packed", "weight_scale", "weight_global_scale", "input_global_scale", True
    ),
    Spelling(
        "torchao", "_weight_qdata", "_weight_scale", "_weight_per_tensor_scale", "_weight_act_per_tensor_scale", False,
        global_required=False,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuantisedEntry:
    """A quantised layer of a checkpoint, found in the headers and checked against them."""

    layer: str  # dotted name of the module
    spelling: Spelling
    out_features: int
    in_features: int
    swizzled: bool
    keys: dict[str, str]  # part -> key, for the parts present

    def read(self, tensors: dict[str, Tensor], swap_nibbles: bool) -> tuple[ScaledTensor, float]:
        """(the weight in linear layout, the input's global scale in the decode direction or 0) from its tensors."""
        data = tensors[self.keys["data"]]
        if swap_nibbles:
            data = (data << 4) | (data >> 4)
        scale = tensors[self.keys["block_scale"]]
        layout = "linear"
        if self.swizzled:
            blocks = self.in_features // NVFP4.block
            scale = scale.reshape(ceil_to(self.out_features, 128), ceil_to(blocks, 4))
            layout = "swizzled_128x4"
        total = self._scalar("global_scale", tensors)
        weight = ScaledTensor(
            data, scale, torch.tensor(1.0 if total is None else total), NVFP4,
            (self.out_features, self.in_features), layout,
        )  # fmt: skip
        return to_layout(weight, "linear"), self._scalar("input_scale", tensors) or 0.0

    def _scalar(self, part: str, tensors: dict[str, Tensor]) -> float | None:
        key = self.keys.get(part)
        if key is None:
            return None
        values = tensors[key].reshape(-1).to(torch.float32)
        if not values.isfinite().all() or not (values > 0).all():
            raise CheckpointError(f"{key!r} is {values.tolist()}, expected a positive finite number")
        if (values != values[0]).any():
            raise CheckpointError(
                f"{key!r} holds different scales {values.tolist()} for fused partitions; a layer here has one: split "
                "the layer, or requantise it"
            )
        return (1.0 / values[0] if self.spelling.encode else values[0]).item()


def find_quantised(contents: Contents) -> list[QuantisedEntry]:
    """Every quantised layer, in the order of its keys. Raises CheckpointError for parts missing or misshaped."""
    found = []
    for key, entry in contents.entries.items():
        prefix, _, leaf = key.rpartition(".")
        for spelling in SPELLINGS:
            if leaf == spelling.data and entry.dtype is torch.uint8:
                found.append(_entry(contents, prefix, spelling))
    return found


def _entry(contents: Contents, layer: str, spelling: Spelling) -> QuantisedEntry:
    def key_of(part: str) -> str:
        leaf = getattr(spelling, part)
        return f"{layer}.{leaf}" if layer else leaf

    keys = {
        part: key_of(part)
        for part in ("data", "block_scale", "global_scale", "input_scale")
        if key_of(part) in contents.entries
    }
    where = contents.describe(keys["data"])
    required = ("block_scale", "global_scale") if spelling.global_required else ("block_scale",)
    for part in required:
        if part not in keys:
            raise CheckpointError(
                f"{key_of(part)!r} is missing; {where} is {spelling.name} NVFP4 data and needs it"
            )
    data = contents.entries[keys["data"]]
    if len(data.shape) != 2 or data.shape[1] % 8:
        raise CheckpointError(
            f"{where} has shape {list(data.shape)}, expected (N, K/2) with K a multiple of 16"
        )
    n, k = data.shape[0], 2 * data.shape[1]
    scale = contents.entries[keys["block_scale"]]
    if scale.dtype is not torch.float8_e4m3fn:
        raise CheckpointError(
            f"{contents.describe(keys['block_scale'])} is {scale.dtype}, expected float8_e4m3fn"
        )
    tiles = ceil_to(n, 128) * ceil_to(k // 16, 4)
    plain = scale.shape == (n, k // 16)
    swizzled = _says_swizzled(contents, layer) or (not plain and torch.Size(scale.shape).numel() == tiles)
    if not plain and not swizzled:
        raise CheckpointError(
            f"{contents.describe(keys['block_scale'])} has shape {list(scale.shape)}, expected {[n, k // 16]} (or "
            f"{tiles} values swizzled 128x4)"
        )
    return QuantisedEntry(layer, spelling, n, k, swizzled, keys)


def _says_swizzled(contents: Contents, layer: str) -> bool:
    """torchao says in its metadata whether a weight's scales are swizzled; ModelOpt's users in their config."""
    raw = contents.metadata.get(f"{layer}.weight")
    if raw is not None:
        try:
            return bool(json.loads(raw).get("_data", {}).get("is_swizzled_scales", False))
        except (ValueError, AttributeError):
            return False
    return contents.config.get("checkpoint_weight_scale_layout") == "swizzled"
