"""Measured winners for one device: records, tables, merging and lookup."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .log import warn_once
from .packages import installed_version


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


def slug(device_name: str) -> str:
    """A device's name as a folder name: 'NVIDIA H200' -> 'nvidia-h200'."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") or "unnamed"


def user_folder(cache_root: str, device_name: str) -> Path:
    """Where `sgl-kernels tune` writes, and selection looks, for a device: <cache root>/tuning/<device>."""
    return Path(cache_root).expanduser() / "tuning" / slug(device_name)


def load_tables(paths: tuple[str, ...], cache_root: str, device_name: str) -> TuningTable:
    """The tables for a device: those under the cache root, then `paths` (files or folders), which win.

    Tables of other devices and records made with other versions are left out, the latter with one warning.

    Raises ConfigError for a path that does not exist or a file that is not a table.
    """
    return _load_tables(paths, str(user_folder(cache_root, device_name)), device_name)


@functools.lru_cache(maxsize=64)
def _load_tables(paths: tuple[str, ...], own: str, device_name: str) -> TuningTable:
    table = TuningTable(device_name)
    for text, required in ((own, False), *((p, True) for p in paths)):
        path = Path(text).expanduser()
        if not path.exists():
            if required:
                raise ConfigError(f"SGL_KERNELS_TUNING names {text!r}, which does not exist")
            continue
        for file in sorted(path.glob("**/*.json")) if path.is_dir() else [path]:
            found = _read(file)
            if found.device_name == device_name:
                table = table | TuningTable(
                    device_name, tuple(r for r in found.records if _is_fresh(r, file))
                )
    return table


def _read(file: Path) -> TuningTable:
    try:
        return TuningTable.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"tuning table {file}: {error}; write it anew with sgl-kernels tune") from error


def _is_fresh(record: TuningRecord, file: Path) -> bool:
    stale = [n for n, v in record.versions if str(installed_version(n)) != v]
    if stale:
        warn_once(
            f"stale {file}",
            f"tuning table {file} was measured with another version of {', '.join(stale)}; not used",
        )
    return not stale


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
