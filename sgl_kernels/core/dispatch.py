"""From a call to the function that serves it: one dictionary lookup, or one binding."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from sgl_kernels.core import cpu_level
from sgl_kernels.core.names.backends import resolve_names
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import VersionOf, installed_version
from sgl_kernels.core.selection.policy import OpPolicy, Scope
from sgl_kernels.core.selection.select import reading_packed, select
from sgl_kernels.core.selection.tuning import TuningRecord, TuningTable, load_tables
from sgl_kernels.core.selection.verdict import Reason, Rejected, Selection, UnsupportedError

from .device import Device, probe
from .errors import ConfigError, mark_refused
from .op import Op, Run
from .registry import Registry, registry
from .wrapping import compose
from .wrapping.autocast import autocast_dtype, cast_arguments, ignores_autocast
from .wrapping.device_state import is_capturing

if TYPE_CHECKING:
    from sgl_kernels.core.wrapping.record import Recorder

    from .settings import Settings

MAX_BOUND = 8192  # keys hold exact shapes, so a server with free-length prompts would grow the memo for ever
MAX_CHILDREN = 512

_turns = itertools.count()

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
        self.turn = next(_turns)  # another after each `forget`: what was decided before it may hold no more
        self.layouts: dict[tuple[Any, ...], str] = {}  # what decides of a weight -> the layout it is to have
        self._by_facts: dict[tuple[Any, ...], Run] = {}
        self._broken: dict[str, dict[str, Rejected]] = {}
        self._children: dict[Any, Dispatcher] = {}
        self._tables: dict[str, TuningTable] = {}
        self._parts = compose.Parts(settings, recorder, source, self.forget)
        _living.add(self)

    def bind(self, op: Op, key: Key, backend: str | None, args: tuple[Any, ...]) -> Run:
        """The cold path, once per key (at every call for the key None): check, select, load, compose, remember."""
        if args[0].__class__ is torch.Tensor and args[0].device.type == "cuda" and is_capturing():
            raise RuntimeError(
                f"{op.name}: the first call with these shapes happens inside a CUDA graph capture; warm up first: call "
                "it once before capturing, or use sgl_kernels.warmup"
            )
        cast = autocast_dtype(op, args)
        if cast is not None:
            args = cast_arguments(op, args, cast)
        try:
            op.check(*args)
            op.check_kinds(args)
        except (TypeError, ValueError) as error:
            mark_refused(error)
            raise
        facts = op.facts(*args)
        device = args[0].device
        shield = ignores_autocast(op, args)
        short = (op, backend, facts, device, cast, shield)
        run = self._by_facts.get(short)
        if run is None:
            selection, run = self._resolve(op, backend, facts, probe(device))
            run = compose.composed(
                run, op, selection, self.implementation(op.name, selection.chosen), self._parts, cast, shield
            )
            if len(self._by_facts) >= MAX_BOUND:
                self._by_facts.clear()
                self.selections.clear()
            self._by_facts[short] = run
            self.selections[short] = selection
        run = compose.settling(run, op, args)
        return self._remember(key, run)

    def bind_into(self, op: Op, key: Key, backend: str | None, args: tuple[Any, ...], copying: Run) -> Run:
        """As `bind`, for a call that writes into given tensors: `copying` where the chosen backend cannot."""
        facts = op.facts(*args)
        selection, _ = self._resolve(op, backend, facts, probe(args[0].device))
        implementation = self.implementation(op.name, selection.chosen)
        run = copying
        if implementation.load_out is not None:
            loaded = implementation.load_out(self._config(implementation, selection.config))
            run = compose.settling(
                compose.composed(loaded, op, selection, implementation, self._parts, None), op, args
            )
            self.selections[(op, backend, facts, args[0].device, None, False)] = selection
        return self._remember(key, run)

    def _remember(self, key: Key, run: Run) -> Run:
        if key is not None:
            if len(self.bound) >= MAX_BOUND:
                self.bound.clear()
            self.bound[key] = run
        return run

    def forget(self, loaded_anew: bool = False) -> None:
        """Drop every binding, so that the next call of each shape is decided anew; failed loads as well, if wanted."""
        if loaded_anew:
            self._broken.clear()
        self.bound.clear()
        self._by_facts.clear()
        self.selections.clear()
        self.layouts.clear()
        self.turn = next(_turns)

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
        return self.settings.policy(
            op.name, self.scope, "" if op.shape_class is None else op.shape_class(facts)
        )

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
            broken=self._out_of_order(op, device),
            switched_off=self._switched_off(implementations),
        )

    def layout(self, op: Op, facts: Any, device: Device) -> str | None:
        """The layout of a packed weight that the first in the order of selection reads, which is loaded.

        None where nobody wants one of its own. `facts` are those of a call of middling size: a weight lies in one
        layout, whatever calls come.
        """
        implementations = self.registry.implementations(op.name)
        for implementation, layout in reading_packed(
            facts,
            device,
            installed_version,
            self.policy(op, facts),
            implementations,
            broken=self._out_of_order(op, device),
            switched_off=self._switched_off(implementations),
        ):
            found = self.registry.loaded(implementation, self._config(implementation, None))
            if not isinstance(found, Rejected):
                return layout
            self._broken.setdefault(op.name, {})[implementation.backend] = found
        return None

    def _out_of_order(self, op: Op, device: Device) -> dict[str, Rejected]:
        """The backends that do not load, are not built here, or gave wrong results."""
        return {
            **_absent(self.registry.implementations(op.name), device),
            **self._broken.get(op.name, {}),
            **self.registry.quarantined(op.name),
        }

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


ACTIVE: ContextVar[Dispatcher | None] = ContextVar("sgl_kernels", default=None)
"""Set by `activate`; set directly only where a `with` would cost a module's call too much."""

_default: Dispatcher | None = None
_living: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
_starting = threading.Lock()


def current() -> Dispatcher:
    """The dispatcher in force: the innermost `use`, else the process default."""
    return ACTIVE.get() or _default or _start()


def set_default(dispatcher: Dispatcher | None) -> Dispatcher | None:
    """Make `dispatcher` the process default, and give back the one before; None: settings are read at the next call."""
    global _default
    before, _default = _default, dispatcher
    cpu_level.hold(cpu_level.NOT_READ if dispatcher is None else dispatcher.settings.cpu_isa)
    return before


def _start() -> Dispatcher:
    global _default
    with _starting:
        if _default is None:
            from .settings import load_settings  # reads the table of variables: 14 ms an import need not pay

            _default = Dispatcher(load_settings())
            cpu_level.hold(_default.settings.cpu_isa)
        return _default


def _decide_anew() -> None:
    """Another CPU level is in force: ranks and loaded kernels of it may differ, in whichever dispatcher."""
    living = list(_living)
    for source in {dispatcher.registry for dispatcher in living}:
        source.unload("cpu")
    for dispatcher in living:
        dispatcher.forget(loaded_anew=True)


cpu_level.follow(_decide_anew)


def bind(op: Op, key: Key, backend: str | None, args: tuple[Any, ...]) -> Run:
    """Bind in the current dispatcher; what the front doors call on a miss."""
    return current().bind(op, key, backend, args)


@contextmanager
def activate(dispatcher: Dispatcher) -> Iterator[Dispatcher]:
    """Make `dispatcher` the one in force inside a `with` block."""
    token = ACTIVE.set(dispatcher)
    try:
        yield dispatcher
    finally:
        ACTIVE.reset(token)


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
