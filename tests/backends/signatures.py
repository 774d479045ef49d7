"""The vendors' real signatures, read from their sources and kept in schemas/signatures.json.

    python -m tests.backends.signatures FILE FUNCTION...

prints what a checkout or an unpacked wheel has now, to compare a newer release with what our stand-ins say.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "schemas" / "signatures.json"


def recorded() -> dict[str, dict[str, Any]]:
    """{'module.function': {'version': ..., 'parameters': ['q', 'dropout_p=0.0', '*', ...]}}"""
    found: dict[str, dict[str, Any]] = json.loads(PATH.read_text())
    return found


def of_callable(function: Callable[..., Any]) -> list[str]:
    """The parameters of a function that can be called, as text: names, defaults, and the star of keywords."""
    parts: list[str] = []
    star = False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}")
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        default = str(p.default) if isinstance(p.default, enum.Enum) else repr(p.default)
        parts.append(p.name if p.default is p.empty else f"{p.name}={default}")
    return parts


def of_source(path: str, name: str) -> list[str]:
    """The same of the last top-level definition of `name` in a file, which is not imported."""
    found = [
        n for n in ast.parse(Path(path).read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name
    ]
    if not found:
        raise ValueError(f"{path} defines no function {name!r} at its top level; name the file that does")
    node = found[-1]
    a = node.args
    defaults = [None] * (len(a.args) - len(a.defaults)) + list(a.defaults)
    parts = [_text(arg, d) for arg, d in zip(a.args, defaults, strict=True)]
    if a.kwonlyargs:
        parts += ["*", *(_text(arg, d) for arg, d in zip(a.kwonlyargs, a.kw_defaults, strict=True))]
    return parts + ([f"**{a.kwarg.arg}"] if a.kwarg else [])


def _text(argument: ast.arg, default: ast.expr | None) -> str:
    return argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}"


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(f"{name}: {json.dumps(of_source(sys.argv[1], name))}")
