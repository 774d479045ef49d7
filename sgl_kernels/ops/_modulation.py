"""The shapes adaLN parameters come in, and how each lines up with the tensor it modulates."""

from __future__ import annotations

from torch import Tensor

from sgl_kernels.ops import _validate as validate

SHAPES = "(D,), (B, D), (B, 1, D), (B, S, D), or per frame (B, F, 1, D) with F dividing S"


def kind(p: Tensor | None, x: Tensor) -> str:
    """'' | 'vector' | 'batch' | 'token' | 'frame' | 'broadcast': how `p` covers `x`."""
    if p is None:
        return ""
    if p.ndim == 1:
        return "vector"
    if p.ndim == 2 and x.ndim > 2:
        return "batch"
    if p.ndim == 4 and x.ndim == 3:
        return "frame"
    if p.shape == x.shape:
        return "token"
    if all(n == 1 for n in p.shape[1:-1]):
        return "batch"
    return "broadcast"


def check(op: str, name: str, p: Tensor | None, x: Tensor) -> None:
    """`p` has one of the documented shapes for `x`."""
    if p is None:
        return
    validate.tensor(op, name, p)
    validate.same_device(op, x=x, **{name: p})
    if not _fits(p, x):
        raise ValueError(
            f"{op}: {name} has shape {list(p.shape)}, which does not cover x of shape {list(x.shape)}; "
            f"expected one of {SHAPES}"
        )


def _fits(p: Tensor, x: Tensor) -> bool:
    if p.ndim == 0 or x.ndim == 0 or p.shape[-1] != x.shape[-1]:
        return False
    if p.ndim == 1:
        return True
    if p.shape[0] not in (1, x.shape[0]):
        return False
    if p.ndim == 2 and x.ndim > 2:
        return True
    if p.ndim == 4 and x.ndim == 3:
        frames = p.shape[1]
        return p.shape[2] == 1 and frames > 0 and x.shape[1] % frames == 0
    if p.ndim != x.ndim:
        return False
    return all(have in (1, want) for have, want in zip(p.shape, x.shape, strict=True))


def aligned(p: Tensor, x: Tensor) -> Tensor:
    """`p` as a tensor that broadcasts against `x`. Per-frame parameters are repeated for each token."""
    if p.ndim == 2 and x.ndim > 2:
        return p.reshape(p.shape[0], *(1,) * (x.ndim - 2), p.shape[1])
    if p.ndim == 4 and x.ndim == 3:
        return p[:, :, 0].repeat_interleave(x.shape[1] // p.shape[1], dim=1)
    return p
