"""Contracts: an adapter runs against a strict fake that has its vendor's real signature and exact semantics.

The fake module is put into sys.modules, the adapter's `load` imports it as it would the vendor, and every case of the
op that the adapter accepts must give the reference's answer. A swapped argument, a wrong layout, a missed alignment
or a base-2 lse fails.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Implementation
from tests import evidence

TOLERANCE = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def install(monkeypatch: Any, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Put fake modules into sys.modules, parents included, for the length of a test."""
    for name, members in modules.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            dotted = ".".join(parts[:i])
            if i == len(parts) or dotted not in modules:
                module = sys.modules.get(dotted)
                if module is None or not getattr(module, "__is_fake__", False):
                    module = types.ModuleType(dotted)
                    module.__is_fake__ = True
                    module.__path__ = []
                    monkeypatch.setitem(sys.modules, dotted, module)
            if i > 1:
                setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], sys.modules[dotted])
        for member, value in members.items():
            setattr(sys.modules[name], member, value)


def implementation(op: str, backend: str) -> Implementation:
    """The declared implementation of (op, backend)."""
    return next(i for i in registry.implementations(op) if i.backend == backend)


def accepted_cases(
    declared: Implementation, device: str = "cpu"
) -> list[tuple[str, torch.dtype, tuple[Any, ...]]]:
    """Every test case (and dtype) that the adapter does not turn down for the shape of the call."""
    op = registry.op(declared.op)
    rows = []
    for case in op.cases():
        if "test" not in case.tags:
            continue
        for dtype in case.dtypes:
            if declared.requires.dtypes and dtype not in declared.requires.dtypes:
                continue
            args = op.canonical(*case.make(torch.device(device), dtype, seed=11))
            if declared.rejects is None or declared.rejects(op.facts(*args)) is None:
                rows.append((case.name, dtype, args))
    return rows


def check(
    op: str, backend: str, *, at_least: int, run: Callable[..., Any] | None = None, tolerance: float = 1.0,
    proof: str = "contract",
) -> None:  # fmt: skip
    """Every accepted case of (op, backend) equals the reference; `at_least` of them exist, so none went missing."""
    declared = implementation(op, backend)
    call = run or declared.load(None)
    rows = accepted_cases(declared)
    assert len(rows) >= at_least, f"{op}/{backend} accepts {len(rows)} cases: {[r[0] for r in rows]}"
    for name, dtype, args in rows:
        before = [a.clone() if isinstance(a, Tensor) else a for a in args]
        got, want = call(*args), registry.op(op).reference(*args)
        limit = TOLERANCE[dtype] * tolerance
        for g, w in zip(_outs(got), _outs(want), strict=True):
            assert (g.shape, g.dtype) == (w.shape, w.dtype), (
                f"{op}/{backend}/{name}: {g.dtype} {list(g.shape)}"
            )
            torch.testing.assert_close(
                g.float(), w.float(), rtol=limit, atol=limit, msg=lambda m, n=name: f"{op}/{backend}/{n}: {m}"
            )
        for old, new in zip(before, args, strict=True):
            if isinstance(old, Tensor):
                assert torch.equal(_comparable(old), _comparable(new)), (
                    f"{op}/{backend}/{name}: an input was changed"
                )
    evidence.record(op, backend, proof, len(rows))


def _outs(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _comparable(t: Tensor) -> Tensor:
    """Bytes of a float8, which torch cannot compare; numbers with NaN made equal of everything else."""
    return t.view(torch.uint8) if t.is_floating_point() and t.element_size() == 1 else t.nan_to_num()
