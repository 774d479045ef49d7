"""Measure other libraries on our benchmark cases; writes benchmarks/results/MACHINE/peers.json."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages.peers import document, save
from benchmarks.peers import measure, worker
from benchmarks.peers.peer import MODULES
from sgl_kernels.tools.bench.results import describe_machine, machine_slug

RESULTS = Path("benchmarks/results")
Lines = Callable[[list[str]], Iterator[str]]


def lines_of(arguments: list[str]) -> Iterator[str]:
    """What a worker process prints; a last line says how it ended, if that was badly."""
    # a fresh process, pinned from its start: thread pools take the processor's affinity when they are made
    command = [sys.executable, "-m", "benchmarks.peers.worker", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        yield json.dumps({"ended": process.returncode})


def run_peer(
    peer: str, threads: int, chosen: argparse.Namespace, lines: Lines = lines_of
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what is to know about a peer, its rows). A process that dies costs one row, and another goes on."""
    work = worker.cases(chosen)
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    def reasons(upto: int, why: str) -> None:
        for op, case, dtype in work[len(rows) : upto]:
            rows.append({**measure.head(op.name, case.name, dtype, threads, peer), "reason": why})

    while len(rows) < len(work):
        before, started = len(rows), False
        for line in lines(_arguments(peer, threads, len(rows), chosen)):
            try:
                found = json.loads(line)
            except ValueError:  # a library that prints
                continue
            if not isinstance(found, dict):
                continue
            if "unavailable" in found:
                about["unavailable"] = found["unavailable"]
                reasons(len(work), f"not available: {found['unavailable']}")
            elif "versions" in found:
                about, started = {**about, **found}, True
            elif "ended" in found:
                why = f"its process ended with code {found['ended']}"
                reasons(len(rows) + 1 if started else len(work), f"FAILED: {why}")
            elif "op" in found:
                rows.append(found)
                _tell(found)
        if len(rows) == before:
            reasons(len(work), "FAILED: its process said nothing")
    return about, rows


def _arguments(peer: str, threads: int, first: int, chosen: argparse.Namespace) -> list[str]:
    found = ["--peer", peer, "--threads", str(threads), "--first", str(first)]
    for name in ("op", "case", "dtype"):
        values = getattr(chosen, name)
        found += [f"--{name}", *values] if values else []
    for name in ("tag", "clock", "rounds", "seconds"):
        found += [f"--{name}", str(getattr(chosen, name))]
    return found


def _tell(row: dict[str, Any]) -> None:
    what = f"{row['peer']:12} {row['threads']} {row['op']} {row['case']} {row['dtype']}: "
    text = row.get("reason") or f"ours {row['vs_peer']:.2f}x of it ({row['ours_ms']:.3f} ms), {row['call']}"
    print(what + text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Every peer at every thread count, one process after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peers", nargs="*", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path, help="the file; by default this machine's among the results")
    worker.add_selection(parser)
    chosen = parser.parse_args(arguments)
    if chosen.clock == "cpu" and chosen.threads != [1]:
        parser.error("--clock is 'cpu', which adds threads up; use --threads 1, or --clock wall")
    machine = describe_machine(torch.device("cpu"))
    load = round(os.getloadavg()[0], 1)
    settings = {
        "clock": chosen.clock,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
        "load_average": load,
    }
    target = chosen.out or RESULTS / machine_slug(machine) / "peers.json"
    for name in chosen.peers:
        for threads in chosen.threads:  # written each time: a full run takes long, and may be interrupted
            about, rows = run_peer(name, threads, chosen)
            ceilings = about.pop("ceilings", None)
            peers = {name: {**about, "ceilings": {str(threads): ceilings} if ceilings else {}}}
            save(target, document(rows, peers, machine, settings))
    print(f"written: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
