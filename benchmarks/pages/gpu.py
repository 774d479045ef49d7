"""What `make gpu` left behind in a device's folder, as tables: each step's end, and auto against the best backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_kernels.tools.bench.measure import COMPILED, EAGER
from sgl_kernels.tools.page.html import Mark, Table

NEAR = 1.03
"""The goal: auto takes at most 3 % longer than the best exact backend that is present."""

STATUS = {"ran": "good", "failed": "bad", "not possible": "muted"}


def steps(folder: Path) -> list[dict[str, Any]]:
    """The result of every step, in the order of the plan."""
    found = []
    for path in sorted(folder.glob("gpu_*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            found.append(
                {"step": path.stem.removeprefix("gpu_"), "status": "failed", "reason": "unreadable file"}
            )
    return sorted(found, key=lambda one: one.get("number", 99))


def steps_table(found: Sequence[dict[str, Any]]) -> Table:
    """One line for each step."""
    rows = [
        (
            one["step"],
            Mark(one["status"], STATUS.get(one["status"], "")),
            one.get("reason", ""),
            one.get("date", ""),
            one.get("versions", {}).get("torch", ""),
        )
        for one in found
    ]
    return Table("", ("step", "status", "why", "date", "torch"), rows)


def auto_against_best(row: dict[str, Any], chosen: str) -> dict[str, Any]:
    """How much longer the backend that auto takes is than the fastest exact one of a benchmark row."""
    times = {
        c["name"]: c["median_ms"]
        for c in row["candidates"]
        if c["fidelity"] == "exact" and c["name"] not in (EAGER, COMPILED)
    }
    if chosen not in times:
        return {"auto": chosen, "best": "", "ratio": None}
    best = min(times, key=lambda name: times[name])
    return {"auto": chosen, "best": best, "ratio": times[chosen] / times[best]}


def auto_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The cases in which auto is further than 3 % from the best, and how many are not."""
    judged = [row for row in rows if row.get("ratio")]
    off = [row for row in judged if row["ratio"] > NEAR]
    lines = [(r["op"], r["case"], r["dtype"], r["auto"], r["best"], f"{r['ratio']:.2f}x") for r in off]
    note = f"auto is within 3 % of the best exact backend present in {len(judged) - len(off)} of {len(judged)} cases."
    return Table("", ("op", "case", "dtype", "auto takes", "best", "takes"), lines, note)
