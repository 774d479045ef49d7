"""The settings of this process, from everything that speaks about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sgl_kernels.core import log
from sgl_kernels.core.environment import process
from sgl_kernels.core.names.backends import KnownNames

from . import environment
from .layer import Layer, Located, subject_of
from .settings import SOURCES, Settings, settle


def load_settings(
    environ: Mapping[str, str] | None = None,
    flags: Layer | None = None,
    known_backends: KnownNames | None = None,
) -> Settings:
    """The settings of this process: built-in values, configuration file, environment, command-line flags.

    With the process's own environment (`environ` None) it also sets
    the level of our logger, and reads the tuning tables that are named. Names that look like ours and are not
    are reported once, as a warning.
    `known_backends` are further backend names; None asks the registry, and only for a name that is not ours.

    Raises ConfigError for anything that does not parse, and for a configuration file that is not found.
    """
    own = environ is None
    known = _registered if known_backends is None else known_backends
    actual: Mapping[str, str] = process() if environ is None else environ
    built_in = environment.built_in(actual)
    variables = environment.expand(environment.from_env(actual), actual)
    chosen = environment.expand(Located(flags or {}, getattr(flags, "where", {})), actual)
    layers: list[tuple[str, Layer]] = [(SOURCES[0], built_in)]
    path = chosen.get("attention_config") or variables.get("attention_config")
    if path is not None:
        from .file import find_file, load_file  # pydantic and yaml stay out of `import sgl_kernels`

        root = chosen.get("config_root") or variables.get("config_root") or built_in["config_root"]
        found = find_file(str(path), str(root))
        layers.append((SOURCES[1], environment.expand(load_file(found, known), actual)))
        (chosen if "attention_config" in chosen else variables)["attention_config"] = found
    settings = settle(*layers, (SOURCES[2], variables), (SOURCES[3], chosen), known_backends=known)
    for name, near in environment.unknown(actual):
        log.warn_once(f"unknown variable {name}", f"{name} is not a variable of sgl_kernels{near}")
    if own:
        log.set_level(settings.logging_level)
        check_files(settings)
    return settings


def check_files(settings: Settings) -> None:
    """The files that settings name and calls will read are there and whole. Raises ConfigError if not."""
    if settings.tuning_paths:
        from sgl_kernels.core.selection.tuning import check_tables

        origin = settings.origin("tuning_paths")
        check_tables(settings.tuning_paths, subject_of("tuning_paths", origin))


def _registered() -> Collection[str]:
    from sgl_kernels.core.registry import (
        registry,
    )  # the registry needs no settings, but imports more than they do

    return registry.backends()
