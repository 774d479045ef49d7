"""Run the sweep: `python -m tests.integrations.sweep [CLASS ...]`, one process for a chunk of classes.

Prints a line per class: `ok`, `skipped` with the reason (it could not be made small, or stock does not run on the
inputs), or what differs. Ends with the counts, and with 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter

import sgl_kernels
from tests.integrations.sweep.building import build, classes
from tests.integrations.sweep.comparing import compare


def one(name: str) -> str:
    """The line of one class."""
    try:
        model, inputs = build(name)
    except Exception as error:
        return f"{name}: skipped, not built: {type(error).__name__}: {str(error)[:100]!r}"
    faults = compare(model, inputs)
    if set(faults) == {"stock"}:
        return f"{name}: skipped, {faults['stock']}"
    if faults:
        return f"{name}: {faults}"
    with sgl_kernels.apply(model) as applied:
        left = len(applied.left)
    return f"{name}: ok" + (f", {left} attention layers left to stock" if left else "")


def main() -> int:
    """Split the classes into chunks; a chunk that takes too long or dies costs its own classes only."""
    parser = argparse.ArgumentParser(prog="python -m tests.integrations.sweep")
    parser.add_argument("names", nargs="*", help="model classes; all of the auto mappings without any")
    parser.add_argument("--here", action="store_true", help="run them in this process")
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one class")
    options = parser.parse_args()
    names = options.names or classes()
    if options.here:
        for name in names:
            print(one(name), flush=True)
        return 0
    counts: Counter[str] = Counter()
    for start in range(0, len(names), options.chunk):
        chunk = names[start : start + options.chunk]
        command = [sys.executable, "-m", "tests.integrations.sweep", "--here", *chunk]
        environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=options.timeout * len(chunk)
            )
            lines = done.stdout.splitlines()
        except subprocess.TimeoutExpired as error:
            lines = (error.stdout or b"").decode().splitlines()
        seen = {line.partition(":")[0]: line for line in lines if line.partition(":")[0] in chunk}
        for name in chunk:
            line = seen.get(name, f"{name}: skipped, the process ended or took too long")
            counts[
                "ok" if line.startswith(f"{name}: ok") else "skipped" if ": skipped" in line else "differs"
            ] += 1
            print(line, flush=True)
    print(", ".join(f"{kind} {counts[kind]}" for kind in ("ok", "skipped", "differs")))
    return counts["differs"] > 0


if __name__ == "__main__":
    sys.exit(main())
