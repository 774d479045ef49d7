"""One peer at one thread count: a line of JSON for each row, from a given place in the list of cases on."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from typing import Any

import torch

from benchmarks.peers import measure
from benchmarks.peers.peer import OPS, first_line, start
from sgl_kernels.tools.bench.ceilings import measure_ceilings
from sgl_kernels.tools.bench.clock import retain_memory, threads
from sgl_kernels.tools.bench.measure import COLD, workloads


def cases(chosen: argparse.Namespace) -> list[tuple[Any, Any, torch.dtype]]:
    """The benchmark cases of our own registry that peers are asked about; they bind memory, so none is cold."""
    dtypes = tuple(getattr(torch, name) for name in chosen.dtype)
    wanted = chosen.case
    found = workloads(
        ops=chosen.op or OPS,
        tag=chosen.tag,
        dtypes=dtypes,
        matches=lambda name: not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted),
    )
    return [one for one in found if COLD not in one[1].tags]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The arguments that the command and its workers share."""
    parser.add_argument("--op", nargs="*", default=[], choices=OPS, help="only these ops")
    parser.add_argument("--case", nargs="*", default=[], help="only cases that match one of these wildcards")
    parser.add_argument(
        "--dtype", nargs="*", default=[], choices=["float32", "bfloat16", "float16"], help="only these"
    )
    parser.add_argument("--tag", default="bench", help="cases to measure: bench, or any other tag")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for one thread")
    parser.add_argument("--rounds", type=int, default=measure.Options.rounds)
    parser.add_argument("--seconds", type=float, default=measure.Options.seconds, help="for one row")


def run(chosen: argparse.Namespace) -> None:
    """Measure and print. The peer is imported with the threads pinned, so its pool inherits that."""
    retain_memory()
    options = measure.Options(chosen.rounds, chosen.seconds, chosen.clock)
    work = cases(chosen)
    with threads(chosen.threads), torch.inference_mode():
        ceilings = measure_ceilings(torch.device("cpu"), 1.5)
        peer = start(chosen.peer, chosen.threads)
        _say({"versions": peer.versions(), "note": peer.note(), "ceilings": ceilings.to_dict()})
        for op, case, dtype in work[chosen.first :]:
            try:
                row = measure.measure(op, case, dtype, peer, chosen.peer, ceilings=ceilings, options=options)
            except (
                Exception
            ) as error:  # ours or torch's: that is a finding too, and the rest is still measured
                row = measure.head(op.name, case.name, dtype, chosen.threads, chosen.peer)
                row["reason"] = f"FAILED: {first_line(error)}"
            _say(row)


def _say(value: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(value) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers.worker")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    add_selection(parser)
    try:
        run(parser.parse_args(arguments))
    except Exception as error:
        _say({"unavailable": first_line(error)})


if __name__ == "__main__":
    main()
