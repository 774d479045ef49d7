"""The kinds of device, by name."""

from __future__ import annotations

from typing import Literal, get_args

Platform = Literal["cuda", "rocm", "xpu", "npu", "musa", "mps", "cpu"]
PLATFORMS: tuple[str, ...] = get_args(Platform)
