"""Reads data/known_bugs.json once, when backends are discovered."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from sgl_kernels.core.selection.bugs import COMPARISONS, Bug

PATH = Path(__file__).resolve().parents[1] / "data" / "known_bugs.json"


@functools.cache
def known_bugs() -> tuple[Bug, ...]:
    """Every entry of the file. Raises ValueError for an entry that could never apply."""
    bugs = []
    for row in json.loads(PATH.read_text()):
        where = tuple((fact, comparison, value) for fact, comparison, value in row.pop("where", ()))
        wrong = [c for _, c, _ in where if c not in COMPARISONS]
        if wrong:
            raise ValueError(
                f"{PATH.name}: {row['name']}: comparison {wrong[0]!r} is none of {list(COMPARISONS)}"
            )
        lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
        bugs.append(Bug(**{**row, **lists}, where=where))
    return tuple(bugs)


def bugs_of(backend: str, op: str) -> tuple[Bug, ...]:
    """The entries that concern (backend, op)."""
    return tuple(b for b in known_bugs() if b.backend == backend and (not b.ops or op in b.ops))
