"""Load NVFP4 checkpoints of ModelOpt, compressed-tensors and torchao into a model, and write ModelOpt's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sgl_kernels.integrations.checkpoints_files import (
    CheckpointError,
    Contents,
    open_checkpoint,
    read_tensors,
)
from sgl_kernels.integrations.checkpoints_layouts import QuantisedEntry, find_quantised
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.ops.nvfp4.formats import NVFP4

__all__ = ["CheckpointError", "LoadReport", "load_checkpoint", "save_checkpoint"]

Rename = Callable[[str], str]
OWN_KEYS = ("weight", "weight_scale", "weight_scale_2", "input_scale")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did."""

    quantised: tuple[str, ...]  # layers now in 4 bits
    plain: tuple[str, ...]  # keys copied as they are
    ignored: tuple[str, ...]  # keys the caller allowed to be left over
    spelling: str  # whose layout the quantised layers were in, "" if none was quantised


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    activation: str | None = None,
    rename: Rename | None = None,
    ignore: Iterable[str] = (),
    swap_nibbles: bool | None = None,
    streamer: bool | None = None,
) -> LoadReport:
    """Load a checkpoint: a .safetensors file, an index of shards, or the folder of either.

    Where the checkpoint has a 4-bit weight, the model's nn.Linear becomes an NVFP4Linear. Everything else is
    copied into the model's own tensors, at the model's dtype. The model may be on the meta device.

    activation    of the quantised layers; None takes "nvfp4" where the checkpoint has an input scale, else "bf16"
    rename        maps a key's layer in the checkpoint to the model's ("model.x" -> "x")
    ignore        globs of checkpoint keys that may be left over
    swap_nibbles  the checkpoint packs even k into the high nibble; None reads the quantization config
    streamer      use the Run:AI streamer; None: if SGLANG_USE_RUNAI_MODEL_STREAMER is true and it is installed

    Raises CheckpointError naming the key and the file for a tensor that is missing, left over, misshaped or cut
    off. Everything is read and checked before the model is touched: a failed load leaves it as it was.
    """
    contents = open_checkpoint(path)
    rename = rename or (lambda name: name)
    quantised = find_quantised(contents)
    plan = _Plan(model, contents, quantised, rename, tuple(ignore))
    swap = bool(contents.config.get("swap_weight_nibbles", False)) if swap_nibbles is None else swap_nibbles
    tensors = dict(read_tensors(contents, plan.keys(), streamer))
    layers = {
        rename(q.layer): _layer(model, q, rename(q.layer), tensors, activation, swap) for q in quantised
    }
    plan.apply(tensors, layers)
    spelling = quantised[0].spelling.name if quantised else ""
    return LoadReport(tuple(layers), tuple(sorted(plan.plain)), plan.left_over, spelling)


def _layer(
    model: nn.Module,
    entry: QuantisedEntry,
    name: str,
    tensors: dict[str, Tensor],
    activation: str | None,
    swap: bool,
) -> NVFP4Linear:
    old = model.get_submodule(name)
    weight, input_scale = entry.read(tensors, swap)
    layer = NVFP4Linear(
        entry.in_features, entry.out_features, False,
        activation=activation or ("nvfp4" if input_scale else "bf16"),
    )  # fmt: skip
    layer.set_weight(weight)
    layer.calibrate(input_scale)
    device = next((t.device for t in (*old.parameters(), *old.buffers())), torch.device("cpu"))
    if device.type not in ("cpu", "meta"):
        layer = layer.to(device)
    layer.bias = old.bias  # filled with the plain tensors
    layer.train(old.training)
    return layer


class _Plan:
    """Where each tensor goes, settled from the headers alone."""

    def __init__(
        self, model: nn.Module, contents: Contents, quantised: list[QuantisedEntry], rename: Rename,
        ignore: tuple[str, ...],
    ) -> None:  # fmt: skip
        import fnmatch

        self.model, self.contents = model, contents
        self.taken = {key for q in quantised for key in q.keys.values()}
        modules = dict(model.named_modules())
        state = dict(model.state_dict(keep_vars=True))
        filled: set[str] = set()
        for q in quantised:
            name = rename(q.layer)
            self._check_layer(q, modules.get(name), name)
            filled |= {f"{name}.{leaf}" if name else leaf for leaf in OWN_KEYS}
        self.plain: dict[str, str] = {}  # state-dict name -> checkpoint key
        left_over = []
        for key, entry in contents.entries.items():
            if key in self.taken:
                continue
            prefix, _, leaf = key.rpartition(".")
            name = ".".join(part for part in (rename(prefix), leaf) if part)
            if name not in state or name in filled:
                if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignore):
                    raise CheckpointError(
                        f"{contents.describe(key)} has no place in the model; rename it, or allow it with ignore"
                    )
                left_over.append(key)
                continue
            if tuple(state[name].shape) != entry.shape:
                raise CheckpointError(
                    f"{contents.describe(key)} has shape {list(entry.shape)}, the model expects "
                    f"{list(state[name].shape)}"
                )
            self.plain[name] = key
        self.left_over = tuple(left_over)
        self._check_complete(state, filled, sorted({e.file.name for e in contents.entries.values()}))

    def _check_layer(self, q: QuantisedEntry, module: nn.Module | None, name: str) -> None:
        where = self.contents.describe(q.keys["data"])
        if not isinstance(module, nn.Linear | NVFP4Linear):
            found = "nothing" if module is None else type(module).__name__
            raise CheckpointError(f"{where} is a quantised layer, but the model has {found} at {name!r}")
        if (module.out_features, module.in_features) != (q.out_features, q.in_features):
            raise CheckpointError(
                f"{where} is a layer of {q.in_features} -> {q.out_features}, the model's {name!r} is "
                f"{module.in_features} -> {module.out_features}"
            )
        if isinstance(module, NVFP4Linear) and module.format != NVFP4:
            raise CheckpointError(f"{where} is nvfp4, the model's {name!r} is {module.format.name}")

    def _check_complete(self, state: dict[str, Tensor], filled: set[str], files: list[str]) -> None:
        for name, tensor in state.items():
            if name in filled or name in self.plain:
                continue
            tied = any(state[other] is tensor for other in self.plain)
            uncalibrated = name.endswith("input_scale") and isinstance(
                self.model.get_submodule(name.rpartition(".")[0]), NVFP4Linear
            )
            if not tied and not uncalibrated:
                raise CheckpointError(f"{name!r} of the model is missing from {', '.join(files[:3])}")

    def keys(self) -> set[str]:
        """Everything to read."""
        return self.taken | set(self.plain.values())

    def apply(self, tensors: dict[str, Tensor], layers: dict[str, NVFP4Linear]) -> None:
        """Change the model. Nothing in here can fail for the contents of a checkpoint."""
        state = dict(self.model.state_dict(keep_vars=True))
        moved: dict[str, Tensor] = {}
        for name, key in self.plain.items():
            target = state[name]
            if target.device.type == "meta":
                moved[name] = tensors[key].to(target.dtype) if target.is_floating_point() else tensors[key]
        for name, layer in layers.items():
            _put(self.model, name, layer)
            layer.prepare()
        for name, key in self.plain.items():
            if name in moved:
                _replace_tensor(self.model, name, moved[name])
            else:
                with torch.no_grad():
                    state[name].copy_(tensors[key])


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, layer)


def _replace_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent) if parent else model
    if leaf in module._parameters:
        old = module._parameters[leaf]
        keep = old is not None and old.requires_grad and value.is_floating_point()
        module._parameters[leaf] = nn.Parameter(value, requires_grad=keep)
    else:
        module._buffers[leaf] = value


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
    quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": excluded}
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
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple[int, int], str] = {}
    for key, tensor in model.state_dict().items():
        alias = (tensor.data_ptr(), tensor.numel())
        if key in dropped or (tensor.numel() and alias in seen and tensor.device.type == "cpu"):
            continue  # a tied weight is written once
        seen[alias] = key
        tensors[key] = tensor.detach().contiguous()
    return tensors


def _write(path: Path, value: object) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
    return path
