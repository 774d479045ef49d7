"""From a call to the function that serves it: one dictionary lookup, or one binding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from sgl_kernels.core.names.backends import resolve_names
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import VersionOf, installed_version
from sgl_kernels.core.selection.policy import OpPolicy, Scope, attention_shape_class
from sgl_kernels.core.selection.select import select
from sgl_kernels.core.selection.tuning import TuningRecord, TuningTable, load_tables
from sgl_kernels.core.selection.verdict import Reason, Rejected, Selection

from .device import Device, probe
from .errors import ConfigError, UnsupportedError, mark_refused
from .op import Case, Op
from .registry import Registry, registry
from .wrapping import compose

if TYPE_CHECKING:
    from sgl_kernels.core.wrapping.record import Recorder

    from .settings import Settings

MAX_BOUND = 8192  # keys hold exact shapes, so a server with free-length prompts would grow the memo for ever
MAX_CHILDREN = 512

Run = Callable[..., Any]
Key = Any
"""Everything that decides a call, as a hashable; None for a call that is not to be remembered."""


class Dispatcher:
    """Immutable settings plus the bindings they have earned."""

    def __init__(
        self,
        settings: Settings,
        scope: Scope = Scope(),  # noqa: B008 - frozen and immutable
        tuning: TuningTable | None = None,
        recorder: Recorder | None = None,
        source: Registry = registry,
    ) -> None:
        self.registry = source
        self.settings = settings
        self.scope = scope
        self.tuning = tuning
        self.recorder = recorder
        self.bound: dict[Key, Run] = {}
        self.selections: dict[
            tuple[Any, ...], Selection
        ] = {}  # (op, backend, facts, device, ...) -> decision
        self._by_facts: dict[tuple[Any, ...], Run] = {}
        self._broken: dict[str, dict[str, Rejected]] = {}
        self._children: dict[Any, Dispatcher] = {}
        self._tables: dict[str, TuningTable] = {}

    def bind(self, op: Op, key: Key, backend: str | None, args: tuple[Any, ...]) -> Run:
        """The cold path, once per key (at every call for the key None): check, select, load, compose, remember."""
        if args[0].__class__ is torch.Tensor and args[0].device.type == "cuda" and compose.is_capturing():
            raise RuntimeError(
                f"{op.name}: the first call with these shapes happens inside a CUDA graph capture; warm up first: call "
                "it once before capturing, or use sgl_kernels.warmup"
            )
        cast = compose.autocast_dtype(op, args)
        if cast is not None:
            args = compose.cast_arguments(op, args, cast)
        try:
            op.check(*args)
            op.check_kinds(args)
        except (TypeError, ValueError) as error:
            mark_refused(error)
            raise
        facts = op.facts(*args)
        device = args[0].device
        shielded = compose.ignores_autocast(op, args)
        short = (op, backend, facts, device, cast, shielded)
        run = self._by_facts.get(short)
        if run is None:
            selection, run = self._resolve(op, backend, facts, probe(device))
            run = compose.composed(run, op, selection, self, cast, shielded)
            if len(self._by_facts) >= MAX_BOUND:
                self._by_facts.clear()
                self.selections.clear()
            self._by_facts[short] = run
            self.selections[short] = selection
        run = compose.settling(run, op, args)
        if key is not None:
            if len(self.bound) >= MAX_BOUND:
                self.bound.clear()
            self.bound[key] = run
        return run

    def bind_into(self, op: Op, key: Key, backend: str | None, args: tuple[Any, ...], copying: Run) -> Run:
        """As `bind`, for a call that writes into given tensors: `copying` where the chosen backend cannot."""
        facts = op.facts(*args)
        selection, _ = self._resolve(op, backend, facts, probe(args[0].device))
        implementation = self.implementation(op.name, selection.chosen)
        run = copying
        if implementation.load_out is not None:
            loaded = implementation.load_out(self._config(implementation, selection.config))
            run = compose.settling(compose.composed(loaded, op, selection, self, None), op, args)
            self.selections[(op, backend, facts, args[0].device, None, False)] = selection
        if key is not None:
            if len(self.bound) >= MAX_BOUND:
                self.bound.clear()
            self.bound[key] = run
        return run

    def forget(self) -> None:
        """Drop every binding, so that the next call of each shape is decided anew."""
        self.bound.clear()
        self._by_facts.clear()
        self.selections.clear()

    def _resolve(self, op: Op, backend: str | None, facts: Any, device: Device) -> tuple[Selection, Run]:
        while True:
            selection = self.decide(op, backend, facts, device)
            if not selection.chosen:
                raise UnsupportedError(selection, _advice(selection, backend, self.registry))
            implementation = self.implementation(op.name, selection.chosen)
            found = self.registry.loaded(implementation, self._config(implementation, selection.config))
            if isinstance(found, Rejected):
                self._broken.setdefault(op.name, {})[implementation.backend] = found
                continue
            compose.warn_about(selection, backend, self.policy(op, facts))
            return selection, found

    def _config(self, implementation: Implementation, config: Any) -> Any:
        """What `load` receives: the options the settings give this backend, else the kernel configuration."""
        options = self.settings.options_for(implementation.backend)
        unknown = sorted(set(options) - set(implementation.options))
        if unknown and not any(
            set(unknown) <= set(i.options)
            for op in self.registry.ops()
            for i in self.registry.implementations(op)
            if i.backend == implementation.backend
        ):
            accepted = ", ".join(sorted(implementation.options)) or "none"
            raise ConfigError(
                f"options of backend {implementation.backend!r}: {unknown[0]!r} is unknown; accepted: {accepted}"
            )
        mine = tuple(sorted((k, v) for k, v in options.items() if k in implementation.options))
        return mine or config

    def implementation(self, op: str, backend: str) -> Implementation:
        """The implementation of (op, backend)."""
        return next(i for i in self.registry.implementations(op) if i.backend == backend)

    def policy(self, op: Op, facts: Any) -> OpPolicy:
        """The policy that holds for a call in this scope."""
        shape = attention_shape_class(facts.sq, facts.sk) if hasattr(facts, "sk") else ""
        return self.settings.policy(op.name, self.scope, shape)

    def decide(
        self,
        op: Op,
        backend: str | None,
        facts: Any,
        device: Device,
        version_of: VersionOf = installed_version,
    ) -> Selection:
        """The decision for a call; nothing is loaded."""
        implementations = self.registry.implementations(op.name)
        named = resolve_names(backend, self.registry.backends()) if backend is not None else ()
        return select(
            op.name,
            facts,
            device,
            version_of,
            self.policy(op, facts),
            implementations,
            named=named,
            tuned=self._tuned(op.name, facts, device),
            broken={
                **_absent(implementations, device),
                **self._broken.get(op.name, {}),
                **self.registry.quarantined(op.name),
            },
            switched_off=self._switched_off(implementations),
        )

    def _tuned(self, op: str, facts: Any, device: Device) -> TuningRecord | None:
        """The measured winner: from use(tuning=...), else from the tables of the settings for this device."""
        if self.tuning is not None:
            return self.tuning.lookup(op, facts)
        table = self._tables.get(device.name)
        if table is None:
            table = load_tables(self.settings.tuning_paths, self.settings.cache_root, device.name)
            self._tables[device.name] = table
        return table.lookup(op, facts)

    def _switched_off(self, implementations: Iterable[Implementation]) -> dict[str, Rejected]:
        """The backends whose flag is off, each with the variable that turns it on."""
        asked = ((i.backend, i.enabled(self.settings)) for i in implementations if i.enabled is not None)
        return {backend: rejected for backend, rejected in asked if rejected is not None}

    def derive(
        self,
        settings: Settings | None = None,
        scope: Scope | None = None,
        tuning: TuningTable | None = None,
        recorder: Recorder | None = None,
    ) -> Dispatcher:
        """The dispatcher for other settings. Remembered, so re-entering an override keeps its bindings."""
        settings = self.settings if settings is None else settings
        scope = self.scope if scope is None else scope
        tuning = self.tuning if tuning is None else tuning
        recorder = self.recorder if recorder is None else recorder
        if (settings, scope, tuning, recorder) == (self.settings, self.scope, self.tuning, self.recorder):
            return self
        key = (settings, scope, id(tuning), id(recorder))
        child = self._children.get(key)
        if child is None or child.tuning is not tuning or child.recorder is not recorder:
            if len(self._children) >= MAX_CHILDREN:
                self._children.clear()
            child = Dispatcher(settings, scope, tuning, recorder, self.registry)
            self._children[key] = child
        return child


_ACTIVE: ContextVar[Dispatcher | None] = ContextVar("sgl_kernels", default=None)


def current() -> Dispatcher:
    """The dispatcher in force: the innermost `use`, else the process default."""
    return _ACTIVE.get() or registry.default or _start()


def _start() -> Dispatcher:
    with registry._lock:
        if registry.default is None:
            from .settings import load_settings  # reads the table of variables: 14 ms an import need not pay

            registry.default = Dispatcher(load_settings())
        return registry.default


def bind(op: Op, key: Key, backend: str | None, args: tuple[Any, ...]) -> Run:
    """Bind in the current dispatcher; what the front doors call on a miss."""
    return current().bind(op, key, backend, args)


def configure(settings: Settings | None = None) -> None:
    """Set the process default. Call once, at start-up; None reads environment and files anew."""
    from .settings import load_settings

    registry.default = Dispatcher(settings if settings is not None else load_settings())


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
def activate(dispatcher: Dispatcher) -> Iterator[Dispatcher]:
    """Make `dispatcher` the one in force inside a `with` block."""
    token = _ACTIVE.set(dispatcher)
    try:
        yield dispatcher
    finally:
        _ACTIVE.reset(token)


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
    from .device import parse_device

    definition = registry.op(op)
    values = definition.canonical(*args, **kwargs)
    cast = compose.autocast_dtype(definition, values)
    if cast is not None:
        values = compose.cast_arguments(definition, values, cast)
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


def _absent(implementations: Iterable[Implementation], device: Device) -> dict[str, Rejected]:
    """The backends whose own kernels are not built here, asked of those that are for this kind of device."""
    asked = (
        (i.backend, i.absent())
        for i in implementations
        if i.absent is not None and device.platform in (i.requires.platforms or {device.platform})
    )
    return {
        backend: Rejected(Reason.LOAD, reason, "sgl-kernels doctor names the command that builds it")
        for backend, reason in asked
        if reason is not None
    }


def _advice(selection: Selection, backend: str | None, source: Registry) -> str:
    if backend is None:
        return "Nothing fits. Loosen the policy, or install a backend: see sgl-kernels doctor."
    elsewhere = [op for op in source.ops() if any(i.backend == backend for i in source.implementations(op))]
    if not selection.candidates or all(
        c.rejected and c.rejected.reason == "policy" for c in selection.candidates
    ):
        where = f"it implements {', '.join(elsewhere)}" if elsewhere else "sgl-kernels list shows every name"
        return f"backend={backend!r} does not implement {selection.op}; {where}."
    return f"backend={backend!r} cannot serve this call. Leave backend out to let the registry choose."
