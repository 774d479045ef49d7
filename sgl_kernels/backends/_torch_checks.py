"""What Python may ask of tensors on the CPU to know that a result of torch's attention, and its gradient, are right.

Every question is one or two passes over an input or a result, small against the attention; small calls pay a few us.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from sgl_kernels.core.tensors import is_wrapped, open_modes
from sgl_kernels.ops._fingerprint import compiled
from sgl_kernels.ops._key import is_plain

SAFE_FORWARD, SAFE_BACKWARD = 1e30, 2.0**14
"""Scores up to here leave torch's kernel exact. It adds masks of finfo.min to them, and its backward computes weights
as exp(score - lse): where |lse| swallows log(Sk) those of a row add up to Sk, and at 2^14 they err by 1e-3."""

INF = float("inf")
FEW_ROWS = 16
"""Up to here Python multiplies means faster than torch does: 1.5 us against 4."""

_transform = torch._C._functorch.peek_interpreter_stack


_near, _finite, _bounds, _even = (
    getattr(compiled, name, None) for name in ("is_near", "is_finite", "bounds", "has_no_odd_row")
)


def may_look(first: Tensor, *others: Tensor | None) -> bool:
    """Whether Python may branch on values: plain CPU tensors, outside of transforms, tracing and forward-mode AD."""
    if is_compiling() or not first.is_cpu or open_modes() or _transform() is not None:
        return False
    return is_plain(first, *others)


def is_traced() -> bool:
    """Whether a tracer follows a derivative, on tensors without memory: torch's fused norms have no tangent there."""
    return bool(open_modes()) and (
        _transform() is not None or forward_ad._current_level >= 0 or is_compiling()
    )


def watching(*tensors: Tensor | None) -> bool:
    """Whether a gradient may be asked for. Inside a transform no flag of the tensor says so."""
    if not torch.is_grad_enabled():
        return False
    for t in tensors:  # noqa: SIM110
        if t is not None and (t.requires_grad or is_wrapped(t)):
            return True
    return False


def is_near(mean: Tensor, rstd: Tensor, far: float) -> bool:
    """Whether every mean lies within `far` deviations of 0; not where one is NaN."""
    if _near is not None:
        found: bool | None = _near(mean, rstd, far)
        if found is not None:
            return found
    if mean.requires_grad:
        mean, rstd = mean.detach(), rstd.detach()
    if mean.numel() <= FEW_ROWS:
        pairs = zip(mean.view(-1).tolist(), rstd.view(-1).tolist(), strict=True)
        return all(-far < m * r < far for m, r in pairs)
    low, high = torch.aminmax(mean * rstd)
    return -far < low.item() and high.item() < far


def bounds(t: Tensor) -> tuple[float, float, bool]:
    """The lowest and the highest element (NaN for both where one is NaN), and whether any is 0."""
    if _bounds is not None and (found := _bounds(t)) is not None:
        return found  # type: ignore[no-any-return]
    low, high = (x.item() for x in torch.aminmax(t))
    return low, high, low <= 0 <= high and not bool(t.all())


def largest(t: Tensor) -> float:
    """The largest size of an element; NaN where one is NaN."""
    if t.numel() == 0:
        return 0.0
    low, high = torch.aminmax(t.detach())
    return max(-float(low), float(high))


def is_finite(t: Tensor) -> bool:
    """Whether no element is NaN or infinite; False also where a sum of finite ones overflows."""
    if _finite is not None and (found := _finite(t)) is not None:
        return bool(found)
    t = t.detach()
    if t.dtype is torch.float16:  # whose sums end at 65504
        return largest(t) < INF
    return abs(float(t.sum())) < INF


def has_no_odd_row(out: Tensor) -> bool:
    """Whether every row of a result is a number other than 0.

    On the CPU torch answers NaN where a hidden key holds one, and zeros where every score is NaN: a NaN query is taken
    for one without keys. Such rows are NaN or 0, and so are right ones, so an odd row is only where to look closer.
    amax carries NaN; for half types it is the slowest of these reductions by far, so the first column speaks for rows.
    """
    if _even is not None and (found := _even(out)) is not None:
        return bool(found)
    out = out.detach()
    if out.dtype is not torch.float32 and is_finite(out) and bool(out.select(-1, 0).all()):
        return True
    return float(out.amax(-1).abs_().amin()) > 0  # amin carries NaN too


def is_tame(q: Tensor, k: Tensor, v: Tensor, scale: float | None, limit: float) -> bool:
    """Whether all of q, k and v is finite and no score can reach `limit`: its bound is the product of two lengths."""
    wide = torch.promote_types(q.dtype, torch.float32)
    factor = max(q.shape[-1] ** -0.5 if scale is None else abs(scale), 1e-30)
    whole = [float(torch.linalg.vector_norm(t.detach(), dtype=wide)) for t in (q, k)]
    bound = whole[0] * whole[1] * factor
    if limit <= bound < INF:
        rows = [float(torch.linalg.vector_norm(t.detach(), dim=-1, dtype=wide).amax()) for t in (q, k)]
        bound = rows[0] * rows[1] * factor
    return bound < limit and is_finite(v)


_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def saved_lse(out: Tensor) -> Tensor | None:
    """The log-sum-exp of each row, which torch's fused kernel kept for the backward of `out`, BHSD transposed once.

    None where there is none to be had: another kernel, or somebody's hooks (checkpoints) that would be asked for it.
    """
    if _hooks is None or _hooks(True) is not None or out.grad_fn is None:
        return None
    return getattr(out.grad_fn.next_functions[0][0], "_saved_logsumexp", None)
