"""A pytest plugin: install("torch") where the environment says so, before tests are collected; outcomes to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import sgl_kernels

_outcomes: dict[str, str] = {}

if os.environ.get("SGL_KERNELS_PEER_HOW") == "torch":
    sgl_kernels.install("torch")


def pytest_runtest_logreport(report):
    """Keep the worst outcome of a test's phases."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish():
    """Write what was seen."""
    Path(os.environ["SGL_KERNELS_PEER_OUTCOMES"]).write_text(json.dumps(_outcomes))
