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

    Patterns are globs ("blocks.*.mlp.*"). A layer whose in_features is not a multiple of the block is left alone
    and says so in the report; so is one whose weight is shared with another module (a tied embedding).
    Nothing is replaced if a weight has NaN or infinities: the error names the layer.
    """
    fmt = parse_format(format)
    wanted, unwanted = _patterns(include), _patterns(exclude)
    linears = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    for pattern in (*wanted, *unwanted):
        if pattern != "*" and not any(fnmatch.fnmatchcase(n, pattern) for n in linears):
            raise ValueError(
                f"quantize_model: {pattern!r} matches no linear layer; names look like {', '.join(list(linears)[:4])}"
            )
    users = _weight_users(model)
    reports: list[LayerReport] = []
    replacements: dict[str, nn.Module] = {}
    for name, linear in linears.items():
        reason = _reason(name, linear, wanted, unwanted, fmt, users)
        before = _bytes(linear)
        shape = (linear.out_features, linear.in_features)
        if reason:
            reports.append(LayerReport(name, shape, False, reason, None, None, before, before))
            continue
        try:
            layer = NVFP4Linear.from_linear(linear, format=fmt, activation=activation)
        except ValueError as error:
            raise ValueError(f"quantize_model: layer {name!r}: {error}") from error
        replacements[name] = layer
        error, cosine = weight_error(linear.weight, layer)
        reports.append(LayerReport(name, shape, True, "", error, cosine, before, _bytes(layer)))
        layer.prepare()
    for name, layer in replacements.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, leaf, layer)
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


def _reason(
    name: str, linear: nn.Linear, include: tuple[str, ...], exclude: tuple[str, ...], fmt: ScaledFormat,
    users: dict[int, int],
) -> str:  # fmt: skip
    if not any(fnmatch.fnmatchcase(name, p) for p in include):
        return "not included"
    if any(fnmatch.fnmatchcase(name, p) for p in exclude):
        return "excluded"
    if linear.in_features % fmt.block:
        return f"in_features is not a multiple of {fmt.block}"
    if users[id(linear.weight)] > 1:
        return "weight is shared"
    return ""


def _bytes(module: nn.Module) -> int:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(t.numel() * t.element_size() for t in tensors)
