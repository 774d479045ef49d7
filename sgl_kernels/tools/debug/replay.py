"""Run a dumped call again and compare it with what was stored and with the reference."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.wrapping.dump import CALL, COMPLETED, FORMAT, INPUTS, OUTPUTS


@dataclass(frozen=True, slots=True)
class Stored:
    """A dump as it lies on disk, its arguments in schema order and with the strides they had."""

    folder: str
    op: str
    backend: str
    status: str
    args: tuple[Any, ...]
    outputs: tuple[Tensor, ...]  # empty unless the call completed
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far one output is from another, over the elements that are finite in both."""

    what: str  # "out0, replay against stored"
    max_abs: float
    relative_l2: float
    equal: bool  # same dtype, every value the same, NaN equal to NaN
    nonfinite_differ: int  # elements finite in one and not in the other, or unlike infinities

    def __str__(self) -> str:
        if self.equal:
            return f"{self.what}: equal"
        text = f"{self.what}: max abs {self.max_abs:.3e}, relative L2 {self.relative_l2:.3e}"
        return (
            f"{text}, {self.nonfinite_differ} non-finite elements differ" if self.nonfinite_differ else text
        )


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of a replay."""

    folder: str
    op: str
    recorded_backend: str
    recorded_status: str
    backend: str
    device: str
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        fields = ("folder", "op", "recorded_backend", "recorded_status", "backend", "device")
        found: dict[str, Any] = {name: getattr(self, name) for name in fields}
        found["comparisons"] = [
            {name: getattr(c, name) for name in Comparison.__dataclass_fields__} for c in self.comparisons
        ]
        return found

    def __str__(self) -> str:
        head = f"{self.op}: recorded on {self.recorded_backend} ({self.recorded_status}), "
        head += f"replayed on {self.backend} ({self.device})"
        return "\n".join([head, *(f"  {c}" for c in self.comparisons)])


def load_dump(folder: str) -> Stored:
    """Read a dump. Raises ConfigError when the folder is not one, or lacks what this release needs."""
    from safetensors.torch import load_file

    path = Path(folder)
    try:
        record = json.loads((path / CALL).read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ConfigError(
                f"{folder}: dump format is {record.get('format')!r}, this release reads {FORMAT}"
            )
        tensors = load_file(str(path / INPUTS))
        args = tuple(
            restore(tensors[a["name"]], a["strides"]).requires_grad_(a["requires_grad"])
            if "dtype" in a
            else _value(a["value"])
            for a in record["arguments"]
        )
        done = record["status"] == COMPLETED
        stored = load_file(str(path / OUTPUTS)) if done else {}
        outputs = tuple(stored[o["name"]] for o in record.get("outputs", ())) if done else ()
        return Stored(folder, record["op"], record["backend"], record["status"], args, outputs, record)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} is not a dump: {Path(str(error.filename or error)).name} is missing; a dump is a folder "
            f"with {CALL} and {INPUTS}, below SGLANG_KERNEL_API_DUMP_DIR"
        ) from None
    except Exception as error:  # JSON, safetensors and missing keys all mean the same here
        raise ConfigError(f"{folder}: the dump cannot be read: {type(error).__name__}: {error}") from None


def restore(value: Tensor, strides: list[int]) -> Tensor:
    """`value` with the given strides, if they can be had; dimensions of stride 0 are expanded again."""
    if list(value.stride()) == strides or value.numel() == 0:
        return value
    sizes = [1 if stride == 0 else size for size, stride in zip(value.shape, strides, strict=True)]
    reach = 0  # of the dimensions so far, from the smallest stride up
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, sizes, strict=True) if size > 1
    ):
        if stride <= reach:
            return value  # elements share memory in another way than by expansion
        reach += stride * (size - 1)
    laid = torch.empty_strided(sizes, [stride or 1 for stride in strides], dtype=value.dtype)
    laid.copy_(value[tuple(slice(0, size) for size in sizes)])
    return laid.expand(value.shape)


def _value(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value


def replay(
    dump: str, *, backend: str | None = None, device: str | None = None, reference: bool = True
) -> ReplayReport:
    """Run the call of a dump again and say how far the result is from the stored one and the reference.

    backend    name, by default the one that was recorded; it runs or UnsupportedError says why not
    device     by default the recorded one if this machine has it, else the CPU
    reference  also run the op's reference in float64 on the CPU, and judge both results by it

    Raises ConfigError when `dump` is not a dump.
    """
    from sgl_kernels.core.dispatch import Dispatcher, current
    from sgl_kernels.core.registry import registry

    stored = load_dump(dump)
    if stored.op not in registry.ops():
        raise ConfigError(f"{dump}: the dump is of {stored.op!r}, which is no op of this release")
    op = registry.op(stored.op)
    target = _device(device, stored)
    args = tuple(_move(a, target) for a in stored.args)
    dispatcher = Dispatcher(current().settings.override(trace_level=0), source=registry)
    name = backend or stored.backend
    with torch.set_grad_enabled(bool(stored.record.get("grad"))):
        run = dispatcher.bind(op, ("replay",), name, args)
        out = run(*args)
    outs = out if isinstance(out, tuple) else (out,)
    results = [o.detach().cpu() for o in outs]
    chosen = next(iter(dispatcher.selections.values())).chosen
    pairs = [(f"out{i}, replay against stored", *pair) for i, pair in enumerate(zip(results, stored.outputs))]  # noqa: B905
    if reference:
        with torch.no_grad():
            exact = op.reference(*(_double(a) for a in stored.args))
        exacts = exact if isinstance(exact, tuple) else (exact,)
        for i, wanted in enumerate(exacts):
            pairs.append((f"out{i}, replay against float64 reference", results[i], wanted))
            if stored.outputs:
                pairs.append((f"out{i}, stored against float64 reference", stored.outputs[i], wanted))
    comparisons = tuple(compare(*pair) for pair in pairs)
    return ReplayReport(dump, stored.op, stored.backend, stored.status, chosen, str(target), comparisons)


def _device(name: str | None, stored: Stored) -> torch.device:
    from sgl_kernels.core.device import parse_device, platform_is_present, torch_device

    if name is not None:
        platform = parse_device(name).platform
        if not platform_is_present(platform):
            raise ConfigError(f"device is {name!r}, which this machine does not have; 'cpu' always works")
        return torch_device(platform)
    wanted = next((torch.device(a["device"]) for a in stored.record["arguments"] if "device" in a), None)
    if wanted is None or not (wanted.type == "cpu" or platform_is_present(wanted.type)):
        return torch.device("cpu")
    return torch.device(wanted.type)  # the index need not exist here


def _move(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double()
    return value


def compare(what: str, left: Tensor, right: Tensor) -> Comparison:
    """The distance of two tensors of one shape, in float64."""
    if left.shape != right.shape:
        return Comparison(
            f"{what}: shapes {tuple(left.shape)} and {tuple(right.shape)}", math.inf, math.inf, False, 0
        )
    a, b = left.double(), right.double()
    finite = a.isfinite() & b.isfinite()
    same = finite | (a == b) | (a.isnan() & b.isnan())
    differ = int((~same).sum())
    difference = torch.where(finite, a - b, 0.0)
    scale = torch.where(finite, b, 0.0).norm().item()
    size = difference.norm().item()
    relative = size / scale if scale > 0 else (0.0 if size == 0 else math.inf)
    largest = difference.abs().max().item() if difference.numel() else 0.0
    equal = left.dtype == right.dtype and largest == 0 and differ == 0
    return Comparison(what, largest, relative, equal, differ)
