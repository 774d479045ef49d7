"""The rows of a call to our Triton kernels, which count rows and programs in 32 bits; offsets are 64-bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.ops.activation.spec import ActivationFacts
from sgl_kernels.ops.attention.spec import AttentionFacts, VarlenFacts
from sgl_kernels.ops.modulate.spec import ModulateFacts
from sgl_kernels.ops.norm.spec import GroupNormFacts, NormFacts
from sgl_kernels.ops.rope.spec import RopeFacts

MOST_ROWS = 2**31 - 2**13
"""The last program's block of rows, up to 4096, may begin just below the end and must not wrap."""
SMALLEST_BLOCK, MOST_CHUNKS = 16, 1024
"""Queries a program of attention has at least; programs a group of group_norm has at most."""


def of_rows(f: NormFacts | ModulateFacts | ActivationFacts) -> int:
    """Ops that treat each row by itself."""
    return f.rows


def of_heads(f: RopeFacts) -> int:
    """Rotary embedding: a row for each head of a token, q's and k's."""
    return f.tokens * (f.heads + f.kv_heads)


def of_groups(f: GroupNormFacts) -> int:
    """Group norm: the programs, or the elements of a group."""
    return max(f.batch * f.num_groups * MOST_CHUNKS, f.positions * f.channels // f.num_groups)


def of_attention(f: AttentionFacts | VarlenFacts) -> int:
    """Attention: the queries of every head in whole blocks, or the keys."""
    return max(f.batch * f.heads * -(-f.sq // SMALLEST_BLOCK) * SMALLEST_BLOCK, f.sk)


def rejects_beyond(rows_of: Callable[[Any], int]) -> Callable[[Any], Rejected | None]:
    """The check of an op whose rows `rows_of` counts: as many as a grid has."""

    def rejects(f: Any) -> Rejected | None:
        rows = rows_of(f)
        if rows <= MOST_ROWS:
            return None
        return Rejected(Reason.SHAPE, f"{rows} rows; the kernel counts them in 32 bits, {MOST_ROWS} at most")

    return rejects
