"""Dumps: a call's arguments and results on disk, written so that a crash leaves the arguments behind."""

from __future__ import annotations

import fnmatch
import json
import os
import platform
import shutil
import sys
import threading
import traceback
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.log import warn_once
from sgl_kernels.core.op import Op
from sgl_kernels.core.selection.verdict import Selection
from sgl_kernels.core.settings.sections import TraceSettings

from .device_state import is_capturing

FORMAT = 1
CALL, INPUTS, OUTPUTS = "call.json", "inputs.safetensors", "outputs.safetensors"
SAVED, COMPLETED, RAISED = "inputs saved", "completed", "raised"
"""Values of `status` in call.json. 'inputs saved' at the end of a process means: it died in the kernel."""


class _Budget:
    """What this process has dumped, by dump directory."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[int, int]] = {}
        self.lock = threading.Lock()

    def take(self, root: str, size: int, settings: TraceSettings) -> str:
        """Account for one more call; the reason if it does not fit."""
        with self.lock:
            calls, total = self.spent.get(root, (0, 0))
            if calls + 1 > settings.max_dump_calls:
                return f"trace.max_dump_calls is {settings.max_dump_calls}, and all of them are taken"
            if total + size > settings.max_dump_bytes:
                return f"{size} bytes do not fit into trace.max_dump_bytes ({settings.max_dump_bytes}, {total} taken)"
            self.spent[root] = (calls + 1, total + size)
            return ""

    def add(self, root: str, size: int) -> None:
        with self.lock:
            calls, total = self.spent.get(root, (0, 0))
            self.spent[root] = (calls, total + size)


budget = _Budget()


def wanted(op: str, backend: str, settings: TraceSettings) -> bool:
    """Whether include and exclude let this call be dumped; both look at 'op' and at 'op/backend'."""

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (op, f"{op}/{backend}"))

    return (not settings.include or matches(settings.include)) and not matches(settings.exclude)


class Dump:
    """One call's folder while the call runs."""

    def __init__(self, folder: Path, root: str, record: dict[str, Any]) -> None:
        self.folder = folder
        self.root = root
        self.record = record

    def completed(self, out: Any) -> None:
        """Add the results. Failure is one warning."""
        outs = out if isinstance(out, tuple) else (out,)
        try:
            tensors = {f"out{i}": t for i, t in enumerate(outs)}
            save_tensors(self.folder / OUTPUTS, tensors)
            self.record["outputs"] = [_tensor_facts(name, t) for name, t in tensors.items()]
            self.record["status"] = COMPLETED
            budget.add(self.root, sum(map(_size, outs)))
            self.save()
        except Exception as error:
            _warn(self.root, error)

    def failed(self, error: BaseException) -> None:
        """Note the exception. Failure is one warning."""
        self.record["status"] = RAISED
        self.record["exception"] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exception(error),
        }
        try:
            self.save()
        except Exception as problem:
            _warn(self.root, problem)

    def save(self) -> None:
        """Write call.json whole or not at all."""
        temporary = self.folder / f".{CALL}"
        temporary.write_text(json.dumps(self.record, indent=1), encoding="utf-8")
        os.replace(temporary, self.folder / CALL)


def start(op: Op, selection: Selection, args: tuple[Any, ...], settings: TraceSettings) -> Dump | str | None:
    """Write the arguments of a call: its dump, why there is none, or None if nobody wanted one."""
    if not wanted(op.name, selection.chosen, settings):
        return None
    tensors = [a for a in args if isinstance(a, Tensor)]
    if any(t.device.type == "meta" for t in tensors):
        return "meta tensors hold nothing"
    if is_capturing():
        return "a CUDA graph is being captured"
    root = settings.dump_dir.replace("%i", str(os.getpid()))
    full = budget.take(root, sum(map(_size, tensors)), settings)
    if full:
        warn_once(f"dump budget {root}", f"no more dumps in {root}: {full}")
        return full
    folder: Path | None = None
    try:
        folder = _new_folder(root, f"{op.name}_{selection.chosen}")
        named = dict(zip((argument.name for argument in op.arguments), args, strict=True))
        record = _record(op, selection, named)
        save_tensors(
            folder / INPUTS, {name: value for name, value in named.items() if isinstance(value, Tensor)}
        )
        dump = Dump(folder, root, record)
        dump.save()
        return dump
    except Exception as error:  # a full disk, a device in a bad state: the call itself must go on
        _warn(root, error)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # half a dump would only mislead
        return f"{type(error).__name__}: {error}"


def _warn(root: str, error: Exception) -> None:
    text = f"{type(error).__name__}: {error}"
    warn_once(
        f"dump {root} {type(error).__name__}", f"a dump in {root} failed ({text}); calls go on without it"
    )


def _new_folder(root: str, name: str) -> Path:
    now = datetime.now().strftime("%Y%m%d-%H%M%S.%f")[:-3]
    os.makedirs(root, exist_ok=True)
    for number in range(10_000):
        folder = Path(root) / f"{now}_{os.getpid()}_{name}_{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another thread, in the same millisecond
            continue
    raise FileExistsError(f"{root} has 10000 dumps of {name} for one millisecond")


def _record(op: Op, selection: Selection, named: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "status": SAVED,
        "op": op.name,
        "schema": op.schema,
        "backend": selection.chosen,
        "selection": selection.to_dict(),
        "table": str(selection).splitlines(),
        "arguments": [
            _tensor_facts(name, value)
            if isinstance(value, Tensor)
            else {"name": name, "value": _plain(value)}
            for name, value in named.items()
        ],
        "grad": torch.is_grad_enabled(),
        "versions": {
            "sgl_kernels": getattr(sys.modules["sgl_kernels"], "__version__", ""),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": sys.argv,
    }


def _tensor_facts(name: str, value: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "strides": list(value.stride()),
        "device": str(value.device),
        "requires_grad": value.requires_grad,
    }


def _plain(value: Any) -> Any:
    """A plain argument for JSON, which has no infinities of its own that every reader takes."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an argument of type {type(value).__name__} cannot be dumped")


def _size(value: Any) -> int:
    return value.numel() * value.itemsize if isinstance(value, Tensor) else 0


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Copies on the CPU, contiguous and apart: safetensors refuses tensors that share memory."""
    from safetensors.torch import save_file

    with torch.no_grad():
        copies = {
            name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).contiguous()
            for name, t in tensors.items()
        }
    save_file(copies, str(path))
