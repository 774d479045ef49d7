"""The pages that are written from result files: performance, and the support matrix with this device's column."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.gpu.task import Task, environment


def run(task: Task) -> None:
    """Write both anew, in the checkout that the results are in."""
    root = task.options.root
    commands = {
        "performance": ["docs", "--root", str(root)],
        "support matrix": [
            "support-matrix",
            "--out",
            f"{root}/docs/support-matrix.md",
            "--device",
            task.options.device,
        ],
    }
    problems = []
    for name, command in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.pages", *command],
            env=environment(),
            capture_output=True,
            text=True,
        )
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        task.data[name] = "written" if done.returncode == 0 else last
        if done.returncode:
            problems.append(f"{name}: {last}")
        task.keep()
    task.done(problems)
