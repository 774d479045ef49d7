"""What a linear layer is: facts, validation, shapes and cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sharding import Split
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.linear import cases, reference


class LinearFacts(NamedTuple):
    """What selection may know of a linear layer."""

    dtype: torch.dtype
    m: int
    n: int
    k: int
    bias: bool
    activation: str
    needs_grad: bool


def facts(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> LinearFacts:
    """Facts of a validated linear."""
    n, k = weight.shape
    return LinearFacts(
        x.dtype, x.numel() // k, n, k, bias is not None, activation, validate.needs_grad(x, weight, bias)
    )


def check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Validate a linear."""
    validate.tensor("linear", "x", x)
    validate.tensor("linear", "weight", weight, 2, "(out, in)")
    validate.same("linear", x=x, weight=weight)
    if x.ndim == 0 or x.shape[-1] != weight.shape[1] or weight.shape[1] == 0:
        raise ValueError(
            f"linear: x has shape {list(x.shape)} and weight {list(weight.shape)}, expected (..., K) and (N, K) "
            "with K at least 1"
        )
    validate.vector("linear", "bias", bias, weight.shape[0], "one value for each row of weight")
    if bias is not None:
        validate.same("linear", x=x, bias=bias)
    validate.choice("linear", "activation", activation, reference.ACTIVATIONS)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _cost(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Cost:
    n, k = weight.shape
    m = x.numel() // k
    return Cost(2 * m * n * k, (m * k + n * k + m * n) * x.element_size())


def _splits(args: tuple[Any, ...]) -> Iterable[Split]:
    x = args[0]
    for d in range(x.ndim - 1):
        yield [d], {0: d}
    yield [x.ndim - 1], {1: 0, 2: 0}


LINEAR = registry.define(
    Op(
        name="linear",
        splits=_splits,
        schema="linear(Tensor x, Tensor weight, Tensor? bias=None, str activation='none') -> Tensor",
        facts=facts,
        reference=reference.linear,
        fake=_fake,
        check=check,
        cases=cases.linear,
        cost=_cost,
        autocast=("x", "weight", "bias"),
        family="linear",
        doc="activation(x W^T + bias)",
    )
)
