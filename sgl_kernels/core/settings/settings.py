"""Everything a user can choose, as one immutable value that knows where each part came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import KnownNames
from sgl_kernels.core.selection.policy import OpPolicy, Rule, Scope

from .layer import (
    POLICY_FIELDS,
    Layer,
    Located,
    check_key,
    freeze,
    policy_ops,
    scope_of,
    specificity,
    split_policy_key,
    subject_of,
)
from .rules import read_rules
from .sections import Apple, CacheDit, CacheKnobs, CloudStorage, Quantization, Rocm, Runtime, TraceSettings
from .variable import coerce
from .variables import BY_KEY

SOURCES: tuple[str, ...] = ("built-in", "configuration file", "environment", "command-line flags")
"""Weakest to strongest. Above them stand `with use(...)` and then the call's own `backend=`."""


ANYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can choose. Immutable, hashable, and able to say where each value came from."""

    default: OpPolicy = field(default_factory=OpPolicy)
    ops: tuple[tuple[str, OpPolicy], ...] = ()  # only the ops that differ from `default`
    rules: tuple[Rule, ...] = ()
    options: tuple[tuple[str, tuple[tuple[str, object], ...]], ...] = ()  # backend -> options
    target_device: str | None = None  # None: the best platform present
    trace: TraceSettings = field(default_factory=TraceSettings)
    check: bool = False
    tuning_paths: tuple[str, ...] = ()
    cpu_isa: str | None = None
    attention_config: str | None = None  # the file that was read
    cache_root: str = "~/.cache/sgl_diffusion"  # load_settings puts the home directory in
    config_root: str = "~/.config/sgl_diffusion"
    logging_level: str = "INFO"
    runtime: Runtime = field(default_factory=Runtime)
    apple: Apple = field(default_factory=Apple)
    rocm: Rocm = field(default_factory=Rocm)
    quantization: Quantization = field(default_factory=Quantization)
    cache_dit: CacheDit = field(default_factory=CacheDit)
    cloud: CloudStorage = field(default_factory=CloudStorage)
    origins: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # dotted key -> where it was set

    def policy(self, op: str, scope: Scope = ANYWHERE, shape_class: str = "") -> OpPolicy:
        """The policy of `op` for a call: the first rule that matches, else the op's own, else the default."""
        policy = next((found for name, found in self.ops if name == op), self.default)
        for rule in self.rules:
            if rule.matches(op, scope, shape_class):
                return dataclasses.replace(policy, prefer=rule.prefer, origin=rule.origin)
        return policy

    def options_for(self, backend: str) -> dict[str, object]:
        """The options a configuration file gives to one backend."""
        return dict(next((pairs for name, pairs in self.options if name == backend), ()))

    def origin(self, key: str) -> str:
        """Where the value under a dotted key was set; 'built-in' if nobody set it."""
        return dict(self.origins).get(key, SOURCES[0])

    def value(self, key: str) -> Any:
        """The value under a dotted key of core/settings/variables.py, such as 'cache_dit.secondary.fn'."""
        about = split_policy_key(key)
        if about is not None:
            policy = self.policy(policy_ops(about[0])[0])
            return policy.prefer if about[1] == "backends" else getattr(policy, about[1])
        found: Any = self
        for part in key.split("."):
            found = getattr(found, part)
        return found

    def replace(self, **changes: Any) -> Settings:
        """A copy with some fields exchanged, as dataclasses.replace."""
        return dataclasses.replace(self, **changes)

    def override(
        self,
        *,
        backend: str | Iterable[str] | None = None,
        per_op: Mapping[str, str | Iterable[str] | OpPolicy] | None = None,
        strict: bool | None = None,
        allow_lossy: bool | None = None,
        trace_level: int | None = None,
        check: bool | None = None,
        known_backends: KnownNames = (),
        known_ops: Collection[str] = (),
        origin: str = "use(...)",
    ) -> Settings:
        """A copy for `with use(...)`: stronger than every source, so rules about the same ops give way.

        `backend` speaks for every op; the keys of `per_op` are op or group names ('norm'), and win over it.
        `known_backends` and `known_ops` are further names that are right.

        Raises ConfigError for an unknown op or backend, with the nearest match.
        """
        layer: dict[str, object] = {
            "default.backends": backend,
            "default.strict": strict,
            "default.allow_lossy": allow_lossy,
            "trace.level": trace_level,
            "check": check,
        }
        read: set[str] = set()  # an OpPolicy is made of values
        for name, wanted in (per_op or {}).items():
            scope = scope_of(name)
            if isinstance(wanted, OpPolicy):
                policy: dict[str, object] = {"backends": wanted.prefer, "deny": wanted.deny}
                policy |= {"strict": wanted.strict, "allow_lossy": wanted.allow_lossy}
                layer |= {f"{scope}.{name}": value for name, value in policy.items()}
                read |= {f"{scope}.{name}" for name in policy}
            else:
                layer[f"{scope}.backends"] = wanted
        draft = _Draft(self, known_ops)
        draft.apply(origin, Located(layer, read=read), known_backends)
        return draft.settings()


class _Draft:
    """Settings under construction: every op spelled out, layers written one over the other."""

    def __init__(self, base: Settings, known_ops: Collection[str] = ()) -> None:
        self.base = base
        self.known_ops = known_ops
        own = dict(base.ops)
        every = dict.fromkeys((*policy_ops("default", known_ops), *own))
        self.policies = {op: own.get(op, base.default) for op in every}
        self.rules = list(base.rules)
        self.options = dict(base.options)
        self.values: dict[str, Any] = {}
        self.origins = dict(base.origins)

    def apply(self, label: str, layer: Layer, known: KnownNames) -> None:
        """Write one layer over what is there. Inside a layer, ops win over groups, groups over 'default'."""
        where, is_read = (layer.where, layer.read) if isinstance(layer, Located) else ({}, ())
        for key in sorted(layer, key=specificity):
            value, origin = layer[key], where.get(key, label)
            subject = subject_of(key, origin)
            check_key(key, origin)
            if value is None:
                continue
            split = split_policy_key(key)
            row = POLICY_FIELDS[split[1]] if split is not None else BY_KEY.get(key)
            if row is not None and key not in is_read:
                value = coerce(row, value, subject, known)
            if split is not None:
                self._apply_policy(self._ops(split[0], origin), split[1], value, origin)
            elif key.startswith("options."):
                self._apply_options(key, value, subject, None if key in is_read else known)
            elif key != "rules":
                self.values[key] = value
            self.origins[key] = origin
        rules = layer.get("rules")
        if rules is not None:  # last, because a preference in this layer removes only weaker rules
            self.rules = read_rules(rules, label, where, known, "rules" in is_read) + self.rules

    def _ops(self, scope: str, origin: str) -> tuple[str, ...]:
        try:
            return policy_ops(scope, self.known_ops)
        except ConfigError as error:
            raise ConfigError(f"{origin.removeprefix('file ')}: {error}") from None

    def _apply_policy(self, ops: tuple[str, ...], name: str, value: Any, origin: str) -> None:
        changes = {"prefer" if name == "backends" else name: value}
        if name == "deny":
            changes = {"deny": frozenset(value)}
        elif name == "backends":
            changes["origin"] = origin
        for op in ops:
            self.policies[op] = dataclasses.replace(self.policies[op], **changes)
        if name == "backends":
            self.rules = [rule for rule in self.rules if rule.op not in ops]

    def _apply_options(self, key: str, value: object, subject: str, known: KnownNames | None) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{subject} is {value!r}; expected a mapping from option to value")
        names = (key.removeprefix("options."),)
        if known is not None:  # None: the name is a backend's own already
            names = coerce(POLICY_FIELDS["backends"], names[0], subject, known)
        for name in names:
            merged = dict(self.options.get(name, ())) | dict(freeze(value))
            self.options[name] = tuple(sorted(merged.items()))

    def settings(self) -> Settings:
        """The finished value."""
        self._fall_back_to_primary()
        default = self.policies.pop("")
        result = dataclasses.replace(
            self.base,
            default=default,
            ops=tuple((op, policy) for op, policy in self.policies.items() if policy != default),
            rules=tuple(self.rules),
            options=tuple(sorted(self.options.items())),
            origins=tuple(sorted(self.origins.items())),
        )
        for key, value in self.values.items():
            result = _put(result, key.split("."), value)
        bins = result.cache_dit.scm_compute_bins, result.cache_dit.scm_cache_bins
        if bool(bins[0]) != bool(bins[1]):
            raise ConfigError(
                f"SGLANG_CACHE_DIT_SCM_COMPUTE_BINS is {list(bins[0])} and SGLANG_CACHE_DIT_SCM_CACHE_BINS "
                f"is {list(bins[1])}; set both, or neither and use SGLANG_CACHE_DIT_SCM_PRESET"
            )
        return result

    def _fall_back_to_primary(self) -> None:
        for knob in dataclasses.fields(CacheKnobs):
            primary, secondary = f"cache_dit.{knob.name}", f"cache_dit.secondary.{knob.name}"
            if primary in self.values and secondary not in self.origins:
                self.values[secondary] = self.values[primary]


def _put(target: Any, path: list[str], value: Any) -> Any:
    if len(path) > 1:
        value = _put(getattr(target, path[0]), path[1:], value)
    return dataclasses.replace(target, **{path[0]: value})


def settle(*layers: tuple[str, Layer], known_backends: KnownNames = ()) -> Settings:
    """Settings from layers, weakest first, each with the name of its source.

    A stronger source wins over a weaker one, whatever the two say it about; inside one source, rules win
    over ops, ops over groups ('norm'), groups over 'default'. So a preference from the environment also
    silences the rules of a file about the same ops. Secondary step-cache knobs that nobody set follow the
    primary ones.

    Raises ConfigError for an unknown key or a value that does not parse, with the nearest match.
    """
    draft = _Draft(Settings())
    for label, layer in layers:
        draft.apply(label, layer, known_backends)
    return draft.settings()
