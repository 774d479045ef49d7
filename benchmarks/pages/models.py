"""The section of docs/performance.md on whole models, from the file that benchmarks/models writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sgl_kernels.tools.page.html import Table

NOTE = (
    "Models built from a configuration with random weights, stock against `sgl_kernels.apply` in turns in one process, "
    "one thread, CPU time of the process; the ratio is the median of the turns, its range beside it. Errors are the "
    'relative L2 distance to the same model in float64. `skip` is `apply(model, padding="skip")`.'
)


def load(path: Path) -> dict[str, Any]:
    """A result file of benchmarks/models."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def table(document: dict[str, Any]) -> Table:
    """One row for each model, dtype and treatment of padding."""
    lines = [
        (
            row["what"].rstrip("."),
            row["dtype"],
            row["padding"],
            f"{row['stock_ms']:,.0f}",
            f"{row['ours_ms']:,.0f}",
            f"{row['ratio']:.2f}x",
            f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}",
            f"{row['stock_error']:.1e}",
            f"{row['ours_error']:.1e}",
        )
        for row in document["rows"]
    ]
    columns = (
        "model",
        "dtype",
        "padding",
        "stock ms",
        "ours ms",
        "ratio",
        "range",
        "stock error",
        "our error",
    )
    return Table("", columns, lines)
