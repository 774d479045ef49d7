"""Run a test file twice, stock and with install("torch"): python -m tests.peer_suites.compare FILE [pytest args].

Exits 1 where a test that passes stock does not pass installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def outcomes(file: Path, args: list[str], install: bool) -> dict[str, str]:
    """The outcome of every test of a file, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcomes.json"
        environment = {**os.environ, "SGL_KERNELS_PEER_OUTCOMES": str(found)}
        environment["SGL_KERNELS_PEER_INSTALL"] = "1" if install else ""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.peer_suites.installed",
        ]
        command += ["--rootdir", folder, "-c", os.devnull, "--tb=short", str(file), *args]
        subprocess.run(command, env=environment, cwd=file.parent, check=False)
        return json.loads(found.read_text()) if found.exists() else {}


def main(argv: list[str]) -> int:
    """Compare and report."""
    if not argv:
        print(__doc__)
        return 2
    file = Path(argv[0]).resolve()
    stock, installed = (outcomes(file, argv[1:], install) for install in (False, True))
    passed = [name for name, outcome in stock.items() if outcome == "passed"]
    lost = [name for name in passed if installed.get(name) != "passed"]
    print(f"{file.name}: {len(passed)} tests pass stock, {len(passed) - len(lost)} of them installed")
    for name in lost:
        print("lost:", name)
    return 1 if lost or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
