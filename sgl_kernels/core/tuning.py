"""Measured winners for one device: records, tables, merging and lookup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TuningRecord:
    """One measured winner."""

    op: str
    key: tuple[Any, ...]  # facts with sequence lengths rounded up to a power of two
    backend: str
    config: Mapping[str, Any] | None
    median_ms: float
    versions: tuple[tuple[str, str], ...] = ()  # a mismatch makes the record stale, not wrong


@dataclass(frozen=True, slots=True)
class TuningTable:
    """Measured winners for one device. A value: load it, merge it, use it as an override."""

    device_name: str = ""
    records: tuple[TuningRecord, ...] = ()

    def lookup(self, op: str, facts: Any) -> TuningRecord | None:
        """The record for a call, or None."""
        key = tuning_key(facts)
        return next((r for r in self.records if r.op == op and r.key == key), None)

    def __or__(self, other: TuningTable) -> TuningTable:
        """Both tables; where both know a key the right one wins. The devices must match."""
        if self.records and other.records and self.device_name != other.device_name:
            raise ValueError(f"tables of {self.device_name!r} and {other.device_name!r} cannot be merged")
        merged = {(r.op, r.key): r for r in (*self.records, *other.records)}
        return TuningTable(other.device_name or self.device_name, tuple(merged.values()))

    def dumps(self) -> str:
        """The table as JSON."""
        rows = [
            {
                "op": r.op,
                "key": list(r.key),
                "backend": r.backend,
                "config": r.config,
                "median_ms": r.median_ms,
                "versions": dict(r.versions),
            }
            for r in self.records
        ]
        return json.dumps({"device": self.device_name, "records": rows}, indent=1)

    @classmethod
    def loads(cls, text: str) -> TuningTable:
        """Read what `dumps` wrote. Raises ValueError when the text is not a table."""
        data = json.loads(text)
        try:
            records = tuple(
                TuningRecord(
                    r["op"],
                    tuple(_tupled(r["key"])),
                    r["backend"],
                    r["config"],
                    float(r["median_ms"]),
                    tuple(sorted(r["versions"].items())),
                )
                for r in data["records"]
            )
            return cls(str(data["device"]), records)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a tuning table: {error!r}") from error


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


def tuning_key(facts: Any) -> tuple[Any, ...]:
    """Facts as plain JSON values, integers above 64 rounded up to a power of two."""

    def plain(value: Any) -> Any:
        if isinstance(value, bool) or value is None or isinstance(value, str | float):
            return value
        if isinstance(value, int):
            return value if value <= 64 else 1 << (value - 1).bit_length()
        if isinstance(value, tuple):
            return tuple(plain(v) for v in value)
        return str(value)

    return tuple(plain(v) for v in facts)
