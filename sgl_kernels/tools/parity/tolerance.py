"""How wrong an answer is, and how wrong it may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
    torch.float8_e8m0fnu: 1.0,
}
EXACT_FACTOR = 2.0
"""An exact implementation may err twice as much as plain torch at its dtype, plus one rounding."""
FLOOR_FACTOR = 4.0
"""Torch's own kernels are judged against the definition at the same dtype alone; over 300 seeds group_norm of
100 + N(0, 1) reached 2.3 times its error, from another order of summation."""
FEW, FEW_FACTOR = 128, 4.0
"""Of a handful of values, plain torch may get the last bits right by luck: one lse of a single score was exact to
2.2e-7 of itself where another order of the same 16 products gave 4.5e-7. Of 70 sums of 48 products, 2 of 400 seeds went
beyond twice torch's error."""
MAX_FACTOR = 2.0
"""The largest single error of a few thousand is a noisier statistic than their norm."""


@dataclass(frozen=True, slots=True)
class Error:
    """The distance of an output from the float64 oracle."""

    max_abs: float
    relative_l2: float
    cosine: float
    finite_match: bool  # NaN and infinities stand in the same places

    def to_dict(self) -> dict[str, float | bool]:
        """The numbers as plain data."""
        return {
            "max_abs": self.max_abs,
            "relative_l2": self.relative_l2,
            "cosine": self.cosine,
            "finite_match": self.finite_match,
        }


def measure(out: Tensor, oracle: Tensor) -> Error:
    """Compare `out` with a float64 `oracle` of the same shape, ignoring the places where both are not finite."""
    a, b = out.detach().double().cpu(), oracle.detach().double().cpu()
    same_kind = torch.equal(torch.isnan(a), torch.isnan(b)) and torch.equal(
        torch.where(torch.isinf(a), a, 0.0), torch.where(torch.isinf(b), b, 0.0)
    )
    keep = torch.isfinite(a) & torch.isfinite(b)
    a, b = torch.where(keep, a, 0.0), torch.where(keep, b, 0.0)
    if a.numel() == 0:
        return Error(0.0, 0.0, 1.0, same_kind)
    difference = (a - b).norm().item()
    norm_a, norm_b = a.norm().item(), b.norm().item()
    relative = difference / norm_b if norm_b else (0.0 if difference == 0 else float("inf"))
    cosine = (a * b).sum().item() / (norm_a * norm_b) if norm_a and norm_b else float(norm_a == norm_b)
    return Error((a - b).abs().max().item(), relative, cosine, same_kind)


def allowed(
    oracle: Tensor, baselines: tuple[Error, ...], dtype: torch.dtype, factor: float = EXACT_FACTOR
) -> tuple[float, float]:
    """(max_abs, relative_l2) that an exact implementation may reach, given the errors of plain torch.

    One rounding of the result costs half an epsilon of its magnitude; the second half leaves room for a sum
    taken in another order.
    """
    values = oracle.detach().double()
    values = values[torch.isfinite(values)]
    peak = values.abs().max().item() if values.numel() else 0.0
    epsilon = EPSILON[dtype]
    if values.numel() < FEW:
        factor *= FEW_FACTOR
    worst_abs = max(b.max_abs for b in baselines)
    worst_l2 = max(b.relative_l2 for b in baselines)
    return factor * MAX_FACTOR * worst_abs + epsilon * peak, factor * worst_l2 + epsilon
