"""YAML and JSON text as data, with the line of every key."""

from __future__ import annotations

import json
from typing import Any

from sgl_kernels.core.errors import ConfigError

MAX_NODES = 20_000
"""More than a thousand times the largest preset; stops aliases that unfold without end."""

Path = tuple[str | int, ...]


class Lines:
    """The line of a key or list item, by its path; the nearest enclosing one if the path has none."""

    def __init__(self) -> None:
        self.found: dict[Path, int] = {}

    def __getitem__(self, path: Path) -> int:
        while path and path not in self.found:
            path = path[:-1]
        return self.found.get(path, 1)


def parse_yaml(text: str, name: str) -> tuple[Any, Lines]:
    """Data and lines of YAML text; `name` stands for the file in errors.

    Raises ConfigError with the line for bad syntax, a key given twice, a key that is not text, tags that
    stand for Python objects, or more than one document.
    """
    import yaml

    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = Lines()
        if node is None:
            return None, lines
        _Walk(name, lines).visit(node, ())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that Python cannot hold
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be read") from None
    finally:
        if loader is not None:
            loader.dispose()


def parse_json(text: str, name: str) -> tuple[Any, Lines]:
    """Data and lines of JSON text, strictly: no comments, no NaN, no key given twice.

    Raises ConfigError with the line for bad syntax.
    """
    if not text.strip():
        return None, Lines()
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: not valid JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be read") from None
    # Valid JSON is YAML, but for tabs between tokens (JSON forbids them inside strings) and characters that
    # YAML does not print. With blanks for those, YAML's marks serve for both, and so do the checks on keys.
    import yaml

    _, lines = parse_yaml(yaml.SafeLoader.NON_PRINTABLE.sub(" ", text.replace("\t", " ")), name)
    return data, lines


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


class _Walk:
    """One pass over a YAML node tree that notes lines and refuses what YAML lets through in silence."""

    def __init__(self, name: str, lines: Lines) -> None:
        self.name = name
        self.lines = lines
        self.nodes = 0

    def visit(self, node: Any, path: Path) -> None:
        import yaml

        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ConfigError(f"{self.name}: more than {MAX_NODES} values, counting each use of an alias")
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    self.visit(value, path)
                    continue
                word = self._key(key, line)
                if word in first:
                    raise ConfigError(
                        f"{self.name}:{line}: key {word!r} is given twice, first on line {first[word]}"
                    )
                first[word] = line
                self.lines.found[(*path, word)] = line
                self.visit(value, (*path, word))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.lines.found[(*path, index)] = item.start_mark.line + 1
                self.visit(item, (*path, index))

    def _key(self, key: Any, line: int) -> str:
        if key.tag != "tag:yaml.org,2002:str":
            shown = key.value if isinstance(key.value, str) else "a list or mapping"
            raise ConfigError(
                f"{self.name}:{line}: key {shown!r} is not text in YAML; put it in quotes if it is meant"
            )
        return str(key.value)
