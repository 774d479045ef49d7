"""Which quantised layers a checkpoint holds, in whose spelling, and how to read each as a ScaledTensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.integrations.checkpoints_config import QuantConfig
from sgl_kernels.integrations.checkpoints_files import Contents
from sgl_kernels.integrations.checkpoints_header import CheckpointError, kind, parse_object, shown
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledTensor, ceil_to, scales_fault
from sgl_kernels.ops.nvfp4.layouts import unswizzle_scales

FACTORS = "pre_quant_scale"  # of the layer's input: AWQ
MARK = "comfy_quant"  # a tensor of JSON beside each layer that ComfyUI quantised
MARKS = "_quantization_metadata"  # the same for all layers, in the file's metadata


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
    keys: dict[str, str]  # part -> key, for the parts present
    fits: tuple[str, ...]  # layouts of the block scales that their shape allows
    layout: str  # of the block scales: "linear", "swizzled", or "" where nothing says it
    said_by: str = ""  # who says it
    swap_nibbles: bool = False  # even k is in the high nibble

    def read(self, contents: Contents, tensors: dict[str, Tensor]) -> ReadLayer:
        """The layer's tensors as one weight in linear layout. Raises CheckpointError for scales that are none."""
        data = tensors[self.keys["data"]]
        if self.swap_nibbles:
            data = (data << 4) | (data >> 4)
        total = self._scalar("global_scale", contents, tensors)
        shape, where = (self.out_features, self.in_features), contents.describe(self.keys["block_scale"])
        scale = linear_scales(self, tensors[self.keys["block_scale"]])
        if fault := scales_fault(scale, None):
            raise CheckpointError(f"{where} {fault}")
        weight = ScaledTensor(data, scale, torch.tensor(1.0 if total is None else total), NVFP4, shape)
        self._check_mark(contents, tensors)
        factors = None
        if "factors" in self.keys:
            factors = tensors[self.keys["factors"]].reshape(-1).to(torch.float32)
            if not factors.isfinite().all():
                raise CheckpointError(
                    f"{contents.describe(self.keys['factors'])} has NaN or infinities; they would multiply the input"
                )
        return ReadLayer(weight, self._scalar("input_scale", contents, tensors) or 0.0, factors)

    def _scalar(self, part: str, contents: Contents, tensors: dict[str, Tensor]) -> float | None:
        key = self.keys.get(part)
        if key is None:
            return None
        where = contents.describe(key)
        values = tensors[key].reshape(-1).to(torch.float64)
        listed = shown(values[:8].tolist())
        if (values != values[0]).any() and values.isfinite().all():
            raise CheckpointError(
                f"{where} holds different scales {listed} for fused partitions; a layer here has one: split "
                "the layer, or requantise it"
            )
        value = torch.where(values > 0, 1.0 / values if self.spelling.encode else values, 0.0).to(
            torch.float32
        )
        if not values.isfinite().all() or not value.isfinite().all() or not (value > 0).all():
            raise CheckpointError(f"{where} is {listed}, expected a positive finite number")
        return value[0].item()

    def _check_mark(self, contents: Contents, tensors: dict[str, Tensor]) -> None:
        if (key := self.keys.get("mark")) is not None:
            where = contents.describe(key)
            found = parse_object(bytes(tensors[key].reshape(-1).tolist()), where)
            _check_format(found, where)


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """What a checkpoint says of a layer."""

    weight: ScaledTensor  # in linear layout
    input_scale: float  # global, in the decode direction; 0 if there is none
    factors: Tensor | None  # of the input


def linear_scales(entry: QuantisedEntry, scale: Tensor, layout: str = "") -> Tensor:
    """Block scales as they are in the file -> (N, K/16), read as `layout` or as the entry says."""
    rows, blocks = entry.out_features, entry.in_features // NVFP4.block
    if (layout or entry.layout) == "swizzled":
        return unswizzle_scales(scale, rows, blocks)
    return scale.reshape(rows, blocks)


def find_quantised(
    contents: Contents, config: QuantConfig, scale_layout: str | None = None, swap_nibbles: bool | None = None
) -> list[QuantisedEntry]:
    """Every quantised layer, in the order of its keys. Raises CheckpointError for parts missing or misshaped."""
    marks = _marks(contents)
    found = []
    for key, entry in contents.entries.items():
        prefix, _, leaf = key.rpartition(".")
        for spelling in SPELLINGS:
            if leaf == spelling.data and entry.dtype is torch.uint8:
                found.append(_entry(contents, prefix, spelling, config, marks, scale_layout, swap_nibbles))
                if config.excludes(prefix):
                    raise CheckpointError(
                        f"{contents.describe(key)} is quantised, but {config.name} excludes {shown(prefix)}"
                    )
    quantised = {q.layer for q in found}
    for layer, mark in marks.items():
        if layer not in quantised:
            _check_format(mark, f"{MARKS} for {shown(layer)}")
    return _agreed(found, contents)


def _entry(
    contents: Contents, layer: str, spelling: Spelling, config: QuantConfig, marks: dict[str, Any],
    scale_layout: str | None, swap_nibbles: bool | None,
) -> QuantisedEntry:  # fmt: skip
    def key_of(leaf: str) -> str:
        return f"{layer}.{leaf}" if layer else leaf

    parts = {
        **{part: getattr(spelling, part) for part in ("data", "block_scale", "global_scale", "input_scale")},
        "factors": FACTORS,
        "mark": MARK,
    }
    keys = {part: key_of(leaf) for part, leaf in parts.items() if key_of(leaf) in contents.entries}
    where = contents.describe(keys["data"])
    required = ("block_scale", "global_scale") if spelling.global_required else ("block_scale",)
    for part in required:
        if part not in keys:
            raise CheckpointError(
                f"{shown(key_of(parts[part]))} is missing; {where} is {spelling.name} NVFP4 data and needs it"
            )
    data = contents.entries[keys["data"]]
    if len(data.shape) != 2 or data.shape[1] % 8 or 0 in data.shape:
        raise CheckpointError(
            f"{where} has shape {list(data.shape)}, expected (N, K/2) with K a multiple of 16"
        )
    n, k = data.shape[0], 2 * data.shape[1]
    _check_parts(contents, keys, k)
    comfy = "mark" in keys or layer in marks
    if layer in marks:
        _check_format(marks[layer], f"{MARKS} for {shown(layer)}")
    fits = _fits(contents, keys["block_scale"], n, k)
    layout, said_by = _said(contents, layer, config, comfy, scale_layout)
    if layout and layout not in fits:
        shape = list(contents.entries[keys["block_scale"]].shape)
        raise CheckpointError(
            f"{contents.describe(keys['block_scale'])} has shape {shape}, which is not that of {layout} scales, as "
            f"{said_by} says"
        )
    if swap_nibbles is None:
        swap_nibbles = comfy if config.swap_nibbles is None else config.swap_nibbles
    if not layout and len(fits) == 1:
        layout, said_by = fits[0], "the shape"
    return QuantisedEntry(layer, spelling, n, k, keys, fits, layout, said_by, swap_nibbles)


def _check_parts(contents: Contents, keys: dict[str, str], k: int) -> None:
    for part in ("global_scale", "input_scale", "factors"):
        if part in keys:
            entry, where = contents.entries[keys[part]], contents.describe(keys[part])
            if not entry.dtype.is_floating_point or entry.dtype.itemsize == 1:
                raise CheckpointError(f"{where} is {entry.dtype}, expected a float")
            count = math.prod(entry.shape)
            if part == "factors" and count != k:
                raise CheckpointError(f"{where} has shape {list(entry.shape)}, expected {[k]}")
            if count == 0:
                raise CheckpointError(f"{where} has shape {list(entry.shape)}, expected one number")
    if "mark" in keys and contents.entries[keys["mark"]].dtype is not torch.uint8:
        raise CheckpointError(f"{contents.describe(keys['mark'])} is not uint8, expected JSON in bytes")


def _fits(contents: Contents, key: str, n: int, k: int) -> tuple[str, ...]:
    scale = contents.entries[key]
    if scale.dtype is not NVFP4.scale_dtype:
        raise CheckpointError(f"{contents.describe(key)} is {scale.dtype}, expected float8_e4m3fn")
    tall, wide = ceil_to(n, 128), ceil_to(k // 16, 4)
    plain = scale.shape == (n, k // 16)
    swizzled = scale.shape == (tall, wide) or (not plain and math.prod(scale.shape) == tall * wide)
    if not plain and not swizzled:
        raise CheckpointError(
            f"{contents.describe(key)} has shape {list(scale.shape)}, expected {[n, k // 16]} (or "
            f"{tall * wide} values swizzled 128x4)"
        )
    return ("linear",) * plain + ("swizzled",) * swizzled


def _said(
    contents: Contents, layer: str, config: QuantConfig, comfy: bool, asked: str | None
) -> tuple[str, str]:
    """(layout, who says it): the caller, torchao's and ComfyUI's own marks, the config; nobody gives ""."""
    if asked is not None:
        return asked, "scale_layout"
    raw = contents.metadata.get(f"{layer}.weight")
    if raw is not None:
        try:
            found = json.loads(raw).get("_data", {}).get("is_swizzled_scales", False)
        except (ValueError, AttributeError, RecursionError):
            found = None
        if isinstance(found, bool):
            return ("swizzled" if found else "linear"), f"the metadata of {shown(layer)}"
    if config.scale_layout:
        return config.scale_layout, config.name
    return ("swizzled", "ComfyUI's mark") if comfy else ("", "")


def _agreed(found: list[QuantisedEntry], contents: Contents) -> list[QuantisedEntry]:
    """Layers whose shape fits both layouts are held as those of the same file whose shape tells."""
    told = {q.layout: q for q in found if q.said_by == "the shape"}
    open_ = [q for q in found if not q.layout]
    if open_ and len(told) > 1:
        said = [f"{contents.describe(q.keys['block_scale'])} is {name}" for name, q in told.items()]
        raise CheckpointError(
            f"{' and '.join(said)}, and the shape of {contents.describe(open_[0].keys['block_scale'])} fits both: say "
            "which with scale_layout"
        )
    if not told:
        return found
    layout, witness = next(iter(told.items()))
    return [
        q if q.layout else replace(q, layout=layout, said_by=f"the shape of {shown(witness.layer)}")
        for q in found
    ]


def _marks(contents: Contents) -> dict[str, Any]:
    raw = contents.metadata.get(MARKS)
    if raw is None:
        return {}
    layers = parse_object(raw.encode(errors="replace"), MARKS).get("layers", {})
    if not isinstance(layers, dict):
        raise CheckpointError(f"layers of {MARKS} is {kind(layers)}, expected an object")
    return layers


def _check_format(mark: Any, where: str) -> None:
    form = mark.get("format") if isinstance(mark, dict) else mark
    if form != NVFP4.name:
        raise CheckpointError(f"{where} has format {shown(form)}; served is {NVFP4.name!r}")


def settle(found: Iterable[QuantisedEntry], tensors: dict[str, Tensor]) -> list[QuantisedEntry]:
    """Entries whose layout nothing says get one from the scales' values, else from the order of nibbles.

    Rows and columns of a weight differ in size, so scales read in their right order follow their row and column, and
    read in a wrong one do not. Where that tells nothing, high nibbles first mean ComfyUI's packing, whose scales are
    swizzled; otherwise scales are linear, as ModelOpt writes them.
    """
    found = list(found)
    open_ = [q for q in found if not q.layout]
    if not open_:
        return found
    seen = sorted(open_, key=lambda q: -q.out_features * q.in_features)[:16]
    layout, said_by = evidence([(q, tensors[q.keys["block_scale"]]) for q in seen]), "the scales themselves"
    return [
        q
        if q.layout
        else replace(
            q,
            layout=layout or ("swizzled" if q.swap_nibbles else "linear"),
            said_by=said_by if layout else "the order of nibbles",
        )
        for q in found
    ]


def evidence(layers: list[tuple[QuantisedEntry, Tensor]]) -> str:
    """The layout under which rows and columns explain clearly more of the scales' logarithms; "" if neither does."""
    gain = total = noise = 0.0
    for entry, scale in layers:
        explained = []
        for layout in ("linear", "swizzled"):
            size = (
                linear_scales(entry, scale, layout)
                .to(torch.float32)
                .nan_to_num(0.0)
                .clamp(min=2.0**-10)
                .log2()
            )
            size = size - size.mean()
            n, c = size.shape
            explained.append(float(c * size.mean(1).square().sum() + n * size.mean(0).square().sum()))
        spread = float(size.square().sum())
        gain += explained[1] - explained[0]
        total += spread
        noise += 2.0 * (n + c) * (spread / (n * c)) ** 2  # variance of what chance explains
    if total == 0.0 or abs(gain) < max(0.05 * total, 8.0 * math.sqrt(2.0 * noise)):
        return ""
    return "swizzled" if gain > 0 else "linear"
