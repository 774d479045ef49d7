"""One source of settings as data: dotted key to raw value, and where each value was written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import did_you_mean
from sgl_kernels.core.names.ops import OP_GROUPS, OPS

from .variable import Variable
from .variables import BY_KEY

Layer = Mapping[str, object]
"""Dotted key to raw value (text, or already typed). None means: not set here."""


class Located(dict[str, object]):
    """A layer that knows where each key came from: 'environment SGL_KERNELS_STRICT', 'file cfg.yaml:12'.

    `read` holds the keys whose values are checked and typed already; nothing reads them again.
    """

    def __init__(
        self,
        values: Mapping[str, object] = {},
        where: Mapping[str, str] = {},
        read: Collection[str] = (),
    ) -> None:
        super().__init__(values)
        self.where: dict[str, str] = dict(where)
        self.read: set[str] = set(read)


POLICY_FIELDS: dict[str, Variable] = {
    "backends": Variable("", "backends", "backends", (), "Backends to prefer, in order; 'auto' for none"),
    "deny": Variable("", "deny", "backends", (), "Backends that may not run"),
    "strict": Variable("", "strict", "bool", False, "Nothing outside `backends` may run"),
    "allow_lossy": Variable(
        "", "allow_lossy", "bool", False, "Lossy backends may be chosen without being named"
    ),
}
"""What may be said about an op, a group of ops, or all of them."""


def policy_ops(scope: str, known_ops: Collection[str] = ()) -> tuple[str, ...]:
    """The ops a scope speaks for: a group, 'ops.<name>', or every op ('default', whose own entry is '').

    Raises ConfigError for an op that is neither ours nor in `known_ops`, with the nearest match.
    """
    if scope == "default":
        return ("", *OPS, *(op for op in known_ops if op not in OPS))
    if scope in OP_GROUPS:
        return OP_GROUPS[scope]
    op = scope.removeprefix("ops.")
    if op in OPS or op in known_ops:
        return (op,)
    every = (*OPS, *(name for name in known_ops if name not in OPS))
    near = did_you_mean(op, (*every, *OP_GROUPS))
    raise ConfigError(f"unknown op {op!r}{near or ';'} ops: {', '.join(every)}")


def scope_of(name: str) -> str:
    """The scope of an op or group name; 'attention' is both, and means the group."""
    return name if name in OP_GROUPS else f"ops.{name}"


def split_policy_key(key: str) -> tuple[str, str] | None:
    """('ops.rms_norm', 'backends') for a key that is about a policy, else None."""
    scope, _, field = key.rpartition(".")
    if field in POLICY_FIELDS and (scope == "default" or scope in OP_GROUPS or scope.startswith("ops.")):
        return scope, field
    return None


def specificity(key: str) -> int:
    """Order in which keys of one layer are applied: default, then groups, then single ops."""
    split = split_policy_key(key)
    if split is None:
        return 0
    return 1 if split[0] == "default" else 3 if split[0].startswith("ops.") else 2


def check_key(key: str, subject: str) -> None:
    """Raise ConfigError if `key` is not a key of the settings."""
    if key in BY_KEY or key == "rules" or key.startswith("options.") or split_policy_key(key) is not None:
        return
    every = [*BY_KEY, "rules", *(f"{scope}.{f}" for scope in ("default", *OP_GROUPS) for f in POLICY_FIELDS)]
    raise ConfigError(f"{subject}: unknown setting {key!r}{did_you_mean(key, every)}")


def freeze(value: Any) -> Any:
    """Lists, sets and mappings as tuples, so that options stay hashable."""
    if isinstance(value, Mapping):
        return tuple((str(k), freeze(v)) for k, v in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(freeze(item) for item in value))
    return value


def subject_of(key: str, origin: str) -> str:
    """How an error names a setting: the variable, or the file's line and key, or the source and the key."""
    if origin.startswith("environment "):
        return origin.removeprefix("environment ")
    return f"{origin.removeprefix('file ')}: {key}"
