"""The JSON of a checkpoint: headers, indices and configurations, read so that whatever they hold is an error by name.

Everything here takes bytes from outside. A value of the wrong kind, a name given twice, nesting without end and bytes
that are no text raise CheckpointError with the file's name, and never Python's own error.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 64  # torch's own
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model, or is damaged. Names the key and the file."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint, before it is read."""

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    label: str  # the file's name below the checkpoint's folder


def shown(value: object) -> str:
    """A value from outside in a message: quoted, printable, and never long."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:60]}...{text[-20:]} ({len(text)} letters)"


def named(label: str) -> str:
    """A file's name in a message: as it is, unless that would be long or unprintable."""
    return label if label.isprintable() and len(label) <= 100 else shown(label)


def kind(value: object) -> str:
    """What JSON calls a value's type."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def is_text(name: str) -> bool:
    """Whether a name can be written at all: JSON may hold half of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_there(path: Path) -> bool:
    """Whether the folder has this name, be it a link to nothing; what cannot be told is, and then cannot be opened."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def is_folder(path: Path) -> bool:
    """Whether this is a folder, or a link to one."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def regular_file(path: Path, label: str) -> os.stat_result:
    """The status of a regular file, or CheckpointError that says what is there instead."""
    try:
        found = path.stat()
    except FileNotFoundError:
        what = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise CheckpointError(f"{label} {what}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{label} cannot be opened: {_why(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise CheckpointError(f"{label} is {what}, expected a file")
    return found


def read_bytes(path: Path, label: str) -> bytes:
    """A whole small file."""
    regular_file(path, label)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{label} cannot be read: {_why(error)}") from None


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object; `what` starts the message of what is none."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except _TwiceError as error:
        raise CheckpointError(f"{what} names {error} twice") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}"[:80]
        raise CheckpointError(f"{what} is not JSON in UTF-8: {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is {kind(value)}, expected a JSON object")
    return value


class _TwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _TwiceError(shown(name))
            seen.add(name)
    return found


def read_header(file: Path, label: str = "") -> tuple[dict[str, Entry], dict[str, str]]:
    """(entries, metadata) of one safetensors file, checked against its size: a truncated file names the key it lost."""
    label = named(label or file.name)
    size = regular_file(file, label).st_size
    try:
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{label} is not a safetensors file, or is cut off inside its header")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{label} cannot be read: {_why(error)}") from None
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{label} has a damaged header: it does not start with a brace")
    header = parse_object(raw, f"the header of {label}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"__metadata__ of {label} is {kind(metadata)}, expected an object of texts")
    entries, room = {}, size - 8 - length
    spans: list[tuple[int, int, str]] = []
    for key, value in header.items():
        dtype, shape, begin, end = _entry(key, value, label)
        if end > room:
            raise CheckpointError(
                f"{label} is truncated: {shown(key)} ends {end - room} bytes beyond the end of the file"
            )
        if end - begin != dtype.itemsize * math.prod(shape):
            raise CheckpointError(
                f"{shown(key)} in {label} has {end - begin} bytes, which is not {dtype} {shown(list(shape))}"
            )
        spans.append((begin, end, key))
        entries[key] = Entry(key, file, dtype, shape, label)
    _check_spans(spans, room, label)
    return entries, metadata


def _entry(key: str, value: Any, label: str) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    where = f"{shown(key)} in {label}"
    if not is_text(key):
        raise CheckpointError(f"{where} has a name that is not text")
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{where} is {kind(value)}, expected an object with dtype, shape and data_offsets"
        )
    for part in ("dtype", "shape", "data_offsets"):
        if part not in value:
            raise CheckpointError(f"{where} has no {part}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where} has dtype {shown(dtype)}, which is not supported")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape)
    ):
        raise CheckpointError(f"{where} has shape {shown(shape)}, expected a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise CheckpointError(f"{where} has data_offsets {shown(offsets)}, expected two whole numbers")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise CheckpointError(f"{where} has data_offsets {shown(offsets)}, expected 0 <= begin <= end")
    return DTYPES[dtype], tuple(shape), begin, end


def _check_spans(spans: list[tuple[int, int, str]], room: int, label: str) -> None:
    """Tensors follow each other without a gap and fill the file: the format's rule, which its own reader holds to."""
    at, before = 0, "the header"
    for begin, end, key in sorted(spans):
        if begin != at:
            what = "overlaps" if begin < at else f"leaves {begin - at} bytes after"
            raise CheckpointError(f"{shown(key)} in {label} {what} {before}")
        at, before = end, shown(key)
    if at != room:
        raise CheckpointError(f"{label} has {room - at} bytes after its last tensor, {before}")
