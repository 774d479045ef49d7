"""Rules as a user writes them, read into Rule values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import KnownNames, did_you_mean
from sgl_kernels.core.names.ops import OP_GROUPS, RULES_GROUP, SHAPE_CLASSES
from sgl_kernels.core.selection.policy import ROLES, Rule

from .layer import POLICY_FIELDS, policy_ops, scope_of
from .variable import coerce

SHAPES = tuple(dict.fromkeys(shape for classes in SHAPE_CLASSES.values() for shape in classes))
RULE_KEYS: tuple[str, ...] = ("op", "role", "layer", "shape", "backends")


def read_rules(
    value: object, label: str, where: Mapping[str, str], known: KnownNames, is_read: bool = False
) -> list[Rule]:
    """Rules for a list of mappings with the keys of RULE_KEYS; one about a group becomes one for each op.

    `is_read`: the schema of files has checked and typed what is in them.

    Raises ConfigError for an unknown key, op, role, shape class or backend, with the nearest match.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(
            f"{label}: rules is {value!r}; expected a list of mappings with {', '.join(RULE_KEYS)}"
        )
    result: list[Rule] = []
    for index, item in enumerate(value):
        origin = where.get(f"rules.{index}", label)
        subject = f"{origin.removeprefix('file ')}: rules[{index}]"
        if isinstance(item, Rule):
            result.append(item)
        elif isinstance(item, Mapping):
            result.extend(_read_rule(item, origin, subject, known, is_read))
        else:
            raise ConfigError(f"{subject} is {item!r}; expected a mapping with {', '.join(RULE_KEYS)}")
    return result


def _read_rule(
    item: Mapping[str, Any], origin: str, subject: str, known: KnownNames, is_read: bool
) -> list[Rule]:
    for key in item:
        if key not in RULE_KEYS:
            raise ConfigError(
                f"{subject}: unknown key {key!r}{did_you_mean(str(key), RULE_KEYS) or ';'} "
                f"keys: {', '.join(RULE_KEYS)}"
            )
    if item.get("backends") is None:
        raise ConfigError(f"{subject} has no 'backends'; a rule says which backends its calls prefer")
    prefer = item["backends"]
    if not is_read:
        prefer = coerce(POLICY_FIELDS["backends"], prefer, f"{subject}.backends", known)
    name = _word(item, "op", subject) or RULES_GROUP
    try:
        ops = policy_ops(scope_of(name))
    except ConfigError as error:
        raise ConfigError(f"{subject}.op: {error}") from None
    role, shape = _one_of(item, "role", ROLES, subject), _one_of(item, "shape", SHAPES, subject)
    groups = [group for group, classes in SHAPE_CLASSES.items() if not shape or shape in classes]
    if shape and not set(ops) <= {op for group in groups for op in OP_GROUPS[group]}:
        raise ConfigError(
            f"{subject}.shape is {shape!r}; shape classes exist for {' and '.join(groups)} only, not for {name}"
        )
    return [Rule(op, prefer, role, _word(item, "layer", subject), shape, origin) for op in ops]


def _word(item: Mapping[str, object], key: str, subject: str) -> str:
    value = item.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{subject}.{key} is {value!r}; expected text")
    return value.strip()


def _one_of(item: Mapping[str, object], key: str, choices: tuple[str, ...], subject: str) -> str:
    value = _word(item, key, subject).lower()
    if value and value not in choices:
        near = did_you_mean(value, choices)
        raise ConfigError(f"{subject}.{key} is {value!r}; expected one of {', '.join(choices)}{near}")
    return value
