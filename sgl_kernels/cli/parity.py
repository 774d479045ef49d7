"""sgl-kernels parity: every op, case and dtype on every backend against the definition in float64."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json

TAGS = ("test", "smoke", "bench", "slow")


def parity(
    op: Annotated[
        list[str] | None, typer.Option(help="Only these ops or families (repeat, or a comma list).")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Only these backends, a comma list.")] = None,
    case: Annotated[str | None, typer.Option(help="Only cases whose name matches this wildcard.")] = None,
    tag: Annotated[str, typer.Option(help="Cases to run: test, or smoke for a first look.")] = "test",
    dtype: Annotated[str | None, typer.Option(help="Only these dtypes, a comma list.")] = None,
    device: Annotated[str, typer.Option(help="The torch device to run on.")] = "cpu",
    require: Annotated[
        str | None, typer.Option(help="Backends (comma list) whose skipped cells count as failures.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the inputs; a new one each time if absent.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the matrix as Markdown.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a self-contained page here.")] = None,
    as_json: Json = False,
) -> None:
    """The parity matrix. Exit code 1 when a cell fails, or a backend of --require was skipped."""
    import random

    _common.one_of("--tag", tag, TAGS)
    _common.within("--seed", seed, 0, 2**63 - 1)
    ops = _common.op_names("--op", [name for item in op or () for name in _common.split_names(item)])
    backends = _common.backend_names("--backend", backend)
    needed = _common.backend_names("--require", require)
    dtypes = _common.dtypes_of("--dtype", dtype)
    where = _common.torch_device("--device", device)
    _common.target_file("--html", html)
    number = random.SystemRandom().randrange(2**31) if seed is None else seed
    cells = _run(ops, backends, case, tag, dtypes, where, number, as_json)
    if not cells:
        raise typer.BadParameter(
            "no cell matches --op, --backend, --case, --tag and --dtype together; loosen one of them"
        )
    _report(cells, needed, number, where, markdown, html, as_json)


def _run(
    ops: tuple[str, ...], backends: tuple[str, ...], case: str | None, tag: str, dtypes: tuple[Any, ...],
    device: Any, seed: int, quiet: bool,
) -> list[Any]:  # fmt: skip
    from sgl_kernels.tools.parity.cell import matrix, run_cell

    wanted = [
        item
        for item in matrix(ops=ops, backends=backends, tag=tag)
        if (not dtypes or item[3] in dtypes) and (case is None or fnmatch.fnmatchcase(item[1].name, case))
    ]
    cells = []
    with _common.progress(len(wanted), "parity", quiet) as advance:
        for one, workload, implementation, dtype in wanted:
            advance(f"{one.name} {implementation.backend} {workload.name}")
            cells.append(run_cell(one, workload, implementation, dtype, device=device, seed=seed))
    return cells


def _report(
    cells: list[Any],
    needed: tuple[str, ...],
    seed: int,
    device: Any,
    markdown: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    from sgl_kernels.core.device import probe
    from sgl_kernels.tools.page.html import markdown_table, rich_table
    from sgl_kernels.tools.parity import page as view
    from sgl_kernels.tools.parity.cell import counts, summarise

    missing = view.required(cells, needed)
    found = counts(cells)
    if html is not None:
        page = view.page(cells, f"{summarise(cells)}. {probe(device)}, seed {seed}.")
        _common.write("--html", html, page)
    if as_json:
        data = {"counts": found, "seed": seed, "device": str(probe(device)), "required": missing}
        _common.emit_json({**data, "cells": [cell.to_dict() for cell in cells]})
    elif markdown:
        tables = (view.grid(cells), view.failures(cells))
        typer.echo("\n\n".join(markdown_table(table) for table in tables if table.rows))
        typer.echo(f"\n{summarise(cells)}. {probe(device)}, seed {seed}.")
    else:
        console = _common.console()
        console.print(rich_table(view.grid(cells)))
        for table in (view.failures(cells), view.skips(cells)):
            if table.rows:
                console.print(rich_table(table))
        console.print(f"[dim]{probe(device)}, seed {seed}[/dim]")
        if html is not None:
            typer.echo(f"written: {html}")
    for problem in missing:
        _common.complain(problem)
    if found["fail"] or missing:
        raise typer.Exit(_common.FAILED)
