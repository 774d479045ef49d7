"""What the activations are: facts, validation, shapes and cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import rows
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.activation import cases, reference


class ActivationFacts(NamedTuple):
    """What selection may know of an activation."""

    dtype: torch.dtype
    rows: int
    dim: int  # of the result
    fused: bool  # gate and up are the two halves of one tensor
    approximate: str
    needs_grad: bool


def _facts(x: Tensor, up: Tensor | None, gated: bool, approximate: str) -> ActivationFacts:
    dim = x.shape[-1] // 2 if gated and up is None else x.shape[-1]
    rows = x.numel() // x.shape[-1]
    return ActivationFacts(x.dtype, rows, dim, gated and up is None, approximate, validate.needs_grad(x, up))


def silu_mul_facts(x: Tensor, up: Tensor | None) -> ActivationFacts:
    """Facts of a validated silu_mul."""
    return _facts(x, up, True, "")


def gelu_mul_facts(x: Tensor, up: Tensor | None, approximate: str) -> ActivationFacts:
    """Facts of a validated gelu_mul."""
    return _facts(x, up, True, approximate)


def gelu_tanh_facts(x: Tensor) -> ActivationFacts:
    """Facts of a validated gelu_tanh."""
    return _facts(x, None, False, "tanh")


def _check(op: str, x: Tensor, up: Tensor | None, gated: bool) -> None:
    validate.tensor(op, "x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x has shape {list(x.shape)}, expected (..., D) with D at least 1")
    if not gated:
        return
    if up is None:
        if x.shape[-1] % 2:
            raise ValueError(
                f"{op}: x has {x.shape[-1]} columns, expected an even number (gate and up halves)"
            )
        return
    validate.tensor(op, "up", up)
    validate.same(op, x=x, up=up)
    if x.shape != up.shape:
        raise ValueError(f"{op}: x has shape {list(x.shape)} but up has {list(up.shape)}; they must be equal")


def check_silu_mul(x: Tensor, up: Tensor | None) -> None:
    """Validate a silu_mul."""
    _check("silu_mul", x, up, True)


def check_gelu_mul(x: Tensor, up: Tensor | None, approximate: str) -> None:
    """Validate a gelu_mul."""
    _check("gelu_mul", x, up, True)
    validate.choice("gelu_mul", "approximate", approximate, ("tanh", "none"))


def check_gelu_tanh(x: Tensor) -> None:
    """Validate a gelu_tanh."""
    _check("gelu_tanh", x, None, False)


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_gated(x: Tensor, up: Tensor | None = None, *rest: Any) -> Tensor:
    return _like(x) if up is not None else x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _gate_or_up(x: Tensor, up: Tensor | None = None, *rest: Any) -> Any:
    if up is not None:
        return ((("x", x), ("up", up)),)
    return (tuple(("x", half) for half in x.chunk(2, -1)),)


def _cost_gated(x: Tensor, up: Tensor | None = None, *rest: Any) -> Cost:
    out = x.numel() if up is not None else x.numel() // 2
    return Cost(8 * out, 3 * out * x.element_size())


def _cost_plain(x: Tensor) -> Cost:
    return Cost(8 * x.numel(), 2 * x.numel() * x.element_size())


SILU_MUL = registry.define(
    Op(
        name="silu_mul",
        splits=rows((0, 1), ()),
        schema="silu_mul(Tensor x, Tensor? up=None) -> Tensor",
        facts=silu_mul_facts,
        reference=reference.silu_mul,
        fake=_like_gated,
        check=check_silu_mul,
        cases=cases.silu_mul,
        cost=_cost_gated,
        family="activation",
        doc="silu(gate) * up",
        in_place=_gate_or_up,
    )
)
GELU_TANH = registry.define(
    Op(
        name="gelu_tanh",
        splits=rows((0,), ()),
        schema="gelu_tanh(Tensor x) -> Tensor",
        facts=gelu_tanh_facts,
        reference=reference.gelu_tanh,
        fake=_like,
        check=check_gelu_tanh,
        cases=cases.gelu_tanh,
        cost=_cost_plain,
        family="activation",
        doc="GELU by its tanh approximation",
        in_place=lambda x: ((("x", x),),),
    )
)
GELU_MUL = registry.define(
    Op(
        name="gelu_mul",
        splits=rows((0, 1), ()),
        schema="gelu_mul(Tensor x, Tensor? up=None, str approximate='tanh') -> Tensor",
        facts=gelu_mul_facts,
        reference=reference.gelu_mul,
        fake=_like_gated,
        check=check_gelu_mul,
        cases=cases.gelu_mul,
        cost=_cost_gated,
        family="activation",
        doc="gelu(gate) * up",
        in_place=_gate_or_up,
    )
)
