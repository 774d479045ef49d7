"""docs/performance.md, written from the committed result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import (
    gpu as report_gpu,
)
from benchmarks.pages import (
    models as report_models,
)
from benchmarks.pages import (
    nvfp4 as report_nvfp4,
)
from benchmarks.pages import (
    peers as bench_peers,
)
from benchmarks.pages.goals import compare
from sgl_kernels.tools.bench import dispatch as bench_dispatch
from sgl_kernels.tools.bench.measure import COMPILED, EAGER, INTO
from sgl_kernels.tools.bench.results import ceilings_table, geometric_mean, is_result, load
from sgl_kernels.tools.page.html import Table, markdown_table
from sgl_kernels.tools.parity.cell import FLOOR

INTRO = """# Performance

Written by `python -m benchmarks.pages docs` from the files in `benchmarks/results/`; change those, not this page.

Every figure is a ratio or a rate measured side by side in one run: candidates take turns in one process, threads
are pinned, the allocator keeps its memory, and the ratio is the median of the ratios within each turn. `vs torch`
is against the torch floor of this library (`torch`: torch's own kernels, exact in every case); `vs eager`
against the op as people spell it in plain torch. `of ceiling` is the share of what the machine itself reached in
the same run before anything else: the rate of its instructions (FMA, BF16 and byte dot products) or of torch's
matrix product where that is higher (it uses AMX), or its copy bandwidth at the same working set, whichever bounds
the case. A case named `cold` rotates its inputs through copies that no cache holds. Relative L2 is against the
definition in float64.

Measure your own machine with `make bench`, then `make bench-peers` for other libraries, `make plots` and
`make docs`."""


GOALS_NOTE = (
    "Ratios to the op as people spell it in plain torch (for attention: torch's SDPA), set from a prototype on one "
    "core of a Zen 5 server with BF16 dot products. Without those (`vdpbf16ps`), bf16 arithmetic runs at the rate of "
    "float32, and a goal that rests on them says so. `at the ceiling` is what a kernel at 100 % of the ceilings that "
    "were measured here would reach: a goal beyond it cannot be met on this machine."
)


def render(results: Path) -> str:
    """The whole page. It depends on the result files alone."""
    parts = [INTRO]
    folders = sorted({path.parent for path in results.rglob("*.json")}) if results.is_dir() else []
    for folder in folders:
        section = _machine(folder)
        if section:
            parts.append(section)
    if len(parts) == 1:
        parts.append("No result file is committed yet.")
    return "\n\n".join(parts) + "\n"


def _machine(folder: Path) -> str:
    documents = [(path, load(path)) for path in sorted(folder.glob("*.json")) if is_result(path)]
    dispatch = folder / "dispatch.json"
    peers = folder / "peers.json"
    models = folder / "models.json"
    steps = report_gpu.steps(folder)
    firsts = [d for _, d in documents[:1]]
    firsts += [json.loads(path.read_text("utf-8")) for path in (dispatch, peers, models) if path.is_file()]
    firsts += steps[:1]
    fp4 = report_nvfp4.load(folder)
    firsts += [fp4] if fp4 else []
    if not firsts:
        return ""
    first = firsts[0]
    machine, versions = first["machine"], first["versions"]
    parts = [
        f"## {machine['cpu']}, {machine['device']}",
        f"torch {versions['torch']}, sgl_kernels {versions['sgl_kernels']}, {machine['cores']} cores.",
    ]
    if steps:
        parts += ["### The plan of `make gpu`", markdown_table(report_gpu.steps_table(steps)), *_auto(steps)]
    if dispatch.is_file():
        data = json.loads(dispatch.read_text("utf-8"))
        parts += [
            "### The cost of a call",
            markdown_table(bench_dispatch.table(data)),
            bench_dispatch.table(data).note,
        ]
    if models.is_file():
        found = report_models.load(models)
        parts += [
            "### Whole models",
            f"{report_models.NOTE} Measured {found['date']} with `make bench-models`, load average at the start "
            f"{found['settings']['load_average']}.",
            markdown_table(report_models.table(found)),
        ]
    goals = compare([row for _, document in documents for row in document["results"]], machine["arch"])
    if goals.rows:
        parts += ["### Goals", GOALS_NOTE, markdown_table(goals)]
    if peers.is_file():
        parts += _peers(bench_peers.load(peers), folder.name, peers.with_suffix(".png").is_file())
    for path, document in documents:
        parts += _family(path, document)
    if fp4:
        parts += report_nvfp4.section(fp4, folder.name)
    return "\n\n".join(parts)


def _auto(steps: Sequence[dict[str, Any]]) -> list[str]:
    rows: list[dict[str, Any]] = next(
        (s["data"].get("auto", []) for s in steps if s["step"] == "bench" and s.get("data")), []
    )
    if not rows:
        return []
    table = report_gpu.auto_table(rows)
    return [table.note, *([markdown_table(table)] if table.rows else [])]


def _peers(document: dict[str, Any], folder: str, picture: bool) -> list[str]:
    """The section on other libraries: goals, means, every case, and what has no figure."""
    rows, settings = document["rows"], document["settings"]
    clock = "CPU time of the process" if settings.get("clock") == "cpu" else "wall time"
    parts = [
        "### Against other libraries",
        bench_peers.NOTE,
        f"Measured {document['date']} with `make bench-peers`: {clock}, load average at the start "
        f"{settings.get('load_average', 'not recorded')}, file `benchmarks/results/{folder}/peers.json`.",
    ]
    parts.append("\n".join(_about(name, about) for name, about in sorted(document["peers"].items())))
    if picture:
        parts.append(f"![peers](../benchmarks/results/{folder}/peers.png)")
    for make in (bench_peers.compare, bench_peers.summary, bench_peers.detail, bench_peers.gaps):
        table = make(rows)
        parts += [markdown_table(table)] if table.rows else []
    return parts


def _about(name: str, about: dict[str, Any]) -> str:
    """One line on a peer: its versions, or why it does not run here, and what is to know."""
    if not about.get("versions"):
        return f"- {name}: not available here ({about.get('unavailable', 'its process did not start')})"
    packages = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return f"- {packages}" + (f": {about['note']}" if about.get("note") else "")


def _family(path: Path, document: dict[str, Any]) -> list[str]:
    rows = document["results"]
    settings = document["settings"]
    clock = "CPU time of the one thread" if settings.get("clock") == "cpu" else "wall time"
    parts = [
        f"### {path.stem}",
        f"Measured {document['date']}: {clock}, allocator {settings.get('allocator', 'system default')}, load "
        f"average at the start {settings.get('load_average', 'not recorded')}, "
        f"file `benchmarks/results/{path.parent.name}/{path.name}`.",
    ]
    picture = path.with_suffix(".png")
    if picture.is_file():
        parts.append(f"![{path.stem}](../benchmarks/results/{path.parent.name}/{picture.name})")
    parts += [markdown_table(summary(rows)), markdown_table(detail(rows))]
    scales = scaling(rows)
    if scales.rows:
        parts += [f"{scales.title}:", markdown_table(scales)]
    ceilings = ceilings_table(document["ceilings"])
    parts += [f"{ceilings.title}:", markdown_table(ceilings)]
    return parts


def summary(rows: Sequence[dict[str, Any]]) -> Table:
    """Geometric mean and minimum of each backend's ratio, by op, dtype and thread count."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        for c in row["candidates"]:
            if c["name"] not in (FLOOR, EAGER, COMPILED) and c.get("vs_torch"):
                key = (row["op"], c["name"], row["dtype"], row["threads"])
                groups.setdefault(key, []).append(c)
    lines = []
    for key, found in groups.items():
        torch_ratios = [c["vs_torch"] for c in found]
        eager = [c["vs_eager"] for c in found if c.get("vs_eager")]
        lines.append(
            (
                *key,
                len(found),
                f"{geometric_mean(torch_ratios):.2f}x",
                f"{min(torch_ratios):.2f}x",
                f"{geometric_mean(eager):.2f}x" if eager else "",
                f"{max(c['percent'] for c in found):.0f}%",
            )
        )
    columns = (
        "op",
        "backend",
        "dtype",
        "threads",
        "cases",
        "vs torch, mean",
        "vs torch, least",
        "vs eager, mean",
    )
    return Table("", (*columns, "best share of ceiling"), lines)


def detail(rows: Sequence[dict[str, Any]]) -> Table:
    """The fastest exact candidate of every case, beside torch."""
    lines = []
    for row in rows:
        exact = [c for c in row["candidates"] if c["fidelity"] == "exact"]
        # A call that is given its output is not like for like: it stands in the result files and the plots.
        ours = [
            c for c in exact if c["name"] not in (FLOOR, EAGER, COMPILED) and not c["name"].endswith(INTO)
        ] or exact
        if not ours:
            continue
        best = min(ours, key=lambda c: c["median_ms"])
        floor = next((c for c in exact if c["name"] == FLOOR), None)
        lines.append(
            (
                row["op"],
                row["case"],
                row["dtype"],
                row["threads"],
                best["name"],
                f"{best['median_ms']:.3f}",
                f"{floor['median_ms']:.3f}" if floor else "",
                _ratio(best.get("vs_torch")),
                _ratio(best.get("vs_eager")),
                _ratio(best.get("vs_compile")),
                f"{best['rate']:.1f} {best['unit']}",
                f"{best['percent']:.0f}%",
                f"{best['error']['relative_l2']:.1e}" if best.get("error") else "",
            )
        )
    columns = (
        "op",
        "case",
        "dtype",
        "threads",
        "backend",
        "ms",
        "torch ms",
        "vs torch",
        "vs eager",
        "vs compile",
    )
    return Table("", (*columns, "rate", "of ceiling", "relative L2"), lines)


def scaling(rows: Sequence[dict[str, Any]]) -> Table:
    """One thread's time over that of several, by op, backend and dtype, and the least of the cases."""
    times: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for row in rows:
        for c in row["candidates"]:
            if c["name"] in (FLOOR, COMPILED):
                continue
            key = (row["op"], c["name"], row["dtype"], row["case"])
            times.setdefault(key, {})[row["threads"]] = c["median_ms"]
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for (op, name, dtype, case), by_threads in times.items():
        for threads, ms in by_threads.items():
            if threads > 1 and 1 in by_threads:
                groups.setdefault((op, name, dtype, threads), {})[case] = by_threads[1] / ms
    lines = []
    for key, gains in groups.items():
        worst, best = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
        ends = (f"{gains[worst]:.2f}x ({worst})", f"{gains[best]:.2f}x ({best})")
        lines.append((*key, len(gains), f"{geometric_mean(list(gains.values())):.2f}x", *ends))
    columns = ("op", "backend", "dtype", "threads", "cases", "gain, mean", "least", "most")
    return Table(
        "Against one thread (another run of the same process, so machine drift counts)", columns, lines
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
