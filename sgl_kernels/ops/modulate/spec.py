"""What modulation is: facts, validation, shapes and cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import rows
from sgl_kernels.ops import _modulation as modulation
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.modulate import cases, reference


class ModulateFacts(NamedTuple):
    """What selection may know of a modulation."""

    dtype: torch.dtype
    rows: int
    dim: int
    gate: str  # "" | "vector" | "batch" | "token" | "frame" | "broadcast"
    scale: str
    shift: str
    params: torch.dtype | None  # dtype of the parameters; None when mixed or absent
    needs_grad: bool


def _facts(
    x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, *more: Tensor
) -> ModulateFacts:
    dtypes = {p.dtype for p in (gate, scale, shift) if p is not None}
    return ModulateFacts(
        x.dtype, x.numel() // x.shape[-1], x.shape[-1], modulation.kind(gate, x), modulation.kind(scale, x),
        modulation.kind(shift, x), dtypes.pop() if len(dtypes) == 1 else None,
        validate.needs_grad(x, gate, scale, shift, *more),
    )  # fmt: skip


def scale_shift_facts(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> ModulateFacts:
    """Facts of a validated scale_shift."""
    return _facts(x, None, scale, shift)


def gate_residual_facts(residual: Tensor, x: Tensor, gate: Tensor) -> ModulateFacts:
    """Facts of a validated gate_residual."""
    return _facts(x, gate, None, None, residual)


def _check_x(op: str, x: Tensor, name: str = "x") -> None:
    validate.tensor(op, name, x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}, expected (..., D) with D at least 1")


def check_scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """Validate a scale_shift."""
    _check_x("scale_shift", x)
    modulation.check("scale_shift", "scale", scale, x)
    modulation.check("scale_shift", "shift", shift, x)


def check_gate_residual(residual: Tensor, x: Tensor, gate: Tensor) -> None:
    """Validate a gate_residual."""
    op = "gate_residual"
    _check_x(op, x)
    _check_x(op, residual, "residual")
    validate.same(op, residual=residual, x=x)
    if residual.shape != x.shape:
        raise ValueError(
            f"{op}: residual has shape {list(residual.shape)} but x has {list(x.shape)}; must be equal"
        )
    if gate is None:
        raise TypeError(
            f"{op}: gate is None, expected a torch.Tensor; without a gate, residual + x is the answer"
        )
    modulation.check(op, "gate", gate, x)


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _cost(passes: int) -> Any:
    def cost(x: Tensor, *rest: Any) -> Cost:
        extra = sum(
            t.numel() * t.element_size() for t in rest if isinstance(t, Tensor) and t.numel() < x.numel()
        )
        return Cost(2 * x.numel(), passes * x.numel() * x.element_size() + extra)

    return cost


SCALE_SHIFT = registry.define(
    Op(
        name="scale_shift",
        splits=rows((0,), (1, 2)),
        schema="scale_shift(Tensor x, Tensor? scale=None, Tensor? shift=None) -> Tensor",
        facts=scale_shift_facts,
        reference=reference.scale_shift,
        fake=_like,
        check=check_scale_shift,
        cases=cases.scale_shift,
        cost=_cost(2),
        family="modulate",
        doc="x * (1 + scale) + shift",
        in_place=lambda x, *rest: ((("x", x),),),
    )
)
GATE_RESIDUAL = registry.define(
    Op(
        name="gate_residual",
        splits=rows((0, 1), (2,)),
        schema="gate_residual(Tensor residual, Tensor x, Tensor gate) -> Tensor",
        facts=gate_residual_facts,
        reference=reference.gate_residual,
        fake=_like,
        check=check_gate_residual,
        cases=cases.gate_residual,
        cost=_cost(3),
        family="modulate",
        doc="residual + gate * x",
        in_place=lambda residual, x, gate: ((("residual", residual), ("x", x)),),
    )
)
