"""What a checkpoint's quantisation config says, held against what is served: other schemes are refused by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sgl_kernels.integrations.checkpoints_header import CheckpointError, kind, shown
from sgl_kernels.ops.nvfp4.formats import NVFP4

SERVED = ("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4")
"""ModelOpt's names. AWQ's factors of the input are read from the layers; the last has no input scales."""
PACKED = "nvfp4-pack-quantized"  # compressed-tensors' name
CACHES = ("kv_cache_quant_algo", "kv_cache_scheme")
LAYOUTS = ("linear", "swizzled")


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """The parts of a quantisation config that decide how a file is read."""

    swap_nibbles: bool | None = None
    scale_layout: str | None = None
    excluded: tuple[str, ...] = ()  # globs of layers that are not quantised
    name: str = ""  # of the file it is from

    def excludes(self, layer: str) -> bool:
        """Whether the config says that a layer is not quantised; compressed-tensors marks expressions by "re:"."""
        for pattern in self.excluded:
            if pattern.startswith("re:"):
                try:
                    if re.match(pattern[3:], layer):
                        return True
                except re.error:
                    continue
            elif fnmatch.fnmatchcase(layer, pattern):
                return True
        return False


def read_config(config: dict[str, Any], name: str, ignore: Iterable[str]) -> QuantConfig:
    """Check the config found in file `name`. Raises CheckpointError for what is not served."""
    if not config:
        return QuantConfig()
    method = _get(config, "quant_method", str, name)
    if method in (None, "modelopt", "modelopt_fp4"):
        _check_modelopt(config, name)
    elif method == "compressed-tensors":
        _check_compressed(config, name)
    elif method != "torchao":  # whose metadata describe each tensor
        raise CheckpointError(
            f"quant_method of {name} is {shown(method)}; served are modelopt, compressed-tensors and torchao"
        )
    for part in CACHES:
        if config.get(part) not in (None, "", "none") and not any(
            fnmatch.fnmatchcase(part, p) for p in ignore
        ):
            raise CheckpointError(
                f"{part} of {name} is {shown(config[part])}: no cache is quantised here, it keeps the model's dtype; "
                f"accept that with ignore=[{part!r}]"
            )
    layout = _get(config, "checkpoint_weight_scale_layout", str, name)
    if layout is not None and layout not in LAYOUTS:
        raise CheckpointError(
            f"checkpoint_weight_scale_layout of {name} is {shown(layout)}, expected linear or swizzled"
        )
    excluded = tuple(
        pattern for part in ("exclude_modules", "ignore") for pattern in _texts(config, part, name)
    )
    return QuantConfig(_get(config, "swap_weight_nibbles", bool, name), layout, excluded, name)


def _get(config: dict[str, Any], part: str, of: type, name: str) -> Any:
    value = config.get(part)
    if value is not None and not isinstance(value, of):
        raise CheckpointError(f"{part} of {name} is {kind(value)}, expected {kind(of())}")
    return value


def _texts(config: dict[str, Any], part: str, name: str) -> list[str]:
    value = _get(config, part, list, name) or []
    if not all(isinstance(v, str) for v in value):
        raise CheckpointError(f"{part} of {name} is {shown(value)}, expected a list of texts")
    return value


def _check_modelopt(config: dict[str, Any], name: str) -> None:
    algorithm = _get(config, "quant_algo", str, name)
    if algorithm == "MIXED_PRECISION":
        layers = _get(config, "quantized_layers", dict, name) or {}
        for layer, found in layers.items():
            if not isinstance(found, dict):
                raise CheckpointError(
                    f"quantized_layers of {name} has {kind(found)} for {shown(layer)}, expected an object"
                )
            _check_algorithm(found.get("quant_algo"), f"{name} for {shown(layer)}")
            _check_group(found.get("group_size"), f"{name} for {shown(layer)}")
    elif algorithm is not None:
        _check_algorithm(algorithm, name)
    if (spelt := _get(config, "quant_type", str, name)) is not None:
        _check_algorithm(spelt, name, "quant_type")
    _check_group(config.get("group_size"), name)


def _check_algorithm(algorithm: Any, where: str, part: str = "quant_algo") -> None:
    if not isinstance(algorithm, str) or algorithm not in SERVED:
        raise CheckpointError(f"{part} of {where} is {shown(algorithm)}; served are {', '.join(SERVED)}")


def _check_group(size: Any, where: str) -> None:
    if size is not None and (type(size) is not int or size != NVFP4.block):
        raise CheckpointError(f"group_size of {where} is {shown(size)}; NVFP4 has blocks of {NVFP4.block}")


def _check_compressed(config: dict[str, Any], name: str) -> None:
    form = _get(config, "format", str, name)
    if form not in (None, PACKED):
        raise CheckpointError(f"format of {name} is {shown(form)}; served is {PACKED}")
    for group, found in (_get(config, "config_groups", dict, name) or {}).items():
        weights = found.get("weights") if isinstance(found, dict) else None
        if not isinstance(weights, dict):
            raise CheckpointError(f"config_groups of {name} has no weights for {shown(group)}")
        bits, of = weights.get("num_bits", 4), weights.get("type", "float")
        if (bits, of) != (4, "float"):
            raise CheckpointError(
                f"config_groups of {name} has weights of {shown(bits)} bits, type {shown(of)} for {shown(group)}; "
                "served are 4-bit floats"
            )
        _check_group(weights.get("group_size"), f"{name} for {shown(group)}")
