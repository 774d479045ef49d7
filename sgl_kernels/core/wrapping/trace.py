"""Logging at op boundaries: what is called, on what, and what came back, flushed before the kernel runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.log import warn_once
from sgl_kernels.core.op import Op, Run
from sgl_kernels.core.selection.verdict import Selection
from sgl_kernels.core.settings.sections import TraceSettings

from .device_state import is_capturing

NAMES, METADATA, STATISTICS, DUMPS = 1, 3, 5, 10
"""The levels at which something is added. A level between two of them acts as the lower one."""


def traced(run: Run, op: Op, selection: Selection, settings: TraceSettings) -> Run:
    """`run`, which logs each call before it starts and after it ends.

    The inputs are written out before the kernel runs, so that a crash leaves them behind. Nothing that goes
    wrong in here reaches the caller: a log or a dump that cannot be written is one warning.
    """
    name = f"{op.name}/{selection.chosen}"
    names = tuple(argument.name for argument in op.arguments)
    level = settings.level
    write(settings.dest, _stamp(f"bound {name}: {selection.why}") + _indent(str(selection)))

    def logged(*args: Any, **into: Any) -> Any:
        text = _stamp(f"call {name}")
        if level >= METADATA:
            text += _values(names, args, level)
        write(settings.dest, text)
        dump = _start_dump(op, selection, args, settings) if level >= DUMPS else None
        start = time.perf_counter()
        try:
            out = run(*args, **into)
        except BaseException as error:
            write(settings.dest, _stamp(f"raised {name}: {type(error).__name__}: {error}"))
            if dump is not None:
                dump.failed(error)
            raise
        if level >= METADATA:
            elapsed = (time.perf_counter() - start) * 1e3
            outs = out if isinstance(out, tuple) else (out,)
            labels = tuple(f"out{i}" for i in range(len(outs))) if len(outs) > 1 else ("out",)
            text = _stamp(f"returned {name} after {elapsed:.3f} ms on the host")
            write(settings.dest, text + _values(labels, outs, level))
        if dump is not None:
            dump.completed(out)
        return out

    return logged


def _start_dump(op: Op, selection: Selection, args: tuple[Any, ...], settings: TraceSettings) -> Any:
    from . import dump

    found = dump.start(op, selection, args, settings)
    if isinstance(found, str):
        write(settings.dest, _stamp(f"no dump: {found}"))
        return None
    if found is not None:
        write(settings.dest, _stamp(f"dump {found.folder}"))
    return found


def write(dest: str, text: str) -> None:
    """Write and flush `text` to stdout, stderr or the end of a file whose '%i' is this process's id.

    The file is opened for each message: it survives a fork, a rotation and a crash, and appending in one
    write keeps the messages of several threads and processes whole. Failure is one warning.
    """
    try:
        if dest in ("stdout", "stderr"):
            stream = sys.stdout if dest == "stdout" else sys.stderr
            stream.write(text)
            stream.flush()
            return
        path = Path(dest.replace("%i", str(os.getpid())))
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)
    except (OSError, ValueError, AttributeError) as error:  # stdout may be closed, or None without a console
        warn_once(
            f"trace to {dest}", f"the call log {dest!r} cannot be written ({error}); calls go on without it"
        )


def _stamp(text: str) -> str:
    now = datetime.now().isoformat(sep=" ", timespec="milliseconds")
    return f"[{now} {os.getpid()}:{threading.get_ident() % 100_000:05d}] {text}\n"


def _indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _values(names: tuple[str, ...], values: tuple[Any, ...], level: int) -> str:
    width = max(map(len, names), default=0)
    return "".join(
        f"    {name:<{width}}  {describe(value, level)}\n" for name, value in zip(names, values, strict=False)
    )


def describe(value: Any, level: int) -> str:
    """A value in one line: a tensor by its metadata and, from level 5, statistics; anything else as it is."""
    if not isinstance(value, Tensor):
        text = repr(value)
        return text if len(text) <= 200 else f"{text[:197]}..."
    try:
        text = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
        text += ", contiguous" if value.is_contiguous() else f", strides {value.stride()}"
        if value.requires_grad:
            text += ", requires grad"
    except Exception as error:  # tensor subclasses may refuse any of these
        return f"{type(value).__name__}, metadata unavailable: {type(error).__name__}"
    return f"{text}; {statistics(value)}" if level >= STATISTICS else text


@torch.no_grad()
def statistics(value: Tensor) -> str:
    """'min -3.1, max 2.9, mean 0.004, nan 0, inf 0'; min, max and mean are those of the finite elements.

    Waits for the device. During CUDA graph capture, and on tensors without data, it says so instead.
    """
    if value.device.type == "meta":
        return "no statistics: meta tensor"
    if is_capturing():
        return "no statistics: a CUDA graph is being captured"
    if value.numel() == 0:
        return "empty"
    try:
        if value.dtype is torch.bool:
            return f"{int(value.sum())} of {value.numel()} true"
        if value.itemsize == 1 and value.is_floating_point():
            value = value.float()  # float8 has hardly any op
        counts = ""
        if value.is_floating_point() or value.is_complex():
            value = value.abs() if value.is_complex() else value
            nan, inf = int(torch.isnan(value).sum()), int(torch.isinf(value).sum())
            counts = f", nan {nan}, inf {inf}"
            if nan or inf:
                value = value[torch.isfinite(value)]
            if value.numel() == 0:
                return "nothing finite" + counts
        low, high = (bound.item() for bound in torch.aminmax(value))
        mean = value.mean(dtype=torch.float64 if value.dtype is torch.float64 else torch.float32).item()
        return f"min {low:.6g}, max {high:.6g}, mean {mean:.6g}{counts}"
    except Exception as error:  # a broken device or no memory must not hide the call that is to be logged
        return f"no statistics: {type(error).__name__}"
