"""data/measured.json: what each backend won over torch on the machines of benchmarks/results, as evidence of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sgl_kernels.core.registry import registry
from sgl_kernels.tools.bench.results import geometric_mean, is_result, load
from sgl_kernels.tools.parity.cell import FLOOR


def rows(results: Path) -> list[dict[str, Any]]:
    """A row for each backend, op and architecture: the geometric mean of its cases' ratios."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    ours = {*registry.backends()} - {FLOOR}
    for path in sorted(results.rglob("*.json")):
        if not is_result(path):
            continue
        document = load(path)
        name = path.relative_to(results.parent.parent).as_posix()
        for row in document["results"]:
            for candidate in row["candidates"]:
                if candidate["name"] in ours and candidate.get("vs_torch"):
                    key = (candidate["name"], row["op"], document["machine"]["arch"])
                    found.setdefault(key, {}).setdefault(name, []).append(candidate["vs_torch"])
    return [
        {
            "backend": backend, "op": op, "arch": arch, "ratio": round(geometric_mean(ratios), 2),
            "cases": len(ratios), "file": name,
        }
        for (backend, op, arch), by_file in sorted(found.items())
        for name, ratios in list(by_file.items())[-1:]
    ]  # fmt: skip


def render(results: Path) -> str:
    """The file: a line for each row."""
    return "[\n" + ",\n".join(f" {json.dumps(row)}" for row in rows(results)) + "\n]\n"
