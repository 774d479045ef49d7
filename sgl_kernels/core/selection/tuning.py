"""Measured winners for one device: records, tables, merging and lookup."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.log import warn_once

from .packages import installed_version

MAX_BYTES = 64 << 20  # of one table; a record is 300 bytes


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
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("not a tuning table: nested without end") from None
        if not isinstance(data, dict) or not isinstance(data.get("records"), list):
            raise ValueError("not a tuning table: expected a mapping with 'device' and a list of 'records'")
        if not isinstance(data.get("device"), str):
            raise ValueError(f"not a tuning table: device is {data.get('device')!r}, expected a name")
        return cls(data["device"], tuple(_record(i, r) for i, r in enumerate(data["records"])))


def slug(device_name: str) -> str:
    """A device's name as a folder name: 'NVIDIA H200' -> 'nvidia-h200'."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-") or "unnamed"


def user_folder(cache_root: str, device_name: str) -> Path:
    """Where selection looks for a device without being told: <cache root>/tuning/<device>."""
    return Path(cache_root).expanduser() / "tuning" / slug(device_name)


def load_tables(paths: tuple[str, ...], cache_root: str, device_name: str) -> TuningTable:
    """The tables for a device: those under the cache root, then `paths` (files or folders), which win.

    Tables of other devices and records made with other versions are left out, the latter with one warning. So is a
    damaged file under the cache root, which holds nothing that may not be deleted.

    Raises ConfigError for one of `paths` that does not exist, or holds a file that is not a table.
    """
    return _load_tables(paths, str(user_folder(cache_root, device_name)), device_name)


@functools.lru_cache(maxsize=64)
def _load_tables(paths: tuple[str, ...], own: str, device_name: str) -> TuningTable:
    table = TuningTable(device_name)
    for text, required in ((own, False), *((p, True) for p in paths)):
        path = Path(text).expanduser()
        if not required and not path.exists():
            continue
        for file in _files(path):
            try:
                found = _read(file)
            except ConfigError as error:
                if required:
                    raise
                warn_once(f"damaged {file}", f"{error}; it is passed over")
                continue
            if found.device_name == device_name:
                table = table | TuningTable(
                    device_name, tuple(r for r in found.records if _is_fresh(r, file))
                )
    return table


def check_tables(paths: tuple[str, ...], subject: str = "SGL_KERNELS_TUNING") -> None:
    """Read every table that a setting names, whatever device it is of.

    Raises ConfigError for the first path that does not exist or file that is not a table: naming `subject`, the
    file, what is wrong with it and what to do. Settings are loaded once, so no call meets this later.
    """
    for text in paths:
        try:
            for file in _files(Path(text).expanduser()):
                _read(file)
        except ConfigError as error:
            raise ConfigError(
                f"{subject} names {text!r}: {error}. Name a file or folder of tables, or take it out of {subject}"
            ) from error


def _files(path: Path) -> list[Path]:
    """The tables that a path stands for."""
    try:
        if path.is_dir():
            return sorted(p for p in path.glob("**/*.json") if p.is_file())
        if path.exists():
            return [path]
    except OSError as error:
        raise ConfigError(f"tuning table {path}: {error.strerror}") from error
    raise ConfigError(f"tuning table {path} does not exist")


def _read(file: Path) -> TuningTable:
    try:
        if not file.is_file():
            raise ConfigError(f"tuning table {file} is no ordinary file")
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"tuning table {file} is larger than {MAX_BYTES} bytes; no table is")
        return TuningTable.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"tuning table {file}: {error}") from error


def _record(index: int, row: Any) -> TuningRecord:
    """One row of a table. Raises ValueError that names the row and the field."""

    def field(name: str, kinds: Any, what: str) -> Any:
        value = row.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"not a tuning table: records[{index}].{name} is {value!r:.80}, expected {what}")
        return value

    if not isinstance(row, dict):
        raise ValueError(f"not a tuning table: records[{index}] is {row!r:.80}, expected a mapping")
    versions = field("versions", dict, "a mapping from package to version")
    key = _tupled(field("key", list, "a list of facts"))
    median = float(field("median_ms", (int, float), "a number"))
    try:
        hash(key)
    except TypeError:
        raise ValueError(
            f"not a tuning table: records[{index}].key holds a mapping, expected facts"
        ) from None
    if not math.isfinite(median):
        raise ValueError(f"not a tuning table: records[{index}].median_ms is {median}, expected a time")
    return TuningRecord(
        field("op", str, "a name"),
        key,
        field("backend", str, "a name"),
        field("config", (dict, type(None)), "a mapping or null"),
        median,
        tuple(sorted((str(name), str(version)) for name, version in versions.items())),
    )


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
