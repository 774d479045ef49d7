"""What our kernels won on the machines that were measured: reads data/measured.json, once, as evidence of a rank."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Place, Rank

PATH = Path(__file__).resolve().parents[1] / "data" / "measured.json"


@functools.cache
def _rows() -> Mapping[tuple[str, str], Mapping[str, str]]:
    """(backend, op) -> architecture -> what was measured there."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in json.loads(PATH.read_text(encoding="utf-8")):
        text = f"{row['ratio']}x torch's speed over {row['cases']} cases, {row['file']}"
        found.setdefault((row["backend"], row["op"]), {})[row["arch"]] = text
    return found


def measured(backend: str, op: str, rank: Rank) -> Rank:
    """The same rank; where it is above the floor, with what was measured on that architecture."""

    def ranked(facts: Any, device: Device) -> int:
        found = rank if isinstance(rank, int) else rank(facts, device)
        rows = _rows().get((backend, op), {})
        if found <= 0 or not rows:
            return found
        here = rows.get(device.arch)
        elsewhere = f"not measured on {device.arch}; {next(iter(rows.values()))}"
        return Place(found, elsewhere if here is None else here)

    return ranked
