"""These tests need TRITON_INTERPRET=1 before Triton is imported; test_triton_interpreted.py starts them so."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
