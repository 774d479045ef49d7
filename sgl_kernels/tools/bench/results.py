"""Result files: what was measured, where and when; merged, printed and told as a page."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sgl_kernels.core.device import probe
from sgl_kernels.tools.bench.ceilings import Ceilings
from sgl_kernels.tools.doctor.diagnosis import versions
from sgl_kernels.tools.page.html import Mark, Table

SCHEMA = 1
IDENTITY = ("op", "case", "dtype", "threads")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The device, and the processor that drives it."""
    found = probe(device)
    return {
        "device": str(found),
        "platform": found.platform,
        "arch": found.arch,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def machine_slug(machine: dict[str, Any]) -> str:
    """A folder name: 'intel-xeon-processor-avx512' or 'nvidia-h200'."""
    name = machine["cpu"] if machine["platform"] == "cpu" else machine["device"].partition(" (")[0]
    words = re.sub(r"\((r|tm)\)|@.*$|\bcpu\b", " ", name, flags=re.IGNORECASE)
    if machine["platform"] == "cpu":
        words += " " + machine["arch"]
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def document(
    rows: Sequence[dict[str, Any]],
    ceilings: Sequence[Ceilings],
    device: torch.device,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Everything of one run, ready to be written."""
    today = datetime.date.today().isoformat()
    return {
        "schema": SCHEMA,
        "date": today,
        "machine": describe_machine(device),
        "versions": versions(),
        "settings": settings,
        "ceilings": [c.to_dict() for c in ceilings],
        "results": [{**row, "date": today} for row in rows],
    }


def is_result(path: Path) -> bool:
    """Whether a file is one of ours: the folder holds other measurements too."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "results" in data and "ceilings" in data


def split_by_family(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One document for each op family: one file, one picture."""
    families = dict.fromkeys(row["family"] or row["op"] for row in document["results"])
    return {
        name: {**document, "results": [r for r in document["results"] if (r["family"] or r["op"]) == name]}
        for name in families
    }


def load(path: Path) -> dict[str, Any]:
    """Read a result file. Raises ValueError naming the file where it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a result file: {error}; write it anew with `bench --out`"
        ) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "results" not in found:
        raise ValueError(f"{path} is not a result file of schema {SCHEMA}; write it anew with `bench --out`")
    return found


def save(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Write a result file; rows that were measured before and not now are kept, with their date."""
    if path.is_file():
        old = load(path)
        new = {tuple(row[k] for k in IDENTITY) for row in fresh["results"]}
        kept = [row for row in old["results"] if tuple(row[k] for k in IDENTITY) not in new]
        measured = {c["threads"] for c in fresh["ceilings"]}
        fresh = dict(fresh)
        fresh["results"] = sorted(kept + fresh["results"], key=lambda row: [str(row[k]) for k in IDENTITY])
        fresh["ceilings"] = [c for c in old["ceilings"] if c["threads"] not in measured] + fresh["ceilings"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(fresh), indent=1) + "\n", encoding="utf-8")
    return fresh


def rounded(value: Any) -> Any:
    """Five figures: more are noise, and make every diff long. Whole numbers stay."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def table(rows: Sequence[dict[str, Any]], title: str = "Benchmark") -> Table:
    """One line for each candidate of each row."""
    compiled = any("vs_compile" in c for row in rows for c in row["candidates"])
    columns = [
        "op",
        "case",
        "dtype",
        "threads",
        "candidate",
        "ms",
        "quartiles",
        "rate",
        "of ceiling",
        "vs torch",
    ]
    columns += ["vs eager", *(["vs compile"] if compiled else []), "relative L2"]
    lines = []
    for row in rows:
        head: list[object] = [row["op"], row["case"], row["dtype"], row["threads"]]
        for c in sorted(row["candidates"], key=lambda c: c["median_ms"]):
            line = [*head, c["name"], f"{c['median_ms']:.3f}", f"{c['low_ms']:.3f} to {c['high_ms']:.3f}"]
            line += [f"{c['rate']:.1f} {c['unit']}", f"{c['percent']:.0f}%", _ratio(c.get("vs_torch"))]
            line += [_ratio(c.get("vs_eager"))]
            if compiled:
                line.append(_ratio(c.get("vs_compile")))
            line.append(f"{c['error']['relative_l2']:.1e}" if c.get("error") else "")
            lines.append(line)
            head = ["", "", "", ""]
        for name, why in row["skipped"].items():
            if why.startswith("FAILED"):
                lines.append([*head, name, *[""] * (len(columns) - 6), Mark(why, "bad")])
    return Table(title, columns, lines)


def _ratio(value: float | None) -> object:
    if value is None:
        return ""
    return Mark(f"{value:.2f}x", "good" if value > 1.05 else "bad" if value < 0.95 else "")


def ceilings_table(ceilings: Sequence[dict[str, Any]]) -> Table:
    """What the machine itself can do."""
    names = list(dict.fromkeys(name for c in ceilings for name in c["gflops"]))
    sizes = list(dict.fromkeys(int(size) for c in ceilings for size in c["copy_gb_s"]))
    columns = ["threads", *(f"{n} GFLOP/s" for n in names), *(f"copy of {s >> 20} MiB, GB/s" for s in sizes)]
    rows = []
    for c in ceilings:
        copies = {int(size): rate for size, rate in c["copy_gb_s"].items()}
        rates = [
            f"{c['gflops'][n]:.0f} ({c['source'].get(n, '')})" if n in c["gflops"] else "" for n in names
        ]
        rows.append([c["threads"], *rates, *(f"{copies[s]:.1f}" if s in copies else "" for s in sizes)])
    return Table("Ceilings of this machine, measured in the same run", columns, rows)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean that suits ratios; NaN for no values."""
    kept = [v for v in values if v > 0]
    return math.exp(sum(map(math.log, kept)) / len(kept)) if kept else math.nan
