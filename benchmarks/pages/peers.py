"""Figures of other libraries on our cases (benchmarks/peers): the file, its tables, and the goals against them."""

from __future__ import annotations

import datetime
import fnmatch
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_kernels.tools.bench.results import geometric_mean, rounded
from sgl_kernels.tools.doctor.diagnosis import versions
from sgl_kernels.tools.page.html import Mark, Table

SCHEMA = 1
IDENTITY = ("op", "case", "dtype", "threads", "peer")
Row = dict[str, Any]

NOTE = (
    "Each peer is measured in a process of its own together with ours and torch, in turns, with as many threads on "
    "as many cores; its pool sleeps between calls. Inputs lie as the peer likes them ((B, H, S, D) contiguous, say) "
    "and outputs are written in place, so no conversion of ours is timed. Of several ways to run a call the fastest "
    "that is right against float64 speaks for the peer. A cell says how many times as fast ours is, and the peer's "
    "own time."
)


def document(rows: Sequence[Row], peers: dict[str, Any], machine: Row, settings: Row) -> dict[str, Any]:
    """Everything of one run, ready to be written."""
    today = datetime.date.today().isoformat()
    return {
        "schema": SCHEMA,
        "kind": "peers",
        "date": today,
        "machine": machine,
        "versions": versions(),
        "settings": settings,
        "peers": peers,
        "rows": [{**row, "date": today} for row in rows],
    }


def load(path: Path) -> dict[str, Any]:
    """Read a file of peers. Raises ValueError naming the file where it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a file of peers: {error}; run `make bench-peers`"
        ) from None
    if not isinstance(found, dict) or found.get("kind") != "peers" or found.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is not a file of peers of schema {SCHEMA}; write it anew: `make bench-peers`"
        )
    return found


def save(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """Write the file; rows and peers that were measured before and not now are kept, rows with their date."""
    if path.is_file():
        old = load(path)
        new = {_identity(row) for row in fresh["rows"]}
        kept = [row for row in old["rows"] if _identity(row) not in new]
        fresh = {**fresh, "rows": kept + fresh["rows"], "peers": _merged(old["peers"], fresh["peers"])}
    fresh["rows"] = sorted(fresh["rows"], key=lambda row: [str(part) for part in _identity(row)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(fresh), indent=1) + "\n", encoding="utf-8")
    return fresh


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is known of each peer; ceilings of thread counts that were not measured now stay."""
    found = dict(old)
    for name, about in new.items():
        ceilings = {**old.get(name, {}).get("ceilings", {}), **about.get("ceilings", {})}
        found[name] = {**about, "ceilings": ceilings}
    return found


def best(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """(op, case, dtype, threads) -> the row of the peer that comes closest to ours, or is ahead of it."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = _identity(row)[:-1]
        if "vs_peer" in row and (key not in found or row["vs_peer"] < found[key]["vs_peer"]):
            found[key] = row
    return found


def summary(rows: Sequence[Row]) -> Table:
    """Geometric mean and least of ours against each peer, by op, dtype and thread count."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "vs_peer" in row:
            groups.setdefault((row["op"], row["peer"], row["dtype"], row["threads"]), []).append(row)
    lines = []
    for key, found in groups.items():
        ratios = [row["vs_peer"] for row in found]
        behind = [row["case"] for row in found if row["vs_peer"] < 1]
        lines.append(
            (
                *key,
                len(found),
                f"{geometric_mean(ratios):.2f}x",
                f"{min(ratios):.2f}x",
                f"{geometric_mean([row['peer_vs_torch'] for row in found]):.2f}x",
                ", ".join(behind),
            )
        )
    columns = ("op", "peer", "dtype", "threads", "cases", "ours, mean", "ours, least")
    return Table("", (*columns, "the peer against torch, mean", "ours is slower on"), lines)


def detail(rows: Sequence[Row]) -> Table:
    """One line for each case, one column for each peer."""
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(_identity(row)[:-1], {})[row["peer"]] = row
    lines = []
    for key, found in cases.items():
        if measured := [row for row in found.values() if "vs_peer" in row]:
            ours, torch_ms = (min(row[name] for row in measured) for name in ("ours_ms", "torch_ms"))
            backend = ", ".join(dict.fromkeys(row["ours"] for row in measured))
            cells = [_cell(found.get(peer)) for peer in peers]
            lines.append((*key, f"{ours:.3f} ({backend})", f"{torch_ms:.3f}", *cells, _errors(measured)))
    columns = ("op", "case", "dtype", "threads", "ours, ms", "torch, ms", *peers)
    return Table("", (*columns, "relative L2: ours, peers"), lines)


def as_results(document: dict[str, Any]) -> dict[str, Any]:
    """The rows in the form of a result file, ours and each peer against plain torch: what a picture is drawn of."""
    cases: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in document["rows"]:
        if "vs_peer" not in row:
            continue
        op, case, dtype, threads = key = _identity(row)[:-1]
        ours = {"name": "ours", "vs_torch": row["vs_torch"], "vs_torch_spread": row["vs_torch_spread"]}
        found = cases.setdefault(
            key, {"op": op, "case": case, "dtype": dtype, "threads": threads, "candidates": [ours]}
        )
        ratio, spread = row["peer_vs_torch"], row["peer_vs_torch_spread"]
        found["candidates"].append({"name": row["peer"], "vs_torch": ratio, "vs_torch_spread": spread})
    return {**document, "results": list(cases.values())}


def _cell(row: Row | None) -> object:
    if row is None:
        return ""
    if "vs_peer" not in row:
        return "see below"
    text = f"{row['vs_peer']:.2f}x ({row['peer_ms']:.3f})"
    return Mark(text, "good" if row["vs_peer"] > 1.05 else "bad" if row["vs_peer"] < 0.95 else "")


def _errors(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{e:.1e}" for e in (rows[0]["errors"]["ours"], *(row["errors"]["peer"] for row in rows))
    )


def gaps(rows: Sequence[Row]) -> Table:
    """Every case without a figure, with the reason."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "vs_peer" not in row:
            groups.setdefault((row["peer"], row["op"], row["reason"]), []).append(row)
    lines = [
        (
            peer,
            op,
            ", ".join(dict.fromkeys(row["dtype"] for row in found)),
            _few(list(dict.fromkeys(row["case"] for row in found))),
            reason,
        )
        for (peer, op, reason), found in groups.items()
    ]
    return Table("", ("peer", "op", "dtypes", "cases", "why there is no figure"), lines)


def _few(cases: Sequence[str]) -> str:
    return ", ".join(cases) if len(cases) <= 4 else f"{', '.join(cases[:3])} and {len(cases) - 3} more"


@dataclass(frozen=True, slots=True)
class PeerGoal:
    """A ratio to the best of some peers that every one of the cases should reach."""

    title: str
    cases: tuple[str, ...]
    dtype: str
    least: float
    peers: tuple[str, ...] = ()  # () means all of them


WIDE = ("dit1k*", "flux*", "wan*", "window*", "cross*", "sd3*", "bhsd*")
GOALS: tuple[PeerGoal, ...] = (
    PeerGoal("attention against ONNX Runtime and OpenVINO", ("*",), "float32", 1.0, ("onnxruntime", "openvino")),
    PeerGoal("attention against the best peer", WIDE, "bfloat16", 1.2),
    PeerGoal("attention against the best peer", WIDE, "float16", 1.5),
    PeerGoal("decode against the best peer", ("decode*",), "bfloat16", 5.0),
)  # fmt: skip


def compare(rows: Sequence[Row]) -> Table:
    """Each goal against peers that something was measured for, by thread count."""
    lines = []
    for goal in GOALS:
        chosen = [
            row
            for row in rows
            if row["op"] == "attention"
            and row["dtype"] == goal.dtype
            and (not goal.peers or row["peer"] in goal.peers)
            and any(fnmatch.fnmatchcase(row["case"], pattern) for pattern in goal.cases)
        ]
        for threads in sorted({row["threads"] for row in chosen}):
            closest = best([row for row in chosen if row["threads"] == threads])
            if closest:
                lines.append(_goal_line(goal, threads, list(closest.values())))
    columns = ("what", "dtype", "threads", "cases", "goal: least", "mean", "least", "least of", "by")
    return Table("", (*columns, "met"), lines)


def _goal_line(goal: PeerGoal, threads: int, rows: Sequence[Row]) -> tuple[object, ...]:
    worst = min(rows, key=lambda row: float(row["vs_peer"]))
    reach = worst["vs_peer"] * 100 / max(worst["percent"], 1e-9)  # at 100 % of the machine's ceiling
    if worst["vs_peer"] >= goal.least:
        verdict = Mark("yes", "good")
    elif 1.0 <= reach < goal.least and worst["percent"] <= 100:  # a peer beyond it shows that it is no bound
        verdict = Mark(f"no: above this machine's ceiling ({reach:.2f}x)", "muted")
    else:
        verdict = Mark("no", "bad")
    return (
        goal.title,
        goal.dtype,
        threads,
        len(rows),
        f"{goal.least:g}x",
        f"{geometric_mean([row['vs_peer'] for row in rows]):.2f}x",
        f"{worst['vs_peer']:.2f}x",
        worst["case"],
        worst["peer"],
        verdict,
    )
