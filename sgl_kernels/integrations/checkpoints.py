"""Load NVFP4 checkpoints of ModelOpt, compressed-tensors and torchao into a model, and write ModelOpt's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sgl_kernels.integrations.checkpoints_config import LAYOUTS, read_config
from sgl_kernels.integrations.checkpoints_files import open_checkpoint, read_tensors
from sgl_kernels.integrations.checkpoints_header import CheckpointError
from sgl_kernels.integrations.checkpoints_layouts import QuantisedEntry, find_quantised, settle
from sgl_kernels.integrations.checkpoints_plan import Plan, Rename
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.ops.nvfp4.formats import NVFP4
from sgl_kernels.ops.nvfp4.spec import ACTIVATIONS

__all__ = ["CheckpointError", "LoadReport", "load_checkpoint", "save_checkpoint"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did."""

    quantised: tuple[str, ...]  # layers now in 4 bits
    plain: tuple[str, ...]  # keys copied as they are
    ignored: tuple[str, ...]  # keys the caller allowed to be left over
    spelling: str  # whose layout the quantised layers were in, "" if none was quantised
    scale_layouts: tuple[
        tuple[str, str], ...
    ] = ()  # (layout of the block scales, who says so), each pair once


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    activation: str | None = None,
    rename: Rename | None = None,
    ignore: Iterable[str] = (),
    swap_nibbles: bool | None = None,
    scale_layout: str | None = None,
    input_factors: bool = False,
    streamer: bool | None = None,
) -> LoadReport:
    """Load a checkpoint: a .safetensors file, an index of shards, or the folder of either.

    Where the checkpoint has a 4-bit weight, the model's nn.Linear becomes an NVFP4Linear. Everything else is
    copied into the model's own tensors, at the model's dtype. The model may be on the meta device.

    activation    of the quantised layers; None takes "nvfp4" where the checkpoint has an input scale, else "bf16"
    rename        maps a key's layer in the checkpoint to the model's ("model.x" -> "x")
    ignore        globs of checkpoint keys that may be left over
    swap_nibbles  the checkpoint packs even k into the high nibble; None reads ComfyUI's marks and the config
    scale_layout  of the block scales, "linear" or "swizzled" (tiles of 128 x 4); None reads marks and the config, then
                  shapes; where these leave it open, which layout rows and columns explain, then the order of nibbles
                  (high first is ComfyUI's, whose scales are swizzled). LoadReport.scale_layouts says what was found
    input_factors accept factors of a layer's input (pre_quant_scale, of AWQ), which the layer then applies. Without it
                  they are refused by name; a glob in `ignore` accepts them too, and never has them left out
    streamer      use the Run:AI streamer; None: if SGLANG_USE_RUNAI_MODEL_STREAMER is true and it is installed

    Raises CheckpointError naming the key and the file for a tensor that is missing, left over, misshaped or cut off,
    for scales that are NaN, negative or not finite, for a quantisation that is not served, and for whatever else a
    damaged file may hold. Everything is read and checked before the model is touched: a failed load leaves it as it
    was.
    """
    if scale_layout not in (None, *LAYOUTS):
        raise ValueError(
            f"load_checkpoint: scale_layout is {scale_layout!r}, expected linear, swizzled or None"
        )
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(
            f"load_checkpoint: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)} or None"
        )
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    with torch.inference_mode(False), torch.no_grad():
        contents = open_checkpoint(path)
        config = read_config(contents.config, contents.config_name, ignore)
        quantised = find_quantised(contents, config, scale_layout, swap_nibbles)
        plan = Plan(model, contents, quantised, rename or (lambda name: name), ignore, input_factors)
        tensors = dict(read_tensors(contents, plan.keys(), streamer))
        quantised = settle(quantised, tensors)
        layers = {
            name: _layer(plan, q, name, tensors, activation)
            for name, q in zip(plan.layers, quantised, strict=True)
        }
        plan.apply(tensors, layers)
    spelling = quantised[0].spelling.name if quantised else ""
    told = tuple(sorted({(q.layout, q.said_by) for q in quantised}))
    return LoadReport(tuple(layers), tuple(sorted(plan.plain)), plan.left_over, spelling, told)


def _layer(
    plan: Plan, entry: QuantisedEntry, name: str, tensors: dict[str, Tensor], activation: str | None
) -> NVFP4Linear:
    old = plan.modules[name]
    found = entry.read(plan.contents, tensors)
    layer = NVFP4Linear(
        entry.in_features,
        entry.out_features,
        False,
        activation=activation or ("nvfp4" if found.input_scale else "bf16"),
    )
    layer.set_weight(found.weight)
    layer.calibrate(found.input_scale)
    layer.scale_inputs(found.factors)
    device = next((t.device for t in (*old.parameters(), *old.buffers())), torch.device("cpu"))
    if device.type not in ("cpu", "meta"):
        layer = layer.to(device)
    layer.bias = old.bias  # type: ignore[assignment]  # filled with the plain tensors
    layer.train(old.training)
    layer.prepare()
    return layer


def save_checkpoint(
    model: nn.Module, folder: str | Path, *, max_shard_bytes: int = 5_000_000_000, name: str = "model"
) -> list[Path]:
    """Write `model` in ModelOpt's NVFP4 layout, with hf_quant_config.json, in shards if it is large.

    Layers without a calibrated input scale get none, which readers take as weight-only. Files are written beside
    their place and moved there, so an interrupted save never leaves half a file.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _own_tensors(model)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        held = tensor.numel() * tensor.element_size()
        if shards[-1] and size + held > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += held
    names = [f"{name}.safetensors"]
    if len(shards) > 1:
        names = [f"{name}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        save_file(shard, folder / f"{file}.part", metadata={"format": "pt"})
        os.replace(folder / f"{file}.part", folder / file)
    written = [folder / file for file in names]
    if len(shards) > 1:
        listed = {key: file for file, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        written.append(_write(folder / f"{name}.safetensors.index.json", index))
    excluded = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    scaled = any(isinstance(m, NVFP4Linear) and m.pre_quant_scale is not None for m in model.modules())
    quantization = {
        "quant_algo": "NVFP4_AWQ" if scaled else "NVFP4",
        "group_size": 16,
        "exclude_modules": excluded,
    }
    written.append(_write(folder / "hf_quant_config.json", {"quantization": quantization}))
    return written


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, NVFP4Linear)}
    other = [n for n, m in layers.items() if m.format != NVFP4]
    if other:
        raise ValueError(
            f"save_checkpoint: layer {other[0]!r} is {layers[other[0]].format.name}; only nvfp4 is written"
        )
    dropped = {f"{n}.input_scale" if n else "input_scale" for n, m in layers.items() if not m.is_calibrated}
    shared = {  # a layer of several names is written under the first
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, NVFP4Linear) and name not in layers
    }
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for key, tensor in model.state_dict().items():
        if key in dropped or key.rpartition(".")[0] in shared:
            continue
        if tensor.is_meta:
            raise ValueError(
                f"save_checkpoint: {key!r} is on the meta device, without data; load it, or take an offloading hook's "
                "tensors back, before saving"
            )
        if tensor.device.type == "cpu" and tensor.numel():
            alias = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if alias in seen:
                continue  # a tied weight is written once
            seen.add(alias)
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        tensors[key] = tensor.detach().contiguous() if whole else tensor.detach().contiguous().clone()
    return tensors


def _write(path: Path, value: object) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
    return path
