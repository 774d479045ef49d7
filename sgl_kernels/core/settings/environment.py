"""Environment variables as a layer, and the listing of what every setting is and where it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_kernels.core.names.backends import did_you_mean

from .layer import Located
from .variable import Variable, show
from .variables import BY_KEY, BY_NAME, PREFIXES, READ_ELSEWHERE, TABLE

if TYPE_CHECKING:
    from . import Settings

_PATH_KINDS = ("path", "absolute path", "paths")


def from_env(environ: Mapping[str, str]) -> Located:
    """The variables of the table that are set. An empty or blank value counts as not set."""
    layer = Located()
    for name, row in BY_NAME.items():
        text = environ.get(name, "").strip()
        if text:
            layer[row.key] = text
            layer.where[row.key] = f"environment {name}"
    return layer


def built_in(environ: Mapping[str, str]) -> Located:
    """The two directories whose built-in place depends on the environment: XDG if absolute, else home."""
    layer = Located()
    for key, variable, folder in (
        ("cache_root", "XDG_CACHE_HOME", ".cache"),
        ("config_root", "XDG_CONFIG_HOME", ".config"),
    ):
        base = environ.get(variable, "").strip()
        xdg = os.path.isabs(base)  # the XDG specification says to ignore a relative one
        layer[key] = os.path.join(base, "sgl_diffusion") if xdg else f"~/{folder}/sgl_diffusion"
        layer.where[key] = f"built-in ({variable})" if xdg else "built-in"
    return expand(layer, environ)


def expand(layer: Located, environ: Mapping[str, str]) -> Located:
    """A copy in which a leading '~' of every path is the home directory."""
    result = Located(layer, layer.where)
    for key, value in layer.items():
        row = BY_KEY.get(key)
        if row is None or row.kind not in _PATH_KINDS or not isinstance(value, str | list | tuple):
            continue
        if isinstance(value, str):
            parts = value.split(os.pathsep) if row.kind == "paths" else [value]
            result[key] = os.pathsep.join(_expand_path(part, environ) for part in parts)
        else:
            result[key] = [_expand_path(part, environ) if isinstance(part, str) else part for part in value]
    return result


def _expand_path(path: str, environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if home and (path == "~" or path.startswith("~/")):
        return home.rstrip("/") + path[1:]
    return os.path.expanduser(path)


def unknown(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names that start like ours and are not in the table, each with '; did you mean X?' or nothing."""
    names = sorted(
        name for name in environ if name.startswith(PREFIXES) and name not in {*BY_NAME, *READ_ELSEWHERE}
    )
    return [(name, did_you_mean(name, BY_NAME)) for name in names]


@dataclass(frozen=True, slots=True)
class Described:
    """One line of `sgl-kernels env`."""

    name: str
    value: str
    origin: str
    default: str
    meaning: str
    status: str  # "active" or "not yet"
    section: str
    key: str
    accepted: str


def describe(settings: Settings, environ: Mapping[str, str]) -> list[Described]:
    """Every environment variable with its value, where that came from, its default and its meaning.

    `environ` tells a variable that is set to nothing from one that is not set. Secrets are masked.
    """
    return [_describe(row, settings, environ) for row in TABLE if row.name]


def _describe(row: Variable, settings: Settings, environ: Mapping[str, str]) -> Described:
    origin = settings.origin(row.key)
    if row.key == "attention.backends" and settings.policy("attention").prefer:
        origin = settings.policy("attention").origin or origin
    if row.key.startswith("cache_dit.secondary.") and origin == "built-in":
        origin = f"from primary ({settings.origin(row.key.replace('.secondary', ''))})"
    elif origin == "built-in" and row.name in environ:
        origin = "built-in (the variable is empty)"
    value = show(row, settings.value(row.key))
    return Described(
        name=row.name,
        value=value or "not set",
        origin=origin,
        default=default_text(row),
        meaning=row.meaning,
        status="active" if row.implemented else "not yet",
        section=row.section,
        key=row.key,
        accepted=row.accepted,
    )


def default_text(row: Variable) -> str:
    """The default as the listing prints it."""
    return row.default_text or show(row, row.default) or "not set"


def markdown() -> str:
    """The table of variables for docs/settings.md, one part for each section of the user's page."""
    lines: list[str] = []
    for section in dict.fromkeys(row.section for row in TABLE):
        lines += [
            f"### {section}",
            "",
            "| Variable | Key in a file | Default | Accepted | Meaning | Status |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for row in TABLE:
            if row.section == section:
                name = f"`{row.name}`" if row.name else "(files only)"
                key = f"`{row.key}`" if row.in_file else "not in files"
                status = "active" if row.implemented else "not yet"
                default = default_text(row).replace("|", "\\|")
                lines.append(f"| {name} | {key} | {default} | {row.accepted} | {row.meaning} | {status} |")
        lines.append("")
    return "\n".join(lines)
