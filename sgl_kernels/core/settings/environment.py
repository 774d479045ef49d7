"""Environment variables as a layer, and the listing of what every setting is and where it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sgl_kernels.core.environment import process
from sgl_kernels.core.names.backends import did_you_mean

from .layer import Located
from .variable import coerce
from .variables import BY_KEY, BY_NAME, PREFIXES, READ_ELSEWHERE

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


def one(key: str) -> Any:
    """A single setting as the process's environment has it, for a question that comes before all are read.

    Raises ConfigError for a value that does not parse.
    """
    row = BY_KEY[key]
    text = process().get(row.name, "").strip()
    return coerce(row, text, row.name) if text else row.default


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
    result = Located(layer, layer.where, layer.read)
    for key, value in layer.items():
        row = BY_KEY.get(key)
        if row is None or row.kind not in _PATH_KINDS or not isinstance(value, str | list | tuple):
            continue
        if isinstance(value, str):
            parts = value.split(os.pathsep) if row.kind == "paths" else [value]
            result[key] = os.pathsep.join(_expand_path(part, environ) for part in parts)
        else:
            result[key] = tuple(_expand_path(p, environ) if isinstance(p, str) else p for p in value)
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
