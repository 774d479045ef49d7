"""Safetensors files of a checkpoint: found, their headers checked before anything is read, their tensors streamed.

Two readers give the same tensors: safetensors' memory map, and the Run:AI model streamer (concurrent reads) when
it is installed and SGLANG_USE_RUNAI_MODEL_STREAMER is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.integrations.checkpoints_header import (
    CheckpointError,
    Entry,
    is_folder,
    is_text,
    is_there,
    kind,
    named,
    parse_object,
    read_bytes,
    read_header,
    regular_file,
    shown,
)

INDEX_SUFFIX = ".safetensors.index.json"
CONFIGS = (("hf_quant_config.json", "quantization"), ("config.json", "quantization_config"))


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds: entries by key, and the free-form metadata of its files."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    config: dict[str, Any]  # quantization_config of config.json or hf_quant_config.json, {} if none
    config_name: str = ""  # where that was found

    def describe(self, key: str) -> str:
        """'blocks.0.weight in model-00001.safetensors'."""
        return f"{shown(key)} in {self.entries[key].label}"


def open_checkpoint(path: str | Path) -> Contents:
    """Read the headers of a file, an index or a folder; nothing else is read. Raises CheckpointError.

    An index may name shards in sub-folders of its own folder ("part/x.safetensors", "./x.safetensors"). A name that
    leads out of the folder is refused before anything is opened; links that lie in the folder are followed.
    """
    path = Path(path)
    folder, files, listed = _files(path)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for label in files:
        found, extra = read_header(folder / label, label)
        metadata.update(extra)
        for key, entry in found.items():
            if key in entries:
                raise CheckpointError(f"{shown(key)} is in {entries[key].label} and again in {named(label)}")
            entries[key] = entry
    for key, label in listed.items():
        if key not in entries:
            raise CheckpointError(
                f"{shown(key)} is listed in the index for {named(label)}, but that file does not have it"
            )
        if entries[key].file != folder / label:
            raise CheckpointError(
                f"{shown(key)} is listed in the index for {named(label)}, but is in {entries[key].label}"
            )
    return Contents(entries, metadata, *_config(folder))


def _files(path: Path) -> tuple[Path, list[str], dict[str, str]]:
    """(folder, names of the files below it, the index's key -> file)."""
    if is_folder(path):
        try:
            names = sorted(p.name for p in path.iterdir())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be listed: {error.strerror}") from None
        indices = [n for n in names if n.endswith(INDEX_SUFFIX)]
        if len(indices) > 1:
            raise CheckpointError(f"{path} has several indices ({', '.join(indices)}): name one")
        if not indices:
            files = [n for n in names if n.endswith(".safetensors")]
            if not files:
                raise CheckpointError(f"{path} has no .safetensors file")
            return path, files, {}
        path = path / indices[0]
    regular_file(path, named(str(path)))
    if not path.name.endswith(".json"):
        return path.parent, [path.name], {}
    index = parse_object(read_bytes(path, path.name), path.name)
    found = index.get("weight_map")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} is not an index of shards: its weight_map is {kind(found)}")
    listed = {key: _label(key, name, path.name) for key, name in found.items()}
    for key, label in listed.items():
        if not is_there(path.parent / label):
            raise CheckpointError(
                f"shard {named(label)} of {path.name} is missing; it holds {shown(key)}, for example"
            )
    return path.parent, sorted(set(listed.values())), listed


def _label(key: str, name: Any, index: str) -> str:
    """The name of a shard as a path below the folder, or CheckpointError before anything is opened."""
    where = f"{index} lists {shown(key)} in {shown(name)}"
    if not isinstance(name, str) or not name.strip() or "\0" in name or not is_text(name):
        raise CheckpointError(f"{where}, expected the name of a file")
    for flavour in (PurePosixPath, PureWindowsPath):
        if flavour(name).is_absolute() or flavour(name).anchor or ".." in flavour(name).parts:
            raise CheckpointError(f"{where}, which is not inside the checkpoint's folder")
    label = str(PurePosixPath(name))
    if len(label) > 1024 or any(len(part.encode()) > 255 for part in PurePosixPath(label).parts):
        raise CheckpointError(f"{where}, which is too long for the name of a file")
    if not PurePosixPath(label).parts:
        raise CheckpointError(f"{where}, which is a folder")
    return label


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    for name, key in CONFIGS:
        file = folder / name
        if is_there(file):
            found = parse_object(read_bytes(file, name), name).get(key)
            if found is None:
                continue
            if not isinstance(found, dict):
                raise CheckpointError(f"{key} of {name} is {kind(found)}, expected an object")
            return found, name
    return {}, ""


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
    for key in sorted(keys):
        entry = contents.entries[key]
        if 0 in entry.shape:  # no bytes: nothing for a reader to do, and not every reader gives it
            yield key, torch.empty(entry.shape, dtype=entry.dtype)
        else:
            by_file.setdefault(entry.file, set()).add(key)
    read = _streamed if (use_streamer() if streamer is None else streamer) else _mapped
    for file in sorted(by_file):
        wanted = by_file[file]
        label = contents.entries[min(wanted)].label
        try:
            for key, tensor in read(file, set(wanted)):
                entry = contents.entries[key]
                if tensor.dtype is not entry.dtype or tuple(tensor.shape) != entry.shape:
                    raise CheckpointError(f"{contents.describe(key)} changed while it was read")
                wanted.discard(key)
                yield key, tensor
        except CheckpointError:
            raise
        except Exception as error:  # readers raise their own types; the caller needs the file
            raise CheckpointError(f"{label} cannot be read: {type(error).__name__}: {error}") from error
        if wanted:
            raise CheckpointError(f"{shown(min(wanted))} was not delivered by the reader of {label}")


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
