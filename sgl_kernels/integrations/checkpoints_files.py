"""Safetensors files of a checkpoint: found, their headers checked before anything is read, their tensors streamed.

Two readers give the same tensors: safetensors' memory map, and the Run:AI model streamer (concurrent reads) when
it is installed and SGLANG_USE_RUNAI_MODEL_STREAMER is true.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgl_kernels.core.packages import installed_version

INDEX_SUFFIX = ".safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
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


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds: entries by key, and the free-form metadata of its files."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    config: dict[str, object]  # quantization_config of config.json or hf_quant_config.json, {} if none

    def describe(self, key: str) -> str:
        """'blocks.0.weight in model-00001.safetensors'."""
        return f"{key!r} in {self.entries[key].file.name}"


def open_checkpoint(path: str | Path) -> Contents:
    """Read the headers of a file, an index or a folder; nothing else is read. Raises CheckpointError."""
    path = Path(path)
    files, listed = _files(path)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, extra = read_header(file)
        metadata.update(extra)
        for key, entry in found.items():
            if key in entries:
                raise CheckpointError(f"{key!r} is in {entries[key].file.name} and again in {file.name}")
            entries[key] = entry
    for key, file_name in listed.items():
        if key not in entries:
            raise CheckpointError(
                f"{key!r} is listed in the index for {file_name}, but that file does not have it"
            )
        if entries[key].file.name != file_name:
            raise CheckpointError(f"{key!r} is listed for {file_name}, but is in {entries[key].file.name}")
    return Contents(entries, metadata, _config(path if path.is_dir() else path.parent))


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        if len(indices) > 1:
            raise CheckpointError(
                f"{path} has several indices ({', '.join(p.name for p in indices)}): name one"
            )
        if not indices:
            files = sorted(path.glob("*.safetensors"))
            if not files:
                raise CheckpointError(f"{path} has no .safetensors file")
            return files, {}
        path = indices[0]
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.name.endswith(".json"):
        return [path], {}
    try:
        listed = {str(k): str(v) for k, v in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is not an index of shards: it has no usable weight_map"
        ) from error
    files = [path.parent / name for name in sorted(set(listed.values()))]
    absent = [f.name for f in files if not f.exists()]
    if absent:
        first = next(k for k, v in listed.items() if v == absent[0])
        raise CheckpointError(f"shard {absent[0]} of {path.name} is missing; it holds {first!r}, for example")
    return files, listed


def _config(folder: Path) -> dict[str, object]:
    for name, key in (("hf_quant_config.json", "quantization"), ("config.json", "quantization_config")):
        file = folder / name
        if file.exists():
            try:
                found = json.loads(file.read_text()).get(key)
            except (ValueError, AttributeError) as error:
                raise CheckpointError(f"{name} is not a JSON object") from error
            if isinstance(found, dict):
                return found
    return {}


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """(entries, metadata) of one file, checked against its size: a truncated file names the first key it lost."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file.name} is not a safetensors file, or is cut off inside its header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file.name} has a damaged header") from error
    metadata = header.pop("__metadata__", {})
    entries = {}
    for key, value in header.items():
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        if dtype not in DTYPES:
            raise CheckpointError(f"{key!r} in {file.name} has dtype {dtype}, which is not supported")
        if 8 + length + end > size:
            missing = 8 + length + end - size
            raise CheckpointError(
                f"{file.name} is truncated: {key!r} ends {missing} bytes beyond the end of the file"
            )
        if end - begin != DTYPES[dtype].itemsize * torch.Size(shape).numel():
            raise CheckpointError(
                f"{key!r} in {file.name} has {end - begin} bytes, which is not {dtype} {list(shape)}"
            )
        entries[key] = Entry(key, file, DTYPES[dtype], shape)
    return entries, metadata


def use_streamer() -> bool:
    """Whether the Run:AI streamer is wanted and installed."""
    from sgl_kernels.core.dispatch import current

    return (
        current().settings.runtime.use_runai_model_streamer
        and installed_version("runai-model-streamer") is not None
    )


def read_tensors(
    contents: Contents, keys: set[str], streamer: bool | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors under `keys`, file by file, in memory of their own. streamer None asks the settings."""
    by_file: dict[Path, set[str]] = {}
    for key in keys:
        by_file.setdefault(contents.entries[key].file, set()).add(key)
    read = _streamed if (use_streamer() if streamer is None else streamer) else _mapped
    for file in sorted(by_file):
        wanted = by_file[file]
        try:
            for key, tensor in read(file, wanted):
                wanted.discard(key)
                yield key, tensor
        except CheckpointError:
            raise
        except Exception as error:  # readers raise their own types; the caller needs the file
            raise CheckpointError(f"{file.name} cannot be read: {type(error).__name__}: {error}") from error
        if wanted:
            raise CheckpointError(f"{min(wanted)!r} was not delivered by the reader of {file.name}")


def _mapped(file: Path, keys: set[str]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as stream:
        for key in sorted(keys):
            yield key, stream.get_tensor(key).clone()


def _streamed(file: Path, keys: set[str]) -> Iterator[tuple[str, Tensor]]:
    from runai_model_streamer import SafetensorsStreamer

    wanted = frozenset(keys)
    with SafetensorsStreamer() as stream:
        stream.stream_file(str(file))
        for key, tensor in stream.get_tensors():
            if key in wanted:
                yield key, tensor.clone()  # the streamer reuses its buffer
