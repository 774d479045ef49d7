"""The front doors of rope."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.core.dispatch import Key, bind, current
from sgl_kernels.core.torch_op import define
from sgl_kernels.ops._into import write
from sgl_kernels.ops._key import grad, is_opaque, of
from sgl_kernels.ops.rope.spec import APPLY_ROPE, QK_NORM_ROPE


def _eager_rope(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, backend: str | None = None
) -> Tensor:
    try:
        key: Key = (
            APPLY_ROPE,
            backend,
            x.shape,
            x.dtype,
            x.device,
            of(cos),
            of(sin),
            interleaved,
            grad(x, cos, sin),
        )
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(APPLY_ROPE, key, backend, (x, cos, sin, interleaved)))(
        x, cos, sin, interleaved
    )


def _eager_qk(
    q: Tensor, k: Tensor, q_weight: Tensor | None = None, k_weight: Tensor | None = None, cos: Tensor | None = None,
    sin: Tensor | None = None, eps: float = 1e-6, interleaved: bool = False, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    args = (q, k, q_weight, k_weight, cos, sin, eps, interleaved)
    try:
        key: Key = (
            QK_NORM_ROPE, backend, q.shape, q.dtype, q.device, of(k), of(q_weight), of(k_weight), of(cos), of(sin),
            eps, interleaved, grad(q, k, q_weight, k_weight, cos, sin),
        )  # fmt: skip
    except AttributeError:  # not a tensor: bind says which
        key = None
    return (current().bound.get(key) or bind(QK_NORM_ROPE, key, backend, args))(*args)


_apply_rope = define(APPLY_ROPE, _eager_rope)
_qk_norm_rope = define(QK_NORM_ROPE, _eager_qk)


def apply_rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Rotary position embedding: each pair (a, b) becomes (a cos - b sin, a sin + b cos).

    x (B, S, H, D); cos, sin (S, R/2) or (B, S, R/2), fp32 as a rule, halves not repeated -> (B, S, H, D), dtype
    of x. The leading R channels rotate, the rest pass through. interleaved=True pairs (0,1), (2,3), ... (GPT-J,
    Flux); False pairs (i, i + R/2) (NeoX). Source: Su et al., arXiv 2104.09864.

    Raises UnsupportedError if `backend` cannot serve the call, ValueError for shapes that do not fit.

    out, shaped as x, is written and returned; it may be x itself: each head is read before it is written.
    """
    if out is not None:
        return write(APPLY_ROPE, _eager_rope, _apply_rope, (x, cos, sin, interleaved), out, backend)
    if is_opaque(x):
        return _apply_rope(x, cos, sin, interleaved, backend=backend)
    return _eager_rope(x, cos, sin, interleaved, backend)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    eps: float = 1e-6,
    interleaved: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS norm of q and k over each head, then rope: the fusion every diffusion transformer wants.

    q (B, S, Hq, D), k (B, S, Hk, D), weights (D,) or None, cos and sin as in `apply_rope` or both None for
    the norm alone -> (q, k) with their shapes and dtype, rounded once.

    out=(q_out, k_out) are written and returned; they may be q and k themselves, in that order.
    """
    args = (q, k, q_weight, k_weight, cos, sin, eps, interleaved)
    if out is not None:
        return write(QK_NORM_ROPE, _eager_qk, _qk_norm_rope, args, out, backend)
    if is_opaque(q):
        return _qk_norm_rope(*args, backend=backend)
    return _eager_qk(*args, backend)
