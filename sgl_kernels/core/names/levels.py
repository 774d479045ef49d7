"""The instruction sets of the CPU kernels, as settings name them (csrc/cpu/isa.cpp has the features behind each)."""

from __future__ import annotations

LEVELS: dict[str, frozenset[str]] = {
    "baseline": frozenset({"baseline"}),
    "avx2": frozenset({"baseline", "avx2"}),
    "avx512": frozenset({"baseline", "avx2", "avx512"}),
    "avx512bf16": frozenset({"baseline", "avx2", "avx512", "avx512bf16"}),
    "amx": frozenset({"baseline", "avx2", "avx512", "avx512bf16", "amx"}),
    "neon": frozenset({"baseline", "neon"}),
}
"""Each level, and the levels that it contains. Neither of avx2 and neon contains the other."""


def held_down(present: str, named: str | None) -> str:
    """The level in force on a machine that has `present`, where settings name `named`: down, never up."""
    if named is None or present not in LEVELS:
        return present
    return max(LEVELS[present] & LEVELS[named], key=lambda level: len(LEVELS[level]))
