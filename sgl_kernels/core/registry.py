"""What is known: ops, implementations, the packages that failed to join."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.verdict import Reason, Rejected

from .op import Op

ENTRY_POINTS = "sgl_kernels.backends"


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A backend module or entry point that could not join, kept for doctor instead of a crash."""

    source: str
    error: str


class Registry:
    """The one piece of process-wide state. Discovers backends at the first question, not at import."""

    def __init__(self, packages: tuple[str, ...] = (), entry_points: str | None = None) -> None:
        self._ops: dict[str, Op] = {}
        self._implementations: dict[str, dict[str, Implementation]] = {}
        self._sources: dict[tuple[str, str], str] = {}
        self._loaded: dict[tuple[Implementation, Any], Callable[..., Any] | Rejected] = {}
        self._failures: list[PluginFailure] = []
        self._quarantined: dict[str, dict[str, Rejected]] = {}
        self._packages = packages
        self._entry_points = entry_points
        self._discovered = not packages and entry_points is None
        self._lock = threading.RLock()

    def define(self, op: Op) -> Op:
        """Add an op. The same name twice is an error."""
        if op.name in self._ops:
            raise ValueError(f"op {op.name!r} is defined twice")
        self._ops[op.name] = op
        return op

    def ops(self) -> Mapping[str, Op]:
        """Every op by name."""
        return dict(self._ops)

    def op(self, name: str) -> Op:
        """The op by name. Raises KeyError with the nearest match."""
        if name not in self._ops:
            import difflib

            near = difflib.get_close_matches(name, self._ops, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"there is no op {name!r}{hint} Ops: {', '.join(sorted(self._ops))}")
        return self._ops[name]

    def add(self, implementations: Iterable[Implementation], source: str = "") -> None:
        """Add implementations. The same (op, backend) from two providers is an error that names both."""
        for implementation in implementations:
            if not isinstance(implementation, Implementation):
                raise TypeError(
                    f"{source}: expected Implementation values, got {type(implementation).__name__}"
                )
            if implementation.op not in self._ops:
                raise ValueError(
                    f"{source}: backend {implementation.backend!r} implements the unknown op "
                    f"{implementation.op!r}; ops are {', '.join(sorted(self._ops))}"
                )
            key = (implementation.op, implementation.backend)
            if key in self._sources:
                raise ValueError(
                    f"({key[0]}, {key[1]}) is provided twice: by {self._sources[key]} and by {source}"
                )
            self._sources[key] = source
            self._implementations.setdefault(implementation.op, {})[implementation.backend] = implementation

    def implementations(self, op: str) -> tuple[Implementation, ...]:
        """Everything that claims to run `op`. Discovers on first use."""
        self._discover()
        return tuple(self._implementations.get(op, {}).values())

    def backends(self) -> tuple[str, ...]:
        """Every backend name, in the order of first appearance."""
        self._discover()
        names = (name for by_name in self._implementations.values() for name in by_name)
        return tuple(dict.fromkeys(names))

    def source(self, op: str, backend: str) -> str:
        """The module or entry point that provides (op, backend)."""
        return self._sources.get((op, backend), "")

    @property
    def failures(self) -> tuple[PluginFailure, ...]:
        """Backend modules and entry points that could not join."""
        self._discover()
        return tuple(self._failures)

    def quarantine(self, op: str, backend: str, rejected: Rejected) -> None:
        """Offer (op, backend) to nobody in this process any more."""
        with self._lock:  # replaced rather than changed, so that readers need no lock
            self._quarantined[op] = {**self.quarantined(op), backend: rejected}

    def quarantined(self, op: str) -> Mapping[str, Rejected]:
        """The backends of `op` that were found to give wrong results, and what was wrong."""
        return self._quarantined.get(op, {})

    def loaded(self, implementation: Implementation, config: Any) -> Callable[..., Any] | Rejected:
        """`implementation.load(config)`, remembered; a failure becomes Rejected(LOAD), tried once."""
        try:
            key = (implementation, config)
            found = self._loaded.get(key)
        except TypeError:  # an unhashable config is loaded anew each time it is bound
            key, found = None, None  # type: ignore[assignment]
        if found is not None:
            return found
        with self._lock:
            try:
                found = implementation.load(config)
            except Exception as error:  # vendors raise anything at import; it must not take the call down
                text = str(error).strip().splitlines()
                detail = f"{type(error).__name__}: {text[0] if text else 'no message'}"
                found = Rejected(Reason.LOAD, detail, getattr(error, "hint", ""))
            if key is not None:
                self._loaded[key] = found
        return found

    def unload(self, platform: str) -> None:
        """Forget what implementations for `platform` alone were loaded: loaded again, they may be other functions."""
        kept = [(k, v) for k, v in list(self._loaded.items()) if k[0].requires.platforms != {platform}]
        self._loaded = dict(kept)  # no lock: what another thread loads meanwhile is loaded again, at worst

    def _discover(self) -> None:
        if self._discovered:
            return
        with self._lock:
            if self._discovered:
                return
            for package in self._packages:
                self._discover_package(package)
            if self._entry_points:
                for point in sorted(
                    importlib.metadata.entry_points(group=self._entry_points), key=lambda p: p.name
                ):
                    self._join(f"entry point {point.name} = {point.value}", point.load)
            self._discovered = True

    def _discover_package(self, package: str) -> None:
        root = importlib.import_module(package)
        for module in sorted(pkgutil.iter_modules(root.__path__), key=lambda m: m.name):
            if module.name.startswith("_"):
                continue  # shared helpers of backends declare nothing
            name = f"{package}.{module.name}"
            self._join(name, functools.partial(_declared, name))

    def _join(self, source: str, provide: Callable[[], Iterable[Implementation]]) -> None:
        try:
            self.add(provide(), source)
        except Exception as error:  # one broken plug-in must not take the others down
            self._failures.append(PluginFailure(source, f"{type(error).__name__}: {error}"))


def _declared(module: str) -> Iterable[Implementation]:
    found: Iterable[Implementation] = importlib.import_module(module).IMPLEMENTATIONS
    return found


registry = Registry(("sgl_kernels.backends",), ENTRY_POINTS)
"""The process's registry."""
