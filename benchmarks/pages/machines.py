"""docs/machines.md: what runs on machines that were reviewed against their vendors' documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from sgl_kernels.core.device import Device, parse_device
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.verdict import Reason, Selection
from sgl_kernels.core.settings import Settings
from sgl_kernels.tools.page.html import Table, markdown_table

PATH = Path(__file__).resolve().parents[2] / "sgl_kernels" / "data" / "machines.json"
BF16 = torch.bfloat16


def _meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(
    dim: int = 128, dtype: torch.dtype = BF16, mask: bool = False, causal: bool = False
) -> tuple[Any, ...]:
    q = _meta(1, 4608, 24, dim, dtype=dtype)
    return (q, q, q, _meta(1, 24, 4608, 4608, dtype=dtype) if mask else None, causal)


def _qk_norm_rope() -> tuple[Any, ...]:
    q, w, table = _meta(1, 4608, 24, 128), _meta(128), _meta(4608, 64, dtype=torch.float32)
    return (q, q, w, w, table, table)


def _nvfp4_linear(rows: int) -> Callable[[], tuple[Any, ...]]:
    def make() -> tuple[Any, ...]:
        scale = _meta(3072, 192, dtype=torch.float8_e4m3fn)
        x, weight = _meta(rows, 3072), _meta(3072, 1536, dtype=torch.uint8)
        total = _meta(dtype=torch.float32)
        return (x, weight, scale, total, None, "nvfp4", None, "nvfp4", "swizzled_128x4", 3072)

    return make


QUESTIONS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "attention, bf16, D=128": ("attention", _attention),
    "attention, causal": ("attention", lambda: _attention(causal=True)),
    "attention, float mask": ("attention", lambda: _attention(mask=True)),
    "attention, D=256": ("attention", lambda: _attention(256)),
    "attention, float32": ("attention", lambda: _attention(dtype=torch.float32)),
    "rms_norm 4608x3072": ("rms_norm", lambda: (_meta(4608, 3072), _meta(3072))),
    "qk_norm_rope": ("qk_norm_rope", _qk_norm_rope),
    "nvfp4_linear, W4A4, 4096 rows": ("nvfp4_linear", _nvfp4_linear(4096)),
}
"""FLUX.1 at 1024 x 1024: 4608 tokens, 24 heads."""


def machines() -> list[dict[str, Any]]:
    """The machines, with the packages pretended to be installed, the evidence and its links."""
    found: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


def decide(machine: dict[str, Any], question: str) -> Selection:
    """What would run there. Loads nothing, and asks nothing of the machine this runs on."""
    name, make = QUESTIONS[question]
    op = registry.op(name)
    packages = machine["packages"]

    def version_of(package: str) -> Version | None:
        return Version(packages[package]) if package in packages else None

    where = parse_device(machine["device"])
    device = Device(where.platform, where.arch, where.capability, machine["product"])
    return Dispatcher(Settings()).decide(op, None, op.facts(*op.canonical(*make())), device, version_of)


def render() -> str:
    """One section for each machine: the decisions as a table, and the line of evidence."""
    parts = []
    for machine in machines():
        links = ", ".join(f"[{i}]({link})" for i, link in enumerate(machine["links"], 1))
        packages = ", ".join(f"`{name}` {version}" for name, version in machine["packages"].items())
        parts += [
            f"## {machine['name']} (`{machine['device']}`)",
            f"Pretended to be installed: {packages}.",
            markdown_table(_table(machine)),
            f"Evidence: {machine['evidence']} ({links}).",
        ]
    return "\n\n".join(parts)


def _table(machine: dict[str, Any]) -> Table:
    rows = []
    for question in QUESTIONS:
        selection = decide(machine, question)
        others = [
            c.backend for c in selection.candidates if c.rejected is None and c.backend != selection.chosen
        ]
        why: dict[str, list[str]] = {}
        for c in selection.candidates:
            if c.rejected is not None and c.rejected.reason not in (Reason.PLATFORM, Reason.PACKAGE):
                why.setdefault(c.rejected.detail, []).append(f"`{c.backend}`")
        away = [f"{', '.join(names)}: {detail}" for detail, names in why.items()]
        could = ", ".join(f"`{name}`" for name in others)
        rows.append((question, f"`{selection.chosen}`", could, "; ".join(away)))
    return Table("", ("call", "runs", "could", "turned away"), rows)
