"""Where each tensor of a checkpoint goes in a model: settled and checked from the headers, before anything is read."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgl_kernels.integrations.checkpoints_files import Contents
from sgl_kernels.integrations.checkpoints_header import CheckpointError, shown
from sgl_kernels.integrations.checkpoints_layouts import QuantisedEntry
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import is_hooked, read_elsewhere
from sgl_kernels.ops.nvfp4.formats import NVFP4

Rename = Callable[[str], str]
OWN_KEYS = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
FACTORS = {
    "pre_quant_scale", "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "scale_weight",
    "weight_zero_point", "weight_g_idx", "comfy_quant", "qzeros", "scales", "g_idx",
}  # fmt: skip
"""Parts of quantised layers. Beside a weight that is loaded they change its value, so nobody may leave them out."""


class Plan:
    """The layers and tensors of a model that a checkpoint fills."""

    def __init__(
        self, model: nn.Module, contents: Contents, quantised: list[QuantisedEntry], rename: Rename,
        ignore: tuple[str, ...], input_factors: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.contents, self.ignore = model, contents, ignore
        self.taken = {key for q in quantised for key in q.keys.values()}
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.guarded = read_elsewhere(model)
        state = dict(model.state_dict(keep_vars=True))
        self.layers: dict[str, QuantisedEntry] = {}  # the model's name -> the checkpoint's layer
        filled: dict[str, str] = {}  # state-dict name -> the key that fills it
        for q in quantised:
            name, where = self._renamed(rename, q.layer), contents.describe(q.keys["data"])
            self._check_layer(q, self.modules.get(name), name, where)
            for alias in self._aliases(name):
                for leaf in OWN_KEYS:
                    full = f"{alias}.{leaf}" if alias else leaf
                    if full in filled:
                        raise CheckpointError(
                            f"{where} and {contents.describe(filled[full])} are both for the model's {shown(name)}"
                        )
                    filled[full] = q.keys["data"]
            if "factors" in q.keys and not input_factors:
                self._check_factors(q.keys["factors"])
            self.layers[name] = q
        self.plain: dict[str, str] = {}  # state-dict name -> checkpoint key
        left_over = []
        for key, entry in contents.entries.items():
            if key in self.taken:
                continue
            prefix, _, leaf = key.rpartition(".")
            name = ".".join(part for part in (self._renamed(rename, prefix), leaf) if part)
            where = contents.describe(key)
            if name in state and (name in filled or name in self.plain):
                other = contents.describe(filled.get(name) or self.plain[name])
                raise CheckpointError(f"{where} and {other} are both for the model's {shown(name)}")
            if name not in state:
                self._check_left_over(key, where, {q.layer for q in quantised})
                left_over.append(key)
                continue
            if tuple(state[name].shape) != entry.shape:
                raise CheckpointError(
                    f"{where} has shape {list(entry.shape)}, the model expects {list(state[name].shape)}"
                )
            self._check_kind(where, entry.dtype, state[name].dtype)
            self.plain[name] = key
        self.left_over = tuple(left_over)
        self._check_complete(state, filled, sorted({e.label for e in contents.entries.values()}))

    @staticmethod
    def _renamed(rename: Rename, layer: str) -> str:
        name = rename(layer)
        if not isinstance(name, str):
            raise TypeError(
                f"load_checkpoint: rename gives {type(name).__name__} for {layer!r}, expected a str"
            )
        return name

    def _aliases(self, name: str) -> list[str]:
        """Every name of a module that several parts of the model share."""
        return [n for n, m in self.modules.items() if m is self.modules[name]]

    def _check_layer(self, q: QuantisedEntry, module: nn.Module | None, name: str, where: str) -> None:
        plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if not plain and not isinstance(module, NVFP4Linear):
            found = "nothing" if module is None else type(module).__name__
            raise CheckpointError(f"{where} is a quantised layer, but the model has {found} at {shown(name)}")
        assert isinstance(module, nn.Linear | NVFP4Linear)
        if module in self.guarded:
            raise CheckpointError(
                f"{where} is a quantised layer, but the model's {shown(name)} cannot be one: {self.guarded[module]}"
            )
        if is_hooked(module):
            raise CheckpointError(
                f"{where} is a quantised layer; the model's {shown(name)} has hooks or a forward of its own, which "
                "its replacement would not have: load first, and add them afterwards"
            )
        if module is self.model:
            raise CheckpointError(
                f"{where} is the whole model, which cannot be replaced inside itself: load into nn.Sequential(model), "
                "with rename=lambda name: '0'"
            )
        if (module.out_features, module.in_features) != (q.out_features, q.in_features):
            raise CheckpointError(
                f"{where} is a layer of {q.in_features} -> {q.out_features}, the model's {shown(name)} is "
                f"{module.in_features} -> {module.out_features}"
            )
        if isinstance(module, NVFP4Linear) and module.format != NVFP4:
            raise CheckpointError(f"{where} is nvfp4, the model's {shown(name)} is {module.format.name}")

    def _check_factors(self, key: str) -> None:
        """Consent by name is enough: allowed to be left over, they are applied all the same."""
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignore):
            raise CheckpointError(
                f"{self.contents.describe(key)} multiplies the input of its layer (AWQ, SmoothQuant), one product more "
                "in every call; pass input_factors=True to have the layer apply it"
            )

    def _check_left_over(self, key: str, where: str, quantised: set[str]) -> None:
        layer, _, leaf = key.rpartition(".")
        weight = f"{layer}.weight" if layer else "weight"
        if leaf in FACTORS and (layer in quantised or weight in self.contents.entries):
            raise CheckpointError(
                f"{where} belongs to the quantised layer {shown(layer)}, in a scheme that is not served; without it "
                "the weight is another one"
            )
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignore):
            raise CheckpointError(f"{where} has no place in the model; rename it, or allow it with ignore")

    @staticmethod
    def _check_kind(where: str, found: torch.dtype, wanted: torch.dtype) -> None:
        if found.is_floating_point != wanted.is_floating_point or (found is torch.bool) != (
            wanted is torch.bool
        ):
            raise CheckpointError(f"{where} is {found}, the model expects {wanted}")

    def _check_complete(self, state: dict[str, Tensor], filled: dict[str, str], files: list[str]) -> None:
        given = {id(state[name]) for name in self.plain}
        for name, tensor in state.items():
            if name in filled or id(tensor) in given:
                continue
            owner = self.modules.get(name.rpartition(".")[0])
            if not (name.endswith("input_scale") and isinstance(owner, NVFP4Linear)):
                raise CheckpointError(
                    f"{name!r} of the model is missing from {', '.join(map(str, files[:3]))}"
                )

    def keys(self) -> set[str]:
        """Everything to read."""
        return self.taken | set(self.plain.values())

    def apply(self, tensors: dict[str, Tensor], layers: dict[str, NVFP4Linear]) -> None:
        """Change the model. Nothing in here can fail for the contents of a checkpoint."""
        state = dict(self.model.state_dict(keep_vars=True))
        moved: dict[int, Tensor] = {}  # by the id of a tensor without data, which several names may share
        for name, key in self.plain.items():
            target = state[name]
            if target.device.type == "meta":
                moved[id(target)] = tensors[key].to(target.dtype)
        for name, layer in layers.items():
            for alias in self._aliases(name):
                put(self.model, alias, layer)
        made: dict[int, Tensor] = {}
        for name, target in state.items():
            if id(target) in moved:
                made[id(target)] = _replaced(self.model, name, moved[id(target)], made.get(id(target)))
            elif name in self.plain:
                with torch.no_grad():
                    target.copy_(tensors[self.plain[name]])


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Set the submodule `name`, which is not the model itself."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, layer)


def _replaced(model: nn.Module, name: str, value: Tensor, made: Tensor | None) -> Tensor:
    """Put `value` at `name`, or what was made of it for another name of the same tensor."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent) if parent else model
    if leaf not in module._parameters:
        module._buffers[leaf] = value
        return value
    old = module._parameters[leaf]
    keep = old is not None and old.requires_grad and value.is_floating_point()
    new = made if isinstance(made, nn.Parameter) else nn.Parameter(value, requires_grad=keep)
    module._parameters[leaf] = new
    return new
