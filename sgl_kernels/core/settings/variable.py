"""One setting that is a single value: how its text is read, checked and shown."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.backends import KnownNames, did_you_mean, resolve_names

TRUE: tuple[str, ...] = ("1", "true", "yes", "on")
FALSE: tuple[str, ...] = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Variable:
    """A row of the table in core/settings/variables.py."""

    name: str  # the environment variable; "" for a setting that only files and flags have
    key: str  # dotted path in Settings and in configuration files
    kind: str  # one of KINDS
    default: Any  # equal to what Settings() holds under `key`
    meaning: str
    section: str = ""
    choices: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()  # other spellings of a choice
    low: float | None = None  # inclusive
    high: float | None = None
    implemented: bool = False  # False: read and checked, but nothing acts on it in this release
    in_file: bool = True  # whether a configuration file may hold it
    default_text: str = ""  # how the default is printed where the value alone would mislead

    @property
    def accepted(self) -> str:
        """What a value may be, as a phrase for messages and tables."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind in ("int", "float"):
            noun = "a whole number" if self.kind == "int" else "a number"
            if self.low is not None and self.high is not None:
                return f"{noun} from {self.low:g} to {self.high:g}"
            return noun if self.low is None else f"{noun}, at least {self.low:g}"
        return KINDS[self.kind]


KINDS: dict[str, str] = {
    "bool": "one of " + ", ".join((*TRUE, *FALSE)),
    "int": "a whole number",
    "float": "a number",
    "choice": "one of its choices",
    "backends": "a backend name or a comma list of them, or auto",
    "patterns": "a comma list of wildcards",
    "counts": "a comma list of whole numbers, each at least 1",
    "path": "a path",
    "absolute path": "an absolute path",
    "paths": f"paths separated by {os.pathsep!r}",
    "url": "a URL that starts with http:// or https://",
    "text": "text",
    "secret": "text",
}


class _UnacceptableError(Exception):
    """A value outside what its row accepts; `near` is a suggestion ready to append."""

    def __init__(self, near: str = "") -> None:
        super().__init__(near)
        self.near = near


class BadValueError(ConfigError):
    """A value that a setting cannot have: what it is of, and what is wrong with it."""

    def __init__(self, subject: str, fault: str) -> None:
        super().__init__(f"{subject} {fault}")
        self.subject, self.fault = subject, fault


def coerce(row: Variable, value: object, subject: str, known: KnownNames = ()) -> Any:
    """The value of `row` for raw text or for an already typed value. `subject` names it in the error.

    Raises BadValueError with the subject, the value, what is accepted and the nearest match.
    """
    try:
        if row.kind == "backends":
            return _backends(value, known)
        return _READERS[row.kind](row, value.strip() if isinstance(value, str) else value)
    except _UnacceptableError as error:
        shown = "hidden" if row.kind == "secret" else _brief(value)
        raise BadValueError(subject, f"is {shown}; expected {row.accepted}{error.near}") from None
    except ConfigError as error:  # from resolve_names: it has named the value and the nearest match
        raise BadValueError(subject, f"is {_brief(value)}: {error}") from None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)} characters)"


def _backends(value: object, known: KnownNames) -> tuple[str, ...]:
    if isinstance(value, str):
        return resolve_names(value, known)
    items = _strings(value)
    return resolve_names(items, known) if items else ()


def _strings(value: object) -> list[str]:
    if isinstance(value, Sequence) and not isinstance(value, bytes | str):
        items = list(value)
        if all(isinstance(item, str) for item in items):
            return items
    if isinstance(value, set | frozenset):
        return _strings(sorted(value))
    raise _UnacceptableError


def _bool(row: Variable, value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower() if isinstance(value, str | int) else ""
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise _UnacceptableError(did_you_mean(text, (*TRUE, *FALSE)))


def _int(row: Variable, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
        value = int(value[:20])  # no setting is longer; text of a million digits must not cost seconds
    if isinstance(value, bool) or not isinstance(value, int):
        raise _UnacceptableError
    return int(_in_range(row, value))


def _float(row: Variable, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _UnacceptableError from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _UnacceptableError
    return float(_in_range(row, value))


def _in_range(row: Variable, value: float) -> float:
    if (row.low is not None and value < row.low) or (row.high is not None and value > row.high):
        raise _UnacceptableError
    return value


def _choice(row: Variable, value: object) -> str:
    if not isinstance(value, str):
        raise _UnacceptableError
    spellings = {choice.lower(): choice for choice in row.choices}
    spellings |= {alias.lower(): choice for alias, choice in row.aliases}
    if value.lower() not in spellings:
        near = did_you_mean(value, spellings)
        raise _UnacceptableError(near)
    return spellings[value.lower()]


def _patterns(row: Variable, value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else _strings(value)
    return tuple(item.strip() for item in items if item.strip())


def _counts(row: Variable, value: object) -> tuple[int, ...]:
    items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or isinstance(items, bytes):
        raise _UnacceptableError
    plain = Variable("", "", "int", 0, "", low=1)
    return tuple(_int(plain, item) for item in items)


def _text(row: Variable, value: object) -> str:
    if not isinstance(value, str) or not value or any(ord(letter) < 32 for letter in value):
        raise _UnacceptableError
    return value


def _absolute_path(row: Variable, value: object) -> str:
    path = _text(row, value)
    if not os.path.isabs(path):
        raise _UnacceptableError(f", such as {os.path.join(os.sep, 'tmp', 'traces')}")
    return path


def _paths(row: Variable, value: object) -> tuple[str, ...]:
    items = value.split(os.pathsep) if isinstance(value, str) else _strings(value)
    return tuple(_text(row, item) for item in items if item)


def _url(row: Variable, value: object) -> str:
    url = _text(row, value)
    if not re.match(r"https?://[^/\s]+", url, re.IGNORECASE):
        raise _UnacceptableError
    return url


_READERS: dict[str, Callable[[Variable, object], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "choice": _choice,
    "patterns": _patterns,
    "counts": _counts,
    "path": _text,
    "absolute path": _absolute_path,
    "paths": _paths,
    "url": _url,
    "text": _text,
    "secret": _text,
}


def show(row: Variable, value: object) -> str:
    """A value as one line of text; secrets are masked, and nothing at all is an empty string."""
    if value is None or value == ():
        return ""
    if row.kind == "secret":
        return "********"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return (os.pathsep if row.kind == "paths" else ",").join(str(item) for item in value)
    return str(value)
