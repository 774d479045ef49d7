"""What a test has shown about an implementation, put down where SGL_KERNELS_EVIDENCE says: one line of JSON each.

`make support-evidence` runs the tests so and writes the lines into
docs/support-matrix.json: the proof behind each cell of the matrix is a test that ran, and nobody types it in.
"""

from __future__ import annotations

import json
import os

import torch


def record(op: str, backend: str, proof: str, cases: int) -> None:
    """That `cases` cases of (op, backend) were right just now, in the test that is running."""
    path, test = os.environ.get("SGL_KERNELS_EVIDENCE"), os.environ.get("PYTEST_CURRENT_TEST", "")
    if not path or not test or not cases:
        return
    name = test.split(" ")[0].split("[")[0]
    row = {"op": op, "backend": backend, "proof": proof, "test": name, "cases": cases,
           "torch": torch.__version__.partition("+")[0]}  # fmt: skip
    with open(path, "a") as file:  # short lines, appended whole: several processes may write
        file.write(json.dumps(row) + "\n")
