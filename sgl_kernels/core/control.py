"""The user's words: configure, use, record, report, explain, warmup. What they steer is in `dispatch`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .device import Device, parse_device, probe
from .dispatch import Dispatcher, activate, current, set_default
from .op import Case
from .registry import registry
from .selection.packages import VersionOf, installed_version
from .selection.policy import OpPolicy, Scope
from .selection.tuning import TuningTable
from .selection.verdict import Selection
from .wrapping.autocast import autocast_dtype, cast_arguments
from .wrapping.record import Entry, Recorder, Report

if TYPE_CHECKING:
    from .settings import Settings


def configure(settings: Settings | None = None) -> None:
    """Set the process default. Call once, at start-up; None reads environment and files anew."""
    from .settings import load_settings

    set_default(Dispatcher(settings if settings is not None else load_settings()))


@contextmanager
def use(
    *,
    backend: str | None = None,
    strict: bool | None = None,
    allow_lossy: bool | None = None,
    trace: int | None = None,
    check: bool | None = None,
    role: str | None = None,
    layer: str | None = None,
    tuning: TuningTable | None = None,
    **per_op: str | OpPolicy,
) -> Iterator[Dispatcher]:
    """Override the choice inside a `with` block, for this thread or asyncio task.

    backend      preference for every op: a name or an ordered comma list
    strict       outside the preference nothing may run
    allow_lossy  quantised and sparse backends may be chosen
    role, layer  where the calls come from, for the rules of the config file
    per_op       preference for one op: use(attention="fa3", rms_norm="triton")

    Overrides nest; the innermost wins. A new thread starts without the override of its parent: use
    asyncio.to_thread, or run it in contextvars.copy_context().

    Raises ConfigError for a backend or op name that does not exist.
    """
    parent = current()
    known = parent.registry.backends()
    settings = parent.settings.override(
        backend=backend,
        strict=strict,
        allow_lossy=allow_lossy,
        trace_level=trace,
        check=check,
        per_op=per_op,
        known_backends=known,
        known_ops=tuple(parent.registry.ops()),
        origin="use(...)",
    )
    scope = parent.scope
    if role is not None or layer is not None:
        scope = Scope(scope.role if role is None else role, scope.layer if layer is None else layer)
    with activate(parent.derive(settings, scope, tuning)) as child:
        yield child


@contextmanager
def record(*, synchronize: bool = False) -> Iterator[Recorder]:
    """Count and time every call inside the block. `synchronize` waits for the device after each call.

    >>> with sgl_kernels.record() as recorder:
    ...     model(x)
    >>> print(recorder.report())
    """
    recorder = Recorder(synchronize)
    with activate(current().derive(recorder=recorder)):
        yield recorder


def report() -> Report:
    """What runs in the current dispatcher: recorded calls inside `record()`, else every binding made so far."""
    dispatcher = current()
    if dispatcher.recorder is not None:
        return dispatcher.recorder.report()
    entries = []
    for short, selection in dispatcher.selections.items():
        dtype = str(selection.facts.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
        entries.append(
            Entry(
                selection.op, selection.chosen, selection.why, "", dtype, str(short[3]), selection=selection
            )
        )
    return Report(tuple(entries))


def explain(
    op: str,
    *args: Any,
    device: str | Device | None = None,
    backend: str | None = None,
    version_of: VersionOf = installed_version,
    **kwargs: Any,
) -> Selection:
    """The decision for a call, with a reason for every candidate. Runs nothing and loads nothing.

    `args` and `kwargs` are the op's. `device` asks about another machine ("rocm:gfx942"); its packages are
    taken from this one, or from `version_of`. Meta tensors do, so no memory is needed.
    """
    definition = registry.op(op)
    values = definition.canonical(*args, **kwargs)
    cast = autocast_dtype(definition, values)
    if cast is not None:
        values = cast_arguments(definition, values, cast)
    definition.check(*values)
    where = parse_device(device) if isinstance(device, str) else device
    facts = definition.facts(*values)
    return current().decide(definition, backend, facts, where or probe(values[0].device), version_of)


def warmup(
    cases: Iterable[tuple[str, Case]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Bind and run each (op name, case) once, so that first requests and graph captures find them bound."""
    for name, case in cases:
        op = registry.op(name)
        args = op.canonical(*case.make(torch.device(device), dtype))
        overload = getattr(torch.ops.sgl_kernels, name).default
        overload(*args)
