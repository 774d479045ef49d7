"""sgl-kernels config: check a configuration file; show what is in force and where it came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common, _errors
from sgl_kernels.cli._common import Json

app = typer.Typer(
    help="Check a configuration file; show what is in force.", cls=_errors.Group, no_args_is_help=True
)


@app.command("check", cls=_errors.Command)
def check(
    file: Annotated[Path, typer.Argument(help="A YAML or JSON file, or the name of a shipped preset.")],
    as_json: Json = False,
) -> None:
    """Read a configuration file and name everything that is wrong with it, each with line and key."""
    from sgl_kernels.core.errors import ConfigError
    from sgl_kernels.core.registry import registry
    from sgl_kernels.core.settings import check_files, load_settings, settle
    from sgl_kernels.core.settings.file import find_file, load_file

    problem = ""
    found = str(file)
    keys = 0
    try:
        found = find_file(str(file), load_settings({}).config_root)
        layer = load_file(found, registry.backends)
        check_files(settle(("configuration file", layer), known_backends=registry.backends))
        keys = len(layer)
    except ConfigError as error:
        problem = str(error).replace("SGLANG_DIFFUSION_ATTENTION_CONFIG is", "FILE is", 1)
    if as_json:
        _common.emit_json({"file": found, "valid": not problem, "keys": keys, "problem": problem})
    elif problem:
        _common.complain(problem)
    else:
        typer.echo(f"{found}: {keys} settings, nothing wrong.")
    if problem:
        raise typer.Exit(_common.FAILED)


@app.command("show", cls=_errors.Command)
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Also say where each value was set.")] = False,
    changed: Annotated[bool, typer.Option("--set", help="Only what is set somewhere.")] = False,
    as_json: Json = False,
) -> None:
    """Every setting in force: single values, the preferences of each op, rules and backend options."""
    from rich.table import Table

    from sgl_kernels.core.settings import load_settings

    rows = _rows(load_settings())
    if changed:
        rows = [row for row in rows if not row["origin"].startswith("built-in")]
    if as_json:
        _common.emit_json(rows if origin else [{k: v for k, v in r.items() if k != "origin"} for r in rows])
        return
    table = Table("key", "value", *(["origin"] if origin else []))
    for row in rows:
        cells = [row["key"], _text(row["value"]), *([row["origin"]] if origin else [])]
        table.add_row(*map(_escape, cells))
    _common.console().print(table)


def _rows(settings: Any) -> list[dict[str, Any]]:
    from sgl_kernels.core.names.ops import OPS
    from sgl_kernels.core.settings.variable import show as shown
    from sgl_kernels.core.settings.variables import TABLE

    rows: list[dict[str, Any]] = [
        {"key": row.key, "value": shown(row, settings.value(row.key)), "origin": settings.origin(row.key)}
        for row in TABLE
        if not row.key.endswith(".backends")
    ]
    for op in ("default", *OPS):
        policy = settings.default if op == "default" else settings.policy(op)
        for name, value in (("backends", list(policy.prefer)), ("deny", sorted(policy.deny))):
            if value or (op == "default" and name == "backends"):
                where = policy.origin if name == "backends" else settings.origin(f"{op}.{name}")
                rows.append({"key": f"{op}.{name}", "value": value or "auto", "origin": where or "built-in"})
    for index, rule in enumerate(settings.rules):
        said = {k: v for k, v in dataclasses.asdict(rule).items() if v and k != "origin"}
        rows.append({"key": f"rules[{index}]", "value": said, "origin": rule.origin or "built-in"})
    for backend, options in settings.options:
        key = f"options.{backend}"
        rows.append({"key": key, "value": dict(options), "origin": settings.origin(key)})
    return rows


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or "not set"
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value, default=str)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
