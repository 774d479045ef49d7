"""python -m benchmarks.gpu: run the plan, or some of its steps, on one device."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import plan


def main(argv: list[str] | None = None) -> int:
    """Run the steps one after the other; 1 if one failed, 2 if there is nothing to run on."""
    from benchmarks.gpu.task import add_options

    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--steps", help=f"a comma list of {', '.join(plan.BY_NAME)}; all if absent")
    parser.add_argument("--limit", type=float, help="seconds for each step, instead of its own limit")
    parser.add_argument(
        "--budget", type=float, help="seconds for all: what does not fit is left for --resume"
    )
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        steps = plan.chosen(options.steps)
    except ValueError as error:
        parser.error(str(error))
    passed = _passed_on(options)
    about = _probe(passed)
    if about is None:
        return 2
    folder = Path(options.root).resolve() / "benchmarks" / "results" / about.pop("slug")
    print(f"{about['machine']['device']}: {folder}", flush=True)
    began, failed = time.monotonic(), 0
    for step in steps:
        path = plan.result_file(folder, step)
        if options.resume and step.name != "docs" and _is_done(plan.read(path), about):
            print(f"{step.name:10} ran before", flush=True)
            continue
        limit = options.limit or step.limit
        if options.budget is not None:
            limit = min(limit, options.budget - (time.monotonic() - began))
            if limit < 5:
                print(f"{step.name:10} left: the budget is spent; go on with --resume", flush=True)
                continue
        result = plan.run_step(step, about, folder, passed, limit)
        failed += result["status"] == plan.FAILED
        print(
            f"{step.name:10} {result['status']:12} {result['seconds']:6.0f} s  {result['reason']}", flush=True
        )
    return 1 if failed else 0


def _passed_on(options: argparse.Namespace) -> list[str]:
    """The options as a step's process reads them."""
    pairs = {"device": options.device, "root": Path(options.root).resolve(), "ops": options.ops, "tag": options.tag,
             "wheels": options.wheels, "seconds": options.seconds}  # fmt: skip
    flags = [f"--{name}" for name in ("resume", "isolate") if getattr(options, name)]
    return [f"--{name}={value}" for name, value in pairs.items()] + flags


def _probe(passed: list[str]) -> dict[str, Any] | None:
    """The machine, asked in a process of its own: a driver that hangs or crashes must not take the plan down."""
    command = [sys.executable, "-m", "benchmarks.gpu.child", "probe", "probe", "-", *passed]
    try:
        done = subprocess.run(command, cwd=plan.ROOT, capture_output=True, text=True, timeout=180)
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    except subprocess.TimeoutExpired:
        print("the device did not answer within 180 s", file=sys.stderr)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"the device cannot be used: {last}", file=sys.stderr)
    return None


def _is_done(result: dict[str, Any], about: dict[str, Any]) -> bool:
    return result.get("status") in (plan.RAN, plan.IMPOSSIBLE) and result.get("versions") == about["versions"]


if __name__ == "__main__":
    sys.exit(main())
