"""Run a test file stock and served: python -m tests.peer_suites.compare [HOW,HOW] FILE [pytest args].

HOW is `torch` (install("torch"); the default), or for transformers' tests `name` (models set to "sgl_kernels") and
`apply` (models applied). Exits 1 where a test that passes stock does not pass served.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = ("torch", "name", "apply")


def outcomes(file: Path, args: list[str], how: str) -> dict[str, str]:
    """The outcome of every test of a file, in a process of its own."""
    here = Path(__file__).parent
    root = file.parent  # of its packages: where relative imports and the checkout's conftest.py start
    while (root / "__init__.py").exists():
        root = root.parent
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcomes.json"
        path = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {
            "SGL_KERNELS_PEER_OUTCOMES": str(found), "SGL_KERNELS_PEER_HOW": how, "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        plugin = "served" if how in ("name", "apply") else "installed"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin, "--tb=short"]
        command += ["--rootdir", str(root), "-c", os.devnull, "--disable-warnings", str(file), *args]
        subprocess.run(command, env=environment, cwd=root, check=False)
        return json.loads(found.read_text()) if found.exists() else {}


def main(argv: list[str]) -> int:
    """Compare and report."""
    if not argv:
        print(__doc__)
        return 2
    ways = argv[0].split(",")
    if set(ways) <= set(WAYS):
        argv = argv[1:]
    else:
        ways = ["torch"]
    file = Path(argv[0]).resolve()
    stock = outcomes(file, argv[1:], "")
    passed = [name for name, outcome in stock.items() if outcome == "passed"]
    if not passed:
        print(f"{file.name}: no test passes stock")
        return 1
    lost = 0
    for how in ways:
        served = outcomes(file, argv[1:], how)
        missing = [name for name in passed if served.get(name) != "passed"]
        for name in missing:
            print(f"lost ({how}):", name)
        print(
            f"{file.name}: {len(passed)} tests pass stock, {len(passed) - len(missing)} of them served ({how})"
        )
        lost += len(missing)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
