"""The front doors of attention."""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_dynamo_compiling as is_compiling

from sgl_kernels.core.dispatch import current
from sgl_kernels.core.sharding import prepare
from sgl_kernels.ops._front import Front
from sgl_kernels.ops.attention.spec import ATTENTION, ATTENTION_LSE, ATTENTION_VARLEN

_DENSE, _LSE, _VARLEN = Front(ATTENTION), Front(ATTENTION_LSE), Front(ATTENTION_VARLEN)
_traced, _key, _bind, _door = _DENSE.traced, _DENSE.key, _DENSE.bind, _DENSE.door
_attention_lse, _attention_varlen = _LSE.door, _VARLEN.door


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    causal_alignment: str = "bottom_right",
    scale: float | None = None,
    window_size: tuple[int, int] | None = None,
    softcap: float = 0.0,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scaled dot-product attention.

    Shapes (B batch, Sq/Sk lengths, Hq/Hk heads, D head_dim, Dv value head_dim):
        q (B, Sq, Hq, D)   k (B, Sk, Hk, D)   v (B, Sk, Hk, Dv)   ->   (B, Sq, Hq, Dv), dtype of q
        attn_mask broadcastable to (B, Hq, Sq, Sk): bool, True = attend; or float, added to the scaled scores
    Hq must be a multiple of Hk (GQA; heads are shared, never copied). scale defaults to D ** -0.5.
    is_causal aligns the last query with the last key when Sq != Sk; causal_alignment="top_left" aligns the
    first ones, as torch's SDPA does. window_size (left, right) is the inclusive reach around the bottom-right
    diagonal, -1 = unlimited. softcap c > 0 replaces a score s by c * tanh(s / c). Mask, causal and window all
    apply together. Rows with no key to attend to are zero.

    dtypes: float32, bfloat16, float16 everywhere; float64 on the torch floor. q, k and v share one.
    out, shaped as the result and apart from every input, receives it (a copy, so far, on every backend) and is
    returned.

    Raises UnsupportedError if `backend` is given and cannot serve the call: the message is the selection
    table. Raises ValueError or TypeError for arguments that do not fit each other.
    """
    left, right = (-1, -1) if window_size is None else window_size
    args = (q, k, v, attn_mask, is_causal, causal_alignment, scale, left, right, softcap)
    if out is not None:
        return _door(args, out, backend)  # type: ignore[no-any-return]
    if is_compiling():
        prepare()
        return _traced(*args, backend=backend)  # type: ignore[no-any-return]
    # The door's body once more: a frame less is 0.1 us less, on a call whose overhead is 1 us.
    return (current().bound.get(_key(backend, args)) or _bind(backend, args))(*args)  # type: ignore[no-any-return]


def attention_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    causal_alignment: str = "bottom_right",
    scale: float | None = None,
    window_size: tuple[int, int] | None = None,
    softcap: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention`, and the log-sum-exp of its scores.

    Returns (out (B, Sq, Hq, Dv), lse (B, Hq, Sq) float32): the natural logarithm; -inf for a row that sees no
    key. Two results over disjoint keys combine exactly: see ring attention.
    """
    left, right = (-1, -1) if window_size is None else window_size
    args = (q, k, v, attn_mask, is_causal, causal_alignment, scale, left, right, softcap)
    return _attention_lse(args, None, backend)  # type: ignore[no-any-return]


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: tuple[int, int] | None = None,
    softcap: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention over sequences packed end to end; each attends only to itself.

    Shapes (Tq, Tk total tokens over the batch):
        q (Tq, Hq, D)   k (Tk, Hk, D)   v (Tk, Hk, Dv)   ->   (Tq, Hq, Dv), dtype of q
        cu_seqlens_q, cu_seqlens_k: int32 prefix sums of the lengths, (B + 1,), first 0, last Tq or Tk
    is_causal aligns the last query of each sequence with its last key. The rest is as in `attention`.
    """
    left, right = (-1, -1) if window_size is None else window_size
    args = (
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal, scale, left, right, softcap
    )  # fmt: skip
    return _attention_varlen(args, None, backend)  # type: ignore[no-any-return]
