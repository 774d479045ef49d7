"""Configuration files: finding them, reading them, and errors with file, line and key."""

from __future__ import annotations

import contextlib
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import KnownNames, did_you_mean

from .file_lines import Lines, parse_json, parse_yaml
from .file_schema import POLICY_KEYS, schema
from .layer import POLICY_FIELDS, Located
from .variable import BadValueError

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_BYTES = 1 << 20
SUFFIXES: tuple[str, ...] = (".yaml", ".yml", ".json")


def shipped_configs() -> Path:
    """The folder of presets: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_file(path: str, config_root: str) -> str:
    """The configuration file that `path` names.

    A relative path is looked up in the working directory, then in `config_root`, then among the presets
    that come with the library; the suffix may be left out ('h200').

    Raises ConfigError listing the places, and the preset whose name is nearest.
    """
    if not Path(path).name:  # '/' and '.', to which no suffix can be added
        raise ConfigError(
            f"SGLANG_DIFFUSION_ATTENTION_CONFIG is {path!r}, a directory; expected a YAML or JSON file"
        )
    places = [Path(path)] if os.path.isabs(path) else [Path(), Path(config_root), shipped_configs()]
    for place in places:
        base = place if os.path.isabs(path) else place / path
        for candidate in (base, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)):
            with contextlib.suppress(OSError):  # a name longer than the file system takes names no file
                if candidate.is_file() or (candidate == base and base.suffix in SUFFIXES and base.exists()):
                    return str(candidate)
    presets = sorted(p.name for p in shipped_configs().glob("*.yaml"))
    if os.path.isabs(path):
        raise ConfigError(f"SGLANG_DIFFUSION_ATTENTION_CONFIG is {path!r}, and there is no such file")
    looked = ", ".join(str(place.resolve()) for place in places)
    near = did_you_mean(os.path.basename(path), (*(Path(name).stem for name in presets), *presets))
    raise ConfigError(
        f"SGLANG_DIFFUSION_ATTENTION_CONFIG is {path!r}, and there is no such file; looked in: {looked}{near}"
    )


def load_file(path: str, known_backends: KnownNames = ()) -> Located:
    """A configuration file as a layer whose keys know their lines.

    Raises ConfigError that lists everything wrong in the file, each with line and key.
    """
    text = _read(path)
    parse = parse_json if path.lower().endswith(".json") else parse_yaml
    data, lines = parse(text, path)
    if data is None:
        return Located()
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: holds {_noun(data)}; expected a mapping with keys such as 'attention'")
    from pydantic import ValidationError

    try:
        model = schema().model_validate(data, context={"known": known_backends})
    except ValidationError as error:
        raise ConfigError(_report(error, data, lines, path)) from None
    return _layer(model.model_dump(exclude_unset=True), lines, path)


def _read(path: str) -> str:
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a configuration file ends in {', '.join(SUFFIXES)}")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; expected a YAML or JSON file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; this is not a configuration file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text (byte {error.start})") from None


def _layer(data: Mapping[str, Any], lines: Lines, path: str) -> Located:
    layer = Located()
    for keys, value in _leaves(data, ()):
        key = ".".join(keys)
        layer[key] = value
        layer.read.add(key)  # by the schema
        layer.where[key] = f"file {path}:{lines[keys]}"
        if key == "rules":
            layer.where |= {f"rules.{i}": f"file {path}:{lines[('rules', i)]}" for i in range(len(value))}
    return layer


def _leaves(data: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in data.items():
        path = (*keys, key)
        if value is None or path == ("version",):
            continue
        if isinstance(value, Mapping) and keys != ("options",):
            yield from _leaves(value, path)
        else:
            yield path, value


def _report(error: ValidationError, data: Any, lines: Lines, path: str) -> str:
    """Every problem on its own line, in the order of the file."""
    problems: dict[tuple[int, str], None] = {}
    for item in error.errors(include_url=False):
        keys = tuple(k for k in item["loc"] if k != "[key]")
        place = _place(keys, data)
        problems[(lines[place], _problem(dict(item), place))] = None
    texts = [f"{path}:{line}: {text}" for line, text in sorted(problems)]
    if len(texts) == 1:
        return texts[0]
    return f"{path}: {len(texts)} problems\n" + "\n".join(f"  {text}" for text in texts)


def _place(keys: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """The part of an error's location that exists in the file: a bare list has no 'backends' key in it."""
    place: list[str | int] = []
    for key in keys:
        inside = (isinstance(data, dict) and key in data) or (isinstance(data, list) and isinstance(key, int))
        if inside:
            data = data[key]
        elif not isinstance(data, dict):
            break
        place.append(key)
    return tuple(place)


def _problem(item: dict[str, Any], place: tuple[str | int, ...]) -> str:
    key = _dotted(place)
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        keys = _keys_at(place[:-1])
        near = did_you_mean(str(place[-1]), keys) or ";"
        return f"unknown key {key!r}{near} keys here: {', '.join(keys)}"
    if kind == "missing":
        return f"{_dotted(place[:-1])} has no {str(place[-1])!r}; a rule says which backends its calls prefer"
    if kind == "value_error":
        parent, error = _dotted(place[:-1]), item["ctx"]["error"]
        if isinstance(error, BadValueError):  # its subject is the last part of the key; say it in full
            leaf = error.subject
            own = key if key.rpartition(".")[2] == leaf else f"{key}.{leaf}" if key else leaf
            return f"{own} {error.fault}"
        return f"{parent}: {error}" if parent else str(error)
    if kind == "literal_error":
        expected = item["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = did_you_mean(str(value), expected.split(", "))
        return f"{key} is {value!r}; expected {'' if ',' not in expected else 'one of '}{expected}{near}"
    expected = {"dict_type": "a mapping", "model_type": "a mapping", "list_type": "a list"}.get(kind)
    if str(place[-1]) in POLICY_KEYS or (place[0] == "ops" and len(place) == 2):
        expected = "a backend name, a list of them, or a mapping with " + ", ".join(POLICY_FIELDS)
    return f"{key} is {_noun(value)}; expected {expected or item['msg'].removeprefix('Input should be ')}"


def _dotted(place: tuple[str | int, ...]) -> str:
    text = ""
    for key in place:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _keys_at(place: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand at a place of the file."""
    model: Any = schema()
    for key in place:
        if isinstance(key, int):
            continue
        found = model.model_fields.get(key) if hasattr(model, "model_fields") else None
        if found is not None:
            model = _model_in(found.annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `list[Rule] | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = [_model_in(argument) for argument in typing.get_args(annotation)]
    return next((model for model in inner if model is not None), None)


def _noun(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return "empty" if value is None else repr(value)
