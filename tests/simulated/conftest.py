"""A device gets its name once in a process, so these files run only where test_start.py starts them."""

from __future__ import annotations

import os

NAME = os.environ.get("SIMULATED_DEVICE", "")
collect_ignore = [f"test_{name}.py" for name in ("npu", "musa") if name != NAME]
