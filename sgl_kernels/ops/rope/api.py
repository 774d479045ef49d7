"""The front doors of rope."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops._front import Front
from sgl_kernels.ops.rope.spec import APPLY_ROPE, QK_NORM_ROPE

_apply_rope = Front(APPLY_ROPE).door
_qk_norm_rope = Front(QK_NORM_ROPE).door


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
    return _apply_rope((x, cos, sin, interleaved), out, backend)  # type: ignore[no-any-return]


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
    return _qk_norm_rope((q, k, q_weight, k_weight, cos, sin, eps, interleaved), out, backend)  # type: ignore[no-any-return]
