"""Pictures of result files: each backend's speed against plain torch, by case. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.pages import peers
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.tools.bench.measure import EAGER
from sgl_kernels.tools.bench.results import is_result, load
from sgl_kernels.tools.page.charts import PALETTE
from sgl_kernels.tools.parity.cell import FLOOR


def draw_all(results: Path, out: Path | None = None) -> list[Path]:
    """A picture for every result file under `results`; beside it, or in `out`."""
    written = []
    for path in sorted(results.rglob("*.json")):
        if path.name == "peers.json":
            document = peers.as_results(peers.load(path))
        elif is_result(path):
            document = load(path)
        else:
            continue
        target = (out or path.parent) / f"{path.stem}.png"
        if draw(document, path.stem, target):
            written.append(target)
    return written


def draw(document: dict[str, Any], title: str, target: Path) -> bool:
    """One picture of one result file; False when it has nothing to compare."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "plots need matplotlib, which is not installed; pip install 'sgl_kernels[plot]'"
        ) from None
    names = [n for n in _names(document) if n not in (FLOOR, EAGER)] or [FLOOR]
    keys = list(dict.fromkeys((row["dtype"], row["threads"]) for row in document["results"]))
    if not names or not keys:
        return False
    cases = list(dict.fromkeys(_label(row) for row in document["results"]))
    figure = Figure(
        figsize=(4 + 4 * len(keys), 1.6 + 0.22 * len(cases) * max(1, len(names))), layout="constrained"
    )
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    height = 0.8 / len(names)
    for axis, (dtype, threads) in zip(axes, keys, strict=True):
        for index, name in enumerate(names):
            points = [
                (cases.index(_label(row)), c[_base(row)], c[f"{_base(row)}_spread"])
                for row in document["results"]
                if (row["dtype"], row["threads"]) == (dtype, threads)
                for c in row["candidates"]
                if c["name"] == name and c.get(_base(row))
            ]
            if not points:
                continue
            places = [place + (index - (len(names) - 1) / 2) * height for place, _, _ in points]
            ratios = [ratio for _, ratio, _ in points]
            errors = [
                [max(0.0, ratio - low) for _, ratio, (low, _) in points],
                [max(0.0, high - ratio) for _, ratio, (_, high) in points],
            ]
            axis.barh(
                places, ratios, height * 0.9, xerr=errors, color=PALETTE[index % len(PALETTE)], label=name,
                error_kw={"lw": 0.8},
            )  # fmt: skip
        axis.axvline(1.0, color="black", lw=0.8, ls="--")
        axis.set_title(f"{dtype}, {threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlabel("times as fast as plain torch")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(cases)), cases, fontsize=8)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    figure.suptitle(
        f"{title}: {document['machine']['cpu']}, torch {document['versions']['torch']}", fontsize=11
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    return True


def _base(row: dict[str, Any]) -> str:
    """Against the op as people spell it in torch; against the floor where there is no such spelling."""
    return "vs_eager" if any(c["name"] == EAGER for c in row["candidates"]) else "vs_torch"


def _label(row: dict[str, Any]) -> str:
    return f"{row['op']} {row['case']}"


def _names(document: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(c["name"] for row in document["results"] for c in row["candidates"]))
