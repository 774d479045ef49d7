"""Replace a model's linear layers by 4-bit ones, and report what each replacement costs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledFormat, parse_format

FUSED = (
    nn.TransformerEncoderLayer,
    nn.MultiheadAttention,
)  # they hand children's weights to a kernel of torch
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer's outcome. `error` and `cosine` compare the weight with its quantised value; None if left alone."""

    name: str
    shape: tuple[int, int]
    quantised: bool
    reason: str = ""  # why it was left alone
    error: float | None = None  # relative L2
    cosine: float | None = None
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """Every linear layer of a model, in its order."""

    layers: tuple[LayerReport, ...]

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    @property
    def quantised(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(r for r in self.layers if r.quantised)

    @property
    def bytes_before(self) -> int:
        return sum(r.bytes_before for r in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(r.bytes_after for r in self.layers)

    def worst(self, count: int = 5) -> tuple[LayerReport, ...]:
        """The layers with the largest error, largest first."""
        return tuple(sorted(self.quantised, key=lambda r: -(r.error or 0.0))[:count])

    def __str__(self) -> str:
        width = max((len(r.name) for r in self.layers), default=4)
        lines = [f"{'layer':<{width}}  {'shape':>13}  relative L2  cosine   MB before  after"]
        for r in self.layers:
            size = f"{r.bytes_before / 1e6:9.2f}  {r.bytes_after / 1e6:5.2f}"
            found = f"{r.error:11.4f}  {r.cosine:.5f}" if r.quantised else f"left alone: {r.reason:<9}"
            lines.append(f"{r.name:<{width}}  {'x'.join(map(str, r.shape)):>13}  {found}  {size}")
        lines.append(
            f"{len(self.quantised)} of {len(self.layers)} layers, {self.bytes_before / 1e6:.1f} MB -> "
            f"{self.bytes_after / 1e6:.1f} MB"
        )
        return "\n".join(lines)


def quantize_model(
    model: nn.Module,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    *,
    format: str | ScaledFormat = NVFP4,
    activation: str = "bf16",
) -> QuantizationReport:
    """Replace the nn.Linear layers of `model`, in place, whose dotted name matches `include` and not `exclude`.

    Patterns are globs ("blocks.*.mlp.*"). A layer that cannot be replaced is left alone, and the report says why: its
    in_features is no multiple of the block, its weight is shared with another module (a tied embedding), is no plain
    float tensor or has no elements; the layer is of a subclass, has hooks or a forward of its own, is an adapter beside
    a frozen layer (LoRA), or belongs to a torch module that reads its weight itself. A layer with several names is
    replaced under all of them and listed under its first.
    ValueError, and nothing is replaced: a weight with NaN or infinities, or without data (meta); the error names the
    layer. `model` is itself the nn.Linear: nobody can replace a module inside itself.
    """
    fmt = parse_format(format)
    if isinstance(model, nn.Linear):
        raise ValueError(
            "quantize_model: model is itself an nn.Linear, which cannot be replaced inside itself; take "
            "NVFP4Linear.from_linear(model), or quantise the module that holds it"
        )
    wanted, unwanted = _patterns(include), _patterns(exclude)
    names = _names(model)
    linears = {found[0]: m for m, found in names.items()}
    for pattern in (*wanted, *unwanted):
        if pattern != "*" and not any(
            fnmatch.fnmatchcase(n, pattern) for found in names.values() for n in found
        ):
            raise ValueError(
                f"quantize_model: {pattern!r} matches no linear layer; names look like {', '.join(list(linears)[:4])}"
            )
    users, guarded = _weight_users(model), _guarded(model)
    reports: list[LayerReport] = []
    replacements: dict[str, nn.Module] = {}
    for name, linear in linears.items():
        reason = (
            _selected(names[linear], wanted, unwanted) or guarded.get(linear) or _reason(linear, fmt, users)
        )
        before = _bytes(linear)
        shape = (linear.out_features, linear.in_features)
        if reason:
            reports.append(LayerReport(name, shape, False, reason, None, None, before, before))
            continue
        try:
            if linear.weight.is_meta:
                raise ValueError("weight is on the meta device, without data; load it before quantising")
            layer = NVFP4Linear.from_linear(linear, format=fmt, activation=activation)
        except ValueError as error:
            raise ValueError(f"quantize_model: layer {name!r}: {error}") from error
        replacements[name] = layer
        distance, cosine = weight_error(linear.weight, layer)
        reports.append(LayerReport(name, shape, True, "", distance, cosine, before, _bytes(layer)))
        layer.prepare()
    for name, replacement in replacements.items():
        for alias in names[linears[name]]:
            parent, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(parent) if parent else model, leaf, replacement)
    return QuantizationReport(tuple(reports))


def weight_error(weight: Tensor, layer: NVFP4Linear) -> tuple[float, float]:
    """(relative L2, cosine) of a layer's weight against the original."""
    a = nvfp4_dequantize(layer.quantised_weight(), torch.float32).flatten()
    b = weight.detach().to(torch.float32).flatten()
    size = b.norm().item()
    if size == 0:
        return 0.0, 1.0
    return (a - b).norm().item() / size, (torch.dot(a, b) / (a.norm() * b.norm())).item()


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _weight_users(model: nn.Module) -> dict[int, int]:
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    return users


def _names(model: nn.Module) -> dict[nn.Linear, list[str]]:
    """The linear layers below a model, subclasses too, with every name they go by."""
    found: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            found.setdefault(module, []).append(name)
    return found


def is_hooked(module: nn.Module) -> bool:
    """Whether a module does more than its class says, which a replacement would not."""
    return "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in HOOKS)


def read_elsewhere(model: nn.Module) -> dict[nn.Module, str]:
    """Layers whose weights a torch module hands to a kernel itself, past their forward -> why."""
    return {
        inner: f"{type(module).__name__} reads its weight itself"
        for module in model.modules()
        if isinstance(module, FUSED)
        for inner in module.modules()
    }


def _guarded(model: nn.Module) -> dict[nn.Module, str]:
    """Layers that something around them wants as they are -> why."""
    found = read_elsewhere(model)
    for module in model.modules():
        base = module._modules.get("base_layer")
        if base is not None:
            kept = set(base.modules())
            for inner in module.modules():
                if inner not in kept:
                    found[inner] = "an adapter beside base_layer"
    return found


def _selected(names: list[str], include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    if not any(fnmatch.fnmatchcase(n, p) for n in names for p in include):
        return "not included"
    return "excluded" if any(fnmatch.fnmatchcase(n, p) for n in names for p in exclude) else ""


def _reason(linear: nn.Linear, fmt: ScaledFormat, users: dict[int, int]) -> str:
    if type(linear) is not nn.Linear:
        return f"is a {type(linear).__name__}"
    if is_hooked(linear):
        return "has hooks or a forward of its own"
    weight = linear.weight
    if type(weight) not in (Tensor, nn.Parameter):
        return f"weight is a {type(weight).__name__}"
    if weight.dtype not in FLOATS:
        return f"weight is {weight.dtype}"
    if not weight.numel():
        return "weight has no elements"
    if linear.in_features % fmt.block:
        return f"in_features is not a multiple of {fmt.block}"
    if users[id(weight)] > 1:
        return "weight is shared"
    return ""


def _bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(t.numel() * t.element_size() for t in tensors)
