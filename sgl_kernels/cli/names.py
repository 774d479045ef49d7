"""sgl-kernels list: ops, backends and aliases."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json

WHAT = ("ops", "backends", "aliases", "cases")


def list_names(
    what: Annotated[
        str | None, typer.Argument(help="ops, backends, aliases or cases; all but cases if absent.")
    ] = None,
    op: Annotated[str | None, typer.Option(help="Cases of this op only.")] = None,
    as_json: Json = False,
) -> None:
    """Every op, every backend and every alias that names one."""
    from sgl_kernels.tools.inventory import inventory
    from sgl_kernels.tools.page.html import rich_table

    if what is not None:
        _common.one_of("WHAT", what, WHAT)
    if op is not None and what != "cases":
        raise typer.BadParameter(f"--op is {op!r}, which chooses cases; say `list cases --op {op}`")
    wanted = (what,) if what else WHAT[:3]
    tables = inventory(wanted, _common.op_names("--op", [op]) if op is not None else ())
    if as_json:
        _common.emit_json(
            {
                name: [dict(zip(table.columns, map(str, row), strict=True)) for row in table.rows]
                for name, table in tables.items()
            }
        )
        return
    console = _common.console()
    for table in tables.values():
        console.print(rich_table(table))
