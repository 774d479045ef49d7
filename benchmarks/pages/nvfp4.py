"""The NVFP4 part of docs/performance.md, from a machine's nvfp4_linear.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgl_kernels.tools.page.html import Mark, Table, markdown_table

FILE = "nvfp4_linear.json"

GOALS: tuple[tuple[int, str, str, float], ...] = (
    (1, "W4A16", "vs_bf16", 7.0),
    (1, "W4A8", "vs_bf16", 7.0),
    (1, "W4A4", "vs_bf16", 7.0),
    (16, "W4A8", "vs_bf16", 2.2),
    (16, "W4A4", "vs_bf16", 2.2),
    (256, "W4A8", "vs_bf16", 1.8),
    (256, "W4A4", "vs_bf16", 1.5),
    (1024, "W4A8", "vs_bf16", 1.8),
    (1024, "W4A4", "vs_bf16", 1.5),
    *((m, "W4A16", "vs_bf16", 1.0) for m in (16, 256, 1024)),
    *((m, "W4A16, x fp32", "vs_fp32", 1.0) for m in (1, 16, 256, 1024)),
)
"""(rows, candidate, ratio to F.linear of x's dtype, what was aimed at), set on a Zen 5 core with BF16 instructions."""
QUANTISE_GOAL = 12.0  # GB/s of bf16 input

NOTE = (
    "`python -m benchmarks.nvfp4.speed`. Ratios to `F.linear`, {clock}, one thread; up to 16 rows the weight comes "
    "from memory. Where a machine has no bf16 instructions, `F.linear` in bf16 is slow and the ratio to fp32 is the "
    "one to read. File `benchmarks/results/{folder}/nvfp4_linear.json`, measured {date}."
)


def load(folder: Path) -> dict[str, Any] | None:
    """The machine's measurement, if one is committed."""
    path = folder / FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def section(document: dict[str, Any], folder: str) -> list[str]:
    """Goals, every shape, and the quantiser."""
    return [
        "### NVFP4",
        NOTE.format(clock=document["clock"], folder=folder, date=document["date"]),
        markdown_table(goals_table(document)),
        markdown_table(shapes_table(document)),
        markdown_table(quantiser_table(document)),
    ]


def goals_table(document: dict[str, Any]) -> Table:
    """What was aimed at beside what was measured, at N = K = 3072."""
    return Table("", ("goal", "aim", "measured", "vs fp32", "met"), list(_goals(document)))


def _goals(document: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    rows = {row["m"]: row["candidates"] for row in document["linear"] if (row["n"], row["k"]) == (3072, 3072)}
    for m, name, ratio, aim in GOALS:
        found = rows.get(m, {}).get(name)
        if found is not None:
            base = "bf16" if ratio == "vs_bf16" else "fp32"
            yield (
                f"{name}, M={m}, against {base}", f"{aim:g}x", f"{found[ratio]:.2f}x", f"{found['vs_fp32']:.2f}x",
                _met(found[ratio] >= aim),
            )  # fmt: skip
    rates = [row["given"] for row in document["quantise_gb_per_s"] if row["dtype"] == "bfloat16"]
    if rates:
        best = max(rates)
        yield (
            "quantise bf16", f"{QUANTISE_GOAL:g} GB/s", f"{best:.1f} GB/s", "", _met(best >= QUANTISE_GOAL)
        )  # fmt: skip


def _met(good: bool) -> Mark:
    return Mark("yes", "good") if good else Mark("no", "bad")


def shapes_table(document: dict[str, Any]) -> Table:
    """Every shape: milliseconds, and the ratios to F.linear in bf16 and fp32."""
    names = list(dict.fromkeys(name for row in document["linear"] for name in row["candidates"]))
    lines = []
    for row in document["linear"]:
        cells = []
        for name in names:
            c = row["candidates"].get(name)
            text = "" if c is None else f"{c['us'] / 1000:.2f} ({c['vs_bf16']:.2f} / {c['vs_fp32']:.2f})"
            cells.append(text)
        lines.append((f"{row['m']} x {row['n']} x {row['k']}", *cells))
    return Table("", ("M x N x K, ms (vs bf16 / fp32)", *names), lines)


def quantiser_table(document: dict[str, Any]) -> Table:
    """GB/s of input, with the global scale given and found, and torch's reference where it was measured."""
    lines = [
        (row["dtype"], f"{row['m']} x {row['k']}", row["given"], row["found"], row.get("torch", ""))
        for row in document["quantise_gb_per_s"]
    ]
    return Table(
        "", ("quantise", "shape", "GB/s, scale given", "scale found", "torch reference"), lines
    )  # fmt: skip
