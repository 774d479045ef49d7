"""The schema of configuration files, built from the table of settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import resolve_names
from sgl_kernels.core.names.ops import OP_GROUPS, RULES_GROUP
from sgl_kernels.core.selection.policy import ROLES

from .layer import POLICY_FIELDS, policy_ops, scope_of
from .rules import SHAPES
from .variable import Variable, coerce
from .variables import TABLE

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationInfo

VERSION = 1

POLICY_KEYS = ("default", *OP_GROUPS)
_JSON_TYPES: dict[str, Any] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "counts": {"type": "array", "items": {"type": "integer", "minimum": 1}},
}
_JSON_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def file_rows() -> tuple[Variable, ...]:
    """The single-value settings that a configuration file may hold."""
    return tuple(row for row in TABLE if row.in_file and row.key.split(".")[0] not in POLICY_KEYS)


@functools.cache
def schema() -> type[BaseModel]:
    """The pydantic model of a configuration file. Built on first use: pydantic takes 60 ms to import."""
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)

    policy: Any = create_model("Policy", __base__=Strict, **_fields(POLICY_FIELDS))
    policy_or_list = Annotated[policy | None, BeforeValidator(_policy)]

    class Rule(Strict):
        """A preference for some calls of one op or group; the first that matches wins."""

        op: Annotated[str, BeforeValidator(_op)] = Field(RULES_GROUP, description="An op or a group of ops")
        role: Literal[ROLES] | None = None  # type: ignore[valid-type]
        layer: str | None = Field(None, description="Wildcard on the layer's dotted name")
        shape: Literal[SHAPES] | None = None  # type: ignore[valid-type]
        backends: _value_type(POLICY_FIELDS["backends"])  # type: ignore[valid-type]

    tree: dict[str, Any] = {}
    for row in file_rows():
        *parents, leaf = row.key.split(".")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = row

    op = Annotated[str, BeforeValidator(_op)]
    backend = Annotated[str, BeforeValidator(_backend)]
    fields: dict[str, Any] = {
        key: (policy_or_list, Field(None, description=_policy_meaning(key))) for key in POLICY_KEYS
    }
    fields["ops"] = (dict[op, policy_or_list] | None, Field(None, description="Policies of single ops"))  # type: ignore[valid-type]
    fields["rules"] = (list[Rule] | None, Field(None, description="Preferences for some calls of an op"))
    fields["options"] = (
        dict[backend, dict[str, Any]] | None,  # type: ignore[valid-type]
        Field(None, description="Options of each backend"),
    )
    return create_model(
        "ConfigurationFile",
        __base__=Strict,
        __doc__="Backends, rules, options and settings of sgl_kernels.",
        version=(Literal[VERSION], Field(VERSION, description="Version of this format")),  # type: ignore[arg-type]
        **fields,
        **_nested(tree, "Settings", Strict),
    )


def _nested(tree: Mapping[str, Any], name: str, base: Any) -> dict[str, Any]:
    from pydantic import Field, create_model

    fields: dict[str, Any] = {}
    for key, entry in tree.items():
        if isinstance(entry, Variable):
            fields |= _fields({key: entry})
        else:
            title = "".join(part.title() for part in key.split("_"))
            model = create_model(title, __base__=base, **_nested(entry, title, base))
            fields[key] = (model | None, Field(None))
    return fields


def _fields(rows: Mapping[str, Variable]) -> dict[str, Any]:
    from pydantic import Field

    return {key: (_value_type(row), Field(None, description=row.meaning)) for key, row in rows.items()}


def _value_type(row: Variable) -> Any:
    """A pydantic type that reads a value as the table says, so files and variables accept the same."""
    from pydantic import BeforeValidator, WithJsonSchema

    def read(value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return None
        known = (info.context or {}).get("known", ())
        return coerce(row, value, row.key.rpartition(".")[2], known)

    return Annotated[Any, BeforeValidator(read), WithJsonSchema(_json_schema(row))]


def _json_schema(row: Variable) -> dict[str, Any]:
    plain = (
        {"enum": list(row.choices)} if row.kind == "choice" else _JSON_TYPES.get(row.kind, {"type": "string"})
    )
    if row.kind in ("backends", "patterns", "paths"):
        plain = _JSON_LIST
    limits = {"minimum": row.low, "maximum": row.high}
    plain = plain | {key: limit for key, limit in limits.items() if limit is not None}
    return {"anyOf": [plain, {"type": "null"}]}


def _policy(value: Any) -> Any:
    return {"backends": value} if isinstance(value, str | list) else value


def _policy_meaning(key: str) -> str:
    return "Policy of every op" if key == "default" else f"Policy of {', '.join(OP_GROUPS[key])}"


def _op(value: Any) -> Any:
    if isinstance(value, str):
        policy_ops(scope_of(value))
    return value


def _backend(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        names = resolve_names(value, (info.context or {}).get("known", ()))
        if len(names) != 1:
            raise ConfigError(
                f"options belong to one backend, {value!r} stands for {', '.join(names) or 'none'}"
            )
        return names[0]
    return value


def json_schema() -> dict[str, Any]:
    """The schema as JSON Schema, for editors that complete and check YAML."""
    return schema().model_json_schema()
