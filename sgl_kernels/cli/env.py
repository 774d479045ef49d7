"""sgl-kernels env: every environment variable, its value, where that came from, and what it means."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json


def env(
    changed: Annotated[bool, typer.Option("--set", help="Only what is set somewhere.")] = False,
    section: Annotated[str | None, typer.Option(help="Only the sections whose title contains this.")] = None,
    as_json: Json = False,
) -> None:
    """Every environment variable: value, origin, default, meaning, and whether anything acts on it yet."""
    from rich.table import Table

    from sgl_kernels.core.environment import process
    from sgl_kernels.core.settings import load_settings
    from sgl_kernels.core.settings.listing import describe

    rows = describe(load_settings(), process())
    if section is not None:
        titles = dict.fromkeys(row.section for row in rows)
        if not any(section.lower() in title.lower() for title in titles):
            _common.one_of("--section", section, titles)
        rows = [row for row in rows if section.lower() in row.section.lower()]
    if changed:
        rows = [row for row in rows if not row.origin.startswith(("built-in", "from primary (built-in"))]
    if as_json:
        _common.emit_json([dataclasses.asdict(row) for row in rows])
        return
    console = _common.console()
    if not rows:
        console.print("Nothing is set: every variable has its default. `sgl-kernels env` lists them.")
    for title in dict.fromkeys(row.section for row in rows):
        table = Table(title=title, title_justify="left")
        for name in ("variable", "value", "origin", "default", "status", "meaning"):
            table.add_column(name, overflow="fold", no_wrap=name == "variable")
        for row in (r for r in rows if r.section == title):
            status = "[yellow]not yet[/yellow]" if row.status == "not yet" else "[green]active[/green]"
            plain = (row.value, row.origin, row.default)
            table.add_row(row.name, *map(_escape, plain), status, _escape(row.meaning))
        console.print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
