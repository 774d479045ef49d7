"""What the norms are: facts, validation, shapes and cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import batch, rows
from sgl_kernels.ops import _modulation as modulation
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.norm import cases, reference

NORMS = ("layer", "rms")
ACTIVATIONS = ("none", "silu")


class NormFacts(NamedTuple):
    """What selection may know of a row norm, plain or fused with modulation."""

    dtype: torch.dtype
    rows: int
    dim: int
    norm: str  # "rms" | "layer"
    weight: torch.dtype | None
    bias: torch.dtype | None
    weight_offset: bool
    gate: str  # "" | "vector" | "batch" | "token" | "frame" | "broadcast"
    scale: str
    shift: str
    params: torch.dtype | None  # dtype of the modulation parameters; None when mixed or absent
    needs_grad: bool


class GroupNormFacts(NamedTuple):
    """What selection may know of a group norm."""

    dtype: torch.dtype
    batch: int
    channels: int
    positions: int
    num_groups: int
    weight: torch.dtype | None
    bias: torch.dtype | None
    activation: str
    channels_last: bool
    needs_grad: bool


def _dtype(t: Tensor | None) -> torch.dtype | None:
    return None if t is None else t.dtype


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def _params_dtype(*tensors: Tensor | None) -> torch.dtype | None:
    found = {t.dtype for t in tensors if t is not None}
    return found.pop() if len(found) == 1 else None


def _facts(
    x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None, weight_offset: float = 0.0,
    gate: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None, *others: Tensor,
) -> NormFacts:  # fmt: skip
    return NormFacts(
        x.dtype, _rows(x), x.shape[-1], norm, _dtype(weight), _dtype(bias), weight_offset != 0,
        modulation.kind(gate, x), modulation.kind(scale, x), modulation.kind(shift, x),
        _params_dtype(gate, scale, shift), validate.needs_grad(x, weight, bias, gate, scale, shift, *others),
    )  # fmt: skip


def rms_facts(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> NormFacts:
    """Facts of a validated rms_norm."""
    return _facts(x, "rms", weight, None, weight_offset)


def layer_facts(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> NormFacts:
    """Facts of a validated layer_norm."""
    return _facts(x, "layer", weight, bias)


def adaln_facts(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: str,
) -> NormFacts:  # fmt: skip
    """Facts of a validated norm_scale_shift."""
    return _facts(x, norm, weight, bias, 0.0, None, scale, shift)


def residual_facts(
    residual: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, eps: float, norm: str,
) -> NormFacts:  # fmt: skip
    """Facts of a validated residual_gate_norm_scale_shift."""
    return _facts(x, norm, weight, bias, 0.0, gate, scale, shift, residual)


def group_facts(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> GroupNormFacts:
    """Facts of a validated group_norm."""
    n, c = x.shape[:2]
    positions = x.numel() // (n * c) if n * c else 0
    last = x.ndim > 2 and positions > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return GroupNormFacts(
        x.dtype, n, c, positions, num_groups, _dtype(weight), _dtype(bias), activation, last,
        validate.needs_grad(x, weight, bias),
    )  # fmt: skip


def _check_rows(op: str, x: object, eps: float, name: str = "x") -> Tensor:
    t = validate.tensor(op, name, x)
    if t.ndim == 0 or t.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has shape {list(t.shape)}, expected (..., D) with D at least 1")
    validate.positive(op, "eps", eps)
    return t


def _check_affine(op: str, x: Tensor, size: int, of: str, **affine: Tensor | None) -> None:
    validate.same_device(op, x=x, **affine)
    for name, value in affine.items():
        validate.vector(op, name, value, size, of)


def check_rms(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> None:
    """Validate an rms_norm."""
    _check_affine(
        "rms_norm", _check_rows("rms_norm", x, eps), x.shape[-1], "the last dimension of x", weight=weight
    )
    if not isinstance(weight_offset, int | float) or not abs(weight_offset) < float("inf"):
        raise ValueError(f"rms_norm: weight_offset is {weight_offset!r}, expected a finite number")


def check_layer(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Validate a layer_norm."""
    op = "layer_norm"
    _check_affine(
        op, _check_rows(op, x, eps), x.shape[-1], "the last dimension of x", weight=weight, bias=bias
    )


def check_adaln(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: str, op: str = "norm_scale_shift",
) -> None:  # fmt: skip
    """Validate a norm_scale_shift."""
    _check_affine(
        op, _check_rows(op, x, eps), x.shape[-1], "the last dimension of x", weight=weight, bias=bias
    )
    validate.choice(op, "norm", norm, NORMS)
    modulation.check(op, "scale", scale, x)
    modulation.check(op, "shift", shift, x)


def check_residual(
    residual: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, eps: float, norm: str,
) -> None:  # fmt: skip
    """Validate a residual_gate_norm_scale_shift."""
    op = "residual_gate_norm_scale_shift"
    validate.tensor(op, "residual", residual)
    check_adaln(x, scale, shift, weight, bias, eps, norm, op)
    validate.same(op, residual=residual, x=x)
    if residual.shape != x.shape:
        raise ValueError(
            f"{op}: residual has shape {list(residual.shape)} but x has {list(x.shape)}; must be equal"
        )
    modulation.check(op, "gate", gate, x)


def check_group(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> None:
    """Validate a group_norm."""
    op = "group_norm"
    validate.tensor(op, "x", x)
    if x.ndim < 2 or x.shape[1] == 0:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected (batch, channels, ...) with channels")
    if not isinstance(num_groups, int) or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(
            f"{op}: num_groups is {num_groups!r}, expected a divisor of the {x.shape[1]} channels of x"
        )
    validate.positive(op, "eps", eps)
    validate.choice(op, "activation", activation, ACTIVATIONS)
    _check_affine(op, x, x.shape[1], "the channels of x", weight=weight, bias=bias)


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_group(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _like_residual(residual: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _like(x), _like(residual)


def _x_itself(x: Tensor, *rest: Any) -> Any:
    return ((("x", x),),)


def _either_itself(residual: Tensor, x: Tensor, *rest: Any) -> Any:
    return ((("residual", residual), ("x", x)),) * 2


def _cost(reads_and_writes: int, per_element: int) -> Any:
    def cost(x: Tensor, *rest: Any) -> Cost:
        extra = sum(
            t.numel() * t.element_size() for t in rest if isinstance(t, Tensor) and t.numel() < x.numel()
        )
        return Cost(per_element * x.numel(), reads_and_writes * x.numel() * x.element_size() + extra)

    return cost


def _define(
    name: str, schema: str, facts: Any, check: Any, make_cases: Any, fake: Any, cost: Any, doc: str,
    splits: Any, in_place: Any = _x_itself, strided: tuple[str, ...] = (),
) -> Op:  # fmt: skip
    return registry.define(
        Op(
            name=name,
            schema=f"{name}({schema}",
            facts=facts,
            reference=getattr(reference, name),
            fake=fake,
            check=check,
            cases=make_cases,
            cost=cost,
            family="norm",
            doc=doc,
            in_place=in_place,
            strided=strided,
            splits=splits,
        )
    )


RMS_NORM = _define(
    "rms_norm",
    "Tensor x, Tensor? weight=None, float eps=1e-06, float weight_offset=0.0) -> Tensor",
    rms_facts, check_rms, cases.rms, _like, _cost(2, 4), "x / rms(x) * weight",
    rows((0,), ()),
)  # fmt: skip
LAYER_NORM = _define(
    "layer_norm",
    "Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> Tensor",
    layer_facts, check_layer, cases.layer, _like, _cost(2, 7), "(x - mean) / std * weight + bias",
    rows((0,), ()),
)  # fmt: skip
GROUP_NORM = _define(
    "group_norm",
    "Tensor x, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
    "str activation='none') -> Tensor",
    group_facts, check_group, cases.group, _like_group, _cost(2, 11), "group norm of (N, C, ...), with SiLU if asked",
    batch, strided=("x",),
)  # fmt: skip
NORM_SCALE_SHIFT = _define(
    "norm_scale_shift",
    "Tensor x, Tensor? scale=None, Tensor? shift=None, Tensor? weight=None, Tensor? bias=None, float eps=1e-06, "
    "str norm='layer') -> Tensor",
    adaln_facts, check_adaln, cases.adaln, _like, _cost(2, 9), "adaLN: norm(x) * (1 + scale) + shift",
    rows((0,), (1, 2)),
)  # fmt: skip
RESIDUAL_GATE_NORM_SCALE_SHIFT = _define(
    "residual_gate_norm_scale_shift",
    "Tensor residual, Tensor x, Tensor? gate=None, Tensor? scale=None, Tensor? shift=None, Tensor? weight=None, "
    "Tensor? bias=None, float eps=1e-06, str norm='layer') -> (Tensor, Tensor)",
    residual_facts, check_residual, cases.residual_adaln, _like_residual, _cost(4, 11),
    "residual + gate * x, then adaLN of it", rows((0, 1), (2, 3, 4), 2), _either_itself,
)  # fmt: skip
