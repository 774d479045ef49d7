"""What actually ran: calls, time and reason for each op, backend and shape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.op import Op
from sgl_kernels.core.selection.verdict import Selection


@dataclass(slots=True)
class Entry:
    """One line of a report."""

    op: str
    backend: str
    why: str
    shapes: str
    dtype: str
    device: str
    calls: int = 0
    seconds: float = 0.0  # host time; on an accelerator, launch time unless the recorder synchronises
    selection: Selection | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data."""
        return {
            "op": self.op,
            "backend": self.backend,
            "why": self.why,
            "shapes": self.shapes,
            "dtype": self.dtype,
            "device": self.device,
            "calls": self.calls,
            "ms": round(self.seconds * 1e3, 4),
            "selection": self.selection.to_dict() if self.selection else None,
        }


class Recorder:
    """Counts and times calls. Composed in only while recording, so a recording costs nothing when off."""

    def __init__(self, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        self.entries: dict[tuple[Any, ...], Entry] = {}
        self._lock = threading.Lock()

    def wrap(self, run: Callable[..., Any], op: Op, selection: Selection) -> Callable[..., Any]:
        """`run`, counted and timed."""

        def recorded(*args: Any, **into: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(*args, **into)
            finally:
                if self.synchronize and args[0].device.type not in ("cpu", "meta"):
                    torch.get_device_module(args[0].device.type).synchronize()
                self._count(op, selection, args, time.perf_counter() - start)

        return recorded

    def _count(self, op: Op, selection: Selection, args: tuple[Any, ...], seconds: float) -> None:
        shapes = " ".join("x".join(map(str, a.shape)) or "scalar" for a in args if isinstance(a, Tensor))
        key = (op.name, selection.chosen, selection.why, shapes, args[0].dtype)
        with self._lock:
            entry = self.entries.get(key)
            if entry is None:
                dtype = str(args[0].dtype).removeprefix("torch.")
                entry = Entry(
                    op.name,
                    selection.chosen,
                    selection.why,
                    shapes,
                    dtype,
                    str(args[0].device),
                    selection=selection,
                )
                self.entries[key] = entry
            entry.calls += 1
            entry.seconds += seconds

    def report(self) -> Report:
        """What has run so far."""
        with self._lock:
            return Report(tuple(sorted(self.entries.values(), key=lambda e: (e.op, -e.seconds))))


@dataclass(frozen=True, slots=True)
class Report:
    """What ran. Prints as a table; `to_list` is plain data."""

    entries: tuple[Entry, ...]

    def to_list(self) -> list[dict[str, Any]]:
        """The entries as plain data for JSON."""
        return [e.to_dict() for e in self.entries]

    def __str__(self) -> str:
        if not self.entries:
            return "nothing was recorded: call inside `with sgl_kernels.record():`"
        rows = [("op", "backend", "calls", "ms", "dtype", "shapes", "why")]
        rows += [
            (
                e.op,
                e.backend,
                str(e.calls),
                f"{e.seconds * 1e3:.2f}" if e.calls else "-",
                e.dtype,
                e.shapes,
                e.why,
            )
            for e in self.entries
        ]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
